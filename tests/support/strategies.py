"""Strategies of Hypothesis for records and indexes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
# A float beyond these is written as an integer of its leading digits and zeros.
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(-1e15, 1e15))
scalars = st.one_of(st.none(), st.booleans(), numbers, text)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
digests = st.sampled_from([f"sha256:{digit * 64}" for digit in "abc"])
ids = st.text("abc", min_size=1, max_size=4)
names = st.sampled_from(["red", "green", "blue", "a", "ab"])
keys = st.sampled_from(["manifest", "manifest-2", "signature", "sha256:config"])


def compact(value: Any, *, ascii_only: bool = False) -> bytes:
    """Return a value as JSON without white space, as Go and the library write it."""
    return json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode()


@st.composite
def records(draw: st.DrawFn, image_id: st.SearchStrategy[str] = ids) -> bytes:
    """Draw the element of an image in images.json, as any program may have written it."""
    items = draw(st.lists(keys, max_size=3, unique=True))
    optional = {
        "digest": digests,
        "names": st.lists(names, max_size=2, unique=True),
        "metadata": st.sampled_from(["", '},{"id":"a"', "x" * 90]),
        "flags": st.fixed_dictionaries({"f": st.just([{"a": 1}, {"id": "a", "b": 2}]) | scalars}),
        "x-unknown": json_values,
    }
    fields: dict[str, Any] = {"id": draw(image_id)}
    fields |= draw(st.fixed_dictionaries({}, optional=optional))
    fields["big-data-names"] = items
    fields["big-data-digests"] = {key: draw(digests) for key in items}
    return compact(fields, ascii_only=draw(st.booleans()))


damaged_elements = st.sampled_from(
    [b"null", b"1", b'"}"', b"[]", b"{}", b'{"id":""}', b'{"id":"a/b"}', b'{"id":"a","ID":"b"}']
)


@st.composite
def indexes(draw: st.DrawFn) -> list[bytes]:
    """Draw the elements of an index, with duplicates and damage among them."""
    return draw(st.lists(records() | damaged_elements, max_size=12))


@st.composite
def edits(draw: st.DrawFn, elements: list[bytes]) -> list[bytes]:
    """Draw a copy of the elements in which a few neighbours are replaced or removed."""
    start = draw(st.integers(0, len(elements)))
    end = draw(st.integers(start, min(start + 2, len(elements))))
    new = draw(st.lists(records() | damaged_elements, max_size=2))
    return [*elements[:start], *new, *elements[end:]]
