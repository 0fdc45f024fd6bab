"""What is asked of a database, as SQL. Pure."""

from __future__ import annotations

from typing import Any

from anodejobs.records import JobFilter
from anodejobs.stores.base import Query
from anodejobs.stores.database_sql import Dialect, Statement
from anodejobs.stores.pages import NULLABLE, column, limits, parts
from anodejobs.stores.rows import RECORD_COLUMNS, micros

STORED = (
    f"SELECT attempt, launch, body, {RECORD_COLUMNS}, spec FROM anodejobs_jobs"
    " JOIN anodejobs_specs USING (job_id) JOIN anodejobs_base_environments ON digest = environment"
)
TALLY = """
    SELECT NULL AS tag, status, queue, priority, count(*) AS jobs, sum(number - 1) AS retries,
        count(took) AS ran, coalesce(sum(took), 0) AS ran_micros, coalesce(max(took), 0) AS longest
    FROM (
        SELECT status, queue, priority, number, CASE
            WHEN finished_at < started_at THEN 0 ELSE finished_at - started_at END AS took
        FROM anodejobs_jobs
    ) AS each_job
    GROUP BY status, queue, priority
    UNION ALL
    SELECT tag, NULL, NULL, NULL, NULL, NULL, NULL, NULL, count(*) FROM anodejobs_tags GROUP BY tag
"""
"""The fields of each ``Group`` after a NULL; or a tag, and last how many jobs have it.

One statement, which sees all at one moment.
"""
HISTORY = (
    "SELECT seq, job_id, attempt, at, previous, status, why, ended FROM anodejobs_history"
    " WHERE seq > ?"
)

_LONG_TEXTS = ("name", "user_id", "workflow_id", "batch_id")


def where(filter: JobFilter, dialect: Dialect) -> Statement:
    """Return the WHERE clause of a filter, and its parameters."""
    clauses: list[str] = []
    parameters: list[Any] = []

    def demand(condition: str, *values: Any) -> None:
        clauses.append(condition)
        parameters.extend(values)

    for field, allowed in filter.choices():
        name = "job_id" if field == "self_id" else field
        if not allowed:
            demand("1 = 0")
        elif field in _LONG_TEXTS:
            condition, values = dialect.is_text(name, allowed)
            demand(condition, *values)
        elif len(allowed) == 1:  # keeps the order of the index
            demand(f"{name} = ?", allowed[0])
        else:
            condition, values = dialect.among(name, allowed)
            demand(condition, *values)
    for tag in filter.tags or ():
        condition, values = dialect.is_text("tag", [tag])
        demand(f"job_id IN (SELECT job_id FROM anodejobs_tags WHERE {condition})", *values)
    if filter.created_after is not None:
        demand("created_at >= ?", micros(filter.created_after))
    if filter.created_before is not None:
        demand("created_at < ?", micros(filter.created_before))
    return (f" WHERE {' AND '.join(clauses)}" if clauses else ""), tuple(parameters)


def page(query: Query, last: Any, dialect: Dialect) -> Statement:
    """Return the statement for a page; ``last`` is the sort value of ``query.after``."""
    key = column(query)
    direction = "DESC" if query.descending else "ASC"
    order = f" ORDER BY {dialect.order(key, direction)}, job_id {direction}"
    limit, end = limits(query)
    selects: list[str] = []
    parameters: list[Any] = []
    for number, filter in enumerate(parts(query)):
        clause, values = where(filter, dialect)
        parameters += values
        if query.after is not None:
            beyond, boundary = _beyond(key, query, last)
            clause += f" {'AND' if clause else 'WHERE'} {beyond}"
            parameters += boundary
        ids = f"SELECT job_id FROM anodejobs_jobs{clause}{order} LIMIT ?"
        selects.append(f"SELECT job_id FROM ({ids}) AS part{number}")
        parameters.append(end)
    sql = (
        f"SELECT {RECORD_COLUMNS}, spec FROM ({' UNION ALL '.join(selects)}) AS found"
        f" JOIN anodejobs_jobs USING (job_id) JOIN anodejobs_specs USING (job_id){order}"
        " LIMIT ? OFFSET ?"
    )
    return sql, (*parameters, limit, query.offset)


def _beyond(key: str, query: Query, last: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the condition that a row comes after ``query.after``; what is missing comes first."""
    sign = "<" if query.descending else ">"
    if key == "job_id":
        return f"job_id {sign} ?", (query.after,)
    if last is not None:
        # By the index as far as the first condition goes: a pair is compared without it by MySQL.
        rest = f" OR {key} IS NULL" if query.descending and key in NULLABLE else ""
        beyond = f"({key} {sign}= ? AND ({key} {sign} ? OR job_id {sign} ?){rest})"
        return beyond, (last, last, query.after)
    if query.descending:
        return f"({key} IS NULL AND job_id < ?)", (query.after,)
    return f"({key} IS NOT NULL OR job_id > ?)", (query.after,)
