"""Lists images: in podman's columns, in a template that was given, or as podman's JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .._core.image import Image
from .._core.refs import repository_of
from .human import human_age, repositories_and_tags, short_id
from .output import rfc3339, write, write_columns, write_json
from .sizes import Sizes
from .templates import Template

if TYPE_CHECKING:
    from .._core.documents import Documents

_FORMAT = "table {{.Repository}} {{.Tag}} {{.ID}} {{.Created}} {{.Size}}"

_HEADINGS = {"ID": "IMAGE ID", "ReadOnly": "R/O"}
_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})
_OLDEST = datetime.min.replace(tzinfo=UTC)

# Fields that podman's JSON leaves out if they are empty.
_OMITTED_IF_EMPTY = frozenset({"Names", "History", "Digest", "ReadOnly"})


class Sorting(StrEnum):
    """The field by which a list of images is sorted."""

    CREATED = "created"
    ID = "id"
    REPOSITORY = "repository"
    SIZE = "size"
    TAG = "tag"


class Row(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An image under one of its names.

    :ivar names: all names under which the image is listed
    :ivar sizes: the sizes of all images
    """

    image: Image
    names: tuple[str, ...]
    repository: str
    tag: str
    sizes: Sizes
    labels: Mapping[str, str]

    @property
    def repository_digests(self) -> list[str]:
        """Each of its digests with each repository that it is in."""
        repositories = {repository_of(name) for name in self.names}
        return sorted({f"{name}@{d}" for name in repositories for d in self.image.digests})


def rows_of(
    images: Iterable[Image],
    names_of: Callable[[Image], tuple[str, ...]],
    sizes: Sizes,
    documents: Mapping[str, Documents],
) -> list[Row]:
    """Return the rows of images.

    :param names_of: returns the names under which an image is listed
    :param documents: manifests and configs by the images' IDs; empty if nothing of them is shown
    """
    return [
        Row(
            image,
            names,
            repository,
            tag,
            sizes,
            documents[image.id].labels if documents else _NO_LABELS,
        )
        for image in images
        for names in [names_of(image)]
        for repository, tag in repositories_and_tags(names)
    ]


def order_of(rows: Sequence[Row], sorting: Sorting) -> list[int]:
    """Return the positions of sorted rows: the newest first, or ascending by another field."""
    keys: dict[Sorting, Callable[[Row], Any]] = {
        Sorting.CREATED: lambda row: row.image.created or _OLDEST,
        Sorting.ID: lambda row: row.image.id,
        Sorting.REPOSITORY: lambda row: (row.repository, row.tag),
        Sorting.SIZE: lambda row: row.sizes.of_all(row.image),
        Sorting.TAG: lambda row: row.tag,
    }
    values = list(map(keys[sorting], rows))
    return sorted(range(len(rows)), key=values.__getitem__, reverse=sorting is Sorting.CREATED)


def usual_format(rows: Iterable[Row]) -> str:
    """Return podman's columns, with one for images of additional stores if there are any."""
    return _FORMAT + " {{.ReadOnly}}" * any(row.image.read_only for row in rows)


def row_template(text: str, *, whole_ids: bool) -> Template[Row]:
    """Parse a template for rows.

    :raises ValueError: when it has anything but known fields
    """
    now = datetime.now(UTC)

    def age(row: Row) -> str:
        return human_age(row.image.created, now)

    def created_at(row: Row) -> str:
        return f"{_whole_seconds(row.image):%Y-%m-%d %H:%M:%S} +0000 UTC"

    fields: dict[str, Callable[[Row], object]] = {
        "Created": age,
        "CreatedAt": created_at,
        "CreatedSince": age,
        "CreatedTime": created_at,
        "Digest": attrgetter("image.digest"),
        "History": lambda row: ", ".join(row.image.names_history),
        "ID": lambda row: row.image.id if whole_ids else short_id(row.image.id),
        "Id": attrgetter("image.id"),
        "Labels": attrgetter("labels"),
        "Names": attrgetter("names"),
        "ReadOnly": attrgetter("image.read_only"),
        "RepoDigests": attrgetter("repository_digests"),
        "Repository": attrgetter("repository"),
        "RepoTags": attrgetter("names"),
        "Size": lambda row: row.sizes.shown(row.image),
        "Tag": attrgetter("tag"),
        "VirtualSize": lambda row: row.sizes.of_all(row.image),
    }
    return Template(text, fields, _HEADINGS)


def _whole_seconds(image: Image) -> datetime:
    return (image.created or _OLDEST).replace(microsecond=0)


async def write_rows(
    rows: Sequence[Row], order: Sequence[int], template: Template[Row], *, heading: bool
) -> None:
    """Write rows in the form of a template.

    :param order: the positions of the rows in the order in which they are written
    """
    # The cells are made in the order of the rows, which is that of the images in memory. In any
    # other, each of many cells would have to wait for memory.
    columns = ([cells[i] for i in order] for cells in map(list, template.columns(rows)))
    if template.is_table:
        await write_columns(template.heading(), columns, folded=0, is_headed=heading)
    else:
        (lines,) = columns
        await write("".join(f"{line}\n" for line in lines))


async def write_podman_json(rows: Iterable[Row]) -> None:
    """Write each image once, with podman's names for the fields."""
    images = {row.image.id: row for row in rows}
    await write_json([_podman_json(row) for row in images.values()])


def _podman_json(row: Row) -> dict[str, Any]:
    image = row.image
    found: dict[str, Any] = {
        "Id": image.id,
        "RepoDigests": row.repository_digests,
        "Size": row.sizes.of_all(image),
        "VirtualSize": row.sizes.of_all(image),
        "Labels": dict(row.labels),
        "Digest": image.digest,
        "History": list(image.names_history),
        "Names": list(row.names),
        "ReadOnly": image.read_only,
        "Created": int(_whole_seconds(image).timestamp()),
        "CreatedAt": rfc3339(_whole_seconds(image)),
    }
    return {key: value for key, value in found.items() if value or key not in _OMITTED_IF_EMPTY}
