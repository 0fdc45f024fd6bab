"""Starting a shim that is no child of the application, and outlives it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import anodejobs
from anodejobs.executors import tree
from anodejobs.executors.deaths import readable
from anodejobs.interpreter import interpreter
from anodejobs.threads import begun_in_thread

_START_PATIENCE_S = 30.0
"""How long a shim may take to say that it is ready."""

_BOOTSTRAP = (
    "import sys;"
    # asyncio does without it, and it is the largest of all that it would import.
    "sys.modules['ssl']=None;"
    "from anodejobs.shim.main import main;main()"
)


async def start_shim(folder: Path, linger_s: float) -> str:
    """Start a shim, and return what it says of how that went.

    That is ``"ready"``, ``"taken"`` where the folder has another one, else why it does not work.
    It leaves ``linger_s`` seconds after its last job and its last application. Cancelled, this
    leaves nothing behind here; the shim may come up all the same.
    """
    ours: list[int] = []
    try:
        theirs = _new_pipes(ours)
        told, complaints = ours
        spawning = begun_in_thread(_spawn, folder, linger_s, *theirs)
        try:
            await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await asyncio.wait([spawning])
            raise
        is_told = await readable(told, within_s=_START_PATIENCE_S)
        word = os.read(told, 4096).decode("utf-8", "replace") if is_told else ""
        return word or f"it died while it started{_last_of(complaints)}"
    except OSError as error:
        return f"it cannot be started: {error}"
    finally:
        for fd in ours:
            os.close(fd)


def _new_pipes(ours: list[int]) -> list[int]:
    """Return the ends to write to of two pipes; the others are added to ours."""
    theirs: list[int] = []
    try:
        for _ in range(2):
            end, other = _new_pipe()
            ours.append(end)
            theirs.append(other)
    except OSError:
        for fd in theirs:
            os.close(fd)
        raise
    return theirs


def _new_pipe() -> tuple[int, int]:
    """Return the ends of a pipe; that to write to is none of the three that a shim gets anew."""
    told, tell = os.pipe()
    try:
        return told, fcntl.fcntl(tell, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        os.close(told)
        raise
    finally:
        os.close(tell)


def _last_of(complaints: int) -> str:
    """Return the last line that the shell or the interpreter has complained in, if any."""
    os.set_blocking(complaints, False)
    try:
        lines = os.read(complaints, 65536).decode("utf-8", "replace").split("\n")
    except BlockingIOError:
        return ""
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


def _spawn(folder: Path, linger_s: float, tell: int, complain: int) -> None:
    """Spawn a shim with its ends of the pipes, which are closed here. Waits for the shell only."""
    try:
        command = [
            *command_of(_BOOTSTRAP, interpreter()),
            *(os.fspath(folder), str(linger_s), str(tell)),
        ]
        env = dict(os.environ)
        env.pop("ANODEJOBS_TOKEN", None)  # of the job that we may be: the shim is no part of it
        # The shell is gone at once, and with it whatever ties the shim to us.
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "anodejobs", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complain,
            cwd="/",
            env=env,
            pass_fds=(tell,),
            start_new_session=True,
            check=False,
        )
    finally:
        os.close(tell)
        os.close(complain)


def command_of(code: str, python: str) -> list[str]:
    """Return the command by which a Python runs the code, able to import what a shim does.

    Raises OSError where that can be imported by us alone, as in a frozen application.
    """
    # Last: what is installed beside us may be named like a part of the standard library.
    paths = _import_paths()
    found = PathFinder.find_spec("anodejobs", paths)
    if found is None or found.loader is None:
        raise OSError("anodejobs is inside this application, where no other Python finds it")
    code = f"import sys;sys.path+={paths!a};{code}"
    # Text becomes bytes there as it does here. What the environment says of that, -I ignores, and
    # we may have been started with another one.
    is_utf8 = sys.getfilesystemencoding() == "utf-8"
    return [python, "-X", f"utf8={is_utf8:d}", "-I", "-S", "-c", code]


def _import_paths() -> list[str]:
    """Return where the shim finds what it imports beside the standard library."""
    modules = [anodejobs]
    if not tree.IS_LINUX:  # where /proc does not tell, it is asked
        import psutil

        modules.append(psutil)
    return [os.path.dirname(os.path.dirname(module.__file__ or "")) for module in modules]
