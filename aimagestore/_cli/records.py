"""Commands about images' records: listing, creating, naming, flags and deletion."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from json import dumps
from typing import Annotated

import typer

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
from .parameters import Force, Json, OptionalRefs, Ref, Refs, examples, json_or_text, pair
from .progress import progress_bar
from .running import command
from .selection import Filters, documents_of, parse_query, select
from .session import Session, say_layers_stay
from .sizes import Sizes


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(
        epilog=examples(
            "images",
            "images --quiet --no-trunc",
            "images --filter dangling=true --filter until=24h",
            "images --sort size --format 'table {{.ID}} {{.Repository}} {{.Size}}'",
            "images --json",
        )
    )(images)
    app.command(
        epilog=examples("inspect localhost/hello:1", "inspect --json localhost/hello:1 1f2e3d4c")
    )(inspect)
    app.command(epilog=examples("exists localhost/hello:1"))(exists)
    app.command(
        epilog=examples(
            "create --name localhost/note:1 --data text=note.txt",
            "create --id note --metadata '{}' --flag checked=true",
        )
    )(create)
    app.command(epilog=examples("tag localhost/hello:1 localhost/hello:latest"))(tag)
    app.command(
        epilog=examples("untag localhost/hello:1 localhost/hello:latest", "untag 1f2e3d4c")
    )(untag)
    app.command("rm", epilog=examples("rm localhost/hello:1", "rm --force 1f2e3d4c", "rm --all"))(
        remove
    )
    app.command(
        epilog=examples(
            "flag localhost/hello:1",
            "flag localhost/hello:1 checked true",
            "flag localhost/hello:1 checked --clear",
        )
    )(flag)


@command(
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
    """
)
async def images(
    context: typer.Context,
    *,
    filters: Filters = None,
    sorting: Annotated[
        Sorting, typer.Option("--sort", metavar="FIELD", help=f"By {', '.join(Sorting)}.")
    ] = Sorting.CREATED,
    template: Annotated[
        str | None, typer.Option("--format", metavar="TEMPLATE", help="What to print for each.")
    ] = None,
    no_heading: Annotated[
        bool, typer.Option("--noheading", "-n", help="Print no headings.")
    ] = False,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only IDs.")] = False,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Print whole IDs.")] = False,
) -> None:
    query = parse_query(filters)
    is_json = template == "json"
    shown = None
    if template is not None and not is_json:
        with usage_errors():
            shown = row_template(template, whole_ids=no_trunc)
    async with Session.of(context).reading() as store:
        found = await select(store, query)
        sizes = await Sizes.of(store)
        with_labels = is_json or (shown is not None and "Labels" in shown.names)
        documents = {i.id: await documents_of(store, i) for i in found} if with_labels else {}
    rows = sorted_rows(
        (
            row
            for image in found
            for row in rows_of(image, query.shown_names(image), sizes, documents.get(image.id))
        ),
        sorting,
    )
    ids = {row.image.id: row.image for row in rows}
    if json:
        await write_json([image_json(i, sizes.of_layers(i)) for i in ids.values()])
    elif is_json:
        await write_podman_json(rows)
    elif quiet:
        await write_lines(ids if no_trunc else map(short_id, ids))
    else:
        if shown is None:
            shown = row_template(usual_format(rows), whole_ids=no_trunc)
        await write_rows(rows, shown, heading=not no_heading)


@command("Show the whole records of images.")
async def inspect(context: typer.Context, refs: Refs, json: Json = False) -> None:
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
    return [f"{name + ':':<10}{value}" for name, value in fields if value]


def _item_row(image: Image, key: str) -> tuple[str, str, str]:
    size = image.big_data_sizes.get(key)
    digest = image.big_data_digests.get(key, "")
    # A digest that is in the key is not repeated, so that the row fits into 80 columns.
    return "" if size is None else human_size(size), key, "" if digest in key else digest


@command("Exit with 0 if there is such an image, and with 3 if there is none.")
async def exists(context: typer.Context, ref: Ref) -> ExitCode:
    async with Session.of(context).reading() as store:
        return ExitCode.DONE if await store.exists(ref) else ExitCode.UNKNOWN


@command("Create an image with its items, and print its ID.")
async def create(
    context: typer.Context,
    *,
    id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Its ID, by default 64 random hex digits."),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", metavar="NAME", help="A name; several times.")
    ] = None,
    layer: Annotated[
        str, typer.Option("--layer", metavar="ID", help="The ID of its topmost layer.")
    ] = "",
    metadata: Annotated[
        str, typer.Option("--metadata", metavar="TEXT", help="Text to keep with it.")
    ] = "",
    digest: Annotated[
        str | None, typer.Option("--digest", metavar="DIGEST", help="A digest to be found by.")
    ] = None,
    flag: Annotated[
        list[str] | None,
        typer.Option("--flag", metavar="FLAG=VALUE", help="A flag: JSON, or text; several times."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="KEY=FILE", help="An item, with a file's content; several times."
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    flags = [pair(given, "FLAG=VALUE") for given in flag or ()]
    files = [pair(given, "KEY=FILE") for given in data or ()]
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
            names=name or (),
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
    """Give an image more names.

    A name that another image has moves to this one. Names are stored as they are given; podman
    needs full ones, such as localhost/hello:1.
    """
)
async def tag(
    context: typer.Context,
    ref: Ref,
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="The names to add.")],
) -> None:
    async with Session.of(context).writing() as store:
        await store.add_names(ref, names)


@command("Remove names from an image, or all of its names.")
async def untag(
    context: typer.Context,
    ref: Ref,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", autocompletion=complete_name, help="The names; without any, all."
        ),
    ] = None,
) -> None:
    async with Session.of(context).writing() as store:
        if names:
            await store.remove_names(ref, names)
        else:
            await store.set_names(ref, ())


@command(
    """Delete images and their items, and print their IDs.

    If one of them is unknown or used by a container, none is deleted. The layers of podman's images
    stay, and standard error says so: podman rmi removes both.
    """
)
async def remove(
    context: typer.Context,
    refs: OptionalRefs = None,
    *,
    remove_all: Annotated[
        bool,
        typer.Option("--all", "-a", help="Delete all images except those of additional stores."),
    ] = False,
    ignore: Annotated[
        bool, typer.Option("--ignore", "-i", help="Ignore images that do not exist.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Delete even images that containers use.")
    ] = False,
) -> None:
    if remove_all == bool(refs):
        raise CommandError("give either a REF or --all", ExitCode.USAGE)
    async with Session.of(context).writing() as store:
        async with store.transaction() as tx:
            if remove_all:
                found = [image for image in await tx.images() if not image.read_only]
            else:
                found = await _found(tx, refs or (), ignore=ignore)
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
    """Show, set or clear an image's flags.

    A VALUE that is not JSON is stored as text.
    """
)
async def flag(
    context: typer.Context,
    ref: Ref,
    flag: Annotated[
        str | None,
        typer.Argument(
            metavar="FLAG", autocompletion=complete_flag, help="The flag; without it, all flags."
        ),
    ] = None,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="The new value.")] = None,
    *,
    clear: Annotated[bool, typer.Option("--clear", help="Remove the flag.")] = False,
    json: Json = False,
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
