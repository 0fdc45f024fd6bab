"""Logs on their own: names, files and their rotation, readers."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import re
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anodejobs import logs
from anodejobs.logs import LogChunk, LogFile, LogTail, log_name, remove_log, rotated_folder

LIMIT_S = 60.0
LONGEST_FILE_NAME = 255
SUFFIXES = "_errors.txt.rotated"
ODD_IDS = ["../../x", "a/b", ".", "..", "-rf", "任务", " ", "~", "%", "%2F", "a" * 200, "务" * 200]

job_ids = st.text(
    st.characters(exclude_categories=["C", "Z"], include_characters=" "), min_size=1, max_size=200
).filter(str.isprintable)
untimed = settings(deadline=None)
on_disk = settings(deadline=None, max_examples=50)
pieces = st.lists(st.binary(min_size=1, max_size=40), max_size=30)


TRAPS = ["a link", "a link to nothing", "a pipe", "a folder", "a socket"]


def set_trap(what: str, path: Path, folder: Path) -> None:
    """Put something there that is no log; in the folder is a file that is none, either."""
    (folder / "secret").write_bytes(b"secret")
    match what:
        case "a link":
            path.symlink_to(folder / "secret")
        case "a link to nothing":
            path.symlink_to(folder / "nothing")
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
            (path / "in it").touch()
        case "a socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)


# Names.


@pytest.mark.parametrize("job_id", ODD_IDS)
def test_a_log_of_an_odd_id_stays_inside_its_folder(tmp_path: Path, job_id: str) -> None:
    path = tmp_path / f"{log_name(job_id)}_errors.txt"
    path.touch()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_plain_id_is_its_own_log_name() -> None:
    assert log_name("nightly-2024.02_eu") == "nightly-2024.02_eu"


@pytest.mark.parametrize("job_id", ["-rf", ".hidden", ".", ".."])
def test_a_log_name_is_neither_an_option_nor_hidden(job_id: str) -> None:
    assert log_name(job_id)[0] not in ".-"


@untimed
@given(job_ids)
def test_a_log_name_is_harmless(job_id: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_%+,=@~ ][A-Za-z0-9_.%+,=@~ -]*", log_name(job_id))


@untimed
@given(job_ids)
@example("务" * 200)
@example("A" * 200)
def test_a_log_name_leaves_room_for_what_is_added(job_id: str) -> None:
    name = log_name(job_id)
    assert len(name) <= 200
    assert len(f"{name}{SUFFIXES}".encode()) <= LONGEST_FILE_NAME


@untimed
@given(job_ids, job_ids)
@example("a/b", "a%2Fb")
@example("a%2fb", "a%2Fb")
@example(".", "%2E")
@example("-rf", "%2Drf")
@example("a" * 199 + "b", "a" * 199 + "c")
@example("ß", "ss")
@example("K", "\N{KELVIN SIGN}")
def test_no_two_ids_share_a_log_name(one: str, other: str) -> None:
    assert (log_name(one) == log_name(other)) == (one == other)


@untimed
@given(job_ids)
@example("Job")
@example("a%2Fb")
@example("A" * 200)
@example("Straße")
def test_ids_that_differ_in_case_share_no_file_even_where_case_is_ignored(job_id: str) -> None:
    namesakes = {job_id, job_id.lower(), job_id.upper(), job_id.swapcase(), job_id.casefold()}
    assert len({log_name(namesake).casefold() for namesake in namesakes}) == len(namesakes)


@untimed
@given(job_ids)
@example("Job")
@example("a" * 200)
def test_no_id_can_be_made_to_take_the_log_of_another(job_id: str) -> None:
    name = log_name(job_id)
    assert name == job_id or log_name(name).casefold() != name.casefold()


# Chunks.


def test_a_chunk_knows_where_the_next_one_begins() -> None:
    assert LogChunk("stdout", 10, b"hello").end == 15


def test_the_text_of_a_chunk_has_a_mark_for_what_is_no_utf8() -> None:
    assert (
        LogChunk("stdout", 0, b"\xffna\xc3\xafve\xe4").text
        == "\N{REPLACEMENT CHARACTER}naïve\ufffd"
    )


# Files.


@on_disk
@given(pieces, st.integers(1, 50))
def test_no_file_of_a_log_exceeds_max_bytes(written: list[bytes], max_bytes: int) -> None:
    with new_log(max_bytes, 1000) as log:
        write(log, *written)
        assert all(path.stat().st_size <= max_bytes for path in files(log.path))


def test_a_file_may_be_filled_to_the_last_byte(log: Callable[..., LogFile]) -> None:
    full = log(max_bytes=10)
    write(full, b"01234", b"56789")
    assert full.path.read_bytes() == b"0123456789"
    assert not rotated_folder(full.path).exists()


def test_the_byte_after_the_last_one_begins_a_new_file(log: Callable[..., LogFile]) -> None:
    full = log(max_bytes=10)
    write(full, b"0123456789", b"!")
    assert full.path.read_bytes() == b"!"
    assert (rotated_folder(full.path) / "10").read_bytes() == b"0123456789"


def test_a_piece_longer_than_a_file_is_cut_up(log: Callable[..., LogFile]) -> None:
    short = log(max_bytes=4, backups=9)
    write(short, b"0123456789")
    assert [path.read_bytes() for path in files(short.path)] == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize("backups", [0, 1, 2, 3, 5])
def test_so_many_backups_are_kept_and_no_more(log: Callable[..., LogFile], backups: int) -> None:
    rotating = log(max_bytes=4, backups=backups)
    kept = []
    for number in range(1, 11):
        write(rotating, b"%04d" % number)
        kept.append(sum(path.stat().st_size > 0 for path in files(rotating.path)) - 1)
    assert kept == [min(number, backups) for number in range(10)]


@pytest.mark.parametrize("backups", [0, 1, 3])
def test_the_backups_are_the_latest(log: Callable[..., LogFile], backups: int) -> None:
    rotating = log(max_bytes=4, backups=backups)
    written = b"".join(b"%04d" % number for number in range(9))
    write(rotating, written)
    assert b"".join(p.read_bytes() for p in files(rotating.path)) == written[-4 * (backups + 1) :]


def test_offsets_go_on_across_rotation(log: Callable[..., LogFile]) -> None:
    rotating = log(max_bytes=4, backups=0)
    write(rotating, b"0123", b"4567", b"8")
    assert rotating.offset == 9


@on_disk
@given(pieces, pieces, st.none() | st.integers(1, 50), st.integers(0, 3))
def test_a_log_that_is_opened_again_goes_on_at_the_same_offset(
    before: list[bytes], after: list[bytes], max_bytes: int | None, backups: int
) -> None:
    with new_log(max_bytes, backups) as log:
        write(log, *before)
        again = LogFile(log.path, max_bytes, backups)
        with contextlib.closing(again):
            again.open()
            assert again.offset == log.offset == len(b"".join(before))
            write(again, *after)
            assert again.offset == len(b"".join(before + after))


def test_a_closed_log_is_opened_again_by_the_next_write(log: Callable[..., LogFile]) -> None:
    closed = log()
    write(closed, b"one ")
    closed.close()
    write(closed, b"two")
    assert closed.path.read_bytes() == b"one two"


def test_a_log_whose_closing_fails_is_closed_all_the_same(
    log: Callable[..., LogFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = log()
    write(closed, b"one ")
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", failing(os.close))
        closed.close()
    assert closed.unclosed is not None and closed.unclosed.errno == errno.EDQUOT
    with (tmp_path / "other").open("wb", buffering=0) as other:  # under the number it had
        write(closed, b"two")
        closed.close()
        other.write(b"mine")
    assert closed.path.read_bytes() == b"one two"
    assert (tmp_path / "other").read_bytes() == b"mine"


def test_a_log_whose_rotated_files_cannot_be_listed_is_opened_again(
    log: Callable[..., LogFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = log(max_bytes=4, backups=9)
    write(first, b"1234", b"56")
    first.close()
    adopted = log(max_bytes=4, backups=9)
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", none_left)
        with pytest.raises(OSError, match="Too many"):
            write(adopted, b"78")
    write(adopted, b"78", b"9")
    assert all_bytes(first.path) == b"123456789"
    assert adopted.offset == 9


def test_a_reader_that_cannot_look_for_rotated_files_leaves_nothing_open(
    log: Callable[..., LogFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, listdir = log(), os.listdir
    write(written, b"123")
    for good_looks in range(2):
        looks = iter([listdir] * good_looks)
        with tail(written.path) as reader:
            with monkeypatch.context() as patched:
                patched.setattr(os, "listdir", lambda path: next(looks, none_left)(path))  # noqa: B023
                with pytest.raises(OSError, match="Too many"):
                    reader.read(10)
            assert reader.read(10) == b"123"


def test_a_reader_whose_file_cannot_be_closed_reads_on_and_closes_nobody_elses(
    log: Callable[..., LogFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated = log(max_bytes=4)
    write(rotated, b"1234", b"56")
    with tail(rotated.path) as reader, monkeypatch.context() as patched:
        patched.setattr(os, "close", failing(os.close))
        assert read_all(reader) == b"123456"
        reader.close()
        patched.undo()
        with (tmp_path / "other").open("wb", buffering=0) as other:  # under the number it had
            reader.close()
            other.write(b"mine")


@pytest.mark.parametrize("backups", [0, 1, 3])
def test_what_a_reader_has_not_read_is_kept(log: Callable[..., LogFile], backups: int) -> None:
    rotating = log(max_bytes=4, backups=backups)
    with tail(rotating.path) as reader:
        rotating.readers.add(reader)
        written = b"".join(b"%04d" % number for number in range(20))
        write(rotating, written)
        assert read_all(reader) == written


@pytest.mark.parametrize("backups", [0, 1, 3])
def test_what_a_reader_has_read_is_trimmed(log: Callable[..., LogFile], backups: int) -> None:
    rotating = log(max_bytes=4, backups=backups)
    with tail(rotating.path) as reader:
        rotating.readers.add(reader)
        write(rotating, b"0123456789abcdefghij")
        read_all(reader)
        rotating.trim()
    left = b"".join(path.read_bytes() for path in files(rotating.path))
    assert left == b"0123456789abcdefghij"[-4 * (backups + 1) :]


def test_the_slowest_reader_decides_what_is_kept(log: Callable[..., LogFile]) -> None:
    rotating = log(max_bytes=4, backups=0)
    with tail(rotating.path) as slow, tail(rotating.path) as quick:
        rotating.readers |= {slow, quick}
        write(rotating, b"0123456789ab")
        slow.read(4)
        read_all(quick)
        rotating.trim()
        assert [path.read_bytes() for path in files(rotating.path)] == [b"4567", b"89ab"]


def test_a_log_is_rotated_while_readers_come_and_go(log: Callable[..., LogFile]) -> None:
    rotating = log(max_bytes=4, backups=0)
    rotating.readers |= {LogTail(rotating.path, 1 << 40) for _ in range(300)}
    is_over = threading.Event()

    def come_and_go() -> None:
        reader = LogTail(rotating.path, 1 << 40)
        while not is_over.is_set():
            rotating.readers.add(reader)
            rotating.readers.discard(reader)

    with quick_switches(), running(come_and_go, is_over.set):
        write(rotating, *[b"0123"] * 2000)
    assert rotating.offset == 8000


def test_another_attempts_log_is_replaced_at_the_first_byte(log: Callable[..., LogFile]) -> None:
    old = log(max_bytes=4, backups=9)
    write(old, b"what an earlier attempt wrote")
    new = log(max_bytes=4, backups=9, replaces=True)
    assert old.path.exists()
    write(new, b"new")
    assert [path.read_bytes() for path in files(new.path)] == [b"new"]
    assert new.offset == 3


def test_a_log_is_replaced_once_only(log: Callable[..., LogFile]) -> None:
    new = log(replaces=True)
    write(new, b"one ")
    new.close()
    write(new, b"two")
    assert new.path.read_bytes() == b"one two"


@pytest.mark.parametrize("mask", [0, 0o177, 0o777])
def test_log_files_are_the_owners_alone(log: Callable[..., LogFile], mask: int) -> None:
    old_mask = os.umask(mask)
    try:
        rotating = log(max_bytes=4, backups=9)
        write(rotating, b"0123456789")
    finally:
        os.umask(old_mask)
    assert {mode(path) for path in files(rotating.path)} == {0o600}
    assert mode(rotated_folder(rotating.path)) == 0o700


@pytest.mark.parametrize("max_bytes", [None, 3, 100])
def test_what_is_spliced_follows_what_was_written(
    log: Callable[..., LogFile], max_bytes: int | None
) -> None:
    mixed = log(max_bytes=max_bytes, backups=10)
    write(mixed, b"one ")
    splice(mixed, b"two ")
    write(mixed, b"three ")
    splice(mixed, b"four")
    assert all_bytes(mixed.path) == b"one two three four"
    assert mixed.offset == 18


def test_a_spliced_piece_longer_than_a_file_is_cut_up(log: Callable[..., LogFile]) -> None:
    short = log(max_bytes=4, backups=9)
    splice(short, b"0123456789")
    assert [path.read_bytes() for path in files(short.path)] == [b"0123", b"4567", b"89"]


def test_what_is_spliced_goes_to_the_end_of_a_file_that_somebody_emptied(
    log: Callable[..., LogFile],
) -> None:
    emptied = log()
    splice(emptied, b"gone")
    os.truncate(emptied.path, 0)
    splice(emptied, b"kept")
    assert emptied.path.read_bytes() == b"kept"


def test_a_retired_log_drops_what_is_spliced(log: Callable[..., LogFile]) -> None:
    retired = log()
    write(retired, b"mine")
    retired.retire()
    splice(retired, b"of another run")
    assert retired.path.read_bytes() == b"mine"


@pytest.mark.parametrize("what", TRAPS)
def test_a_log_is_written_to_no_file_but_its_own(
    log: Callable[..., LogFile], tmp_path: Path, what: str
) -> None:
    trapped = log()
    set_trap(what, trapped.path, tmp_path)
    with pytest.raises(OSError, match="Errno"):  # and does not wait for somebody to read a pipe
        trapped.write(memoryview(b"mine"))
    assert (tmp_path / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("what", TRAPS)
def test_what_is_no_log_is_not_read(tmp_path: Path, what: str) -> None:
    set_trap(what, tmp_path / "log", tmp_path)
    with tail(tmp_path / "log") as reader, pytest.raises(OSError, match="Errno"):
        reader.read(100)


@pytest.mark.parametrize("what", TRAPS)
def test_a_reader_sees_that_a_log_is_one_no_more(
    log: Callable[..., LogFile], tmp_path: Path, what: str
) -> None:
    trapped = log()
    write(trapped, b"mine")
    with tail(trapped.path) as reader:
        assert reader.read(100) == b"mine"
        trapped.path.unlink()
        set_trap(what, trapped.path, tmp_path)
        with pytest.raises(OSError, match="Errno"):
            reader.read(100)


@pytest.mark.parametrize("what", TRAPS)
def test_whatever_is_in_the_place_of_a_log_is_removed_with_it(tmp_path: Path, what: str) -> None:
    path = tmp_path / "log"
    set_trap(what, path, tmp_path)
    set_trap(what, rotated_folder(path), tmp_path)
    remove_log(path)
    assert [left.name for left in tmp_path.iterdir()] == ["secret"]


def test_files_that_were_not_set_aside_are_none_of_a_log(log: Callable[..., LogFile]) -> None:
    rotating = log(max_bytes=4, backups=9)
    write(rotating, b"01")
    folder = rotated_folder(rotating.path)
    folder.mkdir()
    for name in ("x", "-5", "0", "1_0", "\u0661", "9" * 30):
        (folder / name).touch()
    write(rotating, b"23", b"45")
    with tail(rotating.path) as reader:
        assert read_all(reader) == b"012345"


def test_a_log_that_was_removed_is_rotated_all_the_same(log: Callable[..., LogFile]) -> None:
    rotating = log(max_bytes=4, backups=9)
    with tail(rotating.path) as reader:
        write(rotating, b"0123")
        assert reader.read(9) == b"0123"
        rotating.path.unlink()
        write(rotating, b"45")
        assert (reader.read(9), reader.offset) == (b"45", 6)


def test_removed_logs_leave_nothing(log: Callable[..., LogFile], tmp_path: Path) -> None:
    rotating = log(max_bytes=4, backups=9)
    write(rotating, b"0123456789")
    for path in (rotating.path, tmp_path / "never-written"):
        remove_log(path)
    assert not list(tmp_path.iterdir())


def test_a_reader_of_removed_logs_can_read_on(log: Callable[..., LogFile]) -> None:
    removed = log()
    write(removed, b"0123456789")
    with tail(removed.path) as reader:
        assert reader.read(4) == b"0123"
        remove_log(removed.path)
        assert read_all(reader) == b"456789"


# Readers.


@on_disk
@given(
    st.binary(min_size=1, max_size=400),
    st.integers(1, 100),
    st.none() | st.integers(1, 60),
    st.integers(0, 450),
    st.integers(1, 100),
)
def test_a_log_reads_as_it_was_written_from_any_offset(
    written: bytes, piece: int, max_bytes: int | None, offset: int, limit: int
) -> None:
    with new_log(max_bytes, 1000) as log, tail(log.path, offset) as reader:
        write(log, *cut(written, piece))
        assert read_all(reader, limit) == written[offset:]
        assert reader.offset == max(offset, len(written))


@on_disk
@given(
    st.binary(min_size=1, max_size=400),
    st.integers(1, 60),
    st.integers(0, 3),
    st.integers(0, 450),
    st.integers(1, 100),
)
def test_where_bytes_are_gone_a_reader_goes_on_with_the_oldest_kept(
    written: bytes, max_bytes: int, backups: int, offset: int, limit: int
) -> None:
    with new_log(max_bytes, backups) as log, tail(log.path, offset) as reader:
        write(log, *cut(written, 50))
        kept = sum(path.stat().st_size for path in files(log.path))
        assert read_all(reader, limit) == written[max(offset, len(written) - kept) :]


@on_disk
@given(pieces, st.integers(1, 30), st.integers(0, 2), st.integers(0, 100), st.integers(1, 40))
def test_a_reader_that_keeps_up_gets_each_byte_once(
    written: list[bytes], max_bytes: int, backups: int, offset: int, limit: int
) -> None:
    with new_log(max_bytes, backups) as log, tail(log.path, offset) as reader:
        log.readers.add(reader)
        got = b""
        for piece in written:
            write(log, piece)
            got += read_all(reader, limit)
        assert got == b"".join(written)[offset:]


@pytest.mark.parametrize("backups", [0, 1])
def test_a_reader_whose_open_file_was_removed_goes_on_with_the_oldest_kept(
    log: Callable[..., LogFile], backups: int
) -> None:
    rotating = log(max_bytes=4, backups=backups)
    with tail(rotating.path) as unknown_to_the_writer:
        write(rotating, b"0123")
        assert unknown_to_the_writer.read(2) == b"01"
        write(rotating, b"456789abcdef")
        assert read_all(unknown_to_the_writer).endswith(b"cdef")


def test_a_reader_that_waits_further_on_sees_the_bytes_when_they_come(
    log: Callable[..., LogFile],
) -> None:
    rotating = log(max_bytes=4, backups=9)
    with tail(rotating.path, 9) as early:
        write(rotating, b"0123")
        assert early.read(100) == b""
        write(rotating, b"456789ab")
        assert read_all(early) == b"9ab"


def test_reading_a_log_that_nobody_has_written_gives_nothing(tmp_path: Path) -> None:
    with tail(tmp_path / "log") as reader:
        assert reader.read(100) == b""
        assert reader.end() == 0


@on_disk
@given(pieces, st.none() | st.integers(1, 50), st.integers(0, 3))
def test_the_end_of_a_log_is_how_much_was_written(
    written: list[bytes], max_bytes: int | None, backups: int
) -> None:
    with new_log(max_bytes, backups) as log, tail(log.path) as reader:
        write(log, *written)
        assert reader.end() == len(b"".join(written))


def test_a_closed_reader_goes_on_where_it_was(log: Callable[..., LogFile]) -> None:
    written = log()
    write(written, b"0123456789")
    with tail(written.path) as reader:
        reader.read(4)
        reader.close()
        assert reader.read(100) == b"456789"


def test_read_cached_does_not_open_a_file(log: Callable[..., LogFile]) -> None:
    written = log()
    write(written, b"0123456789")
    with tail(written.path) as reader, pytest.raises(BlockingIOError):
        reader.read_cached(100)


def test_read_cached_does_not_go_on_to_the_next_file(log: Callable[..., LogFile]) -> None:
    rotating = log(max_bytes=4, backups=9)
    write(rotating, b"01234567")
    with tail(rotating.path) as reader:
        assert reader.read(4) == b"0123"
        with pytest.raises(BlockingIOError):
            reader.read_cached(100)
        assert reader.read(100) == b"4567"


def test_read_cached_gives_up_where_the_system_cannot_tell(
    log: Callable[..., LogFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = log()
    write(written, b"0123456789")
    monkeypatch.setattr(logs, "_NOWAIT", None)
    with tail(written.path) as reader:
        reader.read(4)
        with pytest.raises(BlockingIOError):
            reader.read_cached(100)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_read_cached_gives_up_where_the_file_system_cannot_tell(
    log: Callable[..., LogFile], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    written = log()
    write(written, b"0123456789")

    def refuse(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    with tail(written.path) as reader:
        reader.read(4)
        monkeypatch.setattr(os, "preadv", refuse)
        with pytest.raises(BlockingIOError):
            reader.read_cached(100)


def test_read_cached_gives_the_same_bytes_or_none(log: Callable[..., LogFile]) -> None:
    written = log()
    write(written, bytes(range(256)) * 1024)
    with tail(written.path) as reader:
        got = reader.read(1000)
        while data := read_cached_or_wait(reader, 5000):
            got += data
    assert got == bytes(range(256)) * 1024


def test_read_cached_does_not_wait_for_the_disk(log: Callable[..., LogFile]) -> None:
    written = log()
    write(written, bytes(4 * 1024 * 1024))
    with tail(written.path) as reader:
        reader.read(1)
        if not is_dropped_from_memory(written.path):
            pytest.skip("this file system keeps all in memory")
        reader.offset = 1024 * 1024
        with pytest.raises(BlockingIOError):
            reader.read_cached(4096)
        assert len(reader.read(4096)) == 4096


@pytest.mark.parametrize("backups", [0, 2])
def test_reading_while_another_thread_writes_and_rotates_sees_each_byte_once(
    log: Callable[..., LogFile], backups: int
) -> None:
    rotating = log(max_bytes=500, backups=backups)
    written = b"".join(b"%06d\n" % number for number in range(5000))
    grown: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def write_all() -> None:
        for piece in cut(written, 41):
            write(rotating, piece)
            grown.put(True)
        grown.put(False)

    got = b""
    with tail(rotating.path) as reader:
        rotating.readers.add(reader)
        with quick_switches(), running(write_all):
            while grown.get(timeout=LIMIT_S):
                got += reader.read(97)
            got += read_all(reader)
    assert got == written


# What the tests above are written with.


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Callable[..., LogFile]]:
    """Makes logs at one path, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(**options: int | bool) -> LogFile:
            return stack.enter_context(
                contextlib.closing(LogFile(tmp_path / "log", **options))  # type: ignore[arg-type]
            )

        yield make


@contextmanager
def new_log(max_bytes: int | None, backups: int) -> Iterator[LogFile]:
    """Make a log in a folder of its own: Hypothesis runs a test many times."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(LogFile(Path(folder) / "log", max_bytes, backups)) as log,
    ):
        yield log


@contextmanager
def tail(path: Path, offset: int = 0) -> Iterator[LogTail]:
    with contextlib.closing(LogTail(path, offset)) as tail:
        yield tail


def write(log: LogFile, *written: bytes) -> None:
    for piece in written:
        left = memoryview(piece)
        while left:
            left = left[log.write(left) :]


def splice(log: LogFile, piece: bytes) -> None:
    reading, writing = os.pipe()
    try:
        left = os.write(writing, piece)
        while left:
            left -= log.splice(reading, left)
    finally:
        os.close(reading)
        os.close(writing)


def all_bytes(path: Path) -> bytes:
    """Return what all files of a log hold."""
    return b"".join(file.read_bytes() for file in files(path))


def read_all(reader: LogTail, limit: int = 1000) -> bytes:
    got = b""
    while data := reader.read(limit):
        assert len(data) <= limit
        got += data
    return got


def read_cached_or_wait(reader: LogTail, limit: int) -> bytes:
    try:
        return reader.read_cached(limit)
    except BlockingIOError:
        return reader.read(limit)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def files(path: Path) -> list[Path]:
    """Return the files of a log, oldest first."""
    folder = rotated_folder(path)
    rotated = sorted(folder.iterdir(), key=lambda p: int(p.name)) if folder.exists() else []
    return [*rotated, path] if path.exists() else rotated


def failing(close: Callable[[int], None]) -> Callable[[int], None]:
    """Return a ``close`` like that of a network file system that has no room for what it took."""

    def closed(fd: int) -> None:
        close(fd)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    return closed


def none_left(folder: object) -> list[str]:
    """Be asked what is in a folder while there is no descriptor to look with."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def running(work: Callable[[], None], end: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Run a function in a thread while the context is open."""
    errors: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=caught)
    thread.start()
    try:
        yield
    finally:
        end()
        thread.join()
    assert not errors


@contextmanager
def quick_switches() -> Iterator[None]:
    """Have threads take turns as often as can be, so that a race shows."""
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(old)


def is_dropped_from_memory(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        # Far from where the test reads: looking has the system read what lies near, ahead.
        os.preadv(fd, [bytearray(1)], 3 * 1024 * 1024, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
