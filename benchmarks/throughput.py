"""Jobs per second: ``/bin/true``, recorded and awaited, many in flight.

Beside bare asyncio at the same concurrency, which records nothing, and beside the floor.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.measure import Stopwatch
from benchmarks.peers import communicate, posix_spawn
from benchmarks.programs import exit_code_of, expect, trivial
from benchmarks.rounds import Figures, Row, SideUnavailableError, Size, Subject, at_least

RATE = "jobs/s"
CPU = "app CPU us/job"


async def anodejobs(place: Path, size: Size) -> Figures:
    from benchmarks.supervised import expect_recorded, open_jobs, run_and_wait

    async with open_jobs(place) as jobs:
        await run_and_wait(jobs, "warm-up", ["/bin/true"])
        await jobs.delete("warm-up")

        async def one(number: int) -> None:
            record = await run_and_wait(jobs, f"job-{number}", trivial(number))
            expect(f"exit code of {record.self_id}", record.exit_code, exit_code_of(number))

        figures = await _in_flight(size, one)
        await expect_recorded(jobs, size["jobs"])
    return figures


async def bare_asyncio(place: Path, size: Size) -> Figures:
    return await _bare(size, in_sessions=False)


async def bare_asyncio_sessions(place: Path, size: Size) -> Figures:
    """Bare asyncio with each job in a session of its own, as anodejobs has them.

    Where ``/proc/sys/kernel/sched_autogroup_enabled`` is 1 and no cgroup shares out the CPU, Linux
    gives every session as much of it as the whole session of the host.
    """
    return await _bare(size, in_sessions=True)


async def _bare(size: Size, *, in_sessions: bool) -> Figures:
    async def one(number: int) -> None:
        exit_code = await communicate(trivial(number), in_session=in_sessions)
        expect(f"exit code of {number}", exit_code, exit_code_of(number))

    await one(0)
    return await _in_flight(size, one)


async def bare_asyncio_pidfd(place: Path, size: Size) -> Figures:
    """Bare asyncio with the watcher that Python 3.12 and later choose by themselves."""
    if sys.version_info >= (3, 12):
        raise SideUnavailableError("this Python's asyncio has no other watcher")
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(asyncio.get_running_loop())
    asyncio.set_child_watcher(watcher)
    return await bare_asyncio(place, size)


async def floor(place: Path, size: Size) -> Figures:
    watch = Stopwatch()
    _spawn_and_reap(size["jobs"], size["live"])
    return _figures(watch, size["jobs"])


async def _in_flight(size: Size, one: Callable[[int], Awaitable[None]]) -> Figures:
    numbers = iter(range(size["jobs"]))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    watch = Stopwatch()
    async with asyncio.TaskGroup() as workers:
        for _ in range(size["live"]):
            workers.create_task(worker())
    return _figures(watch, size["jobs"])


def _spawn_and_reap(jobs: int, live: int) -> None:
    numbers = iter(range(jobs))
    alive: dict[int, int] = {}
    while len(alive) < live and (number := next(numbers, None)) is not None:
        alive[posix_spawn(trivial(number))] = number
    while alive:
        pid, status = os.waitpid(-1, 0)
        number = alive.pop(pid)
        expect(f"exit code of {number}", os.waitstatus_to_exitcode(status), exit_code_of(number))
        if (number := next(numbers, None)) is not None:
            alive[posix_spawn(trivial(number))] = number


def _figures(watch: Stopwatch, jobs: int) -> Figures:
    return {RATE: jobs / watch.wall_s, CPU: watch.cpu_s * 1e6 / jobs}


SIDES = {
    "anodejobs": anodejobs,
    "bare asyncio": bare_asyncio,
    "bare asyncio, sessions": bare_asyncio_sessions,
    "bare asyncio, pidfd": bare_asyncio_pidfd,
    "floor": floor,
}

ROWS = (
    Row(RATE, "bare asyncio", at_least(0.9)),
    Row(RATE, "bare asyncio, sessions"),
    Row(RATE, "bare asyncio, pidfd"),
    Row(RATE, "floor"),
    Row(CPU, "bare asyncio"),
    Row(CPU, "floor"),
)

SUBJECTS = tuple(
    Subject(
        name=f"throughput@{live}",
        module="throughput",
        sides=tuple(SIDES),
        size={"jobs": 2000, "live": live},
        quick={"jobs": 40, "live": live},
        rows=ROWS,
    )
    for live in (16, 64)
)
