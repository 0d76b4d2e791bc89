"""A draft that sees additional stores, and copies their images before it changes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, partial

import msgspec

from .._core.content import Copies
from .._core.draft import Draft, Plan
from .._core.mutations import check_undamaged
from .._core.record import Record, RecordDraft
from .._core.view import View, without_hidden_names
from .._engine.protocol import CopyNeededError, Engine, Items
from ..errors import StoreReadOnlyError
from .copying import ItemCopies
from .reading import reading
from .views import EngineView, ReadOnlyCatalog, ReadOnlyView, Stack


class AdditionalViews:
    """The additional stores, as one commit or one transaction sees them.

    :param engines: the additional stores, in order
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines

    @cached_property
    def views(self) -> Sequence[View]:
        """The views of the stores, in order. Blocks when they are first read."""
        return [_view_of(engine) for engine in self._engines]

    def reload(self) -> None:
        """Read the present views. Blocks."""
        self.views = [_view_of(engine) for engine in self._engines]

    def find(self, image_id: str) -> tuple[Engine, Record] | None:
        """Return the first of these stores that has an image, and the record there."""
        for engine, view in zip(self._engines, self.views, strict=True):
            record = view.record_of(image_id)
            if record is not None:
                return engine, record
        return None


def _view_of(engine: Engine) -> View:
    if not engine.reader.keeps_catalog:
        return ReadOnlyView(EngineView(engine))
    with reading(engine):
        return ReadOnlyCatalog(engine.reader.snapshot())


class StackedDraft(Stack, Draft):
    """A draft of the writable store that looks up in the additional stores as well.

    :param own: the draft of the writable store
    :param additional: the additional stores
    :param items: copies items into the writable store
    """

    __slots__ = ("_additional", "_items", "_own")

    def __init__(self, own: Draft, additional: AdditionalViews, items: Items) -> None:
        super().__init__(own.base)
        self.files = own.files
        self._own = own
        self._additional = additional
        self._items = items

    @property
    def views(self) -> Sequence[View]:
        return [self._own, *self._additional.views]

    @property
    def own(self) -> Draft:
        return self._own

    def record_of(self, image_id: str) -> Record | None:
        # Most changes are of the store's own images: then the others need not be read.
        return self._own.record_of(image_id) or super().record_of(image_id)

    def owner_of(self, name: str) -> str | None:
        return self._own.owner_of(name) or super().owner_of(name)

    def is_damaged(self, image_id: str) -> bool:
        return self._own.is_damaged(image_id)

    def prefetch(self, refs: Iterable[str], names: Iterable[str]) -> None:
        self._own.prefetch(refs, names)

    def apply(self, plan: Plan) -> None:
        self._own.apply(plan)

    def engine_of(self, image_id: str, own: Engine) -> Engine:
        """Return the store in which an image is seen.

        :param own: the writable store
        """
        if self._own.record_of(image_id) is not None:
            return own
        found = self._additional.find(image_id)
        return own if found is None else found[0]

    def record_to_copy(self, image_id: str) -> Record | None:
        if self._own.record_of(image_id) is not None:
            return None
        found = self._additional.find(image_id)
        if found is None:
            return None
        edited = RecordDraft(without_hidden_names(self, found[1]))
        edited.set("mapped-layers", ())  # they belong to the layers of the additional store
        return edited.finish()

    def completed(self, plan: Plan, copies: Copies | None) -> Plan:
        for image_id in plan.deleted:
            self._check_own(image_id)
        copied = [r for r in plan.updated if self._own.record_of(r.id) is None]
        for record in copied:
            check_undamaged(self._own, record.id)
            updated = tuple(other for other in plan.updated if other is not record)
            plan = msgspec.structs.replace(plan, created=record, is_copied=True, updated=updated)
        return self._with_items(plan, copies)

    def _check_own(self, image_id: str) -> None:
        if self._own.record_of(image_id) is not None:
            return
        found = self._additional.find(image_id)
        if found is not None:
            name = found[0].name
            raise StoreReadOnlyError(
                f"image {image_id} is in the additional store {name}, which this store only "
                "reads: delete it there",
                id=image_id,
                path=name,
            )

    def _with_items(self, plan: Plan, copies: Copies | None) -> Plan:
        """Return the plan with the content of those items of a new record that are copies.

        :raises CopyNeededError: when there are no copies of them, or copies of another version
        """
        record = plan.created
        if record is None:
            return plan
        keys = [key for key in record.image.big_data_names if (record.id, key) not in plan.files]
        if not keys:
            return plan
        found = self._additional.find(record.id)
        assert found is not None, "an item without given content is one of an additional store"
        engine, original = found
        contents = None if copies is None else copies.contents_of(original, keys)
        if contents is None:
            if copies is not None:  # of another version: copy the present one
                self._additional.reload()
                engine, original = self._additional.find(record.id) or found
            raise CopyNeededError(partial(ItemCopies, engine, original, keys, self._items))
        files = {(record.id, key): content for key, content in contents.items()}
        return msgspec.structs.replace(plan, files={**plan.files, **files})
