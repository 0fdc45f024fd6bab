"""The jobs as anodejobs runs them: hosted in the application, awaited, and looked up afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anodejobs import JobRecord, Jobs
from benchmarks.measure import size_of
from benchmarks.programs import exit_code_of, expect


def open_jobs(place: Path) -> Jobs:
    return Jobs(db_path=str(place / "db"), executor="inline")


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


def expect_logged(record: JobRecord, size: int) -> None:
    expect(f"bytes in the log of {record.self_id}", size_of(stdout_log(record)), size)
