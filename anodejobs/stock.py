"""Stock: what the scheduler knows of the jobs that have not ended, and what follows for them.

It is told of records, and says what is to be changed, looked up and admitted. It does nothing of
that itself, and waits for nothing.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

from anodejobs.dependencies import Consequence, Dependencies, Fate
from anodejobs.errors import DependencyCycle
from anodejobs.events import Event, Readied, Withdrawn
from anodejobs.jobqueue import JobQueue, Waiting
from anodejobs.records import ALIVE, JobRecord, Status
from anodejobs.stores.base import Turn

_LONGEST_SLEEP_S = 30.0
"""How late a moment may be noticed after somebody has set the clock forward."""
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


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """What is to be known of a job that waits for something else than a slot."""

    job_id: str
    attempt: int
    due_at: float | None
    revision: int


_Moment = tuple[float, int, _Pending]
"""When a job is due. No two have the second alike."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be applied to a job, as long as its record is the one that it was decided for."""

    job_id: str
    revision: int
    event: Event


class Stock:
    """Keeps a ``JobQueue`` and the ``Dependencies`` in step with the records that it is told of.

    Times that it is given are seconds on the wall clock. ``host`` is the one whose jobs hold the
    slots, None: all of them do.
    """

    def __init__(self, queue: JobQueue, choice: Choice, host: str | None) -> None:
        self.queue = queue
        self._choice = choice
        self._host = host
        self.changes: deque[Change] = deque()
        """What is to be applied, the first first."""
        self.must_look_for_pauses = True
        self._unknown: dict[str, None] = {}
        """Jobs that others depend on, of which it is not known whether they have ended."""
        self._heard: set[str] | None = None
        """While records are read: the jobs that were heard of meanwhile."""
        self._recount_at: float | None = None
        """When to see, by a clock that nobody sets, whether all are still there."""
        self._must_recount_all = False
        """Whether there was a sign of another process since the last recount began."""
        self._must_recount_holders = False
        """Whether there was one since it was last seen that who holds a slot is still there."""
        self._uncounted: deque[str] = deque()
        """The jobs that have not started and are still to be looked at in this one."""
        self._graph = Dependencies()
        self._pending: dict[str, _Pending] = {}
        """Those that were submitted and wait for something else than a slot."""
        self._queued: dict[str, Waiting] = {}
        """Those that wait for a slot, or have got one a moment ago."""
        self._active: set[str] = set()
        self._entries = count()
        self._moments: list[_Moment] = []
        """When which pending job is due, by the clock on the wall."""
        self._delays: list[_Moment] = []
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
            return self._occupy(job_id, record) and bool(self._queued)
        if status is Status.pending or status is Status.queued:
            if self._knows(job_id):
                self._leave(job_id)
            (self._pend if status is Status.pending else self._queue)(record)
            return True
        return self._end(job_id, succeeded=status is Status.finished, how=str(status))

    def _occupy(self, job_id: str, record: JobRecord | Turn) -> bool:
        """Have a job that runs hold a slot, unless it runs on another host.

        It may have ended, and run anew elsewhere, since it was heard of. Returns whether that has
        made room.
        """
        if self._host is None or record.host == self._host:
            return self.queue.occupy(job_id, record.queue)
        self.queue.remove(job_id)
        return self.queue.release(job_id)

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
        if self._must_recount_holders and self._recount_at is None:
            self._recount_at = time.monotonic()
        queued_at = record.last_update.timestamp() if record.last_update else 0.0
        deadline = record.start_deadline
        waiting = self._queued[record.self_id] = Waiting(
            job_id=record.self_id,
            queue=record.queue,
            priority=record.priority,
            queued_at=queued_at,
            deadline=None if deadline is None else queued_at + deadline,
            is_admissible=self._choice.takes(record),
            revision=record.revision,
        )
        self.queue.add(waiting)

    def requeue(self, waiting: Waiting) -> None:
        """Let a job that was admitted in vain wait again, in its place, unless it has changed."""
        if self._queued.get(waiting.job_id) == waiting:
            self.queue.release(waiting.job_id)
            self.queue.add(waiting)

    def _pend(self, record: JobRecord | Turn) -> None:
        job_id = record.self_id
        if record.submitted_at is None:
            self._graph.started(job_id)
            return
        due_at = None if record.due_at is None else record.due_at.timestamp()
        self._pending[job_id] = _Pending(job_id, record.attempt, due_at, record.revision)
        # A later attempt is not kept waiting by what its first has waited for.
        depends_on = record.depends_on if record.attempt == 1 else ()
        try:
            self._conclude([self._graph.add(job_id, depends_on, record.on_dependency_failure)])
        except DependencyCycle as cycle:  # two processes have each made half of it
            self._graph.started(job_id)
            self._withdraw_pending(job_id, str(cycle))
            return
        self._unknown.update(dict.fromkeys(depends_on))

    def _conclude(self, consequences: Iterable[Consequence]) -> None:
        for consequence in consequences:
            if consequence.fate is Fate.cancelled:
                self._withdraw_pending(consequence.job_id, consequence.reason)
            elif consequence.fate is Fate.ready and consequence.job_id in self._pending:
                self._wait_until_due(self._pending[consequence.job_id])

    def _wait_until_due(self, pending: _Pending) -> None:
        due_at = pending.due_at
        if due_at is None:
            self._ready(pending)
        elif pending.attempt == 1:
            self._push(self._moments, due_at, pending)
        else:
            self._push(self._delays, time.monotonic() + due_at - time.time(), pending)

    def _push(self, heap: list[_Moment], at: float, pending: _Pending) -> None:
        heappush(heap, (at, next(self._entries), pending))
        # Those that were withdrawn stay in it: for years maybe, and they may be ever more.
        if len(heap) > 2 * len(self._pending):
            heap[:] = [moment for moment in heap if self._is_current(moment[-1])]
            heapify(heap)

    def _is_current(self, pending: _Pending) -> bool:
        """Return whether the job has not changed meanwhile: it may wait for another moment."""
        return self._pending.get(pending.job_id) is pending

    def ready_due(self, now: float) -> None:
        """Have those queued whose moment has come."""
        for heap, clock in ((self._moments, now), (self._delays, time.monotonic())):
            while heap and heap[0][0] <= clock:
                *_, pending = heappop(heap)
                is_current = self._is_current(pending)
                if is_current and not self._graph.dependencies_of(pending.job_id):
                    self._ready(pending)

    def _ready(self, pending: _Pending) -> None:
        self.changes.append(Change(pending.job_id, pending.revision, Readied()))

    def _withdraw_pending(self, job_id: str, error: str | None) -> None:
        pending = self._pending.pop(job_id, None)
        if pending is not None:
            self._withdraw(job_id, pending.revision, error)

    def withdraw_expired(self, now: float) -> None:
        """Have those withdrawn that were not started in time."""
        for waiting in self.queue.expired(now):
            error = "it was not started within its start_deadline"
            self._withdraw(waiting.job_id, waiting.revision, error)

    def _withdraw(self, job_id: str, revision: int, error: str | None) -> None:
        self.changes.append(Change(job_id, revision, Withdrawn(error=error)))

    def take_changes(self, most: int) -> list[Change]:
        """Return what is to be applied next, so many at most."""
        return [self.changes.popleft() for _ in range(min(most, len(self.changes)))]

    def take_unknown(self) -> list[str]:
        """Return the jobs that are to be looked up."""
        unknown, self._unknown = self._unknown, {}
        return [job_id for job_id in unknown if not self._knows(job_id)]

    def _knows(self, job_id: str) -> bool:
        """Return whether the job has not ended, and will be heard of when it does."""
        return job_id in self._active or self._waits(job_id)

    def _waits(self, job_id: str) -> bool:
        return job_id in self._queued or job_id in self._pending

    def heed_others(self) -> None:
        """Take note that another process has written something."""
        self.must_look_for_pauses = True
        self._must_recount_all = True
        self._must_recount_holders = True
        if self._recount_at is None:
            self._recount_at = time.monotonic() + _RECOUNT_S

    def take_recount(self, now: float, most: int) -> list[str]:
        """Return the jobs of which it is time to see whether they are still there.

        What another process deletes as soon as it has ended leaves no trace to be heard of. Of the
        jobs that have not started, of which there may be very many, so many at most are given at
        once, and the others later; ``now`` is by a clock that nobody sets.
        """
        if self._recount_at is None or self._recount_at > now:
            return []
        awaited = self._graph.awaited()  # fewer, maybe by far, than those that wait
        if self._must_recount_all and not self._uncounted:
            self._must_recount_all = False
            self._uncounted.extend(filter(self._waits, awaited))
        is_over = len(self._uncounted) <= most and not self._must_recount_all
        self._recount_at = None if is_over else now + _RECOUNT_S
        some = [self._uncounted.popleft() for _ in range(min(most, len(self._uncounted)))]
        holders: Set[str] = set()
        if self._queued:  # who holds a slot in vain is in nobody's way before
            self._must_recount_holders = False
            holders = self._active | self.queue.holders()
        return [*some, *({job_id for job_id in awaited if not self._waits(job_id)} | holders)]

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
