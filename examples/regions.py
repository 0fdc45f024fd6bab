"""A batch of four jobs: three work on a region each, and the fourth combines what they found.

    python -m examples.regions [DB_PATH] [--folder ./regions]

The batch is recorded as a whole or not at all. Inside it, a job names those it depends on by their
place in the list.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from anodejobs import Jobs

REGIONS = {"europe": 44, "asia": 48, "americas": 35}
"""How many countries there are in each."""


async def main(db_path: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    async with Jobs(db_path=db_path) as jobs:
        batch_id, records = await jobs.create_batch(specs(folder.absolute()), auto_start=True)
        print(f"submitted {len(records)} jobs as batch {batch_id}")
        async for record in jobs.as_completed(records):
            progress = await jobs.batch_progress(batch_id)
            print(
                f"{record.name}: {record.status}; {progress.ended} of {progress.total} have ended"
            )
        *_, combined = await jobs.wait_batch(batch_id)
        stdout, _ = await jobs.job_logs(job_id=combined)
        print(stdout, end="")


def specs(folder: Path) -> list[dict[str, Any]]:
    """Return what the jobs of the batch are to be, as arguments of ``Jobs.create``."""
    of_regions = [
        {
            "command": program("--region", region),
            "name": f"Process {region}",
            "tags": ["batch", "region"],
            "cwd": folder,
        }
        for region in REGIONS
    ]
    combine = {
        "command": program("--combine"),
        "name": "Combine results",
        "tags": ["batch", "aggregate"],
        "cwd": folder,
        "depends_on": [0, 1, 2],
    }
    return [*of_regions, combine]


def program(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).absolute()), *arguments]


# What the jobs do, each in a process of its own.


def process(region: str) -> None:
    Path(f"{region}.txt").write_text(f"{REGIONS[region]}\n")


def combine() -> None:
    counts = {region: int(Path(f"{region}.txt").read_text()) for region in REGIONS}
    print(f"{sum(counts.values())} countries in {len(counts)} regions")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Work on regions, and combine the results.")
    parser.add_argument("db_path", nargs="?", default="./job_db")
    parser.add_argument("--folder", type=Path, default=Path("./regions"), help="for the results")
    parser.add_argument("--region", choices=REGIONS, help="do only this, as one of the jobs")
    parser.add_argument("--combine", action="store_true", help="likewise")
    options = parser.parse_args()
    if options.region:
        process(options.region)
    elif options.combine:
        combine()
    else:
        asyncio.run(main(options.db_path, options.folder))
