"""Schedules as applications hold them: kept, fired once for each moment, by one process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from anodejobs import (
    ExponentialBackoff,
    Failure,
    InvalidJob,
    Jobs,
    Limits,
    MemoryJobStore,
    RestartPolicy,
    RetryPolicy,
    Schedule,
    Status,
    StoreError,
    timetable,
)
from anodejobs.events import utc_now
from anodejobs.jobqueue import DEFAULT_QUEUE
from anodejobs.scheduler import PAUSED
from anodejobs.stores.base import Insert, Write
from anodejobs.timetable import PROGRESS, SCHEDULE

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LIMIT_S = 60.0
SECRET = "hunter2-is-no-password"


class Clock:
    """A clock on the wall that stands still until it is set."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


class Patiently(RetryPolicy):
    """A user's own policy."""

    pause: float = 0.0

    def delay_after(self, failure: Failure) -> float:
        return self.pause


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def opened(path: Path, clock: Clock, **options: Any) -> AsyncIterator[Jobs]:
    """A Jobs whose schedules go by the clock."""
    jobs = Jobs(db_path=path, executor="inline", stop_grace=1, **options)
    jobs._timetable._now = clock
    async with asyncio.timeout(LIMIT_S), jobs:
        yield jobs


async def paused(store: MemoryJobStore) -> MemoryJobStore:
    """Return a store whose jobs stay in the queue until it is resumed."""
    await store.put_document(PAUSED, DEFAULT_QUEUE, json.dumps(DEFAULT_QUEUE))
    return store


@pytest.fixture
async def jobs(tmp_path: Path, clock: Clock) -> AsyncIterator[Jobs]:
    store = await paused(MemoryJobStore())
    async with opened(tmp_path / "db", clock, store=store) as jobs:
        yield jobs


_marker = count()


async def look(jobs: Jobs, clock: Clock, now: datetime | None = None) -> None:
    """Set the clock, and return when every schedule has been seen to."""
    clock.now = now or clock.now
    # They are seen to in the order of their names.
    name = f"~{next(_marker)}"
    await jobs.schedule("true", name, at=clock.now)
    await appeared(jobs, f"{name}@")
    await jobs.unschedule(name)


async def appeared(jobs: Jobs, beginning: str, after: int = 0) -> str:
    """Return the id of the first job that is made and begins so, as soon as there is one."""
    async with aclosing(jobs.events(after=after)) as events:
        async for event in events:
            is_new = event.kind == "status" and event.previous is None
            if is_new and event.job_id is not None and event.job_id.startswith(beginning):
                return event.job_id
    raise AssertionError("the events have ended")


async def made(jobs: Jobs, name: str) -> list[str]:
    """Return when the jobs of a schedule were to fire, as minutes after noon."""
    moments = []
    for job_id in await jobs.list_status():
        schedule, _, moment = job_id.rpartition("@")
        if schedule == name:
            moments.append(datetime.fromisoformat(moment) - NOON)
    return [f"{moment / MINUTE:g}" for moment in moments]


def at(minutes: float) -> datetime:
    return NOON + minutes * MINUTE


async def inserted(jobs: Jobs) -> list[str]:
    """Return the ids of the jobs that were made, once for each time."""
    events = await jobs._jobdb._store.history()
    return [str(event.job_id) for event in events if event.previous is None]


async def last_seq(jobs: Jobs) -> int:
    return await jobs._jobdb._store.last_seq()


# Firing.


async def test_a_schedule_makes_a_job_for_each_of_its_moments(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule("true", "s", cron="*/5 * * * *", overlap="allow")
    for minutes in range(0, 16, 5):
        await look(jobs, clock, at(minutes))
    assert await made(jobs, "s") == ["0", "5", "10", "15"]


async def test_between_its_moments_it_makes_none(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule("true", "s", cron="*/5 * * * *", overlap="allow")
    for minutes in (0, 1, 2, 4.999, 5, 5, 5.1):
        await look(jobs, clock, at(minutes))
    assert await made(jobs, "s") == ["0", "5"]


async def test_a_clock_that_is_set_back_brings_no_firing_twice(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule("true", "s", cron="*/5 * * * *", overlap="allow")
    for minutes in (5, 10, 1, 6, 11, 15):
        await look(jobs, clock, at(minutes))
    assert len(await inserted(jobs)) == len(set(await inserted(jobs)))
    assert await made(jobs, "s") == ["5", "10", "15"]


async def test_an_interval_begins_at_once_and_is_counted_from_there(
    jobs: Jobs, clock: Clock
) -> None:
    clock.now = at(3.5)
    told = await jobs.schedule("true", "s", every=timedelta(minutes=7), overlap="allow")
    assert told.next_at == at(3.5)
    for minutes in (3.5, 12, 17.5):
        await look(jobs, clock, at(minutes))
    assert await made(jobs, "s") == ["3.5", "10.5", "17.5"]


async def test_a_single_moment_makes_one_job_and_is_told_to_be_over(
    jobs: Jobs, clock: Clock
) -> None:
    await jobs.schedule("true", "s", at=at(5))
    await look(jobs, clock, at(4))
    assert await made(jobs, "s") == []
    for minutes in (6, 7):
        await look(jobs, clock, at(minutes))
    assert await made(jobs, "s") == ["5"]
    told = (await jobs.schedules())["s"]
    assert (told.next_at, told.last_job) == (None, "s@2024-02-29T12:05:00Z")


async def test_a_schedule_fires_by_the_clock_on_the_wall(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S), Jobs(tmp_path, executor="inline") as jobs:
        moment = utc_now() + timedelta(seconds=0.05)
        await jobs.schedule("echo it is time", "s", at=moment)
        record = await jobs.wait(await appeared(jobs, "s@"))
        assert record.created_at is not None and record.created_at >= moment
        assert (await jobs.job_logs(record.self_id))[0] == "it is time\n"


async def test_a_job_is_as_its_schedule_says(
    jobs: Jobs, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "then")
    monkeypatch.chdir(tmp_path)
    await jobs.schedule(
        {
            "command": "pwd; echo $FROM_OUTSIDE $OWN",
            "envs": {"OWN": "mine"},
            "tags": ["a", "b"],
            "payload": {"x": [1, None]},
            "priority": "high",
            "timeout": 30,
            "metadata": {"k": 1.5},
        },
        "s",
        at=at(1),
    )
    monkeypatch.setenv("FROM_OUTSIDE", "later")
    monkeypatch.chdir("/")
    await look(jobs, clock, at(1))
    await jobs.resume_queue()
    record = await jobs.wait("s@2024-02-29T12:01:00Z")
    assert (await jobs.job_logs(record.self_id))[0] == f"{tmp_path}\nthen mine\n"
    assert (record.tags, record.payload, record.priority) == (["a", "b"], {"x": [1, None]}, 30)
    assert (record.timeout, record.metadata) == (30, {"k": 1.5})


async def test_a_job_may_be_kept_from_the_environment(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule({"command": "/usr/bin/env", "inherit_env": False}, "s", at=at(0))
    await look(jobs, clock)
    await jobs.resume_queue()
    await jobs.wait("s@2024-02-29T12:00:00Z")
    env, _ = await jobs.job_logs("s@2024-02-29T12:00:00Z")
    assert "HOME=" not in env


async def test_a_policy_of_the_users_own_goes_with_the_job(jobs: Jobs, clock: Clock) -> None:
    spec = {"command": "exit 3", "max_retries": 2, "retry": Patiently(pause=0.0)}
    await jobs.schedule(spec, "s", at=at(0))
    await look(jobs, clock)
    await jobs.resume_queue()
    record = await jobs.wait("s@2024-02-29T12:00:00Z")
    assert (record.status, record.attempt) == (Status.failed, 3)
    assert record.retry is not None and record.retry["kind"] == f"{__name__}:Patiently"


async def test_a_restart_policy_goes_with_the_job(jobs: Jobs, clock: Clock) -> None:
    policy = RestartPolicy(when="on-failure", initial=0.0, limit=2)
    await jobs.schedule({"command": "exit 3", "restart": policy}, "s", at=at(0))
    await look(jobs, clock)
    await jobs.resume_queue()
    record = await jobs.wait("s@2024-02-29T12:00:00Z")
    assert (record.attempt, record.restart) == (3, "on-failure")
    assert record.error is not None and "gave up" in record.error


@pytest.mark.parametrize(
    "spec",
    [
        {"retry": ExponentialBackoff(2, 60, jitter=0.5), "max_retries": 1},
        {"retry": {"kind": "fixed", "delay": 3}, "max_retries": 1},
        {"restart": "always"},
        {"restart": {"when": "always", "initial": 0.5}},
        {"cwd": Path("/"), "tags": {"a"}, "priority": 7, "queue": "default"},
        {"envs": {"BYTES": os.fsdecode(b"\xff")}},
        {"command": ["echo", "ü", "🚀\n"]},
        {"limits": Limits(niceness=5, user=0)},
        {"limits": {"memory_bytes": 2**30}},
        {"command": None, "call": "json:dumps", "payload": {"obj": 1}},
    ],
    ids=str,
)
async def test_whatever_a_job_may_be_a_schedule_may_make(
    jobs: Jobs, clock: Clock, spec: dict[str, Any]
) -> None:
    submitted = await jobs.submit(**{"command": "true", "job_id": "by hand", **spec})
    await jobs.schedule({"command": "true", **spec}, "s", at=at(0))
    await look(jobs, clock)
    made = await jobs.get_status("s@2024-02-29T12:00:00Z")
    assert made is not None
    told = {"self_id", "logfile", "created_at", "last_update", "submitted_at", "revision"}
    assert made.model_dump(exclude=told) == submitted.model_dump(exclude=told)


async def test_a_working_directory_of_any_bytes_will_do(
    jobs: Jobs, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = tmp_path / os.fsdecode(b"\xff")
    strange.mkdir()
    monkeypatch.chdir(strange)
    with pytest.raises(InvalidJob, match="cwd"):
        await jobs.schedule("true", "s", at=at(0))
    assert await jobs.schedules() == {}


# After a pause.


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [("skip", []), ("once", ["30"]), ("all", ["5", "10", "15", "20", "25", "30"])],
)
async def test_what_was_missed_while_nobody_was_there(
    tmp_path: Path, clock: Clock, misfire: str, expected: list[str]
) -> None:
    store = await paused(MemoryJobStore())
    async with opened(tmp_path, clock, store=store) as jobs:
        clock.now = at(1)
        await jobs.schedule("true", "s", cron="*/5 * * * *", misfire=misfire, overlap="allow")
        await look(jobs, clock)
    clock.now = at(32)
    async with opened(tmp_path, clock, store=store) as jobs:
        await look(jobs, clock)
        assert await made(jobs, "s") == expected
        await look(jobs, clock, at(35))
        assert await made(jobs, "s") == [*expected, "35"]


async def test_a_firing_that_is_a_little_late_is_not_skipped(tmp_path: Path, clock: Clock) -> None:
    store = await paused(MemoryJobStore())
    async with opened(tmp_path, clock, store=store) as jobs:
        clock.now = at(1)
        await jobs.schedule("true", "s", cron="*/5 * * * *", misfire="skip", grace=120)
    clock.now = at(32)
    async with opened(tmp_path, clock, store=store) as jobs:
        await look(jobs, clock)
        assert await made(jobs, "s") == ["30"]


async def test_of_too_many_missed_firings_the_latest_are_made_up_for(
    jobs: Jobs, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await jobs.schedule("true", "s", cron="* * * * *", misfire="all", overlap="allow")
    await look(jobs, clock, at(-1))
    await look(jobs, clock, at(1500))
    moments = await made(jobs, "s")
    assert (len(moments), moments[-1]) == (1000, "1500")
    assert "s: more than 1000 firings were missed" in caplog.text


async def test_schedules_outlive_their_application(tmp_path: Path, clock: Clock) -> None:
    async with opened(tmp_path / "db", clock) as jobs:
        told = await jobs.schedule("true", "s", cron="0 2 * * *", tz="Europe/Berlin")
    async with opened(tmp_path / "db", clock) as jobs:
        assert await jobs.schedules() == {"s": told}
        assert told.next_at == datetime(2024, 3, 1, 1, tzinfo=UTC)


# The job before has not ended.


async def test_a_firing_is_left_out_while_the_job_before_has_not_ended(
    jobs: Jobs, clock: Clock
) -> None:
    await jobs.schedule("true", "s", cron="*/5 * * * *")
    for minutes in (0, 5, 10):
        await look(jobs, clock, at(minutes))
    await jobs.cancel("s@2024-02-29T12:00:00Z")
    await look(jobs, clock, at(15))
    assert await made(jobs, "s") == ["0", "15"]


async def test_a_firing_waits_for_the_end_of_the_job_before(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule("exit 3", "s", cron="*/5 * * * *", overlap="queue")
    for minutes in (0, 5, 10):
        await look(jobs, clock, at(minutes))
    records = [r for r in (await jobs.list_status()).values() if r.self_id.startswith("s@")]
    assert [record.status for record in records] == ["queued", "pending", "pending"]
    await jobs.resume_queue()
    ended = list((await jobs.wait_all(r.self_id for r in records)).values())
    assert [record.status for record in ended] == ["failed"] * 3
    times = [(record.started_at, record.finished_at) for record in ended]
    assert times == sorted(times)
    assert all(a.finished_at <= b.started_at for a, b in pairwise(ended))


async def test_a_firing_waits_for_nothing_once_the_job_before_has_ended(
    jobs: Jobs, clock: Clock
) -> None:
    await jobs.schedule("true", "s", cron="*/5 * * * *", overlap="queue")
    await look(jobs, clock, at(0))
    await jobs.cancel("s@2024-02-29T12:00:00Z")
    await look(jobs, clock, at(5))
    record = await jobs.get_status("s@2024-02-29T12:05:00Z")
    assert record is not None and record.depends_on == []


@pytest.mark.parametrize("cancelled", [[5], [5, 10], [10, 5], [15], [5, 10, 15]], ids=str)
@pytest.mark.parametrize("is_deleted", [False, True])
async def test_who_waits_in_line_does_so_when_those_between_are_cancelled(
    jobs: Jobs, clock: Clock, cancelled: list[int], is_deleted: bool
) -> None:
    await jobs.schedule(["sleep", "60"], "s", every=300, overlap="queue")
    for minutes in (0, 5, 10, 15):
        await look(jobs, clock, at(minutes))
    first = "s@2024-02-29T12:00:00Z"
    await jobs.resume_queue()
    await jobs.wait(first, Status.running)
    for minutes in cancelled:
        await jobs.cancel(f"s@2024-02-29T12:{minutes:02}:00Z")
        if is_deleted:
            await jobs.delete(f"s@2024-02-29T12:{minutes:02}:00Z")
    await look(jobs, clock, at(20))
    await jobs.submit("true", "later")
    await jobs.wait("later")  # by then the scheduler has seen to all that was cancelled
    waiting = list(await jobs.list_status({"status": "pending"}))
    assert waiting == [
        f"s@2024-02-29T12:{minutes:02}:00Z"
        for minutes in (5, 10, 15, 20)
        if minutes not in cancelled
    ]
    await jobs.stop(first, grace=0)
    await jobs.wait(waiting[0], Status.running)
    assert list(await jobs.list_status({"status": "pending"})) == waiting[1:]


async def test_a_long_line_costs_each_job_a_limited_number_of_links(
    tmp_path: Path, clock: Clock
) -> None:
    store = await paused(MemoryJobStore())
    async with opened(tmp_path, clock, store=store) as jobs:
        await jobs.schedule("true", "s", every=60, misfire="all", overlap="queue")
        await look(jobs, clock, at(500))
        await look(jobs, clock, at(501))
        made = [job for job in (await jobs.list_status()).values() if job.self_id[:2] == "s@"]
        ids = [job.self_id for job in made]
        assert len(made) == 502
        assert made[100].depends_on == ids[:100]
        assert made[-1].depends_on == [ids[0], *ids[-100:-1]]


async def test_a_line_lasts_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    store = await paused(MemoryJobStore())
    for minutes in (0, 5, 10):
        async with opened(tmp_path, clock, store=store) as jobs:
            await jobs.schedule("true", "s", cron="*/5 * * * *", overlap="queue")
            await look(jobs, clock, at(minutes))
    async with opened(tmp_path, clock, store=store) as jobs:
        assert len(await jobs.get_dependencies("s@2024-02-29T12:10:00Z")) == 2


async def test_a_job_before_that_was_deleted_has_ended(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule("true", "s", cron="*/5 * * * *")
    await look(jobs, clock, at(0))
    await jobs.cancel("s@2024-02-29T12:00:00Z")
    await jobs.delete("s@2024-02-29T12:00:00Z")
    await look(jobs, clock, at(5))
    assert await made(jobs, "s") == ["5"]


async def test_missed_firings_that_are_made_up_for_do_not_overlap_either(
    jobs: Jobs, clock: Clock
) -> None:
    await jobs.schedule("true", "s", cron="*/5 * * * *", misfire="all")
    await look(jobs, clock, at(30))
    assert await made(jobs, "s") == ["0"]


# Replacing and removing.


async def test_the_same_said_again_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    """An application may say it whenever it starts: what was missed counts all the same."""
    store = await paused(MemoryJobStore())
    for now in (at(0), at(13), at(14)):
        clock.now = now
        async with opened(tmp_path, clock, store=store) as jobs:
            await jobs.schedule({"command": "true"}, "s", every=300, overlap="allow")
            await look(jobs, clock)
    async with opened(tmp_path, clock, store=store) as jobs:
        assert await made(jobs, "s") == ["0", "10"]
        assert (await jobs.schedules())["s"].next_at == at(15)


async def test_the_same_said_again_brings_the_present_environment(
    jobs: Jobs, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("then", "now"):
        monkeypatch.setenv("FROM_OUTSIDE", value)
        await jobs.schedule("echo $FROM_OUTSIDE", "s", at=at(1))
    await look(jobs, clock, at(1))
    await jobs.resume_queue()
    await jobs.wait("s@2024-02-29T12:01:00Z")
    assert (await jobs.job_logs("s@2024-02-29T12:01:00Z"))[0] == "now\n"


@pytest.mark.parametrize("was_another", [False, True])
async def test_the_same_said_by_two_at_once_is_one_schedule(
    tmp_path: Path, was_another: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers of a server all say what they want when they start."""
    clock, later = Clock(at(0)), Clock(at(0.001))
    async with opened(tmp_path / "db", clock) as one, opened(tmp_path / "db", later) as two:
        if was_another:
            await one.schedule("echo old", "s", at=at(999))
        has_looked, may_go_on = asyncio.Event(), asyncio.Event()
        find = two._timetable._find

        async def interrupted(name: str) -> Any:
            found = await find(name)
            has_looked.set()
            await may_go_on.wait()
            return found

        monkeypatch.setattr(two._timetable, "_find", interrupted)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(two.schedule("echo new", "s", every=300))
            await has_looked.wait()
            await one.schedule("echo new", "s", every=300)
            await appeared(one, "s@")
            may_go_on.set()
        await look(one, clock, at(1))
        assert await made(one, "s") == ["0"]
        assert (await two.schedules())["s"].next_at == at(5)


async def test_a_job_that_was_deleted_does_not_come_again(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule("true", "s", cron="*/5 * * * *", overlap="allow")
    await look(jobs, clock, at(0))
    await jobs.cancel("s@2024-02-29T12:00:00Z")
    await jobs.delete("s@2024-02-29T12:00:00Z")
    await look(jobs, clock, at(1))
    assert await made(jobs, "s") == []


async def test_a_moment_that_is_over_may_be_said_again(jobs: Jobs, clock: Clock) -> None:
    for _ in range(2):
        told = await jobs.schedule("true", "s", at=at(0))
        await look(jobs, clock, at(1))
    assert (told.next_at, told.last_job) == (None, "s@2024-02-29T12:00:00Z")
    assert await made(jobs, "s") == ["0"]


async def test_a_schedule_that_is_replaced_is_as_the_new_one_says(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule("echo old", "s", cron="*/5 * * * *")
    await look(jobs, clock, at(1))
    await jobs.schedule("echo new", "s", cron="*/7 * * * *")
    await look(jobs, clock, at(6))
    await look(jobs, clock, at(7))
    assert await made(jobs, "s") == ["0"]  # which has not ended
    await jobs.cancel("s@2024-02-29T12:00:00Z")
    await look(jobs, clock, at(14))
    record = await jobs.get_status("s@2024-02-29T12:14:00Z")
    assert record is not None and record.command == "echo new"
    assert [told.command for told in (await jobs.schedules()).values()] == ["echo new"]


async def test_a_schedule_that_is_replaced_makes_up_for_nothing_from_before(
    tmp_path: Path, clock: Clock
) -> None:
    store = await paused(MemoryJobStore())
    async with opened(tmp_path, clock, store=store) as jobs:
        clock.now = at(1)
        await jobs.schedule("echo old", "s", cron="*/5 * * * *", misfire="all")
    clock.now = at(32)
    async with opened(tmp_path, clock, store=store) as jobs:
        await jobs.schedule("echo new", "s", cron="*/5 * * * *", misfire="all", overlap="allow")
        await look(jobs, clock, at(35))
        assert await made(jobs, "s") == ["35"]


async def test_a_schedule_that_is_forgotten_makes_no_job(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule("true", "s", cron="*/5 * * * *")
    assert await jobs.unschedule("s")
    assert not await jobs.unschedule("s")
    await look(jobs, clock, at(5))
    assert await made(jobs, "s") == []
    assert await jobs.schedules() == {}


async def test_jobs_of_a_schedule_that_is_forgotten_go_on(jobs: Jobs, clock: Clock) -> None:
    await jobs.schedule("true", "s", at=at(0))
    await look(jobs, clock)
    await jobs.unschedule("s")
    await jobs.resume_queue()
    assert (await jobs.wait("s@2024-02-29T12:00:00Z")).status is Status.finished


class StoppingStore(MemoryJobStore):
    """A store that stops before or after one of the steps of a firing, as a crash would."""

    def __init__(self) -> None:
        super().__init__()
        self.stops_at: tuple[str, int] | None = None
        self.has_stopped = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self._steps = count(1)

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        if not any(isinstance(w, Insert) and w.record.self_id.startswith("s@") for w in writes):
            return await super().commit(writes)
        step = next(self._steps)
        await self._stop("before", step)
        results = await super().commit(writes)
        await self._stop("after", step)
        return results

    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        if kind != PROGRESS or name != "s" or body is None:
            return await super().put_document(kind, name, body)
        step = next(self._steps)
        await self._stop("before", step)
        await super().put_document(kind, name, body)
        await self._stop("after", step)
        return None

    async def _stop(self, when: str, step: int) -> None:
        if self.stops_at == (when, step):
            self.has_stopped.set()
            await self.may_go_on.wait()


STEPS = [(when, step) for step in (1, 2, 3, 4) for when in ("before", "after")]


@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
@pytest.mark.parametrize("step", STEPS, ids=str)
async def test_a_crash_while_a_job_is_made_brings_it_once(
    tmp_path: Path, clock: Clock, step: tuple[str, int], overlap: str
) -> None:
    store = StoppingStore()
    await paused(store)
    store.stops_at = step
    async with opened(tmp_path, clock, store=store) as jobs:
        await jobs.schedule("true", "s", cron="*/5 * * * *", overlap=overlap)
        await store.has_stopped.wait()
    store.stops_at = None
    clock.now = at(1)
    async with opened(tmp_path, clock, store=store) as jobs:
        await look(jobs, clock)
        assert await made(jobs, "s") == ["0"]
        assert (await inserted(jobs)).count("s@2024-02-29T12:00:00Z") == 1
        assert (await jobs.schedules())["s"].last_job == "s@2024-02-29T12:00:00Z"


@pytest.mark.parametrize("step", STEPS, ids=str)
async def test_after_a_crash_and_a_pause_no_two_jobs_overlap(
    tmp_path: Path, clock: Clock, step: tuple[str, int]
) -> None:
    store = StoppingStore()
    await paused(store)
    store.stops_at = step
    async with opened(tmp_path, clock, store=store) as jobs:
        await jobs.schedule("true", "s", cron="*/5 * * * *", overlap="skip")
        await store.has_stopped.wait()
    store.stops_at = None
    clock.now = at(32)
    async with opened(tmp_path, clock, store=store) as jobs:
        await look(jobs, clock)
        await look(jobs, clock, at(35))
        assert len(await made(jobs, "s")) == 1


@pytest.mark.parametrize("step", STEPS, ids=str)
async def test_a_schedule_that_is_replaced_while_it_fires_stays_replaced(
    tmp_path: Path, clock: Clock, step: tuple[str, int]
) -> None:
    store = StoppingStore()
    await paused(store)
    store.stops_at = step
    async with opened(tmp_path, clock, store=store) as jobs:
        await jobs.schedule("echo old", "s", cron="*/5 * * * *", overlap="allow")
        await store.has_stopped.wait()
        await jobs.schedule("echo new", "s", cron="*/7 * * * *", overlap="allow")
        store.may_go_on.set()
        await look(jobs, clock, at(7))
        told = (await jobs.schedules())["s"]
        assert (told.command, told.next_at) == ("echo new", at(14))
        assert (await made(jobs, "s"))[-1] == "7"


@pytest.mark.parametrize("step", STEPS, ids=str)
async def test_a_schedule_that_is_forgotten_while_it_fires_stays_forgotten(
    tmp_path: Path, clock: Clock, step: tuple[str, int]
) -> None:
    store = StoppingStore()
    await paused(store)
    store.stops_at = step
    async with opened(tmp_path, clock, store=store) as jobs:
        await jobs.schedule("true", "s", cron="*/5 * * * *", misfire="all", overlap="allow")
        await store.has_stopped.wait()
        async with asyncio.TaskGroup() as tasks:
            forgotten = tasks.create_task(jobs.unschedule("s"))
            store.may_go_on.set()
        assert forgotten.result()
        there_were = await made(jobs, "s")
        await look(jobs, clock, at(30))
        assert await made(jobs, "s") == there_were
        assert await jobs.schedules() == {}
        assert await store.documents(SCHEDULE) == {}
        assert "s" not in await store.documents(PROGRESS)


async def test_of_missed_firings_none_is_made_up_for_once_it_is_forgotten(
    tmp_path: Path, clock: Clock
) -> None:
    store = StoppingStore()
    await paused(store)
    store.stops_at = ("after", 5)
    async with opened(tmp_path, clock, store=store) as jobs:
        await jobs.schedule(
            "true", "s", cron="* * * * *", start=at(-100), misfire="all", overlap="allow"
        )
        clock.now = at(90)
        jobs._timetable.attend()
        await store.has_stopped.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(jobs.unschedule("s"))
            store.may_go_on.set()
        assert len(await made(jobs, "s")) < 20


# The store fails.


class FailingStore(MemoryJobStore):
    """A store that cannot keep documents of a kind, for some times."""

    def __init__(self, kind: str, times: int) -> None:
        super().__init__()
        self._kind = kind
        self.times = times

    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        if kind == self._kind and self.times:
            self.times -= 1
            raise StoreError("the disk is full")
        await super().put_document(kind, name, body)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_firing_that_could_not_be_kept_is_made_when_it_can_be(
    tmp_path: Path,
    clock: Clock,
    times: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timetable, "_RETRY_S", 0.01)
    store = FailingStore(PROGRESS, times)
    await paused(store)
    async with opened(tmp_path, clock, store=store) as jobs:
        await jobs.schedule("true", "s", at=at(0))
        await look(jobs, clock)
        assert await made(jobs, "s") == ["0"]
    assert "the schedules wait: the disk is full" in caplog.text


class FullStore(MemoryJobStore):
    """A store that takes documents and no jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.tries: list[float] = []
        self.is_tried_again = asyncio.Event()

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        self.tries.append(time.monotonic())
        if len(self.tries) == 2:
            self.is_tried_again.set()
        raise StoreError("the disk is full")


async def test_a_store_that_takes_no_job_of_a_schedule_is_left_alone_for_a_while(
    tmp_path: Path, clock: Clock
) -> None:
    store = FullStore()
    await paused(store)
    async with opened(tmp_path, clock, store=store) as jobs:
        await jobs.schedule("true", "s", at=at(0))
        await asyncio.wait_for(store.is_tried_again.wait(), LIMIT_S)
        first, second = store.tries
        assert second - first > 0.9 * timetable._RETRY_S


async def test_a_schedule_that_cannot_be_kept_is_the_callers_error(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock, store=FailingStore(SCHEDULE, 1)) as jobs:
        with pytest.raises(StoreError, match="the disk is full"):
            await jobs.schedule("true", "s", at=at(0))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "no JSON",
        json.dumps({"mark": "x", "since": "soon", "schedule": {"at": "2024-01-01"}}),
        json.dumps(
            {
                "mark": "x",
                "since": NOON.isoformat(),
                "schedule": {"cron": "* * * * *", "tz": "Mars/Olympus", "colour": 1},
                "spec": {"command": "true"},
                "env": {},
            }
        ),
    ],
)
async def test_a_schedule_that_cannot_be_read_holds_up_no_other_one(
    jobs: Jobs, clock: Clock, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    await jobs._jobdb.put_document(SCHEDULE, "strange", text)
    await jobs.schedule("true", "t", at=at(0))
    await look(jobs, clock)
    assert await made(jobs, "t") == ["0"]
    assert list(await jobs.schedules()) == ["t"]
    assert "'strange' cannot be read" in caplog.text
    assert await jobs.unschedule("strange")


async def test_a_progress_that_cannot_be_read_holds_up_no_other_schedule(
    jobs: Jobs, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await jobs.schedule("true", "s", at=at(1))
    await jobs.schedule("true", "t", at=at(1))
    await jobs._jobdb.put_document(PROGRESS, "s", '{"mark": 5}')
    await look(jobs, clock, at(1))
    assert (await made(jobs, "s"), await made(jobs, "t")) == ([], ["1"])
    assert "how far 's' is cannot be read" in caplog.text
    assert list(await jobs.schedules()) == ["t"]


async def test_a_schedule_that_cannot_be_read_is_replaced(jobs: Jobs, clock: Clock) -> None:
    await jobs._jobdb.put_document(SCHEDULE, "s", "{}")
    await jobs.schedule("true", "s", at=at(0))
    await look(jobs, clock)
    assert await made(jobs, "s") == ["0"]


async def test_a_policy_that_is_not_there_any_more_costs_its_own_jobs_only(
    jobs: Jobs, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    retry = {"max_retries": 2, "retry": Patiently()}
    await jobs.schedule({"command": "true", **retry}, "s", at=at(1))
    await jobs.schedule("true", "t", at=at(1))
    monkeypatch.delattr(sys.modules[__name__], "Patiently")
    await look(jobs, clock, at(1))
    assert (await made(jobs, "s"), await made(jobs, "t")) == ([], ["1"])
    assert "schedule s: its job cannot be made: retry: " in caplog.text


# What is wrong is refused.


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("command", {"spec": ""}),
        ("command", {"spec": {}}),
        ("colour", {"spec": {"command": "true", "colour": "red"}}),
        ("timeout", {"spec": {"command": "true", "timeout": -1}}),
        ("retry", {"spec": {"command": "true", "retry": 5, "max_retries": 1}}),
        ("restart", {"spec": {"command": "true", "restart": "sometimes"}}),
        ("max_retries", {"spec": {"command": "true", "retry_delay": 5}}),
        ("depends_on", {"spec": {"command": "true", "depends_on": [0]}}),
        ("depends_on", {"spec": {"command": "true", "depends_on": ["nobody"]}}),
        ("run_at", {"spec": {"command": "true", "run_at": at(10)}}),
        ("name", {"name": ""}),
        ("name", {"name": "x" * 161}),
        ("name", {"name": "two\nlines"}),
        ("name", {"name": "\udcff"}),
        ("name", {"name": 5}),
        ("name", {"spec": {"command": "true", "job_id": "x" * 161}, "name": None}),
        ("cron", {"at": None, "cron": "61 * * * *"}),
        ("at", {"cron": "* * * * *"}),
        ("cron", {"at": None}),
        ("every", {"at": None, "every": 0}),
        ("every", {"at": None, "every": "often"}),
        ("at", {"at": "soon"}),
        ("at", {"at": at(-1)}),
        ("at", {"at": "1969-12-31"}),
        ("end", {"at": None, "cron": "0 0 1 1 *", "end": at(60)}),
        ("end", {"at": None, "every": 60, "start": at(-9), "end": at(-5)}),
        ("tz", {"tz": "Mars/Olympus"}),
        ("misfire", {"misfire": "maybe"}),
        ("overlap", {"overlap": "perhaps"}),
        ("overlap", {"overlap": "queue", "spec": {"command": "true", "depends_on": ["there"]}}),
        ("colour", {"colour": "red"}),
    ],
    ids=str,
)
async def test_what_is_wrong_is_refused_before_anything_is_kept(
    jobs: Jobs, field: str, arguments: dict[str, Any]
) -> None:
    await jobs.create("true", "there")
    with pytest.raises(InvalidJob) as caught:
        await jobs.schedule(**{"spec": "true", "name": "s", "at": at(1), **arguments})
    assert caught.value.field == field
    assert await jobs.schedules() == {}
    assert await jobs._jobdb.documents(SCHEDULE) == {}


async def test_a_wrong_replacement_leaves_the_schedule_as_it_was(jobs: Jobs) -> None:
    told = await jobs.schedule("true", "s", cron="@daily")
    with pytest.raises(InvalidJob):
        await jobs.schedule({"command": "true", "timeout": -1}, "s", cron="@hourly")
    assert await jobs.schedules() == {"s": told}


async def test_a_schedule_that_may_overlap_can_have_dependencies(jobs: Jobs, clock: Clock) -> None:
    await jobs.create("true", "there")
    spec = {"command": "true", "depends_on": ["there"]}
    await jobs.schedule(spec, "s", cron="*/5 * * * *", overlap="allow")
    await jobs.schedule(
        {**spec, "on_dependency_failure": "run"}, "t", cron="*/5 * * * *", overlap="queue"
    )
    await look(jobs, clock, at(0))
    await look(jobs, clock, at(5))
    last = [await jobs.get_status(f"{name}@2024-02-29T12:05:00Z") for name in ("s", "t")]
    assert [r and r.depends_on for r in last] == [["there"], ["there", "t@2024-02-29T12:00:00Z"]]


# Names.


@pytest.mark.parametrize("name", ["../../x", "a b", "ü🚀", "s@t", "-", "x" * 160, "ü" * 160])
async def test_a_schedule_may_have_an_odd_name(jobs: Jobs, clock: Clock, name: str) -> None:
    await jobs.schedule("true", name, at=at(0) + timedelta(microseconds=1))
    clock.now = at(1)
    jobs._timetable.attend()
    await jobs.resume_queue()
    record = await jobs.wait(await appeared(jobs, f"{name}@"))
    assert record.self_id == f"{name}@2024-02-29T12:00:00.000001Z"
    assert record.status is Status.finished


async def test_a_schedule_without_a_name_has_that_of_its_job(jobs: Jobs) -> None:
    told = await jobs.schedule({"command": "true", "job_id": "nightly"}, cron="@daily")
    assert told.name == "nightly"


async def test_schedules_without_any_name_are_several(jobs: Jobs) -> None:
    names = {(await jobs.schedule("true", cron="@daily")).name for _ in range(2)}
    assert set(await jobs.schedules()) == names and len(names) == 2


# What is told.


async def test_a_schedule_tells_what_it_is(jobs: Jobs) -> None:
    told = await jobs.schedule(["echo", "hi"], "s", cron="0 2 * * *", misfire="all")
    assert told.command == ["echo", "hi"]
    assert told.next_at == datetime(2024, 3, 1, 2, tzinfo=UTC)
    assert told.last_job is None
    again = Schedule(told.schedule)
    assert (again.cron, again.misfire, again.overlap) == ("0 2 * * *", "all", "skip")


async def test_an_environment_is_never_told(
    jobs: Jobs, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "anodejobs")
    monkeypatch.setenv("INHERITED", SECRET)
    told = await jobs.schedule({"command": "true", "envs": {"OWN": SECRET}}, "s", at=at(0))
    await look(jobs, clock)
    schedules = await jobs.schedules()
    assert SECRET not in told.model_dump_json() + repr(told) + repr(schedules) + caplog.text
    with pytest.raises(InvalidJob) as caught:
        await jobs.schedule({"command": "true", "envs": {"OWN": SECRET + "\0"}}, "s", at=at(0))
    assert SECRET not in str(caught.value)


# Several processes.


async def test_of_two_on_a_directory_one_makes_the_jobs_until_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "db"
    # The clock of each tells whose firings they are.
    first_clock, second_clock = Clock(at(0)), Clock(at(1000))
    async with opened(path, first_clock) as first, opened(path, second_clock) as second:
        seq = await last_seq(first)
        await first.schedule("true", "s", cron="*/5 * * * *", overlap="allow")
        assert await appeared(second, "s@", seq) == "s@2024-02-29T12:00:00Z"
        await second.schedule("true", "t", cron="*/5 * * * *", start=at(-5), overlap="allow")
        await look(first, first_clock, at(5))
        assert await made(second, "s") == ["0", "5"]
        seq = await last_seq(first)
        await first.close()
        await appeared(second, "s@", seq)
        assert await made(second, "s") == ["0", "5", "1000"]


HOST = """
import asyncio, sys
from anodejobs import Jobs

async def main():
    async with Jobs(sys.argv[1]) as jobs:
        await jobs.schedule("true", "s", every=0.05, overlap="allow")
        async for event in jobs.events():
            print(event.job_id, flush=True)

asyncio.run(main())
"""


async def test_when_the_process_that_acts_is_killed_another_one_goes_on(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S):
        host = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", HOST, str(tmp_path / "db")), stdout=PIPE
        )
        assert host.stdout is not None
        try:
            assert (await host.stdout.readline()).startswith(b"s@")
            async with Jobs(tmp_path / "db", executor="inline") as jobs:
                await appeared(jobs, "s@", await last_seq(jobs))
                host.send_signal(signal.SIGKILL)
                await host.wait()
                for _ in range(3):
                    await appeared(jobs, "s@", await last_seq(jobs))
                await jobs.unschedule("s")
                await jobs.wait_all({})
                assert len(await inserted(jobs)) == len(set(await inserted(jobs))) > 4
        finally:
            if host.returncode is None:
                host.kill()
            await host.communicate()


async def test_where_one_fires_the_others_are_not_read_anew(
    jobs: Jobs, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(20):
        await jobs.schedule("true", f"t{n}", cron="@yearly")
    await jobs.schedule("true", "s", cron="*/5 * * * *", overlap="allow")
    await look(jobs, clock, at(1))
    read: list[str] = []
    entry = jobs._timetable._known["s"].entry

    def noted(name: str, text: str) -> Any:
        read.append(name)
        return from_text(name, text)

    from_text = type(entry).from_text
    monkeypatch.setattr(type(entry), "from_text", noted)
    await look(jobs, clock, at(5))
    assert await made(jobs, "s") == ["0", "5"]
    assert not [name for name in read if name.startswith("t")]


async def test_the_progress_of_what_is_forgotten_is_forgotten(jobs: Jobs, clock: Clock) -> None:
    """Another process may forget a schedule while this one keeps how far it is."""
    await jobs.schedule("true", "s", cron="*/5 * * * *")
    await look(jobs, clock)
    await jobs._jobdb.put_document(SCHEDULE, "s", None)
    await look(jobs, clock, at(5))
    assert "s" not in await jobs._jobdb.documents(PROGRESS)


async def test_what_others_write_is_no_reason_to_read_all_schedules_anew(
    jobs: Jobs, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs.schedule("true", "s", cron="@daily")
    await look(jobs, clock)
    looks = 0
    see_to_all = jobs._timetable._see_to_all

    async def counted(kept: dict[str, str]) -> datetime | None:
        nonlocal looks
        looks += 1
        return await see_to_all(kept)

    monkeypatch.setattr(jobs._timetable, "_see_to_all", counted)
    for _ in range(10):
        jobs._timetable.attend()
        await jobs.submit("true")
    assert looks <= 1  # for the one that `look` has removed
    await look(jobs, clock, at(1440))
    assert looks > 0
