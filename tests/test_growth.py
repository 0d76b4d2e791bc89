"""No cost is quadratic: eight times as much takes about eight times as long.

A linear cost has the ratio 8 and a quadratic one 64, on any machine; the limit is between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from aimagestore._core import mutations
from aimagestore._core.catalog import Catalog, Indexes
from aimagestore._core.content import InlineContent
from aimagestore._core.draft import Draft
from aimagestore._core.record import Record
from aimagestore._format.block_catalog import EMPTY, apply_draft

FEW = 1000
MANY = 8 * FEW
RATIO_MAX = 24
TRIES = 5
"""How often a ratio is measured if it is too large: other programs disturb a measurement."""

DIGEST = f"sha256:{'a' * 64}"


def names(number: int) -> list[str]:
    return [f"example.com/{n}:1" for n in range(number)]


def items(number: int) -> dict[str, InlineContent]:
    content = InlineContent.of(b"{}")
    return {f"key{n}": content for n in range(number)}


def change(draft: Draft, *changes: mutations.Mutation) -> Draft:
    for each in changes:
        draft.apply(each(draft))
    return draft


def records(number: int) -> list[Record]:
    """Return records that have one digest."""
    draft = Draft(EMPTY)
    for n in range(number):
        change(draft, mutations.create(f"i{n}", digest=DIGEST))
    return list(draft.records())


def with_names(number: int) -> Draft:
    return change(Draft(EMPTY), mutations.create("one", names=names(number)))


def discard_all(indexes: Indexes, found: list[Record]) -> None:
    for record in found:
        indexes.discard(record)


def indexing(number: int) -> Callable[[], object]:
    found = records(number)
    return lambda: Catalog.of(found)


def discarding(number: int) -> Callable[[], object]:
    found = records(number)
    indexes = Catalog.of(found).indexes
    return lambda: discard_all(indexes.copy(), found)


def deleting(number: int) -> Callable[[], object]:
    draft = Draft(EMPTY)
    for n in range(number):
        change(draft, mutations.create(f"i{n}").with_items(items(1)))
    return lambda: change(draft, *(mutations.delete(f"i{n}") for n in range(number)))


def committing(number: int) -> Callable[[], object]:
    draft = Draft(EMPTY)
    for record in records(number):
        change(draft, mutations.replace(record, {}))
    return lambda: apply_draft(EMPTY, draft)


MEASURED: dict[str, Callable[[int], Callable[[], object]]] = {
    "names of a new image": lambda n: lambda: with_names(n),
    "a name more": lambda n: (
        lambda: change(with_names(n), mutations.add_names("one", ["example.com/new:1"]))
    ),
    "names removed": lambda n: (
        lambda: change(with_names(n), mutations.remove_names("one", names(n)))
    ),
    "names that move": lambda n: (
        lambda: change(with_names(n), mutations.create("two"), mutations.add_names("two", names(n)))
    ),
    "items": lambda n: lambda: mutations.create("one").with_items(items(n)),
    "flags": lambda n: lambda: mutations.create("one", flags=dict.fromkeys(names(n), 1)),
    "images of one digest": indexing,
    "images of one digest that go": discarding,
    "a commit of images of one digest": committing,
    "images with items that go": deleting,
}


@pytest.mark.parametrize("name", MEASURED)
def test_eight_times_as_much_takes_about_eight_times_as_long(name: str) -> None:
    assert any(ratio(MEASURED[name]) < RATIO_MAX for _ in range(TRIES))


def ratio(measured: Callable[[int], Callable[[], object]]) -> float:
    """Return how much longer the work takes with many of a thing than with few."""
    return seconds(measured(MANY)) / seconds(measured(FEW))


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes, in seconds of processor time."""
    start = time.thread_time()
    work()
    return time.thread_time() - start
