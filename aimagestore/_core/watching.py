"""What was done to the store between two moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .image import Image
from .record import Record
from .snapshot import Snapshot

Kind = Literal["created", "changed", "deleted"]


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one image.

    :ivar kind: ``"created"``, ``"changed"`` or ``"deleted"``
    :ivar id: the image's ID
    :ivar image: the image as the change left it; ``None`` when it is gone
    """

    kind: Kind
    id: str
    image: Image | None = None


def changes_between(before: Snapshot, after: Snapshot) -> list[Change]:
    """What makes one snapshot of another: first what is gone, then in the order of images.json.

    A record that is only spelled in another way has not changed.
    """
    changes = [
        Change("deleted", record.id)
        for record in records_apart(before, after)
        if after.record_of(record.id) is None
    ]
    for record in records_apart(after, before):
        old = before.record_of(record.id)
        if old is None:
            changes.append(Change("created", record.id, record.image))
        elif bytes(old.raw) != bytes(record.raw) and old.image != record.image:
            changes.append(Change("changed", record.id, record.image))
    return changes


def records_apart(snapshot: Snapshot, other: Snapshot) -> Iterator[Record]:
    """The records that may differ: those in blocks that the other snapshot does not share."""
    for home, block in snapshot.blocks.items():
        if other.blocks.get(home) is not block:
            yield from (r for r in block.records if snapshot.record_of(r.id) is r)
