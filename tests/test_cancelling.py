"""What becomes of what was asked for when the caller is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from anodejobs import JobRecord, Jobs, SqliteJobStore, Status
from anodejobs.stores.base import Query, Stored, Write

LIMIT_S = 60.0


class Cancelling(SqliteJobStore):
    """Cancels a task as it is asked for something for the nth time."""

    victim: asyncio.Task[Any] | None = None
    left = 0

    async def cancelled_at(self, nth: int, call: Coroutine[Any, Any, object]) -> None:
        """Return when the call, which has begun, is cancelled or over."""

        async def caller() -> None:
            self.victim, self.left = asyncio.current_task(), nth
            await call

        await asyncio.wait((asyncio.create_task(caller()),))

    def _asked(self) -> None:
        if self.victim is not None and self.left == 0:
            self.victim.cancel()
        self.left -= 1

    async def commit(self, writes: Sequence[Write]) -> list[int | None]:
        self._asked()
        return await super().commit(writes)

    async def get(self, job_id: str) -> Stored | None:
        self._asked()
        return await super().get(job_id)

    async def page(self, query: Query) -> list[JobRecord]:
        self._asked()
        return await super().page(query)

    async def documents(self, kind: str) -> dict[str, str]:
        self._asked()
        return await super().documents(kind)

    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        self._asked()
        await super().put_document(kind, name, body)


Call = Callable[[Jobs], Coroutine[Any, Any, object]]
CALLS: dict[str, tuple[Call, str]] = {
    "resume_queue": (lambda jobs: jobs.resume_queue("held"), "held"),
    "schedule": (lambda jobs: jobs.schedule("true", "hourly", every=3600), "hourly@"),
    "submit": (lambda jobs: jobs.submit("true", "new", depends_on=["ended"]), "new"),
    "create_batch": (
        lambda jobs: jobs.create_batch(
            [{"command": "true", "job_id": "new", "depends_on": ["ended"]}], auto_start=True
        ),
        "new",
    ),
    "start": (lambda jobs: jobs.start("created"), "created"),
    "run_template": (lambda jobs: jobs.run_template("of template"), "of template"),
    "submit_template": (lambda jobs: jobs.submit_template("of template"), "of template"),
}
"""By name: something that is asked for, and the beginning of the id of the job that then runs."""


@pytest.mark.parametrize("nth", range(3))
@pytest.mark.parametrize("name", CALLS)
async def test_what_was_asked_for_goes_on_when_the_caller_is_cancelled(
    tmp_path: Path, name: str, nth: int
) -> None:
    call, expected = CALLS[name]
    store = Cancelling(tmp_path / "jobs.db")
    async with asyncio.timeout(LIMIT_S), Jobs(tmp_path, store=store, executor="inline") as jobs:
        await jobs.run("true", "ended")
        await jobs.wait("ended")
        await jobs.pause_queue("held")
        await jobs.submit("true", "held", queue="held")
        await jobs.create("true", "created")
        template = {"name": "of template", "command": "true", "job_id": "of template"}
        await jobs.add_template(template)
        await store.cancelled_at(nth, call(jobs))
        async for event in jobs.events(after=0):
            if (event.job_id or "").startswith(expected) and event.status is Status.finished:
                break


async def test_a_schedule_goes_as_a_whole_when_the_caller_is_cancelled(tmp_path: Path) -> None:
    store = Cancelling(tmp_path / "jobs.db")
    async with asyncio.timeout(LIMIT_S), Jobs(tmp_path, store=store, executor="inline") as jobs:
        await jobs.schedule("true", "hourly", every=3600)
        await store.cancelled_at(0, jobs.unschedule("hourly"))
        await jobs.unschedule("another")  # which has its turn after that
        assert await jobs.schedules() == {}
