"""The processes of jobs: how they start, what they are given, and how all of them end."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from anodejobs import InvalidJob, InvalidTransition, JobNotFound, JobRecord, Jobs, Status
from anodejobs.events import Attempt
from anodejobs.executors import endings, tree
from anodejobs.executors.base import new_token
from anodejobs.executors.processes import Processes
from tests.conftest import has_died, python
from tests.programs import has_gone

LIMIT_S = 60.0

TREES = {
    "a process": (1, "here()"),
    "children": (3, "os.fork() or here(); os.fork() or here(); here()"),
    "grandchildren": (
        4,
        """
        if not os.fork():
            os.fork() or here()
            os.fork() or here()
            here()
        here()
        """,
    ),
    "a child in a session of its own": (2, "os.fork() or (os.setsid(), here()); here()"),
    "a daemon": (
        2,
        """
        if not os.fork():
            os.setsid()
            os.fork() and os._exit(0)
            here()
        here()
        """,
    ),
    "an orphan": (2, "os.fork() or (os.fork() or here(), os._exit(0)); os.wait(); here()"),
    "a child without an environment": (
        2,
        """
        if not os.fork():
            os.setsid()
            os.execve("/bin/sh", ["sh", "-c", "echo $$; exec sleep 600"], {})
        here()
        """,
    ),
}
PRELUDE = """
import os, signal, sys, time
def here():
    os.write(1, b"%d\\n" % os.getpid())
    while True:
        time.sleep(600)
"""


def script(code: str) -> list[str]:
    """Return the command of a job whose processes tell their pids, by ``here()``, and stay."""
    return python(PRELUDE + dedent(code))


# Stopping.


@pytest.mark.smoke
@pytest.mark.parametrize(("number", "code"), TREES.values(), ids=TREES)
async def test_stop_ends_the_whole_tree(jobs: Jobs, number: int, code: str) -> None:
    await jobs.run(script(code), job_id="a")
    processes = await told(jobs, "a", number)
    record = await stopped(jobs, "a")
    assert (record.status, record.exit_code, record.error) == (Status.stopped, -15, None)
    assert not living(processes)


@pytest.mark.parametrize(("number", "code"), TREES.values(), ids=TREES)
async def test_what_ignores_sigterm_is_killed_after_the_grace(
    jobs: Jobs, number: int, code: str
) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    await jobs.run(script(ignore + dedent(code)), job_id="a")
    processes = await told(jobs, "a", number)
    record = await stopped(jobs, "a", grace=0.2)
    assert (record.status, record.exit_code, record.error) == (Status.stopped, -9, None)
    assert not living(processes)


async def test_a_child_that_ignores_sigterm_is_killed_though_its_parent_obeyed(jobs: Jobs) -> None:
    code = """
    if not os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        here()
    here()
    """
    await jobs.run(script(code), job_id="a")
    processes = await told(jobs, "a", 2)
    assert (await stopped(jobs, "a", grace=0.5)).exit_code == -15
    assert not living(processes)


async def test_a_child_without_marks_that_ignores_sigterm_is_killed_though_its_parent_obeyed(
    jobs: Jobs,
) -> None:
    code = """
    if not os.fork():
        os.setsid()
        os.execve("/bin/sh", ["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 600; done"], {})
    here()
    """
    await jobs.run(script(code), job_id="a")
    processes = await told(jobs, "a", 2)
    assert (await stopped(jobs, "a", grace=0.5)).exit_code == -15
    assert not living(processes)


async def test_what_a_child_without_marks_starts_after_its_parent_obeyed_is_killed(
    jobs: Jobs,
) -> None:
    code = """
    main = os.getpid()
    if not os.fork():
        os.setsid()
        lines = f"trap '' TERM; echo $$; while [ -d /proc/{main} ]; do :; done; sleep 600 & echo $!"
        os.execve("/bin/sh", ["sh", "-c", f"{lines}; wait"], {})
    here()
    """
    await jobs.run(script(code), job_id="a")
    await told(jobs, "a", 2)
    assert (await stopped(jobs, "a", grace=1)).exit_code == -15
    stdout, _ = await jobs.job_logs("a")
    pids = [int(pid) for pid in stdout.split()]
    assert len(pids) == 3
    assert not [pid for pid in pids if runs(pid)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start what another user owns")
async def test_a_process_of_another_user_does_not_keep_the_job_from_being_stopped(
    jobs: Jobs,
) -> None:
    code = """
    if not os.fork():
        os.setresuid(65534, 65534, 65534)
        here()
    here()
    """
    await jobs.run(script(code), job_id="a")
    processes = await told(jobs, "a", 2)
    assert (await stopped(jobs, "a", grace=0.2)).status is Status.stopped
    assert not living(processes)


async def test_a_tree_that_grows_while_it_is_stopped_is_ended(jobs: Jobs) -> None:
    code = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(300):
        os.fork() or here()
        time.sleep(0.003)
    here()
    """
    record = await jobs.run(script(code), job_id="a")
    await told(jobs, "a", 20)
    assert (await stopped(jobs, "a", grace=0.1)).status is Status.stopped
    assert not session(record.last_pid)


@pytest.mark.parametrize("first", ["", "os.fork() and here()"], ids=["main", "child"])
async def test_a_process_of_which_the_first_thread_has_ended_is_stopped_too(
    jobs: Jobs, first: str
) -> None:
    code = f"""
    import ctypes, threading
    {first}
    threading.Thread(target=here).start()
    ctypes.CDLL(None).pthread_exit(None)
    """
    await jobs.run(script(code), job_id="a")
    processes = await told(jobs, "a", 2 if first else 1)
    # The state of a process is that of its first thread.
    await seen(lambda: psutil.STATUS_ZOMBIE in {process.status() for process in processes})
    usage = await jobs.usage("a")
    assert usage is not None
    assert usage.processes == len(processes)
    record = await stopped(jobs, "a")
    assert (record.status, record.exit_code, record.error) == (Status.stopped, -15, None)
    for process in processes:
        await has_gone(process.pid)


async def test_what_is_started_in_answer_to_sigterm_is_ended_too(jobs: Jobs) -> None:
    code = """
    def flee(*args):
        if not os.fork():
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            here()
        os._exit(0)
    signal.signal(signal.SIGTERM, flee)
    here()
    """
    await jobs.run(script(code), job_id="a")
    (main,) = await told(jobs, "a", 1)
    record = await stopped(jobs, "a", grace=0.5)
    assert (record.status, record.exit_code) == (Status.stopped, 0)
    stdout, _ = await jobs.job_logs("a")
    assert not [pid for pid in map(int, stdout.split()) if runs(pid)]
    assert not living([main])


@pytest.mark.parametrize(
    ("grace", "signals"),
    [(1.0, [signal.SIGTERM, signal.SIGCONT, signal.SIGKILL]), (0.0, [signal.SIGKILL])],
)
async def test_a_stop_that_is_held_up_sends_all_signals_before_it_gives_up(
    monkeypatch: pytest.MonkeyPatch, grace: float, signals: list[int]
) -> None:
    """As by other work in the threads, or by a machine that swaps."""
    attempt = Attempt(token=new_token(), supervisor="", pid=10, start_time=1.0)
    main = tree.Process(pid=10, start_time=1.0, parent=1, session=10, token=attempt.token)
    now, sent = 0.0, []

    def look(_: tree.Snapshot) -> tree.Snapshot:
        nonlocal now
        now += 600
        return tree.Snapshot({main.pid: main})

    monkeypatch.setattr(endings, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(tree, "take_snapshot", look)
    monkeypatch.setattr(tree, "send", lambda _, signum: sent.append(signum) or True)
    assert not await Processes().stop(attempt, grace)
    assert sent == signals


async def test_a_job_that_ends_well_when_asked_to_is_stopped(jobs: Jobs) -> None:
    code = "signal.signal(signal.SIGTERM, lambda *args: os._exit(0)); here()"
    await jobs.run(script(code), job_id="a")
    await told(jobs, "a", 1)
    record = await stopped(jobs, "a")
    assert (record.status, record.exit_code, record.error) == (Status.stopped, 0, None)


async def test_the_last_words_of_a_stopped_job_are_in_its_log(jobs: Jobs) -> None:
    code = """
    def last_words(*args):
        os.write(1, b"x" * 200_000)
        os._exit(3)
    signal.signal(signal.SIGTERM, last_words)
    here()
    """
    await jobs.run(script(code), job_id="a")
    await told(jobs, "a", 1)
    assert (await stopped(jobs, "a")).exit_code == 3
    assert (await jobs.job_logs("a"))[0].endswith("x" * 200_000)


async def test_a_paused_job_can_be_stopped(jobs: Jobs) -> None:
    await jobs.run(script("os.fork() or here(); here()"), job_id="a")
    processes = await told(jobs, "a", 2)
    await jobs.pause("a")
    record = await stopped(jobs, "a", grace=LIMIT_S)
    assert (record.status, record.exit_code) == (Status.stopped, -15)
    assert not living(processes)


async def test_all_who_stop_a_job_at_once_get_its_record(jobs: Jobs) -> None:
    await jobs.run(script("here()"), job_id="a")
    records = await asyncio.gather(*(stopped(jobs, "a") for _ in range(10)))
    assert {record.status for record in records} == {Status.stopped}
    assert all(record == records[0] for record in records)


async def test_a_second_stop_with_less_grace_shortens_the_first(jobs: Jobs) -> None:
    code = """
    signal.signal(signal.SIGTERM, lambda *args: os.write(1, b"asked\\n"))
    here()
    """
    await jobs.run(script(code), job_id="a")
    await told(jobs, "a", 1)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(stopped(jobs, "a", grace=600))
        await written(jobs, "a", "asked")
        second = tasks.create_task(stopped(jobs, "a", grace=0))
    assert first.result() == second.result()
    assert (first.result().status, first.result().exit_code) == (Status.stopped, -9)


async def test_a_second_stop_with_more_grace_changes_nothing(jobs: Jobs) -> None:
    code = """
    signal.signal(signal.SIGTERM, lambda *args: os.write(1, b"asked\\n"))
    here()
    """
    await jobs.run(script(code), job_id="a")
    await told(jobs, "a", 1)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stopped(jobs, "a", grace=0.3))
        await written(jobs, "a", "asked")
        second = tasks.create_task(stopped(jobs, "a", grace=600))
    assert second.result().exit_code == -9


async def test_a_stop_goes_on_though_its_caller_is_cancelled(jobs: Jobs) -> None:
    code = """
    signal.signal(signal.SIGTERM, lambda *args: os.write(1, b"asked\\n"))
    here()
    """
    await jobs.run(script(code), job_id="a")
    processes = await told(jobs, "a", 1)
    stop = asyncio.create_task(jobs.stop("a", grace=0.3))
    await written(jobs, "a", "asked")
    stop.cancel()
    await asyncio.wait([stop])
    assert stop.cancelled()
    assert (await jobs.wait("a", timeout=LIMIT_S)).status is Status.stopped
    assert not living(processes)


@pytest.mark.parametrize("command", ["exit 0", "exit 3", ["/no/such/program"]], ids=str)
async def test_an_ended_job_is_returned_by_stop_as_it_is(
    jobs: Jobs, command: str | list[str]
) -> None:
    await jobs.run(command, job_id="a")
    ended = await jobs.wait("a", timeout=LIMIT_S)
    assert await jobs.stop("a") == ended


async def test_stop_of_an_unknown_job_gives_none(jobs: Jobs) -> None:
    assert await jobs.stop("unknown") is None


async def test_closing_stops_the_tree_of_a_job(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path / "job_db", stop_grace=1, executor="inline") as jobs:
        await jobs.run(script(TREES["a daemon"][1]), job_id="a")
        processes = await told(jobs, "a", 2)
    assert not living(processes)


# What a job leaves behind.


LEFT = {
    "a child": "pid = os.fork() or here()",
    "a child in a session of its own": "pid = os.fork() or (os.setsid(), here())",
    "a child that ignores SIGTERM": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); pid = os.fork() or here()"
    ),
    "a child without an environment": (
        "pid = os.fork() or os.execve('/bin/sleep', ['sleep', '600'], {})"
    ),
}


@pytest.mark.parametrize("code", LEFT.values(), ids=LEFT)
async def test_what_a_job_leaves_behind_is_ended(jobs: Jobs, code: str) -> None:
    code += "; os.write(2, b'%d' % pid)"
    await jobs.run(script(code), job_id="a", stop_grace=0.2)
    assert (await jobs.wait("a", timeout=LIMIT_S)).status is Status.finished
    _, pid = await jobs.job_logs("a")
    await has_gone(int(pid))


async def test_what_a_failed_job_leaves_behind_is_ended(jobs: Jobs) -> None:
    record = await jobs.run(script("os.fork() or here(); os.fork() or here(); here()"), job_id="a")
    processes = await told(jobs, "a", 3)
    (main,) = (process for process in processes if process.pid == record.last_pid)
    main.kill()
    assert (await jobs.wait("a", timeout=LIMIT_S)).status is Status.failed
    for process in processes:
        await has_gone(process.pid)


@pytest.mark.parametrize("code", LEFT.values(), ids=LEFT)
async def test_what_a_job_leaves_behind_may_be_left(tmp_path: Path, code: str) -> None:
    code += "; os.write(2, b'%d' % pid)"
    async with Jobs(db_path=tmp_path / "job_db", stop_grace=0.2, executor="inline") as jobs:
        await jobs.run(script(code), job_id="a", leftovers="leave")
        record = await jobs.wait("a", timeout=LIMIT_S)
        _, pid = await jobs.job_logs("a")
    left = psutil.Process(int(pid))
    try:
        assert living([left])
        assert (record.status, record.exit_code) == (Status.finished, 0)
    finally:
        left.kill()
        await has_gone(left.pid)


async def test_a_job_has_ended_though_a_daemon_holds_its_pipes(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path / "job_db", executor="inline") as jobs:
        await jobs.run("echo before; sleep 600 & echo $! >&2; exit 3", "a", leftovers="leave")
        record = await jobs.wait("a", timeout=LIMIT_S)
        stdout, pid = await jobs.job_logs("a")
        assert (record.status, record.exit_code, stdout) == (Status.failed, 3, "before\n")
        psutil.Process(int(pid)).kill()
        await has_gone(int(pid))


# Pausing and signals.


@pytest.mark.parametrize(("number", "code"), TREES.values(), ids=TREES)
async def test_pause_stops_every_process_and_resume_lets_them_go_on(
    jobs: Jobs, number: int, code: str
) -> None:
    await jobs.run(script(code), job_id="a")
    processes = await told(jobs, "a", number)
    assert (await jobs.pause("a")).status is Status.paused
    await seen(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})
    assert (await jobs.resume("a")).status is Status.running
    await seen(lambda: psutil.STATUS_STOPPED not in {process.status() for process in processes})


async def test_pause_stops_what_is_forked_meanwhile(jobs: Jobs) -> None:
    code = """
    for _ in range(300):
        os.fork() or here()
        time.sleep(0.002)
    here()
    """
    record = await jobs.run(script(code), job_id="a")
    await told(jobs, "a", 10)
    await jobs.pause("a")
    await seen(
        lambda: (
            {process.status() for process in session(record.last_pid)} == {psutil.STATUS_STOPPED}
        )
    )


async def test_pause_waits_for_who_was_forking_when_the_signal_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its child may be there after a look that finds nobody new, if nobody has stopped by then."""
    attempt = Attempt(token=new_token(), supervisor="", pid=10, start_time=1.0)
    parent = tree.Process(pid=10, start_time=1.0, parent=1, session=10, token=attempt.token)
    child = replace(parent, pid=11, start_time=2.0, parent=10)
    stopped = [replace(process, has_stopped=True) for process in (parent, child)]
    looks = [[parent], [parent], [stopped[0], child], [stopped[0], child], stopped, []]

    def look(_: tree.Snapshot) -> tree.Snapshot:
        return tree.Snapshot({process.pid: process for process in looks.pop(0)})

    reached: list[int] = []
    monkeypatch.setattr(tree, "take_snapshot", look)
    monkeypatch.setattr(tree, "send", lambda process, _: reached.append(process.pid) or True)
    await Processes().signal(attempt, signal.SIGSTOP)
    assert reached == [10, 11]
    assert looks == [[]]  # no more than it takes


async def test_pause_does_not_wait_for_who_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt = Attempt(token=new_token(), supervisor="", pid=10, start_time=1.0)
    other = tree.Process(pid=10, start_time=1.0, parent=1, session=10, token=attempt.token)
    looks: list[int] = []
    monkeypatch.setattr(
        tree, "take_snapshot", lambda _: looks.append(1) or tree.Snapshot({10: other})
    )
    monkeypatch.setattr(tree, "send", lambda *_: False)
    await Processes().signal(attempt, signal.SIGSTOP)
    assert len(looks) == 2


async def test_a_resumed_job_ends_as_ever(jobs: Jobs, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    gate = os.open(tmp_path / "gate", os.O_RDWR)
    await jobs.run("read _ < gate; exit 3", job_id="a", cwd=tmp_path)
    await jobs.pause("a")
    os.write(gate, b"go on\n")
    await jobs.resume("a")
    record = await jobs.wait("a", timeout=LIMIT_S)
    os.close(gate)
    assert (record.status, record.exit_code) == (Status.failed, 3)


async def test_a_signal_reaches_every_process(jobs: Jobs) -> None:
    code = """
    signal.signal(signal.SIGUSR1, lambda *args: os.write(1, b"got it\\n"))
    os.fork() or here()
    os.fork() or (os.setsid(), here())
    here()
    """
    await jobs.run(script(code), job_id="a")
    await told(jobs, "a", 3)
    record = await jobs.signal("a", "SIGUSR1")
    assert record.status is Status.running
    await written(jobs, "a", "got it", times=3)


@pytest.mark.parametrize("sig", [signal.SIGUSR1, "usr1", int(signal.SIGUSR1)], ids=repr)
async def test_a_signal_has_a_name_and_a_number(jobs: Jobs, sig: int | str) -> None:
    code = 'signal.signal(signal.SIGUSR1, lambda *args: os.write(1, b"got it\\n")); here()'
    await jobs.run(script(code), job_id="a")
    await told(jobs, "a", 1)
    await jobs.signal("a", sig)
    await written(jobs, "a", "got it")


@pytest.mark.parametrize("sig", ["SIGNOTHING", "", 0, -1, 1000, True], ids=repr)
async def test_what_is_no_signal_is_an_invalid_job(jobs: Jobs, sig: int | str) -> None:
    await jobs.run(script("here()"), job_id="a")
    with pytest.raises(InvalidJob) as caught:
        await jobs.signal("a", sig)
    assert caught.value.field == "sig"


async def test_an_ended_job_takes_no_signal(jobs: Jobs) -> None:
    await jobs.run("true", job_id="a")
    await jobs.wait("a", timeout=LIMIT_S)
    with pytest.raises(InvalidTransition):
        await jobs.signal("a", "SIGUSR1")


# How jobs end.


@pytest.mark.parametrize(
    ("command", "status", "exit_code", "error"),
    [
        ("exit 0", Status.finished, 0, None),
        ("exit 3", Status.failed, 3, "exit code 3"),
        ("exit 255", Status.failed, 255, "exit code 255"),
        ("kill -KILL $$", Status.failed, -9, "killed by SIGKILL"),
        ("kill -SEGV $$", Status.failed, -11, "killed by SIGSEGV"),
        ("kill -TERM $$", Status.failed, -15, "killed by SIGTERM"),
        ("kill -40 $$", Status.failed, -40, "killed by signal 40"),
    ],
)
async def test_a_job_ends_as_its_main_process_did(
    jobs: Jobs, command: str, status: Status, exit_code: int, error: str | None
) -> None:
    await jobs.run(command, job_id="a")
    record = await jobs.wait("a", timeout=LIMIT_S)
    assert (record.status, record.exit_code, record.error) == (status, exit_code, error)
    assert record.evidence == "observed"


async def test_a_job_that_was_killed_from_outside_has_failed(jobs: Jobs) -> None:
    await jobs.run(script("here()"), job_id="a")
    (main,) = await told(jobs, "a", 1)
    main.kill()
    record = await jobs.wait("a", timeout=LIMIT_S)
    assert (record.status, record.exit_code) == (Status.failed, -9)
    assert record.error == "killed by SIGKILL"


async def test_a_debugger_that_does_not_let_go_of_a_dead_job_holds_up_no_other(jobs: Jobs) -> None:
    code = """
    import ctypes
    main, (reader, writer) = os.getpid(), os.pipe()
    libc = ctypes.CDLL(None)
    libc.prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER, PR_SET_PTRACER_ANY
    if not os.fork():
        signal.alarm(30)
        if libc.ptrace(0x4206, main, None, None) == 0:  # PTRACE_SEIZE
            os.write(writer, b"x")
            here()
        os._exit(1)
    os.close(writer)
    os._exit(7 if os.read(reader, 1) else 1)
    """
    record = await jobs.run(script(code), job_id="traced")
    (tracer,) = await told(jobs, "traced", 1)
    assert record.last_pid is not None
    await has_gone(record.last_pid)
    await jobs.run("exit 3", job_id="other")
    assert (await jobs.wait("other", timeout=LIMIT_S)).exit_code == 3
    assert living([tracer])
    assert not (await jobs.get_status("traced")).is_done
    tracer.kill()
    assert (await jobs.wait("traced", timeout=LIMIT_S)).exit_code == 7


async def test_many_short_jobs_at_once_each_end_with_their_own_code(tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path / "job_db", stop_grace=1, executor="inline") as jobs:
        ids = [f"job-{number}" for number in range(200)]
        await asyncio.gather(*(jobs.run(f"exit {n % 100}", job_id=i) for n, i in enumerate(ids)))
        records = await jobs.wait_all(ids, timeout=LIMIT_S)
    assert [records[i].exit_code for i in ids] == [number % 100 for number in range(200)]


async def test_a_job_that_takes_too_long_has_failed(jobs: Jobs) -> None:
    await jobs.run(script(TREES["a daemon"][1]), job_id="a", timeout=0.5)
    processes = await told(jobs, "a", 2)
    record = await jobs.wait("a", timeout=LIMIT_S)
    assert (record.status, record.exit_code) == (Status.failed, -15)
    assert record.error == "timed out after 0.5 s"
    await seen(lambda: not living(processes))


async def test_a_job_that_takes_too_long_has_failed_though_it_ends_well(jobs: Jobs) -> None:
    code = "signal.signal(signal.SIGTERM, lambda *args: os._exit(0)); here()"
    await jobs.run(script(code), job_id="a", timeout=0.5)
    record = await jobs.wait("a", timeout=LIMIT_S)
    assert (record.status, record.error) == (Status.failed, "timed out after 0.5 s")


async def test_a_job_that_takes_too_long_and_ignores_sigterm_is_killed(jobs: Jobs) -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); here()"
    await jobs.run(script(code), job_id="a", timeout=0.5, stop_grace=0.2)
    record = await jobs.wait("a", timeout=LIMIT_S)
    assert (record.status, record.exit_code) == (Status.failed, -9)
    assert record.error == "timed out after 0.5 s"


async def test_a_job_that_ends_in_time_is_not_late(jobs: Jobs) -> None:
    await jobs.run("exit 0", job_id="a", timeout=600)
    assert (await jobs.wait("a", timeout=LIMIT_S)).status is Status.finished


@pytest.mark.parametrize(
    ("command", "status", "error"),
    [
        ("exit 3", Status.failed_start, "exit code 3"),
        ("kill -SEGV $$", Status.failed_start, "killed by SIGSEGV"),
        ("exit 0", Status.finished, None),
    ],
)
async def test_a_failure_within_start_grace_is_a_failed_start(
    jobs: Jobs, command: str, status: Status, error: str | None
) -> None:
    await jobs.run(command, job_id="a", start_grace=600)
    record = await jobs.wait("a", timeout=LIMIT_S)
    assert (record.status, record.error) == (status, error)


async def test_a_job_stopped_within_start_grace_is_stopped(jobs: Jobs) -> None:
    await jobs.run(script("here()"), job_id="a", start_grace=600)
    await told(jobs, "a", 1)
    assert (await stopped(jobs, "a")).status is Status.stopped


# Usage.


async def test_usage_counts_every_process(jobs: Jobs) -> None:
    await jobs.run(script(TREES["grandchildren"][1]), job_id="a")
    await told(jobs, "a", 4)
    usage = await jobs.usage("a")
    assert usage.processes == 4
    assert usage.memory_bytes > 4 * 1024 * 1024


async def test_usage_tells_the_cpu_time(jobs: Jobs) -> None:
    await jobs.run(script("sum(range(3_000_000)); here()"), job_id="a")
    await told(jobs, "a", 1)
    assert (await jobs.usage("a")).cpu_seconds > 0


async def test_an_ended_job_uses_nothing(jobs: Jobs) -> None:
    await jobs.run("true", job_id="a")
    await jobs.wait("a", timeout=LIMIT_S)
    usage = await jobs.usage("a")
    assert (usage.processes, usage.cpu_seconds, usage.memory_bytes) == (0, 0, 0)


async def test_an_unknown_job_has_no_usage(jobs: Jobs) -> None:
    with pytest.raises(JobNotFound):
        await jobs.usage("unknown")


# What a job is given.


async def test_a_job_knows_its_id_and_its_attempt(jobs: Jobs) -> None:
    environment = await environment_of(jobs, "任务 a/b")
    assert environment["ANODEJOBS_JOB_ID"] == "任务 a/b"
    assert environment["ANODEJOBS_ATTEMPT"] == "1"


async def test_a_job_has_the_applications_environment_at_the_time_of_the_call(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOUR", "red")
    assert (await environment_of(jobs, "a"))["COLOUR"] == "red"
    monkeypatch.setenv("COLOUR", "green")
    assert (await environment_of(jobs, "a"))["COLOUR"] == "green"
    monkeypatch.delenv("COLOUR")
    assert "COLOUR" not in await environment_of(jobs, "a")


async def test_envs_go_over_the_applications_environment(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOUR", "red")
    environment = await environment_of(jobs, "a", envs={"COLOUR": "blue\nand green", "EMPTY": ""})
    assert (environment["COLOUR"], environment["EMPTY"]) == ("blue\nand green", "")


async def test_envs_do_not_change_what_a_job_is_told_of_itself(jobs: Jobs) -> None:
    environment = await environment_of(jobs, "a", envs={"ANODEJOBS_JOB_ID": "another"})
    assert environment["ANODEJOBS_JOB_ID"] == "a"


async def test_the_environment_may_be_the_jobs_own_alone(jobs: Jobs) -> None:
    environment = await environment_of(jobs, "a", envs={"COLOUR": "blue"}, inherit_env=False)
    assert environment.keys() - {"ANODEJOBS_TOKEN"} == {
        "COLOUR",
        "ANODEJOBS_JOB_ID",
        "ANODEJOBS_ATTEMPT",
        "ANODEJOBS_RESULT",
        "ANODEJOBS_PROGRESS",
    }


async def test_an_environment_that_is_no_text_is_handed_on(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD", os.fsdecode(b"na\xefve"))
    environment = await environment_of(jobs, "a")
    assert os.fsencode(environment["ODD"]) == b"na\xefve"


@pytest.mark.parametrize(
    ("utf8", "outcome"), [("1", "na\u00efve"), ("0", "'ascii' codec can't encode character")]
)
async def test_text_becomes_bytes_as_it_does_in_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, utf8: str, outcome: str
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONUTF8", utf8)
    program = f"""
import asyncio, json
from anodejobs import Jobs
async def main():
    async with Jobs("job_db", executor="{executor}") as jobs:
        await jobs.run(["echo", "na\\u00efve"], "a")
        record = await jobs.wait("a", timeout=60)
        print(json.dumps(record.error or (await jobs.job_logs("a"))[0]))
asyncio.run(main())
"""
    assert (await host(tmp_path, program)).startswith(outcome)


async def test_a_job_inherits_no_descriptor(jobs: Jobs) -> None:
    ours = os.pipe()
    for fd in ours:
        os.set_inheritable(fd, True)
    code = """
    names = os.listdir("/proc/self/fd")  # that of the listing among them, which is closed now
    print(*sorted(name for name in names if os.path.exists(f"/proc/self/fd/{name}")))
    """
    await jobs.run(script(code), job_id="a")
    await jobs.wait("a", timeout=LIMIT_S)
    for fd in ours:
        os.close(fd)
    assert (await jobs.job_logs("a"))[0] == "0 1 2\n"


async def test_the_stdin_of_a_job_is_at_its_end(jobs: Jobs) -> None:
    await jobs.run(python("import sys; print(repr(sys.stdin.read()))"), job_id="a")
    await jobs.wait("a", timeout=LIMIT_S)
    assert await jobs.job_logs("a") == ("''\n", "")


async def test_a_job_has_a_session_of_its_own(jobs: Jobs) -> None:
    record = await jobs.run(script("here()"), job_id="a")
    assert record.last_pid is not None
    assert os.getsid(record.last_pid) == os.getpgid(record.last_pid) == record.last_pid


async def test_the_pid_in_the_record_is_the_main_processes(jobs: Jobs) -> None:
    record = await jobs.run(script("here()"), job_id="a")
    (main,) = await told(jobs, "a", 1)
    assert record.last_pid == main.pid


async def test_a_job_starts_in_its_cwd(jobs: Jobs, tmp_path: Path) -> None:
    await jobs.run("pwd -P", job_id="a", cwd=tmp_path)
    record = await jobs.wait("a", timeout=LIMIT_S)
    assert (await jobs.job_logs("a"))[0] == f"{tmp_path.resolve()}\n"
    assert record.cwd == str(tmp_path)


async def test_a_job_starts_where_the_application_is(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await jobs.run("pwd -P", job_id="a")
    await jobs.wait("a", timeout=LIMIT_S)
    assert (await jobs.job_logs("a"))[0] == f"{tmp_path.resolve()}\n"


async def test_the_arguments_of_a_list_are_handed_on_as_they_are(jobs: Jobs) -> None:
    arguments = ["", " ", "a b", "$HOME", "*", "'", '"', "\n", "-x", "任务"]
    await jobs.run([*python("import sys; print(sys.argv[1:])"), *arguments], job_id="a")
    await jobs.wait("a", timeout=LIMIT_S)
    assert (await jobs.job_logs("a"))[0] == f"{arguments}\n"


async def test_a_string_is_a_shell_command(jobs: Jobs) -> None:
    await jobs.run("for i in 1 2 3; do printf $i; done | tr 1 x && echo", job_id="a")
    await jobs.wait("a", timeout=LIMIT_S)
    assert (await jobs.job_logs("a"))[0] == "x23\n"


# What cannot be executed.


@pytest.mark.parametrize(
    ("command", "options", "code"),
    [
        (["/no/such/program"], {}, errno.ENOENT),
        (["no-such-program-on-the-path"], {}, errno.ENOENT),
        (["./not executable"], {}, errno.EACCES),
        (["./folder"], {}, errno.EACCES),
        (["./no shebang"], {}, errno.ENOEXEC),
        (["./lost interpreter"], {}, errno.ENOENT),
        (["true"], {"cwd": "/no/such/folder"}, errno.ENOENT),
        ("true", {"cwd": "/no/such/folder"}, errno.ENOENT),
        (["true"], {"cwd": "/etc/passwd"}, errno.ENOTDIR),
        (["echo", "x" * 3_000_000], {}, errno.E2BIG),
        ("echo " + "x" * 3_000_000, {}, errno.E2BIG),
        (["true"], {"envs": {"LONG": "x" * 3_000_000}}, errno.E2BIG),
    ],
    ids=[
        "no program",
        "not on the path",
        "not executable",
        "a directory",
        "no shebang",
        "no interpreter",
        "no cwd",
        "no cwd for the shell",
        "cwd is a file",
        "a long argument",
        "a long shell command",
        "a long environment",
    ],
)
async def test_what_the_system_refuses_is_a_failed_start(
    jobs: Jobs, tmp_path: Path, command: str | list[str], options: dict[str, Any], code: int
) -> None:
    (tmp_path / "not executable").touch(mode=0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "no shebang").write_text("echo hello\n")
    (tmp_path / "no shebang").chmod(0o700)
    (tmp_path / "lost interpreter").write_text("#!/no/such/interpreter\n")
    (tmp_path / "lost interpreter").chmod(0o700)
    record = await jobs.run(command, job_id="a", **{"cwd": tmp_path, **options})
    assert record.status is Status.failed_start
    assert record.error is not None and record.error.startswith(os.strerror(code))
    assert len(record.error) < 1000
    assert (record.last_pid, record.exit_code, record.started_at) == (None, None, None)
    assert await jobs.wait("a", timeout=LIMIT_S) == record


async def test_the_error_of_a_failed_start_names_the_program(jobs: Jobs) -> None:
    record = await jobs.run(["/no/such/program"], job_id="a")
    assert record.error == "No such file or directory: '/no/such/program'"


async def test_a_job_that_could_not_start_can_be_run_anew(jobs: Jobs, tmp_path: Path) -> None:
    program = tmp_path / "program"
    assert (await jobs.run([str(program)], job_id="a")).status is Status.failed_start
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(stat.S_IRWXU)
    await jobs.run([str(program)], job_id="a")
    assert (await jobs.wait("a", timeout=LIMIT_S)).exit_code == 3


# Strangers.


def test_a_process_that_has_the_pid_but_not_the_start_time_is_not_signalled(
    stranger: Popen[bytes],
) -> None:
    assert not tree.send(seen_as(stranger, later=1), signal.SIGKILL)
    assert stranger.poll() is None
    assert tree.send(seen_as(stranger, later=0), signal.SIGKILL)
    assert stranger.wait(LIMIT_S) == -9


def test_a_process_that_has_the_pid_but_not_the_start_time_is_not_part_of_a_job(
    stranger: Popen[bytes],
) -> None:
    snapshot = tree.take_snapshot()
    assert [p.pid for p in snapshot.members(attempt_of(stranger, later=0))] == [stranger.pid]
    assert not snapshot.members(attempt_of(stranger, later=1))
    assert not snapshot.members(attempt_of(stranger, later=1), has_just_ended=True)


def test_a_session_is_a_jobs_while_something_of_the_job_is_in_it() -> None:
    job = Attempt(token=new_token(), supervisor="", pid=70, start_time=1.0)
    left, new = (
        tree.Process(pid=pid, start_time=float(pid), parent=1, session=70, token=None)
        for pid in (81, 82)
    )
    alone, both, replaced = (
        tree.Snapshot({process.pid: process for process in there})
        for there in ([left], [left, new], [new])
    )
    assert alone.members(job) == []
    assert alone.members(job, has_just_ended=True) == [left]
    assert both.members(job, known=[left]) == [left, new]
    assert replaced.members(job, known=[left]) == []


async def test_what_a_job_has_left_is_ended_with_what_that_starts_when_it_is_asked_to_end(
    tmp_path: Path,
) -> None:
    """With nothing by which it would be known but the session."""
    asked = "trap 'sleep 1000 & echo $! > left; exit' TERM; echo > ready; sleep 1000 & wait"
    left = f"env -i PATH=/bin:/usr/bin sh -c {shlex.quote(asked)}"
    async with Jobs(tmp_path / "jobs", executor="inline") as jobs:
        command = f"{left} & until [ -e ready ]; do sleep 0.01; done"
        await jobs.run(command, "a", cwd=tmp_path, stop_grace=1)
        await jobs.wait("a")
    pid = int((tmp_path / "left").read_text())
    try:
        assert has_died(pid, 10)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_while_what_a_job_has_left_ends_nobody_is_touched_who_gets_its_number(
    stranger: Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
    if not os.fork():
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        here()
    here()
    """
    async with Jobs(tmp_path / "jobs", executor="inline") as jobs:
        record = await jobs.run(script(code), "a", stop_grace=0.2)
        assert record.last_pid is not None
        processes = await told(jobs, "a", 2)
        take_snapshot, looks = tree.take_snapshot, []

        def look(known: tree.Snapshot | None) -> tree.Snapshot:
            found = dict(take_snapshot(known).processes)
            if record.last_pid not in found:
                looks.append(found)
            if len(looks) > 1:  # the stranger's session has the number, its leader has gone
                found[stranger.pid] = replace(found[stranger.pid], session=record.last_pid)
            return tree.Snapshot(found)

        monkeypatch.setattr(tree, "take_snapshot", look)
        os.kill(record.last_pid, signal.SIGKILL)
        for process in processes:
            await has_gone(process.pid)
    assert len(looks) > 1
    assert stranger.poll() is None


async def test_an_executor_does_not_touch_a_process_that_took_over_the_pid(
    stranger: Popen[bytes],
) -> None:
    executor = Processes()
    attempt = attempt_of(stranger, later=1)
    assert await executor.stop(attempt, 0)
    await executor.signal(attempt, signal.SIGKILL)
    assert (await executor.usage(attempt)).processes == 0
    await executor.close()
    assert stranger.poll() is None


async def test_a_process_that_has_the_job_id_in_its_arguments_is_not_touched(
    jobs: Jobs, stranger: Popen[bytes]
) -> None:
    assert "a-job" in psutil.Process(stranger.pid).cmdline()
    await jobs.run([*script("here()"), "a-job"], job_id="a-job")
    await told(jobs, "a-job", 1)
    await stopped(jobs, "a-job", grace=0)
    assert stranger.poll() is None


async def test_another_job_is_not_touched(jobs: Jobs) -> None:
    for job_id in ("a", "b"):
        await jobs.run(script("os.fork() or here(); here()"), job_id=job_id)
    others = await told(jobs, "b", 2)
    await stopped(jobs, "a", grace=0)
    assert living(others) == others


async def test_a_namesake_of_another_directory_is_not_touched(jobs: Jobs, tmp_path: Path) -> None:
    async with Jobs(db_path=tmp_path / "another_db", stop_grace=1, executor="inline") as others:
        await jobs.run(script("here()"), job_id="a")
        await others.run(script("here()"), job_id="a")
        processes = await told(others, "a", 1)
        await stopped(jobs, "a", grace=0)
        assert living(processes) == processes


# Without pidfds.


async def test_without_pidfds_jobs_end_as_ever(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "HAS_PIDFDS", False)
    await jobs.run("exit 3", job_id="a")
    record = await jobs.wait("a", timeout=LIMIT_S)
    assert (record.status, record.exit_code) == (Status.failed, 3)


@pytest.mark.parametrize(("number", "code"), TREES.values(), ids=TREES)
async def test_without_pidfds_stop_ends_the_whole_tree(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    monkeypatch.setattr(tree, "HAS_PIDFDS", False)
    await jobs.run(script(code), job_id="a")
    processes = await told(jobs, "a", number)
    record = await stopped(jobs, "a")
    assert (record.status, record.exit_code) == (Status.stopped, -15)
    assert not living(processes)


async def test_without_pidfds_what_ignores_sigterm_is_killed(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "HAS_PIDFDS", False)
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork() or here(); here()"
    await jobs.run(script(code), job_id="a")
    processes = await told(jobs, "a", 2)
    record = await stopped(jobs, "a", grace=0.3)
    assert (record.status, record.exit_code) == (Status.stopped, -9)
    assert not living(processes)


def test_without_pidfds_no_stranger_is_hit(
    stranger: Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "HAS_PIDFDS", False)
    assert not tree.send(seen_as(stranger, later=1), signal.SIGKILL)
    assert tree.send(seen_as(stranger, later=0), signal.SIGTERM)
    assert stranger.wait(LIMIT_S) == -15


# Applications of other kinds.


CODES = """
import asyncio, json, os, signal, sys, threading, time
from anodejobs import Jobs
from anodejobs.executors import processes

async def main():
    os.mkfifo("gate")
    async with Jobs("job_db", stop_grace=1, executor="inline") as jobs:
        for number in range(20):
            await jobs.run(["/bin/sh", "-c", "exit 7"], job_id=f"quick-{number}")
        await jobs.run("read _ < gate; exit 7", job_id="slow")
        fd = os.open("gate", os.O_RDWR)
        os.write(fd, b"go on\\n")
        records = await jobs.wait_all({}, timeout=60)
        os.close(fd)
        print(json.dumps([[record.status, record.exit_code] for record in records.values()]))
"""
TROUBLE = {
    "ignores SIGCHLD": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "reaps all children": """
def reap():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.0005)
threading.Thread(target=reap, daemon=True).start()
""",
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
async def test_an_application_that_takes_exit_codes_away_gets_true_ones_or_none(
    tmp_path: Path, trouble: str
) -> None:
    for status, exit_code in await host(tmp_path, f"{CODES}\n{trouble}\nasyncio.run(main())"):
        assert (status, exit_code) in {("failed", 7), ("lost", None)}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
async def test_no_exit_code_is_invented_where_the_kernel_cannot_tell(
    tmp_path: Path, trouble: str
) -> None:
    old_kernel = "processes.exit_code = lambda fd: None"
    code = f"{CODES}\n{old_kernel}\n{trouble}\nasyncio.run(main())"
    for status, exit_code in await host(tmp_path, code):
        assert (status, exit_code) in {("failed", 7), ("lost", None)}


async def test_a_job_that_exits_with_255_did_so_where_the_kernel_cannot_tell(
    tmp_path: Path,
) -> None:
    old_kernel = "processes.exit_code = lambda fd: None"
    code = CODES.replace("exit 7", "exit 255")
    ended = await host(tmp_path, f"{code}\n{old_kernel}\nasyncio.run(main())")
    assert ended == [["failed", 255]] * 21


TREE = f"""
import asyncio, json
from anodejobs import Jobs

async def main():
    async with Jobs("job_db", stop_grace=1, executor="inline") as jobs:
        await jobs.run("exit 7", job_id="failed")
        await jobs.run({script(TREES["a daemon"][1])!r}, job_id="stopped")
        await jobs.run(["/no/such/program"], job_id="unstarted")
        async with asyncio.timeout(60):
            pids = b""
            async for chunk in jobs.follow("stopped"):
                pids += chunk.data
                if pids.count(b"\\n") == 2:
                    break
        await jobs.stop("stopped")
        records = await jobs.wait_all(["failed", "stopped", "unstarted"], timeout=60)
        ended = [[record.status, record.exit_code] for record in records.values()]
        print(json.dumps([ended, [int(pid) for pid in pids.split()]]))
"""
RUNNERS = {
    "uvloop": "import uvloop\nuvloop.run(main())",
    "a thread": (
        "import threading\nthread = threading.Thread(target=lambda: asyncio.run(main()))\n"
        "thread.start()\nthread.join()"
    ),
}


@pytest.mark.parametrize("runner", RUNNERS)
async def test_jobs_run_and_are_stopped_wherever_the_event_loop_runs(
    tmp_path: Path, runner: str
) -> None:
    if runner == "uvloop":
        pytest.importorskip("uvloop")
    ended, pids = await host(tmp_path, f"{TREE}\n{RUNNERS[runner]}")
    assert ended == [["failed", 7], ["stopped", -15], ["failed_start", None]]
    assert not [pid for pid in pids if runs(pid)]


SANDBOX = """
import ctypes, struct, sys
def refuse(number, error, second=None):
    # A filter of a few instructions: load the number of the call, compare, allow or refuse it;
    # the same with its second argument where one is given.
    rules = [(0x20, 0, 0, 0), (0x15, 0, 1 if second is None else 3, number)]
    if second is not None:
        rules += [(0x20, 0, 0, 24), (0x15, 0, 1, second)]
    rules += [(0x06, 0, 0, 0x50000 | error), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(rules), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)
    if libc.prctl(22, 2, program, 0, 0):
        print("null")
        sys.exit()
"""
PRLIMIT = {"x86_64": 302, "aarch64": 261}.get(platform.machine(), 2**32 - 1)
REFUSALS = {
    "an old kernel": (434, errno.ENOSYS),
    "a sandbox that refuses pidfd_open": (434, errno.EPERM),
    "a sandbox that refuses pidfd_send_signal": (424, errno.EPERM),
    # The limit that marks jobs, by its number; the call's is another on each architecture.
    "a kernel that knows no RLIMIT_RTTIME": (PRLIMIT, errno.EINVAL, 15),
    "a sandbox that refuses RLIMIT_RTTIME": (PRLIMIT, errno.EPERM, 15),
}


@pytest.mark.skipif(sys.platform != "linux", reason="sandboxes of Linux")
@pytest.mark.parametrize("kind", ["inline", "shim"])
@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
async def test_where_the_system_refuses_some_calls_jobs_run_and_are_stopped(
    tmp_path: Path, refused: tuple[int, ...], kind: str
) -> None:
    trees = TREE.replace("inline", kind)
    result = await host(tmp_path, f"{SANDBOX}\nrefuse(*{refused})\n{trees}\nasyncio.run(main())")
    if result is None:
        pytest.skip("no filters of system calls here")
    ended, pids = result
    assert ended == [["failed", 7], ["stopped", -15], ["failed_start", None]]
    assert not [pid for pid in pids if runs(pid)]


# What asks for the system when it is imported comes first.
ELSEWHERE = """
import aiosqlite, psutil, pydantic.types, zoneinfo
without = '''
import asyncio, fcntl, os, psutil, resource, select, signal, socket, sys, time
only_linux_has = {
    fcntl: "F_SETPIPE_SZ F_GETPIPE_SZ",
    os: "O_PATH RWF_NOWAIT pidfd_open pipe2 posix_fallocate splice waitid",
    resource: "RLIMIT_RTTIME prlimit",
    select: "epoll",
    signal: "pidfd_send_signal",
    socket: "SOCK_CLOEXEC SOCK_NONBLOCK SO_PEERCRED",
    time: "CLOCK_BOOTTIME",
}
for module, names in only_linux_has.items():
    for name in names.split():
        vars(module).pop(name, None)
sys.platform = "darwin"
'''
exec(without)
from anodejobs.executors import shim_start
shim_start._BOOTSTRAP = f"exec({without!r});{shim_start._BOOTSTRAP}"
"""


@pytest.mark.parametrize("kind", ["inline", "shim"])
async def test_nothing_is_asked_for_that_only_linux_has(tmp_path: Path, kind: str) -> None:
    trees = TREE.replace("inline", kind)
    ended, pids = await host(tmp_path, f"{ELSEWHERE}\n{trees}\nasyncio.run(main())")
    assert ended == [["failed", 7], ["stopped", -15], ["failed_start", None]]
    assert not [pid for pid in pids if runs(pid)]


@pytest.mark.parametrize("is_ignored", [False, True])
async def test_where_the_c_library_cannot_start_jobs_asyncio_does(
    tmp_path: Path, is_ignored: bool
) -> None:
    """And what it makes up where children are reaped by the kernel is not believed."""
    program = f"""
import asyncio, json, signal
from anodejobs import Jobs
from anodejobs.executors import spawner
spawner._libc = lambda: None
async def main():
    async with Jobs("job_db", stop_grace=1, executor="inline") as jobs:
        if {is_ignored}:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        record = await jobs.run("sleep 0.2; echo $A; exit 7", "a", envs={{"A": "x"}})
        record = await jobs.wait("a", timeout=60)
        print(json.dumps([record.exit_code, (await jobs.job_logs("a"))[0]]))
asyncio.run(main())
"""
    code, stdout = await host(tmp_path, program)
    assert code in ((7, None) if is_ignored else (7,))
    assert stdout == "x\n"


@pytest.mark.parametrize("kind", ["inline", "shim"])
async def test_where_there_are_too_few_descriptors_for_all_jobs_the_others_run(
    tmp_path: Path, kind: str
) -> None:
    """And of those that do not, no process is left."""
    program = f"""
import asyncio, json, resource
from anodejobs import Jobs, StoreError
async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    async with Jobs("job_db", stop_grace=1, executor="{kind}") as jobs:
        async def one(number):
            try:
                record = await jobs.run("exec sleep 600", f"job-{{number}}")
            except StoreError:
                return "refused"
            if record.status == "failed_start":
                return "refused" if "Too many open files" in record.error else record.error
            return await jobs.get_status(record.self_id)
        ran = await asyncio.gather(*(one(number) for number in range(150)))
        running = [job for job in ran if not isinstance(job, str)]
        others = sorted({{job for job in ran if isinstance(job, str)}})
        ends = [await jobs.stop(job.self_id) for job in running]
        codes = sorted({{end.exit_code for end in ends}})
        await jobs.run("exit 3", "after")
        print(json.dumps([others, codes, (await jobs.wait("after", timeout=60)).exit_code]))
asyncio.run(main())
"""
    others, codes, after = await host(tmp_path, program)
    assert (others, codes, after) == (["refused"], [-15], 3)
    assert not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(tmp_path)]


OWN_CHILDREN = """
import asyncio, json, warnings
from anodejobs import Jobs


def policy_now():
    with warnings.catch_warnings(action="ignore"):  # deprecated from Python 3.14 on
        return asyncio.get_event_loop_policy()


async def main():
    policy = policy_now()
    async with Jobs("job_db", stop_grace=1, executor="inline") as jobs:
        own = await asyncio.create_subprocess_exec("/bin/sh", "-c", "read _; exit 7", stdin=-1)
        await jobs.run("exit 3", job_id="a")
        later = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 8")
        own.stdin.close()
        codes = [(await jobs.wait("a", timeout=60)).exit_code, await own.wait(), await later.wait()]
        print(json.dumps([codes, policy_now() is policy]))
"""


async def test_an_applications_own_children_end_with_their_own_codes(tmp_path: Path) -> None:
    codes, has_its_policy = await host(tmp_path, f"{OWN_CHILDREN}\nasyncio.run(main())")
    assert codes == [3, 7, 8]
    assert has_its_policy


# What the tests above are written with.


@pytest.fixture
def stranger() -> Iterator[Popen[bytes]]:
    """A process in a session of its own that is no job, though it has an id in its arguments."""
    command = [*script("here()"), "a-job"]
    with Popen(command, stdout=PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def seen_as(process: Popen[bytes], *, later: float) -> tree.Process:
    """Return the process as it would have been seen had it begun so much later."""
    seen = tree.take_snapshot().processes[process.pid]
    return tree.Process(
        pid=seen.pid,
        start_time=seen.start_time + later,
        parent=seen.parent,
        session=seen.session,
        token=seen.token,
    )


def attempt_of(process: Popen[bytes], *, later: float) -> Attempt:
    """Return what would be on record of an attempt that had the process, begun so much later."""
    return Attempt(
        token=new_token(),
        supervisor="",
        pid=process.pid,
        start_time=seen_as(process, later=later).start_time,
        boot_id=tree.boot_id(),
    )


async def told(jobs: Jobs, job_id: str, number: int) -> list[psutil.Process]:
    """Return so many processes of a job, once they have told their pids."""
    lines = await written(jobs, job_id, "\n", times=number)
    return [psutil.Process(int(pid)) for pid in lines.split()[:number]]


async def written(jobs: Jobs, job_id: str, text: str, times: int = 1) -> str:
    """Return what the job has written to stdout, once the text is there so many times."""
    read = ""
    chunks: Any = jobs.follow(job_id, stderr=False)
    async with asyncio.timeout(LIMIT_S), aclosing(chunks):
        async for chunk in chunks:
            read += str(chunk.text)
            if read.count(text) >= times:
                return read
    raise AssertionError(f"the job has ended, and has written {read!r}")


async def stopped(jobs: Jobs, job_id: str, grace: float | None = None) -> JobRecord:
    async with asyncio.timeout(LIMIT_S):
        record = await jobs.stop(job_id, grace=grace)
    assert record is not None
    return record


async def environment_of(jobs: Jobs, job_id: str, **options: Any) -> dict[str, str]:
    """Return the environment of a job that is run with the options."""
    env = shutil.which("env")
    assert env
    await jobs.run([env, "-0"], job_id=job_id, **options)
    record = await jobs.wait(job_id, timeout=LIMIT_S)
    log = (Path(record.logdir) / f"{record.logfile}_out.txt").read_bytes()
    return dict(os.fsdecode(variable).split("=", 1) for variable in log.split(b"\0")[:-1])


def runs(pid: int) -> bool:
    """Return whether the process lives; one that nobody has reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and runs(process.pid)]


def session(leader: int | None) -> list[psutil.Process]:
    """Return the living processes of a session."""
    assert leader is not None
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader and runs(process.pid):
                found.append(process)
    return found


async def seen(holds: Callable[[], bool]) -> None:
    """Return once it holds: a look again and again, since no process is told of another's state."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.005)


async def host(folder: Path, code: str) -> Any:
    """Run an application in the folder, and return the JSON that it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    application = await asyncio.to_thread(
        subprocess.run, command, cwd=folder, capture_output=True, timeout=LIMIT_S
    )
    assert application.returncode == 0, application.stderr.decode()
    return json.loads(application.stdout)
