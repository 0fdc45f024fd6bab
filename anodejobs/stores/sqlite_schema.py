"""The tables of an SQLite file, made and migrated by numbered steps."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anodejobs.errors import StoreError

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
        attempt INTEGER NOT NULL,
        at INTEGER NOT NULL,
        previous TEXT,
        status TEXT NOT NULL,
        why TEXT
    );
    CREATE INDEX history_by_job ON history (job_id, seq);
    CREATE TABLE counters (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO counters VALUES ('seq', 0);
    """,
    # What changes becomes columns, and what a run was asked to be a table of its own: a change of
    # status rewrites a row, and rows were mostly of what does not change.
    """
    ALTER TABLE jobs RENAME TO old_jobs;
    CREATE TABLE jobs (
        job_id TEXT PRIMARY KEY NOT NULL,
        created_at INTEGER NOT NULL,
        name TEXT,
        user_id TEXT,
        workflow_id TEXT,
        batch_id TEXT,
        queue TEXT NOT NULL,
        priority INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        status TEXT NOT NULL,
        last_update INTEGER NOT NULL,
        started_at INTEGER,
        finished_at INTEGER,
        submitted_at INTEGER,
        due_at INTEGER,
        number INTEGER NOT NULL,
        last_pid INTEGER,
        exit_code INTEGER,
        evidence TEXT,
        error TEXT,
        reached TEXT NOT NULL,
        progress REAL,
        attempt TEXT NOT NULL
    );
    CREATE TABLE specs (
        job_id TEXT PRIMARY KEY NOT NULL,
        spec TEXT NOT NULL,
        launch TEXT NOT NULL,
        environment TEXT NOT NULL REFERENCES environments (digest)
    );
    INSERT INTO specs SELECT job_id,
        json_remove(record, '$.self_id', '$.created_at', '$.name', '$.user_id', '$.workflow_id',
            '$.revision', '$.status', '$.last_update', '$.started_at', '$.finished_at',
            '$.attempt', '$.last_pid', '$.exit_code', '$.evidence', '$.error', '$.reached'),
        launch, environment
    FROM old_jobs;
    INSERT INTO jobs SELECT job_id, created_at, name, user_id, workflow_id, NULL, 'default', 20,
        revision, status, last_update, started_at, finished_at, NULL, NULL,
        json_extract(record, '$.attempt'),
        json_extract(record, '$.last_pid'), json_extract(record, '$.exit_code'),
        json_extract(record, '$.evidence'), json_extract(record, '$.error'),
        (SELECT coalesce(group_concat(value), '') FROM json_each(record, '$.reached')),
        NULL, attempt
    FROM old_jobs;
    DROP TABLE old_jobs;
    ALTER TABLE history ADD COLUMN ended TEXT;
    CREATE TABLE dependencies (
        depends_on TEXT NOT NULL,
        job_id TEXT NOT NULL,
        PRIMARY KEY (depends_on, job_id)
    ) WITHOUT ROWID;
    CREATE INDEX dependencies_by_job ON dependencies (job_id);
    CREATE TABLE documents (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID;
    CREATE INDEX jobs_by_creation ON jobs (created_at, job_id);
    CREATE INDEX jobs_by_status ON jobs (status, created_at, job_id);
    CREATE INDEX jobs_by_update ON jobs (last_update, job_id);
    CREATE INDEX jobs_by_name ON jobs (name, job_id) WHERE name IS NOT NULL;
    CREATE INDEX jobs_by_user ON jobs (user_id, created_at, job_id) WHERE user_id IS NOT NULL;
    CREATE INDEX jobs_by_workflow ON jobs (workflow_id, created_at, job_id)
        WHERE workflow_id IS NOT NULL;
    CREATE INDEX jobs_by_batch ON jobs (batch_id, created_at, job_id) WHERE batch_id IS NOT NULL;
    """,
    """
    ALTER TABLE jobs ADD COLUMN cpu_seconds REAL;
    ALTER TABLE jobs ADD COLUMN peak_memory_bytes INTEGER;
    """,
    # The entries of a job lead from the last one, which its row knows, to the first: to keep an
    # index of them up to date wrote a page of its own for almost every change. The new name keeps a
    # process of an older version, which has the file open, from entries that nothing leads to.
    """
    ALTER TABLE jobs ADD COLUMN entry INTEGER;
    ALTER TABLE history ADD COLUMN before INTEGER;
    UPDATE jobs SET entry = (SELECT max(seq) FROM history WHERE history.job_id = jobs.job_id);
    UPDATE history SET before = (
        SELECT max(seq) FROM history AS other INDEXED BY history_by_job
        WHERE other.job_id = history.job_id AND other.seq < history.seq
    );
    DROP INDEX history_by_job;
    ALTER TABLE history RENAME TO entries;
    """,
    # All rows in the order of their names, also those that have none.
    """
    DROP INDEX jobs_by_name;
    CREATE INDEX jobs_by_name ON jobs (name, job_id);
    """,
    # Who removes the last job that names an environment removes that, too, and has to find out. The
    # new name keeps a process of an older version, which takes what it has once written to be
    # there, from naming one that is gone.
    """
    CREATE INDEX specs_by_environment ON specs (environment);
    DELETE FROM environments WHERE digest NOT IN (SELECT environment FROM specs);
    ALTER TABLE environments RENAME TO base_environments;
    """,
)

_CACHE_KIB = 2000
"""SQLite's own default."""
_MIGRATION_CACHE_KIB = 256 * 1024
"""At most: rows are looked up all over a large file, a third of the time of what SQLite takes."""


def prepare(connection: sqlite3.Connection, path: Path, synchronous: str) -> None:
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
        connection.execute(f"PRAGMA cache_size = {-_MIGRATION_CACHE_KIB}")
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            connection.executescript(
                f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number};"
                f"PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
            )
        connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
    # A file that may only be read is to be refused now, not at the first job's end.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")
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
        fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone would leave it to a fork made meanwhile
        os.close(fd)
