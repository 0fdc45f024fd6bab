"""JobDB over a store: batches, rivals, and stores that fail."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import shlex
import signal
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import pytest

from anodejobs import (
    AnodeJobsError,
    ExecutorError,
    InvalidTransition,
    JobEvent,
    JobFilter,
    JobNotFound,
    JobRecord,
    Jobs,
    MemoryJobStore,
    SqliteJobStore,
    Status,
    StoreError,
)
from anodejobs.events import (
    Admitted,
    Attempt,
    Event,
    Exited,
    Lost,
    Paused,
    Readied,
    Relinked,
    Resumed,
    Started,
    StartFailed,
    StopRequested,
    utc_now,
)
from anodejobs.executors import supervisors, tree
from anodejobs.executors.base import Tell
from anodejobs.executors.processes import Processes
from anodejobs.jobdb import JobDB
from anodejobs.records import ALIVE
from anodejobs.stores.base import JobStore, Query, Stored, Write, changes_of, steps_of
from anodejobs.testing import make_attempt, make_launch, make_record

LIMIT_S = 60.0


def until(path: Path) -> str:
    """Return the shell command that holds a job up until the file is there."""
    return f"until [ -e {shlex.quote(str(path))} ]; do sleep 0.02; done"


class FaultyStore(MemoryJobStore):
    """A store that fails as it is told, and notes the size of each batch that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.failures = 0
        """How many of the next commits fail."""
        self.keeps_what_fails = False
        """Whether a commit that fails was applied all the same: the answer was lost."""
        self.error: Exception = StoreError("the disk is full")
        self.failing_status: Status | None = None
        """Commits to this status fail, as long as it is set."""
        self.failing_reads = 0
        """How many of the next reads fail."""
        self.has_failed_reading = asyncio.Event()
        self.began = asyncio.Event()
        self.failed = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.tell: Callable[[], None] = lambda: None

    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        self.tell = on_foreign_commit

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        self.began.set()
        await asyncio.sleep(0)
        await self.may_go_on.wait()
        changes = chain.from_iterable(map(changes_of, writes))
        statuses = [step.record.status for change in changes for step in steps_of(change)]
        if self.failures or self.failing_status in statuses:
            self.failures = max(0, self.failures - 1)
            if self.keeps_what_fails:
                await super().commit(writes)
            self.failed.set()
            raise self.error
        self.batches.append(len(writes))
        return await super().commit(writes)

    async def history(
        self, *, job_id: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[JobEvent]:
        self._fail_reading()
        return await super().history(job_id=job_id, after=after, limit=limit)

    async def get(self, job_id: str) -> Stored | None:
        self._fail_reading()
        return await super().get(job_id)

    async def page(self, query: Query) -> list[JobRecord]:
        self._fail_reading()
        return await super().page(query)

    def _fail_reading(self) -> None:
        if self.failing_reads:
            self.failing_reads -= 1
            self.has_failed_reading.set()
            raise StoreError("the disk cannot be read")


class CountingSqliteStore(SqliteJobStore):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[int] = []

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        self.batches.append(len(writes))
        return await super().commit(writes)


@asynccontextmanager
async def served(store: JobStore) -> AsyncIterator[JobDB]:
    """A JobDB whose writes are made."""
    jobdb = JobDB(store)
    await jobdb.open()
    tasks = [asyncio.create_task(serve()) for serve in (jobdb.serve, jobdb.serve_foreign)]
    try:
        yield jobdb
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await jobdb.close()
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def create(jobdb: JobDB, job_id: str = "a-job", status: str = "starting") -> Attempt:
    """Put a job in, and return its attempt."""
    attempt = make_attempt(pid=1)
    record = make_record(job_id, status=status)
    assert await jobdb.create(record, make_launch(job_id), attempt, replace=None) == record
    return attempt


def exited(exit_code: int = 0) -> Exited:
    return Exited(exit_code=exit_code, evidence="observed")


async def fates(*calls: Awaitable[object]) -> list[object]:
    """Return what each of the calls returns or raises, all made at once."""
    async with asyncio.timeout(LIMIT_S):
        return await asyncio.gather(*calls, return_exceptions=True)


# Batches.


@pytest.mark.parametrize("kind", [FaultyStore, CountingSqliteStore])
async def test_writes_at_once_share_a_commit(
    tmp_path: Path, kind: type[FaultyStore] | type[CountingSqliteStore]
) -> None:
    store = FaultyStore() if kind is FaultyStore else CountingSqliteStore(tmp_path / "jobs.db")
    async with served(store) as jobdb:
        names = [f"job-{n}" for n in range(64)]
        attempts = await asyncio.gather(*(create(jobdb, name) for name in names))
        started = [Started(attempt=attempt) for attempt in attempts]
        await asyncio.gather(*(jobdb.apply(n, e) for n, e in zip(names, started, strict=True)))
        records = await asyncio.gather(*(jobdb.apply(name, exited()) for name in names))
    assert {record.status for record in records} == {Status.finished}
    assert sum(store.batches) == 3 * 64
    assert len(store.batches) <= 3 * 4


async def test_writes_that_come_during_a_commit_make_up_the_next() -> None:
    store = FaultyStore()
    async with served(store) as jobdb:
        store.may_go_on.clear()
        writes = [asyncio.create_task(create(jobdb, "first"))]
        await store.began.wait()
        writes += [asyncio.create_task(create(jobdb, f"job-{n}")) for n in range(20)]
        await asyncio.sleep(0)
        store.may_go_on.set()
        await asyncio.gather(*writes)
    assert store.batches == [1, 20]


async def test_a_record_is_told_only_when_it_is_kept() -> None:
    store = FaultyStore()
    async with served(store) as jobdb:
        attempt = await create(jobdb)
        waiting = asyncio.create_task(jobdb.wait_for("a-job", frozenset({Status.running})))
        await asyncio.sleep(0)
        await jobdb.apply("a-job", Started(attempt=attempt))
        kept = await store.get("a-job")
        assert kept is not None
        assert await waiting == kept.record


async def test_a_cancelled_apply_leaves_a_jobdb_that_works() -> None:
    async with served(FaultyStore()) as jobdb:
        attempt = await create(jobdb)
        for steps in range(6):
            applying = asyncio.create_task(jobdb.apply("a-job", Started(attempt=attempt)))
            for _ in range(steps):
                await asyncio.sleep(0)
            applying.cancel()
            await asyncio.wait([applying])
        stored = await jobdb.stored("a-job")
        if stored.record.status is Status.starting:
            await jobdb.apply("a-job", Started(attempt=attempt))
        assert (await jobdb.apply("a-job", exited(3))).exit_code == 3
        assert [event.status for event in await jobdb.history("a-job")] == [
            Status.starting,
            Status.running,
            Status.failed,
        ]


# Events that fit, and those that do not.


async def test_an_event_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    async with served(MemoryJobStore()) as jobdb:
        await create(jobdb, status="finished")
        with pytest.raises(InvalidTransition):
            await jobdb.apply("a-job", Paused())
        record = await jobdb.get("a-job")
        assert record is not None and (record.status, record.revision) == (Status.finished, 1)


async def test_an_event_that_means_nothing_any_more_is_not_written() -> None:
    async with served(MemoryJobStore()) as jobdb:
        await create(jobdb, status="finished")
        record = await jobdb.apply("a-job", StopRequested())
        assert (record.status, record.revision) == (Status.finished, 1)
        assert len(await jobdb.history("a-job")) == 1


async def test_an_event_of_a_former_attempt_changes_nothing() -> None:
    async with served(MemoryJobStore()) as jobdb:
        former = await create(jobdb, status="failed")
        old = await jobdb.get("a-job")
        assert old is not None
        new = make_record("a-job", status="running")
        await jobdb.create(new, make_launch("a-job"), make_attempt(), replace=old)
        record = await jobdb.apply("a-job", exited(9), token=former.token)
        assert (record.status, record.exit_code) == (Status.running, None)
        assert await jobdb.get("a-job") == record


async def test_an_event_of_an_unknown_job_is_not_found() -> None:
    async with served(MemoryJobStore()) as jobdb:
        with pytest.raises(JobNotFound):
            await jobdb.apply("nobody", exited())


async def test_a_second_record_for_an_id_is_refused() -> None:
    async with served(MemoryJobStore()) as jobdb:
        await create(jobdb, status="running")
        second = make_record("a-job", name="second")
        answer = await jobdb.create(second, make_launch("a-job"), make_attempt(), replace=None)
        assert answer is None
        assert await jobdb.get("a-job") == make_record("a-job")


async def test_a_deletion_is_of_the_record_that_was_looked_at() -> None:
    async with served(MemoryJobStore()) as jobdb:
        await create(jobdb, status="running")
        old = await jobdb.get("a-job")
        assert old is not None
        record = await jobdb.apply("a-job", exited())
        assert await jobdb.delete_all([old]) == 0
        assert await jobdb.delete_all([record]) == 1
        assert await jobdb.delete_all([record]) == 0
        assert await jobdb.get("a-job") is None


# Two events in one write.


async def test_two_events_are_one_write_and_both_are_told() -> None:
    store = FaultyStore()
    async with served(store) as jobdb, asyncio.timeout(LIMIT_S):
        attempt = await create(jobdb)
        told = telling(jobdb)
        running = asyncio.create_task(jobdb.wait_for("a-job", frozenset({Status.running})))
        end = asyncio.create_task(jobdb.wait_for("a-job"))
        await asyncio.sleep(0)
        started = await jobdb.apply_both(
            "a-job", Started(attempt=attempt), exited(3), token=attempt.token
        )
        assert started is not None and started.status is Status.running
        assert await running == started
        assert (await end).exit_code == 3
        assert told == [started, await end]
        assert store.batches == [1, 1]
        async with aclosing(jobdb.news.events(None, 0, None)) as events:
            statuses = [(await anext(events)).status for _ in range(3)]
        assert statuses == [Status.starting, Status.running, Status.failed]
        stored = await jobdb.stored("a-job")
        assert (stored.record, stored.attempt) == (await end, attempt)


async def test_two_events_of_which_a_retry_comes_leave_the_job_to_its_next_attempt() -> None:
    async with served(MemoryJobStore()) as jobdb:
        attempt = await create(jobdb)
        again = dataclasses.replace(exited(3), retry_at=utc_now())
        await jobdb.apply_both("a-job", Started(attempt=attempt), again, token=attempt.token)
        stored = await jobdb.stored("a-job")
        assert stored.record.status is Status.pending
        assert stored.attempt.token != attempt.token
        (ended,) = [e.ended for e in await jobdb.history("a-job") if e.ended is not None]
        assert (ended.exit_code, ended.pid) == (3, attempt.pid)


async def test_two_events_that_do_not_fit_what_is_at_hand_are_not_written() -> None:
    async with served(MemoryJobStore()) as jobdb:
        attempt = await create(jobdb)
        started = Started(attempt=attempt)

        async def is_refused(first: Event, second: Event, token: str) -> bool:
            return await jobdb.apply_both("a-job", first, second, token=token) is None

        assert await is_refused(started, exited(), make_attempt().token)
        assert await is_refused(started, Readied(), attempt.token)
        assert await is_refused(Paused(), exited(), attempt.token)
        assert len(await jobdb.history("a-job")) == 1
        await jobdb.apply("a-job", started)
        assert await is_refused(started, exited(), attempt.token)
        await jobdb.apply("a-job", exited())
        assert await is_refused(started, exited(), attempt.token)
        assert len(await jobdb.history("a-job")) == 3


async def test_two_events_are_not_written_where_another_process_was_quicker(
    tmp_path: Path,
) -> None:
    async with rivals("sqlite", tmp_path) as (one, other):
        attempt = await create(one)
        started = Started(attempt=attempt)
        record = await other.apply("a-job", started)
        answer = await one.apply_both("a-job", started, exited(), token=attempt.token)
        assert answer is None
        assert await one.get("a-job") == record


# Several records at once.


def several(*job_ids: str, status: str = "pending") -> list[Stored]:
    return [
        Stored(
            record=make_record(job_id, status=status),
            launch=make_launch(job_id),
            attempt=make_attempt(),
        )
        for job_id in job_ids
    ]


async def test_all_records_are_made_and_told_in_order() -> None:
    async with served(MemoryJobStore()) as jobdb:
        told = telling(jobdb)
        jobs = several("a", "b", "c")
        assert await jobdb.create_all(jobs)
        assert [await jobdb.stored(job.record.self_id) for job in jobs] == jobs
        assert told == [job.record for job in jobs]
        async with aclosing(jobdb.news.events(None, 0, None)) as events:
            seen = [await anext(events) for _ in jobs]
    assert [(event.seq, event.job_id) for event in seen] == [(1, "a"), (2, "b"), (3, "c")]


async def test_no_record_is_made_where_one_of_the_ids_is_taken() -> None:
    async with served(MemoryJobStore()) as jobdb:
        await create(jobdb, "b", status="running")
        told = telling(jobdb)
        assert not await jobdb.create_all(several("a", "b", "c"))
        assert [await jobdb.get(job_id) for job_id in "ac"] == [None, None]
        assert told == []


async def test_records_made_at_once_share_a_commit_with_other_writes() -> None:
    store = FaultyStore()
    async with served(store) as jobdb:
        attempt = await create(jobdb)
        made, record = await asyncio.gather(
            jobdb.create_all(several("a", "b")), jobdb.apply("a-job", Started(attempt=attempt))
        )
        assert made and record.status is Status.running
        assert store.batches == [1, 2]
        assert [event.seq for event in await jobdb.history("a-job")] == [1, 4]


async def test_records_that_could_not_be_kept_are_not_made() -> None:
    store = FaultyStore()
    async with served(store) as jobdb:
        told = telling(jobdb)
        store.failures = 1
        with pytest.raises(StoreError, match="the disk is full"):
            await jobdb.create_all(several("a", "b"))
        assert told == []
        assert await jobdb.create_all(several("a", "b"))


# Attempts that others follow, and jobs that wait.


async def test_an_attempt_that_another_follows_is_in_the_history() -> None:
    async with served(MemoryJobStore()) as jobdb:
        attempt = await create(jobdb, status="running")
        again = dataclasses.replace(exited(3), retry_at=utc_now())
        record = await jobdb.apply("a-job", again, token=attempt.token)
        assert (record.status, record.attempt) == (Status.pending, 2)
        event = (await jobdb.history("a-job"))[-1]
        assert event.ended is not None
        assert (event.attempt, event.status) == (1, Status.pending)
        assert (event.ended.attempt, event.ended.status) == (1, Status.failed)
        assert (event.ended.exit_code, event.ended.error) == (3, "exit code 3")


async def test_what_is_heard_of_an_ended_attempt_is_nothing_to_the_next() -> None:
    async with served(MemoryJobStore()) as jobdb:
        first = await create(jobdb, status="running")
        again = dataclasses.replace(exited(3), retry_at=utc_now())
        await jobdb.apply("a-job", again, token=first.token)
        waiting = await jobdb.apply("a-job", Lost(error="late"), token=first.token)
        assert (waiting.status, waiting.attempt) == (Status.pending, 2)
        await jobdb.apply("a-job", Readied())
        second = make_attempt()
        await jobdb.apply("a-job", Admitted(attempt=second))
        record = await jobdb.apply("a-job", Lost(error="later"), token=first.token)
        assert record.status is Status.starting
        assert (await jobdb.stored("a-job")).attempt == second


async def test_relinking_is_seen_by_those_who_ask_for_dependents() -> None:
    async with served(MemoryJobStore()) as jobdb:
        assert await jobdb.create_all(several("a"))
        record = await jobdb.apply("a", Relinked(depends_on=("b", "c")))
        assert record.depends_on == ["b", "c"]
        assert await jobdb.dependents("c") == ["a"]


async def test_what_is_under_way_has_an_attempt_that_has_not_ended() -> None:
    async with served(MemoryJobStore()) as jobdb:
        for status in Status:
            await create(jobdb, status.value, status)
        under_way = await jobdb.under_way()
    assert {job.job_id for job in under_way} == {job.status for job in under_way} == ALIVE


# Who is told of records.


def telling(jobdb: JobDB) -> list[JobRecord]:
    """Return the list to which every record that the JobDB tells of is added."""
    told: list[JobRecord] = []
    jobdb.on_record = told.append
    return told


async def test_each_record_that_is_written_is_told_once_it_is_kept() -> None:
    store = FaultyStore()
    async with served(store) as jobdb:
        told = telling(jobdb)
        attempt = await create(jobdb)
        store.failures = 1
        with pytest.raises(StoreError):
            await jobdb.apply("a-job", Started(attempt=attempt))
        started = await jobdb.apply("a-job", Started(attempt=attempt))
        ended = await jobdb.apply("a-job", exited())
    assert told == [make_record("a-job", status="starting"), started, ended]


@pytest.mark.parametrize("second", [None, {"b": 2}])
async def test_the_result_on_record_is_that_of_the_last_attempt(
    tmp_path: Path, second: object
) -> None:
    async with served(SqliteJobStore(tmp_path / "jobs.db")) as jobdb:
        await create(jobdb, status="running")
        first = dataclasses.replace(exited(3), result={"a": 1}, retry_at=utc_now())
        assert (await jobdb.apply("a-job", first)).result == {"a": 1}
        await jobdb.apply("a-job", Readied())
        attempt = make_attempt(pid=1)
        await jobdb.apply("a-job", Admitted(attempt=attempt))
        await jobdb.apply("a-job", Started(attempt=attempt))
        record = await jobdb.apply("a-job", dataclasses.replace(exited(), result=second))
        assert record.result == second
        assert await jobdb.page(Query(filter=JobFilter())) == [record]


async def test_a_loss_keeps_what_it_says_in_the_metadata(tmp_path: Path) -> None:
    async with served(SqliteJobStore(tmp_path / "jobs.db")) as jobdb:
        await create(jobdb, status="running")
        record = await jobdb.apply("a-job", Lost(error="it is gone"))
        assert await jobdb.get("a-job") == record
        assert record.metadata.keys() == {"recovery_history"}


async def test_a_deletion_is_told() -> None:
    async with served(MemoryJobStore()) as jobdb:
        told: list[str] = []
        jobdb.on_deleted = told.append
        await create(jobdb, status="finished")
        await jobdb.delete_all([make_record("a-job", status="finished")] * 2)
    assert told == ["a-job"]


async def test_what_another_process_writes_is_told_to_its_newest_record(tmp_path: Path) -> None:
    async with rivals("sqlite", tmp_path) as (one, other), asyncio.timeout(LIMIT_S):
        await create(one, "mine", "running")
        told = telling(one)
        heeded: list[int] = []
        one.on_foreign.append(lambda: heeded.append(len(told)))
        await create(other, "theirs", "running")
        await one.wait_for("theirs", frozenset({Status.running}))
        ended = await other.apply("theirs", exited(3))
        async with aclosing(one.news.events(None, 0, None)) as events:
            while (await anext(events)).seq < 3:
                pass
    assert told[-1] == ended
    assert [record.self_id for record in told].count("mine") == 0
    revisions = [record.revision for record in told]
    # What was overtaken before it was read need not be told; what was read early is told again.
    assert revisions == sorted(revisions)
    assert heeded


class SlowPages(MemoryJobStore):
    """A store whose pages are read at once, and given when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.was_read = asyncio.Event()
        self.may_give = asyncio.Event()
        self.tell: Callable[[], None] = lambda: None

    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        self.tell = on_foreign_commit

    async def page(self, query: Query) -> list[JobRecord]:
        page = await super().page(query)
        self.was_read.set()
        await self.may_give.wait()
        return page


@asynccontextmanager
async def overtaken(
    job_ids: Sequence[str], *, ended: Sequence[str] = ()
) -> AsyncIterator[tuple[JobDB, list[JobRecord]]]:
    """A JobDB that has read what another process wrote of its jobs, and not told it yet."""
    store = SlowPages()
    async with served(store) as jobdb, asyncio.timeout(LIMIT_S):
        told = telling(jobdb)
        async with served(store) as rival:
            for job_id in job_ids:
                await create(rival, job_id, "running")
            for job_id in ended:
                await rival.apply(job_id, exited())
            store.tell = jobdb._has_foreign.set
        store.tell()
        await store.was_read.wait()
        yield jobdb, told
        store.may_give.set()
        await create(jobdb, "last")
        async with aclosing(jobdb.news.events("last", 0, None)) as events:
            await anext(events)


def revisions_of(job_id: str, told: Sequence[JobRecord]) -> list[int]:
    return [record.revision for record in told if record.self_id == job_id]


async def test_an_older_record_of_another_process_is_not_told_after_a_newer_one() -> None:
    async with overtaken("ab") as (jobdb, told):
        ended = await jobdb.apply("a", exited(3))
        assert told == [ended]
    # What is written here may be told again, once it is known what lies between.
    assert set(revisions_of("a", told)) == {2}
    assert revisions_of("b", told) == [1]


async def test_a_record_of_another_process_is_not_told_after_it_was_deleted_here() -> None:
    async with overtaken("ab", ended="a") as (jobdb, told):
        stored = await jobdb.on_disk("a")
        assert stored is not None and await jobdb.delete_all([stored.record])
        new = make_record("a", status="pending")
        assert await jobdb.create(new, make_launch("a"), make_attempt(), replace=None)
        assert told == [new]
    assert set(revisions_of("a", told)) == {1}, "its second revision was that of the old job"


async def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "anodejobs")
    async with served(MemoryJobStore()) as jobdb:
        await create(jobdb, status="running")
        await jobdb.apply("a-job", exited(3))
        await jobdb.apply("a-job", exited(3))
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "job a-job: new -> running",
        "job a-job: running -> failed",
    ]


# Rivals.


@asynccontextmanager
async def rivals(kind: str, folder: Path) -> AsyncIterator[tuple[JobDB, JobDB]]:
    """Two that write the same records."""
    shared = MemoryJobStore()
    stores = [shared if kind == "memory" else SqliteJobStore(folder / "jobs.db") for _ in "ab"]
    async with served(stores[0]) as one, served(stores[1]) as other:
        yield one, other


@pytest.fixture(params=["memory", "sqlite"])
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[JobDB, JobDB]]:
    async with rivals(request.param, tmp_path) as both:
        yield both


async def test_a_change_that_a_rival_made_first_is_built_upon(two: tuple[JobDB, JobDB]) -> None:
    one, other = two
    await create(one, status="running")
    await other.apply("a-job", StopRequested(error="too slow"))
    record = await one.apply("a-job", exited(-15))
    assert (record.status, record.error, record.revision) == (Status.failed, "too slow", 3)
    assert [event.status for event in await other.history("a-job")] == [
        Status.running,
        Status.stopping,
        Status.failed,
    ]


async def test_a_change_that_no_longer_fits_after_a_rivals_is_refused(
    two: tuple[JobDB, JobDB],
) -> None:
    one, other = two
    await create(one, status="running")
    ended = await other.apply("a-job", exited(3))
    with pytest.raises(InvalidTransition):
        await one.apply("a-job", Paused())
    assert await one.get("a-job") == ended


async def test_of_two_ends_one_is_kept_and_given_to_both(two: tuple[JobDB, JobDB]) -> None:
    await create(two[0], status="running")
    ends = await asyncio.gather(
        two[0].apply("a-job", exited(1)),
        two[1].apply("a-job", exited(2)),
    )
    assert ends[0] == ends[1]
    assert len(await two[0].history("a-job")) == 2


async def test_no_change_is_lost_between_rivals(two: tuple[JobDB, JobDB]) -> None:
    attempt = await create(two[0], status="running")
    for round_ in range(20):
        await asyncio.gather(
            two[round_ % 2].apply("a-job", StopRequested(), token=attempt.token),
            two[1 - round_ % 2].apply("a-job", StopRequested(), token=attempt.token),
            create(two[round_ % 2], f"job-{round_}", "running"),
        )
        await asyncio.gather(*(jobdb.apply(f"job-{round_}", exited(round_)) for jobdb in two))
    record = await two[1].apply("a-job", exited(-15), token=attempt.token)
    assert (record.status, record.revision) == (Status.stopped, 3)
    counts = [await jobdb.count(JobFilter()) for jobdb in two]
    assert counts == [{Status.stopped: 1, Status.finished: 1, Status.failed: 19}] * 2


@asynccontextmanager
async def behind(store: JobStore) -> AsyncIterator[JobDB]:
    """A JobDB that hears of nothing that others write."""
    jobdb = JobDB(store)
    await jobdb.open()
    server = asyncio.create_task(jobdb.serve())
    try:
        yield jobdb
    finally:
        server.cancel()
        await asyncio.wait([server])
        await jobdb.close()


async def test_an_end_is_recorded_by_who_has_not_heard_of_the_start(tmp_path: Path) -> None:
    stores = [SqliteJobStore(tmp_path / "jobs.db") for _ in "ab"]
    async with served(stores[0]) as one, behind(stores[1]) as other:
        await create(other, status="queued")
        attempt = make_attempt(pid=2)
        await one.apply("a-job", Admitted(attempt=attempt))
        await one.apply("a-job", Started(attempt=attempt))
        record = await other.apply("a-job", exited(3), token=attempt.token)
        assert (record.status, record.exit_code) == (Status.failed, 3)
        assert await one.get("a-job") == record


async def test_an_end_is_recorded_by_who_knows_an_earlier_attempt_only(tmp_path: Path) -> None:
    stores = [SqliteJobStore(tmp_path / "jobs.db") for _ in "ab"]
    async with served(stores[0]) as one, behind(stores[1]) as other:
        first = await create(other, status="running")
        again = dataclasses.replace(exited(1), retry_at=utc_now())
        await one.apply("a-job", again, token=first.token)
        await one.apply("a-job", Readied())
        attempt = make_attempt(pid=2)
        await one.apply("a-job", Admitted(attempt=attempt))
        await one.apply("a-job", Started(attempt=attempt))
        assert (await other.stored("a-job")).attempt == first
        assert (await other.stored("a-job", attempt.token)).record.attempt == 2
        record = await other.apply("a-job", exited(3), token=attempt.token)
        assert (record.status, record.exit_code, record.attempt) == (Status.failed, 3, 2)


async def test_an_end_is_recorded_by_who_has_heard_of_nothing_after_the_start(
    tmp_path: Path,
) -> None:
    stores = [SqliteJobStore(tmp_path / "jobs.db") for _ in "ab"]
    async with served(stores[0]) as one, behind(stores[1]) as other:
        attempt = await create(other, status="starting")
        await one.apply("a-job", Started(attempt=attempt))
        record = await other.apply("a-job", exited(3), token=attempt.token)
        assert (record.status, record.exit_code) == (Status.failed, 3)
        with pytest.raises(InvalidTransition):
            await other.apply("a-job", Paused())


async def test_what_changes_nothing_of_what_is_at_hand_may_change_what_is_on_disk(
    tmp_path: Path,
) -> None:
    stores = [SqliteJobStore(tmp_path / "jobs.db") for _ in "ab"]
    async with served(stores[0]) as one, behind(stores[1]) as other:
        await create(other, status="running")
        await one.apply("a-job", Paused())
        assert (await other.apply("a-job", Resumed())).status is Status.running
        assert [event.status for event in await one.history("a-job")] == [
            Status.running,
            Status.paused,
            Status.running,
        ]


async def test_a_run_that_another_process_has_begun_is_waited_for_with_others(
    tmp_path: Path,
) -> None:
    """Though nothing was heard of it yet, and of the run before it the end is at hand."""
    stores = [SqliteJobStore(tmp_path / "jobs.db") for _ in "ab"]
    async with served(stores[0]) as one, behind(stores[1]) as other:
        await create(other, status="running")
        ended = await other.apply("a-job", exited())
        again = make_record("a-job", status="running")
        assert await one.create(again, make_launch("a-job"), make_attempt(pid=2), replace=ended)
        with other.waits.wait_for_each(["a-job"]) as waiters:
            await other.look_for_each(waiters)
            assert not waiters[0].future.done()
            await one.apply("a-job", exited(3))
            await other._catch_up()
            assert (await waiters[0].future).exit_code == 3


@pytest.mark.parametrize("is_last", [True, False], ids=["last", "not last"])
async def test_a_wait_for_what_another_process_deletes_before_its_end_was_heard_of_is_over(
    tmp_path: Path, is_last: bool
) -> None:
    stores = [SqliteJobStore(tmp_path / "jobs.db") for _ in "ab"]
    async with served(stores[0]) as one, behind(stores[1]) as other:
        for name in ("a-job", "b-job"):
            await create(one, name, "running")
        await other._catch_up()
        waits = [asyncio.create_task(other.wait_for(name)) for name in ("a-job", "b-job")]
        while len(other.waits.awaited()) < 2:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0)
        await other.on_disk("b-job")  # they have looked before this
        await one.delete_all([await one.apply("a-job", exited())])
        if not is_last:
            await create(one, "c-job", "running")
        await other._catch_up()
        with pytest.raises(JobNotFound):
            await waits[0]
        assert other.news.cursor == await stores[0].last_seq()
        await one.apply("b-job", exited(3))
        await other._catch_up()
        assert (await waits[1]).exit_code == 3


@pytest.mark.parametrize("is_last", [True, False], ids=["last", "not last"])
async def test_what_another_process_deletes_before_its_end_was_heard_of_is_not_waited_for(
    tmp_path: Path, is_last: bool
) -> None:
    stores = [SqliteJobStore(tmp_path / "jobs.db") for _ in "ab"]
    async with served(stores[0]) as one, behind(stores[1]) as other:
        await create(other, status="running")
        await one.delete_all([await one.apply("a-job", exited())])
        if not is_last:
            await create(one, "c-job", "running")
        await other._catch_up()
        with pytest.raises(JobNotFound):
            await asyncio.wait_for(other.wait_for("a-job"), 10)
        assert await other.get("a-job") is None


async def test_a_batch_with_refused_writes_keeps_the_others(tmp_path: Path) -> None:
    async with rivals("sqlite", tmp_path) as (one, other):
        names = [f"job-{n}" for n in range(30)]
        await asyncio.gather(*(create(one, name, "running") for name in names))
        await asyncio.gather(*(other.apply(name, exited(7)) for name in names[::3]))
        records = await asyncio.gather(*(one.apply(name, exited(3)) for name in names))
    codes = [record.exit_code for record in records]
    assert codes == [7 if n % 3 == 0 else 3 for n in range(30)]


async def test_a_wait_is_rung_by_a_rival(tmp_path: Path) -> None:
    async with rivals("sqlite", tmp_path) as (one, other), asyncio.timeout(LIMIT_S):
        await create(one, status="running")
        waiting = asyncio.create_task(other.wait_for("a-job"))
        await other.history("a-job")
        await one.apply("a-job", exited(3))
        assert (await waiting).exit_code == 3


# Stores that fail.


async def test_a_failed_commit_is_told_to_all_who_wrote(tmp_path: Path) -> None:
    store = FaultyStore()
    async with served(store) as jobdb:
        await create(jobdb, "a", "running")
        await create(jobdb, "b", "running")
        store.failures = 1
        answers = await fates(jobdb.apply("a", exited()), jobdb.apply("b", exited()))
        assert [type(answer) for answer in answers] == [StoreError, StoreError]
        for job_id in "ab":
            record = await jobdb.get(job_id)
            assert record is not None and record.status is Status.running


async def test_writes_work_again_when_the_store_does() -> None:
    store = FaultyStore()
    async with served(store) as jobdb:
        await create(jobdb, status="running")
        store.failures = 2
        for _ in range(2):
            with pytest.raises(StoreError, match="the disk is full"):
                await jobdb.apply("a-job", exited(3))
        assert (await jobdb.apply("a-job", exited(3))).exit_code == 3


async def test_a_foreign_change_is_told_though_it_could_not_be_read_at_first() -> None:
    store = FaultyStore()
    async with served(store) as jobdb, asyncio.timeout(LIMIT_S):
        await create(jobdb, status="running")
        waiting = asyncio.create_task(jobdb.wait_for("a-job"))
        async with served(store) as rival:
            await rival.apply("a-job", exited(3))
        store.failing_reads = 1
        store.tell = jobdb._has_foreign.set
        store.tell()
        assert (await waiting).exit_code == 3
        await create(jobdb, "another")


async def test_failing_tells_the_cause_to_all_who_wait_or_come_later() -> None:
    cause = RuntimeError("a bug")
    async with served(MemoryJobStore()) as jobdb:
        await create(jobdb, status="running")
        waits = [asyncio.create_task(jobdb.wait_for("a-job")) for _ in range(3)]
        await asyncio.sleep(0)
        jobdb.fail(cause)
        late = (jobdb.wait_for("a-job"), jobdb.apply("a-job", exited()), jobdb.get("another"))
        answers = await fates(*waits, *late)
    assert all(isinstance(answer, StoreError) for answer in answers)
    assert all(answer.__cause__ is cause for answer in answers if isinstance(answer, StoreError))


# Jobs on a store that fails.


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore()


@pytest.fixture
async def jobs(tmp_path: Path, store: FaultyStore) -> AsyncIterator[Jobs]:
    """A Jobs whose store can be made to fail."""
    async with Jobs(db_path=tmp_path, store=store, stop_grace=1, executor="inline") as jobs:
        yield jobs


async def test_a_write_under_way_at_the_close_is_refused_as_closed(
    jobs: Jobs, store: FaultyStore
) -> None:
    await jobs.create("true", "a")
    store.began.clear()
    store.may_go_on.clear()
    starting = asyncio.create_task(jobs.start("a"))
    await store.began.wait()
    await jobs.close()
    with pytest.raises(ExecutorError, match="this Jobs was closed"):
        await starting


async def end_of(jobs: Jobs, job_id: str) -> JobRecord:
    """Wait for the end of the job, however often the wait is broken off."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await jobs.wait(job_id)
            except StoreError:
                continue


@pytest.mark.parametrize("failures", [1, 3])
async def test_an_exit_is_recorded_as_soon_as_the_store_is_back(
    jobs: Jobs, store: FaultyStore, tmp_path: Path, failures: int
) -> None:
    await jobs.run(f"{until(tmp_path / 'go')}; exit 3", "held")
    waiting = asyncio.create_task(jobs.wait("held"))
    await asyncio.sleep(0)
    store.failures = failures
    (tmp_path / "go").touch()
    with pytest.raises(StoreError, match="the disk is full"):
        await waiting
    record = await end_of(jobs, "held")
    assert (record.exit_code, record.status) == (3, Status.failed)
    assert len(await jobs.history("held")) == 3


async def test_an_exit_whose_answer_was_lost_still_ends_the_waits(
    jobs: Jobs, store: FaultyStore, tmp_path: Path
) -> None:
    await jobs.run(f"{until(tmp_path / 'go')}; exit 3", "held")
    store.failures, store.keeps_what_fails = 1, True
    (tmp_path / "go").touch()
    assert (await end_of(jobs, "held")).exit_code == 3
    assert len(await jobs.history("held")) == 3


async def test_a_store_that_fails_for_a_while_harms_no_job(
    jobs: Jobs, store: FaultyStore, tmp_path: Path
) -> None:
    for n in range(10):
        await jobs.run(f"{until(tmp_path / 'go')}; exit {n}", f"job-{n}")
    store.failures = 5
    (tmp_path / "go").touch()
    records = [await end_of(jobs, f"job-{n}") for n in range(10)]
    assert [record.exit_code for record in records] == list(range(10))


async def test_a_run_whose_beginning_cannot_be_recorded_is_not_begun(
    jobs: Jobs, store: FaultyStore, tmp_path: Path
) -> None:
    store.failures = 1
    with pytest.raises(StoreError, match="the disk is full"):
        await jobs.run(["touch", str(tmp_path / "ran")], "never")
    async with asyncio.timeout(LIMIT_S):
        assert await jobs.get_status("never") is None
        assert (await jobs.run("exit 3", "never")).status is Status.running
        assert (await jobs.wait("never")).exit_code == 3
    assert not (tmp_path / "ran").exists()


async def test_a_run_whose_beginning_is_on_record_though_it_could_not_be_recorded_is_over(
    jobs: Jobs, store: FaultyStore, tmp_path: Path
) -> None:
    store.failing_status, store.keeps_what_fails = Status.starting, True
    with pytest.raises(StoreError, match="the disk is full"):
        await jobs.run(["touch", str(tmp_path / "ran")], "never")
    store.failing_status = None
    record = await end_of(jobs, "never")
    assert record.status is Status.failed_start
    assert record.error == "its start could not be recorded: the disk is full"
    assert (await jobs.run("true", "never")).status is Status.running
    assert not (tmp_path / "ran").exists()


async def test_a_run_that_is_over_as_its_beginning_could_not_be_recorded_is_begun_by_nobody(
    jobs: Jobs, store: FaultyStore, tmp_path: Path
) -> None:
    store.failing_status, store.keeps_what_fails = Status.starting, True
    with pytest.raises(StoreError, match="the disk is full"):
        await jobs.run(["touch", str(tmp_path / "ran")], "never")
    store.failing_status, store.keeps_what_fails = Status.failed_start, False
    store.failed.clear()
    await store.failed.wait()
    await (await jobs._root.open()).reconciler.reconcile()
    store.failing_status = None
    assert (await end_of(jobs, "never")).status is Status.failed_start
    assert not (tmp_path / "ran").exists()


async def test_a_run_that_is_undone_is_begun_by_nobody_until_that_is_on_record(
    jobs: Jobs, store: FaultyStore
) -> None:
    store.failing_status = Status.running
    with pytest.raises(StoreError, match="the disk is full"):
        await jobs.run("sleep 1000", "undone")
    reconciling = asyncio.create_task((await jobs._root.open()).reconciler.reconcile())
    store.failed.clear()
    await store.failed.wait()
    store.failing_status = None
    await reconciling
    assert (await end_of(jobs, "undone")).status is Status.stopped
    assert not [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("keeps", [False, True], ids=["not kept", "answer lost"])
async def test_a_run_whose_start_cannot_be_recorded_is_undone(
    jobs: Jobs, store: FaultyStore, keeps: bool
) -> None:
    store.failing_status, store.keeps_what_fails = Status.running, keeps
    with pytest.raises(StoreError, match="the disk is full"):
        await jobs.run("sleep 1000", "undone")
    assert (await jobs.usage("undone")).processes == 0
    assert not [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    store.failing_status = None
    record = await end_of(jobs, "undone")
    assert record.is_done
    if not keeps:
        assert (record.status, record.exit_code) == (Status.stopped, -signal.SIGKILL)
        why = [event.why for event in await jobs.history("undone") if event.status == "stopping"]
        assert why == ["its start could not be recorded: the disk is full"]
    assert (await jobs.run("true", "undone")).status is Status.running


async def test_a_cancelled_run_whose_start_cannot_be_recorded_harms_no_other(
    jobs: Jobs, store: FaultyStore, tmp_path: Path
) -> None:
    await jobs.run(f"{until(tmp_path / 'go')}; exit 3", "other")
    store.failing_status = Status.running
    running = asyncio.create_task(jobs.run("sleep 1000", "undone"))
    await store.failed.wait()
    running.cancel()
    await asyncio.wait([running])
    store.failing_status = None
    assert (await end_of(jobs, "undone")).status in (Status.stopped, Status.failed)
    (tmp_path / "go").touch()
    assert (await end_of(jobs, "other")).exit_code == 3


async def test_a_job_that_took_its_turn_goes_on_though_its_start_cannot_be_recorded_yet(
    jobs: Jobs, store: FaultyStore, tmp_path: Path
) -> None:
    store.failing_status = Status.running
    command = f"echo began; {until(tmp_path / 'go')}; exit 3"
    await jobs.submit(command, "a", max_retries=1)
    await store.failed.wait()
    store.failing_status = None
    (tmp_path / "go").touch()
    record = await end_of(jobs, "a")
    assert (record.exit_code, record.attempt) == (3, 2)
    assert [a.exit_code for a in await jobs.attempts("a")] == [3, 3]
    for attempt in (1, 2):
        assert await jobs.job_logs("a", attempt=attempt) == ("began\n", "")


async def test_callbacks_go_on_when_a_store_that_could_not_be_read_is_back(
    jobs: Jobs, store: FaultyStore
) -> None:
    called: asyncio.Queue[tuple[str, Status]] = asyncio.Queue()
    await jobs.on(lambda record: called.put_nowait((record.self_id, record.status)))
    await jobs.run("sleep 1000", "first")
    async with asyncio.timeout(LIMIT_S):
        while await called.get() != ("first", Status.running):
            pass
    await jobs.stop("first")
    async with asyncio.timeout(LIMIT_S):
        while await called.get() != ("first", Status.stopped):
            pass
        store.failing_reads = 3
        await jobs.run("true", "second")
        await store.has_failed_reading.wait()
        seen = [await called.get() for _ in range(3)]
    assert {job_id for job_id, _ in seen} == {"second"}
    assert seen[-1] == ("second", Status.finished)


async def test_progress_that_nobody_can_be_told_of_harms_nothing(
    jobs: Jobs, store: FaultyStore, tmp_path: Path
) -> None:
    said = 'echo "0.5 half" >> "$ANODEJOBS_PROGRESS"'
    async with aclosing(jobs.events(heartbeat=0.05)) as events, asyncio.timeout(LIMIT_S):
        first = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        await jobs.run(f"{until(tmp_path / 'go')}; {said}; {until(tmp_path / 'on')}; {said}", "a")
        while (await first).status is not Status.running:
            first = asyncio.create_task(anext(events))
        store.failing_reads = 1
        (tmp_path / "go").touch()
        await store.has_failed_reading.wait()
        (tmp_path / "on").touch()
        while (await anext(events)).status is not Status.finished:
            pass
    assert (await jobs.run("true", "b")).status is Status.running


# What has ended when its start is told, as many have where many are started at once.


class LateToTell(Processes):
    """Tells of a start when what was started has ended."""

    fails = False
    fails_to_clean = False

    def __init__(self) -> None:
        super().__init__()
        self.cleaned = asyncio.Event()

    async def start(self, *args: Any, **options: Any) -> Started | StartFailed | Lost:
        event = await super().start(*args, **options)
        if isinstance(event, Started):
            child = self._held[event.attempt.token].child
            assert child is not None
            await child.wait()
        return event

    async def wait(self, token: str, tell: Tell) -> Exited | Lost:
        if self.fails:
            raise RuntimeError("a bug")
        return await super().wait(token, tell)

    async def clean(self, token: str) -> None:
        await super().clean(token)
        self.cleaned.set()
        if self.fails_to_clean:
            raise RuntimeError("a bug")


@pytest.fixture
def late() -> LateToTell:
    return LateToTell()


@pytest.fixture
async def late_jobs(tmp_path: Path, store: FaultyStore, late: LateToTell) -> AsyncIterator[Jobs]:
    async with Jobs(db_path=tmp_path, store=store, stop_grace=1, executor=late) as jobs:
        yield jobs


async def test_a_start_that_is_told_late_is_recorded_with_its_end(
    late_jobs: Jobs, store: FaultyStore, late: LateToTell
) -> None:
    record = await late_jobs.run("echo said; exit 3", "short")
    assert (record.status, record.exit_code) == (Status.running, None)
    assert store.batches == [1, 1]
    end = await end_of(late_jobs, "short")
    assert (end.status, end.exit_code, end.last_pid) == (Status.failed, 3, record.last_pid)
    assert await late_jobs.job_logs("short") == ("said\n", "")
    statuses = [event.status for event in await late_jobs.history("short")]
    assert statuses == [Status.starting, Status.running, Status.failed]
    await late.cleaned.wait()
    assert await late.held() == set()


async def test_what_is_told_late_ends_what_it_has_left_behind(
    late_jobs: Jobs, late: LateToTell
) -> None:
    record = await late_jobs.run("sleep 1000 & echo $!", "short")
    assert (await end_of(late_jobs, "short")).exit_code == 0
    left = int((await late_jobs.job_logs("short"))[0])
    assert record.last_pid != left
    async with asyncio.timeout(LIMIT_S):
        await late.cleaned.wait()
    assert not psutil.pid_exists(left) or not is_alive(psutil.Process(left))


async def test_what_is_told_late_is_retried(late_jobs: Jobs, tmp_path: Path) -> None:
    command = f"[ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; exit 3; }}"
    await late_jobs.run(command, "short", max_retries=1, retry_delay=0)
    assert (await end_of(late_jobs, "short")).exit_code == 0
    assert [a.exit_code for a in await late_jobs.attempts("short")] == [3, 0]


async def test_an_end_that_cannot_be_recorded_with_its_start_is_recorded_after_it(
    late_jobs: Jobs, store: FaultyStore
) -> None:
    store.failing_status = Status.failed
    running = asyncio.create_task(late_jobs.run("exit 3", "short"))
    await store.failed.wait()
    record = await running
    assert record.status is Status.running
    assert await late_jobs.get_status("short") == record
    store.failing_status = None
    assert (await end_of(late_jobs, "short")).exit_code == 3


@pytest.mark.parametrize("keeps", [False, True], ids=["not kept", "answer lost"])
async def test_a_late_start_that_cannot_be_recorded_is_an_error(
    late_jobs: Jobs, store: FaultyStore, late: LateToTell, keeps: bool
) -> None:
    store.failing_status, store.keeps_what_fails = Status.running, keeps
    if keeps:  # it is on record all the same, with its end
        assert (await late_jobs.run("exit 3", "short")).exit_code == 3
    else:
        with pytest.raises(StoreError, match="the disk is full"):
            await late_jobs.run("exit 3", "short")
    store.failing_status = None
    record = await end_of(late_jobs, "short")
    assert (record.status, record.exit_code) == (Status.failed, 3)
    async with asyncio.timeout(LIMIT_S):
        await late.cleaned.wait()
    assert await late.held() == set()
    assert (await late_jobs.run("true", "short")).status is Status.running


async def test_a_bug_in_waiting_for_what_was_told_late_loses_that_job_alone(
    late_jobs: Jobs, late: LateToTell, caplog: pytest.LogCaptureFixture
) -> None:
    late.fails = True
    assert (await late_jobs.run("true", "short")).status is Status.running
    record = await end_of(late_jobs, "short")
    assert record.status is Status.lost
    assert record.error is not None and "a bug" in record.error
    late.fails = False
    await late_jobs.run("exit 3", "other")
    assert (await end_of(late_jobs, "other")).exit_code == 3


async def test_a_bug_in_cleaning_up_after_one_job_harms_no_other(
    late_jobs: Jobs, late: LateToTell, caplog: pytest.LogCaptureFixture
) -> None:
    late.fails_to_clean = True
    await late_jobs.run("exit 3", "short")
    assert (await end_of(late_jobs, "short")).exit_code == 3
    async with asyncio.timeout(LIMIT_S):
        await late.cleaned.wait()
    late.fails_to_clean = False
    await late_jobs.run("exit 4", "other")
    assert (await end_of(late_jobs, "other")).exit_code == 4
    assert "what job short left behind was not ended" in caplog.text


class Helpless(Processes):
    """Can stop nothing."""

    async def stop(self, attempt: Attempt, grace: float, *, may_hasten: bool = True) -> bool:
        raise ExecutorError("no shim can be had")


async def test_a_stop_that_cannot_be_finished_is_on_record_and_harms_no_other(
    tmp_path: Path,
) -> None:
    store = MemoryJobStore()
    async with served(store) as jobdb:
        process = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
        gone = supervisors.new_supervisor()
        supervisors.give_up(gone)
        attempt = make_attempt(
            supervisor=gone,
            pid=process.pid,
            start_time=tree.start_time(process.pid),
            boot_id=tree.boot_id(),
        )
        record = make_record("a-job", status="stopping")
        await jobdb.create(record, make_launch("a-job"), attempt, replace=None)
    try:
        async with (
            Jobs(db_path=tmp_path, store=store, executor=Helpless()) as jobs,
            asyncio.timeout(LIMIT_S),
        ):
            stopped = await jobs.wait("a-job", status="failed_stop")
            assert stopped.status is Status.failed_stop
            await jobs.run("exit 4", "other")
            assert (await jobs.wait("other")).exit_code == 4
            process.kill()
            await jobs.wait("a-job")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_stop_that_cannot_be_recorded_is_refused_and_can_be_asked_again(
    jobs: Jobs, store: FaultyStore
) -> None:
    await jobs.run("sleep 1000", "long")
    store.failures = 1
    with pytest.raises(StoreError):
        await jobs.stop("long")
    record = await jobs.stop("long")
    assert record is not None and record.status is Status.stopped


async def test_a_cancelled_stop_that_cannot_be_recorded_harms_no_other(
    jobs: Jobs, store: FaultyStore
) -> None:
    await jobs.run("sleep 1000", "long")
    for steps in range(1, 8):
        store.failures = 1
        stopping = asyncio.create_task(jobs.stop("long"))
        for _ in range(steps):
            await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait([stopping])
    store.failures = 0
    record = await jobs.stop("long")
    assert record is not None and record.status is Status.stopped


@contextmanager
def gone_in_the_end(record: JobRecord) -> Iterator[psutil.Process]:
    """See to it that nothing is left of a job, whatever the test finds."""
    assert record.last_pid is not None
    process = psutil.Process(record.last_pid)
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
        gc.collect()  # so that what was not closed is told of here


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def test_closing_ends_jobs_whose_end_cannot_be_recorded(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anodejobs.watcher._CLOSING_S", 0.5)
    jobs = Jobs(db_path=tmp_path, store=store, stop_grace=0.1, executor="inline")
    with gone_in_the_end(await jobs.run("exec sleep 1000", "long")) as process:
        store.failures = 10**9
        async with asyncio.timeout(LIMIT_S):
            await jobs.close()
        assert not is_alive(process)


# The death of the root: a bug where nobody is to blame but us.


@dataclass
class Dead:
    """A Jobs that met a bug while callers were waiting, listening and following."""

    jobs: Jobs
    callers: Sequence[asyncio.Future[object]]
    process: psutil.Process


async def exhaust(items: AsyncGenerator[object, None]) -> None:
    async with aclosing(items):
        async for _ in items:
            pass


@pytest.fixture
async def dead(tmp_path: Path, store: FaultyStore) -> AsyncIterator[Dead]:
    jobs = Jobs(db_path=tmp_path, store=store, stop_grace=0.1, executor="inline")
    with gone_in_the_end(await jobs.run("exec sleep 1000", "long")) as process:
        calls: list[Awaitable[object]] = [
            jobs.wait("long"),
            jobs.wait_all(["long"]),
            exhaust(jobs.events()),
            exhaust(jobs.follow("long")),
        ]
        callers: list[asyncio.Future[object]] = [asyncio.ensure_future(call) for call in calls]
        for _ in range(5):
            await asyncio.sleep(0)
        store.failures, store.error = 1, RuntimeError("a bug")
        callers.append(asyncio.ensure_future(jobs.pause("long")))
        await store.failed.wait()
        yield Dead(jobs, callers, process)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        async with asyncio.timeout(LIMIT_S):
            await jobs.close()


async def test_a_bug_ends_every_call_under_way(dead: Dead) -> None:
    answers = await fates(*dead.callers)
    assert [type(answer) for answer in answers if not isinstance(answer, AnodeJobsError)] == []
    assert any("a bug" in str(answer) for answer in answers)


async def test_a_bug_ends_every_later_call(dead: Dead) -> None:
    for _ in range(3):  # while it goes down, and afterwards
        answers = await fates(
            dead.jobs.run("true"),
            dead.jobs.wait("long"),
            dead.jobs.stop("long"),
            dead.jobs.delete("long"),
        )
        assert [type(answer) for answer in answers if not isinstance(answer, AnodeJobsError)] == []


async def test_closing_after_a_bug_returns(dead: Dead) -> None:
    async with asyncio.timeout(LIMIT_S):
        await dead.jobs.close()
        await dead.jobs.close()


async def test_a_bug_is_logged(dead: Dead, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(LIMIT_S):
        await dead.jobs.close()
    told = [record for record in caplog.records if record.name == "anodejobs" and record.exc_info]
    assert "a bug" in "".join(str(record.exc_text) for record in told)


async def test_after_a_bug_the_next_jobs_takes_over(dead: Dead, store: FaultyStore) -> None:
    async with asyncio.timeout(LIMIT_S):
        await dead.jobs.close()
        async with Jobs(db_path=dead.jobs.db_path, store=store, executor="inline") as later:
            record = await later.stop("long")
    assert record is not None and record.is_done
    assert not is_alive(dead.process)
