"""All that every store keeps to."""

from __future__ import annotations

from pathlib import Path

import pytest

from anodejobs.records import JobFilter
from anodejobs.stores.base import JobStore, Query
from anodejobs.testing.batches import BatchContract
from anodejobs.testing.changes import ChangeContract
from anodejobs.testing.documents import DocumentContract
from anodejobs.testing.histories import HistoryContract
from anodejobs.testing.inserts import InsertContract
from anodejobs.testing.made import make_record
from anodejobs.testing.queries import QueryContract
from anodejobs.testing.restores import RestoreContract
from anodejobs.testing.suite import get_counts, nobody_listens, put


class StoreContract(
    InsertContract,
    ChangeContract,
    BatchContract,
    QueryContract,
    HistoryContract,
    DocumentContract,
    RestoreContract,
):
    """Every promise of ``JobStore`` as a test. Subclass it and say how to make a store."""

    async def test_a_new_store_is_empty(self, store: JobStore) -> None:
        assert await store.page(Query(filter=JobFilter())) == []
        assert await get_counts(store, JobFilter()) == {}
        assert await store.history() == []
        assert await store.last_seq() == 0

    @pytest.mark.parametrize("job_id", ["unknown", "", "' OR 1=1 --", "\udcff", "a\0b"])
    async def test_an_unknown_id_has_no_job(self, store: JobStore, job_id: str) -> None:
        await put(store, make_record("known"))
        assert await store.get(job_id) is None

    async def test_closing_twice_is_no_error(self, tmp_path: Path) -> None:
        store = await self.make_store(tmp_path)
        await store.open(nobody_listens)
        await store.close()
        await store.close()

    async def test_closing_what_was_never_opened_is_no_error(self, tmp_path: Path) -> None:
        await (await self.make_store(tmp_path)).close()
