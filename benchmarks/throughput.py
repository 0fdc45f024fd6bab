"""Jobs per second: ``/bin/true``, recorded and awaited, many in flight.

Beside bare asyncio at the same concurrency, which records nothing, and beside the floor.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Stopwatch
from benchmarks.peers import communicate, posix_spawn, watch_by_pidfds
from benchmarks.programs import exit_code_of, expect, trivial
from benchmarks.rounds import (
    Figures,
    How,
    Row,
    SideUnavailableError,
    Size,
    Subject,
    at_least,
    at_most,
)

if TYPE_CHECKING:
    from benchmarks.supervised import Executor

RATE = "jobs/s"
CPU = "app CPU us/job"
SHIM_CPU = "shim CPU us/job"


async def anodejobs(place: Path, size: Size, *, executor: Executor = "shim") -> Figures:
    from benchmarks.supervised import expect_recorded, open_jobs, run_and_wait, shim_pid

    async with open_jobs(place, executor) as jobs:

        async def one(number: int) -> None:
            record = await run_and_wait(jobs, f"job-{number}", trivial(number))
            expect(f"exit code of {record.self_id}", record.exit_code, exit_code_of(number))

        figures = await in_flight(size, one, shim_pid(place))
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
    return await in_flight(size, one)


async def bare_asyncio_pidfd(place: Path, size: Size) -> Figures:
    """Bare asyncio with the watcher that Python 3.12 and later choose by themselves."""
    if sys.version_info >= (3, 12):
        raise SideUnavailableError("this Python's asyncio has no other watcher")
    watch_by_pidfds()
    return await bare_asyncio(place, size)


async def floor(place: Path, size: Size) -> Figures:
    watch = Stopwatch()
    spawn_and_reap(size["jobs"], size["live"], trivial)
    return figures_of(watch, size["jobs"])


async def in_flight(
    size: Size, one: Callable[[int], Awaitable[None]], helper: int | None = None
) -> Figures:
    """Do ``one`` for each job's number, ``live`` of them at once; the figures of that."""
    numbers = iter(range(size["jobs"]))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    watch = Stopwatch(helper)
    async with asyncio.TaskGroup() as workers:
        for _ in range(size["live"]):
            workers.create_task(worker())
    return figures_of(watch, size["jobs"])


def spawn_and_reap(jobs: int, live: int, command: Callable[[int], list[str]]) -> None:
    """Run the commands of all numbers, ``live`` of them at once, with nothing but the kernel."""
    numbers = iter(range(jobs))
    alive: dict[int, int] = {}
    while len(alive) < live and (number := next(numbers, None)) is not None:
        alive[posix_spawn(command(number))] = number
    while alive:
        pid, status = os.waitpid(-1, 0)
        number = alive.pop(pid)
        expect(f"exit code of {number}", os.waitstatus_to_exitcode(status), exit_code_of(number))
        if (number := next(numbers, None)) is not None:
            alive[posix_spawn(command(number))] = number


def figures_of(watch: Stopwatch, jobs: int) -> Figures:
    wall_s, cpu_s = watch.wall_s, watch.cpu_s
    return {
        RATE: jobs / wall_s,
        CPU: cpu_s * 1e6 / jobs,
        SHIM_CPU: watch.helper_cpu_s * 1e6 / jobs,
    }


SIDES = {
    "anodejobs": anodejobs,
    "anodejobs inline": functools.partial(anodejobs, executor="inline"),
    "bare asyncio": bare_asyncio,
    "bare asyncio, sessions": bare_asyncio_sessions,
    "bare asyncio, pidfd": bare_asyncio_pidfd,
    "floor": floor,
}


def _rows(live: int) -> tuple[Row, ...]:
    return (
        Row(RATE, "bare asyncio", at_least(1.2) if live == 32 else None),
        Row(RATE, "bare asyncio, sessions"),
        Row(RATE, "bare asyncio, pidfd"),
        Row(RATE, "floor", at_least(0.7) if live == 64 else None),
        Row(CPU, "bare asyncio", at_most(0.25)),
        Row(SHIM_CPU, how=How.ALONE),
        Row(RATE, "bare asyncio", None if live == 32 else at_least(0.9), ours="anodejobs inline"),
        Row(RATE, "floor", ours="anodejobs inline"),
        Row(CPU, "bare asyncio", ours="anodejobs inline"),
    )


SUBJECTS = tuple(
    Subject(
        name=f"throughput@{live}",
        module="throughput",
        sides=tuple(SIDES),
        size={"jobs": 2000, "live": live},
        quick={"jobs": 40, "live": live},
        rows=_rows(live),
    )
    for live in (16, 32, 64)
)
