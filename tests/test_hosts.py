"""Several hosts that share a database: two directories on one machine, or two network namespaces.

Each has its own slots and runs its own jobs. One that is not heard of loses them, and when it comes
back it writes over nothing and ends what it had running.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from anodejobs import (
    DatabaseJobStore,
    InvalidJob,
    JobRecord,
    Jobs,
    Status,
    StoreError,
    WaitTimeout,
)
from anodejobs.control import Control
from anodejobs.errands import Errand, Errands, document
from anodejobs.events import Attempt, Lost, Started, utc_now
from anodejobs.executors.base import Launch
from anodejobs.executors.processes import Processes
from anodejobs.hosts import Hosts
from anodejobs.jobdb import JobDB
from anodejobs.jobfiles import JobFiles
from anodejobs.owner import Owner
from anodejobs.recorder import Recorder
from anodejobs.stores.base import Stored, uptime
from anodejobs.testing import make_insert, make_record
from benchmarks.hosts import Shared
from tests.conftest import has_died, locker, python
from tests.servers import (
    MYSQL,
    POSTGRES,
    Database,
    PrivateServer,
    empty,
    own_database,
    private_server,
)

LIMIT_S = 60.0
SHORT_S = 1.0
"""A recovery timeout that is over soon."""


@pytest.fixture(scope="module", params=[POSTGRES, MYSQL], ids=["postgresql", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator[Database]:
    with own_database(request.param) as database:
        yield database


@pytest.fixture
async def database(server: Database) -> Database:
    await empty(server)
    return server


@asynccontextmanager
async def host(folder: Path, database: Database, **options: Any) -> AsyncIterator[Jobs]:
    """Be a host, in this process; its jobs end with it."""
    usual: dict[str, Any] = {"executor": "inline", "stop_grace": 1, "on_close": "stop"}
    async with (
        asyncio.timeout(4 * LIMIT_S),
        Jobs(folder, store=database.url, **{**usual, **options}) as jobs,
    ):
        yield jobs


class Distant(Processes):
    """An executor on another machine: it cannot reach what was not started by it."""

    def __init__(self) -> None:
        super().__init__()
        self._begun_here: set[str] = set()

    async def start(self, launch: Launch, attempt: Attempt, number: int) -> Any:
        self._begun_here.add(attempt.token)
        return await super().start(launch, attempt, number)

    async def stop(self, attempt: Attempt, grace: float, *, may_hasten: bool = True) -> bool:
        assert attempt.token in self._begun_here
        return await super().stop(attempt, grace, may_hasten=may_hasten)

    async def signal(self, attempt: Attempt, signum: int) -> None:
        assert attempt.token in self._begun_here
        await super().signal(attempt, signum)


# Another host, in a process that can be killed or frozen.

PROGRAM = """
import asyncio, json, sys
from anodejobs import FixedDelay, Jobs
from anodejobs.executors import shim

shim.LINGER_S = 0.05

async def main():
    folder, url, options, run = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
    async with Jobs(folder, store=url, **options) as jobs:
        for spec in run:
            if spec.pop("is_retried", False):
                spec |= {"max_retries": 1, "retry": FixedDelay(0, on_lost=True)}
            await jobs.run(**spec)
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class OtherHost:
    """An application with its shim and its jobs, in a directory of its own."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.process = process

    def kill(self) -> None:
        """Kill the application; the shim and its jobs go on."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Lose the whole machine: nothing of it goes on. Idempotent."""
        shim = locker(self.folder / "shim" / "lock")
        children = []
        if shim is not None:
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(shim).children(recursive=True)
            os.kill(shim, signal.SIGKILL)
            assert has_died(shim, LIMIT_S)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.kill()


@contextmanager
def other_host(
    folder: Path, url: str, *run: dict[str, Any], wrapper: tuple[str, ...] = (), **options: Any
) -> Iterator[OtherHost]:
    """Run a host that starts these jobs, and then what is queued."""
    process = subprocess.Popen(
        [
            *(*wrapper, sys.executable, "-c", PROGRAM, str(folder), url),
            *(json.dumps(options), json.dumps(run)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    other = OtherHost(folder, process)
    try:
        assert process.stdout.readline() == "ready\n"
        yield other
    finally:
        process.send_signal(signal.SIGCONT)
        other.end()
        process.stdout.close()


FIRST_TIME_LONG = 'test "$ANODEJOBS_ATTEMPT" != 1 || exec sleep 1000; echo here'
"""A job that ends at once when it is tried again."""


# Who runs what.


async def test_each_host_has_its_own_slots_name_and_directory(tmp_path, database):
    async with (
        host(tmp_path / "a", database, max_concurrent_jobs=1) as one,
        host(tmp_path / "b", database, max_concurrent_jobs=1) as other,
    ):
        for job_id in ("x", "y"):
            await one.submit("echo it is $ANODEJOBS_JOB_ID; exec sleep 1000", job_id)
        await one.submit("true", "waits")
        records = [await one.wait(job_id, "running", LIMIT_S) for job_id in ("x", "y")]
        assert len({record.host for record in records}) == 2
        assert {record.dirname for record in records} == {str(one.db_path), str(other.db_path)}
        for record in records:
            assert Path(record.logdir, f"{record.logfile}_out.txt").parent.parent == Path(
                record.dirname
            )
        assert (await other.get_status("waits")).status is Status.queued
        for record in records:
            await other.stop(record.self_id)
        await other.wait("waits", timeout=LIMIT_S)
        for record in records:
            text, _ = await one.job_logs(record.self_id)
            assert text == f"it is {record.self_id}\n"


async def test_a_host_has_the_same_name_when_it_is_opened_again(tmp_path, database):
    names = []
    for _ in range(2):
        async with host(tmp_path / "a", database) as jobs:
            names.append((await jobs.run("true", "x")).host)
    assert names[0] == names[1]
    assert (tmp_path / "a" / "host").read_text() == names[0]
    assert (tmp_path / "a" / "host").stat().st_mode & 0o777 == 0o600


async def test_each_job_is_started_once_by_one_of_the_hosts(tmp_path, database):
    side = tmp_path / "side"
    async with (
        host(tmp_path / "a", database) as one,
        host(tmp_path / "b", database) as other,
    ):
        ids = [f"job-{n}" for n in range(60)]
        submits = [
            (one, other)[n % 2].submit(f"echo {job_id} >> {side}", job_id)
            for n, job_id in enumerate(ids)
        ]
        await asyncio.gather(*submits)
        records = await one.wait_all(ids, LIMIT_S)
    assert {(r.status, r.attempt) for r in records.values()} == {(Status.finished, 1)}
    assert sorted(side.read_text().split()) == sorted(ids)


async def test_a_job_finds_its_payload_and_tells_its_result_on_whatever_host(tmp_path, database):
    code = "import json, os; e = os.environ; v = json.load(open(e['ANODEJOBS_PAYLOAD'])); "
    code += "open(e['ANODEJOBS_RESULT'], 'w').write(json.dumps([v, e['ANODEJOBS_PAYLOAD']]))"
    async with (
        host(tmp_path / "a", database, only_queues=["here"]) as one,
        host(tmp_path / "b", database) as other,
    ):
        await one.submit(python(code), "x", payload={"n": 1})
        record = await one.wait("x", timeout=LIMIT_S)
        value, path = record.result
        assert value == {"n": 1}
        assert Path(path).is_relative_to(other.db_path)


@pytest.mark.parametrize("asks", ["submit", "run"])
async def test_a_run_has_nothing_of_one_that_its_host_did_before_the_job_was_used_elsewhere(
    tmp_path, database, asks
):
    tells = 'echo out; echo 1 > "$ANODEJOBS_RESULT"; echo 0.5 >> "$ANODEJOBS_PROGRESS"'
    async with (
        host(tmp_path / "a", database) as a,
        host(tmp_path / "b", database, only_queues=["elsewhere"]) as b,
    ):
        await a.run(tells, "job")
        first = await a.wait("job")
        assert (first.result, first.progress) == (1, 0.5)
        if asks == "submit":
            await b.submit("true", "job")
        else:
            assert await b.delete("job")
            await a.run("true", "job")
        second = await b.wait("job", timeout=LIMIT_S)
        assert second.host == first.host
        assert (second.status, second.result, second.progress) == (Status.finished, None, None)
        assert await a.job_logs("job") == ("", "")


async def test_a_host_starts_what_is_in_its_queues_and_bears_its_tags(tmp_path, database):
    async with (
        host(tmp_path / "a", database, only_queues=["gpu"]) as gpu,
        host(tmp_path / "b", database, only_tags=["eu", "us"]) as tagged,
    ):
        submit = gpu.submit
        await submit("true", "other", queue="cpu")
        await submit("true", "late", queue="cpu", start_deadline=0.2)
        await submit("true", "tagged", queue="cpu", tags=["big", "eu"])
        await submit("true", "gpu", queue="gpu")
        records = await tagged.wait_all(["tagged", "gpu", "late"], LIMIT_S)
        assert records["tagged"].dirname == str(tagged.db_path)
        assert records["gpu"].dirname == str(gpu.db_path)
        # Nobody may start it, but that its time is over anybody can see.
        assert records["late"].status is Status.cancelled
        assert (await gpu.get_status("other")).status is Status.queued


async def test_on_one_directory_too_jobs_of_other_queues_and_tags_wait(tmp_path):
    async with Jobs(tmp_path, executor="inline", only_queues=["a"], only_tags=["t"]) as jobs:
        for job_id, queue, tags in (("1", "a", []), ("2", "b", ["t"]), ("3", "a", ["s", "t"])):
            await jobs.submit("true", job_id, queue=queue, tags=tags)
        await jobs.wait("3", timeout=LIMIT_S)
        assert [r.self_id for r in await jobs.list_jobs(status="queued")] == ["1", "2"]
    async with Jobs(tmp_path, executor="inline", only_tags=["t"]) as jobs:
        await jobs.wait("2", timeout=LIMIT_S)
        assert (await jobs.get_status("1")).status is Status.queued
    async with Jobs(tmp_path, executor="inline") as jobs:
        await jobs.wait("1", timeout=LIMIT_S)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"recovery_timeout": 0}, "recovery_timeout"),
        ({"recovery_timeout": float("inf")}, "recovery_timeout"),
        ({"recovery_timeout": 1e12}, "recovery_timeout"),
        ({"recovery_timeout": None}, "recovery_timeout"),
        ({"only_queues": "gpu"}, "only_queues"),
        ({"only_queues": []}, "only_queues"),
        ({"only_tags": [1]}, "only_tags"),
        ({"only_tags": 7}, "only_tags"),
    ],
)
def test_what_makes_no_host_is_refused(tmp_path, options, problem):
    with pytest.raises(InvalidJob, match=problem):
        Jobs(tmp_path / "db", **options)
    assert not (tmp_path / "db").exists()


# What hosts ask of each other.


async def test_a_job_of_another_host_is_paused_resumed_signalled_and_stopped(tmp_path, database):
    code = "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7));"
    code += " print('up', flush=True); time.sleep(1000)"
    async with (
        host(tmp_path / "a", database, executor=Distant()) as one,
        host(tmp_path / "b", database, executor=Distant()) as other,
    ):
        for job_id in ("signalled", "stopped"):
            await one.run(python(code), job_id)
            async for _ in one.follow(job_id):
                break
        assert (await other.pause("stopped")).status is Status.paused
        process = psutil.Process((await one.get_status("stopped")).last_pid)
        assert process.status() == psutil.STATUS_STOPPED
        assert (await other.resume("stopped")).status is Status.running
        assert process.status() != psutil.STATUS_STOPPED
        assert (await other.stop("stopped")).status is Status.stopped
        assert not process.is_running()
        assert (await other.signal("signalled", "SIGUSR1")).self_id == "signalled"
        assert (await other.wait("signalled", timeout=LIMIT_S)).exit_code == 7
        errands = await database.ado("SELECT name FROM anodejobs_documents WHERE kind LIKE 'err%'")
        assert errands == []


async def test_a_stop_from_another_host_has_the_grace_that_it_names(tmp_path, database):
    async with (
        host(tmp_path / "a", database, executor=Distant(), stop_grace=1000) as one,
        host(tmp_path / "b", database, executor=Distant()) as other,
    ):
        await one.run("trap '' TERM; echo up; sleep 1000 & wait; wait", "x")
        async for _ in one.follow("x"):
            break
        record = await other.stop("x", grace=0.1)
        assert (record.status, record.exit_code) == (Status.stopped, -9)


async def test_a_job_is_awaited_and_listened_to_on_another_host(tmp_path, database):
    async with (
        host(tmp_path / "a", database) as one,
        host(tmp_path / "b", database, only_queues=["none"]) as other,
    ):
        told = []

        async def listen() -> None:
            async for event in other.events("x", after=0):
                told.append(event.status)
                if event.status == "finished":
                    return

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen())
            waiting = tasks.create_task(_created_and_awaited(other))
            await one.submit("echo hi", "x")
        assert (await waiting).host == (await one.get_status("x")).host
        assert told == ["queued", "starting", "running", "finished"]


async def _created_and_awaited(jobs: Jobs) -> JobRecord:
    async for event in jobs.events("x", after=0):
        if event.status == "queued":
            break
    return await jobs.wait("x", timeout=LIMIT_S)


async def test_what_is_asked_of_a_host_that_is_away_is_done_when_it_is_back(tmp_path, database):
    spec = {"command": "sleep 1000", "job_id": "x"}
    with other_host(tmp_path / "b", database.url, spec) as other:
        async with host(tmp_path / "a", database, executor=Distant()) as jobs:
            other.kill()
            stop = asyncio.create_task(jobs.stop("x"))
            await jobs.wait("x", "stopping", LIMIT_S)
            with other_host(tmp_path / "b", database.url):
                assert (await stop).status is Status.stopped


async def test_an_errand_that_cannot_be_read_keeps_no_other_from_being_run(tmp_path, database):
    async with (
        host(tmp_path / "a", database, executor=Distant()) as one,
        host(tmp_path / "b", database, executor=Distant()) as other,
    ):
        record = await one.run("sleep 1000", "x")
        store = DatabaseJobStore(database.url)
        await store.open(lambda: None)
        for name, body in (("0", "[{}]"), ("1", '[{"do": "dance"}]'), ("2", "7"), ("3", "no")):
            await store.put_document(f"errand of {record.host}", name, body)
        await store.close()
        assert (await other.stop("x")).status is Status.stopped


async def test_what_a_host_is_asked_for_that_never_returns_is_forgotten_in_the_end(
    tmp_path, database
):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "host").write_text("a")
    told: list[int] = []

    class Told(Processes):
        async def signal(self, attempt: Attempt, signum: int) -> None:
            told.append(signum)

    store = DatabaseJobStore(database.url)
    await store.open(lambda: None)
    try:
        for name, days in (("gone", 31), ("away", 29), ("a", 31)):
            attempt = Attempt(token="gone", supervisor="gone")
            errand = Errand(do="signal", job_id="x", attempt=attempt, signum=days)
            kind, _, body = document(name, [errand])
            await store.put_document(kind, f"{time.time_ns() - days * _DAY_NS:020} x", body)
        async with host(tmp_path / "a", database, executor=Told()), asyncio.timeout(LIMIT_S):
            while await store.document_kinds() != ["errand of away"]:
                pass
            assert told == [31], "a host that is back does what it was asked for, however old"
    finally:
        await store.close()


_DAY_NS = 86400 * 10**9


# Hosts that are not heard of.


@pytest.mark.parametrize(
    ("options", "policy", "becomes"),
    [
        ({}, {}, Status.lost),
        ({"recovery": "fail"}, {}, Status.failed),
        ({"recovery": "pending"}, {}, Status.finished),
        ({}, {"is_retried": True}, Status.finished),
    ],
    ids=["lost", "fail", "pending", "retried"],
)
async def test_the_jobs_of_a_host_that_has_died_are_lost_and_go_on_as_they_are_to(
    tmp_path, database, options, policy, becomes
):
    spec = {"command": FIRST_TIME_LONG, "job_id": "x", **policy}
    with other_host(tmp_path / "b", database.url, spec, recovery_timeout=SHORT_S) as other:
        async with host(tmp_path / "a", database, recovery_timeout=SHORT_S, **options) as jobs:
            before = await jobs.get_status("x")
            assert before.dirname == str(other.folder)
            other.end()
            record = await jobs.wait("x", timeout=LIMIT_S)
            assert record.status is becomes
            (recovery,) = record.metadata["recovery_history"]
            assert recovery["host"] == before.host
            assert f"host {before.host} has not been heard of for" in recovery["error"]
            first = (await jobs.attempts("x"))[0]
            assert (first.attempt, first.exit_code, first.pid) == (1, None, before.last_pid)
            if becomes is Status.finished:
                assert (record.attempt, record.dirname) == (2, str(jobs.db_path))
                assert (await jobs.job_logs("x"))[0] == "here\n"


async def test_of_several_hosts_one_declares_a_job_lost(tmp_path, database):
    specs = [{"command": "sleep 1000", "job_id": f"x{n}"} for n in range(5)]
    with other_host(tmp_path / "z", database.url, *specs, recovery_timeout=SHORT_S) as other:
        async with (
            host(tmp_path / "a", database, recovery_timeout=SHORT_S) as one,
            host(tmp_path / "b", database, recovery_timeout=SHORT_S) as two,
            host(tmp_path / "c", database, recovery_timeout=SHORT_S),
        ):
            other.end()
            ids = [spec["job_id"] for spec in specs]
            for jobs in (one, two):
                records = await jobs.wait_all(ids, LIMIT_S)
                assert {record.status for record in records.values()} == {Status.lost}
            for job_id in ids:
                told = [event.status for event in await one.history(job_id)]
                assert told == ["starting", "running", "lost"]
    assert await database.ado("SELECT count(*) FROM anodejobs_documents") == [(1,)]


async def test_who_was_away_gives_nobody_up_before_the_others_had_their_time(database):
    class Away(JobDB):
        is_away = False

        async def keep_lease(self, host: str, lasts_s: float) -> None:
            if self.is_away:
                raise StoreError("the network is down")
            await super().keep_lease(host, lasts_s)

        async def end_lease(self, *args: Any) -> bool:
            is_ended = await super().end_lease(*args)
            ended.put_nowait(uptime())
            return is_ended

    lasts_s = 0.6
    ended: asyncio.Queue[float] = asyncio.Queue()
    others, jobdb = DatabaseJobStore(database.url), Away(DatabaseJobStore(database.url))
    await others.open(lambda: None)
    await others.keep_lease("silent", 0.01)
    began = uptime()
    try:
        async with served_lease(jobdb, lasts_s), asyncio.timeout(LIMIT_S):
            assert await ended.get() - began > lasts_s
            jobdb.is_away = True
            await others.keep_lease("silent, too", 0.01)
            await asyncio.sleep(lasts_s)
            assert ended.empty()
            jobdb.is_away, back = False, uptime()
            assert await ended.get() - back > lasts_s
    finally:
        await others.close()


async def test_a_host_is_heard_of_however_long_it_takes_to_give_another_one_up(database):
    class Slow(JobDB):
        beats = 0
        is_giving_up = False

        async def keep_lease(self, host: str, lasts_s: float) -> None:
            await super().keep_lease(host, lasts_s)
            self.beats += self.is_giving_up
            if self.beats == 3:
                is_heard.set()

        async def alive_on(self, host: str) -> list[Stored]:
            self.is_giving_up = True
            await is_heard.wait()
            return await super().alive_on(host)

        async def end_lease(self, *args: Any) -> bool:
            is_ended = await super().end_lease(*args)
            ended.set()
            return is_ended

    is_heard, ended = asyncio.Event(), asyncio.Event()
    others = DatabaseJobStore(database.url)
    await others.open(lambda: None)
    try:
        await others.keep_lease("silent", 0.01)
        jobdb = Slow(DatabaseJobStore(database.url))
        async with served_lease(jobdb, 0.6), asyncio.timeout(LIMIT_S):
            await ended.wait()
    finally:
        await others.close()


@asynccontextmanager
async def served_lease(jobdb: JobDB, lasts_s: float) -> AsyncIterator[None]:
    """Keep the lease of a host while the context is open, and end those of others."""
    recorder, errands = Recorder(jobdb, JobFiles(""), "lost"), Errands(jobdb, "me")
    await jobdb.open()
    hosts = Hosts(
        jobdb,
        Owner(asyncio.TaskGroup()),
        recorder=recorder,
        control=Control(jobdb, Processes(), recorder, errands=errands, host="me"),
        errands=errands,
        host="me",
        lasts_s=lasts_s,
    )
    serving = [asyncio.create_task(serve()) for serve in (hosts.serve_lease, hosts.serve_losses)]
    try:
        yield
    finally:
        for task in serving:
            task.cancel()
        await asyncio.wait(serving)
        await jobdb.close()


async def test_a_host_that_is_killed_under_load_loses_no_job(tmp_path, database):
    shared = Shared(
        place=tmp_path,
        url=database.url,
        jobs=30,
        hosts=2,
        slots=3,
        job_s=0.3,
        kills=True,
        recovery_timeout_s=2 * SHORT_S,
        limit_s=2 * LIMIT_S,
    )
    await shared.play()
    findings = await asyncio.to_thread(shared.findings)
    assert {finding for finding, times in findings.items() if times} == set()
    assert 1 <= len(shared.history) <= 3
    for told in shared.history.values():
        assert told.count("starting") == 2
        assert told[-1] == "finished"


async def test_a_host_that_was_frozen_writes_over_nothing_and_ends_what_it_had_running(
    tmp_path, database
):
    spec = {"command": FIRST_TIME_LONG, "job_id": "x", "is_retried": True}
    with other_host(tmp_path / "b", database.url, spec, recovery_timeout=SHORT_S) as other:
        async with host(tmp_path / "a", database, recovery_timeout=SHORT_S) as jobs:
            pid = (await jobs.get_status("x")).last_pid
            other.process.send_signal(signal.SIGSTOP)
            record = await jobs.wait("x", timeout=LIMIT_S)
            assert (record.status, record.attempt) == (Status.finished, 2)
            history = await jobs.history("x")
            assert psutil.pid_exists(pid), "nobody there could be asked to end it"
            other.process.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(has_died, pid, LIMIT_S)
            await _errands_done(database)
            # Its end was seen there, and what follows shows that the host is well.
            await jobs.submit("true", "after", queue="of b")
            await jobs.wait("after", timeout=LIMIT_S)
            assert await jobs.get_status("x") == record
            assert await jobs.history("x") == history


async def test_a_host_that_closes_leaves_the_next_attempt_on_another_host_alone(tmp_path, database):
    async with host(tmp_path / "b", database) as other:
        store = DatabaseJobStore(database.url)
        jobdb = JobDB(store)
        await jobdb.open()
        serving = asyncio.create_task(jobdb.serve())
        try:
            async with host(tmp_path / "a", database, only_queues=["none"]) as one:
                await one.run("sleep 1000", "x")
                await jobdb.apply("x", Lost(error="silent", retry_at=utc_now()))
                running = await other.wait("x", "running", LIMIT_S)
                assert running.attempt == 2
            assert await other.get_status("x") == running
        finally:
            serving.cancel()
            await asyncio.wait((serving,))
            await jobdb.close()


async def test_a_host_that_is_started_again_too_late_ends_what_it_had_running(tmp_path, database):
    spec = {"command": "sleep 1000", "job_id": "x"}
    with other_host(tmp_path / "b", database.url, spec, recovery_timeout=SHORT_S) as other:
        async with host(tmp_path / "a", database, recovery_timeout=SHORT_S) as jobs:
            pid = (await jobs.get_status("x")).last_pid
            other.kill()
            record = await jobs.wait("x", timeout=LIMIT_S)
            assert record.status is Status.lost
            assert psutil.pid_exists(pid)
            with other_host(tmp_path / "b", database.url):
                assert await asyncio.to_thread(has_died, pid, LIMIT_S)
                await _errands_done(database)
            assert await jobs.get_status("x") == record


async def test_a_host_that_is_started_again_in_time_keeps_what_it_has_running(tmp_path, database):
    options = {"recovery_timeout": 4 * SHORT_S, "executor": "shim", "on_close": "leave"}
    async with host(tmp_path / "a", database, recovery_timeout=4 * SHORT_S) as other:
        async with host(tmp_path / "b", database, **options) as jobs:
            before = await jobs.run("sleep 1000", "x")
        async with host(tmp_path / "b", database, **options) as jobs:
            with pytest.raises(WaitTimeout):  # as long as it would take to declare it lost
                await other.wait("x", timeout=6 * SHORT_S)
            assert await other.get_status("x") == before
            assert (await jobs.stop("x")).status is Status.stopped


async def test_an_attempt_that_was_declared_lost_while_it_was_started_is_ended(tmp_path, database):
    is_asked, may_start = asyncio.Event(), asyncio.Event()
    started: list[int] = []

    class Slow(Processes):
        async def start(self, launch: Launch, attempt: Attempt, number: int) -> Any:
            is_asked.set()
            await may_start.wait()
            event = await super().start(launch, attempt, number)
            assert isinstance(event, Started) and event.attempt.pid is not None
            started.append(event.attempt.pid)
            return event

    store = DatabaseJobStore(database.url)
    jobdb = JobDB(store)
    await jobdb.open()
    serving = asyncio.create_task(jobdb.serve())
    try:
        async with host(
            tmp_path / "a", database, executor=Slow(), only_queues=["none"], max_concurrent_jobs=1
        ) as jobs:
            running = asyncio.create_task(jobs.run("sleep 1000", "x"))
            await is_asked.wait()
            again = await jobdb.apply("x", Lost(error="silent", retry_at=utc_now()))
            may_start.set()
            assert (await running).attempt == again.attempt
            assert await asyncio.to_thread(has_died, started[0], LIMIT_S)
            assert (await jobs.get_status("x")).status in (Status.pending, Status.queued)
    finally:
        serving.cancel()
        await jobdb.close()
        await asyncio.wait((serving,))


async def test_each_host_has_a_day_to_remove_its_own_jobs(tmp_path, database):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "host").write_text("a")
    store = DatabaseJobStore(database.url)
    await store.open(lambda: None)
    try:
        ends = {name: utc_now() - timedelta(days=days) for name, days in _ENDED.items()}
        records = [
            make_record(
                name, status="finished", host=name[0], created_at=at, finished_at=at, last_update=at
            )
            for name, at in ends.items()
        ]
        await store.commit([make_insert(record) for record in records])
        async with host(tmp_path / "a", database, retention_days=7) as jobs:
            async for event in jobs.events("a8", heartbeat=0.05):
                if event.kind == "heartbeat" and await jobs.count() == 2:
                    break
            assert {record.self_id for record in await jobs.list_jobs()} == {"a6", "b7"}
            assert await jobs.cleanup(1) == 2, "but who asks for it is asked nothing"
    finally:
        await store.close()


_ENDED = {"a6": 6, "a8": 8, "b7": 7.5, "b9": 9}


# Databases and networks that go away.


@pytest.fixture(params=[POSTGRES, MYSQL], ids=["postgresql", "mysql"])
def own_server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    with private_server(request.param) as server:
        yield server


async def test_nothing_is_lost_while_the_database_is_away_for_longer_than_hosts_may_be_silent(
    tmp_path, own_server
):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    database = Database(own_server.kind, own_server.url)
    options = {"recovery_timeout": SHORT_S, "executor": "shim"}
    async with (
        host(tmp_path / "a", database, **options) as one,
        host(tmp_path / "b", database, **options) as other,
    ):
        await one.run(["cat", str(fifo)], "ends")
        lasting = await other.run("sleep 1000", "lasts")
        await asyncio.to_thread(own_server.stop)
        await asyncio.to_thread(fifo.write_text, "hello")
        assert await asyncio.to_thread(_is_empty_again, one, 2 * SHORT_S)
        await asyncio.to_thread(own_server.start)
        record = await _awaited(other, "ends")
        assert (record.status, record.exit_code) == (Status.finished, 0)
        assert (await one.job_logs("ends"))[0] == "hello"
        with pytest.raises(WaitTimeout):  # as long as it would take to declare it lost
            await one.wait("lasts", timeout=4 * SHORT_S)
        assert await one.get_status("lasts") == lasting


def _is_empty_again(jobs: Jobs, at_least_s: float) -> bool:
    """Return, once that much time has gone by, whether the shim has no process any more."""
    pid = locker(jobs.db_path / "shim" / "lock")
    assert pid is not None
    _, left = psutil.wait_procs(psutil.Process(pid).children(), timeout=LIMIT_S)
    threading.Event().wait(at_least_s)
    return not left


async def _awaited(jobs: Jobs, job_id: str) -> JobRecord:
    """Return the end of the job, however long the database is away."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await jobs.wait(job_id)
            except StoreError:  # it is still away
                await asyncio.sleep(0)


async def test_a_database_that_is_restarted_under_load_loses_nothing(tmp_path, own_server):
    database = Database(own_server.kind, own_server.url)
    side = tmp_path / "side"
    ids = [f"job-{n}" for n in range(80)]
    async with (
        host(tmp_path / "a", database, max_concurrent_jobs=2) as one,
        host(tmp_path / "b", database, max_concurrent_jobs=2) as other,
    ):
        for n, job_id in enumerate(ids):
            await (one, other)[n % 2].submit(f"echo {job_id} >> {side}; sleep 0.05", job_id)
        for n in (10, 40):
            await _awaited(one, ids[n])
            await asyncio.to_thread(own_server.stop)
            await asyncio.to_thread(own_server.start)
        records = [await _awaited(one, job_id) for job_id in ids]
    assert {(record.status, record.attempt) for record in records} == {(Status.finished, 1)}
    assert sorted(side.read_text().split()) == sorted(ids)


class Namespaces:
    """Network namespaces that each reach this one, and can be cut off."""

    def __init__(self, count: int) -> None:
        self._mark = f"{os.getpid() % 10**6}"
        self._numbers = range(count)

    def __enter__(self) -> Namespaces:
        for n in self._numbers:
            name, ours, theirs = self.name(n), f"o{self._mark}n{n}", f"t{self._mark}n{n}"
            _ip("netns", "add", name)
            _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
            _ip("addr", "add", f"{self._net(n)}.1/30", "dev", ours)
            _ip("link", "set", ours, "up")
            _ip("-n", name, "addr", "add", f"{self._net(n)}.2/30", "dev", theirs)
            self.cut(n, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for n in self._numbers:
            subprocess.run(["ip", "netns", "del", self.name(n)], check=False)

    def name(self, n: int) -> str:
        return f"anodejobs-{self._mark}-{n}"

    def address(self, n: int) -> str:
        """Return where this namespace is found from that one."""
        return f"{self._net(n)}.1"

    def _net(self, n: int) -> str:
        # Of this process alone: what one leaves that is killed would be in the way of others.
        return f"10.{100 + os.getpid() // 128 % 100}.{os.getpid() % 128 * 2 + n}"

    def cut(self, n: int, how: str = "down") -> None:
        """Cut one off, or have it back."""
        _ip("-n", self.name(n), "link", "set", f"t{self._mark}n{n}", how)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    try:
        with Namespaces(2) as namespaces:
            yield namespaces
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or error
        pytest.skip(f"network namespaces cannot be made here: {told!r}")


@pytest.fixture
def distant_server(namespaces: Namespaces) -> Iterator[PrivateServer]:
    with private_server(POSTGRES, "*") as server:
        yield server


async def test_of_hosts_with_networks_of_their_own_one_that_is_cut_off_is_given_up(
    tmp_path, namespaces, distant_server
):
    spec = {"command": FIRST_TIME_LONG, "job_id": "x", "is_retried": True}
    urls = [distant_server.url.replace("*", namespaces.address(n)) for n in range(2)]
    within = [("ip", "netns", "exec", namespaces.name(n)) for n in range(2)]
    options = {"recovery_timeout": SHORT_S}
    database = Database(POSTGRES, distant_server.url.replace("*", "127.0.0.1"))
    with (
        other_host(tmp_path / "a", urls[0], spec, wrapper=within[0], **options) as cut,
        other_host(tmp_path / "b", urls[1], wrapper=within[1], **options) as well,
    ):
        # One that only looks on.
        async with host(tmp_path / "c", database, only_queues=["none"]) as jobs:
            first = await jobs.get_status("x")
            assert first.dirname == str(cut.folder)
            namespaces.cut(0)
            record = await jobs.wait("x", timeout=LIMIT_S)
            assert (record.status, record.attempt) == (Status.finished, 2)
            assert record.dirname == str(well.folder)
            history = await jobs.history("x")
            assert psutil.pid_exists(first.last_pid), "it was cut off, and goes on"
            namespaces.cut(0, "up")
            assert await asyncio.to_thread(has_died, first.last_pid, LIMIT_S)
            await _errands_done(database)
            assert await jobs.get_status("x") == record
            assert await jobs.history("x") == history


async def _errands_done(database: Database) -> None:
    """Return when nobody is asked for anything any more."""
    async with asyncio.timeout(LIMIT_S):
        while await database.ado("SELECT name FROM anodejobs_documents WHERE kind LIKE 'errand%'"):
            pass
