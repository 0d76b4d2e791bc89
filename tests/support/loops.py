"""The event loops that tests run on, and which cases a usual run tries."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pytest
from _pytest.mark import ParameterSet

NIGHTLY = bool(os.environ.get("AIMAGESTORE_NIGHTLY"))
"""Whether every case is tried on every loop, however long that takes."""

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
"""The backend and options of anyio for each loop."""

EVERY_LOOP = [pytest.param(backend, id=name) for name, backend in OPTIONS.items()]
ASYNCIO_LOOPS = EVERY_LOOP[:2]
# uvloop is another asyncio: it matters where the library deals with the loop itself, which the
# tests of cancellation try on all three.
USUAL_LOOPS = EVERY_LOOP if NIGHTLY else [EVERY_LOOP[0], EVERY_LOOP[2]]

EXTENTS = [pytest.param(False, id="part"), pytest.param(True, id="all", marks=pytest.mark.thorough)]
"""Whether a test tries all that it can, which a usual run does not."""

T = TypeVar("T")


def one_of_each(cases: Iterable[T], kind: Callable[[T], object], name: str) -> list[T]:
    """Return one case of each kind, chosen by the name of the test.

    The choice is fixed for a name. Different tests try different cases of a kind.
    """
    kinds: dict[object, list[T]] = {}
    for case in cases:
        kinds.setdefault(kind(case), []).append(case)
    return [
        alike[zlib.crc32(f"{name} {each}".encode()) % len(alike)] for each, alike in kinds.items()
    ]


def sample(
    cases: Iterable[Any],
    *,
    every: int,
    first: int = 0,
    kind: Callable[[Any], object] = lambda case: None,
) -> list[ParameterSet]:
    """Return parameters of a test, with those marked that a usual run leaves out.

    :param every: a usual run tries one in this number of the cases of each kind
    :param first: the position of the first of them
    :param kind: returns the kind of a case
    """
    numbers: Counter[object] = Counter()
    found = []
    for case in cases:
        parameters = case if isinstance(case, ParameterSet) else pytest.param(case)
        of_kind = kind(parameters.values[0])
        marks = [] if numbers[of_kind] % every == first else [pytest.mark.thorough]
        numbers[of_kind] += 1
        found.append(
            pytest.param(*parameters.values, marks=[*parameters.marks, *marks], id=parameters.id)
        )
    return found


def pairs(cases: Mapping[str, Any], ways: Mapping[str, Any]) -> list[ParameterSet]:
    """Return each case in each way, as two parameters; a usual run takes one way by turns."""
    return [
        pytest.param(
            case,
            way,
            id=f"{name}-{way_name}",
            marks=() if (number + turn) % len(ways) == 0 else pytest.mark.thorough,
        )
        for number, (name, case) in enumerate(cases.items())
        for turn, (way_name, way) in enumerate(ways.items())
    ]


def depends_on_the_loop(item: pytest.Function) -> bool:
    """Return whether a test shows something on each loop that it does not show on another.

    Only the async shell depends on the loop, and tests of cancellation try all of it on all loops.
    """
    return "cancellation" in item.path.parts


def second_runs(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the repetitions on further loops of tests for which one loop is enough."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        if "anyio_backend" in item.callspec.params and not depends_on_the_loop(item):
            name, _, parameters = item.nodeid.partition("[")
            words = parameters.removesuffix("]").split("-")
            loop = next((word for word in words if word in OPTIONS), None)
            if loop is not None:
                words.remove(loop)
                groups.setdefault(f"{name} {words}", []).append(item)
    found = []
    for name, group in groups.items():
        # Each test always runs on the same loop, half of them on each.
        group.pop(zlib.crc32(name.encode()) % len(group))
        found += group
    return found


def repeats_on_stacked_stores(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return two thirds of the contract's tests on a store with additional stores.

    Most of them repeat those on a directory, because additional stores have tests of their own.
    """
    return [
        item
        for item in items
        if isinstance(item, pytest.Function)
        and "contract" in item.path.parts
        and hasattr(item, "callspec")
        and item.callspec.params.get("where") == "stacked"
        and zlib.crc32(item.originalname.encode()) % 3
    ]
