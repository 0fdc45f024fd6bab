"""What a store keeps to that machines share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest_asyncio

from anodejobs.records import JobFilter, Status
from anodejobs.stores.base import JobStore, Lease, SharedJobStore
from anodejobs.testing.durable import DurableStoreContract
from anodejobs.testing.made import make_record, make_save
from anodejobs.testing.suite import PATIENCE_S, get_counts, get_record, opened, put


class SharedStoreContract(DurableStoreContract):
    """The promises of a store that machines share, ``SharedJobStore``."""

    SHORT_S = 0.05
    LONG_S = 1000.0

    async def over(self, store: SharedJobStore, host: str = "a-host") -> Lease:
        """Return the lease of a host that is not heard of, once it is over."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for lease in await store.expired_leases():
                    if lease.host == host:
                        return lease

    @pytest_asyncio.fixture
    async def shared(self, store: JobStore) -> SharedJobStore:
        """The open store, as what it is."""
        assert isinstance(store, SharedJobStore)
        return store

    @pytest_asyncio.fixture
    async def others(self, other: JobStore) -> SharedJobStore:
        """The same for ``other``."""
        assert isinstance(other, SharedJobStore)
        return other

    async def test_a_lease_that_lasts_is_not_over(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        assert await shared.expired_leases() == []
        await shared.keep_lease("a-host", self.LONG_S)
        assert await others.expired_leases() == []

    async def test_a_lease_is_over_when_its_host_is_not_heard_of(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        await shared.keep_lease("a-host", self.SHORT_S)
        await others.keep_lease("b-host", self.LONG_S)
        lease = await self.over(others)
        assert [lease.host for lease in await others.expired_leases()] == ["a-host"]
        assert self.SHORT_S <= lease.silent_s < PATIENCE_S

    async def test_a_lease_that_is_kept_lasts_again(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        await shared.keep_lease("a-host", self.SHORT_S)
        lease = await self.over(others)
        await shared.keep_lease("a-host", self.LONG_S)
        assert await others.expired_leases() == []
        assert await others.end_lease(lease, []) is None

    async def test_a_late_commit_has_the_lease_of_its_host_last_again(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        await shared.keep_lease("a-host", 0.5)
        lease = await self.over(others)
        await put(shared, make_record())
        assert await others.end_lease(lease, []) is None

    async def test_the_end_of_a_lease_comes_with_saves_and_a_document(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        records = [await put(shared, make_record(job_id)) for job_id in "ab"]
        await shared.keep_lease("a-host", self.SHORT_S)
        lease = await self.over(others)
        saves = [make_save(record, status=Status.lost) for record in records]
        assert await others.end_lease(lease, saves, ("kind", "name", "body")) == [3, 4]
        assert [await get_record(shared, job_id) for job_id in "ab"] == [s.record for s in saves]
        assert [event.job_id for event in await shared.history(after=2)] == ["a", "b"]
        assert await get_counts(shared, JobFilter()) == {Status.lost: 2}
        assert await shared.documents("kind") == {"name": "body"}
        assert await shared.expired_leases() == []

    async def test_a_host_whose_lease_was_ended_writes_over_nothing(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        record = await put(shared, make_record())
        await shared.keep_lease("a-host", self.SHORT_S)
        lost = make_save(record, status=Status.lost)
        assert await others.end_lease(await self.over(others), [lost]) == [2]
        assert await shared.commit([make_save(record, status=Status.finished)]) == [None]
        assert await get_record(others) == lost.record

    async def test_of_many_that_end_a_lease_one_does(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        record = await put(shared, make_record())
        await shared.keep_lease("a-host", self.SHORT_S)
        lease = await self.over(others)
        ends = [
            store.end_lease(lease, [make_save(record, error=f"{n}")], ("kind", f"{n}", "body"))
            for n, store in enumerate([shared, others] * 3)
        ]
        results = await asyncio.gather(*ends)
        (winner,) = [n for n, seqs in enumerate(results) if seqs is not None]
        assert results[winner] == [2]
        assert (await get_record(shared)).error == f"{winner}"
        assert await shared.documents("kind") == {f"{winner}": "body"}

    async def test_the_next_lease_of_a_host_is_another(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        await shared.keep_lease("a-host", self.SHORT_S)
        first = await self.over(others)
        assert await others.end_lease(first, []) == []
        await shared.keep_lease("a-host", self.SHORT_S)
        second = await self.over(others)
        assert second.epoch > first.epoch
        assert await others.end_lease(first, []) is None
        assert await others.end_lease(second, []) == []

    async def test_a_lease_does_not_end_without_all_of_its_saves(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        records = [await put(shared, make_record(job_id)) for job_id in "ab"]
        newer = make_save(records[1])
        assert await others.commit([newer]) == [3]
        await shared.keep_lease("a-host", self.SHORT_S)
        lease = await self.over(others)
        saves = [make_save(record, status=Status.lost) for record in records]
        assert await others.end_lease(lease, saves, ("kind", "name", "body")) is None
        assert [await get_record(shared, "a"), await get_record(shared, "b")] == [
            records[0],
            newer.record,
        ]
        assert await shared.documents("kind") == {}
        again = await self.over(others)
        assert (again.host, again.epoch) == (lease.host, lease.epoch)

    async def test_a_store_is_told_of_the_leases_that_another_ends(
        self, shared: SharedJobStore, others: SharedJobStore, tmp_path: Path
    ) -> None:
        told = asyncio.Event()
        record = await put(shared, make_record())
        await shared.keep_lease("a-host", self.SHORT_S)
        lease = await self.over(others)
        async with opened(await self.make_store(tmp_path), told.set):
            assert await others.end_lease(lease, [make_save(record)]) == [2]
            async with asyncio.timeout(PATIENCE_S):
                await told.wait()
