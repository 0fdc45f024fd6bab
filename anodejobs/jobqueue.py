"""JobQueue: which of the waiting jobs may start now, and in what order.

Pure. It has no clock (each call that depends on the time is told it), starts nothing and stores
nothing: whoever owns it tells it what began to wait, to run and to end, and starts what it admits.

A job's place is ``queued_at - priority * aging_s``, the lowest first. The place never changes, so
waiting needs no book-keeping, and yet raises a job: ``aging_s`` seconds of it are worth one step of
priority, and nothing that is queued later than that can overtake it for being one step higher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

__all__ = ["AGING_S", "DEFAULT_QUEUE", "JobQueue", "Priority", "Waiting"]

DEFAULT_QUEUE: Final = "default"
"""The queue of the jobs that name none."""
AGING_S: Final = 60.0
"""Seconds of waiting worth one step of priority: ten minutes from one ``Priority`` to the next."""


class Priority(IntEnum):
    """The priorities that have a name, ten steps apart; a job's may be any whole number."""

    low = 10
    medium = 20
    high = 30
    critical = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A job that waits for a slot. Both times are seconds on one wall clock, as they are stored."""

    job_id: str
    queue: str = DEFAULT_QUEUE
    priority: int = Priority.medium
    """The higher, the sooner. Of 64 bits at most."""
    queued_at: float
    deadline: float | None = None
    """From this moment on it may not start any more."""
    is_admissible: bool = True
    """Whether it is among those that are started here; else it waits for others to start it."""
    revision: int = 0
    """Of the record that says all this."""


class JobQueue:
    """Waiting jobs in order, and the slots that they wait for.

    At most ``max_concurrent_jobs`` hold a slot at once (None: any number), and of a queue that is
    in ``queues`` at most so many as it says. A queue that is full or paused holds up no other one.
    ``aging_s`` is how long a job waits to be worth one step of priority more; with None, priorities
    are strict, and a job may wait for ever behind higher ones. In any case those of the same
    priority start in the order of ``queued_at``, and then in the order in which they were added.

    Each limit is 1 or more, and ``aging_s`` above 0: whoever names them sees to that. Whatever is
    said twice counts once. To find who is next costs a look at each queue in which jobs wait, and
    else the logarithm of their number.
    """

    def __init__(
        self,
        *,
        max_concurrent_jobs: int | None,
        queues: Mapping[str, int] | None = None,
        aging_s: float | None = AGING_S,
    ) -> None:
        self._limit = max_concurrent_jobs
        self._limits = dict(queues or {})
        self._aging_s = aging_s
        self._paused: set[str] = set()
        self._waiting: dict[str, Waiting] = {}
        self._lines: dict[str, _Line] = {}
        """The waiting jobs of each queue in which there are any, by place."""
        self._deadlines = _Line()
        """Those of them that have a deadline, by deadline."""
        self._overdue = _Line()
        """Those whose deadline was over, likewise, until ``expired`` tells of them."""
        self._queue_of: dict[str, str] = {}
        """Who holds a slot, and in which queue."""
        self._occupied: Counter[str] = Counter()
        self._arrivals = count()

    def add(self, waiting: Waiting) -> None:
        """Let a job wait for a slot, in place of what was said of it before.

        A job that holds a slot does not wait for one, so this changes nothing until it is released.
        """
        if waiting.job_id in self._queue_of or self._waiting.get(waiting.job_id) == waiting:
            return
        if waiting.job_id in self._waiting or self._overdue:
            self.remove(waiting.job_id)
        self._waiting[waiting.job_id] = waiting
        arrival = next(self._arrivals)
        if waiting.is_admissible:
            line = self._lines.setdefault(waiting.queue, _Line())
            line.push((self._place(waiting), waiting.queued_at, arrival, waiting))
        if waiting.deadline is not None:
            self._deadlines.push((waiting.deadline, waiting.queued_at, arrival, waiting))

    def _place(self, waiting: Waiting) -> float:
        if self._aging_s is None:
            return -waiting.priority
        return waiting.queued_at - waiting.priority * self._aging_s

    def remove(self, job_id: str) -> None:
        """Let a job wait no more, if it does: it was withdrawn."""
        self._overdue.discard(job_id)
        waiting = self._waiting.pop(job_id, None)
        if waiting is None:
            return
        self._deadlines.discard(job_id)
        if not waiting.is_admissible:
            return
        line = self._lines[waiting.queue]
        line.discard(job_id)
        if not line:
            del self._lines[waiting.queue]

    def occupy(self, job_id: str, queue: str = DEFAULT_QUEUE) -> bool:
        """Give a job a slot, whether there is one or not: it runs. It waits no more.

        Returns whether it had one of another queue, which is free now.
        """
        if job_id in self._waiting or self._overdue:
            self.remove(job_id)
        if self._queue_of.get(job_id) == queue:
            return False
        has_left = self.release(job_id)
        self._queue_of[job_id] = queue
        self._occupied[queue] += 1
        return has_left

    def release(self, job_id: str) -> bool:
        """Take back the job's slot: it has ended, or could not be started.

        Returns whether it held one.
        """
        queue = self._queue_of.pop(job_id, None)
        if queue is None:
            return False
        self._occupied[queue] -= 1
        if not self._occupied[queue]:
            del self._occupied[queue]
        return True

    def pause(self, queue: str) -> None:
        """Admit nothing more from this queue. Its jobs wait on, and their deadlines hold."""
        self._paused.add(queue)

    def resume(self, queue: str) -> None:
        """Admit from this queue again."""
        self._paused.discard(queue)

    def admit(self, now: float) -> list[Waiting]:
        """Return the jobs that may start now, in order; each holds a slot from here on.

        Afterwards no job waits that could start. One that is not started after all gives its slot
        back by ``release``. None is admitted once its deadline is over.
        """
        self._set_overdue_aside(now)
        admitted: list[Waiting] = []
        if self._is_full():
            return admitted
        heads = [line.first() for queue, line in self._lines.items() if self._is_open(queue)]
        heapify(heads)
        while heads and not self._is_full():
            *_, waiting = heappop(heads)
            queue = waiting.queue
            self.occupy(waiting.job_id, queue)
            admitted.append(waiting)
            if queue in self._lines and self._is_open(queue):
                heappush(heads, self._lines[queue].first())
        return admitted

    def _is_full(self) -> bool:
        return self._limit is not None and len(self._queue_of) >= self._limit

    def _is_open(self, queue: str) -> bool:
        limit = self._limits.get(queue)
        return queue not in self._paused and (limit is None or self._occupied[queue] < limit)

    def expired(self, now: float) -> list[Waiting]:
        """Remove the jobs whose deadline is over, and return them, the earliest deadline first."""
        self._set_overdue_aside(now)
        expired = []
        while self._overdue:
            *_, waiting = self._overdue.first()
            self._overdue.discard(waiting.job_id)
            expired.append(waiting)
        return expired

    def _set_overdue_aside(self, now: float) -> None:
        while self._deadlines:
            entry = self._deadlines.first()
            if entry[0] > now:
                return
            self.remove(entry[-1].job_id)
            self._overdue.push(entry)

    def next_deadline(self) -> float | None:
        """Return when ``expired`` has something to tell: the earliest deadline, if there is any."""
        lines = (self._overdue, self._deadlines)
        return min((line.first()[0] for line in lines if line), default=None)

    def depth(self) -> dict[str, int]:
        """Return how many admissible jobs wait, for each queue in which there are any."""
        return {queue: len(line) for queue, line in self._lines.items()}

    def occupied(self) -> dict[str, int]:
        """Return how many jobs hold a slot, for each queue in which there are any."""
        return dict(self._occupied)

    def holders(self) -> Set[str]:
        """Return the jobs that hold a slot."""
        return self._queue_of.keys()

    def paused(self) -> frozenset[str]:
        """Return the queues that are paused."""
        return frozenset(self._paused)


_Entry = tuple[float, float, int, Waiting]
"""What a line is sorted by, and who stands there. No two have the third alike."""


class _Line:
    """Jobs in the order of their entries; each can leave from wherever it stands.

    A heap. The entry of who has left stays in it until it comes first, or until half of the heap
    is such: so nothing is ever searched for, and the heap is at most twice as long as the line.
    """

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, entry: _Entry) -> None:
        self._entries[entry[-1].job_id] = entry
        heappush(self._heap, entry)

    def first(self) -> _Entry:
        """Return the lowest entry; there must be one."""
        while self._entries.get(self._heap[0][-1].job_id) is not self._heap[0]:
            heappop(self._heap)
        return self._heap[0]

    def discard(self, job_id: str) -> None:
        self._entries.pop(job_id, None)
        if len(self._heap) > 2 * len(self._entries):
            self._heap = list(self._entries.values())
            heapify(self._heap)
