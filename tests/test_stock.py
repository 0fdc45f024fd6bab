"""What the scheduler knows of jobs, though it hears of them late, or not of all that happens."""

from __future__ import annotations

import math
from typing import Any

from anodejobs.events import Admitted, Attempt, Event, Relinked, Withdrawn, utc_now
from anodejobs.jobqueue import JobQueue
from anodejobs.records import JobRecord
from anodejobs.stock import Choice, Stock
from anodejobs.transitions import Opening, opened, reopened, transition

ATTEMPT = Attempt(token="token", supervisor="")
MOST = 500


def stock(slots: int = 1, host: str | None = None) -> Stock:
    queue = JobQueue(max_concurrent_jobs=slots, queues={"narrow": 1}, aging_s=None)
    return Stock(queue, Choice(), host)


def job(job_id: str, opening: Opening = "submit", **fields: Any) -> JobRecord:
    now = utc_now()
    return opened(opening, self_id=job_id, created_at=now, last_update=now, **fields)


def after(record: JobRecord, *events: Event) -> JobRecord:
    for event in events:
        record = transition(record, event)
    return record


def admitted(stock: Stock) -> list[str]:
    return [waiting.job_id for waiting in stock.queue.admit(0)]


def recounted(stock: Stock) -> set[str]:
    """Return which jobs it is time to look at, whenever that is."""
    return set(stock.take_recount(math.inf, MOST))


def test_a_job_that_was_run_anew_in_another_queue_unheard_holds_a_slot_of_that_one() -> None:
    known = stock(slots=2)
    known.hear(old := job("moved", "start", queue="narrow"))
    known.hear(job("waiting", queue="narrow"))
    assert admitted(known) == []
    ended = old.changed({"status": "finished"})
    assert known.hear(reopened(job("moved", "start", queue="wide"), after=ended))
    assert known.queue.occupied() == {"wide": 1}
    assert admitted(known) == ["waiting"]


def test_a_job_that_was_run_anew_on_another_host_unheard_holds_no_slot_of_this_one() -> None:
    known = stock(host="here")
    known.hear(job("moved", "start", host="here"))
    known.hear(job("waiting"))
    assert admitted(known) == []
    assert known.hear(job("moved", "start", host="there"))
    assert admitted(known) == ["waiting"]
    # And the other way round.
    assert not known.hear(job("moved", "start", host="here"))
    assert known.queue.occupied() == {"default": 2}


def test_a_slot_for_a_job_that_another_host_was_quicker_to_start_is_for_the_next_at_once() -> None:
    known = stock(host="here")
    known.hear(first := job("first"))
    known.hear(job("second"))
    assert admitted(known) == ["first"]
    assert known.hear(after(first, Admitted(attempt=ATTEMPT, host="there")))
    assert admitted(known) == ["second"]


def test_whether_slots_are_held_in_vain_is_seen_when_the_next_job_waits_for_one() -> None:
    known = stock()
    known.hear(job("gone", "start"))
    known.heed_others()
    assert recounted(known) == set()
    assert known.rest_s(0) is None
    known.hear(job("waiting"))
    assert known.rest_s(0) == 0
    assert recounted(known) == {"gone"}
    assert recounted(known) == set()
    known.hear(job("another"))
    assert recounted(known) == set()


def test_whether_a_job_is_still_there_that_has_got_a_slot_and_did_not_start_is_seen() -> None:
    known = stock()
    known.hear(job("gone"))
    assert admitted(known) == ["gone"]
    known.hear(job("waiting"))
    known.heed_others()
    assert recounted(known) == {"gone"}
    assert known.lose("gone")
    assert admitted(known) == ["waiting"]


def test_a_job_that_was_withdrawn_for_a_cycle_is_part_of_none() -> None:
    known = stock()
    known.hear(job("never", "create"))
    known.hear(first := job("first", depends_on=["never"]))
    known.hear(one := job("one", depends_on=["first"]))
    known.hear(job("other", depends_on=["one"]))
    known.hear(cyclic := after(one, Relinked(depends_on=("first", "other"))))
    (withdrawal,) = known.take_changes(MOST)
    assert (withdrawal.job_id, type(withdrawal.event)) == ("one", Withdrawn)
    # It is run anew before its end is heard of.
    known.hear(reopened(job("one", "start"), after=cyclic))
    known.hear(after(first, Relinked(depends_on=("never", "one"))))
    assert known.take_changes(MOST) == []
