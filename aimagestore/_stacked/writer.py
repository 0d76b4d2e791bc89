"""Writes to the writable store of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from msgspec.structs import replace

from .._core.draft import Draft, Plan
from .._core.mutations import Mutation
from .._engine.lock import AnyGrant
from .._engine.protocol import Engine, Outcome, Removal
from .draft import AdditionalViews, StackedDraft


class StackedWriter:
    """Writes a store that has additional ones; see :class:`aimagestore._engine.protocol.Writer`.

    :param own: the writable store
    :param additional: the additional stores, in order
    """

    def __init__(self, own: Engine, additional: Sequence[Engine]) -> None:
        self._writer = own.writer
        self._items = own.items
        self._additional = additional

    def commit(self, grant: AnyGrant, mutations: Sequence[Mutation]) -> list[Outcome]:
        views = AdditionalViews(self._additional)
        stacked = [
            replace(mutation, plan=partial(self._plan, mutation, views)) for mutation in mutations
        ]
        return self._writer.commit(grant, stacked)

    def _plan(self, mutation: Mutation, additional: AdditionalViews, draft: Draft) -> Plan:
        return mutation(StackedDraft(draft, additional, self._items))

    def draft(self, grant: AnyGrant) -> Draft:
        views = AdditionalViews(self._additional)
        views.reload()  # here, where it may block
        return StackedDraft(self._writer.draft(grant), views, self._items)

    def publish(self, grant: AnyGrant, draft: Draft) -> None:
        self._writer.publish(grant, draft.own)

    def prepare(self, plan: Plan, draft: Draft) -> None:
        self._writer.prepare(plan, draft.own)

    def touch(self, grant: AnyGrant) -> None:
        self._writer.touch(grant)

    def garbage(self, *, dry_run: bool) -> Iterator[Removal]:
        return self._writer.garbage(dry_run=dry_run)
