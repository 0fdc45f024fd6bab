"""Retention: how long jobs that have ended are kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from anodejobs.errors import AnodeJobsError, ExecutorError, JobNotFound
from anodejobs.events import utc_now
from anodejobs.jobdb import JobDB
from anodejobs.records import TERMINAL, WAITING, JobFilter, JobRecord
from anodejobs.stores.base import Query

LOG = logging.getLogger("anodejobs")

_PAGE = 100
_EVERY_S = 3600.0
_OTHERS_RESPITE = timedelta(days=1)


class Retention:
    """Removes what has ended long ago.

    ``delete`` removes the jobs whose records these still are, and their logs; it returns how many.
    """

    def __init__(self, jobdb: JobDB, delete: Callable[[list[JobRecord]], Awaitable[int]]) -> None:
        self._jobdb = jobdb
        self._delete = delete

    async def clean_up(self, older_than_days: float, host: str | None = None) -> int:
        """Remove the jobs that ended so many days ago or earlier; return how many they were.

        A job that others wait for is kept: what became of it is what they wait to learn. Where
        there is a ``host``, which is this one, those of others are left to them for a day: nobody
        else can remove their logs.
        """
        before = _days_ago(older_than_days)
        if before is None:
            return 0
        removed = 0
        page = await self._page(before, None)
        while page:
            # The next page is found by the last job of this one, which therefore must still be
            # there. Where somebody else has deleted that, it is found from the beginning.
            try:
                following = await self._page(before, page[-1].self_id)
            except JobNotFound:
                following = await self._page(before, None)
            old = [
                record for record in page if _ended_at(record) + _respite(record, host) <= before
            ]
            removed += await self._delete(
                [record for record in old if not await self._is_awaited(record.self_id)]
            )
            page = following
        return removed

    async def _page(self, before: datetime, after: str | None) -> list[JobRecord]:
        # What was created later cannot have ended before.
        filter = JobFilter(status=list(TERMINAL), created_before=before)
        return await self._jobdb.page(Query(filter=filter, limit=_PAGE, after=after))

    async def _is_awaited(self, job_id: str) -> bool:
        dependents = await self._jobdb.dependents(job_id)
        for start in range(0, len(dependents), _PAGE):
            filter = JobFilter(self_id=dependents[start : start + _PAGE], status=list(WAITING))
            if await self._jobdb.page(Query(filter=filter, limit=1)):
                return True
        return False

    async def serve(self, days: float, host: str | None) -> None:
        """Clean up now and every hour, until cancelled or all is closed."""
        while True:
            try:
                await self.clean_up(days, host)
            except ExecutorError:  # nothing is deleted any more
                return
            except AnodeJobsError as error:
                LOG.error("what has ended long ago is not all removed: %s", error)
            await asyncio.sleep(_EVERY_S)


def _days_ago(days: float) -> datetime | None:
    """Return the moment, None where it lies before all years."""
    try:
        return utc_now() - timedelta(days=days)
    except OverflowError:
        return None


def _respite(record: JobRecord, host: str | None) -> timedelta:
    """Return how much longer a job is kept, as it is for another host to remove."""
    return timedelta() if host is None or record.host == host else _OTHERS_RESPITE


def _ended_at(record: JobRecord) -> datetime:
    ended_at = record.finished_at or record.last_update
    assert ended_at is not None  # it has ended
    return ended_at
