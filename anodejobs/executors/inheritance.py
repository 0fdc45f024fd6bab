"""The environment of this process, made what its next child inherits.

A child that is handed an environment has each variable encoded and joined by Python, which takes a
fifth of all the time that a start takes; what it inherits costs nothing. So a process that does
nothing but start jobs takes on their environment. The variables of one attempt are written into
memory that the C library has been given for good: told of each new value, it would keep them all.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import suppress

_LONGEST_BYTES = 2048


class Inheritance:
    """Variables that change with each attempt, over an environment that many attempts share."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._base: dict[str, str] | None = None
        self._values: dict[str, ctypes.Array[ctypes.c_char]] = {}

    def offers(self, base: dict[str, str], own: Mapping[str, str]) -> bool:
        """Make both what is inherited, ``own`` over ``base``; return whether that was possible.

        It holds until the next call. ``own`` must have the same names each time.
        """
        if base is not self._base and not self._take_on(base, own):
            return False
        for name, value in own.items():
            entry = os.fsencode(f"{name}={value}")
            if len(entry) >= _LONGEST_BYTES:
                return False
            self._values[name].value = entry
        return True

    def _take_on(self, base: dict[str, str], own: Mapping[str, str]) -> bool:
        self._base = None
        try:
            os.environ.clear()
            os.environ.update({name: value for name, value in base.items() if name not in own})
        except ValueError:  # what no process can have set by itself
            return False
        for name in own:
            if name not in self._values:
                self._values[name] = ctypes.create_string_buffer(_LONGEST_BYTES)
                self._values[name].value = os.fsencode(f"{name}=")
            self._libc.putenv(self._values[name])
        self._base = base
        return True

    def close(self) -> None:
        """Take back the memory that the C library was given. Idempotent."""
        for name in self._values:
            with suppress(OSError):
                os.unsetenv(name)
        self._values.clear()
        self._base = None
