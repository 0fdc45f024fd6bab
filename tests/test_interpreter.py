"""What is run apart from the application is run by a Python, never by the application itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anodejobs
from anodejobs import InvalidJob, Jobs, Status, doctor, doctor_trials
from anodejobs.executors import limits, shim
from anodejobs.executors.limits import AttemptLimits, limited
from anodejobs.interpreter import interpreter

pytestmark = pytest.mark.outer

LIMIT_S = 60.0
NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The program of this application, which embeds Python; it tells where it is started."""
    program = tmp_path / "app"
    program.write_text(f"#!/bin/sh\n: > {tmp_path}/started\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(limits, "_tool", lambda name: None)
    monkeypatch.setattr(shim, "_MOST_ATTEMPTS", 1)
    limits.helper.cache_clear()
    yield program
    limits.helper.cache_clear()


@pytest.fixture
def frozen(app: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As ``app``, made by PyInstaller for example."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    return app


def has_started(app: Path) -> bool:
    return app.with_name("started").exists()


def a_python(path: Path) -> str:
    path.symlink_to("/bin/true")
    return str(path)


def test_the_python_that_runs_us_is_the_one() -> None:
    assert interpreter() == sys.executable


def test_another_program_is_not_the_one_where_there_is_a_python(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interpreter() == str(app)
    monkeypatch.setenv("PATH", str(tmp_path))
    on_path = a_python(tmp_path / NAME)
    assert interpreter() == on_path
    (tmp_path / "bin").mkdir()
    beside = a_python(tmp_path / "bin" / NAME)
    assert interpreter() == beside


def test_a_frozen_application_is_never_the_one(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not though it is called like one."""
    monkeypatch.setattr(sys, "executable", a_python(tmp_path / "python-app"))
    with pytest.raises(OSError, match=f"this frozen application is no Python, .* no {NAME}"):
        interpreter()
    monkeypatch.setenv("PATH", str(tmp_path))
    on_path = a_python(tmp_path / NAME)
    assert interpreter() == on_path


async def test_a_frozen_application_starts_no_shim_and_says_why(
    frozen: Path, tmp_path: Path
) -> None:
    async with Jobs(tmp_path / "job_db") as jobs:
        record = await jobs.run("true", "a")
    assert record.status is Status.failed_start
    assert "this frozen application is no Python" in str(record.error)
    assert not has_started(frozen)


async def test_what_only_the_application_can_import_is_no_shim_and_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "_MOST_ATTEMPTS", 1)
    monkeypatch.setattr(anodejobs, "__file__", str(tmp_path / "app" / "anodejobs" / "__init__.pyc"))
    async with Jobs(tmp_path / "job_db") as jobs:
        record = await jobs.run("true", "a")
    assert record.status is Status.failed_start
    assert "anodejobs is inside this application" in str(record.error)


async def test_a_frozen_application_runs_commands_itself(frozen: Path, tmp_path: Path) -> None:
    async with Jobs(tmp_path / "job_db", executor="inline") as jobs:
        await jobs.run("echo out; exit 3", "a")
        assert (await jobs.wait("a", timeout=LIMIT_S)).exit_code == 3
        assert await jobs.job_logs("a") == ("out\n", "")
    assert not has_started(frozen)


async def test_limits_that_a_frozen_application_cannot_set_keep_the_job_from_starting(
    frozen: Path, tmp_path: Path
) -> None:
    async with Jobs(tmp_path / "job_db", executor="inline") as jobs:
        record = await jobs.run("true", "a", limits={"open_files": 64})
    assert record.status is Status.failed_start
    assert "this frozen application is no Python" in str(record.error)
    assert not has_started(frozen)


def test_limits_are_set_by_a_python_where_another_program_has_it_embedded(
    app: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    python = os.path.realpath(a_python(tmp_path / "bin" / NAME))
    assert limited(["true"], AttemptLimits(open_files=64))[0] == python


async def test_the_functions_of_a_frozen_application_are_no_jobs(
    frozen: Path, tmp_path: Path
) -> None:
    async with Jobs(tmp_path / "job_db", executor="inline") as jobs:
        with pytest.raises(InvalidJob, match="call: this application is frozen") as caught:
            await jobs.run(call="tasks:add", job_id="a")
        assert caught.value.field == "call"
        assert not await jobs.list_status()
    assert not has_started(frozen)


def test_the_doctor_says_that_a_frozen_application_starts_no_shim(frozen: Path) -> None:
    finding = doctor.check_interpreter(interpreter, doctor_trials.run)
    assert finding.level == "problem"
    assert "this frozen application is no Python" in finding.found
    assert "executor='inline'" in finding.remedy
