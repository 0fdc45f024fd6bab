"""What a store finds, counts and measures, held against a model of it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import aclosing
from datetime import timedelta
from itertools import chain, product

import pytest

from anodejobs.errors import JobNotFound
from anodejobs.records import JobFilter, Status
from anodejobs.stores.base import (
    SORT_KEYS,
    Delete,
    InsertAll,
    JobStore,
    Query,
    Write,
    changes_of,
)
from anodejobs.testing.made import NOON, make_insert, make_launch, make_record, make_save
from anodejobs.testing.model import (
    FILTERS,
    expected_counts,
    expected_metrics,
    expected_page,
    put_many,
    put_varied,
    random_write,
)
from anodejobs.testing.suite import StoreSuite, get_counts, get_record, ids_of, put


class QueryContract(StoreSuite):
    """What ``page``, ``count`` and ``tally`` promise."""

    # Pages.

    async def test_a_page_has_what_matches_in_order(self, store: JobStore) -> None:
        records = await put_many(store)
        for query in _every_query():
            assert await store.page(query) == expected_page(records, query), query

    async def test_paging_by_after_visits_every_match_once(self, store: JobStore) -> None:
        records = await put_many(store)
        for query in _every_query():
            visited = await _ids_page_by_page(store, dataclasses.replace(query, limit=17))
            assert visited == ids_of(expected_page(records, query)), query

    async def test_any_mix_of_filter_order_limit_offset_and_after_agrees_with_a_model(
        self, store: JobStore
    ) -> None:
        records = await put_many(store)
        rng = random.Random(20240229)
        for _ in range(300):
            query = Query(
                filter=rng.choice(list(FILTERS.values())),
                sort_by=rng.choice(SORT_KEYS),
                descending=rng.random() < 0.5,
                limit=rng.choice([None, 0, 1, 5, 100]),
                offset=rng.choice([0, 0, 1, 4, 100]),
                after=rng.choice([None, rng.choice(records).self_id]),
            )
            assert ids_of(await store.page(query)) == ids_of(expected_page(records, query)), query

    async def test_a_filter_may_name_thousands_of_ids(self, store: JobStore) -> None:
        record = await put(store, make_record("known"))
        ids = [f"unknown-{n}" for n in range(10_000)]
        filter = JobFilter(self_id=[*ids, "known"], status=["starting", "running", "paused"])
        assert await store.page(Query(filter=filter, limit=10)) == [record]
        assert await get_counts(store, filter) == {Status.running: 1}

    async def test_each_of_several_texts_is_looked_for_as_it_is(self, store: JobStore) -> None:
        names = ["ab", "a\0b", "a", "\0", "", "\U0001f600"]
        for name in names:
            record = await put(store, make_record(f"job-{names.index(name)}", name=name))
            for others in (["other"], ["other\0", "\ud800"]):
                filter = JobFilter(name=[name, *others])
                assert await store.page(Query(filter=filter)) == [record], (name, others)
                assert await get_counts(store, filter) == {Status.running: 1}, (name, others)
        like_one = JobFilter(name=["\ud83d\ude00", "other"])
        assert await store.page(Query(filter=like_one)) == []

    @pytest.mark.parametrize("offset", [0, 1])
    async def test_a_limit_may_be_as_large_as_a_query_allows(
        self, store: JobStore, offset: int
    ) -> None:
        records = [await put(store, make_record(job_id)) for job_id in "abc"]
        query = Query(filter=JobFilter(), limit=2**62 - 1, offset=offset)
        assert await store.page(query) == records[offset:]

    async def test_an_offset_beyond_the_end_gives_an_empty_page(self, store: JobStore) -> None:
        await put(store, make_record())
        for offset in (1, 2**62 - 1):
            assert await store.page(Query(filter=JobFilter(), limit=10, offset=offset)) == []

    async def test_a_page_after_an_unknown_job_is_refused(self, store: JobStore) -> None:
        gone = await put(store, make_record("gone"))
        await store.commit([Delete(record=gone)])
        for sort_by, unknown in product(SORT_KEYS, ("unknown", "gone")):
            with pytest.raises(JobNotFound) as caught:
                await store.page(Query(filter=JobFilter(), sort_by=sort_by, after=unknown))
            assert caught.value.job_id == unknown

    async def test_a_page_after_what_can_be_no_id_is_refused(self, store: JobStore) -> None:
        with pytest.raises(JobNotFound):
            await store.page(Query(filter=JobFilter(), after="\udcff"))

    async def test_the_job_a_page_comes_after_need_not_match(self, store: JobStore) -> None:
        for job_id, status in [("a", "running"), ("b", "finished"), ("c", "running")]:
            await put(store, make_record(job_id, status=status))
        running = Query(filter=JobFilter(status="running"), after="b")
        assert ids_of(await store.page(running)) == ["c"]
        back = dataclasses.replace(running, descending=True)
        assert ids_of(await store.page(back)) == ["a"]

    # Turns.

    async def test_turns_pass_over_no_job_where_another_is_begun_anew_meanwhile(
        self, store: JobStore
    ) -> None:
        records = [make_record(f"job-{n:04}", status="queued") for n in range(1001)]
        await store.commit([InsertAll(tuple(map(make_insert, records)))])
        visited: set[str] = set()
        async with aclosing(store.turns()) as turns:
            async for page in turns:
                if not visited:
                    last = await get_record(store, page[-1].self_id)
                    again = make_launch(last.self_id)
                    later = NOON + timedelta(days=1)
                    await store.commit([make_save(last, launch=again, created_at=later)])
                visited.update(turn.self_id for turn in page)
        assert visited == set(ids_of(records))

    # Counts.

    async def test_counts_agree_with_a_model(self, store: JobStore) -> None:
        records = await put_many(store)
        for name, filter in FILTERS.items():
            assert await get_counts(store, filter) == expected_counts(records, filter), name

    async def test_counts_follow_saves_renewals_and_deletes(self, store: JobStore) -> None:
        records = {record.self_id: record for record in await put_many(store)}
        rng = random.Random(1)
        for _ in range(20):
            writes: list[Write] = [
                random_write(rng, r) for r in rng.sample(list(records.values()), 5)
            ]
            writes.append(make_save(make_record("unknown"), status=Status.lost))
            await store.commit(writes)
            for change in chain.from_iterable(map(changes_of, writes[:-1])):
                records[change.record.self_id] = change.record
                if isinstance(change, Delete):
                    del records[change.record.self_id]
            for name in ("nothing", "statuses", "names", "a user", "a tag", "created after"):
                expected = expected_counts(records.values(), FILTERS[name])
                assert await get_counts(store, FILTERS[name]) == expected, name

    # Metrics.

    async def test_an_empty_store_has_nothing_to_tell(self, store: JobStore) -> None:
        metrics = await store.tally()
        assert metrics == expected_metrics([])
        assert metrics.by_status == dict.fromkeys(Status, 0)
        assert (metrics.durations.mean, metrics.durations.max) == (None, None)

    async def test_metrics_agree_with_a_model(self, store: JobStore) -> None:
        records = await put_varied(store)
        assert await store.tally() == expected_metrics(records)

    async def test_metrics_follow_saves_renewals_and_deletes(self, store: JobStore) -> None:
        rng = random.Random(1)
        records = {record.self_id: record for record in await put_varied(store)}
        for _ in range(20):
            writes = [random_write(rng, r) for r in rng.sample(list(records.values()), 5)]
            await store.commit(writes)
            for change in chain.from_iterable(map(changes_of, writes)):
                records[change.record.self_id] = change.record
                if isinstance(change, Delete):
                    del records[change.record.self_id]
            assert await store.tally() == expected_metrics(records.values())

    async def test_a_job_counts_once_for_a_tag(self, store: JobStore) -> None:
        await put(store, make_record("a", tags=["red", "it's", "red"]))
        await put(store, make_record("b", tags=["red"]))
        assert (await store.tally()).by_tag == {"red": 2, "it's": 1}

    async def test_what_has_not_run_to_an_end_has_no_duration(self, store: JobStore) -> None:
        moments = {"started_at": NOON, "finished_at": NOON + timedelta(seconds=5)}
        for status in Status:
            # One that waits for its next attempt has the times of the last, and keeps them when
            # that is withdrawn.
            await put(store, make_record(status.value, status=status, **moments))
        durations = (await store.tally()).durations
        ended = sum(s.is_terminal and s is not Status.cancelled for s in Status)
        assert (durations.count, durations.mean, durations.max) == (ended, 5.0, 5.0)

    async def test_what_never_started_has_no_duration(self, store: JobStore) -> None:
        await put(store, make_record("a", status="cancelled", finished_at=NOON))
        assert (await store.tally()).durations.count == 0

    async def test_a_clock_that_was_set_back_makes_no_duration_negative(
        self, store: JobStore
    ) -> None:
        moments = {"started_at": NOON, "finished_at": NOON - timedelta(hours=1)}
        await put(store, make_record("a", status="finished", **moments))
        durations = (await store.tally()).durations
        assert (durations.count, durations.mean, durations.max) == (1, 0.0, 0.0)


def _every_query() -> Iterator[Query]:
    """Give each filter in each order."""
    for sort_by, descending, filter in product(SORT_KEYS, (False, True), FILTERS.values()):
        yield Query(filter=filter, sort_by=sort_by, descending=descending)


async def _ids_page_by_page(store: JobStore, query: Query) -> list[str]:
    visited: list[str] = []
    while page := await store.page(query):
        assert query.limit is None or len(page) <= query.limit
        visited += ids_of(page)
        assert len(visited) == len(set(visited)), "a job was visited twice"
        query = dataclasses.replace(query, after=visited[-1])
    return visited
