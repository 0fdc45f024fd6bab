"""What a store keeps to, as tests that a store of your own can be put to.

    class TestMyStore(DurableStoreContract):
        async def make_store(self, folder: Path) -> JobStore:
            return MyStore(folder / "jobs.db")

Needs pytest and pytest-asyncio, so nothing else in the package imports this module. For asserts
that say what they saw, put ``pytest.register_assert_rewrite("anodejobs.testing")`` in a conftest.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from anodejobs.errors import JobNotFound, StoreError
from anodejobs.events import Attempt
from anodejobs.executors.base import Launch, LogPlan, new_token
from anodejobs.records import (
    ALIVE,
    AttemptRecord,
    Durations,
    JobEvent,
    JobFilter,
    JobRecord,
    Metrics,
    Status,
)
from anodejobs.stores.base import (
    SORT_KEYS,
    Delete,
    Insert,
    InsertAll,
    JobStore,
    Lease,
    Query,
    Save,
    SharedJobStore,
    SortKey,
    Stored,
    Write,
    changes_of,
)
from anodejobs.stores.memory import MemoryJobStore

__all__ = [
    "DurableStoreContract",
    "SharedStoreContract",
    "StoreContract",
    "make_attempt",
    "make_insert",
    "make_launch",
    "make_record",
    "make_save",
]

NOON = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)
PATIENCE_S = 20.0


def make_record(self_id: str = "a-job", **fields: Any) -> JobRecord:
    """Return the record of a running job; ``fields`` are those of ``JobRecord``."""
    status = Status(fields.pop("status", Status.running))
    usual = {"status": status, "reached": [status], "created_at": NOON, "last_update": NOON}
    return JobRecord({"self_id": self_id, **usual, **fields})


def make_launch(job_id: str = "a-job", **fields: Any) -> Launch:
    """Return what starts ``true``; ``fields`` are those of ``Launch``."""
    usual: dict[str, Any] = {
        "argv": ("true",),
        "cwd": "/",
        "base_env": {"PATH": "/usr/bin:/bin"},
        "envs": {},
        "logs": LogPlan(stdout="/nowhere/out.txt", stderr="/nowhere/errors.txt"),
        "stop_grace": 10.0,
    }
    return Launch(job_id=job_id, **{**usual, **fields})


def make_attempt(**fields: Any) -> Attempt:
    """Return an attempt nobody else has; ``fields`` are those of ``Attempt``."""
    return Attempt(**{"token": new_token(), "supervisor": "nobody", **fields})


def make_insert(record: JobRecord, *, why: str | None = None, **launch: Any) -> Insert:
    """Return the first write for a record; ``launch`` are fields of its ``Launch``."""
    return Insert(
        record=record,
        launch=make_launch(record.self_id, **launch),
        attempt=make_attempt(),
        why=why,
    )


def make_save(
    record: JobRecord,
    *,
    launch: Launch | None = None,
    attempt: Attempt | None = None,
    why: str | None = None,
    ended: AttemptRecord | None = None,
    is_respecified: bool = False,
    **changes: Any,
) -> Save:
    """Return the write that makes the changes to a record."""
    following = record.model_copy(update={"revision": record.revision + 1, **changes})
    return Save(
        record=following,
        previous=record.status,
        launch=launch,
        attempt=attempt,
        why=why,
        ended=ended,
        is_respecified=is_respecified,
    )


_TICKS = [NOON + timedelta(microseconds=n) for n in (-1, 0, 1)] + [NOON + timedelta(days=1)]
_TAGS = ["red", "green", "blue", "it's"]
_NAMES = ["", "B", "a", "Ü", "a b", "🚀"]

_FIELDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "nothing, spelled out": dict.fromkeys(JobFilter.model_fields),
    "an id": {"self_id": "ü3"},
    "ids": {"self_id": ["job-1", "Job 2", "unknown", "'%3", "'%3"]},
    "an unknown id": {"self_id": "job-"},
    "no id at all": {"self_id": []},
    "a status": {"status": "running"},
    "statuses": {"status": ["running", "finished", "lost", "running"]},
    "every status": {"status": list(Status)},
    "no status at all": {"status": []},
    "a name": {"name": "a"},
    "an empty name": {"name": ""},
    "names": {"name": ["a", "B", "🚀"]},
    "a user": {"user_id": "u1"},
    "users": {"user_id": ["u1", ""]},
    "a workflow": {"workflow_id": "w1"},
    "workflows": {"workflow_id": ["w1", "w2"]},
    "a batch": {"batch_id": "b1"},
    "batches": {"batch_id": ["b1", "", "unknown"]},
    "no batch at all": {"batch_id": []},
    "a queue": {"queue": "default"},
    "queues": {"queue": ["it's", "q1"]},
    "a status of a batch": {"batch_id": "b1", "status": ["running", "failed", "pending"]},
    "what waits in a queue": {"queue": "q1", "status": ["pending", "queued"]},
    "a tag": {"tags": ["red"]},
    "a tag twice": {"tags": ["red", "red"]},
    "tags": {"tags": ["red", "it's"]},
    "all tags": {"tags": _TAGS},
    "an unknown tag": {"tags": ["red", "re"]},
    "no tag": {"tags": []},
    "created after": {"created_after": NOON},
    "created before": {"created_before": NOON},
    "created between": {"created_after": _TICKS[1], "created_before": _TICKS[3]},
    "created never": {"created_after": _TICKS[3], "created_before": _TICKS[0]},
    "all at once": {
        "self_id": [f"job-{n}" for n in range(12)],
        "status": [s for s in Status if s is not Status.lost],
        "name": ["a", "B", "", "Ü"],
        "user_id": ["u1", "u2", ""],
        "workflow_id": ["w1", "w2"],
        "tags": ["red"],
        "created_after": _TICKS[0],
        "created_before": _TICKS[3],
    },
    "a status of a user": {"user_id": "u1", "status": ["running", "failed"]},
    "tagged statuses": {"tags": ["blue"], "status": list(Status)[:6]},
}
_FILTERS = {name: JobFilter(fields) for name, fields in _FIELDS.items()}


_LITTLE: list[Any] = [False, 0, 0.0, "", [], {}, "null", 1e-300, [None]]
_LIKE_NOTHING: list[dict[str, Any]] = [
    *({"payload": little, "result": little} for little in _LITTLE),
    {"progress": 0.0, "start_deadline": 0.0, "priority": 0, "exit_code": 0},
    {"name": "", "user_id": "", "workflow_id": "", "batch_id": "", "error": ""},
    {"retry": {}, "restart_policy": {}, "restart": "always"},
    {"run_at": NOON, "metadata": {"run_at": "text"}},
]


class StoreContract:
    """Every promise of ``JobStore`` as a test. Subclass it and say how to make a store."""

    pytestmark = pytest.mark.asyncio

    async def make_store(self, folder: Path) -> JobStore:
        """Return a store that is not open yet. The folder is empty; whether it is used is free."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[JobStore]:
        """An open, empty store."""
        async with _open(await self.make_store(tmp_path)) as store:
            yield store

    # A store without records.

    async def test_a_new_store_is_empty(self, store: JobStore) -> None:
        assert await store.page(Query(filter=JobFilter())) == []
        assert await _counts(store, JobFilter()) == {}
        assert await store.history() == []
        assert await store.last_seq() == 0

    @pytest.mark.parametrize("job_id", ["unknown", "", "' OR 1=1 --", "\udcff", "a\0b"])
    async def test_an_unknown_id_has_no_job(self, store: JobStore, job_id: str) -> None:
        await _put(store, make_record("known"))
        assert await store.get(job_id) is None

    async def test_closing_twice_is_no_error(self, tmp_path: Path) -> None:
        store = await self.make_store(tmp_path)
        await store.open(_nobody_listens)
        await store.close()
        await store.close()

    async def test_closing_what_was_never_opened_is_no_error(self, tmp_path: Path) -> None:
        await (await self.make_store(tmp_path)).close()

    # Insert.

    async def test_a_job_comes_back_as_it_was_put_in(self, store: JobStore) -> None:
        insert = Insert(record=_full_record(), launch=_full_launch(), attempt=_full_attempt())
        await store.commit([insert])
        assert await store.get("a-job") == _as_stored(insert)

    async def test_a_record_with_nothing_set_comes_back_as_it_was(self, store: JobStore) -> None:
        insert = make_insert(JobRecord(self_id="a-job", status="starting"))
        await store.commit([insert])
        assert await store.get("a-job") == _as_stored(insert)

    @pytest.mark.parametrize("fields", _LIKE_NOTHING, ids=str)
    async def test_what_looks_like_nothing_comes_back_as_it_was(
        self, store: JobStore, fields: dict[str, Any]
    ) -> None:
        record = await _put(store, make_record(**fields))
        found = await _record(store)
        assert found == record
        # Python takes 0, 0.0 and False for the same.
        assert found.model_dump_json() == record.model_dump_json()

    @pytest.mark.parametrize("job_id", ["../../x", "it's", "%", "Ünïcødé 🚀", "x" * 200, " "])
    async def test_any_id_a_job_may_have_will_do(self, store: JobStore, job_id: str) -> None:
        record = await _put(store, make_record(job_id))
        assert await _record(store, job_id) == record
        assert await store.page(Query(filter=JobFilter(self_id=job_id))) == [record]

    async def test_an_insert_for_a_taken_id_is_refused(self, store: JobStore) -> None:
        first = make_insert(make_record(name="first"))
        await store.commit([first])
        assert await store.commit([make_insert(make_record(name="second"))]) == [None]
        assert await store.get("a-job") == _as_stored(first)
        assert len(await store.history()) == 1

    async def test_of_two_inserts_for_an_id_in_a_batch_the_first_is_applied(
        self, store: JobStore
    ) -> None:
        first, second = (make_insert(make_record(name=name)) for name in ("first", "second"))
        applied, refused = await store.commit([first, second])
        assert (applied, refused) == (1, None)
        assert await store.get("a-job") == _as_stored(first)

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
        launch = (await _stored(store)).launch
        assert (launch.base_env, launch.envs) == (env, env)

    async def test_each_job_keeps_the_environment_it_was_put_in_with(self, store: JobStore) -> None:
        one, other = {"COLOUR": "red"}, {"COLOUR": "blue"}
        envs = {"a": one, "b": other, "c": one, "d": dict(other)}
        for job_id, env in envs.items():
            await store.commit([make_insert(make_record(job_id), base_env=env)])
        for job_id, env in envs.items():
            assert (await _stored(store, job_id)).launch.base_env == env

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
        assert await store.get("plain") == _as_stored(plain)

    # InsertAll.

    async def test_all_inserts_are_applied_with_seqs_that_follow_each_other(
        self, store: JobStore
    ) -> None:
        await _put(store, make_record("before"))
        inserts = _several("a", "c", "b")
        assert await store.commit([InsertAll(inserts)]) == [4]
        for insert in inserts:
            assert await store.get(insert.record.self_id) == _as_stored(insert)
        told = [(event.seq, event.job_id, event.why) for event in await store.history(after=1)]
        assert told == [(2, "a", "why a"), (3, "c", "why c"), (4, "b", "why b")]
        assert await store.last_seq() == 4
        assert await _counts(store, JobFilter()) == {Status.running: 1, Status.pending: 3}
        assert await _counts(store, JobFilter(tags=["new"])) == {Status.pending: 3}

    @pytest.mark.parametrize("taken", ["a", "b", "c"])
    async def test_none_of_the_inserts_is_applied_where_an_id_is_taken(
        self, store: JobStore, taken: str
    ) -> None:
        old = make_insert(make_record(taken, tags=["old"]))
        await store.commit([old])
        assert await store.commit([InsertAll(_several("a", "b", "c"))]) == [None]
        for job_id in {"a", "b", "c"} - {taken}:
            assert await store.get(job_id) is None
        assert await store.get(taken) == _as_stored(old)
        assert await store.page(Query(filter=JobFilter())) == [old.record]
        assert await store.page(Query(filter=JobFilter(tags=["new"]))) == []
        assert await store.dependents("needed") == []
        assert await _counts(store, JobFilter()) == {Status.running: 1}
        assert [event.seq for event in await store.history()] == [1]
        assert await store.last_seq() == 1

    async def test_none_of_the_inserts_is_applied_where_an_id_is_named_twice(
        self, store: JobStore
    ) -> None:
        assert await store.commit([InsertAll(_several("a", "b", "a"))]) == [None]
        assert await store.page(Query(filter=JobFilter())) == []
        assert await store.history() == []

    async def test_several_inserts_stand_beside_other_writes_in_a_batch(
        self, store: JobStore
    ) -> None:
        saved, deleted, taken = [
            await _put(store, make_record(job_id)) for job_id in ("saved", "deleted", "taken")
        ]
        results = await store.commit(
            [
                make_insert(make_record("new-1")),
                InsertAll(_several("a", "b")),
                make_save(saved, status=Status.finished),
                InsertAll(_several("c", "taken", "d")),
                Delete(record=deleted),
                InsertAll(_several("e")),
                make_insert(taken),
            ]
        )
        assert results == [4, 6, 7, None, 0, 8, None]
        told = [event.job_id for event in await store.history(after=3)]
        assert told == ["new-1", "a", "b", "saved", "e"]
        page = await store.page(Query(filter=JobFilter(), sort_by="self_id"))
        assert _ids(page) == ["a", "b", "e", "new-1", "saved", "taken"]
        counts = {Status.running: 2, Status.finished: 1, Status.pending: 3}
        assert await _counts(store, JobFilter()) == counts

    async def test_of_two_inserts_of_several_for_an_id_one_is_applied(
        self, store: JobStore
    ) -> None:
        results = await store.commit(
            [InsertAll(_several("a", "both")), InsertAll(_several("both", "b"))]
        )
        assert sorted(results, key=str) == [2, None]
        page = await store.page(Query(filter=JobFilter(), sort_by="self_id"))
        assert _ids(page) == (["a", "both"] if results[0] else ["b", "both"])

    async def test_very_many_records_can_be_inserted_at_once(self, store: JobStore) -> None:
        inserts = _several(*(f"{n:05}" for n in range(2000)))
        assert await store.commit([InsertAll(inserts)]) == [2000]
        assert await _counts(store, JobFilter()) == {Status.pending: 2000}
        assert await store.commit([InsertAll((*_several("other"), inserts[-1]))]) == [None]
        assert await store.get("other") is None
        assert len(await store.dependents("needed")) == 2000

    async def test_several_inserts_keep_the_environment_they_were_asked_for_with(
        self, store: JobStore
    ) -> None:
        envs = {"a": {"COLOUR": "red"}, "b": {"COLOUR": "blue"}, "c": {"COLOUR": "red"}}
        inserts = tuple(make_insert(make_record(i), base_env=env) for i, env in envs.items())
        await store.commit([InsertAll(inserts)])
        for job_id, env in envs.items():
            assert (await _stored(store, job_id)).launch.base_env == env

    async def test_several_inserts_that_were_refused_harm_no_other_of_their_environment(
        self, store: JobStore
    ) -> None:
        await _put(store, make_record("taken"))
        env = {"COLOUR": "red"}
        refused = tuple(make_insert(make_record(i), base_env=env) for i in ("a", "taken"))
        assert await store.commit([InsertAll(refused)]) == [None]
        insert = make_insert(make_record("b"), base_env=env)
        await store.commit([insert])
        assert await store.get("b") == _as_stored(insert)

    # Save.

    async def test_a_save_replaces_the_record(self, store: JobStore) -> None:
        record = await _put(store, make_record())
        save = make_save(record, status=Status.finished, exit_code=0, finished_at=NOON)
        (seq,) = await store.commit([save])
        assert seq == await store.last_seq()
        assert await _record(store) == save.record

    async def test_a_save_made_from_an_old_record_is_refused(self, store: JobStore) -> None:
        record = await _put(store, make_record())
        newer = make_save(record, error="newer")
        await store.commit([newer])
        assert await store.commit([make_save(record, error="older")]) == [None]
        assert await _record(store) == newer.record
        assert len(await store.history()) == 2

    async def test_a_save_that_skips_a_revision_is_refused(self, store: JobStore) -> None:
        record = await _put(store, make_record())
        unseen = record.model_copy(update={"revision": 2})
        assert await store.commit([make_save(unseen)]) == [None]
        assert await _record(store) == record

    async def test_a_save_for_an_unknown_id_is_refused(self, store: JobStore) -> None:
        assert await store.commit([make_save(make_record("unknown"))]) == [None]
        assert await store.get("unknown") is None
        assert await store.history() == []

    async def test_a_refused_renewal_changes_nothing(self, store: JobStore) -> None:
        insert = make_insert(make_record(tags=["old"]), base_env={"COLOUR": "red"})
        await store.commit([insert])
        stale = insert.record.model_copy(update={"revision": 7})
        launch = make_launch(base_env={"COLOUR": "blue"})
        save = make_save(stale, tags=["new"], depends_on=["new"], launch=launch)
        assert await store.commit([save]) == [None]
        assert await store.get("a-job") == _as_stored(insert)
        assert await store.page(Query(filter=JobFilter(tags=["new"]))) == []
        assert await store.dependents("new") == []

    async def test_a_save_leaves_launch_and_attempt_where_it_names_none(
        self, store: JobStore
    ) -> None:
        insert = make_insert(make_record())
        await store.commit([insert])
        save = make_save(insert.record, status=Status.stopping)
        await store.commit([save])
        assert await store.get("a-job") == _as_stored(insert, record=save.record)

    async def test_a_save_can_replace_the_attempt_alone(self, store: JobStore) -> None:
        insert = make_insert(make_record(status="starting"))
        await store.commit([insert])
        started = dataclasses.replace(insert.attempt, pid=4711, pipes=(3, 4))
        save = make_save(insert.record, status=Status.running, attempt=started)
        await store.commit([save])
        assert await store.get("a-job") == _as_stored(insert, record=save.record, attempt=started)

    async def test_a_respecified_job_has_what_was_changed(self, store: JobStore) -> None:
        insert = make_insert(make_record(status="queued", depends_on=["a", "b"], tags=["red"]))
        await store.commit([insert])
        save = make_save(
            insert.record,
            is_respecified=True,
            status=Status.pending,
            depends_on=["c", "b"],
            metadata={"deep": [{"er": None}]},
            result={"r": [1.5]},
        )
        await store.commit([save])
        assert await store.get("a-job") == _as_stored(insert, record=save.record)
        assert await store.page(Query(filter=JobFilter(tags=["red"]))) == [save.record]

    async def test_a_respecified_job_can_lose_what_it_had(self, store: JobStore) -> None:
        record = await _put(store, make_record(depends_on=["a"], metadata={"a": 1}, result=[1]))
        empty: dict[str, Any] = {"depends_on": [], "metadata": {}, "result": None}
        save = make_save(record, is_respecified=True, **empty)
        await store.commit([save])
        assert await _record(store) == save.record

    async def test_a_refused_respecification_changes_nothing(self, store: JobStore) -> None:
        insert = make_insert(make_record(depends_on=["a"], metadata={"a": 1}))
        await store.commit([insert])
        stale = insert.record.model_copy(update={"revision": 7})
        save = make_save(stale, is_respecified=True, depends_on=["b"], metadata={"b": 2})
        assert await store.commit([save]) == [None]
        assert await store.get("a-job") == _as_stored(insert)
        assert await store.dependents("a") == ["a-job"]
        assert await store.dependents("b") == []

    async def test_a_change_writes_all_that_an_attempt_came_to(self, store: JobStore) -> None:
        record = await _put(store, make_record())
        full = _full_record()
        names = (
            *("status", "started_at", "finished_at", "last_pid", "exit_code", "evidence", "error"),
            *("reached", "progress", "cpu_seconds", "peak_memory_bytes"),
        )
        save = make_save(record, **{name: getattr(full, name) for name in names})
        await store.commit([save])
        assert await _record(store) == save.record

    async def test_what_happens_after_a_respecification_leaves_it(self, store: JobStore) -> None:
        record = await _put(store, make_record(depends_on=["a"], payload=[1], run_at=NOON))
        respecified = make_save(record, is_respecified=True, depends_on=[], metadata={"a": 1})
        await store.commit([respecified])
        save = make_save(respecified.record, status=Status.finished, progress=1.0)
        await store.commit([save])
        assert await _record(store) == save.record

    # Who depends on whom.

    async def test_dependents_are_those_whose_record_says_so(self, store: JobStore) -> None:
        for job_id, depends_on in {"c": ["x", "y"], "a": ["x"], "b": ["y"], "d": []}.items():
            await _put(store, make_record(job_id, depends_on=depends_on))
        assert await store.dependents("x") == ["a", "c"]
        assert await store.dependents("y") == ["b", "c"]
        for nobody in ("a", "unknown", "", "' OR 1=1 --", "\udcff"):
            assert await store.dependents(nobody) == []

    async def test_dependents_come_in_the_order_of_their_ids(self, store: JobStore) -> None:
        ids = ["b", "B", "ü", "a-10", "a-9", "🚀", "'%"]
        for job_id in ids:
            await _put(store, make_record(job_id, depends_on=["it's"]))
        assert await store.dependents("it's") == sorted(ids)

    async def test_a_dependency_that_is_named_twice_is_one(self, store: JobStore) -> None:
        record = await _put(store, make_record(depends_on=["a", "a"]))
        assert await _record(store) == record
        assert await store.dependents("a") == ["a-job"]

    async def test_dependents_follow_what_is_respecified(self, store: JobStore) -> None:
        record = await _put(store, make_record(depends_on=["a", "b"]))
        other = await _put(store, make_record("other", depends_on=["a"]))
        await store.commit([make_save(record, is_respecified=True, depends_on=["b", "c"])])
        found = [await store.dependents(job_id) for job_id in "abc"]
        assert found == [["other"], ["a-job"], ["a-job"]]
        await store.commit([make_save(other, is_respecified=True, depends_on=[])])
        assert await store.dependents("a") == []

    async def test_dependents_follow_a_renewal(self, store: JobStore) -> None:
        record = await _put(store, make_record(depends_on=["a", "b"]))
        await store.commit([make_save(record, launch=make_launch(), depends_on=["b", "c"])])
        found = [await store.dependents(job_id) for job_id in "abc"]
        assert found == [[], ["a-job"], ["a-job"]]

    async def test_an_end_leaves_the_dependencies_of_a_job(self, store: JobStore) -> None:
        record = await _put(store, make_record(depends_on=["a"]))
        save = make_save(record, status=Status.finished)
        await store.commit([save])
        assert await store.dependents("a") == ["a-job"]
        assert await _record(store) == save.record

    async def test_a_deleted_job_depends_on_nothing(self, store: JobStore) -> None:
        record = await _put(store, make_record(depends_on=["a"]))
        await _put(store, make_record("other", depends_on=["a"]))
        await store.commit([Delete(record=record)])
        assert await store.dependents("a") == ["other"]
        again = make_insert(make_record(depends_on=["b"]))
        await store.commit([again])
        assert await store.dependents("a") == ["other"]
        assert await store.dependents("b") == ["a-job"]

    async def test_a_job_may_depend_on_what_is_not_there(self, store: JobStore) -> None:
        needed = await _put(store, make_record("needed"))
        await _put(store, make_record(depends_on=["needed", "unknown"]))
        await store.commit([Delete(record=needed)])
        assert await store.dependents("needed") == await store.dependents("unknown") == ["a-job"]

    # Renewals.

    async def test_a_renewal_replaces_the_whole_job(self, store: JobStore) -> None:
        record = await _put(store, _full_record())
        launch = make_launch(argv=("false",), base_env={"COLOUR": "blue"}, envs={"A": "b"})
        attempt = make_attempt()
        renewed = make_record(revision=2, created_at=NOON + timedelta(days=1))
        save = Save(record=renewed, previous=record.status, launch=launch, attempt=attempt)
        await store.commit([save])
        assert await store.get("a-job") == Stored(record=renewed, launch=launch, attempt=attempt)

    async def test_a_renewed_job_is_found_by_what_it_is_now(self, store: JobStore) -> None:
        old: dict[str, Any] = {"name": "old", "user_id": "u1", "tags": ["old", "both"]}
        new: dict[str, Any] = {"name": "new", "user_id": "u2", "tags": ["both", "new"]}
        old |= {"batch_id": "b1", "queue": "q1"}
        new |= {"batch_id": "b2", "queue": "q2"}
        record = await _put(store, make_record(workflow_id="w1", **old))
        later = NOON + timedelta(hours=1)
        changes = {"workflow_id": None, "created_at": later, **new}
        save = make_save(record, launch=make_launch(), **changes)
        await store.commit([save])
        for field in old:
            assert await store.page(Query(filter=JobFilter({field: old[field]}))) == []
            assert await store.page(Query(filter=JobFilter({field: new[field]}))) == [save.record]
        assert await store.page(Query(filter=JobFilter(workflow_id="w1"))) == []
        assert await store.page(Query(filter=JobFilter(created_before=later))) == []
        assert await store.page(Query(filter=JobFilter(created_after=later))) == [save.record]

    # Delete.

    async def test_a_delete_removes_the_job_and_its_history(self, store: JobStore) -> None:
        other = await _put(store, make_record("other", tags=["red"]))
        record = await _put(store, make_record(tags=["red"]))
        assert await store.commit([Delete(record=record)]) == [0]
        assert await store.get("a-job") is None
        assert await store.page(Query(filter=JobFilter(tags=["red"]))) == [other]
        assert {event.job_id for event in await store.history()} == {"other"}

    async def test_a_delete_made_from_an_old_record_is_refused(self, store: JobStore) -> None:
        record = await _put(store, make_record(tags=["red"]))
        save = make_save(record, status=Status.finished)
        await store.commit([save])
        assert await store.commit([Delete(record=record)]) == [None]
        assert await store.page(Query(filter=JobFilter(tags=["red"]))) == [save.record]
        assert len(await store.history(job_id="a-job")) == 2

    async def test_a_delete_of_an_unknown_id_is_refused(self, store: JobStore) -> None:
        assert await store.commit([Delete(record=make_record("unknown"))]) == [None]

    async def test_an_id_used_anew_after_a_delete_is_a_new_job(self, store: JobStore) -> None:
        record = await _put(store, make_record(tags=["old"], name="old"))
        await store.commit([Delete(record=record)])
        insert = make_insert(make_record(), why="again")
        (seq,) = await store.commit([insert])
        assert await store.get("a-job") == _as_stored(insert)
        assert [(e.seq, e.why) for e in await store.history()] == [(seq, "again")]
        assert await store.page(Query(filter=JobFilter(tags=["old"]))) == []

    # Batches, and the numbers they give.

    async def test_an_empty_batch_gives_no_results(self, store: JobStore) -> None:
        assert await store.commit([]) == []
        assert await store.last_seq() == 0

    async def test_a_batch_gives_its_results_in_the_order_of_its_writes(
        self, store: JobStore
    ) -> None:
        saved, deleted, renewed, taken = [
            await _put(store, make_record(job_id))
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
        taken = [await _put(store, make_record(f"taken-{n}", tags=["old"])) for n in range(3)]
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
        record = await _put(store, make_record())
        saves = [make_save(record, error=error) for error in ("one", "other")]
        results = await store.commit(saves)
        assert sum(seq is not None for seq in results) == 1
        winner = saves[0 if results[0] is not None else 1]
        assert await _record(store) == winner.record
        assert len(await store.history()) == 2

    async def test_a_job_may_be_changed_more_than_once_in_a_batch(self, store: JobStore) -> None:
        first = make_insert(make_record())
        second = make_save(first.record, status=Status.stopping)
        third = make_save(second.record, status=Status.finished)
        gone = await _put(store, make_record("gone"))
        writes: list[Write] = [first, Delete(record=gone), second, make_insert(gone), third]
        assert await store.commit(writes) == [2, 0, 3, 4, 5]
        assert await _record(store) == third.record
        assert [e.seq for e in await store.history(job_id="a-job")] == [2, 3, 5]
        assert [e.seq for e in await store.history(job_id="gone")] == [4]
        assert await _counts(store, JobFilter()) == {Status.running: 1, Status.finished: 1}

    async def test_a_batch_may_be_large(self, store: JobStore) -> None:
        inserts = [make_insert(make_record(f"{n:05}")) for n in range(2000)]
        assert await store.commit(inserts) == list(range(1, 2001))
        saves = [make_save(insert.record, status=Status.finished) for insert in inserts]
        assert await store.commit(saves) == list(range(2001, 4001))
        assert await _counts(store, JobFilter()) == {Status.finished: 2000}

    async def test_a_seq_is_never_used_again(self, store: JobStore) -> None:
        for expected in (1, 2, 3):
            insert = make_insert(make_record())
            assert await store.commit([insert]) == [expected]
            assert await store.commit([Delete(record=insert.record)]) == [0]
            assert await store.last_seq() == expected

    # Many at once.

    async def test_of_many_writers_of_one_revision_one_wins(self, store: JobStore) -> None:
        record = await _put(store, make_record())
        for _ in range(3):
            saves = [make_save(record, error=f"writer {n}") for n in range(40)]
            results = await asyncio.gather(*(store.commit([save]) for save in saves))
            (winner,) = _winners(saves, results)
            record = winner.record
            assert await _record(store) == record

    async def test_no_write_is_lost_among_writers_who_try_again(self, store: JobStore) -> None:
        await _put(store, make_record())

        async def write(times: int) -> None:
            for _ in range(times):
                while await store.commit([make_save(await _record(store))]) == [None]:
                    pass

        await asyncio.gather(*(write(5) for _ in range(8)))
        assert (await _record(store)).revision == 41
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
        after = await _put(store, make_record("after"))
        assert await _record(store, "after") == after
        found = await store.page(Query(filter=JobFilter(self_id=ids), sort_by="self_id"))
        assert _ids(found) in ([], ids)

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
        record = await _put(store, make_record())
        for _ in range(3):
            reads: list[asyncio.Task[Any]] = [
                asyncio.create_task(store.page(Query(filter=JobFilter()))),
                asyncio.create_task(store.history()),
            ]
            await asyncio.sleep(0)
            for read in reads:
                read.cancel()
            await asyncio.wait(reads)
        assert await _record(store) == record
        assert await store.last_seq() == 1

    # Pages.

    @pytest.mark.parametrize("sort_by", SORT_KEYS)
    @pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
    async def test_a_page_has_what_matches_in_order(
        self, store: JobStore, sort_by: SortKey, descending: bool
    ) -> None:
        records = await _put_many(store)
        for name, filter in _FILTERS.items():
            query = Query(filter=filter, sort_by=sort_by, descending=descending)
            assert await store.page(query) == _expected(records, query), name

    @pytest.mark.parametrize("sort_by", SORT_KEYS)
    @pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
    async def test_paging_by_after_visits_every_match_once(
        self, store: JobStore, sort_by: SortKey, descending: bool
    ) -> None:
        records = await _put_many(store)
        for name, filter in _FILTERS.items():
            query = Query(filter=filter, sort_by=sort_by, descending=descending, limit=7)
            visited = await _ids_page_by_page(store, query)
            whole = dataclasses.replace(query, limit=None)
            assert visited == _ids(_expected(records, whole)), name

    async def test_any_mix_of_filter_order_limit_offset_and_after_agrees_with_a_model(
        self, store: JobStore
    ) -> None:
        records = await _put_many(store)
        rng = random.Random(20240229)
        for _ in range(300):
            query = Query(
                filter=rng.choice(list(_FILTERS.values())),
                sort_by=rng.choice(SORT_KEYS),
                descending=rng.random() < 0.5,
                limit=rng.choice([None, 0, 1, 5, 100]),
                offset=rng.choice([0, 0, 1, 4, 100]),
                after=rng.choice([None, rng.choice(records).self_id]),
            )
            assert _ids(await store.page(query)) == _ids(_expected(records, query)), query

    async def test_a_filter_may_name_thousands_of_ids(self, store: JobStore) -> None:
        record = await _put(store, make_record("known"))
        ids = [f"unknown-{n}" for n in range(10_000)]
        filter = JobFilter(self_id=[*ids, "known"], status=["starting", "running", "paused"])
        assert await store.page(Query(filter=filter, limit=10)) == [record]
        assert await _counts(store, filter) == {Status.running: 1}

    @pytest.mark.parametrize("offset", [0, 1])
    async def test_a_limit_may_be_as_large_as_a_query_allows(
        self, store: JobStore, offset: int
    ) -> None:
        records = [await _put(store, make_record(job_id)) for job_id in "abc"]
        query = Query(filter=JobFilter(), limit=2**62 - 1, offset=offset)
        assert await store.page(query) == records[offset:]

    async def test_an_offset_beyond_the_end_gives_an_empty_page(self, store: JobStore) -> None:
        await _put(store, make_record())
        for offset in (1, 2**62 - 1):
            assert await store.page(Query(filter=JobFilter(), limit=10, offset=offset)) == []

    @pytest.mark.parametrize("sort_by", SORT_KEYS)
    async def test_a_page_after_an_unknown_job_is_refused(
        self, store: JobStore, sort_by: SortKey
    ) -> None:
        gone = await _put(store, make_record("gone"))
        await store.commit([Delete(record=gone)])
        for unknown in ("unknown", "gone"):
            with pytest.raises(JobNotFound) as caught:
                await store.page(Query(filter=JobFilter(), sort_by=sort_by, after=unknown))
            assert caught.value.job_id == unknown

    async def test_a_page_after_what_can_be_no_id_is_refused(self, store: JobStore) -> None:
        with pytest.raises(JobNotFound):
            await store.page(Query(filter=JobFilter(), after="\udcff"))

    async def test_the_job_a_page_comes_after_need_not_match(self, store: JobStore) -> None:
        for job_id, status in [("a", "running"), ("b", "finished"), ("c", "running")]:
            await _put(store, make_record(job_id, status=status))
        running = Query(filter=JobFilter(status="running"), after="b")
        assert _ids(await store.page(running)) == ["c"]
        back = dataclasses.replace(running, descending=True)
        assert _ids(await store.page(back)) == ["a"]

    # Counts.

    @pytest.mark.parametrize("filter", _FILTERS.values(), ids=_FILTERS)
    async def test_counts_agree_with_a_model(self, store: JobStore, filter: JobFilter) -> None:
        records = await _put_many(store)
        assert await _counts(store, filter) == _expected_counts(records, filter)

    async def test_counts_follow_saves_renewals_and_deletes(self, store: JobStore) -> None:
        records = {record.self_id: record for record in await _put_many(store)}
        rng = random.Random(1)
        for _ in range(20):
            writes: list[Write] = [
                _random_write(rng, r) for r in rng.sample(list(records.values()), 5)
            ]
            writes.append(make_save(make_record("unknown"), status=Status.lost))
            await store.commit(writes)
            for change in chain.from_iterable(map(changes_of, writes[:-1])):
                records[change.record.self_id] = change.record
                if isinstance(change, Delete):
                    del records[change.record.self_id]
            for name in ("nothing", "statuses", "names", "a user", "a tag", "created after"):
                expected = _expected_counts(records.values(), _FILTERS[name])
                assert await _counts(store, _FILTERS[name]) == expected, name

    # Metrics.

    async def test_an_empty_store_has_nothing_to_tell(self, store: JobStore) -> None:
        metrics = await store.tally()
        assert metrics == _expected_metrics([])
        assert metrics.by_status == dict.fromkeys(Status, 0)
        assert (metrics.durations.mean, metrics.durations.max) == (None, None)

    async def test_metrics_agree_with_a_model(self, store: JobStore) -> None:
        records = await _put_varied(store)
        assert await store.tally() == _expected_metrics(records)

    async def test_metrics_follow_saves_renewals_and_deletes(self, store: JobStore) -> None:
        rng = random.Random(1)
        records = {record.self_id: record for record in await _put_varied(store)}
        for _ in range(20):
            writes = [_random_write(rng, r) for r in rng.sample(list(records.values()), 5)]
            await store.commit(writes)
            for change in chain.from_iterable(map(changes_of, writes)):
                records[change.record.self_id] = change.record
                if isinstance(change, Delete):
                    del records[change.record.self_id]
            assert await store.tally() == _expected_metrics(records.values())

    async def test_a_job_counts_once_for_a_tag(self, store: JobStore) -> None:
        await _put(store, make_record("a", tags=["red", "it's", "red"]))
        await _put(store, make_record("b", tags=["red"]))
        assert (await store.tally()).by_tag == {"red": 2, "it's": 1}

    async def test_what_has_not_ended_has_no_duration(self, store: JobStore) -> None:
        moments = {"started_at": NOON, "finished_at": NOON + timedelta(seconds=5)}
        for status in Status:
            # Also one that waits for its next attempt has the times of the last.
            await _put(store, make_record(status.value, status=status, **moments))
        durations = (await store.tally()).durations
        ended = sum(status.is_terminal for status in Status)
        assert (durations.count, durations.mean, durations.max) == (ended, 5.0, 5.0)

    async def test_what_never_started_has_no_duration(self, store: JobStore) -> None:
        await _put(store, make_record("a", status="cancelled", finished_at=NOON))
        assert (await store.tally()).durations.count == 0

    async def test_a_clock_that_was_set_back_makes_no_duration_negative(
        self, store: JobStore
    ) -> None:
        moments = {"started_at": NOON, "finished_at": NOON - timedelta(hours=1)}
        await _put(store, make_record("a", status="finished", **moments))
        durations = (await store.tally()).durations
        assert (durations.count, durations.mean, durations.max) == (1, 0.0, 0.0)

    # History.

    async def test_the_history_tells_each_change_of_a_status(self, store: JobStore) -> None:
        record = await _put(store, make_record(status="starting", attempt=3))
        later = NOON + timedelta(seconds=1)
        save = make_save(record, status=Status.failed, last_update=later, why="exit code 1")
        await store.commit([save])
        about = {"kind": "status", "job_id": "a-job", "attempt": 3}
        assert await store.history() == [
            JobEvent(seq=1, at=NOON, previous=None, status="starting", why=None, **about),
            JobEvent(
                seq=2, at=later, previous="starting", status="failed", why="exit code 1", **about
            ),
        ]

    async def test_the_history_tells_how_an_attempt_ended_that_another_follows(
        self, store: JobStore
    ) -> None:
        record = await _put(store, make_record(attempt=1))
        ended = AttemptRecord(
            attempt=1,
            status=Status.failed,
            started_at=NOON + timedelta(microseconds=1),
            finished_at=NOON + timedelta(days=1),
            pid=4711,
            exit_code=-9,
            evidence="adopted",
            error="killed by SIGKILL: ü",
        )
        save = make_save(_next_attempt(record), status=Status.pending, ended=ended, why="signal 9")
        await store.commit([save])
        event = (await store.history())[-1]
        assert event.ended == ended
        # It is told of the attempt that it happened to.
        assert (event.attempt, event.status, event.why) == (1, Status.pending, "signal 9")
        next_one = make_save(save.record, status=Status.queued)
        await store.commit([next_one])
        assert [e.ended for e in await store.history()] == [None, ended, None]
        assert [e.attempt for e in await store.history()] == [1, 1, 2]

    async def test_an_ended_attempt_of_which_little_is_known_is_told_so(
        self, store: JobStore
    ) -> None:
        record = await _put(store, make_record(attempt=7))
        ended = AttemptRecord(attempt=7, status=Status.lost)
        await store.commit([make_save(_next_attempt(record), status=Status.pending, ended=ended)])
        assert (await store.history(job_id="a-job", after=1))[0].ended == ended

    async def test_refused_writes_are_not_in_the_history(self, store: JobStore) -> None:
        record = await _put(store, make_record())
        stale = record.model_copy(update={"revision": 9})
        refused: list[Write] = [make_insert(record), make_save(stale), Delete(record=stale)]
        assert await store.commit(refused) == [None] * 3
        assert [event.seq for event in await store.history()] == [1]
        assert await store.last_seq() == 1

    async def test_the_history_is_given_by_job_after_a_seq_and_up_to_a_limit(
        self, store: JobStore
    ) -> None:
        ids = ["a", "b", "a", "c", "b", "a"]
        await _tell(store, ids)
        told = list(enumerate(ids, start=1))
        for job_id in (None, "a", "b", "unknown"):
            mine = [(seq, i) for seq, i in told if job_id in (None, i)]
            for after in range(8):
                for limit in (None, 0, 1, 2, 100):
                    events = await store.history(job_id=job_id, after=after, limit=limit)
                    expected = [pair for pair in mine if pair[0] > after][:limit]
                    assert [(e.seq, e.job_id) for e in events] == expected

    @pytest.mark.parametrize("after", [1000, 2**63 - 1, 2**63, 10**30])
    async def test_there_is_no_history_after_a_seq_to_come(
        self, store: JobStore, after: int
    ) -> None:
        await _put(store, make_record())
        assert await store.history(after=after) == []

    async def test_the_last_seq_outlives_its_job(self, store: JobStore) -> None:
        record = await _put(store, make_record())
        await store.commit([Delete(record=record)])
        assert await store.history() == []
        assert await store.last_seq() == 1

    # Documents.

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
            *(_put(store, make_record(name)) for name in names),
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

    # What another store had.

    async def test_what_is_restored_is_as_it_was(self, store: JobStore) -> None:
        others = await _another_store()
        await _restore_in_halves(store, others)
        await _assert_same(store, others)

    async def test_a_restored_job_goes_on(self, store: JobStore) -> None:
        others = await _another_store()
        await _restore_in_halves(store, others)
        record, last_seq = await _record(others, "job-1"), await others.last_seq()
        assert await store.commit([make_insert(record)]) == [None]
        assert await store.commit([make_save(record, exit_code=77)]) == [last_seq + 1]
        assert (await _record(store, "job-1")).exit_code == 77
        events = [event for event in await store.history() if event.job_id == "job-1"]
        assert await store.history(job_id="job-1") == events
        assert len(events) > 1
        await store.commit([Delete(record=await _record(store, "job-1"))])
        assert await store.history(job_id="job-1") == []

    async def test_the_history_goes_on_behind_what_was_forgotten(self, store: JobStore) -> None:
        await store.restore([], [], 2**40)
        assert await store.last_seq() == 2**40
        assert await store.commit([make_insert(make_record())]) == [2**40 + 1]

    async def test_nothing_is_restored_over_what_is_told_or_kept_already(
        self, store: JobStore
    ) -> None:
        others = await _another_store()
        events = await others.history()
        job = await _stored(others, "job-1")
        record = await _put(store, make_record("job-1", name="mine"))
        with pytest.raises(StoreError, match="another event 1 already"):
            await store.restore([], events, events[-1].seq)
        with pytest.raises(StoreError, match="another job 'job-1' already"):
            await store.restore([await _stored(others, "job-2"), job], events[1:], events[-1].seq)
        assert await store.page(Query(filter=JobFilter())) == [record]
        assert await store.last_seq() == len(await store.history()) == 1
        assert await _counts(store, JobFilter()) == {Status.running: 1}


class DurableStoreContract(StoreContract):
    """The promises of a store whose records outlive it, and which others may use meanwhile.

    Stores made with the same folder hold the same records.
    """

    @pytest_asyncio.fixture
    async def other(self, store: JobStore, tmp_path: Path) -> AsyncIterator[JobStore]:
        """Another open store on the records of ``store``."""
        async with _open(await self.make_store(tmp_path)) as other:
            yield other

    async def reopened(self, store: JobStore, folder: Path) -> JobStore:
        """Return another store, not open yet, once the first has been closed."""
        await store.close()
        return await self.make_store(folder)

    async def test_everything_is_there_after_reopening(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        insert = Insert(record=_full_record(), launch=_full_launch(), attempt=_full_attempt())
        await store.commit([insert])
        records = await _put_many(store)
        await store.put_document("schedules", "a", "body")
        await store.put_document("schedules", "b", "body")
        await store.put_document("schedules", "b", None)
        history = await store.history()
        async with _open(await self.reopened(store, tmp_path)) as again:
            assert await again.get("a-job") == _as_stored(insert)
            query = Query(filter=JobFilter(), sort_by="self_id")
            records.append(insert.record)
            assert await again.page(query) == _expected(records, query)
            assert await _counts(again, JobFilter()) == _expected_counts(records, JobFilter())
            assert await again.history() == history
            assert await again.last_seq() == len(history)
            assert await again.dependents("z") == ["a-job"]
            assert await again.documents("schedules") == {"a": "body"}

    async def test_what_was_restored_is_there_after_reopening(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        others = await _another_store()
        await _restore_in_halves(store, others)
        # Not closed: that another one reads it tells what a crash would leave.
        async with _open(await self.make_store(tmp_path)) as other:
            await _assert_same(other, others)
        async with _open(await self.reopened(store, tmp_path)) as again:
            await _assert_same(again, others)

    async def test_a_store_can_be_opened_again_itself(self, store: JobStore) -> None:
        record = await _put(store, make_record())
        await store.close()
        await store.open(_nobody_listens)
        assert await store.commit([make_save(record)]) == [2]

    async def test_no_seq_is_used_again_after_deleting_all_and_reopening(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        records = await _put_many(store)
        await store.commit([Delete(record=record) for record in records])
        async with _open(await self.reopened(store, tmp_path)) as again:
            assert await again.last_seq() == len(records)
            assert await again.commit([make_insert(make_record())]) == [len(records) + 1]

    async def test_a_record_from_before_reopening_can_be_saved(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        record = await _put(store, make_record())
        async with _open(await self.reopened(store, tmp_path)) as again:
            assert await again.commit([make_save(record)]) == [2]
            assert await again.commit([make_save(record)]) == [None]

    async def test_what_one_store_commits_the_other_sees_at_once(
        self, store: JobStore, other: JobStore
    ) -> None:
        insert = make_insert(make_record(tags=["red"]), base_env={"COLOUR": "red"})
        await store.commit([insert])
        assert await other.get("a-job") == _as_stored(insert)
        save = make_save(insert.record, status=Status.finished)
        assert await other.commit([save]) == [2]
        assert await _record(store) == save.record
        assert await _counts(store, JobFilter()) == {Status.finished: 1}
        assert await store.commit([Delete(record=save.record)]) == [0]
        assert await other.get("a-job") is None

    async def test_of_writers_in_two_stores_one_wins(
        self, store: JobStore, other: JobStore
    ) -> None:
        record = await _put(store, make_record())
        for n in range(10):
            saves = [make_save(record, error=f"{n} {m}") for m in range(10)]
            results = await asyncio.gather(
                *((store, other)[m % 2].commit([save]) for m, save in enumerate(saves))
            )
            (winner,) = _winners(saves, results)
            record = winner.record
            assert await _record(store) == await _record(other) == record

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
        async with _open(await self.make_store(tmp_path), told.set):
            for n in range(5):
                told.clear()
                await _put(store, make_record(f"{n}"))
                async with asyncio.timeout(PATIENCE_S):
                    await told.wait()

    async def test_a_store_is_told_of_the_documents_that_another_puts(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        told = asyncio.Event()
        async with _open(await self.make_store(tmp_path), told.set) as listening:
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
            mine, theirs = _several(f"{n}", f"a{n}"), _several(f"b{n}", f"{n}")
            results = await asyncio.gather(
                store.commit([InsertAll(mine)]), other.commit([InsertAll(theirs)])
            )
            assert sum(seq is not None for (seq,) in results) == 1
            winner = mine if results[0] != [None] else theirs
            loser = theirs if winner is mine else mine
            assert await other.get(f"{n}") in [_as_stored(insert) for insert in winner]
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
        async with _open(listening, lambda: looking.append(asyncio.create_task(look()))):
            insert = make_insert(make_record())
            await store.commit([insert])
            async with asyncio.timeout(PATIENCE_S):
                assert await seen == _as_stored(insert)

    async def test_a_store_is_not_told_of_its_own_commits(
        self, store: JobStore, tmp_path: Path
    ) -> None:
        calls: list[str] = []
        others_ear = asyncio.Event()
        own = await self.make_store(tmp_path)
        another = await self.make_store(tmp_path)
        async with _open(own, lambda: calls.append("told")), _open(another, others_ear.set):
            await _put(own, make_record())
            async with asyncio.timeout(PATIENCE_S):
                await others_ear.wait()
            assert calls == []


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
        await _put(shared, make_record())
        assert await others.end_lease(lease, []) is None

    async def test_the_end_of_a_lease_comes_with_saves_and_a_document(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        records = [await _put(shared, make_record(job_id)) for job_id in "ab"]
        await shared.keep_lease("a-host", self.SHORT_S)
        lease = await self.over(others)
        saves = [make_save(record, status=Status.lost) for record in records]
        assert await others.end_lease(lease, saves, ("kind", "name", "body")) == [3, 4]
        assert [await _record(shared, job_id) for job_id in "ab"] == [s.record for s in saves]
        assert [event.job_id for event in await shared.history(after=2)] == ["a", "b"]
        assert await _counts(shared, JobFilter()) == {Status.lost: 2}
        assert await shared.documents("kind") == {"name": "body"}
        assert await shared.expired_leases() == []

    async def test_a_host_whose_lease_was_ended_writes_over_nothing(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        record = await _put(shared, make_record())
        await shared.keep_lease("a-host", self.SHORT_S)
        lost = make_save(record, status=Status.lost)
        assert await others.end_lease(await self.over(others), [lost]) == [2]
        assert await shared.commit([make_save(record, status=Status.finished)]) == [None]
        assert await _record(others) == lost.record

    async def test_of_many_that_end_a_lease_one_does(
        self, shared: SharedJobStore, others: SharedJobStore
    ) -> None:
        record = await _put(shared, make_record())
        await shared.keep_lease("a-host", self.SHORT_S)
        lease = await self.over(others)
        ends = [
            store.end_lease(lease, [make_save(record, error=f"{n}")], ("kind", f"{n}", "body"))
            for n, store in enumerate([shared, others] * 3)
        ]
        results = await asyncio.gather(*ends)
        (winner,) = [n for n, seqs in enumerate(results) if seqs is not None]
        assert results[winner] == [2]
        assert (await _record(shared)).error == f"{winner}"
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
        records = [await _put(shared, make_record(job_id)) for job_id in "ab"]
        newer = make_save(records[1])
        assert await others.commit([newer]) == [3]
        await shared.keep_lease("a-host", self.SHORT_S)
        lease = await self.over(others)
        saves = [make_save(record, status=Status.lost) for record in records]
        assert await others.end_lease(lease, saves, ("kind", "name", "body")) is None
        assert [await _record(shared, "a"), await _record(shared, "b")] == [
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
        record = await _put(shared, make_record())
        await shared.keep_lease("a-host", self.SHORT_S)
        lease = await self.over(others)
        async with _open(await self.make_store(tmp_path), told.set):
            assert await others.end_lease(lease, [make_save(record)]) == [2]
            async with asyncio.timeout(PATIENCE_S):
                await told.wait()


# Helpers, in the order they are called.


@asynccontextmanager
async def _open(
    store: JobStore, on_foreign_commit: Callable[[], None] | None = None
) -> AsyncIterator[JobStore]:
    try:
        await store.open(on_foreign_commit or _nobody_listens)
        yield store
    finally:
        await store.close()


def _nobody_listens() -> None:
    """Ignore what others commit."""


async def _counts(store: JobStore, filter: JobFilter) -> dict[Status, int]:
    return {status: n for status, n in (await store.count(filter)).items() if n}


async def _put(store: JobStore, record: JobRecord) -> JobRecord:
    (seq,) = await store.commit([make_insert(record)])
    assert seq, f"{record.self_id} was refused"
    return record


def _several(*job_ids: str) -> tuple[Insert, ...]:
    """Return inserts for pending jobs that have a tag and a dependency."""
    fields = {"status": "pending", "tags": ["new"], "depends_on": ["needed"]}
    return tuple(make_insert(make_record(i, **fields), why=f"why {i}") for i in job_ids)


def _next_attempt(record: JobRecord) -> JobRecord:
    return record.model_copy(update={"attempt": record.attempt + 1})


async def _stored(store: JobStore, job_id: str = "a-job") -> Stored:
    stored = await store.get(job_id)
    assert stored is not None, f"{job_id} is not there"
    return stored


async def _record(store: JobStore, job_id: str = "a-job") -> JobRecord:
    return (await _stored(store, job_id)).record


def _as_stored(
    insert: Insert, *, record: JobRecord | None = None, attempt: Attempt | None = None
) -> Stored:
    return Stored(
        record=record or insert.record, launch=insert.launch, attempt=attempt or insert.attempt
    )


def _winners(saves: list[Save], results: list[list[int | None]]) -> list[Save]:
    """Return the saves, each committed by itself, that were applied."""
    return [save for save, (seq,) in zip(saves, results, strict=True) if seq is not None]


def _full_record() -> JobRecord:
    """Return a record in which every field is set."""
    record = make_record(
        status="stopped",
        last_pid=4711,
        dirname="/srv/jobs",
        cwd="/srv/Wörk dir",
        logdir="/srv/jobs/job_logs",
        logfile="a%2Fjob",
        command=["sh", "-c", "echo 'ünïcødé' \"$1\"\n", ""],
        name="Náme",
        description="two\nlines",
        tags=["b", "a", "ü"],
        metadata={"deep": [{"er": None}, 1.5, True, "x"], "": {}},
        user_id="u1",
        workflow_id="w1",
        batch_id="b1",
        payload={"deep": [{"er": None}, 1.5, True, "ü"], "": []},
        result=[{"r": 0}],
        progress=0.1,
        priority=-(2**63),
        queue="it's a Queue",
        depends_on=["z", "../../ü", "a"],
        on_dependency_failure="hold",
        run_at=NOON + timedelta(microseconds=5),
        start_deadline=0.1,
        submitted_at=NOON + timedelta(microseconds=3),
        due_at=NOON + timedelta(microseconds=7),
        attempt=2,
        max_retries=3,
        retry={"kind": "exponential", "initial": 0.1, "exit_codes": [-9, 3]},
        restart="on-failure",
        restart_policy={"when": "on-failure", "limit": None},
        limits={"memory_bytes": 2**40},
        timeout=0.1,
        started_at=NOON + timedelta(microseconds=1),
        finished_at=NOON + timedelta(days=1),
        exit_code=-9,
        evidence="adopted",
        error="killed by SIGKILL",
        cpu_seconds=0.1,
        peak_memory_bytes=2**40,
        host="host",
        reached=["starting", "running", "stopping", "stopped"],
    )
    unset = set(JobRecord.model_fields) - record.model_fields_set - {"revision"}
    assert not unset, f"not every field is tried: {unset}"
    return record


def _full_launch() -> Launch:
    return make_launch(
        argv=("sh", "-c", "exit 3", "", os.fsdecode(b"\xff")),
        cwd=os.fsdecode(b"/srv/\xff"),
        base_env={"HOME": "/root"},
        envs={"A": "b"},
        logs=LogPlan(stdout="/srv/out.txt", stderr="/srv/ü/err.txt", max_bytes=5, backups=3),
        timeout=1.5,
        stop_grace=0.0,
        start_grace=2.25,
        leftovers="leave",
    )


def _full_attempt() -> Attempt:
    return make_attempt(
        supervisor="host:1",
        pid=4711,
        start_time=1234567.89,
        boot_id="b00t",
        started_monotonic=0.1,
        pipes=(2**40, 3),
        cgroup="/sys/fs/cgroup/ä",
    )


def _random_fields(rng: random.Random) -> dict[str, Any]:
    """Return fields that tie often, and are often missing."""
    return {
        "created_at": rng.choice(_TICKS),
        "last_update": rng.choice(_TICKS),
        "started_at": rng.choice([None, *_TICKS]),
        "finished_at": rng.choice([None, None, *_TICKS]),
        "name": rng.choice([None, *_NAMES]),
        "user_id": rng.choice([None, "u1", "u2", ""]),
        "workflow_id": rng.choice([None, "w1", "w2"]),
        "batch_id": rng.choice([None, "b1", "b2", ""]),
        "queue": rng.choice(["default", "q1", "it's"]),
        "priority": rng.choice([-(2**63), -1, 0, 20, 2**63 - 1]),
        "tags": rng.sample(_TAGS, rng.randint(0, 4)) * rng.randint(1, 2),
    }


async def _put_many(store: JobStore) -> list[JobRecord]:
    """Put in sixty records that tie in everything but their ids."""
    rng = random.Random(0)
    ids = [f"{prefix}{n}" for prefix in ("job-", "Job ", "ü", "'%") for n in range(15)]
    rng.shuffle(ids)
    records = [
        make_record(job_id, status=rng.choice(list(Status)), **_random_fields(rng))
        for job_id in ids
    ]
    assert None not in await store.commit([make_insert(record) for record in records])
    return records


def _expected(records: Iterable[JobRecord], query: Query) -> list[JobRecord]:
    """Return the page as plain Python has it."""

    def key(record: JobRecord) -> tuple[bool, Any, str]:
        value = record[query.sort_by]
        return (value is not None, value, record.self_id)

    everything = {record.self_id: record for record in records}
    page = sorted(everything.values(), key=key, reverse=query.descending)
    if query.after is not None:
        page = page[page.index(everything[query.after]) + 1 :]
    page = [record for record in page if query.filter.matches(record)]
    return page[query.offset :][: query.limit]


def _expected_counts(records: Iterable[JobRecord], filter: JobFilter) -> dict[Status, int]:
    return Counter(record.status for record in records if filter.matches(record))


async def _put_varied(store: JobStore) -> list[JobRecord]:
    """Put in jobs that differ in whatever metrics tell apart."""
    rng = random.Random(2)
    records = [
        make_record(
            f"varied-{number}",
            **{
                **_random_fields(rng),
                "status": rng.choice(list(Status)),
                "queue": rng.choice(["default", "gpu", "it's"]),
                "priority": rng.choice([-(2**63), 0, 20, 2**63 - 1]),
                "attempt": rng.choice([1, 1, 2, 7]),
            },
        )
        for number in range(80)
    ]
    assert None not in await store.commit([make_insert(record) for record in records])
    return records


def _expected_metrics(records: Iterable[JobRecord]) -> Metrics:
    """Return the metrics as plain Python has them."""
    records = list(records)
    took = [
        max(0, (record.finished_at - record.started_at) // timedelta(microseconds=1))
        for record in records
        if record.is_done and record.started_at and record.finished_at
    ]
    return Metrics(
        by_status={status: sum(r.status is status for r in records) for status in Status},
        by_tag=Counter(tag for record in records for tag in set(record.tags)),
        by_queue=Counter(record.queue for record in records),
        by_priority=Counter(record.priority for record in records),
        durations=Durations(
            count=len(took),
            mean=sum(took) / len(took) / 1e6 if took else None,
            max=max(took) / 1e6 if took else None,
        ),
        queue_depth=Counter(r.queue for r in records if r.status is Status.queued),
        occupied_slots=Counter(r.queue for r in records if r.status in ALIVE),
        retries=sum(record.attempt - 1 for record in records),
    )


def _ids(records: Sequence[JobRecord]) -> list[str]:
    return [record.self_id for record in records]


async def _ids_page_by_page(store: JobStore, query: Query) -> list[str]:
    visited: list[str] = []
    while page := await store.page(query):
        assert query.limit is None or len(page) <= query.limit
        visited += _ids(page)
        assert len(visited) == len(set(visited)), "a job was visited twice"
        query = dataclasses.replace(query, after=visited[-1])
    return visited


def _random_write(rng: random.Random, record: JobRecord) -> Write:
    status = rng.choice(list(Status))
    if rng.random() < 0.1:
        return Delete(record=record)
    if rng.random() < 0.4:
        launch = make_launch(record.self_id)
        return make_save(record, status=status, launch=launch, **_random_fields(rng))
    return make_save(record, status=status, finished_at=rng.choice(_TICKS))


async def _tell(store: JobStore, job_ids: Iterable[str]) -> None:
    """Commit one write for each id, in their order."""
    newest: dict[str, JobRecord] = {}
    for job_id in job_ids:
        known = newest.get(job_id)
        write = make_save(known) if known else make_insert(make_record(job_id))
        newest[job_id] = write.record
        await store.commit([write])


async def _another_store() -> JobStore:
    """Return a store in which jobs were changed, made anew, and deleted, the newest one too."""
    store = MemoryJobStore()
    full = Insert(record=_full_record(), launch=_full_launch(), attempt=_full_attempt())
    await store.commit([full])
    rng = random.Random(0)
    records = [
        make_record(f"job-{n}", depends_on=[f"job-{n - 1}"] * n, **_random_fields(rng))
        for n in range(12)
    ]
    await store.commit([make_insert(record, why="asked for") for record in records])
    for turn in range(2):
        saves = [make_save(record, exit_code=turn, status=Status.failed) for record in records]
        await store.commit([dataclasses.replace(save, why="over") for save in saves])
        records = [save.record for save in saves]
    ended = AttemptRecord(attempt=1, status=Status.failed, exit_code=3)
    records.append(await _put(store, make_record("newest")))
    await store.commit([make_save(records[0], attempt=make_attempt(), ended=ended)])
    await store.commit([Delete(record=record) for record in records[5:7] + records[-1:]])
    return store


async def _restore_in_halves(store: JobStore, others: JobStore) -> None:
    """Restore all, some jobs in one commit with their beginning, and with the rest in another."""
    events = await others.history()
    for part in (events[:8], events[8:]):
        begun = [event.job_id for event in part if event.previous is None and event.job_id]
        await store.restore(await others.get_all(begun), part, part[-1].seq)
    await store.restore([], [], await others.last_seq())


async def _assert_same(store: JobStore, others: JobStore) -> None:
    query = Query(filter=JobFilter(), sort_by="self_id")
    records = await others.page(query)
    assert await store.page(query) == records
    assert await store.history() == await others.history()
    assert await store.last_seq() == await others.last_seq()
    assert await _counts(store, JobFilter()) == await _counts(others, JobFilter())
    assert await store.tally() == await others.tally()
    for record in records:
        job_id = record.self_id
        assert await store.get(job_id) == await others.get(job_id)
        assert await store.dependents(job_id) == await others.dependents(job_id)
