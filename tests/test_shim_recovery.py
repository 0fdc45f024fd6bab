"""What becomes of jobs when applications and shims are killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sqlite3
import subprocess
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from anodejobs import ExecutorError, JobRecord, Jobs, Status
from anodejobs.events import Attempt
from anodejobs.executors import shim, shim_start, tree
from anodejobs.executors.base import Executor, Launch
from anodejobs.executors.shim_link import Link
from anodejobs.jobfiles import JobFiles
from tests.conftest import descriptors, has_died, locker, python
from tests.programs import application
from tests.test_recovery import KERNEL_TELLS, NUMBERED, WAIT_FOR_GO, WRITER, started, whys

REAPED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
if os.fork():
    os.close(int(sys.argv[3]))
    try:
        while True: os.wait()
    except ChildProcessError:
        os._exit(0)
"""
"""Makes the shim the child of a process that reaps at once what the shim leaves to it: so does an
init, but the one of a test machine may take its time."""

SHIM_WITH = """
shim_start._BOOTSTRAP = shim_start._BOOTSTRAP.replace(
    ";main()", ";import anodejobs.shim.server as s;s.{}={};main()"
)
"""
"""Has the shim that an application starts work with another value of a constant."""

NO_THREADS_YET = """
import os, threading
import anodejobs.shim.server
anodejobs.shim.server._SWEEP_EVERY_S = 0.05
start = threading.Thread.start

def start_if_there_may_be_one(thread):
    if not os.path.exists({!r}):
        raise {}
    start(thread)

threading.Thread.start = start_if_there_may_be_one
"""
"""Has a shim start no thread before the file is there, and take on soon what it has put off."""

GRACE_S = 0.4
BRIEF_GRACE = SHIM_WITH.format("HOST_GRACE_S", GRACE_S)
LATE_STARTS = """
import os
shim_start._BOOTSTRAP = shim_start._BOOTSTRAP.replace(";main()", '''
import asyncio
from anodejobs.shim.server import Server
start, abandon, is_abandoned = Server._live, Server._abandon, asyncio.Event()

async def late(server, life):
    open("asked", "w").close()
    await is_abandoned.wait()
    await start(server, life)

def abandoned(server):
    abandon(server)
    is_abandoned.set()

Server._live, Server._abandon = late, abandoned
main()''')
"""
"""Has the shim that an application starts begin nothing before its application has gone, and that
for so long that jobs are stopped for it."""
FREEZES = """
shim_start._BOOTSTRAP = shim_start._BOOTSTRAP.replace(";main()", '''
import os, signal
from anodejobs.shim.server import Server
abandon_soon = Server._abandon_soon

def frozen(server):
    abandon_soon(server)
    if server._lives:
        Server._abandon_soon = abandon_soon
        os.kill(os.getpid(), signal.SIGSTOP)

Server._abandon_soon = frozen
main()''')
"""
"""Has the shim that an application starts stop itself as soon as its application has gone."""
SLOW = f"sleep {2 * GRACE_S}; exit 7"
"""Outlives the time that is given to jobs whose application has gone, if that is brief."""

HOST = """
import asyncio
from anodejobs import Jobs
from anodejobs.executors import shim, shim_start

shim.LINGER_S = 0.05
shim_start._BOOTSTRAP = {reaped!r} + shim_start._BOOTSTRAP
{setup}

async def main():
    async with Jobs("job_db", stop_grace=1) as jobs:
        {body}
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

# Every process of a job that is started leaves a mark.
COUNTED = "open('starts', 'a').write('x')\n"
HELD = COUNTED + "import os, time\nprint('held', flush=True)\n" + WAIT_FOR_GO + "os._exit(7)\n"
COUNTED_WRITER = COUNTED + WRITER
FIRST_HALF = NUMBERED[: NUMBERED.index("1000\n")]
# More than any pipe holds.
FLOOD = HELD.replace("os._exit", "for i in range(500): os.write(1, b'%4095d\\n' % i)\nos._exit")
# Its first thread has ended, and another one does it.
FLOOD_OF_A_THREAD = f"""
import ctypes, os, threading, time
def flood():
    while ") Z " not in open(f"/proc/{{os.getpid()}}/stat").read(): time.sleep(0.01)
    exec({FLOOD!r}, {{}})
threading.Thread(target=flood).start()
ctypes.CDLL(None).pthread_exit(None)
"""
FLOODED = "held\n" + "".join(f"{i:4095d}\n" for i in range(500))
# Writes a line when it may.
LINES = (
    """
import os, time
for i in range(3):
    while not os.path.exists(f"go-{i}"): time.sleep(0.01)
    print("line", i, flush=True)
"""
    + WAIT_FOR_GO
)
# Does not go when it is asked to.
STUBBORN = (
    COUNTED
    + "import os, signal, time\n"
    # No print: the signal may come while one is at work, and Python does not let it begin another.
    + "signal.signal(15, lambda *_: os.write(1, b'asked\\n'))\n"
    + "os.write(1, b'deaf\\n')\nwhile True: time.sleep(60)\n"
)


def host(
    directory: Path, body: str, setup: str = ""
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run an application that does ``body`` and then waits to be killed."""
    body = textwrap.indent(textwrap.dedent(body), " " * 8).strip()
    return application(HOST.format(reaped=REAPED, setup=setup, body=body), directory)


def killed_host(directory: Path, body: str, setup: str = "") -> None:
    """Run an application, and kill it when it has done ``body``."""
    with host(directory, body, setup):
        pass


def killed_with_its_shim(directory: Path, body: str) -> None:
    """Run an application, and kill it and its shim when it has done ``body``."""
    killed_host(directory, body)
    kill_shim(directory)


def kill_shim(directory: Path) -> None:
    """Kill the directory's shim; it is dead when this returns, and nobody has noticed yet."""
    pid = locker(directory / "job_db/shim/lock")
    assert pid is not None, "it has left"
    os.kill(pid, signal.SIGKILL)
    assert has_died(pid, within_s=60)


def shim_pid(directory: Path) -> int:
    return int((directory / "job_db/shim/lock").read_text())


def reopened(directory: Path) -> Jobs:
    return Jobs(directory / "job_db", stop_grace=1)


def followed(job_id: str, text: str) -> str:
    """Return what a host does to wait until the job's log ends in the text."""
    return f"""
log = ""
async for chunk in jobs.follow({job_id!r}):
    log += chunk.text
    if log.endswith({text!r}): break
"""


def asked_to_stop(job_id: str, grace: float) -> str:
    """Return what a host does to have a job asked to end that does not."""
    return (
        started(job_id, STUBBORN, ", stop_grace=0.2")
        + followed(job_id, "deaf\n")
        + f"asyncio.ensure_future(jobs.stop({job_id!r}, grace={grace}))\n"
        + followed(job_id, "asked\n")
    )


def noted_pid(job_id: str) -> str:
    """Return what a host does to leave the job's pid in a file."""
    return f"\nopen('pid', 'w').write(str((await jobs.get_status({job_id!r})).last_pid))\n"


async def end_of_job(directory: Path) -> None:
    """Wait until the job whose pid was noted has died."""
    pid = int((directory / "pid").read_text())
    assert await asyncio.to_thread(has_died, pid, 60)


async def end_of_shim(directory: Path) -> None:
    """Wait until the shim has left, because there was nothing more to do."""
    assert await asyncio.to_thread(has_died, shim_pid(directory), 60)


def starts(directory: Path) -> int:
    return len((directory / "starts").read_text())


async def found(jobs: Jobs, job_id: str) -> JobRecord:
    record = await jobs.get_status(job_id)
    assert record is not None
    return record


def assert_code(record: JobRecord, code: int, status: Status = Status.failed) -> None:
    """Fail unless the record of a job that no shim has seen through tells what the kernel can."""
    if KERNEL_TELLS:
        assert (record.status, record.exit_code, record.evidence) == (status, code, "adopted")
    else:
        assert (record.status, record.exit_code, record.evidence) == (Status.lost, None, None)


def a_gap_is_told(events: list[str | None]) -> bool:
    return "adopted; the log may have a gap" in events


# The application is killed, the shim lives.


@pytest.mark.smoke
async def test_a_job_goes_on_without_an_application_and_loses_no_byte(tmp_path: Path) -> None:
    killed_host(tmp_path, started("writer", COUNTED_WRITER))
    async with reopened(tmp_path) as jobs:
        assert (await found(jobs, "writer")).status is Status.running
        (tmp_path / "go").touch()
        record = await jobs.wait("writer", timeout=60)
        assert (record.status, record.exit_code, record.attempt) == (Status.failed, 7, 1)
        assert record.evidence in ("observed", "recorded")
        assert (await jobs.job_logs("writer"))[0] == NUMBERED
        assert "adopted" not in str(await whys(jobs, "writer"))
    assert starts(tmp_path) == 1


async def test_a_job_that_writes_more_than_a_pipe_holds_ends_without_an_application(
    tmp_path: Path,
) -> None:
    killed_host(tmp_path, started("flood", FLOOD))
    (tmp_path / "go").touch()
    await end_of_shim(tmp_path)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("flood", timeout=60)
        assert (record.exit_code, record.evidence) == (7, "recorded")
        assert (await jobs.job_logs("flood"))[0] == FLOODED


async def test_how_a_job_has_ended_without_an_application_is_known(tmp_path: Path) -> None:
    other = started("other", "import os, time\nwhile not os.path.exists('end'): time.sleep(0.01)")
    killed_host(tmp_path, started("ended", HELD) + "\n" + other + noted_pid("ended"))
    (tmp_path / "go").touch()
    await end_of_job(tmp_path)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("ended", timeout=60)
        assert (record.status, record.exit_code, record.attempt) == (Status.failed, 7, 1)
        assert record.evidence in ("observed", "recorded")  # the shim may learn of it just now
        (tmp_path / "end").touch()
        assert (await jobs.wait("other", timeout=60)).evidence == "observed"
    assert starts(tmp_path) == 1


async def test_how_a_job_has_ended_is_known_when_the_shim_has_left_as_well(tmp_path: Path) -> None:
    killed_host(tmp_path, started("ended", HELD))
    (tmp_path / "go").touch()
    await end_of_shim(tmp_path)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("ended", timeout=60)
        assert (record.status, record.exit_code) == (Status.failed, 7)
        assert (record.evidence, record.attempt) == ("recorded", 1)
    assert starts(tmp_path) == 1


@pytest.mark.parametrize("has_left", [True, False], ids=["gone", "there"])
async def test_how_a_job_of_a_shim_has_ended_is_known_to_an_application_without_one(
    tmp_path: Path, has_left: bool
) -> None:
    killed_host(tmp_path, started("ended", HELD))
    if has_left:
        (tmp_path / "go").touch()
        await end_of_shim(tmp_path)
    async with asyncio.timeout(60), Jobs(tmp_path / "job_db", executor="inline") as jobs:
        (tmp_path / "go").touch()
        record = await jobs.wait("ended")
        assert (record.status, record.exit_code, record.attempt) == (Status.failed, 7, 1)
    assert starts(tmp_path) == 1


async def test_an_application_without_a_shim_hears_of_the_jobs_of_one_that_has_one(
    tmp_path: Path,
) -> None:
    async with asyncio.timeout(60), Jobs(tmp_path / "job_db", executor="inline") as jobs:
        with host(tmp_path, started("theirs", COUNTED_WRITER)) as process:
            chunk = await anext(jobs.follow("theirs"))
            assert (chunk.offset, chunk.data[:2]) == (0, b"0\n")
            process.kill()
            process.wait()
        (tmp_path / "go").touch()
        record = await jobs.wait("theirs")
        assert (record.status, record.exit_code, record.attempt) == (Status.failed, 7, 1)
        assert (await jobs.job_logs("theirs"))[0] == NUMBERED


async def test_a_paused_job_is_found_paused(tmp_path: Path) -> None:
    killed_host(tmp_path, started("still", HELD) + "\nawait jobs.pause('still')")
    (tmp_path / "go").touch()
    async with reopened(tmp_path) as jobs:
        record = await found(jobs, "still")
        assert record.status is Status.paused
        assert record.last_pid is not None
        assert psutil.Process(record.last_pid).status() == psutil.STATUS_STOPPED
        assert (await jobs.resume("still")).status is Status.running
        record = await jobs.wait("still", timeout=60)
        assert (record.exit_code, record.evidence) == (7, "observed")


async def test_a_stop_goes_on_without_an_application(tmp_path: Path) -> None:
    killed_host(tmp_path, asked_to_stop("stubborn", grace=0.8))
    await end_of_shim(tmp_path)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("stubborn", timeout=60)
        assert (record.status, record.exit_code) == (Status.stopped, -signal.SIGKILL)
        assert record.evidence == "recorded"


def being_stopped(job_id: str) -> str:
    """Return the code by which an application has a job stopped that it has started."""
    stop = f"asyncio.ensure_future(jobs.stop({job_id!r})); await jobs.wait({job_id!r}, 'stopping')"
    return f"{started(job_id, HELD)}\n{stop}"


async def test_a_stop_that_the_shim_had_not_heard_of_is_carried_out_by_the_next_application(
    tmp_path: Path,
) -> None:
    unheard = """
async def stop(self, attempt, grace, *, may_hasten=True): await asyncio.Event().wait()
shim.Shim.stop = stop
"""
    killed_host(tmp_path, being_stopped("doomed"), unheard)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("doomed", timeout=60)
        assert (record.status, record.exit_code) == (Status.stopped, -signal.SIGTERM)


async def test_by_another_path_to_the_directory_what_was_cut_short_is_finished_as_well(
    tmp_path: Path,
) -> None:
    asked = 'asyncio.ensure_future(jobs.run("exit 3", "undone"))'  # first, so it is on record first
    body = f"{asked}\n{being_stopped('doomed')}\nawait jobs.wait('undone', 'starting')"
    unheard = """
start = shim.Shim.start
async def stop(self, attempt, grace, *, may_hasten=True): await asyncio.Event().wait()
async def asks(self, launch, attempt, number):
    if launch.job_id == "undone": await asyncio.Event().wait()
    return await start(self, launch, attempt, number)
shim.Shim.stop, shim.Shim.start = stop, asks
"""
    (tmp_path / "link").symlink_to(tmp_path)
    killed_host(tmp_path, body, unheard)
    async with reopened(tmp_path / "link") as jobs:
        record = await jobs.wait("undone", timeout=60)
        assert (record.status, record.exit_code, record.attempt) == (Status.failed, 3, 1)
        record = await jobs.wait("doomed", timeout=60)
        assert (record.status, record.exit_code) == (Status.stopped, -signal.SIGTERM)
        assert record.evidence == "observed"


async def test_a_timeout_is_enforced_without_an_application(tmp_path: Path) -> None:
    killed_host(tmp_path, started("late", HELD, ", timeout=0.8"))
    await end_of_shim(tmp_path)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("late", timeout=60)
        assert (record.status, record.exit_code) == (Status.failed, -signal.SIGTERM)
        assert (record.error, record.evidence) == ("timed out after 0.8 s", "recorded")


# Both are killed.


@pytest.mark.smoke
async def test_when_both_are_killed_a_running_job_is_adopted_and_loses_no_byte(
    tmp_path: Path,
) -> None:
    body = started("writer", COUNTED_WRITER) + followed("writer", FIRST_HALF)
    killed_with_its_shim(tmp_path, body)
    async with reopened(tmp_path) as jobs:
        assert (await found(jobs, "writer")).status is Status.running
        (tmp_path / "go").touch()
        record = await jobs.wait("writer", timeout=60)
        assert_code(record, 7)
        assert (await jobs.job_logs("writer"))[0] == NUMBERED
        assert a_gap_is_told(await whys(jobs, "writer"))
        assert record.attempt == 1
    assert starts(tmp_path) == 1


@pytest.mark.parametrize("code", [FLOOD, FLOOD_OF_A_THREAD], ids=["", "of a thread"])
async def test_a_job_that_nobody_reads_waits_for_the_next_shim(tmp_path: Path, code: str) -> None:
    killed_with_its_shim(tmp_path, started("flood", code) + followed("flood", "held\n"))
    (tmp_path / "go").touch()
    async with reopened(tmp_path) as jobs:
        assert_code(await jobs.wait("flood", timeout=60), 7)
        assert (await jobs.job_logs("flood"))[0] == FLOODED


async def test_a_job_that_ended_unseen_is_lost_with_no_exit_code(tmp_path: Path) -> None:
    killed_with_its_shim(tmp_path, started("gone", HELD) + noted_pid("gone"))
    (tmp_path / "go").touch()
    await end_of_job(tmp_path)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("gone", timeout=60)
        assert (record.status, record.exit_code, record.evidence) == (Status.lost, None, None)
        assert str(record.error).startswith("it ended while no supervisor was there to see how")
    assert starts(tmp_path) == 1


async def test_a_stop_that_was_cut_short_is_carried_out(tmp_path: Path) -> None:
    killed_with_its_shim(tmp_path, asked_to_stop("stubborn", grace=60))
    async with reopened(tmp_path) as jobs:
        assert_code(await jobs.wait("stubborn", timeout=60), -signal.SIGKILL, Status.stopped)


async def test_a_timeout_is_kept_over_the_change_of_shims(tmp_path: Path) -> None:
    killed_with_its_shim(tmp_path, started("late", HELD, ", timeout=0.8"))
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("late", timeout=60)
        assert_code(record, -signal.SIGTERM)
        assert record.error == "timed out after 0.8 s" or not KERNEL_TELLS
        assert record.started_at is not None
        assert record.finished_at is not None
        assert (record.finished_at - record.started_at).total_seconds() < 3


async def test_after_a_restart_of_the_machine_jobs_are_lost(tmp_path: Path) -> None:
    killed_with_its_shim(tmp_path, started("sleeper", HELD) + noted_pid("sleeper"))
    journal = tmp_path / "job_db/shim/journal"
    journal.write_text(journal.read_text().replace(tree.boot_id(), "another start"))
    age_store(tmp_path)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("sleeper", timeout=60)
        assert (record.status, record.exit_code) == (Status.lost, None)
        assert record.error == "the machine was restarted while it ran"
    await check_that_the_stranger_lives(tmp_path)


async def test_after_a_restart_of_the_machine_jobs_that_only_the_store_knows_are_lost(
    tmp_path: Path,
) -> None:
    killed_with_its_shim(tmp_path, started("sleeper", HELD) + noted_pid("sleeper"))
    (tmp_path / "job_db/shim/journal").unlink()
    age_store(tmp_path)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("sleeper", timeout=60)
        assert record.status is Status.lost
        assert record.error == "the machine was restarted while it ran"
    await check_that_the_stranger_lives(tmp_path)


def age_store(directory: Path) -> None:
    """Make what is in the store of another start of the machine."""
    with closing(sqlite3.connect(directory / "job_db/jobs.db")) as store, store:
        change = "UPDATE jobs SET attempt = replace(attempt, ?, ?)"
        assert store.execute(change, (tree.boot_id(), "another start")).rowcount == 1


async def check_that_the_stranger_lives(directory: Path) -> None:
    """Fail unless the shim has left alone what has the job's pid: after a restart, a stranger."""
    await end_of_shim(directory)
    assert psutil.Process(int((directory / "pid").read_text())).is_running()
    (directory / "go").touch()
    await end_of_job(directory)


# What lies about in the shim's folder.


async def test_files_that_dead_shims_have_left_are_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "job_db/shim"
    folder.mkdir(parents=True)
    for name in ("socket", "draining-1.socket"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / name))
    for name in ("lock", "draining-1.lock"):
        (folder / name).write_text(f"{os.getpid()}\n")
    (folder / "journal.new").write_text('{"journal":1}\n{"beg')
    (folder / "draining-1.journal").write_text('{"journal":1}\n')
    async with reopened(tmp_path) as jobs:
        await jobs.run("exit 7", "job")
        assert (await jobs.wait("job", timeout=60)).exit_code == 7
        assert not list(folder.glob("draining-*"))
    # Nor is a journal of which the disk has given back nothing.
    (folder / "journal").write_bytes(b"\0" * 4096)
    async with reopened(tmp_path) as jobs:
        await jobs.run("exit 8", "job")
        assert (await jobs.wait("job", timeout=60)).exit_code == 8


def _cut_in_the_last_line(journal: bytes) -> bytes:
    return journal[:-20]


def _without_its_beginning(journal: bytes) -> bytes:
    return journal[len(journal) // 2 :]


def _with_garbage_in_it(journal: bytes) -> bytes:
    first, *others = journal.splitlines(keepends=True)
    garbage = [b"\0\xff]{\n", b'{"begin":3,"launch":{}}\n', b'"begin"\n', b"7\n", b"[]\n", b"\n"]
    return b"".join([first, *garbage, *others, *garbage, b'{"token":"'])


@pytest.mark.parametrize(
    "damage",
    [
        _cut_in_the_last_line,
        _without_its_beginning,
        _with_garbage_in_it,
        None,
    ],
    ids=["cut", "no beginning", "garbage", "removed"],
)
async def test_whatever_the_disk_has_made_of_the_journal_jobs_that_run_are_adopted(
    tmp_path: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    one = COUNTED_WRITER
    other = COUNTED_WRITER.replace("_exit(7)", "_exit(8)")
    body = started("one", one) + "\n" + started("other", other)
    body += followed("one", FIRST_HALF) + followed("other", FIRST_HALF)
    killed_with_its_shim(tmp_path, body)
    journal = tmp_path / "job_db/shim/journal"
    if damage is None:
        journal.unlink()
    else:
        journal.write_bytes(damage(journal.read_bytes()))
    async with reopened(tmp_path) as jobs:
        assert await jobs.count({"status": "running"}) == 2
        (tmp_path / "go").touch()
        for job_id, code in (("one", 7), ("other", 8)):
            assert_code(await jobs.wait(job_id, timeout=60), code)
            assert (await jobs.job_logs(job_id))[0] == NUMBERED
            assert "adopted" in str(await whys(jobs, job_id))
    assert starts(tmp_path) == 2


@pytest.mark.parametrize("pid", [b'"1"', b"-1", b"%d" % 10**30], ids=["text", "less", "more"])
async def test_a_journal_that_names_no_process_keeps_no_shim_from_starting(
    tmp_path: Path, pid: bytes
) -> None:
    body = started("job", HELD) + followed("job", "held\n") + noted_pid("job")
    killed_with_its_shim(tmp_path, body)
    journal = tmp_path / "job_db/shim/journal"
    journal.write_bytes(re.sub(rb'"pid":\d+', b'"pid":' + pid, journal.read_bytes()))
    async with reopened(tmp_path) as jobs:
        assert (await jobs.wait("job", timeout=60)).status is Status.lost
        await jobs.run("exit 7", "other")
        assert (await jobs.wait("other", timeout=60)).exit_code == 7
        await end_of_job(tmp_path)  # it is found by its marks, and ended as what a job leaves is


# The shim is killed, the application lives.


@pytest.fixture
def reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have shims started as children of a process that reaps at once."""
    monkeypatch.setattr(shim_start, "_BOOTSTRAP", REAPED + shim_start._BOOTSTRAP)


@pytest.fixture
def held_at_once(reaped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the pidfds of jobs held as those of jobs are that have run for a while."""
    monkeypatch.setattr(shim, "_HOLD_AFTER_S", 0.0)


@pytest.mark.smoke
@pytest.mark.usefixtures("reaped")
async def test_who_waits_when_the_shim_is_killed_gets_the_true_exit_code(tmp_path: Path) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(HELD), "held", cwd=tmp_path)
        waiting = asyncio.create_task(jobs.wait("held", timeout=60))
        await jobs.wait("held", Status.running)
        kill_shim(tmp_path)
        await adopted(jobs, "held")
        (tmp_path / "go").touch()
        record = await waiting
        assert_code(record, 7)
        assert record.attempt == 1
        assert a_gap_is_told(await whys(jobs, "held"))
    assert starts(tmp_path) == 1


async def adopted(jobs: Jobs, job_id: str) -> None:
    """Wait until the next shim has adopted the job, and that is on record."""
    async with asyncio.timeout(60), aclosing(jobs.events(job_id, after=0)) as events:
        async for event in events:
            if event.why is not None and event.why.startswith("adopted"):
                return


async def logged(jobs: Jobs, job_id: str, text: str) -> None:
    """Wait until the job's log ends in the text."""
    log = ""
    async with asyncio.timeout(60), aclosing(jobs.follow(job_id)) as chunks:
        async for chunk in chunks:
            log += chunk.text
            if log.endswith(text):
                return


@pytest.mark.usefixtures("reaped")
@pytest.mark.parametrize("lack", ["RuntimeError('no thread')", "MemoryError()"])
async def test_a_shim_that_can_have_no_thread_takes_on_what_runs_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    """At a limit on processes or on memory: the shim ended the job, which was then failed."""
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(HELD), "held", cwd=tmp_path)
        threads = tmp_path / "threads"
        bootstrap = NO_THREADS_YET.format(str(threads), lack) + shim_start._BOOTSTRAP
        monkeypatch.setattr(shim_start, "_BOOTSTRAP", bootstrap)
        kill_shim(tmp_path)
        record = await jobs.run("true", "other")
        assert record.status is Status.failed_start
        assert (await found(jobs, "held")).status is Status.running
        threads.touch()
        await adopted(jobs, "held")
        (tmp_path / "go").touch()
        assert_code(await jobs.wait("held", timeout=60), 7)
    assert starts(tmp_path) == 1


@pytest.mark.usefixtures("reaped")
async def test_what_has_ended_is_told_by_a_shim_that_can_have_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a shim waited for a thread, and stayed for ever."""
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(HELD), "held", cwd=tmp_path)
        bootstrap = NO_THREADS_YET.format("/nowhere", "RuntimeError('no thread')")
        monkeypatch.setattr(shim_start, "_BOOTSTRAP", bootstrap + shim_start._BOOTSTRAP)
        kill_shim(tmp_path)
        assert (await jobs.run("true", "other")).status is Status.failed_start
        (tmp_path / "go").touch()
        assert_code(await jobs.wait("held", timeout=10), 7)


@pytest.mark.usefixtures("reaped")
async def test_a_job_that_runs_on_over_the_death_of_its_shim_loses_no_byte(tmp_path: Path) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(COUNTED_WRITER), "writer", cwd=tmp_path)
        await logged(jobs, "writer", FIRST_HALF)
        kill_shim(tmp_path)
        await adopted(jobs, "writer")
        (tmp_path / "go").touch()
        assert_code(await jobs.wait("writer", timeout=60), 7)
        assert (await jobs.job_logs("writer"))[0] == NUMBERED
    assert starts(tmp_path) == 1


@pytest.mark.usefixtures("reaped")
async def test_what_a_job_writes_while_there_is_no_shim_waits_in_its_pipe(tmp_path: Path) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(FLOOD), "flood", cwd=tmp_path)
        kill_shim(tmp_path)
        (tmp_path / "go").touch()
        assert_code(await jobs.wait("flood", timeout=60), 7)
        assert (await jobs.job_logs("flood"))[0] == FLOODED


@pytest.mark.usefixtures("reaped")
async def test_a_follower_gets_everything_over_the_death_of_the_shim(tmp_path: Path) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(COUNTED_WRITER), "writer", cwd=tmp_path)
        seen = ""
        async with asyncio.timeout(60), aclosing(jobs.follow("writer")) as chunks:
            async for chunk in chunks:
                seen += chunk.text
                if seen == FIRST_HALF:
                    kill_shim(tmp_path)
                    await adopted(jobs, "writer")
                    (tmp_path / "go").touch()
        assert seen == NUMBERED


@pytest.mark.usefixtures("reaped")
async def test_a_follower_is_told_at_once_of_what_is_written_under_the_next_shim(
    tmp_path: Path,
) -> None:
    lines = "while not os.path.exists('go'): time.sleep(0.01)\nprint('on', flush=True)\n"
    code = "import os, time\nprint('first', flush=True)\n" + lines + "time.sleep(60)"
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(code), "talker", cwd=tmp_path)
        async with asyncio.timeout(60), aclosing(jobs.follow("talker")) as chunks:
            assert (await anext(chunks)).text == "first\n"
            kill_shim(tmp_path)
            await adopted(jobs, "talker")
            (tmp_path / "go").touch()
            assert (await anext(chunks)).text == "on\n"
        await jobs.stop("talker")


async def test_the_next_shim_is_greeted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each greeting it tells of all that runs."""
    async with reopened(tmp_path) as jobs:
        await jobs.run("sleep 60", "held")
        hail, greetings = shim.Shim._hail, []

        def counted(*args: Any) -> Awaitable[int]:
            greetings.append(args)
            return hail(*args)

        monkeypatch.setattr(shim.Shim, "_hail", counted)
        kill_shim(tmp_path)
        await adopted(jobs, "held")
        await jobs.run("true", "next")
        assert len(greetings) == 1
        await jobs.stop("held")


@pytest.mark.usefixtures("reaped")
async def test_a_stop_in_progress_is_completed_by_the_next_shim(tmp_path: Path) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(STUBBORN), "stubborn", cwd=tmp_path)
        await logged(jobs, "stubborn", "deaf\n")
        stopping = asyncio.create_task(jobs.stop("stubborn", grace=0.5))
        await logged(jobs, "stubborn", "asked\n")
        kill_shim(tmp_path)
        async with asyncio.timeout(60):
            record = await stopping
        assert record is not None
        assert_code(record, -signal.SIGKILL, Status.stopped)
        assert record.attempt == 1
    assert starts(tmp_path) == 1


@pytest.mark.usefixtures("reaped")
async def test_a_job_can_be_run_and_another_stopped_right_after_the_death_of_the_shim(
    tmp_path: Path,
) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(HELD), "held", cwd=tmp_path)
        kill_shim(tmp_path)
        ran, stopped = await asyncio.gather(jobs.run("exit 3", "next"), jobs.stop("held"))
        assert ran.status is not Status.failed_start
        record = await jobs.wait("next", timeout=60)
        assert (record.exit_code, record.evidence) == (3, "observed")
        assert stopped is not None
        assert_code(stopped, -signal.SIGTERM, Status.stopped)


async def seen_through(executor: Executor) -> None:
    while await executor.held():  # noqa: ASYNC110  # nobody is told
        await asyncio.sleep(0.01)


@pytest.mark.usefixtures("reaped")
async def test_a_start_that_another_application_has_seen_through_is_not_asked_of_the_next_shim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked, is_held, may_go_on = shim.Shim._linked, asyncio.Event(), asyncio.Event()

    async def late(self: shim.Shim) -> Link:
        if not is_held.is_set():
            is_held.set()
            await may_go_on.wait()
        return await linked(self)

    job = python(f"{COUNTED}raise SystemExit(7)")
    async with reopened(tmp_path) as jobs, asyncio.timeout(60):
        executor = (await jobs._root.open()).executor
        await jobs.run("true")  # there is a shim
        monkeypatch.setattr(shim.Shim, "_linked", late)
        try:
            run = asyncio.create_task(jobs.run(job, "job", cwd=tmp_path))
            await is_held.wait()
            async with reopened(tmp_path) as others:
                assert (await others.wait("job")).exit_code == 7
                await seen_through(executor)
            kill_shim(tmp_path)
            await jobs.run("true")  # there is another one
        finally:
            may_go_on.set()
        assert (await run).exit_code == 7
        await seen_through(executor)
    assert starts(tmp_path) == 1


async def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return once the shim has forgotten what it is done with by now."""
    send, ages, is_forgotten = Link.send, list[int](), asyncio.Event()

    def noted(self: Link, message: dict[str, Any]) -> None:
        send(self, message)
        if message["do"] == "age":
            ages.append(message["age"])
            if ages[-1] >= ages[0] + 2:
                is_forgotten.set()

    monkeypatch.setattr(Link, "send", noted)
    await is_forgotten.wait()


async def test_a_start_that_another_application_has_seen_through_meanwhile_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the payload took so long to write that the shim has forgotten it."""
    forgets = ";import anodejobs.shim.server as s;s._SWEEP_EVERY_S=s._FORGET_EVERY_S=0.01;main()"
    bootstrap = shim_start._BOOTSTRAP.replace(";main()", forgets)
    monkeypatch.setattr(shim_start, "_BOOTSTRAP", bootstrap)
    hand_out, is_held, may_go_on = JobFiles.hand_out, threading.Event(), threading.Event()

    def slow(self: JobFiles, logfile: str, payload: object) -> None:
        if not is_held.is_set():
            is_held.set()
            assert may_go_on.wait(60)
        hand_out(self, logfile, payload)

    monkeypatch.setattr(JobFiles, "hand_out", slow)
    job = python(f"{COUNTED}raise SystemExit(7)")
    async with reopened(tmp_path) as jobs, asyncio.timeout(60):
        executor = (await jobs._root.open()).executor
        try:
            run = asyncio.create_task(jobs.run(job, "job", cwd=tmp_path, payload=1))
            await asyncio.to_thread(is_held.wait)
            async with reopened(tmp_path):
                assert (await jobs.wait("job")).exit_code == 7
                await seen_through(executor)
            await forgotten(monkeypatch)
        finally:
            may_go_on.set()
        assert (await run).exit_code == 7
        await seen_through(executor)
    assert starts(tmp_path) == 1


UNRECORDED = """
start, is_known = shim.Shim.start, asyncio.Event()
async def known(self, launch, attempt, number):
    await start(self, launch, attempt, number)
    is_known.set()
    await asyncio.Event().wait()
shim.Shim.start = known
"""
"""Has an application know how a start went, and not record it."""


@pytest.mark.usefixtures("reaped")
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_start_that_an_older_shim_has_done_is_not_asked_of_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    version, start = shim.VERSION - 1, shim.Shim.start
    older = f"{SHIM_WITH.format('VERSION', version)}\nshim.VERSION = {version}\n{UNRECORDED}"
    run = f"jobs.run({python(HELD)!r}, 'job', cwd={os.fspath(tmp_path)!r})"
    killed_host(tmp_path, f"asyncio.ensure_future({run}); await is_known.wait()", older)
    old = shim_pid(tmp_path)

    async def start_late(self: shim.Shim, launch: Launch, attempt: Attempt, number: int) -> Any:
        if is_killed:
            os.kill(old, signal.SIGKILL)
        return await start(self, launch, attempt, number)

    monkeypatch.setattr(shim.Shim, "start", start_late)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("job", Status.running, timeout=60)
        assert shim_pid(tmp_path) != old
        (tmp_path / "go").touch()
        ended = await jobs.wait("job", timeout=60)
        if not is_killed:
            assert (ended.exit_code, ended.evidence) == (7, "observed")
        assert (ended.last_pid, ended.attempt) == (record.last_pid, 1)
    assert starts(tmp_path) == 1


@pytest.mark.usefixtures("reaped")
async def test_a_start_that_a_killed_shim_has_done_is_no_failure_though_no_other_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine may lack processes for a while, or the disk be full: that says nothing of it."""
    refusals = 0

    async def start_shim(folder: Path, linger_s: float) -> str:
        nonlocal refusals
        if (tmp_path / "die").exists() or refusals >= 6:
            return await shim_start.start_shim(folder, linger_s)
        refusals += 1
        return "it cannot be started"

    monkeypatch.setenv("ANODEJOBS_DIE_AT", f"shim: a process was spawned@{tmp_path / 'die'}")
    monkeypatch.setattr(shim, "start_shim", start_shim)
    monkeypatch.setattr(shim, "_MOST_ATTEMPTS", 2)
    (tmp_path / "die").touch()
    async with reopened(tmp_path) as jobs, asyncio.timeout(60):
        record = await jobs.run(python(HELD), "held", cwd=tmp_path)
        assert (record.status, refusals) == (Status.running, 6)
        (tmp_path / "go").touch()
        record = await jobs.wait("held")
        assert (await jobs.job_logs("held"))[0] == "held\n"
    assert (record.attempt, starts(tmp_path)) == (1, 1)


@pytest.mark.usefixtures("held_at_once")
async def test_a_job_that_ends_while_there_is_no_shim_has_its_true_exit_code(
    tmp_path: Path,
) -> None:
    async with reopened(tmp_path) as jobs:
        record = await jobs.run(python(HELD), "held", cwd=tmp_path)
        await logged(jobs, "held", "held\n")
        waiting = asyncio.create_task(jobs.wait("held", timeout=60))
        kill_shim(tmp_path)
        (tmp_path / "go").touch()
        assert record.last_pid is not None
        assert has_died(record.last_pid, within_s=60)  # we do not learn of the shim meanwhile
        record = await waiting
        assert_code(record, 7)
        assert (await jobs.job_logs("held"))[0] == "held\n"
        assert "the log may have a gap" in str(await whys(jobs, "held")) or not KERNEL_TELLS
    assert starts(tmp_path) == 1


@pytest.mark.usefixtures("held_at_once")
async def test_a_job_that_is_killed_together_with_its_shim_has_its_true_exit_code(
    tmp_path: Path,
) -> None:
    async with reopened(tmp_path) as jobs:
        record = await jobs.run(python(HELD), "held", cwd=tmp_path)
        await logged(jobs, "held", "held\n")
        assert record.last_pid is not None
        kill_shim(tmp_path)
        os.kill(record.last_pid, signal.SIGKILL)
        assert has_died(record.last_pid, within_s=60)
        assert_code(await jobs.wait("held", timeout=60), -signal.SIGKILL)
    assert starts(tmp_path) == 1


@pytest.mark.usefixtures("reaped")
async def test_a_young_job_is_held_as_soon_as_the_shim_is_found_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pidfd was not held before; it ends before the next shim is there."""
    monkeypatch.setattr(shim, "_HOLD_AFTER_S", 1000.0)
    async with reopened(tmp_path) as jobs:
        record = await jobs.run(python(HELD), "held", cwd=tmp_path)
        start_shim = shim.start_shim

        async def started_late(folder: Path, linger_s: float) -> str:
            (tmp_path / "go").touch()
            assert record.last_pid is not None
            assert await asyncio.to_thread(has_died, record.last_pid, within_s=60)
            return await start_shim(folder, linger_s)

        monkeypatch.setattr(shim, "start_shim", started_late)
        kill_shim(tmp_path)
        assert_code(await jobs.wait("held", timeout=60), 7)


async def test_closing_while_a_shim_is_being_started_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    before = descriptors().keys()
    async with reopened(tmp_path) as jobs:
        await jobs.wait((await jobs.run("true", "job")).self_id, timeout=60)
        held = f"import os\nassert open({str(gate)!r}).read() == 'go'\n"
        monkeypatch.setattr(shim_start, "_BOOTSTRAP", held + shim_start._BOOTSTRAP)
        kill_shim(tmp_path)
        go = await asyncio.to_thread(open, gate, "w")  # once the next one has come so far
    with go:
        assert descriptors().keys() - before == {go.fileno()}
        go.write("go")
    async with reopened(tmp_path) as jobs:  # the shim has come up, or another one will
        assert (await jobs.get_status("job")).exit_code == 0


@pytest.mark.usefixtures("reaped")
async def test_a_job_whose_end_nobody_can_know_is_lost_with_no_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "_HOLD_AFTER_S", 1000.0)
    async with reopened(tmp_path) as jobs:
        record = await jobs.run(python(HELD), "held", cwd=tmp_path)
        assert record.last_pid is not None
        waiting = asyncio.create_task(jobs.wait("held", timeout=60))
        kill_shim(tmp_path)
        (tmp_path / "go").touch()
        assert has_died(record.last_pid, within_s=60)
        # Who gets hold of a process before it is reaped is told its exit code.
        deadline = time.monotonic() + 10
        while psutil.pid_exists(record.last_pid) and time.monotonic() < deadline:
            pass
        record = await waiting
        assert (record.status, record.exit_code, record.evidence) == (Status.lost, None, None)
    assert starts(tmp_path) == 1


@pytest.mark.usefixtures("reaped")
async def test_many_jobs_outlive_two_shims_and_each_has_its_own_exit_code(tmp_path: Path) -> None:
    command = "echo x >> starts; echo $ANODEJOBS_JOB_ID; until [ -e go ]; do sleep 0.05; done; exit"
    async with reopened(tmp_path) as jobs:
        runs = (jobs.run(f"{command} {i}", f"job-{i}", cwd=tmp_path) for i in range(1, 13))
        job_ids = [record.self_id for record in await asyncio.gather(*runs)]
        await asyncio.gather(*(logged(jobs, job_id, f"{job_id}\n") for job_id in job_ids))
        waiting = asyncio.create_task(jobs.wait_all(job_ids, timeout=60))
        first = shim_pid(tmp_path)
        kill_shim(tmp_path)
        await asyncio.gather(*(adopted(jobs, job_id) for job_id in job_ids))
        second = shim_pid(tmp_path)
        kill_shim(tmp_path)
        (tmp_path / "go").touch()
        for i, record in enumerate((await waiting).values(), start=1):
            assert_code(record, i)
            assert await jobs.job_logs(record.self_id) == (f"{record.self_id}\n", "")
        assert first != second
    assert (tmp_path / "starts").read_text() == "x\n" * 12


@pytest.mark.usefixtures("reaped")
async def test_a_paused_job_stays_paused_over_the_death_of_the_shim(tmp_path: Path) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(HELD), "still", cwd=tmp_path)
        await jobs.pause("still")
        kill_shim(tmp_path)
        (tmp_path / "go").touch()
        await adopted(jobs, "still")
        assert (await found(jobs, "still")).status is Status.paused
        await jobs.resume("still")
        assert_code(await jobs.wait("still", timeout=60), 7)


@pytest.mark.usefixtures("reaped")
async def test_of_two_applications_whose_shim_is_killed_both_go_on(tmp_path: Path) -> None:
    async with reopened(tmp_path) as one, reopened(tmp_path) as other:
        await one.run(python(COUNTED_WRITER), "writer", cwd=tmp_path)
        await logged(other, "writer", FIRST_HALF)
        await other.run(python(HELD), "held", cwd=tmp_path)
        waiting = [
            asyncio.create_task(jobs.wait(job_id, timeout=60))
            for jobs in (one, other)
            for job_id in ("writer", "held")
        ]
        kill_shim(tmp_path)
        await asyncio.gather(adopted(other, "writer"), adopted(one, "held"))
        (tmp_path / "go").touch()
        records = await asyncio.gather(*waiting)
        assert records[:2] == records[2:]
        for record in records:
            assert_code(record, 7)
        assert (await one.job_logs("writer"))[0] == NUMBERED
        assert a_gap_is_told(await whys(one, "writer"))
        for jobs in (one, other):
            assert (await jobs.run("true")).attempt == 1
    assert starts(tmp_path) == 2


# Several applications on one directory.


async def test_another_application_lists_and_waits_for_a_job(tmp_path: Path) -> None:
    with host(tmp_path, started("theirs", HELD)):
        async with reopened(tmp_path) as jobs:
            assert (await jobs.list_status())["theirs"].status is Status.running
            waiting = asyncio.create_task(jobs.wait("theirs", timeout=60))
            (tmp_path / "go").touch()
            record = await waiting
            assert (record.exit_code, record.evidence) == (7, "observed")
    assert starts(tmp_path) == 1


async def test_another_application_follows_a_job_line_by_line(tmp_path: Path) -> None:
    with host(tmp_path, started("theirs", LINES)):
        async with reopened(tmp_path) as jobs:
            async with asyncio.timeout(60), aclosing(jobs.follow("theirs")) as chunks:
                for i in range(3):
                    (tmp_path / f"go-{i}").touch()
                    assert (await anext(chunks)).text == f"line {i}\n"
                    assert (await found(jobs, "theirs")).status is Status.running
                (tmp_path / "go").touch()
                assert [chunk async for chunk in chunks] == []
            assert (await found(jobs, "theirs")).status is Status.finished


async def test_another_application_stops_a_job(tmp_path: Path) -> None:
    with host(tmp_path, started("theirs", HELD)):
        async with reopened(tmp_path) as jobs:
            record = await jobs.stop("theirs")
            assert record is not None
            assert (record.status, record.exit_code) == (Status.stopped, -signal.SIGTERM)


@pytest.mark.smoke
async def test_when_an_application_is_killed_another_records_the_ends_of_its_jobs(
    tmp_path: Path,
) -> None:
    at_once = SHIM_WITH.format("_TELL_ALL_AFTER_S", 1000)
    with host(tmp_path, started("theirs", COUNTED_WRITER), at_once) as process:
        async with reopened(tmp_path) as jobs:
            waiting = asyncio.create_task(jobs.wait("theirs", timeout=60))
            await jobs.wait("theirs", Status.running)
            process.kill()
            process.wait()
            (tmp_path / "go").touch()
            record = await waiting
            assert (record.exit_code, record.attempt) == (7, 1)
            assert record.evidence in ("observed", "recorded")
            assert (await jobs.job_logs("theirs"))[0] == NUMBERED
            assert "adopted" not in str(await whys(jobs, "theirs"))
    assert starts(tmp_path) == 1


async def test_all_who_ask_for_a_shim_that_does_not_answer_are_told_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    class Counting(shim.Shim):
        async def _hail(self, link: Link) -> int:
            tried.append(link)
            return await super()._hail(link)

    async with reopened(tmp_path) as jobs:
        await jobs.run("true", "a")
        pid = shim_pid(tmp_path)
        other = Counting(tmp_path / "job_db/shim")
        monkeypatch.setattr(shim, "_ANSWER_S", 0.2)
        os.kill(pid, signal.SIGSTOP)
        try:
            refused = await asyncio.gather(*(other.prepare() for _ in range(5)))
        finally:
            os.kill(pid, signal.SIGCONT)
        await other.close()
    assert len(tried) == 1
    assert all(one is not None and "does not answer" in one.error for one in refused)


async def test_a_shim_that_does_not_answer_is_told_of_and_used_once_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run("true", "a")
        pid = shim_pid(tmp_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            monkeypatch.setattr(shim, "_ANSWER_S", 0.2)
            with pytest.raises(ExecutorError, match="does not answer"):
                await reopened(tmp_path).count()
        finally:
            os.kill(pid, signal.SIGCONT)
        monkeypatch.setattr(shim, "_ANSWER_S", 60.0)
        async with reopened(tmp_path) as other, asyncio.timeout(60):
            assert (await other.wait("a")).exit_code == 0
            await other.run("true", "b")
            assert (await jobs.wait("b")).exit_code == 0


async def test_the_end_of_a_job_whose_application_hangs_is_recorded_by_another(
    tmp_path: Path,
) -> None:
    body = (
        started("theirs", HELD)
        + """
async def report():
    print((await jobs.wait("theirs")).model_dump_json(), flush=True)
reporting = asyncio.ensure_future(report())"""
    )
    with host(tmp_path, body) as process:
        async with reopened(tmp_path) as jobs:
            await jobs.wait("theirs", Status.running)
            process.send_signal(signal.SIGSTOP)
            (tmp_path / "go").touch()
            record = await jobs.wait("theirs", timeout=60)
            assert (record.status, record.exit_code) == (Status.failed, 7)
            # And when it comes to itself, it takes that for what it is.
            process.send_signal(signal.SIGCONT)
            assert process.stdout is not None
            line = await asyncio.to_thread(process.stdout.readline)
            assert JobRecord.model_validate_json(line) == record
            statuses = [event.status for event in await jobs.history("theirs")]
            assert statuses == [Status.starting, Status.running, Status.failed]


@pytest.mark.parametrize("look", ["wait", "events", "follow"])
async def test_an_application_that_was_there_before_any_shim_hears_of_jobs(
    tmp_path: Path, look: str
) -> None:
    """It watches what another one, which is killed, has started."""
    async with reopened(tmp_path) as jobs:
        with host(tmp_path, started("theirs", COUNTED_WRITER)) as process:
            watching = asyncio.create_task(LOOKS[look](jobs, "theirs"))
            await jobs.wait("theirs", Status.running)
            process.kill()
            process.wait()
            (tmp_path / "go").touch()
            async with asyncio.timeout(60):
                await watching
                record = await jobs.wait("theirs")
            assert (record.status, record.exit_code) == (Status.failed, 7)
            assert (await jobs.job_logs("theirs"))[0] == NUMBERED
    assert starts(tmp_path) == 1


async def _see_end(jobs: Jobs, job_id: str) -> None:
    async with aclosing(jobs.events(job_id, after=0)) as events:
        async for event in events:
            if event.status is Status.failed:
                return


async def _follow_to_end(jobs: Jobs, job_id: str) -> None:
    assert "".join([chunk.text async for chunk in jobs.follow(job_id)]) == NUMBERED


LOOKS = {"wait": Jobs.wait, "events": _see_end, "follow": _follow_to_end}


async def test_a_follower_that_was_there_before_any_shim_is_told_line_by_line(
    tmp_path: Path,
) -> None:
    async with reopened(tmp_path) as other, reopened(tmp_path) as jobs:
        await jobs.run(python(LINES), "talker", cwd=tmp_path)
        async with asyncio.timeout(60), aclosing(other.follow("talker")) as chunks:
            for i in range(3):
                (tmp_path / f"go-{i}").touch()
                assert (await anext(chunks)).text == f"line {i}\n"
        (tmp_path / "go").touch()
        await jobs.wait("talker", timeout=60)


async def test_an_application_that_was_there_before_any_shim_keeps_jobs_from_being_stopped(
    tmp_path: Path,
) -> None:
    async with reopened(tmp_path) as jobs:
        body = f"await jobs.run({SLOW!r}, 'theirs', on_host_death='stop')"
        killed_host(tmp_path, body, BRIEF_GRACE)
        record = await jobs.wait("theirs", timeout=60)
        assert (record.status, record.exit_code) == (Status.failed, 7)


async def test_a_start_that_two_applications_ask_for_is_seen_through_by_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has recorded it and is slow to ask; another, which sees it undone, asks before."""
    may_ask = asyncio.Event()
    ask = shim.Shim.start

    async def asks(self, launch, attempt, number):  # type: ignore[no-untyped-def]
        if launch.job_id == "held" and self is (await slow._root.open()).executor:
            await may_ask.wait()
        return await ask(self, launch, attempt, number)

    monkeypatch.setattr(shim.Shim, "start", asks)
    async with Jobs(tmp_path / "job_db", stop_grace=1, on_close="stop") as slow:
        await slow.run("true")
        running = asyncio.create_task(slow.run(python(HELD), "held", cwd=tmp_path))
        async with asyncio.timeout(60), aclosing(slow.events("held", after=0)) as events:
            assert (await anext(events)).status is Status.starting
        async with reopened(tmp_path) as quick:
            assert (await quick.wait("held", Status.running, timeout=60)).last_pid
            may_ask.set()
            assert (await running).status is Status.running
            (tmp_path / "go").touch()
            assert (await slow.wait("held", timeout=60)).exit_code == 7
            async with asyncio.timeout(60):
                await slow.close()
    assert starts(tmp_path) == 1


async def test_opening_another_application_disturbs_no_start_that_is_under_way(
    tmp_path: Path,
) -> None:
    async with Jobs(tmp_path / "job_db", stop_grace=1, on_close="stop") as jobs:
        runs = [
            asyncio.create_task(jobs.run("echo x >> starts; exit 7", f"job-{i}", cwd=tmp_path))
            for i in range(40)
        ]
        async with asyncio.timeout(60):
            while not all(run.done() for run in runs):
                async with reopened(tmp_path):
                    pass
        for record in await asyncio.gather(*runs):
            assert record.status is not Status.failed_start
        for record in (await jobs.wait_all([run.result().self_id for run in runs], 20)).values():
            assert (record.status, record.exit_code, record.attempt) == (Status.failed, 7, 1)
        async with asyncio.timeout(60):
            await jobs.close()
    assert (tmp_path / "starts").read_text() == "x\n" * 40


# Without any application.


async def test_without_an_application_jobs_are_stopped_that_are_not_to_outlive_it_and_no_others(
    tmp_path: Path,
) -> None:
    body = f"""
    await jobs.run("sleep 60", "stop", on_host_death="stop")
    await jobs.run({SLOW!r}, "leave", on_host_death="leave")
    """
    killed_host(tmp_path, textwrap.dedent(body) + noted_pid("stop"), BRIEF_GRACE)
    await end_of_job(tmp_path)
    async with reopened(tmp_path) as jobs:
        stopped = await jobs.wait("stop", timeout=60)
        assert (stopped.status, stopped.exit_code) == (Status.stopped, -signal.SIGTERM)
        assert "no application was left" in await whys(jobs, "stop")
        assert stopped.started_at is not None
        assert stopped.finished_at is not None
        assert (stopped.finished_at - stopped.started_at).total_seconds() >= GRACE_S
        left = await jobs.wait("leave", timeout=60)
        assert (left.status, left.exit_code) == (Status.failed, 7)


async def test_a_shim_that_no_application_has_come_to_stops_the_jobs_it_has_taken_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who had it started was killed before it could connect."""
    body = "await jobs.run('exec sleep 60', 'stays')\n"  # so the shim stays, too
    body += "await jobs.run('sleep 60', 'job', on_host_death='stop')"
    killed_with_its_shim(tmp_path, body + noted_pid("job"))
    brief = f";import anodejobs.shim.server as s;s.HOST_GRACE_S={GRACE_S};main()"
    monkeypatch.setattr(shim_start, "_BOOTSTRAP", shim_start._BOOTSTRAP.replace(";main()", brief))
    assert await shim_start.start_shim(tmp_path / "job_db/shim", shim.LINGER_S) == "ready"
    await end_of_job(tmp_path)
    async with reopened(tmp_path) as jobs:
        stopped = await jobs.wait("job", timeout=60)
        assert stopped.status is Status.stopped
        assert "no application was left" in await whys(jobs, "job")
        # Now there is one.
        await jobs.run("sleep 0.2; exit 7", "next", on_host_death="stop")
        assert (await jobs.wait("next", timeout=60)).exit_code == 7
        await jobs.stop("stays")


async def test_a_job_that_starts_when_its_application_has_been_gone_for_too_long_is_stopped(
    tmp_path: Path,
) -> None:
    body = """
    asyncio.ensure_future(jobs.run("exec sleep 60", "job", on_host_death="stop"))
    while not os.path.exists("job_db/shim/asked"): await asyncio.sleep(0.01)
    """
    killed_host(tmp_path, body, BRIEF_GRACE + LATE_STARTS)
    await end_of_shim(tmp_path)
    async with reopened(tmp_path) as jobs:
        stopped = await jobs.wait("job", timeout=60)
        assert (stopped.status, stopped.exit_code) == (Status.stopped, -signal.SIGTERM)
        assert "no application was left" in await whys(jobs, "job")


async def test_while_another_application_is_there_no_job_is_stopped(tmp_path: Path) -> None:
    body = f"await jobs.run({SLOW!r}, 'theirs', on_host_death='stop')"
    with host(tmp_path, body, BRIEF_GRACE) as process:
        async with reopened(tmp_path) as jobs:
            process.kill()
            process.wait()
            record = await jobs.wait("theirs", timeout=60)
            assert (record.status, record.exit_code) == (Status.failed, 7)


async def test_an_application_that_comes_in_time_keeps_jobs_from_being_stopped(
    tmp_path: Path,
) -> None:
    body = "await jobs.run('sleep 1.5; exit 7', 'job', on_host_death='stop')"
    killed_host(tmp_path, body, SHIM_WITH.format("HOST_GRACE_S", 1.0))
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("job", timeout=60)
        assert (record.status, record.exit_code) == (Status.failed, 7)


async def test_an_application_that_comes_in_time_to_a_shim_that_is_stopped_keeps_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = started("job", HELD, ", on_host_death='stop'")
    killed_host(tmp_path, body, BRIEF_GRACE + FREEZES)
    frozen = psutil.Process(shim_pid(tmp_path))
    while frozen.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110  # nobody is told
        await asyncio.sleep(0.01)
    has_come, hail = asyncio.Event(), shim.Shim._hail

    async def hailed(executor: shim.Shim, link: Link) -> int:
        has_come.set()
        return await hail(executor, link)

    monkeypatch.setattr(shim.Shim, "_hail", hailed)
    async with asyncio.timeout(60):
        opening = asyncio.create_task(reopened(tmp_path).__aenter__())
        await has_come.wait()
        await asyncio.sleep(GRACE_S)  # it is the time in which the shim hears nobody
        frozen.resume()
        async with await opening as jobs:
            (tmp_path / "go").touch()
            assert (await jobs.wait("job")).exit_code == 7
            assert "no application was left" not in await whys(jobs, "job")


async def test_a_shim_that_cannot_end_a_job_goes_on_to_look_after_it(tmp_path: Path) -> None:
    """It has no descriptor to look with, for example."""
    ended = f"open({str(tmp_path / 'go')!r}, 'w').close()"
    refused = f"lambda *a, **k: {ended} or s.asyncio.to_thread(s.os.listdir, 'nowhere')"
    setup = BRIEF_GRACE + SHIM_WITH.format("Processes.stop", refused)
    body = started("job", HELD, ", on_host_death='stop'") + noted_pid("job")
    killed_host(tmp_path, body, setup)
    await end_of_job(tmp_path)
    async with reopened(tmp_path) as jobs:
        assert (await jobs.wait("job", timeout=60)).exit_code == 7
    assert "job job was not ended" in (tmp_path / "job_db/shim/log").read_text()


# Closing and leaving.


async def test_closing_leaves_jobs_running(tmp_path: Path) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(COUNTED_WRITER), "writer", cwd=tmp_path)
    async with reopened(tmp_path) as jobs:
        assert (await found(jobs, "writer")).status is Status.running
        (tmp_path / "go").touch()
        record = await jobs.wait("writer", timeout=60)
        assert (record.exit_code, record.evidence) == (7, "observed")
        assert (await jobs.job_logs("writer"))[0] == NUMBERED
    assert starts(tmp_path) == 1


async def test_closing_with_stop_ends_the_jobs_it_started_and_no_others(tmp_path: Path) -> None:
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(HELD), "of one before", cwd=tmp_path)
    async with reopened(tmp_path) as jobs:
        await jobs.run(python(HELD), "of another", cwd=tmp_path)
        async with Jobs(tmp_path / "job_db", stop_grace=1, on_close="stop") as closing:
            await closing.run(python(HELD), "its own", cwd=tmp_path)
            for job_id in ("of one before", "of another"):
                assert (await found(closing, job_id)).status is Status.running
        record = await found(jobs, "its own")
        assert (record.status, record.exit_code) == (Status.stopped, -signal.SIGTERM)
        assert "the application closed" in await whys(jobs, "its own")
        (tmp_path / "go").touch()
        for record in (await jobs.wait_all(["of one before", "of another"], timeout=60)).values():
            assert (record.status, record.exit_code) == (Status.failed, 7)


async def test_the_shim_leaves_after_the_last_application_and_the_last_job_and_not_before(
    tmp_path: Path,
) -> None:
    several_lingers_s = 5 * shim.LINGER_S
    async with reopened(tmp_path) as jobs:
        await jobs.run("true", "short")
        await jobs.wait("short", timeout=60)
        pid = shim_pid(tmp_path)
        # There is an application, and no job.
        assert not await asyncio.to_thread(has_died, pid, several_lingers_s)
        await jobs.run(python(HELD), "held", cwd=tmp_path)
    # There is a job, and no application.
    assert not await asyncio.to_thread(has_died, pid, several_lingers_s)
    (tmp_path / "go").touch()
    assert await asyncio.to_thread(has_died, pid, 60)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("held", timeout=60)
        assert (record.exit_code, record.evidence) == (7, "recorded")
