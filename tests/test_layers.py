"""The layers and containers that podman keeps beside a store."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aimagestore import (
    AdditionalStore,
    Finding,
    FindingKind as Kind,
    ImageInUseError,
    ImageStore,
    ImageUnknownError,
    StoreClosedError,
    StoreCorruptError,
    check,
    podman,
    repair,
)
from aimagestore._core.layers import Layer, PodmanRecords
from aimagestore._core.record import read_images
from aimagestore._directory.beside import PodmanFiles
from aimagestore._directory.index_file import IndexFile
from aimagestore._stacked import others

from .support.beside import DIGEST, Beside, container, layer
from .support.buildah import FIXTURE, FIXTURE_ID
from .support.foreign import foreign_writer
from .support.stores import descriptors, tree

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def beside(tmp_path: Path) -> Beside:
    """A store of podman, without images, layers or containers."""
    return Beside(tmp_path / "store")


@pytest.fixture
async def store(beside: Beside) -> AsyncIterator[ImageStore]:
    """The store, open, with two images that share a layer."""
    beside.write_layers(layer("base", size=1), layer("a", "base", 20), layer("b", "base", 300))
    async with ImageStore(beside.images) as store:
        for image_id, top, name in ((ONE, "a", "one"), (TWO, "b", "two")):
            data = {"text": b"four"}
            await store.create(image_id, names=[name], top_layer=top, big_data=data, force=True)
        yield store


async def test_the_layers_of_an_image_come_from_the_lowest_up(store: ImageStore) -> None:
    now = await podman.snapshot(store)
    assert [found.id for found in now.layers_of("one")] == ["base", "a"]
    assert [found.parent for found in now.layers_of("two")] == ["", "base"]
    with pytest.raises(ImageUnknownError):
        now.layers_of("nobody")
    assert repr(now) == "<PodmanSnapshot of 2 images, 3 layers, 0 containers>"


def test_layers_in_circles_have_no_size_and_take_one_step_each() -> None:
    steps = 0

    class Layers(dict[str, Layer]):
        def get(self, key: str, default: Any = None) -> Any:
            nonlocal steps
            steps += 1
            return super().get(key, default)

    def circle(length: int, number: int) -> dict[str, Layer]:
        ids = [f"{number}-{n}" for n in range(length)]
        pairs = zip(ids, ids[1:] + ids[:1], strict=True)
        return {own: Layer(own, parent, "", 1, "", None) for own, parent in pairs}

    layers = Layers()
    for number in range(300):
        layers |= circle(1 + number % 3, number)
    podman_records = PodmanRecords(layers)
    tops = [{"id": str(n), "layer": layer_id} for n, layer_id in enumerate(layers)]
    for image in read_images(json.dumps(tops).encode()):
        assert podman_records.layers_size(image) is None
    assert steps <= 2 * len(layers)


async def test_a_layer_has_all_that_is_recorded_of_it(store: ImageStore, beside: Beside) -> None:
    compressed = {"compressed-diff-digest": DIGEST[:-1] + "e", "compressed-size": 5}
    beside.write_layers(layer("a", "base", 20, **compressed), layer("base"))
    found, _ = reversed((await podman.snapshot(store)).layers_of("one"))
    assert (found.id, found.parent) == ("a", "base")
    assert (found.diff_digest, found.diff_size) == (DIGEST, 20)
    assert (found.compressed_digest, found.compressed_size) == (DIGEST[:-1] + "e", 5)


async def test_images_that_share_a_layer_are_known(store: ImageStore) -> None:
    now = await podman.snapshot(store)
    assert now.images_with("base") == (ONE, TWO)
    assert now.images_with("a") == (ONE,)
    assert now.images_with("nothing") == ()


async def test_the_size_of_an_image_is_that_of_layers_and_items(
    store: ImageStore, beside: Beside
) -> None:
    now = await podman.snapshot(store)
    assert [now.size_of(image.id) for image in now.images] == [1 + 20 + 4, 1 + 300 + 4]
    # Versions of the top layer for other ID mappings count, and what is below them once.
    beside.write_layers(layer("base", size=1), layer("a", "base", 20), layer("a2", "base", 20))
    index = beside.images / "images.json"
    records = json.loads(index.read_bytes())
    records[0]["mapped-layers"] = ["a2"]
    beside.write(beside.images, "images.json", json.dumps(records))
    assert (await podman.snapshot(store)).size_of("one") == 1 + 20 + 20 + 4


@pytest.mark.parametrize(
    "unknown",
    [
        layer("base", size=None),
        layer("base", size=None) | {"diff-size": 5},
        layer("base", size=-1),
        layer("other"),
    ],
)
async def test_an_unknown_size_is_none(
    store: ImageStore, beside: Beside, unknown: dict[str, object]
) -> None:
    beside.write_layers(layer("a", "base"), layer("b"), unknown)
    now = await podman.snapshot(store)
    assert now.size_of("one") is None
    assert now.size_of("two") == 10 + 4


async def test_a_missing_layer_is_an_error_that_names_it(store: ImageStore, beside: Beside) -> None:
    beside.write_layers(layer("a", "base"), layer("b"))
    now = await podman.snapshot(store)
    with pytest.raises(StoreCorruptError, match=r"layer base of image 1+ is missing") as caught:
        now.layers_of("one")
    assert caught.value.id == ONE
    assert len(now.layers_of("two")) == 1


async def test_a_cycle_of_layers_ends(store: ImageStore, beside: Beside) -> None:
    beside.write_layers(layer("a", "base"), layer("base", "a"))
    now = await podman.snapshot(store)
    assert [found.id for found in now.layers_of("one")] == ["base", "a"]
    assert now.size_of("one") is None


async def test_the_size_of_a_layer_with_those_below_it_is_the_same_for_each_image(
    store: ImageStore, beside: Beside
) -> None:
    beside.write_layers(layer("b", "a", 300), layer("a", "base", 20), layer("base", size=1))
    for order in (("one", "two"), ("two", "one")):
        now = await podman.snapshot(store)
        sizes = {name: now.size_of(name) for name in order}
        assert sizes == {"one": 1 + 20 + 4, "two": 1 + 20 + 300 + 4}


async def test_containers_of_an_image_are_known(store: ImageStore, beside: Beside) -> None:
    beside.write_containers(container("c1", ONE, "web", "www"), container("c2", TWO))
    beside.write_containers(container("c3", ONE), container("c4", ""), volatile=True)
    now = await podman.snapshot(store)
    assert [(found.id, found.name) for found in now.containers_of("one")] == [
        ("c1", "web"),
        ("c3", "c3"),
    ]
    assert [found.id for found in now.containers_of(TWO)] == ["c2"]
    assert list(now.containers) == ["c1", "c2", "c3", "c4"]
    with pytest.raises(ImageUnknownError):
        now.containers_of("nobody")


@pytest.mark.parametrize("is_volatile", [False, True])
async def test_a_change_of_layers_is_seen_by_the_next_snapshot(
    store: ImageStore, beside: Beside, *, is_volatile: bool
) -> None:
    for size in (5, 6, 7, 8):
        beside.write_layers(layer("new", size=size), volatile=is_volatile)
        assert (await podman.snapshot(store)).layers["new"].diff_size == size
    (beside.layers / f"{'volatile-' * is_volatile}layers.json").unlink()
    assert "new" not in (await podman.snapshot(store)).layers


async def test_a_file_that_has_not_changed_is_read_once(
    store: ImageStore, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await podman.snapshot(store)
    with monkeypatch.context() as patch:
        patch.setattr("aimagestore._format.index.elements", None)
        second = await podman.snapshot(store)
    assert second.layers["a"] is first.layers["a"]


async def test_the_first_of_two_layers_with_one_id_counts(
    store: ImageStore, beside: Beside
) -> None:
    beside.write_layers(layer("x", size=1), layer("x", size=2))
    beside.write_layers(layer("x", size=3), volatile=True)
    assert (await podman.snapshot(store)).layers["x"].diff_size == 1


@pytest.mark.parametrize("text", ["{}", "[", '[{"id":"a"},', "null", "", " \n", "\0\0"])
@pytest.mark.parametrize("name", ["layers", "volatile-layers", "containers", "volatile-containers"])
async def test_a_damaged_file_is_an_error_that_names_it(
    store: ImageStore, beside: Beside, name: str, text: str
) -> None:
    directory = beside.layers if "layers" in name else beside.containers
    beside.write(directory, f"{name}.json", text)
    for _ in range(2):
        with pytest.raises(StoreCorruptError, match=f"{name}.json is damaged") as caught:
            await podman.snapshot(store)
        assert caught.value.path == str(directory / f"{name}.json")
    beside.write(directory, f"{name}.json", "[]")
    await podman.snapshot(store)


async def test_a_damaged_record_is_left_out(store: ImageStore, beside: Beside) -> None:
    damaged = [5, None, {}, {"id": ""}, {"id": 5}, {"id": "x", "parent": 5}]
    beside.write_layers(layer("a", "base"), *damaged, layer("base"))
    beside.write_containers(*damaged[:5], {"id": "x", "names": "x"}, container("c", ONE))
    now = await podman.snapshot(store)
    assert list(now.layers) == ["a", "base"]
    assert list(now.containers) == ["c"]


async def test_a_link_is_not_followed(store: ImageStore, beside: Beside) -> None:
    (beside.layers / "layers.json").rename(beside.layers / "other")
    (beside.layers / "layers.json").symlink_to("other")
    with pytest.raises(StoreCorruptError, match="not a regular file"):
        await podman.snapshot(store)


async def test_images_and_layers_are_read_as_of_one_moment(
    store: ImageStore, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """podman removes an image, and then its layers, while both are being read."""
    read = PodmanFiles.read_layers
    load = IndexFile.snapshot
    steps: list[Callable[[], object]] = []

    def remove_image() -> None:
        records = json.loads((beside.images / "images.json").read_bytes())
        beside.write(beside.images, "images.json", json.dumps(records[1:]))

    def after(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            result = function(*args)
            if steps:
                steps.pop(0)()
            return result

        return call

    monkeypatch.setattr(PodmanFiles, "read_layers", after(read))
    monkeypatch.setattr(IndexFile, "snapshot", after(load))

    def remove_layer() -> None:
        beside.write_layers(layer("base", size=1), layer("b", "base", 300))

    def remove_both() -> None:
        remove_image()
        remove_layer()

    def do_nothing() -> None: ...

    for order in (
        [remove_image, remove_layer],
        [do_nothing, remove_image, remove_layer],
        [do_nothing, remove_both],
        [remove_both],
    ):
        before = (beside.images / "images.json").read_text()
        layers = (beside.layers / "layers.json").read_text()
        steps[:] = order
        now = await podman.snapshot(store)
        steps.clear()
        for image in now.images:
            assert now.layers_of(image.id)
        assert len(now.images) + 1 == len(now.layers)
        beside.write(beside.layers, "layers.json", layers)
        beside.write(beside.images, "images.json", before)


async def test_nothing_is_written_and_nothing_locked(store: ImageStore, beside: Beside) -> None:
    beside.write_containers(container("c", ONE))
    before = tree(beside.images.parent)
    await podman.snapshot(store)
    with pytest.raises(ImageInUseError):
        await store.delete(ONE)
    assert tree(beside.images.parent) == before
    assert not list(beside.images.parent.glob("*/*layers.lock"))


async def test_open_files_are_closed_with_the_store(beside: Beside) -> None:
    beside.write_layers(layer("a"))
    async with ImageStore(beside.images) as store:
        await podman.snapshot(store)
        assert sum(descriptors("layers.json").values()) == 1
        beside.write_layers(layer("b"))
        await podman.snapshot(store)
        assert sum(descriptors("layers.json").values()) == 1
    assert not descriptors("layers.json")
    with pytest.raises(StoreClosedError):
        await podman.snapshot(store)


async def test_a_directory_with_nothing_beside_it_has_no_layers(tmp_path: Path) -> None:
    async with ImageStore(tmp_path / "plain") as store:
        await store.create(ONE)
        now = await podman.snapshot(store)
    assert (len(now.images), dict(now.layers), dict(now.containers)) == (1, {}, {})
    assert now.layers_of(ONE) == ()


async def test_layers_of_additional_stores_are_found(beside: Beside, tmp_path: Path) -> None:
    other = Beside(tmp_path / "other")
    other.write_layers(layer("base", size=1), layer("a", "base", 20))
    other.write_containers(container("elsewhere", ONE))
    beside.write_layers(layer("b", "base", 300), layer("a", "base", 21))
    async with ImageStore(other.images) as store:
        await store.create(ONE, top_layer="base", force=True)
    async with ImageStore(beside.images, additional_stores=[other.images]) as store:
        await store.create(TWO, top_layer="b", force=True)
        now = await podman.snapshot(store)
        assert (now.size_of(ONE), now.size_of(TWO)) == (1, 301)
        assert now.layers["a"].diff_size == 21
        assert not now.containers
        first = now
        assert (await podman.snapshot(store)).layers == first.layers
        other.write_layers(layer("base", size=2))
        assert (await podman.snapshot(store)).size_of(TWO) == 302


# Images that containers use


@pytest.mark.parametrize("is_volatile", [False, True])
async def test_an_image_that_a_container_uses_is_not_deleted(
    store: ImageStore, beside: Beside, *, is_volatile: bool
) -> None:
    containers = (container("c1", ONE, "web"), container("c2", ONE), container("c3", "other"))
    beside.write_containers(*containers, volatile=is_volatile)
    with pytest.raises(ImageInUseError, match="force=True") as caught:
        await store.delete("one")
    assert caught.value.id == ONE
    assert caught.value.containers == ("web", "c2")
    await store.delete("two")
    await store.delete("one", force=True)
    assert await store.images() == []


async def test_a_transaction_continues_when_an_image_in_use_is_not_deleted(
    store: ImageStore, beside: Beside
) -> None:
    beside.write_containers(container("c1", ONE, "web"))
    async with store.transaction() as tx:
        with pytest.raises(ImageInUseError):
            await tx.delete("one")
        await tx.delete("two")
    assert [image.id for image in await store.images()] == [ONE]
    async with store.transaction() as tx:
        await tx.delete("one", force=True)
    assert await store.images() == []


async def test_an_image_can_be_deleted_once_its_container_is_removed(
    store: ImageStore, beside: Beside
) -> None:
    beside.write_containers(container("c1", ONE, "web"))
    with pytest.raises(ImageInUseError):
        await store.delete("one")
    beside.write_containers()
    await store.delete("one")


@pytest.mark.parametrize("text", ["[", "[{}", "{}", '[{"id":5,"image":"' + ONE + '"}]'])
async def test_no_image_is_deleted_while_its_containers_cannot_be_read(
    store: ImageStore, beside: Beside, text: str
) -> None:
    beside.write(beside.containers, "containers.json", text)
    with pytest.raises(StoreCorruptError, match="not known which images") as caught:
        await store.delete("one")
    assert caught.value.path == str(beside.containers / "containers.json")
    await store.delete("one", force=True)


async def test_a_damaged_container_record_of_one_image_does_not_stop_deleting_another(
    store: ImageStore, beside: Beside
) -> None:
    beside.write_containers({"id": 5, "image": TWO})
    await store.delete("one")


# Checks


async def checked(beside: Beside) -> dict[Kind, list[Finding]]:
    """Check the store, and return the findings about layers and containers."""
    found: dict[Kind, list[Finding]] = {}
    for finding in (await check(beside.images)).findings:
        # The images here have no manifests.
        if finding.kind is not Kind.PODMAN_FAILS or "top layer" in finding.detail:
            found.setdefault(finding.kind, []).append(finding)
    return found


async def test_an_undamaged_store_has_no_findings(store: ImageStore, beside: Beside) -> None:
    beside.write_containers(container("c", ONE), container("d", ""))
    assert await checked(beside) == {}


async def test_missing_layers_are_found(store: ImageStore, beside: Beside) -> None:
    beside.write_layers(layer("a", "base"))
    found = await checked(beside)
    (top,) = found.pop(Kind.PODMAN_FAILS)
    assert top.id == TWO
    (below,) = found.pop(Kind.LAYER_MISSING)
    assert below.id == ONE
    assert "its layer base" in below.detail
    assert f"podman rmi --force {ONE[:12]}" in below.detail
    assert not found


async def test_containers_of_missing_images_are_found(store: ImageStore, beside: Beside) -> None:
    beside.write_containers(container("c1", ONE))
    beside.write_containers(container("c2", "3" * 64, "web"), volatile=True)
    found = await checked(beside)
    assert list(found) == [Kind.IMAGE_MISSING]
    (finding,) = found[Kind.IMAGE_MISSING]
    assert finding.id == "3" * 64
    assert finding.path == str(beside.containers / "volatile-containers.json")
    assert "podman rm --force web" in finding.detail


@pytest.mark.parametrize("name", ["layers", "volatile-layers", "containers", "volatile-containers"])
@pytest.mark.parametrize("text", ["[", '[{"id":5}]', ""])
async def test_damaged_files_are_found_and_left_alone(
    store: ImageStore, beside: Beside, name: str, text: str
) -> None:
    is_layers = "layers" in name
    beside.write(beside.layers if is_layers else beside.containers, f"{name}.json", text)
    kind = Kind.LAYERS_DAMAGED if is_layers else Kind.CONTAINERS_DAMAGED
    (finding,) = (await checked(beside))[kind]
    assert finding.path.endswith(f"/{name}.json")
    assert "podman system reset" in finding.detail


@pytest.mark.parametrize("kind", [Kind.LAYERS_DAMAGED, Kind.CONTAINERS_DAMAGED])
async def test_a_list_without_bytes_is_lost_not_empty(
    store: ImageStore, beside: Beside, kind: Kind
) -> None:
    is_layers = kind is Kind.LAYERS_DAMAGED
    name = "layers.json" if is_layers else "containers.json"
    beside.write(beside.layers if is_layers else beside.containers, name, "")
    before = (beside.images / "images.json").read_bytes()
    report = await check(beside.images)
    assert kind in {finding.kind for finding in report.findings}
    assert not any("its top layer" in finding.detail for finding in report.findings)
    with pytest.raises(StoreCorruptError, match=f"{name} is damaged"):
        await podman.snapshot(store)
    if not is_layers:
        with pytest.raises(StoreCorruptError, match="which images containers use"):
            await store.delete(ONE)
        assert (beside.images / "images.json").read_bytes() == before


async def test_a_file_in_the_place_of_a_directory_is_found(
    store: ImageStore, beside: Beside
) -> None:
    beside.containers.rmdir()
    beside.containers.touch()
    (finding,) = (await checked(beside))[Kind.CONTAINERS_DAMAGED][:1]
    assert "is not a directory" in finding.detail
    with pytest.raises(StoreCorruptError, match="is not a directory"):
        await podman.snapshot(store)


async def test_a_store_without_images_is_checked_like_any_other(
    beside: Beside, tmp_path: Path
) -> None:
    """It has no index, or a blank one, before the first image."""
    beside.images.mkdir()
    beside.write_containers(container("c", ONE), 5)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "images.json").write_text("[")
    expected = {Kind.STORE_UNREADABLE, Kind.CONTAINERS_DAMAGED, Kind.IMAGE_MISSING}
    for _ in range(2):
        report = await check(beside.images, additional_stores=[damaged])
        assert {finding.kind for finding in report.findings} == expected
        (beside.images / "images.json").touch()


async def test_a_repair_leaves_layers_and_containers_alone(
    store: ImageStore, beside: Beside
) -> None:
    beside.write_layers(layer("a", "base"), layer("b"), {"id": 5})
    beside.write_containers(container("c", "3" * 64), 5)
    await store.delete(ONE, force=True)
    await store.delete(TWO, force=True)
    shutil.copytree(FIXTURE / FIXTURE_ID, beside.images / FIXTURE_ID)
    record = json.loads((FIXTURE / "images.json").read_bytes())[0] | {"layer": "a"}
    beside.write(beside.images, "images.json", json.dumps([record]))
    before = tree(beside.images.parent)
    report = await check(beside.images)
    kinds = {finding.kind for finding in report.findings}
    assert kinds == {
        Kind.LAYER_MISSING,
        Kind.LAYERS_DAMAGED,
        Kind.CONTAINERS_DAMAGED,
        Kind.IMAGE_MISSING,
    }
    for drop in (False, True):
        assert (await repair(beside.images, report, drop=drop)).ok
    assert tree(beside.images.parent) == before
    assert await check(beside.images) == report


# Containers that are elsewhere


@pytest.mark.parametrize("is_transient", [False, True])
async def test_containers_that_podman_keeps_elsewhere_are_known(
    beside: Beside, tmp_path: Path, *, is_transient: bool
) -> None:
    """Images may have a root of their own, and containers may be kept until the next boot only."""
    other = Beside(tmp_path / "other")
    run_root = Beside(tmp_path / "run")
    used = run_root if is_transient else other
    used.write_containers(container("c", ONE, "web"), volatile=is_transient)
    configuration = tmp_path / "storage.conf"
    configuration.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{other.images.parent}"\n'
        f'imagestore = "{beside.images.parent}"\nrunroot = "{run_root.images.parent}"\n'
    )
    environ = {"CONTAINERS_STORAGE_CONF": str(configuration), "PATH": "", "HOME": str(tmp_path)}
    async with podman.open_store(read_only=False, environ=environ) as store:
        assert store.layer_store == str(beside.layers)
        await store.create(ONE, force=True)
        assert [c.name for c in (await podman.snapshot(store)).containers_of(ONE)] == ["web"]
        with pytest.raises(ImageInUseError):
            await store.delete(ONE)
        used.write_containers(volatile=is_transient)
        await store.delete(ONE)


# Checks with additional stores


@pytest.fixture
async def other(tmp_path: Path) -> Beside:
    """An additional store, with an image."""
    other = Beside(tmp_path / "other")
    other.write_layers(layer("base"), layer("c", "base"))
    async with ImageStore(other.images) as store:
        await store.create("3" * 64, top_layer="c", force=True)
    return other


async def kinds(beside: Beside, *additional: AdditionalStore) -> set[Kind]:
    """Check the store with additional ones, and return which kinds of findings it has."""
    report = await check(beside.images, additional_stores=additional)
    return {
        finding.kind
        for finding in report.findings
        if finding.kind is not Kind.PODMAN_FAILS or "top layer" in finding.detail
    }


async def test_a_check_finds_layers_and_images_of_additional_stores(
    store: ImageStore, beside: Beside, other: Beside
) -> None:
    await store.create("4" * 64, top_layer="c", force=True)
    beside.write_layers(layer("a", "base"), layer("b", "base"))
    beside.write_containers(container("x", "3" * 64))
    assert await kinds(beside) == {Kind.PODMAN_FAILS, Kind.LAYER_MISSING, Kind.IMAGE_MISSING}
    assert await kinds(beside, AdditionalStore(other.images)) == set()
    other.write_layers(layer("base"))
    assert await kinds(beside, AdditionalStore(other.images)) == {Kind.PODMAN_FAILS}


async def test_an_additional_store_that_cannot_be_read_is_found(
    store: ImageStore, beside: Beside, other: Beside
) -> None:
    missing = beside.images.parent / "nowhere"
    assert await kinds(beside, AdditionalStore(missing)) == {Kind.STORE_UNREADABLE}
    assert await kinds(beside, AdditionalStore(missing, required=False)) == set()
    for file in (other.images / "images.json", other.layers / "layers.json"):
        before = file.read_text()
        file.write_text("[")
        report = await check(beside.images, additional_stores=[other.images])
        (found,) = (f for f in report.findings if f.kind is Kind.STORE_UNREADABLE)
        assert found.path == str(other.images)
        assert str(file) in found.detail
        file.write_text(before)
    assert await kinds(beside, AdditionalStore(other.images)) == set()


async def test_a_check_waits_for_another_program_in_an_additional_store(
    store: ImageStore, beside: Beside, other: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside.write_containers(container("x", "3" * 64))
    records = json.loads((other.images / "images.json").read_bytes())
    with foreign_writer(other.images) as writer:
        writer.save(*records)
        # The check waits, and the program is done meanwhile.
        waiting = SimpleNamespace(sleep=lambda _: writer.release())
        monkeypatch.setattr(others, "time", waiting)
        assert await kinds(beside, AdditionalStore(other.images)) == set()
        assert writer.is_over
