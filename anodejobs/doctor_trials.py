"""What the doctor tries where looking is not enough.

In a folder and with processes of its own, of which nothing stays.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from anodejobs.errors import one_line
from anodejobs.executors import tree
from anodejobs.executors.pidfds import exit_code
from anodejobs.executors.shim_link import connected
from anodejobs.shim.peers import is_friend, peer
from anodejobs.shim.protocol import Lines, decoded, encoded

_PATIENCE_S = 10.0


def _try_lock(folder: Path) -> None:
    with open(folder / "lock", "w") as ours, open(folder / "lock", "w") as theirs:
        fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(BlockingIOError):
            fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise OSError("two can hold one")


def _try_fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o600)
    fd = os.open(folder / "fifo", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, b"!")
        os.read(fd, 1)
    finally:
        os.close(fd)


def _try_socket(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            # By way of the descriptor, since the path of a socket must be short.
            listener.bind(f"/proc/self/fd/{fd}/s" if tree.IS_LINUX else os.fspath(folder / "s"))
            listener.listen()
            with connected(folder, "s") as connection:
                connection.close()
    finally:
        os.close(fd)


def _try_memory(folder: Path) -> None:
    with open(folder / "memory", "w+b") as file:
        file.truncate(mmap.PAGESIZE)
        mmap.mmap(file.fileno(), mmap.PAGESIZE).close()


TRIALS: Mapping[str, Callable[[Path], None]] = {
    "locks": _try_lock,
    "FIFOs": _try_fifo,
    "sockets": _try_socket,
    "shared memory": _try_memory,
}


def orphan(within_s: float) -> tuple[int, str, bool]:
    """Make an orphan and let it die; return who got it, and whether it was reaped in time."""
    reads, writes = os.pipe()
    with open(reads, "rb") as stdin, open(writes, "wb"):
        told = subprocess.run(
            ["/bin/sh", "-c", "exec 3<&0; cat <&3 >/dev/null & echo $!"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
            check=True,
        )
        # It lives until we close our end of the pipe, so the pid is its own.
        pid = int(told.stdout)
        made = tree.look_at(pid, tree.start_time(pid) or 0.0)
        if made is None:
            raise OSError("an orphan that was made cannot be seen")
    name = "what is hidden"
    with suppress(OSError):
        name = Path(f"/proc/{made.parent}/comm").read_text().strip()
    until = time.monotonic() + within_s
    tree.wait_gone([made], within_s)
    # Looked at again and again, since nobody but its parent is told that it was reaped.
    while made.key in tree.orphans(made.parent):
        if time.monotonic() > until:
            return made.parent, name, False
        time.sleep(0.02)
    return made.parent, name, True


CODE = 7
"""That of the child of ``told_code``."""


def told_code() -> int | None:
    """Return the exit code that the kernel tells of a child that was reaped."""
    with subprocess.Popen(
        ["/bin/sh", "-c", f"read word; exit {CODE}"], stdin=subprocess.PIPE
    ) as child:
        fd = tree.open_pidfd(child.pid, tree.start_time(child.pid) or 0.0)
    if fd is None:
        raise OSError("there are none")
    try:
        return exit_code(fd)
    finally:
        os.close(fd)


def held(folder: Path) -> int:
    """Return how many attempts the shim looks after.

    Without a ``hello``, for that would make us one of its applications, with a share of the work.
    """
    lines = Lines()
    with connected(folder, "socket") as connection, connection:
        if not is_friend(peer(connection)[1]):
            raise OSError("another user listens")
        connection.settimeout(_PATIENCE_S)
        connection.sendall(encoded({"do": "held", "id": 1}))
        while data := connection.recv(65536):
            for answer in decoded(lines.feed(data)):
                return len(answer["held"])
    raise OSError("it hangs up, being of another version perhaps")


def run(argv: Sequence[str]) -> tuple[bool, str]:
    """Run a command; return whether it went well, and what it said."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return False, one_line(error)
    if done.returncode == 0:
        return True, done.stdout
    return False, (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
