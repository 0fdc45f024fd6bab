"""Jobs over HTTP with FastAPI: start a command, await its end, follow its output, stop it.

    python -m examples.fastapi_app [DB_PATH] [--port 8000]

    curl -i 127.0.0.1:8000/jobs --json '{"job_id": "dates", "command": "date; sleep 9; date"}'
    curl -N '127.0.0.1:8000/jobs/dates/log?offset=0'
    curl '127.0.0.1:8000/jobs/dates/wait?timeout=10'
    curl -X DELETE 127.0.0.1:8000/jobs/dates

Who reaches it runs commands as you: it listens on 127.0.0.1 only, and answers no web page that a
browser was lured into sending here.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from urllib.parse import quote

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from anodejobs import (
    AnodeJobsError,
    InvalidJob,
    JobActive,
    JobNotFound,
    JobRecord,
    Jobs,
    WaitTimeout,
)

HOST = "127.0.0.1"
CODES: dict[type[AnodeJobsError], int] = {
    InvalidJob: 422,
    JobNotFound: 404,
    JobActive: 409,
    WaitTimeout: 504,
}

router = APIRouter()


class NewJob(BaseModel):
    """What to run: a string goes to the shell, a list is executed directly."""

    model_config = ConfigDict(extra="forbid")

    command: str | list[str]
    job_id: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None = None
    """Any printable text would do for a job, but this one becomes part of a URL."""


def create_app(db_path: str = "./job_db") -> FastAPI:
    """Return the application; its jobs are opened and closed with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Jobs(db_path=db_path) as jobs:
            app.state.jobs = jobs
            yield

    app = FastAPI(title="Jobs", lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.include_router(router)
    for error in CODES:
        app.add_exception_handler(error, refuse)
    return app


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnodeJobsError)
    return JSONResponse({"detail": str(error)}, status_code=CODES[type(error)])


async def only_json(content_type: Annotated[str, Header()] = "") -> None:
    # Browsers let any web page send other types to any address, without asking first.
    if content_type.partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "send application/json")


async def opened_jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


OpenedJobs = Annotated[Jobs, Depends(opened_jobs)]


async def found(job_id: str, jobs: OpenedJobs) -> JobRecord:
    record = await jobs.get_status(job_id=job_id)
    if record is None:
        raise JobNotFound(job_id)
    return record


Found = Annotated[JobRecord, Depends(found)]


@router.post("/jobs", status_code=201, dependencies=[Depends(only_json)])
async def run(new: NewJob, jobs: OpenedJobs, request: Request, response: Response) -> JobRecord:
    record = await jobs.run(command=new.command, job_id=new.job_id)
    path = request.app.url_path_for("status", job_id=record.self_id)
    response.headers["Location"] = quote(path)
    return record


@router.get("/jobs/{job_id}")
async def status(record: Found) -> JobRecord:
    return record


@router.get("/jobs/{job_id}/wait")
async def wait(job_id: str, jobs: OpenedJobs, timeout: float = 60.0) -> JobRecord:
    return await jobs.wait(job_id=job_id, timeout=timeout)


@router.get("/jobs/{job_id}/log")
async def log(
    record: Found, jobs: OpenedJobs, offset: Annotated[int, Query(ge=0, lt=2**63)] = 0
) -> StreamingResponse:
    """Stream stdout as it is written; to resume, give as offset how many bytes you have."""
    chunks = jobs.follow(job_id=record.self_id, stderr=False, offset=offset)
    return StreamingResponse((chunk.data async for chunk in chunks), media_type="text/plain")


@router.delete("/jobs/{job_id}")
async def stop(record: Found, jobs: OpenedJobs) -> JobRecord:
    return await jobs.stop(job_id=record.self_id) or record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Jobs over HTTP, on the loopback address.")
    parser.add_argument("db_path", nargs="?", default="./job_db")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    # Bounded, since whoever follows a job that runs on would keep the server from ending.
    uvicorn.run(
        create_app(options.db_path), host=HOST, port=options.port, timeout_graceful_shutdown=1
    )
