"""What a side observes of its process, and of one that helps it: CPU, memory, a late loop."""

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


def cpu_s(pid: int | None = None) -> float:
    """Seconds of CPU a process has used, all its threads together, its children not.

    Of this process by default; of another one the kernel tells hundredths of a second.
    """
    if pid is None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime
    # The program's name may hold blanks and brackets; the last bracket ends it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Stopwatch:
    """Wall time and CPU since it was made; also the CPU of the process that ``helper`` names."""

    helper: int | None = None
    began_s: float = field(init=False)
    cpu_began_s: float = field(init=False)
    helper_began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.helper_began_s = self._helper_used_s()
        self.cpu_began_s = cpu_s()
        self.began_s = time.perf_counter()

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self.began_s

    @property
    def cpu_s(self) -> float:
        return cpu_s() - self.cpu_began_s

    @property
    def helper_cpu_s(self) -> float:
        return self._helper_used_s() - self.helper_began_s

    def _helper_used_s(self) -> float:
        return 0.0 if self.helper is None else cpu_s(self.helper)


@dataclass(slots=True)
class PeakMemory:
    """By how much a process's resident memory rose above what it was at the start."""

    pid: int | None = None
    start_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        (_proc(self.pid) / "clear_refs").write_text("5")  # the peak forgets what was before
        self.start_bytes = resident_bytes(self.pid)

    @property
    def growth_mib(self) -> float:
        return (_status_bytes(self.pid, "VmHWM") - self.start_bytes) / 2**20


def resident_bytes(pid: int | None = None) -> int:
    """The memory a process has, this one by default."""
    return _status_bytes(pid, "VmRSS")


def available_bytes() -> int:
    """The memory that the machine could give to a process now."""
    return _bytes_in(Path("/proc/meminfo"), "MemAvailable")


def _status_bytes(pid: int | None, field_name: str) -> int:
    return _bytes_in(_proc(pid) / "status", field_name)


def _proc(pid: int | None) -> Path:
    return Path("/proc", "self" if pid is None else str(pid))


def _bytes_in(path: Path, field_name: str) -> int:
    for line in path.read_text().splitlines():
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
