"""What running attempts use, seen by looking at them: what nobody tells at their end.

A process's highest memory is kept by the kernel for as long as it lives, so that looks may be few:
the first after a second, then ever more seldom, and all of them take half a hundredth of a
processor at most. An attempt that is over before the first costs nothing but being noted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush

from anodejobs.events import Attempt
from anodejobs.executors import tree
from anodejobs.threads import begun_in_thread, in_thread

LOG = logging.getLogger("anodejobs")

FIRST_AFTER_S = 1.0
_TOGETHER_S = 0.5
"""What is due so soon is looked at with what is due now."""
_LONGEST_PAUSE_S = 30.0
_SHARE = 200
"""Looking takes at most this part of a processor's time."""

_NOTHING = tree.Sample()
_Look = tuple[list[tree.Sample], float]


@dataclass(slots=True, eq=False)
class _Watched:
    attempt: Attempt
    since: float
    seen: tree.Sample = _NOTHING

    def add(self, sample: tree.Sample) -> None:
        self.seen = tree.Sample(
            cpu_seconds=max(self.seen.cpu_seconds, sample.cpu_seconds),
            memory_bytes=max(self.seen.memory_bytes, sample.memory_bytes),
        )


class Samples:
    """Looks at attempts from ``watch`` to ``forget``, with a timer and no task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: dict[str, _Watched] = {}
        self._due: list[tuple[float, str]] = []
        """When each is to be looked at; those that are forgotten stay until then."""
        self._timer: asyncio.TimerHandle | None = None
        self._look: asyncio.Future[_Look] | None = None
        self._rested_at = 0.0

    def watch(self, attempt: Attempt) -> None:
        """Look at the attempt from now on."""
        now = self._loop.time()
        self._watched[attempt.token] = _Watched(attempt, now)
        heappush(self._due, (now + FIRST_AFTER_S, attempt.token))
        self._arm()

    async def add(self, token: str, members: Sequence[tree.Process]) -> None:
        """Look at what are the processes of the attempt at this moment, if it is watched."""
        watched = self._watched.get(token)
        if watched is not None:
            with contextlib.suppress(OSError):  # what cannot be seen now does not count
                watched.add(await in_thread(tree.sample, members))

    def forget(self, token: str) -> tree.Sample:
        """Return the most that was seen at one look of each, zeros where there was none."""
        watched = self._watched.pop(token, None)
        return watched.seen if watched is not None else _NOTHING

    def close(self) -> None:
        """Look no more. Idempotent."""
        self._watched.clear()
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._look is not None:
            return
        while self._due and self._due[0][1] not in self._watched:
            heappop(self._due)
        if not self._due:
            return
        at = max(self._due[0][0], self._rested_at)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()  # what has begun since is due sooner
        self._timer = self._loop.call_at(at, self._look_at_due)

    def _look_at_due(self) -> None:
        self._timer = None
        soon = self._loop.time() + _TOGETHER_S
        due: list[_Watched] = []
        while self._due and self._due[0][0] <= soon:
            watched = self._watched.get(heappop(self._due)[1])
            if watched is not None:
                due.append(watched)
        if due:
            attempts = [watched.attempt for watched in due]
            self._look = begun_in_thread(_looked_at, attempts)
            self._look.add_done_callback(partial(self._looked, due))
        else:
            self._arm()

    def _looked(self, due: list[_Watched], look: asyncio.Future[_Look]) -> None:
        self._look = None
        now = self._loop.time()
        if error := look.exception():
            LOG.error("what running jobs use could not be seen", exc_info=error)
        else:
            samples, took_s = look.result()
            self._rested_at = now + _SHARE * took_s
            for watched, sample in zip(due, samples, strict=True):
                watched.add(sample)
        for watched in due:
            pause_s = min(max(FIRST_AFTER_S, now - watched.since), _LONGEST_PAUSE_S)
            heappush(self._due, (now + pause_s, watched.attempt.token))
        self._arm()


class OwnPeak:
    """The most memory that this process has had, which the kernel counts as its children's too.

    Until a child is another program it shares our memory, and that stays the highest it ever had:
    what is told of it at its end says something only where it is more.
    """

    _MARGIN = 4 << 20
    """The kernel counts pages roughly while many processors change their number."""

    def __init__(self) -> None:
        self._bytes = 0

    def above(self, rusage: resource.struct_rusage | None) -> int:
        """Return the most memory of a child or of what it waited for; 0 where that is unknown."""
        if rusage is None or not tree.IS_LINUX:
            return 0
        found = rusage.ru_maxrss * 1024
        if found > self._bytes:
            # Read as seldom as ours grows, or a child was large.
            self._bytes = tree.peak_memory("self") + self._MARGIN
        return found if found > self._bytes else 0


def _looked_at(attempts: list[Attempt]) -> _Look:
    began_at = time.thread_time()
    # Kept until the next look it would spare time, and be most of the memory of a job.
    snapshot = tree.take_snapshot()
    samples = [tree.sample(snapshot.members(attempt)) for attempt in attempts]
    return samples, time.thread_time() - began_at
