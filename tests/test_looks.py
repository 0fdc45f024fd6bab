"""How often all processes are looked at."""

from __future__ import annotations

import asyncio
import threading

import pytest

from anodejobs.executors import looks, tree


async def test_a_look_that_others_made_late_puts_off_the_next_one_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine it may take seconds, in which it costs nothing."""

    def take_late(latest: tree.Snapshot) -> tree.Snapshot:
        threading.Event().wait(0.2)
        return latest

    monkeypatch.setattr(tree, "take_snapshot", take_late)
    monkeypatch.setattr(looks, "_LOOK_EVERY_S", 0.0)
    async with asyncio.timeout(5):
        shared = looks.Looks()
        await shared.take_soon()
        await shared.take_soon()
