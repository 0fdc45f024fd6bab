"""``python -m benchmarks.hosts --store URL``: do hosts that share a database share its jobs?

Each host is a directory with an application and a shim of its own, on the empty database that the
URL names. Somebody else submits jobs and waits for them. With ``--kill`` all that belongs to one of
the hosts is killed in the middle; the others are to run anew what it had running, and nothing else.
1 where a job was started twice, was not run, or was lost. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from anodejobs import JobRecord, Jobs, Status
from benchmarks import chaos_processes as processes

BATCH = 500
"""How many jobs are submitted together."""

_KILL_PATIENCE_S = 5.0

# What is appended in one write is whole.
COMMAND = (
    'echo "b $ANODEJOBS_JOB_ID $ANODEJOBS_ATTEMPT" >> {side}; sleep {seconds};'
    ' echo "e $ANODEJOBS_JOB_ID $ANODEJOBS_ATTEMPT" >> {side}'
)


@dataclass
class Shared:
    """Hosts on one database, and what they did."""

    place: Path
    url: str
    jobs: int
    hosts: int
    slots: int
    job_s: float
    kills: bool
    recovery_timeout_s: float
    limit_s: float
    seconds: float = 0.0
    killed_at: float | None = None
    records: list[JobRecord] = field(default_factory=list)
    history: dict[str, list[str]] = field(default_factory=dict)
    """The changes of the status of each job that was tried again."""
    given_up_at: float | None = None
    """When the first job of the killed host was declared lost."""

    async def play(self) -> None:
        """Have all jobs run. Raises TimeoutError where that takes too long."""
        hosts = [self._host(n) for n in range(self.hosts)]
        try:
            for host in hosts:
                assert host.stdout is not None
                assert await asyncio.to_thread(host.stdout.readline) == b"ready\n"
            # It asks and waits, and runs nothing.
            async with (
                asyncio.timeout(self.limit_s),
                Jobs(self.place / "asks", store=self.url, only_queues=["none"]) as jobs,
            ):
                await self._run(jobs)
                self.records = await jobs.list_jobs()
                for record in self.records:
                    if record.attempt > 1:
                        await self._learn(jobs, record)
                await jobs.cleanup(0)
        finally:
            for host in hosts:
                host.terminate()
                host.wait()
                if host.stdout is not None:
                    host.stdout.close()

    def _host(self, n: int) -> subprocess.Popen[bytes]:
        folder = self._folder(n)
        folder.mkdir()
        arguments = [str(folder / "db"), self.url, str(self.slots), str(self.recovery_timeout_s)]
        log, pipe = self.place / "host.log", subprocess.PIPE
        return processes.start_host("hosts_host", *arguments, place=folder, log=log, stdout=pipe)

    def _folder(self, n: int) -> Path:
        return self.place / str(n)

    @property
    def _places(self) -> list[Path]:
        """What processes are marked with: the jobs, then each host's own."""
        return [self.place, *map(self._folder, range(self.hosts))]

    def kill_all(self) -> None:
        """Kill whatever is left."""
        for place in self._places:
            processes.kill_all(place)

    async def _run(self, jobs: Jobs) -> None:
        command = COMMAND.format(side=self.place / "side", seconds=self.job_s)
        began = time.monotonic()
        ids: list[str] = []
        for start in range(0, self.jobs, BATCH):
            numbers = range(start, min(start + BATCH, self.jobs))
            envs = {processes.MARK: str(self.place)}
            specs = [
                {"command": command, "job_id": f"job-{n}", "cwd": "/", "envs": envs}
                for n in numbers
            ]
            _, records = await jobs.create_batch(specs, auto_start=True)
            ids += records
        if self.kills:
            await jobs.wait(ids[self.jobs // 3])
            await asyncio.to_thread(self._kill, self._folder(0))
        await jobs.wait_all(ids)
        self.seconds = time.monotonic() - began

    def _kill(self, folder: Path) -> None:
        """Kill a host that has something running, if there is such a moment."""
        shim = psutil.Process(int((folder / "db" / "shim" / "lock").read_text()))
        end = time.monotonic() + _KILL_PATIENCE_S
        while not shim.children() and time.monotonic() < end:
            time.sleep(0.001)
        shim.suspend()  # so that what it has running is all that there will be
        self.killed_at = time.time()
        jobs = shim.children(recursive=True)
        processes.kill_all(folder)
        for job in jobs:
            with contextlib.suppress(psutil.NoSuchProcess):
                job.kill()

    async def _learn(self, jobs: Jobs, record: JobRecord) -> None:
        events = await jobs.history(record.self_id)
        self.history[record.self_id] = [str(event.status) for event in events]
        (lost_at,) = (e.at.timestamp() for e in events if e.status is Status.pending)
        self.given_up_at = min(lost_at, self.given_up_at or lost_at)

    def findings(self) -> dict[str, int]:
        """Return how often what must not be has been; each is 0 where all is well."""
        lines = (self.place / "side").read_text().splitlines()
        begins = Counter(line[2:] for line in lines if line.startswith("b "))
        ends = Counter(line[2:].partition(" ")[0] for line in lines if line.startswith("e "))
        retried = {record.self_id for record in self.records if record.attempt > 1}
        return {
            "jobs that were not run": sum(not ends[f"job-{n}"] for n in range(self.jobs)),
            "jobs that came to their end twice": sum(
                times > 1 for job_id, times in ends.items() if job_id not in retried
            ),
            "attempts that were started twice": sum(times > 1 for times in begins.values()),
            "jobs that were run anew without a kill": len(retried) * (self.killed_at is None),
            "jobs that were run more than once anew": sum(r.attempt > 2 for r in self.records),
            "records that say otherwise": abs(self.jobs - self._finished())
            + len(self.records)
            - self._finished(),
            "processes left": sum(len(processes.left_after(place, 20.0)) for place in self._places),
        }

    def _finished(self) -> int:
        return sum(record.status is Status.finished for record in self.records)

    def shares(self) -> list[int]:
        """Return how many jobs each host has brought to their end, most first."""
        return sorted(Counter(record.host for record in self.records).values(), reverse=True)


def main(argv: list[str] | None = None) -> int:
    """Play and tell; 1 where something was found that must not be."""
    options = _parser().parse_args(argv)
    place = Path(tempfile.mkdtemp(prefix="anodejobs-hosts-"))
    shared = Shared(
        place=place,
        url=options.store,
        jobs=options.jobs,
        hosts=options.hosts,
        slots=options.slots,
        job_s=options.job_s,
        kills=options.kill,
        recovery_timeout_s=options.recovery_timeout,
        limit_s=120 + 0.1 * options.jobs,
    )
    is_fine = False
    try:
        asyncio.run(shared.play())
        findings = shared.findings()
        print("\n".join(_rendered(shared, findings)), flush=True)
        is_fine = not any(findings.values())
    except TimeoutError:
        log = (place / "host.log").read_text(errors="replace")[-4000:]
        print(f"not done after {shared.limit_s:g} s\n{log}", flush=True)
    finally:
        shared.kill_all()
        if is_fine:
            shutil.rmtree(place)
        else:
            print(f"kept: {place}", flush=True)
    return int(not is_fine)


def _rendered(shared: Shared, findings: dict[str, int]) -> Iterator[str]:
    rate = shared.jobs / shared.seconds
    shares = " + ".join(f"{share:,}" for share in shared.shares())
    yield f"{shared.jobs:,} jobs on {shared.hosts} hosts in {shared.seconds:.1f} s: {rate:.0f}/s"
    yield f"  of each host: {shares}"
    for finding, times in findings.items():
        yield f"  {finding:<40} {times:>8,}  {'NO' if times else 'yes'}"
    if shared.killed_at is not None:
        after = f"{shared.given_up_at - shared.killed_at:.1f}" if shared.given_up_at else "-"
        yield f"  {len(shared.history)} jobs of the killed host were lost {after} s later, run anew"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=__doc__)
    parser.add_argument("--store", required=True, help="the URL of an empty database")
    parser.add_argument("--hosts", type=int, default=2, help="how many share it (2)")
    parser.add_argument("--jobs", type=int, default=5_000, help="that are submitted (5000)")
    parser.add_argument("--slots", type=int, default=6, help="of each host (6)")
    parser.add_argument("--job-s", type=float, default=0.0, help="how long a job takes (0)")
    parser.add_argument("--kill", action="store_true", help="kill one of them in the middle")
    parser.add_argument("--recovery-timeout", type=float, default=5.0, help="seconds (5)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
