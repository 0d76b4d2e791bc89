"""Commands that take images from elsewhere, and put them there: OCI layouts, other stores."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, BinaryIO

import typer
from anyio import to_thread

from .._async.copying import copy_images
from ..errors import DigestMismatchError, SizeMismatchError
from .exits import CommandError, ExitCode, damage
from .files import CHUNK, STANDARD, pipe_to_standard_output, reading
from .human import human_size
from .output import image_json, write_json, write_lines
from .parameters import Json, Ref
from .progress import progress_bar
from .running import command
from .session import Session

Layout = Annotated[str, typer.Argument(metavar="LAYOUT")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("import")(import_layout)
    app.command("export")(export_layout)
    app.command()(copy)


@command
async def import_layout(
    context: typer.Context,
    layout: Layout,
    *,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="A name for the image; several times."),
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option("--ref", metavar="NAME", help="Which of several images in the layout."),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option("--platform", metavar="OS/ARCH", help="Which of several platforms."),
    ] = None,
    json: Json = False,
) -> None:
    """Take images from an OCI image layout, and print their IDs.

    LAYOUT is a directory or a tar. Everything is verified. An image that is there already is not
    stored again. A store of podman's keeps layers elsewhere: they are left out there, and
    standard error says so.
    """
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    async with Session.of(context).writing() as store, _readable(layout) as readable:
        with progress_bar("import") as bar:
            imported = await oci.import_layout(
                store,
                readable,
                names=name or None,
                ref=ref,
                platform=platform,
                progress=bar.show,
            )
    if json:
        await write_json(
            [
                {
                    "image": image_json(each.image),
                    "is_new": each.is_new,
                    "stored": each.stored,
                    "layers_left_out": each.layers_left_out,
                }
                for each in imported
            ]
        )
    else:
        await write_lines(each.image.id for each in imported)


@command
async def export_layout(
    context: typer.Context,
    ref: Ref,
    layout: Layout,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What to call it in the layout.")
    ] = None,
) -> None:
    """Put an image into an OCI image layout.

    LAYOUT is a directory or a tar; on standard output it is a tar.
    """
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    async with Session.of(context).reading() as store:
        with damage(DigestMismatchError, SizeMismatchError), progress_bar("export") as bar:
            if layout != STANDARD:
                await oci.export_layout(store, ref, layout, name=name, progress=bar.show)
                return
            if sys.stdout.isatty():
                raise CommandError("a tar is not for a terminal", ExitCode.USAGE)
            async with pipe_to_standard_output() as stream:
                await oci.export_layout(store, ref, stream, name=name, progress=bar.show)


@command
async def copy(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC")],
    destination: Annotated[str, typer.Argument(metavar="DST")],
    refs: Annotated[list[str] | None, typer.Argument(metavar="REF")] = None,
    json: Json = False,
) -> None:
    """Copy images from one store into another: those that are named, or all.

    SRC and DST are given as --root is. Everything is compared with its digest. Interrupted, each
    image is there wholly or not at all; called again, it goes on where it was.
    """
    timeout = Session.of(context).lock_timeout
    async with (
        Session(source).reading() as there,
        Session(destination, lock_timeout=timeout).writing() as here,
    ):
        with progress_bar("copy") as bar, damage(DigestMismatchError):
            copied = await copy_images(there, here, refs or None, progress=bar.show)
    if json:
        await write_json(asdict(copied))
    else:
        size = human_size(copied.bytes)
        await write_lines(
            [f"{copied.images} copied, {size} of big data; {copied.present} present already"]
        )


@asynccontextmanager
async def _readable(layout: str) -> AsyncIterator[str | BinaryIO]:
    """A layout's path, or its tar on standard input, made seekable."""
    if layout != STANDARD:
        yield layout
        return
    async with reading(STANDARD) as source:
        if source.size is not None:
            with os.fdopen(0, "rb", closefd=False) as stream:
                yield stream
            return
        with await to_thread.run_sync(tempfile.TemporaryFile) as spooled:
            while chunk := await source.read(CHUNK):
                await to_thread.run_sync(spooled.write, chunk)
            await to_thread.run_sync(spooled.seek, 0)
            yield spooled
