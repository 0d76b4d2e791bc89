"""Records are found, created, changed and deleted."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest

from aimagestore import (
    AmbiguousImageError,
    DuplicateIDError,
    DuplicateNameError,
    ImageStore,
    ImageUnknownError,
    InvalidDigestError,
    JSONValue,
    StoreClosedError,
    StoreReadOnlyError,
)

from ..support.buildah import FIXTURE, FIXTURE_DIGEST, FIXTURE_ID, SOME_DIGEST
from ..support.stores import StoreUnderTest


@pytest.fixture(params=["first", "reopened", "read-only", "snapshot", "transaction"])
async def reads(where: StoreUnderTest, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Each object with lookups, with an image like buildah's: they all find the same."""
    async with ImageStore(where.location) as store:
        names = ["localhost/hello:1", "localhost/hello:latest"]
        manifest = (FIXTURE / FIXTURE_ID / "manifest").read_bytes()
        await store.create(FIXTURE_ID, names=names, big_data={"manifest": manifest})
        if request.param == "first":
            yield store
            return
        await store.set_metadata(FIXTURE_ID, "other")
        await store.set_metadata(FIXTURE_ID, "")
    async with ImageStore(where.location, read_only=request.param == "read-only") as store:
        if request.param == "snapshot":
            yield await store.snapshot()
        elif request.param == "transaction":
            async with store.transaction() as transaction:
                yield transaction
        else:
            yield store


async def value(result: Any) -> Any:
    """Return the result of a method; those of a snapshot are not async."""
    return await result if hasattr(result, "__await__") else result


async def test_an_image_is_found_by_id_name_and_prefix(reads: Any) -> None:
    for ref in (FIXTURE_ID, "localhost/hello:1", "localhost/hello:latest", "f5b6", "f"):
        assert await value(reads.lookup(ref)) == FIXTURE_ID
        assert (await value(reads.get(ref))).id == FIXTURE_ID


async def test_an_image_is_found_as_podman_prints_it_by_digest(reads: Any) -> None:
    for ref in (
        f"sha256:{FIXTURE_ID}",
        f"localhost/hello@{FIXTURE_DIGEST}",
        f"localhost/hello:2@{FIXTURE_DIGEST}",
    ):
        assert await value(reads.lookup(ref)) == FIXTURE_ID
        assert (await value(reads.get(ref))).id == FIXTURE_ID


async def test_a_ref_with_another_id_or_digest_is_unknown(reads: Any) -> None:
    for ref in (
        "",
        f"sha256:{FIXTURE_ID[:-1]}",
        f"sha256:{'0' * 64}",
        f"localhost/other@{FIXTURE_DIGEST}",
        f"localhost/hello@{SOME_DIGEST}",
        f"@{FIXTURE_DIGEST}",
    ):
        with pytest.raises(ImageUnknownError) as caught:
            await value(reads.lookup(ref))
        assert caught.value.ref == ref


async def test_missing_images_are_unknown(reads: Any) -> None:
    for ref in ("", "e", FIXTURE_ID + "0", "localhost/hello", "\ud800"):
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


async def test_an_image_created_without_arguments_has_a_random_id_and_the_current_time(
    store: ImageStore,
) -> None:
    before = datetime.now(UTC)
    image = await store.create()
    assert len(image.id) == 64
    assert set(image.id) <= set("0123456789abcdef")
    assert image.created is not None
    assert before <= image.created <= datetime.now(UTC)
    assert await store.get(image.id) == image


async def test_an_image_is_created_with_all_arguments(store: ImageStore) -> None:
    image = await store.create(
        "my-id",
        names=["b", "a", "b"],
        top_layer="layer",
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


class Text(str):
    """A text with a type of its own."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Choice(StrEnum):
    """Texts of an enumeration."""

    ID = "one"
    TEXT = "text"
    DIGEST = SOME_DIGEST


@pytest.mark.parametrize(
    ("image_id", "text", "digest"),
    [
        (Text("one"), Text("text"), Text(SOME_DIGEST)),
        (Choice.ID, Choice.TEXT, Choice.DIGEST),
    ],
)
async def test_texts_of_subclasses_of_str_are_kept_as_plain_texts(
    store: ImageStore, image_id: str, text: str, digest: str
) -> None:
    nested: JSONValue = {text: [text, {text: text}]}
    created = await store.create(
        image_id,
        names=[text],
        top_layer=text,
        metadata=text,
        digest=digest,
        flags={text: nested},
        big_data={text: b"data"},
    )
    assert created == await store.get("text") == await store.get(text)
    assert (created.id, created.names, created.top_layer) == ("one", ("text",), "text")
    assert (created.metadata, created.digest) == ("text", SOME_DIGEST)
    assert created.flags == {"text": {"text": ["text", {"text": "text"}]}}
    assert created.big_data_sizes == {"text": 4}
    for changed in (
        await store.set_names(image_id, [text]),
        await store.add_names(text, [text, "other"]),
        await store.set_metadata(image_id, text),
        await store.set_flag(image_id, text, text),
        await store.set_big_data(image_id, text, b"new data"),
    ):
        assert {type(name) for name in (changed.id, *changed.names, changed.metadata)} == {str}
    assert await store.big_data(text, text) == b"new data"
    assert (await store.clear_flag(text, text)).flags == {}
    assert (await store.remove_names("one", [text])).names == ("other",)


async def test_an_image_with_an_id_or_name_in_use_is_refused(store: ImageStore) -> None:
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


async def test_an_id_is_found_before_a_name_and_a_name_before_a_prefix(store: ImageStore) -> None:
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


async def test_a_prefix_of_very_many_ids_names_the_first_of_them(store: ImageStore) -> None:
    async with store.transaction() as tx:
        for number in range(150):
            await tx.create(f"ab{number:03}")
    first = tuple(f"ab{number:03}" for number in range(100))
    with pytest.raises(AmbiguousImageError, match="more than 100 image IDs") as info:
        await store.get("a")
    assert info.value.candidates == first
    for number in range(149, 99, -1):
        await store.delete(f"ab{number}")
    with pytest.raises(AmbiguousImageError, match="of 100 image IDs") as info:
        await store.get("a")
    assert info.value.candidates == first
    async with store.transaction() as tx:
        for number in range(100, 150):
            await tx.create(f"ab{number}")
        for image_id in first:
            await tx.delete(image_id)
        with pytest.raises(AmbiguousImageError, match="50 image IDs") as info:
            await tx.get("a")
        assert len(info.value.candidates) == 50
        for number in range(100, 149):
            await tx.delete(f"ab{number}")
        assert await tx.lookup("a") == "ab149"


async def test_changes_take_refs_with_digests(store: ImageStore) -> None:
    await store.create("one", names=["quay.io/x:1"], digest=SOME_DIGEST)
    await store.create("two", names=["quay.io/x:2", "other"], digest=SOME_DIGEST)
    assert (await store.set_metadata("sha256:one", "text")).id == "one"
    ambiguous = f"quay.io/x@{SOME_DIGEST}"
    with pytest.raises(AmbiguousImageError) as caught:
        await store.delete(ambiguous)
    assert (caught.value.ref, caught.value.candidates) == (ambiguous, ("one", "two"))
    async with store.transaction() as tx:
        await tx.delete("sha256:one")
        assert (await tx.set_names(ambiguous, ["other"])).id == "two"
        with pytest.raises(ImageUnknownError):
            await tx.delete(ambiguous)
    await store.delete(f"other@{SOME_DIGEST}")
    assert await store.images() == []
    for ref in ("", "sha256:one", f"other@{SOME_DIGEST}"):
        with pytest.raises(ImageUnknownError):
            await store.delete(ref)


async def test_metadata_and_flags_are_set_and_cleared(store: ImageStore) -> None:
    await store.create("one")
    assert (await store.set_metadata("one", "text")).metadata == "text"
    assert await store.metadata("one") == "text"
    await store.set_flag("one", "a", [1, {"b": 2.5}])
    assert (await store.set_flag("one", "b", None)).flags == {"a": [1, {"b": 2.5}], "b": None}
    assert (await store.clear_flag("one", "a")).flags == {"b": None}
    assert (await store.clear_flag("one", "a")).flags == {"b": None}
    assert (await store.clear_flag("one", "b")).flags == {}


async def test_images_keep_their_order(store: ImageStore) -> None:
    ids = [f"{i:03}" for i in range(100)]
    async with store.transaction() as transaction:
        for image_id in ids:
            await transaction.create(image_id)
    await store.set_metadata("050", "x")
    assert [image.id for image in await store.images()] == ids
    assert [image.id for image in await store.snapshot()] == ids


async def test_a_snapshot_does_not_change(store: ImageStore) -> None:
    await store.create("one", names=["a"])
    snapshot = await store.snapshot()
    await store.delete("one")
    assert "a" in snapshot
    assert "b" not in snapshot
    assert len(snapshot) == 1
    assert snapshot.get("a").id == snapshot.lookup("on") == "one"
    assert 5 not in snapshot


async def test_a_change_by_another_store_is_seen_at_once(
    store: ImageStore, where: StoreUnderTest
) -> None:
    async with ImageStore(where.location) as other:
        for i in range(20):
            await other.create(f"id{i}")
            assert await store.exists(f"id{i}")
            await store.set_metadata(f"id{i}", "m")
            assert await other.metadata(f"id{i}") == "m"


async def test_modified_says_whether_refresh_has_changes_to_load(
    store: ImageStore, where: StoreUnderTest
) -> None:
    await store.create("one")
    assert not await store.modified()
    assert not await store.refresh()
    async with ImageStore(where.location) as other:
        await other.create("two")
    assert await store.modified()
    assert await store.modified()
    assert await store.refresh()
    assert not await store.modified()


async def test_touched_since_compares_the_last_write_with_an_aware_time(store: ImageStore) -> None:
    await store.create("one")
    assert await store.touched_since(datetime.now(UTC) - timedelta(minutes=1))
    assert not await store.touched_since(datetime.now(UTC) + timedelta(minutes=1))
    with pytest.raises(ValueError, match="aware"):
        await store.touched_since(datetime(2020, 1, 1))  # noqa: DTZ001


async def test_a_store_is_opened_once(where: StoreUnderTest) -> None:
    store = ImageStore(where.location)
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


async def test_an_image_is_deleted_and_a_store_is_wiped_with_their_items(
    store: ImageStore, where: StoreUnderTest
) -> None:
    for image_id in "abc":
        await store.create(image_id, names=[image_id * 2], big_data={"k": b"v"})
    await store.delete("aa")
    assert [image.id for image in await store.images()] == ["b", "c"]
    with pytest.raises(ImageUnknownError):
        await store.big_data("a", "k")
    await store.wipe()
    assert await store.images() == []
    await where.until_no_garbage()


async def test_a_read_only_store_changes_nothing(store: ImageStore, where: StoreUnderTest) -> None:
    await store.create("one", names=["n"], big_data={"k": b"v"})
    before = where.contents()
    async with ImageStore(where.location, read_only=True) as reader:
        assert reader.read_only
        for change in [
            reader.create(),
            reader.delete("one"),
            reader.wipe(),
            reader.set_names("one", []),
            reader.set_metadata("one", ""),
            reader.set_flag("one", "a", 1),
            reader.set_big_data("one", "k", b""),
            reader.touch(),
            reader.collect_garbage(),
        ]:
            with pytest.raises(StoreReadOnlyError) as info:
                await change
            assert isinstance(info.value, PermissionError)
        with pytest.raises(StoreReadOnlyError):
            async with reader.transaction():
                pass
        with pytest.raises(StoreReadOnlyError):
            async with reader.stage():
                pass
        assert await reader.big_data("n", "k") == b"v"
    assert where.contents() == before


async def test_touch_leaves_a_mark_and_changes_nothing(
    store: ImageStore, where: StoreUnderTest
) -> None:
    await store.create("one")
    before = where.contents()
    moment = datetime.now(UTC)
    await store.touch()
    assert await store.touched_since(moment - timedelta(seconds=1))
    assert where.contents() == before
    assert not await store.modified()
