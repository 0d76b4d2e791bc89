"""What happened to the images of a store between two commits."""

from __future__ import annotations

from typing import Literal

import msgspec

from .catalog import Catalog
from .image import Image
from .plain import PlainStruct

Kind = Literal["created", "changed", "deleted"]


class ChangeEvent(msgspec.Struct, metaclass=PlainStruct, frozen=True, gc=False):
    """A change of one image, as a watch yields it.

    :ivar kind: ``"created"``, ``"changed"`` or ``"deleted"``
    :ivar id: the image's ID
    :ivar image: the image after the change; ``None`` when it was deleted
    """

    kind: Kind
    id: str
    image: Image | None = None


def changes_between(before: Catalog, after: Catalog) -> list[ChangeEvent]:
    """Return the changes that turn one catalog into another.

    Deletions come first, then the other changes in the order of images.json. A record that is
    only spelled differently has not changed.
    """
    events = [
        ChangeEvent("deleted", record.id)
        for record in before.records_not_in(after)
        if after.record_of(record.id) is None
    ]
    for record in after.records_not_in(before):
        old = before.record_of(record.id)
        if old is None:
            events.append(ChangeEvent("created", record.id, record.image))
        elif bytes(old.raw) != bytes(record.raw) and old.image != record.image:
            events.append(ChangeEvent("changed", record.id, record.image))
    return events
