"""One job's output into its log file, as fast as the job can write it, 8 KiB a write.

Beside the same job writing its own file (O_APPEND, no supervisor in between); beside asyncio's
StreamReader; and beside a reader that throws away what it reads: more no pipe gives to whoever
copies out of it. Memory has to stay flat however much the job writes. CPU is that of the host and,
if there is one, the shim.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.measure import PeakMemory, Stopwatch, shrink, size_of
from benchmarks.peers import posix_spawn, pump_by_stream_reader, wait_by_pidfd
from benchmarks.programs import BLOCK, expect, flooding
from benchmarks.rounds import Figures, How, Row, Size, Subject, at_least, at_most

if TYPE_CHECKING:
    from benchmarks.supervised import Executor

RATE = "MB/s"
CPU = "CPU s/GB"
MEMORY = "memory growth MiB"
READ_BYTES = 256 * 1024


async def anodejobs(place: Path, size: Size, *, executor: Executor = "shim") -> Figures:
    from benchmarks.supervised import open_jobs, run_and_wait, shim_pid, stdout_log

    async with open_jobs(place, executor) as jobs:

        async def one(job_id: str, command: list[str]) -> Path:
            record = await run_and_wait(jobs, job_id, command)
            expect(f"exit code of {job_id}", record.exit_code, 0)
            return stdout_log(record)

        return await _captured(size, one, shim_pid(place))


async def own_file(place: Path, size: Size) -> Figures:
    async def one(job_id: str, command: list[str]) -> Path:
        log = place / job_id
        expect(f"exit code of {job_id}", await wait_by_pidfd(posix_spawn(command, log)), 0)
        return log

    return await _captured(size, one)


async def stream_reader(place: Path, size: Size) -> Figures:
    async def one(job_id: str, command: list[str]) -> Path:
        log = place / job_id
        expect(f"exit code of {job_id}", await pump_by_stream_reader(command, log), 0)
        return log

    return await _captured(size, one)


async def thrown_away(place: Path, size: Size) -> Figures:
    fifo = place / "fifo"
    os.mkfifo(fifo)
    rates = []
    for _ in range(size["times"]):
        await asyncio.to_thread(os.sync)
        watch = Stopwatch()
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # opened for writing by the job
        pid = posix_spawn(flooding(size["mib"]), fifo)
        got = await asyncio.to_thread(_read_to_end, fd)
        expect("exit code of the flood", await wait_by_pidfd(pid), 0)
        rates.append(got / 1e6 / watch.wall_s)
        expect("bytes read", got, size["mib"] * 2**20)
        os.close(fd)
    return {RATE: median(rates)}


def _read_to_end(fd: int) -> int:
    os.set_blocking(fd, True)
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, READ_BYTES)
    buffer, got = bytearray(READ_BYTES), 0
    while n := os.readv(fd, [buffer]):
        got += n
    return got


async def _captured(
    size: Size, one: Callable[[str, list[str]], Awaitable[Path]], helper: int | None = None
) -> Figures:
    """One job after another, each from the same start: nothing left to be written back."""
    await one("warm-up", flooding(1))
    megabytes = size["mib"] * 2**20 / 1e6
    rates, cpus, growths = [], [], []
    for number in range(size["times"]):
        await asyncio.to_thread(os.sync)
        memories = [PeakMemory(pid) for pid in {None, helper}]
        watch = Stopwatch(helper)
        log = await one(f"flood-{number}", flooding(size["mib"]))
        rates.append(megabytes / watch.wall_s)
        cpus.append((watch.cpu_s + watch.helper_cpu_s) * 1000 / megabytes)
        growths.append(sum(memory.growth_mib for memory in memories))
        _check_and_shrink(log, size)
    return {RATE: median(rates), CPU: median(cpus), MEMORY: max(growths)}


def _check_and_shrink(log: Path, size: Size) -> None:
    expect("bytes in the log", size_of(log), size["mib"] * 2**20)
    with log.open("rb") as file:
        file.seek(-len(BLOCK), os.SEEK_END)
        expect("end of the log", file.read(), BLOCK)
    shrink(log)


SIDES = {
    "anodejobs": anodejobs,
    "anodejobs inline": functools.partial(anodejobs, executor="inline"),
    "own file": own_file,
    "StreamReader": stream_reader,
    "thrown away": thrown_away,
}

SUBJECTS = (
    Subject(
        name="capture-1GiB",
        module="capture",
        sides=tuple(SIDES),
        size={"mib": 1024, "times": 3},
        quick={"mib": 16, "times": 1},
        rows=(
            Row(RATE, "own file", at_least(1.5)),
            Row(MEMORY, target=at_most(8), how=How.ALONE),
            Row(RATE, "thrown away"),
            Row(RATE, "own file", ours="thrown away"),
            Row(RATE, "StreamReader"),
            Row(CPU, "StreamReader"),
            Row(RATE, "own file", at_least(1.0), ours="anodejobs inline"),
            Row(MEMORY, target=at_most(8), how=How.ALONE, ours="anodejobs inline"),
            Row(RATE, "StreamReader", ours="anodejobs inline"),
            Row(CPU, "StreamReader", ours="anodejobs inline"),
        ),
    ),
)
