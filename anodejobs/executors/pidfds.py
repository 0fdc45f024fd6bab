"""Exits of processes that are not our children, as the kernel tells them through pidfds (Linux).

A pidfd becomes readable when its process dies, and hangs up when it has been reaped. From kernel
6.15 on it then gives the exit status to anyone who held it before: PIDFD_GET_INFO.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import struct
import sys
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

# From <linux/pidfd.h>: _IOWR(0xFF, 11, struct pidfd_info), 64 bytes in its first version.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_EXIT_STATUS_OFFSET = 60

_REAP_PATIENCE_S = 5.0
"""How long a dead process may stay unreaped: an init that never reaps would hold us for ever."""


def exit_code(fd: int) -> int | None:
    """Return how the process ended, None where it was not reaped yet or the kernel can't tell."""
    info = bytearray(64)
    struct.pack_into("=Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(fd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    (mask,) = struct.unpack_from("=Q", info, 0)
    if not mask & _PIDFD_INFO_EXIT:
        return None
    (status,) = struct.unpack_from("=i", info, _EXIT_STATUS_OFFSET)
    return os.waitstatus_to_exitcode(status)


class Reapings:
    """Waits for the deaths of processes, in one epoll on the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._deaths: dict[int, asyncio.Future[None]] = {}
        self._reaps: dict[int, asyncio.Future[None]] = {}
        self._loop.add_reader(self._epoll.fileno(), self._look)

    async def wait(self, fd: int) -> int | None:
        """Return the exit code once the process has died, None where it cannot be known.

        Waits for the reaping, which is when the kernel can tell, but not for ever.
        """
        died = self._deaths[fd] = self._loop.create_future()
        reaped = self._reaps[fd] = self._loop.create_future()
        # Readable for as long as nobody reaps it: asked for once, or the loop would spin. The
        # hang-up needs no asking.
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        try:
            await died
            if not reaped.done():
                self._epoll.modify(fd, select.EPOLLONESHOT)
                await asyncio.wait((reaped,), timeout=_REAP_PATIENCE_S)
        finally:
            del self._deaths[fd], self._reaps[fd]
            if not self._epoll.closed:
                self._epoll.unregister(fd)
        return exit_code(fd)

    def _look(self) -> None:
        for fd, events in self._epoll.poll(0):
            futures = [self._deaths.get(fd)]
            if events & select.EPOLLHUP:
                futures.append(self._reaps.get(fd))
            for future in futures:
                if future is not None and not future.done():
                    future.set_result(None)

    def close(self) -> None:
        """Stop waiting. Idempotent."""
        if not self._epoll.closed:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


class ChildWatch:
    """Has asyncio watch our children through pidfds, as it does by itself from Python 3.12 on.

    Python 3.11 starts a thread for each child unless the application has chosen another watcher,
    and that choice is the application's: ours stands only for the one step of
    ``create_subprocess_exec`` that looks it up.
    """

    def __init__(self) -> None:
        self._watcher: _PidfdWatcher | None = None
        loop = asyncio.get_running_loop()
        is_own_kind = isinstance(loop, asyncio.SelectorEventLoop)
        if sys.version_info < (3, 12) and is_own_kind and hasattr(os, "pidfd_open"):
            self._watcher = _PidfdWatcher(loop)

    @property
    def tells_truth(self) -> bool:
        """Whether it tells REAPED_ELSEWHERE where asyncio would make up an exit code."""
        return self._watcher is not None

    async def over(self, start: Coroutine[Any, Any, Result]) -> Result:
        """Await a coroutine whose first step looks the watcher up."""
        if self._watcher is None:
            return await start
        first: _FirstStep[Result] = _FirstStep(start, self._watcher)
        return await first

    def close(self) -> None:
        """Stop watching, the children that still run included. Idempotent."""
        if self._watcher is not None:
            self._watcher.close()


REAPED_ELSEWHERE = 1 << 16
"""Told in place of an exit code that somebody else has taken: asyncio would make one up."""


class _PidfdWatcher(asyncio.AbstractChildWatcher):
    """Tells exit codes, or that there is none to be had."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pidfds: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def is_active(self) -> bool:
        return True

    def attach_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        raise NotImplementedError("it belongs to the loop it was made on")

    def add_child_handler(  # type: ignore[override]  # typeshed ties the arguments together
        self, pid: int, callback: Callable[..., object], *args: Any
    ) -> None:
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


class _FirstStep(Generator[Any, Any, Result]):
    """Runs a coroutine, the first step of it under another child watcher."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Result], watcher: asyncio.AbstractChildWatcher
    ) -> None:
        self._coroutine = coroutine
        self._watcher: asyncio.AbstractChildWatcher | None = watcher

    def __await__(self) -> Generator[Any, Any, Result]:
        return self

    def send(self, value: Any) -> Any:
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return self._coroutine.send(value)
        # Setting the watcher itself would close the one there is.
        theirs = asyncio.get_event_loop_policy()
        asyncio.set_event_loop_policy(_WatchedPolicy(theirs, watcher))
        try:
            return self._coroutine.send(value)
        finally:
            asyncio.set_event_loop_policy(theirs)

    def throw(self, *args: Any) -> Any:
        return self._coroutine.throw(*args)


class _WatchedPolicy(asyncio.AbstractEventLoopPolicy):
    """The application's policy in everything but the child watcher."""

    def __init__(
        self, theirs: asyncio.AbstractEventLoopPolicy, watcher: asyncio.AbstractChildWatcher
    ) -> None:
        self._theirs = theirs
        self._watcher = watcher

    def get_event_loop(self) -> asyncio.AbstractEventLoop:
        return self._theirs.get_event_loop()

    def set_event_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._theirs.set_event_loop(loop)

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return self._theirs.new_event_loop()

    def get_child_watcher(self) -> asyncio.AbstractChildWatcher:
        return self._watcher

    def set_child_watcher(self, watcher: asyncio.AbstractChildWatcher | None) -> None:
        self._theirs.set_child_watcher(watcher)  # type: ignore[arg-type]  # None is allowed
