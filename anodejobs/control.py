"""Control: what callers ask of a job that is there, wherever it runs: stop it, pause it, signal it.

A job of another host is that one's to be stopped or signalled: it is asked for an errand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence

from anodejobs.errands import Errand, Errands
from anodejobs.errors import ExecutorError, InvalidTransition, JobNotFound, StatusUnreachable
from anodejobs.events import (
    Attempt,
    Event,
    Paused,
    Resumed,
    StopFailed,
    StopRequested,
    Withdrawn,
)
from anodejobs.executors.base import Executor
from anodejobs.jobdb import JobDB
from anodejobs.owner import do_for_each
from anodejobs.recorder import Recorder
from anodejobs.records import WAITING, JobRecord, Status
from anodejobs.stores.base import Stored
from anodejobs.transitions import SIGNALLABLE, transition

LOG = logging.getLogger("anodejobs")

_MOST_AT_ONCE = 200
"""How many jobs are withdrawn in one commit: more would hold up the event loop."""


class Control:
    """Ends and signals jobs. ``errands`` is None where no other host can have jobs on record."""

    def __init__(
        self,
        jobdb: JobDB,
        executor: Executor,
        recorder: Recorder,
        *,
        errands: Errands | None,
        host: str | None,
    ) -> None:
        self._jobdb = jobdb
        self._executor = executor
        self._recorder = recorder
        self._errands = errands
        self._host = host

    def is_of_here(self, record: JobRecord) -> bool:
        """Return whether the job is of this host: nobody can see to those of another one."""
        return self._errands is None or record.host == self._host

    async def stop(
        self,
        job_id: str,
        grace: float | None,
        reason: str | None,
        *,
        here_only: bool = False,
    ) -> JobRecord:
        """End the job, and return its record when nothing of it is left.

        One that waits for its start is withdrawn. With ``here_only`` it is left alone, and so is
        one that another host runs.
        """
        while True:
            stored = await self._jobdb.stored(job_id)
            is_waiting = stored.record.status in WAITING
            if stored.record.is_done:
                return stored.record
            if here_only and (is_waiting or not self.is_of_here(stored.record)):
                return stored.record
            if is_waiting:
                with contextlib.suppress(InvalidTransition):  # it has just been started
                    return await self._jobdb.apply(job_id, Withdrawn())
                continue
            if stored.record.status in SIGNALLABLE:
                stopped = await self._stop_attempt(stored, grace, reason)
                if stopped is not None:
                    return stopped
                continue
            try:  # it is about to run, or to fail to, and may wait for its next attempt then
                with self._jobdb.waits.wait_for_attempt(stored.record, SIGNALLABLE) as start:
                    await self._jobdb.look(start)
                    await start.future
            except StatusUnreachable as ended:
                return ended.record

    async def withdraw(self, job_ids: Sequence[str]) -> list[str]:
        """Withdraw the jobs that wait for their start; return those that do not any more."""
        others: list[str] = []

        async def withdraw(job_id: str) -> None:
            try:
                await self._jobdb.apply(job_id, Withdrawn())
            except (InvalidTransition, JobNotFound):
                others.append(job_id)

        for begin in range(0, len(job_ids), _MOST_AT_ONCE):
            some = job_ids[begin : begin + _MOST_AT_ONCE]
            await self._jobdb.bring(some)
            await do_for_each(withdraw, some)
        return others

    async def _stop_attempt(
        self, stored: Stored, grace: float | None, reason: str | None
    ) -> JobRecord | None:
        """End this attempt; None where the job is run anew all the same."""
        job_id, attempt = stored.record.self_id, stored.attempt
        # Listening before it ends: when it has, somebody else may run it anew at once.
        with self._jobdb.waits.wait_for_attempt(stored.record) as end:
            await self._jobdb.apply(job_id, StopRequested(reason=reason), token=attempt.token)
            if end.future.done():
                return _unless_it_goes_on(stored.record, await end.future)
            now = await self._jobdb.stored(job_id)
            if now.attempt.token != attempt.token:
                return None
            if now.record.is_done:
                return now.record
            grace = stored.launch.stop_grace if grace is None else grace
            if await self._end_wherever(stored, grace, end.future):
                return _unless_it_goes_on(stored.record, await end.future)
            return (await self._jobdb.stored(job_id)).record

    async def _end_wherever(
        self, stored: Stored, grace: float, end: asyncio.Future[JobRecord]
    ) -> bool:
        """As ``end``, also where another host runs the attempt; ``end`` is that of the attempt."""
        job_id, attempt = stored.record.self_id, stored.attempt
        if self._errands is None or self.is_of_here(stored.record):
            return await self.end(job_id, attempt, grace)
        errand = Errand(do="stop", job_id=job_id, attempt=attempt, grace=grace)
        await self._errands.ask(stored.record.host or "", errand, until=end)
        if end.done():
            return True
        return (await self._jobdb.stored(job_id)).record.status is not Status.failed_stop

    async def pause(self, job_id: str) -> JobRecord:
        """Stop all processes of the job with SIGSTOP."""
        return await self._signalled(job_id, signal.SIGSTOP, Paused())

    async def resume(self, job_id: str) -> JobRecord:
        """Let all processes of the job go on."""
        return await self._signalled(job_id, signal.SIGCONT, Resumed())

    async def _signalled(self, job_id: str, signum: int, event: Event) -> JobRecord:
        stored = await self._jobdb.stored(job_id)
        transition(stored.record, event)  # refused before anything is signalled
        await self._send(stored, signum)
        return await self._jobdb.apply(job_id, event, token=stored.attempt.token)

    async def signal(self, job_id: str, signum: int) -> JobRecord:
        """Send a signal to all processes of the job."""
        stored = await self._jobdb.stored(job_id)
        if stored.record.status not in SIGNALLABLE:
            raise InvalidTransition(job_id, stored.record.status, "Signalled")
        await self._send(stored, signum)
        return stored.record

    async def _send(self, stored: Stored, signum: int) -> None:
        """Send a signal to all processes of an attempt, on whatever host they are."""
        if self._errands is None or self.is_of_here(stored.record):
            await self._executor.signal(stored.attempt, signum)
            return
        job_id, attempt = stored.record.self_id, stored.attempt
        errand = Errand(do="signal", job_id=job_id, attempt=attempt, signum=signum)
        with self._jobdb.waits.wait_for_attempt(stored.record) as end:
            await self._errands.ask(stored.record.host or "", errand, until=end.future)

    async def end(
        self, job_id: str, attempt: Attempt, grace: float, *, may_hasten: bool = True
    ) -> bool:
        """End an attempt of here; return whether nothing of it is left."""
        is_gone = await self._executor.stop(attempt, grace, may_hasten=may_hasten)
        if not is_gone:
            await self._recorder.record(job_id, StopFailed(), attempt.token)
        return is_gone

    async def finish(
        self, job_id: str, attempt: Attempt, grace: float, *, may_hasten: bool = True
    ) -> None:
        """As ``end``, for a stop that was cut short: nobody waits for it, the record tells."""
        try:
            await self.end(job_id, attempt, grace, may_hasten=may_hasten)
        except ExecutorError as error:
            LOG.error("job %s: its stop cannot be finished: %s", job_id, error)
            await self._recorder.record(job_id, StopFailed(), attempt.token)

    async def run_errand(self, errand: Errand) -> None:
        """Do what another host asks for."""
        if errand.do == "signal":
            await self._executor.signal(errand.attempt, errand.signum)
        else:
            await self.end(errand.job_id, errand.attempt, errand.grace)


def _unless_it_goes_on(record: JobRecord, after: JobRecord) -> JobRecord | None:
    """Return the record after an attempt, None where another one of the same run follows."""
    return after if after.is_done or after.created_at != record.created_at else None
