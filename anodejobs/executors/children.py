"""Children of this process: how each ended, and the truth about it.

Up to Python 3.13 asyncio makes up an exit code where somebody else has reaped the child. Here it is
then what the kernel tells through a pidfd, or unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import signal
from abc import ABC, abstractmethod

from anodejobs.executors import tree
from anodejobs.executors.pidfds import exit_code


class Child(ABC):
    """A process that we have started."""

    __slots__ = ()

    pid: int
    rusage: resource.struct_rusage | None
    """What it had used, with all that it has waited for; None while it lives, or unknown."""

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Return whether its end has not been seen."""

    @abstractmethod
    async def wait(self) -> int | None:
        """Return the exit code once it has ended, None where nobody can tell.

        May be asked any number of times; cancelling costs nothing.
        """

    def kill(self) -> None:
        """Kill it, unless its end was seen: nobody else has its pid before."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):  # somebody else has reaped it
                os.kill(self.pid, signal.SIGKILL)

    @abstractmethod
    def let_go(self) -> None:
        """Close what it has open for itself, though it may run on. Idempotent."""


class Children:
    """Reaps the children that it is shown, with one pidfd each in an epoll of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._alive: dict[int, _OwnChild] = {}
        """By pidfd."""
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, pid: int) -> Child:
        """Return the child, whoever may have reaped it by now.

        Raises OSError where there is no descriptor for it: it runs, and is not watched.
        """
        child = _OwnChild(pid)
        try:
            # Many have ended by now, where many are started at once.
            reaped, status, rusage = os.wait4(pid, os.WNOHANG)
            # Of one that has asked to be traced by its parent we are told of stops, too.
            if reaped and not os.WIFSTOPPED(status):
                child.end(os.waitstatus_to_exitcode(status), rusage)
                return child
            pidfd = os.pidfd_open(pid)
        except (ChildProcessError, ProcessLookupError):
            # Somebody else was quicker; what has the pid by now, if anything has, is a stranger.
            child.end(None, None)
            return child
        try:
            # Told of once each time: when it dies, and when a tracer that kept it from us lets go.
            self._epoll.register(pidfd, select.EPOLLIN | select.EPOLLET)
        except BaseException:
            os.close(pidfd)
            raise
        self._alive[pidfd] = child
        return child

    def _look(self) -> None:
        for pidfd, _ in self._epoll.poll(0):
            child = self._alive[pidfd]
            rusage: resource.struct_rusage | None = None
            try:
                reaped, status, rusage = os.wait4(child.pid, os.WNOHANG)
                if not reaped:  # a debugger has it, dead as it is, and may sit at its prompt
                    continue
                code: int | None = os.waitstatus_to_exitcode(status)
            except ChildProcessError:
                code = exit_code(pidfd)
            del self._alive[pidfd]
            # Closing alone would not do: a child that is being spawned still has a copy.
            self._epoll.unregister(pidfd)
            os.close(pidfd)
            child.end(code, rusage)

    def close(self) -> None:
        """Stop watching, the children that still run included. Idempotent."""
        if self._epoll.closed:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        for pidfd in self._alive:
            os.close(pidfd)
        self._alive.clear()


class _OwnChild(Child):
    __slots__ = ("_code", "_has_ended", "_waiters", "pid", "rusage")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.rusage = None
        self._code: int | None = None
        self._has_ended = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    @property
    def is_alive(self) -> bool:
        return not self._has_ended

    async def wait(self) -> int | None:
        if not self._has_ended:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters += (waiter,)
            await waiter
        return self._code

    def let_go(self) -> None:
        """Do nothing: its pidfd is closed when it has ended, or with those of all."""

    def end(self, code: int | None, rusage: resource.struct_rusage | None) -> None:
        self._code, self.rusage, self._has_ended = code, rusage, True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class AsyncioChild(Child):
    """A child that asyncio watches; its pidfd contradicts the exit code that asyncio makes up."""

    _INVENTED = 255

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self.rusage = None  # asyncio does not ask for it
        self._process = process
        self._pidfd: int | None = None
        with contextlib.suppress(OSError):  # descriptors lack
            started = tree.start_time(self.pid)
            # None where it has ended already: then there is nothing to be contradicted.
            self._pidfd = None if started is None else tree.open_pidfd(self.pid, started)

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int | None:
        code = await self._process.wait()
        if code != self._INVENTED:
            return code
        told = None if self._pidfd is None else exit_code(self._pidfd)
        if told is None and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            return None
        return code if told is None else told

    def let_go(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
