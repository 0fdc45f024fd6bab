"""Records in a folder: a JSON file for each job, which a person can read. No database.

For thousands of jobs, not for millions: every process has all of them in memory. Several processes
may use the folder. ``file_folder`` says what lies where.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from anodejobs.errors import JobNotFound, StoreError
from anodejobs.records import JobEvent, JobFilter, JobRecord, Metrics, Status
from anodejobs.stores.base import UNFINISHED, JobStore, Query, Stored, Unfinished, Write
from anodejobs.stores.contents import Contents, Document
from anodejobs.stores.doorbell import Doorbell
from anodejobs.stores.file_folder import JobFolder
from anodejobs.threads import in_thread

T = TypeVar("T")


class FileJobStore(JobStore):
    """Keeps records in the folder at ``path``: files of mode 0600, in folders of mode 0700.

    A commit is synced to the disk, so that it survives a power failure too.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.realpath(path))
        self.lock_path = self.path / "anodejobs-scheduler"
        self._folder = JobFolder(self.path)
        self._bell = Doorbell(self.path / "anodejobs-bells")
        self._thread: ThreadPoolExecutor | None = None
        """One: what is done in it comes one after another."""

    async def open(self, on_foreign_commit: Callable[[], None]) -> None:
        self._thread = ThreadPoolExecutor(1, "anodejobs-files")
        try:
            await self._do("open", self._folder.open)
            with _Translated("open", self.path):
                self._bell.open(on_foreign_commit)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._bell.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.submit(self._folder.close)
            await in_thread(thread.shutdown)

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        return await self._do("write to", self._commit, tuple(writes))

    def _commit(self, writes: Sequence[Write]) -> list[int | None]:
        results = self._folder.commit(writes)
        if any(result is not None for result in results):
            self._bell.ring()
        return results

    async def get(self, job_id: str) -> Stored | None:
        return await self._read(lambda contents: contents.jobs.get(job_id))

    async def get_all(self, job_ids: Sequence[str]) -> list[Stored]:
        return await self._read(
            lambda contents: [contents.jobs[i] for i in set(job_ids) if i in contents.jobs]
        )

    async def unfinished(self, statuses: Collection[Status] = UNFINISHED) -> list[Unfinished]:
        return await self._read(lambda contents: contents.unfinished(statuses))

    async def turns(self) -> AsyncGenerator[Sequence[JobRecord], None]:
        yield await self.page(Query(filter=JobFilter(status=list(UNFINISHED))))

    async def page(self, query: Query) -> list[JobRecord]:
        return await self._read(lambda contents: contents.page(query))

    async def count(self, filter: JobFilter) -> Mapping[Status, int]:
        return await self._read(lambda contents: contents.count(filter))

    async def tally(self) -> Metrics:
        return await self._read(lambda contents: contents.tally())

    async def history(
        self, *, job_id: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[JobEvent]:
        return await self._read(
            lambda contents: contents.told(job_id=job_id, after=after, limit=limit)
        )

    async def last_seq(self) -> int:
        return await self._read(lambda contents: contents.last_seq)

    async def dependents(self, job_id: str) -> list[str]:
        return await self._read(lambda contents: contents.dependents(job_id))

    async def documents(self, kind: str) -> dict[str, str]:
        return await self._read(lambda contents: contents.documents(kind))

    async def document_kinds(self) -> list[str]:
        return await self._read(lambda contents: contents.document_kinds())

    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        await self._do("write to", self._put_document, Document(kind, name, body))

    def _put_document(self, document: Document) -> None:
        if self._folder.put_document(document):
            self._bell.ring()

    async def restore(
        self, jobs: Sequence[Stored], history: Sequence[JobEvent], last_seq: int
    ) -> None:
        await self._do("write to", self._restore, tuple(jobs), tuple(history), last_seq)

    def _restore(self, jobs: Sequence[Stored], history: Sequence[JobEvent], last_seq: int) -> None:
        self._folder.restore(jobs, history, last_seq)
        self._bell.ring()

    async def _read(self, look: Callable[[Contents], T]) -> T:
        return await self._do("read", lambda: look(self._folder.contents()))

    async def _do(self, what: str, work: Callable[..., T], *args: object) -> T:
        """Do the work in the thread, in its turn."""
        if self._thread is None:
            raise StoreError(f"{self.path} is not open")
        with _Translated(what, self.path):
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


class _Translated:
    """Makes of every error a StoreError that says what could not be done."""

    def __init__(self, what: str, path: Path) -> None:
        self._what = what
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, JobNotFound):
            return
        if isinstance(error, _FAILURES):
            raise StoreError(f"cannot {self._what} {self._path}: {error}") from error


_FAILURES = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
