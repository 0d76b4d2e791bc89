"""JSON as Go's encoder spells it, so that a record looks alike whoever wrote it.

Nothing here recurses: what callers and files nest is limited by a number, not by the stack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from .names import check_text

MAX_DEPTH = 1000
_GO_MAX_DEPTH = 10_000

_ESCAPES: dict[int, str] = {
    code: f"\\u{code:04x}" for code in (*range(0x20), *b"<>&", 0x2028, 0x2029)
}
_ESCAPES |= {ord(char): "\\" + char for char in '"\\'}
_ESCAPES |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


def string(text: str) -> str:
    """Spell a string; ``<``, ``>``, ``&`` and the line separators are escaped."""
    return f'"{text.translate(_ESCAPES)}"'


def number(value: float) -> str:
    """Spell a number as Go spells a float64; integers keep every digit.

    :raises ValueError: when it is not finite, or an integer beyond a float64's range
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
    """Spell any JSON value, objects with their keys sorted.

    :raises TypeError: when something in it has no place in JSON
    :raises ValueError: when something in it Go would refuse: text that is not Unicode, a number
        that is not finite, or ``MAX_DEPTH`` levels and more
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
                raise ValueError(f"a flag may nest up to {MAX_DEPTH - 1} levels, this one has more")
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
    if isinstance(item, list | tuple):
        elements = (("," if index else "", element) for index, element in enumerate(item))
        return elements, "[", "]"
    raise TypeError(f"a flag must be made of JSON values, {type(item).__name__} is none")


ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time: not known."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(?:Z|([+-]\d\d:[0-5]\d))", re.ASCII)


def time(moment: datetime) -> str:
    """Spell an aware time in UTC.

    :raises ValueError: when it is naive, or outside the years 1 to 9999 in UTC
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError("created must be an aware datetime: give it a tzinfo, UTC for instance")
    try:
        moment = moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("created must lie within the years 1 to 9999 in UTC") from error
    seconds = moment.replace(microsecond=0, tzinfo=None).isoformat()
    fraction = f".{moment.microsecond:06}".rstrip("0") if moment.microsecond else ""
    return f"{seconds}{fraction}Z"


def parse_time(text: str) -> datetime | None:
    """Read a time that Go wrote, cut to microseconds; ``None`` for Go's zero time.

    :raises ValueError: when Go would refuse it
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    seconds, fraction, offset = match.groups()
    moment = datetime.fromisoformat(seconds + (offset or "+00:00"))
    if fraction:
        moment = moment.replace(microsecond=int(fraction[1:7].ljust(6, "0")))
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        return None  # within a day of Go's zero time, or of the end of the year 9999
    return None if text == ZERO_TIME or moment == datetime.min.replace(tzinfo=UTC) else moment


_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{},]', re.DOTALL)
_TOKEN = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]|\\.)*+"|[\[\]{},:]|[^\s\[\]{},:"]++)', re.DOTALL)


def split(container: bytes) -> list[bytes]:
    """Split an array's elements or an object's members, however deep they nest.

    msgspec gives up where the stack ends; this only counts brackets, and checks nothing else.

    :raises ValueError: when the brackets do not match
    """
    elements: list[bytes] = []
    depth = 0
    start = 0
    end = -1
    for match in _STRUCTURE.finditer(container):
        mark = match[0]
        if mark in b"[{":
            depth += 1
            start = match.end() if depth == 1 else start
        elif mark in b"]}":
            depth -= 1
            if depth == 0:
                end = match.start()
                break
        elif mark == b"," and depth == 1:
            elements.append(container[start : match.start()].strip())
            start = match.end()
    if end < 0 or container[end + 1 :].strip():
        raise ValueError("brackets do not match")
    last = container[start:end].strip()
    return [*elements, last] if last or elements else []


def loads(text: bytes) -> Any:
    """Read one JSON value, nested as deep as Go reads it.

    :raises ValueError: when it is not JSON, or nested deeper
    """
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        return _loads_deep(text)


def _loads_deep(text: bytes) -> Any:  # noqa: C901, PLR0912 (one branch for each kind of token)
    """Read a value by its tokens: opened containers are filled in place, so nothing recurses."""
    root: list[Any] = []
    open_containers: list[list[Any] | dict[str, Any]] = [root]
    key: str | None = None
    expect = "value"
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or expect == "end":
            raise ValueError(f"malformed JSON (byte {position})")
        position = match.end()
        token = match[1]
        current = open_containers[-1]
        closes = b"]" if isinstance(current, list) else b"}"
        if token == closes and expect in {"first", "next"} and len(open_containers) > 1:
            open_containers.pop()
            expect = "next"
        elif token == b"," and expect == "next" and len(open_containers) > 1:
            expect = "value" if isinstance(current, list) else "key"
        elif token == b":" and expect == "colon":
            expect = "value"
        elif expect == "key" or (expect == "first" and isinstance(current, dict)):
            key = msgspec.json.decode(token, type=str)
            expect = "colon"
        elif expect in {"value", "first"}:
            new = {b"[": list, b"{": dict}.get(token, lambda t=token: msgspec.json.decode(t))()
            if isinstance(current, list):
                current.append(new)
            else:
                assert key is not None
                current[key] = new
            expect = "next"
            if token in b"[{":
                open_containers.append(new)
                expect = "first"
                if len(open_containers) > _GO_MAX_DEPTH:
                    raise ValueError(f"JSON nested deeper than {_GO_MAX_DEPTH} levels")
        else:
            raise ValueError(f"malformed JSON (byte {position})")
        if len(open_containers) == 1 and expect == "next":
            expect = "end"
    if expect != "end":
        raise ValueError("truncated JSON")
    return root[0]
