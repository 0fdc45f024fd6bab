"""Reconciler: jobs that lost their supervisor, and what applications that died left half done.

It looks at every job under way when it opens, and whenever somebody has gone who looked after some.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import anyio

from anodejobs.control import Control
from anodejobs.errors import AnodeJobsError, ExecutorError, JobNotFound
from anodejobs.events import Adopted, Started
from anodejobs.executors.base import Executor, Host
from anodejobs.jobdb import JobDB
from anodejobs.owner import Owner
from anodejobs.recorder import FIRST_RETRY_S, LONGEST_RETRY_S, Recorder
from anodejobs.records import Status
from anodejobs.stores.base import Stored, Unfinished
from anodejobs.watcher import Watcher

LOG = logging.getLogger("anodejobs")


class Reconciler:
    """Finds somebody for each active job that nobody looks after: the executor, or the watcher."""

    def __init__(
        self,
        jobdb: JobDB,
        executor: Executor,
        owner: Owner,
        *,
        recorder: Recorder,
        control: Control,
        watcher: Watcher,
        host: str | None,
    ) -> None:
        self._jobdb = jobdb
        self._executor = executor
        self._owner = owner
        self._recorder = recorder
        self._control = control
        self._watcher = watcher
        self._host = host
        """The host whose jobs these are, None where no other one can have any on record."""
        self._heeded: set[str] = set()
        self._reconciling = asyncio.Lock()
        jobdb.on_stranger = self._meet
        jobdb.is_of_here = control.is_of_here
        jobdb.on_foreign.append(executor.attend)

    async def open(self) -> None:
        """Open the executor, and take care of what earlier applications have left."""
        host = Host(
            own=self._owner.own,
            on_inherited=self._watcher.inherit,
            on_departure=self._look_soon,
            is_over=self._is_over,
        )
        await self._executor.open(host)
        await self.reconcile()

    async def _is_over(self, job_id: str, token: str) -> bool:
        stored = await self._jobdb.on_disk(job_id)
        return stored is None or stored.record.is_done or stored.attempt.token != token

    async def reconcile(self) -> None:
        """See to it that every active job has somebody who looks after it.

        Those whose supervisor has gone are taken on, and how each one stands is noted. What an
        application left half done, a start or a stop, is done.
        """
        async with self._reconciling:  # what is being taken over is not to be taken over again
            await self._reconcile()

    async def _reconcile(self) -> None:
        unfinished = [
            job
            for job in await self._jobdb.under_way(self._host)
            if not self._watcher.has(job.attempt.token)
        ]
        # Of thousands the same: each is asked for once.
        supervisors = {job.attempt.supervisor for job in unfinished}
        mine = {name for name in supervisors if self._executor.is_mine(name)}
        held = await self._executor.held() if mine else set()
        async with anyio.create_task_group() as works:
            for job in unfinished:
                is_mine = job.attempt.supervisor in mine
                if is_mine and job.status is Status.starting:
                    works.start_soon(self._start_again, job, job.attempt.token in held)
                elif job.attempt.token in held:
                    if job.status is Status.stopping:
                        works.start_soon(self._stop_again, job)
                elif is_mine or not self._executor.is_alive(job.attempt.supervisor):
                    works.start_soon(self._take_over, job)
                else:
                    self._heed(job.attempt.supervisor)

    async def _start_again(self, job: Unfinished, is_held: bool) -> None:
        """Ask once more for a start that was committed; the executor knows whether it was done.

        Who committed it may be alive, and about to ask for it as well.
        """
        stored = await self._current(job)
        if stored is None or stored.record.status is not Status.starting:
            return
        record, launch, attempt = stored.record, stored.launch, stored.attempt
        event = await self._watcher.begin(record, launch, attempt, is_held=is_held)
        await self._recorder.record(job.job_id, event, job.attempt.token)
        if not isinstance(event, Started):
            await self._executor.clean(job.attempt.token)
        elif await self._current(job) is not None:  # its end may have come in the meantime
            self._watcher.inherit(job.job_id, job.attempt.token)

    async def _stop_again(self, job: Unfinished) -> None:
        """See to a stop that was committed; one that is under way keeps its grace."""
        stored = await self._current(job)
        if stored is not None:
            self._owner.own(self._finish_stop(stored), job.job_id)

    async def _finish_stop(self, stored: Stored) -> None:
        job_id, grace = stored.record.self_id, stored.launch.stop_grace
        await self._control.finish(job_id, stored.attempt, grace, may_hasten=False)

    async def _take_over(self, job: Unfinished) -> None:
        stored = await self._current(job)
        if stored is None or not self._control.is_of_here(stored.record):
            return
        if stored.attempt.supervisor != self._executor.supervisor:
            # Claimed before it is touched: two who read one pipe would each get half of it.
            stored = await self._jobdb.claim(stored, self._executor.supervisor)
        if stored is None:
            return
        launch = stored.launch.of_attempt(stored.record.attempt)
        event = await self._executor.adopt(launch, stored.attempt)
        await self._recorder.record(job.job_id, event, job.attempt.token)
        if isinstance(event, Adopted):
            self._watcher.take_over(stored, event.attempt)
        else:
            await self._executor.clean(job.attempt.token)

    async def _current(self, job: Unfinished) -> Stored | None:
        """Return what is to be known of the job, None where that attempt is over by now."""
        try:
            stored = await self._jobdb.stored(job.job_id, job.attempt.token)
        except JobNotFound:  # over, and deleted
            return None
        is_current = not stored.record.is_done and stored.attempt.token == job.attempt.token
        return stored if is_current else None

    def _meet(self, stored: Stored) -> None:
        """See whether anybody looks after a job that was not written here."""
        if stored.attempt.supervisor != self._executor.supervisor:
            self._heed(stored.attempt.supervisor)

    def _heed(self, supervisor: str) -> None:
        """See to it that jobs are taken on when their supervisor, another one, has gone."""
        if supervisor not in self._heeded:
            self._heeded.add(supervisor)
            with contextlib.suppress(ExecutorError):  # closed: the succession is somebody else's
                self._owner.own(self._succeed(supervisor), "succession")

    async def _succeed(self, supervisor: str) -> None:
        await self._executor.outlive(supervisor)
        self._heeded.discard(supervisor)
        await self.reconcile_soon()

    def _look_soon(self) -> None:
        with contextlib.suppress(ExecutorError):  # closed
            self._owner.own(self.reconcile_soon(), "reconciliation")

    async def reconcile_soon(self) -> None:
        """Reconcile, however long the store takes to allow it."""
        rest_s = FIRST_RETRY_S
        while True:
            try:
                return await self.reconcile()
            except* AnodeJobsError as errors:
                LOG.error("what others have left behind waits: %s", errors.exceptions[0])
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, LONGEST_RETRY_S)
