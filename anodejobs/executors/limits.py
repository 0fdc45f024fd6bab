"""What an attempt may use, and as whom it runs: set by a program that then becomes the job's.

Nothing is set between fork and exec: that would need the slow way to spawn. ``limited`` puts the
system's own ``prlimit``, ``nice`` and ``setpriv`` before the command, each of which adds about half
a millisecond to the start; where one of them is missing, ``limited.py`` does the work of all and
adds ten. Environment, descriptors, session and pid are the same before and after.

Such a limit holds for each process of the attempt by itself. Those for all of them together are
``tree_settings`` of a cgroup of its own, which ``limited.py`` enters before it sets the others.
"""

from __future__ import annotations

import errno
import functools
import grp
import os
import pwd
import re
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anodejobs.interpreter import interpreter

_CPU_GRACE_S = 5
"""What a process may use after it was told that its CPU time is over, before it is killed."""
_TOOLS: Final = ("prlimit", "nice", "setpriv", "limited")
# Of what is mapped only what can be written counts: runtimes reserve far more than they use.
_MEMORY = "RLIMIT_DATA" if sys.platform == "linux" else "RLIMIT_AS"
_LONGEST_SAYING = 160
_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptLimits:
    """The limits of an attempt; None is what the supervisor itself has."""

    memory_bytes: int | None = None
    """How much writable memory a process may have of its own."""
    cpu_seconds: int | None = None
    open_files: int | None = None
    niceness: int | None = None
    processes: int | None = None
    """How many processes and threads there may be of the *user* it runs as. Not for root."""
    user: str | int | None = None
    group: str | int | None = None
    """By default the user's own."""
    memory_max: int | None = None
    """How many bytes all of its processes may have together."""
    cpus: float | None = None
    tasks_max: int | None = None
    cgroup_parent: str | None = None
    """In which cgroup its own is made. By itself it limits nothing."""

    @property
    def is_grouped(self) -> bool:
        """Whether the attempt has a cgroup of its own."""
        whole = (self.memory_max, self.cpus, self.tasks_max, self.cgroup_parent)
        return any(value is not None for value in whole)


def tree_settings(limits: AttemptLimits) -> dict[str, str]:
    """Return what to write into the files of the attempt's cgroup, by their names."""
    settings: dict[str, str] = {}
    if limits.memory_max is not None:
        # All or none: a job of which one process was killed is seldom of any use.
        settings |= {"memory.max": str(limits.memory_max), "memory.oom.group": "1"}
    if limits.cpus is not None:
        quota = max(_LEAST_QUOTA_US, round(limits.cpus * _PERIOD_US))
        settings["cpu.max"] = f"{quota} {_PERIOD_US}"
    if limits.tasks_max is not None:
        settings["pids.max"] = str(limits.tasks_max)
    return settings


def limited(argv: Sequence[str], limits: AttemptLimits, cgroup: str | None = None) -> list[str]:
    """Return the command that sets the limits and then executes the given one in its place.

    First of all it enters the ``cgroup``, a path, where one is given.
    Blocks where the system asks others for its users. Raises OSError or ValueError, with what to
    tell in a line, where the limits cannot be set from this process. What is refused only later is
    told by ``refusal``.
    """
    settings = {**_rlimits(limits), **_niceness(limits), **_identity(limits)}
    if cgroup is not None:  # no tool does that
        return [*_by_helper({"cgroup": cgroup, **settings}), *argv]
    if not settings:
        return list(argv)
    prefix = _by_tools(settings)
    return [*(_by_helper(settings) if prefix is None else prefix), *argv]


def refusal(exit_code: int | None, stderr: str) -> str | None:
    """Return why a command from ``limited`` was not executed, None where it was.

    ``stderr`` is all that the attempt wrote there: then it is one line of the tool that could not
    go on, and nothing else.
    """
    tool, colon, reason = stderr.strip().partition(": ")
    # Some say by which path they were called.
    is_tool = bool(colon) and os.path.basename(tool) in _TOOLS
    if exit_code not in (1, 125, 126, 127) or not is_tool or "\n" in reason:
        return None
    return reason


def why_ended(
    limits: AttemptLimits, exit_code: int | None, *, stderr_tail: str = "", oom_kills: int = 0
) -> str | None:
    """Return which limit ended an attempt, in a line; None where none did, or nobody can tell.

    ``oom_kills`` is how many of its processes the kernel ended as their cgroup was over its limit.
    A process that is refused memory, files or processes ends as it likes: what it said last makes
    the reason probable, and the line says so.
    """
    if not exit_code:
        return None
    if oom_kills and limits.memory_max is not None:
        return f"exceeded its memory limit: {_size(limits.memory_max)} for all of its processes"
    # A shell whose command was killed tells so by 128 more.
    if limits.cpu_seconds is not None and exit_code in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return f"over its CPU time: limited to {limits.cpu_seconds} s"
    for line in reversed(stderr_tail.splitlines()[-20:]):
        for what, amount, saying in _sayings(limits):
            if re.search(saying, line, re.IGNORECASE):
                said = line.strip()[:_LONGEST_SAYING]
                return f"probably over its {what}: limited to {amount}, and it says {said!r}"
    return None


def _rlimits(limits: AttemptLimits) -> dict[str, str]:
    wanted = {
        _MEMORY: limits.memory_bytes,
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_NPROC": limits.processes,
    }
    return {
        name: _pair(name, value)
        for name, value in wanted.items()
        if value is not None and hasattr(resource, name)
    }


def _pair(name: str, value: int) -> str:
    """Return the soft and the hard limit. What we may not raise for ourselves is no more for it."""
    most = resource.getrlimit(getattr(resource, name))[1]
    # The soft one first: a process that hears of it can still say what it was at.
    hard = value + _CPU_GRACE_S if name == "RLIMIT_CPU" else value
    if most == resource.RLIM_INFINITY or hard <= most or os.geteuid() == 0:
        return f"{value}:{hard}"
    if name == "RLIMIT_NOFILE":
        raise ValueError(f"open_files: {value} is more than the {most} allowed here")
    return f"{min(value, most)}:{most}"


def _niceness(limits: AttemptLimits) -> dict[str, str]:
    if limits.niceness is None:
        return {}
    step = limits.niceness - os.getpriority(os.PRIO_PROCESS, 0)
    if step < 0 and os.geteuid() != 0:
        raise PermissionError(errno.EPERM, f"niceness: only root may go down to {limits.niceness}")
    return {"nice": str(step)} if step else {}


def _identity(limits: AttemptLimits) -> dict[str, str]:
    if limits.user is None and limits.group is None:
        return {}
    uid, gid, groups = _ids(limits)
    if (uid, gid) == (os.geteuid(), os.getegid()) and limits.group is None:
        return {}
    if os.geteuid() != 0:
        whom = limits.group if limits.user is None else limits.user
        raise PermissionError(errno.EPERM, f"only root may start a job as {whom!r}")
    ids = {"groups": ",".join(map(str, groups)), "gid": str(gid)}
    return ids if limits.user is None else {**ids, "uid": str(uid)}


def _ids(limits: AttemptLimits) -> tuple[int, int, list[int]]:
    """Return user, group and further groups."""
    gid = None if limits.group is None else _gid(limits.group)
    if limits.user is None:
        assert gid is not None
        return os.geteuid(), gid, [gid]
    entry = _entry(limits.user)
    if entry is not None:
        gid = entry.pw_gid if gid is None else gid
        return entry.pw_uid, gid, os.getgrouplist(entry.pw_name, gid)
    if isinstance(limits.user, str):
        raise ValueError(f"user: there is no {limits.user!r} here")
    if gid is None:
        raise ValueError(f"group: must be named, the system does not know user {limits.user}")
    return limits.user, gid, [gid]


def _entry(user: str | int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        return None


def _gid(group: str | int) -> int:
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"group: there is no {group!r} here") from None


def _by_tools(settings: dict[str, str]) -> list[str] | None:
    """Return the tools with their arguments, None where one that is needed is not there."""
    rlimits = [
        f"--{name.removeprefix('RLIMIT_').lower()}={value}"
        for name, value in settings.items()
        if name.startswith("RLIMIT_")
    ]
    ids = [f"--re{name}={settings[name]}" for name in ("uid", "gid") if name in settings]
    if ids:
        ids.append(f"--groups={settings['groups']}")
    # Privileges last: without them less would be allowed.
    steps = {
        "prlimit": rlimits,
        "nice": ["-n", settings["nice"]] if "nice" in settings else [],
        "setpriv": ids,
    }
    prefix: list[str] = []
    for name, arguments in steps.items():
        if not arguments:
            continue
        tool = _tool(name)
        if tool is None:
            return None
        prefix += [tool, *arguments, "--"]
    return prefix


@functools.cache
def _tool(name: str) -> str | None:
    """Return the tool's path. The application's PATH has no say: it runs as whoever we are."""
    found = shutil.which(name, path=os.confstr("CS_PATH") or os.defpath)
    # Busybox has some of them, with few of their options.
    if found is None or os.path.basename(os.path.realpath(found)) == "busybox":
        return None
    return found


def _by_helper(settings: dict[str, str]) -> list[str]:
    arguments = [f"{name}={value}" for name, value in settings.items()]
    return [*helper(), *arguments, "--"]


@functools.cache
def helper() -> tuple[str, ...]:
    """Return the command of ``limited.py``. A shim asks for it before a new release can remove it.

    Raises OSError where it cannot be run.
    """
    text = Path(__file__).with_name("limited.py").read_text(encoding="utf-8")
    # Not as a virtual environment calls it: that may be removed while a shim lives.
    return os.path.realpath(interpreter()), "-I", "-S", "-c", text


def _sayings(limits: AttemptLimits) -> list[tuple[str, str, str]]:
    """Return for each limit what it is called, what it is, and what programs say that meet it."""
    found = []
    if limits.memory_bytes is not None:
        saying = r"MemoryError|bad_alloc|cannot allocate memory|out of ?memory|memory exhausted"
        found.append(("memory", _size(limits.memory_bytes), saying))
    if limits.open_files is not None:
        found.append(("open files", str(limits.open_files), r"too many open files"))
    for amount in (limits.tasks_max, limits.processes):
        if amount is not None:
            saying = r"resource temporarily unavailable|can't start new thread|cannot fork"
            found.append(("processes", str(amount), saying))
    return found


def _size(number: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor:
            return f"{number / factor:.4g} {unit}"
    return f"{number} bytes"
