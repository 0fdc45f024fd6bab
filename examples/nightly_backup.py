"""Backs a folder up every night, and tries again, after longer and longer pauses, where it fails.

    python -m examples.nightly_backup SOURCE TARGET [--db-path ./job_db] [--tz Europe/Berlin]
    python -m examples.nightly_backup SOURCE TARGET --now

The schedule is kept in the directory: whichever program uses that sees to it, so this one may be
restarted at any time, and says the same again whenever it starts. A night that nobody was there for
is made up for once, and no backup begins while the one before still runs.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from anodejobs import ExponentialBackoff, JobRecord, Jobs
from anodejobs.records import TERMINAL

NAME = "nightly-backup"
COMMAND = """
    set -e
    archive="$TARGET/$(date +%Y-%m-%d).tar.gz"
    tar -czf "$archive.part" -C "$SOURCE" .
    mv "$archive.part" "$archive"
    echo "wrote $archive"
"""


async def main(options: argparse.Namespace) -> None:
    backup = spec(options.source, options.target, options.pause)
    async with Jobs(db_path=options.db_path) as jobs:
        told = await jobs.schedule(
            backup, NAME, cron=options.cron, tz=options.tz, misfire="once", overlap="skip"
        )
        print(f"{NAME} comes next at {told.next_at}", flush=True)
        if options.now:
            record = await jobs.submit(**backup)
            await tell(jobs, await jobs.wait(record.self_id))
            return

        async def tell_of_backup(record: JobRecord) -> None:
            if record.name == NAME:  # others may use the directory, too
                await tell(jobs, record)

        await jobs.on(tell_of_backup, status=TERMINAL)
        print("waits for it until Ctrl-C", flush=True)
        await asyncio.Event().wait()


def spec(source: Path, target: Path, pause: float) -> dict[str, Any]:
    """Return the job, as arguments of ``Jobs.submit``."""
    return {
        "command": COMMAND,
        # As the shell's variables: a folder may have any name.
        "envs": {"SOURCE": str(source.absolute()), "TARGET": str(target.absolute())},
        "name": NAME,
        "timeout": 3600,
        "max_retries": 3,
        "retry": ExponentialBackoff(initial=pause, max=1800),
    }


async def tell(jobs: Jobs, record: JobRecord) -> None:
    """Print what became of a backup, attempt by attempt."""
    for attempt in await jobs.attempts(record.self_id):
        print(f"attempt {attempt.attempt}: {attempt.status}, exit code {attempt.exit_code}")
    stdout, stderr = await jobs.job_logs(record.self_id)
    print((stdout or stderr).rstrip(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Back a folder up every night.")
    parser.add_argument("source", type=Path, help="the folder to back up")
    parser.add_argument("target", type=Path, help="the folder for the archives")
    parser.add_argument("--db-path", default="./job_db")
    parser.add_argument("--cron", default="0 2 * * *", help="when, as minute, hour and so on")
    parser.add_argument("--tz", default="UTC", help="the time zone of that")
    parser.add_argument("--pause", type=float, default=60.0, help="seconds before the first retry")
    parser.add_argument("--now", action="store_true", help="make a backup now, too, and end then")
    with suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args()))
