"""Tests for JSON as Go spells it, digests, and valid IDs, keys and file names."""

from __future__ import annotations

import hashlib
import json
import math
from base64 import b64encode
from collections import UserDict, UserList, deque
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, strategies as st

from aimagestore import InvalidBigDataNameError, InvalidDigestError, InvalidIDError
from aimagestore._core.digest import (
    check_digest,
    digest_of,
    hasher,
    is_digest,
    is_manifest_key,
    signed_payload,
)
from aimagestore._core.names import (
    big_data_file,
    check_id,
    check_key,
    check_names,
    check_text,
    is_big_data_file,
    is_id,
)
from aimagestore._format import gojson

from .support.indexes import nested
from .support.manifests import PAYLOAD, signed
from .support.strategies import json_values, text

DEEP = b"[" * 2000 + b"]" * 2000
"""Deeper than msgspec decodes on Python 3.11."""


# Strings


@pytest.mark.parametrize(
    ("plain", "spelled"),
    [
        ("", '""'),
        ("<a&b>", '"\\u003ca\\u0026b\\u003e"'),
        # Each alone, because one may be noticed for another's sake.
        ("<", '"\\u003c"'),
        (">", '"\\u003e"'),
        ("&", '"\\u0026"'),
        ("\u2028", '"\\u2028"'),
        ("\u2029", '"\\u2029"'),
        ("\b", '"\\u0008"'),
        ("\f", '"\\u000c"'),
        ('"\\', '"\\"\\\\"'),
        ("\n\r\t", '"\\n\\r\\t"'),
        ("\0\x08\x0c\x1f", '"\\u0000\\u0008\\u000c\\u001f"'),
        ("\x7fé\U0001f600/'", '"\x7fé\U0001f600/\'"'),
    ],
)
def test_string_is_escaped_as_go_escapes(plain: str, spelled: str) -> None:
    assert gojson.string(plain) == spelled


@given(text)
def test_string_reads_back(plain: str) -> None:
    assert json.loads(gojson.string(plain)) == plain


# Numbers


@pytest.mark.parametrize(
    ("number", "spelled"),
    [
        (0, "0"),
        (-7, "-7"),
        (2**53 + 1, "9007199254740993"),
        (10**300, "1" + "0" * 300),
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (-2.5, "-2.5"),
        (0.1, "0.1"),
        (1e16, "10000000000000000"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (1e-6, "0.000001"),
        (1.25e-6, "0.00000125"),
        (1e-7, "1e-7"),
        (-1.5e-9, "-1.5e-9"),
        (1e-10, "1e-10"),
        (5e-324, "5e-324"),
        (123456789.125, "123456789.125"),
    ],
)
def test_number_is_spelled_as_go_spells_it(number: float, spelled: str) -> None:
    assert gojson.number(number) == spelled


@given(st.integers(-(2**1023), 2**1023))
def test_number_keeps_every_digit_of_an_integer(number: int) -> None:
    assert int(gojson.number(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_reads_back_as_the_same_float(number: float) -> None:
    assert float(gojson.number(number)) == number


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400, -(10**400), 2**1024])
def test_number_that_fits_no_float64_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        gojson.number(number)


# Values


@given(json_values)
def test_value_reads_back(value: Any) -> None:
    assert json.loads(gojson.value(value)) == value


@given(json_values)
def test_value_is_compact_and_sorted_by_the_bytes_of_its_keys(value: Any) -> None:
    def is_sorted(pairs: list[tuple[str, Any]]) -> bool:
        encoded = [key.encode() for key, _ in pairs]
        return encoded == sorted(encoded)

    verdicts: list[bool] = []
    json.loads(gojson.value(value), object_pairs_hook=lambda p: verdicts.append(is_sorted(p)))
    assert all(verdicts)


def test_value_has_no_white_space_and_escaped_keys() -> None:
    assert gojson.value({"b": [1, None], "<": {"z": True}, "a": ()}) == (
        b'{"\\u003c":{"z":true},"a":[],"b":[1,null]}'
    )


def test_value_may_be_of_any_type_that_is_a_sequence_or_a_mapping() -> None:
    counted: Any = {"deque": deque([1, UserList(["a"])]), "mapping": UserDict(a=range(3))}
    assert gojson.value(counted) == b'{"deque":[1,["a"]],"mapping":{"a":[0,1,2]}}'


def test_value_may_nest_one_level_less_than_the_limit() -> None:
    levels = gojson.MAX_DEPTH - 1
    assert gojson.value(nested(levels)) == b"[" * levels + b"]" * levels


@pytest.mark.parametrize("levels", [gojson.MAX_DEPTH, 1000, 100_000])
def test_value_that_nests_too_deep_is_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"{gojson.MAX_DEPTH - 1} levels"):
        gojson.value(nested(levels))


def test_value_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append({"again": endless})
    with pytest.raises(ValueError, match=f"{gojson.MAX_DEPTH - 1} levels"):
        gojson.value(endless)


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, 1j, {1: 2}, [{None: 1}], {"a": {3}}])
def test_value_that_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        gojson.value(value)


@pytest.mark.parametrize("value", ["\ud800", ["\udfff"], {"\ud800": 1}, {"a": {"b": "x\ud83d"}}])
def test_value_with_a_lone_surrogate_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        gojson.value(value)


# Times

EAST = timezone(timedelta(hours=14))
WEST = timezone(timedelta(hours=-12))


@pytest.mark.parametrize(
    ("moment", "spelled"),
    [
        (datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC), "2024-02-29T01:02:03Z"),
        (datetime(2024, 2, 29, 1, 2, 3, 120_000, UTC), "2024-02-29T01:02:03.12Z"),
        (datetime(2024, 2, 29, 1, 2, 3, 1, UTC), "2024-02-29T01:02:03.000001Z"),
        (datetime(2024, 1, 1, 1, tzinfo=EAST), "2023-12-31T11:00:00Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00Z"),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), "9999-12-31T23:59:59Z"),
    ],
)
def test_time_is_spelled_in_utc_without_trailing_zeros(moment: datetime, spelled: str) -> None:
    assert gojson.time(moment) == spelled


def test_time_refuses_a_naive_datetime() -> None:
    with pytest.raises(ValueError, match="aware"):
        gojson.time(datetime(2024, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    "moment", [datetime(1, 1, 1, tzinfo=EAST), datetime(9999, 12, 31, 23, tzinfo=WEST)]
)
def test_time_refuses_a_year_outside_1_to_9999_in_utc(moment: datetime) -> None:
    with pytest.raises(ValueError, match="1 to 9999"):
        gojson.time(moment)


@given(st.datetimes(timezones=st.just(UTC)))
def test_time_reads_back(moment: datetime) -> None:
    assume(moment != datetime(1, 1, 1, tzinfo=UTC))
    assert gojson.parse_time(gojson.time(moment)) == moment


@pytest.mark.parametrize(
    ("spelled", "moment"),
    [
        ("2024-01-01T00:00:00.123456789Z", datetime(2024, 1, 1, 0, 0, 0, 123_456, UTC)),
        ("2024-01-01T00:00:00.5+01:00", datetime(2023, 12, 31, 23, 0, 0, 500_000, UTC)),
        ("2024-01-01T00:00:00-23:59", datetime(2024, 1, 1, 23, 59, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T01:00:00+01:00", None),
    ],
)
def test_parse_time_truncates_to_microseconds_and_reads_gos_zero_time_as_none(
    spelled: str, moment: datetime | None
) -> None:
    assert gojson.parse_time(spelled) == moment


@pytest.mark.parametrize(
    "spelled",
    [
        "",
        "now",
        "2024-01-01",
        "2024-01-01 00:00:00Z",
        "2024-01-01T00:00:00",
        "2024-01-01T00:00:00z",
        "2024-01-01T00:00:00.Z",
        "2024-01-01T00:00:00Z\n",
        "2024-01-01T00:00:60Z",
        "2024-01-01T24:00:00Z",
        "2024-01-31T24:00:00Z",
        "2024-01-01T24:00:00.5+01:00",
        "2024-01-01T25:00:00+01:00",
        "2024-13-01T00:00:00Z",
        "2023-02-29T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "2024-01-01T00:00:00+0100",
        "2024-01-01T00:00:00+01:60",
        "２０24-01-01T00:00:00Z",
    ],
)
def test_parse_time_refuses_what_go_refuses(spelled: str) -> None:
    with pytest.raises(ValueError):
        gojson.parse_time(spelled)


# Depth


@pytest.mark.parametrize("levels", [1, 5, 1000])
@pytest.mark.parametrize("inner", [b"", b'"]]]]["', b'"\\"]"', b'[],{"a":[]}'])
def test_depth_counts_the_brackets_that_are_open_at_once(levels: int, inner: bytes) -> None:
    own = 2 if inner.startswith(b"[]") else 0
    nested_text = b'[{"":' * levels + b"[%b]" % inner + b"}]" * levels
    assert not gojson.nests_deeper(nested_text, 2 * levels + 1 + own)
    assert gojson.nests_deeper(nested_text, 2 * levels + own)


def test_brackets_side_by_side_and_in_strings_are_no_depth() -> None:
    assert not gojson.nests_deeper(b"[%b[]]" % (b"[]," * 1000), 2)
    assert not gojson.nests_deeper(b'["%b"]' % (b"[" * 1000), 1)


# Digests


@pytest.mark.parametrize(
    "digest", ["sha256:" + "0" * 64, "sha384:" + "a" * 96, "sha512:" + "f" * 128]
)
def test_digest_of_each_algorithm_is_accepted(digest: str) -> None:
    assert is_digest(digest)
    assert check_digest(digest) == digest


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256",
        "sha256:",
        "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "SHA256:" + "a" * 64,
        "sha512:" + "a" * 64,
        "md5:" + "a" * 32,
        "sha1:" + "a" * 40,
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        "sha256:" + "٣" * 64,
    ],
)
def test_digest_that_is_malformed_is_refused(digest: str) -> None:
    assert not is_digest(digest)
    with pytest.raises(InvalidDigestError) as caught:
        check_digest(digest)
    assert caught.value.actual == digest


def test_digest_must_be_text() -> None:
    with pytest.raises(TypeError):
        check_digest(b"sha256:" + b"a" * 64)


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_hasher_digests_with_the_digests_algorithm(algorithm: str) -> None:
    state = hasher(f"{algorithm}:00")
    state.update(b"data")
    assert digest_of(state) == f"{algorithm}:{hashlib.new(algorithm, b'data').hexdigest()}"


@pytest.mark.parametrize(
    ("key", "verdict"),
    [("manifest", True), ("manifest-sha256:a", True), ("Manifest", False), ("a-manifest", False)],
)
def test_manifest_keys_begin_with_manifest(key: str, verdict: bool) -> None:
    assert is_manifest_key(key) is verdict


def test_signed_payload_is_the_manifest_without_its_signatures() -> None:
    assert signed_payload(signed()) == PAYLOAD


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"not JSON",
        b"[]",
        DEEP,
        PAYLOAD,
        b'{"schemaVersion":1,"signatures":[]}',
        b'{"schemaVersion":1,"signatures":[{}]}',
        b'{"schemaVersion":1,"signatures":[{"protected":"!"}]}',
        b'{"schemaVersion":1,"signatures":[{"protected":"\\u00e9"}]}',
        b'{"schemaVersion":1,"signatures":[{"protected":"e30"}]}',
        signed(PAYLOAD.replace(b'"schemaVersion": 1', b'"schemaVersion": 2')),
        signed(formatLength=-1),
        signed(formatLength=10**6),
        signed(formatLength="1"),
        signed(formatTail="a"),
    ],
)
def test_signed_payload_of_anything_else_is_none(manifest: bytes) -> None:
    assert signed_payload(manifest) is None


# IDs, names and texts


@pytest.mark.parametrize(
    "image_id", ["a", "A" * 255, "é" * 127, "0" * 64, "a.json", "-", " ", "images.json.x", "a\nb"]
)
def test_id_that_can_name_a_directory_is_accepted(image_id: str) -> None:
    assert is_id(image_id)
    assert check_id(image_id) == image_id


@pytest.mark.parametrize(
    "image_id",
    [
        "",
        ".",
        "..",
        ".hidden",
        ".new-images.json",
        "../x",
        "a/b",
        "/",
        "a\0b",
        "a" * 256,
        "é" * 128,
        "\ud800",
        "images.json",
        "images.lock",
        "lost+found",
    ],
)
def test_id_that_cannot_name_a_directory_is_refused(image_id: str) -> None:
    assert not is_id(image_id)
    with pytest.raises(InvalidIDError) as caught:
        check_id(image_id)
    assert caught.value.id == image_id


@pytest.mark.parametrize("image_id", [None, 1, b"a", ["a"]])
def test_id_must_be_text(image_id: object) -> None:
    with pytest.raises(TypeError):
        check_id(image_id)


def test_names_keep_their_order_without_repeats() -> None:
    assert check_names(name for name in ["b", "a", "b", ""]) == ("b", "a", "")


@pytest.mark.parametrize("names", ["name", b"name", None, 5, [1], [None], [b"a"], [["a"]]])
def test_names_must_be_an_iterable_of_text(names: object) -> None:
    with pytest.raises(TypeError):
        check_names(names)


def test_text_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="the note is not valid"):
        check_text("a\udc80", "the note")


# Keys and their files


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("manifest", "manifest"),
        ("a.b.0", "a.b.0"),
        ("manifest-1", "=bWFuaWZlc3QtMQ=="),
        ("Manifest", "=TWFuaWZlc3Q="),
        ("sha256:abc", "=c2hhMjU2OmFiYw=="),
        ("=", "="),
        ("==", "=PT0="),
        ("é", "é"),
        ("éa", "=w6lh"),
        ("config!", "config!"),
        ("signatureS", "signatureS"),
        ("a b", "=YSBi"),
        ("a\n", "a\n"),
    ],
)
def test_big_data_file_is_named_as_upstream_names_it(key: str, file: str) -> None:
    assert big_data_file(key) == file
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    ["", ".", "..", "/", "a/", "a\0", "\0", "a" * 256, "A" * 190, "é" * 128, "\ud800", "a\ud800b"],
)
def test_key_that_cannot_name_a_file_is_refused(key: str) -> None:
    with pytest.raises(InvalidBigDataNameError) as caught:
        check_key(key)
    assert caught.value.key == key


def test_key_whose_base64_has_a_slash_is_refused() -> None:
    assert "/" in big_data_file("AB?")
    with pytest.raises(InvalidBigDataNameError):
        check_key("AB?")


@pytest.mark.parametrize("key", ["a" * 255, "A" * 189, "a" * 253 + "é"])
def test_key_may_fill_a_file_name(key: str) -> None:
    assert len(big_data_file(check_key(key)).encode()) >= 253


@pytest.mark.parametrize("key", [None, 1, b"manifest"])
def test_key_must_be_text(key: object) -> None:
    with pytest.raises(TypeError):
        check_key(key)


KEYS = st.text("aZ0.=/+-é\0 ", max_size=6) | text | st.binary(max_size=5).map(repr)


@given(KEYS)
def test_file_name_of_every_key_is_a_big_data_file(key: str) -> None:
    with suppress(InvalidBigDataNameError):
        assert is_big_data_file(big_data_file(check_key(key)))


@given(KEYS | KEYS.map(lambda key: "=" + b64encode(key.encode()).decode()))
def test_big_data_file_is_the_file_name_of_some_key(name: str) -> None:
    assume("/" not in name and "\0" not in name)
    candidates = [name]
    with suppress(ValueError):
        candidates.append(msgspec.json.decode(f'"{name[1:]}"'.encode(), type=bytes).decode())
    expected = any(is_key(key) and big_data_file(key) == name for key in candidates)
    assert is_big_data_file(name) == expected


def is_key(key: str) -> bool:
    """Return whether a caller may use the key."""
    with suppress(InvalidBigDataNameError):
        return bool(check_key(key))
    return False


@given(KEYS, KEYS)
def test_two_keys_never_share_a_file(one: str, other: str) -> None:
    assert (big_data_file(one) == big_data_file(other)) == (one == other)


@pytest.mark.parametrize("name", ["\udcff", "x\udcff", "\udcffx", "=\udcff", "", ".", ".."])
def test_file_name_of_no_key_is_not_a_big_data_file(name: str) -> None:
    assert not is_big_data_file(name)
