"""The shim itself: how it starts, whom it talks to, what it is made of, and when it leaves."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

import anodejobs
from anodejobs import ExecutorError, JobRecord, Jobs, Status, doctor, doctor_trials
from anodejobs.events import Attempt, StartFailed
from anodejobs.executors import shim, shim_start, supervisors, tree
from anodejobs.executors.base import Host, Launch, LogPlan, new_token
from anodejobs.executors.marks import read_tag
from anodejobs.executors.processes import Processes
from anodejobs.interpreter import interpreter
from anodejobs.shim import protocol
from anodejobs.shim import server as servers
from anodejobs.shim.clients import Client
from anodejobs.shim.journal import load
from anodejobs.shim.lives import Life
from anodejobs.shim.peers import is_friend, peer
from anodejobs.shim.protocol import REQUESTS, VERSION, Message, encoded, start_request
from anodejobs.shim.server import Server
from tests.conftest import STANDARD, has_died, python
from tests.programs import Gate, application, ends_well

pytestmark = pytest.mark.smoke

LIMIT_S = 60.0


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    async with opened(tmp_path) as jobs:
        yield jobs


# One for a directory.


async def test_applications_that_come_at_once_share_one_shim(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two, opened(tmp_path) as three:
        records = await asyncio.gather(
            *(jobs.run("exec sleep 600", f"job-{n}") for n, jobs in enumerate((one, two, three)))
        )
        assert {parent_of(record) for record in records} == {shim_of(tmp_path)}


async def test_of_shims_that_are_started_at_once_one_stays(tmp_path: Path, gate: Gate) -> None:
    folder = tmp_path / "job_db" / "shim"
    async with opened(tmp_path) as jobs:
        await jobs.run(gate.wait, "a")
        words = await asyncio.gather(*(shim_start.start_shim(folder, shim.LINGER_S) for _ in "123"))
        assert words == ["taken"] * 3
        assert parent_of(await status(jobs, "a")) == shim_of(tmp_path)


async def test_the_next_shim_may_begin_where_the_last_one_left_its_files(tmp_path: Path) -> None:
    for number in range(2):
        async with opened(tmp_path) as jobs:
            assert (await ran(jobs, "exit 3", f"job-{number}")).exit_code == 3
            pid = shim_of(tmp_path)
        assert has_died(pid, LIMIT_S)
        assert (tmp_path / "job_db" / "shim" / "socket").exists()


async def test_a_socket_that_was_removed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_shims(monkeypatch, "import anodejobs.shim.server as s; s._SWEEP_EVERY_S = 0.05")
    async with opened(tmp_path) as jobs:
        await ran(jobs, "true", "a")
        pid = shim_of(tmp_path)
        socket_of(tmp_path).unlink()
        async with opened(tmp_path) as other:
            assert (await ran(other, "exit 3", "b")).exit_code == 3
        assert shim_of(tmp_path) == pid
        assert stat.S_IMODE(socket_of(tmp_path).stat().st_mode) == 0o600


async def test_a_shim_that_cannot_look_for_orphans_goes_on(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no descriptor left, for example, which more jobs than the limit allows may cause."""
    in_shims(
        monkeypatch,
        """
        import anodejobs.shim.server as server
        server._SWEEP_EVERY_S = 0.01
        def sweep(self):
            open("swept", "w").close()
            raise OSError(24, "Too many open files")
        server.OrphanReaper.sweep = sweep
        """,
    )
    await jobs.run("until [ -e shim/swept ]; do sleep 0.01; done", "a", cwd=tmp_path / "job_db")
    pid = shim_of(tmp_path)
    assert (await jobs.wait("a", timeout=LIMIT_S)).exit_code == 0
    assert (await ran(jobs, "exit 3", "b")).exit_code == 3
    assert shim_of(tmp_path) == pid
    assert "Too many open files" in (tmp_path / "job_db/shim/log").read_text()


async def test_a_job_is_stopped_though_the_shim_can_start_no_thread(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What forks without end uses up the limit on processes, which is one on threads too."""
    in_shims(
        monkeypatch,
        """
        import threading
        start = threading.Thread.start
        def refused(thread):
            if thread.name.startswith("asyncio_"):
                raise RuntimeError("can't start new thread")
            start(thread)
        threading.Thread.start = refused
        """,
    )
    await jobs.run("sleep 600 & sleep 600", "a")
    stopped = await jobs.stop("a")
    assert stopped is not None and (stopped.status, stopped.error) == (Status.stopped, None)
    assert (await ran(jobs, "exit 3", "b")).exit_code == 3


async def test_the_shim_of_a_copy_leaves_the_jobs_of_the_original_alone(
    tmp_path: Path, jobs: Jobs, gate: Gate
) -> None:
    record = await jobs.run(f"{gate.wait}; echo mine", "a")
    copy = tmp_path / "copy"
    copy.mkdir()
    copied = ["cp", "-a", tmp_path / "job_db", copy]
    await asyncio.to_thread(subprocess.run, copied, check=True)
    async with opened(copy) as other:
        await ran(other, "true", "b")
        async with connected(copy) as client:
            await client.hello()
            assert tree.read_token(record.last_pid) not in (await client.ask("held"))["held"]
        gate.open()
        assert (await jobs.wait("a")).evidence == "observed"
        assert await jobs.job_logs("a") == ("mine\n", "")


@pytest.fixture
async def folder(tmp_path: Path, jobs: Jobs) -> Path:
    """The folder of a shim that is at work."""
    await ran(jobs, "true", "a")
    return tmp_path / "job_db" / "shim"


@pytest.fixture
def copy(tmp_path: Path, folder: Path) -> Path:
    """A copy of it."""
    ignore = shutil.ignore_patterns("socket")
    return Path(shutil.copytree(folder, tmp_path / "copy", ignore=ignore))


@pytest.fixture
def link(tmp_path: Path, folder: Path) -> Path:
    """Another path to it."""
    (tmp_path / "link").symlink_to(tmp_path)
    return tmp_path / "link" / folder.relative_to(tmp_path)


async def test_a_shim_is_elsewhere_only_where_it_holds_another_lock(
    folder: Path, copy: Path, link: Path
) -> None:
    name = f"shim:{(folder / 'id').read_text()}"
    assert supervisors.is_elsewhere(f"{name}:{folder}", copy)
    assert not supervisors.is_elsewhere(f"{name}:{folder}", folder)
    assert not supervisors.is_elsewhere(f"{name}:{link}", folder)
    assert not supervisors.is_elsewhere(f"{name}:{copy}", folder)  # nobody is there
    assert not supervisors.is_elsewhere(f"shim:moved:{folder}", copy)  # another one is there now
    assert not supervisors.is_elsewhere("shim:", folder)
    assert not supervisors.is_elsewhere("boot:1:2.0:x", folder)


async def test_a_shim_is_known_by_the_identity_of_its_folder_and_not_by_the_path(
    tmp_path: Path, folder: Path, copy: Path, link: Path
) -> None:
    gone = tmp_path / "gone"
    name = (folder / "id").read_text()
    for path in (folder, link, gone, copy):
        assert supervisors.is_shim_of(f"shim:{name}:{path}", folder, name)
        assert not supervisors.is_shim_of(f"shim:y:{path}", folder, name)
    assert not supervisors.is_shim_of(f"shim:{name}:{folder}", copy, name)  # it is at work there
    assert not supervisors.is_shim_of("boot:1:2.0:x", folder, name)


async def test_an_identity_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            supervisors.identity(tmp_path / "id")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    assert supervisors.identity(tmp_path / "id") == supervisors.identity(tmp_path / "id")


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EOPNOTSUPP])
async def test_without_hard_links_jobs_run_and_the_folder_has_one_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    monkeypatch.setattr(os, "link", refusing(refusal))
    async with opened(tmp_path) as jobs:
        await ran(jobs, "echo out", "a")
    folder = tmp_path / "job_db" / "shim"
    assert supervisors.identity(folder / "id") == (folder / "id").read_text()
    assert not list(folder.glob("id-*"))


async def test_without_hard_links_the_first_of_two_identities_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def locked_late(fd: int, operation: int) -> None:
        (tmp_path / "id").write_text("another's")
        flock(fd, operation)

    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(fcntl, "flock", locked_late)
    assert supervisors.identity(tmp_path / "id") == "another's"
    assert [path.name for path in tmp_path.iterdir()] == ["id"]


async def test_without_hard_links_an_identity_is_named_while_nobody_else_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def rename_alone(old: Path, new: Path) -> None:
        fd = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
        rename(old, new)

    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(os, "rename", rename_alone)
    assert supervisors.identity(tmp_path / "id") == (tmp_path / "id").read_text()


async def test_who_only_reads_starts_no_shim(tmp_path: Path) -> None:
    async with opened(tmp_path) as jobs:
        await ran(jobs, "echo out", "a")
        pid = shim_of(tmp_path)
    assert has_died(pid, LIMIT_S)
    async with opened(tmp_path) as jobs:
        assert list(await jobs.list_status()) == ["a"]
        assert await jobs.job_logs("a") == ("out\n", "")
        assert await jobs.history("a")
        assert (await jobs.stop("a")) == await jobs.wait("a")
        assert not supervisors.is_locked(tmp_path / "job_db" / "shim" / "lock")


async def test_it_leaves_when_it_has_neither_jobs_nor_applications(tmp_path: Path) -> None:
    async with opened(tmp_path) as jobs:
        await jobs.run("exec sleep 600", "a")
        pid = shim_of(tmp_path)
        await jobs.stop("a")
        assert not has_died(pid, 4 * shim.LINGER_S)
    assert has_died(pid, LIMIT_S)


# Whom it talks to.


async def test_only_its_user_can_reach_it_or_read_what_it_writes(
    umask: None, tmp_path: Path, jobs: Jobs
) -> None:
    await ran(jobs, "exit 3", "a")
    folder = tmp_path / "job_db" / "shim"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert modes.keys() == {"shim", "socket", "lock", "journal", "log", "id"}
    assert modes.pop("shim") == 0o700
    assert set(modes.values()) == {0o600}


def test_a_user_is_a_friend_who_is_ourselves_or_may_do_everything() -> None:
    stranger = os.geteuid() + 12345
    assert [is_friend(uid) for uid in (os.geteuid(), 0, None)] == [True] * 3
    assert not is_friend(stranger)


def test_the_peer_of_a_socket_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer(one) == (os.getpid(), os.geteuid())


async def test_a_start_that_failed_is_forgotten_with_the_application_that_heard_of_it(
    tmp_path: Path,
) -> None:
    """It was on record, or it is asked for again: nothing has run."""
    folder = tmp_path / "job_db" / "shim"
    departed = asyncio.Event()

    async def ask(executor: shim.Shim) -> None:
        launch = Launch(
            job_id="a",
            argv=("/no/such/program",),
            cwd="/",
            base_env={},
            envs={},
            logs=LogPlan(stdout=str(tmp_path / "out"), stderr=str(tmp_path / "err")),
            stop_grace=1,
        )
        attempt = Attempt(token=new_token(), supervisor=executor.supervisor)
        assert isinstance(await executor.start(launch, attempt, 1), StartFailed)
        assert attempt.token in await executor.held()

    async with asyncio.TaskGroup() as tasks:
        host = Host(
            own=lambda work, name: tasks.create_task(work, name=name),
            on_inherited=lambda job_id, token: None,
            on_departure=departed.set,
        )
        first, second = shim.Shim(folder), shim.Shim(folder)
        try:
            await first.open(host)
            await ask(first)
            await second.open(host)
            await first.close()
            async with asyncio.timeout(LIMIT_S):
                await departed.wait()
            assert await second.held() == set()
        finally:
            await first.close()
            await second.close()
    assert load(folder / "journal") == []


async def test_another_user_is_not_listened_to(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "as a stranger"
    in_shims(
        monkeypatch,
        f"""
        import os
        import anodejobs.shim.clients as clients
        known = clients.peer
        stranger = os.geteuid() + 12345
        clients.peer = lambda s: (None, stranger) if os.path.exists({str(flag)!r}) else known(s)
        """,
    )
    await jobs.run("exec sleep 600", "a")
    flag.touch()
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_unix_connection(socket_of(tmp_path))
        writer.write(encoded({"do": "hello", "id": 1, "version": VERSION, "mine": []}))
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    assert "has no business here" in (tmp_path / "job_db" / "shim" / "log").read_text()


async def test_another_users_shim_is_not_talked_to(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "peer", lambda socket: (1, os.geteuid() + 12345))
    record = await jobs.run("true", "a")
    assert record.status is Status.failed_start
    assert "another user listens in" in str(record.error)


async def test_the_directory_of_another_user_is_refused_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as ours:
        await ran(ours, "true", "a")
    user, stranger = os.geteuid(), os.geteuid() + 12345
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: stranger)
        with pytest.raises(ExecutorError) as caught:
            await opened(tmp_path).count()
    folder = tmp_path / "job_db" / "shim"
    assert f"{folder} belongs to user {user}, and this is user {stranger}" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_what_another_user_has_left_is_told_when_it_is_opened(tmp_path: Path) -> None:
    async with opened(tmp_path) as ours:
        await ran(ours, "true", "a")
    journal = tmp_path / "job_db" / "shim" / "journal"
    os.chown(journal, 65534, -1)
    with pytest.raises(ExecutorError, match="journal belongs to user 65534"):
        await opened(tmp_path).count()
    os.chown(journal, os.geteuid(), -1)
    async with opened(tmp_path) as ours:
        assert (await ran(ours, "exit 3", "a")).exit_code == 3


async def test_a_directory_may_lie_deeper_than_the_path_of_a_socket_can_be_long(
    tmp_path: Path,
) -> None:
    folder = tmp_path / ("x" * 100) / ("ü" * 50)
    async with opened(folder) as jobs:
        assert (await ran(jobs, "exit 3", "a")).exit_code == 3
        async with opened(folder) as other:
            assert (await ran(other, "exit 4", "b")).exit_code == 4


NONSENSE = {
    "no JSON": b"hello\n",
    "no object": b"[]\n",
    "no text": b"\xff\xfe\xfd\n",
    "nothing": b"\n",
    "nothing to be done": b"{}\n",
    "unknown": b'{"do":"make coffee","id":1}\n',
    "unhashable": b'{"do":[],"id":1}\n',
    "a hello without an id": b'{"do":"hello"}\n',
    "a start without an attempt": b'{"do":"start","id":1,"number":1}\n',
    "an odd attempt": b'{"do":"start","id":1,"number":1,"attempt":{"pipes":5},"launch":{}}\n',
    "a stop without anything": b'{"do":"stop"}\n',
    "a signal without anything": b'{"do":"signal"}\n',
    "a drain without an id": b'{"do":"drain"}\n',
    "an id that is no number": b'{"do":"held","id":"\\u00e9"}\n',
    "an odd grace": b'{"do":"stop","id":1,"attempt":{},"grace":NaN,"may_hasten":true}\n',
    "an age that is no number": b'{"do":"age","age":"old"}\n',
    "an odd offset": b'{"do":"follow","sub":1,"token":"","stream":"stdout","offset":[]}\n',
    "nested without end": b"[" * 100_000 + b"\n",
    "no end of it": b"x" * 200_000,
}


@pytest.mark.parametrize("is_greeted", [False, True], ids=["at once", "later"])
async def test_who_makes_no_sense_is_cut_off_and_nobody_else(
    tmp_path: Path, jobs: Jobs, gate: Gate, monkeypatch: pytest.MonkeyPatch, is_greeted: bool
) -> None:
    in_shims(monkeypatch, "import anodejobs.shim.protocol as p; p.LONGEST_BYTES = 150_000")
    await jobs.run(f"{gate.wait}; exit 3", "a")
    pid = shim_of(tmp_path)
    for name, line in NONSENSE.items():
        async with connected(tmp_path) as client:
            if is_greeted:
                await client.hello()
            assert await client.is_cut_off_by(line), name
    assert shim_of(tmp_path) == pid
    gate.open()
    assert (await jobs.wait("a", timeout=LIMIT_S)).evidence == "observed"
    assert (await ran(jobs, "exit 4", "b")).exit_code == 4


def test_every_request_is_checked() -> None:
    assert servers._ACTIONS.keys() == REQUESTS.keys()


@pytest.mark.parametrize("is_greeted", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    "odd",
    [
        {"token": "\u00e9" * 32},
        {"token": ["a"]},
        {"job_id": 5},
        {"max_bytes": 0},
        {"max_bytes": "x"},
        {"backups": "x"},
    ],
    ids=str,
)
async def test_an_attempt_that_could_not_be_seen_to_its_end_does_not_begin(
    tmp_path: Path, jobs: Jobs, odd: Message, is_greeted: bool
) -> None:
    await ran(jobs, "true", "a")
    pid = shim_of(tmp_path)
    launch = json.loads(launch_of("echo begun > begun", tmp_path, "odd").to_text())
    passing = {name: launch.pop(name) for name in ("argv", "cwd", "envs", "files", "limits")}
    begin = Attempt(token=new_token(), supervisor="").to_json()
    for fields in (begin, launch, launch["logs"]):
        fields.update({name: odd[name] for name in odd.keys() & fields.keys()})
    start = {"do": "start", "begin": begin, "number": 1, "launch": launch, "exec": passing, "id": 1}
    async with connected(tmp_path) as client:
        if is_greeted:
            await client.hello()
        assert await client.is_cut_off_by(encoded(start))
    assert (await ran(jobs, "exit 4", "b")).exit_code == 4
    assert (shim_of(tmp_path), (tmp_path / "begun").exists()) == (pid, False)


async def test_nothing_is_done_for_who_has_not_said_hello(tmp_path: Path, jobs: Jobs) -> None:
    await ran(jobs, "true", "a")
    async with connected(tmp_path) as client:
        assert await client.is_cut_off_by(b'{"do":"drain","id":1}\n')


async def test_who_does_not_read_answers_is_not_asked_for_more(tmp_path: Path, jobs: Jobs) -> None:
    await ran(jobs, "true", "a")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        deaf.connect(str(socket_of(tmp_path)))
        hello = encoded({"do": "hello", "id": 0, "version": VERSION, "mine": []})
        held = b'{"do":"held","id":%d}\n' % 10**200
        loop, sent = asyncio.get_running_loop(), 0
        await loop.sock_sendall(deaf, hello)
        with suppress(TimeoutError):
            # No event tells that somebody does not read any more; nothing but that takes so long.
            while sent < 20_000_000:
                async with asyncio.timeout(2):
                    await loop.sock_sendall(deaf, held * 100)
                sent += len(held) * 100
        assert sent < 20_000_000
        assert (await ran(jobs, "exit 4", "b")).exit_code == 4


async def test_a_question_that_cannot_be_answered_gets_an_error(tmp_path: Path, jobs: Jobs) -> None:
    await ran(jobs, "true", "a")
    async with connected(tmp_path) as client:
        await client.hello()
        answer = await client.ask("stop", attempt={}, grace=1, may_hasten=True)
        assert "KeyError" in answer["error"]
        assert "re" in await client.ask("held")


async def test_a_message_may_be_megabytes_long(jobs: Jobs) -> None:
    arguments = ["x" * 100_000] * 15
    record = await ran(jobs, [*python("import sys; print(len(sys.argv))"), *arguments], "a")
    assert (record.exit_code, (await jobs.job_logs("a"))[0]) == (0, "16\n")


@pytest.mark.parametrize("what", ["command", "envs", "environment"])
async def test_what_is_longer_than_a_message_may_be_is_refused_and_disturbs_nobody(
    tmp_path: Path, jobs: Jobs, gate: Gate, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Cut off for it, the application would send it again and again."""
    longest = 150_000  # so that nothing but this is in its way
    in_shims(monkeypatch, f"import anodejobs.shim.protocol as p; p.LONGEST_BYTES = {longest}")
    monkeypatch.setattr(protocol, "LONGEST_BYTES", longest)
    await jobs.run(f"{gate.wait}; exit 3", "a")
    pid = shim_of(tmp_path)
    long = dict.fromkeys("ABCD", "x" * 100_000)
    with monkeypatch.context() as patches:
        if what == "environment":
            for name, value in long.items():
                patches.setenv(name, value)
        command = ["true", *long.values()] if what == "command" else ["true"]
        async with asyncio.timeout(LIMIT_S):
            record = await jobs.run(command, "b", envs=long if what == "envs" else {})
    assert (record.status, record.error) == (Status.failed_start, os.strerror(errno.E2BIG))
    assert (await ran(jobs, "exit 4", "b")).exit_code == 4
    assert shim_of(tmp_path) == pid
    gate.open()
    assert (await jobs.wait("a", timeout=LIMIT_S)).evidence == "observed"
    assert "cut off" not in (tmp_path / "job_db" / "shim" / "log").read_text()


async def test_who_does_not_listen_is_not_told_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shim would grow for as long as two applications are frozen."""
    in_shims(monkeypatch, "import anodejobs.shim.server as s; s._TELL_ALL_AFTER_S = 0.001")
    monkeypatch.setattr(shim, "LINGER_S", LIMIT_S)  # until somebody is connected again
    async with opened(tmp_path) as jobs:
        await ran(jobs, "true", "a")
    async with (
        connected(tmp_path) as owner,
        connected(tmp_path) as other,
        connected(tmp_path) as deaf,
    ):
        for client in (owner, other, deaf):
            await client.hello()
        for number in range(20):  # none of which is put on record
            await owner.start("true", name=f"job-{number}")
        # More than the sockets and the streams hold.
        told = await other.ends_until(lambda ends: ends >= 4000)
        deaf.send({"do": "held", "id": 1000})
        assert await deaf.ends_until(lambda ends: False, last=1000) < told


# What it is made of.


HEAVY = ("psutil", "pydantic", "sqlite3", "aiosqlite", "ssl", "anyio", "http", "email", "hashlib")


async def test_nothing_is_imported_that_makes_it_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path / "modules"
    in_shims(
        monkeypatch,
        f"""
        import anodejobs.shim.journal as journal
        close = journal.Journal.close
        def close_and_tell(self):
            close(self)
            names = [name for name, module in sys.modules.items() if module]
            open({str(modules)!r}, "w").write(" ".join(names))
        journal.Journal.close = close_and_tell
        """,
    )
    async with opened(tmp_path) as jobs:
        await ran(jobs, "echo out; (setsid sleep 600 &) ; exit 3", "a")
        pid = shim_of(tmp_path)
    assert has_died(pid, LIMIT_S)
    imported = modules.read_text().split()
    assert "anodejobs.shim.server" in imported
    assert not [name for name in imported if name.partition(".")[0] in HEAVY]
    strangers = {name.partition(".")[0] for name in imported} - STANDARD
    assert strangers <= {"anodejobs", "__main__"}


async def test_it_is_small_when_it_has_run_jobs(tmp_path: Path, jobs: Jobs) -> None:
    for number in range(5):
        await ran(jobs, "echo out; (setsid sleep 600 &) ; exit 3", f"job-{number}")
    await jobs.run("exec sleep 600", "a")
    await jobs.usage("a")
    await jobs.stop("a")
    status = Path(f"/proc/{shim_of(tmp_path)}/status").read_text()
    (resident,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident) < 30 * 1024
    mapped = Path(f"/proc/{shim_of(tmp_path)}/maps").read_text()
    assert not [name for name in ("pydantic", "psutil", "sqlite", "_ssl") if name in mapped]


async def test_it_has_nothing_of_the_application_that_started_it(
    tmp_path: Path, jobs: Jobs
) -> None:
    await jobs.run("exec sleep 600", "a")
    process = psutil.Process(shim_of(tmp_path))
    fds = {int(fd.name): os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir()}
    assert {fds[fd] for fd in (0, 1, 2)} == {"/dev/null"}
    assert not [target for target in fds.values() if "jobs.db" in target]
    assert os.getpid() not in {parent.pid for parent in process.parents()}
    assert os.getsid(process.pid) == process.pid
    assert process.cwd() == str(tmp_path / "job_db" / "shim")


async def test_it_writes_neither_to_the_stdout_nor_to_the_stderr_of_an_application(
    tmp_path: Path,
) -> None:
    """Not even what it logs as an error; and both end with the application, whatever runs on."""
    application = await application_that(
        tmp_path,
        """
        await jobs.run("exec sleep 600", "a")
        reader, writer = await asyncio.open_unix_connection("job_db/shim/socket")
        writer.write(b"nonsense\\n")
        await reader.read()
        writer.close()
        print("done")
        """,
    )
    assert (application.stdout, application.stderr) == ("done\n", "")
    assert "makes no sense" in (tmp_path / "job_db" / "shim" / "log").read_text()
    async with opened(tmp_path) as jobs:
        assert (await status(jobs, "a")).status is Status.running
        await jobs.stop("a")


async def test_its_log_is_rotated(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_shims(monkeypatch, "import anodejobs.shim.main as m; m._LOG_BYTES = 3000")
    await ran(jobs, "true", "a")
    for _ in range(20):
        async with connected(tmp_path) as client:
            assert await client.is_cut_off_by(b"nonsense\n")
    log = tmp_path / "job_db" / "shim" / "log"
    assert 0 < log.stat().st_size <= 3000
    assert len(list((log.parent / "log.rotated").iterdir())) == 1


# What it gives to jobs.


async def test_jobs_handle_signals_as_if_their_application_had_not_touched_them(
    tmp_path: Path,
) -> None:
    signals = "('SIGINT', 'SIGQUIT', 'SIGHUP', 'SIGCHLD', 'SIGPIPE', 'SIGUSR1', 'SIGXFSZ')"
    await application_that(
        tmp_path,
        """
        await jobs.run(["/bin/grep", "-E", "^(SigBlk|SigIgn)", "/proc/self/status"], "a")
        await jobs.wait("a")
        """,
        before=f"""
        numbers = [getattr(signal, name) for name in {signals}]
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [*numbers, signal.SIGTERM, signal.SIGWINCH])
        """,
    )
    async with opened(tmp_path) as jobs:
        stdout, _ = await jobs.job_logs("a")
    found = [int(line.split()[1], 16) for line in stdout.splitlines()]
    # Between those of the kernel and SIGRTMIN are the C library's own, which it ignores in a child
    # until that needs them.
    of_programs = ~sum(1 << (number - 1) for number in range(32, signal.SIGRTMIN))
    assert [mask & of_programs for mask in found] == [0, 0]


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT", "SIGHUP", "SIGPIPE"])
async def test_a_job_can_be_ended_with_every_signal_that_ends_a_process(
    jobs: Jobs, name: str
) -> None:
    await jobs.run(["/bin/sleep", "600"], "a")
    await jobs.signal("a", name)
    assert (await jobs.wait("a", timeout=LIMIT_S)).exit_code == -signal.Signals[name]


async def test_files_that_jobs_make_have_the_modes_that_the_application_would_give_them(
    jobs: Jobs, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        await ran(jobs, "echo > made", "a", cwd=tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o640


async def test_each_application_gives_its_jobs_its_own_umask(jobs: Jobs, tmp_path: Path) -> None:
    """Whoever has started the shim."""
    before = os.umask(0o022)
    try:
        await ran(jobs, "umask", "first")
        os.umask(0o027)
        async with opened(tmp_path) as other:
            await ran(other, "umask", "second")
            await ran(jobs, "umask", "third")
    finally:
        os.umask(before)
    logs = [(await jobs.job_logs(job_id))[0] for job_id in ("first", "second", "third")]
    assert logs == ["0022\n", "0027\n", "0022\n"]
    await jobs.start("second")
    await jobs.wait("second", timeout=LIMIT_S)
    assert (await jobs.job_logs("second"))[0] == "0027\n"


async def test_jobs_have_no_descriptor_but_the_three(jobs: Jobs) -> None:
    await jobs.run("exec sleep 600", "other")
    await asyncio.gather(
        *(ran(jobs, ["/bin/ls", "-l", "/proc/self/fd"], f"job-{n}") for n in range(10))
    )
    for number in range(10):
        lines = (await jobs.job_logs(f"job-{number}"))[0].splitlines()[1:]
        links = {fd: target for *_, fd, _, target in (line.split() for line in lines)}
        listing = {fd for fd, target in links.items() if target.endswith("/fd")}
        assert links.keys() - listing == {"0", "1", "2"}
        assert links["0"] == "/dev/null"


async def test_each_job_has_the_environment_of_the_time_of_its_call(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for number in range(20):
        monkeypatch.setenv("NUMBER", str(number))
        runs.append(asyncio.create_task(jobs.run("echo $NUMBER", f"job-{number}")))
        await asyncio.sleep(0)
    await asyncio.gather(*runs)
    await jobs.wait_all([f"job-{number}" for number in range(20)], timeout=LIMIT_S)
    logs = [(await jobs.job_logs(f"job-{number}"))[0] for number in range(20)]
    assert logs == [f"{number}\n" for number in range(20)]


async def test_the_next_shim_gives_the_same_environment(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD", os.fsdecode(b"na\xefve\n\x01"))
    await ran(jobs, 'printf %s "$ODD"', "first")
    await died_of(signal.SIGKILL, shim_of(tmp_path))
    await ran(jobs, 'printf %s "$ODD"', "second")
    log = tmp_path / "job_db" / "job_logs" / "second_out.txt"
    assert log.read_bytes() == b"na\xefve\n\x01"


async def test_each_application_has_its_own_environment(tmp_path: Path, jobs: Jobs) -> None:
    await ran(jobs, "true", "a")
    async with connected(tmp_path) as one, connected(tmp_path) as two:
        for client, colour in ((one, "red"), (two, "blue")):
            await client.hello()
            client.send({"do": "env", "vars": {"COLOUR": colour}})
        for client, name in ((one, "one"), (two, "two"), (one, "three")):
            await client.start("echo $COLOUR", name=name)
            await client.heard_end()
    told = [(tmp_path / f"{name}_out.txt").read_text() for name in ("one", "two", "three")]
    assert told == ["red\n", "blue\n", "red\n"]


# Asking twice.


async def test_a_start_that_two_ask_for_is_one_start(tmp_path: Path, jobs: Jobs) -> None:
    await ran(jobs, "true", "a")
    attempt = Attempt(token=new_token(), supervisor="")
    async with connected(tmp_path) as one, connected(tmp_path) as two:
        await one.hello()
        await two.hello()
        answers = await asyncio.gather(
            one.start("echo x >> starts", attempt), two.start("echo x >> starts", attempt)
        )
        assert answers[0]["event"] == answers[1]["event"]
        assert answers[0]["event"]["kind"] == "Started"
        await one.heard_end()
    assert (tmp_path / "starts").read_text() == "x\n"


async def test_a_start_that_is_over_and_on_record_starts_nothing(
    tmp_path: Path, jobs: Jobs
) -> None:
    await ran(jobs, "true", "a")
    attempt = Attempt(token=new_token(), supervisor="")
    async with connected(tmp_path) as client:
        await client.hello()
        await client.start("echo x >> starts", attempt)
        await client.heard_end()
        client.send({"do": "ack", "token": attempt.token})
        async with asyncio.timeout(LIMIT_S):
            while attempt.token in (await client.ask("held"))["held"]:  # cleaned up after
                pass
        answer = await client.start("echo x >> starts", attempt)
        assert answer["event"]["kind"] == "Lost"
    assert (tmp_path / "starts").read_text() == "x\n"


async def test_a_start_in_doubt_is_answered_though_it_could_not_be_looked_into_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next shim may have no descriptor left for it."""
    monkeypatch.setenv("ANODEJOBS_DIE_AT", f"shim: a process was spawned@{tmp_path / 'die'}")
    in_shims(
        monkeypatch,
        """
        import anodejobs.shim.server as server
        from anodejobs.errors import ExecutorError
        server._SWEEP_EVERY_S = 0.01
        reached, adopt, steps = server.faults.reached, server.Processes.adopt, []
        def noted(step):
            steps.append(step)
            reached(step)
        async def adopted_later(*args):
            if "shim: a start was asked for" not in steps:
                raise ExecutorError("Too many open files")
            return await adopt(*args)
        server.faults.reached, server.Processes.adopt = noted, adopted_later
        """,
    )
    (tmp_path / "die").touch()
    async with opened(tmp_path) as jobs, asyncio.timeout(LIMIT_S):
        record = await jobs.run("echo x; exec sleep 600", "a")
        assert record.status is Status.running
        assert await first_words(jobs, "a") == "x\n"
        assert "it is tried again" in (tmp_path / "job_db" / "shim" / "log").read_text()


class Asker:
    """What a server sees of an application."""

    def __init__(self) -> None:
        self.knows_tombs = 0
        self.told: list[Message] = []

    def send(self, message: Message) -> None:
        self.told.append(message)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server that serves nobody, to be asked what it would say."""
    processes = Processes()
    yield Server(tmp_path, processes, 0)
    await processes.leave()


@pytest.mark.parametrize("is_there", [False, True], ids=["nobody", "somebody who answers"])
async def test_a_token_is_forgotten_one_age_after_it_was_done_with(
    server: Server, is_there: bool
) -> None:
    asker: Any = Asker()
    if is_there:
        server._clients[asker] = None
    server._tombs.add("token")
    server._forget_tombs()
    assert server._is_known("token")
    for message in asker.told:
        server.hear(asker, {"do": "age", "age": message["age"]})
    server._forget_tombs()
    assert not server._is_known("token")


async def test_no_token_is_forgotten_before_every_application_has_answered(
    server: Server,
) -> None:
    prompt, slow = askers = [Asker(), Asker()]
    for asker in askers:
        server._clients[asker] = None  # type: ignore[index]
    server._tombs.add("token")
    for _ in range(5):
        server._forget_tombs()
        for message in prompt.told:
            server.hear(prompt, {"do": "age", "age": message["age"]})  # type: ignore[arg-type]
    assert server._is_known("token")
    assert slow.told == [{"age": 1}]
    server.hear(slow, {"do": "age", "age": 1})  # type: ignore[arg-type]
    server._forget_tombs()
    assert not server._is_known("token")


class Wire(asyncio.Transport):
    """What an application is sent."""

    sent = b""

    def write(self, data: Any) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        """Do nothing: it says nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""


async def test_who_does_not_read_is_told_of_the_last_logs_that_have_grown(server: Server) -> None:
    client, wire = Client(server), Wire()
    client._transport = wire
    client.pause_writing()
    for n in range(15_000):
        client.tell_growth(f"job-{n}", "stdout", 1)
    client.tell_growth("job-9000", "stdout", 2)
    client.resume_writing()
    client.flush()
    (message,) = map(json.loads, wire.sent.splitlines())
    last = [[f"job-{n}", "stdout", 1] for n in range(5_000, 15_000) if n != 9_000]
    assert message["growth"] == [*last, ["job-9000", "stdout", 2]]


async def test_an_application_answers_how_old_the_shim_has_become(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_shims(
        monkeypatch,
        """
        import anodejobs.shim.server as server
        server._SWEEP_EVERY_S = server._FORGET_EVERY_S = 0.01
        """,
    )
    await ran(jobs, "true", "a")
    async with connected(tmp_path) as client:
        await client.hello()
        ages = []
        for _ in range(3):  # of which it would not tell if the other one had not answered
            ages.append((await client.hears("age"))["age"])
            client.send({"do": "age", "age": ages[-1]})
    assert ages == [ages[0], ages[0] + 1, ages[0] + 2]


async def test_a_start_that_waits_for_its_turn_is_not_in_the_journal(
    server: Server, tmp_path: Path
) -> None:
    """It would be in doubt, were the shim to die, though surely nothing was started."""
    launch = launch_of("true", tmp_path, "a")
    waiting, begun = (Life(1, launch, Attempt(token=new_token(), supervisor="")) for _ in "12")
    server._lives = {life.attempt.token: life for life in (waiting, begun)}
    server._journal.open()
    server._begin(begun)
    server._journal.open()
    assert [entry.attempt for entry in load(tmp_path / "journal")] == [begun.attempt]
    server._journal.close()


# Other versions.


async def test_the_jobs_of_an_older_shim_go_on_and_new_ones_have_a_new_shim(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await older_shim(tmp_path, monkeypatch, f"{gate.wait}; echo out; exit 3")
    async with opened(tmp_path) as jobs:
        new = await jobs.run("exec sleep 600", "new")
        assert parent_of(new) == shim_of(tmp_path) != old
        assert parent_of(await status(jobs, "old-0")) == old
        gate.open()
        record = await jobs.wait("old-0", timeout=LIMIT_S)
        assert (record.exit_code, record.evidence) == (3, "observed")
        assert (await jobs.job_logs("old-0"))[0] == "out\n"


async def test_an_older_shim_leaves_when_its_last_job_has_ended(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await older_shim(tmp_path, monkeypatch, gate.wait)
    async with opened(tmp_path) as jobs:
        await jobs.run("exec sleep 600", "new")
        gate.open()
        await jobs.wait("old-0", timeout=LIMIT_S)
        assert await asyncio.to_thread(has_died, old, LIMIT_S)
        await ran(jobs, "true", "newer")
        await seen(lambda: not list((tmp_path / "job_db" / "shim").glob("draining-*")))


@pytest.mark.parametrize("lacking", ["descriptors", "memory"])
async def test_an_older_shim_can_leave_while_its_end_cannot_be_heard_of(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    old = await older_shim(tmp_path, monkeypatch, gate.wait)
    has_left, pidfd_open = asyncio.Event(), os.pidfd_open

    def opened_pidfd(pid: int, flags: int = 0) -> int:
        if pid != old:
            return pidfd_open(pid, flags)
        if lacking == "memory":
            return pidfd_open(os.getpid(), flags)  # that shim may be gone by now
        has_left.set()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def unheard(fd: int, *, within_s: float) -> bool:
        has_left.set()
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    async with opened(tmp_path) as jobs:
        await jobs.run("exec sleep 600", "new")
        monkeypatch.setattr(os, "pidfd_open", opened_pidfd)
        if lacking == "memory":
            monkeypatch.setattr(shim, "readable", unheard)
        gate.open()
        await asyncio.wait_for(has_left.wait(), LIMIT_S)
        await ran(jobs, "true", "newer")
        await jobs.wait("old-0", timeout=LIMIT_S)


async def test_a_job_of_an_older_shim_can_be_followed_and_stopped(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    await older_shim(tmp_path, monkeypatch, f"{gate.wait}; echo out; exec sleep 600")
    async with opened(tmp_path) as jobs:
        await jobs.run("exec sleep 600", "new")
        following = asyncio.create_task(first_words(jobs, "old-0"))
        await asyncio.wait([following], timeout=0.02)
        gate.open()
        assert await following == "out\n"
        record = await jobs.stop("old-0")
        assert record is not None
        assert (record.status, record.exit_code, record.evidence) == (
            Status.stopped,
            -15,
            "observed",
        )


async def test_when_an_older_shim_is_killed_its_jobs_are_taken_over_at_once(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await older_shim(tmp_path, monkeypatch, f"{gate.wait}; echo out; exec sleep 600")
    async with opened(tmp_path) as jobs:
        await jobs.run("exec sleep 600", "new")
        await died_of(signal.SIGKILL, old)
        await adopted(jobs, "old-0")
        gate.open()
        assert await first_words(jobs, "old-0") == "out\n"
        record = await jobs.stop("old-0")
        assert record is not None and record.is_done
        assert not list((tmp_path / "job_db" / "shim").glob("draining-*"))


async def test_what_an_older_shim_has_left_is_taken_over_as_soon_as_there_is_room_for_it(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "job_db" / "shim"
    old = await older_shim(tmp_path, monkeypatch, f"{gate.wait}; echo out; exec sleep 600")
    in_shims(monkeypatch, "import anodejobs.shim.server as s; s._SWEEP_EVERY_S = 0.05")
    async with opened(tmp_path) as jobs:
        await jobs.run("exec sleep 600", "new")
        (folder / "journal.new").mkdir()  # so that the journal cannot be made anew
        await died_of(signal.SIGKILL, old)
        await seen(lambda: "what other shims have left waits" in (folder / "log").read_text())
        assert list(folder.glob("draining-*.journal"))
        (folder / "journal.new").rmdir()
        await adopted(jobs, "old-0")
        gate.open()
        assert await first_words(jobs, "old-0") == "out\n"
        record = await jobs.stop("old-0")
        assert record is not None and record.is_done
        assert not list(folder.glob("draining-*"))


async def test_what_an_older_shim_knew_that_was_killed_unheard_is_told_by_the_present_one(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await older_shim(tmp_path, monkeypatch, f"{gate.wait}; exit 3", f"{gate.wait}; exit 3")
    async with opened(tmp_path) as jobs:
        await jobs.run("exec sleep 600", "new")
    journal = next((tmp_path / "job_db" / "shim").glob("draining-*.journal"))
    gate.open()
    await seen(lambda: b"Exited" in journal.read_bytes())
    await died_of(signal.SIGKILL, old)
    async with opened(tmp_path) as jobs:
        ended = [await jobs.wait(job_id, timeout=LIMIT_S) for job_id in await ends(jobs)]
        assert [(record.exit_code, record.evidence) for record in ended] == [(3, "recorded")]


async def test_a_shim_that_drains_twice_drains_once(tmp_path: Path, gate: Gate, jobs: Jobs) -> None:
    await jobs.run(f"{gate.wait}; exit 3", "a")
    async with connected(tmp_path) as one:
        await one.hello()
        await one.ask("drain")
        await one.ask("drain")
    assert len(list((tmp_path / "job_db" / "shim").glob("draining-*.journal"))) == 1
    await jobs.run("exec sleep 600", "b")
    gate.open()
    assert (await jobs.wait("a", timeout=LIMIT_S)).evidence == "observed"


async def test_a_shim_that_cannot_put_its_journal_by_does_not_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_shims(
        monkeypatch,
        """
        import os
        def refused(old, new): raise OSError(5, os.strerror(5))
        os.rename = refused
        """,
    )
    async with opened(tmp_path) as jobs:
        await jobs.run("exec sleep 600", "a")
        async with connected(tmp_path) as one:
            await one.hello()
            assert await one.is_cut_off_by(b'{"do":"drain","id":2}\n')
        record = await jobs.run("true", "b")
        assert (record.status, record.error) == (Status.running, None)


async def test_jobs_of_a_newer_shim_are_left_to_newer_applications(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        in_shims(newer, f"import anodejobs.shim.protocol as p; p.VERSION = {VERSION + 1}")
        newer.setattr(shim, "VERSION", VERSION + 1)
        async with opened(tmp_path, on_close="leave") as jobs:
            record = await jobs.run("exec sleep 600", "a")
    with pytest.raises(ExecutorError, match="newer anodejobs; upgrade"):
        await opened(tmp_path).__aenter__()
    assert tree.start_time(record.last_pid or 0) is not None
    monkeypatch.setattr(shim, "VERSION", VERSION + 1)
    async with opened(tmp_path) as jobs:
        await jobs.stop("a")


async def test_what_waits_when_a_newer_version_comes_is_started_by_that_one(
    tmp_path: Path, gate: Gate
) -> None:
    async with opened(tmp_path, max_concurrent_jobs=1) as older:
        await older.run(f"{gate.wait}; exit 4", "first")
        await older.submit("exit 3", "second")
        async with newer_version(tmp_path):
            with pytest.raises(ExecutorError, match="newer anodejobs; upgrade"):
                await older.run("true", "refused")
            assert await older.get_status("refused") is None
            gate.open()
            ended = [await older.wait(job_id, timeout=LIMIT_S) for job_id in ("first", "second")]
            assert [record.exit_code for record in ended] == [4, 3]


async def test_a_start_that_was_under_way_when_a_newer_version_came_is_done_by_that_one(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_under_way, has_come = asyncio.Event(), asyncio.Event()
    ask_to_start = shim.Shim._ask_to_start

    async def late(executor: shim.Shim, launch: Launch, *more: Any) -> Any:
        if launch.job_id == "a" and not is_under_way.is_set():
            is_under_way.set()
            await has_come.wait()
        return await ask_to_start(executor, launch, *more)

    monkeypatch.setattr(shim.Shim, "_ask_to_start", late)
    async with opened(tmp_path) as older:
        await older.run("exec sleep 600", "other")
        starting = asyncio.create_task(older.run(f"echo once; {gate.wait}; exit 3", "a"))
        await asyncio.wait_for(is_under_way.wait(), LIMIT_S)
        async with newer_version(tmp_path):
            await older.wait("a", Status.running, timeout=LIMIT_S)
            has_come.set()
            gate.open()
            record = await asyncio.wait_for(starting, LIMIT_S)
            assert (record.status, record.exit_code) == (Status.failed, 3)
            assert await older.job_logs("a") == ("once\n", "")


async def test_an_application_stops_its_jobs_when_a_newer_version_has_come(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as older:
        await older.run("exec sleep 600", "a")
        async with newer_version(tmp_path):
            await older.pause("a")
            record = await asyncio.wait_for(older.stop("a"), LIMIT_S)
            # The newer one may have seen the stop begun, and have been quicker to carry it out.
            assert record is not None
            assert (record.is_done, record.exit_code) == (True, -15)


# Applications of all kinds.


CODES = """
for number in range(20):
    await jobs.run(f"exit {number}", f"job-{number}")
ended = [await jobs.wait(f"job-{number}") for number in range(20)]
print([r.error if r.exit_code is None else r.exit_code for r in ended])
"""
TROUBLE = {
    "a loop like any other": "",
    "uvloop": "import uvloop; run = uvloop.run",
    "a debugging loop": "run = lambda main: asyncio.run(main, debug=True)",
    "ignores SIGCHLD": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "reaps all children": """
        def reap(*args):
            while True:
                try:
                    if os.waitpid(-1, os.WNOHANG) == (0, 0):
                        return
                except ChildProcessError:
                    return
        signal.signal(signal.SIGCHLD, reap)
        """,
    "reaps all children in a thread": """
        import threading, time
        def reap():
            while True:
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    time.sleep(0.0005)
        threading.Thread(target=reap, daemon=True).start()
        """,
    "has no stdin, stdout or stderr": """
        import builtins
        result = os.open("result", os.O_WRONLY | os.O_CREAT)
        os.dup2(result, 50)
        os.closerange(0, 3)
        os.close(result) if result > 2 else None
        def print(what): os.write(50, f"{what}\\n".encode())
        """,
    "runs in a thread": """
        import threading
        def run(main):
            thread = threading.Thread(target=asyncio.run, args=[main])
            thread.start()
            thread.join()
        """,
    "is a thousand descriptors high": """
        import resource
        for _ in range(900):
            os.open("/dev/null", os.O_RDONLY)
        """,
}


@pytest.mark.parametrize("before", TROUBLE.values(), ids=TROUBLE)
async def test_exit_codes_are_true_whatever_the_application_does(
    tmp_path: Path, before: str
) -> None:
    if "uvloop" in before:
        pytest.importorskip("uvloop")
    application = await application_that(tmp_path, CODES, before)
    told = application.stdout or (tmp_path / "result").read_text()
    assert told == f"{list(range(20))}\n"


async def test_a_shim_is_started_by_an_application_that_has_closed_its_stdout_meanwhile(
    tmp_path: Path,
) -> None:
    application = await application_that(
        tmp_path,
        """
        result = os.dup(1)
        os.closerange(0, 3)
        async with Jobs("another_db", store="memory://") as others:
            record = await others.run("exit 5", "a")
            record = await others.wait("a") if record.error is None else record
            os.write(result, f"{record.exit_code} {record.error}".encode())
        """,
    )
    assert application.stdout == "5 exit code 5"


async def test_after_a_fork_the_child_is_told_to_make_its_own_and_the_parent_goes_on(
    tmp_path: Path,
) -> None:
    application = await application_that(
        tmp_path,
        """
        await jobs.run("exec sleep 600", "a")
        calls = {
            "run": lambda: jobs.run("true", "b"),
            "wait": lambda: jobs.wait("a"),
            "stop": lambda: jobs.stop("a"),
            "list": lambda: jobs.list_status(),
            "close": lambda: jobs.close(),
        }
        async def tried(name):
            try:
                async with asyncio.timeout(60):
                    await calls[name]()
            except Exception as error:
                return f"{name}: {type(error).__name__}: {error}"
            return f"{name}: well"
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            for name in calls:
                os.write(tell, asyncio.run(tried(name)).encode() + b"\\n")
            os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        print(os.read(told, 4096).decode(), end="")
        await jobs.stop("a")
        await jobs.run("exit 4", "c")
        print((await jobs.wait("a")).status, (await jobs.wait("c")).exit_code)
        """,
    )
    message = "ExecutorError: this Jobs was opened before a fork; make one in each process"
    assert application.stdout.splitlines() == [
        *(f"{name}: {message}" for name in ("run", "wait", "stop", "list")),
        "close: well",
        "stopped 4",
    ]


@pytest.mark.parametrize("kind", ["inline", "shim"])
async def test_a_fork_that_leaves_a_jobs_ends_nothing_of_its_parent(
    tmp_path: Path, kind: str
) -> None:
    """Its parent's event loop it breaks, as it would any: they look at the same descriptors.

    From Python 3.14 on a task that was begun before a fork cannot be gone on with in it.
    """
    application = await application_that(
        tmp_path,
        f"""
        async with Jobs("another_db", executor={kind!r}) as another:
            pid = (await another.run("exec sleep 600", "a")).last_pid
            child = os.fork()
            if not child and sys.version_info >= (3, 14):
                try:
                    another.__aexit__(None, None, None).send(None)
                except StopIteration:
                    os._exit(5)
            if not child:
                sys.exit(5)
            _, status = os.waitpid(child, 0)
            with open(f"/proc/{{pid}}/stat") as stat:
                print(os.waitstatus_to_exitcode(status), stat.read().split()[2], flush=True)
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        """,
    )
    assert application.stdout == "5 S\n"


async def test_a_fork_may_open_its_own(tmp_path: Path) -> None:
    application = await application_that(
        tmp_path,
        """
        await jobs.run("exec sleep 600", "a")
        child = os.fork()
        if not child:
            async def work():
                async with Jobs("job_db") as own:
                    await own.run("exit 5", "b")
                    print((await own.wait("b")).exit_code, flush=True)
            asyncio.run(work())
            os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        print((await jobs.wait("b")).exit_code)
        await jobs.stop("a")
        """,
    )
    assert application.stdout == "5\n5\n"


async def test_a_fork_that_lives_on_is_not_taken_for_the_application_that_died(
    tmp_path: Path, gate: Gate
) -> None:
    """It has the connection, but hears nothing; another application is to have the jobs."""
    application = await application_that(
        tmp_path,
        f"""
        await jobs.run({f"{gate.wait}; exit 3"!r}, "a")
        child = os.fork()
        if not child:
            os.closerange(0, 3)
            time.sleep(600)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        before="""
        import time
        from anodejobs.executors import shim_start
        patch = "import anodejobs.shim.server as s; s._TELL_ALL_AFTER_S = 600;main()"
        shim_start._BOOTSTRAP = shim_start._BOOTSTRAP.removesuffix("main()") + patch
        """,
        code=-signal.SIGKILL,
    )
    fork = psutil.Process(int(application.stdout))
    try:
        async with opened(tmp_path) as jobs:
            gate.open()
            record = await jobs.wait("a", timeout=LIMIT_S)
            assert (record.exit_code, fork.is_running()) == (3, True)
    finally:
        fork.kill()
        assert has_died(fork.pid, LIMIT_S)


# What cannot be.


async def test_where_no_shim_can_be_started_a_job_cannot_and_its_error_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as jobs:
        await ran(jobs, "echo out", "before")
        pid = shim_of(tmp_path)
    assert has_died(pid, LIMIT_S)
    monkeypatch.setattr(shim_start, "interpreter", lambda: "/no/such/python")
    monkeypatch.setattr(shim, "_LONGEST_RETRY_S", shim._FIRST_RETRY_S)
    async with opened(tmp_path) as jobs, asyncio.timeout(LIMIT_S):
        record = await jobs.run("true", "a")
        assert record.status is Status.failed_start
        assert re.search("there is no shim .*/no/such/python.*not found", str(record.error))
        assert list(await jobs.list_status()) == ["before", "a"]
        assert await jobs.job_logs("before") == ("out\n", "")
        assert (await jobs.wait("a")) == record


async def test_where_a_shim_cannot_be_heard_to_come_up_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable, refusals = shim_start.readable, [OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))]

    async def refused_once(fd: int, *, within_s: float) -> bool:
        if refusals:
            raise refusals.pop()
        return await readable(fd, within_s=within_s)

    monkeypatch.setattr(shim_start, "readable", refused_once)
    async with opened(tmp_path) as jobs:
        assert (await ran(jobs, "exit 3", "a")).exit_code == 3
    assert not refusals


async def test_what_is_installed_beside_us_does_not_take_the_place_of_the_standard_library(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backport of a module, for example, that an older Python had need of."""
    beside = tmp_path / "site-packages"
    beside.mkdir()
    (beside / "anodejobs").symlink_to(os.path.dirname(anodejobs.__file__))
    for name in ("asyncio", "dataclasses", "enum", "pathlib", "typing"):
        (beside / f"{name}.py").write_text("raise ImportError('not for this Python')")
    monkeypatch.setattr(anodejobs, "__file__", str(beside / "anodejobs" / "__init__.py"))
    assert (await ran(jobs, "exit 3", "a")).exit_code == 3
    assert doctor.check_interpreter(interpreter, doctor_trials.run).level == "ok"


async def test_what_keeps_a_shim_from_starting_is_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "_MOST_ATTEMPTS", 2)
    async with opened(tmp_path) as jobs:
        await jobs.list_status()
        (tmp_path / "job_db" / "shim" / "lock").mkdir()
        record = await jobs.run("true", "a")
        assert record.status is Status.failed_start
        assert "Is a directory" in str(record.error)
        (tmp_path / "job_db" / "shim" / "lock").rmdir()
        assert (await ran(jobs, "exit 3", "a")).exit_code == 3


@pytest.mark.parametrize("name", ["journal", "journal.new"])
async def test_a_pipe_in_its_folder_does_not_keep_a_shim_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(shim, "_MOST_ATTEMPTS", 2)
    async with opened(tmp_path) as jobs:
        await jobs.list_status()
        os.mkfifo(tmp_path / "job_db" / "shim" / name)
        record = await jobs.run("true", "a")
        assert record.status is Status.failed_start
        (tmp_path / "job_db" / "shim" / name).unlink()
        assert (await ran(jobs, "exit 3", "a")).exit_code == 3
    (tmp_path / "job_db" / "shim" / "log").unlink()  # in which a crash is a fault


async def test_a_pipe_in_the_place_of_its_name_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "job_db" / "shim"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "id")
    jobs = opened(tmp_path)
    with pytest.raises(ExecutorError, match="not a regular file"):
        await jobs.list_status()
    await jobs.close()


async def test_where_the_journal_cannot_be_written_nothing_is_started_and_the_error_says_why(
    tmp_path: Path, jobs: Jobs
) -> None:
    await ran(jobs, "true", "before")
    with full_disk_of(shim_of(tmp_path), tmp_path / "job_db" / "shim" / "journal"):
        record = await jobs.run(f"echo x >> {tmp_path}/ran", "a")
    assert record.status is Status.failed_start
    assert "journal cannot be written" in str(record.error)
    assert os.strerror(27) in str(record.error)
    assert (await ran(jobs, "exit 3", "a")).exit_code == 3
    assert not (tmp_path / "ran").exists()


async def test_jobs_that_run_when_the_disk_is_full_end_as_ever(
    tmp_path: Path, jobs: Jobs, gate: Gate
) -> None:
    await jobs.run(f"{gate.wait}; exit 3", "a")
    with full_disk_of(shim_of(tmp_path), tmp_path / "job_db" / "shim" / "journal"):
        gate.open()
        assert (await jobs.wait("a", timeout=LIMIT_S)).exit_code == 3
    await ran(jobs, "true", "b")
    await seen(lambda: load(tmp_path / "job_db" / "shim" / "journal") == [])


async def test_limits_are_set_though_the_release_is_removed_that_has_started_the_shim(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_shims(monkeypatch, "import anodejobs.executors.limits as l; l._tool = lambda name: None")
    release = tmp_path / "release"
    shutil.copytree(os.path.dirname(anodejobs.__file__), release / "anodejobs")
    (release / "python").symlink_to(sys.executable)
    monkeypatch.setattr(anodejobs, "__file__", str(release / "anodejobs" / "__init__.py"))
    monkeypatch.setattr(shim_start, "interpreter", lambda: str(release / "python"))
    await ran(jobs, "true", "before")
    shutil.rmtree(release)
    record = await ran(jobs, "ulimit -n", "a", limits={"open_files": 64})
    assert (record.exit_code, await jobs.job_logs("a")) == (0, ("64\n", ""))


# Leaving.


async def test_asked_to_end_it_leaves_and_the_next_one_adopts_its_jobs(
    tmp_path: Path, jobs: Jobs, gate: Gate
) -> None:
    record = await jobs.run(f"{gate.wait}; echo out; exec sleep 600", "a")
    first = shim_of(tmp_path)
    await died_of(signal.SIGTERM, first)
    await adopted(jobs, "a")
    assert shim_of(tmp_path) != first
    gate.open()
    assert await first_words(jobs, "a") == "out\n"
    assert (await status(jobs, "a")).last_pid == record.last_pid
    assert "leaves" in (tmp_path / "job_db" / "shim" / "log").read_text()


async def test_asked_to_end_while_a_process_is_on_its_way_it_does_not_kill_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "end"
    in_shims(
        monkeypatch,
        f"""
        import os, signal, time
        from anodejobs.executors.spawner import Spawner
        spawned = Spawner._spawned
        def spawned_and_asked_to_end(self, order, block):
            pid = spawned(self, order, block)
            if os.path.exists({str(flag)!r}):
                os.unlink({str(flag)!r})
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
            return pid
        Spawner._spawned = spawned_and_asked_to_end
        """,
    )
    async with opened(tmp_path) as jobs:
        await ran(jobs, "true", "before")
        first = shim_of(tmp_path)
        flag.touch()
        record = await jobs.run("echo x >> starts; exec sleep 600", "a", cwd=tmp_path)
        assert await asyncio.to_thread(has_died, first, LIMIT_S)
        await adopted(jobs, "a")
        assert tree.start_time(record.last_pid or 0) is not None
        assert (await status(jobs, "a")).status is Status.running
        assert (tmp_path / "starts").read_text() == "x\n"


async def test_where_the_c_library_cannot_start_jobs_asyncio_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_shims(
        monkeypatch,
        """
        from anodejobs.executors import spawner
        spawner._libc = lambda: None
        """,
    )
    async with opened(tmp_path) as jobs:
        record = await jobs.run("echo $A; pwd; exec sleep 600", "a", envs={"A": "x"}, cwd=tmp_path)
        assert record.last_pid is not None
        assert read_tag(record.last_pid) is not None
        assert len(os.listdir(f"/proc/{shim_of(tmp_path)}/task")) <= 3  # none for each job
        await jobs.run("exit 255", "b")
        assert (await jobs.wait("b", timeout=LIMIT_S)).exit_code == 255
        assert (await jobs.run(["/no/such"], "c")).error == "No such file or directory: '/no/such'"
        assert (await jobs.stop("a")).exit_code == -15
        assert await jobs.job_logs("a") == (f"x\n{tmp_path}\n", "")


async def test_asked_to_end_while_it_starts_jobs_it_kills_none_and_starts_none_twice(
    tmp_path: Path, jobs: Jobs
) -> None:
    await ran(jobs, "true", "before")
    ids = [f"job-{number}" for number in range(60)]
    runs = [
        asyncio.create_task(jobs.run(f"echo {i} >> ran; exec sleep 600", i, cwd=tmp_path))
        for i in ids
    ]
    await runs[10]
    await died_of(signal.SIGTERM, shim_of(tmp_path))
    records = await asyncio.gather(*runs)
    assert {record.status for record in records} == {Status.running}
    await seen(lambda: (tmp_path / "ran").read_text().count("\n") >= 60)
    assert sorted((tmp_path / "ran").read_text().split()) == sorted(ids)
    assert not [r for r in records if tree.start_time(r.last_pid or 0) is None]


# What the tests above are written with.


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def opened(folder: Path, **options: Any) -> Jobs:
    """Return a Jobs whose jobs do not outlive the test."""
    return Jobs(folder / "job_db", **{"stop_grace": 1, "on_close": "stop", **options})


def in_shims(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have shims run the code before they begin."""
    first, begin = shim_start._BOOTSTRAP.removesuffix("main()").rsplit(";from", 1)
    bootstrap = f"{first}\n{dedent(code)}\nfrom{begin}main()"
    monkeypatch.setattr(shim_start, "_BOOTSTRAP", bootstrap)


def refusing(number: int) -> Callable[..., None]:
    """Return a call that the system refuses."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def shim_of(folder: Path) -> int:
    """Return the pid of the shim of the jobs in the folder."""
    return int((folder / "job_db" / "shim" / "lock").read_text())


def socket_of(folder: Path) -> Path:
    return folder / "job_db" / "shim" / "socket"


def parent_of(record: JobRecord) -> int:
    assert record.last_pid is not None
    return psutil.Process(record.last_pid).ppid()


async def status(jobs: Jobs, job_id: str) -> JobRecord:
    record = await jobs.get_status(job_id)
    assert record is not None
    return record


async def ran(jobs: Jobs, command: str | list[str], job_id: str, **spec: Any) -> JobRecord:
    """Return the record of a job that has ended."""
    await jobs.run(command, job_id, **spec)
    return await jobs.wait(job_id, timeout=LIMIT_S)


async def died_of(signum: int, pid: int) -> None:
    """Signal a shim, and return when it is dead."""
    os.kill(pid, signum)
    assert await asyncio.to_thread(has_died, pid, LIMIT_S)


async def adopted(jobs: Jobs, job_id: str) -> None:
    """Return when the job has another supervisor."""
    async with asyncio.timeout(LIMIT_S):
        async for event in jobs.events(job_id, after=0):
            if event.why and event.why.startswith("adopted"):
                return


async def first_words(jobs: Jobs, job_id: str) -> str:
    async with asyncio.timeout(LIMIT_S):
        async for chunk in jobs.follow(job_id):
            return chunk.text
    raise AssertionError("it has ended, and has written nothing")


async def ends(jobs: Jobs) -> list[str]:
    """Return the ids of the jobs that have ended, once there is one."""
    async with asyncio.timeout(LIMIT_S):
        async for event in jobs.events(after=0):
            if event.status in (Status.finished, Status.failed, Status.lost):
                return [event.job_id]
    raise AssertionError


async def older_shim(folder: Path, monkeypatch: pytest.MonkeyPatch, *commands: str) -> int:
    """Leave an older shim with running jobs, and return its pid."""
    with monkeypatch.context() as older:
        in_shims(older, f"import anodejobs.shim.protocol as p; p.VERSION = {VERSION - 1}")
        older.setattr(shim, "VERSION", VERSION - 1)
        async with opened(folder, on_close="leave") as jobs:
            for number, command in enumerate(commands):
                await jobs.run(command, f"old-{number}")
            return shim_of(folder)


NEWER = """
import asyncio, sys
from anodejobs import Jobs
from anodejobs.executors import shim, shim_start

shim.VERSION += 1
newer = "import anodejobs.shim.protocol as protocol; protocol.VERSION += 1;"
shim_start._BOOTSTRAP = newer + shim_start._BOOTSTRAP

async def main():
    async with Jobs("job_db", stop_grace=1, on_close="stop") as jobs:
        await jobs.run("exec sleep 600", "newer")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@asynccontextmanager
async def newer_version(folder: Path) -> AsyncIterator[None]:
    """Run an application of a newer version, whose shim is there by then."""
    with ExitStack() as stack:
        running = await asyncio.to_thread(stack.enter_context, application(NEWER, folder))
        yield
        assert await asyncio.to_thread(ends_well, running)


@contextmanager
def full_disk_of(pid: int, file: Path) -> Iterator[None]:
    """Let the files of a process grow to the present size of this one, and no more."""
    limit = resource.RLIMIT_FSIZE
    soft, hard = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (file.stat().st_size, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, limit, (soft, hard))


async def seen(holds: Callable[[], bool]) -> None:
    """Return once it holds: a look again and again, since nobody tells us."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Raw:
    """A connection to a shim, and what is said over it."""

    def __init__(
        self, folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._folder = folder
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._unread: list[Message] = []

    def send(self, message: Message) -> None:
        self._writer.write(encoded(message))

    async def hello(self) -> Message:
        return await self.ask("hello", version=VERSION, mine=[])

    async def ask(self, what: str, **fields: Any) -> Message:
        return await self.ask_by(json.dumps({"do": what, **fields})[:-1])

    async def ask_by(self, request: str) -> Message:
        """Return the answer to a request, whose text lacks its id and its closing brace."""
        self._number += 1
        number = self._number
        self._writer.write(f'{request},"id":{number}}}\n'.encode("ascii"))
        return await self._next(lambda message: message.get("re") == number)

    async def start(self, command: str, attempt: Attempt | None = None, name: str = "") -> Message:
        """Ask for a start in the folder; the logs have the name."""
        attempt = attempt or Attempt(token=new_token(), supervisor="")
        launch = launch_of(command, self._folder, name)
        return await self.ask_by(start_request("start", 1, attempt, launch.parts()))

    async def hears(self, what: str) -> Message:
        """Return the next message that has this."""
        return await self._next(lambda message: what in message)

    async def heard_end(self) -> None:
        """Return once the end of something was told."""
        await self._next(lambda m: m.get("event", {}).get("kind") == "Exited")

    async def ends_until(self, is_enough: Callable[[int], bool], last: int | None = None) -> int:
        """Return how many ends were told until that is enough, or until this answer."""
        ends = 0
        async with asyncio.timeout(LIMIT_S):
            while not is_enough(ends):
                message = json.loads(await self._reader.readline())
                if last is not None and message.get("re") == last:
                    break
                ends += message.get("event", {}).get("kind") == "Exited"
        return ends

    async def _next(self, is_it: Callable[[Message], bool]) -> Message:
        async with asyncio.timeout(LIMIT_S):
            while True:
                for message in self._unread:
                    if is_it(message):
                        self._unread.remove(message)
                        return message
                self._unread.append(json.loads(await self._reader.readline()))

    async def is_cut_off_by(self, data: bytes) -> bool:
        """Return whether the connection ends when these bytes were sent."""
        async with asyncio.timeout(LIMIT_S):
            try:
                self._writer.write(data)
                await self._writer.drain()
                while await self._reader.read(65536):
                    pass
            except ConnectionError:
                return True
            return self._reader.at_eof()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_unix_connection(socket_of(folder))
    try:
        yield Raw(folder, reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def launch_of(command: str, folder: Path, name: str) -> Launch:
    log = folder / name
    logs = LogPlan(stdout=f"{log}_out.txt", stderr=f"{log}_errors.txt")
    return Launch(
        job_id=name,
        argv=("/bin/sh", "-c", command),
        cwd=str(folder),
        base_env={},
        envs={},
        logs=logs,
        stop_grace=1.0,
    )


APPLICATION = """
import asyncio, os, signal, sys
from anodejobs import Jobs
from anodejobs.executors import shim
shim.LINGER_S = 0.05
run = asyncio.run
{before}
async def main():
    # What takes long on a busy machine is no news, in asyncio's debug mode neither.
    asyncio.get_running_loop().slow_callback_duration = 600
    async with Jobs("job_db", stop_grace=1) as jobs:
        {body}
run(main())
"""


async def application_that(
    folder: Path, body: str, before: str = "", code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run an application in the folder, and return what it has printed."""
    body = dedent(body).strip().replace("\n", "\n" + " " * 8)
    source = APPLICATION.format(before=dedent(before), body=body)
    application = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", source],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert application.returncode == code, application.stderr
    return application
