"""How long jobs that have ended are kept, as applications see it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from anodejobs import (
    FixedDelay,
    InvalidJob,
    JobRecord,
    Jobs,
    MemoryJobStore,
    SqliteJobStore,
    Status,
    StoreError,
)
from anodejobs.events import utc_now
from anodejobs.stores.base import Delete, Query, Stored, Write
from anodejobs.testing import make_insert, make_record

LIMIT_S = 60.0


async def put(jobs: Jobs, *records: JobRecord) -> None:
    """Put records into the store, as if they had come about long ago."""
    await jobs._root.open()
    results = await jobs._jobdb._store.commit([make_insert(record) for record in records])
    assert None not in results


def ended(job_id: str, days_ago: float, **fields: Any) -> JobRecord:
    """Return the record of a job that ended so many days ago."""
    finished_at = utc_now() - timedelta(days=days_ago)
    usual = {"status": "finished", "finished_at": finished_at, "last_update": finished_at}
    created_at = finished_at - timedelta(minutes=1)
    return make_record(job_id, **{**usual, "created_at": created_at, **fields})


async def ids(jobs: Jobs) -> set[str]:
    return set(await jobs.list_status())


async def test_what_ended_so_many_days_ago_is_removed(jobs: Jobs) -> None:
    await put(jobs, *(ended(f"{days}", days) for days in range(10)))
    assert await jobs.cleanup(older_than_days=6.5) == 3
    assert await ids(jobs) == {f"{days}" for days in range(7)}
    assert await jobs.history("9") == []
    assert await jobs.cleanup(older_than_days=6.5) == 0


@pytest.mark.parametrize("status", [status for status in Status if status.is_terminal])
async def test_however_a_job_ended_it_is_removed(jobs: Jobs, status: Status) -> None:
    await put(jobs, ended("old", 2, status=status))
    assert await jobs.cleanup(1) == 1


@pytest.mark.parametrize("status", [status for status in Status if not status.is_terminal])
async def test_what_has_not_ended_stays(jobs: Jobs, status: Status) -> None:
    await put(jobs, ended("old", 2, status=status, finished_at=None))
    assert await jobs.cleanup(1) == 0
    assert await ids(jobs) == {"old"}


async def test_what_was_created_long_ago_and_ended_lately_stays(jobs: Jobs) -> None:
    long_ago = utc_now() - timedelta(days=100)
    await put(jobs, ended("service", 1, created_at=long_ago, started_at=long_ago))
    assert await jobs.cleanup(2) == 0
    assert await ids(jobs) == {"service"}


async def test_with_no_days_all_that_has_ended_is_removed(jobs: Jobs) -> None:
    await jobs.run("true", "short")
    await jobs.wait("short")
    await jobs.run("sleep 1000", "long")
    assert await jobs.cleanup(0) == 1
    assert await ids(jobs) == {"long"}


async def test_the_logs_of_all_attempts_go(jobs: Jobs) -> None:
    retry = {"max_retries": 2, "retry": FixedDelay(0)}
    await jobs.submit("echo out; echo err >&2; exit 1", "thrice", **retry)
    record = await jobs.wait("thrice")
    assert record.attempt == 3
    await jobs.run("echo other", "other")
    await jobs.wait("other")
    logs = {path.name for path in Path(record.logdir).iterdir()}
    assert len(logs) > 6
    await put(jobs, ended("another", 0))
    assert await jobs.delete("other")
    assert await jobs.cleanup(0) == 2
    assert list(Path(record.logdir).iterdir()) == []


# What is awaited.


async def test_what_others_wait_for_stays_until_they_have_started(jobs: Jobs) -> None:
    await put(jobs, ended("old", 9), ended("older", 10))
    await jobs.create("true", "dependent", depends_on=["old"])
    assert await jobs.cleanup(1) == 1
    assert await ids(jobs) == {"old", "dependent"}
    await jobs.start("dependent")
    await jobs.wait("dependent")
    assert await jobs.cleanup(1) == 1
    assert await ids(jobs) == {"dependent"}


async def test_more_than_a_page_of_what_is_awaited_keeps_nothing_else(jobs: Jobs) -> None:
    awaited = [ended(f"awaited-{n}", 20) for n in range(450)]
    await put(jobs, *awaited, *(ended(f"old-{n}", 10) for n in range(450)))
    await jobs.create("true", "dependent", depends_on=[record.self_id for record in awaited])
    assert await jobs.cleanup(1) == 450
    assert await ids(jobs) == {"dependent", *(record.self_id for record in awaited)}


async def test_who_has_ended_awaits_nothing(jobs: Jobs) -> None:
    await put(jobs, ended("old", 9), ended("dependent", 8, depends_on=["old"]))
    assert await jobs.cleanup(1) == 2


async def test_who_awaits_a_job_is_found_among_many_that_have_ended(tmp_path: Path) -> None:
    asked = 0

    class Counting(SqliteJobStore):
        async def get(self, job_id: str) -> Stored | None:
            nonlocal asked
            asked += 1
            return await super().get(job_id)

    async with Jobs(tmp_path, store=Counting(tmp_path / "jobs.db"), executor="inline") as jobs:
        dependents = [ended(f"after-{n}", 1, depends_on=["old"]) for n in range(700)]
        await put(jobs, ended("old", 9), *dependents)
        await jobs.create("true", "the last", depends_on=["old"])
        asked = 0
        assert await jobs.cleanup(5) == 0
        await jobs.cancel("the last")
        assert await jobs.cleanup(5) == 1
        assert asked < 50


# Many, and others meanwhile.


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_thousands_of_jobs_are_removed_in_few_commits(tmp_path: Path, kind: str) -> None:
    commits = 0
    base: Any = MemoryJobStore if kind == "memory" else SqliteJobStore

    class Counting(base):  # type: ignore[misc]
        async def commit(self, writes: Sequence[Write]) -> list[int | None]:
            nonlocal commits
            commits += isinstance(writes[0], Delete)
            return await super().commit(writes)  # type: ignore[no-any-return]

    store = Counting() if kind == "memory" else Counting(tmp_path / "jobs.db")
    count = 1_000 if kind == "memory" else 3_000
    async with Jobs(tmp_path, store=store, executor="inline") as jobs:
        await put(jobs, *(ended(f"job-{n}", 5) for n in range(count)))
        assert await jobs.cleanup(1) == count
        assert await jobs.count() == 0
    assert commits <= count / 20


async def test_two_who_clean_up_at_once_remove_each_job_once(tmp_path: Path) -> None:
    async with Jobs(tmp_path, executor="inline") as one, Jobs(tmp_path, executor="inline") as two:
        await put(one, *(ended(f"job-{n}", n / 100) for n in range(1500)))
        removed = await asyncio.gather(one.cleanup(5), two.cleanup(5), one.cleanup(5))
        assert sum(removed) == 1000
        assert await one.count() == await two.count() == 500


class InterruptedStore(MemoryJobStore):
    """A store in which something else happens after a page was read."""

    def __init__(self) -> None:
        super().__init__()
        self.then: Any = None

    async def page(self, query: Query) -> list[JobRecord]:
        records = await super().page(query)
        then, self.then = self.then, None
        if then is not None:
            await then()
        return records


async def test_a_job_that_somebody_else_deletes_meanwhile_is_no_error(tmp_path: Path) -> None:
    store = InterruptedStore()
    async with Jobs(tmp_path, store=store, executor="inline") as jobs:
        await put(jobs, *(ended(f"job-{n}", 5 + n / 1000) for n in range(500)))

        async def delete_some() -> None:
            # The last of the page, by which the next is found, and others.
            for n in (300, 301, 499, 0):
                await jobs.delete(f"job-{n}")

        store.then = delete_some
        assert await jobs.cleanup(1) == 496
        assert await jobs.count() == 0


@pytest.mark.parametrize("command", ["true", "sleep 1000"])
async def test_a_job_that_is_run_anew_meanwhile_stays(tmp_path: Path, command: str) -> None:
    store = InterruptedStore()
    options: dict[str, Any] = {"executor": "inline", "stop_grace": 1}
    async with Jobs(tmp_path, store=store, **options) as jobs:
        await put(jobs, ended("old", 5), ended("older", 6))

        async def run_anew() -> None:
            await jobs.run(f"echo anew; exec {command}", "old")
            if command == "true":
                await jobs.wait("old")

        store.then = run_anew
        assert await jobs.cleanup(1) == 1
        assert await ids(jobs) == {"old"}
        if command == "true":
            assert (await jobs.job_logs("old"))[0] == "anew\n"


async def test_a_store_that_fails_is_the_callers_error(tmp_path: Path) -> None:
    class Failing(MemoryJobStore):
        async def commit(self, writes: Sequence[Write]) -> list[int | None]:
            if isinstance(writes[0], Delete):
                raise StoreError("the disk is full")
            return await super().commit(writes)

    async with Jobs(tmp_path, store=Failing(), executor="inline") as jobs:
        await put(jobs, ended("old", 5))
        with pytest.raises(StoreError, match="the disk is full"):
            await jobs.cleanup(1)
        assert await ids(jobs) == {"old"}


@pytest.fixture
def no_folder_can_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root can remove any."""

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(shutil, "rmtree", refuse)


@pytest.mark.usefixtures("no_folder_can_be_removed")
async def test_logs_that_cannot_be_removed_are_told_of_as_the_stores_error(jobs: Jobs) -> None:
    await jobs.run("echo hi", "stubborn")
    record = await jobs.wait("stubborn")
    log = Path(record.logdir, f"{record.logfile}_out.txt")
    log.unlink()
    log.mkdir()
    with pytest.raises(StoreError, match="'stubborn' is not deleted, as its logs cannot be"):
        await jobs.delete("stubborn")
    assert await ids(jobs) == {"stubborn"}
    log.rmdir()
    assert await jobs.delete("stubborn")


@pytest.mark.usefixtures("no_folder_can_be_removed")
async def test_logs_that_cannot_be_removed_keep_no_others(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    for job_id in ("a", "b", "c"):
        await jobs.run("echo hi", job_id)
        record = await jobs.wait(job_id)
    logs = Path(record.logdir)
    (logs / "b_out.txt").unlink()
    (logs / "b_out.txt").mkdir()
    assert await jobs.cleanup(0) == 2
    assert "job 'b' is not deleted, as its logs cannot be removed" in caplog.text
    assert await ids(jobs) == {"b"}
    assert [path.name for path in logs.iterdir()] == ["b_out.txt"]
    (logs / "b_out.txt").rmdir()


# By itself.


class TellingStore(MemoryJobStore):
    """A store that tells when something was deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted = asyncio.Event()
        self.failures = 0

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        if isinstance(writes[0], Delete):
            self.deleted.set()
            if self.failures:
                self.failures -= 1
                raise StoreError("the disk is full")
        return await super().commit(writes)


async def test_with_retention_days_it_is_done_on_opening(tmp_path: Path) -> None:
    store = TellingStore()
    await store.commit([make_insert(ended("old", 8)), make_insert(ended("young", 6))])
    options: dict[str, Any] = {"store": store, "executor": "inline"}
    async with asyncio.timeout(LIMIT_S), Jobs(tmp_path, retention_days=7, **options) as jobs:
        await store.deleted.wait()
        assert await ids(jobs) == {"young"}


async def test_without_them_nothing_is_removed_by_itself(tmp_path: Path) -> None:
    async with Jobs(tmp_path, executor="inline") as jobs:
        await put(jobs, ended("old", 10_000))
    async with Jobs(tmp_path, executor="inline") as jobs:
        await jobs.run("true", "young")
        await jobs.wait("young")
        assert await ids(jobs) == {"old", "young"}
        with pytest.raises(InvalidJob, match="older_than_days: must be said"):
            await jobs.cleanup()


async def test_clean_up_goes_by_retention_days_where_nothing_is_said(tmp_path: Path) -> None:
    async with Jobs(tmp_path, executor="inline", retention_days=7) as jobs:
        await jobs.cleanup()
        await put(jobs, ended("old", 8), ended("young", 6))
        assert await jobs.cleanup() == 1
        assert await jobs.cleanup(5) == 1


async def test_a_store_that_fails_keeps_nobody_from_working(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anodejobs.retention._EVERY_S", 0.01)
    store = TellingStore()
    store.failures = 1
    await store.commit([make_insert(ended("old", 8))])
    options: dict[str, Any] = {"store": store, "executor": "inline"}
    async with asyncio.timeout(LIMIT_S), Jobs(tmp_path, retention_days=7, **options) as jobs:
        await store.deleted.wait()
        store.deleted.clear()
        await store.deleted.wait()
        await jobs.run("true", "young")
        assert await ids(jobs) == {"young"}
    assert "what has ended long ago is not all removed: the disk is full" in caplog.text


async def test_closing_ends_it_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR, "anodejobs")
    monkeypatch.setattr("anodejobs.retention._EVERY_S", 0.0)
    options: dict[str, Any] = {"executor": "inline", "stop_grace": 1, "retention_days": 7}
    async with Jobs(tmp_path, **options) as jobs:
        await put(jobs, *(ended(f"job-{n}", 10) for n in range(100)))
        await jobs.run("trap 'sleep 0.1; exit' TERM; while :; do sleep 0.02; done", "slow to end")
    assert caplog.text == ""


@pytest.mark.parametrize("days", [1e6, 1e12, 1e300])
async def test_days_before_all_years_remove_nothing(tmp_path: Path, days: float) -> None:
    async with Jobs(tmp_path, executor="inline", retention_days=days) as jobs:
        await put(jobs, ended("old", 10_000))
        assert await jobs.cleanup(days) == 0
        assert await jobs.cleanup() == 0
        assert await ids(jobs) == {"old"}


@pytest.mark.parametrize("days", [-1, float("nan"), float("inf"), "7", True, 10**400])
async def test_what_is_no_number_of_days_is_refused(tmp_path: Path, jobs: Jobs, days: Any) -> None:
    with pytest.raises(InvalidJob, match="retention_days: must be a finite number of days"):
        Jobs(tmp_path, retention_days=days)
    with pytest.raises(InvalidJob, match="older_than_days: must be a finite number of days"):
        await jobs.cleanup(days)
