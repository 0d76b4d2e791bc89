"""What an import will put into a store, found out before anything is; blocking."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import msgspec

from .._core.digest import MANIFEST, canonical_digest
from .._core.names import NAME_ANNOTATIONS
from .._format import gojson
from ..errors import ImageUnknownError, InvalidLayoutError
from ._documents import Descriptor, Platform
from ._layout import Layout
from ._reader import Reader
from ._reference import full_name

logger = logging.getLogger("aimagestore")

# podman cannot remove an image index that has no such item: where from it has which instance.
_INSTANCES = "instances.json"
_NO_INSTANCES = b"{}"


class Item(NamedTuple):
    """Big data that an image will have."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image that the store will have.

    :ivar refs: what the layout calls it
    :ivar names: what the store will call it
    :ivar items: key to what is under it
    :ivar documents: digest to content of those that are in memory, manifests and indexes
    :ivar layers_left_out: how many layers it has that are none of its items
    """

    id: str
    refs: tuple[str, ...]
    names: tuple[str, ...]
    created: datetime | None
    items: Mapping[str, Item]
    documents: Mapping[str, bytes]
    layers_left_out: int

    def merged(self, other: PlannedImage) -> PlannedImage:
        """Join it with what the layout has of the same image under another name or manifest."""
        return replace(
            other,
            refs=tuple(dict.fromkeys((*self.refs, *other.refs))),
            names=tuple(dict.fromkeys((*self.names, *other.names))),
            items={**self.items, **other.items},
            documents={**self.documents, **other.documents},
            layers_left_out=max(self.layers_left_out, other.layers_left_out),
        )


def plan(
    layout: Layout, ref: str | None, platform: Platform | None, *, with_layers: bool
) -> list[PlannedImage]:
    """The images of a layout that are meant: those called ``ref``, or all.

    :param platform: the one to pick out of an index
    :param with_layers: whether layers go into the store, and are not podman's
    :raises ImageUnknownError: when there is none
    :raises InvalidLayoutError: when the layout is not what it should be
    :raises SizeMismatchError: when a file is longer or shorter than was said
    :raises DigestMismatchError: when a manifest or config is another than was said
    """
    reader = Reader(layout)
    roots = reader.index.roots(ref)
    if platform is not None:
        roots = _of_platform(reader, roots, platform)
    elif ref is not None and len({root.digest for root in roots}) > 1:
        raise InvalidLayoutError(
            f"{reader.place}: {len(roots)} images are called {ref!r}: say for which platform",
            path=reader.place,
        )
    planned: dict[str, PlannedImage] = {}
    for root in roots:
        image = _image(reader, root, with_layers=with_layers)
        known = planned.get(image.id)
        planned[image.id] = image if known is None else known.merged(image)
    return list(planned.values())


def _image(reader: Reader, root: Descriptor, *, with_layers: bool) -> PlannedImage:
    closure = reader.closure(root)
    items: dict[str, Item] = {}
    documents: dict[str, bytes] = {}
    for digest, data in closure.documents.items():
        item = Item(canonical_digest(data), len(data))
        documents[item.digest] = data
        items.setdefault(MANIFEST, item)  # the root's, which comes first
        items[f"{MANIFEST}-{digest}"] = item
    if root.is_index and not with_layers:
        items[_INSTANCES] = Item(canonical_digest(_NO_INSTANCES), len(_NO_INSTANCES))
        documents[items[_INSTANCES].digest] = _NO_INSTANCES
    left_out = 0
    for blob in closure.blobs.values():
        if blob.is_layer and not with_layers:
            left_out += 1
        elif reader.has(blob):
            items[blob.digest] = Item(blob.digest, blob.size)
    identity, created = root.digest, None
    if root.is_manifest:
        manifest = reader.manifest(root)
        created = _time(reader.config(manifest).created)
        # Other artifacts share one empty config: each is known by its manifest.
        if manifest.config is not None and manifest.config.is_image_config:
            identity = manifest.config.digest
    return PlannedImage(
        identity.partition(":")[2],
        (root.ref_name,) if root.ref_name else (),
        _names(root, reader.place),
        created,
        items,
        documents,
        left_out,
    )


def _time(text: str | None) -> datetime | None:
    try:
        return gojson.parse_time(text) if text else None
    except ValueError:
        return None


def _names(root: Descriptor, place: str) -> tuple[str, ...]:
    annotations = root.annotations or {}
    name = next((annotations[a] for a in NAME_ANNOTATIONS if annotations.get(a)), "")
    full = full_name(name)
    if name and full is None:
        logger.warning("%s: imported without the name %r, which images cannot have", place, name)
    return () if full is None else (full,)


def _of_platform(
    reader: Reader, roots: Iterable[Descriptor], platform: Platform
) -> Sequence[Descriptor]:
    """The manifests for a platform, one for each image that has one."""
    found: list[Descriptor] = []
    others: set[str] = set()
    for root in roots:
        manifests = [root]
        if root.is_index:
            manifests = list(reader.closure(root, follows_manifests=False).manifests.values())
        choice = [(_platform(reader, manifest), manifest) for manifest in manifests]
        others.update(str(offered) for offered, _ in choice)
        manifest = _fitting(choice, platform, reader.place)
        if manifest is not None:
            # What the layout calls the index is the name of what is picked.
            found.append(msgspec.structs.replace(manifest, annotations=root.annotations))
    if not found:
        raise ImageUnknownError(
            f"{reader.place}: no image for {platform}, but for {sorted(others)}",
            ref=str(platform),
            path=reader.place,
        )
    return found


def _fitting(
    choice: Sequence[tuple[Platform, Descriptor]], wanted: Platform, place: str
) -> Descriptor | None:
    fitting = [(offered, manifest) for offered, manifest in choice if offered.suits(wanted)]
    exact = [manifest for offered, manifest in fitting if offered == wanted]
    if len(fitting) > 1 and not exact:
        names = ", ".join(str(offered) for offered, _ in fitting)
        raise InvalidLayoutError(f"{place}: several images for {wanted}: {names}", path=place)
    return next(iter(exact or [manifest for _, manifest in fitting]), None)


def _platform(reader: Reader, manifest: Descriptor) -> Platform:
    """What an image runs on: its index tells, else its config does."""
    return manifest.platform or reader.config(reader.manifest(manifest)).platform
