"""The application that the chaos kills: ``python -m benchmarks.chaos_host DIRECTORY JOBS SEED
PARALLEL [STORE]`` sees to it that every job is run once, and goes on where the last was killed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

from anodejobs import JobActive, JobRecordDict, Jobs
from anodejobs.executors import shim
from benchmarks.chaos_jobs import Plan, plan_of

LINGER_S = 0.2
"""Short, so that shims leave between two hosts, too."""


async def run_missing(place: Path, plans: list[Plan], parallel: int, store: str | None) -> None:
    """Run what is not on record, so many at once, and return when all have ended."""
    async with Jobs(db_path=place / "db", store=store) as jobs:
        known = await jobs.list_status()
        async with asyncio.TaskGroup() as workers:
            todo = iter(plans)
            for _ in range(parallel):
                workers.create_task(_work(jobs, place, known, todo))


async def _work(jobs: Jobs, place: Path, known: JobRecordDict, todo: Iterator[Plan]) -> None:
    for plan in todo:
        if plan.job_id not in known:
            try:
                await jobs.run(plan.command, plan.job_id, cwd=str(place), if_exists="skip")
            except JobActive as error:
                raise RuntimeError("it was not on record, and nobody else is here") from error
        await jobs.wait(plan.job_id)


def main() -> None:
    shim.LINGER_S = LINGER_S
    place, (count, seed, parallel) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    store = sys.argv[5] if sys.argv[5:] else None
    plans = [plan_of(seed, number) for number in range(count)]
    asyncio.run(run_missing(place, plans, parallel, store))


if __name__ == "__main__":
    main()
