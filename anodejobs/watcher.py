"""Watcher: the life of an attempt as straight coroutines, each run in a task of the root group.

It joins the executor, which knows what happens to processes, and JobDB, which records it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio

from anodejobs import faults
from anodejobs.control import Control
from anodejobs.errors import (
    AnodeJobsError,
    ExecutorError,
    InvalidTransition,
    JobNotFound,
    StoreError,
)
from anodejobs.events import Attempt, Event, Exited, Lost, Started, StartFailed, StopRequested
from anodejobs.executors.base import Executor, Launch, new_token
from anodejobs.jobdb import JobDB
from anodejobs.jobfiles import JobFiles
from anodejobs.owner import Owner, refuse, resolve
from anodejobs.recorder import Recorder
from anodejobs.records import JobRecord, Status
from anodejobs.stores.base import Stored
from anodejobs.threads import in_thread
from anodejobs.transitions import transition

LOG = logging.getLogger("anodejobs")

_CLOSING_S = 10.0
"""How much longer than the jobs' grace closing may take."""

Answer = asyncio.Future[JobRecord]
StartOutcome = Started | StartFailed | Lost


@dataclass(frozen=True, slots=True)
class Opened:
    """What is on record as about to start; ``refused`` says why it cannot, where that is known."""

    record: JobRecord
    launch: Launch
    refused: StartFailed | None


class Watcher:
    """Begins attempts, follows them to their recorded end, and ends them when it closes."""

    def __init__(
        self,
        jobdb: JobDB,
        executor: Executor,
        owner: Owner,
        *,
        recorder: Recorder,
        control: Control,
    ) -> None:
        self._jobdb = jobdb
        self._executor = executor
        self._owner = owner
        self._recorder = recorder
        self._control = control
        self._is_shared = jobdb.is_shared_by_hosts
        self._watched: dict[str, Launch] = {}
        """What was started or taken over here and has not ended, by token."""
        self._opening: dict[str, asyncio.Event] = {}
        """By token too: set when it is on record that the attempt is about to start, or is not."""
        self._inherited: set[str] = set()
        """Tokens of what other applications have started and is watched here."""
        self._own: set[str] = set()
        """Tokens of what closing may have to end, what is being cleaned up after included."""
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    # From its start to a process.

    async def live(
        self,
        launch: Launch,
        opened: Callable[[Attempt], Awaitable[Opened | None]],
        answer: Answer,
        *,
        is_for_caller: bool,
    ) -> None:
        """Live an attempt from its start on, and answer with its record once it is known.

        ``opened`` puts on record that it is about to start; None: it is not to, and that is
        answered. ``is_for_caller``: somebody who asked for this start gets the answer. Where the
        store fails, that is an error, and the start is undone; else it is recorded later.
        """
        attempt = Attempt(token=new_token(), supervisor=self._executor.supervisor)
        self._take_on(launch, attempt)
        try:
            running: JobRecord | None = None
            try:
                running = await self._begun(opened, attempt, answer, is_for_caller)
            except Exception as error:
                refuse(answer, error)
            if running is not None:
                job_id = running.self_id
                # What the start took would be memory, and more to collect, for as long as it runs.
                del opened, answer, running
                await self._watch(job_id, attempt.token)
            else:
                await self._clean(launch.job_id, attempt.token)
        finally:
            self._let_go(attempt)

    async def _begun(
        self,
        opened: Callable[[Attempt], Awaitable[Opened | None]],
        attempt: Attempt,
        answer: Answer,
        is_for_caller: bool,
    ) -> JobRecord | None:
        """Begin an attempt, record that, and answer; None where nothing runs any more."""
        caller = answer if is_for_caller else None
        try:
            about_to = await self._opened(opened, attempt)
        except StoreError as error:
            if caller is not None:  # it may have been kept all the same, and is not to stand then
                undone = StartFailed(error=f"its start could not be recorded: {error}")
                await self._undo(attempt.token, [undone], caller, error)
            raise
        if about_to is None:
            return None
        record, launch = about_to.record, about_to.launch
        self._watched[attempt.token] = launch  # as it is on record by now
        faults.reached("host: the start is on record")
        event = about_to.refused or await self.begin(record, launch, attempt)
        end = await self._end_by_now(record.self_id, event)
        both = end and await self._record_both(record, event, end)
        running = both or await self._record_started(record, event, attempt, end, caller)
        faults.reached("host: the process is on record")
        resolve(answer, running)
        if not isinstance(event, Started):
            return None
        if end is not None:
            if both is None:
                await self._recorder.record(record.self_id, end, attempt.token)
            self._watched.pop(attempt.token, None)
            return None
        if self._is_shared and await self._was_given_up(record.self_id, attempt.token):
            self._owner.own(self._give_up(event.attempt, launch.stop_grace), record.self_id)
        return running

    async def _opened(
        self, opened: Callable[[Attempt], Awaitable[Opened | None]], attempt: Attempt
    ) -> Opened | None:
        """Put on record that an attempt is about to start; who closes waits for that."""
        opening = self._opening[attempt.token] = asyncio.Event()
        try:
            return await opened(attempt)
        finally:
            del self._opening[attempt.token]
            opening.set()

    async def _undo(
        self, token: str, events: list[Event], caller: Answer, error: StoreError
    ) -> None:
        """Record what became of an attempt of which the caller hears that it failed.

        The caller hears it first, as the store may take long. Until it is on record the attempt is
        watched: nobody is to take it for one that is still to be started.
        """
        refuse(caller, error)
        await self._recorder.record_all(self._watched[token].job_id, events, token)

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
            known = await self._recorder.concluded(transition(record, event), end)
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

    async def begin(
        self, record: JobRecord, launch: Launch, attempt: Attempt, *, is_held: bool = False
    ) -> StartOutcome:
        """Start what is on record as about to be, or learn how that went; record nothing.

        What the executor holds has been given its payload, and runs whatever becomes of that.
        """
        number = record.attempt
        if record.payload is not None and not is_held:
            try:
                await in_thread(_hand_out, launch, record)
            except OSError as error:
                return StartFailed(error=f"its payload cannot be written: {error}")
            # That may have taken longer than an executor remembers what it was asked for by others.
            if await self._is_over(record.self_id, attempt.token):
                return Lost(error="it has ended, and that is on record")
        try:
            return await self._executor.start(launch.of_attempt(number), attempt, number)
        except Exception as error:  # an executor's fault; the record must not stay `starting`
            LOG.exception("job %s could not be started", record.self_id)
            return StartFailed(error=f"the executor failed: {error!r}")

    async def _is_over(self, job_id: str, token: str) -> bool:
        """Return whether others have seen the attempt through, as far as that was heard of."""
        try:
            stored = await self._jobdb.stored(job_id, token)
        except JobNotFound:
            return True
        except StoreError:
            return False
        return stored.record.is_done or stored.attempt.token != token

    async def _record_started(
        self,
        record: JobRecord,
        event: StartOutcome,
        attempt: Attempt,
        end: Exited | Lost | None,
        caller: Answer | None,
    ) -> JobRecord:
        """Commit how the start went; ``end`` is that of the attempt where it is known by now."""
        job_id, token = record.self_id, attempt.token
        try:
            known: Event = event
            if not isinstance(event, Started):
                known = await self._recorder.concluded(record, event)
            return await self._jobdb.apply(job_id, known, token=token)
        except InvalidTransition:
            # Another application has asked for the same start, and was quicker to record it.
            return (await self._jobdb.stored(job_id)).record
        except StoreError as error:
            if caller is None:
                await self._recorder.record(job_id, event, token)
                return (await self._jobdb.stored(job_id)).record
            events: list[Event] = [event]
            if isinstance(event, Started):
                # The caller hears that it failed, so nothing of it may go on.
                if end is None:
                    reason = f"its start could not be recorded: {error}"
                    events.append(StopRequested(reason=reason))
                    await self._executor.stop(event.attempt, 0)
                events.append(end or await self._executor.wait(token, _unheard))
                await self._executor.clean(token)
            await self._undo(token, events, caller, error)
            raise

    # From a process to its end.

    def has(self, token: str) -> bool:
        """Return whether the attempt was started or taken over here, and has not ended."""
        return token in self._watched

    def take_over(self, stored: Stored, attempt: Attempt) -> None:
        """Watch an attempt that was adopted, and finish its stop if that was cut short."""
        self._owner.own_life(self._adopted_life(stored, attempt), stored.record.self_id)

    async def _adopted_life(self, stored: Stored, attempt: Attempt) -> None:
        job_id, launch = stored.record.self_id, stored.launch
        self._take_on(launch, attempt, is_own=not self._executor.outlives_host)
        try:
            if stored.record.status is Status.stopping:  # its stop was cut short
                await self._control.finish(job_id, attempt, launch.stop_grace)
            await self._watch(job_id, attempt.token)
        finally:
            self._let_go(attempt)

    def inherit(self, job_id: str, token: str) -> None:
        """Watch an attempt that another application has started."""
        if token not in self._inherited:
            self._owner.own_life(self._inherited_life(job_id, token), job_id)
            self._inherited.add(token)

    async def _inherited_life(self, job_id: str, token: str) -> None:
        try:
            await self._watch(job_id, token)
        finally:
            self._inherited.discard(token)

    async def _watch(self, job_id: str, token: str) -> None:
        """Follow a running attempt to its recorded end, and end what it leaves behind."""
        try:
            await self._follow(job_id, token)
        except Exception as error:  # a fault here must not take the other jobs along
            await self._recorder.record(job_id, _unwatched(job_id, error), token)

    async def _clean(self, job_id: str, token: str) -> None:
        """End what is left of an attempt of which nothing more is to be recorded."""
        try:
            await self._executor.clean(token)
        except Exception:  # it must not take the other jobs along
            LOG.exception("what job %s left behind was not ended", job_id)

    async def _follow(self, job_id: str, token: str) -> None:
        exit = await self._executor.wait(token, partial(self._recorder.hear, job_id, token))
        await self._recorder.record(job_id, exit, token)
        self._watched.pop(token, None)
        await self._executor.clean(token)

    def _take_on(self, launch: Launch, attempt: Attempt, *, is_own: bool = True) -> None:
        self._watched[attempt.token] = launch
        if is_own:
            self._own.add(attempt.token)
            self._is_idle.clear()

    def _let_go(self, attempt: Attempt) -> None:
        self._watched.pop(attempt.token, None)
        self._own.discard(attempt.token)
        if not self._own:
            self._is_idle.set()

    # The end of the application.

    async def end_all(self, reason: str) -> None:
        """Stop every job that is watched here, and return when none is.

        What was adopted is left to an executor that outlives us. Not waited for: what neither dies
        nor lets itself be recorded within the time that SIGKILL takes after the longest grace.
        """
        self._executor.wind_down()
        own = [(token, launch) for token, launch in self._watched.items() if token in self._own]
        graces = (launch.stop_grace for _, launch in own)
        with anyio.move_on_after(max(graces, default=0.0) + _CLOSING_S):
            async with anyio.create_task_group() as stops:
                for token, launch in own:
                    stops.start_soon(self._stop_quietly, token, launch, reason)
            await self._is_idle.wait()

    async def _stop_quietly(self, token: str, launch: Launch, reason: str) -> None:
        job_id = launch.job_id
        if (opening := self._opening.get(token)) is not None:
            await opening.wait()
        if not self.has(token):  # it is not to start
            return
        try:
            if await self._is_on_record(job_id, token):  # and not somebody else's run of that id
                # What waits for its next attempt waits on, for another application.
                await self._control.stop(job_id, None, reason, here_only=True)
            if not await self._is_on_record(job_id, token):
                attempt = Attempt(token=token, supervisor=self._executor.supervisor)
                await self._give_up(attempt, launch.stop_grace)
        except AnodeJobsError as error:
            LOG.warning("job %s could not be stopped: %s", job_id, error)

    async def _is_on_record(self, job_id: str, token: str) -> bool:
        return (await self._jobdb.stored(job_id, token)).attempt.token == token


def _hand_out(launch: Launch, record: JobRecord) -> None:
    """Write the payload of an attempt that is about to start. Waits for the disk."""
    JobFiles(launch.files).hand_out(record.logfile, record.payload)


def _unwatched(job_id: str, error: Exception) -> Lost:
    LOG.error("job %s is no longer watched", job_id, exc_info=error)
    return Lost(error=f"its watcher failed: {error!r}")


async def _unheard(event: Event) -> None:
    """Hear of something that is of no account any more."""
