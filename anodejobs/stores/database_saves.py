"""What most batches are, changes of status, as one statement of PostgreSQL that is a transaction.

A commit costs above all the turns that the server is asked: here it is one. The history's counter
is locked before any job is, as in every other transaction, and that a job has the revision its
change was made from is looked at when its row is locked: another process may have changed it after
the statement began.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

from anodejobs.stores.base import Save, Write, steps_of
from anodejobs.stores.database_sql import FRACTIONS, Statement
from anodejobs.stores.rows import RECORD_COLUMNS, Row, fact_columns
from anodejobs.stores.write_rows import attempt_text, history_row

_FACTS: Final = tuple(RECORD_COLUMNS.partition(" priority, ")[2].split(", "))
_TOLD: Final = ("attempt", "told", "previous", "why", "ended")
_GIVEN: Final = ("nth", "made_from", "job_id", *_FACTS, *_TOLD)
_TEXTS: Final = {"job_id", "status", "evidence", "error", "reached", "attempt"} | {
    *("previous", "why", "ended"),
}


def plain_saves(writes: Sequence[Write]) -> Sequence[Save] | None:
    """Return the writes where each changes the status of another job and nothing else."""
    saves = [write for write in writes if isinstance(write, Save) and _is_plain(write)]
    job_ids = {save.record.self_id for save in saves}
    return saves if len(job_ids) == len(writes) else None


def _is_plain(save: Save) -> bool:
    return save.launch is None and not save.is_respecified


def saves_statement(saves: Sequence[Save], ring: Statement) -> Statement:
    """Return the statement, which gives ``nth`` and ``seq`` of each save that it applied.

    ``nth`` is 1 for the first. Of one with several steps it gives them all, the last one last.
    """
    rows = [row for nth, save in enumerate(saves, start=1) for row in _given(nth, save)]
    # What is missing everywhere, as most is, costs nothing: unnest gives NULLs for no array, too.
    columns = [
        None if values.count(None) == len(values) else list(values)
        for values in zip(*rows, strict=True)
    ]
    sql, parameters = ring
    return _sql(sql), (*columns, *parameters)


def _given(nth: int, save: Save) -> Iterator[Row]:
    """Give a row for each step; that of the last one, which is to be kept, says from what."""
    for step in steps_of(save):
        made_from = save.made_from if step is save else None
        job_id, told, _, previous, _, why, ended = history_row(step)
        attempt = attempt_text(step)
        facts = fact_columns(step.record)
        yield (nth, made_from, job_id, *facts, attempt, told, previous, why, ended)


@cache
def _sql(ring: str) -> str:
    arrays = ", ".join(f"?::{_type(column)}[]" for column in _GIVEN)
    changes = ", ".join(f"{column} = given.{column}" for column in _FACTS)
    return f"""
    WITH clock AS MATERIALIZED (
        SELECT value FROM anodejobs_counters WHERE name = 'seq' FOR UPDATE
    ), given AS MATERIALIZED (
        SELECT * FROM unnest({arrays}) WITH ORDINALITY AS given ({", ".join(_GIVEN)}, step)
    ), saved AS (
        UPDATE anodejobs_jobs AS job
        SET {changes}, attempt = coalesce(given.attempt, job.attempt)
        FROM given, clock
        WHERE job.job_id = given.job_id AND job.revision = given.made_from
        RETURNING nth
    ), applied AS MATERIALIZED (
        SELECT given.*, clock.value + row_number() OVER (ORDER BY step) AS seq
        FROM saved JOIN given USING (nth), clock
    ), entered AS (
        INSERT INTO anodejobs_history (seq, job_id, attempt, at, previous, status, why, ended)
        SELECT seq, job_id, told, last_update, previous, status, why, ended FROM applied
    ), counted AS (
        INSERT INTO anodejobs_counters (name, value)
        SELECT name, sum(n) FROM (
            SELECT status AS name, 1 AS n FROM applied
            UNION ALL SELECT previous, -1 FROM applied
            UNION ALL SELECT 'seq', 1 FROM applied
            UNION ALL SELECT 'turn', 1
        ) AS each_one
        GROUP BY name HAVING sum(n) <> 0
        ON CONFLICT (name) DO UPDATE SET value = anodejobs_counters.value + excluded.value
    )
    SELECT nth, seq{ring} FROM applied ORDER BY seq"""


def _type(column: str) -> str:
    if column in FRACTIONS:
        return "double precision"
    return "text" if column in _TEXTS else "bigint"


def saved_before(saves: Sequence[Save], history: Sequence[Row]) -> list[int | None] | None:
    """Return what an earlier attempt has come to, None where the history has nothing of it.

    ``history`` is what there is of these jobs: ``seq``, and the row up to the status.
    """
    seqs: dict[tuple[Any, ...], int] = {tuple(row): seq for seq, *row in history}
    results = [seqs.get(tuple(history_row(save)[:5])) for save in saves]
    return results if any(results) else None
