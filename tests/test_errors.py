"""The errors a caller can meet: their families, their facts, their sentences."""

from __future__ import annotations

import inspect
import pickle

import pytest

from anodejobs import errors
from anodejobs.errors import (
    AnodeJobsError,
    DependencyCycle,
    ExecutorError,
    InvalidJob,
    InvalidTransition,
    JobActive,
    JobNotFound,
    StatusUnreachable,
    StoreError,
    WaitTimeout,
)
from anodejobs.records import JobRecord

ENDED = JobRecord(self_id="a", status="failed", error="exit code 3")
CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, AnodeJobsError)
]

TREE = {
    AnodeJobsError: (Exception,),
    InvalidJob: (AnodeJobsError, ValueError),
    JobNotFound: (AnodeJobsError, KeyError),
    JobActive: (AnodeJobsError,),
    InvalidTransition: (AnodeJobsError,),
    DependencyCycle: (AnodeJobsError,),
    WaitTimeout: (AnodeJobsError, TimeoutError),
    StatusUnreachable: (AnodeJobsError,),
    StoreError: (AnodeJobsError,),
    ExecutorError: (AnodeJobsError,),
}

EXAMPLES = [
    (AnodeJobsError("what happened"), "what happened", {}),
    (
        InvalidJob("timeout", "must be a number of seconds"),
        "timeout: must be a number of seconds",
        {"field": "timeout", "problem": "must be a number of seconds"},
    ),
    (JobNotFound("it's"), 'there is no job "it\'s"', {"job_id": "it's"}),
    (
        JobActive("a", "running"),
        "job 'a' is running: stop it or wait for its end first",
        {"job_id": "a", "status": "running"},
    ),
    (
        InvalidTransition("a", "finished", "Paused"),
        "job 'a' is finished: it cannot be paused",
        {"job_id": "a", "status": "finished", "event": "Paused"},
    ),
    (
        DependencyCycle(("a", "b")),
        "'a' waits for 'b' waits for 'a': leave one of these dependencies out",
        {"cycle": ("a", "b")},
    ),
    (
        WaitTimeout("job 'a'", 2.5),
        "job 'a': not there yet after 2.5 s; nothing was stopped",
        {"what": "job 'a'", "timeout": 2.5},
    ),
    (
        StatusUnreachable(ENDED, ("running", "paused")),
        "job 'a' ended as failed (exit code 3) and never was running or paused",
        {"record": ENDED, "wanted": ("running", "paused")},
    ),
    (StoreError("the disk is full"), "the disk is full", {}),
    (ExecutorError("it is closed"), "it is closed", {}),
]
each_error = pytest.mark.parametrize(
    ("error", "sentence", "facts"), EXAMPLES, ids=[type(e).__name__ for e, _, _ in EXAMPLES]
)


def test_every_error_has_its_place_in_the_tree():
    assert {error: error.__bases__ for error in CLASSES} == TREE


def test_every_error_is_public():
    assert sorted(errors.__all__) == sorted(error.__name__ for error in TREE)


def test_the_tree_that_is_drawn_is_the_tree_there_is():
    lines = inspect.getdoc(errors).splitlines()
    drawn = [line.split("── ")[1].split("  ")[0] for line in lines if "── " in line]
    families = {
        error.__name__: [base.__name__ for base in bases if base is not AnodeJobsError]
        for error, bases in TREE.items()
        if error is not AnodeJobsError
    }
    assert drawn == [
        f"{name} ({', '.join(family)})" if family else name for name, family in families.items()
    ]


def test_every_error_has_an_example_here():
    assert {type(error) for error, _, _ in EXAMPLES} == set(CLASSES)


@each_error
def test_an_error_is_a_sentence(error, sentence, facts):
    assert str(error) == sentence


@each_error
def test_an_error_has_its_facts_as_attributes(error, sentence, facts):
    assert {name: getattr(error, name) for name in facts} == facts


@each_error
def test_an_error_can_be_pickled(error, sentence, facts):
    """As it is when it crosses the border of a process pool."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert str(again) == sentence
        assert {name: getattr(again, name) for name in facts} == facts


def test_a_job_that_ended_without_an_error_line_has_no_empty_brackets():
    stopped = JobRecord(self_id="a", status="stopped")
    error = StatusUnreachable(stopped, ("running",))
    assert str(error) == "job 'a' ended as stopped and never was running"


def test_a_job_that_waits_for_itself_is_a_cycle_of_one():
    assert str(DependencyCycle(("a",))).startswith("'a' waits for 'a': ")


def test_a_long_cycle_is_told_by_its_ends():
    error = DependencyCycle(tuple(f"job-{number}" for number in range(10_000)))
    assert str(error) == (
        "'job-0' waits for 'job-1' waits for 'job-2' waits for 'job-3' waits for … 9993 more … "
        "waits for 'job-9997' waits for 'job-9998' waits for 'job-9999' waits for 'job-0': "
        "leave one of these dependencies out"
    )
    assert len(error.cycle) == 10_000


@pytest.mark.parametrize(("timeout", "told"), [(3, "3 s"), (0.05, "0.05 s"), (0, "0 s")])
def test_a_timeout_is_told_without_needless_digits(timeout, told):
    assert f" after {told};" in str(WaitTimeout("job 'a'", timeout))
