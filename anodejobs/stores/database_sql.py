"""How PostgreSQL and MySQL differ, and a session that speaks either. No driver is imported here.

Statements are written with ``?`` for a value, and with the row that was refused as ``excluded``; a
dialect says both its way.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from anodejobs.stores.base import TooLarge
from anodejobs.stores.pages import NULLABLE
from anodejobs.stores.rows import Row

if TYPE_CHECKING:
    from sqlalchemy import Connection

Statement = tuple[str, Sequence[Any]]
"""SQL as the driver wants it, and its parameters."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that rows are put into, many at once."""

    name: str
    columns: tuple[str, ...]
    key: str | None = None
    """The column by which a row may be there already, if it may."""
    on_taken: str = ""
    """The assignments made then; without any the old row stays as it is."""


Insertion = tuple[Table, Sequence[Row]]


class Dialect(ABC):
    """What is said differently to each kind of server."""

    extra: str
    """What is to be installed for it, as ``pip`` knows it."""
    driver: str
    """The module that speaks to it, and SQLAlchemy's name for that."""
    scheme: str
    knows_saves = False
    """Whether a batch of changes of status can be one statement."""
    lost: frozenset[str | int]
    """The codes of errors that pass, so that the same may well work in a moment."""
    unknown: frozenset[str | int]
    """The codes of errors that say that there is no such table, or no such column."""
    now: str
    """What gives the server's clock, as microseconds since 1970."""

    @abstractmethod
    def marked(self, sql: str) -> str:
        """Return the statement with the driver's marks for its values."""

    @abstractmethod
    def among(self, column: str, values: Sequence[Any]) -> Statement:
        """Return the condition that a column has one of the values, and its parameters."""

    @abstractmethod
    def is_text(self, column: str, values: Sequence[str]) -> Statement:
        """Return the same for a column whose texts have no greatest length, by its index."""

    @abstractmethod
    def order(self, column: str, direction: str) -> str:
        """Return how to order by a column, so that a missing value comes before all others."""

    @abstractmethod
    def inserts(self, inserts: Sequence[Insertion]) -> Iterator[Statement]:
        """Return what inserts the rows, those of a table all with another key."""

    @abstractmethod
    def kept(self, value: Any) -> Any:
        """Return a value as the server can keep it. Raises ValueError where it cannot."""

    @abstractmethod
    def told(self, row: Sequence[Any]) -> Row:
        """Return a row as it was before its values went through ``kept``."""

    @abstractmethod
    def lock(self, session: Session) -> None:
        """Wait until no other process prepares the same database."""

    @abstractmethod
    def unlock(self, session: Session) -> None:
        """Let others prepare it."""


class Session:
    """One connection, in the middle of a transaction."""

    def __init__(
        self, connection: Connection, dialect: Dialect, ring: Statement = ("", ())
    ) -> None:
        self._connection = connection
        self.dialect = dialect
        self.ring = ring
        """What a query is to select too, so that others are told once this is committed."""

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows that a query gives."""
        kept = tuple(self.dialect.kept(value) for value in parameters)
        result = self._connection.exec_driver_sql(self.dialect.marked(sql), kept)
        return [self.dialect.told(row) for row in result]

    def rows_among(self, sql: str, column: str, values: Sequence[Any]) -> list[Row]:
        """Return the rows of a query that have one of the values in the column."""
        condition, parameters = self.dialect.among(column, values)
        return self.rows(f"{sql} WHERE {condition}", parameters)

    def do(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Execute a statement that gives no rows."""
        kept = tuple(self.dialect.kept(value) for value in parameters)
        self._connection.exec_driver_sql(self.dialect.marked(sql), kept)

    def insert(self, *inserts: Insertion) -> None:
        """Insert the rows, none or many, each lot into another table."""
        kept = [
            (table, [tuple(map(self.dialect.kept, row)) for row in rows])
            for table, rows in inserts
            if rows
        ]
        for sql, parameters in self.dialect.inserts(kept) if kept else ():
            self._connection.exec_driver_sql(sql, tuple(parameters))

    def delete(self, table: str, column: str, values: Sequence[str]) -> None:
        """Delete the rows that have one of the values in the column, none or many."""
        if values:
            condition, parameters = self.dialect.among(column, values)
            self.do(f"DELETE FROM {table} WHERE {condition}", parameters)


INDEXED_CHARACTERS: Final = 200
"""How much of a text is in an index: neither server takes texts of every length there."""


class Postgres(Dialect):
    """PostgreSQL. What it takes many of it gets as an array, so that a statement stays the same."""

    extra = "postgresql"
    driver = "asyncpg"
    scheme = "postgresql+asyncpg"
    knows_saves = True
    now = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    # Connections that were lost or refused, a server that stops or starts, serialization failures,
    # deadlocks, and what was waited for in vain.
    lost = frozenset(
        {
            *("08000", "08001", "08003", "08004", "08006", "53300", "57P01", "57P02", "57P03"),
            *("40001", "40P01", "55P03", "57014", "25P03", "57P05"),
        }
    )
    unknown = frozenset({"42P01", "42703"})

    def marked(self, sql: str) -> str:
        return _numbered(sql)

    def among(self, column: str, values: Sequence[Any]) -> Statement:
        return f"{column} = ANY(?)", (list(values),)

    def is_text(self, column: str, values: Sequence[str]) -> Statement:
        start = f"left({column}, {INDEXED_CHARACTERS})"
        if len(values) == 1:
            condition = f"{start} = left(?, {INDEXED_CHARACTERS}) AND {column} = ?"
            return condition, (values[0], values[0])
        starts = f"SELECT left(value, {INDEXED_CHARACTERS}) FROM unnest(?::text[]) AS value"
        condition = f"{start} = ANY(ARRAY({starts})) AND {column} = ANY(?)"
        return condition, (list(values), list(values))

    def order(self, column: str, direction: str) -> str:
        if column not in NULLABLE:
            return f"{column} {direction}"
        return f"{column} {direction} NULLS {'FIRST' if direction == 'ASC' else 'LAST'}"

    def inserts(self, inserts: Sequence[Insertion]) -> Iterator[Statement]:
        # All at once: what a commit takes is above all the turns that the server is asked.
        sql = _insert_arrays(*(table for table, _ in inserts))
        yield sql, [list(values) for _, rows in inserts for values in zip(*rows, strict=True)]

    def kept(self, value: Any) -> Any:
        if type(value) is not str:  # nor a status, which is a plain one
            if type(value) is not list:
                return value
            return [self.kept(one) if type(one) is str else one for one in value]
        if not value.isascii():
            value.encode()
        # It takes no NUL. Written as two characters, each of which sorts after every other text
        # that NUL would sort after, so that the order stays.
        if "\0" in value or "\1" in value:
            return value.replace("\1", "\1\2").replace("\0", "\1\1")
        return value

    def told(self, row: Sequence[Any]) -> Row:
        return tuple(
            value.replace("\1\1", "\0").replace("\1\2", "\1")
            if isinstance(value, str) and "\1" in value
            else value
            for value in row
        )

    def lock(self, session: Session) -> None:
        session.rows("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
        ((encoding,),) = session.rows("SHOW server_encoding")
        if encoding != "UTF8":
            raise ValueError(f"the database's encoding is {encoding}, and must be UTF8")

    def unlock(self, session: Session) -> None:
        """Do nothing: the lock ends with the transaction."""


class Mysql(Dialect):
    """MySQL and MariaDB. What they take many of is many values in one statement."""

    extra = "mysql"
    driver = "aiomysql"
    scheme = "mysql+aiomysql"
    now = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
    lost = frozenset(
        {
            *(2002, 2003, 2006, 2013, 2014, 2045, 2055, 4031, 1927),  # connections
            *(1040, 1041, 1053, 1203, 1226),  # a server that stops, or has no room
            *(1290, 1836),  # one that only reads, while another takes its place
            *(1205, 1213, 1020, 1317, 1969, 3024),  # deadlocks, and what took too long
        }
    )
    unknown = frozenset({1146, 1054})

    def __init__(self, *, is_mariadb: bool = True, most_bytes: int = 16 * 1024 * 1024) -> None:
        self._is_mariadb = is_mariadb
        self._most_bytes = most_bytes
        """Of one statement; a longer one would cost the connection."""
        # Exact, and without padding: else a name is the same as one with a space behind it.
        self.collation = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"

    def marked(self, sql: str) -> str:
        return sql.replace("?", "%s")

    def among(self, column: str, values: Sequence[Any]) -> Statement:
        return f"{column} IN ({', '.join('?' * len(values))})", values

    def is_text(self, column: str, values: Sequence[str]) -> Statement:
        return self.among(column, values)

    def order(self, column: str, direction: str) -> str:
        return f"{column} {direction}"

    def inserts(self, inserts: Sequence[Insertion]) -> Iterator[Statement]:
        for table, rows in inserts:
            start = f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES "
            one = f"({', '.join(['%s'] * len(table.columns))})"
            for part in _parts(rows, self._most_bytes):
                sql = start + ", ".join([one] * len(part)) + self._on_taken(table)
                yield sql, tuple(chain.from_iterable(part))

    def _on_taken(self, table: Table) -> str:
        if table.key is None:
            return ""
        # What MySQL warns of is all that MariaDB knows.
        theirs = r"VALUES(\1)" if self._is_mariadb else r"offered.\1"
        then = table.on_taken or f"{table.key} = {table.name}.{table.key}"
        offered = "" if self._is_mariadb else " AS offered"
        then = re.sub(r"excluded\.(\w+)", theirs, then)
        return f"{offered} ON DUPLICATE KEY UPDATE {then}"

    def kept(self, value: Any) -> Any:
        if isinstance(value, str) and not value.isascii():
            value.encode()  # the driver would send the bytes as they are
        return value

    def told(self, row: Sequence[Any]) -> Row:
        return tuple(row)

    def lock(self, session: Session) -> None:
        ((name,),) = session.rows("SELECT DATABASE()")
        ((has_it,),) = session.rows("SELECT GET_LOCK(?, ?)", (_lock_name(name), _LOCK_PATIENCE_S))
        if has_it != 1:
            raise TimeoutError("another process is preparing it, and does not come to an end")
        session.do("SET sql_notes = 0")  # a table that is there already is nothing to warn of

    def unlock(self, session: Session) -> None:
        session.do("SET sql_notes = 1")
        ((name,),) = session.rows("SELECT DATABASE()")
        session.rows("SELECT RELEASE_LOCK(?)", (_lock_name(name),))


_LOCK: Final = 0x414E4F44
_LOCK_PATIENCE_S: Final = 30


def _lock_name(database: str) -> str:
    """Return a name for the whole server, which takes no long ones."""
    return f"anodejobs-{hashlib.sha256(database.encode()).hexdigest()[:32]}"


@cache
def _numbered(sql: str) -> str:
    first, *rest = sql.split("?")
    return first + "".join(f"${n}{text}" for n, text in enumerate(rest, start=1))


FRACTIONS: Final = frozenset({"progress", "cpu_seconds"})
_NUMBERS: Final = frozenset(
    {
        *("created_at", "priority", "revision", "last_update", "started_at", "finished_at"),
        *("submitted_at", "due_at", "number", "last_pid", "exit_code", "seq", "at", "value"),
        *("nth", "peak_memory_bytes"),
    }
)


@cache
def _insert_arrays(*tables: Table) -> str:
    *firsts, last = map(_insert_array, tables)
    parts = ", ".join(f"part{n} AS ({sql})" for n, sql in enumerate(firsts))
    return _numbered(f"WITH {parts} {last}" if firsts else last)


def _insert_array(table: Table) -> str:
    arrays = ", ".join(f"?::{_type(table, column)}[]" for column in table.columns)
    sql = f"INSERT INTO {table.name} ({', '.join(table.columns)}) SELECT * FROM unnest({arrays})"
    if table.key is None:
        return sql
    then = f"UPDATE SET {table.on_taken}" if table.on_taken else "NOTHING"
    return f"{sql} ON CONFLICT ({table.key}) DO {then}"


def _type(table: Table, column: str) -> str:
    if column in FRACTIONS:
        return "double precision"
    if column == "attempt" and "at" in table.columns:
        return "bigint"  # in the history it is a number, else all that is known of it
    return "bigint" if column in _NUMBERS else "text"


_MOST_ROWS: Final = 1000
_MOST_CHARACTERS: Final = 1_000_000
"""Of one statement, if there are several rows."""
_MOST_BYTES_A_CHARACTER: Final = 4
_FRAME_BYTES: Final = 8 * 1024
"""What a statement of one row may have but for its texts."""
_ESCAPED: Final = "\0\n\r\x1a\"'\\"


def _parts(rows: Iterable[Row], most_bytes: int) -> Iterator[list[Row]]:
    """Give the rows in statements' lots. Raises TooLarge where one of them fits into none."""
    most = most_bytes // _MOST_BYTES_A_CHARACTER - _FRAME_BYTES
    most_together = min(_MOST_CHARACTERS, most)
    part: list[Row] = []
    size = 0
    for row in rows:
        length = sum(len(value) for value in row if isinstance(value, str))
        if length > most and (found := _escaped_bytes(row)) + _FRAME_BYTES > most_bytes:
            raise TooLarge(
                f"{found:,} bytes are too many for the server, which takes {most_bytes:,} "
                "(max_allowed_packet); nothing of it was written"
            )
        if part and (len(part) == _MOST_ROWS or size + length > most_together):
            yield part
            part, size = [], 0
        part.append(row)
        size += length
    yield part


def _escaped_bytes(row: Row) -> int:
    texts = [value for value in row if isinstance(value, str)]
    return sum(len(text.encode()) + sum(map(text.count, _ESCAPED)) for text in texts)
