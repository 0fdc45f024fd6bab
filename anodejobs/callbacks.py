"""Callbacks: the application's functions that are called with what becomes of jobs."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from anodejobs.errors import StoreError
from anodejobs.jobdb import JobDB
from anodejobs.records import JobEvent, JobRecord, Status

LOG = logging.getLogger("anodejobs")

_RETRY_S = 0.2
"""How long a store that could not be read is left alone."""

OnStatus = Callable[[JobRecord], Awaitable[object] | object]


async def serve_callback(
    callback: OnStatus,
    jobdb: JobDB,
    *,
    job_id: str | None,
    after: int,
    wanted: frozenset[Status] | None,
) -> None:
    """Call it with each job that comes into a wanted status, None: into any; until cancelled.

    It begins after the event ``after``. A store that fails is waited for, and nothing is left out.
    """
    while True:
        try:
            told = jobdb.news.events(job_id, after, None, statuses_only=True)
            async with aclosing(told) as events:
                async for event in events:
                    await _heed(event, callback, jobdb, wanted)
                    after = event.seq
            return
        except StoreError as error:
            LOG.error("the callbacks wait: %s", error)
        await asyncio.sleep(_RETRY_S)


async def _heed(
    event: JobEvent, callback: OnStatus, jobdb: JobDB, wanted: frozenset[Status] | None
) -> None:
    if event.kind != "status" or event.job_id is None:
        return
    if wanted is None or event.status in wanted:
        record = await jobdb.get(event.job_id)
        if record is not None:
            await _call(callback, record.detached())


async def _call(callback: OnStatus, record: JobRecord) -> None:
    try:
        answer = callback(record)
        if inspect.isawaitable(answer):
            await answer
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            raise
        # The application's own; the other calls are not to suffer.
        LOG.exception("a callback failed for job %s, which is %s", record.self_id, record.status)


def _is_cancelled() -> bool:
    """Return whether it is this task that is cancelled, and not something that it awaited."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
