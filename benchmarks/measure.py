"""What a side observes of its own process: CPU, memory, and how late its loop is."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import resource
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICK_S = 0.001
STALL_S = 0.005


def cpu_s() -> float:
    """Seconds of CPU this process has used, all its threads together, its children not."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass(slots=True)
class Stopwatch:
    """Wall time and CPU since it was made."""

    began_s: float = field(default_factory=time.perf_counter)
    cpu_began_s: float = field(default_factory=cpu_s)

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self.began_s

    @property
    def cpu_s(self) -> float:
        return cpu_s() - self.cpu_began_s


@dataclass(slots=True)
class PeakMemory:
    """By how much this process's resident memory rose above what it was at the start."""

    start_bytes: int = 0

    def __post_init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak forgets what was before
        self.start_bytes = _status_bytes("VmRSS")

    @property
    def growth_mib(self) -> float:
        return (_status_bytes("VmHWM") - self.start_bytes) / 2**20


def _status_bytes(field_name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field_name:
            return int(value.split()[0]) * 1024
    raise LookupError(field_name)


@dataclass(slots=True)
class Lateness:
    """How late a 1 ms ticker came, tick by tick."""

    late_s: list[float] = field(default_factory=list)
    lasted_s: float = 0.0

    @property
    def stalled_ms_per_s(self) -> float:
        """Lateness of the ticks that were more than 5 ms late, per second of observation."""
        return sum(late for late in self.late_s if late > STALL_S) * 1000 / self.lasted_s

    @property
    def longest_ms(self) -> float:
        return max(self.late_s) * 1000

    @property
    def p99_ms(self) -> float:
        return percentile(self.late_s, 99) * 1000


@contextlib.asynccontextmanager
async def ticking() -> AsyncIterator[Lateness]:
    """Observe the running loop's lateness for as long as the block lasts."""
    lateness = Lateness()
    began = time.perf_counter()
    ticker = asyncio.create_task(_tick(lateness), name="ticker")
    try:
        yield lateness
    finally:
        lateness.lasted_s = time.perf_counter() - began
        ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticker


async def _tick(lateness: Lateness) -> None:
    while True:
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        lateness.late_s.append(time.perf_counter() - due)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that ``percent`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def size_of(path: Path) -> int:
    """The file's size, 0 where there is none yet."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def shrink(path: Path) -> None:
    """Give a big file's blocks back, but keep its inode.

    A directory whose files were just deleted is slow to make new ones in (ext4 steps over the
    inodes it freed lately), which the next side would pay for.
    """
    os.truncate(path, 0)
