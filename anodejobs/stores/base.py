"""The contract of a store: it keeps records, and refuses a write made from an old one.

Only ``JobDB`` writes. It hands over whole batches; a store applies one in one transaction and says
of each write whether it was applied. A write is compare-and-set: it names the revision it was made
from, and is refused where the record has another one by now.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, get_args

from anodejobs.errors import InvalidJob, JobNotFound, StoreError
from anodejobs.events import Attempt, utc_now
from anodejobs.executors.base import Launch
from anodejobs.records import (
    TERMINAL,
    AttemptRecord,
    JobEvent,
    JobFilter,
    JobRecord,
    Metrics,
    OnDependencyFailure,
    Status,
)

SortKey = Literal[
    "created_at",
    "last_update",
    "started_at",
    "finished_at",
    "self_id",
    "name",
    "status",
    "priority",
]
SORT_KEYS: tuple[SortKey, ...] = get_args(SortKey)
Durability = Literal["process", "power"]
"""What a commit survives: the death of every process; or a power failure, too."""


def check_durability(durability: str, *, where_useless: str | None = None) -> None:
    """Raise InvalidJob where there is no such durability, or it is asked for in vain."""
    if durability not in get_args(Durability):
        raise InvalidJob("durability", "must be 'process' or 'power'")
    if durability == "power" and where_useless is not None:
        raise InvalidJob("durability", f"'power' is of no use with {where_useless}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """A record for an id that has none."""

    record: JobRecord
    launch: Launch
    attempt: Attempt
    why: str | None = None
    previous: ClassVar[None] = None
    ended: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class InsertAll:
    """Records for ids that have none, one or more: all of them, or none of them.

    They are refused where one of the ids is taken, or named twice.
    """

    inserts: tuple[Insert, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """The next record of a job, made from the one whose revision was one less.

    ``launch`` and ``attempt`` stay as they are where None. With a launch it is another run: only
    then may what filters look at change, beside the status. With ``is_respecified`` its
    dependencies, its metadata or its result may have changed; else only what happens to every job.

    With ``before`` it is two steps, or more, in one write: that save, from whose record this one
    was made, is not there by itself. It has all that is to be kept; the history tells of both.
    """

    record: JobRecord
    previous: Status
    attempt: Attempt | None = None
    launch: Launch | None = None
    why: str | None = None
    ended: AttemptRecord | None = None
    """For the history: the attempt that ended with this."""
    is_respecified: bool = False
    before: Save | None = None

    @property
    def made_from(self) -> int:
        """The revision that the job has to have."""
        return self.record.revision - len(steps_of(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """The removal of a job with its history, if this is still its record."""

    record: JobRecord


Write = Insert | InsertAll | Save | Delete
Change = TypeVar("Change", bound=Insert | Save | Delete)


def changes_of(write: Write) -> tuple[Insert | Save | Delete, ...]:
    """Return what a write changes, each of one record."""
    return write.inserts if isinstance(write, InsertAll) else (write,)


def as_one(first: Save, second: Save) -> Save:
    """Return two saves of a job, the second one made from the first, as the steps of one."""
    assert second.launch is None and second.before is None
    return replace(
        second,
        before=first,
        launch=first.launch,
        attempt=second.attempt or first.attempt,
        is_respecified=first.is_respecified or second.is_respecified,
    )


def steps_of(change: Change) -> tuple[Change | Save, ...]:
    """Return the change after those that it has with it, each of which the history tells of."""
    if isinstance(change, Save) and change.before is not None:
        return (*steps_of(change.before), change)
    return (change,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A job as it is kept: what users see, and what only its supervisor needs."""

    record: JobRecord
    launch: Launch
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What is to be known of a job that has not ended, to see whether anybody looks after it."""

    job_id: str
    status: Status
    attempt: Attempt


_PAGE = 500
UNFINISHED = tuple(status for status in Status if status not in TERMINAL)


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be known of a job to let it take its turn; the fields of its record."""

    self_id: str
    status: Status
    queue: str
    priority: int
    attempt: int
    revision: int
    last_update: datetime | None
    submitted_at: datetime | None
    due_at: datetime | None
    start_deadline: float | None
    depends_on: Sequence[str]
    on_dependency_failure: OnDependencyFailure
    tags: Sequence[str] = ()
    host: str | None = None
    """Where machines share the records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A page of records. Ties of the sort key are broken by the job id; a missing one comes first.

    ``after`` names the last job of the page before: a page found so takes as long at the end of a
    million records as at their beginning. ``offset`` counts, so it takes as long as it is large.
    """

    filter: JobFilter
    sort_by: SortKey = "created_at"
    descending: bool = False
    limit: int | None = None
    offset: int = 0
    after: str | None = None

    def __post_init__(self) -> None:
        if self.sort_by not in SORT_KEYS:
            raise InvalidJob("sort_by", f"must be one of {', '.join(SORT_KEYS)}")
        if self.after is not None and not isinstance(self.after, str):
            raise InvalidJob("after", "must be the id of a job")
        for field in ("limit", "offset"):
            value = getattr(self, field)
            if value is None and field == "limit":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
                raise InvalidJob(field, "must be a whole number, zero or more, below 2 ** 62")


class TooLarge(StoreError):
    """A write that is larger than the store can ever take; nothing was written with it either."""


class Outdated(StoreError):
    """A newer anodejobs has changed how records are kept: this one has no more to do with them."""


class JobStore(ABC):
    """Keeps records, their history, and what is needed to start their jobs again.

    Every method raises StoreError where the store cannot do its work, and nothing else. Cancelling
    a read costs nothing; a cancelled ``commit`` may still be applied.
    """

    lock_path: Path | None = None
    """A file for processes that share the records to lock; None where no other one can, or where
    they need not be on this machine."""

    @abstractmethod
    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        """Connect, and create or migrate what is missing.

        ``on_foreign_commit`` is called on the event loop when another process has committed.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything. Idempotent."""

    @abstractmethod
    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        """Apply the writes in one transaction, durably, each by itself.

        Gives, in their order, the ``seq`` of an applied Insert or Save in the history (it ascends
        over all jobs, and is never used again), 0 for an applied Delete, None for a refused write.
        Those of an InsertAll, or of the steps of a Save, follow each other, and the last one is
        given. Raises TooLarge where one of the writes is.
        """

    @abstractmethod
    async def get(self, job_id: str) -> Stored | None:
        """Return the job as it is kept."""

    async def get_all(self, job_ids: Sequence[str]) -> list[Stored]:
        """Return those of the jobs that there are, in any order.

        To be overridden where a store can give many at once in less time than one by one.
        """
        found = [await self.get(job_id) for job_id in job_ids]
        return [stored for stored in found if stored is not None]

    @abstractmethod
    async def unfinished(self, statuses: Collection[Status] = UNFINISHED) -> list[Unfinished]:
        """Return every job that is in one of the statuses; by default: that has not ended."""

    async def turns(self) -> AsyncGenerator[Sequence[JobRecord | Turn], None]:
        """Give every job that has not ended, some at a time.

        To be overridden where a store can read a part of a record in less time than all of it.
        """
        after: str | None = None
        filter = JobFilter(status=list(UNFINISHED))
        while True:
            # By id: a job that is begun anew meanwhile gets a new place in any other order.
            query = Query(filter=filter, sort_by="self_id", limit=_PAGE, after=after)
            try:
                page = await self.page(query)
            except JobNotFound:  # the last one of the page before was deleted
                after = None
                continue
            yield page
            if len(page) < _PAGE:
                return
            after = page[-1].self_id

    @abstractmethod
    async def page(self, query: Query) -> list[JobRecord]:
        """Return the page. Raises JobNotFound where ``query.after`` has no record."""

    @abstractmethod
    async def count(self, filter: JobFilter) -> Mapping[Status, int]:
        """Return how many records match, by status; a status without any may be missing."""

    @abstractmethod
    async def tally(self) -> Metrics:
        """Return how many jobs there are of what, all of one moment."""

    @abstractmethod
    async def history(
        self, *, job_id: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[JobEvent]:
        """Return the status events with a ``seq`` above ``after``, oldest first."""

    async def latest(self, job_id: str, most: int) -> list[JobEvent]:
        """Return the last status events of a job, so many at most (1 or more), oldest first.

        To be overridden where a store can find them without a look at those before.
        """
        return (await self.history(job_id=job_id))[-most:]

    @abstractmethod
    async def last_seq(self) -> int:
        """Return the ``seq`` of the newest status event ever, 0 where there has been none."""

    @abstractmethod
    async def dependents(self, job_id: str) -> list[str]:
        """Return the ids of the jobs whose record says that they depend on this one, ascending."""

    @abstractmethod
    async def documents(self, kind: str) -> dict[str, str]:
        """Return the documents of a kind, such as the schedules, by name."""

    @abstractmethod
    async def document_kinds(self) -> list[str]:
        """Return every kind of which there is a document, ascending."""

    @abstractmethod
    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        """Keep a document in place of the one of that name, None: none. Durable on return.

        Other processes are told, as of a commit.
        """

    @abstractmethod
    async def restore(
        self, jobs: Sequence[Stored], history: Sequence[JobEvent], last_seq: int
    ) -> None:
        """Go on with what another store has: jobs as they are there, and what was told of them.

        In one transaction, durably. The history, in order, is behind all that this store has told;
        ``last_seq``, which is not before it, is what the next commit follows. The first event of a
        job comes with the job.

        Raises StoreError, and keeps nothing of it, where somebody else has told anything
        meanwhile, or a job is here already.
        """


@dataclass(frozen=True, slots=True)
class Lease:
    """A host's word that it is there, as others find it when it is over."""

    host: str
    epoch: int
    """Tells it from every other lease that the host has had; the later, the higher."""
    silent_s: float
    """For how long the host has not been heard of, by the store's clock."""


class SharedJobStore(JobStore):
    """A store that machines share. Each host that uses it has a lease there.

    Its clock is the store's own, so the hosts' clocks need not agree.
    """

    @abstractmethod
    async def keep_lease(self, host: str, lasts_s: float) -> None:
        """Have the lease of the host last from now on; it is made where it has none.

        After that every commit of this store that comes late in it does the same, in its own
        transaction: what a host has committed was covered by its lease. Nothing is waited for:
        who keeps the lease tries again.
        """

    @abstractmethod
    async def expired_leases(self) -> list[Lease]:
        """Return the leases that are over and that nobody has ended."""

    @abstractmethod
    async def end_lease(
        self, lease: Lease, saves: Sequence[Save], document: tuple[str, str, str] | None = None
    ) -> list[int] | None:
        """End a lease that is over, apply the saves and keep a document, in one transaction.

        Gives the ``seq`` of each save. Or does nothing and gives None: where the lease lasts again
        or was ended by somebody else, or where one of the saves was made from an old record.
        ``document`` is its kind, name and body.
        """


def uptime() -> float:
    """Return seconds by a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def attempt_told(write: Insert | Save) -> int:
    """Return the number of the attempt that the history tells of with an applied write.

    What happens to an attempt is told of that one, also where the record has gone on to the next.
    """
    ended = write.ended
    return write.record.attempt if ended is None else ended.attempt


def check_restored(last_seq: int, history: Sequence[JobEvent], taken: Collection[str]) -> None:
    """Raise StoreError where the history does not go on behind ``last_seq``, or jobs are there."""
    if history and history[0].seq <= last_seq:
        raise StoreError(f"there is another event {history[0].seq} already; nothing was restored")
    if taken:
        raise StoreError(f"there is another job {min(taken)!r} already; nothing was restored")


def history_entry(seq: int, write: Insert | Save) -> JobEvent:
    """Return what the history says of an applied write."""
    record = write.record
    return JobEvent(
        seq=seq,
        kind="status",
        at=record.last_update or utc_now(),
        job_id=record.self_id,
        attempt=attempt_told(write),
        previous=write.previous,
        status=record.status,
        why=write.why,
        ended=write.ended,
    )
