"""What a job may use and as whom it runs, as users say it; executors set it.

Knows neither the system nor its users: whether a limit can be had is seen when the job starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

from anodejobs.errors import InvalidJob
from anodejobs.models import Model

__all__ = ["Limits", "check_limits"]

_LEAST_BYTES = 1024 * 1024
_LEAST_FILES = 8


def _who(value: str | int) -> str | int:
    if isinstance(value, int):
        if not 0 <= value < 2**32 - 1:
            raise ValueError("must be a user or group number")
    elif not value or not value.isprintable() or any(sign in value for sign in ":, \t"):
        raise ValueError(f"{value!a} cannot be the name of a user or group")
    return value


def _absolute(path: str) -> str:
    if not os.path.isabs(path) or not path.isprintable():
        raise ValueError("must be an absolute path")
    return path


_Who = Annotated[str | int, AfterValidator(_who)]


class Limits(Model):
    """The limits of a job; None is what the application itself has.

    ``memory_max``, ``cpus`` and ``tasks_max`` hold for all processes of the job together, in a
    cgroup (v2) of its own; the others for every process by itself, but for ``processes``. A cgroup
    can be had where the supervisor's own one, or the one above, may be written and has the
    controllers, as with ``Delegate=yes`` and ``DelegateSubgroup=`` in a systemd unit; else name a
    ``cgroup_parent``. Where it cannot be had, the job is ``failed_start``, and ``error`` says why.
    """

    model_config = ConfigDict(strict=True)

    memory_bytes: Annotated[int, Field(ge=_LEAST_BYTES, lt=2**63)] | None = None
    """How much writable memory a process may have of its own: what it asks for beyond is refused.
    Files it maps to read them and memory it only reserves do not count."""
    cpu_seconds: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """SIGXCPU after so many seconds of CPU time, SIGKILL some seconds of it later."""
    open_files: Annotated[int, Field(ge=_LEAST_FILES, lt=2**31)] | None = None
    """How many descriptors a process may have."""
    niceness: Annotated[int, Field(ge=-20, le=19)] | None = None
    """From 19, last in turn, to -20. Only root can go below the application's own."""
    processes: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """How many processes and threads there may be of the user it runs as, all others of the
    user's included; a limit of the job's own only where it has a ``user`` of its own. The system
    does not hold root to it."""
    user: _Who | None = None
    """Its name or number; one other than the application's needs root. HOME and USER are left as
    they are, and the job may be unable to read its ``ANODEJOBS_PAYLOAD``."""
    group: _Who | None = None
    """Its name or number, by default the user's."""
    memory_max: Annotated[int, Field(ge=_LEAST_BYTES, lt=2**63)] | None = None
    """How many bytes all processes of the job may have together, with the files they keep in
    memory and without swap, as systemd's ``MemoryMax``. Beyond, all of them are killed."""
    cpus: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)] | None = None
    """How many processors' time they may use together: 0.5 is systemd's ``CPUQuota=50%``. They
    are slowed down to it."""
    tasks_max: Annotated[int, Field(ge=1, lt=2**22)] | None = None
    """How many processes and threads there may be, as systemd's ``TasksMax``: more are refused."""
    cgroup_parent: Annotated[str, AfterValidator(_absolute)] | None = None
    """The folder of the cgroup in which the job's is made, such as ``/sys/fs/cgroup/batch.slice``;
    it must be ours to write. By itself it limits nothing."""

    if TYPE_CHECKING:

        def __init__(
            self, data: Mapping[str, Any] | Model | None = None, /, **fields: Any
        ) -> None: ...


def check_limits(value: object) -> Limits:
    """Return the limits that a caller hands in: as such, or as a mapping of their fields."""
    if isinstance(value, Limits):
        return value
    if not isinstance(value, Mapping):
        raise InvalidJob("limits", "must be Limits, or a mapping of their fields")
    try:
        return Limits(value)
    except InvalidJob as error:
        raise InvalidJob("limits", str(error)) from None
