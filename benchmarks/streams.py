"""Scenarios of big data: the speed and memory of streams, and many small items."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench import MIB, Bench, Entrant, alternate
from .contenders import OURS, Contender, Worker
from .images import image_store, make_store
from .results import Outcome, Target, itself, to_floor

if TYPE_CHECKING:
    from .scenarios import Scenario

PUT = (Target("x floor: hash, write, fsync in one thread", 0.7, to_floor()),)
READ = (Target("x floor: read", 1.3, to_floor()),)
VERIFIED = (Target("x floor: read and hash in one thread", 1.02, to_floor()),)
MEMORY = (
    Target("MiB above the start, 1 stream in", 8, itself(" in x1")),
    Target("MiB above the start, 1 stream out", 8, itself(" out x1")),
    Target("MiB above the start, 16 streams in", 64, itself(" in x16")),
    Target("MiB above the start, 16 streams out", 64, itself(" out x16")),
)
INGEST = (Target("x floor: the same writes in one thread", 0.8, to_floor()),)

_PEERS = (OURS, "go", "aiosqlite")
_IMAGES = 100


def run_put(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Stream an item in."""
    yield _alternate(bench, scenario, "put", {"size": bench.item_size}, _set_up)


def run_read(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Stream an item out, from the page cache."""
    yield _alternate(bench, scenario, "read", {"verify": False}, _with_item(bench.item_size))


def run_verified(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Stream an item out, and compare its digest."""
    yield _alternate(bench, scenario, "read", {"verify": True}, _with_item(bench.item_size))


SetUp = Callable[[Worker, Path], object]


def _set_up(worker: Worker, root: Path) -> None:
    worker.ask("setup", root=str(root))


def _with_item(size: int) -> SetUp:
    def set_up(worker: Worker, root: Path) -> None:
        _set_up(worker, root)
        worker.ask("make_item", size=size)
        worker.ask("floor", of="make_item", size=size)

    return set_up


def _alternate(
    bench: Bench, scenario: Scenario, task: str, arguments: dict[str, Any], set_up: SetUp
) -> Outcome:
    outcome = Outcome(scenario.name, bench.item_size, "s")
    with ExitStack() as stack:
        entrants = [
            _entrant(contender, stack.enter_context(bench.store(_IMAGES)), task, arguments, set_up)
            for contender in bench.pick(*_PEERS)
        ]
        alternate(bench, outcome, entrants)
    return outcome


def _entrant(
    contender: Contender, root: Path, task: str, arguments: dict[str, Any], set_up: SetUp
) -> Entrant:
    return Entrant(
        contender.label,
        contender,
        task,
        lambda: arguments,
        setup=lambda worker: set_up(worker, root),
        floor=(lambda: arguments) if contender.is_ours else None,
    )


def run_memory(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Stream one item, then sixteen at once, in new processes."""
    outcome = Outcome(scenario.name, bench.item_size, "MiB")
    for _ in range(min(bench.rounds, 3)):
        for contender in bench.pick(OURS):
            for streams in 1, 16:
                _measure_memory(bench, contender, streams, outcome)
    yield outcome


def _measure_memory(bench: Bench, contender: Contender, streams: int, outcome: Outcome) -> None:
    with bench.store(_IMAGES) as root, bench.worker(contender) as worker:
        _set_up(worker, root)
        size = max(bench.item_size // 2 // streams, MIB)
        reply = worker.ask("stream_memory", size=size, streams=streams)
        for way, value in (reply or {}).items():
            outcome.add(f"{contender.label} {way} x{streams}", value / MIB)


def run_ingest(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Create images in new stores; the floor saves the index as often as the library just did."""
    images = bench.ingest_images
    outcome = Outcome(scenario.name, images, "s")
    seed = bench.new_path()
    make_store(seed, images)
    saves = {}
    text = str(image_store(seed) / "images.json")

    def note(label: str, reply: dict[str, Any]) -> None:
        if "saves" in reply:
            saves[label] = reply["saves"]
            outcome.notes[f"{label} saves"] = reply["saves"]

    def arguments() -> dict[str, Any]:
        return {"images": images, "tasks": 64, "root": str(bench.new_path())}

    def floor(label: str) -> Callable[[], dict[str, Any]]:
        return lambda: {
            "images": images,
            "saves": saves.get(label, 1),
            "text": text,
            "root": str(bench.new_path()),
        }

    entrants = [
        Entrant(
            contender.label,
            contender,
            "ingest",
            arguments,
            floor=floor(contender.label) if contender.is_ours else None,
        )
        for contender in bench.pick(*_PEERS)
    ]
    alternate(bench, outcome, entrants, note)
    shutil.rmtree(seed)
    yield outcome
