"""Callbacks: the application's functions that are called with what becomes of jobs."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from anodejobs.jobdb import JobDB
from anodejobs.records import JobEvent, JobRecord, Status

LOG = logging.getLogger("anodejobs")

OnStatus = Callable[[JobRecord], Awaitable[object] | object]


async def serve_callback(
    callback: OnStatus,
    jobdb: JobDB,
    events: AsyncGenerator[JobEvent, None],
    *,
    wanted: frozenset[Status] | None,
) -> None:
    """Call it with each job that comes into a wanted status, None: into any; until cancelled."""
    async with aclosing(events):
        async for event in events:
            if event.job_id is None or event.kind != "status":
                continue
            if wanted is None or event.status in wanted:
                record = await jobdb.get(event.job_id)
                if record is not None:
                    await _call(callback, record)


async def _call(callback: OnStatus, record: JobRecord) -> None:
    try:
        answer = callback(record)
        if inspect.isawaitable(answer):
            await answer
    except Exception:  # the application's own; the other calls are not to suffer
        LOG.exception("a callback failed for job %s, which is %s", record.self_id, record.status)
