"""Filters and pages of records as SQL. Pure."""

from __future__ import annotations

import json
from typing import Any

from anodejobs.records import JobFilter
from anodejobs.stores.base import Query
from anodejobs.stores.pages import NULLABLE, column, limits, parts
from anodejobs.stores.rows import RECORD_COLUMNS, micros

TALLY = """
    SELECT NULL, status, queue, priority, count(*), sum(number - 1),
        count(took), coalesce(sum(took), 0), coalesce(max(took), 0)
    FROM (
        SELECT status, queue, priority, number, max(0, finished_at - started_at) AS took FROM jobs
    )
    GROUP BY status, queue, priority
    UNION ALL
    SELECT tag, NULL, NULL, NULL, NULL, NULL, NULL, NULL, count(*) FROM tags GROUP BY tag
"""
"""The fields of each ``Group`` after a NULL; or a tag, and last how many jobs have it.

One statement, which sees all at one moment.
"""


def where(filter: JobFilter) -> tuple[str, tuple[Any, ...]]:
    """Return the WHERE clause of a filter, and its parameters."""
    clauses: list[str] = []
    parameters: list[Any] = []
    for field, allowed in filter.choices():
        if allowed is not None:
            name = "job_id" if field == "self_id" else field
            # One value keeps the order of the index; several are one parameter, however many.
            is_one = len(allowed) == 1
            clauses.append(
                f"{name} = ?" if is_one else f"{name} IN (SELECT value FROM json_each(?))"
            )
            parameters.append(allowed[0] if is_one else json.dumps(allowed))
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


RECORD = f"{RECORD_COLUMNS}, spec"
TURN = (
    "job_id, status, queue, priority, number, revision, last_update, submitted_at, due_at,"
    " json_extract(spec, '$.start_deadline'),"
    " CASE WHEN instr(spec, '\"tags\"') THEN json_extract(spec, '$.tags') END,"
    " CASE status WHEN 'pending' THEN spec END, created_at"
)
"""What ``turn_of`` wants, and what the turns are sorted by.

Most specs name no tags, which is seen sooner than they are looked for.
"""


def page(query: Query, last: Any, columns: str = RECORD) -> tuple[str, tuple[Any, ...]]:
    """Return the statement for a page; ``last`` is the sort value of ``query.after``."""
    key = column(query)
    direction = "DESC" if query.descending else "ASC"
    order = f" ORDER BY {key} {direction}, job_id {direction} LIMIT ?"
    limit, end = limits(query)
    selects: list[str] = []
    parameters: list[Any] = []
    for filter in parts(query):
        clause, values = where(filter)
        parameters += values
        if query.after is not None:
            beyond, boundary = _beyond(key, query, last)
            clause += f" {'AND' if clause else 'WHERE'} {beyond}"
            parameters += boundary
        selects.append(f"SELECT * FROM (SELECT * FROM jobs{clause}{order})")
        parameters.append(end)
    sql = (
        f"SELECT {columns} FROM ({' UNION ALL '.join(selects)})"
        f" JOIN specs USING (job_id){order} OFFSET ?"
    )
    return sql, (*parameters, limit, query.offset)


def _beyond(key: str, query: Query, last: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the condition that a row comes after ``query.after``. NULLs come first in SQLite."""
    compare = "<" if query.descending else ">"
    if last is not None:
        rest = f" OR {key} IS NULL" if query.descending and key in NULLABLE else ""
        return f"(({key}, job_id) {compare} (?, ?){rest})", (last, query.after)
    if query.descending:
        return f"({key} IS NULL AND job_id < ?)", (query.after,)
    return f"({key} IS NOT NULL OR job_id > ?)", (query.after,)
