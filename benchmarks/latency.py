"""From a job's last instruction to the coroutine that awaits it: the commit of the exit included.

Each job puts the monotonic clock into memory it shares with its host and exits at once, so what is
timed is the kernel's tearing down of the process, the notice, and whatever the host then does.
"""

from __future__ import annotations

import asyncio
import functools
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import percentile
from benchmarks.peers import posix_spawn, wait_by_pidfd
from benchmarks.programs import Board, exit_code_of, expect, stamping
from benchmarks.rounds import Figures, Row, Size, Subject, at_most

if TYPE_CHECKING:
    from benchmarks.supervised import Executor

MEDIAN = "us, median"
P95 = "us, p95"


async def anodejobs(place: Path, size: Size, *, executor: Executor = "shim") -> Figures:
    from benchmarks.supervised import expect_recorded, open_jobs

    async with open_jobs(place, executor) as jobs:

        async def one(number: int, command: list[str]) -> int | None:
            await jobs.run(command=command, job_id=f"job-{number}")
            return (await jobs.wait(job_id=f"job-{number}")).exit_code

        figures = await _one_by_one(place, size, one)
        await expect_recorded(jobs, size["jobs"])
    return figures


async def pidfd(place: Path, size: Size) -> Figures:
    async def one(number: int, command: list[str]) -> int:
        return await wait_by_pidfd(posix_spawn(command))

    return await _one_by_one(place, size, one)


async def bare_asyncio(place: Path, size: Size) -> Figures:
    async def one(number: int, command: list[str]) -> int:
        process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL)
        return await process.wait()

    return await _one_by_one(place, size, one)


async def _one_by_one(
    place: Path, size: Size, one: Callable[[int, list[str]], Awaitable[int | None]]
) -> Figures:
    board = Board(place / "board", size["jobs"])
    took_us = []
    for number in range(size["jobs"]):
        exit_code = await one(number, stamping(board, number))
        awake_ns = time.monotonic_ns()
        expect(f"exit code of {number}", exit_code, exit_code_of(number))
        expect(f"stamp of {number}", 0 < board[number] < awake_ns, True)
        took_us.append((awake_ns - board[number]) / 1000)
    return {MEDIAN: percentile(took_us, 50), P95: percentile(took_us, 95)}


SIDES = {
    "anodejobs": anodejobs,
    "anodejobs inline": functools.partial(anodejobs, executor="inline"),
    "pidfd": pidfd,
    "bare asyncio": bare_asyncio,
}

SUBJECTS = (
    Subject(
        name="exit-to-awake",
        module="latency",
        sides=tuple(SIDES),
        size={"jobs": 100},
        quick={"jobs": 20},
        rows=(
            Row(MEDIAN, "pidfd", at_most(4.0)),
            Row(MEDIAN, "bare asyncio", at_most(1.6)),
            Row(P95, "pidfd"),
            Row(MEDIAN, "pidfd", at_most(3.0), ours="anodejobs inline"),
            Row(MEDIAN, "bare asyncio", ours="anodejobs inline"),
            Row(P95, "pidfd", ours="anodejobs inline"),
        ),
    ),
)
