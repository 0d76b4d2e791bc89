"""JSON as Go's encoder spells it, so that a record looks the same whoever wrote it.

Encoding does not recurse: the depth of a caller's value is limited by a number, not by the stack.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from .._core.names import check_text

MAX_DEPTH = 1000 if sys.version_info >= (3, 12) else 400
"""A flag must nest fewer levels, so that every reader can read it.

Before Python 3.12, the decoder's recursion limit is the interpreter's, shared with the callers.
"""

_ESCAPES: dict[int, str] = {
    code: f"\\u{code:04x}" for code in (*range(0x20), *b"<>&", 0x2028, 0x2029)
}
_ESCAPES |= {ord(char): "\\" + char for char in '"\\'}
_ESCAPES |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}

# What Go escapes otherwise than msgspec.
_RARE = tuple("<>&\u2028\u2029\b\f")
_encode = msgspec.json.Encoder().encode


def string(text: str) -> str:
    """Spell a string; ``<``, ``>``, ``&`` and the line separators are escaped."""
    for rare in _RARE:
        if rare in text:
            return f'"{text.translate(_ESCAPES)}"'
    # Faster than translating, which looks up every character, and enough for nearly all texts.
    # It refuses subclasses of str, and not all of them return their text from __str__.
    return _encode(str.__str__(text)).decode()


def number(value: float) -> str:
    """Spell a float as Go spells a float64, and an integer with every digit.

    :raises ValueError: the number is not finite, or an integer beyond the range of a float64
    """
    try:
        as_float = float(value)
    except OverflowError:
        as_float = math.inf
    if not math.isfinite(as_float):
        raise ValueError(f"a flag's number must be finite and fit a float64, not {as_float}")
    if isinstance(value, int):
        return str(int(value))
    shortest = repr(as_float)
    if as_float and not 1e-6 <= abs(as_float) < 1e21:
        return shortest.replace("e-0", "e-")
    if as_float == 0:
        return "-0" if math.copysign(1, as_float) < 0 else "0"
    return format(Decimal(shortest), "f").removesuffix(".0")


def value(item: object) -> bytes:
    """Spell any JSON value, with the keys of objects sorted.

    :raises TypeError: a part of the value has a type that JSON does not have
    :raises ValueError: Go would refuse a part of the value: text that is not Unicode, a number
        that is not finite, or a nesting of ``MAX_DEPTH`` levels or more
    """
    out: list[str] = []
    enclosing: list[tuple[Iterator[tuple[str, Any]], str]] = []
    items: Iterator[tuple[str, Any]] = iter([("", item)])
    closer = ""
    while True:
        for prefix, current in items:
            out.append(prefix)
            scalar = _scalar(current)
            if scalar is not None:
                out.append(scalar)
                continue
            if len(enclosing) >= MAX_DEPTH - 1:
                raise ValueError(
                    f"a flag may nest up to {MAX_DEPTH - 1} levels, and this one nests more"
                )
            enclosing.append((items, closer))
            items, opener, closer = _container(current)
            out.append(opener)
            break
        else:
            out.append(closer)
            if not enclosing:
                return "".join(out).encode()
            items, closer = enclosing.pop()


def _scalar(item: object) -> str | None:
    match item:
        case None:
            return "null"
        case bool():
            return "true" if item else "false"
        case str():
            return string(check_text(item, "a flag's text"))
        case int() | float():
            return number(item)
    return None


def _container(item: object) -> tuple[Iterator[tuple[str, Any]], str, str]:
    if isinstance(item, Mapping):
        keys = sorted(check_text(key, "a flag's object key") for key in item)
        pairs = (
            (f"{',' if index else ''}{string(key)}:", item[key]) for index, key in enumerate(keys)
        )
        return pairs, "{", "}"
    if isinstance(item, Sequence) and not isinstance(item, bytes | bytearray | memoryview):
        elements = (("," if index else "", element) for index, element in enumerate(item))
        return elements, "[", "]"
    raise TypeError(f"a flag must consist of JSON values, and {type(item).__name__} is not one")


ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time, which stands for an unknown time."""

# Checks the hour, because datetime accepts 24:00:00 since Python 3.14, and Go does not.
_TIME = r"(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d)(\.\d+)?(?:Z|([+-]\d\d:[0-5]\d))"


def time(moment: datetime) -> str:
    """Spell an aware time in UTC.

    :raises ValueError: the time is naive, or outside the years 1 to 9999 in UTC
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError("created must be an aware datetime: give it a tzinfo such as UTC")
    try:
        moment = moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("created must lie within the years 1 to 9999 in UTC") from error
    seconds = moment.replace(microsecond=0, tzinfo=None).isoformat()
    fraction = f".{moment.microsecond:06}".rstrip("0") if moment.microsecond else ""
    return f"{seconds}{fraction}Z"


# Matches times in UTC on days that every month has, which are valid in any year.
is_usual_time = re.compile(
    r"(?!00)\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])"
    r"T(?:[01]\d|2[0-3])(?::[0-5]\d){2}(?:\.\d+)?Z",
    re.ASCII,
).fullmatch


def parse_time(text: str) -> datetime | None:
    """Read a time that Go wrote, truncated to microseconds; ``None`` for Go's zero time.

    :raises ValueError: Go would refuse the text
    """
    if is_usual_time(text):
        return datetime.fromisoformat(text)
    match = re.fullmatch(_TIME, text, re.ASCII)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    seconds, fraction, offset = match.groups()
    moment = datetime.fromisoformat(seconds + (offset or "+00:00"))
    if fraction:
        moment = moment.replace(microsecond=int(fraction[1:7].ljust(6, "0")))
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        return None  # in UTC before the year 1, near Go's zero time, or after the year 9999
    return None if moment == datetime.min.replace(tzinfo=UTC) else moment


_STRUCTURE = rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]'


def nests_deeper(text: bytes, levels: int) -> bool:
    """Return whether the arrays and objects of a JSON text are nested deeper than this."""
    if len(text) <= 2 * levels or text.count(b"[") + text.count(b"{") <= levels:
        return False
    depth = 0
    for match in re.finditer(_STRUCTURE, text, re.DOTALL):
        mark = match[0]
        depth += (mark in b"[{") - (mark in b"]}")
        if depth > levels:
            return True
    return False


def fits_go(item: object) -> bool:
    """Return whether every integer in a value fits the float64 that Go reads it as."""
    parts = [item]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += part.values()
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, int):
            try:
                float(part)
            except OverflowError:
                return False
    return True
