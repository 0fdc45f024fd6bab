"""A store that forgets: for tests, and for programs that need no history."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from anodejobs.errors import JobNotFound
from anodejobs.records import JobEvent, JobFilter, JobRecord, Metrics, Status
from anodejobs.stores.base import (
    UNFINISHED,
    Delete,
    Insert,
    InsertAll,
    JobStore,
    Query,
    Save,
    Stored,
    Unfinished,
    Write,
    history_entry,
)
from anodejobs.stores.tally import group_of, metrics_of


class MemoryJobStore(JobStore):
    """Keeps records in the memory of this process, until it is dropped."""

    def __init__(self) -> None:
        self._jobs: dict[str, Stored] = {}
        self._history: list[JobEvent] = []
        self._last_seq = 0
        self._documents: defaultdict[str, dict[str, str]] = defaultdict(dict)

    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        """Do nothing: nobody else can commit here."""

    async def close(self) -> None:
        """Do nothing: the records stay for as long as the store object does."""

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        return [self._apply(write) for write in writes]

    def _apply(self, write: Write) -> int | None:
        if isinstance(write, InsertAll):
            job_ids = {insert.record.self_id for insert in write.inserts}
            if len(job_ids) < len(write.inserts) or not job_ids.isdisjoint(self._jobs):
                return None
            return [self._apply(insert) for insert in write.inserts][-1]
        job_id = write.record.self_id
        old = self._jobs.get(job_id)
        match write:
            case Insert():
                if old is not None:
                    return None
                self._jobs[job_id] = Stored(
                    record=write.record, launch=write.launch, attempt=write.attempt
                )
            case Save():
                if old is None or old.record.revision != write.record.revision - 1:
                    return None
                self._jobs[job_id] = Stored(
                    record=write.record,
                    launch=write.launch or old.launch,
                    attempt=write.attempt or old.attempt,
                )
            case Delete():
                if old is None or old.record.revision != write.record.revision:
                    return None
                del self._jobs[job_id]
                self._history = [event for event in self._history if event.job_id != job_id]
                return 0
        self._last_seq += 1
        self._history.append(history_entry(self._last_seq, write))
        return self._last_seq

    async def get(self, job_id: str) -> Stored | None:
        return self._jobs.get(job_id)

    async def unfinished(self, statuses: Collection[Status] = UNFINISHED) -> list[Unfinished]:
        return [
            Unfinished(stored.record.self_id, stored.record.status, stored.attempt)
            for stored in self._jobs.values()
            if stored.record.status in statuses
        ]

    async def page(self, query: Query) -> list[JobRecord]:
        def key(record: JobRecord) -> tuple[Any, ...]:
            value = getattr(record, query.sort_by)
            # As SQL has it here: what is missing sorts before everything else.
            return (value is not None, value, record.self_id)

        records = [s.record for s in self._jobs.values() if query.filter.matches(s.record)]
        records.sort(key=key, reverse=query.descending)
        if query.after is not None:
            if query.after not in self._jobs:
                raise JobNotFound(query.after)
            last = key(self._jobs[query.after].record)
            records = [r for r in records if (key(r) < last if query.descending else key(r) > last)]
        end = None if query.limit is None else query.offset + query.limit
        return records[query.offset : end]

    async def count(self, filter: JobFilter) -> Mapping[Status, int]:
        records = (stored.record for stored in self._jobs.values())
        return Counter(record.status for record in records if filter.matches(record))

    async def tally(self) -> Metrics:
        records = [stored.record for stored in self._jobs.values()]
        by_tag = Counter(tag for record in records for tag in set(record.tags))
        return metrics_of(map(group_of, records), by_tag)

    async def history(
        self, *, job_id: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[JobEvent]:
        wanted = [e for e in self._history if e.seq > after and job_id in (None, e.job_id)]
        return wanted[:limit]

    async def last_seq(self) -> int:
        return self._last_seq

    async def dependents(self, job_id: str) -> list[str]:
        records = (stored.record for stored in self._jobs.values())
        return sorted(record.self_id for record in records if job_id in record.depends_on)

    async def documents(self, kind: str) -> dict[str, str]:
        return dict(sorted(self._documents[kind].items()))

    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        if body is None:
            self._documents[kind].pop(name, None)
        else:
            self._documents[kind][name] = body
