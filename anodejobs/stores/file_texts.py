"""Jobs and what becomes of them as JSON, and back. Pure.

A job's environment is not in its text, which is there to be looked at and shown around: that has
the digests of what it was asked for with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from anodejobs.events import Attempt
from anodejobs.executors.base import Launch
from anodejobs.records import JobEvent, JobRecord
from anodejobs.stores.base import Stored

Environment = dict[str, str]


def environment_text(env: Environment) -> tuple[str, str]:
    """Return the digest of an environment, and its text."""
    text = json.dumps(env, sort_keys=True, indent=0)
    return hashlib.sha256(text.encode()).hexdigest(), text


def environment_of(digest: str, text: bytes) -> Environment:
    """Return what ``environment_text`` was made from. Raises ValueError."""
    if hashlib.sha256(text).hexdigest() != digest:
        raise ValueError("the content does not agree with the name")
    env: Environment = json.loads(text)
    return env


def job_text(stored: Stored, base_env: str, envs: str, *, is_for_people: bool) -> str:
    """Return a job as JSON: in one line, or one line for each field of its record.

    ``base_env`` and ``envs`` are digests. What has its default is left out.
    """
    attempt = stored.attempt.to_text()
    asked = json.loads(stored.launch.to_text()) | {"base_env": base_env, "envs": envs}
    launch = json.dumps(asked)
    # By pydantic: the standard library writes lines in Python, at a tenth of the speed.
    if not is_for_people:
        record = stored.record.model_dump_json(exclude_defaults=True)
        return f'{{"record":{record},"attempt":{attempt},"launch":{launch}}}'
    record = stored.record.model_dump_json(exclude_defaults=True, indent=2)
    record = record.replace("\n", "\n  ")
    return f'{{\n  "record": {record},\n  "attempt": {attempt},\n  "launch": {launch}\n}}\n'


def job_of(fields: dict[str, Any], environment: Callable[[str], Environment]) -> Stored:
    """Return what ``job_text`` was made from.

    Raises ValueError, KeyError, TypeError, and what ``environment`` raises for a digest.
    """
    launch = fields["launch"]
    asked = {**launch, "envs": environment(launch["envs"])}
    return Stored(
        record=JobRecord(fields["record"]),
        attempt=Attempt.from_json(fields["attempt"]),
        launch=Launch.from_json(asked, environment(launch["base_env"])),
    )


def event_text(event: JobEvent) -> str:
    """Return an event as one line of JSON."""
    return event.model_dump_json(exclude_none=True)


def event_of(fields: dict[str, Any]) -> JobEvent:
    """Return what ``event_text`` was made from. Raises ValueError, TypeError."""
    event = JobEvent(fields)
    if event.kind != "status" or event.job_id is None or event.status is None:
        raise ValueError("it tells of no status")
    return event
