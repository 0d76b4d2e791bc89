"""Records that podman cannot read are found, repaired and refused in its store."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import (
    FindingKind as Kind,
    ImageStore,
    PodmanFailsError,
    check,
    copy_images,
    oci,
    repair,
)
from aimagestore._core.names import big_data_file
from aimagestore._directory.commit import DirectoryWriter
from aimagestore._directory.placement import Placement

from .support.buildah import FIXTURE, FIXTURE_ID
from .support.layouts import Maker
from .support.podman import ARTIFACT, INDEX, OTHER, PODMAN_FAILS, unlist_manifests
from .support.stores import edit_index

pytestmark = pytest.mark.damage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of buildah's store, with the layer of its image beside it."""
    path = tmp_path / "store" / "vfs-images"
    shutil.copytree(FIXTURE, path)
    record = json.loads((path / "images.json").read_bytes())[0]
    layers = path.parent / "vfs-layers"
    layers.mkdir()
    (layers / "layers.json").write_text(json.dumps([{"id": record["layer"], "created": "x"}]))
    return path


def index_of(path: Path) -> bytes:
    return (path / "images.json").read_bytes()


def kept(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.glob("images.json.old-*"))]


async def test_an_undamaged_store_has_no_findings(path: Path) -> None:
    assert (await check(path)).ok


@pytest.mark.parametrize("name", PODMAN_FAILS)
async def test_a_record_that_podman_cannot_read_is_found_and_repaired(
    path: Path, name: str
) -> None:
    damage = PODMAN_FAILS[name]
    damage.do(path, FIXTURE_ID)
    before = index_of(path)
    report = await check(path)
    said = [f.detail for f in report.findings if f.kind is Kind.PODMAN_FAILS]
    assert re.search(damage.says, " ".join(said))
    assert index_of(path) == before
    done = await repair(path, report, drop=name == "unknown layer")
    assert done.findings
    assert (await check(path)).ok
    async with ImageStore(path) as store:
        assert await store.exists(FIXTURE_ID) == damage.stays
    assert kept(path) in ([], [before])
    if not damage.stays:
        assert kept(path) == [before]
        assert any("images.json.old-1" in finding.detail for finding in done.findings)


@pytest.mark.parametrize("name", PODMAN_FAILS)
async def test_a_record_that_podman_cannot_read_is_no_damage_in_another_store(
    path: Path, name: str
) -> None:
    shutil.rmtree(path.parent / "vfs-layers")
    PODMAN_FAILS[name].do(path, FIXTURE_ID)
    assert Kind.PODMAN_FAILS not in {finding.kind for finding in (await check(path)).findings}


async def test_the_files_of_an_image_that_is_taken_out_stay(path: Path) -> None:
    PODMAN_FAILS["artifact"].do(path, FIXTURE_ID)
    await repair(path, await check(path))
    async with ImageStore(path) as store:
        assert not await store.exists(OTHER)
        await store.collect_garbage()
    assert (path / f"{OTHER}.old-1" / "manifest").read_bytes() == ARTIFACT
    # Another one of the same ID goes beside it.
    edit_index(path, lambda records: records.append({"id": OTHER}))
    (path / OTHER).mkdir()
    (path / OTHER / "other").touch()
    await repair(path, await check(path))
    assert (path / f"{OTHER}.old-2" / "other").exists()
    assert len(kept(path)) == 2


async def test_the_files_of_a_damaged_record_that_is_taken_out_stay(path: Path) -> None:
    edit_index(path, lambda records: records.append({"id": OTHER, "names": 5}))
    (path / OTHER).mkdir()
    (path / OTHER / "manifest").write_bytes(ARTIFACT)
    await repair(path, await check(path))
    async with ImageStore(path) as store:
        await store.collect_garbage()
    assert (path / f"{OTHER}.old-1" / "manifest").read_bytes() == ARTIFACT
    assert (await check(path)).ok


async def test_content_that_was_pending_stays_when_its_image_is_taken_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PODMAN_FAILS["artifact"].do(path, FIXTURE_ID)

    def refuse(_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Placement, "finish", refuse)
        async with ImageStore(path) as store:
            await store.set_big_data(OTHER, "manifest", ARTIFACT + b" ")
    assert (path / OTHER / "manifest").read_bytes() == ARTIFACT
    await repair(path, await check(path))
    assert (path / f"{OTHER}.old-1" / "manifest").read_bytes() == ARTIFACT + b" "
    assert (await check(path)).ok


async def test_an_image_with_a_long_id_is_taken_out_as_well(path: Path) -> None:
    long = "é" * 127
    edit_index(path, lambda records: records.append({"id": long}))
    (path / long).mkdir()
    (path / long / "file").touch()
    await repair(path, await check(path))
    assert [file.name for file in path.glob("é*/*")] == ["file"]
    assert (await check(path)).ok


async def test_a_repair_that_fails_leaves_everything_where_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PODMAN_FAILS["artifact"].do(path, FIXTURE_ID)
    before, names = index_of(path), sorted(os.listdir(path))
    report = await check(path)

    def refuse(*_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryWriter, "_switch", refuse)
        with pytest.raises(OSError, match="no"):
            await repair(path, report)
    assert index_of(path) == before
    assert sorted(os.listdir(path)) == names
    await repair(path, report)
    assert (await check(path)).ok


async def test_a_damaged_record_is_taken_out_without_drop(path: Path) -> None:
    edit_index(path, lambda records: records.append({"id": 5}))
    before = index_of(path)
    report = await check(path)
    assert [finding.kind for finding in report.findings] == [Kind.RECORD_DAMAGED]
    await repair(path, report)
    assert (await check(path)).ok
    assert kept(path) == [before]


async def test_an_unknown_layer_may_be_an_additional_stores(path: Path) -> None:
    PODMAN_FAILS["unknown layer"].do(path, FIXTURE_ID)
    report = await check(path)
    assert "additional store" in report.findings[0].detail
    assert (await repair(path, report)).ok
    assert await check(path) == report


@pytest.fixture
def additional(path: Path, tmp_path: Path) -> Path:
    """An additional store that has the layer of buildah's image, which the store itself lacks."""
    additional = tmp_path / "shared" / "vfs-images"
    additional.mkdir(parents=True)
    (additional / "images.json").write_text("[]")
    shutil.copytree(path.parent / "vfs-layers", additional.parent / "vfs-layers")
    (path.parent / "vfs-layers" / "layers.json").write_text("[]")
    return additional


async def test_an_image_whose_layer_an_additional_store_has_is_not_taken_out(
    path: Path, additional: Path
) -> None:
    (path / FIXTURE_ID / "unlisted").touch()
    report = await check(path, additional_stores=[additional])
    assert [finding.kind for finding in report.findings] == [Kind.ITEM_UNLISTED]
    before = index_of(path)
    done = await repair(path, report, additional_stores=[additional], drop=True)
    assert (done.findings, index_of(path)) == ((), before)
    # If that store cannot be read, it is not known which layers it has.
    (additional.parent / "vfs-layers" / "layers.json").write_text("[")
    done = await repair(path, report, additional_stores=[additional], drop=True)
    assert (done.findings, index_of(path)) == ((), before)
    await repair(path, report, drop=True)
    assert index_of(path) == b"[]"


async def test_the_layer_of_a_new_image_may_be_in_an_additional_store(
    path: Path, additional: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ImageStore(path, additional_stores=[additional]) as store:
        image = await store.get(FIXTURE_ID)
        items = {key: await store.big_data(FIXTURE_ID, key) for key in image.big_data_names}
        await store.create(OTHER, top_layer=image.top_layer, big_data=items)
        with pytest.raises(PodmanFailsError, match="layer unknown is unknown"):
            await store.create("f" * 64, top_layer="unknown", big_data=items)
        assert not caplog.records
        # It is not known which layers an additional store has if they cannot be read.
        (additional.parent / "vfs-layers" / "layers.json").write_text("[")
        await store.create("f" * 64, top_layer="elsewhere", big_data=items)


async def test_an_adopted_image_gets_a_layer_of_an_additional_store(
    path: Path, additional: Path
) -> None:
    (record,) = json.loads(index_of(path))
    config = json.loads((path / FIXTURE_ID / big_data_file(f"sha256:{FIXTURE_ID}")).read_bytes())
    layers = [{"id": record["layer"], "diff-digest": config["rootfs"]["diff_ids"][0]}]
    (additional.parent / "vfs-layers" / "layers.json").write_text(json.dumps(layers))
    edit_index(path, lambda records: records.clear())
    report = await check(path, additional_stores=[additional])
    await repair(path, report, additional_stores=[additional])
    async with ImageStore(path) as store:
        assert (await store.get(FIXTURE_ID)).top_layer == record["layer"]


async def test_volatile_layers_are_known(path: Path) -> None:
    layers = path.parent / "vfs-layers"
    (layers / "layers.json").rename(layers / "volatile-layers.json")
    assert (await check(path)).ok
    (layers / "volatile-layers.json").unlink()
    assert [finding.kind for finding in (await check(path)).findings] == [Kind.PODMAN_FAILS]
    (layers / "layers.json").write_text("[")
    assert [finding.kind for finding in (await check(path)).findings] == [Kind.LAYERS_DAMAGED]


async def test_a_manifest_that_no_record_lists_is_kept_and_adopted(path: Path) -> None:
    before = json.loads(index_of(path))
    edit_index(path, unlist_manifests)
    async with ImageStore(path) as store:
        assert (await store.collect_garbage()).ok
    await repair(path, await check(path))
    assert (await check(path)).ok
    (record,) = json.loads(index_of(path))
    assert record["big-data-digests"] == before[0]["big-data-digests"]
    (path / FIXTURE_ID / "manifestold").touch()
    async with ImageStore(path) as store:
        assert len((await store.collect_garbage()).findings) == 1


async def test_all_that_podman_reads_unlisted_is_kept_and_listed(path: Path) -> None:
    before = json.loads(index_of(path))
    config = f"sha256:{FIXTURE_ID}"

    def unlist_all(records: list[dict[str, Any]]) -> None:
        for field in ("big-data-names", "big-data-sizes", "big-data-digests"):
            del records[0][field]

    edit_index(path, unlist_all)
    (path / FIXTURE_ID / "instances.json").write_bytes(b"{}")
    async with ImageStore(path) as store:
        removed = (await store.collect_garbage()).findings
        assert [Path(finding.path).name[:1] for finding in removed] == ["="]  # the signature
    await repair(path, await check(path))
    assert (await check(path)).ok
    (record,) = json.loads(index_of(path))
    assert {config, "manifest", "instances.json"} < set(record["big-data-names"])
    for key, digest in before[0]["big-data-digests"].items():
        if not key.startswith("signature"):
            assert record["big-data-digests"][key] == digest


async def test_a_damaged_config_is_not_listed(path: Path) -> None:
    config = f"sha256:{FIXTURE_ID}"

    def unlist(records: list[dict[str, Any]]) -> None:
        records[0]["big-data-names"].remove(config)

    edit_index(path, unlist)
    (path / FIXTURE_ID / big_data_file(config)).write_bytes(b"{}")
    await repair(path, await check(path))
    assert index_of(path) == b"[]"


async def test_a_directory_is_only_adopted_if_podman_can_read_the_image(path: Path) -> None:
    (path / OTHER).mkdir()
    (path / OTHER / "manifest").write_bytes(ARTIFACT)
    before = index_of(path)
    done = await repair(path, await check(path))
    assert "not adopted" in done.findings[-1].detail
    assert index_of(path) == before
    assert (path / OTHER / "manifest").exists()


@pytest.mark.parametrize("is_known", [True, False])
async def test_the_manifest_that_comes_back_is_the_images(path: Path, *, is_known: bool) -> None:
    """One of several manifests is the index through which the image was pulled."""
    manifest = (path / FIXTURE_ID / "manifest").read_bytes()
    async with ImageStore(path) as store:
        of_index = await store.set_big_data(FIXTURE_ID, "manifest-0", INDEX)
        await store.set_big_data(FIXTURE_ID, "manifest-1", manifest + b" ")
    digest = of_index.big_data_digests["manifest-0"]
    if not is_known:
        edit_index(path, lambda records: records[0].update(digest=digest))
    (path / FIXTURE_ID / "manifest").unlink()
    await repair(path, await check(path))
    found = (path / FIXTURE_ID / "manifest").read_bytes()
    assert found == manifest if is_known else found.strip() == manifest
    assert (await check(path)).ok


# Changes that are refused, or made with force


async def test_an_image_that_podman_cannot_read_is_not_created(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = index_of(path)
    async with ImageStore(path) as store:
        for items in ({}, {"manifest": ARTIFACT}, {"manifest": INDEX}, {"manifest": b"{"}):
            with pytest.raises(PodmanFailsError, match="force=True") as caught:
                await store.create(OTHER, big_data=items)
            assert caught.value.id == OTHER
            assert caught.value.path == str(path.parent / "vfs-layers")
            assert len(caught.value.problems) == 1
        assert index_of(path) == before
        assert not (path / OTHER).exists()
        assert not caplog.records
        await store.create(OTHER, force=True)
    assert f"podman images fails while image {OTHER}" in caplog.text
    assert [finding.kind for finding in (await check(path)).findings] == [Kind.PODMAN_FAILS]


async def test_force_is_for_one_image_not_for_the_next_one_with_its_id(path: Path) -> None:
    async with ImageStore(path) as store:
        with pytest.raises(PodmanFailsError):
            async with store.transaction() as tx:
                await tx.create(OTHER, force=True)
                await tx.delete(OTHER)
                await tx.create(OTHER)
        assert not await store.exists(OTHER)


async def test_a_new_image_may_get_its_manifest_in_the_same_transaction(path: Path) -> None:
    async with ImageStore(path) as store:
        items = {
            key: await store.big_data(FIXTURE_ID, key)
            for key in (await store.get(FIXTURE_ID)).big_data_names
        }
        async with store.transaction() as tx:
            await tx.create(OTHER)
            for key, data in items.items():
                await tx.set_big_data(OTHER, key, data)
        with pytest.raises(PodmanFailsError):
            async with store.transaction() as tx:
                await tx.create("f" * 64)
                await tx.add_names(OTHER, ["localhost/never:1"])
        assert (await store.get(OTHER)).names == ()
        assert not await store.exists("f" * 64)
    assert (await check(path)).ok


async def test_the_layer_of_a_new_image_has_to_be_there(path: Path) -> None:
    async with ImageStore(path) as store:
        image = await store.get(FIXTURE_ID)
        items = {key: await store.big_data(FIXTURE_ID, key) for key in image.big_data_names}
        with pytest.raises(PodmanFailsError, match="layer unknown is unknown"):
            await store.create(OTHER, top_layer="unknown", big_data=items)
        await store.create(OTHER, top_layer=image.top_layer, big_data=items)


async def test_a_change_that_podman_fails_for_is_made_with_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ImageStore(path) as store:
        await store.add_names(FIXTURE_ID, ["localhost/fine:1"])
        await store.set_flag(FIXTURE_ID, "flag", 1)
        assert not caplog.records
        await store.add_names(FIXTURE_ID, ["A B"])
        assert "'A B' is no reference" in caplog.text
        caplog.clear()
        await store.set_metadata(FIXTURE_ID, "text")
        assert "metadata" in caplog.text
        assert "A B" not in caplog.text  # it was there before
        caplog.clear()
        await store.delete(FIXTURE_ID)
        assert not caplog.records


async def test_a_refused_image_fails_alone_in_its_batch(path: Path) -> None:
    failed = set()
    async with ImageStore(path) as store, anyio.create_task_group() as tasks:

        async def create(image_id: str) -> None:
            try:
                await store.create(image_id)
            except PodmanFailsError as error:
                failed.add(error.id)

        async def tag(name: str) -> None:
            await store.add_names(FIXTURE_ID, [name])

        for number in range(5):
            tasks.start_soon(create, str(number) * 64)
            tasks.start_soon(tag, f"localhost/a:{number}")
    assert failed == {str(number) * 64 for number in range(5)}
    async with ImageStore(path, read_only=True) as store:
        assert len((await store.get(FIXTURE_ID)).names) == 7


async def test_a_copy_that_podman_cannot_read_is_refused(path: Path, tmp_path: Path) -> None:
    async with ImageStore(tmp_path / "plain") as plain, ImageStore(path) as store:
        await plain.create(OTHER, big_data={"manifest": ARTIFACT})
        with pytest.raises(PodmanFailsError, match="artifact"):
            await copy_images(plain, store)
        assert not await store.exists(OTHER)
        assert (await copy_images(plain, store, force=True)).images == 1
        # Any other store takes every image.
        assert (await copy_images(store, plain)).images == 1


async def test_an_artifact_is_imported_with_force(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maker = Maker()
    config = maker.document({}, "application/x")
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": []}
    maker.enter(maker.document(manifest, media_type), "note:1")
    layout = maker.write(tmp_path / "layout")
    async with ImageStore(path) as store:
        with pytest.raises(ValueError, match="force=True"):
            await oci.import_layout(store, layout)
        (imported,) = await oci.import_layout(store, layout, force=True)
        assert await store.exists(imported.image.id)
    assert "podman images fails" in caplog.text


async def test_force_is_a_bool(path: Path, tmp_path: Path) -> None:
    async with ImageStore(path) as store:
        with pytest.raises(TypeError, match="force"):
            await store.create(force="yes")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="force"):
            await oci.import_layout(store, tmp_path, force="yes")  # type: ignore[arg-type]


async def test_a_repair_that_may_have_happened_keeps_the_files_that_it_took_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PODMAN_FAILS["artifact"].do(path, FIXTURE_ID)
    before = index_of(path)
    report = await check(path)

    def refuse(*_: object) -> None:
        raise OSError(5, "no")

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryWriter, "_make_durable", refuse)
        with pytest.raises(OSError, match="no"):
            await repair(path, report)
    assert kept(path) == [before]
    assert (path / f"{OTHER}.old-1" / "manifest").exists()
    assert (await check(path)).ok


async def test_an_adopted_image_gets_the_layer_that_its_config_names(path: Path) -> None:
    (record,) = json.loads(index_of(path))
    config = json.loads((path / FIXTURE_ID / big_data_file(f"sha256:{FIXTURE_ID}")).read_bytes())
    (digest,) = config["rootfs"]["diff_ids"]
    layers = [
        {"id": "other", "diff-digest": "sha256:" + "0" * 64},
        {"id": "deeper", "diff-digest": digest, "parent": "other"},
        {"id": record["layer"], "diff-digest": digest},
    ]
    (path.parent / "vfs-layers" / "layers.json").write_text(json.dumps(layers))
    edit_index(path, lambda records: records.clear())
    done = await repair(path, await check(path))
    assert record["layer"] in done.findings[-1].detail
    async with ImageStore(path) as store:
        assert (await store.get(FIXTURE_ID)).top_layer == record["layer"]
    (path.parent / "vfs-layers" / "layers.json").write_text(json.dumps(layers[:2]))
    edit_index(path, lambda records: records.clear())
    await repair(path, await check(path))
    async with ImageStore(path) as store:
        assert (await store.get(FIXTURE_ID)).top_layer == ""


async def test_an_image_without_its_layers_is_created_with_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ImageStore(path) as store:
        image = await store.get(FIXTURE_ID)
        items = {key: await store.big_data(FIXTURE_ID, key) for key in image.big_data_names}
        await store.create(OTHER, top_layer=image.top_layer, big_data=items)
        assert not caplog.records
        await store.create("f" * 64, big_data=items)
        assert "podman lists image " + "f" * 64 in caplog.text
        assert "nor load or pull it" in caplog.text
        caplog.clear()
        await store.set_metadata("f" * 64, "{}")
        assert not caplog.records
    assert (await check(path)).ok
