"""What cannot be meant is refused, by the name of the field, before anything happens."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from anodejobs import InvalidJob, JobFilter, JobNotFound, Jobs
from tests.servers import MYSQL, POSTGRES, own_database

SECRET = "hunter2-is-no-password"
NO_SECONDS: list[Any] = [-1, -0.001, float("nan"), float("inf"), "1", True, 10**400, [1]]
NO_COUNTS: list[Any] = [-1, 1.5, "1", True, [1]]


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    """A Jobs that holds nothing, and must hold nothing at the end of the test."""
    async with Jobs(
        db_path=tmp_path / "job_db", store="memory://", stop_grace=1, executor="inline"
    ) as jobs:
        yield jobs
        assert await jobs.count() == 0
        assert list((tmp_path / "job_db" / "job_logs").iterdir()) == []
        assert psutil.Process().children(recursive=True) == []


async def refuse(field: str, call: Awaitable[object]) -> None:
    """Await the call, and see that it is refused for the field."""
    with pytest.raises(InvalidJob) as caught:
        async with asyncio.timeout(60):
            await call
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert isinstance(caught.value, ValueError)
    assert SECRET not in repr(caught.value)
    assert SECRET not in str(caught.value)


class NulPath:
    def __fspath__(self) -> str:
        return "/tmp/a\0b"


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"/tmp"


BAD_SPECS: list[tuple[str, dict[str, Any]]] = [
    # What to run.
    *(
        ("command", {"command": command})
        for command in (
            *("", " ", "\t\n", [], [""], [" ", "a"], (), "a\0b", ["a\0b"], ["a", "b\0"]),
            *(None, 5, b"true", [b"true"], ["true", 5], ["true", None], {"a": "b"}, {"true"}),
            *(["echo", Path("/tmp")], "\udcff", ["echo", "\udcff"]),
        )
    ),
    # Its name.
    *(
        ("job_id", {"job_id": job_id})
        for job_id in (
            *("", "x" * 201, "a\nb", "a\n", "\n", "a\0b", "\t", "\x1b[31m", "\x7f", "\u2028"),
            *("\u200b", "\ud800", 5, b"a", ["a"], True),
        )
    ),
    # Where and with what.
    *(
        ("cwd", {"cwd": cwd})
        for cwd in ("a\0b", "/\udcff", NulPath(), BytesPath(), 5, b"/tmp", ["/"], True)
    ),
    *(
        ("envs", {"envs": envs})
        for envs in (
            *({"A=B": SECRET}, {"": SECRET}, {"=": SECRET}, {"A\0": SECRET}, {"A": f"{SECRET}\0"}),
            *({"A": 5}, {"A": None}, {"A": SECRET.encode()}, {"A": [SECRET]}, {5: SECRET}),
            *({b"A": SECRET}, {"A": SECRET, "B": True}, [f"A={SECRET}"], f"A={SECRET}", 5, None),
            {"A": f"{SECRET}\ud800"},
        )
    ),
    *(("inherit_env", {"inherit_env": value}) for value in ("yes", 1, None)),
    # What it is called and belongs to.
    *(
        (field, {field: value})
        for field in ("name", "description", "user_id", "workflow_id")
        for value in (5, b"a", ["a"], "\udcff")
    ),
    *(("tags", {"tags": tags}) for tags in ("red", [5], ["red", None], {"red": 1}, 5, ["\udcff"])),
    *(
        ("metadata", {"metadata": metadata})
        for metadata in (
            *([1], "a", 5, None, {5: 1}, {"a": object()}, {"a": {1, 2}}, {"a": b"b"}),
            *({"a": float("nan")}, {"a": [float("inf")]}, {"a": "\udcff"}, {"\udcff": 1}),
        )
    ),
    # How it is looked after.
    *(
        (field, {field: value})
        for field in ("timeout", "stop_grace", "start_grace")
        for value in NO_SECONDS
    ),
    ("start_grace", {"start_grace": None}),
    *(("leftovers", {"leftovers": value}) for value in ("keep", "", None, True)),
    *(("if_exists", {"if_exists": value}) for value in ("replace", "", None, True, ["skip"])),
    *(("fresh_for", {"if_exists": "skip", "fresh_for": value}) for value in NO_SECONDS),
    ("fresh_for", {"fresh_for": 10}),
    ("fresh_for", {"if_exists": "error", "fresh_for": 10}),
    # What there is not.
    *((name, {name: SECRET}) for name in ("env", "args", "shell", "self_id", "nice", "status")),
]


@pytest.mark.parametrize(
    ("field", "wrong"),
    BAD_SPECS,
    ids=[re.sub(" at 0x[0-9a-f]+", "", ascii(wrong))[:60] for _, wrong in BAD_SPECS],
)
async def test_a_run_with_bad_input_is_refused(
    jobs: Jobs, tmp_path: Path, field: str, wrong: dict[str, Any]
) -> None:
    ran = tmp_path / "ran"
    asked = {"command": ["touch", str(ran)], "job_id": "a", "envs": {"TOKEN": SECRET}, **wrong}
    await refuse(field, jobs.run(**asked))
    assert not ran.exists()


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"deeper": value}
    return value


async def is_kept_or_refused(tmp_path: Path, metadata: dict[str, Any]) -> bool:
    """Return whether metadata come back as they were put in, or are refused as such."""
    async with (
        Jobs(db_path=tmp_path, executor="inline") as jobs,
        Jobs(db_path=tmp_path, executor="inline") as other,
    ):
        try:
            async with asyncio.timeout(60):
                record = await jobs.run("true", metadata=metadata)
        except InvalidJob as error:
            return error.field == "metadata" and await jobs.count() == 0
        return (await other.wait(record.self_id)).metadata == metadata


@pytest.mark.parametrize("levels", [100, 200, 250, 260, 1000, 10_000])
async def test_metadata_of_any_depth_are_kept_or_refused(tmp_path: Path, levels: int) -> None:
    assert await is_kept_or_refused(tmp_path, deep(levels))


@pytest.mark.parametrize(
    "number",
    [2**63, 2**64, 10**400, 10**5000, -(10**5000), 1e308, -0.0],
    ids=["i64", "u64", "1e400", "1e5000", "-1e5000", "1e308", "-0"],
)
async def test_numbers_of_any_size_are_kept_or_refused(tmp_path: Path, number: float) -> None:
    assert await is_kept_or_refused(tmp_path, {"number": number})


BAD_CALLS: list[tuple[str, str, Callable[[Jobs], Awaitable[object]]]] = [
    *(
        ("status", f"wait {status!r}", lambda jobs, status=status: jobs.wait("a", status))
        for status in ("nonsense", "", "Running", [], ["running", ""], [5], 5, True, b"running")
    ),
    *(
        (field, f"{name} {value!r}"[:40], lambda jobs, call=call, value=value: call(jobs, value))
        for field, name, call in (
            ("timeout", "wait", lambda jobs, value: jobs.wait("a", timeout=value)),
            ("timeout", "wait_all", lambda jobs, value: jobs.wait_all([], timeout=value)),
            ("grace", "stop", lambda jobs, value: jobs.stop("a", grace=value)),
            ("grace", "restart", lambda jobs, value: jobs.restart("a", grace=value)),
            ("heartbeat", "events", lambda jobs, value: anext(jobs.events(heartbeat=value))),
        )
        for value in NO_SECONDS
    ),
    *(
        (field, f"{name} {field} {value!r}", lambda jobs, c=call, value=value: c(jobs, value))
        for field, name, call in (
            ("limit", "list_jobs", lambda jobs, value: jobs.list_jobs(limit=value)),
            ("offset", "list_jobs", lambda jobs, value: jobs.list_jobs(offset=value)),
            ("after", "events", lambda jobs, value: anext(jobs.events(after=value))),
            ("tail", "job_logs", lambda jobs, value: jobs.job_logs("a", tail=value)),
            ("offset", "follow", lambda jobs, value: anext(jobs.follow("a", offset=value))),
        )
        for value in NO_COUNTS
    ),
    *(
        ("sig", f"signal {sig!r}", lambda jobs, sig=sig: jobs.signal("a", sig))
        for sig in ("SIGNONSENSE", "", "SIG", "9", 0, -1, 65, 1000, 2.0, True, None, b"SIGTERM")
    ),
    *(
        ("sort_by", f"sort_by {key!r}", lambda jobs, key=key: jobs.list_jobs(sort_by=key))
        for key in ("command", "", "created_at; DROP TABLE jobs", None, 5, ["name"])
    ),
    *(
        ("sort_order", f"sort_order {o!r}", lambda jobs, o=o: jobs.list_jobs(sort_order=o))
        for o in ("up", "", "DESC", None, True)
    ),
    *(
        ("filter", f"{name} {filter!r}", lambda jobs, call=call, filter=filter: call(jobs, filter))
        for name, call in (
            ("list_status", lambda jobs, filter: jobs.list_status(filter)),
            ("count", lambda jobs, filter: jobs.count(filter)),
        )
        for filter in ("running", 5, ["running"])
    ),
    *(
        ("spec", f"create_batch of {spec!r}", lambda jobs, spec=spec: jobs.create_batch([spec]))
        for spec in ("true", ["true"], None)
    ),
    *(
        ("specs", f"create_batch {specs!r}", lambda jobs, specs=specs: jobs.create_batch(specs))
        for specs in (5, None, [], "")
    ),
    *(
        ("template", f"add_template {t!r}", lambda jobs, t=t: jobs.add_template(t))
        for t in (5, None, "greet", ["greet"])
    ),
    ("callback", "on None", lambda jobs: jobs.on(None)),
    *(
        ("after", f"list_jobs after {after!r}", lambda jobs, a=after: jobs.list_jobs(after=a))
        for after in (5, b"a", ["a"])
    ),
]


@pytest.mark.parametrize(
    ("field", "call"),
    [(field, call) for field, _, call in BAD_CALLS],
    ids=[name for _, name, _ in BAD_CALLS],
)
async def test_a_call_with_bad_input_is_refused(
    jobs: Jobs, field: str, call: Callable[[Jobs], Awaitable[object]]
) -> None:
    await refuse(field, call(jobs))


NO_TIMES: list[Any] = ["yesterday", [], ""]
BAD_FILTERS: list[tuple[str, dict[str, Any]]] = [
    *((name, {name: "a"}) for name in ("job_id", "state", "tag", "created_at", "envs", "")),
    *(("status", {"status": status}) for status in ("nonsense", ["running", ""], 5)),
    *((field, {field: 5}) for field in ("self_id", "name", "user_id", "workflow_id", "tags")),
    *((field, {field: ["a", None]}) for field in ("self_id", "name", "user_id", "workflow_id")),
    ("tags", {"tags": "red"}),
    *(
        (field, {field: value})
        for field in ("created_after", "created_before")
        for value in NO_TIMES
    ),
]


@pytest.mark.parametrize(("field", "wrong"), BAD_FILTERS, ids=str)
async def test_a_filter_with_bad_input_is_refused_everywhere(
    jobs: Jobs, field: str, wrong: dict[str, Any]
) -> None:
    await refuse(field, jobs.list_status(wrong))
    await refuse(field, jobs.list_jobs(**wrong))
    await refuse(field, jobs.count(wrong))
    await refuse(field, jobs.counts(wrong))
    await refuse(field, jobs.wait_all(wrong))
    with pytest.raises(InvalidJob):
        JobFilter(wrong)


async def first(generator: AsyncGenerator[object, None]) -> object:
    """Return the first that it gives."""
    async with aclosing(generator):
        return await anext(generator, None)


CALLS_BY_ID: dict[str, tuple[str, Callable[[Jobs, Any], Awaitable[object]], object]] = {
    # The field that it names, and what comes of an id that nobody has.
    "start": ("job_id", lambda jobs, i: jobs.start(i), JobNotFound),
    "cancel": ("job_id", lambda jobs, i: jobs.cancel(i), None),
    "stop": ("job_id", lambda jobs, i: jobs.stop(i), None),
    "pause": ("job_id", lambda jobs, i: jobs.pause(i), JobNotFound),
    "resume": ("job_id", lambda jobs, i: jobs.resume(i), JobNotFound),
    "signal": ("job_id", lambda jobs, i: jobs.signal(i, "TERM"), JobNotFound),
    "restart": ("job_id", lambda jobs, i: jobs.restart(i), JobNotFound),
    "delete": ("job_id", lambda jobs, i: jobs.delete(i), False),
    "get_status": ("job_id", lambda jobs, i: jobs.get_status(i), None),
    "get_results": ("job_id", lambda jobs, i: jobs.get_results(i), JobNotFound),
    "history": ("job_id", lambda jobs, i: jobs.history(i), []),
    "attempts": ("job_id", lambda jobs, i: jobs.attempts(i), JobNotFound),
    "usage": ("job_id", lambda jobs, i: jobs.usage(i), JobNotFound),
    "job_logs": ("job_id", lambda jobs, i: jobs.job_logs(i), JobNotFound),
    "follow": ("job_id", lambda jobs, i: first(jobs.follow(i)), JobNotFound),
    "wait": ("job_id", lambda jobs, i: jobs.wait(i), JobNotFound),
    "wait, limited": ("job_id", lambda jobs, i: jobs.wait(i, timeout=9), JobNotFound),
    "wait_all": ("jobs", lambda jobs, i: jobs.wait_all([i]), JobNotFound),
    "as_completed": ("job_ids", lambda jobs, i: first(jobs.as_completed([i])), JobNotFound),
    "add_dependency": ("job_id", lambda jobs, i: jobs.add_dependency(i, "a"), JobNotFound),
    "remove_dependency": ("job_id", lambda jobs, i: jobs.remove_dependency(i, "a"), JobNotFound),
    "get_dependencies": ("job_id", lambda jobs, i: jobs.get_dependencies(i), JobNotFound),
    "get_dependents": ("job_id", lambda jobs, i: jobs.get_dependents(i), JobNotFound),
    "get_batch": ("batch_id", lambda jobs, i: jobs.get_batch(i), JobNotFound),
    "wait_batch": ("batch_id", lambda jobs, i: jobs.wait_batch(i), JobNotFound),
    "cancel_batch": ("batch_id", lambda jobs, i: jobs.cancel_batch(i), JobNotFound),
    "batch_progress": ("batch_id", lambda jobs, i: jobs.batch_progress(i), JobNotFound),
    "unschedule": ("name", lambda jobs, i: jobs.unschedule(i), False),
    "remove_template": ("name", lambda jobs, i: jobs.remove_template(i), False),
    "run_template": ("name", lambda jobs, i: jobs.run_template(i), JobNotFound),
    "submit_template": ("name", lambda jobs, i: jobs.submit_template(i), JobNotFound),
}
NO_IDS: list[Any] = [5, None, True, 1.5, b"a", ["a"], ("a",), {"a"}, {"a": 1}, str]


@pytest.mark.parametrize("name", CALLS_BY_ID)
async def test_what_is_no_text_is_no_id(jobs: Jobs, name: str) -> None:
    field, call, _ = CALLS_BY_ID[name]
    for no_id in NO_IDS:
        await refuse(field, call(jobs, no_id))


@pytest.mark.parametrize("no_id", [n for n in NO_IDS if n is not None], ids=repr)
async def test_what_is_no_text_is_no_id_of_whose_events_are_told(jobs: Jobs, no_id: Any) -> None:
    await refuse("job_id", first(jobs.events(no_id)))
    await refuse("job_id", jobs.on(print, job_id=no_id))


@pytest.mark.parametrize("no_ids", [5, None, str], ids=repr)
async def test_what_is_no_several_are_no_ids(jobs: Jobs, no_ids: Any) -> None:
    await refuse("jobs", jobs.wait_all(no_ids))
    await refuse("job_ids", first(jobs.as_completed(no_ids)))


@pytest.mark.parametrize(
    "queue", [*NO_IDS, "", "a\0b", "\udcff", "x" * 201], ids=lambda q: ascii(q)[:9]
)
async def test_what_no_queue_can_be_called_is_not_paused(jobs: Jobs, queue: Any) -> None:
    await refuse("queue", jobs.pause_queue(queue))
    await refuse("queue", jobs.resume_queue(queue))
    assert await jobs.paused_queues() == []


NO_FOLDERS: list[Any] = [None, 5, b"db", ["db"], "", "a\0b", "\ud800", NulPath(), BytesPath()]


@pytest.mark.parametrize("no_folder", NO_FOLDERS, ids=lambda f: ascii(f)[:9])
def test_what_is_no_folder_keeps_no_jobs(no_folder: Any) -> None:
    for made in (Jobs, lambda folder: Jobs.from_settings(db_path=folder)):
        with pytest.raises(InvalidJob) as caught:
            made(no_folder)
        assert caught.value.field == "db_path"


def test_what_is_relative_to_a_folder_that_is_gone_keeps_no_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InvalidJob, match="db_path: is relative to a directory that is gone"):
        Jobs("job_db")


def test_a_folder_may_have_any_name_that_the_system_takes(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n")
    assert Jobs(tmp_path / name).db_path == tmp_path / name


@pytest.mark.parametrize(
    "queue", [5, None, b"a", "", "a\0b", "x" * 201], ids=lambda q: ascii(q)[:9]
)
def test_what_no_queue_can_be_called_has_no_slots(tmp_path: Path, queue: Any) -> None:
    with pytest.raises(InvalidJob, match="queues: "):
        Jobs(tmp_path, queues={queue: 1})
    with pytest.raises(InvalidJob, match="only_queues: "):
        Jobs(tmp_path, only_queues=[queue])


@pytest.fixture(
    params=["memory", "file", "sqlite", POSTGRES, MYSQL], ids=lambda p: getattr(p, "name", p)
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store."""
    match request.param:
        case "memory":
            yield "memory://"
        case "file":
            yield f"file://{tmp_path}/store"
        case "sqlite":
            yield f"sqlite:///{tmp_path}/store"
        case kind:
            with own_database(kind) as database:
                yield database.url


STRANGE_IDS = ["a\0b", "\n", "", "\udcff", "x" * 100_000, "' OR 1=1 --"]


async def test_an_id_that_no_job_can_have_is_unknown(tmp_path: Path, url: str) -> None:
    async with Jobs(db_path=tmp_path / "db", store=url, executor="inline") as jobs:
        await jobs.create("true", "a")
        for job_id in STRANGE_IDS:
            for _, call, expected in CALLS_BY_ID.values():
                if expected is JobNotFound:
                    with pytest.raises(JobNotFound):
                        await call(jobs, job_id)
                else:
                    assert await call(jobs, job_id) == expected
            assert await jobs.list_status({"self_id": job_id}) == {}
            await refuse("depends_on", jobs.add_dependency("a", job_id))
            assert (await jobs.remove_dependency("a", job_id)).depends_on == []
