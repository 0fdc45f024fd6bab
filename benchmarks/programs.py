"""The programs that the jobs run, and how each proves that it has run."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

from benchmarks.rounds import SideFailedError

FAILING_EVERY = 20
BLOCK = b"a line as a program writes it, sixty-four bytes with its end...\n" * 128
LINE = b"2026-01-01 00:00:00 INFO worker: a line of a job's log, as it is\n"

_PYTHON = (sys.executable, "-I", "-S", "-c")


def exit_code_of(number: int) -> int:
    """What job ``number`` exits with: every 20th fails, so that 'all went well' proves nothing."""
    return int(number % FAILING_EVERY == FAILING_EVERY - 1)


def trivial(number: int) -> list[str]:
    return ["/bin/false" if exit_code_of(number) else "/bin/true"]


def expect(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise SideFailedError(f"{what}: {got!r}, not {wanted!r}")


class Board:
    """A file of numbers that jobs and their host share as memory: one for the gate, one per job."""

    def __init__(self, path: Path, slots: int) -> None:
        self.path = path
        with path.open("w+b") as file:
            file.truncate(8 * (slots + 1))
            self._memory = mmap.mmap(file.fileno(), 0)

    def __getitem__(self, slot: int) -> int:
        at = 8 * (slot + 1)
        return int.from_bytes(self._memory[at : at + 8], "little")

    def open_gate(self, at_ns: int) -> None:
        self._memory[:8] = at_ns.to_bytes(8, "little")

    def close_gate(self) -> None:
        self.open_gate(1)

    def count(self, value: int) -> int:
        """How many slots hold this value."""
        return sum(self[slot] == value for slot in range(len(self._memory) // 8 - 1))


_STAMP = """
import mmap, os, sys, time
path, slot, code = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
memory = mmap.mmap(os.open(path, os.O_RDWR), 0)
at = 8 * (slot + 1)
memory[at:at + 8] = time.monotonic_ns().to_bytes(8, "little")
os._exit(code)
"""


def stamping(board: Board, slot: int) -> list[str]:
    """Puts the monotonic clock into its slot as its last act, then exits at once."""
    return [*_PYTHON, _STAMP, str(board.path), str(slot), str(exit_code_of(slot))]


_FLOOD = """
import os, sys
block = sys.argv[2].encode()
for _ in range(int(sys.argv[1])):
    os.write(1, block)
"""


def flooding(mib: int) -> list[str]:
    """Writes ``mib`` MiB to its stdout, 8 KiB a write, as fast as it can."""
    return [*_PYTHON, _FLOOD, str(mib * 2**20 // len(BLOCK)), BLOCK.decode()]


_PACED = """
import mmap, os, sys, time
path, slot, lines, phase, line = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5].encode()
board = mmap.mmap(os.open(path, os.O_RDWR), 0)
give_up = time.monotonic() + 120
def gate(is_reached):
    while not is_reached(value := int.from_bytes(board[:8], "little")):
        if time.monotonic() > give_up:
            sys.exit(3)
        time.sleep(0.05)
    return value
board[8 * (slot + 1)] = 1
due = gate(lambda value: value > 1) + phase
for _ in range(lines):
    time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
    os.write(1, line)
    due += 10_000_000
board[8 * (slot + 1)] = 2
gate(lambda value: value == 1)
"""


READY, DONE = 1, 2


def pacing(board: Board, slot: int, *, lines: int, writers: int) -> list[str]:
    """Says it is ready, waits for the gate, writes a line each 10 ms, is done, waits for the end.

    The writers are out of phase with each other, so that no two need to share a wake-up.
    """
    phase_ns = slot * 10_000_000 // writers
    numbers = map(str, (slot, lines, phase_ns))
    return [*_PYTHON, _PACED, str(board.path), *numbers, LINE.decode()]
