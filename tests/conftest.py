"""What every test starts with, and what none may leave behind."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from anodejobs import Jobs

pytest.register_assert_rewrite("anodejobs.testing")


def python(code: str) -> list[str]:
    """Return the command that runs a line of Python, quickly."""
    return [sys.executable, "-I", "-S", "-c", code]


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    """A Jobs on an empty directory; jobs that run at the end of the test are stopped at once."""
    async with Jobs(db_path=tmp_path / "job_db", stop_grace=1) as jobs:
        yield jobs


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """Fail a test that leaves a process, a descriptor or a thread behind."""
    before = _descriptors()
    threads = set(threading.enumerate())
    yield
    children = [p for p in psutil.Process().children(recursive=True) if _runs(p)]
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
    after = _descriptors()
    assert after.keys() <= before.keys(), (
        f"left open: { {fd: after[fd] for fd in after.keys() - before.keys()} }"
    )


@pytest.fixture(autouse=True)
async def no_task_left_over() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind."""
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    left.discard(asyncio.current_task())  # type: ignore[arg-type]
    assert not left, f"tasks left: {left}"


def _descriptors() -> dict[int, str]:
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
