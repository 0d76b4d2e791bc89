"""What a layout calls its images.

This is the one place that reads the annotations with names. Naming, selecting, replacing on export
and messages all use it.
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
    """What an entry of an index is called.

    Two entries with the same ``key`` have the same name. A tag says nothing by itself: Docker
    writes ``latest`` beside the whole name of each image.

    :ivar text: the name as it is spelled: ``io.containerd.image.name``, which is a whole one, or
        else ``org.opencontainers.image.ref.name``; ``""`` for none
    :ivar tag: what ``org.opencontainers.image.ref.name`` says
    :ivar full: the name in a store, as podman makes it; ``None`` when ``text`` can be none
    """

    text: str
    tag: str
    full: str | None

    @property
    def key(self) -> str:
        """What tells one name from another; ``""`` for an entry without a name."""
        return self.full or self.text

    def is_called(self, ref: str) -> bool:
        """Return whether this is its whole name."""
        return bool(self.text) and ref == self.key

    def may_be_called(self, ref: str) -> bool:
        """Return whether this is a short name of it: a tag, or a name without its registry."""
        if not self.text:
            return False
        full = {full_name(ref), full_name(ref, DOCKER)}
        return ref in {self.text, self.tag} or self.full in full - {None}


def name_of(annotations: Mapping[str, Any] | None) -> EntryName:
    """Return what an entry with these annotations is called."""
    annotations = annotations or {}
    tag = annotations.get(REF_NAME) or ""
    text = annotations.get(_IMAGE_NAME) or tag
    return EntryName(text, tag, full_name(text))


def digest_in(ref: str) -> tuple[str, str]:
    """Split ``[name@]digest`` into the name and the digest; no digest where there is none."""
    name, at, digest = ref.rpartition("@")
    if is_digest(digest):
        return name if at else "", digest
    return ref, ""


def called(entry: Descriptor, name: str) -> Descriptor:
    """Return an entry of an index with this name and no other; ``""`` for none."""
    others = {k: v for k, v in (entry.annotations or {}).items() if k not in NAME_ANNOTATIONS}
    annotations = others | ({REF_NAME: name} if name else {})
    return msgspec.structs.replace(entry, annotations=annotations or None)


def names_from(entry: Descriptor, other: Descriptor) -> Descriptor:
    """Return an entry that is called what another one is."""
    names = {k: v for k, v in (other.annotations or {}).items() if k in NAME_ANNOTATIONS}
    annotations = (called(entry, "").annotations or {}) | names
    return msgspec.structs.replace(entry, annotations=annotations or None)
