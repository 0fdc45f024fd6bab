"""An attempt's own cgroup: made where it may be, entered first, emptied and removed at the end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anodejobs import Jobs, Status
from anodejobs.events import Attempt
from anodejobs.executors import cgroups, tree
from anodejobs.executors.limits import (
    AttemptLimits,
    limited,
    refusal,
    tree_settings,
    why_ended,
)
from tests.conftest import has_died, locker, python
from tests.test_recovery import KERNEL_TELLS
from tests.test_shim_recovery import kill_shim

LIMIT_S = 20
MIB = 1024 * 1024
TOP = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
V1 = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
# Leaves session, environment and parents.
ESCAPE = """
import os
r, w = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(1, b"%d\\n" % os.getpid())
        os.write(w, b".")
        os.execve("/bin/sleep", ["sleep", "1000"], {})
    os._exit(0)
os.wait()
os.read(r, 1)
"""


@pytest.fixture(scope="module")
def room() -> Path:
    """Return a cgroup in which others may be made."""
    try:
        return cgroups.parent_for(set(), None)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def parent(room: Path) -> Iterator[Path]:
    """A cgroup of the test's own, in which nothing may be left."""
    folder = room / f"test-{os.getpid()}"
    folder.mkdir()
    cgroups._sweep.cache_clear()
    yield folder
    left = [path for path in folder.iterdir() if path.is_dir()]
    assert cgroups.remove(str(folder), patience_s=5), f"left running in {folder}"
    assert not left


@contextmanager
def living_in(path: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have a process in the cgroup."""
    command = limited(["/bin/sh", "-c", "echo; exec sleep 1000"], AttemptLimits(), str(path))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.read(1) == b"\n"
            yield process
        finally:
            process.kill()


def made(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.name.startswith("anodejobs-"))


async def first_line(jobs: Jobs, job_id: str) -> str:
    async for chunk in jobs.follow(job_id, stderr=False):
        if chunk.text.endswith("\n"):
            return chunk.text.strip()
    raise AssertionError(await jobs.job_logs(job_id))


# Where it is made.


@pytest.mark.parametrize(
    ("mountinfo", "membership", "found"),
    [
        (TOP, "0::/a.slice/b.service\n", "/sys/fs/cgroup/a.slice/b.service"),
        (TOP, "0::/\n", "/sys/fs/cgroup"),
        (V1 + TOP, "4:memory:/x\n0::/a\n", "/sys/fs/cgroup/a"),
        # A container that is given a part of them, and one whose cgroup is not in sight.
        (TOP.replace(" / ", " /docker/c0 "), "0::/docker/c0/b\n", "/sys/fs/cgroup/b"),
        (TOP.replace(" / ", " /docker/c0 "), "0::/docker/c1\n", None),
        (TOP, "0::/../init.scope\n", None),
        (TOP.replace("fs/cgroup", r"fs/c\040group"), "0::/a\n", "/sys/fs/c group/a"),
        (V1, "4:memory:/x\n0::/\n", None),
        (TOP, "4:memory:/x\n", None),
    ],
)
def test_our_cgroup_is_found_in_what_is_mounted(mountinfo, membership, found):
    place = cgroups.home(mountinfo, membership)
    assert (place and str(place[0])) == found
    assert place is None or place[0].is_relative_to(place[1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a maker of folders that look like cgroups in which processes may be."""
    cgroups._sweep.cache_clear()

    def make(path: str = "here", has: str = "memory cpu pids", on: str = "", procs: str = ""):
        folder = tmp_path / path
        folder.mkdir()
        (folder / "cgroup.controllers").write_text(has)
        (folder / "cgroup.subtree_control").write_text(on)
        (folder / "cgroup.procs").write_text(procs)
        (folder / "cgroup.type").write_text("domain\n")
        return folder

    return make


def test_settings_are_written_into_a_cgroup_where_controllers_are_on(folder):
    here = folder(on="memory cpu pids", procs="")
    path = cgroups.create("a", {"memory.max": "7", "cpu.max": "1 2"}, str(here))
    assert path == str(here / "anodejobs-a")
    assert {file.name: file.read_text() for file in Path(path).iterdir()} == {
        "memory.max": "7",
        "cpu.max": "1 2",
    }
    assert (here / "cgroup.subtree_control").read_text() == "memory cpu pids"


def test_a_controller_that_is_off_is_put_on(folder):
    here = folder(on="cpu")
    assert cgroups.parent_for({"cpu", "memory"}, str(here), is_trial=True) == here
    assert (here / "cgroup.subtree_control").read_text() == "cpu"
    assert cgroups.parent_for({"cpu", "memory"}, str(here)) == here
    assert (here / "cgroup.subtree_control").read_text() == "+memory"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"has": "cpu pids"}, "it lacks memory"),
        ({"procs": "1\n2\n"}, "processes are in it"),
    ],
)
def test_a_cgroup_that_cannot_be_limited_is_refused_with_what_to_do(folder, fields, why):
    here = folder(**fields)
    with pytest.raises(ValueError, match=f"limit memory: {here}: {why} .Delegate=yes"):
        cgroups.create("a", {"memory.max": "7"}, str(here))
    assert not list(here.glob("anodejobs-*"))


def test_what_is_no_cgroup_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a cgroup v2"):
        cgroups.create("a", {}, str(tmp_path))


def test_the_one_above_ours_will_do_and_one_of_systemds_own_will_not(folder, monkeypatch):
    above = folder()
    ours = folder("here/ours", procs="1\n")
    monkeypatch.setattr(cgroups, "_surroundings", lambda: [ours, above])
    monkeypatch.setattr(cgroups, "_is_delegated", lambda folder: True)
    assert cgroups.parent_for({"memory"}, None) == above
    monkeypatch.setattr(cgroups, "_is_delegated", lambda folder: folder == ours)
    with pytest.raises(ValueError, match=f"ours: processes are in it; {above}: systemd's own"):
        cgroups.parent_for({"memory"}, None)
    # Named, it is the user's to know.
    assert cgroups.parent_for({"memory"}, str(above)) == above


def test_what_was_left_behind_is_removed_once_it_is_old(parent):
    old, young, lived_in = (parent / f"anodejobs-{name}" for name in ("old", "young", "in"))
    for path in (old, young, lived_in):
        path.mkdir()
    (old / "deeper").mkdir()
    for path in (old, lived_in):
        os.utime(path, (0, time.time() - 2 * cgroups._ABANDONED_AFTER_S))
    with living_in(lived_in):
        created = cgroups.create("new", {}, str(parent))
        assert made(parent) == [lived_in, Path(created), young]
    for path in made(parent):
        assert cgroups.remove(str(path), patience_s=5)


@pytest.fixture
def controller(room: Path) -> Iterator[str]:
    """A controller of the kernel's that the test's own cgroup has."""
    off = cgroups._words(room / "cgroup.controllers") - cgroups._words(
        room / "cgroup.subtree_control"
    )
    # One that minds no processes beside it would not do.
    name = next(iter(off - {"cpu", "pids", "cpuset", "perf_event"}), None)
    if name is None:
        pytest.skip("there is none that nobody uses")
    yield name
    (room / "cgroup.subtree_control").write_text(f"-{name}")


def test_the_kernel_has_controllers_put_on_where_no_process_is(room, controller, request):
    assert cgroups.parent_for({controller}, None) == room
    parent = request.getfixturevalue("parent")
    with living_in(parent):
        with pytest.raises(ValueError, match=f"{parent}: processes are in it"):
            cgroups.parent_for({controller}, str(parent))
        # So says the kernel.
        assert cgroups._enable(parent, {controller}) == f"{os.strerror(16)} to enable {controller}"
    path = Path(cgroups.create("a", {}, str(cgroups.parent_for({controller}, str(parent)))))
    assert cgroups._words(path / "cgroup.controllers") == {controller}
    assert cgroups.remove(str(path), patience_s=0)


# What is set.


def test_limits_of_a_whole_job_are_settings_of_its_cgroup():
    limits = AttemptLimits(memory_max=64 * MIB, cpus=1.5, tasks_max=20, open_files=9)
    assert limits.is_grouped and tree_settings(limits) == {
        "memory.max": str(64 * MIB),
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "pids.max": "20",
    }
    assert tree_settings(AttemptLimits(cpus=0.01)) == {"cpu.max": "1000 100000"}


def test_a_job_has_a_cgroup_only_if_it_needs_one():
    assert AttemptLimits(cgroup_parent="/x").is_grouped
    assert tree_settings(AttemptLimits(cgroup_parent="/x")) == {}
    assert not AttemptLimits(memory_bytes=1, processes=1, cpu_seconds=1).is_grouped


def test_a_cgroup_that_cannot_be_entered_is_no_start(tmp_path):
    command = limited(["true"], AttemptLimits(open_files=40), str(tmp_path / "none"))
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    reason = refusal(ran.returncode, ran.stderr)
    assert reason is not None and f"to enter the cgroup {tmp_path / 'none'}" in reason


# What it tells.


def test_a_cgroup_counts_what_its_processes_use(tmp_path):
    files = {
        "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\n",
        "memory.peak": "4096\n",
        "memory.max": "8192\n",
        "memory.events": "low 0\noom 1\noom_kill 3\n",
    }
    assert cgroups.account(str(tmp_path)) == cgroups.Account()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cgroups.account(str(tmp_path)) == cgroups.Account(
        cpu_seconds=1.5, peak_memory_bytes=4096, memory_max=8192, oom_kills=3
    )
    # The machine was short of memory, not the job.
    (tmp_path / "memory.events").write_text("oom 0\noom_kill 3\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroups.account(str(tmp_path)) == cgroups.Account(
        cpu_seconds=1.5, peak_memory_bytes=4096
    )


def test_a_job_out_of_memory_is_told_of_its_limit():
    limits = AttemptLimits(memory_max=3 * MIB // 2)
    expected = "exceeded its memory limit: 1.5 MiB for all of its processes"
    assert why_ended(limits, -9, oom_kills=1) == expected
    assert why_ended(limits, -9) is None
    assert why_ended(limits, 0, oom_kills=1) is None


# For real.


async def test_a_job_is_in_its_cgroup_from_its_first_instruction_on(parent, jobs, tmp_path):
    await jobs.run(
        ["/bin/cat", "/proc/self/cgroup"], job_id="a", limits={"cgroup_parent": str(parent)}
    )
    assert (await jobs.wait("a", timeout=LIMIT_S)).error is None
    assert f"/{parent.name}/anodejobs-" in (await jobs.job_logs("a"))[0]
    await over(jobs, tmp_path)


async def test_what_has_left_session_environment_and_parents_is_stopped(parent, jobs, tmp_path):
    code = f"{ESCAPE}\nimport time; time.sleep(1000)"
    await jobs.run(python(code), job_id="a", limits={"cgroup_parent": str(parent)})
    pid = int(await first_line(jobs, "a"))
    assert (await jobs.usage("a")).processes == 2
    stopped = await jobs.stop("a")
    assert stopped is not None and stopped.status == Status.stopped
    assert has_died(pid, within_s=0)
    await over(jobs, tmp_path)


async def test_what_has_left_everything_does_not_outlive_its_job(parent, jobs, tmp_path):
    await jobs.run(python(ESCAPE), job_id="a", limits={"cgroup_parent": str(parent)})
    pid = int(await first_line(jobs, "a"))
    await jobs.wait("a", Status.finished, timeout=LIMIT_S)
    assert await asyncio.to_thread(has_died, pid, LIMIT_S)
    await over(jobs, tmp_path)


async def test_what_no_signal_reaches_is_killed_with_its_cgroup(tmp_path, parent, monkeypatch):
    """As it is where processes are forked more quickly than they can be looked at."""
    if not (parent / "cgroup.kill").exists():
        pytest.skip("Linux 5.14 has it")
    async with Jobs(tmp_path / "job_db", executor="inline") as jobs:
        await jobs.run("echo; sleep 1000 & wait", job_id="a", limits={"cgroup_parent": str(parent)})
        await first_line(jobs, "a")
        monkeypatch.setattr(tree, "send", lambda process, signum: True)
        stopped = await jobs.stop("a", grace=0)
    assert stopped is not None and (stopped.status, stopped.exit_code) == (Status.stopped, -9)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("true", {}),
        ("exit 3", {}),
        ("kill -9 $$", {}),
        ("true", {"cwd": "/no/such/folder"}),
        (["/no/such/program"], {}),
        ("mkdir $(sed -n 's/^0:://p' /proc/self/cgroup | sed 's,^,{top},')/deeper", {}),
    ],
    ids=["finished", "failed", "killed", "not started", "not executed", "with one below"],
)
async def test_nothing_is_left_of_it(parent, jobs, tmp_path, command, options):
    if isinstance(command, str):
        top = cgroups.home(Path("/proc/self/mountinfo").read_text(), "0::/\n")
        command = command.replace("{top}", str(top and top[1]))
    limits = {"cgroup_parent": str(parent)}
    await jobs.run(command, job_id="a", limits=limits, **options)
    await jobs.wait("a", timeout=LIMIT_S)
    await over(jobs, tmp_path)
    assert not made(parent)


async def test_where_something_was_to_live_on_it_is_removed_after_that(parent, tmp_path):
    options = {"limits": {"cgroup_parent": str(parent)}, "leftovers": "leave"}
    async with Jobs(tmp_path / "job_db", executor="inline") as jobs:
        await jobs.run("sleep 1000 & exit 0", job_id="a", **options)
        await jobs.wait("a", Status.finished, timeout=LIMIT_S)
    (left,) = made(parent)
    assert cgroups.end(str(left), patience_s=LIMIT_S)
    async with Jobs(tmp_path / "job_db", executor="inline") as jobs:
        await jobs.run("true", job_id="b", **options)
        await jobs.wait("b", Status.finished, timeout=LIMIT_S)
    assert not made(parent)


async def over(jobs: Jobs, directory: Path) -> None:
    """Close, and return when all that was put off until now is done."""
    lock = directory / "job_db/shim/lock"
    pid = locker(lock) if lock.exists() else None
    await jobs.close()
    assert pid is None or await asyncio.to_thread(has_died, pid, LIMIT_S)


async def test_a_shim_that_takes_over_finds_the_cgroup_of_its_job(parent, tmp_path):
    async with Jobs(tmp_path / "job_db") as jobs:
        code = f"{ESCAPE}\nimport time; time.sleep(1000)"
        await jobs.run(python(code), job_id="a", limits={"cgroup_parent": str(parent)})
        pid = int(await first_line(jobs, "a"))
        assert made(parent)
        kill_shim(tmp_path)
        stopped = await jobs.stop("a")
        expected = Status.stopped if KERNEL_TELLS else Status.lost
        assert stopped is not None and stopped.status == expected
        assert has_died(pid, within_s=0)
        await over(jobs, tmp_path)
    assert not made(parent)


def test_a_process_of_which_only_the_token_is_known_has_its_cgroup_found(parent):
    path = cgroups.create("t0", {}, str(parent))
    with living_in(path) as process:
        assert cgroups.of(process.pid, "t0") == path
        assert cgroups.of(process.pid, "t1") is None
        assert not cgroups.remove(path, patience_s=0)
        (member,) = tree.take_snapshot().members(
            Attempt(token="0" * 32, supervisor="", cgroup=path)
        )
        assert member.pid == process.pid
    assert cgroups.remove(path, patience_s=5)


@pytest.mark.parametrize(
    ("limits", "file", "value"),
    [
        ({"memory_max": 40 * MIB}, "memory.max", str(40 * MIB)),
        ({"cpus": 0.5}, "cpu.max", "50000 100000"),
        ({"tasks_max": 5}, "pids.max", "5"),
    ],
    ids=["memory", "cpu", "pids"],
)
async def test_a_limit_is_set_where_the_system_can_and_the_start_refused_elsewhere(
    jobs, limits, file, value
):
    controller = file.partition(".")[0]
    command = f"cat {{top}}$(sed -n 's/^0:://p' /proc/self/cgroup)/{file}"
    place = cgroups.home(Path("/proc/self/mountinfo").read_text(), "0::/\n")
    record = await jobs.run(
        command.replace("{top}", str(place and place[1])), job_id="a", limits=limits
    )
    if can_limit(controller):
        assert (await jobs.wait("a", timeout=LIMIT_S)).error is None
        assert await jobs.job_logs("a") == (f"{value}\n", "")
    else:
        assert record.status == Status.failed_start
        assert record.error is not None
        assert record.error.startswith(f"no cgroup can be made to limit {controller}: ")
        assert "cgroup_parent" in record.error


def can_limit(controller: str) -> bool:
    try:
        cgroups.parent_for({controller}, None, is_trial=True)
    except ValueError:
        return False
    return True


GREEDY = {
    "memory": ({"memory_max": 40 * MIB}, "x = bytearray(10**9)", "exceeded its memory limit"),
    "pids": (
        {"tasks_max": 3},
        "import os; [os.fork() or __import__('time').sleep(1000) for _ in range(9)]",
        "probably over its processes: limited to 3",
    ),
}


@pytest.mark.parametrize("controller", GREEDY)
async def test_a_job_over_a_limit_of_the_whole_ends_and_says_so(jobs, controller):
    limits, code, reason = GREEDY[controller]
    record = await jobs.run(python(code), job_id="a", limits=limits)
    if not can_limit(controller):
        assert record.status == Status.failed_start
        return
    record = await jobs.wait("a", Status.failed, timeout=LIMIT_S)
    assert record.error is not None and record.error.startswith(reason)
