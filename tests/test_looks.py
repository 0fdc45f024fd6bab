"""How often all processes are looked at, and by what one is recognised."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from subprocess import Popen

import pytest

from anodejobs.executors import looks, tree
from anodejobs.executors.base import new_token


async def test_a_look_that_others_made_late_puts_off_the_next_one_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine it may take seconds, in which it costs nothing."""

    def take_late(latest: tree.Snapshot) -> tree.Snapshot:
        threading.Event().wait(0.2)
        return latest

    monkeypatch.setattr(tree, "take_snapshot", take_late)
    monkeypatch.setattr(looks, "_LOOK_EVERY_S", 0.0)
    async with asyncio.timeout(5):
        shared = looks.Looks()
        await shared.take_soon()
        await shared.take_soon()


@pytest.mark.skipif(not tree.IS_LINUX, reason="elsewhere an environment is there with the process")
def test_a_process_is_recognised_from_when_it_has_been_spawned() -> None:
    """Its application may be killed at that moment: it would be lost, and run on."""
    for _ in range(20):
        token = new_token()
        pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], {"ANODEJOBS_TOKEN": token})
        try:
            assert tree.read_token(pid) == token
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.skipif(not tree.IS_LINUX, reason="elsewhere an environment is there with the process")
def test_a_process_whose_environment_comes_while_it_is_looked_at_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = new_token()
    process = Popen(["/bin/sleep", "600"], env={"ANODEJOBS_TOKEN": token})
    try:
        assert tree.read_token(process.pid) == token
        early, environ = [b"", b""], tree._environ
        monkeypatch.setattr(tree, "_environ", lambda at: early.pop() if early else environ(at))
        assert tree.read_token(process.pid) == token
        assert not early
    finally:
        process.kill()
        process.wait()


def test_what_has_no_environment_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(seconds: float) -> None:
        raise AssertionError("it was taken for one that is being executed")

    pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
    try:
        assert tree.read_token(pid) is None
        monkeypatch.setattr("time.sleep", pause)
        assert tree.read_token(pid) is None
        assert tree.read_token(2) is None  # of the kernel, where it is to be seen
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert tree.read_token(pid) is None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
