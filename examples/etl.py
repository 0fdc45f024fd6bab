"""Extracts, transforms and loads: three jobs, each of which waits for the one before.

    python -m examples.etl [DB_PATH] [--folder ./etl] [--orders 1000]

Made-up orders become a CSV file, then totals by country, then a table in an SQLite database. With
``--orders 0`` there is nothing to extract: the first job fails, and the others never start.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sqlite3
import sys
from collections import Counter
from pathlib import Path

from anodejobs import JobRecord, Jobs, Status

COUNTRIES = ("France", "Ghana", "Japan", "Peru")


async def main(db_path: str, folder: Path, orders: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[str, list[str]] = {
        "extract": [],
        "transform": ["extract"],
        "load": ["transform"],
    }
    async with Jobs(db_path=db_path) as jobs:
        for step, depends_on in steps.items():
            await jobs.submit(
                command=program(step, folder.absolute(), orders),
                job_id=step,
                depends_on=depends_on,
                tags=["etl"],
                timeout=60,
            )
        # No turn is waited for here: the end of one job is what starts the next.
        async for record in jobs.as_completed(steps):
            print(f"{record.self_id}: {record.status}: {await outcome(jobs, record)}", flush=True)


async def outcome(jobs: Jobs, record: JobRecord) -> str:
    """Return the last line that the job wrote, or why it wrote none."""
    if record.status is Status.cancelled:
        return record.error or "withdrawn"
    stdout, stderr = await jobs.job_logs(job_id=record.self_id, tail=1000)
    lines = (stdout or stderr).splitlines()
    return lines[-1] if lines else record.error or "without a word"


def program(step: str, folder: Path, orders: int) -> list[str]:
    """Return the command that does a step: this very file."""
    this = str(Path(__file__).absolute())
    return [sys.executable, this, "--step", step, "--folder", str(folder), "--orders", str(orders)]


# What the jobs do, each in a process of its own.


def extract(folder: Path, orders: int) -> str:
    if not orders:
        sys.exit("there are no orders")
    with (folder / "orders.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("country", "amount"))
        rows.writerows((COUNTRIES[n % len(COUNTRIES)], n) for n in range(orders))
    return f"{orders} orders"


def transform(folder: Path, orders: int) -> str:
    totals: Counter[str] = Counter()
    with (folder / "orders.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            totals[row["country"]] += int(row["amount"])
    (folder / "totals.json").write_text(json.dumps(totals))
    return f"{len(totals)} totals"


def load(folder: Path, orders: int) -> str:
    totals = json.loads((folder / "totals.json").read_text())
    connection = sqlite3.connect(folder / "shop.db")
    with connection:
        connection.execute("CREATE TABLE IF NOT EXISTS totals (country PRIMARY KEY, total)")
        connection.executemany("INSERT OR REPLACE INTO totals VALUES (?, ?)", totals.items())
    connection.close()
    return f"{sum(totals.values())} in all"


STEPS = {"extract": extract, "transform": transform, "load": load}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Extract, transform and load made-up orders.")
    parser.add_argument("db_path", nargs="?", default="./job_db")
    parser.add_argument("--folder", type=Path, default=Path("./etl"), help="where the data is")
    parser.add_argument("--orders", type=int, default=1000, help="how many orders there are")
    parser.add_argument("--step", choices=STEPS, help="do only this, as one of the jobs")
    options = parser.parse_args()
    if options.step:
        print(STEPS[options.step](options.folder, options.orders))
    else:
        asyncio.run(main(options.db_path, options.folder, options.orders))
