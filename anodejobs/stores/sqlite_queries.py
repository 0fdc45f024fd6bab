"""Filters and pages of records as SQL. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
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
        name = "job_id" if field == "self_id" else field
        if len(allowed) == 1:  # which keeps the order of the index
            clauses.append(f"{name} = ?")
            parameters.append(allowed[0])
        else:
            clause, values = among(name, allowed)
            clauses.append(clause)
            parameters += values
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


def among(column: str, values: Sequence[str]) -> tuple[str, list[str]]:
    """Return the condition that a column has one of the values, and its parameters.

    All values are one parameter, however many, but for those that SQLite does not read from JSON
    as they are.
    """
    kept = [value for value in values if _can_be_kept(value)]
    cut = [value for value in kept if "\0" in value]
    more = f" UNION ALL VALUES {', '.join(['(?)'] * len(cut))}" if cut else ""
    whole = json.dumps([value for value in kept if "\0" not in value])
    return f"{column} IN (SELECT value FROM json_each(?){more})", [whole, *cut]


def _can_be_kept(text: str) -> bool:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # two of these would be read as one sign
            return False
    return True


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
    for filter, (beyond, boundary) in product(parts(query), _beyond(key, query, last)):
        clause, values = where(filter)
        if beyond:
            clause += f" {'AND' if clause else 'WHERE'} {beyond}"
        selects.append(f"SELECT * FROM (SELECT * FROM jobs{clause}{order})")
        parameters += [*values, *boundary, end]
    sql = (
        f"SELECT {columns} FROM ({' UNION ALL '.join(selects)})"
        f" JOIN specs USING (job_id){order} OFFSET ?"
    )
    return sql, (*parameters, limit, query.offset)


def _beyond(key: str, query: Query, last: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the conditions that a row after ``query.after`` meets one of; NULLs come first.

    Each is a range of an index: with an OR of two, all rows before it would be looked at.
    """
    if query.after is None:
        return [("", ())]
    compare = "<" if query.descending else ">"
    beyond: list[tuple[str, tuple[Any, ...]]]
    if last is None:
        beyond = [(f"{key} IS NULL AND job_id {compare} ?", (query.after,))]
        return beyond if query.descending else [*beyond, (f"{key} IS NOT NULL", ())]
    beyond = [(f"({key}, job_id) {compare} (?, ?)", (last, query.after))]
    has_more = query.descending and key in NULLABLE
    return [*beyond, (f"{key} IS NULL", ())] if has_more else beyond
