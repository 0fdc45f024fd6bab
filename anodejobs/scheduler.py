"""Scheduler: lets the jobs start that wait for their turn.

It hears of every record that is written, by whomever, and keeps ``JobQueue`` and ``Dependencies``
in step with them; what these say is then done: a job that waits for nothing more is queued, one
that may not start is withdrawn, one that is admitted goes to the starter. Of all processes
that share the records, one has a scheduler that acts.

It wakes for records and at moments that it knows of. Everything it knows is on record, so another
process can take its place at any time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, TypeVar

from anodejobs import faults
from anodejobs.errors import AnodeJobsError, InvalidTransition, JobNotFound, StoreError
from anodejobs.executors.base import Superseded
from anodejobs.jobdb import JobDB
from anodejobs.jobqueue import JobQueue, Waiting
from anodejobs.records import JobFilter, JobRecord
from anodejobs.starter import Starter
from anodejobs.stock import Change, Choice, Stock
from anodejobs.stores.base import Query
from anodejobs.succession import Succession

LOG = logging.getLogger("anodejobs")
T = TypeVar("T")

PAUSED: Final = "paused queue"
"""The kind of the documents that name the queues which are paused."""

_MOST_AT_ONCE = 500
"""How many jobs are changed at once: they share commits."""
_RETRY_S = 1.0
"""How long a store that could not be written is left alone."""


class Scheduler:
    """Decides which job starts next, in the process whose turn it is to decide.

    The limits are those of ``JobQueue``. ``succession`` is None where nobody shares the records.
    ``host`` is the one whose jobs hold the slots, None: all of them do.
    """

    def __init__(
        self,
        jobdb: JobDB,
        starter: Starter,
        succession: Succession | None,
        *,
        max_concurrent_jobs: int | None,
        queues: Mapping[str, int],
        aging_s: float | None,
        choice: Choice,
        host: str | None,
    ) -> None:
        self._jobdb = jobdb
        self._starter = starter
        self._succession = succession
        self._limits = max_concurrent_jobs, queues, aging_s
        self._choice = choice
        self._host = host
        self._woken = asyncio.Event()
        self._stock = self._new_stock()

    def _new_stock(self) -> Stock:
        slots, queues, aging_s = self._limits
        queue = JobQueue(max_concurrent_jobs=slots, queues=queues, aging_s=aging_s)
        return Stock(queue, self._choice, self._host)

    async def serve(self, *duties: Callable[[], Coroutine[None, None, None]]) -> None:
        """Schedule while it is our turn, and do what else is to be done then; until cancelled."""
        while True:
            await self._succeed()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._starter.watch_for_newer())
                    for duty in duties:
                        tasks.create_task(duty())
                    await self._schedule()
            except* Superseded as errors:
                LOG.warning("the queue is left to others: %s", errors.exceptions[0])
            finally:
                self._jobdb.on_record = None
            await self._step_back()

    async def _succeed(self) -> None:
        """Return when it is our turn."""
        while self._succession is not None:
            try:
                await self._succession.succeed()
                return
            except OSError as error:
                LOG.error("the queue waits: whose turn it is cannot be said: %s", error)
            await asyncio.sleep(_RETRY_S)

    async def _step_back(self) -> None:
        """Let another one have its turn, if there is one."""
        try:
            await self.resign()
        except StoreError as error:
            LOG.error("others hear later that it is their turn: %s", error)
        await asyncio.sleep(_RETRY_S)

    def attend(self) -> None:
        """Take note that another process has written something, or has let go of its turn."""
        if self._succession is not None:
            self._succession.nudge()
        self._stock.heed_others()
        self._woken.set()

    async def resign(self) -> None:
        """Give up our turn, and tell the others. Idempotent."""
        if self._succession is not None and self._succession.release():
            await self._jobdb.put_document("scheduler", "", None)

    async def _schedule(self) -> None:
        while True:
            # What is about to start is not on record yet, and has its slot all the same.
            await self._starter.settle()
            self._stock = self._new_stock()
            # Listening before the records are read: what is written meanwhile is heard twice.
            self._jobdb.on_record = self._note
            self._jobdb.on_deleted = self._note_deletion
            try:
                await self._take_stock()
                while True:
                    self._woken.clear()
                    await self._act()
                    await self._sleep()
            except AnodeJobsError as error:
                LOG.error("the queue waits: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _take_stock(self) -> None:
        """Learn of every job that has not ended."""
        with self._stock.reading() as heard:
            async with aclosing(self._jobdb.turns()) as turns:
                async for page in turns:
                    for turn in page:
                        if turn.self_id not in heard:
                            self._stock.take(turn)

    def _note(self, record: JobRecord) -> None:
        if self._stock.hear(record):
            self._woken.set()

    def _note_deletion(self, job_id: str) -> None:
        if self._stock.lose(job_id):
            self._woken.set()

    async def _act(self) -> None:
        """Do all that is to be done now."""
        stock = self._stock
        await self._look_for_pauses()
        await self._look_up(stock.take_recount(time.monotonic(), _MOST_AT_ONCE))
        await self._look_up(stock.take_unknown())
        now = time.time()
        stock.ready_due(now)
        stock.withdraw_expired(now)
        while stock.changes:
            await self._apply(stock.take_changes(_MOST_AT_ONCE))
        await self._admit(stock.queue.admit(time.time()))

    async def _look_for_pauses(self) -> None:
        if self._stock.must_look_for_pauses:
            self._stock.must_look_for_pauses = False
            self._stock.pause_these(await self._jobdb.documents(PAUSED))

    async def _look_up(self, wanted: list[str]) -> None:
        """Learn how jobs that others rely on have ended, if they have."""
        for job_ids in _pages(wanted):
            filter = JobFilter(self_id=list(job_ids))
            with self._stock.reading() as heard:
                found = {r.self_id: r for r in await self._jobdb.page(Query(filter=filter))}
                for job_id in job_ids:
                    record = found.get(job_id)
                    if job_id in heard:
                        continue
                    if record is None:
                        self._stock.lose(job_id)
                    elif record.is_done:
                        self._stock.take(record)

    async def _apply(self, changes: list[Change]) -> None:
        faults.reached("host: a change of the queue was decided")
        await self._jobdb.bring(change.job_id for change in changes)
        await asyncio.gather(*map(self._apply_one, changes))

    async def _apply_one(self, change: Change) -> None:
        job_id = change.job_id
        try:
            await self._jobdb.apply(job_id, change.event, revision=change.revision)
        except InvalidTransition as error:
            LOG.debug("job %s: somebody was quicker: %s", job_id, error)
        except JobNotFound:
            self._note_deletion(job_id)

    async def _admit(self, admitted: list[Waiting]) -> None:
        """Have these started, but for those of a queue that is paused."""
        if not admitted:
            return
        # Once more: the queue may have been paused before the job was submitted.
        await self._look_for_pauses()
        paused = self._stock.queue.paused()
        for waiting in admitted:
            if waiting.queue in paused:
                self._requeue(self._stock, waiting)
        admitted = [waiting for waiting in admitted if waiting.queue not in paused]
        # Together: one by one, each would wait for a turn of the store's thread.
        for page in _pages(admitted):
            await self._jobdb.bring(waiting.job_id for waiting in page)
            for waiting in page:
                on_refusal = partial(self._refused, self._stock, waiting)
                self._starter.admit(waiting.job_id, waiting.revision, on_refusal)

    def _refused(self, stock: Stock, waiting: Waiting, error: BaseException) -> None:
        """Let a job that could not be started keep its place, and try again after a while."""
        job_id = waiting.job_id
        if isinstance(error, JobNotFound):
            self._note_deletion(job_id)
        elif not isinstance(error, InvalidTransition):  # of which its record tells more
            LOG.error("job %s: its start waits: %s", job_id, error)
            asyncio.get_running_loop().call_later(_RETRY_S, self._requeue, stock, waiting)

    def _requeue(self, stock: Stock, waiting: Waiting) -> None:
        stock.requeue(waiting)
        self._woken.set()

    async def _sleep(self) -> None:
        """Return when there may be something to do."""
        try:
            async with asyncio.timeout(self._stock.rest_s(time.time())):
                await self._woken.wait()
        except TimeoutError:
            pass


def _pages(jobs: Sequence[T]) -> Iterator[Sequence[T]]:
    """Give so many at once as are worth their while."""
    for start in range(0, len(jobs), _MOST_AT_ONCE):
        yield jobs[start : start + _MOST_AT_ONCE]
