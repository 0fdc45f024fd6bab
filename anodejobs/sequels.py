"""What follows the end of an attempt: nothing, a retry or a restart. Pure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal, TypeVar

from anodejobs.events import End, Exited, Lost, StartFailed
from anodejobs.records import WAITING, AttemptRecord, JobEvent, JobRecord, Status
from anodejobs.retries import (
    Failure,
    GaveUp,
    RestartPolicy,
    Run,
    has_all_runs,
    next_attempt,
    next_restart,
    retry_from_json,
)
from anodejobs.transitions import RECOVERY_HISTORY, attempt_record, transition

LOG = logging.getLogger("anodejobs")

Recovery = Literal["lost", "fail", "pending"]
"""What becomes of a job whose attempt was lost: its end, a failure, or another attempt."""
Ended = TypeVar("Ended", Exited, StartFailed, Lost, End)


def with_sequel(
    record: JobRecord, event: Ended, events: Sequence[JobEvent], fraction: float
) -> Ended:
    """Return the end of the record's attempt with the moment of the next one, if there is one.

    ``events`` are the job's history where it has a restart policy, or the end of it that
    ``is_enough``; ``fraction`` is a random number below 1. A user's policy that fails counts as one
    that says no, and the event says that it failed. Raises InvalidTransition.
    """
    if not _may_go_on(record, event):
        return event
    if record.status in (Status.stopping, Status.failed_stop) and not record.error:
        return event  # a caller has stopped it
    answer: float | GaveUp | None
    if record.restart != "never":
        answer = next_restart(_restart_policy(record), _runs(record, event, events))
    else:
        answer = _retry_delay(record, event, fraction)
    if answer is None:
        return event
    if isinstance(answer, GaveUp):
        if isinstance(event, Exited):
            return replace(event, gave_up=answer.error)
        return replace(event, error=f"{event.error}; {answer.error}")
    return replace(event, retry_at=event.at + timedelta(seconds=answer))


def is_enough(record: JobRecord, event: End, events: Sequence[JobEvent]) -> bool:
    """Return whether the job's restart policy says the same, whatever came before these events."""
    is_all = bool(events) and not _is_of(record, events[0].at)
    return is_all or has_all_runs(_restart_policy(record), _runs(record, event, events))


_MOST_RECOVERIES = 10
"""How often a job is run again that was interrupted: it may be what brings the machine down."""


def recovered(record: JobRecord, event: Lost, recovery: Recovery) -> Lost:
    """Return the loss of an attempt with what becomes of the job, where no retry policy says it."""
    if event.retry_at is not None or not _may_go_on(record, event):
        return event
    history = record.metadata.get(RECOVERY_HISTORY)
    if recovery == "pending" and isinstance(history, list) and len(history) >= _MOST_RECOVERIES:
        return replace(event, error=f"{event.error}; gave up: {len(history)} recoveries")
    match recovery:
        case "lost":
            return event
        case "fail":
            return replace(event, is_failure=True)
        case "pending":
            return replace(event, retry_at=event.at)


def _may_go_on(record: JobRecord, event: End) -> bool:
    """Return whether another attempt can follow this end: not where a caller has stopped it."""
    return transition(record, replace(event, retry_at=event.at)).status is Status.pending


def _retry_delay(record: JobRecord, event: End, fraction: float) -> float | GaveUp | None:
    if not _has_failed(record, event):
        return None
    exit_code = event.exit_code if isinstance(event, Exited) else None
    failure = Failure(record.attempt, exit_code, isinstance(event, Lost), fraction)
    try:
        policy = retry_from_json(record.retry or {"kind": "fixed"})
        return next_attempt(policy, failure, max_retries=record.max_retries)
    except Exception as error:
        LOG.exception("job %s: its retry policy failed; it is not retried", record.self_id)
        why = " ".join(repr(error).split())  # pydantic's are of several lines
        return GaveUp(f"its retry policy failed: {why}")


def _has_failed(record: JobRecord, event: End) -> bool:
    return transition(record, event).status is not Status.finished


def _restart_policy(record: JobRecord) -> RestartPolicy:
    return RestartPolicy(record.restart_policy or {"when": record.restart})


def _runs(record: JobRecord, event: End, events: Sequence[JobEvent]) -> list[Run]:
    """Return all attempts of this run of the job, the one that has just ended last."""
    runs = [
        Run(ended.started_at or entry.at, entry.at, ended.status is not Status.finished)
        for entry in events
        if (ended := entry.ended) is not None and _is_of(record, entry.at)
    ]
    return [*runs, Run(record.started_at or event.at, event.at, _has_failed(record, event))]


def attempts_of(record: JobRecord, events: Sequence[JobEvent]) -> list[AttemptRecord]:
    """Return the attempts of the job's last run, oldest first, from its record and history."""
    ended = [entry.ended for entry in events if entry.ended and _is_of(record, entry.at)]
    del ended[record.attempt - 1 :]  # the history may have been read later than the record
    if record.status in WAITING or record.status is Status.cancelled:
        return ended  # the next one had not been started
    return [*ended, attempt_record(record)]


def begun_attempt(record: JobRecord) -> int:
    """Return the last attempt that is known to have been started, 0 where none is."""
    is_to_come = record.status in (*WAITING, Status.starting, Status.cancelled)
    is_refused = record.status is Status.failed_start and record.started_at is None
    return record.attempt - 1 if is_to_come or is_refused else record.attempt


def _is_of(record: JobRecord, at: datetime) -> bool:
    """Return whether a moment lies in this run of the job, which may have been run before."""
    return record.created_at is None or at >= record.created_at
