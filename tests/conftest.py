"""What every test starts with, and what none may leave behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import select
import signal
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil
import pytest
from hypothesis import HealthCheck, settings

from anodejobs import Jobs
from anodejobs.executors import shim, supervisors
from tests.programs import Gate

pytest.register_assert_rewrite("anodejobs.testing")

# How long an example takes says how busy the machine is.
settings.register_profile("any time", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any time")


# By which it is known whose tests a process was started by: several runs may be under way.
os.environ["PYTEST_RUN"] = uuid.uuid4().hex


STANDARD = {*sys.stdlib_module_names, "_missing_stdlib_info"}
"""The modules of Python's own library; the last, of 3.15, is not among the names that it tells."""


def python(code: str) -> list[str]:
    """Return the command that runs a line of Python, quickly."""
    return [sys.executable, "-I", "-S", "-c", code]


ON_BOTH = ("test_cgroups", "test_processes", "test_follow", "test_waiting", "test_events")
"""Tests whose ``jobs`` are started inline, and once more through a shim."""


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have the tests of some modules run with each executor."""
    if "executor" in metafunc.fixturenames:
        on_both = metafunc.module.__name__.rpartition(".")[2] in ON_BOTH
        executors = ["inline", "shim"] if on_both else ["inline"]
        metafunc.parametrize("executor", executors, ids=["", "shim"][: len(executors)])


@pytest.fixture
async def jobs(tmp_path: Path, executor: Literal["inline", "shim"]) -> AsyncIterator[Jobs]:
    """A Jobs on an empty directory; jobs that run at the end of the test are stopped at once."""
    async with Jobs(
        db_path=tmp_path / "job_db", stop_grace=1, executor=executor, on_close="stop"
    ) as jobs:
        yield jobs


@pytest.fixture(autouse=True)
def no_shim_left_over(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Wait for the shims of the test to leave, which they do soon; fail a test where one stays."""
    monkeypatch.setattr(shim, "LINGER_S", 0.05)
    # Before it, so that the folder is there when we look; most tests have none.
    tmp_path = request.getfixturevalue("tmp_path") if _has_folder(request) else None
    yield
    if tmp_path is None:
        return
    for log in tmp_path.rglob("shim/log"):  # one that crashed is replaced, and nobody would notice
        assert "CRITICAL" not in log.read_text(errors="replace"), log.read_text(errors="replace")
    left = [pid for lock in tmp_path.rglob("shim/*lock") if (pid := locker(lock))]
    for pid in left:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            # One that another process has started would linger longer.
            if not any(map(_runs, psutil.Process(pid).children())):
                os.kill(pid, signal.SIGTERM)
        if not has_died(pid, within_s=60):
            _kill_tree(pid)
            pytest.fail(f"shim {pid} stays: its jobs were not stopped")


def _has_folder(request: pytest.FixtureRequest) -> bool:
    return "tmp_path" in request.fixturenames


def _kill_tree(pid: int) -> None:
    """End a shim and its jobs, which would outlive it: all that was orphaned is its child."""
    with suppress(psutil.NoSuchProcess):
        left = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def has_died(pid: int, within_s: float) -> bool:
    """Return whether the process, which need not be our child, dies in time; reaped or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(within_s * 1000))
    finally:
        os.close(fd)


def locker(lock: Path) -> int | None:
    """Return the pid of the shim that holds the lock."""
    return int(lock.read_text()) if supervisors.is_locked(lock) else None


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """Fail a test that leaves a process, a descriptor or a thread behind."""
    before = descriptors()
    threads = set(threading.enumerate())
    # A server that a module started for all of its tests.
    known = set(psutil.Process().children()) if _has_children() else set()
    yield
    if _has_children():
        new = set(psutil.Process().children()) - known
        family = {*new, *(p for child in new for p in child.children(recursive=True))}
        children = [p for p in family if _runs(p)]
        assert not children, f"left running: {[p.cmdline() for p in children]}"
    left = [
        thread
        for thread in threading.enumerate()
        if thread not in threads
        and not thread.name.startswith(("asyncio_", "asyncio-waitpid", "AnyIO"))
    ]
    for thread in left:
        thread.join(5)  # a connection's thread ends a moment after the connection was closed
    assert not any(thread.is_alive() for thread in left), f"threads left: {left}"
    until = time.monotonic() + 5
    while left_open := {fd: what for fd, what in descriptors().items() if fd not in before}:
        # What was given up goes on in its thread for a moment, a look at all processes for example.
        assert time.monotonic() < until, f"left open: {left_open}"
        time.sleep(0.01)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have those tests looked after for tasks that have an event loop."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(0, "no_task_left_over")


def pytest_collection_finish() -> None:
    """Spare the collector of garbage thousands of tests, which stay: it looks at what they make."""
    gc.freeze()


@pytest.fixture
async def no_task_left_over() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind."""
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    left.discard(asyncio.current_task())  # type: ignore[arg-type]
    assert not left, f"tasks left: {left}"


HAS_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """End what the jobs of a test have left that failed, maybe before it could end them."""
    report = yield
    item.stash[HAS_FAILED] = item.stash.get(HAS_FAILED, False) or report.failed  # type: ignore[attr-defined]
    if call.when == "teardown" and item.stash[HAS_FAILED]:
        end_jobs_of(item.nodeid)
    return report


def end_jobs_of(test: str) -> None:
    """Kill the processes of jobs that the test has started in this run."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environ = process.environ()
            is_ours = environ.get("PYTEST_RUN") == os.environ["PYTEST_RUN"]
            is_its = environ.get("PYTEST_CURRENT_TEST", "").startswith(f"{test} ")
            if is_ours and is_its and "ANODEJOBS_TOKEN" in environ:
                process.kill()


def _has_children() -> bool:
    """Ask the kernel, which is a hundred times quicker than to look at all processes."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def descriptors() -> dict[int, str]:
    """Return the open descriptors, but for the event loop's own."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
        if not target.startswith(("anon_inode:[eventpoll]", "socket:")):
            found[int(name)] = target
    return found


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
