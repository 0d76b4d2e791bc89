"""The contract's reads and record changes, over every kind of store."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import aimagestore
from aimagestore import (
    AmbiguousImageError,
    DuplicateIDError,
    DuplicateImageNamesError,
    DuplicateNameError,
    Image,
    ImageStore,
    ImageUnknownError,
    InvalidDigestError,
    StoreClosedError,
    StoreReadOnlyError,
)

FIXTURE = Path(__file__).parent / "data" / "vfs-images"
FIXTURE_ID = "f5b637858f34c3ec1d1fe5127a2a01f1b8d8283ab0735becad262855d3d40872"
FIXTURE_DIGEST = "sha256:917f4f848ab58c0c11f90fdc6887e42c855b200fdf1fb147248447a6c1ff970a"
SOME_DIGEST = "sha256:" + "7" * 64


@pytest.fixture(params=["first", "reopened", "read-only", "snapshot", "transaction"])
async def reads(path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """What has buildah's image to read: lookups are the same in all of them."""
    shutil.copytree(FIXTURE, path)
    if request.param == "reopened":
        async with ImageStore(path) as store:
            await store.set_metadata(FIXTURE_ID, "other")
            await store.set_metadata(FIXTURE_ID, "")
    async with ImageStore(path, read_only=request.param == "read-only") as store:
        if request.param == "snapshot":
            yield await store.snapshot()
        elif request.param == "transaction":
            async with store.transaction() as transaction:
                yield transaction
        else:
            yield store


async def value(result: Any) -> Any:
    """What a method gives, whether it is async or plain."""
    return await result if hasattr(result, "__await__") else result


@pytest.mark.parametrize(
    "ref", [FIXTURE_ID, "localhost/hello:1", "localhost/hello:latest", "f5b6", "f"]
)
async def test_an_image_is_found_by_id_name_and_prefix(reads: Any, ref: str) -> None:
    assert await value(reads.lookup(ref)) == FIXTURE_ID
    assert (await value(reads.get(ref))).id == FIXTURE_ID


@pytest.mark.parametrize("ref", ["", "e", FIXTURE_ID + "0", "localhost/hello", "\ud800"])
async def test_what_is_not_there_is_unknown(reads: Any, ref: str) -> None:
    with pytest.raises(ImageUnknownError) as info:
        await value(reads.get(ref))
    assert info.value.ref == ref
    assert isinstance(info.value, KeyError)
    assert repr(ref) in str(info.value)


async def test_an_image_is_found_by_digest(reads: Any) -> None:
    assert [image.id for image in await value(reads.by_digest(FIXTURE_DIGEST))] == [FIXTURE_ID]
    with pytest.raises(ImageUnknownError):
        await value(reads.by_digest(SOME_DIGEST))
    with pytest.raises(InvalidDigestError):
        await value(reads.by_digest("sha256:7"))


async def test_the_record_says_what_buildah_wrote(path: Path) -> None:
    shutil.copytree(FIXTURE, path)
    record = json.loads((FIXTURE / "images.json").read_bytes())[0]
    async with ImageStore(path) as store:
        image = await store.get(FIXTURE_ID)
        assert await store.images() == [image]
        assert await store.exists(FIXTURE_ID)
        assert await store.metadata(FIXTURE_ID) == record["metadata"]
    assert image.digest == record["digest"]
    assert image.digests == (record["digest"],)
    assert image.names == tuple(record["names"])
    assert image.names_history == tuple(record["names-history"])
    assert image.top_layer == record["layer"]
    assert image.mapped_top_layers == ()
    assert image.big_data_names == tuple(record["big-data-names"])
    assert image.big_data_sizes == record["big-data-sizes"]
    assert image.big_data_digests == record["big-data-digests"]
    assert image.created == datetime(2026, 11, 23, 23, 31, 5, 214382, UTC)
    assert image.flags == {}


async def test_buildahs_manifest_is_read_verified(path: Path) -> None:
    shutil.copytree(FIXTURE, path)
    async with ImageStore(path) as store:
        for key in (await store.get(FIXTURE_ID)).big_data_names:
            async with store.open_big_data(FIXTURE_ID, key, verify=True) as reader:
                assert len(await reader.read()) == reader.size


async def test_create_without_anything(store: ImageStore) -> None:
    before = datetime.now(UTC)
    image = await store.create()
    assert len(image.id) == 64
    assert set(image.id) <= set("0123456789abcdef")
    assert image.created is not None
    assert before <= image.created <= datetime.now(UTC)
    assert await store.get(image.id) == image


async def test_create_with_everything(store: ImageStore) -> None:
    image = await store.create(
        "my-id",
        names=["b", "a", "b"],
        layer="layer",
        metadata="<text>",
        created=datetime(2020, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))),
        digest=SOME_DIGEST,
        flags={"one": 1.0, "deep": {"list": [None, True]}},
        big_data={"manifest": b"{}", "other": b""},
    )
    assert image.names == ("b", "a")
    assert image.names_history == ()
    assert (image.top_layer, image.metadata) == ("layer", "<text>")
    assert image.created == datetime(2020, 1, 2, 1, 4, 5, tzinfo=UTC)
    assert image.flags == {"one": 1, "deep": {"list": [None, True]}}
    assert image.digest == SOME_DIGEST
    assert image.digests == (SOME_DIGEST, image.big_data_digests["manifest"])
    assert image.big_data_sizes == {"manifest": 2, "other": 0}
    assert await store.big_data("my-id", "manifest") == b"{}"
    assert await store.big_data("my-id", "other") == b""
    assert [i.id for i in await store.by_digest(image.digests[1])] == ["my-id"]


async def test_the_index_is_spelled_as_go_spells_it(store: ImageStore, path: Path) -> None:
    await store.create(
        "id",
        names=["<&>\u2028"],
        created=datetime(2020, 1, 2, 3, 4, 5, 600, tzinfo=UTC),
        flags={"b": 1e21, "a": 2.0},
    )
    assert (path / "images.json").read_text() == (
        '[{"id":"id","names":["\\u003c\\u0026\\u003e\\u2028"],'
        '"created":"2020-01-02T03:04:05.0006Z","flags":{"a":2,"b":1e+21}}]'
    )
    assert (path / "images.json").stat().st_mode & 0o777 == 0o600
    assert path.stat().st_mode & 0o777 == 0o700


async def test_create_refuses_what_is_taken(store: ImageStore) -> None:
    await store.create("one", names=["a"])
    with pytest.raises(DuplicateIDError) as id_info:
        await store.create("one")
    with pytest.raises(DuplicateNameError) as name_info:
        await store.create("two", names=["b", "a"], big_data={"manifest": b"{}"})
    assert id_info.value.id == "one"
    assert (name_info.value.name, name_info.value.id) == ("a", "one")
    assert not await store.exists("b")


async def test_names_move_and_are_remembered(store: ImageStore) -> None:
    await store.create("one", names=["a", "b"])
    await store.create("two", names=["c"])
    image = await store.set_names("two", ["b", "c"])
    assert image.names == ("b", "c")
    assert image.names_history == ("c", "b")
    assert (await store.get("one")).names == ("a",)
    image = await store.add_names("two", ["a", "d"])
    assert image.names == ("a", "d", "b", "c")
    assert image.names_history == ("c", "b", "d", "a")
    assert (await store.get("one")).names == ()
    image = await store.remove_names("two", ["b", "nobody's"])
    assert image.names == ("a", "d", "c")
    assert await store.lookup("a") == "two"
    assert not await store.exists("b")


async def test_a_name_that_looks_like_another_images_id(store: ImageStore) -> None:
    await store.create("abc")
    await store.create("other", names=["abc", "ab"])
    assert await store.lookup("abc") == "abc"
    assert await store.lookup("ab") == "other"


async def test_an_ambiguous_prefix_names_the_candidates(store: ImageStore) -> None:
    for image_id in ["ab2", "ab1", "b"]:
        await store.create(image_id)
    for ref in ["a", "ab"]:
        with pytest.raises(AmbiguousImageError) as info:
            await store.get(ref)
        assert info.value.candidates == ("ab1", "ab2")
        assert not await store.exists(ref)
    await store.delete("ab1")
    assert await store.lookup("ab") == "ab2"


async def test_metadata_and_flags(store: ImageStore) -> None:
    await store.create("one")
    assert (await store.set_metadata("one", "text")).metadata == "text"
    assert await store.metadata("one") == "text"
    await store.set_flag("one", "a", [1, {"b": 2.5}])
    assert (await store.set_flag("one", "b", None)).flags == {"a": [1, {"b": 2.5}], "b": None}
    assert (await store.clear_flag("one", "a")).flags == {"b": None}
    assert (await store.clear_flag("one", "a")).flags == {"b": None}
    assert (await store.clear_flag("one", "b")).flags == {}


async def test_delete_and_wipe(store: ImageStore, path: Path) -> None:
    for image_id in "abc":
        await store.create(image_id, names=[image_id * 2], big_data={"k": b"v"})
    await store.delete("aa")
    assert [image.id for image in await store.images()] == ["b", "c"]
    assert not (path / "a").exists()
    await store.wipe()
    assert await store.images() == []
    assert sorted(p.name for p in path.iterdir()) == ["images.json", "images.lock"]
    assert (path / "images.json").read_bytes() == b"[]"


async def test_images_keep_their_order(store: ImageStore) -> None:
    ids = [f"{i:03}" for i in range(100)]
    async with store.transaction() as transaction:
        for image_id in ids:
            transaction.create(image_id)
    await store.set_metadata("050", "x")
    assert [image.id for image in await store.images()] == ids
    assert [image.id for image in await store.snapshot()] == ids


async def test_a_snapshot_stays(store: ImageStore) -> None:
    await store.create("one", names=["a"])
    snapshot = await store.snapshot()
    await store.delete("one")
    assert "a" in snapshot
    assert "b" not in snapshot
    assert len(snapshot) == 1
    assert snapshot.get("a").id == snapshot.lookup("on") == "one"
    assert 5 not in snapshot


async def test_a_change_by_another_store_is_seen_at_once(store: ImageStore, path: Path) -> None:
    async with ImageStore(path) as other:
        for i in range(20):
            await other.create(f"id{i}")
            assert await store.exists(f"id{i}")
            await store.set_metadata(f"id{i}", "m")
            assert await other.metadata(f"id{i}") == "m"


async def test_modified_and_refresh(store: ImageStore, path: Path) -> None:
    await store.create("one")
    assert not await store.modified()
    assert not await store.refresh()
    async with ImageStore(path) as other:
        await other.create("two")
    assert await store.modified()
    assert await store.modified()
    assert await store.refresh()
    assert not await store.modified()


async def test_touch_changes_the_token_only(store: ImageStore, path: Path) -> None:
    await store.create("one")
    before = (path / "images.lock").read_bytes(), (path / "images.json").read_bytes()
    await store.touch()
    after = (path / "images.lock").read_bytes(), (path / "images.json").read_bytes()
    assert len(before[0]) == len(after[0]) == 64
    assert before[0] != after[0]
    assert before[1] == after[1]
    assert not await store.modified()


async def test_touched_since(store: ImageStore) -> None:
    await store.create("one")
    assert await store.touched_since(datetime.now(UTC) - timedelta(minutes=1))
    assert not await store.touched_since(datetime.now(UTC) + timedelta(minutes=1))
    with pytest.raises(ValueError, match="aware"):
        await store.touched_since(datetime(2020, 1, 1))  # noqa: DTZ001


async def test_a_read_only_store_changes_nothing(path: Path) -> None:
    shutil.copytree(FIXTURE, path)
    (path / "images.lock").unlink()
    before = sorted((p.name, p.stat().st_mtime_ns) for p in path.rglob("*"))
    async with ImageStore(path, read_only=True) as store:
        assert store.read_only
        for change in [
            store.create(),
            store.delete("f"),
            store.wipe(),
            store.set_names("f", []),
            store.set_metadata("f", ""),
            store.set_flag("f", "a", 1),
            store.set_big_data("f", "k", b""),
            store.touch(),
        ]:
            with pytest.raises(StoreReadOnlyError) as info:
                await change
            assert isinstance(info.value, PermissionError)
            assert info.value.path == str(path)
        with pytest.raises(StoreReadOnlyError):
            async with store.transaction():
                pass
        with pytest.raises(StoreReadOnlyError):
            async with store.stage():
                pass
        assert not await store.touched_since(datetime.now(UTC) + timedelta(minutes=1))
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in path.rglob("*"))


async def test_a_read_only_store_must_be_there(path: Path) -> None:
    with pytest.raises(FileNotFoundError) as info:
        async with ImageStore(path, read_only=True):
            pass
    assert info.value.filename == str(path)
    assert not path.exists()


async def test_two_images_of_one_name_are_cured_or_refused(path: Path) -> None:
    path.mkdir()
    one = b'{"id":"one","names":["a","b"],"created":"0001-01-01T00:00:00Z"}'
    two = b'{"id":"two","names":["a"],"created":"0001-01-01T00:00:00Z"}'
    (path / "images.json").write_bytes(b"[%b,%b]" % (one, two))
    with pytest.raises(DuplicateImageNamesError):
        async with ImageStore(path, read_only=True):
            pass
    async with ImageStore(path) as store:
        assert await store.lookup("a") == "two"
        assert (await store.get("one")).names == ("b",)
        assert (await store.get("one")).created is None
    assert (path / "images.json").read_bytes() == b"[%b,%b]" % (one.replace(b'"a",', b""), two)


async def test_a_store_is_opened_once(path: Path) -> None:
    store = ImageStore(path)
    with pytest.raises(StoreClosedError):
        await store.get("one")
    async with store:
        assert "open" in repr(store)
    await store.aclose()
    assert "closed" in repr(store)
    for call in [store.get("one"), store.create(), store.refresh(), store.snapshot()]:
        with pytest.raises(StoreClosedError):
            await call
    with pytest.raises(StoreClosedError):
        await store.__aenter__()


async def test_constructing_does_no_io(path: Path) -> None:
    ImageStore(path)
    assert not path.exists()
    with pytest.raises(ValueError, match="lock_timeout"):
        ImageStore(path, lock_timeout=-1)


async def test_missing_parents_are_made_private(path: Path) -> None:
    async with ImageStore(path / "a" / "b"):
        pass
    assert (path / "a").stat().st_mode & 0o777 == 0o700


async def test_images_are_plain_immutable_values(store: ImageStore) -> None:
    image = await store.create("one", names=["a"], flags={"f": [1]}, big_data={"k": b"v"})
    assert pickle.loads(pickle.dumps(image)) == image
    assert hash(pickle.loads(pickle.dumps(image))) == hash(image)
    assert image != await store.set_flag("one", "f", [2])
    with pytest.raises(AttributeError):
        image.metadata = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        image.flags["f"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        image.big_data_sizes["k"] = 1  # type: ignore[index]
    image.flags["f"].append(2)
    assert image.flags == {"f": [1]}
    assert image != "one"


async def test_every_exported_method_of_the_seed_is_there() -> None:
    names = {
        "Get": "get", "Lookup": "lookup", "Exists": "exists", "Images": "images",
        "ByDigest": "by_digest", "Metadata": "metadata", "SetMetadata": "set_metadata",
        "Create": "create", "SetNames": "set_names", "Delete": "delete", "Wipe": "wipe",
        "SetFlag": "set_flag", "ClearFlag": "clear_flag", "BigData": "big_data",
        "SetBigData": "set_big_data", "BigDataNames": "big_data_names",
        "BigDataSize": "big_data_size", "BigDataDigest": "big_data_digest",
        "Lock": "transaction", "Unlock": "transaction", "Load": "refresh",
        "Touch": "touch", "Modified": "modified", "TouchedSince": "touched_since",
        "IsReadWrite": "read_only",
    }  # fmt: skip
    for upstream, name in names.items():
        documented = getattr(ImageStore, name).__doc__ or ""
        assert f"``{upstream}``" in documented, (upstream, name)


def test_every_public_name_is_documented() -> None:
    for name in aimagestore.__all__:
        public = getattr(aimagestore, name)
        assert public.__doc__, name
        for attribute, member in vars(public).items():
            if callable(member) and not attribute.startswith("_") and public is not Image:
                assert inspect.getdoc(member), f"{name}.{attribute}"


async def test_images_are_equal_however_they_are_spelled(path: Path) -> None:
    spelled = [
        b'[{"id":"one","created":"2020-01-01T00:00:00Z","flags":{"b":1e2,"a":{"d":1,"c":2}}}]',
        b'[{"id":"one","created":"2020-01-01T00:00:00Z","flags":{"a":{"c":2,"d":1},"b":100}}]',
        b'[{"id":"one","created":"2020-01-01T00:00:00Z","flags":{"a":{"c":2,"d":1},"b":101}}]',
    ]
    images = []
    path.mkdir()
    for text in spelled:
        (path / "images.json").write_bytes(text)
        async with ImageStore(path) as store:
            images.append(await store.get("one"))
    assert images[0] == images[1]
    assert hash(images[0]) == hash(images[1])
    assert images[1] != images[2]
