"""Importing and exporting OCI image layouts."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import (
    BigDataUnknownError,
    DigestMismatchError,
    Image,
    ImageStore,
    ImageUnknownError,
    InvalidLayoutError,
    StoreReadOnlyError,
    Transaction,
    oci,
)
from aimagestore.oci import _importing
from aimagestore.oci._target import DirectoryTarget

from .support.faults import Faults
from .support.interruptions import by_scope
from .support.layouts import (
    CONFIG,
    IMAGE_NAME,
    LAYER,
    MANIFEST,
    REF_NAME,
    Maker,
    archive,
    blob_path,
    digest_of,
    encode,
    entries_of,
    files_of,
    hello,
)
from .support.loops import pairs
from .support.stores import open_files, tree, until

FORMS = ["layout", "layout.tar"]


def platform(architecture: str, variant: str = "") -> dict[str, Any]:
    fields = {"os": "linux", "architecture": architecture}
    return {"platform": fields | ({"variant": variant} if variant else {})}


def multi() -> Maker:
    """One image for two platforms, called ``multi:1``, that share a layer."""
    maker = Maker()
    index = maker.index(
        maker.image(b"shared", b"amd64", **platform("amd64")),
        maker.image(b"shared", b"arm64", config={"architecture": "arm64"}, **platform("arm64")),
    )
    maker.enter(index, "multi:1")
    return maker


async def import_one(store: ImageStore, layout: Any, **options: Any) -> Image:
    (imported,) = await oci.import_layout(store, layout, **options)
    return imported.image


def blobs_of(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(path).items() if name.startswith("blobs/")}


# Import


@pytest.mark.parametrize("form", FORMS)
async def test_an_image_is_imported(store: ImageStore, tmp_path: Path, form: str) -> None:
    maker = hello(config={"created": "2020-02-03T04:05:06.123456789Z"})
    layout = maker.write(tmp_path / form)
    (imported,) = await oci.import_layout(store, layout)
    (entry,) = maker.entries
    manifest = maker.files[blob_path(entry["digest"])]
    config = json.loads(manifest)["config"]["digest"]
    layer = digest_of(b"layer")
    image = imported.image
    assert image == await store.get("localhost/hello:1")
    assert image.id == config.removeprefix("sha256:")
    assert image.digests == (entry["digest"],)
    assert image.created == datetime(2020, 2, 3, 4, 5, 6, 123456, UTC)
    assert image.big_data_names == ("manifest", f"manifest-{entry['digest']}", config, layer)
    assert await store.big_data(image.id, "manifest") == manifest
    assert await store.big_data(image.id, f"manifest-{entry['digest']}") == manifest
    assert await store.big_data(image.id, layer) == b"layer"
    assert image.big_data_digests[config] == config
    assert (imported.is_new, imported.layers_left_out) == (True, 0)
    assert imported.stored == sum(image.big_data_sizes.values())


@pytest.mark.parametrize("form", FORMS)
async def test_importing_again_stores_nothing(
    store: ImageStore, tmp_path: Path, path: Path, form: str
) -> None:
    layout = hello().write(tmp_path / form)
    first = await import_one(store, layout)
    before = (path / "images.json").stat()
    (again,) = await oci.import_layout(store, layout)
    assert again == oci.ImportResult(first, is_new=False, stored=0, layers_left_out=0)
    assert (path / "images.json").stat() == before
    image = await import_one(store, layout, names=["another", "localhost/hello:1"])
    assert image.names == ("another", "localhost/hello:1")
    assert await store.images() == [image]


async def test_missing_and_truncated_items_are_imported_again(
    store: ImageStore, tmp_path: Path, path: Path
) -> None:
    layout = hello().write(tmp_path / "layout")
    image = await import_one(store, layout)
    (path / image.id / "manifest").unlink()
    for file in (path / image.id).iterdir():
        if file.read_bytes() == b"layer":
            file.write_bytes(b"lay")
    (again,) = await oci.import_layout(store, layout)
    assert again.stored == len(b"layer"), "the manifest is also stored under another key"
    assert again.image == image


async def test_imports_of_one_layout_at_once_make_one_image(
    store: ImageStore, path: Path, tmp_path: Path
) -> None:
    layout = multi().write(tmp_path / "layout")
    found: list[oci.ImportResult] = []

    async def run(into: ImageStore) -> None:
        found.extend(await oci.import_layout(into, layout))

    async with ImageStore(path) as other, anyio.create_task_group() as tasks:
        for into in (store, store, other):
            tasks.start_soon(run, into)
    (image,) = await store.images()
    assert [imported.image for imported in found] == [image] * 3
    assert [imported.is_new for imported in found].count(True) == 1


async def test_an_image_that_is_deleted_meanwhile_is_imported_whole(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = hello().write(tmp_path / "layout")
    image = await import_one(store, layout)
    transaction = store.transaction

    @asynccontextmanager
    async def delete_first() -> AsyncIterator[Transaction]:
        if await store.exists(image.id):
            await store.delete(image.id)
        async with transaction() as tx:
            yield tx

    monkeypatch.setattr(store, "transaction", delete_first)
    (again,) = await oci.import_layout(store, layout)
    assert again.is_new
    assert again.stored == sum(image.big_data_sizes.values())
    assert await store.images() == [again.image]


async def test_a_name_moves_from_the_image_that_had_it_unless_other_names_are_given(
    store: ImageStore, tmp_path: Path
) -> None:
    await store.create("old", names=["localhost/hello:1", "kept"])
    layout = hello().write(tmp_path / "layout")
    image = await import_one(store, layout)
    assert image.names == ("localhost/hello:1",)
    assert (await store.get("old")).names == ("kept",)
    await store.delete(image.id)
    assert (await import_one(store, layout, names=[])).names == ()
    assert (await import_one(store, layout, names=["as it is"])).names == ("as it is",)
    with pytest.raises(TypeError, match="iterable"):
        await oci.import_layout(store, layout, names="hello")


async def test_the_name_that_containerd_gives_counts_first(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = hello()
    maker.entries[0]["annotations"][IMAGE_NAME] = "docker.io/library/a:2"
    image = await import_one(store, maker.write(tmp_path / "layout"))
    assert image.names == ("docker.io/library/a:2",)


async def test_a_label_that_cannot_be_a_name_is_left_out(
    store: ImageStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maker = Maker()
    maker.enter(maker.image(), "No Name")
    image = await import_one(store, maker.write(tmp_path / "layout"), ref="No Name")
    assert image.names == ()
    assert "'No Name'" in caplog.text


async def test_all_images_of_a_layout_are_imported_in_one_step(
    store: ImageStore, tmp_path: Path, path: Path
) -> None:
    maker = Maker()
    one = maker.image(b"one", b"shared", config={"n": 1})
    for name in ("one:1", "one:2"):
        maker.enter(one, name)
    maker.enter(maker.image(b"two", b"shared", config={"n": 2}), "two:1")
    layout = maker.write(tmp_path / "layout")
    with pytest.raises(ValueError, match=r"2 images.*one of localhost/one:1, localhost/two:1"):
        await oci.import_layout(store, layout, names=["a"])
    assert not (path / "images.json").exists()
    first, second = await oci.import_layout(store, layout)
    assert first.image.names == ("localhost/one:1", "localhost/one:2")
    assert second.image.names == ("localhost/two:1",)
    assert await store.images() == [first.image, second.image]

    picked = await import_one(store, layout, ref="two:1", names=["a"])
    assert picked.id == second.image.id
    with pytest.raises(ImageUnknownError, match=r"'three'.*one:1.*two:1") as caught:
        await oci.import_layout(store, layout, ref="three")
    assert (caught.value.ref, caught.value.path) == ("three", str(layout))


async def test_another_manifest_of_an_image_takes_the_place_of_the_first(
    store: ImageStore, tmp_path: Path
) -> None:
    first = await import_one(store, hello().write(tmp_path / "one"))
    maker = Maker()
    maker.enter(maker.image(b"layer, compressed in another way"), "hello:1")
    second = await import_one(store, maker.write(tmp_path / "two"))
    assert second.id == first.id
    assert second.digests == (first.digest, maker.entries[0]["digest"])
    exported = await oci.export_layout(store, second.id, tmp_path / "out")
    assert exported.digest == maker.entries[0]["digest"]


async def test_artifacts_with_the_same_config_are_images_of_their_own(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    for content in (b"one", b"two"):
        manifest = {
            "schemaVersion": 2,
            "config": maker.blob(b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [maker.blob(content, "text/plain")],
        }
        maker.enter(maker.document(manifest, MANIFEST), content.decode())
    first, second = await oci.import_layout(store, maker.write(tmp_path / "layout"))
    assert [f"sha256:{i.image.id}" for i in (first, second)] == [e["digest"] for e in maker.entries]
    await oci.export_layout(store, second.image.id, tmp_path / "out")
    assert blobs_of(tmp_path / "out").items() < blobs_of(tmp_path / "layout").items()


# Several platforms


@pytest.mark.parametrize("form", FORMS)
async def test_an_index_is_one_image(store: ImageStore, tmp_path: Path, form: str) -> None:
    maker = multi()
    layout = maker.write(tmp_path / form)
    image = await import_one(store, layout)
    (entry,) = maker.entries
    assert f"sha256:{image.id}" == image.digest == entry["digest"]
    manifests = json.loads(await store.big_data(image.id, "manifest"))["manifests"]
    assert image.digests == (entry["digest"], *(m["digest"] for m in manifests))
    for manifest in manifests:
        assert await store.by_digest(manifest["digest"]) == [image]
    layers = {digest_of(data) for data in (b"shared", b"amd64", b"arm64")}
    assert layers < set(image.big_data_names)
    assert len(image.big_data_names) == 1 + len(blobs_of(layout))

    await oci.export_layout(store, image.id, tmp_path / f"out-{form}")
    assert blobs_of(tmp_path / f"out-{form}") == blobs_of(layout)
    assert (await import_one(store, tmp_path / f"out-{form}")) == image


async def test_the_image_of_one_platform_is_imported(store: ImageStore, tmp_path: Path) -> None:
    layout = multi().write(tmp_path / "layout")
    image = await import_one(store, layout, platform="linux/arm64")
    assert image.names == ("localhost/multi:1",)
    config = json.loads(await store.big_data(image.id, f"sha256:{image.id}"))
    assert config["architecture"] == "arm64"
    assert digest_of(b"amd64") not in image.big_data_names
    with pytest.raises(ImageUnknownError, match=r"linux/s390x.*linux/amd64.*linux/arm64"):
        await oci.import_layout(store, layout, platform="linux/s390x")
    for wrong in ("linux", "linux/", "a/b/c/d", ""):
        with pytest.raises(ValueError, match="os/architecture"):
            await oci.import_layout(store, layout, platform=wrong)


async def test_the_best_variant_of_a_platform_is_imported(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    variants = {
        variant: maker.image(config={"variant": variant}, **platform(architecture, variant))
        for architecture, variant in [
            ("arm", "v6"),
            ("arm", "v7"),
            ("arm64", "v8"),
            ("amd64", "v3"),
            ("amd64", ""),
        ]
    }
    nested = maker.index(*variants.values())
    maker.enter(maker.index(nested))
    layout = maker.write(tmp_path / "layout")
    for asked, variant in [
        ("linux/arm/v7", "v7"),
        ("linux/arm64", "v8"),
        ("linux/arm64/v8", "v8"),
        ("linux/arm", "v7"),
        ("linux/amd64", ""),
        ("linux/amd64/v3", "v3"),
    ]:
        image = await import_one(store, layout, platform=asked)
        assert image.digest == variants[variant]["digest"]
    with pytest.raises(ImageUnknownError, match=r"linux/arm/v5.*linux/arm/v6.*linux/arm/v7"):
        await oci.import_layout(store, layout, platform="linux/arm/v5")


async def test_the_platform_comes_from_the_config_where_nothing_else_has_it(
    store: ImageStore, tmp_path: Path
) -> None:
    layout = hello(config={"architecture": "arm64"}).write(tmp_path / "layout")
    with pytest.raises(ImageUnknownError, match="linux/arm64"):
        await oci.import_layout(store, layout, platform="linux/amd64")
    await oci.import_layout(store, layout, platform="linux/arm64")


@pytest.mark.parametrize("name", ["", "multi:1"])
async def test_index_json_itself_may_be_the_index(
    store: ImageStore, tmp_path: Path, name: str
) -> None:
    maker = Maker()
    for architecture in ("amd64", "arm64"):
        config = {"architecture": architecture}
        maker.enter(maker.image(b"x", config=config, **platform(architecture)), name)
    layout = maker.write(tmp_path / "layout")
    image = await import_one(store, layout)
    index = (layout / "index.json").read_bytes()
    assert await store.big_data(image.id, "manifest") == index
    assert f"sha256:{image.id}" == digest_of(index)
    assert image.names == (("localhost/multi:1",) if name else ())
    await oci.export_layout(store, image.id, tmp_path / "out")
    assert blobs_of(tmp_path / "out") == blobs_of(layout) | {blob_path(digest_of(index)): index}
    assert await import_one(store, tmp_path / "out") == image
    if name:
        assert await import_one(store, layout, ref=name) == image
    picked = await import_one(store, layout, ref=name or None, platform="linux/arm64")
    assert picked.digest == maker.entries[1]["digest"]


async def test_other_content_that_an_index_lists_is_kept(store: ImageStore, tmp_path: Path) -> None:
    maker = Maker()
    note = maker.blob(b"anything", "text/plain")
    maker.enter(maker.index(maker.image(), note), "a:1")
    layout = maker.write(tmp_path / "layout")
    image = await import_one(store, layout)
    assert await store.big_data(image.id, note["digest"]) == b"anything"
    await oci.export_layout(store, image.id, tmp_path / "out")
    assert blobs_of(tmp_path / "out") == blobs_of(layout)


async def test_manifests_and_lists_of_docker_are_imported_and_exported_unchanged(
    store: ImageStore, tmp_path: Path
) -> None:
    docker = "application/vnd.docker"
    types = [f"{docker}.distribution.manifest.{kind}+json" for kind in ("v2", "list.v2")]
    maker = Maker()
    config = maker.document({}, f"{docker}.container.image.v1+json")
    layers = [maker.blob(b"layer", f"{docker}.image.rootfs.diff.tar.gzip")]
    manifest = {"schemaVersion": 2, "mediaType": types[0], "config": config, "layers": layers}
    one = maker.document(manifest, types[0])
    several = {"schemaVersion": 2, "mediaType": types[1], "manifests": [one | platform("amd64")]}
    maker.enter(one, "one")
    maker.enter(maker.document(several, types[1]), "list")
    layout = maker.write(tmp_path / "layout")
    first, second = await oci.import_layout(store, layout)
    assert f"sha256:{first.image.id}" == config["digest"]
    assert f"sha256:{second.image.id}" == maker.entries[1]["digest"]
    for ref in ("localhost/one:latest", "localhost/list:latest"):
        await oci.export_layout(store, ref, tmp_path / "out")
    assert blobs_of(tmp_path / "out") == blobs_of(layout)
    entries = entries_of(tmp_path / "out")
    assert [entry["mediaType"] for entry in entries] == types


@pytest.mark.parametrize(
    "fields",
    [
        {"urls": ["https://example.com/layer"]},
        {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"},
        {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
    ],
)
async def test_foreign_layers_may_be_missing(
    store: ImageStore, tmp_path: Path, fields: dict[str, Any]
) -> None:
    maker = Maker()
    foreign = {"mediaType": LAYER, "digest": digest_of(b"foreign"), "size": 7} | fields
    manifest = {
        "schemaVersion": 2,
        "config": maker.document({}, CONFIG),
        "layers": [maker.blob(b"layer", LAYER), foreign],
    }
    maker.enter(maker.document(manifest, MANIFEST), "a:1")
    layout = maker.write(tmp_path / "layout")
    image = await import_one(store, layout)
    assert foreign["digest"] not in image.big_data_names
    await oci.export_layout(store, image.id, tmp_path / "out")
    assert blobs_of(tmp_path / "out") == blobs_of(layout)
    maker.blob(b"foreign", LAYER)
    image = await import_one(store, maker.write(layout))
    await oci.export_layout(store, image.id, tmp_path / "out")
    assert blobs_of(tmp_path / "out") == blobs_of(layout)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
async def test_layouts_with_other_digest_algorithms_are_imported_and_exported(
    store: ImageStore, tmp_path: Path, algorithm: str, form: str
) -> None:
    maker = Maker(algorithm)
    maker.enter(maker.index(maker.image(b"layer" * 100_000)), "index:1")
    maker.enter(maker.image(b"layer" * 100_000), "image:1")
    layout = maker.write(tmp_path / form)
    index, image = [i.image for i in await oci.import_layout(store, layout)]
    assert f"{algorithm}:{index.id}" == maker.entries[0]["digest"]
    assert len(image.id) == len(index.id)
    again = await oci.import_layout(store, layout)
    assert [(i.image, i.stored) for i in again] == [(index, 0), (image, 0)]
    for ref in ("localhost/index:1", "localhost/image:1"):
        exported = await oci.export_layout(store, ref, tmp_path / "out")
        assert exported.digest.startswith(algorithm)
    assert blobs_of(tmp_path / "out") == blobs_of(layout)


async def test_an_image_whose_config_has_no_time_is_created_now(
    store: ImageStore, tmp_path: Path
) -> None:
    for n, created in enumerate([None, "yesterday", "0001-01-01T00:00:00Z", 5]):
        layout = hello(config={"created": created}).write(tmp_path / f"layout{n}")
        image = await import_one(store, layout)
        assert image.created is not None
        assert abs((datetime.now(UTC) - image.created).total_seconds()) < 60


# Stores of podman, which has its own layers


async def test_layers_are_left_out_of_podmans_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "graph" / "vfs-layers").mkdir(parents=True)
    layout = multi().write(tmp_path / "layout")
    async with ImageStore(tmp_path / "graph" / "vfs-images") as store:
        (imported,) = await oci.import_layout(store, layout)
        assert imported.layers_left_out == 3
        assert str(tmp_path / "graph" / "vfs-layers") in caplog.text
        image = imported.image
        assert not {digest_of(data) for data in (b"shared", b"amd64")} & set(image.big_data_names)
        assert await store.big_data(image.id, "instances.json") == b"{}"
        (picked,) = await oci.import_layout(store, layout, platform="linux/amd64")
        assert "instances.json" not in picked.image.big_data_names
        (again,) = await oci.import_layout(store, layout)
        assert again.stored == 0
        with pytest.raises(BigDataUnknownError, match="skopeo copy") as caught:
            await oci.export_layout(store, picked.image.id, tmp_path / "out")
        assert digest_of(b"shared") in str(caught.value)
        assert digest_of(b"amd64") in str(caught.value)
    assert not (tmp_path / "out").exists()


async def test_layers_are_imported_into_any_other_store(tmp_path: Path) -> None:
    layout = hello().write(tmp_path / "layout")
    (tmp_path / "-layers").mkdir()
    for name in ("vfs-images", "-images", "vfs"):
        async with ImageStore(tmp_path / name) as store:
            (imported,) = await oci.import_layout(store, layout)
        assert imported.layers_left_out == 0


async def test_layers_are_imported_beside_an_additional_store_of_podmans(tmp_path: Path) -> None:
    layout = hello().write(tmp_path / "layout")
    additional = tmp_path / "graph" / "vfs-images"
    (tmp_path / "graph" / "vfs-layers").mkdir(parents=True)
    async with ImageStore(additional) as store:
        (there,) = await oci.import_layout(store, layout)
    async with ImageStore(tmp_path / "store", additional_stores=[additional]) as store:
        with pytest.raises(BigDataUnknownError, match="use skopeo copy"):
            await oci.export_layout(store, there.image.id, tmp_path / "out")
        (imported,) = await oci.import_layout(store, layout)
        assert imported.layers_left_out == 0
        await oci.export_layout(store, imported.image.id, tmp_path / "out")


# Export


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
async def test_a_round_trip_changes_no_byte(
    store: ImageStore, tmp_path: Path, source: str, target: str
) -> None:
    maker = Maker()
    maker.enter(maker.image(b"", b"a" * 600, os.urandom(3_000_000)), "hello:1")
    layout = maker.write(tmp_path / source)
    image = await import_one(store, layout)
    exported = await oci.export_layout(store, image.id, tmp_path / f"out-{target}")
    out = files_of(tmp_path / f"out-{target}")
    assert blobs_of(tmp_path / f"out-{target}") == blobs_of(layout)
    assert exported == oci.ExportResult(
        image, image.digest, sum(map(len, blobs_of(layout).values()))
    )
    assert json.loads(out["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = entries_of(tmp_path / f"out-{target}")
    assert entry == maker.entries[0] | {"annotations": {REF_NAME: "localhost/hello:1"}}
    assert set(os.listdir(tmp_path)) == {source, f"out-{target}", "store"}


async def test_a_layout_gets_one_more_image(store: ImageStore, tmp_path: Path) -> None:
    maker = Maker()
    other = maker.enter(maker.image(b"shared", config={"n": 1}, unknown=[1.0, None]), "other:1")
    maker.files["index.json"] = b'{"schemaVersion": 2, "annotations": {"a": "b"}, "manifests":[%b]}'
    maker.files["index.json"] %= encode(other)
    layout = maker.write(tmp_path / "layout")
    more = Maker()
    more.enter(more.image(b"shared", b"more", config={"n": 2}))
    image = await import_one(store, more.write(tmp_path / "more"))

    exported = await oci.export_layout(store, image.id, layout)
    index = (layout / "index.json").read_bytes()
    assert encode(other) in index
    assert b'"annotations":{"a": "b"}' in index
    assert json.loads(index)["manifests"] == [other, *more.entries]
    assert exported.written == sum(map(len, blobs_of(tmp_path / "more").values())) - len(b"shared")
    again = await oci.export_layout(store, image.id, layout)
    assert again.written == 0
    assert (layout / "index.json").read_bytes() == index

    named = await oci.export_layout(store, image.id, layout, name="other:1")
    assert named.written == 0
    entries = entries_of(layout)
    assert entries == [more.entries[0], more.entries[0] | {"annotations": {REF_NAME: "other:1"}}]


async def test_a_damaged_blob_of_a_layout_is_written_anew(
    store: ImageStore, tmp_path: Path
) -> None:
    image = await import_one(store, hello().write(tmp_path / "layout"))
    await oci.export_layout(store, image.id, tmp_path / "out")
    layer = tmp_path / "out" / blob_path(digest_of(b"layer"))
    for damaged in (b"LAYER", b"lay"):
        layer.write_bytes(damaged)
        exported = await oci.export_layout(store, image.id, tmp_path / "out")
        assert exported.written == len(b"layer")
        assert layer.read_bytes() == b"layer"


async def test_exports_at_once_into_one_layout_lose_nothing(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    for n in range(6):
        maker.enter(maker.image(b"shared", config={"n": n}), f"image:{n}")
    images = await oci.import_layout(store, maker.write(tmp_path / "layout"))
    async with anyio.create_task_group() as tasks:
        for imported in images:
            tasks.start_soon(oci.export_layout, store, imported.image.id, tmp_path / "out")
    assert blobs_of(tmp_path / "out") == blobs_of(tmp_path / "layout")
    entries = entries_of(tmp_path / "out")
    assert {e["digest"] for e in entries} == {e["digest"] for e in maker.entries}


async def test_an_archive_is_replaced_and_always_the_same(
    store: ImageStore, tmp_path: Path
) -> None:
    image = await import_one(store, hello().write(tmp_path / "layout"))
    (tmp_path / "a.tar").write_bytes(b"old")
    for name in ("a.tar", "b.tar"):
        await oci.export_layout(store, image.id, tmp_path / name)
    await oci.export_layout(store, image.id, str(tmp_path / "c"), transport="oci-archive")
    data = (tmp_path / "a.tar").read_bytes()
    assert (tmp_path / "b.tar").read_bytes() == data == (tmp_path / "c").read_bytes()
    await oci.export_layout(store, image.id, tmp_path / "d.tar", transport="oci")
    assert (tmp_path / "d.tar" / "index.json").is_file()
    await oci.export_layout(store, image.id, tmp_path / "d.tar")


async def test_archives_are_written_to_and_read_from_open_files(
    store: ImageStore, tmp_path: Path
) -> None:
    image = await import_one(store, hello().write(tmp_path / "layout"))
    buffer = io.BytesIO()
    await oci.export_layout(store, image.id, buffer)
    with open(tmp_path / "raw", "wb", buffering=0) as raw:
        await oci.export_layout(store, image.id, raw)
    assert (tmp_path / "raw").read_bytes() == buffer.getvalue()
    with open(tmp_path / "raw", "rb") as file:
        assert await import_one(store, file) == image
        assert file.tell() == 0
        with (
            open(file.fileno(), "rb", closefd=False) as same,
            pytest.raises(ImageUnknownError, match=r"^the archive has no image"),
        ):
            await import_one(store, same, ref="other")
    with pytest.raises(io.UnsupportedOperation):
        await oci.import_layout(store, buffer)


async def test_tar_files_of_other_programs_are_imported(store: ImageStore, tmp_path: Path) -> None:
    files = {f"./{n}": d for n, d in files_of(hello().write(tmp_path / "layout")).items()}
    image = await import_one(store, tmp_path / "layout")
    for form in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
        long = {"./" + "long/" * 45 + "name": b"x"} if form != tarfile.USTAR_FORMAT else {}
        (tmp_path / "a").write_bytes(archive(long | {"é/" * 40 + "b": b""} | files, form))
        assert await import_one(store, tmp_path / "a") == image
    for command in (["--format=gnu"], ["--format=posix"], ["--format=ustar"]):
        subprocess.run(
            ["tar", "-C", tmp_path / "layout", *command, "-cf", tmp_path / "b", "."], check=True
        )
        assert await import_one(store, tmp_path / "b") == image


async def test_a_tar_with_pax_headers_is_imported(store: ImageStore, tmp_path: Path) -> None:
    image = await import_one(store, hello().write(tmp_path / "layout"))
    with tarfile.open(tmp_path / "a", "w", pax_headers={"comment": "of all"}) as tar:
        for name, data in files_of(tmp_path / "layout").items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.pax_headers = {"size": str(len(data)), "mtime": "1.5"}
            tar.addfile(member, io.BytesIO(data))
    assert await import_one(store, tmp_path / "a") == image


async def test_a_digest_that_is_listed_as_manifest_and_as_blob_is_exported_once(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    one = maker.image(b"layer")
    maker.enter(maker.index(one, one | {"mediaType": "text/plain"}), "a:1")
    layout = maker.write(tmp_path / "layout")
    image = await import_one(store, layout)
    assert {one["digest"], f"manifest-{one['digest']}"} < set(image.big_data_names)
    await oci.export_layout(store, image.id, tmp_path / "out.tar")
    assert await import_one(store, tmp_path / "out.tar") == image


async def test_an_image_without_a_readable_manifest_cannot_be_exported(
    store: ImageStore, tmp_path: Path
) -> None:
    with pytest.raises(ImageUnknownError):
        await oci.export_layout(store, "nobody", tmp_path / "out")
    await store.create("bare")
    with pytest.raises(BigDataUnknownError, match="manifest; import it again"):
        await oci.export_layout(store, "bare", tmp_path / "out")
    await store.create("other", big_data={"manifest": b'{"schemaVersion":1,"config":{}}'})
    with pytest.raises(InvalidLayoutError):
        await oci.export_layout(store, "other", tmp_path / "out")
    await store.create("large", big_data={"manifest": b" " * (4 * 1024 * 1024 + 1)})
    with pytest.raises(InvalidLayoutError, match="4194304"):
        await oci.export_layout(store, "large", tmp_path / "out")
    assert set(os.listdir(tmp_path)) == {"store"}


async def test_an_export_leaves_a_directory_that_is_no_layout_as_it_is(
    store: ImageStore, tmp_path: Path
) -> None:
    image = await import_one(store, hello().write(tmp_path / "layout"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_bytes(b"dear")
    with pytest.raises(InvalidLayoutError, match="not empty") as caught:
        await oci.export_layout(store, image.id, tmp_path / "home")
    assert caught.value.path == str(tmp_path / "home")
    assert os.listdir(tmp_path / "home") == ["letter"]
    (tmp_path / "layout" / "index.json").write_bytes(b"[]")
    with pytest.raises(InvalidLayoutError):
        await oci.export_layout(store, image.id, tmp_path / "layout")
    with pytest.raises(FileNotFoundError):
        await oci.export_layout(store, image.id, tmp_path / "no" / "out")
    with pytest.raises(NotADirectoryError):
        await oci.export_layout(store, image.id, tmp_path / "home" / "letter")
    (tmp_path / "file.tar").mkdir()
    with pytest.raises(IsADirectoryError):
        await oci.export_layout(store, image.id, tmp_path / "file.tar", transport="oci-archive")
    assert set(os.listdir(tmp_path)) == {"file.tar", "home", "layout", "store"}


@pytest.mark.damage
@pytest.mark.parametrize("target", FORMS)
async def test_an_altered_item_is_not_exported(
    store: ImageStore, tmp_path: Path, path: Path, target: str
) -> None:
    image = await import_one(store, hello().write(tmp_path / "in"))
    for file in (path / image.id).iterdir():
        if file.read_bytes() == b"layer":
            file.write_bytes(b"LAYER")
    with pytest.raises(DigestMismatchError):
        await oci.export_layout(store, image.id, tmp_path / target)
    assert set(os.listdir(tmp_path)) == {"in", "store"}


@pytest.mark.parametrize("target", ["layout", "new", "new.tar"])
@pytest.mark.parametrize("call", ["rename", "fsync", "link", "mkdir"])
async def test_a_failed_export_leaves_everything_as_it_was(
    store: ImageStore, tmp_path: Path, faults: Faults, call: str, target: str
) -> None:
    other = Maker()
    other.enter(other.image(b"other", config={"n": 1}), "other:1")
    image = await import_one(store, hello().write(tmp_path / "in"))
    for when in range(1, 20):
        place = tmp_path / f"place{when}"
        other.write(place / "layout")
        before = tree(place)
        has_happened = True
        with faults.fail(call, errno.EIO, when.__eq__) as calls:
            try:
                await oci.export_layout(store, image.id, place / target)
            except OSError:
                # An export whose last sync fails has happened, whole.
                has_happened = call == "fsync" and tree(place) != before
        if not has_happened:
            assert tree(place) == before
            continue
        assert await import_one(store, place / target, ref="localhost/hello:1") == image
        assert not [name for name in tree(place) if Path(name).name.startswith(".")]
        if len(calls) < when:
            return
    raise AssertionError("it never succeeded")


@pytest.mark.parametrize("target", ["layout", "new", "new.tar"])
async def test_an_export_that_is_cancelled_leaves_everything_as_it_was(
    store: ImageStore, tmp_path: Path, target: str
) -> None:
    other = Maker()
    other.enter(other.image(b"other", config={"n": 1}), "other:1")
    image = await import_one(store, hello().write(tmp_path / "in"))
    open_before = open_files(str(tmp_path))
    for step in range(1, 300):
        place = tmp_path / f"place{step}"
        other.write(place / "layout")
        before = tree(place)
        export = partial(oci.export_layout, store, image.id, place / target)
        is_interrupted = await by_scope(export, step)
        await until(lambda: open_files(str(tmp_path)) == open_before)
        after = tree(place)
        if after != before:
            assert await import_one(store, place / target, ref="localhost/hello:1") == image
        assert not [name for name in after if Path(name).name.startswith(".")]
        if not is_interrupted:
            assert after != before
            return
    raise AssertionError("it never completed")


@pytest.mark.parametrize("form", FORMS)
async def test_an_import_that_is_cancelled_has_not_happened(
    store: ImageStore, tmp_path: Path, path: Path, form: str
) -> None:
    layout = multi().write(tmp_path / form)
    open_before = open_files(str(tmp_path))
    for step in range(1, 300):
        is_interrupted = await by_scope(partial(oci.import_layout, store, layout), step)
        # A thread that was reading when its caller was cancelled closes its files itself.
        await until(lambda: open_files(str(tmp_path)) - open_before <= open_files("images.json"))
        images = await store.images()
        if images:
            assert await import_one(store, layout) == images[0]
            await store.delete(images[0].id)
        assert set(os.listdir(path)) <= {"images.json", "images.lock"}
        if not is_interrupted:
            assert images
            return
    raise AssertionError("it never completed")


async def test_many_images_are_imported_with_few_open_files(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    for n in range(40):
        layers = (b"%d" % n + bytes(100_000), b"more" + bytes(100_000))
        maker.enter(maker.image(*layers, config={"n": n}), f"image:{n}")
    layout = maker.write(tmp_path / "layout")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    try:
        imported = await oci.import_layout(store, layout)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await store.images() == [each.image for each in imported]
    assert len(imported) == 40


async def test_an_import_that_fails_leaves_whole_images_only(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_importing, "_OPEN_FILES_MAX", 4)
    maker = Maker()
    for n in range(4):
        maker.enter(maker.image(b"%d" % n, config={"n": n}), f"image:{n}")
    path = blob_path(digest_of(b"2"))
    maker.files[path] = b"?"
    with pytest.raises(DigestMismatchError):
        await oci.import_layout(store, maker.write(tmp_path / "layout"))
    whole = await store.images()
    assert [image.names for image in whole] == [("localhost/image:0",), ("localhost/image:1",)]
    maker.files[path] = b"2"
    imported = await oci.import_layout(store, maker.write(tmp_path / "layout"))
    assert [each.is_new for each in imported] == [False, False, True, True]
    assert [each.image for each in imported[:2]] == whole


async def test_an_import_needs_a_writable_store_outside_a_transaction(
    tmp_path: Path, store: ImageStore
) -> None:
    layout = hello().write(tmp_path / "layout")
    async with ImageStore(tmp_path / "store", read_only=True) as other:
        with pytest.raises(StoreReadOnlyError):
            await oci.import_layout(other, layout)
    async with store.transaction():
        with pytest.raises(RuntimeError, match="transaction"):
            await oci.import_layout(store, layout)


async def test_imports_and_exports_report_progress(store: ImageStore, tmp_path: Path) -> None:
    maker = Maker()
    maker.enter(maker.image(b"x" * 5_000_000), "hello:1")
    layout = maker.write(tmp_path / "layout")
    seen: list[tuple[int, int]] = []
    (imported,) = await oci.import_layout(store, layout, progress=lambda *at: seen.append(at))
    assert seen[-1] == (imported.stored, imported.stored)
    assert len(seen) > 6
    assert seen == sorted(set(seen))
    seen.clear()
    exported = await oci.export_layout(
        store, imported.image.id, tmp_path / "out", progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (exported.written, exported.written)
    assert len(seen) > 6
    assert seen == sorted(set(seen))
    seen.clear()
    await oci.export_layout(
        store, imported.image.id, tmp_path / "out", progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (exported.written, exported.written)


# Imports and exports a large layer, and prints how much more memory that took than a small one.
MEMORY = """
import re, sys, anyio
from pathlib import Path
from aimagestore import ImageStore, oci
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
async def main(layout, small, out):
    async with ImageStore(out + "-store") as store:
        for name, source in (("small", small), ("large", layout)):
            await oci.import_layout(store, source, names=[name])
            await oci.export_layout(store, name, f"{out}-{name}")
            await oci.export_layout(store, name, f"{out}-{name}.tar")
            if name == "small":
                before = peak()
        print(peak() - before)
anyio.run(main, *sys.argv[2:], backend=sys.argv[1])
"""


@pytest.mark.parametrize(
    ("form", "backend"),
    pairs({form: form for form in FORMS}, {"asyncio": "asyncio", "trio": "trio"}),
)
def test_importing_and_exporting_a_large_layer_takes_little_memory(
    tmp_path: Path, form: str, backend: str
) -> None:
    maker = Maker()
    maker.enter(maker.image(bytes(100 * 1024 * 1024)))
    layout = maker.write(tmp_path / f"large-{form}")
    small = hello().write(tmp_path / f"small-{form}")
    out = tmp_path / backend
    command = [sys.executable, "-c", MEMORY, backend, str(layout), str(small), str(out)]
    # What the allocator keeps for each thread is not what is measured.
    env = os.environ | {"MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 16


async def test_an_archive_is_written_into_a_pipe_and_through_a_link(
    store: ImageStore, tmp_path: Path
) -> None:
    image = await import_one(store, hello().write(tmp_path / "in"))
    real, link, pipe = tmp_path / "real.tar", tmp_path / "link.tar", tmp_path / "pipe.tar"
    real.write_bytes(b"old")
    link.symlink_to("real.tar")
    os.mkfifo(pipe)
    await oci.export_layout(store, image.id, link)
    assert link.is_symlink()
    found: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(oci.export_layout, store, image.id, pipe)
        # Nobody reads yet.
        await anyio.sleep(0.1)
        found.append(await anyio.to_thread.run_sync(pipe.read_bytes))
    assert found == [real.read_bytes()]
    assert await import_one(store, real) == image


async def test_an_export_that_fails_leaves_the_blobs_that_another_has_committed(
    store: ImageStore, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await import_one(store, hello().write(tmp_path / "in"))
    target = tmp_path / "out"
    real = DirectoryTarget.commit

    async def export_too() -> None:
        async with ImageStore(path, read_only=True) as other:
            await oci.export_layout(other, image.id, target)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk fails")

    def commit(self: DirectoryTarget, entry: Any) -> None:
        # Another export of the same image comes first, when this one has all its blobs staged.
        monkeypatch.setattr(DirectoryTarget, "commit", real)
        anyio.run(export_too)
        monkeypatch.setattr(DirectoryTarget, "_write", fail)
        real(self, entry)

    monkeypatch.setattr(DirectoryTarget, "commit", commit)
    with pytest.raises(OSError, match="the disk fails"):
        await oci.export_layout(store, image.id, target)
    assert await import_one(store, target) == image
