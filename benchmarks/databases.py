"""Databases of our own on the servers that the environment names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.rounds import SideUnavailableError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from anodejobs.stores.base import JobStore

POSTGRES = "ANODEJOBS_BENCH_POSTGRES"
MYSQL = "ANODEJOBS_BENCH_MYSQL"


@asynccontextmanager
async def own_database(variable: str) -> AsyncIterator[str]:
    """Give the URL of a new database on the server that the variable names; drop it afterwards."""
    from sqlalchemy.engine import make_url

    if variable not in os.environ:
        raise SideUnavailableError(f"{variable} names no server")
    url = make_url(os.environ[variable])
    name = f"anodejobs_bench_{os.getpid()}"
    await _execute(url, f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        await _execute(url, f"DROP DATABASE {name}")


@asynccontextmanager
async def own_store(variable: str) -> AsyncIterator[JobStore]:
    """Give a store, not open yet, whose records are in such a database."""
    async with own_database(variable) as url:
        from anodejobs.stores.database import DatabaseJobStore

        yield DatabaseJobStore(url)


async def _execute(url: URL, sql: str) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    driver = "postgresql+asyncpg" if url.drivername.startswith("postgres") else "mysql+aiomysql"
    engine = create_async_engine(url.set(drivername=driver), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql(sql)
    finally:
        await engine.dispose()
