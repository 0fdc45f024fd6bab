"""The connections to one database, through SQLAlchemy, and what is done when they are lost.

What passes, such as a restart of the server, is waited for within a bound; then it is a
``StoreError``. Nothing that was written or that a password is part of comes into its message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from anodejobs.errors import StoreError
from anodejobs.stores.base import Outdated
from anodejobs.stores.database_sql import Dialect, Mysql, Postgres, Session, Statement
from anodejobs.stores.database_writes import Batch, Work
from anodejobs.stores.rows import Row

T = TypeVar("T")
Faults = tuple[type[BaseException], ...]

LOG = logging.getLogger("anodejobs")

PATIENCE_S: Final = 10.0
"""How long what passes is waited for."""
ATTEMPT_S: Final = 60.0
"""How long one attempt may take: a server that does not answer is as good as lost."""
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_CONNECT_S: Final = 10.0

_LIBPQ_TLS: Final = frozenset(
    {"sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl"}
    | {"ssl_min_protocol_version", "ssl_max_protocol_version"}
)

_DIALECTS: Final[Mapping[str, type[Dialect]]] = {
    "postgresql": Postgres,
    "postgres": Postgres,
    "mysql": Mysql,
    "mariadb": Mysql,
}


def read_url(url: str) -> URL:
    """Return a URL with its parts. Raises StoreError, which does not repeat it."""
    try:
        read = make_url(url)
    except (ArgumentError, ValueError):
        # Not as its cause either: that has the URL in it, with its password.
        raise StoreError(
            "the URL of the database cannot be read; "
            "it should look like postgresql://user:password@host:5432/database"
        ) from None
    if "@" in f"{read.host} {read.database}":
        # That was of the password, whose end would be in all that is said of the place.
        raise StoreError("the URL of the database has more than one @: that of a password is %40")
    return read


def make_address(
    *,
    dialect: str,
    host: str | None,
    port: int | None,
    username: str | None,
    password: str | None,
    database: str | None,
) -> URL:
    """Return the parts as a URL. Raises StoreError, which does not repeat them."""
    try:
        return URL.create(
            dialect, username=username, password=password, host=host, port=port, database=database
        )
    except (ValueError, TypeError):
        raise StoreError(
            "a database is named by texts: its dialect, host, username, password and database; "
            "the port is a number"
        ) from None


class Server:
    """A database: reads are one statement each, and writes one transaction at a time."""

    def __init__(self, url: URL, readers: int) -> None:
        if readers < 1:
            raise StoreError("pool_size must be 1 or more")
        self._readers_count = readers
        self.dialect = _dialect_of(url)
        self._url = _drivers_own(url, self.dialect)
        host, port = url.host or "localhost", f":{url.port}" if url.port else ""
        if ":" in host:
            host = f"[{host}]"
        self.place = f"{url.drivername.partition('+')[0]}://{host}{port}/{url.database or ''}"
        """What may be said of it."""
        driver_faults, driver_losses = _driver_faults(self.dialect)
        self._url.get_dialect().import_dbapi()  # which takes its time, now and not in `open`
        # RuntimeError: there can be no thread now to look the host's name up in.
        self._losses: Faults = (OSError, EOFError, RuntimeError, *driver_losses)
        """By these it is told that a connection was lost, or cannot be made now."""
        self._faults: Faults = (
            *(SQLAlchemyError, TimeoutError, ValueError, TypeError, KeyError, OverflowError),
            *driver_faults,
            *self._losses,
        )
        self._readers: AsyncEngine | None = None
        self._writers: AsyncEngine | None = None
        self._is_outdated: Callable[[Session], bool] = lambda session: False

    def __repr__(self) -> str:
        return f"Server({self.place!r})"

    async def open(
        self, prepare: Callable[[Session, str], None], is_outdated: Callable[[Session], bool]
    ) -> None:
        """Connect, and have the database prepared in a transaction. Nothing is waited for.

        ``is_outdated`` tells later whether what was prepared is that of a newer version by now.
        """

        async def attempt() -> None:
            self._readers = self._make_engine("AUTOCOMMIT", self._readers_count)
            # Who waits for the row that counts the history sees all that was there when it was
            # let go.
            self._writers = self._make_engine("READ COMMITTED", 1)
            async with self._writers.begin() as connection:
                if isinstance(self.dialect, Mysql):
                    is_mariadb = bool(getattr(connection.dialect, "is_mariadb", False))
                    sql = "SELECT @@max_allowed_packet"
                    most_bytes = (await connection.exec_driver_sql(sql)).scalar_one()
                    self.dialect = Mysql(is_mariadb=is_mariadb, most_bytes=most_bytes)
                await connection.run_sync(self._in_session(lambda s: prepare(s, self.place)))

        await self._attempt("open", attempt, until=0.0)
        self._is_outdated = is_outdated

    async def close(self) -> None:
        """Let go of all connections. Idempotent."""
        readers, self._readers = self._readers, None
        writers, self._writers = self._writers, None
        for engine in (readers, writers):
            if engine is not None:
                await engine.dispose()

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query. Raises StoreError."""
        sought = [_sought(value) for value in parameters]

        async def attempt() -> list[Row]:
            async with self._engine(self._readers).connect() as connection:
                return await connection.run_sync(
                    self._in_session(lambda session: session.rows(sql, sought))
                )

        return await self._attempt("read", attempt)

    async def write(self, work: Work, ring: Statement, *, until: float | None = None) -> None:
        """Do the work in one transaction; once more where that was lost. Raises StoreError.

        ``ring``: as of ``Session``. ``until``: how long what passes is waited for.
        """
        commits = _Commits()

        async def attempt() -> None:
            async with self._engine(self._writers).connect() as connection:
                if type(work) is Batch and (statement := work.at_once(self.dialect, ring)):
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                    with commits:
                        rows = await connection.run_sync(
                            self._in_session(lambda session: session.rows(*statement))
                        )
                    work.note_done_at_once(rows)
                    return
                await connection.run_sync(self._in_session(work.do, ring))
                with commits:
                    await connection.commit()

        await self._attempt("write to", attempt, until=until, known=commits.known)

    async def listening_connection(self) -> AsyncConnection:
        """Return a connection that the caller has for himself, and closes."""
        connection = self._engine(self._readers).connect()
        return await self._attempt("listen to", lambda: _started(connection), until=0.0)

    async def _attempt(
        self,
        what: str,
        attempt: Callable[[], Awaitable[T]],
        *,
        until: float | None = None,
        known: Callable[[], str] = lambda: "",
    ) -> T:
        """Return what an attempt gives; what passes is waited for until then."""
        deadline = time.monotonic() + PATIENCE_S if until is None else until
        pause = _FIRST_PAUSE_S
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    return await attempt()
            except self._faults as error:
                if task.cancelling() > cancelled:
                    # aiomysql makes an error of its own of it.
                    raise asyncio.CancelledError from error
                if not self._passes(error) or time.monotonic() + pause > deadline:
                    await self._check_version(error)
                    raise StoreError(
                        f"cannot {what} {self.place}: {told(error)}{known()}"
                    ) from _driver_error(error)
                LOG.warning("%s: to %s it is tried again: %s", self.place, what, told(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _passes(self, error: BaseException) -> bool:
        """Return whether the same may well work in a moment."""
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        if not self.dialect.lost.isdisjoint(_codes(error)):
            return True
        cause = _driver_error(error)
        return isinstance(cause, self._losses) or "closed" in str(cause)

    async def _check_version(self, error: BaseException) -> None:
        """Raise Outdated where what is wrong is that the tables are those of a newer version."""
        if self.dialect.unknown.isdisjoint(_codes(error)):
            return
        is_outdated = False
        with suppress(StoreError, *self._faults):
            async with asyncio.timeout(_CONNECT_S), self._engine(self._readers).connect() as reader:
                is_outdated = await reader.run_sync(self._in_session(self._is_outdated))
        if is_outdated:
            raise Outdated(
                f"{self.place} was migrated by a newer anodejobs: end this application, and"
                " upgrade it"
            ) from _driver_error(error)

    def _in_session(
        self, do: Callable[[Session], T], ring: Statement = ("", ())
    ) -> Callable[[Connection], T]:
        return lambda connection: do(Session(connection, self.dialect, ring))

    def _engine(self, engine: AsyncEngine | None) -> AsyncEngine:
        if engine is None:
            raise StoreError(f"{self.place} is not open")
        return engine

    def _make_engine(self, isolation: Any, connections: int) -> AsyncEngine:
        return create_async_engine(
            self._url,
            isolation_level=isolation,
            skip_autocommit_rollback=True,
            pool_size=connections,
            max_overflow=1,
            pool_timeout=ATTEMPT_S,
            pool_recycle=int(ATTEMPT_S / 3) if isinstance(self.dialect, Mysql) else -1,
            hide_parameters=True,
            connect_args=_connect_arguments(self.dialect),
        )


class _Commits:
    """Whether a commit was under way when an error came: only then is it unknown what happened."""

    def __init__(self) -> None:
        self._was_lost = False

    def __enter__(self) -> None:
        self._was_lost = True

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        is_refused = isinstance(error, DBAPIError) and not error.connection_invalidated
        if error is None or is_refused or isinstance(error, ValueError):
            self._was_lost = False

    def known(self) -> str:
        """Return what is to be said of the outcome."""
        if self._was_lost:
            return "; it was lost while it committed, which may have been done or not"
        return "; nothing of it was written"


def missing(dialect: Dialect) -> StoreError:
    """Return the error that says what to install."""
    return StoreError(
        f"this store needs SQLAlchemy and {dialect.driver}: "
        f"pip install 'anodejobs[{dialect.extra}]'"
    )


def told(error: BaseException) -> str:
    """Return what the server or its driver says, without statement and values."""
    if isinstance(error, TimeoutError) and not str(error):
        return "the server did not answer in time"
    cause = _driver_error(error)
    text = cause.args[-1] if cause.args else cause
    return " ".join(f"{text}".split()) or type(cause).__name__


def _driver_error(error: BaseException) -> BaseException:
    """Return the driver's own error: SQLAlchemy's has the statement in it."""
    original = getattr(error, "orig", None) or error
    return getattr(original, "__cause__", None) or original


def _codes(error: BaseException) -> set[Any]:
    """Return what the server calls the error, one or the other way."""
    cause = _driver_error(error)
    return {getattr(cause, "sqlstate", None), *cause.args[:1]}


def _dialect_of(url: URL) -> Dialect:
    name, _, driver = url.drivername.partition("+")
    known = _DIALECTS.get(name)
    if known is None or driver not in ("", known.driver):
        raise StoreError(
            f"there is no store for {url.drivername}://…; "
            "use postgresql://…, mysql://… or mariadb://…"
        )
    if known is Mysql and not url.database:
        raise StoreError(f"the URL names no database; it should end with one: {name}://…/database")
    return known()


def _drivers_own(url: URL, dialect: Dialect) -> URL:
    if isinstance(dialect, Postgres):
        # As all other programs have it in the URL, which this driver reads itself then.
        asked = {name: value for name, value in url.query.items() if name in _LIBPQ_TLS}
        if asked:
            url = url.difference_update_query(asked)
            url = url.update_query_dict({"dsn": f"postgresql://?{urlencode(asked)}"})
    return url.set(drivername=dialect.scheme)


def _driver_faults(dialect: Dialect) -> tuple[Faults, Faults]:
    """Return the driver's errors, and what else it raises where a connection is lost."""
    try:
        driver = import_module(dialect.driver)
    except ImportError as error:
        raise missing(dialect) from error
    if isinstance(dialect, Postgres):
        return (driver.PostgresError, driver.InterfaceError), (driver.InternalClientError,)
    return (driver.Error,), ()


def _connect_arguments(dialect: Dialect) -> dict[str, Any]:
    if isinstance(dialect, Postgres):
        # A process that was stopped in the middle of a transaction keeps all others from writing.
        settings = {
            "application_name": "anodejobs",
            "default_transaction_isolation": "read committed",
            "idle_in_transaction_session_timeout": f"{ATTEMPT_S / 2 * 1000:.0f}",
        }
        from anodejobs.stores.database_asyncpg import Connection

        return {
            "connection_class": Connection,
            "timeout": _CONNECT_S,
            # Else a connection to what was the primary once is kept for good.
            "target_session_attrs": "read-write",
            "server_settings": settings,
        }
    from anodejobs.stores.database_aiomysql import connected

    return {
        "async_creator_fn": connected,
        "timeout": _CONNECT_S,
        "charset": "utf8mb4",
        # A value that does not fit is an error, and a backslash is what the driver takes it for. A
        # connection that is silent for so long is one of a stopped process, which keeps all others
        # from writing: those in the pool are made anew before, and who waits for a lock waits
        # longer. What keeps people who type from asking for too much is not for us.
        "init_command": "SET sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',"
        " sql_safe_updates = 0, sql_big_selects = 1, sql_select_limit = 18446744073709551615,"
        f" wait_timeout = {ATTEMPT_S / 2:.0f}, innodb_lock_wait_timeout = {ATTEMPT_S * 3 / 4:.0f}",
    }


def _sought(value: Any) -> Any:
    """Return a value to look for: NULL, which equals nothing, for a text that was never kept."""
    if isinstance(value, list):
        return [_sought(one) for one in value]
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return None
    return value


async def _started(connection: AsyncConnection) -> AsyncConnection:
    return await connection.start()
