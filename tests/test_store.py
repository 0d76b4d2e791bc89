"""A store in a directory: its files, what it reads of buildah's, and what is public."""

from __future__ import annotations

import inspect
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import aimagestore
from aimagestore import (
    DuplicateImageNamesError,
    Image,
    ImageStore,
    StoreReadOnlyError,
)
from aimagestore._async.store import core_of

from .support.buildah import FIXTURE, FIXTURE_ID
from .support.stores import open_files


async def test_a_record_matches_what_buildah_wrote(path: Path) -> None:
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


async def test_the_index_is_encoded_as_go_encodes_it(store: ImageStore, path: Path) -> None:
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


async def test_deleted_images_leave_no_directory(store: ImageStore, path: Path) -> None:
    for image_id in "abc":
        await store.create(image_id, big_data={"k": b"v"})
    await store.delete("a")
    assert not (path / "a").exists()
    await store.wipe()
    assert sorted(p.name for p in path.iterdir()) == ["images.json", "images.lock"]
    assert (path / "images.json").read_bytes() == b"[]"


async def test_touch_changes_the_token_only(store: ImageStore, path: Path) -> None:
    await store.create("one")
    token, index = (path / "images.lock").read_bytes(), (path / "images.json").read_bytes()
    await store.touch()
    new_token = (path / "images.lock").read_bytes()
    assert new_token != token
    assert len(new_token) == len(token) == 64
    assert (path / "images.json").read_bytes() == index


async def test_a_read_only_store_makes_no_file(path: Path) -> None:
    shutil.copytree(FIXTURE, path)
    (path / "images.lock").unlink()
    before = sorted((p.name, p.stat().st_mtime_ns) for p in path.rglob("*"))
    async with ImageStore(path, read_only=True) as store:
        assert await store.exists(FIXTURE_ID)
        with pytest.raises(StoreReadOnlyError) as info:
            await store.create()
        assert info.value.path == str(path)
        assert not await store.touched_since(datetime.now(UTC) + timedelta(minutes=1))
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in path.rglob("*"))


async def test_a_read_only_store_must_exist(path: Path) -> None:
    with pytest.raises(FileNotFoundError) as info:
        async with ImageStore(path, read_only=True):
            pass
    assert info.value.filename == str(path)
    assert not path.exists()


async def test_opening_resolves_name_conflicts_or_refuses_them_if_read_only(path: Path) -> None:
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


async def test_constructing_does_no_io(path: Path) -> None:
    ImageStore(path)
    assert not path.exists()
    with pytest.raises(ValueError, match="lock_timeout"):
        ImageStore(path, lock_timeout=-1)


async def test_missing_parent_directories_are_made_private(path: Path) -> None:
    async with ImageStore(path / "a" / "b"):
        pass
    assert (path / "a").stat().st_mode & 0o777 == 0o700


def test_the_docstring_of_each_method_names_its_upstream_function() -> None:
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
        if name in {"BigDataSource", "JSONValue", "__version__"}:
            continue  # types of arguments, and a text
        assert public.__doc__, name
        for attribute, member in vars(public).items():
            if callable(member) and not attribute.startswith("_") and public is not Image:
                assert inspect.getdoc(member), f"{name}.{attribute}"


async def test_the_repr_of_a_watch_and_of_a_transaction_shows_its_state(
    store: ImageStore, path: Path
) -> None:
    async with store.watch() as watch, store.transaction() as tx:
        assert repr(watch) == f"<Watch of {str(path)!r}: open>"
        assert repr(tx) == f"<Transaction of {str(path)!r}: open>"
    assert repr(watch) == f"<Watch of {str(path)!r}: closed>"
    assert repr(tx) == f"<Transaction of {str(path)!r}: over>"


async def test_everything_else_is_closed_if_something_cannot_be_closed(path: Path) -> None:
    def refuse() -> None:
        raise OSError("it cannot be closed")

    async with ImageStore(path) as store:
        core = core_of(store)
        core.own("refuses", refuse)
        async with store.stage(b"data"):
            core.own("refuses again", refuse)
            content = await core.stage()
            with pytest.raises(OSError, match="cannot be closed"):
                await core.release("refuses again", content)
            assert not content.is_open
            await store.aclose()
    assert open_files(str(path)) == set()


async def test_equal_images_are_equal_in_every_spelling(path: Path) -> None:
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
