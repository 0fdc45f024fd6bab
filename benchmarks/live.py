"""Very many jobs that only run: the memory they cost, and how soon others have them in hand.

Their host leaves, and another one comes. The shim is killed, and the next one takes them all on. In
the end they are stopped, and nothing of them may be left. Beside a process that awaits as many by
bare asyncio, which can do nothing of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import resident_bytes
from benchmarks.peers import watch_by_pidfds
from benchmarks.programs import expect
from benchmarks.rounds import Figures, How, Row, SideUnavailableError, Size, Subject, at_most
from benchmarks.side import LIMIT_S, run_side
from benchmarks.throughput import in_flight

if TYPE_CHECKING:
    from anodejobs import Jobs
    from anodejobs.executors.shim import Shim

MEMORY = "KiB of memory per job"
HOST_MEMORY = "KiB of the host's memory per job"
READY = "s until a new host is ready"
TAKEN_ON = "s from kill -9 of the shim until the next has all"
KNOWN = "s from kill -9 of the shim until the host of all knows it"
NEXT_START = "s from kill -9 of the shim until a job is started"
STOPPED = "s until all are stopped"

SLEEPING = ["/bin/sleep", f"{LIMIT_S:.2f}"]
"""Should a side break, they do not stay for ever."""
AT_ONCE = 32
DESCRIPTORS_PER_JOB = 3
OTHER_DESCRIPTORS = 500


async def anodejobs(place: Path, size: Size) -> Figures:
    from benchmarks.supervised import jobs_at, shim_at, warm_up

    _expect_descriptors(size)
    async with _nothing_left(place):
        async with jobs_at(place) as jobs:
            await warm_up(jobs)
            memory = await _started(place, jobs, size)
        # In a process of its own, as it would be.
        ready = await asyncio.to_thread(run_side, "live", "new host", place / "new-host", size)
        shim = shim_at(place)
        async with jobs_at(place, shim) as jobs:
            taken_on = await asyncio.to_thread(run_side, "live", "witness", place / "w", size)
            known = await _known(place, jobs, shim, size)
            stopped = await _stopped(jobs)
    return {**memory, **ready, **taken_on, **known, **stopped}


async def new_host(place: Path, size: Size) -> Figures:
    from benchmarks.supervised import jobs_at

    began = time.perf_counter()
    async with jobs_at(place.parent) as jobs:
        ready_s = time.perf_counter() - began
        expect("running jobs", await jobs.count({"status": "running"}), size["jobs"])
    return {READY: ready_s}


async def witness(place: Path, size: Size) -> Figures:
    """Kill the shim, and ask the next one what it has in its hands, as one who has no jobs."""
    from anodejobs.executors.base import Host
    from benchmarks.supervised import shim_at, shim_pid

    killed = shim_pid(place.parent)
    assert killed is not None
    shim = shim_at(place.parent)
    async with asyncio.TaskGroup() as tasks:
        own = tasks.create_task
        await shim.open(
            Host(own=lambda c, name: own(c, name=name), on_inherited=_ignore, on_departure=_ignore)
        )
        began = time.perf_counter()
        os.kill(killed, signal.SIGKILL)
        held = await shim.held()
        taken_on_s = time.perf_counter() - began
        await shim.close()
    expect("jobs in its hands", len(held), size["jobs"])
    return {TAKEN_ON: taken_on_s}


def _ignore(*args: object) -> None:
    pass


async def bare_asyncio(place: Path, size: Size) -> Figures:
    _expect_descriptors(size)
    watch_by_pidfds()
    processes: list[asyncio.subprocess.Process] = []
    ends = asyncio.TaskGroup()

    async def one(number: int) -> None:
        process = await asyncio.create_subprocess_exec(*SLEEPING, stdout=PIPE, stderr=PIPE)
        processes.append(process)
        ends.create_task(process.communicate())

    before = resident_bytes()
    async with ends:
        try:
            await in_flight({**size, "live": AT_ONCE}, one)
            grown = resident_bytes() - before
        finally:
            for process in processes:
                process.kill()
    return {MEMORY: grown / 1024 / size["jobs"]}


def _expect_descriptors(size: Size) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # the hard one too, by now
    wanted = DESCRIPTORS_PER_JOB * size["jobs"] + OTHER_DESCRIPTORS
    if limit < wanted:
        raise SideUnavailableError(f"it takes {wanted:,} descriptors, and {limit:,} are allowed")


async def _started(place: Path, jobs: Jobs, size: Size) -> Figures:
    from benchmarks.supervised import shim_pid

    async def one(number: int) -> None:
        await jobs.run(command=SLEEPING, job_id=f"job-{number}")

    shim = shim_pid(place)
    before, mine_before = resident_bytes(shim), resident_bytes()
    await in_flight({**size, "live": AT_ONCE}, one)
    expect("running jobs", await jobs.count({"status": "running"}), size["jobs"])
    grown, mine_grown = resident_bytes(shim) - before, resident_bytes() - mine_before
    return {
        MEMORY: grown / 1024 / size["jobs"],
        HOST_MEMORY: mine_grown / 1024 / size["jobs"],
    }


async def _known(place: Path, jobs: Jobs, shim: Shim, size: Size) -> Figures:
    """Kill the shim, and ask the next one what it has in its hands; then run a job by it.

    Its answer comes after all that it has to tell of the jobs, and that is taken in first.
    """
    from benchmarks.supervised import shim_pid

    killed = shim_pid(place)
    assert killed is not None
    pipes = await _pipes_of_jobs(jobs)
    expect("pipes of jobs", len(pipes), 2 * size["jobs"])
    expect("pipes that nobody reads", len(pipes - _pipes_of(killed)), 0)
    began = time.perf_counter()
    os.kill(killed, signal.SIGKILL)
    held = await shim.held()
    known_s = time.perf_counter() - began
    await jobs.run(command=["/bin/true"], job_id="first-of-next")
    started_s = time.perf_counter() - began
    following = shim_pid(place)
    expect("another shim", following not in (None, killed), True)
    expect("jobs in its hands", len(held), size["jobs"])
    expect("pipes that nobody reads", len(pipes - _pipes_of(following)), 0)
    await jobs.wait(job_id="first-of-next")
    expect("running jobs", await jobs.count({"status": "running"}), size["jobs"])
    return {KNOWN: known_s, NEXT_START: started_s}


async def _pipes_of_jobs(jobs: Jobs) -> set[str]:
    records = (await jobs.list_status({"status": "running"})).values()
    return {pipe for record in records for pipe in _pipes_of(record.last_pid)}


def _pipes_of(pid: int | None) -> set[str]:
    pipes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            link = os.readlink(fd)
            if link.startswith("pipe:"):
                pipes.add(link)
    return pipes


async def _stopped(jobs: Jobs) -> Figures:
    records = (await jobs.list_status({"status": "running"})).values()
    began = time.perf_counter()
    await _stop_all(jobs)
    took_s = time.perf_counter() - began
    expect("stopped jobs", await jobs.count({"status": "stopped"}), len(records))
    alive = sum(_is_sleeping(record.last_pid) for record in records)
    expect("processes of stopped jobs", alive, 0)
    return {STOPPED: took_s}


async def _stop_all(jobs: Jobs) -> None:
    async with asyncio.TaskGroup() as stops:
        for job_id in await jobs.list_status({"status": "running"}):
            stops.create_task(jobs.stop(job_id))


def _is_sleeping(pid: int | None) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text() == "\0".join((*SLEEPING, ""))
    return False


@contextlib.asynccontextmanager
async def _nothing_left(place: Path) -> AsyncIterator[None]:
    """End what is left of the jobs and of their shim, however the block ends."""
    from benchmarks.supervised import jobs_at, shim_has_left

    try:
        yield
    finally:
        async with jobs_at(place) as jobs:
            await _stop_all(jobs)
        await shim_has_left(place)


SIDES = {
    "anodejobs": anodejobs,
    "new host": new_host,
    "witness": witness,
    "bare asyncio, pidfd": bare_asyncio,
}

SUBJECTS = (
    Subject(
        name="live@5000",
        module="live",
        sides=("anodejobs", "bare asyncio, pidfd"),
        size={"jobs": 5000},
        quick={"jobs": 50},
        rows=(
            Row(MEMORY, "bare asyncio, pidfd", at_most(0.7)),
            Row(HOST_MEMORY, how=How.ALONE),
            Row(READY, target=at_most(0.1), how=How.ALONE),
            Row(TAKEN_ON, target=at_most(1.0), how=How.ALONE),
            Row(KNOWN, how=How.ALONE),
            Row(NEXT_START, how=How.ALONE),
            Row(STOPPED, how=How.ALONE),
        ),
    ),
)
