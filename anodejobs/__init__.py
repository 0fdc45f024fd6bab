"""anodejobs: external commands as supervised, durable jobs for asyncio programs.

    async with Jobs(db_path="./job_db") as jobs:
        await jobs.run(command="echo hi; sleep 2", job_id="hello")
        record = await jobs.wait(job_id="hello")

Names are resolved when they are first used: who needs the records only imports no database.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs a program that runs as a job half of its start
if TYPE_CHECKING:
    from anodejobs.errors import (
        AnodeJobsError,
        DependencyCycle,
        ExecutorError,
        InvalidJob,
        InvalidTransition,
        JobActive,
        JobNotFound,
        StatusUnreachable,
        StoreError,
        WaitTimeout,
    )
    from anodejobs.jobs import (
        Jobs,
    )
    from anodejobs.limits import (
        Limits,
    )
    from anodejobs.logs import (
        LogChunk,
    )
    from anodejobs.migration import (
        Migrated,
        migrate,
    )
    from anodejobs.records import (
        AttemptRecord,
        BatchProgress,
        Durations,
        JobEvent,
        JobFilter,
        JobOptions,
        JobRecord,
        JobRecordDict,
        JobSpec,
        Metrics,
        Priority,
        Scheduled,
        Status,
        Usage,
    )
    from anodejobs.retries import (
        ExponentialBackoff,
        Failure,
        FixedDelay,
        RestartPolicy,
        RetryPolicy,
    )
    from anodejobs.schedules import (
        Schedule,
    )
    from anodejobs.settings import (
        JobsSettings as JobsSettings,
    )
    from anodejobs.stores.base import (
        JobStore,
        SharedJobStore,
    )
    from anodejobs.stores.database import (
        DatabaseJobStore,
    )
    from anodejobs.stores.file import (
        FileJobStore,
    )
    from anodejobs.stores.memory import (
        MemoryJobStore,
    )
    from anodejobs.stores.sqlite import (
        SqliteJobStore,
    )
    from anodejobs.templates import (
        Parameter,
        Template,
    )

__all__ = [
    "AnodeJobsError",
    "AttemptRecord",
    "BatchProgress",
    "DatabaseJobStore",
    "DependencyCycle",
    "Durations",
    "ExecutorError",
    "ExponentialBackoff",
    "Failure",
    "FileJobStore",
    "FixedDelay",
    "InvalidJob",
    "InvalidTransition",
    "JobActive",
    "JobEvent",
    "JobFilter",
    "JobNotFound",
    "JobOptions",
    "JobRecord",
    "JobRecordDict",
    "JobSpec",
    "JobStore",
    "Jobs",
    "Limits",
    "LogChunk",
    "MemoryJobStore",
    "Metrics",
    "Migrated",
    "Parameter",
    "Priority",
    "RestartPolicy",
    "RetryPolicy",
    "Schedule",
    "Scheduled",
    "SharedJobStore",
    "SqliteJobStore",
    "Status",
    "StatusUnreachable",
    "StoreError",
    "Template",
    "Usage",
    "WaitTimeout",
    "migrate",
]

_HOMES = {
    "anodejobs.errors": (
        "AnodeJobsError",
        "DependencyCycle",
        "ExecutorError",
        "InvalidJob",
        "InvalidTransition",
        "JobActive",
        "JobNotFound",
        "StatusUnreachable",
        "StoreError",
        "WaitTimeout",
    ),
    "anodejobs.jobs": ("Jobs",),
    "anodejobs.limits": ("Limits",),
    "anodejobs.logs": ("LogChunk",),
    "anodejobs.migration": (
        "Migrated",
        "migrate",
    ),
    "anodejobs.records": (
        "AttemptRecord",
        "BatchProgress",
        "Durations",
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
    ),
    "anodejobs.retries": (
        "ExponentialBackoff",
        "Failure",
        "FixedDelay",
        "RestartPolicy",
        "RetryPolicy",
    ),
    "anodejobs.schedules": ("Schedule",),
    "anodejobs.settings": ("JobsSettings",),  # not in __all__: it wants an extra
    "anodejobs.stores.base": ("JobStore", "SharedJobStore"),
    "anodejobs.stores.database": ("DatabaseJobStore",),
    "anodejobs.stores.file": ("FileJobStore",),
    "anodejobs.stores.memory": ("MemoryJobStore",),
    "anodejobs.stores.sqlite": ("SqliteJobStore",),
    "anodejobs.templates": (
        "Parameter",
        "Template",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    from importlib import import_module

    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
