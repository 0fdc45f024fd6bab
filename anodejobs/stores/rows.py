"""A record as the columns of a row, and back. Pure; for every store that has rows.

What changes while a job runs are columns of their own, so that a change writes no more than these.
What a run was asked to be is text, its *spec*, written once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from anodejobs.records import JobRecord, Status
from anodejobs.stores.base import Turn

Row = tuple[Any, ...]

RECORD_COLUMNS: Final = (
    "job_id, created_at, name, user_id, workflow_id, batch_id, queue, priority, revision, status,"
    " last_update, started_at, finished_at, submitted_at, due_at, number, last_pid, exit_code,"
    " evidence, error, reached, progress, cpu_seconds, peak_memory_bytes"
)
"""What ``record_of`` wants, followed by the spec."""

_BLANK: Final[dict[str, Any]] = {
    name: field.get_default(call_default_factory=True)
    for name, field in JobRecord.model_fields.items()
}
_NAMED_OTHERWISE: Final = {"job_id": "self_id", "number": "attempt"}
_FIELDS: Final = tuple(_NAMED_OTHERWISE.get(name, name) for name in RECORD_COLUMNS.split(", "))
"""The fields of a record that are columns, in their order."""
_IN_NO_COLUMN: Final = tuple((name, _BLANK[name]) for name in _BLANK if name not in _FIELDS)
"""The other fields, each with what it is where it was not asked for."""


def key_columns(record: JobRecord) -> Row:
    """Return the columns from ``job_id`` to ``priority``, which last for a run."""
    return (
        record.self_id,
        micros(record.created_at) or 0,
        record.name,
        record.user_id,
        record.workflow_id,
        record.batch_id,
        record.queue,
        record.priority,
    )


def fact_columns(record: JobRecord) -> Row:
    """Return the columns from ``revision`` to ``peak_memory_bytes``."""
    return (
        record.revision,
        str(record.status),
        micros(record.last_update) or 0,
        micros(record.started_at),
        micros(record.finished_at),
        micros(record.submitted_at),
        micros(record.due_at),
        record.attempt,
        record.last_pid,
        record.exit_code,
        record.evidence,
        record.error,
        ",".join(record.reached),
        record.progress,
        record.cpu_seconds,
        record.peak_memory_bytes,
    )


def spec_of(record: JobRecord) -> str:
    """Return what is in no column, as JSON."""
    values = record.__dict__
    spec = {name: values[name] for name, blank in _IN_NO_COLUMN if values[name] != blank}
    if record.run_at is not None:
        spec["run_at"] = micros(record.run_at)
    return json.dumps(spec)


def turn_of(row: Sequence[Any]) -> Turn:
    """Return the turn of a row of ``TURN``, and of what may follow. Raises ValueError."""
    job_id, status, queue, priority, number, revision, last_update, submitted_at, *more = row
    due_at, deadline, tags, spec = more
    asked = _asked(spec) if spec is not None else {}
    return Turn(
        job_id,
        _STATUSES[status],
        queue,
        priority,
        number,
        revision,
        _moment(last_update or None),
        _moment(submitted_at),
        _moment(due_at),
        deadline,
        asked.get("depends_on", ()),
        asked.get("on_dependency_failure", "cancel"),
        json.loads(tags) if tags else (),
    )


_STATUSES: Final = {status.value: status for status in Status}


def record_of(row: Sequence[Any]) -> JobRecord:
    """Return the record of a row of ``RECORD_COLUMNS`` and the spec. Raises ValueError."""
    *columns, spec = row
    asked = _asked(spec)
    if unknown := asked.keys() - _BLANK.keys():
        raise ValueError(f"a record has unknown fields: {sorted(unknown)}")
    if "run_at" in asked:
        asked["run_at"] = moment(asked["run_at"])
    values = dict(zip(_FIELDS, columns, strict=True))
    for name in ("created_at", "last_update"):
        values[name] = _moment(values[name] or None)
    for name in ("started_at", "finished_at", "submitted_at", "due_at"):
        values[name] = _moment(values[name])
    reached = values["reached"]
    values["reached"] = [Status(s) for s in reached.split(",")] if reached else []
    values["status"] = Status(values["status"])
    # Lists and dicts of its own: who holds it can change them.
    own: dict[str, Any] = {"tags": [], "metadata": {}, "depends_on": []}
    return JobRecord.trusted({**_BLANK, **own, **asked, **values})


def _asked(spec: str) -> dict[str, Any]:
    asked = json.loads(spec)
    if not isinstance(asked, dict):
        raise ValueError("a spec is an object")
    return asked


def _moment(value: int | None) -> datetime | None:
    return None if value is None else moment(value)


def micros(moment: datetime | None) -> int | None:
    """Return a moment as microseconds since 1970."""
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """Return the moment that ``micros`` gave the value for."""
    return _EPOCH + timedelta(microseconds=value)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
