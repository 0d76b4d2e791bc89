"""One run: its directory and sizes, and the turns of its contenders."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contenders import Contender, Worker
from .images import copy_store, make_store
from .peer import Reply
from .results import Outcome

MIB = 1024 * 1024


@dataclass
class Bench:
    """What every scenario gets.

    :ivar sizes: numbers of images
    :ivar rounds: the number of turns of each contender
    :ivar item_size: bytes of the large item
    :ivar duration: seconds of each round in which several processes commit
    :ivar warms_up: whether each contender has one turn that does not count
    """

    scratch: Path
    contenders: list[Contender]
    sizes: list[int]
    rounds: int
    item_size: int = 1024 * MIB
    duration: float = 3.0
    ingest_images: int = 1000
    warms_up: bool = True
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _seeds: dict[int, Path] = field(default_factory=dict)

    @property
    def ours(self) -> list[str]:
        """The labels of the library under test."""
        return [contender.label for contender in self.contenders if contender.is_ours]

    def new_path(self) -> Path:
        """Return a path that is not used yet."""
        return self.scratch / f"store-{next(self._numbers)}"

    @contextmanager
    def store(self, size: int) -> Iterator[Path]:
        """Yield a graph root with ``size`` images for the block."""
        if size not in self._seeds:
            make_store(self.scratch / f"seed-{size}", size)
            self._seeds[size] = self.scratch / f"seed-{size}"
        path = copy_store(self._seeds[size], self.new_path())
        try:
            yield path
        finally:
            shutil.rmtree(path)

    @contextmanager
    def worker(self, contender: Contender) -> Iterator[Worker]:
        """Run a contender's process for the block."""
        worker = Worker(contender, self.scratch)
        try:
            yield worker
        finally:
            worker.close()

    def pick(self, *peers: str) -> list[Contender]:
        """Return the contenders of these peers."""
        return [contender for contender in self.contenders if contender.peer in peers]


@dataclass(frozen=True)
class Entrant:
    """A contender in one scenario.

    :ivar arguments: returns the request for each round
    :ivar prepare: called before each round, and not measured
    :ivar turns: in how many rounds it takes part, without a warm-up; in all if ``None``
    :ivar floor: returns the request for its floor, which runs in the same process right afterwards;
        ``None`` if it has none
    """

    label: str
    contender: Contender
    task: str
    arguments: Callable[[], dict[str, Any]]
    prepare: Callable[[], object] = lambda: None
    setup: Callable[[Worker], object] = lambda worker: None
    turns: int | None = None
    floor: Callable[[], dict[str, Any]] | None = None


def floor_of(label: str) -> str:
    """Return the label of a contender's floor."""
    return f"{label} floor"


def alternate(
    bench: Bench,
    outcome: Outcome,
    entrants: list[Entrant],
    note: Callable[[str, Reply], object] = lambda label, reply: None,
) -> None:
    """Let the entrants take turns, A B C A B C …, each in a process of its own."""
    with ExitStack() as stack:
        ready = [
            (entrant, stack.enter_context(bench.worker(entrant.contender))) for entrant in entrants
        ]
        for entrant, worker in ready:
            entrant.setup(worker)
        for number in range(-1 if bench.warms_up else 0, bench.rounds):
            for entrant, worker in tuple(ready):
                if entrant.turns is not None and not 0 <= number < entrant.turns:
                    continue
                entrant.prepare()
                os.sync()
                reply = worker.ask(entrant.task, **entrant.arguments())
                if reply is None:
                    ready.remove((entrant, worker))
                elif number >= 0:
                    outcome.add(entrant.label, *reply["samples"])
                    note(entrant.label, reply)
                if reply is not None and entrant.floor is not None:
                    os.sync()
                    reply = worker.ask("floor", of=entrant.task, **entrant.floor())
                    if reply is not None and number >= 0:
                        outcome.add(floor_of(entrant.label), *reply["samples"])
                        note(floor_of(entrant.label), reply)
