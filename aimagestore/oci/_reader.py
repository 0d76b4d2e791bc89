"""The documents of a layout, read and verified; blocking."""

from __future__ import annotations

from .._engine.items import MANIFEST_MAX
from ..errors import InvalidLayoutError
from ._closure import Blob, Closure, Tally, check_content, check_size
from ._documents import (
    INDEX_FILE,
    LAYOUT_FILE,
    Config,
    Descriptor,
    Document,
    Marker,
    blob_path,
    decode,
    read_document,
)
from ._index import LayoutIndex
from ._layout import Layout, read_whole


class Reader:
    """Reads what a layout says of itself.

    :ivar place: what to call the layout in messages
    :ivar index: its images
    :raises InvalidLayoutError: when it is no layout
    """

    def __init__(self, layout: Layout) -> None:
        self.place = layout.place
        self._layout = layout
        self._tally = Tally(layout.place)
        self._check_marker()
        try:
            data = read_whole(layout, INDEX_FILE)
        except FileNotFoundError:
            raise self._tally.invalid(f"it has no {INDEX_FILE}") from None
        self.index = LayoutIndex(data, self._tally)

    def _check_marker(self) -> None:
        try:
            data = read_whole(self._layout, LAYOUT_FILE)
        except FileNotFoundError:
            raise self._tally.invalid(f"no OCI image layout: it has no {LAYOUT_FILE}") from None
        check_marker(data, self.place)

    def closure(self, root: Descriptor, *, follows_manifests: bool = True) -> Closure:
        """Read a manifest or an index, and all manifests and indexes that it refers to.

        :raises InvalidLayoutError: when one is missing, or is not what it should be
        :raises SizeMismatchError: when one is longer or shorter than was said
        :raises DigestMismatchError: when one is another than was said
        """
        closure = Closure(root, self._tally, follows_manifests=follows_manifests)
        while (descriptor := closure.next()) is not None:
            closure.add(self._read(descriptor))
        return closure

    def manifest(self, descriptor: Descriptor) -> Document:
        """Read an image's manifest alone."""
        data = self.closure(descriptor).documents[descriptor.digest]
        return read_document(data, descriptor.media_type, descriptor.digest, self.place)

    def config(self, manifest: Document) -> Config:
        """What an image's config says, as far as it can be read: to the layout it is a blob."""
        descriptor = manifest.config
        if descriptor is None or not descriptor.is_image_config or descriptor.size > MANIFEST_MAX:
            return Config()
        data = self._read(descriptor)
        check_content(data, descriptor, self.place)
        try:
            return decode(data, Config, f"config {descriptor.digest}", self.place)
        except InvalidLayoutError:
            return Config()

    def _read(self, descriptor: Descriptor) -> bytes:
        if descriptor.digest == self.index.itself.digest:
            return self.index.data
        try:
            return read_whole(self._layout, blob_path(descriptor.digest))
        except FileNotFoundError:
            raise self._missing(descriptor.digest) from None

    def has(self, blob: Blob) -> bool:
        """Whether the layout has the blob. A foreign one may be missing.

        :raises InvalidLayoutError: when it lacks what it should have
        :raises SizeMismatchError: when it has it in another size
        """
        try:
            file = self._layout.open(blob_path(blob.digest))
        except FileNotFoundError:
            if blob.is_foreign:
                return False
            raise self._missing(blob.digest) from None
        try:
            check_size(file.size, blob.digest, blob.size, self.place)
        finally:
            file.close()
        return True

    def _missing(self, digest: str) -> InvalidLayoutError:
        return self._tally.invalid(f"{digest} is missing")


def check_marker(data: bytes, place: str) -> None:
    """Check what the file says that makes a directory a layout.

    :raises InvalidLayoutError: when it is of a version that is not understood
    """
    marker = decode(data, Marker, LAYOUT_FILE, place)
    if not marker.image_layout_version.startswith("1."):
        raise InvalidLayoutError(
            f"{place}: a layout of version {marker.image_layout_version!r}; only 1 is understood",
            path=place,
        )
