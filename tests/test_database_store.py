"""Records in PostgreSQL and in MySQL or MariaDB: the contract of a store, and lost connections.

The servers are real; see ``tests.servers`` for which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from anodejobs import DatabaseJobStore
from anodejobs.stores.base import JobStore
from anodejobs.testing import DurableStoreContract
from tests.servers import MYSQL, POSTGRES, Database, Kind, own_database

TABLES = ("jobs", "specs", "environments", "tags", "dependencies", "history", "documents")


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


class _Contract(DurableStoreContract):
    @pytest.fixture(autouse=True)
    def emptied(self, database: Database) -> None:
        self.database = database
        empty(database)

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


def empty(database: Database) -> None:
    """Remove all records, which is quicker than to make the tables anew."""
    there = "to_regclass('anodejobs_version') IS NOT NULL"
    if database.kind is MYSQL:
        there = (
            "count(*) FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = 'anodejobs_version'"
        )
    ((is_there,),) = database.do(f"SELECT {there}")
    if is_there:
        deletes = [f"DELETE FROM anodejobs_{table}" for table in TABLES]
        counters = "DELETE FROM anodejobs_counters WHERE name NOT IN ('seq', 'turn')"
        reset = "UPDATE anodejobs_counters SET value = 0"
        database.do("BEGIN", *deletes, counters, reset, "COMMIT")
