"""The application's end of a connection to a shim: requests, answers, and what it is told."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from anodejobs.errors import ExecutorError
from anodejobs.shim.protocol import Lines, Message, check_length, decoded, encoded

_LONGEST_SOCKET_PATH = 100
"""In bytes; the system takes a few more."""


class Link(asyncio.Protocol):
    """A connection to a shim.

    ``on_told`` hears each message that answers no request, ``on_lost`` of the end of the
    connection. Of ``open_links`` it is one from when it is made until it is closed.
    """

    def __init__(
        self,
        on_told: Callable[[Link, Message], None],
        on_lost: Callable[[Link], None],
        open_links: set[Link],
    ) -> None:
        self._on_told = on_told
        self._on_lost = on_lost
        self._open_links = open_links
        self._loop = asyncio.get_running_loop()
        self._lines = Lines()
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._number = 0
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.is_lost = False
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when the connection is closed, whoever has closed it."""
        self.pid: int | None = None
        """The shim's, once it was greeted."""
        self.env: dict[str, str] | None = None
        """The environment that the shim was last sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No isinstance: uvloop's transports are not asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._open_links.add(self)

    def data_received(self, data: bytes) -> None:
        for message in decoded(self._lines.feed(data)):
            number = message.pop("re", None)
            if number is None:
                if "age" in message:  # by this we say that we have read all before it
                    self.send({"do": "age", "age": message["age"]})
                else:
                    self._on_told(self, message)
                continue
            reply = self._replies.pop(number, None)
            if reply is not None and not reply.done():
                reply.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._open_links.discard(self)
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(ConnectionResetError("the shim has gone"))
        self._replies.clear()
        self.gone.set_result(None)
        self._on_lost(self)

    def send(self, message: Message) -> None:
        """Send the message with all others of this turn of the loop. Raises TooLong."""
        self.send_line(encoded(message))

    def send_line(self, line: bytes) -> None:
        """Send a message that is encoded already. Raises TooLong."""
        check_length(line)
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(line)

    def _flush(self) -> None:
        if self._transport is not None and not self.is_lost:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    async def ask(self, request: str) -> Message:
        """Return the answer to a request, which has no closing brace and no id yet.

        Raises ConnectionError where the shim has gone, before or since, ExecutorError where it has
        failed to do what it was asked for, and TooLong.
        """
        if self.is_lost:
            raise ConnectionResetError("the shim has gone")
        self._number += 1
        number = self._number
        reply = self._replies[number] = self._loop.create_future()
        try:
            self.send_line(f'{request},"id":{number}}}\n'.encode("ascii"))
            answer: Message = await reply
        finally:
            self._replies.pop(number, None)
        if "error" in answer:
            raise ExecutorError(answer["error"])
        return answer

    def close(self) -> None:
        """Hang up, when what was sent has arrived."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Hang up at once."""
        if self._transport is not None:
            self._transport.abort()


@contextmanager
def connected(folder: Path, name: str) -> Iterator[socket.socket]:
    """Give a socket that is connected; what does not take it over leaves it to be closed."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        path = os.fspath(folder / name)
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            connection.connect(path)
        else:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{fd}/{name}")
            finally:
                os.close(fd)
        yield connection
    except BaseException:
        connection.close()
        raise
