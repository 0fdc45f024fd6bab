"""The log of commits: a commit is made when its line is in it, and synced.

A line holds all of a commit, so a crash leaves the whole of it or none. A process reads on where
it stopped, and so learns what others have committed. When the log has become long, and all that it
says is synced elsewhere, another one takes its place: the next *generation*.

Calls block, and are to be made under the lock of the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anodejobs.errors import StoreError
from anodejobs.stores.file_places import replace, write_all


class CommitLog:
    """The log at ``path``, open, and read up to ``end``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0
        self.first_seq = 0
        """The last ``seq`` that was used before this generation."""
        self.end = 0
        self._fd: int | None = None

    def make(self) -> None:
        """Put the first generation in place."""
        self._make(generation=1, seq=0)

    def open(self) -> None:
        """Open the newest generation, unread; on an error the one before is still open."""
        before = self._fd, self.end
        self._fd, self.end = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), 0
        try:
            self._begin()
        except BaseException:
            _close(self._fd)
            self._fd, self.end = before
            raise
        _close(before[0])

    def _begin(self) -> None:
        header = next(self._lines(), None)
        if header is None:
            raise StoreError(f"{self.path} is damaged: it has no first line")
        with self._damage():
            self.generation, self.first_seq = int(header["generation"]), int(header["seq"])

    def close(self) -> None:
        """Let go of it. Idempotent."""
        fd, self._fd = self._fd, None
        _close(fd)

    def is_read(self) -> bool:
        """Return whether nothing has been committed since we read. A look, without the lock."""
        status = os.stat(self.path)
        return os.path.samestat(status, os.fstat(self._open_fd)) and status.st_size == self.end

    def read(self) -> list[dict[str, Any]]:
        """Return the commits that were not read yet."""
        return list(self._lines())

    def is_replaced(self) -> bool:
        """Return whether there is another generation by now."""
        return not os.path.samestat(os.stat(self.path), os.fstat(self._open_fd))

    def append(self, text: str) -> None:
        """Make a commit, which is on disk on return. On an error none was made."""
        fd, line = self._open_fd, _line(text)
        os.ftruncate(fd, self.end)  # behind it is what somebody could not write to its end
        try:
            write_all(fd, line, self.end)
            os.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self.end)
            raise
        self.end += len(line)

    def start_anew(self, seq: int) -> None:
        """Begin the next generation, empty; ``seq`` is the last one that was used."""
        self._make(generation=self.generation + 1, seq=seq)
        self.open()

    def _make(self, *, generation: int, seq: int) -> None:
        replace(
            self.path,
            _line(json.dumps({"generation": generation, "seq": seq})),
            is_synced=True,
        )

    @property
    def _open_fd(self) -> int:
        assert self._fd is not None
        return self._fd

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Give what the complete lines behind ``end`` say, and go on to behind them."""
        fd = self._open_fd
        data = os.pread(fd, max(0, os.fstat(fd).st_size - self.end), self.end)
        start = 0
        while (stop := data.find(b"\n", start)) >= 0:
            line = data[start:stop]
            if b"\0" in line:
                return  # never synced: a power failure leaves such blocks
            with self._damage():
                said = _said(line)
            self.end += stop + 1 - start
            start = stop + 1
            yield said

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{self.path} is damaged at byte {self.end}: {error}") from error


def _close(fd: int | None) -> None:
    if fd is not None:
        with contextlib.suppress(OSError):  # each commit in it was synced
            os.close(fd)


def _line(text: str) -> bytes:
    data = text.encode()
    return b"%08x %b\n" % (zlib.crc32(data), data)


def _said(line: bytes) -> dict[str, Any]:
    checksum, _, data = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(data):
        raise ValueError("a line does not agree with its checksum")
    said = json.loads(data)
    if not isinstance(said, dict):
        raise ValueError("a line is no object")
    return said
