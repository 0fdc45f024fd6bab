"""What the store of files promises beyond the contract: its folder, crashes, other processes."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from anodejobs import AnodeJobsError, FileJobStore, JobFilter, Jobs, Status, StoreError
from anodejobs.logs import log_name
from anodejobs.stores import file_folder
from anodejobs.stores.base import Delete, Insert, Query
from anodejobs.testing import make_insert, make_launch, make_record, make_save
from tests.programs import application, ends_well, process
from tests.test_sqlite import FILL_AND_GO_ON, IS_LINUX, PATIENCE_S

CHILD = """
import asyncio, os, resource, signal, subprocess, sys
from anodejobs import FileJobStore, JobFilter, StoreError
from anodejobs.stores.base import Query
from anodejobs.testing import make_insert, make_record, make_save

signal.alarm(60)  # whatever happens to the test

def say(*words):
    print(*words, flush=True)

async def put(store, *ids, **fields):
    return await store.commit([make_insert(make_record(i, **fields)) for i in ids])

async def main():
    store = FileJobStore("store")
{body}

asyncio.run(main())
"""


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[FileJobStore]:
    store = FileJobStore(path)
    try:
        await store.open(lambda: None)
        yield store
    finally:
        await store.close()


async def put(store: FileJobStore, *ids: str, **fields: object) -> list[int | None]:
    return await store.commit([make_insert(make_record(job_id, **fields)) for job_id in ids])


async def ids_in(store: FileJobStore) -> list[str]:
    query = Query(filter=JobFilter(), sort_by="self_id")
    return [record.self_id for record in await store.page(query)]


def child(body: str) -> tuple[str, ...]:
    """Return the command that runs the body of a coroutine; its ``store`` is in the folder."""
    return sys.executable, "-c", CHILD.format(body=body)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the content of all files of a store, but for what only holds a lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("anodejobs-lock", "anodejobs-scheduler")
    }


# For people.


async def test_a_job_is_a_file_that_a_person_can_read(tmp_path):
    async with opened(tmp_path) as store:
        await put(store, "backup", command="rsync -a ü /mnt", tags=["nightly"], exit_code=0)
        lines = (tmp_path / "jobs" / "backup.json").read_text().splitlines()
    assert '    "self_id": "backup",' in lines
    assert '    "status": "running",' in lines
    assert '    "command": "rsync -a ü /mnt",' in lines
    assert '    "exit_code": 0,' in lines
    assert '    "created_at": "2024-02-29T12:00:00.123456Z",' in lines


async def test_grep_finds_the_jobs_of_a_status(tmp_path):
    async with opened(tmp_path) as store:
        await put(store, "a", "b", "c", status="failed")
        await put(store, "d", status="running")
    with process("grep", "-lr", '"status": "failed"', "jobs", folder=tmp_path) as grep:
        found = grep.stdout.read()
    assert sorted(found.split()) == ["jobs/a.json", "jobs/b.json", "jobs/c.json"]


async def test_a_file_says_what_was_committed_when_the_commit_returns(tmp_path):
    path = tmp_path / "jobs" / "a.json"
    async with opened(tmp_path) as store:
        await put(store, "a")
        record = make_record("a")
        for status in (Status.stopping, Status.stopped):
            save = make_save(record, status=status)
            await store.commit([save])
            record = save.record
            assert json.loads(path.read_text())["record"]["status"] == status
        history = (tmp_path / "history" / "a.jsonl").read_text().splitlines()
        told = [(json.loads(line)["seq"], json.loads(line)["status"]) for line in history]
        assert told == [(1, "running"), (2, "stopping"), (3, "stopped")]
        await store.commit([Delete(record=record)])
        assert not path.exists()
        assert not (tmp_path / "history" / "a.jsonl").exists()


async def test_a_document_is_a_file_that_a_person_can_read(tmp_path):
    async with opened(tmp_path) as store:
        await store.put_document("schedules", "nightly", "every ü")
        (path,) = (tmp_path / "documents").iterdir()
        fields = {"kind": "schedules", "name": "nightly", "body": "every ü"}
        assert (path.name, json.loads(path.read_text())) == ("schedules%2Fnightly.json", fields)
        await store.put_document("schedules", "nightly", None)
        assert not path.exists()


@pytest.mark.parametrize(
    "job_ids", [["../../x", "..", "."], ["A", "a"], ["x" * 200, "é" * 200], ["a/b", "a%2Fb"], [" "]]
)
async def test_no_id_leads_out_of_the_folder_or_to_the_file_of_another_job(tmp_path, job_ids):
    store = tmp_path / "store"
    async with opened(store) as opened_store:
        await put(opened_store, *job_ids)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    found = {
        json.loads(path.read_text())["record"]["self_id"] for path in (store / "jobs").iterdir()
    }
    assert found == set(job_ids)
    assert len(list((store / "history").iterdir())) == len(job_ids)
    async with opened(store) as again:
        assert await ids_in(again) == sorted(job_ids)


async def test_the_folder_is_for_its_owner_alone(tmp_path):
    folder = tmp_path / "new"
    async with opened(folder) as store:
        await put(store, "a")
        await store.put_document("schedules", "a", "body")
        await asyncio.to_thread((folder / "anodejobs-scheduler").touch, 0o600)
        for path in [folder, *folder.rglob("*")]:
            expected = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == expected, path


async def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o750)
    async with opened(tmp_path):
        pass
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


async def test_the_folder_may_be_a_link_to_where_there_is_room(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "store").symlink_to("room")
    async with opened(tmp_path / "store") as store, opened(tmp_path / "room") as other:
        await put(store, "a")
        assert await ids_in(other) == ["a"]


async def test_what_is_left_of_a_closed_store_are_the_files_alone(tmp_path):
    async with opened(tmp_path) as store:
        await put(store, "a")
    assert list((tmp_path / "anodejobs-bells").iterdir()) == []
    assert len((tmp_path / "commits.jsonl").read_bytes().splitlines()) == 1, "it was folded"


async def test_what_a_person_puts_beside_the_files_is_left_alone(tmp_path):
    async with opened(tmp_path) as store:
        await put(store, "a")
    for name in ("README", "jobs/.a.json.swp", "jobs/a.json~", "history/notes.txt"):
        (tmp_path / name).write_text("mine")
    async with opened(tmp_path) as store:
        assert await ids_in(store) == ["a"]
    assert (tmp_path / "jobs/a.json~").read_text() == "mine"


# Environments.


async def test_no_value_of_an_environment_is_where_people_look(tmp_path):
    secret, envs = {"TOKEN": "hunter2-base"}, {"PASSWORD": "hunter2-envs"}
    async with opened(tmp_path) as store:
        insert = make_insert(make_record(), base_env=secret, envs=envs)
        await store.commit([insert])
        await store.commit([make_save(insert.record, status=Status.stopping)])
        for name, content in files_in(tmp_path).items():
            assert (b"hunter2" in content) == name.startswith("environments/"), name
    async with opened(tmp_path) as store:
        launch = (await store.get("a-job")).launch
        assert (launch.base_env, launch.envs) == (secret, envs)


async def test_an_environment_is_kept_once_for_all_jobs_that_have_it(tmp_path):
    async with opened(tmp_path) as store:
        await put(store, *"abc")
        names = {path.name for path in (tmp_path / "environments").iterdir()}
    assert len(names) == 2, "the usual one, and the empty one of the caller's"


async def test_the_environment_of_a_deleted_job_is_removed_when_the_log_is_folded(tmp_path):
    def secrets() -> list[str]:
        return [name for name, content in files_in(tmp_path).items() if b"hunter2" in content]

    async with opened(tmp_path) as store:
        await put(store, "other")
        insert = make_insert(make_record(), envs={"PASSWORD": "hunter2"})
        await store.commit([insert])
        assert secrets()
        await store.commit([Delete(record=insert.record)])
    assert not secrets()
    async with opened(tmp_path) as store:
        assert (await store.get("other")).launch.base_env == {"PATH": "/usr/bin:/bin"}


async def test_who_reads_on_needs_no_environment_that_was_removed_meanwhile(tmp_path):
    insert = make_insert(make_record(), envs={"PASSWORD": "hunter2"})
    async with opened(tmp_path) as reader:
        async with opened(tmp_path) as writer:
            await writer.commit([insert])
            await writer.commit([Delete(record=insert.record)])
        assert await reader.get("a-job") is None
        assert await reader.last_seq() == 1


async def test_who_has_missed_a_whole_log_needs_no_environment_that_its_fold_removed(tmp_path):
    insert = make_insert(make_record(), envs={"COLOUR": "red"})
    another_run = make_launch(envs={"COLOUR": "blue"})
    async with opened(tmp_path) as reader:
        async with opened(tmp_path) as writer:
            await writer.commit([insert])
        async with opened(tmp_path) as writer:
            await writer.commit([make_save(insert.record, launch=another_run)])
        assert (await reader.get("a-job")).launch.envs == {"COLOUR": "blue"}


async def test_an_environment_that_was_changed_is_named(tmp_path):
    async with opened(tmp_path) as store:
        await store.commit([make_insert(make_record(), envs={"PASSWORD": "hunter2"})])
    for path in (tmp_path / "environments").iterdir():
        path.write_bytes(path.read_bytes().replace(b"hunter2", b"hunter3"))
    await _assert_refused_unharmed(tmp_path, match=r"/environments/\w+\.json is damaged")


async def test_an_environment_that_another_process_has_removed_is_kept_again(tmp_path):
    one, other = [make_insert(make_record(i), envs={"COLOUR": "red"}) for i in ("one", "other")]
    async with opened(tmp_path) as store:
        await store.commit([one])
        await store.commit([Delete(record=one.record)])
        async with opened(tmp_path):
            pass  # which folds the log when it closes
        await store.commit([other])
    async with opened(tmp_path) as store:
        assert (await store.get("other")).launch.envs == {"COLOUR": "red"}


# Folders that are not ours, or of a newer version, or damaged.


async def test_a_store_that_is_not_open_says_so(tmp_path):
    store = FileJobStore(tmp_path / "store")
    for call in (store.commit([]), store.get("a"), store.last_seq(), store.count(JobFilter())):
        with pytest.raises(StoreError, match="is not open"):
            await call
    assert not store.path.exists()


async def test_closing_twice_at_once_closes_once(tmp_path):
    store = FileJobStore(tmp_path)
    await store.open(lambda: None)
    await asyncio.gather(store.close(), store.close())
    with pytest.raises(StoreError):
        await store.last_seq()


async def _assert_refused_unharmed(folder: Path, *, match: str) -> None:
    before = files_in(folder)
    store = FileJobStore(folder)
    with pytest.raises(StoreError, match=match):
        await store.open(lambda: None)
    await store.close()
    assert files_in(folder) == before


async def test_a_newer_store_is_left_as_it_is(tmp_path):
    async with opened(tmp_path) as store:
        await put(store, "a")
    marker = json.loads((tmp_path / "anodejobs.json").read_text())
    marker["version"] = file_folder.VERSION + 1
    (tmp_path / "anodejobs.json").write_text(json.dumps(marker))
    await _assert_refused_unharmed(tmp_path, match="newer anodejobs.*upgrade")


async def test_an_application_under_which_the_folder_was_migrated_says_so_and_ends(
    tmp_path, monkeypatch
):
    async with (
        opened(tmp_path / "store") as newer,
        Jobs(tmp_path / "db", store=_url(tmp_path), executor="inline") as jobs,
    ):
        await jobs.create("true", "a")
        waiting = asyncio.create_task(jobs.wait("a"))
        await asyncio.sleep(0)
        marker = tmp_path / "store" / "anodejobs.json"
        marker.write_text(marker.read_text().replace(": 1", ": 2"))
        monkeypatch.setattr(file_folder, "_FOLD_ABOVE_BYTES", 1)
        await put(newer, "b")
        before = files_in(tmp_path / "store")
        for call in (lambda: waiting, lambda: jobs.submit("true", "c"), lambda: jobs.count()):
            with pytest.raises(AnodeJobsError, match=r"newer anodejobs.*upgrade"):
                await asyncio.wait_for(call(), PATIENCE_S)
    assert files_in(tmp_path / "store") == before


@pytest.mark.parametrize("name", ["letter.txt", "jobs/a.json", ".git/HEAD", "jobs.db"])
async def test_a_folder_of_something_else_is_left_as_it_is(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    await _assert_refused_unharmed(tmp_path, match="holds something else.*a folder for the jobs")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [name]


async def test_a_file_in_place_of_the_folder_is_a_store_error(tmp_path):
    (tmp_path / "folder").write_text("in the way")
    for path in (tmp_path / "folder", tmp_path / "folder" / "within"):
        with pytest.raises(StoreError, match="cannot open"):
            async with opened(path):
                pass
    assert (tmp_path / "folder").read_text() == "in the way"


async def _filled(folder: Path) -> dict[str, bytes]:
    """Have jobs and a document in the folder; return what it then has."""
    async with opened(folder) as store:
        await put(store, "a", "b")
        await store.commit([make_save(make_record("a"), status=Status.finished)])
        await store.put_document("schedules", "s", "body")
    return files_in(folder)


JOB_A = "jobs/a.json"
DAMAGES = {
    "no text": (JOB_A, lambda old: b""),
    "half a job": (JOB_A, lambda old: old[: len(old) // 2]),
    "zeros": (JOB_A, lambda old: bytes(len(old))),
    "no object": (JOB_A, lambda old: b"[]"),
    "null": (JOB_A, lambda old: b"null"),
    "not UTF-8": (JOB_A, lambda old: b"\xff\xfe"),
    "no end of nesting": (JOB_A, lambda old: b"[" * 200_000),
    "a status unheard of": (JOB_A, lambda old: old.replace(b'"finished"', b'"done"')),
    "an unknown field": (JOB_A, lambda old: old.replace(b'"record": {', b'"record": {"x": 1,')),
    "no launch": (JOB_A, lambda old: old.replace(b'"launch"', b'"lunch"')),
    "no environment": (JOB_A, lambda old: old.replace(b'"base_env": "', b'"base_env": "0')),
    "a way out": (JOB_A, lambda old: old.replace(b'"base_env": "', b'"base_env": "../../')),
    "another job": (JOB_A, lambda old: old.replace(b'"self_id": "a"', b'"self_id": "c"')),
    "no attempt": (JOB_A, lambda old: old.replace(b'"token"', b'"taken"')),
    "half a history": ("history/a.jsonl", lambda old: old[:-5]),
    "history of another": ("history/a.jsonl", lambda old: old.replace(b'"a"', b'"b"')),
    "history of nobody": ("history/a.jsonl", lambda old: old.replace(b'"a"', b'""')),
    "history without sense": ("history/a.jsonl", lambda old: b"{}\n" + old),
    "history of the future": ("history/a.jsonl", lambda old: old.replace(b":3,", b":33,")),
    "half a document": ("documents/schedules%2Fs.json", lambda old: old[:10]),
    "another document": ("documents/schedules%2Fs.json", lambda old: old.replace(b'"s"', b'"t"')),
    "a document without a text": (
        "documents/schedules%2Fs.json",
        lambda old: old.replace(b'"body"\n', b"null\n"),
    ),
    "no marker": ("anodejobs.json", lambda old: b""),
    "a marker without a version": ("anodejobs.json", lambda old: b"{}"),
    "an empty log": ("commits.jsonl", lambda old: b""),
    "half a log": ("commits.jsonl", lambda old: old[:10]),
    "another log": ("commits.jsonl", lambda old: old.replace(b"3", b"2")),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_file_is_named_and_nothing_is_lost(tmp_path, name, damage):
    before = await _filled(tmp_path)
    data = damage(before[name])
    assert data != before[name]
    (tmp_path / name).write_bytes(data)
    await _assert_refused_unharmed(tmp_path, match=re.escape(Path(name).name))
    (tmp_path / name).write_bytes(before[name])
    async with opened(tmp_path) as store:
        assert await ids_in(store) == ["a", "b"]
        assert [event.seq for event in await store.history()] == [1, 2, 3]


@pytest.mark.parametrize("name", ["commits.jsonl", "anodejobs.json", "environments"])
async def test_a_file_that_was_removed_is_named_and_nothing_is_lost(tmp_path, name):
    before = await _filled(tmp_path)
    shutil.move(tmp_path / name, tmp_path.with_suffix(".aside"))
    with pytest.raises(StoreError, match=f"{name}|holds something else"):
        async with opened(tmp_path):
            pass
    shutil.rmtree(tmp_path / name, ignore_errors=True)
    shutil.move(tmp_path.with_suffix(".aside"), tmp_path / name)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
async def test_what_is_no_file_is_not_read(tmp_path, kind):
    """A pipe would never give anything, and a link may lead to anything."""
    before = await _filled(tmp_path)
    path, aside = tmp_path / JOB_A, tmp_path / "aside.json"
    path.rename(aside)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(aside)
        case "folder":
            path.mkdir()
    with pytest.raises(StoreError, match=r"cannot open .*a\.json"):
        async with opened(tmp_path):
            pass
    assert aside.read_bytes() == before[JOB_A]


async def test_a_log_that_has_lost_commits_is_no_reason_to_lose_them_elsewhere(tmp_path):
    async with opened(tmp_path) as store:
        await put(store, "a")
        await store.commit([make_save(make_record("a"), status=Status.finished)])
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("*bells"))
    copy = tmp_path / "copy"
    lines = (copy / "commits.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "commits.jsonl").write_bytes(b"".join(lines[:-1]))
    await _assert_refused_unharmed(copy, match=r"commits\.jsonl has lost commits")


async def test_a_log_of_which_a_line_was_changed_is_named(tmp_path):
    async with opened(tmp_path) as store:
        await put(store, "a")
        await put(store, "b")
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("*bells"))
    log = tmp_path / "copy" / "commits.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"self_id":"a"', b'"self_id":"c"'))
    await _assert_refused_unharmed(log.parent, match=r"commits\.jsonl is damaged at byte")


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user may get to, unlike ``tmp_path``."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.parametrize("place", ["", "jobs", "commits.jsonl", "anodejobs-lock"])
async def test_what_may_not_be_written_is_named(reachable, place):
    async with opened(reachable / "store") as store:
        await put(store, "a")
    before = files_in(reachable / "store")
    as_nobody = f"""
    place = os.path.join("store", {place!r})
    if os.getuid() == 0:
        for path, folders, files in os.walk("store"):
            for name in [".", *folders, *files]:
                os.chown(os.path.join(path, name), 65534, 65534)
        os.setuid(65534)  # root may write everything
    os.chmod(place, 0o500)
    try:
        await store.open(lambda: None)
    except StoreError as error:
        say("StoreError", error)
    await store.close()
    os.chmod(place, 0o700)
    """
    with process(*child(as_nobody), folder=reachable) as running:
        told = running.stdout.readline()
        assert told.startswith("StoreError cannot open /")
        named = os.path.join(reachable, "store", place).rstrip("/")
        assert told.endswith(f"Permission denied: '{named}'\n")
        assert ends_well(running)
    assert files_in(reachable / "store") == before


# Crashes.

# Prepares a folder, and has a process for each system call of a commit die before it, or in it.
CRASHES = """
import asyncio, json, os, shutil, signal, sys
from pathlib import Path
from anodejobs import FileJobStore
from tests.test_file_store import BEFORE, commit_of

signal.alarm(120)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def instrument(n, is_torn):
    count = 0
    def dying(call):
        def called(*args, **kwargs):
            nonlocal count
            count += 1
            if count == n:
                if is_torn and call.__name__ == "pwrite":
                    fd, data, offset = args
                    call(fd, bytes(data)[: len(data) // 2], offset)
                try:
                    if is_torn and call.__name__ != "pwrite":
                        call(*args, **kwargs)
                finally:
                    die()
            return call(*args, **kwargs)
        return called
    for name in ("pwrite", "fsync", "replace", "unlink", "ftruncate", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))

async def prepare():
    store = FileJobStore("before")
    await store.open(lambda: None)
    await store.commit(list(BEFORE))
    await store.put_document("schedules", "a", "before")
    await store.close()

async def crash(folder, told):
    store = FileJobStore(folder)
    await store.open(lambda: None)
    await store.commit(commit_of(BEFORE))
    os.close(os.open(told, os.O_CREAT | os.O_WRONLY))
    await store.put_document("schedules", "a", "after")
    await store.close()

asyncio.run(prepare())
for kind, is_torn in (("cut", False), ("torn", True), ("new-cut", False), ("new-torn", True)):
    n, is_alive = 0, False
    while not is_alive:
        n += 1
        folder = f"{kind}-{n:03}"
        if not kind.startswith("new"):
            shutil.copytree("before", folder)
        pid = os.fork()
        if not pid:
            instrument(n, is_torn)
            asyncio.run(crash(folder, f"{folder}.told"))
            os._exit(0)
        is_alive = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    print(n - 1, flush=True)
"""

BEFORE = tuple(make_insert(make_record(job_id), base_env={"A": "b"}) for job_id in "abc")
"""The jobs that there are before the crash."""


def commit_of(before: tuple[Insert, ...]) -> list[object]:
    """Return writes of every kind: a is saved, b deleted, c runs anew, d and e are new."""
    a, b, c = (insert.record for insert in before)
    anew = make_insert(c, envs={"COLOUR": "new"}).launch
    return [
        make_save(a, status=Status.finished),
        Delete(record=b),
        make_save(c, launch=anew, name="anew"),
        make_insert(make_record("d"), envs={"COLOUR": "red"}),
        make_insert(make_record("e", depends_on=["a"])),
    ]


async def test_a_crash_at_any_step_of_a_commit_leaves_the_whole_of_it_or_none(tmp_path):
    command = (sys.executable, "-c", CRASHES)
    run = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    cuts = [int(line) for line in run.stdout.split()]
    assert min(cuts) > 40, "a commit, a document and a fold take that many steps"
    outcomes: dict[bool, set[tuple[str, bool]]] = {False: set(), True: set()}
    for folder in sorted(tmp_path.iterdir()):
        if folder.is_dir() and folder.name != "before":
            is_new, is_told = folder.name.startswith("new"), folder.with_suffix(".told").exists()
            outcome = await (_outcome_in_a_new_one(folder) if is_new else _outcome(folder))
            outcomes[is_new].add((outcome, is_told))
    expected = {("before", False), ("after", False), ("after", True), ("document", True)}
    assert outcomes == {False: expected, True: expected}


async def _outcome_in_a_new_one(folder: Path) -> str:
    """Return as ``_outcome`` for a folder that was made just before."""
    async with opened(folder) as store:
        ids, documents = await ids_in(store), await store.documents("schedules")
        assert ids in ([], ["d", "e"])
        assert [event.job_id for event in await store.history()] == ids
        await _assert_files_agree(store)
        assert await put(store, "next") == [len(ids) + 1]
    return "document" if documents else "after" if ids else "before"


async def _outcome(folder: Path) -> str:
    """Return how far it got; all that the store says has to agree with that, and its files."""
    async with opened(folder) as store:
        ids, events = await ids_in(store), await store.history()
        document = (await store.documents("schedules"))["a"]
        seqs = [event.seq for event in events]
        if ids == ["a", "b", "c"]:
            assert seqs == [1, 2, 3] and document == "before"
            assert (await store.get("a")).record.status == "running"
            assert (await store.get("c")).launch.envs == {}
        else:
            assert ids == ["a", "c", "d", "e"]
            assert seqs == [1, 3, 4, 5, 6, 7]
            assert (await store.get("a")).record.status == "finished"
            assert (await store.get("c")).launch.envs == {"COLOUR": "new"}
            assert (await store.get("d")).launch.envs == {"COLOUR": "red"}
            assert await store.dependents("a") == ["e"]
        assert await store.last_seq() == seqs[-1]
        await _assert_files_agree(store)
        assert await put(store, "next") == [seqs[-1] + 1]
        await _assert_files_agree(store)
    assert not list(folder.rglob("*.part"))
    async with opened(folder) as store:
        assert await ids_in(store) == [*ids, "next"]
    return "before" if len(ids) == 3 else "document" if document == "after" else "after"


async def _assert_files_agree(store: FileJobStore) -> None:
    """Compare what the store says with what a person finds."""
    ids = await ids_in(store)
    names = {log_name(job_id): job_id for job_id in ids}
    assert {path.stem for path in (store.path / "jobs").iterdir()} == names.keys()
    assert {path.stem for path in (store.path / "history").iterdir()} == names.keys()
    for name, job_id in names.items():
        stored = await store.get(job_id)
        said = json.loads((store.path / "jobs" / f"{name}.json").read_text())
        assert said["record"] == json.loads(stored.record.model_dump_json(exclude_defaults=True))
        lines = (store.path / "history" / f"{name}.jsonl").read_text().splitlines()
        told = [event.seq for event in await store.history(job_id=job_id)]
        assert [json.loads(line)["seq"] for line in lines] == told


async def test_all_is_synced_before_what_else_has_it_is_let_go(tmp_path, monkeypatch):
    done: list[str] = []

    def noting(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def noted(what: int | Path, *args: Path) -> None:
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
            done.append(f"{name} {os.path.relpath(path, tmp_path)}")
            call(what, *args)

        return noted

    store = FileJobStore(tmp_path)
    await store.open(lambda: None)
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    await put(store, "a")
    assert done.index("fsync commits.jsonl") < done.index("replace jobs/a.json.part")
    environments = [step.partition("environments/")[0] for step in done[:4]]
    assert environments == ["fsync ", "replace ", "fsync environments", "fsync "]
    await store.put_document("schedules", "a", "body")
    done.clear()
    await store.close()
    let_go = done.index("replace commits.jsonl.part")
    expected = ["jobs/a.json", "history/a.jsonl", "documents/schedules%2Fa.json"]
    expected += ["jobs", "history", "documents", "commits.jsonl.part"]
    assert {f"fsync {name}" for name in expected} <= set(done[:let_go])
    assert done[let_go + 1] == "fsync ."


async def test_a_job_does_not_inherit_the_history_of_one_whose_file_was_removed(tmp_path):
    async with opened(tmp_path) as store:
        await put(store, "a", "b")
    (tmp_path / JOB_A).unlink()
    history = tmp_path / "history" / "a.jsonl"
    old = history.read_text()
    async with opened(tmp_path) as store:
        assert [event.job_id for event in await store.history()] == ["b"]
        assert await put(store, "a") == [3]
        history.write_text(old)  # as if the process had died just now
        async with opened(tmp_path) as other:
            assert await other.history() == await store.history()
        assert [event.seq for event in await store.history(job_id="a")] == [3]
        await _assert_files_agree(store)


@pytest.mark.parametrize("torn", [b"0", b"00000000 {", b"\0" * 300 + b"\n", b"x" * 9999])
async def test_what_a_crash_has_left_behind_the_last_commit_is_no_commit(tmp_path, torn):
    async with opened(tmp_path) as store:
        await put(store, "a")
        with (tmp_path / "commits.jsonl").open("ab") as log:
            log.write(torn)
        assert await ids_in(store) == ["a"]
        async with opened(tmp_path) as other:
            assert await ids_in(other) == ["a"]
            assert await put(other, "b") == [2]
            log = (tmp_path / "commits.jsonl").read_bytes()
            assert log.count(b"\n") == 3 and log.endswith(b"\n")
        assert await put(store, "c") == [3]
    async with opened(tmp_path) as store:
        assert await ids_in(store) == ["a", "b", "c"]


async def test_files_that_a_power_failure_has_torn_are_made_from_the_log(tmp_path):
    async with opened(tmp_path / "store") as store:
        await put(store, "before")
    async with opened(tmp_path / "store") as store:
        await put(store, "a")
        await store.commit([make_save(make_record("a"), status=Status.finished)])
        await store.commit([make_save(make_record("before"), status=Status.finished)])
        await store.put_document("schedules", "a", "body")
        shutil.copytree(
            tmp_path / "store", tmp_path / "copy", ignore=shutil.ignore_patterns("*bells")
        )
    copy = tmp_path / "copy"
    (copy / "jobs" / "a.json").write_bytes(b"")
    (copy / "jobs" / "before.json").write_bytes(bytes(500))
    (copy / "history" / "a.jsonl").unlink()
    with (copy / "history" / "before.jsonl").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 7)
    (copy / "documents" / "schedules%2Fa.json").write_bytes(b"{")
    async with opened(copy) as store:
        assert [event.seq for event in await store.history()] == [1, 2, 3, 4]
        assert await store.count(JobFilter()) == {Status.finished: 2}
        assert await store.documents("schedules") == {"a": "body"}
        await _assert_files_agree(store)


async def test_what_a_killed_process_was_told_is_committed_is_there(tmp_path):
    commit_for_ever = """
    await store.open(lambda: None)
    n = 0
    while True:
        ids = [f"{n}-{m}" for m in range(5)]
        await put(store, *ids)
        say(*ids)
        n += 1
    """
    with process(*child(commit_for_ever), folder=tmp_path) as running:
        told = [running.stdout.readline() for _ in range(30)]
        running.kill()
        told += running.stdout.readlines()
    async with opened(tmp_path / "store") as store:
        found = set(await ids_in(store))
        whole = {f"{n}-{m}" for n in range(len(found) // 5) for m in range(5)}
        assert set(" ".join(told).split()) <= found == whole
        assert [event.seq for event in await store.history()] == list(range(1, len(found) + 1))
        assert await put(store, "after") == [len(found) + 1]


DIES_AFTER_ITS_COMMIT = """
    await store.open(lambda: None)
    write, log = os.pwrite, "store/commits.jsonl"
    def dying(fd, data, offset):
        if not os.path.samestat(os.fstat(fd), os.stat(log)):
            os.kill(os.getpid(), signal.SIGKILL)
        return write(fd, data, offset)
    os.pwrite = dying
    await store.commit([make_save(make_record("a"), status="finished")])
    """


async def test_the_next_to_commit_has_the_files_follow_whoever_has_died(tmp_path):
    async with opened(tmp_path / "store") as store:
        await put(store, "a")
        with process(*child(DIES_AFTER_ITS_COMMIT), folder=tmp_path) as running:
            assert running.wait() == -9
        assert '"running"' in (tmp_path / "store" / JOB_A).read_text(), "it came not so far"
        assert (await store.get("a")).record.status == "finished"
        await put(store, "b")
        await _assert_files_agree(store)


# A log that has become long.


async def test_a_long_log_is_folded_while_others_read_on(tmp_path, monkeypatch):
    monkeypatch.setattr(file_folder, "_FOLD_ABOVE_BYTES", 4096)
    generations = set()
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        for n in range(20):
            await put((store, other)[n % 2], f"{n:02}")
            assert len(await ids_in(store)) == len(await ids_in(other)) == n + 1
            generations.add((tmp_path / "commits.jsonl").read_bytes().split(b"\n")[0])
        assert len(generations) > 3
        assert await store.history() == await other.history()
    async with opened(tmp_path) as store:
        assert len(await ids_in(store)) == 20
        assert await store.last_seq() == 20


async def test_who_has_missed_a_whole_log_reads_everything_anew(tmp_path, monkeypatch):
    async with opened(tmp_path) as reader, opened(tmp_path) as writer:
        first = make_insert(make_record("first"))
        await writer.commit([first])
        assert await ids_in(reader) == ["first"]
        monkeypatch.setattr(file_folder, "_FOLD_ABOVE_BYTES", 1)
        await put(writer, *"abc")
        await writer.commit([Delete(record=first.record)])
        await writer.put_document("schedules", "a", "body")
        assert await ids_in(reader) == ["a", "b", "c"]
        assert await reader.documents("schedules") == {"a": "body"}
        assert await put(reader, "d") == [5]
        assert await ids_in(writer) == ["a", "b", "c", "d"]


async def test_a_log_that_cannot_be_folded_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(file_folder, "_FOLD_ABOVE_BYTES", 1)
    async with opened(tmp_path) as store:
        await put(store, "a")
        (tmp_path / "commits.jsonl.part").mkdir()
        assert await put(store, "b") == [2]
        assert "lag behind" in caplog.text
        assert await ids_in(store) == ["a", "b"]
        (tmp_path / "commits.jsonl.part").rmdir()
        assert await put(store, "c") == [3]
    async with opened(tmp_path) as store:
        assert await ids_in(store) == ["a", "b", "c"]


async def test_a_log_whose_first_line_cannot_be_read_now_is_not_damaged(
    tmp_path, monkeypatch, caplog
):
    fstat = os.fstat

    def failing(fd: int) -> os.stat_result:
        status = fstat(fd)
        is_log = os.readlink(f"/proc/self/fd/{fd}").endswith("commits.jsonl")
        if is_log and status.st_size < 100:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return status

    async with opened(tmp_path) as store:
        await put(store, "a")
        with monkeypatch.context() as patched:
            patched.setattr(file_folder, "_FOLD_ABOVE_BYTES", 1)
            patched.setattr(os, "fstat", failing)
            assert await put(store, "b") == [2]
        assert "lag behind" in caplog.text
        assert await ids_in(store) == ["a", "b"]
        assert await put(store, "c") == [3]


async def test_a_log_that_cannot_be_closed_is_followed_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(file_folder, "_FOLD_ABOVE_BYTES", 1)
    close = os.close

    def failing(fd: int) -> None:
        is_old_log = os.readlink(f"/proc/self/fd/{fd}").endswith("commits.jsonl (deleted)")
        close(fd)
        if is_old_log:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with opened(tmp_path) as store:
        with monkeypatch.context() as patched:
            patched.setattr(os, "close", failing)
            await put(store, "a")
        assert await put(store, "b") == [2]
        assert await ids_in(store) == ["a", "b"]


async def test_a_job_whose_file_cannot_be_written_is_committed_and_its_file_follows(
    tmp_path, caplog
):
    async with opened(tmp_path) as store:
        in_the_way = tmp_path / "jobs" / "a.json.part"
        in_the_way.mkdir()
        assert await put(store, "a") == [1]
        assert "lag behind its log" in caplog.text
        assert not (tmp_path / JOB_A).exists()
        in_the_way.rmdir()
        assert await put(store, "b") == [2]
        await _assert_files_agree(store)


# Other processes.

LOCK_HOLDER = """
import fcntl, sys
file = open("store/anodejobs-lock", "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
"""


@contextmanager
def lock_holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with process(sys.executable, "-c", LOCK_HOLDER, folder=folder) as holder:
        assert holder.stdout.readline() == "locked\n"
        yield holder


async def test_a_commit_waits_until_another_process_lets_go_of_the_lock(tmp_path):
    async with opened(tmp_path / "store") as store:
        with lock_holder(tmp_path) as holder:
            assert await store.get("a") is None, "nothing was committed: no need to wait"
            commit = asyncio.create_task(put(store, "a"))
            assert not (await asyncio.wait([commit], timeout=0.3))[0]
            holder.stdin.write("let go\n")
            assert await commit == [1]
            assert ends_well(holder)


async def test_a_commit_that_waited_in_vain_is_never_applied(tmp_path, monkeypatch):
    monkeypatch.setattr("anodejobs.stores.file_lock._PATIENCE_S", 0.1)
    async with opened(tmp_path / "store") as store:
        with lock_holder(tmp_path) as holder:
            with pytest.raises(StoreError, match=r"another process has held .*anodejobs-lock"):
                await put(store, "a")
            holder.stdin.write("let go\n")
            assert ends_well(holder)
        assert await put(store, "b") == [1]
        assert await ids_in(store) == ["b"]


FORKS = """
import os, sys
from pathlib import Path
from anodejobs.stores.file_lock import FolderLock
from anodejobs.stores.sqlite_schema import _alone

with {lock}:
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("lock", ["FolderLock(Path('lock')).held()", "_alone(Path('lock'))"])
def test_a_lock_that_was_let_go_of_is_not_a_forks(lock, tmp_path):
    path = tmp_path / "lock"
    if lock.startswith("_alone"):  # it is of a folder
        path.mkdir()
    with application(FORKS.format(lock=lock), tmp_path):
        fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)


async def test_a_store_can_be_closed_while_another_process_holds_the_lock(tmp_path):
    async with opened(tmp_path / "store") as store:
        await put(store, "a")
        with lock_holder(tmp_path) as holder:
            async with asyncio.timeout(PATIENCE_S):
                await store.close()
            holder.stdin.write("let go\n")
            assert ends_well(holder)
    async with opened(tmp_path / "store") as store:
        assert await ids_in(store) == ["a"]


async def test_a_lock_that_somebody_has_removed_is_not_the_lock(tmp_path):
    async with opened(tmp_path / "store") as store:
        with lock_holder(tmp_path) as holder:
            commit = asyncio.create_task(put(store, "a"))
            assert not (await asyncio.wait([commit], timeout=0.1))[0]
            (tmp_path / "store" / "anodejobs-lock").rename(tmp_path / "removed")
            (tmp_path / "store" / "anodejobs-lock").touch()
            with (tmp_path / "store" / "anodejobs-lock").open() as new_lock:
                fcntl.flock(new_lock, fcntl.LOCK_EX)
                holder.stdin.write("let go\n")
                assert ends_well(holder)
                assert not (await asyncio.wait([commit], timeout=0.1))[0]
            assert await commit == [1]


async def test_many_processes_can_make_the_folder_at_once(tmp_path):
    open_at_once = """
    say("ready")
    sys.stdin.readline()
    await store.open(lambda: None)
    say(*await put(store, str(os.getpid())))
    await store.close()
    """
    command = child(open_at_once)
    with (
        process(*command, folder=tmp_path) as a,
        process(*command, folder=tmp_path) as b,
        process(*command, folder=tmp_path) as c,
    ):
        for running in (a, b, c):
            assert running.stdout.readline() == "ready\n"
        for running in (a, b, c):
            running.stdin.write("go\n")
        seqs = sorted(int(running.stdout.readline()) for running in (a, b, c))
        assert all(ends_well(running) for running in (a, b, c))
    assert seqs == [1, 2, 3]
    async with opened(tmp_path / "store") as store:
        assert await ids_in(store) == sorted(str(running.pid) for running in (a, b, c))


CONTENDER = """
    await store.open(lambda: None)
    won, seqs = 0, []
    say("ready")
    sys.stdin.readline()
    while (record := (await store.get("contended")).record).revision <= 60:
        (seq,) = await store.commit([make_save(record)])
        if seq is not None:
            won += 1
            seqs.append(seq)
        seqs += await put(store, f"{os.getpid()}-{len(seqs)}")
    say(won, *seqs)
    await store.close()
    """


async def test_of_two_processes_that_commit_at_once_one_wins_each_revision_and_each_seq(tmp_path):
    async with opened(tmp_path / "store") as store:
        await put(store, "contended")
        command = child(CONTENDER)
        with process(*command, folder=tmp_path) as a, process(*command, folder=tmp_path) as b:
            for running in (a, b):
                assert running.stdout.readline() == "ready\n"
            for running in (a, b):
                running.stdin.write("go\n")
            told = [[int(n) for n in running.stdout.readline().split()] for running in (a, b)]
            assert ends_well(a) and ends_well(b)
        (won_a, *seqs_a), (won_b, *seqs_b) = told
        assert won_a and won_b and won_a + won_b == 60
        assert sorted(seqs_a + seqs_b) == list(range(2, len(seqs_a + seqs_b) + 2))
        assert (await store.get("contended")).record.revision == 61
        assert [event.seq for event in await store.history()] == list(
            range(1, 62 + len(seqs_a + seqs_b) - 60)
        )
        await _assert_files_agree(store)


async def test_a_commit_in_another_process_is_told_on_the_loop(tmp_path):
    told = asyncio.Event()
    store = FileJobStore(tmp_path / "store")
    await store.open(told.set)
    commit_when_asked = """
    await store.open(lambda: None)
    say("ready")
    while sys.stdin.readline():
        say(*await put(store, "theirs"))
    await store.close()
    """
    with process(*child(commit_when_asked), folder=tmp_path) as running:
        assert running.stdout.readline() == "ready\n"
        assert not told.is_set()
        running.stdin.write("commit\n")
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()
        assert await ids_in(store) == ["theirs"]
        assert ends_well(running)
    await store.close()


# Full disks.

FILL_AND_READ_AGAIN = f"""{FILL_AND_GO_ON.rstrip()}
    again = FileJobStore("store")
    await again.open(lambda: None)
    say(*sorted(record.self_id for record in await again.page(Query(filter=JobFilter()))))
    await again.close()
    """


async def test_no_more_space_for_a_file_is_a_store_error_until_there_is_again(tmp_path):
    body = FILL_AND_READ_AGAIN.format(
        fill_up="lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))",
        make_room="lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))",
    )
    with process(*child(body), folder=tmp_path) as running:
        await _assert_failed_and_went_on(running)


@pytest.mark.skipif(not IS_LINUX or not shutil.which("unshare"), reason="needs a disk of its own")
async def test_a_full_disk_is_a_store_error_until_there_is_room_again(tmp_path):
    a_small_disk = """
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", os.getcwd()])
    say("mounted" if mounted.returncode == 0 else "not mounted")
    os.chdir(os.getcwd())
    """
    body = a_small_disk + FILL_AND_READ_AGAIN.format(
        fill_up='lambda: open("ballast", "wb", buffering=0).write(bytes(1_000_000))',
        make_room='lambda: os.unlink("ballast")',
    )
    unshare = ("unshare", "--user", "--map-root-user", "--mount")
    with process(*unshare, *child(body), folder=tmp_path) as running:
        if running.stdout.readline() != "mounted\n":
            pytest.skip("this machine lets nobody mount a small disk")
        await _assert_failed_and_went_on(running)


async def _assert_failed_and_went_on(running: subprocess.Popen[str]) -> None:
    assert running.stdout.readline().startswith("StoreError cannot write to /")
    big = int(running.stdout.readline())
    assert big > 0
    assert len(running.stdout.readline().split()) == 50
    expected = ["after", "before", *(f"big-{m}" for m in range(big))]
    expected += [f"more-{m}" for m in range(50)]
    assert running.stdout.readline().split() == sorted(expected)
    assert ends_well(running)


# Jobs on it.


def _url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


async def test_jobs_run_wait_and_are_there_after_a_restart(tmp_path):
    async with Jobs(tmp_path / "job_db", store=_url(tmp_path), executor="inline") as jobs:
        await jobs.run("echo out; exit 3", job_id="fails", envs={"PASSWORD": "hunter2"})
        record = await jobs.wait("fails")
        assert (record.status, record.exit_code) == ("failed", 3)
    said = json.loads((tmp_path / "store" / "jobs" / "fails.json").read_text())
    assert (said["record"]["status"], said["record"]["exit_code"]) == ("failed", 3)
    async with Jobs(tmp_path / "job_db", store=_url(tmp_path), executor="inline") as jobs:
        assert await jobs.get_status("fails") == record
        again = await jobs.run("test $PASSWORD", job_id="fails", envs={"PASSWORD": "1"})
        assert (await jobs.wait("fails")).exit_code == 0
        assert again.revision > record.revision
        assert [e.status for e in await jobs.history("fails")][-1] == "finished"
        await jobs.delete("fails")
    assert not (tmp_path / "store" / "jobs" / "fails.json").exists()


async def test_jobs_take_their_turns_in_two_applications_on_it(tmp_path):
    path, url = tmp_path / "job_db", _url(tmp_path)
    async with (
        Jobs(path, store=url, executor="inline", max_concurrent_jobs=2) as one,
        Jobs(path, store=url, executor="inline", max_concurrent_jobs=2) as other,
    ):
        for n in range(6):
            depends_on = [f"{n - 2}"] if n > 1 else []
            await (one, other)[n % 2].submit("true", job_id=f"{n}", depends_on=depends_on)
        async with asyncio.timeout(PATIENCE_S):
            for n in range(6):
                record = await (other, one)[n % 2].wait(f"{n}")
                assert record.status == "finished"
    found = [json.loads(p.read_text())["record"] for p in (tmp_path / "store/jobs").iterdir()]
    assert {record["status"] for record in found} == {"finished"}


QUEUE_AND_DIE = """
import asyncio, os, signal, sys
from anodejobs import Jobs

signal.alarm(60)

async def main():
    async with Jobs("job_db", store=sys.argv[1], max_concurrent_jobs=1) as jobs:
        await jobs.submit("until [ -e go ]; do sleep 0.01; done; exit 7", job_id="first")
        await jobs.submit("echo $COLOUR; exit 8", job_id="second", envs={"COLOUR": "red"})
        await jobs.wait("first", "running")
        print("running", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_a_killed_application_had_queued_goes_on_in_the_next(tmp_path):
    url = _url(tmp_path)
    with process(sys.executable, "-c", QUEUE_AND_DIE, url, folder=tmp_path) as running:
        assert running.stdout.readline() == "running\n"
        assert running.wait() == -9
    async with Jobs(tmp_path / "job_db", store=url, max_concurrent_jobs=1) as jobs:
        (tmp_path / "go").touch()
        async with asyncio.timeout(PATIENCE_S):
            codes = [(await jobs.wait(job_id)).exit_code for job_id in ("first", "second")]
        assert codes == [7, 8]
        chunks = [chunk async for chunk in jobs.follow("second")]
    assert b"".join(c.data for c in chunks if c.stream == "stdout") == b"red\n"


async def test_schedules_are_there_after_a_restart(tmp_path):
    async with Jobs(tmp_path / "job_db", store=_url(tmp_path), executor="inline") as jobs:
        await jobs.schedule("true", "nightly", cron="0 3 * * *")
    async with Jobs(tmp_path / "job_db", store=_url(tmp_path), executor="inline") as jobs:
        assert list(await jobs.schedules()) == ["nightly"]


async def test_the_folder_of_the_jobs_cannot_be_that_of_their_records(tmp_path):
    with pytest.raises(StoreError, match="a folder for the jobs alone"):
        async with Jobs(tmp_path, store=f"file://{tmp_path}", executor="inline"):
            pass
