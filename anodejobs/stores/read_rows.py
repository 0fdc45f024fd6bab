"""What is read of a store, from the rows of its tables. Pure; for every store that has rows.

All of it raises ValueError, TypeError or KeyError where a row is not of our making.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from anodejobs.events import Attempt
from anodejobs.executors.base import Launch
from anodejobs.records import AttemptRecord, JobEvent, Metrics, Status
from anodejobs.stores.base import Stored, Unfinished
from anodejobs.stores.rows import moment, record_of
from anodejobs.stores.tally import Group, metrics_of


def stored_of(rows: Iterable[Sequence[Any]]) -> list[Stored]:
    """Return the jobs of rows: attempt, launch, environment, the record's columns, its spec."""
    environments: dict[str, dict[str, str]] = {}  # mostly one, and of a few thousand bytes
    found = []
    for attempt, launch, body, *columns in rows:
        if body not in environments:
            environments[body] = json.loads(body)
        found.append(
            Stored(
                record=record_of(columns),
                attempt=Attempt.from_json(json.loads(attempt)),
                launch=Launch.from_json(json.loads(launch), environments[body]),
            )
        )
    return found


def unfinished_of(rows: Iterable[Sequence[Any]]) -> list[Unfinished]:
    """Return the jobs of rows: id, status, attempt."""
    return [
        Unfinished(job_id, Status(status), Attempt.from_json(json.loads(attempt)))
        for job_id, status, attempt in rows
    ]


def events_of(rows: Iterable[Sequence[Any]]) -> list[JobEvent]:
    """Return the entries of the history, whose rows start with their ``seq``."""
    return [
        JobEvent(
            seq=seq,
            kind="status",
            at=moment(at),
            job_id=job,
            attempt=attempt,
            previous=previous,
            status=status,
            why=why,
            ended=ended and AttemptRecord.model_validate_json(ended),
        )
        for seq, job, attempt, at, previous, status, why, ended in rows
    ]


def tally_of(rows: Iterable[Sequence[Any]]) -> Metrics:
    """Return the metrics of rows: those of a ``Group`` after a NULL, or a tag and how many."""
    groups: list[Group] = []
    by_tag: dict[str, int] = {}
    for tag, status, *rest in rows:
        if status is None:
            by_tag[tag] = rest[-1]
        else:
            queue, *numbers = rest
            groups.append(Group(Status(status), queue, *map(int, numbers)))
    return metrics_of(groups, by_tag)
