"""Programs that tests run in processes of their own, talk to, and kill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
