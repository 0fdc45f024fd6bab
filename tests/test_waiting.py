"""Waiting, and what is left behind by those who give up: nothing."""

from __future__ import annotations

import asyncio
import gc
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from anodejobs import (
    ExecutorError,
    InvalidJob,
    JobActive,
    JobFilter,
    JobNotFound,
    Jobs,
    MemoryJobStore,
    Status,
    StatusUnreachable,
    WaitTimeout,
)

LIMIT_S = 60.0
STEPS = range(61)


def until(path: Path) -> str:
    """Return the shell command that holds a job up until the file is there."""
    return f"until [ -e {shlex.quote(str(path))} ]; do sleep 0.02; done"


async def take_steps(number: int) -> None:
    """Let the event loop go round so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def outcome(task: asyncio.Task[object]) -> object:
    """Return what the task returned or raised."""
    return (await asyncio.gather(task, return_exceptions=True))[0]


def waiters(jobs: Jobs) -> int:
    return sum(map(len, jobs._jobdb.waits._waiters.values()))


@pytest.fixture(params=["sqlite", "memory"])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Jobs]:
    """A Jobs with each kind of store: they give way to other tasks at different places."""
    store = "memory://" if request.param == "memory" else None
    async with Jobs(
        db_path=tmp_path / "job_db", store=store, stop_grace=1, executor="inline"
    ) as jobs:
        yield jobs


# Until the end.


async def test_a_wait_returns_how_the_job_ended(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.run(f"{until(tmp_path / 'go')}; exit 3", "held")
    waiting = asyncio.create_task(jobs.wait("held"))
    await jobs.count()
    assert not waiting.done()
    (tmp_path / "go").touch()
    record = await waiting
    assert (record.status, record.exit_code) == (Status.failed, 3)
    assert await jobs.get_status("held") == record


async def test_a_wait_for_an_ended_job_returns_at_once(jobs: Jobs) -> None:
    await jobs.run("exit 3", "over")
    assert await jobs.wait("over") == await jobs.wait("over")


async def test_the_logs_are_complete_when_a_wait_returns(jobs: Jobs) -> None:
    for n in range(20):
        await jobs.run(f"echo out {n}; echo errors {n} >&2", f"talks-{n}")
        await jobs.wait(f"talks-{n}")
        assert await jobs.job_logs(f"talks-{n}") == (f"out {n}\n", f"errors {n}\n")


async def test_ten_thousand_waits_for_one_job_all_get_its_record(
    jobs: Jobs, tmp_path: Path
) -> None:
    await jobs.run(f"{until(tmp_path / 'go')}; exit 3", "popular")
    waits = [asyncio.create_task(jobs.wait("popular")) for _ in range(10_000)]
    await jobs.count()
    assert waiters(jobs) == 10_000
    (tmp_path / "go").touch()
    records = await asyncio.gather(*waits)
    assert {(record.status, record.exit_code) for record in records} == {(Status.failed, 3)}
    assert waiters(jobs) == 0


async def test_an_unknown_id_cannot_be_waited_for(jobs: Jobs) -> None:
    with pytest.raises(JobNotFound):
        await jobs.wait("nobody")
    assert waiters(jobs) == 0


async def test_a_wait_for_a_deleted_job_is_not_found(jobs: Jobs) -> None:
    await jobs.run("true", "gone")
    await jobs.wait("gone")
    await jobs.delete("gone")
    with pytest.raises(JobNotFound):
        await jobs.wait("gone")


# Until a status.


async def test_a_wait_for_a_status_returns_when_it_is_reached(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "held")
    waiting = asyncio.create_task(jobs.wait("held", Status.paused))
    await jobs.count()
    assert not waiting.done()
    await jobs.pause("held")
    assert (await waiting).status is Status.paused


async def test_a_wait_for_several_statuses_returns_at_any(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "held")
    waiting = asyncio.create_task(jobs.wait("held", ["finished", Status.paused]))
    await jobs.count()
    await jobs.pause("held")
    assert (await waiting).status is Status.paused


async def test_a_milestone_that_has_passed_counts(jobs: Jobs) -> None:
    await jobs.run("exit 3", "over")
    await jobs.wait("over")
    for milestone in ("starting", "running", Status.failed):
        assert (await jobs.wait("over", milestone)).status is Status.failed


async def test_a_milestone_of_an_earlier_run_does_not_count(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "again")
    await jobs.pause("again")
    await jobs.restart("again")
    with pytest.raises(WaitTimeout):
        await jobs.wait("again", "paused", timeout=0.05)


async def test_a_status_that_cannot_come_any_more_is_said_at_once(jobs: Jobs) -> None:
    await jobs.run("exit 3", "over")
    ended = await jobs.wait("over")
    with pytest.raises(StatusUnreachable, match=r"ended as failed .*never was paused") as caught:
        await jobs.wait("over", "paused")
    assert caught.value.record == ended
    assert waiters(jobs) == 0


async def test_a_wait_for_a_status_ends_with_the_job(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.run(f"{until(tmp_path / 'go')}; exit 3", "held")
    waiting = asyncio.create_task(jobs.wait("held", ["paused", "finished"]))
    await jobs.count()
    (tmp_path / "go").touch()
    with pytest.raises(StatusUnreachable) as caught:
        await waiting
    assert caught.value.record.exit_code == 3


@pytest.mark.parametrize("status", ["nonsense", "", [], ["running", "nonsense"], [5]], ids=str)
async def test_an_unknown_status_is_refused(jobs: Jobs, status: str | list[str]) -> None:
    await jobs.run("sleep 1000", "held")
    with pytest.raises(InvalidJob) as caught:
        await jobs.wait("held", status)
    assert caught.value.field == "status"


# For a time.


async def test_a_wait_that_takes_too_long_leaves_the_job_alone(jobs: Jobs) -> None:
    running = await jobs.run("sleep 1000", "long")
    with pytest.raises(WaitTimeout, match=r"'long'.* after 0\.05 s") as caught:
        await jobs.wait("long", timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.timeout == 0.05
    assert await jobs.get_status("long") == running
    assert waiters(jobs) == 0


async def test_a_wait_that_may_take_no_time_says_how_things_are(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path) as jobs:
        await jobs.run("sleep 1000", "long")
        await jobs.run("exit 3", "over")
        over = await jobs.wait("over")
    async with Jobs(db_path=tmp_path, on_close="stop") as jobs:  # which has nothing at hand
        assert await jobs.wait("over", timeout=0) == over
        assert await jobs.wait_all(["over"], timeout=0) == {"over": over}
        assert (await jobs.wait("long", "running", timeout=0)).self_id == "long"
        with pytest.raises(JobNotFound):
            await jobs.wait("nobody", timeout=0)
        with pytest.raises(StatusUnreachable):
            await jobs.wait("over", "finished", timeout=0)
        for late in (jobs.wait("long", timeout=0), jobs.wait_all(["over", "long"], timeout=0)):
            with pytest.raises(WaitTimeout):
                await late
        assert waiters(jobs) == 0
        await jobs.stop("long", grace=0)


async def test_a_wait_with_time_enough_returns_the_record(jobs: Jobs) -> None:
    await jobs.run("exit 3", "quick")
    assert (await jobs.wait("quick", timeout=1000)).exit_code == 3


async def test_a_time_limit_of_the_caller_is_the_callers(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "long")
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.05):
            await jobs.wait("long", timeout=1000)
    assert not isinstance(caught.value, WaitTimeout)


# Cancelling.


async def test_cancelled_waits_leave_nothing(jobs: Jobs) -> None:
    running = await jobs.run("sleep 1000", "long")
    waits = [asyncio.create_task(jobs.wait("long")) for _ in range(100)]
    await jobs.count()
    assert waiters(jobs) == 100
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    assert waiters(jobs) == 0
    assert all(wait.cancelled() for wait in waits)
    assert await jobs.get_status("long") == running


async def test_a_run_cancelled_anywhere_is_not_begun_or_supervised_to_its_end(
    either: Jobs,
) -> None:
    for step in STEPS:
        running = asyncio.create_task(either.run("exit 3", f"job-{step}"))
        await take_steps(step)
        running.cancel()
        await outcome(running)
    # Starts are recorded in the order in which they were asked for: none is to come after this.
    await either.run("exit 3", "last")
    begun = await either.list_status()
    ended = await either.wait_all(list(begun), timeout=LIMIT_S)
    assert {(record.status, record.exit_code) for record in ended.values()} == {(Status.failed, 3)}
    assert waiters(either) == 0


async def test_a_cancelled_run_of_an_active_id_does_no_harm(either: Jobs) -> None:
    busy = await either.run("sleep 1000", "busy")
    for step in range(20):
        running = asyncio.create_task(either.run("true", "busy"))
        await take_steps(step)
        running.cancel()
        assert isinstance(await outcome(running), (JobActive, asyncio.CancelledError))
    assert await either.get_status("busy") == busy
    assert (await either.run("true", "another")).status is Status.running


@pytest.mark.parametrize(
    "call",
    [Jobs.resume, Jobs.delete, lambda jobs, job_id: jobs.signal(job_id, "SIGCONT"), Jobs.pause],
    ids=["resume", "delete", "signal", "pause"],
)
async def test_a_cancelled_call_does_no_harm_to_the_others(
    either: Jobs, call: Callable[[Jobs, str], Awaitable[object]]
) -> None:
    await either.run("sleep 1000", "busy")
    for step in range(20):
        calling = asyncio.ensure_future(call(either, "busy"))
        await take_steps(step)
        calling.cancel()
        await outcome(calling)
    stopped = await either.stop("busy")
    assert stopped is not None and stopped.status is Status.stopped
    assert (await either.run("true", "another")).status is Status.running


async def test_a_cancelled_stop_goes_on(jobs: Jobs) -> None:
    await jobs.run("trap '' TERM; echo ready; while :; do sleep 1; done", "stubborn")
    async with aclosing(jobs.follow("stubborn")) as chunks:
        await anext(chunks)
    stopping = asyncio.create_task(jobs.stop("stubborn", grace=0.2))
    await jobs.wait("stubborn", Status.stopping)
    stopping.cancel()
    assert isinstance(await outcome(stopping), asyncio.CancelledError)
    record = await jobs.wait("stubborn")
    assert (record.status, record.exit_code) == (Status.stopped, -9)


async def test_a_stop_cancelled_anywhere_ends_the_job_or_leaves_it_running(
    either: Jobs,
) -> None:
    for step in range(0, 30, 2):
        job_id = f"job-{step}"
        await either.run("sleep 1000", job_id)
        stopping = asyncio.create_task(either.stop(job_id))
        await take_steps(step)
        stopping.cancel()
        await outcome(stopping)
    # Asked again, each is found in good order.
    records = await asyncio.gather(*(either.stop(f"job-{step}") for step in range(0, 30, 2)))
    assert {(r.status, r.exit_code) for r in records if r} == {(Status.stopped, -15)}
    assert len(records) == 15


async def test_a_cancelled_restart_goes_on(jobs: Jobs) -> None:
    await jobs.run("exec sleep 1000", "service")
    restarting = asyncio.create_task(jobs.restart("service"))
    await jobs.wait("service", Status.stopping)
    restarting.cancel()
    assert isinstance(await outcome(restarting), asyncio.CancelledError)
    assert (await jobs.wait("service")).status is Status.stopped
    begun = 0
    async with asyncio.timeout(LIMIT_S), aclosing(jobs.events("service", after=0)) as events:
        while begun < 2:
            begun += (await anext(events)).status is Status.running
    assert (await jobs.usage("service")).processes == 1


async def test_a_cancelled_cancel_of_a_batch_goes_on(jobs: Jobs) -> None:
    specs = [{"command": "sleep 1000"}, {"command": "true", "job_id": "after", "depends_on": [0]}]
    batch_id, records = await jobs.create_batch(specs, auto_start=True)
    first, _ = records
    await jobs.wait(first, Status.running)
    cancelling = asyncio.create_task(jobs.cancel_batch(batch_id))
    await jobs.wait("after", Status.cancelled)
    cancelling.cancel()
    assert isinstance(await outcome(cancelling), asyncio.CancelledError)
    assert (await jobs.wait(first, timeout=LIMIT_S)).status is Status.stopped


async def test_a_cancelled_close_goes_on(tmp_path: Path) -> None:
    jobs = Jobs(db_path=tmp_path, stop_grace=0.2, executor="inline")
    await jobs.run("trap '' TERM; echo ready; while :; do sleep 1; done", "stubborn")
    async with aclosing(jobs.follow("stubborn")) as chunks:
        await anext(chunks)
    closing = asyncio.create_task(jobs.close())
    await jobs._jobdb.wait_for("stubborn", frozenset({Status.stopping}))
    closing.cancel()
    assert isinstance(await outcome(closing), asyncio.CancelledError)
    await jobs.close()
    async with Jobs(db_path=tmp_path, executor="inline") as reopened:
        record = await reopened.get_status("stubborn")
        assert record is not None
        assert (record.status, record.exit_code) == (Status.stopped, -9)


async def test_an_opening_cancelled_anywhere_leaves_a_jobs_that_works(tmp_path: Path) -> None:
    for step in range(12):
        jobs = Jobs(db_path=tmp_path / str(step), stop_grace=1, executor="inline")
        counting = asyncio.create_task(jobs.count())
        await take_steps(step)
        counting.cancel()
        await outcome(counting)
        async with asyncio.timeout(LIMIT_S):
            await jobs.run("exit 3", "job")
            assert (await jobs.wait("job")).exit_code == 3
            await jobs.close()


async def test_a_context_cancelled_anywhere_as_it_is_entered_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    async def enter(jobs: Jobs) -> None:
        async with jobs:
            pass

    before = asyncio.all_tasks()
    for step in range(12):
        jobs = Jobs(db_path=tmp_path / str(step), stop_grace=1, executor="inline")
        entering = asyncio.create_task(enter(jobs))
        await take_steps(step)
        entering.cancel()
        await outcome(entering)
        assert asyncio.all_tasks() <= before


class Unreachable(MemoryJobStore):
    """Opens for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = asyncio.Event()

    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        self.is_asked.set()
        await asyncio.Event().wait()


async def test_a_context_can_be_given_up_while_its_store_cannot_be_reached(tmp_path: Path) -> None:
    store, before = Unreachable(), asyncio.all_tasks()
    entering = asyncio.create_task(Jobs(tmp_path, store=store, executor="inline").__aenter__())
    async with asyncio.timeout(LIMIT_S):
        await store.is_asked.wait()
        entering.cancel()
        await asyncio.wait((entering,))
    assert entering.cancelled()
    assert asyncio.all_tasks() == before


async def test_closing_does_not_wait_for_a_store_that_cannot_be_reached(tmp_path: Path) -> None:
    store = Unreachable()
    jobs = Jobs(tmp_path, store=store, executor="inline")
    looking = asyncio.create_task(jobs.get_status("any"))
    async with asyncio.timeout(LIMIT_S):
        await store.is_asked.wait()
        await jobs.close()
        with pytest.raises(ExecutorError, match="closed"):
            await looking


# For many.


async def test_all_are_waited_for_and_given_in_the_order_asked_for(jobs: Jobs) -> None:
    for n, job_id in enumerate("abc"):
        await jobs.run(f"exit {n}", job_id)
    records = await jobs.wait_all(["c", "a", "b"])
    assert [(job_id, record.exit_code) for job_id, record in records.items()] == [
        ("c", 2),
        ("a", 0),
        ("b", 1),
    ]


async def test_an_id_that_is_given_twice_is_waited_for_once(jobs: Jobs) -> None:
    await jobs.run("true", "a")
    await jobs.run("true", "b")
    assert list(await jobs.wait_all(["b", "a", "b"])) == ["b", "a"]


async def test_waiting_for_none_returns_at_once(jobs: Jobs) -> None:
    assert await jobs.wait_all([]) == {}
    assert await jobs.wait_all({"name": "nobody"}) == {}


async def test_all_that_match_a_filter_are_waited_for(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.run("sleep 1000", "other")
    for job_id in "ab":
        await jobs.run(f"{until(tmp_path / 'go')}; exit 3", job_id, tags=["mine"])
    by_fields = asyncio.create_task(jobs.wait_all({"tags": ["mine"]}))
    by_filter = asyncio.create_task(jobs.wait_all(JobFilter(tags=["mine"])))
    await jobs.count()
    (tmp_path / "go").touch()
    records = await by_fields
    assert [record.exit_code for record in records.values()] == [3, 3]
    assert list(records) == ["a", "b"]
    assert await by_filter == records


async def test_an_unknown_id_among_many_is_not_found(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "long")
    with pytest.raises(JobNotFound) as caught:
        await jobs.wait_all(["long", "nobody"])
    assert caught.value.job_id == "nobody"
    assert waiters(jobs) == 0


async def test_waiting_for_all_takes_no_longer_than_allowed(jobs: Jobs) -> None:
    await jobs.run("true", "quick")
    await jobs.run("sleep 1000", "long")
    with pytest.raises(WaitTimeout, match="2 jobs"):
        await jobs.wait_all(["quick", "long"], timeout=0.05)
    with pytest.raises(WaitTimeout, match=r"^1 job: not there yet"):
        await jobs.wait_all(["long"], timeout=0.05)
    assert waiters(jobs) == 0


async def test_jobs_are_given_in_the_order_in_which_they_end(jobs: Jobs, tmp_path: Path) -> None:
    for job_id in "abc":
        await jobs.run(until(tmp_path / job_id), job_id)
    seen: list[str] = []
    async with aclosing(jobs.as_completed(["a", "b", "c"])) as ended:
        for job_id in "cab":
            (tmp_path / job_id).touch()
            seen.append((await anext(ended)).self_id)
        with pytest.raises(StopAsyncIteration):
            await anext(ended)
    assert seen == list("cab")


async def test_jobs_that_had_ended_are_given_first(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.run(until(tmp_path / "go"), "held")
    await jobs.run("true", "over")
    await jobs.wait("over")
    async with aclosing(jobs.as_completed(["held", "over"])) as ended:
        assert (await anext(ended)).self_id == "over"
        (tmp_path / "go").touch()
        assert (await anext(ended)).self_id == "held"


async def test_an_unknown_id_is_not_found_before_any_has_ended(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "long")
    with pytest.raises(JobNotFound):
        await anext(jobs.as_completed(["long", "nobody"]))
    assert waiters(jobs) == 0


async def test_leaving_as_completed_early_leaves_nothing(jobs: Jobs) -> None:
    await jobs.run("true", "quick")
    await jobs.run("sleep 1000", "long")
    async with aclosing(jobs.as_completed(["long", "quick"])) as ended:
        async for record in ended:
            assert record.self_id == "quick"
            break
    assert waiters(jobs) == 0


async def test_as_completed_can_be_forgotten(jobs: Jobs) -> None:
    await jobs.run("true", "quick")
    await jobs.run("sleep 1000", "long")
    async for _ in jobs.as_completed(["long", "quick"]):
        break
    gc.collect()
    await jobs.count()
    assert waiters(jobs) == 0


async def test_a_hundred_jobs_are_given_as_they_end(jobs: Jobs) -> None:
    await asyncio.gather(*(jobs.run("true", f"job-{n}") for n in range(100)))
    names = [f"job-{n}" for n in range(100)]
    seen = [record async for record in jobs.as_completed(names)]
    assert sorted(record.self_id for record in seen) == sorted(names)
    finished = [record.finished_at for record in seen if record.finished_at]
    assert len(finished) == 100


async def test_the_jobs_of_a_listing_are_waited_for(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "other")
    await jobs.run("exit 3", "mine", tags=["mine"])
    records = await jobs.wait_all(await jobs.list_status({"tags": ["mine"]}), timeout=LIMIT_S)
    assert [record.exit_code for record in records.values()] == [3]
    assert await jobs.wait_all(await jobs.list_status({"tags": ["none"]}), timeout=LIMIT_S) == {}


async def test_who_waits_for_very_many_jobs_does_not_read_them_one_by_one(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the longer the more they are, before the time to wait for them begins."""
    _, batch = await jobs.create_batch([{"command": "true"}] * 1000)
    store, asked = jobs._jobdb._own_store, list[str]()

    def noted(name: str) -> Callable[..., Any]:
        read = getattr(store, name)

        def reading(*args: object) -> Any:
            asked.append(name)
            return read(*args)

        return reading

    for name in ("get", "get_all", "page"):
        monkeypatch.setattr(store, name, noted(name))
    with pytest.raises(WaitTimeout):
        await jobs.wait_all(list(batch), timeout=0)
    assert 0 < len(asked) <= 20
    asked.clear()
    with pytest.raises(JobNotFound) as unknown:
        await jobs.wait_all([*batch, "nobody"])
    assert unknown.value.args and "nobody" in str(unknown.value)
    assert 0 < len(asked) <= 20
