"""All that a store holds, in memory: what writes come to, and what is found. Pure.

``decide`` says what a batch would change and changes nothing, so that a store can make it durable
before it is there to be seen; ``apply`` makes the changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from itertools import chain
from operator import attrgetter
from typing import Any

from anodejobs.errors import JobNotFound
from anodejobs.records import JobEvent, JobFilter, JobRecord, Metrics, Status
from anodejobs.stores.base import (
    Delete,
    Insert,
    InsertAll,
    Query,
    Save,
    Stored,
    Unfinished,
    Write,
    check_restored,
    history_entry,
    steps_of,
)
from anodejobs.stores.tally import group_of, metrics_of


@dataclass(frozen=True, slots=True)
class Kept:
    """A job is to be found as this."""

    stored: Stored


@dataclass(frozen=True, slots=True)
class Told:
    """The history goes on with this."""

    event: JobEvent


@dataclass(frozen=True, slots=True)
class Gone:
    """A job is there no more, nor what its history has told so far."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Document:
    """A document has this text; None: it is there no more."""

    kind: str
    name: str
    body: str | None


Change = Kept | Told | Gone | Document


class Contents:
    """Jobs, their history, and documents."""

    def __init__(self) -> None:
        self.jobs: dict[str, Stored] = {}
        self.history: list[JobEvent] = []
        """In the order of their ``seq``."""
        self.last_seq = 0
        self._by_status: dict[Status, dict[str, Stored]] = {status: {} for status in Status}
        self._documents: defaultdict[str, dict[str, str]] = defaultdict(dict)

    # Writing.

    def decide(self, writes: Sequence[Write]) -> tuple[list[int | None], list[Change]]:
        """Return what ``JobStore.commit`` is to return, and the changes that the writes make."""
        decision = _Decision(self.jobs, self.last_seq)
        results = [decision.take(write) for write in writes]
        return results, decision.changes

    def decide_restored(self, jobs: Sequence[Stored], history: Sequence[JobEvent]) -> list[Change]:
        """Return the changes of ``JobStore.restore``. Raises StoreError."""
        taken = [s.record.self_id for s in jobs if s.record.self_id in self.jobs]
        check_restored(self.last_seq, history, taken)
        return [*map(Told, history), *map(Kept, jobs)]

    def apply(self, changes: Iterable[Change]) -> None:
        """Make the changes."""
        gone: dict[str, int] = {}
        for change in changes:
            match change:
                case Kept(stored):
                    job_id = stored.record.self_id
                    self._note_gone(self.jobs.get(job_id))
                    self.jobs[job_id] = self._by_status[stored.record.status][job_id] = stored
                case Told(event):
                    self.history.append(event)
                    self.last_seq = event.seq
                case Gone(job_id):
                    self._note_gone(self.jobs.pop(job_id, None))
                    gone[job_id] = self.last_seq
                case Document():
                    self._put(change)
        if gone:
            # Once for all of them: the history is long, and old jobs are removed by hundreds.
            self.history = [e for e in self.history if e.seq > gone.get(e.job_id or "", 0)]

    def _note_gone(self, stored: Stored | None) -> None:
        if stored is not None:
            del self._by_status[stored.record.status][stored.record.self_id]

    def _put(self, document: Document) -> None:
        if document.body is None:
            self._documents[document.kind].pop(document.name, None)
        else:
            self._documents[document.kind][document.name] = document.body

    # Reading.

    def unfinished(self, statuses: Collection[Status]) -> list[Unfinished]:
        """Return every job that is in one of the statuses."""
        return [
            Unfinished(stored.record.self_id, stored.record.status, stored.attempt)
            for stored in self._of(statuses)
        ]

    def page(self, query: Query) -> list[JobRecord]:
        """Return the page. Raises JobNotFound where ``query.after`` has no record."""

        def key(record: JobRecord) -> tuple[Any, ...]:
            value = getattr(record, query.sort_by)
            # As SQL has it here: what is missing sorts before everything else.
            return (value is not None, value, record.self_id)

        records = self._matching(query.filter)
        if query.after is not None:
            if query.after not in self.jobs:
                raise JobNotFound(query.after)
            last = key(self.jobs[query.after].record)
            records = (r for r in records if (key(r) < last if query.descending else key(r) > last))
        if query.limit is None:
            return sorted(records, key=key, reverse=query.descending)[query.offset :]
        first = nlargest if query.descending else nsmallest
        return first(query.offset + query.limit, records, key=key)[query.offset :]

    def count(self, filter: JobFilter) -> Mapping[Status, int]:
        """Return how many records match, by status."""
        if not any(wanted is not None for name, wanted in filter if name != "status"):
            statuses = Status if filter.status is None else filter.status
            return {status: n for status in statuses if (n := len(self._by_status[status]))}
        return Counter(record.status for record in self._matching(filter))

    def _matching(self, filter: JobFilter) -> Iterator[JobRecord]:
        """Give the records that match; what is asked for by its id is found by that."""
        found: Iterable[Stored] = self.jobs.values()
        if filter.self_id is not None:
            found = (self.jobs[i] for i in dict.fromkeys(filter.self_id) if i in self.jobs)
            filter = filter.model_copy(update={"self_id": None})
        elif filter.status is not None:
            found = self._of(filter.status)
            filter = filter.model_copy(update={"status": None})
        if filter == JobFilter():
            return (stored.record for stored in found)
        return (stored.record for stored in found if filter.matches(stored.record))

    def _of(self, statuses: Collection[Status]) -> Iterator[Stored]:
        return chain.from_iterable(self._by_status[status].values() for status in set(statuses))

    def tally(self) -> Metrics:
        """Return how many jobs there are of what."""
        records = [stored.record for stored in self.jobs.values()]
        by_tag = Counter(tag for record in records for tag in set(record.tags))
        return metrics_of(map(group_of, records), by_tag)

    def told(self, *, job_id: str | None, after: int, limit: int | None) -> list[JobEvent]:
        """Return the events with a ``seq`` above ``after``, of one job or of all."""
        start = bisect_right(self.history, after, key=attrgetter("seq"))
        if job_id is None:
            return self.history[start : None if limit is None else start + limit]
        return [event for event in self.history[start:] if event.job_id == job_id][:limit]

    def dependents(self, job_id: str) -> list[str]:
        """Return the ids of the jobs whose record says that they depend on this one, ascending."""
        records = (stored.record for stored in self.jobs.values())
        return sorted(record.self_id for record in records if job_id in record.depends_on)

    def documents(self, kind: str) -> dict[str, str]:
        """Return the documents of a kind by name."""
        return dict(sorted(self._documents[kind].items()))

    def document_kinds(self) -> list[str]:
        """Return every kind of which there is a document."""
        return sorted(kind for kind, documents in self._documents.items() if documents)


class _Decision:
    """What a batch comes to: each write is seen by those that follow it."""

    def __init__(self, jobs: Mapping[str, Stored], last_seq: int) -> None:
        self._jobs = jobs
        self._pending: dict[str, Stored | None] = {}
        self._seq = last_seq
        self.changes: list[Change] = []

    def take(self, write: Write) -> int | None:
        if isinstance(write, InsertAll):
            job_ids = {insert.record.self_id for insert in write.inserts}
            if len(job_ids) < len(write.inserts) or any(map(self._job, job_ids)):
                return None
            return [self.take(insert) for insert in write.inserts][-1]
        old = self._job(write.record.self_id)
        match write:
            case Insert():
                if old is not None:
                    return None
                new = Stored(record=write.record, launch=write.launch, attempt=write.attempt)
            case Save():
                if old is None or old.record.revision != write.made_from:
                    return None
                new = Stored(
                    record=write.record,
                    launch=write.launch or old.launch,
                    attempt=write.attempt or old.attempt,
                )
            case Delete():
                if old is None or old.record.revision != write.record.revision:
                    return None
                self._pending[write.record.self_id] = None
                self.changes.append(Gone(write.record.self_id))
                return 0
        self._pending[write.record.self_id] = new
        for step in steps_of(write):
            self._seq += 1
            self.changes.append(Told(history_entry(self._seq, step)))
        self.changes.append(Kept(new))
        return self._seq

    def _job(self, job_id: str) -> Stored | None:
        return self._pending[job_id] if job_id in self._pending else self._jobs.get(job_id)
