"""Signals to all processes of an attempt, above all those that end them.

There may be more of them after each look, so it is looked again until there are none.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from anodejobs.events import Attempt
from anodejobs.executors import cgroups, tree
from anodejobs.executors.deaths import all_gone
from anodejobs.executors.looks import Looks
from anodejobs.threads import in_thread

_STOP_PATIENCE_S = 1.0
"""How long it may take until all have stopped whom SIGSTOP has reached: somebody may wake them."""
KILL_PATIENCE_S = 5.0
"""How long processes may take to die of SIGKILL before they count as unstoppable."""


@dataclass(slots=True, eq=False)
class _Stop:
    """The ending of an attempt's processes, shared by all who ask for it."""

    grace: float
    kill_at: float = math.inf
    """Set when they are asked, which may be long after this was."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    result: asyncio.Future[bool | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Whether all are gone; None: it was given up."""

    def hasten(self, grace: float) -> None:
        """Leave no more time than that from now on."""
        self.grace = min(self.grace, grace)
        kill_at = time.monotonic() + grace
        if kill_at < self.kill_at:
            self.kill_at = kill_at
            self.wake.set()


class Endings:
    """Ends and signals attempts, whoever has started them.

    ``before_end`` is awaited with the processes that are about to be ended, and ``on_ending`` is
    called when an attempt's main process has been reached by what ends it.
    """

    def __init__(
        self,
        looks: Looks,
        before_end: Callable[[Attempt, list[tree.Process]], Awaitable[None]],
        on_ending: Callable[[Attempt], None],
    ) -> None:
        self._looks = looks
        self._before_end = before_end
        self._on_ending = on_ending
        self._stops: dict[str, _Stop] = {}

    async def stop(
        self,
        attempt: Attempt,
        grace: float,
        *,
        may_hasten: bool = True,
        left: Sequence[tree.Process] = (),
    ) -> bool:
        """As ``Executor.stop``; all who ask for it share it.

        ``left``: what was found of it when its main process had just ended.
        """
        while under_way := self._stops.get(attempt.token):
            if may_hasten:
                under_way.hasten(grace)
            result = await asyncio.shield(under_way.result)
            if result is not None:
                return result
            # Who did it was cancelled, or has failed: the first of the others goes on.
        stop = self._stops[attempt.token] = _Stop(grace)
        is_gone: bool | None = None
        try:
            is_gone = await self._end_all(attempt, stop, left)
        finally:
            del self._stops[attempt.token]
            stop.result.set_result(is_gone)
        return is_gone

    async def _end_all(self, attempt: Attempt, stop: _Stop, left: Sequence[tree.Process]) -> bool:
        """Ask all processes to end, those that appear meanwhile too; then make them."""
        asked: set[tuple[int, float]] = set()
        members = list(left)
        known = {member.key: member for member in left}
        give_up_at = math.inf
        while members := await self._members(attempt, known, members):
            if not asked:
                await self._before_end(attempt, members)
                # No sooner: on a busy machine all this may take longer than the grace.
                stop.kill_at = time.monotonic() + stop.grace
            now = time.monotonic()
            if now >= give_up_at:
                return False
            if now >= stop.kill_at:
                give_up_at = min(give_up_at, now + KILL_PATIENCE_S)
                self._send_each(attempt, members, signal.SIGKILL)
                if attempt.cgroup is not None:
                    cgroups.kill(attempt.cgroup)
                await all_gone(members, stop.wake, until=give_up_at)
            else:
                self._send_each(attempt, [m for m in members if m.key not in asked], signal.SIGTERM)
                # Stopped processes could not answer.
                self._send_each(attempt, members, signal.SIGCONT)
                await all_gone(members, stop.wake, until=stop.kill_at)
            asked.update(member.key for member in members)
        return await _has_emptied(attempt)

    async def _members(
        self,
        attempt: Attempt,
        known: dict[tuple[int, float], tree.Process],
        before: list[tree.Process],
    ) -> list[tree.Process]:
        """Return the processes that there are now, those that are known by now among them.

        ``before`` are those of the last look: who was in the session then, and has gone, may have
        left somebody there.
        """
        was_there = any(member.session == attempt.pid for member in before)
        snapshot = await self._looks.take()
        members = snapshot.members(attempt, has_just_ended=was_there, known=known.values())
        known.update((member.key, member) for member in members)
        return members

    def _send_each(self, attempt: Attempt, members: list[tree.Process], signum: int) -> None:
        for member in members:
            is_ending = tree.send(member, signum) and signum != signal.SIGCONT
            if is_ending and member.pid == attempt.pid:
                self._on_ending(attempt)

    async def signal(self, attempt: Attempt, signum: int) -> None:
        """As ``Executor.signal``; SIGSTOP leaves nobody who goes on."""
        reached: dict[tuple[int, float], bool] = {}
        give_up_at = time.monotonic() + _STOP_PATIENCE_S
        while True:
            snapshot = await self._looks.take()
            members = snapshot.members(attempt)
            fresh = [member for member in members if member.key not in reached]
            for member in fresh:
                reached[member.key] = tree.send(member, signum)
            # The tree is still when a look finds nobody new, and all of them stopped: who was
            # forking when the signal came does that to its end, after a look maybe.
            is_still = not fresh and all(m.has_stopped or not reached[m.key] for m in members)
            if signum != signal.SIGSTOP or is_still or time.monotonic() > give_up_at:
                return


async def _has_emptied(attempt: Attempt) -> bool:
    """Return whether nothing is left of which no look can tell; it is killed."""
    if attempt.cgroup is None:
        return True
    return await in_thread(cgroups.end, attempt.cgroup, patience_s=KILL_PATIENCE_S)
