"""Records of jobs that never ran, as the store is handed them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from anodejobs.events import Attempt
from anodejobs.executors.base import Launch, LogPlan
from anodejobs.records import JobRecord, Status
from anodejobs.stores.base import Insert, JobStore
from anodejobs.stores.sqlite import SqliteJobStore

BATCH = 5000


async def make_store(path: Path, inserts: Iterable[Insert]) -> None:
    """Make a store of these, in large batches."""
    _make_folder(path.parent)
    await fill(SqliteJobStore(path), inserts)


async def fill(store: JobStore, inserts: Iterable[Insert]) -> None:
    """Put these into a store that is not open, in large batches."""
    await store.open(lambda: None)
    try:
        batch: list[Insert] = []
        for insert in inserts:
            batch.append(insert)
            if len(batch) == BATCH:
                await store.commit(batch)
                batch = []
        await store.commit(batch)
    finally:
        await store.close()


def inserts_of(folder: Path) -> Callable[[str, dict[str, Any]], Insert]:
    """What makes the Insert of a job with this id and these fields; the rest is the same for all.

    ``model_copy`` checks nothing, which is what makes a million of them bearable.
    """
    argv = ["/bin/true"]
    logs = LogPlan(stdout=str(folder / "x_out.txt"), stderr=str(folder / "x_errors.txt"))
    launch = Launch(
        job_id="x",
        argv=tuple(argv),
        cwd="/",
        base_env={},
        envs={},
        logs=logs,
        stop_grace=10.0,
    )
    attempt = Attempt(token="0" * 32, supervisor="benchmarks")
    model = JobRecord(self_id="x", status=Status.running, command=argv, cwd="/", logdir=str(folder))

    def insert(job_id: str, fields: dict[str, Any]) -> Insert:
        record = model.model_copy(update={"self_id": job_id, "logfile": job_id, **fields})
        return Insert(record=record, launch=launch, attempt=attempt)

    return insert


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
