"""The stores of the package keep the contract of a store, and a URL names the right one."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path

import pytest

from anodejobs import (
    FileJobStore,
    InvalidJob,
    JobFilter,
    Jobs,
    MemoryJobStore,
    SqliteJobStore,
    Status,
    StoreError,
)
from anodejobs.stores import from_url
from anodejobs.stores.base import Delete, JobStore, Query
from anodejobs.stores.contents import Contents
from anodejobs.testing import (
    DurableStoreContract,
    StoreContract,
    make_insert,
    make_record,
    make_save,
)
from tests.steps import steps_in


class TestMemoryJobStore(StoreContract):
    async def make_store(self, folder: Path) -> JobStore:
        return MemoryJobStore()


class TestSqliteJobStore(DurableStoreContract):
    async def make_store(self, folder: Path) -> JobStore:
        return SqliteJobStore(folder / "jobs.db")


class TestFileJobStore(DurableStoreContract):
    async def make_store(self, folder: Path) -> JobStore:
        return FileJobStore(folder / "store")


def test_a_memory_url_names_a_memory_store():
    assert isinstance(from_url("memory://"), MemoryJobStore)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///jobs.db", "jobs.db"),
        ("sqlite:///some/where/jobs.db", "some/where/jobs.db"),
        ("sqlite:////var/lib/jobs.db", "/var/lib/jobs.db"),
        ("sqlite:////var/my%20jobs%23.db", "/var/my jobs#.db"),
    ],
)
def test_a_sqlite_url_names_a_file(url, path):
    store = from_url(url)
    assert isinstance(store, SqliteJobStore)
    assert store.path == Path(path).absolute()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///var/lib/jobs", "/var/lib/jobs"),
        ("file:/var/lib/jobs", "/var/lib/jobs"),
        ("file://localhost/var/lib/jobs", "/var/lib/jobs"),
        ("file:///var/my%20jobs%23", "/var/my jobs#"),
    ],
)
def test_a_file_url_names_a_folder(url, path):
    store = from_url(url)
    assert isinstance(store, FileJobStore)
    assert store.path == Path(path)


@pytest.mark.parametrize(
    "url",
    [
        *("", "jobs.db", "oracle://host/jobs"),
        *("sqlite://", "sqlite:///", "sqlite://host/jobs.db", "sqlite:///:memory:"),
        *("sqlite:///jobs.db?mode=ro", "sqlite:///jobs#1.db"),
        *("file://", "file:jobs", "file://host/jobs", "file:///jobs?a=b", "file:///jobs#1"),
    ],
)
def test_a_url_of_no_store_is_a_store_error(url):
    with pytest.raises(StoreError, match="use memory://, sqlite:///"):
        from_url(url)


@pytest.mark.parametrize(
    "url", ["oracle://me:hunter2@host/jobs", "oracle://me:hunter2℀@host/jobs", "oracle://hunter2[/"]
)
def test_the_password_in_a_url_is_not_repeated(url):
    with pytest.raises(StoreError) as caught:
        from_url(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("password", ["hunter2℀", "[hunter2", "hunter2#/?"])
def test_a_password_may_have_any_sign(password):
    store = from_url(f"postgresql://me:{password}@host/jobs")
    assert repr(store) == "DatabaseJobStore('postgresql://host/jobs')"


@pytest.mark.parametrize("url", ["sqlite:///jobs.db", "file:///jobs", "memory://", "mysql://h/d"])
def test_an_unknown_durability_is_refused(url):
    with pytest.raises(InvalidJob, match="durability: must be 'process' or 'power'"):
        from_url(url, durability="none")


@pytest.mark.parametrize("url", ["memory://", "mysql://host/jobs", "postgresql://host/jobs"])
def test_a_durability_that_a_store_cannot_have_is_refused(url):
    with pytest.raises(InvalidJob, match="durability: 'power' is of no use with"):
        from_url(url, durability="power")


def test_a_store_of_files_is_always_as_durable_as_can_be(tmp_path):
    assert isinstance(from_url(f"file://{tmp_path}", durability="power"), FileJobStore)


@pytest.mark.parametrize("folder", ["a#b", "a?b", "a%20b", "a b", "ü", "a;b", "a\tb"])
async def test_a_folder_may_have_any_name(tmp_path, folder):
    async with Jobs(db_path=tmp_path / folder, executor="inline"):
        assert (tmp_path / folder / "jobs.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sort_by": "command"},
        {"sort_by": "created_at; DROP TABLE jobs"},
        {"limit": -1},
        {"limit": 1.5},
        {"limit": True},
        {"limit": "1"},
        {"limit": 2**62},
        {"offset": -1},
        {"offset": None},
        {"offset": 2**62},
    ],
    ids=str,
)
def test_a_query_that_cannot_be_answered_is_an_invalid_job(wrong):
    with pytest.raises(InvalidJob) as caught:
        Query(filter=JobFilter(), **wrong)
    assert caught.value.field == next(iter(wrong))


def test_counting_by_status_looks_at_no_job():
    def steps(jobs: int) -> int:
        contents = Contents()
        _, changes = contents.decide([make_insert(make_record(f"{n}")) for n in range(jobs)])
        contents.apply(changes)
        filters = [JobFilter(), JobFilter(status=["queued", "running"])]
        return steps_in(lambda: [contents.count(filter) for filter in filters])

    assert steps(10) == steps(100)


def test_what_is_counted_by_status_is_what_there_is():
    contents = Contents()
    record = make_record("a")
    for write in (
        make_insert(record),
        make_insert(make_record("b")),
        make_save(record, status=Status.running),
        Delete(record=make_record("b")),
    ):
        contents.apply(contents.decide([write])[1])
        known = Counter(job.record.status for job in contents.jobs.values())
        assert Counter(contents.count(JobFilter())) == known
        assert contents.count(JobFilter(status="running")) == {"running": known["running"]}
