"""The refs that a shell can complete."""

from __future__ import annotations

import os
from collections.abc import Iterable

import anyio
import typer

from .._async.store import ImageStore
from .._core.image import Image
from .human import short_id
from .session import Session


def complete_ref(context: typer.Context, incomplete: str) -> list[str]:
    """The names and short IDs that begin so, of the store meant. Never fails, makes no store."""
    try:
        images = anyio.run(_images, Session.of(context).place())
    except Exception:  # noqa: BLE001 - a shell that completes has no use for any error
        return []
    stem = _stem_in_bash()
    refs = (ref.removeprefix(stem) for ref in _refs(images) if ref.startswith(stem))
    return sorted(ref for ref in refs if ref.startswith(incomplete))


async def _images(path: str) -> list[Image]:
    async with ImageStore(path, read_only=True) as store:
        return await store.images()


def _refs(images: Iterable[Image]) -> Iterable[str]:
    for image in images:
        yield from image.names
        yield short_id(image.id)


def _stem_in_bash() -> str:
    """What stands before the word to complete: for bash a colon ends a word."""
    words = os.environ.get("COMP_WORDS", "").split("\n")
    place = int(os.environ.get("COMP_CWORD", "0"))
    stem = ""
    while place >= 2 and words[place - 1 : place] == [":"]:
        stem = f"{words[place - 2]}:{stem}"
        place -= 2
    return stem
