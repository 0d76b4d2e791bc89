"""What podman cannot read of an image: one such image makes ``podman images`` fail for all.

The rules are those of podman 4.3, 5.4 and 5.8, which agree on all of them but three. Before 5.8 an
image without names and manifest does no harm, nor does an index without instances and layer. An
unknown top layer makes 4.3 fail, and later ones list no image at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from .._format import gojson
from .digest import MANIFEST, digest_of, hasher, is_digest
from .image import Image
from .references import is_reference

ReadItem = Callable[[str], bytes | None]
"""Returns the content of an item whether its record lists it or not; ``None`` if it has none."""

INSTANCES = "instances.json"
"""The item that makes an image index one of podman's manifest lists."""

NO_INSTANCES = b"{}"
"""Its content where podman has recorded nothing about the instances."""

_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)

_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_DOCKER = "application/vnd.docker."
_DOCKER_LIST = _DOCKER + "distribution.manifest.list.v2+json"
_DOCKER_MANIFEST = _DOCKER + "distribution.manifest.v2+json"
_DOCKER_CONFIG = _DOCKER + "container.image.v1+json"
_TYPES = frozenset({_OCI_INDEX, _OCI_MANIFEST, _DOCKER_LIST, _DOCKER_MANIFEST})
_INDEXES = frozenset({_OCI_INDEX, _DOCKER_LIST})


class Part(NamedTuple):
    """A part of a record that podman cannot read, and an item if it is about one.

    :ivar field: ``id``, ``name``, ``metadata``, ``manifest``, ``config``, ``instances`` or
        ``layer``
    :ivar key: the item
    :ivar problem: what is wrong with it
    """

    field: str
    key: str
    problem: str


def unreadable_parts(
    image: Image, read: ReadItem, knows_layer: Callable[[str], bool]
) -> Iterator[Part]:
    """Iterate over what podman cannot read of an image.

    :param knows_layer: whether there is a layer with this ID
    """
    if _ID.fullmatch(image.id) is None:
        yield Part("id", "", f"the ID {image.id!r} is not 64 hex digits")
    for name in image.names:
        if not is_reference(name):
            yield Part("name", "", f"the name {name!r} is no reference")
    if not _is_metadata(image.metadata):
        yield Part("metadata", "", "the metadata is not the JSON that podman keeps there")
    yield from unreadable_items(read)
    if image.top_layer and not knows_layer(image.top_layer):
        yield Part("layer", "", f"its top layer {image.top_layer} is unknown")


class _SignatureSizes(msgspec.Struct, rename="kebab"):
    signature_sizes: list[int] | None = None
    signatures_sizes: dict[str, list[int] | None] | None = None


def _is_metadata(text: str) -> bool:
    if not text:
        return True
    try:
        msgspec.json.decode(text, type=_SignatureSizes | None)
    except (ValueError, RecursionError):
        return False
    return True


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str | None = None
    digest: str | None = None


class Manifest(msgspec.Struct, rename="camel"):
    """What podman reads of a manifest or an image index."""

    media_type: str | None = None
    schema_version: int | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None

    @property
    def kind(self) -> str:
        """The media type that containers/image takes it for; ``""`` for Docker's schema 1."""
        if self.media_type in _TYPES:
            return self.media_type or ""
        if self.schema_version == 1:
            return ""
        if self.config is not None and self.config.media_type == _DOCKER_CONFIG:
            return _DOCKER_MANIFEST
        return _OCI_INDEX if self.manifests else _OCI_MANIFEST

    @property
    def is_index(self) -> bool:
        """Whether it is an image index, which names other manifests."""
        return self.kind in _INDEXES


def unreadable_items(read: ReadItem) -> Iterator[Part]:
    """Iterate over what podman cannot read of an image's items."""
    text = read(MANIFEST)
    if text is None:
        yield Part("manifest", MANIFEST, "it has no manifest")
        return
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (ValueError, RecursionError) as error:
        yield Part("manifest", MANIFEST, f"its manifest cannot be read: {error}")
        return
    if problem := _problem_of(manifest):
        yield Part("manifest", MANIFEST, problem)
    elif manifest.is_index:
        if read(INSTANCES) is None:
            yield Part("instances", INSTANCES, f"its image index has no item {INSTANCES!r}")
    elif manifest.kind:
        assert manifest.config is not None, "it was looked at above"
        digest = manifest.config.digest or ""
        if problem := _problem_of_config(digest, read(digest) if is_digest(digest) else None):
            yield Part("config", digest, problem)


def diff_ids(read: ReadItem) -> list[str]:
    """Return the digests of an image's layers, the lowest first, where podman can read the image.

    An index has none.
    """
    if any(unreadable_items(read)):
        return []
    manifest = msgspec.json.decode(read(MANIFEST) or b"", type=Manifest)
    if not manifest.kind or manifest.is_index or manifest.config is None:
        return []
    config = msgspec.json.decode(read(manifest.config.digest or "") or b"", type=_Config | None)
    return (config and config.rootfs and config.rootfs.diff_ids) or []


def is_podman_image(manifest: bytes) -> bool:
    """Return whether podman takes a manifest for that of an image or of several."""
    try:
        return not _problem_of(msgspec.json.decode(manifest, type=Manifest))
    except (ValueError, RecursionError):
        return False


def _problem_of(manifest: Manifest) -> str:
    if manifest.media_type not in _TYPES and manifest.schema_version not in {1, 2}:
        return f"its manifest has the unsupported schema version {manifest.schema_version}"
    if manifest.kind == _OCI_MANIFEST:
        media_type = "" if manifest.config is None else manifest.config.media_type
        if media_type != _OCI_CONFIG:
            return f"it is no image, but an artifact of the type {media_type!r}"
        if manifest.manifests is not None:
            return "its manifest has what only an index has"
    if manifest.kind == _DOCKER_MANIFEST:
        types = [manifest.media_type, *(layer.media_type for layer in manifest.layers or ())]
        odd = next((kind for kind in types if not (kind or "").startswith(_DOCKER)), None)
        if odd is not None or None in types:
            return f"its Docker manifest has the unsupported type {odd or ''!r}"
        if manifest.config is None:
            return "its manifest has no config"
    return ""


class _RootFS(msgspec.Struct):
    type: str | None = None
    diff_ids: list[str] | None = None


class _History(msgspec.Struct):
    created: str | None = None


class _Config(msgspec.Struct):
    created: str | None = None
    author: str | None = None
    architecture: str | None = None
    os: str | None = None
    variant: str | None = None
    config: dict[str, Any] | None = None
    rootfs: _RootFS | None = None
    history: list[_History] | None = None


def _problem_of_config(digest: str, config: bytes | None) -> str:
    if config is None:
        return f"its config {digest} is missing"
    state = hasher(digest)
    state.update(config)
    if digest_of(state) != digest:
        return f"its config {digest} has another digest"
    try:
        decoded = msgspec.json.decode(config, type=_Config | None)
        times = [decoded.created, *(h.created for h in decoded.history or ())] if decoded else []
        for time in times:
            if time is not None:
                gojson.parse_time(time)
    except (ValueError, RecursionError) as error:
        return f"its config {digest} cannot be read: {error}"
    return ""
