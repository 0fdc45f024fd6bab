"""Jobs that take turns: slots, order, dependencies, moments, batches, retries and restarts."""

from __future__ import annotations

import asyncio
import gc
import itertools
import shlex
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from anodejobs import (
    DependencyCycle,
    InvalidJob,
    InvalidTransition,
    JobActive,
    JobEvent,
    JobNotFound,
    JobRecord,
    Jobs,
    MemoryJobStore,
    SqliteJobStore,
    Status,
    StatusUnreachable,
    StoreError,
    stock,
)
from anodejobs import scheduler as scheduler_module
from anodejobs import starter as starter_module
from anodejobs.control import Control
from anodejobs.dependencies import OnDependencyFailure
from anodejobs.events import Exited, Lost, utc_now
from anodejobs.executors.base import Tell
from anodejobs.executors.processes import Processes
from anodejobs.jobdb import JobDB
from anodejobs.retries import ExponentialBackoff, FixedDelay, RestartPolicy
from anodejobs.stores.base import Save, Stored, Turn, Write
from tests.programs import Gate

LIMIT_S = 60.0


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[Jobs]:
    """A Jobs whose running jobs end with it."""
    usual = {"executor": "inline", "stop_grace": 1, "on_close": "stop"}
    async with Jobs(folder / "job_db", **{**usual, **options}) as jobs:
        yield jobs


@pytest.fixture
async def one_slot(tmp_path: Path) -> AsyncIterator[Jobs]:
    async with opened(tmp_path, max_concurrent_jobs=1) as jobs:
        yield jobs


def until(path: Path) -> str:
    """Return the shell command that holds a job up until the file is there."""
    return f"until [ -e {shlex.quote(str(path))} ]; do sleep 0.01; done"


def noting(folder: Path, word: str = "$ANODEJOBS_JOB_ID") -> str:
    """Return the command that writes the id of its job, in the order in which they start."""
    return f"echo {word} >> {shlex.quote(str(folder / 'order'))}"


def order(folder: Path) -> list[str]:
    path = folder / "order"
    return path.read_text().split() if path.exists() else []


async def ended(jobs: Jobs, *job_ids: str) -> list[JobRecord]:
    """Return the records of the jobs when all have ended."""
    return list((await jobs.wait_all(job_ids, timeout=LIMIT_S)).values())


async def status_of(jobs: Jobs, job_id: str) -> Status:
    record = await jobs.get_status(job_id)
    assert record is not None
    return record.status


async def lived(jobs: Jobs, job_id: str) -> list[str | None]:
    """Return the statuses that the job has had."""
    return [event.status for event in await jobs.history(job_id)]


async def has_happened(jobs: Jobs, job_id: str, is_it: Callable[[JobRecord], bool]) -> JobRecord:
    """Return the job's record as soon as it is such a one."""
    async with asyncio.timeout(LIMIT_S), aclosing(jobs.events(job_id, after=0)) as events:
        async for _ in events:
            record = await jobs.get_status(job_id)
            if record is not None and is_it(record):
                return record
    raise AssertionError("events do not end")


# Creating, submitting, starting, cancelling.


async def test_a_created_job_waits_to_be_started(one_slot: Jobs, tmp_path: Path) -> None:
    created = await one_slot.create(noting(tmp_path), "created")
    assert (created.status, created.submitted_at) == (Status.pending, None)
    await ended(one_slot, (await one_slot.submit("true")).self_id)
    assert await status_of(one_slot, "created") is Status.pending
    assert order(tmp_path) == []


async def test_a_started_job_takes_its_turn(jobs: Jobs) -> None:
    await jobs.create("true", "job")
    started = await jobs.start("job")
    assert started.status is Status.queued
    assert started.submitted_at is not None
    (record,) = await ended(jobs, "job")
    assert record.status is Status.finished
    life = [Status.pending, Status.queued, Status.starting, Status.running, Status.finished]
    assert await lived(jobs, "job") == life


async def test_a_submitted_job_is_queued_and_starts(jobs: Jobs) -> None:
    submitted = await jobs.submit("exit 3", "job")
    assert submitted.status is Status.queued
    (record,) = await ended(jobs, "job")
    assert (record.status, record.exit_code) == (Status.failed, 3)


async def test_a_store_in_memory_has_a_queue_too(tmp_path: Path) -> None:
    async with opened(tmp_path, store=MemoryJobStore()) as jobs:
        await jobs.submit("true", "job")
        assert (await ended(jobs, "job"))[0].status is Status.finished


async def test_a_job_that_has_ended_is_run_anew_by_start(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.submit(noting(tmp_path), "job", tags=["red"])
    await ended(jobs, "job")
    again = await jobs.start("job")
    assert (again.status, again.tags, again.finished_at) == (Status.queued, ["red"], None)
    assert (await ended(jobs, "job"))[0].status is Status.finished
    assert order(tmp_path) == ["job", "job"]


async def test_a_job_that_was_submitted_is_returned_by_start_as_it_is(jobs: Jobs) -> None:
    await jobs.create("true", "other")
    submitted = await jobs.submit("true", "job", depends_on=["other"])
    assert await jobs.start("job") == submitted


async def test_a_job_that_runs_cannot_be_started(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "job")
    with pytest.raises(JobActive):
        await jobs.start("job")


async def test_an_unknown_job_cannot_be_started(jobs: Jobs) -> None:
    with pytest.raises(JobNotFound):
        await jobs.start("nobody")


async def test_a_job_that_depended_on_one_that_is_gone_cannot_be_started_anew(jobs: Jobs) -> None:
    await jobs.submit("true", "first")
    await jobs.submit("true", "second", depends_on=["first"])
    before = (await ended(jobs, "second"))[0]
    await jobs.delete("first")
    with pytest.raises(InvalidJob, match=r"^depends_on: there is no job 'first'$"):
        await jobs.start("second")
    await jobs.create("true", "first", depends_on=["second"])
    with pytest.raises(DependencyCycle):
        await jobs.start("second")
    assert await jobs.get_status("second") == before


async def test_many_starts_of_a_created_job_start_it_once(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.create(noting(tmp_path), "job")
    starts = (jobs.start("job") for _ in range(5))
    answers = await asyncio.gather(*starts, return_exceptions=True)
    # A call that comes late finds it started.
    assert all(isinstance(answer, JobRecord | JobActive) for answer in answers)
    await ended(jobs, "job")
    assert order(tmp_path) == ["job"]


@pytest.mark.parametrize("open_job", ["create", "submit"])
async def test_an_id_that_waits_is_refused(one_slot: Jobs, open_job: str) -> None:
    await one_slot.run("sleep 1000", "blocker")
    await one_slot.submit("true", "job")
    with pytest.raises(JobActive):
        await getattr(one_slot, open_job)("true", "job")
    with pytest.raises(JobActive):
        await one_slot.run("true", "job")


async def test_an_ended_id_is_submitted_anew(jobs: Jobs) -> None:
    await jobs.run("echo old", "job")
    await ended(jobs, "job")
    await jobs.submit("echo new", "job")
    await ended(jobs, "job")
    assert await jobs.job_logs("job") == ("new\n", "")


async def test_skip_gives_the_old_record_to_who_submits(jobs: Jobs) -> None:
    await jobs.run("true", "job")
    (old,) = await ended(jobs, "job")
    assert await jobs.submit("false", "job", if_exists="skip") == old


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depends_on", ["nobody"]),
        ("depends_on", ["job"]),
        ("depends_on", [0]),
        ("priority", "urgent"),
        ("queue", ""),
        ("start_deadline", -1),
        ("on_dependency_failure", "shrug"),
        ("max_retries", -1),
        ("retry_delay", 1.0),
        ("restart", "sometimes"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_stored(
    jobs: Jobs, field: str, value: Any
) -> None:
    with pytest.raises(InvalidJob) as error:
        await jobs.submit("true", "job", **{field: value})
    assert error.value.field in (field, "max_retries")
    assert await jobs.get_status("job") is None


@pytest.mark.parametrize(
    "spec", [{"depends_on": ["other"]}, {"run_at": utc_now()}, {"start_deadline": 1.0}]
)
async def test_run_refuses_what_only_makes_sense_in_a_queue(
    jobs: Jobs, spec: dict[str, Any]
) -> None:
    with pytest.raises(InvalidJob):
        await jobs.run("true", "job", **spec)


async def test_a_job_that_is_started_twice_at_once_is_submitted_once(one_slot: Jobs) -> None:
    await one_slot.create("sleep 1000", "first")
    await one_slot.create("true", "job", depends_on=["first"])
    one, other = await asyncio.gather(one_slot.start("job"), one_slot.start("job"))
    assert one == other
    assert len(await one_slot.history("job")) == 2


async def test_a_job_that_is_cancelled_just_before_it_is_started_is_run_anew(jobs: Jobs) -> None:
    await jobs.create("true", "job")
    cancelled, started = await asyncio.gather(jobs.cancel("job"), jobs.start("job"))
    assert cancelled is not None and cancelled.status is Status.cancelled
    assert started.created_at and cancelled.created_at and started.created_at > cancelled.created_at
    assert (await ended(jobs, "job"))[0].status is Status.finished


@pytest.mark.parametrize("open_job", ["create", "submit"])
async def test_a_job_that_has_not_started_is_cancelled(one_slot: Jobs, open_job: str) -> None:
    await one_slot.run("sleep 1000", "blocker")
    await getattr(one_slot, open_job)("true", "job")
    cancelled = await one_slot.cancel("job")
    assert cancelled is not None
    assert (cancelled.status, cancelled.error, cancelled.exit_code) == (
        Status.cancelled,
        None,
        None,
    )
    assert await one_slot.attempts("job") == []
    assert await one_slot.job_logs("job") == ("", "")


async def test_a_cancelled_job_never_starts(one_slot: Jobs, tmp_path: Path) -> None:
    await one_slot.run(until(tmp_path / "go"), "blocker")
    await one_slot.submit(noting(tmp_path), "cancelled")
    await one_slot.submit(noting(tmp_path), "next")
    await one_slot.cancel("cancelled")
    (tmp_path / "go").touch()
    await ended(one_slot, "next", "cancelled")
    assert order(tmp_path) == ["next"]


async def test_a_job_that_runs_is_stopped_by_cancel(jobs: Jobs) -> None:
    await jobs.submit("sleep 1000", "job")
    await jobs.wait("job", "running")
    cancelled = await jobs.cancel("job")
    assert cancelled is not None and cancelled.status is Status.stopped


async def test_cancelling_nobody_gives_none(jobs: Jobs) -> None:
    assert await jobs.cancel("nobody") is None


async def test_a_cancelled_job_can_be_started_anew(one_slot: Jobs) -> None:
    await one_slot.create("true", "job")
    await one_slot.cancel("job")
    await one_slot.start("job")
    assert (await ended(one_slot, "job"))[0].status is Status.finished


async def test_a_program_that_is_not_there_gives_its_slot_to_the_next(one_slot: Jobs) -> None:
    await one_slot.submit(["/no/such/program"], "broken")
    await one_slot.submit("true", "next")
    broken, following = await ended(one_slot, "broken", "next")
    assert (broken.status, following.status) == (Status.failed_start, Status.finished)


async def test_who_waits_for_a_queued_job_to_run_gets_it_running(one_slot: Jobs) -> None:
    await one_slot.submit("sleep 1000", "job")
    assert (await one_slot.wait("job", "running", timeout=LIMIT_S)).status is Status.running


async def test_a_status_that_a_cancelled_job_cannot_reach_is_said(one_slot: Jobs) -> None:
    await one_slot.create("true", "job")
    waiting = asyncio.create_task(one_slot.wait("job", "running"))
    await asyncio.sleep(0)
    await one_slot.cancel("job")
    with pytest.raises(StatusUnreachable):
        await waiting


# Slots.

COUNTING = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
def add(n):
    fcntl.flock(fd, fcntl.LOCK_EX)
    now, most = map(int, (os.pread(fd, 100, 0).split() or [0, 0]))
    now += n
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d %d" % (now, max(now, most)), 0)
    fcntl.flock(fd, fcntl.LOCK_UN)
add(1); time.sleep(0.02); add(-1)
"""


def counting(path: Path) -> list[str]:
    """Return the command that counts, in the file, how many such jobs run at once."""
    return [sys.executable, "-I", "-S", "-c", COUNTING, str(path)]


def most_at_once(path: Path) -> int:
    return int(path.read_text().split()[1])


async def test_no_more_jobs_run_than_there_are_slots(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent_jobs=3) as jobs:
        submitted = [await jobs.submit(counting(tmp_path / "all")) for _ in range(20)]
        await ended(jobs, *(record.self_id for record in submitted))
    assert most_at_once(tmp_path / "all") <= 3


async def test_a_queue_has_slots_of_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent_jobs=4, queues={"gpu": 1}) as jobs:
        submitted = [
            await jobs.submit(counting(tmp_path / queue), queue=queue)
            for _ in range(8)
            for queue in ("gpu", "cpu")
        ]
        await ended(jobs, *(record.self_id for record in submitted))
    assert most_at_once(tmp_path / "gpu") == 1
    assert most_at_once(tmp_path / "cpu") <= 4


async def test_a_full_queue_holds_up_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path, queues={"gpu": 1}) as jobs:
        await jobs.submit("sleep 1000", "holder", queue="gpu")
        await jobs.wait("holder", "running")
        await jobs.submit("true", "second", queue="gpu", priority="critical")
        await jobs.submit("true", "other", priority="low")
        await ended(jobs, "other")
        assert await status_of(jobs, "second") is Status.queued


async def test_run_starts_at_once_and_takes_a_slot(one_slot: Jobs, tmp_path: Path) -> None:
    await one_slot.submit(until(tmp_path / "go"), "first")
    await one_slot.wait("first", "running")
    assert (await one_slot.run(until(tmp_path / "stay"), "at once")).status is Status.running
    await one_slot.submit("true", "second")
    (tmp_path / "go").touch()
    await ended(one_slot, "first")
    assert await status_of(one_slot, "second") is Status.queued
    (tmp_path / "stay").touch()
    assert (await ended(one_slot, "second"))[0].status is Status.finished


async def test_without_a_limit_all_run_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent_jobs=None) as jobs:
        job_ids = [(await jobs.submit(until(tmp_path / "go"))).self_id for _ in range(15)]
        await asyncio.gather(*(jobs.wait(job_id, "running", LIMIT_S) for job_id in job_ids))
        (tmp_path / "go").touch()
        await ended(jobs, *job_ids)


# Order.


async def run_in_turn(jobs: Jobs, folder: Path, *specs: dict[str, Any]) -> list[str]:
    """Submit the jobs while the only slot is taken, and return them as they then start."""
    await jobs.run(until(folder / "go"), "blocker")
    for spec in specs:
        await jobs.submit(noting(folder), **spec)
    (folder / "go").touch()
    await ended(jobs, *(spec["job_id"] for spec in specs))
    return order(folder)


async def test_first_come_first_served(one_slot: Jobs, tmp_path: Path) -> None:
    specs = [{"job_id": str(number)} for number in range(6)]
    assert await run_in_turn(one_slot, tmp_path, *specs) == list("012345")


async def test_a_higher_priority_starts_first(one_slot: Jobs, tmp_path: Path) -> None:
    ranks: list[tuple[str, str | int]] = [("c", "medium"), ("d", "low"), ("a", 41), ("b", "high")]
    specs = [{"job_id": job_id, "priority": priority} for job_id, priority in ranks]
    assert await run_in_turn(one_slot, tmp_path, *specs) == list("abcd")


async def test_waiting_raises_a_job(tmp_path: Path) -> None:
    # A thousandth of a second makes up for ten steps: whoever came first is first.
    async with opened(tmp_path, max_concurrent_jobs=1, aging=1e-7) as jobs:
        specs = [{"job_id": "early", "priority": "low"}, {"job_id": "late", "priority": "critical"}]
        assert await run_in_turn(jobs, tmp_path, *specs) == ["early", "late"]


async def test_without_aging_priorities_are_strict(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent_jobs=1, aging=None) as jobs:
        specs = [{"job_id": "early", "priority": "low"}, {"job_id": "late", "priority": "medium"}]
        assert await run_in_turn(jobs, tmp_path, *specs) == ["late", "early"]


async def test_the_order_lasts_over_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent_jobs=1) as jobs:
        await jobs.run("sleep 1000", "blocker")
        for number, priority in enumerate(("low", "high", "medium", "high")):
            await jobs.submit(noting(tmp_path), f"{number}", priority=priority)
    async with opened(tmp_path, max_concurrent_jobs=1) as jobs:
        await ended(jobs, *"0123")
    assert order(tmp_path) == ["1", "3", "2", "0"]


# Queues that are paused.


@pytest.mark.parametrize("store", [None, "memory://"])
async def test_a_paused_queue_starts_nothing_until_it_is_resumed(
    tmp_path: Path, store: str | None
) -> None:
    async with opened(tmp_path, store=store) as jobs:
        await jobs.pause_queue()
        assert await jobs.paused_queues() == ["default"]
        await jobs.submit("true", "held")
        await jobs.submit("true", "other", queue="other")
        await ended(jobs, "other")
        assert await status_of(jobs, "held") is Status.queued
        await jobs.resume_queue()
        assert (await ended(jobs, "held"))[0].status is Status.finished
        assert await jobs.paused_queues() == []


async def test_what_runs_in_a_paused_queue_goes_on(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.submit(until(tmp_path / "go"), "job")
    await jobs.wait("job", "running")
    await jobs.pause_queue()
    (tmp_path / "go").touch()
    assert (await ended(jobs, "job"))[0].status is Status.finished


async def test_run_does_not_heed_a_paused_queue(jobs: Jobs) -> None:
    await jobs.pause_queue()
    await jobs.run("true", "job")
    assert (await ended(jobs, "job"))[0].status is Status.finished


async def test_a_queue_stays_paused_over_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as jobs:
        await jobs.pause_queue("night")
        await jobs.submit("true", "held", queue="night")
    async with opened(tmp_path) as jobs:
        assert await jobs.paused_queues() == ["night"]
        await ended(jobs, (await jobs.submit("true")).self_id)
        assert await status_of(jobs, "held") is Status.queued
        await jobs.resume_queue("night")
        await ended(jobs, "held")


async def test_another_application_resumes_a_queue(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as other:
        await one.pause_queue()
        await one.submit("true", "held")
        await other.resume_queue()
        assert (await ended(one, "held"))[0].status is Status.finished


# Dependencies.


async def test_a_job_waits_for_the_jobs_that_it_depends_on(jobs: Jobs, tmp_path: Path) -> None:
    for name in ("a", "b"):
        await jobs.submit(f"{until(tmp_path / name)}; {noting(tmp_path)}", name)
    waiting = await jobs.submit(noting(tmp_path), "c", depends_on=["a", "b"])
    assert waiting.status is Status.pending
    (tmp_path / "b").touch()
    await ended(jobs, "b")
    assert await status_of(jobs, "c") is Status.pending
    (tmp_path / "a").touch()
    await ended(jobs, "c")
    assert order(tmp_path) == ["b", "a", "c"]


async def test_a_job_may_depend_on_one_that_has_finished_long_ago(jobs: Jobs) -> None:
    await jobs.run("true", "old")
    await ended(jobs, "old")
    await jobs.submit("true", "job", depends_on=["old"])
    assert (await ended(jobs, "job"))[0].status is Status.finished


async def test_a_job_that_depends_on_one_that_has_failed_long_ago_is_cancelled(
    jobs: Jobs,
) -> None:
    await jobs.run("false", "old")
    await ended(jobs, "old")
    await jobs.submit("true", "job", depends_on=["old"])
    (record,) = await ended(jobs, "job")
    assert (record.status, record.error) == (Status.cancelled, "dependency 'old' failed")


async def end_by(jobs: Jobs, how: str, folder: Path) -> None:
    """End the job ``first`` in a way."""
    if how == "failed":
        (folder / "fail").touch()
    elif how == "stopped":
        await jobs.wait("first", "running")
        await jobs.stop("first")
    elif how == "cancelled":
        await jobs.cancel("first")


WAYS = {
    "failed": "dependency 'first' failed",
    "stopped": "dependency 'first' was stopped",
    "cancelled": "dependency 'first' was cancelled",
    "failed_start": "dependency 'first' could not be started",
}


@pytest.mark.parametrize("how", WAYS)
async def test_a_dependency_that_does_not_succeed_cancels_all_that_depends_on_it(
    jobs: Jobs, tmp_path: Path, how: str
) -> None:
    command: str | list[str] = f"{until(tmp_path / 'fail')}; exit 1"
    await jobs.create(["/no/such/program"] if how == "failed_start" else command, "first")
    await jobs.submit("true", "second", depends_on=["first"])
    await jobs.submit("true", "third", depends_on=["second"])
    if how != "cancelled":
        await jobs.start("first")
    await end_by(jobs, how, tmp_path)
    second, third = await ended(jobs, "second", "third")
    assert (second.status, second.error) == (Status.cancelled, WAYS[how])
    assert (third.status, third.error) == (
        Status.cancelled,
        "dependency 'second' was cancelled",
    )


class Forgetful(Processes):
    """Does not see how the first attempt of the job ``first`` ends."""

    async def wait(self, token: str, tell: Tell) -> Exited | Lost:
        is_first = self._held[token].launch.logs.stdout.endswith("/first_out.txt")
        end = await super().wait(token, tell)
        return Lost(error="nobody saw it") if is_first else end


async def test_a_lost_dependency_cancels_its_dependents(tmp_path: Path) -> None:
    async with opened(tmp_path, executor=Forgetful()) as jobs:
        await jobs.submit("true", "first")
        await jobs.submit("true", "second", depends_on=["first"])
        first, second = await ended(jobs, "first", "second")
    assert (first.status, first.error) == (Status.lost, "nobody saw it")
    assert (second.status, second.error) == (Status.cancelled, "dependency 'first' was lost")


async def test_a_lost_job_is_retried(tmp_path: Path) -> None:
    async with opened(tmp_path, executor=Forgetful()) as jobs:
        await jobs.submit("true", "first", max_retries=1, retry=FixedDelay(on_lost=True))
        (record,) = await ended(jobs, "first")
        assert (record.status, record.attempt) == (Status.finished, 2)
        first, _ = await jobs.attempts("first")
        assert (first.status, first.error) == (Status.lost, "nobody saw it")


async def test_on_dependency_failure_run_runs_all_the_same(jobs: Jobs) -> None:
    await jobs.submit("false", "first")
    await jobs.submit("true", "second", depends_on=["first"], on_dependency_failure="run")
    assert (await ended(jobs, "second"))[0].status is Status.finished


async def held_job(jobs: Jobs) -> None:
    """Have a job ``second`` that is held because ``first`` has failed."""
    await jobs.create("false", "first")
    await jobs.submit("true", "second", depends_on=["first"], on_dependency_failure="hold")
    await jobs.start("first")
    await ended(jobs, "first")
    await ended(jobs, (await jobs.submit("true")).self_id)
    assert await status_of(jobs, "second") is Status.pending


async def test_a_hold_ends_when_the_dependency_is_run_anew_and_succeeds(jobs: Jobs) -> None:
    await held_job(jobs)
    await jobs.submit("true", "first")
    assert (await ended(jobs, "second"))[0].status is Status.finished


async def test_a_hold_lasts_when_the_dependency_is_run_anew_and_fails(jobs: Jobs) -> None:
    await held_job(jobs)
    await jobs.start("first")
    await ended(jobs, "first")
    await ended(jobs, (await jobs.submit("true")).self_id)
    assert await status_of(jobs, "second") is Status.pending


async def test_a_hold_ends_when_the_dependency_is_removed(jobs: Jobs) -> None:
    await held_job(jobs)
    assert (await jobs.remove_dependency("second", "first")).depends_on == []
    assert (await ended(jobs, "second"))[0].status is Status.finished


async def test_a_hold_lasts_over_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as jobs:
        await held_job(jobs)
    async with opened(tmp_path) as jobs:
        await ended(jobs, (await jobs.submit("true")).self_id)
        assert await status_of(jobs, "second") is Status.pending
        await jobs.run("true", "first")
        await ended(jobs, "second")


async def test_a_deleted_dependency_cancels_a_job_that_waits(jobs: Jobs) -> None:
    await held_job(jobs)
    await jobs.submit("true", "third", depends_on=["second"])
    await jobs.create("true", "fourth", depends_on=["first"])
    await jobs.delete("first")
    await jobs.start("fourth")
    (record,) = await ended(jobs, "fourth")
    assert (record.status, record.error) == (Status.cancelled, "dependency 'first' is not there")


async def test_a_finished_dependency_that_is_deleted_stays_met_over_a_restart(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, on_close="leave", executor="shim") as jobs:
        await jobs.submit(until(tmp_path / "go"), "long")
        await jobs.submit("true", "short")
        await jobs.submit("true", "waits", depends_on=["short", "long"])
        await jobs.create("true", "created", depends_on=["short"])
        await ended(jobs, "short")
        assert await jobs.delete("short")
        assert await jobs.get_dependencies("waits") == ["long"]
    async with opened(tmp_path, executor="shim") as jobs:
        await jobs.start("created")
        (tmp_path / "go").touch()
        records = await ended(jobs, "waits", "created")
    assert [record.status for record in records] == [Status.finished] * 2


@pytest.mark.parametrize("is_over", [True, False])
async def test_of_many_dependents_those_that_wait_are_released_together(
    tmp_path: Path, is_over: bool
) -> None:
    asked = 0

    class Counting(SqliteJobStore):
        async def commit(self, writes: Sequence[Write]) -> list[int | None]:
            nonlocal asked
            asked += 1
            return await super().commit(writes)

        async def get(self, job_id: str) -> Stored | None:
            nonlocal asked
            asked += 1
            return await super().get(job_id)

    async with opened(tmp_path, store=Counting(tmp_path / "jobs.db")) as jobs:
        await jobs.create("true", "first")
        specs = [{"command": "true", "depends_on": ["first"]} for _ in range(700)]
        batch_id, _ = await jobs.create_batch(specs)
        if is_over:
            await jobs.cancel_batch(batch_id)
        await jobs.start("first")
        await ended(jobs, "first")
        asked = 0
        await jobs.run("true", "first")
        await ended(jobs, "first")
        assert await jobs.delete("first")
        assert asked < 50
        kept = await jobs.get_batch(batch_id)
    assert [r.depends_on for r in kept.values()] == [["first"] if is_over else []] * 700


@pytest.mark.parametrize("how", ["run", "submit", "start", "restart"])
@pytest.mark.parametrize(
    ("first", "mode"), [("true", "cancel"), ("true", "hold"), ("true", "run"), ("false", "run")]
)
async def test_a_dependency_that_was_met_and_is_run_anew_stays_met_over_a_restart(
    tmp_path: Path, how: str, first: str, mode: OnDependencyFailure
) -> None:
    again, go = tmp_path / "again", tmp_path / "go"
    script = f"while [ -e {again} ]; do sleep 0.01; done; {first}"
    depends_on = ["short", "long"]
    async with AsyncExitStack() as stack:
        stack.callback(again.unlink)
        stack.callback(go.touch)
        async with opened(tmp_path, on_close="leave", executor="shim") as jobs:
            await jobs.submit(until(go), "long")
            await jobs.submit(script, "short")
            await jobs.submit("true", "waits", depends_on=depends_on, on_dependency_failure=mode)
            await jobs.create("true", "created", depends_on=depends_on)
            await ended(jobs, "short")
            again.touch()
            spec = {"command": script} if how in ("run", "submit") else {}
            await getattr(jobs, how)(job_id="short", **spec)
            assert await jobs.get_dependencies("waits") == ["long"]
            assert await jobs.get_dependencies("created") == depends_on
        jobs = await stack.enter_async_context(opened(tmp_path, executor="shim"))
        go.touch()
        (record,) = await ended(jobs, "waits")
        assert record.status is Status.finished
        assert await status_of(jobs, "short") is Status.running


async def test_a_dependency_that_has_failed_and_is_run_anew_is_waited_for_by_who_holds(
    jobs: Jobs,
) -> None:
    await held_job(jobs)
    await jobs.run("sleep 1000", "first")
    assert await jobs.get_dependencies("second") == ["first"]
    assert await status_of(jobs, "second") is Status.pending


async def test_a_queued_job_keeps_its_place_when_what_it_depended_on_is_deleted(
    one_slot: Jobs, tmp_path: Path
) -> None:
    await ended(one_slot, (await one_slot.submit("true", "first")).self_id)
    await one_slot.run(until(tmp_path / "go"))
    queued = await one_slot.submit(noting(tmp_path), "second", depends_on=["first"])
    queued = await one_slot.wait("second", "queued")
    await one_slot.submit(noting(tmp_path), "third")
    await one_slot.delete("first")
    assert await one_slot.get_status("second") == queued
    (tmp_path / "go").touch()
    await ended(one_slot, "second", "third")
    assert order(tmp_path) == ["second", "third"]


async def test_a_job_that_waits_can_be_given_another_dependency(jobs: Jobs, tmp_path: Path) -> None:
    for name in ("a", "b"):
        await jobs.submit(f"{until(tmp_path / name)}; {noting(tmp_path)}", name)
    await jobs.submit(noting(tmp_path), "c", depends_on=["a"])
    assert (await jobs.add_dependency("c", "b")).depends_on == ["a", "b"]
    assert await jobs.get_dependencies("c") == ["a", "b"]
    assert await jobs.get_dependents("b") == ["c"]
    (tmp_path / "a").touch()
    await ended(jobs, "a")
    (tmp_path / "b").touch()
    await ended(jobs, "c")
    assert order(tmp_path) == ["a", "b", "c"]


async def test_a_queued_job_can_be_given_a_dependency(one_slot: Jobs, tmp_path: Path) -> None:
    await one_slot.run(until(tmp_path / "go"), "blocker")
    await one_slot.submit(noting(tmp_path), "first")
    await one_slot.submit(noting(tmp_path), "second")
    assert (await one_slot.add_dependency("first", "second")).status is Status.pending
    (tmp_path / "go").touch()
    await ended(one_slot, "first")
    assert order(tmp_path) == ["second", "first"]


@pytest.mark.parametrize("how", ["delete", "run", "submit"])
async def test_a_queued_job_that_is_given_a_dependency_waits_for_no_other(
    one_slot: Jobs, tmp_path: Path, how: str
) -> None:
    await ended(one_slot, (await one_slot.submit("true", "before")).self_id)
    await one_slot.run(until(tmp_path / "go"), "blocker")
    await one_slot.submit("true", "job", depends_on=["before"])
    await one_slot.wait("job", "queued")
    if how == "delete":
        await one_slot.delete("before")
    else:
        await getattr(one_slot, how)(f"{until(tmp_path / 'go')}; false", "before")
    assert (await one_slot.add_dependency("job", "blocker")).depends_on == ["blocker"]
    (tmp_path / "go").touch()
    assert (await ended(one_slot, "job"))[0].status is Status.finished


async def test_what_a_queued_job_has_waited_for_may_wait_for_it(
    one_slot: Jobs, tmp_path: Path
) -> None:
    await ended(one_slot, (await one_slot.submit("true", "before")).self_id)
    await one_slot.run(until(tmp_path / "go"), "blocker")
    await one_slot.submit(noting(tmp_path), "job", depends_on=["before"])
    await one_slot.wait("job", "queued")
    await one_slot.submit(noting(tmp_path), "before", depends_on=["job"])
    (tmp_path / "go").touch()
    await ended(one_slot, "job", "before")
    assert order(tmp_path) == ["job", "before"]


async def test_a_change_of_dependencies_that_changes_nothing_is_not_on_record(
    one_slot: Jobs, tmp_path: Path
) -> None:
    await ended(one_slot, (await one_slot.submit("true", "before")).self_id)
    await one_slot.run(until(tmp_path / "go"), "other")
    await one_slot.submit("true", "queued", depends_on=["before"])
    queued = await one_slot.wait("queued", "queued")
    await one_slot.delete("before")
    pending = await one_slot.submit("true", "pending", depends_on=["queued"])
    assert await one_slot.remove_dependency("queued", "other") == queued
    assert await one_slot.remove_dependency("pending", "other") == pending
    assert await one_slot.add_dependency("pending", "queued") == pending
    (tmp_path / "go").touch()
    await ended(one_slot, "pending")
    assert len(await lived(one_slot, "queued")) == 5


async def test_dependencies_that_are_added_at_once_are_all_added(jobs: Jobs) -> None:
    names = [f"dependency-{number}" for number in range(8)]
    for name in ("job", *names):
        await jobs.create("true", name)
    await asyncio.gather(*(jobs.add_dependency("job", name) for name in names))
    assert sorted(await jobs.get_dependencies("job")) == names


async def test_a_removed_dependency_is_waited_for_no_more(jobs: Jobs) -> None:
    await jobs.create("true", "never")
    await jobs.submit("true", "job", depends_on=["never"])
    await jobs.remove_dependency("job", "never")
    assert (await ended(jobs, "job"))[0].status is Status.finished
    assert await jobs.get_dependents("never") == []


@pytest.mark.parametrize("change", ["add_dependency", "remove_dependency"])
async def test_the_dependencies_of_a_job_that_has_started_stay(jobs: Jobs, change: str) -> None:
    await jobs.create("true", "other")
    await jobs.run("sleep 1000", "job")
    with pytest.raises(InvalidTransition, match=r": it cannot be given other dependencies$"):
        await getattr(jobs, change)("job", "other")


async def test_the_dependencies_of_a_job_that_waits_for_a_retry_stay(jobs: Jobs) -> None:
    await jobs.create("true", "other")
    await jobs.submit("false", "job", max_retries=1, retry_delay=1000)
    await has_happened(jobs, "job", lambda record: record.attempt == 2)
    with pytest.raises(InvalidTransition):
        await jobs.add_dependency("job", "other")


class HeldUp:
    """Holds up a method from now on, until it is let go on."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type, method: str) -> None:
        self.has_come = asyncio.Event()
        self.has_gone = asyncio.Event()
        """Whether what was held up is over."""
        self._may_go_on = asyncio.Event()
        original = getattr(owner, method)

        async def held(*args: Any) -> Any:
            self.has_come.set()
            await self._may_go_on.wait()
            try:
                return await original(*args)
            finally:
                self.has_gone.set()

        patch.setattr(owner, method, held)
        self._undo = lambda: patch.setattr(owner, method, original)

    def let_next_pass(self) -> None:
        """Hold up those only that have come."""
        self._undo()

    def let_go_on(self) -> None:
        self._may_go_on.set()


async def test_a_job_that_is_given_a_dependency_as_it_is_about_to_be_queued_waits_for_it(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs.create("true", "never")
    await jobs.run(until(tmp_path / "go"), "first")
    await jobs.submit("true", "second", depends_on=["first"])
    decision = HeldUp(monkeypatch, scheduler_module.Scheduler, "_apply")
    (tmp_path / "go").touch()
    await decision.has_come.wait()
    await jobs.add_dependency("second", "never")
    decision.let_go_on()
    await ended(jobs, (await jobs.submit("true")).self_id)
    assert await lived(jobs, "second") == [Status.pending, Status.pending]
    await jobs.remove_dependency("second", "never")
    assert (await ended(jobs, "second"))[0].status is Status.finished


async def test_a_job_whose_dependency_is_removed_as_it_is_about_to_be_cancelled_for_it_runs(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs.run(f"{until(tmp_path / 'go')}; false", "first")
    script = f"{until(tmp_path / 'second')}; {noting(tmp_path)}"
    await jobs.submit(script, "second", depends_on=["first"])
    await jobs.submit("true", "third", depends_on=["second"])
    await jobs.submit(noting(tmp_path), "last", depends_on=["third"], on_dependency_failure="run")
    decision = HeldUp(monkeypatch, scheduler_module.Scheduler, "_apply")
    (tmp_path / "go").touch()
    await decision.has_come.wait()
    await jobs.remove_dependency("second", "first")
    decision.let_go_on()
    await jobs.wait("second", "running")
    (tmp_path / "second").touch()
    records = await ended(jobs, "second", "third", "last")
    assert [record.status for record in records] == [Status.finished] * 3
    assert order(tmp_path) == ["second", "last"]


async def test_a_slot_that_was_given_to_another_while_a_job_was_relinked_is_not_used_twice(
    one_slot: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_slot.create("true", "never")
    admission = HeldUp(monkeypatch, starter_module.Starter, "_admit")
    await one_slot.submit("true", "first")
    await admission.has_come.wait()
    admission.let_next_pass()
    await one_slot.submit(until(tmp_path / "go"), "second")
    await one_slot.add_dependency("first", "never")
    await one_slot.wait("second", "running")
    await one_slot.remove_dependency("first", "never")
    await has_happened(one_slot, "first", lambda record: record.status is Status.queued)
    admission.let_go_on()
    await admission.has_gone.wait()
    assert await status_of(one_slot, "first") is Status.queued
    (tmp_path / "go").touch()
    assert (await ended(one_slot, "first"))[0].status is Status.finished


async def test_a_dependency_that_is_not_there_is_refused(jobs: Jobs) -> None:
    await jobs.create("true", "job")
    with pytest.raises(InvalidJob):
        await jobs.add_dependency("job", "nobody")
    with pytest.raises(JobNotFound):
        await jobs.add_dependency("nobody", "job")


async def test_a_cycle_is_refused(jobs: Jobs) -> None:
    await jobs.create("true", "a")
    await jobs.create("true", "b", depends_on=["a"])
    await jobs.create("true", "c", depends_on=["b"])
    with pytest.raises(DependencyCycle) as error:
        await jobs.add_dependency("a", "c")
    assert set(error.value.cycle) == {"a", "b", "c"}
    assert await jobs.get_dependencies("a") == []
    with pytest.raises(DependencyCycle):
        await jobs.add_dependency("a", "a")


@pytest.mark.parametrize("how", ["create", "submit"])
async def test_a_cycle_through_a_job_that_was_deleted_and_comes_again_is_refused(
    jobs: Jobs, how: str
) -> None:
    await held_job(jobs)
    await jobs.submit("true", "third", depends_on=["second"])
    await jobs.delete("first")
    with pytest.raises(DependencyCycle) as refused:
        await getattr(jobs, how)("true", "first", depends_on=["third"])
    assert set(refused.value.cycle) == {"first", "second", "third"}
    assert await jobs.get_status("first") is None


async def test_a_job_that_nobody_waits_for_cannot_be_made_to_wait_for_itself(jobs: Jobs) -> None:
    await jobs.create("true", "a")
    with pytest.raises(DependencyCycle) as error:
        await jobs.add_dependency("a", "a")
    assert error.value.cycle == ("a",)
    assert await jobs.get_dependencies("a") == []


async def test_a_cycle_of_two_halves_that_are_made_at_once_cancels_both(jobs: Jobs) -> None:
    for name in ("a", "b"):
        await jobs.create("true", name)
    made = await asyncio.gather(
        jobs.add_dependency("a", "b"), jobs.add_dependency("b", "a"), return_exceptions=True
    )
    await asyncio.gather(jobs.start("a"), jobs.start("b"))
    records = await ended(jobs, "a", "b")
    if any(isinstance(each, DependencyCycle) for each in made):
        assert {record.status for record in records} == {Status.finished}
    else:
        assert {record.status for record in records} == {Status.cancelled}
        assert any("a" in (record.error or "") for record in records)


async def test_a_long_chain_is_submitted_without_looking_along_it(jobs: Jobs) -> None:
    await jobs.create("true", "0")
    looks = 0
    page = jobs._jobdb.page

    async def counted(query: Any) -> list[JobRecord]:
        nonlocal looks
        looks += 1
        return await page(query)

    jobs._jobdb.page = counted  # type: ignore[method-assign]
    for number in range(1, 30):
        await jobs.create("true", f"{number}", depends_on=[f"{number - 1}"])
    assert looks == 29


async def test_a_graph_of_many_jobs_runs_in_order(tmp_path: Path) -> None:
    # Each depends on one of the row before; the last row comes first.
    specs = [
        {
            "command": noting(tmp_path, f"{row}"),
            "depends_on": [(row + 1) * 4 + column] if row < 9 else [],
        }
        for row in range(10)
        for column in range(4)
    ]
    async with opened(tmp_path, max_concurrent_jobs=4) as jobs:
        batch_id, _ = await jobs.create_batch(specs, auto_start=True)
        records = await jobs.wait_batch(batch_id, timeout=LIMIT_S)
    assert {record.status for record in records.values()} == {Status.finished}
    rows = order(tmp_path)
    assert all(rows.index(f"{row}") > rows.index(f"{row + 1}") for row in range(9))


# Moments.


async def test_a_job_whose_moment_is_over_starts_at_once(jobs: Jobs) -> None:
    await jobs.submit("true", "job", run_at=utc_now() - timedelta(days=1))
    assert (await ended(jobs, "job"))[0].status is Status.finished


async def test_a_job_starts_when_its_moment_has_come(jobs: Jobs) -> None:
    run_at = utc_now() + timedelta(seconds=0.2)
    waiting = await jobs.submit("true", "job", run_at=run_at)
    assert waiting.status is Status.pending
    (record,) = await ended(jobs, "job")
    assert record.started_at is not None and record.started_at >= run_at


async def test_a_job_waits_for_its_moment_and_for_what_it_depends_on(jobs: Jobs) -> None:
    await jobs.create("true", "first")
    await jobs.submit("true", "job", run_at=utc_now(), depends_on=["first"])
    await ended(jobs, (await jobs.submit("true")).self_id)
    assert await status_of(jobs, "job") is Status.pending
    await jobs.start("first")
    await ended(jobs, "job")


async def test_a_moment_that_was_put_off_does_not_start_the_job(jobs: Jobs) -> None:
    await jobs.submit("true", "job", run_at=utc_now() + timedelta(seconds=0.2))
    await jobs.cancel("job")
    await jobs.submit("true", "job", run_at=utc_now() + timedelta(days=1))
    at = utc_now() + timedelta(seconds=0.3)
    await ended(jobs, (await jobs.submit("true", run_at=at)).self_id)
    assert await status_of(jobs, "job") is Status.pending


async def test_moments_of_jobs_that_were_cancelled_long_before_are_not_kept(tmp_path: Path) -> None:
    run_at = utc_now() + timedelta(days=300)
    async with opened(tmp_path, store=MemoryJobStore()) as jobs:
        for n in range(60):
            await jobs.submit("true", f"{n}", run_at=run_at)
            await jobs.cancel(f"{n}")
        kept = [found for found in gc.get_objects() if isinstance(found, stock._Pending)]
        assert sum(found.due_at == run_at.timestamp() for found in kept) < 5
        await jobs.submit("true", "first", run_at=utc_now() + timedelta(seconds=0.2))
        await jobs.cancel("first")
        await jobs.submit("true", "second", run_at=utc_now() + timedelta(seconds=0.1))
        await ended(jobs, "second")


async def test_a_moment_that_passed_while_nobody_was_there_has_come(tmp_path: Path) -> None:
    async with opened(tmp_path) as jobs:
        await jobs.pause_queue()
        await jobs.submit("true", "job", run_at=utc_now() + timedelta(milliseconds=1))
    async with opened(tmp_path) as jobs:
        await jobs.resume_queue()
        await ended(jobs, "job")


async def test_a_job_that_does_not_start_in_time_is_cancelled(one_slot: Jobs) -> None:
    await one_slot.run("sleep 1000", "blocker")
    await one_slot.submit("true", "job", start_deadline=0.05)
    await one_slot.submit("true", "patient")
    (record,) = await ended(one_slot, "job")
    assert record.status is Status.cancelled
    assert record.error == "it was not started within its start_deadline"
    assert await status_of(one_slot, "patient") is Status.queued


async def test_a_job_that_starts_in_time_is_not_cancelled(jobs: Jobs) -> None:
    await jobs.submit("sleep 0.2", "job", start_deadline=0.1)
    assert (await ended(jobs, "job"))[0].status is Status.finished


async def test_a_deadline_does_not_count_the_time_before_the_queue(jobs: Jobs) -> None:
    run_at = utc_now() + timedelta(seconds=0.2)
    await jobs.submit("true", "job", run_at=run_at, start_deadline=5)
    assert (await ended(jobs, "job"))[0].status is Status.finished


# Batches.


async def test_a_batch_is_created_in_order_and_waits(jobs: Jobs) -> None:
    specs = [{"command": "true", "job_id": name} for name in "cab"]
    batch_id, created = await jobs.create_batch(specs)
    assert list(created) == list("cab")
    assert {record.status for record in created.values()} == {Status.pending}
    assert {record.batch_id for record in created.values()} == {batch_id}
    assert await jobs.get_batch(batch_id) == dict(created)


async def test_a_batch_runs_by_the_indices_that_its_jobs_depend_on(
    jobs: Jobs, tmp_path: Path
) -> None:
    specs: list[dict[str, Any]] = [
        {"command": noting(tmp_path, "load"), "depends_on": [1]},
        {"command": noting(tmp_path, "transform"), "depends_on": [2]},
        {"command": noting(tmp_path, "extract")},
    ]
    batch_id, _ = await jobs.create_batch(specs, auto_start=True)
    records = await jobs.wait_batch(batch_id, timeout=LIMIT_S)
    assert order(tmp_path) == ["extract", "transform", "load"]
    progress = await jobs.batch_progress(batch_id)
    assert (progress.total, progress.ended) == (3, 3)
    assert {record.status for record in records.values()} == {Status.finished}


async def test_of_a_batch_with_an_id_that_is_taken_nothing_is_created(jobs: Jobs) -> None:
    await jobs.run("true", "taken")
    with pytest.raises(InvalidJob):
        await jobs.create_batch([{"command": "true"}, {"command": "true", "job_id": "taken"}])
    assert list(await jobs.list_status()) == ["taken"]


@pytest.mark.parametrize(
    ("specs", "error"),
    [
        ([], InvalidJob),
        ([{"command": "true"}, {"command": ""}], InvalidJob),
        ([{"command": "true", "depends_on": [1]}], InvalidJob),
        ([{"command": "true", "depends_on": ["nobody"]}], InvalidJob),
        ([{"command": "true", "depends_on": [0]}], DependencyCycle),
        ([{"command": "true", "depends_on": [1]}, {"command": "a", "depends_on": [0]}], None),
    ],
)
async def test_a_wrong_batch_is_refused_and_nothing_is_created(
    jobs: Jobs, specs: list[dict[str, Any]], error: type[Exception] | None
) -> None:
    with pytest.raises(error or DependencyCycle):
        await jobs.create_batch(specs, auto_start=True)
    assert await jobs.list_status() == {}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"timeout": "10"}, "timeout"),
        ({"command": ["a\0b"]}, "command"),
        ({"depends_on": [900]}, "depends_on"),
        ({"run_at": "soon"}, "run_at"),
        ({"cgroup_parent": "x"}, "cgroup_parent"),
    ],
    ids=str,
)
async def test_the_spec_of_a_batch_that_is_wrong_is_named(
    jobs: Jobs, wrong: dict[str, Any], field: str
) -> None:
    specs: list[dict[str, Any]] = [{"command": "true"} for _ in range(10)]
    specs[7] |= wrong
    with pytest.raises(InvalidJob, match=r"specs\[7\]") as caught:
        await jobs.create_batch(specs)
    assert caught.value.field == field


async def test_an_unknown_batch_is_not_found(jobs: Jobs) -> None:
    for call in (jobs.get_batch, jobs.wait_batch, jobs.cancel_batch, jobs.batch_progress):
        with pytest.raises(JobNotFound):
            await call("nobody")


async def test_cancelling_a_batch_starts_nothing(one_slot: Jobs, tmp_path: Path) -> None:
    specs: list[dict[str, Any]] = [{"command": "sleep 1000", "job_id": "first"}]
    specs += [{"command": noting(tmp_path), "job_id": f"{n}"} for n in range(5)]
    specs += [
        {
            "command": noting(tmp_path),
            "job_id": "after",
            "depends_on": ["first"],
            "on_dependency_failure": "run",
        }
    ]
    batch_id, _ = await one_slot.create_batch(specs, auto_start=True)
    await one_slot.wait("first", "running")
    records = await one_slot.cancel_batch(batch_id)
    assert records.pop("first").status is Status.stopped
    assert {record.status for record in records.values()} == {Status.cancelled}
    assert order(tmp_path) == []
    assert (await one_slot.batch_progress(batch_id)).counts[Status.cancelled] == 6


async def test_the_jobs_of_a_large_batch_are_withdrawn_part_by_part(tmp_path: Path) -> None:
    commits: list[int] = []

    class Counting(SqliteJobStore):
        async def commit(self, writes: Sequence[Write]) -> list[int | None]:
            commits.append(len(writes))
            return await super().commit(writes)

        async def get(self, job_id: str) -> Stored | None:
            raise AssertionError("one by one")

    async with opened(tmp_path, store=Counting(tmp_path / "jobs.db")) as jobs:
        batch_id, _ = await jobs.create_batch([{"command": "true"}] * 450)
        commits.clear()
        records = await jobs.cancel_batch(batch_id)
    assert sum(commits) == 450
    assert max(commits) <= 200
    assert {record.status for record in records.values()} == {Status.cancelled}


async def test_of_a_batch_that_is_cancelled_what_is_started_meanwhile_is_stopped(
    one_slot: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw = Control.withdraw

    async def withdraws_late(self: Control, job_ids: Sequence[str]) -> list[str]:
        started, deleted, _ = job_ids
        await one_slot.cancel(deleted)
        await one_slot.delete(deleted)
        await one_slot.resume_queue()
        await one_slot.wait(started, "running")
        return await withdraw(self, job_ids)

    await one_slot.pause_queue()
    batch_id, _ = await one_slot.create_batch([{"command": "sleep 1000"}] * 3, auto_start=True)
    monkeypatch.setattr(Control, "withdraw", withdraws_late)
    records = await one_slot.cancel_batch(batch_id)
    assert [record.status for record in records.values()] == [Status.stopped, Status.cancelled]


# Retries.

# Fails as often as the number says, then succeeds; says which attempt it is.
FLAKY = 'echo "attempt $ANODEJOBS_ATTEMPT"; echo wrong >&2; [ "$ANODEJOBS_ATTEMPT" -gt {times} ]'


async def test_a_job_is_retried_until_it_succeeds(jobs: Jobs) -> None:
    await jobs.submit(FLAKY.format(times=2), "job", max_retries=3)
    (record,) = await ended(jobs, "job")
    assert (record.status, record.attempt, record.exit_code) == (Status.finished, 3, 0)
    attempts = await jobs.attempts("job")
    assert [(a.attempt, a.status, a.exit_code) for a in attempts] == [
        (1, Status.failed, 1),
        (2, Status.failed, 1),
        (3, Status.finished, 0),
    ]
    assert all(a.started_at and a.finished_at and a.pid for a in attempts)


async def test_a_job_that_run_has_started_is_retried_too(jobs: Jobs) -> None:
    await jobs.run(FLAKY.format(times=1), "job", max_retries=1)
    (record,) = await ended(jobs, "job")
    assert (record.status, record.attempt) == (Status.finished, 2)


async def test_a_job_that_fails_too_often_has_failed(jobs: Jobs) -> None:
    await jobs.submit("exit 4", "job", max_retries=2)
    (record,) = await ended(jobs, "job")
    assert (record.status, record.attempt, record.exit_code) == (Status.failed, 3, 4)
    assert [attempt.exit_code for attempt in await jobs.attempts("job")] == [4, 4, 4]


async def test_an_attempt_that_ends_while_it_is_asked_for_is_told_once(
    jobs: Jobs, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = JobDB.history

    async def reads_late(self: JobDB, job_id: str) -> list[JobEvent]:
        gate.open(times=2)
        await ended(jobs, job_id)
        return await read(self, job_id)

    await jobs.submit(f"{gate.wait}; exit 4", "job", max_retries=1)
    await jobs.wait("job", "running")
    monkeypatch.setattr(JobDB, "history", reads_late)
    assert [(a.attempt, a.status) for a in await jobs.attempts("job")] == [(1, Status.running)]


async def test_each_attempt_keeps_its_logs(jobs: Jobs) -> None:
    await jobs.submit(FLAKY.format(times=1), "job", max_retries=1)
    await ended(jobs, "job")
    assert await jobs.job_logs("job", attempt=1) == ("attempt 1\n", "wrong\n")
    assert await jobs.job_logs("job", attempt=2) == ("attempt 2\n", "wrong\n")
    assert await jobs.job_logs("job") == ("attempt 2\n", "wrong\n")
    assert await jobs.job_logs("job", attempt=3) == ("", "")


async def test_a_job_that_is_run_anew_loses_the_logs_of_all_its_attempts(jobs: Jobs) -> None:
    await jobs.submit(FLAKY.format(times=1), "job", max_retries=1)
    await ended(jobs, "job")
    await jobs.submit("true", "job")
    await ended(jobs, "job")
    assert await jobs.job_logs("job", attempt=2) == ("", "")
    assert [attempt.attempt for attempt in await jobs.attempts("job")] == [1]


async def test_retries_wait_longer_and_longer(jobs: Jobs) -> None:
    backoff = ExponentialBackoff(initial=0.05, multiplier=4, max=100, jitter=0)
    await jobs.submit("false", "job", max_retries=2, retry=backoff)
    await ended(jobs, "job")
    attempts = await jobs.attempts("job")
    gaps = [
        (after.started_at - before.finished_at).total_seconds()
        for before, after in itertools.pairwise(attempts)
        if after.started_at and before.finished_at
    ]
    assert gaps[0] >= 0.05 and gaps[1] >= 0.2


async def test_only_the_exit_codes_of_the_policy_are_retried(jobs: Jobs) -> None:
    backoff = ExponentialBackoff(initial=0, exit_codes=[75])
    codes = "[ $ANODEJOBS_ATTEMPT = 1 ] && exit 75; exit 3"
    await jobs.submit(codes, "job", max_retries=5, retry=backoff)
    (record,) = await ended(jobs, "job")
    assert (record.attempt, record.exit_code, record.status) == (2, 3, Status.failed)


async def test_a_job_that_runs_out_of_time_is_retried(jobs: Jobs) -> None:
    command = "[ $ANODEJOBS_ATTEMPT = 2 ] || sleep 1000"
    await jobs.submit(command, "job", max_retries=1, timeout=0.2)
    (record,) = await ended(jobs, "job")
    assert (record.status, record.attempt, record.error) == (Status.finished, 2, None)
    first, _ = await jobs.attempts("job")
    assert (first.status, first.error) == (Status.failed, "timed out after 0.2 s")


async def test_a_program_that_cannot_be_started_is_retried(jobs: Jobs, tmp_path: Path) -> None:
    program = tmp_path / "program"
    await jobs.submit([str(program)], "job", max_retries=1, retry_delay=0.2)
    await has_happened(jobs, "job", lambda record: record.attempt == 2)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    assert (await ended(jobs, "job"))[0].status is Status.finished
    assert [a.status for a in await jobs.attempts("job")] == [Status.failed_start, Status.finished]


async def test_the_end_of_an_attempt_and_the_wait_for_the_next_are_one_change(
    jobs: Jobs,
) -> None:
    await jobs.submit("false", "job", max_retries=1)
    await ended(jobs, "job")
    once = [Status.queued, Status.starting, Status.running]
    assert await lived(jobs, "job") == [*once, Status.pending, *once, Status.failed]


async def test_a_job_that_waits_for_a_retry_is_cancelled_by_stop(jobs: Jobs) -> None:
    await jobs.submit("echo out; exit 3", "job", max_retries=1, retry_delay=1000)
    waiting = await has_happened(jobs, "job", lambda record: record.attempt == 2)
    assert (waiting.status, waiting.exit_code) == (Status.pending, 3)
    stopped = await jobs.stop("job")
    assert stopped is not None and stopped.status is Status.cancelled
    (attempt,) = await jobs.attempts("job")
    assert (attempt.attempt, attempt.status, attempt.exit_code) == (1, Status.failed, 3)
    assert await jobs.job_logs("job") == ("out\n", "")


async def test_a_job_that_is_stopped_is_not_retried(jobs: Jobs) -> None:
    await jobs.submit("sleep 1000", "job", max_retries=3)
    await jobs.wait("job", "running")
    stopped = await jobs.stop("job")
    assert stopped is not None and (stopped.status, stopped.attempt) == (Status.stopped, 1)


async def test_a_job_that_dies_of_itself_as_it_is_stopped_is_not_retried_for_that(
    jobs: Jobs,
) -> None:
    for number in range(20):
        await jobs.submit("exit 3", f"{number}", max_retries=1000, retry_delay=0)
    async with asyncio.timeout(LIMIT_S):
        stopped = await asyncio.gather(*(jobs.stop(f"{number}") for number in range(20)))
    assert all(record is not None and record.is_done for record in stopped)


async def test_who_follows_an_attempt_is_done_when_it_ends(jobs: Jobs) -> None:
    await jobs.submit("echo out; exit 3", "job", max_retries=1, retry_delay=1000)
    async with asyncio.timeout(LIMIT_S), aclosing(jobs.follow("job")) as chunks:
        assert b"".join([chunk.data async for chunk in chunks]) == b"out\n"
    assert await status_of(jobs, "job") is Status.pending


async def test_who_follows_a_job_between_two_attempts_gets_the_next(jobs: Jobs) -> None:
    await jobs.submit(FLAKY.format(times=1), "job", max_retries=1, retry_delay=0.2)
    await has_happened(jobs, "job", lambda record: record.attempt == 2)
    async with asyncio.timeout(LIMIT_S), aclosing(jobs.follow("job", stderr=False)) as chunks:
        assert b"".join([chunk.data async for chunk in chunks]) == b"attempt 2\n"


async def test_who_follows_a_job_that_has_ended_gets_its_last_attempt(jobs: Jobs) -> None:
    await jobs.submit(FLAKY.format(times=1), "job", max_retries=1)
    await ended(jobs, "job")
    async with asyncio.timeout(LIMIT_S), aclosing(jobs.follow("job", stderr=False)) as chunks:
        assert b"".join([chunk.data async for chunk in chunks]) == b"attempt 2\n"


async def test_who_follows_a_job_that_is_cancelled_before_its_retry_gets_what_there_is(
    jobs: Jobs,
) -> None:
    await jobs.submit("echo out; exit 3", "job", max_retries=1, retry_delay=1000)
    await has_happened(jobs, "job", lambda record: record.attempt == 2)
    await jobs.cancel("job")
    async with asyncio.timeout(LIMIT_S), aclosing(jobs.follow("job")) as chunks:
        assert b"".join([chunk.data async for chunk in chunks]) == b"out\n"


async def test_a_wait_is_over_when_no_attempt_follows(jobs: Jobs) -> None:
    await jobs.submit("false", "job", max_retries=2)
    assert (await jobs.wait("job", timeout=LIMIT_S)).attempt == 3


async def test_a_wait_for_a_status_counts_the_attempt_that_there_is(
    jobs: Jobs, tmp_path: Path
) -> None:
    command = f"[ $ANODEJOBS_ATTEMPT = 1 ] && exit 1; {until(tmp_path / 'go')}"
    await jobs.submit(command, "job", max_retries=1, retry_delay=0.2)
    await has_happened(jobs, "job", lambda record: record.attempt == 2)
    running = await jobs.wait("job", "running", timeout=LIMIT_S)
    assert running.attempt == 2
    (tmp_path / "go").touch()


async def test_a_job_that_is_stopped_while_its_start_fails_is_not_tried_again(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, stops = Processes.start, []

    async def starts(self: Processes, *args: Any, **options: Any) -> Any:
        stops.append(asyncio.create_task(jobs.stop("job")))
        while not jobs._jobdb.waits.awaits("job"):  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0)
        return await start(self, *args, **options)

    monkeypatch.setattr(Processes, "start", starts)
    await jobs.submit(["/no/such/program"], "job", max_retries=1, retry_delay=1000)
    await has_happened(jobs, "job", lambda record: record.attempt == 2)
    async with asyncio.timeout(LIMIT_S):
        record = await stops[0]
    assert record is not None and record.status is Status.cancelled


async def test_a_retry_that_waits_gives_its_slot_to_others(one_slot: Jobs) -> None:
    await one_slot.submit("false", "flaky", max_retries=1, retry_delay=1000)
    await one_slot.submit("true", "next")
    assert (await ended(one_slot, "next"))[0].status is Status.finished


async def test_dependents_wait_for_the_last_attempt(jobs: Jobs) -> None:
    await jobs.submit(FLAKY.format(times=2), "first", max_retries=2)
    await jobs.submit("true", "second", depends_on=["first"])
    assert (await ended(jobs, "second"))[0].status is Status.finished


async def test_a_retry_that_was_due_while_nobody_was_there_starts(tmp_path: Path) -> None:
    async with opened(tmp_path) as jobs:
        await jobs.submit(FLAKY.format(times=1), "job", max_retries=1, retry_delay=0.1)
        await has_happened(jobs, "job", lambda record: record.attempt == 2)
    async with opened(tmp_path) as jobs:
        (record,) = await ended(jobs, "job")
        assert (record.status, record.attempt) == (Status.finished, 2)


# Restarts.


async def test_a_service_is_restarted_when_it_fails(jobs: Jobs, tmp_path: Path) -> None:
    policy = RestartPolicy(when="on-failure", initial=0.01)
    await jobs.run(FLAKY.format(times=2), "job", restart=policy)
    (record,) = await ended(jobs, "job")
    assert (record.status, record.attempt) == (Status.finished, 3)


async def test_a_service_that_is_always_restarted_is_so_until_it_is_stopped(
    jobs: Jobs, tmp_path: Path
) -> None:
    policy = RestartPolicy(when="always", initial=0.01)
    await jobs.submit(
        f"[ $ANODEJOBS_ATTEMPT -lt 3 ] || {until(tmp_path / 'x')}", "job", restart=policy
    )
    await has_happened(
        jobs, "job", lambda record: record.attempt == 3 and record.status is Status.running
    )
    stopped = await jobs.stop("job")
    assert stopped is not None and stopped.status is Status.stopped
    assert [a.status for a in await jobs.attempts("job")] == [
        Status.finished,
        Status.finished,
        Status.stopped,
    ]


async def test_a_service_that_fails_too_often_is_given_up(jobs: Jobs) -> None:
    policy = RestartPolicy(when="on-failure", initial=0.01, limit=2)
    await jobs.submit("exit 9", "job", restart=policy)
    (record,) = await ended(jobs, "job")
    assert (record.status, record.attempt, record.exit_code) == (Status.failed, 3, 9)
    assert record.error is not None
    assert record.error.startswith("exit code 9; ")


# Closing and opening.


async def test_closing_starts_nothing_and_leaves_what_waits(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent_jobs=1) as jobs:
        await jobs.submit("sleep 1000", "first")
        for number in range(5):
            await jobs.submit(noting(tmp_path), f"{number}")
        await jobs.wait("first", "running")
    assert order(tmp_path) == []
    async with opened(tmp_path, max_concurrent_jobs=1) as jobs:
        assert await status_of(jobs, "first") is Status.stopped
        assert {r.status for r in await ended(jobs, *"01234")} == {Status.finished}
        for number in range(5):
            assert Status.cancelled not in await lived(jobs, f"{number}")


async def test_a_job_that_is_being_admitted_at_the_close_is_neither_withdrawn_nor_lost(
    tmp_path: Path,
) -> None:
    for round_no in range(10):
        async with opened(tmp_path, max_concurrent_jobs=3) as jobs:
            submissions = [
                asyncio.create_task(jobs.submit("sleep 1000", f"{round_no}-{n}")) for n in range(6)
            ]
            await submissions[round_no % 6]
        await asyncio.gather(*submissions, return_exceptions=True)
    async with opened(tmp_path) as jobs:
        await jobs.pause_queue()
        records = await jobs.list_status()
        allowed = {Status.stopped, Status.queued, Status.starting, Status.running}
        assert {record.status for record in records.values()} <= allowed


async def test_a_retry_that_waits_at_the_close_goes_on_waiting(tmp_path: Path) -> None:
    async with opened(tmp_path) as jobs:
        await jobs.submit("false", "job", max_retries=1, retry_delay=1000)
        await has_happened(jobs, "job", lambda record: record.attempt == 2)
    async with opened(tmp_path) as jobs:
        assert await status_of(jobs, "job") is Status.pending
        await jobs.cancel("job")


async def test_what_waits_goes_on_when_it_is_opened_again(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent_jobs=1) as jobs:
        await jobs.pause_queue()
        await jobs.submit("true", "first")
        await jobs.submit("true", "second", depends_on=["first"])
        await jobs.create("true", "third", depends_on=["second"])
        await jobs.resume_queue()
    async with opened(tmp_path, max_concurrent_jobs=1) as jobs:
        await jobs.start("third")
        assert {r.status for r in await ended(jobs, "first", "second", "third")} == {
            Status.finished
        }


# A store that fails for a while.


class FailingStore(SqliteJobStore):
    """Fails commits while it is told to: of what, and before or after they are applied."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fails: Callable[[Write], bool] = lambda write: False
        self.fails_reads = False
        self.is_applied_all_the_same = False
        self.failures = 0
        self.has_failed = asyncio.Event()

    async def commit(self, writes: Any) -> list[int | None]:
        if any(map(self.fails, writes)):
            if self.is_applied_all_the_same:
                await super().commit(writes)
            self._fail()
        return await super().commit(writes)

    async def turns(self) -> AsyncGenerator[Sequence[Turn], None]:
        if self.fails_reads:
            self._fail()
        async with aclosing(super().turns()) as turns:
            async for page in turns:
                yield page

    def _fail(self) -> None:
        self.failures += 1
        self.has_failed.set()
        raise StoreError("the disk is full")


def becomes(status: Status) -> Callable[[Write], bool]:
    return lambda write: isinstance(write, Save) and write.record.status is status


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "_RETRY_S", 0.05)
    monkeypatch.setattr(stock, "_RECOUNT_S", 0.05)


@pytest.mark.usefixtures("hasty")
async def test_a_store_that_fails_for_a_while_neither_loses_nor_repeats_a_job(
    tmp_path: Path,
) -> None:
    store = FailingStore(tmp_path / "jobs.db")
    async with opened(tmp_path, store=store, max_concurrent_jobs=2) as jobs:
        await jobs.pause_queue()
        for number in range(6):
            await jobs.submit(noting(tmp_path), f"{number}")
        store.fails = becomes(Status.starting)
        await jobs.resume_queue()
        await store.has_failed.wait()
        store.fails = lambda write: False
        await ended(jobs, *"012345")
    assert sorted(order(tmp_path)) == list("012345")


@pytest.mark.usefixtures("hasty")
async def test_a_job_that_could_not_be_queued_is_queued_when_the_store_works_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FailingStore(tmp_path / "jobs.db")
    async with opened(tmp_path, store=store) as jobs:
        await jobs.submit(f"{until(tmp_path / 'go')}", "first")
        await jobs.submit(noting(tmp_path), "second", depends_on=["first"])
        store.fails = becomes(Status.queued)
        (tmp_path / "go").touch()
        await store.has_failed.wait()
        store.fails = lambda write: False
        assert (await ended(jobs, "second"))[0].status is Status.finished
    assert order(tmp_path) == ["second"]
    assert "the queue waits: the disk is full" in caplog.text


@pytest.mark.usefixtures("hasty")
async def test_a_start_that_is_on_record_though_the_store_said_no_is_made_once(
    tmp_path: Path,
) -> None:
    store = FailingStore(tmp_path / "jobs.db")
    async with opened(tmp_path, store=store, max_concurrent_jobs=1) as jobs:
        await jobs.pause_queue()
        for number in range(3):
            await jobs.submit(noting(tmp_path), f"{number}")
        store.is_applied_all_the_same = True
        store.fails = becomes(Status.starting)
        await jobs.resume_queue()
        await store.has_failed.wait()
        store.fails = lambda write: False
        await ended(jobs, *"012")
    assert order(tmp_path) == list("012")


@pytest.mark.usefixtures("hasty")
async def test_records_that_cannot_be_read_at_first_are_read_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as jobs:
        await jobs.pause_queue()
        await jobs.submit("true", "job")
        await jobs.resume_queue()
        await jobs.pause_queue()
    store = FailingStore(tmp_path / "job_db" / "jobs.db")
    store.fails_reads = True
    async with opened(tmp_path, store=store) as jobs:
        await jobs.resume_queue()
        await store.has_failed.wait()
        store.fails_reads = False
        await ended(jobs, "job")
    assert "the queue waits: the disk is full" in caplog.text


async def test_what_ends_while_records_are_read_holds_no_slot(tmp_path: Path) -> None:
    """The record of a job that ran when the page was read is taken after its end was heard."""
    async with opened(tmp_path) as jobs:
        await jobs.pause_queue()
        await jobs.submit("true", "job")

    class SlowStore(SqliteJobStore):
        has_read = asyncio.Event()
        may_go_on = asyncio.Event()

        async def turns(self) -> AsyncGenerator[Sequence[Turn], None]:
            async with aclosing(super().turns()) as turns:
                async for page in turns:
                    assert {turn.self_id for turn in page} == {"job", "short"}
                    self.has_read.set()
                    await self.may_go_on.wait()
                    yield page

    store = SlowStore(tmp_path / "job_db" / "jobs.db")
    released = asyncio.Event()
    take_stock = scheduler_module.Scheduler._take_stock

    async def later(self: Any) -> None:
        await released.wait()
        await take_stock(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_module.Scheduler, "_take_stock", later)
        async with opened(tmp_path, store=store, max_concurrent_jobs=1) as jobs:
            await jobs.run(until(tmp_path / "go"), "short")
            released.set()
            await store.has_read.wait()
            (tmp_path / "go").touch()
            await jobs.wait("short")
            store.may_go_on.set()
            await jobs.resume_queue()
            assert (await ended(jobs, "job"))[0].status is Status.finished


async def test_of_a_service_the_end_of_its_history_is_looked_at(tmp_path: Path) -> None:
    asked: list[int] = []

    class Counting(SqliteJobStore):
        async def latest(self, job_id: str, most: int) -> list[JobEvent]:
            events = await super().latest(job_id, most)
            asked.append(len(events))
            return events

    store = Counting(tmp_path / "jobs.db")
    policy = RestartPolicy(when="always", initial=0, max=0, limit=None)
    async with opened(tmp_path, store=store) as jobs:
        await jobs.submit("true", "service", restart=policy)
        await has_happened(jobs, "service", lambda record: record.attempt > 30)
        await jobs.stop("service")
        assert len(await jobs.history("service")) > 100
    assert max(asked) == 100


# Others on the same directory.


@contextmanager
def deaf(jobs: Jobs) -> Iterator[None]:
    """Have an application hear of nothing that others write while the context is open."""
    jobdb = jobs._jobdb
    catch_up = jobdb._catch_up

    async def hear_nothing() -> None:
        pass

    jobdb._catch_up = hear_nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        jobdb._catch_up = catch_up  # type: ignore[method-assign]


@pytest.mark.usefixtures("hasty")
async def test_a_slot_of_a_job_that_another_application_deletes_unseen_is_free_again(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, max_concurrent_jobs=1) as one, opened(tmp_path) as other:
        await ended(one, (await one.submit("true")).self_id)  # it is this one's turn
        await other.run(until(tmp_path / "go"), "short")
        await has_happened(one, "short", lambda record: record.status is Status.running)
        with deaf(one):
            (tmp_path / "go").touch()
            await other.wait("short")
            await other.delete("short")
        await one.submit("true", "next")
        await other.create("true", "sign")
        assert (await ended(one, "next"))[0].status is Status.finished


@pytest.mark.usefixtures("hasty")
async def test_who_depends_on_a_job_that_another_application_cancels_and_deletes_unseen_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "_MOST_AT_ONCE", 1)
    async with opened(tmp_path) as one, opened(tmp_path) as other:
        await ended(one, (await one.submit("true")).self_id)  # it is this one's turn
        await one.pause_queue("paused")
        await one.submit("true", "queued", queue="paused")
        await one.submit("true", "early", run_at=utc_now() + timedelta(days=1))
        await one.create("true", "created")
        await one.submit("true", "pending", depends_on=["created"])
        gone = ["queued", "early", "pending"]
        for job_id in gone:
            await one.submit("true", f"after {job_id}", depends_on=[job_id])
        await ended(one, (await one.submit("true")).self_id)  # it knows of all
        with deaf(one):
            for job_id in gone:
                await other.cancel(job_id)
                await other.delete(job_id)
        await other.create("true", "sign")
        records = await ended(one, *(f"after {job_id}" for job_id in gone))
    assert [record.status for record in records] == [Status.cancelled] * 3
    for job_id, record in zip(gone, records, strict=True):  # a look may come between the two calls
        assert record.error in (
            f"dependency {job_id!r} is not there",
            f"dependency {job_id!r} was cancelled",
        )


@pytest.mark.parametrize("who", ["itself", "another"])
async def test_a_queue_that_is_paused_while_much_is_heard_of_others_starts_nothing_that_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    async with opened(tmp_path, max_concurrent_jobs=1) as one, opened(tmp_path) as other:
        await ended(one, (await one.submit("true")).self_id)  # it is this one's turn
        news = HeldUp(monkeypatch, JobDB, "_tell_records")
        await other.create("true", "news")
        await news.has_come.wait()
        news.let_next_pass()
        pausing = one if who == "itself" else other
        await pausing.pause_queue("paused")
        await pausing.submit("true", "job", queue="paused")
        await pausing.submit("true", "last", priority=-1)
        news.let_go_on()
        await ended(pausing, "last")
        assert await lived(one, "job") == [Status.queued]
        await pausing.resume_queue("paused")
        assert (await ended(one, "job"))[0].status is Status.finished


async def test_a_queue_that_is_paused_while_the_pauses_are_read_starts_nothing_that_comes_later(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended(jobs, (await jobs.submit("true")).self_id)
    store = jobs._jobdb._store
    documents = store.documents
    has_read, may_go_on = asyncio.Event(), asyncio.Event()

    async def late(kind: str) -> dict[str, str]:
        found = await documents(kind)
        has_read.set()
        await may_go_on.wait()
        return found

    monkeypatch.setattr(store, "documents", late)
    await jobs.resume_queue("another")
    await has_read.wait()
    await jobs.pause_queue("paused")
    await jobs.submit("true", "job", queue="paused")
    may_go_on.set()
    await ended(jobs, (await jobs.submit("true")).self_id)
    assert await lived(jobs, "job") == [Status.queued]


async def test_a_job_that_another_application_submits_takes_its_turn(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as other:
        await other.submit("true", "job")
        assert (await ended(other, "job"))[0].status is Status.finished
        assert (await ended(one, "job"))[0].status is Status.finished


async def test_a_closed_application_hands_its_turn_over(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as other:
        await ended(one, (await one.submit("true")).self_id)
        await one.close()
        await other.submit("true", "job")
        assert (await ended(other, "job"))[0].status is Status.finished
