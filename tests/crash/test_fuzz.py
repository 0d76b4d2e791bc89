"""Hostile files in a store's directory cause only errors that the contract documents.

A usual run tries a third of the inputs of a thorough one.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from aimagestore import Image, ImageStore, ImageStoreError, check, repair
from aimagestore._core.record import read
from aimagestore._directory.pending import pending_name

from ..support import strategies
from ..support.loops import EXTENTS, NIGHTLY
from .operations import THEN, leave_half_done
from .state import NEW, ONE, THREE, TWO

SECRET = b"the content of a file outside"
TIMEOUT = 20
MEMORY_KIB = 200 * 1024
"""More memory than inputs of a few kB can need; most of it is what Hypothesis keeps."""

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


class Victim:
    """A store to be damaged, beside files that must not change."""

    def __init__(self, base: Path, run: Run) -> None:
        self.base = base
        self.path = base / "store"
        self.outside = base / "outside"
        self._template = base / "template"
        self._run = run
        run(lambda: make(self._template))
        self.index = (self._template / "images.json").read_bytes()
        (self.outside / "directory").mkdir(parents=True)
        (self.outside / "file").write_bytes(SECRET)
        (self.outside / "directory" / "manifest").write_bytes(SECRET)
        (self.outside / "index").write_bytes(b'[{"id":"outside"}]')

    @contextmanager
    def renewed(self) -> Iterator[Path]:
        """Restore the store for the block, and check afterwards that no other file has changed."""
        shutil.copytree(self._template, self.path, symlinks=True)
        before = look(self.outside), contents(self._template)
        try:
            yield self.path
            after = look(self.outside), contents(self._template)
            assert after == before, "a file outside the store has changed"
            assert set(os.listdir(self.base)) == {"store", "outside", "template"}
        finally:
            shutil.rmtree(self.path)

    def use(self) -> None:
        """Open the store, read all of it, check it, change it, and repair it."""
        self._run(lambda: use_all(self.path))


async def make(path: Path) -> None:
    """Make a store with items, names and flags, and with an interrupted commit."""
    async with ImageStore(path) as store:
        big_data = {"manifest": b"content", "sha256:config": b"{}", "empty": b""}
        await store.create(ONE, names=["a", "b"], created=THEN, big_data=big_data)
        await store.create(TWO, names=["c"], flags={"f": [1, {"id": "x"}]}, created=THEN)
        await store.set_names(TWO, ["c", "é\u2028"])
        await store.create(THREE, top_layer="layer", big_data={"manifest-2": b"m"}, created=THEN)
    await leave_half_done(path)


def look(path: Path) -> dict[str, Any]:
    """Return the inodes, modes, times and contents of a tree."""
    seen: dict[str, Any] = {}
    for found in sorted(path.rglob("*")):
        what = found.lstat()
        content = found.read_bytes() if stat.S_ISREG(what.st_mode) else b""
        times = (what.st_mtime_ns, what.st_ctime_ns)
        seen[str(found)] = (what.st_ino, what.st_mode, what.st_nlink, times, content)
    return seen


def contents(path: Path) -> dict[str, bytes]:
    """Return the contents of the files of a tree, regardless of hard links and times."""
    return {str(found): found.read_bytes() for found in path.rglob("*") if found.is_file()}


async def use_all(path: Path) -> None:
    with anyio.fail_after(TIMEOUT):
        await allowed(lambda: use(path, read_only=True))
        report = await allowed(lambda: check(path))
        await allowed(lambda: use(path, read_only=False))
        if report is not None:
            await allowed(lambda: repair(path, report, drop=True))


async def allowed(call: Callable[[], Awaitable[Any]]) -> Any:
    """Make a call, and return its result, or ``None`` for an error that the contract documents."""
    try:
        return await call()
    except TimeoutError:
        raise  # a hang, because nobody else holds the lock
    except (ImageStoreError, OSError):
        return None


async def use(path: Path, *, read_only: bool) -> None:
    async with ImageStore(path, read_only=read_only) as store:
        images = await store.images()
        assert list(await store.snapshot()) == images
        if not read_only:
            await change(store, path)
            return
        for image in images:
            await use_image(store, image)


async def use_image(store: ImageStore, image: Image) -> None:
    assert await store.get(image.id) == image
    assert image.flags is not None
    for name in image.names:
        assert (await store.get(name)).id
    for digest in image.digests:
        assert image in await store.by_digest(digest)
    for key in image.big_data_names:
        data = await allowed(partial(store.big_data, image.id, key))
        assert data is None or SECRET not in data
        await allowed(partial(read_verified, store, image.id, key))
        await allowed(partial(store.big_data_size, image.id, key))
        await allowed(partial(store.big_data_digest, image.id, key))


async def read_verified(store: ImageStore, ref: str, key: str) -> None:
    async with store.open_big_data(ref, key, verify=True) as reader:
        async for chunk in reader:
            assert SECRET not in chunk


async def change(store: ImageStore, path: Path) -> None:
    await allowed(lambda: store.set_big_data(ONE, "manifest", b"changed"))
    created = await allowed(lambda: store.create(NEW, big_data={"key": b"data"}))
    if created is not None:
        assert await store.big_data(NEW, "key") == b"data"
        async with ImageStore(path) as again:
            assert await again.big_data(NEW, "key") == b"data"
    await allowed(lambda: store.delete(THREE))
    await allowed(store.collect_garbage)


@pytest.fixture(params=["asyncio", "trio"] if NIGHTLY else ["asyncio"])
def victim(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Victim]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with anyio.from_thread.start_blocking_portal(request.param) as portal:
        yield Victim(scratch, lambda function: portal.call(call, function))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY_KIB, f"peak memory grew by {grown} KiB"


async def call(function: Callable[[], Awaitable[Any]]) -> Any:
    return await function()


def fuzz(default: int, nightly: int, *, whole: bool) -> settings:
    """Return settings with the number of inputs that this run tries."""
    if not whole:
        default //= 5
    return settings(
        max_examples=nightly if NIGHTLY else default, suppress_health_check=list(HealthCheck)
    )


each_extent = pytest.mark.parametrize("whole", EXTENTS)


# The index

place = st.floats(0, 1, exclude_max=True)
spans = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.sampled_from(
        [
            b"[",
            b"]",
            b"{",
            b"}",
            b",",
            b'"',
            b"\\",
            b"\0",
            b"null",
            b"1e999",
            b"-",
            b"\xff",
            b"[]",
            b'"id":"%b",' % ONE.encode(),
            b'"ID":"x",',
            b'"../outside/file"',
            b'"."',
            b"\\ud800",
            b"[" * 3000,
            b'{"id":"x"},',
            b'"flags":{"a":' + b"9" * 400 + b"},",
            b"true",
            b"{}",
            b" " * 50,
        ]
    ),
)
edits = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "replace", "cut", "repeat"]), place, place, spans),
    min_size=1,
    max_size=4,
)


def edited(text: bytes, changes: list[tuple[str, float, float, bytes]]) -> bytes:
    """Return the text with some bytes changed."""
    for kind, where, how_much, span in changes:
        at = int(where * len(text))
        end = at + 1 + int(how_much * 40)
        match kind:
            case "flip" if text:
                text = text[:at] + bytes([text[at] ^ (1 << int(how_much * 8))]) + text[at + 1 :]
            case "insert":
                text = text[:at] + span + text[at:]
            case "replace":
                text = text[:at] + span + text[end:]
            case "cut":
                text = text[:at] if how_much < 0.3 else text[:at] + text[end:]
            case "repeat":
                text = text[:end] + text[at:]
    return text


@each_extent
def test_an_index_with_changed_bytes_causes_only_documented_errors(
    victim: Victim, whole: bool
) -> None:
    @fuzz(400, 20_000, whole=whole)
    @given(changes=edits)
    def try_one(changes: Any) -> None:
        with victim.renewed() as path:
            (path / "images.json").write_bytes(edited(victim.index, changes))
            victim.use()

    try_one()


hostile = st.one_of(
    strategies.json_values,
    st.sampled_from(
        [
            "../outside/file",
            "..",
            ".",
            "",
            "/",
            "images.json",
            "images.lock",
            ".new-images.json",
            ONE,
            TWO,
            "manifest",
            "x" * 300,
            "\0",
            "sha256:" + "a" * 64,
            "sha256:short",
            "0001-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "2024-13-01T00:00:00Z",
        ]
    ),
    st.lists(st.sampled_from(["../../outside/file", "manifest", "a", ""]), max_size=3),
    st.dictionaries(
        st.sampled_from(["manifest", "../x", ""]), st.integers() | st.sampled_from(["sha256:", ""])
    ),
    st.sampled_from([2**63, -(2**63) - 1, 1.5, -1, 2**70]),
)
fields = st.sampled_from(
    [
        "id",
        "digest",
        "names",
        "names-history",
        "layer",
        "mapped-layers",
        "metadata",
        "created",
        "big-data-names",
        "big-data-sizes",
        "big-data-digests",
        "flags",
        "Id",
        "unknown",
    ]
)


@each_extent
def test_an_index_with_changed_fields_causes_only_documented_errors(
    victim: Victim, whole: bool
) -> None:
    @fuzz(150, 10_000, whole=whole)
    @given(changes=st.lists(st.tuples(st.integers(0, 2), fields, hostile), min_size=1, max_size=4))
    @example(changes=[(0, "big-data-names", ["../../outside/file"])])
    @example(changes=[(0, "id", "../outside/directory")])
    def try_one(changes: Any) -> None:
        records = json.loads(victim.index)
        for number, name, value in changes:
            records[number][name] = value
        with victim.renewed() as path:
            (path / "images.json").write_text(json.dumps(records), encoding="utf-8")
            victim.use()

    try_one()


@each_extent
def test_an_index_of_arbitrary_records_causes_only_documented_errors(
    victim: Victim, whole: bool
) -> None:
    @fuzz(100, 5_000, whole=whole)
    @given(elements=strategies.indexes())
    def try_one(elements: list[bytes]) -> None:
        with victim.renewed() as path:
            (path / "images.json").write_bytes(b"[" + b",".join(elements) + b"]")
            victim.use()

    try_one()


# The directory

_RECORD = read(b'{"id":"%b","big-data-digests":{"manifest":""}}' % ONE.encode(), 0)
assert _RECORD is not None
PENDING = pending_name(_RECORD.image, "manifest")
"""The name of pending content that no record refers to."""

places = st.sampled_from(
    [
        "images.json",
        "images.lock",
        ".new-images.json",
        PENDING,
        ".new-" + "0" * 65,
        ".stage-0",
        ONE,
        f"{ONE}/manifest",
        f"{ONE}/empty",
        f"{ONE}/=c2hhMjU2OmNvbmZpZw==",
        TWO,
        f"{TWO}/key",
        THREE,
        f"{THREE}/manifest-2",
        NEW,
        f"{NEW}/key",
        "5" * 64,
        "unknown",
        f"{ONE}/unknown",
        "HALF",
        ".tmp-x",
        f"{ONE}/.tmp-x",
    ]
)
kinds = st.sampled_from(
    [
        "nothing",
        "file",
        "empty",
        "directory",
        "full directory",
        "fifo",
        "socket",
        "sealed",
        "link to file",
        "link to directory",
        "link to itself",
        "dangling link",
        "hard link",
        "link to index",
        "link up",
    ]
)


def put(victim: Victim, name: str, kind: str) -> None:
    """Put something else in the place of a file or directory."""
    pending = sorted(n for n in os.listdir(victim.path) if n.startswith(".new-"))
    path = victim.path / (pending[-1] if name == "HALF" and pending else name)
    if not path.parent.is_dir() or path.parent.is_symlink():
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    match kind:
        case "file" | "sealed":
            path.write_bytes(b"anything")
            path.chmod(0o600 if kind == "file" else 0)
        case "empty":
            path.write_bytes(b"")
        case "directory" | "full directory":
            path.mkdir()
            if kind == "full directory":
                (path / "below").mkdir()
                (path / "below" / "precious").write_bytes(b"precious")
        case "fifo":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case "hard link":
            os.link(victim.path.parent / "template" / ONE / "manifest", path)
        case "link to itself":
            path.symlink_to(path.name)
        case "link to file" | "link to directory" | "link to index" | "dangling link" | "link up":
            target = {"dangling link": "missing", "link up": "."}.get(
                kind, kind.removeprefix("link to ")
            )
            path.symlink_to(victim.outside / target)


@each_extent
def test_a_directory_with_changed_files_causes_only_documented_errors(
    victim: Victim, whole: bool
) -> None:
    @fuzz(250, 15_000, whole=whole)
    @given(changes=st.lists(st.tuples(places, kinds), min_size=1, max_size=4))
    @example(changes=[("images.lock", "fifo")])
    @example(changes=[(ONE, "link to directory")])
    def try_one(changes: list[tuple[str, str]]) -> None:
        with victim.renewed():
            for name, kind in changes:
                put(victim, name, kind)
            victim.use()

    try_one()
