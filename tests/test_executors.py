"""The executors of the package keep the contract of an executor."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from anodejobs.errors import ExecutorError
from anodejobs.events import (
    Adopted,
    Attempt,
    Event,
    Exited,
    Lost,
    Started,
    StartFailed,
    StopFailed,
    StopRequested,
)
from anodejobs.executors import looks, processes, shim, shim_start, tree
from anodejobs.executors.base import Executor, Host, Launch, LogPlan, new_token
from anodejobs.executors.inline import Inline
from anodejobs.executors.processes import Processes
from anodejobs.executors.pump import LogPump
from anodejobs.executors.shim import Shim
from anodejobs.executors.spawner import kill_and_reap
from anodejobs.logs import LogTail
from tests.conftest import descriptors, python
from tests.programs import Gate, has_gone
from tests.test_recovery import KERNEL_TELLS

pytestmark = pytest.mark.smoke

LIMIT_S = 60.0

TREE = """
import os, time
def here():
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600)
os.fork() or (os.setsid(), here())
here()
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *args: os.write(1, b"asked\\n"))
os.write(1, b"ready\\n")
while True: time.sleep(600)
"""
LEAVER = """
import os, time
pid = os.fork() or (os.setsid(), time.sleep(600))
os.write(1, b"%d\\n" % pid)
"""


class Application:
    """Has an executor, and notes what it is told by it."""

    def __init__(self, executor: Executor, folder: Path) -> None:
        self.executor = executor
        self.folder = folder
        self.told: asyncio.Queue[Event] = asyncio.Queue()
        self.inherited: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.departed = asyncio.Event()
        self._attempts: list[Attempt] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        host = Host(
            own=self._own,
            on_inherited=lambda job_id, token: self.inherited.put_nowait((job_id, token)),
            on_departure=self.departed.set,
        )
        await self.executor.open(host)
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ExecutorError):  # closed by the test
            for attempt in self._attempts:
                await self.executor.stop(attempt, 0)
        await self.close()

    async def close(self) -> None:
        """Go, and leave what runs."""
        await self.executor.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _own(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        return task

    def launch(self, command: str | list[str], **fields: Any) -> Launch:
        """Return what starts the command; ``fields`` are those of ``Launch``."""
        usual: dict[str, Any] = {
            "job_id": "a",
            "argv": ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command),
            "cwd": str(self.folder),
            "base_env": dict(os.environ),
            "envs": {},
            "logs": LogPlan(
                stdout=str(self.folder / "out.txt"), stderr=str(self.folder / "errors.txt")
            ),
            "stop_grace": 0.2,
        }
        return Launch(**{**usual, **fields})

    def attempt(self) -> Attempt:
        """Return an attempt that nobody has begun."""
        return Attempt(token=new_token(), supervisor=self.executor.supervisor)

    async def start(self, launch: Launch) -> Attempt:
        """Start an attempt; it is stopped when the application ends."""
        started = await self.executor.start(launch, self.attempt(), 1)
        assert isinstance(started, Started)
        self._attempts.append(started.attempt)
        return started.attempt

    async def run(self, command: str | list[str], **fields: Any) -> Attempt:
        return await self.start(self.launch(command, **fields))

    async def adopt(self, launch: Launch, attempt: Attempt) -> Adopted | Lost:
        """Adopt an attempt; it is stopped when the application ends."""
        self._attempts.append(attempt)
        return await self.executor.adopt(launch, attempt)

    async def tell(self, event: Event) -> None:
        self.told.put_nowait(event)

    async def end(self, attempt: Attempt) -> Exited | Lost:
        """Return how the attempt ended."""
        async with asyncio.timeout(LIMIT_S):
            return await self.executor.wait(attempt.token, self.tell)

    async def over(self, attempt: Attempt) -> Exited | Lost:
        """See the attempt through, and return how it ended."""
        end = await self.end(attempt)
        async with asyncio.timeout(LIMIT_S):
            await self.executor.clean(attempt.token)
        return end

    async def written(self, attempt: Attempt, text: bytes, times: int = 1) -> bytes:
        """Return what the attempt has written to stdout, once the text is there so many times."""
        grown = asyncio.Event()
        tail = LogTail(self.folder / "out.txt")
        read = b""
        try:
            with self.executor.follow(attempt.token, "stdout", tail, grown.set):
                async with asyncio.timeout(LIMIT_S):
                    while True:
                        grown.clear()
                        read += tail.read(1 << 20)
                        if read.count(text) >= times:
                            return read
                        await grown.wait()
        finally:
            tail.close()

    async def pids(self, attempt: Attempt, number: int) -> list[int]:
        """Return the pids that the processes of the attempt have told."""
        return [int(pid) for pid in (await self.written(attempt, b"\n", number)).split()[:number]]


class ExecutorContract:
    """What an executor keeps to."""

    def make_executor(self, folder: Path) -> Executor:
        """Return another executor on the folder, not yet open."""
        raise NotImplementedError

    def patch(self, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
        """Have the attribute ``name``, by its full name, be another one where the processes are."""
        module, _, attribute = name.rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), attribute, eval(source))

    @pytest.fixture
    async def app(self, tmp_path: Path) -> AsyncIterator[Application]:
        async with Application(self.make_executor(tmp_path), tmp_path) as app:
            yield app

    # Supervisors.

    async def test_to_open_it_starts_nothing(self, app: Application) -> None:
        commands = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
        assert not [command for command in commands if str(app.folder) in " ".join(command)]

    async def test_its_supervisor_is_alive_for_itself_and_for_others(
        self, app: Application, gate: Gate
    ) -> None:
        await app.run(gate.wait)
        other = Processes()
        assert app.executor.is_alive(app.executor.supervisor)
        assert other.is_alive(app.executor.supervisor)
        await other.close()

    async def test_it_knows_whether_another_application_lives(
        self, app: Application, gate: Gate
    ) -> None:
        with inline_host(app.launch(gate.wait)) as (host, attempt):
            assert app.executor.is_alive(attempt.supervisor)
            host.kill()
            host.wait()
            assert not app.executor.is_alive(attempt.supervisor)
            await app.adopt(app.launch("true"), attempt)

    async def test_it_outlives_another_application_and_no_sooner(
        self, app: Application, gate: Gate
    ) -> None:
        with inline_host(app.launch(gate.wait)) as (host, attempt):
            outlived = asyncio.create_task(app.executor.outlive(attempt.supervisor))
            await asyncio.wait([outlived], timeout=0.05)
            assert not outlived.done()
            host.kill()
            host.wait()
            async with asyncio.timeout(LIMIT_S):
                await outlived
            await app.adopt(app.launch("true"), attempt)

    # Starting.

    async def test_a_program_is_started_in_a_session_of_its_own(
        self, app: Application, gate: Gate
    ) -> None:
        attempt = await app.run(gate.wait)
        assert attempt.pid is not None
        assert os.getsid(attempt.pid) == attempt.pid

    async def test_what_was_started_can_be_told_from_every_other_process(
        self, app: Application, gate: Gate
    ) -> None:
        attempt = await app.run(gate.wait)
        assert attempt.pid is not None
        assert attempt.start_time == tree.start_time(attempt.pid)
        assert attempt.boot_id == tree.boot_id()
        # For a moment after the exec the kernel shows an empty environment.
        async with asyncio.timeout(LIMIT_S):
            while not Path(f"/proc/{attempt.pid}/environ").read_bytes():  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0)
        assert tree.read_token(attempt.pid) == attempt.token

    async def test_start_returns_once_the_program_is_executed(self, app: Application) -> None:
        for _ in range(5):
            attempt = await app.run(["/bin/sleep", "600"])
            assert os.path.samefile(f"/proc/{attempt.pid}/exe", "/bin/sleep")

    async def test_what_the_system_refuses_is_told(self, app: Application) -> None:
        event = await app.executor.start(app.launch(["/no/such"]), app.attempt(), 1)
        assert isinstance(event, StartFailed)
        assert event.error == "No such file or directory: '/no/such'"

    async def test_each_stream_goes_to_its_log(self, app: Application) -> None:
        await app.over(await app.run("echo out; echo error >&2"))
        assert (app.folder / "out.txt").read_bytes() == b"out\n"
        assert (app.folder / "errors.txt").read_bytes() == b"error\n"

    async def test_a_log_that_an_earlier_run_has_left_is_replaced(self, app: Application) -> None:
        await app.over(await app.run("echo first"))
        await app.over(await app.run("echo second"))
        assert (app.folder / "out.txt").read_bytes() == b"second\n"

    async def test_the_environment_is_the_launchs_and_the_attempts(self, app: Application) -> None:
        launch = app.launch(["/usr/bin/env"], base_env={"A": "a", "B": "b"}, envs={"B": "c"})
        attempt = app.attempt()
        await app.executor.start(launch, attempt, 7)
        await app.over(attempt)
        environment = dict(
            line.split("=", 1) for line in (app.folder / "out.txt").read_text().splitlines()
        )
        assert environment == {
            "A": "a",
            "B": "c",
            "ANODEJOBS_JOB_ID": "a",
            "ANODEJOBS_ATTEMPT": "7",
            "ANODEJOBS_TOKEN": attempt.token,
        }

    async def test_an_attempt_is_held_from_its_start_until_it_was_cleaned_up(
        self, app: Application, gate: Gate
    ) -> None:
        assert await app.executor.held() == set()
        attempt = await app.run(gate.wait)
        assert await app.executor.held() == {attempt.token}
        gate.open()
        await app.end(attempt)
        assert await app.executor.held() == {attempt.token}
        await app.executor.clean(attempt.token)
        await gone(app.executor.held)

    # Adopting.

    async def test_a_process_whose_supervisor_has_gone_is_adopted(
        self, app: Application, gate: Gate
    ) -> None:
        launch = app.launch(f"echo before; {gate.wait}; echo after; exit 3")
        attempt = orphaned(launch)
        adopted = await app.adopt(launch, attempt)
        assert isinstance(adopted, Adopted)
        assert adopted.attempt == attempt
        assert await app.executor.held() == {attempt.token}
        gate.open()
        end = await app.over(attempt)
        if KERNEL_TELLS:
            assert_is_end(end, 3)
        else:
            assert isinstance(end, Lost)
        assert (app.folder / "out.txt").read_bytes() == b"before\nafter\n"

    async def test_a_process_whose_pid_was_never_told_is_found_by_its_token(
        self, app: Application, gate: Gate
    ) -> None:
        launch = app.launch(gate.wait)
        attempt = orphaned(launch)
        adopted = await app.adopt(launch, Attempt(token=attempt.token, supervisor="gone"))
        assert isinstance(adopted, Adopted)
        assert adopted.attempt.pid == attempt.pid
        assert adopted.attempt.start_time == attempt.start_time

    async def test_a_process_that_never_was_is_lost(self, app: Application) -> None:
        event = await app.adopt(app.launch("true"), Attempt(token=new_token(), supervisor="gone"))
        assert isinstance(event, Lost)

    async def test_a_process_that_has_ended_is_lost(self, app: Application) -> None:
        ended = replace(app.attempt(), pid=os.getpid(), start_time=1.0, boot_id=tree.boot_id())
        assert isinstance(await app.adopt(app.launch("true"), ended), Lost)

    async def test_a_process_of_an_earlier_start_of_the_machine_is_lost(
        self, app: Application
    ) -> None:
        started = tree.start_time(os.getpid())
        earlier = replace(app.attempt(), pid=os.getpid(), start_time=started, boot_id="another")
        assert isinstance(await app.executor.adopt(app.launch("true"), earlier), Lost)

    # Waiting.

    @pytest.mark.parametrize(
        ("command", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -KILL $$", -9)]
    )
    async def test_wait_tells_the_exit_code(
        self, app: Application, command: str, code: int
    ) -> None:
        end = await app.over(await app.run(command))
        assert isinstance(end, Exited)
        assert (end.exit_code, end.evidence, end.log_error) == (code, "observed", None)

    async def test_all_that_was_written_is_in_the_logs_when_wait_returns(
        self, app: Application
    ) -> None:
        writer = python("import os\nfor i in range(64): os.write(1, b'x' * 65536)")
        attempt = await app.run(writer)
        await app.end(attempt)
        assert (app.folder / "out.txt").stat().st_size == 64 * 65536

    async def test_wait_returns_though_something_that_was_left_holds_the_pipes(
        self, app: Application
    ) -> None:
        attempt = await app.run("sleep 600 & exit 3")
        assert_is_end(await app.end(attempt), 3)

    async def test_an_attempt_that_takes_too_long_is_stopped_and_that_is_told_before(
        self, app: Application
    ) -> None:
        end = await app.over(await app.run("exec sleep 600", timeout=0.1, stop_grace=LIMIT_S))
        assert_is_end(end, -15)
        told = app.told.get_nowait()
        assert isinstance(told, StopRequested)
        assert told.error == "timed out after 0.1 s"

    async def test_a_failure_soon_after_the_start_is_told_as_such(self, app: Application) -> None:
        soon = await app.over(await app.run("exit 3", start_grace=600))
        late = await app.over(await app.run("exit 3"))
        assert isinstance(soon, Exited) and soon.in_start_grace
        assert isinstance(late, Exited) and not late.in_start_grace

    async def test_a_wait_that_was_cancelled_leaves_the_process_and_can_be_repeated(
        self, app: Application, gate: Gate
    ) -> None:
        attempt = await app.run(f"{gate.wait}; exit 3")
        waiting = asyncio.create_task(app.end(attempt))
        await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        await asyncio.wait([waiting])
        gate.open()
        assert_is_end(await app.end(attempt), 3)

    async def test_what_has_ended_is_known_to_have_ended_and_tells_but_its_end(
        self, app: Application, gate: Gate
    ) -> None:
        attempt = await app.run(f"{gate.wait}; exit 3")
        assert not app.executor.has_ended(attempt.token)
        gate.open()
        async with asyncio.timeout(LIMIT_S):
            if not app.executor.outlives_host:  # nobody else looks
                assert_is_end(await app.end(attempt), 3)
            while not app.executor.has_ended(attempt.token):  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0.01)
        assert_is_end(await app.over(attempt), 3)
        assert app.told.empty()

    # Cleaning up.

    async def test_what_was_left_behind_is_ended(self, app: Application) -> None:
        attempt = await app.run(python(LEAVER))
        (left,) = await app.pids(attempt, 1)
        await app.over(attempt)
        await has_gone(left)

    async def test_what_was_left_behind_is_left_as_launched(self, app: Application) -> None:
        attempt = await app.run(python(LEAVER), leftovers="leave")
        (left,) = await app.pids(attempt, 1)
        await app.over(attempt)
        await gone(app.executor.held)
        assert lives(left)
        os.kill(left, signal.SIGKILL)
        await has_gone(left)

    async def test_what_is_not_in_its_hands_is_not_cleaned_up(
        self, app: Application, gate: Gate
    ) -> None:
        other = Processes()
        started = await other.start(app.launch(gate.wait), app.attempt(), 1)
        assert isinstance(started, Started)
        await app.executor.clean(started.attempt.token)
        await app.executor.clean(new_token())
        assert lives(started.attempt.pid)
        assert await other.held() == {started.attempt.token}
        await other.close()

    # Stopping.

    async def test_stop_ends_every_process(self, app: Application) -> None:
        attempt = await app.run(python(TREE))
        pids = await app.pids(attempt, 2)
        assert await app.executor.stop(attempt, LIMIT_S)
        assert not [pid for pid in pids if lives(pid)]
        assert_is_end(await app.over(attempt), -15)

    async def test_what_does_not_end_when_asked_is_killed_after_the_grace(
        self, app: Application
    ) -> None:
        attempt = await app.run(python(STUBBORN))
        await app.written(attempt, b"ready")
        assert await app.executor.stop(attempt, 0.5)
        assert_is_end(await app.over(attempt), -9)
        assert (app.folder / "out.txt").read_bytes() == b"ready\nasked\n"

    async def test_a_second_stop_shortens_the_grace(self, app: Application) -> None:
        attempt = await app.run(python(STUBBORN))
        await app.written(attempt, b"ready")
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            first = tasks.create_task(app.executor.stop(attempt, 600))
            await app.written(attempt, b"asked")
            assert await app.executor.stop(attempt, 0)
        assert first.result()
        assert_is_end(await app.over(attempt), -9)

    async def test_a_second_stop_does_not_lengthen_the_grace(self, app: Application) -> None:
        attempt = await app.run(python(STUBBORN))
        await app.written(attempt, b"ready")
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(app.executor.stop(attempt, 0.5))
            await app.written(attempt, b"asked")
            assert await app.executor.stop(attempt, 600)
        assert_is_end(await app.over(attempt), -9)

    async def test_a_second_stop_that_must_not_hasten_does_not(
        self, app: Application, gate: Gate
    ) -> None:
        attempt = await app.run(f"trap 'echo asked' TERM; echo ready; {gate.wait}; {gate.wait}; :")
        await app.written(attempt, b"ready")
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            first = tasks.create_task(app.executor.stop(attempt, 600))
            await app.written(attempt, b"asked")
            second = tasks.create_task(app.executor.stop(attempt, 0, may_hasten=False))
            await asyncio.wait([second], timeout=0.2)
            assert not second.done()
            gate.open(2)
        assert first.result() and second.result()
        assert_is_end(await app.over(attempt), 0)

    async def test_a_second_stop_goes_on_where_the_first_is_cancelled(
        self, app: Application
    ) -> None:
        attempt = await app.run(python(STUBBORN))
        await app.written(attempt, b"ready")
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            first = tasks.create_task(app.executor.stop(attempt, 600))
            await app.written(attempt, b"asked")
            second = tasks.create_task(app.executor.stop(attempt, 600))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first])
            assert await app.executor.stop(attempt, 0)
        assert second.result()
        assert_is_end(await app.over(attempt), -9)

    async def test_where_nothing_is_left_to_be_stopped_all_are_gone(self, app: Application) -> None:
        attempt = await app.run("exit 3")
        await app.over(attempt)
        assert await app.executor.stop(attempt, 600)

    async def test_stop_tells_that_a_process_has_survived_it(
        self, app: Application, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.patch(monkeypatch, "anodejobs.executors.tree.send", "lambda process, signum: True")
        self.patch(monkeypatch, "anodejobs.executors.endings.KILL_PATIENCE_S", "0.05")
        attempt = await app.run(f"{gate.wait}; exit 3")
        assert not await app.executor.stop(attempt, 0)
        assert lives(attempt.pid)
        gate.open()
        assert_is_end(await app.over(attempt), 3)

    async def test_a_timeout_tells_that_a_process_has_survived_it(
        self, app: Application, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.patch(monkeypatch, "anodejobs.executors.tree.send", "lambda process, signum: True")
        self.patch(monkeypatch, "anodejobs.executors.endings.KILL_PATIENCE_S", "0.05")
        attempt = await app.run(f"{gate.wait}; exit 3", timeout=0.05, stop_grace=0)
        waiting = asyncio.create_task(app.over(attempt))
        async with asyncio.timeout(LIMIT_S):
            assert isinstance(await app.told.get(), StopRequested)
            assert isinstance(await app.told.get(), StopFailed)
        gate.open()
        assert_is_end(await waiting, 3)

    # Signals and usage.

    async def test_a_signal_reaches_every_process(self, app: Application) -> None:
        attempt = await app.run(python(TREE))
        pids = await app.pids(attempt, 2)
        await app.executor.signal(attempt, signal.SIGUSR1)
        for pid in pids:
            await has_gone(pid)
        assert_is_end(await app.over(attempt), -signal.SIGUSR1)

    async def test_usage_counts_every_process(self, app: Application) -> None:
        attempt = await app.run(python(TREE))
        await app.pids(attempt, 2)
        usage = await app.executor.usage(attempt)
        assert usage.processes == 2
        assert usage.memory_bytes > 2 * 1024 * 1024
        await app.executor.stop(attempt, 0)
        assert (await app.executor.usage(attempt)).processes == 0

    async def test_what_another_supervisor_has_taken_on_is_reached_too(
        self, app: Application
    ) -> None:
        other = Application(Processes(), app.folder)
        attempt = await other.run(python(TREE))
        pids = await other.pids(attempt, 2)
        assert (await app.executor.usage(attempt)).processes == 2
        await app.executor.signal(attempt, signal.SIGSTOP)
        assert await app.executor.stop(attempt, LIMIT_S)
        assert not [pid for pid in pids if lives(pid)]
        assert_is_end(await other.over(attempt), -15)
        await other.close()

    # Following.

    async def test_what_a_follower_has_not_read_is_kept_for_it(
        self, app: Application, gate: Gate
    ) -> None:
        code = "import os\nfor i in range(64): os.write(1, b'%06d\\n' % i * 1000)"
        launch = app.launch(f'{gate.wait}; exec {sys.executable} -ISc "{code}"')
        launch = replace(launch, logs=replace(launch.logs, max_bytes=50_000, backups=0))
        attempt = await app.start(launch)
        tail = LogTail(app.folder / "out.txt")
        with app.executor.follow(attempt.token, "stdout", tail, lambda: None):
            await app.executor.held()  # by now it is known that we follow
            gate.open()
            await app.end(attempt)
            read = b"".join(iter(lambda: tail.read(10_000), b""))
        tail.close()
        assert read == b"".join(b"%06d\n" % i * 1000 for i in range(64))

    async def test_a_follower_is_told_at_once_that_there_is_more(
        self, app: Application, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.patch(monkeypatch, "anodejobs.executors.pump._TICK_S", "600.0")
        attempt = await app.run(f"echo 1; {gate.wait}; echo 2; {gate.wait}")
        await app.written(attempt, b"1\n")
        gate.open()
        await app.written(attempt, b"2\n")

    async def test_all_growth_is_told_when_that_is_wanted(
        self, app: Application, gate: Gate
    ) -> None:
        growth: list[tuple[str, str, int]] = []
        all_told = asyncio.Event()

        def grown(job_id: str, stream: str, end: int) -> None:
            growth.append((job_id, stream, end))
            if {("a", "stdout", 5), ("a", "stderr", 4)} <= set(growth):
                all_told.set()

        app.executor.report_growth(grown)
        await app.run(f"echo four; echo 123 >&2; {gate.wait}")
        async with asyncio.timeout(LIMIT_S):
            await all_told.wait()
        assert all(job_id == "a" for job_id, *_ in growth)

    async def test_no_growth_is_told_when_it_is_not_wanted_any_more(
        self, app: Application, gate: Gate
    ) -> None:
        told = asyncio.Event()
        app.executor.report_growth(lambda *growth: told.set())
        attempt = await app.run(f"echo 1; {gate.wait}; echo 2")
        async with asyncio.timeout(LIMIT_S):
            await told.wait()
        app.executor.report_growth(None)
        await app.executor.held()  # by now that is known
        told.clear()
        gate.open()
        await app.over(attempt)
        assert not told.is_set()

    # Closing.

    async def test_nothing_is_put_off_once_it_winds_down(
        self, app: Application, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(looks, "_LOOK_EVERY_S", 600.0)
        await app.executor.usage(await app.run("exit 0"))  # a look, so that the next may wait
        attempt = await app.run(python(LEAVER))
        app.executor.wind_down()
        await app.over(attempt)

    async def test_to_close_it_again_changes_nothing(self, app: Application) -> None:
        await app.over(await app.run("exit 0"))
        await app.executor.close()
        await app.executor.close()

    async def test_once_closed_it_starts_nothing(self, app: Application) -> None:
        await app.executor.close()
        with pytest.raises(ExecutorError):
            await app.executor.start(app.launch("echo > started"), app.attempt(), 1)
        assert not (app.folder / "started").exists()

    async def test_what_runs_when_it_closes_runs_on_where_it_outlives_its_application(
        self, app: Application, gate: Gate
    ) -> None:
        attempt = await app.run(f"{gate.wait}; exec sleep 600")
        await app.executor.close()
        assert lives(attempt.pid) is app.executor.outlives_host
        other = Processes()
        assert await other.stop(attempt, 0)
        await other.close()


class DurableExecutorContract(ExecutorContract):
    """What an executor keeps to that outlives its applications."""

    @pytest.fixture
    async def next_app(self, tmp_path: Path) -> AsyncIterator[Application]:
        """The next application on the directory, or another one: it is opened by the test."""
        app = Application(self.make_executor(tmp_path), tmp_path)
        yield app
        await app.close()

    async def test_the_same_start_asked_for_again_starts_nothing_and_is_answered_the_same(
        self, app: Application, gate: Gate
    ) -> None:
        launch, attempt = app.launch(f"echo x >> starts; {gate.wait}"), app.attempt()
        answers = await asyncio.gather(*(app.executor.start(launch, attempt, 1) for _ in "123"))
        answers.append(await app.executor.start(launch, attempt, 1))
        assert isinstance(answers[0], Started)
        assert all(answer == answers[0] for answer in answers)
        gate.open()
        await app.over(attempt)
        assert (app.folder / "starts").read_text() == "x\n"

    async def test_a_start_that_was_refused_is_refused_again(self, app: Application) -> None:
        launch, attempt = app.launch([str(app.folder / "program")]), app.attempt()
        first = await app.executor.start(launch, attempt, 1)
        (app.folder / "program").symlink_to("/bin/true")
        assert await app.executor.start(launch, attempt, 1) == first

    async def test_a_start_that_is_over_is_not_repeated(self, app: Application) -> None:
        launch, attempt = app.launch("echo x >> starts"), app.attempt()
        await app.executor.start(launch, attempt, 1)
        await app.over(attempt)
        await gone(app.executor.held)
        assert isinstance(await app.executor.start(launch, attempt, 1), Lost)
        assert (app.folder / "starts").read_text() == "x\n"

    async def test_another_application_may_ask_for_the_same_start(
        self, app: Application, next_app: Application, gate: Gate
    ) -> None:
        launch, attempt = app.launch(f"echo x >> starts; {gate.wait}"), app.attempt()
        started = await app.executor.start(launch, attempt, 1)
        async with next_app:
            assert await next_app.executor.start(launch, attempt, 1) == started
        gate.open()
        await app.over(attempt)
        assert (app.folder / "starts").read_text() == "x\n"

    async def test_an_end_that_no_application_saw_is_told_to_the_next_one(
        self, app: Application, next_app: Application, gate: Gate
    ) -> None:
        attempt = await app.run(f"{gate.wait}; echo last words; exit 3", leftovers="leave")
        await app.close()
        gate.open()
        await has_gone(attempt.pid)
        async with next_app:
            async with asyncio.timeout(LIMIT_S):
                assert await next_app.inherited.get() == ("a", attempt.token)
            end = await next_app.over(attempt)
            assert isinstance(end, Exited)
            assert (end.exit_code, end.evidence) in {(3, "recorded"), (3, "observed")}
            assert (app.folder / "out.txt").read_bytes() == b"last words\n"

    async def test_what_runs_when_its_application_goes_is_another_ones_to_be_waited_for(
        self, app: Application, next_app: Application, gate: Gate
    ) -> None:
        attempt = await app.run(f"{gate.wait}; exit 3")
        async with next_app:
            await app.close()
            async with asyncio.timeout(LIMIT_S):
                await next_app.departed.wait()
            gate.open()
            async with asyncio.timeout(LIMIT_S):
                assert await next_app.inherited.get() == ("a", attempt.token)
            assert_is_end(await next_app.over(attempt), 3)

    async def test_what_it_holds_can_be_adopted_by_another_application(
        self, app: Application, next_app: Application, gate: Gate
    ) -> None:
        attempt = await app.run(f"{gate.wait}; exit 3")
        await app.close()
        async with next_app:
            assert await next_app.executor.held() == {attempt.token}
            adopted = await next_app.executor.adopt(app.launch("true"), attempt)
            assert isinstance(adopted, Adopted)
            assert adopted.attempt == attempt
            gate.open()
            assert_is_end(await next_app.over(attempt), 3)

    async def test_what_is_written_while_there_is_no_application_is_in_the_logs(
        self, app: Application, gate: Gate
    ) -> None:
        code = "import os\nfor i in range(64): os.write(1, b'x' * 65536)"
        attempt = await app.run(f'{gate.wait}; {sys.executable} -ISc "{code}"')
        await app.close()
        gate.open()
        await has_gone(attempt.pid)  # which it could not if nobody read its pipe
        async with Application(self.make_executor(app.folder), app.folder) as next_app:
            await next_app.over(attempt)
        assert (app.folder / "out.txt").stat().st_size == 64 * 65536

    async def test_an_end_that_is_on_record_is_not_told_again(
        self, app: Application, next_app: Application, gate: Gate
    ) -> None:
        await app.over(await app.run("exit 3"))
        await app.run(gate.wait)  # so that it does not leave in between
        async with next_app:
            await next_app.executor.held()
            assert next_app.inherited.empty()

    async def test_its_supervisor_is_the_same_for_every_application(
        self, app: Application, next_app: Application, gate: Gate
    ) -> None:
        await app.run(gate.wait)
        async with next_app:
            assert next_app.executor.supervisor == app.executor.supervisor
            await app.close()
            assert next_app.executor.is_alive(app.executor.supervisor)
            await next_app.executor.stop(app._attempts[0], 0)


class TestProcesses(ExecutorContract):
    def make_executor(self, folder: Path) -> Executor:
        return Processes()

    @pytest.mark.parametrize("fields", [{}, {"earlier": 1}])
    @pytest.mark.parametrize("by", ["the C library", "asyncio"])
    async def test_what_is_being_started_when_it_closes_does_not_go_on(
        self, app: Application, monkeypatch: pytest.MonkeyPatch, by: str, fields: dict[str, int]
    ) -> None:
        """Nothing can have been started, says the error."""
        if by == "asyncio":
            monkeypatch.setattr(processes, "is_possible", lambda: False)
        launch = app.launch("exec sleep 600", **fields)
        starting = asyncio.create_task(app.executor.start(launch, app.attempt(), 1))
        await asyncio.sleep(0)  # it waits for a thread now, or for asyncio
        await app.executor.close()
        with pytest.raises(ExecutorError):
            await starting

    async def test_closing_that_is_cancelled_lets_go_of_everything(self, tmp_path: Path) -> None:
        app = Application(Processes(), tmp_path)
        attempt = await app.run("exec sleep 600")
        closing = asyncio.create_task(app.executor.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not app.executor.is_alive(app.executor.supervisor)
        other = Processes()
        assert await other.stop(attempt, 0)
        await other.close()
        await asyncio.to_thread(kill_and_reap, attempt.pid or 0)

    async def test_who_closes_it_while_it_is_being_closed_waits_too(
        self, app: Application, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        close, may_go = LogPump.close, asyncio.Event()

        async def close_late(pump: LogPump) -> None:
            await may_go.wait()
            await close(pump)

        monkeypatch.setattr(LogPump, "close", close_late)
        await app.over(await app.run("exit 0"))
        closings = [asyncio.create_task(app.executor.close()) for _ in range(2)]
        done, _ = await asyncio.wait(closings, timeout=0.1)
        assert not done
        may_go.set()
        await asyncio.gather(*closings)


class TestInline(ExecutorContract):
    def make_executor(self, folder: Path) -> Executor:
        return Inline(folder / "shim")


class TestShim(DurableExecutorContract):
    def make_executor(self, folder: Path) -> Executor:
        return Shim(folder / "shim")

    def patch(self, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
        module, _, attribute = name.rpartition(".")
        patch = f"import {module} as m;m.{attribute}={source};main()"
        bootstrap = shim_start._BOOTSTRAP.removesuffix("main()") + patch
        monkeypatch.setattr(shim_start, "_BOOTSTRAP", bootstrap)

    async def test_no_shim_is_started_for_what_is_asked_for_when_it_closes(
        self, app: Application
    ) -> None:
        asking = asyncio.create_task(app.executor.held())
        await asyncio.sleep(0)  # it looks for a shim now
        await app.executor.close()
        with pytest.raises(ExecutorError):
            await asking
        assert not (app.folder / "shim" / "lock").exists()

    async def test_no_connection_is_kept_that_is_made_while_it_closes(
        self, app: Application, tmp_path: Path
    ) -> None:
        async with Application(self.make_executor(tmp_path), tmp_path) as other:
            await app.executor.held()  # there is a shim now
            asking = asyncio.create_task(other.executor.held())
            await asyncio.sleep(0)  # it is about to connect
            await other.executor.close()
            before = descriptors()
            with pytest.raises(ExecutorError):
                await asking
            await asyncio.sleep(0)
            assert descriptors() == before

    async def test_closing_that_is_cancelled_lets_go_of_everything(
        self, app: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shim, "_HOLD_AFTER_S", 0.0)
        other = Application(self.make_executor(tmp_path), tmp_path)
        await other.executor.open(Host(own=other._own, on_inherited=print, on_departure=print))
        attempt = await other.run("exec sleep 600")
        await app.executor.held()  # meanwhile its pidfd is had
        assert any("pidfd" in what for what in descriptors().values())
        closing = asyncio.create_task(other.executor.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not any("pidfd" in what for what in descriptors().values())
        assert await app.executor.stop(attempt, 0)


# What a launch and an attempt are, for every executor.


def test_no_two_tokens_are_alike() -> None:
    assert len({new_token() for _ in range(1000)}) == 1000


def test_a_launch_does_not_show_its_environment() -> None:
    app = Application(Processes(), Path("/"))
    launch = app.launch("true", base_env={"A": "secret"}, envs={"B": "secret"})
    assert "secret" not in repr(launch)


def test_a_launch_survives_being_written_down() -> None:
    app = Application(Processes(), Path("/tmp"))
    logs = LogPlan(stdout="/o", stderr="/e", max_bytes=5, backups=3)
    launch = app.launch(
        ["a", "\udcff\n\0"],
        envs={"A": 'ü"\udcfe'},
        logs=logs,
        timeout=1.5,
        start_grace=0.25,
        leftovers="leave",
        on_host_death="stop",
    )
    written = json.loads(launch.to_text())
    assert Launch.from_json(written, launch.base_env) == launch
    assert "base_env" not in written


def test_a_plan_of_logs_has_a_path_for_each_stream() -> None:
    logs = LogPlan(stdout="/o", stderr="/e")
    assert (logs.path("stdout"), logs.path("stderr")) == (Path("/o"), Path("/e"))


# What the tests above are written with.


INLINE_HOST = """
import asyncio, json, os, sys
from dataclasses import replace
from anodejobs.events import Attempt
from anodejobs.executors.base import Launch, new_token
from anodejobs.executors.processes import Processes
from anodejobs.executors.pump import LogPump

async def main():
    executor = Processes()
    launch = Launch.from_json(json.loads(sys.argv[1]), dict(os.environ))
    attempt = Attempt(token=new_token(), supervisor=executor.supervisor)
    started = await executor.start(launch, attempt, 1)
    print(started.attempt.to_text(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def inline_host(launch: Launch) -> Iterator[tuple[subprocess.Popen[str], Attempt]]:
    """Run an application that has started the launch as its child, and kill it in the end."""
    command = [sys.executable, "-c", INLINE_HOST, launch.to_text()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Attempt.from_json(json.loads(process.stdout.readline()))
        finally:
            process.kill()


def orphaned(launch: Launch) -> Attempt:
    """Return what was started by an application that has been killed."""
    with inline_host(launch) as (_, attempt):
        return attempt


def assert_is_end(end: Exited | Lost, code: int) -> None:
    """Fail unless it is the end with this code."""
    assert isinstance(end, Exited), end
    assert end.exit_code == code


def lives(pid: int | None) -> bool:
    """Return whether the process runs; one that nobody has reaped does not."""
    return pid is not None and tree.start_time(pid) is not None


async def gone(held: Callable[[], Coroutine[Any, Any, set[str]]]) -> None:
    """Return once nothing is held: a look again and again, for what was told may take a while."""
    async with asyncio.timeout(LIMIT_S):
        while await held():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
