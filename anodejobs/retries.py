"""When a job that has ended is run again: retries after a failure, restarts of a service.

Pure: what happened goes in, a delay in seconds comes out. Nothing here has a clock, chance
included: a policy with jitter is handed a random number with the failure, so that the same failure
always gives the same delay.

``RetryPolicy`` says how long to wait after a failed attempt, and a user may write one; how many
retries there are at most is the job's ``max_retries``, and ``next_attempt`` joins both.
``RestartPolicy`` keeps a service up: ``next_restart``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from inspect import isabstract
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, JsonValue

from anodejobs.errors import InvalidJob
from anodejobs.fields import Seconds, check_seconds
from anodejobs.models import Model

__all__ = [
    "ExponentialBackoff",
    "Failure",
    "FixedDelay",
    "GaveUp",
    "RestartPolicy",
    "RetryPolicy",
    "Run",
    "check_restart",
    "check_retry",
    "has_all_runs",
    "kind_of",
    "next_attempt",
    "next_restart",
    "retry_from_json",
    "retry_to_json",
]

_LONGEST_S: Final = 10 * 366 * 24 * 3600.0


def _delay(value: float) -> float:
    if value > _LONGEST_S:
        raise ValueError("must be ten years at most")
    return value


def _factor(value: float) -> float:
    if not 1 <= value < float("inf"):
        raise ValueError("must be a finite number, 1 or more")
    return value


def _part(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError("must be a number from 0 to 1")
    return value


def _exit_codes(codes: list[int]) -> list[int]:
    for code in codes:
        if code == 0:
            raise ValueError("0 is no failure")
        if not -64 <= code <= 255:
            raise ValueError("must be exit codes: 1 to 255, or -9 for SIGKILL and so on")
    return sorted(set(codes))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (set, frozenset, tuple, range)) else value


Delay = Annotated[Seconds, AfterValidator(_delay)]
Factor = Annotated[float, AfterValidator(_factor)]


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended that did not succeed."""

    attempt: int
    """Its number: 1 for a job's first attempt."""
    exit_code: int | None = None
    """None where nobody saw it, or there was no process."""
    was_lost: bool = False
    fraction: float = 0.0
    """A random number, at least 0 and below 1, for policies with jitter."""


class RetryPolicy(Model):
    """How long to wait before a job that failed is tried again.

    A policy of your own is a subclass at the top of a module that can be imported. It is stored
    with the job as the names of module and class and the values of its fields, so what decides
    must be in its fields, and these must survive JSON. It is asked by whichever process sees the
    end; where it cannot be imported there, or fails, the job is not tried again, and its ``error``
    says why.

        class AtLeisure(RetryPolicy):
            hours: float = 1.0

            def delay_after(self, failure: Failure) -> float | None:
                return self.hours * 3600 * failure.attempt
    """

    exit_codes: Annotated[
        list[Annotated[int, Field(strict=True)]],
        BeforeValidator(_listed),
        AfterValidator(_exit_codes),
    ] | None = None  # fmt: skip
    """The exit codes that are worth a retry; None: any failure. -9 is SIGKILL."""
    on_lost: Annotated[bool, Field(strict=True)] = False
    """Whether a lost attempt is retried. It may have succeeded: nobody saw its exit."""

    def __init__(self, *values: Any, **fields: Any) -> None:
        if len(values) == 1 and isinstance(values[0], (Mapping, Model)):
            super().__init__(values[0], **fields)
            return
        own = [name for name in type(self).model_fields if name not in RetryPolicy.model_fields]
        if len(values) > len(own) or fields.keys() & set(own[: len(values)]):
            raise InvalidJob("retry", f"{type(self).__name__} takes {', '.join(own)}, each once")
        super().__init__({**dict(zip(own, values, strict=False)), **fields})

    def covers(self, failure: Failure) -> bool:
        """Return whether this failure is worth a retry at all."""
        if failure.was_lost:
            return self.on_lost
        return self.exit_codes is None or failure.exit_code in self.exit_codes

    @abstractmethod
    def delay_after(self, failure: Failure) -> float | None:
        """Return how many seconds to wait before the next attempt, or None: do not retry.

        Asked only about what it covers, and only while the job has retries left.
        """


class FixedDelay(RetryPolicy):
    """Wait ``delay`` seconds before each retry."""

    model_config = ConfigDict(strict=True)

    delay: Delay = 0.0

    if TYPE_CHECKING:

        def __init__(
            self,
            delay: float = 0.0,
            *,
            exit_codes: Collection[int] | None = None,
            on_lost: bool = False,
        ) -> None: ...

    def delay_after(self, failure: Failure) -> float:
        """Return the delay."""
        return self.delay


class ExponentialBackoff(RetryPolicy):
    """Wait ``initial`` seconds, then ``multiplier`` times as long each time, ``max`` at most.

    ``jitter``, from 0 to 1, is the part of each delay that is left to chance, lest many jobs that
    failed together come back together: with 0.1 a delay is shortened by up to a tenth.
    """

    model_config = ConfigDict(strict=True)

    initial: Delay = 1.0
    max: Delay = 300.0
    multiplier: Factor = 2.0
    jitter: Annotated[float, AfterValidator(_part)] = 0.1

    if TYPE_CHECKING:

        def __init__(
            self,
            initial: float = 1.0,
            max: float = 300.0,
            multiplier: float = 2.0,
            jitter: float = 0.1,
            *,
            exit_codes: Collection[int] | None = None,
            on_lost: bool = False,
        ) -> None: ...

    else:

        def __init__(self, *values: Any, **fields: Any) -> None:
            super().__init__(*values, **fields)
            _check_order(self.initial, self.max)

    def delay_after(self, failure: Failure) -> float:
        """Return the delay after so many attempts."""
        delay = _grown(self.initial, self.multiplier, failure.attempt - 1, most=self.max)
        return delay * (1 - self.jitter * failure.fraction)


def next_attempt(policy: RetryPolicy, failure: Failure, *, max_retries: int) -> float | None:
    """Return how many seconds to wait before the job's next attempt, or None: it has failed.

    Raises InvalidJob where a policy answers with what is no delay. What else a user's own policy
    raises passes through.
    """
    if failure.attempt > max_retries or not policy.covers(failure):
        return None
    delay = policy.delay_after(failure)
    if delay is None:
        return None
    try:
        return _delay(check_seconds("retry", delay))
    except ValueError as error:
        problem = error.problem if isinstance(error, InvalidJob) else str(error)
        raise InvalidJob("retry", f"a delay of {type(policy).__name__} {problem}") from None


def check_retry(value: object) -> RetryPolicy:
    """Return the policy that a caller hands in: one, or the JSON of a built-in one.

    The JSON of a user's own is not taken here: to read it is to import what it names, which is
    not for strangers to choose.
    """
    if isinstance(value, RetryPolicy):
        retry_to_json(value)
        return value
    if isinstance(value, Mapping) and value.get("kind") in tuple(_BUILT_IN):
        return retry_from_json(value)
    kinds = " or ".join(repr(kind) for kind in _BUILT_IN)
    raise InvalidJob("retry", f"must be a RetryPolicy, or a mapping with the kind {kinds}")


def retry_to_json(policy: RetryPolicy) -> dict[str, JsonValue]:
    """Return what ``retry_from_json`` makes the same policy from, also in another process.

    Raises InvalidJob where it could not.
    """
    kind = _kind(type(policy))
    try:
        fields = policy.model_dump(mode="json")
    except Exception as error:  # pydantic's own, or one of a user's serializer
        raise InvalidJob("retry", f"{kind} cannot be written as JSON: {error}") from error
    if "kind" in fields:
        raise InvalidJob("retry", f"{kind} has a field 'kind', which must be named otherwise")
    stored: dict[str, JsonValue] = {"kind": kind, **fields}
    if retry_from_json(stored) != policy:
        raise InvalidJob("retry", f"{kind} is another once it has been written as JSON and read")
    return stored


def retry_from_json(stored: Mapping[str, JsonValue]) -> RetryPolicy:
    """Return the policy that was stored, importing a user's own.

    Raises InvalidJob where its class is not there any more, or does not take its fields.
    """
    kind = stored.get("kind")
    if not isinstance(kind, str):
        raise InvalidJob("retry", "must have a kind")
    policy = _BUILT_IN.get(kind) or _imported(kind)
    fields = {name: value for name, value in stored.items() if name != "kind"}
    try:
        return policy(fields)
    except InvalidJob as error:
        raise InvalidJob("retry", str(error)) from error


_BUILT_IN: Final[Mapping[str, type[RetryPolicy]]] = {
    "fixed": FixedDelay,
    "exponential": ExponentialBackoff,
}


def kind_of(policy: type[Model]) -> str:
    """Return what names the class in JSON, whether or not another process can import it."""
    for kind, built_in in _BUILT_IN.items():
        if policy is built_in:
            return kind
    return f"{policy.__module__}:{policy.__qualname__}"


def _kind(policy: type[RetryPolicy]) -> str:
    kind = kind_of(policy)
    if kind in _BUILT_IN:
        return kind
    if policy.__module__ in ("__main__", "__mp_main__"):
        # Another process that works on the jobs has another main module.
        problem = "is in the program's main module: move it to one that can be imported"
        raise InvalidJob("retry", f"{kind} {problem}")
    if "<locals>" in policy.__qualname__:
        raise InvalidJob("retry", f"{kind} is inside a function: move it to the top of its module")
    if _imported(kind) is not policy:
        raise InvalidJob("retry", f"{kind} is another class than this one")
    return kind


def _imported(kind: str) -> type[RetryPolicy]:
    module, _, path = kind.partition(":")
    try:
        found: object = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as error:  # a module may raise anything while it is imported
        raise InvalidJob("retry", f"{kind} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, RetryPolicy)) or isabstract(found):
        raise InvalidJob("retry", f"{kind} is not a RetryPolicy with a delay_after")
    return found


class RestartPolicy(Model):
    """Whether and when a service whose process has ended is started again.

    The first restart comes after ``initial`` seconds, and each further one after ``multiplier``
    times as long, ``max`` at most. After an attempt that was up for ``stable_after`` seconds this
    begins anew. Where ``limit`` restarts lie within ``window`` seconds, the next is not made. By
    default, a service that dies at once is given up after 10 restarts in about 5 minutes.
    """

    model_config = ConfigDict(strict=True)

    when: Literal["never", "on-failure", "always"] = "never"
    """``always`` is also after exit code 0. What a user stops stays stopped."""
    initial: Delay = 1.0
    max: Delay = 60.0
    multiplier: Factor = 2.0
    stable_after: Delay = 60.0
    limit: Annotated[int, Field(ge=1)] | None = 10
    """None: it is never given up."""
    window: Delay = 600.0

    def __init__(self, data: Mapping[str, Any] | Model | None = None, /, **fields: Any) -> None:
        super().__init__(data, **fields)
        _check_order(self.initial, self.max)


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a service, from beginning to end."""

    began_at: datetime
    ended_at: datetime
    has_failed: bool


@dataclass(frozen=True, slots=True)
class GaveUp:
    """There were too many restarts, or the policy could not be asked."""

    error: str
    """One line that says so."""


def next_restart(policy: RestartPolicy, runs: Sequence[Run]) -> float | GaveUp | None:
    """Return how many seconds after its end the service is started again, or why it is not.

    None: its policy does not ask for it. ``runs`` are its attempts, oldest first, the one that has
    just ended last: all of them, or ``has_all_runs``. Every one but the first is a restart.
    """
    last = runs[-1]
    if policy.when == "never" or (policy.when == "on-failure" and not last.has_failed):
        return None
    delay = _restart_delay(policy, _failing(policy, runs))
    since = _window_start(policy, last, delay)
    restarts = sum(run.began_at > since for run in runs[1:])
    if policy.limit is not None and restarts >= policy.limit:
        counted = "1 restart" if restarts == 1 else f"{restarts} restarts"
        return GaveUp(f"gave up: {counted} in {policy.window:g} s")
    return delay


def has_all_runs(policy: RestartPolicy, runs: Sequence[Run]) -> bool:
    """Return whether these last runs have all that ``next_restart`` looks at."""
    failing = _failing(policy, runs)
    delay = _restart_delay(policy, failing)
    # Either it was up long enough among them, or more of them would not make the delay longer.
    is_delay_known = failing < len(runs) - 1 or delay == _restart_delay(policy, failing + 1)
    is_window_over = runs[0].began_at <= _window_start(policy, runs[-1], delay)
    return is_delay_known and (policy.limit is None or is_window_over)


def check_restart(value: object) -> RestartPolicy:
    """Return the policy that a caller hands in: one, its JSON, or only when to restart."""
    if isinstance(value, RestartPolicy):
        return value
    try:
        return RestartPolicy(value if isinstance(value, Mapping) else {"when": value})
    except InvalidJob as error:
        problem = error.problem if error.field == "when" else str(error)
        raise InvalidJob("restart", problem) from None


def _failing(policy: RestartPolicy, runs: Sequence[Run]) -> int:
    """Return how many restarts there have been since it was last up long enough."""
    stable_after = timedelta(seconds=policy.stable_after)
    for ago, run in enumerate(reversed(runs)):
        if run.ended_at - run.began_at >= stable_after:
            return ago
    return len(runs) - 1


def _restart_delay(policy: RestartPolicy, failing: int) -> float:
    return _grown(policy.initial, policy.multiplier, failing, most=policy.max)


def _window_start(policy: RestartPolicy, last: Run, delay: float) -> datetime:
    return last.ended_at + timedelta(seconds=delay - policy.window)


def _grown(initial: float, multiplier: float, times: int, *, most: float) -> float:
    try:
        return min(most, initial * multiplier**times)
    except OverflowError:
        return most if initial else 0.0


def _check_order(initial: float, most: float) -> None:
    if initial > most:
        raise InvalidJob("max", f"must be at least initial, {initial:g} s")
