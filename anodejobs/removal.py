"""Removal: jobs that have ended, and all that is there of them, on record and on disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from anodejobs.errors import JobActive, StoreError
from anodejobs.executors.base import Launch
from anodejobs.jobdb import JobDB
from anodejobs.jobfiles import JobFiles
from anodejobs.links import Links
from anodejobs.records import JobRecord, Status
from anodejobs.regular import remove
from anodejobs.threads import in_thread

LOG = logging.getLogger("anodejobs")


class Removal:
    """Deletes jobs: their files first, then their records."""

    def __init__(self, jobdb: JobDB, links: Links) -> None:
        self._jobdb = jobdb
        self._links = links

    async def delete(self, job_id: str) -> bool:
        """Delete a job; return whether there was one. Raises JobActive, StoreError."""
        while stored := await self._jobdb.on_disk(job_id):
            record = stored.record
            if not record.is_done:
                raise JobActive(job_id, record.status)
            if record.status is Status.finished:
                await self._links.release(job_id)
            if await self._clear(record) and await self._jobdb.delete_all([record]):
                return True
        return False

    async def delete_all(self, records: Sequence[JobRecord]) -> int:
        """Delete the jobs whose records these still are; return how many they were."""
        cleared: list[JobRecord] = []
        for record in records:
            try:
                if await self._clear(record):
                    cleared.append(record)
            except StoreError as error:  # the others go all the same
                LOG.error("%s", error)
        return await self._jobdb.delete_all(cleared)

    async def _clear(self, record: JobRecord) -> bool:
        """Remove the files of an ended job, if this is still its record; return whether it is.

        For it to be deleted next, and not after it was: then its id is free, and the files of that
        name may be another job's.
        """
        stored = await self._jobdb.on_disk(record.self_id)
        if stored is None or stored.record.revision != record.revision:
            return False
        try:
            await in_thread(remove_attempts, stored.launch, record)
        except OSError as error:
            why = f"job {record.self_id!r} is not deleted, as its logs cannot be removed: {error}"
            raise StoreError(why) from error
        return True


def remove_attempts(launch: Launch, record: JobRecord) -> None:
    """Remove the logs and files of a job that has ended. Waits for the disk."""
    for number in range(1, max(record.attempt, launch.earlier) + 1):
        for path in launch.of_attempt(number).traces(number):
            remove(path)
    if launch.files:
        remove(JobFiles(launch.files).payload(record.logfile))
