"""Records in one SQLite file, through aiosqlite.

Three connections, each with its thread: one writes whole batches, one reads, one checkpoints, so
that no commit waits for the database file to be synced. Several processes may use the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import aiosqlite

from anodejobs.errors import JobNotFound, StoreError
from anodejobs.events import Attempt
from anodejobs.executors.base import Launch
from anodejobs.records import JobEvent, JobFilter, JobRecord, Status
from anodejobs.stores.base import (
    Delete,
    Insert,
    JobStore,
    Query,
    Save,
    Stored,
    Write,
    history_entry,
)
from anodejobs.stores.doorbell import Doorbell

Durability = Literal["process", "power"]

APPLICATION_ID = 0x414E4F44  # "ANOD", in the file's header

# One script a version; a file of version n has had the first n. Never change one that was released.
MIGRATIONS = (
    """
    CREATE TABLE jobs (
        job_id TEXT PRIMARY KEY NOT NULL,
        revision INTEGER NOT NULL,
        status TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        last_update INTEGER NOT NULL,
        started_at INTEGER,
        finished_at INTEGER,
        name TEXT,
        user_id TEXT,
        workflow_id TEXT,
        record TEXT NOT NULL,
        attempt TEXT NOT NULL,
        launch TEXT NOT NULL,
        environment TEXT NOT NULL REFERENCES environments (digest)
    );
    CREATE INDEX jobs_by_creation ON jobs (created_at, job_id);
    CREATE INDEX jobs_by_status ON jobs (status, created_at, job_id);
    CREATE INDEX jobs_by_update ON jobs (last_update, job_id);
    CREATE INDEX jobs_by_name ON jobs (name, job_id) WHERE name IS NOT NULL;
    CREATE INDEX jobs_by_user ON jobs (user_id, created_at, job_id) WHERE user_id IS NOT NULL;
    CREATE INDEX jobs_by_workflow ON jobs (workflow_id, created_at, job_id)
        WHERE workflow_id IS NOT NULL;
    CREATE TABLE tags (
        tag TEXT NOT NULL,
        job_id TEXT NOT NULL,
        PRIMARY KEY (tag, job_id)
    ) WITHOUT ROWID;
    CREATE INDEX tags_by_job ON tags (job_id);
    CREATE TABLE environments (digest TEXT PRIMARY KEY NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE history (
        seq INTEGER PRIMARY KEY NOT NULL,
        job_id TEXT NOT NULL,
        entry TEXT NOT NULL
    );
    CREATE INDEX history_by_job ON history (job_id, seq);
    CREATE TABLE counters (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO counters VALUES ('seq', 0);
    """,
)

_NO_ENVIRONMENT: tuple[dict[str, str] | None, str] = (None, "")
_BUSY_TIMEOUT_S = 60.0
_CHECKPOINT_AFTER_WRITES = 1000
_TRUNCATE_ABOVE_BYTES = 64 * 1024 * 1024

_INSERT = """
    INSERT INTO jobs (job_id, revision, status, created_at, last_update, started_at, finished_at,
        name, user_id, workflow_id, record, attempt, launch, environment)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id) DO NOTHING"""
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
_COUNT = """
    INSERT INTO counters VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"""


class SqliteJobStore(JobStore):
    """Keeps records in the file at ``path``, with mode 0600, in a folder with mode 0700.

    ``durability="process"``: what was committed survives the death of every process;
    ``"power"``: and a power failure, for one sync of the disk a batch.
    """

    def __init__(self, path: str | os.PathLike[str], *, durability: str = "process") -> None:
        if durability not in ("process", "power"):
            raise StoreError(f"durability must be 'process' or 'power', not {durability!r}")
        self.path = Path(path)
        self._synchronous = "FULL" if durability == "power" else "NORMAL"
        self._bell = Doorbell(self.path.with_name(f"{self.path.name}-bells"))
        self._checkpoints = _Checkpoints(self.path)
        self._batches: deque[_Batch] = deque()
        self._last_environment = _NO_ENVIRONMENT
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None

    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        async with self._translated("open"):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._writer = await aiosqlite.connect(
                self.path, factory=self._make_writer, isolation_level=None, timeout=_BUSY_TIMEOUT_S
            )
            # The first commit of an empty batch prepares the file, in the writer's own thread.
            await self._writer.commit()
            self._reader = await aiosqlite.connect(
                f"{self.path.absolute().as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                timeout=_BUSY_TIMEOUT_S,
            )
            await self._reader.execute_fetchall("PRAGMA query_only = ON")
            self._bell.open(on_foreign_commit)
        self._checkpoints.start()

    async def close(self) -> None:
        self._bell.close()
        await self._checkpoints.stop()
        writer, self._writer = self._writer, None
        reader, self._reader = self._reader, None
        for connection in (reader, writer):
            if connection is not None:
                await connection.close()

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        if self._writer is None:
            raise StoreError(f"{self.path} is not open")
        batch = _Batch(writes)
        self._batches.append(batch)
        async with self._translated("write to"):
            # aiosqlite sends each of its calls to the thread of the connection and back. The one
            # hop that carries a whole batch is commit(), which `_Writer` makes apply it.
            await self._writer.commit()
        self._checkpoints.note(len(writes))
        return batch.results

    async def get(self, job_id: str) -> Stored | None:
        rows = await self._read(
            "SELECT record, attempt, launch, body FROM jobs"
            " JOIN environments ON digest = environment WHERE job_id = ?",
            (job_id,),
        )
        for record, attempt, launch, body in rows:
            return Stored(
                record=JobRecord.model_validate_json(record),
                attempt=_attempt(json.loads(attempt)),
                launch=Launch.from_json(json.loads(launch), json.loads(body)),
            )
        return None

    async def page(self, query: Query) -> list[JobRecord]:
        last = None
        if query.after is not None:
            last = await self._sort_value(query)
        sql, parameters = _page(query, last)
        return [JobRecord.model_validate_json(row[0]) for row in await self._read(sql, parameters)]

    async def _sort_value(self, query: Query) -> Any:
        rows = await self._read(
            f"SELECT {query.sort_by} FROM jobs WHERE job_id = ?", (query.after,)
        )
        for row in rows:
            return row[0]
        assert query.after is not None
        raise JobNotFound(query.after)

    async def count(self, filter: JobFilter) -> Mapping[Status, int]:
        if filter.model_fields_set <= {"status"}:
            wanted = filter.status or list(Status)
            marks = ", ".join("?" * len(wanted))
            sql = f"SELECT name, value FROM counters WHERE name IN ({marks})"
            rows = await self._read(sql, tuple(wanted))
        else:
            where, parameters = _where(filter)
            sql = f"SELECT status, count(*) FROM jobs{where} GROUP BY status"
            rows = await self._read(sql, parameters)
        return {Status(status): n for status, n in rows if n}

    async def history(
        self, *, job_id: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[JobEvent]:
        mine = "" if job_id is None else " AND job_id = ?"
        parameters = (after,) if job_id is None else (after, job_id)
        rows = await self._read(
            f"SELECT entry FROM history WHERE seq > ?{mine} ORDER BY seq LIMIT ?",
            (*parameters, -1 if limit is None else limit),
        )
        return [JobEvent.model_validate_json(row[0]) for row in rows]

    async def last_seq(self) -> int:
        ((seq,),) = await self._read("SELECT value FROM counters WHERE name = 'seq'", ())
        return int(seq)

    async def _read(self, sql: str, parameters: Sequence[Any]) -> Iterable[Sequence[Any]]:
        if self._reader is None:
            raise StoreError(f"{self.path} is not open")
        async with self._translated("read"):
            return await self._reader.execute_fetchall(sql, parameters)

    def _make_writer(self, *args: Any, **kwargs: Any) -> _Writer:
        connection = _Writer(*args, **kwargs)
        connection.store = self
        return connection

    @asynccontextmanager
    async def _translated(self, what: str) -> AsyncIterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot {what} {self.path}: {error}") from error

    def apply_next(self, connection: _Writer) -> None:
        """Apply the oldest batch in one transaction; called in the writer's thread."""
        if not connection.is_prepared:
            _prepare(connection, self.path, self._synchronous)
            connection.is_prepared = True
            return
        batch = self._batches.popleft()
        connection.execute("BEGIN IMMEDIATE")
        try:
            batch.results = self._apply(connection, batch.writes)
            connection.execute("COMMIT")
        except BaseException:
            self._last_environment = _NO_ENVIRONMENT  # its row may just be undone
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._bell.ring()

    def _apply(self, connection: sqlite3.Connection, writes: Sequence[Write]) -> list[int | None]:
        inserts = [write for write in writes if isinstance(write, Insert)]
        renewals = [w for w in writes if isinstance(w, Save) and w.launch is not None]
        saves = [w for w in writes if isinstance(w, Save) and w.launch is None]
        deletes = [write for write in writes if isinstance(write, Delete)]
        # Any order of kinds will do: two writes for one job in one batch were made at once, and
        # the one that comes second is refused by its revision.
        applied = {
            id(write)
            for sql, rows in (
                (_INSERT, [(w, self._insert_row(connection, w)) for w in inserts]),
                (_RENEW, [(w, self._renewal_row(connection, w)) for w in renewals]),
                (_SAVE, [(w, _save_row(w)) for w in saves]),
                (_DELETE, [(w, (w.record.self_id, w.record.revision)) for w in deletes]),
            )
            for write in _execute_each(connection, sql, rows)
        }
        first: list[Insert | Save] = [*inserts, *renewals]
        _keep_tags(connection, [write for write in first if id(write) in applied])
        _forget(connection, [write for write in deletes if id(write) in applied])
        return _keep_history(connection, writes, applied)

    def _insert_row(self, connection: sqlite3.Connection, write: Insert) -> tuple[Any, ...]:
        record = write.record
        return (
            record.self_id,
            record.revision,
            record.status,
            _micros(record.created_at) or 0,
            _micros(record.last_update) or 0,
            _micros(record.started_at),
            _micros(record.finished_at),
            record.name,
            record.user_id,
            record.workflow_id,
            record.model_dump_json(),
            _json(asdict(write.attempt)),
            _json(write.launch.to_json()),
            self._environment(connection, write.launch.base_env),
        )

    def _renewal_row(self, connection: sqlite3.Connection, write: Save) -> tuple[Any, ...]:
        record, launch = write.record, write.launch
        assert launch is not None
        return (
            record.revision,
            record.status,
            _micros(record.created_at) or 0,
            _micros(record.last_update) or 0,
            _micros(record.started_at),
            _micros(record.finished_at),
            record.name,
            record.user_id,
            record.workflow_id,
            record.model_dump_json(),
            write.attempt and _json(asdict(write.attempt)),
            _json(launch.to_json()),
            self._environment(connection, launch.base_env),
            record.self_id,
            record.revision - 1,
        )

    def _environment(self, connection: sqlite3.Connection, env: dict[str, str]) -> str:
        """Return the key of an environment, which is kept once however many jobs had it."""
        known, digest = self._last_environment
        if env is not known:
            body = json.dumps(env, sort_keys=True)
            digest = hashlib.sha256(body.encode()).hexdigest()
            connection.execute(
                "INSERT INTO environments VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, body)
            )
            self._last_environment = (env, digest)
        return digest


class _Batch:
    def __init__(self, writes: Sequence[Write]) -> None:
        self.writes = writes
        self.results: list[int | None] = []


class _Writer(sqlite3.Connection):
    """The writing connection: its ``commit`` applies the store's next batch."""

    store: SqliteJobStore
    is_prepared = False

    def commit(self) -> None:
        self.store.apply_next(self)


def _prepare(connection: sqlite3.Connection, path: Path, synchronous: str) -> None:
    """Bring the file to the newest version, or refuse it unharmed."""
    with _alone(path.parent):
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application_id != APPLICATION_ID:
            raise StoreError(f"{path} is a database of another program; choose another db_path")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{path} has version {version} of a newer anodejobs, this one knows "
                f"{len(MIGRATIONS)}; it was left as it is: upgrade anodejobs"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            connection.executescript(
                f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number};"
                f"PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
            )
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA wal_autocheckpoint = 0")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from preparing a file in the folder at the same time.

    SQLite's own lock is no help while the journal mode changes: it fails at once.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _execute_each(
    connection: sqlite3.Connection, sql: str, rows: list[tuple[Any, tuple[Any, ...]]]
) -> list[Any]:
    """Execute the statement for each row; return the writes whose row was changed."""
    if not rows:
        return []
    connection.execute("SAVEPOINT each")
    changed = connection.executemany(sql, [row for _, row in rows]).rowcount
    if changed == len(rows):
        connection.execute("RELEASE each")
        return [write for write, _ in rows]
    # Some were refused, and only one by one do we learn which.
    connection.execute("ROLLBACK TO each")
    connection.execute("RELEASE each")
    return [write for write, row in rows if connection.execute(sql, row).rowcount == 1]


def _save_row(write: Save) -> tuple[Any, ...]:
    record = write.record
    return (
        record.revision,
        record.status,
        _micros(record.last_update) or 0,
        _micros(record.started_at),
        _micros(record.finished_at),
        record.model_dump_json(),
        write.attempt and _json(asdict(write.attempt)),
        record.self_id,
        record.revision - 1,
    )


def _keep_tags(connection: sqlite3.Connection, writes: list[Insert | Save]) -> None:
    renewed = [(w.record.self_id,) for w in writes if isinstance(w, Save)]
    if renewed:
        connection.executemany("DELETE FROM tags WHERE job_id = ?", renewed)
    tags = [(tag, w.record.self_id) for w in writes for tag in set(w.record.tags)]
    if tags:
        connection.executemany("INSERT INTO tags VALUES (?, ?)", tags)


def _forget(connection: sqlite3.Connection, deletes: list[Delete]) -> None:
    ids = [(write.record.self_id,) for write in deletes]
    if ids:
        connection.executemany("DELETE FROM tags WHERE job_id = ?", ids)
        connection.executemany("DELETE FROM history WHERE job_id = ?", ids)


def _keep_history(
    connection: sqlite3.Connection, writes: Sequence[Write], applied: set[int]
) -> list[int | None]:
    """Write history and counters for what was applied; return the result of each write."""
    (seq,) = connection.execute("SELECT value FROM counters WHERE name = 'seq'").fetchone()
    first = seq
    results: list[int | None] = []
    entries: list[tuple[int, str, str]] = []
    counters: Counter[str] = Counter()
    for write in writes:
        if id(write) not in applied:
            results.append(None)
        elif isinstance(write, Delete):
            counters[write.record.status] -= 1
            results.append(0)
        else:
            seq += 1
            entry = history_entry(seq, write).model_dump_json(exclude_none=True)
            entries.append((seq, write.record.self_id, entry))
            counters[write.record.status] += 1
            if isinstance(write, Save):
                counters[write.previous] -= 1
            results.append(seq)
    counters["seq"] = seq - first
    connection.executemany("INSERT INTO history VALUES (?, ?, ?)", entries)
    connection.executemany(_COUNT, [(name, n) for name, n in counters.items() if n])
    return results


def _where(filter: JobFilter, *more: str) -> tuple[str, tuple[Any, ...]]:
    """Return the WHERE clause of a filter, and its parameters."""
    clauses = list(more)
    parameters: list[Any] = []
    for field, allowed in filter.choices():
        if allowed is not None:
            column = "job_id" if field == "self_id" else field
            clauses.append(f"{column} IN ({', '.join('?' * len(allowed))})")
            parameters += allowed
    for tag in filter.tags or ():
        clauses.append("job_id IN (SELECT job_id FROM tags WHERE tag = ?)")
        parameters.append(tag)
    if filter.created_after is not None:
        clauses.append("created_at >= ?")
        parameters.append(_micros(filter.created_after))
    if filter.created_before is not None:
        clauses.append("created_at < ?")
        parameters.append(_micros(filter.created_before))
    return (f" WHERE {' AND '.join(clauses)}" if clauses else ""), tuple(parameters)


def _page(query: Query, last: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the statement for a page; ``last`` is the sort value of ``query.after``.

    Where one of several statuses will do, the index gives each status its own page in order, and
    the page is what comes first in all of them.
    """
    column = "job_id" if query.sort_by == "self_id" else query.sort_by
    direction = "DESC" if query.descending else "ASC"
    order = f" ORDER BY {column} {direction}, job_id {direction} LIMIT ?"
    end = -1 if query.limit is None else query.limit + query.offset

    statuses = query.filter.status
    split = statuses is not None and len(statuses) > 1 and query.limit is not None
    filters = (
        [query.filter.model_copy(update={"status": [s]}) for s in dict.fromkeys(statuses or ())]
        if split
        else [query.filter]
    )
    selects: list[str] = []
    parameters: list[Any] = []
    for filter in filters:
        where, values = _where(filter)
        parameters += values
        if query.after is not None:
            beyond, boundary = _beyond(column, query, last)
            where += f" {'AND' if where else 'WHERE'} {beyond}"
            parameters += boundary
        selects.append(f"SELECT * FROM (SELECT * FROM jobs{where}{order})")
        parameters.append(end)
    sql = f"SELECT record FROM ({' UNION ALL '.join(selects)}){order} OFFSET ?"
    limit = -1 if query.limit is None else query.limit
    return sql, (*parameters, limit, query.offset)


_NULLABLE = {"started_at", "finished_at", "name"}


def _beyond(column: str, query: Query, last: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the condition that a row comes after ``query.after``. NULLs come first in SQLite."""
    compare = "<" if query.descending else ">"
    if last is not None:
        rest = f" OR {column} IS NULL" if query.descending and column in _NULLABLE else ""
        return f"(({column}, job_id) {compare} (?, ?){rest})", (last, query.after)
    if query.descending:
        return f"({column} IS NULL AND job_id < ?)", (query.after,)
    return f"({column} IS NOT NULL OR job_id > ?)", (query.after,)


def _micros(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _attempt(fields: dict[str, Any]) -> Attempt:
    pipes = fields["pipes"]
    return Attempt(**{**fields, "pipes": pipes and tuple(pipes)})


class _Checkpoints:
    """Carries the write-ahead log into the database file, in a thread and connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writes = 0
        self._wanted = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def note(self, writes: int) -> None:
        """Count writes; enough of them are carried over soon."""
        self._writes += writes
        if self._writes >= _CHECKPOINT_AFTER_WRITES:
            self._writes = 0
            self._wanted.set()

    def start(self) -> None:
        self._stopping = False
        self._wanted.clear()
        self._thread = threading.Thread(target=self._run, name="anodejobs-checkpoints", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; SQLite carries over the rest when the last connection closes."""
        self._stopping = True
        self._wanted.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join)

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=1.0)
        with contextlib.closing(connection):
            while True:
                self._wanted.wait()
                self._wanted.clear()
                if self._stopping:
                    return
                # A database that cannot be written fails the commits, which say so to somebody.
                with contextlib.suppress(sqlite3.Error):
                    connection.execute(f"PRAGMA wal_checkpoint({self._mode()})")

    def _mode(self) -> str:
        """Under unbroken load only a checkpoint that makes writers wait lets the log start anew."""
        log = self._path.with_name(f"{self._path.name}-wal")
        size = log.stat().st_size if log.exists() else 0
        return "TRUNCATE" if size > _TRUNCATE_ABOVE_BYTES else "PASSIVE"
