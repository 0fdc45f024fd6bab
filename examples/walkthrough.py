"""One job from its start to its final status, each step with the time it took.

    python -m examples.walkthrough [DB_PATH] [--seconds 2]

Run it twice: the second run finds that the job finished earlier, shows its logs and stays idle.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from anodejobs import JobRecord, Jobs, Status

JOB_ID = "accounting-summary"


class Story:
    """Prints what each step did, and how long it took."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def tell(self, step: str) -> None:
        took_ms = 1000 * (time.perf_counter() - self._since)
        print(f"{took_ms:9.1f} ms  {step}")
        self._since = time.perf_counter()


async def main(db_path: str, seconds: float) -> None:
    story = Story()
    async with Jobs(db_path=db_path) as jobs:
        story.tell(f"opened {jobs.db_path}")

        earlier = await jobs.get_status(job_id=JOB_ID)
        if earlier is not None and earlier.status is Status.finished:
            story.tell(f"{JOB_ID} finished earlier, at {earlier.finished_at:%Y-%m-%d %H:%M:%S %Z}")
            await show_logs(jobs)
            print("Nothing left to do. To see it run again, name another directory.")
            return
        if earlier is not None and not earlier.is_done:
            story.tell(f"{JOB_ID} is {earlier.status} already, as process {earlier.last_pid}")
        else:
            story.tell(f"looked for an earlier run of {JOB_ID}: none finished")
            command = f"echo 'Starting job'; sleep {seconds:g}; echo 'Job finished'"
            record = await jobs.run(command=command, job_id=JOB_ID)
            story.tell(f"started it: {record.status}, process {record.last_pid}")

        verified = await jobs.wait(job_id=JOB_ID, status=Status.running, timeout=10)
        story.tell(f"verified that it runs: {' -> '.join(verified.reached)}")

        # No polling: the job's end wakes this coroutine, and the loop is free till then.
        ended = await jobs.wait(job_id=JOB_ID, status=Status.finished, timeout=seconds + 10)
        story.tell(f"awaited its end: exit code {ended.exit_code} after {run_time(ended)}")
        await show_logs(jobs)
        story.tell("read both logs")

        await jobs.stop(job_id=JOB_ID)
        story.tell("asked it to stop: a job that has ended stays as it is")

        final = await jobs.get_status(job_id=JOB_ID)
        assert final == ended
        story.tell(f"checked the final status: {final.status}")


def run_time(record: JobRecord) -> str:
    if record.started_at is None or record.finished_at is None:
        return "no time at all"
    return f"{(record.finished_at - record.started_at).total_seconds():.3f} s"


async def show_logs(jobs: Jobs) -> None:
    stdout, stderr = await jobs.job_logs(job_id=JOB_ID)
    for stream, log in (("stdout", stdout), ("stderr", stderr)):
        for line in log.splitlines() or ["(empty)"]:
            print(f"{'':14}{stream} | {line}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One job from its start to its final status.")
    parser.add_argument("db_path", nargs="?", default="./job_db")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long the job sleeps")
    options = parser.parse_args()
    asyncio.run(main(options.db_path, options.seconds))
