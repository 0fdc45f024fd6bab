"""``python3 init.py COMMAND…``: run it with an init that reaps at once what is left to it.

A process whose parent has died is init's to reap, and only then can its exit code be known. The
init of a container may look every two seconds, for which each test that kills a parent would wait.

What the command leaves behind, interrupted for example, is named and ended.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
PATIENCE_S = 10
"""How long what is left may take to go by itself, as a shim does."""


def main() -> int:
    """Return the command's exit code as soon as it has ended."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    command = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to the command, too
    signal.signal(signal.SIGTERM, lambda signum, _: os.kill(command, signum))
    while True:
        pid, status = os.wait()
        if pid == command:
            end_the_rest()
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def end_the_rest() -> None:
    """End what has become our child and does not go by itself, and whatever it leaves in turn."""
    patient_until = time.monotonic() + PATIENCE_S
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0 and time.monotonic() < patient_until:
            time.sleep(0.1)
        elif pid == 0:
            for child in Path("/proc/thread-self/children").read_text().split():
                words = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
                print(f"left behind: {child} {words.decode(errors='replace')}", file=sys.stderr)
                os.kill(int(child), signal.SIGKILL)
                os.waitpid(int(child), 0)


if __name__ == "__main__":
    sys.exit(main())
