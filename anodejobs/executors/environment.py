"""The environment of a program, as the C library wants it.

Many jobs share most of theirs, which is encoded once: done anew for each, that would be a fifth of
all that a start takes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping


class EnvironmentBlock:
    """Variables that change with each program, over others that many programs share."""

    def __init__(self) -> None:
        self._base: dict[str, str] | None = None
        self._names: frozenset[str] = frozenset()
        self._entries: ctypes.Array[ctypes.c_char_p] = (ctypes.c_char_p * 1)()
        self._shared = 0
        """How many of the entries last as long as the base."""

    def holding(
        self, base: dict[str, str], own: Mapping[str, str]
    ) -> ctypes.Array[ctypes.c_char_p]:
        """Return what ``execve`` takes: ``own`` over ``base``. It holds until the next call.

        Raises ValueError where a name or a value cannot be one; ``base`` must not change.
        """
        if base is not self._base or own.keys() != self._names:
            shared = [_entry(name, value) for name, value in base.items() if name not in own]
            self._entries = (ctypes.c_char_p * (len(shared) + len(own) + 1))(*shared)
            self._shared = len(shared)
            self._base, self._names = base, frozenset(own)
        for place, (name, value) in enumerate(own.items(), self._shared):
            self._entries[place] = _entry(name, value)
        return self._entries


def _entry(name: str, value: str) -> bytes:
    # There are systems with a variable that has no name.
    if "=" in name or "\0" in name or "\0" in value:
        raise ValueError(f"{name!r} cannot be set")
    return os.fsencode(f"{name}={value}")
