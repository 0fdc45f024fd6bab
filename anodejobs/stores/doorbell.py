"""How processes that share a directory tell one another "something changed", without polling.

Every process keeps a FIFO of its own in a folder; ringing writes one byte to each of the others.
The byte means nothing but "look": a full FIFO already says so, and loses nothing. A FIFO without
a reader was left by a process that died, and whoever meets it clears it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

_CLOCK_TICK_NS = 50_000_000
"""Two changes of a folder less than a tick of the kernel's clock apart can bear the same time."""


class Doorbell:
    """This process's bell, and its way to ring those of others. ``ring`` is safe in any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._fd: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._others: list[Path] = []
        self._listed_at_ns = -1

    def open(self, on_ring: Callable[[], None]) -> None:
        """Call ``on_ring`` on the running event loop whenever another process has rung."""
        self._loop = asyncio.get_running_loop()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden = self._own.with_name(f".{self._own.name}")
        os.mkfifo(hidden, 0o600)
        try:
            # For writing too, so that it never reads end-of-file when a ringer has gone.
            self._fd = fd = os.open(hidden, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            # Seen by others only now that it has a reader: without one they would clear it away.
            hidden.rename(self._own)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise

        def answer() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 65536)
            on_ring()

        self._loop.add_reader(fd, answer)

    def ring(self) -> None:
        """Ring all other bells in the folder, as far as that is possible.

        What was committed is committed: a bell that cannot be rung is no reason to say otherwise.
        """
        with contextlib.suppress(OSError):
            for path in self._listed():
                self._ring_one(path)

    def _listed(self) -> list[Path]:
        changed_at_ns = os.stat(self._folder).st_mtime_ns
        if changed_at_ns != self._listed_at_ns:
            others = (entry.name for entry in os.scandir(self._folder))
            self._others = [
                self._folder / name
                for name in others
                if name != self._own.name and not name.startswith(".")
            ]
            settled = time.time_ns() - changed_at_ns > _CLOCK_TICK_NS
            self._listed_at_ns = changed_at_ns if settled else -1
        return self._others

    def _ring_one(self, path: Path) -> None:
        """Ring a bell; what keeps it from ringing is its owner's trouble, not the ringer's."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:
                path.unlink(missing_ok=True)
            return
        try:
            with contextlib.suppress(BlockingIOError):
                os.write(fd, b"!")
        finally:
            os.close(fd)

    def close(self) -> None:
        """Take the bell down, also where it could not be opened to the end. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.remove_reader(fd)
        with contextlib.suppress(OSError):  # whoever rings it next clears it away
            self._own.unlink(missing_ok=True)
        os.close(fd)
