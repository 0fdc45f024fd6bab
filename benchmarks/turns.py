"""``python -m benchmarks.turns``: do processes that share a directory take turns?

Several of them submit jobs and wait for them, while the one whose turn it is to decide who starts
is killed, or closed, again and again; another one must take over. Each job must start once, and the
limits must hold, as the jobs themselves have written down. 1 where that is not so. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from anodejobs.records import JobFilter, Status
from anodejobs.stores.base import Query
from anodejobs.stores.sqlite import SqliteJobStore
from benchmarks import chaos_processes as processes
from benchmarks.turns_host import CLOSED_EARLY, is_narrow, job_id

MOST_TAKEOVER_S = 1.0


class GaveUpError(Exception):
    """The jobs did not come to their end, or an application to its own."""


@dataclass
class Game:
    """Applications on one directory, and what is done to them."""

    place: Path
    jobs: int
    processes: int
    slots: int
    narrow: int
    ends: int
    """How often the one whose turn it is is ended: killed, closed, killed and so on."""
    limit_s: float
    killed_at: list[float] = field(default_factory=list)
    closed_at: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def play(self) -> None:
        """Have all jobs run."""
        began = time.monotonic()
        hosts = {number: self._host(number) for number in range(self.processes)}
        try:
            while hosts:
                self._end_one(hosts)
                self._go_on(hosts)
                if time.monotonic() - began > self.limit_s:
                    raise GaveUpError(f"not done after {self.limit_s:g} s")
        finally:
            for host in hosts.values():
                host.kill()
                host.wait()
        self.seconds = time.monotonic() - began

    def _host(self, number: int) -> subprocess.Popen[bytes]:
        first, end = (self.jobs * n // self.processes for n in (number, number + 1))
        arguments = [str(self.place), *map(str, (first, end, self.slots, self.narrow))]
        log = self.place / "host.log"
        return processes.start_host("turns_host", *arguments, place=self.place, log=log)

    def _go_on(self, hosts: dict[int, subprocess.Popen[bytes]]) -> None:
        """Have another one in the place of each that was ended before its jobs."""
        for number, host in list(hosts.items()):
            code = host.poll()
            if code == 0:
                del hosts[number]
            elif code in (-signal.SIGKILL, CLOSED_EARLY):
                hosts[number] = self._host(number)
            elif code is not None:
                raise GaveUpError(f"a host ended with exit code {code}")
        time.sleep(0.02)

    def _end_one(self, hosts: dict[int, subprocess.Popen[bytes]]) -> None:
        """End the one whose turn it is, whenever a part of the jobs has started since the last."""
        ended = len(self.killed_at) + len(self.closed_at)
        if ended == self.ends or self._started() < self.jobs * (ended + 1) // (self.ends + 2):
            return
        actor = self._actor()
        for host in hosts.values():
            if host.pid == actor and host.poll() is None:
                is_kill = len(self.killed_at) <= len(self.closed_at)
                (self.killed_at if is_kill else self.closed_at).append(time.time())
                host.send_signal(signal.SIGKILL if is_kill else signal.SIGTERM)
                host.wait()
                return

    def _started(self) -> int:
        side = self.place / "side"
        return side.stat().st_size // 24 if side.exists() else 0  # about so much is written

    def _actor(self) -> int | None:
        """Return the process whose turn it is."""
        try:
            name = (self.place / "db" / "jobs.db-scheduler").read_text()
        except FileNotFoundError:
            return None
        return int(name.split(":")[1]) if name else None

    def findings(self) -> dict[str, int]:
        """Return how often what must not be has been; each is 0 where all is well."""
        lines = (self.place / "side").read_text().splitlines()
        begins = Counter(line[2:] for line in lines if line.startswith("b "))
        ids = [job_id(number) for number in range(self.jobs)]
        return {
            "jobs that were not started": sum(begins[i] == 0 for i in ids),
            "jobs that were started twice": sum(begins[i] > 1 for i in ids),
            "limit of all exceeded": max(0, most_at_once(lines, set(ids)) - self.slots),
            "limit of a queue exceeded": max(
                0,
                most_at_once(lines, {job_id(n) for n in range(self.jobs) if is_narrow(n)})
                - self.narrow,
            ),
            "records that say otherwise": asyncio.run(self._wrong_records()),
            "processes left": len(processes.left_after(self.place, 20.0)),
        }

    async def _wrong_records(self) -> int:
        store = SqliteJobStore(self.place / "db" / "jobs.db")
        await store.open(lambda: None)
        try:
            records = await store.page(Query(filter=JobFilter()))
        finally:
            await store.close()
        fine = sum(r.status is Status.finished and r.attempt == 1 for r in records)
        return abs(self.jobs - fine) + len(records) - fine

    def gaps(self, ends: list[float]) -> list[float]:
        """Return how long after each of these moments another one has let a job start."""
        return asyncio.run(self._gaps(ends)) if ends else []

    async def _gaps(self, ends: list[float]) -> list[float]:
        store = SqliteJobStore(self.place / "db" / "jobs.db")
        await store.open(lambda: None)
        try:
            events = await store.history()
        finally:
            await store.close()
        starts = [event.at.timestamp() for event in events if event.status is Status.starting]
        return [min((at for at in starts if at > end), default=float("inf")) - end for end in ends]


def most_at_once(lines: list[str], job_ids: set[str]) -> int:
    """Return how many of the jobs have been there at once, by what they have written."""
    there: set[str] = set()
    most = 0
    for line in lines:
        what, _, job = line.partition(" ")
        if job in job_ids:
            (there.add if what == "b" else there.discard)(job)
            most = max(most, len(there))
    return most


def main(argv: list[str] | None = None) -> int:
    """Play and tell; 1 where something was found that must not be."""
    options = _parser().parse_args(argv)
    place = Path(tempfile.mkdtemp(prefix="anodejobs-turns-"))
    game = Game(
        place=place,
        jobs=options.jobs,
        processes=options.processes,
        slots=options.slots,
        narrow=options.narrow,
        ends=options.ends,
        limit_s=60 + 0.1 * options.jobs,
    )
    is_fine = False
    try:
        game.play()
        is_fine = _told(game)
    except GaveUpError as error:
        print(f"{error}\n{(place / 'host.log').read_text(errors='replace')[-4000:]}", flush=True)
    finally:
        processes.kill_all(place)
        if is_fine:
            shutil.rmtree(place)
        else:
            print(f"kept: {place}", flush=True)
    return int(not is_fine)


def _told(game: Game) -> bool:
    """Print what was found, and return whether all of that may be."""
    findings = game.findings()
    takeovers, handovers = game.gaps(game.killed_at), game.gaps(game.closed_at)
    print("\n".join(_rendered(game, findings, takeovers, handovers)), flush=True)
    slowest = max([*takeovers, *handovers], default=0.0)
    return not any(findings.values()) and slowest < MOST_TAKEOVER_S


def _rendered(
    game: Game, findings: dict[str, int], takeovers: list[float], handovers: list[float]
) -> Iterator[str]:
    rate = game.jobs / game.seconds
    yield f"{game.jobs:,} jobs of {game.processes} processes in {game.seconds:.1f} s: {rate:.0f}/s"
    for finding, times in findings.items():
        yield f"  {finding:<40} {times:>8,}  {'NO' if times else 'yes'}"
    for what, gaps in (("after a kill", takeovers), ("after a close", handovers)):
        if gaps:
            told = ", ".join(f"{gap * 1000:.0f}" for gap in sorted(gaps))
            verdict = "yes" if max(gaps) < MOST_TAKEOVER_S else "NO"
            yield f"  another one starts a job {what}, ms: {told}  {verdict}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns", description=__doc__)
    parser.add_argument("--processes", type=int, default=8, help="that share the directory (8)")
    parser.add_argument("--jobs", type=int, default=10_000, help="that they submit together")
    parser.add_argument("--slots", type=int, default=6, help="the limit over all (6)")
    parser.add_argument("--narrow", type=int, default=2, help="the limit of one queue (2)")
    parser.add_argument("--ends", type=int, default=6, help="how often whose turn it is ends (6)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
