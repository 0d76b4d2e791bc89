"""Which images of a layout an import takes, and under which names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aimagestore import (
    AmbiguousImageError,
    ImageStore,
    ImageUnknownError,
    InvalidLayoutError,
    oci,
)
from aimagestore.oci._naming import name_of
from aimagestore.oci._platform import Platform, best_of

from .support.layouts import (
    CONFIG,
    IMAGE_NAME,
    INDEX,
    LAYER,
    MANIFEST,
    REF_NAME,
    Maker,
    blob_path,
    digest_of,
    encode,
    entries_of,
    files_of,
    hello,
)

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
SPDX = "application/spdx+json"


def docker_save(*names: str, **fields: Any) -> Maker:
    """Return a layout as Docker writes it, with the full name and the tag of each image."""
    maker = Maker()
    for name in names:
        entry = maker.image(name.encode(), config={"of": name}, **fields)
        tag = name.rpartition(":")[2]
        maker.entries.append(entry | {"annotations": {IMAGE_NAME: name, REF_NAME: tag}})
    return maker


def runs_on(architecture: str, variant: str = "") -> dict[str, Any]:
    return {
        "config": {"architecture": architecture},
        "platform": {"os": "linux", "architecture": architecture}
        | ({"variant": variant} if variant else {}),
    }


async def names_in(store: ImageStore) -> set[tuple[str, ...]]:
    return {image.names for image in await store.images()}


ALPHA, BETA = "docker.io/library/alpha:latest", "docker.io/library/beta:latest"


# Names


async def test_images_with_one_tag_keep_their_own_names(store: ImageStore, tmp_path: Path) -> None:
    layout = docker_save(ALPHA, BETA).write(tmp_path / "layout")
    for imported in await oci.import_layout(store, layout):
        config = json.loads(await store.big_data(imported.image.id, f"sha256:{imported.image.id}"))
        assert imported.image.names == (config["of"],)
    assert await names_in(store) == {(ALPHA,), (BETA,)}


@pytest.mark.parametrize("platforms", [("amd64", "arm64"), ("amd64", "amd64")])
async def test_platforms_do_not_make_one_image_of_two_names(
    store: ImageStore, tmp_path: Path, platforms: tuple[str, str]
) -> None:
    maker = Maker()
    for name, architecture in zip((ALPHA, BETA), platforms, strict=True):
        entry = maker.image(name.encode(), **runs_on(architecture))
        maker.entries.append(entry | {"annotations": {IMAGE_NAME: name, REF_NAME: "latest"}})
    layout = maker.write(tmp_path / "layout")
    await oci.import_layout(store, layout, platform=f"linux/{platforms[1]}", ref=BETA)
    await oci.import_layout(store, layout)
    for name in (ALPHA, BETA):
        assert digest_of(name.encode()) in (await store.get(name)).big_data_names


@pytest.mark.parametrize("ref", [BETA, "beta:latest", "beta", "docker.io/beta"])
async def test_an_image_is_selected_by_its_whole_name_or_a_short_one(
    store: ImageStore, tmp_path: Path, ref: str
) -> None:
    layout = docker_save(ALPHA, BETA).write(tmp_path / "layout")
    (imported,) = await oci.import_layout(store, layout, ref=ref)
    assert imported.image.names == (BETA,)


async def test_an_image_is_selected_by_its_digest(store: ImageStore, tmp_path: Path) -> None:
    maker = Maker()
    first, second = (maker.enter(maker.image(config={"n": n}), "same:1") for n in (1, 2))
    layout = maker.write(tmp_path / "layout")
    for ref in (second["digest"], f"same:1@{second['digest']}"):
        (imported,) = await oci.import_layout(store, layout, ref=ref)
        assert imported.image.digest == second["digest"]
        assert imported.image.names == ("localhost/same:1",)
    with pytest.raises(ImageUnknownError):
        await oci.import_layout(store, layout, ref=f"other:1@{first['digest']}")


async def test_an_image_is_selected_by_its_position(store: ImageStore, tmp_path: Path) -> None:
    maker = docker_save("alpha", "beta")
    for position, entry in enumerate(maker.entries):
        path = maker.write(tmp_path / "layout")
        (imported,) = await oci.import_layout(store, path, ref=f"@{position}")
        assert imported.image.digest == entry["digest"]
    with pytest.raises(ImageUnknownError, match=r"has no image '@2'; it has .*alpha"):
        await oci.import_layout(store, path, ref="@2")


async def test_a_short_name_of_several_images_is_ambiguous(
    store: ImageStore, tmp_path: Path
) -> None:
    layout = docker_save(ALPHA, BETA).write(tmp_path / "layout")
    with pytest.raises(AmbiguousImageError, match=r"'latest'.*whole names") as caught:
        await oci.import_layout(store, layout, ref="latest")
    assert caught.value.candidates == (ALPHA, BETA)
    assert await store.images() == []


@pytest.mark.parametrize("ref", [None, "same:1", "localhost/same:1"])
async def test_one_name_for_two_images_stops_the_import(
    store: ImageStore, tmp_path: Path, ref: str | None
) -> None:
    maker = Maker()
    entries = [
        maker.enter(maker.image(config={"n": n}), name)
        for n, name in enumerate(["same:1", "localhost/same:1"])
    ]
    with pytest.raises(AmbiguousImageError, match="localhost/same:1") as caught:
        await oci.import_layout(store, maker.write(tmp_path / "layout"), ref=ref)
    assert caught.value.candidates == tuple(f"localhost/same:1@{e['digest']}" for e in entries)
    assert await store.images() == []


async def test_a_whole_name_takes_precedence_over_a_tag_that_looks_like_it(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = docker_save(ALPHA, BETA)
    maker.entries[0]["annotations"][REF_NAME] = BETA
    (imported,) = await oci.import_layout(store, maker.write(tmp_path / "layout"), ref=BETA)
    assert imported.image.names == (BETA,)


async def test_platforms_of_one_name_beside_another_image_are_ambiguous(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    for architecture in ("amd64", "arm64"):
        image = maker.image(architecture.encode(), **runs_on(architecture))
        maker.enter(image, "several:1")
    maker.enter(maker.image(b"other"), "other:1")
    layout = maker.write(tmp_path / "layout")
    with pytest.raises(AmbiguousImageError, match=r"several:1.*platform") as caught:
        await oci.import_layout(store, layout)
    assert caught.value.candidates == ("linux/amd64", "linux/arm64")
    (imported,) = await oci.import_layout(store, layout, ref="several:1", platform="linux/arm64")
    assert digest_of(b"arm64") in imported.image.big_data_names
    assert imported.image.names == ("localhost/several:1",)


async def test_one_name_for_two_images_of_one_platform_is_ambiguous(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    for content in (b"one", b"two"):
        maker.enter(maker.image(content, **runs_on("amd64")), "same:1")
    layout = maker.write(tmp_path / "layout")
    with pytest.raises(AmbiguousImageError, match=r"same:1.*by its ref") as caught:
        await oci.import_layout(store, layout, platform="linux/amd64")
    ref = caught.value.candidates[1]
    (imported,) = await oci.import_layout(store, layout, platform="linux/amd64", ref=ref)
    assert imported.image.digest == maker.entries[1]["digest"]


@pytest.mark.parametrize("name", ["localhost/a:1", "a:1"])
async def test_an_export_replaces_the_entry_with_its_name(
    store: ImageStore, tmp_path: Path, name: str
) -> None:
    maker = Maker()
    entry = maker.image(b"old", config={"n": 1})
    maker.entries.append(entry | {"annotations": {IMAGE_NAME: "localhost/a:1", REF_NAME: "1"}})
    maker.entries.append(entry | {"annotations": {IMAGE_NAME: "localhost/b:1", REF_NAME: "1"}})
    out = maker.write(tmp_path / "out")
    (imported,) = await oci.import_layout(store, hello().write(tmp_path / "in"))
    await oci.export_layout(store, imported.image.id, out, name=name)
    entries = entries_of(out)
    assert [name_of(e["annotations"]).full for e in entries] == ["localhost/b:1", "localhost/a:1"]
    assert entries[1]["digest"] == imported.image.digest


# Platforms


@pytest.mark.parametrize(
    ("asked", "present", "expected"),
    [
        ("arm", ["arm/v6", "arm/v7"], "arm/v7"),
        ("arm", ["arm/v6", "arm"], "arm"),
        ("arm/v7", ["arm/v6", "arm/v8"], "arm/v6"),
        ("arm/v7", ["arm/v5", "arm"], "arm/v5"),
        ("arm/v6", ["arm/v7", "arm/v8"], None),
        ("arm/7", ["arm/v6", "arm/v7"], "arm/v7"),
        ("armhf", ["arm/v6", "arm/v7"], "arm/v7"),
        ("arm64", ["arm64/v8"], "arm64/v8"),
        ("arm64", ["arm64/v8", "arm64"], "arm64"),
        ("arm64/v8", ["arm64", "arm64/v8"], "arm64/v8"),
        ("arm64/v8", ["arm64"], "arm64"),
        ("aarch64", ["amd64", "arm64/v8"], "arm64/v8"),
        ("arm64", ["arm/v8"], None),
        ("amd64", ["amd64/v2", "amd64"], "amd64"),
        ("amd64", ["amd64/v2"], None),
        ("amd64/v3", ["amd64", "amd64/v2", "amd64/v3"], "amd64/v3"),
        ("amd64/v3", ["amd64/v2", "amd64"], "amd64"),
        ("x86_64", ["amd64"], "amd64"),
        ("s390x", ["s390x"], "s390x"),
    ],
)
def test_platforms_are_matched_as_containers_image_does(
    asked: str, present: list[str], expected: str | None
) -> None:
    offered = [Platform.parse(f"linux/{platform}") for platform in present]
    position = best_of(offered, Platform.parse(f"linux/{asked}"))
    assert (None if position is None else present[position]) == expected


def test_an_entry_without_a_platform_comes_last() -> None:
    amd64 = Platform.parse("linux/amd64")
    assert best_of([None, amd64], amd64) == 1
    assert best_of([None, Platform.parse("linux/arm64")], amd64) == 0
    assert best_of([Platform.parse("windows/amd64")], amd64) is None


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64/v8"),
        ("armv7l", "linux/arm/v7"),
        ("i686", "linux/386"),
        ("s390x", "linux/s390x"),
    ],
)
def test_the_local_platform_is_that_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, expected: str
) -> None:
    system = os.uname_result(("Linux", "host", "6.1", "1", machine))
    monkeypatch.setattr(os, "uname", lambda: system)
    assert str(Platform.parse("local")) == expected


async def test_an_image_in_zstd_is_preferred_to_another_for_the_same_platform(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    plain, zstd = (maker.image(data, **runs_on("amd64")) for data in (b"plain", b"zstd"))
    zstd["annotations"] = {"io.github.containers.compression.zstd": "true"}
    maker.enter(maker.index(plain, zstd), "a:1")
    layout = maker.write(tmp_path / "layout")
    (imported,) = await oci.import_layout(store, layout, platform="linux/amd64")
    assert imported.image.digest == zstd["digest"]


# Content that is missing


def sparse(*present: str) -> Maker:
    """Return a layout of an index of three platforms, with the content of the given ones."""
    maker = Maker()
    images = {a: maker.image(a.encode(), **runs_on(a)) for a in ("amd64", "arm64", "s390x")}
    maker.enter(maker.index(*images.values()), "a:1")
    for architecture, image in images.items():
        if architecture not in present:
            del maker.files[blob_path(image["digest"])]
    return maker


async def test_the_only_platform_with_content_is_imported(
    store: ImageStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maker = sparse("arm64")
    (imported,) = await oci.import_layout(store, maker.write(tmp_path / "layout"))
    assert digest_of(b"arm64") in imported.image.big_data_names
    assert imported.image.names == ("localhost/a:1",)
    assert "linux/arm64 alone" in caplog.text
    assert await names_in(store) == {("localhost/a:1",)}


async def test_several_platforms_with_content_are_ambiguous(
    store: ImageStore, tmp_path: Path
) -> None:
    layout = sparse("arm64", "amd64").write(tmp_path / "layout")
    with pytest.raises(AmbiguousImageError, match=r"not complete.*platform") as caught:
        await oci.import_layout(store, layout)
    assert caught.value.candidates == ("linux/amd64", "linux/arm64")
    with pytest.raises(InvalidLayoutError, match=r"linux/s390x is missing.*linux/arm64"):
        await oci.import_layout(store, layout, platform="linux/s390x")
    (imported,) = await oci.import_layout(store, layout, platform="linux/arm64")
    assert digest_of(b"arm64") in imported.image.big_data_names


@pytest.mark.parametrize("part", ["config", "layer"])
async def test_a_platform_without_its_blobs_is_left_out(
    store: ImageStore, tmp_path: Path, part: str
) -> None:
    maker = sparse("arm64", "amd64", "s390x")
    for architecture in ("amd64", "s390x"):
        config = {"architecture": architecture, "os": "linux"}
        removed = json.dumps(config).encode() if part == "config" else architecture.encode()
        del maker.files[blob_path(digest_of(removed))]
    (imported,) = await oci.import_layout(store, maker.write(tmp_path / "layout"))
    assert digest_of(b"arm64") in imported.image.big_data_names


async def test_an_index_without_any_platform_is_refused(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidLayoutError, match=r"sha256:\w+, and 2 more are missing"):
        await oci.import_layout(store, sparse().write(tmp_path / "layout"))


# Entries that are not images


def artifact(maker: Maker, content: bytes = b"note", **fields: Any) -> dict[str, Any]:
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": SPDX,
        "config": maker.blob(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [maker.blob(content, SPDX)],
    } | fields
    return maker.document(manifest, MANIFEST)


BESIDE: dict[str, Callable[[Maker], dict[str, Any]]] = {
    "unknown type": lambda maker: maker.blob(b"<component/>", "application/xml"),
    "unknown type, missing": lambda _: {"mediaType": "text/plain", "digest": digest_of(b"missing")},
    "unknown type and digest": lambda _: {"mediaType": "text/plain", "digest": "blake3:0"},
    "artifact": artifact,
    "artifact that no type tells of": lambda maker: artifact(maker, artifactType=None),
    "artifact of another specification": lambda maker: maker.document(
        {"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "blobs": []},
        "application/vnd.oci.artifact.manifest.v1+json",
    ),
    "no type, and no manifest": lambda maker: maker.blob(b"note", "") | {"mediaType": None},
    "schema 1": lambda maker: maker.blob(
        b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws"
    ),
}


@pytest.mark.parametrize("case", BESIDE)
@pytest.mark.parametrize("name", ["", "beside:1"])
async def test_other_entries_do_not_stop_the_import_of_an_image(
    store: ImageStore, tmp_path: Path, case: str, name: str
) -> None:
    maker = hello()
    image = maker.entries[0]["digest"]
    maker.enter(BESIDE[case](maker), name)
    layout = maker.write(tmp_path / "layout")
    for options in ({}, {"names": ["one"]}, {"ref": "hello:1"}, {"platform": "linux/amd64"}):
        (imported,) = await oci.import_layout(store, layout, **options)
        assert imported.image.digest == image
    assert len(await store.images()) == 1


@pytest.mark.parametrize("media_type", ["application/xml", "", None])
async def test_an_entry_that_is_not_an_image_cannot_be_selected(
    store: ImageStore, tmp_path: Path, media_type: str | None
) -> None:
    maker = hello()
    maker.enter(maker.blob(b"<component/>", "") | {"mediaType": media_type}, "xml:1")
    with pytest.raises((ImageUnknownError, InvalidLayoutError), match=r"of the type|of type"):
        await oci.import_layout(store, maker.write(tmp_path / "layout"), ref="xml:1")


async def test_the_content_decides_the_type_of_an_entry_without_one(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = hello()
    del maker.entries[0]["mediaType"]
    (imported,) = await oci.import_layout(store, maker.write(tmp_path / "layout"))
    assert imported.image.digest == maker.entries[0]["digest"]


async def test_an_entry_that_cannot_be_verified_does_not_stop_the_others(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = hello()
    entries: list[dict[str, Any]] = [
        {"mediaType": MANIFEST, "digest": "blake3:" + "0" * 64, "size": 3},
        {"mediaType": MANIFEST, "digest": None, "size": 3},
        {"mediaType": MANIFEST, "digest": 5, "size": 3},
        {"mediaType": INDEX, "digest": digest_of(b""), "size": None},
        {"mediaType": INDEX, "digest": digest_of(b""), "size": "0"},
    ]
    for number, entry in enumerate(entries):
        maker.enter(entry, f"other:{number}")
    layout = maker.write(tmp_path / "layout")
    await oci.import_layout(store, layout, ref="hello:1")
    with pytest.raises(InvalidLayoutError, match=r"other:0.*blake3.*: localhost/hello:1$"):
        await oci.import_layout(store, layout)
    with pytest.raises(InvalidLayoutError, match=r"other:3.*no valid size"):
        await oci.import_layout(store, layout, ref="other:3")
    with pytest.raises(InvalidLayoutError, match=r"other:4.*int.*str.*: localhost/hello:1$"):
        await oci.import_layout(store, layout, ref="other:4")


async def test_the_message_about_one_image_of_several_names_the_others(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = hello()
    maker.enter(maker.image(b"absent", config={"author": "b"}), "absent:1")
    maker.omitted = blob_path(digest_of(b"absent"))
    layout = maker.write(tmp_path / "layout")
    with pytest.raises(
        InvalidLayoutError,
        match=r"localhost/absent:1 .*\(sha256:\w+ is missing\).* by their ref: localhost/hello:1$",
    ):
        await oci.import_layout(store, layout)
    with pytest.raises(InvalidLayoutError, match=r"layout: sha256:\w+ is missing$"):
        await oci.import_layout(store, layout, ref="absent:1")


ATTESTATION = {
    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    "platform": {"os": "unknown", "architecture": "unknown"},
}


@pytest.mark.parametrize("missing", ["nothing", "its manifest", "its layer"])
async def test_attestations_may_be_missing(store: ImageStore, tmp_path: Path, missing: str) -> None:
    maker = Maker()
    image = maker.image(b"layer", **runs_on("amd64"))
    statement = maker.image(b"statement") | ATTESTATION
    maker.enter(maker.index(image, statement), "a:1")
    if missing == "its manifest":
        del maker.files[blob_path(statement["digest"])]
    if missing == "its layer":
        del maker.files[blob_path(digest_of(b"statement"))]
    layout = maker.write(tmp_path / "layout")
    (imported,) = await oci.import_layout(store, layout)
    assert (
        imported.image.digest == (maker.entries[0] if missing != "its layer" else image)["digest"]
    )
    await oci.export_layout(store, imported.image.id, tmp_path / "out")
    assert files_of(tmp_path / "out").keys() <= files_of(layout).keys()
    (picked,) = await oci.import_layout(store, layout, platform="linux/amd64", names=["b"])
    assert picked.image.digest == image["digest"]
    with pytest.raises(ImageUnknownError, match="it has images for linux/amd64"):
        await oci.import_layout(store, layout, platform="linux/arm64")


async def test_a_platform_that_cannot_be_verified_counts_as_missing(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    image = maker.image(b"layer", **runs_on("amd64"))
    other = {"mediaType": MANIFEST, "digest": "blake3:" + "0" * 64, "size": 3}
    layers = [{"mediaType": LAYER, "digest": "md5:0", "size": 3}]
    manifest = {"schemaVersion": 2, "config": maker.document({}, CONFIG), "layers": layers}
    third = maker.document(manifest, MANIFEST)
    maker.enter(maker.index(image, other | {"platform": {"os": "linux"}}, third), "a:1")
    (imported,) = await oci.import_layout(store, maker.write(tmp_path / "layout"))
    assert imported.image.digest == image["digest"]


async def test_artifacts_alone_are_imported_but_not_into_podmans_store(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    maker.enter(artifact(maker), "note:1")
    layout = maker.write(tmp_path / "layout")
    (imported,) = await oci.import_layout(store, layout)
    assert f"sha256:{imported.image.id}" == maker.entries[0]["digest"]
    (tmp_path / "graph" / "vfs-layers").mkdir(parents=True)
    async with ImageStore(tmp_path / "graph" / "vfs-images") as podmans:
        with pytest.raises(InvalidLayoutError, match=r"podman.*note:1"):
            await oci.import_layout(podmans, layout)
        assert await podmans.images() == []


@pytest.mark.parametrize(
    ("manifest_type", "config_type", "is_read"),
    [
        (MANIFEST, CONFIG, True),
        (DOCKER, "application/octet-stream", True),
        (MANIFEST, "application/octet-stream", False),
        (MANIFEST, "application/vnd.docker.container.image.v1+json", False),
    ],
)
async def test_only_images_that_podman_reads_are_imported_into_its_store(
    tmp_path: Path, manifest_type: str, config_type: str, *, is_read: bool
) -> None:
    maker = Maker()
    config = maker.document({"rootfs": {"diff_ids": []}}, config_type)
    manifest = {"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": []}
    maker.enter(maker.document(manifest, manifest_type), "a:1")
    layout = maker.write(tmp_path / "layout")
    (tmp_path / "graph" / "vfs-layers").mkdir(parents=True)
    async with ImageStore(tmp_path / "graph" / "vfs-images") as podmans:
        if is_read:
            await oci.import_layout(podmans, layout)
        else:
            with pytest.raises(InvalidLayoutError, match="podman"):
                await oci.import_layout(podmans, layout)
        assert len(await podmans.images()) == is_read


# Null and malformed fields


async def test_null_reads_as_absent(store: ImageStore, tmp_path: Path) -> None:
    maker = Maker()
    config = {"created": "2024-05-06T07:08:09Z", "variant": None, "author": None, "config": None}
    platform = {"os": "linux", "architecture": "amd64", "variant": None, "features": None}
    nulls = dict.fromkeys(["annotations", "urls", "data", "artifactType"])
    image = maker.image(b"layer", config=config, platform=platform) | nulls
    index = {"schemaVersion": 2, "mediaType": None, "manifests": [image]} | dict.fromkeys(
        ["config", "layers", "annotations", "subject", "artifactType", "fsLayers", "history"]
    )
    maker.enter(maker.document(index, INDEX))
    maker.entries[0]["annotations"] = {REF_NAME: "a:1", IMAGE_NAME: None, "vendor": None}
    layout = maker.write(tmp_path / "layout")
    document = json.loads((layout / "index.json").read_bytes())
    document |= {"mediaType": None, "annotations": None, "config": None, "schemaVersion": None}
    (layout / "index.json").write_text(json.dumps(document))
    (imported,) = await oci.import_layout(store, layout, platform="linux/amd64")
    assert imported.image.names == ("localhost/a:1",)
    assert imported.image.created is not None
    assert str(imported.image.created).startswith("2024-05-06")


@pytest.mark.parametrize(
    "odd",
    [
        {"author": 5},
        {"variant": 5},
        {"architecture": ["x"]},
        {"os": {}},
        {"config": "x"},
        {"rootfs": 7},
        {"history": {"created": 1}},
    ],
)
async def test_a_malformed_field_of_a_config_does_not_hide_the_date(
    store: ImageStore, tmp_path: Path, odd: dict[str, Any]
) -> None:
    layout = hello(config={"created": "2024-05-06T07:08:09Z"} | odd).write(tmp_path / "layout")
    (imported,) = await oci.import_layout(store, layout)
    assert imported.image.created is not None
    assert str(imported.image.created).startswith("2024-05-06")


async def test_malformed_fields_do_not_hide_the_platform_and_the_name(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    platform = {"os": "linux", "architecture": "amd64", "variant": 7, "os.features": 1}
    image = maker.image(b"layer", platform=platform, urls=5, annotations=[1], artifactType={})
    maker.enter(maker.index(image), "a:1")
    maker.entries[0]["annotations"]["vendor"] = 5
    layout = maker.write(tmp_path / "layout")
    (imported,) = await oci.import_layout(store, layout, platform="linux/amd64", ref="a:1")
    assert imported.image.names == ("localhost/a:1",)
    assert imported.image.digest == image["digest"]


@pytest.mark.parametrize(
    ("manifest_type", "config_type"),
    [
        (DOCKER, "application/octet-stream"),
        (MANIFEST, "application/octet-stream"),
        (MANIFEST, "application/json"),
        (MANIFEST, None),
        (MANIFEST, CONFIG),
    ],
)
async def test_the_id_of_an_image_is_the_digest_of_its_config_of_any_type(
    store: ImageStore, tmp_path: Path, manifest_type: str, config_type: str | None
) -> None:
    maker = Maker()
    config = {
        "created": "2024-05-06T07:08:09Z",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(b"layer")]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": maker.document(config, "") | {"mediaType": config_type},
        "layers": [maker.blob(b"layer", LAYER)],
    }
    maker.enter(maker.document(manifest, manifest_type), "a:1")
    (imported,) = await oci.import_layout(store, maker.write(tmp_path / "layout"))
    assert f"sha256:{imported.image.id}" == manifest["config"]["digest"]  # type: ignore[index]
    assert imported.image.created is not None
    assert str(imported.image.created).startswith("2024-05-06")


# Limits apply to the selected images


async def test_one_image_of_very_many_is_selected(store: ImageStore, tmp_path: Path) -> None:
    maker = Maker()
    image = maker.image(b"layer")
    for number in range(10_001):
        maker.enter(image, f"app:1.{number}")
    layout = maker.write(tmp_path / "layout")
    assert (layout / "index.json").stat().st_size > 2_000_000
    (imported,) = await oci.import_layout(store, layout, ref="app:1.7")
    assert imported.image.names == ("localhost/app:1.7",)
    (imported,) = await oci.import_layout(store, layout)
    assert len(imported.image.names) == 10_001
    with pytest.raises(ImageUnknownError, match=r"app:1\.10, .* and 9,981 more$"):
        await oci.import_layout(store, layout, ref="other:1")


def in_another_case(value: Any) -> Any:
    """A document with the names of all fields but annotations in capitals."""
    if isinstance(value, list):
        return [in_another_case(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name.upper(): each if name == "annotations" else in_another_case(each)
        for name, each in value.items()
    }


async def test_the_names_of_fields_may_be_in_another_case(
    store: ImageStore, tmp_path: Path
) -> None:
    plain, maker = hello(), Maker()
    config = {"architecture": "arm64", "os": "linux", "created": "2024-05-06T07:08:09Z"}
    layers = [maker.blob(b"layer", LAYER)]
    described = maker.document(in_another_case(config), CONFIG)
    manifest = {"schemaVersion": 2, "config": described, "layers": layers}
    maker.enter(maker.document(in_another_case(manifest), MANIFEST), "hello:1")
    index = in_another_case({"schemaVersion": 2, "manifests": maker.entries})
    maker.files["index.json"] = encode(index)
    layout = maker.write(tmp_path / "layout")
    (imported,) = await oci.import_layout(store, layout, platform="linux/arm64")
    assert imported.image.names == ("localhost/hello:1",)
    assert str(imported.image.created).startswith("2024-05-06")
    assert digest_of(b"layer") in imported.image.big_data_names
    (other,) = await oci.import_layout(store, plain.write(tmp_path / "other"))
    await oci.export_layout(store, other.image.id, layout, name="other:1")
    found = json.loads((layout / "index.json").read_bytes())
    assert len(found["manifests"]) == 2
    assert "MANIFESTS" not in found


async def test_two_spellings_of_a_field_are_refused(store: ImageStore, tmp_path: Path) -> None:
    maker = hello()
    other = maker.image(b"other")
    maker.entries[0] |= {"Digest": other["digest"], "Size": other["size"]}
    with pytest.raises(InvalidLayoutError, match=r"hello:1 .*'digest' in two spellings"):
        await oci.import_layout(store, maker.write(tmp_path / "layout"))
