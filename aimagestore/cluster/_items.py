"""Keeps the content of big-data items in the object store."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from uuid import UUID

from .._core.image import Image
from .._core.record import Record
from .._core.view import View
from .._engine.items import require_item
from ..errors import BigDataMissingError, ImageUnknownError
from ._blob_reader import BlobReader
from ._blobs import Blobs
from ._history import History
from ._identity import Identity
from ._lookups import Lookups
from ._reader import ClusterReader
from ._sessions import Session, Sessions
from ._staged import StagedBlob

_TRIES = 3


class ClusterItems:
    """Keeps the content of items; see :class:`aimagestore._engine.protocol.Items`.

    :param helpers: threads for work beside a stream
    :param uploaders: threads that wait for the object store while data is written
    :param removers: threads that remove what is discarded
    """

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
        removers: Executor,
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
        return StagedBlob(self._blobs, self._helpers, self._uploaders, self._removers)

    def stage_stored(
        self, digest: str, size: int | None, is_wanted: Callable[[], bool]
    ) -> StagedBlob | None:
        return None

    def open(self, ref: str, key: str) -> tuple[Image, io.RawIOBase]:
        missing: FileNotFoundError | None = None
        record, blob = self._find(ref, key)
        path: str | None = None
        for _ in range(_TRIES):
            image = record.image
            require_item(image, key)
            path = f"{self._blobs.name} ({image.id}, {key!r})" if blob is None else None
            if blob is not None:
                try:
                    return image, BlobReader(self._blobs, blob)
                except FileNotFoundError as error:
                    # Replaced and collected since, with a very short grace period; or lost.
                    missing, path = error, self._blobs.path_of(blob)
            record, blob = self._find(ref, key)
        raise BigDataMissingError(
            f"the content of item {key!r} of image {record.id} is missing: {path}",
            id=record.id,
            key=key,
            path=path,
        ) from missing

    def is_same(self, one: io.RawIOBase, other: io.RawIOBase) -> bool:
        assert isinstance(one, BlobReader), "it was opened here"
        assert isinstance(other, BlobReader), "it was opened here"
        return one.blob == other.blob  # an object is written once

    def _find(self, ref: str, key: str) -> tuple[Record, UUID | None]:
        """Return a record and the object of its item, of one commit."""
        for _ in range(_TRIES):
            found = self._sessions.call(partial(self._item, ref, key)) if ref else None
            if found is not None:
                return found
            # Not an ID and not a name: a prefix, or with a digest.
            ref = self._reader.read(partial(_id_of, ref))
        raise ImageUnknownError(f"image {ref} was deleted meanwhile", ref=ref, id=ref)

    def _item(self, ref: str, key: str, session: Session) -> tuple[Record, UUID | None] | None:
        return Lookups(session.execute, self._history).item(ref, key)


def _id_of(ref: str, view: View) -> str:
    return view.find(ref).id
