"""The image store of containers/storage, for asyncio and trio.

A store keeps image records (IDs, names, digests, metadata, flags) and their
big data (manifests, configs, signatures, anything) in the directory that
podman, buildah, skopeo and CRI-O keep theirs in, beside these programs, at the
same time::

    async with ImageStore("images") as store:
        image = await store.get("localhost/hello:1")
        async with store.open_big_data(image.id, "manifest") as reader:
            manifest = await reader.read()

Every change is durable when its call returns. Every call may be cancelled, by
anyio, trio or asyncio itself; its documentation says what a cancelled call
leaves behind.

======================== ===================================================
:class:`ImageStore`      the store: reads, changes, ``stage``, ``watch``,
                         ``transaction``, ``snapshot``, ``usage``, ``prune``
:class:`AdditionalStore` a store that is read beside another one
:class:`Image`           the record of one image
:class:`Snapshot`        all images at one commit, read without ``await``
:class:`Transaction`     several changes in one commit
:class:`BigDataReader`   an open item, to be read in pieces
:class:`StagedItem`      data in the store that belongs to no image yet
:class:`Watch`           the changes of a store: each a :class:`ChangeEvent`
:func:`check`            finds damage and garbage; returns a :class:`Report`
:func:`repair`           repairs what a check has found
:class:`Usage`           the space of a store, and of each image:
                         :class:`ImageUsage`
:class:`PrunePolicy`     which images pruning keeps; what it did is a
                         :class:`PruneResult`
:func:`copy_images`      copies images from one store into another
:mod:`.oci`              imports and exports OCI image layouts
:mod:`.cluster`          stores on PostgreSQL and S3
:mod:`.podman`           finds and opens podman's own store
:exc:`ImageStoreError`   the base class of all errors, with what they are
                         about in attributes
======================== ===================================================

The command line ``aimagestore`` comes with the extra ``cli``. The logger
``aimagestore`` reports what was recovered or repaired. The pages are in the
package, in ``docs``; the first is ``docs/guide.md``.
"""

import importlib
import typing

from ._version import __version__
from .errors import (
    AmbiguousImageError,
    BigDataMissingError,
    BigDataUnknownError,
    DigestMismatchError,
    DigestUnknownError,
    DuplicateIDError,
    DuplicateImageNamesError,
    DuplicateNameError,
    GraphRootError,
    ImageInUseError,
    ImageStoreError,
    ImageUnknownError,
    InvalidBigDataNameError,
    InvalidDigestError,
    InvalidIDError,
    InvalidLayoutError,
    LockTimeoutError,
    PodmanFailsError,
    SizeMismatchError,
    SizeUnknownError,
    StoreClosedError,
    StoreConfigurationError,
    StoreCorruptError,
    StoreIdentityError,
    StoreLostError,
    StoreReadOnlyError,
    StoreSchemaError,
    StoreUnavailableError,
    WatchExpiredError,
)

if typing.TYPE_CHECKING:
    from ._async.copying import CopyResult, copy_images
    from ._async.inspection import check, repair
    from ._async.locations import AdditionalStore
    from ._async.methods import JSONValue
    from ._async.staging import BigDataSource, StagedItem
    from ._async.store import ImageStore
    from ._async.streams import BigDataReader
    from ._async.transaction import Transaction
    from ._async.watch import Watch
    from ._core.events import ChangeEvent
    from ._core.image import Image
    from ._core.pruning import PrunePolicy, PruneResult
    from ._core.report import Finding, FindingKind, Report
    from ._core.snapshot import Snapshot
    from ._core.usage import ImageUsage, Usage

__all__ = [
    "AdditionalStore",
    "AmbiguousImageError",
    "BigDataMissingError",
    "BigDataReader",
    "BigDataSource",
    "BigDataUnknownError",
    "ChangeEvent",
    "CopyResult",
    "DigestMismatchError",
    "DigestUnknownError",
    "DuplicateIDError",
    "DuplicateImageNamesError",
    "DuplicateNameError",
    "Finding",
    "FindingKind",
    "GraphRootError",
    "Image",
    "ImageInUseError",
    "ImageStore",
    "ImageStoreError",
    "ImageUnknownError",
    "ImageUsage",
    "InvalidBigDataNameError",
    "InvalidDigestError",
    "InvalidIDError",
    "InvalidLayoutError",
    "JSONValue",
    "LockTimeoutError",
    "PodmanFailsError",
    "PrunePolicy",
    "PruneResult",
    "Report",
    "SizeMismatchError",
    "SizeUnknownError",
    "Snapshot",
    "StagedItem",
    "StoreClosedError",
    "StoreConfigurationError",
    "StoreCorruptError",
    "StoreIdentityError",
    "StoreLostError",
    "StoreReadOnlyError",
    "StoreSchemaError",
    "StoreUnavailableError",
    "Transaction",
    "Usage",
    "Watch",
    "WatchExpiredError",
    "__version__",
    "check",
    "copy_images",
    "repair",
]

_MODULES = {
    "CopyResult": "_async.copying",
    "copy_images": "_async.copying",
    "check": "_async.inspection",
    "repair": "_async.inspection",
    "AdditionalStore": "_async.locations",
    "JSONValue": "_async.methods",
    "BigDataSource": "_async.staging",
    "StagedItem": "_async.staging",
    "ImageStore": "_async.store",
    "BigDataReader": "_async.streams",
    "Transaction": "_async.transaction",
    "Watch": "_async.watch",
    "ChangeEvent": "_core.events",
    "Image": "_core.image",
    "PrunePolicy": "_core.pruning",
    "PruneResult": "_core.pruning",
    "Finding": "_core.report",
    "FindingKind": "_core.report",
    "Report": "_core.report",
    "Snapshot": "_core.snapshot",
    "ImageUsage": "_core.usage",
    "Usage": "_core.usage",
}
"""Where the names are that are imported when they are used: most programs need few of them."""

if not typing.TYPE_CHECKING:

    def __getattr__(name):  # noqa: ANN001, ANN202 - type checkers see the imports
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
        value = globals()[name] = getattr(module, name)
        return value

    def __dir__():  # noqa: ANN202
        return sorted({*globals(), *__all__})
