"""The documents of a layout, read and verified; blocking."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .._engine.items import MANIFEST_MAX
from ..errors import InvalidLayoutError
from ._closure import Blob, Closure, check_content, check_size
from ._documents import (
    INDEX_FILE,
    INDEX_MAX,
    LAYOUT_FILE,
    Config,
    Descriptor,
    Document,
    Marker,
    blob_path,
    decode,
    media_type_of,
    read_document,
)
from ._index import LayoutIndex
from ._layout import Layout, has_file, read_whole

# An archive of docker save that has this file and no manifest.json is an old one.
_REPOSITORIES = "repositories"


class Reader:
    """Reads the documents of a layout.

    :ivar place: what to call the layout in messages
    :ivar index: its index.json
    :raises InvalidLayoutError: when it is not a layout
    """

    def __init__(self, layout: Layout) -> None:
        self.place = layout.place
        self._layout = layout
        self._check_marker()
        try:
            data = read_whole(layout, INDEX_FILE, INDEX_MAX)
        except FileNotFoundError:
            raise self.invalid(f"it has no {INDEX_FILE}") from None
        self.index = LayoutIndex(data, self.place, layout.positions)

    def _check_marker(self) -> None:
        try:
            data = read_whole(self._layout, LAYOUT_FILE)
        except FileNotFoundError:
            problem = (
                f"not an OCI image layout, which has a file {LAYOUT_FILE} at its top, and neither "
                "an archive of docker save nor a dir:, which have a manifest.json"
            )
            if has_file(self._layout, _REPOSITORIES):
                problem = (
                    "docker save before Docker 1.10 has written it, without the digests of its "
                    "layers: load it into Docker, and save it again"
                )
            raise self.invalid(problem) from None
        check_marker(data, self.place)

    def invalid(self, problem: str) -> InvalidLayoutError:
        """Return the error that says what is wrong with the layout."""
        return InvalidLayoutError(f"{self.place}: {problem}", path=self.place)

    def missing(self, digests: Iterable[str]) -> InvalidLayoutError:
        """Return the error that names content that the layout lacks."""
        first, *others = digests
        rest = f", and {len(others)} more are" if others else " is"
        return self.invalid(f"{first}{rest} missing")

    def typed(self, root: Descriptor) -> Descriptor:
        """Return a descriptor with its media type, taken from the content if it has none.

        It stays without one if the content is missing, or is not a manifest.
        """
        data = None if root.media_type else self._read(root)
        if data is None:
            return root
        try:
            media_type = media_type_of(data, root.digest, self.place)
        except InvalidLayoutError:
            return root
        return msgspec.structs.replace(root, media_type=media_type)

    def closure(self, root: Descriptor, *, follows_manifests: bool = True) -> Closure:
        """Read a manifest or an index, and the manifests and indexes that it refers to.

        :raises InvalidLayoutError: when the root is missing, or a document is not what it should be
        :raises SizeMismatchError: when one is longer or shorter than its descriptor says
        :raises DigestMismatchError: when one has another digest
        """
        closure = Closure(root, self.place, follows_manifests=follows_manifests)
        while (descriptor := closure.next()) is not None:
            data = self._read(descriptor)
            if data is not None:
                closure.add(data)
            elif descriptor is root:
                raise self.missing([root.digest])
            else:
                closure.skip()
        return closure

    def manifest(self, descriptor: Descriptor) -> Document | None:
        """Read an image's manifest alone; ``None`` if the layout lacks it."""
        data = self._read(descriptor)
        if data is None:
            return None
        check_content(data, descriptor, self.place)
        return self.parsed(descriptor, data)

    def parsed(self, descriptor: Descriptor, data: bytes) -> Document:
        """Decode a document that was read and verified."""
        return read_document(data, descriptor.media_type, descriptor.digest, self.place)

    def config(self, manifest: Document) -> Config:
        """Read an image's config. What is missing or cannot be decoded reads as absent.

        :raises SizeMismatchError: when it is longer or shorter than its descriptor says
        :raises DigestMismatchError: when it has another digest
        """
        descriptor = manifest.config
        if descriptor is None or descriptor.problem or descriptor.size > MANIFEST_MAX:
            return Config()
        data = self._read(descriptor)
        if data is None:
            return Config()
        check_content(data, descriptor, self.place)
        return Config.read(data)

    def _read(self, descriptor: Descriptor) -> bytes | None:
        if descriptor.digest == self.index.digest:
            return self.index.data
        try:
            return read_whole(self._layout, blob_path(descriptor.digest))
        except FileNotFoundError:
            return None

    def has(self, blob: Blob) -> bool:
        """Return whether the layout has a blob.

        :raises SizeMismatchError: when the blob has another size
        """
        try:
            file = self._layout.open(blob_path(blob.digest))
        except FileNotFoundError:
            return False
        try:
            check_size(file.size, blob.digest, blob.size, self.place)
        finally:
            file.close()
        return True


def check_marker(data: bytes, place: str) -> None:
    """Check the content of the file ``oci-layout``.

    :raises InvalidLayoutError: when the layout has a version that is not understood
    """
    marker = decode(data, Marker, LAYOUT_FILE, place)
    if not marker.image_layout_version.startswith("1."):
        raise InvalidLayoutError(
            f"{place} is a layout of version {marker.image_layout_version!r}; only 1 is understood",
            path=place,
        )
