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

# From <linux/pidfd.h>: _IOWR(0xFF, 11, struct pidfd_info), 64 bytes in its first version.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_EXIT_STATUS_OFFSET = 60

_REAP_PATIENCE_S = 5.0
"""How long a dead process may stay unreaped: an init that never reaps would hold us for ever."""
_RETRY_S = 0.2
"""After how long it is tried again to hear of an end."""


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
        self._epoll: select.epoll | None = None
        self._deaths: dict[int, asyncio.Future[None]] = {}
        self._reaps: dict[int, asyncio.Future[None]] = {}

    async def wait(self, fd: int) -> int | None:
        """Return the exit code once the process has died, None where it cannot be known.

        Waits for the reaping, which is when the kernel can tell, but not for ever.
        """
        epoll = await self._registered(fd)
        died = self._deaths[fd] = self._loop.create_future()
        reaped = self._reaps[fd] = self._loop.create_future()
        try:
            await died
            if not reaped.done():
                epoll.modify(fd, select.EPOLLONESHOT)
                await asyncio.wait((reaped,), timeout=_REAP_PATIENCE_S)
        finally:
            del self._deaths[fd], self._reaps[fd]
            if not epoll.closed:
                epoll.unregister(fd)
        return exit_code(fd)

    async def _registered(self, fd: int) -> select.epoll:
        """Return the epoll once it looks at the pidfd, which forgets nothing until then."""
        while True:
            try:
                if self._epoll is None:
                    epoll = select.epoll()
                    self._loop.add_reader(epoll.fileno(), self._look, epoll)
                    self._epoll = epoll
                # Readable for as long as nobody reaps it: asked for once, or the loop would spin.
                # The hang-up needs no asking.
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
                return self._epoll
            except OSError:  # descriptors lack, or memory
                await asyncio.sleep(_RETRY_S)

    def _look(self, epoll: select.epoll) -> None:
        for fd, events in epoll.poll(0):
            futures = [self._deaths.get(fd)]
            if events & select.EPOLLHUP:
                futures.append(self._reaps.get(fd))
            for future in futures:
                if future is not None and not future.done():
                    future.set_result(None)

    def close(self) -> None:
        """Stop waiting. Idempotent."""
        if self._epoll is not None and not self._epoll.closed:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
