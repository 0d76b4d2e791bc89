"""Records of older and newer programs are read, changed and written back without loss."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aimagestore import ImageStore

from .peer import Peer, image_store
from .twins import records_of

pytestmark = pytest.mark.peers

SHA = "sha256:" + "0" * 63

RECORDS = {
    "today": (
        '{"id":"today","digest":"%(sha)s1","names":["a","b"],"names-history":["old","a","b"],'
        '"layer":"top","mapped-layers":["mapped2","mapped1"],"metadata":"{\\"k\\":\\"\\u003c\\"}",'
        '"big-data-names":["z","manifest"],"big-data-sizes":{"manifest":2,"z":1},'
        '"big-data-digests":{"manifest":"%(sha)s1","z":"%(sha)s2"},'
        '"created":"2024-02-29T23:59:59.123456789Z","flags":{"big":1e2,"x":{"b":1,"a":[null]}}}'
    ),
    "future": (
        '{"id":"future","future":{"b":1.50,"a":"\\u00fc/"},"names":["f"],'
        '"created":"2024-01-01T00:00:00+02:00","another":[1,2,{}],"zero":null}'
    ),
    "no-digest": (
        '{"id":"no-digest","big-data-names":["manifest"],"big-data-sizes":{"manifest":2},'
        '"big-data-digests":{"manifest":"%(sha)s3"},"created":"2020-01-01T00:00:00Z"}'
    ),
    "no-created": '{"id":"no-created","metadata":"old"}',
    "zero-time": '{"id":"zero-time","created":"0001-01-01T00:00:00Z"}',
    "manifests": (
        '{"id":"manifests","digest":"%(sha)s9",'
        '"big-data-names":["manifest-b","manifest","manifest-a"],'
        '"big-data-digests":{"manifest":"%(sha)s5","manifest-a":"%(sha)s6",'
        '"manifest-b":"%(sha)s4"},"created":"2020-01-01T00:00:00.1Z"}'
    ),
    "nulls": (
        '{"id":"nulls","digest":"","names":null,"names-history":[],"layer":"","flags":null,'
        '"big-data-names":null,"big-data-sizes":{},"big-data-digests":null,'
        '"created":"2020-01-01T00:00:00Z"}'
    ),
}
RECORDS = {image_id: record % {"sha": SHA} for image_id, record in RECORDS.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with all of these records."""
    root = tmp_path / "store"
    directory = image_store(root)
    directory.mkdir(parents=True)
    (directory / "images.json").write_text(f"[{','.join(RECORDS.values())}]")
    return root


async def test_records_are_read(root: Path) -> None:
    async with ImageStore(image_store(root), read_only=True) as store:
        images = {image.id: image for image in await store.images()}
    assert list(images) == list(RECORDS)
    today = images["today"]
    assert today.names_history == ("old", "a", "b")
    assert today.mapped_top_layers == ("mapped2", "mapped1")
    assert today.metadata == '{"k":"<"}'
    assert today.created == datetime(2024, 2, 29, 23, 59, 59, 123456, UTC)
    assert today.flags == {"big": 100.0, "x": {"b": 1, "a": [None]}}
    assert images["future"].created == datetime(2023, 12, 31, 22, tzinfo=UTC)
    assert images["no-digest"].digest == SHA + "3"
    assert images["no-created"].created is None
    assert images["zero-time"].created is None
    assert images["manifests"].digests == (SHA + "9", SHA + "4", SHA + "5", SHA + "6")
    assert images["nulls"].names == images["nulls"].digests == ()


async def test_both_libraries_read_the_same(peer: Peer, root: Path) -> None:
    async with ImageStore(image_store(root), read_only=True) as store:
        for image in await store.images():
            _check_alike(image, peer.ask("get", root, ref=image.id))
            for digest in image.digests:
                ours = [found.id for found in await store.by_digest(digest)]
                assert ours == peer.ask("by_digest", root, digest=digest)


def _check_alike(image: Any, theirs: dict[str, Any]) -> None:
    for field in ("names", "names_history", "mapped_top_layers", "big_data_names"):
        assert list(getattr(image, field)) == (theirs[field] or [])
    for field in ("big_data_sizes", "big_data_digests", "flags"):
        assert dict(getattr(image, field)) == (theirs[field] or {})
    for field in ("metadata", "top_layer", "digest"):
        assert getattr(image, field) == theirs[field]
    assert sorted(image.digests) == sorted(theirs["digests"] or [])


@pytest.mark.parametrize("image_id", RECORDS)
async def test_a_change_keeps_every_other_record_to_the_byte(root: Path, image_id: str) -> None:
    async with ImageStore(image_store(root)) as store:
        await store.set_metadata(image_id, "new")
        await store.add_names(image_id, ["new"])
        await store.set_flag(image_id, "new", 1)
        await store.set_big_data(image_id, "new", b"new")
        await store.clear_flag(image_id, "new")
    written = {msgspec.json.decode(r)["id"]: r.decode() for r in records_of(image_store(root))}
    assert list(written) == list(RECORDS)
    del written[image_id]
    assert written == {other: RECORDS[other] for other in written}


@pytest.mark.parametrize("image_id", RECORDS)
async def test_a_change_keeps_what_it_does_not_touch(peer: Peer, root: Path, image_id: str) -> None:
    async with ImageStore(image_store(root)) as store:
        before = await store.get(image_id)
        image = await store.set_metadata(image_id, "new")
        assert image == await store.get(image_id)
    _check_alike(image, peer.ask("get", root, ref=image_id))
    old = msgspec.json.decode(RECORDS[image_id], type=dict[str, msgspec.Raw])
    (text,) = (r for r in records_of(image_store(root)) if json.loads(r)["id"] == image_id)
    new = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    assert bytes(new.pop("metadata")) == b'"new"'
    old.pop("metadata", None)
    # Always written: the digest, which follows from the manifests, and a zero for an unknown time.
    for field, value in (("digest", before.digest), ("created", "0001-01-01T00:00:00Z")):
        if field not in old and value:
            assert json.loads(bytes(new.pop(field))) == value
    assert {field: bytes(raw) for field, raw in new.items()} == {
        field: bytes(raw) for field, raw in old.items()
    }


async def test_unknown_fields_are_kept_by_every_kind_of_change(peer: Peer, root: Path) -> None:
    unknown = '"future":{"b":1.50,"a":"\\u00fc/"},"another":[1,2,{}],"zero":null}'
    async with ImageStore(image_store(root)) as store:
        await store.set_names("future", ["g", "b"])
        await store.add_names("future", ["h"])
        await store.remove_names("future", ["g"])
        await store.set_flag("future", "flag", [1])
        await store.clear_flag("future", "flag")
        await store.set_big_data("future", "manifest", b"{}")
        async with store.transaction() as transaction:
            await transaction.set_metadata("future", "text")
        image = await store.get("future")
        # Another image takes a name from it.
        await store.add_names("today", ["h"])
        today = await store.get("today")
    assert (await _record(root, "future")).endswith(unknown)
    assert today.mapped_top_layers == ("mapped2", "mapped1")
    assert '"mapped-layers":["mapped2","mapped1"]' in await _record(root, "today")
    assert '"created":"2024-02-29T23:59:59.123456789Z"' in await _record(root, "today")
    assert '"flags":{"big":1e2,"x":{"b":1,"a":[null]}}' in await _record(root, "today")
    theirs = peer.ask("get", root, ref="future")
    assert theirs["names"] == ["b"]
    assert theirs["names_history"] == list(image.names_history)
    assert theirs["created"] == "2024-01-01T00:00:00+02:00"


async def _record(root: Path, image_id: str) -> str:
    found = (record.decode() for record in records_of(image_store(root)))
    return next(record for record in found if json.loads(record)["id"] == image_id)


async def test_an_index_written_by_containers_storage_is_read_again(peer: Peer, root: Path) -> None:
    async with ImageStore(image_store(root)) as store:
        await store.set_flag("today", "more", {"n": 0.1})
        images = {image.id: image for image in await store.images()}
        peer.ask("set_metadata", root, ref="zero-time", metadata="theirs")
        # It has written the whole index, without the fields that it does not know.
        assert "another" not in await _record(root, "future")
        again = {image.id: image for image in await store.images()}
    assert again.pop("zero-time").metadata == "theirs"
    del images["zero-time"]
    assert list(again) == list(images)
    for image_id, image in again.items():
        assert image == images[image_id]
