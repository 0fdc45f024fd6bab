"""Where jobs are kept is said by the environment, a file or code; what is wrong is named."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from anodejobs import (
    DatabaseJobStore,
    FileJobStore,
    InvalidJob,
    Jobs,
    JobsSettings,
    JobStore,
    MemoryJobStore,
    SqliteJobStore,
    StoreError,
)
from anodejobs.settings import _OF_STORES
from tests.servers import MYSQL, POSTGRES, own_database

SERVER = {
    "DIALECT": "postgresql",
    "HOST": "db.example",
    "PORT": "5433",
    "USERNAME": "me",
    "PASSWORD": "hunter2",
    "NAME": "jobsdb",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's environment, and a folder without a ``.env``."""
    for name in list(os.environ):
        if name.startswith("ANODEJOBS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def say(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"ANODEJOBS_{name}", value)


def place(store: JobStore) -> object:
    return store.path if isinstance(store, (FileJobStore, SqliteJobStore)) else repr(store)


@pytest.mark.parametrize(
    ("said", "kind", "where"),
    [
        ({}, SqliteJobStore, Path("job_db/jobs.db")),
        ({"DB_PATH": "/srv/x"}, SqliteJobStore, Path("/srv/x/jobs.db")),
        ({"PATH": "/srv/my.db"}, SqliteJobStore, Path("/srv/my.db")),
        ({"STORE_TYPE": "file", "DB_PATH": "/srv/x"}, FileJobStore, Path("/srv/x/records")),
        ({"STORE_TYPE": "file", "STORE_PATH": "/srv/f"}, FileJobStore, Path("/srv/f")),
        (SERVER, DatabaseJobStore, "DatabaseJobStore('postgresql://db.example:5433/jobsdb')"),
        (
            {"DIALECT": "mariadb", "NAME": "a", "POOL_SIZE": "2", "STORE_PATH": "", "PORT": "none"},
            DatabaseJobStore,
            "DatabaseJobStore('mariadb://localhost/a')",
        ),
    ],
    ids=str,
)
def test_the_environment_says_where_jobs_are_kept(monkeypatch, said, kind, where):
    say(monkeypatch, **said)
    store = JobsSettings().make_store()
    assert type(store) is kind
    assert place(store) == (where.absolute() if isinstance(where, Path) else where)


def test_a_store_in_memory_can_be_asked_for():
    assert isinstance(JobsSettings(store_type="memory").make_store(), MemoryJobStore)


def test_code_goes_before_the_environment_and_that_before_the_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text(
        "ANODEJOBS_HOST=file\nANODEJOBS_NAME=file\nANODEJOBS_USERNAME=file\n"
        "ANODEJOBS_TEST_POSTGRES=of others\nOTHER=1\n"
    )
    say(monkeypatch, NAME="environment", USERNAME="environment")
    settings = JobsSettings(username="code")
    assert (settings.host, settings.name, settings.username) == ("file", "environment", "code")


def test_settings_can_be_changed_and_are_checked(monkeypatch):
    settings = JobsSettings()
    settings.dialect = "mysql"
    settings.name = "jobsdb"
    settings.port = "3307"
    assert place(settings.make_store()) == "DatabaseJobStore('mysql://localhost:3307/jobsdb')"
    with pytest.raises(ValueError, match="port"):
        settings.port = 0


@pytest.mark.parametrize("name", ["from_settings", "settings"])
async def test_jobs_are_made_as_the_settings_say(monkeypatch, tmp_path, name):
    say(monkeypatch, DB_PATH="here", MAX_CONCURRENT_JOBS="1", STORE_TYPE="file", RETENTION_DAYS="9")
    given = None if name == "from_settings" else JobsSettings()
    async with Jobs.from_settings(given, executor="inline") as jobs:
        await jobs.submit("sleep 60", job_id="first")
        await jobs.submit("true", job_id="second")
        await jobs.wait("first", "running")
        assert (await jobs.get_status("second")).status == "queued"
        await jobs.stop("first", grace=0)
        await jobs.wait("second")
    assert jobs.db_path == tmp_path / "here"
    assert (tmp_path / "here/records/jobs/second.json").exists()


async def test_what_is_given_beside_the_settings_goes_before_them(monkeypatch, tmp_path):
    say(monkeypatch, **SERVER)
    async with Jobs.from_settings(store="memory://", db_path="there", executor="inline") as jobs:
        await jobs.run("true", "a-job")
        await jobs.wait("a-job")
    assert jobs.db_path == tmp_path / "there"


@pytest.mark.parametrize(
    ("store_type", "record"), [("database", "jobs.db"), ("file", "records/jobs/a-job.json")]
)
async def test_records_are_in_the_directory_that_is_given_beside_the_settings(
    monkeypatch, tmp_path, store_type, record
):
    say(monkeypatch, DB_PATH="here", STORE_TYPE=store_type)
    async with Jobs.from_settings(db_path="there", executor="inline") as jobs:
        await jobs.run("true", "a-job")
        await jobs.wait("a-job")
    assert (tmp_path / "there" / record).exists()
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["environment", "code", "settings"])
async def test_the_durability_is_as_it_is_said(monkeypatch, name):
    if name == "environment":
        say(monkeypatch, DURABILITY="power")
    given = JobsSettings(durability="power") if name == "settings" else None
    options = {"durability": "power"} if name == "code" else {}
    async with Jobs.from_settings(given, executor="inline", **options) as jobs:
        assert jobs._jobdb._store._synchronous == "FULL"


def test_a_durability_that_there_is_not_is_refused_beside_the_settings(monkeypatch):
    say(monkeypatch, STORE_TYPE="file")
    with pytest.raises(InvalidJob, match="durability"):
        Jobs.from_settings(durability="none")


async def test_which_jobs_are_started_is_said_by_the_environment(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text('ANODEJOBS_ONLY_TAGS=["warm", "hot"]\n')
    say(monkeypatch, ONLY_QUEUES='["narrow"]', QUEUES='{"narrow": 1}', STORE_TYPE="memory")
    async with Jobs.from_settings(executor="inline", on_close="stop") as jobs:
        await jobs.submit("true", "elsewhere", tags=["hot"])
        await jobs.submit("true", "cold", queue="narrow")
        await jobs.submit("sleep 60", "first", queue="narrow", tags=["hot"])
        await jobs.submit("true", "second", queue="narrow", tags=["warm"])
        await jobs.wait("first", "running")
        assert await jobs.count({"status": "queued"}) == 3
        await jobs.stop("first", grace=0)
        await jobs.wait("second")
        waiting = await jobs.list_status({"status": "queued"})
    assert list(waiting) == ["elsewhere", "cold"]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("QUEUES", '{"gpu": 1', 'must be JSON, as in ["a", "b"] or {"a": 1}'),
        ("QUEUES", "gpu=1", 'must be JSON, as in ["a", "b"] or {"a": 1}'),
        ("QUEUES", '["gpu"]', "Input should be a valid dictionary"),
        ("QUEUES", '{"gpu": 0}', "gpu: Input should be greater than or equal to 1"),
        ("ONLY_QUEUES", "gpu,mail", 'must be JSON, as in ["a", "b"] or {"a": 1}'),
        ("ONLY_QUEUES", '{"gpu": 1}', "Input should be a valid list"),
        ("ONLY_TAGS", "[1]", "0: Input should be a valid string"),
        ("ONLY_TAGS", "[]", "List should have at least 1 item after validation, not 0"),
    ],
)
def test_several_names_that_are_said_wrongly_are_named(monkeypatch, name, value, problem):
    say(monkeypatch, **{name: value})
    with pytest.raises(InvalidJob) as caught:
        JobsSettings()
    assert str(caught.value) == f"ANODEJOBS_{name}: {problem}"


@pytest.mark.parametrize("kind", [POSTGRES, MYSQL], ids=["postgresql", "mysql"])
def test_a_database_is_reached_by_its_parts(monkeypatch, kind):
    with own_database(kind) as database:
        url = make_url(database.url)
        parts = {"HOST": url.host, "PORT": url.port, "USERNAME": url.username}
        parts |= {"PASSWORD": url.password, "NAME": url.database, "POOL_SIZE": 1}
        say(monkeypatch, **{name: str(value or "") for name, value in parts.items()})
        say(monkeypatch, DIALECT="postgresql" if kind is POSTGRES else "mysql")

        async def run() -> str:
            async with Jobs.from_settings(executor="inline") as jobs:
                await jobs.run("true", "a-job")
                return (await jobs.wait("a-job")).status

        assert asyncio.run(run()) == "finished"
        assert database.do("SELECT job_id FROM anodejobs_jobs") == [("a-job",)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PORT", "http"), ("PORT", "0"), ("PORT", "65536"), ("STORE_TYPE", "redis")),
        *(("DIALECT", "oracle"), ("POOL_SIZE", "0"), ("MAX_CONCURRENT_JOBS", "-1")),
        *(("RECOVERY_TIMEOUT", "0"), ("RETENTION_DAYS", "soon"), ("DURABILITY", "x")),
        *(("RECOVERY_TIMEOUT", "1e9"), ("RECOVERY_TIMEOUT", "inf"), ("RETENTION_DAYS", "inf")),
    ],
)
def test_a_bad_value_is_named_by_its_variable(monkeypatch, name, value):
    say(monkeypatch, PASSWORD="hunter2", **{name: value})
    with pytest.raises(InvalidJob, match=f"^ANODEJOBS_{name}: ") as caught:
        JobsSettings()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(InvalidJob, match=f"^{name.lower()}: "):
        JobsSettings(**{name.lower(): value})


@pytest.mark.parametrize(("name", "said"), [(".env", {}), ("mine", {"_env_file": "mine"})])
def test_a_file_that_is_no_text_is_named(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"ANODEJOBS_PASSWORD=hunter2\nANODEJOBS_HOST=\xff\n")
    with pytest.raises(InvalidJob, match=f"^{name}: is not UTF-8$") as caught:
        JobsSettings(**said)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_setting_that_there_is_not_is_refused():
    with pytest.raises(InvalidJob, match="hots: there is no such setting"):
        JobsSettings(hots="db.example")


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"HOST": "db.example"}, "HOST: is of no use with ANODEJOBS_DIALECT=sqlite"),
        ({**SERVER, "PATH": "x"}, "PATH: is of no use with ANODEJOBS_DIALECT=postgresql"),
        ({**SERVER, "NAME": ""}, "NAME: must be set with ANODEJOBS_DIALECT=postgresql"),
        (
            {"STORE_TYPE": "memory", "PASSWORD": "hunter2"},
            "PASSWORD: is of no use with ANODEJOBS_STORE_TYPE=memory",
        ),
        (
            {"STORE_TYPE": "memory", "DURABILITY": "power"},
            "DURABILITY: is of no use with ANODEJOBS_STORE_TYPE=memory",
        ),
        (
            {**SERVER, "DURABILITY": "power"},
            "DURABILITY: is of no use with ANODEJOBS_DIALECT=postgresql",
        ),
        *(
            (
                {"STORE_TYPE": store_type, "DIALECT": dialect},
                f"DIALECT: is of no use with ANODEJOBS_STORE_TYPE={store_type}",
            )
            for store_type, dialect in (("memory", "postgresql"), ("file", "sqlite"))
        ),
    ],
    ids=str,
)
def test_settings_that_contradict_are_named(monkeypatch, said, wrong):
    say(monkeypatch, **said)
    with pytest.raises(InvalidJob, match=f"^ANODEJOBS_{wrong}$") as caught:
        Jobs.from_settings()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_password_is_not_shown(monkeypatch):
    say(monkeypatch, **SERVER)
    settings = JobsSettings()
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert "hunter2" not in repr(settings.make_store())


def test_every_setting_of_a_store_is_one():
    assert {name for names in _OF_STORES.values() for name in names} <= set(
        JobsSettings.model_fields
    )


@pytest.mark.parametrize("size", [0, -1])
def test_a_pool_without_connections_is_a_store_error(size):
    with pytest.raises(StoreError, match="pool_size"):
        DatabaseJobStore("postgresql://localhost/jobs", pool_size=size)


@pytest.mark.outer
def test_without_the_extra_the_error_says_what_to_install_and_all_else_works():
    code = (
        "import sys; sys.modules['pydantic_settings'] = None\n"
        "from anodejobs import *\n"
        "Jobs('x').from_settings()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "ImportError: JobsSettings needs pydantic-settings: "
    assert done.stderr.splitlines()[-1] == f"{expected}pip install 'anodejobs[settings]'"
