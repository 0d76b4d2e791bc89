"""The image store of containers/storage, as an async library for asyncio and trio.

A store keeps image records (IDs, names, digests, metadata, flags) and their big data (manifests,
configs, signatures, anything) in the directory that podman, buildah, skopeo and CRI-O keep theirs
in, beside these programs, at the same time::

    async with ImageStore("/var/lib/containers/storage/overlay-images", read_only=True) as store:
        image = await store.get("quay.io/podman/hello:latest")
        async with store.open_big_data(image.id, "manifest", verify=True) as reader:
            manifest = await reader.read()

Every change is durable when its call returns, and any call may be cancelled. What it leaves
behind then, and what it raises, its documentation says.

=========================== =====================================================================
:class:`ImageStore`         the store: reads, changes, big data, ``stage``, ``transaction``,
                            ``snapshot``, ``watch``, ``collect_garbage``
:class:`Image`              one image's record
:class:`Snapshot`           all records at one moment, to look at without ``await``
:class:`Transaction`        several changes that happen together
:class:`BigDataReader`      an open item, to read in pieces
:class:`Staged`             data on disk that belongs to no image yet
:class:`Changes`            what changes in a watched store: one :class:`ChangeEvent` after another
:func:`check`               what is damaged or left over in a directory: a :class:`Report`
:func:`repair`              undoes what a check has found
:func:`copy_images`         images from one store into another
:mod:`aimagestore.oci`      OCI image layouts in and out
:exc:`ImageStoreError`      the base of all errors, which say what they are about as attributes
=========================== =====================================================================

The command line ``aimagestore`` comes with the extra ``cli``. What was recovered or repaired is
logged under ``aimagestore``; nothing else is.
"""

from ._async.copying import Copied, copy_images
from ._async.inspection import check, repair
from ._async.store import ImageStore
from ._async.streams import BigDataReader, Staged
from ._async.watching import Changes
from ._core.events import ChangeEvent
from ._core.image import Image
from ._core.report import Finding, FindingKind, Report
from ._core.snapshot import Snapshot
from ._core.transaction import Transaction
from .errors import (
    AmbiguousImageError,
    BigDataUnknownError,
    DigestMismatchError,
    DigestUnknownError,
    DuplicateIDError,
    DuplicateImageNamesError,
    DuplicateNameError,
    ImageStoreError,
    ImageUnknownError,
    InvalidBigDataNameError,
    InvalidDigestError,
    InvalidIDError,
    InvalidLayoutError,
    LockTimeoutError,
    SizeMismatchError,
    SizeUnknownError,
    StoreClosedError,
    StoreCorruptError,
    StoreReadOnlyError,
    StoreSchemaError,
    StoreUnavailableError,
)

__all__ = [
    "AmbiguousImageError",
    "BigDataReader",
    "BigDataUnknownError",
    "ChangeEvent",
    "Changes",
    "Copied",
    "DigestMismatchError",
    "DigestUnknownError",
    "DuplicateIDError",
    "DuplicateImageNamesError",
    "DuplicateNameError",
    "Finding",
    "FindingKind",
    "Image",
    "ImageStore",
    "ImageStoreError",
    "ImageUnknownError",
    "InvalidBigDataNameError",
    "InvalidDigestError",
    "InvalidIDError",
    "InvalidLayoutError",
    "LockTimeoutError",
    "Report",
    "SizeMismatchError",
    "SizeUnknownError",
    "Snapshot",
    "Staged",
    "StoreClosedError",
    "StoreCorruptError",
    "StoreReadOnlyError",
    "StoreSchemaError",
    "StoreUnavailableError",
    "Transaction",
    "check",
    "copy_images",
    "repair",
]
