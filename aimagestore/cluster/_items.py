"""Keeps the content of big-data items in the object store."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from uuid import UUID

from .._core.image import Image
from .._core.record import Record
from .._core.usage import StoredContent
from .._core.view import View
from .._engine.items import require_item
from .._engine.protocol import Steps
from ..errors import BigDataMissingError, ImageUnknownError, StoreUnavailableError
from ._blob_reader import BlobReader
from ._blobs import Blobs
from ._history import History
from ._identity import Identity
from ._lookups import PAGE, Lookups, stored_blob
from ._reader import ClusterReader
from ._removers import Removers
from ._sessions import Session, Sessions
from ._staged import Search, StagedBlob, StoredBlob

_TRIES = 3

_ITEMS = """
    SELECT image_id, key, blob, size FROM image_items
    WHERE removed IS NULL AND (image_id, key) > (%s, %s) ORDER BY image_id, key LIMIT %s
"""

# Rows without an image are of orphan objects that were removed.
_TOTAL = """
    SELECT coalesce(sum(size), 0)
    FROM (SELECT DISTINCT blob, size FROM image_items WHERE image_id <> '') items
"""


class ClusterItems:
    """Keeps the content of items; see :class:`aimagestore._engine.protocol.Items`.

    :param helpers: threads for work beside a stream
    :param uploaders: threads that wait for the object store while data is written
    :param removers: remove what is discarded
    """

    # Everything is staged, because the lock is not to be held during an upload.
    inline_limit = 0

    def __init__(
        self,
        sessions: Sessions,
        reader: ClusterReader,
        blobs: Blobs,
        identity: Identity,
        history: History,
        *,
        helpers: Executor,
        uploaders: Executor,
        removers: Removers,
    ) -> None:
        self._sessions = sessions
        self._reader = reader
        self._blobs = blobs
        self._identity = identity
        self._history = history
        self._helpers = helpers
        self._uploaders = uploaders
        self._removers = removers

    @property
    def helpers(self) -> Executor:
        """Threads for work beside a stream."""
        return self._helpers

    def stage(self) -> StagedBlob:
        self._identity.check_marker()
        return self._staged(None)

    def stage_stored(
        self, digest: str, size: int | None, check: Callable[[], object]
    ) -> StagedBlob | None:
        self._identity.check_marker()
        try:
            found, _ = self._search(digest, size)
        except StoreUnavailableError:
            return None
        return None if found is None else self._staged(found)

    def _staged(self, stored: StoredBlob | None) -> StagedBlob:
        return StagedBlob(
            self._blobs,
            self._helpers,
            self._uploaders,
            self._removers,
            search=self._search,
            stored=stored,
        )

    def _search(self, digest: str, size: int | None) -> Search:
        """Look for an object with this content, and check that it is there.

        Objects never change, and a digest was computed when its object was written.

        :raises StoreUnavailableError: when one of the servers is unavailable
        """
        lost: list[UUID] = []
        for _ in range(_TRIES):
            row = self._sessions.call(lambda s: stored_blob(s, digest, size, lost))
            if row is None:
                return Search(None, is_certain=not lost)
            blob, stored_size = row
            if self._blobs.size_of(blob) == stored_size:
                return Search(StoredBlob(blob, stored_size, digest))
            lost.append(blob)
        return Search(None)

    def open(self, ref: str, key: str) -> tuple[Image, io.RawIOBase]:
        missing: FileNotFoundError | None = None
        image_id = path = ""
        # Again, because the object may have been replaced and collected since, if the grace period
        # is very short.
        for _ in range(_TRIES):
            record, blob = self._find(ref, key)
            require_item(record.image, key)
            image_id = record.id
            if blob is None:
                path = f"{self._blobs.name} ({image_id}, {key!r})"
                continue
            path = self._blobs.path_of(blob)
            try:
                return record.image, BlobReader(self._blobs, blob)
            except FileNotFoundError as error:
                missing = error
        raise BigDataMissingError(
            f"the content of item {key!r} of image {image_id} is missing: {path}",
            id=image_id,
            key=key,
            path=path,
        ) from missing

    def is_same(self, one: io.RawIOBase, other: io.RawIOBase) -> bool:
        assert isinstance(one, BlobReader), "it was opened here"
        assert isinstance(other, BlobReader), "it was opened here"
        return one.blob == other.blob  # an object is written once

    def usage(self) -> Steps[StoredContent]:
        ((total,),) = self._sessions.rows(_TOTAL)
        images: dict[str, dict[int, int]] = {}
        # Images without items have no rows.
        for page in self._reader.pages(PAGE):
            images |= {image.id: {} for image in page}
            yield len(images), len(images)
        after: tuple[str, bytes] = ("", b"")
        while rows := self._sessions.rows(_ITEMS, [*after, PAGE]):
            for image_id, key, blob, size in rows:
                after = image_id, key
                if image_id in images:
                    images[image_id][blob.int] = size
            yield len(images), len(images)
        return StoredContent(images, int(total))

    def _find(self, ref: str, key: str) -> tuple[Record, UUID | None]:
        """Return a record and the object of its item, of one commit."""
        for _ in range(_TRIES):
            found = self._sessions.call(partial(self._item, ref, key)) if ref else None
            if found is not None:
                return found
            # Neither an ID nor a name: a prefix of an ID, or a ref with a digest.
            ref = self._reader.read(partial(_id_of, ref))
        raise ImageUnknownError(f"image {ref} was deleted meanwhile", ref=ref, id=ref)

    def _item(self, ref: str, key: str, session: Session) -> tuple[Record, UUID | None] | None:
        return Lookups(session.execute, self._history).item(ref, key)


def _id_of(ref: str, view: View) -> str:
    return view.find(ref).id
