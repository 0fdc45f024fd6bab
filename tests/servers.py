"""Database servers to test against: those that the environment names, those that run here, or
private ones that are started from what is installed and end with the tests.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL, make_url


@dataclass(frozen=True)
class Kind:
    """A kind of server."""

    name: str
    variable: str
    """The environment's name for the URL of one."""
    usual: tuple[str, ...]
    driver: str
    quoted: str
    start: Callable[[Path, int, str, Sequence[str]], subprocess.Popen[bytes] | None]


@dataclass(frozen=True)
class Database:
    """A database of our own on a server, for the tests of a module."""

    kind: Kind
    url: str

    def do(self, *statements: str) -> list[Any]:
        """Execute the statements over another connection; return the rows of the last one."""
        return asyncio.run(_do(self.kind, make_url(self.url), statements))

    async def ado(self, *statements: str) -> list[Any]:
        """Do the same within an event loop."""
        return await _do(self.kind, make_url(self.url), statements)


async def _do(kind: Kind, url: URL, statements: tuple[str, ...]) -> list[Any]:
    if kind.driver == "asyncpg":
        return await _do_postgres(url, statements)
    return await _do_mysql(url, statements)


async def _do_postgres(url: URL, statements: tuple[str, ...]) -> list[Any]:
    connection = await import_module("asyncpg").connect(
        host=url.host,
        port=url.port or 5432,
        user=url.username,
        password=url.password,
        database=url.database,
        timeout=30,
    )
    try:
        *others, last = statements
        if others:
            await connection.execute(";".join(others))
        return [tuple(row) for row in await connection.fetch(last)]
    finally:
        await connection.close()


async def _do_mysql(url: URL, statements: tuple[str, ...]) -> list[Any]:
    connection = await import_module("aiomysql").connect(
        host=url.host or "127.0.0.1",
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        db=url.database,
        charset="utf8mb4",
        autocommit=True,
        init_command="SET sql_notes = 0",
        connect_timeout=30,
    )
    try:
        rows: list[Any] = []
        async with connection.cursor() as cursor:
            for statement in statements:
                await cursor.execute(statement)
                rows = list(await cursor.fetchall())
        return rows
    finally:
        await connection.ensure_closed()


TABLES = (
    *("jobs", "specs", "base_environments", "tags", "dependencies", "history", "documents"),
    "hosts",
)


async def empty(database: Database) -> None:
    """Remove all records, which is quicker than to make the tables anew."""
    deletes = [f"DELETE FROM anodejobs_{table}" for table in TABLES]
    counters = "DELETE FROM anodejobs_counters WHERE name NOT IN ('seq', 'turn')"
    reset = "UPDATE anodejobs_counters SET value = 0"
    try:
        await database.ado("BEGIN", *deletes, counters, reset, "COMMIT")
    except Exception as error:  # of either driver
        if "anodejobs_jobs" not in str(error):
            raise
        # Nobody has opened it yet: there are no tables.


@contextmanager
def own_database(kind: Kind) -> Iterator[Database]:
    """Give an empty database; skip where there is no server of the kind, or fail where CI runs."""
    with _server(kind) as base:
        name = f"anodejobs_test_{os.getpid()}_{secrets.token_hex(3)}"
        server = Database(kind, base)
        server.do(f"CREATE DATABASE {kind.quoted.format(name)}")
        url = make_url(base).set(database=name).render_as_string(hide_password=False)
        try:
            yield Database(kind, url)
        finally:
            force = " WITH (FORCE)" if kind.driver == "asyncpg" else ""
            server.do(f"DROP DATABASE {kind.quoted.format(name)}{force}")


@contextmanager
def _server(kind: Kind) -> Iterator[str]:
    named = os.environ.get(kind.variable)
    if named:
        yield named
        return
    for url in kind.usual:
        if _answers(kind, url):
            yield url
            return
    with private_server(kind) as server:
        yield server.url


class PrivateServer:
    """A server that only these tests know."""

    def __init__(self, kind: Kind, folder: Path, address: str, options: Sequence[str]) -> None:
        self.kind = kind
        self._options = options
        self._folder = folder
        self._address = address
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        scheme = kind.usual[0].partition("@")[0]
        database = "postgres" if kind is POSTGRES else "mysql"
        self.url = f"{scheme}@{address}:{self._port}/{database}"

    def start(self) -> None:
        """Start it, with the data that it had; return once it answers."""
        self._process = self.kind.start(self._folder, self._port, self._address, self._options)
        if self._process is None:
            kind = self.kind
            refuse(f"no {kind.name} runs here, {kind.variable} names none, none is installed")
            return
        deadline = time.monotonic() + 60
        while not _answers(self.kind, self.url.replace("@*", "@127.0.0.1")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"a private {self.kind.name} did not start")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, whoever is connected. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        # PostgreSQL would wait for those who are connected.
        process.send_signal(signal.SIGINT if self.kind is POSTGRES else signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def private_server(
    kind: Kind, address: str = "127.0.0.1", options: Sequence[str] = ()
) -> Iterator[PrivateServer]:
    """Start a server, with further options of its command, and end it."""
    with tempfile.TemporaryDirectory(prefix="anodejobs-", ignore_cleanup_errors=True) as folder:
        server = PrivateServer(kind, Path(folder), address, options)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def refuse(why: str) -> Any:
    """Skip the test, where that is allowed."""
    if os.environ.get("CI") == "true" or os.environ.get("ANODEJOBS_TEST_NO_SKIP"):
        pytest.fail(why)
    pytest.skip(why)


def _answers(kind: Kind, url: str) -> bool:
    try:
        Database(kind, url).do("SELECT 1")
    except Exception:  # whatever it is: no server to test with
        return False
    return True


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _find(program: str) -> str | None:
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if found is not None:
        return found
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(installed[-1]) if installed else None


def another_user(folder: Path) -> dict[str, Any]:
    """Give the file to whom what refuses to run as root is run as; return how to start it."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(LookupError):
            shutil.chown(folder, name)
            return {"user": name, "extra_groups": []}
    return {}


def _start_postgres(
    folder: Path, port: int, address: str, options: Sequence[str]
) -> subprocess.Popen[bytes] | None:
    initdb, postgres = _find("initdb"), _find("postgres")
    if initdb is None or postgres is None:
        return None
    user = another_user(folder)
    data = folder / "data"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    making = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
    if not data.exists():
        subprocess.run([initdb, "-D", str(data), *making], check=True, cwd="/", **quiet, **user)
        with (data / "pg_hba.conf").open("a") as allowed:
            allowed.write("host all all samenet trust\n")
    settings = [f"port={port}", f"listen_addresses={address}", f"unix_socket_directories={folder}"]
    arguments = [word for setting in [*settings, "fsync=off"] for word in ("-c", setting)]
    command = [postgres, "-D", str(data), *arguments, *options]
    return subprocess.Popen(command, cwd="/", **quiet, **user)


def _start_mysql(
    folder: Path, port: int, address: str, options: Sequence[str]
) -> subprocess.Popen[bytes] | None:
    data = folder / "data"
    where = ["--no-defaults", f"--datadir={data}"]
    if (server := _find("mariadbd")) and (install := _find("mariadb-install-db")):
        making = [install, *where, "--auth-root-authentication-method=normal"]
    elif server := _find("mysqld"):
        making = [server, *where, "--initialize-insecure"]
        options = ["--secure-file-priv=NULL", "--mysqlx=OFF", *options]
    else:
        return None
    user = another_user(folder)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if not data.exists():
        subprocess.run(making, check=True, cwd=folder, **quiet, **user)
    listening = [f"--port={port}", f"--bind-address={address}", f"--socket={folder}/socket"]
    return subprocess.Popen([server, *where, *listening, *options], cwd=folder, **quiet, **user)


POSTGRES = Kind(
    name="PostgreSQL",
    variable="ANODEJOBS_TEST_POSTGRES",
    usual=("postgresql://postgres@127.0.0.1/postgres", "postgresql://postgres@127.0.0.1/test"),
    driver="asyncpg",
    quoted='"{}"',
    start=_start_postgres,
)
MYSQL = Kind(
    name="MariaDB or MySQL",
    variable="ANODEJOBS_TEST_MYSQL",
    usual=("mysql://root@127.0.0.1/test", "mysql://root@127.0.0.1/mysql"),
    driver="aiomysql",
    quoted="`{}`",
    start=_start_mysql,
)
