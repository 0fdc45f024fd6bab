"""Looks at all processes of the machine, taken in a thread and shared."""

from __future__ import annotations

import asyncio
import contextlib
import time

from anodejobs.executors import tree
from anodejobs.threads import in_thread

_LOOK_EVERY_S = 0.5
"""How often, at most, leftovers of ended jobs are looked for."""
_LOOK_SHARE = 50
"""Looks for leftovers take at most this part of a core's time."""


class Looks:
    """Takes looks; one serves all who asked before it began."""

    def __init__(self) -> None:
        self.latest = tree.Snapshot({})
        self._began_at = self._ended_at = self._cost_s = 0.0
        self.is_pressed = asyncio.Event()
        """Set when nothing should be put off any more."""
        self._turn = asyncio.Lock()
        self._is_coming = False
        self._waiters: list[asyncio.Future[tree.Snapshot | None]] = []

    async def take(self) -> tree.Snapshot:
        """Return what a look found that began after this call."""
        asked_at = time.monotonic()
        async with self._turn:
            if self._began_at < asked_at:
                began_at = time.monotonic()
                self.latest, self._cost_s = await in_thread(_taken, self.latest)
                self._began_at, self._ended_at = began_at, time.monotonic()
            return self.latest

    async def take_soon(self) -> tree.Snapshot:
        """As ``take``, but seldom enough that looking costs a few per cent of the time at most."""
        while True:
            if not self._is_coming:
                return await self._take_late()
            # Somebody is about to take it for all of us; a future each, or one who is cancelled
            # would take it from the others.
            waiter: asyncio.Future[tree.Snapshot | None]
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            snapshot = await waiter
            if snapshot is not None:
                return snapshot

    async def _take_late(self) -> tree.Snapshot:
        self._is_coming = True
        waiters, snapshot = self._waiters, None
        try:
            pause = max(_LOOK_EVERY_S, _LOOK_SHARE * self._cost_s)
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._ended_at + pause - time.monotonic()):
                        await self.is_pressed.wait()
            finally:
                # Who asks from now on wants a look that begins later.
                self._waiters = []
                self._is_coming = False
            snapshot = await self.take()
            return snapshot
        finally:
            # Without one, where we were cancelled, they see to it themselves.
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(snapshot)


def _taken(latest: tree.Snapshot) -> tuple[tree.Snapshot, float]:
    """Return the next look, and what it cost: on a busy machine less than the time it took."""
    began_s = time.thread_time()
    return tree.take_snapshot(latest), time.thread_time() - began_s
