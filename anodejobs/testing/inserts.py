"""How a job gets into a store, alone and with others."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import pytest

from anodejobs.errors import StoreError
from anodejobs.records import JobFilter, JobRecord, Status
from anodejobs.stores.base import Delete, InsertAll, JobStore, Query
from anodejobs.testing.made import (
    NOON,
    full_insert,
    make_insert,
    make_inserts,
    make_record,
    make_save,
)
from anodejobs.testing.suite import (
    StoreSuite,
    as_stored,
    get_counts,
    get_record,
    get_stored,
    ids_of,
    put,
)

_LITTLE: list[Any] = [False, 0, 0.0, "", [], {}, "null", 1e-300, [None]]
_LIKE_NOTHING: list[dict[str, Any]] = [
    *({"payload": little, "result": little} for little in _LITTLE),
    {"progress": 0.0, "start_deadline": 0.0, "priority": 0, "exit_code": 0},
    {"name": "", "user_id": "", "workflow_id": "", "batch_id": "", "error": ""},
    {"retry": {}, "restart_policy": {}, "restart": "always"},
    {"run_at": NOON, "metadata": {"run_at": "text"}},
]


class InsertContract(StoreSuite):
    """What ``Insert`` and ``InsertAll`` promise."""

    # Insert.

    async def test_a_job_comes_back_as_it_was_put_in(self, store: JobStore) -> None:
        insert = full_insert()
        await store.commit([insert])
        assert await store.get("a-job") == as_stored(insert)

    async def test_a_record_with_nothing_set_comes_back_as_it_was(self, store: JobStore) -> None:
        insert = make_insert(JobRecord(self_id="a-job", status="starting"))
        await store.commit([insert])
        assert await store.get("a-job") == as_stored(insert)

    @pytest.mark.parametrize("fields", _LIKE_NOTHING, ids=str)
    async def test_what_looks_like_nothing_comes_back_as_it_was(
        self, store: JobStore, fields: dict[str, Any]
    ) -> None:
        record = await put(store, make_record(**fields))
        found = await get_record(store)
        assert found == record
        # Python takes 0, 0.0 and False for the same.
        assert found.model_dump_json() == record.model_dump_json()

    @pytest.mark.parametrize("job_id", ["../../x", "it's", "%", "Ünïcødé 🚀", "x" * 200, " "])
    async def test_any_id_a_job_may_have_will_do(self, store: JobStore, job_id: str) -> None:
        record = await put(store, make_record(job_id))
        assert await get_record(store, job_id) == record
        assert await store.page(Query(filter=JobFilter(self_id=job_id))) == [record]

    async def test_an_insert_for_a_taken_id_is_refused(self, store: JobStore) -> None:
        first = make_insert(make_record(name="first"))
        await store.commit([first])
        assert await store.commit([make_insert(make_record(name="second"))]) == [None]
        assert await store.get("a-job") == as_stored(first)
        assert len(await store.history()) == 1

    async def test_of_two_inserts_for_an_id_in_a_batch_the_first_is_applied(
        self, store: JobStore
    ) -> None:
        first, second = (make_insert(make_record(name=name)) for name in ("first", "second"))
        applied, refused = await store.commit([first, second])
        assert (applied, refused) == (1, None)
        assert await store.get("a-job") == as_stored(first)

    @pytest.mark.parametrize(
        "env",
        [
            {},
            {"EMPTY": ""},
            {"LINES": "a\nb\r\n\tc", "QUOTES": """'"\\""", "EQUALS": "a=b=c"},
            {"UNICODE": "Ünïcødé 🚀", "ÜMLAUT": "name"},
            {"BYTES": os.fsdecode(b"\xff\xfe/\x80"), os.fsdecode(b"N\xe4me"): "latin-1"},
            {"LONG": "x" * 100_000},
        ],
        ids=["none", "empty", "special", "unicode", "bytes", "long"],
    )
    async def test_an_environment_comes_back_byte_for_byte(
        self, store: JobStore, env: dict[str, str]
    ) -> None:
        await store.commit([make_insert(make_record(), base_env=env, envs=env)])
        launch = (await get_stored(store)).launch
        assert (launch.base_env, launch.envs) == (env, env)

    async def test_each_job_keeps_the_environment_it_was_put_in_with(self, store: JobStore) -> None:
        one, other = {"COLOUR": "red"}, {"COLOUR": "blue"}
        envs = {"a": one, "b": other, "c": one, "d": dict(other)}
        for job_id, env in envs.items():
            await store.commit([make_insert(make_record(job_id), base_env=env)])
        for job_id, env in envs.items():
            assert (await get_stored(store, job_id)).launch.base_env == env

    @pytest.mark.parametrize(
        "odd", [{"cwd": os.fsdecode(b"/\xff")}, {"revision": 2**70}], ids=["bytes", "huge number"]
    )
    async def test_what_cannot_be_kept_is_a_store_error_and_harms_no_other(
        self, store: JobStore, odd: dict[str, Any]
    ) -> None:
        """A store that can keep it, may."""
        env = {"SHARED": "by both"}
        plain = make_insert(make_record("plain"), base_env=env)

        async def commit_odd() -> None:
            with contextlib.suppress(StoreError):
                await store.commit([make_insert(make_record("odd", **odd), base_env=env)])

        await asyncio.gather(commit_odd(), store.commit([plain]))
        assert await store.get("plain") == as_stored(plain)

    # InsertAll.

    async def test_all_inserts_are_applied_with_seqs_that_follow_each_other(
        self, store: JobStore
    ) -> None:
        await put(store, make_record("before"))
        inserts = make_inserts("a", "c", "b")
        assert await store.commit([InsertAll(inserts)]) == [4]
        for insert in inserts:
            assert await store.get(insert.record.self_id) == as_stored(insert)
        told = [(event.seq, event.job_id, event.why) for event in await store.history(after=1)]
        assert told == [(2, "a", "why a"), (3, "c", "why c"), (4, "b", "why b")]
        assert await store.last_seq() == 4
        assert await get_counts(store, JobFilter()) == {Status.running: 1, Status.pending: 3}
        assert await get_counts(store, JobFilter(tags=["new"])) == {Status.pending: 3}

    @pytest.mark.parametrize("taken", ["a", "b", "c"])
    async def test_none_of_the_inserts_is_applied_where_an_id_is_taken(
        self, store: JobStore, taken: str
    ) -> None:
        old = make_insert(make_record(taken, tags=["old"]))
        await store.commit([old])
        assert await store.commit([InsertAll(make_inserts("a", "b", "c"))]) == [None]
        for job_id in {"a", "b", "c"} - {taken}:
            assert await store.get(job_id) is None
        assert await store.get(taken) == as_stored(old)
        assert await store.page(Query(filter=JobFilter())) == [old.record]
        assert await store.page(Query(filter=JobFilter(tags=["new"]))) == []
        assert await store.dependents("needed") == []
        assert await get_counts(store, JobFilter()) == {Status.running: 1}
        assert [event.seq for event in await store.history()] == [1]
        assert await store.last_seq() == 1

    async def test_none_of_the_inserts_is_applied_where_an_id_is_named_twice(
        self, store: JobStore
    ) -> None:
        assert await store.commit([InsertAll(make_inserts("a", "b", "a"))]) == [None]
        assert await store.page(Query(filter=JobFilter())) == []
        assert await store.history() == []

    async def test_several_inserts_stand_beside_other_writes_in_a_batch(
        self, store: JobStore
    ) -> None:
        saved, deleted, taken = [
            await put(store, make_record(job_id)) for job_id in ("saved", "deleted", "taken")
        ]
        results = await store.commit(
            [
                make_insert(make_record("new-1")),
                InsertAll(make_inserts("a", "b")),
                make_save(saved, status=Status.finished),
                InsertAll(make_inserts("c", "taken", "d")),
                Delete(record=deleted),
                InsertAll(make_inserts("e")),
                make_insert(taken),
            ]
        )
        assert results == [4, 6, 7, None, 0, 8, None]
        told = [event.job_id for event in await store.history(after=3)]
        assert told == ["new-1", "a", "b", "saved", "e"]
        page = await store.page(Query(filter=JobFilter(), sort_by="self_id"))
        assert ids_of(page) == ["a", "b", "e", "new-1", "saved", "taken"]
        counts = {Status.running: 2, Status.finished: 1, Status.pending: 3}
        assert await get_counts(store, JobFilter()) == counts

    async def test_of_two_inserts_of_several_for_an_id_one_is_applied(
        self, store: JobStore
    ) -> None:
        results = await store.commit(
            [InsertAll(make_inserts("a", "both")), InsertAll(make_inserts("both", "b"))]
        )
        assert sorted(results, key=str) == [2, None]
        page = await store.page(Query(filter=JobFilter(), sort_by="self_id"))
        assert ids_of(page) == (["a", "both"] if results[0] else ["b", "both"])

    async def test_very_many_records_can_be_inserted_at_once(self, store: JobStore) -> None:
        inserts = make_inserts(*(f"{n:05}" for n in range(2000)))
        assert await store.commit([InsertAll(inserts)]) == [2000]
        assert await get_counts(store, JobFilter()) == {Status.pending: 2000}
        assert await store.commit([InsertAll((*make_inserts("other"), inserts[-1]))]) == [None]
        assert await store.get("other") is None
        assert len(await store.dependents("needed")) == 2000

    async def test_several_inserts_keep_the_environment_they_were_asked_for_with(
        self, store: JobStore
    ) -> None:
        envs = {"a": {"COLOUR": "red"}, "b": {"COLOUR": "blue"}, "c": {"COLOUR": "red"}}
        inserts = tuple(make_insert(make_record(i), base_env=env) for i, env in envs.items())
        await store.commit([InsertAll(inserts)])
        for job_id, env in envs.items():
            assert (await get_stored(store, job_id)).launch.base_env == env

    async def test_several_inserts_that_were_refused_harm_no_other_of_their_environment(
        self, store: JobStore
    ) -> None:
        await put(store, make_record("taken"))
        env = {"COLOUR": "red"}
        refused = tuple(make_insert(make_record(i), base_env=env) for i in ("a", "taken"))
        assert await store.commit([InsertAll(refused)]) == [None]
        insert = make_insert(make_record("b"), base_env=env)
        await store.commit([insert])
        assert await store.get("b") == as_stored(insert)
