"""Selects images by podman's filters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from .._async.store import ImageStore
from .._core.digest import MANIFEST
from .._core.documents import (
    DOCUMENT_MAX,
    Documents,
    config_digest,
    read_documents,
    read_manifest,
)
from .._core.filters import ImageQuery
from .._core.image import Image
from ..errors import BigDataMissingError, BigDataUnknownError, ImageUnknownError
from .exits import usage_errors


def parse_query(filters: Sequence[str]) -> ImageQuery:
    """Parse filters.

    :raises CommandError: when one is invalid
    """
    with usage_errors():
        return ImageQuery.parse(filters, datetime.now().astimezone())


async def select(store: ImageStore, query: ImageQuery) -> list[Image]:
    """Return the images that pass the filters, in the order of images.json."""
    return await _select(store, query, await store.images())


async def passes(store: ImageStore, query: ImageQuery, image: Image) -> bool:
    """Return whether an image passes as it is given, even if its record has changed since."""
    others = [each for each in await store.images() if each.id != image.id]
    return image in await _select(store, query, [*others, image])


async def _select(store: ImageStore, query: ImageQuery, images: list[Image]) -> list[Image]:
    found = query.by_record(images)
    needed = query.needs_documents(images, found)
    documents = {image.id: await documents_of(store, image) for image in needed}
    return query.by_documents(images, found, documents)


async def documents_of(store: ImageStore, image: Image) -> Documents:
    """Read an image's manifest and config. What is missing or too large reads as absent."""
    text = await _read(store, image, MANIFEST)
    manifest = None if text is None else read_manifest(text)
    if manifest is None or manifest.is_index:
        return read_documents(manifest, None)
    return read_documents(manifest, await _read(store, image, config_digest(manifest)))


async def _read(store: ImageStore, image: Image, key: str) -> bytes | None:
    if key not in image.big_data_names or image.big_data_sizes.get(key, 0) > DOCUMENT_MAX:
        return None
    try:
        return await store.big_data(image.id, key)
    except (ImageUnknownError, BigDataUnknownError, BigDataMissingError):
        return None  # it was deleted meanwhile, or is damaged, which check reports
