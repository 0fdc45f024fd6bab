"""What users hold: the record of a job, the filter over records, and what a job is made from.

All are frozen pydantic models, so FastAPI returns them as they are. A field can be named through
its class (``JobRecord({JobRecord.self_id: "a"})``), read by attribute or by key
(``record["self_id"]``), and spelled with the prefix ``f_``. Wrong input raises ``InvalidJob``
naming the field. What a field may hold is in ``fields``, what models share in ``models``. This
module knows neither stores nor processes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypedDict

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    SerializerFunctionWrapHandler,
    WrapSerializer,
)
from pydantic_core import core_schema

from anodejobs.dependencies import OnDependencyFailure
from anodejobs.events import Evidence
from anodejobs.fields import (
    Command,
    Environment,
    Folder,
    JobId,
    Metadata,
    Moment,
    Payload,
    QueueName,
    Rank,
    Seconds,
    Tags,
    Text,
)
from anodejobs.jobqueue import DEFAULT_QUEUE, Priority
from anodejobs.models import Model
from anodejobs.retries import kind_of

if TYPE_CHECKING:
    from anodejobs.limits import Limits
    from anodejobs.retries import RestartPolicy, RetryPolicy

__all__ = [
    "ALIVE",
    "TERMINAL",
    "WAITING",
    "AttemptRecord",
    "BatchProgress",
    "Durations",
    "FilterOptions",
    "JobEvent",
    "JobFilter",
    "JobOptions",
    "JobRecord",
    "JobRecordDict",
    "JobSpec",
    "Metrics",
    "OnDependencyFailure",
    "Priority",
    "Scheduled",
    "Status",
    "Usage",
]


class Status(StrEnum):
    """Where a job stands. Each status has an alias ``c_…``.

    Waiting: pending, queued. Alive: starting, running, paused, stopping, failed_stop (alive after
    SIGKILL). Ended: finished, failed, failed_start, stopped, cancelled, lost.
    """

    pending = "pending"
    queued = "queued"
    starting = "starting"
    running = "running"
    paused = "paused"
    stopping = "stopping"
    finished = "finished"
    failed = "failed"
    failed_start = "failed_start"
    stopped = "stopped"
    cancelled = "cancelled"
    lost = "lost"
    failed_stop = "failed_stop"

    if TYPE_CHECKING:  # set below: as members they would appear in every schema
        c_pending = pending
        c_queued = queued
        c_starting = starting
        c_running = running
        c_paused = paused
        c_stopping = stopping
        c_finished = finished
        c_failed = failed
        c_failed_start = failed_start
        c_stopped = stopped
        c_cancelled = cancelled
        c_lost = lost
        c_failed_stop = failed_stop

    @property
    def is_terminal(self) -> bool:
        """Whether a job with this status has ended for good."""
        return self in TERMINAL


for _status in tuple(Status):
    setattr(Status, f"c_{_status}", _status)

TERMINAL = frozenset(
    {
        Status.finished,
        Status.failed,
        Status.failed_start,
        Status.stopped,
        Status.cancelled,
        Status.lost,
    }
)
WAITING = frozenset({Status.pending, Status.queued})
"""The statuses of a job that has not started yet, or not again."""
ALIVE = frozenset(Status) - TERMINAL - WAITING
"""The statuses of a job of which an attempt is under way."""


Restart = Literal["never", "on-failure", "always"]

_Status = Status  # under a name that the class attribute of the record does not hide


class JobRecord(Model):
    """The state of a job at one moment. Times are aware UTC."""

    Status: ClassVar[type[_Status]] = Status

    self_id: JobId
    """The job id."""
    status: _Status
    last_update: Moment | None = None
    """When the status last changed."""
    last_pid: int | None = None
    """The process id of the last attempt's main process."""
    dirname: str = ""
    """The directory of the ``Jobs`` that holds it."""
    cwd: str = ""
    logdir: str = ""
    logfile: str = ""
    """``<logdir>/<logfile>_out.txt`` and ``<logdir>/<logfile>_errors.txt`` are its logs; those of a
    second attempt ``<logfile>%+2_out.txt`` and so on."""
    command: str | list[str] = ""
    name: str | None = None
    description: str | None = None
    tags: list[str] = []
    metadata: dict[str, JsonValue] = {}
    user_id: str | None = None
    workflow_id: str | None = None
    batch_id: str | None = None
    payload: JsonValue = None
    """What the job was given."""
    result: JsonValue = None
    """What it gave back."""
    progress: float | None = None
    """How far it says it is, from 0.0 to 1.0."""
    priority: int = Priority.medium.value
    """The higher, the sooner it starts."""
    queue: str = DEFAULT_QUEUE
    depends_on: list[str] = []
    """The jobs that must have ended before it is queued."""
    on_dependency_failure: OnDependencyFailure = "cancel"
    run_at: Moment | None = None
    start_deadline: float | None = None
    """Seconds it may wait for a slot before it is withdrawn."""
    submitted_at: Moment | None = None
    """When it was asked to take its turn; without that a pending job waits for ``start``."""
    due_at: Moment | None = None
    """When a pending job is due: its ``run_at``, or the end of its retry delay."""
    attempt: int = 1
    max_retries: int = 0
    retry: dict[str, JsonValue] | None = None
    """The policy that says how long to wait before a retry; None: not at all."""
    restart: Restart = "never"
    restart_policy: dict[str, JsonValue] | None = None
    """How a service is restarted, where that is not as usual."""
    limits: dict[str, JsonValue] | None = None
    """The fields of ``Limits`` that are set, if any is."""
    timeout: float | None = None
    """Seconds the attempt may take."""
    created_at: Moment | None = None
    started_at: Moment | None = None
    finished_at: Moment | None = None
    exit_code: int | None = None
    """As ``subprocess.returncode``: -9 is SIGKILL; None where nobody saw the exit."""
    evidence: Evidence | None = None
    """How the exit became known: seen by the parent, read from a journal, told by the kernel."""
    error: str | None = None
    """One line on what went wrong."""
    cpu_seconds: float | None = None
    """User and system time of the last attempt that has ended, in seconds: that of its main process
    and of all descendants that were waited for, or of all its processes when they were looked at,
    whichever is more. Of what outlived the main process some may be missing; in a cgroup of its own
    it is exact. None where nobody saw the end, or only the kernel did."""
    peak_memory_bytes: int | None = None
    """The most memory that attempt had, in bytes: the peak of its largest process, or what all had
    together when they were looked at, whichever is more; in a cgroup of its own what that counts,
    cached files included. They are looked at after a second, then ever less often, and when the job
    is stopped. None where they never were and none was larger than the supervisor, or where nobody
    saw the end."""
    host: str = ""
    reached: list[_Status] = []
    """Every status the attempt has had so far, in order."""
    revision: int = 1
    """Grows with each change of the record, and is never used again for this id; the store refuses
    a write that was made from an older one."""

    if TYPE_CHECKING:

        def __init__(
            self, data: Mapping[Any, Any] | Model | None = None, /, **fields: Any
        ) -> None: ...

    @property
    def is_done(self) -> bool:
        """Whether the job has ended."""
        return self.status in TERMINAL


class JobRecordDict(dict[str, JobRecord]):
    """Records by job id, in the order they were asked for. FastAPI returns it as it is."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        records = handler(dict[str, JobRecord])
        return core_schema.no_info_after_validator_function(cls, records)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def _once(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _several(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


_AnyOf = Annotated[list[str], BeforeValidator(_several)]


class JobFilter(Model):
    """Which records to give: those that match every field set here.

    A field takes one value, or a list where any of several will do; ``tags`` must all be there.
    ``created_after`` includes the moment itself, ``created_before`` does not; both take it in ISO
    8601, too. A naive time is taken as UTC.
    """

    model_config = ConfigDict(strict=True)

    self_id: _AnyOf | None = None
    status: Annotated[list[Annotated[Status, Field(strict=False)]], BeforeValidator(_several)] | (
        None
    ) = None
    name: _AnyOf | None = None
    user_id: _AnyOf | None = None
    workflow_id: _AnyOf | None = None
    batch_id: _AnyOf | None = None
    queue: _AnyOf | None = None
    tags: Tags | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None

    if TYPE_CHECKING:

        def __init__(
            self, data: Mapping[Any, Any] | Model | None = None, /, **fields: Any
        ) -> None: ...

    def matches(self, record: JobRecord) -> bool:
        """Return whether the record is one of those asked for."""
        return (
            all(getattr(record, field) in allowed for field, allowed in self.choices())
            and set(self.tags or ()) <= set(record.tags)
            and (self.created_after is None or _created(record) >= self.created_after)
            and (self.created_before is None or _created(record) < self.created_before)
        )

    def choices(self) -> list[tuple[str, list[str] | list[Status]]]:
        """Return each field that is to have one of several values, with these values."""
        fields = self.__dict__
        return [(field, fields[field]) for field in _CHOOSABLE if fields[field] is not None]


class FilterOptions(TypedDict, total=False):
    """What ``Jobs.list_jobs`` takes beside the order, as ``JobFilter`` checks it."""

    self_id: str | Collection[str] | None
    status: str | Collection[str] | None
    name: str | Collection[str] | None
    user_id: str | Collection[str] | None
    workflow_id: str | Collection[str] | None
    batch_id: str | Collection[str] | None
    queue: str | Collection[str] | None
    tags: Collection[str] | None
    created_after: datetime | str | None
    created_before: datetime | str | None


_CHOOSABLE = ("self_id", "status", "name", "user_id", "workflow_id", "batch_id", "queue")


def _created(record: JobRecord) -> datetime:
    return record.created_at or datetime.min.replace(tzinfo=UTC)


def _with_kind(value: Any, dump: SerializerFunctionWrapHandler) -> Any:
    """Dump a policy as it is taken again: its fields alone do not say which one it is."""
    fields = dump(value)
    return {"kind": kind_of(type(value)), **fields} if isinstance(value, Model) else fields


class JobSpec(Model):
    """What a job is made from: the arguments of ``Jobs.run``, checked."""

    model_config = ConfigDict(strict=True)

    command: Command
    """A string goes to ``/bin/sh -c``, a list is executed directly."""
    job_id: JobId | None = None
    cwd: Folder | None = None
    # Factories: a default that is an object is copied deeply for each job.
    envs: Annotated[Environment, Field(repr=False, default_factory=dict)]
    inherit_env: bool = True
    name: Text | None = None
    description: Text | None = None
    tags: Annotated[Tags, Field(default_factory=list)]
    metadata: Annotated[Metadata, Field(default_factory=dict)]
    user_id: Text | None = None
    workflow_id: Text | None = None
    timeout: Seconds | None = None
    stop_grace: Seconds | None = None
    start_grace: Seconds = 0.0
    leftovers: Literal["kill", "leave"] = "kill"
    on_host_death: Literal["leave", "stop"] = "leave"
    payload: Payload = None
    priority: Rank = Priority.medium.value
    queue: QueueName = DEFAULT_QUEUE
    depends_on: Annotated[
        list[JobId | Annotated[int, Field(ge=0)]], BeforeValidator(_listed), AfterValidator(_once)
    ] = Field(default_factory=list)
    on_dependency_failure: OnDependencyFailure = "cancel"
    run_at: Moment | None = None
    start_deadline: Seconds | None = None
    max_retries: Annotated[int, Field(ge=0, lt=2**31)] = 0
    retry_delay: Seconds | None = None
    retry: Annotated[Any, WrapSerializer(_with_kind)] = None
    restart: Any = "never"
    limits: Any = None

    if TYPE_CHECKING:

        def __init__(
            self, data: Mapping[str, Any] | Model | None = None, /, **fields: Any
        ) -> None: ...


if TYPE_CHECKING:
    # Read-only all through, so that a checker takes a dict[str, int] for JSON, too.
    AnyJson = Mapping[str, "AnyJson"] | Sequence["AnyJson"] | str | int | float | bool | None
else:  # what is named here for checkers comes from modules that know this one
    AnyJson = JsonValue
    Limits = RestartPolicy = RetryPolicy = object


class JobOptions(TypedDict, total=False):
    """What ``Jobs.run`` takes beside the command and the id, as ``JobSpec`` checks it.

    Times are in seconds. ``cwd`` is where the program starts, by default where the application is.
    Its environment is the application's (unless ``inherit_env=False``), then ``envs``. ``timeout``:
    after this long it is stopped, and ``failed``. ``stop_grace``: from SIGTERM to SIGKILL.
    ``start_grace``: a non-zero exit within it is ``failed_start``. ``leftovers``: whether processes
    that outlive the main one are killed, or left. ``on_host_death``: whether the job runs on when
    no application has been there for 5 seconds, or is stopped; inline jobs have no choice.

    ``payload`` is any JSON value, for the job to read. For a job that takes its turn: ``priority``
    is a ``Priority``, its name or any int, ``queue`` where it waits, ``depends_on`` the ids of jobs
    that must have succeeded before (``on_dependency_failure``: what it does where one has not),
    ``run_at`` when it may start at the earliest (a datetime or ISO 8601; a naive time is UTC),
    ``start_deadline`` how long it may wait. A failed attempt is followed by up to ``max_retries``
    others, after ``retry_delay`` or as a ``RetryPolicy`` says (``retry``). ``restart`` is for
    services: ``"on-failure"``, ``"always"`` or a ``RestartPolicy``. ``limits`` are ``Limits``, or a
    mapping of their fields.
    """

    cwd: str | os.PathLike[str] | None
    envs: dict[str, str]
    inherit_env: bool
    name: str | None
    description: str | None
    tags: list[str] | tuple[str, ...] | set[str] | frozenset[str]
    metadata: Mapping[str, AnyJson]
    user_id: str | None
    workflow_id: str | None
    timeout: float | None
    stop_grace: float | None
    start_grace: float
    leftovers: Literal["kill", "leave"]
    on_host_death: Literal["leave", "stop"]
    payload: AnyJson
    priority: int | str
    queue: str
    depends_on: Collection[str | int]
    on_dependency_failure: OnDependencyFailure
    run_at: datetime | str | None
    start_deadline: float | None
    max_retries: int
    retry_delay: float | None
    retry: RetryPolicy | None
    restart: Restart | RestartPolicy
    limits: Limits | Mapping[str, Any] | None
    call: str


class AttemptRecord(Model):
    """One attempt of a job, as ``Jobs.attempts`` tells it."""

    attempt: int
    """1 for the first."""
    status: Status
    started_at: Moment | None = None
    finished_at: Moment | None = None
    pid: int | None = None
    exit_code: int | None = None
    evidence: Evidence | None = None
    error: str | None = None
    cpu_seconds: float | None = None
    """As in ``JobRecord``."""
    peak_memory_bytes: int | None = None


class Scheduled(Model):
    """A schedule, as ``Jobs.schedules`` tells it."""

    name: str
    schedule: dict[str, JsonValue]
    """The fields of its ``Schedule``, as JSON."""
    command: str | list[str]
    next_at: Moment | None = None
    """When it fires next, which may be a moment ago; None: never again."""
    last_job: str | None = None
    """The id of the last job that it made."""


class BatchProgress(Model):
    """How far a batch is."""

    total: int
    ended: int
    counts: dict[Status, int]
    """How many of its jobs have each status."""

    @property
    def fraction(self) -> float:
        """The part that has ended, from 0.0 to 1.0."""
        return self.ended / self.total


class Durations(Model):
    """How long jobs ran, each from the start of its last attempt to its end, in seconds."""

    count: int = 0
    """How many they are."""
    mean: float | None = None
    """None where there is none."""
    max: float | None = None


class Metrics(Model):
    """How many jobs there are of what, as ``Jobs.metrics`` tells it: all of one moment."""

    by_status: dict[Status, int]
    """With every status."""
    by_tag: dict[str, int]
    """A job counts for each of its tags."""
    by_queue: dict[str, int]
    by_priority: dict[int, int]
    durations: Durations
    """Of the jobs that have ended, as far as they have started and were not cancelled."""
    queue_depth: dict[str, int]
    """How many jobs wait for a slot, for each queue in which there are any."""
    occupied_slots: dict[str, int]
    """How many jobs are under way, likewise: each holds a slot, however it was started."""
    retries: int
    """Attempts after the first, restarts included, and those that wait for their time."""


class JobEvent(Model):
    """One thing that happened, as ``Jobs.events`` and ``Jobs.history`` tell it.

    ``kind`` is ``status`` (the job went from ``previous`` to ``status``), ``log`` (``stream`` has
    grown to ``offset`` bytes), ``progress`` (it says how far it is) or ``heartbeat`` (nothing
    happened). Only status events are kept; the others carry the ``seq`` of the last status event
    before them, so that any ``seq`` can be given as ``after``.
    """

    seq: int
    kind: Literal["status", "log", "progress", "heartbeat"]
    at: Moment
    job_id: str | None = None
    attempt: int | None = None
    previous: Status | None = None
    status: Status | None = None
    why: str | None = None
    ended: AttemptRecord | None = None
    """The attempt that has ended, where another one is to follow."""
    stream: Literal["stdout", "stderr"] | None = None
    offset: int | None = None
    progress: float | None = None
    """From 0.0 to 1.0."""
    text: str | None = None
    """What the job says beside it, one line."""


class Usage(Model):
    """What the processes of a job use at the moment."""

    processes: int
    cpu_seconds: float
    """User and system time of the processes alive now."""
    memory_bytes: int
    """Resident set, summed; pages shared between processes count for each."""
