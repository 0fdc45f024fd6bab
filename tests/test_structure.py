"""The shape of the package: what is public, who knows whom, and what an import costs."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anodejobs
from tests.conftest import STANDARD

ROOT = Path(anodejobs.__file__).parent

PUBLIC = [
    "AnodeJobsError",
    "AttemptRecord",
    "BatchProgress",
    "DatabaseJobStore",
    "DependencyCycle",
    "Durations",
    "ExecutorError",
    "ExponentialBackoff",
    "Failure",
    "FileJobStore",
    "FixedDelay",
    "InvalidJob",
    "InvalidTransition",
    "JobActive",
    "JobEvent",
    "JobFilter",
    "JobNotFound",
    "JobOptions",
    "JobRecord",
    "JobRecordDict",
    "JobSpec",
    "JobStore",
    "Jobs",
    "Limits",
    "LogChunk",
    "MemoryJobStore",
    "Metrics",
    "Migrated",
    "Parameter",
    "Priority",
    "RestartPolicy",
    "RetryPolicy",
    "Schedule",
    "Scheduled",
    "SharedJobStore",
    "SqliteJobStore",
    "Status",
    "StatusUnreachable",
    "StoreError",
    "Template",
    "Usage",
    "WaitTimeout",
    "migrate",
]

# From the bottom up: a module here knows only those above it in this list, and not its own line.
LAYERS = [
    ["command", "errors", "events", "faults", "interpreter", "threads"],
    ["dependencies", "jobqueue", "folderwatch", "regular", "this_job", "executors.descriptors"],
    ["executors.cgroups", "executors.limited", "executors.limits"],
    ["calling", "calls", "fields", "jobfiles", "models", "progress"],
    ["retries"],
    [
        *("logs", "records", "executors.marks", "executors.environment"),
        *("shim.listener", "shim.peers", "shim.protocol"),
    ],
    ["limits"],
    [
        *("executors.base", "executors.pidfds", "executors.spawner", "schedules"),
        "transitions",
    ],
    ["templates"],
    [
        "executors.tree",
        "stores.base",
        "stores.database_sockets",
        "stores.doorbell",
        "stores.file_lock",
        "stores.file_places",
        "stores.tally",
    ],
    [
        *("executors.children", "executors.deaths", "executors.looks", "executors.pump"),
        *("executors.samples", "executors.shim_link"),
        *("shim.clients", "shim.journal", "shim.tombs"),
        *("stores.contents", "stores.file_commits", "stores.file_texts", "stores.pages"),
        *("stores.database_aiomysql", "stores.database_asyncpg", "stores.rows"),
    ],
    [
        *("executors.endings", "executors.limiting", "executors.jobpipes", "executors.shim_start"),
        *("executors.supervisors", "shim.lives", "shim.orphans"),
        *("at_hand", "news", "waits", "stores.file_folder"),
        "stores.memory",
        *("stores.read_rows", "stores.write_rows", "stores.database_sql"),
    ],
    ["shim.draining", "stores.sqlite_queries", "stores.sqlite_schema", "stores.sqlite_writes"],
    ["stores.database_queries", "stores.database_saves", "stores.database_schema"],
    ["stores.database_leases"],
    ["stores.database_writes"],
    ["stores.database_server"],
    ["stores.database_news"],
    [
        *("executors.processes", "executors.shim", "stores.file", "stores.sqlite"),
        *("stores.database", "jobdb", "succession"),
    ],
    [
        *("executors.inline", "shim.server", "stores", "planner", "sequels", "documents"),
        *("arguments", "retention", "errands", "stock", "links", "callbacks"),
    ],
    [
        *("follower", "recorder", "owner", "timetable", "catalogue", "progressfeed"),
        *("migration", "removal"),
    ],
    ["settings", "control"],
    ["watcher"],
    ["reconciler", "hosts"],
    ["starter"],
    ["scheduler"],
    ["root"],
    ["shim.main", "jobs"],
    ["doctor_trials"],
    ["doctor", "prometheus", "migrate"],
    # What tests are made of.
    ["testing.made"],
    ["testing.model", "testing.suite"],
    [
        *("testing.batches", "testing.changes", "testing.documents", "testing.histories"),
        *("testing.inserts", "testing.queries", "testing.restores"),
    ],
    ["testing.store"],
    ["testing.durable"],
    ["testing.shared"],
    ["testing"],
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}


# What is public.


@pytest.mark.outer
def test_the_public_names_are_these():
    assert anodejobs.__all__ == PUBLIC


@pytest.mark.outer
@pytest.mark.parametrize("name", [*PUBLIC, "JobsSettings"])
def test_a_public_name_resolves(name):
    value = getattr(anodejobs, name)
    assert value.__name__ == name
    assert name in dir(anodejobs)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'anodejobs' has no attribute 'Job'"):
        _ = anodejobs.Job


@pytest.mark.outer
def test_a_star_import_gives_the_public_names():
    names: dict[str, object] = {}
    exec("from anodejobs import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == sorted(PUBLIC)


def test_a_type_checker_sees_the_names_that_python_sees():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [node for node in tree.body if _is_for_type_checkers(node)]
    seen = [alias.name for node in block.body for alias in node.names]
    assert sorted(seen) == sorted([*PUBLIC, "JobsSettings"])


@pytest.mark.outer
def test_the_package_is_typed():
    assert (ROOT / "py.typed").is_file()


_PURE = [
    *("calls", "dependencies", "errors", "jobfiles", "jobqueue", "limits", "progress", "records"),
    *("retries", "schedules", "templates", "this_job", "transitions"),
]


@pytest.mark.outer
@pytest.mark.parametrize("module", _PURE)
def test_what_a_module_calls_public_is_there(module):
    imported = importlib.import_module(f"anodejobs.{module}")
    for name in imported.__all__:
        assert hasattr(imported, name), name


# What an import costs.

STORES_AND_WEB = {
    *("sqlite3", "aiosqlite", "fastapi", "starlette", "aiohttp", "sqlalchemy"),
    *("prometheus_client", "asyncpg", "aiomysql", "pydantic_settings"),
}


def imported_by(statement: str) -> set[str]:
    """Return the modules a fresh interpreter has after the statement."""
    code = f"{statement}; import sys; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(told.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "anodejobs",
        "anodejobs.dependencies",
        "anodejobs.errors",
        "anodejobs.events",
        "anodejobs.jobqueue",
        "anodejobs.records",
        "anodejobs.retries",
        "anodejobs.schedules",
        "anodejobs.templates",
        "anodejobs.transitions",
        "anodejobs.jobdb",
        "anodejobs.stores.memory",
    ],
)
def test_a_pure_module_imports_no_database_no_web_and_no_facade(module):
    imported = imported_by(f"import {module}")
    assert not imported & {*STORES_AND_WEB, "psutil", "anodejobs.jobs", "anodejobs.testing"}


_SMALL = [
    *("", "calling", "calls", "dependencies", "errors", "events", "executors.limits"),
    *("executors.cgroups", "jobfiles", "jobqueue", "progress", "this_job"),
]


@pytest.mark.outer
@pytest.mark.parametrize("module", _SMALL)
def test_the_smallest_modules_import_the_standard_library_only(module):
    imported = imported_by(f"import anodejobs.{module}".rstrip("."))
    strangers = {name.partition(".")[0] for name in imported}
    bare = {name.partition(".")[0] for name in imported_by("pass")}
    assert strangers - bare - STANDARD == {"anodejobs"}


@pytest.mark.parametrize("module", ["executors.processes", "executors.shim", "shim.main"])
def test_executors_import_no_models_and_no_database(module):
    imported = imported_by(f"import anodejobs.{module}")
    assert not imported & {*STORES_AND_WEB, "pydantic", "anyio"}
    assert not {name for name in imported if name.startswith("anodejobs.stores")}


@pytest.mark.outer
def test_the_shim_imports_the_standard_library_only():
    strangers = {name.partition(".")[0] for name in imported_by("import anodejobs.shim.main")}
    bare = {name.partition(".")[0] for name in imported_by("pass")}
    assert strangers - bare - STANDARD == {"anodejobs"}
    for module in _modules("shim"):
        assert _foreign(module) <= STANDARD, module


def test_a_record_by_its_public_name_imports_no_database():
    imported = imported_by("from anodejobs import JobRecord, JobFilter, Status, InvalidJob")
    assert not imported & {*STORES_AND_WEB, "anodejobs.jobs"}


def test_the_facade_imports_no_web_and_no_tests():
    imported = imported_by("from anodejobs import Jobs")
    assert not imported & {
        *("fastapi", "starlette", "aiohttp", "prometheus_client", "pytest", "anodejobs.testing"),
    }


# Who knows whom.


def test_no_import_is_part_of_a_cycle():
    known = {module: set(_imports(module)) for module in _modules()}
    while free := {module for module, knows in known.items() if not knows & known.keys()}:
        known = {module: knows for module, knows in known.items() if module not in free}
    assert not known


@pytest.mark.outer
def test_every_module_has_its_layer():
    # Those that only say what a folder is have nothing in them.
    folders = {"executors", "shim"}
    assert LEVEL.keys() | folders >= set(_modules())
    assert not [module for module in folders if list(_imported(module))]


@pytest.mark.parametrize("module", LEVEL)
def test_a_module_knows_only_those_under_it(module):
    above = {known for known in _imports(module) if LEVEL.get(known, -1) >= LEVEL[module]}
    assert not above


def test_errors_and_events_know_nothing_of_the_package():
    assert list(_imports("errors")) == []
    assert list(_imports("events")) == []


def test_records_know_neither_stores_nor_processes():
    pure = {"dependencies", "errors", "events", "fields", "jobqueue", "models", "retries"}
    assert set(_imports("records")) <= pure
    assert set(_imports("fields")) | set(_imports("models")) <= {"errors", "jobqueue"}
    assert set(_imports("transitions")) <= {"errors", "events", "records"}


@pytest.mark.parametrize("module", ["retries", "schedules", "templates"])
def test_what_decides_about_times_and_commands_does_nothing_itself(module):
    assert set(_imports(module)) <= {"errors", "fields", "models", "records"}
    assert not _foreign(module) & {"asyncio", "anyio", "random", "subprocess", "threading", "time"}
    clocks = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    assert not clocks & set(_dotted_names(module))


BELOW = {"errors", "events", "logs", "jobfiles", "faults", "interpreter", "regular", "threads"}
"""What everything may know."""


def test_executors_know_neither_records_nor_stores():
    for module in _modules("executors"):
        for known in _imports(module):
            is_below = known in BELOW
            # The package itself: the interpreter that is started is told where that lies.
            is_said = known in ("", "shim.draining", "shim.peers", "shim.protocol")
            is_said = is_said and module.startswith("executors.shim")
            assert is_below or is_said or known.startswith("executors"), (module, known)


def test_the_shim_knows_neither_records_nor_stores_nor_applications():
    """It is of its own version: what it knows of others is what is said over its socket."""
    for module in _modules("shim"):
        for known in _imports(module):
            is_below = known in BELOW
            is_executor = known.startswith("executors") and "shim" not in known
            assert is_below or is_executor or known.startswith("shim"), (module, known)


def test_what_is_said_to_a_shim_is_pure():
    assert set(_imports("shim.protocol")) == {"events"}
    assert _foreign("shim.protocol") <= {"__future__", "datetime", "json", "typing"}


@pytest.mark.parametrize("module", ["dependencies", "jobqueue"])
def test_who_waits_is_decided_without_a_clock_a_loop_or_a_look_at_anything(module):
    assert set(_imports(module)) <= {"errors"}
    assert _foreign(module) <= {
        *("__future__", "collections", "dataclasses", "enum", "heapq", "itertools", "typing"),
    }


def test_stores_know_nothing_above_them():
    for module in _modules("stores"):
        for known in _imports(module):
            assert known.startswith("stores") or known in (
                "dependencies",
                "errors",
                "events",
                "records",
                "logs",
                "regular",
                "threads",
                "executors.base",
            ), module


def test_the_writer_of_records_knows_no_technology():
    for known in _imports("jobdb"):
        if known.startswith(("executors", "stores")):
            assert known in ("executors.base", "stores.base")


@pytest.mark.parametrize(
    "module", ["recorder", "control", "watcher", "reconciler", "starter", "follower"]
)
def test_the_supervisor_knows_contracts_only(module):
    for known in _imports(module):
        if known.startswith(("executors", "stores")):
            assert known in ("executors.base", "stores.base")


def test_nothing_but_the_outermost_knows_the_facade():
    knowing = {module for module in _modules() if "jobs" in set(_imports(module))}
    assert {module.partition(".")[0] for module in knowing} <= {"web", "cli"}
    assert not [module for module in _modules() if "doctor" in set(_imports(module))]


def test_nothing_imports_the_test_suites():
    suites = set(_modules("testing"))
    assert not [module for module in _all_but_suites() if suites & set(_imports(module))]


# Who may touch what.


def test_only_stores_speak_sql():
    for module in _modules():
        if not module.startswith("stores"):
            assert not _foreign(module) & {"sqlite3", "aiosqlite", "sqlalchemy"}, module
            sentences = [text for text in _texts(module) if _is_sql(text)]
            assert not sentences, module


def test_only_executors_touch_processes():
    forbidden = {
        *("os.kill", "os.killpg", "os.fork", "os.forkpty", "os.waitpid", "os.waitid", "os.wait"),
        *("os.pidfd_open", "os.posix_spawn", "os.system", "os.execv", "os.execve", "os.execvpe"),
        *("signal.pidfd_send_signal", "asyncio.create_subprocess_exec"),
        *("asyncio.create_subprocess_shell",),
    }
    # Children are reaped where all orphans end; who talks to us is watched; tests want deaths.
    exceptions = {
        "shim.orphans": {"os.waitpid", "os.waitid"},
        "shim.clients": {"os.pidfd_open"},
        "faults": {"os.kill"},
    }
    for module in _modules():
        if not module.startswith(("executors", "doctor")):
            assert not _foreign(module) & {"psutil", "subprocess", "multiprocessing"}, module
            touched = set(_dotted_names(module)) & forbidden
            assert touched == exceptions.get(module, set()), module


def test_what_dies_for_a_test_is_the_process_itself():
    kills = [text for text in _calls("faults") if text.startswith("os.kill(")]
    assert kills == ["os.kill(os.getpid(), signal.SIGKILL)"]


def test_nothing_forks():
    """Not even through Popen: with these arguments it does not use vfork."""
    slow = {"preexec_fn", "user", "group", "extra_groups"}
    for module in _modules():
        for node in ast.walk(_tree(module)):
            if isinstance(node, ast.Call) and "subprocess" in ast.unparse(node.func).lower():
                assert not slow & {keyword.arg for keyword in node.keywords}, module
        assert not set(_dotted_names(module)) & {"os.fork", "os.forkpty"}, module


def test_one_task_is_owned_by_nobody_and_that_is_the_root():
    """All others belong to a task group, which awaits them and hears of their faults.

    But for the news of a store, which records its faults, and ends when the store is closed.
    """
    calls = [
        (module, text.partition("(")[0])
        for module in _all_but_suites()
        for text in _calls(module)
        if text.partition("(")[0].endswith((".create_task", ".ensure_future"))
    ]
    groups = {"tasks.create_task", "self._tasks.create_task"}
    assert [call for call in calls if call[1] not in groups] == [
        ("root", "asyncio.create_task"),
        ("stores.database_news", "asyncio.create_task"),
    ]
    assert {module for module, _ in calls} == {
        *("root", "owner", "scheduler", "succession", "shim.server", "stores.database_news"),
    }


def test_signals_and_the_root_of_all_logging_belong_to_whoever_owns_the_process():
    owners = {"shim.main", "calling", "migrate"}
    taken = ("signal.signal", "signal.pthread_sigmask", "asyncio.run", "logging.basicConfig")
    for module in set(_modules()) - owners:
        for text in _calls(module):
            name = text.partition("(")[0]
            assert name not in taken, module
            assert not name.endswith((".add_signal_handler", ".set_exception_handler")), module
            assert text != "logging.getLogger()", module


def test_a_status_is_set_in_transitions_only():
    for module in set(_all_but_suites()) - {"transitions"}:
        for node in ast.walk(_tree(module)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("JobRecord"):
                assert "status" not in {keyword.arg for keyword in node.keywords}, module
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".model_copy"):
                assert "'status'" not in ast.unparse(node) or module.startswith("stores"), module


def test_no_module_is_named_like_one_of_the_standard_library():
    names = {part for module in _modules() for part in module.split(".")}
    assert not names & sys.stdlib_module_names


# Reading the package, which does not change meanwhile.


@functools.cache
def _modules(folder: str = "") -> list[str]:
    """Return the names of all modules but the package itself, without its name."""
    names = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts).removesuffix("__init__").removesuffix("."))
    return [name for name in names if name]


def _all_but_suites() -> list[str]:
    suites = set(_modules("testing"))
    return [module for module in _modules() if module not in suites]


@functools.cache
def _tree(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text())


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    """Return all that the module imports when it runs, also late, by full names."""
    found: list[str] = []
    todo: list[ast.AST] = [_tree(module)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found += (f"{node.module}.{alias.name}" for alias in node.names)
        elif not _is_for_type_checkers(node):
            todo += ast.iter_child_nodes(node)
    return tuple(found)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _imports(module: str) -> Iterator[str]:
    """Give the modules of the package that the module imports."""
    modules = set(_modules())
    for name in _imported(module):
        package, _, inner = name.partition(".")
        if package == "anodejobs":
            yield inner if inner in modules else inner.rpartition(".")[0]


def _foreign(module: str) -> set[str]:
    """Return the names of other packages that the module imports."""
    return {name.partition(".")[0] for name in _imported(module)} - {"anodejobs"}


def _dotted_names(module: str) -> Iterator[str]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
    yield from _imported(module)


def _calls(module: str) -> Iterator[str]:
    """Give the calls that the module makes, as they are written."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node)


def _texts(module: str) -> Iterator[str]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _is_sql(text: str) -> bool:
    starts = ("SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM ", "CREATE TABLE ", "PRAGMA ")
    return text.lstrip().startswith(starts)
