"""Hostile input from callers, files and other programs does no harm."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from aimagestore import (
    Image,
    ImageStore,
    ImageUnknownError,
    InvalidBigDataNameError,
    StoreCorruptError,
)
from aimagestore._core.record import read
from aimagestore._directory.pending import pending_name
from aimagestore._format.gojson import MAX_DEPTH

from .support.indexes import element, nested
from .support.layouts import digest_of
from .support.stores import tree

pytestmark = [
    pytest.mark.damage,
    pytest.mark.timeout(30),  # a FIFO or a link must not hang anything
]

Call = Callable[[ImageStore], Awaitable[object]]

DEEP_OBJECT = b'{"a":' * 20_000 + b"1" + b"}" * 20_000


def index_of(path: Path) -> bytes:
    """Return the text of the index."""
    return (path / "images.json").read_bytes()


def plant(path: Path, *elements: bytes, items: dict[str, dict[str, bytes]] | None = None) -> None:
    """Make a store of these elements and items, as some other program might have."""
    path.mkdir(exist_ok=True)
    (path / "images.json").write_bytes(b"[%b]" % b",".join(elements))
    for image_id, files in (items or {}).items():
        (path / image_id).mkdir()
        for name, data in files.items():
            (path / image_id / name).write_bytes(data)


def listing(image_id: str, key: str, data: bytes) -> bytes:
    """Return the element of an image with one item."""
    return element(
        image_id,
        big_data_names=[key],
        big_data_sizes={key: len(data)},
        big_data_digests={key: digest_of(data)},
    )


def pending_of(element: bytes, key: str) -> str:
    """Return the name under which an item's content is pending."""
    record = read(element, 0)
    assert record is not None
    return pending_name(record.image, key)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory outside the store, which must stay as it is."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "k").write_bytes(b"outside")
    (directory / "images.json").write_bytes(b'[{"id":"outside"}]')
    return directory


# Calls that are refused


async def test_keys_that_look_like_paths_are_never_used_as_paths(
    store: ImageStore, path: Path
) -> None:
    keys = ["../one/k", "../../outside/k", "/etc/passwd", "images.json"]
    await store.create("one", big_data={key: key.encode() for key in keys})
    for key in keys:
        assert await store.big_data("one", key) == key.encode()
    assert len(list((path / "one").iterdir())) == len(keys)


async def test_flag_nested_up_to_the_limit_is_kept(store: ImageStore, path: Path) -> None:
    levels = MAX_DEPTH - 1
    await store.create("one", flags={"f": nested(levels)})
    assert b'{"f":' + b"[" * levels + b"]" * levels + b"}" in index_of(path)
    async with ImageStore(path) as again:
        assert len((await again.get("one")).flags["f"]) == 1


async def test_refused_calls_do_not_undo_the_rest_of_their_transaction(
    store: ImageStore, path: Path
) -> None:
    async with store.transaction() as tx:
        await tx.create("one", names=["n"])
        bad_calls: list[Callable[[], Awaitable[Image]]] = [
            lambda: tx.create("../x"),
            lambda: tx.create("two", names=["n"]),
            lambda: tx.create("two", flags={"f": math.nan}),
            lambda: tx.set_big_data("one", "a/", b"x"),
            lambda: tx.set_flag("one", "f", math.inf),
            lambda: tx.set_names("one", ["\ud800"]),
            lambda: tx.set_metadata("one", "\ud800"),
        ]
        for bad in bad_calls:
            with pytest.raises(ValueError):
                await bad()
    (image,) = json.loads(index_of(path))
    assert image["id"] == "one"
    assert image.keys() == {"id", "names", "created"}


# Index files that are no index

BROKEN = {
    "object": b"{}",
    "null": b"null",
    "text": b'"[]"',
    "number": b"5",
    "words": b"not JSON at all",
    "mark": b"\xef\xbb\xbf[]",
    "truncated": b'[{"id":"one"},{"id":"two","names":["n"]',
    "unclosed": b'[{"id":"one"}',
    "comma": b'[{"id":"one"},]',
    "missing": b"[,]",
    "twice": b"[] []",
    "nul after": b'[{"id":"one"}]\0',
    "nul before": b'\0[{"id":"one"}]',
    "nul within": b'[{"id":"one"},\0\0\0\0]',
    "brackets": b"[" * 1_000_000,
    "mismatch": b'[{"id":"one"]}',
    "control": b'[{"id":"one","metadata":"\n"}]',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
async def test_index_that_is_not_an_array_is_refused_and_kept(path: Path, text: bytes) -> None:
    plant(path, items={"one": {"k": b"data"}})
    (path / "images.json").write_bytes(text)
    before = tree(path)
    for read_only in (False, True):
        with pytest.raises(StoreCorruptError, match="byte") as caught:
            async with ImageStore(path, read_only=read_only):
                pass
        assert caught.value.path == str(path / "images.json")
    after = tree(path)
    after.pop("images.lock", None)
    assert after == before


@pytest.mark.parametrize("text", [b"", b" \n\t", b"\0\0\0\0", None])
async def test_missing_index_beside_images_is_refused(path: Path, text: bytes | None) -> None:
    plant(path, items={"a" * 64: {"manifest": b"{}"}})
    (path / "images.json").unlink()
    if text is not None:
        (path / "images.json").write_bytes(text)
    before = tree(path)
    for read_only in (False, True):
        with pytest.raises(StoreCorruptError, match="repair") as caught:
            async with ImageStore(path, read_only=read_only):
                pass
        assert caught.value.path == str(path / "images.json")
    after = tree(path)
    after.pop("images.lock", None)
    assert after == before


@pytest.mark.parametrize("text", [b"", b" \n\t", b"\0\0\0\0", b"[]", b" [ ] ", None])
async def test_missing_index_without_images_is_an_empty_store(
    path: Path, text: bytes | None
) -> None:
    path.mkdir()
    (path / "lost+found").mkdir()
    (path / ".hidden").mkdir()
    if text is not None:
        (path / "images.json").write_bytes(text)
    async with ImageStore(path) as store:
        assert await store.images() == []
        await store.create("one")
    assert [image["id"] for image in json.loads(index_of(path))] == ["one"]


@pytest.mark.parametrize("name", ["\udcff", "x\udcff", "\udcffx", "=\udcff", "AB", "READ ME"])
async def test_missing_index_beside_directories_of_other_programs_is_an_empty_store(
    path: Path, name: str
) -> None:
    plant(path, items={"other": {name: b""}})
    (path / "images.json").unlink()
    async with ImageStore(path) as store:
        assert await store.images() == []


@pytest.mark.parametrize("text", [b"", b"[", b"{}", None])
async def test_index_damaged_while_the_store_is_open_is_refused_and_kept(
    store: ImageStore, path: Path, text: bytes | None
) -> None:
    image = await store.create(big_data={"k": b"data"})
    if text is None:
        (path / "images.json").unlink()
    else:
        (path / "images.json").write_bytes(text)
    before = tree(path)
    for call in (store.get(image.id), store.images(), store.create("two"), store.wipe()):
        with pytest.raises(StoreCorruptError):
            await call
    assert tree(path) == before


async def test_index_that_is_valid_again_is_read_again(store: ImageStore, path: Path) -> None:
    await store.create("one")
    whole = index_of(path)
    (path / "images.json").write_bytes(whole[:-1])
    with pytest.raises(StoreCorruptError):
        await store.images()
    (path / "images.json").write_bytes(whole)
    assert [image.id for image in await store.images()] == ["one"]


# Damaged and unusual records

DAMAGED = {
    "null": b"null",
    "number": b"-1.5e3",
    "array": b"[]",
    "text": b'"}"',
    "empty": b"{ }",
    "path": b'{"id":"../outside","big-data-names":["k"]}',
    "index": b'{"id":"images.json"}',
    "number id": b'{"id" : 5}',
    "case": b'{"id":"bad","Names":["n"]}',
    "long s": '{"id":"bad","name\u017f":["n"]}'.encode(),
    "size": b'{"id":"bad","big-data-sizes":{"k":1.5}}',
    "time": b'{"id":"bad","created":"10000-01-01T00:00:00Z"}',
    "flags": b'{"id":"bad","flags":[1]}',
    "number flag": b'{"id":"bad","flags":{"f":1e400}}',
    "utf-8": b'{"id":"bad","metadata":"\xff"}',
    "deep array": b"[" * 100_000 + b"]" * 100_000,
    "deep record": b'{"id":"bad","x":%b}' % DEEP_OBJECT,
}


@pytest.mark.parametrize("bad", DAMAGED.values(), ids=DAMAGED)
async def test_damaged_record_is_kept_at_the_end_and_by_wipe(path: Path, bad: bytes) -> None:
    plant(path, bad, element("one", names=["n"]), items={"one": {"k": b"data"}})
    async with ImageStore(path) as store:
        assert [image.id for image in await store.images()] == ["one"]
        assert index_of(path).startswith(b"[" + bad)
        await store.create("two")
        assert index_of(path).endswith(b"," + bad + b"]")
        await store.wipe()
        assert index_of(path) == b"[" + bad + b"]"
        assert await store.images() == []


async def test_damaged_records_keep_their_order_and_bytes(path: Path) -> None:
    bad = [b'{ "id" : 1 }', b"null", b'{"id":"a\\/b"}']
    plant(path, bad[0], element("one"), bad[1], element("two"), bad[2])
    async with ImageStore(path) as store:
        await store.delete("one")
    assert index_of(path) == b"[" + b",".join([element("two"), *bad]) + b"]"


@pytest.mark.parametrize("bad", [b'{"id":"one","ID":"one"}', b'{"id":"one","Names":["n"]}'])
async def test_id_of_a_damaged_record_cannot_be_created(path: Path, bad: bytes) -> None:
    plant(path, bad, items={"one": {"k": b"precious"}})
    async with ImageStore(path) as store:
        with pytest.raises(ImageUnknownError):
            await store.delete("one")
        with pytest.raises(StoreCorruptError, match="damaged record") as caught:
            await store.create("one", big_data={"k": b"new"})
        assert caught.value.id == "one"
        async with store.transaction() as tx:
            with pytest.raises(StoreCorruptError):
                await tx.create("one")
        await store.create("two")
    assert (path / "one" / "k").read_bytes() == b"precious"
    assert index_of(path).endswith(b"," + bad + b"]")


async def test_reading_does_not_change_damaged_records(path: Path) -> None:
    plant(path, b"null", element("one"))
    before = index_of(path)
    async with ImageStore(path) as store:
        await store.get("one")
        with pytest.raises(ImageUnknownError):
            await store.get("bad")
    assert index_of(path) == before


async def test_the_later_of_two_records_with_one_id_counts(path: Path) -> None:
    early, late = element("one", metadata="early"), element("one", metadata="late")
    plant(path, early, element("two"), late)
    async with ImageStore(path) as store:
        assert (await store.get("one")).metadata == "late"
        assert [image.id for image in await store.images()] == ["two", "one"]
        await store.set_metadata("two", "new")
        assert index_of(path).startswith(b"[" + early + b",")
        assert index_of(path).endswith(b"," + late + b"]")
        await store.delete("one")
    assert [image["id"] for image in json.loads(index_of(path))] == ["two"]


async def test_change_of_one_record_leaves_the_bytes_of_all_others(path: Path) -> None:
    others = [
        b'{ "id":"a", "x":{"z":1,"a":[ ]},"created":"2024-01-01T00:00:00.123456789+01:00" }',
        b'{"flags":{"f":12345678901234567890123,"g":1.50,"h":"\\u0041"},"id":"b"}',
        b'{"id":"c","names":[ "n" ],"metadata":"<&>","digest":null}',
    ]
    plant(path, others[0], element("one"), others[1], b"5", others[2])
    async with ImageStore(path) as store:
        await store.set_flag("one", "f", 1)
        await store.set_big_data("one", "manifest", b"{}")
        await store.add_names("one", ["name"])
        one = next(e for e in json.loads(index_of(path)) if e["id"] == "one")
    start, _, rest = index_of(path)[1:].partition(b',{"id":"one"')
    assert start == others[0]
    assert rest.endswith(b"," + others[1] + b"," + others[2] + b",5]")
    assert (one["flags"], one["names"], one["big-data-names"]) == ({"f": 1}, ["name"], ["manifest"])


async def test_change_of_a_name_leaves_the_bytes_of_third_records(path: Path) -> None:
    third = b'{ "id":"c", "names":["other"] }'
    plant(path, element("a", names=["n"]), third, element("b"))
    async with ImageStore(path) as store:
        await store.set_names("b", ["n"])
    assert b"," + third + b"," in index_of(path)
    assert index_of(path).count(b'"n"') == 2  # the name, and the history


@pytest.mark.parametrize("bad_key", ["..", "", "a/", "AB?", "A" * 200])
async def test_hostile_key_in_a_record_is_not_used_as_a_path(
    path: Path, outside: Path, bad_key: str
) -> None:
    plant(path, listing("one", bad_key, b"x"), element("two"), items={"one": {"k": b""}})
    before = tree(outside)
    async with ImageStore(path) as store:
        with pytest.raises(InvalidBigDataNameError):
            await store.big_data("one", bad_key)
        assert (await store.get("one")).big_data_names == (bad_key,)
        await store.set_metadata("two", "m")
        await store.delete("one")
        assert not (path / "one").exists()
    assert tree(outside) == before


# Links, FIFOs and directories in the places of files

Planter = Callable[[Path, Path], None]


def link(place: Path, target: Path) -> None:
    """Plant a symbolic link."""
    place.symlink_to(target)


def fifo(place: Path, _: Path) -> None:
    """Plant a FIFO, which would block a program that opens it."""
    os.mkfifo(place)


def directory(place: Path, _: Path) -> None:
    """Plant a directory with something in it."""
    place.mkdir()
    (place / "inner").write_bytes(b"inner")


def regular(place: Path, _: Path) -> None:
    """Plant a plain file."""
    place.write_bytes(b"plain")


def dangling(place: Path, target: Path) -> None:
    """Plant a dangling link."""
    place.symlink_to(target.parent / "new")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("planter", [link, fifo, directory, dangling])
async def test_index_that_is_not_a_regular_file_is_refused(
    path: Path,
    outside: Path,
    planter: Planter,
    read_only: bool,
) -> None:
    path.mkdir()
    planter(path / "images.json", outside / "images.json")
    before, untouched = tree(path), tree(outside)
    with pytest.raises(StoreCorruptError) as caught:
        async with ImageStore(path, read_only=read_only):
            pass
    assert caught.value.path == str(path / "images.json")
    after = tree(path)
    after.pop("images.lock", None)
    assert (after, tree(outside)) == (before, untouched)


@pytest.mark.parametrize("planter", [link, fifo, directory, dangling])
async def test_index_replaced_while_the_store_is_open_is_refused(
    store: ImageStore, path: Path, outside: Path, planter: Planter
) -> None:
    await store.create("one")
    (path / "images.json").unlink()
    planter(path / "images.json", outside / "images.json")
    before, untouched = tree(path), tree(outside)
    for call in (store.get("one"), store.create("two")):
        with pytest.raises(StoreCorruptError):
            await call
    assert (tree(path), tree(outside)) == (before, untouched)


def twice_linked(place: Path, target: Path) -> None:
    """Plant a second name of a file."""
    os.link(target, place)


@pytest.mark.parametrize("planter", [link, fifo, directory, dangling, twice_linked])
async def test_lock_that_is_not_a_regular_file_with_one_name_is_refused(
    path: Path, outside: Path, planter: Planter
) -> None:
    plant(path, element("one"))
    planter(path / "images.lock", outside / "k")
    before, untouched = tree(path), tree(outside)
    with pytest.raises(StoreCorruptError) as caught:
        async with ImageStore(path):
            pass
    assert caught.value.path == str(path / "images.lock")
    assert (tree(path), tree(outside)) == (before, untouched)


@pytest.mark.parametrize("planter", [link, fifo, directory, dangling, twice_linked])
async def test_lock_replaced_while_the_store_is_open_is_refused(
    store: ImageStore, path: Path, outside: Path, planter: Planter
) -> None:
    await store.create("one")
    (path / "images.lock").unlink()
    planter(path / "images.lock", outside / "k")
    before, untouched = tree(path), tree(outside)
    for call in (store.create("two"), store.delete("one"), store.touch()):
        with pytest.raises(StoreCorruptError):
            await call
    assert await store.exists("one")
    assert (tree(path), tree(outside)) == (before, untouched)


@pytest.mark.parametrize("planter", [link, fifo, directory, twice_linked])
async def test_read_only_store_needs_no_lock_file(
    path: Path, outside: Path, planter: Planter
) -> None:
    plant(path, element("one"))
    planter(path / "images.lock", outside / "k")
    before = tree(path)
    async with ImageStore(path, read_only=True) as store:
        assert await store.exists("one")
    assert tree(path) == before


def link_to_directory(place: Path, target: Path) -> None:
    """Plant a link to the target's directory, where the item's file would be found."""
    place.symlink_to(target.parent)


NO_DIRECTORIES = [link_to_directory, fifo, regular, dangling]


@pytest.mark.parametrize("planter", NO_DIRECTORIES)
async def test_image_directory_that_is_not_a_directory_is_not_entered(
    path: Path, outside: Path, planter: Planter
) -> None:
    plant(path, listing("one", "k", b"outside"))
    planter(path / "one", outside / "k")
    untouched = tree(outside)
    async with ImageStore(path) as store:
        before = tree(path)
        for call in (
            store.big_data("one", "k"),
            store.set_big_data("one", "k", b"new"),
            store.set_big_data("one", "new", b"new"),
        ):
            with pytest.raises(StoreCorruptError) as caught:
                await call
            assert caught.value.path == str(path / "one")
        assert (tree(path), tree(outside)) == (before, untouched)
        assert (await store.get("one")).big_data_names == ("k",)


@pytest.mark.parametrize("planter", NO_DIRECTORIES)
async def test_image_cannot_be_created_where_its_directory_is_something_else(
    store: ImageStore, path: Path, outside: Path, planter: Planter
) -> None:
    planter(path / "one", outside / "k")
    await store.create("two")
    before, untouched = tree(path), tree(outside)
    with pytest.raises(StoreCorruptError):
        await store.create("one", big_data={"k": b"new"})
    with pytest.raises(StoreCorruptError):
        async with store.transaction() as tx:
            await tx.create("one", big_data={"k": b"new"})
    assert {image.id for image in await store.images()} == {"two"}
    assert tree(outside) == untouched
    after = tree(path)
    assert after.pop("images.lock") is not None
    assert after.items() <= before.items()


@pytest.mark.parametrize("planter", NO_DIRECTORIES)
async def test_deleting_an_image_keeps_a_file_in_place_of_its_directory(
    path: Path, outside: Path, planter: Planter
) -> None:
    plant(path, listing("one", "k", b"outside"), element("two"))
    planter(path / "one", outside / "k")
    before, untouched = tree(path)["one"], tree(outside)
    async with ImageStore(path) as store:
        await store.delete("one")
        assert not await store.exists("one")
        await store.set_metadata("two", "the store goes on")
    assert tree(path)["one"] == before
    assert tree(outside) == untouched


@pytest.mark.parametrize("planter", [link, fifo, directory, dangling])
async def test_item_that_is_not_a_regular_file_is_not_read(
    path: Path, outside: Path, planter: Planter
) -> None:
    plant(path, element("one", big_data_names=["k"]), items={"one": {}})
    planter(path / "one" / "k", outside / "k")
    async with ImageStore(path) as store:
        for call in (
            store.big_data("one", "k"),
            store.big_data_size("one", "k"),
            store.big_data_digest("one", "k"),
        ):
            with pytest.raises(StoreCorruptError) as caught:
                await call
            assert caught.value.path == str(path / "one" / "k")
        with pytest.raises(StoreCorruptError):
            async with store.open_big_data("one", "k"):
                pass


@pytest.mark.parametrize("is_listed", [True, False])
@pytest.mark.parametrize("planter", [link, fifo, dangling, twice_linked])
async def test_a_new_item_replaces_a_link_or_fifo_in_its_place(
    path: Path,
    outside: Path,
    planter: Planter,
    is_listed: bool,
) -> None:
    one = listing("one", "k", b"outside") if is_listed else element("one")
    plant(path, one, items={"one": {}})
    planter(path / "one" / "k", outside / "k")
    untouched = tree(outside)
    async with ImageStore(path) as store:
        await store.set_big_data("one", "k", b"new")
        assert await store.big_data("one", "k") == b"new"
    assert tree(path)["one/k"] == b"new"
    assert tree(outside) == untouched


@pytest.mark.parametrize("is_listed", [True, False])
async def test_directory_in_place_of_an_item_does_not_block_other_images(
    path: Path,
    is_listed: bool,
) -> None:
    one = listing("one", "k", b"old") if is_listed else element("one")
    plant(path, one, element("two"), items={"one": {}})
    directory(path / "one" / "k", path)
    async with ImageStore(path) as store:
        with suppress(StoreCorruptError, OSError):
            await store.set_big_data("one", "k", b"new")
        await store.set_metadata("two", "m")
        assert (await store.get("two")).metadata == "m"
    assert (path / "one" / "k" / "inner").read_bytes() == b"inner"


async def test_links_in_a_deleted_images_directory_are_removed_not_followed(
    path: Path, outside: Path
) -> None:
    plant(path, listing("one", "k", b"x"), items={"one": {"k": b"x"}})
    (path / "one" / "file").symlink_to(outside / "k")
    (path / "one" / "directory").symlink_to(outside)
    os.mkfifo(path / "one" / "fifo")
    untouched = tree(outside)
    async with ImageStore(path) as store:
        await store.delete("one")
    assert not (path / "one").exists()
    assert tree(outside) == untouched


@pytest.mark.parametrize("wipes", [False, True])
async def test_deleting_an_image_removes_its_tree_and_nothing_else(
    path: Path, outside: Path, wipes: bool
) -> None:
    plant(path, element("one"), element("two"), items={"one": {"k": b"x"}})
    below = path / "one" / "sub" / "sub"
    below.mkdir(parents=True)
    (below / "k").write_bytes(b"inner")
    (below / "link").symlink_to(outside)
    (below / "up").symlink_to(path)
    untouched = tree(outside)
    async with ImageStore(path) as store:
        await (store.wipe() if wipes else store.delete("one"))
        assert not await store.exists("one")
        assert not (path / "one").exists()
        await store.create("one")
        assert await store.exists("two") != wipes
    assert tree(outside) == untouched


# What a crash seems to have left


async def test_pending_file_of_a_hostile_key_is_not_renamed_out_of_the_store(
    path: Path, outside: Path
) -> None:
    key = "AB?ABC"  # its file would be =QUI/QUJD
    record = listing("one", key, b"evil")
    plant(path, record, items={"one": {}})
    (path / "one" / "=QUI").symlink_to(outside)
    (path / pending_of(record, key)).write_bytes(b"evil")
    untouched = tree(outside)
    async with ImageStore(path) as store:
        await store.create("two")
    assert tree(outside) == untouched


@pytest.mark.parametrize("key", ["..", ".", "", "a/", "A" * 200])
async def test_pending_file_of_a_hostile_key_does_not_block_writers(path: Path, key: str) -> None:
    record = listing("one", key, b"evil")
    plant(path, record, items={"one": {}})
    (path / pending_of(record, key)).write_bytes(b"evil")
    async with ImageStore(path) as store:
        await store.create("two")
        assert await store.exists("two")


async def test_pending_content_of_a_key_that_is_listed_twice_is_put_in_place(path: Path) -> None:
    record = (
        b'{"id":"one","big-data-names":["k","k"],"big-data-sizes":{"k":3},'
        b'"created":"2024-01-01T00:00:00Z"}'
    )
    plant(path, record, items={"one": {"k": b"old"}})
    (path / pending_of(record, "k")).write_bytes(b"new")
    async with ImageStore(path) as store:
        assert await store.big_data("one", "k") == b"new"
    assert (path / "one" / "k").read_bytes() == b"new"


PENDING_NAMES = [".new-x", ".new-", ".new-a-b-c", f".new-{'a' * 32}-{'b' * 32}"]


@pytest.mark.parametrize("planter", [link, fifo, directory, dangling, regular])
async def test_pending_files_of_any_kind_do_not_block_writers(
    path: Path, outside: Path, planter: Planter
) -> None:
    plant(path, element("one"))
    for name in PENDING_NAMES:
        planter(path / name, outside / "k")
    if planter is not directory:
        planter(path / ".new-images.json", outside / "k")
    untouched = tree(outside)
    async with ImageStore(path) as store:
        await store.create("two")
        assert [image.id for image in await store.images()] == ["one", "two"]
    assert tree(outside) == untouched


async def test_directory_in_place_of_the_next_index_is_reported_and_kept(path: Path) -> None:
    plant(path, element("one"))
    directory(path / ".new-images.json", path)
    async with ImageStore(path) as store:
        before = tree(path)
        with pytest.raises((OSError, StoreCorruptError)) as caught:
            await store.create("two", big_data={"k": b"data"})
        assert str(path / ".new-images.json") in str(caught.value)
        assert tree(path) == before
        assert await store.exists("one")


async def test_stale_directory_is_cleared_before_its_id_is_used_again(
    store: ImageStore, path: Path, outside: Path
) -> None:
    await store.create("other")
    for image_id in ("one", "two"):
        (path / image_id).mkdir()
        (path / image_id / "stale").write_bytes(b"stale")
        (path / image_id / "k").symlink_to(outside / "k")
    untouched = tree(outside)
    await store.create("one", big_data={"k": b"new"})
    async with store.transaction() as tx:
        await tx.create("two", big_data={"k": b"new"})
    assert tree(path / "one") == tree(path / "two") == {"k": b"new"}
    assert tree(outside) == untouched


async def test_store_never_leaves_its_directory(store: ImageStore, path: Path) -> None:
    before = tree(path.parent).keys() - {name for name in tree(path.parent) if "store" in name}
    image: Image = await store.create("one", names=["../../x"], big_data={"../x": b"x"})
    await store.set_big_data(image.id, "../../y", b"y")
    await store.delete("../../x")
    after = {name for name in tree(path.parent) if "store" not in name}
    assert after == set(before)
