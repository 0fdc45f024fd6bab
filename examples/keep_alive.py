"""A monitor that restarts a service whenever it dies, by awaiting its end and never by polling.

    python -m examples.keep_alive [DB_PATH] [--command COMMAND] [--restarts N]

The pause before a restart doubles each time, up to a minute; it is short again once the service was
up for long enough. Ctrl-C and SIGTERM stop the service and end the monitor.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from anodejobs import JobActive, JobRecord, Jobs

LOG = logging.getLogger("keep_alive")

JOB_ID = "service"
DEMO = "echo serving; sleep 5; echo 'out of luck' >&2; exit 1"


@dataclass
class Backoff:
    """The pauses before restarts, in seconds."""

    first: float
    longest: float = 60.0
    settled: float = 30.0
    """After a run that lasted so long the next pause is the first again."""
    _last: float | None = None

    def pause_after(self, up: float) -> float:
        """Return how long to pause after a run that was up for so many seconds."""
        if self._last is None or up >= self.settled:
            self._last = self.first
        else:
            self._last = min(2 * self._last, self.longest)
        return self._last


async def main(db_path: str, command: str, backoff: Backoff, restarts: int | None) -> None:
    with sigterm_cancels():
        async with Jobs(db_path=db_path) as jobs:
            try:
                await keep_alive(jobs, command, backoff, restarts)
            finally:
                stopped = await jobs.stop(job_id=JOB_ID)
                LOG.info("ends: the service is %s", stopped.status if stopped else "not there")


async def keep_alive(jobs: Jobs, command: str, backoff: Backoff, restarts: int | None) -> None:
    """Run the service again whenever it has ended; return when no restart is left."""
    for restarted in itertools.count():
        record: JobRecord | None
        try:
            record = await jobs.run(command=command, job_id=JOB_ID)
        except JobActive:  # one that runs already is kept alive as well
            record = await jobs.get_status(job_id=JOB_ID)
        assert record is not None
        LOG.info("the service is %s, process %s", record.status, record.last_pid)

        record = await jobs.wait(job_id=JOB_ID)
        up = seconds_up(record)
        LOG.info("the service %s after %.3f s: %s", record.status, up, record.error)
        if restarted == restarts:
            LOG.info("no restart is left")
            return
        pause = backoff.pause_after(up)
        LOG.info("restart %d in %g s", restarted + 1, pause)
        await asyncio.sleep(pause)


def seconds_up(record: JobRecord) -> float:
    if record.started_at is None or record.finished_at is None:
        return 0.0  # it could not even be started
    return (record.finished_at - record.started_at).total_seconds()


@contextmanager
def sigterm_cancels() -> Iterator[None]:
    """Let SIGTERM cancel the current task, as asyncio.run lets Ctrl-C do."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    before = signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Restart a service whenever it dies.")
    parser.add_argument("db_path", nargs="?", default="./job_db")
    parser.add_argument("--command", default=DEMO, help="the service, for /bin/sh")
    parser.add_argument("--restarts", type=int, help="give up after so many; never by default")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds before the first restart")
    parser.add_argument(
        "--settled", type=float, default=30.0, help="seconds up that reset the pause"
    )
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    LOG.setLevel(logging.INFO)
    backoff = Backoff(first=options.pause, settled=options.settled)
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(main(options.db_path, options.command, backoff, options.restarts))
