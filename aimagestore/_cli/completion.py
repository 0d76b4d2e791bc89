"""Completes refs, names, keys and flags in a shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio
import click

from .._core.image import Image
from .human import short_id
from .roots import is_cluster
from .session import Session


def complete_ref(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names and short IDs that complete a REF."""
    return _completed(context, incomplete, _refs)


def complete_name(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Return the names of the given image that complete a NAME."""
    return _completed(context, incomplete, lambda images: _of_image(context, images).names)


def complete_key(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the keys of the given image that complete a KEY."""
    return _completed(context, incomplete, lambda images: _of_image(context, images).big_data_names)


def complete_flag(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Return the flags of the given image that complete a FLAG."""
    return _completed(context, incomplete, lambda images: _of_image(context, images).flags)


def _completed(
    context: click.Context, incomplete: str, find: Callable[[list[Image]], Iterable[str]]
) -> list[str]:
    """Return what is found and completes the word. Never fails, and makes no store."""
    try:
        found = find(anyio.run(_images, Session.of(context)))
    except Exception:  # noqa: BLE001 - a shell cannot show an error while it completes
        return []
    return sorted(word for word in found if word.startswith(incomplete))


async def _images(session: Session) -> list[Image]:
    if session.root is not None and is_cluster(session.root):
        return []  # servers may take long to answer
    async with session.reading() as store:
        return await store.images()


def _refs(images: Iterable[Image]) -> Iterable[str]:
    for image in images:
        yield from image.names
        yield short_id(image.id)


def _of_image(context: click.Context, images: Iterable[Image]) -> Image:
    ref = context.params["ref"]
    found = [image for image in images if ref in image.names or image.id == ref]
    found += [image for image in images if image.id.startswith(ref)]
    return found[0]
