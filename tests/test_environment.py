"""Jobs have the environment that was asked for, though many share most of it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anodejobs.events import Attempt
from anodejobs.executors.base import Launch, LogPlan, new_token
from anodejobs.executors.environment import EnvironmentBlock
from anodejobs.shim.protocol import Message, start_request
from tests.test_shim import Raw, connected, opened, ran

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

SHOW = ("/bin/cat", "/proc/self/environ")
PLAIN: dict[str, Any] = {
    "argv": SHOW,
    "cwd": "/",
    "base_env": {},
    "envs": {},
    "stop_grace": 1.0,
    "logs": LogPlan(stdout="/o", stderr="/e"),
}
ODD = b"na\xefve \xff\n\x01\x7f = \xe4\xbb\xbb\xe5\x8a\xa1"
LONGEST = 131_071 - len("LONG=")
"""As many bytes as Linux takes for the value of that variable, the byte at its end aside."""


# What the jobs of a shim have.


async def test_a_job_has_what_was_asked_for_and_its_marks(app: App) -> None:
    token = new_token()
    assert await app.shown({"A": "a", "B": ""}, "job", token=token) == {
        b"A": b"a",
        b"B": b"",
        b"ANODEJOBS_JOB_ID": b"job",
        b"ANODEJOBS_ATTEMPT": b"7",
        b"ANODEJOBS_TOKEN": token.encode(),
    }


async def test_a_job_has_nothing_of_the_shims_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_SHIM", "x")
    async with begun(tmp_path) as app:
        assert await app.asked({}) == {}


async def test_a_job_has_nothing_of_an_earlier_one(app: App) -> None:
    await app.shown({"A": "a", "B": "b", "PATH": "/bin"})
    assert await app.asked({"B": "c"}) == {b"B": b"c"}


async def test_what_one_job_has_over_the_rest_no_other_has(app: App) -> None:
    base = {"A": "a", "B": "b"}
    assert await app.asked(base, envs={"B": "c", "C": "c"}) == {b"A": b"a", b"B": b"c", b"C": b"c"}
    assert await app.asked(None) == {b"A": b"a", b"B": b"b"}


async def test_each_job_has_its_own_marks(app: App) -> None:
    tokens = [new_token() for _ in range(5)]
    shown = [await app.shown({}, f"job-{n}", token=token) for n, token in enumerate(tokens)]
    assert [s[b"ANODEJOBS_TOKEN"].decode() for s in shown] == tokens
    assert [s[b"ANODEJOBS_JOB_ID"] for s in shown] == [b"job-%d" % n for n in range(5)]


async def test_jobs_that_are_told_of_files_and_such_that_are_not_take_turns(
    app: App, tmp_path: Path
) -> None:
    await app.told({"A": "a"})
    for files in (str(tmp_path), "", str(tmp_path), ""):
        token = new_token()
        told = Launch(job_id="a", files=files, **PLAIN).marks(7, token)
        shown = await app.shown(None, files=files, token=token)
        assert shown == {b"A": b"a", **encoded(told)}


async def test_two_applications_that_take_turns_have_each_their_own(
    app: App, tmp_path: Path
) -> None:
    mine, theirs = {"COLOUR": "red", "MINE": "1"}, {"COLOUR": "blue", "THEIRS": "2"}
    async with connected(tmp_path) as client:
        other = App(client, tmp_path / "other")
        await client.hello()
        await app.told(mine)
        await other.told(theirs)
        for _ in range(3):
            assert await app.asked(None) == encoded(mine)
            assert await other.asked(None) == encoded(theirs)


async def test_a_job_of_an_application_that_is_a_job_has_its_own_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {f"ANODEJOBS_{name}": "outer" for name in ("JOB_ID", "ATTEMPT", "TOKEN")}
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    async with begun(tmp_path) as app:
        token = new_token()
        shown = await app.shown({**outer, "ANODEJOBS_MORE": "x"}, "inner", token=token)
    assert shown == {
        b"ANODEJOBS_JOB_ID": b"inner",
        b"ANODEJOBS_ATTEMPT": b"7",
        b"ANODEJOBS_TOKEN": token.encode(),
        b"ANODEJOBS_MORE": b"x",
    }


async def test_odd_bytes_are_handed_on(app: App) -> None:
    assert await app.asked({os.fsdecode(b"N\xff\n"): os.fsdecode(ODD)}) == {b"N\xff\n": ODD}


async def test_a_value_as_long_as_the_system_takes_is_handed_on(app: App) -> None:
    assert await app.asked({"LONG": "x" * LONGEST}) == {b"LONG": b"x" * LONGEST}


async def test_a_value_too_long_for_the_system_fails_only_its_own_job(app: App) -> None:
    answer = await app.started({"LONG": "x" * (LONGEST + 1)})
    assert answer["event"]["kind"] == "StartFailed"
    assert await app.asked({"A": "a"}) == {b"A": b"a"}


async def test_thousands_of_variables_are_handed_on(app: App) -> None:
    many = {f"V{n}": str(n) for n in range(5000)}
    assert await app.asked(many) == encoded(many)


async def test_the_longest_job_id_is_handed_on(app: App) -> None:
    assert (await app.shown({}, "🚀" * 200))[b"ANODEJOBS_JOB_ID"] == "🚀".encode() * 200


async def test_a_variable_that_no_process_can_have_fails_only_its_own_job(app: App) -> None:
    assert (await app.started({"A=B": "x"}))["event"]["kind"] == "StartFailed"
    assert (await app.started({"A": "x\0y"}))["event"]["kind"] == "StartFailed"
    assert await app.asked({"A": "a"}) == {b"A": b"a"}


async def test_a_variable_without_a_name_is_handed_on(app: App) -> None:
    """There are systems that have such ones in every environment."""
    assert await app.asked({"": "x", "A": "a"}) == {b"": b"x", b"A": b"a"}


# Where the program of a job is looked for.


async def test_a_program_is_looked_for_where_the_job_would(app: App, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_tool(tmp_path / name)
    for name in ("one", "two", "one"):
        assert await app.printed({"PATH": str(tmp_path / name)}, argv=("tool",)) == name


async def test_a_program_is_looked_for_in_the_path_that_the_job_has_over_the_rest(
    app: App, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        make_tool(tmp_path / name)
    base, over = {"PATH": str(tmp_path / "one")}, {"PATH": str(tmp_path / "two")}
    assert await app.printed(base, argv=("tool",), envs=over) == "two"
    assert await app.printed(None, argv=("tool",)) == "one"


async def test_a_program_is_not_looked_for_in_the_path_of_an_earlier_job(
    app: App, tmp_path: Path
) -> None:
    make_tool(tmp_path / "one")
    await app.printed({"PATH": str(tmp_path / "one")}, argv=("tool",))
    assert (await app.started({}, argv=("tool",)))["event"]["kind"] == "StartFailed"
    assert await app.printed({}, argv=("sh", "-c", "echo found")) == "found"


# What the C library gets.


names = st.text(st.characters(exclude_characters="=\0", exclude_categories=["Cs"]), min_size=1)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | (
    st.binary().map(lambda data: os.fsdecode(data.replace(b"\0", b"")))
)
owns = st.dictionaries(st.sampled_from(["OWN", "OTHER", "PATH"]), values)
environments = st.dictionaries(names | st.sampled_from(["PATH", "OWN", "HOME"]), values, max_size=8)


@settings(max_examples=200)
@given(st.lists(st.tuples(environments, owns, owns), min_size=1, max_size=4))
@example([({}, {"OWN": ""}, {"OWN": "", "OTHER": ""}), ({"PATH": ""}, {"OWN": "x" * 5000}, {})])
def test_whatever_was_held_before_there_is_what_is_held_now(orders):
    block = EnvironmentBlock()
    for base, first, second in orders:
        for own in (first, second):
            assert held(block, base, own) == encoded({**base, **own})


@pytest.mark.parametrize("bad", [{"A=B": "x"}, {"A": "x\0"}, {"A\0": "x"}, {"A": "\ud800"}])
def test_what_no_process_can_have_is_refused_and_is_in_the_way_of_nothing(bad):
    good, block = {"A": "a"}, EnvironmentBlock()
    for base, own in ((bad, {"OWN": "x"}), (good, {**bad, "OWN": "x"})):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"cannot be set|surrogates"):
                block.holding(base, own)
            assert held(block, good, {"OWN": "y"}) == {b"A": b"a", b"OWN": b"y"}


# What the tests above are written with.


class App:
    """An application that runs what it likes in a shim."""

    def __init__(self, client: Raw, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._folder.mkdir()

    async def told(self, base: dict[str, str]) -> None:
        """Tell the shim the environment of the jobs that come."""
        self._client.send({"do": "env", "vars": base})

    async def started(
        self, base: dict[str, str] | None, name: str = "a", token: str = "", **fields: Any
    ) -> Message:
        """Return the answer to a start; with no ``base`` it is the one that was told before."""
        if base is not None:
            await self.told(base)
        logs = LogPlan(stdout=f"{self._folder}/out", stderr=f"{self._folder}/err")
        launch = Launch(job_id=name, **{**PLAIN, "logs": logs, **fields})
        attempt = Attempt(token=token or new_token(), supervisor="")
        return await self._client.ask_by(start_request("start", 7, attempt, launch.parts()))

    async def printed(self, base: dict[str, str] | None, *args: Any, **fields: Any) -> str:
        """Return what a job has printed, when it has ended."""
        return os.fsdecode(await self._printed(base, *args, **fields)).strip()

    async def shown(
        self, base: dict[str, str] | None, *args: Any, **fields: Any
    ) -> dict[bytes, bytes]:
        """Return the environment that a job has."""
        return parsed(await self._printed(base, *args, **fields))

    async def asked(self, base: dict[str, str] | None, **fields: Any) -> dict[bytes, bytes]:
        """Return the environment that a job has, without its marks."""
        shown = await self.shown(base, **fields)
        return {n: v for n, v in shown.items() if not n.startswith(b"ANODEJOBS_")}

    async def _printed(self, base: dict[str, str] | None, *args: Any, **fields: Any) -> bytes:
        answer = await self.started(base, *args, **fields)
        assert answer["event"]["kind"] == "Started", answer
        await self._client.heard_end()
        return (self._folder / "out").read_bytes()


@asynccontextmanager
async def begun(folder: Path) -> AsyncIterator[App]:
    """Give an application beside the one that has started the shim."""
    async with opened(folder) as jobs:
        await ran(jobs, "true", "first")
        async with connected(folder) as client:
            await client.hello()
            yield App(client, folder / "app")


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with begun(tmp_path) as app:
        yield app


def make_tool(folder: Path) -> None:
    """Make a program in the folder that prints the folder's name."""
    folder.mkdir()
    (folder / "tool").write_text(f"#!/bin/sh\necho {folder.name}\n")
    (folder / "tool").chmod(0o755)


def held(block: EnvironmentBlock, base: dict[str, str], own: dict[str, str]) -> dict[bytes, bytes]:
    """Return what is in the block up to the end that the C library looks for."""
    entries = list(block.holding(base, own))
    assert entries.index(None) == len(entries) - 1
    return parsed(b"\0".join(entries[:-1]))


def parsed(entries: bytes) -> dict[bytes, bytes]:
    """Return the variables; none may be there twice."""
    pairs = [tuple(entry.split(b"=", 1)) for entry in entries.split(b"\0") if entry]
    assert len(pairs) == len(dict(pairs)), entries
    return dict(pairs)


def encoded(env: dict[str, str]) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
