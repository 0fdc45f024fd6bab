"""What happened to a job, said in the past tense.

Executors report events, callers cause them, and ``transitions`` turns a record and an event into
the next record. Nothing here knows records, stores or processes, and nothing but the standard
library is imported, so that a supervising process can stay small.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from sys import intern
from typing import Any, Literal

Evidence = Literal["observed", "recorded", "adopted"]


def utc_now() -> datetime:
    """Return the present moment as aware UTC."""
    return datetime.now(UTC)


_quoted = encode_basestring_ascii
_NO_PROCESS = (None,) * 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run of a job's process: the mark by which it is recognised, then and after a crash.

    A pid alone names nobody: it is used again. ``token`` is random and in the environment of every
    process of the attempt; ``start_time`` and ``boot_id`` say which process the pid meant.
    """

    token: str
    supervisor: str
    pid: int | None = None
    start_time: float | None = None
    boot_id: str | None = None
    started_monotonic: float | None = None
    pipes: tuple[int, int] | None = None
    """The inode numbers of the pipes that the process has as stdout and stderr."""
    cgroup: str | None = None
    """The path of the cgroup that is its own, where it has one."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {name: getattr(self, name) for name in Attempt.__slots__}

    def to_text(self) -> str:
        """Return it as JSON. Written three times a job, so by hand: a fifth of the usual time."""
        pid, started, boot_id = self.pid, self.start_time, self.boot_id
        monotonic, pipes = self.started_monotonic, self.pipes
        cgroup = "" if self.cgroup is None else f',"cgroup":{_quoted(self.cgroup)}'
        if (pid, started, boot_id, monotonic, pipes, self.cgroup) == _NO_PROCESS:
            return (
                f'{{"token":{_quoted(self.token)},"supervisor":{_quoted(self.supervisor)},'
                '"pid":null,"start_time":null,"boot_id":null,"started_monotonic":null,"pipes":null}'
            )
        return (
            f'{{"token":{_quoted(self.token)},"supervisor":{_quoted(self.supervisor)},'
            f'"pid":{"null" if pid is None else pid},'
            f'"start_time":{"null" if started is None else started},'
            f'"boot_id":{"null" if boot_id is None else _quoted(boot_id)},'
            f'"started_monotonic":{"null" if monotonic is None else monotonic},'
            f'"pipes":{"null" if pipes is None else f"[{pipes[0]},{pipes[1]}]"}'
            f"{cgroup}}}"
        )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Attempt:
        """Return what ``to_json`` was made from."""
        pipes = fields["pipes"]
        return cls(
            token=fields["token"],
            supervisor=intern(fields["supervisor"]),  # of thousands the same
            pid=fields["pid"],
            start_time=fields["start_time"],
            boot_id=fields["boot_id"],
            started_monotonic=fields["started_monotonic"],
            pipes=(pipes[0], pipes[1]) if pipes else None,
            cgroup=fields.get("cgroup"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at a moment."""

    at: datetime = field(default_factory=utc_now)

    @property
    def why(self) -> str | None:
        """One line for the history of the job, where there is something to say."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Event):
    """The job was asked to take its turn."""

    is_ready: bool
    """Whether it waits for nothing but a slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readied(Event):
    """A pending job waits for nothing but a slot any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted(Event):
    """A queued job has got a slot: an attempt is about to be started."""

    attempt: Attempt
    host: str = ""
    """The machine that starts it, where that may be another one than it was asked for on."""
    dirname: str = ""
    """The directory there, likewise."""
    logdir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn(Event):
    """A job that had not started is not to start any more."""

    error: str | None = None
    """Why, where nobody has asked for it."""

    @property
    def why(self) -> str | None:
        return self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Relinked(Event):
    """What a job that has not started depends on was changed."""

    depends_on: tuple[str, ...]

    @property
    def why(self) -> str | None:
        return f"depends on {', '.join(map(repr, self.depends_on)) or 'nothing'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The program was exec'd."""

    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed(Event):
    """The program could not be exec'd."""

    error: str
    retry_at: datetime | None = None
    """When the job is tried again, if it is."""

    @property
    def why(self) -> str | None:
        return self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed(Event):
    """A supervisor took over the care for an attempt, before it has looked for the process."""

    @property
    def why(self) -> str | None:
        return "its supervisor had gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted(Event):
    """The process of a claimed attempt was found alive."""

    attempt: Attempt
    gap: bool = False
    """Whether output may be missing from the logs."""

    @property
    def why(self) -> str | None:
        return "adopted; the log may have a gap" if self.gap else "adopted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(Event):
    """All processes of the job were sent SIGSTOP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """All processes of the job were sent SIGCONT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Event):
    """The job was asked to end: by a caller, or because of ``error``, which makes it a failure."""

    error: str | None = None
    reason: str | None = None

    @property
    def why(self) -> str | None:
        return self.error or self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class StopFailed(Event):
    """Processes of the job were alive after SIGKILL."""

    error: str = "processes of it are alive after SIGKILL"

    @property
    def why(self) -> str | None:
        return self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited(Event):
    """The main process ended and its exit code is known."""

    exit_code: int
    evidence: Evidence
    ended_by_itself: bool = False
    """Whether it was dead already when it was to be signalled to end."""
    in_start_grace: bool = False
    """Whether it ended within ``start_grace`` seconds of its start."""
    log_error: str | None = None
    """Why output could not be written to the logs, where that happened."""
    limit: str | None = None
    """Which of its limits ended it, where that can be told."""
    cpu_seconds: float | None = None
    """What its processes have used, as far as it is known."""
    peak_memory_bytes: int | None = None
    """The most memory they have had, as far as it is known."""
    result: Any = None
    """What it wrote as its result, a JSON value."""
    result_error: str | None = None
    """Why what it wrote is no result."""
    progress: float | None = None
    """How far it said it was, at last."""
    retry_at: datetime | None = None
    """When the job is started again, if it is."""
    gave_up: str | None = None
    """Why it is not, where its policy had to say so."""

    @property
    def why(self) -> str | None:
        code = self.exit_code
        end = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{end}; {self.log_error}" if self.log_error else end


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Event):
    """The process is gone and nobody saw how it ended."""

    error: str
    retry_at: datetime | None = None
    """When the job is tried again, if it is."""
    is_failure: bool = False
    """Whether it is to count as a failure of the job."""

    @property
    def why(self) -> str | None:
        return self.error


End = Exited | StartFailed | Lost
"""What an attempt ends with."""
