"""Jobs as applications hold it: running, looking, controlling, opening, closing, sharing."""

from __future__ import annotations

import asyncio
import errno
import gc
import inspect
import logging
import os
import shlex
import signal
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from anodejobs import (
    AnodeJobsError,
    ExecutorError,
    InvalidJob,
    InvalidTransition,
    JobActive,
    JobFilter,
    JobNotFound,
    JobRecord,
    Jobs,
    JobSpec,
    MemoryJobStore,
    SqliteJobStore,
    Status,
    StatusUnreachable,
    StoreError,
    WaitTimeout,
    arguments,
)
from anodejobs.events import Attempt, StartFailed, utc_now
from anodejobs.executors import processes
from anodejobs.executors.base import Host
from anodejobs.executors.processes import Processes
from anodejobs.planner import Plan
from anodejobs.stores.base import Stored
from anodejobs.stores.rows import record_of
from tests.conftest import descriptors, has_died, python

LIMIT_S = 60.0
SECRET = "hunter2-is-no-password"


def until(path: Path) -> str:
    """Return the shell command that holds a job up until the file is there."""
    return f"until [ -e {shlex.quote(str(path))} ]; do sleep 0.02; done"


async def ended(jobs: Jobs, command: str | list[str], job_id: str, **spec: Any) -> JobRecord:
    """Run a job, and return its record when it has ended."""
    await jobs.run(command, job_id, **spec)
    return await jobs.wait(job_id)


async def statuses(jobs: Jobs, job_id: str) -> list[Status | None]:
    return [event.status for event in await jobs.history(job_id)]


def log_files(record: JobRecord) -> list[Path]:
    return [Path(record.logdir, record.logfile + end) for end in ("_out.txt", "_errors.txt")]


# Running.


async def test_run_returns_a_running_record_with_its_pid(jobs: Jobs) -> None:
    record = await jobs.run("sleep 1000", "long")
    assert record.status is Status.running
    assert record.last_pid is not None and record.last_pid > 0
    assert psutil.Process(record.last_pid).is_running()
    assert await jobs.get_status("long") == record


async def test_a_job_without_an_id_gets_one_of_its_own(jobs: Jobs) -> None:
    first, second = await jobs.run("true"), await jobs.run("true")
    assert first.self_id != second.self_id
    assert (await jobs.wait(first.self_id)).status is Status.finished
    assert (await jobs.wait(second.self_id)).status is Status.finished


async def test_what_a_start_took_is_let_go_of_while_the_job_runs(jobs: Jobs) -> None:
    await jobs.run("sleep 60", "here")
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, Plan)]
    await jobs.stop("here")


async def test_a_string_goes_to_the_shell(jobs: Jobs) -> None:
    await ended(jobs, "echo out; echo errors >&2", "shell")
    assert await jobs.job_logs("shell") == ("out\n", "errors\n")


async def test_a_list_is_executed_directly(jobs: Jobs) -> None:
    record = await ended(jobs, ["printf", "%s|", "$HOME", "", "; exit 3"], "direct")
    assert record.command == ["printf", "%s|", "$HOME", "", "; exit 3"]
    assert await jobs.job_logs("direct") == ("$HOME||; exit 3|", "")


async def test_a_program_that_is_not_there_gives_failed_start(jobs: Jobs) -> None:
    record = await jobs.run(["/nowhere/at/all"], "missing")
    assert record.status is Status.failed_start
    assert record.error is not None and "No such file" in record.error
    assert (record.last_pid, record.exit_code, record.evidence) == (None, None, None)
    assert record.finished_at is not None
    assert await jobs.job_logs("missing") == ("", "")


async def test_a_directory_that_is_not_there_gives_failed_start(jobs: Jobs) -> None:
    record = await jobs.run("true", "homeless", cwd="/nowhere/at/all")
    assert record.status is Status.failed_start
    assert record.error is not None and "/nowhere/at/all" in record.error


async def test_an_ended_id_is_run_anew(jobs: Jobs) -> None:
    old = await ended(jobs, "exit 3", "again", tags=["old"], name="old")
    new = await jobs.run("sleep 1000", "again", tags=["new"])
    assert (new.status, new.attempt, new.tags, new.name) == (Status.running, 1, ["new"], None)
    assert (new.exit_code, new.evidence, new.error, new.finished_at) == (None, None, None, None)
    assert new.created_at is not None and old.finished_at is not None
    assert new.created_at >= old.finished_at
    assert new.last_pid != old.last_pid


async def test_a_new_run_replaces_the_old_logs(jobs: Jobs) -> None:
    await ended(jobs, "echo a long old line; echo old >&2", "again")
    await ended(jobs, "echo new; echo newer >&2", "again")
    assert await jobs.job_logs("again") == ("new\n", "newer\n")


async def test_a_new_run_that_writes_nothing_removes_the_old_logs(jobs: Jobs) -> None:
    await ended(jobs, "echo old; echo old >&2", "again")
    await ended(jobs, "true", "again")
    assert await jobs.job_logs("again") == ("", "")


async def test_a_new_run_that_cannot_start_removes_the_old_logs(jobs: Jobs) -> None:
    await ended(jobs, "echo old; echo old >&2", "again")
    await jobs.run(["/nowhere/at/all"], "again")
    assert await jobs.job_logs("again") == ("", "")


async def test_the_history_goes_on_over_a_new_run(jobs: Jobs) -> None:
    await ended(jobs, "exit 3", "again")
    await ended(jobs, "true", "again")
    history = await jobs.history("again")
    assert [(event.previous, event.status) for event in history] == [
        (None, Status.starting),
        (Status.starting, Status.running),
        (Status.running, Status.failed),
        (Status.failed, Status.starting),
        (Status.starting, Status.running),
        (Status.running, Status.finished),
    ]
    assert [event.seq for event in history] == sorted({event.seq for event in history})


async def test_an_active_id_is_refused_and_nothing_changes(jobs: Jobs) -> None:
    await jobs.run("echo first; sleep 1000", "busy")
    async with aclosing(jobs.follow("busy")) as chunks:
        assert (await anext(chunks)).data == b"first\n"
    before = await jobs.get_status("busy"), await jobs.history("busy")
    with pytest.raises(JobActive, match="'busy' is running"):
        await jobs.run("echo second", "busy")
    assert (await jobs.get_status("busy"), await jobs.history("busy")) == before
    assert await jobs.job_logs("busy") == ("first\n", "")


async def test_a_refused_run_does_no_harm_to_other_jobs(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.run(f"{until(tmp_path / 'go')}; exit 3", "busy")
    with pytest.raises(JobActive):
        await jobs.run("true", "busy")
    await ended(jobs, "true", "another")
    (tmp_path / "go").touch()
    assert (await jobs.wait("busy")).exit_code == 3


async def test_of_many_runs_of_one_id_at_once_one_is_started(jobs: Jobs) -> None:
    runs = (jobs.run("echo once; sleep 1000", "one") for _ in range(20))
    answers = await asyncio.gather(*runs, return_exceptions=True)
    records = [answer for answer in answers if isinstance(answer, JobRecord)]
    assert len(records) == 1
    assert sum(isinstance(answer, JobActive) for answer in answers) == 19
    assert await statuses(jobs, "one") == [Status.starting, Status.running]


async def test_a_hundred_jobs_at_once_all_end_with_their_own_code(jobs: Jobs) -> None:
    commands = {f"job-{n}": f"echo {n}; exit {n}" for n in range(100)}
    await asyncio.gather(*(jobs.run(command, job_id) for job_id, command in commands.items()))
    records = await jobs.wait_all(list(commands))
    assert [record.exit_code for record in records.values()] == list(range(100))
    logs = await asyncio.gather(*map(jobs.job_logs, commands))
    assert logs == [(f"{n}\n", "") for n in range(100)]


# Where the id has a record already.


async def test_skip_gives_the_old_record(jobs: Jobs) -> None:
    old = await ended(jobs, "exit 3", "again")
    assert await jobs.run("echo new", "again", if_exists="skip") == old
    assert await jobs.get_status("again") == old
    assert await jobs.job_logs("again") == ("", "")


async def test_skip_runs_a_new_id(jobs: Jobs) -> None:
    record = await jobs.run("true", "new", if_exists="skip", fresh_for=1000)
    assert record.status is Status.running


async def test_skip_refuses_an_active_id(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "busy")
    with pytest.raises(JobActive):
        await jobs.run("true", "busy", if_exists="skip")


async def test_error_refuses_an_ended_id(jobs: Jobs) -> None:
    old = await ended(jobs, "true", "again")
    with pytest.raises(InvalidJob, match="'again', which is finished") as caught:
        await jobs.run("true", "again", if_exists="error")
    assert caught.value.field == "job_id"
    assert await jobs.get_status("again") == old


async def test_error_runs_a_new_id(jobs: Jobs) -> None:
    record = await jobs.run("true", "new", if_exists="error")
    assert record.status is Status.running


@pytest.mark.parametrize("way", ["run", "submit"])
async def test_a_job_whose_earlier_run_cannot_be_removed_is_not_run_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async with Jobs(tmp_path / "job_db", executor="inline") as jobs:
        await ended(jobs, "echo first", "a")

        def refuse(path: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        with monkeypatch.context() as patched:
            patched.setattr(processes, "remove", refuse)
            await getattr(jobs, way)("echo second", "a")
            record = await jobs.wait("a")
        assert record.status is Status.failed_start
        assert record.error is not None and "cannot be removed" in record.error
        assert await jobs.job_logs("a") == ("", "")
        assert (await ended(jobs, "echo third", "a")).status is Status.finished
        assert await jobs.job_logs("a") == ("third\n", "")


async def test_a_job_that_waits_to_be_run_anew_has_nothing_of_its_earlier_run(jobs: Jobs) -> None:
    tells = 'echo first; echo 1 > "$ANODEJOBS_RESULT"; echo 0.5 >> "$ANODEJOBS_PROGRESS"; exit 1'
    await jobs.submit(tells, "a", max_retries=1)
    assert (await jobs.wait("a")).attempt == 2
    await jobs.create("true", "a")
    for attempt in (None, 1, 2):
        assert await jobs.job_logs("a", attempt=attempt) == ("", "")
    async with aclosing(jobs.follow("a")) as chunks:
        first = asyncio.ensure_future(anext(chunks, None))
        await jobs.start("a")
        assert await first is None
    record = await jobs.wait("a")
    assert (record.status, record.result, record.progress) == (Status.finished, None, None)
    for attempt in (None, 1, 2):
        assert await jobs.job_logs("a", attempt=attempt) == ("", "")
    assert list(Path(record.logdir).iterdir()) == []


async def test_what_never_began_has_left_nothing_to_follow(jobs: Jobs) -> None:
    await ended(jobs, "echo first", "a")
    await jobs.create("true", "a")
    await jobs.cancel("a")
    assert [chunk async for chunk in jobs.follow("a")] == []
    await jobs.run(["/no/such/program"], "a")
    assert [chunk async for chunk in jobs.follow("a")] == []
    assert await jobs.job_logs("a") == ("", "")


class Unready(Processes):
    """Says of each start beforehand that it will not succeed."""

    async def prepare(self) -> StartFailed | None:  # type: ignore[override]
        return StartFailed(error="there is no room")


async def test_an_attempt_that_was_refused_has_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    async with Jobs(tmp_path, executor="inline") as jobs:
        await ended(jobs, "echo first", "a")
    async with Jobs(tmp_path, executor=Unready()) as jobs:
        record = await ended(jobs, "echo second", "a", max_retries=1)
        assert (record.status, record.attempt) == (Status.failed_start, 2)
        for attempt in (None, 1, 2):
            assert await jobs.job_logs("a", attempt=attempt) == ("", "")
        assert [chunk async for chunk in jobs.follow("a")] == []


async def test_a_run_that_begins_while_the_job_is_deleted_keeps_its_files(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended(jobs, "echo first", "a")

    async def released(job_id: str) -> None:  # which may take long, where many wait for it
        await jobs.run("echo second; exec sleep 1000", job_id)
        async with aclosing(jobs.follow(job_id)) as chunks:
            assert (await anext(chunks)).data == b"second\n"

    monkeypatch.setattr(jobs._links, "release", released)
    with pytest.raises(JobActive):
        await jobs.delete("a")
    assert await jobs.job_logs("a") == ("second\n", "")


async def test_a_job_that_is_made_anew_is_not_taken_for_the_one_that_was_deleted(
    jobs: Jobs,
) -> None:
    await jobs.create("true", "a")
    old = await jobs.cancel("a")
    assert old is not None and await jobs.delete("a")
    await jobs.run("sleep 1000", "a")
    assert await jobs._delete_old([old]) == 0
    assert await jobs.stop("a") is not None


async def test_a_result_that_is_fresh_is_not_made_again(jobs: Jobs) -> None:
    old = await ended(jobs, "true", "result")
    assert await jobs.run("true", "result", if_exists="skip", fresh_for=1000) == old


async def test_a_result_that_is_too_old_is_made_again(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended(jobs, "true", "result")
    monkeypatch.setattr(arguments, "utc_now", lambda: utc_now() + timedelta(seconds=1001))
    new = await jobs.run("true", "result", if_exists="skip", fresh_for=1000)
    assert new.status is Status.running


async def test_a_failure_is_not_fresh(jobs: Jobs) -> None:
    await ended(jobs, "exit 3", "result")
    new = await jobs.run("true", "result", if_exists="skip", fresh_for=1000)
    assert new.status is Status.running


# What a record tells.


async def test_a_record_tells_what_was_asked_for(jobs: Jobs, tmp_path: Path) -> None:
    record = await jobs.run(
        "sleep 1000",
        "full",
        cwd=tmp_path,
        name="a name",
        description="what it is for",
        tags=("red", "blue"),
        metadata={"depth": {"list": [1, 2.5, None, True, "ü"]}},
        user_id="u1",
        workflow_id="w1",
        timeout=1000,
    )
    assert record.self_id == "full"
    assert (record.command, record.cwd) == ("sleep 1000", str(tmp_path))
    assert (record.name, record.description) == ("a name", "what it is for")
    assert record.tags == ["red", "blue"]
    assert record.metadata == {"depth": {"list": [1, 2.5, None, True, "ü"]}}
    assert (record.user_id, record.workflow_id, record.timeout) == ("u1", "w1", 1000.0)
    assert record.host


async def test_a_record_tells_where_its_logs_are(jobs: Jobs, tmp_path: Path) -> None:
    record = await ended(jobs, "echo out; echo errors >&2", "logged")
    assert record.dirname == str(tmp_path / "job_db")
    assert record.logdir == str(tmp_path / "job_db" / "job_logs")
    assert record.logfile == "logged"
    assert [path.read_text() for path in log_files(record)] == ["out\n", "errors\n"]


async def test_a_job_runs_where_the_application_is_unless_told(jobs: Jobs) -> None:
    record = await ended(jobs, "pwd", "here")
    assert record.cwd == os.getcwd()
    assert await jobs.job_logs("here") == (f"{os.getcwd()}\n", "")


async def test_the_times_of_a_record_ascend_and_are_aware(jobs: Jobs) -> None:
    before = datetime.now(UTC)
    record = await ended(jobs, "true", "timed")
    assert record.created_at is not None
    assert record.started_at is not None
    assert record.finished_at is not None
    times = [before, record.created_at, record.started_at, record.finished_at, datetime.now(UTC)]
    assert times == sorted(times)
    assert {time.utcoffset() for time in times} == {timedelta(0)}
    assert record.last_update == record.finished_at


@pytest.mark.parametrize(
    ("command", "exit_code", "status"),
    [
        ("exit 0", 0, Status.finished),
        ("exit 1", 1, Status.failed),
        ("exit 255", 255, Status.failed),
        ("kill -KILL $$", -9, Status.failed),
        ("kill -TERM $$", -15, Status.failed),
    ],
)
async def test_an_exit_is_told_as_it_was_observed(
    jobs: Jobs, command: str, exit_code: int, status: Status
) -> None:
    record = await ended(jobs, command, "ends")
    assert (record.exit_code, record.status) == (exit_code, status)
    assert record.evidence == "observed"
    assert (record.error is None) == (status is Status.finished)


async def test_a_record_read_from_the_store_is_what_run_returned(
    jobs: Jobs, tmp_path: Path
) -> None:
    record = await ended(jobs, "exit 3", "kept", tags=["red"], metadata={"a": [1, {"b": None}]})
    async with Jobs(db_path=tmp_path / "job_db", executor="inline") as reopened:
        assert await reopened.get_status("kept") == record
        assert await reopened.list_jobs() == [record]


# Looking.


@pytest.fixture
async def five(jobs: Jobs) -> Jobs:
    """Five jobs that have ended: a, b, c, d and e; b and d failed."""
    for n, job_id in enumerate("abcde"):
        tags = ["odd"] if n % 2 else ["even", "all"]
        command = f"exit {n % 2}"
        await ended(jobs, command, job_id, name=f"name-{9 - n}", tags=tags, user_id=f"u{n // 2}")
    return jobs


def ids(records: list[JobRecord]) -> str:
    return "".join(record.self_id for record in records)


async def test_an_unknown_id_has_no_status(jobs: Jobs) -> None:
    assert await jobs.get_status("nobody") is None


async def test_a_long_list_lets_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = most = 0

    def counted(make: Callable[..., JobRecord]) -> Callable[..., JobRecord]:
        def make_one_more(*args: Any) -> JobRecord:
            nonlocal made, most
            made += 1
            most = max(most, made)
            return make(*args)

        return make_one_more

    async def take_turns() -> None:
        nonlocal made
        while True:
            made = 0
            await asyncio.sleep(0)

    monkeypatch.setattr("anodejobs.threads._PIECE_S", 0.0)
    monkeypatch.setattr("anodejobs.stores.sqlite.record_of", counted(record_of))
    monkeypatch.setattr(Jobs, "_as_of_now", counted(Jobs._as_of_now))
    async with Jobs(tmp_path, executor="inline") as jobs:
        await jobs.create_batch([{"command": "true"}] * 1000)
        others = asyncio.create_task(take_turns())
        assert len(await jobs.list_status()) == len(await jobs.list_jobs()) == 1000
        others.cancel()
    assert most < 500


async def test_all_records_are_listed_oldest_first(five: Jobs) -> None:
    found = await five.list_status()
    assert list(found) == list("abcde")
    assert found["b"] == await five.get_status("b")


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({}, "abcde"),
        ({"status": "failed"}, "bd"),
        ({"status": [Status.failed, Status.running]}, "bd"),
        ({"self_id": ["e", "a", "nobody"]}, "ae"),
        ({"tags": ["all", "even"]}, "ace"),
        ({"tags": ["odd", "even"]}, ""),
        ({"user_id": "u1", "status": "finished"}, "c"),
        ({"name": "name-7"}, "c"),
        ({"workflow_id": "w1"}, ""),
        ({"created_after": datetime(2000, 1, 1, tzinfo=UTC)}, "abcde"),
        ({"created_before": datetime(2000, 1, 1, tzinfo=UTC)}, ""),
    ],
    ids=str,
)
async def test_a_filter_means_the_same_everywhere(
    five: Jobs, filter: dict[str, Any], expected: str
) -> None:
    assert "".join(await five.list_status(filter)) == expected
    assert "".join(await five.list_status(JobFilter(filter))) == expected
    assert ids(await five.list_jobs(**filter)) == expected
    assert await five.count(filter) == await five.count(JobFilter(filter)) == len(expected)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ({}, "abcde"),
        ({"sort_order": "desc"}, "edcba"),
        ({"sort_by": "name"}, "edcba"),
        ({"sort_by": "finished_at", "sort_order": "desc"}, "edcba"),
        ({"sort_by": "status"}, "bdace"),
        ({"sort_by": "status", "sort_order": "desc"}, "ecadb"),
    ],
    ids=str,
)
async def test_jobs_are_listed_in_the_order_asked_for(
    five: Jobs, order: dict[str, Any], expected: str
) -> None:
    assert ids(await five.list_jobs(**order)) == expected


async def test_pages_by_offset_show_every_job_once(five: Jobs) -> None:
    pages = [ids(await five.list_jobs(limit=2, offset=offset)) for offset in (0, 2, 4, 6)]
    assert pages == ["ab", "cd", "e", ""]


async def test_pages_by_after_show_every_job_once(five: Jobs) -> None:
    pages: list[str] = []
    last: str | None = None
    while page := await five.list_jobs(limit=2, after=last, sort_by="name"):
        pages.append(ids(page))
        last = page[-1].self_id
    assert pages == ["ed", "cb", "a"]


async def test_a_page_after_an_unknown_job_is_not_found(five: Jobs) -> None:
    with pytest.raises(JobNotFound):
        await five.list_jobs(after="nobody")


async def test_counts_tell_every_status(five: Jobs) -> None:
    await five.run("sleep 1000", "f")
    counts = await five.counts()
    assert set(counts) == set(Status)
    assert {status: n for status, n in counts.items() if n} == {
        Status.finished: 3,
        Status.failed: 2,
        Status.running: 1,
    }


async def test_counts_follow_what_happens_to_a_job(jobs: Jobs) -> None:
    seen: list[int] = []
    await jobs.run("sleep 1000", "one")
    seen.append((await jobs.counts())[Status.running])
    await jobs.stop("one")
    seen.append((await jobs.counts())[Status.stopped])
    await jobs.delete("one")
    seen.append(await jobs.count())
    assert seen == [1, 1, 0]


async def test_the_history_tells_when_and_why(jobs: Jobs) -> None:
    await ended(jobs, "exit 3", "told")
    history = await jobs.history("told")
    assert [event.why for event in history] == [None, None, "exit code 3"]
    assert [event.at for event in history] == sorted(event.at for event in history)
    assert {(event.kind, event.job_id, event.attempt) for event in history} == {
        ("status", "told", 1)
    }


async def test_an_unknown_id_has_no_history(jobs: Jobs) -> None:
    assert await jobs.history("nobody") == []


async def test_the_end_of_a_log_can_be_read_alone(jobs: Jobs) -> None:
    await ended(jobs, "printf 0123456789; printf abc >&2", "digits")
    assert await jobs.job_logs("digits", tail=4) == ("6789", "abc")
    assert await jobs.job_logs("digits", tail=0) == ("", "")
    assert await jobs.job_logs("digits", tail=1000) == ("0123456789", "abc")


async def test_bytes_that_are_no_text_are_replaced(jobs: Jobs) -> None:
    await ended(jobs, r"printf 'a\377\303\274b'", "bytes")
    assert await jobs.job_logs("bytes") == ("a\ufffdüb", "")


async def test_the_logs_of_an_unknown_id_are_not_found(jobs: Jobs) -> None:
    with pytest.raises(JobNotFound):
        await jobs.job_logs("nobody")


async def test_usage_counts_the_processes_of_a_job(jobs: Jobs) -> None:
    await jobs.run("sleep 1000 & echo ready; wait", "two")
    async with aclosing(jobs.follow("two")) as chunks:
        await anext(chunks)
    used = await jobs.usage("two")
    assert used.processes == 2
    assert used.memory_bytes > 0
    await jobs.stop("two")
    assert (await jobs.usage("two")).processes == 0


async def test_the_usage_of_an_unknown_id_is_not_found(jobs: Jobs) -> None:
    with pytest.raises(JobNotFound):
        await jobs.usage("nobody")


# Control.


async def test_a_stopped_job_is_gone(jobs: Jobs) -> None:
    started = await jobs.run("sleep 1000", "long")
    assert started.last_pid is not None
    process = psutil.Process(started.last_pid)
    record = await jobs.stop("long")
    assert record is not None
    assert (record.status, record.exit_code, record.error) == (Status.stopped, -15, None)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_a_job_that_ignores_sigterm_is_killed_after_its_grace(jobs: Jobs) -> None:
    await jobs.run("trap '' TERM; echo ready; while :; do sleep 1; done", "stubborn")
    async with aclosing(jobs.follow("stubborn")) as chunks:
        await anext(chunks)
    record = await jobs.stop("stubborn", grace=0.1)
    assert record is not None
    assert (record.status, record.exit_code) == (Status.stopped, -9)


async def test_stopping_an_ended_job_leaves_it_as_it_is(jobs: Jobs) -> None:
    record = await ended(jobs, "exit 3", "over")
    assert await jobs.stop("over") == record
    assert await jobs.get_status("over") == record


async def test_stopping_an_unknown_id_gives_none(jobs: Jobs) -> None:
    assert await jobs.stop("nobody") is None


async def test_stopping_a_job_that_is_deleted_meanwhile_gives_none(jobs: Jobs) -> None:
    for step in range(20):
        await jobs.create("true", "gone")
        await jobs.cancel("gone")
        deleting = asyncio.create_task(jobs.delete("gone"))
        for _ in range(step % 10):
            await asyncio.sleep(0)
        record = await jobs.stop("gone")
        assert record is None or record.status is Status.cancelled
        assert await deleting is True


async def test_many_who_stop_one_job_all_get_its_end(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "long")
    records = await asyncio.gather(*(jobs.stop("long") for _ in range(20)))
    assert {record and record.status for record in records} == {Status.stopped}
    assert (await statuses(jobs, "long")).count(Status.stopping) == 1


async def test_a_stop_returns_though_the_id_is_run_anew_meanwhile(tmp_path: Path) -> None:
    may_return = asyncio.Event()

    class SlowToReturn(Processes):
        async def stop(self, attempt: Attempt, grace: float, *, may_hasten: bool = True) -> bool:
            is_gone = await super().stop(attempt, grace, may_hasten=may_hasten)
            await may_return.wait()
            return is_gone

    async with Jobs(db_path=tmp_path, executor=SlowToReturn(), stop_grace=1) as jobs:
        await jobs.run("sleep 1000", "again")
        stopping = asyncio.create_task(jobs.stop("again"))
        await jobs.wait("again")
        running = await jobs.run("sleep 1000", "again")
        may_return.set()
        async with asyncio.timeout(LIMIT_S):
            record = await stopping
        assert record is not None and record.status is Status.stopped
        assert await jobs.get_status("again") == running


async def test_a_paused_job_goes_on_when_resumed(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.run(f"{until(tmp_path / 'go')}; exit 3", "pausing")
    for _ in range(2):
        assert (await jobs.pause("pausing")).status is Status.paused
    for _ in range(2):
        assert (await jobs.resume("pausing")).status is Status.running
    (tmp_path / "go").touch()
    assert (await jobs.wait("pausing")).exit_code == 3


async def test_a_paused_job_can_be_stopped(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "pausing")
    await jobs.pause("pausing")
    record = await jobs.stop("pausing")
    assert record is not None
    assert (record.status, record.exit_code) == (Status.stopped, -15)


async def test_pausing_an_ended_job_is_refused(jobs: Jobs) -> None:
    record = await ended(jobs, "true", "over")
    with pytest.raises(InvalidTransition, match=r"^job 'over' is finished: it cannot be paused$"):
        await jobs.pause("over")
    assert await jobs.get_status("over") == record


async def test_a_signal_reaches_the_job(jobs: Jobs) -> None:
    await jobs.run("trap 'exit 7' USR1; echo ready; while :; do sleep 0.02; done", "signalled")
    async with aclosing(jobs.follow("signalled")) as chunks:
        await anext(chunks)
    await jobs.signal("signalled", signal.SIGUSR1)
    assert (await jobs.wait("signalled")).status is Status.failed


async def test_a_signal_to_an_ended_job_is_refused(jobs: Jobs) -> None:
    await ended(jobs, "true", "over")
    with pytest.raises(InvalidTransition, match=r"^job 'over' is finished: it cannot be sent"):
        await jobs.signal("over", "SIGHUP")


@pytest.mark.parametrize("call", [Jobs.pause, Jobs.resume, Jobs.restart, Jobs.wait])
async def test_what_needs_a_job_does_not_find_an_unknown_id(
    jobs: Jobs, call: Callable[[Jobs, str], Awaitable[JobRecord]]
) -> None:
    with pytest.raises(JobNotFound) as caught:
        await call(jobs, "nobody")
    assert caught.value.job_id == "nobody"
    assert await jobs.count() == 0


async def test_restart_ends_the_running_process_and_starts_another(jobs: Jobs) -> None:
    old = await jobs.run("echo $$; exec sleep 1000", "service", tags=["red"])
    assert old.last_pid is not None
    process = psutil.Process(old.last_pid)
    new = await jobs.restart("service")
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert (new.status, new.attempt, new.tags) == (Status.running, 1, ["red"])
    assert new.last_pid != old.last_pid
    async with aclosing(jobs.follow("service")) as chunks:
        assert (await anext(chunks)).text == f"{new.last_pid}\n"


async def test_restart_runs_an_ended_job_as_it_was(jobs: Jobs, tmp_path: Path) -> None:
    old = await ended(jobs, "pwd; exit 3", "over", cwd=tmp_path, name="a name", timeout=1000)
    new = await jobs.restart("over")
    assert (new.status, new.exit_code, new.cwd) == (Status.running, None, str(tmp_path))
    assert (new.name, new.timeout, new.command) == (old.name, old.timeout, old.command)
    assert (await jobs.wait("over")).exit_code == 3
    assert await jobs.job_logs("over") == (f"{tmp_path}\n", "")


async def test_restart_keeps_the_environment_of_the_first_run(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAPE", "round")
    await ended(jobs, "echo $SHAPE $COLOUR", "painted", envs={"COLOUR": "red"})
    monkeypatch.setenv("SHAPE", "square")
    await jobs.restart("painted")
    await jobs.wait("painted")
    assert await jobs.job_logs("painted") == ("round red\n", "")


async def test_restarts_at_once_leave_one_process(jobs: Jobs) -> None:
    await jobs.run("exec sleep 1000", "service")
    async with asyncio.timeout(LIMIT_S):
        answers = await asyncio.gather(
            *(jobs.restart("service") for _ in range(8)), return_exceptions=True
        )
    assert any(isinstance(answer, JobRecord) for answer in answers)
    assert all(isinstance(answer, (JobRecord, JobActive)) for answer in answers)
    assert (await jobs.usage("service")).processes == 1


async def test_restarts_that_come_at_any_moment_are_all_answered(jobs: Jobs) -> None:
    async def restart_later(pause_s: float) -> JobRecord:
        await asyncio.sleep(pause_s)  # so that they meet the others' restarts at every stage
        return await jobs.restart("service")

    await jobs.run("exec sleep 1000", "service")
    for _ in range(25):
        async with asyncio.timeout(LIMIT_S):
            restarts = (restart_later(0.002 * n) for n in range(6))
            answers = await asyncio.gather(*restarts, return_exceptions=True)
        assert [a for a in answers if not isinstance(a, (JobRecord, JobActive))] == []
    # None was ended but by a stop that is on record.
    assert not {Status.failed, Status.lost} & set(await statuses(jobs, "service"))


async def test_a_deleted_job_leaves_nothing(jobs: Jobs) -> None:
    record = await ended(jobs, "echo out; echo errors >&2", "gone", tags=["red"])
    assert await jobs.delete("gone") is True
    assert await jobs.get_status("gone") is None
    assert await jobs.history("gone") == []
    assert await jobs.count({"tags": ["red"]}) == 0
    assert list(Path(record.logdir).iterdir()) == []
    with pytest.raises(JobNotFound):
        await jobs.job_logs("gone")


async def test_a_deleted_job_leaves_no_rotated_logs(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path, log_max_bytes=10, log_backups=3, executor="inline") as jobs:
        record = await ended(jobs, "for i in 1 2 3 4; do echo line $i; sleep 0.1; done", "gone")
        assert await jobs.delete("gone") is True
        assert list(Path(record.logdir).iterdir()) == []


async def test_deleting_an_unknown_id_gives_false(jobs: Jobs) -> None:
    assert await jobs.delete("nobody") is False


async def test_deleting_an_active_job_is_refused(jobs: Jobs) -> None:
    record = await jobs.run("sleep 1000", "busy")
    with pytest.raises(JobActive):
        await jobs.delete("busy")
    assert await jobs.get_status("busy") == record


async def test_a_deleted_id_can_be_run_anew(jobs: Jobs) -> None:
    await ended(jobs, "echo old", "again")
    await jobs.delete("again")
    record = await ended(jobs, "echo new", "again", if_exists="error")
    assert record.status is Status.finished
    assert await jobs.job_logs("again") == ("new\n", "")


# Where records are kept.


async def test_a_memory_url_leaves_no_database(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path, store="memory://", executor="inline") as jobs:
        assert (await ended(jobs, "echo hi", "short")).status is Status.finished
        assert await jobs.job_logs("short") == ("hi\n", "")
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["job_files", "job_logs", "shim"]


async def test_a_memory_store_keeps_records_from_one_jobs_to_the_next(tmp_path: Path) -> None:
    store = MemoryJobStore()
    async with Jobs(db_path=tmp_path, store=store, executor="inline") as jobs:
        record = await ended(jobs, "echo hi", "short")
    async with Jobs(db_path=tmp_path, store=store, executor="inline") as jobs:
        assert await jobs.get_status("short") == record
        assert await jobs.job_logs("short") == ("hi\n", "")


@pytest.mark.parametrize("store", [None, "memory://"])
async def test_what_is_done_to_a_record_is_not_done_to_the_job(
    tmp_path: Path, store: str | None
) -> None:
    def spoil(record: JobRecord) -> None:
        deep: Any = record.metadata["deep"]
        assert (record.command, record.tags, record.payload) == (["sleep", "600"], ["x"], [["y"]])
        assert (deep, record.depends_on) == ([], [])
        for lists in (record.command, record.tags, record.payload, deep, record.depends_on):
            assert isinstance(lists, list)
            lists.append("spoilt")
        record.reached.clear()

    asked: dict[str, Any] = {"tags": {"x"}, "metadata": {"deep": []}, "payload": [["y"]]}
    command = ["sleep", "600"]
    async with (
        asyncio.timeout(60),
        Jobs(db_path=tmp_path, store=store, executor="inline") as jobs,
    ):
        heard: asyncio.Queue[JobRecord] = asyncio.Queue()
        await jobs.on(heard.put_nowait, status="queued")
        spoil(await jobs.create(command, "later", **asked))
        spoil(await jobs.start("later"))
        spoil(await heard.get())
        spoil(await jobs.run(command, "a", **asked))
        spoil(await jobs.signal("a", signal.SIGCONT))
        for ask in (jobs.pause, jobs.resume, jobs.restart, jobs.get_status, jobs.stop):
            record = await ask("a")
            assert record is not None
            spoil(record)
        spoil(await jobs.wait("a"))
        spoil(await jobs.wait("a", timeout=60))
        for _ in range(2):
            with pytest.raises(StatusUnreachable) as caught:
                await jobs.wait("a", "finished")
            spoil(caught.value.record)
        spoil((await jobs.wait_all(["a"]))["a"])
        async for record in jobs.as_completed(["a"]):
            spoil(record)
        spoil(await jobs.start("a"))
        for record in [*(await jobs.list_status()).values(), *await jobs.list_jobs()]:
            spoil(record)
        _, batch = await jobs.create_batch([{"command": command, "job_id": "b", **asked}])
        spoil(batch["b"])
        (await jobs.add_dependency("b", "a")).depends_on.append("spoilt")
        spoil(await jobs.remove_dependency("b", "a"))
        for record in await jobs.list_jobs(tags=["x"]):
            spoil(record)
        assert await jobs.count({"tags": ["x"]}) == 3


async def test_what_is_done_to_a_result_is_not_done_to_the_job(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path, store="memory://", executor="inline") as jobs:
        await ended(jobs, 'echo "[]" > "$ANODEJOBS_RESULT"', "a")
        result: Any = await jobs.get_results("a")
        result.append("spoilt")
        assert await jobs.get_results("a") == []


async def test_a_relative_url_names_a_file_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with Jobs(
        db_path="db", store="sqlite:///elsewhere/records.db", executor="inline"
    ) as jobs:
        await ended(jobs, "true", "short")
    assert (tmp_path / "elsewhere" / "records.db").is_file()
    assert not (tmp_path / "db" / "jobs.db").exists()


async def test_an_absolute_url_names_a_file_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "records.db"
    async with Jobs(db_path=tmp_path / "db", store=f"sqlite:///{path}", executor="inline") as jobs:
        await ended(jobs, "true", "short")
    async with Jobs(db_path=tmp_path / "db", store=SqliteJobStore(path), executor="inline") as jobs:
        assert list(await jobs.list_status()) == ["short"]


def test_a_url_of_an_unknown_kind_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nosuch://"):
        Jobs(db_path=tmp_path, store="nosuch://host/jobs", executor="inline")


async def test_what_cannot_be_stopped_for_want_of_room_can_be_signalled(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find_no_room(*_: object) -> None:
        raise StoreError("no room")

    await jobs.run("sleep 1000", "job")
    with monkeypatch.context() as full:
        full.setattr(SqliteJobStore, "commit", find_no_room)
        with pytest.raises(StoreError, match="no room"):
            await jobs.stop("job")
        record = await jobs.signal("job", signal.SIGKILL)
        assert record.status is Status.running
        with pytest.raises(StoreError, match="no room"):
            await jobs.wait("job", timeout=30)
    record = await jobs.wait("job", timeout=30)
    assert (record.status, record.exit_code) == (Status.failed, -signal.SIGKILL)


def test_an_unknown_durability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match="durability"):
        Jobs(db_path=tmp_path, durability="none", executor="inline")  # type: ignore[arg-type]  # is what is tested


@pytest.mark.parametrize("durability", ["power", "none"])
def test_a_durability_that_a_store_is_not_told_is_refused(tmp_path: Path, durability: Any) -> None:
    store = SqliteJobStore(tmp_path / "jobs.db")
    with pytest.raises(InvalidJob, match="durability"):
        Jobs(db_path=tmp_path, store=store, durability=durability, executor="inline")


async def test_jobs_can_be_kept_through_power_failures(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path, durability="power", executor="inline") as jobs:
        assert (await ended(jobs, "true", "short")).status is Status.finished


async def test_a_directory_that_cannot_be_used_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    jobs = Jobs(db_path=tmp_path / "file" / "db", executor="inline")
    with pytest.raises(StoreError, match="file/db"):
        await jobs.run("true")
    await jobs.close()


async def test_a_directory_whose_name_is_no_text_is_used_or_refused(tmp_path: Path) -> None:
    jobs = Jobs(db_path=tmp_path / "\udcff", executor="inline")
    (answer,) = await asyncio.gather(ended(jobs, "exit 3", "short"), return_exceptions=True)
    await jobs.close()
    if isinstance(answer, JobRecord):
        assert answer.exit_code == 3
    else:
        assert isinstance(answer, (InvalidJob, StoreError))


# Opening and closing.


@pytest.mark.parametrize(
    "wrong",
    [
        {"executor": "threads"},
        {"executor": None},
        {"on_close": "kill"},
        {"stop_grace": -1},
        {"stop_grace": "1"},
        {"stop_grace": float("nan")},
        {"log_max_bytes": 0},
        {"log_max_bytes": 1.5},
        {"log_backups": -1},
        {"log_backups": True},
        {"log_backups": None},
        {"max_concurrent_jobs": 0},
        {"queues": ["gpu"]},
        {"queues": {"gpu": 0}},
        {"queues": {"gpu": None}},
        {"aging": 0},
        {"aging": float("inf")},
        {"store": 42},
    ],
    ids=str,
)
def test_a_jobs_that_cannot_be_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob) as caught:
        Jobs(db_path=tmp_path / "db", **wrong)
    assert caught.value.field == next(iter(wrong))
    assert not (tmp_path / "db").exists()


async def test_a_jobs_touches_nothing_before_its_first_use(tmp_path: Path) -> None:
    jobs = Jobs(db_path=tmp_path / "db", executor="inline")
    assert list(tmp_path.iterdir()) == []
    await jobs.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_jobs_opens_itself_at_its_first_use(tmp_path: Path) -> None:
    jobs = Jobs(db_path=tmp_path / "deep" / "db", executor="inline")
    assert (await ended(jobs, "true", "short")).status is Status.finished
    await jobs.close()


async def test_first_uses_at_once_open_once(tmp_path: Path) -> None:
    opened: list[str] = []

    class Counted(MemoryJobStore):
        async def open(self, on_foreign_commit: Callable[[], None]) -> None:
            opened.append("opened")
            await asyncio.sleep(0)

    jobs = Jobs(db_path=tmp_path, store=Counted(), executor="inline")
    await asyncio.gather(*(jobs.run("true", f"job-{n}") for n in range(10)), jobs.count())
    assert opened == ["opened"]
    assert len(await jobs.wait_all({})) == 10
    await jobs.close()


async def test_closing_is_idempotent(tmp_path: Path) -> None:
    jobs = Jobs(db_path=tmp_path, executor="inline")
    await jobs.count()
    for _ in range(3):
        await jobs.close()


async def test_closes_at_once_all_return(tmp_path: Path) -> None:
    jobs = Jobs(db_path=tmp_path, stop_grace=1, executor="inline")
    await jobs.run("sleep 1000", "long")
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(jobs.close() for _ in range(5)))


CALLS: dict[str, Callable[[Jobs], Awaitable[object]]] = {
    "run": lambda jobs: jobs.run("true"),
    "wait": lambda jobs: jobs.wait("old"),
    "wait_all": lambda jobs: jobs.wait_all(["old"]),
    "as_completed": lambda jobs: anext(aiter(jobs.as_completed(["old"]))),
    "stop": lambda jobs: jobs.stop("old"),
    "pause": lambda jobs: jobs.pause("old"),
    "resume": lambda jobs: jobs.resume("old"),
    "signal": lambda jobs: jobs.signal("old", 1),
    "restart": lambda jobs: jobs.restart("old"),
    "delete": lambda jobs: jobs.delete("old"),
    "get_status": lambda jobs: jobs.get_status("old"),
    "list_status": lambda jobs: jobs.list_status(),
    "list_jobs": lambda jobs: jobs.list_jobs(),
    "count": lambda jobs: jobs.count(),
    "counts": lambda jobs: jobs.counts(),
    "history": lambda jobs: jobs.history("old"),
    "usage": lambda jobs: jobs.usage("old"),
    "job_logs": lambda jobs: jobs.job_logs("old"),
    "follow": lambda jobs: anext(aiter(jobs.follow("old"))),
    "events": lambda jobs: anext(aiter(jobs.events())),
    "create": lambda jobs: jobs.create("true"),
    "submit": lambda jobs: jobs.submit("true"),
    "start": lambda jobs: jobs.start("old"),
    "cancel": lambda jobs: jobs.cancel("old"),
    "attempts": lambda jobs: jobs.attempts("old"),
    "get_results": lambda jobs: jobs.get_results("old"),
    "metrics": lambda jobs: jobs.metrics(),
    "cleanup": lambda jobs: jobs.cleanup(1),
    "on": lambda jobs: jobs.on(print),
    "add_dependency": lambda jobs: jobs.add_dependency("old", "older"),
    "remove_dependency": lambda jobs: jobs.remove_dependency("old", "older"),
    "get_dependencies": lambda jobs: jobs.get_dependencies("old"),
    "get_dependents": lambda jobs: jobs.get_dependents("old"),
    "create_batch": lambda jobs: jobs.create_batch([{"command": "true"}]),
    "get_batch": lambda jobs: jobs.get_batch("batch"),
    "cancel_batch": lambda jobs: jobs.cancel_batch("batch"),
    "wait_batch": lambda jobs: jobs.wait_batch("batch"),
    "batch_progress": lambda jobs: jobs.batch_progress("batch"),
    "pause_queue": lambda jobs: jobs.pause_queue(),
    "resume_queue": lambda jobs: jobs.resume_queue(),
    "paused_queues": lambda jobs: jobs.paused_queues(),
    "schedule": lambda jobs: jobs.schedule("true", "nightly", every=60),
    "unschedule": lambda jobs: jobs.unschedule("nightly"),
    "schedules": lambda jobs: jobs.schedules(),
    "add_template": lambda jobs: jobs.add_template({"name": "one", "command": "true"}),
    "remove_template": lambda jobs: jobs.remove_template("one"),
    "templates": lambda jobs: jobs.templates(),
    "run_template": lambda jobs: jobs.run_template("one"),
    "submit_template": lambda jobs: jobs.submit_template("one"),
}


def test_every_call_is_among_these() -> None:
    calls = {
        name
        for name, call in inspect.getmembers(Jobs, inspect.isfunction)
        if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)
    }
    assert CALLS.keys() == {name for name in calls if not name.startswith("_")} - {"close"}


@pytest.mark.parametrize("call", CALLS)
async def test_a_closed_jobs_refuses_every_call(tmp_path: Path, call: str) -> None:
    async with Jobs(db_path=tmp_path, store="memory://", executor="inline") as jobs:
        await ended(jobs, "true", "old")
    with pytest.raises(ExecutorError, match="closed"):
        await CALLS[call](jobs)


@pytest.mark.parametrize("call", [*CALLS, "close"])
async def test_a_call_on_another_event_loop_is_refused(
    tmp_path: Path, jobs: Jobs, call: str
) -> None:
    """What it awaited would be done here, and nobody would wake it there."""
    calls = {**CALLS, "close": lambda jobs: jobs.close()}

    async def called() -> None:
        with pytest.raises(ExecutorError, match="lives on another event loop"):
            await calls[call](jobs)

    await ended(jobs, "true", "old")
    await asyncio.to_thread(asyncio.run, called())
    assert list(await jobs.list_status()) == ["old"]


async def test_a_thread_may_ask_on_the_loop_where_it_lives(jobs: Jobs) -> None:
    loop = asyncio.get_running_loop()

    def asked() -> Status:
        running = asyncio.run_coroutine_threadsafe(ended(jobs, "exit 3", "a"), loop)
        return running.result(LIMIT_S).status

    assert await asyncio.to_thread(asked) is Status.failed


def test_a_jobs_whose_event_loop_was_closed_under_it_can_be_closed(tmp_path: Path) -> None:
    jobs = Jobs(db_path=tmp_path, store="memory://", executor="inline")
    asyncio.run(jobs.count())  # type: ignore[arg-type]
    asyncio.run(jobs.close())


async def test_a_jobs_closed_before_its_first_use_cannot_be_used(tmp_path: Path) -> None:
    jobs = Jobs(db_path=tmp_path, executor="inline")
    await jobs.close()
    with pytest.raises(ExecutorError, match="closed"):
        await jobs.run("true")


async def test_closing_stops_inline_jobs(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path, stop_grace=1, executor="inline") as jobs:
        record = await jobs.run("sleep 1000", "long")
        assert record.last_pid is not None
        process = psutil.Process(record.last_pid)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    async with Jobs(db_path=tmp_path, executor="inline") as jobs:
        found = await jobs.get_status("long")
        assert found is not None
        assert (found.status, found.exit_code) == (Status.stopped, -15)
        whys = [event.why for event in await jobs.history("long")]
        assert "the application closed" in whys


async def test_a_context_that_a_cancelled_scope_of_anyio_leaves_is_closed(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    with anyio.CancelScope() as scope:
        async with Jobs(db_path=tmp_path, stop_grace=1, executor="inline") as jobs:
            await jobs.run("sleep 1000", "long")
            scope.cancel()
            await jobs.wait("long")
    assert asyncio.all_tasks() == before
    async with Jobs(db_path=tmp_path, executor="inline") as jobs:
        assert (await statuses(jobs, "long"))[-1] is Status.stopped


async def test_a_context_that_a_cancelled_scope_of_anyio_would_enter_is_closed(
    tmp_path: Path,
) -> None:
    before = asyncio.all_tasks()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with Jobs(db_path=tmp_path, executor="inline"):
            pytest.fail("it is cancelled")
    assert asyncio.all_tasks() == before


class HeldUp(Processes):
    """Lets nothing start before it is being closed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = asyncio.Event()
        self.may_start = asyncio.Event()

    async def prepare(self) -> None:
        self.is_asked.set()
        await self.may_start.wait()

    async def clean(self, token: str) -> None:
        await asyncio.sleep(0)  # as one that has somebody do it
        await super().clean(token)

    def wind_down(self) -> None:
        super().wind_down()
        self.may_start.set()


async def test_closing_stops_a_job_that_was_not_on_record_yet(tmp_path: Path) -> None:
    store, executor = MemoryJobStore(), HeldUp()
    async with asyncio.timeout(LIMIT_S):
        async with Jobs(tmp_path, store=store, stop_grace=1, executor=executor) as jobs:
            running = asyncio.create_task(jobs.run("sleep 1000", "long"))
            await executor.is_asked.wait()
        await asyncio.wait((running,))
        async with Jobs(tmp_path, store=store, executor="inline") as jobs:
            assert await statuses(jobs, "long") == ["starting", "running", "stopping", "stopped"]


async def test_closing_leaves_a_job_that_somebody_else_runs_under_an_id_that_was_asked_for(
    tmp_path: Path, jobs: Jobs
) -> None:
    await jobs.run("sleep 1000", "long")
    executor = HeldUp()
    async with Jobs(jobs.db_path, executor=executor) as other:
        running = asyncio.create_task(other.run("true", "long"))
        await executor.is_asked.wait()
    with pytest.raises(AnodeJobsError):
        await running
    assert await statuses(jobs, "long") == ["starting", "running"]


async def test_a_job_is_not_run_anew_once_closing_has_begun(tmp_path: Path) -> None:
    class Slow(MemoryJobStore):
        """Gives no job for the second time before there is no time left."""

        looks: int | None = None

        async def get(self, job_id: str) -> Stored | None:
            if self.looks is not None:
                self.looks += 1
                if self.looks == 2:
                    executor.is_asked.set()
                    await executor.may_start.wait()
            return await super().get(job_id)

    store, executor = Slow(), HeldUp()
    async with asyncio.timeout(LIMIT_S):
        async with Jobs(tmp_path, store=store, stop_grace=1, executor=executor) as jobs:
            executor.may_start.set()
            await jobs.run("sleep 1000", "another")  # which is waited for
            executor.may_start.clear()
            executor.is_asked.clear()
            await jobs.create("sleep 1000", "long")
            await jobs.cancel("long")
            store.looks = 0
            restarting = asyncio.create_task(jobs.restart("long"))
            await executor.is_asked.wait()
        with pytest.raises(ExecutorError):
            await restarting
        async with Jobs(tmp_path, store=store, executor="inline") as jobs:
            assert await statuses(jobs, "long") == ["pending", "cancelled"]


async def test_a_wait_under_way_ends_when_its_jobs_is_closed(tmp_path: Path) -> None:
    async with (
        Jobs(db_path=tmp_path, stop_grace=1, executor="inline") as mine,
        Jobs(db_path=tmp_path, executor="inline") as other,
        asyncio.timeout(LIMIT_S),
    ):
        await mine.run("sleep 1000", "long")
        waiting = asyncio.create_task(other.wait("long"))
        await other.count()
        await other.close()
        with pytest.raises(AnodeJobsError):
            await waiting


async def test_listeners_and_followers_end_when_their_jobs_is_closed(tmp_path: Path) -> None:
    async with (
        Jobs(db_path=tmp_path, stop_grace=1, executor="inline") as mine,
        Jobs(db_path=tmp_path, executor="inline") as other,
        asyncio.timeout(LIMIT_S),
    ):
        await mine.run("sleep 1000", "long")

        async def listen() -> None:
            async for _ in other.events():
                pass

        async def follow() -> None:
            async for _ in other.follow("long"):
                pass

        both = asyncio.gather(listen(), follow(), return_exceptions=True)
        await other.count()
        await other.close()
        answers = await both
    # Whether they end or raise: nobody hangs, and nothing but an own error comes out.
    assert all(answer is None or isinstance(answer, AnodeJobsError) for answer in answers)


async def test_a_run_while_closing_is_done_or_refused(tmp_path: Path) -> None:
    answers: list[object] = []
    async with asyncio.timeout(LIMIT_S):
        for step in range(40):
            jobs = Jobs(
                db_path=tmp_path / str(step), store="memory://", stop_grace=1, executor="inline"
            )
            running = asyncio.create_task(jobs.run("exit 3", "racer"))
            for _ in range(step):
                await asyncio.sleep(0)
            await jobs.close()
            (answer,) = await asyncio.gather(running, return_exceptions=True)
            answers.append(answer)
    strange = [a for a in answers if not isinstance(a, (JobRecord, ExecutorError))]
    assert not strange


@asynccontextmanager
async def script(code: str, *args: str | Path) -> AsyncIterator[Process]:
    """Run a Python program that uses the package, and end it with the context."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *map(str, args)), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().rstrip()


async def end(process: Process) -> None:
    """Let the program come to its end, and see that it is a good one."""
    _, errors = await process.communicate(b"")
    assert (process.returncode, errors.decode()) == (0, "")


async def test_an_opening_that_fails_is_told_when_all_is_let_go_of(tmp_path: Path) -> None:
    class Broken(Processes):
        async def open(self, host: Host) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def threads() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if not t.name.startswith("asyncio_")}

    known, open_before = threads(), descriptors()
    with pytest.raises(ExecutorError, match=r"could not be opened: .*Too many open files"):
        async with Jobs(tmp_path / "db", executor=Broken()):
            pass
    assert descriptors() == open_before
    for thread in threads() - known:  # a connection's ends a moment after it was closed
        thread.join(LIMIT_S)
        assert not thread.is_alive()


INTERRUPTED = """
import asyncio, signal
from anodejobs import Jobs

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored

async def main():
    async with Jobs("db", executor="inline", stop_grace=0.3) as jobs:
        command = "trap 'echo > asked' TERM; echo up; while :; do sleep 0.01; done"
        record = await jobs.run(command, "a")
        await jobs.submit("true", "b", depends_on=["a"])
        async for chunk in jobs.follow("a"):
            print(record.last_pid, flush=True)

asyncio.run(main())
"""


async def test_a_program_that_is_interrupted_twice_leaves_no_job_and_no_complaint(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "asked")
    pipe = os.open(tmp_path / "asked", os.O_RDWR | os.O_NONBLOCK)
    was_asked = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe, was_asked.set)
    command = (sys.executable, "-X", "dev", "-c", INTERRUPTED)
    program = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(LIMIT_S):
            assert program.stdout is not None
            pid = int(await program.stdout.readline())
            program.send_signal(signal.SIGINT)
            await was_asked.wait()
            program.send_signal(signal.SIGINT)
            _, complaints = await program.communicate()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
        asyncio.get_running_loop().remove_reader(pipe)
        os.close(pipe)
    assert program.returncode == -signal.SIGINT
    assert has_died(pid, LIMIT_S)  # whose zombie is another's to wait for
    # Python's own, interrupted as it reads the source for a line that it tells.
    ours = b"".join(line for line in complaints.splitlines() if b"tokenize.py" not in line)
    for word in (b"never", b"destroyed", b"ResourceWarning", b"Exception ignored"):
        assert word not in ours


async def test_a_program_that_forgets_to_close_does_not_hang(tmp_path: Path) -> None:
    forgetful = """
import asyncio, sys
from anodejobs import Jobs

async def main():
    await Jobs(sys.argv[1], executor="inline").run("sleep 1000", "long")

asyncio.run(main())
"""
    async with script(forgetful, tmp_path) as process:
        await end(process)
    async with Jobs(db_path=tmp_path, stop_grace=1, executor="inline") as jobs:
        record = await jobs.stop("long")
        assert record is not None
        assert record.is_done


def test_a_jobs_whose_event_loop_was_closed_before_it_is_closed_in_another_one(
    tmp_path: Path,
) -> None:
    jobs = Jobs(tmp_path, executor="inline")

    async def forget() -> None:
        await jobs.list_status()

    asyncio.run(forget())
    for _ in range(2):
        asyncio.run(jobs.close())


# Two on one directory.


@pytest.fixture
async def other(jobs: Jobs) -> AsyncIterator[Jobs]:
    """Another Jobs on the same directory."""
    async with Jobs(db_path=jobs.db_path, stop_grace=1, executor="inline") as other:
        yield other


async def test_both_see_the_jobs_of_either(jobs: Jobs, other: Jobs) -> None:
    mine = await jobs.run("sleep 1000", "mine")
    theirs = await other.run("sleep 1000", "theirs")
    for one in (jobs, other):
        assert await one.get_status("mine") == mine
        assert await one.get_status("theirs") == theirs
        assert list(await one.list_status()) == ["mine", "theirs"]
        assert await one.count({"status": "running"}) == 2


async def test_a_wait_is_woken_by_a_job_of_the_other(
    jobs: Jobs, other: Jobs, tmp_path: Path
) -> None:
    await other.run(f"{until(tmp_path / 'go')}; exit 3", "theirs")
    waiting = asyncio.create_task(jobs.wait("theirs"))
    await jobs.count()
    (tmp_path / "go").touch()
    async with asyncio.timeout(LIMIT_S):
        record = await waiting
    assert (record.status, record.exit_code, record.evidence) == (Status.failed, 3, "observed")


async def test_events_tell_of_the_jobs_of_the_other(jobs: Jobs, other: Jobs) -> None:
    async with aclosing(jobs.events()) as events, asyncio.timeout(LIMIT_S):
        first = asyncio.ensure_future(anext(events))
        await jobs.count()
        await other.run("true", "theirs")
        seen = [(await first).status, *[(await anext(events)).status for _ in range(2)]]
    assert seen == [Status.starting, Status.running, Status.finished]


async def test_a_job_of_the_other_can_be_stopped(jobs: Jobs, other: Jobs) -> None:
    await other.run("sleep 1000", "theirs")
    record = await jobs.stop("theirs")
    assert record is not None
    assert (record.status, record.exit_code) == (Status.stopped, -15)
    assert await other.get_status("theirs") == record


async def test_a_job_of_the_other_can_be_paused_and_resumed(jobs: Jobs, other: Jobs) -> None:
    await other.run("sleep 1000", "theirs")
    await jobs.pause("theirs")
    assert (await other.wait("theirs", Status.paused)).status is Status.paused
    assert (await jobs.resume("theirs")).status is Status.running


async def test_a_job_of_the_other_can_be_restarted_here(jobs: Jobs, other: Jobs) -> None:
    old = await other.run("sleep 1000", "theirs")
    new = await jobs.restart("theirs")
    assert (new.status, new.attempt) == (Status.running, 1)
    assert new.last_pid != old.last_pid


@pytest.mark.parametrize("call", [Jobs.restart, Jobs.start])
@pytest.mark.parametrize("is_deleted", [True, False])
async def test_a_job_that_is_deleted_or_run_anew_as_something_else_is_not_repeated_as_it_was(
    jobs: Jobs,
    other: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., Awaitable[JobRecord]],
    is_deleted: bool,
) -> None:
    await ended(jobs, "echo old", "over")
    is_about_to, may_go_on = asyncio.Event(), asyncio.Event()
    create = jobs._jobdb.create

    async def created_late(*args: Any, **kwargs: Any) -> JobRecord | None:
        is_about_to.set()
        await may_go_on.wait()
        return await create(*args, **kwargs)

    monkeypatch.setattr(jobs._jobdb, "create", created_late)
    repeating = asyncio.create_task(call(jobs, "over"))
    async with asyncio.timeout(LIMIT_S):
        await is_about_to.wait()
        if is_deleted:
            await other.delete("over")
        else:
            await ended(other, "echo new", "over")
        may_go_on.set()
        if is_deleted:
            with pytest.raises(JobNotFound):
                await repeating
            assert await other.get_status("over") is None
        else:
            await repeating
            assert (await jobs.wait("over")).command == "echo new"
            assert await jobs.job_logs("over") == ("new\n", "")


async def test_an_active_job_of_the_other_is_refused(jobs: Jobs, other: Jobs) -> None:
    await other.run("sleep 1000", "theirs")
    with pytest.raises(JobActive):
        await jobs.run("true", "theirs")


async def test_neither_adopts_the_jobs_of_the_other(jobs: Jobs) -> None:
    await jobs.run("sleep 1000", "mine")
    async with Jobs(db_path=jobs.db_path, stop_grace=1, executor="inline") as other:
        await other.count()
    # It closed, which would have stopped what it held.
    record = await jobs.get_status("mine")
    assert record is not None and record.status is Status.running
    assert await statuses(jobs, "mine") == [Status.starting, Status.running]


async def test_the_end_of_a_run_that_the_other_made_anew_is_awaited(
    jobs: Jobs, other: Jobs, tmp_path: Path
) -> None:
    await ended(jobs, "true", "shared")
    await other.run(f"{until(tmp_path / 'go')}; exit 3", "shared")
    waiting = asyncio.create_task(jobs.wait("shared"))
    (tmp_path / "go").touch()
    assert (await waiting).exit_code == 3


async def test_what_the_other_deleted_is_gone_here_too(jobs: Jobs, other: Jobs) -> None:
    await ended(jobs, "true", "shared")
    assert await other.delete("shared") is True
    # Told of it as of everything else, and this comes after it.
    await other.run("true", "later")
    async with asyncio.timeout(LIMIT_S):
        await jobs.wait("later")
    assert await jobs.get_status("shared") is None


async def test_a_job_that_the_other_deleted_and_made_anew_is_the_new_one_here(
    jobs: Jobs, other: Jobs
) -> None:
    await ended(jobs, "true", "shared")
    await other.delete("shared")
    new = await ended(other, "exit 3", "shared")
    await other.run("true", "later")
    async with asyncio.timeout(LIMIT_S):
        await jobs.wait("later")
    assert await jobs.get_status("shared") == new


async def test_an_id_that_the_other_deleted_and_runs_anew_is_refused_here(
    jobs: Jobs, other: Jobs
) -> None:
    await ended(jobs, "true", "shared")
    await other.delete("shared")
    await other.run("sleep 1000", "shared")
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(JobActive):
            await jobs.run("true", "shared")


async def test_runs_of_one_id_in_both_at_once_start_one(jobs: Jobs, other: Jobs) -> None:
    for round_ in range(5):
        runs = (one.run("sleep 1000", f"race-{round_}") for one in (jobs, other))
        answers = await asyncio.gather(*runs, return_exceptions=True)
        kinds = sorted(type(answer).__name__ for answer in answers)
        assert kinds == ["JobActive", "JobRecord"]


HOST = """
import asyncio, sys
from anodejobs import Jobs

async def main():
    async with Jobs(sys.argv[1], stop_grace=1, executor="inline") as jobs:
        await jobs.run(sys.argv[2], "theirs")
        print("running", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


async def test_a_wait_is_woken_by_a_job_of_another_process(jobs: Jobs, tmp_path: Path) -> None:
    async with script(HOST, jobs.db_path, f"{until(tmp_path / 'go')}; exit 3") as host:
        assert await line(host) == "running"
        waiting = asyncio.create_task(jobs.wait("theirs"))
        assert (await jobs.counts())[Status.running] == 1
        (tmp_path / "go").touch()
        record = await waiting
        assert (record.exit_code, record.evidence) == (3, "observed")
        await end(host)


async def test_a_job_of_another_process_is_followed_to_its_end(jobs: Jobs, tmp_path: Path) -> None:
    command = f"echo first; {until(tmp_path / 'go')}; echo last; echo error >&2"
    async with script(HOST, jobs.db_path, command) as host:
        assert await line(host) == "running"
        seen = {"stdout": "", "stderr": ""}
        (tmp_path / "go").touch()
        async for chunk in jobs.follow("theirs"):
            seen[chunk.stream] += chunk.text
        assert seen == {"stdout": "first\nlast\n", "stderr": "error\n"}
        await end(host)


async def test_a_job_of_another_process_can_be_stopped(jobs: Jobs) -> None:
    async with script(HOST, jobs.db_path, "sleep 1000") as host:
        assert await line(host) == "running"
        record = await jobs.stop("theirs")
        assert record is not None
        assert (record.status, record.exit_code) == (Status.stopped, -15)
        assert record.evidence == "observed"
        await end(host)


async def test_a_job_of_another_process_is_left_to_it(tmp_path: Path) -> None:
    async with script(HOST, tmp_path, "sleep 1000") as host:
        assert await line(host) == "running"
        async with Jobs(db_path=tmp_path, executor="inline") as jobs:
            await jobs.count()
        async with Jobs(db_path=tmp_path, executor="inline") as jobs:
            assert await statuses(jobs, "theirs") == [Status.starting, Status.running]
        await end(host)


async def test_a_wait_hears_that_another_process_closed_and_stopped_its_job(jobs: Jobs) -> None:
    async with script(HOST, jobs.db_path, "sleep 1000") as host:
        assert await line(host) == "running"
        waiting = asyncio.create_task(jobs.wait("theirs"))
        await jobs.count()
        await end(host)
        assert (await waiting).status is Status.stopped


# Strange ids.

IDS = [
    "../../x",
    "a/b",
    "a%2Fb",
    "a%2fb",
    "a%252Fb",
    ".",
    "..",
    "...",
    ".hidden",
    "-rf",
    "--",
    "%",
    "%25",
    "Job",
    "job",
    "JOB",
    "job_out.txt",
    "job_out.txt.rotated",
    "任务",
    "ü",
    "U\u0308",
    "Ü",
    "ß",
    "ss",
    "\u017fs",
    " ",
    "  ",
    "a b",
    "*",
    "$(id)",
    "'; DROP TABLE jobs; --",
    "x" * 200,
    "X" * 200,
    "x" * 199,
    "任" * 200,
    "/" * 200,
    "/" * 199,
]


async def test_any_printable_id_keeps_its_logs_to_itself_and_inside(
    jobs: Jobs, tmp_path: Path
) -> None:
    around = set(tmp_path.parent.iterdir())
    await asyncio.gather(*(jobs.run(["printf", "%s", job_id], job_id) for job_id in IDS))
    records = await jobs.wait_all(IDS)
    assert {record.status for record in records.values()} == {Status.finished}
    assert [(await jobs.job_logs(job_id))[0] for job_id in IDS] == IDS
    assert len({record.logfile.casefold() for record in records.values()}) == len(IDS)
    folder = jobs.db_path / "job_logs"
    outs = {log_files(record)[0] for record in records.values()}
    assert {path.parent for path in outs} == {folder}
    assert set(folder.iterdir()) == outs
    assert set(tmp_path.iterdir()) == {jobs.db_path}
    assert set(tmp_path.parent.iterdir()) == around


async def test_any_printable_id_can_be_deleted_alone(jobs: Jobs) -> None:
    await asyncio.gather(*(jobs.run(["printf", "%s", job_id], job_id) for job_id in IDS))
    await jobs.wait_all(IDS)
    for job_id in IDS[::2]:
        assert await jobs.delete(job_id) is True
    rest = IDS[1::2]
    assert set(await jobs.list_status()) == set(rest)
    assert [(await jobs.job_logs(job_id))[0] for job_id in rest] == rest


# What is nobody else's business.


@pytest.fixture
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_no_umask")
async def test_nothing_on_disk_is_open_to_others(tmp_path: Path) -> None:
    async with Jobs(
        db_path=tmp_path / "db", stop_grace=1, log_max_bytes=10, executor="inline"
    ) as jobs:
        talk = "for i in 1 2 3; do echo line $i; echo line $i >&2; sleep 0.1; done"
        await jobs.run(f"{talk}; echo ready; sleep 1000", "talking")
        seen = ""
        async with aclosing(jobs.follow("talking", stderr=False)) as chunks:
            while "ready" not in seen:
                seen += (await anext(chunks)).text
        paths = [tmp_path / "db", *(tmp_path / "db").rglob("*")]
        modes = {
            str(path.relative_to(tmp_path)): (path.is_dir(), oct(path.stat().st_mode & 0o7777))
            for path in paths
        }
    assert "db/job_logs/talking_out.txt" in modes
    assert "db/job_logs/talking_out.txt.rotated" in modes
    too_open = {
        name: mode
        for name, (is_folder, mode) in modes.items()
        if mode != ("0o700" if is_folder else "0o600")
    }
    assert not too_open


async def test_the_values_of_envs_are_told_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    asyncio.get_running_loop().slow_callback_duration = 0.0
    store = MemoryJobStore()
    envs = {"TOKEN": SECRET}
    told: list[object] = []
    async with Jobs(db_path=tmp_path, store=store, stop_grace=1, executor="inline") as jobs:
        told += [await jobs.run(["/nowhere/at/all"], "missing", envs=envs)]
        told += [await jobs.run("sleep 1000", "long", envs=envs)]
        told += [await store.get("long"), await store.history()]
        wrong: list[Callable[[], Awaitable[object]]] = [
            lambda: jobs.run("true", "long", envs=envs),
            lambda: jobs.run("true", envs={"TOKEN": f"{SECRET}\0"}),
            lambda: jobs.run("", envs=envs),
            lambda: jobs.run("true", envs=envs, timeout=-1),
            lambda: jobs.run("true", envs={**envs, "": ""}),
            lambda: jobs.pause("missing"),
            lambda: jobs.delete("long"),
            lambda: jobs.wait("long", timeout=0.01),
        ]
        for call in wrong:
            with pytest.raises(AnodeJobsError) as caught:
                await call()
            told += [caught.value, str(caught.value)]
        told += [await jobs.restart("long"), await jobs.stop("long")]
        told += [await jobs.history("long"), await jobs.list_status()]
        with pytest.raises(StatusUnreachable) as unreachable:
            await jobs.wait("long", "paused")
        told += [unreachable.value]
    assert SECRET not in repr(told)
    assert SECRET not in "".join(r.model_dump_json() for r in told if isinstance(r, JobRecord))
    assert "job long: new -> starting" in caplog.text
    assert SECRET not in caplog.text


def test_the_repr_of_a_spec_hides_the_values_of_envs() -> None:
    spec = JobSpec(command="true", envs={"TOKEN": SECRET})
    assert SECRET not in repr(spec)
    assert SECRET not in str(spec)


async def test_a_job_gets_the_envs_that_are_told_nobody(jobs: Jobs) -> None:
    code = "import os; print(os.environ['TOKEN'], os.environ['ANODEJOBS_JOB_ID'])"
    await ended(jobs, python(code), "informed", envs={"TOKEN": SECRET})
    assert await jobs.job_logs("informed") == (f"{SECRET} informed\n", "")


def test_a_wait_timeout_is_a_timeout_error() -> None:
    assert issubclass(WaitTimeout, TimeoutError)
