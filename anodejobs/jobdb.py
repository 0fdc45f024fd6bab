"""JobDB, the only writer of records: event, transition, commit, ring.

It owns the order of things: a change is on disk before anybody is told of it. Writes that come
while a commit runs make up the next one, so that many writers at once cost little more than one.
It knows the store, and nothing of processes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from anodejobs.at_hand import AtHand
from anodejobs.errors import (
    AnodeJobsError,
    InvalidTransition,
    JobNotFound,
    StoreError,
    as_ours,
)
from anodejobs.events import (
    Admitted,
    Adopted,
    Attempt,
    Claimed,
    Event,
    Lost,
    Started,
)
from anodejobs.executors.base import Launch, new_token
from anodejobs.news import News
from anodejobs.records import ALIVE, WAITING, JobEvent, JobFilter, JobRecord, Metrics, Status
from anodejobs.stores.base import (
    Delete,
    Insert,
    InsertAll,
    JobStore,
    Lease,
    Outdated,
    Query,
    Save,
    SharedJobStore,
    Stored,
    TooLarge,
    Turn,
    Unfinished,
    Write,
    as_one,
    changes_of,
    steps_of,
)
from anodejobs.threads import made_of_each
from anodejobs.transitions import ended_attempt, reopened, transition
from anodejobs.waits import Waiter, Waits

LOG = logging.getLogger("anodejobs")

_MOST_WRITES = 500
"""The most writes in one commit: more gains nothing, and makes the first of them wait."""
_PAGE = 500
_LOOKED_AT = 100
"""For how many waits the records are read at once: more would hold up the event loop."""
_RETRY_S = 0.2
"""How long a store that could not be read is left alone."""


class JobDB:
    """Applies events to records, durably, and tells those who wait for them.

    ``serve`` must run for any write to be made. Where it ends, ``fail`` is to be called: every
    writer, reader and waiter gets the cause.
    """

    def __init__(self, store: JobStore) -> None:
        self._own_store = store
        self._queue: list[tuple[Write, asyncio.Future[bool]]] = []
        self._has_writes = asyncio.Event()
        self._has_foreign = asyncio.Event()
        self._failure: AnodeJobsError | None = None
        self.on_stranger: Callable[[Stored], None] = lambda stored: None
        """Called with an active job that was not written here last: is anybody looking after it?"""
        self.is_of_here: Callable[[JobRecord], bool] = lambda record: True
        """Whether a job is of this host, which has to see that somebody looks after it."""
        self.on_foreign: list[Callable[[], None]] = []
        """Called when another process may have written something, or a document was written."""
        self.on_record: Callable[[JobRecord], None] | None = None
        """Called with every record that anybody has written, once it is on disk."""
        self.on_deleted: Callable[[str], None] = lambda job_id: None
        """Called with the id of a job that was deleted here."""
        self.waits = Waits()
        self.news = News(store)
        self._at_hand = AtHand()
        self._newer: set[str] | None = None
        """While what other processes have written is read: the ids of what is written here."""

    @property
    def is_shared_by_hosts(self) -> bool:
        """Whether other machines may have jobs of their own on record here."""
        return isinstance(self._own_store, SharedJobStore)

    @property
    def lock_path(self) -> Path | None:
        """What processes that share the records can lock; None where nobody shares them."""
        return self._own_store.lock_path

    @property
    def _store(self) -> JobStore:
        """The store; once it is not to be asked any more, readers are told why, as writers are."""
        if self._failure is not None:
            raise self._failure
        return self._own_store

    async def open(self) -> None:
        """Open the store."""
        await self._store.open(self._has_foreign.set)
        self.news.cursor = await self._store.last_seq()

    async def close(self) -> None:
        """Close the store. Idempotent."""
        await self._own_store.close()

    # Writing.

    async def create(
        self, record: JobRecord, launch: Launch, attempt: Attempt, *, replace: JobRecord | None
    ) -> JobRecord | None:
        """Write the first record of a run: of a new job, or in the place of one that ended.

        Returns None where the id has a record by now that is not the one to replace.
        """
        if replace is None:
            write: Insert | Save = Insert(record=record, launch=launch, attempt=attempt)
        else:
            record = reopened(record, after=replace)
            write = Save(record=record, previous=replace.status, launch=launch, attempt=attempt)
        if not await self._write(write):
            return None
        self._log(write)
        return record

    async def create_all(self, jobs: Sequence[Stored]) -> bool:
        """Write the first records of new jobs, all or none; False where one of the ids is taken."""
        inserts = tuple(Insert(record=j.record, launch=j.launch, attempt=j.attempt) for j in jobs)
        if not await self._write(InsertAll(inserts)):
            return False
        await made_of_each(self._log, inserts)
        return True

    async def claim(self, stored: Stored, supervisor: str) -> Stored | None:
        """Make a job's attempt that of another supervisor; None where somebody was quicker."""
        record = transition(stored.record, Claimed())
        attempt = dataclasses.replace(stored.attempt, supervisor=supervisor)
        why = Claimed().why
        save = Save(record=record, previous=stored.record.status, attempt=attempt, why=why)
        if not await self._write(save):
            return None
        self._log(save)
        return Stored(record=record, launch=stored.launch, attempt=attempt)

    async def apply(
        self,
        job_id: str,
        event: Event | Callable[[JobRecord], Event | None],
        *,
        token: str | None = None,
        revision: int | None = None,
    ) -> JobRecord:
        """Make the record what it is after the event, and return it.

        The event may depend on the record; None: nothing happens. With ``token`` it is about that
        attempt, and nothing to a later one. Raises InvalidTransition where the status does not
        allow it, or where the record has another ``revision`` than the one that is named.
        Cancelling may come too late: an event that is being written stays written.
        """
        stored, save = await self._changed(job_id, event, token=token, revision=revision)
        return stored.record if save is None else save.record

    async def apply_both(
        self, job_id: str, first: Event, second: Event, *, token: str
    ) -> JobRecord | None:
        """Make what is at hand of the job what it is after both events, in one write.

        Returns the record as the first one made it, of which all are told before the other. None,
        and nothing is written, where it is not at hand as that attempt, or does not allow it.
        """
        stored = self._at_hand.alive(job_id)
        if stored is None or stored.attempt.token != token:
            return None
        try:
            between = transition(stored.record, first)
            record = transition(between, second)
        except InvalidTransition:
            return None
        if between is stored.record or record is between:
            return None
        one = _save(stored.record, first, between, None)
        both = as_one(one, _save(between, second, record, None))
        if not await self._write(both):
            self._at_hand.forget(job_id)
            return None
        self._log(both)
        return between

    async def admit(
        self,
        job_id: str,
        admitted: Admitted,
        bring: Callable[[Launch], Launch] = lambda launch: launch,
        *,
        revision: int,
    ) -> Stored:
        """Make a queued job one whose attempt is about to be started here; as ``apply``.

        ``bring`` gives what starts it here: the same where it was planned here.
        """
        stored, save = await self._changed(job_id, admitted, revision=revision, bring=bring)
        if save is None:
            return stored
        return Stored(
            record=save.record,
            launch=save.launch or stored.launch,
            attempt=save.attempt or stored.attempt,
        )

    async def _changed(
        self,
        job_id: str,
        asked: Event | Callable[[JobRecord], Event | None],
        *,
        token: str | None = None,
        revision: int | None = None,
        bring: Callable[[Launch], Launch] = lambda launch: launch,
    ) -> tuple[Stored, Save | None]:
        """Return the job as it was, and what was written of it; None where nothing happens."""
        waiting = self._at_hand.waiting(job_id)
        while True:
            at_hand = self._at_hand.alive(job_id) or waiting
            # Of what is at hand another process may have made something else by now: only what the
            # store says tells that the event comes too late, is not allowed, or changes nothing.
            is_known = at_hand is not None and token in (None, at_hand.attempt.token)
            stored = at_hand if at_hand and is_known else await self.stored(job_id, token)
            if token not in (None, stored.attempt.token):
                return stored, None
            event: Event | None = None
            try:
                event = asked if isinstance(asked, Event) else asked(stored.record)
                if revision not in (None, stored.record.revision):
                    raise InvalidTransition(job_id, stored.record.status, type(event).__name__)
                record = stored.record if event is None else transition(stored.record, event)
            except InvalidTransition:
                if not is_known:
                    raise
                record = stored.record
            if event is not None and record is not stored.record:
                launch = bring(stored.launch)
                save = _save(
                    stored.record, event, record, None if launch is stored.launch else launch
                )
                if await self._write(save):
                    self._log(save)
                    return stored, save
            elif not is_known:
                return stored, None
            waiting = None
            self._at_hand.forget(job_id)  # another writer was quicker, or may have been: look again

    # The hosts that share the records.

    async def keep_lease(self, host: str, lasts_s: float) -> None:
        """Have the lease of a host, which is ours, last from now on."""
        await self._shared_store.keep_lease(host, lasts_s)

    async def expired_leases(self) -> list[Lease]:
        """Return the leases of hosts that have not been heard of in time."""
        return await self._shared_store.expired_leases()

    async def end_lease(
        self,
        lease: Lease,
        losses: Sequence[tuple[Stored, Lost]],
        document: tuple[str, str, str] | None,
    ) -> bool:
        """End a lease, and with it these attempts of its host; keep a document with it.

        Returns whether that was done: all of it, or nothing where the host is back, somebody else
        was quicker, or a job is not as it was.
        """
        saves = [
            _save(stored.record, loss, transition(stored.record, loss), None)
            for stored, loss in losses
        ]
        try:
            seqs = await self._shared_store.end_lease(lease, saves, document)
        finally:
            # Before anything else is known of it: let the history tell.
            for save in saves:
                self._at_hand.forget(save.record.self_id)
            self._has_foreign.set()
        for save in saves if seqs is not None else ():
            self._log(save)
        return seqs is not None

    @property
    def _shared_store(self) -> SharedJobStore:
        assert isinstance(self._store, SharedJobStore)
        return self._store

    async def delete_all(self, records: Sequence[JobRecord]) -> int:
        """Remove the ended jobs whose records these still are, at once, with their histories.

        Returns how many that were.
        """
        return sum(await asyncio.gather(*(self._write(Delete(record=r)) for r in records)))

    def _write(self, write: Write) -> asyncio.Future[bool]:
        """Have it committed with the next batch; the result says whether it was applied."""
        if self._failure is not None:
            raise self._failure
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue.append((write, done))
        self._has_writes.set()
        return done

    def _log(self, write: Insert | Save) -> None:
        if not LOG.isEnabledFor(logging.INFO):
            return
        for step in steps_of(write):
            record, old = step.record, step.previous or "new"
            why = f" ({step.why})" if step.why else ""
            LOG.info("job %s: %s -> %s%s", record.self_id, old, record.status, why)

    async def serve(self) -> None:
        """Commit what is queued, batch after batch, until cancelled."""
        while True:
            await self._has_writes.wait()
            self._has_writes.clear()
            while self._queue:
                batch = self._queue[:_MOST_WRITES]
                del self._queue[:_MOST_WRITES]
                await self._commit(batch)

    async def _commit(self, batch: list[tuple[Write, asyncio.Future[bool]]]) -> None:
        try:
            results = await self._store.commit([write for write, _ in batch])
        except TooLarge as error:
            if len(batch) == 1:
                self._fail(batch, error)
                return
            # One of them is, and the others are not to fail for it: part by part it is found.
            half = len(batch) // 2
            self._queue[:0] = batch[half:]
            await self._commit(batch[:half])
            return
        except asyncio.CancelledError:
            self._queue[:0] = batch  # for `fail`, which knows the cause
            raise
        except BaseException as error:
            self._fail(batch, error)
            # It may have been applied all the same: let the history tell.
            self._has_foreign.set()
            if not isinstance(error, StoreError):
                raise
            return
        for (write, done), seq in zip(batch, results, strict=True):
            if seq is not None:
                steps = list(chain.from_iterable(map(steps_of, changes_of(write))))
                for earlier, step in enumerate(steps, start=1 - len(steps)):
                    self._ring(seq + earlier, step)
            if not done.done():
                done.set_result(seq is not None)
        self.news.tell()

    def _fail(self, batch: list[tuple[Write, asyncio.Future[bool]]], cause: BaseException) -> None:
        error = _own(cause)
        for write, done in batch:
            for change in changes_of(write):
                self._at_hand.forget(change.record.self_id)
            if not done.done():
                done.set_exception(error)

    def _ring(self, seq: int, write: Insert | Save | Delete) -> None:
        """Tell those who wait of a write that is on disk."""
        record = write.record
        job_id = record.self_id
        if self._newer is not None:
            self._newer.add(job_id)
        if isinstance(write, Delete):
            self._at_hand.forget(job_id)
            self.on_deleted(job_id)
            return
        self._at_hand.remember(write)
        self.waits.tell(record)
        if self.on_record is not None:
            self.on_record(record)
        if seq == self.news.cursor + 1:
            self.news.note(seq, write)
        else:  # another process's events lie between
            self._has_foreign.set()

    async def serve_foreign(self) -> None:
        """Take note of what other processes write, until cancelled. Raises Outdated."""
        while True:
            await self._has_foreign.wait()
            self._has_foreign.clear()
            try:
                await self._catch_up()
            except Outdated:
                raise  # what waits here would wait for ever: newer applications go on
            except StoreError as error:
                LOG.error("what others have written cannot be read now: %s", error)
                self._has_foreign.set()
                await asyncio.sleep(_RETRY_S)

    async def _catch_up(self) -> None:
        self._at_hand.forget_ended()
        self._heed()
        last, is_gone = await self._store.last_seq(), False
        while entries := await self._store.history(after=self.news.cursor, limit=_PAGE):
            self._heed()  # of what was written before these, too, and is told first
            # Read before anything is remembered: what is committed meanwhile rings again.
            job_ids = list(dict.fromkeys(e.job_id for e in entries if e.job_id is not None))
            for job_id in job_ids:
                await self._refresh(job_id)
            if self.on_record is not None:
                await self._tell_records(job_ids)
            for entry in entries:
                if entry.seq > self.news.cursor:
                    is_gone = is_gone or entry.seq > self.news.cursor + 1
                    self.news.note(entry.seq, entry)
            self.news.tell()
        if is_gone or self.news.cursor < last:
            # The history of a job goes with it: there may have been an end that nobody heard of.
            self._at_hand.forget_alive()
            self.news.cursor = max(self.news.cursor, last)
            await self._look_for_deleted()

    def _heed(self) -> None:
        for heed in self.on_foreign:
            heed()

    async def _tell_records(self, job_ids: list[str]) -> None:
        """Tell what records other processes have written; what is written here is told already."""
        with self._writes_noted() as newer:
            filter = JobFilter(self_id=job_ids)
            records = await self._store.page(Query(filter=filter, sort_by="self_id"))
            for record in records:
                # Where another process has come after what is written here, the history goes on.
                if record.self_id not in newer and self.on_record is not None:
                    self.on_record(record)
        await self._meet(records)

    async def _meet(self, records: list[JobRecord]) -> None:
        """See that somebody looks after the jobs of another process, should that die."""
        strangers = [
            record.self_id
            for record in records
            if record.status in ALIVE
            and self.is_of_here(record)
            and self._at_hand.alive(record.self_id) is None
        ]
        for stored in await self._store.get_all(strangers) if strangers else ():
            if stored.record.status in ALIVE:
                self.on_stranger(stored)

    @contextmanager
    def _writes_noted(self) -> Iterator[set[str]]:
        """Note the ids of what is written here meanwhile: it is newer than what is read."""
        newer = self._newer = set()
        try:
            yield newer
        finally:
            self._newer = None

    async def _look_for_deleted(self) -> None:
        """Look at every job that is waited for: it may be there no more."""
        awaited = self.waits.awaited()
        for start in range(0, len(awaited), _PAGE):
            job_ids = awaited[start : start + _PAGE]
            with self._writes_noted() as newer:
                found = {job.record.self_id: job for job in await self._store.get_all(job_ids)}
            for job_id in job_ids:
                if job_id not in newer:
                    self._tell_waits(job_id, found.get(job_id))

    def _tell_waits(self, job_id: str, stored: Stored | None) -> None:
        if stored is None:
            self._at_hand.forget(job_id)
            self.waits.fail_for(job_id, JobNotFound(job_id))
        else:
            self.waits.tell(stored.record)

    async def _refresh(self, job_id: str) -> None:
        """Look again at a job that another process may have changed."""
        self._at_hand.forget_waiting(job_id)
        alive = self._at_hand.alive(job_id)
        known = alive.record if alive else self._at_hand.ended(job_id)
        if known is None and not self.waits.awaits(job_id):
            return
        with self._writes_noted() as newer:
            stored = await self._store.get(job_id)
        if job_id in newer:
            return
        if stored is not None and known and known != stored.record:
            self._at_hand.forget(job_id)
        self._tell_waits(job_id, stored)

    def fail(self, cause: BaseException) -> None:
        """End every wait and every write with the cause: nothing will be written any more.

        The first cause stands.
        """
        if self._failure is not None:
            return
        self._failure = error = _own(cause)
        queue, self._queue = self._queue, []
        for _, done in queue:
            if not done.done():
                done.set_exception(error)
        self.waits.fail(error)
        self.news.fail(error)

    # Reading.

    async def stored(self, job_id: str, token: str | None = None) -> Stored:
        """Return the job with what its supervisor needs. Raises JobNotFound.

        ``token`` is that of an attempt that is known to have been on record: where the job has
        another one here, that may be an earlier one, and another process went on from there.
        """
        known = self._at_hand.alive(job_id)
        if known is not None and token not in (None, known.attempt.token):
            self._at_hand.forget(job_id)
        stored = await self.find(job_id)
        if stored is None:
            raise JobNotFound(job_id)
        return stored

    async def get(self, job_id: str) -> JobRecord | None:
        """Return the record, None where there is none."""
        stored = await self.find(job_id)
        return stored.record if stored else None

    async def find(self, job_id: str) -> Stored | None:
        """Return the job as ``stored`` does, None where there is none."""
        known = self._at_hand.alive(job_id)
        if known is not None:
            return known
        stored = await self._store.get(job_id)
        if stored is not None and stored.record.status in ALIVE and self.is_of_here(stored.record):
            self.on_stranger(stored)
        return stored

    async def on_disk(self, job_id: str) -> Stored | None:
        """Return the job as the store has it at this moment, None where there is none."""
        return await self._store.get(job_id)

    def turns(self) -> AsyncGenerator[Sequence[JobRecord | Turn], None]:
        """Give every job that has not ended, some at a time."""
        return self._store.turns()

    async def bring(self, job_ids: Iterable[str]) -> None:
        """Have jobs that have not started at hand: they are about to be changed."""
        at_hand = self._at_hand
        wanted = [job_id for job_id in job_ids if at_hand.waiting(job_id) is None]
        for stored in await self._store.get_all(wanted) if wanted else ():
            job_id = stored.record.self_id
            is_known = at_hand.waiting(job_id) or at_hand.alive(job_id)
            if stored.record.status in WAITING and not is_known:
                at_hand.keep_waiting(stored)

    async def about_to_start(self, job_id: str) -> Stored:
        """Return a job that waits, as it was a moment ago at least. Raises JobNotFound."""
        return self._at_hand.waiting(job_id) or await self.stored(job_id)

    async def page(self, query: Query) -> list[JobRecord]:
        """Return a page of records."""
        return await self._store.page(query)

    async def under_way(self, host: str | None = None) -> list[Unfinished]:
        """Return every job that has an attempt which has not ended; of one host, or of all."""
        if host is None:
            return await self._store.unfinished(ALIVE)
        jobs = await self.alive_on(host)
        return [Unfinished(job.record.self_id, job.record.status, job.attempt) for job in jobs]

    async def alive_on(self, host: str) -> list[Stored]:
        """Return the jobs that have an attempt on the host which has not ended."""
        alive = await self._store.page(Query(filter=JobFilter(status=list(ALIVE))))
        ids = [record.self_id for record in alive if record.host == host]
        found = await self._store.get_all(ids) if ids else []
        return [job for job in found if job.record.status in ALIVE and job.record.host == host]

    async def dependents(self, job_id: str) -> list[str]:
        """Return the ids of the jobs whose record says that they depend on this one."""
        return await self._store.dependents(job_id)

    async def documents(self, kind: str) -> dict[str, str]:
        """Return the documents of a kind, by name."""
        return await self._store.documents(kind)

    async def document_kinds(self) -> list[str]:
        """Return every kind of which there is a document."""
        return await self._store.document_kinds()

    async def put_document(self, kind: str, name: str, body: str | None) -> None:
        """Keep a document, None: none any more; other processes are told."""
        await self._store.put_document(kind, name, body)
        self._heed()  # it may be news to us as well

    async def count(self, filter: JobFilter) -> Mapping[Status, int]:
        """Return how many records match, by status."""
        return await self._store.count(filter)

    async def tally(self) -> Metrics:
        """Return how many jobs there are of what."""
        return await self._store.tally()

    async def history(self, job_id: str) -> list[JobEvent]:
        """Return every change of the job's status, oldest first."""
        return await self._store.history(job_id=job_id)

    async def latest(self, job_id: str, most: int) -> list[JobEvent]:
        """Return the last changes of the job's status, so many at most, oldest first."""
        return await self._store.latest(job_id, most)

    async def wait_for(self, job_id: str, wanted: frozenset[Status] | None = None) -> JobRecord:
        """Return the record that has reached ``wanted``, or by which the job has ended.

        Raises JobNotFound, StatusUnreachable. Cancelling costs nothing.
        """
        with self.waits.wait(job_id, wanted) as waiter:
            await self.look(waiter)
            return await waiter.future

    async def look(self, waiter: Waiter) -> None:
        """End the wait if the job's record as it is now does. Raises JobNotFound.

        To be asked once it listens, so that nothing falls in between.
        """
        record = self._at_hand.ended(waiter.job_id) or await self.get(waiter.job_id)
        if record is None:
            raise JobNotFound(waiter.job_id)
        waiter.consider(record)

    async def look_for_each(self, waiters: Sequence[Waiter]) -> None:
        """As ``look``, for waits for different jobs; of what has ended the store is asked."""
        for start in range(0, len(waiters), _LOOKED_AT):
            some = waiters[start : start + _LOOKED_AT]
            alive = [self._at_hand.alive(waiter.job_id) for waiter in some]
            known = {stored.record.self_id: stored.record for stored in alive if stored}
            read: list[JobRecord] = []
            if unknown := [waiter.job_id for waiter in some if waiter.job_id not in known]:
                filter = JobFilter(self_id=unknown)
                read = await self._store.page(Query(filter=filter, sort_by="self_id"))
                known.update((record.self_id, record) for record in read)
            for waiter in some:
                if waiter.job_id not in known:
                    raise JobNotFound(waiter.job_id)
                waiter.consider(known[waiter.job_id])
            await self._meet(read)


def unstarted() -> Attempt:
    """Return the attempt of a job that nobody has begun to start."""
    return Attempt(token=new_token(), supervisor="")


def _save(before: JobRecord, event: Event, after: JobRecord, launch: Launch | None) -> Save:
    """Return the write of what the event has made of the record."""
    ended = ended_attempt(before, event, after)
    return Save(
        record=after,
        previous=before.status,
        # What is heard of an attempt that has ended must not be taken for the next one's.
        attempt=unstarted() if ended else _attempt_of(event),
        launch=launch,
        why=event.why,
        ended=ended,
        is_respecified=_is_respecified(before, after),
    )


def _attempt_of(event: Event) -> Attempt | None:
    return event.attempt if isinstance(event, (Admitted, Started, Adopted)) else None


def _is_respecified(before: JobRecord, after: JobRecord) -> bool:
    """Return whether more of a record has changed than what happens to every job."""
    return (
        after.depends_on is not before.depends_on
        or after.metadata is not before.metadata
        or after.result is not before.result
        or after.host != before.host
    )


def _own(cause: BaseException) -> AnodeJobsError:
    """Return the cause as an error that callers know."""
    return as_ours(
        cause, StoreError(f"the write was given up: {str(cause) or type(cause).__name__}")
    )
