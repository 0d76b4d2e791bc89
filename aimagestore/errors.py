"""Every error of this library, under one base class.

The message is for people, the attributes are for programs. Failures of the operating system
(:class:`OSError`: full disk, I/O error, no permission) are not wrapped: they pass through with the
path they are about.
"""

from __future__ import annotations

from typing import Any


class ImageStoreError(Exception):
    """Base class of the errors that this library raises.

    Each attribute is ``None`` where it does not apply.

    :ivar ref: the ref that the caller gave
    :ivar id: the ID of the image
    :ivar name: the name of the image
    :ivar key: the key of the big-data item
    :ivar path: the file or directory
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
    """The ref stands for several images.

    :ivar candidates: the choices: up to 100 IDs, or the names or platforms of a layout's images
    """

    candidates: tuple[str, ...] = ()


class DuplicateIDError(ImageStoreError, ValueError):
    """An image with this ID exists already (upstream: ``ErrDuplicateID``)."""


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
    """The store is podman's, and podman could not read the image.

    While the store has such an image, ``podman images`` fails, or lists no image at all.

    :ivar problems: what podman cannot read
    """

    problems: tuple[str, ...] = ()


class GraphRootError(ImageStoreError, ValueError):
    """The directory is a graph root of containers/storage, which holds image stores.

    :ivar stores: the image stores in it
    """

    stores: tuple[str, ...] = ()


class StoreConfigurationError(ImageStoreError, ValueError):
    """podman's configuration cannot be read, or does not say which store podman uses.

    :ivar line: the line of the file ``path``, if it is known
    :ivar stores: the image stores to choose from, if there are several
    """

    line: int | None = None
    stores: tuple[str, ...] = ()


class StoreLostError(_MissingError):
    """The directory of an open store was removed, moved, or replaced by another."""


class WatchExpiredError(ImageStoreError):
    """A watch missed changes, because too many were pending.

    Begin another watch, then read all images.
    """


class StoreReadOnlyError(ImageStoreError, PermissionError):
    """A change was asked of a store opened read-only (upstream: ``ErrStoreIsReadOnly``)."""


class StoreClosedError(ImageStoreError, RuntimeError):
    """The store is not open, or was opened before this process was forked.

    A transaction, reader or watch that has ended raises it, too.
    """


class StoreCorruptError(ImageStoreError):
    """A file or a record of the store is damaged or missing; nothing was overwritten."""


class StoreUnavailableError(ImageStoreError, ConnectionError):
    """The servers of a cluster's store cannot be reached, or refuse a request.

    Where the message does not say otherwise, nothing was changed.

    :ivar may_have_happened: whether the change may have been made nevertheless
    """

    may_have_happened: bool = False


class StoreIdentityError(ImageStoreError):
    """A cluster's database or bucket is not the one that belongs to the store.

    The message says which: another database uses this prefix of the bucket, the database or the
    bucket is a copy, or the database was restored from a backup. ``aimagestore cluster adopt``
    accepts what is there now as a new store.

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
    """The text is not ``sha256:``, ``sha384:`` or ``sha512:`` with lower-case hex digits."""


class InvalidBigDataNameError(ImageStoreError, ValueError):
    """The key cannot serve as the name of a file (upstream: ``ErrInvalidBigDataName``)."""


class BigDataUnknownError(ImageStoreError, KeyError):
    """The image's record does not list this item."""


class SizeUnknownError(ImageStoreError, KeyError):
    """The size is not recorded, and the item's file is missing (upstream: ``ErrSizeUnknown``)."""


class DigestUnknownError(ImageStoreError, KeyError):
    """No digest is recorded for the item (upstream: ``ErrDigestUnknown``).

    ``big_data_digest`` computes one, and raises this only if the item's file is missing.
    """


class DigestMismatchError(ImageStoreError, ValueError):
    """The data has another digest than expected or recorded."""


class SizeMismatchError(ImageStoreError, ValueError):
    """The data is longer or shorter than expected."""


class InvalidLayoutError(ImageStoreError, ValueError):
    """The layout cannot be read, or contradicts itself; see :mod:`aimagestore.oci`."""


class LockTimeoutError(ImageStoreError, TimeoutError):
    """The store's lock was not free within ``lock_timeout``.

    :ivar holder_pid: the process that holds the lock, if the kernel knows it
    :ivar last_writer_pid: the process that wrote the last-write token
    """

    holder_pid: int | None = None
    last_writer_pid: int | None = None
