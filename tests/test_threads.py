"""Work in threads, and where there can be none."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from anodejobs import threads
from anodejobs.threads import begun_in_thread, in_thread, made_of_each


async def test_work_is_done_in_another_thread() -> None:
    assert await in_thread(threading.get_ident) != threading.get_ident()
    assert await in_thread(sorted, [2, 1], reverse=True) == [2, 1]


async def test_an_error_of_the_work_is_told() -> None:
    with pytest.raises(FileNotFoundError):
        await in_thread(open, "/nowhere/at/all")


async def test_the_event_loop_has_its_turn_where_few_items_take_long() -> None:
    turns: list[int] = []

    def make(item: int) -> int:
        asyncio.get_running_loop().call_soon(turns.append, item)
        time.sleep(2 * threads._PIECE_S)
        return len(turns)

    assert await made_of_each(make, range(4)) == [0, 1, 2, 3]


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", _failing_start)


@pytest.mark.usefixtures("no_threads")
async def test_without_a_thread_it_is_done_here() -> None:
    assert await in_thread(threading.get_ident) == threading.get_ident()
    with pytest.raises(FileNotFoundError):
        await in_thread(open, "/nowhere/at/all")
    with pytest.raises(RuntimeError, match="of the work"):
        await in_thread(_failing)


def _failing() -> None:
    raise RuntimeError("of the work")


async def test_work_that_waits_for_a_thread_and_was_done_here_is_not_done_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pool keeps what it could start no thread for."""
    done: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        asyncio.get_running_loop().set_default_executor(pool)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _failing_start)
            await in_thread(done.append, 1)
        await in_thread(done.append, 2)
    assert done == [1, 2]


def _failing_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_work_that_is_waited_for_no_more_is_done_all_the_same() -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        done.set()

    begun = begun_in_thread(work)
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    go.set()
    assert await in_thread(done.wait, 60)
