"""What becomes of jobs where descriptors run out."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from anodejobs import ExecutorError, Jobs, Status
from anodejobs.executors import deaths, pidfds, supervisors, tree
from anodejobs.executors.pidfds import Reapings
from tests.conftest import descriptors
from tests.programs import application, ends_well
from tests.test_recovery import KERNEL_TELLS
from tests.test_shim_recovery import SHIM_WITH, killed_with_its_shim

pytestmark = pytest.mark.smoke

LIMIT_S = 60.0

# As many jobs as may run, of which one makes room for another.
FULL = """
import asyncio, resource, sys
from anodejobs import Jobs
from anodejobs.executors import shim

shim.LINGER_S = 0.05
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

async def main():
    async with Jobs("job_db", executor="{executor}", on_close="stop", stop_grace=1) as jobs:
        number = 0
        while (record := await jobs.run(["sleep", "600"], f"job-{{number}}")).status == "running":
            number += 1
        assert record.status == "failed_start", record
        assert "Too many open files" in record.error, record
        assert (await jobs.usage("job-0")).processes == 1
        assert (await jobs.stop("job-0")).status == "stopped"
        assert (await jobs.run(["sleep", "600"], "another")).status == "running"
        assert (await jobs.run("true", "one-more")).status == "failed_start"
        print("ready", flush=True)
        print(number, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""

STARTED = """
for number in range(30):
    await jobs.run(["sleep", "600"], f"job-{number}")
"""
# Takes on as many as it can, and the others when it has stopped some of these.
TOO_FEW = (
    """
import asyncio, resource, sys
from anodejobs import Jobs
from anodejobs.executors import shim, shim_start

shim.LINGER_S = 0.05
"""
    + SHIM_WITH.format("_SWEEP_EVERY_S", 0.05)
    + """
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))

async def main():
    adopted = set()
    async with Jobs("job_db", stop_grace=1) as jobs:
        async for event in jobs.events(after=0, heartbeat=0.5):
            if event.why and event.why.startswith("adopted"):
                adopted.add(event.job_id)
            elif event.kind == "heartbeat":
                break
        assert 0 < len(adopted) < 30, adopted
        assert await jobs.count({"status": "running"}) == 30
        stopped = adopted.copy()
        await asyncio.gather(*map(jobs.stop, stopped))
        async for event in jobs.events(after=0):
            if event.why and event.why.startswith("adopted"):
                adopted.add(event.job_id)
            if len(adopted) >= min(30, 2 * len(stopped)):
                break
        await asyncio.gather(*(jobs.stop(f"job-{number}") for number in range(30)))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
)


@contextmanager
def no_descriptors_left(but: int = 0) -> Iterator[None]:
    """Have this process without one more descriptor, but for so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + but, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", ["inline", "shim"])
async def test_who_has_few_descriptors_left_starts_no_more_and_looks_after_what_runs(
    tmp_path: Path, kind: str
) -> None:
    with application(FULL.format(executor=kind), tmp_path) as running:
        assert running.stdout is not None
        assert int(running.stdout.readline()) > 10
        async with Jobs(tmp_path / "job_db") as other:
            records = await other.list_status({"status": "running"})
            if kind == "shim":
                stopped = await other.stop("job-1")
                assert stopped is not None and stopped.status is Status.stopped
        assert await asyncio.to_thread(ends_well, running)
    pids = [record.last_pid for record in records.values()]
    assert len(pids) > 10 and not any(map(psutil.pid_exists, pids))


async def test_what_cannot_be_taken_on_is_not_lost(tmp_path: Path) -> None:
    killed_with_its_shim(tmp_path, STARTED)
    with application(TOO_FEW, tmp_path) as running:
        assert await asyncio.to_thread(ends_well, running)
    async with Jobs(tmp_path / "job_db") as jobs:
        records = await jobs.list_status()
    assert len(records) == 30 and all(record.is_done for record in records.values())
    assert not any(psutil.pid_exists(record.last_pid) for record in records.values())


async def test_a_process_that_could_not_be_found_again_is_not_left_running(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs.count()  # which opens it
    pids = []

    def start_time(pid: int) -> float:
        pids.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(tree, "start_time", start_time)
    record = await jobs.run(["sleep", "600"])
    assert (record.status, record.error) == (Status.failed_start, "Too many open files")
    assert len(pids) == 1 and not psutil.pid_exists(pids[0])


async def test_what_cannot_be_stopped_is_told_and_not_given_up(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs.run(["sleep", "600"], "timed", timeout=0.2)
    await jobs.run(["sleep", "600"], "asked")

    def take_snapshot(known: tree.Snapshot | None = None) -> tree.Snapshot:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patches:
        patches.setattr(tree, "take_snapshot", take_snapshot)
        for call in (jobs.pause, jobs.usage, jobs.stop):
            with pytest.raises(ExecutorError, match="Too many open files"):
                await call("asked")
        await jobs.wait("timed", status="failed_stop", timeout=LIMIT_S)
    for job_id in ("asked", "timed"):
        record = await jobs.stop(job_id)
        assert record is not None and record.exit_code == -15


async def test_a_job_gives_its_descriptors_back_though_its_leftovers_cannot_be_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_snapshot(known: tree.Snapshot | None = None) -> tree.Snapshot:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with Jobs(tmp_path / "db", executor="inline") as jobs:
        await jobs.run("true", "first")  # what is opened once is open then
        await jobs.wait("first")
        before = descriptors()
        with monkeypatch.context() as patches:
            patches.setattr(tree, "take_snapshot", take_snapshot)
            await jobs.run("sleep 600 & echo $!", "second")
            record = await jobs.wait("second")
            assert record.exit_code == 0
            left = int((await jobs.job_logs("second"))[0])
            async with asyncio.timeout(LIMIT_S):
                while len(descriptors()) > len(before):
                    await jobs.count()  # which takes its time
        os.kill(left, signal.SIGKILL)


def test_what_cannot_be_looked_at_has_not_gone() -> None:
    pid, started = os.getpid(), tree.start_time(os.getpid())
    assert started is not None
    other = f"{tree.boot_id()}:1:1.0:0"
    with no_descriptors_left():
        for look in (
            lambda: tree.start_time(pid),
            lambda: tree.look_at(pid, started),
            lambda: tree.read_token(pid),
            lambda: tree.open_pidfd(pid, started),
            lambda: tree.take_snapshot(),
        ):
            with pytest.raises(OSError, match="Too many open files") as caught:
                look()
            assert caught.value.errno == errno.EMFILE
        assert supervisors.is_alive(other)
    assert not supervisors.is_alive(other)
    assert tree.start_time(pid) == started


async def test_a_wait_for_deaths_without_descriptors_ends_soon_and_is_to_be_repeated() -> None:
    child = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        started = tree.start_time(child.pid)
        assert started is not None
        member = tree.look_at(child.pid, started)
        assert member is not None
        with no_descriptors_left(but=1):  # by which it is looked at
            async with asyncio.timeout(LIMIT_S):
                await deaths.all_gone([member])
            assert tree.is_alive(*member.key)
            child.kill()
            async with asyncio.timeout(LIMIT_S):
                while tree.is_alive(*member.key):
                    await deaths.all_gone([member])
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def test_an_end_is_heard_of_once_there_are_descriptors_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pidfds, "_RETRY_S", 0.01)
    child = await asyncio.create_subprocess_exec("sleep", "600")
    pidfd, reapings = os.pidfd_open(child.pid), Reapings()
    try:
        with no_descriptors_left():
            waiting = asyncio.create_task(reapings.wait(pidfd))
            await asyncio.sleep(0)  # so that it has begun
        child.kill()
        await child.wait()
        async with asyncio.timeout(LIMIT_S):
            assert await waiting == (-9 if KERNEL_TELLS else None)
    finally:
        reapings.close()
        os.close(pidfd)
