"""Starter: from a plan, or from a job whose turn it is, to an attempt that is about to start.

It puts that on record, in the place of an earlier run where there is one, whose files go when the
attempt starts. How the start goes, and all that comes after, is the watcher's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from anodejobs import faults
from anodejobs.errors import AnodeJobsError, InvalidJob, JobActive, StoreError
from anodejobs.events import Admitted, Attempt
from anodejobs.executors.base import Executor
from anodejobs.jobdb import JobDB, unstarted
from anodejobs.links import Links
from anodejobs.owner import Owner, refuse, resolve
from anodejobs.planner import Place, Plan
from anodejobs.reconciler import Reconciler
from anodejobs.records import JobRecord
from anodejobs.sequels import begun_attempt
from anodejobs.stores.base import Stored
from anodejobs.threads import made_of_each
from anodejobs.watcher import Answer, Opened, Watcher

_RETRY_S = 0.1
"""How long a store is left alone of which nobody knows whether it has kept a start."""
_SETTLING_S = 10.0
"""How long starts that are under way are waited for."""


class Overtaken(AnodeJobsError):
    """A run was to be repeated, and was deleted or run anew, maybe as something else, before."""


class Starter:
    """Puts new runs on record, and has those started that are to start now."""

    def __init__(
        self,
        jobdb: JobDB,
        executor: Executor,
        owner: Owner,
        *,
        watcher: Watcher,
        reconciler: Reconciler,
        links: Links,
        place: Place,
    ) -> None:
        self._jobdb = jobdb
        self._executor = executor
        self._owner = owner
        self._watcher = watcher
        self._reconciler = reconciler
        self._links = links
        self._place = place
        self._is_shared = jobdb.is_shared_by_hosts
        self._admissions: set[Answer] = set()
        """Of queued jobs whose start is not on record yet, or has not been given up."""

    async def start(self, plan: Plan, may_replace: Callable[[JobRecord], bool]) -> JobRecord:
        """Return the record of a new run once its program is exec'd or could not be.

        Where the id has a record that ended and that the run may not replace, that one is
        returned. Raises JobActive, and Overtaken. Cancelling gives up the answer, not the run.
        """
        answer: Answer = asyncio.get_running_loop().create_future()
        if self._is_shared:
            plan = self._place.bring_plan(plan)

        async def opened(attempt: Attempt) -> Opened | None:
            faults.reached("host: a run was asked for")
            refused = await self._executor.prepare()
            recorded = await self._record_first(plan, attempt, may_replace)
            if isinstance(recorded, JobRecord):
                resolve(answer, recorded)
                return None
            return Opened(recorded.record, recorded.launch, refused)

        life = self._watcher.live(plan.launch, opened, answer, is_for_caller=True)
        return await self._owner.answer(answer, life, plan.record.self_id)

    async def enlist(self, plan: Plan, may_replace: Callable[[JobRecord], bool]) -> JobRecord:
        """Return the record of a new run that is not to be started now; else as ``start``."""
        recorded = await self._record_first(plan, unstarted(), may_replace)
        return recorded if isinstance(recorded, JobRecord) else recorded.record

    async def _record_first(
        self, plan: Plan, attempt: Attempt, may_replace: Callable[[JobRecord], bool]
    ) -> Plan | JobRecord:
        """Commit the first record of a run, or return the record that stays in its place.

        Raises JobActive, and Overtaken.
        """
        job_id, launch = plan.record.self_id, plan.launch
        old = plan.renews
        while True:
            if old is not None:
                if not old.record.is_done:
                    raise JobActive(job_id, old.record.status)
                if not may_replace(old.record):
                    return old.record
                await self._links.settle(old.record)
                launch = replace(plan.launch, earlier=_left_attempts(old))
            replaced = None if old is None else old.record
            record = await self._jobdb.create(plan.record, launch, attempt, replace=replaced)
            if record is not None:
                return Plan(record=record, launch=launch)
            old = await self._jobdb.find(job_id)
            if plan.renews is not None and (old is None or old.record.is_done):
                raise Overtaken(job_id)

    async def enlist_all(self, plans: Sequence[Plan]) -> None:
        """Record new jobs that are not to be started now, all or none. Raises InvalidJob."""
        jobs = await made_of_each(_unstarted, plans)
        while not await self._jobdb.create_all(jobs):
            for plan in plans:
                if await self._jobdb.get(plan.record.self_id) is not None:
                    raise InvalidJob("job_id", f"there is a job {plan.record.self_id!r} already")

    def admit(
        self, job_id: str, revision: int, on_refusal: Callable[[BaseException], None]
    ) -> None:
        """Start the next attempt of a queued job, if this is still the revision of its record.

        ``on_refusal`` is called where that is not on record, with the reason.
        """
        answer: Answer = asyncio.get_running_loop().create_future()
        life = self._admitted_life(job_id, revision, answer, on_refusal)
        self._owner.own_life(life, job_id)
        self._admissions.add(answer)
        answer.add_done_callback(self._admissions.discard)

    async def _admitted_life(
        self,
        job_id: str,
        revision: int,
        answer: Answer,
        on_refusal: Callable[[BaseException], None],
    ) -> None:
        is_doubtful = False

        async def opened(attempt: Attempt) -> Opened:
            nonlocal is_doubtful
            refused = await self._executor.prepare()
            faults.reached("host: a job was admitted")
            try:
                admitted = await self._admit(job_id, revision, attempt)
            except StoreError:
                is_doubtful = True
                raise
            return Opened(admitted.record, admitted.launch, refused)

        try:
            stored = await self._jobdb.about_to_start(job_id)
        except AnodeJobsError as error:
            refuse(answer, error)
        else:
            await self._watcher.live(stored.launch, opened, answer, is_for_caller=False)
        refusal = answer.exception() if answer.done() else None
        if refusal is not None:
            on_refusal(refusal)
        if is_doubtful:  # should it be on record all the same, then we are to do it
            await asyncio.sleep(_RETRY_S)
            await self._reconciler.reconcile_soon()

    async def _admit(self, job_id: str, revision: int, attempt: Attempt) -> Stored:
        place = self._place
        if not self._is_shared:
            admitted = Admitted(attempt=attempt, host=place.host)
            return await self._jobdb.admit(job_id, admitted, revision=revision)
        admitted = Admitted(
            attempt=attempt, host=place.host, dirname=place.dirname, logdir=place.logdir
        )
        return await self._jobdb.admit(job_id, admitted, place.bring, revision=revision)

    async def watch_for_newer(self) -> None:
        """Raise Superseded once what is to start is for a newer anodejobs to start."""
        await self._executor.watch_for_newer()

    async def settle(self) -> None:
        """Return when every admitted job is on record as started, or is not to be started.

        Or when that takes too long.
        """
        if self._admissions:
            await asyncio.wait(self._admissions, timeout=_SETTLING_S)


def _unstarted(plan: Plan) -> Stored:
    return Stored(record=plan.record, launch=plan.launch, attempt=unstarted())


def _left_attempts(old: Stored) -> int:
    """Return of how many attempts there may be files: of the run, and of earlier ones.

    The first attempt of a run has removed those.
    """
    if old.record.attempt == 1 and begun_attempt(old.record) == 1:
        return 1
    return max(old.launch.earlier, old.record.attempt)
