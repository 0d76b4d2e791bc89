"""Every change to the store, as a plain function from a snapshot to the edit it makes.

Each function here checks what the caller gave, before anything is queued, and returns the change
itself: called with the draft of the next snapshot, it finds the image, raises the domain's
errors, and says what is to be done. It does not do it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ..errors import (
    BigDataUnknownError,
    DuplicateIDError,
    DuplicateNameError,
    ImageUnknownError,
)
from . import gojson
from .digest import check_digest
from .draft import Content, Draft, Edit
from .image import Image
from .names import check_id, check_key, check_names, check_text
from .record import Record, RecordDraft
from .snapshot import without_names


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change.

    :ivar apply: finds out what is to be done to the draft
    :ivar refs: refs, and IDs that may be unknown, that it looks up
    :ivar names: names whose owners it asks for
    """

    apply: Callable[[Draft], Edit]
    refs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __call__(self, draft: Draft) -> Edit:
        """Find out what is to be done to the draft."""
        return self.apply(draft)


def _check_ref(ref: object) -> str:
    if not isinstance(ref, str):
        raise TypeError(f"a ref must be a str, not {type(ref).__name__}")
    return ref


def create(
    image_id: str | None = None,
    *,
    created: datetime | None = None,
    names: Iterable[str] = (),
    layer: str = "",
    metadata: str = "",
    digest: str | None = None,
    flags: Mapping[str, object] | None = None,
    big_data: Mapping[str, Content] | None = None,
) -> Mutation:
    """A new image, with its items, in one step; with a random ID and of now, unless given."""
    image_id = secrets.token_hex(32) if image_id is None else image_id
    created = datetime.now(UTC) if created is None else created
    edited = RecordDraft()
    edited.set("id", check_id(image_id))
    names = check_names(names)
    edited.set("names", names)
    edited.set("layer", check_text(layer, "layer"))
    edited.set("metadata", check_text(metadata, "metadata"))
    edited.set("created", gojson.time(created))
    if digest is not None:
        edited.set("digest", check_digest(digest))
    for flag, value in (flags or {}).items():
        edited.set_entry("flags", check_text(flag, "a flag's name"), gojson.value(value))
    items = {check_key(key): content for key, content in (big_data or {}).items()}
    edited.set("big-data-names", tuple(items))
    for key, content in items.items():
        _describe(edited, key, content)
    record = edited.finish()

    def change(draft: Draft) -> Edit:
        if draft.record_of(record.id) is not None:
            raise DuplicateIDError(f"there is an image {record.id} already", id=record.id)
        for name in names:
            if (owner := draft.owner_of(name)) is not None:
                raise DuplicateNameError(
                    f"the name {name!r} belongs to image {owner}: add_names would move it",
                    name=name,
                    id=owner,
                )
        files = {(record.id, key): content for key, content in items.items()}
        return Edit(record.id, created=record, files=files)

    return Mutation(change, (record.id,), names)


def set_names(ref: str, names: Iterable[str]) -> Mutation:
    """These names instead of those it has; they leave the images that have them."""
    given = check_names(names)
    return _rename(ref, lambda _: given, given)


def add_names(ref: str, names: Iterable[str]) -> Mutation:
    """These names before those it has; they leave the images that have them."""
    given = check_names(names)
    return _rename(ref, lambda present: (*given, *present), given)


def remove_names(ref: str, names: Iterable[str]) -> Mutation:
    """The names it has without these."""
    given = frozenset(check_names(names))
    return _rename(ref, lambda present: tuple(name for name in present if name not in given))


def _rename(
    ref: str,
    rename: Callable[[tuple[str, ...]], tuple[str, ...]],
    given: tuple[str, ...] = (),
) -> Mutation:
    _check_ref(ref)

    def change(draft: Draft) -> Edit:
        record = draft.find(ref)
        names = tuple(dict.fromkeys(rename(record.names)))
        edited = RecordDraft(record)
        edited.set("names", names)
        # Each name in turn moves to the front of the history: the last comes to stand first.
        history = dict.fromkeys((*reversed(names), *record.image.names_history))
        edited.set("names-history", tuple(history))
        return Edit(record.id, updated=(*_losers(draft, record.id, names), edited.finish()))

    return Mutation(change, (ref,), given)


def _losers(draft: Draft, image_id: str, names: Iterable[str]) -> Iterator[Record]:
    """The other images that have these names, without them."""
    losers: dict[str, set[str]] = {}
    for name in names:
        owner = draft.owner_of(name)
        if owner is not None and owner != image_id:
            losers.setdefault(owner, set()).add(name)
    return (without_names(draft.find(owner), lost) for owner, lost in losers.items())


def _edit(ref: str, edit: Callable[[RecordDraft, Record], object]) -> Mutation:
    _check_ref(ref)

    def change(draft: Draft) -> Edit:
        record = draft.find(ref)
        edited = RecordDraft(record)
        edit(edited, record)
        return Edit(record.id, updated=(edited.finish(),))

    return Mutation(change, (ref,))


def set_metadata(ref: str, metadata: str) -> Mutation:
    """Another metadata text."""
    check_text(metadata, "metadata")
    return _edit(ref, lambda edited, _: edited.set("metadata", metadata))


def set_flag(ref: str, flag: str, value: object) -> Mutation:
    """One flag set; the others stay as they are spelled."""
    check_text(flag, "a flag's name")
    encoded = gojson.value(value)
    return _edit(ref, lambda edited, _: edited.set_entry("flags", flag, encoded))


def clear_flag(ref: str, flag: str) -> Mutation:
    """One flag gone, if it was there."""
    check_text(flag, "a flag's name")
    return _edit(ref, lambda edited, _: edited.set_entry("flags", flag, None))


def set_big_data(ref: str, key: str, content: Content) -> Mutation:
    """An item's content, size and digest, new or instead of those it had."""
    _check_ref(ref)
    check_key(key)

    def change(draft: Draft) -> Edit:
        record = draft.find(ref)
        edited = RecordDraft(record)
        if key not in record.image.big_data_names:
            edited.set("big-data-names", (*record.image.big_data_names, key))
        _describe(edited, key, content)
        updated = (edited.finish(),)
        return Edit(record.id, updated=updated, files={(record.id, key): content})

    return Mutation(change, (ref,))


def note_big_data(image_id: str, key: str, found: Content) -> Mutation:
    """Record what an item's file was found to be, where nothing is recorded yet."""

    def edit(edited: RecordDraft, record: Record) -> None:
        image = record.image
        if key not in image.big_data_names:
            raise BigDataUnknownError(f"image {image_id} has no item {key!r}", id=image_id, key=key)
        if key not in image.big_data_sizes:
            edited.set_entry("big-data-sizes", key, str(found.size).encode())
        if key not in image.big_data_digests:
            edited.set_entry("big-data-digests", key, gojson.string(found.digest).encode())

    return _edit(image_id, edit)


def _describe(edited: RecordDraft, key: str, content: Content) -> None:
    edited.set_entry("big-data-sizes", key, str(content.size).encode())
    edited.set_entry("big-data-digests", key, gojson.string(content.digest).encode())


def delete(ref: str) -> Mutation:
    """The image gone, with its items."""
    _check_ref(ref)
    return Mutation(lambda draft: Edit(deleted=(draft.find(ref).id,)), (ref,))


def wipe() -> Mutation:
    """Every image gone; damaged records stay."""
    return Mutation(lambda draft: Edit(deleted=tuple(record.id for record in draft.records())))


def adopt(
    image_id: str, contents: Mapping[str, Content], names: Iterable[str], created: datetime
) -> Mutation:
    """A record for an image whose directory is there; only names that nobody has."""
    edited = RecordDraft()
    edited.set("id", check_id(image_id))
    edited.set("created", gojson.time(created))
    edited.set("big-data-names", tuple(contents))
    for key, content in contents.items():
        _describe(edited, check_key(key), content)

    def change(draft: Draft) -> Edit:
        if draft.record_of(image_id) is not None:
            raise DuplicateIDError(f"there is an image {image_id} already", id=image_id)
        free = (name for name in check_names(names) if draft.owner_of(name) is None)
        edited.set("names", tuple(free))
        return Edit(image_id, adopted=edited.finish())

    return Mutation(change)


def describe_big_data(image_id: str, key: str, found: Content) -> Mutation:
    """What is recorded of an item, put right."""
    return _edit(image_id, lambda edited, _: _describe(edited, key, found))


def drop_big_data(image_id: str, key: str) -> Mutation:
    """An item gone from its image's record."""

    def edit(edited: RecordDraft, record: Record) -> None:
        keys = tuple(k for k in record.image.big_data_names if k != key)
        edited.set("big-data-names", keys)
        edited.set_entry("big-data-sizes", key, None)
        edited.set_entry("big-data-digests", key, None)

    return _edit(image_id, edit)


def replace(record: Record, contents: Mapping[str, Content] | None) -> Mutation:
    """An image as another store has it, in place of the one with its ID; its names move to it.

    :param contents: its items; ``None`` to keep those that are there, which must be the same
    """

    def change(draft: Draft) -> Edit:
        others = tuple(_losers(draft, record.id, record.names))
        present = draft.record_of(record.id)
        if contents is None:
            if present is None or not has_same_items(present.image, record.image):
                raise ImageUnknownError(f"image {record.id} is not there any more", id=record.id)
            return Edit(record.id, updated=(*others, record))
        gone = () if present is None else (record.id,)
        files = {(record.id, key): content for key, content in contents.items()}
        return Edit(record.id, deleted=gone, updated=others, created=record, files=files)

    return Mutation(change, (record.id,), record.names)


def has_same_items(one: Image, other: Image) -> bool:
    """Whether two images have the same items, as far as their records tell."""
    return (
        one.big_data_names == other.big_data_names
        and one.big_data_sizes == other.big_data_sizes
        and one.big_data_digests == other.big_data_digests
        and one.big_data_digests.keys() >= set(one.big_data_names)
    )


def drop_unreadable() -> Mutation:
    """Damaged records gone, and those that a later record of their ID shadows."""
    return Mutation(lambda draft: Edit(drops_unreadable=True))
