"""The pipes between jobs and the log pump.

A job holds its ends for reading and writing, so that it neither dies nor loses a byte when the
reader dies: a later supervisor opens them again through ``/proc``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anodejobs.events import Attempt
from anodejobs.executors import tree
from anodejobs.executors.base import STREAMS, Stream
from anodejobs.executors.descriptors import is_kept, lack, raise_lack


def new_pipe() -> tuple[int, int]:
    """Return our end of a new pipe, which blocks nobody, and the other.

    Raises OSError where no descriptors are left for more jobs.
    """
    if tree.IS_LINUX:
        # Of the other end the job gets a description of its own, and that blocks.
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    else:
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
    if is_kept(max(ours, theirs)):
        os.close(ours)
        os.close(theirs)
        raise lack()
    return ours, theirs


@contextmanager
def open_for_both(ends: dict[Stream, int]) -> Iterator[dict[Stream, int]]:
    """Give the ends of pipes to write to opened anew, for reading too, where that can be done."""
    opened: dict[Stream, int] = {}
    try:
        for stream, fd in ends.items() if tree.IS_LINUX else ():
            opened[stream] = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        yield opened or ends
    finally:
        for fd in opened.values():
            os.close(fd)


def open_again(pid: int, attempt: Attempt) -> dict[Stream, int]:
    """Return our ends of the pipes of a process that another supervisor started.

    Only a pipe that was made for it is opened: to read any other is to steal its bytes. Raises
    OSError where descriptors lack.
    """
    fds: dict[Stream, int] = {}
    try:
        for number, stream in enumerate(STREAMS):
            inode = None if attempt.pipes is None else attempt.pipes[number]
            fd = _opened_again(pid, number + 1, inode)
            if fd is not None:
                fds[stream] = fd
                if is_kept(fd):
                    raise lack()
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise
    return fds


def _opened_again(pid: int, number: int, inode: int | None) -> int | None:
    """Return our end of the pipe that the process has under the number, if that is one of ours."""
    try:
        folder = _holder(pid, number)
        path = f"{folder}/fd/{number}"
        seen = os.stat(path)
        if inode is not None:
            is_ours = seen.st_ino == inode
        else:
            flags = Path(f"{folder}/fdinfo/{number}").read_text()
            mode = int(flags.split("flags:")[1].split()[0], 8) & os.O_ACCMODE
            is_ours = mode == os.O_RDWR
        if is_ours and stat.S_ISFIFO(seen.st_mode):
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise_lack(error)
    return None


def _holder(pid: int, number: int) -> str:
    """Return the folder of a thread that has the descriptor; the first may have ended."""
    folders = [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    return next((f for f in folders if os.path.lexists(f"{f}/fd/{number}")), f"/proc/{pid}")
