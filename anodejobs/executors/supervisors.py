"""Who looks after an attempt: names for supervisors that others can check.

An application that runs its jobs itself is named by its process; a shim by its directory, so that
the next shim there is the same supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from pathlib import Path

from anodejobs.executors import tree
from anodejobs.executors.deaths import POLL_S, all_gone
from anodejobs.executors.descriptors import raise_lack
from anodejobs.regular import open_regular

_LIVING: set[str] = set()
"""The supervisors in this process that have not been closed."""
_SHIM = "shim:"


def new_supervisor() -> str:
    """Return the name of another supervisor in this process, alive until it is given up."""
    pid = os.getpid()
    supervisor = f"{tree.boot_id()}:{pid}:{tree.start_time(pid)}:{os.urandom(4).hex()}"
    _LIVING.add(supervisor)
    return supervisor


def give_up(supervisor: str) -> None:
    """Count a supervisor of this process among the dead."""
    _LIVING.discard(supervisor)


def shim_supervisor(folder: Path, identity: str) -> str:
    """Return the name of whichever shim works in the folder, which has this identity."""
    return f"{_SHIM}{identity}:{folder}"


def identity(path: Path, start: str = "") -> str:
    """Return the name that is in the file, and that no other file has; the first one makes it.

    It is random but for its start. Raises OSError.
    """
    if not path.exists():
        beside = path.with_name(f"{path.name}-{os.getpid()}-{os.urandom(4).hex()}")
        beside.touch(mode=0o600)
        try:
            beside.write_text(f"{start}{os.urandom(8).hex()}")
            _name_new(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    return _read_identity(path)


def _name_new(file: Path, path: Path) -> None:
    """Have the file at the path too, or there only. Of two at once the first one's stands."""
    try:
        os.link(file, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # a rename replaces what is there
            if not path.exists():
                os.rename(file, path)
        finally:
            os.close(folder)


def _read_identity(path: Path) -> str:
    with open(open_regular(path, os.O_RDONLY), encoding="utf-8") as file:
        return file.read().strip()


def is_alive(supervisor: str) -> bool:
    """Return whether the supervisor still looks after its attempts, as far as can be seen now."""
    try:
        if supervisor.startswith(_SHIM):
            return is_locked(Path(supervisor.split(":", 2)[2]) / "lock")
        process = _process_of(supervisor)
        if process is None:  # another kind of executor has named it: that one can tell
            return True
        boot, pid, started = process
        if pid == os.getpid():
            return supervisor in _LIVING
        return boot == tree.boot_id() and tree.is_alive(pid, started)
    except OSError:  # descriptors lack
        return True


def _process_of(supervisor: str) -> tuple[str, int, float] | None:
    """Return the boot, pid and start time of a process that is a supervisor; None: it is none."""
    with contextlib.suppress(ValueError):
        boot, pid, started, _ = supervisor.split(":")
        return boot, int(pid), float(started)
    return None


def is_elsewhere(supervisor: str, folder: Path) -> bool:
    """Return whether a shim looks after its attempts in another folder, of which this is a copy."""
    parts = supervisor.split(":", 2)
    if not supervisor.startswith(_SHIM) or len(parts) < 3 or not is_alive(supervisor):
        return False
    there = Path(parts[2])
    with contextlib.suppress(OSError):  # it has left this moment
        is_another = _read_identity(there / "id") != parts[1]  # which was made where this one was
        return not is_another and not os.path.samefile(there / "lock", folder / "lock")
    return False


def is_shim_of(supervisor: str, folder: Path, identity: str) -> bool:
    """Return whether it is the shim of the folder, which has this identity.

    The identity tells, not the path: others may lead to the folder, and it may have been moved. A
    copy has the same one; then it is that of the shim that is at work.
    """
    return supervisor.startswith(f"{_SHIM}{identity}:") and not is_elsewhere(supervisor, folder)


async def outlive(supervisor: str) -> None:
    """Return when the supervisor has gone, if it is a process.

    For a shim never: another one takes its place.
    """
    named = None if supervisor.startswith(_SHIM) else _process_of(supervisor)
    if named is None:
        await asyncio.get_running_loop().create_future()
        return
    _, pid, started = named
    while is_alive(supervisor):
        try:
            process = tree.look_at(pid, started)
        except OSError:  # descriptors lack
            await asyncio.sleep(POLL_S)
            continue
        if process is not None:
            await all_gone([process])


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock. Raises OSError where descriptors lack."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise_lack(error)
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
