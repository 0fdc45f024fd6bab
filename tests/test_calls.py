"""A Python function runs as a job: called with the payload, its return value the result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anodejobs import Status
from anodejobs.calls import call_argv
from anodejobs.errors import InvalidJob
from anodejobs.jobfiles import JobFiles

pytestmark = pytest.mark.outer

TASKS = """
import asyncio, sys
from anodejobs import this_job

def add(a, b=10):
    return a + b

async def add_slowly(a, b):
    await asyncio.sleep(0)
    return a + b

def nothing(): pass

def sets_its_own(): this_job.set_result("mine")

def fails(why):
    raise ValueError(why)

async def fails_slowly():
    fails("later")

def unspeakable(): return {1, 2}

def leaves(code): sys.exit(code)

def name(): return [__name__, sys.argv]

class Things:
    @staticmethod
    def count(*things): return len(things)

constant = 1
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The folder of an application with a package."""
    package = tmp_path / "app" / "shop"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(TASKS)
    (package / "broken.py").write_text("import shop.tasks\nshop.tasks.fails('on import')\n")
    return tmp_path / "app"


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    files = JobFiles(tmp_path / "job_files")
    files.open()
    return files


class Caller:
    """Runs calls as jobs, in a folder that is not the application's."""

    def __init__(self, app: Path, files: JobFiles, cwd: Path) -> None:
        self._app, self._files, self._cwd = app, files, cwd

    def __call__(self, call: str, payload: object = None) -> subprocess.CompletedProcess[str]:
        variables = self._files.variables("job", 1)
        if payload is not None:
            self._files.hand_out("job", payload)
            variables["ANODEJOBS_PAYLOAD"] = self._files.payload("job")
        return subprocess.run(
            call_argv(call, [str(self._app), *sys.path]),
            env={**os.environ, **variables},
            cwd=self._cwd,
            capture_output=True,
            text=True,
            check=False,
        )

    def result(self, call: str, payload: object = None) -> object:
        ran = self(call, payload)
        assert (ran.returncode, ran.stderr) == (0, "")
        found = self._files.result("job", 1)
        assert found is None or found.error is None
        return None if found is None else found.value


@pytest.fixture
def call(app: Path, files: JobFiles, tmp_path: Path) -> Caller:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    return Caller(app, files, elsewhere)


# What it is called with, and what comes back.


def test_an_object_gives_keyword_arguments(call):
    assert call.result("shop.tasks:add", {"a": 1, "b": 2}) == 3


def test_an_array_gives_positional_arguments(call):
    assert call.result("shop.tasks:add", [1, 2]) == 3


@pytest.mark.parametrize("payload", [5, 0, False])
def test_another_value_is_the_only_argument(call, payload):
    assert call.result("shop.tasks:add", payload) == payload + 10


def test_without_a_payload_there_are_no_arguments(call):
    assert call.result("shop.tasks:Things.count") == 0


def test_a_coroutine_function_is_awaited(call):
    assert call.result("shop.tasks:add_slowly", {"a": 1, "b": 2}) == 3


def test_a_function_inside_a_class_can_be_called(call):
    assert call.result("shop.tasks:Things.count", [7, 8]) == 2


def test_a_function_of_the_standard_library_can_be_called(call):
    assert call.result("os.path:basename", "/a/b") == "b"


def test_returning_nothing_is_no_result(call):
    assert call.result("shop.tasks:nothing") is None


def test_a_result_that_the_function_set_itself_stands(call):
    assert call.result("shop.tasks:sets_its_own") == "mine"


def test_the_function_sees_its_module_and_its_name(call):
    assert call.result("shop.tasks:name") == ["shop.tasks", ["shop.tasks:name"]]


# How it fails.


def test_a_failure_is_told_without_our_frames(call, app):
    ran = call("shop.tasks:fails", {"why": "no stock"})
    assert ran.returncode == 1
    assert ran.stderr == (
        "Traceback (most recent call last):\n"
        f'  File "{app}/shop/tasks.py", line 17, in fails\n'
        "    raise ValueError(why)\n"
        "ValueError: no stock\n"
    )


def test_a_failure_of_a_coroutine_is_told_without_the_loops_frames(call):
    ran = call("shop.tasks:fails_slowly")
    assert ran.returncode == 1
    assert ran.stderr.endswith("ValueError: later\n")
    frames = [line for line in ran.stderr.splitlines() if line.startswith("  File")]
    assert [frame.rpartition(" ")[2] for frame in frames] == ["fails_slowly", "fails"]


def test_a_failing_import_is_told_without_the_imports_frames(call):
    ran = call("shop.broken:f")
    assert ran.returncode == 1
    assert ran.stderr.endswith("ValueError: on import\n")
    frames = [line for line in ran.stderr.splitlines() if line.startswith("  File")]
    assert [frame.rpartition(" ")[2] for frame in frames] == ["<module>", "fails"]


@pytest.mark.parametrize(
    ("name", "payload", "last_line"),
    [
        ("shop.nowhere:f", None, "ModuleNotFoundError: No module named 'shop.nowhere'"),
        ("shop.tasks:f", None, "AttributeError: module 'shop.tasks' has no attribute 'f'"),
        ("shop.tasks:constant", None, "TypeError: shop.tasks:constant is no function"),
        ("shop.tasks:add", None, "TypeError: add() missing 1 required positional argument: 'a'"),
        ("shop.tasks:fails", {"x": 1}, "TypeError: fails() got an unexpected keyword argument 'x'"),
    ],
)
def test_what_cannot_be_called_is_told_in_a_line(call, name, payload, last_line):
    ran = call(name, payload)
    assert (ran.returncode, ran.stderr) == (1, f"{last_line}\n")


def test_a_result_that_is_not_json_fails_and_says_so(call, files):
    ran = call("shop.tasks:unspeakable")
    assert ran.returncode == 1
    problem = "a result must be JSON: Object of type set is not JSON serializable"
    assert ran.stderr == f"shop.tasks:unspeakable has returned, but not its result: {problem}\n"
    assert files.result("job", 1) is None


def test_an_exit_passes(call, files):
    assert call("shop.tasks:leaves", 7).returncode == 7
    assert files.result("job", 1) is None


# As jobs.


async def test_a_call_runs_as_a_job(jobs, app, files):
    argv = call_argv("shop.tasks:add_slowly", [str(app), *sys.path])
    await jobs.run(command=argv, job_id="sum", payload={"a": 1, "b": 2})
    record = await jobs.wait(job_id="sum", timeout=60)
    assert (record.status, record.result) == (Status.finished, 3)


# The command.


def test_modules_are_found_where_the_application_finds_them(app, tmp_path):
    main = tmp_path / "app" / "main.py"
    main.write_text(
        "import json, subprocess\n"
        "from anodejobs.calls import call_argv\n"
        "subprocess.run(call_argv('shop.tasks:fails'), cwd='/', check=False)\n"
    )
    ran = subprocess.run([sys.executable, main], capture_output=True, text=True, check=True)
    assert ran.stderr.startswith("TypeError: fails() missing 1 required")


def test_where_it_starts_hides_no_module(call, tmp_path):
    (tmp_path / "elsewhere" / "json.py").write_text("raise SystemExit('the wrong one')")
    assert call.result("shop.tasks:add", [1, 2]) == 3


def test_the_present_folder_is_handed_on_by_its_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call_argv("a:b", ["", "/x", ""])[-2:] == [str(tmp_path), "/x"]


@pytest.mark.parametrize(
    "name",
    ["", "a", "a:", ":b", "a.b", "a:b:c", "a b:c", "a:b()", "a..b:c", "a:b-c", "../a:b", "a:class"],
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(InvalidJob) as caught:
        call_argv(name)
    assert caught.value.field == "call"


def test_a_function_of_the_main_module_is_refused():
    with pytest.raises(InvalidJob, match="move it to one that can be imported"):
        call_argv("__main__:f")


def test_without_an_interpreter_there_is_no_command(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidJob, match="call: this application is no Python, and there is no py"):
        call_argv("a:b")
