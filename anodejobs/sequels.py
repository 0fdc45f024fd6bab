"""What follows the end of an attempt: nothing, a retry or a restart. Pure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from anodejobs.events import Exited, Lost, StartFailed
from anodejobs.records import WAITING, AttemptRecord, JobEvent, JobRecord, Status
from anodejobs.retries import (
    Failure,
    GaveUp,
    RestartPolicy,
    Run,
    next_attempt,
    next_restart,
    retry_from_json,
)

LOG = logging.getLogger("anodejobs")

Ended = TypeVar("Ended", Exited, StartFailed, Lost, Exited | StartFailed | Lost)


def with_sequel(
    record: JobRecord, event: Ended, events: Sequence[JobEvent], fraction: float
) -> Ended:
    """Return the end of the record's attempt with the moment of the next one, if there is one.

    ``events`` are the job's history, where it has a restart policy; ``fraction`` is a random number
    below 1. A user's policy that fails counts as one that says no.
    """
    answer: float | GaveUp | None
    if record.status in (Status.stopping, Status.failed_stop) and not record.error:
        return event  # a caller has stopped it
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


def _retry_delay(
    record: JobRecord, event: Exited | StartFailed | Lost, fraction: float
) -> float | None:
    exit_code = event.exit_code if isinstance(event, Exited) else None
    if exit_code == 0 and not record.error:
        return None
    failure = Failure(record.attempt, exit_code, isinstance(event, Lost), fraction)
    try:
        policy = retry_from_json(record.retry or {"kind": "fixed"})
        return next_attempt(policy, failure, max_retries=record.max_retries)
    except Exception:
        LOG.exception("job %s: its retry policy fails; it is not retried", record.self_id)
        return None


def _restart_policy(record: JobRecord) -> RestartPolicy:
    return RestartPolicy(record.restart_policy or {"when": record.restart})


def _runs(
    record: JobRecord, event: Exited | StartFailed | Lost, events: Sequence[JobEvent]
) -> list[Run]:
    """Return all attempts of this run of the job, the one that has just ended last."""
    runs = [
        Run(ended.started_at or entry.at, entry.at, ended.exit_code != 0)
        for entry in events
        if (ended := entry.ended) is not None and _is_of(record, entry.at)
    ]
    failed = not isinstance(event, Exited) or event.exit_code != 0 or bool(record.error)
    return [*runs, Run(record.started_at or event.at, event.at, failed)]


def attempts_of(record: JobRecord, events: Sequence[JobEvent]) -> list[AttemptRecord]:
    """Return the attempts of the job's last run, oldest first, from its record and history."""
    ended = [entry.ended for entry in events if entry.ended and _is_of(record, entry.at)]
    if record.status in WAITING or record.status is Status.cancelled:
        return ended  # the next one had not been started
    last = AttemptRecord(
        attempt=record.attempt,
        status=record.status,
        started_at=record.started_at,
        finished_at=record.finished_at,
        pid=record.last_pid,
        exit_code=record.exit_code,
        evidence=record.evidence,
        error=record.error,
    )
    return [*ended, last]


def _is_of(record: JobRecord, at: datetime) -> bool:
    """Return whether a moment lies in this run of the job, which may have been run before."""
    return record.created_at is None or at >= record.created_at
