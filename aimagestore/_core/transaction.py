"""Several changes that happen together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from ..errors import StoreClosedError
from . import mutations
from .content import Content
from .draft import Draft, Plan
from .image import Image
from .mutations import Mutation


class Transaction:
    """Reads and changes on the store while its lock is held; saved once, when the block ends.

    Reads see the transaction's own mutations. Every method is plain: nothing here waits. An error
    that one of them raises changes nothing, and may be caught; one that leaves the block undoes
    all of them.
    """

    def __init__(self, draft: Draft, contents: Callable[[object], Content]) -> None:
        self._draft: Draft | None = draft
        self._contents = contents

    @property
    def _view(self) -> Draft:
        if self._draft is None:
            raise StoreClosedError("the transaction is over: begin another one")
        return self._draft

    def _change(self, mutation: Mutation) -> Image:
        plan = self._apply(mutation)
        return self._view.get(plan.image_id)

    def _apply(self, mutation: Mutation) -> Plan:
        draft = self._view
        draft.prefetch(mutation.refs, mutation.names)
        plan = mutation(draft)
        draft.apply(plan)
        return plan

    def _end(self) -> None:
        self._draft = None

    def get(self, ref: str) -> Image:
        """See :meth:`ImageStore.get`."""
        return self._view.get(ref)

    def lookup(self, ref: str) -> str:
        """See :meth:`ImageStore.lookup`."""
        return self._view.lookup(ref)

    def exists(self, ref: str) -> bool:
        """See :meth:`ImageStore.exists`."""
        return ref in self._view

    def images(self) -> list[Image]:
        """See :meth:`ImageStore.images`."""
        return list(self._view)

    def by_digest(self, digest: str) -> list[Image]:
        """See :meth:`ImageStore.by_digest`."""
        return self._view.by_digest(digest)

    def create(
        self,
        id: str | None = None,
        *,
        names: Iterable[str] = (),
        layer: str = "",
        metadata: str = "",
        created: datetime | None = None,
        digest: str | None = None,
        flags: Mapping[str, Any] | None = None,
        big_data: Mapping[str, Any] | None = None,
    ) -> Image:
        """See :meth:`ImageStore.create`."""
        contents = {key: self._contents(data) for key, data in (big_data or {}).items()}
        mutation = mutations.create(
            id,
            names=names,
            top_layer=layer,
            metadata=metadata,
            created=created,
            digest=digest,
            flags=flags,
            big_data=contents,
        )
        return self._change(mutation)

    def delete(self, ref: str) -> None:
        """See :meth:`ImageStore.delete`."""
        self._apply(mutations.delete(ref))

    def set_names(self, ref: str, names: Iterable[str]) -> Image:
        """See :meth:`ImageStore.set_names`."""
        return self._change(mutations.set_names(ref, names))

    def add_names(self, ref: str, names: Iterable[str]) -> Image:
        """See :meth:`ImageStore.add_names`."""
        return self._change(mutations.add_names(ref, names))

    def remove_names(self, ref: str, names: Iterable[str]) -> Image:
        """See :meth:`ImageStore.remove_names`."""
        return self._change(mutations.remove_names(ref, names))

    def set_metadata(self, ref: str, metadata: str) -> Image:
        """See :meth:`ImageStore.set_metadata`."""
        return self._change(mutations.set_metadata(ref, metadata))

    def set_flag(self, ref: str, flag: str, value: Any) -> Image:
        """See :meth:`ImageStore.set_flag`."""
        return self._change(mutations.set_flag(ref, flag, value))

    def clear_flag(self, ref: str, flag: str) -> Image:
        """See :meth:`ImageStore.clear_flag`."""
        return self._change(mutations.clear_flag(ref, flag))

    def set_big_data(self, ref: str, key: str, data: Any) -> Image:
        """Give the image an item: bytes, or what :meth:`ImageStore.stage` holds.

        Bytes stay in memory until the transaction ends; see :meth:`ImageStore.set_big_data`.
        """
        return self._change(mutations.set_big_data(ref, key, self._contents(data)))
