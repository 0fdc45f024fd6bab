"""Owner: whose errors end what."""

from __future__ import annotations

import asyncio

import pytest

from anodejobs.errors import ExecutorError, StoreError
from anodejobs.owner import Owner


async def fail(error: Exception) -> None:
    raise error


async def test_a_store_that_fails_ends_that_task_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.TaskGroup() as tasks:
        owner = Owner(tasks)
        task = owner.own(fail(StoreError("the disk is full")), "house-keeping")
        await asyncio.wait([task])
        assert await owner.owned(asyncio.sleep, 0, "done") == "done"
    assert "house-keeping was given up: the disk is full" in caplog.text


async def test_a_bug_ends_all() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            Owner(tasks).own(fail(RuntimeError("a bug")), "house-keeping")
    assert caught.group_contains(RuntimeError, match="a bug")


async def test_what_is_cancelled_before_it_begins_leaves_nothing() -> None:
    async with asyncio.TaskGroup() as tasks:
        work = fail(StoreError("never raised"))
        Owner(tasks).own(work, "house-keeping").cancel()
    assert work.cr_frame is None  # closed: an error where warnings are errors, too


async def test_once_the_group_has_ended_nothing_is_begun() -> None:
    async with asyncio.TaskGroup() as tasks:
        owner = Owner(tasks)
    for own in (owner.own, owner.own_life):
        work = fail(StoreError("never raised"))
        with pytest.raises(ExecutorError, match="this Jobs is closed"):
            own(work, "late")
        assert work.cr_frame is None
