"""JSON as Go decodes it into its types."""

from __future__ import annotations

from typing import Any

import pytest

from aimagestore._format import godecode as go

_point = go.struct_of({"x": go.integer, "sizes": go.array(go.integer), "Kin": go.text})
_nested = go.struct(point=_point, points=go.array(_point), names=go.mapping(go.text))


@pytest.mark.parametrize(
    ("text", "into", "value"),
    [
        ("null", go.text, None),
        ('"\\u00e9"', go.text, "é"),
        ("true", go.boolean, True),
        ("-0", go.integer, 0),
        ("9223372036854775807", go.integer, (1 << 63) - 1),
        ('"2024-01-01T00:00:00.5+01:00"', go.time, "2024-01-01T00:00:00.5+01:00"),
        ('"aGk=\\n"', go.data, b"hi"),
        ('["a",null]', go.array(go.text), ["a", None]),
        ('{"a":"b","c":null}', go.mapping(go.text), {"a": "b", "c": None}),
        ('"a"', go.either(go.array(go.text), go.text), "a"),
        ('["a"]', go.either(go.array(go.text), go.text), ["a"]),
        ('{"X":1,"unknown":[1.5,{"a":NULL}]}'.replace("NULL", "null"), _point, {"x": 1}),
        ('{"x":1,"x":null}', _point, {"x": 1}),
        ('{"x":1,"X":2}', _point, {"x": 2}),
        ('{"\u017fizes":[1],"\u212aIN":"a"}', _point, {"sizes": [1], "Kin": "a"}),
        ('{"point":{"x":1},"POINT":{"sizes":[]}}', _nested, {"point": {"x": 1, "sizes": []}}),
    ],
)
def test_text_is_decoded_as_go_decodes_it(text: str, into: go.Type, value: Any) -> None:
    assert go.decode(text.encode(), into) == value


@pytest.mark.parametrize(
    ("text", "into"),
    [
        ("", go.anything),
        ("{} {}", go.anything),
        ("NaN", go.anything),
        ("[01]", go.anything),
        ('"\t"', go.text),
        ("\ufeff1", go.integer),
        ("5", go.text),
        ('"5"', go.integer),
        ("1.0", go.integer),
        ("1e2", go.integer),
        ("9223372036854775808", go.integer),
        ("1" * 5000, go.integer),
        ("1e999", go.anything),
        ('{"a":[-1e999]}', go.anything),
        ("1", go.boolean),
        ('"2024-01-01"', go.time),
        ('"2024-01-01T24:00:00Z"', go.time),
        ('"a"', go.data),
        ("{}", go.array(go.text)),
        ("[]", go.mapping(go.text)),
        ("[]", _point),
        ('"{}"', _point),
        ('{"x":"1"}', _point),
        ('{"X":"1"}', _point),
        ('{"x":"1","x":1}', _point),
        ('{"points":[{"sizes":[true]}]}', _nested),
        ('{"names":{"a":[]}}', _nested),
        ("[" * 100_000, go.anything),
        ("[" * 100_000 + "]" * 100_000, go.anything),
    ],
)
def test_text_that_go_refuses_is_refused(text: str, into: go.Type) -> None:
    with pytest.raises(ValueError):
        go.decode(text.encode(), into)


def test_a_field_that_go_does_not_know_takes_everything() -> None:
    assert go.decode(b'{"other":1e999}', _point) == {}


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert go.decode(b'"\xff"', go.text) == "\ufffd"
