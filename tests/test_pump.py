"""The pump: what is written to pipes arrives in the logs, whatever is in the way."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import resource
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

from anodejobs.executors import pump as pumping
from anodejobs.executors.pump import LogPump, Pipe
from anodejobs.logs import LogFile, rotated_folder
from tests.conftest import python
from tests.test_logs import all_bytes

LIMIT_S = 60.0


@pytest.fixture
async def pump() -> AsyncIterator[LogPump]:
    pump = LogPump(asyncio.get_running_loop(), lambda pipe, offset: None)
    yield pump
    await pump.close()


Pipes = Callable[[], tuple[int, FileIO]]


@pytest.fixture
def pipe() -> Iterator[Pipes]:
    """Makes pipes, whose write ends it closes; the read ends are the pump's."""
    with contextlib.ExitStack() as stack:

        def make() -> tuple[int, FileIO]:
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            return reading, stack.enter_context(FileIO(writing, "w"))

        yield make


async def test_what_is_written_to_a_pipe_arrives_in_the_log(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    writing.write(b"hello\n")
    await has_grown(pump, pumped, 6)
    assert (tmp_path / "log").read_bytes() == b"hello\n"


@pytest.mark.parametrize(
    "data", [b"no newline", b"\0" * 1000, bytes(range(256)) * 8, b"\r\n\r\n", b"\xff\xfe"], ids=repr
)
async def test_bytes_arrive_as_they_are(
    pump: LogPump, pipe: Pipes, tmp_path: Path, data: bytes
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    writing.write(data)
    await pump.settle(pumped)
    assert (tmp_path / "log").read_bytes() == data


@pytest.mark.parametrize("max_bytes", [None, 1_000_003])
async def test_floods_between_lines_arrive_whole(
    pump: LogPump, pipe: Pipes, tmp_path: Path, max_bytes: int | None
) -> None:
    reading, writing = pipe()
    flooded = pump.add(reading, LogFile(tmp_path / "log", max_bytes, backups=100))
    for number in range(1, 4):
        writing.write(b"a line\n")
        with flood(writing):
            await has_grown(pump, flooded, number * (7 + len(FLOOD)))
    assert all_bytes(tmp_path / "log") == (b"a line\n" + FLOOD) * 3


async def test_floods_at_once_arrive_each_in_its_own_log(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        flooded = []
        for name in "abc":
            reading, writing = pipe()
            writing.write(name.encode())
            flooded.append(pump.add(reading, LogFile(tmp_path / name)))
            stack.enter_context(flood(writing))
        for one in flooded:
            await has_grown(pump, one, 1 + len(FLOOD))
    for name in "abc":
        assert (tmp_path / name).read_bytes() == name.encode() + FLOOD


async def test_a_flood_arrives_where_the_file_system_cannot_splice(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    log = Unspliceable(tmp_path / "log")
    flooded = pump.add(reading, log)
    with flood(writing):
        await has_grown(pump, flooded, len(FLOOD))
    assert log.was_asked
    assert log.path.read_bytes() == FLOOD


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
async def test_a_flood_arrives_where_the_system_cannot_splice(
    pump: LogPump,
    pipe: Pipes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
) -> None:
    asked = []

    def refuse(*_: object, **__: object) -> int:
        asked.append(error)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "splice", refuse, raising=False)
    reading, writing = pipe()
    flooded = pump.add(reading, LogFile(tmp_path / "log"))
    with flood(writing):
        await has_grown(pump, flooded, len(FLOOD))
    assert asked or not hasattr(fcntl, "F_SETPIPE_SZ")
    assert flooded.log.path.read_bytes() == FLOOD


async def test_many_pipes_arrive_each_in_its_own_log(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    ends = [pipe() for _ in range(50)]
    pumped = [pump.add(reading, LogFile(tmp_path / str(reading))) for reading, _ in ends]
    for _ in range(3):
        for reading, writing in ends:
            writing.write(b"%d\n" % reading)
    for one in pumped:
        await pump.settle(one)
    for reading, _ in ends:
        assert (tmp_path / str(reading)).read_bytes() == b"%d\n" % reading * 3


async def test_more_logs_than_may_be_open_at_once_are_all_written(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    pump._most_open_logs = 4
    ends = [pipe() for _ in range(20)]
    pumped = [pump.add(reading, LogFile(tmp_path / str(reading))) for reading, _ in ends]
    for _ in range(2):
        for (reading, writing), one in zip(ends, pumped, strict=True):
            writing.write(b"%d\n" % reading)
            await pump.settle(one)
    assert open_files_in(tmp_path) <= 4
    for reading, _ in ends:
        assert (tmp_path / str(reading)).read_bytes() == b"%d\n" % reading * 2


async def test_a_pipe_without_a_byte_makes_no_log(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    writing.close()
    await pump.settle(pumped)
    assert not (tmp_path / "log").exists()


async def test_a_stream_that_ends_before_its_process_is_in_the_log(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    code = "import os, time; os.write(1, b'bye'); os.close(1); time.sleep(600)"
    with child(python(code), stdout=writing) as process:
        writing.close()
        await has_grown(pump, pumped, 3)
        await pump.settle(pumped)
        assert process.poll() is None
    assert (tmp_path / "log").read_bytes() == b"bye"


async def test_settle_carries_what_is_there_though_a_writer_holds_the_pipe_for_ever(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    writing.write(b"x" * 60_000)
    async with asyncio.timeout(LIMIT_S):
        await pump.settle(pumped)
    assert (tmp_path / "log").stat().st_size == 60_000


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes cannot be enlarged")
async def test_settle_carries_all_that_a_job_had_its_pipe_hold(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    fcntl.fcntl(writing.fileno(), fcntl.F_SETPIPE_SZ, 1_000_000)
    written = b"x" * 1_000_000
    with pump._lock:  # it has had no time to read before the job ends
        pumped = pump.add(reading, LogFile(tmp_path / "log"))
        writing.write(written)
        settled = asyncio.ensure_future(pump.settle(pumped))
        await asyncio.sleep(0)
    await settled
    assert (tmp_path / "log").read_bytes() == written


async def test_settle_returns_though_a_writer_never_stops(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log", 1024 * 1024, 0))
    with child(["yes", "and so on"], stdout=writing) as process:
        await has_grown(pump, pumped, 1)
        async with asyncio.timeout(LIMIT_S):
            await pump.settle(pumped)
        assert process.poll() is None


async def test_settle_of_a_pipe_that_has_ended_returns(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    writing.write(b"bye")
    writing.close()
    await pump.settle(pumped)
    await pump.settle(pumped)
    await pump.release(pumped)
    assert (tmp_path / "log").read_bytes() == b"bye"


async def test_a_released_pipe_is_closed_though_a_writer_holds_it(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    await pump.release(pumped)
    with pytest.raises(BrokenPipeError):
        writing.write(b"is anybody there?")


async def test_followers_are_told_of_every_growth(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    for number in range(1, 20):
        writing.write(b"x")
        await has_grown(pump, pumped, number)
    assert not pumped.on_growth


async def test_all_growth_is_told_of_where_that_is_asked_for(pipe: Pipes, tmp_path: Path) -> None:
    told: asyncio.Queue[int] = asyncio.Queue()
    pump = LogPump(asyncio.get_running_loop(), lambda pipe, offset: told.put_nowait(offset))
    pump.reports_all = True
    reading, writing = pipe()
    pump.add(reading, LogFile(tmp_path / "log"))
    try:
        async with asyncio.timeout(LIMIT_S):
            writing.write(b"hello")
            assert await told.get() == 5
            writing.write(b" again")
            assert await told.get() == 11
    finally:
        await pump.close()


async def test_a_log_that_cannot_be_written_stalls_no_other_pipe(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    log = Trouble(tmp_path / "removed" / "log")
    stalled = pump.add(reading, log)
    writing.write(b"waits")
    await log.failed()
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    writing.write(b"hello")
    await has_grown(pump, pumped, 5)
    assert stalled.error == "the log log is incomplete: No such file or directory"
    assert pumped.error is None


async def test_a_log_goes_on_where_it_was_once_it_can_be_written(
    pump: LogPump, pipe: Pipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pumping, "_RETRY_S", 0.02)
    reading, writing = pipe()
    log = Trouble(tmp_path / "removed" / "log")
    pumped = pump.add(reading, log)
    writing.write(b"one ")
    await log.failed()
    writing.write(b"two ")
    log.path.parent.mkdir()
    await has_grown(pump, pumped, 8)
    writing.write(b"three")
    await has_grown(pump, pumped, 13)
    assert log.path.read_bytes() == b"one two three"
    assert pumped.error is None


async def test_no_byte_is_lost_while_there_is_no_room(
    pump: LogPump, pipe: Pipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pumping, "_RETRY_S", 0.02)
    reading, writing = pipe()
    log = Trouble(tmp_path / "log")
    pumped = pump.add(reading, log)
    code = "import sys; sys.stdout.write(''.join(f'{n:09d}\\n' for n in range(200_000)))"
    with child(python(code), stdout=writing) as process:
        with room_for(1_000_000):
            await log.failed()
        await has_grown(pump, pumped, 2_000_000)
        assert process.wait() == 0
    assert log.path.read_bytes() == b"".join(b"%09d\n" % number for number in range(200_000))


async def test_a_log_without_room_says_so(pump: LogPump, pipe: Pipes, tmp_path: Path) -> None:
    reading, writing = pipe()
    log = Trouble(tmp_path / "log")
    pumped = pump.add(reading, log)
    with room_for(1_000_000), child(["yes", "and so on"], stdout=writing):
        await log.failed()
        await pump.settle(pumped)
    assert pumped.error == "the log log is incomplete: File too large"
    assert log.path.stat().st_size == 1_000_000


async def test_settle_gives_up_what_cannot_be_written(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "removed" / "log"))
    writing.write(b"nowhere to go")
    await pump.settle(pumped)
    await pump.settle(pumped)
    assert pumped.error == "the log log is incomplete: No such file or directory"


async def test_one_logs_fault_leaves_the_others_alone(
    pump: LogPump, pipe: Pipes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reading, writing = pipe()
    log = Faulty(tmp_path / "broken", after_bytes=0)
    broken = pump.add(reading, log)
    writing.write(b"lost")
    await log.failed()
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    writing.write(b"hello")
    await has_grown(pump, pumped, 5)
    assert broken.error is not None and "broken" in broken.error
    assert "broken" in caplog.text


async def test_a_log_whose_closing_fails_ends_no_other_one(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    pump._most_open_logs = 1
    reading, writing = pipe()
    uneasy = pump.add(reading, Uneasy(tmp_path / "uneasy"))
    writing.write(b"hello")
    await has_grown(pump, uneasy, 5)
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    for word in (b"one ", b"two"):
        writing.write(word)
        await pump.settle(pumped)
    assert (tmp_path / "log").read_bytes() == b"one two"
    assert pumped.error is None
    assert uneasy.error == "the log uneasy is incomplete: Disk quota exceeded"


async def test_a_log_says_that_it_is_incomplete_though_what_comes_later_is_written(
    pump: LogPump, pipe: Pipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log", max_bytes=4))
    writing.write(b"1234")
    await has_grown(pump, pumped, 4)
    close, failures = os.close, [OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))]

    def closed(fd: int) -> None:
        is_log = os.readlink(f"/proc/self/fd/{fd}").startswith(str(tmp_path))
        close(fd)
        if is_log and failures:
            raise failures.pop()

    monkeypatch.setattr(os, "close", closed)
    writing.write(b"56")
    await has_grown(pump, pumped, 6)
    assert not failures
    assert pumped.error == "the log log is incomplete: Disk quota exceeded"


async def test_a_log_whose_closing_fails_does_not_keep_its_pipe_open(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    uneasy = pump.add(reading, Uneasy(tmp_path / "uneasy"))
    writing.write(b"hello")
    await has_grown(pump, uneasy, 5)
    await pump.release(uneasy)
    assert uneasy.fd is None


@pytest.mark.parametrize("selector", ["_now", "_lazy"])
async def test_output_arrives_though_the_system_had_no_memory_to_look_for_it(
    pipe: Pipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selector: str
) -> None:
    monkeypatch.setattr(pumping, "_RETRY_S", 0.02)
    growth: asyncio.Queue[int] = asyncio.Queue()
    pump = LogPump(asyncio.get_running_loop(), lambda pipe, offset: growth.put_nowait(offset))
    pump.reports_all = True
    patched = getattr(pump, selector)
    monkeypatch.setattr(patched, "register", failing_once(patched.register))
    try:
        reading, writing = pipe()
        pumped = pump.add(reading, LogFile(tmp_path / "log"))
        for n in range(1, 4):
            writing.write(b"line")
            async with asyncio.timeout(LIMIT_S):
                assert await growth.get() == 4 * n
        assert pumped.error is None
    finally:
        await pump.close()


async def test_a_flood_that_cannot_be_carried_on_leaves_no_byte_in_the_next_ones_log(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    log = Faulty(tmp_path / "broken", after_bytes=len(FLOOD) // 2)
    writing.write(b"a line")
    await has_grown(pump, pump.add(reading, log), 6)
    with flood(writing) as process:
        assert await asyncio.to_thread(process.wait) != 0  # its pipe was closed
    reading, writing = pipe()
    flooded = pump.add(reading, LogFile(tmp_path / "log"))
    with flood(writing):
        await has_grown(pump, flooded, len(FLOOD))
    assert (tmp_path / "log").read_bytes() == FLOOD


async def test_what_a_job_puts_among_its_rotated_files_does_not_end_the_pump(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    trapped = LogFile(tmp_path / "trapped")
    rotated_folder(trapped.path).mkdir()
    (rotated_folder(trapped.path) / "no offset").touch()
    pump.trim(trapped)
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    writing.write(b"hello")
    await has_grown(pump, pumped, 5)


async def test_closing_closes_every_pipe(pump: LogPump, pipe: Pipes, tmp_path: Path) -> None:
    ends = [pipe() for _ in range(5)]
    for reading, writing in ends:
        pump.add(reading, LogFile(tmp_path / str(reading)))
        writing.write(b"in the pipe, or in the log")
    await pump.close()
    for _, writing in ends:
        with pytest.raises(BrokenPipeError):
            writing.write(b"is anybody there?")


async def test_closing_closes_a_pipe_that_waits_for_room(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    log = Trouble(tmp_path / "removed" / "log")
    pump.add(reading, log)
    writing.write(b"waits")
    await log.failed()
    await pump.close()
    with pytest.raises(BrokenPipeError):
        writing.write(b"is anybody there?")


async def test_closing_twice_is_closing_once(pump: LogPump) -> None:
    await pump.close()
    await pump.close()


async def test_closing_does_not_wait_for_a_log_that_hangs(
    pump: LogPump,
    pipe: Pipes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Hanging(tmp_path / "log")
    reading, writing = pipe()
    pump.add(reading, log)
    writing.write(b"hello")
    assert await asyncio.to_thread(log.hangs.wait, LIMIT_S)
    with monkeypatch.context() as patch:
        patch.setattr(pumping, "_CLOSING_S", 0.01)
        async with asyncio.timeout(LIMIT_S):
            await pump.close()
    assert "a log could not be written for 0.01 s: it is not waited for" in caplog.text
    log.may_go.set()


async def test_a_line_of_any_length_takes_no_more_memory(
    pump: LogPump, pipe: Pipes, tmp_path: Path
) -> None:
    reading, writing = pipe()
    pumped = pump.add(reading, LogFile(tmp_path / "log"))
    code = "import os; [os.write(1, b'x' * 1024 * 1024) for _ in range(64)]"
    before = forget_peak_memory()
    with child(python(code), stdout=writing) as process:
        await has_grown(pump, pumped, 64 * 1024 * 1024)
        assert process.wait() == 0
    assert (tmp_path / "log").stat().st_size == 64 * 1024 * 1024
    assert peak_memory() - before < 32 * 1024 * 1024


# What the tests above are written with.


class Trouble(LogFile):
    """A log that says when it could not be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._has_failed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def failed(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self._has_failed.wait()

    def write(self, data: memoryview) -> int:
        try:
            return super().write(data)
        except Exception:
            self._loop.call_soon_threadsafe(self._has_failed.set)
            raise


class Hanging(LogFile):
    """A log on a file system that hangs, until it may go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hangs, self.may_go = threading.Event(), threading.Event()

    def write(self, data: memoryview) -> int:
        self.hangs.set()
        self.may_go.wait(LIMIT_S)
        return super().write(data)


class Faulty(Trouble):
    """A log with a fault in it, that shows after so many bytes."""

    def __init__(self, path: Path, after_bytes: int) -> None:
        super().__init__(path)
        self._after_bytes = after_bytes

    def _room(self, wanted: int) -> tuple[int, int]:
        if self.offset >= self._after_bytes:
            raise ValueError("a fault")
        return super()._room(wanted)


class Uneasy(LogFile):
    """A log on a network file system that has no room for what it took, and says so at the end."""

    def close(self) -> None:
        was_open = self.fd is not None
        super().close()
        if was_open:
            self.unclosed = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


class Unspliceable(LogFile):
    """A log on a file system that knows no splice."""

    was_asked = False

    def splice(self, pipe_fd: int, most: int) -> int:
        self.was_asked = True
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


FLOOD = b"".join(b"%09d\n" % number for number in range(600_000))
"""More than any pipe holds."""


def flood(stdout: FileIO) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Write FLOOD, as fast as it can be."""
    code = "import sys; sys.stdout.write(''.join(f'{n:09d}\\n' for n in range(600_000)))"
    return child(python(code), stdout)


@contextmanager
def child(command: list[str], stdout: FileIO) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the context is open."""
    with subprocess.Popen(command, stdout=stdout) as process:
        try:
            yield process
        finally:
            process.kill()


async def has_grown(pump: LogPump, pipe: Pipe, offset: int) -> None:
    """Return when the pipe has given ``offset`` bytes to its log."""
    woken = asyncio.Event()
    pump.follow(pipe, woken.set)
    try:
        async with asyncio.timeout(LIMIT_S):
            while pipe.offset < offset:
                await woken.wait()
                woken.clear()
    finally:
        pump.unfollow(pipe, woken.set)


@contextmanager
def room_for(n: int) -> Iterator[None]:
    """Refuse what would make a file of this process longer, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failing_once(register: Callable[..., object]) -> Callable[..., object]:
    """Return a ``register`` for which the system has no memory the first time."""
    failures = [OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))]

    def registered(*args: object) -> object:
        if failures:
            raise failures.pop()
        return register(*args)

    return registered


def open_files_in(folder: Path) -> int:
    targets = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            targets.append(Path(os.readlink(f"/proc/self/fd/{name}")))
    return sum(target.parent == folder for target in targets)


def forget_peak_memory() -> int:
    """Return how much memory this process has now, which is its new peak."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024
