"""At hand: what of the jobs is known without a look at the store. No I/O.

It is what will be asked for again, above all by those who supervise it. What another process may
have changed is forgotten: the store knows better.
"""

from __future__ import annotations

from collections import OrderedDict

from anodejobs.records import WAITING, JobRecord
from anodejobs.stores.base import Insert, Save, Stored

_MOST_ENDED = 1_000
"""How many records of ended jobs are at hand: most are asked for soon after the end, or never."""
_MOST_WAITING = 1_000
"""How many jobs that have not started are at hand: those written last, which may start at once."""
_MOST_WEIGHT = 10_000
"""How much a job may weigh to be among these: a character is 1, and any other value is 10.

The store is asked for others again: a thousand of them might be all the memory that there is.
"""


class AtHand:
    """Jobs as they are on disk: all that live and were written here, and some of the others."""

    def __init__(self) -> None:
        self._alive: dict[str, Stored] = {}
        self._waiting: OrderedDict[str, Stored] = OrderedDict()
        self._ended: OrderedDict[str, JobRecord] = OrderedDict()

    def alive(self, job_id: str) -> Stored | None:
        """Return a job that has an attempt under way."""
        return self._alive.get(job_id)

    def waiting(self, job_id: str) -> Stored | None:
        """Return a job that has not started; another process may have changed it by now."""
        return self._waiting.get(job_id)

    def ended(self, job_id: str) -> JobRecord | None:
        """Return the record of a job that has ended."""
        return self._ended.get(job_id)

    def remember(self, write: Insert | Save) -> None:
        """Take note of a write that is on disk."""
        record = write.record
        job_id = record.self_id
        old = self._alive.pop(job_id, None) or self._waiting.pop(job_id, None)
        if record.is_done:
            self._ended.pop(job_id, None)
            if _is_light(record):
                self._ended[job_id] = record
            if len(self._ended) > _MOST_ENDED:
                self._ended.popitem(last=False)
            return
        self._ended.pop(job_id, None)
        launch = write.launch or (old and old.launch)
        attempt = write.attempt or (old and old.attempt)
        if not (launch and attempt):
            return
        stored = Stored(record=record, launch=launch, attempt=attempt)
        if record.status in WAITING:
            self.keep_waiting(stored)
        else:
            self._alive[job_id] = stored

    def keep_waiting(self, stored: Stored) -> None:
        """Have a job that has not started at hand for a while: there may be very many."""
        if _is_light(stored.record) and _weighs_little(stored.launch.envs):
            self._waiting[stored.record.self_id] = stored
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.popitem(last=False)

    def forget(self, job_id: str) -> None:
        """Know nothing of the job."""
        self._alive.pop(job_id, None)
        self._waiting.pop(job_id, None)
        self._ended.pop(job_id, None)

    def forget_waiting(self, job_id: str) -> None:
        """Know nothing of the job if it has not started."""
        self._waiting.pop(job_id, None)

    def forget_alive(self) -> None:
        """Know of no job that has an attempt under way: the end of one may have left no trace."""
        self._alive.clear()

    def forget_ended(self) -> None:
        """Know of no job that has ended: a deletion leaves no trace in the history."""
        self._ended.clear()


def _is_light(record: JobRecord) -> bool:
    return _weighs_little(record.command, record.metadata, record.payload, record.result)


def _weighs_little(*values: object) -> bool:
    """Return whether values of JSON are few and short; of others no more is looked at than that."""
    weight, unweighed = 0, list(values)
    while unweighed and weight <= _MOST_WEIGHT:
        value = unweighed.pop()
        weight += len(value) if isinstance(value, str) else 10
        if isinstance(value, (list, dict)):
            weight += 10 * len(value)
            if weight <= _MOST_WEIGHT:
                unweighed += value
                unweighed += value.values() if isinstance(value, dict) else ()
    return weight <= _MOST_WEIGHT
