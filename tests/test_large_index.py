"""Of a large index, only IDs and names are read for the first lookups."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings, strategies as st

from aimagestore import (
    AmbiguousImageError,
    BigDataUnknownError,
    DuplicateImageNamesError,
    ImageStore,
    ImageUnknownError,
    StoreCorruptError,
    check,
)
from aimagestore._cli.sizes import Sizes
from aimagestore._core.view import View
from aimagestore._directory.engine import DirectoryEngine
from aimagestore._directory.index_file import IndexFile
from aimagestore._format import index, scan
from aimagestore._format.scan import IndexNeededError, Scan

from .support.beside import Beside, layer
from .support.faults import Faults, die_after_commit
from .support.indexes import array, catalog_of, reader_of
from .support.strategies import compact, records as arbitrary_records

NUMBER = 1_500
"""Records enough that their index is not parsed on opening."""


def image_id(number: int) -> str:
    """Return the ID of an image: no two of them have their first six characters in common."""
    return f"{number * 7919 % 0xFFFFFF:06x}" + f"{number:058x}"


def record(number: int, **more: Any) -> dict[str, Any]:
    """Return a record of about a kilobyte."""
    return {
        "id": image_id(number),
        "digest": f"sha256:{number:064x}",
        "names": [f"localhost/image-{number}:1"],
        "metadata": "x" * 700,
        "created": "2024-05-01T08:15:00Z",
        **more,
    }


def write(path: Path, records: list[Any], **options: Any) -> None:
    """Write an index, as another program does."""
    path.mkdir(exist_ok=True)
    text = json.dumps(records, separators=(",", ":"), **options)
    (path / ".new").write_text(text)
    os.rename(path / ".new", path / "images.json")


def is_scanned(store: ImageStore) -> bool:
    """Return whether lookups read the file."""
    return reader(store)._version.scan is not None


def reader(store: ImageStore) -> IndexFile:
    """Return what reads the store's index."""
    engine = store._core.engine
    assert isinstance(engine, DirectoryEngine)
    return engine.reader


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """The records of a large index."""
    return [record(number) for number in range(NUMBER)]


async def test_lookups_find_the_same_as_in_an_indexed_store(
    path: Path, records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_LOOKUPS", 1_000)
    records[7]["names"] = ["localhost/ä:1", "localhost/b,c:1"]
    records[8]["names"] = None
    records[9]["names-history"] = ["localhost/image-10:1"]
    write(path, records, ensure_ascii=False)
    refs = [
        image_id(0),
        image_id(NUMBER - 1),
        image_id(700)[:12],
        f"sha256:{image_id(700)}",
        "localhost/image-10:1",
        "localhost/ä:1",
        "localhost/b,c:1",
        "localhost/image-8:1",
        "localhost/image-7:1",
        "localhost/image-1",
        f"localhost/image-5@sha256:{5:064x}",
        image_id(3) + "0",
        f"{image_id(3)}\n{image_id(4)}",
        "localhost/no\u200bsuch:1",
        'quote"\\',
    ]

    async def look_up(store: ImageStore, ref: str) -> Any:
        try:
            return await store.get(ref)
        except (ImageUnknownError, AmbiguousImageError) as error:
            return str(error)

    async with ImageStore(path, read_only=True) as indexed:
        await indexed.snapshot()
        assert not is_scanned(indexed)
        for ref in refs:
            async with ImageStore(path, read_only=True) as store:
                assert is_scanned(store)
                assert await look_up(store, ref) == await look_up(indexed, ref), ref
        async with ImageStore(path, read_only=True) as store:
            assert await store.images() == await indexed.images()
            assert is_scanned(store)
            with pytest.raises(BigDataUnknownError):
                await store.big_data(image_id(4), "key")


async def test_an_index_is_parsed_after_a_few_lookups(
    path: Path, records: list[dict[str, Any]]
) -> None:
    write(path, records)
    async with ImageStore(path) as store:
        for number in range(scan._LOOKUPS):
            await store.get(image_id(number))
        assert is_scanned(store)
        await store.get(image_id(scan._LOOKUPS))
        assert not is_scanned(store)


async def test_images_that_nobody_looked_at_take_little_memory(
    path: Path, records: list[dict[str, Any]]
) -> None:
    write(path, records)
    size = (path / "images.json").stat().st_size
    async with ImageStore(path, read_only=True) as store:
        snapshot = await store.snapshot()
        tracemalloc.start()
        try:
            images = await store.images()
            listed, _ = tracemalloc.get_traced_memory()
            iterated = [image.id async for image in store.iter_images()]
            also_iterated = [image.id for image in snapshot]
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert [image.id for image in images] == iterated == also_iterated
    assert listed < size / 2
    assert after < size / 2
    assert peak < size


@pytest.mark.damage
async def test_a_damaged_record_is_found_by_no_scan(
    path: Path, records: list[dict[str, Any]]
) -> None:
    records[3]["layer"] = 5
    write(path, records)
    async with ImageStore(path) as store:
        with pytest.raises(ImageUnknownError):
            await store.get(image_id(3))
        with pytest.raises(ImageUnknownError):
            await store.get("localhost/image-3:1")
        assert len(await store.images()) == NUMBER - 1
        assert is_scanned(store)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda records: records[5].update(id="a\nb"),
        lambda records: records[5].update(names=["a\nb"]),
        lambda records: records[5].update(names=["localhost/image-6:1", "localhost/x:1"]),
        lambda records: records[5].update(names=["localhost/x:1", "localhost/x:1"]),
        lambda records: records[5].update(id=5),
        lambda records: records[5].update(names="localhost/x:1"),
        lambda records: records[5].update(names=[5]),
        lambda records: records[5].pop("id"),
        lambda records: records.insert(5, "no object"),
    ],
    ids=[
        "id-of-two-lines",
        "name-of-two-lines",
        "name",
        "twice",
        "no-text",
        "no-list",
        "no-name",
        "none",
        "str",
    ],
)
def test_an_index_with_anything_unusual_is_not_scanned(
    records: list[dict[str, Any]], spoil: Callable[[list[Any]], object]
) -> None:
    spoil(records)
    assert Scan.of(reader_of(compact(records))) is None


def test_a_scan_knows_where_each_record_is(records: list[dict[str, Any]]) -> None:
    text = compact(records)
    scan = Scan.of(reader_of(text))
    assert scan is not None
    assert len(scan.runs) > 2
    parts = [text[run.offset :][: run.size] for run in scan.runs]
    assert array(parts) == text
    for part, run in zip(parts, scan.runs, strict=True):
        found = json.loads(b"[%b]" % part)
        assert run.ids.split() == [each["id"] for each in found]
        assert run.names.split() == [name for each in found for name in each["names"]]
    for other in (text[:-1], text + b"x", b" "):
        assert Scan.of(reader_of(other)) is None


@pytest.mark.damage
@pytest.mark.parametrize("place", [4, NUMBER - 1], ids=["beside", "far-away"])
async def test_of_two_records_with_one_id_a_scan_finds_none(
    path: Path, records: list[dict[str, Any]], place: int
) -> None:
    records[place]["id"] = image_id(3)
    write(path, records)
    for ref in (image_id(3), image_id(3)[:12], f"localhost/image-{place}:1"):
        async with ImageStore(path, read_only=True) as store:
            assert is_scanned(store)
            assert (await store.get(ref)).names == (f"localhost/image-{place}:1",)
            assert not is_scanned(store)
    async with ImageStore(path, read_only=True) as store:
        with pytest.raises(ImageUnknownError):
            await store.get("localhost/image-3:1")
    async with ImageStore(path, read_only=True) as store:
        assert len(await store.images()) == NUMBER - 1
        assert not is_scanned(store)


def answers(view: View, refs: Iterable[str]) -> Iterator[object]:
    """Iterate over what the lookups that a scan answers give; ``...`` where it cannot answer."""
    looks: list[Callable[[str], object]] = [
        view.exists,
        view.owner_of,
        lambda ref: list(view.ids_with_prefix(ref, 2)),
        lambda _: list(view.images),
    ]
    for look, ref in product(looks, refs):
        try:
            yield look(ref)
        except IndexNeededError:
            yield ...


@settings(max_examples=40)
@given(st.lists(arbitrary_records(), max_size=8))
def test_a_scan_answers_as_the_index_does(elements: list[bytes]) -> None:
    names = [name for element in elements for name in json.loads(element).get("names", ())]
    assume(len(set(names)) == len(names))
    text = array(elements)
    with patch.object(index, "BLOCK_BYTES", 64):
        catalog, scan = catalog_of(text), Scan.of(reader_of(text))
    assert scan is not None
    refs = ["a", "ab", "red", *catalog.indexes.by_id, *catalog.indexes.by_name]
    view = scan.reading(lambda size, offset: text[offset:][:size])
    found = list(answers(view, refs))
    assert (... in found) <= (len(catalog.indexes.by_id) < len(elements))
    for answer, expected in zip(found, answers(catalog, refs), strict=True):
        assert answer in (expected, ...)


async def test_ids_and_names_are_found_however_they_are_spelled(
    path: Path, records: list[dict[str, Any]]
) -> None:
    records[5].update(id="caf\u00e9", names=["localhost/<x>:1"])
    write(path, records, ensure_ascii=True)
    text = (path / "images.json").read_text().replace("<x>", "\\u003cx\\u003e")
    (path / "images.json").write_text(text.replace("localhost/image-6", "localhost\\/image-6"))
    for ref in ("caf\u00e9", "localhost/<x>:1", "localhost/image-6:1"):
        async with ImageStore(path, read_only=True) as store:
            assert (await store.get(ref)).names
            assert is_scanned(store)


async def test_an_index_that_was_only_scanned_takes_little_memory(path: Path) -> None:
    write(path, [record(number) for number in range(30_000)])  # many times the buffer
    size = (path / "images.json").stat().st_size
    async with ImageStore(path, read_only=True) as warm:
        await warm.get(image_id(1))
    tracemalloc.start()
    try:
        async with ImageStore(path, read_only=True) as store:
            await store.get(image_id(1))
            used, _ = tracemalloc.get_traced_memory()
            assert is_scanned(store)
    finally:
        tracemalloc.stop()
    assert used < size / 2


async def test_an_index_that_a_network_file_system_has_lost_is_loaded_again(
    path: Path, records: list[dict[str, Any]], faults: Faults
) -> None:
    write(path, records)
    async with ImageStore(path) as store:
        scanned = reader(store)._version.fd
        with (
            faults.fail_call("pread", errno.ESTALE, lambda *_: True),
            faults.fail_call("readv", errno.ESTALE, lambda _, fd, __: fd == scanned),
        ):
            assert (await store.get(image_id(1))).names == ("localhost/image-1:1",)
        assert len(await store.images()) == NUMBER


async def test_a_lookup_in_a_scanned_index_that_was_altered_in_place_reads_all_of_it(
    path: Path, records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, records)
    real_pread = os.pread
    for altered in (b"", b"{}", b'{"id":"x"}'):
        async with ImageStore(path) as store:
            monkeypatch.setattr(os, "pread", lambda *_, altered=altered: altered)
            assert (await store.get(image_id(1))).names == ("localhost/image-1:1",)
            assert not is_scanned(store)
            monkeypatch.setattr(os, "pread", real_pread)


async def test_a_watch_sees_every_image_of_a_first_index_that_is_large(
    path: Path, records: list[dict[str, Any]]
) -> None:
    async with ImageStore(path) as store, store.watch() as watch:
        write(path, records)
        found = {(await anext(watch)).id for _ in records}
    assert found == {each["id"] for each in records}


async def test_two_images_with_one_name_are_noticed_on_opening(
    path: Path, records: list[dict[str, Any]]
) -> None:
    records[5]["names"] = ["localhost/x:1", "localhost/image-6:1"]
    write(path, records)
    with pytest.raises(DuplicateImageNamesError):
        async with ImageStore(path, read_only=True):
            pass
    async with ImageStore(path) as store:
        assert (await store.get(image_id(5))).names == ("localhost/x:1",)
    assert json.loads((path / "images.json").read_text())[5]["names"] == ["localhost/x:1"]


@pytest.mark.damage
async def test_an_index_that_is_cut_short_is_noticed_on_opening(
    path: Path, records: list[dict[str, Any]]
) -> None:
    write(path, records)
    text = (path / "images.json").read_bytes()
    (path / "images.json").write_bytes(text[:-100])
    with pytest.raises(StoreCorruptError):
        async with ImageStore(path):
            pass


async def test_the_commit_of_another_program_is_seen_between_scans(
    path: Path, records: list[dict[str, Any]]
) -> None:
    write(path, records)
    async with ImageStore(path) as store:
        assert (await store.get(image_id(1))).names == ("localhost/image-1:1",)
        records[1]["names"] = ["localhost/changed:1"]
        write(path, records)
        assert (await store.get(image_id(1))).names == ("localhost/changed:1",)


async def test_a_change_of_a_store_that_was_only_scanned_keeps_everything(
    path: Path, records: list[dict[str, Any]]
) -> None:
    write(path, records)
    async with ImageStore(path) as store, ImageStore(path) as other:
        async with store.watch() as watch:
            await other.add_names(image_id(2), ["localhost/new:1"])
            assert (await anext(watch)).id == image_id(2)
        assert len(await store.images()) == NUMBER
    records[2]["names"] = ["localhost/new:1", "localhost/image-2:1"]
    found = json.loads((path / "images.json").read_text())
    assert [each["names"] for each in found] == [each["names"] for each in records]
    assert (await check(path)).ok


async def test_a_store_that_was_only_scanned_finishes_the_commit_of_another(
    path: Path, records: list[dict[str, Any]]
) -> None:
    write(path, records)
    async with ImageStore(path) as other:
        await other.create("one", big_data={"manifest": b"old content"})
    async with ImageStore(path) as store:
        assert is_scanned(store)
        await die_after_commit(path)
        await store.set_metadata("one", "text")
        assert (path / "one" / "manifest").read_bytes() == b"new content"


async def test_sizes_with_layers_need_no_index_of_the_images(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    beside = Beside(tmp_path)
    beside.write_layers(layer("base", size=1), layer("top", "base", 20))
    write(beside.images, [each | {"layer": "top"} for each in records])
    async with ImageStore(beside.images, read_only=True) as store:
        images = await store.images()
        sizes = await Sizes.of(store)
        assert {sizes.of_layers(image) for image in images} == {21}
        assert is_scanned(store)
