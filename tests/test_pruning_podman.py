"""Usage and pruning beside podman's layers and containers, and beside additional stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread
import pytest

from aimagestore import ImageStore, PrunePolicy, StoreCorruptError
from aimagestore._async import pruning
from aimagestore._core.pruning import Candidate
from aimagestore._engine.protocol import Feed

from .cli.conftest import Cli
from .support.beside import Beside, container, layer
from .support.built import config, create_built

ALL = PrunePolicy(unnamed=False)


@pytest.fixture
def beside(tmp_path: Path) -> Beside:
    """A store with layers and containers beside it."""
    beside = Beside(tmp_path / "graph")
    beside.write_layers(layer("base", size=100), layer("top", "base", size=20))
    return beside


async def filled(beside: Beside) -> tuple[str, str]:
    """Create two images, and return their IDs."""
    async with ImageStore(beside.images) as store:
        ids = [(await create_built(store, config(n=n))).id for n in range(2)]
    return ids[0], ids[1]


async def test_usage_has_layers_and_containers(beside: Beside) -> None:
    one, two = await filled(beside)
    async with ImageStore(beside.images) as store:
        with_layers = await store.create("layers", top_layer="top", force=True)
        unknown = await store.create("unknown", top_layer="missing", force=True)
        beside.write_containers(container("c" * 64, one, "web"), container("d" * 64, one))
        usage = await store.usage()
    assert usage.images[one].containers == ("web", "d" * 64)
    assert usage.images[two].containers == ()
    assert usage.images[two].layers_size == 0
    assert usage.images[with_layers.id].layers_size == 120
    assert usage.images[unknown.id].layers_size is None
    unused = (two, with_layers.id, unknown.id)
    assert usage.reclaimable == sum(usage.images[image_id].unique_size for image_id in unused)


async def test_an_image_that_a_container_uses_is_kept_as_forecast(beside: Beside) -> None:
    one, two = await filled(beside)
    beside.write_containers(container("c" * 64, one, "web"))
    async with ImageStore(beside.images) as store:
        forecast = await store.prune(ALL, dry_run=True)
        assert [image.id for image in forecast.images] == [two]
        assert forecast.kept == {one: "containers use it: web"}
        assert await store.prune(ALL) == forecast
        assert [image.id for image in await store.images()] == [one]


async def test_an_image_that_a_container_begins_to_use_is_kept(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await filled(beside)
    delete = pruning.Pruning._delete

    async def delete_later(
        self: pruning.Pruning, candidates: Sequence[Candidate], feed: Feed
    ) -> None:
        await anyio.to_thread.run_sync(beside.write_containers, container("c" * 64, one, "web"))
        await delete(self, candidates, feed)

    monkeypatch.setattr(pruning.Pruning, "_delete", delete_later)
    async with ImageStore(beside.images) as store:
        result = await store.prune(ALL)
        assert [image.id for image in result.images] == [two]
        assert result.kept == {one: "containers use it: web"}
        assert await store.exists(one)


async def test_nothing_is_pruned_if_the_containers_cannot_be_read(beside: Beside) -> None:
    await filled(beside)
    beside.write(beside.containers, "containers.json", "[{")
    async with ImageStore(beside.images) as store:
        with pytest.raises(StoreCorruptError, match=r"containers\.json"):
            await store.prune(ALL)
        assert len(await store.images()) == 2


async def test_images_of_additional_stores_are_kept_and_not_counted(
    path: Path, tmp_path: Path
) -> None:
    async with ImageStore(tmp_path / "other") as other:
        await other.create("theirs", big_data={"key": b"x" * 100_000})
    async with ImageStore(path, additional_stores=[tmp_path / "other"]) as store:
        await store.create("ours")
        usage = await store.usage()
        assert list(usage.images) == ["ours"]
        assert usage.total < 100_000
        forecast = await store.prune(ALL, dry_run=True)
        assert forecast.kept == {"theirs": "it comes from an additional store"}
        assert await store.prune(ALL) == forecast
        assert await store.exists("theirs")


def test_the_command_line_says_that_layers_stay(beside: Beside) -> None:
    cli = Cli(beside.images)
    cli("create", "--layer", "top", "--force")
    assert "layers stay" not in cli("prune", "--dry-run").errors
    said = cli("prune").errors
    assert f"the layers stay in {beside.layers}" in said
    assert "podman rmi" in said
    cli("create", "--layer", "top", "--force")
    assert "layers stay" in cli("rm", "--all").errors
