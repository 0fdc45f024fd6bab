"""A mark that no process of a job can lose by dropping its environment.

A resource limit is inherited through fork, exec and setsid, also with an empty environment. The
soft limit of RLIMIT_RTTIME, set to a number of tens of thousands of years, limits nothing and
tells whose process it is. Only a process that starts nothing but jobs may mark so: a limit is the
whole process's, and what another thread starts at the same moment would bear it too. Where the
system refuses the limit, as gVisor does, nothing bears a mark.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys

_LIMIT: int | None = getattr(resource, "RLIMIT_RTTIME", None)
_TAGGED = 1 << 62
_FREE = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
_OOM_SCORE = 100
"""How much sooner, in thousandths of all memory, the kernel ends a job than the marking process."""


def tag_of(token: str) -> int:
    """Return the number that marks the processes of the attempt."""
    return _TAGGED | int(token[:15], 16)


def read_tag(pid: int) -> int | None:
    """Return the number that the process bears, None where it has none or we may not see it."""
    if _LIMIT is None or not hasattr(resource, "prlimit"):
        return None
    try:
        soft, _ = resource.prlimit(pid, _LIMIT)
    except (OSError, ValueError):
        return None
    return soft if soft >> 60 == _TAGGED >> 60 else None


def drop_mark() -> None:
    """Bear no mark: this process is to outlive the job that it may have been started from."""
    if _LIMIT is not None and read_tag(os.getpid()) is not None:
        _, hard = resource.getrlimit(_LIMIT)
        resource.setrlimit(_LIMIT, (hard, hard))


class Marking:
    """Marks what this process spawns from ``mark`` to ``unmark``, in one thread.

    What is spawned so bears the mark, and is what the kernel ends first where memory is short.
    """

    def __init__(self) -> None:
        self._may_tag = False
        if _LIMIT is not None and sys.platform == "linux":
            # What a refusal is, Python says with either error. To ask may be allowed, to set not.
            with contextlib.suppress(OSError, ValueError):
                ours = resource.getrlimit(_LIMIT)
                resource.setrlimit(_LIMIT, ours)
                self._may_tag = ours == _FREE
        self._is_marked = False
        self._oom: int | None = None
        self._oom_score = self._oom_of_jobs = b""
        with contextlib.suppress(OSError, ValueError):
            self._oom = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
            score = int(os.pread(self._oom, 16, 0))
            self._oom_score = b"%d" % score
            self._oom_of_jobs = b"%d" % min(1000, score + _OOM_SCORE)

    def mark(self, token: str) -> None:
        """Have what is spawned now bear the mark of the attempt."""
        if self._may_tag and _LIMIT is not None:
            resource.setrlimit(_LIMIT, (tag_of(token), resource.RLIM_INFINITY))
        if not self._is_marked:
            self._is_marked = True
            if self._oom is not None:
                os.pwrite(self._oom, self._oom_of_jobs, 0)

    def unmark(self) -> None:
        """Be a process like any other again. Idempotent."""
        if not self._is_marked:
            return
        self._is_marked = False
        if self._may_tag and _LIMIT is not None:
            resource.setrlimit(_LIMIT, _FREE)
        if self._oom is not None:
            os.pwrite(self._oom, self._oom_score, 0)

    def close(self) -> None:
        """Let go of what it holds. Idempotent."""
        if self._oom is not None:
            os.close(self._oom)
            self._oom = None
