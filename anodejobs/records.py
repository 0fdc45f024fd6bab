"""What users hold: the record of a job, the filter over records, and what a job is made from.

All are frozen pydantic models, so FastAPI returns them as they are. A field can be named through
its class (``JobRecord({JobRecord.self_id: "a"})``), read by attribute or by key
(``record["self_id"]``), and spelled with the prefix ``f_``. Wrong input raises ``InvalidJob``
naming the field. This module knows neither stores nor processes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypedDict

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
)
from pydantic_core import from_json

from anodejobs.errors import InvalidJob
from anodejobs.events import Evidence
from anodejobs.jobqueue import DEFAULT_QUEUE, Priority

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


def _as_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the years that can be told") from None


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("cannot be written as UTF-8") from None
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a NUL byte")
    return _text(text)


def _json(value: JsonValue) -> JsonValue:
    try:
        text = _text(json.dumps(value, ensure_ascii=False, allow_nan=False))
        from_json(f'{{"metadata":{text}}}')  # which has a limit to how deep it reads
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None
    return value


def _job_id(text: str) -> str:
    if not 1 <= len(text) <= 200:
        raise ValueError(f"must have 1 to 200 characters, not {len(text)}")
    if not text.isprintable():
        raise ValueError("must be printable: no control characters")
    return text


def _command(command: str | list[str]) -> str | list[str]:
    if not command or not (command if isinstance(command, str) else command[0]).strip():
        raise ValueError("is empty")
    for part in (command,) if isinstance(command, str) else command:
        _no_nul(part)
    return command


def _environment(envs: dict[str, str]) -> dict[str, str]:
    for name, value in envs.items():
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{name!r} cannot name an environment variable")
        try:
            bad = "a NUL byte" if b"\0" in os.fsencode(value) else None
            os.fsencode(name)
        except UnicodeEncodeError:
            bad = "what the system cannot encode"
        if bad is not None:  # which is not shown: it may be a secret
            raise ValueError(f"the value of {name!a} contains {bad}")
    return envs


def _rank(value: Any) -> Any:
    """Take a priority by its name too."""
    if isinstance(value, str):
        if value not in Priority.__members__:
            raise ValueError(f"must be {', '.join(map(repr, Priority.__members__))} or an int")
        return Priority[value].value
    return value.value if isinstance(value, Priority) else value


def _seconds(value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise ValueError("must be a finite number of seconds, zero or more")
    return value


def check_seconds(field: str, value: float) -> float:
    """Return a number of seconds, or raise ``InvalidJob``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InvalidJob(field, "must be a number of seconds")
    try:
        return _seconds(float(value))
    except (ValueError, OverflowError):
        raise InvalidJob(field, "must be a finite number of seconds, zero or more") from None


Moment = Annotated[datetime, Field(strict=False), AfterValidator(_as_utc)]
Seconds = Annotated[float, AfterValidator(_seconds)]
JobId = Annotated[str, AfterValidator(_job_id)]
Text = Annotated[str, AfterValidator(_text)]
QueueName = Annotated[str, AfterValidator(_job_id)]
Payload = Annotated[JsonValue, AfterValidator(_json)]
Rank = Annotated[int, BeforeValidator(_rank), Field(ge=-(2**63), lt=2**63)]
OnDependencyFailure = Literal["cancel", "run", "hold"]
Restart = Literal["never", "on-failure", "always"]
Metadata = Annotated[dict[str, JsonValue], AfterValidator(_json)]
Tags = Annotated[
    list[Text],
    Field(strict=False),
    BeforeValidator(lambda v: list(v) if isinstance(v, (set, frozenset, tuple)) else v),
]


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # which pydantic does not export


class _NamesFields(ModelMetaclass):
    """Makes ``Model.field`` and ``Model.f_field`` give the field's name."""

    _is_making = False

    def __new__(mcs, *args: Any, **kwargs: Any) -> Any:
        # Asked while pydantic collects the fields of a subclass, the honest answer is "no default".
        _NamesFields._is_making = True
        try:
            return super().__new__(mcs, *args, **kwargs)
        finally:
            _NamesFields._is_making = False

    def __getattr__(cls, name: str) -> Any:  # noqa: N805  # a metaclass's self is a class
        field = name.removeprefix("f_")
        if not _NamesFields._is_making and field in cls.__dict__.get("__pydantic_fields__", ()):
            return field
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides it from checkers


_set = object.__setattr__  # past the frozen model's own


class _Model(BaseModel, metaclass=_NamesFields):
    """The habits all models share: a mapping or keywords in, attributes or keys out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    _all_fields: ClassVar[set[str]]
    """The names of all fields: one set, shared by all that ``trusted`` makes."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls._all_fields = set(cls.model_fields)

    def __init__(self, data: Mapping[str, Any] | _Model | None = None, /, **fields: Any) -> None:
        if isinstance(data, _Model):
            data = data.model_dump(exclude_unset=True)
        fields = {**(data or {}), **fields}
        for name in fields:
            if not isinstance(name, str):
                raise InvalidJob(repr(name), "there is no such field")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _named(error) from None

    def __getitem__(self, key: str) -> Any:
        field = key.removeprefix("f_")
        if field not in type(self).model_fields:
            raise KeyError(key)
        return getattr(self, field)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            field = name.removeprefix("f_")
            if field != name and field in type(self).model_fields:
                return getattr(self, field)
            return super().__getattr__(name)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with the changes, which are trusted to be right.

        As ``model_copy(update=changes)``, in a fraction of the time: it is made for every event.
        """
        return self.trusted({**self.__dict__, **changes})

    @classmethod
    def trusted(cls, values: dict[str, Any]) -> Self:
        """Return the model with all its values, which are trusted to be right."""
        made = object.__new__(cls)
        _set(made, "__dict__", values)
        _set(made, "__pydantic_fields_set__", cls._all_fields)
        _set(made, "__pydantic_extra__", None)
        _set(made, "__pydantic_private__", None)
        return made

    @classmethod
    def check(cls, fields: Mapping[str, Any]) -> Self:
        """Return the model these fields make, or raise ``InvalidJob``."""
        return cls(fields)


def _named(error: ValidationError) -> InvalidJob:
    """Name the first wrong field, without repeating values: they may be secrets."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # What follows the field is a place inside it, or the name of a union's member.
    field = str(first["loc"][0]) if first["loc"] else "job"
    if first["type"] == "extra_forbidden":
        return InvalidJob(field, "there is no such field")
    return InvalidJob(field, first["msg"].removeprefix("Value error, "))


_Status = Status  # under a name that the class attribute of the record does not hide


class JobRecord(_Model):
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
    """``<logdir>/<logfile>_out.txt`` and ``<logdir>/<logfile>_errors.txt`` are its logs."""
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
    """User and system time of the last attempt that has ended: of its main process and all
    descendants that were waited for, or of all its processes at one look, whichever is more. So it
    is exact but for what was left behind, which is seen only at a look; in a cgroup of its own it
    is exact. None where nobody saw the end, or only the kernel did."""
    peak_memory_bytes: int | None = None
    """The most memory it had: the largest of its processes at its highest, or all together at one
    look, whichever is more; in a cgroup of its own what that counts, cached files included. There
    is a look after a second, then ever more seldom, and when it is stopped. None where there was
    none and no process was larger than the supervisor, or nobody saw the end."""
    host: str = ""
    reached: list[_Status] = []
    """Every status the attempt has had so far, in order."""
    revision: int = 1
    """Counts the changes of this record; the store refuses a write made from an older one."""

    if TYPE_CHECKING:

        def __init__(
            self, data: Mapping[str, Any] | _Model | None = None, /, **fields: Any
        ) -> None: ...

    @property
    def is_done(self) -> bool:
        """Whether the job has ended."""
        return self.status in TERMINAL


class JobRecordDict(dict[str, JobRecord]):
    """Records by job id, in the order they were asked for."""


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def _once(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _several(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


_AnyOf = Annotated[list[str], BeforeValidator(_several)]


class JobFilter(_Model):
    """Which records to give: those that match every field set here.

    A field takes one value, or a list where any of several will do; ``tags`` must all be there.
    A naive time is taken as UTC.
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
            self, data: Mapping[Any, Any] | _Model | None = None, /, **fields: Any
        ) -> None: ...

    def matches(self, record: JobRecord) -> bool:
        """Return whether the record is one of those asked for."""
        return (
            all(
                allowed is None or getattr(record, field) in allowed
                for field, allowed in self.choices()
            )
            and set(self.tags or ()) <= set(record.tags)
            and (self.created_after is None or _created(record) >= self.created_after)
            and (self.created_before is None or _created(record) < self.created_before)
        )

    def choices(self) -> Iterator[tuple[str, list[str] | list[Status] | None]]:
        """Give each field that takes one of several values, with these values."""
        for field in _CHOOSABLE:
            yield field, getattr(self, field)


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
    created_after: datetime | None
    created_before: datetime | None


_CHOOSABLE = ("self_id", "status", "name", "user_id", "workflow_id", "batch_id", "queue")


def _created(record: JobRecord) -> datetime:
    return record.created_at or datetime.min.replace(tzinfo=UTC)


class JobSpec(_Model):
    """What a job is made from: the arguments of ``Jobs.run``, checked."""

    model_config = ConfigDict(strict=True)

    command: Annotated[
        str | list[str],
        BeforeValidator(lambda v: list(v) if isinstance(v, tuple) else v),
        AfterValidator(_command),
    ]
    """A string goes to ``/bin/sh -c``, a list is executed directly."""
    job_id: JobId | None = None
    cwd: Annotated[
        str, BeforeValidator(lambda v: os.fspath(v) if isinstance(v, os.PathLike) else v),
        AfterValidator(_no_nul),
    ] | None = None  # fmt: skip
    # Factories: a default that is an object is copied deeply for each job.
    envs: Annotated[
        dict[str, str], AfterValidator(_environment), Field(repr=False, default_factory=dict)
    ]
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
    retry: Any = None
    restart: Any = "never"
    limits: Any = None

    if TYPE_CHECKING:

        def __init__(
            self, data: Mapping[str, Any] | _Model | None = None, /, **fields: Any
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
    it is stopped after so long and ``failed``. ``stop_grace``: from SIGTERM to SIGKILL.
    ``start_grace``: a non-zero exit so soon is ``failed_start``. ``leftovers``: whether processes
    that outlive the main one are killed, or left. ``on_host_death``: whether the job runs on when
    no application has been there for 5 seconds, or is stopped; inline jobs have no choice.

    ``payload`` is any JSON value, for the job to read. For a job that takes its turn: ``priority``
    is a ``Priority``, its name or any int, ``queue`` where it waits, ``depends_on`` the ids of jobs
    that must have succeeded before (``on_dependency_failure``: what it does where one has not),
    ``run_at`` when it may start at the earliest (a naive time is UTC), ``start_deadline`` how long
    it may wait. A failed attempt is followed by up to ``max_retries`` others, after ``retry_delay``
    or as a ``RetryPolicy`` says (``retry``). ``restart`` is for services: ``"on-failure"``,
    ``"always"`` or a ``RestartPolicy``. ``limits`` are ``Limits``, or a mapping of their fields.
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
    run_at: datetime | None
    start_deadline: float | None
    max_retries: int
    retry_delay: float | None
    retry: RetryPolicy | None
    restart: Restart | RestartPolicy
    limits: Limits | Mapping[str, Any] | None
    call: str


class AttemptRecord(_Model):
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


class Scheduled(_Model):
    """A schedule, as ``Jobs.schedules`` tells it."""

    name: str
    schedule: dict[str, JsonValue]
    """The fields of its ``Schedule``, as JSON."""
    command: str | list[str]
    next_at: Moment | None = None
    """When it fires next, which may be a moment ago; None: never any more."""
    last_job: str | None = None
    """The id of the last job that it made."""


class BatchProgress(_Model):
    """How far a batch is."""

    total: int
    ended: int
    counts: dict[Status, int]
    """How many of its jobs have each status."""

    @property
    def fraction(self) -> float:
        """The part that has ended, from 0.0 to 1.0."""
        return self.ended / self.total


class Durations(_Model):
    """How long jobs ran, each from the start of its last attempt to its end, in seconds."""

    count: int = 0
    """How many they are."""
    mean: float | None = None
    """None where there is none."""
    max: float | None = None


class Metrics(_Model):
    """How many jobs there are of what, as ``Jobs.metrics`` tells it: all of one moment."""

    by_status: dict[Status, int]
    """With every status."""
    by_tag: dict[str, int]
    """A job counts for each of its tags."""
    by_queue: dict[str, int]
    by_priority: dict[int, int]
    durations: Durations
    """Of the jobs that have ended, as far as they have started."""
    queue_depth: dict[str, int]
    """How many jobs wait for a slot, for each queue in which there are any."""
    occupied_slots: dict[str, int]
    """How many jobs are under way, likewise: each holds a slot, however it was started."""
    retries: int
    """Attempts after the first, restarts included, and those that wait for their time."""


class JobEvent(_Model):
    """One thing that happened, as ``Jobs.events`` and ``Jobs.history`` tell it.

    ``kind`` is ``status`` (the job went from ``previous`` to ``status``), ``log`` (``stream`` has
    grown to ``offset`` bytes), ``progress`` (it says how far it is) or ``heartbeat`` (nothing
    happened). Only status events are kept;
    the others carry the ``seq`` of the last status event before them, so that any ``seq`` can be
    given as ``after``.
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


class Usage(_Model):
    """What the processes of a job use at the moment."""

    processes: int
    cpu_seconds: float
    """User and system time of the processes alive now."""
    memory_bytes: int
    """Resident set, summed; pages shared between processes count for each."""
