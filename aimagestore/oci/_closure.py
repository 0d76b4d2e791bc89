"""An image and all that it refers to, found by reading its manifests one after another."""

from __future__ import annotations

from typing import NamedTuple

from .._core.digest import digest_of, hasher
from .._engine.items import MANIFEST_MAX
from ..errors import DigestMismatchError, InvalidLayoutError, SizeMismatchError
from ._documents import Descriptor, read_document

_MOST_DESCRIPTORS = 10_000
_MOST_BYTES = 32 * 1024 * 1024
_DEEPEST = 8


class Blob(NamedTuple):
    """Content that is no manifest.

    :ivar is_layer: whether it is nothing but a layer
    :ivar is_foreign: whether it is to be had elsewhere, and may be missing
    """

    digest: str
    size: int
    is_layer: bool
    is_foreign: bool


class Tally:
    """What has been seen of a layout so far, so that it ends and does not contradict itself.

    :param place: what to call the layout in messages
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._sizes: dict[str, int] = {}
        self._descriptors = 0
        self._bytes = 0

    def invalid(self, problem: str) -> InvalidLayoutError:
        """The error that says what is wrong with the layout."""
        return InvalidLayoutError(f"{self.place}: {problem}", path=self.place)

    def see(self, descriptor: Descriptor) -> None:
        """Count a descriptor.

        :raises InvalidLayoutError: when there are too many, or another gave its digest another
            size
        """
        self._descriptors += 1
        if self._descriptors > _MOST_DESCRIPTORS:
            raise self.invalid(f"refers to more than {_MOST_DESCRIPTORS:,} manifests and blobs")
        known = self._sizes.setdefault(descriptor.digest, descriptor.size)
        if known != descriptor.size:
            raise self.invalid(f"{descriptor.digest} has {known} and {descriptor.size} bytes")

    def read(self, descriptor: Descriptor) -> None:
        """Count the bytes of a document that is to be read.

        :raises InvalidLayoutError: when it, or all of them together, are too large
        """
        self._bytes += descriptor.size
        if descriptor.size > MANIFEST_MAX:
            raise self.invalid(
                f"manifest {descriptor.digest} has {descriptor.size} bytes, more than the "
                f"{MANIFEST_MAX} allowed"
            )
        if self._bytes > _MOST_BYTES:
            raise self.invalid(f"has more than {_MOST_BYTES} bytes of manifests")


class Closure:
    """A manifest or an index, and all that it refers to.

    As long as :meth:`next` names a document, read it and :meth:`add` it.

    :ivar documents: digest to content of the manifests and indexes, the root first
    :ivar manifests: digest to descriptor of the images' manifests
    :ivar blobs: configs, layers, and what else an index lists, by digest
    """

    def __init__(self, root: Descriptor, tally: Tally, *, follows_manifests: bool = True) -> None:
        if not (root.is_index or root.is_manifest):
            raise tally.invalid(
                f"{root.digest} is of type {root.media_type!r}: expected an OCI image manifest or "
                "index, or a Docker manifest of schema 2 or a list of those"
            )
        self.root = root
        self.documents: dict[str, bytes] = {}
        self.manifests: dict[str, Descriptor] = {}
        self.blobs: dict[str, Blob] = {}
        self._tally = tally
        self._follows_manifests = follows_manifests
        self._pending = [(root, 0)]
        tally.see(root)

    def next(self) -> Descriptor | None:
        """The document that is to be read next.

        :raises InvalidLayoutError: when there is too much of it
        """
        while self._pending:
            descriptor, _ = self._pending[-1]
            if descriptor.digest not in self.documents:
                self._tally.read(descriptor)
                return descriptor
            self._pending.pop()
        return None

    def add(self, data: bytes) -> None:
        """Take in the document that was read.

        :raises SizeMismatchError: when it has another size than was said
        :raises DigestMismatchError: when it has another digest
        :raises InvalidLayoutError: when it cannot be what it was said to be
        """
        descriptor, depth = self._pending.pop()
        check_content(data, descriptor, self._tally.place)
        what = f"manifest {descriptor.digest}"
        document = read_document(data, descriptor.media_type, what, self._tally.place)
        self.documents[descriptor.digest] = data
        children: list[tuple[Descriptor, int]] = []
        for child in document.manifests or ():
            self._tally.see(child)
            if child.is_index or child.is_manifest:
                children.append((child, depth + 1))
            else:
                self._add_blob(child, is_layer=False)
        if document.config is not None:
            self.manifests[descriptor.digest] = descriptor
            self._tally.see(document.config)
            self._add_blob(document.config, is_layer=False)
        for layer in document.layers or ():
            self._tally.see(layer)
            self._add_blob(layer, is_layer=True)
        self._descend(children)

    def _descend(self, children: list[tuple[Descriptor, int]]) -> None:
        if children and children[0][1] > _DEEPEST:
            raise self._tally.invalid(f"has indexes in indexes, more than {_DEEPEST} deep")
        for child, depth in reversed(children):
            if child.is_index or self._follows_manifests:
                self._pending.append((child, depth))
        if not self._follows_manifests:
            self.manifests |= {c.digest: c for c, _ in children if c.is_manifest}

    def _add_blob(self, descriptor: Descriptor, *, is_layer: bool) -> None:
        new = Blob(descriptor.digest, descriptor.size, is_layer, descriptor.is_foreign)
        known = self.blobs.get(descriptor.digest, new)
        self.blobs[descriptor.digest] = new._replace(
            is_layer=new.is_layer and known.is_layer,
            is_foreign=new.is_foreign and known.is_foreign,
        )


def check_content(data: bytes, descriptor: Descriptor, place: str) -> None:
    """Compare what was read whole with what was said of it.

    :raises SizeMismatchError: when it has another size
    :raises DigestMismatchError: when it has another digest
    """
    check_size(len(data), descriptor.digest, descriptor.size, place)
    state = hasher(descriptor.digest)
    state.update(data)
    actual = digest_of(state)
    if actual != descriptor.digest:
        raise DigestMismatchError(
            f"{place}: what is called {descriptor.digest} has the digest {actual}",
            path=place,
            expected=descriptor.digest,
            actual=actual,
        )


def check_size(actual: int, digest: str, expected: int, place: str) -> None:
    """Compare a size with what was said of it.

    :raises SizeMismatchError: when it is another
    """
    if actual != expected:
        raise SizeMismatchError(
            f"{place}: {digest} has {actual} bytes, {expected} were expected",
            path=place,
            expected=expected,
            actual=actual,
        )
