"""What a page of records is, in whatever SQL. Pure."""

from __future__ import annotations

from typing import Final

from anodejobs.records import JobFilter
from anodejobs.stores.base import Query

LARGEST: Final = 2**63 - 1
"""As far as databases can count."""
NULLABLE: Final = frozenset({"started_at", "finished_at", "name"})
"""The columns that records are sorted by and that may be missing."""


def column(query: Query) -> str:
    """Return the column that the records are sorted by."""
    return "job_id" if query.sort_by == "self_id" else query.sort_by


def parts(query: Query) -> list[JobFilter]:
    """Return the filters whose pages, all together, have the rows of the query's page.

    Where one of several statuses will do, the index gives each status its own page in order, and
    the page is what comes first in all of them.
    """
    statuses = query.filter.status
    if statuses is None or len(statuses) < 2 or query.limit is None:
        return [query.filter]
    return [query.filter.model_copy(update={"status": [s]}) for s in dict.fromkeys(statuses)]


def limits(query: Query) -> tuple[int, int]:
    """Return how many rows the page has at most, and how many each of its parts must give."""
    limit = LARGEST if query.limit is None else query.limit
    return limit, min(limit + query.offset, LARGEST)
