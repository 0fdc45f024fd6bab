"""What has become of the jobs of the chaos, and whether that may be.

What happened to each job is read through ``Jobs`` and from the file to which it adds a line when
it starts. Some of it must never be; some only where the shim was killed, which is the only one to
know how a job ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from anodejobs import JobEvent, JobRecord, Jobs, Status
from benchmarks.chaos_jobs import Plan, compare

_KNOWN_ONLY_TO_THE_SHIM = frozenset(
    {"lost codes", "bytes lost", "jobs with bytes lost", "never started"}
)
MEASURES = (
    "lost codes",
    "lost codes that could be known",
    "wrong codes",
    "bytes lost",
    "jobs with bytes lost",
    "jobs with bytes lost that do not say so",
    "log bytes out of order",
    "double starts",
    "never started",
    "jobs stopped by us",
    "events on record twice",
    "not on record, or not as ended",
    "processes left",
    "shims left",
    "errors in the log of a shim or a host",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known of one job in the end."""

    plan: Plan
    record: JobRecord | None
    log: bytes
    starts: int
    events: list[JobEvent]

    def __str__(self) -> str:
        record = self.record
        told = f"{record.status}, {record.exit_code}, {record.error}" if record else "no record"
        events = "; ".join(f"{e.at:%H:%M:%S.%f} {e.status} {e.why or ''}" for e in self.events)
        wanted = f"exit code {self.plan.exit_code}, {self.plan.lines} lines"
        return f"{self.plan.job_id} ({wanted}): {told}; {self.starts} starts; {events}"


@dataclass(slots=True)
class Findings:
    """How much of each measure was found, and in which jobs."""

    shim_was_killed: bool
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0))
    details: dict[str, list[str]] = field(default_factory=dict)

    def add(self, measure: str, count: int, detail: object) -> None:
        if count:
            self.counts[measure] += count
            self.details.setdefault(measure, []).append(str(detail))

    def may_be(self, measure: str) -> bool:
        return self.shim_was_killed and measure in _KNOWN_ONLY_TO_THE_SHIM

    @property
    def forbidden(self) -> list[str]:
        """The measures that have to be 0 and are not."""
        return [m for m, count in self.counts.items() if count and not self.may_be(m)]

    def consider(self, seen: Seen, survivors: Collection[str]) -> None:
        """Count what is wrong with a job, which may be one that was seen to survive a shim."""
        for measure, count in _wrongs(seen, survivors):
            self.add(measure, count, seen)


async def look(place: Path, plans: list[Plan], store: str | None = None) -> list[Seen]:
    """Read what is on record of each job."""
    async with Jobs(db_path=place / "db", store=store) as jobs:
        return [await _look_at(jobs, place, plan) for plan in plans]


async def clear(place: Path, store: str) -> None:
    """Have no job on record in a store that is not the directory's own."""
    async with Jobs(db_path=place / "db", store=store) as jobs:
        await jobs.cleanup(0)


async def _look_at(jobs: Jobs, place: Path, plan: Plan) -> Seen:
    side = place / "side" / plan.job_id
    starts = side.read_bytes().count(b"\n") if side.exists() else 0
    record = await jobs.get_status(plan.job_id)
    if record is None:
        return Seen(plan, None, b"", starts, [])
    log, _ = await jobs.job_logs(plan.job_id)
    return Seen(plan, record, log.encode(), starts, await jobs.history(plan.job_id))


def _wrongs(seen: Seen, survivors: Collection[str]) -> Iterator[tuple[str, int]]:
    record = seen.record
    if record is None or not record.is_done:
        yield "not on record, or not as ended", 1
        return
    is_lost = record.status is Status.lost and record.exit_code is None
    was_stopped = any(event.status is Status.stopping for event in seen.events)
    yield "lost codes", is_lost
    had_started = seen.events[-1].previous is not Status.starting
    was_held = had_started and seen.plan.job_id in survivors
    yield "lost codes that could be known", is_lost and was_held
    yield "wrong codes", not is_lost and not _is_right(seen.plan, record)
    yield "double starts", max(0, seen.starts - 1)
    yield "never started", seen.starts == 0
    yield "jobs stopped by us", was_stopped or record.status is Status.stopped
    yield "events on record twice", len(seen.events) - len({(e.at, e.why) for e in seen.events})
    if seen.starts:
        lost, disordered = compare(seen.log, seen.plan.log())
        says_so = any("gap" in (event.why or "") for event in seen.events)
        yield "bytes lost", lost
        yield "jobs with bytes lost", lost > 0
        yield "jobs with bytes lost that do not say so", lost > 0 and not says_so
        yield "log bytes out of order", disordered


def _is_right(plan: Plan, record: JobRecord) -> bool:
    status = Status.finished if plan.exit_code == 0 else Status.failed
    return (record.status, record.exit_code) == (status, plan.exit_code)
