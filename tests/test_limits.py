"""Limits hold for the job's process, which is otherwise what it would be without them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from anodejobs import Status
from anodejobs.errors import InvalidJob
from anodejobs.executors import limits as limits_module
from anodejobs.executors.limits import AttemptLimits, limited, refusal, why_ended
from anodejobs.limits import Limits, check_limits
from tests.conftest import has_died, python

pytestmark = pytest.mark.outer

MIB = 1024 * 1024
IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
NOBODY = 65534


@pytest.fixture(params=["tools", "helper"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What sets the limits: the system's tools, or our own program where these are missing."""
    if request.param == "helper":
        monkeypatch.setattr(limits_module, "_tool", lambda name: None)
    elif not all(map(limits_module._tool, ("prlimit", "nice", "setpriv"))):
        pytest.skip("this system lacks the tools")
    return str(request.param)


def run(argv: list[str], limits: AttemptLimits, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command under limits."""
    return subprocess.run(
        limited(argv, limits), capture_output=True, text=True, check=False, **options
    )


def told(code: str, limits: AttemptLimits) -> Any:
    """Return what an expression comes to in a process under limits."""
    ran = run(python(f"import json, os, resource; print(json.dumps({code}))"), limits)
    assert (ran.returncode, ran.stderr) == (0, "")
    return json.loads(ran.stdout)


# What is set.


def test_without_limits_the_command_is_the_command():
    assert limited(["echo", "hi"], AttemptLimits()) == ["echo", "hi"]


def test_open_files_are_limited(way):
    limits = AttemptLimits(open_files=40)
    assert told("resource.getrlimit(resource.RLIMIT_NOFILE)", limits) == [40, 40]


def test_a_process_over_its_open_files_is_refused_more(way):
    code = "import os; fds = [os.open('/dev/null', os.O_RDONLY) for _ in range(40)]"
    limits = AttemptLimits(open_files=40)
    ran = run(python(code), limits)
    assert ran.returncode == 1
    reason = why_ended(limits, ran.returncode, stderr_tail=ran.stderr)
    expected = "probably over its open files: limited to 40, and it says "
    assert reason is not None and reason.startswith(expected) and "OSError: [Errno 24]" in reason


def test_a_process_over_its_memory_says_so(way):
    limits = AttemptLimits(memory_bytes=200 * MIB)
    ran = run(python("x = bytearray(300 * 2**20)"), limits)
    assert ran.returncode == 1
    assert why_ended(limits, ran.returncode, stderr_tail=ran.stderr) == (
        "probably over its memory: limited to 200 MiB, and it says 'MemoryError'"
    )


def test_memory_within_the_limit_can_be_used(way):
    assert told("len(bytearray(100 * 2**20))", AttemptLimits(memory_bytes=200 * MIB)) == 100 * MIB


def test_a_process_over_its_cpu_time_is_ended_and_the_reason_known(way):
    limits = AttemptLimits(cpu_seconds=1)
    ran = run(python("while True: pass"), limits)
    assert ran.returncode == -signal.SIGXCPU
    assert why_ended(limits, ran.returncode) == "over its CPU time: limited to 1 s"


def test_a_shell_whose_command_was_over_its_cpu_time_tells_it(way):
    limits = AttemptLimits(cpu_seconds=1)
    command = " ".join(f"'{part}'" for part in python("while True: pass"))
    ran = run(["/bin/sh", "-c", f"{command}; exit $?"], limits)
    assert why_ended(limits, ran.returncode) == "over its CPU time: limited to 1 s"


def test_some_cpu_time_is_left_to_a_process_that_hears_of_its_limit(way):
    assert told("resource.getrlimit(resource.RLIMIT_CPU)", AttemptLimits(cpu_seconds=7)) == [7, 12]


def test_niceness_is_set_whatever_ours_is(way):
    wanted = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    assert told("os.nice(0)", AttemptLimits(niceness=wanted)) == wanted


def test_processes_are_limited(way):
    limits = AttemptLimits(processes=5000)
    assert told("resource.getrlimit(resource.RLIMIT_NPROC)", limits) == [5000, 5000]


@as_root
def test_a_user_over_its_processes_gets_no_more(way):
    limits = AttemptLimits(processes=3, user=54321, group=54321)
    ran = run(["/bin/sh", "-c", "sleep 0 & sleep 0 & sleep 0 & sleep 0 & wait"], limits)
    assert ran.returncode != 0
    assert (why_ended(limits, ran.returncode, stderr_tail=ran.stderr) or "").startswith(
        "probably over its processes: limited to 3, and it says "
    )


@as_root
def test_a_user_is_named_or_numbered(way):
    # As another user than ours the interpreter of the tests may be out of reach.
    for user in ("nobody", NOBODY):
        ran = run(["/bin/sh", "-c", "id -u; id -g; id -G"], AttemptLimits(user=user))
        assert (ran.stderr, ran.stdout.split()) == ("", [str(NOBODY)] * 3)


@as_root
def test_a_group_can_be_another_than_the_users(way):
    ran = run(["/bin/sh", "-c", "id -u; id -g"], AttemptLimits(user="nobody", group="daemon"))
    assert ran.stdout.split() == [str(NOBODY), "1"]


@as_root
def test_a_group_alone_leaves_the_user_and_no_other_groups(way):
    ran = run(["/bin/sh", "-c", "id -u; id -G"], AttemptLimits(group="daemon"))
    assert ran.stdout.split() == ["0", "1"]


@as_root
def test_all_limits_together(way):
    limits = AttemptLimits(
        memory_bytes=300 * MIB,
        cpu_seconds=60,
        open_files=50,
        niceness=7,
        processes=900,
        user="nobody",
    )
    ran = run(["/bin/sh", "-c", "id -u; ulimit -d; ulimit -t; ulimit -n; nice"], limits)
    assert (ran.stderr, ran.stdout.split()) == ("", ["65534", "307200", "60", "50", "7"])


@as_root
def test_another_user_may_not_come_back(way):
    command = shutil.which("setpriv") or pytest.skip("no setpriv")
    ran = run([command, "--reuid=0", "id"], AttemptLimits(user="nobody"))
    assert ran.returncode != 0 and "Operation not permitted" in ran.stderr


# What passes through.

ALL = AttemptLimits(memory_bytes=900 * MIB, open_files=64, niceness=5)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LANG": "C"},
        {"ANODEJOBS_TOKEN": "abc", "bad.name%%": "x\ny", "EMPTY": ""},
        {b"RAW": b"\xff", b"LC_CTYPE": b"C.UTF-8"},
    ],
)
def test_the_environment_passes_unchanged(way, environment):
    argv = limited(["/usr/bin/env", "-0"], ALL)
    ran = subprocess.run(argv, env=environment, capture_output=True, check=True)
    passed = sorted(entry for entry in ran.stdout.split(b"\0") if entry)
    given = ((os.fsencode(name), os.fsencode(value)) for name, value in environment.items())
    assert passed == sorted(name + b"=" + value for name, value in given)


def test_pid_session_and_descriptors_are_the_same(way, tmp_path):
    fds = "sorted(map(int, os.listdir('/proc/self/fd')))"
    code = f"import os; print(os.getpid(), os.getsid(0), *{fds})"
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            limited(python(code), ALL),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        assert process.wait() == 0
    # The fourth is the listing's own.
    assert (tmp_path / "out").read_text() == f"{process.pid} {process.pid} 0 1 2 3\n"


def test_output_goes_to_the_jobs_own_pipes(way):
    ran = run(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], ALL)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("out\n", "err\n", 3)


def test_a_killed_job_is_a_killed_job(way):
    assert run(["/bin/sh", "-c", "kill -9 $$"], ALL).returncode == -signal.SIGKILL


def test_a_limit_that_all_jobs_bear_is_kept(way):
    """The mark of the attempt's processes is one."""
    mark = getattr(resource, "RLIMIT_RTTIME", None)
    if mark is None:
        pytest.skip("this system has no such limit")
    tag = (1 << 62) | 12345
    before = resource.getrlimit(mark)
    argv = limited(python(f"import resource; print(resource.getrlimit({mark})[0])"), ALL)
    resource.setrlimit(mark, (tag, before[1]))
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, check=True)
    finally:
        resource.setrlimit(mark, before)
    assert ran.stdout == f"{tag}\n"


@pytest.mark.parametrize("argv", [["printf", "%s|", "--", "-n", "a b", ""], ["echo", "--help"]])
def test_arguments_pass_as_they_are(way, argv):
    bare = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert run(argv, ALL).stdout == bare.stdout


# What cannot be started.


def broken(tmp_path: Path, kind: str) -> str:
    path = tmp_path / kind
    if kind == "without right":
        path.write_text("#!/bin/sh\n")
    elif kind == "without interpreter":
        path.write_text("#!/no/where\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    elif kind == "folder":
        path.mkdir()
    return str(path)


ONE_BY_ONE = [
    AttemptLimits(open_files=64),
    AttemptLimits(niceness=5),
    ALL,
    pytest.param(AttemptLimits(user="nobody"), marks=as_root),
]


@pytest.mark.parametrize("kind", ["missing", "without right", "without interpreter", "folder"])
@pytest.mark.parametrize("limits", ONE_BY_ONE)
def test_what_cannot_be_executed_is_told_in_a_line(way, tmp_path, kind, limits):
    ran = run([broken(tmp_path, kind)], limits)
    reason = refusal(ran.returncode, ran.stderr)
    assert reason is not None and "\n" not in reason
    assert kind in reason


@as_root
def test_a_user_who_may_not_read_the_program_does_not_run_it(way, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho it runs\n")
    program.chmod(0o700)
    ran = run([str(program)], AttemptLimits(user="nobody"))
    assert ran.returncode != 0 and ran.stdout == "" and "Permission denied" in ran.stderr


@as_root
def test_another_user_has_no_capabilities(way):
    ran = run(["/bin/grep", "CapEff", "/proc/self/status"], AttemptLimits(user="nobody"))
    assert ran.stdout.split() == ["CapEff:", "0" * 16]


@pytest.mark.parametrize(
    ("exit_code", "stderr"),
    [
        (127, "sh: 1: nope: not found\n"),
        (1, "Traceback: no\n"),
        (0, "nice: to meet you\n"),
        (-9, "nice: to meet you\n"),
        (None, "nice: to meet you\n"),
        (1, "nice: a\nsecond line\n"),
        (1, "nice"),
        (1, ""),
    ],
)
def test_a_program_that_fails_by_itself_was_not_refused(exit_code, stderr):
    assert refusal(exit_code, stderr) is None


def test_a_user_whom_nobody_knows_is_refused_before_the_start():
    with pytest.raises(ValueError, match="user: there is no 'no-such-user' here"):
        limited(["true"], AttemptLimits(user="no-such-user"))


def test_a_group_that_nobody_knows_is_refused_before_the_start():
    with pytest.raises(ValueError, match="group: there is no 'no-such-group' here"):
        limited(["true"], AttemptLimits(group="no-such-group"))


def test_an_unknown_number_needs_a_group():
    with pytest.raises(ValueError, match="group: must be named"):
        limited(["true"], AttemptLimits(user=54321))


class TestWithoutPrivileges:
    """As anybody but root."""

    @pytest.fixture(autouse=True)
    def nobody(self, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)

    def test_another_user_is_refused_before_the_start(self):
        with pytest.raises(PermissionError, match="only root may start a job as 'root'"):
            limited(["true"], AttemptLimits(user="root"))

    def test_another_group_is_refused_before_the_start(self):
        with pytest.raises(PermissionError, match="only root may start a job as 'daemon'"):
            limited(["true"], AttemptLimits(group="daemon"))

    def test_ones_own_user_is_no_other(self, monkeypatch):
        monkeypatch.setattr(os, "getegid", lambda: NOBODY)
        assert limited(["true"], AttemptLimits(user="nobody")) == ["true"]

    def test_going_before_others_is_refused_before_the_start(self):
        with pytest.raises(PermissionError, match="only root may go down to -20"):
            limited(["true"], AttemptLimits(niceness=-20))

    def test_more_files_than_may_be_had_are_refused_before_the_start(self, monkeypatch):
        monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 200))
        with pytest.raises(ValueError, match="open_files: 300 is more than the 200 allowed here"):
            limited(["true"], AttemptLimits(open_files=300))

    def test_where_we_may_have_less_than_the_limit_that_is_what_it_gets(self, monkeypatch):
        monkeypatch.setattr(resource, "getrlimit", lambda which: (10 * MIB, 10 * MIB))
        argv = limited(["true"], AttemptLimits(memory_bytes=20 * MIB))
        assert any(f"{10 * MIB}:{10 * MIB}" in part for part in argv)


def test_a_tool_that_is_busybox_counts_as_missing(tmp_path, monkeypatch):
    (tmp_path / "busybox").touch(mode=0o755)
    (tmp_path / "setpriv").symlink_to("busybox")
    monkeypatch.setattr(os, "confstr", lambda name: str(tmp_path))
    limits_module._tool.cache_clear()
    try:
        assert limits_module._tool("setpriv") is None
    finally:
        limits_module._tool.cache_clear()


def test_the_applications_path_does_not_choose_the_tools(tmp_path, monkeypatch):
    (tmp_path / "prlimit").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    limits_module._tool.cache_clear()
    assert str(tmp_path) not in str(limited(["true"], AttemptLimits(open_files=64)))


# As jobs.


@pytest.mark.parametrize("limits", [ALL, pytest.param(AttemptLimits(user="nobody"), marks=as_root)])
async def test_a_limited_job_is_stopped_whole(jobs, way, limits):
    # The second one has left session and environment.
    script = "setsid env -i sleep 1000 & sleep 1000 & echo here; wait"
    record = await jobs.run(command=limited(["/bin/sh", "-c", script], limits), job_id="tree")
    async for chunk in jobs.follow("tree"):
        assert chunk.text == "here\n"
        break
    children = psutil.Process(record.last_pid).children(recursive=True)
    assert len(children) == 2
    stopped = await jobs.stop("tree", grace=5)
    assert stopped is not None and stopped.status == Status.stopped
    assert all(has_died(child.pid, within_s=0) for child in children)


async def test_a_limited_job_that_cannot_be_executed_is_known_by_its_log(jobs, way):
    await jobs.run(command=limited(["no-such-program"], ALL), job_id="none")
    record = await jobs.wait(job_id="none", timeout=60)
    _, stderr = await jobs.job_logs("none")
    assert "no-such-program" in (refusal(record.exit_code, stderr) or "")


# Why it ended.


@pytest.mark.parametrize(
    ("exit_code", "stderr_tail"),
    [(0, "MemoryError"), (None, "MemoryError"), (1, ""), (1, "wrong input"), (-9, ""), (-11, "")],
)
def test_an_end_that_no_limit_explains_has_no_reason(exit_code, stderr_tail):
    limits = AttemptLimits(memory_bytes=64 * MIB, cpu_seconds=5, open_files=9, processes=9)
    assert why_ended(limits, exit_code, stderr_tail=stderr_tail) is None


def test_a_limit_that_was_not_set_is_no_reason():
    assert why_ended(AttemptLimits(), 1, stderr_tail="MemoryError", oom_kills=1) is None
    assert why_ended(AttemptLimits(), -signal.SIGXCPU) is None


def test_the_last_thing_said_is_the_reason_and_short():
    limits = AttemptLimits(memory_bytes=64 * MIB, open_files=9)
    tail = f"Too many open files\nstd::bad_alloc {'x' * 500}\nbye\n"
    reason = why_ended(limits, -6, stderr_tail=tail)
    assert reason is not None and "memory" in reason and len(reason) < 250


# What users hold.


def test_limits_of_a_user_are_those_of_an_attempt():
    fields = {"memory_bytes": 64 * MIB, "user": "nobody", "cpus": 2, "cgroup_parent": "/x"}
    assert AttemptLimits(**Limits(fields).model_dump()) == AttemptLimits(**fields)


@pytest.mark.parametrize(
    "field",
    [
        {"memory_bytes": 1000},
        {"memory_bytes": "1G"},
        {"cpu_seconds": 0},
        {"cpu_seconds": 1.5},
        {"open_files": True},
        {"open_files": 3},
        {"niceness": 20},
        {"processes": 0},
        {"user": ""},
        {"user": -1},
        {"user": "a:b"},
        {"group": "a,b"},
        {"memory_max": 1000},
        {"cpus": 0},
        {"cpus": float("nan")},
        {"cpus": "1"},
        {"tasks_max": 0},
        {"cgroup_parent": "batch.slice"},
        {"disk": 1},
    ],
)
def test_a_limit_that_is_none_is_refused_by_its_name(field):
    with pytest.raises(InvalidJob) as caught:
        Limits(field)
    assert [caught.value.field] == list(field)
    with pytest.raises(InvalidJob, match=f"limits: {next(iter(field))}: ") as caught:
        check_limits(field)
    assert caught.value.field == "limits"


def test_limits_can_be_handed_in_as_they_are_or_as_a_mapping():
    limits = Limits(open_files=64)
    assert check_limits(limits) is limits
    assert check_limits({"open_files": 64}) == limits
    with pytest.raises(InvalidJob, match="limits: must be Limits"):
        check_limits(64)


def test_our_own_program_starts_where_only_the_interpreter_is(monkeypatch):
    monkeypatch.setattr(limits_module, "_tool", lambda name: None)
    assert limited(["true"], ALL)[:3] == [os.path.realpath(sys.executable), "-I", "-S"]
