"""The memory of a process that has a store open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .bench import Bench
from .contenders import OURS, Contender
from .images import OtherWriter, identity, image_store
from .results import Outcome, Target, itself

if TYPE_CHECKING:
    from .scenarios import Scenario

TARGETS = (
    Target("x images.json, opened", 1.2, itself(" opened"), (100_000,)),
    Target("x images.json, indexed", 1.5, itself(" indexed"), (100_000,)),
    Target("x images.json, all looked at", 3, itself(" looked"), (100_000,)),
)


def run(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Measure the memory of each contender in new processes, as multiples of images.json's size."""
    for size in bench.sizes:
        outcome = Outcome(scenario.name, size, "x images.json")
        for _ in range(min(bench.rounds, 3)):
            for contender in bench.pick(OURS, "go"):
                _measure(bench, contender, size, outcome)
        yield outcome


def _measure(bench: Bench, contender: Contender, size: int, outcome: Outcome) -> None:
    with ExitStack() as stack:
        root = stack.enter_context(bench.store(size))
        file_size = (image_store(root) / "images.json").stat().st_size
        outcome.notes["bytes of images.json"] = file_size
        worker = stack.enter_context(bench.worker(contender))
        found = worker.ask("memory", root=str(root)) or {}
        if contender.is_ours:
            other = stack.enter_context(bench.worker(contender))
            peaks = other.ask("memory_peaks_start", root=str(root)) or {}
            OtherWriter(root).change(size // 2)
            peaks |= other.ask("memory_peaks_reload", ref=identity(size // 2)) or {}
            found |= {f"peak {what}": n for what, n in peaks.items() if what != "ref"}
    for what, value in found.items():
        if what == "start":
            outcome.notes[f"{contender.label} bytes at start"] = value
        else:
            outcome.add(f"{contender.label} {what}", value / file_size)
