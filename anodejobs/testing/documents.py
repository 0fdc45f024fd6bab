"""What a store keeps beside its jobs."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from anodejobs.errors import StoreError
from anodejobs.stores.base import JobStore
from anodejobs.testing.made import make_record
from anodejobs.testing.suite import StoreSuite, put


class DocumentContract(StoreSuite):
    """What is promised of documents."""

    async def test_a_new_store_has_no_documents(self, store: JobStore) -> None:
        assert await store.documents("schedules") == {}

    async def test_documents_are_kept_by_kind_and_name(self, store: JobStore) -> None:
        await store.put_document("schedules", "b", "1")
        await store.put_document("schedules", "a", "2")
        await store.put_document("templates", "a", "3")
        assert list((await store.documents("schedules")).items()) == [("a", "2"), ("b", "1")]
        assert await store.documents("templates") == {"a": "3"}
        assert await store.documents("schedule") == {}

    async def test_a_document_takes_the_place_of_the_one_of_its_name(self, store: JobStore) -> None:
        await store.put_document("schedules", "a", "old")
        await store.put_document("schedules", "b", "other")
        await store.put_document("schedules", "a", "new")
        assert await store.documents("schedules") == {"a": "new", "b": "other"}

    async def test_a_document_that_was_removed_is_gone(self, store: JobStore) -> None:
        for kind in ("schedules", "templates"):
            await store.put_document(kind, "a", "body")
        await store.put_document("schedules", "a", None)
        await store.put_document("schedules", "a", None)
        await store.put_document("schedules", "unknown", None)
        assert await store.documents("schedules") == {}
        assert await store.documents("templates") == {"a": "body"}

    @pytest.mark.parametrize(
        "name", ["", " ", "../../x", "it's", "%", "Ünïcødé 🚀", "a\nb", "x" * 1000, "NULL", "A"]
    )
    async def test_a_document_may_have_any_name_and_any_text(
        self, store: JobStore, name: str
    ) -> None:
        body = f"{name}'\"\\\r\n\t" * 100
        await store.put_document(name, name, body)
        await store.put_document("", "a", "")
        assert await store.documents(name) == {name: body} | ({"a": ""} if name == "" else {})
        assert await store.documents("") == {"a": ""} | ({name: body} if name == "" else {})

    async def test_a_document_that_cannot_be_kept_is_a_store_error_and_harms_no_other(
        self, store: JobStore
    ) -> None:
        """A store that can keep it, may."""
        await store.put_document("schedules", "a", "old")
        with contextlib.suppress(StoreError):
            await store.put_document("schedules", "\udcff", "\udcff")
        await store.put_document("schedules", "a", "new")
        assert (await store.documents("schedules"))["a"] == "new"

    async def test_documents_put_at_once_with_writes_are_all_kept(self, store: JobStore) -> None:
        names = [f"{n:02}" for n in range(20)]
        await asyncio.gather(
            *(store.put_document("schedules", name, f"body {name}") for name in names),
            *(put(store, make_record(name)) for name in names),
        )
        expected = {name: f"body {name}" for name in names}
        assert await store.documents("schedules") == expected
        assert await store.last_seq() == 20, "a document is nothing for the history"

    async def test_the_kinds_are_those_of_which_there_is_a_document(self, store: JobStore) -> None:
        assert await store.document_kinds() == []
        for kind, name in (("b", "1"), ("", "1"), ("b", "2"), ("c", "1")):
            await store.put_document(kind, name, "body")
        await store.put_document("c", "1", None)
        await store.put_document("b", "1", None)
        assert await store.document_kinds() == ["", "b"]
