"""Which files of a folder have changed: told by the kernel where it can, found by looking else.

Both give the same answer, and both hold one folder only. What another machine does to a network
file system is told to nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final


@dataclass(slots=True)
class Changes:
    """What happened in the folder since it was last asked for."""

    changed: dict[str, None] = field(default_factory=dict)
    """Files that were written, in order."""
    replaced: set[str] = field(default_factory=set)
    """Names that have gone, or that now stand for another file."""
    is_incomplete: bool = False
    """There was more than can be told: everything must be looked at."""


class Inotify:
    """Has the kernel tell of changes: ``fd`` is readable when there is something to ``take``.

    Raises OSError where there is no inotify, or all instances of the user are in use.
    """

    _HEADER: Final = struct.Struct("iIII")
    _MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
    _OVERFLOW = 0x4000
    _ALL_BYTES = 1024 * 1024
    """More than a full queue of the kernel holds, so that one read empties it."""

    def __init__(self, folder: Path) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("there is no inotify on this system")
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = self._MODIFY | self._MOVED_FROM | self._MOVED_TO | self._CREATE | self._DELETE
        if self.fd < 0 or libc.inotify_add_watch(self.fd, os.fsencode(folder), mask) < 0:
            error = ctypes.get_errno()
            self.close()
            raise OSError(error, os.strerror(error), str(folder))

    def take(self) -> Changes:
        """Return what has happened. Never waits."""
        changes = Changes()
        try:
            data = os.read(self.fd, self._ALL_BYTES)
        except BlockingIOError:
            return changes
        at = 0
        while at < len(data):
            _, mask, _, length = self._HEADER.unpack_from(data, at)
            at += self._HEADER.size + length
            name = os.fsdecode(data[at - length : at].rstrip(b"\0"))
            if mask & self._OVERFLOW:
                changes.is_incomplete = True
            elif name:
                if not mask & self._MODIFY:
                    changes.replaced.add(name)
                if mask & (self._MODIFY | self._MOVED_TO):
                    changes.changed[name] = None
        return changes

    def close(self) -> None:
        """Let go of the descriptor. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Listing:
    """Finds changes by listing the folder: costs a look at each of its files every time."""

    fd = -1

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._look()

    def take(self) -> Changes:
        """Return what is otherwise than at the last call."""
        before, self._seen = self._seen, self._look()
        changed = {name: None for name, mark in self._seen.items() if before.get(name) != mark}
        replaced = {
            name for name, mark in before.items() if self._seen.get(name, (0,))[0] != mark[0]
        }
        return Changes(changed, replaced)

    def _look(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    seen = entry.stat(follow_symlinks=False)
                    found[entry.name] = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
        return found

    def close(self) -> None:
        """Do nothing: it holds nothing."""
