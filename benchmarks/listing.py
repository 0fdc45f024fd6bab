"""What a listing costs with very many records in the store, beside the same with 1,000.

Both stores are filled once, through the store's own batches: jobs that have ended, a second apart,
one in ten of them failed. Each question is asked many times; its figure is the median.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import percentile
from benchmarks.programs import expect
from benchmarks.rounds import Figures, Row, Size, Subject, at_most
from benchmarks.side import prepared_at

if TYPE_CHECKING:
    from anodejobs import Jobs
    from anodejobs.stores.base import Insert

FEW = 1000
PAGE = 50
FAILED_EVERY = 10
FIRST_CREATED_AT = datetime(2026, 1, 1, tzinfo=UTC)

Ask = Callable[["Jobs", int], Awaitable[object]]


async def prepare(place: Path, size: Size) -> Figures:
    """Make the two stores, once for all rounds of both subjects."""
    from benchmarks.made import make_store

    for records in (FEW, size["records"]):
        folder = place / str(records)
        await make_store(folder / "jobs.db", ended_jobs(folder, records))
    return {}


def ended_jobs(folder: Path, records: int) -> Iterator[Insert]:
    from anodejobs.records import Status
    from benchmarks.made import inserts_of

    insert = inserts_of(folder)
    for number in range(records):
        at = FIRST_CREATED_AT + timedelta(seconds=number)
        has_failed = number % FAILED_EVERY == FAILED_EVERY - 1
        fields: dict[str, Any] = {
            "status": Status.failed if has_failed else Status.finished,
            "exit_code": int(has_failed),
            "created_at": at,
            "last_update": at,
            "started_at": at,
            "finished_at": at,
        }
        yield insert(_job_id(number), fields)


def _job_id(number: int) -> str:
    return f"job-{number:07}"


async def _newest(jobs: Jobs, records: int) -> object:
    page = await jobs.list_jobs(sort_by="created_at", sort_order="desc", limit=PAGE)
    expect("newest", page[0].self_id, _job_id(records - 1))
    return page


async def _newest_failed(jobs: Jobs, records: int) -> object:
    page = await jobs.list_jobs(
        sort_by="created_at", sort_order="desc", limit=PAGE, status="failed"
    )
    expect("last of the page", page[-1].self_id, _job_id(records - 1 - (PAGE - 1) * FAILED_EVERY))
    return page


async def _middle(jobs: Jobs, records: int) -> object:
    before = _job_id(records // 2)
    page = await jobs.list_jobs(sort_by="created_at", sort_order="desc", limit=PAGE, after=before)
    expect("first of the page", page[0].self_id, _job_id(records // 2 - 1))
    return page


async def _middle_failed(jobs: Jobs, records: int) -> object:
    before = _job_id(records // 2 - 1)  # a failed one
    page = await jobs.list_jobs(
        sort_by="created_at", sort_order="desc", limit=PAGE, after=before, status="failed"
    )
    expect("first of the page", page[0].self_id, _job_id(records // 2 - 1 - FAILED_EVERY))
    return page


async def _count(jobs: Jobs, records: int) -> None:
    expect("count", await jobs.count(), records)


async def _count_failed(jobs: Jobs, records: int) -> None:
    expect("failed", await jobs.count({"status": "failed"}), records // FAILED_EVERY)


async def _counts(jobs: Jobs, records: int) -> None:
    from anodejobs import Status

    counts = await jobs.counts()
    failed = records // FAILED_EVERY
    expect(
        "failed and finished",
        (counts[Status.failed], counts[Status.finished]),
        (failed, records - failed),
    )


PAGES: dict[str, Ask] = {
    "newest, us": _newest,
    "newest failed, us": _newest_failed,
    "from the middle, us": _middle,
    "failed from the middle, us": _middle_failed,
}
COUNTS: dict[str, Ask] = {
    "all, us": _count,
    "of a status, us": _count_failed,
    "by status, us": _counts,
}


async def many(place: Path, size: Size) -> Figures:
    return await _asked(size["records"], place, size)


async def few(place: Path, size: Size) -> Figures:
    return await _asked(FEW, place, size)


async def _asked(records: int, place: Path, size: Size) -> Figures:
    from anodejobs import Jobs

    folder = prepared_at(place) / str(records)
    async with Jobs(db_path=folder) as jobs:
        return await asked(jobs, COUNTS if size["counts"] else PAGES, records, size["asked"])


async def asked(jobs: Jobs, asks: dict[str, Ask], records: int, times: int) -> Figures:
    """Ask each question so many times; the median of each."""
    return {
        name: await _median_us(functools.partial(ask, jobs, records), times)
        for name, ask in asks.items()
    }


async def _median_us(ask: Callable[[], Awaitable[object]], times: int) -> float:
    await ask()
    took_us = []
    for _ in range(times):
        began = time.perf_counter()
        await ask()
        took_us.append((time.perf_counter() - began) * 1e6)
    return percentile(took_us, 50)


SIDES = {"prepare": prepare, "anodejobs": many, "1,000 records": few}


def _subject(name: str, asks: dict[str, Ask], *, counts: bool) -> Subject:
    return Subject(
        name=name,
        module="listing",
        sides=("anodejobs", "1,000 records"),
        size={"records": 1_000_000, "asked": 300, "counts": counts},
        quick={"records": 3000, "asked": 5, "counts": counts},
        rows=tuple(Row(figure, "1,000 records", at_most(1.5)) for figure in asks),
        is_prepared=True,
    )


SUBJECTS = (
    _subject("page@1M", PAGES, counts=False),
    _subject("counts@1M", COUNTS, counts=True),
)
