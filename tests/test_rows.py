"""A record is the same after it was a row, and what is no record is refused."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anodejobs.records import JobRecord, OnDependencyFailure, Restart, Status
from anodejobs.stores.rows import (
    RECORD_COLUMNS,
    Row,
    fact_columns,
    key_columns,
    micros,
    moment,
    record_of,
    spec_of,
)
from anodejobs.testing import make_record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)

text = st.text()
whole = st.integers(-(2**63), 2**63 - 1)
moments = st.datetimes(
    datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999), timezones=st.just(UTC)
).map(lambda moment: moment.replace(fold=0))  # UTC has no hour twice
set_moments = moments.filter(lambda moment: moment != EPOCH)  # which stands for none
statuses = st.sampled_from(Status)
ids = st.text(min_size=1, max_size=200).filter(str.isprintable)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "self_id": ids,
    "status": statuses,
    "last_update": st.none() | set_moments,
    "last_pid": st.none() | whole,
    "dirname": text,
    "cwd": text | st.binary().map(os.fsdecode),
    "logdir": text,
    "logfile": text,
    "command": text | st.lists(text | st.binary().map(os.fsdecode), max_size=3),
    "name": st.none() | text,
    "description": st.none() | text,
    "tags": st.lists(text, max_size=3),
    "metadata": st.dictionaries(text, values, max_size=3),
    "user_id": st.none() | text,
    "workflow_id": st.none() | text,
    "batch_id": st.none() | text,
    "payload": values,
    "result": values,
    "progress": st.none() | st.floats(0, 1),
    "priority": whole,
    "queue": text,
    "depends_on": st.lists(text, max_size=3),
    "on_dependency_failure": st.sampled_from(get_args(OnDependencyFailure)),
    "run_at": st.none() | moments,
    "start_deadline": st.none() | st.floats(0, allow_nan=False, allow_infinity=False),
    "submitted_at": st.none() | moments,
    "due_at": st.none() | moments,
    "max_retries": whole,
    "retry": st.none() | st.dictionaries(text, values, max_size=3),
    "restart": st.sampled_from(get_args(Restart)),
    "restart_policy": st.none() | st.dictionaries(text, values, max_size=3),
    "limits": st.none() | st.dictionaries(text, values, max_size=3),
    "attempt": whole,
    "timeout": st.none() | st.floats(0, allow_nan=False, allow_infinity=False),
    "created_at": st.none() | set_moments,
    "started_at": st.none() | moments,
    "finished_at": st.none() | moments,
    "exit_code": st.none() | whole,
    "evidence": st.none() | st.sampled_from(["observed", "recorded", "adopted"]),
    "error": st.none() | text,
    "cpu_seconds": st.none() | st.floats(0, allow_nan=False, allow_infinity=False),
    "peak_memory_bytes": st.none() | whole,
    "host": text,
    "reached": st.lists(statuses, max_size=5),
    "revision": whole,
}
records = st.fixed_dictionaries(FIELDS).map(JobRecord)
BARE = JobRecord(self_id="a", status=Status.running)


@settings(max_examples=300)
@given(records)
@example(BARE)
def test_any_record_is_the_same_after_it_was_a_row(record):
    assert same(record_of(row_of(record)), record)


@settings(max_examples=100)
@given(records)
@example(BARE)
def test_any_record_is_the_same_after_its_row_was_in_a_database(record):
    with closing(sqlite3.connect(":memory:")) as connection:
        marks = ", ".join("?" * len(row_of(record)))
        connection.execute(f"CREATE TABLE jobs ({RECORD_COLUMNS}, spec)")
        connection.execute(f"INSERT INTO jobs VALUES ({marks})", row_of(record))
        (row,) = connection.execute("SELECT * FROM jobs").fetchall()
    assert same(record_of(row), record)


def test_every_field_of_a_record_is_tried_here():
    assert FIELDS.keys() == JobRecord.model_fields.keys()


@settings(max_examples=300)
@given(moments)
@example(EPOCH - TICK)
@example(EPOCH + TICK)
def test_any_moment_is_the_same_after_it_was_a_number(when):
    assert moment(micros(when) or 0) == when


def test_a_spec_holds_only_what_was_asked_for():
    assert spec_of(BARE) == "{}"


def test_what_one_record_holds_is_no_other_records():
    row = row_of(BARE)
    one, other = record_of(row), record_of(row)
    for field in lists_of(one):
        assert getattr(one, field) is not getattr(other, field)


def test_what_is_put_into_a_record_is_in_no_later_one():
    record_of(row_of(BARE)).metadata["surprise"] = 1
    assert record_of(row_of(BARE)).metadata == {}


@pytest.mark.parametrize(
    "spec",
    ["", "hello", '{"cut":', "{}{}", "[]", "5", "null", '"host"', '{"unknown":1}'],
)
def test_a_spec_that_makes_no_sense_is_a_value_error(spec):
    with pytest.raises(ValueError, match=r"value|data|double quotes|object|unknown"):
        record_of((*row_of(BARE)[:-1], spec))


@pytest.mark.parametrize("reached", ["started", "running,", ",", "running running"])
def test_a_status_that_there_is_not_is_a_value_error(reached):
    row = list(row_of(BARE))
    row[RECORD_COLUMNS.split(", ").index("reached")] = reached
    with pytest.raises(ValueError, match="not a valid Status"):
        record_of(row)


def test_a_row_has_a_value_for_each_column():
    assert len(row_of(make_record())) == len(RECORD_COLUMNS.split(", ")) + len(["spec"])


def row_of(record: JobRecord) -> Row:
    """Return the row as a store selects it."""
    return (*key_columns(record), *fact_columns(record), spec_of(record))


def same(one: JobRecord, other: JobRecord) -> bool:
    """Return whether the records are equal, and what they are made of is of the same types."""
    return one == other and repr(vars(one)) == repr(vars(other))


def lists_of(record: JobRecord) -> Iterator[str]:
    """Give the fields whose values can be changed by who holds the record."""
    for field in JobRecord.model_fields:
        if isinstance(getattr(record, field), list | dict):
            yield field
