"""Records in PostgreSQL and in MySQL or MariaDB: the contract of a store, and lost connections.

The servers are real; see ``tests.servers`` for which.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from anodejobs import (
    AnodeJobsError,
    DatabaseJobStore,
    JobFilter,
    JobRecord,
    Jobs,
    Status,
    StoreError,
)
from anodejobs.stores import database_schema, database_server, from_url
from anodejobs.stores.base import Delete, InsertAll, JobStore, Query
from anodejobs.stores.database_sql import Session
from anodejobs.testing import (
    NOON,
    PATIENCE_S,
    SharedStoreContract,
    make_insert,
    make_launch,
    make_record,
    make_save,
)
from tests.conftest import python
from tests.servers import (
    MYSQL,
    POSTGRES,
    TABLES,
    Database,
    PrivateServer,
    another_user,
    empty,
    own_database,
    private_server,
    refuse,
)

VERSION = len(database_schema.POSTGRES_MIGRATIONS)


@pytest.fixture(scope="module", params=[POSTGRES, MYSQL], ids=["postgresql", "mysql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    with own_database(request.param) as database:
        yield database


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    with own_database(POSTGRES) as database:
        yield database


@pytest.fixture(scope="module")
def mysql() -> Iterator[Database]:
    with own_database(MYSQL) as database:
        yield database


@pytest.fixture(params=[POSTGRES, MYSQL], ids=["postgresql", "mysql"])
def own_server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    with private_server(request.param) as server:
        yield server


class _Contract(SharedStoreContract):
    @pytest.fixture(autouse=True)
    async def emptied(self, database: Database) -> None:
        self.database = database
        await empty(database)

    async def make_store(self, folder: Path) -> JobStore:
        return DatabaseJobStore(self.database.url)


class TestPostgres(_Contract):
    @pytest.fixture
    def database(self, postgres: Database) -> Database:
        return postgres


class TestMysql(_Contract):
    @pytest.fixture
    def database(self, mysql: Database) -> Database:
        return mysql


# Opening.


async def test_stores_that_open_an_empty_database_at_once_all_do(database):
    await drop_tables(database)
    stores = [DatabaseJobStore(database.url) for _ in range(6)]
    try:
        await asyncio.gather(*(store.open(nobody_listens) for store in stores))
        results = await asyncio.gather(
            *(store.commit([make_insert(make_record(f"{n}"))]) for n, store in enumerate(stores))
        )
    finally:
        for store in stores:
            await store.close()
    assert sorted(seq for (seq,) in results) == [1, 2, 3, 4, 5, 6]


async def test_a_database_of_a_newer_version_is_refused_unharmed(database, store):
    record = make_record()
    await store.commit([make_insert(record)])
    await store.close()
    ((version,),) = await database.ado("SELECT version FROM anodejobs_version")
    await database.ado("UPDATE anodejobs_version SET version = 99")
    try:
        with pytest.raises(StoreError, match="version 99 of a newer anodejobs"):
            await opened(DatabaseJobStore(database.url))
        assert await database.ado("SELECT version FROM anodejobs_version") == [(99,)]
        assert await database.ado("SELECT job_id FROM anodejobs_jobs") == [("a-job",)]
    finally:
        await database.ado(f"UPDATE anodejobs_version SET version = {version}")


async def test_an_older_database_is_brought_to_the_newest_version_with_its_data(
    database, store, monkeypatch
):
    insert = make_insert(make_record())
    await store.commit([insert])
    await store.close()
    step = "CREATE TABLE anodejobs_more (nothing INTEGER); INSERT INTO anodejobs_more VALUES (7)"
    for name in ("POSTGRES_MIGRATIONS", "MYSQL_MIGRATIONS"):
        monkeypatch.setattr(database_schema, name, (*getattr(database_schema, name), step))
    try:
        for _ in range(2):  # the second time there is nothing to be done
            again = await opened(DatabaseJobStore(database.url))
            assert (await again.get("a-job")).record == insert.record
            await again.close()
        assert await database.ado("SELECT nothing FROM anodejobs_more") == [(7,)]
        newest = len(database_schema.POSTGRES_MIGRATIONS)
        assert await database.ado("SELECT version FROM anodejobs_version") == [(newest,)]
    finally:
        await drop_tables(database, "more")


VERSION_1 = (
    "INSERT INTO anodejobs_environments VALUES ('abc', '{\"PATH\": \"/bin\"}')",
    """
    INSERT INTO anodejobs_specs VALUES ('old', '{"cwd": "/srv", "command": ["true"]}', '{
        "job_id":"old","argv":["true"],"cwd":"/srv","envs":{},"logs":{"stdout":"/o","stderr":"/e",
        "max_bytes":null,"backups":1},"timeout":null,"stop_grace":10.0,"start_grace":0.0,
        "leftovers":"kill","limits":null}', 'abc')
    """,
    """
    INSERT INTO anodejobs_jobs VALUES ('old', 1700000000123456, 'Old', NULL, NULL, NULL, 'default',
        20, 3, 'failed', 1700000001000000, 1700000000500000, 1700000001000000, NULL, NULL, 1, 4711,
        3, 'observed', 'exit code 3', 'starting,failed', 0.5,
        '{"token":"t","supervisor":"s","pid":4711,"start_time":12.5,"boot_id":"b",
          "started_monotonic":0.5,"pipes":[3,4]}')
    """,
)
"""What a database of version 1 has of a job. Never change it: there are such databases."""
OLD_RECORD = JobRecord(
    self_id="old",
    status="failed",
    created_at=datetime(2023, 11, 14, 22, 13, 20, 123456, UTC),
    last_update=datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC),
    started_at=datetime(2023, 11, 14, 22, 13, 20, 500000, UTC),
    finished_at=datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC),
    name="Old",
    cwd="/srv",
    command=["true"],
    revision=3,
    last_pid=4711,
    exit_code=3,
    evidence="observed",
    error="exit code 3",
    reached=["starting", "failed"],
    progress=0.5,
)


async def test_a_version_1_database_opens_with_its_data_and_is_built_like_a_new_one(
    database, monkeypatch
):
    await drop_tables(database)
    for name in ("POSTGRES_MIGRATIONS", "MYSQL_MIGRATIONS"):
        monkeypatch.setattr(database_schema, name, getattr(database_schema, name)[:1])
    await (await opened(DatabaseJobStore(database.url))).close()
    await database.ado(*VERSION_1)
    monkeypatch.undo()
    store = await opened(DatabaseJobStore(database.url))
    try:
        assert (await store.get("old")).record == OLD_RECORD
        save = make_save(OLD_RECORD, cpu_seconds=0.25, peak_memory_bytes=2**40)
        await store.commit([save])
        assert (await store.get("old")).record == save.record
    finally:
        await store.close()
    migrated = await build(database)
    await drop_tables(database)
    await (await opened(DatabaseJobStore(database.url))).close()
    assert await build(database) == migrated


async def build(database: Database) -> list[tuple[Any, ...]]:
    """Return the columns of our tables."""
    schema = "current_schema()" if database.kind is POSTGRES else "DATABASE()"
    found = await database.ado(
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
        f" WHERE table_schema = {schema} AND table_name LIKE 'anodejobs%'"
    )
    return sorted(found)


async def test_a_step_that_fails_leaves_a_database_that_can_be_opened(database, monkeypatch):
    await drop_tables(database)
    for name in ("POSTGRES_MIGRATIONS", "MYSQL_MIGRATIONS"):
        *earlier, last = getattr(database_schema, name)
        monkeypatch.setattr(database_schema, name, (*earlier, f"{last}; SELECT nothing"))
    with pytest.raises(StoreError, match="cannot open"):
        await opened(DatabaseJobStore(database.url))
    monkeypatch.undo()
    store = await opened(DatabaseJobStore(database.url))
    try:
        assert await store.commit([make_insert(make_record())]) == [1]
    finally:
        await store.close()


async def test_a_server_that_is_not_there_is_a_store_error(database):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        parts = make_url(database.url).set(port=bound.getsockname()[1], password="hunter2")
        store = DatabaseJobStore(parts.render_as_string(hide_password=False))
        with pytest.raises(StoreError, match="cannot open") as caught:
            await opened(store)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


async def test_a_store_that_is_not_open_says_so(database):
    store = DatabaseJobStore(database.url)
    for call in (store.get("a"), store.commit([make_insert(make_record())])):
        with pytest.raises(StoreError, match="is not open"):
            await call


# What a row can keep.


@pytest.mark.parametrize(
    "text", ["\0", "\1", "a\0b\1\1\2\0", "\1\2", "it's ? %s $1 \\", "x" * 100_000]
)
async def test_texts_that_are_awkward_come_back_and_are_found(store, text):
    fields = {"name": text, "user_id": text, "tags": [text, "other"], "error": text}
    record = make_record(metadata={"text": text}, **fields)
    await store.commit([make_insert(record, why=text)])
    assert (await store.get("a-job")).record == record
    filters = [{"name": text}, {"user_id": [text, "other"]}, {"tags": [text]}]
    for filter in filters:
        assert await store.page(Query(filter=JobFilter(filter))) == [record]
        assert await store.count(JobFilter(filter)) == {record.status: 1}
    assert (await store.history())[0].why == text
    assert (await store.tally()).by_tag == {text: 1, "other": 1}


async def test_texts_that_differ_in_little_are_different_and_in_order(store):
    names = ["", "\0", "\0\0", "\0a", "\1", "\1\0", "\2", " ", "A", "Ä", "a", "a ", "A\u0308", "ä"]
    records = [make_record(f"{n:02}", name=name) for n, name in enumerate(names)]
    assert None not in await store.commit([make_insert(record) for record in records])
    page = await store.page(Query(filter=JobFilter(), sort_by="name"))
    assert [record.name for record in page] == sorted(names)
    for name in names:
        found = await store.page(Query(filter=JobFilter(name=name)))
        assert [record.name for record in found] == [name]


async def test_a_text_that_cannot_be_kept_hides_no_other_that_is_looked_for(store):
    record = make_record(name="x")
    await store.commit([make_insert(record)])
    assert [job.record for job in await store.get_all([record.self_id, "\ud800"])] == [record]
    for field in ("self_id", "name"):
        wanted = JobFilter({field: ["\ud800", getattr(record, field)]})
        assert await store.page(Query(filter=wanted)) == [record]
        assert sum((await store.count(wanted)).values()) == 1


@pytest.mark.parametrize("query", ["port=abc", "connect_timeout=abc", "nonsense=1", "ssl=1"])
async def test_a_url_that_the_driver_does_not_understand_is_a_store_error(database, query):
    store = DatabaseJobStore(f"{database.url}?{query}")
    with pytest.raises(StoreError, match="cannot open"):
        await store.open(nobody_listens)
    await store.close()


async def test_a_password_of_mysql_may_have_any_letters(mysql):
    name, password = f"anodejobs_{secrets.token_hex(4)}", "pä€ß:w/@%#?"
    url = make_url(mysql.url)
    users = [f"{name}@{host}" for host in ("localhost", "'127.0.0.1'")]
    made = [f"CREATE USER {user} IDENTIFIED BY '{password}'" for user in users]
    granted = [f"GRANT ALL ON `{url.database}`.* TO {user}" for user in users]
    await mysql.ado(*made, *granted)
    try:
        told = url.set(username=name, password=password).render_as_string(hide_password=False)
        await (await opened(DatabaseJobStore(told))).close()
    finally:
        await mysql.ado(*(f"DROP USER {user}" for user in users))


@contextmanager
def certificate() -> Iterator[Path]:
    """Give the certificate of a server on this machine, with its key, in a file it may read."""
    openssl = shutil.which("openssl") or refuse("openssl is not installed")
    with tempfile.TemporaryDirectory(prefix="anodejobs-") as folder:
        path = Path(folder) / "certificate"
        path.parent.chmod(0o755)
        named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        written = ["-nodes", "-keyout", f"{path}.key", "-out", str(path)]
        command = [openssl, "req", "-x509", "-newkey", "rsa:2048", *named, *written]
        subprocess.run(command, check=True, capture_output=True)
        path.write_text(path.read_text() + Path(f"{path}.key").read_text())
        yield path


@pytest.fixture
def private() -> Iterator[tuple[str, Path]]:
    """The URL of a user who must not be overheard, and the certificate of his server."""
    with certificate() as path:
        options = [f"--ssl-{file}={path}" for file in ("ca", "cert", "key")]
        with private_server(MYSQL, options=options) as server:
            make = "CREATE USER secretive@localhost IDENTIFIED BY 'it' REQUIRE SSL"
            Database(MYSQL, server.url).do(make, "GRANT ALL ON *.* TO secretive@localhost")
            yield server.url.replace("root@", "secretive:it@"), path


async def test_mysql_is_spoken_to_in_private_where_the_url_says_so(private):
    url, path = private
    with_our_own = f"ssl_ca={path}&ssl_cert={path}&ssl_key={path}.key"
    for query in (f"ssl_ca={path}", with_our_own, "ssl_check_hostname=0"):
        store = DatabaseJobStore(f"{url}?{query}")
        try:
            await store.open(nobody_listens)
        finally:
            await store.close()
    for query, problem in (("", "Access denied"), ("?ssl_ca=/etc/passwd", "certificate")):
        with pytest.raises(StoreError, match=problem):
            await opened(DatabaseJobStore(f"{url}{query}"))


@pytest.fixture
def private_postgres() -> Iterator[tuple[Database, Path]]:
    """A server that can be spoken to in private, and its certificate."""
    with certificate() as path:
        another_user(Path(f"{path}.key"))
        settings = ("ssl=on", f"ssl_cert_file={path}", f"ssl_key_file={path}.key")
        options = [word for setting in settings for word in ("-c", setting)]
        with private_server(POSTGRES, options=options) as server:
            yield Database(POSTGRES, server.url), path


async def test_postgresql_is_spoken_to_in_private_where_the_url_says_so(private_postgres):
    server, path = private_postgres
    verified = "sslmode=verify-full&sslrootcert"
    for query in ("sslmode=require", f"{verified}={path}&ssl_min_protocol_version=TLSv1.2"):
        store = await opened(DatabaseJobStore(f"{server.url}?{query}"))
        try:
            sql = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            assert await server.ado(f"{sql} WHERE application_name = 'anodejobs'") == [(True,)]
        finally:
            await store.close()
    with pytest.raises(StoreError, match=r"no certificate|CERTIFICATE_VERIFY_FAILED"):
        await opened(DatabaseJobStore(f"{server.url}?{verified}=/etc/passwd"))


@pytest.fixture
def careful_url() -> Iterator[str]:
    careful = [f"SET GLOBAL {name} = 1" for name in ("sql_safe_updates", "sql_select_limit")]
    with private_server(MYSQL) as server:
        Database(MYSQL, server.url).do(*careful, "SET GLOBAL max_join_size = 1")
        yield server.url


async def test_a_mysql_that_is_careful_with_people_gives_all_the_same(careful_url):
    store = await opened(DatabaseJobStore(careful_url))
    try:
        await store.commit([make_insert(make_record(f"{n}")) for n in range(3)])
        assert len(await store.unfinished()) == 3
    finally:
        await store.close()


async def test_a_mysql_whose_default_row_format_is_an_old_one_is_opened(careful_url):
    database = Database(MYSQL, careful_url)
    await database.ado("SET GLOBAL innodb_default_row_format = compact")
    await (await opened(DatabaseJobStore(careful_url))).close()


async def test_writes_of_one_batch_may_build_on_each_other(store):
    insert = make_insert(make_record(tags=["old"]))
    save = make_save(insert.record, error="saved")
    again = make_insert(make_record(name="again", tags=["new"]))
    writes = [insert, save, Delete(record=save.record), again, insert]
    assert await store.commit(writes) == [1, 2, 0, 3, None]
    assert (await store.get("a-job")).record == again.record
    assert [event.seq for event in await store.history()] == [3]
    assert (await store.tally()).by_tag == {"new": 1}


async def test_an_environment_is_kept_for_as_long_as_a_job_was_asked_for_with_it(database, store):
    async def kept() -> list[dict[str, str]]:
        rows = await database.ado("SELECT body FROM anodejobs_base_environments ORDER BY body")
        return [json.loads(body) for (body,) in rows]

    red, blue = {"COLOUR": "red"}, {"COLOUR": "blue"}
    a, b, refused = [make_insert(make_record(job_id), base_env=red) for job_id in "aba"]
    another_run = make_save(a.record, launch=make_launch("a", base_env=blue))
    await store.commit([a, b])
    assert await kept() == [red]
    await store.commit([another_run])
    assert await kept() == [blue, red]
    await store.commit([Delete(record=b.record), refused])
    assert await kept() == [blue]
    await store.commit([Delete(record=another_run.record), a, Delete(record=a.record), b])
    assert await kept() == [red]
    assert (await store.get("b")).launch.base_env == red


async def test_an_environment_that_another_host_has_removed_is_kept_again(database, store):
    one, other = [make_insert(make_record(i), base_env={"COLOUR": "red"}) for i in ("one", "other")]
    another = await opened(DatabaseJobStore(database.url))
    try:
        await store.commit([one])
        await another.commit([Delete(record=one.record)])
        await store.commit([other])
        assert (await another.get("other")).launch == other.launch
    finally:
        await another.close()


async def test_saves_that_have_waited_see_what_was_written_meanwhile(database, store):
    one, two = make_record("one"), make_record("two")
    await store.commit([make_insert(one), make_insert(two)])
    other = await opened(DatabaseJobStore(database.url))
    try:
        async with clock_held(database) as hold:
            first = asyncio.create_task(other.commit([make_save(one, is_respecified=True)]))
            await hold.until_somebody_waits()
            second = asyncio.create_task(store.commit([make_save(one), make_save(two)]))
            await hold.until_somebody_waits(2)
        assert (await first, await second) == ([3], [None, 4])
    finally:
        await other.close()
    assert [event.seq for event in await store.history()] == [1, 2, 3, 4]
    assert await store.count(JobFilter()) == {Status.running: 2}


# When connections are lost.


async def test_a_lost_connection_is_made_anew(database, store):
    record = make_record()
    await store.commit([make_insert(record)])
    for n in range(3):
        await kill_connections(database)
        assert (await store.get("a-job")).record == record
        await kill_connections(database)
        assert await store.commit([make_insert(make_record(f"{n}"))]) == [n + 2]


async def test_a_lost_connection_is_made_anew_once_there_can_be_a_thread(
    database, store, monkeypatch
):
    """The host's name is looked up in one; without it the whole Jobs had failed for good."""
    connect, refusals = asyncio.BaseEventLoop.create_connection, []

    async def connected_if_there_may_be_one(*args, **kwargs):
        if refusals:
            raise RuntimeError(refusals.pop())
        return await connect(*args, **kwargs)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", connected_if_there_may_be_one)
    await kill_connections(database)
    refusals += ["can't start new thread"] * 3
    assert await store.commit([make_insert(make_record())]) == [1]
    assert await store.get("a-job") is not None
    assert not refusals


async def test_a_commit_whose_connection_is_lost_on_the_way_is_applied_once(database, store):
    async with clock_held(database) as hold:
        commit = asyncio.create_task(store.commit([make_insert(make_record())]))
        await hold.until_somebody_waits()
        await kill_connections(database, keep=hold.connection_id)
    assert await commit == [1]
    assert await store.last_seq() == 1


async def test_a_commit_that_becomes_late_on_the_way_has_the_lease_last_again(database, store):
    await store.keep_lease("a-host", 0.5)
    async with clock_held(database) as hold, asyncio.timeout(PATIENCE_S):
        commit = asyncio.create_task(store.commit([make_insert(make_record())]))
        await hold.until_somebody_waits()
        while not (leases := await store.expired_leases()):
            pass  # until it is over by the server's clock
        await kill_connections(database, keep=hold.connection_id)
    assert await commit == [1]
    assert await store.end_lease(leases[0], []) is None


async def test_a_statement_that_was_cancelled_by_the_server_is_tried_again(database, store):
    async with clock_held(database) as hold:
        commit = asyncio.create_task(store.commit([make_insert(make_record())]))
        await hold.until_somebody_waits()
        await kill_connections(database, keep=hold.connection_id, query_only=True)
        await hold.until_somebody_waits()
    assert await commit == [1]


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_commit_of_unknown_outcome_is_applied_once(store, monkeypatch, is_committed):
    record = make_record("deleted", name="x")
    await store.commit([make_insert(record)])
    lose_next_commit(monkeypatch, is_committed)
    writes = [
        make_insert(make_record(tags=["red"])),
        Delete(record=record),
        make_save(make_record("unknown")),
        InsertAll((make_insert(make_record("b")), make_insert(make_record("c")))),
    ]
    assert await store.commit(writes) == [2, 0, None, 4]
    assert [event.seq for event in await store.history()] == [2, 3, 4]
    assert await store.last_seq() == 4
    assert (await store.tally()).by_tag == {"red": 1}


@pytest.mark.parametrize("is_committed", [True, False])
async def test_saves_of_unknown_outcome_are_applied_once(
    database, store, monkeypatch, is_committed
):
    record, stale = make_record(), make_record("stale")
    await store.commit([make_insert(record), make_insert(stale)])
    await store.commit([make_save(stale)])
    if database.kind is POSTGRES:
        lose_next_answer(monkeypatch, is_committed)
    else:
        lose_next_commit(monkeypatch, is_committed)
    save = make_save(record, status=Status.finished, last_update=NOON)
    assert await store.commit([make_save(stale, error="late"), save]) == [None, 4]
    assert await store.commit([make_save(save.record)]) == [5]
    assert [event.seq for event in await store.history()] == [1, 2, 3, 4, 5]
    assert await store.count(JobFilter()) == {Status.running: 1, Status.finished: 1}


async def test_saves_that_stay_lost_say_that_their_outcome_is_unknown(postgres, monkeypatch):
    monkeypatch.setattr(database_server, "PATIENCE_S", 0.0)
    store = await opened(DatabaseJobStore(postgres.url))
    try:
        record = make_record(secrets.token_hex(4))
        await store.commit([make_insert(record)])
        with pytest.raises(StoreError, match="nothing of it was written"):
            await store.commit([make_save(record, exit_code=2**63)])
        lose_next_answer(monkeypatch, is_committed=True)
        with pytest.raises(StoreError, match="may have been done or not"):
            await store.commit([make_save(record, exit_code=7)])
        assert (await store.get(record.self_id)).record.exit_code == 7
    finally:
        await store.close()


async def test_a_driver_that_has_lost_its_way_is_asked_again(postgres, monkeypatch):
    """It says so where a connection is lost in the middle of something."""
    asyncpg = pytest.importorskip("asyncpg")
    store = await opened(DatabaseJobStore(postgres.url))
    rows, confused = Session.rows, []

    def rows_of_the_confused(session: Session, sql: str, *parameters: Any) -> list[Any]:
        if confused:
            raise asyncpg.InternalClientError(confused.pop())
        return rows(session, sql, *parameters)

    monkeypatch.setattr(Session, "rows", rows_of_the_confused)
    try:
        record = make_record(secrets.token_hex(4))
        confused += ["another operation is in progress"] * 2
        assert await store.get(record.self_id) is None
        confused += ["another operation is in progress"] * 2
        assert await store.commit([make_insert(record)]) != [None]
        assert await store.get(record.self_id) is not None
    finally:
        await store.close()


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_delete_of_unknown_outcome_is_done(store, monkeypatch, is_committed):
    record = make_record()
    await store.commit([make_insert(record)])
    lose_next_commit(monkeypatch, is_committed)
    assert await store.commit([Delete(record=record), Delete(record=make_record("x"))]) == [0, 0]
    assert await store.get("a-job") is None
    assert await store.count(JobFilter()) == {}


async def test_a_commit_that_stays_lost_says_that_its_outcome_is_unknown(store, monkeypatch):
    monkeypatch.setattr(database_server, "PATIENCE_S", 0.0)
    lose_next_commit(monkeypatch, is_committed=True)
    with pytest.raises(StoreError, match="may have been done or not"):
        await store.commit([make_insert(make_record())])
    assert await store.get("a-job") is not None


async def test_a_write_that_waits_for_too_long_is_given_up(database, store, monkeypatch):
    monkeypatch.setattr(database_server, "PATIENCE_S", 0.0)
    monkeypatch.setattr(database_server, "ATTEMPT_S", 0.2)
    async with clock_held(database):
        with pytest.raises(StoreError, match=r"did not answer in time; nothing of it was written"):
            await store.commit([make_insert(make_record())])
    assert await store.commit([make_insert(make_record())]) == [1]


async def test_a_store_is_told_of_the_commits_of_others_after_its_connections_were_lost(
    database, store
):
    told = asyncio.Event()
    listening = DatabaseJobStore(database.url)
    await listening.open(told.set)
    try:
        await kill_connections(database)
        async with asyncio.timeout(PATIENCE_S):
            await store.commit([make_insert(make_record("first"))])
            await told.wait()
            while await listening.get("first") is None:
                await told.wait()
            for n in range(3):
                told.clear()
                await store.commit([make_insert(make_record(f"{n}"))])
                await told.wait()
    finally:
        await listening.close()


async def test_a_store_is_told_of_others_whose_search_path_is_another(postgres):
    await empty(postgres)
    told = asyncio.Event()
    store, other = DatabaseJobStore(postgres.url), DatabaseJobStore(postgres.url)
    await store.open(told.set)
    here = f'ALTER DATABASE "{make_url(postgres.url).database}"'
    try:
        await postgres.ado("CREATE SCHEMA elsewhere", f"{here} SET search_path = elsewhere, public")
        await other.open(nobody_listens)
        await other.commit([make_insert(make_record())])
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()
    finally:
        await other.close()
        await store.close()
        await postgres.ado(f"{here} RESET search_path", "DROP SCHEMA IF EXISTS elsewhere")


async def test_a_restart_of_the_server_is_waited_for(own_server):
    told = asyncio.Event()
    store, listening = DatabaseJobStore(own_server.url), DatabaseJobStore(own_server.url)
    try:
        await store.open(nobody_listens)
        await listening.open(told.set)
        assert await store.commit([make_insert(make_record("a"))]) == [1]
        await asyncio.to_thread(own_server.stop)
        told.clear()
        commit = asyncio.create_task(store.commit([make_insert(make_record("b"))]))
        read = asyncio.create_task(listening.get("a"))
        await asyncio.to_thread(own_server.start)
        assert await commit == [2]
        assert await read is not None
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()
    finally:
        await listening.close()
        await store.close()


async def test_a_connection_to_a_server_that_only_reads_is_not_kept(postgres, monkeypatch):
    """It was the primary, and its name may lead to another one in a moment."""
    store = await opened(DatabaseJobStore(postgres.url))
    here = f'ALTER DATABASE "{make_url(postgres.url).database}"'
    reset = f"{here} RESET default_transaction_read_only"
    insert = make_insert(make_record(secrets.token_hex(4)))
    try:
        await postgres.ado(f"{here} SET default_transaction_read_only = on")
        await kill_connections(postgres)
        with monkeypatch.context() as patched:
            patched.setattr(database_server, "PATIENCE_S", 0.0)
            for call in (store.get("a-job"), store.commit([insert])):
                with pytest.raises(StoreError):
                    await call
        await postgres.ado("SET default_transaction_read_only = off", reset)
        assert await store.commit([insert]) != [None]
    finally:
        await store.close()


@pytest.fixture
def lent() -> Iterator[tuple[Database, str]]:
    """A server of our own, and the URL of a user who has no other right than to use it."""
    with private_server(MYSQL) as server:
        database = Database(MYSQL, server.url)
        make = "CREATE USER me@localhost IDENTIFIED BY 'it'"
        database.do("CREATE DATABASE jobs", make, "GRANT ALL ON jobs.* TO me@localhost")
        url = make_url(server.url).set(username="me", password="it", database="jobs")
        yield database, url.render_as_string(hide_password=False)


async def test_a_mysql_that_only_reads_for_a_moment_is_waited_for(lent, caplog):
    server, url = lent
    store = await opened(DatabaseJobStore(url))
    try:
        await server.ado("SET GLOBAL read_only = 1")
        commit = asyncio.create_task(store.commit([make_insert(make_record())]))
        async with asyncio.timeout(PATIENCE_S):
            while "tried again" not in caplog.text and not commit.done():
                await store.get("a-job")
        await server.ado("SET GLOBAL read_only = 0")
        assert await commit == [1]
    finally:
        await store.close()


async def test_a_process_that_is_stopped_in_a_transaction_does_not_keep_others_from_writing(
    database, store, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(database_server, "ATTEMPT_S", 2.0)
        stopped = database_server.Server(make_url(database.url), 1)
        await stopped.open(database_schema.prepare, database_schema.is_outdated)
    try:
        connection = await stopped._engine(stopped._writers).connect()
        await connection.exec_driver_sql("SELECT * FROM anodejobs_counters FOR UPDATE")
        assert await store.commit([make_insert(make_record())]) == [1]
        await connection.invalidate()
        await connection.close()
    finally:
        await stopped.close()


async def test_what_is_larger_than_the_server_takes_fails_alone_and_at_once(mysql, tmp_path):
    await empty(mysql)
    async with Jobs(tmp_path, store=mysql.url) as jobs:
        asked = [jobs.create("true", f"{n}") for n in range(9)]
        asked.insert(4, jobs.create("true", "large", payload="x" * 20_000_000))
        *results, last = await asyncio.gather(*asked, return_exceptions=True)
        large = results.pop(4)
        assert isinstance(large, StoreError)
        assert "max_allowed_packet" in str(large)
        assert [record.self_id for record in (*results, last)] == [f"{n}" for n in range(9)]
        assert await jobs.count() == 9


async def test_a_job_whose_result_is_larger_than_the_server_takes_ends_without_it(mysql, tmp_path):
    await empty(mysql)
    result = (
        """import os; open(os.environ["ANODEJOBS_RESULT"], "w").write('"' + "é" * 6000000 + '"')"""
    )
    async with Jobs(tmp_path, store=mysql.url) as jobs:
        await jobs.run(python(result), "large")
        record = await jobs.wait("large", timeout=PATIENCE_S)
        assert (record.status, record.result) == (Status.finished, None)
        assert record.error is not None
        assert "the result cannot be kept" in record.error


async def test_more_reads_at_once_than_there_are_connections_are_all_answered(store):
    record = make_record()
    await store.commit([make_insert(record)])
    found = await asyncio.gather(*(store.get("a-job") for _ in range(60)))
    assert [stored.record for stored in found] == [record] * 60


async def test_cancelled_reads_and_writes_leave_a_store_that_works(store):
    for n in range(20):
        calls = [
            asyncio.create_task(store.commit([make_insert(make_record(f"{n}"))])),
            asyncio.create_task(store.page(Query(filter=JobFilter()))),
            asyncio.create_task(store.tally()),
        ]
        for _ in range(n):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        done, _ = await asyncio.wait(calls)
        assert all(call.cancelled() or call.exception() is None for call in done)
    assert await store.commit([make_insert(make_record("after"))]) != [None]


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
async def test_a_connection_that_is_given_up_while_it_is_made_is_closed(scheme):
    accepted, closed = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        while await reader.read(4096):
            pass
        closed.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1")
    async with server, asyncio.timeout(PATIENCE_S):
        port = server.sockets[0].getsockname()[1]
        store = DatabaseJobStore(f"{scheme}://me@127.0.0.1:{port}/jobs")
        opening = asyncio.create_task(store.open(nobody_listens))
        await accepted.wait()
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        await closed.wait()
        await store.close()


async def test_connections_that_the_server_has_closed_in_time_are_let_go_of_in_silence(
    mysql, monkeypatch, caplog
):
    await empty(mysql)
    gc.collect()  # what is complained of in the end is to be of this test
    caplog.clear()
    monkeypatch.setattr(database_server, "ATTEMPT_S", 2.0)  # half of it, and it is closed
    store = DatabaseJobStore(mysql.url)
    await store.open(nobody_listens)
    everything = Query(filter=JobFilter())
    await asyncio.gather(*(store.page(everything) for _ in range(4)))
    listed = "SELECT id FROM information_schema.processlist WHERE db = DATABASE()"
    first = set(await mysql.ado(listed))
    async with asyncio.timeout(PATIENCE_S):
        while first & set(await mysql.ado(listed)):  # which takes its time
            pass
    await asyncio.gather(*(store.page(everything) for _ in range(4)))
    await store.close()
    gc.collect()  # which would complain of what was not closed
    assert not [told for told in caplog.records if told.levelno >= logging.ERROR]


@asynccontextmanager
async def line_to(database: Database) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Give the URL of a line to the database, and what is set for as long as it carries."""
    url = make_url(database.url)
    port = url.port or (5432 if database.kind is POSTGRES else 3306)
    carries, lines = asyncio.Event(), asyncio.TaskGroup()
    carries.set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await carries.wait()
                writer.write(data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(url.host, port)
        lines.create_task(carry(reader, there[1]))
        lines.create_task(carry(there[0], writer))

    async with lines, await asyncio.start_server(connect, "127.0.0.1") as server:
        near = url.set(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        try:
            yield near.render_as_string(hide_password=False), carries
        finally:
            carries.set()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at sockets as Linux has them")
async def test_every_connection_notices_that_the_network_is_silent(database):
    async with line_to(database) as (url, _):
        store = await opened(DatabaseJobStore(url))
        try:
            await store.commit([make_insert(make_record(secrets.token_hex(8)))])
            await asyncio.gather(*(store.last_seq() for _ in range(4)))
            noticing = [
                (
                    connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                    connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                )
                for connected in sockets_to(make_url(url).port)
            ]
        finally:
            await store.close()
    assert len(noticing) > 3, "one writes, and several read"
    assert set(noticing) == {(1, 3, 5000)}


def sockets_to(port: int | None) -> Iterator[socket.socket]:
    """Give this process's sockets that are connected to the port."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # it is no socket, or not connected
            found = socket.socket(fileno=fd)
            try:
                if found.getpeername()[1:2] == (port,):
                    yield found
            finally:
                found.detach()


@pytest.mark.parametrize("has_jobs", [False, True])
async def test_closing_does_not_wait_for_a_database_that_says_nothing(
    database, tmp_path, monkeypatch, has_jobs
):
    await empty(database)
    monkeypatch.setattr("anodejobs.root._RESIGNING_S", 0.2)
    monkeypatch.setattr("anodejobs.stores.database_asyncpg.GOODBYE_S", 0.2)
    async with line_to(database) as (url, carries), asyncio.timeout(PATIENCE_S):
        jobs = Jobs(tmp_path / "db", store=url, stop_grace=0.1)
        record = await jobs.submit("true")
        await jobs.wait(record.self_id)
        if has_jobs:
            await jobs.run(["sleep", "600"], "left")
        carries.clear()
        await jobs.close()
    if has_jobs:
        async with Jobs(tmp_path / "db", store=database.url, stop_grace=0.1) as jobs:
            assert (await jobs.stop("left")).status is Status.stopped


# Whole programs.


async def test_jobs_are_queued_and_followed(database, tmp_path):
    await empty(database)
    async with Jobs(
        tmp_path / "db", store=database.url, executor="inline", max_concurrent_jobs=2
    ) as jobs:
        ids = [f"job-{n}" for n in range(6)]
        for job_id in ids:
            await jobs.submit(command=python(f"print('{job_id}')"), job_id=job_id, tags=["mine"])
        async with asyncio.timeout(PATIENCE_S):
            records = await jobs.wait_all(ids)
        assert {record.status for record in records.values()} == {Status.finished}
        chunks = [chunk.text async for chunk in jobs.follow("job-3")]
        assert "".join(chunks) == "job-3\n"
        assert (await jobs.metrics()).by_tag == {"mine": 6}


async def test_an_application_under_which_the_database_was_migrated_says_so_and_ends(
    database, tmp_path
):
    await empty(database)
    async with Jobs(tmp_path / "db", store=database.url) as jobs:
        await jobs.run("exec sleep 600", "a")
        waiting = asyncio.create_task(jobs.wait("a"))
        await asyncio.sleep(0)
        await database.ado(
            "ALTER TABLE anodejobs_history RENAME TO anodejobs_later",
            f"UPDATE anodejobs_version SET version = {VERSION + 1}",
        )
        try:
            for call in (jobs.submit("true", "b"), waiting, jobs.get_status("a")):
                with pytest.raises(AnodeJobsError, match="migrated by a newer anodejobs: end this"):
                    await asyncio.wait_for(call, PATIENCE_S)
        finally:
            await database.ado(
                "ALTER TABLE anodejobs_later RENAME TO anodejobs_history",
                f"UPDATE anodejobs_version SET version = {VERSION}",
            )
    async with Jobs(tmp_path / "db", store=database.url) as jobs:
        assert (await jobs.stop("a")).status is Status.stopped


async def test_a_job_runs_on_while_its_program_is_started_anew(database, tmp_path):
    await empty(database)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with Jobs(tmp_path / "db", store=database.url) as jobs:
        started = await jobs.run(command=["cat", str(fifo)], job_id="a")
    async with Jobs(tmp_path / "db", store=database.url, on_close="stop") as jobs:
        assert await jobs.get_status("a") == started
        await asyncio.to_thread(fifo.write_text, "hello")
        record = await jobs.wait("a", timeout=PATIENCE_S)
        assert (record.status, record.exit_code) == (Status.finished, 0)
        assert (await jobs.job_logs("a"))[0] == "hello"


async def test_jobs_in_two_programs_wait_for_each_other(database, tmp_path):
    await empty(database)
    async with (
        Jobs(tmp_path / "db", store=database.url, executor="inline", on_close="stop") as one,
        Jobs(tmp_path / "db", store=database.url, executor="inline") as other,
    ):
        await one.create(command=python(""), job_id="a")
        waiting = asyncio.create_task(other.wait("a"))
        await one.start("a")
        async with asyncio.timeout(PATIENCE_S):
            assert (await waiting).status is Status.finished


# How it is named.


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://me:hunter2@db.example:5433/jobs", "postgresql://db.example:5433/jobs"),
        ("postgres://me:hunter2@db.example/jobs?sslmode=require", "postgres://db.example/jobs"),
        ("postgresql+asyncpg://me@/jobs", "postgresql://localhost/jobs"),
        ("postgresql://me:hunter2%40@[::1]:5433/jobs", "postgresql://[::1]:5433/jobs"),
        ("mysql://me:hunter2@db.example/jobs", "mysql://db.example/jobs"),
        ("mariadb://me:hunter2@db.example/jobs", "mariadb://db.example/jobs"),
    ],
)
def test_a_url_names_a_database_and_its_password_is_not_shown(url, place):
    store = from_url(url)
    assert repr(store) == f"DatabaseJobStore('{place}')"
    assert "hunter2" not in f"{store!r} {vars(store)!r}"


def test_a_database_can_be_named_by_its_parts():
    store = DatabaseJobStore(
        dialect="postgresql",
        host="db.example",
        port=5433,
        username="me",
        password="p@ss/word",
        database="jobs",
    )
    assert repr(store) == "DatabaseJobStore('postgresql://db.example:5433/jobs')"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"host": "db.example"},
        {"url": "postgresql://host/db", "password": "hunter2"},
        {"url": "postgresql://me:hunter2@host:port/db"},
        {"url": "postgresql://me:p@hunter2@host/db"},
        {"url": "postgresql://me:p@ss/hunter2@host/db"},
        {"url": "postgresql+psycopg2://me:hunter2@host/db"},
        {"url": "oracle://me:hunter2@host/db"},
        {"url": "hunter2"},
        {"dialect": "sqlite", "password": "hunter2"},
        {"dialect": "postgresql", "port": "hunter2"},
        {"dialect": "postgresql", "password": "hunter2", "host": 5},
        {"url": "mysql://me:hunter2@host"},
        {"url": "mysql://me:hunter2@host/"},
    ],
    ids=str,
)
def test_what_names_no_database_is_a_store_error_that_does_not_repeat_it(wrong):
    with pytest.raises(StoreError) as caught:
        DatabaseJobStore(**wrong)
    assert "hunter2" not in "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "missing", "extra"),
    [
        ("postgresql://host/db", "sqlalchemy", "postgresql"),
        ("postgresql://host/db", "asyncpg", "postgresql"),
        ("mysql://host/db", "sqlalchemy", "mysql"),
        ("mariadb://host/db", "aiomysql", "mysql"),
    ],
)
def test_a_missing_extra_is_a_store_error_that_says_what_to_install(url, missing, extra):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from anodejobs import DatabaseJobStore, StoreError\n"
        f"try: DatabaseJobStore({url!r})\n"
        "except StoreError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'anodejobs[{extra}]'" in said.stdout


@pytest.mark.parametrize("variable", ["CI", "ANODEJOBS_TEST_NO_SKIP", None])
def test_where_there_is_no_server_tests_are_skipped_but_not_where_all_must_run(
    monkeypatch, variable
):
    for name in ("CI", "ANODEJOBS_TEST_NO_SKIP"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, "true")
    with pytest.raises(BaseException, match="no server") as caught:
        refuse("no server")
    assert caught.type is (pytest.skip.Exception if variable is None else pytest.fail.Exception)


# Helpers.


def nobody_listens() -> None:
    """Ignore what others commit."""


async def opened(store: JobStore) -> JobStore:
    try:
        await store.open(nobody_listens)
    except BaseException:
        await store.close()
        raise
    return store


@pytest.fixture
async def store(database: Database) -> AsyncIterator[JobStore]:
    await empty(database)
    store = await opened(DatabaseJobStore(database.url))
    yield store
    await store.close()


async def drop_tables(database: Database, *more: str) -> None:
    names = (*TABLES, "counters", "version", *more)
    await database.ado(*(f"DROP TABLE IF EXISTS anodejobs_{name}" for name in names))


async def kill_connections(database: Database, *, keep: int = 0, query_only: bool = False) -> None:
    """End the connections of others, or only what they are doing."""
    if database.kind is POSTGRES:
        function = "pg_cancel_backend" if query_only else "pg_terminate_backend"
        await database.ado(
            f"SELECT {function}(pid) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), {keep})"
        )
        return
    found = await database.ado(
        "SELECT id FROM information_schema.processlist"
        f" WHERE db = DATABASE() AND id NOT IN (CONNECTION_ID(), {keep})"
    )
    for (connection_id,) in found:
        with suppress(Exception):  # it has gone by itself
            await database.ado(f"KILL {'QUERY ' if query_only else ''}{connection_id}")


class Hold:
    """A transaction that keeps all others from writing."""

    def __init__(self, database: Database, connection_id: int) -> None:
        self._database = database
        self.connection_id = connection_id

    async def until_somebody_waits(self, many: int = 1) -> None:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            if self._database.kind is POSTGRES
            else "SELECT count(*) FROM information_schema.processlist"
            " WHERE db = DATABASE() AND info LIKE '%FOR UPDATE%' AND id <> CONNECTION_ID()"
        )
        async with asyncio.timeout(PATIENCE_S):
            while (await self._database.ado(waiting))[0][0] < many:
                pass


@asynccontextmanager
async def clock_held(database: Database) -> AsyncIterator[Hold]:
    engine = create_async_engine(
        make_url(database.url).set(drivername=SCHEMES[database.kind.driver])
    )
    own_id = "pg_backend_pid()" if database.kind is POSTGRES else "CONNECTION_ID()"
    try:
        async with engine.begin() as connection:
            ((connection_id,),) = await connection.exec_driver_sql(f"SELECT {own_id}")
            await connection.exec_driver_sql("SELECT * FROM anodejobs_counters FOR UPDATE")
            yield Hold(database, connection_id)
    finally:
        await engine.dispose()


SCHEMES = {"asyncpg": "postgresql+asyncpg", "aiomysql": "mysql+aiomysql"}


def lose_next_commit(monkeypatch: pytest.MonkeyPatch, is_committed: bool) -> None:
    """Have the connection lost while it commits: before or after the server has done so."""
    commit = AsyncConnection.commit
    lost = iter([True])

    async def commit_and_be_lost(connection: AsyncConnection) -> None:
        if not next(lost, False):
            await commit(connection)
            return
        if is_committed:
            await commit(connection)
        await connection.invalidate()
        raise ConnectionResetError("lost on purpose")

    monkeypatch.setattr(AsyncConnection, "commit", commit_and_be_lost)


def lose_next_answer(monkeypatch: pytest.MonkeyPatch, is_committed: bool) -> None:
    """Have the connection lost with a statement that is a transaction of its own."""
    rows = Session.rows
    lost = iter([True])

    def rows_and_be_lost(session: Session, sql: str, *parameters: Any) -> list[Any]:
        if "WITH clock" not in sql or not next(lost, False):
            return rows(session, sql, *parameters)
        if is_committed:
            rows(session, sql, *parameters)
        raise ConnectionResetError("lost on purpose")

    monkeypatch.setattr(Session, "rows", rows_and_be_lost)
