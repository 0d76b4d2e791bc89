"""layers.json and containers.json of containers/storage: their elements, decoded.

Annotations are evaluated with the module: otherwise, each decoder would evaluate all of them.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Raw

from .._core.layers import Container, Layer

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _LayerFields(msgspec.Struct, rename="kebab"):
    """The fields that are used here. Go reads a null as a missing field."""

    id: str
    parent: str | None = None
    diff_digest: str | None = None
    diff_size: _Int64 | None = None
    compressed_diff_digest: str | None = None
    compressed_size: _Int64 | None = None


class _ContainerFields(msgspec.Struct):
    """The fields that are used here."""

    id: str
    names: list[str] | None = None
    image: str | None = None
    layer: str | None = None


_decode_layer: Final = msgspec.json.Decoder(_LayerFields).decode
_decode_container: Final = msgspec.json.Decoder(_ContainerFields).decode


def layer_of(element: Raw) -> Layer | None:
    """Decode an element of layers.json; ``None`` when it is damaged."""
    try:
        fields = _decode_layer(element)
    except (ValueError, RecursionError):
        return None
    if not fields.id:
        return None
    diff_digest = fields.diff_digest or ""
    compressed_digest = fields.compressed_diff_digest or ""
    return Layer(
        fields.id,
        fields.parent or "",
        diff_digest,
        _size(fields.diff_size, diff_digest),
        compressed_digest,
        _size(fields.compressed_size, compressed_digest),
    )


def _size(size: int | None, digest: str) -> int | None:
    """Return the size that is recorded with a digest; ``None`` when it is not known.

    Without a digest no archive was measured. Go leaves a size of 0 out.
    """
    return None if not digest or (size or 0) < 0 else size or 0


def container_of(element: Raw) -> Container | None:
    """Decode an element of containers.json; ``None`` when it is damaged."""
    try:
        fields = _decode_container(element)
    except (ValueError, RecursionError):
        return None
    if not fields.id:
        return None
    names = tuple(fields.names or ())
    return Container(fields.id, names, fields.image or "", fields.layer or "")
