"""Jobs of every kind, what a store may be asked of them, and what plain Python answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from anodejobs.records import ALIVE, Durations, JobFilter, JobRecord, Metrics, Status
from anodejobs.stores.base import Delete, JobStore, Query, Write, as_one
from anodejobs.testing.made import NOON, make_insert, make_launch, make_record, make_save

_TICKS = [NOON + timedelta(microseconds=n) for n in (-1, 0, 1)] + [NOON + timedelta(days=1)]
_TAGS = ["red", "green", "blue", "it's"]
_NAMES = ["", "B", "a", "Ü", "a b", "🚀"]

_FIELDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "nothing, spelled out": dict.fromkeys(JobFilter.model_fields),
    "an id": {"self_id": "ü3"},
    "ids": {"self_id": ["job-1", "Job 2", "unknown", "'%3", "'%3"]},
    "an unknown id": {"self_id": "job-"},
    "no id at all": {"self_id": []},
    "a status": {"status": "running"},
    "statuses": {"status": ["running", "finished", "lost", "running"]},
    "every status": {"status": list(Status)},
    "no status at all": {"status": []},
    "a name": {"name": "a"},
    "an empty name": {"name": ""},
    "names": {"name": ["a", "B", "🚀"]},
    "a user": {"user_id": "u1"},
    "users": {"user_id": ["u1", ""]},
    "a workflow": {"workflow_id": "w1"},
    "workflows": {"workflow_id": ["w1", "w2"]},
    "a batch": {"batch_id": "b1"},
    "batches": {"batch_id": ["b1", "", "unknown"]},
    "no batch at all": {"batch_id": []},
    "a queue": {"queue": "default"},
    "queues": {"queue": ["it's", "q1"]},
    "a status of a batch": {"batch_id": "b1", "status": ["running", "failed", "pending"]},
    "what waits in a queue": {"queue": "q1", "status": ["pending", "queued"]},
    "a tag": {"tags": ["red"]},
    "a tag twice": {"tags": ["red", "red"]},
    "tags": {"tags": ["red", "it's"]},
    "all tags": {"tags": _TAGS},
    "an unknown tag": {"tags": ["red", "re"]},
    "no tag": {"tags": []},
    "created after": {"created_after": NOON},
    "created before": {"created_before": NOON},
    "created between": {"created_after": _TICKS[1], "created_before": _TICKS[3]},
    "created never": {"created_after": _TICKS[3], "created_before": _TICKS[0]},
    "all at once": {
        "self_id": [f"job-{n}" for n in range(12)],
        "status": [s for s in Status if s is not Status.lost],
        "name": ["a", "B", "", "Ü"],
        "user_id": ["u1", "u2", ""],
        "workflow_id": ["w1", "w2"],
        "tags": ["red"],
        "created_after": _TICKS[0],
        "created_before": _TICKS[3],
    },
    "a status of a user": {"user_id": "u1", "status": ["running", "failed"]},
    "tagged statuses": {"tags": ["blue"], "status": list(Status)[:6]},
}
FILTERS = {name: JobFilter(fields) for name, fields in _FIELDS.items()}


def random_fields(rng: random.Random) -> dict[str, Any]:
    """Return fields that tie often, and are often missing."""
    return {
        "created_at": rng.choice(_TICKS),
        "last_update": rng.choice(_TICKS),
        "started_at": rng.choice([None, *_TICKS]),
        "finished_at": rng.choice([None, None, *_TICKS]),
        "name": rng.choice([None, *_NAMES]),
        "user_id": rng.choice([None, "u1", "u2", ""]),
        "workflow_id": rng.choice([None, "w1", "w2"]),
        "batch_id": rng.choice([None, "b1", "b2", ""]),
        "queue": rng.choice(["default", "q1", "it's"]),
        "priority": rng.choice([-(2**63), -1, 0, 20, 2**63 - 1]),
        "tags": rng.sample(_TAGS, rng.randint(0, 4)) * rng.randint(1, 2),
    }


async def put_many(store: JobStore) -> list[JobRecord]:
    """Put in sixty records that tie in everything but their ids."""
    rng = random.Random(0)
    ids = [f"{prefix}{n}" for prefix in ("job-", "Job ", "ü", "'%") for n in range(15)]
    rng.shuffle(ids)
    records = [
        make_record(job_id, status=rng.choice(list(Status)), **random_fields(rng)) for job_id in ids
    ]
    assert None not in await store.commit([make_insert(record) for record in records])
    return records


def expected_page(records: Iterable[JobRecord], query: Query) -> list[JobRecord]:
    """Return the page as plain Python has it."""

    def key(record: JobRecord) -> tuple[bool, Any, str]:
        value = record[query.sort_by]
        return (value is not None, value, record.self_id)

    everything = {record.self_id: record for record in records}
    page = sorted(everything.values(), key=key, reverse=query.descending)
    if query.after is not None:
        page = page[page.index(everything[query.after]) + 1 :]
    page = [record for record in page if query.filter.matches(record)]
    return page[query.offset :][: query.limit]


def expected_counts(records: Iterable[JobRecord], filter: JobFilter) -> dict[Status, int]:
    """Return the counts as plain Python has them."""
    return Counter(record.status for record in records if filter.matches(record))


async def put_varied(store: JobStore) -> list[JobRecord]:
    """Put in jobs that differ in whatever metrics tell apart."""
    rng = random.Random(2)
    records = [
        make_record(
            f"varied-{number}",
            **{
                **random_fields(rng),
                "status": rng.choice(list(Status)),
                "queue": rng.choice(["default", "gpu", "it's"]),
                "priority": rng.choice([-(2**63), 0, 20, 2**63 - 1]),
                "attempt": rng.choice([1, 1, 2, 7]),
            },
        )
        for number in range(80)
    ]
    assert None not in await store.commit([make_insert(record) for record in records])
    return records


def expected_metrics(records: Iterable[JobRecord]) -> Metrics:
    """Return the metrics as plain Python has them."""
    records = list(records)
    took = [
        max(0, (record.finished_at - record.started_at) // timedelta(microseconds=1))
        for record in records
        if record.is_done and record.status is not Status.cancelled
        if record.started_at and record.finished_at
    ]
    return Metrics(
        by_status={status: sum(r.status is status for r in records) for status in Status},
        by_tag=Counter(tag for record in records for tag in set(record.tags)),
        by_queue=Counter(record.queue for record in records),
        by_priority=Counter(record.priority for record in records),
        durations=Durations(
            count=len(took),
            mean=sum(took) / len(took) / 1e6 if took else None,
            max=max(took) / 1e6 if took else None,
        ),
        queue_depth=Counter(r.queue for r in records if r.status is Status.queued),
        occupied_slots=Counter(r.queue for r in records if r.status in ALIVE),
        retries=sum(record.attempt - 1 for record in records),
    )


def random_write(rng: random.Random, record: JobRecord) -> Write:
    """Return a delete, a renewal or a change of the record, in one step or two."""
    status = rng.choice(list(Status))
    if rng.random() < 0.1:
        return Delete(record=record)
    if rng.random() < 0.4:
        launch = make_launch(record.self_id)
        return make_save(record, status=status, launch=launch, **random_fields(rng))
    save = make_save(record, status=status, finished_at=rng.choice(_TICKS))
    if rng.random() < 0.5:
        return save
    return as_one(save, make_save(save.record, status=rng.choice(list(Status))))
