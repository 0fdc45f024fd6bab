"""What the SQLite store promises beyond the contract: its file, other processes, full disks."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from anodejobs import JobFilter, SqliteJobStore, Status, StoreError
from anodejobs.events import Attempt
from anodejobs.executors.base import Launch, LogPlan
from anodejobs.records import JobEvent, JobRecord
from anodejobs.stores.base import Delete, Query, Stored
from anodejobs.stores.rows import micros
from anodejobs.stores.sqlite import LONGEST_PATH_BYTES
from anodejobs.stores.sqlite_queries import page
from anodejobs.stores.sqlite_schema import APPLICATION_ID, MIGRATIONS
from anodejobs.stores.sqlite_writes import Batch
from anodejobs.testing import make_attempt, make_insert, make_launch, make_record, make_save
from tests.programs import ends_well, process

IS_LINUX = sys.platform == "linux"
PATIENCE_S = 60.0

CHILD = """
import asyncio, os, resource, signal, subprocess, sys
from anodejobs import JobFilter, SqliteJobStore, StoreError
from anodejobs.stores.base import Query
from anodejobs.testing import make_insert, make_record

signal.alarm(60)  # whatever happens to the test

def say(*words):
    print(*words, flush=True)

async def put(store, *ids, **fields):
    return await store.commit([make_insert(make_record(i, **fields)) for i in ids])

async def main():
    store = SqliteJobStore("jobs.db")
{body}

asyncio.run(main())
"""

# A file of version 1, every column in use. Once released, never change it: there are such files.
VERSION_1 = """
    PRAGMA application_id = 1095651140;
    PRAGMA user_version = 1;
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

    INSERT INTO environments VALUES ('abc', '{"COLOUR": "\\udcff", "PATH": "/bin"}');
    INSERT INTO jobs VALUES (
        'old/job', 2, 'failed', 1700000000123456, 1700000001000000, 1700000000500000,
        1700000001000000, 'Old', 'u1', 'w1',
        '{"self_id":"old/job","status":"failed","last_update":"2023-11-14T22:13:21Z",
          "last_pid":4711,"dirname":"/srv/jobs","cwd":"/srv","logdir":"/srv/jobs/job_logs",
          "logfile":"old%2Fjob","command":["sh","-c","exit 3"],"name":"Old","description":null,
          "tags":["red","green"],"metadata":{"a":[1,null]},"user_id":"u1","workflow_id":"w1",
          "attempt":1,"timeout":1.5,"created_at":"2023-11-14T22:13:20.123456Z",
          "started_at":"2023-11-14T22:13:20.500000Z","finished_at":"2023-11-14T22:13:21Z",
          "exit_code":3,"evidence":"observed","error":"exit code 3","host":"h",
          "reached":["starting","failed"],"revision":2}',
        '{"token":"t0ken","supervisor":"h:1","pid":4711,"start_time":12.5,"boot_id":"b",
          "started_monotonic":0.5,"pipes":[3,4]}',
        '{"job_id":"old/job","argv":["sh","-c","exit 3"],"cwd":"/srv","envs":{"A":"b"},
          "logs":{"stdout":"/srv/o.txt","stderr":"/srv/e.txt","max_bytes":null,"backups":1},
          "timeout":1.5,"stop_grace":10.0,"start_grace":0.0,"leftovers":"kill"}',
        'abc'
    );
    INSERT INTO tags VALUES ('red', 'old/job'), ('green', 'old/job');
    INSERT INTO history VALUES
        (7, 'old/job', 1, 1700000000123456, NULL, 'starting', NULL),
        (9, 'old/job', 1, 1700000001000000, 'starting', 'failed', 'exit code 3');
    INSERT INTO counters VALUES ('seq', 12), ('failed', 1), ('starting', 0);
"""
VERSION_1_FIELDS = {
    *("self_id", "status", "last_update", "last_pid", "dirname", "cwd", "logdir", "logfile"),
    *("command", "name", "description", "tags", "metadata", "user_id", "workflow_id", "attempt"),
    *("timeout", "created_at", "started_at", "finished_at", "exit_code", "evidence", "error"),
    *("host", "reached", "revision"),
}


@asynccontextmanager
async def opened(path: Path, **options: str) -> AsyncIterator[SqliteJobStore]:
    store = SqliteJobStore(path, **options)
    try:
        await store.open(lambda: None)
        yield store
    finally:
        await store.close()


async def put(store: SqliteJobStore, *ids: str, **fields: object) -> list[int | None]:
    return await store.commit([make_insert(make_record(job_id, **fields)) for job_id in ids])


async def ids_in(store: SqliteJobStore) -> list[str]:
    query = Query(filter=JobFilter(), sort_by="self_id")
    return [record.self_id for record in await store.page(query)]


def child(body: str) -> tuple[str, ...]:
    """Return the command that runs the body of a coroutine; its ``store`` is in the folder."""
    return sys.executable, "-c", CHILD.format(body=body)


# The file.


async def test_a_new_database_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "new" / "jobs.db"
    async with opened(path) as store:
        await put(store, "a")
        modes = {
            p.name: stat.S_IMODE(p.stat().st_mode) for p in [path.parent, *path.parent.iterdir()]
        }
    assert modes == {
        "new": 0o700,
        "jobs.db": 0o600,
        "jobs.db-wal": 0o600,
        "jobs.db-shm": 0o600,
        "jobs.db-bells": 0o700,
    }


async def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o750)
    async with opened(tmp_path / "jobs.db"):
        pass
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


async def test_the_database_has_a_write_ahead_log(tmp_path):
    async with opened(tmp_path / "jobs.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
async def test_only_power_durability_syncs_each_commit(tmp_path, durability, synchronous):
    """In SQLite's numbers: 1 is NORMAL, 2 is FULL."""
    seen = []

    class Asked(SqliteJobStore):
        def apply_next(self, connection):
            super().apply_next(connection)
            seen.append(connection.execute("PRAGMA synchronous").fetchone()[0])

    store = Asked(tmp_path / "jobs.db", durability=durability)
    await store.open(lambda: None)
    await put(store, "a")
    await store.close()
    assert seen[-1] == synchronous


async def test_a_store_that_is_not_open_says_so(tmp_path):
    store = SqliteJobStore(tmp_path / "jobs.db")
    for call in (store.commit([]), store.get("a"), store.last_seq(), store.count(JobFilter())):
        with pytest.raises(StoreError, match="is not open"):
            await call


async def test_a_store_stays_where_it_is_when_the_program_changes_its_folder(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("anodejobs.stores.sqlite._CHECKPOINT_AFTER_WRITES", 1)
    monkeypatch.chdir(tmp_path / "there")
    told = asyncio.Event()
    store = SqliteJobStore("jobs.db")
    other = SqliteJobStore(tmp_path / "there" / "jobs.db")
    await store.open(lambda: None)
    await other.open(told.set)
    monkeypatch.chdir(tmp_path / "elsewhere")
    try:
        await store.commit([make_insert(make_record())])
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()
    finally:
        await store.close()
        await other.close()
    assert not list((tmp_path / "elsewhere").iterdir())


async def test_a_closed_store_leaves_only_the_database(tmp_path):
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs.db", "jobs.db-bells"]
    assert list((tmp_path / "jobs.db-bells").iterdir()) == []


async def test_a_store_is_closed_whose_bell_could_not_be_hung_up_or_taken_down(
    tmp_path, monkeypatch
):
    """Else its threads would keep the program from ending."""
    store = SqliteJobStore(tmp_path / "jobs.db")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refused)
        with pytest.raises(StoreError, match="Input/output error"):
            await store.open(lambda: None)
    await store.close()
    assert not list((tmp_path / "jobs.db-bells").iterdir())
    await store.open(lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refused)
        await store.close()


def refused(*args: object, **options: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_closing_twice_at_once_closes_once(tmp_path):
    store = SqliteJobStore(tmp_path / "jobs.db")
    await store.open(lambda: None)
    await asyncio.gather(store.close(), store.close())
    with pytest.raises(StoreError):
        await store.last_seq()


async def test_closing_that_is_cancelled_ends_the_threads_all_the_same(tmp_path):
    before = set(threading.enumerate())
    store = SqliteJobStore(tmp_path / "jobs.db")
    await store.open(lambda: None)
    threads = set(threading.enumerate()) - before
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert len(threads) == 3
    for thread in threads:
        await asyncio.to_thread(thread.join, PATIENCE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("most", range(3))
async def test_where_there_can_be_no_thread_opening_says_so_and_leaves_nothing(
    tmp_path, monkeypatch, most
):
    start, started = threading.Thread.start, []

    def start_if_there_may_be_one(thread):
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    store = SqliteJobStore(tmp_path / "jobs.db")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_if_there_may_be_one)
        with pytest.raises(StoreError, match=r"cannot open .*: .*can't start new thread"):
            await store.open(lambda: None)
        await store.close()


async def test_the_write_ahead_log_starts_anew_under_unbroken_load(tmp_path, monkeypatch):
    monkeypatch.setattr("anodejobs.stores.sqlite._TRUNCATE_ABOVE_BYTES", 1024 * 1024)
    log = tmp_path / "jobs.db-wal"
    started_anew = asyncio.Event()
    largest = 0

    async def load(name: str) -> None:
        nonlocal largest
        n = 0
        while not started_anew.is_set():
            n += 1
            await put(store, *(f"{name}-{n}-{m}" for m in range(100)), description="x" * 2000)
            size = log.stat().st_size
            if size < largest:
                started_anew.set()
            largest = max(largest, size)

    async with opened(tmp_path / "jobs.db") as store, asyncio.timeout(PATIENCE_S):
        # Two, so that one commit is always waiting while the other is made.
        await asyncio.gather(load("a"), load("b"))
    assert not log.exists()


async def test_documents_are_carried_over_from_the_write_ahead_log_as_records_are(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("anodejobs.stores.sqlite._CHECKPOINT_AFTER_WRITES", 10)
    path = tmp_path / "jobs.db"
    async with opened(path) as store, asyncio.timeout(PATIENCE_S):
        while path.stat().st_size < 100_000:
            await store.put_document("schedule progress", "often", "x" * 100_000)


async def test_what_programs_that_were_killed_have_left_in_the_write_ahead_log_is_carried_over(
    tmp_path,
):
    path, copy = tmp_path / "jobs.db", tmp_path / "copy.db"
    be_killed = """
    await store.open(lambda: None)
    await put(store, "a", "b", description="x" * 3_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with process(*child(be_killed), folder=tmp_path) as running:
        await asyncio.to_thread(running.wait, PATIENCE_S)
    with closing(sqlite3.connect(path)) as reader:  # so that the last one to close it is another
        reader.execute("SELECT count(*) FROM jobs").fetchall()
        async with opened(path):
            pass
        shutil.copyfile(path, copy)  # without the log
    with closing(sqlite3.connect(copy)) as connection:
        rows = connection.execute("SELECT job_id FROM jobs ORDER BY job_id").fetchall()
    assert rows == [("a",), ("b",)]


async def test_a_path_may_be_as_long_as_sqlite_takes_it_and_no_longer(tmp_path):
    folder = tmp_path
    while len(str(folder)) < LONGEST_PATH_BYTES - 110:
        folder /= "x" * 100
    name = "y" * (LONGEST_PATH_BYTES - len(str(folder)) - 1)
    async with opened(folder / name) as store:
        assert await put(store, "a") == [1]
    with pytest.raises(StoreError, match="its path has 505 bytes, and SQLite takes 504 at most"):
        async with opened(folder / f"{name}y"):
            pass


async def test_what_was_written_is_in_the_file_once_it_is_closed_beside_another_one(tmp_path):
    path, copy = tmp_path / "jobs.db", tmp_path / "copy.db"
    async with opened(path):
        for name in ("a", "b"):
            async with opened(path) as store:
                await put(store, name)
        shutil.copyfile(path, copy)  # without the log
    with closing(sqlite3.connect(copy)) as connection:
        rows = connection.execute("SELECT job_id FROM jobs ORDER BY job_id").fetchall()
    assert rows == [("a",), ("b",)]


def environments_in(path: Path) -> list[dict[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT body FROM base_environments ORDER BY body").fetchall()
    return [json.loads(body) for (body,) in rows]


async def test_an_environment_is_kept_for_as_long_as_a_job_was_asked_for_with_it(tmp_path):
    path = tmp_path / "jobs.db"
    red, blue = {"COLOUR": "red"}, {"COLOUR": "blue"}
    a, b, refused = [make_insert(make_record(job_id), base_env=red) for job_id in "aba"]
    another_run = make_save(a.record, launch=make_launch("a", base_env=blue))
    async with opened(path) as store:
        await store.commit([a, b])
        assert environments_in(path) == [red]
        await store.commit([another_run])
        assert environments_in(path) == [blue, red]
        await store.commit([Delete(record=b.record), refused])
        assert environments_in(path) == [blue]
        await store.commit([Delete(record=another_run.record), a, Delete(record=a.record), b])
        assert environments_in(path) == [red]
        assert (await store.get("b")).launch.base_env == red


async def test_an_environment_that_another_process_has_removed_is_kept_again(tmp_path):
    one, other = [make_insert(make_record(i), base_env={"COLOUR": "red"}) for i in ("one", "other")]
    async with opened(tmp_path / "jobs.db") as store, opened(tmp_path / "jobs.db") as another:
        await store.commit([one])
        await another.commit([Delete(record=one.record)])
        await store.commit([other])
        assert (await another.get("other")).launch == other.launch


# Files that are not ours, or of a newer version.


async def test_a_newer_database_is_left_as_it_is(tmp_path):
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        await put(store, "a")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    await _assert_refused_unharmed(path, match="newer anodejobs.*upgrade")


async def test_a_database_of_another_program_is_left_as_it_is(tmp_path):
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE jobs (id); INSERT INTO jobs VALUES (1);")
    await _assert_refused_unharmed(path, match="another program")


@pytest.mark.parametrize(
    "content", [b"no database\n" * 1000, b"hello\n", b"SQLite format 3\0" + b"?" * 84]
)
async def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path, content):
    (tmp_path / "jobs.db").write_bytes(content)
    await _assert_refused_unharmed(tmp_path / "jobs.db", match="cannot open")


async def _assert_refused_unharmed(path: Path, *, match: str) -> None:
    before = path.read_bytes()
    store = SqliteJobStore(path)
    with pytest.raises(StoreError, match=match):
        await store.open(lambda: None)
    await store.close()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith("-bells")] == ["jobs.db"]


async def test_a_folder_in_place_of_the_file_is_a_store_error(tmp_path):
    (tmp_path / "jobs.db").mkdir()
    with pytest.raises(StoreError, match="cannot open"):
        async with opened(tmp_path / "jobs.db"):
            pass


def remove(path: Path) -> None:
    path.unlink()


def remove_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace_by_a_backup(path: Path) -> None:
    backup = path.with_name("backup.db")
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(backup)) as new:
        old.backup(new)
    backup.replace(path)


@pytest.mark.parametrize("lose", [remove, remove_the_folder, replace_by_a_backup])
async def test_nothing_is_written_to_a_file_that_is_there_no_more(tmp_path, lose):
    path = tmp_path / "db" / "jobs.db"
    async with opened(path) as store:
        await put(store, "a")
        lose(path)
        for write in (put(store, "b"), store.put_document("kind", "name", "body")):
            with pytest.raises(StoreError, match="was removed or replaced"):
                await write
    async with opened(path) as store:
        await put(store, "c")
        assert await ids_in(store) == (["a", "c"] if lose is replace_by_a_backup else ["c"])


async def test_a_file_that_has_another_name_for_a_while_is_written_to_again(tmp_path):
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="was removed or replaced"):
            await put(store, "a")
        (tmp_path / "elsewhere").rename(path)
        await put(store, "b")
        assert await ids_in(store) == ["b"]


async def test_a_file_in_place_of_the_folder_is_a_store_error(tmp_path):
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(StoreError, match="cannot open"):
        async with opened(tmp_path / "folder" / "jobs.db"):
            pass


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o755, 0o444), (0o555, None)])
async def test_a_database_that_may_not_be_written_is_a_store_error(
    tmp_path, folder_mode, file_mode
):
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a")
    if file_mode is None:
        (tmp_path / "jobs.db").unlink()
    else:
        (tmp_path / "jobs.db").chmod(file_mode)
    tmp_path.chmod(folder_mode)
    as_nobody = """
    if os.getuid() == 0:
        os.setuid(65534)  # root may write everything
    try:
        await store.open(lambda: None)
    except StoreError as error:
        say("StoreError", error)
    await store.close()
    """
    with process(*child(as_nobody), folder=tmp_path) as running:
        assert running.stdout.readline().startswith(f"StoreError cannot open {tmp_path}/jobs.db: ")
        assert ends_well(running)


# What somebody else has written into it.


@pytest.mark.parametrize(
    "damage",
    [
        """specs SET spec = '{"unknown": 1}'""",
        "specs SET spec = '{\"cut\":'",
        "specs SET spec = ''",
        "specs SET spec = 'null'",
        "specs SET spec = '[]'",
        "jobs SET status = 'unheard of'",
        "jobs SET reached = 'running,unheard of'",
        "jobs SET created_at = 'noon'",
        "jobs SET created_at = 9223372036854775807",
    ],
)
async def test_a_record_that_makes_no_sense_is_a_store_error(tmp_path, damage):
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a")
        _damage(tmp_path / "jobs.db", damage)
        with pytest.raises(StoreError, match="cannot read"):
            await store.get("a")
        with pytest.raises(StoreError, match="cannot read"):
            await store.page(Query(filter=JobFilter()))


@pytest.mark.parametrize(
    "damage",
    [
        "specs SET launch = 'hello'",
        "specs SET launch = '{}'",
        "specs SET launch = '[]'",
        """specs SET launch = json_set(launch, '$.logs', 5)""",
        "base_environments SET body = '{'",
        "jobs SET attempt = 'hello'",
        "jobs SET attempt = '{}'",
        "jobs SET attempt = 'null'",
    ],
)
async def test_a_launch_that_makes_no_sense_is_a_store_error(tmp_path, damage):
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a")
        _damage(tmp_path / "jobs.db", damage)
        with pytest.raises(StoreError, match="cannot read"):
            await store.get("a")


@pytest.mark.parametrize("attempt", ["hello", "{}", "null", "[]"])
async def test_an_attempt_that_makes_no_sense_is_a_store_error(tmp_path, attempt):
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a")
        _damage(tmp_path / "jobs.db", f"jobs SET attempt = '{attempt}'")
        with pytest.raises(StoreError, match="cannot read"):
            await store.unfinished()


@pytest.mark.parametrize(
    "damage",
    [
        "specs SET spec = ''",
        "specs SET spec = 'null'",
        "specs SET spec = '[]'",
        "jobs SET last_update = 'noon'",
        "jobs SET due_at = 9223372036854775807",
    ],
)
async def test_a_turn_that_makes_no_sense_is_a_store_error(tmp_path, damage):
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a", status="pending")
        _damage(tmp_path / "jobs.db", damage)
        with pytest.raises(StoreError, match="cannot read"):
            await anext(store.turns())


@pytest.mark.parametrize("damage", ["value = 'many'", "name = 'unheard of'"])
async def test_a_length_of_the_history_that_makes_no_sense_is_a_store_error(tmp_path, damage):
    async with opened(tmp_path / "jobs.db") as store:
        _damage(tmp_path / "jobs.db", f"counters SET {damage} WHERE name = 'seq'")
        with pytest.raises(StoreError, match="cannot read"):
            await store.last_seq()


@pytest.mark.parametrize(
    "damage", ["status = 'unheard of'", "previous = 5", "at = 'noon'", "attempt = 'first'"]
)
async def test_a_history_that_makes_no_sense_is_a_store_error(tmp_path, damage):
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a")
        _damage(tmp_path / "jobs.db", f"entries SET {damage}")
        with pytest.raises(StoreError, match="cannot read"):
            await store.history()


async def test_a_count_of_what_makes_no_sense_is_a_store_error(tmp_path):
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a")
        _damage(tmp_path / "jobs.db", "jobs SET status = 'unheard of', name = 'a'")
        with pytest.raises(StoreError, match="cannot read"):
            await store.count(JobFilter(name="a"))


async def test_a_job_that_makes_no_sense_is_in_the_way_of_no_other(tmp_path):
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a", "b")
        _damage(tmp_path / "jobs.db", "specs SET spec = '' WHERE job_id = 'a'")
        stored = await store.get("b")
        assert stored.record.self_id == "b"
        assert await put(store, "c") == [3]


def _damage(path: Path, damage: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(f"UPDATE {damage}").rowcount > 0
        connection.commit()


# Pages.


@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
@pytest.mark.parametrize("sort_by", ["created_at", "last_update", "self_id", "name"])
async def test_a_page_takes_no_longer_where_there_are_more_jobs(tmp_path, sort_by, descending):
    async def most_steps(jobs: int) -> int:
        """Return what the longest page takes, wherever it begins, in steps of SQLite's machine."""
        path = tmp_path / f"{jobs}.db"
        names = [None if n % 3 == 0 else f"{n % 7}" for n in range(jobs)]
        async with opened(path) as store:
            records = [make_record(f"{n:04}", name=name) for n, name in enumerate(names)]
            await store.commit([make_insert(record) for record in records])
            every = Query(filter=JobFilter(), sort_by=sort_by, descending=descending)
            ids = [record.self_id for record in await store.page(every)]
            steps = [_steps(path, *page(replace(every, limit=10), None))]
            for after in ids[:: jobs // 10]:
                query = replace(every, limit=10, after=after)
                steps.append(_steps(path, *page(query, await store._sort_value(query))))
        return max(steps)

    assert await most_steps(1000) < 2 * await most_steps(100)


def _steps(path: Path, sql: str, parameters: tuple[Any, ...]) -> int:
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with closing(sqlite3.connect(path)) as connection:
        connection.set_progress_handler(count, 1)
        connection.execute(sql, parameters).fetchall()
    return steps


# Versions.


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_a_file_of_an_earlier_version_opens_with_its_data(tmp_path, version):
    path = tmp_path / "jobs.db"
    _make_version_1(path)
    _bring_to(version, path)
    async with opened(path) as store:
        assert await store.get("old/job") == OLD_JOB
        for fields in ({}, {"tags": ["green"]}, {"name": "Old"}, {"created_before": WHEN[1]}):
            assert await store.page(Query(filter=JobFilter(fields))) == [OLD_JOB.record]
        assert await store.count(JobFilter()) == {Status.failed: 1}
        assert await store.history() == await store.history(job_id="old/job") == OLD_HISTORY
        assert await store.last_seq() == 12
        save = make_save(OLD_JOB.record)
        assert await store.commit([save, make_insert(make_record())]) == [13, 14]
        assert [event.seq for event in await store.history(job_id="old/job")] == [7, 9, 13]
        await store.commit([Delete(record=save.record)])
        assert [event.seq for event in await store.history()] == [14]


async def test_what_has_a_file_open_as_it_was_before_writes_no_more_into_it(tmp_path):
    path = tmp_path / "jobs.db"
    _make_version_1(path)
    _bring_to(3, path)
    enter = (
        "INSERT INTO history (seq, job_id, attempt, at, status)"
        " VALUES (?, 'old/job', 1, 1, 'running')"
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as older:
        older.execute(enter, (13,))
        async with opened(path) as store:
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                older.execute(enter, (14,))
            assert [event.seq for event in await store.history(job_id="old/job")] == [7, 9, 13]


async def test_an_environment_that_was_left_in_a_file_of_version_4_is_removed(tmp_path):
    path = tmp_path / "jobs.db"
    _make_version_1(path)
    _bring_to(4, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as older:
        older.execute("INSERT INTO environments VALUES ('def', '{}')")
        async with opened(path) as store:
            assert environments_in(path) == [OLD_JOB.launch.base_env]
            assert await store.get("old/job") == OLD_JOB
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            older.execute("SELECT * FROM environments")


async def test_a_version_1_file_of_many_jobs_opens_with_each_as_it_was(tmp_path):
    path = tmp_path / "jobs.db"
    _make_version_1(path)
    jobs = [OLD_JOB, *more_old_jobs()]
    with closing(sqlite3.connect(path)) as connection:
        for stored in jobs[1:]:
            _add_to_version_1(connection, stored)
        connection.commit()
    async with opened(path) as store:
        for stored in jobs:
            assert await store.get(stored.record.self_id) == stored
        records = {stored.record.self_id: stored.record for stored in jobs}
        page = await store.page(Query(filter=JobFilter(), sort_by="self_id"))
        assert page == [records[job_id] for job_id in sorted(records)]
        tagged = await store.page(Query(filter=JobFilter({"tags": ["blue"]})))
        assert {record.self_id for record in tagged} == {"blue", "every colour"}
        unfinished = {(u.job_id, u.status, u.attempt) for u in await store.unfinished()}
        assert unfinished == {
            (stored.record.self_id, stored.record.status, stored.attempt)
            for stored in jobs
            if not stored.record.is_done
        }


async def test_what_was_in_a_version_1_file_is_written_on(tmp_path):
    path = tmp_path / "jobs.db"
    _make_version_1(path)
    async with opened(path) as store:
        save = make_save(OLD_JOB.record, status=Status.running, reached=[Status.running])
        await store.commit([save])
    async with opened(path) as store:
        stored = await store.get("old/job")
        assert (stored.record, stored.launch) == (save.record, OLD_JOB.launch)


async def test_a_version_1_file_that_makes_no_sense_is_refused_unharmed(tmp_path):
    path = tmp_path / "jobs.db"
    _make_version_1(path)
    with closing(sqlite3.connect(path)) as connection:
        (good,) = connection.execute("SELECT record FROM jobs").fetchone()
        connection.execute("UPDATE jobs SET record = '{'")
        connection.commit()
    before = _build(path)
    with pytest.raises(StoreError, match="cannot open"):
        async with opened(path):
            pass
    assert _build(path) == before
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE jobs SET record = ?", (good,))
        connection.commit()
    async with opened(path) as store:
        assert await store.get("old/job") == OLD_JOB


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_a_migrated_file_is_built_like_a_new_one(tmp_path, version):
    _make_version_1(tmp_path / "old.db")
    _bring_to(version, tmp_path / "old.db")
    for name in ("old.db", "new.db"):
        async with opened(tmp_path / name):
            pass
    assert _build(tmp_path / "old.db") == _build(tmp_path / "new.db")


async def test_a_new_file_says_whose_it_is_and_of_which_version(tmp_path):
    async with opened(tmp_path / "jobs.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    assert (application_id, version) == (APPLICATION_ID, len(MIGRATIONS)) == (0x414E4F44, version)


def _make_version_1(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"BEGIN; {VERSION_1}; COMMIT;")


def _bring_to(version: int, path: Path) -> None:
    """Make a file of version 1 what it was to a later one."""
    with closing(sqlite3.connect(path)) as connection:
        for number in range(2, version + 1):
            connection.executescript(
                f"BEGIN; {MIGRATIONS[number - 1]}; PRAGMA user_version = {number}; COMMIT;"
            )


def _add_to_version_1(connection: sqlite3.Connection, stored: Stored) -> None:
    """Keep the job as version 1 did: its record as one document."""
    record = stored.record
    moments = (record.created_at, record.last_update, record.started_at, record.finished_at)
    row = (
        record.self_id,
        record.revision,
        record.status,
        *map(micros, moments),
        record.name,
        record.user_id,
        record.workflow_id,
        record.model_dump_json(include=VERSION_1_FIELDS),
        stored.attempt.to_text(),
        stored.launch.to_text(),
        "abc",
    )
    connection.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * len(row))})", row)
    tags = [(tag, record.self_id) for tag in record.tags]
    connection.executemany("INSERT INTO tags VALUES (?, ?)", tags)


def _build(path: Path) -> set[tuple[str, str]]:
    """Return the statements the tables and indexes were made with, however indented."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {(name, " ".join(sql.split())) for name, sql in rows}


WHEN = [
    datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC),
    datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC),
]
OLD_JOB = Stored(
    record=JobRecord(
        self_id="old/job",
        status="failed",
        last_update=WHEN[1],
        last_pid=4711,
        dirname="/srv/jobs",
        cwd="/srv",
        logdir="/srv/jobs/job_logs",
        logfile="old%2Fjob",
        command=["sh", "-c", "exit 3"],
        name="Old",
        tags=["red", "green"],
        metadata={"a": [1, None]},
        user_id="u1",
        workflow_id="w1",
        timeout=1.5,
        created_at=WHEN[0],
        started_at=WHEN[0].replace(microsecond=500_000),
        finished_at=WHEN[1],
        exit_code=3,
        evidence="observed",
        error="exit code 3",
        host="h",
        reached=["starting", "failed"],
        revision=2,
    ),
    launch=Launch(
        job_id="old/job",
        argv=("sh", "-c", "exit 3"),
        cwd="/srv",
        base_env={"COLOUR": "\udcff", "PATH": "/bin"},
        envs={"A": "b"},
        logs=LogPlan(stdout="/srv/o.txt", stderr="/srv/e.txt"),
        timeout=1.5,
        stop_grace=10.0,
    ),
    attempt=Attempt(
        token="t0ken",
        supervisor="h:1",
        pid=4711,
        start_time=12.5,
        boot_id="b",
        started_monotonic=0.5,
        pipes=(3, 4),
    ),
)


def more_old_jobs() -> Iterator[Stored]:
    """Give jobs that differ from ``OLD_JOB`` in all that a record can hold."""
    some: dict[str, dict[str, Any]] = {
        "bare": {},
        "blue": {"tags": ["blue"], "reached": [Status.starting, Status.running]},
        "every colour": {"tags": ["red", "green", "blue"], "status": Status.paused},
        "every status": {"reached": [*Status, *Status], "revision": 99, "attempt": 12},
        "a line": {"command": "exit 3", "description": "a 'line'\nand more", "error": '"5%"'},
        "任务 🚀": {"name": "Ünï", "metadata": {"$.a": {"b": [1.5, True, {"c": "\\"}]}}},
        "an end": {"status": Status.lost, "exit_code": -9, "finished_at": WHEN[1]},
        "no times": {"created_at": WHEN[0], "last_update": WHEN[0], "timeout": 2.0},
    }
    for job_id, fields in some.items():
        record = make_record(job_id, **fields)
        launch = replace(OLD_JOB.launch, job_id=job_id)
        yield Stored(record=record, launch=launch, attempt=make_attempt())


OLD_HISTORY = [
    JobEvent(seq=7, kind="status", at=WHEN[0], job_id="old/job", attempt=1, status=Status.starting),
    JobEvent(
        seq=9,
        kind="status",
        at=WHEN[1],
        job_id="old/job",
        attempt=1,
        previous=Status.starting,
        status=Status.failed,
        why="exit code 3",
    ),
]


# Other processes.

LOCK_HOLDER = """
import sqlite3, sys
connection = sqlite3.connect("jobs.db", isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
connection.close()
"""
VISITOR = """
import sqlite3
connection = sqlite3.connect("jobs.db")
print([job_id for job_id, in connection.execute("SELECT job_id FROM jobs ORDER BY job_id")])
connection.close()
"""


async def test_a_commit_waits_until_another_process_lets_go_of_the_file(tmp_path):
    async with opened(tmp_path / "jobs.db") as store:
        with process(sys.executable, "-c", LOCK_HOLDER, folder=tmp_path) as holder:
            assert holder.stdout.readline() == "locked\n"
            commit = asyncio.create_task(put(store, "a"))
            await asyncio.wait([commit], timeout=2)
            assert not commit.done()
            assert await store.get("a") is None, "reading need not wait"
            holder.stdin.write("let go\n")
            assert await commit == [1]
            assert ends_well(holder)


async def test_a_commit_that_waited_in_vain_harms_no_later_one(tmp_path, monkeypatch):
    monkeypatch.setattr("anodejobs.stores.sqlite._BUSY_TIMEOUT_S", 0.1)
    env = {"COLOUR": "red"}
    first, second = (make_insert(make_record(job_id), base_env=env) for job_id in "ab")
    async with opened(tmp_path / "jobs.db") as store:
        with process(sys.executable, "-c", LOCK_HOLDER, folder=tmp_path) as holder:
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(StoreError, match="locked"):
                await store.commit([first])
            holder.stdin.write("let go\n")
            assert ends_well(holder)
        assert await store.commit([second]) == [1]
        assert await store.get("a") is None
        stored = await store.get("b")
        assert stored == Stored(record=second.record, launch=second.launch, attempt=second.attempt)


async def test_a_cancelled_commit_that_fails_harms_no_later_one(tmp_path):
    env = {"COLOUR": "red"}
    odd = make_insert(make_record("odd", revision=2**70), base_env=env)
    plain = make_insert(make_record("plain"), base_env=env)
    async with opened(tmp_path / "jobs.db") as store:
        with process(sys.executable, "-c", LOCK_HOLDER, folder=tmp_path) as holder:
            assert holder.stdout.readline() == "locked\n"
            cancelled = asyncio.create_task(store.commit([odd]))
            await asyncio.sleep(0)
            while store._batch is not None:  # noqa: ASYNC110  # until the thread has taken it
                await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            commit = asyncio.create_task(store.commit([plain]))
            await asyncio.sleep(0)
            holder.stdin.write("let go\n")
            assert await commit == [1]
            assert ends_well(holder)
        assert await store.get("odd") is None
        stored = await store.get("plain")
        assert stored == Stored(record=plain.record, launch=plain.launch, attempt=plain.attempt)


async def test_many_processes_can_make_the_database_at_once(tmp_path):
    open_at_once = """
    say("ready")
    sys.stdin.readline()
    await store.open(lambda: None)
    say(*await put(store, str(os.getpid())))
    await store.close()
    """
    command = child(open_at_once)
    with (
        process(*command, folder=tmp_path) as a,
        process(*command, folder=tmp_path) as b,
        process(*command, folder=tmp_path) as c,
        process(*command, folder=tmp_path) as d,
    ):
        for running in (a, b, c, d):
            assert running.stdout.readline() == "ready\n"
        for running in (a, b, c, d):
            running.stdin.write("go\n")
        seqs = sorted(int(running.stdout.readline()) for running in (a, b, c, d))
        assert all(ends_well(running) for running in (a, b, c, d))
    assert seqs == [1, 2, 3, 4]
    async with opened(tmp_path / "jobs.db") as store:
        assert await ids_in(store) == sorted(str(running.pid) for running in (a, b, c, d))


async def test_a_commit_in_another_process_is_told_on_the_loop(tmp_path):
    told = asyncio.Event()
    store = SqliteJobStore(tmp_path / "jobs.db")
    await store.open(told.set)
    commit_when_asked = """
    await store.open(lambda: None)
    say("ready")
    while sys.stdin.readline():
        say(*await put(store, "theirs"))
    await store.close()
    """
    with process(*child(commit_when_asked), folder=tmp_path) as running:
        assert running.stdout.readline() == "ready\n"
        assert not told.is_set()
        running.stdin.write("commit\n")
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()
        assert await ids_in(store) == ["theirs"]
        assert ends_well(running)
    await store.close()


async def test_a_second_store_in_the_process_does_not_loosen_the_hold_of_the_first(tmp_path):
    """To close a file gives up all locks that the process has on it, whoever took them."""

    def visit() -> str:
        with process(sys.executable, "-c", VISITOR, folder=tmp_path) as visitor:
            found = visitor.stdout.readline()
            assert ends_well(visitor)
            return found

    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "before")
        async with opened(tmp_path / "jobs.db"):
            pass
        assert visit() == "['before']\n"
        await put(store, "after")
        assert visit() == "['after', 'before']\n"


async def test_what_a_killed_process_was_told_is_committed_is_there(tmp_path):
    commit_for_ever = """
    await store.open(lambda: None)
    n = 0
    while True:
        ids = [f"{n}-{m}" for m in range(5)]
        await put(store, *ids)
        say(*ids)
        n += 1
    """
    with process(*child(commit_for_ever), folder=tmp_path) as running:
        told = [running.stdout.readline() for _ in range(200)]
        running.kill()
        told += running.stdout.readlines()
    async with opened(tmp_path / "jobs.db") as store:
        found = set(await ids_in(store))
        whole = {f"{n}-{m}" for n in range(len(found) // 5) for m in range(5)}
        assert set(" ".join(told).split()) <= found == whole
        assert [event.seq for event in await store.history()] == list(range(1, len(found) + 1))
        assert await store.count(JobFilter()) == {Status.running: len(found)}
        assert await put(store, "after") == [len(found) + 1]


async def test_the_bell_of_a_killed_process_is_cleared_away(tmp_path):
    wait_to_be_killed = """
    await store.open(lambda: None)
    say("ready")
    await asyncio.Event().wait()
    """
    with process(*child(wait_to_be_killed), folder=tmp_path) as running:
        running.stdout.readline()
    bells = tmp_path / "jobs.db-bells"
    assert len(list(bells.iterdir())) == 1
    async with opened(tmp_path / "jobs.db") as store:
        await put(store, "a")
        assert len(list(bells.iterdir())) == 1, "its own"


async def test_a_commit_that_cannot_be_told_to_others_is_no_failure(tmp_path):
    """As when no descriptor is left to ring with; here one that is no bell is in the way."""
    (tmp_path / "jobs.db-bells" / "no-bell").mkdir(parents=True)
    async with opened(tmp_path / "jobs.db") as store:
        assert await put(store, "a") == [1]


# Full disks.

FILL_AND_GO_ON = """
    fill_up, make_room = {fill_up}, {make_room}
    await store.open(lambda: None)
    await put(store, "before")
    fill_up()
    n, env = 0, {{"COLOUR": "red"}}
    try:
        while n < 1000:
            await store.commit([make_insert(make_record(f"big-{{n}}", description="x" * 10_000),
                                            base_env=env)])
            n += 1
    except StoreError as error:
        say("StoreError", error)
    say(n)
    for job_id in ["before", *(f"big-{{m}}" for m in range(n))]:
        assert (await store.get(job_id)).record.self_id == job_id
    assert await store.get(f"big-{{n}}") is None
    make_room()
    await store.commit([make_insert(make_record("after"), base_env=env)])
    assert (await store.get("after")).launch.base_env == env
    say(*await put(store, *(f"more-{{m}}" for m in range(50))))
    await store.close()
    """


async def test_no_more_space_for_the_file_is_a_store_error_until_there_is_again(tmp_path):
    body = FILL_AND_GO_ON.format(
        fill_up="lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, -1))",
        make_room="lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))",
    )
    with process(*child(body), folder=tmp_path) as running:
        await _assert_failed_and_went_on(running)
    async with opened(tmp_path / "jobs.db") as store:
        assert {"before", "after", "big-0", "more-49"} <= set(await ids_in(store))


@pytest.mark.skipif(not IS_LINUX or not shutil.which("unshare"), reason="needs a disk of its own")
async def test_a_full_disk_is_a_store_error_until_there_is_room_again(tmp_path):
    a_small_disk = """
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", os.getcwd()])
    say("mounted" if mounted.returncode == 0 else "not mounted")
    os.chdir(os.getcwd())
    """
    body = a_small_disk + FILL_AND_GO_ON.format(
        fill_up='lambda: open("ballast", "wb", buffering=0).write(bytes(1_000_000))',
        make_room='lambda: os.unlink("ballast")',
    )
    unshare = ("unshare", "--user", "--map-root-user", "--mount")
    with process(*unshare, *child(body), folder=tmp_path) as running:
        if running.stdout.readline() != "mounted\n":
            pytest.skip("this machine lets nobody mount a small disk")
        await _assert_failed_and_went_on(running)


async def _assert_failed_and_went_on(running: subprocess.Popen[str]) -> None:
    said = running.stdout.readline()
    assert said.startswith("StoreError cannot write to /")
    assert "/jobs.db: " in said
    assert int(running.stdout.readline()) > 0
    assert len(running.stdout.readline().split()) == 50
    assert ends_well(running)


async def test_a_batch_that_failed_in_the_call_of_somebody_cancelled_is_not_told_as_applied(
    tmp_path, monkeypatch
):
    def fail(self, connection):
        raise sqlite3.OperationalError("as it happens")

    async with opened(tmp_path / "jobs.db") as store:
        # What holds the writer's thread up until both calls are in its line.
        release = threading.Event()
        assert store._writer is not None
        await store._writer.create_function("hold", 0, lambda: release.wait(10))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(store._writer.execute("SELECT hold()"))
            cancelled = tasks.create_task(store.put_document("kind", "name", "body"))
            await _turns_of_the_loop()
            cancelled.cancel()
            await _turns_of_the_loop()
            monkeypatch.setattr(Batch, "apply", fail)
            batch = tasks.create_task(_error_of(put(store, "a")))
            await _turns_of_the_loop()
            release.set()
        assert "as it happens" in str(batch.result())
        monkeypatch.undo()
        assert await put(store, "a") == [1]


async def _turns_of_the_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def _error_of(work):
    with pytest.raises(StoreError) as caught:
        await work
    return caught.value
