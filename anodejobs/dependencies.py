"""Dependencies: which job waits for the end of which, and what an end means for those that wait.

Pure. It knows the jobs that have not started, by id only; what they wait for may be anything that
has an id. It does not know who exists or has ended: whoever adds a job says afterwards, by
``ended``, which of its dependencies are over already. Nothing recurses, so chains may be long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from anodejobs.errors import DependencyCycle, InvalidJob

__all__ = [
    "Consequence",
    "Dependencies",
    "Fate",
    "OnDependencyFailure",
    "resolve_batch",
]

OnDependencyFailure = Literal["cancel", "run", "hold"]
"""What a job does when a dependency ends without success: be cancelled; run all the same; or wait
until that dependency has been run anew and succeeds, or is removed."""


class Fate(StrEnum):
    """What is to become of a job that has not started."""

    ready = "ready"
    """It waits for no other job."""
    waiting = "waiting"
    held = "held"
    """It waits for a dependency that has failed."""
    cancelled = "cancelled"
    """It is to be cancelled, and is not known here any more."""


@dataclass(frozen=True, slots=True)
class Consequence:
    """What follows for a job; where it is held or cancelled, ``reason`` says why in one line."""

    job_id: str
    fate: Fate
    reason: str | None = None


@dataclass(slots=True)
class _Node:
    job_id: str
    on_dependency_failure: OnDependencyFailure
    unmet: dict[str, None]
    """What it waits for, in the order in which it was said."""
    failed: dict[str, str] = field(default_factory=dict)
    """Which of these have ended without success, and how."""

    def learn(self, dependency: str, failure: str | None) -> None:
        """Take note of the end of a dependency."""
        if failure is None or self.on_dependency_failure == "run":
            self.drop(dependency)
        else:
            self.failed[dependency] = failure

    def drop(self, dependency: str) -> None:
        self.unmet.pop(dependency, None)
        self.failed.pop(dependency, None)

    def consequence(self) -> Consequence:
        for dependency, failure in self.failed.items():
            fate = Fate.cancelled if self.on_dependency_failure == "cancel" else Fate.held
            return Consequence(self.job_id, fate, f"dependency {dependency!r} {failure}")
        return Consequence(self.job_id, Fate.waiting if self.unmet else Fate.ready)


class Dependencies:
    """The graph of the jobs that have not started. It never has a cycle.

    An edge is there from when a job is said to depend on another one until that one has succeeded,
    or has ended and the dependent need not care. Each edge costs the same to add and to follow,
    however many there are. Only where others wait already for the job that is given one, all that
    this job would wait for is looked at: they must not be part of it.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._dependents: dict[str, dict[str, None]] = {}

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._nodes

    def dependencies_of(self, job_id: str) -> tuple[str, ...]:
        """Return the jobs that this one waits for; none if it is not known here."""
        node = self._nodes.get(job_id)
        return tuple(node.unmet) if node else ()

    def dependents_of(self, job_id: str) -> tuple[str, ...]:
        """Return the jobs that wait for this one, which need not be known here."""
        return tuple(self._dependents.get(job_id, ()))

    def awaited(self) -> Set[str]:
        """Return the jobs that any others wait for."""
        return self._dependents.keys()

    def add(
        self,
        job_id: str,
        depends_on: Iterable[str] = (),
        on_dependency_failure: OnDependencyFailure = "cancel",
    ) -> Consequence:
        """Add a job, in place of what was said of it before; it is ready or waits.

        Raises DependencyCycle if it would wait for itself.
        """
        node = _Node(job_id, on_dependency_failure, dict.fromkeys(depends_on))
        # One that nobody waits for closes no cycle through others.
        known = self._nodes if job_id in self._dependents else {}

        def dependencies_of(other: str) -> Iterable[str]:
            awaited = node if other == job_id else known.get(other)
            return awaited.unmet if awaited else ()

        _refuse_cycle([job_id], dependencies_of)
        self.started(job_id)
        self._nodes[job_id] = node
        for dependency in node.unmet:
            self._dependents.setdefault(dependency, {})[job_id] = None
        return node.consequence()

    def started(self, job_id: str) -> None:
        """Forget what a job waits for, if it is known here; who waits for it waits on."""
        node = self._nodes.pop(job_id, None)
        for dependency in node.unmet if node else ():
            self._forget_dependent(dependency, job_id)

    def _forget_dependent(self, dependency: str, job_id: str) -> None:
        dependents = self._dependents.get(dependency, {})
        dependents.pop(job_id, None)
        if not dependents:
            self._dependents.pop(dependency, None)

    def ended(self, job_id: str, *, succeeded: bool, how: str = "failed") -> list[Consequence]:
        """Return what follows from the end of a job for each that waits for it.

        It may be any job, started or not, known here or not. Who waits for one that is to be
        cancelled waits on until that has ended in its turn, which may not come about. ``how`` ends
        the reason: ``dependency 'x' failed``.
        """
        self.started(job_id)
        consequences = list(self._told(job_id, None if succeeded else how))
        for consequence in consequences:
            if consequence.fate is Fate.cancelled:
                self.started(consequence.job_id)
        return consequences

    def _told(self, dependency: str, failure: str | None) -> Iterator[Consequence]:
        """Tell the dependents of an end, and give what follows for each."""
        for job_id in self.dependents_of(dependency):
            node = self._nodes[job_id]
            node.learn(dependency, failure)
            if dependency not in node.unmet:
                self._forget_dependent(dependency, job_id)
            yield node.consequence()


def resolve_batch(
    job_ids: Sequence[str], depends_on: Sequence[Iterable[int | str]]
) -> list[tuple[str, ...]]:
    """Return the dependencies of each job of a batch by id, where they may be told by index.

    ``depends_on`` has an entry for each of ``job_ids``. An id that is not of the batch is left as
    it is: it may be one that exists. What is told twice is kept once.

    Raises InvalidJob for an index that is not of the batch, or an id that is there twice, and
    DependencyCycle where a job would wait for itself.
    """
    for job_id, times in Counter(job_ids).most_common(1):
        if times > 1:
            raise InvalidJob("job_id", f"{job_id!r} is in the batch {times} times")
    resolved = {
        job_id: dict.fromkeys(_id_of(dependency, place, job_ids) for dependency in dependencies)
        for place, (job_id, dependencies) in enumerate(zip(job_ids, depends_on, strict=True))
    }
    _refuse_cycle(resolved, lambda job_id: resolved.get(job_id, ()))
    return [tuple(dependencies) for dependencies in resolved.values()]


def _id_of(dependency: int | str, place: int, job_ids: Sequence[str]) -> str:
    if isinstance(dependency, str):
        return dependency
    if not 0 <= dependency < len(job_ids):
        of = f"a batch of {len(job_ids)}, whose first is 0"
        raise InvalidJob("depends_on", f"specs[{place}] names number {dependency} of {of}")
    return job_ids[dependency]


def _refuse_cycle(starts: Iterable[str], dependencies_of: Callable[[str], Iterable[str]]) -> None:
    """Raise DependencyCycle if there is a cycle among these jobs and all that they wait for."""
    seen: set[str] = set()
    for start in starts:
        if start in seen:
            continue
        path = {start: None}
        unseen = [iter(dependencies_of(start))]  # of each job of the path
        while path:
            for dependency in unseen[-1]:
                if dependency in path:
                    ids = list(path)
                    raise DependencyCycle(tuple(ids[ids.index(dependency) :]))
                if dependency not in seen:
                    path[dependency] = None
                    unseen.append(iter(dependencies_of(dependency)))
                    break
            else:
                unseen.pop()
                seen.add(path.popitem()[0])
