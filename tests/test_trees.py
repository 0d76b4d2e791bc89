"""Directories of images that hold more than big data, as containers/storage makes them."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from aimagestore import (
    FindingKind as Kind,
    ImageStore,
    PrunePolicy,
    StoreCorruptError,
    check,
    repair,
)
from aimagestore._directory import files, mounts

from .support.faults import Faults
from .support.stores import contents, edit_index, tree

ONE, TWO, STALE = "1" * 64, "2" * 64, "3" * 64
MANIFEST = b'{"annotations":{"org.opencontainers.image.ref.name":"a"}}'


def add_tree(directory: Path) -> Path:
    """Add what containers/storage keeps for podman, and return the deepest directory."""
    deepest = directory / "userdata" / "referenced artifacts" / "one"
    deepest.mkdir(parents=True)
    (deepest / "layer").write_bytes(b"12345")
    (deepest.parent / "index").write_bytes(b"678")
    return deepest


def count_calls(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[None]:
    """Return a list that grows by one at each call of a function."""
    real = getattr(module, name)
    calls: list[None] = []

    def call() -> object:
        calls.append(None)
        return real()

    monkeypatch.setattr(module, name, call)
    return calls


@pytest.fixture
async def two(store: ImageStore, path: Path) -> ImageStore:
    """A store with two images that have trees."""
    for image_id, name in ((ONE, "a"), (TWO, "b")):
        await store.create(image_id, names=[name], big_data={"manifest": MANIFEST})
        add_tree(path / image_id)
    return store


def mount(*arguments: object) -> None:
    command = ["mount", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"needs to mount: {result.stderr.strip()}")


@contextmanager
def mounted(kind: str, directory: Path) -> Iterator[Path]:
    """Have something mounted in an image's directory."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    deepest = directory / "userdata" / "referenced artifacts" / "one"
    match kind:
        case "a file system":
            mount_point = deepest
            mount("-t", "tmpfs", "tmpfs", mount_point)
        case "a file":
            mount_point = deepest / "layer"
            mount("--bind", deepest.parent / "index", mount_point)
        case _:
            mount_point = directory
            mount("--bind", directory, mount_point)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


MOUNTS = ["a file system", "a file", "the directory itself"]

DELETIONS: dict[str, Callable[[ImageStore], Awaitable[object]]] = {
    "delete": lambda store: store.delete(ONE),
    "wipe": lambda store: store.wipe(),
    "create over a stale directory": lambda store: store.create(STALE),
}


@pytest.mark.parametrize("kind", MOUNTS)
@pytest.mark.parametrize("deletion", DELETIONS)
async def test_a_directory_with_a_mount_in_it_is_not_removed_in_part(
    two: ImageStore, path: Path, kind: str, deletion: str
) -> None:
    directory = path / ONE
    if deletion.startswith("create"):
        directory = path / STALE
        add_tree(directory)
    with mounted(kind, directory) as mount_point:
        before = tree(path)
        with pytest.raises(OSError, match="unmount it") as info:
            await DELETIONS[deletion](two)
        assert info.value.filename == str(mount_point)
        assert tree(path) == before
        assert len(await two.images()) == 2
    await DELETIONS[deletion](two)
    assert not (directory / "userdata").exists()


async def test_a_deletion_that_a_mount_prevents_fails_alone_in_a_transaction(
    two: ImageStore, path: Path
) -> None:
    with mounted("a file system", path / ONE):
        async with two.transaction() as tx:
            await tx.delete(TWO)
            with pytest.raises(OSError, match="unmount it"):
                await tx.delete(ONE)
    assert [image.id for image in await two.images()] == [ONE]
    assert not (path / TWO).exists()


@pytest.mark.parametrize("kind", MOUNTS)
async def test_collecting_skips_a_directory_with_a_mount_in_it(
    two: ImageStore, path: Path, kind: str
) -> None:
    other = "4" * 64
    for name in (STALE, other):
        add_tree(path / name)
    with mounted(kind, path / STALE) as mount_point:
        before = tree(path / STALE)
        planned = await two.collect_garbage(dry_run=True)
        assert (path / other).exists()
        report = await two.collect_garbage()
        assert planned == report
        assert tree(path / STALE) == before
        assert not (path / other).exists()
        found = {finding.id: finding for finding in report.findings}
        assert not found[other].stays
        assert found[STALE].stays
        assert str(mount_point) in found[STALE].detail
        assert report.bytes == 8
        assert (await two.collect_garbage()).findings == (found[STALE],)
    await two.collect_garbage()
    assert not (path / STALE).exists()


async def test_a_directory_with_files_of_the_year_33658_is_adopted(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    path.mkdir()
    mount("-t", "tmpfs", "tmpfs", path)  # other file systems have no such times
    try:
        add_tree(path / ONE)
        (path / ONE / "manifest").write_bytes(MANIFEST)
        os.utime(path / ONE / "manifest", (10**12, 10**12))
        (path / "images.json").write_bytes(b"[]")
        await repair(path, await check(path))
        async with ImageStore(path) as store:
            assert (await store.get("a")).id == ONE
    finally:
        subprocess.run(["umount", path], check=True)


async def test_the_name_of_a_mount_elsewhere_may_be_any_bytes(path: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    directory = tmp_path / os.fsdecode(b"not UTF-8 \xff")
    directory.mkdir()
    mount("-t", "tmpfs", "tmpfs", directory)
    try:
        async with ImageStore(path) as store:
            await store.create(ONE, big_data={"manifest": MANIFEST})
            await store.delete(ONE)
    finally:
        subprocess.run(["umount", directory], check=True)


async def test_a_file_system_that_is_mounted_during_a_deletion_is_kept(
    two: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "mounts_in", lambda fd: iter(()))
    with mounted("a file system", path / ONE) as mount_point:
        (mount_point / "precious").write_bytes(b"precious")
        with caplog.at_level(logging.WARNING):
            await two.delete(ONE)
        assert (mount_point / "precious").read_bytes() == b"precious"
        assert "unmount it" in caplog.text
    await two.collect_garbage()
    assert not (path / ONE).exists()


async def test_what_is_mounted_is_kept_if_the_process_may_open_no_more_files(
    two: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, *_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)

    with mounted("a file system", path / ONE) as mount_point:
        (mount_point / "precious").write_bytes(b"precious")
        with monkeypatch.context() as patch, pytest.raises(OSError, match="raise the limit"):
            patch.setattr(mounts, "open", fails, raising=False)
            await two.delete(ONE)
        assert (mount_point / "precious").read_bytes() == b"precious"
        assert await two.exists(ONE)
    await two.delete(ONE)


@pytest.mark.parametrize("deletion", ["at once", "wipe", "prune", "garbage"])
async def test_the_mounts_of_the_system_are_not_listed_for_each_deletion(
    path: Path, monkeypatch: pytest.MonkeyPatch, deletion: str
) -> None:
    many = [f"{number:064x}" for number in range(50)]
    async with ImageStore(path) as store:
        async with store.transaction() as tx:
            for image_id in many:
                await tx.create(image_id, big_data={"manifest": MANIFEST})
        if deletion == "garbage":
            edit_index(path, list.clear)
        listed = count_calls(monkeypatch, mounts, "_mounts")
        if deletion == "at once":
            async with anyio.create_task_group() as tasks:
                for image_id in many:
                    tasks.start_soon(store.delete, image_id)
        elif deletion == "wipe":
            await store.wipe()
        elif deletion == "prune":
            await store.prune(PrunePolicy())
        else:
            await store.collect_garbage()
        assert not any((path / image_id).exists() for image_id in many)
    assert len(listed) < 10


async def test_links_are_removed_and_not_followed(
    two: ImageStore, path: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    add_tree(path / STALE)
    for image_id in (ONE, STALE, TWO):
        (path / image_id / "link").symlink_to(outside)
        (path / image_id / "userdata" / "link").symlink_to(outside)
        (path / image_id / "userdata" / "file").symlink_to(outside / "precious")
        os.link(outside / "precious", path / image_id / "userdata" / "hard")
    (path / ("5" * 64)).symlink_to(outside)
    await two.delete(ONE)
    await two.create(STALE)
    (path / TWO).rename(path / ("6" * 64))
    await two.delete(TWO)
    await two.collect_garbage()
    assert set(os.listdir(path)) == {"images.json", "images.lock", "5" * 64}
    assert tree(outside) == {"precious": b"precious"}


async def test_a_tree_that_is_too_deep_is_left_for_its_owner(
    two: ImageStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deepest = path / ONE / "/".join(["d"] * 1200)
    subprocess.run(["mkdir", "-p", str(deepest)], check=True)
    try:
        with caplog.at_level(logging.WARNING):
            await two.delete(ONE)
        assert not await two.exists(ONE)
        assert "remove them by hand" in caplog.text
        for dry_run in (True, False):
            (left,) = (await two.collect_garbage(dry_run=dry_run)).findings
            assert left.stays
            assert "remove them by hand" in left.detail
        assert deepest.exists()
    finally:
        subprocess.run(["rm", "-r", str(path / ONE)], check=True)


async def test_another_image_in_place_of_one_has_no_tree(two: ImageStore, path: Path) -> None:
    async with two.transaction() as tx:
        await tx.delete(ONE)
        await tx.create(ONE, big_data={"config": b"c"})
    assert tree(path / ONE) == {"config": b"c"}
    assert not [name for name in os.listdir(path) if name.startswith(".new-")]


async def test_opening_removes_what_an_image_had_that_was_deleted_and_made_anew(
    two: ImageStore, path: Path, faults: Faults
) -> None:
    with faults.fail_call("rmdir", 5, lambda *_, **__: True):
        async with two.transaction() as tx:
            await tx.delete(ONE)
            await tx.create(ONE, big_data={"config": b"c"})
    assert (path / ONE / "userdata").exists()
    await two.aclose()
    async with ImageStore(path) as again:
        assert tree(path / ONE) == {"config": b"c"}
        assert await again.big_data(ONE, "config") == b"c"
    assert not [name for name in os.listdir(path) if name.startswith(".new-")]


async def test_a_change_that_has_not_happened_removes_no_tree(path: Path, faults: Faults) -> None:
    created = datetime(2024, 5, 6, tzinfo=UTC)
    async with ImageStore(path) as store:
        await store.create(ONE, created=created, big_data={"manifest": MANIFEST})
        add_tree(path / ONE)
        before = tree(path / ONE)
        with (
            faults.fail("rename", errno.EIO, lambda call: True),
            faults.fail_call("unlink", errno.EIO, lambda _, name, **__: name[:5] == ".new-"),
        ):
            for data in (MANIFEST, b"{}"):
                with pytest.raises(OSError, match="Input"):
                    async with store.transaction() as tx:
                        await tx.delete(ONE)
                        await tx.create(ONE, created=created, big_data={"manifest": data})
    async with ImageStore(path):
        assert tree(path / ONE) == before


@pytest.mark.damage
@pytest.mark.parametrize("index", [None, b"", b" \n", b"\0\0"])
async def test_a_lost_index_is_noticed_beside_directories_without_big_data(
    path: Path, index: bytes | None
) -> None:
    add_tree(path / ONE)
    (path / TWO).mkdir()
    if index is not None:
        (path / "images.json").write_bytes(index)
    before = contents(path)
    for read_only in (False, True):
        with pytest.raises(StoreCorruptError, match="repair"):
            async with ImageStore(path, read_only=read_only):
                pass
    report = await check(path)
    assert [f.kind for f in report.findings] == [
        Kind.INDEX_MISSING if index is None else Kind.INDEX_BLANK
    ]
    assert contents(path) == before
    # No image can be made of them. A record without items would make `podman images` fail.
    done = await repair(path, report)
    details = {f.id: f.detail for f in done.findings if f.kind is Kind.DIRECTORY_ORPHANED}
    assert details.keys() == {ONE, TWO}
    assert all("collect_garbage" in detail for detail in details.values())
    async with ImageStore(path) as store:
        assert await store.images() == []
        assert (path / ONE / "userdata").exists()
        await store.collect_garbage()
    assert not (path / ONE).exists()


@pytest.mark.damage
async def test_an_image_whose_record_is_lost_comes_back_with_its_tree(
    two: ImageStore, path: Path
) -> None:
    before = tree(path / ONE)
    await two.aclose()
    (path / "images.json").unlink()
    await repair(path, await check(path))
    async with ImageStore(path) as store:
        assert {image.id for image in await store.images()} == {ONE, TWO}
        assert await store.big_data(ONE, "manifest") == MANIFEST
    assert tree(path / ONE) == before


def test_a_directory_can_be_listed_by_two_threads_at_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    with files.Directory.at(str(tmp_path)) as directory, os.scandir(directory.fd) as other:
        next(other)  # the other thread is in the middle of it
        assert sorted(directory.names()) == ["a", "b", "c"]
        assert len([*other]) == 2


@pytest.mark.parametrize("change", ["create", "collect_garbage"])
async def test_another_programs_deletion_is_durable_before_the_directory_is_removed(
    store: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """That program does not sync: after a power cut, the image may be there again."""
    await store.create(STALE, big_data={"k": b"data"})
    (path / ".tmp-images.json").write_bytes(b"[]")
    (path / ".tmp-images.json").rename(path / "images.json")
    calls: list[str] = []
    sync, remove = files.Directory.sync, files.Directory.remove_tree

    def noting_sync(self: files.Directory) -> None:
        calls.append("sync")
        sync(self)

    def noting_remove(self: files.Directory, name: str, *mounts: Any) -> int:
        calls.append(name)
        return remove(self, name, *mounts)

    monkeypatch.setattr(files.Directory, "sync", noting_sync)
    monkeypatch.setattr(files.Directory, "remove_tree", noting_remove)
    if change == "create":
        await store.create(STALE, big_data={"k": b"new"})
    else:
        await store.collect_garbage()
        assert not (path / STALE).exists()
    assert "sync" in calls[: calls.index(STALE)]
