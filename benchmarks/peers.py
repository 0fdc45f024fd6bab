"""The floors and peers: jobs run without anodejobs, each the barest or the usual way to do it.

- the *floor*: ``posix_spawn`` in a session of its own, and ``waitpid``; its output, if any, goes
  straight to a file
- *pidfd*: the floor, awaited by ``loop.add_reader`` of a pidfd
- *bare asyncio*: ``asyncio.create_subprocess_exec``, with its pipes and its default child watcher
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from benchmarks.rounds import SideUnavailableError

READ_BYTES = 64 * 1024


def posix_spawn(argv: list[str], output: Path | str = os.devnull) -> int:
    """Start a command in its own session, its output appended to a file; its pid."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(argv[0], argv, os.environ, file_actions=actions, setsid=True)


async def wait_by_pidfd(pid: int) -> int:
    """The exit code of a child of ours, as soon as the loop hears of it."""
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[int] = loop.create_future()
    pidfd = os.pidfd_open(pid)

    def reap() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        exited.set_result(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    loop.add_reader(pidfd, reap)
    return await exited


def watch_by_pidfds() -> None:
    """Have asyncio watch children as it does by itself from Python 3.12 on."""
    if sys.version_info < (3, 12):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)


def installed(program: str) -> str:
    """The path of a program that need not be there, also beside the Python that runs us."""
    folders = (os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath))
    path = shutil.which(program, path=os.pathsep.join(folders))
    if path is None:
        raise SideUnavailableError(f"{program} is not installed")
    return path


async def communicate(argv: list[str], *, in_session: bool = False) -> int:
    """Run a command with both outputs piped into memory; its exit code."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=PIPE, stderr=PIPE, start_new_session=in_session
    )
    await process.communicate()
    return await process.wait()


async def pump_by_stream_reader(argv: list[str], log: Path) -> int:
    """Run a command whose output an asyncio StreamReader carries into a file; its exit code."""
    process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=DEVNULL)
    assert process.stdout is not None
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        while chunk := await process.stdout.read(READ_BYTES):
            os.write(file, chunk)
    finally:
        os.close(file)
    return await process.wait()
