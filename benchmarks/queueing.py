"""What a job waits for its turn, beside one that is run at once, and with very many before it.

From the call to the record of the running process: by ``submit`` with a slot free, and by ``run``.
And with 100,000 jobs on record as queued, beside 1,000: how long the application takes until it
lets the first one start, and how long each one takes from then on, its process and all commits
included.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import percentile, resident_bytes
from benchmarks.programs import expect
from benchmarks.rounds import Figures, How, Row, Size, Subject, at_most

if TYPE_CHECKING:
    from anodejobs.stores.base import Insert

FEW = 1000
SLOTS = 8
MEDIAN = "us, median"
P95 = "us, p95"
FIRST = "ms to the first start"
EACH = "us per job"
MEMORY = "bytes per queued job"


async def submit(place: Path, size: Size) -> Figures:
    return await _started(place, size["jobs"], is_submitted=True)


async def run(place: Path, size: Size) -> Figures:
    return await _started(place, size["jobs"], is_submitted=False)


async def _started(place: Path, count: int, *, is_submitted: bool) -> Figures:
    from benchmarks.supervised import open_jobs

    took_us = []
    async with open_jobs(place, "shim") as jobs:
        for number in range(count):
            job_id = f"job-{number}"
            began = time.perf_counter()
            if is_submitted:
                await jobs.submit(["/bin/true"], job_id)
                await jobs.wait(job_id, "running")
            else:
                await jobs.run(["/bin/true"], job_id)
            took_us.append((time.perf_counter() - began) * 1e6)
            expect("exit code", (await jobs.wait(job_id)).exit_code, 0)
    return {MEDIAN: percentile(took_us, 50), P95: percentile(took_us, 95)}


async def many(place: Path, size: Size) -> Figures:
    return await _admitted(place, size["queued"], size["ended"])


async def few(place: Path, size: Size) -> Figures:
    return await _admitted(place, FEW, size["ended"])


async def _admitted(place: Path, queued: int, ended: int) -> Figures:
    from anodejobs import Jobs, Status
    from benchmarks.made import make_store

    db_path = place / "db"
    await make_store(db_path / "jobs.db", _queued(db_path, queued))
    before = resident_bytes()
    began = time.perf_counter()
    async with Jobs(db_path, executor="inline", max_concurrent_jobs=SLOTS) as jobs:
        await jobs.wait(_job_id(0), "running")
        first = time.perf_counter()
        grown = resident_bytes() - before
        await jobs.wait_all([_job_id(number) for number in range(ended)])
        took_s = time.perf_counter() - first
        await jobs.pause_queue()
        finished = (await jobs.counts())[Status.finished]
        expect("ended", ended <= finished <= queued, True)
    return {
        FIRST: (first - began) * 1e3,
        EACH: took_s * 1e6 / ended,
        MEMORY: grown / queued,
    }


def _queued(db_path: Path, count: int) -> Iterator[Insert]:
    from datetime import timedelta

    from anodejobs import Status
    from anodejobs.events import utc_now
    from benchmarks.made import inserts_of

    made = inserts_of(db_path / "job_logs")
    now = utc_now()
    for number in range(count):
        at = now + timedelta(microseconds=number)
        times = {"created_at": at, "last_update": at, "submitted_at": at}
        waiting = {"status": Status.queued, "reached": [Status.queued]}
        insert = made(_job_id(number), {**times, **waiting})
        launch = dataclasses.replace(insert.launch, job_id=_job_id(number))
        yield dataclasses.replace(insert, launch=launch)


def _job_id(number: int) -> str:
    return f"job-{number:06}"


SIDES = {"anodejobs": submit, "run": run, "anodejobs, many": many, "1,000 queued": few}

SUBJECTS = (
    Subject(
        name="submit-to-start",
        module="queueing",
        sides=("anodejobs", "run"),
        size={"jobs": 200},
        quick={"jobs": 20},
        rows=(Row(MEDIAN, "run", at_most(2.0)), Row(P95, "run")),
    ),
    Subject(
        name="turns@100k",
        module="queueing",
        sides=("anodejobs, many", "1,000 queued"),
        size={"queued": 100_000, "ended": 500},
        quick={"queued": 2000, "ended": 50},
        rows=(
            Row(EACH, "1,000 queued", at_most(1.5), ours="anodejobs, many"),
            Row(FIRST, how=How.ALONE, ours="anodejobs, many"),
            Row(MEMORY, how=How.ALONE, ours="anodejobs, many"),
        ),
    ),
)
