"""Usage of a directory: exactly the bytes that ``du`` counts, and that deleting images frees."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest

from aimagestore import ImageStore, PrunePolicy
from aimagestore._core.usage import Deletion, StoredContent

from .support.disks import MAKE, mounted_disk
from .support.stores import until

KINDS = [*MAKE, "here"]


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of each kind."""
    kind: str = request.param
    with nullcontext(tmp_path) if kind == "here" else mounted_disk(kind, tmp_path) as where:
        yield where


def du(path: Path) -> int:
    """Return the bytes that ``du`` counts, after the file system has allocated them."""
    os.sync()
    command = ["du", "--summarize", "--block-size=1", str(path)]
    return int(subprocess.check_output(command, text=True).split()[0])


def allocated(path: Path) -> int:
    """Return the bytes allocated to a store, except for its index and its own directory."""
    os.sync()
    found = {}
    for directory, directories, files in os.walk(path):
        for name in (*directories, *files):
            known = os.lstat(os.path.join(directory, name))
            if name != "images.json":
                found[known.st_ino] = known.st_blocks * 512
    return sum(found.values())


def link(path: Path, source: str, target: str) -> None:
    """Make the file of one item that of another too, as stores do that keep one copy."""
    (path / target).unlink()
    os.link(path / source, path / target)


async def fill(path: Path) -> None:
    """Create images that share content, and some that do not."""
    async with ImageStore(path) as store:
        for number in range(3):
            items = {"base": b"b" * 300_001, "own": bytes([number]) * (5_000 * number + 1)}
            names = [f"localhost/app:{number}"] if number else []
            await store.create(f"app{number}", names=names, big_data=items)
        many = {f"item{n}": b"x" for n in range(200)}
        await store.create("many", big_data=many)
        await store.create("pair", big_data={"base": b"p" * 70_000})
        await store.create("other", big_data={"base": b"p" * 70_000})
        await store.create("bare")
    for number in (1, 2):
        link(path, "app0/base", f"app{number}/base")
    link(path, "pair/base", "other/base")
    tree = path / "many" / "userdata" / "deep"
    tree.mkdir(parents=True)
    (tree / "file").write_bytes(b"u" * 9_999)
    (tree / "link").symlink_to("/etc")
    (path / "many" / "userdata" / "sparse").touch()
    os.truncate(path / "many" / "userdata" / "sparse", 1_000_000)
    (path / ".tmp-1").write_bytes(b"garbage")


@pytest.mark.damage
async def test_the_total_is_what_du_counts(disk: Path) -> None:
    path = disk / "store"
    await fill(path)
    expected = du(path)
    async with ImageStore(path, read_only=True) as store:
        usage = await store.usage()
    assert usage.total == expected
    assert usage.images["app1"].shared_size >= 300_001
    assert usage.images["pair"].unique_size < 70_000 <= usage.images["pair"].shared_size
    assert usage.images["many"].shared_size == 0


@pytest.mark.damage
async def test_deleting_an_image_frees_what_is_its_own(disk: Path) -> None:
    path = disk / "store"
    await fill(path)
    async with ImageStore(path) as store:
        while images := await store.images():
            usage = await store.usage()
            before = allocated(path)
            await store.delete(images[0].id)
            assert before - allocated(path) == usage.images[images[0].id].unique_size
        os.sync()
        assert (await store.usage()).total == du(path)


@pytest.mark.damage
async def test_a_forecast_of_pruning_is_right_to_the_byte(disk: Path) -> None:
    path = disk / "store"
    await fill(path)
    for policy in (PrunePolicy(), PrunePolicy(unnamed=False, keep_last=1)):
        async with ImageStore(path) as store:
            usage = await store.usage()
            forecast = await store.prune(policy, dry_run=True)
            assert forecast.freed <= usage.reclaimable
            before = allocated(path)
            result = await store.prune(policy)
        assert result == forecast
        assert before - allocated(path) == result.freed > 0


async def test_deleting_all_images_frees_the_reclaimable_bytes(path: Path) -> None:
    await fill(path)
    (path / ".tmp-1").unlink()
    async with ImageStore(path) as store:
        usage = await store.usage()
        before = allocated(path)
        await store.wipe()
    assert before - allocated(path) == usage.reclaimable


async def test_content_with_a_link_outside_the_store_belongs_to_no_single_image(
    path: Path, tmp_path: Path
) -> None:
    async with ImageStore(path) as store:
        await store.create("one", big_data={"key": b"x" * 50_000})
        os.link(path / "one" / "key", tmp_path / "backup")
        usage = await store.usage()
    assert usage.images["one"].unique_size < 50_000 <= usage.images["one"].shared_size
    assert usage.reclaimable < 50_000


def test_the_bytes_that_deletions_free_do_not_depend_on_their_order() -> None:
    content = StoredContent(
        {"a": {1: 10, 2: 20}, "b": {2: 20, 3: 30}, "c": {3: 30, 4: 40}},
        total=100,
        outside=frozenset({4}),
    )
    for order in ("ab", "ba"):
        deletion = Deletion(content)
        for image_id in order:
            deletion.add(image_id)
        assert deletion.freed == 30
    usage = content.usage({}, {"a": ("web",)})
    assert (usage.images["a"].unique_size, usage.images["a"].shared_size) == (10, 20)
    assert usage.images["c"].unique_size == 0
    assert usage.reclaimable == 30


class NotedWhenFreed(dict[str, Mapping[int, int]]):
    """What is stored for images. It notes which thread frees it."""

    threads: ClassVar[list[str]] = []

    def __del__(self) -> None:
        self.threads.append(threading.current_thread().name)


async def test_what_was_measured_is_freed_beside_the_loop(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 100,000 images, that takes longer than the loop may be stopped."""
    items = type(store._core.engine.items)
    usage = items.usage

    def noted(self: Any) -> Any:
        content = yield from usage(self)
        return StoredContent(NotedWhenFreed(content.images), content.total, content.outside)

    monkeypatch.setattr(items, "usage", noted)
    monkeypatch.setattr(NotedWhenFreed, "threads", [])
    policy = PrunePolicy(unnamed=False)
    for number in range(100):
        await store.create(str(number))
    await store.usage()
    await store.prune(policy, dry_run=True)
    await store.prune(policy)
    await until(lambda: len(NotedWhenFreed.threads) == 3)
    assert threading.current_thread().name not in NotedWhenFreed.threads
