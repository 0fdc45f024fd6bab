"""Watcher: the life of an attempt as straight coroutines, each run in a task of the root group.

It joins the executor, which knows what happens to processes, and JobDB, which records it. What a
caller asks for is done here and not in the caller's task, so that a caller who is cancelled leaves
nothing half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio

from anodejobs import faults
from anodejobs.errands import Errand, Errands, document
from anodejobs.errors import (
    AnodeJobsError,
    ExecutorError,
    InvalidJob,
    InvalidTransition,
    JobActive,
    JobNotFound,
    StatusUnreachable,
    StoreError,
)
from anodejobs.events import (
    Admitted,
    Adopted,
    Attempt,
    Event,
    Exited,
    Lost,
    Paused,
    Resumed,
    Started,
    StartFailed,
    StopFailed,
    StopRequested,
    Submitted,
    Withdrawn,
)
from anodejobs.executors.base import STREAMS, Executor, Host, Launch, new_token
from anodejobs.jobdb import JobDB, unstarted
from anodejobs.jobfiles import JobFiles
from anodejobs.links import Links
from anodejobs.logs import remove_logs
from anodejobs.planner import Place, Plan
from anodejobs.progress import last_progress
from anodejobs.records import WAITING, JobRecord, Status
from anodejobs.sequels import Recovery, recovered, with_sequel
from anodejobs.stores.base import Lease, Stored, TooLarge, Unfinished
from anodejobs.transitions import SIGNALLABLE, renewed, transition

LOG = logging.getLogger("anodejobs")

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
_CLOSING_S = 10.0
"""How much longer than the jobs' grace closing may take."""

Result = TypeVar("Result")
Answer = asyncio.Future[JobRecord]
StartOutcome = Started | StartFailed | Lost
Ended = Exited | StartFailed | Lost


class Watcher:
    """Starts, follows, adopts and ends attempts."""

    def __init__(
        self,
        jobdb: JobDB,
        executor: Executor,
        tasks: asyncio.TaskGroup,
        *,
        links: Links,
        place: Place,
        errands: Errands | None,
        recovery: Recovery,
    ) -> None:
        self._jobdb = jobdb
        self._links = links
        self._files = JobFiles(place.files)
        self._place = place
        self._errands = errands
        """None where no other host can have jobs on record."""
        self._recovery = recovery
        self._executor = executor
        self._tasks = tasks
        self._watched: dict[str, Launch] = {}
        """What was started or taken over here and has not ended, by token."""
        self._inherited: set[str] = set()
        """Tokens of what other applications have started and is watched here."""
        self._lives = 0
        """How many attempts have a task here, those that are being cleaned up after included."""
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._answers: set[asyncio.Future[Any]] = set()
        self._admissions: set[Answer] = set()
        """Of queued jobs whose start is not on record yet, or has not been given up."""
        self._heeded: set[str] = set()
        self._reconciling = asyncio.Lock()
        jobdb.on_stranger = self._meet
        jobdb.on_foreign.append(executor.attend)

    async def open(self) -> None:
        """Open the executor, and take care of what earlier applications have left."""
        host = Host(own=self.own, on_inherited=self._inherit, on_departure=self._depart)
        await self._executor.open(host)
        await self.reconcile()

    def own(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Run a task for as long as this Jobs is open. Raises ExecutorError where it is not."""
        try:
            return self._tasks.create_task(work, name=f"anodejobs {name}")
        except RuntimeError:  # the group is ending
            work.close()
            raise ExecutorError("this Jobs is closed") from None

    async def owned(
        self, work: Callable[..., Coroutine[None, None, Result]], *args: object
    ) -> Result:
        """Return what ``work`` returns, done in a task of the root group.

        Cancelling gives up the result, not the work.
        """
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        async def answered() -> None:
            try:
                _resolve(answer, await work(*args))
            except Exception as error:
                _refuse(answer, error)

        return await self._answer(answer, answered(), work.__name__)

    async def _answer(
        self, answer: asyncio.Future[Result], work: Coroutine[None, None, None], name: str
    ) -> Result:
        """Return the answer that the work gives; or that will not come, if all ends before."""
        self.own(work, name)
        self._answers.add(answer)
        try:
            return await answer
        finally:
            self._answers.discard(answer)

    def refuse_all(self) -> None:
        """Tell all who still wait for an answer that none will come."""
        for answer in self._answers:
            _refuse(answer, ExecutorError("this Jobs was closed meanwhile"))

    # The life of an attempt.

    async def start(self, plan: Plan, may_replace: Callable[[JobRecord], bool]) -> JobRecord:
        """Return the record of a new run once its program is exec'd or could not be.

        Where the id has a record that ended and that the run may not replace, that one is
        returned. Raises JobActive. Cancelling gives up the answer, not the run.
        """
        answer: Answer = asyncio.get_running_loop().create_future()
        if self._errands is not None:
            plan = self._place.bring_plan(plan)

        async def opened(attempt: Attempt) -> JobRecord | None:
            faults.reached("host: a run was asked for")
            refused = await self._executor.prepare()
            kept, problem = await self._record_first(plan, attempt, may_replace)
            if kept is not None:
                _resolve(answer, kept)
                return None
            if problem is not None:
                refused = StartFailed(error=problem)
            return await self._begun(plan.record, plan.launch, attempt, answer, refused)

        life = self._life(plan.launch, opened, answer)
        return await self._answer(answer, life, plan.record.self_id)

    async def enlist(self, plan: Plan, may_replace: Callable[[JobRecord], bool]) -> JobRecord:
        """Return the record of a new run that is not to be started now; else as ``start``."""
        record = plan.record
        if await self._jobdb.create(record, plan.launch, unstarted(), replace=None) is not None:
            return record
        # It must not start before the files of the earlier run are gone.
        waiting = renewed(record, "create").changed({"due_at": record.due_at})
        held = replace(plan, record=waiting)
        kept, problem = await self._record_first(held, unstarted(), may_replace)
        if kept is not None:
            return kept
        if problem is not None:
            return await self._jobdb.apply(record.self_id, Withdrawn(error=problem))
        if record.submitted_at is None:
            return held.record
        is_ready = not record.depends_on and record.due_at is None
        return await self._jobdb.apply(record.self_id, Submitted(is_ready=is_ready))

    async def enlist_all(self, plans: Sequence[Plan]) -> None:
        """Record new jobs that are not to be started now, all or none. Raises InvalidJob."""
        jobs = [Stored(record=p.record, launch=p.launch, attempt=unstarted()) for p in plans]
        while not await self._jobdb.create_all(jobs):
            for plan in plans:
                if await self._jobdb.get(plan.record.self_id) is not None:
                    raise InvalidJob("job_id", f"there is a job {plan.record.self_id!r} already")

    def admit(self, job_id: str, on_refusal: Callable[[str, BaseException], None]) -> None:
        """Start the next attempt of a queued job.

        ``on_refusal`` is called where that is not on record, with the id and the reason.
        """
        answer: Answer = asyncio.get_running_loop().create_future()
        self.own(self._admitted_life(job_id, answer, on_refusal), job_id)
        self._admissions.add(answer)
        answer.add_done_callback(self._admissions.discard)

    async def _admitted_life(
        self, job_id: str, answer: Answer, on_refusal: Callable[[str, BaseException], None]
    ) -> None:
        is_doubtful = False

        async def opened(attempt: Attempt) -> JobRecord | None:
            nonlocal is_doubtful
            refused = await self._executor.prepare()
            faults.reached("host: a job was admitted")
            try:
                admitted = await self._admit(job_id, attempt)
            except StoreError:
                is_doubtful = True
                raise
            self._watched[attempt.token] = admitted.launch
            return await self._begun(admitted.record, admitted.launch, attempt, answer, refused)

        try:
            stored = await self._jobdb.about_to_start(job_id)
        except AnodeJobsError as error:
            _refuse(answer, error)
        else:
            await self._life(stored.launch, opened, answer)
        refusal = answer.exception() if answer.done() else None
        if refusal is not None:
            on_refusal(job_id, refusal)
        if is_doubtful:  # should it be on record all the same, then we are to do it
            await asyncio.sleep(_FIRST_RETRY_S)
            await self._reconcile_soon()

    async def _admit(self, job_id: str, attempt: Attempt) -> Stored:
        place = self._place
        if self._errands is None:
            return await self._jobdb.admit(job_id, Admitted(attempt=attempt, host=place.host))
        admitted = Admitted(
            attempt=attempt, host=place.host, dirname=place.dirname, logdir=place.logdir
        )
        return await self._jobdb.admit(job_id, admitted, place.bring)

    async def settle(self) -> None:
        """Return when every admitted job is on record as started, or is not to be started.

        Or when that takes too long.
        """
        if self._admissions:
            await asyncio.wait(self._admissions, timeout=_CLOSING_S)

    async def _life(
        self,
        launch: Launch,
        opened: Callable[[Attempt], Awaitable[JobRecord | None]],
        answer: Answer,
    ) -> None:
        """Live an attempt from its start on; ``opened`` gives the record of what is running."""
        attempt = Attempt(token=new_token(), supervisor=self._executor.supervisor)
        self._take_on(launch, attempt)
        try:
            running: JobRecord | None = None
            try:
                running = await opened(attempt)
            except Exception as error:
                _refuse(answer, error)
            if running is not None:
                job_id = running.self_id
                # What the start took would be memory, and more to collect, for as long as it runs.
                del opened, answer, running
                await self._watch(job_id, attempt.token)
            else:
                await self._executor.clean(attempt.token)
        finally:
            self._let_go(attempt)

    async def _begun(
        self,
        record: JobRecord,
        launch: Launch,
        attempt: Attempt,
        answer: Answer,
        refused: StartFailed | None,
    ) -> JobRecord | None:
        """Start what is on record as about to be, and answer; None where nothing runs."""
        faults.reached("host: the start is on record")
        event = refused or await self._start(record, launch, attempt)
        end = await self._end_by_now(record.self_id, event)
        both = end and await self._record_both(record, event, end)
        running = both or await self._record_started(record, event, attempt, end)
        faults.reached("host: the process is on record")
        _resolve(answer, running)
        if not isinstance(event, Started):
            return None
        if end is not None:
            if both is None:
                await self._record(record.self_id, end, attempt.token)
            self._watched.pop(attempt.token, None)
            return None
        if self._errands is not None and await self._was_given_up(record.self_id, attempt.token):
            self.own(self._give_up(event.attempt, launch.stop_grace), record.self_id)
        return running

    async def _end_by_now(self, job_id: str, event: StartOutcome) -> Exited | Lost | None:
        """Return how an attempt ended that has ended as its start is told, as short ones may."""
        if not (isinstance(event, Started) and self._executor.has_ended(event.attempt.token)):
            return None
        try:
            return await self._executor.wait(event.attempt.token, _unheard)
        except Exception as error:
            return _unwatched(job_id, error)

    async def _record_both(
        self, record: JobRecord, event: StartOutcome, end: Exited | Lost
    ) -> JobRecord | None:
        """Commit a start together with its end; None where it has to be one after the other."""
        assert isinstance(event, Started)
        try:
            known = await self._with_sequel(transition(record, event), end)
            token = event.attempt.token
            return await self._jobdb.apply_both(record.self_id, event, known, token=token)
        except (InvalidTransition, StoreError):
            return None

    async def _was_given_up(self, job_id: str, token: str) -> bool:
        """Return whether another host has declared the attempt lost, as it heard nothing of us."""
        try:
            stored = await self._jobdb.stored(job_id)
        except JobNotFound:
            return True
        except StoreError:
            return False  # the other host leaves us an errand, too
        record = stored.record
        return stored.attempt.token != token or (record.is_done and record.exit_code is None)

    async def _give_up(self, attempt: Attempt, grace: float) -> None:
        """End an attempt of which nothing is to be recorded any more."""
        with contextlib.suppress(ExecutorError):  # closed; the errand is there for the next one
            await self._executor.stop(attempt, grace)

    async def _record_first(
        self, plan: Plan, attempt: Attempt, may_replace: Callable[[JobRecord], bool]
    ) -> tuple[JobRecord | None, str | None]:
        """Commit the first record of a run, or return the record that stays in its place.

        With it comes why the run must not begin, where an earlier one's files cannot be removed.
        """
        old: JobRecord | None = None
        record, launch = plan.record, plan.launch
        while await self._jobdb.create(record, launch, attempt, replace=old) is None:
            old = await self._jobdb.get(record.self_id)
            if old is not None and not old.is_done:
                raise JobActive(old.self_id, old.status)
            if old is not None and not may_replace(old):
                return old, None
            if old is not None:
                await self._links.settle(old)
        try:
            if old is not None:
                await asyncio.to_thread(remove_attempts, launch, old)
        except OSError as error:  # its result would be taken for that of this run
            return None, f"what an earlier run left cannot be removed: {error}"
        return None, None

    async def _start(self, record: JobRecord, launch: Launch, attempt: Attempt) -> StartOutcome:
        number = record.attempt
        try:
            if record.payload is not None:
                await asyncio.to_thread(_hand_out, launch, record)
        except OSError as error:
            return StartFailed(error=f"its payload cannot be written: {error}")
        try:
            return await self._executor.start(launch.of_attempt(number), attempt, number)
        except Exception as error:  # an executor's fault; the record must not stay `starting`
            LOG.exception("job %s could not be started", record.self_id)
            return StartFailed(error=f"the executor failed: {error!r}")

    async def _record_started(
        self,
        record: JobRecord,
        event: StartOutcome,
        attempt: Attempt,
        end: Exited | Lost | None = None,
    ) -> JobRecord:
        """Commit how the start went; ``end`` is that of the attempt where it is known by now."""
        job_id = record.self_id
        try:
            known = event if isinstance(event, Started) else await self._with_sequel(record, event)
            return await self._jobdb.apply(job_id, known, token=attempt.token)
        except InvalidTransition:
            # Another application has asked for the same start, and was quicker to record it.
            return (await self._jobdb.stored(job_id)).record
        except StoreError as error:
            events: list[Event] = [StartFailed(error=f"its start could not be recorded: {error}")]
            if isinstance(event, Started):
                # The caller hears that it failed, so nothing of it may go on. Should the start be
                # on record all the same, then so must the end.
                await self._executor.stop(event.attempt, 0)
                events.append(end or await self._executor.wait(attempt.token, _unheard))
                await self._executor.clean(attempt.token)
            self.own(self._record_all(job_id, events, attempt.token), job_id)
            raise

    async def _record_all(self, job_id: str, events: list[Event], token: str) -> None:
        for event in events:
            await self._record(job_id, event, token)

    async def _watch(self, job_id: str, token: str) -> None:
        """Follow a running attempt to its recorded end, and end what it leaves behind."""
        try:
            await self._follow(job_id, token)
        except Exception as error:  # a fault here must not take the other jobs along
            await self._record(job_id, _unwatched(job_id, error), token)

    async def _follow(self, job_id: str, token: str) -> None:
        exit = await self._executor.wait(token, partial(self._hear, job_id, token))
        await self._record(job_id, exit, token)
        self._watched.pop(token, None)
        await self._executor.clean(token)

    async def _hear(self, job_id: str, token: str, event: Event) -> None:
        if not (isinstance(event, Adopted) and await self._is_on_record(job_id, event)):
            await self._record(job_id, event, token)

    async def _is_on_record(self, job_id: str, event: Adopted) -> bool:
        """Return whether the history has it: every application that comes is told of it anew."""
        try:
            return any(entry.at == event.at for entry in await self._jobdb.history(job_id))
        except StoreError:
            return False  # twice rather than not at all

    async def _end(
        self, job_id: str, attempt: Attempt, grace: float, *, may_hasten: bool = True
    ) -> bool:
        """Return whether nothing of the attempt is left."""
        is_gone = await self._executor.stop(attempt, grace, may_hasten=may_hasten)
        if not is_gone:
            await self._record(job_id, StopFailed(), attempt.token)
        return is_gone

    async def _record(self, job_id: str, event: Event, token: str) -> None:
        """Apply an event that has happened, however long the store takes to keep it.

        Who waits for the job is told of the trouble meanwhile.
        """
        rest_s = _FIRST_RETRY_S
        while True:
            try:
                known = event
                if isinstance(event, Exited | StartFailed | Lost):
                    stored = await self._jobdb.stored(job_id)
                    known = await self._with_sequel(stored.record, event)
                await self._jobdb.apply(job_id, known, token=token)
                return
            except (InvalidTransition, JobNotFound):
                return  # it is on record already, or came too late to matter
            except StoreError as error:
                if isinstance(error, TooLarge) and (left := _without_result(event, error)):
                    event = left
                    continue
                LOG.error("job %s: its %s waits: %s", job_id, type(event).__name__, error)
                self._jobdb.fail_waits(job_id, error)
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, _LONGEST_RETRY_S)

    async def _with_sequel(self, record: JobRecord, event: Ended) -> Ended:
        """Return the end of an attempt with what follows it, as the job's policies say."""
        if event.retry_at is not None:
            return event
        if isinstance(event, Exited):
            event = await self._with_answer(record, event)
        if record.max_retries or record.restart != "never":
            events = [] if record.restart == "never" else await self._jobdb.history(record.self_id)
            event = with_sequel(record, event, events, random.random())
        if isinstance(event, Lost):
            return recovered(record, event, self._recovery)
        return event

    async def _with_answer(self, record: JobRecord, exit: Exited) -> Exited:
        """Return the end of an attempt with what it had to say for itself."""
        files, logfile, number = self._files, record.logfile, record.attempt
        if files.has_progress(logfile, number):
            progress = last_progress(files.progress(logfile, number))
            exit = replace(exit, progress=progress and progress[0])
        if exit.result_error is not None or not files.has_result(logfile, number):
            return exit
        result = await asyncio.to_thread(files.result, logfile, number)
        if result is None:
            return exit
        return replace(exit, result=result.value, result_error=result.error)

    # What callers ask for.

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
            if here_only and (is_waiting or not self._is_of_here(stored)):
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
            try:
                await self._jobdb.wait_for(job_id, SIGNALLABLE)
            except StatusUnreachable as ended:
                return ended.record

    async def _stop_attempt(
        self, stored: Stored, grace: float | None, reason: str | None
    ) -> JobRecord | None:
        """End this attempt; None where the job is run anew all the same."""
        job_id, attempt = stored.record.self_id, stored.attempt
        # Listening before it ends: when it has, somebody else may run it anew at once.
        with self._jobdb.waiting_for_attempt(stored.record) as end:
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
        """As ``_end``, also where another host runs the attempt; ``end`` is that of the attempt."""
        job_id, attempt = stored.record.self_id, stored.attempt
        if self._errands is None or self._is_of_here(stored):
            return await self._end(job_id, attempt, grace)
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
        if self._errands is None or self._is_of_here(stored):
            await self._executor.signal(stored.attempt, signum)
            return
        job_id, attempt = stored.record.self_id, stored.attempt
        errand = Errand(do="signal", job_id=job_id, attempt=attempt, signum=signum)
        with self._jobdb.waiting_for_attempt(stored.record) as end:
            await self._errands.ask(stored.record.host or "", errand, until=end.future)

    async def run_errand(self, errand: Errand) -> None:
        """Do what another host asks for."""
        if errand.do == "signal":
            await self._executor.signal(errand.attempt, errand.signum)
        else:
            await self._end(errand.job_id, errand.attempt, errand.grace)

    async def declare_lost(self, lease: Lease) -> None:
        """End the lease of a host that is silent, and with it all that it had under way.

        Nothing is done where it is back, or another host is quicker. Should it come back later, it
        finds the errand to end its processes: by then somebody else may run these jobs.
        """
        jobs = await self._jobdb.alive_on(lease.host)
        error = f"its host {lease.host} has not been heard of for {lease.silent_s:.1f} s"
        losses = []
        for job in jobs:
            loss = await self._with_sequel(job.record, Lost(error=error))
            assert isinstance(loss, Lost)
            losses.append((job, loss))
        errands = [
            Errand(
                do="stop",
                job_id=job.record.self_id,
                attempt=job.attempt,
                grace=job.launch.stop_grace,
            )
            for job in jobs
        ]
        order = document(lease.host, errands) if errands else None
        if await self._jobdb.end_lease(lease, losses, order):
            LOG.warning("host %s is silent: %s jobs of it are lost", lease.host, len(jobs))

    # Jobs that lost their supervisor.

    async def reconcile(self) -> None:
        """See to it that every active job has somebody who looks after it.

        Those whose supervisor has gone are taken on, and how each one stands is noted. What an
        application left half done, a start or a stop, is done.
        """
        async with self._reconciling:  # what is being taken over is not to be taken over again
            await self._reconcile()

    async def _reconcile(self) -> None:
        host = None if self._errands is None else self._place.host
        unfinished = [
            job
            for job in await self._jobdb.under_way(host)
            if job.attempt.token not in self._watched
        ]
        mine = self._executor.supervisor
        is_needed = any(job.attempt.supervisor == mine for job in unfinished)
        held = await self._executor.held() if is_needed else set()
        async with anyio.create_task_group() as works:
            for job in unfinished:
                is_mine = job.attempt.supervisor == mine
                if is_mine and job.status is Status.starting:
                    works.start_soon(self._start_again, job)
                elif job.attempt.token in held:
                    if job.status is Status.stopping:
                        works.start_soon(self._stop_again, job)
                elif is_mine or not self._executor.is_alive(job.attempt.supervisor):
                    works.start_soon(self._take_over, job)
                else:
                    self._heed(job.attempt.supervisor)

    async def _start_again(self, job: Unfinished) -> None:
        """Ask once more for a start that was committed; the executor knows whether it was done."""
        stored = await self._current(job)
        if stored is None or stored.record.status is not Status.starting:
            return
        event = await self._start(stored.record, stored.launch, stored.attempt)
        await self._record(job.job_id, event, job.attempt.token)
        if not isinstance(event, Started):
            await self._executor.clean(job.attempt.token)
        elif await self._current(job) is not None:  # its end may have come in the meantime
            self._inherit(job.job_id, job.attempt.token)

    async def _stop_again(self, job: Unfinished) -> None:
        """See to a stop that was committed; one that is under way keeps its grace."""
        stored = await self._current(job)
        if stored is not None:
            self.own(self._finish_stop(stored), job.job_id)

    async def _finish_stop(self, stored: Stored) -> None:
        grace = stored.launch.stop_grace
        await self._end(stored.record.self_id, stored.attempt, grace, may_hasten=False)

    async def _take_over(self, job: Unfinished) -> None:
        stored = await self._current(job)
        if stored is None or not self._is_of_here(stored):
            return
        if stored.attempt.supervisor != self._executor.supervisor:
            # Claimed before it is touched: two who read one pipe would each get half of it.
            stored = await self._jobdb.claim(stored, self._executor.supervisor)
        if stored is None:
            return
        launch = stored.launch.of_attempt(stored.record.attempt)
        event = await self._executor.adopt(launch, stored.attempt)
        await self._record(job.job_id, event, job.attempt.token)
        if isinstance(event, Adopted):
            self.own(self._adopted_life(stored, event.attempt), job.job_id)
        else:
            await self._executor.clean(job.attempt.token)

    async def _current(self, job: Unfinished) -> Stored | None:
        """Return what is to be known of the job, None where that attempt is over by now."""
        try:
            stored = await self._jobdb.stored(job.job_id)
        except JobNotFound:  # over, and deleted
            return None
        is_current = not stored.record.is_done and stored.attempt.token == job.attempt.token
        return stored if is_current else None

    async def _adopted_life(self, stored: Stored, attempt: Attempt) -> None:
        job_id, launch = stored.record.self_id, stored.launch
        self._take_on(launch, attempt)
        try:
            if stored.record.status is Status.stopping:  # its stop was cut short
                await self._end(job_id, attempt, launch.stop_grace)
            await self._watch(job_id, attempt.token)
        finally:
            self._let_go(attempt)

    def _inherit(self, job_id: str, token: str) -> None:
        """Watch an attempt that another application has started."""
        if token not in self._inherited:
            self.own(self._inherited_life(job_id, token), job_id)
            self._inherited.add(token)

    async def _inherited_life(self, job_id: str, token: str) -> None:
        try:
            await self._watch(job_id, token)
        finally:
            self._inherited.discard(token)

    def _meet(self, stored: Stored) -> None:
        """See whether anybody looks after a job that was not written here."""
        if stored.attempt.supervisor != self._executor.supervisor and self._is_of_here(stored):
            self._heed(stored.attempt.supervisor)

    def _is_of_here(self, stored: Stored) -> bool:
        """Return whether the job is of this host: nobody can see to those of another one."""
        return self._errands is None or stored.record.host == self._place.host

    def _heed(self, supervisor: str) -> None:
        """See to it that jobs are taken on when their supervisor, another one, has gone."""
        if supervisor not in self._heeded:
            self._heeded.add(supervisor)
            with contextlib.suppress(ExecutorError):  # closed: the succession is somebody else's
                self.own(self._succeed(supervisor), "succession")

    async def _succeed(self, supervisor: str) -> None:
        await self._executor.outlive(supervisor)
        self._heeded.discard(supervisor)
        await self._reconcile_soon()

    def _depart(self) -> None:
        with contextlib.suppress(ExecutorError):
            self.own(self._reconcile_soon(), "departure")

    async def _reconcile_soon(self) -> None:
        """Reconcile, however long the store takes to allow it."""
        rest_s = _FIRST_RETRY_S
        while True:
            try:
                return await self.reconcile()
            except* AnodeJobsError as errors:
                LOG.error("what others have left behind waits: %s", errors.exceptions[0])
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, _LONGEST_RETRY_S)

    # The end of the application.

    async def end_all(self, reason: str) -> None:
        """Stop every job that is watched here, and return when none is.

        Not waited for: what neither dies nor lets itself be recorded within the time that SIGKILL
        takes after the longest grace.
        """
        self._executor.wind_down()
        graces = (launch.stop_grace for launch in self._watched.values())
        with anyio.move_on_after(max(graces, default=0.0) + _CLOSING_S):
            async with anyio.create_task_group() as stops:
                for token, launch in self._watched.items():
                    stops.start_soon(self._stop_quietly, token, launch, reason)
            await self._is_idle.wait()

    async def _stop_quietly(self, token: str, launch: Launch, reason: str) -> None:
        job_id = launch.job_id
        try:
            # What waits for its next attempt waits on, for another application.
            await self.stop(job_id, None, reason, here_only=True)
            if (await self._jobdb.stored(job_id)).attempt.token != token:
                attempt = Attempt(token=token, supervisor=self._executor.supervisor)
                await self._give_up(attempt, launch.stop_grace)
        except AnodeJobsError as error:
            LOG.warning("job %s could not be stopped: %s", job_id, error)

    def _take_on(self, launch: Launch, attempt: Attempt) -> None:
        self._watched[attempt.token] = launch
        self._lives += 1
        self._is_idle.clear()

    def _let_go(self, attempt: Attempt) -> None:
        self._watched.pop(attempt.token, None)
        self._lives -= 1
        if not self._lives:
            self._is_idle.set()


def _hand_out(launch: Launch, record: JobRecord) -> None:
    """Write the payload of an attempt that is about to start. Waits for the disk."""
    JobFiles(launch.files).prepare(record.logfile, record.attempt, record.payload)


def remove_attempts(launch: Launch, record: JobRecord) -> None:
    """Remove the logs and files of a job that has ended. Waits for the disk."""
    for number in range(1, record.attempt + 1):
        logs = launch.logs.of_attempt(number)
        remove_logs(map(logs.path, STREAMS))
    if launch.files:
        JobFiles(launch.files).remove(record.logfile, record.attempt)


def _unless_it_goes_on(record: JobRecord, after: JobRecord) -> JobRecord | None:
    """Return the record after an attempt, None where another one of the same run follows."""
    return after if after.is_done or after.created_at != record.created_at else None


def _unwatched(job_id: str, error: Exception) -> Lost:
    LOG.error("job %s is no longer watched", job_id, exc_info=error)
    return Lost(error=f"its watcher failed: {error!r}")


async def _unheard(event: Event) -> None:
    """Hear of something that is of no account any more."""


def _without_result(event: Event, error: TooLarge) -> Exited | None:
    """Return an end that goes on record without its result; None where it has none any more."""
    if not isinstance(event, Exited) or event.result_error is not None:
        return None
    return replace(event, result_error=f"the result cannot be kept: {error}")


def _resolve(answer: asyncio.Future[Result], result: Result) -> None:
    if not answer.done():
        answer.set_result(result)


def _refuse(answer: asyncio.Future[Result], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
    elif answer.cancelled():
        LOG.debug("nobody waits any more for what became of a call: %r", error)
