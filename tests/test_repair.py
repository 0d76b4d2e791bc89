"""Repairing a directory: damage that is undone, dropped on request, or left alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import (
    FindingKind as Kind,
    ImageStore,
    Report,
    StoreCorruptError,
    check,
    repair,
)

from .support.beside import Beside
from .support.buildah import FIXTURE, FIXTURE_ID
from .support.damage import DAMAGE, listing
from .support.faults import Faults
from .support.layouts import digest_of
from .support.manifests import PAYLOAD, signed
from .support.stores import edit_index, locked, until_not_requested, until_requested

pytestmark = pytest.mark.damage

# What a repair does about each kind of finding, by itself or with ``drop=True``.
COMES_BACK = {
    Kind.INDEX_MISSING,
    Kind.INDEX_BLANK,
    Kind.INDEX_DAMAGED,
    Kind.DUPLICATE_NAME,
    Kind.DIRECTORY_ORPHANED,
    Kind.DIGEST_MALFORMED,
}
IS_DROPPED = {
    Kind.RECORD_DAMAGED,
    Kind.DUPLICATE_ID,
    Kind.DIRECTORY_MISSING,
    Kind.ITEM_MISSING,
    Kind.ITEM_SHORT,
    Kind.ITEM_LONG,
    Kind.ITEM_ALTERED,
    Kind.ITEM_UNREADABLE,
}
ITEMS = "e" * 64
IS_GARBAGE = {Kind.ITEM_UNLISTED, Kind.TEMPORARY_STALE}


@pytest.fixture
def image(path: Path) -> Path:
    """The directory of the image that buildah wrote, in a copy of its store."""
    shutil.copytree(FIXTURE, path)
    return path / FIXTURE_ID


async def test_every_kind_of_finding_is_repaired(tmp_path: Path) -> None:
    assert set(DAMAGE) == COMES_BACK | IS_DROPPED | IS_GARBAGE
    for kind, (damage, _) in DAMAGE.items():
        path = tmp_path / f"store-{kind}"
        shutil.copytree(FIXTURE, path)
        damage(path / FIXTURE_ID)
        done = await repair(path, await check(path))
        left = {finding.kind for finding in (await check(path)).findings}
        if kind in COMES_BACK:
            assert done.findings, kind
            assert left == set(), kind
            continue
        assert done.ok, kind
        assert left == {kind}
        done = await repair(path, await check(path), drop=True)
        assert done.ok == (kind in IS_GARBAGE), kind
        async with ImageStore(path) as store:
            await store.collect_garbage()
        assert (await check(path)).ok, kind


async def test_a_repair_without_findings_changes_nothing(path: Path, image: Path) -> None:
    before = (path / "images.json").read_bytes()
    assert (await repair(path, await check(path), drop=True)).ok
    assert (path / "images.json").read_bytes() == before


async def test_a_lost_index_is_rebuilt_from_the_directories(path: Path, image: Path) -> None:
    async with ImageStore(path) as store:
        before = await store.get(FIXTURE_ID)
        named = json.dumps({"annotations": {"org.opencontainers.image.ref.name": "one/name:1"}})
        other = await store.create(big_data={"manifest": named.encode()})
        third = await store.create(names=["lost"], big_data={"manifest": named.encode()})
    (path / "images.json").unlink()
    done = await repair(path, await check(path))
    assert [finding.kind for finding in done.findings].count(Kind.DIRECTORY_ORPHANED) == 3
    async with ImageStore(path) as store:
        image_again = await store.get(FIXTURE_ID)
        assert image_again.digest == before.digest
        assert image_again.big_data_digests == before.big_data_digests
        assert image_again.big_data_sizes == before.big_data_sizes
        assert set(image_again.big_data_names) == set(before.big_data_names)
        assert await store.lookup("one/name:1") in {other.id, third.id}
        assert not await store.exists("lost")
    assert (await check(path)).ok


async def test_a_name_that_is_not_valid_unicode_is_left_out(path: Path, image: Path) -> None:
    (image / "manifest").write_text(
        r'{"annotations":{"io.containerd.image.name":"\ud800",'
        r'"org.opencontainers.image.ref.name":"valid"}}'
    )
    (path / "images.json").write_bytes(b"[]")
    await repair(path, await check(path))
    async with ImageStore(path) as store:
        assert (await store.get(FIXTURE_ID)).names == ("valid",)


async def test_the_readable_records_of_a_damaged_index_are_kept(path: Path) -> None:
    async with ImageStore(path) as store, store.transaction() as tx:
        for i in range(5):
            await tx.create(f"id{i}", names=[f"name{i}"], flags={"flag": {"id": "no record"}})
        await tx.create(ITEMS, names=["lost"], big_data={"key": b"data"})
    text = (path / "images.json").read_bytes()
    torn = text.replace(b'"names":["name2"]', b'"names":["nam')
    (path / "images.json").write_bytes(torn[:-3])
    done = await repair(path, await check(path))
    assert "images.json.old-1" in done.findings[0].detail
    assert (path / "images.json.old-1").read_bytes() == torn[:-3]
    async with ImageStore(path) as store:
        ids = [image.id for image in await store.images()]
        assert ids == ["id0", "id1", "id3", "id4", ITEMS]
        assert await store.big_data(ITEMS, "key") == b"data"
        assert not await store.exists("lost")
    (path / "images.json").write_bytes(b"{")
    await repair(path, await check(path))
    assert (path / "images.json.old-2").read_bytes() == b"{"
    assert (await check(path)).ok


async def test_a_size_that_differs_from_the_data_is_corrected(path: Path, image: Path) -> None:
    edit_index(path, lambda records: records[0].update({"big-data-sizes": {"manifest": 7}}))
    done = await repair(path, await check(path))
    assert [finding.key for finding in done.findings] == ["manifest"]
    async with ImageStore(path) as store:
        assert (await store.get(FIXTURE_ID)).big_data_sizes == {"manifest": 495}


MALFORMED = ["", "x", "sha256:", "sha256:" + "A" * 64, "sha1:" + "0" * 40]


@pytest.mark.parametrize("digest", MALFORMED)
async def test_malformed_digests_are_computed_again(path: Path, image: Path, digest: str) -> None:
    before = json.loads((path / "images.json").read_bytes())

    def spoil(records: list[Any]) -> None:
        records[0]["digest"] = digest
        for key in records[0]["big-data-digests"]:
            records[0]["big-data-digests"][key] = digest

    edit_index(path, spoil)
    report = await check(path)
    keys = {f.key for f in report.findings if f.kind is Kind.DIGEST_MALFORMED}
    items = before[0]["big-data-digests"]
    assert keys == ({"", *items} if digest else {key for key in items if key[:8] == "manifest"})
    done = await repair(path, report)
    assert all(repr(digest) in finding.detail for finding in done.findings)
    assert (await check(path)).ok
    if digest:
        assert json.loads((path / "images.json").read_bytes()) == before
    async with ImageStore(path) as store:
        found = await store.get(FIXTURE_ID)
        assert found.digest == digest_of((image / "manifest").read_bytes())


async def test_a_malformed_digest_of_a_manifest_that_is_not_listed_is_removed(
    path: Path, image: Path
) -> None:
    before = json.loads((path / "images.json").read_bytes())
    digests = {"manifest-1": "x", "other": "x"}
    edit_index(path, lambda r: r[0]["big-data-digests"].update(digests))
    report = await check(path)
    assert [(f.kind, f.key) for f in report.findings] == [(Kind.DIGEST_MALFORMED, "manifest-1")]
    await repair(path, report)
    assert (await check(path)).ok
    before[0]["big-data-digests"]["other"] = "x"
    assert json.loads((path / "images.json").read_bytes()) == before


async def test_a_malformed_digest_of_damaged_content_is_removed(path: Path, image: Path) -> None:
    edit_index(path, lambda r: r[0]["big-data-digests"].update({"manifest": "x"}))
    os.truncate(image / "manifest", 10)
    await repair(path, await check(path))
    assert [f.kind for f in (await check(path)).findings] == [Kind.ITEM_SHORT]
    async with ImageStore(path, read_only=True) as store:
        assert "manifest" not in (await store.get(FIXTURE_ID)).big_data_digests


async def test_a_signed_manifest_gets_the_digest_that_podman_computes(
    path: Path, image: Path
) -> None:
    async with ImageStore(path) as store:
        await store.create("signed", big_data={"manifest": signed()})
    edit_index(path, lambda r: r[1].update({"big-data-digests": {"manifest": "x"}}))
    await repair(path, await check(path))
    assert (await check(path)).ok
    async with ImageStore(path) as store:
        digest = (await store.get("signed")).big_data_digests["manifest"]
    assert digest == digest_of(PAYLOAD)


async def test_damage_that_is_already_repaired_is_left_alone(path: Path, image: Path) -> None:
    content = (image / "manifest").read_bytes()
    (image / "manifest").unlink()
    report = await check(path)
    (image / "manifest").write_bytes(content)
    assert (await repair(path, report, drop=True)).ok
    assert (await check(path)).ok


@pytest.mark.parametrize("kind", [Kind.RECORD_DAMAGED, Kind.DUPLICATE_ID])
async def test_only_records_of_the_reported_kind_are_taken_out(
    path: Path, image: Path, kind: Kind
) -> None:
    edit_index(path, lambda records: records.insert(0, {"id": FIXTURE_ID}))
    edit_index(path, lambda records: records.append({}))
    report = await check(path)
    reported = Report(tuple(found for found in report.findings if found.kind is kind))
    await repair(path, reported, drop=True)
    left = {Kind.RECORD_DAMAGED, Kind.DUPLICATE_ID} - {kind}
    assert {found.kind for found in (await check(path)).findings} == left


async def test_beside_podman_only_damaged_records_are_taken_out_unasked(tmp_path: Path) -> None:
    path = Beside(tmp_path).images
    shutil.copytree(FIXTURE, path, dirs_exist_ok=True)
    edit_index(path, lambda records: records[0].pop("layer"))
    edit_index(path, lambda records: records.insert(0, {"id": FIXTURE_ID}))
    edit_index(path, lambda records: records.append({}))
    await repair(path, await check(path))
    assert [found.kind for found in (await check(path)).findings] == [Kind.DUPLICATE_ID]


async def test_unreported_damage_is_left_alone(path: Path, image: Path) -> None:
    (image / "manifest").unlink()
    report = await check(path)
    edit_index(path, lambda records: records.append({"id": 5}))
    done = await repair(path, report, drop=True)
    assert [finding.kind for finding in done.findings] == [Kind.ITEM_MISSING]
    assert [finding.kind for finding in (await check(path)).findings] == [Kind.RECORD_DAMAGED]


async def test_an_index_that_cannot_be_read_is_rebuilt_only_if_that_was_reported(
    path: Path, image: Path, faults: Faults
) -> None:
    edit_index(path, lambda records: records.append({}))
    report = await check(path)
    before = listing(path)
    bad = (path / "images.json").stat().st_ino

    def is_first(number: int, fd: int, __: object) -> bool:
        return number == 1 and os.fstat(fd).st_ino == bad

    with (
        faults.fail_call("readv", errno.EIO, is_first),
        pytest.raises(StoreCorruptError, match="check the store again"),
    ):
        await repair(path, report, drop=True)
    assert listing(path) == before
    (path / "images.json").write_bytes(b"[")
    with pytest.raises(StoreCorruptError, match="check the store again"):
        await repair(path, report, drop=True)
    assert (path / "images.json").read_bytes() == b"["


async def test_a_repair_that_waits_for_the_lock_is_cancelled(path: Path, image: Path) -> None:
    (image / "manifest").unlink()
    report = await check(path)
    before = listing(path)
    with locked(path):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(repair, path, report)
            await until_requested()
            tasks.cancel_scope.cancel()
    await until_not_requested()
    assert listing(path) == before


async def test_an_index_that_is_not_a_file_is_not_replaced(path: Path, image: Path) -> None:
    (path / "images.json").unlink()
    (path / "images.json").symlink_to("elsewhere")
    report = await check(path)
    with pytest.raises(StoreCorruptError, match="regular file"):
        await repair(path, report, drop=True)
    assert os.readlink(path / "images.json") == "elsewhere"


async def test_a_repair_reports_progress(path: Path, image: Path) -> None:
    (path / "images.json").unlink()
    reported: list[tuple[int, int | None]] = []
    done = await repair(path, await check(path), progress=lambda *figures: reported.append(figures))
    assert done.findings
    assert reported == []  # there was no record to look at again
    size = sum(file.stat().st_size for file in image.iterdir())
    manifest = image / "manifest"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    await repair(path, await check(path), progress=lambda *figures: reported.append(figures))
    assert reported[-1][1] == size
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)


async def test_an_error_in_progress_ends_a_repair_without_changes(path: Path, image: Path) -> None:
    def refuse(*_: int | None) -> None:
        raise LookupError("enough")

    (image / "manifest").write_bytes(b"altered")
    before = listing(path)
    report = await check(path)
    with pytest.raises(LookupError, match="enough"):
        await repair(path, report, drop=True, progress=refuse)
    assert listing(path) == before
    assert (await repair(path, report, drop=True)).findings
