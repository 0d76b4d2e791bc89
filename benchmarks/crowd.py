"""Several processes that commit to one store, each of them one commit after another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench import Bench
from .contenders import Contender
from .images import identity, sample
from .peer import Reply
from .results import Outcome, Target, itself

if TYPE_CHECKING:
    from .scenarios import Scenario

SIZE = 1_000
TARGETS = (
    Target("x one alone, 4 processes", 1.5, itself(" x4 slowdown")),
    Target("least share 1 ÷ of a fair one, 4 processes", 2, itself(" x4 unfairness")),
    Target("x each alone, 2 and 2 Go", 1.5, itself(" x2 go x2 slowdown")),
    Target("least share 1 ÷ of a fair one, 2 and 2 Go", 2, itself(" x2 go x2 unfairness")),
)


def run(bench: Bench, scenario: Scenario) -> Iterator[Outcome]:
    """Let one process alone, four together, and two beside two Go processes take turns."""
    outcome = Outcome(scenario.name, SIZE, "s or ratio")
    go = bench.pick("go")
    for _ in range(bench.rounds):
        alone_go = _alone(bench, go[0], outcome) if go else 0.0
        if go:
            _together(bench, outcome, "go x4", [go[0]] * 4, [alone_go] * 4)
        for ours in bench.contenders:
            if not ours.is_ours:
                continue
            alone = _alone(bench, ours, outcome)
            _together(bench, outcome, f"{ours.label} x4", [ours] * 4, [alone] * 4)
            if go:
                mixed = [ours, go[0], ours, go[0]]
                times = [alone, alone_go, alone, alone_go]
                _together(bench, outcome, f"{ours.label} x2 go x2", mixed, times)
    yield outcome


def _alone(bench: Bench, contender: Contender, outcome: Outcome) -> float:
    reply = _commit(bench, [contender])[0]
    each = float(reply["seconds"] / max(reply["commits"], 1))
    outcome.add(f"{contender.label} alone", each)
    return each


def _together(
    bench: Bench,
    outcome: Outcome,
    label: str,
    contenders: Sequence[Contender],
    alone: Sequence[float],
) -> None:
    """Compare the time with that of the same commits made one after the other by each alone."""
    replies = _commit(bench, contenders)
    commits = [reply["commits"] for reply in replies]
    together = max(reply["seconds"] for reply in replies)
    one_by_one = sum(n * each for n, each in zip(commits, alone, strict=True))
    outcome.add(f"{label} each", together / max(sum(commits), 1))
    outcome.add(f"{label} slowdown", together / max(one_by_one, 1e-9))
    outcome.add(f"{label} unfairness", sum(commits) / len(commits) / max(min(commits), 1e-9))


def _commit(bench: Bench, contenders: Sequence[Contender]) -> list[Reply]:
    with bench.store(SIZE) as root, ExitStack() as stack:
        workers = [stack.enter_context(bench.worker(contender)) for contender in contenders]
        for worker in workers:
            worker.ask("setup", root=str(root))
            worker.ask("commit", refs=[identity(0)])
        os.sync()
        for worker in workers:
            worker.send("commit_for", **_request(bench, root))
        replies = [worker.receive() for worker in workers]
    return [reply for reply in replies if reply is not None]


def _request(bench: Bench, _: Path) -> dict[str, Any]:
    return {"duration": bench.duration, "refs": [identity(n) for n in sample(SIZE, 50)]}
