"""What the shim writes: the journal that survives it, and the messages to applications."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import threading
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from anodejobs.events import (
    Adopted,
    Attempt,
    Exited,
    Lost,
    Started,
    StartFailed,
    StopFailed,
    StopRequested,
)
from anodejobs.executors.base import Launch, LogPlan, new_token
from anodejobs.shim import journal, protocol
from anodejobs.shim.journal import Entry, Journal, load
from anodejobs.shim.protocol import (
    Lines,
    TooLong,
    begin_of,
    begin_text,
    decoded,
    encoded,
    event_from_json,
    event_to_json,
    event_to_text,
    start_request,
)

NOON = datetime(2024, 2, 29, 12, 0, 0, 123457, tzinfo=UTC)
ODD = 'a "quoted" \\ word\nand\ta\0byte, na\udcefve, 任务 🚀 \x7f\u2028 {"begin":1}'
ATTEMPT = Attempt(
    token=new_token(),
    supervisor=f"shim:{ODD}",
    pid=4321,
    start_time=123456789.0,
    boot_id="b-1",
    started_monotonic=98765.4321,
    pipes=(11, 2**40),
)
BARE = Attempt(token=new_token(), supervisor="")
EVENTS = [
    Started(at=NOON, attempt=ATTEMPT),
    Started(at=NOON, attempt=BARE),
    StartFailed(at=NOON, error=ODD),
    Adopted(at=NOON, attempt=ATTEMPT, gap=True),
    Adopted(at=NOON, attempt=BARE),
    StopRequested(at=NOON, error=ODD),
    StopRequested(at=NOON, reason=ODD),
    StopFailed(at=NOON),
    Exited(at=NOON, exit_code=-9, evidence="observed"),
    Exited(
        at=NOON,
        exit_code=255,
        evidence="adopted",
        ended_by_itself=True,
        in_start_grace=True,
        log_error=ODD,
        limit=ODD,
        cpu_seconds=0.25,
        peak_memory_bytes=2**40,
    ),
    Exited(at=NOON, exit_code=0, evidence="observed", cpu_seconds=1e-06, peak_memory_bytes=4096),
    Lost(at=NOON, error=ODD),
]
SECRET = "hunter2"
NOT_KEPT: dict[str, Any] = {
    "earlier": 0,
    "argv": (),
    "cwd": "/",
    "base_env": {},
    "envs": {},
    "files": "",
    "limits": None,
    "umask": None,
}

text = st.one_of(st.text(), st.binary().map(os.fsdecode))
moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
numbers = st.integers(0, 2**53)
seconds = st.floats(0, 2**40, allow_nan=False)
attempts = st.builds(
    Attempt,
    token=st.binary(min_size=16, max_size=16).map(bytes.hex),
    supervisor=text,
    pid=st.none() | numbers,
    start_time=st.none() | seconds,
    boot_id=st.none() | text,
    started_monotonic=st.none() | seconds,
    pipes=st.none() | st.tuples(numbers, numbers),
    cgroup=st.none() | text,
)
events = st.one_of(
    st.builds(Started, at=moments, attempt=attempts),
    st.builds(StartFailed, at=moments, error=text),
    st.builds(Adopted, at=moments, attempt=attempts, gap=st.booleans()),
    st.builds(StopRequested, at=moments, error=st.none() | text, reason=st.none() | text),
    st.builds(StopFailed, at=moments, error=text),
    st.builds(
        Exited,
        at=moments,
        exit_code=st.integers(-64, 255),
        evidence=st.sampled_from(["observed", "recorded", "adopted"]),
        ended_by_itself=st.booleans(),
        in_start_grace=st.booleans(),
        log_error=st.none() | text,
        cpu_seconds=st.none() | seconds,
        peak_memory_bytes=st.none() | numbers,
    ),
    st.builds(Lost, at=moments, error=text),
)
plans = st.builds(
    LogPlan,
    stdout=text,
    stderr=text,
    max_bytes=st.none() | st.integers(1, 2**40),
    backups=st.integers(0, 9),
)
launches = st.builds(
    Launch,
    job_id=text,
    argv=st.lists(text, min_size=1, max_size=3).map(tuple),
    cwd=text,
    base_env=st.dictionaries(text, text, max_size=2),
    envs=st.dictionaries(text | st.sampled_from(["begin", "exec", '"begin":', ',"exec":']), text),
    logs=plans,
    timeout=st.none() | seconds | st.integers(0, 2**40),
    stop_grace=seconds,
    start_grace=seconds,
    leftovers=st.sampled_from(["kill", "leave"]),
    on_host_death=st.sampled_from(["leave", "stop"]),
    files=text,
    limits=st.none() | st.dictionaries(text, st.integers() | text, min_size=1, max_size=2),
)
MARKS = 'x","exec":{"begin":{,"exec":"begin":\\",\\"exec\\":\\'
"""What would mislead who looks for the marks in a request, were it not escaped."""
HOSTILE = Launch(
    job_id=MARKS,
    argv=(MARKS, "begin", "exec", ODD),
    cwd=MARKS,
    base_env={"begin": MARKS, "exec": MARKS},
    envs={"begin": MARKS, "exec": MARKS, MARKS: "\udcff", "\ud83d": "\ude80"},
    logs=LogPlan(stdout=MARKS, stderr=f'{MARKS}"'),
    stop_grace=1.5,
)
LASTING = [f for f in fields(Launch) if f.init and f.name not in NOT_KEPT]


# Events and messages.


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_being_written_down(event):
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event
    assert event_from_json(json.loads(event_to_text(event))) == event


@given(events)
def test_any_event_survives_being_written_down(event):
    line = event_to_text(event)
    assert "\n" not in line and line.isascii()
    assert event_from_json(json.loads(line)) == event


def test_what_only_a_newer_version_tells_of_an_event_is_passed_over():
    event = Exited(at=NOON, exit_code=3, evidence="observed")
    assert event_from_json({**event_to_json(event), "weather": "fine"}) == event


def test_an_event_that_an_older_version_has_told_lacks_what_is_new():
    event = Exited(at=NOON, exit_code=3, evidence="observed")
    told = event_to_json(event)
    del told["cpu_seconds"], told["peak_memory_bytes"]
    assert event_from_json(told) == event


def test_every_kind_of_event_that_is_told_is_tried_here():
    assert {type(event) for event in EVENTS} == set(protocol.Told.__args__)


@given(st.dictionaries(text, text | st.integers() | st.none() | st.lists(text)))
def test_any_message_is_one_line(message):
    line = encoded(message)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decoded(Lines().feed(line)) == [message]


@settings(max_examples=300)
@given(
    st.lists(st.dictionaries(text, text, max_size=3), max_size=5),
    st.lists(st.integers(0, 400), max_size=12),
)
@example([{"a": "b"}], [])
@example([{"a": "b"}, {}], [10, 10])
def test_messages_are_put_together_however_they_were_cut(messages, cuts):
    data = b"".join(map(encoded, messages))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    lines, got = Lines(), []
    for start, end in itertools.pairwise(places):
        if start < end:
            got += decoded(lines.feed(data[start:end]))
    assert got == messages


def test_a_message_may_come_byte_by_byte():
    lines = Lines()
    data = encoded({"text": ODD}) * 2
    fed = [decoded(lines.feed(data[n : n + 1])) for n in range(len(data))]
    assert [message for messages in fed for message in messages] == [{"text": ODD}] * 2


def test_a_message_in_tiny_pieces_takes_no_more_memory_than_it_is_long():
    lines, piece = Lines(), b"xy"
    tracemalloc.start()
    try:
        for _ in range(500_000):
            lines.feed(bytes(bytearray(piece)))
        assert tracemalloc.get_traced_memory()[0] < 3_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_is_no_number_is_refused(number):
    with pytest.raises(ValueError, match="no JSON"):
        decoded([b'{"grace":%b}' % number])


def test_a_message_may_be_many_megabytes_long():
    message = {"vars": {"LONG": "ü" * 1_000_000, "LONGER": "x" * 3_000_000}}
    lines, data = Lines(), encoded(message)
    pieces = [data[start : start + 65536] for start in range(0, len(data), 65536)]
    assert [m for piece in pieces for m in decoded(lines.feed(piece))] == [message]


def test_what_is_too_long_to_be_a_message_is_refused(monkeypatch):
    monkeypatch.setattr(protocol, "LONGEST_BYTES", 1000)
    lines = Lines()
    assert decoded(lines.feed(encoded({"short": "x" * 900}) * 5)) == [{"short": "x" * 900}] * 5
    lines.feed(b"x" * 1000)
    with pytest.raises(TooLong):
        lines.feed(b"x")


def test_what_is_too_long_is_refused_after_a_message_in_the_same_bytes(monkeypatch):
    monkeypatch.setattr(protocol, "LONGEST_BYTES", 1000)
    with pytest.raises(TooLong):
        Lines().feed(b"{}\n" + b"x" * 1001)


@pytest.mark.parametrize(
    "line",
    [b"", b"hello", b'{"cut":', b"\xff\xfe", b"{}{}", b"[]", b'"text"', b"5", b"null", b'{"a":1}}'],
)
def test_what_is_no_object_is_refused(line):
    with pytest.raises(ValueError, match=r"object|decode|value|data|delimiter"):
        decoded(Lines().feed(line + b"\n"))


# The journal.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@contextmanager
def opened(path: Path, entries: Iterable[Entry] = ()) -> Iterator[Journal]:
    """Give a journal that is open; ``entries`` is what is to be kept when it is made anew."""
    for kept in entries:
        kept.has_begun = True
    book = Journal(path, lambda: entries)
    book.open()
    try:
        yield book
    finally:
        book.close()


def entry(job_id: str = "a", **more: Any) -> Entry:
    """Return an attempt that is about to be spawned; what is given are fields of its ``Launch``."""
    usual: dict[str, Any] = {
        "argv": ("true",),
        "cwd": "/tmp",
        "base_env": {"PASSWORD": SECRET},
        "envs": {},
        "logs": LogPlan(stdout="/o", stderr="/e", max_bytes=7, backups=2),
        "stop_grace": 1.5,
    }
    launch = Launch(job_id=job_id, **{**usual, **more})
    return Entry(3, launch, Attempt(token=new_token(), supervisor="shim:s"))


def begun_entry(job_id: str) -> Entry:
    begun = entry(job_id)
    begun.has_begun = True
    return begun


def note(book: Journal, token: str, event: protocol.Told) -> None:
    book.note(token, event_to_text(event))


def written(entries: Iterable[Entry]) -> list[tuple[Any, ...]]:
    """Return all that a journal is to know of the entries."""
    return [(e.number, e.attempt, e.events, replace(e.launch, **NOT_KEPT)) for e in entries]


def test_there_is_nothing_in_no_journal(path):
    assert load(path) == []


def test_there_is_nothing_in_a_new_journal(path):
    with opened(path):
        assert load(path) == []


def test_what_has_begun_is_in_it_before_begin_returns(path):
    with opened(path) as book:
        begun = entry(timeout=2.5, start_grace=0.5, leftovers="leave", on_host_death="stop")
        book.begin(begun)
        assert written(load(path)) == written([begun])


def test_what_is_said_while_another_thread_writes_is_kept_with_the_next_flush(path, monkeypatch):
    """It comes after what that thread says, and a flush waits for both."""
    with opened(path) as book:
        first, second = entry("a"), entry("b")
        book.begin(first)
        is_writing, may_write = threading.Event(), threading.Event()
        write = os.write

        def write_late(fd: int, data: bytes) -> int:
            is_writing.set()
            may_write.wait(60)
            return write(fd, data)

        monkeypatch.setattr(os, "write", write_late)
        thread = threading.Thread(target=book.begin, args=(second,))
        thread.start()
        assert is_writing.wait(60)
        note(book, first.attempt.token, EVENTS[0])
        flush = threading.Thread(target=book.flush)
        flush.start()
        assert len(load(path)) == 1
        may_write.set()
        for each in (thread, flush):
            each.join(20)
        assert [e.launch.job_id for e in load(path)] == ["a", "b"]
        assert load(path)[0].events == [EVENTS[0]]


def test_what_has_happened_is_in_it_after_a_flush(path):
    with opened(path) as book:
        begun = entry()
        book.begin(begun)
        for event in EVENTS:
            note(book, begun.attempt.token, event)
        assert load(path)[0].events == []
        book.flush()
        assert load(path)[0].events == EVENTS


def test_what_was_said_is_in_it_when_it_was_closed(path):
    with opened(path) as book:
        begun = entry()
        book.begin(begun)
        note(book, begun.attempt.token, EVENTS[0])
    assert load(path)[0].events == EVENTS[:1]
    book.close()


def test_what_is_done_is_in_it_no_more(path):
    with opened(path) as book:
        begun, other = entry("a"), entry("b")
        book.begin(begun)
        book.begin(other)
        note(book, begun.attempt.token, EVENTS[0])
        book.done(begun.attempt.token)
        book.flush()
        assert written(load(path)) == written([other])


def test_what_comes_after_a_journal_that_could_not_be_closed_is_in_the_new_one(
    path, tmp_path, monkeypatch
):
    monkeypatch.setattr(journal, "_COMPACT_ABOVE_BYTES", 0)
    kept, close = [begun_entry("a")], os.close

    def failing(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(path, kept) as book:
        with monkeypatch.context() as patched:
            patched.setattr(os, "close", failing)
            for _ in range(100):
                book.done(new_token())
            book.flush()
        with (tmp_path / "other").open("wb", buffering=0):  # under the number that it had
            kept.append(entry("b"))
            book.begin(kept[1])
            assert written(load(path)) == written(kept)
    assert (tmp_path / "other").read_bytes() == b""


def test_what_happened_to_the_unknown_is_passed_over(path):
    with opened(path) as book:
        note(book, new_token(), EVENTS[0])
        book.done(new_token())
        book.flush()
        assert load(path) == []


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text, text.filter(lambda path: path and "\0" not in path), st.lists(events, max_size=3))
def test_any_text_survives(path, job_id, log, happened):
    path.unlink(missing_ok=True)
    logs = LogPlan(stdout=str(log), stderr=str(log))
    begun = entry(job_id, logs=logs)
    with opened(path) as book:
        book.begin(begun)
        for event in happened:
            note(book, begun.attempt.token, event)
        book.flush()
        (found,) = load(path)
    assert (found.launch.job_id, found.launch.logs) == (job_id, logs)
    assert found.events == happened


# The request of a start, and the line of the journal that is cut from it.


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(launches, attempts, st.integers(1, 2**31), st.sampled_from(["start", "adopt"]))
@example(HOSTILE, ATTEMPT, 7, "start")
def test_the_line_cut_from_any_request_reads_back_to_what_was_asked_for(
    path, launch, attempt, number, what
):
    path.write_bytes(begin_of(request(what, number, attempt, launch)))
    (found,) = load(path)
    assert (found.number, found.attempt) == (number, attempt)
    assert found.launch == replace(launch, **NOT_KEPT)


@settings(max_examples=300)
@given(launches, attempts)
@example(HOSTILE, ATTEMPT)
def test_the_line_cut_from_any_request_is_the_one_that_the_journal_writes(launch, attempt):
    begin = begin_text(3, attempt, launch.parts()[0])
    assert begin_of(request("start", 3, attempt, launch)) == f"{{{begin}}}\n".encode("ascii")


@settings(max_examples=300)
@given(launches, attempts)
@example(HOSTILE, ATTEMPT)
def test_the_line_cut_from_any_request_holds_nothing_that_is_only_needed_to_start(launch, attempt):
    line = json.loads(begin_of(request("start", 3, attempt, launch)))
    assert line.keys() == {"begin", "number", "launch"}
    assert line["launch"].keys() == {field.name for field in LASTING}


@settings(max_examples=300)
@given(launches, attempts)
@example(HOSTILE, ATTEMPT)
def test_any_launch_arrives_as_it_was_asked_for(launch, attempt):
    (message,) = decoded(Lines().feed(request("start", 3, attempt, launch)))
    arrived = Launch.from_json({**message["launch"], **message["exec"]}, launch.base_env)
    assert (message["do"], message["id"], message["number"]) == ("start", 5, 3)
    assert Attempt.from_json(message["begin"]) == attempt
    assert arrived == launch


def request(what: Any, number: int, attempt: Attempt, launch: Launch) -> bytes:
    """Return a request as an application sends it."""
    return f'{start_request(what, number, attempt, launch.parts())},"id":5}}\n'.encode("ascii")


def test_no_environment_and_no_argument_is_ever_in_it(path):
    secret = entry(envs={"TOKEN": SECRET}, argv=("login", SECRET), cwd=f"/{SECRET}")
    secret.events = list(EVENTS)
    with opened(path, [secret]) as book:
        book.begin(secret)
        note(book, secret.attempt.token, EVENTS[0])
        book.flush()
        begun = path.read_bytes()
        book.open()
        assert secret.attempt.token.encode() in begun
        assert SECRET.encode() not in begun + path.read_bytes()
    (found,) = load(path)
    assert (found.launch.envs, found.launch.base_env, found.launch.argv) == ({}, {}, ())


def test_only_its_owner_can_read_it(path):
    umask = os.umask(0)
    try:
        with opened(path) as book:
            book.begin(entry())
            assert path.stat().st_mode & 0o777 == 0o600
            book.open()
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(umask)


# What was cut, or is no journal at all.


def test_wherever_it_was_cut_what_is_whole_is_there(path):
    first, second = entry("first"), entry("second")
    with opened(path) as book:
        book.begin(first)
        sizes = [path.stat().st_size]
        book.begin(second)
        sizes.append(path.stat().st_size)
        note(book, first.attempt.token, EVENTS[0])
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        entries = load(path)
        # A line lacks nothing without its end.
        whole = sum(size >= whole - 1 for whole in sizes)
        assert [e.launch.job_id for e in entries] == ["first", "second"][:whole]


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello",
        b"\xff\xfe\x00",
        b"\0" * 4096,
        b"{}",
        b"[]",
        b"5",
        b"null",
        b'"begin"',
        b"[" * 100_000,
        b'{"begin":5}',
        b'{"begin":{"token":"t"}}',
        b'{"begin":{},"number":1,"launch":{}}',
        b'{"done":[]}',
        b'{"done":"unknown"}',
        b'{"token":{},"event":{}}',
        b'{"token":"TOKEN","event":5}',
        b'{"token":"TOKEN","event":{"kind":"Unknown","at":1}}',
        b'{"token":"TOKEN","event":{"kind":"Lost","at":1}}',
        b'{"token":"TOKEN","event":{"kind":"Lost","at":1e300,"error":""}}',
        b'{"token":"TOKEN","event":{"kind":"Lost","at":"noon","error":""}}',
    ],
)
def test_a_line_that_makes_no_sense_is_passed_over(path, garbage):
    first, second = entry("first"), entry("second")
    with opened(path) as book:
        book.begin(first)
    garbage = garbage.replace(b"TOKEN", first.attempt.token.encode())
    data = path.read_bytes() + garbage + b"\n"
    with opened(path) as book:
        book.begin(second)
    path.write_bytes(data + path.read_bytes())
    assert written(load(path)) == written([first, second])


@pytest.mark.parametrize(
    ("whole", "odd"),
    [
        (b'"token":"TOKEN"', b'"token":"\\u00e9"'),
        (b'"token":"TOKEN"', b'"token":5'),
        (b'"job_id":"odd"', b'"job_id":5'),
        (b'"max_bytes":7', b'"max_bytes":0'),
        (b'"backups":2', b'"backups":null'),
    ],
)
def test_an_attempt_that_could_not_be_seen_to_its_end_is_passed_over(path, whole, odd):
    first, second = entry("odd"), entry("second")
    with opened(path) as book:
        book.begin(first)
        book.begin(second)
    whole = whole.replace(b"TOKEN", first.attempt.token.encode())
    data = path.read_bytes()
    assert whole in data
    path.write_bytes(data.replace(whole, odd, 1))
    assert written(load(path)) == written([second])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary())
def test_a_file_of_anything_can_be_read(path, data):
    path.write_bytes(data)
    assert load(path) == []


# A disk that is full.


@contextmanager
def full_disk(path: Path, more: int = 0) -> Iterator[None]:
    """Let files grow to the present size of this one, and so many bytes more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_nothing_is_begun_that_cannot_be_written(path):
    with opened(path) as book:
        with full_disk(path), pytest.raises(OSError, match="too large"):
            book.begin(entry())
        assert load(path) == []
        book.flush()
        assert load(path) == []


def test_half_a_line_is_passed_over(path):
    lost, begun = entry("lost"), entry("begun")
    with opened(path) as book:
        with full_disk(path, more=100), pytest.raises(OSError, match="no space"):
            book.begin(lost)
        assert path.read_bytes().splitlines()[-1].startswith(b'{"begin"')
        book.begin(begun)
        assert written(load(path)) == written([begun])


def test_a_line_that_lacks_only_its_end_spoils_no_other(path):
    first, begun = entry("first"), entry("begun")
    with opened(path) as book:
        book.begin(first)
        begin = path.read_bytes().splitlines(keepends=True)[-1]
        lost = Entry(first.number, first.launch, Attempt(token=new_token(), supervisor="shim:s"))
        with full_disk(path, more=len(begin) - 1), pytest.raises(OSError, match="no space"):
            book.begin(lost)
        note(book, lost.attempt.token, StartFailed(error="no space"))
        book.begin(begun)
        book.done(lost.attempt.token)
        book.flush()
        assert written(load(path)) == written([first, begun])


@pytest.mark.parametrize("more", [0, 1, 60, 150])
def test_what_happens_while_the_disk_is_full_is_written_when_there_is_space(path, more):
    begun = entry()
    with opened(path) as book:
        book.begin(begun)
        with full_disk(path, more):
            note(book, begun.attempt.token, EVENTS[0])
            book.flush()
            note(book, begun.attempt.token, EVENTS[8])
            book.flush()
        book.flush()
        assert load(path)[0].events[-2:] == [EVENTS[0], EVENTS[8]]


def test_a_begin_takes_along_what_could_not_be_written_before(path):
    begun, other = entry("a"), entry("b")
    with opened(path) as book:
        book.begin(begun)
        with full_disk(path):
            note(book, begun.attempt.token, EVENTS[0])
            book.flush()
        book.begin(other)
        assert [e.events for e in load(path)] == [[EVENTS[0]], []]


def test_a_full_disk_is_said_once(path, caplog):
    with opened(path) as book:
        with full_disk(path):
            for _ in range(3):
                note(book, new_token(), EVENTS[0])
                book.flush()
        assert len(caplog.records) == 1
        assert str(path) in caplog.text


def test_a_journal_that_cannot_be_made_anew_stays_as_it_was(path):
    begun = entry()
    kept = [begun]
    with opened(path, kept) as book:
        note(book, begun.attempt.token, EVENTS[0])
        book.flush()
        kept += [begun_entry(f"job-{number}") for number in range(100)]
        with full_disk(path), pytest.raises(OSError, match="no space"):
            book.open()
        assert [e.events for e in load(path)] == [[EVENTS[0]]]
        note(book, begun.attempt.token, EVENTS[8])
        book.flush()
        assert load(path)[0].events == [EVENTS[0], EVENTS[8]]


# Making it anew.


def test_it_is_made_anew_of_what_is_kept(path):
    begun = entry()
    begun.events = list(EVENTS)
    with opened(path, [begun]):
        assert written(load(path)) == written([begun])


def test_it_keeps_small_whatever_passes_through_it(path, monkeypatch):
    monkeypatch.setattr(journal, "_COMPACT_ABOVE_BYTES", 20_000)
    lives = [entry("lives")]
    lives[0].events = [EVENTS[0]]
    with opened(path, lives) as book:
        for number in range(300):
            passing = entry(f"job-{number}")
            book.begin(passing)
            note(book, passing.attempt.token, EVENTS[0])
            note(book, passing.attempt.token, EVENTS[8])
            book.done(passing.attempt.token)
            book.flush()
            assert path.stat().st_size < 25_000
        assert written(load(path)) == written(lives)


def test_it_is_not_made_anew_while_it_is_mostly_of_the_present(path, monkeypatch):
    monkeypatch.setattr(journal, "_COMPACT_ABOVE_BYTES", 1)
    lives = [entry(f"job-{number}") for number in range(10)]
    with opened(path, lives) as book:
        file = path.stat().st_ino
        note(book, lives[0].attempt.token, EVENTS[0])
        book.flush()
        assert path.stat().st_ino == file


def test_what_is_said_after_it_was_made_anew_is_in_it(path):
    lives: list[Entry] = []
    with opened(path, lives) as book:
        for number in range(3):
            lives.append(entry(f"job-{number}"))
            book.begin(lives[-1])
            book.open()
        book.done(lives[0].attempt.token)
        book.flush()
        assert written(load(path)) == written(lives[1:])
    assert [name.name for name in path.parent.iterdir()] == ["journal"]
