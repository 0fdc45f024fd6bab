"""Ten jobs one after another, through anodejobs and through nodejobs; and anodejobs eight at once.

nodejobs starts each job through a Python interpreter of its own and sleeps half a second in
``run()``; it is driven from one thread, as its documentation shows it. From eight it does ten jobs
a second, and breaks now and then (IndexError).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import throughput
from benchmarks.measure import Stopwatch
from benchmarks.programs import expect
from benchmarks.rounds import (
    Figures,
    Row,
    SideFailedError,
    SideUnavailableError,
    Size,
    Subject,
    at_least,
)

if TYPE_CHECKING:
    from benchmarks.supervised import Executor

RATE = throughput.RATE
PATIENCE_S = 30.0
AT_ONCE = 8


async def anodejobs(place: Path, size: Size, *, executor: Executor = "shim") -> Figures:
    from benchmarks.supervised import open_jobs, run_and_wait

    async with open_jobs(place, executor) as jobs:
        watch = Stopwatch()
        for number in range(size["jobs"]):
            record = await run_and_wait(jobs, f"job-{number}", _command(number, size))
            expect(f"exit code of {record.self_id}", record.exit_code, _exit_code(number, size))
        return {RATE: size["jobs"] / watch.wall_s}


async def anodejobs_at_once(place: Path, size: Size) -> Figures:
    return await throughput.anodejobs(place, {"jobs": size["many"], "live": AT_ONCE})


async def nodejobs(place: Path, size: Size) -> Figures:
    try:
        module = importlib.import_module("nodejobs.jobs")
    except ImportError:
        raise SideUnavailableError("nodejobs is not installed") from None
    with contextlib.redirect_stdout(io.StringIO()):
        return _drive_nodejobs(module.Jobs, place, size)


def _drive_nodejobs(make_jobs: Callable[..., Any], place: Path, size: Size) -> Figures:
    jobs = make_jobs(db_path=str(place / "db"))
    watch = Stopwatch()
    for number in range(size["jobs"]):
        # The id has to be found in no other command line: nodejobs knows processes by it.
        job_id = f"versus-{place.name}-{number}-of-{size['jobs']}"
        jobs.run(command=_command(number, size), job_id=job_id, cwd=str(place))
        wanted = "failed_start" if _exit_code(number, size) else "finished"
        expect(f"status of {job_id}", _ended_status(jobs, job_id), wanted)
    return {RATE: size["jobs"] / watch.wall_s}


def _ended_status(jobs: Any, job_id: str) -> str:
    began = time.monotonic()
    while (status := str(jobs.get_status(job_id)["status"])) in ("starting", "running"):
        if time.monotonic() - began > PATIENCE_S:
            raise SideFailedError(f"{job_id} is still {status}")
        time.sleep(0.01)
    return status


def _exit_code(number: int, size: Size) -> int:
    """The last job fails."""
    return int(number == size["jobs"] - 1)


def _command(number: int, size: Size) -> list[str]:
    return ["/bin/false" if _exit_code(number, size) else "/bin/true"]


SIDES = {
    "anodejobs": anodejobs,
    "anodejobs inline": functools.partial(anodejobs, executor="inline"),
    f"anodejobs, {AT_ONCE} at once": anodejobs_at_once,
    "nodejobs": nodejobs,
}

SUBJECTS = (
    Subject(
        name="vs-nodejobs",
        module="versus",
        sides=tuple(SIDES),
        size={"jobs": 10, "many": 1000},
        quick={"jobs": 2, "many": 16},
        rows=(
            Row(RATE, "nodejobs"),
            Row(RATE, "nodejobs", ours="anodejobs inline"),
            Row(RATE, "nodejobs", at_least(500), ours=f"anodejobs, {AT_ONCE} at once"),
        ),
    ),
)
