"""What each job of the chaos does, told from its number and the seed, and what its log must be.

Pure: nothing is run here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

_SIGNALS = ("HUP", "KILL", "TERM", "USR1")
_SIGNUMS = {"HUP": 1, "KILL": 9, "USR1": 10, "TERM": 15}
_KINDS = {"none": 15, "few": 45, "many": 12, "loop": 3, "blocks": 10, "slow": 15}
_LEAVES_SOMETHING = 0.03


@dataclass(frozen=True, slots=True)
class Plan:
    """One job: its command, and what must come of it."""

    job_id: str
    command: str
    lines: int
    exit_code: int

    def log(self) -> list[bytes]:
        """Return the lines that it writes; none is like another, nor like one of another job."""
        return [b"%s %d %d\n" % (self.job_id.encode(), i, i) for i in range(self.lines)]


def plan_of(seed: int, number: int) -> Plan:
    """Return what job ``number`` does: a line in a file of its own, some output, an end."""
    rng = random.Random(f"{seed}:{number}")
    job_id = f"job-{number:05}"
    (kind,) = rng.choices(list(_KINDS), list(_KINDS.values()))
    lines, writing = _writing(rng, kind, job_id)
    exit_code, ending = _ending(rng)
    leaving = "sleep 300 &\n" if rng.random() < _LEAVES_SOMETHING else ""
    command = f"echo $$ >> side/{job_id}\n{leaving}{writing}{ending}"
    return Plan(job_id, command, lines, exit_code)


def _writing(rng: random.Random, kind: str, job_id: str) -> tuple[int, str]:
    """Return how many lines are written, and by what."""
    if kind == "none":
        return 0, ""
    if kind == "blocks":
        lines = rng.randint(4_000, 20_000)
        body = f'print "{job_id}", i + 0, i + 0; i++'
        return lines, f"awk 'BEGIN {{ while (i < {lines}) {{ {body} }} }}'\n"
    most = {"few": 50, "many": 1_000, "loop": 15_000, "slow": 20}[kind]
    lines = rng.randint(most // 10, most)
    pause = f"sleep {rng.uniform(0.1, 1.0) / lines:.3f}; " if kind == "slow" else ""
    body = f'echo "{job_id} $i $i"; {pause}i=$((i+1))'
    return lines, f"i=0\nwhile [ $i -lt {lines} ]; do {body}; done\n"


def _ending(rng: random.Random) -> tuple[int, str]:
    """Return the exit code, and how it comes about."""
    if rng.random() < 0.1:
        name = rng.choice(_SIGNALS)
        return -_SIGNUMS[name], f"kill -{name} $$\n"
    code = 0 if rng.random() < 0.3 else rng.randint(1, 100)
    return code, f"exit {code}\n"


def compare(log: bytes, lines: Sequence[bytes]) -> tuple[int, int]:
    """Return how many bytes a log lacks, and how many in it are not where they belong.

    Lines may be missing, and where some are, what is left of the first and the last of them.
    """
    written = sum(map(len, lines))
    numbers = {line: number for number, line in enumerate(lines)}
    placed, following, torn = 0, 0, b""
    for piece in log.splitlines(keepends=True):
        number = numbers.get(piece)
        if number is None:
            torn += piece
        elif number >= following:
            placed += _fitting(torn, lines[following:number]) + len(piece)
            following, torn = number + 1, b""
    placed += _fitting(torn, lines[following:])
    return written - placed, len(log) - placed


def _fitting(torn: bytes, missing: Sequence[bytes]) -> int:
    """Return how many bytes can be the head of the first missing line and the tail of the last."""
    if not torn or not missing:
        return 0
    cuts = (missing[0].startswith(torn[:n]) and missing[-1].endswith(torn[n:]) for n in _to(torn))
    return len(torn) if any(cuts) else 0


def _to(torn: bytes) -> range:
    return range(len(torn) + 1)
