"""Many jobs that log a line now and then: 200 of them, 100 lines a second each.

What is measured is the CPU that the host and the shim spend on carrying a line to its file, from
the moment all the jobs begin to write until all lines are on disk: neither starting the jobs nor
their exits count.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Stopwatch, size_of
from benchmarks.peers import pump_by_stream_reader
from benchmarks.programs import DONE, LINE, READY, Board, expect, pacing
from benchmarks.rounds import Figures, Row, SideFailedError, Size, Subject, at_most

if TYPE_CHECKING:
    from benchmarks.supervised import Executor

CPU = "CPU us/line"
DELAY = "ms until the last line is in its file"
PATIENCE_S = 10.0

Run = Callable[[int, list[str]], Coroutine[None, None, None]]


async def anodejobs(place: Path, size: Size, *, executor: Executor = "shim") -> Figures:
    from benchmarks.supervised import open_jobs, shim_pid, stdout_log

    logs: dict[int, Path] = {}
    async with open_jobs(place, executor) as jobs:

        async def one(slot: int, command: list[str]) -> None:
            record = await jobs.run(command=command, job_id=f"writer-{slot}")
            logs[slot] = stdout_log(record)
            record = await jobs.wait(job_id=record.self_id)
            expect(f"exit code of {record.self_id}", record.exit_code, 0)

        return await _paced(place, size, one, logs, shim_pid(place))


async def stream_reader(place: Path, size: Size) -> Figures:
    logs: dict[int, Path] = {}

    async def one(slot: int, command: list[str]) -> None:
        logs[slot] = place / f"log-{slot}"
        expect(f"exit code of {slot}", await pump_by_stream_reader(command, logs[slot]), 0)

    return await _paced(place, size, one, logs)


async def _paced(
    place: Path,
    size: Size,
    one: Run,
    logs: dict[int, Path],
    helper: int | None = None,
) -> Figures:
    writers, lines = size["writers"], size["lines"]
    board = Board(place / "board", writers)
    async with asyncio.TaskGroup() as group:
        for slot in range(writers):
            command = pacing(board, slot, lines=lines, writers=writers)
            group.create_task(one(slot, command))
        await _until_all_are(READY, board, writers)
        watch = Stopwatch(helper)
        board.open_gate(time.monotonic_ns() + 200_000_000)
        await _until_all_are(DONE, board, writers)
        delay_s = await _until_all_is_there(logs.values(), writers * lines * len(LINE))
        spent_s = watch.cpu_s + watch.helper_cpu_s
        board.close_gate()
    return {CPU: spent_s * 1e6 / (writers * lines), DELAY: delay_s * 1000}


async def _until_all_are(state: int, board: Board, writers: int) -> None:
    # Shared memory rings no bell, and a notice would cost the host more than this look does.
    while board.count(state) < writers:  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def _until_all_is_there(logs: Iterable[Path], size_bytes: int) -> float:
    began = time.monotonic()
    while (there := sum(map(size_of, logs))) < size_bytes:
        if time.monotonic() - began > PATIENCE_S:
            raise SideFailedError(f"{there} bytes logged of {size_bytes}")
        await asyncio.sleep(0.01)
    expect("bytes in the logs", there, size_bytes)
    return time.monotonic() - began


SIDES = {
    "anodejobs": anodejobs,
    "anodejobs inline": functools.partial(anodejobs, executor="inline"),
    "StreamReader": stream_reader,
}

SUBJECTS = (
    Subject(
        name="lines@200",
        module="lines",
        sides=tuple(SIDES),
        size={"writers": 200, "lines": 300},
        quick={"writers": 10, "lines": 20},
        rows=(
            Row(CPU, "StreamReader", at_most(0.2)),
            Row(DELAY, "StreamReader"),
            Row(CPU, "StreamReader", at_most(0.3), ours="anodejobs inline"),
            Row(DELAY, "StreamReader", ours="anodejobs inline"),
        ),
    ),
)
