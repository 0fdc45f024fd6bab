"""The benchmarks run, and each side proves that it did its work; what they measure is no test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from anodejobs.executors import supervisors
from benchmarks.rounds import How, Result, Row, Spread, at_least
from benchmarks.side import run_side
from benchmarks.table import render

ROOT = Path(__file__).parent.parent


def benchmark(subject: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--only", subject],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=env or None,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: " not in done.stdout
    return done.stdout


SUBJECTS = ["exit-to-awake", "live@5000", "queue@100k", "transitions@64", "turns@100k"]
SUBJECTS += ["stores@8", "listing by store@100k"]


@pytest.mark.parametrize("subject", [*SUBJECTS, "submit-to-start"])
def test_a_subject_runs_with_all_its_sides(subject: str) -> None:
    assert subject in benchmark(subject)


def test_a_peer_that_is_not_installed_is_skipped_with_the_reason(tmp_path: Path) -> None:
    table = benchmark("vs-task-spooler@8", PATH=str(tmp_path))
    assert "skipped: task-spooler: tsp is not installed" in table


def test_a_side_returns_when_its_shim_has_left(tmp_path: Path) -> None:
    figures = run_side("throughput", "anodejobs", tmp_path / "side", {"jobs": 2, "live": 1})
    assert figures["jobs/s"] > 0
    lock = tmp_path / "side" / "db" / "shim" / "lock"
    assert lock.exists() and not supervisors.is_locked(lock)


def test_the_table_tells_the_kinds_of_anodejobs_apart() -> None:
    spread = Spread(2.0, 2.0, 2.0)
    rows = (
        Row("jobs/s", "peer", at_least(1)),
        Row("jobs/s", how=How.ALONE, ours="anodejobs inline"),
        Row("jobs/s", "peer", ours="anodejobs, large host"),
    )
    _, *lines = render((Result("it", row, 2.0, 1.0, spread) for row in rows), is_quick=False)
    assert [line.split("  ")[0] for line in lines] == [
        "it: jobs/s",
        "it: jobs/s (inline)",
        "it: jobs/s (large host)",
    ]
