"""What a shim must still know when it was killed: a file of JSON lines, appended to.

Three steps of an attempt are in it: *begin*, written right before its process is spawned, what
happened to it, and *done*, when its end is on record and nothing of it is left. A start that was
begun, and of which nothing more is known, is in doubt; any other has not happened. No environment
is ever in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from anodejobs.events import Attempt
from anodejobs.executors.base import Launch
from anodejobs.regular import open_regular
from anodejobs.shim.protocol import (
    Message,
    Told,
    begin_text,
    check_begin,
    encoded,
    event_from_json,
    event_to_text,
)

LOG = logging.getLogger("anodejobs")

_COMPACT_ABOVE_BYTES = 4 * 1024 * 1024
_FORMAT = {"journal": 1}
_UNKEPT: Message = {"argv": (), "cwd": "/", "envs": {}}
"""What a process that runs has no more need of, as it is when read."""


@dataclass(slots=True, eq=False)
class Entry:
    """An attempt as the journal knows it."""

    number: int
    launch: Launch
    attempt: Attempt
    events: list[Told] = field(default_factory=list)
    line: bytes = b""
    """Its begin as it is written, where it came so; only until it is."""
    has_begun: bool = False
    """Whether its begin is written; else there is nothing of it to be kept."""


class Journal:
    """Appends to the file at ``path``, and makes it anew when it is mostly of the past.

    ``entries`` gives what is kept then, of which that counts which has begun. ``begin`` may be
    called in any thread, all else on the event loop.
    """

    def __init__(self, path: Path, entries: Callable[[], Iterable[Entry]]) -> None:
        self.path = path
        self._entries = entries
        self._lock = Lock()
        """Held by who writes; never for longer than that takes."""
        self._pending: deque[bytes] = deque()
        self._fd = -1
        self._size = 0
        self._kept = 0
        self._is_torn = False
        self._is_failing = False

    def open(self) -> None:
        """Write what is to be kept into a new file, and append to that from now on."""
        with self._lock:
            self._open()

    def _open(self) -> None:
        lines = [encoded(_FORMAT)]
        for entry in self._entries():
            if not entry.has_begun:
                continue
            lines.append(_begin(entry))
            entry.line = b""
            lines += (_told(entry.attempt.token, event_to_text(told)) for told in entry.events)
        beside = self.path.with_name(f"{self.path.name}.new")
        fd = open_regular(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            data = b"".join(lines)
            if os.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, "no space for the journal")
            os.replace(beside, self.path)
        except OSError:
            os.close(fd)
            raise
        old, self._fd = self._fd, fd
        self._pending.clear()
        self._size = self._kept = len(data)
        self._is_torn = False
        if old >= 0:
            with contextlib.suppress(OSError):  # nothing of it is kept
                os.close(old)

    def begin(self, entry: Entry) -> None:
        """Say that the process is about to be spawned. Raises OSError where that cannot be kept."""
        with self._lock:
            self._write(_begin(entry))
            entry.line = b""
            entry.has_begun = True

    def note(self, token: str, text: str) -> None:
        """Say what has happened, an event's text; kept with the next ``flush``."""
        self._pending.append(_told(token, text))

    def done(self, token: str) -> None:
        """Say that there is nothing more to be known of the attempt."""
        self._pending.append(b'{"done":"%b"}\n' % token.encode("ascii"))

    def flush(self) -> None:
        """Keep what was said, or as soon as the disk lets us."""
        try:
            # In another thread it may be being written this moment: then that is waited for.
            with self._lock:
                if not self._pending:
                    return
                self._write()
                if self._size > max(_COMPACT_ABOVE_BYTES, 4 * self._kept):
                    self._open()
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                LOG.error("the journal %s cannot be written: %s", self.path, error)
            self._is_failing = True

    def _write(self, *more: bytes) -> None:
        lines = [self._pending.popleft() for _ in range(len(self._pending))]
        data = b"".join((b"\n" if self._is_torn else b"", *lines, *more))
        # Torn until proven whole: half a line is passed over when it is read.
        self._is_torn = True
        try:
            written = os.write(self._fd, data)
            self._size += written
            if written < len(data):
                raise OSError(errno.ENOSPC, "no space for the journal")
        except OSError:
            self._pending.extendleft(reversed(lines))
            raise
        self._is_torn = False

    def close(self) -> None:
        """Keep what was said, and let go of the file. Idempotent."""
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1


def load(path: Path) -> list[Entry]:
    """Return the attempts that a journal says are not done; none where there is no journal.

    A line that was cut, or that cannot be understood, is passed over.
    """
    entries: dict[str, Entry] = {}
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return []
    for line in data.split(b"\n"):
        if not line:
            continue
        try:
            _take(entries, json.loads(line), line)
        except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError):
            LOG.warning("a line of %s makes no sense: %.80r", path, line)
    return list(entries.values())


def _take(entries: dict[str, Entry], message: Message, line: bytes) -> None:
    if "begin" in message:
        check_begin(message)
        launch = Launch.from_json({**message["launch"], **_UNKEPT}, {})
        attempt = Attempt.from_json(message["begin"])
        entries[attempt.token] = Entry(message["number"], launch, attempt, line=line + b"\n")
    elif "done" in message:
        entries.pop(message["done"], None)
    elif "token" in message:
        entry = entries.get(message["token"])
        if entry is not None:
            entry.events.append(event_from_json(message["event"]))


def _begin(entry: Entry) -> bytes:
    if entry.line:
        return entry.line
    # Of a copy: a launch keeps its text, which is of no more use here.
    lasting, _ = replace(entry.launch).parts()
    return f"{{{begin_text(entry.number, entry.attempt, lasting)}}}\n".encode("ascii")


def _told(token: str, text: str) -> bytes:
    return f'{{"token":"{token}","event":{text}}}\n'.encode("ascii")
