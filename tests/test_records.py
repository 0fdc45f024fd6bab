"""The models users hold: how they are spelled, what they take, and what they refuse."""

from __future__ import annotations

import copy
import json
import math
import pickle
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from anodejobs import (
    InvalidJob,
    JobEvent,
    JobFilter,
    JobOptions,
    JobRecord,
    JobRecordDict,
    JobSpec,
    Status,
    Usage,
)
from anodejobs.fields import check_seconds
from anodejobs.records import TERMINAL, AttemptRecord, BatchProgress, FilterOptions, Priority

NOON = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)
BERLIN = timezone(timedelta(hours=1))

FULL = {
    "self_id": "../a job/ü",
    "status": "failed",
    "last_update": NOON + timedelta(seconds=2),
    "last_pid": 4711,
    "dirname": "/srv/jobs",
    "cwd": "/srv",
    "logdir": "/srv/jobs/job_logs",
    "logfile": "a%20job",
    "command": ["sh", "-c", "exit 3", ""],
    "name": "Name",
    "description": "two\nlines",
    "tags": ["b", "a"],
    "metadata": {"deep": [{"er": None}, 1.5, True]},
    "user_id": "u1",
    "workflow_id": "w1",
    "batch_id": "b1",
    "payload": {"p": [1, None]},
    "result": "done",
    "progress": 0.5,
    "priority": 7,
    "queue": "q1",
    "depends_on": ["b"],
    "on_dependency_failure": "run",
    "run_at": NOON - timedelta(seconds=1),
    "start_deadline": 60.0,
    "submitted_at": NOON,
    "due_at": NOON - timedelta(seconds=1),
    "attempt": 2,
    "max_retries": 3,
    "retry": {"kind": "fixed", "delay": 1.0},
    "restart": "never",
    "restart_policy": {"when": "never"},
    "limits": {"memory_bytes": 2**40},
    "timeout": 0.5,
    "created_at": NOON,
    "started_at": NOON + timedelta(seconds=1),
    "finished_at": NOON + timedelta(seconds=2),
    "exit_code": 3,
    "evidence": "observed",
    "error": "exit code 3",
    "cpu_seconds": 0.25,
    "peak_memory_bytes": 4096,
    "host": "host",
    "reached": ["starting", "running", "failed"],
    "revision": 3,
}

SECRET = "hunter2"


class ShoeRecord(JobRecord):
    """What an application may make of the record."""

    shoe_size: int = 42
    owner: str | None = None


def record(**fields: object) -> JobRecord:
    return JobRecord({"self_id": "a", "status": "running", **fields})


# Statuses.


def test_the_statuses_are_these():
    assert [status.value for status in Status] == [
        "pending",
        "queued",
        "starting",
        "running",
        "paused",
        "stopping",
        "finished",
        "failed",
        "failed_start",
        "stopped",
        "cancelled",
        "lost",
        "failed_stop",
    ]


@pytest.mark.parametrize("status", Status)
def test_a_status_has_an_alias(status):
    assert getattr(Status, f"c_{status.value}") is status
    assert getattr(JobRecord.Status, f"c_{status.value}") is status


@pytest.mark.parametrize("status", Status)
def test_a_status_is_its_text(status):
    assert status == status.value == str(status) == f"{status}"
    assert json.dumps(status) == f'"{status.value}"'


def test_the_terminal_statuses_are_these():
    assert {status.value for status in TERMINAL} == {
        "finished",
        "failed",
        "failed_start",
        "stopped",
        "cancelled",
        "lost",
    }


@pytest.mark.parametrize("status", Status)
def test_a_record_is_done_when_its_status_is_terminal(status):
    assert record(status=status).is_done == status.is_terminal == (status in TERMINAL)


# How a record is spelled.


def test_the_fields_of_a_record_are_these():
    assert list(JobRecord.model_fields) == list(FULL)


def test_a_record_is_made_from_a_mapping_with_the_names_of_its_fields():
    made = JobRecord({JobRecord.self_id: "a", JobRecord.f_status: "running"})
    assert (made.self_id, made.status) == ("a", Status.running)


@pytest.mark.parametrize("mapping", [dict, MappingProxyType, JobRecord], ids=lambda m: m.__name__)
def test_a_record_is_made_from_any_mapping_or_record(mapping):
    assert JobRecord(mapping(FULL)) == JobRecord(**FULL)


def test_keywords_go_before_the_mapping():
    assert JobRecord(record(name="old"), name="new").name == "new"
    assert JobRecord({"self_id": "a", "status": "lost"}, status="running").status == "running"


def test_a_record_made_from_a_record_has_the_same_fields_set():
    original = record(name="x")
    assert JobRecord(original).model_fields_set == original.model_fields_set


@pytest.mark.parametrize("field", FULL)
def test_the_class_gives_the_name_of_each_field(field):
    assert getattr(JobRecord, field) == getattr(JobRecord, f"f_{field}") == field


@pytest.mark.parametrize("field", FULL)
def test_a_record_gives_each_field_in_four_spellings(field):
    full = JobRecord(FULL)
    value = getattr(full, field)
    assert value is getattr(full, f"f_{field}")
    assert value is full[field]
    assert value is full[f"f_{field}"]


@pytest.mark.parametrize(
    "name", ["nope", "f_nope", "f_", "f_f_self_id", "model_config", "is_done", 5, None]
)
def test_a_key_that_is_no_field_is_a_key_error(name):
    with pytest.raises(KeyError) as caught:
        record()[name]
    assert caught.value.args == (name,)


@pytest.mark.parametrize("name", ["nope", "f_nope", "f_", "_private"])
def test_an_attribute_that_is_no_field_is_an_attribute_error(name):
    for holder in (record(), JobRecord):
        with pytest.raises(AttributeError):
            getattr(holder, name)


@pytest.mark.parametrize("spelling", ["name", "f_name", "new"])
def test_a_record_is_frozen(spelling):
    with pytest.raises((ValidationError, AttributeError)):
        setattr(record(), spelling, "x")


def test_two_records_share_no_default():
    record().tags.append("x")
    record().metadata["x"] = 1
    record().depends_on.append("x")
    assert (record().tags, record().metadata, record().depends_on) == ([], {}, [])


def test_times_are_aware_utc_whatever_they_came_as():
    same = [
        NOON,
        NOON.replace(tzinfo=None),
        NOON.astimezone(BERLIN),
        NOON.isoformat(),
        "2024-02-29T12:00:00.123456Z",
    ]
    for moment in same:
        created_at = record(created_at=moment).created_at
        assert created_at == NOON
        assert created_at.tzinfo is UTC


def test_a_record_may_have_any_id_a_job_may_have():
    for job_id in ("a", "../../x", "ü 🚀", "x" * 200):
        assert record(self_id=job_id).self_id == job_id


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"self_id": ""}, "self_id"),
        ({"self_id": 5}, "self_id"),
        ({"status": "nope"}, "status"),
        ({"status": None}, "status"),
        ({"tags": "abc"}, "tags"),
        ({"metadata": {"a": ...}}, "metadata"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"reached": ["running", "nope"]}, "reached"),
        ({"depends_on": "abc"}, "depends_on"),
        ({"on_dependency_failure": "fail"}, "on_dependency_failure"),
        ({"restart": "sometimes"}, "restart"),
        ({"payload": ...}, "payload"),
        ({"nope": 1}, "nope"),
    ],
    ids=str,
)
def test_a_wrong_record_names_the_field(wrong, field):
    with pytest.raises(InvalidJob) as caught:
        record(**wrong)
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["self_id", "status"])
def test_a_record_without_an_id_or_a_status_is_refused(field):
    fields = {"self_id": "a", "status": "running"}
    del fields[field]
    with pytest.raises(InvalidJob) as caught:
        JobRecord(fields)
    assert caught.value.field == field


# What a record goes through.


def test_a_record_comes_back_from_json():
    full = JobRecord(FULL)
    assert JobRecord.model_validate_json(full.model_dump_json()) == full
    assert JobRecord(json.loads(full.model_dump_json())) == full


def test_a_record_as_json_has_plain_values():
    dumped = json.loads(JobRecord(FULL).model_dump_json())
    assert dumped["status"] == "failed"
    assert dumped["created_at"] == "2024-02-29T12:00:00.123456Z"
    assert dumped["command"] == ["sh", "-c", "exit 3", ""]


@pytest.mark.parametrize("made", [JobRecord(FULL), JobRecord(self_id="a", status="lost")])
def test_a_record_comes_back_from_pickle_and_copy(made):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(made, protocol)) == made
    assert copy.copy(made) == copy.deepcopy(made) == made


def test_a_record_copied_with_an_update_keeps_its_habits():
    updated = record().model_copy(update={"name": "x"})
    assert (updated.f_name, updated["name"]) == ("x", "x")


def test_the_schema_of_a_record_names_each_status_once():
    schema = JobRecord.model_json_schema()
    assert schema["required"] == ["self_id", "status"]
    assert schema["$defs"]["Status"]["enum"] == [status.value for status in Status]


# Subclasses.


def test_a_subclass_adds_fields_with_all_spellings():
    made = ShoeRecord({JobRecord.self_id: "a", ShoeRecord.status: "lost", ShoeRecord.owner: "me"})
    assert (ShoeRecord.shoe_size, ShoeRecord.f_owner, ShoeRecord.f_name) == (
        "shoe_size",
        "owner",
        "name",
    )
    assert (made.shoe_size, made.f_owner, made["f_owner"], made["self_id"]) == (42, "me", "me", "a")


def test_a_record_becomes_a_subclass_of_it():
    assert ShoeRecord(record(name="x"), shoe_size=43).shoe_size == 43
    assert pickle.loads(pickle.dumps(ShoeRecord(record()))) == ShoeRecord(record())


def test_the_fields_of_a_subclass_are_not_those_of_the_record():
    with pytest.raises(AttributeError):
        _ = JobRecord.shoe_size
    with pytest.raises(InvalidJob) as caught:
        JobRecord(ShoeRecord(record(), shoe_size=43))
    assert caught.value.field == "shoe_size"


def test_a_subclass_may_say_more_of_a_field():
    class Named(JobRecord):
        name: str
        user_id: str | None = "me"

    assert (Named(self_id="a", status="lost", name="x").user_id, Named.name) == ("me", "name")
    with pytest.raises(InvalidJob, match="name"):
        Named(self_id="a", status="lost")


def test_a_model_of_the_application_may_hold_records():
    class Answer(BaseModel):
        records: list[JobRecord]

    answer = Answer(records=[JobRecord(FULL)])
    assert Answer.model_validate_json(answer.model_dump_json()) == answer


def test_a_record_dict_is_a_dict_in_order():
    records = JobRecordDict({"b": record(self_id="b"), "a": record()})
    assert isinstance(records, dict)
    assert list(records) == ["b", "a"]


def test_a_record_dict_goes_through_json():
    records = JobRecordDict({"b": record(self_id="b"), "a": record()})
    adapter = TypeAdapter(JobRecordDict)
    back = adapter.validate_json(adapter.dump_json(records))
    assert (type(back), list(back)) == (JobRecordDict, ["b", "a"])
    assert back == records


async def test_fastapi_returns_records_as_they_are():
    fastapi = pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    app = fastapi.FastAPI()

    @app.get("/one")
    async def one() -> JobRecord:
        return JobRecord(FULL)

    @app.get("/many")
    async def many() -> JobRecordDict:
        return JobRecordDict({"b": record(self_id="b"), "a": record()})

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert JobRecord((await client.get("/one")).json()) == JobRecord(FULL)
        assert list((await client.get("/many")).json()) == ["b", "a"]
        schema = (await client.get("/openapi.json")).json()
    properties = schema["components"]["schemas"]["JobRecord"]["properties"]
    assert list(properties) == list(FULL)
    assert properties["self_id"]["description"] == "The job id."


# Filters.


def test_the_fields_of_a_filter_are_these():
    assert list(JobFilter.model_fields) == [
        "self_id",
        "status",
        "name",
        "user_id",
        "workflow_id",
        "batch_id",
        "queue",
        "tags",
        "created_after",
        "created_before",
    ]


def test_a_filter_has_the_habits_of_a_record():
    made = JobFilter({JobFilter.status: "running", JobFilter.f_name: "x"})
    assert made == JobFilter(status="running", name="x") == JobFilter(made)
    assert made.f_status == made["status"] == made["f_status"] == [Status.running]
    assert pickle.loads(pickle.dumps(made)) == made
    assert JobFilter.model_validate_json(made.model_dump_json()) == made
    with pytest.raises(ValidationError):
        made.name = ["y"]


@pytest.mark.parametrize(
    "field", ["self_id", "name", "user_id", "workflow_id", "batch_id", "queue"]
)
def test_a_filter_takes_one_value_or_several(field):
    assert JobFilter({field: "x"}) == JobFilter({field: ["x"]}) == JobFilter({field: ("x",)})
    assert set(JobFilter({field: {"x", "y"}})[field]) == {"x", "y"}


def test_a_filter_takes_statuses_as_text_or_as_members():
    assert JobFilter(status="lost") == JobFilter(status=Status.c_lost) == JobFilter(status=["lost"])


def test_a_filter_takes_a_set_of_tags():
    assert JobFilter(tags={"x"}) == JobFilter(tags=("x",)) == JobFilter(tags=["x"])


def test_a_filter_takes_naive_times_as_utc():
    naive = NOON.replace(tzinfo=None)
    assert JobFilter(created_after=naive) == JobFilter(created_after=NOON.astimezone(BERLIN))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"nope": 1}, "nope"),
        ({"f_name": "x"}, "f_name"),
        ({"command": "x"}, "command"),
        ({"self_id": 5}, "self_id"),
        ({"self_id": ["a", None]}, "self_id"),
        ({"status": "nope"}, "status"),
        ({"status": ["running", "nope"]}, "status"),
        ({"status": [1]}, "status"),
        ({"name": b"x"}, "name"),
        ({"user_id": {"a": 1}}, "user_id"),
        ({"batch_id": 5}, "batch_id"),
        ({"queue": ["a", None]}, "queue"),
        ({"tags": "abc"}, "tags"),
        ({"tags": [5]}, "tags"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"created_after": 7}, "created_after"),
        ({"created_after": "1700000000"}, "created_after"),
        ({"created_before": [NOON]}, "created_before"),
        ({"created_after": datetime.min.replace(tzinfo=BERLIN)}, "created_after"),
        ({5: "x"}, "5"),
    ],
    ids=str,
)
def test_a_wrong_filter_names_the_field(wrong, field):
    with pytest.raises(InvalidJob) as caught:
        JobFilter(wrong)
    assert caught.value.field == field


def test_an_empty_filter_matches_everything():
    assert JobFilter().matches(record())
    assert JobFilter().matches(JobRecord(FULL))


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({"created_after": NOON}, True),
        ({"created_after": NOON + timedelta(microseconds=1)}, False),
        ({"created_before": NOON}, False),
        ({"created_before": NOON + timedelta(microseconds=1)}, True),
        ({"tags": ["a"]}, True),
        ({"tags": ["a", "b", "a"]}, True),
        ({"tags": ["a", "c"]}, False),
        ({"tags": []}, True),
        ({"name": []}, False),
        ({"name": "Name", "user_id": "u2"}, False),
        ({"name": "name"}, False),
        ({"batch_id": "b1", "queue": ["q1", "q2"]}, True),
        ({"batch_id": "b2"}, False),
        ({"queue": "default"}, False),
    ],
    ids=str,
)
def test_a_filter_matches_by_every_field_that_is_set(fields, matches):
    assert JobFilter(fields).matches(JobRecord(FULL)) == matches


VALUES = st.sampled_from(["", "a", "b"])
MOMENTS = st.sampled_from([NOON + timedelta(microseconds=n) for n in range(3)])
RECORDS = st.builds(
    record,
    self_id=st.sampled_from(["a", "b"]),
    status=st.sampled_from(Status),
    name=st.none() | VALUES,
    user_id=st.none() | VALUES,
    workflow_id=st.none() | VALUES,
    batch_id=st.none() | VALUES,
    queue=VALUES,
    tags=st.lists(VALUES, max_size=3),
    created_at=MOMENTS,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "self_id": st.lists(VALUES, max_size=2),
        "status": st.lists(st.sampled_from(Status), max_size=3),
        "name": st.lists(VALUES, max_size=2),
        "user_id": st.lists(VALUES, max_size=2),
        "workflow_id": st.lists(VALUES, max_size=2),
        "batch_id": st.lists(VALUES, max_size=2),
        "queue": st.lists(VALUES, max_size=2),
        "tags": st.lists(VALUES, max_size=2),
        "created_after": MOMENTS,
        "created_before": MOMENTS,
    },
)


@given(RECORDS, FIELDS)
def test_a_filter_agrees_with_a_model(tried, fields):
    verdicts = {
        "tags": lambda wanted: all(tag in tried.tags for tag in wanted),
        "created_after": lambda moment: tried.created_at >= moment,
        "created_before": lambda moment: tried.created_at < moment,
    }
    expected = all(
        verdicts[field](value) if field in verdicts else getattr(tried, field) in value
        for field, value in fields.items()
    )
    assert JobFilter(fields).matches(tried) == expected


# What a job is made from.


def spec(**fields: object) -> JobSpec:
    return JobSpec({"command": "true", **fields})


def test_a_spec_needs_a_command_and_no_more():
    assert spec().model_dump(exclude={"command"}) == {
        "job_id": None,
        "cwd": None,
        "envs": {},
        "inherit_env": True,
        "name": None,
        "description": None,
        "tags": [],
        "metadata": {},
        "user_id": None,
        "workflow_id": None,
        "timeout": None,
        "stop_grace": None,
        "start_grace": 0.0,
        "leftovers": "kill",
        "on_host_death": "leave",
        "payload": None,
        "priority": Priority.medium,
        "queue": "default",
        "depends_on": [],
        "on_dependency_failure": "cancel",
        "run_at": None,
        "start_deadline": None,
        "max_retries": 0,
        "retry_delay": None,
        "retry": None,
        "restart": "never",
        "limits": None,
    }


def test_the_options_of_a_run_are_the_fields_of_a_spec():
    options = {*JobOptions.__annotations__, "command", "job_id"}
    assert options == {*JobSpec.model_fields, "call"}, "call stands for a command"
    assert get_type_hints(JobOptions).keys() == options - {"command", "job_id"}


def test_what_a_list_is_chosen_by_are_the_fields_of_a_filter():
    assert FilterOptions.__annotations__.keys() == JobFilter.model_fields.keys()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"command": ["echo", "", " "]}, ["echo", "", " "]),
        ({"command": ("echo", "a b")}, ["echo", "a b"]),
        ({"command": " echo 'ü'\n"}, " echo 'ü'\n"),
        ({"job_id": "../../x"}, "../../x"),
        ({"job_id": "🚀" * 200}, "🚀" * 200),
        ({"cwd": Path("/srv/x")}, "/srv/x"),
        ({"envs": {"A": "", "B": "a=b\n", "ü": "\udcff"}}, {"A": "", "B": "a=b\n", "ü": "\udcff"}),
        ({"tags": ("b", "a")}, ["b", "a"]),
        ({"tags": frozenset({"a"})}, ["a"]),
        ({"timeout": 0}, 0.0),
        ({"timeout": 1.5}, 1.5),
        ({"stop_grace": 10}, 10.0),
        ({"payload": {"deep": [{"er": None}, 1.5, "ü"]}}, {"deep": [{"er": None}, 1.5, "ü"]}),
        ({"payload": 0}, 0),
        ({"priority": "low"}, Priority.low.value),
        ({"priority": Priority.high}, Priority.high.value),
        ({"priority": -(2**63)}, -(2**63)),
        ({"queue": "gpu 0"}, "gpu 0"),
        ({"depends_on": ("b", "a", "b")}, ["b", "a"]),
        ({"depends_on": {"a"}}, ["a"]),
        ({"depends_on": ["a", 0, 0]}, ["a", 0]),
        ({"on_dependency_failure": "hold"}, "hold"),
        ({"run_at": NOON.replace(tzinfo=None)}, NOON),
        ({"run_at": NOON.astimezone(BERLIN)}, NOON),
        ({"run_at": "20240520T120000Z"}, datetime(2024, 5, 20, 12, tzinfo=UTC)),
        ({"run_at": "20240520"}, datetime(2024, 5, 20, tzinfo=UTC)),
        ({"run_at": date(2024, 5, 20)}, datetime(2024, 5, 20, tzinfo=UTC)),
        ({"start_deadline": 0}, 0.0),
        ({"max_retries": 2**31 - 1}, 2**31 - 1),
        ({"retry_delay": 1}, 1.0),
    ],
    ids=str,
)
def test_a_spec_takes(given, taken):
    (field,) = given
    assert spec(**given)[field] == taken


WRONG_SECONDS = [-1, -0.001, math.nan, math.inf, -math.inf, True, "3", 10**400, [1], 1j]
NOT_UTF8 = "not utf-8: \udcff"
WRONG = {
    "command": [
        *(
            "",
            " ",
            "\n\t",
            [],
            (),
            [""],
            [" ", "x"],
            "a\0b",
            ["a", "b\0"],
            NOT_UTF8,
            ["a", NOT_UTF8],
        ),
        *(None, 5, b"true", [b"true"], ["a", 5], ["a", None], {"a"}, {"a": "b"}, Path("/bin/true")),
    ],
    "job_id": ["", "x" * 201, "a\nb", "a\0", "\x1b[31m", "\x7f", "\u200b", "\udcff", 5, b"a"],
    "cwd": ["a\0b", NOT_UTF8, 5, b"/", ["/"]],
    "envs": [
        {"A=B": "x"},
        {"=": "x"},
        {"": "x"},
        {"A\0": "x"},
        {"A": "x\0"},
        {"A": 5},
        {"A": None},
        {"A": b"x"},
        {5: "x"},
        {b"A": "x"},
        [("A", "x")],
        "A=x",
        None,
    ],
    "inherit_env": [1, 0, "yes", None],
    "name": [5, b"x", ["x"], NOT_UTF8],
    "description": [5, b"x", ["x"], NOT_UTF8],
    "tags": ["abc", [5], [None], None, {"a": 1}, 5, [NOT_UTF8]],
    "metadata": [
        5,
        [],
        None,
        {5: "x"},
        {"a": ...},
        {"a": {1, 2}},
        {"a": b"x"},
        {"a": math.nan},
        {"a": [math.inf]},
        {"a": NOT_UTF8},
        {NOT_UTF8: "a"},
    ],
    "user_id": [5, b"x", NOT_UTF8],
    "workflow_id": [5, b"x", NOT_UTF8],
    "timeout": WRONG_SECONDS,
    "stop_grace": WRONG_SECONDS,
    "start_grace": [*WRONG_SECONDS, None],
    "leftovers": ["", "stop", None, True, 5],
    "on_host_death": ["", "kill", None, True, 5],
    "payload": [..., {1, 2}, b"x", math.nan, [math.inf], NOT_UTF8, {NOT_UTF8: 1}, {5: "x"}, NOON],
    "priority": ["", "urgent", "10", 1.5, True, None, 2**63, -(2**63) - 1, [1]],
    "queue": ["", "x" * 201, "a\nb", 5, b"a", None, "\udcff"],
    "depends_on": ["abc", 5, None, [None], [b"a"], [""], ["a\n"], [-1], [1.5], [True], {"a": 1}],
    "on_dependency_failure": ["", "fail", None, True, 5],
    "run_at": [
        *("yesterday", "", "2030", "1893456000", 60, 60.0, True, [NOON], {}, timedelta(hours=1)),
        datetime.min.replace(tzinfo=BERLIN),
    ],
    "start_deadline": WRONG_SECONDS,
    "max_retries": [-1, 1.5, "1", True, None, 2**31],
    "retry_delay": WRONG_SECONDS,
    # What these are is not for the spec to know: see test_planner.
    "retry": [],
    "restart": [],
    "limits": [],
}


def test_every_field_of_a_spec_is_tried_with_wrong_input():
    assert list(WRONG) == list(JobSpec.model_fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG.items() for value in values],
    ids=lambda value: ascii(value)[:40],
)
def test_a_wrong_spec_names_the_field(field, value):
    with pytest.raises(InvalidJob) as caught:
        spec(**{field: value})
    assert caught.value.field == field
    assert str(caught.value) == f"{field}: {caught.value.problem}"
    assert len(str(caught.value)) < 200


def test_a_spec_without_a_command_is_refused():
    with pytest.raises(InvalidJob) as caught:
        JobSpec({"job_id": "a"})
    assert caught.value.field == "command"


@pytest.mark.parametrize("key", ["comand", "f_command", "self_id", "status", "self", "data", 5])
def test_a_keyword_that_is_no_field_is_refused_by_its_name(key):
    with pytest.raises(InvalidJob) as caught:
        spec(**{key: "x"}) if isinstance(key, str) else JobSpec({"command": "true", key: "x"})
    assert caught.value.field == str(key)
    assert caught.value.problem.startswith("there is no such field")


@pytest.mark.parametrize(
    ("key", "meant"), [("env", "envs"), ("comand", "command"), ("dependson", "depends_on")]
)
def test_a_keyword_that_is_nearly_a_field_is_told_what_it_might_be(key, meant):
    with pytest.raises(InvalidJob, match=f"{key}: there is no such field; did you mean '{meant}'"):
        spec(**{key: "x"})


def test_what_has_nothing_to_say_is_left_out_of_what_is_shown():
    shown = repr(JobSpec(command=["echo", "hi"], name=None, tags=["a"]))
    assert shown == "JobSpec(command=['echo', 'hi'], tags=['a'])"


def test_the_part_of_a_command_that_cannot_be_one_is_told():
    with pytest.raises(InvalidJob, match="command: part 1: contains a NUL byte"):
        spec(command=["echo", "a\0b"])


@pytest.mark.parametrize(
    "envs",
    [
        {"TOKEN": SECRET + "\0"},
        {"TOKEN": SECRET.encode()},
        {"TOKEN": [SECRET]},
        {"A=B": SECRET},
        {"": SECRET},
        {5: SECRET},
        [("TOKEN", SECRET)],
        f"TOKEN={SECRET}",
        {"OK": SECRET, "TOKEN": 5},
    ],
    ids=str,
)
def test_a_value_of_the_environment_is_not_in_the_message(envs):
    with pytest.raises(InvalidJob) as caught:
        spec(envs=envs)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)


def test_a_value_of_the_environment_is_not_in_a_message_about_another_field():
    with pytest.raises(InvalidJob) as caught:
        spec(envs={"TOKEN": SECRET}, timeout=-1)
    assert SECRET not in repr(caught.value)


def test_a_value_of_the_environment_is_not_in_the_repr_of_a_spec():
    made = spec(envs={"TOKEN": SECRET})
    assert SECRET not in repr(made)
    assert SECRET not in str(made)


def test_a_message_names_each_status_that_would_do_once():
    with pytest.raises(InvalidJob) as caught:
        record(status="nope")
    assert str(caught.value).count("'running'") == 1


@pytest.mark.parametrize("value", [*WRONG_SECONDS, None], ids=lambda value: ascii(value)[:20])
def test_a_number_of_seconds_that_is_none_names_the_field(value):
    with pytest.raises(InvalidJob) as caught:
        check_seconds("timeout", value)
    assert caught.value.field == "timeout"


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, 1e9])
def test_a_number_of_seconds_is_given_back(value):
    assert check_seconds("timeout", value) == value


# What else is told.


def test_an_event_goes_through_json():
    event = JobEvent(seq=1, kind="status", at=NOON, job_id="a", status="running")
    assert JobEvent.model_validate_json(event.model_dump_json()) == event
    assert event["status"] is event.f_status is Status.running


def test_a_usage_has_the_habits_of_a_record():
    usage = Usage(processes=1, cpu_seconds=0.5, memory_bytes=1024)
    assert usage["processes"] == usage.f_processes == 1
    assert Usage.memory_bytes == "memory_bytes"


def test_an_attempt_goes_through_json():
    attempt = AttemptRecord(
        attempt=2,
        status="failed",
        started_at=NOON,
        finished_at=NOON + timedelta(seconds=1),
        pid=4711,
        exit_code=-9,
        evidence="adopted",
        error="killed by SIGKILL",
    )
    assert AttemptRecord.model_validate_json(attempt.model_dump_json()) == attempt
    event = JobEvent(seq=1, kind="status", at=NOON, job_id="a", status="pending", ended=attempt)
    again = JobEvent.model_validate_json(event.model_dump_json())
    assert again.ended == event["ended"] == attempt


@pytest.mark.parametrize(("ended", "fraction"), [(0, 0.0), (1, 0.25), (4, 1.0)])
def test_the_progress_of_a_batch_is_the_part_that_has_ended(ended, fraction):
    progress = BatchProgress(total=4, ended=ended, counts={Status.finished: ended})
    assert progress.fraction == fraction


def test_the_progress_of_a_batch_goes_through_json():
    progress = BatchProgress(total=3, ended=1, counts={"finished": 1, "running": 2})
    assert progress.counts == {Status.finished: 1, Status.running: 2}
    assert BatchProgress.model_validate_json(progress.model_dump_json()) == progress


def test_the_priorities_stand_in_their_order():
    by_rank = sorted(Priority, key=lambda priority: priority.value)
    assert by_rank.index(Priority.low) < by_rank.index(Priority.medium)
    assert by_rank.index(Priority.medium) < by_rank.index(Priority.high)
    assert record().priority == Priority.medium.value


@pytest.mark.parametrize("model", [JobRecord, JobFilter, JobSpec])
@pytest.mark.parametrize("data", [5, "text", ["self_id"], b"x"], ids=repr)
def test_a_model_is_made_from_a_mapping_and_nothing_else(model, data):
    with pytest.raises(InvalidJob, match="is made from a mapping of its fields") as caught:
        model(data)
    assert caught.value.field == model.__name__


def test_a_detached_record_shares_no_list_and_no_dict() -> None:
    schema = JobRecord.model_json_schema()["properties"]

    def may_be_shared(field: str) -> bool:
        kinds = [schema[field], *schema[field].get("anyOf", ())]
        return any(
            kind.get("type") in ("array", "object") or "JsonValue" in kind.get("$ref", "")
            for kind in kinds
        )

    fields = [field for field in schema if may_be_shared(field)]
    assert {"command", "metadata", "result", "reached"} <= set(fields)
    for value in (["a", {"b": ["c"]}], {"a": [{"b": "c"}]}):
        record = JobRecord(self_id="job", status="running").changed(dict.fromkeys(fields, value))
        detached = record.detached()
        assert detached == record
        for field in fields:
            mine, theirs = detached[field], record[field]
            assert mine is not theirs
            inner = 1 if isinstance(value, list) else "a"
            assert mine[inner] is not theirs[inner]
