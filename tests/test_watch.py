"""What watching tells: each change once, in order, whoever makes it and whoever is slow."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, strategies as st

from aimagestore import ChangeEvent, ImageStore, StoreClosedError, StoreCorruptError
from aimagestore._core.events import changes_between
from aimagestore._directory import watch as directory_watch
from aimagestore._directory.engine import DirectoryEngine
from aimagestore._format import index
from aimagestore._format.block_catalog import EMPTY, BlockCatalog

from .support.watching import meanwhile, replay, take, told, until_idle
from .support.stores import open_files
from .support.strategies import edits, indexes


async def test_nobody_looks_while_nothing_changes(
    store: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("one")
    loads: list[object] = []
    real_load = DirectoryEngine.load

    def load(engine: DirectoryEngine) -> BlockCatalog:
        loads.append(engine)
        return real_load(engine)

    async with store.watch() as changes, anyio.create_task_group() as tasks:
        tasks.start_soon(anext, changes)
        await until_idle(changes)
        monkeypatch.setattr(DirectoryEngine, "load", load)
        # Neither waiting nor what writers do besides committing makes it look.
        (path / "notes.txt").write_bytes(b"")
        await store.touch()
        await anyio.sleep(0.05)
        assert loads == []
        await store.set_metadata("one", "text")


async def test_after_the_block_nothing_comes(store: ImageStore) -> None:
    async with store.watch() as changes:
        pass
    await store.create("one")
    with pytest.raises(StoreClosedError):
        await anext(changes)
    assert open_files("inotify") == set()


@pytest.mark.damage
async def test_damage_is_raised_and_outlived(store: ImageStore, path: Path) -> None:
    await store.create("one")
    good = (path / "images.json").read_bytes()
    async with store.watch() as changes:
        (path / "images.json").write_bytes(b"[{")
        with pytest.raises(StoreCorruptError):
            await take(changes, 1)
        (path / "images.json").write_bytes(good.replace(b'"one"', b'"two"'))
        assert told(await take(changes, 2)) == [("deleted", "one"), ("created", "two")]


@pytest.mark.damage
async def test_a_directory_that_is_gone_holds_no_images(store: ImageStore, path: Path) -> None:
    await store.create("one")

    async def remove() -> None:
        for name in ("images.json", "images.lock"):
            (path / name).unlink()
        path.rmdir()

    async with store.watch() as changes:
        _, seen = await meanwhile(changes, remove())
    assert seen == ChangeEvent("deleted", "one")


async def test_without_inotify_it_looks(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(directory_watch, "INotify", refuse)
    monkeypatch.setattr(directory_watch, "_INTERVAL", 0.01)
    with caplog.at_level("INFO", "aimagestore"):
        async with store.watch() as changes:
            await store.create("one")
            assert told(await take(changes, 1)) == [("created", "one")]
    assert "Too many open files" in caplog.text


async def test_a_network_file_system_is_looked_at_too(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._engine, "checks_instantly", False)
    async with store.watch() as changes:
        assert changes._watch.interval == 1.0
        assert changes._watch.descriptor is not None


def catalog_of(elements: list[bytes], known: BlockCatalog) -> BlockCatalog:
    content = memoryview(b"[" + b",".join(elements) + b"]")

    def read(buffer: memoryview) -> int:
        nonlocal content
        size = min(len(buffer), len(content))
        buffer[:size] = content[:size]
        content = content[size:]
        return size

    parsed = index.parse(index.Text(read, len(content)), known)
    assert parsed is not None
    return known.with_blocks(*parsed)


@given(st.data())
def test_changes_make_one_snapshot_of_another(data: st.DataObject) -> None:
    elements = data.draw(indexes())
    before = catalog_of(elements, EMPTY)
    after = catalog_of(data.draw(edits(elements)), before)
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
    before = catalog_of([b'{"id":"a","names":["n"],"created":"2020-01-01T00:00:00Z"}'], EMPTY)
    after = catalog_of([b'{"names":["n"],"created":"2020-01-01T00:00:00.000Z","id":"a"}'], before)
    assert changes_between(before, after) == []
