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


Figure = Callable[[Outcome, str], float | None]
"""Finds a figure of one of our labels."""


@dataclass(frozen=True)
class Target:
    """What one figure has to be at most.

    :ivar text: as the table says it
    :ivar figure: finds it for one of our labels; ``None`` where it was not measured
    :ivar sizes: the sizes it is for; all of them if empty
    """

    text: str
    limit: float
    figure: Figure
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


def to_floor(suffix: str = "") -> Figure:
    """The median of the ratios of our samples to those of the floor that had its turn with them.

    :param suffix: of what is compared: a stall, say, with the floor's
    """

    def figure(outcome: Outcome, label: str) -> float | None:
        ours = outcome.samples.get(label + suffix, [])
        floors = outcome.samples.get(f"{label} floor{suffix}", [])
        ratios = [each / floor for each, floor in zip(ours, floors, strict=False) if floor]
        return statistics.median(ratios) if ratios else None

    return figure


def to_peer(peer: str) -> Figure:
    """Our median by that of a peer, and of its generations by that of the fastest."""

    def figure(outcome: Outcome, label: str) -> float | None:
        medians = [outcome.median(each) for each in outcome.samples if _is_of(each, peer)]
        theirs = min((median for median in medians if median), default=None)
        ours = outcome.median(label)
        return ours / theirs if ours is not None and theirs else None

    return figure


def to_other(suffix: str) -> Figure:
    """Our median by that of another of our own series."""

    def figure(outcome: Outcome, label: str) -> float | None:
        ours, other = outcome.median(label), outcome.median(label + suffix)
        return ours / other if ours is not None and other else None

    return figure


def _is_of(label: str, peer: str) -> bool:
    """Whether a series is a peer's: ``go`` and ``go trixie``, but not ``go x4 slowdown``."""
    rest = label.removeprefix(peer)
    return rest == "" or (rest != label and rest.strip().isalpha())


def itself(suffix: str = "") -> Figure:
    """Our median itself, where that is a ratio or a size."""
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
