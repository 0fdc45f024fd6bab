"""The lock under which processes write to a folder, and read what has changed in it.

It is of the kernel, so whoever dies has let go of it. Calls block, and belong in a thread.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anodejobs.errors import StoreError

_PATIENCE_S = 60.0
"""How long a holder may take, who may have been stopped in the middle of it."""


class FolderLock:
    """A lock at ``path``: one writer, or any number of readers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def held(self, *, shared: bool = False, may_wait: bool = True) -> Iterator[int]:
        """Hold the lock, and give the descriptor of its file. Raises StoreError, OSError."""
        fd = self._take(fcntl.LOCK_SH if shared else fcntl.LOCK_EX, may_wait)
        try:
            yield fd
        finally:
            _let_go(fd)

    def _take(self, kind: int, may_wait: bool) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if not self._is_taken(fd, kind, may_wait):
                raise StoreError(f"another process has held {self._path} for {_PATIENCE_S:g} s")
            try:
                if os.path.samestat(os.fstat(fd), os.stat(self._path)):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # somebody has removed the file meanwhile: others hold another one

    def _is_taken(self, fd: int, kind: int, may_wait: bool) -> bool:
        """Lock the file; where that takes too long, close it and return False."""
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if may_wait:
                return _Wait(fd, kind).is_over()
            os.close(fd)
            raise
        except OSError:
            os.close(fd)
            raise
        return True


class _Wait(threading.Thread):
    """Waits for a lock that another process holds. The kernel's own wait has no end."""

    def __init__(self, fd: int, kind: int) -> None:
        super().__init__(name="anodejobs-lock", daemon=True)
        self._fd = fd
        self._kind = kind
        self._has_lock = threading.Event()
        self._parting = threading.Lock()
        self._is_given_up = False
        self.start()

    def run(self) -> None:
        fcntl.flock(self._fd, self._kind)
        with self._parting:
            if self._is_given_up:
                _let_go(self._fd)
            else:
                self._has_lock.set()

    def is_over(self) -> bool:
        """Wait; return whether we have the lock. Without it the file is closed by the thread."""
        if self._has_lock.wait(_PATIENCE_S):
            return True
        with self._parting:
            self._is_given_up = not self._has_lock.is_set()
            return not self._is_given_up


def _let_go(fd: int) -> None:
    """Unlock the file and close it: closing alone would leave the lock to a fork made meanwhile."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
