"""``python -m benchmarks.chaos``: does ``kill -9`` lose anything, or start anything twice?

Jobs whose ends and outputs are known beforehand are run while the application, the shim or both
are killed at random moments, again and again. Nothing may be lost where the application is
killed. Where the shim is, what nobody could know may be, and says so. With ``--store`` the records
are in the empty database or folder that the URL names. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from anodejobs.stores import from_url
from benchmarks import chaos_processes as processes
from benchmarks.chaos_findings import Findings, clear, look
from benchmarks.chaos_jobs import plan_of

KINDS = ("host", "shim", "both")

_SETTLING_S = 20.0
"""How long shims and leftovers have to go by themselves."""
_HOLDING_S = 0.5
"""When a host must have got hold of all jobs that have survived their shim."""
_MOST_TOLD = 20


class GaveUpError(Exception):
    """The jobs did not come to their end, or the application to its own."""


class Round:
    """One kind of killing: the host, what is killed, and what is known of the jobs since."""

    def __init__(self, place: Path, kind: str, options: argparse.Namespace) -> None:
        self.place = place
        self.kind = kind
        self.kills = 0
        self.survivors: set[str] = set()
        """Jobs that were alive so long after their shim's death that the host must have them."""
        self.plans = [plan_of(options.seed, number) for number in range(options.jobs)]
        self.limit_s = limit_s(options.jobs)
        self._rng = random.Random(f"{options.seed}:{kind}")
        self._every_s = options.every
        self._slowness = 1.0
        self.store: str | None = options.store
        self._arguments = [str(place), *map(str, (options.jobs, options.seed, options.parallel))]
        if self.store is not None:
            self._arguments.append(self.store)
        self._end = time.monotonic() + self.limit_s
        (place / "side").mkdir()

    def play(self) -> None:
        """Have all jobs run, killing all the while."""
        while True:
            with self._host() as host:
                if self._has_ended(host):
                    return
            time.sleep(self._rng.uniform(0, 0.3))

    @contextmanager
    def _host(self) -> Iterator[subprocess.Popen[bytes]]:
        log = self.place / "host.log"
        host = processes.start_host("chaos_host", *self._arguments, place=self.place, log=log)
        try:
            yield host
        finally:
            host.kill()
            host.wait()

    def _has_ended(self, host: subprocess.Popen[bytes]) -> bool:
        """Return whether the host came to its end, False when it was killed."""
        while host.poll() is None:
            started = self._started()
            if self._ends_within(host, self._slowness * self._rng.uniform(0.05, 2 * self._every_s)):
                return True
            self._kill(host)
            # Where nothing is done between two kills, the machine is slow: kill less.
            self._slowness = 1.0 if self._started() > started else 2 * self._slowness
        return False

    def _ends_within(self, host: subprocess.Popen[bytes], seconds: float) -> bool:
        rest = self._end - time.monotonic()
        try:
            code = host.wait(max(0.0, min(seconds, rest)))
        except subprocess.TimeoutExpired:
            if rest < seconds:
                raise GaveUpError(f"not done after {self.limit_s:g} s") from None
            return False
        if code != 0:
            raise GaveUpError(f"a host ended by itself, with exit code {code}")
        return True

    def _kill(self, host: subprocess.Popen[bytes]) -> None:
        alive = processes.running(self.place) if self.kind == "shim" else set()
        victims = ["host", "shim"] if self.kind == "both" else [self.kind]
        self._rng.shuffle(victims)
        was_there = False
        for victim in victims:
            if victim == "host":
                host.kill()
                was_there |= host.wait() == -signal.SIGKILL
            else:
                was_there |= processes.kill_shim(self.place)
            time.sleep(self._rng.choice((0, 0.001, 0.02)))
        self.kills += was_there
        at = datetime.now(UTC)
        told = f"{at:%H:%M:%S.%f}: {self.kind} killed, {self._started()} jobs started"
        print(told, file=sys.stderr, flush=True)
        if self.kind == "shim" and was_there and not self._ends_within(host, _HOLDING_S):
            self.survivors |= alive & processes.running(self.place)

    def _started(self) -> int:
        return len(os.listdir(self.place / "side"))

    def find(self) -> Findings:
        """Return what is wrong when all is over."""
        findings = Findings(shim_was_killed=self.kind != "host")
        for pid, env in processes.left_after(self.place, _SETTLING_S).items():
            job_id = env.get("ANODEJOBS_JOB_ID", "none")
            measure = "processes left" if processes.is_of_a_job(env) else "shims left"
            findings.add(measure, 1, f"process {pid} of job {job_id}")
        for seen in asyncio.run(look(self.place, self.plans, self.store)):
            findings.consider(seen, self.survivors)
        shim_logs = (self.place / "db" / "shim").glob("log*")
        for log in (self.place / "host.log", *filter(Path.is_file, shim_logs)):
            for line in _troubles(log):
                findings.add("errors in the log of a shim or a host", 1, line)
        return findings


def limit_s(jobs: int) -> float:
    """Return how long so many jobs may take, on a machine that does much else."""
    return 60 + 0.1 * jobs


def _troubles(log: Path) -> Iterator[str]:
    for line in log.read_text(errors="replace").splitlines():
        if any(word in line for word in (" ERROR ", " CRITICAL ", "Traceback", "Error:")):
            yield f"{log.name}: {line}"


def main(argv: list[str] | None = None) -> int:
    """Kill and tell; 1 where something was found that must not be."""
    options = _parser().parse_args(argv)
    _listen()
    print(f"{options.jobs} jobs, {options.parallel} at once, seed {options.seed}", flush=True)
    kinds = [options.kill] if options.kill else KINDS
    try:
        are_fine = [_is_fine(kind, options) for kind in kinds]
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return int(not all(are_fine))


def _is_fine(kind: str, options: argparse.Namespace) -> bool:
    """Play a round in a directory of its own, which is kept where it is not fine."""
    place = Path(tempfile.mkdtemp(prefix="anodejobs-chaos-"))
    is_kept = False
    try:
        with _time_limit(place, 2 * limit_s(options.jobs)):
            is_fine = _played(Round(place, kind, options))
        is_kept = not is_fine
    except Exception:
        is_kept = True
        raise
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        processes.kill_all(place)
        if is_kept:
            print(f"kept: {place}", flush=True)
        else:
            shutil.rmtree(place)
        _listen()
    return is_fine


def _listen() -> None:
    """Have Ctrl-C and SIGTERM end this process tidily."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _played(game: Round) -> bool:
    """Play, and print what was found; return whether all of that may be."""
    began = time.monotonic()
    try:
        game.play()
    except GaveUpError as error:
        print(f"{game.kind} killed {game.kills} times: {error}", flush=True)
        asyncio.run(_dump(game))
        return False
    seconds = time.monotonic() - began
    findings = game.find()
    print("\n".join(_rendered(game, seconds, findings)), flush=True)
    if game.store is not None and not findings.forbidden:
        asyncio.run(clear(game.place, game.store))
    return not findings.forbidden


@contextmanager
def _time_limit(place: Path, limit_s: float) -> Iterator[None]:
    """End this process, and all of the chaos, where something in it hangs."""

    def give_up() -> None:
        print(f"it hangs; kept: {place}", flush=True)
        faulthandler.dump_traceback()
        processes.kill_all(place)
        os._exit(2)

    timer = threading.Timer(limit_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _rendered(game: Round, seconds: float, findings: Findings) -> Iterator[str]:
    jobs = len(game.plans)
    yield f"\n{game.kind} killed: {game.kills} kills, {jobs} jobs, {seconds:.1f} seconds"
    for measure, count in findings.counts.items():
        bound = "may be" if findings.may_be(measure) else "0"
        verdict = "NO" if measure in findings.forbidden else "yes"
        yield f"  {measure:<40} {count:>10,}  {bound:<6}  {verdict}"
    for measure in findings.forbidden:
        details = findings.details[measure]
        yield f"{measure}:"
        yield from (f"  {detail}" for detail in details[:_MOST_TOLD])
        if len(details) > _MOST_TOLD:
            yield f"  and {len(details) - _MOST_TOLD} more"


async def _dump(game: Round) -> None:
    """Print what has not ended, as the store has it: a Jobs would change that."""
    store = from_url(game.store or f"sqlite:///{game.place}/db/jobs.db")
    await store.open(lambda: None)
    try:
        for job in await store.unfinished():
            events = await store.history(job_id=job.job_id)
            told = "; ".join(f"{e.at:%H:%M:%S.%f} {e.status} {e.why or ''}" for e in events)
            print(f"  {job.job_id}: {job.status}, process {job.attempt.pid}; {told}")
    finally:
        await store.close()
    for pid, env in processes.marked(game.place).items():
        print(f"  process {pid} of job {env.get('ANODEJOBS_JOB_ID', 'none')} is alive")
    for line in (game.place / "host.log").read_text(errors="replace").splitlines()[-_MOST_TOLD:]:
        print(f"  host: {line}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="how many, for each kind (1000)")
    parser.add_argument("--kill", choices=KINDS, help="what is killed; else each in turn")
    parser.add_argument("--store", help="the URL of an empty one; else the directory's own")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--parallel", type=int, default=32, help="how many run at once (32)")
    parser.add_argument("--every", type=float, default=0.4, help="seconds between kills (0.4)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
