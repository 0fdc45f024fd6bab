"""A store that forgets: for tests, and for programs that need no history."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from anodejobs.records import JobEvent, JobFilter, JobRecord, Metrics, Status
from anodejobs.stores.base import UNFINISHED, JobStore, Query, Stored, Unfinished, Write
from anodejobs.stores.contents import Contents, Document


class MemoryJobStore(JobStore):
    """Keeps records in the memory of this process, until it is dropped."""

    def __init__(self) -> None:
        self._contents = Contents()

    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        """Do nothing: nobody else can commit here."""

    async def close(self) -> None:
        """Do nothing: the records stay for as long as the store object does."""

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        results, changes = self._contents.decide(writes)
        self._contents.apply(changes)
        return results

    async def get(self, job_id: str) -> Stored | None:
        return self._contents.jobs.get(job_id)

    async def unfinished(self, statuses: Collection[Status] = UNFINISHED) -> list[Unfinished]:
        return self._contents.unfinished(statuses)

    async def page(self, query: Query) -> list[JobRecord]:
        return self._contents.page(query)

    async def count(self, filter: JobFilter) -> Mapping[Status, int]:
        return self._contents.count(filter)

    async def tally(self) -> Metrics:
        return self._contents.tally()

    async def history(
        self, *, job_id: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[JobEvent]:
        return self._contents.told(job_id=job_id, after=after, limit=limit)

    async def last_seq(self) -> int:
        return self._contents.last_seq

    async def dependents(self, job_id: str) -> list[str]:
        return self._contents.dependents(job_id)

    async def documents(self, kind: str) -> dict[str, str]:
        return self._contents.documents(kind)

    async def document_kinds(self) -> list[str]:
        return self._contents.document_kinds()

    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        self._contents.apply([Document(kind, name, body)])

    async def restore(
        self, jobs: Sequence[Stored], history: Sequence[JobEvent], last_seq: int
    ) -> None:
        self._contents.apply(self._contents.decide_restored(jobs, history))
        self._contents.last_seq = last_seq
