"""Files as a person finds them: whole ones only, and read with care. Calls block."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from anodejobs.regular import open_regular

PART = ".part"
"""How the name of a file ends that is being written, or was when its writer died."""
# Somebody may have put a link or a pipe where a file is to be.
_WRITING = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of the data at the offset; an OSError says that some of it may be there."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def replace(path: Path, data: bytes, *, is_synced: bool = False) -> None:
    """Put the data in place at once: no reader sees half of it, also not after a crash."""
    part = path.with_name(f"{path.name}{PART}")
    fd = os.open(part, _WRITING | os.O_TRUNC, 0o600)
    try:
        if not is_synced and os.path.lexists(path):
            _allocate(fd, len(data))
        write_all(fd, data, 0)
        if is_synced:
            os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)  # it takes room that others may need
        raise
    finally:
        os.close(fd)
    os.replace(part, path)
    if is_synced:
        sync([path.parent])


def _allocate(fd: int, size: int) -> None:
    """Have room on the disk for what is about to be written, where the system can do that.

    ext4 carries a file to the disk when it takes the place of another one, which costs more than
    a millisecond; but not one that has its room already.
    """
    if sys.platform == "linux" and size:
        with contextlib.suppress(OSError):  # the write will say what is wrong
            os.posix_fallocate(fd, 0, size)


def append(path: Path, data: bytes) -> None:
    """Write the data at the end of the file, which need not be there."""
    fd = os.open(path, _WRITING, 0o600)
    try:
        write_all(fd, data, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def read(path: Path) -> bytes:
    """Return the content of a regular file: no link is followed, no pipe is waited for."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()


def sync(paths: Iterable[Path]) -> None:
    """Have files and folders on disk."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
