"""What it costs to find the next job with very many in the queue, beside the same with 1,000.

A job comes, one ends, deadlines are looked at, and the slot goes to the next job: a scheduler's
turn, again and again behind the same number of jobs. Nothing is started or stored: this is the
queue alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import resident_bytes
from benchmarks.programs import expect
from benchmarks.rounds import Figures, How, Row, Size, Subject, at_most

if TYPE_CHECKING:
    from anodejobs.jobqueue import Waiting

FEW = 1000
SLOTS = 10
ADMISSION = "us per admission"
MEMORY = "bytes per queued job"


async def many(place: Path, size: Size) -> Figures:
    return _admitted(size["queued"], size["admitted"])


async def few(place: Path, size: Size) -> Figures:
    return _admitted(FEW, size["admitted"])


def _admitted(queued: int, times: int) -> Figures:
    from anodejobs.jobqueue import JobQueue

    queue = JobQueue(max_concurrent_jobs=SLOTS)
    before = resident_bytes()
    for job in _jobs(range(queued)):
        queue.add(job)
    grown = resident_bytes() - before
    running = queue.admit(queued)
    began = time.perf_counter()
    for job in _jobs(range(queued, queued + times)):
        queue.add(job)
        queue.release(running.pop().job_id)
        expect("expired", queue.expired(job.queued_at), [])
        running += queue.admit(job.queued_at)
    took_s = time.perf_counter() - began
    expect("waiting at the end", queue.depth(), {"default": queued - SLOTS})
    expect("slots", queue.occupied(), {"default": SLOTS})
    return {ADMISSION: took_s * 1e6 / times, MEMORY: grown / queued}


def _jobs(numbers: Iterable[int]) -> Iterator[Waiting]:
    from anodejobs.jobqueue import Priority, Waiting

    # Of all four, so that most are not added at the end of those that wait.
    priorities = list(Priority)
    for number in numbers:
        priority = priorities[number % len(priorities)]
        yield Waiting(job_id=f"job-{number:07}", priority=priority, queued_at=float(number))


SIDES = {"anodejobs": many, "1,000 queued": few}

SUBJECTS = (
    Subject(
        name="queue@100k",
        module="admission",
        sides=tuple(SIDES),
        size={"queued": 100_000, "admitted": 50_000},
        quick={"queued": 3000, "admitted": 1000},
        rows=(
            Row(ADMISSION, "1,000 queued", at_most(1.5)),
            Row(MEMORY, how=How.ALONE),
        ),
    ),
)
