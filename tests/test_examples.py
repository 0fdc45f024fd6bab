"""The examples, run as a user runs them: the programs as programs, the web apps over HTTP."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import sqlite3
import sys
import tarfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import uvicorn
from aiohttp.test_utils import TestServer

from anodejobs import JobRecord, Jobs, Status
from examples import aiohttp_app, fastapi_app
from tests.programs import Gate

pytestmark = pytest.mark.outer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LIMIT_S = 60.0


@asynccontextmanager
async def example(name: str, *args: str, cwd: Path) -> AsyncIterator[Process]:
    """Run an example as a program, and end it with the context."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / name), *args),
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def output(name: str, *args: str, cwd: Path) -> tuple[str, str]:
    """Return what an example writes, stdout and stderr, when it succeeds."""
    async with example(name, *args, cwd=cwd) as process:
        stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode(), stderr.decode()


async def line_with(pattern: str, stream: asyncio.StreamReader | None) -> re.Match[str]:
    """Return the match in the first line that has one."""
    assert stream is not None
    read = []
    async for line in stream:
        read.append(line.decode())
        if found := re.search(pattern, read[-1]):
            return found
    raise AssertionError(f"no {pattern!r} in {''.join(read)}")


def has_exited(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


@contextmanager
def watched(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


async def recorded(db_path: Path) -> list[JobRecord]:
    async with Jobs(db_path=db_path) as jobs:
        return await jobs.list_jobs()


async def stop_all(db_path: Path) -> None:
    """Stop what a server has left running."""
    async with Jobs(db_path=db_path) as jobs:
        for record in await jobs.list_jobs():
            await jobs.stop(record.self_id, grace=1)


# The walkthrough.


async def test_the_walkthrough_tells_every_step(tmp_path: Path) -> None:
    stdout, stderr = await output("walkthrough.py", "--seconds", "0.2", cwd=tmp_path)
    steps = [line.split(" ms  ")[-1].strip() for line in stdout.splitlines()]
    expected = [
        r"opened .*/job_db",
        r"looked for an earlier run of accounting-summary: none finished",
        r"started it: running, process \d+",
        r"verified that it runs: starting -> running",
        r"awaited its end: exit code 0 after \d\.\d\d\d s",
        r"stdout \| Starting job",
        r"stdout \| Job finished",
        r"stderr \| \(empty\)",
        r"read both logs",
        r"asked it to stop: a job that has ended stays as it is",
        r"checked the final status: finished",
    ]
    assert len(steps) == len(expected)
    for step, pattern in zip(steps, expected, strict=True):
        assert re.fullmatch(pattern, step)
    assert stderr == ""


async def test_a_second_walkthrough_shows_the_old_logs_and_stays_idle(tmp_path: Path) -> None:
    await output("walkthrough.py", "db", "--seconds", "0.1", cwd=tmp_path)
    before = await recorded(tmp_path / "db")
    stdout, _ = await output("walkthrough.py", "db", "--seconds", "0.1", cwd=tmp_path)
    assert "finished earlier" in stdout
    assert "stdout | Job finished" in stdout
    assert "started" not in stdout
    assert await recorded(tmp_path / "db") == before


async def test_a_walkthrough_awaits_a_job_that_runs_already(tmp_path: Path, gate: Gate) -> None:
    async with Jobs(db_path=tmp_path / "db") as jobs:
        await jobs.run(command=f"{gate.wait}; echo 'Job finished'", job_id="accounting-summary")
        async with example("walkthrough.py", "db", cwd=tmp_path) as process:
            await line_with("running already", process.stdout)
            gate.open()
            await line_with("awaited its end: exit code 0", process.stdout)
            await line_with(r"stdout \| Job finished", process.stdout)
            await line_with("final status: finished", process.stdout)
            assert await process.wait() == 0


# Keeping a service alive.


async def restarts_of(*args: str, cwd: Path) -> list[str]:
    options = ("--command", "exit 4", "--pause", "0.01", "--restarts", "4")
    _, stderr = await output("keep_alive.py", "db", *options, *args, cwd=cwd)
    assert stderr.count("the service is running") == 5
    assert stderr.count(": exit code 4") == 5
    assert stderr.count("no restart is left") == 1
    return re.findall(r"restart \d in .* s", stderr)


async def test_a_service_that_dies_is_restarted_after_growing_pauses(tmp_path: Path) -> None:
    assert await restarts_of(cwd=tmp_path) == [
        "restart 1 in 0.01 s",
        "restart 2 in 0.02 s",
        "restart 3 in 0.04 s",
        "restart 4 in 0.08 s",
    ]


async def test_the_pause_is_short_again_after_a_run_that_was_long_enough(tmp_path: Path) -> None:
    restarts = await restarts_of("--settled", "0", cwd=tmp_path)
    assert restarts == [f"restart {number} in 0.01 s" for number in range(1, 5)]


@pytest.fixture
def _ctrl_c_works() -> Iterator[None]:
    """Let children have SIGINT's default action, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_works")
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_monitor_and_its_service(tmp_path: Path, sig: int) -> None:
    args = ("db", "--command", "sleep 1000; exit 1")
    async with example("keep_alive.py", *args, cwd=tmp_path) as process:
        running = await line_with(r"the service is running, process (\d+)", process.stderr)
        with watched(int(running[1])) as service:
            assert not has_exited(service)
            process.send_signal(sig)
            _, stderr = await process.communicate()
            assert has_exited(service)
    assert process.returncode == 0
    assert stderr.decode().endswith("ends: the service is stopped\n")
    assert [record.status for record in await recorded(tmp_path / "db")] == [Status.stopped]


async def test_a_signal_ends_the_monitor_while_it_pauses(tmp_path: Path) -> None:
    args = ("db", "--command", "exit 1", "--pause", "1000")
    async with example("keep_alive.py", *args, cwd=tmp_path) as process:
        await line_with("restart 1 in 1000 s", process.stderr)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


# Many commands.


async def test_many_commands_are_summed_up(tmp_path: Path) -> None:
    args = ("db", "--count", "60", "--at-a-time", "5")
    stdout, stderr = await output("many_commands.py", *args, cwd=tmp_path)
    heading, *summary = stdout.splitlines()
    assert re.fullmatch(r"60 commands in \d+\.\d\d s, 5 at a time", heading)
    assert summary == [
        "   59 x exit code 0",
        "    1 x exit code 3",
        "command-050: exit code 3: no luck with 50",
    ]
    bars = stderr.split("\r")
    assert len(bars) == 1 + 60
    assert bars[31].startswith("[####################....................] 31/60, ")
    assert bars[-1] == f"[{40 * '#'}] 60/60, 1 failed\n"


async def test_no_more_commands_run_at_once_than_asked_for(tmp_path: Path) -> None:
    await output("many_commands.py", "db", "--count", "40", "--at-a-time", "4", cwd=tmp_path)
    steps: list[tuple[datetime, int]] = []
    for record in await recorded(tmp_path / "db"):
        assert record.started_at is not None and record.finished_at is not None
        steps += [(record.started_at, 1), (record.finished_at, -1)]
    running = [sum(step for _, step in sorted(steps)[:end]) for end in range(len(steps) + 1)]
    assert 1 < max(running) <= 4


# Extract, transform and load.


async def test_each_step_starts_when_the_one_before_has_ended(tmp_path: Path) -> None:
    args = ("db", "--folder", "data", "--orders", "10")
    for _ in range(2):  # the second time, the same jobs are run anew
        stdout, _ = await output("etl.py", *args, cwd=tmp_path)
        assert stdout.splitlines() == [
            "extract: finished: 10 orders",
            "transform: finished: 4 totals",
            "load: finished: 45 in all",
        ]
    records = {record.self_id: record for record in await recorded(tmp_path / "db")}
    extract, transform, load = (records[step] for step in ("extract", "transform", "load"))
    for before, after in ((extract, transform), (transform, load)):
        assert before.finished_at is not None and after.started_at is not None
        assert before.finished_at <= after.started_at
    with closing(sqlite3.connect(tmp_path / "data" / "shop.db")) as shop:
        totals = dict(shop.execute("SELECT country, total FROM totals"))
    assert totals == {"France": 12, "Ghana": 15, "Japan": 8, "Peru": 10}


async def test_where_a_step_fails_the_next_ones_never_start(tmp_path: Path) -> None:
    stdout, _ = await output("etl.py", "db", "--orders", "0", cwd=tmp_path)
    first, *others = stdout.splitlines()
    assert first == "extract: failed: there are no orders"
    assert sorted(line.split(": ")[0] for line in others) == ["load", "transform"]
    assert all("cancelled" in line for line in others)
    assert "'extract' failed" in stdout
    assert list((tmp_path / "etl").iterdir()) == []


# Regions.


async def test_what_the_regions_give_is_combined(tmp_path: Path) -> None:
    stdout, _ = await output("regions.py", "db", cwd=tmp_path)
    submitted, *ended, combined = stdout.splitlines()
    assert re.fullmatch(r"submitted 4 jobs as batch \S+", submitted)
    assert combined == "127 countries in 3 regions"
    assert {line.split(":")[0] for line in ended} == {
        *("Process europe", "Process asia", "Process americas", "Combine results"),
    }
    assert ended[-1] == "Combine results: finished; 4 of 4 have ended"
    *of_regions, last = await recorded(tmp_path / "db")
    assert last.depends_on == [record.self_id for record in of_regions]
    assert len({record.batch_id for record in (*of_regions, last)}) == 1


# A nightly backup.


async def test_a_backup_can_be_made_now(tmp_path: Path) -> None:
    for folder in ("my source", "target"):
        (tmp_path / folder).mkdir()
    (tmp_path / "my source" / "file").write_text("precious")
    args = ("my source", "target", "--db-path", "db", "--now")
    stdout, _ = await output("nightly_backup.py", *args, cwd=tmp_path)
    (archive,) = (tmp_path / "target").iterdir()
    assert re.match(r"nightly-backup comes next at \d{4}-\d\d-\d\d 02:00:00\+00:00\n", stdout)
    assert stdout.endswith(f"attempt 1: finished, exit code 0\nwrote {archive}\n")
    with tarfile.open(archive) as backup:
        assert "./file" in backup.getnames()


async def test_a_backup_that_fails_is_tried_again_after_growing_pauses(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    args = ("source", "nowhere", "--db-path", "db", "--pause", "0.01", "--now")
    stdout, _ = await output("nightly_backup.py", *args, cwd=tmp_path)
    attempts = [line for line in stdout.splitlines() if line.startswith("attempt")]
    assert len(attempts) == 4
    assert all(re.fullmatch(r"attempt \d: failed, exit code [1-9]\d*", line) for line in attempts)
    async with Jobs(db_path=tmp_path / "db") as jobs:
        (record,) = await jobs.list_jobs()
        tried = await jobs.attempts(record.self_id)
    for number, (before, after) in enumerate(pairwise(tried)):
        assert before.finished_at is not None and after.started_at is not None
        pause = (after.started_at - before.finished_at).total_seconds()
        assert pause >= 0.01 * 2**number * 0.9  # a tenth of it is left to chance


async def test_a_nightly_backup_is_kept_for_the_night(tmp_path: Path) -> None:
    args = ("source", "target", "--db-path", "db", "--tz", "Asia/Tokyo")
    for _ in range(2):  # said again, it is the same
        async with example("nightly_backup.py", *args, cwd=tmp_path) as process:
            await line_with(r"comes next at .* 17:00:00\+00:00", process.stdout)
    async with Jobs(db_path=tmp_path / "db") as jobs:
        assert await jobs.list_jobs() == []
        (told,) = (await jobs.schedules()).values()
    assert (told.name, told.schedule["cron"]) == ("nightly-backup", "0 2 * * *")
    assert (told.schedule["misfire"], told.schedule["overlap"]) == ("once", "skip")


async def test_a_nightly_backup_tells_of_each_that_was_made(tmp_path: Path) -> None:
    async with example("nightly_backup.py", "a", "b", "--db-path", "db", cwd=tmp_path) as process:
        await line_with("waits for it", process.stdout)
        async with Jobs(db_path=tmp_path / "db") as jobs:
            for name in ("another", "nightly-backup"):
                record = await jobs.submit(f"echo {name} is done", name=name)
                await jobs.wait(record.self_id)
            assert process.stdout is not None
            assert await process.stdout.readline() == b"attempt 1: finished, exit code 0\n"
            assert await process.stdout.readline() == b"nightly-backup is done\n"


# The web apps: one suite for both.


@asynccontextmanager
async def fastapi_server(db_path: Path) -> AsyncIterator[str]:
    app = fastapi_app.create_app(str(db_path))
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="on", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def aiohttp_server(db_path: Path) -> AsyncIterator[str]:
    async with TestServer(aiohttp_app.create_app(str(db_path))) as server:
        yield str(server.make_url("/"))


SERVERS = {"fastapi": fastapi_server, "aiohttp": aiohttp_server}


@pytest.fixture(params=SERVERS)
async def client(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    serve = SERVERS[request.param]
    async with (
        serve(tmp_path / "db") as base_url,
        httpx.AsyncClient(base_url=base_url, timeout=60, trust_env=False) as client,
    ):
        yield client
    await stop_all(tmp_path / "db")


async def started(client: httpx.AsyncClient, command: str | list[str], job_id: str) -> JobRecord:
    response = await client.post("/jobs", json={"command": command, "job_id": job_id})
    assert response.status_code == 201, response.text
    return JobRecord(response.json())


async def answered(client: httpx.AsyncClient, path: str, method: str = "GET") -> JobRecord:
    response = await client.request(method, path)
    assert response.status_code == 200, response.text
    return JobRecord(response.json())


async def test_a_job_is_started_and_found_where_the_answer_says(client: httpx.AsyncClient) -> None:
    response = await client.post("/jobs", json={"command": ["sleep", "0.1"]})
    assert response.status_code == 201
    record = JobRecord(response.json())
    assert record.status is Status.running
    assert response.headers["Location"] == f"/jobs/{record.self_id}"
    assert (await answered(client, response.headers["Location"])).self_id == record.self_id
    assert (await answered(client, f"/jobs/{record.self_id}/wait")).status is Status.finished


async def test_a_job_with_any_letters_is_found_where_the_answer_says(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post("/jobs", json={"command": "true", "job_id": "任务-é"})
    assert response.status_code == 201
    assert (await answered(client, response.headers["Location"])).self_id == "任务-é"
    assert (await answered(client, "/jobs/任务-é/wait")).status is Status.finished


async def test_a_wait_is_answered_when_the_job_ends(client: httpx.AsyncClient, gate: Gate) -> None:
    await started(client, f"{gate.wait}; exit 3", "held")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(answered(client, "/jobs/held/wait?timeout=60"))
        assert (await answered(client, "/jobs/held")).status is Status.running
        assert not waiting.done()
        gate.open()
    ended = waiting.result()
    assert (ended.status, ended.exit_code) == (Status.failed, 3)


async def test_a_wait_that_takes_too_long_leaves_the_job_alone(client: httpx.AsyncClient) -> None:
    await started(client, "sleep 1000", "long")
    response = await client.get("/jobs/long/wait", params={"timeout": 0.05})
    assert response.status_code == 504
    assert "not there yet" in response.json()["detail"]
    assert (await answered(client, "/jobs/long")).status is Status.running


async def test_a_log_is_streamed_while_its_job_runs(client: httpx.AsyncClient, gate: Gate) -> None:
    await started(client, f"echo first; echo unseen >&2; {gate.wait}; echo last", "live")
    async with client.stream("GET", "/jobs/live/log") as response:
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"first\n"
        assert (await answered(client, "/jobs/live")).status is Status.running
        gate.open()
        assert b"".join([chunk async for chunk in chunks]) == b"last\n"


async def test_a_log_is_resumed_where_it_was_left(client: httpx.AsyncClient, gate: Gate) -> None:
    await started(client, f"echo first; {gate.wait}; echo last", "live")
    async with client.stream("GET", "/jobs/live/log") as response:
        seen = await anext(response.aiter_raw())
    gate.open()
    rest = await client.get("/jobs/live/log", params={"offset": len(seen)})
    assert seen + rest.content == b"first\nlast\n"


async def test_a_stopped_job_is_gone_and_stays_as_it_is(client: httpx.AsyncClient) -> None:
    record = await started(client, "sleep 1000", "victim")
    assert record.last_pid is not None
    with watched(record.last_pid) as process:
        stopped = await answered(client, "/jobs/victim", "DELETE")
        assert has_exited(process)
    assert stopped.status is Status.stopped
    assert await answered(client, "/jobs/victim", "DELETE") == stopped


async def test_an_active_id_is_refused(client: httpx.AsyncClient) -> None:
    first = await started(client, "sleep 1000", "twice")
    response = await client.post("/jobs", json={"command": "true", "job_id": "twice"})
    assert response.status_code == 409
    assert "'twice' is running" in response.json()["detail"]
    assert await answered(client, "/jobs/twice") == first


@pytest.mark.parametrize(
    "body",
    [
        b'{"command": ""}',
        b'{"command": "nul \\u0000"}',
        b'{"command": 1}',
        b'{"command": "true", "job_id": "a/b"}',
        b'{"command": "true", "user": "root"}',
        b"{}",
        b"[]",
        b"{",
    ],
)
async def test_what_cannot_be_a_job_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = await client.post("/jobs", content=body, headers=headers)
    assert response.status_code == 422
    assert response.json()["detail"]


@pytest.mark.parametrize(
    "query", ["wait?timeout=-1", "wait?timeout=soon", "log?offset=-1", f"log?offset={2**63}"]
)
async def test_a_wrong_number_is_refused(client: httpx.AsyncClient, query: str) -> None:
    await started(client, "true", "short")
    assert (await client.get(f"/jobs/short/{query}")).status_code == 422


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("GET", "/wait"), ("GET", "/log"), ("DELETE", "")]
)
async def test_an_unknown_id_is_not_found(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await client.request(method, f"/jobs/nobody{path}")
    assert response.status_code == 404
    assert response.json() == {"detail": "there is no job 'nobody'"}


@pytest.mark.parametrize("content_type", [{}, {"Content-Type": "text/plain"}])
async def test_what_a_web_page_may_send_unasked_is_refused(
    client: httpx.AsyncClient, content_type: dict[str, str]
) -> None:
    body = b'{"command": "true", "job_id": "lured"}'
    response = await client.post("/jobs", content=body, headers=content_type)
    assert response.status_code == 415
    assert (await client.get("/jobs/lured")).status_code == 404


async def test_a_strange_host_name_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.get("/jobs/any", headers={"Host": "rebound.example"})
    assert response.status_code == 400


async def test_fastapi_documents_the_record(tmp_path: Path) -> None:
    schema = fastapi_app.create_app(str(tmp_path / "db")).openapi()
    properties = schema["components"]["schemas"]["JobRecord"]["properties"]
    assert {"self_id", "status", "exit_code"} <= set(properties)


def free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("name", "log"), [("fastapi_app.py", "stderr"), ("aiohttp_app.py", "stdout")]
)
async def test_a_server_ends_though_somebody_follows_and_its_jobs_go_on(
    tmp_path: Path, name: str, log: str
) -> None:
    args = ("db", "--port", str(free_port()))
    async with example(name, *args, cwd=tmp_path) as process:
        running = await line_with(r"unning on (http://127\.0\.0\.1:\d+)", getattr(process, log))
        async with httpx.AsyncClient(base_url=running[1], timeout=60, trust_env=False) as client:
            record = await started(client, "echo first; sleep 1000", "live")
            assert record.last_pid is not None
            with watched(record.last_pid) as job:
                async with client.stream("GET", "/jobs/live/log") as response:
                    chunks = response.aiter_raw()
                    assert await anext(chunks) == b"first\n"
                    process.terminate()
                    await process.communicate()
                    with pytest.raises(httpx.RemoteProtocolError):  # cut short, and says so
                        await anext(chunks)
                assert not has_exited(job)
                await stop_all(tmp_path / "db")
                assert has_exited(job)
    assert [ended.status for ended in await recorded(tmp_path / "db")] == [Status.stopped]
