"""Runs many commands, some at a time, with a progress bar, and sums up how they ended.

    python -m examples.many_commands [DB_PATH] [--count 200] [--at-a-time 16]

The bar goes to stderr and moves when a job ends, the summary to stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Mapping

from anodejobs import JobRecord, Jobs, Status

BAR_WIDTH = 40


class Progress:
    """A line on stderr that tells how many jobs have ended, and how many of them failed."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ended = 0
        self._failed = 0

    def add(self, record: JobRecord) -> None:
        self._ended += 1
        self._failed += record.status is not Status.finished
        bar = "#" * (BAR_WIDTH * self._ended // self._total)
        end = "\n" if self._ended == self._total else ""
        line = f"\r[{bar:.<{BAR_WIDTH}}] {self._ended}/{self._total}, {self._failed} failed"
        print(line, end=end, file=sys.stderr, flush=True)


async def main(db_path: str, count: int, at_a_time: int) -> None:
    began = time.perf_counter()
    async with Jobs(db_path=db_path) as jobs:
        records = await run_all(jobs, made_up_commands(count), at_a_time)
        seconds = time.perf_counter() - began
        print(f"{count} commands in {seconds:.2f} s, {at_a_time} at a time")
        for ending, times in Counter(map(how_it_ended, records)).most_common():
            print(f"{times:5} x {ending}")
        for record in records:
            if record.status is not Status.finished:
                print(f"{record.self_id}: {how_it_ended(record)}: {await last_words(jobs, record)}")


def made_up_commands(count: int) -> dict[str, str]:
    """Return commands by job id; every fiftieth fails."""
    return {
        f"command-{number:03}": f"echo 'no luck with {number}' >&2; exit 3"
        if number % 50 == 0
        else f"sleep 0.0{number % 10}; echo {number}"
        for number in range(1, count + 1)
    }


async def run_all(jobs: Jobs, commands: Mapping[str, str], at_a_time: int) -> list[JobRecord]:
    """Return the record of each command, in their order, once all have ended."""
    slots = asyncio.Semaphore(at_a_time)
    progress = Progress(len(commands))

    async def run_one(job_id: str, command: str) -> JobRecord:
        async with slots:
            await jobs.run(command=command, job_id=job_id)
            record = await jobs.wait(job_id=job_id)
        progress.add(record)
        return record

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(run_one(*item), name=item[0]) for item in commands.items()]
    return [task.result() for task in running]


def how_it_ended(record: JobRecord) -> str:
    return f"{record.status}" if record.exit_code is None else f"exit code {record.exit_code}"


async def last_words(jobs: Jobs, record: JobRecord) -> str:
    """Return the last line that the job wrote to stderr, or why it could not start."""
    _, stderr = await jobs.job_logs(job_id=record.self_id, tail=1000)
    lines = stderr.splitlines()
    return lines[-1] if lines else record.error or "it did not say why"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run many commands, some at a time.")
    parser.add_argument("db_path", nargs="?", default="./job_db")
    parser.add_argument("--count", type=int, default=200, help="how many commands")
    parser.add_argument("--at-a-time", type=int, default=16, help="how many run at once at most")
    options = parser.parse_args()
    asyncio.run(main(options.db_path, options.count, options.at_a_time))
