"""What a store tells of what happened."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import pytest

from anodejobs.records import AttemptRecord, JobEvent, JobRecord, Status
from anodejobs.stores.base import Delete, JobStore, Write
from anodejobs.testing.made import NOON, make_insert, make_record, make_save
from anodejobs.testing.suite import StoreSuite, put


class HistoryContract(StoreSuite):
    """What ``history`` and ``last_seq`` promise."""

    async def test_the_history_tells_each_change_of_a_status(self, store: JobStore) -> None:
        record = await put(store, make_record(status="starting", attempt=3))
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
        record = await put(store, make_record(attempt=1))
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
        record = await put(store, make_record(attempt=7))
        ended = AttemptRecord(attempt=7, status=Status.lost)
        await store.commit([make_save(_next_attempt(record), status=Status.pending, ended=ended)])
        assert (await store.history(job_id="a-job", after=1))[0].ended == ended

    async def test_refused_writes_are_not_in_the_history(self, store: JobStore) -> None:
        record = await put(store, make_record())
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

    async def test_the_last_events_of_a_job_are_given(self, store: JobStore) -> None:
        await _tell(store, ["a", "b", "a", "c", "b", "a"])
        for job_id in ("a", "b", "unknown"):
            events = await store.history(job_id=job_id)
            for most in (1, 2, 3, 100, 10**30):
                assert await store.latest(job_id, most) == events[-most:]

    @pytest.mark.parametrize("after", [1000, 2**63 - 1, 2**63, 10**30])
    async def test_there_is_no_history_after_a_seq_to_come(
        self, store: JobStore, after: int
    ) -> None:
        await put(store, make_record())
        assert await store.history(after=after) == []

    async def test_the_last_seq_outlives_its_job(self, store: JobStore) -> None:
        record = await put(store, make_record())
        await store.commit([Delete(record=record)])
        assert await store.history() == []
        assert await store.last_seq() == 1


def _next_attempt(record: JobRecord) -> JobRecord:
    return record.model_copy(update={"attempt": record.attempt + 1})


async def _tell(store: JobStore, job_ids: Iterable[str]) -> None:
    """Commit one write for each id, in their order."""
    newest: dict[str, JobRecord] = {}
    for job_id in job_ids:
        known = newest.get(job_id)
        write = make_save(known) if known else make_insert(make_record(job_id))
        newest[job_id] = write.record
        await store.commit([write])
