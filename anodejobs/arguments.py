"""What callers hand in, checked: each function returns what is meant, or raises InvalidJob."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from anodejobs.errors import InvalidJob, WaitTimeout
from anodejobs.events import utc_now
from anodejobs.executors.base import STREAMS, Stream
from anodejobs.fields import check_name, check_seconds, check_text
from anodejobs.records import JobFilter, JobRecord, Status
from anodejobs.threads import made_of_each

AnyFilter = JobFilter | Mapping[Any, Any]
AnyStatus = Status | str
IfExists = Literal["rerun", "skip", "error"]
Given = TypeVar("Given")
Made = TypeVar("Made")


@asynccontextmanager
async def time_limit(what: str, timeout: float | None) -> AsyncIterator[None]:
    """Raise WaitTimeout after ``timeout`` seconds, if it says so many."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            yield
    except TimeoutError:
        if timeout is not None and limit.expired():
            raise WaitTimeout(what, timeout) from None
        raise


def check_timeout(timeout: float | None) -> None:
    """Raise InvalidJob where it is neither None nor a number of seconds."""
    if timeout is not None:
        check_seconds("timeout", timeout)


async def of_each(field: str, make: Callable[[Given], Made], given: Iterable[Given]) -> list[Made]:
    """Return what is made of each; where one is wrong, the InvalidJob says which."""

    def made(numbered: tuple[int, Given]) -> Made:
        place, one = numbered
        try:
            return make(one)
        except InvalidJob as error:
            raise InvalidJob(error.field, f"{field}[{place}]: {error.problem}") from None

    return await made_of_each(made, enumerate(given))


def replacement(if_exists: IfExists, fresh_for: float | None) -> Callable[[JobRecord], bool]:
    """Return what says whether a new run may take the place of one that has ended."""
    check_choice("if_exists", if_exists, "rerun", "skip", "error")
    if fresh_for is not None:
        if if_exists != "skip":
            raise InvalidJob("fresh_for", "can only be used with if_exists='skip'")
        check_seconds("fresh_for", fresh_for)

    def may_replace(old: JobRecord) -> bool:
        if if_exists == "error":
            raise InvalidJob("job_id", f"there is a job {old.self_id!r}, which is {old.status}")
        return if_exists == "rerun" or not _is_fresh(old, fresh_for)

    return may_replace


def _is_fresh(record: JobRecord, fresh_for: float | None) -> bool:
    if fresh_for is None:
        return True
    if record.status is not Status.finished or record.finished_at is None:
        return False
    return (utc_now() - record.finished_at).total_seconds() <= fresh_for


def statuses(status: AnyStatus | Iterable[AnyStatus] | None) -> frozenset[Status] | None:
    """Return the statuses, None for None."""
    if status is None:
        return None
    if not isinstance(status, Iterable):
        raise InvalidJob("status", "must be a status, or several")
    names = [status] if isinstance(status, str) else list(status)
    try:
        wanted = frozenset(Status(name) for name in names)
    except ValueError as error:
        raise InvalidJob("status", str(error)) from None
    if not wanted:
        raise InvalidJob("status", "names no status")
    return wanted


def unique_ids(field: str, job_ids: Iterable[str]) -> list[str]:
    """Return the ids, each once; a single one is a list of one."""
    if not isinstance(job_ids, Iterable):
        raise InvalidJob(field, "must be the ids of jobs")
    listed = [job_ids] if isinstance(job_ids, str) else list(job_ids)
    for job_id in listed:
        check_text(field, job_id)
    return list(dict.fromkeys(listed))


def checked_filter(filter: AnyFilter | None) -> JobFilter:
    """Return the filter; None is one that everything matches."""
    if isinstance(filter, JobFilter):
        return filter
    if filter is not None and not isinstance(filter, Mapping):
        raise InvalidJob("filter", "must be a JobFilter, or a mapping of its fields")
    return JobFilter(filter)


def signal_number(sig: int | str) -> int:
    """Return the number of a signal by its name or number."""
    try:
        if isinstance(sig, str):
            name = sig.upper()
            return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
        if isinstance(sig, int) and not isinstance(sig, bool) and sig in signal.valid_signals():
            return int(sig)
    except KeyError:
        pass
    raise InvalidJob("sig", f"{sig!r} is not a signal on this system")


def check_choice(field: str, value: object, *choices: str) -> None:
    """Raise InvalidJob where the value is none of the choices."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise InvalidJob(field, f"must be {', '.join(others)} or {last}")


def check_count(field: str, value: int | None, *, least: int) -> None:
    """Raise InvalidJob where the value is neither None nor a whole number of at least so much."""
    if value is not None:
        check_whole(field, value, least=least)


def check_whole(field: str, value: int, *, least: int) -> None:
    """Raise InvalidJob where the value is no whole number of at least so much."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise InvalidJob(field, f"must be a whole number, {least} or more, below 2 ** 63")


def checked_offsets(offset: int | Mapping[Stream, int], wanted: list[Stream]) -> dict[Stream, int]:
    """Return where each wanted stream is to be read from."""
    if not isinstance(offset, Mapping):
        offset = dict.fromkeys(wanted, offset)
    for stream, value in offset.items():
        if stream not in STREAMS:
            raise InvalidJob("offset", f"{stream!r} is neither stdout nor stderr")
        check_whole("offset", value, least=0)
    return {stream: offset.get(stream, 0) for stream in wanted}


def checked_folder(field: str, path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a directory, which need not be there."""
    name: object = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str) or not name:
        raise InvalidJob(field, "must be the path of a directory")
    if "\0" in name:
        raise InvalidJob(field, "contains a NUL byte")
    try:
        os.fsencode(name)
        return Path(os.path.abspath(name))
    except UnicodeEncodeError:
        raise InvalidJob(field, "contains what the system cannot encode") from None
    except FileNotFoundError:
        raise InvalidJob(field, "is relative to a directory that is gone") from None


def check_limits(
    max_concurrent_jobs: int | None, queues: Mapping[str, int] | None, aging: float | None
) -> None:
    """Raise InvalidJob where the limits of the queue make no sense."""
    check_count("max_concurrent_jobs", max_concurrent_jobs, least=1)
    if queues is not None and not isinstance(queues, Mapping):
        raise InvalidJob("queues", "must be a mapping of names to numbers of slots")
    for queue, slots in (queues or {}).items():
        check_name("queues", queue)
        check_whole("queues", slots, least=1)
    if aging is not None and not check_seconds("aging", aging):
        raise InvalidJob("aging", "must be above 0, or None for strict priorities")


def checked_names(
    field: str, names: Iterable[str] | None, check: Callable[[str, str], None]
) -> frozenset[str] | None:
    """Return the names, each of which is checked; None for None."""
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidJob(field, "must be several names, as in a list, or None for all")
    checked = list(names)
    if not checked:
        raise InvalidJob(field, "would start nothing: name one, or say None for all")
    for name in checked:
        check(field, name)
    return frozenset(checked)


def checked_recovery_timeout(seconds: float) -> float:
    """Return the seconds after which a host that is silent is given up."""
    if not 0 < check_seconds("recovery_timeout", seconds) <= LONGEST_RECOVERY_S:
        raise InvalidJob("recovery_timeout", "must be above 0 s, and a year at most")
    return seconds


LONGEST_RECOVERY_S = 366 * 86400


def checked_days(field: str, days: float | None) -> float | None:
    """Return a number of days, or None for None."""
    try:
        return None if days is None else check_seconds(field, days)
    except InvalidJob:
        raise InvalidJob(field, "must be a finite number of days, zero or more") from None
