"""A batch of writes as SQL: one statement for all rows of a kind, in one transaction.

The thread of the connection and the event loop take turns at running Python, and under load a turn
is what a commit waits for. So the rows are made on the event loop.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from anodejobs.records import JobEvent
from anodejobs.stores.base import (
    Delete,
    Insert,
    InsertAll,
    Save,
    Stored,
    Write,
    changes_of,
    check_restored,
)
from anodejobs.stores.rows import (
    RECORD_COLUMNS,
    Row,
    fact_columns,
    key_columns,
    spec_of,
)
from anodejobs.stores.write_rows import (
    Environments,
    attempt_text,
    event_row,
    history_row,
    insert_row,
    inserted,
    spec_row,
)


def _values(columns: str) -> str:
    return f"({columns}) VALUES ({', '.join('?' * len(columns.split(', ')))})"


def _update(columns: str) -> str:
    """Return the statement that updates the columns, and the attempt where it is given.

    A row is the columns, the attempt, the id, and the revision that is to be there.
    """
    changes = ", ".join(f"{column} = ?" for column in columns.split(", "))
    return (
        f"UPDATE jobs SET {changes}, attempt = coalesce(?, attempt)"
        " WHERE job_id = ? AND revision = ?"
    )


_INSERT = (
    f"INSERT INTO jobs {_values(RECORD_COLUMNS + ', attempt')} ON CONFLICT (job_id) DO NOTHING"
)
_ADD_SPECS = f"INSERT OR REPLACE INTO specs {_values('job_id, spec, launch, environment')}"
_CHANGE_SPEC = "UPDATE specs SET spec = ? WHERE job_id = ?"
_KEYS, _FACTS = RECORD_COLUMNS.split(", revision, ")
_SAVE = _update(f"revision, {_FACTS}")
_RENEW = _update(f"revision, {_FACTS}, {_KEYS.removeprefix('job_id, ')}")
_FIND = "SELECT job_id FROM jobs WHERE job_id = ?"
_DELETE = "DELETE FROM jobs WHERE job_id = ? AND revision = ?"
_ADD_HISTORY = (
    f"INSERT INTO history {_values('seq, job_id, attempt, at, previous, status, why, ended')}"
)
_FORGET_SPECS = "DELETE FROM specs WHERE job_id = ?"
_FORGET_HISTORY = "DELETE FROM history WHERE job_id = ?"
_ADD_TAGS = f"INSERT INTO tags {_values('tag, job_id')}"
_FORGET_TAGS = "DELETE FROM tags WHERE job_id = ?"
_ADD_DEPENDENCIES = f"INSERT INTO dependencies {_values('depends_on, job_id')}"
_FORGET_DEPENDENCIES = "DELETE FROM dependencies WHERE job_id = ?"
_PUT_DOCUMENT = f"INSERT OR REPLACE INTO documents {_values('kind, name, body')}"
_REMOVE_DOCUMENT = "DELETE FROM documents WHERE kind = ? AND name = ?"
_ADD_ENVIRONMENTS = f"INSERT INTO environments {_values('digest, body')} ON CONFLICT DO NOTHING"
_COUNT = f"""
    INSERT INTO counters {_values("name, value")}
    ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"""


class Batch:
    """Writes that are applied in one transaction, each by itself."""

    def __init__(self, writes: Sequence[Write], environments: Environments) -> None:
        self._writes = writes
        self._inserts: list[tuple[Insert, Row]] = []
        self._groups: list[tuple[InsertAll, list[Row]]] = []
        self._renewals: list[tuple[Save, Row]] = []
        self._saves: list[tuple[Save, Row]] = []
        self._deletes: list[tuple[Delete, Row]] = []
        self._specs: dict[int, Row] = {}
        """What each Insert, and each Save of another run, adds to the specs, by its identity."""
        for write in writes:
            if isinstance(write, Delete):
                self._deletes.append((write, (write.record.self_id, write.record.revision)))
            elif isinstance(write, InsertAll):
                self._groups.append((write, [insert_row(insert) for insert in write.inserts]))
                for insert in write.inserts:
                    self._specs[id(insert)] = spec_row(insert.record, insert.launch, environments)
            elif isinstance(write, Insert):
                self._inserts.append((write, insert_row(write)))
                self._specs[id(write)] = spec_row(write.record, write.launch, environments)
            elif write.launch is not None:
                self._renewals.append((write, _renewal_row(write)))
                self._specs[id(write)] = spec_row(write.record, write.launch, environments)
            else:
                self._saves.append((write, _save_row(write)))
        self._environments = environments
        self._new_environments = environments.take_new()
        self.results: list[int | None] = []
        """As ``JobStore.commit`` returns them; there once the batch was applied."""
        self.failure: BaseException | None = None
        """Why it was not."""

    def apply(self, connection: sqlite3.Connection) -> None:
        """Execute the statements. The caller has begun a transaction and commits it."""
        _execute(connection, _ADD_ENVIRONMENTS, self._new_environments)
        # Any order of kinds will do: two writes for one job in one batch were made at once, and
        # the one that comes second is refused by its revision.
        applied = {
            *_apply_each(connection, _INSERT, self._inserts),
            *_apply_each(connection, _RENEW, self._renewals),
            *_apply_each(connection, _SAVE, self._saves),
            *_apply_each(connection, _DELETE, self._deletes),
        }
        applied |= {id(w) for w, rows in self._groups if _apply_all(connection, _INSERT, rows)}
        changes = [change for w in self._writes if id(w) in applied for change in changes_of(w)]
        _execute(
            connection,
            _ADD_SPECS,
            [self._specs[id(change)] for change in changes if id(change) in self._specs],
        )
        _keep_links(connection, changes)
        self.results = self._keep_history(connection, applied)

    def note_applied(self) -> None:
        """Take note that it is on disk."""
        self._environments.note_kept(self._new_environments)

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
                for change in write.inserts if isinstance(write, InsertAll) else (write,):
                    seq += 1
                    history.append((seq, *history_row(change)))
                    counters["seq"] += 1
                    counters[change.record.status] += 1
                    if isinstance(change, Save):
                        counters[change.previous] -= 1
                results.append(seq)
        _execute(connection, _ADD_HISTORY, history)
        _execute(connection, _COUNT, [(name, n) for name, n in counters.items() if n])
        return results


class Restoration:
    """Jobs and their history as another store has them."""

    def __init__(
        self,
        jobs: Sequence[Stored],
        history: Sequence[JobEvent],
        last_seq: int,
        environments: Environments,
    ) -> None:
        self._inserts = [inserted(stored) for stored in jobs]
        self._specs = [spec_row(one.record, one.launch, environments) for one in self._inserts]
        self._environments = environments
        self._new_environments = environments.take_new()
        self._history = history
        self._last_seq = last_seq
        self.failure: BaseException | None = None
        """Why it was not applied."""

    def apply(self, connection: sqlite3.Connection) -> None:
        """Execute the statements, as ``Batch.apply``."""
        ((seq,),) = connection.execute("SELECT value FROM counters WHERE name = 'seq'").fetchall()
        taken = (connection.execute(_FIND, (i.record.self_id,)).fetchall() for i in self._inserts)
        check_restored(seq, self._history, [row[0] for rows in taken for row in rows])
        _execute(connection, _ADD_ENVIRONMENTS, self._new_environments)
        _execute(connection, _INSERT, [insert_row(insert) for insert in self._inserts])
        _execute(connection, _ADD_SPECS, self._specs)
        _keep_links(connection, self._inserts)
        _execute(connection, _ADD_HISTORY, [event_row(event) for event in self._history])
        counters = Counter(insert.record.status.value for insert in self._inserts)
        counters["seq"] = self._last_seq - seq
        _execute(connection, _COUNT, list(counters.items()))

    def note_applied(self) -> None:
        """Take note that it is on disk."""
        self._environments.note_kept(self._new_environments)


@dataclass(slots=True)
class DocumentWrite:
    """One document that is kept, or removed."""

    kind: str
    name: str
    body: str | None
    failure: BaseException | None = None
    """Why it was not."""

    def apply(self, connection: sqlite3.Connection) -> None:
        """Execute the statement, as ``Batch.apply``."""
        if self.body is None:
            _execute(connection, _REMOVE_DOCUMENT, [(self.kind, self.name)])
        else:
            _execute(connection, _PUT_DOCUMENT, [(self.kind, self.name, self.body)])

    def note_applied(self) -> None:
        """Do nothing, unlike ``Batch.note_applied``."""


def _save_row(write: Save) -> Row:
    return (*fact_columns(write.record), *_which(write))


def _renewal_row(write: Save) -> Row:
    return (*fact_columns(write.record), *key_columns(write.record)[1:], *_which(write))


def _which(write: Save) -> Row:
    return (attempt_text(write), write.record.self_id, write.record.revision - 1)


def _apply_each(
    connection: sqlite3.Connection, sql: str, writes: Sequence[tuple[Write, Row]]
) -> list[int]:
    """Return the identities of the writes whose row was changed."""
    if not writes:
        return []
    if _apply_all(connection, sql, [row for _, row in writes]):
        return [id(write) for write, _ in writes]
    # Some were refused, and only one by one do we learn which.
    return [id(write) for write, row in writes if _execute(connection, sql, [row])]


def _apply_all(connection: sqlite3.Connection, sql: str, rows: list[Row]) -> bool:
    """Execute the statement for all rows; or for none, where one would not be changed."""
    connection.execute("SAVEPOINT each")
    is_done = _execute(connection, sql, rows) == len(rows)
    if not is_done:
        connection.execute("ROLLBACK TO each")
    connection.execute("RELEASE each")
    return is_done


def _execute(connection: sqlite3.Connection, sql: str, rows: list[Row]) -> int:
    """Execute the statement for all rows; return how many rows of the table it changed."""
    if not rows:
        return 0
    return connection.executemany(sql, rows).rowcount


def _keep_links(connection: sqlite3.Connection, changes: Sequence[Insert | Save | Delete]) -> None:
    """Keep what is asked for by something else than the job: its tags and its dependencies."""
    gone, renewed, respecified = [], [], []
    tags, dependencies = [], []
    for change in changes:
        record = change.record
        job = (record.self_id,)
        if isinstance(change, Delete):
            gone.append(job)
            continue
        is_another_run = change.launch is not None
        if is_another_run:
            tags += [(tag, record.self_id) for tag in set(record.tags)]
        if isinstance(change, Save) and is_another_run:
            renewed.append(job)
        elif isinstance(change, Save) and change.is_respecified:
            respecified.append((spec_of(record), record.self_id))
        elif isinstance(change, Save):
            continue
        dependencies += [(other, record.self_id) for other in set(record.depends_on)]
    _execute(connection, _FORGET_SPECS, gone)
    _execute(connection, _FORGET_HISTORY, gone)
    _execute(connection, _FORGET_TAGS, gone + renewed)
    _execute(connection, _FORGET_DEPENDENCIES, [*gone, *renewed, *(r[1:] for r in respecified)])
    _execute(connection, _CHANGE_SPEC, respecified)
    _execute(connection, _ADD_TAGS, tags)
    _execute(connection, _ADD_DEPENDENCIES, dependencies)
