"""The benchmarks run, and each side proves that it did its work; what they measure is no test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("subject", ["throughput@16", "exit-to-awake", "transitions@64"])
def test_a_subject_runs_with_all_its_sides(subject: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--only", subject],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert subject in done.stdout
    assert "failed" not in done.stdout
