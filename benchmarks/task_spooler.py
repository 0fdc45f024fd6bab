"""``/bin/true`` eight at once, beside task-spooler, which keeps its list of jobs in memory.

``tsp -f`` is started for each job: it hands the job in and waits for it, and exits as the job did.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from benchmarks.measure import Stopwatch
from benchmarks.peers import installed
from benchmarks.programs import expect, trivial
from benchmarks.rounds import Figures, Row, Size, Subject, at_least
from benchmarks.throughput import RATE, anodejobs, figures_of, spawn_and_reap


async def task_spooler(place: Path, size: Size) -> Figures:
    return _drive(installed("tsp"), place, size)


def _drive(tsp: str, place: Path, size: Size) -> Figures:
    os.environ |= {
        "TMPDIR": str(place),
        "TS_SOCKET": str(place / "socket"),
        "TS_SLOTS": str(size["live"]),
        "TS_MAXFINISHED": str(size["jobs"] + 1),
    }

    def command(number: int) -> list[str]:
        return [tsp, "-f", *trivial(number)]

    spawn_and_reap(1, 1, command)  # which starts the server
    try:
        watch = Stopwatch()
        spawn_and_reap(size["jobs"], size["live"], command)
        figures = figures_of(watch, size["jobs"])
        listed = subprocess.run([tsp], capture_output=True, text=True, check=True).stdout
        expect("jobs listed as finished", listed.count(" finished "), size["jobs"] + 1)
    finally:
        subprocess.run([tsp, "-K"], check=True)
    return figures


SIDES = {"anodejobs": anodejobs, "task-spooler": task_spooler}

SUBJECTS = (
    Subject(
        name="vs-task-spooler@8",
        module="task_spooler",
        sides=tuple(SIDES),
        size={"jobs": 1000, "live": 8},
        quick={"jobs": 40, "live": 8},
        rows=(Row(RATE, "task-spooler", at_least(2.0)),),
    ),
)
