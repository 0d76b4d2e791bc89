"""Formats sizes, ages and names as ``podman images`` does, and text for a terminal. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache

NONE = "<none>"

# Greedy, because a password that is not percent-encoded may contain any character.
_CREDENTIALS = r"(?is)((?:postgres|s3)[\w+.-]*:/+).*@"
_PARAMETER = r"(?is)(password\s*=).*"

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")

# The longest duration in Go in seconds: nanoseconds in 64 bits. podman shows no greater age.
_OLDEST = (2**63 - 1) // 10**9
_DAY = 24 * 3600
_GO_ZERO = datetime(1, 1, 1, tzinfo=UTC)


def short_id(image_id: str) -> str:
    """Return the beginning of an ID, as podman shows it."""
    return image_id[:12]


def counted(number: int, noun: str) -> str:
    """Return a number with the noun that it counts."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@cache  # many images have items of the same size
def human_size(size: float) -> str:
    """Format a size in bytes with three digits (Go: ``units.HumanSizeWithPrecision``)."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.3g} {_UNITS[unit]}"


def human_age(created: datetime | None, now: datetime) -> str:
    """Format how long ago a time was (Go: ``units.HumanDuration``)."""
    created = created or _GO_ZERO
    age = now - created
    # podman counts from a whole second.
    seconds = age.seconds + (age.microseconds + created.microsecond) // 1_000_000
    seconds = min(age.days * _DAY + seconds, _OLDEST)
    # Go rounds the hours, but not those that it converts to years.
    days = (seconds + 1800) // _DAY
    age_text = _in_days(days, seconds // _DAY) if days > 1 else _in_hours_at_most(seconds)
    return f"{age_text} ago"


def _in_hours_at_most(seconds: int) -> str:
    minutes = seconds // 60
    hours = (seconds + 1800) // 3600
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    return "About an hour" if hours == 1 else f"{hours} hours"


@cache  # most ages of a list are the same
def _in_days(days: int, whole_days: int) -> str:
    if days < 7 * 2:
        return f"{days} days"
    if days < 30 * 2:
        return f"{days // 7} weeks"
    if days < 365 * 2:
        return f"{days // 30} months"
    return f"{whole_days // 365} years"


def repositories_and_tags(names: Sequence[str]) -> list[tuple[str, str]]:
    """Split each of an image's names into repository and tag.

    Names with a digest and no tag are left out if another name has a tag.
    """
    parts = [_repository_and_tag(name) for name in names]
    if len(parts) > 1 and any(tag != NONE for _, tag in parts):
        both = zip(names, parts, strict=True)
        parts = [part for name, part in both if part[1] != NONE or "@" not in name]
    return parts or [(NONE, NONE)]


def _repository_and_tag(name: str) -> tuple[str, str]:
    path = name.partition("@")[0] if "@" in name else name
    repository, colon, tag = path.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (path, NONE)


def printable(text: str) -> str:
    """Escape everything in a text that could control a terminal or end a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_texts(texts: Sequence[str]) -> Sequence[str]:
    """Escape the same in many texts, which rarely have anything to escape."""
    return texts if "".join(texts).isprintable() else list(map(printable, texts))


def without_secrets(text: str) -> str:
    """Remove the passwords of cluster addresses from a text.

    An address can be anywhere: one that was given in place of a command, for instance, is in the
    message that there is no such command.
    """
    return re.sub(_PARAMETER, r"\1…", re.sub(_CREDENTIALS, r"\1…@", text))
