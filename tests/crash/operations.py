"""Every public change of a store, for tests that interrupt it at every point."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, JSONValue
from aimagestore._async.store import core_of
from aimagestore._core import mutations
from aimagestore._directory import files
from aimagestore._directory.pending import pending_name
from aimagestore._directory.stored import verified_files
from aimagestore._engine.items import discard_all, stage_all
from aimagestore._engine.protocol import Outcome
from aimagestore._stacked import copying

from .faults import Failpoints
from .state import NEW, ONE, THREE, TWO, USER_DATA, apply_all

THEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
OLD = b"old content"
BIG = b"x" * 1_100_000
PIECE = 1000
PIECES = b"x" * (PIECE + 100)
"""Content that is copied in two pieces."""

BESIDE = "b" * 64
"""The image of the additional store."""


@dataclass(frozen=True)
class Operation:
    """One change.

    :ivar run: makes the change
    :ivar start: the state of the store before the change: see :func:`make`
    :ivar opens: whether opening the store is part of the change
    :ivar named: whether the file system has no unnamed files (O_TMPFILE)
    :ivar meanwhile: whether another writer dies in a commit after the store was opened
    :ivar linkless: whether the file system has no hard links
    :ivar beside: whether the store has an additional store, in the directory ``beside``
    """

    run: Callable[[ImageStore], Awaitable[object]]
    start: str = "full"
    opens: bool = False
    named: bool = False
    meanwhile: bool = False
    linkless: bool = False
    beside: bool = False


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
        await store.create(NEW, created=THEN, big_data={"key": staged})


async def replace_from_staged(store: ImageStore) -> None:
    async with store.stage(b"staged content") as staged:
        await store.set_big_data(ONE, "manifest", staged)


async def create_like_another(store: ImageStore) -> None:
    await store.create(NEW, created=THEN, big_data={"same": OLD, "again": OLD, "other": b"{}"})


async def set_what_is_there(store: ImageStore) -> None:
    await store.set_big_data(TWO, "key", OLD, expected_digest=digest_of(OLD))


async def replace_with_another_item(store: ImageStore) -> None:
    await store.set_big_data(ONE, "sha256:config", OLD, expected_digest=digest_of(OLD))


async def equal_contents(store: ImageStore) -> None:
    async with store.transaction() as tx:
        await tx.create(NEW, created=THEN, big_data={"one": b"equal", "two": b"equal"})
        await tx.set_big_data(ONE, "manifest", b"equal")


async def several(store: ImageStore) -> None:
    async with store.transaction() as tx:
        await apply_all(tx, ["n"])


async def anew(store: ImageStore) -> None:
    async with store.transaction() as tx:
        await tx.delete(ONE)
        await tx.create(ONE, names=["a"], created=THEN, big_data={"config": b"another"})


async def commit_batch(store: ImageStore) -> list[Outcome | BaseException]:
    """Commit three changes as one batch, and return their outcomes.

    The content of the second is lost, so the engine commits the changes one by one. The batch does
    not come from the group committer, whose batches depend on timing.
    """
    core = core_of(store)
    items, lock, writer = core.engine.items, core.engine.lock, core.engine.writer

    def commit() -> list[Outcome | BaseException]:
        unusable = items.stage()
        unusable.discard()
        contents = stage_all(items, {"replaced": b"newer content", "new": b"new content"})
        try:
            batch = [
                mutations.set_big_data(ONE, "manifest", contents["replaced"]),
                mutations.set_big_data(TWO, "key", unusable),
                mutations.create(NEW, created=THEN).with_items({"key": contents["new"]}),
            ]
            grant = lock.try_acquire()
            if grant is None:
                raise BlockingIOError("somebody else holds the lock")
            try:
                return list(writer.commit(grant, batch))
            finally:
                grant.release()
        finally:
            discard_all(contents)

    return await core.threads.run_shielded(commit)


async def create_with_items(store: ImageStore) -> None:
    big_data = {"manifest": b"m" * 100, "sha256:config": b"c" * 5000}
    await store.create(NEW, names=["n"], created=THEN, big_data=big_data)


async def replace(store: ImageStore) -> None:
    await store.set_big_data(ONE, "manifest", b"new content")


OPERATIONS: dict[str, Operation] = {
    "create": Operation(lambda s: s.create(NEW, names=["n"], created=THEN)),
    "create with items": Operation(create_with_items),
    "create with items, staged by name": Operation(create_with_items, named=True),
    "create from staged": Operation(create_from_staged),
    "create the first": Operation(create_with_items, start="empty"),
    "create over a stale directory": Operation(create_with_items, start="stale"),
    "set_names": Operation(lambda s: s.set_names(ONE, ["b", "c"])),
    "add_names": Operation(lambda s: s.add_names(TWO, ["c"])),
    "remove_names": Operation(lambda s: s.remove_names(ONE, ["a"])),
    "set_metadata": Operation(lambda s: s.set_metadata(ONE, "text")),
    "set_flag": Operation(lambda s: s.set_flag(TWO, "flag", [1])),
    "clear_flag": Operation(lambda s: s.clear_flag(ONE, "flag")),
    "set_big_data, new": Operation(lambda s: s.set_big_data(ONE, "another", b"more")),
    "set_big_data, first": Operation(lambda s: s.set_big_data(TWO, "key", b"data")),
    "set_big_data, replaced": Operation(replace),
    "set_big_data, replaced, staged by name": Operation(replace, named=True),
    "set_big_data, same content": Operation(
        lambda s: s.set_big_data(ONE, "manifest", b"old content")
    ),
    "set_big_data, streamed": Operation(lambda s: s.set_big_data(ONE, "manifest", chunks())),
    "set_big_data, staged": Operation(replace_from_staged),
    "set_big_data, while another died": Operation(replace, meanwhile=True),
    "create like another": Operation(create_like_another),
    "create like another, staged by name": Operation(create_like_another, named=True),
    "create like another, without links": Operation(create_like_another, linkless=True),
    "set_big_data, what is there": Operation(set_what_is_there),
    "set_big_data, what is there, without links": Operation(set_what_is_there, linkless=True),
    "set_big_data, replaced with another item": Operation(replace_with_another_item),
    "transaction, equal contents": Operation(equal_contents),
    "delete one of two alike": Operation(lambda s: s.delete(ONE), start="alike"),
    "transaction, one of two alike anew": Operation(anew, start="alike"),
    "big_data_digest": Operation(lambda s: s.big_data_digest(THREE, "unmeasured")),
    "delete": Operation(lambda s: s.delete(ONE)),
    "delete a tree": Operation(lambda s: s.delete(ONE), start="trees"),
    "wipe": Operation(lambda s: s.wipe()),
    "wipe trees": Operation(lambda s: s.wipe(), start="trees"),
    "transaction": Operation(several),
    "transaction, the same image anew": Operation(anew),
    "transaction, the same image anew, with a tree": Operation(anew, start="trees"),
    "touch": Operation(lambda s: s.touch()),
    "collect_garbage": Operation(lambda s: s.collect_garbage(), start="stale"),
    "open anew": Operation(nothing, start="none", opens=True),
    "open": Operation(nothing, opens=True),
    "open, resolving name conflicts": Operation(nothing, start="names", opens=True),
    "open, recovering": Operation(nothing, start="half done", opens=True),
    "open and change": Operation(replace, start="half done", opens=True),
}


async def copy_and_change(store: ImageStore) -> None:
    async with store.transaction() as tx:
        await tx.set_metadata(BESIDE, "copied")
        await tx.set_big_data(BESIDE, "manifest", b"new")
        await tx.add_names(ONE, ["n"])


COPYING: dict[str, Operation] = {
    "copy an image": Operation(lambda s: s.set_metadata(BESIDE, "copied"), beside=True),
    "copy an image, staged by name": Operation(
        lambda s: s.set_big_data(BESIDE, "new", b"new"), beside=True, named=True
    ),
    "copy an image in a transaction": Operation(copy_and_change, beside=True),
}
"""Changes of an image that only the additional store has."""

BATCH = "batch"
"""The name of the operation that makes several commits."""


def operation_named(name: str) -> Operation:
    """Return the operation with a name."""
    return Operation(commit_batch) if name == BATCH else {**OPERATIONS, **COPYING}[name]


async def make(path: Path, start: str) -> None:
    """Make a store in a state that an operation starts from."""
    if start == "none":
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    if start == "empty":
        async with ImageStore(path):
            return
    async with ImageStore(path) as store:
        flags: dict[str, JSONValue] = {"flag": {"deep": [1, None]}}
        items = {"manifest": b"old content", "sha256:config": b"{}"}
        await store.create(ONE, names=["a"], created=THEN, flags=flags, big_data=items)
        await store.create(TWO, names=["b"], created=THEN)
        await store.create(THREE, created=THEN, top_layer="layer")
        if start == "alike":
            await store.set_big_data(TWO, "manifest", OLD)
    (path / THREE).mkdir()
    (path / THREE / "unmeasured").write_bytes(b"by another program")
    _edit(path, THREE, {"big-data-names": ["unmeasured"]})
    if start == "names":
        _edit(path, TWO, {"names": ["a", "b"]})
    elif start == "half done":
        await leave_half_done(path)
    elif start == "stale":
        (path / NEW / "deep" / "deeper").mkdir(parents=True)
        (path / NEW / "stale").write_bytes(b"stale")
        (path / NEW / "deep" / "deeper" / "stale").write_bytes(b"stale")
    elif start == "trees":
        for image_id in (ONE, TWO):
            (path / image_id / USER_DATA / "deep").mkdir(parents=True)
            (path / image_id / USER_DATA / "deep" / "file").write_bytes(b"by another program")
            (path / image_id / USER_DATA / "link").symlink_to("/nowhere")


def _edit(path: Path, image_id: str, fields: dict[str, Any]) -> None:
    records = json.loads((path / "images.json").read_bytes())
    for record in records:
        if record["id"] == image_id:
            record.update(fields)
    (path / "images.json").write_text(json.dumps(records))


async def leave_half_done(path: Path) -> None:
    """Leave a store as if its writer had died between a commit and renaming the item into place."""
    old = (path / ONE / "manifest").read_bytes()
    async with ImageStore(path) as store:
        image = await store.set_big_data(ONE, "manifest", b"half done")
    name = pending_name(image, "manifest")
    (path / ONE / "manifest").rename(path / name)
    (path / ONE / "manifest").write_bytes(old)
    (path / f".new-{'0' * 32}-{'1' * 32}").write_bytes(b"nobody's")
    (path / ".new-images.json").write_bytes(b"[")


async def attempt(
    operation: Operation,
    path: Path,
    points: Failpoints,
    *,
    then: Callable[[ImageStore, BaseException | None], Awaitable[None]] | None = None,
) -> BaseException | None:
    """Run an operation with failpoints, and return the error that it raised.

    :param then: called with the store, which is still open, and the error
    """
    with _circumstances(operation):
        if operation.opens:
            return await _attempt_opening(operation, path, points)
        beside = [path.with_name("beside")] if operation.beside else []
        async with ImageStore(path, additional_stores=beside) as store:
            if operation.meanwhile:
                await leave_half_done(path)
            error = await _attempt(operation, store, points)
            if then is not None:
                await then(store, error)
    return error


@contextmanager
def _circumstances(operation: Operation) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # The points of a change must not depend on which files this process has verified before.
        patch.setattr(verified_files, "_known", OrderedDict())
        patch.setattr(verified_files, "_digests", Counter())
        if operation.named:
            patch.setattr(files, "_TMPFILE", None)
        if operation.linkless:
            forbid_links(patch)
        if operation.beside:
            patch.setattr(copying, "CHUNK", PIECE)
        yield


def forbid_links(patch: pytest.MonkeyPatch) -> None:
    """Make hard links fail, as on a file system without them."""
    link = os.link

    def first_name_only(source: str, *args: Any, **kwargs: Any) -> None:
        if os.stat(source).st_nlink:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, *args, **kwargs)

    patch.setattr(os, "link", first_name_only)


def digest_of(data: bytes) -> str:
    """Return the digest that a store records for the data."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


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
    """Return the number of files below a path that this process has open."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link).startswith(str(path)) for link in links)
