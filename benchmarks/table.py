"""The table: results as lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from benchmarks.rounds import How, Result

HEAD = ("figure", "anodejobs", "beside", "", "compared (min..max)", "target", "met")


def render(results: Iterable[Result], *, is_quick: bool) -> Iterator[str]:
    """The table, a line at a time; a quick run is too small to be judged."""
    cells = [HEAD, *(_cells(result, is_quick=is_quick) for result in results)]
    columns = list(zip(*(line for line in cells if len(line) == len(HEAD)), strict=True))
    widths = [max(map(len, column)) for column in columns]
    widths[0] = max(len(line[0]) for line in cells)
    for line in cells:
        yield "  ".join(map(str.ljust, line, widths)).rstrip()


def _cells(result: Result, *, is_quick: bool) -> tuple[str, ...]:
    row = result.row
    # What is measured is the head's "anodejobs"; which kind of it, stands with the figure.
    kind = row.ours.removeprefix("anodejobs").strip(", ")
    name = f"{result.subject}: {row.figure}" + (f" ({kind})" if kind else "")
    if result.compared is None:
        return (name, result.trouble)
    spread = result.compared
    unit = "x" if row.how is How.RATIO else ""
    sign = "+" if row.how is How.DIFFERENCE else ""
    compared = f"{spread.median:{sign}.3g}{unit} ({spread.low:{sign}.3g}..{spread.high:{sign}.3g})"
    target = f"{row.target}" if row.target else "-"
    verdict = {True: "yes", False: "NO", None: "-"}[None if is_quick else result.is_met]
    theirs = "" if row.how is How.ALONE else _number(result.theirs)
    return (name, _number(result.ours), row.theirs, theirs, compared, target, verdict)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
