"""Several processes on one directory, of which one at a time decides which job starts."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sqlite3
import subprocess
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from anodejobs import AnodeJobsError, Jobs, Status
from anodejobs.executors import supervisors
from anodejobs.stores.sqlite_schema import MIGRATIONS
from anodejobs.succession import Succession
from benchmarks.turns import Game, most_at_once
from tests.programs import application

LIMIT_S = 60.0

# Acts until it is told to close. Its limit, one slot, is what tells that it acts.
FIRST = """
import asyncio, signal
from anodejobs import Jobs
from anodejobs.executors import shim

shim.LINGER_S = 0.05

async def main():
    is_asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, is_asked.set)
    async with Jobs("job_db", max_concurrent_jobs=1) as jobs:
        job = await jobs.submit("true")
        await jobs.wait(job.self_id)
        print("ready", flush=True)
        await is_asked.wait()

asyncio.run(main())
"""


def first(folder: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run an application whose turn it is."""
    return application(FIRST, folder)


def second(folder: Path, **options: Any) -> Jobs:
    return Jobs(folder / "job_db", stop_grace=1, on_close="stop", **options)


def test_several_processes_start_each_job_once_within_the_limits(tmp_path: Path) -> None:
    game = Game(
        place=tmp_path, jobs=300, processes=4, slots=4, narrow=1, ends=2, limit_s=LIMIT_S * 4
    )
    game.play()
    assert {finding for finding, times in game.findings().items() if times} == set()
    assert len(game.killed_at) == len(game.closed_at) == 1


def test_what_jobs_have_written_tells_how_many_were_there_at_once() -> None:
    lines = ["b x", "b y", "e x", "b z", "b w", "e z", "e y", "e w"]
    assert most_at_once(lines, set("wxyz")) <= 3
    assert most_at_once(lines, set("xz")) == 1


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_when_the_one_whose_turn_it_is_goes_another_one_decides(
    tmp_path: Path, signum: signal.Signals
) -> None:
    with first(tmp_path) as process:
        async with second(tmp_path) as jobs:
            for job_id in ("running", "waiting"):
                await jobs.submit("sleep 1000", job_id)
            await jobs.wait("running", "running", LIMIT_S)
            record = await jobs.get_status("waiting")
            assert record is not None and record.status is Status.queued
            process.send_signal(signum)
            # Of the ten slots of this one there is one left for it.
            assert (await jobs.wait("waiting", "running", LIMIT_S)).attempt == 1
            assert await asyncio.to_thread(process.wait) in (0, -signal.SIGKILL)
            await jobs.stop("running")  # the other one has started it


async def test_a_queue_that_one_process_pauses_is_paused_for_the_one_that_acts(
    tmp_path: Path,
) -> None:
    with first(tmp_path):
        async with second(tmp_path) as jobs:
            await jobs.pause_queue()
            await jobs.submit("true", "held")
            other = await jobs.submit("true", queue="other")
            await jobs.wait(other.self_id, timeout=LIMIT_S)
            record = await jobs.get_status("held")
            assert record is not None and record.status is Status.queued
            await jobs.resume_queue()
            await jobs.wait("held", timeout=LIMIT_S)


async def test_an_application_under_which_the_database_was_migrated_says_so_and_gives_up_its_turn(
    tmp_path: Path,
) -> None:
    path = tmp_path / "job_db" / "jobs.db"
    async with second(tmp_path) as jobs:
        await jobs.run("exec sleep 600", "a")
        waiting = asyncio.create_task(jobs.wait("a"))
        await asyncio.sleep(0)
        change(path, "ALTER TABLE entries RENAME TO later", len(MIGRATIONS) + 1)
        for call in (jobs.submit("true", "b"), waiting, jobs.get_status("a")):
            with pytest.raises(AnodeJobsError, match=r"migrated by a newer anodejobs: end this"):
                await asyncio.wait_for(call, LIMIT_S)
        heir = Succession(path.with_name("jobs.db-scheduler"))
        await asyncio.wait_for(heir.succeed(), LIMIT_S)
        assert heir.release()
    change(path, "ALTER TABLE later RENAME TO entries", len(MIGRATIONS))
    async with second(tmp_path) as jobs:
        record = await jobs.stop("a")
        assert record is not None and record.status is Status.stopped


def change(path: Path, statement: str, version: int) -> None:
    """Change the tables of the database as another version would."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{statement}; PRAGMA user_version = {version}")


# Succession alone.


async def test_the_first_to_ask_has_the_turn_and_the_next_gets_it_when_it_is_released(
    tmp_path: Path,
) -> None:
    one, other = Succession(tmp_path / "lock"), Succession(tmp_path / "lock")
    await one.succeed()
    waiting = asyncio.create_task(other.succeed())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert one.release()
    other.nudge()
    await asyncio.wait_for(waiting, LIMIT_S)
    assert not one.release()
    assert other.release()


async def test_who_has_let_go_of_the_turn_may_have_it_again(tmp_path: Path) -> None:
    one, other = Succession(tmp_path / "lock"), Succession(tmp_path / "lock")
    await one.succeed()
    waiting = asyncio.create_task(other.succeed())
    await asyncio.sleep(0)
    one.release()
    other.nudge()
    await asyncio.wait_for(waiting, LIMIT_S)
    again = asyncio.create_task(one.succeed())
    await asyncio.sleep(0)
    other.release()
    one.nudge()
    await asyncio.wait_for(again, LIMIT_S)
    assert supervisors.is_alive((tmp_path / "lock").read_text())
    assert one.release()


async def test_a_nudge_while_the_turn_is_taken_changes_nothing(tmp_path: Path) -> None:
    one, other = Succession(tmp_path / "lock"), Succession(tmp_path / "lock")
    await one.succeed()
    waiting = asyncio.create_task(other.succeed())
    await asyncio.sleep(0)
    other.nudge()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waiting, 0.1)
    assert not other.release()
    one.release()


def holder(folder: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run a process that has the turn, and a fork of it that outlives it."""
    code = "import asyncio, os, sys; from pathlib import Path"
    code += "; from anodejobs.succession import Succession; one = Succession(Path('lock'))"
    code += "; asyncio.run(one.succeed()); os.fork() and print('ready', flush=True)"
    code += "; sys.stdin.read()"
    return application(code, folder)


async def test_the_turn_of_a_process_that_has_died_is_taken(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        heir = Succession(tmp_path / "lock")
        waiting = asyncio.create_task(heir.succeed())
        await asyncio.sleep(0)
        process.kill()
        await asyncio.wait_for(waiting, LIMIT_S)
        assert heir.release()


async def test_where_there_can_be_no_lock_it_says_so(tmp_path: Path) -> None:
    one = Succession(tmp_path / "nowhere" / "lock")
    with pytest.raises(FileNotFoundError):
        await one.succeed()
    assert not one.release()


async def test_a_turn_that_could_not_be_taken_for_lack_of_room_is_taken_once_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    one = Succession(tmp_path / "lock")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            await one.succeed()
    await asyncio.wait_for(one.succeed(), LIMIT_S)
    assert one.release()
