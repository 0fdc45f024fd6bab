"""A cgroup of an attempt's own: what holds there, holds for all of its processes together (v2).

It lies in the cgroup that was named, else in the one that this process is in, or the one above:
where it may be made, and what is to be limited can be. A folder that systemd manages counts only
where that has delegated it, and no process is moved but the attempt's.

Nothing here knows attempts. All of it asks the kernel, which takes well below a millisecond.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from anodejobs.executors.descriptors import raise_lack

_PREFIX = "anodejobs-"
_ABANDONED_AFTER_S = 60.0
"""An empty one that is older was left by a supervisor that was killed; a younger one may be of a
start that is under way."""
REMEDY = (
    "Delegate=yes and DelegateSubgroup= in the systemd unit, or a cgroup_parent that may be written"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the processes of a cgroup have used together; None is what it does not count."""

    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    memory_max: int | None = None
    """How much memory they may have."""
    oom_kills: int = 0
    """How many of them were killed since they had more."""


def create(name: str, settings: Mapping[str, str], parent: str | None) -> str:
    """Make a cgroup, with the settings by their files, and return its path.

    Raises OSError, and ValueError with why not and what to do, in a line.
    """
    folder = parent_for({setting.partition(".")[0] for setting in settings}, parent)
    _sweep(folder)
    path = folder / f"{_PREFIX}{name}"
    path.mkdir(exist_ok=True)
    try:
        for setting, value in settings.items():
            (path / setting).write_text(value)
    except OSError:
        path.rmdir()
        raise
    return str(path)


def parent_for(controllers: set[str], named: str | None, *, is_trial: bool = False) -> Path:
    """Return in which cgroup others can be made that have the controllers. Raises ValueError.

    It is made ready for that, but for a trial.
    """
    whys = []
    for folder in _surroundings() if named is None else [Path(named)]:
        why = _why_not(folder, controllers, is_named=named is not None)
        if why is None and not is_trial:
            why = _enable(folder, controllers)
        if why is None:
            return folder
        whys.append(f"{folder}: {why}")
    what = ", ".join(sorted(controllers)) or "anything"
    reason = "; ".join(whys) or "no cgroup v2 is in sight"
    raise ValueError(f"no cgroup can be made to limit {what}: {reason} ({REMEDY})")


def home(mountinfo: str, membership: str) -> tuple[Path, Path] | None:
    """Return the folder of a process's cgroup, and the topmost one that is in sight.

    From what the kernel says of its mounts and of its cgroups; None where there is no v2.
    """
    path = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), None)
    if path is None or ".." in Path(path).parts:  # above the topmost one of a container
        return None
    for line in mountinfo.splitlines():
        mounted, _, what = line.partition(" - ")
        if not what.startswith("cgroup2 "):
            continue
        root, point = (unescaped(field) for field in mounted.split(" ")[3:5])
        below = os.path.relpath(path, root)
        if ".." not in Path(below).parts:
            return Path(point, below), Path(point)
    return None


def unescaped(field: str) -> str:
    """Return a path as it is, from how the kernel writes it in ``mountinfo``."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _surroundings() -> list[Path]:
    """Return where one may be made without having been named."""
    try:
        found = home(*(Path(f"/proc/self/{name}").read_text() for name in ("mountinfo", "cgroup")))
    except OSError:
        return []
    if found is None:
        return []
    ours, top = found
    return [ours] if ours == top else [ours, ours.parent]


def _why_not(folder: Path, controllers: set[str], *, is_named: bool) -> str | None:
    """Return why no cgroup with the controllers can be made in there."""
    try:
        there = _words(folder / "cgroup.controllers")
        enabled = _words(folder / "cgroup.subtree_control")
    except OSError:
        return "not a cgroup v2"
    if not is_named and not _is_delegated(folder):
        return "systemd's own"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "not ours to write"
    if missing := controllers - there:
        return f"it lacks {', '.join(sorted(missing))}"
    # But for the root of all, one has either processes or children with controllers.
    is_root = not (folder / "cgroup.type").exists()
    if not (controllers <= enabled or is_root) and _words(folder / "cgroup.procs"):
        return "processes are in it"
    return None


def _enable(folder: Path, controllers: set[str]) -> str | None:
    """Have the cgroups in there have the controllers; return why that is refused."""
    try:
        file = folder / "cgroup.subtree_control"
        for name in sorted(controllers - _words(file)):
            file.write_text(f"+{name}")
    except OSError as error:
        return f"{error.strerror} to enable {name}"
    return None


def _words(path: Path) -> set[str]:
    return set(path.read_text().split())


def _is_delegated(folder: Path) -> bool:
    """Return whether systemd leaves the folder to others, or is not there to mind."""
    if not os.path.exists("/run/systemd/system"):
        return True
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


@functools.cache
def _sweep(folder: Path) -> None:
    """Remove what supervisors have left that were killed; once, it is not often that one is."""
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                remove(str(path), patience_s=0)


def of(pid: int, name: str) -> str | None:
    """Return the cgroup that was made with the name, if the process is in it or below."""
    try:
        membership = Path(f"/proc/{pid}/cgroup").read_text()
        found = home(Path("/proc/self/mountinfo").read_text(), membership)
    except OSError:
        return None
    path = found[0] if found is not None else Path()
    return next((str(f) for f in (path, *path.parents) if f.name == f"{_PREFIX}{name}"), None)


def pids(path: str) -> set[int]:
    """Return the processes that are in the cgroup or below."""
    found: set[int] = set()
    for folder in _folders(path):
        try:
            found.update(map(int, _words(folder / "cgroup.procs")))
        except OSError as error:
            raise_lack(error)
    return found - {0}  # those that are not in sight from here


def _folders(path: str) -> Iterator[Path]:
    for folder, _, _ in os.walk(path, topdown=False, onerror=raise_lack):
        yield Path(folder)


def kill(path: str) -> None:
    """Send SIGKILL to all that is in the cgroup, also to what is being forked at this moment.

    Nothing happens before Linux 5.14.
    """
    with contextlib.suppress(OSError), open(f"{path}/cgroup.kill", "w") as file:
        file.write("1")


def end(path: str, *, patience_s: float) -> bool:
    """Kill all that is in the cgroup; return whether it has emptied in time."""
    kill(path)
    try:
        return _has_emptied(path, patience_s)
    except FileNotFoundError:
        return True


def remove(path: str, *, patience_s: float) -> bool:
    """Remove the cgroup, and what was made below it; return whether it is gone.

    What is dying in it is waited for, and what lives on keeps it.
    """
    try:
        if not _has_emptied(path, patience_s):
            return False
        for folder in _folders(path):
            folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def leave(path: str) -> None:
    """Remove the cgroup once nothing lives in it: in this call, or in a later one for another."""
    _left.add(path)
    for left in tuple(_left):
        if remove(left, patience_s=0):
            _left.discard(left)


_left: set[str] = set()
"""Those in which something lived on."""


def _has_emptied(path: str, patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    with open(f"{path}/cgroup.events", "rb", buffering=0) as events:
        changes = select.poll()
        changes.register(events, select.POLLPRI)
        while b"populated 1" in events.read(4096):
            if not changes.poll(max(0.0, until - time.monotonic()) * 1000):
                return False
            events.seek(0)
    return True


def account(path: str) -> Account:
    """Return what was used there until now."""
    cpu = _counts(f"{path}/cpu.stat").get("usage_usec")
    memory = _counts(f"{path}/memory.events")
    return Account(
        cpu_seconds=None if cpu is None else cpu / 1e6,
        peak_memory_bytes=_number(f"{path}/memory.peak"),
        memory_max=_number(f"{path}/memory.max"),
        # Killed are also those that the machine had no memory for; then it was not at its limit.
        oom_kills=memory.get("oom_kill", 0) if memory.get("oom", 0) else 0,
    )


def _number(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):  # not there before Linux 5.19; "max"
        return None


def _counts(path: str) -> dict[str, int]:
    try:
        with open(path) as file:
            return {name: int(value) for name, value in (line.split() for line in file)}
    except (OSError, ValueError):
        return {}
