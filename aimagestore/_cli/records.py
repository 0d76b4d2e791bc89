"""Commands that show images' records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING

import click

from .._async.store import ImageStore
from .._core.image import Image
from .exits import ExitCode, usage_errors
from .human import human_age, human_size, short_id
from .listing import (
    Sorting,
    order_of,
    row_template,
    rows_of,
    usual_format,
    write_podman_json,
    write_rows,
)
from .output import image_json, rfc3339, write_json, write_lines, write_table
from .parameters import filter_option, json_option, ref_argument, refs_argument
from .running import command
from .session import Session
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
    names_of = attrgetter("names") if query is None else query.shown_names
    rows = rows_of(found, names_of, sizes, documents)
    order = order_of(rows, Sorting(sorting))
    if json:
        listed = {rows[i].image.id: rows[i].image for i in order}.values()
        await write_json([image_json(image, sizes.of_layers(image)) for image in listed])
    elif is_json:
        await write_podman_json(rows[i] for i in order)
    elif quiet:
        ids = dict.fromkeys(rows[i].image.id for i in order)
        await write_lines(ids if no_trunc else map(short_id, ids))
    else:
        if shown is None:
            shown = row_template(usual_format(rows), whole_ids=no_trunc)
        await write_rows(rows, order, shown, heading=not no_heading)


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
    from json import dumps  # noqa: PLC0415 - other commands do not need it

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
