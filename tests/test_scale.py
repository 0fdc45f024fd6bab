"""What is done for very many jobs at once leaves the event loop its turns.

What is measured is the time of the processor that the loop's thread takes between two turns of
others, so that a busy machine makes no difference.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from anodejobs import JobFilter, JobRecord, JobRecordDict, Jobs, MemoryJobStore, Status
from anodejobs.stores.base import InsertAll, Query
from anodejobs.stores.sqlite import SqliteJobStore
from anodejobs.testing import make_insert, make_record

MANY = 6000
TRIFLE_S = 0.03


@asynccontextmanager
async def turns_taken() -> AsyncIterator[None]:
    """Fail where the event loop is held in one go for much of the work in the context."""
    loop = asyncio.get_running_loop()
    gc.disable()  # which takes as long as there is much in memory, of whomever
    began = since = time.thread_time()
    longest = 0.0

    def turn() -> None:
        nonlocal longest, since, next_turn
        now = time.thread_time()
        longest, since = max(longest, now - since), now
        next_turn = loop.call_later(0.001, turn)

    next_turn = loop.call_soon(turn)
    try:
        yield
    finally:
        next_turn.cancel()
        turn()
        next_turn.cancel()
        gc.enable()
    assert longest < max(TRIFLE_S, (since - began) / 4)


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    async with Jobs(tmp_path, store="memory://", executor="inline") as jobs:
        yield jobs


async def at_once(*_: Any, **__: Any) -> None:
    """Do nothing, in no time."""


async def test_a_large_batch_is_checked_and_planned_piece_by_piece(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(write: InsertAll) -> bool:
        return len(write.inserts) == MANY

    monkeypatch.setattr(jobs._jobdb, "_write", write)
    specs = [{"command": ["true"]}] * MANY
    async with turns_taken():
        _, records = await jobs.create_batch(specs)
    assert len(records) == MANY


async def test_a_large_batch_becomes_rows_in_a_thread(tmp_path: Path) -> None:
    inserts = tuple(make_insert(make_record(str(number))) for number in range(MANY))
    store = SqliteJobStore(tmp_path / "jobs.db")
    await store.open(lambda: None)
    try:
        async with turns_taken():
            assert await store.commit([InsertAll(inserts)]) == [MANY]
    finally:
        await store.close()


async def test_a_large_batch_is_cancelled_piece_by_piece(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = [JobRecord(self_id="x", status=status) for status in (Status.queued, Status.running)]
    batch = JobRecordDict((str(number), each[number % 2]) for number in range(MANY))

    async def get_batch(batch_id: str) -> JobRecordDict:
        return batch

    monkeypatch.setattr(jobs, "get_batch", get_batch)
    monkeypatch.setattr(jobs, "cancel", at_once)
    async with turns_taken():
        await jobs.cancel_batch("batch")


async def test_very_many_jobs_are_waited_for_piece_by_piece(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = {str(n): JobRecord(self_id=str(n), status=Status.finished) for n in range(MANY)}

    async def page(query: Query) -> list[JobRecord]:
        await asyncio.sleep(0)
        return [ended[job_id] for job_id in query.filter.self_id or ()]

    monkeypatch.setattr(jobs._jobdb._own_store, "page", page)
    async with turns_taken():
        assert list(await jobs.wait_all(list(ended))) == list(ended)


async def test_many_jobs_are_found_by_their_ids_without_a_look_at_each_for_each() -> None:
    ids = [str(number) for number in range(MANY)]
    store = MemoryJobStore()
    await store.commit([InsertAll(tuple(make_insert(make_record(job_id)) for job_id in ids))])
    began = time.thread_time()
    for start in range(0, MANY, 10):
        wanted = ids[start : start + 10]
        query = Query(filter=JobFilter(self_id=wanted), sort_by="self_id")
        assert [record.self_id for record in await store.page(query)] == sorted(wanted)
    assert sum((await store.count(JobFilter(self_id=ids))).values()) == MANY
    assert time.thread_time() - began < 1


LARGE: list[JsonValue] = ["x" * 100_000, [["x"] * 2000], {str(n): n for n in range(2000)}]


@pytest.mark.parametrize("payload", LARGE, ids=["text", "list", "object"])
async def test_a_large_job_that_has_ended_or_waits_is_not_kept_in_memory(
    tmp_path: Path, payload: JsonValue
) -> None:
    """Also not for those who listen. There may be thousands."""
    async with Jobs(tmp_path, executor="inline") as jobs, aclosing(jobs.events(after=0)) as events:
        await jobs.pause_queue()
        await jobs.submit("true", "waiting", payload=payload)
        await jobs.run("true", "ended", payload=payload)
        await jobs.wait("ended")
        while (await anext(events)).status is not Status.finished:
            pass
    gc.collect()
    records = [one for one in gc.get_objects() if isinstance(one, JobRecord)]
    assert [record.self_id for record in records if record.payload == payload] == []
    assert jobs._jobdb is not None  # which has what is kept


async def test_an_event_is_made_once_for_all_who_listen(jobs: Jobs) -> None:
    async with aclosing(jobs.events()) as one, aclosing(jobs.events("job")) as other:
        hearing = [asyncio.create_task(anext(events)) for events in (one, other)]
        await asyncio.sleep(0)
        await jobs.create("true", "job")
        heard, also_heard = await asyncio.gather(*hearing)
    assert heard is also_heard
