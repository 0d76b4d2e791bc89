"""A draft: a view with mutations applied on top, from which the next commit is made."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import msgspec

from .catalog import Catalog
from .content import Content, Copies
from .image import Image
from .record import Record
from .view import View


class Plan(msgspec.Struct, frozen=True):
    """What one mutation will do to a draft.

    :ivar image_id: the ID of the image that the mutation returns; ``""`` when it returns none
    :ivar created: the record of a new image
    :ivar is_copied: whether that is an image of an additional store, copied to be changed
    :ivar updated: records that replace those with the same IDs
    :ivar deleted: IDs of deleted images
    :ivar is_forced: whether images are deleted even if containers use them, and a new image is
        created even if podman cannot read it
    :ivar adopted: a record for an image whose directory exists already
    :ivar drops_damaged: whether damaged records are dropped
    :ivar drops_shadowed: the IDs of which only the latest record is kept
    :ivar files: big-data items that get new content, by image ID and key
    """

    image_id: str = ""
    created: Record | None = None
    is_copied: bool = False
    updated: tuple[Record, ...] = ()
    deleted: tuple[str, ...] = ()
    is_forced: bool = False
    adopted: Record | None = None
    drops_damaged: bool = False
    drops_shadowed: tuple[str, ...] = ()
    files: Mapping[tuple[str, str], Content] = MappingProxyType({})

    @property
    def image(self) -> Image | None:
        """The image that the mutation returns, as the mutation leaves it."""
        if self.created is not None and self.created.id == self.image_id:
            return self.created.image
        for record in self.updated:
            if record.id == self.image_id:
                return record.image
        return None


class RecordDelta(msgspec.Struct, frozen=True, gc=False):
    """What became of one record between the base of a draft and the draft.

    :ivar old: the record in the base
    :ivar new: the record in the draft
    :ivar is_recreated: whether the image was deleted, and another created with its ID
    """

    id: str
    old: Record | None
    new: Record | None
    is_recreated: bool


class Draft(View):
    """A view with mutations on top. Lookups find what they will find once it is committed.

    :ivar base: the view below
    :ivar files: big-data items that get new content, by image ID and key
    :ivar drops_damaged: whether damaged records are dropped
    :ivar drops_shadowed: the IDs of which only the latest record is kept
    :ivar forced: IDs of new images that are created even if podman cannot read them
    :ivar copied: IDs of images that are copied from additional stores
    """

    __slots__ = (
        "_adopted",
        "_appended",
        "_digests",
        "_names",
        "_records",
        "base",
        "copied",
        "drops_damaged",
        "drops_shadowed",
        "files",
        "forced",
    )

    base: View
    files: dict[tuple[str, str], Content]
    drops_damaged: bool
    drops_shadowed: set[str]
    forced: set[str]
    copied: set[str]

    def __init__(self, base: View) -> None:
        self.base = base
        self.files = {}
        self.drops_damaged = False
        self.drops_shadowed = set()
        self.forced = set()
        self.copied = set()
        self._records: dict[str, Record | None] = {}
        self._appended: dict[str, None] = {}
        self._adopted: set[str] = set()
        self._names: dict[str, str | None] = {}
        # For each digest, the images that have gained it (True) or lost it (False).
        self._digests: dict[str, dict[str, bool]] = {}

    # Overridden by the draft of a store with additional stores

    @property
    def own(self) -> Draft:
        """The draft of the writable store, without the images of additional stores."""
        return self

    def record_to_copy(self, image_id: str) -> Record | None:
        """Return the record that the copy of an image will have.

        ``None`` unless the image is in an additional store only.
        """
        return None

    def completed(self, plan: Plan, copies: Copies | None) -> Plan:
        """Return a plan with what copying an image of an additional store adds to it.

        :param copies: the items of that image, if they were staged
        """
        return plan

    # Lookups

    def prefetch(self, refs: Iterable[str], names: Iterable[str]) -> None:
        self.base.prefetch(refs, names)

    def record_of(self, image_id: str) -> Record | None:
        if image_id in self._records:
            return self._records[image_id]
        return self.base.record_of(image_id)

    def owner_of(self, name: str) -> str | None:
        return self._names[name] if name in self._names else self.base.owner_of(name)

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        if not prefix:
            return []
        changed = {i: r for i, r in self._records.items() if i.startswith(prefix)}
        # Ask for that many more, because these are taken out of what the base returns.
        found = set(self.base.ids_with_prefix(prefix, limit + len(changed))).difference(changed)
        found.update(i for i, record in changed.items() if record is not None)
        return sorted(found)[:limit]

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        changes = self._digests.get(digest, {})
        kept = [i for i in self.base.ids_with_digest(digest) if changes.get(i, True)]
        return tuple(dict.fromkeys((*kept, *(i for i, has in changes.items() if has))))

    def records(self) -> Iterator[Record]:
        for record in self.base.records():
            current = self._records.get(record.id, record)
            if current is not None and record.id not in self._appended:
                yield current
        yield from self.new_records()

    def is_damaged(self, image_id: str) -> bool:
        return not self.drops_damaged and self.base.is_damaged(image_id)

    def freeze(self) -> Catalog:
        return Catalog.of(self.records())

    def apply(self, plan: Plan) -> None:
        """Apply a plan that was made with this draft as it is now. Cannot fail."""
        for image_id in plan.deleted:
            record = self.record_of(image_id)
            if record is not None and self.files:
                for key in record.image.big_data_names:
                    self.files.pop((image_id, key), None)
            self._replace(image_id, None)
            # Another image with this ID is judged by itself.
            self.forced.discard(image_id)
            self.copied.discard(image_id)
        # A name that moves first leaves its previous owner, then goes to the new one.
        for record in plan.updated:
            self._replace(record.id, record)
        if plan.created is not None:
            self._append(plan.created)
            if plan.is_forced:
                self.forced.add(plan.created.id)
            if plan.is_copied:
                self.copied.add(plan.created.id)
        if plan.adopted is not None:
            self._append(plan.adopted)
            self._adopted.add(plan.adopted.id)
        self.drops_damaged |= plan.drops_damaged
        self.drops_shadowed.update(plan.drops_shadowed)
        if plan.files:
            self.files.update(plan.files)

    def _append(self, new: Record) -> None:
        self._appended.pop(new.id, None)
        self._appended[new.id] = None
        self._replace(new.id, new)

    def _replace(self, image_id: str, new: Record | None) -> None:
        old = self.record_of(image_id)
        self._records[image_id] = new
        old_names, new_names = old.names if old else (), new.names if new else ()
        if old_names != new_names:
            kept = frozenset(new_names)
            for name in old_names:
                if name not in kept and self.owner_of(name) == image_id:
                    self._names[name] = None
            self._names |= dict.fromkeys(new_names, image_id)
        old_digests, new_digests = old.digests if old else (), new.digests if new else ()
        if old_digests != new_digests:
            has = frozenset(new_digests)
            for digest in (*old_digests, *new_digests):
                self._digests.setdefault(digest, {})[image_id] = digest in has

    # What a commit of the draft writes

    def record_deltas(self) -> Iterator[RecordDelta]:
        """Iterate over the changes of records; those of new records come last, in their order."""
        changed = (i for i in self._records if i not in self._appended)
        for image_id in (*changed, *self._appended):
            old, new = self.base.record_of(image_id), self._records[image_id]
            is_recreated = old is not None and new is not None and image_id in self._appended
            yield RecordDelta(image_id, old, new, is_recreated)

    def new_records(self) -> Iterator[Record]:
        """Iterate over the new records, which come after all others, in their order."""
        return (r for i in self._appended if (r := self._records[i]) is not None)

    @property
    def name_deltas(self) -> Mapping[str, str | None]:
        """The names whose owner may have changed: the owner's ID, or ``None``."""
        return self._names

    @property
    def changed_digests(self) -> Collection[str]:
        """The digests that images may have gained or lost."""
        return self._digests

    @property
    def deleted(self) -> Iterator[str]:
        """The IDs of images of the base that were deleted, recreated ones included."""
        for image_id, record in self._records.items():
            is_deleted = record is None or image_id in self._appended
            if is_deleted and self.base.record_of(image_id) is not None:
                yield image_id

    @property
    def recreated(self) -> Iterator[tuple[Record, Record]]:
        """The old and new records of images that were deleted and created again."""
        for image_id in self._appended:
            old, new = self.base.record_of(image_id), self._records[image_id]
            if old is not None and new is not None:
                yield old, new

    @property
    def created(self) -> Iterator[str]:
        """The IDs of new images that have no record in the base, except adopted ones."""
        new = self._appended.keys() - self._adopted
        return (i for i in new if self._records[i] and not self.base.record_of(i))
