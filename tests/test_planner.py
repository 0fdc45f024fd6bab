"""What a caller asks for, as the first record of a job and what starts it; or what is wrong."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anodejobs.errors import InvalidJob
from anodejobs.executors.base import LogPlan
from anodejobs.jobqueue import Priority
from anodejobs.logs import log_name, rotated_folder
from anodejobs.planner import Plan, Planner, spec_of
from anodejobs.records import JobRecord, JobSpec
from anodejobs.retries import (
    ExponentialBackoff,
    Failure,
    FixedDelay,
    RestartPolicy,
    RetryPolicy,
    retry_from_json,
)
from anodejobs.transitions import Opening

untimed = settings(deadline=None)

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
OPENINGS: list[Opening] = ["start", "submit", "create"]
BACKOFF = ExponentialBackoff(initial=2, exit_codes=[3])


class Mine(RetryPolicy):
    """A user's own."""

    delay_s: float = 1.5

    def delay_after(self, failure: Failure) -> float:
        return self.delay_s


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(tmp_path, stop_grace=7.0, log_max_bytes=1000, log_backups=2, is_shared=False)


def plan(planner: Planner, opening: Opening = "submit", **fields: Any) -> Plan:
    return planner.plan(JobSpec({"command": "true", **fields}), opening)


def planned(planner: Planner, **fields: Any) -> JobRecord:
    return plan(planner, **fields).record


def refusal(planner: Planner, opening: Opening = "submit", **fields: Any) -> InvalidJob:
    """Return why the fields are refused."""
    with pytest.raises(InvalidJob) as caught:
        plan(planner, opening, **fields)
    return caught.value


# What is to be known of the job, and what starts it.


@pytest.mark.parametrize(
    ("command", "argv"),
    [("exit 3", ("/bin/sh", "-c", "exit 3")), (["echo", "a b", ""], ("echo", "a b", ""))],
)
def test_a_string_goes_to_the_shell_and_a_list_does_not(planner, command, argv):
    made = plan(planner, command=command)
    assert (made.record.command, made.launch.argv) == (command, argv)


def test_a_job_without_an_id_gets_one_that_no_other_has(planner):
    ids = {plan(planner).record.self_id for _ in range(100)}
    assert len(ids) == 100


def test_the_launch_is_of_the_same_job_in_the_same_place(planner, tmp_path):
    made = plan(planner, job_id="../Ü", cwd=tmp_path / "x" / "..", timeout=2.5)
    record, launch = made.record, made.launch
    assert (launch.job_id, launch.cwd, launch.timeout) == ("../Ü", str(tmp_path), 2.5)
    assert (record.self_id, record.cwd, record.timeout) == ("../Ü", str(tmp_path), 2.5)
    assert launch.logs.stdout == f"{record.logdir}/{record.logfile}_out.txt"
    assert launch.logs.stderr == f"{record.logdir}/{record.logfile}_errors.txt"
    assert (launch.logs.max_bytes, launch.logs.backups) == (1000, 2)
    assert Path(record.logdir).parent == Path(record.dirname) == tmp_path


def test_a_job_starts_where_the_application_is_unless_it_says_otherwise(planner):
    assert planned(planner).cwd == os.getcwd()


def test_an_application_whose_folder_is_gone_must_name_one(planner, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert refusal(planner).field == "cwd"
    assert planned(planner, cwd=str(tmp_path)).cwd == str(tmp_path)


@pytest.mark.parametrize(("asked", "grace"), [({}, 7.0), ({"stop_grace": 0}, 0.0)])
def test_the_grace_is_that_of_all_jobs_unless_a_job_has_its_own(planner, asked, grace):
    assert plan(planner, **asked).launch.stop_grace == grace


def test_the_environment_is_the_present_one_unless_it_is_not_to_be_inherited(planner, monkeypatch):
    monkeypatch.setenv("COLOUR", "red")
    first = plan(planner, envs={"A": "b"}).launch
    assert (first.base_env["COLOUR"], first.envs) == ("red", {"A": "b"})
    monkeypatch.setenv("COLOUR", "blue")
    assert plan(planner).launch.base_env["COLOUR"] == "blue"
    assert first.base_env["COLOUR"] == "red"
    assert plan(planner, inherit_env=False).launch.base_env == {}


def test_jobs_of_one_environment_share_it(planner):
    assert plan(planner).launch.base_env is plan(planner).launch.base_env


def test_a_job_with_a_payload_is_told_where_it_lies_and_no_other_is(planner, monkeypatch):
    monkeypatch.setenv("ANODEJOBS_PAYLOAD", "/that/of/the/job/that/we/are")
    given = plan(planner, job_id="a", payload=[1], envs={"A": "b"}).launch
    assert given.envs == {"A": "b", "ANODEJOBS_PAYLOAD": planner.files.payload("a")}
    assert "ANODEJOBS_PAYLOAD" not in given.base_env
    assert plan(planner, envs={"A": "b"}).launch.envs == {"A": "b"}


def test_limits_are_on_record_and_in_the_launch(planner):
    made = plan(planner, limits={"memory_bytes": 2**30})
    assert made.record.limits == made.launch.limits == {"memory_bytes": 2**30}
    assert plan(planner, limits={}).record.limits is None
    assert refusal(planner, limits={"nope": 1}).field


def test_another_environment_can_be_inherited(planner):
    env = {"COLOUR": "red"}
    made = planner.plan(JobSpec(command="true"), "submit", base_env=env, batch_id="b1")
    assert (made.launch.base_env, made.record.batch_id) == (env, "b1")


# How a job opens.


@pytest.mark.parametrize(
    ("opening", "status"), [("start", "starting"), ("submit", "queued"), ("create", "pending")]
)
@pytest.mark.parametrize("fields", [{}, {"queue": "q", "priority": 5}], ids=["plain", "queued"])
def test_a_job_opens_as_its_caller_wants(planner, opening, status, fields):
    record = plan(planner, opening, **fields).record
    assert record.status == status
    assert record.created_at == record.last_update
    assert record.submitted_at == (None if opening == "create" else record.created_at)


@pytest.mark.parametrize("fields", [{"depends_on": ["b"]}, {"run_at": NOON}], ids=str)
def test_what_waits_for_more_than_a_slot_is_pending(planner, fields):
    assert plan(planner, "submit", **fields).record.status == "pending"


def test_a_job_that_says_when_it_may_start_is_due_then(planner):
    record = planned(planner, run_at=NOON.replace(tzinfo=None))
    assert (record.run_at, record.due_at) == (NOON, NOON)


def test_a_plain_job_has_what_a_job_has_that_asks_for_nothing(planner):
    defaults = {
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
        "payload": None,
    }
    ignored = {"self_id", "logfile", "created_at", "last_update", "submitted_at", "revision"}
    plain, spelled = planned(planner), planned(planner, **defaults)
    assert plain.model_dump(exclude=ignored) == spelled.model_dump(exclude=ignored)


@pytest.mark.parametrize("value", [*Priority, *(priority.name for priority in Priority), 5, -5])
def test_a_priority_is_kept_as_a_number(planner, value):
    expected = Priority[value].value if isinstance(value, str) else int(value)
    kept = planned(planner, priority=value).priority
    assert (kept, type(kept)) == (expected, int)


# What goes with what.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depends_on", ["b"]),
        ("run_at", NOON),
        ("run_at", NOON - timedelta(days=9000)),
        ("start_deadline", 5.0),
        ("start_deadline", 0),
    ],
)
def test_what_is_for_jobs_that_wait_is_refused_where_one_starts_at_once(planner, field, value):
    refused = refusal(planner, "start", **{field: value})
    assert (refused.field, "submit" in refused.problem) == (field, True)
    assert plan(planner, "submit", **{field: value}).record[field] == value
    assert plan(planner, "create", **{field: value}).record[field] == value


def test_what_names_no_dependency_and_no_time_is_no_reason_to_refuse_a_start(planner):
    nothing = {"depends_on": [], "run_at": None, "start_deadline": None, "queue": "q"}
    assert plan(planner, "start", **nothing).record.status == "starting"


@pytest.mark.parametrize("depends_on", [["me"], ["b", "me"]])
def test_a_job_that_depends_on_itself_is_refused(planner, depends_on):
    refused = refusal(planner, job_id="me", depends_on=depends_on)
    assert (refused.field, "itself" in refused.problem) == ("depends_on", True)


@pytest.mark.parametrize("depends_on", [[0], ["b", 1]])
def test_a_dependency_by_number_is_refused_outside_of_a_batch(planner, depends_on):
    refused = refusal(planner, depends_on=depends_on)
    assert (refused.field, "number" in refused.problem) == ("depends_on", True)


def test_the_record_does_not_share_the_list_of_its_dependencies(planner):
    spec = JobSpec(command="true", depends_on=["b"])
    planner.plan(spec, "submit").record.depends_on.append("c")
    assert spec.depends_on == ["b"]


# Retries and restarts.


@pytest.mark.parametrize(
    ("asked", "policy"),
    [
        ({"max_retries": 2}, FixedDelay(0.0)),
        ({"max_retries": 1, "retry_delay": 1.5}, FixedDelay(1.5)),
        ({"max_retries": 1, "retry_delay": 0}, FixedDelay(0.0)),
        ({"max_retries": 3, "retry": BACKOFF}, BACKOFF),
        ({"max_retries": 3, "retry": {"kind": "fixed", "delay": 2}}, FixedDelay(2.0)),
        ({"max_retries": 3, "retry": Mine(delay_s=9.0)}, Mine(delay_s=9.0)),
        ({"max_retries": 3, "retry": Mine(), "restart": "never"}, Mine()),
    ],
    ids=str,
)
@pytest.mark.parametrize("opening", OPENINGS)
def test_the_policy_for_retries_is_kept_as_json(planner, opening, asked, policy):
    record = plan(planner, opening, **asked).record
    assert record.max_retries == asked["max_retries"]
    assert record.retry is not None
    assert retry_from_json(record.retry) == policy
    assert JobRecord.model_validate_json(record.model_dump_json()) == record
    assert (record.restart, record.restart_policy) == ("never", None)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"retry_delay": 1.0}, "max_retries"),
        ({"retry_delay": 0}, "max_retries"),
        ({"retry": FixedDelay(1.0)}, "max_retries"),
        ({"retry": FixedDelay(1.0), "max_retries": 0}, "max_retries"),
        ({"retry": FixedDelay(1.0), "restart": "always"}, "max_retries"),
        ({"max_retries": 2, "restart": "always"}, "restart"),
        ({"max_retries": 2, "restart": {"when": "on-failure"}}, "restart"),
        ({"max_retries": 2, "retry": FixedDelay(1.0), "retry_delay": 1.0}, "retry_delay"),
        ({"max_retries": 2, "retry": FixedDelay(1.0), "retry_delay": 0}, "retry_delay"),
        ({"max_retries": 2, "retry_delay": 1e12}, "retry_delay"),
        *(({"max_retries": 2, "retry": wrong}, "retry") for wrong in ("fixed", 1.0, {}, [1], True)),
        ({"max_retries": 2, "retry": {"kind": "os:system"}}, "retry"),
        ({"max_retries": 2, "retry": {"kind": f"{__name__}:Mine"}}, "retry"),
        ({"max_retries": 2, "retry": {"kind": "fixed", "delay": -1}}, "retry"),
        *(
            ({"restart": wrong}, "restart")
            for wrong in ("", "sometimes", True, None, 5, ["always"])
        ),
        ({"restart": {"when": "always", "limit": 0}}, "restart"),
        ({"restart": RestartPolicy(limit=3)}, "restart"),  # which says how, and not when
        ({"restart": {}}, "restart"),
        ({"restart": {"when": "always", "nope": 1}}, "restart"),
    ],
    ids=str,
)
@pytest.mark.parametrize("opening", OPENINGS)
def test_what_does_not_go_together_is_refused(planner, opening, asked, field):
    assert refusal(planner, opening, **asked).field == field


@pytest.mark.parametrize("when", ["on-failure", "always"])
def test_a_usual_restart_needs_no_policy_on_record(planner, when):
    for asked in (when, {"when": when}, RestartPolicy(when=when)):
        record = planned(planner, restart=asked)
        assert (record.restart, record.restart_policy, record.retry) == (when, None, None)


def test_an_unusual_restart_is_kept_as_json(planner):
    policy = RestartPolicy(when="always", initial=0.5, limit=None)
    record = planned(planner, restart=policy)
    assert record.restart == "always"
    assert record.restart_policy is not None
    assert RestartPolicy(record.restart_policy) == policy
    assert JobRecord.model_validate_json(record.model_dump_json()) == record


# Functions in place of commands.


def test_a_call_stands_for_a_command():
    spec = spec_of({"call": "json:dumps", "payload": {"obj": 1}})
    assert isinstance(spec.command, list)
    assert spec.payload == {"obj": 1}


def test_arguments_without_a_call_are_a_spec():
    assert spec_of({"command": "true", "call": None, "name": "x"}) == JobSpec(
        command="true", name="x"
    )


@pytest.mark.parametrize("nothing", [{}, {"command": None}, {"call": None}], ids=str)
def test_without_a_command_the_message_tells_of_the_call_too(nothing):
    with pytest.raises(InvalidJob, match="command: is missing, and so is a call") as caught:
        spec_of(nothing)
    assert caught.value.field == "command"


def test_a_priority_that_there_is_not_is_answered_with_those_there_are(planner):
    problem = refusal(planner, "submit", priority="hgih").problem
    assert problem == "must be 'low', 'medium', 'high', 'critical' or an int"


@pytest.mark.parametrize("wrong", [{"call": 5}, {"call": "json:dumps", "command": "true"}], ids=str)
def test_a_wrong_call_names_the_field(wrong):
    with pytest.raises(InvalidJob) as caught:
        spec_of(wrong)
    assert caught.value.field == "call"


# The logs of attempts.

# Ids that are made to come near the names of each other's logs.
JOB_IDS = st.one_of(
    st.text(min_size=1, max_size=200).filter(str.isprintable),
    st.lists(
        st.sampled_from(
            ["a", "A", "%", "+", "-", "2", "%+2", "%2B", "_", "_out.txt", ".", "x" * 60]
        ),
        min_size=1,
        max_size=5,
    ).map("".join),
)
NUMBERS = st.integers(1, 2**31) | st.integers(1, 30)


def logs_of_attempt(job_id: str, number: int) -> LogPlan:
    name = log_name(job_id)
    first = LogPlan(stdout=f"/logs/{name}_out.txt", stderr=f"/logs/{name}_errors.txt")
    return first.of_attempt(number)


@untimed
@given(st.lists(st.tuples(JOB_IDS, NUMBERS), unique=True, max_size=8))
def test_no_two_attempts_share_a_file(attempts):
    names: list[str] = []
    for job_id, number in attempts:
        logs = logs_of_attempt(job_id, number)
        for log in (logs.path("stdout"), logs.path("stderr")):
            names += [str(log), str(rotated_folder(log))]
    # Some file systems take names for the same that differ in case.
    assert len({name.lower() for name in names}) == len(names) == 4 * len(attempts)


@untimed
@given(JOB_IDS, NUMBERS)
def test_every_attempt_has_its_logs_in_the_same_folder_under_names_it_can_have(job_id, number):
    logs = logs_of_attempt(job_id, number)
    for path in (logs.stdout, logs.stderr):
        folder, _, name = path.rpartition("/")
        assert folder == "/logs"
        assert len(os.fsencode(name)) + len(".rotated") <= 255
        assert not name.startswith((".", "-"))


def test_the_first_attempt_has_its_logs_where_the_record_says(planner):
    logs = plan(planner, job_id="a").launch.logs
    assert logs.of_attempt(1) == logs
    assert Path(logs.of_attempt(2).stdout).name == "a%+2_out.txt"


@pytest.mark.parametrize("job_id", ["a%+2", "a%2B2", "a+2", "A"])
def test_the_logs_of_a_second_attempt_are_no_other_jobs(job_id):
    second = logs_of_attempt("a", 2)
    assert {second.stdout, second.stderr}.isdisjoint(
        {logs_of_attempt(job_id, 1).stdout, logs_of_attempt(job_id, 1).stderr}
    )


def test_a_folder_with_an_underscore_and_a_dot_stays_as_it_is():
    logs = LogPlan(stdout="/a_b.c/x_out.txt", stderr="/a_b.c/x_errors.txt", max_bytes=5, backups=3)
    later = logs.of_attempt(12)
    assert later.stdout == "/a_b.c/x%+12_out.txt"
    assert later.stderr == "/a_b.c/x%+12_errors.txt"
    assert (later.max_bytes, later.backups) == (5, 3)


def test_a_launch_of_a_later_attempt_differs_in_its_logs_alone(planner):
    launch = plan(planner, job_id="a", envs={"A": "b"}, timeout=1.0).launch
    launch.to_text()  # which is kept, and must not be taken for that of another attempt
    later = launch.of_attempt(3)
    assert later.logs == launch.logs.of_attempt(3)
    assert launch.of_attempt(1) is launch
    assert "a%+3_out.txt" in later.to_text()
    assert later.base_env is launch.base_env
    assert (later.argv, later.envs, later.timeout) == (launch.argv, launch.envs, launch.timeout)


# What was planned elsewhere.


def test_what_was_planned_here_is_started_as_it_is(planner):
    planned = plan(planner, payload={"a": 1})
    assert planner.place.bring(planned.launch) is planned.launch
    assert planner.place.bring_plan(planned) is planned


def test_what_was_planned_elsewhere_has_its_logs_and_files_here(planner, tmp_path):
    here = Planner(
        tmp_path / "here", stop_grace=1.0, log_max_bytes=None, log_backups=1, is_shared=True
    )
    planned = plan(planner, job_id="a/b", payload={"a": 1}, envs={"MINE": "1"})
    brought = here.place.bring_plan(planned)
    assert brought.record.dirname == str(tmp_path / "here")
    assert brought.record.logdir == str(here.log_dir)
    expected = plan(here, job_id="a/b", payload={"a": 1}, envs={"MINE": "1"}).launch
    assert brought.launch.envs == expected.envs
    assert brought.launch.files == expected.files
    assert brought.launch.logs.stdout == expected.logs.stdout
    assert brought.launch.logs.stderr == expected.logs.stderr
    # As the job was asked to be run.
    assert brought.launch.stop_grace == planned.launch.stop_grace
    assert brought.launch.logs.max_bytes == planned.launch.logs.max_bytes
    assert brought.launch.argv == planned.launch.argv


def test_a_variable_of_the_users_own_stays_wherever_a_job_is_run(planner, tmp_path):
    here = Planner(
        tmp_path / "here", stop_grace=1.0, log_max_bytes=None, log_backups=1, is_shared=True
    )
    envs = {"ANODEJOBS_PAYLOAD": "/srv/mine.json"}
    brought = here.place.bring(plan(planner, envs=envs).launch)
    assert brought.envs == envs


@pytest.mark.parametrize("is_shared", [False, True])
def test_where_machines_share_records_there_may_be_files_of_any_job(tmp_path, is_shared):
    where = Planner(
        tmp_path, stop_grace=1.0, log_max_bytes=None, log_backups=1, is_shared=is_shared
    )
    assert plan(where).launch.earlier == (1 if is_shared else 0)
