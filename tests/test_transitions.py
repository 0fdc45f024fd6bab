"""The life of a job: every cell of the table, and what each event says beside the status."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta
from signal import Signals

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anodejobs import InvalidTransition, JobRecord, Status, StatusUnreachable
from anodejobs.events import (
    Admitted,
    Adopted,
    Attempt,
    Claimed,
    Event,
    Exited,
    Lost,
    Paused,
    Readied,
    Relinked,
    Resumed,
    Started,
    StartFailed,
    StopFailed,
    StopRequested,
    Submitted,
    Withdrawn,
    utc_now,
)
from anodejobs.records import TERMINAL, WAITING
from anodejobs.transitions import (
    EVENTS,
    SIGNALLABLE,
    TABLE,
    ended_attempt,
    has_reached,
    opened,
    renewed,
    reopened,
    transition,
)

NOW = utc_now()
EARLIER = NOW - timedelta(minutes=1)
ATTEMPT = Attempt(token="t0ken", supervisor="nobody", pid=4711)

CODE_0 = Exited(at=NOW, exit_code=0, evidence="observed")
CODE_3 = Exited(at=NOW, exit_code=3, evidence="observed")
KILLED = Exited(at=NOW, exit_code=-9, evidence="observed")
LATER = NOW + timedelta(minutes=1)
EXAMPLES = {
    "Submitted": Submitted(at=NOW, is_ready=False),
    "Submitted ready": Submitted(at=NOW, is_ready=True),
    "Readied": Readied(at=NOW),
    "Admitted": Admitted(at=NOW, attempt=ATTEMPT),
    "Withdrawn": Withdrawn(at=NOW),
    "Relinked": Relinked(at=NOW, depends_on=("b",)),
    "Started": Started(at=NOW, attempt=ATTEMPT),
    "StartFailed": StartFailed(at=NOW, error="no such program"),
    "Claimed": Claimed(at=NOW),
    "Adopted": Adopted(at=NOW, attempt=ATTEMPT),
    "Paused": Paused(at=NOW),
    "Resumed": Resumed(at=NOW),
    "StopRequested": StopRequested(at=NOW),
    "StopFailed": StopFailed(at=NOW, error="alive after SIGKILL"),
    "Exited 0": CODE_0,
    "Exited 3": CODE_3,
    "Lost": Lost(at=NOW, error="it is gone"),
    "Lost failing": Lost(at=NOW, error="it is gone", is_failure=True),
}
# The same ends where another attempt is to follow.
AGAIN = {
    f"{name} again": replace(EXAMPLES[name], retry_at=LATER)
    for name in ("StartFailed", "Exited 0", "Exited 3", "Lost")
}
EXAMPLES |= AGAIN

# What each event makes of each status. "=" leaves the record as it is, "!" is refused.
EXPECTED = """
              Submitted  Submitted_ready  Readied  Admitted  Withdrawn  Relinked
pending       pending    queued           queued   !         cancelled  pending
queued        =          =                =        starting  cancelled  pending
starting      !          !                !        !         !          !
running       !          !                !        !         !          !
paused        !          !                !        !         !          !
stopping      !          !                !        !         !          !
finished      !          !                !        !         =          !
failed        !          !                !        !         =          !
failed_start  !          !                !        !         =          !
stopped       !          !                !        !         =          !
cancelled     !          !                !        !         =          !
lost          !          !                !        !         =          !
failed_stop   !          !                !        !         !          !

              Started  StartFailed   Claimed      Adopted      Paused  Resumed  StopRequested  StopFailed   Exited_0  Exited_3  Lost
pending       !        !             !            !            !       !        !              !            !         !         !
queued        !        !             !            !            !       !        !              !            !         !         !
starting      running  failed_start  starting     running      !       !        !              !            !         !         lost
running       !        !             running      running      paused  =        stopping       !            finished  failed    lost
paused        !        !             paused       paused       =       running  stopping       !            finished  failed    lost
stopping      !        !             stopping     stopping     !       !        =              failed_stop  stopped   stopped   lost
finished      !        !             !            !            !       !        =              !            =         =         =
failed        !        !             !            !            !       !        =              !            =         =         =
failed_start  !        !             !            !            !       !        =              !            =         =         =
stopped       !        !             !            !            !       !        =              !            =         =         =
cancelled     !        !             !            !            !       !        =              !            =         =         =
lost          !        !             !            !            !       !        =              !            =         =         =
failed_stop   !        !             failed_stop  failed_stop  !       !        stopping       !            stopped   stopped   lost

              Lost_failing
pending       !
queued        !
starting      failed
running       failed
paused        failed
stopping      lost
finished      =
failed        =
failed_start  =
stopped       =
cancelled     =
lost          =
failed_stop   lost

              StartFailed_again  Exited_0_again  Exited_3_again  Lost_again
pending       !                  !               !               !
queued        !                  !               !               !
starting      pending            !               !               pending
running       !                  pending         pending         pending
paused        !                  pending         pending         pending
stopping      !                  stopped         stopped         lost
finished      !                  =               =               =
failed        !                  =               =               =
failed_start  !                  =               =               =
stopped       !                  =               =               =
cancelled     !                  =               =               =
lost          !                  =               =               =
failed_stop   !                  stopped         stopped         lost
"""  # noqa: E501
TABLES = [[line.split() for line in table.splitlines()] for table in EXPECTED.strip().split("\n\n")]
HEAD = [name for head, *_ in TABLES for name in head]
CELLS = [
    (Status(status), event.replace("_", " "), cell)
    for head, *rows in TABLES
    for status, *cells in rows
    for event, cell in zip(head, cells, strict=True)
]


def record(status: Status | str, **fields: object) -> JobRecord:
    """Return a record as it may be in the middle of a job's life."""
    usual = {"self_id": "a", "reached": ["starting", Status(status)], "last_update": EARLIER}
    return JobRecord({**usual, "status": status, "revision": 5, **fields})


# The table.


def test_the_table_has_a_cell_for_every_pair():
    assert set(TABLE) == set(Status)
    for row in TABLE.values():
        assert set(row) == set(EVENTS)


def test_the_table_knows_every_event_there_is():
    def below(event: type[Event]) -> set[type[Event]]:
        return {event}.union(*(below(child) for child in event.__subclasses__()))

    # A dataclass with slots is made twice, and the first one may not have been collected yet.
    names = {event.__qualname__ for event in below(Event) if event.__module__ == Event.__module__}
    assert {event.__qualname__ for event in EVENTS} == names - {"Event"}
    assert len(EVENTS) == len(set(EVENTS))


def test_every_pair_has_its_expectation_here():
    for _, *rows in TABLES:
        assert [status for status, *_ in rows] == [status.value for status in Status]
    assert {type(event) for event in EXAMPLES.values()} == set(EVENTS)
    assert [name.replace("_", " ") for name in HEAD] == list(EXAMPLES)


@pytest.mark.parametrize(("status", "name", "cell"), CELLS)
def test_a_status_and_an_event_make(status, name, cell):
    before = record(status)
    event = EXAMPLES[name]
    if cell == "!":
        with pytest.raises(InvalidTransition) as caught:
            transition(before, event)
        facts = (caught.value.job_id, caught.value.status, caught.value.event)
        assert facts == ("a", status, type(event).__name__)
        said, _, refused = str(caught.value).partition(": it cannot be ")
        assert said == f"job 'a' is {status}"
        assert refused and type(event).__name__ not in refused
    elif cell == "=":
        assert transition(before, event) is before
    else:
        assert transition(before, event).status is Status(cell)


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_no_event_changes_an_ended_job(status):
    before = record(status)
    for event in EXAMPLES.values():
        try:
            after = transition(before, event)
        except InvalidTransition:
            continue
        assert after is before


def test_the_statuses_with_known_processes_are_these():
    assert {"running", "paused", "stopping", "failed_stop"} == SIGNALLABLE


# What a transition does beside the status.

CHANGES = [(s, name) for s, name, cell in CELLS if cell not in "!="]


@pytest.mark.parametrize(("status", "name"), CHANGES)
def test_each_change_counts_one_revision_and_tells_its_time(status, name):
    after = transition(record(status), EXAMPLES[name])
    assert (after.revision, after.last_update) == (6, NOW)


@pytest.mark.parametrize(("status", "name"), CHANGES)
def test_a_transition_leaves_the_record_before_it_alone(status, name):
    before = record(status)
    kept = copy.deepcopy(before)
    after = transition(before, EXAMPLES[name])
    assert before == kept
    assert after is not before


@pytest.mark.parametrize(("status", "name"), CHANGES)
def test_each_status_is_reached_once_in_order(status, name):
    before = record(status)
    after = transition(before, EXAMPLES[name])
    fresh = [] if after.status in before.reached else [after.status]
    so_far = [] if after.attempt > before.attempt else before.reached
    assert after.reached == [*so_far, *(fresh if so_far else [after.status])]


@pytest.mark.parametrize(("status", "name"), CHANGES)
def test_only_an_end_is_told_as_one(status, name):
    after = transition(record(status), EXAMPLES[name])
    assert (after.finished_at is not None) == (after.is_done or after.attempt == 2)
    assert (after.exit_code is not None) == name.startswith("Exited")
    assert (after.evidence is not None) == (after.exit_code is not None)


@pytest.mark.parametrize(("status", "name"), CHANGES)
def test_a_transition_keeps_what_was_asked_for(status, name):
    asked = {"name": "x", "tags": ["t"], "command": ["true"], "metadata": {"a": 1}, "timeout": 2.0}
    after = transition(record(status, **asked, created_at=EARLIER, attempt=3), EXAMPLES[name])
    assert after.model_dump(include=set(asked) - {"metadata"}) | {"metadata": {"a": 1}} == asked
    assert after.metadata["a"] == 1
    assert after.metadata.keys() - {"a"} == ({"recovery_history"} if "Lost" in name else set())
    assert (after.self_id, after.created_at) == ("a", EARLIER)


@pytest.mark.parametrize(("status", "name"), CHANGES)
def test_another_attempt_is_counted_where_one_is_to_follow_and_nowhere_else(status, name):
    after = transition(record(status, attempt=3), EXAMPLES[name])
    follows = name in AGAIN and after.status is Status.pending
    assert after.attempt == (4 if follows else 3)
    assert after.due_at == (LATER if follows else None)


# Taking turns.


def test_what_is_submitted_tells_when():
    for status in (EXAMPLES["Submitted"], EXAMPLES["Submitted ready"]):
        assert transition(record("pending"), status).submitted_at == NOW


def test_an_admitted_job_has_nothing_of_the_attempt_before():
    of_the_last = {
        "last_pid": 1,
        "started_at": EARLIER,
        "finished_at": EARLIER,
        "exit_code": 1,
        "evidence": "observed",
        "error": "exit code 1",
        "cpu_seconds": 0.25,
        "peak_memory_bytes": 4096,
        "progress": 0.5,
        "due_at": EARLIER,
    }
    after = transition(record("queued", **of_the_last, attempt=2), EXAMPLES["Admitted"])
    assert after.model_dump(include=set(of_the_last)) == dict.fromkeys(of_the_last)
    assert (after.status, after.attempt) == ("starting", 2)


def test_a_withdrawn_job_tells_why_where_nobody_asked_for_it():
    after = transition(record("queued"), Withdrawn(at=NOW, error="'b' failed"))
    assert (after.status, after.error, after.finished_at) == ("cancelled", "'b' failed", NOW)
    assert transition(record("queued"), Withdrawn()).error is None


@pytest.mark.parametrize("status", ["pending", "queued"])
def test_a_relinked_job_waits_for_what_it_depends_on_now(status):
    after = transition(record(status, depends_on=["old"]), EXAMPLES["Relinked"])
    assert (after.status, after.depends_on) == ("pending", ["b"])


# Another attempt.


@pytest.mark.parametrize(
    ("before", "name", "ended"),
    [
        ("starting", "StartFailed again", "failed_start"),
        ("starting", "Lost again", "lost"),
        ("running", "Exited 0 again", "finished"),
        ("running", "Exited 3 again", "failed"),
        ("paused", "Lost again", "lost"),
    ],
)
def test_an_attempt_that_another_follows_is_told_as_it_ended(before, name, ended):
    old = record(before, attempt=2, started_at=EARLIER, last_pid=4711)
    event = EXAMPLES[name]
    after = transition(old, event)
    alone = transition(old, replace(event, retry_at=None))
    told = ended_attempt(old, event, after)
    assert (told.attempt, told.status) == (2, ended)
    assert (told.started_at, told.finished_at, told.pid) == (EARLIER, NOW, 4711)
    assert (told.exit_code, told.evidence, told.error) == (
        alone.exit_code,
        alone.evidence,
        alone.error,
    )


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - set(AGAIN)))
@pytest.mark.parametrize("status", Status)
def test_no_attempt_is_told_as_ended_where_none_follows(status, name):
    before = record(status)
    try:
        after = transition(before, EXAMPLES[name])
    except InvalidTransition:
        return
    assert ended_attempt(before, EXAMPLES[name], after) is None


@pytest.mark.parametrize(
    "event",
    [
        AGAIN["Exited 0 again"],
        AGAIN["Exited 3 again"],
        replace(AGAIN["Exited 3 again"], ended_by_itself=True),
        AGAIN["Lost again"],
    ],
)
@pytest.mark.parametrize("status", ["stopping", "failed_stop"])
def test_what_a_caller_has_stopped_is_not_started_again(status, event):
    before = record(status)
    after = transition(before, event)
    assert after.is_done
    assert (after.attempt, after.due_at, after.reached[0]) == (1, None, "starting")
    assert ended_attempt(before, event, after) is None


@pytest.mark.parametrize("name", ["Exited 0 again", "Exited 3 again", "Lost again"])
def test_what_was_stopped_because_of_an_error_may_be_started_again(name):
    stopping = transition(record("running"), StopRequested(error="took longer than 2 s"))
    after = transition(stopping, EXAMPLES[name])
    assert (after.status, after.attempt, after.due_at) == ("pending", 2, LATER)


def test_an_attempt_that_took_too_long_has_failed_whatever_its_exit_code():
    stopping = transition(record("running"), StopRequested(error="took longer than 2 s"))
    told = ended_attempt(
        stopping, AGAIN["Exited 0 again"], transition(stopping, AGAIN["Exited 0 again"])
    )
    assert (told.status, told.exit_code, told.error) == ("failed", 0, "took longer than 2 s")


def test_a_service_that_is_given_up_says_so():
    exited = replace(CODE_3, gave_up="gave up: 10 restarts in 600 s")
    after = transition(record("running"), exited)
    assert (after.status, after.error) == ("failed", "exit code 3; gave up: 10 restarts in 600 s")
    after = transition(record("running"), replace(CODE_0, gave_up="gave up: 1 restart in 9 s"))
    assert (after.status, after.error) == ("finished", "gave up: 1 restart in 9 s")


# Starting, adopting.


def test_a_start_tells_the_pid_and_the_time():
    after = transition(record("starting"), EXAMPLES["Started"])
    assert (after.last_pid, after.started_at) == (4711, NOW)


def test_a_failed_start_tells_why():
    after = transition(record("starting"), EXAMPLES["StartFailed"])
    assert (after.error, after.finished_at, after.exit_code) == ("no such program", NOW, None)


def test_adopting_a_job_whose_start_nobody_told_tells_the_pid_and_the_time():
    after = transition(record("starting"), EXAMPLES["Adopted"])
    assert (after.status, after.last_pid, after.started_at) == ("running", 4711, NOW)


def test_adopting_a_job_keeps_the_time_of_its_start():
    after = transition(record("paused", started_at=EARLIER), EXAMPLES["Adopted"])
    assert (after.status, after.started_at) == ("paused", EARLIER)


def test_being_claimed_changes_nothing_that_users_see():
    before = record("running", started_at=EARLIER, last_pid=1)
    after = transition(before, EXAMPLES["Claimed"])
    ignored = {"revision", "last_update"}
    assert after.model_dump(exclude=ignored) == before.model_dump(exclude=ignored)


# Ends.


@pytest.mark.parametrize("status", ["running", "paused"])
@pytest.mark.parametrize(
    ("code", "grace", "expected", "error"),
    [
        (0, False, "finished", None),
        (0, True, "finished", None),
        (1, False, "failed", "exit code 1"),
        (255, True, "failed_start", "exit code 255"),
        (-9, False, "failed", "killed by SIGKILL"),
        (-15, True, "failed_start", "killed by SIGTERM"),
        (-40, False, "failed", "killed by signal 40"),
    ],
)
def test_an_exit_of_its_own(status, code, grace, expected, error):
    exited = Exited(at=NOW, exit_code=code, evidence="adopted", in_start_grace=grace)
    after = transition(record(status), exited)
    assert (after.status, after.exit_code, after.error) == (expected, code, error)
    assert (after.evidence, after.finished_at) == ("adopted", NOW)


@pytest.mark.parametrize("signal", [s for s in Signals if s.name not in ("SIGRTMIN", "SIGRTMAX")])
def test_an_end_by_a_signal_is_told_by_its_name(signal):
    exited = Exited(exit_code=-signal, evidence="observed")
    assert transition(record("running"), exited).error == f"killed by {signal.name}"


@pytest.mark.parametrize("exited", [CODE_0, CODE_3, KILLED], ids=["code 0", "code 3", "killed"])
def test_a_job_that_ended_because_asked_to_is_stopped_without_an_error(exited):
    stopping = transition(record("running"), StopRequested())
    after = transition(stopping, exited)
    assert (after.status, after.exit_code, after.error) == ("stopped", exited.exit_code, None)


@pytest.mark.parametrize("exited", [CODE_0, CODE_3, KILLED], ids=["code 0", "code 3", "killed"])
def test_a_job_that_was_stopped_because_of_an_error_has_failed_with_it(exited):
    stopping = transition(record("running"), StopRequested(error="took longer than 2 s"))
    assert stopping.error == "took longer than 2 s"
    after = transition(stopping, exited)
    assert (after.status, after.exit_code) == ("failed", exited.exit_code)
    assert after.error == "took longer than 2 s"


@pytest.mark.parametrize("request_", [StopRequested(), StopRequested(error="took too long")])
@pytest.mark.parametrize(
    ("code", "grace", "expected", "error"),
    [
        (0, False, "finished", None),
        (3, False, "failed", "exit code 3"),
        (3, True, "failed_start", "exit code 3"),
        (-11, False, "failed", "killed by SIGSEGV"),
    ],
)
def test_a_job_that_was_dead_before_it_was_signalled_ended_by_itself(
    request_, code, grace, expected, error
):
    exited = Exited(exit_code=code, evidence="observed", ended_by_itself=True, in_start_grace=grace)
    after = transition(transition(record("running"), request_), exited)
    assert (after.status, after.exit_code, after.error) == (expected, code, error)


def test_a_second_request_to_stop_does_not_make_it_a_failure():
    stopping = transition(record("running"), StopRequested())
    again = transition(stopping, StopRequested(error="took too long"))
    assert transition(again, KILLED).status == "stopped"


def test_a_job_alive_after_sigkill_can_be_stopped_again():
    stopping = transition(record("running"), StopRequested())
    stuck = transition(stopping, StopFailed(error="alive after SIGKILL"))
    assert (stuck.status, stuck.error, stuck.is_done) == ("failed_stop", None, False)
    again = transition(stuck, StopRequested())
    assert (again.status, again.error) == ("stopping", None)
    after = transition(again, KILLED)
    assert (after.status, after.error) == ("stopped", None)


def test_a_job_that_timed_out_and_outlived_sigkill_has_failed_in_the_end():
    stopping = transition(record("running"), StopRequested(error="took too long"))
    stuck = transition(stopping, StopFailed(error="alive after SIGKILL"))
    after = transition(stuck, KILLED)
    assert (after.status, after.error) == ("failed", "took too long")


@pytest.mark.parametrize("status", ["starting", "running", "paused", "stopping", "failed_stop"])
def test_a_lost_job_has_no_exit_code(status):
    after = transition(record(status), EXAMPLES["Lost"])
    assert (after.status, after.exit_code, after.evidence) == ("lost", None, None)
    assert (after.error, after.finished_at) == ("it is gone", NOW)


@pytest.mark.parametrize("result", [{"a": [1, None]}, "text", 0, False, None])
def test_an_end_tells_the_result_and_the_last_progress(result):
    exited = replace(CODE_0, result=result, progress=0.5)
    after = transition(record("running"), exited)
    assert (after.result, after.progress, after.error) == (result, 0.5, None)


def test_what_is_no_result_is_told_unless_there_is_more_to_say():
    wrong = {"result_error": "its result is no JSON"}
    after = transition(record("running"), replace(CODE_0, **wrong))
    assert (after.status, after.error) == ("finished", "its result is no JSON")
    after = transition(record("running"), replace(CODE_3, **wrong))
    assert (after.status, after.error) == ("failed", "exit code 3")


def test_an_end_by_a_limit_names_it_unless_the_job_was_stopped():
    killed = replace(KILLED, limit="used more than 1 MB")
    after = transition(record("running"), killed)
    assert (after.status, after.error) == ("failed", "used more than 1 MB")
    stopping = transition(record("running"), StopRequested(error="took too long"))
    assert transition(stopping, killed).error == "took too long"
    assert transition(transition(record("running"), StopRequested()), killed).error is None


def test_each_loss_is_added_to_the_recovery_history():
    first = transition(record("running", metadata={"a": 1}, attempt=2), AGAIN["Lost again"])
    second = transition(first.changed({"status": Status.starting}), EXAMPLES["Lost failing"])
    facts = {"at": NOW.isoformat(), "error": "it is gone", "host": ""}
    assert second.metadata == {
        "a": 1,
        "recovery_history": [
            {**facts, "attempt": 2, "was": "running", "became": "pending"},
            {**facts, "attempt": 3, "was": "starting", "became": "failed"},
        ],
    }


@pytest.mark.parametrize("odd", [None, "text", {"a": 1}])
def test_a_recovery_history_that_a_user_wrote_otherwise_is_replaced(odd):
    before = record("running", metadata={"recovery_history": odd})
    after = transition(before, EXAMPLES["Lost"])
    assert [entry["became"] for entry in after.metadata["recovery_history"]] == ["lost"]


@pytest.mark.parametrize("retry_at", [None, NOW])
def test_what_an_attempt_has_used_is_told_of_it(retry_at):
    exited = replace(CODE_3, cpu_seconds=0.25, peak_memory_bytes=4096, retry_at=retry_at)
    before = record("running")
    after = transition(before, exited)
    told = ended_attempt(before, exited, after) if retry_at else after
    assert (told.cpu_seconds, told.peak_memory_bytes) == (0.25, 4096)


def test_an_error_of_the_logs_is_told_whatever_the_end():
    exited = Exited(exit_code=0, evidence="observed", log_error="no space left")
    after = transition(record("running"), exited)
    assert (after.status, after.error) == ("finished", "no space left")


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Submitted(is_ready=True), None),
        (Readied(), None),
        (Admitted(attempt=ATTEMPT), None),
        (Withdrawn(), None),
        (Withdrawn(error="'b' failed"), "'b' failed"),
        (Relinked(depends_on=("b", "it's")), "depends on 'b', \"it's\""),
        (Relinked(depends_on=()), "depends on nothing"),
        (Started(attempt=ATTEMPT), None),
        (StartFailed(error="no such program"), "no such program"),
        (Claimed(), "its supervisor had gone"),
        (Adopted(attempt=ATTEMPT), "adopted"),
        (Adopted(attempt=ATTEMPT, gap=True), "adopted; the log may have a gap"),
        (Paused(), None),
        (Resumed(), None),
        (StopRequested(), None),
        (StopRequested(error="took too long", reason="asked"), "took too long"),
        (StopRequested(reason="the application closed"), "the application closed"),
        (StopFailed(error="alive"), "alive"),
        (CODE_0, "exit code 0"),
        (KILLED, "killed by signal 9"),
        (
            Exited(exit_code=1, evidence="observed", log_error="no space left"),
            "exit code 1; no space left",
        ),
        (Lost(error="it is gone"), "it is gone"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_event_says_why_in_one_line(event, why):
    assert event.why == why


# A run's first record.


@pytest.mark.parametrize(
    ("opening", "fields", "status"),
    [
        ("start", {}, "starting"),
        ("submit", {}, "queued"),
        ("submit", {"depends_on": ["b"]}, "pending"),
        ("submit", {"due_at": LATER}, "pending"),
        ("create", {}, "pending"),
        ("create", {"depends_on": ["b"], "due_at": LATER}, "pending"),
    ],
)
def test_a_job_opens_as(opening, fields, status):
    first = opened(opening, self_id="a", name="x", created_at=NOW, **fields)
    assert (first.status, first.reached) == (status, [status])
    assert (first.self_id, first.name) == ("a", "x")
    assert first.submitted_at == (None if opening == "create" else NOW)


def test_a_job_that_is_made_anew_has_no_revision_that_it_had_before_it_was_deleted():
    before = opened("start", self_id="a", created_at=NOW)
    again = opened("start", self_id="a", created_at=NOW + timedelta(milliseconds=1))
    assert again.revision > before.revision + 100


def test_two_first_records_share_nothing():
    first = opened("start", self_id="a", created_at=NOW)
    first.reached.append("x")
    assert opened("start", self_id="a", created_at=NOW).reached == ["starting"]


@pytest.mark.parametrize("opening", ["start", "submit", "create"])
def test_a_renewed_job_has_what_was_asked_for_and_nothing_of_the_run(opening):
    asked = {
        "self_id": "a",
        "dirname": "/d",
        "cwd": "/c",
        "logdir": "/l",
        "logfile": "f",
        "command": ["true"],
        "name": "n",
        "description": "text",
        "tags": ["t"],
        "metadata": {"a": 1},
        "user_id": "u",
        "workflow_id": "w",
        "batch_id": "b",
        "payload": {"p": [1]},
        "priority": 5,
        "queue": "q",
        "depends_on": ["b"],
        "on_dependency_failure": "run",
        "run_at": EARLIER,
        "start_deadline": 9.0,
        "max_retries": 2,
        "retry": {"kind": "fixed", "delay": 1.0},
        "restart": "never",
        "restart_policy": None,
        "limits": {"memory_bytes": 1},
        "timeout": 1.5,
        "host": "h",
    }
    of_the_run = {
        "status": "failed",
        "last_update": EARLIER,
        "last_pid": 1,
        "attempt": 3,
        "created_at": EARLIER,
        "started_at": EARLIER,
        "finished_at": EARLIER,
        "exit_code": 1,
        "evidence": "observed",
        "error": "exit code 1",
        "cpu_seconds": 0.25,
        "peak_memory_bytes": 4096,
        "reached": ["starting", "running", "failed"],
        "revision": 7,
        "result": {"r": 1},
        "progress": 0.5,
        "submitted_at": EARLIER,
        "due_at": EARLIER,
    }
    assert asked.keys() | of_the_run.keys() == JobRecord.model_fields.keys()
    old = JobRecord({**asked, **of_the_run, "metadata": {"a": 1, "recovery_history": [{}]}})
    again = renewed(old, opening)
    now = again.created_at
    assert again == opened(opening, **asked, created_at=now, last_update=now)
    assert now >= NOW


def test_a_run_after_another_goes_on_counting_revisions():
    old = record("failed", revision=7)
    first = opened("start", self_id="a", created_at=NOW)
    assert reopened(first, after=old) == first.model_copy(update={"revision": 8})


# Waiting for a status.


@pytest.mark.parametrize("status", Status)
def test_a_wait_for_any_end_is_over_at_the_end(status):
    assert has_reached(record(status), None) == (status in TERMINAL)


@pytest.mark.parametrize(
    ("reached", "wanted", "over"),
    [
        (["starting"], {"starting"}, True),
        (["starting"], {"running"}, False),
        (["starting", "running"], {"starting"}, True),
        (["starting", "running"], {"finished", "running"}, True),
        (["starting", "running"], {"finished", "failed"}, False),
        (["starting", "running", "stopping"], {"running"}, True),
        (["starting", "running", "finished"], {"running"}, True),
        (["starting", "running", "finished"], {"finished"}, True),
    ],
)
def test_a_wait_is_over_when_the_attempt_has_reached_one_of_its_statuses(reached, wanted, over):
    seen = record(reached[-1], reached=reached)
    assert has_reached(seen, frozenset(Status(status) for status in wanted)) is over


def test_a_wait_for_what_an_ended_job_never_was_ends_with_its_record():
    ended = record("failed", reached=["starting", "failed"])
    with pytest.raises(StatusUnreachable) as caught:
        has_reached(ended, frozenset({Status.running, Status.finished}))
    assert caught.value.record == ended
    assert caught.value.wanted == ("finished", "running")


def test_a_job_alive_after_sigkill_may_still_reach_a_status():
    stuck = record("failed_stop", reached=["starting", "running", "stopping", "failed_stop"])
    assert has_reached(stuck, frozenset({Status.stopped})) is False


# Whole lives.

GRAPH = {
    (status, Status(cell)) for status, _, cell in CELLS if cell not in "!=" and cell != status
} | {
    # By the exit code, and where it was dead already when it was to be signalled.
    (Status.running, Status.failed_start),
    (Status.paused, Status.failed_start),
    (Status.stopping, Status.finished),
    (Status.stopping, Status.failed),
    (Status.stopping, Status.failed_start),
    # What ran out of time may be tried again.
    (Status.stopping, Status.pending),
    (Status.failed_stop, Status.pending),
    # A stop that failed, and what had to be stopped.
    *((Status.failed_stop, s) for s in (Status.finished, Status.failed, Status.failed_start)),
}
ANY_EVENT = st.one_of(
    st.sampled_from(list(EXAMPLES.values())),
    st.builds(StopRequested, error=st.none() | st.just("took too long")),
    st.builds(
        Exited,
        exit_code=st.integers(-64, 255),
        evidence=st.sampled_from(["observed", "recorded", "adopted"]),
        ended_by_itself=st.booleans(),
        in_start_grace=st.booleans(),
        log_error=st.none() | st.just("no space left"),
        retry_at=st.none() | st.just(LATER),
    ),
)
OPENINGS = st.sampled_from(["start", "submit", "create"])


@given(OPENINGS, st.lists(ANY_EVENT, max_size=30))
def test_no_life_leaves_the_graph_and_every_end_is_final(opening, events):
    now = opened(opening, self_id="a", created_at=NOW)
    for event in events:
        before = now
        try:
            now = transition(before, event)
        except InvalidTransition:
            continue
        if before.is_done:
            assert now is before
        if now.status is not before.status:
            assert (before.status, now.status) in GRAPH
        assert now.revision == before.revision + (now is not before)
        follows = now.attempt > before.attempt
        assert now.reached == ["pending"] if follows else _begins_with(now.reached, before.reached)
        assert (ended_attempt(before, event, now) is not None) == follows
        assert now.status in now.reached
        assert len(now.reached) == len(set(now.reached))
        assert JobRecord.model_validate_json(now.model_dump_json()) == now


@given(OPENINGS, st.lists(ANY_EVENT, max_size=30))
def test_an_end_says_what_it_knows(opening, events):
    now = opened(opening, self_id="a", created_at=NOW)
    for event in events:
        try:
            now = transition(now, event)
        except InvalidTransition:
            continue
    was_lost = bool(now.metadata) and now.metadata["recovery_history"][-1]["became"] == "failed"
    if now.status in (Status.finished, Status.stopped) or (now.status == "failed" and not was_lost):
        assert now.exit_code is not None
        assert now.evidence is not None
    if now.status is Status.finished:
        assert now.exit_code == 0
    if now.status in (Status.failed, Status.failed_start, Status.lost):
        assert now.error
        assert "\n" not in now.error
    has_ended = now.is_done or (now.attempt > 1 and now.status in WAITING)
    assert (now.finished_at is not None) == has_ended


def _begins_with(whole: list[Status], beginning: list[Status]) -> bool:
    return whole[: len(beginning)] == beginning
