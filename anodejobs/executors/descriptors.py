"""Descriptors: there are only so many, and the last of them are not for more jobs.

Who has none left cannot look at processes, be connected to, or stop what runs. Only the standard
library is imported here.
"""

from __future__ import annotations

import errno
import os
import resource

_KEPT = 32
LACK = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What says that something cannot be had now."""


def left_for_jobs(most: int) -> int:
    """Return how many of so many are not kept."""
    return most - min(_KEPT, most // 4)


def is_kept(fd: int) -> bool:
    """Return whether a new descriptor is one of the last: each one is the lowest that is free."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most != resource.RLIM_INFINITY and fd >= left_for_jobs(most)


def raise_lack(error: OSError) -> None:
    """Raise the error if it says that something cannot be had now, and nothing of what is there."""
    if error.errno in LACK:
        raise error


def lack() -> OSError:
    """Return the error for a descriptor that is kept for something else."""
    return OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)} (ulimit -n)")
