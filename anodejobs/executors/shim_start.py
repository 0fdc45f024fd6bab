"""Starting a shim that is no child of the application, and outlives it."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import anodejobs
from anodejobs.executors import tree

_START_PATIENCE_S = 30.0
"""How long a shim may take to say that it is ready."""

_BOOTSTRAP = (
    "import sys;"
    # asyncio does without it, and it is the largest of all that it would import.
    "sys.modules['ssl']=None;"
    "sys.path[:0]=sys.argv[4:];del sys.argv[4:];"
    "from anodejobs.shim.main import main;main()"
)


def start_shim(folder: Path, linger_s: float) -> str:
    """Start a shim, and return what it says of how that went. Waits for it.

    That is ``"ready"``, ``"taken"`` where the folder has another one, else why it does not work.
    It leaves ``linger_s`` seconds after its last job and its last application.
    """
    told, tell = os.pipe()
    command = [
        *(interpreter(), "-I", "-S", "-c", _BOOTSTRAP),
        *(os.fspath(folder), str(linger_s), str(tell)),
        *_import_paths(),
    ]
    try:
        try:
            # The shell is gone at once, and with it whatever ties the shim to us.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "anodejobs", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=(tell,),
                start_new_session=True,
                check=False,
            )
        except OSError as error:
            return f"it cannot be started: {error}"
        finally:
            os.close(tell)
        poll = select.poll()
        poll.register(told, select.POLLIN)
        is_told = poll.poll(_START_PATIENCE_S * 1000)
        word = os.read(told, 4096).decode("utf-8", "replace") if is_told else ""
        return word or "it died while it started"
    finally:
        os.close(told)


def _import_paths() -> list[str]:
    """Return where the shim finds what it imports beside the standard library."""
    modules = [anodejobs]
    if not tree.IS_LINUX:  # where /proc does not tell, it is asked
        import psutil

        modules.append(psutil)
    return [os.path.dirname(os.path.dirname(module.__file__ or "")) for module in modules]


def interpreter() -> str:
    """Return the Python that runs us, also where another program has it embedded."""
    running = sys.executable or ""
    if "python" in os.path.basename(running):
        return running
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = os.path.join(sys.prefix, "bin", name)
    return beside if os.path.exists(beside) else shutil.which(name) or running
