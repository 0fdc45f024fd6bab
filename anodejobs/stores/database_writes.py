"""A batch of writes in one transaction of a database, a few statements whatever their number.

Who writes holds the row that counts the history, to the end of the transaction: the numbers have
no gaps and ascend as the transactions come. So nobody else changes a revision meanwhile: which
writes are applied is known before the first statement.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from anodejobs.records import JobEvent
from anodejobs.stores.base import (
    Delete,
    Insert,
    InsertAll,
    Lease,
    Save,
    Stored,
    Write,
    changes_of,
    check_restored,
    steps_of,
)
from anodejobs.stores.database_leases import Member, has_expired, remove, renew
from anodejobs.stores.database_saves import plain_saves, saved_before, saves_statement
from anodejobs.stores.database_schema import (
    COUNTERS,
    DEPENDENCIES,
    DOCUMENTS,
    ENVIRONMENTS,
    HISTORY,
    JOBS,
    SPECS,
    TAGS,
)
from anodejobs.stores.database_sql import Dialect, Insertion, Session, Statement
from anodejobs.stores.rows import Row, fact_columns, key_columns, spec_of
from anodejobs.stores.write_rows import (
    Environments,
    attempt_text,
    dropped_specs,
    event_row,
    history_row,
    insert_row,
    inserted,
    specs_of,
)

Change = Insert | Save | Delete


_TOLD = "SELECT seq, job_id, attempt, at, previous, status FROM anodejobs_history"


class Work(Protocol):
    """What is done in one transaction, and again from its beginning where that is lost."""

    @property
    def turn(self) -> int:
        """Its number among all transactions, once it was done."""

    def do(self, session: Session) -> None:
        """Execute the statements. The caller commits."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How far the history is, and how many transactions there were."""

    seq: int
    turn: int


def held_clock(session: Session) -> Clock:
    """Wait until nobody else writes, keep it so to the end of the transaction, and look."""
    ring, parameters = session.ring
    counters = session.rows(
        f"SELECT name, value{ring} FROM anodejobs_counters WHERE name IN ('seq', 'turn')"
        " ORDER BY name FOR UPDATE",
        parameters,
    )
    return Clock(**{name: int(value) for name, value, *_ in counters})


class Batch:
    """Writes that are applied in one transaction, each by itself."""

    def __init__(
        self,
        writes: Sequence[Write],
        environments: Environments,
        *,
        known_seq: int = 0,
        late: Callable[[], Member | None] = lambda: None,
    ) -> None:
        self._writes = writes
        self._late = late
        """Whose lease is to be renewed with it; asked each time that it is tried."""
        self.has_renewed = False
        self._specs = specs_of(writes, environments)
        self._saves = plain_saves(writes)
        self._was_tried_at_once = False
        self._known_seq = known_seq
        """Where the history was at least, before this was tried."""
        self._told: list[Row] = []
        """The history of the last attempt to apply it, of which we may not know the outcome."""
        self.turn = 0
        self.results: list[int | None] = []
        """As ``JobStore.commit`` returns them; there once the batch was applied."""

    def at_once(self, dialect: Dialect, ring: Statement) -> Statement | None:
        """Return the one statement that does it all, where there is one; the first time only."""
        if self._saves is None or self._was_tried_at_once or not dialect.knows_saves:
            return None
        if self._late() is not None:
            return None
        self._was_tried_at_once = True
        return saves_statement(self._saves, ring)

    def note_done_at_once(self, rows: Sequence[Row]) -> None:
        """Take note of what the one statement gave."""
        seqs = {int(nth): int(seq) for nth, seq, *_ in rows}  # of several the last
        self.results = [seqs.get(nth) for nth in range(1, len(self._writes) + 1)]

    def do(self, session: Session) -> None:
        """Execute the statements, unless an earlier attempt was committed after all."""
        clock = held_clock(session)
        if self._was_tried_at_once and self._saves and not self.turn:
            job_ids = [save.record.self_id for save in self._saves]
            told = session.rows_among(_TOLD, "job_id", job_ids)
            new = [row for row in told if row[0] > self._known_seq]
            results = saved_before(self._saves, new)
            if results is not None:
                self.results = results
                return
        if self._told and _is_told(session, self._told):
            return
        is_repeated = self.turn > 0
        member = self._late()
        if member is not None:
            renew(session, member, epoch=clock.turn)
            self.has_renewed = True
        is_applied = self._decide(session)
        changes = [
            change
            for write, is_applied in zip(self._writes, is_applied, strict=True)
            if is_applied
            for change in changes_of(write)
        ]
        self._told = []
        inserts: list[Insertion] = []
        left: set[str] = set()
        for changed in _rounds(changes):
            if self._told:
                session.insert(*inserts)
                inserts = []
            left |= self._left_environments(session, changed)
            entries = list(_entries(changed, clock.seq + len(self._told)))
            self._told += entries
            inserts += [*self.apply(session, changed), (HISTORY, entries)]
        session.insert(*inserts, (COUNTERS, _counts(changes)))
        _forget_environments(session, left)
        self.turn = clock.turn + 1
        self.results = list(_results(self._writes, is_applied, clock.seq))
        if is_repeated:
            _pardon_deletes(session, self._writes, self.results)

    def _decide(self, session: Session) -> list[bool]:
        return decide(self._writes, _revisions(session, self._writes))

    def _left_environments(self, session: Session, changes: Sequence[Change]) -> set[str]:
        """Return the environments that these changes of one job each leave for others, or none."""
        job_ids = dropped_specs(changes)
        if not job_ids:
            return set()
        sql = "SELECT job_id, environment FROM anodejobs_specs"
        named = session.rows_among(sql, "job_id", job_ids)
        specs = (self._specs.get(id(change)) for change in changes)
        kept = {(spec.row[0], spec.environment[0]) for spec in specs if spec is not None}
        return {digest for _, digest in set(named) - kept}

    def apply(self, session: Session, changes: Sequence[Change]) -> list[Insertion]:
        """Delete what changes of one job each leave nothing of; return what is to be inserted.

        That is all but history and counts.
        """
        records, specs, environments = [], [], set()
        gone, relinked, untagged = [], [], []
        tags, dependencies = [], []
        for change in changes:
            job_id = change.record.self_id
            if isinstance(change, Delete):
                gone.append(job_id)
                continue
            records.append(_record_row(change))
            is_new_run = change.launch is not None
            if is_new_run:
                spec = self._specs[id(change)]
                specs.append(spec.row)
                environments.add(spec.environment)
                tags += [(job_id, n, tag) for n, tag in enumerate(set(change.record.tags))]
            elif isinstance(change, Save) and change.is_respecified:
                specs.append((job_id, spec_of(change.record), "", ""))
            else:
                continue
            dependencies += [(other, job_id) for other in set(change.record.depends_on)]
            if isinstance(change, Save):
                relinked.append(job_id)
                if is_new_run:
                    untagged.append(job_id)
        for table in (JOBS, SPECS, HISTORY):
            session.delete(table.name, "job_id", gone)
        session.delete(TAGS.name, "job_id", gone + untagged)
        session.delete(DEPENDENCIES.name, "job_id", gone + relinked)
        return [
            *((ENVIRONMENTS, list(environments)), (JOBS, records), (SPECS, specs)),
            *((TAGS, tags), (DEPENDENCIES, dependencies)),
        ]


class Restoration:
    """Jobs and their history as another store has them."""

    def __init__(
        self,
        jobs: Sequence[Stored],
        history: Sequence[JobEvent],
        last_seq: int,
        environments: Environments,
    ) -> None:
        self._inserts = [inserted(stored) for stored in jobs]
        self._batch = Batch(self._inserts, environments)
        self._history = [event_row(event) for event in history]
        self._events = history
        self._last_seq = last_seq
        self.turn = 0

    def do(self, session: Session) -> None:
        """Execute the statements, unless an earlier attempt was committed after all."""
        clock = held_clock(session)
        if self.turn and self._history and _is_told(session, self._history):
            return
        self.turn = clock.turn + 1
        check_restored(clock.seq, self._events, _revisions(session, self._inserts))
        counters = Counter(insert.record.status.value for insert in self._inserts)
        counters.update(turn=1, seq=self._last_seq - clock.seq)
        session.insert(
            *self._batch.apply(session, self._inserts),
            (HISTORY, self._history),
            (COUNTERS, sorted(counters.items())),
        )


class LeaseEnd(Batch):
    """The end of a lease that is over, with saves and a document: all of it, or nothing."""

    def __init__(
        self,
        lease: Lease,
        saves: Sequence[Save],
        environments: Environments,
        document: tuple[str, str, str] | None,
    ) -> None:
        super().__init__(saves, environments)
        self._lease = lease
        self._document = document
        self.was_ended = False
        """Whether it was we who have ended it."""

    def at_once(self, dialect: Dialect, ring: Statement) -> None:
        """There is more to be done than to save."""

    def _decide(self, session: Session) -> list[bool]:
        applied = super()._decide(session)
        self.was_ended = all(applied) and has_expired(session, self._lease)
        if not self.was_ended:
            return [False] * len(applied)
        remove(session, self._lease)
        if self._document is not None:
            put_document(session, *self._document)
        return applied


@dataclass(slots=True)
class LeaseRenewal:
    """What a host says when it has nothing else to say. Nobody is told of it."""

    member: Member
    turn: int = field(default=0, init=False)

    def do(self, session: Session) -> None:
        """Execute the statements, as ``Batch.do``."""
        self.turn = held_clock(session).turn
        renew(session, self.member, epoch=self.turn)


@dataclass(slots=True)
class DocumentWrite:
    """One document that is kept, or removed."""

    kind: str
    name: str
    body: str | None
    turn: int = field(default=0, init=False)

    def do(self, session: Session) -> None:
        """Execute the statements, as ``Batch.do``."""
        self.turn = held_clock(session).turn + 1
        put_document(session, self.kind, self.name, self.body)
        session.insert((COUNTERS, [("turn", 1)]))


def put_document(session: Session, kind: str, name: str, body: str | None) -> None:
    """Keep a document, or remove it."""
    # Of the two names together: neither server has keys as long as these may be.
    named = f"{len(kind)} {kind} {name}"
    digest = hashlib.sha256(named.encode()).hexdigest()
    if body is None:
        session.delete(DOCUMENTS.name, "digest", [digest])
    else:
        session.insert((DOCUMENTS, [(digest, kind, name, body)]))


def decide(writes: Sequence[Write], revisions: dict[str, int]) -> list[bool]:
    """Return of each write whether it is applied, where the jobs have these revisions.

    A write is judged by what those before it leave.
    """
    return [_decide(write, revisions) for write in writes]


def _decide(write: Write, revisions: dict[str, int]) -> bool:
    if isinstance(write, InsertAll):
        job_ids = [insert.record.self_id for insert in write.inserts]
        is_applied = len(set(job_ids)) == len(job_ids) and revisions.keys().isdisjoint(job_ids)
    elif isinstance(write, Insert):
        is_applied = write.record.self_id not in revisions
    else:
        made_from = write.made_from if isinstance(write, Save) else write.record.revision
        is_applied = revisions.get(write.record.self_id) == made_from
    for change in changes_of(write) if is_applied else ():
        if isinstance(change, Delete):
            del revisions[change.record.self_id]
        else:
            revisions[change.record.self_id] = change.record.revision
    return is_applied


def _revisions(session: Session, writes: Sequence[Write]) -> dict[str, int]:
    job_ids = list({change.record.self_id for write in writes for change in changes_of(write)})
    if not job_ids:
        return {}
    sql = "SELECT job_id, revision FROM anodejobs_jobs"
    return dict(session.rows_among(sql, "job_id", job_ids))


def _rounds(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Give the changes in their order, in parts of which none has a job twice: mostly one."""
    part: list[Change] = []
    seen: set[str] = set()
    for change in changes:
        if change.record.self_id in seen:
            yield part
            part, seen = [], set()
        part.append(change)
        seen.add(change.record.self_id)
    if part:
        yield part


def _forget_environments(session: Session, digests: Collection[str]) -> None:
    """Remove those that no spec names any more."""
    if digests:
        condition, parameters = session.dialect.among("digest", list(digests))
        session.do(
            f"DELETE FROM anodejobs_base_environments WHERE {condition}"
            " AND NOT EXISTS (SELECT 1 FROM anodejobs_specs WHERE environment = digest)",
            parameters,
        )


def _record_row(change: Insert | Save) -> Row:
    """Return the row of the record; the attempt is empty where it stays."""
    if isinstance(change, Insert):
        return insert_row(change)
    record = change.record
    return (*key_columns(record), *fact_columns(record), attempt_text(change) or "")


def _entries(changes: Sequence[Change], seq: int) -> Iterator[Row]:
    for change in changes:
        if not isinstance(change, Delete):
            for step in steps_of(change):
                seq += 1
                yield (seq, *history_row(step))


def _counts(changes: Sequence[Change]) -> list[Row]:
    counters = Counter({"turn": 1})
    for change in changes:
        status = change.record.status.value
        if isinstance(change, Delete):
            counters[status] -= 1
            continue
        steps = steps_of(change)
        counters["seq"] += len(steps)
        counters[status] += 1
        if steps[0].previous is not None:
            counters[steps[0].previous.value] -= 1
    return sorted((name, n) for name, n in counters.items() if n)


def _results(writes: Sequence[Write], is_applied: Sequence[bool], seq: int) -> Iterator[int | None]:
    for write, was_applied in zip(writes, is_applied, strict=True):
        if not was_applied:
            yield None
        elif isinstance(write, Delete):
            yield 0
        else:
            seq += sum(len(steps_of(change)) for change in changes_of(write))
            yield seq


def _is_told(session: Session, told: Sequence[Row]) -> bool:
    """Return whether the history has what a batch would have put into it."""
    columns = ", ".join(HISTORY.columns)
    sql = f"SELECT {columns} FROM anodejobs_history WHERE seq >= ? AND seq <= ?"
    found = session.rows(sql, (told[0][0], told[-1][0]))
    return not {tuple(row[:6]) for row in found}.isdisjoint(tuple(row[:6]) for row in told)


def _pardon_deletes(session: Session, writes: Sequence[Write], results: list[int | None]) -> None:
    """Take a job that is gone for deleted: the first attempt, now repeated, may have done it."""
    missing = [n for n, write in enumerate(writes) if isinstance(write, Delete) and not results[n]]
    left = _revisions(session, [writes[n] for n in missing])
    for n in missing:
        write = writes[n]
        if isinstance(write, Delete) and write.record.self_id not in left:
            results[n] = 0
