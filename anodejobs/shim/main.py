"""What a shim does from its first instruction to its last.

``python -c … <folder> <seconds to linger> <descriptor>``: the descriptor is told how it went, in a
word: ``ready``, ``taken`` where another shim works in the folder, or what kept it from starting. To
whoever starts it goes its stderr, too, until it is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from anodejobs.executors import tree
from anodejobs.executors.limits import helper
from anodejobs.executors.marks import Marking, drop_mark
from anodejobs.executors.processes import Processes
from anodejobs.executors.spawner import PYTHON_IGNORES, is_possible
from anodejobs.logs import LogFile
from anodejobs.shim.draining import draining
from anodejobs.shim.journal import Entry
from anodejobs.shim.listener import listening
from anodejobs.shim.orphans import become_reaper
from anodejobs.shim.server import Server, inherited

LOG = logging.getLogger("anodejobs")

_LOG_BYTES = 256 * 1024


def main() -> None:
    """Be the shim of the folder that the command line names."""
    folder, linger_s, tell = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    drop_mark()
    os.set_inheritable(tell, False)
    with contextlib.suppress(PermissionError):  # the leader of a session already
        os.setsid()
    _be_ordinary()
    try:
        lock = _locked(folder)
        if lock is None:
            _tell(tell, "taken")
            return
        # The path of a socket must be short, and the folder's may be long.
        os.chdir(folder)
        _log_to(folder / "log")
        become_reaper()
        listener = listening()
        entries = inherited(folder / "journal")
    except Exception as error:
        _tell(tell, f"the shim cannot start: {error}")
        raise
    _complain_no_more()
    _tell(tell, "ready")
    with contextlib.suppress(OSError):  # the job that needs it is told
        helper()
    _tune()
    exit_code = 0
    try:
        asyncio.run(_serve(folder, linger_s, listener, entries))
    except BaseException:
        LOG.critical("the shim ends", exc_info=True)
        exit_code = 1
    # At once: when an interpreter ends, asyncio kills the children that still run.
    os._exit(exit_code)


def _be_ordinary() -> None:
    """Give signals their usual meaning: what is ignored or blocked here, so it is in jobs.

    The shell that starts us has SIGINT and SIGQUIT ignored, the application whatever it likes.
    """
    for signum in signal.valid_signals():
        if signal.getsignal(signum) is signal.SIG_IGN and signum not in PYTHON_IGNORES:
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _complain_no_more() -> None:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)


def _tell(fd: int, word: str) -> None:
    with contextlib.suppress(OSError):  # who started us may have gone
        os.write(fd, word.encode())
    os.close(fd)


def _locked(folder: Path) -> int | None:
    """Return a descriptor that holds the folder's lock, None where another process has it."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.truncate(fd, 0)
    os.write(fd, b"%d\n" % os.getpid())
    return fd


async def _serve(
    folder: Path, linger_s: float, listener: socket.socket, entries: list[Entry]
) -> None:
    marking = Marking()
    processes = Processes(marking)
    server = Server(folder, processes, linger_s)

    def move_away() -> None:
        # The lock stays locked under its new name; the next shim makes another file.
        for name in ("socket", "lock"):
            os.rename(folder / name, draining(folder, name))

    if not is_possible() and sys.version_info < (3, 12) and tree.HAS_PIDFDS:
        # Left to itself asyncio would start a thread for each job.
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.get_event_loop_policy().set_child_watcher(watcher)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.leave)
    try:
        LOG.info("shim %d begins, with %d attempts to see to", os.getpid(), len(entries))
        await server.serve(listener, entries, move_away)
        LOG.info("shim %d leaves", os.getpid())
    finally:
        gc.disable()  # it would end asyncio's hold on children that run on, and so them
        await processes.leave()
        marking.close()


def _log_to(path: Path) -> None:
    handler = _LogFileHandler(LogFile(path, _LOG_BYTES))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)


class _LogFileHandler(logging.Handler):
    """Writes to a log that is rotated, and is silent where that cannot be written."""

    def __init__(self, log: LogFile) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            data = memoryview(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
            while data:
                data = data[self._log.write(data) :]


def _tune() -> None:
    """Collect garbage seldom: nearly all of it goes by itself, and nothing else runs here."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
