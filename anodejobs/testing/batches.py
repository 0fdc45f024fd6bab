"""What several writes come to: in one commit, and in commits at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from anodejobs.records import JobFilter, Status
from anodejobs.stores.base import Delete, JobStore, Query, Write
from anodejobs.testing.made import make_insert, make_launch, make_record, make_save
from anodejobs.testing.suite import StoreSuite, get_counts, get_record, ids_of, put, winners


class BatchContract(StoreSuite):
    """What ``commit`` promises, whatever is written."""

    # Batches, and the numbers they give.

    async def test_an_empty_batch_gives_no_results(self, store: JobStore) -> None:
        assert await store.commit([]) == []
        assert await store.last_seq() == 0

    async def test_a_batch_gives_its_results_in_the_order_of_its_writes(
        self, store: JobStore
    ) -> None:
        saved, deleted, renewed, taken = [
            await put(store, make_record(job_id))
            for job_id in ("saved", "deleted", "renewed", "taken")
        ]
        results = await store.commit(
            [
                make_save(saved, status=Status.finished),
                make_insert(taken),
                Delete(record=deleted),
                make_insert(make_record("new-1")),
                make_save(make_record("unknown")),
                make_save(renewed, launch=make_launch("renewed")),
                Delete(record=make_record("unknown")),
                make_insert(make_record("new-2")),
            ]
        )
        first = 5
        assert results == [first, None, 0, first + 1, None, first + 2, None, first + 3]
        told = [(e.seq, e.job_id) for e in await store.history(after=first - 1)]
        assert told == [
            (first, "saved"),
            (first + 1, "new-1"),
            (first + 2, "renewed"),
            (first + 3, "new-2"),
        ]

    async def test_refused_writes_keep_none_of_their_batch_from_being_applied(
        self, store: JobStore
    ) -> None:
        taken = [await put(store, make_record(f"taken-{n}", tags=["old"])) for n in range(3)]
        fresh = [make_record(f"fresh-{n}", tags=["new"]) for n in range(3)]
        writes: list[Write] = []
        for n in range(3):
            writes += [make_insert(make_record(f"taken-{n}", tags=["new"])), make_insert(fresh[n])]
        results = await store.commit(writes)
        assert [seq is None for seq in results] == [True, False] * 3
        assert await store.page(Query(filter=JobFilter(tags=["new"]))) == fresh
        assert await store.page(Query(filter=JobFilter(tags=["old"]))) == taken

    async def test_of_two_saves_from_one_revision_in_a_batch_one_is_applied(
        self, store: JobStore
    ) -> None:
        record = await put(store, make_record())
        saves = [make_save(record, error=error) for error in ("one", "other")]
        results = await store.commit(saves)
        assert sum(seq is not None for seq in results) == 1
        winner = saves[0 if results[0] is not None else 1]
        assert await get_record(store) == winner.record
        assert len(await store.history()) == 2

    async def test_a_batch_may_be_large(self, store: JobStore) -> None:
        inserts = [make_insert(make_record(f"{n:05}")) for n in range(2000)]
        assert await store.commit(inserts) == list(range(1, 2001))
        saves = [make_save(insert.record, status=Status.finished) for insert in inserts]
        assert await store.commit(saves) == list(range(2001, 4001))
        assert await get_counts(store, JobFilter()) == {Status.finished: 2000}

    async def test_a_seq_is_never_used_again(self, store: JobStore) -> None:
        for expected in (1, 2, 3):
            insert = make_insert(make_record())
            assert await store.commit([insert]) == [expected]
            assert await store.commit([Delete(record=insert.record)]) == [0]
            assert await store.last_seq() == expected

    # Many at once.

    async def test_of_many_writers_of_one_revision_one_wins(self, store: JobStore) -> None:
        record = await put(store, make_record())
        for _ in range(3):
            saves = [make_save(record, error=f"writer {n}") for n in range(40)]
            results = await asyncio.gather(*(store.commit([save]) for save in saves))
            (winner,) = winners(saves, results)
            record = winner.record
            assert await get_record(store) == record

    async def test_no_write_is_lost_among_writers_who_try_again(self, store: JobStore) -> None:
        await put(store, make_record())

        async def write(times: int) -> None:
            for _ in range(times):
                while await store.commit([make_save(await get_record(store))]) == [None]:
                    pass

        await asyncio.gather(*(write(5) for _ in range(8)))
        assert (await get_record(store)).revision == 41
        seqs = [event.seq for event in await store.history()]
        assert (len(seqs), seqs) == (41, sorted(set(seqs)))

    async def test_commits_at_once_each_get_their_own_results(self, store: JobStore) -> None:
        ids = [f"{n:03}" for n in range(60)]
        results = await asyncio.gather(
            *(store.commit([make_insert(make_record(job_id))]) for job_id in ids)
        )
        told = {event.seq: event.job_id for event in await store.history()}
        assert [told[seq or 0] for (seq,) in results] == ids

    @pytest.mark.parametrize("steps", range(5))
    async def test_a_cancelled_commit_is_applied_whole_or_not_at_all(
        self, store: JobStore, steps: int
    ) -> None:
        ids = [f"{n:03}" for n in range(200)]
        commit = asyncio.create_task(store.commit([make_insert(make_record(i)) for i in ids]))
        for _ in range(steps):
            await asyncio.sleep(0)
        commit.cancel()
        await asyncio.wait([commit])
        after = await put(store, make_record("after"))
        assert await get_record(store, "after") == after
        found = await store.page(Query(filter=JobFilter(self_id=ids), sort_by="self_id"))
        assert ids_of(found) in ([], ids)

    async def test_a_commit_after_a_cancelled_one_gets_its_own_results(
        self, store: JobStore
    ) -> None:
        cancelled = asyncio.create_task(store.commit([make_insert(make_record(x)) for x in "ab"]))
        await asyncio.sleep(0)
        cancelled.cancel()
        mine = await store.commit([make_save(make_record("unknown")), make_insert(make_record())])
        await asyncio.wait([cancelled])
        assert mine == [None, await store.last_seq()]

    async def test_a_reader_never_sees_half_a_batch(self, store: JobStore) -> None:
        inserts = [make_insert(make_record(f"{n}", name="v0")) for n in range(100)]
        await store.commit(inserts)
        records = [insert.record for insert in inserts]
        for version in range(5):
            saves = [make_save(record, error=f"version {version}") for record in records]
            commit = asyncio.create_task(store.commit(saves))
            while not commit.done():
                await asyncio.sleep(0)  # a store in memory may give nobody else a turn
                seen = await store.page(Query(filter=JobFilter()))
                assert len({(record.revision, record.error) for record in seen}) == 1
            records = [save.record for save in saves]
            assert None not in await commit

    async def test_cancelled_reads_cost_nothing(self, store: JobStore) -> None:
        record = await put(store, make_record())
        for _ in range(3):
            reads: list[asyncio.Task[Any]] = [
                asyncio.create_task(store.page(Query(filter=JobFilter()))),
                asyncio.create_task(store.history()),
            ]
            await asyncio.sleep(0)
            for read in reads:
                read.cancel()
            await asyncio.wait(reads)
        assert await get_record(store) == record
        assert await store.last_seq() == 1
