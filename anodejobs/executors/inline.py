"""Jobs as children of the application, beside those that the shim of the directory has.

Only the shim knows how these end, whether an earlier application has left them to it or another one
has it start them now. It is started where there are any, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anodejobs.events import Attempt, Exited, Lost, Started, StartFailed
from anodejobs.executors.base import Host, Launch, OnGrowth, Stream, Tell
from anodejobs.executors.processes import Processes
from anodejobs.executors.shim import Shim
from anodejobs.logs import Reader


class Inline(Processes):
    """Starts jobs here, and hears of those that are in the hands of the shim of ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._shim = Shim(folder)

    async def open(self, host: Host) -> None:
        await super().open(host)
        await self._shim.open(host)

    def is_mine(self, supervisor: str) -> bool:
        return super().is_mine(supervisor) or self._shim.is_mine(supervisor)

    async def held(self) -> set[str]:
        held = await super().held()
        if (self._folder / "journal").exists():  # else there never was one
            held |= await self._shim.held()
        return held

    async def start(
        self, launch: Launch, attempt: Attempt, number: int, **options: Any
    ) -> Started | StartFailed | Lost:
        if self._shim.is_mine(attempt.supervisor):  # it was to be started there
            return await self._shim.start(launch, attempt, number)
        return await super().start(launch, attempt, number, **options)

    async def wait(self, token: str, tell: Tell) -> Exited | Lost:
        if self.holds(token):
            return await super().wait(token, tell)
        return await self._shim.wait(token, tell)

    async def clean(self, token: str) -> None:
        if self.holds(token):
            await super().clean(token)
        else:
            await self._shim.clean(token)

    async def stop(self, attempt: Attempt, grace: float, *, may_hasten: bool = True) -> bool:
        if self._shim.is_mine(attempt.supervisor):
            return await self._shim.stop(attempt, grace, may_hasten=may_hasten)
        return await super().stop(attempt, grace, may_hasten=may_hasten)

    @contextmanager
    def follow(
        self, token: str, stream: Stream, tail: Reader, on_growth: Callable[[], None]
    ) -> Iterator[None]:
        # Who has the attempt, or will have it, tells of growth.
        follow, elsewhere = super().follow, self._shim.follow
        with (
            follow(token, stream, tail, on_growth),
            elsewhere(token, stream, tail, on_growth),
        ):
            yield

    def report_growth(self, on_growth: OnGrowth | None) -> None:
        super().report_growth(on_growth)
        self._shim.report_growth(on_growth)

    def attend(self) -> None:
        if (self._folder / "socket").exists():
            self._shim.attend()

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            await self._shim.close()
