"""Mutations: all changes that a store can be asked for, as functions from a draft to a plan.

Each function here checks its arguments before anything is queued, and returns a mutation. Called
with a draft, a mutation finds the image, raises the errors of the public API, and returns a plan of
what is to be done. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec

from .._format import gojson
from ..errors import (
    BigDataUnknownError,
    DuplicateIDError,
    DuplicateNameError,
    ImageUnknownError,
    StoreCorruptError,
)
from .content import Content, Copies, Described
from .digest import check_digest
from .draft import Draft, Plan
from .image import Image
from .names import check_id, check_key, check_names, check_text, check_type
from .record import Record, RecordDraft, without_item, without_names


class Mutation(msgspec.Struct, frozen=True, eq=False):
    """A change that was asked for. Calling it plans it.

    :ivar plan: plans what is to be done to a draft
    :ivar refs: refs, and IDs that may be unknown, that it looks up
    :ivar names: names whose owners it looks up
    :ivar copies: the items of an additional store's image that it changes, once they are staged
    """

    plan: Callable[[Draft], Plan]
    refs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    copies: Copies | None = None

    def __call__(self, draft: Draft) -> Plan:
        """Plan what is to be done to the draft."""
        return draft.completed(self.plan(draft), self.copies)


def _check_ref(ref: object) -> str:
    if not isinstance(ref, str):
        raise TypeError(f"a ref must be a str, not {type(ref).__name__}")
    return ref


class Creation(Mutation, frozen=True, eq=False, kw_only=True):
    """The creation of an image without items.

    :ivar with_items: returns the creation of the same image with items, whose keys were checked
    """

    with_items: Callable[[Mapping[str, Content]], Mutation]


def create(
    image_id: str | None = None,
    *,
    created: datetime | None = None,
    names: Iterable[str] = (),
    top_layer: str = "",
    metadata: str = "",
    digest: str | None = None,
    flags: Mapping[str, object] | None = None,
    force: bool = False,
) -> Creation:
    """Create an image.

    An image of an additional store with this ID is copied, and gets what is given here.

    :param image_id: its ID; ``None`` for a random one
    :param created: when it was created; ``None`` for now
    :param force: create it even if podman, which keeps layers beside the store, cannot read it
    """
    check_type(force, bool, "force")
    if image_id is None:
        import secrets  # noqa: PLC0415 - it imports much that reading does not need

        image_id = secrets.token_hex(32)
    set_created = _created_setter(created)
    check_type({} if flags is None else flags, Mapping, "flags")
    image_id = check_id(image_id)
    names = check_names(names)
    top_layer = check_text(top_layer, "top_layer")
    metadata = check_text(metadata, "metadata")
    if digest is not None:
        check_digest(digest)
    given = {check_text(f, "a flag's name"): gojson.value(v) for f, v in (flags or {}).items()}

    def record(below: Record | None, items: Mapping[str, Content]) -> Record:
        edited = RecordDraft(below)
        keys = tuple(items)
        if below is None:
            edited.set("id", image_id)
            edited.set("names", names)
        else:
            _set_names(edited, below, (*below.names, *names))
            keys = tuple(dict.fromkeys((*below.image.big_data_names, *keys)))
            # As in containers/storage, flags are not copied, nor is a top layer.
            edited.set("flags", "")
        edited.set("layer", top_layer)
        if metadata:
            edited.set("metadata", metadata)
        set_created(edited, below)
        if digest is not None:
            edited.set("digest", digest)
        edited.set_entries("flags", given)
        edited.set("big-data-names", keys)
        _describe(edited, items)
        return edited.finish()

    def plan(items: Mapping[str, Content], draft: Draft) -> Plan:
        _check_unused(draft.own, image_id)
        _check_names_unused(draft.own, names)
        files = {(image_id, key): content for key, content in items.items()}
        new = record(draft.record_to_copy(image_id), items)
        return Plan(image_id, created=new, is_forced=force, files=files)

    def with_items(items: Mapping[str, Content]) -> Mutation:
        return Mutation(partial(plan, items), (image_id,), names)

    return Creation(partial(plan, {}), (image_id,), names, with_items=with_items)


def _created_setter(created: datetime | None) -> Callable[[RecordDraft, Record | None], None]:
    """Check when an image was created, and return what sets that in its record."""
    if created is not None:
        check_type(created, datetime, "created")
        given = gojson.time(created)
        return lambda edited, below: edited.set("created", given)

    def set_now(edited: RecordDraft, below: Record | None) -> None:
        if below is None:  # not when the call began: reading the data may have taken long
            edited.set("created", gojson.time(datetime.now(UTC)))

    return set_now


def _check_unused(draft: Draft, image_id: str) -> None:
    if draft.record_of(image_id) is not None:
        raise DuplicateIDError(f"an image with the ID {image_id} exists already", id=image_id)
    check_undamaged(draft, image_id)


def _check_names_unused(draft: Draft, names: Iterable[str]) -> None:
    for name in names:
        if (owner := draft.owner_of(name)) is not None:
            raise DuplicateNameError(
                f"the name {name!r} belongs to image {owner}: create the image without it, "
                "and move it with add_names",
                name=name,
                id=owner,
            )


def check_undamaged(draft: Draft, image_id: str) -> None:
    """Check that no damaged record may have the ID of a new image.

    :raises StoreCorruptError: when one may
    """
    # The directory of a new image is cleared, and this one may hold the damaged record's items.
    if draft.is_damaged(image_id):
        raise StoreCorruptError(
            f"the ID {image_id} belongs to a damaged record, which the store keeps as it is: "
            "check shows it, and repair can drop it",
            id=image_id,
        )


def set_names(ref: str, names: Iterable[str]) -> Mutation:
    """Replace the image's names. A name of another image moves to this one."""
    given = check_names(names)
    return _rename(ref, lambda _: given, given)


def add_names(ref: str, names: Iterable[str]) -> Mutation:
    """Put names before those that the image has. A name of another image moves to this one."""
    given = check_names(names)
    return _rename(ref, lambda present: (*given, *present), given)


def remove_names(ref: str, names: Iterable[str]) -> Mutation:
    """Remove names from the image, where it has them."""
    given = frozenset(check_names(names))
    return _rename(ref, lambda present: tuple(name for name in present if name not in given))


def _rename(
    ref: str,
    rename: Callable[[tuple[str, ...]], tuple[str, ...]],
    given: tuple[str, ...] = (),
) -> Mutation:
    _check_ref(ref)

    def plan(draft: Draft) -> Plan:
        record = _find(draft, ref)
        edited = RecordDraft(record)
        names = _set_names(edited, record, rename(record.names))
        return Plan(
            record.id, updated=(*_without_moved_names(draft, record.id, names), edited.finish())
        )

    return Mutation(plan, (ref,), given)


def _set_names(edited: RecordDraft, record: Record, names: Iterable[str]) -> tuple[str, ...]:
    """Set the names of an image and add them to its history; return them without repeats."""
    names = tuple(dict.fromkeys(names))
    edited.set("names", names)
    # Each name in turn moves to the front of the history, so the last name ends up first.
    history = dict.fromkeys((*reversed(names), *record.image.names_history))
    edited.set("names-history", tuple(history))
    return names


def _find(draft: Draft, ref: str) -> Record:
    """Return the record of an image to change: of its copy, if an additional store has it."""
    record = draft.find(ref)
    return draft.record_to_copy(record.id) or record


def _without_moved_names(draft: Draft, image_id: str, names: Iterable[str]) -> Iterator[Record]:
    """Return the records of the names' previous owners, without these names.

    An image of an additional store keeps its record: the name there is hidden by the new one.
    """
    previous_owners: dict[str, set[str]] = {}
    for name in names:
        owner = draft.own.owner_of(name)
        if owner is not None and owner != image_id:
            previous_owners.setdefault(owner, set()).add(name)
    for owner, lost in previous_owners.items():
        record = draft.own.record_of(owner)
        assert record is not None, "the owner of a name is an image"
        yield without_names(record, lost)


def _edit(ref: str, edit: Callable[[RecordDraft, Record], object]) -> Mutation:
    _check_ref(ref)

    def plan(draft: Draft) -> Plan:
        record = _find(draft, ref)
        edited = RecordDraft(record)
        edit(edited, record)
        return Plan(record.id, updated=(edited.finish(),))

    return Mutation(plan, (ref,))


def set_metadata(ref: str, metadata: str) -> Mutation:
    """Replace the image's metadata."""
    check_text(metadata, "metadata")
    return _edit(ref, lambda edited, _: edited.set("metadata", metadata))


def set_flag(ref: str, flag: str, value: object) -> Mutation:
    """Set a flag. Other flags keep their spelling."""
    check_text(flag, "a flag's name")
    encoded = gojson.value(value)
    return _edit(ref, lambda edited, _: edited.set_entry("flags", flag, encoded))


def clear_flag(ref: str, flag: str) -> Mutation:
    """Remove a flag, if it is set."""
    check_text(flag, "a flag's name")
    return _edit(ref, lambda edited, _: edited.set_entry("flags", flag, None))


def set_big_data(ref: str, key: str, content: Content) -> Mutation:
    """Add an item to the image, or replace the one with this key."""
    _check_ref(ref)
    check_key(key)

    def plan(draft: Draft) -> Plan:
        record = _find(draft, ref)
        edited = RecordDraft(record)
        if key not in record.image.big_data_names:
            edited.set("big-data-names", (*record.image.big_data_names, key))
        _describe(edited, {key: content})
        updated = (edited.finish(),)
        return Plan(record.id, updated=updated, files={(record.id, key): content})

    return Mutation(plan, (ref,))


def note_big_data(image_id: str, key: str, found: Described) -> Mutation:
    """Record the size and digest that an item was found to have, where none are recorded."""

    def edit(edited: RecordDraft, record: Record) -> None:
        image = record.image
        if key not in image.big_data_names:
            raise BigDataUnknownError(f"image {image_id} has no item {key!r}", id=image_id, key=key)
        if key not in image.big_data_sizes:
            edited.set_entry("big-data-sizes", key, str(found.size).encode())
        if key not in image.big_data_digests:
            edited.set_entry("big-data-digests", key, gojson.string(found.digest).encode())

    return _edit(image_id, edit)


def _describe(edited: RecordDraft, items: Mapping[str, Described]) -> None:
    sizes = {key: str(item.size).encode() for key, item in items.items()}
    digests = {key: gojson.string(item.digest).encode() for key, item in items.items()}
    edited.set_entries("big-data-sizes", sizes)
    edited.set_entries("big-data-digests", digests)


def delete(ref: str, *, force: bool = False) -> Mutation:
    """Delete the image and its items; with ``force`` even if a container uses it."""
    _check_ref(ref)
    check_type(force, bool, "force")
    return Mutation(lambda draft: Plan(deleted=(draft.find(ref).id,), is_forced=force), (ref,))


def wipe() -> Mutation:
    """Delete all images; damaged records stay."""
    return Mutation(
        lambda draft: Plan(
            deleted=tuple(record.id for record in draft.own.records()), is_forced=True
        )
    )


def adopt(
    image_id: str, contents: Mapping[str, Described], names: Iterable[str], created: datetime
) -> Mutation:
    """Create a record for an image directory without one, with those names that no image has."""
    names = check_names(names)
    edited = RecordDraft()
    edited.set("id", check_id(image_id))
    edited.set("created", gojson.time(created))
    edited.set("big-data-names", tuple(contents))
    _describe(edited, {check_key(key): content for key, content in contents.items()})

    def plan(draft: Draft) -> Plan:
        _check_unused(draft, image_id)
        edited.set("names", tuple(name for name in names if draft.owner_of(name) is None))
        return Plan(image_id, adopted=edited.finish())

    return Mutation(plan)


def describe_big_data(image_id: str, key: str, found: Described) -> Mutation:
    """Replace the recorded size and digest of an item, and list the item if it is not listed."""

    def edit(edited: RecordDraft, record: Record) -> None:
        if key not in record.image.big_data_names:
            edited.set("big-data-names", (*record.image.big_data_names, key))
        _describe(edited, {key: found})

    return _edit(image_id, edit)


def clear_big_data_digest(image_id: str, key: str) -> Mutation:
    """Remove the recorded digest of an item."""
    return _edit(image_id, lambda edited, _: edited.set_entry("big-data-digests", key, None))


def reset_digest(image_id: str) -> Mutation:
    """Replace an image's digest with that of its first manifest, if it has one."""
    return _edit(image_id, lambda edited, _: edited.set("digest", ""))


def set_top_layer(image_id: str, layer: str) -> Mutation:
    """Record the top layer of an image."""
    return _edit(image_id, lambda edited, _: edited.set("layer", layer))


def set_mapped_layers(image_id: str, layers: Sequence[str]) -> Mutation:
    """Record the versions of an image's top layer for other ID mappings."""
    return _edit(image_id, lambda edited, _: edited.set("mapped-layers", tuple(layers)))


def drop_big_data(image_id: str, key: str) -> Mutation:
    """Remove an item from its image's record."""

    def plan(draft: Draft) -> Plan:
        return Plan(image_id, updated=(without_item(draft.find(image_id), key),))

    return Mutation(plan, (image_id,))


def replace(
    record: Record, contents: Mapping[str, Content] | None, *, force: bool = False
) -> Mutation:
    """Copy an image of another store, in place of one with its ID. Its names move to the copy.

    :param contents: its items; ``None`` to keep the present ones, which must be the same
    :param force: copy it even if podman, which keeps layers beside the store, cannot read it
    """
    record = record.as_own()

    def plan(draft: Draft) -> Plan:
        others = tuple(_without_moved_names(draft, record.id, record.names))
        present = draft.own.record_of(record.id)
        if contents is None:
            present = present or draft.record_to_copy(record.id)
            if present is None or not has_same_items(present.image, record.image):
                raise ImageUnknownError(
                    f"image {record.id} was deleted or changed meanwhile", id=record.id
                )
            return Plan(record.id, updated=(*others, record))
        if present is None:
            check_undamaged(draft.own, record.id)
        deleted = () if present is None else (record.id,)
        files = {(record.id, key): content for key, content in contents.items()}
        return Plan(
            record.id,
            deleted=deleted,
            updated=others,
            created=record,
            is_forced=force,
            files=files,
        )

    return Mutation(plan, (record.id,), record.names)


def has_same_items(one: Image, other: Image) -> bool:
    """Return whether the records of two images say that their items are the same."""
    return (
        one.big_data_names == other.big_data_names
        and one.big_data_sizes == other.big_data_sizes
        and one.big_data_digests == other.big_data_digests
        and one.big_data_digests.keys() >= set(one.big_data_names)
    )


def drop_damaged() -> Mutation:
    """Drop damaged records."""
    return Mutation(lambda draft: Plan(drops_damaged=True))


def drop_shadowed(image_id: str) -> Mutation:
    """Drop the records with an ID that do not count, because a later one has it."""
    return Mutation(lambda draft: Plan(drops_shadowed=(image_id,)))
