"""How a store takes over what another one had."""

from __future__ import annotations

import dataclasses
import random

import pytest

from anodejobs.errors import StoreError
from anodejobs.records import AttemptRecord, JobFilter, Status
from anodejobs.stores.base import Delete, JobStore, Query
from anodejobs.stores.memory import MemoryJobStore
from anodejobs.testing.made import full_insert, make_attempt, make_insert, make_record, make_save
from anodejobs.testing.model import random_fields
from anodejobs.testing.suite import StoreSuite, get_counts, get_record, get_stored, put


class RestoreContract(StoreSuite):
    """What ``restore`` promises."""

    async def test_what_is_restored_is_as_it_was(self, store: JobStore) -> None:
        others = await another_store()
        await restore_in_halves(store, others)
        await assert_same(store, others)

    async def test_a_restored_job_goes_on(self, store: JobStore) -> None:
        others = await another_store()
        await restore_in_halves(store, others)
        record, last_seq = await get_record(others, "job-1"), await others.last_seq()
        assert await store.commit([make_insert(record)]) == [None]
        assert await store.commit([make_save(record, exit_code=77)]) == [last_seq + 1]
        assert (await get_record(store, "job-1")).exit_code == 77
        await store.commit([Delete(record=await get_record(store, "job-1"))])
        assert await store.history(job_id="job-1") == []

    async def test_the_history_goes_on_behind_what_was_forgotten(self, store: JobStore) -> None:
        await store.restore([], [], 2**40)
        assert await store.last_seq() == 2**40
        assert await store.commit([make_insert(make_record())]) == [2**40 + 1]

    async def test_nothing_is_restored_over_what_is_told_or_kept_already(
        self, store: JobStore
    ) -> None:
        others = await another_store()
        events = await others.history()
        job = await get_stored(others, "job-1")
        record = await put(store, make_record("job-1", name="mine"))
        with pytest.raises(StoreError, match="another event 1 already"):
            await store.restore([], events, events[-1].seq)
        with pytest.raises(StoreError, match="another job 'job-1' already"):
            await store.restore(
                [await get_stored(others, "job-2"), job], events[1:], events[-1].seq
            )
        assert await store.page(Query(filter=JobFilter())) == [record]
        assert await store.last_seq() == len(await store.history()) == 1
        assert await get_counts(store, JobFilter()) == {Status.running: 1}


async def another_store() -> JobStore:
    """Return a store in which jobs were changed, made anew, and deleted, the newest one too."""
    store = MemoryJobStore()
    await store.commit([full_insert()])
    rng = random.Random(0)
    records = [
        make_record(f"job-{n}", depends_on=[f"job-{n - 1}"] * n, **random_fields(rng))
        for n in range(12)
    ]
    await store.commit([make_insert(record, why="asked for") for record in records])
    for turn in range(2):
        saves = [make_save(record, exit_code=turn, status=Status.failed) for record in records]
        await store.commit([dataclasses.replace(save, why="over") for save in saves])
        records = [save.record for save in saves]
    ended = AttemptRecord(attempt=1, status=Status.failed, exit_code=3)
    records.append(await put(store, make_record("newest")))
    await store.commit([make_save(records[0], attempt=make_attempt(), ended=ended)])
    await store.commit([Delete(record=record) for record in records[5:7] + records[-1:]])
    return store


async def restore_in_halves(store: JobStore, others: JobStore) -> None:
    """Restore all, some jobs in one commit with their beginning, and with the rest in another."""
    events = await others.history()
    for part in (events[:8], events[8:]):
        begun = [event.job_id for event in part if event.previous is None and event.job_id]
        await store.restore(await others.get_all(begun), part, part[-1].seq)
    await store.restore([], [], await others.last_seq())


async def assert_same(store: JobStore, others: JobStore) -> None:
    """Compare all that two stores have."""
    query = Query(filter=JobFilter(), sort_by="self_id")
    records = await others.page(query)
    assert await store.page(query) == records
    assert await store.history() == await others.history()
    assert await store.last_seq() == await others.last_seq()
    assert await get_counts(store, JobFilter()) == await get_counts(others, JobFilter())
    assert await store.tally() == await others.tally()
    for record in records:
        job_id = record.self_id
        assert await store.get(job_id) == await others.get(job_id)
        assert await store.dependents(job_id) == await others.dependents(job_id)
