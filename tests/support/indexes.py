"""The text of images.json: elements, indexes of them, and the catalogs that are read from these."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from aimagestore._format.block_catalog import EMPTY, BlockCatalog
from aimagestore._format.index import Text, compose, parse

from .strategies import compact


def element(image_id: str, **fields: Any) -> bytes:
    """Return an element with an ID and other fields, whose names have underscores here."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return compact({"id": image_id} | named)


def nested(levels: int) -> list[Any]:
    """Return a list in a list, and so on."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def array(elements: Iterable[bytes]) -> bytes:
    """Return the text of an index of these elements."""
    return b"[%b]" % b",".join(elements)


def reader_of(text: bytes) -> Text:
    """Return a reader of the text."""
    return Text(io.BytesIO(text).readinto, len(text))


def catalog_of(text: bytes, known: BlockCatalog = EMPTY, read: Text | None = None) -> BlockCatalog:
    """Return the catalog of a text.

    :param known: a catalog whose blocks are not parsed again
    :param read: another reader of the text
    """
    parsed = parse(read or reader_of(text), known)
    assert parsed is not None
    return known.with_blocks(*parsed)


def text_of(catalog: BlockCatalog) -> bytes:
    """Return the text of a catalog."""
    return b"".join(compose(catalog))
