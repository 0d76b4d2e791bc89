"""What was measured, and whether it meets the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

Series = dict[str, list[float]]
"""Samples by label."""


@dataclass
class Outcome:
    """One scenario at one size.

    :ivar samples: the samples of each label, in the scenario's unit
    :ivar notes: other figures, by name
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
        """Return the median of a label's samples; ``None`` if there are none."""
        samples = self.samples.get(label)
        return statistics.median(samples) if samples else None


Figure = Callable[[Outcome, str], float | None]
"""Returns a figure of one of our labels; ``None`` if it was not measured."""


@dataclass(frozen=True)
class Target:
    """The limit of one figure.

    :ivar text: the figure's name in the tables
    :ivar figure: returns the figure of one of our labels
    :ivar sizes: the sizes that it applies to; all if empty
    """

    text: str
    limit: float
    figure: Figure
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A target, and the figure that was reached."""

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
    """Compare our samples with those of the floor that ran right after each: the median ratio.

    :param suffix: the end of the labels to compare, such as " stall"
    """

    def figure(outcome: Outcome, label: str) -> float | None:
        ours = outcome.samples.get(label + suffix, [])
        floors = outcome.samples.get(f"{label} floor{suffix}", [])
        ratios = [each / floor for each, floor in zip(ours, floors, strict=False) if floor]
        return statistics.median(ratios) if ratios else None

    return figure


def to_peer(peer: str) -> Figure:
    """Compare our median with that of a peer; with the fastest of its generations."""

    def figure(outcome: Outcome, label: str) -> float | None:
        medians = [outcome.median(each) for each in outcome.samples if _is_of(each, peer)]
        theirs = min((median for median in medians if median), default=None)
        ours = outcome.median(label)
        return ours / theirs if ours is not None and theirs else None

    return figure


def to_other(suffix: str) -> Figure:
    """Compare our median with that of another series of ours."""

    def figure(outcome: Outcome, label: str) -> float | None:
        ours, other = outcome.median(label), outcome.median(label + suffix)
        return ours / other if ours is not None and other else None

    return figure


def _is_of(label: str, peer: str) -> bool:
    """Return whether a series is a peer's: ``go`` and ``go trixie``, but not ``go x4 slowdown``."""
    rest = label.removeprefix(peer)
    return rest == "" or (rest != label and rest.strip().isalpha())


def itself(suffix: str = "") -> Figure:
    """Return our median itself, which is a ratio or a size."""
    return lambda outcome, label: outcome.median(label + suffix)


def judge(outcome: Outcome, targets: tuple[Target, ...], ours: list[str]) -> list[Verdict]:
    """Return the verdicts on a scenario's targets that apply to an outcome."""
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
