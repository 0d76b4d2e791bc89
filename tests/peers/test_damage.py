"""Stores for which podman fails: a check says so, and podman works again after a repair."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aimagestore import FindingKind as Kind, ImageStore, check, repair

from ..support.loops import sample
from ..support.podman import PODMAN_FAILS, unlist_manifests
from ..support.stores import edit_index
from .generation import GENERATION
from .tools import Tools, require

pytestmark = pytest.mark.peers

NAME = "localhost/hello:1"
Change = Callable[[list[dict[str, Any]]], object]

MALFORMED_DIGESTS: list[Change] = [
    lambda records: records[0].update({"digest": "sha256:x"}),
    lambda records: records[0].update({"digest": "x"}),
    lambda records: records[0]["big-data-digests"].update({"manifest": "sha256:x"}),
    lambda records: records[0]["big-data-digests"].update({"manifest-not-listed": "x"}),
    lambda records: records[0]["big-data-digests"].update({"manifest": ""}),
]
"""Changes each of which gives the first record a malformed digest."""


async def test_podman_works_again_after_a_repair_of_malformed_digests(short_path: Path) -> None:
    require("podman", "buildah")
    tools = Tools(short_path)
    image_id = tools.commit(NAME, "hello")
    path = tools.image_store
    whole = json.loads((path / "images.json").read_bytes())
    for change in MALFORMED_DIGESTS:
        edit_index(path, change)
        with pytest.raises(AssertionError, match="invalid checksum digest"):
            tools.names()
        report = await check(path)
        assert {(f.kind, f.id) for f in report.findings} == {(Kind.DIGEST_MALFORMED, image_id)}
        await repair(path, report)
        assert tools.names() == {image_id: [NAME]}
        assert json.loads((path / "images.json").read_bytes()) == whole


# Records and items that podman cannot use

_HARMLESS = {"no manifest, no name", "index without instances", "instances of another type"}
DOES_NO_HARM = {"bookworm": _HARMLESS, "trixie": _HARMLESS}
"""The damage with which podman of these generations lists the image nevertheless."""

_MISSING = {
    *("unknown layer", "unknown mapped layer"),
    *("item lost with its size", "item without a valid key"),
}
LISTS_NOTHING = {"trixie": _MISSING, "forky": _MISSING}
"""The damage with which podman of these generations does not fail, but lists no image."""


@dataclass
class Whole:
    """A store of podman's, which each test damages and the next one restores."""

    tools: Tools
    image_id: str
    copy: Path

    @property
    def store(self) -> Path:
        return self.tools.image_store

    def restore(self) -> None:
        for path in self.store.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "images.lock":
                path.unlink()
        shutil.copytree(self.copy, self.store, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def whole() -> Iterator[Whole]:
    """The store, with an image that buildah has committed."""
    require("podman", "buildah")
    # podman refuses long run roots.
    with tempfile.TemporaryDirectory(prefix="aim-") as directory:
        tools = Tools(Path(directory))
        image_id = tools.commit(NAME, "hello")
        shutil.copytree(
            tools.image_store, Path(directory) / "copy", ignore=shutil.ignore_patterns("*.lock")
        )
        yield Whole(tools, image_id, Path(directory) / "copy")
        tools.podman("rmi", "--all", "--force")


def contents_of(store: Path) -> Counter[bytes]:
    """Return the contents of all items, except for those that the damage has overwritten."""
    files = (path for path in store.rglob("*") if path.is_file() and path.parent != store)
    return Counter(data for file in files if (data := file.read_bytes()).strip(b"x"))


def loses(before: bytes, after: bytes) -> bool:
    """Return whether one index lacks an image, a name, an item or metadata of an earlier one."""
    left = {record["id"]: record for record in json.loads(after)}
    return any(
        record["id"] not in left
        or any(
            set(record.get(field, ())) - set(left[record["id"]].get(field, ()))
            for field in ("names", "big-data-names")
        )
        or record.get("metadata") != left[record["id"]].get("metadata")
        for record in json.loads(before)
    )


def _kind(name: str) -> object:
    return name in _HARMLESS, name in _MISSING, PODMAN_FAILS[name].stays


@pytest.mark.parametrize("name", sample(PODMAN_FAILS, every=3, kind=_kind))
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_podman_works_again_after_a_repair(whole: Whole, name: str) -> None:
    """A usual run tries a third of the damage; other tests try check and repair with all of it."""
    damage = PODMAN_FAILS[name]
    whole.restore()
    damage.do(whole.store, whole.image_id)
    if name in DOES_NO_HARM.get(GENERATION, ()):
        assert whole.image_id in whole.tools.names()
    elif name in LISTS_NOTHING.get(GENERATION, ()):
        assert whole.tools.names() == {}
    else:
        with pytest.raises(AssertionError, match=r"[Ee]rror"):
            whole.tools.names()
    index, contents = (whole.store / "images.json").read_bytes(), contents_of(whole.store)
    report = await check(whole.store)
    said = [f.detail for f in report.findings if f.kind is Kind.PODMAN_FAILS]
    assert re.search(damage.says, " ".join(said))
    assert (await repair(whole.store, report, drop=name == "unknown layer")).findings
    assert (whole.image_id in whole.tools.names()) == damage.stays
    assert (await check(whole.store)).ok
    # Nothing is lost: a record that was dropped from the index is in a file beside it.
    assert contents <= contents_of(whole.store)
    kept = [path.read_bytes() for path in whole.store.glob("images.json.old-*")]
    is_loss = loses(index, (whole.store / "images.json").read_bytes())
    assert kept == [index] * is_loss


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_manifest_that_no_record_lists_is_not_collected_but_adopted(whole: Whole) -> None:
    """containers/storage leaves one when it dies after writing the file and before its record."""
    whole.restore()
    before = json.loads((whole.store / "images.json").read_bytes())
    edit_index(whole.store, unlist_manifests)
    async with ImageStore(whole.store) as store:
        assert (await store.collect_garbage()).ok
    assert whole.tools.names() == {whole.image_id: [NAME]}
    report = await check(whole.store)
    assert {finding.kind for finding in report.findings} == {Kind.ITEM_UNLISTED}
    await repair(whole.store, report)
    assert (await check(whole.store)).ok
    (record,) = json.loads((whole.store / "images.json").read_bytes())
    assert sorted(record.pop("big-data-names")) == sorted(before[0].pop("big-data-names"))
    assert [record] == before
    assert whole.tools.names() == {whole.image_id: [NAME]}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_image_runs_again_after_the_index_was_lost(whole: Whole) -> None:
    whole.restore()
    (record,) = json.loads((whole.store / "images.json").read_bytes())
    (whole.store / "images.json").unlink()
    await repair(whole.store, await check(whole.store))
    async with ImageStore(whole.store) as store:
        image = await store.get(whole.image_id)
        assert (image.top_layer, image.digest) == (record["layer"], record["digest"])
        await store.set_names(image.id, [NAME])
    assert (await check(whole.store)).ok
    container = whole.tools.buildah("from", NAME)
    mounted = Path(whole.tools.buildah("mount", container))
    assert (mounted / "hello.txt").read_text() == "hello"
    whole.tools.buildah("rm", container)
