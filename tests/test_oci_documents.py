"""The documents of image layouts: names, manifests and indexes."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, strategies as st

from aimagestore import DigestMismatchError, InvalidLayoutError, SizeMismatchError
from aimagestore._core.references import full_name
from aimagestore.oci._closure import Closure
from aimagestore.oci._documents import (
    Config,
    Descriptor,
    Marker,
    decode,
    decode_descriptor,
    media_type_of,
    read_document,
)
from aimagestore.oci._index import LayoutIndex, with_entries

from .support.layouts import INDEX, MANIFEST, REF_NAME, digest_of, encode

DIGEST = digest_of(b"")


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("1.0", "localhost/1.0:latest"),
        ("hello:1", "localhost/hello:1"),
        ("a/b", "localhost/a/b:latest"),
        ("a/b/c:1", "localhost/a/b/c:1"),
        ("localhost/hello", "localhost/hello:latest"),
        ("localhost:5000/hello:1", "localhost:5000/hello:1"),
        ("quay.io/podman/hello:latest", "quay.io/podman/hello:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine:3", "docker.io/library/alpine:3"),
        ("docker.io/a/b", "docker.io/a/b:latest"),
        (f"a@{DIGEST}", f"localhost/a@{DIGEST}"),
        (f"a:1@{DIGEST}", f"localhost/a@{DIGEST}"),
        ("a" * 64, f"localhost/{'a' * 64}:latest"),
        ("a__b--c.d", "localhost/a__b--c.d:latest"),
        ("UPPER", None),
        ("Upper/case", None),
        ("UPPER.io/case", "UPPER.io/case:latest"),
        ("with space", None),
        ("", None),
        (":1", None),
        ("a:", None),
        ("a:" + "t" * 129, None),
        ("a@sha256:1", None),
        ("/a", None),
        ("a//b", None),
        ("../a", None),
        ("a\n", None),
        ("é", None),
        ("a" * 245, f"localhost/{'a' * 245}:latest"),
        ("a" * 246, None),
        ("a." * 100_000, None),
    ],
)
def test_a_short_name_gets_its_full_form(name: str, full: str | None) -> None:
    assert full_name(name) == full
    if full is not None:
        assert full_name(full) == full


@given(st.text() | st.from_regex(r"[a-z0-9.:/@_A-Z-]{0,40}", fullmatch=True))
def test_a_full_name_does_not_change(name: str) -> None:
    full = full_name(name)
    if full is not None:
        assert full_name(full) == full
        assert full.startswith("localhost") or "." in full or ":" in full


# Values close to those of real manifests, so that some of them pass the first checks.
DIGESTS = st.sampled_from([DIGEST, digest_of(b"1"), "sha256:", "../../../etc/passwd", "", 5, None])
SIZES = st.sampled_from([0, 1, -1, 2**63, 2**70, 1.5, "1", None])
TYPES = st.sampled_from([INDEX, MANIFEST, "", "text/plain", 5, None])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DESCRIPTORS = (
    st.fixed_dictionaries(
        {"digest": DIGESTS, "size": SIZES},
        optional={
            "mediaType": TYPES,
            "urls": ANYTHING,
            "annotations": st.dictionaries(st.just(REF_NAME), st.text() | ANYTHING),
            "platform": st.fixed_dictionaries({}, optional={"os": ANYTHING, "variant": ANYTHING}),
        },
    )
    | ANYTHING
)
DOCUMENTS = (
    st.fixed_dictionaries(
        {"schemaVersion": st.just(2) | ANYTHING},
        optional={
            "mediaType": TYPES,
            "config": DESCRIPTORS,
            "layers": st.lists(DESCRIPTORS, max_size=3) | ANYTHING,
            "manifests": st.lists(DESCRIPTORS, max_size=3) | ANYTHING,
        },
    )
    | ANYTHING
)
TEXTS = DOCUMENTS.map(lambda document: json.dumps(document).encode()) | st.binary()


def closure_of(data: bytes, media_type: str) -> Closure:
    root = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
    return Closure(root, "place")


# A document may be refused with these errors only.
REFUSED = (InvalidLayoutError, SizeMismatchError, DigestMismatchError)


@given(TEXTS, st.sampled_from([INDEX, MANIFEST, "text/plain"]))
def test_any_document_is_read_or_refused(data: bytes, media_type: str) -> None:
    with suppress(*REFUSED):
        closure = closure_of(data, media_type)
        while closure.next() is not None:
            closure.add(data)
        assert closure.documents == {digest_of(data): data}
        assert all(blob.size >= 0 for blob in closure.blobs.values())


@given(TEXTS)
def test_any_index_is_added_to_or_refused(data: bytes) -> None:
    entry = Descriptor(media_type=MANIFEST, digest=digest_of(b"new"), size=3)
    with suppress(InvalidLayoutError):
        index = LayoutIndex(data, "place")
        added = LayoutIndex(with_entries(data, [entry], "place"), "place")
        assert set(added.labels) == {*index.labels, entry.digest}
        assert entry in added.select(entry.digest)[0].entries


@given(TEXTS, st.sampled_from([INDEX, MANIFEST]))
def test_decoded_text_can_be_encoded(data: bytes, media_type: str) -> None:
    assert repr(Config.read(data)).encode()
    with suppress(InvalidLayoutError):
        assert repr(decode(data, Marker, "it", "place")).encode()
    with suppress(InvalidLayoutError):
        assert repr(read_document(data, media_type, "it", "place")).encode()
    with suppress(ValueError):
        assert repr(decode_descriptor(msgspec.Raw(data))).encode()


@given(TEXTS)
def test_a_media_type_is_found_or_refused(data: bytes) -> None:
    with suppress(InvalidLayoutError):
        assert media_type_of(data, "it", "place")


def test_an_error_about_a_document_has_its_path() -> None:
    with pytest.raises(InvalidLayoutError, match=r"^place: it cannot be read: .*imageLayout") as e:
        decode(b"{}", Marker, "it", "place")
    assert e.value.path == "place"


def test_a_manifest_that_is_listed_twice_is_read_once() -> None:
    manifest = encode({"schemaVersion": 2, "config": {"digest": DIGEST, "size": 0}})
    entry = {"mediaType": MANIFEST, "digest": digest_of(manifest), "size": len(manifest)}
    index = encode({"schemaVersion": 2, "manifests": [entry, entry]})
    closure = closure_of(index, INDEX)
    read = []
    while (descriptor := closure.next()) is not None:
        read.append(descriptor.digest)
        closure.add(index if descriptor.digest == digest_of(index) else manifest)
    assert read == [digest_of(index), digest_of(manifest)] == list(closure.documents)
    assert list(closure.blobs) == [DIGEST]


def test_a_blob_that_is_a_layer_and_a_config_is_required() -> None:
    blob = {"digest": DIGEST, "size": 0}
    foreign = blob | {"urls": ["https://example.com"]}
    data = encode({"schemaVersion": 2, "config": blob, "layers": [foreign, blob]})
    closure = closure_of(data, MANIFEST)
    closure.next()
    closure.add(data)
    assert not closure.blobs[DIGEST].is_layer
    assert not closure.blobs[DIGEST].is_optional
