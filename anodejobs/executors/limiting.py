"""What limits make of an attempt: its command, its cgroup, and what they say of its end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anodejobs.events import Attempt
from anodejobs.executors import cgroups, limits
from anodejobs.executors.base import Launch
from anodejobs.executors.limits import AttemptLimits
from anodejobs.regular import open_regular
from anodejobs.threads import in_thread

_STDERR_BYTES = 16 * 1024
_NO_ACCOUNT = cgroups.Account()


def new_cgroup(launch: Launch, attempt: Attempt) -> str | None:
    """Make the attempt's own cgroup, where it is to have one. Raises as ``argv_of``."""
    wanted = AttemptLimits(**_fields(launch)) if launch.limits else None
    if wanted is None or not wanted.is_grouped:
        return None
    return cgroups.create(attempt.token, limits.tree_settings(wanted), wanted.cgroup_parent)


def argv_of(launch: Launch, cgroup: str | None) -> Sequence[str]:
    """Return what is to be executed. Raises OSError, ValueError where a limit cannot be set."""
    if launch.limits is None:
        return launch.argv
    return limits.limited(launch.argv, AttemptLimits(**_fields(launch)), cgroup)


async def account_of(attempt: Attempt) -> cgroups.Account:
    """Return what the attempt's cgroup tells of it, if it has one."""
    if attempt.cgroup is None:
        return _NO_ACCOUNT
    return await in_thread(cgroups.account, attempt.cgroup)


async def verdict(
    launch: Launch, code: int, account: cgroups.Account
) -> tuple[str | None, str | None]:
    """Return why the limits could not be set, and which of them ended the attempt."""

    def read() -> bytes:
        with (
            contextlib.suppress(OSError),  # the job may have put something else there
            open(open_regular(launch.logs.stderr, os.O_RDONLY), "rb") as file,
        ):
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _STDERR_BYTES))
            return file.read()
        return b""

    stderr = (await in_thread(read)).decode("utf-8", "replace")
    # Of an adopted one we know no more than what its cgroup tells.
    set_limits = replace(AttemptLimits(**_fields(launch)), memory_max=account.memory_max)
    oom_kills = account.oom_kills
    why = limits.why_ended(set_limits, code, stderr_tail=stderr, oom_kills=oom_kills)
    return limits.refusal(code, stderr), why


def _fields(launch: Launch) -> dict[str, Any]:
    return dict(launch.limits or {})
