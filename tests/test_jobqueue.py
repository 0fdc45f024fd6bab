"""The queue: order, slots and deadlines, also against a model that looks at all jobs each time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from anodejobs.jobqueue import AGING_S, JobQueue, Priority, Waiting
from tests.steps import steps_in

NOW = 1_800_000_000.0
untimed = settings(deadline=None)


def waiting(job_id: str, queued_at: float = NOW, **fields: object) -> Waiting:
    return Waiting(job_id=job_id, queued_at=queued_at, **fields)  # type: ignore[arg-type]


def queue_of(*jobs: Waiting, limit: int | None = None, **options: object) -> JobQueue:
    queue = JobQueue(max_concurrent_jobs=limit, **options)  # type: ignore[arg-type]
    for job in jobs:
        queue.add(job)
    return queue


def ids(jobs: Iterable[Waiting]) -> list[str]:
    return [job.job_id for job in jobs]


def admitted(queue: JobQueue, now: float = NOW) -> list[str]:
    return ids(queue.admit(now))


def end(queue: JobQueue, *job_ids: str) -> None:
    for job_id in job_ids:
        queue.release(job_id)


# Order.


def test_a_higher_priority_starts_first():
    queue = queue_of(
        waiting("low", priority=Priority.low),
        waiting("critical", priority=Priority.critical),
        waiting("medium"),
        waiting("high", priority=Priority.high),
    )
    assert admitted(queue) == ["critical", "high", "medium", "low"]


def test_a_priority_may_be_any_whole_number():
    queue = queue_of(waiting("least", priority=-1), waiting("most", priority=2**63 - 1))
    assert admitted(queue) == ["most", "least"]


def test_of_one_priority_the_first_to_come_is_the_first_to_start():
    queue = queue_of(waiting("second", NOW + 1), waiting("third", NOW + 2), waiting("first", NOW))
    assert admitted(queue, NOW + 3) == ["first", "second", "third"]


def test_jobs_queued_at_the_same_moment_start_in_the_order_they_were_added():
    job_ids = [f"job-{number}" for number in (3, 1, 2, 0)]
    assert admitted(queue_of(*map(waiting, job_ids))) == job_ids


def test_a_moment_too_short_for_the_place_still_tells_who_came_first():
    """With a priority as large as can be, a place is too coarse a number for that."""
    huge = 2**63 - 1
    queue = queue_of(waiting("b", NOW + 1, priority=huge), waiting("a", NOW, priority=huge))
    assert admitted(queue) == ["a", "b"]


def test_waiting_raises_a_job_by_one_step_in_each_span_of_aging():
    low = waiting("low", NOW, priority=1)
    for later, expected in ((59.9, ["high", "low"]), (60.1, ["low", "high"])):
        high = waiting("high", NOW + later, priority=2)
        assert admitted(queue_of(low, high, aging_s=60.0)) == expected


def test_ten_minutes_are_worth_one_named_priority():
    assert AGING_S * (Priority.high - Priority.medium) == 600


def starts_in_ticks(aging_s: float | None, ticks: int) -> int | None:
    """Return when a low job starts while a critical one comes, and one ends, in each tick."""
    queue = queue_of(waiting("low", NOW, priority=1), limit=1, aging_s=aging_s)
    queue.occupy("before")
    running = "before"
    for tick in range(ticks):
        queue.add(waiting(f"critical-{tick}", NOW + tick, priority=4))
        queue.release(running)
        (running,) = admitted(queue, NOW + tick)
        if running == "low":
            return tick
    return None


def test_a_low_job_starts_however_many_critical_ones_come():
    assert starts_in_ticks(aging_s=100, ticks=1000) == 300


def test_strict_priorities_let_a_low_job_wait_for_ever():
    assert starts_in_ticks(aging_s=None, ticks=1000) is None


jobs = st.lists(
    st.builds(
        Waiting,
        job_id=st.uuids().map(str),
        queue=st.sampled_from(["default", "gpu"]),
        priority=st.integers(0, 50),
        queued_at=st.floats(0, 10_000),
    ),
    max_size=30,
    unique_by=lambda job: job.job_id,
)


@untimed
@given(jobs, st.floats(0.1, 1000))
def test_no_job_is_overtaken_by_one_that_came_later_than_its_priority_makes_up_for(
    jobs: list[Waiting], aging_s: float
) -> None:
    started: list[Waiting] = []
    for job in queue_of(*jobs, aging_s=aging_s).admit(NOW):
        for before in started:
            head_start_s = (before.priority - job.priority) * aging_s
            assert before.queued_at <= job.queued_at + head_start_s + 1e-6
        started.append(job)


@untimed
@given(jobs)
def test_strict_priorities_are_strict(jobs: list[Waiting]) -> None:
    started = queue_of(*jobs, aging_s=None).admit(NOW)
    for first, second in pairwise(started):
        assert (-first.priority, first.queued_at) <= (-second.priority, second.queued_at)


@untimed
@given(jobs, st.randoms(use_true_random=False), st.integers(1, 5))
def test_the_order_does_not_depend_on_when_slots_become_free(
    jobs: list[Waiting], chance: random.Random, limit: int
) -> None:
    at_once = admitted(queue_of(*jobs))
    queue = queue_of(*jobs, limit=limit)
    one_by_one = running = admitted(queue)
    while running:
        ended = chance.choice(running)
        queue.release(ended)
        started = admitted(queue)
        running = [job_id for job_id in running if job_id != ended] + started
        one_by_one = one_by_one + started
    assert one_by_one == at_once


# Slots.


def test_no_more_jobs_start_than_there_are_slots():
    queue = queue_of(*(waiting(f"job-{number}") for number in range(5)), limit=2)
    assert admitted(queue) == ["job-0", "job-1"]
    assert admitted(queue) == []
    queue.release("job-0")
    assert admitted(queue) == ["job-2"]


def test_without_a_limit_all_start():
    assert len(queue_of(*(waiting(f"job-{n}") for n in range(1000))).admit(NOW)) == 1000


def test_a_full_queue_holds_up_no_other_one():
    queue = queue_of(
        waiting("gpu-1", queue="gpu", priority=40),
        waiting("gpu-2", queue="gpu", priority=40),
        waiting("other", priority=10),
        limit=10,
        queues={"gpu": 1},
    )
    assert admitted(queue) == ["gpu-1", "other"]
    queue.release("gpu-1")
    assert admitted(queue) == ["gpu-2"]


def test_the_limit_of_a_queue_does_not_add_slots():
    jobs = [waiting(f"gpu-{number}", queue="gpu") for number in range(9)]
    assert len(queue_of(*jobs, limit=3, queues={"gpu": 5}).admit(NOW)) == 3


def test_what_is_not_admissible_waits_and_holds_up_nobody():
    others = [waiting(f"other-{n}", is_admissible=False, priority=99) for n in range(3)]
    queue = queue_of(*others, waiting("mine", NOW + 1), limit=5)
    assert admitted(queue) == ["mine"]
    assert queue.depth() == {}
    queue.add(waiting("other-1"))
    assert admitted(queue) == ["other-1"]
    for job_id in ("other-0", "other-0", "other-2"):
        queue.remove(job_id)
    assert admitted(queue) == []


def test_the_deadline_of_what_is_not_admissible_holds():
    queue = queue_of(waiting("other", deadline=NOW + 5, is_admissible=False))
    assert queue.next_deadline() == NOW + 5
    assert ids(queue.expired(NOW + 4)) == []
    assert ids(queue.expired(NOW + 5)) == ["other"]
    assert queue.next_deadline() is None


def test_a_queue_without_a_limit_is_bound_by_that_over_all():
    jobs = [waiting(f"job-{number}", queue="named nowhere") for number in range(5)]
    assert len(queue_of(*jobs, limit=3, queues={"gpu": 1}).admit(NOW)) == 3


def test_the_default_queue_may_have_a_limit_too():
    assert admitted(queue_of(waiting("a"), waiting("b"), queues={"default": 1})) == ["a"]


def test_slots_go_to_whoever_is_first_in_any_queue():
    queue = queue_of(
        *(waiting(f"x-{number}", NOW + 2 * number, queue="x") for number in range(3)),
        *(waiting(f"y-{number}", NOW + 2 * number + 1, queue="y") for number in range(3)),
    )
    assert admitted(queue) == ["x-0", "y-0", "x-1", "y-1", "x-2", "y-2"]


def test_a_job_that_bypasses_the_queue_takes_a_slot():
    queue = queue_of(waiting("waits", queue="gpu"), limit=5, queues={"gpu": 1})
    queue.occupy("ran at once", "gpu")
    assert admitted(queue) == []
    queue.release("ran at once")
    assert admitted(queue) == ["waits"]


def test_jobs_that_bypass_the_queue_may_be_more_than_there_are_slots():
    queue = queue_of(waiting("waits"), limit=2)
    for number in range(4):
        queue.occupy(f"run-{number}")
    assert queue.occupied() == {"default": 4}
    end(queue, "run-0", "run-1")
    assert admitted(queue) == []
    end(queue, "run-2")
    assert admitted(queue) == ["waits"]


def test_a_job_that_runs_waits_no_more():
    queue = queue_of(waiting("a"))
    queue.occupy("a")
    assert (queue.depth(), admitted(queue), queue.occupied()) == ({}, [], {"default": 1})


def test_a_slot_that_is_occupied_twice_is_one_slot():
    queue = queue_of(waiting("b"), limit=2)
    queue.occupy("a")
    queue.occupy("a")
    assert queue.occupied() == {"default": 1}
    assert admitted(queue) == ["b"]


def test_the_last_word_on_whose_slot_it_is_holds():
    queue = queue_of()
    queue.occupy("a", "gpu")
    queue.occupy("a", "disk")
    assert queue.occupied() == {"disk": 1}


def test_a_slot_that_nobody_holds_can_be_released():
    queue = queue_of(waiting("a"), waiting("b"), limit=1)
    queue.release("unknown")
    queue.release("a")  # which waits
    assert admitted(queue) == ["a"]
    end(queue, "a", "a")
    assert (admitted(queue), queue.occupied()) == (["b"], {"default": 1})


def test_a_start_that_did_not_come_off_can_wait_again_in_its_old_place():
    queue = queue_of(waiting("a", NOW), waiting("b", NOW + 1), limit=1)
    (first,) = queue.admit(NOW + 2)
    queue.release("a")
    queue.add(first)
    assert admitted(queue, NOW + 3) == ["a"]


# Who waits.


def test_a_job_that_is_added_twice_waits_once_and_keeps_its_place():
    queue = queue_of(waiting("a"), waiting("b"), waiting("a"))
    assert (queue.depth(), admitted(queue)) == ({"default": 2}, ["a", "b"])


def test_a_job_that_is_added_otherwise_waits_as_it_was_said_last():
    queue = queue_of(waiting("a"), waiting("b"), waiting("a", queue="gpu", priority=0))
    assert queue.depth() == {"default": 1, "gpu": 1}
    assert admitted(queue) == ["b", "a"]


def test_a_job_that_holds_a_slot_is_not_admitted_again():
    queue = queue_of(waiting("a"))
    (job,) = queue.admit(NOW)
    queue.add(job)
    assert (queue.depth(), admitted(queue)) == ({}, [])


def test_a_withdrawn_job_is_not_admitted():
    queue = queue_of(waiting("a"), waiting("b"), waiting("c"))
    queue.remove("b")
    queue.remove("b")
    queue.remove("unknown")
    assert (queue.depth(), admitted(queue)) == ({"default": 2}, ["a", "c"])


def test_a_withdrawn_job_can_come_back():
    queue = queue_of(waiting("a"), waiting("b"))
    queue.remove("a")
    queue.add(waiting("a"))
    assert admitted(queue) == ["b", "a"]


def test_depth_and_slots_are_told_by_queue():
    queue = queue_of(
        waiting("a"), waiting("b"), waiting("c", queue="gpu"), waiting("d", queue="gpu"), limit=3
    )
    queue.admit(NOW)
    assert (queue.depth(), queue.occupied()) == ({"gpu": 1}, {"default": 2, "gpu": 1})
    end(queue, "a", "b", "c")
    assert (queue.depth(), queue.occupied()) == ({"gpu": 1}, {})


# Pauses.


def test_a_paused_queue_admits_nothing_and_holds_up_nobody():
    queue = queue_of(waiting("a", queue="x"), waiting("b", queue="y"))
    queue.pause("x")
    assert admitted(queue) == ["b"]
    assert queue.depth() == {"x": 1}


def test_a_resumed_queue_admits_again():
    queue = queue_of(waiting("a", queue="x"))
    queue.pause("x")
    queue.pause("x")
    assert queue.paused() == {"x"}
    queue.resume("x")
    queue.resume("never paused")
    assert (queue.paused(), admitted(queue)) == (frozenset(), ["a"])


def test_what_runs_in_a_paused_queue_keeps_its_slot():
    queue = queue_of(waiting("a", queue="x"), waiting("b", queue="y"), limit=1)
    assert admitted(queue) == ["a"]
    queue.pause("x")
    assert (queue.occupied(), admitted(queue)) == ({"x": 1}, [])


# Deadlines.


def test_a_job_whose_deadline_is_over_is_told_once_and_waits_no_more():
    queue = queue_of(waiting("a", deadline=NOW + 5), waiting("b"))
    assert queue.expired(NOW + 4.9) == []
    assert ids(queue.expired(NOW + 5)) == ["a"]
    assert queue.expired(NOW + 5) == []
    assert admitted(queue) == ["b"]


def test_expired_jobs_are_told_by_deadline():
    jobs = [waiting(f"in {s}", deadline=NOW + s) for s in (3, 1, 2, 9)]
    assert ids(queue_of(*jobs).expired(NOW + 3)) == ["in 1", "in 2", "in 3"]


def test_a_job_whose_deadline_is_over_is_never_admitted():
    queue = queue_of(waiting("late", deadline=NOW + 5), waiting("b"), limit=1)
    assert admitted(queue, NOW + 5) == ["b"]
    assert ids(queue.expired(NOW + 5)) == ["late"]


def test_a_deadline_that_was_over_stays_so_if_the_clock_is_set_back():
    queue = queue_of(waiting("late", deadline=NOW + 5), waiting("b", deadline=NOW + 1))
    queue.remove("b")
    assert admitted(queue, NOW + 6) == []
    queue.add(waiting("c", deadline=NOW + 3))
    assert queue.next_deadline() == NOW + 3
    assert ids(queue.expired(NOW)) == ["late"]
    assert queue.next_deadline() == NOW + 3


def test_the_next_deadline_is_the_earliest_of_those_that_wait():
    queue = queue_of(waiting("a", deadline=NOW + 1), waiting("b", deadline=NOW + 2), waiting("c"))
    assert queue.next_deadline() == NOW + 1
    queue.remove("a")
    assert queue.next_deadline() == NOW + 2
    queue.occupy("b")
    assert queue.next_deadline() is None


def test_what_expired_unseen_is_still_due():
    queue = queue_of(waiting("a", deadline=NOW + 1))
    queue.admit(NOW + 2)
    assert (queue.depth(), queue.next_deadline()) == ({}, NOW + 1)


def test_a_job_that_is_withdrawn_after_its_deadline_is_not_told():
    queue = queue_of(waiting("a", deadline=NOW + 1))
    queue.admit(NOW + 2)
    queue.remove("a")
    assert (queue.expired(NOW + 2), queue.next_deadline()) == ([], None)


def test_deadlines_hold_in_a_paused_queue():
    queue = queue_of(waiting("a", deadline=NOW + 1))
    queue.pause("default")
    assert ids(queue.expired(NOW + 1)) == ["a"]


# Very many jobs.


def test_a_hundred_thousand_jobs_start_in_order():
    chance = random.Random(4)
    jobs = [
        waiting(f"job-{number}", NOW + number, priority=chance.choice(list(Priority)))
        for number in range(100_000)
    ]
    expected = sorted(jobs, key=lambda job: job.queued_at - job.priority * AGING_S)
    chance.shuffle(jobs)
    assert queue_of(*jobs).admit(NOW) == expected


def admissions(queued: int) -> int:
    """Return the steps it takes to put a hundred jobs through one slot, behind so many others."""
    queue = queue_of(*(waiting(f"job-{number}", NOW + number) for number in range(queued)), limit=1)
    running = admitted(queue)

    def put_through() -> None:
        for number in range(100):
            queue.add(waiting(f"more-{number}", NOW + queued + number, deadline=NOW + 1e9))
            end(queue, *running)
            running[:] = admitted(queue)

    return steps_in(put_through)


def test_an_admission_takes_as_many_steps_however_many_jobs_wait():
    assert admissions(20_000) == admissions(200)


def test_withdrawn_jobs_do_not_pile_up():
    queue = queue_of(waiting("first", deadline=NOW), limit=1)
    for number in range(10_000):
        queue.add(waiting(f"job-{number}", NOW + number, deadline=NOW + number))
        if number >= 10:
            queue.remove(f"job-{number - 10}")
    for line in (queue._lines["default"], queue._deadlines):
        assert len(line) == 11
        assert len(line._heap) <= 22


def test_an_empty_queue_remembers_no_queue_that_was():
    queue = queue_of(*(waiting(f"job-{n}", queue=f"queue-{n}") for n in range(100)))
    end(queue, *admitted(queue))
    assert (queue._lines, queue._occupied, queue._queue_of) == ({}, {}, {})


# Against a model.

names = st.sampled_from([f"job-{number}" for number in range(8)])
queues = st.sampled_from(["default", "gpu", "disk"])
limits = st.none() | st.integers(1, 4)
spans = st.integers(0, 20).map(float)


class Model:
    """The same in the plainest way: it looks at all jobs each time, and sorts nothing ahead."""

    def __init__(self, limit: int | None, limits: dict[str, int], aging_s: float | None) -> None:
        self.limit = limit
        self.limits = limits
        self.aging_s = aging_s
        self.waiting: list[Waiting] = []
        self.overdue: list[Waiting] = []
        self.running: dict[str, str] = {}
        self.paused: set[str] = set()

    def add(self, job: Waiting) -> None:
        if job not in self.waiting and job.job_id not in self.running:
            self.remove(job.job_id)
            self.waiting.append(job)

    def remove(self, job_id: str) -> None:
        self.waiting = [job for job in self.waiting if job.job_id != job_id]
        self.overdue = [job for job in self.overdue if job.job_id != job_id]

    def occupy(self, job_id: str, queue: str) -> None:
        self.remove(job_id)
        self.running[job_id] = queue

    def startable(self) -> list[Waiting]:
        if self.limit is not None and len(self.running) >= self.limit:
            return []
        taken = Counter(self.running.values())
        return [
            job
            for job in self.waiting
            if job.queue not in self.paused
            and taken[job.queue] < self.limits.get(job.queue, taken[job.queue] + 1)
        ]

    def place(self, job: Waiting) -> tuple[float, float]:
        if self.aging_s is None:
            return -job.priority, job.queued_at
        return job.queued_at - job.priority * self.aging_s, job.queued_at

    def admit(self, now: float) -> list[Waiting]:
        self.look_at_clock(now)
        admitted = []
        while startable := self.startable():
            first = min(startable, key=self.place)
            self.occupy(first.job_id, first.queue)
            admitted.append(first)
        return admitted

    def look_at_clock(self, now: float) -> None:
        self.overdue += [job for job in self.waiting if (job.deadline or now + 1) <= now]
        self.waiting = [job for job in self.waiting if job not in self.overdue]

    def expired(self, now: float) -> list[Waiting]:
        self.look_at_clock(now)
        expired, self.overdue = self.overdue, []
        return sorted(expired, key=lambda job: (job.deadline, job.queued_at))


class QueueAndModel(RuleBasedStateMachine):
    """Whatever is said in whatever order, both agree."""

    @initialize(
        limit=limits,
        limits=st.dictionaries(queues, st.integers(1, 3)),
        aging_s=st.sampled_from([None, 0.5, 7.0]),
    )
    def begin(self, limit: int | None, limits: dict[str, int], aging_s: float | None) -> None:
        self.now = 100.0
        self.queue = JobQueue(max_concurrent_jobs=limit, queues=limits, aging_s=aging_s)
        self.model = Model(limit, limits, aging_s)

    @rule(
        job_id=names,
        queue=queues,
        priority=st.integers(0, 4),
        ago=spans,
        left=st.none() | spans.map(lambda s: s + 1),
    )
    def add(self, job_id: str, queue: str, priority: int, ago: float, left: float | None) -> None:
        job = Waiting(
            job_id=job_id,
            queue=queue,
            priority=priority,
            queued_at=self.now - ago,
            deadline=None if left is None else self.now + left,
        )
        self.queue.add(job)
        self.model.add(job)

    @rule(job_id=names)
    def remove(self, job_id: str) -> None:
        self.queue.remove(job_id)
        self.model.remove(job_id)

    @rule(job_id=names | st.just("run"), queue=queues)
    def occupy(self, job_id: str, queue: str) -> None:
        self.queue.occupy(job_id, queue)
        self.model.occupy(job_id, queue)

    @rule(job_id=names | st.just("run"))
    def release(self, job_id: str) -> None:
        self.queue.release(job_id)
        self.model.running.pop(job_id, None)

    @rule(queue=queues)
    def pause(self, queue: str) -> None:
        self.queue.pause(queue)
        self.model.paused.add(queue)

    @rule(queue=queues)
    def resume(self, queue: str) -> None:
        self.queue.resume(queue)
        self.model.paused.discard(queue)

    @rule(span=spans)
    def time_passes(self, span: float) -> None:
        self.now += span

    @rule()
    def admit(self) -> None:
        before = self.queue.occupied()
        admitted = self.queue.admit(self.now)
        assert admitted == self.model.admit(self.now)
        self._has_kept_the_limits(before, admitted)
        self._has_left_no_slot_free()

    def _has_kept_the_limits(self, before: dict[str, int], admitted: list[Waiting]) -> None:
        occupied = self.queue.occupied()
        if admitted and self.model.limit is not None:
            assert sum(occupied.values()) <= self.model.limit
        for queue in {job.queue for job in admitted} & self.model.limits.keys():
            assert before.get(queue, 0) < occupied[queue] <= self.model.limits[queue]

    def _has_left_no_slot_free(self) -> None:
        occupied = self.queue.occupied()
        if self.model.limit is None or sum(occupied.values()) < self.model.limit:
            for queue in self.queue.depth().keys() - self.queue.paused():
                assert occupied[queue] >= self.model.limits[queue]

    @rule()
    def expire(self) -> None:
        assert self.queue.expired(self.now) == self.model.expired(self.now)

    @invariant()
    def both_count_alike(self) -> None:
        model = self.model
        assert self.queue.depth() == Counter(job.queue for job in model.waiting)
        assert self.queue.occupied() == Counter(model.running.values())
        assert self.queue.paused() == model.paused

    @invariant()
    def both_are_due_alike(self) -> None:
        known = (*self.model.waiting, *self.model.overdue)
        deadlines = [job.deadline for job in known if job.deadline is not None]
        assert self.queue.next_deadline() == min(deadlines, default=None)

    @invariant()
    def no_heap_is_longer_than_twice_its_line(self) -> None:
        for line in (*self.queue._lines.values(), self.queue._deadlines, self.queue._overdue):
            assert len(line._heap) <= 2 * len(line)


def test_the_queue_does_what_its_model_does():
    run_state_machine_as_test(
        QueueAndModel, settings=settings(max_examples=200, stateful_step_count=40, deadline=None)
    )
