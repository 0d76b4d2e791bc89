"""Manifests, indexes and configs, decoded strictly: an image layout is hostile input.

A field that is ``null`` reads as absent, as in Go. The name of a field may be in another case, also
as in Go, but two spellings of one field are refused: programs would take different ones. What only
describes an image (annotations, a platform, the fields of a config) also reads as absent if it has
another type. What decides which content is read must have the right type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec

from .._core.digest import is_digest
from .._engine.items import MANIFEST_MAX
from ..errors import InvalidLayoutError
from ._platform import Platform

NULL = msgspec.Raw(b"null")
"""A field that is absent: msgspec reads no ``msgspec.Raw | None``."""

T = TypeVar("T")
V = TypeVar("V")

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
_INDEXES = frozenset({INDEX, DOCKER_LIST})
_MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})
_IMAGE_CONFIGS = frozenset({"", CONFIG, DOCKER_CONFIG})
_NOT_DISTRIBUTED = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)
_ZSTD = "io.github.containers.compression.zstd"
_ATTESTATION = "vnd.docker.reference.type"

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
MARKER = b'{"imageLayoutVersion":"1.0.0"}'

INDEX_MAX = 64 * 1024 * 1024
"""The largest index.json that is read, in bytes."""

_INT64_MAX = 2**63 - 1


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Where content is: its type, digest and size.

    One with a ``problem`` must not be followed.
    """

    media_type: str = ""
    digest: str = ""
    size: int = 0
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str = ""

    @property
    def problem(self) -> str:
        """What keeps the content from being verified; ``""`` for nothing."""
        if not is_digest(self.digest):
            return f"invalid digest {self.digest!r}: only sha256, sha384 and sha512 can be verified"
        if not 0 <= self.size <= _INT64_MAX:
            return f"{self.digest} has no valid size"
        return ""

    @property
    def is_index(self) -> bool:
        """Whether it describes an image index or a Docker manifest list."""
        return self.media_type in _INDEXES

    @property
    def is_manifest(self) -> bool:
        """Whether it describes an image's manifest."""
        return self.media_type in _MANIFESTS

    @property
    def is_image_config(self) -> bool:
        """Whether it describes the config of an image, by its type."""
        return self.media_type in _IMAGE_CONFIGS

    @property
    def is_foreign(self) -> bool:
        """Whether its blob is kept elsewhere and may be missing here."""
        return bool(self.urls) or self.media_type.startswith(_NOT_DISTRIBUTED)

    @property
    def is_beside_images(self) -> bool:
        """Whether an index lists it beside its images: an attestation, or another artifact."""
        is_attestation = _ATTESTATION in (self.annotations or {})
        has_no_platform = self.platform is not None and self.platform.os == "unknown"
        return is_attestation or has_no_platform or bool(self.artifact_type)

    @property
    def is_zstd(self) -> bool:
        """Whether podman marked it as an image with layers in zstd."""
        return (self.annotations or {}).get(_ZSTD) == "true"


class _RawDescriptor(msgspec.Struct, rename="camel"):
    """A descriptor as the JSON has it."""

    media_type: str | None = None
    digest: str | None = None
    size: int | None = None
    urls: Any = None
    annotations: Any = None
    platform: Any = None
    artifact_type: Any = None

    def parsed(self) -> Descriptor:
        annotations = self.annotations if isinstance(self.annotations, dict) else {}
        texts = {key: value for key, value in annotations.items() if isinstance(value, str)}
        urls = self.urls if isinstance(self.urls, list) else ()
        return Descriptor(
            media_type=self.media_type or "",
            digest=self.digest or "",
            size=-1 if self.size is None else self.size,
            urls=tuple(url for url in urls if isinstance(url, str)) or None,
            annotations=texts or None,
            platform=Platform.of(self.platform),
            artifact_type=self.artifact_type if isinstance(self.artifact_type, str) else "",
        )


class _RawDocument(msgspec.Struct, rename="camel"):
    """A manifest or an index as the JSON has it."""

    schema_version: int | None = None
    media_type: str | None = None
    config: msgspec.Raw = NULL
    layers: tuple[msgspec.Raw, ...] | None = None
    manifests: tuple[msgspec.Raw, ...] | None = None
    artifact_type: Any = None
    # Only other kinds of documents have these. containers/image refuses them as ambiguous, too.
    fs_layers: Any = None
    history: Any = None


class Document(msgspec.Struct, frozen=True):
    """A manifest, which has a config, or an index, which has none."""

    media_type: str
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]
    artifact_type: str = ""


class Marker(msgspec.Struct, frozen=True, rename="camel"):
    """The file that says that a directory is an image layout."""

    image_layout_version: str


class Config(msgspec.Struct, frozen=True):
    """What an image's config says about the image.

    :ivar has_layers: whether it describes the layers of a root file system
    """

    created: str = ""
    platform: Platform | None = None
    has_layers: bool = False

    @classmethod
    def read(cls, data: bytes) -> Config:
        """Decode a config, and leave out what cannot be decoded: to a layout it is only a blob."""
        try:
            raw = _decode_as_go(data, dict[str, msgspec.Raw])
            raw = spelled(raw, _CONFIG_FIELDS)
        except (ValueError, RecursionError):
            return cls()
        fields = {name: _value(raw[name]) for name in raw.keys() & _CONFIG_FIELDS}
        rootfs = fields.get("rootfs")
        created = fields.get("created")
        return cls(
            created if isinstance(created, str) else "",
            Platform.of(fields),
            isinstance(rootfs, dict) and isinstance(rootfs.get("diff_ids"), list),
        )


_CONFIG_FIELDS = {"created", "os", "architecture", "variant", "rootfs"}


def _value(raw: msgspec.Raw) -> Any:
    try:
        return _decode_as_go(raw, Any)
    except (ValueError, RecursionError):
        return None


def is_image(manifest: Document, config: Config) -> bool:
    """Return whether a manifest describes an image, and not some other artifact.

    All of Docker's manifests do; their configs have several types. Other manifests are recognized
    by the type of their config, or by its content: an image whose config has an odd type is one.
    """
    if manifest.media_type == DOCKER_MANIFEST:
        return True
    if manifest.artifact_type or manifest.config is None:
        return False
    return manifest.config.is_image_config or config.has_layers


# Escapes in JSON. The group matches a surrogate without its other half, which is no character.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)


def _decode_as_go(data: bytes | msgspec.Raw, kind: Any) -> Any:
    """Decode JSON as Go does, which reads U+FFFD in place of what is no character."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        raise
    except ValueError:
        text = bytes(data).decode(errors="replace").encode()
        text = _ESCAPE.sub(lambda found: rb"\ufffd" if found[1] else found[0], text)
        return msgspec.json.decode(text, type=kind)


def decode(
    data: bytes | msgspec.Raw, kind: type[T], what: str, place: str, limit: int = MANIFEST_MAX
) -> T:
    """Decode a JSON document.

    :param what: what to call it in messages
    :param place: what to call the layout in messages
    :raises InvalidLayoutError: when it is too large, not JSON, or has fields of other types
    """
    if len(data) > limit:
        raise too_large(place, what, len(data), limit)
    try:
        document: T = _decode_as_go(_spelled_as(kind, data), kind)
    except (ValueError, RecursionError) as error:
        raise InvalidLayoutError(f"{place}: {what} cannot be read: {error}", path=place) from error
    return document


def spelled(fields: Mapping[str, V], names: Iterable[str]) -> dict[str, V]:
    """Return an object's fields with their right names, where the case of one is another.

    :raises ValueError: when it has two spellings of one field
    """
    right = {name.lower(): name for name in names}
    found: dict[str, V] = {}
    for given, value in fields.items():
        name = right.get(given.lower(), given)
        if name in found:
            raise ValueError(f"it has the field {name!r} in two spellings")
        found[name] = value
    return found


def _spelled_as(kind: Any, data: bytes | msgspec.Raw) -> bytes | msgspec.Raw:
    """Return an object with the names of its fields as ``kind`` spells them."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return data
    try:
        fields: Any = _decode_as_go(data, dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return data  # it is no object, which decoding it reports
    if fields.keys() <= names_in(kind):
        return data
    right = spelled(fields, names_in(kind))
    return data if right.keys() == fields.keys() else msgspec.json.encode(right)


@cache
def names_in(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Return the names of the fields of an object in JSON."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def too_large(place: str, what: str, size: int, limit: int) -> InvalidLayoutError:
    """Return the error for a document beyond its limit."""
    return InvalidLayoutError(
        f"{place}: {what} has {size} bytes; the limit for it is {limit}", path=place
    )


def decode_descriptor(data: msgspec.Raw) -> Descriptor:
    """Decode one descriptor.

    :raises ValueError: when it cannot be decoded
    """
    try:
        raw: _RawDescriptor = _decode_as_go(_spelled_as(_RawDescriptor, data), _RawDescriptor)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return raw.parsed()


def identity_in(data: msgspec.Raw) -> Descriptor:
    """Return a descriptor that cannot be decoded with nothing but its digest and annotations."""
    value = _value(data)
    fields = value if isinstance(value, dict) else {}
    digest = fields.get("digest")
    return _RawDescriptor(
        digest=digest if isinstance(digest, str) else None, annotations=fields.get("annotations")
    ).parsed()


def read_document(data: bytes, media_type: str, what: str, place: str) -> Document:
    """Decode a manifest or an index of this media type.

    :raises InvalidLayoutError: when it is something else, or could be taken for another kind
    """
    document = decode(data, _RawDocument, what, place)
    problem = ""
    has_config = document.config != NULL
    has_other = document.fs_layers is not None or document.history is not None
    if document.schema_version != 2:
        problem = f"is of schema version {document.schema_version}; only 2 is understood"
    elif document.media_type not in {None, "", media_type}:
        problem = f"says that it is of type {document.media_type!r}, and not {media_type!r}"
    elif media_type in _INDEXES and (has_other or has_config or document.layers is not None):
        problem = "is an index, but has fields that only manifests have"
    elif media_type in _MANIFESTS and (
        has_other or not has_config or document.manifests is not None
    ):
        problem = "is a manifest, but has no config, or has fields that only other documents have"
    if problem:
        raise InvalidLayoutError(f"{place}: {what} {problem}", path=place)

    def parsed(raw: msgspec.Raw) -> Descriptor:
        return decode(raw, _RawDescriptor, what, place).parsed()

    return Document(
        media_type,
        parsed(document.config) if has_config else None,
        tuple(map(parsed, document.layers or ())),
        tuple(map(parsed, document.manifests or ())),
        document.artifact_type if isinstance(document.artifact_type, str) else "",
    )


def media_type_of(data: bytes, what: str, place: str) -> str:
    """Return the media type that a manifest or an index says it has, or else the one it looks like.

    :raises InvalidLayoutError: when it cannot be decoded
    """
    document = decode(data, _RawDocument, what, place)
    return document.media_type or (MANIFEST if document.manifests is None else INDEX)


def blob_path(digest: str) -> str:
    """Return where in a layout a blob is. The digest must be a valid one."""
    return "blobs/" + digest.replace(":", "/")
