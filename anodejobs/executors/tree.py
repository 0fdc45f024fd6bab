"""Which processes belong to an attempt, and how to reach one without hitting a stranger.

A process is recognised by its pid and start time together, and signalled through a pidfd that was
opened before the start time was compared. On Linux ``/proc`` is read directly: a look at all
processes is a few milliseconds. Elsewhere psutil does the same more slowly.

Everything here may wait for the kernel; call ``take_snapshot`` in a thread. It raises OSError where
descriptors lack, since a process that cannot be looked at has not gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from anodejobs.events import Attempt
from anodejobs.executors import cgroups
from anodejobs.executors.base import TreeUsage
from anodejobs.executors.descriptors import LACK, raise_lack
from anodejobs.executors.marks import read_tag, tag_of

# psutil is imported where it is needed: a shim on Linux has no use for it, and stays small.

IS_LINUX = sys.platform == "linux"
_TOKEN = b"ANODEJOBS_TOKEN="
_EXECUTING_LOOKS = 50
_EXECUTING_PAUSE_S = 0.001
"""How often, and how far apart, a process is looked at that is being executed: as a rule it takes a
tenth of that, and longer where the program has to be read from the disk."""


def _has_pidfds() -> bool:
    """Return whether the kernel has pidfds and lets us use them: a sandbox may refuse either."""
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return False
    try:
        fd = os.pidfd_open(os.getpid())
    except OSError as error:
        return error.errno in LACK
    try:
        signal.pidfd_send_signal(fd, 0)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


HAS_PIDFDS = _has_pidfds()


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was at one look."""

    pid: int
    start_time: float
    parent: int
    session: int
    token: str | None
    tag: int | None = None
    """The mark of ``marks``."""
    has_stopped: bool = False
    """Whether it had done what SIGSTOP asks for."""

    @property
    def key(self) -> tuple[int, float]:
        """What tells it from every other process since the machine was started."""
        return self.pid, self.start_time


@cache
def boot_id() -> str:
    """Return what tells this start of the machine from every other."""
    if IS_LINUX:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    import psutil

    return str(int(psutil.boot_time()))


def start_time(pid: int) -> float | None:
    """Return when the process began, on a scale of the kernel's; None where there is none.

    A process that is dead and waits to be reaped counts as none.
    """
    if not IS_LINUX:
        process = _look_at(pid, None)
        return process.start_time if process else None
    fields = _stat(pid)
    return float(fields[_START]) if fields and not _is_dead(fields) else None


def look_at(pid: int, started: float) -> Process | None:
    """Return the process that had this pid and start time, None where it is gone."""
    process = _look_at(pid, None)
    return process if process and process.start_time == started else None


def is_alive(pid: int, started: float) -> bool:
    """Return whether the process that had this pid and start time still runs."""
    return start_time(pid) == started


def read_token(pid: int) -> str | None:
    """Return the mark of the attempt that the process belongs to, if it bears one we may see."""
    if not IS_LINUX:
        return _token_with_psutil(pid)
    try:
        environ = _whole_environ(pid)
    except OSError as error:
        raise_lack(error)
        return None
    for variable in environ.split(b"\0"):
        if variable.startswith(_TOKEN):
            return variable[len(_TOKEN) :].decode("ascii", "replace")
    return None


def _whole_environ(pid: int) -> bytes:
    """Return the environment of a process; of one that is being executed, as it will be.

    Who has spawned that goes on before the kernel has laid out what it gives to the program.
    """
    is_laid_out = False
    for _ in range(_EXECUTING_LOOKS):
        environ = _environ(f"/proc/{pid}") or _environ_of_threads(pid)
        if environ or is_laid_out:
            return environ
        is_laid_out = not _is_being_executed(pid)  # by now: it may not have been a moment ago
        if not is_laid_out:
            time.sleep(_EXECUTING_PAUSE_S)
    return b""


def _is_being_executed(pid: int) -> bool:
    """Return whether the process has its program, and no arguments yet."""
    try:
        os.readlink(f"/proc/{pid}/exe")  # which a thread of the kernel, or a dead process, has not
    except OSError as error:
        raise_lack(error)
        return False
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return not file.read(1)


def _environ_of_threads(pid: int) -> bytes:
    """Return the environment of a process of which the first thread may have ended."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        if environ := _environ(f"/proc/{pid}/task/{thread}"):
            return environ
    return b""


def _environ(folder: str) -> bytes:
    """Return the environment that is told in the folder; nothing of a thread that has ended."""
    try:
        with open(f"{folder}/environ", "rb") as file:
            return file.read()
    except ProcessLookupError:  # as newer kernels say it
        return b""


def _token_with_psutil(pid: int) -> str | None:
    import psutil

    try:
        return psutil.Process(pid).environ().get(_TOKEN.decode()[:-1]) or None
    except (OSError, psutil.Error):
        return None


_STATE, _PARENT, _SESSION, _THREADS, _START = 0, 1, 3, 17, 19
_TIMES = slice(11, 15)
"""User and system time: its own, and that of the children it has waited for."""
_DEAD = (b"Z", b"X")
_STOPPED = (b"T", b"t")


def _stat(pid: int) -> list[bytes] | None:
    """Return the fields of ``/proc/<pid>/stat`` from the state on, None where it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise_lack(error)
        return None
    try:
        stat = os.read(fd, 4096)
    except OSError as error:
        raise_lack(error)
        return None
    finally:
        os.close(fd)
    # The program's name may hold blanks and brackets; the last bracket ends it.
    return stat[stat.rindex(b")") + 2 :].split()


def _is_dead(fields: list[bytes]) -> bool:
    """Return whether the process is dead; the state is that of its first thread alone."""
    return fields[_STATE] in _DEAD and int(fields[_THREADS]) <= 1


def _look_at(pid: int, known: Snapshot | None) -> Process | None:
    """Return the process, None where it is gone or only waits to be reaped."""
    if not IS_LINUX:
        return _look_with_psutil(pid)
    fields = _stat(pid)
    if fields is None or _is_dead(fields):
        return None
    started = float(fields[_START])
    old = known.processes.get(pid) if known else None
    is_known = old is not None and old.start_time == started
    return Process(
        pid=pid,
        start_time=started,
        parent=int(fields[_PARENT]),
        session=int(fields[_SESSION]),
        # The marks are read once: what a process was forked with says whose it is, whatever it
        # may execute later.
        token=old.token if old and is_known else read_token(pid),
        tag=old.tag if old and is_known else read_tag(pid),
        # One whose first thread has ended does not show it.
        has_stopped=fields[_STATE] in (*_STOPPED, *_DEAD),
    )


def _look_with_psutil(pid: int) -> Process | None:
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            status = process.status()
            if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return None
            return Process(
                pid=pid,
                start_time=process.create_time(),
                parent=process.ppid(),
                session=os.getsid(pid),
                token=read_token(pid),
                has_stopped=status == psutil.STATUS_STOPPED,
            )
    except (OSError, psutil.Error):
        return None


class Snapshot:
    """All living processes at one look."""

    def __init__(self, processes: dict[int, Process]) -> None:
        self.processes = processes
        self._children: defaultdict[int, list[Process]] = defaultdict(list)
        self._by_session: defaultdict[int, list[Process]] = defaultdict(list)
        self._by_token: defaultdict[str, list[Process]] = defaultdict(list)
        self._by_tag: defaultdict[int, list[Process]] = defaultdict(list)
        for process in processes.values():
            self._children[process.parent].append(process)
            self._by_session[process.session].append(process)
            if process.token:
                self._by_token[process.token].append(process)
            if process.tag:
                self._by_tag[process.tag].append(process)

    def members(
        self, attempt: Attempt, *, has_just_ended: bool = False, known: Iterable[Process] = ()
    ) -> list[Process]:
        """Return the attempt's processes: its main one, and whatever descends from it.

        Found are those that bear its marks, those in its session or its cgroup, and all their
        descendants. A session is known by the main process's pid, so it counts only while one of
        the attempt's is in it, which keeps the number from being used again, or where the last one
        that was known to be in it ``has_just_ended``. What was ``known`` as a member stays one,
        though the parent has ended by which alone it was found.
        """
        at_pid = self.processes.get(attempt.pid) if attempt.pid is not None else None
        main = at_pid if at_pid and at_pid.start_time == attempt.start_time else None
        found = self._bearers(attempt.token, starter=main.parent if main else None)
        found += (self.processes[process.pid] for process in known if self.holds(process))
        if attempt.cgroup is not None:
            found += self._in(attempt.cgroup)
        if main is not None:
            found.append(main)
        is_its_session = any(process.session == attempt.pid for process in found)
        if attempt.pid is not None and (is_its_session or (has_just_ended and at_pid is None)):
            found += (
                process
                for process in self._by_session.get(attempt.pid, ())
                if process.token in (None, attempt.token)
            )
        members: dict[int, Process] = {}
        while found:
            process = found.pop()
            if process.pid not in members:
                members[process.pid] = process
                found += self._children.get(process.pid, ())
        # Oldest first: a shell whose child was ended before it would take that for its own end.
        return sorted(members.values(), key=lambda process: process.key[::-1])

    def _bearers(self, token: str, *, starter: int | None = None) -> list[Process]:
        # A shim bears the mark while it spawns, and for a moment longer: to take it for a part of
        # the job would be to end it, and all other jobs with it. We may be that shim.
        tag = tag_of(token)
        tagged = (
            process
            for process in self._by_tag.get(tag, ())
            if process.pid not in (os.getpid(), starter) and read_tag(process.pid) == tag
        )
        return [*self._by_token.get(token, ()), *tagged]

    def _in(self, cgroup: str) -> Iterator[Process]:
        for pid in cgroups.pids(cgroup):
            process = self.processes.get(pid) or _look_at(pid, None)
            if process is not None:  # what is younger than the look is part of it from now on
                yield self.processes.setdefault(pid, process)

    def holds(self, process: Process) -> bool:
        """Return whether this very process was living at the look."""
        seen = self.processes.get(process.pid)
        return seen is not None and seen.key == process.key

    def main(self, token: str) -> Process | None:
        """Return the process that was started with the token, not one that it has left behind.

        It leads its session, which few of its descendants do, and none that is older.
        """
        leaders = (process for process in self._bearers(token) if process.session == process.pid)
        return min(leaders, key=lambda process: process.key[::-1], default=None)


def take_snapshot(known: Snapshot | None = None) -> Snapshot:
    """Look at all processes; what ``known`` says of one that still runs is not read again."""
    looks = ((pid, _look_at(pid, known)) for pid in _pids())
    return Snapshot({pid: process for pid, process in looks if process is not None})


def _pids() -> list[int]:
    if IS_LINUX:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    import psutil

    return psutil.pids()


def orphans(parent: int) -> set[tuple[int, float]]:
    """Return the dead children of a process that nobody has reaped, by pid and start time (Linux).

    Quick where there are none: whoever has children asks the kernel first whether one is dead.
    """
    found = ((pid, _stat(pid)) for pid in _pids())
    return {
        (pid, float(fields[_START]))
        for pid, fields in found
        if fields and _is_dead(fields) and int(fields[_PARENT]) == parent
    }


def open_pidfd(pid: int, started: float, *, even_if_dead: bool = False) -> int | None:
    """Return a descriptor of the process, None where it is gone or the system has none.

    ``even_if_dead``: one that waits to be reaped will do as well.
    """
    if not HAS_PIDFDS:
        return None
    try:
        fd = os.pidfd_open(pid)
    except OSError as error:
        raise_lack(error)
        return None
    is_it = False
    try:
        is_it = is_alive(pid, started) or (even_if_dead and _is_there(pid, started))
    finally:
        if not is_it:
            os.close(fd)
    return fd if is_it else None


def _is_there(pid: int, started: float) -> bool:
    fields = _stat(pid) if IS_LINUX else None
    return fields is not None and float(fields[_START]) == started


def send(process: Process, signum: int) -> bool:
    """Send a signal to this process and no other; return whether it was there to be reached.

    A process that has become another user's (sudo) is not.
    """
    if HAS_PIDFDS:
        fd = open_pidfd(process.pid, process.start_time)
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, signum)
        except (ProcessLookupError, PermissionError):
            return False
        finally:
            os.close(fd)
        return True
    if not is_alive(process.pid, process.start_time):
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process.pid, signum)
        return True
    return False


def wait_gone(processes: Iterable[Process], timeout: float) -> None:
    """Return when all the processes are dead, or after ``timeout`` seconds; where pidfds lack.

    It looks again and again: to wait for a child would take its exit code from asyncio.
    """
    end = time.monotonic() + timeout
    while any(is_alive(*process.key) for process in processes) and time.monotonic() < end:
        time.sleep(_PAUSE_S)


_PAUSE_S = 0.01


def measure(processes: Iterable[Process]) -> TreeUsage:
    """Return what the processes use together."""
    import psutil

    number, cpu, memory = 0, 0.0, 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            seen = psutil.Process(process.pid)
            with seen.oneshot():
                times = seen.cpu_times()
                cpu += times.user + times.system
                memory += seen.memory_info().rss
                number += 1
    return TreeUsage(processes=number, cpu_seconds=cpu, memory_bytes=memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the processes of an attempt had used at one look."""

    cpu_seconds: float = 0.0
    """With that of all that they have waited for."""
    memory_bytes: int = 0
    """The resident memory of all at that moment, or the highest that one of them ever had."""


def sample(processes: Iterable[Process]) -> Sample:
    """Return what the processes have used (Linux); elsewhere nothing is seen."""
    ticks = resident = highest = 0
    for process in processes:
        fields = _stat(process.pid) if IS_LINUX else None
        if fields is not None and float(fields[_START]) == process.start_time:
            ticks += sum(map(int, fields[_TIMES]))
            now, peak = _memory(process.pid)
            resident += now
            highest = max(highest, peak)
    return Sample(cpu_seconds=ticks / _TICKS_A_S, memory_bytes=max(resident, highest))


_TICKS_A_S = os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int | Literal["self"]) -> int:
    """Return the most memory that a process has had resident (Linux); 0 where it is gone."""
    return _memory(pid)[1]


def _memory(pid: int | Literal["self"]) -> tuple[int, int]:
    """Return the memory that a process has resident, and the most that it has had."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            status = file.read(4096)
    except OSError:
        return 0, 0
    return _kib(status, b"VmRSS:"), _kib(status, b"VmHWM:")


def _kib(status: bytes, name: bytes) -> int:
    _, found, rest = status.partition(name)  # a process that is dead has none
    return int(rest.split(None, 1)[0]) * 1024 if found else 0
