"""JSON as Go decodes it into its types.

A type is a function that returns what Go makes of a value, and raises :class:`ValueError` where Go
refuses the value. Go takes names of fields in any case, decodes each of several fields of one name,
and leaves a variable as it is for ``null``: a field without a value is missing here.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any

from .._core.fields import fold
from . import gojson

Type = Callable[[Any], Any]

_INTEGER = re.compile(r"-?\d+", re.ASCII)
_INT64 = range(-(1 << 63), 1 << 63)


class _Number(str):
    """The spelling of a number, by which Go tells integers from others."""

    __slots__ = ()


class _Object(list[tuple[str, Any]]):
    """All pairs of an object in order, with repeated keys."""

    __slots__ = ()


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_parse = json.JSONDecoder(
    object_pairs_hook=_Object,
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=_refuse,
).decode


def parse(data: bytes) -> Any:
    """Parse a text into a value that types can convert.

    :raises ValueError: it is not JSON, or nests too deep to be read here
    """
    try:
        # Like Go, this puts U+FFFD in place of bytes that are not UTF-8.
        return _parse(data.decode(errors="replace"))
    except RecursionError:
        raise ValueError("it nests too deep") from None


def decode(data: bytes, into: Type) -> Any:
    """Return what Go makes of a text; ``None`` for ``null``.

    :raises ValueError: Go refuses the text, or it nests too deep to be read here
    """
    return convert(parse(data), into)


def convert(value: Any, into: Type) -> Any:
    """Return what Go makes of a parsed value; ``None`` for ``null``.

    :raises ValueError: Go refuses it
    """
    return None if value is None else into(value)


def text(value: Any) -> str:
    """A string."""
    return str(_expect(value, str))


def boolean(value: Any) -> bool:
    """A bool."""
    return bool(_expect(value, bool))


def integer(value: Any) -> int:
    """An int or an int64, which Go reads from digits alone."""
    spelling = _expect(value, _Number)
    # The length is checked first, because a long row of digits takes long to convert.
    if not _INTEGER.fullmatch(spelling) or len(spelling) > 20 or int(spelling) not in _INT64:
        raise ValueError(f"{spelling[:40]} where a 64-bit integer is expected")
    return int(spelling)


def time(value: Any) -> str:
    """A time, which stays as it is spelled."""
    spelling = text(value)
    gojson.parse_time(spelling)
    return spelling


def data(value: Any) -> bytes:
    """A slice of bytes, spelled in Base64."""
    return base64.b64decode(re.sub(r"[\r\n]", "", text(value)), validate=True)


def anything(value: Any) -> Any:
    """An interface, which takes every value with numbers that a float64 can have."""
    parts = [value]
    while parts:
        part = parts.pop()
        if type(part) is _Number:
            if math.isinf(float(part)):
                raise ValueError(f"{part[:40]} where a 64-bit float is expected")
        elif type(part) is _Object:
            parts += [each for _, each in part]
        elif type(part) is list:
            parts += part
    return value


def array(of: Type) -> Type:
    """A slice. An element that is ``null`` is ``None``."""
    return lambda value: [convert(element, of) for element in _expect(value, list)]


def mapping(to: Type) -> Type:
    """A map with strings as keys. A value that is ``null`` is ``None``."""
    return lambda value: {key: convert(part, to) for key, part in _expect(value, _Object)}


def either(*types: Type) -> Type:
    """The first of several types that Go does not refuse."""

    def into(value: Any) -> Any:
        for one in types[:-1]:
            try:
                return one(value)
            except ValueError:
                continue
        return types[-1](value)

    return into


def struct(**fields: Type) -> Type:
    """A struct with these fields; see :func:`struct_of`."""
    return struct_of(fields)


def struct_of(fields: dict[str, Type]) -> Type:
    """A struct with these fields, as a dict of those that have a value, with these names."""
    known = {fold(name): (name, into) for name, into in fields.items()}

    def into(value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, part in _expect(value, _Object):
            name, type_of = known.get(fold(key), ("", anything))
            if not name or part is None:
                continue
            new, before = type_of(part), found.get(name)
            # Go decodes into the struct or map that it has already.
            if isinstance(new, dict) and isinstance(before, dict):
                new = before | new
            found[name] = new
        return found

    return into


_NAMES = {
    bool: "a bool",
    _Number: "a number",
    str: "a string",
    list: "an array",
    _Object: "an object",
}


def _expect(value: Any, kind: type) -> Any:
    # Not isinstance(): numbers are strings here, and objects lists.
    if type(value) is not kind:
        raise ValueError(f"{_NAMES[type(value)]} where {_NAMES[kind]} is expected")
    return value
