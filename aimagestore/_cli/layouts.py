"""Commands that import, export and copy images: from and to OCI layouts and other stores."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer
from anyio import to_thread

from .._async.copying import CopyResult, copy_images
from .._async.store import ImageStore
from .._core.references import DOCKER, full_name
from ..errors import DigestMismatchError, SizeMismatchError
from .addresses import DIR, LayoutAddress, StoreAddress, parse_address
from .completion import complete_ref
from .exits import CommandError, ExitCode, damage
from .files import CHUNK, STANDARD, is_terminal, reading
from .human import human_size
from .output import image_json, write_json, write_lines
from .parameters import Force, Json, Ref, Refs, examples
from .progress import progress_bar
from .running import command
from .session import Session
from .streams import STANDARD_INPUT, STANDARD_OUTPUT, RawOutput

if TYPE_CHECKING:
    from ..oci import Transport

Layout = Annotated[
    str,
    typer.Argument(
        metavar="LAYOUT", help="A directory or a tar file; - is standard input or output."
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="NAME", help="A name for the image; several times."),
]
RefInLayout = Annotated[
    str | None,
    typer.Option("--ref", metavar="NAME", help="Take only the image with this name or digest."),
]
Platform = Annotated[
    str | None,
    typer.Option("--platform", metavar="OS/ARCH", help="Take only this platform of an image."),
]
NameInLayout = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="The image's name in the layout.")
]


class Format(StrEnum):
    """What ``save`` writes, by podman's names."""

    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    OCI_DIR = "oci-dir"

    @property
    def transport(self) -> Transport:
        """The same by skopeo's names."""
        return "oci" if self is Format.OCI_DIR else cast("Transport", self.value)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(
        "import",
        epilog=examples(
            "import hello.tar --name localhost/hello:1",
            "import layout --ref hello:1 --platform linux/arm64",
            "import - < hello.tar",
        ),
    )(import_layout)
    app.command(epilog=examples("load -i hello.tar", "load < hello.tar"))(load)
    app.command(
        "export",
        epilog=examples("export localhost/hello:1 layout", "export localhost/hello:1 hello.tar"),
    )(export_layout)
    app.command(
        epilog=examples(
            "save -o hello.tar localhost/hello:1",
            "save localhost/hello:1 localhost/other:1 | podman load",
        )
    )(save)
    app.command(
        epilog=examples(
            "copy images backup",
            "copy images backup localhost/hello:1",
            "copy containers-storage:localhost/hello:1 oci:layout:hello:1",
            "copy docker-archive:hello.tar containers-storage:[vfs@/srv/graph]localhost/hello:1",
            "copy oci:layout oci-archive:hello.tar",
        )
    )(copy)


@command(
    """Import images from an OCI image layout, and print their IDs.

    Everything is verified. Content that the store has is not stored again. Layers are left out of a
    store of podman's, because podman keeps them elsewhere; standard error says so.
    """
)
async def import_layout(
    context: typer.Context,
    layout: Layout,
    *,
    name: Names = None,
    ref: RefInLayout = None,
    platform: Platform = None,
    force: Force = False,
    json: Json = False,
) -> None:
    await _import(context, layout, name, ref, platform, force=force, json=json)


@command("Import images as import does, with the options of podman load.")
async def load(
    context: typer.Context,
    layout: Annotated[
        str | None, typer.Argument(metavar="LAYOUT", help="A directory or a tar file.")
    ] = None,
    *,
    input: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", metavar="LAYOUT", help="The same; the default is standard input."
        ),
    ] = None,
    name: Names = None,
    ref: RefInLayout = None,
    platform: Platform = None,
    force: Force = False,
    json: Json = False,
) -> None:
    given = _one_of(layout, input, "--input") or STANDARD
    await _import(context, given, name, ref, platform, force=force, json=json)


def _one_of(argument: str | None, value: str | None, option: str) -> str | None:
    if argument is not None and value is not None:
        raise CommandError(f"give either LAYOUT or {option}", ExitCode.USAGE)
    return value if argument is None else argument


async def _import(
    context: typer.Context,
    layout: str,
    names: list[str] | None,
    ref: str | None,
    platform: str | None,
    *,
    force: bool,
    json: bool,
) -> None:
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    if await is_terminal(layout, writes=False):
        raise CommandError(
            "an archive is not read from a terminal: give a file, or redirect it to standard input",
            ExitCode.USAGE,
        )
    async with (
        Session.of(context).writing(makes=True) as store,
        _readable(layout) as readable,
    ):
        with progress_bar("import") as bar:
            imported = await oci.import_layout(
                store,
                readable,
                names=names or None,
                ref=ref,
                platform=platform,
                force=force,
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


@command(
    """Export an image into an OCI image layout.

    LAYOUT becomes a tar file if it ends in .tar, or is standard output, and a directory otherwise.
    A directory that is a layout already gets one more image.
    """
)
async def export_layout(
    context: typer.Context, ref: Ref, layout: Layout, name: NameInLayout = None
) -> None:
    async with Session.of(context).reading() as store:
        await _export(store, [ref], layout, name)


@command(
    """Export images as export does, with the options of podman save.

    Several images go into one archive, or into one directory, all of them or none.
    """
)
async def save(
    context: typer.Context,
    refs: Refs,
    *,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="LAYOUT", help="Where to write."),
    ] = STANDARD,
    format: Annotated[
        Format | None,
        typer.Option("--format", help="The default is a tar file that all tools read."),
    ] = None,
    name: NameInLayout = None,
    multi_image_archive: Annotated[
        bool,
        typer.Option(
            "--multi-image-archive", "-m", help="Ignored: several images are always allowed."
        ),
    ] = False,
) -> None:
    del multi_image_archive
    if name is not None and len(refs) > 1:
        raise CommandError("--name is for one image: give one REF", ExitCode.USAGE)
    transport: Transport | None = None
    if format is not None:
        transport = format.transport
    elif not await to_thread.run_sync(os.path.isdir, output):
        transport = "oci-archive"
    async with Session.of(context).reading() as store:
        await _export(store, refs, output, name, transport)


async def _export(
    store: ImageStore,
    refs: list[str],
    layout: str,
    name: str | None,
    transport: Transport | None = None,
) -> int:
    """Export images, and return the number of bytes written.

    :param name: the name of a single image in the layout
    :param transport: what to write; ``None`` if the layout's path decides that
    """
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    target = await _writable(layout, transport)
    with damage(DigestMismatchError, SizeMismatchError), progress_bar("export") as bar:
        if len(refs) > 1:
            several = await oci.export_images(
                store, refs, target, transport=transport, progress=bar.show
            )
            return sum(each.written for each in several)
        result = await oci.export_layout(
            store, refs[0], target, name=name, transport=transport, progress=bar.show
        )
    return result.written


async def _writable(layout: str, transport: Transport | None) -> Any:
    """Return what to export into; ``-`` is standard output.

    :raises CommandError: when it is a terminal, or cannot be a directory and must be one
    """
    if await is_terminal(layout, writes=True):
        raise CommandError(
            "an archive is not written to a terminal: give a file, or redirect standard output",
            ExitCode.USAGE,
        )
    if layout != STANDARD:
        return layout
    if transport in {"oci", "dir"}:
        raise CommandError(
            "a directory cannot be written to standard output: give a path", ExitCode.USAGE
        )
    return RawOutput(STANDARD_OUTPUT)


@command(
    """Copy images between stores and layouts.

    Addresses are those of skopeo: containers-storage:[DRIVER@DIR]NAME, without the brackets for
    the store of --root or podman's own; oci:PATH:NAME, oci-archive:PATH:NAME,
    docker-archive:PATH:NAME, dir:PATH. Put ./ before the path of a store that looks like one.

    Everything is compared with its digest. An interrupted copy has copied each image as a whole or
    not at all; the same command copies the rest.
    """
)
async def copy(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A store, as for --root, or an address.")
    ],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A store or an address.")],
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF",
            autocompletion=complete_ref,
            help="The images of the store SRC; without any, all of them.",
        ),
    ] = None,
    *,
    force: Force = False,
    json: Json = False,
) -> None:
    src, dst = parse_address(source), parse_address(destination)
    session = Session.of(context)
    if isinstance(src, LayoutAddress):
        if refs:
            raise CommandError(
                "SRC is a layout: give no REF, and name the image as in oci:PATH:NAME",
                ExitCode.USAGE,
            )
        if isinstance(dst, LayoutAddress):
            copied = await _copy_layout(src, dst)
        else:
            copied = await _copy_in(src, session, dst, force=force)
    else:
        if src.ref is not None:
            if refs:
                raise CommandError("SRC names the image: give no REF", ExitCode.USAGE)
            refs = [src.ref]
        if isinstance(dst, LayoutAddress):
            copied = await _copy_out(session, src, dst, refs or [])
        else:
            copied = await _copy_across(session, src, dst, refs or [], force=force)
    if isinstance(dst, LayoutAddress) and dst.path == STANDARD:
        return  # the archive was written to it
    if json:
        await write_json(asdict(copied))
    else:
        size = human_size(copied.bytes)
        await write_lines(
            [f"{copied.images} copied, {size} of big data; {copied.present} present already"]
        )


def _session(session: Session, address: StoreAddress) -> Session:
    return session if address.root is None else replace(session, root=address.root)


async def _copy_in(
    src: LayoutAddress, session: Session, dst: StoreAddress, *, force: bool
) -> CopyResult:
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    names = None if dst.ref is None else [_full(dst.ref)]
    async with (
        _session(session, dst).writing(makes=True) as store,
        _readable(src.path) as readable,
    ):
        with progress_bar("copy") as bar:
            imported = await oci.import_layout(
                store, readable, names=names, ref=src.name, force=force, progress=bar.show
            )
    new = sum(each.is_new for each in imported)
    stored = sum(each.stored for each in imported)
    return CopyResult(images=new, present=len(imported) - new, bytes=stored)


async def _copy_layout(src: LayoutAddress, dst: LayoutAddress) -> CopyResult:
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    target = await _writable(dst.path, dst.transport)
    async with _readable(src.path) as readable:
        with progress_bar("copy") as bar:
            copied = await oci.copy_layout(
                readable,
                target,
                ref=src.name,
                name=_name_in_layout(dst),
                transport=dst.transport,
                progress=bar.show,
            )
    return CopyResult(images=len(copied), present=0, bytes=sum(each.written for each in copied))


async def _copy_out(
    session: Session, src: StoreAddress, dst: LayoutAddress, refs: list[str]
) -> CopyResult:
    name = _name_in_layout(dst)
    if not refs or (len(refs) > 1 and (name is not None or dst.transport == DIR)):
        raise CommandError(f"name {'one image' if refs else 'an image'} to copy", ExitCode.USAGE)
    async with _session(session, src).reading() as store:
        known = [await _known(store, ref) for ref in refs]
        written = await _export(store, known, dst.path, name, dst.transport)
    return CopyResult(images=len(refs), present=0, bytes=written)


def _name_in_layout(dst: LayoutAddress) -> str | None:
    """Return the name of an image in a layout; in a docker-archive, a full one."""
    if dst.name is None or dst.transport != "docker-archive":
        return dst.name
    return _full(dst.name)


async def _copy_across(
    session: Session, src: StoreAddress, dst: StoreAddress, refs: list[str], *, force: bool
) -> CopyResult:
    if dst.ref is not None and len(refs) != 1:
        raise CommandError("DST names one image: name one image of SRC, too", ExitCode.USAGE)
    name = None if dst.ref is None else _full(dst.ref)
    async with (
        _session(session, src).reading() as source,
        _session(session, dst).writing(makes=True) as destination,
    ):
        ids = [(await source.get(await _known(source, ref))).id for ref in refs]
        with progress_bar("copy") as bar, damage(DigestMismatchError):
            copied = await copy_images(
                source, destination, ids or None, force=force, progress=bar.show
            )
        if name is not None:
            await destination.add_names(ids[0], [name])
    return copied


def _full(name: str) -> str:
    """Return the full name that skopeo gives to an image with this name."""
    full = full_name(name, DOCKER)
    if full is None:
        raise CommandError(f"{name!r} cannot be the name of an image", ExitCode.USAGE)
    return full


async def _known(store: ImageStore, ref: str) -> str:
    """Return the ref by which a store knows an image that may be given by a short name."""
    for candidate in (ref, full_name(ref), full_name(ref, DOCKER)):
        if candidate is not None and await store.exists(candidate):
            return candidate
    return ref


@asynccontextmanager
async def _readable(layout: str) -> AsyncIterator[str | BinaryIO]:
    """Return a layout's path; for standard input, a file that can seek."""
    if layout != STANDARD:
        yield layout
        return
    async with reading(STANDARD) as source:
        if source.size is not None:
            with os.fdopen(STANDARD_INPUT, "rb", closefd=False) as stream:
                yield stream
            return
        with await to_thread.run_sync(tempfile.TemporaryFile) as spooled:
            while chunk := await source.read(CHUNK):
                await to_thread.run_sync(spooled.write, chunk)
            await to_thread.run_sync(spooled.seek, 0)
            yield spooled
