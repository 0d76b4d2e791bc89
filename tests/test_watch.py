"""Watches of a directory, and the differences between two snapshots."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, strategies as st

from aimagestore import ChangeEvent, ImageStore, StoreClosedError, StoreCorruptError, StoreLostError
from aimagestore._async.store import core_of
from aimagestore._core.events import changes_between
from aimagestore._directory import feed as directory_feed
from aimagestore._directory.index_file import IndexFile
from aimagestore._format.block_catalog import BlockCatalog

from .support.indexes import array, catalog_of
from .support.stores import open_files
from .support.strategies import edits, indexes
from .support.watching import kinds, meanwhile, replay, take, until_idle


async def test_the_index_is_read_only_after_a_commit(
    store: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("one")
    loads: list[object] = []
    real_load = IndexFile.load

    def load(index_file: IndexFile) -> BlockCatalog:
        loads.append(index_file)
        return real_load(index_file)

    async with store.watch() as changes, anyio.create_task_group() as tasks:
        tasks.start_soon(anext, changes)
        await until_idle(changes)
        monkeypatch.setattr(IndexFile, "load", load)
        # Neither waiting nor what writers do besides committing makes it look.
        (path / "notes.txt").write_bytes(b"")
        await store.touch()
        # Events come in order: that of the metadata is read after those of the file and the token.
        await store.set_metadata("one", "text")
    # One for the commit, and one for the poll after it.
    assert 1 <= len(loads) <= 2


async def test_a_watch_ends_with_its_block(store: ImageStore) -> None:
    async with store.watch() as changes:
        pass
    await store.create("one")
    with pytest.raises(StoreClosedError):
        await anext(changes)
    assert open_files("inotify") == set()


@pytest.mark.damage
async def test_a_watch_raises_damage_and_continues_after_its_repair(
    store: ImageStore, path: Path
) -> None:
    await store.create("one")
    good = (path / "images.json").read_bytes()
    async with store.watch() as changes:
        (path / "images.json").write_bytes(b"[{")
        with pytest.raises(StoreCorruptError):
            await take(changes, 1)
        (path / "images.json").write_bytes(good.replace(b'"one"', b'"two"'))
        assert kinds(await take(changes, 2)) == [("deleted", "one"), ("created", "two")]


@pytest.mark.damage
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_watch_says_that_the_directory_was_removed_or_replaced(
    store: ImageStore, path: Path, replaced: bool
) -> None:
    await store.create("one")
    async with store.watch() as watch, anyio.create_task_group() as tasks:
        errors: list[Exception] = []

        async def wait() -> None:
            with pytest.raises(StoreLostError) as caught:
                await take(watch, 1)
            errors.append(caught.value)

        tasks.start_soon(wait)
        await until_idle(watch)
        path.rename(path.with_name("store-moved"))
        if replaced:
            path.mkdir()
    assert str(path) in str(errors[0])


@pytest.mark.damage
async def test_an_index_that_is_moved_away_wakes_a_waiting_task(
    store: ImageStore, path: Path
) -> None:
    await store.create("one")
    async with store.watch() as watch:

        async def move() -> None:
            (path / "images.json").rename(path / "x")

        _, seen = await meanwhile(watch, move())
        assert seen == ChangeEvent("deleted", "one")


async def test_a_watch_polls_without_inotify(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("inotify_simple.INotify", refuse)
    monkeypatch.setattr(directory_feed, "_INTERVAL", 0.01)
    with caplog.at_level("INFO", "aimagestore"):
        async with store.watch() as changes:
            await store.create("one")
            assert kinds(await take(changes, 1)) == [("created", "one")]
    assert "Too many open files" in caplog.text


async def test_a_watch_polls_a_network_file_system_too(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_of(store).engine.reader, "keeps_catalog", False)
    async with store.watch() as watch:
        assert watch._feed.interval == 1.0
        assert watch._feed.descriptor is not None


@given(st.data())
def test_replayed_changes_turn_one_snapshot_into_the_next(data: st.DataObject) -> None:
    elements = data.draw(indexes())
    before = catalog_of(array(elements))
    after = catalog_of(array(data.draw(edits(elements))), before)
    images = {image.id: image for image in before}
    changes = changes_between(before, after)
    assert len({change.id for change in changes}) == len(changes)
    replay(images, changes)
    assert images == {image.id: image for image in after}
    assert changes_between(after, after) == []
    assert [c for c in changes if c.image and before.record_of(c.id)] == [
        c for c in changes if c.kind == "changed"
    ]


def test_another_spelling_is_no_change() -> None:
    before = catalog_of(array([b'{"id":"a","names":["n"],"created":"2020-01-01T00:00:00Z"}']))
    after = catalog_of(
        array([b'{"names":["n"],"created":"2020-01-01T00:00:00.000Z","id":"a"}']), before
    )
    assert changes_between(before, after) == []
