"""Where a process may be made to die, as of ``kill -9``, between any two durable steps.

For tests only: ``ANODEJOBS_DIE_AT`` names a step and a file. Who reaches the step and can remove
the file dies on the spot, so that of all processes one dies, and once.
"""

from __future__ import annotations

import os
import signal
from typing import Final

STEPS: Final = (
    "host: a run was asked for",
    "host: a change of the queue was decided",
    "host: a job was admitted",
    "host: the start is on record",
    "shim: a start was asked for",
    "shim: a start was begun",
    "shim: a process was spawned",
    "shim: the journal was written",
    "host: the process is known",
    "host: the process is on record",
    "shim: an end was seen",
    "host: the end is known",
    "host: the end is on record",
    "shim: an end was acknowledged",
)

_step, _, _file = os.environ.get("ANODEJOBS_DIE_AT", "").partition("@")


def reached(step: str) -> None:
    """Die here if a test wants that."""
    if step == _step:
        _die()


def _die() -> None:
    try:
        os.unlink(_file)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
