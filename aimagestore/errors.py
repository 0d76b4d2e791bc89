"""Every error of this library, under one base class.

The message is for people; what the error is about is also there as attributes, ``None`` where it
does not apply. Failures of the operating system (:class:`OSError`: full disk, I/O error, no
permission) are not wrapped: they pass through with the path they are about.
"""

from __future__ import annotations

from typing import Any


class ImageStoreError(Exception):
    """Base class of the errors that this library raises.

    :ivar ref: the reference (ID, name or ID prefix) that the caller gave
    :ivar id: the ID of the image
    :ivar name: the name of the image
    :ivar key: the key of the big-data item
    :ivar path: the file that it is about
    :ivar expected: the digest or size that was asked for or recorded
    :ivar actual: the digest or size that was found
    """

    ref: str | None = None
    id: str | None = None
    name: str | None = None
    key: str | None = None
    path: str | None = None
    expected: str | int | None = None
    actual: str | int | None = None

    def __init__(self, message: str = "", **about: Any) -> None:
        super().__init__(message)
        self.message = message
        vars(self).update(about)

    def __str__(self) -> str:
        # KeyError would show the repr of the message, OSError its errno.
        return self.message


class ImageUnknownError(ImageStoreError, KeyError):
    """No image has this ID, name, ID prefix or digest (upstream: ``ErrImageUnknown``)."""


class AmbiguousImageError(ImageUnknownError):
    """The ref fits several images.

    :ivar candidates: what tells them apart: IDs, the first 100 at most, or the names or platforms
        of a layout's images
    """

    candidates: tuple[str, ...] = ()


class DuplicateIDError(ImageStoreError, ValueError):
    """An image with this ID is there already (upstream: ``ErrDuplicateID``)."""


class DuplicateNameError(ImageStoreError, ValueError):
    """The name belongs to another image (upstream: ``ErrDuplicateName``)."""


class DuplicateImageNamesError(ImageStoreError, ValueError):
    """A read-only store holds two images of one name (upstream: ``ErrDuplicateImageNames``)."""


class _MissingError(ImageStoreError, FileNotFoundError):
    """Something is missing at ``path``."""

    @property
    def filename(self) -> str | None:
        """The same as ``path``."""
        return self.path


class BigDataMissingError(_MissingError):
    """The image's record lists this item, but its content is missing."""


class ImageInUseError(ImageStoreError, RuntimeError):
    """A container uses the image (upstream: ``ErrImageUsedByContainer``).

    :ivar containers: the names or IDs of the containers
    """

    containers: tuple[str, ...] = ()


class PodmanFailsError(ImageStoreError, ValueError):
    """podman could not read the image, and keeps layers beside the store.

    While the store has such an image, ``podman images`` fails, or lists no image at all.

    :ivar problems: what podman cannot read of it
    """

    problems: tuple[str, ...] = ()


class GraphRootError(ImageStoreError, ValueError):
    """The directory is a graph root of containers/storage, which holds image stores.

    :ivar stores: the image stores in it
    """

    stores: tuple[str, ...] = ()


class StoreConfigurationError(ImageStoreError, ValueError):
    """podman's configuration cannot be read, or does not say which store is meant.

    :ivar line: the line of the file ``path``, where it is known
    :ivar stores: the image stores that may be meant, if there are several
    """

    line: int | None = None
    stores: tuple[str, ...] = ()


class StoreLostError(_MissingError):
    """The directory of an open store was removed, moved, or replaced by another."""


class WatchExpiredError(ImageStoreError):
    """A watch missed changes, because too many were pending. Watch anew, and read all images."""


class StoreReadOnlyError(ImageStoreError, PermissionError):
    """A change was asked of a store opened read-only (upstream: ``ErrStoreIsReadOnly``)."""


class StoreClosedError(ImageStoreError, RuntimeError):
    """The store is not open, or not open in this process."""


class StoreCorruptError(ImageStoreError):
    """The store's files cannot be what they are expected to be; nothing was overwritten."""


class StoreUnavailableError(ImageStoreError, ConnectionError):
    """The servers of a cluster's store cannot be reached, or refuse a request.

    Where the message does not say otherwise, nothing was changed.

    :ivar may_have_happened: whether the change may have been made nevertheless
    """

    may_have_happened: bool = False


class StoreIdentityError(ImageStoreError):
    """The database or the bucket of a cluster's store is not the one that belongs there.

    The message says which: another database uses this prefix of the bucket, the database or the
    bucket is a copy, or the database went back in time. ``aimagestore cluster adopt`` accepts what
    is there now as a new store.

    :ivar expected: the identity of the database
    :ivar actual: the identity that was found instead
    :ivar may_have_happened: whether a commit that was under way may have been made before
    """

    may_have_happened: bool = False


class StoreSchemaError(ImageStoreError):
    """The database of a cluster's store has no tables, or those of another version."""


class InvalidIDError(ImageStoreError, ValueError):
    """The ID cannot serve as the name of an image's directory."""


class InvalidDigestError(ImageStoreError, ValueError):
    """Not a digest: ``sha256:``, ``sha384:`` or ``sha512:`` and lower-case hex digits."""


class InvalidBigDataNameError(ImageStoreError, ValueError):
    """The key cannot serve as the name of a file (upstream: ``ErrInvalidBigDataName``)."""


class BigDataUnknownError(ImageStoreError, KeyError):
    """The image's record does not list this item."""


class SizeUnknownError(ImageStoreError, KeyError):
    """The size is not recorded, and the item's file is missing (upstream: ``ErrSizeUnknown``)."""


class DigestUnknownError(ImageStoreError, KeyError):
    """The digest is not recorded, and the file is missing (upstream: ``ErrDigestUnknown``)."""


class DigestMismatchError(ImageStoreError, ValueError):
    """The data is not what its digest says."""


class SizeMismatchError(ImageStoreError, ValueError):
    """The data is longer or shorter than expected."""


class InvalidLayoutError(ImageStoreError, ValueError):
    """Not an OCI image layout, or one that says what cannot be; see :mod:`aimagestore.oci`."""


class LockTimeoutError(ImageStoreError, TimeoutError):
    """The store's lock was not free within ``lock_timeout``.

    :ivar holder_pid: the process that holds the lock, where the kernel tells it
    :ivar last_writer_pid: the process that wrote the last-write token
    """

    holder_pid: int | None = None
    last_writer_pid: int | None = None
