"""The attempts that a shim is done with, so that a request which comes late starts nothing again.

An application may have died after it sent one, and the request still lie in a buffer.
"""

from __future__ import annotations


class Tombs:
    """Tokens of attempts, each known until ``grow_older`` is called for the second time."""

    def __init__(self) -> None:
        self._young: set[str] = set()
        self._old: set[str] = set()
        self.age = 0
        """How often that was called."""

    def __contains__(self, token: str) -> bool:
        return token in self._young or token in self._old

    def add(self, token: str) -> None:
        """Take note that the attempt is done with."""
        self._young.add(token)

    def grow_older(self) -> None:
        """Forget those that were there the last time already."""
        self._old, self._young = self._young, set()
        self.age += 1
