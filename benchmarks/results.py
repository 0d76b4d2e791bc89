"""What was measured, and what it says of the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

Series = dict[str, list[float]]
"""Samples by what they are of."""


@dataclass
class Outcome:
    """One scenario at one size.

    :ivar samples: label to samples; seconds, bytes or ratios, as the scenario's unit says
    :ivar notes: what else was found, by name
    """

    scenario: str
    size: int
    unit: str
    samples: Series = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)

    def add(self, label: str, *values: float) -> None:
        """Add samples."""
        self.samples.setdefault(label, []).extend(values)

    def median(self, label: str) -> float | None:
        """The median of a label's samples."""
        samples = self.samples.get(label)
        return statistics.median(samples) if samples else None


@dataclass(frozen=True)
class Target:
    """What one figure has to be at most.

    :ivar text: as the table says it
    :ivar figure: finds it for one of our labels; ``None`` where it was not measured
    :ivar sizes: the sizes it is for; all of them if empty
    """

    text: str
    limit: float
    figure: Callable[[Outcome, str], float | None]
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A target, and what was reached."""

    scenario: str
    size: int
    label: str
    text: str
    limit: float
    reached: float

    @property
    def is_met(self) -> bool:
        """Whether the target is met."""
        return self.reached <= self.limit


def ratio_to(peer: str) -> Callable[[Outcome, str], float | None]:
    """Our median by a peer's."""

    def figure(outcome: Outcome, label: str) -> float | None:
        ours, theirs = outcome.median(label), outcome.median(peer)
        return ours / theirs if ours is not None and theirs else None

    return figure


def absolute(suffix: str = "") -> Callable[[Outcome, str], float | None]:
    """Our median itself."""
    return lambda outcome, label: outcome.median(label + suffix)


def judge(outcome: Outcome, targets: tuple[Target, ...], ours: list[str]) -> list[Verdict]:
    """What was reached of a scenario's targets."""
    verdicts = []
    for target in targets:
        if target.sizes and outcome.size not in target.sizes:
            continue
        for label in ours:
            reached = target.figure(outcome, label)
            if reached is not None:
                verdict = Verdict(
                    outcome.scenario, outcome.size, label, target.text, target.limit, reached
                )
                verdicts.append(verdict)
    return verdicts
