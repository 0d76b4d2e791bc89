"""Hypothesis strategies for lists of operations on a store."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from aimagestore._core.names import big_data_file

DIGESTS = (
    "sha256:" + "1" * 64,
    "sha384:" + "2" * 96,
    "sha512:" + "3" * 128,
)
MALFORMED_DIGESTS = ("sha256:123", "sha256:" + "A" * 64, "md5:" + "1" * 32, "digest", ":", "")
LAYER = "~base"


@dataclass(frozen=True)
class Ref:
    """How an operation refers to an image: by its position in the list of images, or by a text.

    :ivar position: modulo the number of images; negative for a text
    :ivar cut: how many characters of the ID at this position are given; 0 for all of them
    """

    position: int = -1
    cut: int = 0
    text: str = ""


@dataclass(frozen=True)
class Operation:
    """One call, with the same arguments for both stores."""

    op: str
    ref: Ref | None = None
    fields: dict[str, Any] = field(default_factory=dict)


def _is_plain(key: str) -> bool:
    """Return whether containers/storage stores this key as we do; it takes ``a/`` for ``a``."""
    name = big_data_file(key)
    return bool(key) and not ({"/", "\0"} & set(name)) and name not in {".", ".."}


_IDS = ("x1", "x12", "x2", "ü-1", "a" * 64, "a" * 63 + "b", "quay.io-x")
_NAMES = ("localhost/one:1", "localhost/two:latest", "quay.io/<a>&b", "x", "x1", "a" * 8, "n\u2028")

text = st.text(max_size=6)
ids = st.none() | st.sampled_from(_IDS)
# containers/storage looks for layers first, and the tests' begin with "~". A few hexadecimal digits
# may be the prefix of a random ID, which differs between the stores.
_NOT_COMPARABLE = re.compile(r"~.*|[0-9a-f]{1,5}", re.DOTALL)


def _is_comparable(ref: str) -> bool:
    """Return whether a ref has the same meaning in both stores."""
    return not _NOT_COMPARABLE.fullmatch(ref)


name = (st.sampled_from(_NAMES) | text).filter(_is_comparable)
names = st.lists(name, max_size=3)
data = st.sampled_from([b"", b"{}", b"one", b"two"]) | st.binary(max_size=40)
manifests = st.sampled_from(["manifest", "manifest-2", "manifest-sha256:ab", "manifestX"])
_KEYS = ("plain", "0.9", "aB", "sha256:abc", "A", "aü", "ü", "a key", "=", "a=", "\U0001f600")
keys = manifests | st.sampled_from(_KEYS) | text.filter(_is_plain)
times = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 (Hypothesis wants them naive)
    max_value=datetime(9999, 12, 31),  # noqa: DTZ001
    timezones=st.just(UTC),
)
digests = st.sampled_from(DIGESTS)

_positions = st.builds(Ref, position=st.integers(0, 5), cut=st.sampled_from([0, 0, 0, 12, 63]))
_texts = st.sampled_from([*_IDS, *_NAMES, "", "a" * 9, "a" * 63, "x1 ", "ü", "unknown"]) | text
refs = _positions | st.builds(Ref, text=_texts.filter(_is_comparable))


def _call(op: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Operation]:
    return st.builds(Operation, st.just(op), refs, st.fixed_dictionaries(fields))


creations = st.builds(
    Operation,
    st.just("create"),
    st.none(),
    st.fixed_dictionaries(
        {"id": ids, "names": names},
        optional={
            "metadata": text,
            "layer": st.just(LAYER),
            "created": times,
            "digest": digests | st.sampled_from([d for d in MALFORMED_DIGESTS if d]),
            "big_data": st.dictionaries(keys, data, max_size=3),
        },
    ),
)

changes = st.one_of(
    creations,
    creations,
    _call("set_names", names=names),
    _call("add_names", names=names),
    _call("remove_names", names=names),
    _call("set_metadata", metadata=text),
    _call("set_big_data", key=keys | st.just(""), data=data),
    _call("set_big_data", key=keys, data=data),
    _call("set_big_data", key=manifests, data=data),
    _call("delete"),
)

on_store = st.sampled_from([Operation("wipe"), Operation("reopen"), Operation("images")])

reads = st.one_of(
    _call("get"),
    _call("lookup"),
    _call("exists"),
    _call("metadata"),
    _call("big_data_names"),
    _call("big_data", key=keys | st.just("")),
    _call("big_data_size", key=keys | st.just("")),
    _call("big_data_digest", key=keys | st.just("")),
    st.builds(
        lambda digest: Operation("by_digest", fields={"digest": digest}),
        digests | st.sampled_from(MALFORMED_DIGESTS),
    ),
)

# Most operations need images.
lists = st.builds(
    lambda first, then: [*first, *then],
    st.lists(creations, min_size=1, max_size=3),
    st.lists(changes | changes | changes | reads | on_store, min_size=10, max_size=30),
)
