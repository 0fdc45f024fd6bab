"""Jobs per second from a host that runs on uvloop, whose own subprocesses are forks.

Beside uvloop's subprocesses with two pipes, from a small host and from one with much memory, all
of which a fork has to map anew.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks import throughput
from benchmarks.measure import available_bytes
from benchmarks.rounds import Figures, Row, SideUnavailableError, Size, Subject, at_least
from benchmarks.throughput import CPU, RATE

Side = Callable[[Path, Size], Awaitable[Figures]]


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        raise SideUnavailableError("uvloop is not installed") from None
    return uvloop.new_event_loop()


async def bare_uvloop(place: Path, size: Size) -> Figures:
    return await throughput.bare_asyncio(place, {**size, "jobs": size["bare_jobs"]})


async def bare_uvloop_of_large(place: Path, size: Size) -> Figures:
    return await throughput.bare_asyncio(place, {**size, "jobs": size["slow_jobs"]})


async def of_large(place: Path, size: Size, *, side: Side) -> Figures:
    """A side in a host that has written to ``mib`` MiB of its memory."""
    wanted = size["mib"] * 2**20
    if available_bytes() < 2 * wanted:
        raise SideUnavailableError(f"less than {2 * size['mib']:,} MiB of memory are free")
    ballast = bytearray(b"\1") * wanted
    figures = await side(place, size)
    del ballast
    return figures


SIDES: dict[str, Side] = {
    "anodejobs": throughput.anodejobs,
    "anodejobs, large host": functools.partial(of_large, side=throughput.anodejobs),
    "uvloop": bare_uvloop,
    "uvloop, large host": functools.partial(of_large, side=bare_uvloop_of_large),
}

SUBJECTS = (
    Subject(
        name="uvloop@32",
        module="uvloop_host",
        sides=tuple(SIDES),
        size={"jobs": 2000, "bare_jobs": 500, "slow_jobs": 50, "live": 32, "mib": 2048},
        quick={"jobs": 40, "bare_jobs": 40, "slow_jobs": 40, "live": 32, "mib": 32},
        rows=(
            Row(RATE, "uvloop", at_least(3.0)),
            Row(CPU, "uvloop"),
            Row(RATE, "uvloop, large host", at_least(50.0), ours="anodejobs, large host"),
            Row(RATE, "anodejobs", at_least(0.9), ours="anodejobs, large host"),
        ),
    ),
)
