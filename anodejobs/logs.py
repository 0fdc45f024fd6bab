"""The log files of jobs: ``LogFile`` writes and rotates one, ``LogTail`` reads it while it grows.

Bytes only: no lines, no decoding, and memory that does not grow with what a job writes. A place in
a log is its *offset*, the number of bytes the stream had before it, and stays the same when the
file is rotated. Only the standard library is imported here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import quote

from anodejobs.regular import open_regular, remove


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of a stream, the first of them at ``offset``."""

    stream: Literal["stdout", "stderr"]
    offset: int
    data: bytes

    @property
    def text(self) -> str:
        """The data as UTF-8, what cannot be decoded replaced; a chunk may end within a letter."""
        return self.data.decode("utf-8", "replace")

    @property
    def end(self) -> int:
        """The offset to go on from."""
        return self.offset + len(self.data)


def log_name(job_id: str) -> str:
    """Return a file name for the job's logs: readable, harmless, and no other id's.

    A name that was too long, or that a file system might take for another one which differs in
    case, ends in a digest of the id.
    """
    if _HARMLESS.fullmatch(job_id):
        return job_id
    name = quote(job_id, safe=_SAFE)
    if name[0] in ".-":
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name) <= _LONGEST_NAME and job_id == job_id.lower():
        return name
    # Imported here: a shim has no use for it, and stays small.
    from hashlib import sha256

    return f"{name[:_LONGEST_NAME]}%-{sha256(job_id.encode()).hexdigest()[:16]}"


_LONGEST_NAME = 180
_HARMLESS = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,179}")
_SAFE = "+,=@~ "


def rotated_folder(path: Path) -> Path:
    """Return where the rotated files of the log at ``path`` lie, each named for its end offset."""
    return path.with_name(f"{path.name}.rotated")


def _rotated(path: Path) -> list[int]:
    """Return the end offsets of the rotated files, oldest first."""
    try:
        names = os.listdir(rotated_folder(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if _END_OFFSET.fullmatch(name))


_END_OFFSET = re.compile(r"[1-9][0-9]{0,17}")
"""A job may put what it likes there."""


def remove_log(path: Path) -> None:
    """Remove a log with its rotated files; readers that have them open can read on."""
    remove(path)
    remove(rotated_folder(path))


class Reader(Protocol):
    """Somebody who reads a log, as far as what is kept for them goes."""

    offset: int
    """Where the next bytes they want begin."""


class LogFile:
    """Appends one stream to its file, and sets full files aside.

    With ``replaces`` what another attempt has left at the path is removed before the first byte.
    The file never exceeds ``max_bytes``. Of the files set aside, the last ``backups`` are kept,
    and those that a reader in ``readers`` has not read to the end.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_bytes: int | None = None,
        backups: int = 1,
        *,
        replaces: bool = False,
    ) -> None:
        self.name = os.fspath(path)
        self.readers: set[Reader] = set()
        self.offset = 0
        """How many bytes the stream has had; right once the file was open."""
        self.unclosed: OSError | None = None
        """Why a file could not be closed: some file systems say only then that they had no room."""
        self._max_bytes = max_bytes
        self._backups = backups
        self._replaces = replaces
        self._is_retired = False
        self._size = 0
        self._fd: int | None = None

    @property
    def path(self) -> Path:
        """Where the file is; made when it is asked for, since most jobs write nothing."""
        return Path(self.name)

    @property
    def fd(self) -> int | None:
        """The descriptor of the file, where it is open."""
        return self._fd

    def open(self) -> None:
        """Open the file, and go on where it ends."""
        if self._fd is not None:
            return
        if self._replaces:
            remove_log(self.path)
            self._replaces = False
        fd = open_regular(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            self._size = os.fstat(fd).st_size
            self.offset = (_rotated(self.path) or [0])[-1] + self._size
        except BaseException:  # without its offset it would be written to as if it had none
            os.close(fd)
            raise
        self._fd = fd

    def write(self, data: memoryview) -> int:
        """Write some of the data, and return how much. Raises OSError where nothing could be."""
        if self._is_retired:
            return len(data)
        fd, room = self._room(len(data))
        return self._grow(os.write(fd, data[:room]))

    def splice(self, pipe_fd: int, most: int) -> int:
        """As ``write``, but of what a pipe holds, which is then copied once and not twice."""
        if self._is_retired:
            return len(os.read(pipe_fd, most))
        fd, room = self._room(most)
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)  # nothing can be spliced into a file in append mode
        try:
            return self._grow(os.splice(pipe_fd, fd, room, offset_dst=os.fstat(fd).st_size))
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)

    def _room(self, wanted: int) -> tuple[int, int]:
        """Return the open file, a new one where this is full, and how much may go into it."""
        self.open()
        if self._max_bytes is not None:
            if self._size and self._size + wanted > self._max_bytes:
                self._rotate()
            wanted = min(wanted, self._max_bytes - self._size)
        assert self._fd is not None
        return self._fd, wanted

    def _grow(self, written: int) -> int:
        self._size += written
        self.offset += written
        return written

    def _rotate(self) -> None:
        folder = rotated_folder(self.path)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            folder.chmod(0o700)  # the umask is that of any job, where these are spawned meanwhile
        try:
            self.path.rename(folder / str(self.offset))
        except FileNotFoundError:  # removed, but where the next one begins is to be known
            (folder / str(self.offset)).touch(mode=0o600)
        self.close()
        self.open()
        self.trim()

    def trim(self) -> None:
        """Remove what is neither a backup nor still to be read."""
        if self._is_retired:
            return
        readers = tuple(self.readers)  # they come and go on the event loop meanwhile
        needed = min((reader.offset for reader in readers), default=self.offset)
        ends = _rotated(self.path)
        for end in ends[: max(0, len(ends) - self._backups)]:
            if end > needed:
                continue
            name = rotated_folder(self.path) / str(end)
            if end == ends[-1]:
                os.truncate(name, 0)  # its name says where the present file begins
            else:
                name.unlink(missing_ok=True)

    def retire(self) -> None:
        """Write no more: the path belongs to the log of another run, and what comes is dropped."""
        self._is_retired = True

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            try:
                os.close(fd)
            except OSError as error:
                self.unclosed = error


_LAST_OFFSET = 2**63 - 1
"""Beyond which the system lets nobody read."""


class LogTail:
    """Reads a log from an offset on, while it grows and is rotated.

    Where the bytes at the offset are no longer kept, it goes on with the oldest that are. It ends
    where the log was replaced by that of another run.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        """Where the next bytes will come from."""
        self._fd: int | None = None
        self._base = 0
        """The offset at which the open file begins."""
        self._least_base = 0
        """The offset before which the next file cannot begin, or it is of another run."""
        self._reading = threading.Lock()
        self._is_closed = False

    def read(self, limit: int) -> bytes:
        """Return the next bytes, empty where there are none yet. May wait for the disk."""
        with self._reading:
            data = self._read(limit)
        if self._is_closed:  # while we read, in a thread whose caller was cancelled
            self.close()
        return data

    def _read(self, limit: int) -> bytes:
        while self._fd is not None or self._open():
            assert self._fd is not None
            # Before the read: a file that was set aside by now has all that it will ever have.
            may_grow = self._may_grow()
            place = self.offset - self._base
            data = os.pread(self._fd, min(limit, _LAST_OFFSET - place), place)
            if data or may_grow:
                self.offset += len(data)
                return data
            self._least_base = self._base + os.fstat(self._fd).st_size
            self._close_file()
        return b""

    def read_cached(self, limit: int) -> bytes:
        """As ``read``, but raises BlockingIOError where that might wait for the disk."""
        if self._fd is None or _NOWAIT is None:
            raise BlockingIOError(errno.EAGAIN, "the file is not open, or the system cannot tell")
        buffer = bytearray(limit)
        may_grow = self._may_grow()
        try:
            n = os.preadv(self._fd, [buffer], self.offset - self._base, _NOWAIT)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                raise BlockingIOError(error.errno, "this file system cannot tell") from None
            raise
        if n == 0 and not may_grow:
            raise BlockingIOError(errno.EAGAIN, "the next file is to be opened")
        self.offset += n
        return bytes(buffer[:n])

    def _may_grow(self) -> bool:
        """Return whether the open file is the one that is written to."""
        assert self._fd is not None
        try:
            current = os.lstat(self.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._fd)
        return (mine.st_dev, mine.st_ino) == (current.st_dev, current.st_ino)

    def _open(self) -> bool:
        """Open the file that has the offset; return whether there is one."""
        while True:
            ends = _rotated(self.path)
            end = next((end for end in ends if end > self.offset), None)
            base = ends[-1] if ends else 0
            path = self.path if end is None else rotated_folder(self.path) / str(end)
            try:
                fd = open_regular(path, os.O_RDONLY)
            except FileNotFoundError:
                if ends == _rotated(self.path):
                    return False
                continue
            with contextlib.ExitStack() as unless_it_is_read:
                unless_it_is_read.callback(os.close, fd)
                if end is None and ends != _rotated(self.path):
                    continue  # rotated between the look and the opening
                if end is not None:
                    base = end - os.fstat(fd).st_size
                if base < self._least_base:
                    return False
                unless_it_is_read.pop_all()
            self._fd, self._base = fd, base
            self.offset = max(self.offset, base)
            return True

    def end(self) -> int:
        """Return the offset at which the log ends now."""
        ends = _rotated(self.path)
        try:
            size = os.lstat(self.path).st_size
        except FileNotFoundError:
            size = 0
        return (ends[-1] if ends else 0) + size

    def close(self) -> None:
        """Close the file; a read that is under way in a thread does it when it is done."""
        self._is_closed = True
        if self._reading.acquire(blocking=False):
            try:
                self._close_file()
            finally:
                self._reading.release()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):  # what was read has been read
                os.close(fd)


def read_text(path: Path, tail: int | None) -> str:
    """Return the log, or its last ``tail`` bytes, as text. Waits for the disk."""
    log = LogTail(path)
    if tail is not None:
        log.offset = max(0, log.end() - tail)
    pieces: list[bytes] = []
    try:
        while data := log.read(_READ_BYTES):
            pieces.append(data)
    finally:
        log.close()
    return b"".join(pieces).decode("utf-8", "replace")


_READ_BYTES = 1024 * 1024
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
