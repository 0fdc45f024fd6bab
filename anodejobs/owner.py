"""Owner: the tasks of a ``Jobs``, in its root group, and the answers that callers wait for.

What a caller asks for is done in a task here and not in the caller's own, so that a caller who is
cancelled leaves nothing half done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from anodejobs.errors import AnodeJobsError, ExecutorError
from anodejobs.threads import made_of_each

LOG = logging.getLogger("anodejobs")

Result = TypeVar("Result")
Item = TypeVar("Item")


class Owner:
    """Runs work in tasks of the group, for as long as that is open."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._answers: set[asyncio.Future[Any]] = set()

    def own(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Run a task for as long as this Jobs is open. Raises ExecutorError where it is not.

        A store or an executor that fails in it ends this task alone, and is logged; any other error
        is a bug, and ends all.
        """
        try:
            task = self.own_life(_alone(work, name), name)
        except ExecutorError:
            work.close()
            raise
        # Nobody has begun it where the task is cancelled before its first step.
        task.add_done_callback(lambda task: work.close())
        return task

    def own_life(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """As ``own``, for what sees to its errors by itself: there may be thousands of these."""
        try:
            return self._tasks.create_task(work, name=f"anodejobs {name}")
        except RuntimeError:  # the group is ending
            work.close()
            raise ExecutorError("this Jobs is closed") from None

    async def owned(
        self, work: Callable[..., Coroutine[None, None, Result]], *args: object
    ) -> Result:
        """Return what ``work`` returns, done in a task of the root group.

        Cancelling gives up the result, not the work.
        """
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        async def answered() -> None:
            try:
                resolve(answer, await work(*args))
            except Exception as error:
                refuse(answer, error)

        return await self.answer(answer, answered(), work.__name__)

    async def answer(
        self, answer: asyncio.Future[Result], work: Coroutine[None, None, None], name: str
    ) -> Result:
        """Return the answer that the work gives; or that will not come, if all ends before."""
        self.own_life(work, name)
        self._answers.add(answer)
        try:
            return await answer
        finally:
            self._answers.discard(answer)

    def refuse_all(self) -> None:
        """Tell all who still wait for an answer that none will come."""
        for answer in self._answers:
            refuse(answer, ExecutorError("this Jobs was closed meanwhile"))


async def do_for_each(
    work: Callable[[Item], Coroutine[Any, Any, object]], items: Iterable[Item]
) -> None:
    """Do the work for all items at once; of many it is begun piece by piece.

    Raises the first error, and waits no longer for the others then.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            await made_of_each(lambda item: tasks.create_task(work(item)), items)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _alone(work: Coroutine[None, None, None], name: str) -> None:
    try:
        await work
    except AnodeJobsError as error:
        LOG.error("%s was given up: %s", name, error)


def resolve(answer: asyncio.Future[Result], result: Result) -> None:
    """Give the answer, unless there is one or nobody waits any more."""
    if not answer.done():
        answer.set_result(result)


def refuse(answer: asyncio.Future[Result], error: Exception) -> None:
    """Give an error for an answer, likewise."""
    if not answer.done():
        answer.set_exception(error)
    elif answer.cancelled():
        LOG.debug("nobody waits any more for what became of a call: %r", error)
