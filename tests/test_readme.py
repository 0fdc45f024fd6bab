"""The README's snippets run as they stand, and its commands are those of CI."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import anodejobs
from anodejobs import Jobs

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
