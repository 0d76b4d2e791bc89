"""What manifests and indexes say, read strictly: an image layout is hostile input."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from .._core.digest import check_digest
from .._engine.items import MANIFEST_MAX
from ..errors import InvalidLayoutError

T = TypeVar("T")

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_INDEXES = frozenset({INDEX, _DOCKER_LIST})
_MANIFESTS = frozenset({MANIFEST, _DOCKER_MANIFEST})
_IMAGE_CONFIGS = frozenset(
    {
        "",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_NOT_DISTRIBUTED = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
MARKER = b'{"imageLayoutVersion":"1.0.0"}'
REF_NAME = "org.opencontainers.image.ref.name"

_INT64_MAX = 2**63 - 1


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an image runs on."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``os/architecture[/variant]``.

        :raises ValueError: when it is something else
        """
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise ValueError(f"a platform is spelled os/architecture[/variant], not {text!r}")
        return cls(parts[1], parts[0], parts[2] if len(parts) == 3 else "")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def suits(self, wanted: Platform) -> bool:
        """Whether it is the platform that is wanted, in any variant where none is."""
        is_variant = wanted.variant in {"", self.variant}
        return is_variant and (self.os, self.architecture) == (wanted.os, wanted.architecture)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What one document says of another, or of a blob."""

    media_type: str = ""
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=_INT64_MAX)]
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None

    def __post_init__(self) -> None:
        check_digest(self.digest)

    @property
    def is_index(self) -> bool:
        """Whether it is of an image index or a Docker manifest list."""
        return self.media_type in _INDEXES

    @property
    def is_manifest(self) -> bool:
        """Whether it is of an image's manifest."""
        return self.media_type in _MANIFESTS

    @property
    def is_image_config(self) -> bool:
        """Whether it is of the config of an image, and not of some other artifact's."""
        return self.media_type in _IMAGE_CONFIGS

    @property
    def is_foreign(self) -> bool:
        """Whether its blob is to be had elsewhere, and may be missing here."""
        return bool(self.urls) or self.media_type.startswith(_NOT_DISTRIBUTED)

    @property
    def ref_name(self) -> str:
        """What the layout calls it, or ``""``."""
        return (self.annotations or {}).get(REF_NAME, "")


class Document(msgspec.Struct, frozen=True, rename="camel"):
    """A manifest or an index. Go spells an empty list as ``null``."""

    schema_version: int
    media_type: str | None = None
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] | None = None
    manifests: tuple[Descriptor, ...] | None = None


class Marker(msgspec.Struct, frozen=True, rename="camel"):
    """The file that says that a directory is an image layout."""

    image_layout_version: str


class Config(msgspec.Struct, frozen=True):
    """What an image's config says of it."""

    created: str | None = None
    os: str = ""
    architecture: str = ""
    variant: str = ""

    @property
    def platform(self) -> Platform:
        """What the image runs on."""
        return Platform(self.architecture, self.os, self.variant)


def decode(data: bytes, kind: type[T], what: str, place: str) -> T:
    """Read a JSON document.

    :param what: how to call it in messages
    :param place: the layout that it is in
    :raises InvalidLayoutError: when it is too large, no JSON, or of other types
    """
    if len(data) > MANIFEST_MAX:
        raise InvalidLayoutError(
            f"{place}: {what} has {len(data)} bytes, more than the {MANIFEST_MAX} allowed",
            path=place,
        )
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidLayoutError(f"{place}: {what} cannot be read: {error}", path=place) from error


def read_document(data: bytes, media_type: str, what: str, place: str) -> Document:
    """Read a manifest or an index of this media type.

    :raises InvalidLayoutError: when it is none, or could as well be taken for the other kind
    """
    document = decode(data, Document, what, place)
    problem = ""
    if document.schema_version != 2:
        problem = f"is of schema version {document.schema_version}; only 2 is understood"
    elif document.media_type not in {None, "", media_type}:
        problem = f"says that it is of type {document.media_type!r}, and not {media_type!r}"
    elif media_type in _INDEXES and (document.config is not None or document.layers is not None):
        problem = "is an index that has what only manifests have"
    elif media_type in _MANIFESTS and (document.config is None or document.manifests is not None):
        problem = "is a manifest that has no config, or has manifests"
    if problem:
        raise InvalidLayoutError(f"{place}: {what} {problem}", path=place)
    return document


def media_type_of(data: bytes, what: str, place: str) -> str:
    """The media type of a document that nothing but itself tells of."""
    document = decode(data, Document, what, place)
    return document.media_type or (MANIFEST if document.manifests is None else INDEX)


def blob_path(digest: str) -> str:
    """Where in a layout a blob is. The digest is known to be one."""
    return "blobs/" + digest.replace(":", "/")
