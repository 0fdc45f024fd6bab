"""A history goes from any store to any other, whole, whatever happens on the way."""

from __future__ import annotations

import asyncio
import importlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

import anodejobs
from anodejobs import (
    FileJobStore,
    JobActive,
    Jobs,
    JobStore,
    MemoryJobStore,
    Migrated,
    SqliteJobStore,
    Status,
    StoreError,
    migrate,
)
from anodejobs.stores import from_url
from anodejobs.stores.base import Delete, InsertAll
from anodejobs.testing import make_insert, make_record, make_save
from tests.servers import MYSQL, POSTGRES, own_database

JOBS = 700
KINDS = ["file", "sqlite", "postgresql", "mysql"]

Url = Callable[[str], str]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[Url]:
    """Return the URL of an empty store of a kind."""
    with ExitStack() as databases:

        def make(kind: str) -> str:
            match kind:
                case "file":
                    return f"file://{tmp_path}/files"
                case "sqlite":
                    return f"sqlite:///{tmp_path}/another.db"
            server = POSTGRES if kind == "postgresql" else MYSQL
            return databases.enter_context(own_database(server)).url

        yield make


async def fill(store: JobStore) -> JobStore:
    """Fill a store with many jobs that have ended, and close it."""
    records = [make_record(f"job-{n}", tags=["t"], progress=n / 7) for n in range(JOBS)]
    await store.open(lambda: None)
    await store.commit([InsertAll(tuple(make_insert(record) for record in records))])
    saves = [make_save(record, status=Status.finished, exit_code=0) for record in records]
    await store.commit(saves)
    await store.commit([Delete(record=save.record) for save in saves[-10:]])
    await store.put_document("template", "a", "body")
    await store.close()
    return store


async def test_all_that_jobs_has_kept_goes_from_store_to_store(tmp_path, url):
    memory = MemoryJobStore()
    async with Jobs(tmp_path, store=memory, executor="inline") as jobs:
        await jobs.run("exit 3", "fails", payload={"a": [1]}, envs={"WHO": "me"}, tags=["t"])
        await jobs.wait("fails")
        await jobs.submit("exit 1", "tried", max_retries=1)
        await jobs.wait("tried")
        batch, _ = await jobs.create_batch([{"command": "true"}, {"command": "echo it is $WHO"}])
        await jobs.create("true", "waits", depends_on=["fails"], on_dependency_failure="hold")
        await jobs.schedule("true", "nightly", cron="0 2 * * *")
        await jobs.add_template({"name": "greet", "command": ["echo", "{who}"]} | TEMPLATE)
        await jobs.pause_queue("slow")
        before = await looked_at(jobs, batch)
        history = [await jobs.history(job_id) for job_id in await jobs.list_status()]

    urls = [await asyncio.to_thread(url, kind) for kind in (*KINDS, "postgresql")]
    stores: list[JobStore | str] = [memory, *urls, MemoryJobStore()]
    done = [await migrate(*pair) for pair in pairwise(stores)]
    assert done == [done[0]] * len(done)
    assert (done[0].jobs, done[0].events) == (len(before[0]), sum(map(len, history)))

    async with Jobs(tmp_path, store=stores[-1], executor="inline") as jobs:
        assert await looked_at(jobs, batch) == before
        assert [await jobs.history(job_id) for job_id in before[0]] == history
        await jobs.restart("fails")
        assert (await jobs.wait("fails")).exit_code == 3


TEMPLATE = {"parameters": {"who": {"type": "str"}}}


async def looked_at(jobs: Jobs, batch: str) -> tuple[object, ...]:
    return (
        await jobs.list_status(),
        await jobs.batch_progress(batch),
        await jobs.get_dependents("fails"),
        await jobs.attempts("tried"),
        await jobs.schedules(),
        await jobs.templates(),
        await jobs.paused_queues(),
        await jobs.metrics(),
    )


KILLED = """
import asyncio, os, signal, sys
from anodejobs import migrate

def die(done, total):
    if done >= 600:
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(migrate(*sys.argv[1:], on_progress=die))
"""


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_killed_goes_on_where_it_was(tmp_path, url, kind):
    await fill(SqliteJobStore(tmp_path / "jobs.db"))
    target = await asyncio.to_thread(url, kind)
    command = [sys.executable, "-c", KILLED, str(tmp_path), target]
    killed = await asyncio.to_thread(subprocess.run, command, check=False)
    assert killed.returncode == -signal.SIGKILL

    told: list[tuple[int, int]] = []
    done = await migrate(tmp_path, target, on_progress=lambda *step: told.append(step))
    assert told[0][0] > 600, "it began anew"
    assert told == sorted(told) and told[-1] == (2 * 2 * JOBS, 2 * 2 * JOBS)
    assert (done.jobs, done.events, done.documents) == (JOBS - 10, 2 * (JOBS - 10), 1)
    assert await migrate(target, MemoryJobStore()) == done


async def test_a_cancelled_one_goes_on_too_but_not_from_another_source(tmp_path):
    source, target = await fill(MemoryJobStore()), MemoryJobStore()

    def cancel(done: int, total: int) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await migrate(source, target, on_progress=cancel)
    with pytest.raises(StoreError, match="a part of another source"):
        await migrate(MemoryJobStore(), target)
    with pytest.raises(StoreError, match="a copy that is not complete"):
        await migrate(target, MemoryJobStore())
    assert (await migrate(source, target)).jobs == JOBS - 10


async def test_what_is_there_already_is_compared_and_found_equal(tmp_path):
    source, target = await fill(MemoryJobStore()), FileJobStore(tmp_path / "files")
    assert await migrate(source, target) == await migrate(source, target)
    assert await migrate(target, source) == await migrate(source, target)
    for one, other in ((source, source), (f"file://{tmp_path}", f"file://{tmp_path}")):
        with pytest.raises(StoreError, match="the same store"):
            await migrate(one, other)


async def test_a_job_that_came_over_as_another_one_is_named(tmp_path):
    source = await fill(MemoryJobStore())
    await migrate(source, tmp_path)
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("UPDATE jobs SET exit_code = 1 WHERE job_id = 'job-17'")
    connection.close()
    with pytest.raises(StoreError, match="job 'job-17' is not the same in source and target"):
        await migrate(source, tmp_path)


async def test_a_document_and_an_event_that_came_over_as_others_are_named(tmp_path):
    source = await fill(MemoryJobStore())
    await migrate(source, tmp_path)
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("UPDATE documents SET body = 'else'")
        connection.commit()
        with pytest.raises(StoreError, match="document 'template a' is not the same"):
            await migrate(source, tmp_path)
        connection.execute("DELETE FROM entries WHERE job_id = 'job-3' AND previous IS NOT NULL")
    connection.close()
    with pytest.raises(StoreError, match="job 'job-3' is not the same"):
        await migrate(source, tmp_path)


class UsedMeanwhile(MemoryJobStore):
    """Another job comes into it with each look at the history."""

    async def history(self, **asked):
        found = await super().history(**asked)
        if asked.get("after"):
            name = f"new-{await self.last_seq()}"
            await self.commit([make_insert(make_record(name, status="pending"))])
        return found


async def test_a_source_that_is_used_meanwhile_is_refused():
    source = await fill(UsedMeanwhile())
    with pytest.raises(StoreError, match="the source has been used meanwhile"):
        await migrate(source, MemoryJobStore())


@pytest.mark.parametrize("status", ["starting", "running", "paused", "stopping", "failed_stop"])
async def test_a_job_that_is_under_way_keeps_its_store(status):
    source, target = MemoryJobStore(), MemoryJobStore()
    await source.commit([make_insert(make_record("busy", status=status))])
    with pytest.raises(JobActive, match=f"job 'busy' is {status}"):
        await migrate(source, target)
    assert await target.document_kinds() == []


@pytest.mark.parametrize("what", ["job", "document"])
async def test_a_target_that_has_something_else_is_left_as_it_is(what):
    source, target = await fill(MemoryJobStore()), MemoryJobStore()
    if what == "job":
        await target.commit([make_insert(make_record("mine"))])
    else:
        await target.put_document("template", "mine", "body")
    with pytest.raises(StoreError, match="it must be empty"):
        await migrate(source, target)
    assert await target.count(anodejobs.JobFilter()) == (
        {Status.running: 1} if what == "job" else {}
    )
    assert await target.document_kinds() == ([] if what == "job" else ["template"])


@pytest.mark.parametrize("source", ["{}/no", "sqlite:///{}/no/jobs.db", "file://{}/no"])
async def test_a_source_that_is_not_there_is_not_made(tmp_path, source):
    with pytest.raises(StoreError, match="there is nothing at"):
        await migrate(source.format(tmp_path), MemoryJobStore())
    assert list(tmp_path.iterdir()) == []


async def test_a_url_that_is_mistyped_is_not_made_a_folder_nor_repeated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistyped = "postgresql:/me:hunter2@host/jobs"
    for source, target in ((mistyped, MemoryJobStore()), (MemoryJobStore(), mistyped)):
        with pytest.raises(StoreError, match="URL") as caught:
            await migrate(source, target)
        assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


async def test_an_empty_history_is_one_too(tmp_path):
    told: list[tuple[int, int]] = []
    done = await migrate(MemoryJobStore(), tmp_path, on_progress=lambda *s: told.append(s))
    assert isinstance(done, Migrated) and (done.jobs, done.events, done.documents) == (0, 0, 0)
    assert told == [(0, 0)]


# The command.


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "anodejobs.migrate", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.outer
def test_the_command_migrates_and_tells_how_far_it_is(tmp_path):
    asyncio.run(fill(SqliteJobStore(tmp_path / "jobs.db")))
    done = command(str(tmp_path), f"file://{tmp_path}/files")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["690", "jobs"],
        ["1,380", "events"],
        ["1", "documents"],
    ]
    assert done.stderr.splitlines()[-1] == f"[{'#' * 40}] 100 %"
    assert len(done.stderr.splitlines()) > 3
    store = from_url(f"file://{tmp_path}/files")
    assert asyncio.run(migrate(store, MemoryJobStore())).jobs == 690


def test_the_command_says_what_went_wrong_without_the_password(tmp_path):
    done = command(str(tmp_path), "sqlite:///x")
    assert done.returncode == 1
    assert done.stderr == f"not migrated: there is nothing at {tmp_path}/jobs.db\n"
    done = command("postgresql://me:hunter2@127.0.0.1:1/none", "memory://")
    assert done.returncode == 1
    assert "postgresql://127.0.0.1:1/none" in done.stderr
    assert "hunter2" not in done.stderr and "Traceback" not in done.stderr


async def test_the_module_of_the_command_can_be_called_as_the_function(monkeypatch):
    monkeypatch.setattr(anodejobs, "migrate", anodejobs.migrate)  # what comes is put back
    module = importlib.import_module("anodejobs.migrate")
    assert anodejobs.migrate is module
    assert (await anodejobs.migrate(MemoryJobStore(), MemoryJobStore())).jobs == 0
