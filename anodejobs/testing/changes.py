"""How a job that is in a store is changed, and leaves it."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

from anodejobs.records import JobFilter, Status
from anodejobs.stores.base import Delete, JobStore, Query, Save, Stored, Write, as_one
from anodejobs.testing.made import (
    NOON,
    full_record,
    make_attempt,
    make_insert,
    make_launch,
    make_record,
    make_save,
)
from anodejobs.testing.suite import StoreSuite, as_stored, get_counts, get_record, put


class ChangeContract(StoreSuite):
    """What ``Save`` and ``Delete`` promise, and who depends on whom after them."""

    # Save.

    async def test_a_save_replaces_the_record(self, store: JobStore) -> None:
        record = await put(store, make_record())
        save = make_save(record, status=Status.finished, exit_code=0, finished_at=NOON)
        (seq,) = await store.commit([save])
        assert seq == await store.last_seq()
        assert await get_record(store) == save.record

    async def test_a_save_made_from_an_old_record_is_refused(self, store: JobStore) -> None:
        record = await put(store, make_record())
        newer = make_save(record, error="newer")
        await store.commit([newer])
        assert await store.commit([make_save(record, error="older")]) == [None]
        assert await get_record(store) == newer.record
        assert len(await store.history()) == 2

    async def test_a_save_that_skips_a_revision_is_refused(self, store: JobStore) -> None:
        record = await put(store, make_record())
        unseen = record.model_copy(update={"revision": 2})
        assert await store.commit([make_save(unseen)]) == [None]
        assert await get_record(store) == record

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
        assert await store.get("a-job") == as_stored(insert)
        assert await store.page(Query(filter=JobFilter(tags=["new"]))) == []
        assert await store.dependents("new") == []

    async def test_a_save_leaves_launch_and_attempt_where_it_names_none(
        self, store: JobStore
    ) -> None:
        insert = make_insert(make_record())
        await store.commit([insert])
        save = make_save(insert.record, status=Status.stopping)
        await store.commit([save])
        assert await store.get("a-job") == as_stored(insert, record=save.record)

    async def test_a_save_can_replace_the_attempt_alone(self, store: JobStore) -> None:
        insert = make_insert(make_record(status="starting"))
        await store.commit([insert])
        started = dataclasses.replace(insert.attempt, pid=4711, pipes=(3, 4))
        save = make_save(insert.record, status=Status.running, attempt=started)
        await store.commit([save])
        assert await store.get("a-job") == as_stored(insert, record=save.record, attempt=started)

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
        assert await store.get("a-job") == as_stored(insert, record=save.record)
        assert await store.page(Query(filter=JobFilter(tags=["red"]))) == [save.record]

    async def test_a_respecified_job_can_lose_what_it_had(self, store: JobStore) -> None:
        record = await put(store, make_record(depends_on=["a"], metadata={"a": 1}, result=[1]))
        empty: dict[str, Any] = {"depends_on": [], "metadata": {}, "result": None}
        save = make_save(record, is_respecified=True, **empty)
        await store.commit([save])
        assert await get_record(store) == save.record

    async def test_a_refused_respecification_changes_nothing(self, store: JobStore) -> None:
        insert = make_insert(make_record(depends_on=["a"], metadata={"a": 1}))
        await store.commit([insert])
        stale = insert.record.model_copy(update={"revision": 7})
        save = make_save(stale, is_respecified=True, depends_on=["b"], metadata={"b": 2})
        assert await store.commit([save]) == [None]
        assert await store.get("a-job") == as_stored(insert)
        assert await store.dependents("a") == ["a-job"]
        assert await store.dependents("b") == []

    async def test_a_change_writes_all_that_an_attempt_came_to(self, store: JobStore) -> None:
        record = await put(store, make_record())
        full = full_record()
        names = (
            *("status", "started_at", "finished_at", "last_pid", "exit_code", "evidence", "error"),
            *("reached", "progress", "cpu_seconds", "peak_memory_bytes"),
        )
        save = make_save(record, **{name: getattr(full, name) for name in names})
        await store.commit([save])
        assert await get_record(store) == save.record

    async def test_what_happens_after_a_respecification_leaves_it(self, store: JobStore) -> None:
        record = await put(store, make_record(depends_on=["a"], payload=[1], run_at=NOON))
        respecified = make_save(record, is_respecified=True, depends_on=[], metadata={"a": 1})
        await store.commit([respecified])
        save = make_save(respecified.record, status=Status.finished, progress=1.0)
        await store.commit([save])
        assert await get_record(store) == save.record

    # Saves of two steps.

    async def test_of_two_steps_the_second_is_kept_and_both_are_told(self, store: JobStore) -> None:
        insert = make_insert(make_record(status="starting"))
        await store.commit([insert])
        started = dataclasses.replace(insert.attempt, pid=4711, pipes=(3, 4))
        later = NOON + timedelta(seconds=1)
        one = make_save(insert.record, status=Status.running, attempt=started)
        other = make_save(
            one.record, status=Status.failed, exit_code=3, last_update=later, why="exit code 3"
        )
        assert await store.commit([as_one(one, other)]) == [3]
        assert await store.last_seq() == 3
        assert await store.get("a-job") == as_stored(insert, record=other.record, attempt=started)
        told = [(e.seq, e.previous, e.status, e.at, e.why) for e in await store.history()][1:]
        assert told == [
            (2, Status.starting, Status.running, NOON, None),
            (3, Status.running, Status.failed, later, "exit code 3"),
        ]
        assert await store.history(job_id="a-job") == await store.history()
        assert await get_counts(store, JobFilter()) == {Status.failed: 1}

    async def test_two_steps_made_from_an_old_record_are_both_refused(
        self, store: JobStore
    ) -> None:
        record = await put(store, make_record(status="starting"))
        one = make_save(record, status=Status.running)
        both = as_one(one, make_save(one.record, status=Status.finished))
        for newer in (make_save(record, error="newer"), make_save(one.record, error="newest")):
            await store.commit([newer])
            assert await store.commit([both]) == [None]
            assert await get_record(store) == newer.record
        assert await store.last_seq() == 3

    async def test_two_steps_among_other_writes_are_one_of_them(self, store: JobStore) -> None:
        a, b, c = [await put(store, make_record(i, status="starting")) for i in "abc"]
        saves = {record.self_id: make_save(record, status=Status.running) for record in (a, b, c)}
        ends = {i: make_save(save.record, status=Status.finished) for i, save in saves.items()}
        writes: list[Write] = [
            as_one(saves["a"], ends["a"]),
            make_save(make_record("unknown")),
            saves["b"],
            as_one(saves["c"], ends["c"]),
            make_insert(make_record("d")),
        ]
        assert await store.commit(writes) == [5, None, 6, 8, 9]
        told = [(e.job_id, e.status) for e in await store.history(after=3)]
        running, finished = Status.running, Status.finished
        expected = [("a", running), ("a", finished), ("b", running), ("c", running)]
        assert told == [*expected, ("c", finished), ("d", running)]
        assert [e.seq for e in await store.history(job_id="c")] == [3, 7, 8]
        records = [ends["a"].record, saves["b"].record, ends["c"].record]
        assert [await get_record(store, i) for i in "abc"] == records

    async def test_what_follows_two_steps_in_a_batch_sees_both(self, store: JobStore) -> None:
        record = await put(store, make_record(status="starting"))
        one = make_save(record, status=Status.running)
        end = make_save(one.record, status=Status.finished)
        again = make_save(end.record, launch=make_launch(), tags=["again"])
        assert await store.commit([as_one(one, end), end, again]) == [3, None, 4]
        assert await get_record(store) == again.record
        assert [e.seq for e in await store.history(job_id="a-job")] == [1, 2, 3, 4]
        assert await store.commit([Delete(record=again.record)]) == [0]
        assert await store.history() == []

    async def test_two_steps_of_which_one_respecifies_do_so(self, store: JobStore) -> None:
        record = await put(store, make_record(status="running", depends_on=["a"]))
        one = make_save(record, is_respecified=True, depends_on=["b"], metadata={"a": 1})
        end = make_save(one.record, status=Status.finished)
        await store.commit([as_one(one, end)])
        assert await get_record(store) == end.record
        assert await store.dependents("a") == []
        assert await store.dependents("b") == ["a-job"]

    async def test_many_jobs_may_have_two_steps_in_a_batch(self, store: JobStore) -> None:
        inserts = [make_insert(make_record(f"{n:03}", status="starting")) for n in range(300)]
        await store.commit(inserts)
        saves = [make_save(insert.record, status=Status.running) for insert in inserts]
        both = [as_one(save, make_save(save.record, status=Status.finished)) for save in saves]
        assert await store.commit(both) == list(range(302, 902, 2))
        assert await get_counts(store, JobFilter()) == {Status.finished: 300}
        assert [e.status for e in await store.history(job_id="299")][1:] == [
            Status.running,
            Status.finished,
        ]

    # Who depends on whom.

    async def test_dependents_are_those_whose_record_says_so(self, store: JobStore) -> None:
        for job_id, depends_on in {"c": ["x", "y"], "a": ["x"], "b": ["y"], "d": []}.items():
            await put(store, make_record(job_id, depends_on=depends_on))
        assert await store.dependents("x") == ["a", "c"]
        assert await store.dependents("y") == ["b", "c"]
        for nobody in ("a", "unknown", "", "' OR 1=1 --", "\udcff"):
            assert await store.dependents(nobody) == []

    async def test_dependents_come_in_the_order_of_their_ids(self, store: JobStore) -> None:
        ids = ["b", "B", "ü", "a-10", "a-9", "🚀", "'%"]
        for job_id in ids:
            await put(store, make_record(job_id, depends_on=["it's"]))
        assert await store.dependents("it's") == sorted(ids)

    async def test_a_dependency_that_is_named_twice_is_one(self, store: JobStore) -> None:
        record = await put(store, make_record(depends_on=["a", "a"]))
        assert await get_record(store) == record
        assert await store.dependents("a") == ["a-job"]

    async def test_dependents_follow_what_is_respecified(self, store: JobStore) -> None:
        record = await put(store, make_record(depends_on=["a", "b"]))
        other = await put(store, make_record("other", depends_on=["a"]))
        await store.commit([make_save(record, is_respecified=True, depends_on=["b", "c"])])
        found = [await store.dependents(job_id) for job_id in "abc"]
        assert found == [["other"], ["a-job"], ["a-job"]]
        await store.commit([make_save(other, is_respecified=True, depends_on=[])])
        assert await store.dependents("a") == []

    async def test_dependents_follow_a_renewal(self, store: JobStore) -> None:
        record = await put(store, make_record(depends_on=["a", "b"]))
        await store.commit([make_save(record, launch=make_launch(), depends_on=["b", "c"])])
        found = [await store.dependents(job_id) for job_id in "abc"]
        assert found == [[], ["a-job"], ["a-job"]]

    async def test_an_end_leaves_the_dependencies_of_a_job(self, store: JobStore) -> None:
        record = await put(store, make_record(depends_on=["a"]))
        save = make_save(record, status=Status.finished)
        await store.commit([save])
        assert await store.dependents("a") == ["a-job"]
        assert await get_record(store) == save.record

    async def test_a_deleted_job_depends_on_nothing(self, store: JobStore) -> None:
        record = await put(store, make_record(depends_on=["a"]))
        await put(store, make_record("other", depends_on=["a"]))
        await store.commit([Delete(record=record)])
        assert await store.dependents("a") == ["other"]
        again = make_insert(make_record(depends_on=["b"]))
        await store.commit([again])
        assert await store.dependents("a") == ["other"]
        assert await store.dependents("b") == ["a-job"]

    async def test_a_job_may_depend_on_what_is_not_there(self, store: JobStore) -> None:
        needed = await put(store, make_record("needed"))
        await put(store, make_record(depends_on=["needed", "unknown"]))
        await store.commit([Delete(record=needed)])
        assert await store.dependents("needed") == await store.dependents("unknown") == ["a-job"]

    # Renewals.

    async def test_a_renewal_replaces_the_whole_job(self, store: JobStore) -> None:
        record = await put(store, full_record())
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
        record = await put(store, make_record(workflow_id="w1", **old))
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
        other = await put(store, make_record("other", tags=["red"]))
        record = await put(store, make_record(tags=["red"]))
        assert await store.commit([Delete(record=record)]) == [0]
        assert await store.get("a-job") is None
        assert await store.page(Query(filter=JobFilter(tags=["red"]))) == [other]
        assert {event.job_id for event in await store.history()} == {"other"}

    async def test_a_delete_made_from_an_old_record_is_refused(self, store: JobStore) -> None:
        record = await put(store, make_record(tags=["red"]))
        save = make_save(record, status=Status.finished)
        await store.commit([save])
        assert await store.commit([Delete(record=record)]) == [None]
        assert await store.page(Query(filter=JobFilter(tags=["red"]))) == [save.record]
        assert len(await store.history(job_id="a-job")) == 2

    async def test_a_delete_of_an_unknown_id_is_refused(self, store: JobStore) -> None:
        assert await store.commit([Delete(record=make_record("unknown"))]) == [None]

    async def test_an_id_used_anew_after_a_delete_is_a_new_job(self, store: JobStore) -> None:
        record = await put(store, make_record(tags=["old"], name="old"))
        await store.commit([Delete(record=record)])
        insert = make_insert(make_record(), why="again")
        (seq,) = await store.commit([insert])
        assert await store.get("a-job") == as_stored(insert)
        assert [(e.seq, e.why) for e in await store.history()] == [(seq, "again")]
        assert await store.page(Query(filter=JobFilter(tags=["old"]))) == []
