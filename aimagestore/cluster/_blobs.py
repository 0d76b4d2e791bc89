"""Objects: each has one item's content, for good, under a name that no other object had."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from ..errors import StoreUnavailableError
from .addresses import Bucket

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, WritableFile

# The least that a part of an upload may have is 5 MiB, and there may be 10,000: 78 GiB in all.
PART = 8 * 1024 * 1024
_PARTS_AT_ONCE = 2

# A writer's are of the one kind or of the other.
FAILURES = (BaseError, OSError)

_CODE = re.compile(r"<Code>(\w+)</Code>")


class Blob(NamedTuple):
    """An object as the object store lists it."""

    id: UUID
    size: int
    written: datetime


class Blobs:
    """The objects of one store.

    :param bucket: where they are
    """

    def __init__(self, bucket: Bucket) -> None:
        self.name: str = bucket.name
        self._store: S3Store = bucket.open()

    def path_of(self, blob: UUID) -> str:
        """What to call an object in messages: its URL."""
        return f"{self.name}/{blob.hex}"

    def writer(self, blob: UUID) -> WritableFile:
        """Begin to write an object; it is there when the writer is closed."""
        return obstore.open_writer(
            self._store, blob.hex, buffer_size=PART, max_concurrency=_PARTS_AT_ONCE
        )

    def get(self, blob: UUID, offset: int) -> GetResult:
        """Begin to read an object.

        :raises FileNotFoundError: when there is none
        """
        # An empty object has no range, not even an empty one.
        options: GetOptions = {"range": {"offset": offset}} if offset else {}
        return obstore.get(self._store, blob.hex, options=options)

    def exists(self, blob: UUID) -> bool:
        """Whether it is there."""
        try:
            obstore.head(self._store, blob.hex)
        except FileNotFoundError:
            return False
        except BaseError as error:
            raise self.unavailable(error) from None
        return True

    def delete(self, blobs: Sequence[UUID]) -> None:
        """Remove objects; those that are gone already as well."""
        try:
            obstore.delete(self._store, [blob.hex for blob in blobs])
        except FileNotFoundError:
            pass
        except BaseError as error:
            raise self.unavailable(error) from None

    def pages(self) -> Iterator[Sequence[Blob]]:
        """All objects, some at a time."""
        try:
            for page in obstore.list(self._store):
                found = ((_id_of(entry["path"]), entry) for entry in page)
                yield [Blob(i, e["size"], e["last_modified"]) for i, e in found if i is not None]
        except BaseError as error:
            raise self.unavailable(error) from None

    def unavailable(self, error: Exception) -> StoreUnavailableError:
        """What to raise for an error of the object store or of the way to it.

        Not with that error as its cause: what it says in full may name the access key.
        """
        summary = str(error).partition("\n\nDebug source")[0].partition(": <?xml")[0]
        code = _CODE.search(str(error))
        detail = f" ({code[1]})" if code else ""
        return StoreUnavailableError(f"{self.name}: {summary.strip()}{detail}")


def _id_of(path: str) -> UUID | None:
    """Which object it is, if it is one of ours."""
    try:
        blob = UUID(path)
    except ValueError:
        return None
    return blob if blob.hex == path else None
