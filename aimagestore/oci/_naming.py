"""What a layout calls its images.

Only this module reads the annotations with names. Naming, selecting, replacing on export and
messages all use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from .._core.digest import is_digest
from .._core.names import NAME_ANNOTATIONS
from .._core.references import DOCKER, full_name
from ._documents import Descriptor

_IMAGE_NAME, REF_NAME = NAME_ANNOTATIONS


@dataclass(frozen=True, slots=True)
class EntryName:
    """The name of an entry of an index.

    Two entries with the same ``key`` have the same name. A tag alone is not a name: Docker writes
    ``latest`` beside the whole name of each image.

    :ivar text: the name as it is spelled: ``io.containerd.image.name``, which is a whole one, or
        else ``org.opencontainers.image.ref.name``; ``""`` for none
    :ivar tag: the value of ``org.opencontainers.image.ref.name``
    :ivar full: the name in a store, as podman makes it; ``None`` when it cannot be made
    """

    text: str
    tag: str
    full: str | None

    @property
    def key(self) -> str:
        """The full name, or the text where there is none; ``""`` for an entry without a name."""
        return self.full or self.text

    def is_called(self, ref: str) -> bool:
        """Return whether a ref is the whole name."""
        return bool(self.text) and ref == self.key

    def may_be_called(self, ref: str) -> bool:
        """Return whether a ref may be short for the name: a tag, or a name without a registry."""
        if not self.text:
            return False
        full = {full_name(ref), full_name(ref, DOCKER)}
        return ref in {self.text, self.tag} or self.full in full - {None}


def name_of(annotations: Mapping[str, Any] | None) -> EntryName:
    """Return the name of an entry with these annotations."""
    annotations = annotations or {}
    tag = annotations.get(REF_NAME) or ""
    text = annotations.get(_IMAGE_NAME) or tag
    return EntryName(text, tag, full_name(text))


def digest_in(ref: str) -> tuple[str, str]:
    """Split ``[name@]digest`` into the name and the digest, each ``""`` if it is missing."""
    name, at, digest = ref.rpartition("@")
    if is_digest(digest):
        return name if at else "", digest
    return ref, ""


def called(entry: Descriptor, name: str) -> Descriptor:
    """Return an entry with this name in place of its own; ``""`` for no name."""
    others = {k: v for k, v in (entry.annotations or {}).items() if k not in NAME_ANNOTATIONS}
    annotations = others | ({REF_NAME: name} if name else {})
    return msgspec.structs.replace(entry, annotations=annotations or None)


def names_from(entry: Descriptor, other: Descriptor) -> Descriptor:
    """Return an entry with the name of another one."""
    names = {k: v for k, v in (other.annotations or {}).items() if k in NAME_ANNOTATIONS}
    annotations = (called(entry, "").annotations or {}) | names
    return msgspec.structs.replace(entry, annotations=annotations or None)
