"""What the commands have in common."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "there"],
        ["doctor", "--help"],
        ["migrate", "memory://", "file://there"],
        ["migrate", "--help"],
    ],
    ids=" ".join,
)
def test_a_command_to_which_nobody_listens_ends_quietly(tmp_path: Path, arguments: list[str]):
    arguments = [a.replace("file://there", (tmp_path / "there").as_uri()) for a in arguments]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    heard, said = os.pipe()
    os.close(heard)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", f"anodejobs.{arguments[0]}", *arguments[1:]],
            cwd=tmp_path,
            env=environ,
            stdout=said,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(said)
    assert "Error" not in ended.stderr
    assert ended.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("command", ["doctor", "migrate"])
def test_a_command_says_what_it_is_for(command: str):
    arguments = [sys.executable, "-m", f"anodejobs.{command}", "--help"]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert f"python -m anodejobs.{command}" in said
    assert "db_path" in said
