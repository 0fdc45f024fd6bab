"""Jobs against a plain model of it: whatever is called in whatever order, both agree.

The model knows of each job only what can be known: which statuses it may have at the moment. A job
that ends by itself may or may not have ended when the next call is made.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import Counter
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from anodejobs import (
    InvalidJob,
    InvalidTransition,
    JobActive,
    JobEvent,
    JobFilter,
    JobNotFound,
    JobRecord,
    Jobs,
    Status,
    WaitTimeout,
)
from anodejobs.records import TERMINAL
from anodejobs.transitions import TABLE

Result = TypeVar("Result")

LIMIT_S = 60.0
ENDS_OF_AN_EXIT = {Status.finished, Status.failed, Status.failed_start, Status.stopped}


@dataclass(frozen=True)
class Behaviour:
    """A command, and how it ends: by itself, or else when it is stopped."""

    command: str
    end: Status | None
    exit_code: int
    stdout: str = ""
    stop_code: int = -15


BEHAVIOURS = {
    "succeeds": Behaviour("echo done", Status.finished, 0, "done\n"),
    "fails": Behaviour("echo wrong; exit 3", Status.failed, 3, "wrong\n"),
    "is killed": Behaviour("kill -KILL $$", Status.failed, -9),
    "sleeps": Behaviour("echo ready; exec sleep 1000", None, 0, "ready\n"),
    "is stubborn": Behaviour(
        "trap '' TERM; echo ready; while :; do sleep 0.1; done", None, 0, "ready\n", stop_code=-9
    ),
}


@dataclass
class Model:
    """What is known of a job."""

    behaviour: Behaviour
    may_be: set[Status]
    record: JobRecord | None = None
    """How it ended, once that was seen: nothing may change it any more."""

    @property
    def surely_ended(self) -> bool:
        return self.may_be <= TERMINAL

    @property
    def surely_active(self) -> bool:
        return not self.may_be & TERMINAL


def started(behaviour: Behaviour) -> Model:
    own_end = {behaviour.end} if behaviour.end else set()
    return Model(behaviour, {Status.running} | own_end)


class OpenedJobs(RuleBasedStateMachine):
    """Has a Jobs on a directory, which goes with it, and an event loop to call it in."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.options = options
        self.jobs = self.new_jobs()

    def new_jobs(self) -> Jobs:
        return Jobs(db_path=self.folder.name, **self.options)

    def teardown(self) -> None:
        try:
            self.await_(self.jobs.close())
        finally:
            self.runner.close()
            self.folder.cleanup()

    def await_(self, call: Coroutine[Any, Any, Result]) -> Result:
        async def limited() -> Result:
            async with asyncio.timeout(LIMIT_S):
                return await call

        return self.runner.run(limited())


def bounded(examples: int, steps: int) -> settings:
    """Return the settings of a test that makes so many machines, and so many calls to each."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class JobsMachine(OpenedJobs):
    """Calls anything at any time, and holds every answer against the model."""

    store: str | None

    def __init__(self) -> None:
        super().__init__(store=self.store, stop_grace=0.2, executor="inline")
        self.models: dict[str, Model] = {}

    def see(self, job_id: str, record: JobRecord) -> None:
        """Hold a record against what is known, and know what it says."""
        model = self.models[job_id]
        assert record.status in model.may_be, (record.status, model.may_be)
        assert record.status in record.reached
        if model.record is not None:
            assert record == model.record
        if record.is_done:
            self.see_end(model, record)

    def see_end(self, model: Model, record: JobRecord) -> None:
        behaviour = model.behaviour
        if record.status is Status.stopped:
            # One that was about to end by itself may have been quicker than the signal.
            codes = {behaviour.stop_code, behaviour.exit_code} if behaviour.end else set()
            assert record.exit_code in codes | {behaviour.stop_code}
        else:
            assert record.exit_code == behaviour.exit_code
        assert record.evidence == "observed"
        assert record.finished_at is not None and record.started_at is not None
        model.record, model.may_be = record, {record.status}

    # Calls.

    ids = st.sampled_from(["a", "b", "../c"])
    behaviours = st.sampled_from(sorted(BEHAVIOURS))

    @initialize(name=behaviours)
    def begin(self, name: str) -> None:
        self.run("a", name, "rerun")

    @rule(job_id=ids, name=behaviours, if_exists=st.sampled_from(["rerun", "skip", "error"]))
    def run(self, job_id: str, name: str, if_exists: Any) -> None:
        old = self.models.get(job_id)
        behaviour = BEHAVIOURS[name]
        call = self.jobs.run(behaviour.command, job_id, if_exists=if_exists)
        try:
            record = self.await_(call)
        except JobActive:
            assert old is not None and not old.surely_ended
        except InvalidJob:
            assert old is not None and not old.surely_active
            assert if_exists == "error"
        else:
            assert old is None or not old.surely_active
            if old is not None and if_exists == "skip":
                self.see(job_id, record)
                return
            assert old is None or if_exists == "rerun"
            self.see_started(job_id, behaviour, record)

    def see_started(self, job_id: str, behaviour: Behaviour, record: JobRecord) -> None:
        assert record.status is Status.running
        assert record.last_pid is not None and record.last_pid > 0
        assert (record.attempt, record.exit_code, record.finished_at) == (1, None, None)
        self.models[job_id] = started(behaviour)
        if behaviour.end is None:  # else a stop might come before it is what it is to be
            assert self.await_(self.first_words(job_id)) == b"ready\n"

    async def first_words(self, job_id: str) -> bytes:
        async with aclosing(self.jobs.follow(job_id)) as chunks:
            return (await anext(chunks)).data

    @rule(job_id=ids)
    def wait(self, job_id: str) -> None:
        model = self.models.get(job_id)
        if model is not None and Status.paused in model.may_be and model.behaviour.end:
            self.resume(job_id)
        ends = model is None or model.surely_ended or model.behaviour.end is not None
        try:
            record = self.await_(self.jobs.wait(job_id, timeout=LIMIT_S / 2 if ends else 0.01))
        except JobNotFound:
            assert model is None
        except WaitTimeout:
            assert not ends
        else:
            assert record.is_done
            self.see(job_id, record)

    @rule(job_id=ids, grace=st.sampled_from([None, 0.0, 0.05]))
    def stop(self, job_id: str, grace: float | None) -> None:
        model = self.models.get(job_id)
        record = self.await_(self.jobs.stop(job_id, grace))
        if model is None:
            assert record is None
            return
        assert record is not None and record.is_done
        if not model.surely_ended:
            model.may_be = model.may_be & TERMINAL | {Status.stopped}
            self.expect_kill(model, grace)
        self.see(job_id, record)

    def expect_kill(self, model: Model, grace: float | None) -> None:
        """A grace of nothing is SIGKILL at once, for whomever."""
        if grace == 0.0:
            behaviour = model.behaviour
            model.behaviour = Behaviour(
                behaviour.command, behaviour.end, behaviour.exit_code, behaviour.stdout, -9
            )

    @rule(job_id=ids)
    def pause(self, job_id: str) -> None:
        model = self.models.get(job_id)
        try:
            self.await_(self.jobs.pause(job_id))
        except JobNotFound:
            assert model is None
        except InvalidTransition:
            assert model is not None and not model.surely_active
        else:
            assert model is not None and not model.surely_ended
            # The signal may have come when a job that ends by itself just had.
            model.may_be = model.may_be & TERMINAL | {Status.paused}

    @rule(job_id=ids)
    def resume(self, job_id: str) -> None:
        model = self.models.get(job_id)
        try:
            self.await_(self.jobs.resume(job_id))
        except JobNotFound:
            assert model is None
        except InvalidTransition:
            assert model is not None and not model.surely_active
        else:
            assert model is not None and not model.surely_ended
            model.may_be = model.may_be & TERMINAL | {Status.running}

    @rule(job_id=ids)
    def restart(self, job_id: str) -> None:
        model = self.models.get(job_id)
        try:
            record = self.await_(self.jobs.restart(job_id))
        except JobNotFound:
            assert model is None
        else:
            assert model is not None
            behaviour = next(b for b in BEHAVIOURS.values() if b.command == record.command)
            assert behaviour.command == model.behaviour.command
            self.see_started(job_id, behaviour, record)

    @rule(job_id=ids)
    def delete(self, job_id: str) -> None:
        model = self.models.get(job_id)
        try:
            was_there = self.await_(self.jobs.delete(job_id))
        except JobActive:
            assert model is not None and not model.surely_ended
        else:
            assert was_there is (model is not None)
            assert model is None or not model.surely_active
            self.models.pop(job_id, None)

    @rule(job_id=ids)
    def read_logs(self, job_id: str) -> None:
        model = self.models.get(job_id)
        try:
            stdout, stderr = self.await_(self.jobs.job_logs(job_id))
        except JobNotFound:
            assert model is None
            return
        assert model is not None
        assert stderr == ""
        was_whole = model.record is not None and model.record.status is not Status.stopped
        assert stdout == model.behaviour.stdout or (not was_whole and stdout == "")

    @rule()
    def reopen(self) -> None:
        """Close, which stops what runs, and go on with another Jobs on the directory."""
        if self.store is not None:
            return  # nothing would be left
        self.await_(self.jobs.close())
        self.jobs = self.new_jobs()
        for job_id, model in self.models.items():
            if not model.surely_ended:
                model.may_be = model.may_be & TERMINAL | {Status.stopped}
            self.see(job_id, self.await_(self.known(job_id)))

    async def known(self, job_id: str) -> JobRecord:
        record = await self.jobs.get_status(job_id)
        assert record is not None
        return record

    # What holds at any time.

    @invariant()
    def every_record_is_as_the_model_allows(self) -> None:
        for job_id in ("a", "b", "../c"):
            record = self.await_(self.jobs.get_status(job_id))
            assert (record is None) == (job_id not in self.models)
            if record is not None:
                self.see(job_id, record)

    @invariant()
    def listing_and_counting_agree(self) -> None:
        listed, counts, count = self.await_(self.looks())
        assert set(listed) == set(self.models)
        assert count == len(self.models)
        # A job may end between two looks, never the other way round.
        active = {status: n for status, n in counts.items() if not status.is_terminal and n}
        before = Counter(record.status for record in listed.values())
        assert all(n <= before[status] for status, n in active.items())
        assert sum(counts.values()) == sum(before.values())
        ended = JobFilter(status=list(TERMINAL))
        assert set(self.await_(self.jobs.list_status(ended))) <= set(self.models)

    async def looks(self) -> tuple[dict[str, JobRecord], dict[Status, int], int]:
        listed = await self.jobs.list_status()
        return listed, await self.jobs.counts(), await self.jobs.count()

    @invariant()
    def every_history_is_a_path_through_the_table(self) -> None:
        for job_id in self.models:
            history = self.await_(self.jobs.history(job_id))
            assert history[0].previous is None
            assert [event.seq for event in history] == sorted(event.seq for event in history)
            for before, event in itertools.pairwise(history):
                assert event.previous is before.status
                assert is_allowed(event)


def is_allowed(event: JobEvent) -> bool:
    """Return whether the table has a way from the event's one status to its other."""
    assert event.previous is not None and event.status is not None
    if event.previous in TERMINAL:
        return event.status is Status.starting
    cells = TABLE[event.previous].values()
    ends = ENDS_OF_AN_EXIT if any(callable(cell) for cell in cells) else set()
    return event.status in ends | {cell for cell in cells if isinstance(cell, Status)}


class MemoryMachine(JobsMachine):
    store = "memory://"


class SqliteMachine(JobsMachine):
    store = None


@pytest.mark.parametrize("machine", [MemoryMachine, SqliteMachine])
def test_any_calls_in_any_order_agree_with_the_model(machine: type[JobsMachine]) -> None:
    run_state_machine_as_test(machine, settings=bounded(15, 15))


def test_the_folder_of_a_machine_goes_with_it() -> None:
    machine = SqliteMachine()
    folder = Path(machine.folder.name)
    machine.run("a", "succeeds", "rerun")
    assert folder.is_dir()
    machine.teardown()
    assert not folder.exists()
