"""What a store keeps to whose records outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from anodejobs.records import JobFilter, Status
from anodejobs.stores.base import Delete, InsertAll, JobStore, Query, Stored
from anodejobs.testing.made import (
    full_insert,
    make_insert,
    make_inserts,
    make_record,
    make_save,
)
from anodejobs.testing.model import expected_counts, expected_page, put_many
from anodejobs.testing.restores import another_store, assert_same, restore_in_halves
from anodejobs.testing.store import StoreContract
from anodejobs.testing.suite import (
    PATIENCE_S,
    as_stored,
    get_counts,
    get_record,
    nobody_listens,
    opened,
    put,
    winners,
)


class DurableStoreContract(StoreContract):
    """The promises of a store whose records outlive it, and which others may use meanwhile.

    Stores made with the same folder hold the same records.
    """

    @pytest_asyncio.fixture
    async def other(self, store: JobStore, tmp_path: Path) -> AsyncIterator[JobStore]:
        """Another open store on the records of ``store``."""
        async with opened(await self.make_store(tmp_path)) as other:
            yield other

    async def reopened(self, store: JobStore, folder: Path) -> JobStore:
        """Return another store, not open yet, once the first has been closed."""
        await store.close()
        return await self.make_store(folder)

    async def test_everything_is_there_after_reopening(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        insert = full_insert()
        await store.commit([insert])
        records = await put_many(store)
        await store.put_document("schedules", "a", "body")
        await store.put_document("schedules", "b", "body")
        await store.put_document("schedules", "b", None)
        history = await store.history()
        async with opened(await self.reopened(store, tmp_path)) as again:
            assert await again.get("a-job") == as_stored(insert)
            query = Query(filter=JobFilter(), sort_by="self_id")
            records.append(insert.record)
            assert await again.page(query) == expected_page(records, query)
            assert await get_counts(again, JobFilter()) == expected_counts(records, JobFilter())
            assert await again.history() == history
            assert await again.last_seq() == len(history)
            assert await again.dependents("z") == ["a-job"]
            assert await again.documents("schedules") == {"a": "body"}

    async def test_what_was_restored_is_there_after_reopening(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        others = await another_store()
        await restore_in_halves(store, others)
        # Not closed: that another one reads it tells what a crash would leave.
        async with opened(await self.make_store(tmp_path)) as other:
            await assert_same(other, others)
        async with opened(await self.reopened(store, tmp_path)) as again:
            await assert_same(again, others)

    async def test_a_store_can_be_opened_again_itself(self, store: JobStore) -> None:
        record = await put(store, make_record())
        await store.close()
        await store.open(nobody_listens)
        assert await store.commit([make_save(record)]) == [2]

    async def test_no_seq_is_used_again_after_deleting_all_and_reopening(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        records = await put_many(store)
        await store.commit([Delete(record=record) for record in records])
        async with opened(await self.reopened(store, tmp_path)) as again:
            assert await again.last_seq() == len(records)
            assert await again.commit([make_insert(make_record())]) == [len(records) + 1]

    async def test_a_record_from_before_reopening_can_be_saved(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        record = await put(store, make_record())
        async with opened(await self.reopened(store, tmp_path)) as again:
            assert await again.commit([make_save(record)]) == [2]
            assert await again.commit([make_save(record)]) == [None]

    async def test_what_one_store_commits_the_other_sees_at_once(
        self, store: JobStore, other: JobStore
    ) -> None:
        insert = make_insert(make_record(tags=["red"]), base_env={"COLOUR": "red"})
        await store.commit([insert])
        assert await other.get("a-job") == as_stored(insert)
        save = make_save(insert.record, status=Status.finished)
        assert await other.commit([save]) == [2]
        assert await get_record(store) == save.record
        assert await get_counts(store, JobFilter()) == {Status.finished: 1}
        assert await store.commit([Delete(record=save.record)]) == [0]
        assert await other.get("a-job") is None

    async def test_of_writers_in_two_stores_one_wins(
        self, store: JobStore, other: JobStore
    ) -> None:
        record = await put(store, make_record())
        for n in range(10):
            saves = [make_save(record, error=f"{n} {m}") for m in range(10)]
            results = await asyncio.gather(
                *((store, other)[m % 2].commit([save]) for m, save in enumerate(saves))
            )
            (winner,) = winners(saves, results)
            record = winner.record
            assert await get_record(store) == await get_record(other) == record

    async def test_two_stores_never_give_the_same_seq(
        self, store: JobStore, other: JobStore
    ) -> None:
        inserts = [make_insert(make_record(f"{n}")) for n in range(80)]
        results = await asyncio.gather(
            *((store, other)[n % 2].commit([insert]) for n, insert in enumerate(inserts))
        )
        assert sorted(seq or 0 for (seq,) in results) == list(range(1, 81))

    async def test_a_store_is_told_of_what_another_commits(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        told = asyncio.Event()
        async with opened(await self.make_store(tmp_path), told.set):
            for n in range(5):
                told.clear()
                await put(store, make_record(f"{n}"))
                async with asyncio.timeout(PATIENCE_S):
                    await told.wait()

    async def test_a_store_is_told_of_the_documents_that_another_puts(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        told = asyncio.Event()
        async with opened(await self.make_store(tmp_path), told.set) as listening:
            for body in ("first", "second", None):
                told.clear()
                await store.put_document("schedules", "a", body)
                async with asyncio.timeout(PATIENCE_S):
                    await told.wait()
                expected = {} if body is None else {"a": body}
                assert await listening.documents("schedules") == expected

    async def test_of_two_stores_that_insert_several_one_does(
        self, store: JobStore, other: JobStore
    ) -> None:
        for n in range(10):
            mine, theirs = make_inserts(f"{n}", f"a{n}"), make_inserts(f"b{n}", f"{n}")
            results = await asyncio.gather(
                store.commit([InsertAll(mine)]), other.commit([InsertAll(theirs)])
            )
            assert sum(seq is not None for (seq,) in results) == 1
            winner = mine if results[0] != [None] else theirs
            loser = theirs if winner is mine else mine
            assert await other.get(f"{n}") in [as_stored(insert) for insert in winner]
            kept = [await store.get(insert.record.self_id) is not None for insert in loser]
            assert sum(kept) == 1
        assert await store.last_seq() == 20

    async def test_what_a_store_is_told_of_is_there_to_be_read(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        seen: asyncio.Future[Stored | None] = asyncio.get_running_loop().create_future()

        async def look() -> None:
            seen.set_result(await listening.get("a-job"))

        looking: list[asyncio.Task[None]] = []
        listening = await self.make_store(tmp_path)
        async with opened(listening, lambda: looking.append(asyncio.create_task(look()))):
            insert = make_insert(make_record())
            await store.commit([insert])
            async with asyncio.timeout(PATIENCE_S):
                assert await seen == as_stored(insert)

    async def test_a_store_is_not_told_of_its_own_commits(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        calls: list[str] = []
        others_ear = asyncio.Event()
        own = await self.make_store(tmp_path)
        another = await self.make_store(tmp_path)
        async with opened(own, lambda: calls.append("told")), opened(another, others_ear.set):
            await put(own, make_record())
            async with asyncio.timeout(PATIENCE_S):
                await others_ear.wait()
            assert calls == []
