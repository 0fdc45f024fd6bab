"""What jobs say of their progress, pushed on as they say it.

A job appends lines like ``0.4 loading`` or ``40% loading`` to its file. One watch of the kernel
serves the files of all jobs; only where there is none the folder is looked at, once a second. Of
each file only the last complete line that can be understood counts.

Files are read on the event loop: a few kilobytes each that were written just now, so they are in
memory, and only so many of them at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Generator
from itertools import islice
from pathlib import Path

from anodejobs.folderwatch import Inotify, Listing
from anodejobs.regular import open_regular

__all__ = ["OnProgress", "ProgressWatch", "last_progress", "parse_progress"]

LOG = logging.getLogger("anodejobs")

OnProgress = Callable[[str, int, float, str], None]
"""Called on the event loop with logfile, attempt number, fraction (0.0 to 1.0) and text."""

LONGEST_TEXT = 200
"""How many characters of a line's text are told."""

_REST_S = 0.1
"""How long nothing is looked at after a look: what a flood of lines says meanwhile is left out."""
_POLL_S = 1.0
"""How often a folder is looked at that the kernel does not watch for us."""
_TAIL_BYTES = 4096
"""How much of a file is read, from its end."""
_MOST_TOLD = 10_000
"""Of how many files it is known what was told last: those that said something last."""
_TURN_FILES = 32
_TURN_ENTRIES = 512
"""How many files are read, and how many only looked at, before the event loop has its turn."""
_SHARE = 10
"""Looks take at most this part of the time, but for what ``_LONGEST_REST_S`` demands."""
_LONGEST_REST_S = 1.0
_CLOCK_TICK_S = 0.05
"""The kernel's time of a file may be behind the clock by so much."""

_LINE = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(%?)(?:\s+(.*))?", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class ProgressWatch:
    """Tells ``on_progress`` what jobs append to their files in the folder, from ``open`` on.

    The first line after a silence is told at once, and of many lines at most ten a second; the
    last one always. What is the same as what was told last is not told again. Whatever
    ``on_progress`` raises is logged.
    """

    def __init__(self, folder: Path, on_progress: OnProgress) -> None:
        self._folder = folder
        self._on_progress = on_progress
        self._told: dict[str, tuple[float, str]] = {}
        self._due: dict[str, None] = {}
        self._listing: Generator[str | None, None, None] | None = None
        """What is yet to be looked through, of a folder whose changes are not known one by one."""
        self._source: Inotify | Listing | None = None
        self._next: asyncio.Handle | None = None
        self._opened_at = self._began_at = 0.0

    def open(self) -> None:
        """Begin to tell, on the running event loop.

        What a job said before is told by ``look`` only. Raises FileNotFoundError where there is no
        such folder.
        """
        self._loop = asyncio.get_running_loop()
        self._opened_at = time.time() - _CLOCK_TICK_S
        try:
            self._source = Inotify(self._folder)
        except FileNotFoundError:
            raise
        except OSError as error:
            LOG.info("the folder %s is looked at every %g s: %s", self._folder, _POLL_S, error)
            self._source = Listing(self._folder)
        self._await_changes()

    def close(self) -> None:
        """Tell nothing any more. Idempotent."""
        if self._source is None:
            return
        if self._next is not None:
            self._next.cancel()
        if self._source.fd >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._source.fd)
        if self._listing is not None:
            self._listing.close()
        self._source.close()
        self._source = None

    def _await_changes(self) -> None:
        assert self._source is not None
        if self._source.fd >= 0:
            self._loop.add_reader(self._source.fd, self._wake)
        else:
            self._next = self._loop.call_later(_POLL_S, self._take)

    def _wake(self) -> None:
        # Not woken again before the rest is over, whatever is written.
        assert self._source is not None
        self._loop.remove_reader(self._source.fd)
        self._take()

    def _take(self) -> None:
        assert self._source is not None
        self._began_at = self._loop.time()
        try:
            changes = self._source.take()
        except OSError as error:  # no descriptor is left to list it, say
            LOG.info("the folder %s is looked at again later: %s", self._folder, error)
            self._next = self._loop.call_later(self._rest_s(), self._take)
            return
        for name in changes.replaced:
            self._told.pop(name, None)
        self._due.update(changes.changed)
        if changes.is_incomplete:
            self._listing = self._written_since_opened()
        if self._due or self._listing is not None:
            self._take_turn()
        else:
            self._await_changes()

    def _written_since_opened(self) -> Generator[str | None, None, None]:
        """Give the names of files, and None for each that has long been there."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    is_new = entry.stat(follow_symlinks=False).st_mtime >= self._opened_at
                    yield entry.name if is_new else None

    def _take_turn(self) -> None:
        """Look at some of what is due, and go on after the event loop has had its turn."""
        if self._listing is not None:
            found = list(islice(self._listing, _TURN_ENTRIES))
            self._due.update(dict.fromkeys(filter(None, found)))
            if len(found) < _TURN_ENTRIES:
                self._listing = None
        for name in list(islice(self._due, _TURN_FILES)):
            del self._due[name]
            self._look_at(name)
            if self._source is None:
                return  # closed by whom it told
        if self._due or self._listing is not None:
            self._next = self._loop.call_soon(self._take_turn)
        else:
            self._next = self._loop.call_later(self._rest_s(), self._take)

    def _rest_s(self) -> float:
        assert self._source is not None
        least = _REST_S if self._source.fd >= 0 else _POLL_S
        took_s = self._loop.time() - self._began_at
        return max(least, min(_LONGEST_REST_S, _SHARE * took_s))

    def _look_at(self, name: str) -> None:
        logfile, _, number = name.rpartition(".")
        if not (logfile and number.isdecimal()):
            return  # nobody's: a job may write what it likes there
        progress = last_progress(self._folder / name)
        if progress is None or progress == self._told.get(name):
            return
        self._told.pop(name, None)
        self._told[name] = progress
        if len(self._told) > _MOST_TOLD:  # files outlive their jobs, and those are ever more
            del self._told[next(iter(self._told))]
        try:
            self._on_progress(logfile, int(number), *progress)
        except Exception:
            LOG.exception("the progress of %s could not be passed on", logfile)


def last_progress(path: str | Path) -> tuple[float, str] | None:
    """Return what the last complete line says that can be understood, None where none can.

    Lines that lie further back than some kilobytes are not looked at.
    """
    try:
        # A job may have put anything there: a link elsewhere, or a pipe that nobody fills.
        fd = open_regular(path, os.O_RDONLY)
        try:
            begin = max(0, os.fstat(fd).st_size - _TAIL_BYTES)
            data = os.pread(fd, _TAIL_BYTES, begin)
        finally:
            os.close(fd)
    except OSError:
        return None
    # The last one has no end yet, and of the first one the beginning may lie further back.
    lines = data.split(b"\n")[1 if begin else 0 : -1]
    return next(filter(None, map(parse_progress, reversed(lines))), None)


def parse_progress(line: bytes) -> tuple[float, str] | None:
    """Return the fraction, from 0 to 1, and the text of a line like ``0.4 loading``."""
    match = _LINE.fullmatch(_UNPRINTABLE.sub(" ", line.decode("utf-8", "replace")))
    if match is None:
        return None
    number, percent, text = match.groups()
    fraction = float(number) / (100 if percent else 1)
    return min(1.0, max(0.0, fraction)), (text or "").strip()[:LONGEST_TEXT]
