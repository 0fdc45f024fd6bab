"""Recorder: what has happened to attempts, on record, however long the store takes to keep it.

It adds what follows from it: the job's own answer where an attempt has ended, and the next attempt
where the job's policies have one. Of processes it knows nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace

from anodejobs.errors import InvalidTransition, JobNotFound, StoreError
from anodejobs.events import Adopted, End, Event, Exited, Lost
from anodejobs.jobdb import JobDB
from anodejobs.jobfiles import JobFiles
from anodejobs.progress import last_progress
from anodejobs.records import JobEvent, JobRecord
from anodejobs.sequels import Recovery, is_enough, recovered, with_sequel
from anodejobs.stores.base import TooLarge
from anodejobs.threads import in_thread

LOG = logging.getLogger("anodejobs")

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 5.0
_EVENTS = 100
"""How much of a service's history is looked at first: some 25 attempts."""


class Recorder:
    """Writes what happens; ``files`` are where jobs leave their answers."""

    def __init__(self, jobdb: JobDB, files: JobFiles, recovery: Recovery) -> None:
        self._jobdb = jobdb
        self._files = files
        self._recovery = recovery

    async def record(self, job_id: str, event: Event, token: str) -> None:
        """Apply an event that has happened, however long the store takes to keep it.

        Who waits for the job is told of the trouble meanwhile.
        """
        rest_s = FIRST_RETRY_S
        while True:
            try:
                known = event
                if isinstance(event, End):
                    stored = await self._jobdb.stored(job_id, token)
                    known = await self.concluded(stored.record, event)
                await self._jobdb.apply(job_id, known, token=token)
                return
            except (InvalidTransition, JobNotFound):
                return  # it is on record already, or came too late to matter
            except StoreError as error:
                if isinstance(error, TooLarge) and (left := _without_result(event, error)):
                    event = left
                    continue
                LOG.error("job %s: its %s waits: %s", job_id, type(event).__name__, error)
                self._jobdb.waits.fail_for(job_id, error)
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, LONGEST_RETRY_S)

    async def record_all(self, job_id: str, events: list[Event], token: str) -> None:
        """Record several events of an attempt, one after the other."""
        for event in events:
            await self.record(job_id, event, token)

    async def hear(self, job_id: str, token: str, event: Event) -> None:
        """Record what an executor tells before the end of an attempt, unless it is on record."""
        if not (isinstance(event, Adopted) and await self._is_on_record(job_id, event)):
            await self.record(job_id, event, token)

    async def _is_on_record(self, job_id: str, event: Adopted) -> bool:
        """Return whether the history has it: every application that comes is told of it anew."""
        try:
            return any(entry.at == event.at for entry in await self._jobdb.history(job_id))
        except StoreError:
            return False  # twice rather than not at all

    async def concluded(self, record: JobRecord, event: End) -> End:
        """Return the end of an attempt with what follows it, as the job's policies say."""
        if event.retry_at is not None:
            return event
        if isinstance(event, Exited):
            event = await self._with_answer(record, event)
        if record.max_retries or record.restart != "never":
            events = [] if record.restart == "never" else await self._recent(record, event)
            event = with_sequel(record, event, events, random.random())
        if isinstance(event, Lost):
            return recovered(record, event, self._recovery)
        return event

    async def _recent(self, record: JobRecord, event: End) -> list[JobEvent]:
        """Return as much of a service's history as its policy looks at: it may be very long."""
        most = _EVENTS
        while True:
            events = await self._jobdb.latest(record.self_id, most)
            if len(events) < most or is_enough(record, event, events):
                return events
            most *= 4

    async def _with_answer(self, record: JobRecord, exit: Exited) -> Exited:
        """Return the end of an attempt with what it had to say for itself."""
        files, logfile, number = self._files, record.logfile, record.attempt
        if files.has_progress(logfile, number):
            progress = last_progress(files.progress(logfile, number))
            exit = replace(exit, progress=progress and progress[0])
        if exit.result_error is not None or not files.has_result(logfile, number):
            return exit
        result = await in_thread(files.result, logfile, number)
        if result is None:
            return exit
        return replace(exit, result=result.value, result_error=result.error)


def _without_result(event: Event, error: TooLarge) -> Exited | None:
    """Return an end that goes on record without its result; None where it has none any more."""
    if not isinstance(event, Exited) or event.result_error is not None:
        return None
    return replace(event, result_error=f"the result cannot be kept: {error}")
