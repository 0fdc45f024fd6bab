"""When a schedule fires: by cron, when clocks change, by intervals, and after downtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anodejobs.errors import InvalidJob
from anodejobs.schedules import Due, Schedule, ScheduleOptions, due, next_after

untimed = settings(deadline=None)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
INSTANT = timedelta.resolution


def test_the_options_of_a_schedule_are_its_fields_beside_its_times():
    times = {"cron", "every", "at"}
    assert ScheduleOptions.__annotations__.keys() | times == Schedule.model_fields.keys()


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def in_zone(text: str, tz: str = "Europe/Berlin", fold: int = 0) -> datetime:
    wall = datetime.fromisoformat(text)
    return wall.replace(tzinfo=ZoneInfo(tz), fold=fold).astimezone(UTC)


def firings(schedule: Schedule, after: datetime, until: datetime) -> list[datetime]:
    """Return what follows from one answer to the next."""
    found: list[datetime] = []
    moment: datetime | None = after
    while moment is not None and (moment := next_after(schedule, moment)) and moment <= until:
        found.append(moment)
    return found


def shown(schedule: Schedule, after: datetime, until: datetime) -> list[str]:
    """Return what the clocks in the schedule's zone show at its firings, with the offset."""
    zone = ZoneInfo(schedule.tz)
    return [
        moment.astimezone(zone).strftime("%d %H:%M %z")
        for moment in firings(schedule, after, until)
    ]


def refused(field: str, make: Callable[[], object]) -> str:
    with pytest.raises(InvalidJob) as caught:
        make()
    assert caught.value.field == field
    return caught.value.problem


# Cron.


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("30 2 * * *", "2024-01-01 02:29:59", "2024-01-01 02:30"),
        ("30 2 * * *", "2024-01-01 02:30", "2024-01-02 02:30"),
        ("*/15 * * * *", "2024-01-01 10:07", "2024-01-01 10:15"),
        ("0 9-17/4 * * MON-FRI", "2024-01-05 17:00", "2024-01-08 09:00"),
        ("0 0 * * 7", "2024-01-01", "2024-01-07"),
        ("0 0 1,15 * MON", "2024-01-01", "2024-01-08"),
        ("0 0 31 * *", "2024-01-31", "2024-03-31"),
        ("0 0 30 * *", "2024-01-30", "2024-03-30"),
        ("0 0 L * *", "2024-01-31", "2024-02-29"),
        ("0 0 L * *", "2023-01-31", "2023-02-28"),
        ("0 0 LW * *", "2024-03-01", "2024-03-29"),
        ("0 0 29 2 *", "2024-02-29", "2028-02-29"),
        ("0 0 29 2 *", "2096-02-29", "2104-02-29"),
        ("0 0 * * MON#2", "2024-01-01", "2024-01-08"),
        ("0 0 * * 5L", "2024-01-01", "2024-01-26"),
        ("@hourly", "2024-01-01 10:07", "2024-01-01 11:00"),
        ("@daily", "2024-01-01 10:07", "2024-01-02"),
        (" @Midnight ", "2024-01-01 10:07", "2024-01-02"),
        ("@weekly", "2024-01-01", "2024-01-07"),
        ("@monthly", "2024-01-31", "2024-02-01"),
        ("@yearly", "2024-01-01", "2025-01-01"),
        ("@annually", "2024-01-01", "2025-01-01"),
    ],
)
def test_cron(cron: str, after: str, expected: str) -> None:
    assert next_after(Schedule(cron=cron), utc(after)) == utc(expected)


def test_cron_is_in_the_zone_of_the_schedule() -> None:
    schedule = Schedule(cron="30 2 * * *", tz="Asia/Kathmandu")
    assert next_after(schedule, utc("2024-01-01")) == utc("2024-01-01 20:45")


def test_a_moment_may_be_given_in_any_zone_and_comes_back_in_utc() -> None:
    moment = datetime(2024, 1, 1, 5, tzinfo=timezone(5 * HOUR))
    firing = next_after(Schedule(cron="30 0 * * *"), moment)
    assert firing == utc("2024-01-01 00:30")
    assert firing.tzinfo is UTC


def test_parts_of_a_second_are_not_lost() -> None:
    schedule = Schedule(cron="30 2 * * *", tz="Europe/Berlin")
    at = in_zone("2024-01-01 02:30")
    assert next_after(schedule, at - INSTANT) == at
    assert next_after(schedule, at + INSTANT) == at + DAY


BAD_CRON = [
    *("", " ", "* * * *", "* * * * * *", "@reboot", "@every 5m", "every day", "a b c d e"),
    *("60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8"),
    *("*/0 * * * *", "-1 * * * *", "5-1 * * * *", "1.5 * * * *", "1,,2 * * * *", "1- * * * *"),
    *("* * * * MON#6", "* * * * XYL", "* * * FOO *", "² * * * *", "0 0 30 2 *", "0 0 31 4,6 *"),
    *("0 0 */31 * MON#5", "9" * 5000 + " * * * *", "*\0 * * * *", "\ud800 * * * *"),
]


@pytest.mark.parametrize("cron", [*BAD_CRON, 5, None, b"* * * * *", ["*"] * 5])
def test_what_is_no_cron_expression_is_refused(cron: Any) -> None:
    refused("cron", lambda: Schedule(cron=cron))


@untimed
@given(
    st.text("0123456789*/,-#LWMONFEB ", max_size=30)
    | st.text(max_size=30)
    | st.lists(st.text("0159*/,-#L", min_size=1, max_size=5), min_size=5, max_size=5).map(" ".join)
)
def test_any_text_is_a_cron_expression_or_is_refused(text: str) -> None:
    try:
        schedule = Schedule(cron=text)
    except InvalidJob:
        return
    after = utc("2024-01-01")
    firing = next_after(schedule, after)
    assert firing is not None
    assert firing > after


# The changes of the clock. In Berlin they are at 02:00, to 03:00, and at 03:00, back to 02:00.

SPRING = in_zone("2024-03-30 12:00"), in_zone("2024-03-31 12:00")
AUTUMN = in_zone("2024-10-26 12:00"), in_zone("2024-10-27 12:00")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", ["31 03:00 +0200"]),
        ("0 2 * * *", ["31 03:00 +0200"]),
        ("0,20,40 2 * * *", ["31 03:00 +0200"]),
        ("0 1,2,3 * * *", ["31 01:00 +0100", "31 03:00 +0200"]),
        ("30 2,3 * * *", ["31 03:00 +0200", "31 03:30 +0200"]),
        ("59 1 * * *", ["31 01:59 +0100"]),
        ("0 1-4 * * *", ["31 01:00 +0100", "31 03:00 +0200", "31 04:00 +0200"]),
        ("*/20 2 * * *", []),
    ],
)
def test_a_time_of_day_that_is_left_out_is_made_up_for_once(cron: str, expected: list[str]) -> None:
    assert shown(Schedule(cron=cron, tz="Europe/Berlin"), *SPRING) == expected


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", ["27 02:30 +0200"]),
        ("0 2 * * *", ["27 02:00 +0200"]),
        ("0 3 * * *", ["27 03:00 +0100"]),
        ("0,30 2 * * *", ["27 02:00 +0200", "27 02:30 +0200"]),
        ("0 1-3 * * *", ["27 01:00 +0200", "27 02:00 +0200", "27 03:00 +0100"]),
        (
            "*/30 2 * * *",
            ["27 02:00 +0200", "27 02:30 +0200", "27 02:00 +0100", "27 02:30 +0100"],
        ),
    ],
)
def test_a_time_of_day_that_comes_twice_counts_once(cron: str, expected: list[str]) -> None:
    assert shown(Schedule(cron=cron, tz="Europe/Berlin"), *AUTUMN) == expected


@pytest.mark.parametrize("tz", ["Europe/Berlin", "America/New_York", "America/Havana"])
@pytest.mark.parametrize("cron", ["0 * * * *", "@hourly", "*/60 * * * *"])
def test_hourly_is_every_hour_whatever_clocks_do(cron: str, tz: str) -> None:
    found = firings(Schedule(cron=cron, tz=tz), utc("2024-01-01"), utc("2025-01-01"))
    assert {later - earlier for earlier, later in pairwise(found)} == {HOUR}
    assert len(found) == 366 * 24


def test_a_time_that_comes_again_is_not_waited_for_in_the_second_hour() -> None:
    schedule = Schedule(cron="45 2 * * *", tz="Europe/Berlin")
    second = in_zone("2024-10-27 02:30", fold=1)
    assert next_after(schedule, second) == in_zone("2024-10-28 02:45")


def test_a_day_that_a_zone_leaves_out_is_made_up_for_when_the_next_begins() -> None:
    schedule = Schedule(cron="0 12 30 12 *", tz="Pacific/Apia")
    assert next_after(schedule, utc("2011-12-01")) == in_zone("2011-12-31", "Pacific/Apia")


# In each of these zones, and from this day on, a change of the clock that has its own troubles.
CHANGES = {
    "Europe/Berlin in spring": ("Europe/Berlin", "2024-03-30"),
    "Europe/Berlin in autumn": ("Europe/Berlin", "2024-10-26"),
    "America/New_York in spring": ("America/New_York", "2024-03-09"),
    "America/New_York in autumn": ("America/New_York", "2024-11-02"),
    "by half an hour, forward": ("Australia/Lord_Howe", "2024-10-05"),
    "by half an hour, back": ("Australia/Lord_Howe", "2024-04-06"),
    "at midnight, forward": ("America/Havana", "2024-03-09"),
    "after midnight, back": ("America/Havana", "2024-11-02"),
    "at midnight, back to the day before": ("Asia/Beirut", "2024-10-26"),
    "a day left out": ("Pacific/Apia", "2011-12-29"),
    "none": ("Asia/Kathmandu", "2024-06-01"),
}


@cache
def clock(tz: str, day: str) -> list[tuple[datetime, datetime]]:
    """Return what a clock shows in each minute of the three days."""
    zone, begin = ZoneInfo(tz), utc(day)
    moments = [begin + number * MINUTE for number in range(3 * 24 * 60)]
    return [(moment, moment.astimezone(zone).replace(tzinfo=None, fold=0)) for moment in moments]


def expected_firings(
    tz: str, day: str, minutes: set[int], hours: set[int], follows_clock: bool
) -> list[datetime]:
    """Look at every minute, and at every time of day that the clock might have shown."""
    minute_by_minute = clock(tz, day)
    if follows_clock:
        return [m for m, wall in minute_by_minute if wall.minute in minutes and wall.hour in hours]
    found: list[datetime] = []
    last = max(wall for _, wall in minute_by_minute)
    ahead = iter(minute_by_minute)
    moment, time = next(ahead)
    latest = time
    while time <= last:
        while latest < time:
            moment, wall = next(ahead)
            latest = max(latest, wall)
        if time.minute in minutes and time.hour in hours and moment not in found[-1:]:
            found.append(moment)
        time += MINUTE
    return found


@st.composite
def fields(draw: st.DrawFn, size: int) -> tuple[str, set[int]]:
    """Draw a field of cron, and what it means."""
    step = draw(st.integers(1, size))
    some = st.sets(st.integers(0, size - 1), min_size=1, max_size=4)
    return draw(
        st.sampled_from([("*", set(range(size))), (f"*/{step}", set(range(0, size, step)))])
        | some.map(lambda values: (",".join(map(str, sorted(values))), values))
    )


@pytest.mark.parametrize(("tz", "day"), CHANGES.values(), ids=CHANGES)
@settings(deadline=None, max_examples=40)
@given(minute=fields(60), hour=fields(24), start=st.integers(0, 3 * 24 * 3600 - 1))
def test_no_firing_is_left_out_or_doubled_when_clocks_change(
    tz: str, day: str, minute: tuple[str, set[int]], hour: tuple[str, set[int]], start: int
) -> None:
    schedule = Schedule(cron=f"{minute[0]} {hour[0]} * * *", tz=tz)
    follows_clock = minute[0].startswith("*") or hour[0].startswith("*")
    expected = expected_firings(tz, day, minute[1], hour[1], follows_clock)
    begin = utc(day)
    after = begin + timedelta(seconds=start)
    until = begin + 3 * DAY - MINUTE
    due_then = [moment for moment in expected if moment > after]
    assert not due_then or next_after(schedule, after) == due_then[0]
    every = due(Schedule(schedule, misfire="all"), after, until, most=5000)
    assert every == Due(due_then)
    latest = due(schedule, after, until)
    assert latest == Due(due_then[-1:])


@untimed
@given(
    st.sampled_from(["0 0 L * *", "* * 29 2 *", "*/7 3 * * 5", "30 2 * * *", "59 23 31 * *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/Havana", "Australia/Lord_Howe"]),
    st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)
def test_each_firing_is_later_than_the_one_before_and_there_is_none_between(
    cron: str, tz: str, moment: datetime
) -> None:
    schedule = Schedule(cron=cron, tz=tz)
    first = next_after(schedule, moment)
    assert first is not None
    assert moment < first
    assert next_after(schedule, first - INSTANT) == first
    assert next_after(schedule, moment + (first - moment) / 2) in (first, None)
    second = next_after(schedule, first)
    assert second is not None
    assert first < second


# Intervals.


@pytest.mark.smoke
def test_an_interval_begins_at_its_start() -> None:
    schedule = Schedule(every=90, start=utc("2024-01-01 00:00:10"))
    assert firings(schedule, utc("2023-01-01"), utc("2024-01-01 00:05:00")) == [
        utc("2024-01-01 00:00:10"),
        utc("2024-01-01 00:01:40"),
        utc("2024-01-01 00:03:10"),
        utc("2024-01-01 00:04:40"),
    ]


def test_an_interval_without_a_start_is_counted_from_1970() -> None:
    assert next_after(Schedule(every=3600), utc("2024-01-01 10:07")) == utc("2024-01-01 11:00")


def test_an_interval_is_as_long_as_it_says_when_clocks_change() -> None:
    schedule = Schedule(every=DAY, tz="Europe/Berlin", start="2024-03-30T11:00")
    assert shown(schedule, *SPRING) == ["31 12:00 +0200"]


def test_an_interval_may_be_a_timedelta() -> None:
    assert Schedule(every=timedelta(minutes=1.5)).every == 90.0


@untimed
@given(
    st.floats(0.001, 1e6),
    st.integers(0, 10**5),
    st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)
def test_an_interval_does_not_drift(seconds: float, number: int, start: datetime) -> None:
    schedule = Schedule(every=seconds, start=start)
    every = timedelta(seconds=seconds)
    firing = start + number * every
    assert next_after(schedule, firing - INSTANT) == firing
    assert next_after(schedule, firing) == firing + every


@pytest.mark.parametrize(
    "every",
    [
        *(0, -1, -0.001, float("nan"), float("inf"), "60", True, 10**400, [1], 1e11, 1e-9),
        *(timedelta(0), timedelta(-1), timedelta.max),
    ],
)
def test_what_is_no_interval_is_refused(every: Any) -> None:
    refused("every", lambda: Schedule(every=every))


# Single moments.


@pytest.mark.smoke
def test_a_moment_comes_once() -> None:
    at = utc("2024-01-01 12:00")
    schedule = Schedule(at=at)
    assert next_after(schedule, at - INSTANT) == at
    assert next_after(schedule, at) is None


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2024-06-01T12:00", "2024-06-01 10:00"),
        ("2024-06-01T12:00Z", "2024-06-01 12:00"),
        (datetime(2024, 6, 1, 12), "2024-06-01 10:00"),
        (datetime(2024, 6, 1, 12, tzinfo=timezone(5 * HOUR)), "2024-06-01 07:00"),
        ("2024-06-01", "2024-05-31 22:00"),
        ("2024-03-31T02:30:15", "2024-03-31 01:00"),
        ("2024-10-27T02:30", "2024-10-27 00:30"),
        (
            datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
            "2024-10-27 01:30",
        ),
    ],
)
def test_a_moment_without_a_zone_is_in_that_of_the_schedule(at: Any, expected: str) -> None:
    schedule = Schedule(at=at, tz="Europe/Berlin")
    assert schedule.at == utc(expected)
    assert schedule.at.tzinfo is UTC


@pytest.mark.parametrize("field", ["at", "start", "end"])
@pytest.mark.parametrize(
    "moment",
    ["tomorrow", "", 5, "5", True, date(2024, 1, 1), datetime.min, datetime.max, [], b"2024-01-01"],
)
def test_what_is_no_moment_is_refused(field: str, moment: Any) -> None:
    other = {} if field == "at" else {"cron": "@daily"}
    tz = "Asia/Tokyo" if moment == datetime.min else "America/New_York"
    refused(field, lambda: Schedule({**other, field: moment, "tz": tz}))


# Bounds.


def test_it_fires_from_its_start_to_its_end() -> None:
    schedule = Schedule(cron="@daily", start="2024-01-02", end="2024-01-04")
    found = firings(schedule, utc("2023-01-01"), utc("2025-01-01"))
    assert [moment.day for moment in found] == [2, 3, 4]


@pytest.mark.parametrize("bounds", [{"start": "2024-01-02"}, {"end": "2023-12-31"}])
def test_a_moment_outside_the_bounds_never_comes(bounds: dict[str, str]) -> None:
    schedule = Schedule({"at": "2024-01-01", **bounds})
    assert next_after(schedule, utc("2020-01-01")) is None


def test_an_end_before_the_start_is_refused() -> None:
    refused("end", lambda: Schedule(cron="@daily", start="2024-01-02", end="2024-01-01"))


@pytest.mark.parametrize(
    "schedule",
    [Schedule(cron="@hourly", tz="Asia/Tokyo"), Schedule(every=3600), Schedule(cron="5 5 * * *")],
    ids=["clock", "every", "time"],
)
def test_at_the_end_of_all_years_there_is_no_next_one(schedule: Schedule) -> None:
    assert next_after(schedule, datetime.max.replace(tzinfo=UTC)) is None


@pytest.mark.parametrize("tz", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("fields", [{"cron": "@hourly"}, {"every": 3600}])
def test_nothing_fires_before_1970(tz: str, fields: dict[str, Any]) -> None:
    schedule = Schedule({**fields, "tz": tz})
    assert next_after(schedule, datetime.min.replace(tzinfo=UTC)) == utc("1970-01-01")


# Downtime.


def missed(misfire: str, last: str, now: str, **fields: Any) -> list[datetime]:
    schedule = Schedule({"cron": "@hourly", "misfire": misfire, **fields})
    found = due(schedule, utc(last), utc(now))
    assert found.left_out is None
    return found.firings


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("misfire", "hours"), [("skip", []), ("once", [14]), ("all", [11, 12, 13, 14])]
)
def test_after_downtime_the_schedule_says_what_is_made_up_for(
    misfire: str, hours: list[int]
) -> None:
    found = missed(misfire, "2024-01-01 10:07", "2024-01-01 14:02")
    assert [moment.hour for moment in found] == hours


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_a_firing_that_is_a_little_late_is_not_missed(misfire: str) -> None:
    found = missed(misfire, "2024-01-01 10:07", "2024-01-01 11:00:00.2")
    assert found == [utc("2024-01-01 11:00")]


@pytest.mark.parametrize(("seconds", "number"), [("20", 1), ("21", 0)])
def test_how_late_is_a_little_late_can_be_said(seconds: str, number: int) -> None:
    now = f"2024-01-01 11:00:{seconds}"
    assert len(missed("skip", "2024-01-01 10:07", now, grace=20)) == number


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
@pytest.mark.parametrize(
    ("last", "now"),
    [
        ("2024-01-01 11:00", "2024-01-01 11:59:59"),
        ("2024-01-01 11:00", "2024-01-01 11:00"),
        ("2024-01-01 14:00", "2024-01-01 11:00"),
    ],
    ids=["none between", "no time has passed", "the clock was set back"],
)
def test_what_has_been_seen_to_is_not_due_again(misfire: str, last: str, now: str) -> None:
    assert missed(misfire, last, now) == []


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_a_firing_is_due_at_its_moment(misfire: str) -> None:
    assert len(missed(misfire, "2024-01-01 10:07", "2024-01-01 11:00")) == 1


def test_a_single_moment_that_was_missed_is_made_up_for() -> None:
    schedule = Schedule(at="2024-01-01")
    assert due(schedule, utc("2023-01-01"), utc("2025-01-01")) == Due([utc("2024-01-01")])


@pytest.mark.smoke
@pytest.mark.parametrize("fields", [{"cron": "* * * * *"}, {"every": 60}, {"every": 0.001}])
def test_a_million_missed_firings_are_cut_down_to_the_last_and_that_is_said(
    fields: dict[str, Any],
) -> None:
    schedule = Schedule({**fields, "misfire": "all", "tz": "Europe/Berlin"})
    found = due(schedule, utc("2022-01-01"), utc("2024-01-01"))
    step = timedelta(seconds=schedule.every or 60)
    assert found.firings == [utc("2024-01-01") - number * step for number in range(999, -1, -1)]
    assert found.left_out is not None
    first = found.firings[0].isoformat(" ", "seconds")
    assert found.left_out == (
        "more than 1000 firings were missed after 2022-01-01 00:00:00+00:00:"
        f" those before {first} are left out"
    )


@pytest.mark.parametrize(("most", "is_cut"), [(2, True), (3, True), (4, False), (5, False)])
def test_the_limit_is_the_number_that_is_made_up_for(most: int, is_cut: bool) -> None:
    schedule = Schedule(cron="@hourly", misfire="all")
    found = due(schedule, utc("2024-01-01 10:07"), utc("2024-01-01 14:02"), most=most)
    assert [moment.hour for moment in found.firings] == [11, 12, 13, 14][-most:]
    assert (found.left_out is not None) is is_cut


@untimed
@given(
    st.sampled_from(["*/10 * 1 1 *", "30 2 * * *", "* 3 * * *", "0 0 L * *", "*/59 * * * *"]),
    st.integers(0, 400 * 86400),
    st.integers(0, 40 * 86400),
    st.integers(1, 30),
)
def test_the_last_firings_are_the_same_that_one_would_come_to_step_by_step(
    cron: str, start: int, length: int, most: int
) -> None:
    schedule = Schedule(cron=cron, tz="Europe/Berlin", misfire="all")
    last = utc("2023-12-01") + timedelta(seconds=start)
    now = last + timedelta(seconds=length)
    every = firings(schedule, last, now)
    found = due(schedule, last, now, most=most)
    assert found.firings == every[-most:]
    assert (found.left_out is not None) is (len(every) > most)
    assert due(Schedule(schedule, misfire="once"), last, now).firings == every[-1:]


def test_to_see_to_it_again_and_again_misses_nothing() -> None:
    schedule = Schedule(cron="*/7 * * * *", misfire="skip")
    begin = utc("2024-01-01")
    found, last = [], begin
    for number in range(1, 500):
        now = begin + number * timedelta(seconds=33)
        found += due(schedule, last, now).firings
        last = now
    assert found == firings(schedule, begin, last)


# What a schedule is made from.


def test_a_schedule_makes_up_for_the_last_firing_and_does_not_overlap_unless_told() -> None:
    schedule = Schedule(cron="@daily")
    assert (schedule.tz, schedule.misfire, schedule.overlap) == ("UTC", "once", "skip")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "cron"),
        ({"cron": "@daily", "every": 60}, "every"),
        ({"cron": "@daily", "at": "2024-01-01"}, "at"),
        ({"every": 60, "at": "2024-01-01"}, "at"),
    ],
)
def test_a_schedule_is_by_one_of_cron_every_and_at(fields: dict[str, Any], named: str) -> None:
    problem = refused(named, lambda: Schedule(fields))
    assert problem == "give one of cron, every and at"


@pytest.mark.parametrize(
    "tz",
    [
        *("Europe/Berln", "europe berlin", "", "Europe", "../../etc/passwd", "/etc/localtime"),
        *("a\0b", "\ud800", "+02:00", "x" * 5000, 5, None, b"UTC", timezone(HOUR)),
    ],
)
def test_an_unknown_time_zone_is_refused(tz: Any) -> None:
    refused("tz", lambda: Schedule(cron="@daily", tz=tz))


def test_a_time_zone_may_be_a_zoneinfo() -> None:
    assert Schedule(cron="@daily", tz=ZoneInfo("Europe/Berlin")).tz == "Europe/Berlin"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("misfire", value) for value in ("twice", None, True)],
        *[("overlap", value) for value in ("kill", None, True)],
        *[("grace", value) for value in (-1, float("nan"), float("inf"), "1", True)],
        ("crom", "* * * * *"),
    ],
)
def test_what_else_is_wrong_is_refused_by_its_name(field: str, value: object) -> None:
    refused(field, lambda: Schedule({"cron": "@daily", field: value}))


@pytest.mark.smoke
@pytest.mark.parametrize(
    "fields",
    [
        {"cron": "30 2 * * *", "tz": "Europe/Berlin", "misfire": "all", "overlap": "queue"},
        {"every": timedelta(minutes=5), "start": "2024-01-01T12:00:00.000001", "grace": 5},
        {"at": "2024-03-31T02:30", "tz": "Europe/Berlin", "end": datetime(2025, 1, 1)},
    ],
)
def test_a_schedule_survives_json(fields: dict[str, Any]) -> None:
    schedule = Schedule(fields)
    stored = json.dumps(schedule.model_dump(mode="json"))
    assert Schedule(json.loads(stored)) == schedule
    assert Schedule.model_validate_json(schedule.model_dump_json()) == schedule


def test_a_schedule_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Schedule(cron="@daily").cron = "@hourly"
