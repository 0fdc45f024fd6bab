"""The processes of one chaos: begun, found by a mark in their environment, and ended (Linux)."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from anodejobs.executors.supervisors import is_locked
from benchmarks.side import ROOT

MARK = "ANODEJOBS_CHAOS"
"""The variable that names the directory: a host has it, a shim and a job inherit it."""

_KILLING_S = 20.0
_EXEC_S = 0.05


def start_host(
    module: str, *arguments: str, place: Path, log: Path, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a program of the benchmarks as a host of this chaos; ``log`` gets its errors."""
    with log.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            cwd=ROOT,
            env={**os.environ, MARK: str(place)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for us
        )


def marked(place: Path) -> dict[int, dict[str, str]]:
    """Return the living processes of this chaos, by pid, with their environments."""
    wanted = str(place)
    found = ((pid, _environment_of(pid)) for pid in _pids())
    return {pid: env for pid, env in found if env.get(MARK) == wanted}


def is_of_a_job(env: dict[str, str]) -> bool:
    return "ANODEJOBS_TOKEN" in env


def running(place: Path) -> set[str]:
    """Return the ids of the jobs whose main process is alive, as its session tells."""
    return {
        env["ANODEJOBS_JOB_ID"]
        for pid, env in marked(place).items()
        if is_of_a_job(env) and _leads_a_session(pid)
    }


def left_after(place: Path, patience_s: float) -> dict[int, dict[str, str]]:
    """Return what is still there when all should have gone by themselves."""
    end = time.monotonic() + patience_s
    while (left := marked(place)) and time.monotonic() < end:
        _await_death(next(iter(left)), end)
    return left


def kill_shim(place: Path) -> bool:
    """Kill the shim of the directory; return whether there was one."""
    lock = place / "db" / "shim" / "lock"
    try:
        pid = int(lock.read_text())
        fd = os.pidfd_open(pid)
    except (OSError, ValueError):  # none, or one that has only just begun, or that leaves
        return False
    try:
        if not is_locked(lock) or lock.read_text() != f"{pid}\n":
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return False
    finally:
        os.close(fd)
    return True


def kill_all(place: Path) -> None:
    """Kill all processes of this chaos, those that they start meanwhile too."""
    end = time.monotonic() + _KILLING_S
    looks_in_vain = 0
    while looks_in_vain < 2 and time.monotonic() < end:
        left = marked(place)
        for pid in left:
            _kill(place, pid)
        for pid in left:
            _await_death(pid, end)
        looks_in_vain = 0 if left else looks_in_vain + 1
        if not left:  # in the instant of its exec a process has no environment to be known by
            time.sleep(_EXEC_S)


def _kill(place: Path, pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Looked at again with the pidfd in hand: the number may be another's by now.
        if _environment_of(pid).get(MARK) == str(place):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def _await_death(pid: int, end: float) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, end - time.monotonic()) * 1000)
    finally:
        os.close(fd)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _environment_of(pid: int) -> dict[str, str]:
    """Return the environment, empty where there is no such process or it is dead."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (os.fsdecode(variable).partition("=") for variable in environ.split(b"\0"))
    return {name: value for name, _, value in pairs}


def _leads_a_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False
