"""When a schedule fires: cron expressions, intervals and single moments, in a time zone.

Pure: no clock. Moments come in as aware datetimes and go out as aware UTC. ``next_after`` tells
when to wake, ``due`` what to run on waking, be it a millisecond late or a week.

Where clocks are set forward, a time of day that is left out is made up for at the moment it is
left out: what should run at 02:30 runs at 03:00. Where they are set back, a time of day that comes
twice counts the first time. An expression that follows the clock rather than naming times of day,
that is one whose minutes or hours begin with ``*``, fires whenever a clock on the wall shows a time
that matches: not in an hour that is left out, twice in one that comes twice. Debian's cron does the
same. An interval is as long as it says, whatever clocks do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any, Final, Literal, TypedDict
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo

from anodejobs.errors import InvalidJob
from anodejobs.fields import Seconds
from anodejobs.models import Model

__all__ = ["Due", "Schedule", "ScheduleOptions", "due", "next_after"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
_ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


def _zone_name(value: object) -> object:
    return value.key if isinstance(value, ZoneInfo) else value


def _known_zone(name: str) -> str:
    _zone(name)
    return name


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # which there is also on a machine without time zones
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            "names no time zone that is known here"
            " (where the system has none, they are in the package tzdata)"
        ) from None


def _cron(expression: str) -> str:
    fields = _fields(expression)
    if len(fields.split()) != 5:
        raise ValueError(
            "must have five fields (minute, hour, day of month, month, day of week)"
            f" or be one of {', '.join(_ALIASES)}"
        )
    try:
        # Years that have all there is: a leap day, and each day of a month on each weekday.
        next(CronSim(fields, datetime(2000, 1, 1)))
    except CronSimError as error:
        raise ValueError(f"is not a cron expression: {str(error).lower()}") from None
    except (ValueError, AssertionError):
        raise ValueError("is not a cron expression") from None
    except StopIteration:
        raise ValueError("names a day that never comes") from None
    return expression


def _fields(expression: str) -> str:
    return _ALIASES.get(expression.strip().lower(), expression)


def _interval(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _length(seconds: float) -> float:
    if not 0.001 <= seconds <= 1e10:
        raise ValueError("must be a number of seconds, a thousandth at least and 300 years at most")
    return seconds


def _moment(value: object) -> object:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        moment = None
    if not isinstance(moment, datetime):
        raise ValueError("must be a datetime, or one in ISO 8601")
    return moment


def _in_zone(moment: datetime, info: ValidationInfo) -> datetime:
    """Take a moment without a zone as what the clock on the wall shows in the schedule's."""
    try:
        if moment.tzinfo is None:
            moment = _first_at(moment, _zone(info.data.get("tz", "UTC")))
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the years that can be represented") from None


_Moment = Annotated[
    datetime, Field(strict=False), BeforeValidator(_moment), AfterValidator(_in_zone)
]


class Schedule(Model):
    """When to run something: exactly one of ``cron``, ``every`` and ``at``.

    Moments without a time zone (``at``, ``start``, ``end``) are in that of ``tz``; read back, they
    are in UTC.
    """

    model_config = ConfigDict(strict=True)

    tz: Annotated[str, BeforeValidator(_zone_name), AfterValidator(_known_zone)] = "UTC"
    """The time zone of ``cron``, as in ``Europe/Berlin``."""
    cron: Annotated[str, AfterValidator(_cron)] | None = None
    """Minute, hour, day of month, month and day of week, as Debian's cron reads them.

    Further ``L`` (the last day of the month) and ``LW`` (its last working day), ``MON#2`` (the
    second Monday) and ``5L`` (the last Friday), ``@daily`` and the like.
    """
    every: Annotated[float, BeforeValidator(_interval), AfterValidator(_length)] | None = None
    """Seconds, or a timedelta, from one firing to the next.

    The first is at ``start``, or else they are counted from the beginning of 1970 in UTC: so many
    seconds after it there is one, however late the one before was.
    """
    at: _Moment | None = None
    """The one moment at which it fires."""
    start: _Moment | None = None
    """It does not fire before."""
    end: _Moment | None = None
    """It does not fire after."""
    misfire: Literal["skip", "once", "all"] = "once"
    """What becomes of the firings that were missed, as nobody was there: none is made up for, or
    the last of them, or each, up to a limit that ``due`` has."""
    grace: Seconds = 60.0
    """With ``misfire="skip"``: the last firing is not missed until so many seconds have passed."""
    overlap: Literal["allow", "skip", "queue"] = "skip"
    """What a firing does while the job of one before has not ended: start another one, start none,
    or have it wait for the end of all of these."""

    def __init__(self, data: Mapping[str, Any] | Model | None = None, /, **fields: Any) -> None:
        super().__init__(data, **fields)
        given = [name for name in ("cron", "every", "at") if self[name] is not None]
        if len(given) != 1:
            # By the name of what is too much, or of what is likely to have been meant.
            raise InvalidJob(given[-1] if given else "cron", "give one of cron, every and at")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise InvalidJob("end", "must not be before start")


class ScheduleOptions(TypedDict, total=False):
    """What ``Jobs.schedule`` takes beside the moments, as ``Schedule`` checks it."""

    tz: str | ZoneInfo
    start: datetime | str | None
    end: datetime | str | None
    misfire: Literal["skip", "once", "all"]
    grace: float
    overlap: Literal["allow", "skip", "queue"]


@dataclass(frozen=True, slots=True)
class Due:
    """What a schedule has to run now: the firings to make good on, oldest first."""

    firings: list[datetime]
    left_out: str | None = None
    """One line where there were more than the limit, and the older ones are not made up for."""


def next_after(schedule: Schedule, moment: datetime) -> datetime | None:
    """Return the schedule's first firing after the moment, or None: there is none.

    Firings before 1970, or more than 50 years after the one before, do not count.
    """
    return next(_firings(schedule, moment), None)


def due(schedule: Schedule, last: datetime, now: datetime, *, most: int = 1000) -> Due:
    """Return the firings after ``last``, up to ``now``, that are to be run now.

    ``last`` is up to when firings have been seen to: the ``now`` of the call before. Of several
    missed ones, ``misfire`` says which are made up for, ``most`` of them at most, the latest.
    """
    assert most > 0
    latest = _latest(schedule, last, now)
    if latest is None:
        return Due([])
    match schedule.misfire:
        case "skip":
            return Due([latest] if now - latest <= timedelta(seconds=schedule.grace) else [])
        case "once":
            return Due([latest])
        case "all":
            firings = _newest(schedule, last, latest, most + 1)
            if len(firings) <= most:
                return Due(firings)
            kept = firings[1:]
            missed = f"more than {most} firings were missed after {_told(last)}"
            return Due(kept, f"{missed}: those before {_told(kept[0])} are left out")


def _told(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(" ", "seconds")


def _latest(schedule: Schedule, last: datetime, now: datetime) -> datetime | None:
    """Return the last firing after ``last`` and up to ``now``, in few steps however many lie there.

    Of ``low``, which is a firing, and ``high`` it is known that the last one is between them.
    """
    low, high = next_after(schedule, last), now
    if low is None or low > now:
        return None
    while (later := next_after(schedule, low)) is not None and later <= now:
        middle = later + (high - later) / 2
        beyond = next_after(schedule, middle)
        if beyond is not None and beyond <= now:
            low = beyond
        else:
            low, high = later, middle
    return low


def _newest(schedule: Schedule, after: datetime, until: datetime, most: int) -> list[datetime]:
    """Return the last firings after one moment and up to another, ``most`` at most."""
    found: list[datetime] = []
    for firing in _firings(schedule, after):
        if firing > until:
            return found
        if len(found) == most:
            break  # this is too far back: most of what lies here would be thrown away
        found.append(firing)
    else:
        return found
    middle = after + (until - after) / 2
    newer = _newest(schedule, middle, until, most)
    if len(newer) == most:
        return newer
    return [*_newest(schedule, after, middle, most - len(newer)), *newer]


def _firings(schedule: Schedule, moment: datetime) -> Iterator[datetime]:
    """Give the firings after the moment in order, without an end where there is none."""
    assert moment.tzinfo is not None
    moment = max(moment, _EPOCH - _SECOND).astimezone(UTC)
    if schedule.start is not None:
        moment = max(moment, schedule.start - timedelta.resolution)
    try:
        for firing in _unbounded(schedule, moment):
            if schedule.end is not None and firing > schedule.end:
                return
            yield firing
    except OverflowError:
        return  # the end of all years


def _unbounded(schedule: Schedule, moment: datetime) -> Iterator[datetime]:
    if schedule.at is not None:
        return iter([schedule.at] if schedule.at > moment else [])
    if schedule.every is not None:
        anchor = schedule.start or _EPOCH
        return _intervals(anchor, timedelta(seconds=schedule.every), moment)
    assert schedule.cron is not None
    fields = _fields(schedule.cron)
    minutes, hours = fields.split()[:2]
    follows_clock = minutes.startswith("*") or hours.startswith("*")
    firings = _on_the_clock if follows_clock else _at_times_of_day
    return firings(fields, _zone(schedule.tz), moment)


def _intervals(anchor: datetime, every: timedelta, moment: datetime) -> Iterator[datetime]:
    # Counted from the anchor each time: a sum of many would not be exact.
    number = (moment - anchor) // every + 1
    while True:
        yield anchor + number * every
        number += 1


def _at_times_of_day(fields: str, zone: tzinfo, moment: datetime) -> Iterator[datetime]:
    for wall in CronSim(fields, _wall(moment, zone)):
        firing = _first_at(wall, zone)
        # Several times of day may be left out together, and one may be over that comes again.
        if firing > moment:
            yield firing
            moment = firing


def _on_the_clock(fields: str, zone: tzinfo, moment: datetime) -> Iterator[datetime]:
    offset = _offset(moment, zone)
    walls = CronSim(fields, _wall(moment, zone))
    while (wall := next(walls, None)) is not None:
        firing = wall.replace(tzinfo=UTC) - offset
        changed_at = _first_change(zone, moment, firing)
        if changed_at is None:
            moment = firing
            yield firing
        else:
            # The clock was set before it showed that: look again at what it shows from there on.
            moment, offset = changed_at, _offset(changed_at, zone)
            walls = CronSim(fields, _wall(changed_at, zone) - _SECOND)


def _first_at(wall: datetime, zone: tzinfo) -> datetime:
    """Return when a clock in the zone first shows the time, or is set to a later one."""
    while True:
        moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
        if _wall(moment, zone) == wall:
            return moment
        wall = wall.replace(second=0, microsecond=0) + timedelta(minutes=1)


def _first_change(zone: tzinfo, after: datetime, until: datetime) -> datetime | None:
    """Return when, after one moment and up to another, clocks in the zone are first set."""
    offset = _offset(after, zone)
    near = after
    while near < until:
        far = min(near + _DAY, until)
        if _offset(far, zone) != offset:
            # They are set at a full second.
            seconds = math.ceil((far - near) / _SECOND)
            near = far - seconds * _SECOND
            while seconds > 1:
                middle = near + seconds // 2 * _SECOND
                if _offset(middle, zone) == offset:
                    near, seconds = middle, seconds - seconds // 2
                else:
                    seconds //= 2
            return (near + _SECOND).replace(microsecond=0)
        near = far
    return None


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _wall(moment: datetime, zone: tzinfo) -> datetime:
    """Return what a clock in the zone shows."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)
