"""A history carried over from one store to another, checked when it is there.

It goes page by page along the history, and each page is one commit of the target with the jobs
whose first event it has. So the target's own history says how far it has come, whatever happens.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Final

from anodejobs.errors import JobActive, StoreError
from anodejobs.records import ALIVE, JobEvent, JobFilter
from anodejobs.stores import from_url, sqlite_store
from anodejobs.stores.base import JobStore, Stored
from anodejobs.stores.rows import fact_columns, key_columns, spec_of
from anodejobs.stores.write_rows import event_row

__all__ = ["AnyStore", "Migrated", "migrate"]

AnyStore = JobStore | str | os.PathLike[str]
"""A store, the URL of one, or the ``db_path`` of a ``Jobs`` that has its records in SQLite."""

OnProgress = Callable[[int, int], object]

_PAGE: Final = 500
"""Events, and at most so many jobs, that are in memory at once."""
_SCHEME: Final = re.compile(r"(file|memory|sqlite|postgres(ql)?|mysql|mariadb)(\+\w+)?:")
_MARK: Final = "migration"
"""The kind of the document that a target has until everything is there and was checked."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a target has now, as its source does: how many, and the SHA-256 of all of them."""

    jobs: int
    events: int
    documents: int
    checksums: dict[str, str]
    """Of ``jobs``, ``events`` and ``documents``, in the order of the history or by name."""


async def migrate(
    source: AnyStore, target: AnyStore, *, on_progress: OnProgress | None = None
) -> Migrated:
    """Copy all that a store has to an empty one, and return what was found equal in both.

    That is every job with what starts it again, its whole history under the same ``seq``, and
    schedules, templates and paused queues. The files of the jobs stay where they are, so keep
    the ``db_path``: ``Jobs(db_path, store=target)``. Each store is a ``JobStore`` that
    is not open, a URL, or the ``db_path`` of a ``Jobs``; it is closed afterwards.

    The source is only read, and nobody must use either store meanwhile. A job that is under way
    raises JobActive, for its end would be recorded in only one of the two: stop it or wait for it
    first. Jobs that wait go over and take their turn in the target; do not use the source again.

    Killed or cancelled, it goes on where it was when it is called again; until then the target is
    not to be used. Where the target has everything already, it is only compared. ``on_progress``
    is called with how much is done of how much; memory is that of a few hundred jobs.

    Raises StoreError where the target has something else, where the source has changed meanwhile,
    or where, after all, the two are not equal: it names the first job or document that differs.
    """
    if source == target:
        raise StoreError("source and target are the same store")
    async with AsyncExitStack() as stack:
        before = await stack.enter_async_context(_opened(source, is_source=True))
        after = await stack.enter_async_context(_opened(target))
        return await _Migration(before, after, on_progress or _ignored).run()


class _Migration:
    """From one open store to another."""

    def __init__(self, source: JobStore, target: JobStore, on_progress: OnProgress) -> None:
        self._source = source
        self._target = target
        self._on_progress = on_progress
        self._last_seq = 0

    async def run(self) -> Migrated:
        source, target = self._source, self._target
        for active in await source.unfinished(ALIVE):
            raise JobActive(active.job_id, active.status)
        if await source.documents(_MARK):
            raise StoreError("the source is itself a copy that is not complete: go on with that")
        self._last_seq = await source.last_seq()
        mark = await _extent(source)
        if await self._is_to_be_filled(mark):
            await target.put_document(_MARK, "source", mark)
            await self._copy()
            await target.close()  # what is compared is what it has on disk
            await target.open(_ignored)
        migrated = await self._compare()
        if await _extent(source) != mark:
            raise StoreError("the source has been used meanwhile; empty the target and begin anew")
        if await _extent(target) != mark or await _jobs(source) != migrated.jobs:
            raise StoreError(
                f"the source has {mark}, the target {await _extent(target)}, and "
                f"{migrated.jobs} of the jobs were found by the history of both"
            )
        if await target.documents(_MARK):
            await target.put_document(_MARK, "source", None)
        self._tell(2 * self._last_seq)
        return migrated

    async def _is_to_be_filled(self, mark: str) -> bool:
        """Return whether anything may be missing in the target. Raises StoreError: it is used."""
        target = self._target
        if begun := await target.documents(_MARK):
            if begun.get("source") == mark:
                return True
            raise StoreError(
                "the target has a part of another source, or of this one before it was used "
                "again; empty the target and begin anew"
            )
        if not await target.last_seq() and not await target.document_kinds():
            return True
        if await _extent(target) == mark:
            return False
        raise StoreError("the target has jobs, schedules or templates already; it must be empty")

    async def _copy(self) -> None:
        source, target = self._source, self._target
        done = await target.last_seq()
        async for events in _pages(source, done, self._last_seq):
            done = events[-1].seq
            await target.restore(await _begun(source, events), events, done)
            self._tell(done)
        if done < self._last_seq:
            await target.restore([], [], self._last_seq)
        for kind in await source.document_kinds():
            for name, body in (await source.documents(kind)).items():
                await target.put_document(kind, name, body)

    async def _compare(self) -> Migrated:
        """Return what both stores have. Raises StoreError where that is not the same."""
        source, target = self._source, self._target
        jobs, history, documents = _Comparison("job"), _Comparison("job"), _Comparison("document")
        after = 0
        async for events in _pages(source, 0, self._last_seq):
            told = await target.history(after=after, limit=len(events))
            history.take(map(_event_text, events), map(_event_text, told))
            first, second = await _begun(source, events), await _begun(target, events)
            jobs.take(_job_texts(first), _job_texts(second))
            after = events[-1].seq
            self._tell(self._last_seq + after)
        history.take([], map(_event_text, await target.history(after=after, limit=1)))
        for kind in sorted({*await source.document_kinds(), *await target.document_kinds()}):
            if kind != _MARK:
                mine, theirs = await source.documents(kind), await target.documents(kind)
                documents.take(_document_texts(kind, mine), _document_texts(kind, theirs))
        return Migrated(
            jobs=jobs.count,
            events=history.count,
            documents=documents.count,
            checksums={
                "jobs": jobs.checksum(),
                "events": history.checksum(),
                "documents": documents.checksum(),
            },
        )

    def _tell(self, done: int) -> None:
        """Say how far it is: every event is copied, and is compared."""
        self._on_progress(done, 2 * self._last_seq)


_Text = tuple[str, str]
"""The name of something, and all of it as text, the same whichever store it is from."""


class _Comparison:
    """What is in both stores: how much, and the checksum of it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._digest = hashlib.sha256()
        self.count = 0

    def take(self, ours: Iterable[_Text], theirs: Iterable[_Text]) -> None:
        """Count what both have. Raises StoreError where that is not the same."""
        for one, other in zip_longest(ours, theirs):
            if one != other:
                ((name, _), *_) = filter(None, (one, other))
                raise StoreError(f"{self._what} {name!r} is not the same in source and target")
            self._digest.update(f"{one[1]}\n".encode())
            self.count += 1

    def checksum(self) -> str:
        """Return the checksum of all that was taken."""
        return self._digest.hexdigest()


def _event_text(event: JobEvent) -> _Text:
    return event.job_id or "", json.dumps(event_row(event))


def _job_texts(jobs: Iterable[Stored]) -> Iterator[_Text]:
    environments: dict[int, str] = {}  # mostly one, and of a few thousand bytes
    for job in jobs:
        record, env = job.record, job.launch.base_env
        if id(env) not in environments:
            environments[id(env)] = json.dumps(env, sort_keys=True)
        columns = (*key_columns(record), *fact_columns(record), spec_of(record))
        launch = replace(job.launch, envs=dict(sorted(job.launch.envs.items())))
        started = (launch.to_text(), environments[id(env)], job.attempt.to_text())
        yield record.self_id, json.dumps((*columns, *started))


def _document_texts(kind: str, documents: Mapping[str, str]) -> Iterator[_Text]:
    for name, body in sorted(documents.items()):
        yield f"{kind} {name}", json.dumps((kind, name, body))


async def _pages(store: JobStore, after: int, until: int) -> AsyncIterator[list[JobEvent]]:
    """Give the history up to a ``seq``: what comes after that is not to be, and might never end."""
    while after < until:
        found = await store.history(after=after, limit=_PAGE)
        events = [event for event in found if event.seq <= until]
        if not events:
            return
        yield events
        after = events[-1].seq


async def _begun(store: JobStore, events: Sequence[JobEvent]) -> list[Stored]:
    """Return the jobs of which these are the first events, in their order."""
    job_ids = [event.job_id for event in events if event.previous is None and event.job_id]
    found = {job.record.self_id: job for job in await store.get_all(job_ids)}
    return [found[job_id] for job_id in job_ids if job_id in found]


async def _jobs(store: JobStore) -> int:
    return sum((await store.count(JobFilter())).values())


async def _extent(store: JobStore) -> str:
    """Return how much the store has, so that it is another text once that is used."""
    return f"{await _jobs(store)} jobs and {await store.last_seq()} changes of status"


@asynccontextmanager
async def _opened(given: AnyStore, *, is_source: bool = False) -> AsyncIterator[JobStore]:
    store = _store(given)
    path = getattr(store, "path", None)
    if is_source and isinstance(path, Path) and not path.exists():
        raise StoreError(f"there is nothing at {path}")  # and what is opened would be made
    try:
        await store.open(_ignored)
        yield store
    finally:
        await store.close()


def _store(given: AnyStore) -> JobStore:
    if isinstance(given, JobStore):
        return given
    if isinstance(given, str) and _is_url(given):
        return from_url(given)
    return sqlite_store(Path(given) / "jobs.db", durability="process")


def _is_url(text: str) -> bool:
    # One that is mistyped, too: as a path it would be told, or made, with the password in it.
    return "://" in text or bool(_SCHEME.match(text))


def _ignored(*_: object) -> None:
    """Do nothing."""
