"""Who waits for whom: ends and what follows, cycles, batches; also against a plain fixpoint."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from anodejobs.dependencies import (
    Consequence,
    Dependencies,
    Fate,
    OnDependencyFailure,
    resolve_batch,
)
from anodejobs.errors import DependencyCycle, InvalidJob
from tests.steps import steps_in

Job = tuple[str, Sequence[str], OnDependencyFailure]
"""What ``Dependencies.add`` takes."""


def job(job_id: str, *depends_on: str, on: OnDependencyFailure = "cancel") -> Job:
    return job_id, depends_on, on


def graph_of(*jobs: Job) -> Dependencies:
    graph = Dependencies()
    for each in jobs:
        graph.add(*each)
    return graph


def fates(consequences: Iterable[Consequence]) -> dict[str, str]:
    return {each.job_id: each.fate.value for each in consequences}


def reasons(consequences: Iterable[Consequence]) -> dict[str, str | None]:
    return {each.job_id: each.reason for each in consequences}


def succeed(graph: Dependencies, job_id: str) -> dict[str, str]:
    return fates(graph.ended(job_id, succeeded=True))


def fail(graph: Dependencies, job_id: str) -> dict[str, str]:
    return fates(all_that_follows(graph, job_id, succeeded=False))


def all_that_follows(graph: Dependencies, job_id: str, *, succeeded: bool) -> list[Consequence]:
    """Tell of an end, and of the ends of those that it cancels, and so on."""
    consequences = {each.job_id: each for each in graph.ended(job_id, succeeded=succeeded)}
    ends = [each.job_id for each in consequences.values() if each.fate is Fate.cancelled]
    for cancelled in ends:  # more are added as it goes on
        for each in graph.ended(cancelled, succeeded=False, how="was cancelled"):
            consequences[each.job_id] = each
            if each.fate is Fate.cancelled:
                ends.append(each.job_id)
    return list(consequences.values())


# What an end means.


def test_a_job_is_ready_when_the_last_of_its_dependencies_is_met():
    graph = graph_of(job("c", "a", "b"))
    assert succeed(graph, "a") == {"c": "waiting"}
    assert succeed(graph, "b") == {"c": "ready"}


def test_a_job_without_dependencies_is_ready_when_it_is_added():
    assert Dependencies().add("a") == Consequence("a", Fate.ready)


def test_a_failed_dependency_cancels_its_dependents_with_the_reason():
    graph = graph_of(job("b", "a"))
    assert graph.ended("a", succeeded=False) == [
        Consequence("b", Fate.cancelled, "dependency 'a' failed")
    ]
    assert "b" not in graph


def test_cancellation_goes_on_down_the_graph():
    graph = graph_of(job("b", "a"), job("c", "b"), job("d", "c", "x"), job("e", "x"))
    consequences = all_that_follows(graph, "a", succeeded=False)
    assert fates(consequences) == {"b": "cancelled", "c": "cancelled", "d": "cancelled"}
    assert reasons(consequences) == {
        "b": "dependency 'a' failed",
        "c": "dependency 'b' was cancelled",
        "d": "dependency 'c' was cancelled",
    }
    assert graph.dependents_of("x") == ("e",)


def test_who_waits_for_a_cancelled_job_is_told_when_it_has_ended():
    graph = graph_of(job("b", "a"), job("c", "b", on="run"))
    assert fates(graph.ended("a", succeeded=False)) == {"b": "cancelled"}
    assert graph.dependencies_of("c") == ("b",)
    graph.add("b")  # its dependency was removed just in time
    assert succeed(graph, "b") == {"c": "ready"}


def test_the_reason_tells_how_the_dependency_ended():
    graph = graph_of(job("b", "a"))
    (consequence,) = graph.ended("a", succeeded=False, how="was stopped")
    assert consequence.reason == "dependency 'a' was stopped"


def test_a_job_that_runs_all_the_same_is_ready_when_all_are_over():
    graph = graph_of(job("c", "a", "b", on="run"))
    assert fail(graph, "a") == {"c": "waiting"}
    assert succeed(graph, "b") == {"c": "ready"}


def test_what_follows_from_a_cancelled_job_is_up_to_each_dependent():
    graph = graph_of(
        job("b", "a"), job("c", "b", on="run"), job("d", "b", on="hold"), job("e", "c")
    )
    assert fail(graph, "a") == {"b": "cancelled", "c": "ready", "d": "held"}


def test_a_job_is_told_once_however_many_of_its_dependencies_are_cancelled():
    graph = graph_of(job("b", "a"), job("c", "a"), job("d", "b", "c", on="run"), job("e", "b", "c"))
    consequences = all_that_follows(graph, "a", succeeded=False)
    assert fates(consequences) == {
        "b": "cancelled",
        "c": "cancelled",
        "d": "ready",
        "e": "cancelled",
    }
    assert len(consequences) == 4


def test_a_job_is_held_until_the_dependency_that_failed_succeeds():
    graph = graph_of(job("c", "a", "b", on="hold"))
    (held,) = graph.ended("a", succeeded=False)
    assert held == Consequence("c", Fate.held, "dependency 'a' failed")
    assert succeed(graph, "b") == {"c": "held"}
    assert fail(graph, "a") == {"c": "held"}
    assert succeed(graph, "a") == {"c": "ready"}


def test_a_held_job_that_waits_for_others_too_waits_on():
    graph = graph_of(job("c", "a", "b", on="hold"))
    fail(graph, "a")
    assert succeed(graph, "a") == {"c": "waiting"}


def test_who_waits_for_a_held_job_waits_on():
    graph = graph_of(job("b", "a", on="hold"), job("c", "b"))
    assert fail(graph, "a") == {"b": "held"}
    assert graph.dependents_of("b") == ("c",)


def test_an_end_means_nothing_to_who_does_not_wait_for_it():
    graph = graph_of(job("b", "a"))
    assert succeed(graph, "nobody's dependency") == {}
    succeed(graph, "a")
    assert fail(graph, "a") == {}
    assert "b" in graph


def test_a_job_that_has_started_is_told_nothing_more():
    graph = graph_of(job("b", "a"), job("c", "b"))
    graph.started("b")
    graph.started("b")
    assert fail(graph, "a") == {}
    assert succeed(graph, "b") == {"c": "ready"}


def test_a_job_that_was_withdrawn_counts_as_one_that_failed():
    graph = graph_of(job("b", "a"), job("c", "b"))
    (consequence,) = graph.ended("b", succeeded=False, how="was cancelled")
    assert consequence == Consequence("c", Fate.cancelled, "dependency 'b' was cancelled")
    assert graph.dependents_of("a") == ()


def test_what_was_over_before_is_told_after_the_job_was_added():
    graph = Dependencies()
    assert fates([graph.add(*job("c", "a", "b"))]) == {"c": "waiting"}
    succeed(graph, "a")
    assert succeed(graph, "b") == {"c": "ready"}


# Who waits for whom.


def test_both_directions_are_told():
    graph = graph_of(job("c", "b", "a", "b"), job("d", "a"))
    assert graph.dependencies_of("c") == ("b", "a")
    assert graph.dependents_of("a") == ("c", "d")
    assert graph.dependencies_of("unknown") == graph.dependents_of("unknown") == ()


def test_a_dependency_that_was_met_is_waited_for_no_more():
    graph = graph_of(job("c", "a", "b"))
    succeed(graph, "a")
    assert (graph.dependencies_of("c"), graph.dependents_of("a")) == (("b",), ())


def test_a_job_that_is_added_again_waits_as_it_was_said_last():
    graph = graph_of(job("b", "a"), job("c", "b"))
    graph.add(*job("b", "x", on="run"))
    assert (graph.dependents_of("a"), graph.dependencies_of("b")) == ((), ("x",))
    assert fail(graph, "x") == {"b": "ready"}
    assert succeed(graph, "b") == {"c": "ready"}


def test_nothing_is_remembered_of_jobs_that_are_over():
    graph = graph_of(job("b", "a"), job("c", "b", on="run"), job("d", "c", on="hold"))
    for job_id in "abcd":
        fail(graph, job_id)
    assert (graph._nodes, graph._dependents) == ({}, {})


# Cycles.


def test_a_cycle_is_refused_with_its_path():
    graph = graph_of(job("a"), job("b", "a"), job("c", "b"))
    with pytest.raises(DependencyCycle) as caught:
        graph.add(*job("a", "c"))
    assert caught.value.cycle == ("a", "c", "b")


def test_a_refused_dependency_is_not_there():
    graph = graph_of(job("a"), job("b", "a"))
    with pytest.raises(DependencyCycle):
        graph.add(*job("a", "b"))
    assert (graph.dependencies_of("a"), graph.dependents_of("b")) == ((), ())


def test_a_job_cannot_wait_for_itself():
    with pytest.raises(DependencyCycle) as caught:
        graph_of(job("a", "b", "a"))
    assert caught.value.cycle == ("a",)


def test_a_cycle_through_jobs_that_were_there_before_is_refused():
    """They were told to wait for a job that came later."""
    graph = graph_of(job("a", "c"), job("b", "a"))
    with pytest.raises(DependencyCycle) as caught:
        graph.add(*job("c", "b"))
    assert caught.value.cycle == ("c", "b", "a")
    assert fates([graph.add("c")]) == {"c": "ready"}


def test_a_job_that_is_added_again_may_not_close_a_cycle():
    graph = graph_of(job("a"), job("b", "a"))
    with pytest.raises(DependencyCycle):
        graph.add(*job("a", "b"))
    assert succeed(graph, "a") == {"b": "ready"}


def test_what_a_met_dependency_waited_for_makes_no_cycle():
    graph = graph_of(job("a"), job("b", "a"))
    graph.started("a")
    succeed(graph, "a")
    graph.add("a")  # run anew
    assert fates([graph.add(*job("a", "b"))]) == {"a": "waiting"}


def test_a_diamond_is_no_cycle():
    assert "a" in graph_of(job("b", "a"), job("c", "a"), job("d", "b", "c"), job("a"))


# Very many jobs.

CHAIN = [job("0"), *(job(str(number), str(number - 1)) for number in range(1, 10_000))]


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_a_long_chain_is_admitted_in_any_order(order):
    jobs = list(CHAIN)
    if order == "backwards":
        jobs.reverse()
    if order == "shuffled":
        random.Random(4).shuffle(jobs)
    graph = graph_of(*jobs)
    ready, ended = ["0"], 0
    while ready:
        ended += 1
        (ready_id,) = ready
        ready = list(succeed(graph, ready_id))
    assert ended == 10_000
    assert (graph._nodes, graph._dependents) == ({}, {})


def test_a_long_chain_is_cancelled_from_its_head_on():
    consequences = all_that_follows(graph_of(*CHAIN), "0", succeeded=False)
    assert [each.job_id for each in consequences] == [job_id for job_id, *_ in CHAIN[1:]]
    assert {each.fate for each in consequences} == {Fate.cancelled}


def test_a_long_cycle_is_found():
    with pytest.raises(DependencyCycle) as caught:
        graph_of(*CHAIN[1:], job("0", "9999"))
    assert len(caught.value.cycle) == 10_000


def test_a_long_chain_is_not_closed_by_its_first_job():
    with pytest.raises(DependencyCycle) as caught:
        graph_of(*CHAIN).add("0", ["9999"])
    assert len(caught.value.cycle) == 10_000


def chain(jobs: int) -> list[Job]:
    return CHAIN[:jobs]


def star(jobs: int) -> list[Job]:
    return [*(job(str(number), "0") for number in range(1, jobs)), job("0")]


def funnel(jobs: int) -> list[Job]:
    return [job("0"), *(job(f"1-{n}", "0") for n in range(jobs)), job("2", *_range("1-", jobs))]


def layers(jobs: int) -> list[Job]:
    """Each job waits for several of those before it, and always for the same number."""
    chance = random.Random(4)
    first = [job(str(number), "0") for number in range(1, 20)]
    rest = [
        job(str(number), *(str(each) for each in chance.sample(range(number - 19, number), 5)))
        for number in range(20, jobs)
    ]
    return [job("0"), *first, *rest]


def _range(prefix: str, jobs: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(jobs)]


each_shape = pytest.mark.parametrize("shape", [chain, star, funnel, layers])


@each_shape
def test_adding_ten_times_the_jobs_takes_ten_times_the_steps(shape):
    def added(jobs: int) -> int:
        given = shape(jobs)
        return steps_in(lambda: graph_of(*given))

    few, many = added(500), added(5000)
    assert many < 11 * few


@each_shape
def test_cancelling_ten_times_the_jobs_takes_ten_times_the_steps(shape):
    def cancelled(jobs: int) -> int:
        graph = graph_of(*shape(jobs))
        steps = steps_in(lambda: fail(graph, "0"))
        assert (graph._nodes, graph._dependents) == ({}, {})
        return steps

    few, many = cancelled(500), cancelled(5000)
    assert many < 11 * few


def test_building_a_chain_job_by_job_takes_steps_for_each_job_alone():
    def built(jobs: int) -> int:
        graph = graph_of(*(job(str(number)) for number in range(jobs)))
        return steps_in(lambda: [graph.add(*job(str(n), str(n - 1))) for n in range(1, jobs)])

    few, many = built(500), built(5000)
    assert many < 11 * few


# Batches.


def test_the_dependencies_of_a_batch_are_told_by_index_or_by_id():
    resolved = resolve_batch(["a", "b", "c"], [[], [0, "before"], ["b", 0, 1, "a"]])
    assert resolved == [(), ("a", "before"), ("b", "a")]


def test_an_empty_batch_has_no_dependencies():
    assert resolve_batch([], []) == []


def test_a_batch_may_tell_its_jobs_in_any_order():
    assert resolve_batch(["a", "b"], [[1], []]) == [("b",), ()]


def test_an_id_of_digits_is_not_an_index():
    assert resolve_batch(["a", "b"], [[], ["0"]]) == [(), ("0",)]


@pytest.mark.parametrize("index", [2, -1, 10**30])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(InvalidJob) as caught:
        resolve_batch(["a", "b"], [[], [index]])
    assert caught.value.field == "depends_on"
    assert caught.value.problem == (
        f"specs[1] names number {index} of a batch of 2, whose first is 0"
    )


@pytest.mark.parametrize("itself", [1, "b"])
def test_a_job_of_a_batch_that_names_itself_is_refused(itself):
    with pytest.raises(DependencyCycle) as caught:
        resolve_batch(["a", "b"], [[], [itself]])
    assert caught.value.cycle == ("b",)


def test_a_batch_with_a_cycle_is_refused():
    with pytest.raises(DependencyCycle) as caught:
        resolve_batch(["x", "a", "b", "c"], [[1], [2], [3], ["a"]])
    assert caught.value.cycle == ("a", "b", "c")


def test_a_batch_that_holds_an_id_twice_is_refused():
    with pytest.raises(InvalidJob, match="job_id: 'a' is in the batch 2 times"):
        resolve_batch(["a", "b", "a"], [[], [], []])


def test_a_large_batch_is_resolved_without_recursion():
    job_ids = _range("job-", 10_000)
    resolved = resolve_batch(job_ids, [[n + 1] for n in range(9999)] + [[]])
    assert resolved == [(job_id,) for job_id in job_ids[1:]] + [()]


@settings(deadline=None)
@given(st.integers(1, 8).flatmap(lambda n: st.lists(st.sets(st.integers(0, n - 1)), max_size=n)))
def test_a_batch_is_refused_just_where_a_job_would_wait_for_itself(edges: list[set[int]]) -> None:
    edges = [{each for each in of if each < len(edges)} for of in edges]
    job_ids = _range("job-", len(edges))
    by_id = {job_ids[n]: {job_ids[each] for each in of} for n, of in enumerate(edges)}
    if any(leads_to(job_id, job_id, by_id) for job_id in by_id):
        with pytest.raises(DependencyCycle) as caught:
            resolve_batch(job_ids, edges)
        cycle = caught.value.cycle
        assert len(set(cycle)) == len(cycle)
        assert all(b in by_id[a] for a, b in pairwise((*cycle, cycle[0])))
    else:
        resolved = resolve_batch(job_ids, edges)
        assert dict(zip(job_ids, map(set, resolved), strict=True)) == by_id


def leads_to(start: str, goal: str, edges: Mapping[str, Iterable[str]]) -> bool:
    """Return whether a path of at least one edge leads there, trying as long as anything is new."""
    reached: set[str] = set()
    while new := {each for job_id in {start} | reached for each in edges.get(job_id, ())} - reached:
        reached |= new
    return goal in reached


# Against a fixpoint.

names = st.sampled_from("abcdefgh")
modes: st.SearchStrategy[OnDependencyFailure] = st.sampled_from(["cancel", "run", "hold"])


class Model:
    """The same in the plainest way: what is known of each edge, and rules until nothing changes."""

    def __init__(self) -> None:
        self.modes: dict[str, OnDependencyFailure] = {}
        self.edges: dict[tuple[str, str], bool | None] = {}
        """From who waits to who is waited for: whether that one succeeded, if it is over."""

    def unmet(self, job_id: str) -> set[str]:
        """Return what the job waits for still."""
        over = {True} if self.modes[job_id] == "hold" else {True, False}
        return {b for (a, b), succeeded in self.edges.items() if a == job_id} - {
            b for (a, b), succeeded in self.edges.items() if a == job_id and succeeded in over
        }

    def graph(self) -> dict[str, set[str]]:
        return {job_id: self.unmet(job_id) for job_id in self.modes}

    def would_be_a_cycle(self, job_id: str, depends_on: Iterable[str]) -> bool:
        return leads_to(job_id, job_id, {**self.graph(), job_id: depends_on})

    def add(self, job_id: str, depends_on: Iterable[str], mode: OnDependencyFailure) -> None:
        self.forget(job_id)
        self.modes[job_id] = mode
        self.edges.update({(job_id, each): None for each in depends_on})

    def forget(self, job_id: str) -> None:
        self.modes.pop(job_id, None)
        self.edges = {edge: known for edge, known in self.edges.items() if edge[0] != job_id}

    def ended(self, job_id: str, succeeded: bool) -> None:
        self.forget(job_id)
        self._tell(job_id, succeeded)
        while doomed := [each for each in self.modes if self.fate(each) is Fate.cancelled]:
            for each in doomed:
                self.forget(each)
                self._tell(each, False)

    def _tell(self, job_id: str, succeeded: bool) -> None:
        for edge in self.edges:
            if edge[1] == job_id and edge[1] in self.unmet(edge[0]):
                self.edges[edge] = succeeded

    def fate(self, job_id: str) -> Fate:
        known = {self.edges[edge] for edge in self.edges if edge[0] == job_id}
        if False in known and self.modes[job_id] == "cancel":
            return Fate.cancelled
        if False in known and self.modes[job_id] == "hold":
            return Fate.held
        return Fate.waiting if None in known else Fate.ready


class GraphAndModel(RuleBasedStateMachine):
    """Whatever is said in whatever order, both agree on what becomes of each job."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Dependencies()
        self.model = Model()
        self.fates: dict[str, Fate] = {}
        """What was told of each job last."""

    def take(self, *consequences: Consequence) -> None:
        for each in consequences:
            self.fates[each.job_id] = each.fate
            assert bool(each.reason) == (each.fate in (Fate.held, Fate.cancelled))

    @rule(job_id=names, depends_on=st.lists(names), mode=modes)
    def add(self, job_id: str, depends_on: list[str], mode: OnDependencyFailure) -> None:
        if self.model.would_be_a_cycle(job_id, depends_on):
            with pytest.raises(DependencyCycle):
                self.graph.add(job_id, depends_on, mode)
            return
        self.take(self.graph.add(job_id, depends_on, mode))
        self.model.add(job_id, depends_on, mode)

    @rule(job_id=names)
    def start(self, job_id: str) -> None:
        self.graph.started(job_id)
        self.model.forget(job_id)
        self.fates.pop(job_id, None)

    @rule(job_id=names, succeeded=st.booleans())
    def end(self, job_id: str, succeeded: bool) -> None:
        before = set(self.model.modes) - {job_id}
        consequences = all_that_follows(self.graph, job_id, succeeded=succeeded)
        self.model.ended(job_id, succeeded)
        self.fates.pop(job_id, None)
        self.take(*consequences)
        gone = {each for each, fate in self.fates.items() if fate is Fate.cancelled}
        assert gone == before - set(self.model.modes)
        for each in gone:
            del self.fates[each]

    @invariant()
    def both_tell_the_same_fates(self) -> None:
        assert self.fates == {job_id: self.model.fate(job_id) for job_id in self.model.modes}

    @invariant()
    def both_tell_the_same_edges(self) -> None:
        graph = self.model.graph()
        assert {job_id: set(self.graph.dependencies_of(job_id)) for job_id in graph} == graph
        for job_id in "abcdefgh":
            assert (job_id in self.graph) == (job_id in graph)
            dependents = {each for each, unmet in graph.items() if job_id in unmet}
            assert set(self.graph.dependents_of(job_id)) == dependents


def test_the_graph_does_what_a_fixpoint_says():
    run_state_machine_as_test(
        GraphAndModel, settings=settings(max_examples=200, stateful_step_count=30, deadline=None)
    )
