"""Objects: each has the content of one item, never changes, and has a name that is used once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from ..errors import StoreUnavailableError
from ._addresses import BucketAddress

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, PutMode, WritableFile

# S3 takes parts of 5 MiB and more, and 10,000 of them: this allows items of 78 GiB.
PART = 8 * 1024 * 1024
_PARTS_AT_ONCE = 2

RETRIES = 0.6
"""The part of a deadline in which a request is sent again; the last attempt ends in the rest."""

# Both kinds come from writers.
FAILURES = (BaseError, OSError)

_MARKER = "aimagestore.json"

_CODE = re.compile(r"<Code>(\w+)</Code>")


class Blob(NamedTuple):
    """An object as the object store lists it."""

    id: UUID
    size: int
    written: datetime


class Marker(NamedTuple):
    """The object that says whose the prefix is.

    :ivar text: its content
    :ivar version: identifies this content; ``None`` for a marker that is not there
    :ivar written: when, by the object store's clock
    """

    text: bytes = b""
    version: str | None = None
    written: datetime | None = None


class Blobs:
    """The objects of one store.

    :param address: where they are
    :param deadline: seconds within which every request ends
    :ivar deadline: the same
    """

    def __init__(self, address: BucketAddress, deadline: float) -> None:
        self.name: str = address.name
        self.deadline = deadline
        attempt = (1 - RETRIES) * deadline
        self._store: S3Store = address.open(attempt=attempt, retries=RETRIES * deadline)
        # Readers retry by themselves, from the position where they are.
        self._reads: S3Store = address.open(attempt=attempt, retries=0)
        # Whoever uploads has a deadline of its own, because parts are sent in the background.
        self._uploads: S3Store = address.open(attempt=deadline, retries=deadline)

    def path_of(self, blob: UUID) -> str:
        """Return an object's name in messages: its URL."""
        return f"{self.name}/{blob.hex}"

    def writer(self, blob: UUID) -> WritableFile:
        """Begin to write an object, which exists when the writer is closed."""
        return obstore.open_writer(
            self._uploads, blob.hex, buffer_size=PART, max_concurrency=_PARTS_AT_ONCE
        )

    def get(self, blob: UUID, offset: int) -> GetResult:
        """Begin to read an object, without retries.

        :raises FileNotFoundError: when there is none
        """
        # An empty object has no range, not even an empty one.
        options: GetOptions = {"range": {"offset": offset}} if offset else {}
        return obstore.get(self._reads, blob.hex, options=options)

    def exists(self, blob: UUID) -> bool:
        """Return whether there is such an object.

        :raises BaseError: when the object store is unavailable, or refuses
        """
        try:
            obstore.head(self._store, blob.hex)
        except FileNotFoundError:
            return False
        return True

    def delete(self, blobs: Sequence[UUID]) -> None:
        """Remove objects; missing ones are ignored.

        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        if not blobs:
            return
        try:
            obstore.delete(self._store, [blob.hex for blob in blobs])
        except FileNotFoundError:
            pass
        except BaseError as error:
            raise self.unavailable(error) from None

    def pages(self) -> Iterator[Sequence[Blob]]:
        """Iterate over all objects, in pages.

        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        try:
            for page in obstore.list(self._store):
                found = ((_id_of(entry["path"]), entry) for entry in page)
                yield [Blob(i, e["size"], e["last_modified"]) for i, e in found if i is not None]
        except BaseError as error:
            raise self.unavailable(error) from None

    def read_marker(self) -> Marker:
        """Return the marker.

        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        try:
            found = obstore.get(self._store, _MARKER)
            meta = found.meta
            return Marker(bytes(found.bytes()), meta["e_tag"], meta["last_modified"])
        except FileNotFoundError:
            return Marker()
        except BaseError as error:
            raise self.unavailable(error) from None

    def replace_marker(self, old: Marker, text: bytes) -> bool:
        """Write the marker, unless another one has taken the place of the old one.

        :returns: whether it was written
        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        mode: PutMode = "create" if old.version is None else {"e_tag": old.version}
        try:
            obstore.put(self._store, _MARKER, text, mode=mode)
        except (AlreadyExistsError, PreconditionError):
            # An attempt whose answer was lost has written it.
            return self.read_marker().text == text
        except BaseError as error:
            raise self.unavailable(error) from None
        return True

    def unavailable(self, error: Exception) -> StoreUnavailableError:
        """Return what to raise for an error of the object store, or of the connection to it.

        It has no cause, because the full text of the error may contain the access key.
        """
        summary = str(error).partition("\n\nDebug source")[0].partition(": <?xml")[0]
        code = _CODE.search(str(error))
        detail = f" ({code[1]})" if code else ""
        return StoreUnavailableError(f"{self.name}: {summary.strip()}{detail}")


def _id_of(path: str) -> UUID | None:
    """Return which object it is; ``None`` when it is not one of this library."""
    try:
        blob = UUID(path)
    except ValueError:
        return None
    return blob if blob.hex == path else None
