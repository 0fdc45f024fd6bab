"""The jobs as anodejobs runs them: supervised, awaited, and looked up afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Literal

from anodejobs import JobRecord, Jobs
from anodejobs.executors import shim
from anodejobs.executors.shim import Shim
from benchmarks.programs import exit_code_of, expect

Executor = Literal["shim", "inline"]

LINGER_S = 0.05
"""How long a shim stays after its last job and its last application; as a rule longer."""


@contextlib.asynccontextmanager
async def open_jobs(place: Path, executor: Executor = "shim") -> AsyncIterator[Jobs]:
    """Give a Jobs that has run a job already; afterwards nothing is left of its processes."""
    async with jobs_at(place, executor) as jobs:
        await warm_up(jobs)
        yield jobs
    await shim_has_left(place)


@contextlib.asynccontextmanager
async def jobs_at(place: Path, executor: Executor | Shim = "shim") -> AsyncIterator[Jobs]:
    """Give a Jobs, and leave its jobs as they are."""
    shim.LINGER_S = LINGER_S
    async with Jobs(db_path=_folder(place), executor=executor) as jobs:
        yield jobs


def shim_at(place: Path) -> Shim:
    """The executor that ``jobs_at`` makes by itself."""
    return Shim(_shims(place))


async def warm_up(jobs: Jobs) -> None:
    """Run a first job, which starts the shim, and forget it."""
    record = await run_and_wait(jobs, "warm-up", ["/bin/true"])
    expect("exit code of the first job", record.exit_code, 0)
    await jobs.delete("warm-up")


def shim_pid(place: Path) -> int | None:
    """The pid of the shim that works for the side, None where its jobs are its own children."""
    lock = _lock(place)
    return int(lock.read_text()) if lock.exists() else None


async def shim_has_left(place: Path) -> None:
    """Wait until no shim is there any more, so that it takes nothing from the side that follows."""

    def wait() -> None:
        if (lock := _lock(place)).exists():
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH)

    await asyncio.to_thread(wait)


def _lock(place: Path) -> Path:
    return _shims(place) / "lock"


def _shims(place: Path) -> Path:
    return _folder(place) / "shim"


def _folder(place: Path) -> Path:
    return place / "db"


async def run_and_wait(jobs: Jobs, job_id: str, command: Sequence[str]) -> JobRecord:
    """Run a job to its end; its last record."""
    await jobs.run(command=list(command), job_id=job_id)
    return await jobs.wait(job_id=job_id)


async def expect_recorded(jobs: Jobs, numbers: int) -> None:
    """The store holds that many ended jobs, and the failing ones have failed."""
    failed = sum(map(exit_code_of, range(numbers)))
    expect("records of finished jobs", await jobs.count({"status": "finished"}), numbers - failed)
    expect("records of failed jobs", await jobs.count({"status": "failed"}), failed)


def stdout_log(record: JobRecord) -> Path:
    assert record.logdir is not None
    return Path(record.logdir) / f"{record.logfile}_out.txt"
