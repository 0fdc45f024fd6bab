"""Every error a caller of anodejobs can meet, and the one place that words them.

    AnodeJobsError
    ├── InvalidJob (ValueError)           the caller asked for something that cannot be a job
    ├── JobNotFound (KeyError)            no record has this id
    ├── JobActive                         the id belongs to a job that has not ended
    ├── InvalidTransition                 the job's status does not allow this
    ├── DependencyCycle                   jobs would wait for each other for ever
    ├── WaitTimeout (TimeoutError)        the caller's time was up; the job runs on
    ├── StatusUnreachable                 the job ended without the awaited status
    ├── StoreError                        the store cannot keep or give records
    └── ExecutorError                     the operating system refused, or the executor is gone

This module knows no other module of the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anodejobs.records import JobRecord

__all__ = [
    "AnodeJobsError",
    "DependencyCycle",
    "ExecutorError",
    "InvalidJob",
    "InvalidTransition",
    "JobActive",
    "JobNotFound",
    "StatusUnreachable",
    "StoreError",
    "WaitTimeout",
]


class AnodeJobsError(Exception):
    """The root of all errors of this package."""


class InvalidJob(AnodeJobsError, ValueError):
    """A field of a job, filter or call is wrong; nothing was stored or started."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[InvalidJob], tuple[str, str]]:
        return (InvalidJob, (self.field, self.problem))


class JobNotFound(AnodeJobsError, KeyError):
    """There is no job of this id, or no template or batch: ``what`` says which."""

    def __init__(self, job_id: str, what: str = "job") -> None:
        super().__init__(job_id)
        self.job_id = job_id
        self.what = what

    def __str__(self) -> str:
        return f"there is no {self.what} {self.job_id!r}"


class JobActive(AnodeJobsError):
    """The job has not ended, so its id cannot be run anew or deleted."""

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(job_id, status)
        self.job_id = job_id
        self.status = status

    def __str__(self) -> str:
        return f"job {self.job_id!r} is {self.status}: stop it or wait for its end first"


class InvalidTransition(AnodeJobsError):
    """The job's present status does not allow what was asked; ``event`` names what that was."""

    def __init__(self, job_id: str, status: str, event: str) -> None:
        super().__init__(job_id, status, event)
        self.job_id = job_id
        self.status = status
        self.event = event

    def __str__(self) -> str:
        refused = _REFUSED.get(self.event, self.event)
        return f"job {self.job_id!r} is {self.status}: it cannot be {refused}"


_REFUSED = {
    "Submitted": "started",
    "Readied": "queued",
    "Admitted": "started",
    "Withdrawn": "withdrawn",
    "Relinked": "given other dependencies",
    "Started": "recorded as running",
    "StartFailed": "recorded as not started",
    "Claimed": "taken over",
    "Adopted": "taken over",
    "Paused": "paused",
    "Resumed": "resumed",
    "Signalled": "sent a signal",
    "StopRequested": "stopped",
    "StopFailed": "recorded as not stopped",
    "Exited": "recorded as ended",
    "Lost": "recorded as lost",
}


class DependencyCycle(AnodeJobsError):
    """Jobs would wait for each other: each of ``cycle`` for the next one, the last for the first.

    None of the dependencies that were asked for has been stored.
    """

    def __init__(self, cycle: tuple[str, ...]) -> None:
        super().__init__(cycle)
        self.cycle = cycle

    def __str__(self) -> str:
        told = [repr(job_id) for job_id in (*self.cycle, self.cycle[0])]
        if len(told) > _TOLD_OF_A_CYCLE:
            left_out = len(told) - _TOLD_OF_A_CYCLE
            told[_TOLD_OF_A_CYCLE // 2 : -_TOLD_OF_A_CYCLE // 2] = [f"… {left_out} more …"]
        return f"{' waits for '.join(told)}: leave one of these dependencies out"


_TOLD_OF_A_CYCLE = 8


class WaitTimeout(AnodeJobsError, TimeoutError):
    """The wait took longer than its ``timeout``; the job runs on."""

    def __init__(self, what: str, timeout: float) -> None:
        super().__init__(what, timeout)
        self.what = what
        self.timeout = timeout

    def __str__(self) -> str:
        return f"{self.what}: not there yet after {self.timeout:g} s; nothing was stopped"


class StatusUnreachable(AnodeJobsError):
    """The job ended without reaching the awaited status; ``record`` is how it ended."""

    def __init__(self, record: JobRecord, wanted: tuple[str, ...]) -> None:
        super().__init__(record, wanted)
        self.record = record
        self.wanted = wanted

    def __str__(self) -> str:
        ended = f"job {self.record.self_id!r} ended as {self.record.status}"
        reason = f" ({self.record.error})" if self.record.error else ""
        return f"{ended}{reason} and never was {' or '.join(self.wanted)}"


class StoreError(AnodeJobsError):
    """The store cannot be opened, read or written."""


class ExecutorError(AnodeJobsError):
    """A process could not be reached, or the executor has been closed."""


def as_ours(cause: BaseException, other: AnodeJobsError) -> AnodeJobsError:
    """Return the cause where callers know such an error, else the other one, caused by it."""
    if isinstance(cause, AnodeJobsError):
        return cause
    other.__cause__ = cause
    return other


def one_line(error: Exception) -> str:
    """Return what is wrong, in the system's words where it is the system that refuses."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename!r}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
