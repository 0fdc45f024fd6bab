"""Timetable: the schedules that are kept, and the jobs that they make when their time comes.

The job of a firing has an id that tells the schedule and the moment, so however often a firing is
seen to, by whomever, it makes one job.

What users ask for and how far it has been seen to are documents of their own: whoever replaces a
schedule, in any process, and the one who sees to it never write over each other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from anodejobs import documents
from anodejobs.errors import AnodeJobsError, InvalidJob
from anodejobs.events import utc_now
from anodejobs.jobdb import JobDB, unstarted
from anodejobs.planner import Plan, Planner
from anodejobs.records import JobFilter, JobSpec, Scheduled
from anodejobs.schedules import Schedule, due, next_after
from anodejobs.stores.base import UNFINISHED, Query
from anodejobs.threads import in_thread, made_of_each

LOG = logging.getLogger("anodejobs")

SCHEDULE: Final = "schedule"
"""The kind of the documents that hold what users have asked for."""
PROGRESS: Final = "schedule progress"
"""The kind of those that say how far it has been seen to."""
_LONGEST_NAME = 160
_LONGEST_SLEEP_S = 30.0
"""How late a moment may be noticed after somebody has set the clock forward."""
_LONGEST_WAIT = 100
"""How many jobs of its line one waits for: the oldest, and the last. Each has a link to each."""
_PAGE = 500
_RETRY_S = 1.0
"""How long a store that could not be written is left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A schedule, and what it runs."""

    name: str
    mark: str
    """Tells it from what else there may have been of its name. Those who say the same at the same
    time, as the workers of a server do, say the same schedule."""
    since: datetime
    """From when on it fires. Where several have said it, whoever sees to it has chosen."""
    schedule: Schedule
    spec: dict[str, Any]
    env: dict[str, str]

    @property
    def times(self) -> Schedule:
        """The schedule with the moment from which its intervals are counted."""
        if self.schedule.every is None or self.schedule.start is not None:
            return self.schedule
        return self.schedule.model_copy(update={"start": self.since})

    def to_text(self) -> str:
        return json.dumps(
            {
                "mark": self.mark,
                "since": self.since.isoformat(),
                "schedule": _schedule_to_json(self.schedule),
                "spec": self.spec,
                "env": self.env,
            }
        )

    @classmethod
    def from_text(cls, name: str, text: str) -> _Entry:
        """Return what ``to_text`` has written. Raises InvalidJob, as it may be of another time."""
        try:
            kept = json.loads(text)
            return cls(
                name=name,
                mark=kept["mark"],
                since=datetime.fromisoformat(kept["since"]),
                schedule=Schedule(kept["schedule"]),
                spec={**kept["spec"], "command": kept["spec"]["command"]},
                env=kept["env"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidJob("schedule", f"{name!r} cannot be read: {error!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """How far a schedule has been seen to."""

    mark: str
    """That of the entry."""
    since: datetime
    until: datetime
    """Firings up to here have been seen to."""
    last_job: str | None = None
    line: tuple[str, ...] = ()
    """The jobs that the next one is not to overlap with, oldest first; some may have ended."""
    making: datetime | None = None
    """The firing whose job is being made, and perhaps is there already."""

    def with_job(self, job_id: str) -> _Progress:
        """Return it with one more job."""
        return dataclasses.replace(self, last_job=job_id, line=(*self.line, job_id))

    def to_text(self) -> str:
        return json.dumps(
            {
                "mark": self.mark,
                "since": self.since.isoformat(),
                "until": self.until.isoformat(),
                "last_job": self.last_job,
                "line": self.line,
                "making": self.making and self.making.isoformat(),
            }
        )

    @classmethod
    def of(cls, entry: _Entry, text: str | None) -> _Progress:
        """Return how far the entry is; ``text`` is what is kept of the last one of its name.

        Raises InvalidJob.
        """
        until = entry.since - timedelta.resolution
        start = cls(mark=entry.mark, since=entry.since, until=until)
        if text is None:
            return start
        try:
            kept = json.loads(text)
            last_job = kept["last_job"]
            line = tuple(kept.get("line", () if last_job is None else (last_job,)))
            if kept["mark"] != entry.mark:
                return dataclasses.replace(start, last_job=last_job, line=line)
            return cls(
                mark=entry.mark,
                since=datetime.fromisoformat(kept["since"]),
                until=datetime.fromisoformat(kept["until"]),
                last_job=last_job,
                line=line,
                making=kept["making"] and datetime.fromisoformat(kept["making"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            problem = f"how far {entry.name!r} is cannot be read: {error!r}"
            raise InvalidJob("schedule", problem) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A schedule as it was read from its documents."""

    text: str
    progress_text: str | None
    entry: _Entry
    progress: _Progress
    following: datetime | None
    """When it fires next."""

    @classmethod
    def of(cls, name: str, text: str, progress_text: str | None) -> _Known | None:
        """Return what documents say, None where a newer anodejobs has kept them."""
        try:
            entry = _Entry.from_text(name, text)
            progress = _Progress.of(entry, progress_text)
        except InvalidJob as error:
            LOG.error("%s; it is left out", error)
            return None
        entry = dataclasses.replace(entry, since=progress.since)
        return cls(
            text=text,
            progress_text=progress_text,
            entry=entry,
            progress=progress,
            following=next_after(entry.times, progress.until),
        )

    def told(self) -> Scheduled:
        """Return what is told of it: nothing of the environment."""
        return Scheduled(
            name=self.entry.name,
            schedule=_schedule_to_json(self.entry.times),
            command=self.entry.spec["command"],
            next_at=self.following,
            last_job=self.progress.last_job,
        )


class Timetable:
    """Keeps schedules; ``serve`` makes their jobs, in the one process that acts."""

    def __init__(
        self, jobdb: JobDB, planner: Planner, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._jobdb = jobdb
        self._planner = planner
        self._now = now
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()
        """Held while a job is made and while a schedule goes: none is made after that."""
        self._seen: Mapping[str, str] | None = None
        """The schedules as they were when all of them had been seen to."""
        self._known: dict[str, _Known] = {}
        """What is known of them: to read one costs a thousand times what it costs to keep it."""
        self._next_at: datetime | None = None
        """When there is something to do for these."""

    # Keeping them.

    async def add(self, name: str, spec: JobSpec, schedule: Schedule) -> Scheduled:
        """Keep a schedule, in place of one of that name. Raises InvalidJob.

        One that is there already goes on as it was, with the application's present environment.
        """
        _check(name, spec, schedule)
        plan = self._planner.plan(spec, "submit")
        now = self._now()
        launch = plan.launch
        # What the application says for all its jobs, and not the one that will make this.
        own = {"cwd": launch.cwd, "stop_grace": launch.stop_grace}
        fields = {**documents.spec_to_json(spec), **own}
        entry = _Entry(
            name=name,
            mark=_mark(schedule, fields),
            since=now,
            schedule=schedule,
            spec=fields,
            env=launch.base_env,
        )
        # As it will be read and made: whatever is wrong with it is to be said now.
        self._plan(_Entry.from_text(name, entry.to_text()), now)
        old = await self._find(name)
        if old is not None and old.mark == entry.mark:
            entry = dataclasses.replace(entry, since=old.since)
        elif next_after(entry.times, now - timedelta.resolution) is None:
            field = "end" if schedule.at is None else "at"
            raise InvalidJob(field, "is over: it would never fire")
        text = entry.to_text()
        await self._jobdb.put_document(SCHEDULE, name, text)
        self._woken.set()
        progress = await self._jobdb.documents(PROGRESS)
        known = _Known.of(name, text, progress.get(name)) or _Known.of(name, text, None)
        assert known is not None  # it was read before
        return known.told()

    async def _find(self, name: str) -> _Entry | None:
        text = (await self._jobdb.documents(SCHEDULE)).get(name)
        try:
            return None if text is None else _Entry.from_text(name, text)
        except InvalidJob:
            return None  # it is replaced

    async def remove(self, name: str) -> bool:
        """Forget a schedule; return whether there was one. None of its jobs is made any more."""
        async with self._turn:
            if name not in await self._jobdb.documents(SCHEDULE):
                return False
            await self._jobdb.put_document(SCHEDULE, name, None)
            await self._jobdb.put_document(PROGRESS, name, None)
        self._woken.set()
        return True

    async def all(self) -> dict[str, Scheduled]:
        """Return all schedules by name."""
        kept = await self._jobdb.documents(SCHEDULE)
        progress = await self._jobdb.documents(PROGRESS)
        known = await made_of_each(
            lambda item: _Known.of(*item, progress.get(item[0])), kept.items()
        )
        return {k.entry.name: k.told() for k in known if k is not None}

    # Seeing to them.

    def attend(self) -> None:
        """Take note that another process may have changed something."""
        self._woken.set()

    async def serve(self) -> None:
        """Make the jobs that are due, until cancelled."""
        while True:
            self._woken.clear()
            try:
                rest_s = await self._look()
            except AnodeJobsError as error:
                LOG.error("the schedules wait: %s", error)
                await asyncio.sleep(_RETRY_S)  # what has failed wakes us, too
                continue
            try:
                async with asyncio.timeout(rest_s):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _look(self) -> float | None:
        """Make what is due; return for how many seconds nothing is, None: nothing ever will be."""
        kept = await self._jobdb.documents(SCHEDULE)
        # Others wake us whenever they write anything: mostly there is nothing for us.
        if kept != self._seen or (self._next_at is not None and self._next_at <= self._now()):
            self._seen = None
            self._next_at = await self._see_to_all(kept)
            self._seen = kept
        if self._next_at is None:
            return None
        rest_s = (self._next_at - self._now()).total_seconds()
        return max(0.0, min(rest_s, _LONGEST_SLEEP_S))

    async def _see_to_all(self, kept: Mapping[str, str]) -> datetime | None:
        """Make what is due; return when something is again."""
        moments: list[datetime] = []
        progress = await self._jobdb.documents(PROGRESS)
        for name in progress.keys() - kept.keys():  # it was removed while we saw to it
            await self._jobdb.put_document(PROGRESS, name, None)
        known: dict[str, _Known] = {}
        for name, text in kept.items():
            state = self._known.get(name)
            if state is None or (state.text, state.progress_text) != (text, progress.get(name)):
                state = await self._read(name, text, progress.get(name))
            if state is None:
                continue
            known[name] = state
            following, now = state.following, self._now()
            if following is not None and following <= now:
                await self._see_to(state.entry, text, state.progress, now)
                following = next_after(state.entry.times, now)
            if following is not None:
                moments.append(following)
        self._known = known
        return min(moments, default=None)

    async def _read(self, name: str, text: str, progress_text: str | None) -> _Known | None:
        """Return what documents say; from the first time on, it is on record when they began."""
        await asyncio.sleep(0)  # there may be very many: others have a turn in between
        known = _Known.of(name, text, progress_text)
        if known is None or progress_text == known.progress.to_text():
            return known
        await self._keep(known.entry, known.progress)
        return dataclasses.replace(known, progress_text=known.progress.to_text())

    async def _see_to(self, entry: _Entry, text: str, progress: _Progress, now: datetime) -> None:
        """Make the jobs that are due of one schedule, for as long as this is its text."""
        progress = await self._resumed(entry, progress)
        # In a thread: after a long pause there may be very many.
        missed = await in_thread(due, entry.times, progress.until, now)
        if missed.left_out:
            LOG.warning("schedule %s: %s", entry.name, missed.left_out)
        if missed.firings:
            making = missed.firings[-1]
            await self._keep(entry, dataclasses.replace(progress, making=making))
            line = await self._unfinished(progress.line)
            progress = dataclasses.replace(progress, line=line)
        for firing in missed.firings:
            async with self._turn:
                if (await self._jobdb.documents(SCHEDULE)).get(entry.name) != text:
                    return
                progress = await self._fire(entry, firing, progress)
        await self._keep(entry, dataclasses.replace(progress, until=now, making=None))

    async def _resumed(self, entry: _Entry, progress: _Progress) -> _Progress:
        """Return how far it is where somebody may have died before that was kept."""
        if progress.making is None:
            return progress
        job_id = _job_id(entry, progress.making)
        if await self._jobdb.get(job_id) is None:
            return progress
        return dataclasses.replace(progress.with_job(job_id), until=progress.making)

    async def _keep(self, entry: _Entry, progress: _Progress) -> None:
        await self._jobdb.put_document(PROGRESS, entry.name, progress.to_text())

    async def _unfinished(self, line: Sequence[str]) -> tuple[str, ...]:
        """Return those of the jobs that have not ended."""
        unfinished: set[str] = set()
        for start in range(0, len(line), _PAGE):
            filter = JobFilter(self_id=list(line[start : start + _PAGE]), status=list(UNFINISHED))
            records = await self._jobdb.page(Query(filter=filter))
            unfinished.update(record.self_id for record in records)
        return tuple(job_id for job_id in line if job_id in unfinished)

    async def _fire(self, entry: _Entry, firing: datetime, progress: _Progress) -> _Progress:
        """Submit the job of a firing, as the schedule allows; return how far it is then."""
        overlap = entry.schedule.overlap
        if overlap == "skip" and (running := await self._unfinished(progress.line)):
            LOG.info("schedule %s: %s still runs; %s is left out", entry.name, running[0], firing)
            return progress
        line = progress.line if overlap == "queue" else ()
        try:
            plan = self._plan(entry, firing, line)
        except InvalidJob as error:  # it was right when it was kept
            LOG.error("schedule %s: its job cannot be made: %s", entry.name, error)
            return progress
        # Where there is one of that id, it was made before.
        await self._jobdb.create(plan.record, plan.launch, unstarted(), replace=None)
        return dataclasses.replace(progress, line=line).with_job(plan.record.self_id)

    def _plan(self, entry: _Entry, firing: datetime, line: Sequence[str] = ()) -> Plan:
        """Return the job of a firing, which waits for the end of those in line before it."""
        spec = {**entry.spec, "job_id": _job_id(entry, firing)}
        if line:
            # Not for the last one only: when that is cancelled, those before it may still run.
            awaited = line if len(line) <= _LONGEST_WAIT else (line[0], *line[1 - _LONGEST_WAIT :])
            depends_on = [*spec.get("depends_on", ()), *awaited]
            spec |= {"depends_on": depends_on, "on_dependency_failure": "run"}
        made = documents.spec_from_json(JobSpec, spec)
        return self._planner.plan(made, "submit", base_env=entry.env)


def _check(name: str, spec: JobSpec, schedule: Schedule) -> None:
    """Raise InvalidJob where the three do not go together."""
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME:
        raise InvalidJob("name", f"must have 1 to {_LONGEST_NAME} characters")
    if not name.isprintable():
        raise InvalidJob("name", "must be printable: no control characters")
    if spec.run_at is not None:
        raise InvalidJob("run_at", "is for the schedule to say")
    waits = bool(spec.depends_on) and spec.on_dependency_failure != "run"
    if waits and schedule.overlap == "queue":
        problem = "'queue' can be combined with depends_on only if on_dependency_failure is 'run'"
        raise InvalidJob("overlap", f"{problem}: the job before may have failed")


def _mark(schedule: Schedule, spec: Mapping[str, Any]) -> str:
    said = json.dumps([_schedule_to_json(schedule), spec], sort_keys=True)
    return sha256(said.encode()).hexdigest()


def _schedule_to_json(schedule: Schedule) -> dict[str, Any]:
    return schedule.model_dump(mode="json", exclude_none=True)


def _job_id(entry: _Entry, firing: datetime) -> str:
    firing = firing.astimezone(UTC)
    precision = "microseconds" if firing.microsecond else "seconds"
    return f"{entry.name}@{firing.replace(tzinfo=None).isoformat(timespec=precision)}Z"
