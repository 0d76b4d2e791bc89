"""Imports images from OCI image layouts into a store, exports them into layouts, and copies them.

A layout is a directory, or a tar file, of ``oci-layout``, ``index.json`` and ``blobs/``, as
``skopeo copy … oci:``, ``buildah push … oci-archive:`` and others write and read it. Archives of
``docker save``, podman's ``docker-archive`` and skopeo's ``dir:`` are imported too::

    from aimagestore import ImageStore, oci

    async with ImageStore("images") as store:
        (imported,) = await oci.import_layout(store, "hello.tar")
        await oci.export_layout(store, imported.image.id, "layout", name="hello:1")

A layout is not trusted: every digest and size is verified, and nothing outside of it is read,
whatever its links and names say.
"""

from ._exporting import (
    ExportResult,
    LayoutCopyResult,
    Transport,
    copy_layout,
    export_images,
    export_layout,
)
from ._importing import ImportResult, import_layout

__all__ = [
    "ExportResult",
    "ImportResult",
    "LayoutCopyResult",
    "Transport",
    "copy_layout",
    "export_images",
    "export_layout",
    "import_layout",
]
