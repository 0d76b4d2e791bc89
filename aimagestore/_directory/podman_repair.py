"""Repairs images that podman cannot read, or takes them out of the index."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from .._core import mutations
from .._core.content import InlineContent
from .._core.digest import MANIFEST, is_manifest_key
from .._core.draft import Draft
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.names import INDEX_FILE, big_data_key
from .._core.podman import INSTANCES, NO_INSTANCES, Part
from .._core.references import is_reference
from .._core.report import Finding, FindingKind
from ..errors import ImageStoreError, StoreCorruptError
from .files import Directory
from .podman import Podman

logger = logging.getLogger("aimagestore")

_MANIFEST_FIELDS = frozenset({"manifest", "config"})
"""The fields of a :class:`Part` that another manifest may repair."""


class PodmanRepairs:
    """Repairs the draft of a store beside which podman keeps layers.

    :param apply: applies a mutation to the draft
    :param kept_as: the name that the previous index will have
    :param drop: whether to take out images whose top layer is unknown
    :ivar takes_out: whether something is taken out of the index that no file can restore
    :ivar taken_out: IDs of the images whose whole records are taken out
    """

    def __init__(
        self,
        root: Directory,
        podman: Podman,
        draft: Draft,
        apply: Callable[[Mutation], object],
        kept_as: str,
        *,
        drop: bool,
    ) -> None:
        self.takes_out = False
        self.taken_out: list[str] = []
        self._root = root
        self._podman = podman
        self._draft = draft
        self._apply = apply
        self._kept_as = kept_as
        self._drop = drop

    def repair(self, image_id: str) -> Finding | None:
        """Repair an image or take it out of the index; return what was done, if anything was."""
        if self._draft.record_of(image_id) is None:
            return None
        done = [*self._complete(image_id), *self._take_out(image_id), *self._find_layer(image_id)]
        path = self._root.path_of(INDEX_FILE)
        detail = "; ".join(done)
        return Finding(FindingKind.PODMAN_FAILS, image_id, "", path, detail) if done else None

    def _unreadable_parts(self, image_id: str) -> list[Part]:
        return self._podman.unreadable_parts(self._draft.get(image_id), self._draft.files)

    def _complete(self, image_id: str) -> Iterator[str]:
        """Repair each part of an image that can be repaired, and say how."""
        for part in self._unreadable_parts(image_id):
            try:
                image = self._draft.get(image_id)
                planned = self._plan(image, part)
                if planned is not None:
                    change, done = planned
                    if part.field in _MANIFEST_FIELDS:
                        self._keep_manifest(image)
                    self._apply(change)
                    yield f"{part.problem}: {done}"
            except (ImageStoreError, OSError) as error:
                logger.info("repair, image %s: %s: %s", image_id, part.problem, error)

    def _plan(self, image: Image, part: Part) -> tuple[Mutation, str] | None:
        """Return the mutation that repairs a part, and what it does; ``None`` if none can."""
        removal = _removal_of(image, part)
        if removal is not None:
            return removal, self._removed()
        if part.field == "mapped-layers":
            # Each is a copy of the top layer with other owners: podman makes another if needed.
            layers = [layer for layer in image.mapped_top_layers if self._podman.knows(layer)]
            return mutations.set_mapped_layers(image.id, layers), "removed"
        if part.field == "instances" and self._podman.read(image, INSTANCES) is None:
            content = InlineContent.of(NO_INSTANCES)
            return mutations.set_big_data(image.id, INSTANCES, content), "added"
        found = self._other_manifest(image) if part.field in _MANIFEST_FIELDS else None
        if found is None:
            return None
        key, content = found
        return mutations.set_big_data(image.id, MANIFEST, content), f"replaced by {key!r}"

    def _keep_manifest(self, image: Image) -> None:
        """Keep the manifest that is about to be replaced as another item, unless it is damaged."""
        text = self._podman.read(image, MANIFEST)
        content = InlineContent.of(text or b"")
        key = f"{MANIFEST}-{content.digest}"
        is_whole = content.digest == image.big_data_digests.get(MANIFEST)
        if is_whole and key not in image.big_data_names:
            self._apply(mutations.set_big_data(image.id, key, content))

    def _removed(self) -> str:
        self.takes_out = True
        return f"removed; the previous index stays as {self._kept_as}"

    def _other_manifest(self, image: Image) -> tuple[str, InlineContent] | None:
        """Return an item of an image that podman could read in place of its manifest."""
        try:
            with self._root.open_directory(image.id) as directory:
                keys = [key for name in directory.names() if (key := big_data_key(name))]
        except (FileNotFoundError, StoreCorruptError):
            return None
        found = []
        for key in sorted(keys):
            is_other = is_manifest_key(key) and key != MANIFEST
            text = self._podman.read(image, key) if is_other else None
            if text and self._podman.can_use(image, text):
                found.append((key, InlineContent.of(text)))
        # Prefer the image's own manifest to that of an index through which it may have been pulled.
        return min(found, key=lambda each: each[1].digest != image.digest, default=None)

    def _find_layer(self, image_id: str) -> Iterator[str]:
        """Set the top layer of an image whose record was rebuilt, and say which it is."""
        record = self._draft.record_of(image_id)
        if record is not None and self._draft.base.record_of(image_id) is None:
            layer = self._podman.top_layer(record.image)
            if layer:
                self._apply(mutations.set_top_layer(image_id, layer))
                yield f"its top layer is {layer}"

    def _take_out(self, image_id: str) -> Iterator[str]:
        """Take an image out of the index if podman cannot read it even now, and say why."""
        left = self._unreadable_parts(image_id)
        # An additional store may have a layer that is unknown here.
        if not left or (all(part.field == "layer" for part in left) and not self._drop):
            return
        self._apply(mutations.delete(image_id, force=True))
        problems = "; ".join(part.problem for part in left)
        if self._draft.base.record_of(image_id) is None:
            yield f"not adopted after all: {problems}"
        else:
            self.takes_out = True
            self.taken_out.append(image_id)
            yield f"taken out of the index, which stays as {self._kept_as}: {problems}"


def _removal_of(image: Image, part: Part) -> Mutation | None:
    """Return the mutation that removes a part from the record; ``None`` if it needs another."""
    if part.field == "name":
        names = [name for name in image.names if not is_reference(name)]
        return mutations.remove_names(image.id, names)
    if part.field == "metadata":
        return mutations.set_metadata(image.id, "")
    return mutations.drop_big_data(image.id, part.key) if part.field == "item" else None
