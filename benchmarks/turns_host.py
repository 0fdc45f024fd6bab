"""One of several applications that share a directory: ``python -m benchmarks.turns_host DIRECTORY
FIRST END SLOTS NARROW`` submits jobs, and ends when they have. SIGTERM closes it early.

Another one with the same arguments goes on where it was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from anodejobs import JobActive, JobRecordDict, Jobs

CLOSED_EARLY = 3
BATCH = 100
"""How many jobs are submitted together."""

# What is appended in one write is whole, and in order: so the file tells who was there with whom.
COMMAND = 'echo "b $ANODEJOBS_JOB_ID" >> {side}; echo "e $ANODEJOBS_JOB_ID" >> {side}'


def job_id(number: int) -> str:
    return f"job-{number}"


def is_narrow(number: int) -> bool:
    """Return whether the job is in the queue that has fewer slots than there are."""
    return number % 4 == 0


async def submit_all(jobs: Jobs, place: Path, numbers: Iterable[int]) -> JobRecordDict:
    """Submit what is not on record, and return the records when all have ended."""
    command = COMMAND.format(side=place / "side")
    wanted = list(numbers)

    async def submit(number: int) -> None:
        queue = "narrow" if is_narrow(number) else "wide"
        with contextlib.suppress(JobActive):
            await jobs.submit(command, job_id(number), queue=queue, if_exists="skip", cwd="/")

    for batch in _batches(wanted):
        await asyncio.gather(*map(submit, batch))
    return await jobs.wait_all(map(job_id, wanted))


def _batches(numbers: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(numbers), BATCH):
        yield numbers[start : start + BATCH]


async def serve(place: Path, numbers: range, slots: int, narrow: int) -> int:
    """Return the exit code of the application."""
    is_asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, is_asked.set)
    async with Jobs(place / "db", max_concurrent_jobs=slots, queues={"narrow": narrow}) as jobs:
        asked = asyncio.create_task(is_asked.wait())
        done = asyncio.create_task(submit_all(jobs, place, numbers))
        await asyncio.wait((asked, done), return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            asked.cancel()
            done.result()
            return 0
        done.cancel()
        await asyncio.wait((done,))
    return CLOSED_EARLY


def main() -> None:
    place, (first, end, slots, narrow) = Path(sys.argv[1]), map(int, sys.argv[2:])
    sys.exit(asyncio.run(serve(place, range(first, end), slots, narrow)))


if __name__ == "__main__":
    main()
