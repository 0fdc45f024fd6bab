"""How late the host's loop is while 4 jobs write at full speed.

Beside the same jobs writing their own files, or into nothing, which load the machine as much but
not the loop; beside an idle loop; and beside asyncio's StreamReader carrying the output in the
loop itself.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import shrink, size_of, ticking
from benchmarks.peers import posix_spawn, pump_by_stream_reader, wait_by_pidfd
from benchmarks.programs import expect, flooding
from benchmarks.rounds import Figures, How, Row, Size, Subject, at_most

if TYPE_CHECKING:
    from benchmarks.supervised import Executor

STALLED = "ms/s later than 5 ms"
LONGEST = "longest, ms late"
P99 = "p99, ms late"
WRITERS = 4
NOTHING_IS_QUICKER = 15
"""How many times as much has to be written into nothing, to take about as long."""


async def anodejobs(place: Path, size: Size, *, executor: Executor = "shim") -> Figures:
    from benchmarks.supervised import open_jobs, run_and_wait, stdout_log

    async with open_jobs(place, executor) as jobs:
        await run_and_wait(jobs, "warm-up", flooding(1))

        async def one(number: int, command: list[str]) -> Path:
            record = await run_and_wait(jobs, f"writer-{number}", command)
            expect(f"exit code of {record.self_id}", record.exit_code, 0)
            return stdout_log(record)

        return await _observed(size, one)


async def own_files(place: Path, size: Size) -> Figures:
    async def one(number: int, command: list[str]) -> Path:
        log = place / f"log-{number}"
        expect(f"exit code of {number}", await wait_by_pidfd(posix_spawn(command, log)), 0)
        return log

    return await _observed(size, one)


async def stream_reader(place: Path, size: Size) -> Figures:
    async def one(number: int, command: list[str]) -> Path:
        log = place / f"log-{number}"
        expect(f"exit code of {number}", await pump_by_stream_reader(command, log), 0)
        return log

    return await _observed(size, one)


async def nothing(place: Path, size: Size) -> Figures:
    async with ticking() as lateness, asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            job = posix_spawn(flooding(size["mib"] * NOTHING_IS_QUICKER))
            group.create_task(wait_by_pidfd(job))
    return _figures(lateness.stalled_ms_per_s, lateness.longest_ms, lateness.p99_ms)


async def idle(place: Path, size: Size) -> Figures:
    async with ticking() as lateness:
        await asyncio.sleep(size["idle_ms"] / 1000)
    return _figures(lateness.stalled_ms_per_s, lateness.longest_ms, lateness.p99_ms)


async def _observed(
    size: Size, one: Callable[[int, list[str]], Coroutine[None, None, Path]]
) -> Figures:
    async with ticking() as lateness, asyncio.TaskGroup() as group:
        jobs = [group.create_task(one(number, flooding(size["mib"]))) for number in range(WRITERS)]
    for job in jobs:
        expect("bytes in the log", size_of(job.result()), size["mib"] * 2**20)
        shrink(job.result())
    return _figures(lateness.stalled_ms_per_s, lateness.longest_ms, lateness.p99_ms)


def _figures(stalled_ms_per_s: float, longest_ms: float, p99_ms: float) -> Figures:
    return {STALLED: stalled_ms_per_s, LONGEST: longest_ms, P99: p99_ms}


SIDES = {
    "anodejobs": anodejobs,
    "anodejobs inline": functools.partial(anodejobs, executor="inline"),
    "own files": own_files,
    "nothing": nothing,
    "StreamReader": stream_reader,
    "idle": idle,
}

SUBJECTS = (
    Subject(
        name=f"loop-stall@{WRITERS}",
        module="stall",
        sides=tuple(SIDES),
        size={"mib": 400, "idle_ms": 2000},
        quick={"mib": 8, "idle_ms": 200},
        rows=(
            Row(STALLED, "idle", at_most(0), How.DIFFERENCE),
            Row(STALLED, "own files", how=How.DIFFERENCE),
            Row(STALLED, "nothing", how=How.DIFFERENCE),
            Row(STALLED, "StreamReader", how=How.DIFFERENCE),
            Row(LONGEST, "own files"),
            Row(P99, "own files"),
            Row(STALLED, "idle", how=How.DIFFERENCE, ours="anodejobs inline"),
            Row(STALLED, "own files", at_most(0), How.DIFFERENCE, ours="anodejobs inline"),
            Row(STALLED, "StreamReader", how=How.DIFFERENCE, ours="anodejobs inline"),
            Row(LONGEST, "own files", ours="anodejobs inline"),
            Row(P99, "own files", ours="anodejobs inline"),
        ),
    ),
)
