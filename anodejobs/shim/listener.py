"""Where applications connect: a Unix socket in the shim's folder, which the shim works in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

SOCKET = "socket"
"""Without its folder: the path of a socket must be short."""
_BACKLOG = 128


def listening() -> socket.socket:
    """Return a socket that applications can connect to; it replaces one that was left behind."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(SOCKET)
        os.chmod(SOCKET, 0o600)  # no umask: that is the jobs', which are spawned meanwhile
        listener.listen(_BACKLOG)  # nobody could connect before
    except OSError:
        listener.close()
        raise
    return listener


class Listener:
    """Has ``make`` give a protocol for each application that connects."""

    def __init__(self, make: Callable[[], asyncio.Protocol]) -> None:
        self._make = make
        self._server: asyncio.Server | None = None

    async def open(self, listener: socket.socket) -> None:
        """Accept who connects to the socket, from now on."""
        # The path stays: when this ends it may be another shim's.
        kept: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._make, sock=listener, **kept)

    async def open_again(self) -> None:
        """Be there for new applications though somebody has removed the socket."""
        if not os.path.lexists(SOCKET):
            with contextlib.suppress(OSError):  # the folder has gone, too
                listener = listening()
                self.close()
                await self.open(listener)

    def close(self) -> None:
        """Accept nobody any more; who is connected stays so. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
