"""What the next Jobs on a directory finds when the last one was killed."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from anodejobs import JobRecord, Jobs, SqliteJobStore, Status
from anodejobs.executors import pidfds, tree
from anodejobs.executors.processes import Processes
from anodejobs.testing import make_insert, make_record
from tests.conftest import python
from tests.programs import application, has_gone

pytestmark = pytest.mark.smoke


KERNEL_TELLS = tree.IS_LINUX and tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)
"""Whether the kernel gives exit codes to a process that is not the parent."""

HOST = """
import asyncio, sys
from pathlib import Path
from anodejobs import Jobs

async def main():
    async with Jobs(db_path="job_db", stop_grace=1, executor="inline") as jobs:
        {body}
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

# Writes numbered lines, of which the first half before and the second half after it may go on.
WRITER = """
import os, time
for i in range(1000): print(i, flush=True)
while not os.path.exists("go"): time.sleep(0.01)
for i in range(1000, 2000): print(i, flush=True)
os._exit(7)
"""
WAIT_FOR_GO = "while not os.path.exists('go'): time.sleep(0.01)\n"
ADOPTED = "adopted; the log may have a gap"
UNTIL_GO = "until [ -e go ]; do sleep 0.01; done"
UNTIL_PIDS = """
while not Path("pids").exists() or not Path("pids").read_text():
    await asyncio.sleep(0.01)"""
NUMBERED = "".join(f"{i}\n" for i in range(2000))


def host(directory: Path, body: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run an application that does ``body`` and then waits to be killed."""
    body = textwrap.indent(textwrap.dedent(body), " " * 8).strip()
    return application(HOST.format(body=body), directory)


def killed_host(directory: Path, body: str) -> None:
    """Run an application, and kill it when it has done ``body``."""
    with host(directory, body):
        pass


def reopened(directory: Path) -> Jobs:
    return Jobs(db_path=directory / "job_db", stop_grace=1, executor="inline")


def started(job_id: str, code: str, more: str = "") -> str:
    return f"await jobs.run({python(code)!r}, {job_id!r}{more})"


async def adoption(jobs: Jobs, job_id: str) -> None:
    """Wait until the job has another supervisor."""
    async for event in jobs.events(job_id, after=0):
        if event.why == ADOPTED:
            return


async def whys(jobs: Jobs, job_id: str) -> list[str | None]:
    return [event.why for event in await jobs.history(job_id)]


async def test_a_running_job_goes_on_and_loses_no_byte(tmp_path: Path) -> None:
    killed_host(tmp_path, started("writer", WRITER))
    async with reopened(tmp_path) as jobs:
        record = await jobs.get_status("writer")
        assert record is not None
        assert record.status is Status.running
        (tmp_path / "go").touch()
        record = await jobs.wait("writer", timeout=60)
        assert (await jobs.job_logs("writer"))[0] == NUMBERED
        assert ADOPTED in await whys(jobs, "writer")
        assert record.attempt == 1
        if KERNEL_TELLS:
            assert (record.status, record.exit_code) == (Status.failed, 7)
            assert record.evidence == "adopted"
        else:
            assert (record.status, record.exit_code) == (Status.lost, None)


async def test_a_job_that_writes_more_than_its_pipe_holds_waits_for_the_next_reader(
    tmp_path: Path,
) -> None:
    flood = "import os\nfor i in range(300): os.write(1, b'x' * 4096)\nos._exit(0)"
    with host(tmp_path, started("flood", "import os, time\n" + WAIT_FOR_GO + flood)) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        (tmp_path / "go").touch()
    async with reopened(tmp_path) as jobs:
        await jobs.wait("flood", timeout=60)
        assert (await jobs.job_logs("flood"))[0] == "x" * 4096 * 300


DIE_BEFORE_WRITE = """
import os
from anodejobs.logs import LogFile
LogFile.write = lambda self, data: os._exit(9)
"""


async def test_what_was_read_and_not_written_is_missing_and_that_is_told(tmp_path: Path) -> None:
    command = f"import os, time\nprint('lost', flush=True)\n{WAIT_FOR_GO}print('kept')"
    await crash(tmp_path, DIE_BEFORE_WRITE, command)
    async with reopened(tmp_path) as jobs:
        (tmp_path / "go").touch()
        await jobs.wait("doubtful", timeout=60)
        assert (await jobs.job_logs("doubtful"))[0] == "kept\n"
        assert ADOPTED in await whys(jobs, "doubtful")


async def test_ended_jobs_stay_as_they_were(tmp_path: Path) -> None:
    killed_host(
        tmp_path,
        """
        await jobs.run("echo out; exit 3", "ended")
        record = await jobs.wait("ended")
        open("before.json", "w").write(record.model_dump_json())
        """,
    )
    async with reopened(tmp_path) as jobs:
        before = JobRecord.model_validate_json((tmp_path / "before.json").read_text())
        assert await jobs.get_status("ended") == before
        assert await jobs.job_logs("ended") == ("out\n", "")


async def test_a_job_that_ended_unseen_is_lost_with_no_exit_code(tmp_path: Path) -> None:
    body = started("gone", "import os, time\n" + WAIT_FOR_GO) + (
        "\nopen('pid', 'w').write(str((await jobs.get_status('gone')).last_pid))"
    )
    killed_host(tmp_path, body)
    job = psutil.Process(int((tmp_path / "pid").read_text()))
    (tmp_path / "go").touch()
    await asyncio.to_thread(psutil.wait_procs, [job], 10)
    async with reopened(tmp_path) as jobs:
        record = await jobs.get_status("gone")
        assert record is not None
        assert (record.status, record.exit_code, record.evidence) == (Status.lost, None, None)
        assert record.error is not None
        assert record.finished_at is not None


async def ends_unseen(directory: Path, more: str = "") -> int:
    """Have a job leave a process behind and end while nobody looks after it; return that one."""
    command = f"sleep 600 & echo $! $$ > pids; {UNTIL_GO}"
    killed_host(directory, f"await jobs.run({command!r}, 'gone'{more})\n{UNTIL_PIDS}")
    left, main = map(int, (directory / "pids").read_text().split())
    (directory / "go").touch()
    await has_gone(main)
    return left


async def test_what_a_job_left_behind_that_ended_unseen_is_ended(tmp_path: Path) -> None:
    left = await ends_unseen(tmp_path)
    async with asyncio.timeout(60), reopened(tmp_path) as jobs:
        assert (await jobs.wait("gone")).status is Status.lost
        await has_gone(left)


async def test_what_a_job_is_to_leave_behind_is_left_though_it_ended_unseen(
    tmp_path: Path,
) -> None:
    left = await ends_unseen(tmp_path, ", leftovers='leave'")
    async with reopened(tmp_path) as jobs:
        assert (await jobs.wait("gone")).status is Status.lost
    os.kill(left, signal.SIGKILL)  # it was there
    await has_gone(left)


async def test_after_a_restart_of_the_machine_its_jobs_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with host(tmp_path, started("sleeper", "import os, time\n" + WAIT_FOR_GO)):
        pass
    monkeypatch.setattr(tree, "boot_id", lambda: "another start")
    async with reopened(tmp_path) as jobs:
        record = await jobs.get_status("sleeper")
        assert record is not None
        assert (record.status, record.exit_code) == (Status.lost, None)
        assert "restarted" in str(record.error)
        assert record.last_pid is not None
        stranger = psutil.Process(record.last_pid)  # as far as anybody can tell after a reboot
        assert stranger.is_running()
    (tmp_path / "go").touch()
    await asyncio.to_thread(psutil.wait_procs, [stranger], 10)


async def test_a_pid_that_is_somebody_elses_by_now_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_host(tmp_path, started("sleeper", "import os, time\n" + WAIT_FOR_GO))
    look = tree.start_time
    monkeypatch.setattr(tree, "start_time", lambda pid: (look(pid) or 0) + 1)
    async with reopened(tmp_path) as jobs:
        record = await jobs.get_status("sleeper")
        assert record is not None
        assert record.status is Status.lost
        assert await jobs.stop("sleeper") == record
        assert record.last_pid is not None
        stranger = psutil.Process(record.last_pid)
        assert stranger.is_running()
    (tmp_path / "go").touch()
    await asyncio.to_thread(psutil.wait_procs, [stranger], 10)


DIE_BEFORE_START = """
import os
from anodejobs.executors.processes import Processes
async def start(self, *args, **options): os._exit(9)
Processes.start = start
"""
DIE_AFTER_START = """
import os
from anodejobs.executors.processes import Processes

real = Processes.start
async def start(self, *args, **options):
    await real(self, *args, **options)
    os._exit(9)
Processes.start = start
"""


async def crash(directory: Path, fault: str, command: str) -> None:
    code = fault + HOST.format(body=f"await jobs.run({python(command)!r}, 'doubtful')")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=directory)
    assert await process.wait() == 9


async def test_a_crash_between_record_and_start_leaves_a_lost_job(tmp_path: Path) -> None:
    await crash(tmp_path, DIE_BEFORE_START, "open('ran', 'a').write('once')")
    async with reopened(tmp_path) as jobs:
        record = await jobs.get_status("doubtful")
        assert record is not None
        assert (record.status, record.exit_code) == (Status.lost, None)
    assert not (tmp_path / "ran").exists()


async def test_a_crash_between_start_and_commit_finds_the_child(tmp_path: Path) -> None:
    command = "import os, time\nopen('ran', 'a').write('once')\nprint('hi', flush=True)\n"
    await crash(tmp_path, DIE_AFTER_START, command + WAIT_FOR_GO)
    async with reopened(tmp_path) as jobs:
        record = await jobs.get_status("doubtful")
        assert record is not None
        assert record.status is Status.running
        assert record.last_pid is not None
        assert record.started_at is not None
        (tmp_path / "go").touch()
        record = await jobs.wait("doubtful", timeout=60)
        assert record.status is (Status.finished if KERNEL_TELLS else Status.lost)
        assert await jobs.job_logs("doubtful") == ("hi\n", "")
    assert (tmp_path / "ran").read_text() == "once"


async def test_a_stop_that_was_cut_short_is_carried_out(tmp_path: Path) -> None:
    stubborn = "import signal, os, time\nsignal.signal(15, signal.SIG_IGN)\n"
    command = stubborn + "print('deaf', flush=True)\n" + WAIT_FOR_GO
    body = (
        started("stubborn", command, ", stop_grace=0.2")
        + """
async for chunk in jobs.follow("stubborn"): break
asyncio.ensure_future(jobs.stop("stubborn", grace=60))
await jobs.wait("stubborn", "stopping")"""
    )
    killed_host(tmp_path, body)
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("stubborn", timeout=60)
        if KERNEL_TELLS:
            assert (record.status, record.exit_code) == (Status.stopped, -9)


async def test_a_timeout_is_kept_over_the_change_of_supervisor(tmp_path: Path) -> None:
    command = "import os, time\n" + WAIT_FOR_GO
    killed_host(tmp_path, started("late", command, ", timeout=1.5"))
    async with reopened(tmp_path) as jobs:
        record = await jobs.wait("late", timeout=60)
        assert record.error == "timed out after 1.5 s" or not KERNEL_TELLS
        assert record.status is (Status.failed if KERNEL_TELLS else Status.lost)


async def test_a_paused_job_is_found_paused(tmp_path: Path) -> None:
    command = "import os, time\n" + WAIT_FOR_GO
    killed_host(tmp_path, started("still", command) + "\nawait jobs.pause('still')")
    async with reopened(tmp_path) as jobs:
        record = await jobs.get_status("still")
        assert record is not None
        assert record.status is Status.paused
        assert (await jobs.resume("still")).status is Status.running
        (tmp_path / "go").touch()
        assert (await jobs.wait("still", timeout=60)).is_done


async def test_what_another_kind_of_executor_has_is_left_to_that_one(tmp_path: Path) -> None:
    store = SqliteJobStore(tmp_path / "job_db" / "jobs.db")
    await store.open(lambda: None)
    await store.commit([make_insert(make_record("elsewhere", status="running"))])
    await store.close()
    async with reopened(tmp_path) as jobs:
        assert (await jobs.run("exit 3", "here")).status is Status.running
        assert (await jobs.wait("here", timeout=60)).exit_code == 3
        record = await jobs.get_status("elsewhere")
        assert record is not None
        assert record.status is Status.running


async def test_of_two_applications_that_open_at_once_one_adopts(tmp_path: Path) -> None:
    killed_host(tmp_path, started("writer", WRITER))
    async with reopened(tmp_path) as one, reopened(tmp_path) as other:
        await asyncio.gather(one.get_status("writer"), other.get_status("writer"))
        (tmp_path / "go").touch()
        records = await asyncio.gather(
            one.wait("writer", timeout=60), other.wait("writer", timeout=60)
        )
        assert records[0] == records[1]
        assert (await one.job_logs("writer"))[0] == NUMBERED
        assert (await whys(one, "writer")).count(ADOPTED) == 1


async def test_jobs_of_a_living_application_are_left_to_it(tmp_path: Path) -> None:
    with host(tmp_path, started("theirs", WRITER)):
        async with reopened(tmp_path) as jobs:
            record = await jobs.get_status("theirs")
            assert record is not None
            assert record.status is Status.running
            (tmp_path / "go").touch()
            record = await jobs.wait("theirs", timeout=60)
            # Only the parent could have seen this.
            assert (record.exit_code, record.evidence) == (7, "observed")
            assert (await jobs.job_logs("theirs"))[0] == NUMBERED


async def test_when_an_application_is_killed_another_that_lives_adopts_its_jobs(
    tmp_path: Path,
) -> None:
    with host(tmp_path, started("orphan", WRITER)) as process:
        async with reopened(tmp_path) as jobs:
            assert (await jobs.wait("orphan", Status.running)).status is Status.running
            waiting = asyncio.create_task(jobs.wait("orphan", timeout=60))
            process.kill()
            process.wait()
            await adoption(jobs, "orphan")
            (tmp_path / "go").touch()
            record = await waiting
            assert record.is_done
            assert (await jobs.job_logs("orphan"))[0] == NUMBERED


async def test_a_job_started_by_a_later_application_is_adopted_when_that_is_killed(
    tmp_path: Path,
) -> None:
    async with reopened(tmp_path) as jobs:
        with host(tmp_path, started("orphan", WRITER)) as process:
            waiting = asyncio.create_task(jobs.wait("orphan", timeout=60))
            await jobs.wait("orphan", Status.running)
            process.kill()
            process.wait()
            await adoption(jobs, "orphan")
            (tmp_path / "go").touch()
            assert (await waiting).is_done
            assert (await jobs.job_logs("orphan"))[0] == NUMBERED


async def test_closing_with_stop_leaves_what_was_adopted_to_the_shim(tmp_path: Path) -> None:
    killed_host(tmp_path, started("orphan", WRITER))
    options: dict[str, Any] = {"db_path": tmp_path / "job_db", "stop_grace": 1}
    async with Jobs(**options, on_close="stop") as jobs:
        await adoption(jobs, "orphan")
        await jobs.run(python(f"import os, time\n{WAIT_FOR_GO}"), "its own", cwd=tmp_path)
    async with Jobs(**options) as jobs:
        records = await jobs.list_status()
        assert records["its own"].status is Status.stopped
        assert records["orphan"].status is Status.running
        (tmp_path / "go").touch()
        assert (await jobs.wait("orphan", timeout=60)).attempt == 1
        assert (await jobs.job_logs("orphan"))[0] == NUMBERED


async def test_closing_without_a_shim_stops_what_was_adopted_too(tmp_path: Path) -> None:
    killed_host(tmp_path, started("orphan", WRITER))
    async with reopened(tmp_path) as jobs:
        await adoption(jobs, "orphan")
    async with reopened(tmp_path) as jobs:
        assert (await jobs.wait("orphan", timeout=60)).status is Status.stopped


START_LATE = """
await jobs.count()
print("ready", flush=True)
await asyncio.to_thread(sys.stdin.readline)
"""


@pytest.mark.parametrize("is_first", [True, False], ids=["whose turn it was", "another one"])
async def test_an_application_that_has_asked_for_no_job_adopts_those_of_one_that_is_killed(
    tmp_path: Path, is_first: bool
) -> None:
    theirs = host(tmp_path, START_LATE + started("orphan", WRITER))
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        process = stack.enter_context(theirs) if is_first else None
        jobs = await stack.enter_async_context(reopened(tmp_path))
        process = process or stack.enter_context(theirs)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("start\n")
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        process.kill()
        process.wait()
        await adoption(jobs, "orphan")
        (tmp_path / "go").touch()
        await jobs.wait("orphan")


async def test_only_pipes_that_were_made_for_the_job_are_opened(tmp_path: Path, jobs: Jobs) -> None:
    """To read another's pipe is to steal its bytes."""
    await jobs.run(python("import time; time.sleep(60)"), "reader")
    stored = await jobs._jobdb.stored("reader")
    stranger = dataclasses.replace(stored.attempt, pipes=(1, 2))
    executor = Processes()
    try:
        await executor.adopt(stored.launch, stranger)
        assert executor._held[stranger.token].pipes == {}
    finally:
        await executor.close()


def test_the_kernel_gives_the_exit_code_of_a_process_once_it_is_reaped() -> None:
    if not KERNEL_TELLS:
        pytest.skip("this kernel gives exit codes to parents only")
    process = subprocess.Popen(python("raise SystemExit(5)"))
    fd = os.pidfd_open(process.pid)
    assert pidfds.exit_code(fd) is None or process.poll() is not None
    process.wait()
    assert pidfds.exit_code(fd) == 5
    os.close(fd)
