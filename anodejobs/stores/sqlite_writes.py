"""A batch of writes as SQL, made to cost few turns.

The thread of the connection and the event loop take turns at running Python, and under load a
turn is what a commit waits for. So the rows are made on the event loop, and a statement inserts
many rows at once where it can: it then is one turn, not one for each row.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from anodejobs.records import JobRecord
from anodejobs.stores.base import Delete, Insert, Save, Write

Row = tuple[Any, ...]

_INSERT = """
    INSERT INTO jobs (job_id, revision, status, created_at, last_update, started_at, finished_at,
        name, user_id, workflow_id, record, attempt, launch, environment)
    VALUES {rows} ON CONFLICT (job_id) DO NOTHING"""
_SAVE = """
    UPDATE jobs SET revision = ?, status = ?, last_update = ?, started_at = ?, finished_at = ?,
        record = ?, attempt = coalesce(?, attempt)
    WHERE job_id = ? AND revision = ?"""
_RENEW = """
    UPDATE jobs SET revision = ?, status = ?, created_at = ?, last_update = ?, started_at = ?,
        finished_at = ?, name = ?, user_id = ?, workflow_id = ?, record = ?,
        attempt = coalesce(?, attempt), launch = ?, environment = ?
    WHERE job_id = ? AND revision = ?"""
_DELETE = "DELETE FROM jobs WHERE job_id = ? AND revision = ?"
_ADD_HISTORY = """
    INSERT INTO history (seq, job_id, attempt, at, previous, status, why) VALUES {rows}"""
_FORGET_HISTORY = "DELETE FROM history WHERE job_id = ?"
_ADD_TAGS = "INSERT INTO tags (tag, job_id) VALUES {rows}"
_FORGET_TAGS = "DELETE FROM tags WHERE job_id = ?"
_ADD_ENVIRONMENTS = "INSERT INTO environments (digest, body) VALUES {rows} ON CONFLICT DO NOTHING"
_COUNT = """
    INSERT INTO counters (name, value) VALUES {rows}
    ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"""


class Batch:
    """Writes that are applied in one transaction, each by itself."""

    def __init__(self, writes: Sequence[Write], environments: Environments) -> None:
        self._writes = writes
        self._inserts: list[tuple[Write, Row]] = []
        self._renewals: list[tuple[Write, Row]] = []
        self._saves: list[tuple[Write, Row]] = []
        self._deletes: list[tuple[Write, Row]] = []
        for write in writes:
            if isinstance(write, Delete):
                self._deletes.append((write, (write.record.self_id, write.record.revision)))
            elif isinstance(write, Insert):
                self._inserts.append((write, _insert_row(write, environments)))
            elif write.launch is not None:
                self._renewals.append((write, _renewal_row(write, environments)))
            else:
                self._saves.append((write, _save_row(write)))
        self._new_environments = environments.take_new()
        self.results: list[int | None] = []
        """As ``JobStore.commit`` returns them; there once the batch was applied."""

    def apply(self, connection: sqlite3.Connection) -> None:
        """Execute the statements. The caller has begun a transaction and commits it."""
        _execute(connection, _ADD_ENVIRONMENTS, self._new_environments)
        # Any order of kinds will do: two writes for one job in one batch were made at once, and
        # the one that comes second is refused by its revision.
        applied = {
            id(write)
            for sql, writes in (
                (_INSERT, self._inserts),
                (_RENEW, self._renewals),
                (_SAVE, self._saves),
                (_DELETE, self._deletes),
            )
            for write in _apply_each(connection, sql, writes)
        }
        _keep_tags(connection, [w for w in self._writes if id(w) in applied])
        self.results = self._keep_history(connection, applied)

    def _keep_history(self, connection: sqlite3.Connection, applied: set[int]) -> list[int | None]:
        """Write history and counters for what was applied; return the result of each write."""
        ((seq,),) = connection.execute("SELECT value FROM counters WHERE name = 'seq'").fetchall()
        counters: Counter[str] = Counter()
        results: list[int | None] = []
        history: list[Row] = []
        for write in self._writes:
            if id(write) not in applied:
                results.append(None)
            elif isinstance(write, Delete):
                counters[write.record.status] -= 1
                results.append(0)
            else:
                seq += 1
                history.append((seq, *_history_row(write)))
                counters["seq"] += 1
                counters[write.record.status] += 1
                if isinstance(write, Save):
                    counters[write.previous] -= 1
                results.append(seq)
        _execute(connection, _ADD_HISTORY, history)
        _execute(connection, _COUNT, [(name, n) for name, n in counters.items() if n])
        return results


class Environments:
    """The environments that jobs were asked for with, each kept once however many jobs had it."""

    def __init__(self) -> None:
        self._last: tuple[dict[str, str] | None, str] = (None, "")
        self._new: list[Row] = []

    def key(self, env: dict[str, str]) -> str:
        """Return the key under which the environment is kept."""
        known, digest = self._last
        if env is not known:
            body = json.dumps(env, sort_keys=True)
            digest = hashlib.sha256(body.encode()).hexdigest()
            self._last = (env, digest)
            self._new.append((digest, body))
        return digest

    def take_new(self) -> list[Row]:
        """Return what the next batch has to add."""
        new, self._new = self._new, []
        return new

    def forget(self) -> None:
        """Have none in mind: what was to be added may not have been."""
        self._last = (None, "")


def _columns(record: JobRecord) -> Row:
    """Return what a run sets, from the revision to the record itself."""
    return (
        record.revision,
        record.status,
        micros(record.created_at) or 0,
        micros(record.last_update) or 0,
        micros(record.started_at),
        micros(record.finished_at),
        record.name,
        record.user_id,
        record.workflow_id,
        record.model_dump_json(),
    )


def _insert_row(write: Insert, environments: Environments) -> Row:
    record = write.record
    return (
        record.self_id,
        *_columns(record),
        write.attempt.to_text(),
        write.launch.to_text(),
        environments.key(write.launch.base_env),
    )


def _renewal_row(write: Save, environments: Environments) -> Row:
    record, launch = write.record, write.launch
    assert launch is not None
    return (
        *_columns(record),
        write.attempt and write.attempt.to_text(),
        launch.to_text(),
        environments.key(launch.base_env),
        record.self_id,
        record.revision - 1,
    )


def _save_row(write: Save) -> Row:
    record = write.record
    return (
        record.revision,
        record.status,
        micros(record.last_update) or 0,
        micros(record.started_at),
        micros(record.finished_at),
        record.model_dump_json(),
        write.attempt and write.attempt.to_text(),
        record.self_id,
        record.revision - 1,
    )


def _history_row(write: Insert | Save) -> Row:
    record = write.record
    previous = write.previous if isinstance(write, Save) else None
    at = micros(record.last_update) or 0
    return (record.self_id, record.attempt, at, previous, record.status, write.why)


def _apply_each(
    connection: sqlite3.Connection, sql: str, writes: list[tuple[Write, Row]]
) -> list[Write]:
    """Return the writes whose row was changed."""
    if not writes:
        return []
    connection.execute("SAVEPOINT each")
    if _execute(connection, sql, [row for _, row in writes]) == len(writes):
        connection.execute("RELEASE each")
        return [write for write, _ in writes]
    # Some were refused, and only one by one do we learn which.
    connection.execute("ROLLBACK TO each")
    connection.execute("RELEASE each")
    return [write for write, row in writes if _execute(connection, sql, [row])]


def _execute(connection: sqlite3.Connection, sql: str, rows: list[Row]) -> int:
    """Execute the statement for all rows; return how many rows of the table it changed."""
    if not rows:
        return 0
    if "{rows}" not in sql:
        return connection.executemany(sql, rows).rowcount
    width = len(rows[0])
    most = _MOST_VARIABLES // width
    one = f"({', '.join('?' * width)})"
    changed = 0
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        statement = sql.replace("{rows}", ", ".join([one] * len(part)))
        changed += connection.execute(statement, list(chain.from_iterable(part))).rowcount
    return changed


_MOST_VARIABLES = 999
"""The least that a build of SQLite takes in one statement."""


def _keep_tags(connection: sqlite3.Connection, writes: list[Write]) -> None:
    fresh = [w for w in writes if isinstance(w, Insert) or (isinstance(w, Save) and w.launch)]
    gone = [(w.record.self_id,) for w in writes if isinstance(w, Delete)]
    renewed = [(w.record.self_id,) for w in fresh if isinstance(w, Save)]
    tags = [(tag, w.record.self_id) for w in fresh for tag in set(w.record.tags)]
    _execute(connection, _FORGET_HISTORY, gone)
    _execute(connection, _FORGET_TAGS, gone + renewed)
    _execute(connection, _ADD_TAGS, tags)


def micros(moment: datetime | None) -> int | None:
    """Return a moment as microseconds since 1970."""
    if moment is None:
        return None
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def moment(value: int) -> datetime:
    """Return the moment that ``micros`` gave the value for."""
    return _EPOCH + timedelta(microseconds=value)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
