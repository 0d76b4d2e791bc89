"""An image and all that it refers to, found by reading its manifests one after another."""

from __future__ import annotations

from typing import NamedTuple

from .._core.digest import digest_of, hasher
from .._engine.items import MANIFEST_MAX
from ..errors import DigestMismatchError, InvalidLayoutError, SizeMismatchError
from ._documents import Descriptor, Document, read_document, too_large

DESCRIPTORS_MAX = 10_000
"""The most manifests and blobs that one image may refer to."""

MANIFESTS_MAX = 32 * 1024 * 1024
"""The most bytes that the manifests of one image may have together."""

DEPTH_MAX = 8
"""The most indexes that may be nested in each other."""


class Blob(NamedTuple):
    """Content other than a manifest or an index.

    :ivar is_layer: whether it is a layer and nothing else
    :ivar is_optional: whether it may be missing
    """

    digest: str
    size: int
    is_layer: bool
    is_optional: bool


class _Tally:
    """Counts what one image refers to, and refuses too much and contradictions."""

    def __init__(self, place: str, root: Descriptor) -> None:
        self._place = place
        self._image = f"the image {root.digest}"
        self._sizes: dict[str, int] = {}
        self._descriptors = 0
        self._bytes = 0

    def invalid(self, problem: str) -> InvalidLayoutError:
        return InvalidLayoutError(f"{self._place}: {problem}", path=self._place)

    def add(self, descriptor: Descriptor) -> None:
        """Count a manifest or blob that the image refers to."""
        self._descriptors += 1
        if self._descriptors > DESCRIPTORS_MAX:
            raise self.invalid(
                f"{self._image} refers to more than {DESCRIPTORS_MAX:,} manifests and blobs, "
                "which is the limit for one image"
            )
        known = self._sizes.setdefault(descriptor.digest, descriptor.size)
        if known != descriptor.size:
            raise self.invalid(
                f"{descriptor.digest} is listed with {known} and with {descriptor.size} bytes"
            )

    def add_document(self, descriptor: Descriptor) -> None:
        """Count the bytes of a manifest or index that will be read."""
        if descriptor.size > MANIFEST_MAX:
            what = f"manifest {descriptor.digest}"
            raise too_large(self._place, what, descriptor.size, MANIFEST_MAX)
        self._bytes += descriptor.size
        if self._bytes > MANIFESTS_MAX:
            raise self.invalid(
                f"{self._image} has more than {MANIFESTS_MAX} bytes of manifests, which is the "
                "limit for one image"
            )


class Closure:
    """A manifest or an index, and all that it refers to.

    As long as :meth:`next` returns a descriptor, read the document and :meth:`add` it, or
    :meth:`skip` it when it is missing.

    :param place: what to call the layout in messages
    :param follows_manifests: whether to read manifests that an index lists, and not only indexes
    :ivar documents: digest to content of the manifests and indexes, the root first
    :ivar manifests: digest to descriptor of the manifests that are not missing
    :ivar parts: digest of a manifest that was read to its config and layers
    :ivar blobs: configs, layers, and what else an index lists, by digest
    :ivar missing: digest to descriptor of the manifests and indexes that are missing, or cannot
        be verified
    """

    def __init__(self, root: Descriptor, place: str, *, follows_manifests: bool = True) -> None:
        self._tally = _Tally(place, root)
        if root.problem:
            raise self._tally.invalid(root.problem)
        if not (root.is_index or root.is_manifest):
            raise self._tally.invalid(
                f"{root.digest} is of type {root.media_type!r}; only OCI image manifests and "
                "indexes, Docker manifests of schema 2, and lists of those can be read"
            )
        self.root = root
        self.documents: dict[str, bytes] = {}
        self.manifests: dict[str, Descriptor] = {}
        self.parts: dict[str, tuple[Descriptor, ...]] = {}
        self.blobs: dict[str, Blob] = {}
        self.missing: dict[str, Descriptor] = {}
        self._place = place
        self._follows_manifests = follows_manifests
        self._pending = [(root, 0)]
        self._tally.add(root)

    def next(self) -> Descriptor | None:
        """Return the document to read next.

        :raises InvalidLayoutError: when the manifests are larger than the limits allow
        """
        while self._pending:
            descriptor, _ = self._pending[-1]
            if descriptor.digest not in self.documents and descriptor.digest not in self.missing:
                self._tally.add_document(descriptor)
                return descriptor
            self._pending.pop()
        return None

    def skip(self) -> None:
        """Note that the document to read is missing."""
        descriptor, _ = self._pending.pop()
        self.missing[descriptor.digest] = descriptor

    def add(self, data: bytes) -> None:
        """Add the document that was read.

        :raises SizeMismatchError: when it has another size than its descriptor says
        :raises DigestMismatchError: when it has another digest
        :raises InvalidLayoutError: when it cannot be what its descriptor says
        """
        descriptor, depth = self._pending.pop()
        check_content(data, descriptor, self._place)
        what = f"manifest {descriptor.digest}"
        document = read_document(data, descriptor.media_type, what, self._place)
        if document.config is not None and not self._add_parts(descriptor, document):
            return
        self.documents[descriptor.digest] = data
        children: list[tuple[Descriptor, int]] = []
        for child in document.manifests:
            if child.problem:
                self.missing[child.digest] = child
                continue
            self._tally.add(child)
            if child.is_index or child.is_manifest:
                children.append((child, depth + 1))
            else:
                self._add_blob(child, is_layer=False, is_optional=True)
        self._descend(children)

    def _add_parts(self, descriptor: Descriptor, document: Document) -> bool:
        """Add what a manifest refers to; ``False`` if some of that cannot be verified."""
        assert document.config is not None, "it is a manifest"
        parts = (document.config, *document.layers)
        problem = next(filter(None, (part.problem for part in parts)), "")
        if problem and descriptor == self.root:
            raise self._tally.invalid(problem)
        if problem:
            self.missing[descriptor.digest] = descriptor
            return False
        self.manifests[descriptor.digest] = descriptor
        self.parts[descriptor.digest] = parts
        for number, part in enumerate(parts):
            self._tally.add(part)
            self._add_blob(part, is_layer=number > 0, is_optional=part.is_foreign)
        return True

    def _descend(self, children: list[tuple[Descriptor, int]]) -> None:
        if children and children[0][1] > DEPTH_MAX:
            raise self._tally.invalid(
                f"indexes are nested more than {DEPTH_MAX} deep, which is the limit"
            )
        for child, depth in reversed(children):
            if child.is_index or self._follows_manifests:
                self._pending.append((child, depth))
        if not self._follows_manifests:
            self.manifests |= {c.digest: c for c, _ in children if c.is_manifest}

    def _add_blob(self, descriptor: Descriptor, *, is_layer: bool, is_optional: bool) -> None:
        new = Blob(descriptor.digest, descriptor.size, is_layer, is_optional)
        known = self.blobs.get(descriptor.digest, new)
        self.blobs[descriptor.digest] = new._replace(
            is_layer=new.is_layer and known.is_layer,
            is_optional=new.is_optional and known.is_optional,
        )


def check_content(data: bytes, descriptor: Descriptor, place: str) -> None:
    """Compare content with its descriptor.

    :raises SizeMismatchError: when it has another size
    :raises DigestMismatchError: when it has another digest
    """
    check_size(len(data), descriptor.digest, descriptor.size, place)
    state = hasher(descriptor.digest)
    state.update(data)
    actual = digest_of(state)
    if actual != descriptor.digest:
        raise DigestMismatchError(
            f"{place}: the content of {descriptor.digest} has the digest {actual}",
            path=place,
            expected=descriptor.digest,
            actual=actual,
        )


def check_size(actual: int, digest: str, expected: int, place: str) -> None:
    """Compare the size of content with that of its descriptor.

    :raises SizeMismatchError: when they differ
    """
    if actual != expected:
        raise SizeMismatchError(
            f"{place}: {digest} has {actual} bytes; {expected} were expected",
            path=place,
            expected=expected,
            actual=actual,
        )
