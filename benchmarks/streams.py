"""Big data in and out: its speed, its memory, and many small items."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench import MIB, Bench, Entrant, alternate
from .contenders import OURS, Contender, Worker
from .images import image_store, make_store
from .results import Outcome, Target, absolute, ratio_to

if TYPE_CHECKING:
    from .scenarios import Scenario

PUT = (
    Target("x hash, write, fsync in one thread", 1, ratio_to("raw")),
    Target("x hash, write, fsync in one thread (aim)", 0.8, ratio_to("raw")),
)
READ = (Target("x raw read", 2.2, ratio_to("raw")),)
VERIFIED = (Target("x read and hash in one thread", 1.15, ratio_to("raw")),)
MEMORY = (
    Target("MiB above the start, 1 stream in", 8, absolute(" in x1")),
    Target("MiB above the start, 1 stream out", 8, absolute(" out x1")),
    Target("MiB above the start, 16 streams in", 64, absolute(" in x16")),
    Target("MiB above the start, 16 streams out", 64, absolute(" out x16")),
)
INGEST = (Target("x the same writes in one thread", 1.5, ratio_to("raw")),)

_PEERS = (OURS, "raw", "go", "aiosqlite")
_IMAGES = 100


def run_put(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Stream an item in."""
    yield _alternate(bench, scenario, "put", {"size": bench.item_size}, _set_up)


def run_read(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Stream an item out of the page cache."""
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
    )


def run_memory(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Stream one item, then sixteen at once, in fresh processes."""
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
    """Make new images in new stores; the raw limit saves as often as we did just before."""
    images = bench.ingest_images
    outcome = Outcome(scenario.name, images, "s")
    seed = bench.new_path()
    make_store(seed, images)
    state = {"saves": 1}

    def note(label: str, reply: dict[str, Any]) -> None:
        if "saves" in reply:
            state["saves"] = reply["saves"]
            outcome.notes[f"{label} saves"] = reply["saves"]

    entrants = []
    for contender in bench.pick(*_PEERS):
        arguments: Callable[[], dict[str, Any]]
        if contender.peer == "raw":
            text = str(image_store(seed) / "images.json")
            arguments = _ingest(bench, {"images": images, "text": text}, state)
        else:
            arguments = _ingest(bench, {"images": images, "tasks": 64}, {})
        entrants.append(Entrant(contender.label, contender, "ingest", arguments))
    alternate(bench, outcome, entrants, note)
    shutil.rmtree(seed)
    yield outcome


def _ingest(
    bench: Bench, fixed: dict[str, Any], changing: dict[str, Any]
) -> Callable[[], dict[str, Any]]:
    return lambda: {**fixed, **changing, "root": str(bench.new_path())}
