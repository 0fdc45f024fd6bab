"""What tests of stores are made with: records, launches, attempts, and the writes with them.

Knows no store, and no test.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from anodejobs.events import Attempt
from anodejobs.executors.base import Launch, LogPlan, new_token
from anodejobs.records import AttemptRecord, JobRecord, Status
from anodejobs.stores.base import Insert, Save

NOON = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)


def make_record(self_id: str = "a-job", **fields: Any) -> JobRecord:
    """Return the record of a running job; ``fields`` are those of ``JobRecord``."""
    status = Status(fields.pop("status", Status.running))
    usual = {"status": status, "reached": [status], "created_at": NOON, "last_update": NOON}
    return JobRecord({"self_id": self_id, **usual, **fields})


def make_launch(job_id: str = "a-job", **fields: Any) -> Launch:
    """Return what starts ``true``; ``fields`` are those of ``Launch``."""
    usual: dict[str, Any] = {
        "argv": ("true",),
        "cwd": "/",
        "base_env": {"PATH": "/usr/bin:/bin"},
        "envs": {},
        "logs": LogPlan(stdout="/nowhere/out.txt", stderr="/nowhere/errors.txt"),
        "stop_grace": 10.0,
    }
    return Launch(job_id=job_id, **{**usual, **fields})


def make_attempt(**fields: Any) -> Attempt:
    """Return an attempt nobody else has; ``fields`` are those of ``Attempt``."""
    return Attempt(**{"token": new_token(), "supervisor": "nobody", **fields})


def make_insert(record: JobRecord, *, why: str | None = None, **launch: Any) -> Insert:
    """Return the first write for a record; ``launch`` are fields of its ``Launch``."""
    return Insert(
        record=record,
        launch=make_launch(record.self_id, **launch),
        attempt=make_attempt(),
        why=why,
    )


def make_save(
    record: JobRecord,
    *,
    launch: Launch | None = None,
    attempt: Attempt | None = None,
    why: str | None = None,
    ended: AttemptRecord | None = None,
    is_respecified: bool = False,
    **changes: Any,
) -> Save:
    """Return the write that makes the changes to a record."""
    following = record.model_copy(update={"revision": record.revision + 1, **changes})
    return Save(
        record=following,
        previous=record.status,
        launch=launch,
        attempt=attempt,
        why=why,
        ended=ended,
        is_respecified=is_respecified,
    )


def make_inserts(*job_ids: str) -> tuple[Insert, ...]:
    """Return inserts for pending jobs that have a tag and a dependency."""
    fields = {"status": "pending", "tags": ["new"], "depends_on": ["needed"]}
    return tuple(make_insert(make_record(i, **fields), why=f"why {i}") for i in job_ids)


def full_insert() -> Insert:
    """Return the first write for a record, in which every field is set, of all three."""
    return Insert(record=full_record(), launch=_full_launch(), attempt=_full_attempt())


def full_record() -> JobRecord:
    """Return a record in which every field is set."""
    record = make_record(
        status="stopped",
        last_pid=4711,
        dirname="/srv/jobs",
        cwd="/srv/Wörk dir",
        logdir="/srv/jobs/job_logs",
        logfile="a%2Fjob",
        command=["sh", "-c", "echo 'ünïcødé' \"$1\"\n", ""],
        name="Náme",
        description="two\nlines",
        tags=["b", "a", "ü"],
        metadata={"deep": [{"er": None}, 1.5, True, "x"], "": {}},
        user_id="u1",
        workflow_id="w1",
        batch_id="b1",
        payload={"deep": [{"er": None}, 1.5, True, "ü"], "": []},
        result=[{"r": 0}],
        progress=0.1,
        priority=-(2**63),
        queue="it's a Queue",
        depends_on=["z", "../../ü", "a"],
        on_dependency_failure="hold",
        run_at=NOON + timedelta(microseconds=5),
        start_deadline=0.1,
        submitted_at=NOON + timedelta(microseconds=3),
        due_at=NOON + timedelta(microseconds=7),
        attempt=2,
        max_retries=3,
        retry={"kind": "exponential", "initial": 0.1, "exit_codes": [-9, 3]},
        restart="on-failure",
        restart_policy={"when": "on-failure", "limit": None},
        limits={"memory_bytes": 2**40},
        timeout=0.1,
        started_at=NOON + timedelta(microseconds=1),
        finished_at=NOON + timedelta(days=1),
        exit_code=-9,
        evidence="adopted",
        error="killed by SIGKILL",
        cpu_seconds=0.1,
        peak_memory_bytes=2**40,
        host="host",
        reached=["starting", "running", "stopping", "stopped"],
    )
    unset = set(JobRecord.model_fields) - record.model_fields_set - {"revision"}
    assert not unset, f"not every field is tried: {unset}"
    return record


def _full_launch() -> Launch:
    return make_launch(
        argv=("sh", "-c", "exit 3", "", os.fsdecode(b"\xff")),
        cwd=os.fsdecode(b"/srv/\xff"),
        base_env={"HOME": "/root"},
        envs={"A": "b"},
        logs=LogPlan(stdout="/srv/out.txt", stderr="/srv/ü/err.txt", max_bytes=5, backups=3),
        timeout=1.5,
        stop_grace=0.0,
        start_grace=2.25,
        leftovers="leave",
    )


def _full_attempt() -> Attempt:
    return make_attempt(
        supervisor="host:1",
        pid=4711,
        start_time=1234567.89,
        boot_id="b00t",
        started_monotonic=0.1,
        pipes=(2**40, 3),
        cgroup="/sys/fs/cgroup/ä",
    )
