"""Succession: of all processes that share something, one acts; when it goes, another one does.

A lock says who: it is free as soon as its holder is dead. Who waits is woken by that death, or by
being nudged when the holder lets go of it alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from pathlib import Path
from weakref import WeakSet

from anodejobs.executors import supervisors

_SETTLING_S = 0.1
"""How long a holder may take to say who it is."""
_HOLDERS: WeakSet[Succession] = WeakSet()
"""Those of this process that have their lock."""


class Succession:
    """A place in the line of those who would like to hold the lock at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._supervisor = ""
        self._nudged = asyncio.Event()

    async def succeed(self) -> None:
        """Return when it is our turn. Raises OSError where there can be no lock."""
        while True:
            self._nudged.clear()
            holder = self._take()
            if holder is None:
                return
            await self._parting(holder)

    def _take(self) -> str | None:
        """Take the lock; or return who has it, which may be empty for a moment."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(fd, 0)
            self._supervisor = supervisors.new_supervisor()
            os.pwrite(fd, self._supervisor.encode(), 0)
        except BlockingIOError:
            with open(fd) as file:
                return file.read()
        except BaseException:  # the disk is full, say: left open, the lock would be nobody's
            os.close(fd)
            raise
        self._fd = fd
        _HOLDERS.add(self)
        return None

    async def _parting(self, holder: str) -> None:
        """Return when the holder may have gone."""
        async with asyncio.TaskGroup() as tasks:
            ends = [
                tasks.create_task(_waited(self._nudged)),
                tasks.create_task(_death(holder)),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()

    def nudge(self) -> None:
        """Look whether the lock is free: its holder may have let go of it."""
        self._nudged.set()

    def release(self) -> bool:
        """Let go of the lock; return whether we had it: the others are to be nudged then.

        Who succeeds after that is in the line again.
        """
        supervisors.give_up(self._supervisor)
        if self._fd is None:
            return False
        # Before the lock goes: who sees the name sees the lock held.
        with contextlib.suppress(OSError):
            os.truncate(self._fd, 0)
        self.forget()
        return True

    def forget(self) -> None:
        """Close the lock; whoever else has it open, as the process that we are a fork of, keeps it.

        Idempotent.
        """
        _HOLDERS.discard(self)
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _forget_all() -> None:
    for holder in list(_HOLDERS):
        holder.forget()


# A fork has the locks, too, and keeps them from all others for as long as it outlives us.
os.register_at_fork(after_in_child=_forget_all)


async def _waited(event: asyncio.Event) -> None:
    await event.wait()


async def _death(holder: str) -> None:
    """Return when the process has died; soon, where a fork of it still has its lock."""
    if holder and supervisors.is_alive(holder):
        await supervisors.outlive(holder)
    else:
        # The one place where we look again and again: it says who it is in a moment, or its lock
        # is in the hands of a child that it has forked.
        await asyncio.sleep(_SETTLING_S)
