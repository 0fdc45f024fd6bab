"""The life of a job as a table: from every status, what every event makes of it.

Pure. A status is set here and nowhere else. ``TABLE`` has a cell for every pair of status and
event; "nothing happens" (``KEEP``) and "not allowed" (``REFUSE``) are written, not left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from signal import Signals
from typing import Any, Final

from anodejobs.errors import InvalidTransition, StatusUnreachable
from anodejobs.events import (
    Adopted,
    Claimed,
    Event,
    Exited,
    Lost,
    Paused,
    Resumed,
    Started,
    StartFailed,
    StopFailed,
    StopRequested,
    utc_now,
)
from anodejobs.records import JobRecord, Status

__all__ = ["SIGNALLABLE", "TABLE", "has_reached", "opened", "renewed", "reopened", "transition"]


class Outcome(Enum):
    """A cell that names no status."""

    KEEP = "the record stays as it is"
    REFUSE = "the event does not fit the status"


KEEP: Final = Outcome.KEEP
REFUSE: Final = Outcome.REFUSE
Cell = Status | Outcome | Callable[[JobRecord, Any], Status]


def _by_exit_code(record: JobRecord, event: Exited) -> Status:
    if event.exit_code == 0:
        return Status.finished
    return Status.failed_start if event.in_start_grace else Status.failed


def _after_stop(record: JobRecord, event: Exited) -> Status:
    if event.ended_by_itself:
        return _by_exit_code(record, event)
    return Status.failed if record.error else Status.stopped


def _row(**cells: Cell) -> Mapping[type[Event], Cell]:
    """Make a row from cells named by event, refusing what is not named."""
    unknown = cells.keys() - {event.__name__ for event in EVENTS}
    assert not unknown, unknown
    return {event: cells.get(event.__name__, REFUSE) for event in EVENTS}


EVENTS: Final = (
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
    StopRequested=KEEP,
    # A second supervisor's late word on an attempt whose end is on record.
    Exited=KEEP,
    Lost=KEEP,
)
_WAITING = _row()

TABLE: Final[Mapping[Status, Mapping[type[Event], Cell]]] = {
    _S.pending: _WAITING,
    _S.queued: _WAITING,
    _S.starting: _row(
        Started=_S.running,
        StartFailed=_S.failed_start,
        Claimed=_S.starting,
        Adopted=_S.running,
        Lost=_S.lost,
    ),
    _S.running: _row(
        Claimed=_S.running,
        Adopted=_S.running,
        Paused=_S.paused,
        Resumed=KEEP,
        StopRequested=_S.stopping,
        Exited=_by_exit_code,
        Lost=_S.lost,
    ),
    _S.paused: _row(
        Claimed=_S.paused,
        Adopted=_S.paused,
        Paused=KEEP,
        Resumed=_S.running,
        StopRequested=_S.stopping,
        Exited=_by_exit_code,
        Lost=_S.lost,
    ),
    _S.stopping: _row(
        Claimed=_S.stopping,
        Adopted=_S.stopping,
        StopRequested=KEEP,
        StopFailed=_S.failed_stop,
        Exited=_after_stop,
        Lost=_S.lost,
    ),
    _S.failed_stop: _row(
        Claimed=_S.failed_stop,
        Adopted=_S.failed_stop,
        StopRequested=_S.stopping,
        Exited=_after_stop,
        Lost=_S.lost,
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


def opened(**fields: Any) -> JobRecord:
    """Return the first record of a job that is to be started now; the fields are checked."""
    return _OPENED.changed({"reached": [Status.starting], **fields})


_OPENED: Final = JobRecord(self_id="-", status=Status.starting)


def renewed(record: JobRecord) -> JobRecord:
    """Return the first record of another run of the same job: what was asked for, and no more."""
    now = utc_now()
    kept = record.model_dump(exclude=_OF_A_RUN)
    return opened(**kept, created_at=now, last_update=now)


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
    "reached",
    "revision",
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


def _facts(record: JobRecord, event: Event, status: Status) -> dict[str, Any]:
    """Return what the event says beside the status."""
    match event:
        case Started():
            return {"started_at": event.at, "last_pid": event.attempt.pid}
        case Adopted():
            found = {"last_pid": event.attempt.pid}
            return found if record.started_at else {**found, "started_at": event.at}
        case StopRequested(error=str(error)):
            return {"error": error}
        case StartFailed(error=error) | Lost(error=error):
            return {"finished_at": event.at, "error": error}
        case Exited():
            return {
                "finished_at": event.at,
                "exit_code": event.exit_code,
                "evidence": event.evidence,
                "error": event.log_error or _end_line(record, event, status),
            }
        case _:
            return {}


def _end_line(record: JobRecord, event: Exited, status: Status) -> str | None:
    if status in (Status.finished, Status.stopped):
        return None
    if record.error and not event.ended_by_itself:
        return record.error  # why we stopped it
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
        raise StatusUnreachable(record, tuple(sorted(wanted)))
    return False
