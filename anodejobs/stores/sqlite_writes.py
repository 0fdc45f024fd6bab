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
from itertools import chain

from anodejobs.executors.base import Launch
from anodejobs.records import JobRecord
from anodejobs.stores.base import Delete, Insert, Save, Write
from anodejobs.stores.rows import (
    RECORD_COLUMNS,
    Row,
    fact_columns,
    key_columns,
    micros,
    spec_of,
)

_INSERT = f"""
    INSERT INTO jobs ({RECORD_COLUMNS}, attempt) VALUES {{rows}} ON CONFLICT (job_id) DO NOTHING"""
_ADD_SPECS = """
    INSERT OR REPLACE INTO specs (job_id, spec, launch, environment) VALUES {rows}"""
_FACTS = (
    "revision, status, last_update, started_at, finished_at, number, last_pid, exit_code,"
    " evidence, error, reached"
)
_SAVE = f"""
    UPDATE jobs SET ({_FACTS}) = (column2, column3, column4, column5, column6, column7, column8,
        column9, column10, column11, column12), attempt = coalesce(column13, attempt)
    FROM (VALUES {{rows}}) WHERE job_id = column1 AND revision = column2 - 1"""
_RENEW = f"""
    UPDATE jobs SET ({_FACTS}, created_at, name, user_id, workflow_id) = (column2, column3,
        column4, column5, column6, column7, column8, column9, column10, column11, column12,
        column14, column15, column16, column17), attempt = coalesce(column13, attempt)
    FROM (VALUES {{rows}}) WHERE job_id = column1 AND revision = column2 - 1"""
_DELETE = "DELETE FROM jobs WHERE job_id = ? AND revision = ?"
_ADD_HISTORY = """
    INSERT INTO history (seq, job_id, attempt, at, previous, status, why) VALUES {rows}"""
_FORGET_SPECS = "DELETE FROM specs WHERE job_id = ?"
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
        self._specs: list[tuple[Write, Row]] = []
        for write in writes:
            if isinstance(write, Delete):
                self._deletes.append((write, (write.record.self_id, write.record.revision)))
                continue
            if isinstance(write, Insert):
                self._inserts.append((write, _insert_row(write)))
            elif write.launch is not None:
                self._renewals.append((write, _renewal_row(write)))
            else:
                self._saves.append((write, _save_row(write)))
            if write.launch is not None:
                spec = _spec_row(write.record, write.launch, environments)
                self._specs.append((write, spec))
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
        _execute(connection, _ADD_SPECS, [row for w, row in self._specs if id(w) in applied])
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


def _insert_row(write: Insert) -> Row:
    record = write.record
    return (*key_columns(record), *fact_columns(record), write.attempt.to_text())


def _save_row(write: Save) -> Row:
    record = write.record
    attempt = None if write.attempt is None else write.attempt.to_text()
    return (record.self_id, *fact_columns(record), attempt)


def _renewal_row(write: Save) -> Row:
    return (*_save_row(write), *key_columns(write.record)[1:])


def _spec_row(record: JobRecord, launch: Launch, environments: Environments) -> Row:
    key = environments.key(launch.base_env)
    return (record.self_id, spec_of(record), launch.to_text(), key)


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
    _execute(connection, _FORGET_SPECS, gone)
    _execute(connection, _FORGET_HISTORY, gone)
    _execute(connection, _FORGET_TAGS, gone + renewed)
    _execute(connection, _ADD_TAGS, tags)
