"""Scheduler: lets the jobs start that wait for their turn.

It hears of every record that is written, by whomever, and keeps ``JobQueue`` and ``Dependencies``
in step with them; what these say is then done: a job that waits for nothing more is queued, one
that may not start is withdrawn, one that is admitted is started by the watcher. Of all processes
that share the records, one has a scheduler that acts.

It wakes for records and at moments that it knows of. Everything it knows is on record, so another
process can take its place at any time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Set
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Final

from anodejobs import faults
from anodejobs.dependencies import Consequence, Dependencies, Dependent, Fate
from anodejobs.errors import AnodeJobsError, DependencyCycle, InvalidTransition, JobNotFound
from anodejobs.events import Event, Readied, Withdrawn
from anodejobs.jobdb import JobDB
from anodejobs.jobqueue import JobQueue, Waiting
from anodejobs.records import ALIVE, JobFilter, JobRecord, Status
from anodejobs.stores.base import Query, Turn
from anodejobs.succession import Succession
from anodejobs.watcher import Watcher

LOG = logging.getLogger("anodejobs")

PAUSED: Final = "paused queue"
"""The kind of the documents that name the queues which are paused."""

_MOST_AT_ONCE = 500
"""How many jobs are changed at once: they share commits."""
_LONGEST_SLEEP_S = 30.0
"""How late a moment may be noticed after somebody has set the clock forward."""
_RETRY_S = 1.0
"""How long a store that could not be written is left alone."""
_RECOUNT_S = 1.0
"""How long after a sign of another process it is seen whether it has deleted something."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the jobs that wait are started here, None: whatever their queue, or their tags."""

    queues: Set[str] | None = None
    tags: Set[str] | None = None
    """Any of them will do."""

    def takes(self, record: JobRecord | Turn) -> bool:
        """Return whether a job is among them."""
        if self.queues is not None and record.queue not in self.queues:
            return False
        return self.tags is None or not self.tags.isdisjoint(record.tags)


class Scheduler:
    """Decides which job starts next, in the process whose turn it is to decide.

    The limits are those of ``JobQueue``. ``succession`` is None where nobody shares the records.
    ``host`` is the one whose jobs hold the slots, None: all of them do.
    """

    def __init__(
        self,
        jobdb: JobDB,
        watcher: Watcher,
        succession: Succession | None,
        *,
        max_concurrent_jobs: int | None,
        queues: Mapping[str, int],
        aging_s: float | None,
        choice: Choice,
        host: str | None,
    ) -> None:
        self._jobdb = jobdb
        self._watcher = watcher
        self._succession = succession
        self._limits = max_concurrent_jobs, queues, aging_s
        self._choice = choice
        self._host = host
        self._woken = asyncio.Event()
        self._stock = self._new_stock()

    def _new_stock(self) -> _Stock:
        slots, queues, aging_s = self._limits
        queue = JobQueue(max_concurrent_jobs=slots, queues=queues, aging_s=aging_s)
        return _Stock(queue, self._choice, self._host)

    async def serve(self, *duties: Callable[[], Coroutine[None, None, None]]) -> None:
        """Schedule while it is our turn, and do what else is to be done then; until cancelled."""
        await self._succeed()
        try:
            async with asyncio.TaskGroup() as tasks:
                for duty in duties:
                    tasks.create_task(duty())
                await self._schedule()
        finally:
            self._jobdb.on_record = None

    async def _succeed(self) -> None:
        """Return when it is our turn."""
        while self._succession is not None:
            try:
                await self._succession.succeed()
                return
            except OSError as error:
                LOG.error("the queue waits: whose turn it is cannot be said: %s", error)
            await asyncio.sleep(_RETRY_S)

    def attend(self) -> None:
        """Take note that another process has written something, or has let go of its turn."""
        if self._succession is not None:
            self._succession.nudge()
        self._stock.heed_others()
        self._woken.set()

    async def resign(self) -> None:
        """Give up our turn, and tell the others. Idempotent."""
        if self._succession is not None and self._succession.release():
            await self._jobdb.put_document("scheduler", "", None)

    async def _schedule(self) -> None:
        while True:
            # What is about to start is not on record yet, and has its slot all the same.
            await self._watcher.settle()
            self._stock = self._new_stock()
            # Listening before the records are read: what is written meanwhile is heard twice.
            self._jobdb.on_record = self._note
            self._jobdb.on_deleted = self._note_deletion
            try:
                await self._take_stock()
                while True:
                    self._woken.clear()
                    await self._act()
                    await self._sleep()
            except AnodeJobsError as error:
                LOG.error("the queue waits: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _take_stock(self) -> None:
        """Learn of every job that has not ended."""
        with self._stock.reading() as heard:
            async with aclosing(self._jobdb.turns()) as turns:
                async for page in turns:
                    for turn in page:
                        if turn.self_id not in heard:
                            self._stock.take(turn)

    def _note(self, record: JobRecord) -> None:
        if self._stock.hear(record):
            self._woken.set()

    def _note_deletion(self, job_id: str) -> None:
        if self._stock.lose(job_id):
            self._woken.set()

    async def _act(self) -> None:
        """Do all that is to be done now."""
        stock = self._stock
        if stock.must_look_for_pauses:
            stock.must_look_for_pauses = False
            stock.pause_these(await self._jobdb.documents(PAUSED))
        if stock.must_recount(time.monotonic()):
            await self._look_up(stock.relied_on())
        await self._look_up(stock.take_unknown())
        now = time.time()
        stock.ready_due(now)
        for waiting in stock.queue.expired(now):
            error = "it was not started within its start_deadline"
            stock.withdraw(waiting.job_id, error)
        while stock.changes:
            await self._apply(stock.take_changes())
        await self._admit(stock.queue.admit(time.time()))

    async def _look_up(self, wanted: list[str]) -> None:
        """Learn how jobs that others rely on have ended, if they have."""
        for job_ids in _pages(wanted):
            filter = JobFilter(self_id=job_ids)
            with self._stock.reading() as heard:
                found = {r.self_id: r for r in await self._jobdb.page(Query(filter=filter))}
                for job_id in job_ids:
                    record = found.get(job_id)
                    if job_id in heard:
                        continue
                    if record is None:
                        self._stock.lose(job_id)
                    elif record.is_done:
                        self._stock.take(record)

    async def _apply(self, changes: list[tuple[str, Event]]) -> None:
        faults.reached("host: a change of the queue was decided")
        await self._jobdb.bring(job_id for job_id, _ in changes)
        await asyncio.gather(*(self._apply_one(job_id, event) for job_id, event in changes))

    async def _apply_one(self, job_id: str, event: Event) -> None:
        try:
            await self._jobdb.apply(job_id, event)
        except InvalidTransition as error:
            LOG.debug("job %s: somebody was quicker: %s", job_id, error)
        except JobNotFound:
            self._note_deletion(job_id)

    async def _admit(self, admitted: list[Waiting]) -> None:
        """Have these started."""
        # Together: one by one, each would wait for a turn of the store's thread.
        for job_ids in _pages([waiting.job_id for waiting in admitted]):
            await self._jobdb.bring(job_ids)
            for job_id in job_ids:
                self._watcher.admit(job_id, partial(self._refused, self._stock))

    def _refused(self, stock: _Stock, job_id: str, error: BaseException) -> None:
        """Let a job that could not be started keep its place, and try again after a while."""
        if isinstance(error, JobNotFound):
            self._note_deletion(job_id)
        elif not isinstance(error, InvalidTransition):  # of which its record tells more
            LOG.error("job %s: its start waits: %s", job_id, error)
            asyncio.get_running_loop().call_later(_RETRY_S, self._requeue, stock, job_id)

    def _requeue(self, stock: _Stock, job_id: str) -> None:
        stock.requeue(job_id)
        self._woken.set()

    async def _sleep(self) -> None:
        """Return when there may be something to do."""
        try:
            async with asyncio.timeout(self._stock.rest_s(time.time())):
                await self._woken.wait()
        except TimeoutError:
            pass


def _pages(job_ids: list[str]) -> Iterator[list[str]]:
    """Give so many at once as are worth their while."""
    for start in range(0, len(job_ids), _MOST_AT_ONCE):
        yield job_ids[start : start + _MOST_AT_ONCE]


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """What is to be known of a job that waits for something else than a slot."""

    job_id: str
    attempt: int
    due_at: float | None


class _Stock:
    """What the scheduler knows of the jobs that have not ended, and what is to be done with them.

    Says of itself what follows from a record; nothing here waits.
    """

    def __init__(self, queue: JobQueue, choice: Choice, host: str | None) -> None:
        self.queue = queue
        self._choice = choice
        self._host = host
        self.changes: deque[tuple[str, Event]] = deque()
        """What is to be applied to which job."""
        self.must_look_for_pauses = True
        self._unknown: dict[str, None] = {}
        """Jobs that others depend on, of which it is not known whether they have ended."""
        self._heard: set[str] | None = None
        """While records are read: the jobs that were heard of meanwhile."""
        self._recount_at: float | None = None
        """When to see, by a clock that nobody sets, whether all are still there."""
        self._graph = Dependencies()
        self._pending: dict[str, _Pending] = {}
        """Those that were submitted and wait for something else than a slot."""
        self._queued: dict[str, Waiting] = {}
        """Those that wait for a slot, or have got one a moment ago."""
        self._active: set[str] = set()
        self._entries = count()
        self._moments: list[tuple[float, int, _Pending]] = []
        """When which pending job is due, by the clock on the wall."""
        self._delays: list[tuple[float, int, _Pending]] = []
        """The same for retries, by a clock that nobody sets."""

    @contextmanager
    def reading(self) -> Iterator[Set[str]]:
        """Give the jobs that are heard of in the context: what is read of them may be older."""
        self._heard = set()
        try:
            yield self._heard
        finally:
            self._heard = None

    def hear(self, record: JobRecord) -> bool:
        """Take note of a record that was written just now; as ``take``."""
        if self._heard is not None:
            self._heard.add(record.self_id)
        return self.take(record)

    def take(self, record: JobRecord | Turn) -> bool:
        """Take note of a record; return whether there may be something to do now."""
        job_id, status = record.self_id, record.status
        if status in ALIVE:
            if job_id not in self._active:
                if self._knows(job_id):  # most jobs are run without waiting
                    self._queued.pop(job_id, None)
                    self._pending.pop(job_id, None)
                    self._graph.started(job_id)
                self._active.add(job_id)
                self._occupy(job_id, record)
            return False
        if status is Status.pending or status is Status.queued:
            if self._knows(job_id):
                self._leave(job_id)
            (self._pend if status is Status.pending else self._queue)(record)
            return True
        return self._end(job_id, succeeded=status is Status.finished, how=str(status))

    def _occupy(self, job_id: str, record: JobRecord | Turn) -> None:
        """Have a job that runs hold a slot, unless it runs on another host."""
        if self._host is None or record.host == self._host:
            self.queue.occupy(job_id, record.queue)
        else:
            self.queue.remove(job_id)
            self.queue.release(job_id)

    def lose(self, job_id: str) -> bool:
        """Take note that there is no such job any more; as ``take``."""
        if self._heard is not None:
            self._heard.add(job_id)
        return self._end(job_id, succeeded=False, how="is not there")

    def _leave(self, job_id: str) -> None:
        self._active.discard(job_id)
        self._pending.pop(job_id, None)
        self._queued.pop(job_id, None)
        self.queue.remove(job_id)
        self.queue.release(job_id)

    def _end(self, job_id: str, *, succeeded: bool, how: str) -> bool:
        is_active = job_id in self._active
        was_known = is_active or job_id in self._queued
        if is_active:
            self._active.discard(job_id)
            self.queue.release(job_id)
        else:
            self._leave(job_id)
        self._unknown.pop(job_id, None)
        if self._graph.dependents_of(job_id) or job_id in self._graph:
            self._conclude(self._graph.ended(job_id, succeeded=succeeded, how=_HOW.get(how, how)))
            return True
        return was_known and bool(self._queued)

    def _queue(self, record: JobRecord | Turn) -> None:
        self._graph.started(record.self_id)
        queued_at = record.last_update.timestamp() if record.last_update else 0.0
        deadline = record.start_deadline
        waiting = self._queued[record.self_id] = Waiting(
            job_id=record.self_id,
            queue=record.queue,
            priority=record.priority,
            queued_at=queued_at,
            deadline=None if deadline is None else queued_at + deadline,
            is_admissible=self._choice.takes(record),
        )
        self.queue.add(waiting)

    def requeue(self, job_id: str) -> None:
        """Let a job that was admitted in vain wait again, in its place."""
        waiting = self._queued.get(job_id)
        if waiting is not None:
            self.queue.release(job_id)
            self.queue.add(waiting)

    def _pend(self, record: JobRecord | Turn) -> None:
        job_id = record.self_id
        if record.submitted_at is None:
            self._graph.started(job_id)
            return
        due_at = record.due_at
        pending = _Pending(job_id, record.attempt, None if due_at is None else due_at.timestamp())
        self._pending[job_id] = pending
        # A later attempt is not kept waiting by what its first has waited for.
        depends_on = record.depends_on if record.attempt == 1 else ()
        dependent = Dependent(
            job_id=job_id,
            depends_on=depends_on,
            on_dependency_failure=record.on_dependency_failure,
        )
        try:
            self._conclude(self._graph.add(dependent))
        except DependencyCycle as cycle:  # two processes have each made half of it
            self.withdraw(job_id, str(cycle))
            return
        self._unknown.update(dict.fromkeys(depends_on))

    def _conclude(self, consequences: Iterable[Consequence]) -> None:
        for consequence in consequences:
            if consequence.fate is Fate.cancelled:
                self.withdraw(consequence.job_id, consequence.reason)
            elif consequence.fate is Fate.ready and consequence.job_id in self._pending:
                self._wait_until_due(self._pending[consequence.job_id])

    def _wait_until_due(self, pending: _Pending) -> None:
        due_at = pending.due_at
        if due_at is None:
            self.changes.append((pending.job_id, Readied()))
        elif pending.attempt == 1:
            heappush(self._moments, (due_at, next(self._entries), pending))
        else:
            clear_at = time.monotonic() + due_at - time.time()
            heappush(self._delays, (clear_at, next(self._entries), pending))

    def ready_due(self, now: float) -> None:
        """Have those queued whose moment has come."""
        for heap, clock in ((self._moments, now), (self._delays, time.monotonic())):
            while heap and heap[0][0] <= clock:
                *_, pending = heappop(heap)
                job_id = pending.job_id
                # It may have been changed meanwhile, and wait for another moment.
                is_current = self._pending.get(job_id) is pending
                if is_current and not self._graph.dependencies_of(job_id):
                    self.changes.append((job_id, Readied()))

    def withdraw(self, job_id: str, error: str | None) -> None:
        """Have a job withdrawn."""
        self._pending.pop(job_id, None)
        self.changes.append((job_id, Withdrawn(error=error)))

    def take_changes(self) -> list[tuple[str, Event]]:
        """Return what is to be applied next."""
        return [self.changes.popleft() for _ in range(min(_MOST_AT_ONCE, len(self.changes)))]

    def take_unknown(self) -> list[str]:
        """Return the jobs that are to be looked up."""
        unknown, self._unknown = self._unknown, {}
        return [job_id for job_id in unknown if not self._knows(job_id)]

    def _knows(self, job_id: str) -> bool:
        """Return whether the job has not ended, and will be heard of when it does."""
        return job_id in self._active or job_id in self._queued or job_id in self._pending

    def heed_others(self) -> None:
        """Take note that another process has written something."""
        self.must_look_for_pauses = True
        if self._recount_at is None:
            self._recount_at = time.monotonic() + _RECOUNT_S

    def must_recount(self, now: float) -> bool:
        """Return, once, whether it is time to see that all are still there.

        What another process deletes as soon as it has ended leaves no trace to be heard of.
        """
        if self._recount_at is None or self._recount_at > now:
            return False
        self._recount_at = None
        return True

    def relied_on(self) -> list[str]:
        """Return the jobs of which somebody here waits to hear that they have ended."""
        awaited = self._graph.awaited()
        if self._queued:
            return [*self._active, *(job_id for job_id in awaited if not self._knows(job_id))]
        known = self._queued.keys() | self._pending.keys()
        return [job_id for job_id in awaited if job_id not in known]

    def pause_these(self, documents: Mapping[str, str]) -> None:
        """Have just these queues paused."""
        names = {json.loads(body) for body in documents.values()}
        for queue in self.queue.paused() - names:
            self.queue.resume(queue)
        for queue in names - self.queue.paused():
            self.queue.pause(queue)

    def rest_s(self, now: float) -> float | None:
        """Return for how long there is nothing to do, None: until something happens."""
        clear = [self._delays[0][0]] if self._delays else []
        if self._recount_at is not None and (self._queued or self._pending):
            clear.append(self._recount_at)
        moments = [m for m in (self.queue.next_deadline(),) if m is not None]
        moments += [self._moments[0][0]] if self._moments else []
        rests = [min(clear) - time.monotonic()] if clear else []
        if moments:
            rests.append(min(min(moments) - now, _LONGEST_SLEEP_S))
        return max(0.0, min(rests)) if rests else None


_HOW: Final = {
    "failed_start": "could not be started",
    "cancelled": "was cancelled",
    "stopped": "was stopped",
    "lost": "was lost",
}
"""How the end of a dependency is told, where its status alone is no sentence."""
