"""Links: which job depends on which, as it is on record."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from anodejobs.errors import DependencyCycle, InvalidJob, InvalidTransition, JobNotFound
from anodejobs.events import Event, Relinked
from anodejobs.jobdb import JobDB
from anodejobs.records import WAITING, JobFilter, JobRecord, Status
from anodejobs.stores.base import Query

_PAGE = 500
"""How many dependents are looked at and released at once."""


class Links:
    """Changes what jobs depend on, and refuses what can never come about."""

    def __init__(self, jobdb: JobDB) -> None:
        self._jobdb = jobdb

    async def add(self, job_id: str, depends_on: str) -> JobRecord:
        """Let a job wait for one more. Raises as ``check``, and InvalidTransition."""
        await self.check(job_id, [depends_on])
        return await self._relink(job_id, lambda awaited: dict.fromkeys((*awaited, depends_on)))

    async def remove(self, job_id: str, depends_on: str) -> JobRecord:
        """Let a job wait for that one no more. Raises InvalidTransition where it has started."""
        return await self._relink(job_id, lambda awaited: (o for o in awaited if o != depends_on))

    async def release(self, job_id: str) -> None:
        """Have nobody wait for a job that has finished: it is about to be there no more.

        Whoever reads the records later would not know that, and count it as one that has failed.
        """
        await self._release(job_id, lambda dependent: True)

    async def settle(self, ended: JobRecord) -> None:
        """Have nobody wait any more to whom the end of a job was good: it is about to be run anew.

        Whoever reads the records later would have them wait for the end of that.
        """
        has_finished = ended.status is Status.finished

        def is_met(dependent: JobRecord) -> bool:
            is_good = has_finished or dependent.on_dependency_failure == "run"
            return is_good and dependent.submitted_at is not None

        await self._release(ended.self_id, is_met)

    async def _release(self, job_id: str, is_met: Callable[[JobRecord], bool]) -> None:
        def released(record: JobRecord) -> Event | None:
            awaited = _awaited(record)
            if job_id not in awaited or not is_met(record):
                return None
            return Relinked(depends_on=tuple(o for o in awaited if o != job_id))

        async def release(dependent: str) -> None:
            with contextlib.suppress(JobNotFound):
                await self._jobdb.apply(dependent, released)

        dependents = await self._jobdb.dependents(job_id)
        for start in range(0, len(dependents), _PAGE):
            # Most may have ended long ago. Together: one by one, each would wait for a commit.
            filter = JobFilter(self_id=dependents[start : start + _PAGE], status=Status.pending)
            found = await self._jobdb.page(Query(filter=filter))
            waiting = [record.self_id for record in found if released(record) is not None]
            await self._jobdb.bring(waiting)
            await asyncio.gather(*map(release, waiting))

    async def _relink(
        self, job_id: str, wanted: Callable[[Sequence[str]], Iterable[str]]
    ) -> JobRecord:
        def relinked(record: JobRecord) -> Event | None:
            # With a later attempt it has started, too, and waits for a retry.
            if record.status not in WAITING or record.attempt > 1:
                raise InvalidTransition(job_id, record.status, Relinked.__name__)
            awaited = _awaited(record)
            links = tuple(wanted(awaited))
            return None if links == awaited else Relinked(depends_on=links)

        return await self._jobdb.apply(job_id, relinked)

    async def check(
        self, job_id: str, depends_on: Iterable[str], known: Collection[str] = ()
    ) -> None:
        """Raise InvalidJob where there is no such job, DependencyCycle where one waits for it.

        Those that are ``known`` are about to be there.
        """
        unseen = [other for other in depends_on if other not in known]
        paths: dict[str, str | None] = dict.fromkeys(unseen)
        found = await self._records(unseen)
        for other in unseen:
            if other not in found:
                raise InvalidJob("depends_on", f"there is no job {other!r}")
        # A chain may be long, and is only looked along where it may lead back to the job.
        if job_id not in found and not (found and await self._jobdb.dependents(job_id)):
            return
        while found and job_id not in paths:
            unseen = []
            for record in found.values():
                fresh = [other for other in _awaited(record) if other not in paths]
                paths.update(dict.fromkeys(fresh, record.self_id))
                unseen += fresh
            found = await self._records(unseen)
        if job_id in paths:  # which need not be there yet: one of that id may have been deleted
            raise DependencyCycle(_path(paths, job_id))

    async def _records(self, job_ids: list[str]) -> dict[str, JobRecord]:
        if not job_ids:
            return {}
        page = await self._jobdb.page(Query(filter=JobFilter(self_id=job_ids)))
        return {record.self_id: record for record in page}


def _awaited(record: JobRecord) -> tuple[str, ...]:
    """Return the jobs that this one waits for: none any more once it is queued.

    What a queued job depends on has ended as it wants. It may have been deleted since, or be run
    anew, so that who looked at it again would take it for something else.
    """
    waits = record.status is Status.pending and record.attempt == 1
    return tuple(record.depends_on) if waits else ()


def _path(paths: Mapping[str, str | None], job_id: str) -> tuple[str, ...]:
    """Return a cycle of dependencies through the job, from whom each one was found by."""
    cycle = [job_id]
    found_by = paths[job_id]
    while found_by is not None:
        cycle.append(found_by)
        found_by = paths[found_by]
    return (job_id, *reversed(cycle[1:]))
