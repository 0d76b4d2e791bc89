"""A cluster's store, beside a directory's and the bare clients, at very different sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .bench import MIB, Bench, Entrant, alternate
from .contenders import CLUSTER, Contender
from .images import identity, make_store, manifest_digest, name, some
from .places import Places
from .results import Figure, Outcome, Target, itself, to_floor
from .scenarios import Scenario

_TASKS = 64
_CREATED = 5_000
_LOOKUPS = 200
_LARGEST_DIRECTORY = 100_000
_ALL = (CLUSTER, "directory")


@dataclass(kw_only=True)
class ClusterBench(Bench):
    """What every scenario gets.

    :ivar places: the stores; contenders share the store of each size
    """

    places: Places

    def root(self, contender: Contender, size: int) -> str | None:
        """Return what a contender opens; ``None`` if it cannot hold ``size`` images."""
        if contender.peer != "directory":
            return str(self.places.store(size))
        if size > _LARGEST_DIRECTORY:
            return None
        path = self.scratch / f"directory-{size}"
        if not path.exists():
            make_store(path, size)
        return str(path)


Arguments = Callable[[int], dict[str, Any]]


def _on_open_stores(
    peers: tuple[str, ...], task: str, arguments: Arguments
) -> Callable[[Bench, Scenario], Iterator[Outcome]]:
    """Measure a task on stores that stay open."""

    def entrant(contender: Contender, size: int, root: str) -> Entrant:
        return Entrant(
            contender.label,
            contender,
            task,
            lambda: arguments(size),
            setup=lambda worker: worker.ask("setup", root=root),
            floor=(lambda: arguments(size)) if contender.peer == CLUSTER else None,
        )

    return partial(_at_all_sizes, peers, entrant)


def _entrant_that_opens(contender: Contender, _: int, root: str) -> Entrant:
    floor = (lambda: {"root": root}) if contender.peer == CLUSTER else None
    return Entrant(contender.label, contender, "open", lambda: {"root": root}, floor=floor)


def _at_all_sizes(
    peers: tuple[str, ...],
    entrant: Callable[[Contender, int, str], Entrant],
    bench: Bench,
    scenario: Scenario,
) -> Iterator[Outcome]:
    """Let all sizes take turns, because they are compared with each other."""
    assert isinstance(bench, ClusterBench)
    entrants = {}
    for size in bench.sizes:
        for contender in bench.pick(*peers):
            root = bench.root(contender, size)
            if root is not None:
                label = f"{contender.label}, {size}"
                entrants[label] = replace(entrant(contender, size, root), label=label)
    together = Outcome(scenario.name, 0, "s")
    alternate(bench, together, list(entrants.values()))
    for size in bench.sizes:
        of_size = {
            label.replace(end, ""): samples
            for label, samples in together.samples.items()
            if label.removesuffix(" floor").endswith(end := f", {size}")
        }
        yield Outcome(scenario.name, size, "s", of_size)


def _item(task: str, **arguments: Any) -> Callable[[Bench, Scenario], Iterator[Outcome]]:
    """Measure a task on a large item, in the smallest store."""

    def run(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
        assert isinstance(bench, ClusterBench)
        outcome = Outcome(scenario.name, bench.item_size, "s")
        entrants = []
        for contender in bench.pick(CLUSTER):
            root = str(bench.places.store(bench.sizes[0]))

            def set_up(worker: Any, root: str = root) -> None:
                worker.ask("setup", root=root)
                worker.ask("make_item", size=bench.item_size)
                worker.ask("floor", of="make_item", size=bench.item_size)

            asked = _always(**(arguments or {"size": bench.item_size}))
            entrants.append(
                Entrant(contender.label, contender, task, asked, setup=set_up, floor=asked)
            )
        alternate(bench, outcome, entrants)
        yield outcome

    return run


def _always(**arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: arguments


def _memory(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Measure the memory of an open store after many lookups, in new processes."""
    assert isinstance(bench, ClusterBench)
    for size in bench.sizes:
        outcome = Outcome(scenario.name, size, "MiB")
        for _ in range(min(bench.rounds, 3)):
            for contender in bench.pick(CLUSTER):
                root = str(bench.places.store(size))
                refs = [identity(number) for number in some(size, 20_000)]
                with bench.worker(contender) as worker:
                    reply = worker.ask("lookup_memory", root=root, refs=refs) or {}
                for what, value in reply.items():
                    outcome.add(f"{contender.label} {what}", value / MIB)
        yield outcome


def _stream_memory(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Stream one item, then sixteen at once, in new processes."""
    assert isinstance(bench, ClusterBench)
    root = str(bench.places.store(bench.sizes[0]))
    outcome = Outcome(scenario.name, bench.item_size, "MiB")
    for contender in bench.pick(CLUSTER):
        for streams in 1, 16:
            with bench.worker(contender) as worker:
                worker.ask("setup", root=root)
                size = max(bench.item_size // streams, MIB)
                reply = worker.ask("stream_memory", size=size, streams=streams) or {}
            for way, value in reply.items():
                outcome.add(f"{contender.label} {way} x{streams}", value / MIB)
    yield outcome


def _lookups(ref: Callable[[int], str]) -> Arguments:
    # Other images in each round, so that of a million images few are in a cache.
    return lambda size: {"refs": [ref(n) for n in some(size, _LOOKUPS)], "passes": 1}


def _digests(size: int) -> dict[str, Any]:
    return {"digests": [manifest_digest(n) for n in some(size, _LOOKUPS)]}


def _to_the_smallest() -> Figure:
    """Return the ratio of our median to that at the first size of the run."""
    first: dict[str, tuple[int, float]] = {}

    def figure(outcome: Outcome, label: str) -> float | None:
        median = outcome.median(label)
        if median is None:
            return None
        size, base = first.setdefault(label, (outcome.size, median))
        return None if size == outcome.size else median / base

    return figure


def _stays(limit: float) -> Target:
    return Target("x the smallest store's", limit, _to_the_smallest())


SCENARIOS = (
    Scenario(
        "open",
        "open",
        partial(_at_all_sizes, _ALL, _entrant_that_opens),
        (_stays(1.2),),
    ),
    Scenario("get-id", "get by ID", _on_open_stores(_ALL, "get", _lookups(identity)), (_stays(2),)),
    Scenario("get-name", "get by name", _on_open_stores(_ALL, "get", _lookups(name)), (_stays(2),)),
    Scenario(
        "get-prefix",
        "get by a prefix of an ID",
        _on_open_stores(_ALL, "get", _lookups(lambda n: identity(n)[:12])),
        (_stays(2),),
    ),
    Scenario(
        "by-digest",
        "find by digest",
        _on_open_stores(_ALL, "by_digest", _digests),
        (_stays(2),),
    ),
    Scenario(
        "commit",
        "one durable commit at a time",
        _on_open_stores(
            _ALL, "commit", lambda size: {"refs": [identity(n) for n in some(size, 20)]}
        ),
        (_stays(2),),
    ),
    Scenario(
        "create",
        f"new images by {_TASKS} tasks, each",
        _on_open_stores(_ALL, "create", lambda size: {"images": _CREATED, "tasks": _TASKS}),
        (Target("x floor", 2.5, to_floor()),),
    ),
    Scenario(
        "put",
        "one large item in",
        _item("put"),
        (Target("x floor", 1.25, to_floor()),),
        is_drawn=False,
    ),
    Scenario(
        "read",
        "one large item out",
        _item("read", verify=False),
        (Target("x floor", 1.25, to_floor()),),
        is_drawn=False,
    ),
    Scenario(
        "memory",
        "memory after 20,000 lookups",
        _memory,
        (Target("MiB above an open store", 64, itself(" looked")),),
        is_drawn=False,
    ),
    Scenario(
        "stream-memory",
        "memory while streaming",
        _stream_memory,
        (
            Target("MiB above the start, 1 stream in", 64, itself(" in x1")),
            Target("MiB above the start, 1 stream out", 64, itself(" out x1")),
        ),
        is_drawn=False,
    ),
)
