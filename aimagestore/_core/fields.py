"""The fields of a record, as its element of images.json spells them.

Annotations are evaluated with the module: otherwise, each decoder would evaluate all of them.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Raw

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class FlatFields(msgspec.Struct, rename="kebab", gc=False):
    """The fields that containers/storage knows but the flags, which alone can nest.

    Go reads a null as a missing field.
    """

    id: str
    digest: str | None = None
    names: list[str] | None = None
    names_history: list[str] | None = None
    layer: str | None = None
    mapped_layers: list[str] | None = None
    metadata: str | None = None
    big_data_names: list[str] | None = None
    big_data_sizes: dict[str, Int64] | None = None
    big_data_digests: dict[str, str] | None = None
    created: str | None = None


class KnownFlatFields(FlatFields, forbid_unknown_fields=True, rename="kebab", gc=False):
    """A record without flags and unknown fields, which is the usual one."""


class Fields(FlatFields, rename="kebab", gc=False):
    """The fields that containers/storage knows."""

    flags: dict[str, Any] | None = None


class KnownFields(Fields, forbid_unknown_fields=True, rename="kebab", gc=False):
    """A record without unknown fields."""


class ImageFields(FlatFields, rename="kebab", gc=False):
    """The same fields, with the spelling of flags, because decoding rounds large numbers."""

    flags: dict[str, Raw] | None = None


# Letters beyond ASCII that Go takes for other cases of letters in it.
_FOLDS = str.maketrans({"\u017f": "s", "\u212a": "k"})


def fold(name: str) -> str:
    """Return the one form of all names that Go takes for the same, if one of them is ASCII."""
    return name.translate(_FOLDS).lower()
