"""Times as podman takes them on its command line: a duration ago, a date, or Unix seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

_UNITS = {"ns": 1e-3, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7, "h": 3.6e9}
"""The units of Go's durations, in microseconds."""

_LONGEST = 2**63 / 1000
"""The longest duration of Go, an int64 of nanoseconds, in microseconds."""

_PART = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"(?P<sign>[-+]?)(?P<parts>0|(?:{_PART})+)", re.ASCII)
_PARTS = re.compile(r"([0-9.]+)([a-zµμ]+)")
_DATE = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:T(?P<hour>\d\d)(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?)?)?"
    r"(?P<zone>[zZ]|[+-]\d\d:\d\d)?",
    re.ASCII,
)
_SECONDS = re.compile(r"(?P<seconds>-?\d+)(?:\.(?P<fraction>\d+))?", re.ASCII)


def parse_moment(text: str, now: datetime) -> datetime:
    """Parse a time: a duration before now, RFC 3339 or the beginning of it, or Unix seconds.

    :param now: an aware datetime, whose time zone is that of times without one
    :raises ValueError: when it is none of these
    """
    try:
        return _parse(text, now)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{text!r} is no time: write a duration such as 10m or 36h, a date such as 2024-05-06 "
            "or 2024-05-06T07:08:09Z, or Unix seconds"
        ) from error


def _parse(text: str, now: datetime) -> datetime:
    # podman takes 0 for Unix seconds, not for a duration.
    if text != "0" and (duration := parse_duration(text)) is not None:
        # podman compares with whole seconds.
        return (now - duration).astimezone(UTC).replace(microsecond=0)
    if found := _DATE.fullmatch(text):
        zone = found["zone"]
        if zone is None:
            offset = now.utcoffset() or timedelta()
        else:
            offset = timedelta() if zone in "zZ" else _offset(zone)
        fraction = (found["fraction"] or "").ljust(6, "0")[:6]
        return datetime.fromisoformat(found["date"]).replace(
            hour=int(found["hour"] or 0),
            minute=int(found["minute"] or 0),
            second=int(found["second"] or 0),
            microsecond=int(fraction),
            tzinfo=timezone(offset),
        )
    if found := _SECONDS.fullmatch(text):
        fraction = (found["fraction"] or "").ljust(6, "0")[:6]
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        return epoch + timedelta(seconds=int(found["seconds"]), microseconds=int(fraction))
    raise ValueError(text)


def _offset(zone: str) -> timedelta:
    offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
    return -offset if zone.startswith("-") else offset


def parse_duration(text: str) -> timedelta | None:
    """Parse a duration as Go writes it, such as ``1h30m``.

    ``None`` when the text is none, or longer than Go's durations: about 292 years.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    parts = _PARTS.findall(found["parts"])
    microseconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if microseconds > _LONGEST:
        return None
    duration = timedelta(microseconds=microseconds)
    return -duration if found["sign"] == "-" else duration
