"""Every public change to a store, to be interrupted wherever it can be."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore
from aimagestore._directory import files
from aimagestore._directory.placement import waiting_name

from .faults import Failpoints
from .state import apply_all

THEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
BIG = b"x" * 1_100_000


@dataclass(frozen=True)
class Operation:
    """One change.

    :ivar run: makes it
    :ivar start: what the store is like before it
    :ivar opens: whether the opening of the store belongs to it
    :ivar named: whether the file system has no files without names
    :ivar meanwhile: whether another writer dies in the middle when the store is open already
    """

    run: Callable[[ImageStore], Awaitable[object]]
    start: str = "full"
    opens: bool = False
    named: bool = False
    meanwhile: bool = False


async def nothing(store: ImageStore) -> None:
    pass


async def chunks() -> AsyncIterator[bytes]:
    for start in (0, 600_000):
        await anyio.lowlevel.checkpoint()
        yield BIG[start : start + 600_000]


async def create_from_staged(store: ImageStore) -> None:
    async with store.stage() as staged:
        await staged.write(b"staged ")
        await staged.write(b"content")
        await store.create("new", created=THEN, big_data={"key": staged})


async def replace_from_staged(store: ImageStore) -> None:
    async with store.stage(b"staged content") as staged:
        await store.set_big_data("one", "manifest", staged)


async def several(store: ImageStore) -> None:
    async with store.transaction() as tx:
        apply_all(tx, ["n"])


async def anew(store: ImageStore) -> None:
    async with store.transaction() as tx:
        tx.delete("one")
        tx.create("one", names=["a"], created=THEN, big_data={"config": b"another"})


async def create_with_items(store: ImageStore) -> None:
    big_data = {"manifest": b"m" * 100, "sha256:config": b"c" * 5000}
    await store.create("new", names=["n"], created=THEN, big_data=big_data)


async def replace(store: ImageStore) -> None:
    await store.set_big_data("one", "manifest", b"new content")


OPERATIONS: dict[str, Operation] = {
    "create": Operation(lambda s: s.create("new", names=["n"], created=THEN)),
    "create with items": Operation(create_with_items),
    "create with items, staged by name": Operation(create_with_items, named=True),
    "create from staged": Operation(create_from_staged),
    "create the first": Operation(create_with_items, start="empty"),
    "create over a stale directory": Operation(create_with_items, start="stale"),
    "set_names": Operation(lambda s: s.set_names("one", ["b", "c"])),
    "add_names": Operation(lambda s: s.add_names("two", ["c"])),
    "remove_names": Operation(lambda s: s.remove_names("one", ["a"])),
    "set_metadata": Operation(lambda s: s.set_metadata("one", "text")),
    "set_flag": Operation(lambda s: s.set_flag("two", "flag", [1])),
    "clear_flag": Operation(lambda s: s.clear_flag("one", "flag")),
    "set_big_data, new": Operation(lambda s: s.set_big_data("one", "another", b"more")),
    "set_big_data, first": Operation(lambda s: s.set_big_data("two", "key", b"data")),
    "set_big_data, replaced": Operation(replace),
    "set_big_data, replaced, staged by name": Operation(replace, named=True),
    "set_big_data, same content": Operation(
        lambda s: s.set_big_data("one", "manifest", b"old content")
    ),
    "set_big_data, streamed": Operation(lambda s: s.set_big_data("one", "manifest", chunks())),
    "set_big_data, staged": Operation(replace_from_staged),
    "set_big_data, while another died": Operation(replace, meanwhile=True),
    "big_data_digest": Operation(lambda s: s.big_data_digest("three", "unmeasured")),
    "delete": Operation(lambda s: s.delete("one")),
    "wipe": Operation(lambda s: s.wipe()),
    "transaction": Operation(several),
    "transaction, the same image anew": Operation(anew),
    "touch": Operation(lambda s: s.touch()),
    "collect_garbage": Operation(lambda s: s.collect_garbage(), start="stale"),
    "open anew": Operation(nothing, start="none", opens=True),
    "open": Operation(nothing, opens=True),
    "open, curing names": Operation(nothing, start="names", opens=True),
    "open, finishing": Operation(nothing, start="half done", opens=True),
    "open and change": Operation(replace, start="half done", opens=True),
}


async def make(path: Path, start: str) -> None:
    """Make the store that an operation begins with."""
    if start == "none":
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    if start == "empty":
        async with ImageStore(path):
            return
    async with ImageStore(path) as store:
        flags = {"flag": {"deep": [1, None]}}
        items = {"manifest": b"old content", "sha256:config": b"{}"}
        await store.create("one", names=["a"], created=THEN, flags=flags, big_data=items)
        await store.create("two", names=["b"], created=THEN)
        await store.create("three", created=THEN, layer="layer")
    (path / "three").mkdir()
    (path / "three" / "unmeasured").write_bytes(b"by another program")
    _edit(path, "three", {"big-data-names": ["unmeasured"]})
    if start == "names":
        _edit(path, "two", {"names": ["a", "b"]})
    elif start == "half done":
        await leave_half_done(path)
    elif start == "stale":
        (path / "new").mkdir()
        (path / "new" / "stale").write_bytes(b"stale")


def _edit(path: Path, image_id: str, fields: dict[str, Any]) -> None:
    records = json.loads((path / "images.json").read_bytes())
    for record in records:
        if record["id"] == image_id:
            record.update(fields)
    (path / "images.json").write_text(json.dumps(records))


async def leave_half_done(path: Path) -> None:
    """Leave the store as one that died between its commit and the renaming of the item."""
    old = (path / "one" / "manifest").read_bytes()
    async with ImageStore(path) as store:
        image = await store.set_big_data("one", "manifest", b"half done")
    name = waiting_name("one", "manifest", image.big_data_digests["manifest"])
    (path / "one" / "manifest").rename(path / name)
    (path / "one" / "manifest").write_bytes(old)
    (path / f".new-{'0' * 32}-{'1' * 32}").write_bytes(b"nobody's")
    (path / ".new-images.json").write_bytes(b"[")


async def attempt(
    operation: Operation,
    path: Path,
    points: Failpoints,
    *,
    then: Callable[[ImageStore, BaseException | None], Awaitable[None]] | None = None,
) -> BaseException | None:
    """Run an operation with its failpoints; ``then`` gets the store, still open."""
    with _naming(operation):
        if operation.opens:
            return await _attempt_opening(operation, path, points)
        async with ImageStore(path) as store:
            if operation.meanwhile:
                await leave_half_done(path)
            error = await _attempt(operation, store, points)
            if then is not None:
                await then(store, error)
    return error


@contextmanager
def _naming(operation: Operation) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if operation.named:
            patch.setattr(files, "_TMPFILE", None)
        yield


async def _attempt(
    operation: Operation, store: ImageStore, points: Failpoints
) -> BaseException | None:
    try:
        with points.active():
            await operation.run(store)
    except OSError as error:
        return error
    return None


async def _attempt_opening(
    operation: Operation, path: Path, points: Failpoints
) -> BaseException | None:
    try:
        with points.active():
            async with ImageStore(path) as store:
                await operation.run(store)
    except OSError as error:
        return error
    return None


def descriptors(path: Path) -> int:
    """How many files below a path this process has open."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link).startswith(str(path)) for link in links)
