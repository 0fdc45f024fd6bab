"""Events: everything that happens, in order, once, from any point on."""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from anodejobs import ExecutorError, JobEvent, Jobs, Status, news
from anodejobs.executors.base import OnGrowth

LIMIT_S = 60.0
OF_A_RUN = [Status.starting, Status.running, Status.finished]


def until(path: Path) -> str:
    """Return the shell command that holds a job up until the file is there."""
    return f"until [ -e {shlex.quote(str(path))} ]; do sleep 0.02; done"


async def run_all(jobs: Jobs, *job_ids: str) -> None:
    """Run silent jobs that all finish."""
    await asyncio.gather(*(jobs.run("true", job_id) for job_id in job_ids))
    await jobs.wait_all(job_ids)


async def take(events: AsyncIterator[JobEvent], number: int) -> list[JobEvent]:
    """Return the next so many events."""
    async with asyncio.timeout(LIMIT_S):
        return [await anext(events) for _ in range(number)]


async def past(
    jobs: Jobs, number: int, *, job_id: str | None = None, after: int = 0
) -> list[JobEvent]:
    """Return the so many events that follow ``after``, read by a listener of their own."""
    async with aclosing(jobs.events(job_id, after=after)) as events:
        return await take(events, number)


async def quiet(events: AsyncIterator[JobEvent]) -> JobEvent:
    """Return the next heartbeat, whatever comes before it."""
    async with asyncio.timeout(LIMIT_S):
        async for event in events:
            if event.kind == "heartbeat":
                return event
    raise AssertionError("the events ended")


# In order.


async def test_a_run_is_told_step_by_step(jobs: Jobs) -> None:
    async with aclosing(jobs.events()) as events:
        first = asyncio.ensure_future(anext(events))
        await jobs.count()
        await jobs.run("exit 3", "told")
        told = [await first, *await take(events, 2)]
    assert [(event.previous, event.status) for event in told] == [
        (None, Status.starting),
        (Status.starting, Status.running),
        (Status.running, Status.failed),
    ]
    assert {(event.kind, event.job_id, event.attempt) for event in told} == {("status", "told", 1)}
    assert [event.why for event in told] == [None, None, "exit code 3"]
    assert [event.at for event in told] == sorted(event.at for event in told)


async def test_the_seq_ascends_over_all_jobs(jobs: Jobs) -> None:
    await run_all(jobs, *(f"job-{n}" for n in range(20)))
    seqs = [event.seq for event in await past(jobs, 60)]
    assert seqs == list(range(1, 61))


async def test_every_job_is_told_in_its_own_order(jobs: Jobs) -> None:
    names = [f"job-{n}" for n in range(20)]
    await run_all(jobs, *names)
    told = await past(jobs, 60)
    for name in names:
        assert [event.status for event in told if event.job_id == name] == OF_A_RUN


async def test_what_is_told_is_what_the_history_says(jobs: Jobs) -> None:
    await run_all(jobs, "a", "b")
    told = await past(jobs, 6)
    for job_id in "ab":
        assert [event for event in told if event.job_id == job_id] == await jobs.history(job_id)


async def test_stopping_and_pausing_are_told(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "long")
    await jobs.pause("long")
    await jobs.resume("long")
    await jobs.stop("long")
    assert [event.status for event in await past(jobs, 6)] == [
        Status.starting,
        Status.running,
        Status.paused,
        Status.running,
        Status.stopping,
        Status.stopped,
    ]


async def test_all_listeners_are_told_the_same(jobs: Jobs) -> None:
    async def listen() -> list[JobEvent]:
        async with aclosing(jobs.events()) as events:
            return await take(events, 15)

    listeners = [asyncio.create_task(listen()) for _ in range(50)]
    await jobs.count()
    await run_all(jobs, *"abcde")
    told = await asyncio.gather(*listeners)
    assert all(events == told[0] for events in told)
    assert Counter(event.status for event in told[0]) == dict.fromkeys(OF_A_RUN, 5)


# From where.


async def test_a_listener_is_told_nothing_of_the_past(jobs: Jobs) -> None:
    await run_all(jobs, "old")
    async with aclosing(jobs.events()) as events:
        first = asyncio.ensure_future(anext(events))
        await jobs.count()
        await jobs.run("true", "new")
        assert (await first).job_id == "new"


async def test_after_zero_is_the_very_beginning(jobs: Jobs) -> None:
    await run_all(jobs, "a")
    async with aclosing(jobs.events(after=0)) as events:
        assert [event.status for event in await take(events, 3)] == OF_A_RUN
        await jobs.run("true", "b")
        assert [event.job_id for event in await take(events, 3)] == ["b"] * 3


async def test_the_past_is_the_same_for_a_later_jobs(jobs: Jobs) -> None:
    await run_all(jobs, *"abc")
    before = await past(jobs, 9)
    async with Jobs(db_path=jobs.db_path, executor="inline") as later:
        assert await past(later, 9) == before
        assert await past(later, 4, after=5) == before[5:]


async def test_resuming_leaves_no_gap_and_repeats_nothing(jobs: Jobs) -> None:
    names = [f"job-{n}" for n in range(20)]
    running = asyncio.create_task(run_all(jobs, *names))
    seen: list[JobEvent] = []
    while len(seen) < 60:
        number = min(1 + len(seen) % 4, 60 - len(seen))
        seen += await past(jobs, number, after=seen[-1].seq if seen else 0)
    await running
    assert seen == await past(jobs, 60)
    assert [event.seq for event in seen] == list(range(1, 61))


async def test_a_listener_far_behind_is_told_from_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(news, "_MOST_RECENT", 5)
    monkeypatch.setattr(news, "_PAGE", 4)
    async with Jobs(db_path=tmp_path, executor="inline") as jobs:
        await run_all(jobs, *"abcdefghij")
        told = await past(jobs, 30)
        assert [event.seq for event in told] == list(range(1, 31))
        for job_id in "aej":
            mine = await past(jobs, 3, job_id=job_id)
            assert mine == [event for event in told if event.job_id == job_id]


async def test_what_nobody_listened_to_is_told_later_from_the_store(jobs: Jobs) -> None:
    async with aclosing(jobs.events(after=0)) as events:
        await run_all(jobs, "a")
        seen = await take(events, 2)
    await run_all(jobs, *"bc")
    assert not jobs._jobdb.news._recent  # memory for nobody
    async with aclosing(jobs.events(after=seen[-1].seq)) as events:
        seen += await take(events, 4)
        await run_all(jobs, "d")
        seen += await take(events, 6)
    assert [event.seq for event in seen] == list(range(1, 13))


async def test_a_slow_listener_misses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(news, "_MOST_RECENT", 10)
    async with (
        Jobs(db_path=tmp_path, executor="inline") as jobs,
        aclosing(jobs.events(after=0)) as events,
    ):
        await run_all(jobs, "first")
        seen = await take(events, 1)
        for round_ in range(4):
            await run_all(jobs, *(f"job-{round_}-{n}" for n in range(10)))
            seen += await take(events, 1)
        seen += await take(events, 123 - len(seen))
        assert [event.seq for event in seen] == list(range(1, 124))


async def test_a_listener_that_is_behind_lets_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(news, "_PAGE", 10)
    given = most = 0

    async def take_turns() -> None:
        nonlocal given
        while True:
            given = 0
            await asyncio.sleep(0)

    async with (
        Jobs(db_path=tmp_path, executor="inline") as jobs,
        aclosing(jobs.events()) as events,
    ):
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await jobs.create_batch([{"command": "true"}] * 100)
        await first
        others = asyncio.create_task(take_turns())
        async for event in events:
            given += 1
            most = max(most, given)
            if event.seq == 100:
                break
        others.cancel()
    assert most <= 10


# Of one job.


async def test_a_listener_to_one_job_is_told_of_no_other(jobs: Jobs) -> None:
    async with aclosing(jobs.events("b", after=0)) as events:
        await run_all(jobs, *"abc")
        told = await take(events, 3)
        assert [(event.job_id, event.status) for event in told] == [("b", s) for s in OF_A_RUN]
        await run_all(jobs, *"ac")
        await run_all(jobs, "b")
        assert {event.job_id for event in await take(events, 3)} == {"b"}


async def test_a_job_that_is_not_there_yet_can_be_listened_to(jobs: Jobs) -> None:
    async with aclosing(jobs.events("later", after=0)) as events:
        first = asyncio.ensure_future(anext(events))
        await jobs.count()
        await jobs.run("true", "later")
        assert (await first).status is Status.starting


async def test_an_earlier_job_can_be_listened_to_by_a_later_jobs(jobs: Jobs) -> None:
    await run_all(jobs, *"abc")
    async with (
        Jobs(db_path=jobs.db_path, executor="inline") as later,
        aclosing(later.events("a", after=0)) as events,
    ):
        assert [event.status for event in await take(events, 3)] == OF_A_RUN
        again = asyncio.ensure_future(anext(events))
        await later.run("true", "a")
        assert (await again).previous is Status.finished


# Logs.


async def test_a_reader_that_is_behind_is_told_of_the_last_logs_only(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hang for ever, and would keep a word on every job that there is meanwhile."""
    monkeypatch.setattr(news, "_MOST_UNREAD", 3)
    async with aclosing(jobs.events()) as events:
        first = asyncio.ensure_future(anext(events))
        await jobs.count()
        await jobs.create("true", "here")
        await first
        for number in (1, 2, 3, 4, 5, 3):
            jobs._jobdb.news.grown(f"job-{number}", "stdout", number)
            jobs._jobdb.news.progressed(f"job-{number}", 1, 0.5, "")
        told = await take(events, 6)
    assert [event.job_id for event in told if event.kind == "log"] == ["job-4", "job-5", "job-3"]
    assert [event.job_id for event in told if event.kind == "progress"] == [
        "job-4",
        "job-5",
        "job-3",
    ]


async def test_a_reader_of_one_job_is_not_woken_by_the_logs_of_others(jobs: Jobs) -> None:
    async with aclosing(jobs.events("here")) as events:
        first = asyncio.ensure_future(anext(events))
        await jobs.count()
        (listener,) = jobs._jobdb.news._listeners
        listener.woken.clear()
        jobs._jobdb.news.grown("other", "stdout", 1)
        jobs._jobdb.news.progressed("other", 1, 0.5, "")
        assert not listener.woken.is_set()
        jobs._jobdb.news.grown("here", "stdout", 1)
        assert (await first).offset == 1


async def test_the_growth_of_logs_is_told(jobs: Jobs, tmp_path: Path) -> None:
    grown: dict[str | None, int | None] = {}
    async with aclosing(jobs.events("talks")) as events, asyncio.timeout(LIMIT_S):
        first = asyncio.ensure_future(anext(events))
        await jobs.count()
        command = f"printf 12345; printf 123 >&2; {until(tmp_path / 'go')}"
        await jobs.run(command, "talks")
        await first
        async for event in events:
            if event.kind == "log":
                assert event.job_id == "talks"
                grown[event.stream] = event.offset
            if grown == {"stdout": 5, "stderr": 3}:
                break
    (tmp_path / "go").touch()
    await jobs.wait("talks")


async def test_a_seq_of_any_event_can_be_resumed_from(jobs: Jobs, tmp_path: Path) -> None:
    async with aclosing(jobs.events("talks")) as events, asyncio.timeout(LIMIT_S):
        first = asyncio.ensure_future(anext(events))
        await jobs.count()
        await jobs.run(f"echo hi; {until(tmp_path / 'go')}", "talks")
        seen = [await first]
        while seen[-1].kind != "log":
            seen.append(await anext(events))
    (tmp_path / "go").touch()
    await jobs.wait("talks")
    (rest,) = await past(jobs, 1, after=seen[-1].seq)
    assert rest.status is Status.finished


# When nothing happens.


async def test_a_heartbeat_comes_when_nothing_happens(jobs: Jobs) -> None:
    async with aclosing(jobs.events(heartbeat=0.02)) as events:
        told = await take(events, 3)
    assert [event.kind for event in told] == ["heartbeat"] * 3
    assert {event.job_id for event in told} == {None}


async def test_a_heartbeat_can_be_resumed_from(jobs: Jobs) -> None:
    await run_all(jobs, "a")
    async with aclosing(jobs.events(after=0, heartbeat=0.02)) as events:
        beat = await quiet(events)
    await run_all(jobs, "b")
    assert [event.job_id for event in await past(jobs, 3, after=beat.seq)] == ["b"] * 3


async def test_what_happens_is_told_between_heartbeats(jobs: Jobs) -> None:
    async with aclosing(jobs.events(heartbeat=0.02)) as events:
        await quiet(events)
        await jobs.run("true", "a")
        seen: list[Status] = []
        async with asyncio.timeout(LIMIT_S):
            while len(seen) < 3:
                event = await anext(events)
                seen += [event.status] if event.status else []
    assert seen == OF_A_RUN


async def test_a_heartbeat_comes_though_other_jobs_are_busy(jobs: Jobs) -> None:
    async def be_busy() -> None:
        while True:
            await jobs.run("true", "busy")
            await jobs.wait("busy")

    async with aclosing(jobs.events("quiet", heartbeat=0.5)) as events:
        busy = asyncio.create_task(be_busy())
        try:
            async with asyncio.timeout(60):
                assert (await anext(events)).kind == "heartbeat"
        finally:
            busy.cancel()
            await asyncio.wait([busy])


async def test_a_heartbeat_comes_to_a_listener_to_an_earlier_job(jobs: Jobs) -> None:
    await run_all(jobs, "a")
    await run_all(jobs, "b")
    async with (
        Jobs(db_path=jobs.db_path, executor="inline") as later,
        aclosing(later.events("a", after=0, heartbeat=0.02)) as events,
    ):
        assert [event.status for event in await take(events, 3)] == OF_A_RUN
        assert (await quiet(events)).kind == "heartbeat"


async def test_a_heartbeat_comes_though_the_past_was_deleted(jobs: Jobs) -> None:
    await run_all(jobs, "a")
    await jobs.delete("a")
    async with (
        Jobs(db_path=jobs.db_path, executor="inline") as later,
        aclosing(later.events(after=0, heartbeat=0.02)) as events,
    ):
        assert (await quiet(events)).kind == "heartbeat"


# The end of a listener.


async def test_closing_an_iterator_leaves_nothing(jobs: Jobs) -> None:
    async with aclosing(jobs.events(heartbeat=0.02)) as events:
        await anext(events)
        assert jobs._jobdb.news.wants_growth
    assert not jobs._jobdb.news.wants_growth


async def test_cancelling_a_listener_leaves_nothing(jobs: Jobs) -> None:
    listening = asyncio.ensure_future(anext(jobs.events()))
    await jobs.count()
    assert jobs._jobdb.news.wants_growth
    listening.cancel()
    await asyncio.wait([listening])
    assert not jobs._jobdb.news.wants_growth


async def test_a_listener_that_cannot_have_progress_is_told_why_and_leaves_nothing(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_all(jobs, "a")
    folder = jobs.db_path / "job_files" / "progress"
    folder.rmdir()
    folder.touch()  # as a job can
    wanted: list[OnGrowth | None] = []
    executor = jobs._root._parts.executor
    monkeypatch.setattr(executor, "report_growth", wanted.append)
    with pytest.raises(ExecutorError, match="progress of jobs cannot be watched: File exists"):
        await anext(jobs.events())
    assert wanted[-1] is None


async def test_a_listener_that_leaves_takes_nothing_from_the_others(jobs: Jobs) -> None:
    async with aclosing(jobs.events(after=0)) as staying:
        async with aclosing(jobs.events(after=0)) as leaving:
            await run_all(jobs, "a")
            await take(leaving, 1)
        assert [event.status for event in await take(staying, 3)] == OF_A_RUN
        await jobs.run("echo hi", "talks")
        async with asyncio.timeout(LIMIT_S):
            async for event in staying:
                if event.kind == "log":
                    break
        assert event.job_id == "talks"


async def test_growth_is_reported_while_somebody_reads_events_whatever_callbacks_there_are(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[bool] = []
    executor = (await jobs._root.open()).executor
    report = executor.report_growth

    def report_growth(on_growth: OnGrowth | None) -> None:
        reported.append(on_growth is not None)
        report(on_growth)

    monkeypatch.setattr(executor, "report_growth", report_growth)
    called = asyncio.Event()
    await jobs.on(lambda record: called.set(), status="finished")
    await run_all(jobs, "a")
    async with asyncio.timeout(LIMIT_S):
        await called.wait()
    assert reported == []
    async with aclosing(jobs.events(after=0)) as events:
        await take(events, 1)
        assert reported == [True]
    assert reported == [True, False]


async def test_listening_ends_when_its_jobs_is_closed(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path, executor="inline") as jobs:
        listening = asyncio.ensure_future(anext(jobs.events()))
        await jobs.count()
    done, _ = await asyncio.wait([listening], timeout=LIMIT_S)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    assert done, "it listened on"
