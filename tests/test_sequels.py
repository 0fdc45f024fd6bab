"""What follows the end of an attempt, as the job's policies say; and what has been so far."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from anodejobs.errors import InvalidTransition
from anodejobs.events import (
    Admitted,
    Attempt,
    Event,
    Exited,
    Lost,
    Readied,
    Started,
    StartFailed,
    StopRequested,
    Withdrawn,
)
from anodejobs.records import TERMINAL, JobEvent, JobRecord, Status
from anodejobs.retries import (
    ExponentialBackoff,
    Failure,
    FixedDelay,
    RestartPolicy,
    RetryPolicy,
    retry_to_json,
)
from anodejobs.sequels import Ended, attempts_of, recovered, with_sequel
from anodejobs.stores.base import Insert, Save, history_entry
from anodejobs.testing import make_attempt, make_launch
from anodejobs.transitions import ended_attempt, opened, renewed, transition

untimed = settings(deadline=None)

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CODE_0 = Exited(at=NOON, exit_code=0, evidence="observed")
CODE_3 = Exited(at=NOON, exit_code=3, evidence="observed")
KILLED = Exited(at=NOON, exit_code=-9, evidence="observed")
NOT_STARTED = StartFailed(at=NOON, error="no such program")
LOST = Lost(at=NOON, error="it is gone")


class Raises(RetryPolicy):
    """A user's own that has a bug."""

    def delay_after(self, failure: Failure) -> float:
        return TypeAdapter(float).validate_python("a bug")  # it says so in several lines


class Says(RetryPolicy):
    """Answers with whatever it was made with."""

    answer: Any = None

    def delay_after(self, failure: Failure) -> Any:
        return self.answer


def record(status: str = "running", **fields: Any) -> JobRecord:
    usual = {"self_id": "a", "reached": ["starting", status], "created_at": NOON - 60 * SECOND}
    return JobRecord({**usual, "status": status, "started_at": NOON - SECOND, **fields})


def retried(policy: RetryPolicy | None = None, max_retries: int = 3, **fields: Any) -> JobRecord:
    """Return the record of a running job that is retried."""
    stored = None if policy is None else retry_to_json(policy)
    return record(**{"retry": stored, "max_retries": max_retries, **fields})


def service(
    when: str = "always", *, policy: RestartPolicy | None = None, **fields: Any
) -> JobRecord:
    stored = None if policy is None else policy.model_dump(mode="json")
    return record(**{"restart": when, "restart_policy": stored, **fields})


def delay(before: JobRecord, event: Ended, *, fraction: float = 0.0) -> float | None:
    """Return how many seconds after the end the next attempt is due; None: there is none."""
    after = with_sequel(before, event, [], fraction)
    return None if after.retry_at is None else (after.retry_at - event.at).total_seconds()


# Retries.


@pytest.mark.parametrize("event", [CODE_0, CODE_3, KILLED, NOT_STARTED, LOST], ids=repr)
def test_nothing_follows_where_nothing_was_asked_for(event):
    before = record("starting" if isinstance(event, StartFailed) else "running")
    assert with_sequel(before, event, [], 0.0) is event


@pytest.mark.parametrize("event", [CODE_3, KILLED], ids=repr)
def test_a_failure_is_followed_by_a_retry_after_the_delay(event):
    assert delay(retried(FixedDelay(1.5)), event) == 1.5


def test_a_failed_start_is_a_failure():
    assert delay(retried(FixedDelay(1.5), status="starting"), NOT_STARTED) == 1.5


def test_the_moment_of_a_retry_is_all_that_is_added_to_an_end():
    after = with_sequel(retried(FixedDelay(1.5)), CODE_3, [], 0.0)
    assert after == replace(CODE_3, retry_at=NOON + timedelta(seconds=1.5))


def test_a_success_is_not_retried():
    assert with_sequel(retried(FixedDelay(1.5)), CODE_0, [], 0.0) is CODE_0


@pytest.mark.parametrize(("attempt", "again"), [(1, True), (3, True), (4, False), (5, False)])
def test_there_are_so_many_retries_and_no_more(attempt, again):
    before = retried(FixedDelay(1.5), max_retries=3, attempt=attempt)
    assert (delay(before, CODE_3) is not None) == again


def test_a_job_whose_policy_is_not_on_record_is_retried_at_once():
    assert delay(retried(None), CODE_3) == 0.0


@pytest.mark.parametrize(
    ("event", "again"),
    [
        (CODE_3, True),
        (replace(CODE_3, exit_code=4), False),
        (KILLED, True),
        (replace(KILLED, exit_code=-15), False),
        (LOST, False),
    ],
    ids=repr,
)
def test_only_the_exit_codes_of_the_policy_are_retried(event, again):
    before = retried(FixedDelay(1.5, exit_codes=[3, -9]))
    assert delay(before, event) == (1.5 if again else None)


def test_a_failed_start_has_no_exit_code_to_be_retried_for():
    before = retried(FixedDelay(1.5, exit_codes=[3]), status="starting")
    assert delay(before, NOT_STARTED) is None


@pytest.mark.parametrize("status", ["starting", "running", "paused"])
@pytest.mark.parametrize("on_lost", [False, True])
def test_a_lost_attempt_is_retried_where_the_policy_says_so(status, on_lost):
    before = retried(FixedDelay(1.5, on_lost=on_lost), status=status)
    assert delay(before, LOST) == (1.5 if on_lost else None)


@untimed
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 10))
def test_chance_shortens_a_delay_by_its_part_and_no_more(fraction, attempt):
    policy = ExponentialBackoff(initial=8, max=100, multiplier=2, jitter=0.5)
    before = retried(policy, max_retries=10, attempt=attempt)
    whole = min(100.0, 8 * 2 ** (attempt - 1))
    expected = whole * (1 - 0.5 * fraction)
    assert delay(before, CODE_3, fraction=fraction) == pytest.approx(expected, abs=1e-5)


def test_the_same_end_with_the_same_chance_has_the_same_sequel():
    before = retried(ExponentialBackoff(jitter=1.0))
    assert with_sequel(before, CODE_3, [], 0.7) == with_sequel(before, CODE_3, [], 0.7)


@pytest.mark.parametrize(
    "policy",
    [Raises(), *(Says(answer=wrong) for wrong in (-1, "1", True, 1e12, [1]))],
    ids=repr,
)
def test_a_policy_that_fails_says_no_and_is_logged(policy, caplog):
    caplog.set_level(logging.ERROR, "anodejobs")
    before = retried(policy)
    end = with_sequel(before, CODE_3, [], 0.0)
    assert end.retry_at is None
    after = transition(before, end)
    assert after.status is Status.failed
    assert (after.error or "").startswith("exit code 3; its retry policy failed: ")
    assert "\n" not in (after.error or "")
    (told,) = caplog.records
    assert told.exc_info
    assert "job a" in told.getMessage()


@pytest.mark.parametrize(
    "stored", [{"kind": "no.such.module:Policy"}, {"kind": "fixed", "delay": "x"}, {}], ids=str
)
def test_a_policy_that_is_gone_says_no_and_is_logged(stored, caplog):
    caplog.set_level(logging.ERROR, "anodejobs")
    before = record(retry=stored or {"nope": 1}, max_retries=3)
    after = transition(before, with_sequel(before, CODE_3, [], 0.0))
    assert after.status is Status.failed
    assert "its retry policy failed: " in (after.error or "")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("end", [NOT_STARTED, LOST], ids=["not started", "lost"])
def test_a_policy_that_fails_is_said_beside_what_happened(end):
    before = retried(Raises(on_lost=True), status="starting")
    error = transition(before, with_sequel(before, end, [], 0.0)).error or ""
    assert error.startswith(f"{end.error}; its retry policy failed: ")


def test_a_policy_may_say_no():
    assert delay(retried(Says(answer=None)), CODE_3) is None


# Ends that were asked for.


@pytest.mark.parametrize("make", [retried, service], ids=["a job", "a service"])
@pytest.mark.parametrize("status", ["stopping", "failed_stop"])
@pytest.mark.parametrize(
    "event", [CODE_0, CODE_3, KILLED, LOST, replace(CODE_3, ended_by_itself=True)], ids=repr
)
def test_what_a_caller_has_stopped_stays_stopped(make, status, event):
    assert with_sequel(make(status=status), event, [], 0.0) is event


@pytest.mark.parametrize("make", [retried, service], ids=["a job", "a service"])
@pytest.mark.parametrize("event", [CODE_0, CODE_3, KILLED], ids=repr)
def test_what_took_too_long_is_tried_again(make, event):
    before = transition(make(), StopRequested(error="took longer than 2 s"))
    assert delay(before, event) is not None
    again = with_sequel(before, event, [], 0.0)
    told = ended_attempt(before, again, transition(before, again))
    assert told is not None
    assert (told.status, told.error) == ("failed", "took longer than 2 s")


@pytest.mark.parametrize("make", [retried, lambda: service("on-failure")], ids=["job", "service"])
def test_what_had_succeeded_before_it_could_be_stopped_for_taking_too_long_is_not(make):
    before = transition(make(), StopRequested(error="took longer than 2 s"))
    event = replace(CODE_0, ended_by_itself=True)
    assert with_sequel(before, event, [], 0.0) is event
    assert transition(before, event).status is Status.finished


@pytest.mark.parametrize("make", [retried, service], ids=["a job", "a service"])
@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_nothing_follows_late_word_of_what_has_ended(make, status):
    assert with_sequel(make(status=status), CODE_3, [], 0.0) is CODE_3


@pytest.mark.parametrize("status", ["pending", "queued"])
def test_an_attempt_that_has_not_begun_cannot_end(status):
    with pytest.raises(InvalidTransition):
        with_sequel(retried(status=status), CODE_3, [], 0.0)


# Restarts.


@pytest.mark.parametrize(
    ("when", "event", "again"),
    [
        ("always", CODE_0, True),
        ("always", CODE_3, True),
        ("always", LOST, True),
        ("on-failure", CODE_0, False),
        ("on-failure", CODE_3, True),
        ("on-failure", KILLED, True),
        ("on-failure", LOST, True),
        ("never", CODE_3, False),
    ],
    ids=str,
)
def test_a_service_is_restarted_when_it_says(when, event, again):
    assert (delay(service(when), event) is not None) == again


def test_a_service_that_could_not_be_started_is_started_again():
    before = service("on-failure", status="starting", started_at=None)
    assert delay(before, NOT_STARTED) is not None


def test_a_service_is_restarted_as_its_own_policy_says():
    policy = RestartPolicy(when="always", initial=9.0, max=99.0)
    assert delay(service(policy=policy), CODE_3) == 9.0
    assert delay(service(), CODE_3) == RestartPolicy(when="always").initial


class Life:
    """A job that is run over and over, with the history of all that happens to it."""

    def __init__(self, **fields: Any) -> None:
        self.now = NOON
        first = opened("submit", self_id="a", created_at=NOON, last_update=NOON, **fields)
        self.record = first
        insert = Insert(record=first, launch=make_launch("a"), attempt=make_attempt())
        self.events: list[JobEvent] = [history_entry(1, insert)]

    def apply(self, event: Event) -> None:
        before, self.record = self.record, transition(self.record, event)
        ended = ended_attempt(before, event, self.record)
        save = Save(record=self.record, previous=before.status, ended=ended)
        self.events.append(history_entry(len(self.events) + 1, save))

    def begin(self) -> None:
        """Start the next attempt as soon as it is due."""
        self.now = max(self.now, self.record.due_at or self.now)
        if self.record.status is Status.pending:
            self.apply(Readied(at=self.now))
        attempt = Attempt(token="t", supervisor="s", pid=4711)
        self.apply(Admitted(at=self.now, attempt=attempt))
        self.apply(Started(at=self.now, attempt=attempt))

    def end(self, event: Ended, *, after_s: float = 0.0) -> float | None:
        """End the attempt after so long; return how long the next one waits, if there is one."""
        self.now += timedelta(seconds=after_s)
        at = replace(event, at=self.now)
        self.apply(with_sequel(self.record, at, self.events, 0.0))
        due_at = self.record.due_at
        return None if due_at is None else (due_at - self.now).total_seconds()

    def renew(self) -> None:
        """Run the job anew after its end."""
        renewal = renewed(self.record, "submit")
        self.now += SECOND
        changes = {"created_at": self.now, "last_update": self.now, "revision": 99}
        save = Save(record=renewal.changed(changes), previous=self.record.status)
        self.record = save.record
        self.events.append(history_entry(len(self.events) + 1, save))


def test_restarts_wait_longer_each_time_until_the_service_was_up_long_enough():
    policy = RestartPolicy(
        when="always", initial=1, max=5, multiplier=2, stable_after=60, limit=None
    )
    life = Life(restart="always", restart_policy=policy.model_dump(mode="json"))
    waits = []
    for up_s in (0, 1, 2, 3, 60, 0):
        life.begin()
        waits.append(life.end(CODE_3, after_s=up_s))
    assert waits == [1, 2, 4, 5, 1, 2]


def test_a_service_that_dies_too_often_is_given_up_and_says_so():
    policy = RestartPolicy(when="on-failure", initial=1, max=1, limit=2, window=600)
    life = Life(restart="on-failure", restart_policy=policy.model_dump(mode="json"))
    for _ in range(2):
        life.begin()
        assert life.end(CODE_3) == 1
    life.begin()
    assert life.end(CODE_3) is None
    assert (life.record.status, life.record.attempt) == ("failed", 3)
    assert life.record.error == "exit code 3; gave up: 2 restarts in 600 s"


def test_a_lost_service_that_is_given_up_says_so_too():
    policy = RestartPolicy(when="always", limit=1, window=600)
    life = Life(restart="always", restart_policy=policy.model_dump(mode="json"))
    life.begin()
    assert life.end(LOST) is not None
    life.begin()
    assert life.end(LOST) is None
    assert (life.record.status, life.record.error) == (
        "lost",
        "it is gone; gave up: 1 restart in 600 s",
    )


def test_a_run_of_its_own_begins_to_count_anew():
    policy = RestartPolicy(when="always", initial=1, max=1, limit=1, window=10**6)
    life = Life(restart="always", restart_policy=policy.model_dump(mode="json"))
    for _ in range(2):
        life.begin()
        life.end(CODE_3)
    assert life.record.status is Status.failed
    life.renew()
    life.begin()
    assert life.end(CODE_3) == 1, "its restarts before were those of another run"


def test_an_attempt_that_took_too_long_is_a_failure_of_a_service_whatever_its_exit_code():
    life = Life(restart="on-failure")
    for wait in (1, 2):
        life.begin()
        life.apply(StopRequested(at=life.now, error="took longer than 2 s"))
        assert life.end(CODE_0) == wait


# Recovery from a loss.


@pytest.mark.parametrize(
    ("recovery", "expected"),
    [
        ("lost", LOST),
        ("fail", replace(LOST, is_failure=True)),
        ("pending", replace(LOST, retry_at=NOON)),
    ],
)
@pytest.mark.parametrize("status", ["starting", "running", "paused"])
def test_a_loss_becomes_what_is_wanted(status, recovery, expected):
    assert recovered(record(status), LOST, recovery) == expected


@pytest.mark.parametrize("recovery", ["lost", "fail", "pending"])
def test_a_loss_after_which_a_retry_comes_is_left_to_that(recovery):
    again = replace(LOST, retry_at=NOON + SECOND)
    assert recovered(record(), again, recovery) is again


@pytest.mark.parametrize("recovery", ["lost", "fail", "pending"])
@pytest.mark.parametrize("status", ["stopping", "failed_stop"])
def test_a_loss_of_what_a_caller_has_stopped_is_one(status, recovery):
    assert recovered(record(status), LOST, recovery) is LOST


def test_a_loss_of_what_took_too_long_becomes_what_is_wanted():
    before = record("stopping", error="took longer than 2 s")
    assert recovered(before, LOST, "pending").retry_at == NOON


def test_a_job_that_was_interrupted_very_often_is_not_run_again() -> None:
    ten = record(metadata={"recovery_history": [{"became": "pending"}] * 10})
    end = recovered(ten, LOST, "pending")
    assert end.retry_at is None
    assert end.error.endswith("gave up: 10 recoveries")


# The attempts so far.


def numbers(life: Life) -> list[tuple[int, str]]:
    return [(a.attempt, a.status.value) for a in attempts_of(life.record, life.events)]


def test_a_job_that_waits_has_no_attempts():
    assert numbers(Life()) == []


def test_the_attempt_under_way_is_one():
    life = Life()
    life.begin()
    (attempt,) = attempts_of(life.record, life.events)
    assert (attempt.attempt, attempt.status, attempt.pid) == (1, "running", 4711)
    assert (attempt.started_at, attempt.finished_at) == (NOON, None)


def test_every_attempt_is_told_as_it_ended():
    life = Life(max_retries=3, retry=retry_to_json(FixedDelay(10, on_lost=True)))
    for event in (CODE_3, LOST, KILLED, CODE_0):
        life.begin()
        life.end(event, after_s=5)
    attempts = attempts_of(life.record, life.events)
    assert [(a.attempt, a.status) for a in attempts] == [
        (1, "failed"),
        (2, "lost"),
        (3, "failed"),
        (4, "finished"),
    ]
    assert [a.exit_code for a in attempts] == [3, None, -9, 0]
    assert [a.error for a in attempts] == ["exit code 3", "it is gone", "killed by SIGKILL", None]
    begun = [NOON + n * 15 * SECOND for n in range(4)]
    assert [a.started_at for a in attempts] == begun
    assert [a.finished_at for a in attempts] == [at + 5 * SECOND for at in begun]


def test_a_job_that_waits_for_its_retry_has_the_attempts_before():
    life = Life(max_retries=1)
    life.begin()
    life.end(CODE_3)
    assert (life.record.status, numbers(life)) == ("pending", [(1, "failed")])
    life.apply(Readied(at=life.now))
    assert (life.record.status, numbers(life)) == ("queued", [(1, "failed")])


def test_a_job_that_was_cancelled_before_its_retry_has_the_attempts_before():
    life = Life(max_retries=1)
    life.begin()
    life.end(CODE_3)
    life.apply(Withdrawn(at=life.now))
    assert (life.record.status, numbers(life)) == ("cancelled", [(1, "failed")])


def test_a_job_that_was_cancelled_before_it_began_has_none():
    life = Life()
    life.apply(Withdrawn(at=life.now))
    assert numbers(life) == []


def test_a_start_that_failed_is_an_attempt():
    life = Life(max_retries=1)
    life.apply(Admitted(at=life.now, attempt=make_attempt()))
    life.end(NOT_STARTED)
    life.apply(Readied(at=life.now))
    life.apply(Admitted(at=life.now, attempt=make_attempt()))
    life.end(NOT_STARTED)
    assert numbers(life) == [(1, "failed_start"), (2, "failed_start")]
    assert [a.started_at for a in attempts_of(life.record, life.events)] == [None, None]


def test_the_attempts_are_those_of_the_last_run():
    life = Life(max_retries=1)
    for _ in range(2):
        life.begin()
        life.end(CODE_3)
    life.renew()
    assert numbers(life) == []
    life.begin()
    life.end(CODE_3)
    life.begin()
    assert numbers(life) == [(1, "failed"), (2, "running")]


def test_an_attempt_that_ends_after_its_record_was_read_is_told_once():
    life = Life(max_retries=3)
    for begun in ([1], [1, 2]):
        life.begin()
        running = life.record
        life.end(CODE_3)
        assert [a.attempt for a in attempts_of(running, life.events)] == begun


def test_what_is_run_anew_after_its_record_was_read_is_told_as_it_was():
    life = Life(max_retries=1)
    life.begin()
    life.end(CODE_3)
    life.begin()
    life.end(CODE_3)
    failed = life.record
    life.renew()
    life.begin()
    life.end(CODE_3)
    assert [a.attempt for a in attempts_of(failed, life.events)] == [1, 2]


ENDS: st.SearchStrategy[Sequence[Exited | Lost]] = st.lists(
    st.sampled_from([CODE_0, CODE_3, KILLED, LOST]), min_size=1, max_size=12
)


@untimed
@given(ENDS, st.integers(0, 4))
def test_attempts_are_numbered_without_a_gap_and_only_the_last_may_succeed(ends, max_retries):
    life = Life(max_retries=max_retries, retry=retry_to_json(FixedDelay(1, on_lost=True)))
    for event in ends:
        if life.record.is_done:
            break
        life.begin()
        life.end(event)
    attempts = attempts_of(life.record, life.events)
    assert [a.attempt for a in attempts] == list(range(1, len(attempts) + 1))
    assert 1 <= len(attempts) <= max_retries + 1
    assert all(a.status in (Status.failed, Status.lost) for a in attempts[:-1])
    for earlier, later in pairwise(attempts):
        assert earlier.finished_at + SECOND == later.started_at
