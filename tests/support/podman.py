"""Every kind of damage that makes podman fail, done to a store with one image of buildah's."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from aimagestore import FindingKind, Report
from aimagestore._core.names import big_data_file

from .layouts import digest_of
from .stores import edit_index

OTHER = "e" * 64
"""The ID of a second image."""

_OCI = "application/vnd.oci.image"


def without_podman(report: Report) -> Report:
    """Return a report without the images that podman cannot read, which others can."""
    findings = (f for f in report.findings if f.kind is not FindingKind.PODMAN_FAILS)
    return dataclasses.replace(report, findings=tuple(findings))


class Damage(NamedTuple):
    """One kind of damage.

    :ivar do: damages a store, given its path and the ID of buildah's image
    :ivar says: a pattern of what a check says about it
    :ivar stays: whether a repair leaves buildah's image in the index
    """

    do: Callable[[Path, str], object]
    says: str
    stays: bool = True


def _fields(**fields: Any) -> Callable[[Path, str], object]:
    return lambda store, _: edit_index(store, lambda records: records[0].update(fields))


def _added(**fields: Any) -> Callable[[Path, str], object]:
    record = {"id": OTHER, "created": "2024-01-01T00:00:00Z"} | fields
    return lambda store, _: edit_index(store, lambda records: records.append(record))


def items_of(*items: tuple[str, bytes]) -> dict[str, Any]:
    """Return the fields of a record that describe its items."""
    return {
        "big-data-names": [key for key, _ in items],
        "big-data-sizes": {key: len(data) for key, data in items},
        "big-data-digests": {key: digest_of(data) for key, data in items},
    }


def _with_items(*items: tuple[str, bytes]) -> Callable[[Path, str], object]:
    def damage(store: Path, image_id: str) -> None:
        (store / OTHER).mkdir()
        for key, data in items:
            (store / OTHER / big_data_file(key)).write_bytes(data)
        _added(names=["localhost/other:1"], **items_of(*items))(store, image_id)

    return damage


def _manifests(store: Path, image_id: str) -> list[Path]:
    return [p for p in (store / image_id).iterdir() if p.name.startswith(("manifest", "=bWFuaW"))]


def _config(store: Path, image_id: str) -> Path:
    return store / image_id / big_data_file(f"sha256:{image_id}")


def _without_manifests(store: Path, image_id: str) -> None:
    for manifest in _manifests(store, image_id):
        manifest.unlink()


def _unlist(record: dict[str, Any], key: str) -> None:
    record["big-data-names"].remove(key)
    del record["big-data-sizes"][key], record["big-data-digests"][key]


def unlist_manifests(records: list[dict[str, Any]]) -> None:
    """Remove the manifests from the first record, but not their files."""
    for key in [key for key in records[0]["big-data-names"] if key.startswith("manifest")]:
        _unlist(records[0], key)


def _half_made(store: Path, image_id: str) -> None:
    """Leave what containers/storage leaves that dies before it saves the first manifest."""
    edit_index(store, unlist_manifests)
    _without_manifests(store, image_id)


def _half_listed(store: Path, image_id: str) -> None:
    """Leave what containers/storage leaves that dies before it writes the last manifest."""
    (store / image_id / "manifest").unlink()
    edit_index(store, lambda records: _unlist(records[0], "manifest"))


def _directory_for_manifest(store: Path, image_id: str) -> None:
    (store / image_id / "manifest").unlink()
    (store / image_id / "manifest").mkdir()


def _garbled(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def _all_garbled(store: Path, image_id: str) -> None:
    for manifest in _manifests(store, image_id):
        _garbled(manifest)


def _set_item(store: Path, image_id: str, key: str, data: bytes) -> None:
    """Give an image an item, with a record that is right about it."""
    (store / image_id / big_data_file(key)).write_bytes(data)

    def describe(records: list[dict[str, Any]]) -> None:
        for field, found in items_of((key, data)).items():
            if isinstance(found, dict):
                records[0][field] |= found
            elif key not in records[0][field]:
                records[0][field] += found

    edit_index(store, describe)


def _manifest(change: Callable[[dict[str, Any]], object], *, more: str = "") -> Damage:
    """Return the damage that a program does which writes a changed manifest.

    :param change: changes the manifest
    :param more: JSON members that are appended to it
    """

    def damage(store: Path, image_id: str) -> None:
        manifest = json.loads((store / image_id / "manifest").read_bytes())
        change(manifest)
        text = json.dumps(manifest)[:-1] + more + "}"
        _set_item(store, image_id, "manifest", text.encode())

    return Damage(damage, "manifest")


def _config_with(**fields: Any) -> Damage:
    """Return the damage of a config with these fields, whose digests are right."""

    def damage(store: Path, image_id: str) -> None:
        config = json.dumps(json.loads(_config(store, image_id).read_bytes()) | fields).encode()
        manifest = json.loads((store / image_id / "manifest").read_bytes())
        manifest["config"] |= {"digest": digest_of(config), "size": len(config)}
        _set_item(store, image_id, digest_of(config), config)
        for path in _manifests(store, image_id):
            path.unlink()
        edit_index(store, unlist_manifests)
        _set_item(store, image_id, "manifest", json.dumps(manifest).encode())

    return Damage(damage, "its config .* cannot be read", stays=False)


def _docker(manifest: dict[str, Any]) -> None:
    docker = "application/vnd.docker."
    manifest["mediaType"] = docker + "distribution.manifest.v2+json"
    manifest["config"]["mediaType"] = docker + "container.image.v1+json"
    for layer in manifest["layers"]:
        layer["mediaType"] = docker + "unknown"


def _renamed(store: Path, image_id: str) -> None:
    (store / image_id).rename(store / "short")
    edit_index(store, lambda records: records[0].update(id="short"))


ARTIFACT = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": {"mediaType": "application/x", "digest": digest_of(b"{}"), "size": 2},
        "layers": [],
    }
).encode()
"""The manifest of something that is no image."""

INDEX = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.index.v1+json",
        "manifests": [
            {"mediaType": f"{_OCI}.manifest.v1+json", "digest": digest_of(b""), "size": 1}
        ],
    }
).encode()
"""An image index whose images are not in the store."""

_OLD = json.dumps({"schemaVersion": 1, "fsLayers": [], "history": []}).encode()

PODMAN_FAILS = {
    "no manifest": Damage(_added(names=["localhost/bare:1"]), "it has no manifest"),
    "no manifest, no name": Damage(_added(), "it has no manifest"),
    "half made": Damage(_half_made, "it has no manifest", stays=False),
    "half listed": Damage(_half_listed, "it has no manifest"),
    "manifests lost": Damage(_without_manifests, "it has no manifest", stays=False),
    "manifest lost": Damage(
        lambda store, image_id: (store / image_id / "manifest").unlink(), "it has no manifest"
    ),
    "manifest a directory": Damage(_directory_for_manifest, "it has no manifest", stays=False),
    "manifest garbled": Damage(
        lambda store, image_id: _garbled(store / image_id / "manifest"), "cannot be read"
    ),
    "manifests garbled": Damage(_all_garbled, "cannot be read", stays=False),
    "directory lost": Damage(
        lambda store, image_id: shutil.rmtree(store / image_id), "no manifest", stays=False
    ),
    "config lost": Damage(
        lambda store, image_id: _config(store, image_id).unlink(), "config .* missing", stays=False
    ),
    "config garbled": Damage(
        lambda store, image_id: _garbled(_config(store, image_id)), "another digest", stays=False
    ),
    "item lost with its size": Damage(
        lambda store, _: edit_index(store, lambda r: r[0]["big-data-names"].append("lost")),
        "'lost' has neither a size in its record nor a file",
    ),
    "item without a valid key": Damage(
        lambda store, _: edit_index(store, lambda r: r[0]["big-data-names"].append("")),
        "'' has neither a size in its record nor a file",
    ),
    "artifact": Damage(_with_items(("manifest", ARTIFACT)), "artifact of the type 'application/x'"),
    "index without instances": Damage(_with_items(("manifest", INDEX)), "no item 'instances.json'"),
    "instances of another type": Damage(
        _with_items(("manifest", INDEX), ("instances.json", b"[]")),
        "'instances.json' cannot be read",
    ),
    "schema 1 without layers": Damage(_with_items(("manifest", _OLD)), "not as many layers"),
    "size a string": _manifest(lambda manifest: manifest["config"].update(size="1")),
    "size a fraction": _manifest(lambda manifest: manifest["layers"][0].update(size=1.5)),
    "annotation a number": _manifest(lambda manifest: manifest.update(annotations={"a": 1})),
    "URLs a string": _manifest(lambda manifest: manifest["layers"][0].update(urls="x")),
    "subject a string": _manifest(lambda manifest: manifest.update(subject="x")),
    "manifest of two kinds": _manifest(lambda manifest: manifest.update(fsLayers=[])),
    "layers in upper case": _manifest(lambda manifest: None, more=',"LAYERS":5'),
    "Docker layer of unknown type": _manifest(_docker),
    "environment a string": _config_with(config={"Env": "x"}),
    "volumes a list": _config_with(config={"Volumes": ["x"]}),
    "health check of another type": _config_with(config={"Healthcheck": {"Interval": "1s"}}),
    "label a number": _config_with(config={"Labels": {"a": 1}}),
    "layer digests numbers": _config_with(rootfs={"type": "layers", "diff_ids": [1]}),
    "empty layer a string": _config_with(history=[{"empty_layer": "x"}]),
    "Docker's size a string": _config_with(Size="1"),
    "old schema": Damage(_with_items(("manifest", b"{}")), "schema version None"),
    "name with spaces": Damage(_fields(names=["A B"]), "the name 'A B'"),
    "name in upper case": Damage(_fields(names=["localhost/A:1"]), "the name 'localhost/A:1'"),
    "empty name": Damage(_fields(names=[""]), "the name ''"),
    "name like an ID": Damage(_fields(names=["a" * 64]), "the name 'a+'"),
    "metadata not JSON": Damage(_fields(metadata="nonsense"), "metadata"),
    "metadata of another type": Damage(_fields(metadata='{"signature-sizes":5}'), "metadata"),
    "metadata in upper case": Damage(_fields(metadata='{"SIGNATURE-SIZES":5}'), "metadata"),
    "metadata too large": Damage(_fields(metadata='{"signature-sizes":[1e20]}'), "metadata"),
    "unknown mapped layer": Damage(
        _fields(**{"mapped-layers": ["0" * 64]}), "mapped layer '0+' is unknown"
    ),
    "ID not hex": Damage(_renamed, "the ID 'short'", stays=False),
    "unknown layer": Damage(_fields(layer="0" * 64), "top layer 0+ is unknown", stays=False),
}
"""The kinds of damage, by description."""
