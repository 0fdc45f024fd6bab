"""Status changes per second: 64 callers that each await their own, one after another.

The jobs are paused and resumed without there being processes: what is timed is the transition and
its commit. Beside the same rows written by the standard ``sqlite3`` module with one transaction for
each change: once with rows made beforehand, so that nothing but SQL is timed, and once by a program
that makes each row when its change comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.databases import MYSQL, POSTGRES, own_database, own_store
from benchmarks.measure import Stopwatch
from benchmarks.programs import expect
from benchmarks.rounds import Figures, Row, Size, Subject, at_least

if TYPE_CHECKING:
    from anodejobs.jobdb import JobDB
    from anodejobs.records import JobRecord
    from anodejobs.stores.base import Insert, JobStore

RATE = "changes/s"
CPU = "CPU us/change"

Change = tuple[tuple[object, ...], tuple[object, ...], tuple[str, str]]
"""The parameters of the UPDATE, those of the history's entry, the statuses from and to."""

PRAGMAS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL"
UPDATE = """
    UPDATE jobs SET revision = ?, status = ?, last_update = ?, started_at = ?, finished_at = ?,
        submitted_at = ?, due_at = ?, number = ?, last_pid = ?, exit_code = ?, evidence = ?,
        error = ?, reached = ?, progress = ?, cpu_seconds = ?, peak_memory_bytes = ?,
        attempt = coalesce(?, attempt)
    WHERE job_id = ? AND revision = ?"""
ENTER = """
    INSERT INTO history (seq, job_id, attempt, at, previous, status, why, ended)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
LAST_SEQ = "SELECT value FROM counters WHERE name = 'seq'"
COUNT = """
    INSERT INTO counters VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"""


async def anodejobs(place: Path, size: Size) -> Figures:
    from anodejobs.stores.sqlite import SqliteJobStore

    return await _by_jobdb(SqliteJobStore(place / "jobs.db"), place, size)


async def anodejobs_files(place: Path, size: Size) -> Figures:
    """The same in a file for each job, every commit synced to the disk."""
    from anodejobs.stores.file import FileJobStore

    return await _by_jobdb(FileJobStore(place / "store"), place, size)


async def anodejobs_memory(place: Path, size: Size) -> Figures:
    """The same in no file at all."""
    from anodejobs.stores.memory import MemoryJobStore

    return await _by_jobdb(MemoryJobStore(), place, size)


async def postgresql(place: Path, size: Size) -> Figures:
    """The same, in a database of its own on the server that the environment names."""
    async with own_store(POSTGRES) as store:
        return await _by_jobdb(store, place, size)


async def mysql(place: Path, size: Size) -> Figures:
    """The same, for MySQL or MariaDB."""
    async with own_store(MYSQL) as store:
        return await _by_jobdb(store, place, size)


async def orm_sqlite(place: Path, size: Size) -> Figures:
    """The peer that uses SQLAlchemy's ORM, on SQLite."""
    return await _by_orm(f"sqlite+aiosqlite:///{place}/orm.db", size)


async def orm_postgresql(place: Path, size: Size) -> Figures:
    """The same on PostgreSQL."""
    async with own_database(POSTGRES) as url:
        return await _by_orm(url, size)


async def _by_orm(url: str, size: Size) -> Figures:
    from benchmarks.orm import change_each

    # A tenth of the changes: it would take as long as all others together.
    callers, turns = size["callers"], max(1, size["changes"] // size["callers"] // 10)
    wall_s, cpu_s = await change_each(url, callers, turns)
    changes = callers * turns
    return {RATE: changes / wall_s, CPU: cpu_s * 1e6 / changes}


async def _by_jobdb(store: JobStore, place: Path, size: Size) -> Figures:
    from anodejobs.jobdb import JobDB

    callers, turns = size["callers"], size["changes"] // size["callers"]
    jobdb = JobDB(store)
    await jobdb.open()
    try:
        async with asyncio.TaskGroup() as group:
            server = group.create_task(jobdb.serve())
            for job in _running_jobs(place, callers):
                await jobdb.create(job.record, job.launch, job.attempt, replace=None)
            figures = await _apply_all(jobdb, callers, turns)
            server.cancel()
        expect("changes in the history", len(await jobdb.history(_job_id(0))), turns + 1)
    finally:
        await jobdb.close()
    return figures


async def _apply_all(jobdb: JobDB, callers: int, turns: int) -> Figures:
    from anodejobs.events import Paused, Resumed

    async def caller(job_id: str) -> None:
        for turn in range(turns):
            record = await jobdb.apply(job_id, Resumed() if turn % 2 else Paused())
            expect("revision", record.revision, turn + 2)

    watch = Stopwatch()
    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(_job_id(number)))
    return _figures(watch, turns * callers)


async def sqlite_rows_made(place: Path, size: Size) -> Figures:
    """The peer whose rows are there already."""
    return await _by_sqlite3(place, size, list)


async def sqlite_making_rows(place: Path, size: Size) -> Figures:
    """The peer that makes each row when its change comes."""
    return await _by_sqlite3(place, size, iter)


async def _by_sqlite3(
    place: Path, size: Size, take: Callable[[Iterable[Change]], Iterable[Change]]
) -> Figures:
    from benchmarks.made import make_store

    path = place / "db" / "jobs.db"
    inserts = _running_jobs(place, size["callers"])
    await make_store(path, inserts)
    changes = take(_changes([insert.record for insert in inserts], size["changes"]))
    return _write_each(path, changes, size["changes"])


def _write_each(path: Path, changes: Iterable[Change], expected: int) -> Figures:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(PRAGMAS)
        watch = Stopwatch()
        for change in changes:
            _write(connection, change)
        figures = _figures(watch, expected)
        ((entries,),) = connection.execute("SELECT count(previous) FROM history")
    expect("changes in the history", entries, expected)
    return figures


def _write(connection: sqlite3.Connection, change: Change) -> None:
    update, entry, (previous, status) = change
    connection.execute("BEGIN IMMEDIATE")
    expect("rows changed", connection.execute(UPDATE, update).rowcount, 1)
    ((seq,),) = connection.execute(LAST_SEQ)
    connection.execute(ENTER, (seq + 1, *entry))
    connection.executemany(COUNT, [(status, 1), (previous, -1), ("seq", 1)])
    connection.execute("COMMIT")


def _running_jobs(place: Path, jobs: int) -> list[Insert]:
    from benchmarks.made import inserts_of

    insert = inserts_of(place)
    now = datetime.now(UTC)
    times = {"created_at": now, "last_update": now, "started_at": now}
    return [insert(_job_id(number), times) for number in range(jobs)]


def _job_id(number: int) -> str:
    return f"job-{number}"


def _changes(records: list[JobRecord], changes: int) -> Iterator[Change]:
    """What pausing and resuming each job in turn would write, made by the library's own tables."""
    from anodejobs.events import Paused, Resumed
    from anodejobs.stores.rows import fact_columns, micros
    from anodejobs.transitions import transition

    for number in range(changes):
        turn, job = divmod(number, len(records))
        old = records[job]
        new = records[job] = transition(old, Resumed() if turn % 2 else Paused())
        update = (*fact_columns(new), None, new.self_id, old.revision)
        at = micros(new.last_update)
        entry = (new.self_id, new.attempt, at, old.status, new.status, None, None)
        yield update, entry, (old.status, new.status)


def _figures(watch: Stopwatch, changes: int) -> Figures:
    return {RATE: changes / watch.wall_s, CPU: watch.cpu_s * 1e6 / changes}


SIDES = {
    "anodejobs": anodejobs,
    "anodejobs, memory": anodejobs_memory,
    "anodejobs, files": anodejobs_files,
    "anodejobs, PostgreSQL": postgresql,
    "anodejobs, MySQL": mysql,
    "sqlite3, rows made": sqlite_rows_made,
    "sqlite3, making rows": sqlite_making_rows,
    "SQLAlchemy, SQLite": orm_sqlite,
    "SQLAlchemy, PostgreSQL": orm_postgresql,
}


def _stores(callers: int, changes: int, *rows: Row) -> Subject:
    """Every store with so many callers, and the peers."""
    return Subject(
        name=f"stores@{callers}",
        module="store",
        sides=tuple(SIDES),
        size={"callers": callers, "changes": changes},
        quick={"callers": callers, "changes": 10 * callers},
        rows=rows,
    )


def _each(*more: Row) -> tuple[Row, ...]:
    others = ("memory", "files", "PostgreSQL", "MySQL")
    return (
        Row(RATE, "sqlite3, rows made"),
        *(Row(RATE, "anodejobs", ours=f"anodejobs, {other}") for other in others),
        *more,
    )


SUBJECTS = (
    Subject(
        name="transitions@64",
        module="store",
        sides=("anodejobs", "anodejobs, files", "sqlite3, rows made", "sqlite3, making rows"),
        size={"callers": 64, "changes": 19_200},
        quick={"callers": 64, "changes": 640},
        rows=(
            Row(RATE, "sqlite3, rows made", at_least(2.0)),
            Row(RATE, "sqlite3, making rows"),
            Row(RATE, "sqlite3, making rows", ours="anodejobs, files"),
            Row(CPU, "sqlite3, making rows"),
        ),
    ),
    _stores(1, 500, *_each()),
    _stores(8, 2_000, *_each()),
    _stores(
        64,
        6_400,
        Row(RATE, "sqlite3, rows made", at_least(3.0)),
        Row(RATE, "sqlite3, making rows", at_least(3.0)),
        Row(RATE, "SQLAlchemy, SQLite", at_least(20.0)),
        Row(RATE, "SQLAlchemy, PostgreSQL", at_least(20.0), ours="anodejobs, PostgreSQL"),
        Row(RATE, "anodejobs", at_least(0.5), ours="anodejobs, PostgreSQL"),
        Row(RATE, "anodejobs", ours="anodejobs, MySQL"),
        Row(RATE, "anodejobs", ours="anodejobs, memory"),
        Row(RATE, "anodejobs", ours="anodejobs, files"),
    ),
)
