"""Commands that change images' records: creating, naming, deleting, and flags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from json import loads
from typing import Any, NoReturn

import click

from .._async.transaction import Transaction
from .._core.image import Image
from ..errors import AmbiguousImageError, ImageUnknownError
from .completion import complete_flag, complete_name
from .exits import CommandError, ExitCode
from .files import reading
from .output import image_json, write_json, write_lines
from .parameters import (
    force_option,
    json_option,
    optional_refs_argument,
    pair,
    ref_argument,
)
from .progress import progress_bar
from .running import command
from .session import Session, say_layers_stay


@command(
    "create",
    "Create an image with its items, and print its ID.",
    "create --name localhost/note:1 --data text=note.txt",
    "create --id note --metadata '{}' --flag checked=true",
)
@click.option("--id", metavar="ID", help="Its ID, by default 64 random hex digits.")
@click.option("--name", multiple=True, metavar="NAME", help="A name; several times.")
@click.option("--layer", default="", metavar="ID", help="The ID of its topmost layer.")
@click.option("--metadata", default="", metavar="TEXT", help="Text to keep with it.")
@click.option("--digest", metavar="DIGEST", help="A digest to be found by.")
@click.option(
    "--flag", multiple=True, metavar="FLAG=VALUE", help="A flag: JSON, or text; several times."
)
@click.option(
    "--data",
    multiple=True,
    metavar="KEY=FILE",
    help="An item, with a file's content; several times.",
)
@force_option
@json_option
async def create(
    context: click.Context,
    *,
    id: str | None,
    name: Sequence[str],
    layer: str,
    metadata: str,
    digest: str | None,
    flag: Sequence[str],
    data: Sequence[str],
    force: bool,
    json: bool,
) -> None:
    flags = [pair(given, "FLAG=VALUE") for given in flag]
    files = [pair(given, "KEY=FILE") for given in data]
    async with (
        Session.of(context).writing(makes=True) as store,
        AsyncExitStack() as stack,
    ):
        items = {}
        for key, file in files:
            source = await stack.enter_async_context(reading(file))
            with progress_bar(key, source.size, beside_data=source.is_terminal) as bar:
                staged = store.stage(source, progress=bar.show)
                items[key] = await stack.enter_async_context(staged)
        image = await store.create(
            id,
            names=name,
            top_layer=layer,
            metadata=metadata,
            digest=digest,
            flags={key: _json_or_text(value) for key, value in flags},
            big_data=items,
            force=force,
        )
    if json:
        await write_json(image_json(image))
    else:
        await write_lines([image.id])


@command(
    "tag",
    """Give an image more names.

    A name that another image has moves to this one. Names are stored as they are given; podman
    needs full ones, such as localhost/hello:1.
    """,
    "tag localhost/hello:1 localhost/hello:latest",
)
@ref_argument
@click.argument("names", metavar="NAME", nargs=-1, required=True, help="The names to add.")
async def tag(context: click.Context, ref: str, names: Sequence[str]) -> None:
    async with Session.of(context).writing() as store:
        await store.add_names(ref, names)


@command(
    "untag",
    "Remove names from an image, or all of its names.",
    "untag localhost/hello:1 localhost/hello:latest",
    "untag 1f2e3d4c",
)
@ref_argument
@click.argument(
    "names",
    metavar="NAME",
    nargs=-1,
    shell_complete=complete_name,
    help="The names; without any, all.",
)
async def untag(context: click.Context, ref: str, names: Sequence[str]) -> None:
    async with Session.of(context).writing() as store:
        if names:
            await store.remove_names(ref, names)
        else:
            await store.set_names(ref, ())


@command(
    "rm",
    """Delete images and their items, and print their IDs.

    If one of them is unknown or used by a container, none is deleted. The layers of podman's images
    stay, and standard error says so: podman rmi removes both.
    """,
    "rm localhost/hello:1",
    "rm --force 1f2e3d4c",
    "rm --all",
)
@optional_refs_argument
@click.option(
    "--all",
    "-a",
    "remove_all",
    is_flag=True,
    help="Delete all images except those of additional stores.",
)
@click.option("--ignore", "-i", is_flag=True, help="Ignore images that do not exist.")
@click.option("--force", "-f", is_flag=True, help="Delete even images that containers use.")
async def remove(
    context: click.Context,
    refs: Sequence[str],
    *,
    remove_all: bool,
    ignore: bool,
    force: bool,
) -> None:
    if remove_all == bool(refs):
        raise CommandError("give either a REF or --all", ExitCode.USAGE)
    async with Session.of(context).writing() as store:
        async with store.transaction() as tx:
            if remove_all:
                found = [image for image in await tx.images() if not image.read_only]
            else:
                found = await _found(tx, refs, ignore=ignore)
            images = {image.id: image for image in found}
            for image_id in images:
                await tx.delete(image_id, force=force)
        await write_lines(images)
        if any(image.top_layer for image in images.values()):
            say_layers_stay(store)


async def _found(tx: Transaction, refs: Iterable[str], *, ignore: bool) -> list[Image]:
    """Return the images of refs; with ``ignore``, without those that do not exist."""
    images = []
    for ref in refs:
        try:
            images.append(await tx.get(ref))
        except ImageUnknownError as error:
            if not ignore or isinstance(error, AmbiguousImageError):
                raise
    return images


@command(
    "flag",
    """Show, set or clear an image's flags.

    A VALUE that is not JSON is stored as text.
    """,
    "flag localhost/hello:1",
    "flag localhost/hello:1 checked true",
    "flag localhost/hello:1 checked --clear",
)
@ref_argument
@click.argument(
    "flag",
    metavar="FLAG",
    required=False,
    shell_complete=complete_flag,
    help="The flag; without it, all flags.",
)
@click.argument("value", metavar="VALUE", required=False, help="The new value.")
@click.option("--clear", is_flag=True, help="Remove the flag.")
@json_option
async def flag(
    context: click.Context,
    ref: str,
    flag: str | None,
    value: str | None,
    *,
    clear: bool,
    json: bool,
) -> None:
    session = Session.of(context)
    if clear and (flag is None or value is not None):
        raise CommandError("give --clear with a FLAG and without a VALUE", ExitCode.USAGE)
    if clear and flag is not None:
        async with session.writing() as store:
            await store.clear_flag(ref, flag)
    elif flag is not None and value is not None:
        async with session.writing() as store:
            await store.set_flag(ref, flag, _json_or_text(value))
    else:
        async with session.reading() as store:
            flags = dict((await store.get(ref)).flags)
        if flag is not None and flag not in flags:
            raise CommandError(f"image {ref!r} has no flag {flag!r}", ExitCode.UNKNOWN)
        await write_json(flags if flag is None else flags[flag])


def _json_or_text(text: str) -> Any:
    """Return the JSON value of a text, or the text itself if it is not JSON.

    :raises CommandError: when it is nested too deeply to decode
    """
    try:
        return loads(text, parse_constant=_no_number)
    except ValueError:
        return text
    except RecursionError as error:
        raise CommandError("the JSON value is nested too deeply") from error


def _no_number(constant: str) -> NoReturn:
    """Refuse NaN and the infinities, which Python's decoder accepts and JSON does not have."""
    raise ValueError(constant)
