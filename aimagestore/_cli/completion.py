"""Completes refs, names, keys and flags in a shell."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import anyio
import typer

from .._core.image import Image
from .human import short_id
from .roots import is_cluster
from .session import Session

_stem = ""


def join_words_of_bash() -> None:
    """Join words in the environment that bash has split at a colon.

    bash replaces only what comes after the last colon of the word to complete: the rest of the word
    is kept in ``_stem``.
    """
    global _stem  # noqa: PLW0603 - a process completes one word
    _stem = ""
    words = os.environ.get("COMP_WORDS", "").split("\n")
    place = int(os.environ.get("COMP_CWORD") or 0)
    joined: list[str] = []
    for number, word in enumerate(words[: place + 1]):
        if number > 1 and ":" in (word, words[number - 1]):
            joined[-1] += word
        else:
            joined.append(word)
    if len(joined) == len(words[: place + 1]):
        return
    before, colon, last = joined[-1].rpartition(":")
    if ":" in words[place - 1 : place + 1]:
        _stem, joined[-1] = before + colon, last
    os.environ["COMP_WORDS"] = "\n".join(joined)
    os.environ["COMP_CWORD"] = str(len(joined) - 1)


def complete_ref(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names and short IDs that complete a REF."""
    return _completed(context, incomplete, _refs)


def complete_name(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the given image that complete a NAME."""
    return _completed(context, incomplete, lambda images: _of_image(context, images).names)


def complete_key(context: typer.Context, incomplete: str) -> list[str]:
    """Return the keys of the given image that complete a KEY."""
    return _completed(context, incomplete, lambda images: _of_image(context, images).big_data_names)


def complete_flag(context: typer.Context, incomplete: str) -> list[str]:
    """Return the flags of the given image that complete a FLAG."""
    return _completed(context, incomplete, lambda images: _of_image(context, images).flags)


def _completed(
    context: typer.Context, incomplete: str, find: Callable[[list[Image]], Iterable[str]]
) -> list[str]:
    """Return what is found and completes the word. Never fails, and makes no store."""
    try:
        found = find(anyio.run(_images, Session.of(context)))
    except Exception:  # noqa: BLE001 - a shell cannot show an error while it completes
        return []
    words = (word.removeprefix(_stem) for word in found if word.startswith(_stem))
    return sorted(word for word in words if word.startswith(incomplete))


async def _images(session: Session) -> list[Image]:
    if session.root is not None and is_cluster(session.root):
        return []  # servers may take long to answer
    async with session.reading() as store:
        return await store.images()


def _refs(images: Iterable[Image]) -> Iterable[str]:
    for image in images:
        yield from image.names
        yield short_id(image.id)


def _of_image(context: typer.Context, images: Iterable[Image]) -> Image:
    ref = context.params["ref"]
    found = [image for image in images if ref in image.names or image.id == ref]
    found += [image for image in images if image.id.startswith(ref)]
    return found[0]
