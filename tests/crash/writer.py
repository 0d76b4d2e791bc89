"""A process that changes a store until it is killed, and prints a line after each change."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import anyio

from aimagestore import ImageStore

from .model import Change
from .state import ONE, TWO

KEPT = 5


def _id_of(number: int) -> str:
    return f"{number:064d}"


def history() -> Iterator[Change]:
    """Yield the same changes each time, so that their number determines what a store holds."""
    yield Change("create", (ONE, ["a"], "", {"manifest": b"0"}))
    yield Change("create", (TWO, ["b"], "", {}))
    number = 0
    while True:
        number += 1
        image_id = _id_of(number)
        content = str(number).encode() * 100
        yield Change("create", (image_id, [f"name{number}"], "x", {"manifest": content}))
        yield Change("set_big_data", (ONE, "manifest", content))
        yield Change("set_names", (TWO, [f"b{number}", f"name{number}"]))
        yield Change("set_big_data", (image_id, "sha256:config", content * 500))
        yield Change("set_metadata", (TWO, str(number)))
        if number > KEPT:
            yield Change("delete", (_id_of(number - KEPT),))


async def main() -> None:
    async with ImageStore(sys.argv[1]) as store:
        for change in history():
            await change.call(store)
            print(flush=True)


if __name__ == "__main__":
    anyio.run(main)
