"""The space that images use, and pruning images by a policy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from aimagestore import (
    Image,
    ImageStore,
    PrunePolicy,
    PruneResult,
    StoreReadOnlyError,
)
from aimagestore._async import pruning
from aimagestore._async.store import core_of
from aimagestore._core.pruning import Candidate
from aimagestore._engine.protocol import Feed

from ..support.stores import StoreUnderTest, until

NOW = datetime.now(UTC)
DATA = b"d" * 10_000
ALL = PrunePolicy(unnamed=False)


@pytest.fixture
async def filled(store: ImageStore) -> ImageStore:
    """A store with images of several repositories and ages."""
    for number in range(3):
        await store.create(
            f"app{number}",
            names=[f"localhost/app:{number}"],
            created=NOW - timedelta(days=10 - number),
            big_data={"k": b"%d" % number + DATA},
        )
    await store.create("old", created=NOW - timedelta(days=30), big_data={"k": DATA, "l": b"x"})
    await store.create("new", created=NOW, big_data={"k": b"new"})
    return store


def before_deletion(monkeypatch: pytest.MonkeyPatch, do: Any) -> None:
    """Await ``do`` once, between the plan and the first commit."""
    delete = pruning.Pruning._delete
    done: list[bool] = []

    async def delete_after(
        self: pruning.Pruning, candidates: Sequence[Candidate], feed: Feed
    ) -> None:
        if not done:
            done.append(True)
            await do()
        await delete(self, candidates, feed)

    monkeypatch.setattr(pruning.Pruning, "_delete", delete_after)


async def pruned(store: ImageStore, policy: PrunePolicy) -> list[str]:
    """Prune, check the result against a dry run and the store, and return the pruned IDs."""
    forecast = await store.prune(policy, dry_run=True)
    before = await store.images()
    total = (await store.usage()).total
    result = await store.prune(policy)
    assert result == forecast
    deleted = [image for image in before if not await store.exists(image.id)]
    assert list(result.images) == deleted
    assert result.kept.keys() == {image.id for image in before} - {image.id for image in deleted}
    assert (await store.usage()).total <= total
    return [image.id for image in deleted]


async def test_an_empty_store_uses_no_space_for_images(store: ImageStore) -> None:
    usage = await store.usage()
    assert dict(usage.images) == {}
    assert usage.reclaimable == 0


async def test_usage_counts_each_image_and_the_whole_store(filled: ImageStore) -> None:
    await filled.create("bare")
    usage = await filled.usage()
    assert list(usage.images) == [image.id for image in await filled.images()]
    for image in await filled.images():
        each = usage.images[image.id]
        assert each.size == each.unique_size + each.shared_size
        assert each.size >= image.size
        assert each.containers == ()
        assert each.layers_size == 0
    assert usage.total >= usage.reclaimable >= sum(i.size for i in await filled.images())


async def test_shared_content_belongs_to_no_single_image(store: ImageStore) -> None:
    shared = 10 * DATA
    for name in ("one", "two", "three"):
        await store.create(name, big_data={"shared": shared, "own": name.encode()})
    before = await store.usage()
    assert before.images["one"].shared_size >= len(shared)
    assert before.images["one"].unique_size < len(shared)
    assert before.total < 2 * len(shared) + 12 * 4096  # directories, and the files of each
    policy = PrunePolicy(filter=lambda image: image.id != "three")
    assert (await store.prune(policy, dry_run=True)).freed < len(shared)
    result = await store.prune(policy)
    assert result.freed == before.images["one"].unique_size + before.images["two"].unique_size
    after = await store.usage()
    assert after.images["three"].unique_size >= len(shared)
    assert (await store.prune(PrunePolicy())).freed == after.images["three"].size


async def test_usage_is_measured_beside_writers(where: StoreUnderTest, filled: ImageStore) -> None:
    async def write(tag: int) -> None:
        for number in range(10):
            await filled.create(f"{tag}-{number}", big_data={"k": DATA})
            await filled.delete(f"{tag}-{number}")

    async with ImageStore(where.location) as other, anyio.create_task_group() as tasks:
        tasks.start_soon(write, 1)
        for _ in range(10):
            assert (await other.usage()).images["old"].size >= len(DATA)


async def test_by_default_images_without_names_are_pruned(filled: ImageStore) -> None:
    result = await filled.prune(PrunePolicy(), dry_run=True)
    assert result.kept == dict.fromkeys(["app0", "app1", "app2"], "it has names")
    assert await pruned(filled, PrunePolicy()) == ["old", "new"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (PrunePolicy(unnamed=False), ["app0", "app1", "app2", "old", "new"]),
        (PrunePolicy(older_than=timedelta(days=1)), ["old"]),
        (PrunePolicy(unnamed=False, older_than=timedelta(days=9, hours=1)), ["app0", "old"]),
        (PrunePolicy(unnamed=False, keep_last=2), ["app0", "old", "new"]),
        (PrunePolicy(unnamed=False, keep_names=["*:1", "other"]), ["app0", "app2", "old", "new"]),
        (PrunePolicy(filter=lambda image: image.size > 10), ["old"]),
        (PrunePolicy(unnamed=False, keep_last=1, keep_names=["*:0"], older_than=timedelta(1)),
         ["app1", "old"]),
    ],
)  # fmt: skip
async def test_an_image_is_pruned_when_every_condition_says_so(
    filled: ImageStore, policy: PrunePolicy, expected: list[str]
) -> None:
    assert await pruned(filled, policy) == expected


async def test_an_image_with_the_flag_is_kept_whatever_its_value(filled: ImageStore) -> None:
    await filled.set_flag("old", "aimagestore.keep", False)
    await filled.set_flag("new", "mine", 1)
    result = await filled.prune(PrunePolicy(), dry_run=True)
    assert result.kept["old"] == "it has the flag aimagestore.keep"
    assert await pruned(filled, PrunePolicy(keep_flag="mine")) == ["old"]
    assert await pruned(filled, PrunePolicy(keep_flag=None)) == ["new"]


async def test_an_image_of_several_names_is_kept_by_one_of_them(filled: ImageStore) -> None:
    await filled.add_names("app0", ["localhost/other:1"])
    assert await pruned(filled, PrunePolicy(unnamed=False, keep_last=1)) == ["app1", "old", "new"]
    assert await pruned(filled, PrunePolicy(unnamed=False, keep_names=["*other*"])) == ["app2"]


def index_of(*images: Image) -> dict[str, bytes]:
    """Return the items of an image index that names images."""
    listed = b",".join(b'{"digest":"%s"}' % image.digest.encode() for image in images)
    media_type = b'"mediaType":"application/vnd.oci.image.index.v1+json"'
    index = b'{"schemaVersion":2,%s,"manifests":[%s]}' % (media_type, listed)
    return {"manifest": index, "instances.json": b"{}"}


async def test_an_instance_of_an_image_index_is_kept(filled: ImageStore) -> None:
    image = await filled.set_big_data("old", "manifest", b"{}")
    await filled.create("list", names=["localhost/list:1"], big_data=index_of(image))
    result = await filled.prune(PrunePolicy(), dry_run=True)
    assert result.kept["old"] == "the image index list names it"
    assert await pruned(filled, PrunePolicy()) == ["new"]


async def test_an_image_that_an_image_index_names_meanwhile_is_kept(
    where: StoreUnderTest, filled: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is there before it is looked for, or changes between that and the deletion."""
    await filled.create("list", names=["localhost/list:1"], big_data=index_of())
    images = [await filled.set_big_data(i, "manifest", i.encode()) for i in ("old", "new")]
    read = pruning.Pruning._read_indexes
    has_read, has_changed = threading.Event(), threading.Event()

    def read_and_wait(self: pruning.Pruning, feed: Feed, check: Callable[[], object]) -> None:
        read(self, feed, check)
        has_read.set()
        assert has_changed.wait(60)

    monkeypatch.setattr(pruning.Pruning, "_read_indexes", read_and_wait)

    async def create() -> None:
        await filled.create("more", names=["localhost/more:1"], big_data=index_of(images[0]))

    before_deletion(monkeypatch, create)
    async with ImageStore(where.location) as other, anyio.create_task_group() as tasks:

        async def change() -> None:
            await until(has_read.is_set)
            await other.set_big_data("list", "manifest", index_of(images[1])["manifest"])
            has_changed.set()

        tasks.start_soon(change)
        result = await filled.prune(PrunePolicy())
    assert result.images == ()
    assert result.kept["old"] == "the image index more names it"
    assert result.kept["new"] == "the image index list names it"
    assert await filled.exists("old")
    assert await filled.exists("new")


async def test_a_name_or_a_flag_given_meanwhile_keeps_an_image(
    filled: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change() -> None:
        await filled.add_names("old", ["localhost/wanted:1"])
        await filled.set_flag("new", "aimagestore.keep", True)

    before_deletion(monkeypatch, change)
    result = await filled.prune(PrunePolicy())
    assert result.images == ()
    assert result.freed == 0
    assert "changed meanwhile" in result.kept["old"]
    assert "changed meanwhile" in result.kept["new"]
    assert len(await filled.images()) == 5


async def test_an_image_deleted_meanwhile_is_neither_pruned_nor_kept(
    filled: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_deletion(monkeypatch, lambda: filled.delete("old"))
    result = await filled.prune(PrunePolicy())
    assert [image.id for image in result.images] == ["new"]
    assert "old" not in result.kept


async def test_the_newest_of_a_repository_stay_even_if_others_delete_newer_ones_meanwhile(
    filled: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_deletion(monkeypatch, lambda: filled.delete("app2"))
    result = await filled.prune(PrunePolicy(unnamed=False, keep_last=1))
    assert [image.id for image in result.images] == ["old", "new"]
    assert {"app0", "app1"} <= result.kept.keys()


async def test_the_newest_stay_even_if_their_names_move_meanwhile(
    filled: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_deletion(monkeypatch, lambda: filled.set_names("app2", ["localhost/renamed:1"]))
    result = await filled.prune(PrunePolicy(unnamed=False, keep_last=1))
    assert [image.id for image in result.images] == ["old", "new"]


async def test_other_writers_get_the_lock_between_batches(
    where: StoreUnderTest, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_AT_ONCE", 5)
    await store.create("kept", names=["localhost/kept:1"])
    async with store.transaction() as tx:
        for number in range(20):
            await tx.create(f"image{number}")
    left: list[int] = []
    delete = pruning.Pruning._delete

    async def delete_and_wait(
        self: pruning.Pruning, batch: Sequence[Candidate], feed: Feed
    ) -> None:
        await delete(self, batch, feed)
        seen = len(left)
        await until(lambda: len(left) > seen + 1)  # one may have begun before

    monkeypatch.setattr(pruning.Pruning, "_delete", delete_and_wait)

    async def write(other: ImageStore) -> None:
        while True:
            await other.set_metadata("kept", "changed")
            left.append(len(await other.images()))

    async with ImageStore(where.location) as other, anyio.create_task_group() as tasks:
        tasks.start_soon(write, other)
        result = await store.prune(PrunePolicy())
        tasks.cancel_scope.cancel()
    assert len(result.images) == 20
    assert set(left) >= {16, 11, 6}


async def test_progress_counts_images(filled: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "_AT_ONCE", 2)
    reported: list[tuple[int, int | None]] = []
    await filled.prune(ALL, progress=lambda *figures: reported.append(figures))
    assert reported == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(("images", "commits"), [(4, 4), (20, 5), (24, 6), (80, 10)])
async def test_more_images_are_pruned_in_larger_commits(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, images: int, commits: int
) -> None:
    for name, value in {"_AT_ONCE": 1, "_COMMITS": 5, "_AT_ONCE_MAX": 8}.items():
        monkeypatch.setattr(pruning, name, value)
    async with store.transaction() as tx:
        for number in range(images):
            await tx.create(f"image{number}")
    reported: list[tuple[int, int | None]] = []
    await store.prune(PrunePolicy(), progress=lambda *figures: reported.append(figures))
    assert len(reported) == commits
    assert reported[-1] == (images, images)


async def test_an_error_during_pruning_says_what_was_pruned(
    filled: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_AT_ONCE", 2)
    freed = (await filled.prune(ALL, dry_run=True)).freed

    def stop(done: int, total: int | None) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError) as caught:
        await filled.prune(ALL, progress=stop)
    result = PruneResult.of(caught.value)
    assert result is not None
    assert [image.id for image in result.images] == ["app0", "app1"]
    assert 0 < result.freed < freed
    assert caught.value.__notes__ == ["2 images had been pruned before"]
    assert [image.id for image in await filled.images()] == ["app2", "old", "new"]


async def test_a_filter_that_fails_prunes_nothing(filled: ImageStore) -> None:
    def fail(image: Image) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await filled.prune(PrunePolicy(filter=fail))
    result = PruneResult.of(caught.value)
    assert result is not None
    assert result.images == ()
    assert PruneResult.of(ValueError()) is None
    assert len(await filled.images()) == 5


async def test_an_async_filter_prunes_nothing(filled: ImageStore) -> None:
    async def keep(image: Image) -> bool:
        return False

    given: Any = keep
    for dry_run in (True, False):
        with pytest.raises(TypeError, match="filter must not be async"):
            await filled.prune(PrunePolicy(unnamed=False, filter=given), dry_run=dry_run)
    assert len(await filled.images()) == 5


async def test_a_cancelled_pruning_says_what_was_pruned(
    filled: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_AT_ONCE", 2)
    found: list[PruneResult | None] = []
    with anyio.CancelScope() as scope:
        try:
            await filled.prune(ALL, progress=lambda *_: scope.cancel())
        except BaseException as error:
            found.append(PruneResult.of(error))
            raise
    (result,) = found
    assert result is not None
    assert [image.id for image in result.images] == ["app0", "app1"]
    assert [image.id for image in await filled.images()] == ["app2", "old", "new"]


async def test_a_read_only_store_gives_a_forecast_only(
    where: StoreUnderTest, filled: ImageStore
) -> None:
    async with ImageStore(where.location, read_only=True) as reading:
        forecast = await reading.prune(PrunePolicy(), dry_run=True)
        assert [image.id for image in forecast.images] == ["old", "new"]
        assert (await reading.usage()).images["old"].size > 0
        with pytest.raises(StoreReadOnlyError):
            await reading.prune(PrunePolicy())


async def test_a_transaction_cannot_be_pruned(filled: ImageStore) -> None:
    async with filled.transaction():
        assert len((await filled.prune(PrunePolicy(), dry_run=True)).images) == 2
        with pytest.raises(RuntimeError, match="transaction"):
            await filled.prune(PrunePolicy())
    assert core_of(filled).is_open


async def test_an_invalid_policy_is_refused(store: ImageStore) -> None:
    with pytest.raises(TypeError, match="policy must be a PrunePolicy"):
        await store.prune(None)  # type: ignore[arg-type]
    for wrong in (
        {"unnamed": 1},
        {"older_than": 7},
        {"keep_last": "1"},
        {"keep_names": "a"},
        {"keep_flag": 1},
        {"filter": "x"},
    ):
        with pytest.raises(TypeError):
            PrunePolicy(**wrong)
    for odd in ({"older_than": timedelta(-1)}, {"keep_last": 0}):
        with pytest.raises(ValueError, match="must"):
            PrunePolicy(**odd)
