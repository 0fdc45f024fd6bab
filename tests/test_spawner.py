"""Programs are started as the system would start them, with what was ordered and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from anodejobs import Jobs, Status
from anodejobs.events import Attempt
from anodejobs.executors import spawner as spawner_module
from anodejobs.executors.base import Launch, LogPlan, new_token
from anodejobs.executors.children import Child, Children
from anodejobs.executors.environment import EnvironmentBlock
from anodejobs.executors.marks import Marking
from anodejobs.executors.processes import Processes
from anodejobs.executors.spawner import Order, Spawner, is_possible, kill_and_reap
from tests.conftest import python

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.skipif(not is_possible(), reason="this C library starts no program in a directory"),
]

LIMIT_S = 60.0
SHOW = 'echo "$0 $1 $A ${HOME-none}"; pwd'
NO_FOLDERS = {"missing": errno.ENOENT, "plain": errno.ENOTDIR}
CODES = {"exit 7": 7, "kill -9 $$": -9, "exit 255": 255}


async def test_a_program_gets_its_arguments_environment_directory_and_session(
    run: Run, tmp_path: Path
) -> None:
    pid, code, text = await run(
        [
            "/bin/sh",
            "-c",
            'echo "$0 $1 $A ${HOME-none}"; pwd; cut -d" " -f1,6 /proc/$$/stat',
            "a",
            "",
        ],
        cwd=tmp_path,
        env={"A": "x y"},
    )
    assert text.splitlines() == ["a  x y none", str(tmp_path), f"{pid} {pid}"]
    assert code == 0


async def test_where_it_marks_a_program_has_the_umask_that_is_ordered(tmp_path: Path) -> None:
    """And where none is, that of this process, which has it again when it is closed."""
    ours = os.umask(0o022)
    marking = Marking()
    spawner, children = Spawner(marking), Children()
    try:
        for ordered, expected in ((0o027, "0027"), (None, "0022"), (0, "0000")):
            out = os.open(tmp_path / expected, os.O_RDWR | os.O_CREAT)
            order = dataclasses.replace(
                sleeping(out), argv=["/bin/sh", "-c", "umask"], token=new_token(), umask=ordered
            )
            assert await children.watch(await spawner.spawn(order)).wait() == 0
            os.close(out)
            assert (tmp_path / expected).read_text() == f"{expected}\n"
    finally:
        await spawner.close()
        children.close()
        marking.close()
        assert os.umask(ours) == 0o022


@pytest.mark.parametrize(
    ("exit_as", "code"), [("exit 7", 7), ("kill -9 $$", -9), ("exit 255", 255)]
)
async def test_the_exit_code_is_the_programs(run: Run, exit_as: str, code: int) -> None:
    assert (await run(["/bin/sh", "-c", exit_as]))[1] == code


async def test_a_program_has_the_three_descriptors_and_no_other(run: Run) -> None:
    fd = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(fd, True)
    _, _, text = await run(["/bin/ls", "/proc/self/fd"])
    os.close(fd)
    assert text.split() == ["0", "1", "2", "3"]  # that is what it reads the directory by


@pytest.mark.parametrize("free", [(0,), (1, 2), (0, 1, 2)])
def test_an_application_without_descriptors_of_its_own_there_starts_programs(
    free: tuple[int, ...], tmp_path: Path
) -> None:
    code = f"""
import asyncio, os
from pathlib import Path
from anodejobs import Jobs, Status
from anodejobs.executors import spawner as spawner_module
from anodejobs.executors.children import Children
from anodejobs.executors.spawner import Order, Spawner
async def main():
    for fd in {free}:
        os.close(fd)
    null = os.open("/dev/null", os.O_RDONLY)
    out = os.open({str(tmp_path / "out")!r}, os.O_WRONLY | os.O_CREAT)
    err = os.open({str(tmp_path / "err")!r}, os.O_WRONLY | os.O_CREAT)
    spawner, children = Spawner(None), Children()
    argv = ["/bin/sh", "-c", "cat; echo out; echo err >&2"]
    pid = await spawner.spawn(Order(
        argv=argv, cwd="/", base_env={{}}, own_env={{}}, stdin=null, stdout=out, stderr=err,
        token="",
    ))
    code = await children.watch(pid).wait()
    await spawner.close()
    children.close()
    os._exit(code)
asyncio.run(main())
"""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [(tmp_path / name).read_text() for name in ("out", "err")] == ["out\n", "err\n"]


class TestRefusals:
    """Each is the system's own, and names what is at fault."""

    @pytest.fixture(autouse=True)
    def files(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("")
        (tmp_path / "odd").write_bytes(b"\x00\x01")
        (tmp_path / "odd").chmod(0o755)
        (tmp_path / "lost").write_text("#!/no/such/interpreter\n")
        (tmp_path / "lost").chmod(0o755)

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("missing", errno.ENOENT),
            ("plain", errno.EACCES),
            (".", errno.EACCES),
            ("plain/x", errno.ENOTDIR),
            ("odd", errno.ENOEXEC),
            ("lost", errno.ENOENT),
            ("", errno.ENOENT),
        ],
    )
    async def test_of_a_program(self, run: Run, tmp_path: Path, name: str, code: int) -> None:
        path = f"{tmp_path}/{name}" if name else ""
        assert await refusal(run([path])) == (code, path)

    @pytest.mark.parametrize(
        ("name", "code"), [("missing", errno.ENOENT), ("plain", errno.ENOTDIR)]
    )
    async def test_of_a_directory(self, run: Run, tmp_path: Path, name: str, code: int) -> None:
        place = tmp_path / name
        assert await refusal(run(["/bin/true"], cwd=place)) == (code, str(place))

    async def test_of_arguments(self, run: Run) -> None:
        code, _ = await refusal(run(["/bin/true", "x" * 3_000_000]))
        assert code == errno.E2BIG
        with pytest.raises(ValueError, match="null byte"):
            await run(["/bin/true", "a\0b"])

    async def test_leaves_no_child(self, run: Run) -> None:
        with pytest.raises(FileNotFoundError):
            await run(["/no/such/program"])
        with pytest.raises(ChildProcessError):
            reap(-1)


class TestSearch:
    """A name without a slash is looked for as ``execvpe`` does."""

    @pytest.fixture(autouse=True)
    def folders(self, tmp_path: Path) -> None:
        for name in ("one", "two", "forbidden", "folder"):
            (tmp_path / name).mkdir()
        for name in ("one", "two", "forbidden"):
            (tmp_path / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
        for name in ("one", "two"):
            (tmp_path / name / "tool").chmod(0o755)
        (tmp_path / "folder" / "tool").mkdir()

    @pytest.mark.parametrize(
        ("path", "found"),
        [
            ("{0}/one:{0}/two", "one"),
            ("{0}/two:{0}/one", "two"),
            ("/no/such/folder:{0}/folder:{0}/forbidden:{0}/two", "two"),
            ("two", "two"),
            ("/bin:./one", "one"),
        ],
    )
    async def test_takes_the_first_that_can_be_executed(
        self, run: Run, tmp_path: Path, path: str, found: str
    ) -> None:
        env = {"PATH": path.format(tmp_path)}
        assert (await run(["tool"], cwd=tmp_path, env=env))[2].strip() == found

    async def test_an_empty_folder_is_where_the_program_runs(
        self, run: Run, tmp_path: Path
    ) -> None:
        assert (await run(["tool"], cwd=tmp_path / "one", env={"PATH": ":/bin"}))[2] == "one\n"

    @pytest.mark.parametrize(
        ("path", "code"),
        [("{0}/forbidden:/bin", errno.EACCES), ("/bin:/usr/bin", errno.ENOENT)],
    )
    async def test_says_why_there_is_none(
        self, run: Run, tmp_path: Path, path: str, code: int
    ) -> None:
        env = {"PATH": path.format(tmp_path)}
        assert await refusal(run(["tool"], env=env)) == (code, "tool")

    async def test_without_a_path_it_is_the_systems(self, run: Run) -> None:
        assert (await run(["true"], env={}))[1] == 0


async def test_many_ordered_at_once_are_all_started(run: Run) -> None:
    async with asyncio.timeout(LIMIT_S):
        ran = await asyncio.gather(*(run(["/bin/sh", "-c", f"exit {n % 7}"]) for n in range(100)))
    assert [code for _, code, _ in ran] == [n % 7 for n in range(100)]


async def test_what_is_under_way_when_it_is_cancelled_is_killed_and_reaped(
    spawner: Spawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there, may_go = threading.Event(), threading.Event()
    spawned = Spawner._spawned
    pids: list[int] = []

    def spawned_late(self: Spawner, order: Order, block: EnvironmentBlock) -> int:
        pids.append(spawned(self, order, block))
        is_there.set()
        may_go.wait(LIMIT_S)
        return pids[0]

    monkeypatch.setattr(Spawner, "_spawned", spawned_late)
    fd = os.open(os.devnull, os.O_RDWR)
    task = asyncio.create_task(spawner.spawn(sleeping(fd)))
    await asyncio.to_thread(is_there.wait, LIMIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.kill(pids[0], 0)
    may_go.set()
    await spawner.close()
    os.close(fd)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_what_is_under_way_when_the_loop_is_closed_is_killed_and_reaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_go, has_ended, pids = threading.Event(), threading.Semaphore(0), list[int]()
    spawned, many = Spawner._spawned, 100  # more than are told together

    def spawned_late(self: Spawner, order: Order, block: EnvironmentBlock) -> int:
        may_go.wait(LIMIT_S)
        pid = spawned(self, order, block)
        pids.append(pid)
        return pid

    def ended(pid: int) -> None:
        kill_and_reap(pid)
        has_ended.release()

    monkeypatch.setattr(Spawner, "_spawned", spawned_late)
    monkeypatch.setattr(spawner_module, "kill_and_reap", ended)

    async def main() -> Spawner:
        spawner = Spawner(None)
        spawns = [asyncio.create_task(spawner.spawn(sleeping(0))) for _ in range(many)]
        await asyncio.sleep(0)
        for spawn in spawns:
            spawn.cancel()
        await asyncio.wait(spawns)
        return spawner

    spawner = asyncio.run(main())
    may_go.set()
    assert all(has_ended.acquire(timeout=LIMIT_S) for _ in range(many))
    for _ in spawner._threads:
        spawner._orders.put(None)
    for thread in spawner._threads:
        thread.join(LIMIT_S)
    assert len(pids) == many
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_closing_does_not_wait_for_a_start_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is killed and reaped when it is there."""
    spawner, may_go, pids = Spawner(None), threading.Event(), list[int]()
    has_ended = asyncio.Event()

    def ended(pid: int) -> None:
        pids.append(pid)
        kill_and_reap(pid)
        has_ended.set()

    monkeypatch.setattr(spawner_module, "_CLOSING_S", 0.01)
    monkeypatch.setattr(spawner_module, "kill_and_reap", ended)
    fd = os.open(os.devnull, os.O_RDWR)
    hanging = dataclasses.replace(sleeping(fd), about_to=lambda: wait_for(may_go))
    starting = asyncio.create_task(spawner.spawn(hanging))
    await asyncio.sleep(0)
    starting.cancel()
    async with asyncio.timeout(LIMIT_S):
        await spawner.close()
        assert "a start took 0.01 s: it is not waited for" in caplog.text
        may_go.set()
        await has_ended.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    os.close(fd)


async def test_of_what_is_given_up_no_stranger_gets_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawner_module, "kill_and_reap", reap)  # as if it came too late
    may_go, processes = threading.Event(), Processes()
    launch = Launch(
        job_id="a",
        argv=("/bin/sh", "-c", "echo to whom?"),
        cwd="/",
        base_env={},
        envs={},
        logs=LogPlan(stdout=str(tmp_path / "out"), stderr=str(tmp_path / "errors")),
        stop_grace=0,
    )
    attempt = Attempt(token=new_token(), supervisor=processes.supervisor)
    starting = asyncio.create_task(
        processes.start(launch, attempt, 1, about_to=lambda: wait_for(may_go))
    )
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    # Each has the least number that is free.
    fds = [os.open(tmp_path / f"{n}", os.O_RDWR | os.O_CREAT) for n in range(8)]
    may_go.set()
    await processes.close()
    assert [os.fstat(fd).st_size for fd in fds] == [0] * 8
    for fd in fds:
        os.close(fd)


async def test_what_is_given_up_and_reaped_by_somebody_else_keeps_nobody_waiting() -> None:
    spawner, may_go = Spawner(None), threading.Event()
    fd = os.open(os.devnull, os.O_RDWR)
    orders = [
        dataclasses.replace(sleeping(fd), about_to=lambda: wait_for(may_go)) for _ in range(20)
    ]
    spawns = [asyncio.create_task(spawner.spawn(order)) for order in orders]
    await asyncio.sleep(0)
    for spawn in spawns:
        spawn.cancel()
    await asyncio.wait(spawns)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    try:
        may_go.set()
        async with asyncio.timeout(LIMIT_S):
            await spawner.close()
    finally:
        signal.signal(signal.SIGCHLD, before)
        os.close(fd)


async def test_a_start_that_hangs_does_not_hold_up_the_one_beside_it(spawner: Spawner) -> None:
    fd, may_go = os.open(os.devnull, os.O_RDWR), threading.Event()
    hanging = dataclasses.replace(sleeping(fd), about_to=lambda: wait_for(may_go))
    first = asyncio.create_task(spawner.spawn(hanging))
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(LIMIT_S):
            kill_and_reap(await spawner.spawn(sleeping(fd)))
        assert not first.done()
    finally:
        may_go.set()
        kill_and_reap(await first)
        os.close(fd)


class _Marks(Marking):
    """Tells what bears a mark, in its order, and marks nothing."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def mark(self, token: str) -> None:
        self.told.append(f"mark {token}")

    def unmark(self) -> None:
        pass


async def test_what_is_marked_is_started_one_after_the_other() -> None:
    marking = _Marks()
    spawner = Spawner(marking)
    fd = os.open(os.devnull, os.O_RDWR)
    tokens = [f"{n}" for n in range(8)]
    try:
        pids = await asyncio.gather(
            *(
                spawner.spawn(
                    dataclasses.replace(
                        sleeping(fd),
                        token=token,
                        about_to=partial(marking.told.append, f"start {token}"),
                    )
                )
                for token in tokens
            )
        )
    finally:
        await spawner.close()
        os.close(fd)
    for pid in pids:
        kill_and_reap(pid)
    assert marking.told == [f"{what} {token}" for token in tokens for what in ("mark", "start")]


async def test_where_there_can_be_no_second_thread_one_does_it_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def start_first(self: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_first)
    spawner = Spawner(None)
    fd = os.open(os.devnull, os.O_RDWR)
    try:
        for pid in await asyncio.gather(*(spawner.spawn(sleeping(fd)) for _ in range(3))):
            kill_and_reap(pid)
    finally:
        await spawner.close()
        os.close(fd)


@pytest.mark.parametrize("name", ["anodejobs spawner", "anodejobs-pump"])
async def test_where_there_can_be_no_thread_nothing_is_started_and_later_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start = threading.Thread.start

    def start_others(self: threading.Thread) -> None:
        if self.name == name:
            raise RuntimeError("can't start new thread")
        start(self)

    async with Jobs(tmp_path / "jobs", executor="inline") as jobs:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start_others)
            record = await jobs.run(f"touch {tmp_path}/started", "a")
        assert record.status is Status.failed_start
        assert "can't start new thread" in (record.error or "")
        async with asyncio.timeout(LIMIT_S):
            await jobs.run("echo hello", "b")
        assert (await jobs.wait("b", timeout=LIMIT_S)).exit_code == 0
        assert (await jobs.job_logs("b"))[0] == "hello\n"
        assert not (tmp_path / "started").exists()


async def test_what_goes_wrong_with_one_start_is_told_and_keeps_no_other_from_being_made(
    spawner: Spawner, run: Run
) -> None:
    def about_to() -> None:
        raise ZeroDivisionError

    fd = os.open(os.devnull, os.O_RDWR)
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ZeroDivisionError):
            await spawner.spawn(dataclasses.replace(sleeping(fd), about_to=about_to))
        assert (await run(["/bin/true"]))[1] == 0
    os.close(fd)


@pytest.mark.parametrize("of", ["pidfd", "epoll"])
async def test_a_job_for_which_no_descriptor_is_left_fails_to_start_and_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    pids: list[int] = []
    watch = Children.watch

    class Full:
        def register(self, *args: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_pidfd(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def watch_in_need(self: Children, pid: int) -> Child:
        pids.append(pid)
        with monkeypatch.context() as need:
            if of == "pidfd":
                need.setattr(os, "pidfd_open", no_pidfd)
            else:
                need.setattr(self, "_epoll", Full())
            return watch(self, pid)

    async with Jobs(tmp_path / "jobs", executor="inline") as jobs:
        with monkeypatch.context() as patch:
            patch.setattr(Children, "watch", watch_in_need)
            record = await jobs.run(["/bin/sleep", "600"], "a")
        assert record.status is Status.failed_start
        assert os.strerror(errno.EMFILE if of == "pidfd" else errno.ENOSPC) in (record.error or "")
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)
        await jobs.run("exit 3", "b")
        assert (await jobs.wait("b", timeout=LIMIT_S)).exit_code == 3


async def test_where_somebody_has_reaped_the_child_the_kernel_is_asked_or_nobody_knows(
    children: Children,
) -> None:
    pid, writer = reading("exit 9")
    child = children.watch(pid)
    assert child.is_alive
    os.close(writer)
    reap(pid)
    async with asyncio.timeout(LIMIT_S):
        assert await child.wait() in (9, None)
    assert not child.is_alive


async def test_nobody_knows_how_a_child_ended_that_is_gone_when_it_is_to_be_watched(
    children: Children,
) -> None:
    pid, writer = reading("exit 0")
    os.close(writer)
    reap(pid)
    child = children.watch(pid)
    assert not child.is_alive
    assert await child.wait() is None


async def test_a_stranger_that_has_the_pid_of_a_child_that_is_gone_is_not_watched(
    children: Children,
) -> None:
    child = children.watch(os.getppid())
    assert not child.is_alive
    assert await child.wait() is None


async def test_a_child_that_has_stopped_for_us_to_trace_it_has_not_ended(
    children: Children,
) -> None:
    """As a program does that keeps debuggers away; its parent is told of each stop."""
    pid = traced()
    child = children.watch(pid)
    assert child.is_alive
    child.kill()
    async with asyncio.timeout(LIMIT_S):
        assert await child.wait() == -9


def test_a_child_that_has_stopped_for_us_to_trace_it_can_be_ended() -> None:
    pid = traced()
    kill_and_reap(pid)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_what_a_job_wrote_is_in_its_log_though_somebody_has_reaped_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Children.watch

    def watch_late(self: Children, pid: int) -> Child:
        reap(pid)
        return watch(self, pid)

    monkeypatch.setattr(Children, "watch", watch_late)
    async with Jobs(tmp_path / "jobs", executor="inline") as jobs:
        await jobs.run("echo said; echo alas >&2; exit 3", "a")
        record = await jobs.wait("a", timeout=LIMIT_S)
        assert (record.status, record.exit_code) == (Status.lost, None)
        assert await jobs.job_logs("a") == ("said\n", "alas\n")


async def test_a_cancelled_wait_takes_nothing_from_the_next(children: Children) -> None:
    pid, writer = reading("exit 3")
    child = children.watch(pid)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await child.wait()
    os.close(writer)
    async with asyncio.timeout(LIMIT_S):
        assert await asyncio.gather(child.wait(), child.wait()) == [3, 3]
    assert await child.wait() == 3


# What the tests above are written with.

Run = Callable[..., Awaitable[tuple[int, int | None, str]]]


@pytest.fixture
async def spawner() -> AsyncIterator[Spawner]:
    spawner = Spawner(None)
    yield spawner
    await spawner.close()


@pytest.fixture
async def children() -> AsyncIterator[Children]:
    children = Children()
    yield children
    children.close()


@pytest.fixture
def run(spawner: Spawner, children: Children, tmp_path: Path) -> Run:
    """Give what runs a program to its end: its pid, its exit code and what it wrote."""
    base: dict[str, str] = {}

    async def ran(
        argv: list[str], cwd: Path = Path("/"), env: dict[str, str] | None = None
    ) -> tuple[int, int | None, str]:
        path = tmp_path / os.urandom(8).hex()
        null, out = os.open(os.devnull, os.O_RDONLY), os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            pid = await spawner.spawn(
                Order(
                    argv=argv,
                    cwd=str(cwd),
                    base_env=base,
                    own_env=env or {},
                    stdin=null,
                    stdout=out,
                    stderr=os.dup(out),
                    token="",
                )
            )
        finally:
            os.close(null)
        code = await children.watch(pid).wait()
        return pid, code, path.read_text()

    return ran


def sleeping(fd: int) -> Order:
    """Return the order of a program that goes on until it is killed."""
    return Order(
        argv=["/bin/sleep", "600"],
        cwd="/",
        base_env={},
        own_env={},
        stdin=fd,
        stdout=os.dup(fd),
        stderr=os.dup(fd),
        token="",
    )


def wait_for(event: threading.Event) -> None:
    event.wait(LIMIT_S)


async def refusal(running: Awaitable[object]) -> tuple[int | None, str]:
    """Return what the system says, and about what."""
    try:
        await running
    except OSError as error:
        return error.errno, error.filename
    raise AssertionError("it ran")


def reading(then: str) -> tuple[int, int]:
    """Return the pid of a shell that waits for the end of its input, and the input."""
    reader, writer = os.pipe()
    stdin = [(os.POSIX_SPAWN_DUP2, reader, 0)]
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"read _; {then}"], {}, file_actions=stdin)
    os.close(reader)
    return pid, writer


def traced() -> int:
    """Return the pid of a child that has asked us to trace it and has stopped."""
    code = "import ctypes, os; ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), 19)"
    pid = os.posix_spawn(sys.executable, python(code), {})
    seen = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert seen is not None
    if seen.si_code != os.CLD_TRAPPED:
        os.kill(pid, signal.SIGKILL)
        reap(pid)
        pytest.skip("nothing can be traced here")
    return pid


def reap(pid: int) -> None:
    os.waitpid(pid, 0)
