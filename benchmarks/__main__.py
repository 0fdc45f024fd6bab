"""``python -m benchmarks``: every figure beside its floor or peer, in one table."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import (
    admission,
    capture,
    latency,
    lines,
    listing,
    listing_stores,
    live,
    queueing,
    stall,
    store,
    supervisord,
    table,
    task_spooler,
    throughput,
    uvloop_host,
    versus,
)
from benchmarks.rounds import Figures, Result, Subject, judge, play
from benchmarks.side import prepared_at, run_side

SUBJECTS: tuple[Subject, ...] = (
    *throughput.SUBJECTS,
    *uvloop_host.SUBJECTS,
    *latency.SUBJECTS,
    *capture.SUBJECTS,
    *lines.SUBJECTS,
    *stall.SUBJECTS,
    *live.SUBJECTS,
    *store.SUBJECTS,
    *listing.SUBJECTS,
    *listing_stores.SUBJECTS,
    *admission.SUBJECTS,
    *queueing.SUBJECTS,
    *task_spooler.SUBJECTS,
    *supervisord.SUBJECTS,
    *versus.SUBJECTS,
)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table; 1 if a side broke. A missed target is no error, but says NO."""
    options = _parser().parse_args(argv)
    if options.list:
        print("\n".join(subject.name for subject in SUBJECTS))
        return 0
    subjects = [_sized(subject, options) for subject in SUBJECTS if subject.name in options.only]
    rounds = options.rounds or (1 if options.quick else 5)
    results = _measured(subjects, rounds)
    print("\n".join(table.render(results, is_quick=options.quick)))
    return int(any(result.has_failed for result in results))


def _measured(subjects: Iterable[Subject], rounds: int) -> list[Result]:
    # One parent for all, deleted at the very end: ext4 is slow to make files where it has just
    # deleted some, so no side may follow another's clean-up.
    parent = Path(tempfile.mkdtemp(prefix="anodejobs-benchmarks-"))
    try:
        return [
            result
            for subject in subjects
            for result in _results(subject, rounds, parent / subject.module / subject.name)
        ]
    finally:
        shutil.rmtree(parent)


def _results(subject: Subject, rounds: int, place: Path) -> Iterator[Result]:
    def measure(side: str, round_no: int) -> Figures:
        at = place / f"{round_no}-{side.replace(' ', '-')}"
        if subject.is_prepared and not prepared_at(at).exists():
            print(f"{subject.name}: preparing", file=sys.stderr)
            run_side(subject.module, "prepare", prepared_at(at), subject.size)
        print(f"{subject.name}, round {round_no + 1} of {rounds}: {side}", file=sys.stderr)
        return run_side(subject.module, side, at, subject.size)

    samples = play(subject.sides, rounds, measure)
    for row in subject.rows:
        yield judge(subject.name, row, samples)


def _sized(subject: Subject, options: argparse.Namespace) -> Subject:
    size = dict(subject.quick if options.quick else subject.size)
    if options.records and "records" in size:
        size["records"] = options.records
    return dataclasses.replace(subject, size=size)


def _parser() -> argparse.ArgumentParser:
    names = [subject.name for subject in SUBJECTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, help="how often each side is measured (5, quick 1)")
    parser.add_argument("--only", type=_names, default=names, metavar="NAME[,NAME]")
    parser.add_argument("--records", type=int, help="records in the larger store of the listings")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--list", action="store_true", help="the names, and nothing else")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    known = {subject.name for subject in SUBJECTS}
    if unknown := sorted(set(names) - known):
        raise argparse.ArgumentTypeError(f"no such benchmark: {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
