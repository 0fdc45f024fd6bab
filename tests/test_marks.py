"""Whose a process is: no process of a job escapes its end, and no stranger is taken for one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from anodejobs import Jobs, Status
from anodejobs.events import Attempt
from anodejobs.executors import shim_start, tree
from anodejobs.executors.base import new_token
from anodejobs.executors.marks import read_tag, tag_of
from tests.conftest import python

pytestmark = pytest.mark.skipif(
    not tree.IS_LINUX, reason="only Linux has marks that cannot be dropped"
)

LIMIT_S = 60.0

# Each leaves so many processes besides its own, all of which tell their pids.
ESCAPES = {
    "a session of its own": (1, "os.fork() or (os.setsid(), here())"),
    "a double fork": (1, "os.fork() or (os.fork() or here(), os._exit(0)); os.wait()"),
    "a daemon": (
        1,
        """
        if not os.fork():
            os.setsid()
            os.fork() and os._exit(0)
            os.closerange(0, 256)
            os.chdir("/")
            here()
        os.wait()
        """,
    ),
    "an empty environment": (1, "os.fork() or (os.setsid(), bare())"),
    "a daemon with closed descriptors and an empty environment": (
        1,
        """
        if not os.fork():
            os.setsid()
            os.fork() and os._exit(0)
            os.closerange(0, 256)
            bare()
        os.wait()
        """,
    ),
    "an orphan's orphan": (
        2,
        """
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.setsid()
                os.fork() or bare()
                here()
            os._exit(0)
        os.wait()
        """,
    ),
    "deaf to SIGTERM": (
        1,
        """
        if not os.fork():
            os.setsid()
            os.fork() and os._exit(0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            bare()
        os.wait()
        """,
    ),
    "a forged environment": (
        1,
        """
        os.fork() or (os.setsid(), bare(ANODEJOBS_TOKEN="0" * 32, ANODEJOBS_JOB_ID="b"))
        """,
    ),
}
PRELUDE = """
import os, signal, sys, time
pipe = os.path.abspath("pids")
def here():
    with open(pipe, "w") as file:
        file.write(f"{sys.argv[1]} {os.getpid()}\\n")
    while True:
        time.sleep(600)
def bare(**environment):
    tell = 'echo "$1" $$ > "$2"; exec sleep 600'
    os.execve("/bin/sh", ["sh", "-c", tell, "sh", sys.argv[1], pipe], environment)
"""


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    async with Jobs(tmp_path / "job_db", stop_grace=0.2, on_close="stop") as jobs:
        yield jobs


# Escaping.


@pytest.mark.parametrize(("number", "code"), ESCAPES.values(), ids=ESCAPES)
async def test_what_escapes_is_ended_with_its_job_and_no_other_jobs_is(
    jobs: Jobs, pids: Pids, number: int, code: str
) -> None:
    for job_id in ("a", "b"):
        await run(jobs, job_id, f"{dedent(code)}\nhere()")
    await pids.told(a=number + 1, b=number + 1)
    await stop(jobs, "a")
    assert living(pids.of("b")) == pids.of("b")
    assert living(pids.of("a")) == set()
    await stop(jobs, "b")
    assert living(pids.of("b")) == set()


@pytest.mark.parametrize(("number", "code"), ESCAPES.values(), ids=ESCAPES)
async def test_what_escapes_and_is_left_behind_is_ended_and_no_other_jobs_is(
    jobs: Jobs, pids: Pids, tmp_path: Path, number: int, code: str
) -> None:
    await run(jobs, "b", f"{dedent(code)}\nhere()")
    await pids.told(b=number + 1)
    os.mkfifo(tmp_path / "go")
    await run(jobs, "a", f"{dedent(code)}\nopen('go').read()\nsys.exit(5)")
    await pids.told(a=number)
    (tmp_path / "go").write_text("")
    assert (await jobs.wait("a", timeout=LIMIT_S)).exit_code == 5
    await seen(lambda: not living(pids.of("a")))
    assert living(pids.of("b")) == pids.of("b")


async def test_what_has_escaped_counts_as_the_jobs(jobs: Jobs, pids: Pids) -> None:
    number, code = ESCAPES["an orphan's orphan"]
    await run(jobs, "a", f"{dedent(code)}\nhere()")
    await run(jobs, "b", "here()")
    await pids.told(a=number + 1, b=1)
    assert (await jobs.usage("a")).processes == number + 1
    assert (await jobs.usage("b")).processes == 1


async def test_what_has_escaped_is_paused_with_its_job(jobs: Jobs, pids: Pids) -> None:
    number, code = ESCAPES["a daemon with closed descriptors and an empty environment"]
    await run(jobs, "a", f"{dedent(code)}\nhere()")
    await pids.told(a=number + 1)
    await jobs.pause("a")
    processes = [psutil.Process(pid) for pid in pids.of("a")]
    await seen(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})


async def test_what_has_escaped_is_ended_though_another_shim_started_it(
    jobs: Jobs, pids: Pids, tmp_path: Path
) -> None:
    number, code = ESCAPES["a daemon with closed descriptors and an empty environment"]
    await run(jobs, "a", f"{dedent(code)}\nhere()")
    await pids.told(a=number + 1)
    first = shim_of(tmp_path)
    os.kill(first, 9)
    await seen(lambda: shim_of(tmp_path) != first)
    await stop(jobs, "a")
    assert living(pids.of("a")) == set()


# The marks.


def test_no_two_attempts_are_likely_to_have_the_same_mark() -> None:
    assert len({tag_of(new_token()) for _ in range(10_000)}) == 10_000


def test_a_process_that_nobody_marked_has_no_mark() -> None:
    assert read_tag(os.getpid()) is None
    assert read_tag(1) is None


def test_a_process_that_is_gone_has_no_mark() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    assert read_tag(process.pid) is None


async def test_every_job_bears_its_own_mark_however_many_start_at_once(jobs: Jobs) -> None:
    ids = [f"job-{number}" for number in range(40)]
    records = await asyncio.gather(*(jobs.run("exec sleep 600", i) for i in ids))
    tokens = [(await jobs._jobdb.stored(i)).attempt.token for i in ids]
    assert [read_tag(r.last_pid or 0) for r in records] == [tag_of(token) for token in tokens]


async def test_the_shim_bears_no_mark_once_it_has_started_a_job(jobs: Jobs, tmp_path: Path) -> None:
    await asyncio.gather(*(jobs.run("exec sleep 600", f"job-{n}") for n in range(10)))
    await jobs.signal("job-0", "SIGCONT")  # its turn is over once it answers another question
    assert read_tag(shim_of(tmp_path)) is None


async def test_a_process_that_bears_a_mark_only_while_it_spawns_is_no_part_of_the_job() -> None:
    me = tree.take_snapshot().processes[os.getpid()]
    marked = tree.Process(me.pid, me.start_time, me.parent, me.session, None, tag_of("0" * 32))
    snapshot = tree.Snapshot({me.pid: marked})
    assert snapshot.members(Attempt(token="0" * 32, supervisor="")) == []


@pytest.mark.smoke
async def test_a_shim_that_still_bears_the_mark_of_a_job_is_not_ended_with_it(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may be kept from taking it off for long, on a busy machine."""
    in_shims(monkeypatch, "import anodejobs.executors.marks as m;m.Marking.unmark=lambda self:None")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    await jobs.run("read _ < gate; exit 4", "other", cwd=tmp_path)
    await jobs.run("exit 3", "short")
    assert (await jobs.wait("short", timeout=LIMIT_S)).exit_code == 3
    shim = shim_of(tmp_path)
    assert read_tag(shim) is not None
    await jobs.run("exec sleep 600", "stopped")
    assert (await jobs.usage("stopped")).processes == 1
    stopped = await jobs.stop("stopped")
    assert stopped is not None and stopped.status is Status.stopped
    await jobs.run("exec sleep 600", "restarted")
    await jobs.restart("restarted")  # what it left is looked for before it begins anew
    assert shim_of(tmp_path) == shim
    await asyncio.to_thread(gate.write_text, "go\n")
    assert (await jobs.wait("other", timeout=LIMIT_S)).exit_code == 4


async def test_marking_leaves_the_process_as_it_was() -> None:
    code = f"""
    import os, subprocess
    from pathlib import Path
    from anodejobs.executors.marks import Marking, read_tag
    def state():
        return read_tag(os.getpid()), Path("/proc/self/oom_score_adj").read_text()
    before = state()
    marking = Marking()
    marking.mark("{"1" * 32}")
    child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    for _ in range(2):
        marking.unmark()
    now = state()
    other = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    tags = read_tag(child.pid), read_tag(other.pid)
    for process in (child, other):
        process.communicate()
    assert now == before, (now, before)
    assert tags == ({tag_of("1" * 32)}, None)
    for _ in range(2):
        marking.close()
    """
    await ran(code)


async def test_what_has_a_limit_already_is_not_marked() -> None:
    """It is the process's own, and would be changed."""
    code = f"""
    import resource
    from anodejobs.executors.marks import Marking
    resource.setrlimit(resource.RLIMIT_RTTIME, (5_000_000, 6_000_000))
    marking = Marking()
    for change in (lambda: marking.mark("{"1" * 32}"), marking.unmark, marking.close):
        change()
        assert resource.getrlimit(resource.RLIMIT_RTTIME) == (5_000_000, 6_000_000)
    """
    await ran(code)


async def test_where_the_limit_cannot_be_set_nothing_is_marked() -> None:
    """As in gVisor, which tells what it is."""
    code = f"""
    import os, resource
    from anodejobs.executors.marks import Marking, read_tag
    def refuse(*_):
        raise ValueError("not allowed to raise maximum limit")
    resource.setrlimit = refuse
    marking = Marking()
    for change in (lambda: marking.mark("{"1" * 32}"), marking.unmark, marking.close):
        change()
        assert read_tag(os.getpid()) is None
    """
    await ran(code)


async def test_a_job_is_ended_for_memory_sooner_than_its_shim(jobs: Jobs, tmp_path: Path) -> None:
    record = await jobs.run("exec sleep 600", "a")
    await jobs.signal("a", "SIGCONT")  # its turn is over once it answers another question
    scores = [
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in (record.last_pid, shim_of(tmp_path), os.getpid())
    ]
    assert scores[0] > scores[1] == scores[2]


async def test_a_process_that_runs_jobs_itself_is_not_marked(tmp_path: Path) -> None:
    async with Jobs(tmp_path / "job_db", stop_grace=0.2, executor="inline") as jobs:
        record = await jobs.run("exec sleep 600", "a")
        assert read_tag(os.getpid()) is None
        assert read_tag(record.last_pid or 0) is None


# Orphans.

REAPER = """
import os, signal, subprocess, sys
from anodejobs.shim.orphans import OrphanReaper, become_reaper
become_reaper()
known, starting = set(), set()
reaper = OrphanReaper(lambda: set(known), lambda: set(starting))

def dead_child(code=7):
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {code}"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid

def dead_orphan():
    (told, tell), (gate, hold) = os.pipe(), os.pipe()
    os.set_inheritable(tell, True)
    os.set_inheritable(gate, True)
    script = f"(read _ <&{gate}; exit 9) & echo $! >&{tell}"
    os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", script], {}), 0)
    os.close(hold)  # it goes when its parent has gone
    pid = int(os.read(told, 100))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid

def is_there(pid):
    return os.path.exists(f"/proc/{pid}")
"""


async def test_a_dead_orphan_is_reaped_at_the_second_look() -> None:
    await ran(
        REAPER,
        """
        orphan = dead_orphan()
        reaper.sweep()
        assert is_there(orphan)
        reaper.sweep()
        assert not is_there(orphan)
        """,
    )


async def test_a_child_that_has_an_owner_is_never_reaped() -> None:
    await ran(
        REAPER,
        """
        child = dead_child(7)
        known.add(child)
        for _ in range(5):
            reaper.sweep()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        """,
    )


async def test_nothing_is_reaped_while_a_start_is_under_way_that_was_so_at_the_look() -> None:
    await ran(
        REAPER,
        """
        starting.add("a")
        child = dead_child()  # of that start, as far as can be known
        orphan = dead_orphan()
        for _ in range(5):
            reaper.sweep()
        assert is_there(orphan) and is_there(child)
        known.add(child)  # the start has returned
        starting.clear()
        for _ in range(2):
            reaper.sweep()
        assert not is_there(orphan)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        """,
    )


async def test_starts_that_come_and_go_do_not_keep_orphans_for_ever() -> None:
    await ran(
        REAPER,
        """
        orphan = dead_orphan()
        for number in range(3):
            starting.clear()
            starting.add(number)
            reaper.sweep()
        assert not is_there(orphan)
        """,
    )


async def test_living_orphans_are_left_alone() -> None:
    await ran(
        REAPER,
        """
        told, tell = os.pipe()
        os.set_inheritable(tell, True)
        script = f"sleep 600 & echo $! >&{tell}"
        os.waitpid(os.posix_spawn("/bin/sh", ["/bin/sh", "-c", script], os.environ), 0)
        orphan, dead = int(os.read(told, 100)), dead_orphan()
        for _ in range(3):
            reaper.sweep()
        assert is_there(orphan) and not is_there(dead)
        os.kill(orphan, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(orphan, 0)[1]) == -9
        """,
    )


async def test_without_children_there_is_nothing_to_be_reaped() -> None:
    await ran(REAPER, "reaper.sweep(); reaper.sweep()")


async def test_the_shim_reaps_what_its_jobs_leave(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_often(monkeypatch)
    await jobs.run("exec sleep 600", "stays")
    for number in range(5):
        await jobs.run("(setsid sh -c 'exit 9' &); exit 3", f"job-{number}")
    await jobs.wait_all([f"job-{number}" for number in range(5)], timeout=LIMIT_S)
    parent = psutil.Process(shim_of(tmp_path))

    def states() -> list[str]:
        with contextlib.suppress(psutil.NoSuchProcess):  # reaped this moment
            return [child.status() for child in parent.children()]
        return []

    await seen(lambda: states() == ["sleeping"])


async def test_no_exit_code_is_taken_by_the_reaping_of_orphans(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_often(monkeypatch)
    ids = [f"job-{number}" for number in range(300)]
    command = "(setsid sleep 0.0{0} &); exit {1}"
    await asyncio.gather(*(jobs.run(command.format(n % 7, n % 256), i) for n, i in enumerate(ids)))
    records = await jobs.wait_all(ids, timeout=LIMIT_S)
    codes = [records[i].exit_code for i in ids]
    assert codes == [number % 256 for number in range(300)]
    assert Counter(record.evidence for record in records.values()) == {"observed": 300}


# Jobs that have jobs.

NESTED = """
import asyncio, os
from anodejobs import Jobs

async def main():
    async with Jobs("inner_db", stop_grace=1, executor="{executor}", on_close="stop") as jobs:
        {body}

asyncio.run(main())
"""


async def test_a_job_may_run_jobs_of_its_own(jobs: Jobs, tmp_path: Path) -> None:
    body = """
        await jobs.run("(setsid sleep 600 &); exit 5", "short")
        await jobs.run("exec sleep 600", "long")
        print((await jobs.wait("short", timeout=60)).exit_code)
        print((await jobs.stop("long")).status)
    """
    code = NESTED.format(executor="inline", body=body.strip())
    await jobs.run([sys.executable, "-c", code], "outer", cwd=tmp_path)
    record = await jobs.wait("outer", timeout=LIMIT_S)
    stdout, stderr = await jobs.job_logs("outer")
    assert (record.exit_code, stdout, stderr) == (0, "5\nstopped\n", "")


async def test_the_children_of_a_job_are_ended_with_it_though_they_are_jobs(
    jobs: Jobs, pids: Pids
) -> None:
    await run_nested(jobs, "inline", dedent(ESCAPES["an empty environment"][1]) + "\nhere()")
    await pids.told(inner=2)
    await stop(jobs, "outer")
    assert living(pids.of("inner")) == set()


async def test_a_shim_that_a_job_has_started_goes_on_without_it_and_so_do_all_jobs_of_the_shim(
    jobs: Jobs, pids: Pids, tmp_path: Path
) -> None:
    await run_nested(jobs, "shim", "here()")
    await pids.told(inner=1)
    async with Jobs(tmp_path / "inner_db", stop_grace=0.2, on_close="stop") as others:
        await run(others, "other", "here()")
        await pids.told(inner=1, other=1)
        assert (await jobs.usage("outer")).processes == 1
        await stop(jobs, "outer")
        for job_id in ("inner", "other"):
            assert living(pids.of(job_id)) == pids.of(job_id)
            await stop(others, job_id)


# What the tests above are written with.


class Pids:
    """Hears the pids that the processes of jobs tell."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._told: dict[str, set[int]] = {}
        self._heard = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._hear)

    def _hear(self) -> None:
        for line in os.read(self._fd, 65536).decode().splitlines():
            name, pid = line.split()
            self._told.setdefault(name, set()).add(int(pid))
        self._heard.set()

    def of(self, name: str) -> set[int]:
        return set(self._told.get(name, ()))

    async def told(self, **numbers: int) -> None:
        """Return once so many processes of each job have told their pids."""
        async with asyncio.timeout(LIMIT_S):
            while {name: len(self.of(name)) for name in numbers} != numbers:
                self._heard.clear()
                await self._heard.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


@pytest.fixture
async def pids(tmp_path: Path) -> AsyncIterator[Pids]:
    pids = Pids(tmp_path / "pids")
    yield pids
    pids.close()


async def run(jobs: Jobs, job_id: str, code: str) -> None:
    """Start a job whose processes tell their pids, by ``here()``, and stay."""
    await jobs.run([*python(PRELUDE + code), job_id], job_id, cwd=jobs.db_path.parent)


async def run_nested(jobs: Jobs, executor: str, code: str) -> None:
    """Start the job ``outer``, which starts the job ``inner`` as ``run`` would, and stays."""
    job = [*python(PRELUDE + code), "inner"]
    body = f"await jobs.run({job!r}, 'inner'); await asyncio.Event().wait()"
    program = NESTED.format(executor=executor, body=body)
    await jobs.run([sys.executable, "-c", program], "outer", cwd=jobs.db_path.parent)


async def stop(jobs: Jobs, job_id: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        record = await jobs.stop(job_id)
    assert record is not None and record.status is Status.stopped


def living(pids: set[int]) -> set[int]:
    """Return those that run; one that nobody has reaped does not."""
    return {pid for pid in pids if tree.start_time(pid) is not None}


def shim_of(folder: Path) -> int:
    return int((folder / "job_db" / "shim" / "lock").read_text() or 0)


def sweep_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the shim look for orphans all the time."""
    in_shims(monkeypatch, "import anodejobs.shim.server as s;s._SWEEP_EVERY_S=0.002")


def in_shims(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have shims run the line before they begin."""
    bootstrap = f"{shim_start._BOOTSTRAP.removesuffix('main()')}{code};main()"
    monkeypatch.setattr(shim_start, "_BOOTSTRAP", bootstrap)


async def seen(holds: Callable[[], bool]) -> None:
    """Return once it holds: a look again and again, since no process is told of another's state."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def ran(*parts: str) -> None:
    """Run a program, and fail where it does."""
    command = [sys.executable, "-W", "error", "-c", "".join(map(dedent, parts))]
    program = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert program.returncode == 0, program.stderr
