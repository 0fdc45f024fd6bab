"""When a job that has ended is run again: what waits how long, and what is given up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anodejobs.errors import InvalidJob
from anodejobs.records import JobSpec
from anodejobs.retries import (
    ExponentialBackoff,
    Failure,
    FixedDelay,
    GaveUp,
    RestartPolicy,
    RetryPolicy,
    Run,
    check_restart,
    check_retry,
    has_all_runs,
    next_attempt,
    next_restart,
    retry_from_json,
    retry_to_json,
)
from anodejobs.templates import Template

untimed = settings(deadline=None)

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NO_SECONDS: list[Any] = [-1, -0.001, math.nan, math.inf, "1", True, 10**400, [1], None, 1e12]
CODE_3 = Failure(attempt=1, exit_code=3)
LOST = Failure(attempt=1, was_lost=True)
NOT_STARTED = Failure(attempt=1)


class AtLeisure(RetryPolicy):
    """A user's own: longer each time, and after the third no more."""

    hours: float = 1.0
    pause: timedelta = timedelta(0)

    def delay_after(self, failure: Failure) -> float | None:
        if failure.attempt > 3:
            return None
        return self.hours * 3600 * failure.attempt + self.pause.total_seconds()

    class Never(RetryPolicy):
        def delay_after(self, failure: Failure) -> None:
            return None


class Says(RetryPolicy):
    """Answers with whatever it was made with."""

    answer: Any = None

    def delay_after(self, failure: Failure) -> Any:
        return self.answer


class KindOf(RetryPolicy):
    kind: str = "mine"

    def delay_after(self, failure: Failure) -> float:
        return 0.0


class Undecided(RetryPolicy):
    """Has no delay_after."""


NO_POLICY = "not a policy"


def delays(policy: RetryPolicy, times: int, fraction: float = 0.0) -> list[float | None]:
    failures = (Failure(attempt, exit_code=1, fraction=fraction) for attempt in range(1, times + 1))
    return [next_attempt(policy, failure, max_retries=times) for failure in failures]


def refused(field: str, make: Callable[[], object]) -> str:
    with pytest.raises(InvalidJob) as caught:
        make()
    assert caught.value.field == field
    return caught.value.problem


# What a delay is.


def test_a_fixed_delay_is_the_same_each_time() -> None:
    assert delays(FixedDelay(5), 3) == [5.0, 5.0, 5.0]


def test_a_back_off_grows_up_to_its_most() -> None:
    assert delays(ExponentialBackoff(1, 10, 2, 0), 6) == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_jitter_shortens_a_delay_by_the_part_that_chance_names() -> None:
    policy = ExponentialBackoff(initial=8, max=8, jitter=0.5)
    assert [delays(policy, 1, fraction)[0] for fraction in (0.0, 0.5, 0.75)] == [8.0, 6.0, 5.0]


def test_the_same_failure_always_has_the_same_delay() -> None:
    policy = ExponentialBackoff(jitter=1)
    assert delays(policy, 9, 0.123) == delays(policy, 9, 0.123)


@untimed
@given(
    initial=st.floats(0, 1e6),
    most=st.floats(0, 1e8),
    multiplier=st.floats(1, 1e300),
    jitter=st.floats(0, 1),
    attempt=st.integers(1, 10**6),
    fraction=st.floats(0, 1, exclude_max=True),
)
def test_a_back_off_stays_within_its_bounds(
    initial: float, most: float, multiplier: float, jitter: float, attempt: int, fraction: float
) -> None:
    initial, most = sorted((initial, most))
    policy = ExponentialBackoff(initial, most, multiplier, jitter)
    failure = Failure(attempt, exit_code=1, fraction=fraction)
    delay = next_attempt(policy, failure, max_retries=attempt)
    assert delay is not None
    assert initial * (1 - jitter) * 0.999999 <= delay <= most
    unshortened = next_attempt(policy, Failure(attempt, exit_code=1), max_retries=attempt)
    assert unshortened is not None
    assert delay <= unshortened


@untimed
@given(st.floats(0, 1e6), st.floats(1, 100))
def test_without_jitter_a_back_off_never_shrinks(initial: float, multiplier: float) -> None:
    grown = delays(ExponentialBackoff(initial, 1e7, multiplier, 0), 50)
    assert all(a is not None and b is not None and a <= b for a, b in pairwise(grown))


# What is retried.


def test_a_job_is_retried_as_often_as_it_may_be() -> None:
    policy = FixedDelay(0)
    answers = [next_attempt(policy, Failure(n, exit_code=1), max_retries=2) for n in (1, 2, 3, 4)]
    assert answers == [0.0, 0.0, None, None]


def test_a_job_without_retries_is_not_retried() -> None:
    assert next_attempt(FixedDelay(0), CODE_3, max_retries=0) is None


@pytest.mark.parametrize("failure", [CODE_3, NOT_STARTED, Failure(1, exit_code=-9)])
def test_any_failure_is_worth_a_retry_unless_exit_codes_are_named(failure: Failure) -> None:
    assert next_attempt(FixedDelay(1), failure, max_retries=1) == 1.0


def test_only_the_exit_codes_that_are_named_are_worth_a_retry() -> None:
    policy = FixedDelay(1, exit_codes={3, -9})
    codes = [3, -9, 4, -15, None]
    answers = [next_attempt(policy, Failure(1, exit_code=code), max_retries=1) for code in codes]
    assert answers == [1.0, 1.0, None, None, None]


@pytest.mark.parametrize("exit_codes", [None, [3]])
def test_a_lost_attempt_is_retried_only_where_that_is_asked_for(exit_codes: list[int]) -> None:
    cautious = FixedDelay(1, exit_codes=exit_codes)
    bold = FixedDelay(1, exit_codes=exit_codes, on_lost=True)
    assert next_attempt(cautious, LOST, max_retries=1) is None
    assert next_attempt(bold, LOST, max_retries=1) == 1.0


def test_with_no_exit_codes_at_all_only_lost_attempts_are_retried() -> None:
    policy = FixedDelay(1, exit_codes=[], on_lost=True)
    assert next_attempt(policy, CODE_3, max_retries=1) is None
    assert next_attempt(policy, LOST, max_retries=1) == 1.0


def test_a_users_own_policy_decides() -> None:
    assert delays(AtLeisure(hours=0.5), 4) == [1800.0, 3600.0, 5400.0, None]


def test_a_users_own_policy_has_exit_codes_too() -> None:
    assert next_attempt(AtLeisure(exit_codes=[4]), CODE_3, max_retries=9) is None


@pytest.mark.parametrize("answer", [value for value in NO_SECONDS if value is not None])
def test_what_is_no_delay_is_refused(answer: object) -> None:
    problem = refused("retry", lambda: next_attempt(Says(answer), CODE_3, max_retries=1))
    assert problem.startswith("a delay of Says must be ")


# What a policy is made from.


@pytest.mark.parametrize("seconds", NO_SECONDS)
def test_what_is_no_time_is_refused_by_its_name(seconds: Any) -> None:
    refused("delay", lambda: FixedDelay(seconds))
    refused("initial", lambda: ExponentialBackoff(initial=seconds))
    refused("max", lambda: ExponentialBackoff(max=seconds))


@pytest.mark.parametrize("multiplier", [0.999, 0, -2, math.nan, math.inf, "2", True, None])
def test_a_multiplier_that_would_shrink_is_refused(multiplier: Any) -> None:
    refused("multiplier", lambda: ExponentialBackoff(multiplier=multiplier))


@pytest.mark.parametrize("jitter", [-0.1, 1.1, math.nan, "0.5", True, None])
def test_a_jitter_that_is_no_part_is_refused(jitter: Any) -> None:
    refused("jitter", lambda: ExponentialBackoff(jitter=jitter))


def test_a_back_off_that_begins_above_its_most_is_refused() -> None:
    refused("max", lambda: ExponentialBackoff(initial=10, max=5))


@pytest.mark.parametrize("codes", [[0], [256], [-65], ["3"], [True], [1.5], "3", 3, {3: 4}])
def test_what_are_no_exit_codes_is_refused(codes: Any) -> None:
    refused("exit_codes", lambda: FixedDelay(1, exit_codes=codes))


@pytest.mark.parametrize("codes", [[3, 1, 3], {1, 3}, (3, 1), range(1, 4, 2), frozenset([3, 1])])
def test_exit_codes_may_come_in_any_collection(codes: Any) -> None:
    assert FixedDelay(1, exit_codes=codes).exit_codes == [1, 3]


@pytest.mark.parametrize("value", [1, "yes", None])
def test_on_lost_is_yes_or_no(value: Any) -> None:
    refused("on_lost", lambda: FixedDelay(1, on_lost=value))


def test_a_policy_takes_no_field_that_it_does_not_have() -> None:
    refused("delays", lambda: FixedDelay(delays=1))  # type: ignore[call-arg]


def test_a_value_given_twice_or_too_many_is_refused() -> None:
    refused("retry", lambda: FixedDelay(1, delay=2))  # type: ignore[misc]
    refused("retry", lambda: FixedDelay(1, 2))  # type: ignore[misc]


def test_a_policy_that_does_not_say_its_delay_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="delay_after"):
        Undecided()  # type: ignore[abstract]


# What is stored.


def test_a_built_in_policy_is_stored_by_a_short_kind() -> None:
    assert retry_to_json(FixedDelay(5, exit_codes=[3])) == {
        "kind": "fixed",
        "delay": 5.0,
        "exit_codes": [3],
        "on_lost": False,
    }
    assert retry_to_json(ExponentialBackoff())["kind"] == "exponential"


def test_a_users_own_policy_is_stored_by_its_name_and_fields() -> None:
    stored = retry_to_json(AtLeisure(hours=2, pause=timedelta(seconds=5)))
    assert stored.items() >= {"kind": f"{__name__}:AtLeisure", "hours": 2.0}.items()


@pytest.mark.parametrize(
    "policy",
    [
        FixedDelay(0.1),
        ExponentialBackoff(1, 2, 3, 0.4, exit_codes={-9, 3}, on_lost=True),
        AtLeisure(hours=2, pause=timedelta(seconds=5), exit_codes=[4]),
        AtLeisure.Never(),
    ],
    ids=lambda policy: type(policy).__qualname__,
)
def test_a_policy_that_was_stored_is_the_same_one(policy: RetryPolicy) -> None:
    assert retry_from_json(retry_to_json(policy)) == policy


def _local() -> RetryPolicy:
    class Local(AtLeisure):
        pass

    return Local()


def _made(**names: str) -> RetryPolicy:
    policy: type[RetryPolicy] = type("Made", (AtLeisure,), {"__qualname__": "Made", **names})
    return policy()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_local, "inside a function"),
        (lambda: _made(__module__="__main__"), "main module"),
        (lambda: _made(__module__="no_such_module"), "cannot be imported"),
        (lambda: _made(__module__=__name__), "cannot be imported"),
        (lambda: _made(__module__=__name__, __qualname__="AtLeisure"), "another class"),
        (lambda: Says(object()), "cannot be written as JSON"),
        (lambda: Says((1, 2)), "another once"),
        (lambda: Says(math.nan), "another once"),
        (KindOf, "has a field 'kind'"),
    ],
)
def test_a_policy_that_could_not_be_read_back_is_refused(
    make: Callable[[], RetryPolicy], problem: str
) -> None:
    assert problem in refused("retry", lambda: retry_to_json(make()))
    assert problem in refused("retry", lambda: check_retry(make()))


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        ({}, "must have a kind"),
        ({"kind": 5}, "must have a kind"),
        ({"kind": "no_such_module:Policy"}, "cannot be imported"),
        ({"kind": f"{__name__}:Gone"}, "cannot be imported"),
        ({"kind": ""}, "cannot be imported"),
        ({"kind": __name__}, "cannot be imported"),
        ({"kind": f"{__name__}:NO_POLICY"}, "not a RetryPolicy"),
        ({"kind": f"{__name__}:Failure"}, "not a RetryPolicy"),
        ({"kind": f"{__name__}:Undecided"}, "not a RetryPolicy"),
        ({"kind": f"{__name__}:AtLeisure", "hours": "long"}, "hours: "),
        ({"kind": "fixed", "delay": -1}, "delay: "),
        ({"kind": "fixed", "delays": 1}, "delays: there is no such field"),
    ],
)
def test_what_cannot_be_read_back_says_why(stored: Any, problem: str) -> None:
    assert problem in refused("retry", lambda: retry_from_json(stored))


def test_what_a_module_raises_when_it_is_imported_is_told(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_broken_policy.py").write_text("raise RuntimeError('out of order')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "out of order" in refused(
        "retry", lambda: retry_from_json({"kind": "a_broken_policy:Policy"})
    )


# What a caller hands in.


def test_a_caller_may_hand_in_a_policy_or_the_json_of_a_built_in_one() -> None:
    assert check_retry(AtLeisure(hours=2)) == AtLeisure(hours=2)
    assert check_retry({"kind": "fixed", "delay": 5}) == FixedDelay(5)


@pytest.mark.parametrize("value", [None, 5, "fixed", {}, {"kind": ["fixed"]}, FixedDelay])
def test_what_is_no_policy_is_refused(value: object) -> None:
    refused("retry", lambda: check_retry(value))


@pytest.mark.parametrize("policy", [FixedDelay(0.5), ExponentialBackoff(2.0, on_lost=True)])
def test_what_is_dumped_of_a_spec_has_the_policy_that_it_had(policy: RetryPolicy) -> None:
    spec = JobSpec(command="true", max_retries=2, retry=policy)
    dumped = json.loads(spec.model_dump_json(exclude_unset=True))
    for again in (JobSpec(spec), JobSpec(spec.model_dump()), JobSpec(dumped)):
        assert check_retry(again.retry) == policy
    template = Template(name="it", command="true", retry=policy)
    assert check_retry(Template(template).retry) == policy
    assert JobSpec(command="true").model_dump()["retry"] is None


def test_a_caller_cannot_have_a_module_imported() -> None:
    kind = f"{__name__}:AtLeisure"
    refused("retry", lambda: check_retry({"kind": kind}))
    assert retry_from_json({"kind": kind}) == AtLeisure()


# Restarts.


def lived(
    *ups: float, policy: RestartPolicy, has_failed: bool = True
) -> list[float | GaveUp | None]:
    """Return what is decided after each run, of which each is up so long."""
    runs: list[Run] = []
    decisions: list[float | GaveUp | None] = []
    now = NOON
    for up in ups:
        ended_at = now + timedelta(seconds=up)
        runs.append(Run(now, ended_at, has_failed))
        decision = next_restart(policy, runs)
        decisions.append(decision)
        if not isinstance(decision, float):
            break
        now = ended_at + timedelta(seconds=decision)
    return decisions


@pytest.mark.parametrize(
    ("when", "has_failed", "is_restarted"),
    [
        ("never", True, False),
        ("never", False, False),
        ("on-failure", True, True),
        ("on-failure", False, False),
        ("always", True, True),
        ("always", False, True),
    ],
)
def test_a_service_is_restarted_when_its_policy_says(
    when: str, has_failed: bool, is_restarted: bool
) -> None:
    (decision,) = lived(5, policy=RestartPolicy(when=when), has_failed=has_failed)
    assert decision == (1.0 if is_restarted else None)


def test_restarts_come_ever_later() -> None:
    policy = RestartPolicy(when="always", initial=1, multiplier=3, max=20, limit=None)
    assert lived(0, 0, 0, 0, 0, policy=policy) == [1.0, 3.0, 9.0, 20.0, 20.0]


def test_a_service_that_was_up_long_enough_begins_anew() -> None:
    policy = RestartPolicy(when="always", stable_after=30, limit=None)
    assert lived(0, 0, 29.9, 30, 0, 0, policy=policy) == [1.0, 2.0, 4.0, 1.0, 2.0, 4.0]


def test_a_first_run_that_was_long_counts_as_long() -> None:
    policy = RestartPolicy(when="always", stable_after=30, limit=None)
    assert lived(30, 0, policy=policy) == [1.0, 2.0]


def test_by_default_a_service_that_dies_at_once_is_given_up_after_some_minutes() -> None:
    *delays, last = lived(*[0.0] * 20, policy=RestartPolicy(when="always"))
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]
    assert last == GaveUp("gave up: 10 restarts in 600 s")


def test_restarts_before_the_window_are_forgotten() -> None:
    policy = RestartPolicy(when="always", initial=10, max=10, limit=3, window=30)
    assert lived(*[0.0] * 9, policy=policy)[-1] == 10.0
    policy = RestartPolicy(when="always", initial=10, max=10, limit=3, window=31)
    assert lived(*[0.0] * 9, policy=policy)[3:] == [GaveUp("gave up: 3 restarts in 31 s")]


def test_the_first_start_is_no_restart() -> None:
    policy = RestartPolicy(when="always", initial=0, limit=1, window=1000)
    assert lived(0, 0, policy=policy) == [0.0, GaveUp("gave up: 1 restart in 1000 s")]


@untimed
@given(
    st.lists(st.floats(0, 1000), min_size=1, max_size=60),
    st.integers(1, 8),
    st.floats(1, 2000),
    st.floats(0, 500),
)
def test_no_more_restarts_than_the_limit_begin_within_any_window(
    ups: list[float], limit: int, window: float, initial: float
) -> None:
    policy = RestartPolicy(when="always", initial=initial, max=500, limit=limit, window=window)
    decisions = lived(*ups, policy=policy)
    now, restarts = 0.0, []
    for up, decision in zip(ups, decisions, strict=False):
        if isinstance(decision, float):
            assert initial <= decision <= 500
            now += up + decision
            restarts.append(now)
    for first, last in zip(restarts, restarts[limit:], strict=False):
        assert last - first >= window - 1e-3


@untimed
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=40),
    st.sampled_from([None, 1, 3, 30]),
    st.sampled_from([0.0, 1.0, 100.0]),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.sampled_from([0.0, 10.0, 500.0]),
)
def test_runs_before_those_that_are_all_that_counts_make_no_difference(
    ups: list[float], limit: int | None, initial: float, multiplier: float, window: float
) -> None:
    policy = RestartPolicy(
        when="always",
        initial=initial,
        max=100,
        multiplier=multiplier,
        limit=limit,
        window=window,
        stable_after=90,
    )
    runs: list[Run] = []
    now = NOON
    for up in ups:
        runs.append(Run(now, now + timedelta(seconds=up), has_failed=True))
        now = runs[-1].ended_at + timedelta(seconds=up)
    decision = next_restart(policy, runs)
    for last in (runs[start:] for start in range(len(runs))):
        if has_all_runs(policy, last):
            assert next_restart(policy, last) == decision


def test_of_a_service_that_has_long_been_running_few_runs_count() -> None:
    runs = [Run(NOON + n * 2 * MINUTE, NOON + (n * 2 + 1) * MINUTE, True) for n in range(1000)]
    policy = RestartPolicy(when="always")
    assert has_all_runs(policy, runs[-6:])
    assert not has_all_runs(policy, runs[-5:])
    unlimited = RestartPolicy(when="always", limit=None)
    assert has_all_runs(unlimited, runs[-2:])


def test_a_clock_that_was_set_back_does_no_harm() -> None:
    runs = [Run(NOON, NOON - timedelta(hours=1), has_failed=True)] * 2
    assert next_restart(RestartPolicy(when="always"), runs) == 2.0


@pytest.mark.parametrize("seconds", NO_SECONDS)
def test_what_is_no_time_for_a_service_is_refused_by_its_name(seconds: Any) -> None:
    for field in ("initial", "max", "stable_after", "window"):
        refused(field, lambda field=field: RestartPolicy({field: seconds}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("limit", 0), ("limit", -1), ("limit", 1.5), ("limit", True), ("multiplier", 0.5)],
)
def test_what_makes_no_sense_for_a_service_is_refused(field: str, value: object) -> None:
    refused(field, lambda: RestartPolicy({field: value}))


def test_a_service_that_begins_above_its_most_is_refused() -> None:
    refused("max", lambda: RestartPolicy(initial=61))


def test_a_caller_may_say_only_when_to_restart() -> None:
    assert check_restart("on-failure") == RestartPolicy(when="on-failure")
    assert check_restart({"when": "always", "limit": None}).limit is None
    policy = RestartPolicy(when="always")
    assert check_restart(policy) is policy
    assert check_restart(policy.model_dump(mode="json")) == policy


@pytest.mark.parametrize("value", ["sometimes", None, True, 5, ["always"], {"when": 5}, {"a": 5}])
def test_what_is_no_restart_is_refused(value: object) -> None:
    refused("restart", lambda: check_restart(value))
