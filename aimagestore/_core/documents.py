"""What the manifest and the config of an image say, as far as filters and pruning need it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .._format import gojson
from . import podman
from .podman import Manifest

DOCUMENT_MAX = 4 << 20
"""The size in bytes of the largest manifest or config that podman reads."""


class History(msgspec.Struct, frozen=True):
    """One step of how an image was built."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What is equal in two equal steps."""
        texts = (self.created_by or "", self.author or "", self.comment or "")
        return _moment(self.created), texts, bool(self.empty_layer)


def _moment(text: str | None) -> object:
    """Return what is equal for two equal times, however they are spelled."""
    if text is None:
        return None
    try:
        # Go's zero time differs from a time that is missing.
        return gojson.parse_time(text) or ""
    except ValueError:
        return text


class Documents(msgspec.Struct, frozen=True):
    """What an image's documents say; empty where they are missing or cannot be read.

    :ivar labels: the labels of its config
    :ivar diff_ids: the digests of its layers, the lowest first
    :ivar history: how it was built
    :ivar is_index: whether it is an image index, which names other images
    :ivar instances: the digests of the images that an index names
    """

    labels: Mapping[str, str] = {}
    diff_ids: tuple[str, ...] = ()
    history: tuple[History, ...] = ()
    is_index: bool = False
    instances: frozenset[str] = frozenset()


class _Settings(msgspec.Struct):
    labels: dict[str, str | None] | None = msgspec.field(default=None, name="Labels")


class _RootFS(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    config: _Settings | None = None
    rootfs: _RootFS | None = None
    history: list[History] | None = None


_decode_config = msgspec.json.Decoder(_Config | None).decode


def read_manifest(text: bytes) -> Manifest | None:
    """Read a manifest or an image index; ``None`` where podman could not read it."""
    try:
        return podman.read_manifest(text)
    except ValueError:
        return None


def config_digest(manifest: Manifest) -> str:
    """Return the digest of an image's config, which is the key of its item; ``""`` without one."""
    return manifest.config.get("digest") or ""


def read_documents(manifest: Manifest | None, config: bytes | None) -> Documents:
    """Return what an image's documents say.

    :param manifest: its manifest; ``None`` if that could not be read
    :param config: the text of its config; ``None`` if that was not read
    """
    if manifest is not None and manifest.is_index:
        instances = (each or {} for each in manifest.fields.get("manifests") or ())
        digests = (each.get("digest") for each in instances)
        return Documents(is_index=True, instances=frozenset(d for d in digests if d))
    try:
        found = _decode_config(config or b"null")
    except (ValueError, RecursionError):
        found = None
    if found is None:
        return Documents()
    labels = (found.config and found.config.labels) or {}
    return Documents(
        labels={label: value or "" for label, value in labels.items()},
        diff_ids=tuple((found.rootfs and found.rootfs.diff_ids) or ()),
        history=tuple(found.history or ()),
    )


def is_parent(parent: Documents, child: Documents, *, has_layers: bool) -> bool:
    """Return whether ``child`` was built from ``parent`` in one more step.

    :param has_layers: whether both have layers in the store: a step adds at most one
    """
    added = len(child.diff_ids) - len(parent.diff_ids)
    if len(child.history) != len(parent.history) + 1 or added < 0 or (has_layers and added > 1):
        return False
    return child.diff_ids[: len(parent.diff_ids)] == parent.diff_ids and all(
        mine.key == theirs.key for mine, theirs in zip(parent.history, child.history, strict=False)
    )
