"""``/bin/true`` eight at once, beside supervisord.

supervisord takes no commands as they come: each job is a program in its configuration, which its
XML-RPC starts. How they end it does not tell, it is asked, in the same request that starts others.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Stopwatch
from benchmarks.peers import installed
from benchmarks.programs import exit_code_of, expect, trivial
from benchmarks.rounds import Figures, Row, SideFailedError, Size, Subject, at_least
from benchmarks.throughput import RATE, anodejobs, figures_of

PATIENCE_S = 30.0
LOOK_EVERY_S = 0.005

_SERVER = """\
[supervisord]
nodaemon = true
logfile = %(place)s/log
pidfile = %(place)s/pid
childlogdir = %(place)s
[unix_http_server]
file = %(place)s/socket
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
_PROGRAM = """\
[program:job-%d]
command = %s
autostart = false
autorestart = false
startsecs = 0
"""


async def anodejobs_as_many(place: Path, size: Size) -> Figures:
    return await anodejobs(place, {**size, "jobs": size["our_jobs"]})


async def supervisord(place: Path, size: Size) -> Figures:
    with _serving(place, size["jobs"]) as server:
        watch = Stopwatch()
        _run_all(server, size)
        figures = figures_of(watch, size["jobs"])
        infos: Any = server.supervisor.getAllProcessInfo()
        for info in infos:
            number = int(info["name"].removeprefix("job-"))
            wanted = ("EXITED", exit_code_of(number))
            expect(f"end of {number}", (info["statename"], info["exitstatus"]), wanted)
    return figures


def _run_all(server: xmlrpc.client.ServerProxy, size: Size) -> None:
    waiting = iter(range(size["jobs"]))
    running: list[str] = []
    while True:
        calls = []
        while len(running) < size["live"] and (number := next(waiting, None)) is not None:
            running.append(f"job-{number}")
            calls.append(_call("startProcess", running[-1], False))
        if not running:
            return
        looks = [_call("getProcessInfo", name) for name in running]
        answers: Any = server.system.multicall([*calls, *looks])
        ended = {info["name"] for info in answers[len(calls) :] if not info["pid"]}
        running = [name for name in running if name not in ended]
        if not ended:
            time.sleep(LOOK_EVERY_S)


def _call(method: str, *params: object) -> dict[str, object]:
    return {"methodName": f"supervisor.{method}", "params": params}


@contextlib.contextmanager
def _serving(place: Path, jobs: int) -> Iterator[xmlrpc.client.ServerProxy]:
    program = installed("supervisord")
    configuration = place / "configuration"
    programs = (_PROGRAM % (number, *trivial(number)) for number in range(jobs))
    configuration.write_text("".join((_SERVER % {"place": place}, *programs)))
    with (place / "output").open("w") as output:
        process = subprocess.Popen([program, "-c", configuration], stdout=output, stderr=output)
    try:
        server = xmlrpc.client.ServerProxy("http://localhost", _Transport(place / "socket"))
        _wait_for(server, process)
        yield server
    finally:
        process.terminate()
        process.wait()


def _wait_for(server: xmlrpc.client.ServerProxy, process: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < PATIENCE_S:
        with contextlib.suppress(OSError):
            server.supervisor.getState()
            return
        time.sleep(LOOK_EVERY_S)
    raise SideFailedError("supervisord does not answer")


class _Transport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        return _Connection(self._path)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


SIDES = {"anodejobs": anodejobs_as_many, "supervisord": supervisord}

SUBJECTS = (
    Subject(
        name="vs-supervisord@8",
        module="supervisord",
        sides=tuple(SIDES),
        size={"jobs": 200, "our_jobs": 1000, "live": 8},
        quick={"jobs": 16, "our_jobs": 16, "live": 8},
        rows=(Row(RATE, "supervisord", at_least(6.0)),),
    ),
)
