"""Records in one SQLite file, through aiosqlite.

Three connections, each with its thread: one writes whole batches, one reads, one checkpoints, so
that no commit waits for the database file to be synced. Several processes may use the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite

from anodejobs.errors import JobNotFound, StoreError
from anodejobs.records import JobEvent, JobFilter, JobRecord, Metrics, Status
from anodejobs.stores.base import (
    UNFINISHED,
    JobStore,
    Outdated,
    Query,
    Stored,
    Turn,
    Unfinished,
    Write,
    check_durability,
)
from anodejobs.stores.doorbell import Doorbell
from anodejobs.stores.pages import LARGEST, column
from anodejobs.stores.read_rows import events_of, stored_of, tally_of, unfinished_of
from anodejobs.stores.rows import RECORD_COLUMNS, record_of, turn_of
from anodejobs.stores.sqlite_queries import TALLY, TURN, among, page, where
from anodejobs.stores.sqlite_schema import MIGRATIONS, prepare
from anodejobs.stores.sqlite_writes import Batch, DocumentWrite, Restoration
from anodejobs.stores.write_rows import Environments, made_of_writes
from anodejobs.threads import in_thread, made_of_each, start

LONGEST_PATH_BYTES = 504
"""Of SQLite's own 512 eight are for the names of the files beside the database."""

_TURNS = 1000
"""How many turns are read at once."""
_BUSY_TIMEOUT_S = 60.0
_CHECKPOINT_AFTER_WRITES = 1000
_CHECKPOINT_ABOVE_BYTES = 4 * 1024 * 1024
"""As SQLite itself would: what programs have left in the log that were killed."""
_TRUNCATE_ABOVE_BYTES = 64 * 1024 * 1024


class SqliteJobStore(JobStore):
    """Keeps records in the file at ``path``, with mode 0600, in a folder with mode 0700.

    ``durability="process"``: what was committed survives the death of every process;
    ``"power"``: and a power failure, for one sync of the disk a batch.
    """

    def __init__(self, path: str | os.PathLike[str], *, durability: str = "process") -> None:
        check_durability(durability)
        self.path = Path(os.path.abspath(path))
        self.lock_path = self.path.with_name(f"{self.path.name}-scheduler")
        self._synchronous = "FULL" if durability == "power" else "NORMAL"
        self._bell = Doorbell(self.path.with_name(f"{self.path.name}-bells"))
        self._checkpoints = _Checkpoints(self.path)
        self._turn = asyncio.Lock()
        self._batch: Batch | DocumentWrite | Restoration | None = None
        self._environments = Environments()
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None

    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        async with self._translated("open"):
            if (size := len(os.fsencode(self.path))) > LONGEST_PATH_BYTES:
                raise StoreError(
                    f"cannot open {self.path}: its path has {size} bytes, and SQLite takes"
                    f" {LONGEST_PATH_BYTES} at most"
                )
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only where there is none: to close a file gives up all locks on it of this process.
            with contextlib.suppress(FileExistsError):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(self.path, flags, 0o600))
            if not os.access(self.path, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._writer = await aiosqlite.connect(
                self.path, factory=self._make_writer, isolation_level=None, timeout=_BUSY_TIMEOUT_S
            )
            # The first commit of an empty batch prepares the file, in the writer's own thread.
            await self._writer.commit()
            self._reader = await aiosqlite.connect(
                _existing(self.path),
                uri=True,
                isolation_level=None,
                timeout=_BUSY_TIMEOUT_S,
            )
            await self._reader.execute_fetchall("PRAGMA query_only = ON")
            self._bell.open(on_foreign_commit)
            self._checkpoints.start()

    async def close(self) -> None:
        self._bell.close()
        # Also where this is cancelled: their threads would keep the program from ending.
        async with AsyncExitStack() as connections:
            for connection in (self._writer, self._reader):
                if connection is not None:
                    connections.push_async_callback(connection.close)
            self._writer = self._reader = None
            await self._checkpoints.stop()

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        async with self._turn, self._translated("write to"):
            batch = await made_of_writes(lambda: Batch(writes, self._environments), writes)
            await self._apply(batch)
        self._checkpoints.note(len(writes))
        return batch.results

    async def _apply(self, batch: Batch | DocumentWrite | Restoration) -> None:
        """Apply the batch in a transaction of its own; it must be its turn."""
        if self._writer is None:
            raise StoreError(f"{self.path} is not open")
        self._batch = batch
        # aiosqlite sends each of its calls to the thread of the connection and back. The one
        # hop that carries a whole batch is commit(), which `_Writer` makes apply it.
        await self._writer.commit()
        if batch.failure is not None:  # in the call of somebody who was cancelled
            raise batch.failure

    async def get(self, job_id: str) -> Stored | None:
        rows = await self._read(f"{_STORED} WHERE job_id = ?", (job_id,))
        async with self._translated("read"):
            for stored in stored_of(rows):
                return stored
        return None

    async def get_all(self, job_ids: Sequence[str]) -> list[Stored]:
        clause, parameters = among("job_id", job_ids)
        rows = await self._read(f"{_STORED} WHERE {clause}", parameters)
        async with self._translated("read"):
            return stored_of(rows)

    async def unfinished(self, statuses: Collection[Status] = UNFINISHED) -> list[Unfinished]:
        marks = ", ".join("?" * len(statuses))
        rows = await self._read(
            f"SELECT job_id, status, attempt FROM jobs WHERE status IN ({marks})", tuple(statuses)
        )
        async with self._translated("read"):
            return unfinished_of(rows)

    async def turns(self) -> AsyncGenerator[Sequence[Turn], None]:
        filter, last, after = JobFilter(status=list(UNFINISHED)), None, None
        while True:
            query = Query(filter=filter, limit=_TURNS, after=after)
            rows = list(await self._read(*page(query, last, TURN)))
            async with self._translated("read"):
                turns = [turn_of(row[:-1]) for row in rows]
            yield turns
            if len(rows) < _TURNS:
                return
            after, last = rows[-1][0], rows[-1][-1]

    async def page(self, query: Query) -> list[JobRecord]:
        last = None
        if query.after is not None:
            last = await self._sort_value(query)
        sql, parameters = page(query, last)
        rows = await self._read(sql, parameters)
        async with self._translated("read"):
            return await made_of_each(record_of, rows)

    async def _sort_value(self, query: Query) -> Any:
        rows = await self._read(
            f"SELECT {column(query)} FROM jobs WHERE job_id = ?", (query.after,)
        )
        for row in rows:
            return row[0]
        assert query.after is not None
        raise JobNotFound(query.after)

    async def count(self, filter: JobFilter) -> Mapping[Status, int]:
        if filter.model_fields_set <= {"status"}:
            wanted = list(Status) if filter.status is None else filter.status
            marks = ", ".join("?" * len(wanted))
            sql = f"SELECT name, value FROM counters WHERE name IN ({marks})"
            rows = await self._read(sql, tuple(wanted))
        else:
            clause, parameters = where(filter)
            sql = f"SELECT status, count(*) FROM jobs{clause} GROUP BY status"
            rows = await self._read(sql, parameters)
        async with self._translated("read"):
            return {Status(status): n for status, n in rows if n}

    async def tally(self) -> Metrics:
        rows = await self._read(TALLY, ())
        async with self._translated("read"):
            return tally_of(rows)

    async def history(
        self, *, job_id: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[JobEvent]:
        after = min(after, LARGEST)
        limit = LARGEST if limit is None else min(limit, LARGEST)
        if job_id is None:
            rows = await self._read(_HISTORY, (after, limit))
        else:
            rows = await self._read(_JOB_HISTORY, (job_id, after, after, limit))
        async with self._translated("read"):
            return events_of(rows)

    async def latest(self, job_id: str, most: int) -> list[JobEvent]:
        rows = await self._read(_LATEST, (job_id, min(most, LARGEST)))
        async with self._translated("read"):
            return events_of(rows)

    async def last_seq(self) -> int:
        rows = await self._read("SELECT value FROM counters WHERE name = 'seq'", ())
        async with self._translated("read"):
            ((seq,),) = rows
            return int(seq)

    async def dependents(self, job_id: str) -> list[str]:
        sql = "SELECT job_id FROM dependencies WHERE depends_on = ? ORDER BY job_id"
        return [row[0] for row in await self._read(sql, (job_id,))]

    async def documents(self, kind: str) -> dict[str, str]:
        sql = "SELECT name, body FROM documents WHERE kind = ? ORDER BY name"
        rows = await self._read(sql, (kind,))
        return {row[0]: row[1] for row in rows}

    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        async with self._turn, self._translated("write to"):
            await self._apply(DocumentWrite(kind, name, body))
        self._checkpoints.note(1)

    async def document_kinds(self) -> list[str]:
        rows = await self._read("SELECT DISTINCT kind FROM documents ORDER BY kind", ())
        return [row[0] for row in rows]

    async def restore(
        self, jobs: Sequence[Stored], history: Sequence[JobEvent], last_seq: int
    ) -> None:
        async with self._turn, self._translated("write to"):
            await self._apply(Restoration(jobs, history, last_seq, self._environments))
        self._checkpoints.note(len(jobs) + len(history))

    async def _read(self, sql: str, parameters: Sequence[Any]) -> Iterable[Sequence[Any]]:
        if self._reader is None:
            raise StoreError(f"{self.path} is not open")
        async with self._translated("read"):
            try:
                return await self._reader.execute_fetchall(sql, parameters)
            except UnicodeEncodeError:  # no such text was ever kept
                return []

    def _make_writer(self, *args: Any, **kwargs: Any) -> _Writer:
        connection = _Writer(*args, **kwargs)
        connection.store = self
        return connection

    @asynccontextmanager
    async def _translated(self, what: str) -> AsyncIterator[None]:
        try:
            yield
        except _TROUBLE as error:
            if await self._is_outdated(error):
                raise Outdated(
                    f"{self.path} was migrated by a newer anodejobs: end this application, and"
                    " upgrade it"
                ) from error
            raise StoreError(f"cannot {what} {self.path}: {error}") from error

    async def _is_outdated(self, error: Exception) -> bool:
        """Return whether what is wrong is that the tables are those of a newer version by now."""
        is_of_tables = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
        if not is_of_tables or self._reader is None:
            return False
        with suppress(sqlite3.Error, ValueError):  # it is being closed
            for (version,) in await self._reader.execute_fetchall("PRAGMA user_version"):
                return int(version) > len(MIGRATIONS)
        return False

    def apply_next(self, connection: _Writer) -> None:
        """Prepare the file, or apply the batch in one transaction; in the writer's thread."""
        if not connection.is_prepared:
            prepare(connection, self.path, self._synchronous)
            connection.file = _file_at(self.path)
            connection.is_prepared = True
            return
        batch, self._batch = self._batch, None
        if batch is None:
            return
        try:
            connection.execute("BEGIN IMMEDIATE")
            batch.apply(connection)
            if _file_at(self.path) != connection.file:  # SQLite would write on, to no avail
                raise StoreError(
                    f"{self.path} was removed or replaced while it was in use: nothing can be"
                    " recorded until it is opened again"
                )
            connection.execute("COMMIT")
        except BaseException as error:
            batch.failure = error
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._bell.ring()


_TROUBLE = (
    *(sqlite3.Error, OSError, ValueError, TypeError, OverflowError, KeyError),
    RuntimeError,  # a connection can have no thread
)
_STORED = (
    f"SELECT attempt, launch, body, {RECORD_COLUMNS}, spec FROM jobs JOIN specs"
    " USING (job_id) JOIN base_environments ON digest = environment"
)
_ENTRIES = "SELECT seq, job_id, attempt, at, previous, status, why, ended FROM entries"
_HISTORY = f"{_ENTRIES} WHERE seq > ? ORDER BY seq LIMIT ?"
_JOB_HISTORY = f"""
    WITH RECURSIVE mine (seq) AS (
        SELECT entry FROM jobs WHERE job_id = ?
        UNION ALL SELECT before FROM mine JOIN entries USING (seq) WHERE before > ?
    )
    {_ENTRIES} JOIN mine USING (seq) WHERE seq > ? ORDER BY seq LIMIT ?"""
_LATEST = f"""
    WITH RECURSIVE mine (seq) AS (
        SELECT entry FROM jobs WHERE job_id = ?
        UNION ALL SELECT before FROM mine JOIN entries USING (seq) WHERE before NOTNULL
        LIMIT ?
    )
    {_ENTRIES} JOIN mine USING (seq) ORDER BY seq"""


class _Writer(sqlite3.Connection):
    """The writing connection: its ``commit`` applies the store's next batch."""

    store: SqliteJobStore
    is_prepared = False
    file: tuple[int, int] | None = None

    def commit(self) -> None:
        self.store.apply_next(self)


def _existing(path: Path) -> str:
    """Return the URI by which the file is opened where there is one, and never made."""
    # From Python 3.14 on Path.as_uri() imports a client of HTTP.
    return f"file://{quote(os.fsencode(path))}?mode=rw"


def _file_at(path: Path) -> tuple[int, int] | None:
    """Return which file that is, whatever its name; None: none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


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
            self._wanted.set()

    def start(self) -> None:
        self._stopping = False
        self._wanted.clear()
        if self._log_bytes() > _CHECKPOINT_ABOVE_BYTES:
            self.note(_CHECKPOINT_AFTER_WRITES)
        thread = threading.Thread(target=self._run, name="anodejobs-checkpoints", daemon=True)
        start(thread)
        self._thread = thread

    async def stop(self) -> None:
        """End the thread; what was written here is carried over before.

        SQLite does that for the last one to close the file, and who has it open for long may never
        write: the log would grow with every program that comes and goes.
        """
        self._stopping = True
        self._wanted.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            await in_thread(thread.join)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._wanted.wait()
            self._wanted.clear()
            is_last = self._stopping
            if self._writes:
                self._writes = 0
                self._carry_over()

    def _carry_over(self) -> None:
        # A database that cannot be written fails the commits, which say so to somebody.
        with contextlib.suppress(sqlite3.Error):
            connection = sqlite3.connect(
                _existing(self._path), uri=True, isolation_level=None, timeout=10.0
            )
            with contextlib.closing(connection):
                connection.execute(f"PRAGMA wal_checkpoint({self._mode()})")

    def _mode(self) -> str:
        """Under unbroken load only a checkpoint that makes writers wait lets the log start anew."""
        return "TRUNCATE" if self._log_bytes() > _TRUNCATE_ABOVE_BYTES else "PASSIVE"

    def _log_bytes(self) -> int:
        try:
            return os.stat(f"{self._path}-wal").st_size
        except FileNotFoundError:
            return 0
