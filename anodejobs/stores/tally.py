"""What a store counts of its jobs, summed up as metrics. Pure; for every store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from anodejobs.records import ALIVE, Durations, JobRecord, Metrics, Status


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs that have their status, their queue and their priority in common."""

    status: Status
    queue: str
    priority: int
    jobs: int
    retries: int
    """Their attempts after the first."""
    ran: int
    """How many of them have both a start and an end."""
    ran_micros: int
    """How long all of these took, from start to end. One whose end is before its start, as the
    clock was set, took no time."""
    longest_micros: int


def group_of(record: JobRecord) -> Group:
    """Return the group of a single job."""
    began, ended = record.started_at, record.finished_at
    ran = began is not None and ended is not None
    micros = max(0, (ended - began) // timedelta(microseconds=1)) if began and ended else 0
    return Group(
        record.status,
        record.queue,
        record.priority,
        jobs=1,
        retries=record.attempt - 1,
        ran=int(ran),
        ran_micros=micros,
        longest_micros=micros,
    )


def metrics_of(groups: Iterable[Group], by_tag: Mapping[str, int]) -> Metrics:
    """Return what groups come to, of which several may have the same in common."""
    by_status = dict.fromkeys(Status, 0)
    by_priority: Counter[int] = Counter()
    by_queue, queued, under_way = Counter[str](), Counter[str](), Counter[str]()
    retries = ran = ran_micros = longest_micros = 0
    for group in groups:
        by_status[group.status] += group.jobs
        by_priority[group.priority] += group.jobs
        by_queue[group.queue] += group.jobs
        retries += group.retries
        if group.status is Status.queued:
            queued[group.queue] += group.jobs
        elif group.status in ALIVE:
            under_way[group.queue] += group.jobs
        elif group.status.is_terminal and group.status is not Status.cancelled:
            # One that is cancelled has the times of the attempt before the one that was withdrawn.
            ran += group.ran
            ran_micros += group.ran_micros
            longest_micros = max(longest_micros, group.longest_micros)
    return Metrics(
        by_status=by_status,
        by_tag=dict(by_tag),
        by_queue=dict(by_queue),
        by_priority=dict(by_priority),
        durations=Durations(
            count=ran,
            mean=ran_micros / ran / 1e6 if ran else None,
            max=longest_micros / 1e6 if ran else None,
        ),
        queue_depth=dict(queued),
        occupied_slots=dict(under_way),
        retries=retries,
    )
