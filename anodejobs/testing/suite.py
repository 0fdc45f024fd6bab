"""What each part of a contract starts with: an open store, and short ways to ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from anodejobs.events import Attempt
from anodejobs.records import JobFilter, JobRecord, Status
from anodejobs.stores.base import Insert, JobStore, Save, Stored
from anodejobs.testing.made import make_insert

PATIENCE_S = 20.0


class StoreSuite:
    """Tests of a store. Subclass it and say how to make one."""

    pytestmark = pytest.mark.asyncio

    async def make_store(self, folder: Path) -> JobStore:
        """Return a store that is not open yet. The folder is empty; whether it is used is free."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[JobStore]:
        """An open, empty store."""
        async with opened(await self.make_store(tmp_path)) as store:
            yield store


@asynccontextmanager
async def opened(
    store: JobStore, on_foreign_commit: Callable[[], None] | None = None
) -> AsyncIterator[JobStore]:
    """Open the store, and close it at the end."""
    try:
        await store.open(on_foreign_commit or nobody_listens)
        yield store
    finally:
        await store.close()


def nobody_listens() -> None:
    """Ignore what others commit."""


async def put(store: JobStore, record: JobRecord) -> JobRecord:
    """Have the store keep a new job, and return its record."""
    (seq,) = await store.commit([make_insert(record)])
    assert seq, f"{record.self_id} was refused"
    return record


async def get_stored(store: JobStore, job_id: str = "a-job") -> Stored:
    """Return all that is kept of a job that is there."""
    stored = await store.get(job_id)
    assert stored is not None, f"{job_id} is not there"
    return stored


async def get_record(store: JobStore, job_id: str = "a-job") -> JobRecord:
    return (await get_stored(store, job_id)).record


async def get_counts(store: JobStore, filter: JobFilter) -> dict[Status, int]:
    """Return how many jobs match, of the statuses in which there are any."""
    return {status: n for status, n in (await store.count(filter)).items() if n}


def as_stored(
    insert: Insert, *, record: JobRecord | None = None, attempt: Attempt | None = None
) -> Stored:
    """Return what is kept of a job after its first write, and after a later one of a part."""
    return Stored(
        record=record or insert.record, launch=insert.launch, attempt=attempt or insert.attempt
    )


def ids_of(records: Sequence[JobRecord]) -> list[str]:
    return [record.self_id for record in records]


def winners(saves: list[Save], results: list[list[int | None]]) -> list[Save]:
    """Return the saves, each committed by itself, that were applied."""
    return [save for save, (seq,) in zip(saves, results, strict=True) if seq is not None]
