"""Failures keep their cause, whichever way they take to the caller."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aimagestore import ImageStore, StoreCorruptError, StoreLostError
from aimagestore._engine.failure import copied
from aimagestore._format.index import MalformedIndexError

from .support.faults import Faults


@pytest.mark.damage
async def test_a_damaged_index_is_caused_by_what_is_malformed(
    store: ImageStore, path: Path
) -> None:
    await store.create("one")
    (path / "images.json").write_bytes(b"[{")

    async def transact() -> None:
        async with store.transaction():
            pass

    for call in (store.get("one"), store.images(), store.create("two"), transact()):
        with pytest.raises(StoreCorruptError) as caught:
            await call
        assert isinstance(caught.value.__cause__, MalformedIndexError)
        assert caught.value.path == str(path / "images.json")


def test_a_copied_error_has_notes_of_its_own() -> None:
    error = ValueError("about all")
    error.add_note("of all")
    copies = copied(error), copied(error)
    copies[0].add_note("of one")
    assert copies[0].__notes__ == ["of all", "of one"]
    assert copies[1].__notes__ == error.__notes__ == ["of all"]


async def test_the_advice_about_a_full_disk_keeps_the_cause(
    store: ImageStore, path: Path, faults: Faults
) -> None:
    await store.create("one")
    with (
        faults.fail("writev", errno.ENOSPC, lambda _: True),
        pytest.raises(OSError, match="free space outside the store") as caught,
    ):
        await store.set_metadata("one", "text")
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert (cause.errno, cause.strerror) == (errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename).startswith(str(path))


async def test_a_commit_that_may_have_happened_is_caused_by_the_sync(
    store: ImageStore, path: Path, faults: Faults
) -> None:
    await store.create("one")

    def is_after_the_rename(_: int) -> bool:
        return b'"metadata"' in (path / "images.json").read_bytes()

    with (
        faults.fail("fsync", errno.EIO, is_after_the_rename),
        pytest.raises(OSError, match="may have happened") as caught,
    ):
        await store.set_metadata("one", "text")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO


@pytest.mark.damage
async def test_a_lost_store_is_caused_by_what_is_not_found(store: ImageStore, path: Path) -> None:
    path.rename(path.with_name("store-moved"))
    for call in (store.get("one"), store.create("two"), store.touch()):
        with pytest.raises(StoreLostError) as caught:
            await call
        causes = [caught.value.__cause__, caught.value.__context__]
        assert any(isinstance(cause, FileNotFoundError) for cause in causes)


async def test_an_error_about_a_directory_that_cannot_be_made_has_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        async with ImageStore(tmp_path / "file" / "store"):
            pass
    assert str(tmp_path / "file") in str(caught.value.filename)


@pytest.mark.parametrize("at", ["open", "create"])
async def test_a_store_that_cannot_be_written_says_what_to_do(
    path: Path, faults: Faults, at: str
) -> None:
    def is_the_lock(_: int, name: object, *__: object, **___: object) -> bool:
        return name == "images.lock"

    async with ImageStore(path) as store:
        await store.create("one")
        if at == "create":
            with (
                faults.fail_call("open", errno.EROFS, is_the_lock),
                pytest.raises(OSError, match="read_only=True") as caught,
            ):
                await store.create("two")
    if at == "open":
        with (
            faults.fail_call("open", errno.EACCES, is_the_lock),
            pytest.raises(PermissionError, match="read_only=True") as caught,
        ):
            async with ImageStore(path):
                pass
    assert caught.value.filename == str(path / "images.lock")
