"""Programs that tests run in processes of their own, talk to, and kill."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIMIT_S = 60.0


class Gate:
    """Holds jobs up, time after time, until the test lets them pass, one by one."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # Both ends at once: neither the job nor the test then waits for the other to open its own.
        self._fd = os.open(path, os.O_RDWR)
        self.wait = f"read _ < {shlex.quote(str(path))}"
        """The command that waits."""

    def open(self, times: int = 1) -> None:
        os.write(self._fd, b"go on\n" * times)

    def close(self) -> None:
        os.close(self._fd)

    async def opened(self) -> None:
        """Return when a job has opened it."""
        await _readable(self._fd)


async def has_gone(pid: int | None) -> None:
    """Return once the process, which need not be our child, is dead; reaped or not."""
    assert pid is not None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await _readable(fd)
    finally:
        os.close(fd)


async def _readable(fd: int) -> None:
    loop, is_readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, is_readable.set)
    try:
        async with asyncio.timeout(_LIMIT_S):
            await is_readable.wait()
    finally:
        loop.remove_reader(fd)


@contextmanager
def process(*command: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program that talks through its pipes, and is killed if the test does not end it."""
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as running:
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def application(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program from when it says that it is ready; it is killed at the end."""
    with process(sys.executable, "-c", code, folder=folder) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield running


def ends_well(running: subprocess.Popen[str]) -> bool:
    """Return whether the program ends by itself, once there is nothing more to read for it."""
    assert running.stdin is not None
    running.stdin.close()
    return running.wait() == 0
