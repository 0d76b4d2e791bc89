"""JSON as Go's encoder spells it, so that a record looks alike whoever wrote it.

Nothing here recurses: what callers and files nest is limited by a number, not by the stack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, auto
from typing import Any

import msgspec
from msgspec import Raw

from .names import check_text

MAX_DEPTH = 1000
"""Levels that a flag may not reach: beyond that other readers' limits begin."""

GO_MAX_DEPTH = 10_000
"""Levels that Go's decoder reads."""

_ESCAPES: dict[int, str] = {
    code: f"\\u{code:04x}" for code in (*range(0x20), *b"<>&", 0x2028, 0x2029)
}
_ESCAPES |= {ord(char): "\\" + char for char in '"\\'}
_ESCAPES |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


_RARE = re.compile("[\x00-\x1f<>&\u2028\u2029]")


def string(text: str) -> str:
    """Spell a string; ``<``, ``>``, ``&`` and the line separators are escaped."""
    if _RARE.search(text):
        return f'"{text.translate(_ESCAPES)}"'
    # What nearly all texts need; translating looks every character up.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


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


# Times in UTC on days that every month has, long after Go's zero time: right without a calendar.
is_usual_time = re.compile(
    r"(?!00)\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])"
    r"T(?:[01]\d|2[0-3])(?::[0-5]\d){2}(?:\.\d+)?Z",
    re.ASCII,
).fullmatch


def parse_time(text: str) -> datetime | None:
    """Read a time that Go wrote, cut to microseconds; ``None`` for Go's zero time.

    :raises ValueError: when Go would refuse it
    """
    if is_usual_time(text):
        return datetime.fromisoformat(text)
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


_SPACE = b" \t\r\n"
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{},]', re.DOTALL)
_TOKEN = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]|\\.)*+"|[\[\]{},:]|[^ \t\r\n\[\]{},:"]++)', re.DOTALL)
_decode_scalar = msgspec.json.Decoder(Raw).decode


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
            elements.append(container[start : match.start()].strip(_SPACE))
            start = match.end()
    if end < 0 or container[end + 1 :].strip(_SPACE):
        raise ValueError("brackets do not match")
    last = container[start:end].strip(_SPACE)
    return [*elements, last] if last or elements else []


def loads(text: bytes) -> Any:
    """Read one JSON value, nested as deep as Go reads it.

    :raises ValueError: when it is not JSON, or nested deeper
    """
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        return _loads_deep(text)


def check_syntax(text: bytes, max_depth: float = math.inf) -> None:
    """Check that a text is one JSON value, whatever its numbers.

    :raises ValueError: when it is not, or nested deeper than so many levels
    """
    try:
        _decode_scalar(text)
    except RecursionError:
        for _ in _tokens(text, max_depth):
            pass


def fits_go(item: object) -> bool:
    """Whether every integer in a value fits the float64 that Go makes of it."""
    waiting = [item]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current
        elif isinstance(current, int):
            try:
                float(current)
            except OverflowError:
                return False
    return True


class _Kind(Enum):
    """What a token is, where it stands."""

    OPEN = auto()
    CLOSE = auto()
    KEY = auto()
    SCALAR = auto()


def _tokens(  # noqa: C901 (one branch for each kind of token)
    text: bytes, max_depth: float
) -> Iterator[tuple[_Kind, bytes]]:
    """The tokens of one JSON value, checked; what is open is kept in a list, not on the stack.

    :raises ValueError: when it is not one JSON value, or nested deeper than so many levels
    """
    enclosing: list[bytes] = []
    expected = "value"
    position = 0
    end = len(text.rstrip(_SPACE))
    while position < end:
        match = _TOKEN.match(text, position, end)
        if match is None or expected == "end":
            raise ValueError(f"malformed JSON (byte {position})")
        position = match.end()
        token = match[1]
        closer = enclosing[-1] if enclosing else b""
        if token == closer and expected in {"first", "next"}:
            enclosing.pop()
            expected = "next" if enclosing else "end"
            yield _Kind.CLOSE, token
        elif token in {b",", b":"}:
            if expected != ("next" if token == b"," else "colon") or not enclosing:
                raise ValueError(f"malformed JSON (byte {match.start(1)})")
            expected = "key" if token == b"," and closer == b"}" else "value"
        elif expected == "key" or (expected == "first" and closer == b"}"):
            expected = "colon"
            yield _Kind.KEY, token
        elif expected not in {"value", "first"}:
            raise ValueError(f"malformed JSON (byte {match.start(1)})")
        elif token in {b"[", b"{"}:
            enclosing.append(b"]" if token == b"[" else b"}")
            if len(enclosing) > max_depth:
                raise ValueError(f"JSON nested deeper than {max_depth} levels")
            expected = "first"
            yield _Kind.OPEN, token
        else:
            expected = "next" if enclosing else "end"
            _decode_scalar(token)
            yield _Kind.SCALAR, token
    if expected != "end":
        raise ValueError("truncated JSON")


def _loads_deep(text: bytes) -> Any:
    """Read a value by its tokens: opened containers are filled in place, so nothing recurses."""
    root: list[Any] = []
    enclosing: list[list[Any] | dict[str, Any]] = [root]
    key = ""
    for kind, token in _tokens(text, GO_MAX_DEPTH):
        if kind is _Kind.KEY:
            key = msgspec.json.decode(token, type=str)
            continue
        if kind is _Kind.CLOSE:
            enclosing.pop()
            continue
        is_container = kind is _Kind.OPEN
        new: Any = ([] if token == b"[" else {}) if is_container else msgspec.json.decode(token)
        container = enclosing[-1]
        if isinstance(container, list):
            container.append(new)
        else:
            container[key] = new
        if is_container:
            enclosing.append(new)
    return root[0]
