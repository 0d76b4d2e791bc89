"""Objects in a bucket: each has the content of items, never changes, and has a name used once."""

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

# Objects in a page of a listing: as many as an S3 server sends in one answer.
_LISTED = 1000

RETRY_SHARE = 0.6
"""The share of a deadline in which a request is sent again; the last attempt has the rest."""

FAILURES = (BaseError, OSError)
"""What an object store's failures raise; a writer raises both kinds."""

_MARKER = "aimagestore.json"

_CODE = re.compile(r"<Code>(\w+)</Code>")

# What an S3 server's codes mean for whoever has set it up.
_NO_BUCKET = "NoSuchBucket"
_EXPLANATIONS = {
    _NO_BUCKET: "there is no such bucket",
    "InvalidAccessKeyId": "the object store does not know this AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is wrong",
    "InvalidToken": "AWS_SESSION_TOKEN is wrong",
    "ExpiredToken": "AWS_SESSION_TOKEN has expired",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "AuthorizationHeaderMalformed": "AWS_REGION is not the region of the bucket",
}
_NOT_PERMITTED = "the credentials do not permit"
_PERMISSIONS = {
    "list": "s3:ListBucket",
    "GET": "s3:GetObject",
    "HEAD": "s3:GetObject",
    "PUT": "s3:PutObject",
    "DELETE": "s3:DeleteObject",
    "POST": "s3:PutObject or s3:DeleteObject",
}
_REQUEST = re.compile(r"performing (list|[A-Z]+)")

# Where the client looks for credentials when the environment has none.
_METADATA = ("169.254.169.254", "169.254.170.2")


class Blob(NamedTuple):
    """An object as the object store lists it."""

    id: UUID
    size: int
    written: datetime


class Marker(NamedTuple):
    """The object that says which store the prefix belongs to.

    :ivar text: its content
    :ivar version: identifies this content; ``None`` if there is no marker
    :ivar written: when it was written, by the object store's clock
    """

    text: bytes = b""
    version: str | None = None
    written: datetime | None = None


class NotPermittedError(StoreUnavailableError):
    """The credentials do not permit a request."""


class Blobs:
    """The objects of one store.

    :ivar name: the URL of their prefix, which is their name in messages
    :ivar deadline: seconds within which every request ends
    """

    def __init__(self, address: BucketAddress, deadline: float) -> None:
        self.name: str = address.name
        self.deadline = deadline
        attempt = (1 - RETRY_SHARE) * deadline
        self._store: S3Store = address.open(attempt=attempt, retries=RETRY_SHARE * deadline)
        # Readers retry by themselves, from their position.
        self._reads: S3Store = address.open(attempt=attempt, retries=0)
        # Uploads have deadlines of their own, because parts are sent in the background.
        self._uploads: S3Store = address.open(attempt=deadline, retries=deadline)

    def path_of(self, blob: UUID) -> str:
        """Return an object's URL, which is its name in messages."""
        return f"{self.name}/{blob.hex}"

    def writer(self, blob: UUID) -> WritableFile:
        """Begin to write an object, which exists when the writer is closed.

        The writer sends parts of :data:`PART` bytes in the background. A write of the first byte
        after a part returns when that part is stored, so memory has one part of an object at most.
        """
        return obstore.open_writer(self._uploads, blob.hex, buffer_size=PART, max_concurrency=1)

    def get(self, blob: UUID, offset: int) -> GetResult:
        """Begin to read an object from an offset on, without retries.

        :raises FileNotFoundError: when there is no such object
        :raises StoreUnavailableError: when there is no bucket
        :raises BaseError: when the object store is unavailable, or refuses
        """
        # An empty object has no range, not even an empty one.
        options: GetOptions = {"range": {"offset": offset}} if offset else {}
        try:
            return obstore.get(self._reads, blob.hex, options=options)
        except FileNotFoundError as error:
            self._require_bucket(error)
            raise

    def size_of(self, blob: UUID) -> int | None:
        """Return the size of an object; ``None`` when there is none.

        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        try:
            return obstore.head(self._store, blob.hex)["size"]
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise self.unavailable(error) from None

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

    def id_in(self, path: str) -> UUID | None:
        """Return the object that has this URL; ``None`` for any other text."""
        prefix, _, name = path.rpartition("/")
        return _id_of(name) if prefix == self.name else None

    def pages(self) -> Iterator[Sequence[Blob]]:
        """Iterate over all objects, in pages.

        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        try:
            for page in obstore.list(self._store, chunk_size=_LISTED):
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
        except FileNotFoundError as error:
            self._require_bucket(error)
            return Marker()
        except BaseError as error:
            raise self.unavailable(error) from None

    def replace_marker(self, old: Marker, text: bytes) -> bool:
        """Write the marker, unless it is not the old one any more.

        :returns: whether it has this text now
        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        mode: PutMode = "create" if old.version is None else {"e_tag": old.version}
        try:
            # The client does not retry conditional writes, so one attempt has the whole deadline.
            obstore.put(self._uploads, _MARKER, text, mode=mode)
        except (AlreadyExistsError, PreconditionError):
            # An attempt whose answer was lost may have written it.
            return self.read_marker().text == text
        except BaseError as error:
            raise self.unavailable(error) from None
        return True

    def _require_bucket(self, error: FileNotFoundError) -> None:
        """Raise if the bucket is missing, not only the object."""
        if code_in(str(error)) == _NO_BUCKET:
            raise self.unavailable(error) from None

    def unavailable(self, error: Exception) -> StoreUnavailableError:
        """Return what to raise for an error of the object store, or of the connection to it.

        It has no cause, because the full text of the error may contain the access key.
        """
        text = _explain(error)
        kind = NotPermittedError if text.startswith(_NOT_PERMITTED) else StoreUnavailableError
        return kind(f"{self.name}: {text}")


def _explain(error: Exception) -> str:
    """Return what is wrong, as far as the error tells."""
    summary = str(error).partition("\n\nDebug source")[0].partition(": <?xml")[0].strip()
    code = code_in(str(error))
    if any(address in summary for address in _METADATA):
        return "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "redirect without LOCATION" in summary:
        return "the bucket is elsewhere: AWS_REGION or AWS_ENDPOINT_URL is wrong"
    request = _REQUEST.search(summary)
    if code in _EXPLANATIONS:
        return f"{_EXPLANATIONS[code]} ({code})"
    if request is not None and (code == "AccessDenied" or " 403 " in summary):
        needed = _PERMISSIONS.get(request[1], request[1])
        return f"{_NOT_PERMITTED} {needed} ({code or 403})"
    return summary + (f" ({code})" if code else "")


def code_in(text: str) -> str:
    """Return the error code in an S3 server's answer; ``""`` if it has none."""
    found = _CODE.search(text)
    return found[1] if found else ""


def _id_of(path: str) -> UUID | None:
    """Return the object that has this name; ``None`` when it is not one of this library."""
    try:
        blob = UUID(path)
    except ValueError:
        return None
    return blob if blob.hex == path else None
