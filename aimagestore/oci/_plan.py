"""What an import will put into a store, decided before it stores anything; blocking."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from .._core.digest import MANIFEST, canonical_digest
from .._core.podman import INSTANCES, NO_INSTANCES, is_podman_image
from .._engine.protocol import Steps
from .._format import gojson
from ..errors import AmbiguousImageError, ImageUnknownError, InvalidLayoutError
from ._closure import Closure
from ._documents import Descriptor, is_image
from ._index import Selected
from ._layout import Layout
from ._naming import names_from
from ._platform import Platform, best_of
from ._reader import Reader

logger = logging.getLogger("aimagestore")


class Item(NamedTuple):
    """Big data that an image will have.

    :ivar digest: the SHA-256 digest that the store records; or that of another algorithm, by which
        the layout lists a blob
    :ivar source: the digest by which the layout lists the content
    """

    digest: str
    size: int
    source: str


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image that the store will have.

    :ivar label: what the layout calls it, for messages
    :ivar names: its names in the store
    :ivar items: key to item
    :ivar documents: source to content of the items that are not blobs of the layout
    :ivar layers_left_out: how many layers it has that are not among its items
    :ivar is_artifact: whether it is something other than an image; for a store of podman's, whether
        podman cannot read it as an image
    """

    label: str
    id: str
    names: tuple[str, ...]
    created: datetime | None
    items: Mapping[str, Item]
    documents: Mapping[str, bytes]
    layers_left_out: int
    is_artifact: bool

    def merged(self, other: PlannedImage) -> PlannedImage:
        """Return another plan of the same image, by another manifest, with the items of both."""
        return replace(
            other,
            items={**self.items, **other.items},
            documents={**self.documents, **other.documents},
            layers_left_out=max(self.layers_left_out, other.layers_left_out),
        )


class FoundImage(NamedTuple):
    """An image as a layout has it.

    :ivar lacking: the digests of blobs that the layout does not have, and need not have
    :ivar entry: the entry of its index, or the one that an index of this image alone would have
    """

    closure: Closure
    lacking: set[str]
    entry: Descriptor


def plan(
    layout: Layout,
    ref: str | None,
    platform: Platform | None,
    *,
    with_layers: bool,
    force: bool,
) -> Steps[list[PlannedImage]]:
    """Plan the import of the images that are called ``ref``, or of all images, in steps.

    :param platform: the platform to choose of each image
    :param with_layers: whether layers go into the store, because podman does not keep them
    :param force: whether what podman cannot read may go into a store that it keeps layers beside
    :raises ImageUnknownError: when there is none
    :raises AmbiguousImageError: when one name stands for several images
    :raises InvalidLayoutError: when it is not a layout, or is damaged or hostile
    :raises SizeMismatchError: when a file is longer or shorter than its descriptor says
    :raises DigestMismatchError: when a manifest or config has another digest
    """
    planner = _Planner(Reader(layout), platform, with_layers=with_layers, force=force)
    return (yield from planner.plan(ref))


def find_images(
    layout: Layout, ref: str | None, platform: Platform | None
) -> Steps[list[FoundImage]]:
    """Find the images that :func:`plan` would import, one for each entry, in steps."""
    planner = _Planner(Reader(layout), platform, with_layers=True, force=True)
    return (yield from planner.find(ref))


class _Planner:
    def __init__(
        self, reader: Reader, platform: Platform | None, *, with_layers: bool, force: bool
    ) -> None:
        self._reader = reader
        self._platform = platform
        self._with_layers = with_layers
        self._force = force
        # By image ID, and by the digest of the manifest or index.
        self._planned: dict[str, PlannedImage] = {}
        self._by_digest: dict[str, PlannedImage] = {}
        # Image ID to names, in their order.
        self._names: dict[str, dict[str, None]] = {}
        self._other_platforms: set[str] = set()

    def find(self, ref: str | None) -> Steps[list[FoundImage]]:
        found: list[FoundImage] = []

        def add(root: Descriptor, selected: Selected) -> None:
            closure, lacking = self._complete(root, selected)
            entry = closure.root
            if entry not in selected.entries:
                entry = names_from(entry, selected.entries[0])
            found.append(FoundImage(closure, lacking, entry))

        yield from self._each(ref, add)
        if not found:
            raise self._nothing()
        return found

    def plan(self, ref: str | None) -> Steps[list[PlannedImage]]:
        yield from self._each(ref, self._add)
        planned = [
            replace(image, names=tuple(self._names[image.id])) for image in self._planned.values()
        ]
        if not planned:
            raise self._nothing()
        images = [image for image in planned if not image.is_artifact]
        artifacts = ", ".join(image.label for image in planned if image.is_artifact)
        is_refused = not (self._with_layers or self._force)
        if artifacts and is_refused and (ref is not None or not images):
            raise self._reader.invalid(
                f"podman could not read its own store with {artifacts}, which is not an image: "
                "import it into another store, or with force=True"
            )
        if not artifacts or ref is not None or not images:
            return planned
        logger.warning("%s: left out what is not an image: %s", self._reader.place, artifacts)
        return images

    def _each(self, ref: str | None, add: Callable[[Descriptor, Selected], object]) -> Steps[None]:
        everything = self._reader.index.select(ref)
        for done, selected in enumerate(everything, 1):
            try:
                for root in self._roots(selected):
                    if root.is_index or root.is_manifest or ref is not None:
                        add(root, selected)
            except InvalidLayoutError as error:
                if len(everything) == 1:
                    raise
                problem = str(error).removeprefix(f"{self._reader.place}: ")
                raise self._reader.index.unusable(selected.label, problem) from error
            yield done, len(everything)

    def _nothing(self) -> ImageUnknownError:
        problem = "lists no image"
        if self._platform is not None:
            problem = f"has no image for {self._platform}"
        if self._other_platforms:
            problem += f"; it has images for {', '.join(sorted(self._other_platforms))}"
        return ImageUnknownError(
            f"{self._reader.place} {problem}",
            ref=None if self._platform is None else str(self._platform),
            path=self._reader.place,
        )

    def _roots(self, selected: Selected) -> list[Descriptor]:
        """Return the manifest or index to take of one image; none if it lacks the platform."""
        if self._platform is not None:
            chosen = self._choose(selected, self._platform)
            return [] if chosen is None else [chosen]
        if selected.whole is not None:
            return [selected.whole]
        entries = [self._reader.typed(entry) for entry in selected.entries]
        if len(entries) == 1:
            return entries
        platforms = [self._platform_of(entry) for entry in entries]
        if len(set(platforms)) == len(platforms) and None not in platforms:
            raise self._ambiguous(selected.label, map(str, platforms), "platform")
        digests = [f"{selected.label}@{entry.digest}" for entry in entries]
        raise self._ambiguous(selected.label, digests, "ref")

    def _ambiguous(self, label: str, choices: Iterable[str], option: str) -> AmbiguousImageError:
        return AmbiguousImageError(
            f"{self._reader.place}: several images are called {label!r}: select one by its "
            f"{option}",
            ref=label,
            path=self._reader.place,
            candidates=tuple(choices),
        )

    # Platforms

    def _choose(self, selected: Selected, wanted: Platform) -> Descriptor | None:
        manifests: list[Descriptor] = []
        for entry in selected.entries:
            root = self._reader.typed(entry)
            if root.is_index:
                closure = self._reader.closure(root, follows_manifests=False)
                manifests += closure.manifests.values()
            elif root.is_manifest:
                manifests.append(root)
        # Of two images for one platform, containers/image prefers the one with layers in zstd.
        manifests = sorted(
            (manifest for manifest in manifests if not manifest.is_beside_images),
            key=lambda manifest: not manifest.is_zstd,
        )
        platforms = [self._platform_of(manifest) for manifest in manifests]
        self._other_platforms |= {str(platform) for platform in platforms if platform is not None}
        position = best_of(platforms, wanted)
        if position is None:
            return None
        chosen = manifests[position]
        offers = zip(manifests, platforms, strict=True)
        same = {manifest.digest for manifest, p in offers if p == platforms[position]}
        if len(selected.entries) > 1 and len(same) > 1:
            choices = [f"{selected.label}@{entry.digest}" for entry in selected.entries]
            raise self._ambiguous(selected.label, choices, "ref")
        if self._reader.manifest(chosen) is None:
            present = [m for m in manifests if self._reader.manifest(m) is not None]
            raise self._reader.invalid(
                f"the content of {selected.label} for the platform {wanted} is missing; present: "
                f"{', '.join(str(self._platform_of(manifest)) for manifest in present) or 'none'}"
            )
        return chosen

    def _platform_of(self, manifest: Descriptor) -> Platform | None:
        """Return the platform of an image, from its index or else from its config."""
        if manifest.platform is not None or not manifest.is_manifest:
            return manifest.platform
        document = self._reader.manifest(manifest)
        return None if document is None else self._reader.config(document).platform

    # Images

    def _add(self, root: Descriptor, selected: Selected) -> None:
        for text in selected.unusable:
            logger.warning(
                "%s: imported without the name %r, which images cannot have",
                self._reader.place,
                text,
            )
        image = self._by_digest.get(root.digest)
        if image is None:
            image = self._by_digest[root.digest] = self._image(root, selected)
            known = self._planned.get(image.id)
            self._planned[image.id] = image if known is None else known.merged(image)
        self._names.setdefault(image.id, {}).update(dict.fromkeys(selected.names))

    def _image(self, root: Descriptor, selected: Selected) -> PlannedImage:
        return self._planned_image(*self._complete(root, selected), selected)

    def _complete(self, root: Descriptor, selected: Selected) -> tuple[Closure, set[str]]:
        """Read an image, and return it with the digests of optional blobs that it lacks.

        Of an index of which only one platform is complete, that platform is the image.
        """
        closure = self._reader.closure(root)
        lacking = {
            blob.digest
            for blob in closure.blobs.values()
            if not (blob.is_layer and not self._with_layers) and not self._reader.has(blob)
        }
        required = [digest for digest in lacking if not closure.blobs[digest].is_optional]
        if root.is_index:
            only = self._only_complete(closure, set(required), selected)
            if only is not None:
                return self._complete(only, selected)
        elif required:
            raise self._reader.missing(required)
        return closure, lacking

    def _only_complete(
        self, closure: Closure, lacking: set[str], selected: Selected
    ) -> Descriptor | None:
        """Return the one manifest to import instead of an index; ``None`` to import the index.

        A layout may have an index of all platforms, and the content of some of them.

        :param lacking: the digests of required blobs that the layout does not have
        :raises InvalidLayoutError: when all platforms lack something
        :raises AmbiguousImageError: when several platforms are complete, and others are not
        """
        images = [m for m in closure.manifests.values() if not m.is_beside_images]
        complete = [
            manifest
            for manifest in images
            if lacking.isdisjoint(part.digest for part in closure.parts[manifest.digest])
        ]
        absent = [d for d, descriptor in closure.missing.items() if not descriptor.is_beside_images]
        if not absent and not lacking:
            return None
        if not complete:
            raise self._reader.missing([*absent, *lacking])
        platforms = [str(self._platform_of(manifest) or "unknown") for manifest in complete]
        if len(complete) > 1:
            raise AmbiguousImageError(
                f"{self._reader.place}: {selected.label} is not complete; select one of the "
                "platforms that are",
                ref=selected.label,
                path=self._reader.place,
                candidates=tuple(platforms),
            )
        logger.warning(
            "%s: imported %s for the platform %s alone: the content for others is missing",
            self._reader.place,
            selected.label,
            platforms[0],
        )
        return complete[0]

    def _planned_image(
        self, closure: Closure, lacking: set[str], selected: Selected
    ) -> PlannedImage:
        root = closure.root
        items: dict[str, Item] = {}
        documents: dict[str, bytes] = {}
        for digest, data in closure.documents.items():
            item = Item(canonical_digest(data), len(data), digest)
            items.setdefault(MANIFEST, item)  # the root's, which comes first
            items[f"{MANIFEST}-{digest}"] = item
        if root.digest == self._reader.index.digest:
            documents[root.digest] = self._reader.index.data
        if root.is_index and not self._with_layers:
            digest = canonical_digest(NO_INSTANCES)
            items[INSTANCES] = Item(digest, len(NO_INSTANCES), digest)
            documents[digest] = NO_INSTANCES
        left_out = 0
        for blob in closure.blobs.values():
            if blob.is_layer and not self._with_layers:
                left_out += 1
            elif blob.digest not in lacking:
                items[blob.digest] = Item(blob.digest, blob.size, blob.digest)
        identity, created, is_artifact = root.digest, None, False
        if root.is_manifest:
            manifest = self._reader.parsed(root, closure.documents[root.digest])
            assert manifest.config is not None, "a manifest has one"
            config = self._reader.config(manifest)
            created = _time(config.created)
            is_artifact = not is_image(manifest, config)
            # Artifacts may share one empty config: each is known by its manifest.
            if not is_artifact:
                identity = manifest.config.digest
            if not self._with_layers:
                is_artifact = not is_podman_image(closure.documents[root.digest])
        return PlannedImage(
            selected.label,
            identity.partition(":")[2],
            selected.names,
            created,
            items,
            documents,
            left_out,
            is_artifact,
        )


def _time(text: str) -> datetime | None:
    try:
        return gojson.parse_time(text) if text else None
    except ValueError:
        return None
