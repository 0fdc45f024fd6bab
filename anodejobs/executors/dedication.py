"""What a process can do for its children that does nothing but start them.

Its limits, its environment and its asyncio are then theirs alone: nothing else in it could be
disturbed when they change.
"""

from __future__ import annotations

import os

from anodejobs.executors.inheritance import Inheritance
from anodejobs.executors.marks import Marking


class Dedication:
    """Held by ``Processes`` in a process of its own."""

    def __init__(self) -> None:
        self.marking = Marking()
        self.inheritance = Inheritance()
        self.null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        """The stdin of all; opened for each, it is one more descriptor a start."""

    def close(self) -> None:
        """Let go of what it holds. Idempotent."""
        self.marking.close()
        self.inheritance.close()
        if self.null >= 0:
            os.close(self.null)
            self.null = -1
