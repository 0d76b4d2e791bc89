"""What is measured, and the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import crowd, footprint, streams
from .bench import Bench, Entrant, alternate
from .contenders import OURS, Contender
from .images import OtherWriter, identity, name, sample
from .results import Outcome, Target, to_floor, to_other, to_peer

COMMITS = {100: 10, 1_000: 10, 10_000: 5}
BURST = 256
MIB = 1024 * 1024


@dataclass(frozen=True)
class Scenario:
    """One cost.

    :ivar run: measures it at each of the run's sizes
    :ivar is_drawn: whether it depends on the number of images, and is in the picture
    """

    name: str
    title: str
    run: Callable[[Bench, Scenario], Iterator[Outcome]]
    targets: tuple[Target, ...] = ()
    is_drawn: bool = True


def _stores(
    bench: Bench, stack: ExitStack, size: int, contenders: Iterable[Contender]
) -> Iterator[tuple[Contender, Path]]:
    for contender in contenders:
        yield contender, stack.enter_context(bench.store(size))


def _all_turns(size: int, contender: Contender) -> int | None:
    return None


def _burst_turns(size: int, contender: Contender) -> int | None:
    """Return fewer turns for Go, which takes minutes for a burst: it makes each commit alone."""
    if contender.peer != "go" or size <= 1_000:
        return None
    return 1 if size <= 10_000 else 0


def _on_stores(
    peers: tuple[str, ...],
    task: str,
    arguments: Callable[[int, Contender], dict[str, Any]],
    turns: Callable[[int, Contender], int | None] = _all_turns,
) -> Callable[[Bench, Scenario], Iterator[Outcome]]:
    """Measure a task on stores that stay open, one for each contender, and our floors."""

    def entrant(size: int, contender: Contender, root: Path) -> Entrant:
        return Entrant(
            contender.label,
            contender,
            task,
            lambda: arguments(size, contender),
            setup=lambda worker: worker.ask("setup", root=str(root)),
            turns=turns(size, contender),
            floor=(lambda: arguments(size, contender)) if contender.is_ours else None,
        )

    def run(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
        for size in bench.sizes:
            outcome = Outcome(scenario.name, size, "s")
            with ExitStack() as stack:
                # A store of 100,000 images takes long to copy and to open.
                taking_part = [c for c in bench.pick(*peers) if turns(size, c) != 0]
                stores = _stores(bench, stack, size, taking_part)
                alternate(bench, outcome, [entrant(size, *store) for store in stores])
            yield outcome

    return run


def _commits(size: int, _: Contender) -> dict[str, Any]:
    return {"refs": [identity(n) for n in sample(size, COMMITS.get(size, 2))]}


def _burst(size: int, _: Contender) -> dict[str, Any]:
    return {"refs": [identity(n) for n in sample(size, BURST)]}


def _gets(ref: Callable[[int], str]) -> Callable[[int, Contender], dict[str, Any]]:
    def arguments(size: int, contender: Contender) -> dict[str, Any]:
        numbers = sample(size, 100)
        return {"refs": [ref(n) for n in numbers], "passes": 20 if contender.is_ours else 2}

    return arguments


def _opening(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    for size in bench.sizes:
        outcome = Outcome(scenario.name, size, "s")
        with bench.store(size) as root:
            arguments = {"root": str(root)}
            entrants = [
                Entrant(
                    c.label,
                    c,
                    "open",
                    partial(dict, arguments),
                    floor=partial(dict, arguments) if c.is_ours else None,
                )
                for c in bench.pick(OURS, "go")
            ]
            alternate(bench, outcome, entrants)
        yield outcome


def _next_reads(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Measure the next read after a change, and in turns with it a full load by a new store."""
    for size in bench.sizes:
        outcome = Outcome(scenario.name, size, "s")

        def note(label: str, reply: dict[str, Any], outcome: Outcome = outcome) -> None:
            if "stall" in reply:
                outcome.add(f"{label} stall", reply["stall"])

        with ExitStack() as stack:
            entrants: list[Entrant] = []
            for contender, root in _stores(bench, stack, size, bench.pick(OURS, "go")):
                entrants += _next_read(contender, root, size)
            alternate(bench, outcome, entrants, note)
        yield outcome


def _next_read(contender: Contender, root: Path, size: int) -> list[Entrant]:
    writer = OtherWriter(root)
    numbers = iter(sample(size, 1000))
    refs: list[str] = []

    def change() -> None:
        number = next(numbers)
        writer.change(number)
        refs[:] = [identity(number)]

    entrant = Entrant(
        contender.label,
        contender,
        "next_read",
        lambda: {"ref": refs[0]},
        prepare=change,
        setup=lambda worker: worker.ask("setup", root=str(root)),
        floor=(lambda: {"ref": refs[0]}) if contender.is_ours else None,
    )
    if not contender.is_ours:
        return [entrant]
    load = Entrant(
        f"{contender.label}{FULL_LOAD}",
        contender,
        "load_watched",
        lambda: {"root": str(root)},
        floor=lambda: {"root": str(root)},
    )
    return [entrant, load]


FULL_LOAD = " full load"
DURABLE = (OURS, "go", "aiosqlite", "diskcache")
LOOKUPS = (OURS, "go", "aiosqlite", "diskcache")

SCENARIOS = (
    Scenario(
        "commit",
        "one durable commit at a time",
        _on_stores(DURABLE, "commit", _commits),
        (
            Target("x floor", 1.1, to_floor(), (100,)),
            Target("x floor", 1.05, to_floor(), (1_000, 10_000, 100_000)),
            Target("x Go", 0.8, to_peer("go"), (100,)),
            Target("x Go", 0.5, to_peer("go"), (1_000, 10_000, 100_000)),
        ),
    ),
    Scenario(
        "burst",
        "256 tasks, each one durable commit",
        _on_stores(DURABLE, "burst", _burst, _burst_turns),
        (
            Target("x floor", 2, to_floor(), (100,)),
            Target("x floor", 1.6, to_floor(), (1_000,)),
            Target("x floor", 1.2, to_floor(), (10_000, 100_000)),
            Target("x Go", 0.01, to_peer("go"), (1_000, 10_000, 100_000)),
        ),
    ),
    Scenario(
        "crowd",
        "several processes, one commit after another",
        crowd.run,
        crowd.TARGETS,
        is_drawn=False,
    ),
    Scenario(
        "get-id",
        "get by ID",
        _on_stores(LOOKUPS, "get", _gets(identity)),
        (Target("x floor", 1.25, to_floor()),),
    ),
    Scenario(
        "get-name",
        "get by name",
        _on_stores(LOOKUPS, "get", _gets(name)),
        (Target("x floor", 1.25, to_floor()),),
    ),
    Scenario(
        "get-prefix",
        "get by a prefix of an ID",
        _on_stores((OURS, "go"), "get", _gets(lambda n: identity(n)[:12])),
        (Target("x floor", 2.5, to_floor()),),
    ),
    Scenario(
        "snapshot-get",
        "snapshot().get",
        _on_stores((OURS,), "snapshot_get", _gets(identity)),
        (Target("x floor", 2, to_floor()),),
    ),
    Scenario(
        "images",
        "images(), from the second call on",
        _on_stores((OURS, "go", "aiosqlite"), "images", lambda *_: {}),
        (Target("x floor", 1.5, to_floor()),),
    ),
    Scenario(
        "open",
        "open",
        _opening,
        (
            Target("x floor", 1, to_floor(), (10_000, 100_000)),
            Target("x Go", 0.7, to_peer("go"), (10_000, 100_000)),
        ),
    ),
    Scenario(
        "next-read",
        "the next read after another process changed one record",
        _next_reads,
        (
            Target("x floor", 3, to_floor(), (10_000, 100_000)),
            Target("x full load", 0.05, to_other(FULL_LOAD), (100_000,)),
            Target("x floor, stall of the next read", 2, to_floor(" stall")),
            Target("x floor, stall of a full load", 2, to_floor(f"{FULL_LOAD} stall")),
        ),
    ),
    Scenario("memory", "memory of an open store", footprint.run, footprint.TARGETS, is_drawn=False),
    Scenario("put", "one large item in", streams.run_put, streams.PUT, is_drawn=False),
    Scenario("read", "one large item out", streams.run_read, streams.READ, is_drawn=False),
    Scenario(
        "verified",
        "one large item out, verified",
        streams.run_verified,
        streams.VERIFIED,
        is_drawn=False,
    ),
    Scenario(
        "stream-memory",
        "memory while streaming",
        streams.run_memory,
        streams.MEMORY,
        is_drawn=False,
    ),
    Scenario(
        "ingest",
        "1,000 images with two small items, by 64 tasks",
        streams.run_ingest,
        streams.INGEST,
        is_drawn=False,
    ),
)
