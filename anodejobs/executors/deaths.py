"""Waiting for processes to die that need not be our children."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anodejobs.executors import tree
from anodejobs.executors.descriptors import is_kept, lack
from anodejobs.threads import in_thread

POLL_S = 0.2
"""How long one wait for strangers' deaths takes where the system has no pidfds."""


async def all_gone(
    members: list[tree.Process], wake: asyncio.Event | None = None, *, until: float = math.inf
) -> None:
    """Return when all the members are dead, or ``wake`` was set, or the monotonic clock says so.

    Where there are no pidfds for all of them: after a moment at the latest.
    """
    wake = wake or asyncio.Event()
    wake.clear()
    rest = max(0.0, until - time.monotonic())
    if tree.HAS_PIDFDS:
        with contextlib.suppress(OSError), _deaths(members, wake.set):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if rest == math.inf else rest):
                    await wake.wait()
            return
    # The one poll, where there are no pidfds, or too few are left: it looks again and again, and
    # cannot be woken.
    await in_thread(tree.wait_gone, members, min(rest, POLL_S))


@contextmanager
def _deaths(members: list[tree.Process], on_all: Callable[[], None]) -> Iterator[None]:
    """Call ``on_all`` when the last of the members has died. Raises OSError, none of its body."""
    loop = asyncio.get_running_loop()
    alive: set[int] = set()

    def died(fd: int) -> None:
        loop.remove_reader(fd)
        alive.remove(fd)
        os.close(fd)
        if not alive:
            on_all()

    try:
        for member in members:
            fd = tree.open_pidfd(member.pid, member.start_time)
            if fd is not None:
                alive.add(fd)
                loop.add_reader(fd, died, fd)
                if is_kept(fd):
                    raise lack()
        if not alive:
            on_all()
        yield
    finally:
        for fd in alive:
            loop.remove_reader(fd)
            os.close(fd)


async def readable(fd: int, *, within_s: float) -> bool:
    """Return whether the descriptor is readable in time: a pidfd is when its process is dead.

    Raises OSError where memory lacks to hear of that.
    """
    loop, is_readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, is_readable.set)
    try:
        async with asyncio.timeout(within_s):
            await is_readable.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True
