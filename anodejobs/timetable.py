"""Timetable: the schedules that are kept, and the jobs that they make when their time comes.

The job of a firing has an id that tells the schedule and the moment, so however often a firing is
seen to, by whomever, it makes one job.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from anodejobs import documents
from anodejobs.errors import AnodeJobsError, InvalidJob
from anodejobs.events import utc_now
from anodejobs.jobdb import JobDB, unstarted
from anodejobs.planner import Planner
from anodejobs.records import JobSpec, Scheduled
from anodejobs.schedules import Schedule, due, next_after

LOG = logging.getLogger("anodejobs")

SCHEDULE: Final = "schedule"
"""The kind of the documents."""
_LONGEST_NAME = 160
_LONGEST_SLEEP_S = 30.0
"""How late a moment may be noticed after somebody has set the clock forward."""
_RETRY_S = 5.0
"""How long a store that could not be written is left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A schedule, what it runs, and how far it has been seen to."""

    name: str
    schedule: Schedule
    spec: dict[str, Any]
    env: dict[str, str]
    until: datetime
    """Firings up to here have been seen to."""
    last_job: str | None = None

    def to_text(self) -> str:
        return documents.encoded(
            {
                "schedule": self.schedule.model_dump(mode="json", exclude_none=True),
                "spec": self.spec,
                "env": self.env,
                "until": self.until.isoformat(),
                "last_job": self.last_job,
            }
        )

    @classmethod
    def from_text(cls, name: str, text: str) -> _Entry:
        kept = documents.decoded(text)
        return cls(
            name=name,
            schedule=Schedule(kept["schedule"]),
            spec=kept["spec"],
            env=kept["env"],
            until=datetime.fromisoformat(kept["until"]),
            last_job=kept["last_job"],
        )

    def told(self) -> Scheduled:
        """Return what is told of it: nothing of the environment."""
        return Scheduled(
            name=self.name,
            schedule=self.schedule.model_dump(mode="json", exclude_none=True),
            command=self.spec["command"],
            next_at=next_after(self.schedule, max(self.until, utc_now())),
            last_job=self.last_job,
        )


class Timetable:
    """Keeps schedules; ``serve`` makes their jobs, in the one process that acts."""

    def __init__(self, jobdb: JobDB, planner: Planner, now: Callable[[], datetime]) -> None:
        self._jobdb = jobdb
        self._planner = planner
        self._now = now
        self._woken = asyncio.Event()

    # Keeping them.

    async def add(self, name: str, spec: JobSpec, schedule: Schedule) -> Scheduled:
        """Keep a schedule, in place of one of that name. Raises InvalidJob."""
        if not 1 <= len(name) <= _LONGEST_NAME:
            raise InvalidJob("name", f"must have 1 to {_LONGEST_NAME} characters")
        plan = self._planner.plan(spec, "submit")  # whatever is wrong with it is to be said now
        now = self._now()
        if schedule.every is not None and schedule.start is None:
            schedule = schedule.model_copy(update={"start": now})
        entry = _Entry(
            name=name,
            schedule=schedule,
            spec={**documents.spec_to_json(spec), "cwd": plan.launch.cwd},
            env=plan.launch.base_env,
            until=now - timedelta.resolution,
        )
        await self._put(entry)
        return entry.told()

    async def remove(self, name: str) -> bool:
        """Forget a schedule; return whether there was one."""
        if name not in await self._jobdb.documents(SCHEDULE):
            return False
        await self._jobdb.put_document(SCHEDULE, name, None)
        self._woken.set()
        return True

    async def all(self) -> dict[str, Scheduled]:
        """Return all schedules by name."""
        return {entry.name: entry.told() for entry in await self._entries()}

    async def _entries(self) -> list[_Entry]:
        kept = await self._jobdb.documents(SCHEDULE)
        return [_Entry.from_text(name, text) for name, text in kept.items()]

    async def _put(self, entry: _Entry) -> None:
        await self._jobdb.put_document(SCHEDULE, entry.name, entry.to_text())
        self._woken.set()

    # Seeing to them.

    def attend(self) -> None:
        """Take note that another process may have changed something."""
        self._woken.set()

    async def serve(self) -> None:
        """Make the jobs that are due, until cancelled."""
        while True:
            self._woken.clear()
            try:
                rest_s = await self._see_to_all()
            except AnodeJobsError as error:
                LOG.error("the schedules wait: %s", error)
                rest_s = _RETRY_S
            try:
                async with asyncio.timeout(rest_s):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _see_to_all(self) -> float | None:
        """Make what is due; return for how many seconds nothing is, None: nothing ever will be."""
        rests: list[float] = []
        for entry in await self._entries():
            now = self._now()
            following = next_after(entry.schedule, entry.until)
            if following is not None and following <= now:
                await self._see_to(entry, now)
                following = next_after(entry.schedule, now)
            if following is not None:
                rests.append((following - self._now()).total_seconds())
        return max(0.0, min(*rests, _LONGEST_SLEEP_S)) if rests else None

    async def _see_to(self, entry: _Entry, now: datetime) -> None:
        # In a thread: after a long pause there may be very many.
        missed = await asyncio.to_thread(due, entry.schedule, entry.until, now)
        if missed.left_out:
            LOG.warning("schedule %s: %s", entry.name, missed.left_out)
        last_job = entry.last_job
        for firing in missed.firings:
            try:
                last_job = await self._fire(entry, firing, last_job)
            except InvalidJob as error:  # it was right when it was kept
                LOG.error("schedule %s: its job cannot be made: %s", entry.name, error)
        kept = await self._jobdb.documents(SCHEDULE)
        if entry.name in kept:  # nobody has removed it meanwhile
            done = dataclasses.replace(entry, until=now, last_job=last_job)
            await self._jobdb.put_document(SCHEDULE, entry.name, done.to_text())

    async def _fire(self, entry: _Entry, firing: datetime, last_job: str | None) -> str | None:
        """Submit the job of a firing, as the schedule allows; return the id of the last job."""
        spec: dict[str, Any] = {**entry.spec, "job_id": f"{entry.name}@{_told(firing)}"}
        last = None if last_job is None else await self._jobdb.get(last_job)
        if last is not None and not last.is_done:
            match entry.schedule.overlap:
                case "skip":
                    LOG.info(
                        "schedule %s: %s still runs; %s is left out", entry.name, last_job, firing
                    )
                    return last_job
                case "queue":
                    depends_on = [*spec.get("depends_on", ()), last_job]
                    spec |= {"depends_on": depends_on, "on_dependency_failure": "run"}
                case "allow":
                    pass
        made = documents.spec_from_json(JobSpec, spec)
        plan = self._planner.plan(made, "submit", base_env=entry.env)
        await self._jobdb.create(plan.record, plan.launch, unstarted(), replace=None)
        return plan.record.self_id


def _told(firing: datetime) -> str:
    firing = firing.astimezone(UTC)
    precision = "microseconds" if firing.microsecond else "seconds"
    return firing.replace(tzinfo=None).isoformat(timespec=precision) + "Z"
