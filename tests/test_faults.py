"""What is left of a job when the application or the shim dies at any step of its life."""

from __future__ import annotations

import ast
import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import anodejobs
from anodejobs import JobRecord, Jobs, Status
from anodejobs.faults import STEPS
from anodejobs.jobfiles import JobFiles
from tests.test_recovery import KERNEL_TELLS
from tests.test_shim_recovery import REAPED

# Gives its payload back, says `out`, and ends with 7; the long one not before `go` is there.
JOB = 'echo x >> starts; cat "$ANODEJOBS_PAYLOAD" > "$ANODEJOBS_RESULT"; echo out; exit 7'
LONG_JOB = JOB.replace("exit", "until [ -e go ]; do sleep 0.01; done; exit")

# The file whose removal is a death is made at the moment that the command line names.
APPLICATION = """
import asyncio, sys
from pathlib import Path
from anodejobs import Jobs
from anodejobs.executors import shim, shim_start

shim.LINGER_S = 0.05
shim._HOLD_AFTER_S = 0.0
shim_start._BOOTSTRAP = {reaped!r} + shim_start._BOOTSTRAP
command, moment_to_arm, how = sys.argv[1:]

def arm(moment):
    if moment == moment_to_arm:
        Path("fault").touch()

async def main():
    arm("opening")
    async with Jobs("job_db") as jobs:
        arm("running")
        if how == "run":
            await jobs.run(command, "job", payload=[1])
        else:
            # What it depends on has ended already, so it is queued by what the queue decides.
            await jobs.run("true", "before")
            await jobs.wait("before")
            arm("submitting")
            await jobs.submit(command, "job", depends_on=["before"], max_retries=1, payload=[1])
            await jobs.wait("job", "running")
        arm("ending")
        Path("go").touch()
        record = await jobs.wait("job")
        print(record.model_dump_json(), flush=True)

asyncio.run(main())
"""

Outcome = Literal["no record", "not started", "known", "known or lost"]
KNOWN_OF_LONG: Outcome = "known" if KERNEL_TELLS else "known or lost"

# Of a short job that has ended while there was no shim, nobody can say how.
MOMENTS: list[tuple[str, str, Outcome | None, Outcome]] = [
    ("host: a run was asked for", "opening", "no record", "no record"),
    ("host: the start is on record", "opening", "known", "known"),
    ("shim: a start was asked for", "opening", "known", "known"),
    ("shim: a start was begun", "opening", "not started", "not started"),
    ("shim: a process was spawned", "opening", "known or lost", KNOWN_OF_LONG),
    ("shim: the journal was written", "opening", "known", "known"),
    ("shim: the journal was written", "running", "known or lost", KNOWN_OF_LONG),
    ("shim: the journal was written", "ending", None, "known"),
    ("host: the process is known", "opening", "known", "known"),
    ("host: the process is on record", "opening", "known", "known"),
    ("shim: an end was seen", "opening", "known or lost", KNOWN_OF_LONG),
    ("host: the end is known", "opening", "known", "known"),
    ("host: the end is on record", "opening", "known", "known"),
    ("shim: an end was acknowledged", "opening", "known", "known"),
]
CASES = [
    pytest.param(step, moment, job, outcome, id=f"{step}, {moment}, {length} job")
    for step, moment, of_short, of_long in MOMENTS
    for length, job, outcome in (("short", JOB, of_short), ("long", LONG_JOB, of_long))
    if outcome is not None
]


def printed_at_death(
    directory: Path, step: str, moment: str, job: str, how: Literal["run", "submit"] = "run"
) -> str:
    """Run the application while it or its shim dies, and return what it has printed."""
    application = subprocess.run(
        [sys.executable, "-c", APPLICATION.format(reaped=REAPED), job, moment, how],
        cwd=directory,
        env={**os.environ, "ANODEJOBS_DIE_AT": f"{step}@{directory / 'fault'}"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert not (directory / "fault").exists(), "nobody has died"
    assert application.returncode == (-signal.SIGKILL if step.startswith("host: ") else 0)
    assert application.stdout or application.returncode
    return application.stdout


@pytest.mark.parametrize(("step", "moment", "job", "outcome"), CASES)
async def test_a_death_at_a_step_leaves_a_job_that_ran_once_at_most_and_a_true_record(
    tmp_path: Path, step: str, moment: str, job: str, outcome: Outcome
) -> None:
    printed = printed_at_death(tmp_path, step, moment, job)
    (tmp_path / "go").touch()
    async with Jobs(tmp_path / "job_db") as jobs:
        if outcome == "no record":
            assert await jobs.list_jobs() == []
            assert not (tmp_path / "starts").exists()
            return
        record = await jobs.wait("job", timeout=60)
        stdout, stderr = await jobs.job_logs("job")
        await check_history(jobs, record)
    if printed:
        assert JobRecord.model_validate_json(printed) == record
    assert record.attempt == 1
    assert stderr == ""
    if outcome == "not started":
        assert (record.status, record.exit_code) == (Status.lost, None)
        assert not (tmp_path / "starts").exists()
        return
    assert (tmp_path / "starts").read_text() == "x\n"
    if outcome == "known or lost" and record.status is Status.lost:
        assert (record.exit_code, record.evidence) == (None, None)
        assert stdout in ("", "out\n")  # what a pipe held is gone with its last reader and writer
        return
    assert (record.status, record.exit_code) == (Status.failed, 7)
    assert record.evidence in ("observed", "recorded", "adopted")
    assert record.result == [1]
    assert stdout == "out\n"


@pytest.mark.parametrize("step", ["host: the start is on record", "shim: a start was asked for"])
async def test_a_run_after_a_death_has_nothing_of_the_run_before(tmp_path: Path, step: str) -> None:
    async with Jobs(tmp_path / "job_db") as jobs:
        await jobs.run(JOB, "job", cwd=tmp_path, payload=[2])
        assert (await jobs.wait("job")).result == [2]
    printed_at_death(tmp_path, step, "opening", "echo x >> starts")
    async with Jobs(tmp_path / "job_db") as jobs:
        record = await jobs.wait("job", timeout=60)
        assert (record.status, record.result) == (Status.finished, None)
        assert await jobs.job_logs("job") == ("", "")
    assert (tmp_path / "starts").read_text() == "x\nx\n"


@pytest.mark.parametrize("job", [JOB, LONG_JOB], ids=["short", "long"])
async def test_what_was_started_is_known_though_its_payload_can_be_written_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    printed_at_death(tmp_path, "host: the process is known", "opening", job)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JobFiles, "hand_out", full)
    (tmp_path / "go").touch()
    async with Jobs(tmp_path / "job_db") as jobs:
        record = await jobs.wait("job", timeout=60)
    assert (record.status, record.exit_code, record.result) == (Status.failed, 7, [1])


OF_THE_QUEUE = ("host: a change of the queue was decided", "host: a job was admitted")
QUEUE_MOMENTS = [
    ("host: a change of the queue was decided", "submitting"),
    ("host: a job was admitted", "submitting"),
    ("host: the start is on record", "submitting"),
    ("shim: a start was asked for", "submitting"),
    ("host: the process is known", "submitting"),
    ("host: the process is on record", "submitting"),
    ("host: the end is known", "submitting"),
    ("host: the end is known", "ending"),
    ("host: the end is on record", "ending"),
    ("host: a change of the queue was decided", "ending"),
    ("host: a job was admitted", "ending"),
    ("shim: an end was acknowledged", "ending"),
]


@pytest.mark.parametrize(("step", "moment"), QUEUE_MOMENTS)
async def test_a_death_at_a_step_neither_loses_nor_repeats_an_attempt_of_a_queued_job(
    tmp_path: Path, step: str, moment: str
) -> None:
    printed_at_death(tmp_path, step, moment, LONG_JOB, "submit")
    (tmp_path / "go").touch()
    async with Jobs(tmp_path / "job_db") as jobs:
        record = await jobs.wait("job", timeout=60)
        attempts = await jobs.attempts("job")
        logs = [await jobs.job_logs("job", attempt=attempt.attempt) for attempt in attempts]
    assert (record.status, record.exit_code, record.attempt) == (Status.failed, 7, 2)
    assert [(a.attempt, a.status, a.exit_code) for a in attempts] == [
        (1, Status.failed, 7),
        (2, Status.failed, 7),
    ]
    assert logs == [("out\n", ""), ("out\n", "")]
    assert (tmp_path / "starts").read_text() == "x\nx\n"


@pytest.mark.parametrize(
    "step", [step for step in STEPS[1:] if step.startswith("host: ") and step not in OF_THE_QUEUE]
)
async def test_another_application_sees_to_a_job_whose_own_dies_at_a_step(
    tmp_path: Path, step: str
) -> None:
    async with Jobs(tmp_path / "job_db") as jobs:
        await jobs.run("true", "before")  # both have met by the shim that there is now
        await asyncio.to_thread(printed_at_death, tmp_path, step, "opening", JOB)
        record = await jobs.wait("job", timeout=60)
        assert (record.status, record.exit_code, record.attempt) == (Status.failed, 7, 1)
        assert await jobs.job_logs("job") == ("out\n", "")
        await check_history(jobs, record)
    assert (tmp_path / "starts").read_text() == "x\n"


async def test_another_application_sees_to_a_job_whose_own_dies_before_its_first_start(
    tmp_path: Path,
) -> None:
    async with Jobs(tmp_path / "job_db") as jobs:
        step = "host: the start is on record"
        await asyncio.to_thread(printed_at_death, tmp_path, step, "opening", JOB)
        assert (await jobs.wait("job", timeout=60)).exit_code == 7


async def check_history(jobs: Jobs, record: JobRecord) -> None:
    """Fail where the job's history is not one life, from ``starting`` to the record as it is."""
    events = await jobs.history("job")
    statuses = [event.status for event in events]
    assert [event.previous for event in events] == [None, *statuses[:-1]]
    end = record.status
    lived = list(dict.fromkeys(statuses))
    assert lived in ([Status.starting, end], [Status.starting, Status.running, end])
    assert statuses.count(end) == statuses.count(Status.starting) == 1
    assert statuses[-1] is end
    assert {event.attempt for event in events} == {1}


def test_every_step_is_reached_in_the_package_and_has_a_name() -> None:
    reached = []
    for path in Path(anodejobs.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.reached":
                reached += [ast.literal_eval(argument) for argument in node.args]
    assert sorted(reached) == sorted(STEPS)


def test_every_step_is_one_that_somebody_dies_at_here() -> None:
    assert {step for step, *_ in (*MOMENTS, *QUEUE_MOMENTS)} == set(STEPS)
