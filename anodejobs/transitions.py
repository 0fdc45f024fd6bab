"""The life of a job as a table: from every status, what every event makes of it.

Pure. A status is set here and nowhere else. ``TABLE`` has a cell for every pair of status and
event; "nothing happens" (``KEEP``) and "not allowed" (``REFUSE``) are written, not left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from signal import Signals
from typing import Any, Final, Literal

from pydantic import JsonValue

from anodejobs.errors import InvalidTransition, StatusUnreachable
from anodejobs.events import (
    Admitted,
    Adopted,
    Claimed,
    End,
    Event,
    Exited,
    Lost,
    Paused,
    Readied,
    Relinked,
    Resumed,
    Started,
    StartFailed,
    StopFailed,
    StopRequested,
    Submitted,
    Withdrawn,
    utc_now,
)
from anodejobs.records import AttemptRecord, JobRecord, Status

__all__ = [
    "RECOVERY_HISTORY",
    "SIGNALLABLE",
    "TABLE",
    "Opening",
    "attempt_record",
    "ended_attempt",
    "has_reached",
    "opened",
    "renewed",
    "reopened",
    "transition",
]


RECOVERY_HISTORY: Final = "recovery_history"
"""The key of the metadata that tells how this run of the job was interrupted, and what followed."""


class Outcome(Enum):
    """A cell that names no status."""

    KEEP = "the record stays as it is"
    REFUSE = "the event does not fit the status"


KEEP: Final = Outcome.KEEP
REFUSE: Final = Outcome.REFUSE
Cell = Status | Outcome | Callable[[JobRecord, Any], Status]


def _by_readiness(record: JobRecord, event: Submitted) -> Status:
    return Status.queued if event.is_ready else Status.pending


def _by_exit_code(record: JobRecord, event: Exited) -> Status:
    return _again(event) or _outcome(event)


def _outcome(event: Exited) -> Status:
    if event.exit_code == 0:
        return Status.finished
    return Status.failed_start if event.in_start_grace else Status.failed


def _after_stop(record: JobRecord, event: Exited) -> Status:
    if not record.error:  # what a caller has stopped is not started again
        return _outcome(event) if event.ended_by_itself else Status.stopped
    # What ran out of time may be.
    return _again(event) or (_outcome(event) if event.ended_by_itself else Status.failed)


def _failed_to_start(record: JobRecord, event: StartFailed) -> Status:
    return _again(event) or Status.failed_start


def _lost(record: JobRecord, event: Lost) -> Status:
    return _again(event) or (Status.failed if event.is_failure else Status.lost)


def _lost_after_stop(record: JobRecord, event: Lost) -> Status:
    return _lost(record, event) if record.error else Status.lost


def _again(event: End) -> Status | None:
    return None if event.retry_at is None else Status.pending


def _row(**cells: Cell) -> Mapping[type[Event], Cell]:
    """Make a row from cells named by event, refusing what is not named."""
    unknown = cells.keys() - {event.__name__ for event in EVENTS}
    assert not unknown, unknown
    return {event: cells.get(event.__name__, REFUSE) for event in EVENTS}


EVENTS: Final = (
    Submitted,
    Readied,
    Admitted,
    Withdrawn,
    Relinked,
    Started,
    StartFailed,
    Claimed,
    Adopted,
    Paused,
    Resumed,
    StopRequested,
    StopFailed,
    Exited,
    Lost,
)

_S = Status
_ENDED = _row(
    Withdrawn=KEEP,
    StopRequested=KEEP,
    # A second supervisor's late word on an attempt whose end is on record.
    Exited=KEEP,
    Lost=KEEP,
)
TABLE: Final[Mapping[Status, Mapping[type[Event], Cell]]] = {
    _S.pending: _row(
        Submitted=_by_readiness,
        Readied=_S.queued,
        Withdrawn=_S.cancelled,
        Relinked=_S.pending,
    ),
    _S.queued: _row(
        Submitted=KEEP,
        Readied=KEEP,
        Admitted=_S.starting,
        Withdrawn=_S.cancelled,
        # It waits again: for the scheduler to see whether it depends on what has ended.
        Relinked=_S.pending,
    ),
    _S.starting: _row(
        Started=_S.running,
        StartFailed=_failed_to_start,
        Claimed=_S.starting,
        Adopted=_S.running,
        Lost=_lost,
    ),
    _S.running: _row(
        Claimed=_S.running,
        Adopted=_S.running,
        Paused=_S.paused,
        Resumed=KEEP,
        StopRequested=_S.stopping,
        Exited=_by_exit_code,
        Lost=_lost,
    ),
    _S.paused: _row(
        Claimed=_S.paused,
        Adopted=_S.paused,
        Paused=KEEP,
        Resumed=_S.running,
        StopRequested=_S.stopping,
        Exited=_by_exit_code,
        Lost=_lost,
    ),
    _S.stopping: _row(
        Claimed=_S.stopping,
        Adopted=_S.stopping,
        StopRequested=KEEP,
        StopFailed=_S.failed_stop,
        Exited=_after_stop,
        Lost=_lost_after_stop,
    ),
    _S.failed_stop: _row(
        Claimed=_S.failed_stop,
        Adopted=_S.failed_stop,
        StopRequested=_S.stopping,
        Exited=_after_stop,
        Lost=_lost_after_stop,
    ),
    _S.finished: _ENDED,
    _S.failed: _ENDED,
    _S.failed_start: _ENDED,
    _S.stopped: _ENDED,
    _S.cancelled: _ENDED,
    _S.lost: _ENDED,
}


SIGNALLABLE: Final = frozenset({_S.running, _S.paused, _S.stopping, _S.failed_stop})
"""The statuses in which a job has processes that are known."""


Opening = Literal["start", "submit", "create"]
"""Whether a new job is to be started now, to take its turn, or to wait for that to be said."""


def opened(opening: Opening, **fields: Any) -> JobRecord:
    """Return the first record of a job; the fields are checked, its times among them."""
    record = _BLANK.changed(fields)
    status = Status.starting
    if opening != "start":
        is_ready = opening == "submit" and not record.depends_on and record.due_at is None
        status = Status.queued if is_ready else Status.pending
    assert record.created_at is not None
    record.__dict__.update(  # nobody has seen it yet
        status=status,
        reached=[status],
        # Never used before: it must not be taken for a job of this id that was deleted.
        revision=int(record.created_at.timestamp() * 1_000_000),
        submitted_at=None if opening == "create" else record.created_at,
    )
    return record


_BLANK: Final = JobRecord(self_id="-", status=Status.pending)


def renewed(record: JobRecord, opening: Opening) -> JobRecord:
    """Return the first record of another run of the same job: what was asked for, and no more."""
    now = utc_now()
    kept = {name: value for name, value in record.__dict__.items() if name not in _OF_A_RUN}
    kept["metadata"] = {k: v for k, v in record.metadata.items() if k != RECOVERY_HISTORY}
    return opened(opening, **kept, created_at=now, last_update=now)


_OF_A_RUN: Final = {
    "status",
    "last_update",
    "last_pid",
    "attempt",
    "created_at",
    "started_at",
    "finished_at",
    "exit_code",
    "evidence",
    "error",
    "cpu_seconds",
    "peak_memory_bytes",
    "reached",
    "revision",
    "result",
    "progress",
    "submitted_at",
    "due_at",
}


def reopened(record: JobRecord, *, after: JobRecord) -> JobRecord:
    """Return the first record of a run that follows one that has ended."""
    return record.changed({"revision": after.revision + 1})


def transition(record: JobRecord, event: Event) -> JobRecord:
    """Return the record after the event; the same object where nothing changes.

    Raises InvalidTransition where the status does not allow the event.
    """
    cell = TABLE[record.status][type(event)]
    if cell is KEEP:
        return record
    if cell is REFUSE:
        raise InvalidTransition(record.self_id, record.status, type(event).__name__)
    status = cell(record, event) if callable(cell) else cell
    assert isinstance(status, Status)
    return record.changed(
        {
            "status": status,
            "last_update": event.at,
            "revision": record.revision + 1,
            "reached": record.reached if status in record.reached else [*record.reached, status],
            **_facts(record, event, status),
        }
    )


def ended_attempt(record: JobRecord, event: Event, after: JobRecord) -> AttemptRecord | None:
    """Return the attempt that the event ended, where another one follows it."""
    if after.attempt == record.attempt:
        return None
    assert isinstance(event, End)
    # As it would stand on record if nothing followed.
    return attempt_record(transition(record, replace(event, retry_at=None)))


def attempt_record(record: JobRecord) -> AttemptRecord:
    """Return what the record tells of its attempt."""
    return AttemptRecord(
        attempt=record.attempt,
        status=record.status,
        started_at=record.started_at,
        finished_at=record.finished_at,
        pid=record.last_pid,
        exit_code=record.exit_code,
        evidence=record.evidence,
        error=record.error,
        cpu_seconds=record.cpu_seconds,
        peak_memory_bytes=record.peak_memory_bytes,
    )


def _facts(record: JobRecord, event: Event, status: Status) -> dict[str, Any]:
    """Return what the event says beside the status."""
    match event:
        case Started():
            return {"started_at": event.at, "last_pid": event.attempt.pid}
        case Exited():
            return {
                "finished_at": event.at,
                "exit_code": event.exit_code,
                "evidence": event.evidence,
                "error": event.log_error or _end_line(record, event, status) or event.result_error,
                "result": event.result,
                "progress": event.progress,
                "cpu_seconds": event.cpu_seconds,
                "peak_memory_bytes": event.peak_memory_bytes,
                **_another(record, event, status),
            }
        case Adopted():
            found = {"last_pid": event.attempt.pid}
            return found if record.started_at else {**found, "started_at": event.at}
        case StopRequested(error=str(error)):
            return {"error": error}
        case StartFailed():
            return {
                "finished_at": event.at,
                "error": event.error,
                **_another(record, event, status),
            }
        case Lost():
            return {
                "finished_at": event.at,
                "error": event.error,
                "metadata": _recovered(record, event, status),
                **_another(record, event, status),
            }
        case Submitted():
            return {"submitted_at": event.at}
        case Admitted():
            return {
                **_UNSTARTED,
                "host": event.host or record.host,
                "dirname": event.dirname or record.dirname,
                "logdir": event.logdir or record.logdir,
            }
        case Withdrawn():
            return {"finished_at": event.at, "error": event.error}
        case Relinked():
            return {"depends_on": list(event.depends_on)}
        case _:
            return {}


_UNSTARTED: Final = {
    "last_pid": None,
    "started_at": None,
    "finished_at": None,
    "exit_code": None,
    "evidence": None,
    "error": None,
    "cpu_seconds": None,
    "peak_memory_bytes": None,
    "progress": None,
    "due_at": None,
}


def _recovered(record: JobRecord, event: Lost, status: Status) -> dict[str, JsonValue]:
    """Return the metadata with what became of an attempt that a failure has interrupted."""
    recovery: dict[str, JsonValue] = {
        "at": event.at.isoformat(),
        "attempt": record.attempt,
        "host": record.host,
        "was": record.status.value,
        "became": status.value,
        "error": event.error,
    }
    history = record.metadata.get(RECOVERY_HISTORY)
    earlier = history if isinstance(history, list) else []
    return {**record.metadata, RECOVERY_HISTORY: [*earlier, recovery]}


def _another(record: JobRecord, event: End, status: Status) -> dict[str, Any]:
    """Return what is to be said of the attempt that follows, if one does."""
    if status is not Status.pending:
        return {}
    return {"attempt": record.attempt + 1, "due_at": event.retry_at, "reached": [Status.pending]}


def _end_line(record: JobRecord, event: Exited, status: Status) -> str | None:
    has_succeeded = event.exit_code == 0 and (event.ended_by_itself or not record.error)
    if status is Status.stopped or has_succeeded:
        return event.gave_up
    line = _failure_line(record, event)
    return f"{line}; {event.gave_up}" if event.gave_up else line


def _failure_line(record: JobRecord, event: Exited) -> str:
    if record.error and not event.ended_by_itself:
        return record.error  # why we stopped it
    if event.limit:
        return event.limit
    exit_code = event.exit_code
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {Signals(-exit_code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-exit_code}"


def has_reached(record: JobRecord, wanted: frozenset[Status] | None) -> bool:
    """Return whether a wait for ``wanted`` (None: any end) is over with this record.

    Raises StatusUnreachable when the job has ended without it.
    """
    if wanted is None:
        return record.is_done
    if not wanted.isdisjoint(record.reached) or record.status in wanted:
        return True
    if record.is_done:
        # Whoever catches it has a record to himself, as every caller.
        raise StatusUnreachable(record.detached(), tuple(sorted(wanted)))
    return False
