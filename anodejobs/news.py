"""News: what happens to jobs, for those who listen; who is behind reads it from the store."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator
from itertools import islice
from operator import attrgetter
from typing import Literal, TypeVar

from anodejobs.errors import AnodeJobsError, ExecutorError
from anodejobs.events import utc_now
from anodejobs.records import JobEvent
from anodejobs.stores.base import Insert, JobStore, Save, history_entry

_MOST_RECENT = 10_000
"""How many events are at hand for listeners; one that is further behind reads the store."""
_MOST_UNREAD = 10_000
"""Of how many logs, and of how many jobs' progress, a reader that is behind is told the latest."""
_PAGE = 500

Key = TypeVar("Key")
Value = TypeVar("Value")


class Listener:
    """One reader of the events of a job, or of all: woken when there is more for it.

    With ``statuses_only`` it hears neither how logs grow nor how far jobs say they are.
    """

    def __init__(self, job_id: str | None, *, statuses_only: bool) -> None:
        self._job_id = job_id
        self.statuses_only = statuses_only
        self.woken = asyncio.Event()
        self._growth: dict[tuple[str, Literal["stdout", "stderr"]], int] = {}
        self._progress: dict[str, tuple[int, float, str]] = {}

    def hear_growth(self, job_id: str, stream: Literal["stdout", "stderr"], offset: int) -> None:
        """Have it told that a log has grown."""
        if self._hears_of(job_id):
            _note(self._growth, (job_id, stream), offset)
            self.woken.set()

    def hear_progress(self, job_id: str, attempt: int, fraction: float, text: str) -> None:
        """Have it told how far a job says it is."""
        if self._hears_of(job_id):
            _note(self._progress, job_id, (attempt, fraction, text))
            self.woken.set()

    def _hears_of(self, job_id: str) -> bool:
        return not self.statuses_only and self._job_id in (None, job_id)

    def take_growth(self, seq: int) -> list[JobEvent]:
        """Return how logs have grown since the last call."""
        growth, self._growth = self._growth, {}
        return [
            JobEvent(seq=seq, kind="log", at=utc_now(), job_id=job, stream=stream, offset=offset)
            for (job, stream), offset in growth.items()
        ]

    def take_progress(self, seq: int) -> list[JobEvent]:
        """Return what jobs have said of their progress since the last call."""
        progress, self._progress = self._progress, {}
        return [
            JobEvent(
                seq=seq,
                kind="progress",
                at=utc_now(),
                job_id=job,
                attempt=attempt,
                progress=fraction,
                text=text or None,
            )
            for job, (attempt, fraction, text) in progress.items()
        ]


def _note(news: dict[Key, Value], key: Key, value: Value) -> None:
    """Keep the latest word, of the last keys only: a reader may hang while jobs come and go."""
    news.pop(key, None)
    news[key] = value
    if len(news) > _MOST_UNREAD:
        del news[next(iter(news))]


class News:
    """Events in their order, those of other processes among them."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.cursor = 0
        """The ``seq`` up to which all events are known here."""
        self._listeners: set[Listener] = set()
        self._recent: deque[JobEvent] = deque(maxlen=_MOST_RECENT)
        self._failure: AnodeJobsError | None = None

    @property
    def wants_growth(self) -> bool:
        """Whether anybody listens to more than statuses."""
        return not all(listener.statuses_only for listener in self._listeners)

    def note(self, seq: int, entry: Insert | Save | JobEvent) -> None:
        """Know of the next event. It is at hand for those who listen now; others read the store."""
        self.cursor = seq
        if self._listeners:
            # Made once for all of them; what was written may be large, and is let go of.
            event = entry if isinstance(entry, JobEvent) else history_entry(seq, entry)
            self._recent.append(event)
        else:
            self._recent.clear()

    def tell(self) -> None:
        """Wake the listeners."""
        for listener in self._listeners:
            listener.woken.set()

    def grown(self, job_id: str, stream: Literal["stdout", "stderr"], offset: int) -> None:
        """Tell the listeners that a log has grown."""
        for listener in self._listeners:
            listener.hear_growth(job_id, stream, offset)

    def progressed(self, job_id: str, attempt: int, fraction: float, text: str) -> None:
        """Tell the listeners how far a job says it is."""
        for listener in self._listeners:
            listener.hear_progress(job_id, attempt, fraction, text)

    def fail(self, error: AnodeJobsError) -> None:
        """End all listening: quietly where the ``Jobs`` was closed, else with the error."""
        self._failure = error
        self.tell()

    async def events(
        self,
        job_id: str | None,
        after: int | None,
        heartbeat: float | None,
        *,
        statuses_only: bool = False,
    ) -> AsyncGenerator[JobEvent, None]:
        """Give every status event after ``after`` (None: from now on), and log growth as it is."""
        listener = Listener(job_id, statuses_only=statuses_only)
        self._listeners.add(listener)
        position = self.cursor if after is None else after
        quiet_since = time.monotonic()
        try:
            while self._failure is None:
                listener.woken.clear()
                fresh, position = await self._after(position, job_id)
                fresh += listener.take_growth(position)
                fresh += listener.take_progress(position)
                for event in fresh:
                    yield event
                    quiet_since = time.monotonic()
                if position < self.cursor:
                    await asyncio.sleep(0)  # for others: what is at hand is given without waiting
                    continue
                if fresh:
                    continue
                if not await _is_set(listener.woken, heartbeat, quiet_since):
                    yield JobEvent(seq=position, kind="heartbeat", at=utc_now())
                    quiet_since = time.monotonic()
            if not isinstance(self._failure, ExecutorError):
                raise self._failure
        finally:
            self._listeners.discard(listener)

    async def _after(self, position: int, job_id: str | None) -> tuple[list[JobEvent], int]:
        """Return the next events of the job after a position, and the position after them."""
        known = self.cursor
        if position >= known:
            return [], position
        if not self._recent or self._recent[0].seq > position + 1:
            events = await self._store.history(after=position, limit=_PAGE, job_id=job_id)
            # Less than a page: there is nothing more of it up to what was known before.
            last = events[-1].seq if events else position
            return events, last if len(events) == _PAGE else max(last, known)
        start = bisect_right(self._recent, position, key=attrgetter("seq"))
        page = list(islice(self._recent, start, start + _PAGE))
        events = [event for event in page if job_id in (None, event.job_id)]
        return events, page[-1].seq if page else known


async def _is_set(event: asyncio.Event, patience: float | None, since: float) -> bool:
    """Wait for the event; return False when it was not set until ``patience`` after ``since``."""
    rest = None if patience is None else since + patience - time.monotonic()
    try:
        async with asyncio.timeout(rest):
            await event.wait()
    except TimeoutError:
        return False
    return True
