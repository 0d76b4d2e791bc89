"""Differences from containers/storage that the contract documents."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from aimagestore import (
    DuplicateIDError,
    DuplicateImageNamesError,
    DuplicateNameError,
    ImageStore,
    ImageUnknownError,
    InvalidBigDataNameError,
    InvalidDigestError,
    InvalidIDError,
    StoreCorruptError,
)

from .generation import BEHAVIOUR
from .peer import Peer, PeerError, image_store
from .twins import records_of

pytestmark = pytest.mark.peers

MANIFESTS = {f"manifest-{n}": b'{"n":%d}' % n for n in range(8)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of the store of both."""
    return tmp_path / "store"


@pytest.mark.parametrize("key", ["aB", "a=", "A", "ü", "=", "0.ü"])
async def test_file_names_follow_the_quirk_about_the_last_character(
    peer: Peer, root: Path, key: str
) -> None:
    peer.ask("create", root, id="theirs", big_data={key: b"theirs"})
    async with ImageStore(image_store(root)) as store:
        assert await store.big_data("theirs", key) == b"theirs"
        await store.create("ours", big_data={key: b"ours"}, force=True)
    assert peer.ask("big_data", root, ref="ours", key=key) == b"ours"
    assert (image_store(root) / "theirs" / key).read_bytes() == b"theirs"
    assert (image_store(root) / "ours" / key).read_bytes() == b"ours"


async def test_the_digests_of_an_image_have_a_fixed_order_only_here(peer: Peer, root: Path) -> None:
    peer.ask("create", root, id="image", big_data=MANIFESTS)
    peer.ask("set_big_data", root, ref="image", key="manifest-0", data=b"another")
    async with ImageStore(image_store(root)) as store:
        image = await store.get("image")
    names, digests = image.big_data_names, image.big_data_digests
    assert names == tuple(MANIFESTS)
    assert image.digests == (image.digest, *(digests[name] for name in names))
    orders = {tuple(peer.ask("get", root, ref="image")["digests"]) for _ in range(20)}
    for _ in range(20):
        peer.ask("reopen", root)
        orders.add(tuple(peer.ask("get", root, ref="image")["digests"]))
    assert all(sorted(order) == sorted(image.digests) for order in orders)
    assert len(orders) > 1, "containers/storage has a fixed order now: change the contract"


async def test_of_many_manifests_and_no_digest_the_first_gives_the_digest(
    peer: Peer, root: Path
) -> None:
    peer.ask("create", root, id="image", big_data=MANIFESTS)
    peer.ask("close", root)
    index = image_store(root) / "images.json"
    record = index.read_bytes()
    digest = peer.ask("get", root, ref="image")["digest"]
    peer.ask("close", root)
    index.write_bytes(record.replace(b'"digest":"%b",' % digest.encode(), b""))
    async with ImageStore(image_store(root)) as store:
        image = await store.set_metadata("image", "text")
    assert image.digest == image.big_data_digests["manifest-0"]
    assert peer.ask("get", root, ref="image")["digest"] == image.digest


async def test_an_id_or_name_in_use_is_an_error_in_both(peer: Peer, root: Path) -> None:
    async with ImageStore(image_store(root)) as store:
        peer.ask("create", root, id="image", names=["a", "b"])
        with pytest.raises(DuplicateIDError) as by_id:
            await store.create("image", force=True)
        assert by_id.value.id == "image"
        with pytest.raises(DuplicateNameError) as by_name:
            await store.create(names=["c", "b"], force=True)
        assert (by_name.value.name, by_name.value.id) == ("b", "image")
    for kind, fields in (
        ("ErrDuplicateID", {"id": "image"}),
        ("ErrDuplicateName", {"names": ["b"]}),
    ):
        with pytest.raises(PeerError) as theirs:
            peer.ask("create", root, **fields)
        assert theirs.value.kind == kind


@pytest.mark.parametrize("key", ["???", "???a", "/", "a/", ".", "..", "\0", "K" * 250, ""])
async def test_keys_that_name_no_file_are_refused(peer: Peer, root: Path, key: str) -> None:
    peer.ask("create", root, id="image", big_data={"a": b"a"})
    before = records_of(image_store(root))
    async with ImageStore(image_store(root)) as store:
        with pytest.raises(InvalidBigDataNameError) as ours:
            await store.set_big_data("image", key, b"data")
        assert ours.value.key == key
        with pytest.raises(InvalidBigDataNameError):
            await store.create(big_data={key: b"data"}, force=True)
    assert records_of(image_store(root)) == before
    if key in {"a/", "???"}:
        # containers/storage drops the slash at the end, so "a/" overwrites the item "a".
        peer.ask("set_big_data", root, ref="image", key=key, data=b"data")
        assert (peer.ask("big_data", root, ref="image", key="a") == b"data") is (key == "a/")
        return
    with pytest.raises(PeerError) as theirs:
        peer.ask("set_big_data", root, ref="image", key=key, data=b"data")
    assert theirs.value.kind in {"ErrInvalidBigDataName", "ErrNotExist", "other"}


async def test_an_empty_key_is_refused_for_a_known_and_an_unknown_image(
    peer: Peer, root: Path
) -> None:
    peer.ask("create", root, id="image")
    async with ImageStore(image_store(root)) as store:
        for ref in ("image", "unknown"):
            with pytest.raises(InvalidBigDataNameError):
                await store.set_big_data(ref, "", b"data")
    kinds = {}
    for ref in ("image", "unknown"):
        with pytest.raises(PeerError) as theirs:
            peer.ask("set_big_data", root, ref=ref, key="", data=b"data")
        kinds[ref] = theirs.value.kind
    unknown = "ErrInvalidBigDataName" if BEHAVIOUR.checks_key_first else "ErrImageUnknown"
    assert kinds == {"image": "ErrInvalidBigDataName", "unknown": unknown}


async def test_the_empty_ref_matches_nothing_even_an_image_of_that_name(
    peer: Peer, root: Path
) -> None:
    peer.ask("create", root, id="image", names=["", "a"])
    assert peer.ask("lookup", root, ref="") == "image"
    async with ImageStore(image_store(root)) as store:
        assert not await store.exists("")
        with pytest.raises(ImageUnknownError):
            await store.get("")
        assert (await store.get("a")).names == ("", "a")


@pytest.mark.parametrize("image_id", ["images.json", ".", "..", "a/b", ".hidden", "lost+found"])
async def test_ids_that_are_paths_are_refused(peer: Peer, root: Path, image_id: str) -> None:
    async with ImageStore(image_store(root)) as store:
        with pytest.raises(InvalidIDError) as ours:
            await store.create(image_id, force=True)
    assert ours.value.id == image_id
    # containers/storage accepts it; deleting this image would delete the file at that path.
    assert peer.ask("create", root, id=image_id)["id"] == image_id
    async with ImageStore(image_store(root)) as store:
        assert await store.images() == [], "a record of such an ID is damaged"


async def test_an_id_with_a_space_is_found_by_a_prefix_only_here(peer: Peer, root: Path) -> None:
    peer.ask("create", root, id="an image")
    assert peer.ask("lookup", root, ref="an image") == "an image"
    assert not peer.ask("exists", root, ref="an im")
    async with ImageStore(image_store(root)) as store:
        assert await store.lookup("an im") == "an image"


async def test_malformed_digests_are_refused_before_anything_else(peer: Peer, root: Path) -> None:
    peer.ask("create", root, id="image")
    async with ImageStore(image_store(root)) as store:
        with pytest.raises(InvalidDigestError):
            await store.create("image", digest="sha256:1")
        with pytest.raises(InvalidDigestError):
            await store.by_digest("sha256:1")
    with pytest.raises(PeerError) as theirs:
        peer.ask("create", root, id="image", digest="sha256:1")
    assert theirs.value.kind == "ErrDuplicateID"
    assert peer.ask("by_digest", root, digest="sha256:1") == []


async def test_an_image_can_be_created_with_the_zero_time_only_here(peer: Peer, root: Path) -> None:
    zero = datetime(1, 1, 1, tzinfo=UTC)
    now = peer.ask("create", root, id="theirs", created=zero.isoformat())["created"]
    assert datetime.fromisoformat(now).year > 2000
    async with ImageStore(image_store(root)) as store:
        assert (await store.create("ours", created=zero, force=True)).created is None
    assert peer.ask("get", root, ref="ours")["created"] == "0001-01-01T00:00:00Z"


async def test_unrecorded_sizes_and_digests_are_measured(peer: Peer, root: Path) -> None:
    peer.ask("create", root, id="image", big_data={"a": b"data"})
    digest = peer.ask("big_data_digest", root, ref="image", key="a")
    peer.ask("close", root)
    index = image_store(root) / "images.json"
    record = index.read_bytes()
    bare = record.replace(b'"big-data-sizes":{"a":4},', b"").replace(
        b'"big-data-digests":{"a":"%b"},' % digest.encode(), b""
    )
    index.write_bytes(bare)
    assert peer.ask("big_data_size", root, ref="image", key="a") == 4
    with pytest.raises(PeerError) as theirs:
        peer.ask("big_data_digest", root, ref="image", key="a")
    assert theirs.value.kind == "ErrDigestUnknown"
    async with ImageStore(image_store(root)) as store:
        assert await store.big_data_size("image", "a") == 4
        assert await store.big_data_digest("image", "a") == digest
    assert index.read_bytes() == record
    assert peer.ask("big_data_digest", root, ref="image", key="a") == digest


async def test_a_name_conflict_is_resolved(peer: Peer, root: Path) -> None:
    peer.ask("create", root, id="image1", names=["a", "b"])
    peer.ask("create", root, id="image2", names=["c"])
    peer.ask("close", root)
    index = image_store(root) / "images.json"
    both = index.read_bytes().replace(b'"names":["c"]', b'"names":["a","c"]')
    index.write_bytes(both)
    with pytest.raises(DuplicateImageNamesError):
        async with ImageStore(image_store(root), read_only=True):
            pass
    async with ImageStore(image_store(root)) as store:
        ours = [image.names for image in await store.images()]
    repaired = index.read_bytes()
    index.write_bytes(both)
    theirs = [tuple(image["names"]) for image in peer.ask("images", root)]
    assert ours == theirs == [("b",), ("a", "c")]
    assert index.read_bytes() == repaired


async def test_an_index_cut_short_is_refused_and_kept(peer: Peer, root: Path) -> None:
    peer.ask("create", root, id="image1")
    peer.ask("create", root, id="image2")
    peer.ask("close", root)
    index = image_store(root) / "images.json"
    whole = index.read_bytes()
    index.write_bytes(whole[:-40])
    with pytest.raises(StoreCorruptError):
        async with ImageStore(image_store(root)):
            pass
    assert index.read_bytes() == whole[:-40]
    if not BEHAVIOUR.loses_cut_index:
        for op, fields in (("exists", {"ref": "image2"}), ("create", {"id": "image3"})):
            with pytest.raises(PeerError, match=r"images\.json"):
                peer.ask(op, root, **fields)
        assert index.read_bytes() == whole[:-40]
        return
    # It is read as far as it goes, and the next save makes the loss final.
    assert not peer.ask("exists", root, ref="image2")
    peer.ask("create", root, id="image3")
    records = records_of(image_store(root))
    assert b'"id":"image3"' in records[-1]
    assert whole[1:-1] not in b",".join(records)
