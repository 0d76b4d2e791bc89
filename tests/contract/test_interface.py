"""What stores and transactions have in common: methods, checks of types, errors, and causes."""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from aimagestore import (
    BigDataMissingError,
    DigestUnknownError,
    DuplicateIDError,
    ImageStore,
    ImageUnknownError,
    LockTimeoutError,
    PrunePolicy,
    Report,
    SizeUnknownError,
    StoreClosedError,
    Transaction,
    check,
    copy_images,
    repair,
)
from aimagestore._async.store import core_of
from aimagestore.oci import export_images

from ..support.layouts import digest_of
from ..support.sources import CONTENT, DIGEST
from ..support.stores import StoreUnderTest

Either: TypeAlias = ImageStore | Transaction
Call = Callable[[Any], Awaitable[object]]

SHARED = (
    "get", "lookup", "exists", "images", "by_digest", "metadata", "set_metadata", "create",
    "set_names", "add_names", "remove_names", "delete", "wipe", "set_flag", "clear_flag",
    "big_data", "set_big_data", "big_data_names", "big_data_size", "big_data_digest",
)  # fmt: skip


def test_the_methods_of_stores_and_transactions_are_the_same_functions() -> None:
    for name in SHARED:
        function = getattr(ImageStore, name)
        assert getattr(Transaction, name) is function, name
        assert inspect.iscoroutinefunction(function), name
        assert inspect.signature(getattr(Transaction, name)) == inspect.signature(function)
        assert function.__doc__, name
        assert getattr(Transaction, name).__doc__ == function.__doc__


def test_a_transaction_has_no_other_public_methods() -> None:
    public = {name for name in dir(Transaction) if not name.startswith("_")}
    assert public == set(SHARED)


async def test_every_method_works_in_a_transaction(store: ImageStore) -> None:
    await store.create("old", names=["o"], flags={"f": 1}, big_data={"k": b"old"})
    async with store.transaction() as tx:
        created = await tx.create("new", names=["n"], digest=DIGEST, big_data={"manifest": b"{}"})
        assert await tx.get("n") == created
        assert await tx.lookup("ne") == "new"
        assert await tx.exists("new")
        assert not await tx.exists("nobody")
        assert [image.id for image in await tx.images()] == ["old", "new"]
        assert [image.id for image in await tx.by_digest(DIGEST)] == ["new"]
        assert (await tx.set_metadata("n", "text")).metadata == "text"
        assert await tx.metadata("new") == "text"
        assert (await tx.set_names("new", ["a", "b"])).names == ("a", "b")
        assert (await tx.add_names("new", ["c", "o"])).names == ("c", "o", "a", "b")
        assert (await tx.get("old")).names == ()
        assert (await tx.remove_names("new", ["a"])).names == ("c", "o", "b")
        assert (await tx.set_flag("old", "g", [1])).flags == {"f": 1, "g": [1]}
        assert (await tx.clear_flag("old", "f")).flags == {"g": [1]}
        assert await tx.big_data("new", "manifest") == b"{}"
        assert await tx.big_data("old", "k") == b"old"
        changed = await tx.set_big_data("old", "k", b"new", expected_digest=digest_of(b"new"))
        assert changed.big_data_sizes == {"k": 3}
        assert await tx.big_data("old", "k") == b"new"
        await tx.set_big_data("old", "large", CONTENT, expected_size=len(CONTENT))
        assert await tx.big_data("old", "large") == CONTENT
        assert await tx.big_data_names("old") == ["k", "large"]
        assert await tx.big_data_size("old", "large") == len(CONTENT)
        assert await tx.big_data_digest("old", "large") == DIGEST
        await tx.create("short-lived", big_data={"k": b"data"})
        await tx.delete("short-lived")
        with pytest.raises(ImageUnknownError):
            await tx.big_data("short-lived", "k")
        assert await store.big_data("old", "k") == b"old"
        assert not await store.exists("new")
    assert [image.id for image in await store.images()] == ["old", "new"]
    assert await store.big_data("old", "large") == CONTENT
    async with store.transaction() as tx:
        await tx.wipe()
        assert await tx.images() == []
    assert await store.images() == []


async def test_an_unmeasured_item_is_measured_in_a_transaction(
    where: StoreUnderTest,
) -> None:
    async with ImageStore(where.location) as store:
        await store.create("image", big_data={"key": CONTENT})
    where.remove_measures("image")
    async with ImageStore(where.location) as store:
        async with store.transaction() as tx:
            reported: list[tuple[int, int | None]] = []
            size = await tx.big_data_size(
                "image", "key", progress=lambda *figures: reported.append(figures)
            )
            assert size == len(CONTENT)
            assert reported[-1] == (len(CONTENT), len(CONTENT))
            assert await tx.big_data_digest("image", "key") == DIGEST
        assert (await store.get("image")).big_data_digests == {"key": DIGEST}


async def test_the_methods_of_a_transaction_that_is_over_raise(store: ImageStore) -> None:
    await store.create("one", big_data={"k": b"data"})
    async with store.transaction() as tx:
        pass
    for call in REFS:
        with pytest.raises(StoreClosedError):
            await call(tx, "one")
    for other in (tx.images(), tx.by_digest(DIGEST), tx.create(), tx.wipe()):
        with pytest.raises(StoreClosedError):
            await other


# Wrong types

REFS: list[Callable[[Either, Any], Awaitable[object]]] = [
    lambda s, ref: s.get(ref),
    lambda s, ref: s.lookup(ref),
    lambda s, ref: s.exists(ref),
    lambda s, ref: s.metadata(ref),
    lambda s, ref: s.set_metadata(ref, ""),
    lambda s, ref: s.set_names(ref, []),
    lambda s, ref: s.add_names(ref, []),
    lambda s, ref: s.remove_names(ref, []),
    lambda s, ref: s.set_flag(ref, "f", 1),
    lambda s, ref: s.clear_flag(ref, "f"),
    lambda s, ref: s.big_data(ref, "k"),
    lambda s, ref: s.set_big_data(ref, "k", b""),
    lambda s, ref: s.big_data_names(ref),
    lambda s, ref: s.big_data_size(ref, "k"),
    lambda s, ref: s.big_data_digest(ref, "k"),
    lambda s, ref: s.delete(ref),
]

WRONG: list[tuple[str, Call]] = [
    ("str", lambda s: s.create(created="2020-01-01")),
    ("int", lambda s: s.create(created=5)),
    ("int", lambda s: s.create(5)),
    ("str", lambda s: s.create(names="name")),
    ("bytes", lambda s: s.create(names=b"name")),
    ("NoneType", lambda s: s.create(names=None)),
    ("int", lambda s: s.create(names=5)),
    ("int", lambda s: s.create(names=["fine", 1])),
    ("NoneType", lambda s: s.create(top_layer=None)),
    ("bytes", lambda s: s.create(metadata=b"m")),
    ("bytes", lambda s: s.create(digest=b"x")),
    ("list", lambda s: s.create(flags=["f"])),
    ("int", lambda s: s.create(flags={1: 1})),
    ("list", lambda s: s.create(big_data=[b"x"])),
    ("int", lambda s: s.create(big_data={1: b"x"})),
    ("str", lambda s: s.create(big_data={"k": "text"})),
    ("NoneType", lambda s: s.create(big_data={"k": None})),
    ("str", lambda s: s.set_names("one", "name")),
    ("str", lambda s: s.add_names("one", "name")),
    ("str", lambda s: s.remove_names("one", "name")),
    ("NoneType", lambda s: s.set_names("one", ["fine", None])),
    ("int", lambda s: s.set_metadata("one", 5)),
    ("int", lambda s: s.set_flag("one", 1, 1)),
    ("object", lambda s: s.set_flag("one", "f", object())),
    ("set", lambda s: s.set_flag("one", "f", [{1}])),
    ("NoneType", lambda s: s.clear_flag("one", None)),
    ("int", lambda s: s.big_data("one", 5)),
    ("int", lambda s: s.set_big_data("one", 5, b"x")),
    ("str", lambda s: s.set_big_data("one", "k", "text")),
    ("int", lambda s: s.set_big_data("one", "k", 5)),
    ("bytes", lambda s: s.set_big_data("one", "k", b"x", expected_digest=b"d")),
    ("str", lambda s: s.set_big_data("one", "k", b"x", expected_size="1")),
    ("float", lambda s: s.set_big_data("one", "k", b"x", expected_size=1.0)),
    ("int", lambda s: s.set_big_data("one", "k", b"x", progress=5)),
    ("NoneType", lambda s: s.big_data_size("one", None)),
    ("NoneType", lambda s: s.big_data_digest("one", None)),
    ("NoneType", lambda s: s.by_digest(None)),
    ("str", lambda s: s.delete("one", force="no")),
]


async def _open_by_image(store: ImageStore) -> None:
    async with store.open_big_data(await store.get("one"), "k"):  # type: ignore[arg-type]
        pass


def _reading(method: str, argument: object) -> Call:
    async def call(store: ImageStore) -> None:
        async with store.open_big_data("one", "k") as reader:
            await getattr(reader, method)(argument)

    return call


WRONG_FOR_STORES: list[tuple[str, Call]] = [
    ("Image", _open_by_image),
    ("int", lambda s: s.open_big_data("one", 5).__aenter__()),
    ("str", lambda s: s.open_big_data("one", "k", start="0").__aenter__()),
    ("float", lambda s: s.open_big_data("one", "k", end=1.5).__aenter__()),
    ("str", lambda s: s.open_big_data("one", "k", verify="no").__aenter__()),
    *[("float", _reading(method, 1.5)) for method in ("read", "receive", "seek")],
    *[("str", _reading(method, "1")) for method in ("read", "receive", "seek")],
    ("str", lambda s: anext(aiter(s.iter_images(page_size="10")))),
    ("str", lambda s: s.touched_since("2020-01-01")),
    ("int", lambda s: s.stage(5).__aenter__()),
    ("str", lambda s: s.set_big_data("one", "k", [b"fine", "text"])),
    ("NoneType", lambda s: s.collect_garbage(dry_run=None)),
    ("str", lambda s: s.prune(PrunePolicy(), dry_run="no")),
    ("dict", lambda s: s.prune({})),
    ("NoneType", lambda s: copy_images(s, None)),  # type: ignore[arg-type]
    ("str", lambda s: copy_images("store", s)),  # type: ignore[arg-type]
    ("NoneType", lambda _: check(None)),  # type: ignore[arg-type]
    ("str", lambda _: check("path", verify="no")),  # type: ignore[arg-type]
    ("str", lambda _: check("path", lock_timeout="1")),  # type: ignore[arg-type]
    ("bool", lambda _: check("path", lock_timeout=True)),
    ("NoneType", lambda _: repair("path", None)),  # type: ignore[arg-type]
    ("NoneType", lambda _: repair("path", Report(), drop=None)),  # type: ignore[arg-type]
    ("str", lambda _: repair("path", Report(), lock_timeout="1")),  # type: ignore[arg-type]
]


def says(kind: str) -> str:
    """Match a message that names a type."""
    return rf"\b{kind}\b"


async def test_a_ref_of_another_type_is_a_type_error_that_names_it(store: ImageStore) -> None:
    image = await store.create("one", big_data={"k": b"data"})
    for ref, kind in ((image, "Image"), (5, "int"), (None, "NoneType"), (b"one", "bytes")):
        for call in REFS:
            with pytest.raises(TypeError, match=says(kind)):
                await call(store, ref)
        async with store.transaction() as tx:
            for call in REFS:
                with pytest.raises(TypeError, match=says(kind)):
                    await call(tx, ref)
    assert await store.images() == [image]


async def test_an_argument_of_another_type_is_a_type_error_that_names_it(
    store: ImageStore, where: StoreUnderTest
) -> None:
    await store.create("one", big_data={"k": b"data"})
    before = where.contents()
    for kind, call in WRONG:
        with pytest.raises(TypeError, match=says(kind)):
            await call(store)
        async with store.transaction() as tx:
            with pytest.raises(TypeError, match=says(kind)):
                await call(tx)
    assert where.contents() == before


async def test_an_argument_of_a_stores_own_methods_is_checked_too(store: ImageStore) -> None:
    await store.create("one", big_data={"k": b"data"})
    for kind, call in WRONG_FOR_STORES:
        with pytest.raises(TypeError, match=says(kind)):
            await call(store)


@pytest.mark.parametrize(
    ("kind", "arguments", "options"),
    [
        ("NoneType", (None,), {}),
        ("int", (5,), {}),
        ("bytes", (b"/path",), {}),
        ("list", (["path"],), {}),
        ("str", ("path",), {"lock_timeout": "1"}),
        ("bool", ("path",), {"lock_timeout": True}),
        ("str", ("path",), {"read_only": "no"}),
    ],
)
def test_an_invalid_location_is_a_type_error_that_names_it(
    kind: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match=says(kind)):
        ImageStore(*arguments, **options)


@pytest.mark.parametrize("timeout", [-1, -0.5, math.nan, 10**400])
async def test_a_timeout_that_is_no_number_of_seconds_is_refused(
    tmp_path: Path, timeout: float
) -> None:
    with pytest.raises(ValueError, match="lock_timeout"):
        ImageStore(tmp_path, lock_timeout=timeout)
    for call in (
        check(tmp_path, lock_timeout=timeout),
        repair(tmp_path, Report(), lock_timeout=timeout),
    ):
        with pytest.raises(ValueError, match="lock_timeout"):
            await call


async def test_the_message_about_a_type_is_english(store: ImageStore) -> None:
    with pytest.raises(TypeError, match=r"^page_size must be an int, not str$"):
        await anext(aiter(store.iter_images(page_size="10")))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^source must be an ImageStore, not str$"):
        await copy_images("store", store)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^force must be a bool, not int$"):
        await store.delete("one", force=1)  # type: ignore[arg-type]


def test_a_path_that_no_directory_can_have_is_refused() -> None:
    for path in ("", "images\0"):
        with pytest.raises(ValueError, match="path"):
            ImageStore(path)


async def test_a_text_in_place_of_several_is_refused_by_the_name_of_the_parameter(
    store: ImageStore, tmp_path: Path
) -> None:
    async with ImageStore(tmp_path / "copy" / "store") as other:
        with pytest.raises(TypeError, match=r"^refs must"):
            await copy_images(store, other, "one")
        with pytest.raises(TypeError, match=r"^an element of refs must"):
            await copy_images(store, other, ["one", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^refs must"):
        await export_images(store, "one", tmp_path / "layout")
    with pytest.raises(TypeError, match=r"^keep_names must"):
        PrunePolicy(keep_names="*:latest")
    with pytest.raises(TypeError, match=r"^names must"):
        await store.create(names="one")


class Undecided(tzinfo):
    """A time zone that does not know its offset: a time in it is naive."""

    def utcoffset(self, moment: datetime | None) -> None:
        return None

    tzname = dst = utcoffset


async def test_a_time_without_an_offset_is_refused(store: ImageStore) -> None:
    for zone in (None, Undecided()):
        moment = datetime(2024, 1, 1, tzinfo=zone)
        for call in (store.touched_since(moment), store.create(created=moment)):
            with pytest.raises(ValueError, match="aware"):
                await call


# Errors

MISSING: dict[str, Call] = {
    "big_data": lambda s: s.big_data("image", "key"),
    "open_big_data": lambda s: s.open_big_data("image", "key").__aenter__(),
    "verified": lambda s: s.open_big_data("image", "key", verify=True).__aenter__(),
    "a range": lambda s: s.open_big_data("image", "key", start=1, end=2).__aenter__(),
}


@pytest.mark.damage
async def test_missing_content_is_the_same_error_in_every_call(
    store: ImageStore, where: StoreUnderTest, tmp_path: Path
) -> None:
    await store.create("image", big_data={"key": b"data"})
    await anyio.to_thread.run_sync(where.remove_content, "image", "key")

    async def in_transaction(s: ImageStore) -> None:
        async with s.transaction() as tx:
            await tx.big_data("image", "key")

    async def copy(s: ImageStore) -> None:
        async with ImageStore(tmp_path / "copy" / "store") as other:
            await copy_images(s, other)

    for name, call in {**MISSING, "transaction": in_transaction, "copy": copy}.items():
        with pytest.raises(BigDataMissingError, match="'key'") as caught:
            await call(store)
        error = caught.value
        assert (error.id, error.key) == ("image", "key"), name
        assert isinstance(error, FileNotFoundError)
        assert error.filename == error.path
        assert error.__cause__ is not None, name
        assert "image" in str(error)


@pytest.mark.damage
async def test_missing_unmeasured_content_has_an_unknown_size_and_digest(
    where: StoreUnderTest,
) -> None:
    async with ImageStore(where.location) as store:
        await store.create("image", big_data={"key": b"data"})
    where.remove_measures("image")
    await anyio.to_thread.run_sync(where.remove_content, "image", "key")
    async with ImageStore(where.location) as store:
        for call, error in (
            (store.big_data_size, SizeUnknownError),
            (store.big_data_digest, DigestUnknownError),
        ):
            with pytest.raises(error) as caught:
                await call("image", "key")
            assert isinstance(caught.value.__cause__, BigDataMissingError)


async def test_staged_data_of_another_store_is_refused_and_stays_usable(
    store: ImageStore, where: StoreUnderTest, tmp_path: Path
) -> None:
    await store.create("one")
    async with (
        ImageStore(where.location) as same_place,
        ImageStore(tmp_path / "other" / "store") as elsewhere,
    ):
        for other in (same_place, elsewhere):
            async with other.stage(b"data") as staged:
                calls: list[Callable[[], Awaitable[object]]] = [
                    partial(store.create, big_data={"k": staged}),
                    partial(store.set_big_data, "one", "k", staged),
                ]
                for call in calls:
                    with pytest.raises(ValueError, match="the store that staged it"):
                        await call()
                async with store.transaction() as tx:
                    with pytest.raises(ValueError, match="the store that staged it"):
                        await tx.set_big_data("one", "k", staged)
                created = await other.create(big_data={"k": staged})
                assert await other.big_data(created.id, "k") == b"data"
    assert await store.big_data_names("one") == []


async def test_each_failed_change_of_a_batch_has_an_error_of_its_own(store: ImageStore) -> None:
    await store.create("one")
    errors: list[BaseException] = []

    async def create() -> None:
        with pytest.raises(DuplicateIDError) as caught:
            await store.create("one")
        errors.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(create)
    assert len({id(error) for error in errors}) == 5
    assert {(type(e), str(e), e.id) for e in errors if isinstance(e, DuplicateIDError)} == {
        (DuplicateIDError, "an image with the ID one exists already", "one")
    }


# The lock


async def _transact(store: ImageStore) -> None:
    async with store.transaction() as tx:
        await tx.create()


CHANGES: dict[str, Callable[[ImageStore], Awaitable[object]]] = {
    "create": lambda s: s.create(),
    "set_flag": lambda s: s.set_flag("one", "f", 1),
    "touch": lambda s: s.touch(),
    "transaction": _transact,
    "collect_garbage": lambda s: s.collect_garbage(),
}


async def test_with_a_timeout_of_zero_the_lock_is_tried_once(where: StoreUnderTest) -> None:
    async with ImageStore(where.location, lock_timeout=0) as store:
        await store.create("one")
        for name, change in CHANGES.items():
            await change(store)
            with where.locked():
                with pytest.raises(LockTimeoutError) as caught:
                    await change(store)
                assert not await anyio.to_thread.run_sync(where.is_requested), name
            assert "within 0 s" in str(caught.value), name
            await change(store)


# Pages and ranges


async def test_an_iteration_loads_each_page_only_when_it_needs_it(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store.transaction() as tx:
        for number in range(25):
            await tx.create(f"id{number:02}")
    loaded: list[int] = []
    reader = core_of(store).engine.reader
    real_pages = reader.pages

    def pages(size: int) -> Any:
        for page in real_pages(size):
            loaded.append(len(page))
            yield page

    monkeypatch.setattr(reader, "pages", pages)
    seen = []
    async for image in store.iter_images(page_size=10):
        seen.append(image.id)
        assert sum(loaded) - len(seen) < 10
    assert loaded == [10, 10, 5]
    assert seen == [image.id for image in await store.images()]


async def test_an_iteration_yields_no_image_twice_during_changes(
    store: ImageStore,
) -> None:
    for number in range(12):
        await store.create(f"id{number:02}")
    seen: list[str] = []
    async for image in store.iter_images(page_size=3):
        seen.append(image.id)
        await store.delete(image.id)
        await store.create(image.id)
        await store.create(f"new{len(seen)}")
        if len(seen) == 200:
            break
    assert len(set(seen)) == len(seen)
    assert [i for i in seen if i.startswith("id")] == [f"id{number:02}" for number in range(12)]


async def test_an_iteration_refuses_a_page_size_below_one(store: ImageStore) -> None:
    for size in (0, -1):
        with pytest.raises(ValueError, match="page_size"):
            await anext(aiter(store.iter_images(page_size=size)))
    assert [image async for image in store.iter_images()] == []


RANGES = [(0, None), (0, 0), (5, 5), (0, 1), (1, 3), (10, 1_500_000), (2_000_000, None)]


async def test_a_range_of_an_item_is_read(store: ImageStore) -> None:
    await store.create("image", big_data={"key": CONTENT})
    for start, end in (*RANGES, (0, 10**10), (len(CONTENT), None), (10**10, 10**11)):
        expected = CONTENT[start:end]
        async with store.open_big_data("image", "key", start=start, end=end) as reader:
            assert reader.size == len(CONTENT)
            assert b"".join([chunk async for chunk in reader]) == expected, (start, end)
        async with store.open_big_data("image", "key", start=start, end=end) as reader:
            assert await reader.read(7) == expected[:7]
            assert await reader.read() == expected[7:]
            assert await reader.read() == b""


async def test_a_position_after_the_end_is_taken_and_nothing_is_read_there(
    store: ImageStore,
) -> None:
    await store.create("image", big_data={"key": b"data"})
    async with store.open_big_data("image", "key") as reader:
        for position in (4, 5, 10**7, 2**50, 2**63, 10**30):
            assert await reader.seek(position) == position
            assert await reader.read() == b""
            assert await reader.seek(1) == 1
            assert await reader.read(2) == b"at"


async def test_an_invalid_range_is_refused(store: ImageStore) -> None:
    await store.create("image", big_data={"key": b"data"})
    for start, end in ((-1, None), (3, 2), (0, -1)):
        with pytest.raises(ValueError, match="start and end"):
            async with store.open_big_data("image", "key", start=start, end=end):
                pass
    for options in ({"start": 1}, {"end": 2}):
        with pytest.raises(ValueError, match="verified"):
            async with store.open_big_data("image", "key", verify=True, **options):
                pass


# Progress


async def test_progress_has_no_total_if_the_size_is_unknown(store: ImageStore) -> None:
    await store.create("image")
    reported: list[tuple[int, int | None]] = []

    def report(done: int, total: int | None) -> None:
        reported.append((done, total))

    async def pieces() -> AsyncIterator[bytes]:
        yield CONTENT
        yield CONTENT

    await store.set_big_data("image", "key", pieces(), progress=report)
    assert reported[-1] == (2 * len(CONTENT), None)
    assert {total for _, total in reported} == {None}
    assert [done for done, _ in reported] == sorted({done for done, _ in reported})
    reported.clear()
    async with store.stage(pieces(), expected_size=2 * len(CONTENT), progress=report):
        assert reported[-1:] == [(2 * len(CONTENT), 2 * len(CONTENT))]
    reported.clear()
    await store.set_big_data("image", "nothing", [], progress=report)
    assert reported == [(0, None)]


async def test_staged_data_counts_as_done(store: ImageStore) -> None:
    await store.create("image")
    reported: list[tuple[int, int | None]] = []

    def report(done: int, total: int | None) -> None:
        reported.append((done, total))

    async with store.stage(CONTENT) as staged:
        await store.set_big_data("image", "key", staged, progress=report)
    async with store.stage(CONTENT) as staged, store.transaction() as tx:
        await tx.set_big_data("image", "other", staged, progress=report)
    assert reported == [(len(CONTENT), len(CONTENT))] * 2


async def test_an_error_in_progress_ends_a_call_without_changes(
    store: ImageStore, where: StoreUnderTest
) -> None:
    await store.create("image")
    before = where.contents()

    def refuse(*_: object) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        await store.set_big_data("image", "key", CONTENT, progress=refuse)
    async with store.transaction() as tx:
        with pytest.raises(LookupError, match="enough"):
            await tx.set_big_data("image", "key", b"data", progress=refuse)
    assert await store.big_data_names("image") == []
    assert where.contents() == before


async def test_a_time_is_kept_to_the_microsecond(store: ImageStore) -> None:
    moment = datetime(2020, 1, 2, 3, 4, 5, 678901, UTC)
    assert (await store.create("one", created=moment)).created == moment
