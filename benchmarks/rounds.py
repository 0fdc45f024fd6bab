"""The arithmetic of the benchmarks: interleaved rounds, ratios per round, targets.

Nothing is measured here, and nothing is known of jobs. A *subject* is what is compared, a *side*
one of those compared, a *figure* a number a side gives, a *row* one comparison of two figures.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Figures = Mapping[str, float]
Size = Mapping[str, int]


class SideUnavailableError(Exception):
    """A side cannot be measured on this machine; the message says why."""


class SideFailedError(Exception):
    """A side broke, or its jobs did not do what they had to."""


class How(enum.Enum):
    """How a figure is set beside the other one of the same round."""

    RATIO = "ratio"
    DIFFERENCE = "difference"
    ALONE = "alone"


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that the median over the rounds has to keep."""

    sign: str
    bound: float

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.sign == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


def at_least(bound: float) -> Target:
    return Target(">=", bound)


def at_most(bound: float) -> Target:
    return Target("<=", bound)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ``figure`` of ``ours``, beside ``beside`` of ``theirs``.

    ``beside`` is ``figure`` unless given. Without a target the row is for orientation.
    """

    figure: str
    theirs: str = ""
    target: Target | None = None
    how: How = How.RATIO
    ours: str = "anodejobs"
    beside: str = ""

    @property
    def sides(self) -> tuple[str, ...]:
        return (self.ours,) if self.how is How.ALONE else (self.ours, self.theirs)

    def compare(self, samples: Mapping[str, Figures]) -> tuple[float, float, float]:
        """One round's figure of ours, of theirs, and the two compared."""
        mine = samples[self.ours][self.figure]
        if self.how is How.ALONE:
            return mine, float("nan"), mine
        other = samples[self.theirs][self.beside or self.figure]
        if self.how is How.DIFFERENCE:
            return mine, other, mine - other
        return mine, other, mine / other if other else float("inf")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is compared: the sides of ``benchmarks.<module>``, in which sizes, read as which rows.

    ``is_prepared``: the module's side ``prepare`` is run once before the rounds, not measured, and
    shared by the module's subjects.
    """

    name: str
    module: str
    sides: tuple[str, ...]
    size: Size
    quick: Size
    rows: tuple[Row, ...]
    is_prepared: bool = False


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Result:
    """A row over all rounds; ``trouble`` says why there is none."""

    subject: str
    row: Row
    ours: float = float("nan")
    theirs: float = float("nan")
    compared: Spread | None = None
    trouble: str = ""
    has_failed: bool = False

    @property
    def is_met(self) -> bool | None:
        if self.compared is None or self.row.target is None:
            return None
        return self.row.target.is_met(self.compared.median)


@dataclass(slots=True)
class Samples:
    """What the sides of one subject gave, round by round."""

    rounds: list[dict[str, Figures]] = field(default_factory=list)
    troubles: dict[str, Exception] = field(default_factory=dict)


Measure = Callable[[str, int], Figures]


def rotated(sides: Sequence[str], round_no: int) -> Iterator[str]:
    """The sides, each round beginning with another one."""
    first = round_no % len(sides)
    yield from sides[first:]
    yield from sides[:first]


def play(sides: Sequence[str], rounds: int, measure: Measure) -> Samples:
    """Measure every side once a round. A side in trouble is left out from then on."""
    samples = Samples()
    for round_no in range(rounds):
        given: dict[str, Figures] = {}
        for side in rotated(sides, round_no):
            if side in samples.troubles:
                continue
            try:
                given[side] = measure(side, round_no)
            except (SideFailedError, SideUnavailableError) as trouble:
                samples.troubles[side] = trouble
        samples.rounds.append(given)
    return samples


def judge(subject: str, row: Row, samples: Samples) -> Result:
    """A row's medians, and the spread of its per-round comparisons."""
    for side in row.sides:
        if side in samples.troubles:
            return _troubled(subject, row, side, samples.troubles[side])
    compared = [row.compare(given) for given in samples.rounds]
    ours, theirs, values = zip(*compared, strict=True)
    spread = Spread(statistics.median(values), min(values), max(values))
    return Result(subject, row, statistics.median(ours), statistics.median(theirs), spread)


def _troubled(subject: str, row: Row, side: str, trouble: Exception) -> Result:
    has_failed = isinstance(trouble, SideFailedError)
    word = "failed" if has_failed else "skipped"
    return Result(subject, row, trouble=f"{word}: {side}: {trouble}", has_failed=has_failed)
