"""A graph root of containers/storage is refused where an image store is expected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aimagestore import GraphRootError, ImageStore, Report, check, repair

from .support.stores import tree


async def _open(path: Path) -> None:
    async with ImageStore(path):
        pass


async def _read(path: Path) -> None:
    async with ImageStore(path, read_only=True):
        pass


CALLS: list[Callable[[Path], Awaitable[object]]] = [
    _open,
    _read,
    check,
    lambda path: repair(path, Report()),
]


@pytest.mark.damage
@pytest.mark.parametrize("call", CALLS, ids=["open", "read-only", "check", "repair"])
@pytest.mark.parametrize(
    ("names", "stores"),
    [
        (["overlay-images"], ["overlay-images"]),
        (["overlay-images", "overlay-layers", "vfs-images"], ["overlay-images", "vfs-images"]),
        (["storage.lock", "overlay-images"], ["overlay-images"]),
        (["storage.lock", "overlay"], []),
    ],
)
async def test_a_graph_root_is_refused_with_the_directory_to_use(
    path: Path, call: Callable[[Path], Awaitable[object]], names: list[str], stores: list[str]
) -> None:
    path.mkdir()
    for name in names:
        (path / name).mkdir() if name != "storage.lock" else (path / name).touch()
    before = tree(path)
    with pytest.raises(GraphRootError) as caught:
        await call(path)
    assert caught.value.path == str(path)
    assert caught.value.stores == tuple(str(path / name) for name in stores)
    assert isinstance(caught.value, ValueError)
    for name in stores:
        assert str(path / name) in str(caught.value)
    assert tree(path) == before


@pytest.mark.parametrize("names", [[], ["notes"], ["images"], ["x-images.txt"]])
async def test_other_directories_are_no_graph_roots(path: Path, names: list[str]) -> None:
    path.mkdir()
    for name in names:
        (path / name).touch()
    async with ImageStore(path) as store:
        await store.create("one")
    (path / "overlay-images").mkdir()
    async with ImageStore(path) as store:  # which has an index, so it is an image store
        assert await store.exists("one")
