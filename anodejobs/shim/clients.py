"""The shim's end of a connection: who is there, and in what order they are told what."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import ExitStack
from typing import Protocol

from anodejobs.executors import tree
from anodejobs.executors.base import Stream
from anodejobs.shim.peers import is_friend, peer
from anodejobs.shim.protocol import Lines, Message, begin_of, check_request, decoded, encoded

LOG = logging.getLogger("anodejobs")

_MOST_GROWN = 10_000
"""Of how many logs an application that is slow to listen is told the latest."""


class Office(Protocol):
    """Who does what applications ask for."""

    def hear(self, client: Client, message: Message) -> None:
        """Do what an application asks for."""

    def lose(self, client: Client) -> None:
        """Take note that an application has gone."""

    def flush_soon(self, client: Client) -> None:
        """Have the application's messages flushed when this turn of the loop is over."""


class Client(asyncio.Protocol):
    """One application, as long as it is connected."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self.env: dict[str, str] = {}
        self.wants_growth = False
        self.follows: dict[int, tuple[LogReader, ExitStack]] = {}
        self.is_greeted = False
        self.is_full = False
        """Whether it does not read what it is told."""
        self.knows_tombs: int = 0
        self._lines = Lines()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._growth: dict[tuple[str, Stream], int] = {}
        self._grown: set[int] = set()
        self._pidfd: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        pid, uid = peer(transport.get_extra_info("socket"))
        if not is_friend(uid):
            LOG.error("user %s has no business here", uid)
            transport.abort()
            return
        if pid and tree.HAS_PIDFDS:
            # Its children may hold the connection open after it has died.
            try:
                self._pidfd = os.pidfd_open(pid)
            except OSError:
                transport.abort()
                return
            asyncio.get_running_loop().add_reader(self._pidfd, transport.abort)

    def data_received(self, data: bytes) -> None:
        try:
            lines = self._lines.feed(data)
            for line, message in zip(lines, decoded(lines), strict=True):
                check_request(message)
                # A look is free: the doctor takes one, and nobody's jobs are given to it.
                if not (self.is_greeted or message["do"] in ("hello", "held")):
                    raise ValueError("it has not said who it is")
                if "begin" in message:
                    message["line"] = begin_of(line)
                self._office.hear(self, message)
        except Exception:
            LOG.exception("an application makes no sense; it is cut off")
            self.hang_up()

    def pause_writing(self) -> None:
        # Not listened to until it listens: its answers would have to be kept.
        self.is_full = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_full = False
        if self._transport is not None:
            self._transport.resume_reading()
        self._office.flush_soon(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        for _, following in self.follows.values():
            following.close()
        self._transport = None
        self._office.lose(self)

    def send(self, message: Message) -> None:
        """Send the message when what is in the journal by now has been written."""
        self._out.append(encoded(message))
        self._office.flush_soon(self)

    def send_line(self, text: str) -> None:
        """As ``send``, a message that is encoded already."""
        self._out.append(f"{text}\n".encode("ascii"))
        self._office.flush_soon(self)

    def tell_growth(self, job_id: str, stream: Stream, offset: int) -> None:
        """Tell how long a log is; only the latest word where the application is slow to listen.

        Of the last logs only: it may be stopped while jobs come and go.
        """
        self._growth.pop((job_id, stream), None)
        self._growth[job_id, stream] = offset
        if len(self._growth) > _MOST_GROWN:
            del self._growth[next(iter(self._growth))]
        self._office.flush_soon(self)

    def tell_grown(self, number: int) -> None:
        """Tell a follower that there is more for it."""
        self._grown.add(number)
        self._office.flush_soon(self)

    def flush(self) -> None:
        """Write what is to be sent."""
        if self._transport is None:
            return
        if self._growth and not self.is_full:
            growth = [[job, stream, end] for (job, stream), end in self._growth.items()]
            self._out.append(encoded({"growth": growth}))
            self._growth.clear()
        if self._grown and not self.is_full:
            self._out.append(encoded({"grown": list(self._grown)}))
            self._grown.clear()
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def hang_up(self) -> None:
        """Cut the application off; it asks the next shim, if it asks again."""
        if self._transport is not None:
            self._transport.abort()


class LogReader:
    """A follower in an application, as far as a log file must know it."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
