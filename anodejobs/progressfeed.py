"""ProgressFeed: what running jobs say of their progress, for those who read events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path

from anodejobs.errors import ExecutorError, one_line
from anodejobs.jobdb import JobDB
from anodejobs.progress import ProgressWatch
from anodejobs.records import ALIVE, JobFilter
from anodejobs.stores.base import Query


class ProgressFeed:
    """Watches the folder while somebody reads events; jobs of other processes are told of, too."""

    def __init__(
        self,
        jobdb: JobDB,
        folder: Path,
        own: Callable[[Coroutine[None, None, None], str], asyncio.Task[None]],
    ) -> None:
        self._jobdb = jobdb
        self._folder = folder
        self._own = own
        self._watch: ProgressWatch | None = None
        self._job_of: dict[str, str] = {}
        """The job of each logfile that is known."""
        self._unknown: dict[str, tuple[int, float, str]] = {}

    def open(self) -> None:
        """Begin to tell. Idempotent. Raises ExecutorError where the folder cannot be watched."""
        if self._watch is None:
            watch = ProgressWatch(self._folder, self._on_progress)
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # a job can remove it
                watch.open()
            except OSError as error:
                why = f"the progress of jobs cannot be watched: {one_line(error)}"
                raise ExecutorError(why) from error
            self._watch = watch

    def close(self) -> None:
        """Tell nothing any more. Idempotent."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._job_of.clear()
        self._unknown.clear()

    def _on_progress(self, logfile: str, attempt: int, fraction: float, text: str) -> None:
        job_id = self._job_of.get(logfile)
        if job_id is not None:
            self._jobdb.news.progressed(job_id, attempt, fraction, text)
            return
        if not self._unknown:
            with contextlib.suppress(ExecutorError):  # closed
                self._own(self._look_up(), "progress")
        self._unknown[logfile] = attempt, fraction, text

    async def _look_up(self) -> None:
        """Learn which jobs run, and tell what was said by those that were not known."""
        try:
            running = await self._jobdb.page(Query(filter=JobFilter(status=list(ALIVE))))
        finally:  # where the store fails, it is asked again when more is said
            unknown, self._unknown = self._unknown, {}
        self._job_of = {record.logfile: record.self_id for record in running}
        for logfile, (attempt, fraction, text) in unknown.items():
            if logfile in self._job_of:
                self._jobdb.news.progressed(self._job_of[logfile], attempt, fraction, text)
