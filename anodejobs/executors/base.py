"""The contract between the supervisor and whatever runs the processes.

An executor speaks in events and knows neither records nor stores. Only the standard library is
imported here, so that an executor can live in a small process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, Literal

from anodejobs.errors import ExecutorError
from anodejobs.events import (
    Adopted,
    Attempt,
    Exited,
    Lost,
    Started,
    StartFailed,
    StopFailed,
    StopRequested,
)
from anodejobs.jobfiles import job_files
from anodejobs.logs import LogTail, log_name, rotated_folder

_quoted = encode_basestring_ascii

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")

Tell = Callable[[Started | Adopted | StopRequested | StopFailed], Awaitable[None]]
"""Is awaited with what happens to an attempt before its end; returns once that is on record."""

OnGrowth = Callable[[str, Stream, int], None]
"""Called on the event loop with the job id, the stream and the bytes its log has now."""


def new_token() -> str:
    """Return a mark for an attempt that no other attempt anywhere bears."""
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPlan:
    """Where an attempt's output goes, and when a log file is rotated."""

    stdout: str
    stderr: str
    max_bytes: int | None = None
    backups: int = 1

    def path(self, stream: Stream) -> Path:
        """Return the path of the stream's current log file."""
        return Path(self.stdout if stream == "stdout" else self.stderr)

    def of_attempt(self, number: int) -> LogPlan:
        """Return where the output of an attempt of the job goes; as it is for the first one."""
        if number == 1:
            return self
        stdout, stderr = (_numbered(path, number) for path in (self.stdout, self.stderr))
        return replace(self, stdout=stdout, stderr=stderr)


def _numbered(path: str, number: int) -> str:
    """Return the log of a later attempt: ``job%+2_out.txt``, a name that no job id leads to."""
    folder, slash, name = path.rpartition("/")
    stem, line, ending = name.rpartition("_")
    return f"{folder}{slash}{stem}%+{number}{line}{ending}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All that is needed to start an attempt, and to start another one after a crash.

    It holds the environment, so its repr does not show it and it is never logged.
    """

    job_id: str
    argv: tuple[str, ...]
    cwd: str
    base_env: dict[str, str] = field(repr=False)
    """The application's environment when the job was asked for."""
    envs: dict[str, str] = field(repr=False)
    """What the caller put over it."""
    logs: LogPlan
    timeout: float | None = None
    stop_grace: float
    start_grace: float = 0.0
    leftovers: Literal["kill", "leave"] = "kill"
    on_host_death: Literal["leave", "stop"] = "leave"
    files: str = ""
    """The folder of ``JobFiles``; empty: the job is told of none."""
    limits: dict[str, int | float | str] | None = None
    """The fields of ``AttemptLimits`` that are set, if any is."""
    earlier: int = 0
    """Of how many attempts of earlier runs there may be files here, which go before the first."""
    umask: int | None = None
    """The application's when the job was asked for; None: unknown. A child of it has it anyway."""
    _texts: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def of_attempt(self, number: int) -> Launch:
        """Return what starts an attempt of the job: each has logs of its own."""
        return self if number == 1 else replace(self, logs=self.logs.of_attempt(number))

    def traces(self, attempt_number: int) -> Iterator[str | os.PathLike[str]]:
        """Give all that an attempt, the one that this launch is of, may leave on disk.

        The payload is not among it: that is the job's.
        """
        for stream in STREAMS:
            path = self.logs.path(stream)
            yield path
            yield rotated_folder(path)
        if self.files:
            yield from job_files(self.files).answers(log_name(self.job_id), attempt_number)

    def marks(self, attempt_number: int, token: str) -> dict[str, str]:
        """Return what an attempt has in its environment beside what was asked for."""
        marks = {
            "ANODEJOBS_JOB_ID": self.job_id,
            "ANODEJOBS_ATTEMPT": str(attempt_number),
            "ANODEJOBS_TOKEN": token,
        }
        if self.files:
            marks |= job_files(self.files).variables(log_name(self.job_id), attempt_number)
        return marks

    def to_text(self) -> str:
        """Return it as JSON, without ``base_env``: many launches share one."""
        lasting, passing = self.parts()
        return f"{{{lasting},{passing}}}"

    def parts(self) -> tuple[str, str]:
        """Return the two halves of ``to_text``, made once: the store and the shim each want them.

        First what is to be known for as long as the process runs, then what is needed to start it.
        """
        if not self._texts:
            # By hand, in a third of the time: it is made for every job.
            logs = self.logs
            self._texts[:] = (
                f'"job_id":{_quoted(self.job_id)},"logs":{{"stdout":{_quoted(logs.stdout)},'
                f'"stderr":{_quoted(logs.stderr)},"max_bytes":{_number(logs.max_bytes)},'
                f'"backups":{logs.backups}}},"timeout":{_number(self.timeout)},'
                f'"stop_grace":{self.stop_grace!r},"start_grace":{self.start_grace!r},'
                f'"leftovers":"{self.leftovers}","on_host_death":"{self.on_host_death}"',
                f'"argv":[{",".join(map(_quoted, self.argv))}],"cwd":{_quoted(self.cwd)},'
                f'"envs":{json.dumps(self.envs) if self.envs else "{}"},'
                f'"files":{_quoted(self.files)},'
                f'"limits":{json.dumps(self.limits) if self.limits else "null"}'
                + (f',"earlier":{self.earlier}' if self.earlier else "")
                + (f',"umask":{self.umask}' if self.umask is not None else ""),
            )
        lasting, passing = self._texts
        return lasting, passing

    @classmethod
    def from_json(cls, fields: dict[str, Any], base_env: dict[str, str]) -> Launch:
        """Return what ``to_text`` was made from."""
        logs = fields["logs"]
        return cls(
            job_id=fields["job_id"],
            argv=tuple(fields["argv"]),
            cwd=fields["cwd"],
            base_env=base_env,
            envs=fields["envs"],
            logs=LogPlan(
                stdout=logs["stdout"],
                stderr=logs["stderr"],
                max_bytes=logs["max_bytes"],
                backups=logs["backups"],
            ),
            timeout=fields["timeout"],
            stop_grace=fields["stop_grace"],
            start_grace=fields["start_grace"],
            leftovers=fields["leftovers"],
            on_host_death=fields.get("on_host_death", "leave"),
            files=fields.get("files", ""),
            limits=fields.get("limits"),
            earlier=fields.get("earlier", 0),
            umask=fields.get("umask"),
        )


def _number(value: float | None) -> str:
    return "null" if value is None else repr(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeUsage:
    """What the processes of an attempt use together."""

    processes: int
    cpu_seconds: float
    memory_bytes: int


async def _unknown(job_id: str, token: str) -> bool:
    """Know of no attempt that has ended, as where there is no store."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The application that an executor works for, as the executor sees it."""

    own: Callable[[Coroutine[None, None, None], str], asyncio.Task[None]]
    """Run a task, with a name, for as long as the executor is open."""
    on_inherited: Callable[[str, str], None]
    """Called with the job id and the token of an attempt that nobody waits for, and of which there
    is something to be recorded: it is to be waited for now."""
    on_departure: Callable[[], None]
    """Called when another application has gone and may have left things half done."""
    is_over: Callable[[str, str], Awaitable[bool]] = _unknown
    """Return whether the store says that an attempt has ended, by its job id and token: others may
    have seen it through since its start was put on record. Raises StoreError."""


class Superseded(ExecutorError):
    """A newer anodejobs has come to where this one is at work: what is to start is its to start."""


class Executor(ABC):
    """Starts, follows, signals and adopts the processes of jobs.

    ``start`` or ``adopt`` take an attempt on; ``wait`` and then ``clean`` see it through. ``stop``,
    ``signal`` and ``usage`` also reach an attempt that another supervisor has taken on. Cancelling
    a call leaves the processes as they are.
    """

    outlives_host: bool
    """Whether its jobs, their pumps and the knowledge of their exits survive the application."""

    supervisor: str
    """Names who takes attempts on here, so that others can tell whether it still lives. Known once
    the executor is open."""

    @abstractmethod
    async def open(self, host: Host) -> None:
        """Get ready to work for the application. Nothing is started before it is needed."""

    def is_mine(self, supervisor: str) -> bool:
        """Return whether it is this supervisor, by whatever name."""
        return supervisor == self.supervisor

    @abstractmethod
    def is_alive(self, supervisor: str) -> bool:
        """Return whether a supervisor, this or another, still looks after its attempts."""

    @abstractmethod
    async def outlive(self, supervisor: str) -> None:
        """Return when another supervisor has gone."""

    @abstractmethod
    async def held(self) -> set[str]:
        """Return the tokens of the attempts that are in its hands now."""

    @abstractmethod
    async def prepare(self) -> StartFailed | None:
        """Get ready for a start that is about to be recorded; say where none can succeed.

        With the record there must be somebody who notices if this application dies now. Raises
        Superseded.
        """

    async def watch_for_newer(self) -> None:
        """Raise Superseded as soon as that is so; never return."""
        await asyncio.get_running_loop().create_future()

    @abstractmethod
    async def start(
        self, launch: Launch, attempt: Attempt, number: int
    ) -> Started | StartFailed | Lost:
        """Execute the program in a session of its own, its output pumped to the logs.

        Returns once the program is exec'd. What the system refuses is a StartFailed; Lost: the
        program ran and has ended, and its process could not be got hold of. Where the executor
        outlives its hosts, asking again for the same token starts nothing and answers the same.
        ExecutorError: nothing can have been started. Where that is not known, this does not return.
        Right before there is a process, what earlier runs left that would be taken for this one's
        is removed: nobody else knows when that is, and that it is done once.
        """

    def has_ended(self, token: str) -> bool:
        """Return whether an attempt that was just started is known to have ended.

        With True its end is recorded in one write with its start: nothing but the end is told by
        ``wait``, which returns soon.
        """
        return False

    @abstractmethod
    async def adopt(self, launch: Launch, attempt: Attempt) -> Adopted | Lost:
        """Take on a process whose supervisor has gone, if it is still there.

        ``attempt.pid`` is None where the supervisor died before it told the pid; then the process
        is looked for by its token.
        """

    @abstractmethod
    async def wait(self, token: str, tell: Tell) -> Exited | Lost:
        """Return how the main process ended, once what it had written is in the logs.

        When its ``timeout`` is over it is stopped, which ``tell`` is told before.
        """

    @abstractmethod
    async def clean(self, token: str) -> None:
        """End what the main process, which has ended, left behind; or leave it, as launched.

        With this the attempt is over for the executor, which forgets it; its end must be on
        record. Nothing happens where the attempt is not in its hands.
        """

    @abstractmethod
    async def stop(self, attempt: Attempt, grace: float, *, may_hasten: bool = True) -> bool:
        """End every process of the attempt: SIGTERM, after ``grace`` seconds SIGKILL.

        Returns whether all are gone. A second call while the first is under way can only shorten
        the grace, and where it must not hasten not even that.
        """

    @abstractmethod
    async def signal(self, attempt: Attempt, signum: int) -> None:
        """Send a signal to every process of the attempt."""

    @abstractmethod
    async def usage(self, attempt: Attempt) -> TreeUsage:
        """Return what the processes of the attempt use now."""

    @abstractmethod
    def follow(
        self, token: str, stream: Stream, tail: LogTail, on_growth: Callable[[], None]
    ) -> AbstractContextManager[None]:
        """Keep for the tail what it has not read, and tell at once when there is more for it.

        That goes for an attempt that is still to come, too.
        """

    @abstractmethod
    def report_growth(self, on_growth: OnGrowth | None) -> None:
        """Tell of all log growth from now on, some tens of milliseconds late; None: of none."""

    @abstractmethod
    def attend(self) -> None:
        """See to it that we hear of the attempts of others, of whom one has just written something.

        Nothing is started for that.
        """

    @abstractmethod
    def wind_down(self) -> None:
        """Put nothing off from now on: the application is about to close."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything. Idempotent.

        Processes that still run go on where the executor outlives the application; else they end.
        """
