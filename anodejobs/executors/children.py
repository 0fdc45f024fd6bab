"""How asyncio watches our children: through pidfds, and telling the truth.

Python 3.11 starts a thread for each child unless the application has chosen another watcher, and
up to 3.13 every watcher of asyncio makes up an exit code where somebody else has reaped the child.
Ours does neither. The application's own choice is left alone: ours stands only for the one step of
``create_subprocess_exec`` that looks the watcher up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from anodejobs.executors.pidfds import REAPED_ELSEWHERE, exit_code


class ChildWatch:
    """Watches the children that are started while it is entered, in one step of a coroutine."""

    def __init__(self) -> None:
        self._watcher = _PidfdWatcher(asyncio.get_running_loop())
        self._theirs: asyncio.AbstractEventLoopPolicy | None = None

    def __enter__(self) -> None:
        # Setting the watcher itself would close the one there is.
        self._theirs = asyncio.get_event_loop_policy()
        asyncio.set_event_loop_policy(_WatchedPolicy(self._theirs, self._watcher))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.set_event_loop_policy(self._theirs)
        self._theirs = None

    def close(self) -> None:
        """Stop watching, the children that still run included. Idempotent."""
        if self._theirs is not None:  # entered for good
            self.__exit__(None, None, None)
        self._watcher.close()


class _PidfdWatcher:
    """Tells exit codes, or that there is none to be had.

    Of ``asyncio.AbstractChildWatcher``, which is deprecated, it has what is asked of one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pidfds: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def is_active(self) -> bool:
        return True

    def add_child_handler(self, pid: int, callback: Callable[..., object], *args: Any) -> None:
        try:
            pidfd = self._pidfds[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            self._loop.call_soon(callback, pid, REAPED_ELSEWHERE, *args)
            return
        self._loop.add_reader(pidfd, self._reap, pid, callback, *args)

    def _reap(self, pid: int, callback: Callable[..., object], *args: Any) -> None:
        pidfd = self._pidfds[pid]
        try:
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            told = exit_code(pidfd)
            code = REAPED_ELSEWHERE if told is None else told
        self.remove_child_handler(pid)
        callback(pid, code, *args)

    def remove_child_handler(self, pid: int) -> bool:
        pidfd = self._pidfds.pop(pid, None)
        if pidfd is None:
            return False
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        return True

    def close(self) -> None:
        for pid in list(self._pidfds):
            self.remove_child_handler(pid)


class _WatchedPolicy(asyncio.AbstractEventLoopPolicy):
    """The application's policy in everything but the child watcher."""

    def __init__(self, theirs: asyncio.AbstractEventLoopPolicy, watcher: _PidfdWatcher) -> None:
        self._theirs = theirs
        self._watcher = watcher

    def get_event_loop(self) -> asyncio.AbstractEventLoop:
        return self._theirs.get_event_loop()

    def set_event_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._theirs.set_event_loop(loop)

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return self._theirs.new_event_loop()

    def get_child_watcher(self) -> Any:
        return self._watcher

    def set_child_watcher(self, watcher: Any) -> None:
        self._theirs.set_child_watcher(watcher)
