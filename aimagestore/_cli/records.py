"""Commands about images' records: listing, creating, naming, flags and deletion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from json import dumps
from typing import TYPE_CHECKING

import click

from .._async.store import ImageStore
from .._async.transaction import Transaction
from .._core.image import Image
from ..errors import AmbiguousImageError, ImageUnknownError
from .completion import complete_flag, complete_name
from .exits import CommandError, ExitCode, usage_errors
from .files import reading
from .human import human_age, human_size, short_id
from .listing import (
    Sorting,
    row_template,
    rows_of,
    sorted_rows,
    usual_format,
    write_podman_json,
    write_rows,
)
from .output import image_json, rfc3339, write_json, write_lines, write_table
from .parameters import (
    filter_option,
    force_option,
    json_option,
    json_or_text,
    optional_refs_argument,
    pair,
    ref_argument,
    refs_argument,
)
from .progress import progress_bar
from .running import command
from .session import Session, say_layers_stay
from .sizes import Sizes

if TYPE_CHECKING:
    from .._core.documents import Documents
    from .._core.filters import ImageQuery


@command(
    "images",
    """List the images.

    The newest come first, with a line for each name. SIZE is what podman images shows: an image's
    items in this store (manifest, configuration, and whatever else is kept with it), and if podman
    keeps layers beside the store, its unpacked layers, each counted for every image that has it. A
    > before it means that the size of a layer is not recorded. inspect shows both parts. If there
    are additional stores, R/O shows which images are in them.

    Filters are those of podman images. Without --all, podman leaves out images that others were
    built on: here, --filter intermediate=false does. TEMPLATE is a text with fields such as {{.ID}}
    and {{.Repository}}. If it begins with the word table, it gives columns with headings. The
    template json prints podman's JSON.
    """,
    "images",
    "images --quiet --no-trunc",
    "images --filter dangling=true --filter until=24h",
    "images --sort size --format 'table {{.Repository}} {{.Size}}'",
    "images --json",
)
@filter_option
@click.option(
    "--sort",
    "sorting",
    type=click.Choice([each.value for each in Sorting]),
    default=Sorting.CREATED.value,
    show_default=True,
    metavar="FIELD",
    help=f"By {', '.join(Sorting)}.",
)
@click.option("--format", "template", metavar="TEMPLATE", help="What to print for each.")
@click.option("--noheading", "-n", "no_heading", is_flag=True, help="Print no headings.")
@json_option
@click.option("--quiet", "-q", is_flag=True, help="Print only IDs.")
@click.option("--no-trunc", is_flag=True, help="Print whole IDs.")
async def images(
    context: click.Context,
    *,
    filters: Sequence[str],
    sorting: str,
    template: str | None,
    no_heading: bool,
    json: bool,
    quiet: bool,
    no_trunc: bool,
) -> None:
    query = _parsed(filters)
    is_json = template == "json"
    shown = None
    if template is not None and not is_json:
        with usage_errors():
            shown = row_template(template, whole_ids=no_trunc)
    async with Session.of(context).reading() as store:
        found = await _selected(store, query)
        sizes = await Sizes.of(store)
        with_labels = is_json or (shown is not None and "Labels" in shown.names)
        documents = await _documents_of(store, found) if with_labels else {}
    rows = sorted_rows(
        (
            row
            for image in found
            for row in rows_of(
                image,
                image.names if query is None else query.shown_names(image),
                sizes,
                documents.get(image.id),
            )
        ),
        Sorting(sorting),
    )
    if json:
        listed = {row.image.id: row.image for row in rows}.values()
        await write_json([image_json(image, sizes.of_layers(image)) for image in listed])
    elif is_json:
        await write_podman_json(rows)
    elif quiet:
        ids = dict.fromkeys(row.image.id for row in rows)
        await write_lines(ids if no_trunc else map(short_id, ids))
    else:
        if shown is None:
            shown = row_template(usual_format(rows), whole_ids=no_trunc)
        await write_rows(rows, shown, heading=not no_heading)


# Filters and documents are imported where they are used: most lists need neither.


def _parsed(filters: Sequence[str]) -> ImageQuery | None:
    """Parse filters; return ``None`` if there are none."""
    if not filters:
        return None
    from .selection import parse_query  # noqa: PLC0415

    return parse_query(filters)


async def _selected(store: ImageStore, query: ImageQuery | None) -> list[Image]:
    """Return the images that pass the filters, in the order of images.json."""
    if query is None:
        return await store.images()
    from .selection import select  # noqa: PLC0415

    return await select(store, query)


async def _documents_of(store: ImageStore, images: Sequence[Image]) -> dict[str, Documents]:
    """Read the manifests and configs of images, by the images' IDs."""
    from .selection import documents_of  # noqa: PLC0415

    return {image.id: await documents_of(store, image) for image in images}


@command(
    "inspect",
    "Show the whole records of images.",
    "inspect localhost/hello:1",
    "inspect --json localhost/hello:1 1f2e3d4c",
)
@refs_argument
@json_option
async def inspect(context: click.Context, refs: Sequence[str], json: bool) -> None:
    async with Session.of(context).reading() as store:
        found = [await store.get(ref) for ref in refs]
        sizes = await Sizes.of(store)
    if json:
        await write_json([image_json(image, sizes.of_layers(image)) for image in found])
        return
    for number, image in enumerate(found):
        await write_lines([""] * (number > 0) + list(_described(image, sizes)))
        if image.big_data_names:
            rows = [_item_row(image, key) for key in image.big_data_names]
            await write_table(("SIZE", "ITEM", "DIGEST"), rows, folded=2)


def _described(image: Image, sizes: Sizes) -> list[str]:
    created = ""
    if image.created is not None:
        created = f"{rfc3339(image.created)} ({human_age(image.created, datetime.now(UTC))})"
    fields = [("ID", image.id)]
    fields += [("Name", name) for name in image.names]
    fields += [("Digest", digest) for digest in image.digests]
    fields += [("Created", created), ("Size", sizes.described(image))]
    fields += [("Layer", image.top_layer), ("Metadata", image.metadata)]
    fields += [("Flag", f"{flag}={dumps(value)}") for flag, value in image.flags.items()]
    # A digest fits into 80 columns. Only metadata begins one column later.
    return [f"{name + ':':<8} {value}" for name, value in fields if value]


def _item_row(image: Image, key: str) -> tuple[str, str, str]:
    size = image.big_data_sizes.get(key)
    digest = image.big_data_digests.get(key, "")
    # A digest that is in the key is not repeated, so that the row fits into 80 columns.
    return "" if size is None else human_size(size), key, "" if digest in key else digest


@command(
    "exists",
    "Exit with 0 if there is such an image, and with 3 if not.",
    "exists localhost/hello:1",
)
@ref_argument
async def exists(context: click.Context, ref: str) -> ExitCode:
    async with Session.of(context).reading() as store:
        return ExitCode.DONE if await store.exists(ref) else ExitCode.UNKNOWN


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
            flags={key: json_or_text(value) for key, value in flags},
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
            await store.set_flag(ref, flag, json_or_text(value))
    else:
        async with session.reading() as store:
            flags = dict((await store.get(ref)).flags)
        if flag is not None and flag not in flags:
            raise CommandError(f"image {ref!r} has no flag {flag!r}", ExitCode.UNKNOWN)
        await write_json(flags if flag is None else flags[flag])
