"""The catalog of a store in a directory: an index of the blocks of images.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from .._core.catalog import Catalog, Indexes, Prefixes
from .._core.draft import Draft
from .._core.record import Record, ids_in, without_names
from .blocks import BLOCK_BYTES, Block, new_block_id
from .pacing import yield_gil_every

# Each takes about 2 ms.
_BLOCKS_AT_ONCE = 8
_SEARCHES_AT_ONCE = 16
_IDS_AT_ONCE = 10_000

K = TypeVar("K")
V = TypeVar("V")


class BlockCatalog(Catalog):
    """A catalog with the blocks of its records, and what else images.json holds.

    :ivar blocks: the blocks by ID, in the order of images.json
    :ivar damaged: the elements that cannot be read, byte for byte
    :ivar shadowed: by ID, the records that do not count, because a later one has the same ID
    :ivar needs_save: whether a name conflict was resolved that images.json still has
    """

    __slots__ = ("blocks", "damaged", "needs_save", "shadowed")

    blocks: Mapping[int, Block]
    damaged: tuple[bytes, ...]
    shadowed: Mapping[str, tuple[Record, ...]]
    needs_save: bool

    def __init__(
        self,
        blocks: Mapping[int, Block],
        indexes: Indexes,
        prefixes: Prefixes,
        damaged: tuple[bytes, ...] = (),
        shadowed: Mapping[str, tuple[Record, ...]] | None = None,
        *,
        needs_save: bool = False,
    ) -> None:
        super().__init__(indexes, prefixes)
        self.blocks = blocks
        self.damaged = damaged
        self.shadowed = shadowed or {}
        self.needs_save = needs_save

    def records(self) -> Iterator[Record]:
        return (r for block in self.blocks.values() for r in self._current(block))

    def _current(self, block: Block) -> Iterator[Record]:
        """Iterate over a block's records, except shadowed ones."""
        by_id = self.indexes.by_id
        return (record for record in block.records if by_id.get(record.id) is record)

    def records_not_in(self, other: Catalog) -> Iterator[Record]:
        if not isinstance(other, BlockCatalog):
            return super().records_not_in(other)
        theirs = other.blocks
        changed = (block for i, block in self.blocks.items() if theirs.get(i) is not block)
        return (record for block in changed for record in self._current(block))

    def items_with_digest(self, digest: str, size: int | None) -> Iterator[tuple[Record, str]]:
        """Iterate over the items that have a SHA-256 digest, as record and key, the latest first.

        :param size: their recorded size in bytes; ``None`` for any
        """
        blocks = reversed(tuple(self.blocks.values()))
        for block in yield_gil_every(blocks, _SEARCHES_AT_ONCE):
            if not block.may_have(digest):
                continue
            for record in reversed(tuple(self._current(block))):
                for key in record.keys_with_digest(digest, size):
                    yield record, key

    def is_damaged(self, image_id: str) -> bool:
        return any(image_id in ids_in(element) for element in self.damaged)

    def with_blocks(self, blocks: Mapping[int, Block], damaged: tuple[bytes, ...]) -> BlockCatalog:
        """Return the catalog of other blocks, some of which may be this one's.

        Blocks of this catalog are not indexed again, unless records share an ID or a name: then the
        order of all records decides.
        """
        if self.shadowed or self.needs_save or not self.blocks:
            return build(blocks, damaged)
        before = [r for i, block in self.blocks.items() if i not in blocks for r in block.records]
        after = [r for i, block in blocks.items() if i not in self.blocks for r in block.records]
        before_by_id = {record.id: record for record in before}
        after_by_id = {record.id: record for record in after}
        if len(after_by_id) < len(after):
            return build(blocks, damaged)
        removed = [r for r in before if not _is_found_alike(r, after_by_id.get(r.id))]
        added = [r for r in after if not _is_found_alike(r, before_by_id.get(r.id))]
        is_found_alike = not removed and not added
        indexes = self.indexes.copy(shares_names=is_found_alike, shares_digests=is_found_alike)
        for record in removed:
            indexes.discard(record)
        for record in added:
            if indexes.conflicts_with(record):
                return build(blocks, damaged)
            indexes.add(record)
        indexes.by_id.update(after_by_id)
        prefixes = self.prefixes.changed(
            after_by_id.keys() - before_by_id.keys(), before_by_id.keys() - after_by_id.keys()
        )
        return BlockCatalog(blocks, indexes, prefixes, damaged)


def _is_found_alike(record: Record, other: Record | None) -> bool:
    """Return whether names and digests find another record with the same ID as they find this."""
    return other is not None and record.names == other.names and record.digests == other.digests


def build(blocks: Mapping[int, Block], damaged: tuple[bytes, ...]) -> BlockCatalog:
    """Index blocks. Of records with one ID or one name, the latest has it.

    The earlier of two records with one ID is shadowed. It stays where it is, because it would count
    if it were moved behind the other one.
    """
    by_id: dict[str, Record] = {}
    shadowed: dict[str, tuple[Record, ...]] = {}
    for block in yield_gil_every(blocks.values(), _BLOCKS_AT_ONCE):
        for record in block.records:
            if (earlier := by_id.get(record.id)) is not None:
                shadowed[record.id] = (*shadowed.get(record.id, ()), earlier)
            by_id[record.id] = record
    indexes = Indexes.empty()
    previous_owners: dict[str, set[str]] = {}
    for block in yield_gil_every(blocks.values(), _BLOCKS_AT_ONCE):
        for record in block.records:
            if shadowed and by_id[record.id] is not record:
                continue
            for name in record.names:
                if (owner := indexes.by_name.get(name)) is not None:
                    previous_owners.setdefault(owner, set()).add(name)
            indexes.add(record)
    prefixes = Prefixes.of(yield_gil_every(indexes.by_id, _IDS_AT_ONCE))
    if previous_owners:
        blocks = _resolve_name_conflicts(blocks, indexes, previous_owners)
    return BlockCatalog(
        blocks, indexes, prefixes, damaged, shadowed, needs_save=bool(previous_owners)
    )


def _resolve_name_conflicts(
    blocks: Mapping[int, Block], indexes: Indexes, previous_owners: Mapping[str, set[str]]
) -> Mapping[int, Block]:
    """Return the blocks without the names that records have lost, and update the index."""
    resolved = dict(blocks)
    for image_id, lost in previous_owners.items():
        old = indexes.by_id[image_id]
        new = indexes.by_id[image_id] = without_names(old, lost)
        records = [new if record is old else record for record in resolved[old.block_id].records]
        resolved[old.block_id] = Block.of(records)
    return resolved


EMPTY = build({}, ())
"""The catalog of an index without images."""


def apply_draft(base: BlockCatalog, draft: Draft) -> BlockCatalog:
    """Return the catalog that a draft makes of its base; the base itself if nothing changed.

    :param base: the base of the draft
    """
    replaced: dict[Record, Record | None] = {}
    for delta in draft.record_deltas():
        old, new = delta.old, delta.new
        if old is None:
            continue
        if new is None or delta.is_recreated:
            # A shadowed record with the same ID would count once this one is removed.
            replaced |= dict.fromkeys((old, *base.shadowed.get(delta.id, ())))
        elif bytes(new.raw) != bytes(old.raw):
            replaced[old] = new.in_block(old.block_id)
    for image_id in draft.drops_shadowed:
        replaced |= dict.fromkeys(base.shadowed.get(image_id, ()))
    damaged = () if draft.drops_damaged else base.damaged
    blocks, appended = _append(_replace(base.blocks, replaced), draft.new_records())
    is_same = not replaced and not appended and damaged == base.damaged
    if is_same and not base.needs_save:
        return base
    indexes = base.indexes.copy(
        shares_names=not draft.name_deltas, shares_digests=not draft.changed_digests
    )
    _overlay(indexes.by_name, draft.name_deltas.items())
    for digest in draft.changed_digests:
        indexes.set_ids(digest, draft.ids_with_digest(digest))
    known = base.indexes.by_id
    current = ((old.id, new) for old, new in replaced.items() if known.get(old.id) is old)
    _overlay(indexes.by_id, current)
    indexes.by_id.update({record.id: record for record in appended})
    added = [record.id for record in appended if record.id not in known]
    removed = [old.id for old in replaced if old.id not in indexes.by_id]
    return BlockCatalog(
        blocks,
        indexes,
        base.prefixes.changed(added, removed) if added or removed else base.prefixes,
        damaged,
        {
            image_id: shadows
            for image_id, shadows in base.shadowed.items()
            if shadows[0] not in replaced
        },
    )


def _replace(
    blocks: Mapping[int, Block], replaced: Mapping[Record, Record | None]
) -> dict[int, Block]:
    """Return the blocks with some records replaced or removed."""
    changed = dict(blocks)
    for block_id in {record.block_id for record in replaced}:
        records = blocks[block_id].records
        new = map(replaced.get, records, records)
        if kept := [record for record in new if record is not None]:
            changed[block_id] = Block.of(kept)
        else:
            del changed[block_id]
    return changed


def _append(
    blocks: dict[int, Block], new: Iterable[Record]
) -> tuple[dict[int, Block], list[Record]]:
    """Return the blocks with new records at the end, and these records in their blocks."""
    last = next(reversed(blocks), None)
    room = 0 if last is None else BLOCK_BYTES - len(blocks[last].text)
    added: dict[int, list[Record]] = {}
    for record in new:
        if last is None or room <= 0:
            last, room = new_block_id(), BLOCK_BYTES
        added.setdefault(last, []).append(record.in_block(last))
        room -= len(record.raw)
    for block_id, records in added.items():
        present = blocks[block_id].records if block_id in blocks else ()
        blocks[block_id] = Block.of((*present, *records))
    return blocks, [record for records in added.values() for record in records]


def _overlay(target: dict[K, V], changes: Iterable[tuple[K, V | None]]) -> None:
    """Set the changed values in a dict, and remove those that are ``None``."""
    for key, value in changes:
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value
