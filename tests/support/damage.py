"""Every kind of damage that a check finds, done to a store with buildah's image."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from aimagestore import FindingKind as Kind

from .buildah import FIXTURE_ID
from .stores import edit_index


def listing(path: Path) -> list[tuple[str, int, int]]:
    """Return the path, time of change and size of a directory and of everything below it."""
    return sorted(
        (str(p), p.lstat().st_mtime_ns, p.lstat().st_size) for p in [path, *path.rglob("*")]
    )


def replace_with_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_index(image: Path, data: bytes) -> None:
    (image.parent / "images.json").write_bytes(data)


DAMAGE: dict[Kind, tuple[Callable[[Path], object], str]] = {
    Kind.INDEX_MISSING: (lambda image: (image.parent / "images.json").unlink(), "images.json"),
    Kind.INDEX_BLANK: (lambda image: replace_index(image, b"\0\0"), "images.json"),
    Kind.INDEX_DAMAGED: (lambda image: replace_index(image, b'[{"id":'), "images.json"),
    Kind.RECORD_DAMAGED: (
        lambda image: edit_index(image.parent, lambda r: r.append({})),
        "images.json",
    ),
    Kind.DUPLICATE_ID: (
        lambda image: edit_index(image.parent, lambda r: r.insert(0, {"id": FIXTURE_ID})),
        "images.json",
    ),
    Kind.DUPLICATE_NAME: (
        lambda image: edit_index(
            image.parent, lambda r: r.insert(0, {"id": "x", "names": ["localhost/hello:1"]})
        ),
        "images.json",
    ),
    Kind.DIGEST_MALFORMED: (
        lambda image: edit_index(image.parent, lambda r: r[0].update({"digest": "sha256:x"})),
        "images.json",
    ),
    Kind.DIRECTORY_MISSING: (shutil.rmtree, FIXTURE_ID),
    Kind.DIRECTORY_ORPHANED: (
        lambda image: edit_index(image.parent, lambda r: r.clear()),
        FIXTURE_ID,
    ),
    Kind.ITEM_MISSING: (lambda image: (image / "manifest").unlink(), FIXTURE_ID + "/manifest"),
    Kind.ITEM_SHORT: (
        lambda image: os.truncate(image / "manifest", 10),
        FIXTURE_ID + "/manifest",
    ),
    Kind.ITEM_LONG: (
        lambda image: os.truncate(image / "manifest", 1000),
        FIXTURE_ID + "/manifest",
    ),
    Kind.ITEM_ALTERED: (
        lambda image: (image / "manifest").write_bytes(b"x" * 495),
        FIXTURE_ID + "/manifest",
    ),
    Kind.ITEM_UNREADABLE: (
        lambda image: replace_with_fifo(image / "manifest"),
        FIXTURE_ID + "/manifest",
    ),
    Kind.ITEM_UNLISTED: (lambda image: (image / "other").touch(), FIXTURE_ID + "/other"),
    Kind.TEMPORARY_STALE: (lambda image: (image.parent / ".tmp-1").touch(), ".tmp-1"),
}
"""For each kind: a function that does the damage to an image's directory, and the reported path."""
