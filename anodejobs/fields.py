"""What a field of a model may hold, and what is wrong with a value that it may not.

The types check what they are given, and take what comes near to it: a tuple for a list, the name of
a priority for its rank. This module knows no model.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue
from pydantic_core import from_json

from anodejobs.errors import InvalidJob
from anodejobs.jobqueue import Priority


def check_seconds(field: str, value: float) -> float:
    """Return a number of seconds, or raise ``InvalidJob``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InvalidJob(field, "must be a number of seconds")
    try:
        return _seconds(float(value))
    except (ValueError, OverflowError):
        raise InvalidJob(field, "must be a finite number of seconds, zero or more") from None


def check_text(field: str, value: str) -> None:
    """Raise ``InvalidJob`` where that is no text: nothing can be called so."""
    if not isinstance(value, str):
        raise InvalidJob(field, f"must be a string, not {type(value).__name__}")


def check_name(field: str, value: str) -> None:
    """Raise ``InvalidJob`` where no job, and no queue, can be called so."""
    check_text(field, value)
    try:
        _job_id(value)
    except ValueError as error:
        raise InvalidJob(field, str(error)) from None


def _moment(value: object) -> object:
    """Take a moment in ISO 8601, too; a number, in a text or not, does not say what it counts."""
    if isinstance(value, str):
        with suppress(ValueError):
            return datetime.fromisoformat(value)
    if not isinstance(value, date):
        raise ValueError("must be a datetime, or one in ISO 8601")
    return value


def _as_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the years that can be represented") from None


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("cannot be written as UTF-8") from None
    return text


def no_nul(text: str) -> str:
    """Return the text, or raise ValueError where a process could not be given it."""
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
    if isinstance(command, str):
        return no_nul(command)
    for place, part in enumerate(command):
        try:
            no_nul(part)
        except ValueError as error:
            raise ValueError(f"part {place}: {error}") from None
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


Moment = Annotated[datetime, Field(strict=False), BeforeValidator(_moment), AfterValidator(_as_utc)]
Seconds = Annotated[float, AfterValidator(_seconds)]
JobId = Annotated[str, AfterValidator(_job_id)]
Text = Annotated[str, AfterValidator(_text)]
QueueName = Annotated[str, AfterValidator(_job_id)]
Payload = Annotated[JsonValue, AfterValidator(_json)]
Rank = Annotated[int, BeforeValidator(_rank), Field(ge=-(2**63), lt=2**63)]
Metadata = Annotated[dict[str, JsonValue], AfterValidator(_json)]
Tags = Annotated[
    list[Text],
    Field(strict=False),
    BeforeValidator(lambda v: list(v) if isinstance(v, (set, frozenset, tuple)) else v),
]
Command = Annotated[
    str | list[str],
    BeforeValidator(lambda v: list(v) if isinstance(v, tuple) else v),
    AfterValidator(_command),
]
Folder = Annotated[
    str,
    BeforeValidator(lambda v: os.fspath(v) if isinstance(v, os.PathLike) else v),
    AfterValidator(no_nul),
]
Environment = Annotated[dict[str, str], AfterValidator(_environment)]
