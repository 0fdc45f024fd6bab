"""What a job writes, as its followers, the readers of its logs and the listeners get it."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from anodejobs import ExecutorError, InvalidJob, JobEvent, JobNotFound, Jobs, LogChunk, Status
from anodejobs.executors.base import OnGrowth
from anodejobs.executors.processes import Processes
from anodejobs.logs import LogTail, rotated_folder
from tests.conftest import python
from tests.programs import Gate

LIMIT_S = 60.0

Chunks = AsyncGenerator[LogChunk, None]


# Live.


async def test_each_line_is_there_before_the_job_writes_the_next(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"echo 1; {gate.wait}; echo 2; {gate.wait}; echo 3", job_id="a")
    async with following(jobs, "a") as chunks:
        for line in (b"1\n", b"2\n", b"3\n"):
            assert (await anext(chunks)).data == line
            gate.open()
        assert not [chunk async for chunk in chunks]


async def test_who_follows_a_job_before_it_starts_gets_each_line_as_it_comes(
    jobs: Jobs, gate: Gate
) -> None:
    await jobs.create(f"echo 1; {gate.wait}; echo 2", job_id="a")
    async with following(jobs, "a") as chunks:
        first = asyncio.ensure_future(anext(chunks))
        await started_once_awaited(jobs, "a")
        assert (await first).data == b"1\n"
        gate.open()
        assert (await anext(chunks)).data == b"2\n"


async def test_who_follows_a_job_before_it_starts_misses_nothing_that_is_set_aside(
    tmp_path: Path, gate: Gate
) -> None:
    async with Jobs(tmp_path / "db", executor="inline", log_max_bytes=1000) as jobs:
        await jobs.create(f"seq 2000; {gate.wait}", job_id="a")
        async with following(jobs, "a") as chunks:
            first = asyncio.ensure_future(anext(chunks))
            await started_once_awaited(jobs, "a")
            read = (await first).data
            gate.open()
            read += b"".join([chunk.data async for chunk in chunks])
        assert read == b"".join(b"%d\n" % n for n in range(1, 2001))


async def started_once_awaited(jobs: Jobs, job_id: str) -> None:
    """Start the job when somebody waits for it."""
    while not jobs._jobdb.waits.awaits(job_id):  # noqa: ASYNC110  # nobody is told
        await asyncio.sleep(0)
    await jobs.start(job_id)


async def test_a_line_that_is_not_ended_is_given_as_well(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"printf 'Name: '; {gate.wait}", job_id="a")
    async with following(jobs, "a") as chunks:
        assert (await anext(chunks)).text == "Name: "
        gate.open()


async def test_both_streams_come_with_offsets_of_their_own(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"echo out; {gate.wait}; echo error >&2; {gate.wait}; echo more", job_id="a")
    async with following(jobs, "a") as chunks:
        assert await anext(chunks) == LogChunk("stdout", 0, b"out\n")
        gate.open()
        assert await anext(chunks) == LogChunk("stderr", 0, b"error\n")
        gate.open()
        assert await anext(chunks) == LogChunk("stdout", 4, b"more\n")


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ({}, {"stdout": b"out\n", "stderr": b"error\n"}),
        ({"stderr": False}, {"stdout": b"out\n"}),
        ({"stdout": False}, {"stderr": b"error\n"}),
        ({"stdout": False, "stderr": False}, {}),
    ],
    ids=["both", "stdout", "stderr", "neither"],
)
async def test_only_the_streams_asked_for_are_given(
    jobs: Jobs, streams: dict[str, bool], expected: dict[str, bytes]
) -> None:
    await jobs.run("echo out; echo error >&2", job_id="a")
    async with following(jobs, "a", **streams) as chunks:
        assert await by_stream(chunks) == expected


async def test_a_job_that_writes_nothing_is_followed_to_its_end(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(gate.wait, job_id="a")
    async with following(jobs, "a") as chunks:
        gate.open()
        assert not [chunk async for chunk in chunks]
    record = await jobs.get_status("a")
    assert record is not None and record.is_done


async def test_a_follower_is_given_all_before_the_end(jobs: Jobs) -> None:
    await jobs.run(python("print('x' * 3_000_000, end='!')"), job_id="a")
    async with following(jobs, "a") as chunks:
        assert (await by_stream(chunks))["stdout"] == b"x" * 3_000_000 + b"!"


async def test_a_follower_of_a_job_that_is_stopped_ends(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"echo last words; {gate.wait}", job_id="a")
    async with following(jobs, "a") as chunks:
        assert (await anext(chunks)).data == b"last words\n"
        await jobs.stop("a")
        assert not [chunk async for chunk in chunks]


async def test_an_ended_job_is_followed_from_its_beginning(jobs: Jobs) -> None:
    await jobs.run("echo out; echo error >&2; exit 3", job_id="a")
    await jobs.wait("a")
    async with following(jobs, "a") as chunks:
        assert await by_stream(chunks) == {"stdout": b"out\n", "stderr": b"error\n"}


async def test_a_follower_of_much_lets_others_have_their_turn(jobs: Jobs) -> None:
    await jobs.run(python("print('x' * 20_000_000)"), job_id="a")
    await jobs.wait("a")
    given = most = 0

    async def take_turns() -> None:
        nonlocal given
        while True:
            given = 0
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    async with following(jobs, "a") as chunks:
        async for chunk in chunks:
            given += len(chunk.data)
            most = max(most, given)
    others.cancel()
    assert most < 1_000_000


async def test_a_job_that_never_started_has_nothing_to_follow(jobs: Jobs) -> None:
    await jobs.run(["/no/such/program"], job_id="a")
    async with following(jobs, "a") as chunks:
        assert not [chunk async for chunk in chunks]


async def test_an_unknown_job_cannot_be_followed(jobs: Jobs) -> None:
    with pytest.raises(JobNotFound):
        await anext(jobs.follow("unknown"))


async def test_bytes_that_are_no_text_are_given_as_they_are(jobs: Jobs) -> None:
    await jobs.run(r"printf 'a\377\000b'", job_id="a")
    async with following(jobs, "a") as chunks:
        chunk = await anext(chunks)
    assert chunk.data == b"a\xff\0b"
    assert chunk.text == "a\N{REPLACEMENT CHARACTER}\0b"


async def test_many_followers_of_a_job_all_get_all(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"echo 1; {gate.wait}; seq 2 10000", job_id="a")

    async def followed(has_begun: asyncio.Event) -> bytes:
        async with following(jobs, "a") as chunks:
            first = (await anext(chunks)).data
            has_begun.set()
            return first + (await by_stream(chunks))["stdout"]

    begun = [asyncio.Event() for _ in range(20)]
    async with asyncio.TaskGroup() as tasks:
        followers = [tasks.create_task(followed(has_begun)) for has_begun in begun]
        for has_begun in begun:
            await has_begun.wait()
        gate.open()
    assert {follower.result() for follower in followers} == {numbers(1, 10000)}


async def test_a_follower_ends_when_the_jobs_were_closed_meanwhile(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"echo a; {gate.wait}", job_id="a")
    async with following(jobs, "a") as chunks:
        assert (await anext(chunks)).data == b"a\n"
        await jobs.close()
        assert [chunk async for chunk in chunks] == []


# From an offset on.


async def test_a_follower_resumes_without_a_gap_or_a_repeat(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"seq 1 20000; {gate.wait}; seq 20001 30000", job_id="a")
    async with following(jobs, "a") as chunks:
        first = await anext(chunks)
    gate.open()
    async with following(jobs, "a", offset=first.end) as chunks:
        rest = (await by_stream(chunks))["stdout"]
    assert first.data + rest == numbers(1, 30000)


async def test_a_follower_of_an_ended_job_resumes_as_well(jobs: Jobs) -> None:
    await jobs.run("seq 1 100000", job_id="a")
    await jobs.wait("a")
    got, offset = b"", 0
    while offset < len(numbers(1, 100000)):
        async with following(jobs, "a", stderr=False, offset=offset) as chunks:
            chunk = await anext(chunks)
        assert chunk.offset == offset
        got, offset = got + chunk.data, chunk.end
    assert got == numbers(1, 100000)


async def test_each_stream_resumes_from_an_offset_of_its_own(jobs: Jobs) -> None:
    await jobs.run("printf 0123456789; printf abcdefghij >&2", job_id="a")
    async with following(jobs, "a", offset={"stdout": 3, "stderr": 7}) as chunks:
        assert await by_stream(chunks) == {
            "stdout": b"3456789",
            "stderr": b"hij",
        }


async def test_a_stream_without_an_offset_is_given_from_its_beginning(jobs: Jobs) -> None:
    await jobs.run("printf 0123456789; printf abcdefghij >&2", job_id="a")
    async with following(jobs, "a", offset={"stdout": 3}) as chunks:
        assert (await by_stream(chunks))["stderr"] == b"abcdefghij"


async def test_one_offset_goes_for_both_streams(jobs: Jobs) -> None:
    await jobs.run("printf 0123456789; printf abcdefghij >&2", job_id="a")
    async with following(jobs, "a", offset=8) as chunks:
        assert await by_stream(chunks) == {
            "stdout": b"89",
            "stderr": b"ij",
        }


async def test_at_the_end_of_an_ended_job_there_is_nothing_more(jobs: Jobs) -> None:
    await jobs.run("printf 0123456789", job_id="a")
    await jobs.wait("a")
    for offset in (10, 2**63 - 1):
        async with following(jobs, "a", offset=offset) as chunks:
            assert not [chunk async for chunk in chunks]


@pytest.mark.parametrize(
    "offset",
    [-1, 1.5, "3", True, None, {"stdout": -1}, {"stdout": "3"}, {"stdout": None}, {"stdlog": 3}],
    ids=repr,
)
async def test_an_offset_that_is_none_is_an_invalid_job(jobs: Jobs, offset: Any) -> None:
    await jobs.run("true", job_id="a")
    with pytest.raises(InvalidJob) as caught:
        await anext(jobs.follow("a", offset=offset))
    assert caught.value.field == "offset"


# Slow followers, and those that go.


@pytest.mark.parametrize("backups", [0, 1, 3])
async def test_a_slow_follower_neither_slows_the_job_nor_misses_a_byte(
    tmp_path: Path, gate: Gate, backups: int
) -> None:
    async with rotating_jobs(tmp_path, 10_000, backups) as jobs:
        await jobs.run(f"echo 1; {gate.wait}; seq 2 100000", job_id="a")
        async with following(jobs, "a") as chunks:
            first = await anext(chunks)
            gate.open()
            assert (await jobs.wait("a")).status is Status.finished
            rest = (await by_stream(chunks))["stdout"]
        assert first.data + rest == numbers(1, 100000)


@pytest.mark.parametrize("backups", [0, 1, 3])
async def test_a_follower_that_keeps_up_misses_nothing_where_files_fill_to_the_last_byte(
    tmp_path: Path, gate: Gate, backups: int
) -> None:
    async with rotating_jobs(tmp_path, 4, backups) as jobs:
        rest = "".join(f"{number:04d}" for number in range(1, 20))
        await jobs.run(f"printf 0000; {gate.wait}; printf {rest}", job_id="a")
        async with following(jobs, "a") as chunks:
            await anext(chunks)
            gate.open()
            assert (await by_stream(chunks))["stdout"] == rest.encode()


@pytest.mark.parametrize("backups", [0, 1])
async def test_once_a_slow_follower_has_read_all_only_the_backups_are_kept(
    tmp_path: Path, gate: Gate, backups: int
) -> None:
    async with rotating_jobs(tmp_path, 10_000, backups) as jobs:
        record = await jobs.run(f"echo 1; {gate.wait}; seq 2 100000", job_id="a")
        async with following(jobs, "a") as chunks:
            await anext(chunks)
            gate.open()
            await jobs.wait("a")
            await by_stream(chunks)
    kept = rotated_folder(Path(record.logdir) / f"{record.logfile}_out.txt").iterdir()
    assert sum(path.stat().st_size > 0 for path in kept) == backups


async def test_a_job_writes_on_while_a_follower_does_not_read(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"echo 1; {gate.wait}; seq 2 500000", job_id="a")
    async with following(jobs, "a") as chunks:
        await anext(chunks)
        gate.open()
        assert (await jobs.wait("a")).exit_code == 0


async def test_a_cancelled_follower_leaves_the_job_as_it_is(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"echo 1; {gate.wait}; echo 2", job_id="a")
    has_begun = asyncio.Event()

    async def follow() -> None:
        async for _ in jobs.follow("a"):
            has_begun.set()

    task = asyncio.create_task(follow())
    await has_begun.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    gate.open()
    assert (await jobs.wait("a")).status is Status.finished
    assert await jobs.job_logs("a") == ("1\n2\n", "")


async def test_a_cancelled_follower_leaves_no_file_open(jobs: Jobs, gate: Gate) -> None:
    record = await jobs.run(f"echo 1; {gate.wait}", job_id="a")
    has_begun = asyncio.Event()

    async def follow() -> None:
        async for _ in jobs.follow("a"):
            has_begun.set()

    task = asyncio.create_task(follow())
    await has_begun.wait()
    assert open_for_reading(record.logdir)
    task.cancel()
    await asyncio.wait([task])
    assert not open_for_reading(record.logdir)
    gate.open()


async def test_a_closed_follower_leaves_no_file_open(jobs: Jobs, gate: Gate) -> None:
    record = await jobs.run(f"echo 1; {gate.wait}", job_id="a")
    async with following(jobs, "a") as chunks:
        await anext(chunks)
        assert open_for_reading(record.logdir)
    assert not open_for_reading(record.logdir)
    gate.open()


async def test_a_follower_cancelled_while_the_disk_is_slow_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_reading, may_read, has_read = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    read = LogTail.read

    def slow_read(tail: LogTail, limit: int) -> bytes:
        loop.call_soon_threadsafe(is_reading.set)
        may_read.wait(LIMIT_S)
        try:
            return read(tail, limit)
        finally:
            loop.call_soon_threadsafe(has_read.set)

    async def follow(jobs: Jobs) -> None:
        async for _ in jobs.follow("a", stderr=False):
            pass

    async with Jobs(db_path=tmp_path / "job_db", executor="inline") as jobs:
        record = await jobs.run("echo 1", job_id="a")
        await jobs.wait("a")
        monkeypatch.setattr(LogTail, "read", slow_read)
        task = asyncio.create_task(follow(jobs))
        await is_reading.wait()
        task.cancel()
        for _ in range(10):  # The follower's turns to give up, unless it waits for the read.
            await asyncio.sleep(0)
        may_read.set()
        await asyncio.wait([task])
        await has_read.wait()
        assert not open_for_reading(record.logdir)


async def test_a_slow_follower_of_a_run_is_given_nothing_of_the_next(
    jobs: Jobs, gate: Gate
) -> None:
    await jobs.run(f"printf first; {gate.wait}", job_id="a")
    async with following(jobs, "a") as chunks:
        assert (await anext(chunks)).data == b"first"
        gate.open()
        await jobs.wait("a")
        await jobs.run("printf 'and the second'", job_id="a")
        await jobs.wait("a")
        assert [chunk async for chunk in chunks] == []
    assert (await jobs.job_logs("a"))[0] == "and the second"


async def test_a_follower_reads_on_though_the_job_is_deleted(jobs: Jobs) -> None:
    await jobs.run("seq 1 100000", job_id="a")
    await jobs.wait("a")
    async with following(jobs, "a", stderr=False) as chunks:
        first = await anext(chunks)
        await jobs.delete("a")
        rest = (await by_stream(chunks))["stdout"]
    assert first.data + rest == numbers(1, 100000)


# The logs of a job.


async def test_the_logs_hold_what_was_written(jobs: Jobs) -> None:
    await jobs.run("echo out; echo error >&2", job_id="a")
    await jobs.wait("a")
    assert await jobs.job_logs("a") == ("out\n", "error\n")


async def test_the_logs_can_be_read_while_the_job_runs(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"echo 1; {gate.wait}; echo 2", job_id="a")
    async with following(jobs, "a") as chunks:
        await anext(chunks)
        assert await jobs.job_logs("a") == ("1\n", "")
        gate.open()


async def test_the_logs_of_a_job_that_writes_nothing_are_empty(jobs: Jobs) -> None:
    await jobs.run("true", job_id="a")
    await jobs.wait("a")
    assert await jobs.job_logs("a") == ("", "")


async def test_the_logs_of_an_unknown_job_are_not_found(jobs: Jobs) -> None:
    with pytest.raises(JobNotFound):
        await jobs.job_logs("unknown")


async def test_text_that_is_no_utf8_is_replaced(jobs: Jobs) -> None:
    await jobs.run(r"printf 'na\303\257ve \377'", job_id="a")
    await jobs.wait("a")
    assert (await jobs.job_logs("a"))[0] == "naïve \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("tail", "expected"),
    [(0, ("", "")), (3, ("789", "hij")), (10, ("0123456789", "abcdefghij"))],
)
async def test_the_tail_is_the_last_bytes_of_each_stream(
    jobs: Jobs, tail: int, expected: tuple[str, str]
) -> None:
    await jobs.run("printf 0123456789; printf abcdefghij >&2", job_id="a")
    await jobs.wait("a")
    assert await jobs.job_logs("a", tail=tail) == expected


async def test_a_tail_longer_than_the_log_is_all_of_it(jobs: Jobs) -> None:
    await jobs.run("echo 1", job_id="a")
    await jobs.wait("a")
    assert await jobs.job_logs("a", tail=1_000_000) == ("1\n", "")


@pytest.mark.parametrize("tail", [-1, 1.5, "3", True], ids=repr)
async def test_a_tail_that_is_no_number_of_bytes_is_an_invalid_job(jobs: Jobs, tail: Any) -> None:
    await jobs.run("true", job_id="a")
    with pytest.raises(InvalidJob) as caught:
        await jobs.job_logs("a", tail=tail)
    assert caught.value.field == "tail"


@pytest.mark.parametrize("tail", [1, 10, 11, 25])
async def test_a_tail_may_lie_across_rotated_files(tmp_path: Path, tail: int) -> None:
    async with rotating_jobs(tmp_path, 10, 2) as jobs:
        await jobs.run("printf 0123456789abcdefghijABCDEFGHIJ012345", job_id="a")
        await jobs.wait("a")
        logs = "abcdefghijABCDEFGHIJ012345"
        assert (await jobs.job_logs("a", tail=tail))[0] == logs[-tail:]


@pytest.mark.parametrize("backups", [0, 1, 3])
async def test_the_logs_of_a_job_are_those_that_are_kept(tmp_path: Path, backups: int) -> None:
    async with rotating_jobs(tmp_path, 1000, backups) as jobs:
        await jobs.run(python("print(''.join(f'{n:03d}.' for n in range(1000)), end='')"), "a")
        await jobs.wait("a")
        written = "".join(f"{n:03d}." for n in range(1000))
        assert (await jobs.job_logs("a"))[0] == written[-1000 * (backups + 1) :]


async def test_the_logs_of_an_odd_id_stay_inside(jobs: Jobs, tmp_path: Path) -> None:
    record = await jobs.run("echo hello", job_id="../../x")
    await jobs.wait("../../x")
    assert await jobs.job_logs("../../x") == ("hello\n", "")
    assert [path.parent for path in tmp_path.rglob("*x_out.txt")] == [Path(record.logdir)]


async def test_another_run_replaces_the_logs(jobs: Jobs) -> None:
    await jobs.run("echo first; echo error >&2", job_id="a")
    await jobs.wait("a")
    await jobs.run("echo second", job_id="a")
    await jobs.wait("a")
    assert await jobs.job_logs("a") == ("second\n", "")


async def test_what_an_earlier_run_left_behind_does_not_write_to_the_logs_of_the_next(
    jobs: Jobs, gate: Gate, tmp_path: Path
) -> None:
    with closing(Gate(tmp_path / "told")) as told:
        late = f"yes late | head -c 1000000; echo done > {tmp_path / 'told'}"
        await jobs.run(f"({gate.wait}; {late}) &", job_id="a", leftovers="leave")
        await jobs.wait("a")
        await jobs.run("echo new", job_id="a")
        await jobs.wait("a")
        gate.open()
        # That is more than a pipe holds: once all is written, most of it has been read.
        await told.opened()
        assert await jobs.job_logs("a") == ("new\n", "")


async def test_a_log_that_could_not_be_written_is_told_in_the_record(
    jobs: Jobs, gate: Gate
) -> None:
    record = await jobs.run(f"{gate.wait}; echo lost", job_id="a")
    shutil.rmtree(record.logdir)
    gate.open()
    record = await jobs.wait("a")
    assert (record.status, record.exit_code) == (Status.finished, 0)
    assert record.error == "the log a_out.txt is incomplete: No such file or directory"


async def test_who_reads_a_log_that_its_job_has_replaced_is_told(
    jobs: Jobs, gate: Gate, tmp_path: Path
) -> None:
    log = f"{tmp_path}/job_db/job_logs/a_out.txt"
    await jobs.run(f"echo one; {gate.wait}; rm {log}; mkfifo {log}; {gate.wait}", job_id="a")
    await jobs.run("echo undisturbed", job_id="b")
    async with following(jobs, "a") as chunks:
        assert (await anext(chunks)).data == b"one\n"
        gate.open()
        gate.open()
        with pytest.raises(ExecutorError, match="not a regular file"):
            await anext(chunks)
    with pytest.raises(ExecutorError, match="not a regular file"):
        await jobs.job_logs("a")
    assert (await jobs.wait("b")).exit_code == 0
    assert await jobs.job_logs("b") == ("undisturbed\n", "")


async def test_a_limited_job_that_has_replaced_its_log_by_a_pipe_ends_as_ever(
    jobs: Jobs, tmp_path: Path
) -> None:
    log = f"{tmp_path}/job_db/job_logs/a_errors.txt"
    await jobs.run(f"rm -f {log}; mkfifo {log}; exit 3", job_id="a", limits={"niceness": 5})
    try:
        assert (await jobs.wait("a", timeout=20)).exit_code == 3
    finally:  # who waited for its writer would keep all from ending
        with suppress(OSError):
            os.close(os.open(log, os.O_WRONLY | os.O_NONBLOCK))


# Events.


async def test_the_growth_of_a_log_is_an_event(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"{gate.wait}; printf hello; {gate.wait}; printf oh >&2", job_id="a")
    async with listening(jobs, "a", after=0) as events:
        assert (await anext(events)).kind == "status"
        gate.open()
        grown = await growth(events)
        assert (grown.job_id, grown.stream, grown.offset) == ("a", "stdout", 5)
        gate.open()
        grown = await growth(events)
        assert (grown.job_id, grown.stream, grown.offset) == ("a", "stderr", 2)


async def test_the_growth_of_other_jobs_is_no_event_of_a_job(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"{gate.wait}; echo mine", job_id="a")
    async with listening(jobs, "a", after=0) as events:
        await anext(events)
        await jobs.run("echo theirs", job_id="b")
        await jobs.wait("b")
        gate.open()
        assert (await growth(events)).job_id == "a"


async def test_growth_is_told_in_step_with_the_log(jobs: Jobs, gate: Gate) -> None:
    await jobs.run(f"{gate.wait}; seq 1 100000", job_id="a")
    offsets = []
    async with listening(jobs, "a", after=0) as events:
        await anext(events)
        gate.open()
        while (event := await anext(events)).status is not Status.finished:
            if event.kind == "log":
                assert event.offset is not None
                offsets.append(event.offset)
                logs = await jobs.job_logs("a")
                assert len(logs[0]) >= event.offset
    assert offsets == sorted(set(offsets))


async def test_growth_is_not_asked_for_once_nobody_listens(tmp_path: Path) -> None:
    class Asked(Processes):
        is_asked = False

        def report_growth(self, on_growth: OnGrowth | None) -> None:
            self.is_asked = on_growth is not None
            super().report_growth(on_growth)

    executor = Asked()
    async with Jobs(db_path=tmp_path / "job_db", executor=executor) as jobs:
        await jobs.run("true", job_id="a")
        async with listening(jobs, "a", after=0) as events:
            await anext(events)
            assert executor.is_asked
        assert not executor.is_asked


# What the tests above are written with.


@asynccontextmanager
async def following(
    jobs: Jobs, job_id: str, *, offset: int | Mapping[str, int] = 0, **streams: bool
) -> AsyncIterator[Chunks]:
    chunks: Any = jobs.follow(job_id, offset=offset, **streams)  # type: ignore[arg-type]
    async with asyncio.timeout(LIMIT_S), aclosing(chunks):
        yield chunks


@asynccontextmanager
async def listening(
    jobs: Jobs, job_id: str, *, after: int
) -> AsyncIterator[AsyncGenerator[JobEvent, None]]:
    events: Any = jobs.events(job_id, after=after)
    async with asyncio.timeout(LIMIT_S), aclosing(events):
        yield events


@asynccontextmanager
async def rotating_jobs(tmp_path: Path, max_bytes: int, backups: int) -> AsyncIterator[Jobs]:
    async with Jobs(
        db_path=tmp_path / "job_db",
        stop_grace=1,
        log_max_bytes=max_bytes,
        log_backups=backups,
        executor="inline",
    ) as jobs:
        yield jobs


async def by_stream(chunks: Chunks) -> dict[str, bytes]:
    """Return what is left of each stream, which must come without a gap or a repeat."""
    got: dict[str, bytes] = defaultdict(bytes)
    ends: dict[str, int] = {}
    async for chunk in chunks:
        assert chunk.data
        assert chunk.offset == ends.get(chunk.stream, chunk.offset)
        got[chunk.stream] += chunk.data
        ends[chunk.stream] = chunk.end
    return got


async def growth(events: AsyncGenerator[JobEvent, None]) -> JobEvent:
    async for event in events:
        if event.kind == "log":
            return event
    raise AssertionError("the events ended")


def numbers(first: int, last: int) -> bytes:
    """Return what ``seq`` writes."""
    return b"".join(b"%d\n" % number for number in range(first, last + 1))


def open_for_reading(logdir: str) -> list[str]:
    """Return the log files that this process reads."""
    files = psutil.Process().open_files()
    return [f.path for f in files if f.mode == "r" and Path(f.path).parent == Path(logdir)]
