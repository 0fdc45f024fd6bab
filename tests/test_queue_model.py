"""Jobs that take turns, against a plain model of it: whatever is called in whatever order.

The model is fed each event that is told, in order. It refuses one that neither a call nor its own
rules can have caused, such as a start for which there is no slot, or out of turn; and it knows when
nothing more is to come, which is waited for after each call.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from anodejobs import (
    DependencyCycle,
    InvalidJob,
    InvalidTransition,
    JobActive,
    JobEvent,
    JobNotFound,
    JobRecord,
    Status,
    StatusUnreachable,
    WaitTimeout,
)
from anodejobs.dependencies import OnDependencyFailure
from anodejobs.records import ALIVE, TERMINAL, WAITING
from tests.conftest import has_died, locker
from tests.test_model import LIMIT_S, OpenedJobs, bounded

SLOTS = 2
NARROW = {"narrow": 1}
FIRST = {"create": [Status.pending], "run": [Status.starting, Status.running]}


@dataclass
class Job:
    """What is known of a job."""

    queue: str = "default"
    priority: int = 0
    depends_on: list[str] = field(default_factory=list)
    on_failure: OnDependencyFailure = "cancel"
    max_retries: int = 0
    status: Status | None = None
    attempt: int = 1
    is_submitted: bool = False
    queued_at: datetime | None = None
    reached: set[Status] = field(default_factory=set)
    met: set[str] = field(default_factory=set)
    """The dependencies that it waits for no more, whatever becomes of them."""

    @property
    def is_done(self) -> bool:
        return self.status in TERMINAL

    @property
    def may_be_linked(self) -> bool:
        return self.status in WAITING and self.attempt == 1

    @property
    def awaited(self) -> list[str]:
        """What it waits for, met or not: nothing any more once it is queued."""
        return self.depends_on if self.status is Status.pending and self.attempt == 1 else []

    @property
    def place(self) -> tuple[int, datetime]:
        assert self.queued_at is not None
        return -self.priority, self.queued_at

    def renewed(self) -> Job:
        return Job(self.queue, self.priority, self.depends_on, self.on_failure, self.max_retries)


class Model:
    """What every job is doing, and what is to happen next."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.paused: set[str] = set()
        self.expected: dict[str, list[Status]] = {}
        """What the last call brings about for each job, in order; more may follow from it."""

    def expect(self, job_id: str, *statuses: Status) -> None:
        self.expected[job_id] = list(statuses)

    @property
    def is_settled(self) -> bool:
        """Whether nothing happens until somebody calls, or a job ends."""
        return not any(self.expected.values()) and not any(map(self.next_of, self.jobs))

    def follow(self, event: JobEvent) -> None:
        """Take note of an event. Fails where it cannot have happened."""
        job_id, status = event.job_id, event.status
        assert job_id is not None and status is not None
        assert event.previous is self.status_of(job_id)
        expected = self.expected.get(job_id, [])
        if expected and expected[0] is status:
            expected.pop(0)
        else:
            assert status in self.next_of(job_id), (event, self.jobs)
        self._become(job_id, status, event.at)

    def _become(self, job_id: str, status: Status, at: datetime) -> None:
        job = self.jobs[job_id]
        if job.status in ALIVE and status is Status.pending:
            job.attempt += 1
            job.reached = set()
        elif status is Status.pending:
            self.look_at_dependencies(job)
        job.status = status
        job.reached.add(status)
        if status is Status.queued:
            job.queued_at = at
        if status in TERMINAL:
            self._tell_dependents(job_id, status)

    def _tell_dependents(self, job_id: str, status: Status | None) -> None:
        for job in self.jobs.values():
            if job_id in job.depends_on and job.is_submitted and self._suits(job, status):
                job.met.add(job_id)

    def _suits(self, job: Job, end: Status | None) -> bool:
        return end is Status.finished or job.on_failure == "run"

    def look_at_dependencies(self, job: Job) -> None:
        """Have it wait for those that have not ended as it wants by now."""
        over = [other for other in job.depends_on if self.is_over(other)]
        job.met = {other for other in over if self._suits(job, self.status_of(other))}

    def status_of(self, job_id: str) -> Status | None:
        return self.jobs[job_id].status if job_id in self.jobs else None

    def is_over(self, job_id: str) -> bool:
        """Return whether nobody can wait for it: it has ended, or is not there."""
        return job_id not in self.jobs or self.jobs[job_id].is_done

    def next_of(self, job_id: str) -> set[Status]:
        """Return which statuses the job comes into by itself, now."""
        job = self.jobs[job_id]
        if job.status is Status.pending and job.is_submitted:
            return self._next_of_pending(job)
        if job.status is Status.queued and self._may_start(job):
            return {Status.starting}
        return {Status.running} if job.status is Status.starting else set()

    def _next_of_pending(self, job: Job) -> set[Status]:
        unmet = [] if job.attempt > 1 else [o for o in job.depends_on if o not in job.met]
        if not unmet:
            return {Status.queued}
        has_failed = any(map(self.is_over, unmet))
        return {Status.cancelled} if has_failed and job.on_failure == "cancel" else set()

    def _may_start(self, job: Job) -> bool:
        others = [other for other in self.jobs.values() if other.status is Status.queued]
        ahead = (other for other in others if other.place < job.place)
        return self._has_slot(job) and not any(map(self._has_slot, ahead))

    def _has_slot(self, job: Job) -> bool:
        taken = Counter(other.queue for other in self.jobs.values() if other.status in ALIVE)
        is_open = taken[job.queue] < NARROW.get(job.queue, SLOTS)
        return taken.total() < SLOTS and is_open and job.queue not in self.paused

    def open(self, job_id: str, job: Job, how: str) -> None:
        """Have a job, in place of one of that id: it was created, submitted or run."""
        job.status = self.status_of(job_id)
        self._settle(job_id)
        self.jobs[job_id] = job
        job.is_submitted = how != "create"
        first = FIRST.get(how, [Status.pending if job.depends_on else Status.queued])
        self.expect(job_id, *first)

    def _settle(self, job_id: str) -> None:
        """Have nobody wait any more to whom the end of a job, if it has ended, was good."""
        status = self.status_of(job_id)
        for other, job in self.jobs.items():
            waits = job.is_submitted and job_id in job.awaited
            if waits and status and self._suits(job, status):
                self.link(other, [known for known in job.awaited if known != job_id])

    def submit(self, job_id: str) -> None:
        """Have a job that was created take its turn."""
        job = self.jobs[job_id]
        job.is_submitted = True
        if job.depends_on:
            self.look_at_dependencies(job)
        self.expect(job_id, Status.pending if job.depends_on else Status.queued)

    def stop(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job.status in WAITING:
            self.expect(job_id, Status.cancelled)
        elif not job.is_done:
            self.expect(job_id, Status.stopping, Status.stopped)

    def end(self, job_id: str, exit_code: int) -> None:
        """Have a job that runs end by itself."""
        job = self.jobs[job_id]
        if exit_code == 0:
            self.expect(job_id, Status.finished)
        else:
            goes_on = job.attempt <= job.max_retries
            self.expect(job_id, Status.pending if goes_on else Status.failed)

    def link(self, job_id: str, depends_on: list[str]) -> None:
        job = self.jobs[job_id]
        if depends_on != job.awaited:
            job.depends_on = depends_on
            self.expect(job_id, Status.pending)

    def delete(self, job_id: str) -> None:
        has_finished = self.jobs.pop(job_id).status is Status.finished
        for other, job in self.jobs.items():
            if has_finished and job_id in job.awaited:
                self.link(other, [known for known in job.awaited if known != job_id])
        self._tell_dependents(job_id, None)

    def refusals(self, job_id: str, depends_on: Collection[str]) -> set[type[Exception]]:
        """Return how it may be refused that the job is to depend on these."""
        found: set[type[Exception]] = set()
        if any(other not in self.jobs for other in depends_on):
            found.add(InvalidJob)
        if any(self._leads_to(job_id, other) for other in depends_on):
            found.add(DependencyCycle)
        return found

    def _leads_to(self, job_id: str, start: str) -> bool:
        if start == job_id:
            return True
        awaited = self.jobs[start].awaited if start in self.jobs else []
        return any(self._leads_to(job_id, other) for other in awaited)


class QueueMachine(OpenedJobs):
    """Calls anything at any time, and holds what comes of it against the model."""

    ids = st.sampled_from("abcd")
    queues = st.sampled_from(["default", "narrow"])

    def __init__(self, executor: Literal["inline", "shim"]) -> None:
        self.executor = executor
        super().__init__(
            executor=executor, max_concurrent_jobs=SLOTS, queues=NARROW, aging=None, stop_grace=1
        )
        self.model = Model()
        self.seq = 0
        self.orders = {job_id: self._order(job_id) for job_id in "abcd"}
        """Where a job reads the exit code with which it is to end."""

    def _order(self, job_id: str) -> int:
        os.mkfifo(self._pipe(job_id))
        return os.open(self._pipe(job_id), os.O_RDWR)  # nobody waits for the other end

    def _pipe(self, job_id: str) -> Path:
        return Path(self.folder.name, f"order-{job_id}")

    def teardown(self) -> None:
        try:
            self.await_(self._end())
            shims = [locker(lock) for lock in Path(self.folder.name).rglob("shim/*lock")]
            assert all(pid is None or has_died(pid, LIMIT_S) for pid in shims)
        finally:
            for pipe in self.orders.values():
                os.close(pipe)
            super().teardown()

    async def _end(self) -> None:
        await asyncio.gather(*map(self.jobs.stop, self.model.jobs))
        await self.jobs.close()

    def call(self, call: Any, refusals: Collection[type[Exception]] = ()) -> Any:
        """Return the answer, None where the call was refused, which it was rightly."""
        try:
            answer = self.await_(call)
        except tuple(refusals):
            return None
        assert not refusals, (answer, refusals)
        return answer

    # Calls.

    ways = st.sampled_from(["create", "submit", "submit", "run"])
    specs = st.fixed_dictionaries(
        {
            "queue": queues,
            "priority": st.integers(1, 3),
            "depends_on": st.just([]) | st.lists(ids, max_size=2, unique=True),
            "on_failure": st.sampled_from(["cancel", "cancel", "run", "hold"]),
            "max_retries": st.sampled_from([0, 0, 1]),
        }
    )

    @initialize(specs=st.tuples(specs, specs, specs, specs))
    def begin(self, specs: tuple[dict[str, Any], ...]) -> None:
        """Have more jobs than there are slots; each may wait for some before it."""
        for job_id, spec in zip("abcd", specs, strict=True):
            known = [other for other in spec["depends_on"] if other in self.model.jobs]
            self.open(job_id, "submit", {**spec, "depends_on": known})
            self.await_(self._settle())

    @rule(job_id=ids, how=ways, spec=specs)
    def open(self, job_id: str, how: str, spec: dict[str, Any]) -> None:
        job = Job(**spec)
        job.depends_on = [] if how == "run" else [o for o in job.depends_on if o != job_id]
        old = self.model.jobs.get(job_id)
        refusals = self.model.refusals(job_id, job.depends_on)
        if old is not None and not old.is_done:
            refusals.add(JobActive)
        options = {
            "queue": job.queue,
            "priority": job.priority,
            "on_dependency_failure": job.on_failure,
            "max_retries": job.max_retries,
            **({"depends_on": job.depends_on} if job.depends_on else {}),
        }
        command = ["/bin/sh", "-c", 'read code < "$0"; exit "$code"', str(self._pipe(job_id))]
        if self.call(getattr(self.jobs, how)(command, job_id, **options), refusals):
            self.model.open(job_id, job, how)

    @rule(job_id=ids)
    def start(self, job_id: str) -> None:
        job = self.model.jobs.get(job_id)
        if job is None:
            self.call(self.jobs.start(job_id), {JobNotFound})
        elif job.status in WAITING:
            self.call(self.jobs.start(job_id))
            if not job.is_submitted:
                self.model.submit(job_id)
        elif not job.is_done:
            self.call(self.jobs.start(job_id), {JobActive})
        elif self.call(self.jobs.start(job_id), self.model.refusals(job_id, job.depends_on)):
            self.model.open(job_id, job.renewed(), "submit")

    @rule(job_id=ids, call=st.sampled_from(["cancel", "stop"]))
    def stop(self, job_id: str, call: str) -> None:
        record = self.call(getattr(self.jobs, call)(job_id))
        if job_id in self.model.jobs:
            assert record.is_done
            self.model.stop(job_id)
        else:
            assert record is None

    @rule(job_id=ids, exit_code=st.sampled_from([0, 0, 3]))
    def end(self, job_id: str, exit_code: int) -> None:
        """Have a job that runs end by itself."""
        if self.model.status_of(job_id) is Status.running:
            os.write(self.orders[job_id], b"%d\n" % exit_code)
            self.model.end(job_id, exit_code)

    @rule(queue=queues)
    def pause_queue(self, queue: str) -> None:
        self.call(self.jobs.pause_queue(queue))
        self.model.paused.add(queue)

    @rule(queue=queues)
    def resume_queue(self, queue: str) -> None:
        self.call(self.jobs.resume_queue(queue))
        self.model.paused.discard(queue)

    @rule(job_id=ids, other=ids)
    def add_dependency(self, job_id: str, other: str) -> None:
        job = self.model.jobs.get(job_id)
        refusals = self.model.refusals(job_id, [other]) if job else {JobNotFound}
        if job and not job.may_be_linked:
            refusals.add(InvalidTransition)
        if self.call(self.jobs.add_dependency(job_id, other), refusals):
            assert job is not None
            self.model.link(job_id, list(dict.fromkeys([*job.awaited, other])))

    @rule(job_id=ids, other=ids)
    def remove_dependency(self, job_id: str, other: str) -> None:
        job = self.model.jobs.get(job_id)
        refusals: set[type[Exception]] = set() if job else {JobNotFound}
        if job and not job.may_be_linked:
            refusals.add(InvalidTransition)
        if self.call(self.jobs.remove_dependency(job_id, other), refusals):
            assert job is not None
            self.model.link(job_id, [known for known in job.awaited if known != other])

    @rule(job_id=ids, status=st.sampled_from([None, Status.queued, Status.running, Status.failed]))
    def wait(self, job_id: str, status: Status | None) -> None:
        job = self.model.jobs.get(job_id)
        is_over = job is None or job.is_done or status in job.reached
        waiting = self.jobs.wait(job_id, status, timeout=None if is_over else 0.01)
        try:
            record = self.await_(waiting)
        except JobNotFound:
            assert job is None
        except StatusUnreachable:
            assert job is not None and job.is_done and status not in {None, *job.reached}
        except WaitTimeout:
            assert not is_over
        else:
            assert job is not None and is_over
            assert record.status is job.status

    @rule(job_id=ids)
    def delete(self, job_id: str) -> None:
        job = self.model.jobs.get(job_id)
        refusals = {JobActive} if job and not job.is_done else set()
        was_there = self.call(self.jobs.delete(job_id), refusals)
        if not refusals:
            assert was_there is (job is not None)
        if was_there:
            self.model.delete(job_id)

    @rule()
    def reopen(self) -> None:
        """Close, which stops what runs inline, and go on with another Jobs on the directory."""
        self.await_(self.jobs.close())
        if self.executor == "inline":
            for job_id, job in self.model.jobs.items():
                if job.status in ALIVE:
                    self.model.stop(job_id)
        self.jobs = self.new_jobs()

    # What holds after each of them.

    @invariant()
    def what_follows_comes_and_nothing_else(self) -> None:
        self.await_(self._settle())
        records, paused = self.await_(self._looks())
        assert set(paused) == self.model.paused
        assert records.keys() == self.model.jobs.keys()
        for job_id, record in records.items():
            self._compare(record, self.model.jobs[job_id])

    async def _settle(self) -> None:
        """Follow what happens until nothing more is to come."""
        if self.model.is_settled:
            return
        async with aclosing(self.jobs.events(after=self.seq)) as events:
            async for event in events:
                if event.kind == "status":
                    self.seq = event.seq
                    self.model.follow(event)
                    if self.model.is_settled:
                        return

    async def _looks(self) -> tuple[dict[str, JobRecord], list[str]]:
        return await self.jobs.list_status(), await self.jobs.paused_queues()

    def _compare(self, record: JobRecord, job: Job) -> None:
        assert (record.status, record.attempt) == (job.status, job.attempt)
        assert record.depends_on == job.depends_on
        assert set(record.reached) == job.reached
        assert (record.submitted_at is not None) == job.is_submitted


@pytest.mark.parametrize(("started_by", "examples"), [("inline", 25), ("shim", 10)])
def test_whatever_is_called_jobs_take_turns_as_the_model_says(
    started_by: Any, examples: int
) -> None:
    run_state_machine_as_test(lambda: QueueMachine(started_by), settings=bounded(examples, 25))
