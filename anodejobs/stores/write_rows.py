"""What a batch writes, as the rows of tables. Pure; for every store that has rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

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


class Environments:
    """The environments that jobs were asked for with, each kept once however many jobs had it."""

    def __init__(self) -> None:
        self._last: tuple[dict[str, str] | None, str, str] = (None, "", "")
        self._new: dict[str, str] = {}
        self._kept = ""
        """The key of one that is on disk, where it stays."""

    def key(self, env: dict[str, str]) -> str:
        """Return the key under which the environment is kept."""
        known, digest, body = self._last
        if env is not known:
            body = json.dumps(env, sort_keys=True)
            digest = hashlib.sha256(body.encode()).hexdigest()
            self._last = (env, digest, body)
        if digest != self._kept:
            self._new[digest] = body
        return digest

    def take_new(self) -> list[Row]:
        """Return the rows of those that may not be on disk yet.

        A batch that comes before they are brings them again: the one that has them may fail.
        """
        new, self._new = self._new, {}
        return list(new.items())

    def note_kept(self, rows: list[Row]) -> None:
        """Take note that these are on disk."""
        if rows:
            self._kept = rows[-1][0]


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


def spec_rows(writes: Sequence[Write], environments: Environments) -> dict[int, Row]:
    """Return what each Insert, and each Save of another run, adds to the specs, by its identity."""
    return {
        id(change): spec_row(change.record, change.launch, environments)
        for write in writes
        for change in changes_of(write)
        if not isinstance(change, Delete) and change.launch is not None
    }


def spec_row(record: JobRecord, launch: Launch, environments: Environments) -> Row:
    """Return what the specs have of a run: its job, what was asked for, its environment's key."""
    key = environments.key(launch.base_env)
    return (record.self_id, spec_of(record), launch.to_text(), key)


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
