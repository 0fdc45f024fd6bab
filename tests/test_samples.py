"""What an attempt has used, on its record: from its reaping, from looks, from its cgroup."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from anodejobs import Jobs, Status
from anodejobs.events import Attempt
from anodejobs.executors import samples as module
from anodejobs.executors import tree
from anodejobs.executors.base import new_token
from anodejobs.executors.samples import OwnPeak, Samples
from tests.conftest import python
from tests.test_cgroups import first_line, parent, room  # noqa: F401  # fixtures
from tests.test_recovery import KERNEL_TELLS
from tests.test_shim_recovery import kill_shim

LIMIT_S = 20
MIB = 1024 * 1024
BURN_S = 0.2
BURN = f"import time\nwhile time.process_time() < {BURN_S}: pass\n"
WAIT = "\nprint(flush=True)\nimport os\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
HELD = f"import time\nheld = bytearray(b'x') * (30 * {MIB})\n"
PEAKED = f"{HELD}del held\n{WAIT}"
# Nobody waits for what it leaves behind until that is done.
LEAVING = f"""
import os
r, w = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
{BURN.replace("import", "        import").replace("while", "        while")}
    os._exit(0)
os.close(w)
os.wait()
os.read(r, 1)
"""


@pytest.fixture
async def looks(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[str]:
    """Have attempts looked at very soon and often; tells when a look begins and ends."""
    loop, looks = asyncio.get_running_loop(), asyncio.Queue[str]()
    look = module._looked_at

    def told(attempts: list[Attempt]) -> module._Look:
        loop.call_soon_threadsafe(looks.put_nowait, "began")
        found = look(attempts)
        loop.call_soon_threadsafe(looks.put_nowait, "ended")
        return found

    monkeypatch.setattr(module, "_looked_at", told)
    monkeypatch.setattr(module, "FIRST_AFTER_S", 0.02)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(module, "_SHARE", 1)
    return looks


async def seen(looks: asyncio.Queue[str]) -> None:
    """Return when a look is over that began after this call."""
    while not looks.empty():
        looks.get_nowait()
    async with asyncio.timeout(LIMIT_S):
        while await looks.get() != "began":
            pass
        assert await looks.get() == "ended"


# The reaping.


async def test_a_job_has_its_cpu_time_on_record_however_short_it_was(jobs):
    await jobs.run(python(BURN), job_id="a")
    record = await jobs.wait("a", Status.finished, timeout=LIMIT_S)
    assert BURN_S <= record.cpu_seconds < BURN_S + 1


async def test_the_cpu_time_of_what_was_waited_for_counts(jobs, tmp_path):
    (tmp_path / "burn.py").write_text(BURN)
    burn = " ".join([*python("")[:-2], str(tmp_path / "burn.py")])
    await jobs.run(f"{burn}; {burn} & wait", job_id="a")
    record = await jobs.wait("a", Status.finished, timeout=LIMIT_S)
    assert record.cpu_seconds >= 2 * BURN_S


@pytest.fixture
async def shim_jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    async with Jobs(tmp_path / "job_db", stop_grace=1, on_close="stop") as jobs:
        yield jobs


async def test_a_large_job_has_its_peak_on_record_however_short_it_was(shim_jobs):
    await shim_jobs.run(python(f"x = b'x' * (100 * {MIB})"), job_id="a")
    record = await shim_jobs.wait("a", Status.finished, timeout=LIMIT_S)
    assert 100 * MIB <= record.peak_memory_bytes < 130 * MIB


async def test_a_small_and_short_job_tells_nothing_of_its_peak(jobs):
    await jobs.run("true", job_id="a")
    record = await jobs.wait("a", Status.finished, timeout=LIMIT_S)
    assert record.peak_memory_bytes is None and record.cpu_seconds is not None


def test_the_supervisors_own_memory_is_no_childs():
    ours = tree.peak_memory("self")
    assert ours > 0
    peak = OwnPeak()
    assert peak.above(None) == 0
    assert peak.above(rusage(ours)) == 0
    assert peak.above(rusage(2 * ours + 64 * MIB)) == 2 * ours + 64 * MIB
    held = b"x" * (2 * ours + 64 * MIB)  # now it is ours too
    assert peak.above(rusage(len(held))) in (0, len(held))
    assert OwnPeak().above(rusage(len(held))) == 0


def rusage(most_bytes: int) -> resource.struct_rusage:
    assert most_bytes % 1024 == 0
    return resource.struct_rusage((0.0, 0.0, most_bytes // 1024, *([0] * 13)))


async def test_each_attempt_has_its_own_figures(jobs):
    command = f"[ $ANODEJOBS_ATTEMPT = 2 ] && {' '.join(python(''))[:-1]} '{BURN}'; exit 1"
    await jobs.run(command, job_id="a", max_retries=1)
    record = await jobs.wait("a", Status.failed, timeout=LIMIT_S)
    first, second = await jobs.attempts("a")
    assert first.cpu_seconds < BURN_S <= second.cpu_seconds == record.cpu_seconds


async def test_a_job_that_did_not_start_has_used_nothing_that_is_known(jobs):
    record = await jobs.run(["/no/such/program"], job_id="a")
    assert (record.status, record.cpu_seconds, record.peak_memory_bytes) == (
        Status.failed_start,
        None,
        None,
    )


async def test_what_was_used_while_no_application_was_there_is_on_record(tmp_path):
    async with Jobs(tmp_path / "job_db") as jobs:
        await jobs.run(python(f"x = b'x' * (100 * {MIB}); {BURN}"), job_id="a")
    async with Jobs(tmp_path / "job_db") as jobs:
        record = await jobs.wait("a", Status.finished, timeout=LIMIT_S)
    assert record.cpu_seconds >= BURN_S
    assert record.peak_memory_bytes >= 100 * MIB


async def test_what_an_adopted_job_had_used_is_known_only_as_far_as_it_was_seen(tmp_path):
    async with Jobs(tmp_path / "job_db", on_close="stop", stop_grace=1) as jobs:
        await jobs.run("sleep 1000", job_id="a")
        kill_shim(tmp_path)
        record = await jobs.stop("a")
    assert record is not None
    assert record.status == (Status.stopped if KERNEL_TELLS else Status.lost)
    assert record.cpu_seconds is None
    assert record.peak_memory_bytes is None or record.peak_memory_bytes < 100 * MIB


# Looks.


async def test_a_peak_that_is_over_is_seen(jobs, looks, tmp_path):
    await jobs.run(python(PEAKED), job_id="a", cwd=tmp_path)
    await first_line(jobs, "a")
    await seen(looks)
    (tmp_path / "go").touch()
    record = await jobs.wait("a", Status.finished, timeout=LIMIT_S)
    assert 30 * MIB <= record.peak_memory_bytes < 50 * MIB


async def test_the_memory_of_all_processes_counts(jobs, looks, tmp_path):
    (tmp_path / "held.py").write_text(HELD + WAIT)
    await jobs.run(
        f"for i in 1 2; do {' '.join(python('')[:-2])} held.py & done; wait",
        job_id="a",
        cwd=tmp_path,
    )
    async for chunk in jobs.follow("a"):
        if chunk.end == 2:  # a line of each
            break
    await seen(looks)
    (tmp_path / "go").touch()
    record = await jobs.wait("a", Status.finished, timeout=LIMIT_S)
    assert 60 * MIB <= record.peak_memory_bytes < 100 * MIB


async def test_a_job_that_is_stopped_is_looked_at_before(jobs, tmp_path):
    (tmp_path / "burn.py").write_text(f"{HELD}{BURN}{WAIT}")
    # The shell ends without having waited for it.
    await jobs.run(f"{' '.join(python('')[:-2])} burn.py; :", job_id="a", cwd=tmp_path)
    await first_line(jobs, "a")
    record = await jobs.stop("a")
    assert record is not None and record.status == Status.stopped
    assert record.cpu_seconds >= BURN_S - 0.05  # at looks the kernel tells hundredths
    assert record.peak_memory_bytes >= 30 * MIB


class TestPace:
    """How often is looked at what."""

    @pytest.fixture
    async def watch(self, monkeypatch) -> AsyncIterator[Callable[[], Attempt]]:
        self.looks: list[list[Attempt]] = []
        self.took_s = 0.0
        self.now = 1000.0
        self.samples = Samples()
        loop = self.samples._loop = Clock(self)

        def looked_at(attempts: list[Attempt]) -> module._Look:
            self.looks.append(attempts)
            return [tree.Sample(memory_bytes=7) for _ in attempts], self.took_s

        monkeypatch.setattr(module, "_looked_at", looked_at)
        monkeypatch.setattr(module, "begun_in_thread", Done)

        def watch() -> Attempt:
            attempt = Attempt(token=new_token(), supervisor="")
            self.samples.watch(attempt)
            return attempt

        yield watch
        self.samples.close()
        assert loop.timer is None

    def run_until(self, at: float) -> None:
        loop = self.samples._loop
        while loop.timer is not None and loop.timer.at <= at:
            self.now, callback = loop.timer.at, loop.timer.callback
            loop.timer = None
            callback()
        self.now = at

    async def test_an_attempt_is_looked_at_ever_more_seldom(self, watch):
        attempt = watch()
        found = []
        for at in range(1000, 1200):
            before = len(self.looks)
            self.run_until(float(at))
            found += [at - 1000] * (len(self.looks) - before)
        assert found == [1, 2, 4, 8, 16, 32, 62, 92, 122, 152, 182]
        assert self.samples.forget(attempt.token).memory_bytes == 7

    async def test_beside_one_that_is_seldom_looked_at_another_is_after_a_second(self, watch):
        watch()
        self.run_until(1017.0)
        self.looks.clear()
        late = watch()
        self.run_until(1018.0)
        assert self.looks == [[late]]

    async def test_what_is_over_before_costs_no_look(self, watch):
        for _ in range(100):
            self.samples.forget(watch().token)
        self.run_until(1100.0)
        assert self.looks == [] and self.samples._due == []

    async def test_what_is_due_at_nearly_the_same_time_is_looked_at_together(self, watch):
        early = watch()
        self.run_until(1000.4)
        late = watch()
        self.run_until(1001.1)
        assert self.looks == [[early, late]]

    async def test_looking_takes_half_a_hundredth_of_a_processor_at_most(self, watch):
        self.took_s = 0.25
        watch()
        self.run_until(1200.0)
        assert len(self.looks) == 4  # at 1, 51, 101, 151

    async def test_a_look_that_fails_is_said_and_tried_again(self, watch, monkeypatch, caplog):
        def fail(attempts: list[Attempt]) -> module._Look:
            self.looks.append(attempts)
            raise PermissionError("no /proc")

        monkeypatch.setattr(module, "_looked_at", fail)
        watch()
        self.run_until(1002.5)
        assert len(self.looks) == 2 and "could not be seen" in caplog.text


class Clock:
    """A loop whose time is the test's."""

    class Timer:
        def __init__(self, clock: Clock, at: float, callback: Callable[[], None]) -> None:
            self.clock, self.at, self.callback = clock, at, callback

        def when(self) -> float:
            return self.at

        def cancel(self) -> None:
            self.clock.timer = None

    def __init__(self, test: TestPace) -> None:
        self._test = test
        self.timer: Clock.Timer | None = None

    def time(self) -> float:
        return self._test.now

    def call_at(self, at: float, callback: Callable[[], None]) -> Clock.Timer:
        assert self.timer is None
        self.timer = Clock.Timer(self, at, callback)
        return self.timer


class Done:
    """What work in a thread gives that is done at once."""

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        self.error: OSError | None = None
        try:
            self.value = work(*args)
        except OSError as error:
            self.error = error

    def exception(self) -> OSError | None:
        return self.error

    def result(self) -> Any:
        return self.value

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)


def test_a_sample_counts_processes_that_still_are_who_they_were():
    pid = os.getpid()
    us = tree.look_at(pid, tree.start_time(pid) or 0.0)
    assert us is not None
    stranger = tree.Process(pid, us.start_time + 1, us.parent, us.session, None)
    found = tree.sample([us, stranger])
    assert found == tree.sample([us]) or found.cpu_seconds > 0
    assert tree.sample([stranger]) == tree.Sample()
    assert abs(tree.sample([us]).cpu_seconds - sum(os.times()[:4])) < 0.5
    assert tree.sample([us]).memory_bytes >= tree.peak_memory("self") - MIB


# A cgroup.


async def test_in_a_cgroup_what_was_left_behind_counts(jobs, parent):  # noqa: F811
    await jobs.run(python(LEAVING), job_id="a")
    await jobs.run(python(LEAVING), job_id="b", limits={"cgroup_parent": str(parent)})
    bare = await jobs.wait("a", Status.finished, timeout=LIMIT_S)
    grouped = await jobs.wait("b", Status.finished, timeout=LIMIT_S)
    assert bare.cpu_seconds < BURN_S <= grouped.cpu_seconds
    await jobs.close()
