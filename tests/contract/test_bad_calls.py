"""Invalid calls are refused, and change nothing."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import (
    BigDataUnknownError,
    ImageStore,
    ImageUnknownError,
    InvalidBigDataNameError,
    InvalidDigestError,
    InvalidIDError,
)

from ..support.indexes import nested
from ..support.stores import StoreUnderTest

Call = Callable[[ImageStore], Awaitable[object]]


async def refused(
    store: ImageStore, where: StoreUnderTest, error: type[Exception], *calls: Call
) -> None:
    """Make calls each of which must raise, and change nothing at all."""
    if not await store.exists("one"):
        await store.create("one", names=["n"], flags={"f": 1}, big_data={"k": b"data"})
    before = where.contents()
    for number, call in enumerate(calls):
        try:
            await call(store)
        except error:
            pass
        else:
            pytest.fail(f"call {number} was not refused")
        assert where.contents() == before, f"call {number} left something"
    assert [image.id for image in await store.images()] == ["one"]


HOSTILE_IDS = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc",
    "images.json",
    "images.lock",
    ".hidden",
    ".new-images.json",
    "lost+found",
    "a\0b",
    "a" * 256,
    "é" * 128,
    "\ud800",
]


async def test_hostile_ids_are_refused(store: ImageStore, where: StoreUnderTest) -> None:
    def create(image_id: str) -> Call:
        return lambda s: s.create(image_id, big_data={"k": b"x"})

    await refused(store, where, InvalidIDError, *map(create, HOSTILE_IDS))


async def test_error_has_the_invalid_id(store: ImageStore) -> None:
    with pytest.raises(InvalidIDError) as caught:
        await store.create("../x")
    assert caught.value.id == "../x"


@pytest.mark.parametrize("image_id", [1, b"two", ["two"], Path("two")])
async def test_id_that_is_not_text_is_refused(
    store: ImageStore, where: StoreUnderTest, image_id: Any
) -> None:
    await refused(store, where, TypeError, lambda s: s.create(image_id))


async def test_hostile_refs_are_unknown(store: ImageStore, where: StoreUnderTest) -> None:
    def calls(ref: str) -> list[Call]:
        return [
            lambda s: s.delete(ref),
            lambda s: s.get(ref),
            lambda s: s.big_data(ref, "k"),
            lambda s: s.big_data_size(ref, "k"),
            lambda s: s.set_metadata(ref, "m"),
            lambda s: s.set_big_data(ref, "k", b""),
        ]

    for ref in [*HOSTILE_IDS, "one/k", "./one", "one/"]:
        await refused(store, where, ImageUnknownError, *calls(ref))
        assert not await store.exists(ref)


HOSTILE_KEYS = ["", ".", "..", "/", "a/", "a\0", "A" * 200, "AB?", "\ud800", "x\ud800", "\ud800x"]


async def test_hostile_keys_are_refused(store: ImageStore, where: StoreUnderTest) -> None:
    def calls(key: str) -> list[Call]:
        return [
            lambda s: s.set_big_data("one", key, b"x"),
            lambda s: s.create("two", big_data={"fine": b"x", key: b"x"}),
            lambda s: s.big_data("one", key),
            lambda s: s.big_data_size("one", key),
            lambda s: s.big_data_digest("one", key),
        ]

    for key in HOSTILE_KEYS:
        await refused(store, where, InvalidBigDataNameError, *calls(key))


async def test_error_has_the_invalid_key(store: ImageStore) -> None:
    with pytest.raises(InvalidBigDataNameError) as caught:
        await store.create("one", big_data={"a/": b""})
    assert caught.value.key == "a/"


async def test_keys_that_are_not_listed_are_unknown(
    store: ImageStore, where: StoreUnderTest
) -> None:
    await refused(
        store,
        where,
        BigDataUnknownError,
        lambda s: s.big_data("one", "../k"),
        lambda s: s.big_data("one", "images.json"),
        lambda s: s.big_data_digest("one", "other"),
    )


SHA256 = "sha256:" + "a" * 64


DIGESTS = ["", "x", "a" * 64, "sha256:" + "A" * 64, "md5:" + "a" * 32, SHA256 + "\n", SHA256[:-1]]


async def test_malformed_digests_are_refused(store: ImageStore, where: StoreUnderTest) -> None:
    def calls(digest: str) -> list[Call]:
        async def stage(s: ImageStore) -> None:
            async with s.stage(b"x", expected_digest=digest):
                pass

        return [
            lambda s: s.create("two", digest=digest),
            lambda s: s.set_big_data("one", "k", b"x", expected_digest=digest),
            lambda s: s.by_digest(digest),
            stage,
        ]

    for digest in (*DIGESTS, "sha256:" + "\ud800" * 64):
        await refused(store, where, InvalidDigestError, *calls(digest))


EAST = timezone(timedelta(hours=1))
WEST = timezone(-timedelta(hours=1))
TIMES = [
    datetime(2024, 1, 1),  # noqa: DTZ001
    datetime(1, 1, 1, tzinfo=EAST),
    datetime(9999, 12, 31, 23, 30, tzinfo=WEST),
]


async def test_times_that_go_cannot_read_are_refused(
    store: ImageStore, where: StoreUnderTest
) -> None:
    def create(moment: datetime) -> Call:
        return lambda s: s.create("two", created=moment, big_data={"k": b""})

    await refused(store, where, ValueError, *map(create, TIMES))


FLAGS = [
    (math.nan, ValueError),
    (math.inf, ValueError),
    ({"a": [-math.inf]}, ValueError),
    (10**400, ValueError),
    (nested(1000), ValueError),
    (nested(50_000), ValueError),
    ("\ud800", ValueError),
    ({"\udfff": 1}, ValueError),
    (["x", {"a": "\ud800"}], ValueError),
    (object(), TypeError),
    (b"bytes", TypeError),
    (bytearray(b"bytes"), TypeError),
    (memoryview(b"bytes"), TypeError),
    (iter([1]), TypeError),
    ({1, 2}, TypeError),
    (1j, TypeError),
    (datetime(2024, 1, 1, tzinfo=UTC), TypeError),
    ({1: 2}, TypeError),
    ({None: 2}, TypeError),
]


async def test_flags_that_go_cannot_read_are_refused(
    store: ImageStore, where: StoreUnderTest
) -> None:
    def calls(value: Any) -> list[Call]:
        return [
            lambda s: s.set_flag("one", "f", value),
            lambda s: s.create("two", flags={"fine": 1, "f": value}, big_data={"k": b""}),
        ]

    for value, error in FLAGS:
        await refused(store, where, error, *calls(value))


TEXTS: list[Call] = [
    lambda s: s.create("two", names=["fine", "a\ud800"]),
    lambda s: s.create("two", top_layer="\ud800"),
    lambda s: s.create("two", metadata="\ud800", big_data={"k": b"x"}),
    lambda s: s.create("two", flags={"\ud800": 1}),
    lambda s: s.set_names("one", ["\ud800"]),
    lambda s: s.add_names("one", ["\ud800"]),
    lambda s: s.remove_names("one", ["\ud800"]),
    lambda s: s.set_metadata("one", "\ud800"),
    lambda s: s.set_flag("one", "\ud800", 1),
    lambda s: s.clear_flag("one", "\ud800"),
]


async def test_lone_surrogates_are_refused(store: ImageStore, where: StoreUnderTest) -> None:
    await refused(store, where, ValueError, *TEXTS)


@pytest.mark.parametrize("ref", [5, ["one"]])
async def test_ref_that_is_not_text_fails_alone(store: ImageStore, ref: Any) -> None:
    await store.create("one")
    errors: list[Exception] = []
    locked = anyio.Event()

    async def bad() -> None:
        await locked.wait()
        with pytest.raises(TypeError) as caught:
            await store.delete(ref)
        errors.append(caught.value)

    async def good() -> None:
        await locked.wait()
        await store.create("two")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bad)
        tasks.start_soon(good)
        async with store.transaction():
            locked.set()
            await anyio.wait_all_tasks_blocked()
    assert len(errors) == 1
    assert await store.exists("two")
