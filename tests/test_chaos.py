"""The chaos finds nothing, and would: short rounds of it, and what its findings are made from."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from anodejobs import JobEvent, JobRecord, Jobs, Status
from anodejobs.events import Attempt, Exited, Started
from anodejobs.executors import tree
from anodejobs.executors.base import Host, Launch, LogPlan, new_token
from anodejobs.executors.shim import Shim
from benchmarks import chaos_processes
from benchmarks.chaos_findings import Findings, Seen
from benchmarks.chaos_jobs import Plan, compare, plan_of
from benchmarks.chaos_processes import MARK
from benchmarks.side import ROOT
from tests.conftest import has_died

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


@pytest.fixture(autouse=True)
def nothing_of_a_chaos_left_over(tmp_path: Path) -> Iterator[None]:
    """No test leaves a process; what one has left is ended."""
    yield
    left = marked(tmp_path)
    for process in left:
        process.kill()
    psutil.wait_procs(left)
    assert not left


@pytest.mark.parametrize("kind", ["host", "shim", "both"])
def test_nothing_is_lost_that_need_not_be(kind: str, tmp_path: Path) -> None:
    with chaos(tmp_path, ["--kill", kind]) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    kills = re.search(rf"^{kind} killed: (\d+) kills, 80 jobs", out, re.MULTILINE)
    assert kills and int(kills[1]) >= 1, out
    assert not list(tmp_path.iterdir())


def test_nothing_is_lost_of_what_another_store_keeps(tmp_path: Path) -> None:
    place, records = tmp_path / "place", tmp_path / "records"
    place.mkdir()
    arguments = ["--kill", "host", "--jobs", "20", "--store", records.as_uri()]
    with chaos(place, arguments) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    assert not list(place.iterdir())
    assert not list((records / "jobs").rglob("*.json"))  # for the next round


def test_an_interrupted_chaos_leaves_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path, ["--kill", "shim", "--jobs", "1000"]) as process:
        assert process.stderr is not None
        while not re.search(r"shim killed, [1-9]\d* jobs", line := process.stderr.readline()):
            assert line
        assert marked(tmp_path)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert not list(tmp_path.iterdir())


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


def test_jobs_that_do_not_end_in_time_are_told_and_ended(tmp_path: Path) -> None:
    sabotage = "chaos.limit_s = lambda jobs: 1.5"
    arguments = ["--kill", "host", "--jobs", "2000", "--every", "10"]
    with chaos(tmp_path, arguments, sabotage=sabotage) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "not done after 1.5 s" in out


def test_a_process_that_is_overlooked_at_first_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the instant of its exec it has no environment to be known by."""
    place = tmp_path / "place"
    environment_of = chaos_processes._environment_of
    overlooked: list[int] = []

    def at_first_none(pid: int) -> dict[str, str]:
        env = environment_of(pid)
        if env.get(MARK) == str(place) and not overlooked:
            overlooked.append(pid)
            return {}
        return env

    monkeypatch.setattr(chaos_processes, "_environment_of", at_first_none)
    process = subprocess.Popen(["sleep", "1000"], env={MARK: str(place)})
    try:
        chaos_processes.kill_all(place)
        assert overlooked == [process.pid]
        assert process.poll() == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


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


# What the chaos has found.


def kill_shim(tmp_path: Path) -> None:
    pid = int((tmp_path / "job_db" / "shim" / "lock").read_text())
    os.kill(pid, signal.SIGKILL)
    assert has_died(pid, within_s=60)


async def test_what_a_job_left_behind_is_ended_though_the_shim_that_saw_its_end_is_killed(
    tmp_path: Path,
) -> None:
    leaving = f"sleep 60 & echo $! > {tmp_path}/pid; exit 3"
    async with Jobs(tmp_path / "job_db", stop_grace=1) as jobs:
        await jobs.run("true", "first")  # after it the next look for leftovers is put off
        await jobs.wait("first")
        await jobs.run(leaving, "leaving")
        assert (await jobs.wait("leaving", timeout=60)).exit_code == 3
        kill_shim(tmp_path)
        assert await asyncio.to_thread(has_died, int((tmp_path / "pid").read_text()), 60)


def test_what_a_job_left_behind_is_not_taken_for_the_job() -> None:
    """Its exit code would be told as the job's."""
    token = new_token()
    main = tree.Process(pid=10, start_time=1.0, parent=1, session=10, token=token)
    left = tree.Process(pid=11, start_time=2.0, parent=1, session=10, token=token)
    assert tree.Snapshot({10: main, 11: left}).main(token) == main
    assert tree.Snapshot({11: left}).main(token) is None


async def test_an_application_is_told_of_the_start_with_the_end_of_what_it_inherits(
    tmp_path: Path,
) -> None:
    """The one before may have died before the start was on record, and an end needs a start."""
    folder, token = tmp_path / "shim", new_token()
    logs = LogPlan(stdout=str(tmp_path / "out"), stderr=str(tmp_path / "errors"))
    launch = Launch(
        job_id="job",
        argv=("/bin/sh", "-c", "while [ ! -e go ]; do sleep 0.01; done; exit 3"),
        cwd=str(tmp_path),
        base_env={"PATH": os.environ["PATH"]},
        envs={},
        logs=logs,
        stop_grace=1,
    )
    inherited: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        host = Host(
            own=lambda work, name: tasks.create_task(work, name=name),
            on_inherited=lambda job_id, token: inherited.put_nowait(token),
            on_departure=lambda: None,
        )
        one = Shim(folder)
        await one.open(host)
        await one.start(launch, Attempt(token=token, supervisor=one.supervisor), 1)
        await one.close()
        other = Shim(folder)
        await other.open(host)
        told: list[object] = []

        async def tell(event: object) -> None:
            told.append(type(event))

        (tmp_path / "go").touch()
        async with asyncio.timeout(60):
            assert await inherited.get() == token
            end = await other.wait(token, tell)
        assert isinstance(end, Exited) and end.exit_code == 3
        assert told == [Started]
        await other.clean(token)
        await other.close()


async def test_an_adoption_is_on_record_once_however_many_applications_come(
    tmp_path: Path,
) -> None:
    waiting = f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    async with Jobs(tmp_path / "job_db") as jobs:
        await jobs.run(waiting, "job")
        kill_shim(tmp_path)
        async for event in jobs.events("job", after=0):
            if event.why and "adopted" in event.why:
                break
    async with Jobs(tmp_path / "job_db"), Jobs(tmp_path / "job_db") as jobs:
        (tmp_path / "go").touch()
        await jobs.wait("job", timeout=60)
        whys = [event.why for event in await jobs.history("job")]
        assert whys.count("adopted; the log may have a gap") == 1
