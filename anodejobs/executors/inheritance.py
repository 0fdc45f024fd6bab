"""The environment of this process, made what its next child inherits.

A child that is handed an environment has each variable encoded and joined by Python, which takes a
fifth of all the time that a start takes; what it inherits costs nothing. So a process that does
nothing but start jobs takes on their environment. The C library is only shown where it is: told of
each variable, it would keep every value that it has ever had.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping


class Inheritance:
    """Variables that change with each attempt, over an environment that many attempts share.

    Nobody else may set a variable in this process from the first offer until it is closed.
    """

    def __init__(self) -> None:
        try:
            self._environ = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "environ")
        except ValueError:  # a system that hides it
            self._environ = ctypes.c_void_p()
        self._former = self._environ.value
        self._former_path = os.environ.get("PATH")
        self._base: dict[str, str] | None = None
        self._names: frozenset[str] = frozenset()
        self._entries: ctypes.Array[ctypes.c_char_p] = (ctypes.c_char_p * 1)()
        self._shared = 0
        """How many of the entries last as long as the base."""

    def offers(self, base: dict[str, str], own: Mapping[str, str]) -> bool:
        """Make both what is inherited, ``own`` over ``base``; return whether that was possible.

        It holds until the next call.
        """
        if self._former is None:
            return False
        try:
            if base is not self._base or own.keys() != self._names:
                self._take_on(base, own)
            for place, (name, value) in enumerate(own.items(), self._shared):
                self._entries[place] = _entry(name, value)
        except ValueError:  # what no process can have set by itself
            return False
        self._environ.value = ctypes.addressof(self._entries)
        return True

    def _take_on(self, base: dict[str, str], own: Mapping[str, str]) -> None:
        shared = [_entry(name, value) for name, value in base.items() if name not in own]
        self._search(base.get("PATH"))
        self._entries = (ctypes.c_char_p * (len(shared) + len(own) + 1))(*shared)
        self._shared = len(shared)
        self._base, self._names = base, frozenset(own)

    def _search(self, path: str | None) -> None:
        """Have programs looked for there: that is asked of ``os.environ``, before they inherit."""
        self._environ.value = self._former
        if path is not None:
            os.environ["PATH"] = path
        else:
            os.environ.pop("PATH", None)
        self._former = self._environ.value  # which the C library may have moved

    def close(self) -> None:
        """Give this process its own environment back. Idempotent."""
        if self._base is not None:
            self._search(self._former_path)
            self._base = None


def _entry(name: str, value: str) -> bytes:
    if not name or "=" in name or "\0" in name or "\0" in value:
        raise ValueError(f"{name!r} cannot be set")
    return os.fsencode(f"{name}={value}")
