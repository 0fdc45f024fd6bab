"""Records in a PostgreSQL, MySQL or MariaDB database, which several processes may use.

This module says what is asked and written; ``database_server`` has the connections. SQLAlchemy and
the driver are imported when a store is made, and not before.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from anodejobs.errors import JobNotFound, StoreError
from anodejobs.records import JobEvent, JobFilter, JobRecord, Metrics, Status
from anodejobs.stores.base import (
    UNFINISHED,
    Lease,
    Query,
    Save,
    SharedJobStore,
    Stored,
    Unfinished,
    Write,
    uptime,
)
from anodejobs.stores.database_leases import Member, expired, lease_of
from anodejobs.stores.database_queries import HISTORY, STORED, TALLY, page, where
from anodejobs.stores.database_schema import is_outdated, prepare
from anodejobs.stores.database_sql import Postgres
from anodejobs.stores.database_writes import (
    Batch,
    DocumentWrite,
    LeaseEnd,
    LeaseRenewal,
    Restoration,
    Work,
)
from anodejobs.stores.pages import LARGEST, column
from anodejobs.stores.read_rows import events_of, stored_of, tally_of, unfinished_of
from anodejobs.stores.rows import Row, record_of
from anodejobs.stores.write_rows import Environments, made_of_writes
from anodejobs.threads import made_of_each

if TYPE_CHECKING:
    from anodejobs.stores.database_news import News
    from anodejobs.stores.database_server import Server


class DatabaseJobStore(SharedJobStore):
    """Keeps records in a database that is named by a URL, or by its parts.

    ``postgresql://user:password@host/database``, ``mysql://…`` or ``mariadb://…``. Its tables are
    made where they are missing; their names start with ``anodejobs_``. What was committed is as
    durable as the server is told to keep it. ``pool_size`` is how many connections may read at
    once (5 unless said); there is one that writes, and one that listens.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        dialect: str | None = None,
        host: str | None = None,
        port: int | None = None,
        username: str | None = None,
        password: str | None = None,
        database: str | None = None,
        pool_size: int | None = None,
    ) -> None:
        self._server = _make_server(
            url,
            {
                "dialect": dialect,
                "host": host,
                "port": port,
                "username": username,
                "password": password,
                "database": database,
            },
            5 if pool_size is None else pool_size,
        )
        self._token = secrets.token_hex(8)
        self._turn = asyncio.Lock()
        self._environments = Environments()
        self._known_seq = 0
        self._news: News | None = None
        self._member: Member | None = None
        self._heard_at = 0.0
        """When the lease was last renewed, or a little earlier."""

    def __repr__(self) -> str:
        return f"DatabaseJobStore({self._server.place!r})"

    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        from anodejobs.stores.database_news import Notifications, Polling

        try:
            await self._server.open(prepare, is_outdated)
            kind = Notifications if isinstance(self._server.dialect, Postgres) else Polling
            self._news = kind(self._server, self._token, self._turn, on_foreign_commit)
            await self._news.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            await news.close()
        await self._server.close()

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        if not writes:
            return []
        async with self._turn, self._translated("write to"):
            began = uptime()
            batch = await made_of_writes(
                lambda: Batch(
                    writes, self._environments, known_seq=self._known_seq, late=self._late_member
                ),
                writes,
            )
            await self._write(batch)
            self._known_seq = max(self._known_seq, *(seq or 0 for seq in batch.results))
            if batch.has_renewed:
                self._heard_at = max(self._heard_at, began)
            return batch.results

    def _late_member(self) -> Member | None:
        """Return the host if it has let more than half of its lease go by."""
        member = self._member
        is_late = member is not None and uptime() > self._heard_at + member.lasts_s / 2
        return member if is_late else None

    async def keep_lease(self, host: str, lasts_s: float) -> None:
        now = uptime()
        member = Member(host, lasts_s)
        async with self._translated("write to"):
            await self._server.write(LeaseRenewal(member), ring=("", ()), until=0.0)
        self._member, self._heard_at = member, now

    async def expired_leases(self) -> list[Lease]:
        rows = await self._read(expired(self._server.dialect))
        async with self._translated("read"):
            return [lease_of(row) for row in rows]

    async def end_lease(
        self, lease: Lease, saves: Sequence[Save], document: tuple[str, str, str] | None = None
    ) -> list[int] | None:
        async with self._turn, self._translated("write to"):
            end = LeaseEnd(lease, saves, self._environments, document)
            await self._write(end)
            return [seq for seq in end.results if seq is not None] if end.was_ended else None

    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        async with self._turn, self._translated("write to"):
            await self._write(DocumentWrite(kind, name, body))

    async def document_kinds(self) -> list[str]:
        rows = await self._read("SELECT DISTINCT kind FROM anodejobs_documents ORDER BY kind")
        return [row[0] for row in rows]

    async def restore(
        self, jobs: Sequence[Stored], history: Sequence[JobEvent], last_seq: int
    ) -> None:
        async with self._turn, self._translated("write to"):
            work = Restoration(jobs, history, last_seq, self._environments)
            await self._write(work)

    async def _write(self, work: Work) -> None:
        """Do the work; it must be our turn."""
        if self._news is None:
            raise StoreError(f"{self._server.place} is not open")
        await self._server.write(work, self._news.ring)
        self._news.note_own(work.turn)

    async def get(self, job_id: str) -> Stored | None:
        rows = await self._read(f"{STORED} WHERE job_id = ?", (job_id,))
        async with self._translated("read"):
            for stored in stored_of(rows):
                return stored
        return None

    async def get_all(self, job_ids: Sequence[str]) -> list[Stored]:
        rows = await self._read_among(STORED, "job_id", job_ids)
        async with self._translated("read"):
            return stored_of(rows)

    async def unfinished(self, statuses: Collection[Status] = UNFINISHED) -> list[Unfinished]:
        sql = "SELECT job_id, status, attempt FROM anodejobs_jobs"
        rows = await self._read_among(sql, "status", [status.value for status in statuses])
        async with self._translated("read"):
            return unfinished_of(rows)

    async def page(self, query: Query) -> list[JobRecord]:
        last = None
        if query.after is not None:
            last = await self._sort_value(query, query.after)
        rows = await self._read(*page(query, last, self._server.dialect))
        async with self._translated("read"):
            return await made_of_each(record_of, rows)

    async def _sort_value(self, query: Query, job_id: str) -> Any:
        sql = f"SELECT {column(query)} FROM anodejobs_jobs WHERE job_id = ?"
        for row in await self._read(sql, (job_id,)):
            return row[0]
        raise JobNotFound(job_id)

    async def count(self, filter: JobFilter) -> Mapping[Status, int]:
        if filter.model_fields_set <= {"status"}:
            wanted = list(Status) if filter.status is None else filter.status
            sql = "SELECT name, value FROM anodejobs_counters"
            rows = await self._read_among(sql, "name", [str(status) for status in wanted])
        else:
            clause, parameters = where(filter, self._server.dialect)
            sql = f"SELECT status, count(*) FROM anodejobs_jobs{clause} GROUP BY status"
            rows = await self._read(sql, parameters)
        async with self._translated("read"):
            return {Status(status): n for status, n in rows if n}

    async def tally(self) -> Metrics:
        rows = await self._read(TALLY)
        async with self._translated("read"):
            return tally_of(rows)

    async def history(
        self, *, job_id: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[JobEvent]:
        mine = "" if job_id is None else " AND job_id = ?"
        wanted = () if job_id is None else (job_id,)
        most = LARGEST if limit is None else min(limit, LARGEST)
        rows = await self._read(
            f"{HISTORY}{mine} ORDER BY seq LIMIT ?", (min(after, LARGEST), *wanted, most)
        )
        async with self._translated("read"):
            return events_of(rows)

    async def latest(self, job_id: str, most: int) -> list[JobEvent]:
        rows = await self._read(
            f"{HISTORY} AND job_id = ? ORDER BY seq DESC LIMIT ?", (0, job_id, min(most, LARGEST))
        )
        async with self._translated("read"):
            return events_of(reversed(rows))

    async def last_seq(self) -> int:
        rows = await self._read("SELECT value FROM anodejobs_counters WHERE name = 'seq'")
        async with self._translated("read"):
            ((seq,),) = rows
            return int(seq)

    async def dependents(self, job_id: str) -> list[str]:
        sql = "SELECT job_id FROM anodejobs_dependencies WHERE depends_on = ? ORDER BY job_id"
        return [row[0] for row in await self._read(sql, (job_id,))]

    async def documents(self, kind: str) -> dict[str, str]:
        sql = "SELECT name, body FROM anodejobs_documents WHERE kind = ? ORDER BY name"
        return {row[0]: row[1] for row in await self._read(sql, (kind,))}

    async def _read_among(self, sql: str, column: str, values: Sequence[str]) -> list[Row]:
        if not values:
            return []
        condition, parameters = self._server.dialect.among(column, values)
        return await self._read(f"{sql} WHERE {condition}", parameters)

    async def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return await self._server.read(sql, parameters)

    @asynccontextmanager
    async def _translated(self, what: str) -> AsyncIterator[None]:
        """Say of rows that are not of our making, and of values that no row can have, what it is.

        What the server says is translated where the connections are.
        """
        try:
            yield
        except (ValueError, TypeError, OverflowError, KeyError) as error:
            raise StoreError(f"cannot {what} {self._server.place}: {error}") from error


def _make_server(url: str | None, parts: Mapping[str, Any], pool_size: int) -> Server:
    try:
        from anodejobs.stores.database_server import Server, make_address, read_url
    except ImportError as error:
        raise _missing(url or f"{parts['dialect']}:") from error
    named = {name for name, value in parts.items() if value is not None}
    if url is not None and not named:
        return Server(read_url(url), pool_size)
    if url is None and "dialect" in named:
        return Server(make_address(**parts), pool_size)
    raise StoreError(
        "a database is named by a URL, or by its dialect, host, port, username, password and "
        "database; not by neither, nor by both"
    )


def _missing(url: str) -> StoreError:
    extra = "postgresql" if url.startswith("postgres") else "mysql"
    return StoreError(f"a store in a database needs SQLAlchemy: pip install 'anodejobs[{extra}]'")
