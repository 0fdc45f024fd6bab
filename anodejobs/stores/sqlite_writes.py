"""A batch of writes as SQL: one statement for all rows of a kind, in one transaction.

The thread of the connection and the event loop take turns at running Python, and under load a turn
is what a commit waits for. So the rows are made on the event loop.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from anodejobs.records import JobEvent
from anodejobs.stores.base import (
    Delete,
    Insert,
    Save,
    Stored,
    Write,
    changes_of,
    check_restored,
    steps_of,
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
    Spec,
    attempt_text,
    dropped_specs,
    event_row,
    history_row,
    insert_row,
    inserted,
    spec_of_run,
    specs_of,
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
    f"INSERT INTO jobs {_values(f'entry, {RECORD_COLUMNS}, attempt')}"
    " ON CONFLICT (job_id) DO NOTHING"
)
_ADD_SPECS = f"INSERT OR REPLACE INTO specs {_values('job_id, spec, launch, environment')}"
_CHANGE_SPEC = "UPDATE specs SET spec = ? WHERE job_id = ?"
_KEYS, _FACTS = RECORD_COLUMNS.split(", revision, ")
_SAVE = _update(f"entry, revision, {_FACTS}")
_RENEW = _update(f"entry, revision, {_FACTS}, {_KEYS.removeprefix('job_id, ')}")
_FIND = "SELECT job_id FROM jobs WHERE job_id = ?"
_DELETE = "DELETE FROM jobs WHERE job_id = ? AND revision = ?"
_LAST_SEQ = "SELECT value FROM counters WHERE name = 'seq'"
# An entry leads to the one of the same job before it. The job's row, which leads to the last one,
# is changed after this.
_ADD_HISTORY = """
    INSERT INTO entries (seq, before, job_id, attempt, at, previous, status, why, ended)
    VALUES (?, coalesce(?, (SELECT entry FROM jobs WHERE job_id = ?)), ?, ?, ?, ?, ?, ?, ?)"""
_SET_ENTRY = "UPDATE jobs SET entry = ? WHERE job_id = ?"
_FORGET_HISTORY = """
    DELETE FROM entries WHERE seq IN (
        WITH RECURSIVE mine (seq) AS (
            SELECT entry FROM jobs WHERE job_id = ?
            UNION ALL SELECT before FROM mine JOIN entries USING (seq)
        )
        SELECT seq FROM mine
    )"""
_FORGET_SPECS = "DELETE FROM specs WHERE job_id = ?"
_ADD_TAGS = f"INSERT INTO tags {_values('tag, job_id')}"
_FORGET_TAGS = "DELETE FROM tags WHERE job_id = ?"
_ADD_DEPENDENCIES = f"INSERT INTO dependencies {_values('depends_on, job_id')}"
_FORGET_DEPENDENCIES = "DELETE FROM dependencies WHERE job_id = ?"
_PUT_DOCUMENT = f"INSERT OR REPLACE INTO documents {_values('kind, name, body')}"
_REMOVE_DOCUMENT = "DELETE FROM documents WHERE kind = ? AND name = ?"
_ADD_ENVIRONMENTS = (
    f"INSERT INTO base_environments {_values('digest, body')} ON CONFLICT DO NOTHING"
)
_NAMED_ENVIRONMENT = "SELECT environment FROM specs WHERE job_id = ?"
_FORGET_ENVIRONMENTS = """
    DELETE FROM base_environments
    WHERE digest = ? AND NOT EXISTS (SELECT * FROM specs WHERE environment = digest)"""
_COUNT = f"""
    INSERT INTO counters {_values("name, value")}
    ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"""


class Batch:
    """Writes that are applied in one transaction, each by itself."""

    def __init__(self, writes: Sequence[Write], environments: Environments) -> None:
        self._writes = writes
        self._specs = specs_of(writes, environments)
        self._all = _Together(writes, self._specs)
        self.results: list[int | None] = []
        """As ``JobStore.commit`` returns them; there once the batch was applied."""
        self.failure: BaseException | None = None
        """Why it was not."""

    def apply(self, connection: sqlite3.Connection) -> None:
        """Execute the statements. The caller has begun a transaction and commits it."""
        ((seq,),) = connection.execute(_LAST_SEQ).fetchall()
        if self._all.apply(connection, seq):
            self.results = self._all.results(seq)
            return
        # Some are refused, and only one by one do we learn which.
        self.results = []
        for write in self._writes:
            one = _Together([write], self._specs)
            if one.apply(connection, seq):
                self.results += one.results(seq)
                seq += one.entries
            else:
                self.results.append(None)


class _Together:
    """Writes that are applied all or none: one statement for all rows of a kind."""

    def __init__(self, writes: Sequence[Write], specs: Mapping[int, Spec]) -> None:
        self._history: list[Row] = []
        """The entries, but for their ``seq`` and the one before."""
        self._second_steps: set[int] = set()
        """The numbers of entries that come right after another one of the same job."""
        self._job_ids: list[str] = []
        self._changed: dict[str, list[tuple[int, Row]]] = {_INSERT: [], _RENEW: [], _SAVE: []}
        """The rows of each statement, each with the number of its entry: 1 for the first here."""
        self._deleted: list[Row] = []
        self._lost: list[str] = []
        """The statuses of what is deleted."""
        self._linked: list[Insert | Save | Delete] = []
        self._specs: list[Spec] = []
        self._up_to: list[int] = []
        """How many entries there are with each write and those before it; 0 for a Delete."""
        for write in writes:
            for change in changes_of(write):
                self._take(change, specs)
            self._up_to.append(0 if isinstance(write, Delete) else self.entries)

    def _take(self, change: Insert | Save | Delete, specs: Mapping[int, Spec]) -> None:
        self._job_ids.append(change.record.self_id)
        if isinstance(change, Delete):
            self._deleted.append((change.record.self_id, change.record.revision))
            self._lost.append(change.record.status)
            self._linked.append(change)
            return
        first, *others = steps_of(change)
        self._history.append(history_row(first))
        for step in others:
            self._history.append(history_row(step))
            self._second_steps.add(len(self._history))
        entry = len(self._history)
        if isinstance(change, Insert):
            self._changed[_INSERT].append((entry, insert_row(change)))
        elif change.launch is not None:
            self._changed[_RENEW].append((entry, _renewal_row(change)))
        else:
            self._changed[_SAVE].append((entry, _save_row(change)))
            if change.is_respecified:
                self._linked.append(change)
            return
        self._specs.append(specs[id(change)])
        self._linked.append(change)

    @property
    def entries(self) -> int:
        """How many entries the history gets."""
        return len(self._history)

    def apply(self, connection: sqlite3.Connection, seq: int) -> bool:
        """Execute the statements where all can be applied; return whether that was so.

        ``seq`` is how far the history is.
        """
        if not self._are_of_different_jobs():
            return False
        connection.execute("SAVEPOINT together")
        is_done = self._execute(connection, seq)
        if not is_done:
            connection.execute("ROLLBACK TO together")
        connection.execute("RELEASE together")
        return is_done

    def _are_of_different_jobs(self) -> bool:
        """Return whether the order of the kinds is of no account, nor that of the entries."""
        return len(set(self._job_ids)) == len(self._job_ids)

    def _execute(self, connection: sqlite3.Connection, seq: int) -> bool:
        """Return whether each row was changed; else what was executed is to be undone."""
        history = [
            (seq + n, seq + n - 1 if n in self._second_steps else None, row[0], *row)
            for n, row in enumerate(self._history, start=1)
        ]
        _execute(connection, _ADD_HISTORY, history)
        for sql, rows in self._changed.items():
            if _execute(connection, sql, [(seq + n, *row) for n, row in rows]) < len(rows):
                return False
        left = _named_environments(connection, dropped_specs(self._linked))
        _add_specs(connection, self._specs)
        _keep_links(connection, self._linked)
        _execute(connection, _FORGET_ENVIRONMENTS, left)
        _execute(connection, _COUNT, self._counts())
        return _execute(connection, _DELETE, self._deleted) == len(self._deleted)

    def _counts(self) -> list[Row]:
        before, after = [row[3] for row in self._history], [row[4] for row in self._history]
        lost = Counter(status for status in before + self._lost if status is not None)
        return [
            *Counter(after).items(),
            *((status, -jobs) for status, jobs in lost.items()),
            ("seq", self.entries),
        ]

    def results(self, seq: int) -> list[int | None]:
        """Return the result of each write, applied when the history was as far as ``seq``."""
        return [n and seq + n for n in self._up_to]


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
        self._specs = [spec_of_run(one.record, one.launch, environments) for one in self._inserts]
        self._history = history
        self._last_seq = last_seq
        self.failure: BaseException | None = None
        """Why it was not applied."""

    def apply(self, connection: sqlite3.Connection) -> None:
        """Execute the statements, as ``Batch.apply``."""
        ((last_seq,),) = connection.execute(_LAST_SEQ).fetchall()
        taken = (connection.execute(_FIND, (i.record.self_id,)).fetchall() for i in self._inserts)
        check_restored(last_seq, self._history, [row[0] for rows in taken for row in rows])
        _execute(connection, _INSERT, [(None, *insert_row(i)) for i in self._inserts])
        _add_specs(connection, self._specs)
        _keep_links(connection, self._inserts)
        for event in self._history:
            seq, job_id, *rest = event_row(event)
            connection.execute(_ADD_HISTORY, (seq, None, job_id, job_id, *rest))
            connection.execute(_SET_ENTRY, (seq, job_id))
        counters = Counter(insert.record.status.value for insert in self._inserts)
        counters["seq"] = self._last_seq - last_seq
        _execute(connection, _COUNT, list(counters.items()))


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


def _save_row(write: Save) -> Row:
    return (*fact_columns(write.record), *_which(write))


def _renewal_row(write: Save) -> Row:
    return (*fact_columns(write.record), *key_columns(write.record)[1:], *_which(write))


def _which(write: Save) -> Row:
    return (attempt_text(write), write.record.self_id, write.made_from)


def _execute(connection: sqlite3.Connection, sql: str, rows: Iterable[Row]) -> int:
    """Execute the statement for all rows; return how many rows of the table it changed."""
    # Python 3.11 takes six times as long to bind None as a number, and most of a row is None: those
    # are written into the statement, of which there are as many as there are kinds of rows.
    alike: defaultdict[tuple[bool, ...], list[list[Any]]] = defaultdict(list)
    for row in rows:
        nulls = tuple([value is None for value in row])
        alike[nulls].append([value for value in row if value is not None])
    return sum(
        connection.executemany(_with_nulls(sql, nulls), values).rowcount
        for nulls, values in alike.items()
    )


@lru_cache
def _with_nulls(sql: str, nulls: tuple[bool, ...]) -> str:
    """Return the statement with NULL in the place of some of its parameters."""
    before, *rest = sql.split("?")
    places = zip(nulls, rest, strict=True)
    return before + "".join(f"{'NULL' if is_null else '?'}{text}" for is_null, text in places)


def _add_specs(connection: sqlite3.Connection, specs: Sequence[Spec]) -> None:
    _execute(connection, _ADD_ENVIRONMENTS, list({spec.environment for spec in specs}))
    _execute(connection, _ADD_SPECS, [spec.row for spec in specs])


def _named_environments(connection: sqlite3.Connection, job_ids: Sequence[str]) -> list[Row]:
    """Return the environments that the specs of the jobs name, each as a row."""
    found = (connection.execute(_NAMED_ENVIRONMENT, (job_id,)).fetchall() for job_id in job_ids)
    return list({row for rows in found for row in rows})


def _keep_links(connection: sqlite3.Connection, changes: Sequence[Insert | Save | Delete]) -> None:
    """Keep what is asked for by something else than the job: its tags and its dependencies.

    These are changes by which more happens than happens to every job.
    """
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
        elif isinstance(change, Save):
            respecified.append((spec_of(record), record.self_id))
        dependencies += [(other, record.self_id) for other in set(record.depends_on)]
    _execute(connection, _FORGET_SPECS, gone)
    _execute(connection, _FORGET_HISTORY, gone)
    _execute(connection, _FORGET_TAGS, gone + renewed)
    _execute(connection, _FORGET_DEPENDENCIES, [*gone, *renewed, *(r[1:] for r in respecified)])
    _execute(connection, _CHANGE_SPEC, respecified)
    _execute(connection, _ADD_TAGS, tags)
    _execute(connection, _ADD_DEPENDENCIES, dependencies)
