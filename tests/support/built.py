"""Images as podman knows them, without layers: a manifest, and a config with labels and history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from aimagestore import Image, ImageStore

from .layouts import CONFIG, MANIFEST, digest_of, encode, hex_of


def config(
    labels: Mapping[str, str] | None = None, steps: Sequence[str] = (), **fields: Any
) -> Any:
    """Return a config.

    :param steps: the commands of its history
    """
    history = [
        {"created": "2024-01-01T00:00:00Z", "created_by": step, "empty_layer": True}
        for step in steps
    ]
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": history,
    } | fields


async def create_built(
    store: ImageStore, document: Any, *, names: Iterable[str] = (), created: datetime | None = None
) -> Image:
    """Create an image with this config and no layers, and return it."""
    text = encode(document)
    described = {"mediaType": CONFIG, "digest": digest_of(text), "size": len(text)}
    manifest = encode(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": []}
    )
    return await store.create(
        hex_of(text),
        names=names,
        created=created,
        digest=digest_of(manifest),
        big_data={
            f"manifest-{digest_of(manifest)}": manifest,
            digest_of(text): text,
            "manifest": manifest,
        },
    )
