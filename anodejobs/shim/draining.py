"""The files of shims that drain: they start no more, and only see through what runs.

Such a shim leaves its folder, and the names of the files there, to the next one. Its own socket,
lock and journal are then called ``draining-<pid>.socket`` and so on.
"""

from __future__ import annotations

import os
from pathlib import Path

from anodejobs.executors.supervisors import is_locked

_PREFIX = "draining-"
_KINDS = ("socket", "lock", "journal")


def draining(folder: Path, kind: str) -> Path:
    """Return what a file of this process is called once it drains."""
    return folder / f"{_PREFIX}{os.getpid()}.{kind}"


def draining_sockets(folder: Path) -> list[str]:
    """Return the names of the sockets of those that drain, or did when they died."""
    return sorted(path.name for path in folder.glob(f"{_PREFIX}*.socket"))


def left_journals(folder: Path) -> list[Path]:
    """Return the journals of those that died while they were draining."""
    journals = folder.glob(f"{_PREFIX}*.journal")
    return [journal for journal in journals if not is_locked(journal.with_suffix(".lock"))]


def files_of(journal: Path) -> list[Path]:
    """Return the files of the one whose journal this is; the journal is the last of them."""
    return [journal.with_suffix(f".{kind}") for kind in _KINDS]
