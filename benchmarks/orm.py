"""The same changes of status by SQLAlchemy's ORM, as applications use it: one transaction each.

A job is read, changed and given an entry in its history, which is committed; nothing is batched.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from sqlalchemy import ForeignKey, event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.measure import Stopwatch
from benchmarks.programs import expect


class _Base(DeclarativeBase):
    pass


class _Job(_Base):
    __tablename__ = "jobs"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(index=True)
    last_update: Mapped[float] = mapped_column(index=True)
    revision: Mapped[int]


class _Entry(_Base):
    __tablename__ = "history"

    seq: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey(_Job.job_id), index=True)
    at: Mapped[float]
    previous: Mapped[str]
    status: Mapped[str]


async def change_each(url: str, callers: int, turns: int) -> tuple[float, float]:
    """Have each caller change a job of its own so many times; return seconds, and those of CPU."""
    engine = _engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_Base.metadata.create_all)
        async with AsyncSession(engine) as session, session.begin():
            session.add_all(
                _Job(job_id=f"job-{n}", status="running", last_update=0.0, revision=1)
                for n in range(callers)
            )
        watch = Stopwatch()
        async with asyncio.TaskGroup() as group:
            for n in range(callers):
                group.create_task(_change(engine, f"job-{n}", turns))
        took = watch.wall_s, watch.cpu_s
        async with AsyncSession(engine) as session:
            job = await session.get_one(_Job, "job-0")
            expect("revision", job.revision, turns + 1)
    finally:
        await engine.dispose()
    return took


async def _change(engine: AsyncEngine, job_id: str, turns: int) -> None:
    for turn in range(turns):
        async with AsyncSession(engine) as session, session.begin():
            job = await session.get_one(_Job, job_id, with_for_update=True)
            at, previous = datetime.now(UTC).timestamp(), job.status
            job.status, job.last_update = ("running" if turn % 2 else "paused"), at
            job.revision += 1
            session.add(_Entry(job_id=job_id, at=at, previous=previous, status=job.status))


def _engine(url: str) -> AsyncEngine:
    if not url.startswith("sqlite"):
        own = make_url(url).set(drivername="postgresql+asyncpg")
        return create_async_engine(own, pool_timeout=300)
    # One connection: those of a pool would wait for SQLite's lock, each in a thread, not in turn.
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=300)

    @event.listens_for(engine.sync_engine, "connect")
    def _tune(connection: object, _: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]  # a driver's, of no type
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    return engine
