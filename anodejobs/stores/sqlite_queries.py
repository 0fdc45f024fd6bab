"""Filters and pages of records as SQL. Pure."""

from __future__ import annotations

from typing import Any

from anodejobs.records import JobFilter
from anodejobs.stores.base import Query
from anodejobs.stores.sqlite_writes import micros


def where(filter: JobFilter) -> tuple[str, tuple[Any, ...]]:
    """Return the WHERE clause of a filter, and its parameters."""
    clauses: list[str] = []
    parameters: list[Any] = []
    for field, allowed in filter.choices():
        if allowed is not None:
            column = "job_id" if field == "self_id" else field
            clauses.append(f"{column} IN ({', '.join('?' * len(allowed))})")
            parameters += allowed
    for tag in filter.tags or ():
        clauses.append("job_id IN (SELECT job_id FROM tags WHERE tag = ?)")
        parameters.append(tag)
    if filter.created_after is not None:
        clauses.append("created_at >= ?")
        parameters.append(micros(filter.created_after))
    if filter.created_before is not None:
        clauses.append("created_at < ?")
        parameters.append(micros(filter.created_before))
    return (f" WHERE {' AND '.join(clauses)}" if clauses else ""), tuple(parameters)


def page(query: Query, last: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the statement for a page; ``last`` is the sort value of ``query.after``.

    Where one of several statuses will do, the index gives each status its own page in order, and
    the page is what comes first in all of them.
    """
    column = "job_id" if query.sort_by == "self_id" else query.sort_by
    direction = "DESC" if query.descending else "ASC"
    order = f" ORDER BY {column} {direction}, job_id {direction} LIMIT ?"
    end = -1 if query.limit is None else query.limit + query.offset

    statuses = query.filter.status
    split = statuses is not None and len(statuses) > 1 and query.limit is not None
    filters = (
        [query.filter.model_copy(update={"status": [s]}) for s in dict.fromkeys(statuses or ())]
        if split
        else [query.filter]
    )
    selects: list[str] = []
    parameters: list[Any] = []
    for filter in filters:
        clause, values = where(filter)
        parameters += values
        if query.after is not None:
            beyond, boundary = _beyond(column, query, last)
            clause += f" {'AND' if clause else 'WHERE'} {beyond}"
            parameters += boundary
        selects.append(f"SELECT * FROM (SELECT * FROM jobs{clause}{order})")
        parameters.append(end)
    sql = f"SELECT record FROM ({' UNION ALL '.join(selects)}){order} OFFSET ?"
    limit = -1 if query.limit is None else query.limit
    return sql, (*parameters, limit, query.offset)


_NULLABLE = {"started_at", "finished_at", "name"}


def _beyond(column: str, query: Query, last: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the condition that a row comes after ``query.after``. NULLs come first in SQLite."""
    compare = "<" if query.descending else ">"
    if last is not None:
        rest = f" OR {column} IS NULL" if query.descending and column in _NULLABLE else ""
        return f"(({column}, job_id) {compare} (?, ?){rest})", (last, query.after)
    if query.descending:
        return f"({column} IS NULL AND job_id < ?)", (query.after,)
    return f"({column} IS NOT NULL OR job_id > ?)", (query.after,)
