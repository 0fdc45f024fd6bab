"""The README's snippets run as they stand, and its commands are those of CI."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import anodejobs
from anodejobs import Jobs
from anodejobs.doctor import check_systemd

pytestmark = [pytest.mark.smoke, pytest.mark.outer]

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CI = Path(__file__).parent.parent / ".ci" / "run"


def test_the_first_snippet_runs_as_a_script(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SNIPPETS[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stdout hi" in done.stdout


@pytest.mark.parametrize("snippet", SNIPPETS[1:], ids=lambda s: re.findall(r"def (\w+)", s)[0])
async def test_the_snippet_runs(snippet: str, jobs: Jobs, tmp_path: Path) -> None:
    names: dict[str, object] = {"__name__": "snippet"}
    exec(snippet, names)
    (function,) = [f for f in names.values() if inspect.isfunction(f) and f.__module__ == "snippet"]
    known = {"jobs": jobs, "db_path": str(tmp_path / "another")}
    given = {name: known[name] for name in inspect.signature(function).parameters}
    if inspect.iscoroutinefunction(function):
        await function(**given)
    else:
        await asyncio.to_thread(function, **given)


async def test_a_browser_that_comes_back_is_sent_each_event_that_it_missed(jobs: Jobs) -> None:
    (snippet,) = [snippet for snippet in SNIPPETS if "text/event-stream" in snippet]
    names: dict[str, Any] = {}
    exec(snippet, names)
    await jobs.run("true", "a")
    await jobs.wait("a")
    told = [event async for event in sent_by(names["make_app"](jobs), b"1", last=b'"finished"')]
    assert [event[:2] for event in told] == [["id: 2", "event: status"], ["id: 3", "event: status"]]
    assert [json.loads(event[2].removeprefix("data: "))["status"] for event in told] == [
        *("running", "finished"),
    ]


async def sent_by(app: Any, last_seen: bytes, *, last: bytes) -> AsyncIterator[list[str]]:
    """Give the lines of each event that the application sends, until one holds the last words."""
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    request = {
        **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "GET"},
        **{"path": "/events", "raw_path": b"/events", "root_path": "", "query_string": b""},
        **{"scheme": "http", "http_version": "1.1", "headers": [(b"last-event-id", last_seen)]},
    }
    serving = asyncio.create_task(app(request, asyncio.Event().wait, sent.put))
    async with asyncio.timeout(60):
        start, body = await sent.get(), b""
        assert start["status"] == 200
        while last not in body:
            body = (await sent.get())["body"]
            yield body.decode().splitlines()
    serving.cancel()
    await asyncio.wait([serving])


async def test_what_was_backed_up_can_be_put_back(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    (commands,) = [block for block in blocks if "sqlite3" in block]
    tool = tmp_path / "sqlite3"
    tool.write_text(SQLITE3)
    tool.chmod(0o700)

    def back_up() -> None:
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run(commands, shell=True, cwd=tmp_path, env=env, check=True)

    async with Jobs(tmp_path / "job_db", executor="inline") as jobs:
        await jobs.run('echo kept; cat "$ANODEJOBS_PAYLOAD"', "first", payload=["given"])
        await jobs.wait("first")
        await asyncio.to_thread(back_up)
        await jobs.run("true", "second")
        await jobs.wait("second")
    assert stat.S_IMODE((tmp_path / "backup/jobs.db").stat().st_mode) == 0o600
    shutil.rmtree(tmp_path / "job_db")
    (tmp_path / "backup").rename(tmp_path / "job_db")
    async with Jobs(tmp_path / "job_db", executor="inline") as jobs:
        assert list(await jobs.list_status()) == ["first"]
        assert await jobs.job_logs("first") == ('kept\n["given"]', "")


SQLITE3 = f"""#!{sys.executable}
import sqlite3, sys
sqlite3.connect(sys.argv[1]).execute(sys.argv[2])
"""
"""The part of SQLite's own tool that is asked for, which need not be here."""


def test_the_unit_is_one_that_the_doctor_approves_of(tmp_path: Path) -> None:
    (unit,) = re.findall(r"```ini\n(.*?)```", README, re.DOTALL)
    said = f"LoadState=loaded\nTimeoutStopUSec=1min 30s\n{unit}"
    cgroup = tmp_path / "cgroup"
    cgroup.write_text("0::/system.slice/app.service\n")
    finding = check_systemd(cgroup, {}, run=lambda command: (True, said), linger=tmp_path)
    assert (finding.level, finding.found) == ("ok", "in app.service, KillMode=process")


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", README, flags=re.DOTALL), re.M)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]*)\)", README)
    assert links
    assert not {link for link in links if link.removeprefix("#") not in anchors}


def test_ci_passes_the_tests_by_the_command_of_the_readme() -> None:
    if not CI.exists():
        pytest.skip("tests of an installed package have no CI beside them")
    assert "README.md" in CI.read_text()


def test_every_file_that_proves_a_promise_exists() -> None:
    named = set(re.findall(r"tests/test_\w+\.py", README))
    assert named
    assert all((Path(__file__).parent.parent / name).exists() for name in named)


def test_the_map_names_every_module() -> None:
    package = Path(anodejobs.__file__).parent
    the_map = README.partition("## The map of the package")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", the_map))
    modules = {path.relative_to(package).with_suffix("") for path in package.rglob("*.py")}
    # A folder of suites is one thing to its reader, and so is a module and its parts (`file_lock`).
    missing = {
        str(module)
        for module in modules
        if not {module.name, module.name.partition("_")[0]} & named
        and module.name != "__init__"
        and module.parts[0] != "testing"
    }
    assert not missing
