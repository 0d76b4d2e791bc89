"""What is measured, and what each figure has to be."""

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
from .results import Outcome, Target, absolute, ratio_to

COMMITS = {100: 10, 1_000: 10, 10_000: 5}
BURST = 256
MILLISECOND = 1e-3
MICROSECOND = 1e-6
MIB = 1024 * 1024


@dataclass(frozen=True)
class Scenario:
    """A question, and how it is answered.

    :ivar run: measures it at each of the run's sizes
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
    """Go takes minutes for what is one commit elsewhere."""
    if contender.peer != "go" or size <= 1_000:
        return None
    return 1 if size <= 10_000 else 0


def _on_stores(
    peers: tuple[str, ...],
    task: str,
    arguments: Callable[[int, Contender], dict[str, Any]],
    turns: Callable[[int, Contender], int | None] = _all_turns,
) -> Callable[[Bench, Scenario], Iterator[Outcome]]:
    """Measure a task on stores that stay open, one for each contender."""

    def entrant(size: int, contender: Contender, root: Path) -> Entrant:
        return Entrant(
            contender.label,
            contender,
            task,
            lambda: arguments(size, contender),
            setup=lambda worker: worker.ask("setup", root=str(root)),
            turns=turns(size, contender),
        )

    def run(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
        for size in bench.sizes:
            outcome = Outcome(scenario.name, size, "s")
            with ExitStack() as stack:
                stores = _stores(bench, stack, size, bench.pick(*peers))
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
                Entrant(c.label, c, "open", partial(dict, arguments))
                for c in bench.pick(OURS, "go", "raw")
            ]
            alternate(bench, outcome, entrants)
        yield outcome


def _next_reads(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """The next read after a change, and beside it a full load by a store that is not open yet."""
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
    )
    if not contender.is_ours:
        return [entrant]
    load = Entrant(
        f"{contender.label} full load", contender, "open_watched", lambda: {"root": str(root)}
    )
    return [entrant, load]


def _burst_over_raw(outcome: Outcome, label: str) -> float | None:
    """How long the burst took by the raw limit and 30 µs a task."""
    ours, raw = outcome.median(label), outcome.median("raw")
    return ours / (raw + BURST * 30 * MICROSECOND) if ours is not None and raw else None


def _by_full_load(outcome: Outcome, label: str) -> float | None:
    return ratio_to(f"{label} full load")(outcome, label)


DURABLE = (OURS, "raw", "go", "aiosqlite", "diskcache")
LOOKUPS = (OURS, "go", "aiosqlite", "diskcache")

SCENARIOS = (
    Scenario(
        "commit",
        "one durable commit at a time",
        _on_stores(DURABLE, "commit", _commits),
        (
            Target("x raw limit", 1.5, ratio_to("raw"), (1_000,)),
            Target("x raw limit", 1.4, ratio_to("raw"), (10_000, 100_000)),
            Target("x Go", 0.25, ratio_to("go"), (1_000, 10_000, 100_000)),
        ),
    ),
    Scenario(
        "burst",
        "256 tasks, each one durable commit",
        _on_stores(DURABLE, "burst", _burst, _burst_turns),
        (
            Target("x (raw limit + 30 µs a task)", 1, _burst_over_raw, (1_000,)),
            Target("x raw limit", 2.5, ratio_to("raw"), (10_000,)),
            Target("x Go", 0.01, ratio_to("go"), (1_000, 10_000, 100_000)),
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
        (Target("s", 2 * MICROSECOND, absolute()),),
    ),
    Scenario(
        "get-name",
        "get by name",
        _on_stores(LOOKUPS, "get", _gets(name)),
        (Target("s", 2 * MICROSECOND, absolute()),),
    ),
    Scenario(
        "get-prefix",
        "get by a prefix of an ID",
        _on_stores((OURS, "go"), "get", _gets(lambda n: identity(n)[:12])),
        (Target("s", 4 * MICROSECOND, absolute()),),
    ),
    Scenario(
        "snapshot-get",
        "snapshot().get",
        _on_stores((OURS,), "snapshot_get", _gets(identity)),
        (Target("s", 0.2 * MICROSECOND, absolute()),),
    ),
    Scenario(
        "images",
        "images(), from the second call on",
        _on_stores((OURS, "go", "aiosqlite"), "images", lambda *_: {}),
        (Target("s", 0.1 * MILLISECOND, absolute(), (10_000,)),),
    ),
    Scenario("open", "open", _opening, (Target("x Go", 1, ratio_to("go")),)),
    Scenario(
        "next-read",
        "the next read after another process changed one record",
        _next_reads,
        (
            Target("x full load", 1 / 3, _by_full_load, (10_000, 100_000)),
            Target("s stall, next read", 15 * MILLISECOND, absolute(" stall")),
            Target("s stall, full load", 15 * MILLISECOND, absolute(" full load stall")),
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
