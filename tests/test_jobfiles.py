"""What a job is given and gives back; and its progress, pushed on as the job tells it."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from anodejobs import folderwatch, progress
from anodejobs.executors.base import Launch, LogPlan
from anodejobs.folderwatch import Changes, Inotify, Listing
from anodejobs.jobfiles import MOST_RESULT_BYTES, JobFiles, Result
from anodejobs.logs import log_name, rotated_folder
from anodejobs.progress import ProgressWatch, last_progress, parse_progress
from anodejobs.records import JobRecord
from anodejobs.removal import remove_attempts
from anodejobs.testing import make_launch, make_record

PATIENCE_S = 60.0


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    files = JobFiles(tmp_path / "job_files")
    files.open()
    return files


def sh(script: str, variables: dict[str, str]) -> None:
    """Run a shell script as an attempt that has these variables."""
    ran = subprocess.run(["/bin/sh", "-c", script], env={**os.environ, **variables}, check=False)
    assert ran.returncode == 0


def result_path(files: JobFiles, attempt: int = 1) -> Path:
    return Path(files.variables("job", attempt)["ANODEJOBS_RESULT"])


# Payload.


def test_a_payload_is_json_in_a_file(files):
    files.hand_out("job", {"regions": ["north", "süd"]})
    assert json.loads(Path(files.payload("job")).read_bytes()) == {"regions": ["north", "süd"]}


@pytest.mark.parametrize("payload", [0, False, "", [], {}])
def test_an_empty_payload_is_one(files, payload):
    files.hand_out("job", payload)
    assert json.loads(Path(files.payload("job")).read_text()) == payload


def test_files_and_folders_are_for_their_owner_only(files, tmp_path):
    previous = os.umask(0)
    try:
        files = JobFiles(tmp_path / "others")
        files.open()
        files.hand_out("job", 1)
        payload = Path(files.payload("job"))
    finally:
        os.umask(previous)
    assert payload.stat().st_mode & 0o777 == 0o600
    for folder in [tmp_path / "others", *(tmp_path / "others").iterdir()]:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_what_a_crash_left_of_a_payload_is_removed_when_nobody_writes_it_any_more(files, tmp_path):
    parts = tmp_path / "job_files" / "parts"
    old, new = parts / "old", parts / "new"
    for part in (old, new):
        part.write_text("half of")
    os.utime(old, (0, 0))
    files.open()
    assert list(parts.iterdir()) == [new]


def test_a_payload_that_cannot_be_put_in_its_place_leaves_nothing(files, tmp_path):
    Path(files.payload("job")).parent.rmdir()
    with pytest.raises(FileNotFoundError):
        files.hand_out("job", 1)
    assert list((tmp_path / "job_files" / "parts").iterdir()) == []


def test_a_payload_takes_the_place_of_what_a_job_has_put_there(files):
    (Path(files.payload("job")) / "inner").mkdir(parents=True)
    files.hand_out("job", 1)
    assert Path(files.payload("job")).read_text() == "1"


def test_two_who_start_an_attempt_may_both_hand_out_its_payload(files, monkeypatch):
    replace = os.replace

    def replace_later(part, path):
        monkeypatch.setattr(os, "replace", replace)
        files.hand_out("job", 1)  # the other one, in the middle of it
        replace(part, path)

    monkeypatch.setattr(os, "replace", replace_later)
    files.hand_out("job", 1)
    assert Path(files.payload("job")).read_text() == "1"


@pytest.mark.parametrize("job_id", ["../../x", "a/b", "Ü" * 200, "x" * 200, ".hidden", "a.1"])
def test_every_job_id_has_its_files_inside(files, tmp_path, job_id):
    files.hand_out(log_name(job_id), 1)
    variables = files.variables(log_name(job_id), 1)
    sh('echo 2 > "$ANODEJOBS_RESULT"; echo 0.5 >> "$ANODEJOBS_PROGRESS"', variables)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(map(str, found)) == sorted([*variables.values(), files.payload(log_name(job_id))])
    assert files.result(log_name(job_id), 1) == Result(2)


# Result.


def test_a_result_is_what_the_job_wrote(files):
    sh('echo \'{"rows": [1, 2.5, null]}\' > "$ANODEJOBS_RESULT"', files.variables("job", 1))
    assert files.result("job", 1) == Result({"rows": [1, 2.5, None]})


def test_a_job_that_wrote_none_has_no_result(files):
    assert files.result("job", 1) is None


def test_a_result_that_is_null_is_one(files):
    result_path(files).write_text("null")
    assert files.result("job", 1) == Result(None)


def test_each_attempt_has_its_own_result(files):
    result_path(files, 1).write_text("1")
    result_path(files, 2).write_text("2")
    assert (files.result("job", 1), files.result("job", 2)) == (Result(1), Result(2))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "{'a': 1}", "[1] 2", "NaN", "[Infinity]", "1e999", '{"a":[-1e999]}'),
        *('"\\ud800"', "[" * 5000 + "]" * 5000),
    ],
)
def test_a_result_that_is_not_json_is_an_error_in_a_line(files, text):
    result_path(files).write_text(text)
    found = files.result("job", 1)
    assert found is not None and found.value is None
    assert found.error is not None and found.error.startswith("the result is not JSON: ")
    assert "\n" not in found.error


def test_bytes_that_are_no_text_are_an_error(files):
    result_path(files).write_bytes(b'"\xff"')
    found = files.result("job", 1)
    assert found is not None and "not JSON" in (found.error or "")


def test_the_largest_result_is_read_and_a_larger_one_is_an_error(files):
    result_path(files).write_text(f'"{"x" * (MOST_RESULT_BYTES - 2)}"')
    found = files.result("job", 1)
    assert found is not None and found.error is None
    with result_path(files).open("a") as file:
        file.write(" ")
    assert files.result("job", 1) == Result(error="the result is longer than 16777216 bytes")


def test_a_result_that_is_a_link_is_not_followed(files, tmp_path):
    (tmp_path / "secret").write_text("1")
    result_path(files).symlink_to(tmp_path / "secret")
    assert files.result("job", 1) == Result(
        error="the result cannot be read: it is a symbolic link"
    )


def test_a_result_that_is_a_pipe_is_not_waited_for(files):
    os.mkfifo(result_path(files))
    expected = "the result cannot be read: it is not a regular file"
    assert files.result("job", 1) == Result(error=expected)


def test_a_result_that_is_a_folder_is_an_error(files):
    result_path(files).mkdir()
    found = files.result("job", 1)
    assert found is not None and (found.error or "").startswith("the result cannot be read: ")


# Removal.


def test_removing_leaves_nothing_of_a_job(files, tmp_path):
    files.hand_out("job", 1)
    launch, record = an_attempt(files, 3)
    for attempt in (1, 2, 3):
        sh(
            'echo 1 > "$ANODEJOBS_RESULT"; echo 1 >> "$ANODEJOBS_PROGRESS"',
            files.variables("job", attempt),
        )
        logs = launch.of_attempt(attempt).logs
        for path in (logs.path("stdout"), logs.path("stderr")):
            path.write_text("said")
            rotated_folder(path).mkdir()
            (rotated_folder(path) / "4").write_text("said before")
    remove_attempts(launch, record)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_removing_a_job_leaves_others_alone(files):
    for name in ("job", "job.1", "job2"):
        Path(files.variables(name, 1)["ANODEJOBS_RESULT"]).write_text("1")
    remove_attempts(*an_attempt(files, 1))
    assert files.result("job", 1) is None
    assert (files.result("job.1", 1), files.result("job2", 1)) == (Result(1), Result(1))


def test_removing_what_is_not_there_does_nothing(files):
    remove_attempts(*an_attempt(files, 2))


def test_a_folder_that_a_job_made_of_its_result_is_removed_with_it(files):
    (result_path(files) / "inner").mkdir(parents=True)
    remove_attempts(*an_attempt(files, 1))
    assert not result_path(files).exists()


def an_attempt(files: JobFiles, number: int) -> tuple[Launch, JobRecord]:
    """Return what is kept of a job that is at its attempt of that number."""
    folder = files.progress_folder.parent
    logs = LogPlan(stdout=f"{folder.parent}/job_out.txt", stderr=f"{folder.parent}/job_errors.txt")
    launch = make_launch("job", files=str(folder), logs=logs)
    return launch, make_record("job", logfile="job", attempt=number)


# Lines of progress.


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"0.4 loading", (0.4, "loading")),
        (b"0.4", (0.4, "")),
        (b"  .5\tb  c ", (0.5, "b  c")),
        (b"1", (1.0, "")),
        (b"40% of all", (0.4, "of all")),
        (b"7 too much", (1.0, "too much")),
        (b"-1e3 too little", (0.0, "too little")),
        (b"1e999", (1.0, "")),
        (b"0.5 \xff\x1b[31mred\r", (0.5, "\ufffd [31mred")),
        ("0.5 süß\u2028x".encode(), (0.5, "süß x")),
    ],
)
def test_a_line_of_progress_is_a_number_and_a_text(line, expected):
    assert parse_progress(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"loading", b"0.4loading", b"nan", b"inf x", b"0x1", b"1_0"),
        pytest.param(b"1" * 200_000 + b"x", id="many digits"),  # in linear time, or not in a day
    ],
)
def test_another_line_is_none_of_progress(line):
    assert parse_progress(line) is None


def test_the_text_of_a_line_is_bounded():
    assert parse_progress(b"0.5 " + b"x" * 4000) == (0.5, "x" * 200)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", None),
        (b"0.5", None),
        (b"0.5\n", (0.5, "")),
        (b"0.5\n0.6", (0.5, "")),
        (b"0.5\nnonsense\n\n", (0.5, "")),
        (b"x" * 5000 + b"\n0.5 a\n", (0.5, "a")),
        (b"0.5 a\n" + b"x" * 5000 + b"\n", None),
        (b"0.1\n" * 5000 + b"0.2 last\n", (0.2, "last")),
    ],
)
def test_the_last_complete_line_that_makes_sense_counts(tmp_path, content, expected):
    (tmp_path / "file").write_bytes(content)
    assert last_progress(tmp_path / "file") == expected


def test_a_line_whose_beginning_is_out_of_sight_does_not_count(tmp_path):
    # Of the long line only zeros are seen, which would make a number.
    (tmp_path / "file").write_bytes(b"0.9 " + b"0" * 5000 + b"\n")
    assert last_progress(tmp_path / "file") is None


def test_progress_is_read_neither_through_a_link_nor_from_a_pipe(tmp_path):
    (tmp_path / "file").write_text("0.5\n")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert last_progress(tmp_path / "link") is None
    assert last_progress(tmp_path / "pipe") is None
    assert last_progress(tmp_path) is None
    assert last_progress(tmp_path / "nowhere") is None


def test_progress_that_cannot_be_read_to_the_end_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("0.5\n")
    for name in ("fstat", "pread", "close"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, failing(getattr(os, name)))
            assert last_progress(tmp_path / "file") is None


# Progress, pushed.


class Ear:
    """Keeps what it is told, and can be awaited."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, float, str]] = []
        self._rung = asyncio.Event()

    def __call__(self, logfile: str, attempt: int, fraction: float, text: str) -> None:
        self.told.append((logfile, attempt, fraction, text))
        self._rung.set()

    async def hears(self, *expected: object) -> None:
        """Return once this was told."""
        async with asyncio.timeout(PATIENCE_S):
            while expected not in self.told:
                await self._rung.wait()
                self._rung.clear()


@asynccontextmanager
async def watching(files: JobFiles, ear: Ear | None = None) -> AsyncIterator[Ear]:
    ear = ear or Ear()
    watch = ProgressWatch(files.progress_folder, ear)
    watch.open()
    try:
        yield ear
    finally:
        watch.close()


def no_inotify(folder: Path) -> Inotify:
    raise OSError("there is none")


@pytest.fixture(params=["told", "looking"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the kernel tells of changes, or they are looked for."""
    if request.param == "looking":
        monkeypatch.setattr(progress, "Inotify", no_inotify)
        monkeypatch.setattr(progress, "_POLL_S", 0.02)
    return str(request.param)


async def test_what_a_shell_says_is_told(files, way):
    async with watching(files) as ear:
        await asyncio.to_thread(
            sh, 'echo 0.4 loading it >> "$ANODEJOBS_PROGRESS"', files.variables("a.b", 7)
        )
        await ear.hears("a.b", 7, 0.4, "loading it")


async def test_a_line_is_told_when_its_end_comes(files, way):
    path = files.progress_folder / "job.1"
    async with watching(files) as ear:
        path.write_text("0.1 a\n0.2 ")
        await ear.hears("job", 1, 0.1, "a")
        with path.open("a") as file:
            file.write("b\n")
        await ear.hears("job", 1, 0.2, "b")
    assert len(ear.told) == 2


async def test_all_jobs_are_told_of_by_one_watch(files, way):
    async with watching(files) as ear:
        for n in range(100):
            (files.progress_folder / f"job{n}.1").write_text(f"0.5 {n}\n")
        for n in range(100):
            await ear.hears(f"job{n}", 1, 0.5, str(n))
    assert len(ear.told) == 100


async def test_a_file_that_is_replaced_is_told_of(files, way):
    path = files.progress_folder / "job.1"
    async with watching(files) as ear:
        path.write_text("0.9 first\n")
        await ear.hears("job", 1, 0.9, "first")
        other = files.progress_folder / "part"
        other.write_text("0.1 second\n")
        other.replace(path)
        await ear.hears("job", 1, 0.1, "second")


async def test_what_is_the_same_is_told_again_after_the_file_was_removed(files, way):
    path = files.progress_folder / "job.1"
    async with watching(files) as ear:
        path.write_text("0.1 loading\n")
        await ear.hears("job", 1, 0.1, "loading")
        ear.told.clear()
        path.unlink()
        path.with_name("other.1").write_text("0.2\n")
        await ear.hears("other", 1, 0.2, "")  # so that looking has seen that it is gone
        path.write_text("0.1 loading\n")
        await ear.hears("job", 1, 0.1, "loading")


async def test_progress_is_told_again_once_there_are_descriptors_to_look_for_it(files, monkeypatch):
    monkeypatch.setattr(progress, "Inotify", no_inotify)
    monkeypatch.setattr(progress, "_POLL_S", 0.02)
    looks: asyncio.Queue[None] = asyncio.Queue()

    def failing(listing: Listing) -> Changes:
        looks.put_nowait(None)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with watching(files) as ear:
        with monkeypatch.context() as patched:
            patched.setattr(Listing, "take", failing)
            async with asyncio.timeout(PATIENCE_S):
                await looks.get()
        (files.progress_folder / "job.1").write_text("0.5 halfway\n")
        await ear.hears("job", 1, 0.5, "halfway")


async def test_of_a_flood_little_is_told_and_the_last_line_always(files, way):
    path = files.progress_folder / "job.1"
    async with watching(files) as ear:
        for n in range(200):
            with path.open("a") as file:
                file.write(f"0.5 line {n}\n")
            await asyncio.sleep(0)
        await ear.hears("job", 1, 0.5, "line 199")
    assert len(ear.told) < 20


def failing(call):
    """Return a ``call`` that does what it does, and fails, as on a file system that has gone."""

    def failed(*args, **kwargs):
        call(*args, **kwargs)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    return failed


def overflow(files: JobFiles) -> None:
    """Write so much that the kernel forgets some of it, and last to the file ``last.1``."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    paths = [files.progress_folder / f"job{n}.1" for n in (0, 1)]
    with paths[0].open("wb", buffering=0) as one, paths[1].open("wb", buffering=0) as two:
        # In turns, or the kernel would make one of all.
        for _ in range(most // 2 + 1):
            one.write(b"0.1 x\n")
            two.write(b"0.1 x\n")
    (files.progress_folder / "last.1").write_text("0.9 untold\n")


async def test_more_than_the_kernel_remembers_is_found_by_looking(files, monkeypatch):
    # In several turns of the event loop.
    monkeypatch.setattr(progress, "_TURN_ENTRIES", 2)
    monkeypatch.setattr(progress, "_TURN_FILES", 1)
    (files.progress_folder / "old.1").write_text("0.1 of yesterday\n")
    os.utime(files.progress_folder / "old.1", (0, 0))
    async with watching(files) as ear:
        overflow(files)
        await ear.hears("last", 1, 0.9, "untold")
        await ear.hears("job0", 1, 0.1, "x")
        await ear.hears("job1", 1, 0.1, "x")
    assert len(ear.told) == 3


async def test_a_watch_can_be_closed_while_it_looks_through_the_folder(files, monkeypatch):
    monkeypatch.setattr(progress, "_TURN_ENTRIES", 1)
    async with watching(files, closing := Ear()):
        overflow(files)
        await closing.hears("job0", 1, 0.1, "x")


async def test_what_was_told_is_known_of_the_last_files_only(files, monkeypatch):
    """It would grow with every job that there has ever been."""
    monkeypatch.setattr(progress, "_MOST_TOLD", 3)
    watch = ProgressWatch(files.progress_folder, ear := Ear())
    for n in range(1, 6):
        (files.progress_folder / f"job.{n}").write_text("0.5\n")
    for n in (1, 2, 3, 4, 5, 5, 3, 1):
        watch._look_at(f"job.{n}")
    assert [attempt for _, attempt, _, _ in ear.told] == [1, 2, 3, 4, 5, 1]
    assert len(watch._told) == 3


async def test_a_listener_that_fails_is_logged_and_told_on(files, caplog):
    class Deaf(Ear):
        def __call__(self, *told: object) -> None:
            super().__call__(*told)  # type: ignore[arg-type]
            raise RuntimeError("no")

    async with watching(files, Deaf()) as ear:
        for n in (1, 2):
            (files.progress_folder / f"job.{n}").write_text("0.5\n")
            await ear.hears("job", n, 0.5, "")
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "the progress of job could not be passed on"
    ] * 2


async def test_a_listener_may_close_the_watch(files, way):
    ear = Ear()
    watch: ProgressWatch

    def close(*told: object) -> None:
        watch.close()
        ear(*told)  # type: ignore[arg-type]

    watch = ProgressWatch(files.progress_folder, close)
    watch.open()
    (files.progress_folder / "job.1").write_text("0.5\n")
    await ear.hears("job", 1, 0.5, "")
    watch.close()


async def test_files_that_are_nobodys_are_not_told_of(files, way):
    async with watching(files) as ear:
        for name in ("job", "job.", ".1", "job.x", "job.1.part"):
            (files.progress_folder / name).write_text("0.5\n")
        (files.progress_folder / "job.1").write_text("0.6\n")
        await ear.hears("job", 1, 0.6, "")
    assert len(ear.told) == 1


async def test_a_watch_that_is_closed_leaves_nothing(files, way):
    async with watching(files):
        (files.progress_folder / "job.1").write_text("0.5\n")
    # The fixtures see to descriptors and tasks.
    watch = ProgressWatch(files.progress_folder, Ear())
    watch.close()


async def test_a_folder_that_is_not_there_cannot_be_watched(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ProgressWatch(tmp_path / "nowhere", Ear()).open()


async def test_where_the_kernel_has_no_watch_to_spare_the_folder_is_looked_at(files, monkeypatch):
    class Exhausted:
        def inotify_init1(self, flags: int) -> int:
            ctypes.set_errno(errno.EMFILE)
            return -1

    monkeypatch.setattr(folderwatch.ctypes, "CDLL", lambda *args, **options: Exhausted())
    monkeypatch.setattr(progress, "_POLL_S", 0.02)
    async with watching(files) as ear:
        (files.progress_folder / "job.1").write_text("0.5\n")
        await ear.hears("job", 1, 0.5, "")


def test_elsewhere_there_is_no_inotify(tmp_path, monkeypatch):
    monkeypatch.setattr(folderwatch.sys, "platform", "darwin")
    with pytest.raises(OSError, match="no inotify"):
        Inotify(tmp_path)


@pytest.mark.parametrize("kind", [Inotify, Listing])
def test_a_change_is_told_once(tmp_path, kind):
    source = kind(tmp_path)
    try:
        (tmp_path / "a").write_text("1")
        assert source.take().changed == {"a": None}
        assert source.take().changed == {}
        (tmp_path / "a").unlink()
        changes = source.take()
        assert (changes.changed, changes.replaced) == ({}, {"a"})
    finally:
        source.close()
