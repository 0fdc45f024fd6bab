"""What a batch writes, as the rows of tables. Pure; for every store that has rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from anodejobs.executors.base import Launch
from anodejobs.records import JobEvent, JobRecord
from anodejobs.stores.base import (
    Delete,
    Insert,
    Save,
    Stored,
    Write,
    attempt_told,
    changes_of,
)
from anodejobs.stores.rows import Row, fact_columns, key_columns, micros, spec_of
from anodejobs.threads import in_thread

Made = TypeVar("Made")


_MOST_AT_ONCE = 1000
"""Of how many jobs of one write the rows are made on the event loop."""


async def made_of_writes(make: Callable[[], Made], writes: Sequence[Write]) -> Made:
    """Return what is made of the writes: in a thread, where one of them is of very many jobs."""
    if any(len(changes_of(write)) > _MOST_AT_ONCE for write in writes):
        return await in_thread(make)
    return make()


class Environments:
    """The environments that jobs were asked for with, each kept once however many jobs had it."""

    def __init__(self) -> None:
        self._last: tuple[dict[str, str] | None, Row] = (None, ())

    def row(self, env: dict[str, str]) -> Row:
        """Return the digest by which the environment is named, and its text."""
        known, row = self._last
        if env is not known:
            body = json.dumps(env, sort_keys=True)
            row = hashlib.sha256(body.encode()).hexdigest(), body
            self._last = env, row
        return row


@dataclass(frozen=True, slots=True)
class Spec:
    """The row of what a run was asked to be, and that of the environment which it names.

    Who removes the last job that names an environment removes it, so it comes with every run.
    """

    row: Row
    environment: Row


def inserted(stored: Stored) -> Insert:
    """Return what would bring the job into being as it is kept."""
    return Insert(record=stored.record, launch=stored.launch, attempt=stored.attempt)


def insert_row(write: Insert) -> Row:
    """Return the columns of a record, and the attempt."""
    record = write.record
    return (*key_columns(record), *fact_columns(record), write.attempt.to_text())


def attempt_text(write: Save) -> str | None:
    """Return the attempt where the write names one."""
    return None if write.attempt is None else write.attempt.to_text()


def specs_of(writes: Sequence[Write], environments: Environments) -> dict[int, Spec]:
    """Return the spec of each Insert, and of each Save of another run, by its identity."""
    return {
        id(change): spec_of_run(change.record, change.launch, environments)
        for write in writes
        for change in changes_of(write)
        if not isinstance(change, Delete) and change.launch is not None
    }


def spec_of_run(record: JobRecord, launch: Launch, environments: Environments) -> Spec:
    """Return the spec of a run."""
    environment = environments.row(launch.base_env)
    return Spec((record.self_id, spec_of(record), launch.to_text(), environment[0]), environment)


def dropped_specs(changes: Sequence[Insert | Save | Delete]) -> list[str]:
    """Return the jobs whose specs are dropped, for another one or for none."""
    return [
        change.record.self_id
        for change in changes
        if isinstance(change, Delete) or (isinstance(change, Save) and change.launch is not None)
    ]


def event_row(event: JobEvent) -> Row:
    """Return what the history has of what it told elsewhere, with its ``seq``."""
    told = None if event.ended is None else event.ended.model_dump_json()
    at = micros(event.at)
    return (
        *(event.seq, event.job_id, event.attempt, at, event.previous, event.status, event.why),
        told,
    )


def history_row(write: Insert | Save) -> Row:
    """Return what the history has of an applied write, after its ``seq``."""
    record = write.record
    previous = None if write.previous is None else str(write.previous)
    at = micros(record.last_update) or 0
    told = None if write.ended is None else write.ended.model_dump_json()
    return (record.self_id, attempt_told(write), at, previous, str(record.status), write.why, told)
