"""Jobs over HTTP with aiohttp: start a command, await its end, follow its output, stop it.

    python -m examples.aiohttp_app [DB_PATH] [--port 8080]

    curl -i 127.0.0.1:8080/jobs --json '{"job_id": "dates", "command": "date; sleep 9; date"}'
    curl -N '127.0.0.1:8080/jobs/dates/log?offset=0'
    curl '127.0.0.1:8080/jobs/dates/wait?timeout=10'
    curl -X DELETE 127.0.0.1:8080/jobs/dates

Who reaches it runs commands as you: it listens on 127.0.0.1 only, and answers no web page that a
browser was lured into sending here.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anodejobs import InvalidJob, JobActive, JobNotFound, JobRecord, Jobs, WaitTimeout

HOST = "127.0.0.1"
JOBS = web.AppKey("jobs", Jobs)

routes = web.RouteTableDef()


class NewJob(BaseModel):
    """What to run: a string goes to the shell, a list is executed directly."""

    model_config = ConfigDict(extra="forbid")

    command: str | list[str]
    job_id: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None = None
    """Any printable text would do for a job, but this one becomes part of a URL."""


class WaitQuery(BaseModel):
    timeout: float = 60.0


class LogQuery(BaseModel):
    offset: Annotated[int, Field(ge=0, lt=2**63)] = 0


def create_app(db_path: str = "./job_db") -> web.Application:
    """Return the application; its jobs are opened and closed with it."""

    async def opened_jobs(app: web.Application) -> AsyncIterator[None]:
        async with Jobs(db_path=db_path) as jobs:
            app[JOBS] = jobs
            yield

    app = web.Application(middlewares=[only_local, refuse])
    app.cleanup_ctx.append(opened_jobs)
    app.add_routes(routes)
    return app


@web.middleware
async def only_local(request: web.Request, handler: Handler) -> web.StreamResponse:
    # A web page whose name was made to point here sends its own name.
    if request.host.partition(":")[0] not in (HOST, "localhost"):
        raise web.HTTPBadRequest(text="this is not the host you asked for")
    return await handler(request)


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (InvalidJob, ValidationError) as error:
        return refusal(422, error)
    except JobNotFound as error:
        return refusal(404, error)
    except JobActive as error:
        return refusal(409, error)
    except WaitTimeout as error:
        return refusal(504, error)


def refusal(code: int, error: Exception) -> web.Response:
    return web.json_response({"detail": str(error)}, status=code)


def answer(record: JobRecord, code: int = 200) -> web.Response:
    return web.json_response(text=record.model_dump_json(), status=code)


async def found(request: web.Request) -> JobRecord:
    job_id = request.match_info["job_id"]
    record = await request.app[JOBS].get_status(job_id=job_id)
    if record is None:
        raise JobNotFound(job_id)
    return record


@routes.post("/jobs")
async def run(request: web.Request) -> web.Response:
    # Browsers let any web page send other types to any address, without asking first.
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="send application/json")
    new = NewJob.model_validate_json(await request.read())
    record = await request.app[JOBS].run(command=new.command, job_id=new.job_id)
    response = answer(record, code=201)
    response.headers["Location"] = f"/jobs/{quote(record.self_id, safe='')}"
    return response


@routes.get("/jobs/{job_id}")
async def status(request: web.Request) -> web.Response:
    return answer(await found(request))


@routes.get("/jobs/{job_id}/wait")
async def wait(request: web.Request) -> web.Response:
    query = WaitQuery.model_validate(dict(request.query))
    jobs, job_id = request.app[JOBS], request.match_info["job_id"]
    return answer(await jobs.wait(job_id=job_id, timeout=query.timeout))


@routes.get("/jobs/{job_id}/log")
async def log(request: web.Request) -> web.StreamResponse:
    """Stream stdout as it is written; to resume, give as offset how many bytes you have."""
    query = LogQuery.model_validate(dict(request.query))
    record = await found(request)
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    await response.prepare(request)
    follow = request.app[JOBS].follow
    async for chunk in follow(job_id=record.self_id, stderr=False, offset=query.offset):
        await response.write(chunk.data)
    await response.write_eof()
    return response


@routes.delete("/jobs/{job_id}")
async def stop(request: web.Request) -> web.Response:
    record = await found(request)
    return answer(await request.app[JOBS].stop(job_id=record.self_id) or record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Jobs over HTTP, on the loopback address.")
    parser.add_argument("db_path", nargs="?", default="./job_db")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    # Both, since whoever follows a job that runs on would keep the server from ending.
    web.run_app(
        create_app(options.db_path),
        host=HOST,
        port=options.port,
        shutdown_timeout=1,
        handler_cancellation=True,
    )
