"""Reaping what jobs leave to a shim that is the reaper of all that descends from it.

A dead orphan is harmless, but holds its pid. Nothing that asyncio may yet ask for must be reaped:
its exit code would be gone. So only that is reaped which was dead and unknown in two looks, with
every start returned that was under way at the first of them.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable

from anodejobs.executors import tree

LOG = logging.getLogger("anodejobs")

_PR_SET_CHILD_SUBREAPER = 36


def become_reaper() -> None:
    """Have all that descends from this process handed to it when the parent dies (Linux)."""
    if not tree.IS_LINUX:
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        LOG.warning("no reaper of orphans: %s", os.strerror(ctypes.get_errno()))


class OrphanReaper:
    """``sweep`` reaps what the sweep before has seen dead already.

    ``known`` gives the pids of children that have an owner, ``starting`` what is being spawned.
    """

    def __init__(self, known: Callable[[], set[int]], starting: Callable[[], set[str]]) -> None:
        self._known = known
        self._starting = starting
        self._seen: set[tuple[int, float]] = set()
        self._started_then: set[str] = set()

    def sweep(self) -> None:
        """Look for dead orphans. Takes a few microseconds where no child is dead."""
        if not tree.IS_LINUX:
            return
        try:
            is_one_dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # there are no children
            is_one_dead = None
        known = self._known()
        dead = tree.orphans(os.getpid()) if is_one_dead is not None else set()
        dead = {(pid, started) for pid, started in dead if pid not in known}
        if not self._started_then & self._starting():
            for pid, _ in dead & self._seen:
                os.waitpid(pid, os.WNOHANG)
            dead -= self._seen
            self._started_then = self._starting()
            self._seen = dead
