"""Work that would keep the event loop: what waits for the system is done in threads.

A limit on processes is one on threads, too. A job that forks without end reaches it, and is to be
stopped all the same: what no thread can be had for is done on the event loop, which waits.

What takes long for there is much of it is done piece by piece.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")

_PIECE_S = 0.005
"""For how long items are taken before the event loop has its turn: one may be worth thousands."""


def start(thread: Thread) -> None:
    """Start a thread of its own. Raises OSError where none can be had now, as of all that lacks."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what the work gives. Cancelled, it goes on by itself."""
    return await begun_in_thread(work, *args, **kwargs)


def begun_in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Begin the work, and return what it will give."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # whoever waits may give up, the work may not
    turn = Lock()

    def once() -> None:
        if not turn.acquire(blocking=False):
            return
        try:
            outcome.set_result(work(*args, **kwargs))
        except BaseException as error:
            outcome.set_exception(error)

    try:
        asyncio.get_running_loop().run_in_executor(None, once)
    except RuntimeError:  # no thread can be started; one that is there may take it all the same
        once()
    return asyncio.wrap_future(outcome)


async def made_of_each(make: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """Return what is made of each item; of many, the event loop has its turn now and then."""
    made: list[T] = []
    until = time.monotonic() + _PIECE_S
    for item in items:
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + _PIECE_S
        made.append(make(item))
    return made
