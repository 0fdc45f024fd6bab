"""Waits: whoever waits for a job has a future, resolved by a record that is on disk. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from anodejobs.errors import AnodeJobsError, StatusUnreachable
from anodejobs.records import JobRecord, Status
from anodejobs.transitions import has_reached


class Waiter:
    """One wait for one job: a future, resolved by the record that ends the wait.

    It listens while it is open, as a context. With ``of`` it ends with that attempt.
    """

    __slots__ = ("_waits", "future", "job_id", "of", "wanted")

    def __init__(
        self,
        waits: Waits,
        job_id: str,
        wanted: frozenset[Status] | None = None,
        of: JobRecord | None = None,
    ) -> None:
        self._waits = waits
        self.job_id = job_id
        self.wanted = wanted
        self.of = of
        self.future: asyncio.Future[JobRecord] = asyncio.get_running_loop().create_future()

    def __enter__(self) -> Waiter:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Listen."""
        self._waits.begin(self)

    def close(self) -> None:
        """Listen no more."""
        self._waits.end(self)
        if not self.future.cancel() and not self.future.cancelled():
            self.future.exception()  # looked at, so that nobody calls it forgotten

    def consider(self, record: JobRecord) -> None:
        """End the wait if the record does."""
        if self.future.done():
            return
        try:
            if has_reached(record, self.wanted) or (self.of and not _is_same(self.of, record)):
                self.future.set_result(record)
        except StatusUnreachable as error:
            self.future.set_exception(error)


def _is_same(one: JobRecord, other: JobRecord) -> bool:
    """Return whether the records tell of the same attempt."""
    return (one.attempt, one.created_at) == (other.attempt, other.created_at)


class Waits:
    """All who wait for jobs. A wait that is given up costs nothing."""

    def __init__(self) -> None:
        self._waiters: dict[str, dict[Waiter, None]] = {}
        self._failure: AnodeJobsError | None = None

    def wait(self, job_id: str, wanted: frozenset[Status] | None = None) -> Waiter:
        """Return a wait for the job to be in one of the statuses; None: for its end."""
        return Waiter(self, job_id, wanted)

    def wait_for_attempt(
        self, record: JobRecord, wanted: frozenset[Status] | None = None
    ) -> Waiter:
        """As ``wait``, but the end of this attempt of the job ends it, which another may follow."""
        return Waiter(self, record.self_id, wanted, of=record)

    @contextmanager
    def wait_for_each(self, job_ids: Iterable[str]) -> Iterator[list[Waiter]]:
        """Wait for the ends of several jobs while the context is open."""
        waiters = [self.wait(job_id) for job_id in job_ids]
        # One by one, and no stack of contexts: of thousands that would take ten times as long.
        for waiter in waiters:
            waiter.open()
        try:
            yield waiters
        finally:
            for waiter in waiters:
                waiter.close()

    def begin(self, waiter: Waiter) -> None:
        """Have it told of its job from now on."""
        self._waiters.setdefault(waiter.job_id, {})[waiter] = None
        if self._failure is not None:
            waiter.future.set_exception(self._failure)

    def end(self, waiter: Waiter) -> None:
        """Have it told no more."""
        others = self._waiters[waiter.job_id]
        del others[waiter]
        if not others:
            del self._waiters[waiter.job_id]

    def awaited(self) -> list[str]:
        """Return the ids of all jobs that are waited for."""
        return list(self._waiters)

    def awaits(self, job_id: str) -> bool:
        """Return whether anybody waits for the job."""
        return job_id in self._waiters

    def tell(self, record: JobRecord) -> None:
        """End the waits that the record ends."""
        if record.self_id in self._waiters:
            for waiter in list(self._waiters[record.self_id]):
                waiter.consider(record)

    def fail(self, error: AnodeJobsError) -> None:
        """End every wait with the error, and every later one."""
        self._failure = error
        for job_id in self._waiters:
            self.fail_for(job_id, error)

    def fail_for(self, job_id: str, error: AnodeJobsError) -> None:
        """End the waits for one job with the error."""
        for waiter in self._waiters.get(job_id, ()):
            if not waiter.future.done():
                waiter.future.set_exception(error)
