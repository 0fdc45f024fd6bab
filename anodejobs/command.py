"""How ``python -m anodejobs.…`` runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Exit with what ``main`` returns; as if of SIGPIPE where nobody reads on, as with ``head``."""
    try:
        try:
            status = main(sys.argv[1:])
        finally:  # of --help too
            sys.stdout.flush()
    except BrokenPipeError:
        # What has not been written would be once more, at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)
