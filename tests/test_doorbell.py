"""Processes on one directory tell each other to look, and lose no ring."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anodejobs.stores.doorbell import Doorbell

PATIENCE_S = 60.0


class Ear:
    """Counts the rings of a bell, and can be awaited."""

    def __init__(self) -> None:
        self.count = 0
        self._rung = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._rung.set()

    async def hears(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._rung.wait()
        self._rung.clear()


@contextmanager
def bell(folder: Path, ear: Ear | None = None) -> Iterator[Doorbell]:
    doorbell = Doorbell(folder)
    doorbell.open(ear or Ear())
    try:
        yield doorbell
    finally:
        doorbell.close()


async def nothing_more_can_be_heard() -> None:
    """Let the loop look at all its descriptors, so that every ring made so far is heard."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_ringing_is_heard_by_all_others(tmp_path):
    first, second = Ear(), Ear()
    with bell(tmp_path) as ringer, bell(tmp_path, first), bell(tmp_path, second):
        ringer.ring()
        await first.hears()
        await second.hears()


async def test_ringing_is_not_heard_by_the_ringer(tmp_path):
    own, others = Ear(), Ear()
    with bell(tmp_path, own) as ringer, bell(tmp_path, others):
        ringer.ring()
        await others.hears()
        await nothing_more_can_be_heard()
        assert own.count == 0


async def test_ringing_where_nobody_else_is_does_nothing(tmp_path):
    own = Ear()
    with bell(tmp_path, own) as ringer:
        ringer.ring()
        await nothing_more_can_be_heard()
        assert own.count == 0


async def test_each_ring_after_one_was_heard_is_heard(tmp_path):
    ear = Ear()
    with bell(tmp_path) as ringer, bell(tmp_path, ear):
        for _ in range(100):
            ringer.ring()
            await ear.hears()


async def test_rings_that_nobody_had_time_to_hear_are_heard_as_one(tmp_path):
    ear = Ear()
    with bell(tmp_path) as ringer, bell(tmp_path, ear):
        for _ in range(1000):
            ringer.ring()
        await ear.hears()
        await nothing_more_can_be_heard()
        assert ear.count == 1


async def test_ringing_never_blocks_on_one_who_does_not_listen(tmp_path):
    ear = Ear()
    with bell(tmp_path) as ringer, bell(tmp_path, ear):
        capacity = 65536
        for _ in range(capacity + 10):
            ringer.ring()
        await ear.hears()
        ringer.ring()
        await ear.hears()


async def test_a_bell_hung_up_just_now_is_heard(tmp_path):
    """The folder may have changed twice within a tick of the clock that its time is taken from."""
    with bell(tmp_path) as ringer:
        for _ in range(50):
            ear = Ear()
            ringer.ring()
            with bell(tmp_path, ear):
                ringer.ring()
                await ear.hears()


async def test_ringing_in_another_thread_is_heard_on_the_loop(tmp_path):
    heard_in = []
    done = asyncio.Event()

    def hear() -> None:
        heard_in.append(threading.current_thread())
        done.set()

    listening = Doorbell(tmp_path)
    listening.open(hear)
    with bell(tmp_path) as ringer:
        thread = threading.Thread(target=ringer.ring)
        thread.start()
        async with asyncio.timeout(PATIENCE_S):
            await done.wait()
        thread.join()
    listening.close()
    assert heard_in == [threading.main_thread()]


async def test_a_bell_that_was_never_opened_can_ring_others(tmp_path):
    ear = Ear()
    with bell(tmp_path, ear):
        Doorbell(tmp_path).ring()
        await ear.hears()


async def test_a_bell_left_by_a_process_that_died_is_cleared_away(tmp_path):
    left = tmp_path / "4711-dead"
    os.mkfifo(left)
    with bell(tmp_path) as ringer:
        ringer.ring()
        assert not left.exists()


async def test_a_bell_that_cannot_be_rung_keeps_no_other_from_being_rung(tmp_path):
    for n in range(10):
        (tmp_path / f"no-bell-{n}").mkdir()
    ears = [Ear() for _ in range(10)]
    bells = [Doorbell(tmp_path) for _ in ears]
    for ear, doorbell in zip(ears, bells, strict=True):
        doorbell.open(ear)
    try:
        Doorbell(tmp_path).ring()
        for ear in ears:
            await ear.hears()
    finally:
        for doorbell in bells:
            doorbell.close()


async def test_ringing_without_a_descriptor_left_is_no_error(tmp_path):
    ear = Ear()
    with bell(tmp_path) as ringer, bell(tmp_path, ear):
        _, most = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
        try:
            ringer.ring()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        ringer.ring()
        await ear.hears()


async def test_ringing_after_the_folder_is_gone_does_nothing(tmp_path):
    folder = tmp_path / "bells"
    with bell(folder) as ringer:
        ringer.ring()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        ringer.ring()


async def test_bells_are_for_their_owner_alone(tmp_path):
    folder = tmp_path / "bells"
    with bell(folder):
        (path,) = folder.iterdir()
        assert stat.S_ISFIFO(path.stat().st_mode)
        modes = [stat.S_IMODE(p.stat().st_mode) for p in (folder, path)]
    assert modes == [0o700, 0o600]


async def test_closing_takes_the_bell_down(tmp_path):
    ear = Ear()
    with bell(tmp_path) as ringer:
        closed = Doorbell(tmp_path)
        closed.open(ear)
        closed.close()
        assert len(list(tmp_path.iterdir())) == 1
        ringer.ring()
        await nothing_more_can_be_heard()
        assert ear.count == 0


async def test_closing_twice_or_unopened_is_no_error(tmp_path):
    with bell(tmp_path) as doorbell:
        doorbell.close()
        doorbell.close()
    Doorbell(tmp_path).close()


async def test_a_closed_bell_can_be_opened_again(tmp_path):
    ear = Ear()
    with bell(tmp_path) as ringer, bell(tmp_path) as again:
        again.close()
        again.open(ear)
        ringer.ring()
        await ear.hears()


def test_a_bell_can_be_closed_after_its_loop(tmp_path):
    doorbell = Doorbell(tmp_path)

    async def open_it() -> None:
        doorbell.open(lambda: None)

    asyncio.run(open_it())
    doorbell.close()
    assert list(tmp_path.iterdir()) == []
