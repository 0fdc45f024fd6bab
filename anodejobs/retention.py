"""Retention: how long jobs that have ended are kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from anodejobs.errors import AnodeJobsError
from anodejobs.events import utc_now
from anodejobs.jobdb import JobDB
from anodejobs.records import TERMINAL, JobFilter
from anodejobs.stores.base import Query

LOG = logging.getLogger("anodejobs")

_PAGE = 200
_EVERY_S = 3600.0


class Retention:
    """Removes what has ended long ago; ``delete`` removes one job with its logs."""

    def __init__(self, jobdb: JobDB, delete: Callable[[str], Awaitable[bool]]) -> None:
        self._jobdb = jobdb
        self._delete = delete

    async def clean_up(self, older_than_days: float) -> int:
        """Remove the jobs that ended so many days ago or earlier; return how many they were.

        A job that others wait for is kept: what became of it is what they wait to learn.
        """
        before = utc_now() - timedelta(days=older_than_days)
        query = Query(filter=JobFilter(status=list(TERMINAL)), sort_by="finished_at", limit=_PAGE)
        removed = kept = 0
        while True:
            page = await self._jobdb.page(
                Query(filter=query.filter, sort_by=query.sort_by, limit=_PAGE, offset=kept)
            )
            for record in page:
                if record.finished_at is None or record.finished_at > before:
                    return removed
                if await self._is_awaited(record.self_id):
                    kept += 1
                else:
                    removed += await self._delete(record.self_id)
            if len(page) < _PAGE:
                return removed

    async def _is_awaited(self, job_id: str) -> bool:
        for dependent in await self._jobdb.dependents(job_id):
            record = await self._jobdb.get(dependent)
            if record is not None and not record.is_done:
                return True
        return False

    async def serve(self, days: float) -> None:
        """Clean up now and every hour, until cancelled."""
        while True:
            try:
                await self.clean_up(days)
            except AnodeJobsError as error:
                LOG.error("what has ended long ago is not removed: %s", error)
            await asyncio.sleep(_EVERY_S)
