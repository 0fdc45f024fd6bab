"""The chaos finds nothing, and would: short rounds of it, and what its findings are made from."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from anodejobs import JobEvent, JobRecord, Status
from anodejobs.executors import tree
from benchmarks.chaos_findings import Findings, Seen
from benchmarks.chaos_jobs import Plan, compare, plan_of
from benchmarks.chaos_processes import MARK
from benchmarks.side import ROOT

pytestmark = pytest.mark.skipif(not tree.IS_LINUX, reason="the chaos looks into /proc")

ROUND = ["--jobs", "80", "--parallel", "8", "--every", "0.3", "--seed", "1"]


def chaos(place: Path, arguments: list[str], *, sabotage: str = "") -> subprocess.Popen[str]:
    """Start a chaos whose directories are made in ``place``."""
    code = f"import sys; from benchmarks import chaos; {sabotage}\nsys.exit(chaos.main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *ROUND, *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def marked(place: Path) -> list[psutil.Process]:
    """Return the processes of every chaos whose directory is in ``place``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(f"{place}/"):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("kind", ["host", "shim", "both"])
def test_nothing_is_lost_that_need_not_be(kind: str, tmp_path: Path) -> None:
    with chaos(tmp_path, ["--kill", kind]) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    kills = re.search(rf"^{kind} killed: (\d+) kills, 80 jobs", out, re.MULTILINE)
    assert kills and int(kills[1]) >= 1, out
    assert not list(tmp_path.iterdir())
    assert not marked(tmp_path)


def test_an_interrupted_chaos_leaves_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path, ["--kill", "shim", "--jobs", "1000"]) as process:
        assert process.stderr is not None
        while not re.search(r"shim killed, [1-9]\d* jobs", line := process.stderr.readline()):
            assert line
        assert marked(tmp_path)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert not list(tmp_path.iterdir())
    assert not marked(tmp_path)


def test_what_is_found_is_told_and_kept(tmp_path: Path) -> None:
    sabotage = (
        "from dataclasses import replace; plan_of = chaos.plan_of; "
        "chaos.plan_of = lambda *args: replace(plan_of(*args), exit_code=101)"
    )
    with chaos(tmp_path, ["--kill", "host", "--jobs", "10"], sabotage=sabotage) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"wrong codes +10 .* NO$", out, re.MULTILINE)
    assert "job-00003 (exit code 101" in out
    (kept,) = tmp_path.iterdir()
    assert f"kept: {kept}" in out
    assert not marked(tmp_path)


def test_jobs_that_do_not_end_in_time_are_told_and_ended(tmp_path: Path) -> None:
    sabotage = "chaos.limit_s = lambda jobs: 1.5"
    arguments = ["--kill", "host", "--jobs", "2000", "--every", "10"]
    with chaos(tmp_path, arguments, sabotage=sabotage) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "not done after 1.5 s" in out
    assert not marked(tmp_path)


LINES = [b"job-1 %d %d\n" % (i, i) for i in range(20)]


@pytest.mark.parametrize(
    ("log", "lost", "disordered"),
    [
        (b"".join(LINES), 0, 0),
        (b"", len(b"".join(LINES)), 0),
        (b"".join(LINES[:5] + LINES[7:]), len(b"".join(LINES[5:7])), 0),
        (b"".join(LINES)[:-4], 4, 0),
        (b"".join(LINES)[3:], 3, 0),
        (b"".join(LINES[:5]) + b"job-1 5" + LINES[8][-3:] + b"".join(LINES[9:]), 40 - 10, 0),
        (b"".join(LINES + LINES[:2]), 0, len(b"".join(LINES[:2]))),
        (b"".join([LINES[1], LINES[0], *LINES[2:]]), len(LINES[0]), len(LINES[0])),
        (b"".join(LINES[:5]) + b"job-2 5 5\n" + b"".join(LINES[5:]), 0, 10),
    ],
    ids=["whole", "empty", "gap", "no-end", "no-head", "torn", "twice", "swapped", "foreign"],
)
def test_a_log_is_compared_with_what_was_written(log: bytes, lost: int, disordered: int) -> None:
    assert compare(log, LINES) == (lost, disordered)


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    assert [plan_of(5, n) for n in range(50)] == [plan_of(5, n) for n in range(50)]
    assert plan_of(5, 1) != plan_of(6, 1)


PLAN = Plan(job_id="job-1", command="", lines=20, exit_code=3)


def seen(
    status: Status = Status.failed,
    exit_code: int | None = 3,
    *,
    log: bytes = b"".join(LINES),
    starts: int = 1,
    why: str = "",
) -> Seen:
    """Return what is known of a job that went well, but for what is said."""
    record = JobRecord(self_id="job-1", status=status, exit_code=exit_code)
    event = JobEvent(seq=1, kind="status", at=datetime.now(UTC), status=status, why=why)
    return Seen(PLAN, record, log, starts, [event])


def forbidden(what: Seen, *, shim_was_killed: bool, survivors: tuple[str, ...] = ()) -> list[str]:
    findings = Findings(shim_was_killed=shim_was_killed)
    findings.consider(what, survivors)
    return findings.forbidden


@pytest.mark.parametrize("shim_was_killed", [False, True])
@pytest.mark.parametrize(
    ("what", "measure"),
    [
        (Seen(PLAN, None, b"", 1, []), "not on record, or not as ended"),
        (seen(Status.running, None), "not on record, or not as ended"),
        (seen(exit_code=4), "wrong codes"),
        (seen(Status.failed_start, None), "wrong codes"),
        (seen(starts=2), "double starts"),
        (seen(log=b"".join(LINES[:9])), "jobs with bytes lost that do not say so"),
        (seen(log=b"".join(LINES * 2)), "log bytes out of order"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_must_never_be_is_forbidden(what: Seen, measure: str, shim_was_killed: bool) -> None:
    assert measure in forbidden(what, shim_was_killed=shim_was_killed)


@pytest.mark.parametrize(
    ("what", "measures"),
    [
        (seen(), []),
        (seen(Status.lost, None), ["lost codes"]),
        (seen(Status.lost, None, starts=0), ["lost codes", "never started"]),
        (
            seen(log=b"".join(LINES[:9]), why="the log may have a gap"),
            ["bytes lost", "jobs with bytes lost"],
        ),
    ],
    ids=["nothing", "code", "start", "bytes"],
)
def test_what_only_the_shim_could_know_may_be_lost_with_it(what: Seen, measures: list[str]) -> None:
    assert forbidden(what, shim_was_killed=False) == measures
    assert forbidden(what, shim_was_killed=True) == []


def test_a_job_that_the_application_had_hold_of_may_not_be_lost() -> None:
    lost = forbidden(seen(Status.lost, None), shim_was_killed=True, survivors=("job-1",))
    assert lost == ["lost codes that could be known"]
