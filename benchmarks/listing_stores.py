"""What a listing costs in each store, beside the same records in SQLite: 100,000 or ``--records``.

Each side fills its store first, which is not timed. The questions are those of ``listing``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.databases import MYSQL, POSTGRES, own_store
from benchmarks.listing import COUNTS, PAGES, asked, ended_jobs
from benchmarks.rounds import Figures, Row, Size, Subject

if TYPE_CHECKING:
    from anodejobs import JobStore


async def sqlite(place: Path, size: Size) -> Figures:
    from anodejobs import SqliteJobStore

    return await _asked(SqliteJobStore(place / "jobs.db"), place, size)


async def memory(place: Path, size: Size) -> Figures:
    from anodejobs import MemoryJobStore

    return await _asked(MemoryJobStore(), place, size)


async def postgresql(place: Path, size: Size) -> Figures:
    async with own_store(POSTGRES) as store:
        return await _asked(store, place, size)


async def mysql(place: Path, size: Size) -> Figures:
    async with own_store(MYSQL) as store:
        return await _asked(store, place, size)


async def _asked(store: JobStore, place: Path, size: Size) -> Figures:
    from anodejobs import Jobs
    from benchmarks.made import fill

    records = size["records"]
    await fill(store, ended_jobs(place, records))
    async with Jobs(db_path=place / "jobs", store=store) as jobs:
        return await asked(jobs, PAGES | COUNTS, records, size["asked"])


SIDES = {
    "anodejobs": sqlite,
    "anodejobs, PostgreSQL": postgresql,
    "anodejobs, MySQL": mysql,
    "anodejobs, memory": memory,
}

SUBJECTS = (
    Subject(
        name="listing by store@100k",
        module="listing_stores",
        sides=tuple(SIDES),
        size={"records": 100_000, "asked": 30},
        quick={"records": 3000, "asked": 3},
        rows=tuple(
            Row(figure, "anodejobs", ours=side)
            for side in list(SIDES)[1:]
            for figure in (PAGES | COUNTS)
        ),
    ),
)
