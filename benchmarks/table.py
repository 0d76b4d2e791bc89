"""The results as tables for the terminal and for a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

from .results import Outcome, Verdict

MOST_IMAGES = 10_000_000
"""Larger sizes are those of an item, in bytes."""


def show(value: float, unit: str) -> str:
    """Return a figure with its unit, as people read it."""
    if unit != "s":
        return f"{value:.2f}"
    for scale, suffix in (1, "s"), (1e3, "ms"), (1e6, "µs"):
        if value * scale >= 1:
            return f"{value * scale:.3g} {suffix}"
    return f"{value * 1e9:.0f} ns"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()


def medians(outcome: Outcome, reference: str) -> Iterator[str]:
    """Yield the lines of a table of a scenario's medians, with their ratios to a reference."""
    ours = outcome.median(reference)
    rows: list[tuple[str, ...]] = [("", "median", "least", "most", "samples", f"x {reference}")]
    for label, samples in outcome.samples.items():
        unit = "s" if outcome.unit == "s" or label.endswith((" alone", " each")) else ""
        median = outcome.median(label)
        assert median is not None
        figures = (show(v, unit) for v in (median, min(samples), max(samples)))
        ratio = f"{median / ours:.3g}" if ours else ""
        rows.append((label, *figures, str(len(samples)), ratio))
    yield from _aligned(rows)
    for note, value in outcome.notes.items():
        yield f"{note}: {value:,.0f}"


def _figure(value: float, text: str) -> str:
    return show(value, "s") if text.split(maxsplit=1)[0] == "s" else f"{value:.3g}"


def markdown(found: Iterable[Verdict], titles: dict[str, str]) -> Iterator[str]:
    """Yield the lines of a page's table of targets, with the worst figure of several sizes."""
    rows: dict[tuple[str, str, float], dict[str, list[Verdict]]] = {}
    for v in found:
        rows.setdefault((v.scenario, v.text, v.limit), {}).setdefault(v.label, []).append(v)
    labels = list(dict.fromkeys(label for row in rows.values() for label in row))
    yield "| " + " | ".join(["what", "images", "at most", *labels]) + " |"
    yield "| --- " * (3 + len(labels)) + "|"
    for (scenario, text, limit), row in rows.items():
        sizes = sorted({v.size for of_label in row.values() for v in of_label})
        images = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
        what = titles[scenario] if text == "s" else f"{titles[scenario]}: {text.removeprefix('s ')}"
        cells = []
        for label in labels:
            worst = max(row[label], key=lambda v: v.reached)
            figure = _figure(worst.reached, text)
            cells.append(figure if worst.is_met else f"**{figure}**")
        shown = "" if sizes[-1] > MOST_IMAGES else images
        yield "| " + " | ".join([what, shown, _figure(limit, text), *cells]) + " |"


def growth(outcomes: Sequence[Outcome], titles: dict[str, str]) -> Iterator[str]:
    """Yield the lines of a page's table of growth: the power of the number of images.

    0 means that a cost does not depend on the number, 1 that it is proportional to it.
    """
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for outcome in outcomes:
        for label in outcome.samples:
            median = outcome.median(label)
            if (
                outcome.scenario in titles
                and median
                and not label.endswith((" stall", " load floor"))
            ):
                points = series.setdefault(titles[outcome.scenario], {}).setdefault(label, [])
                points.append((math.log(outcome.size), math.log(median)))
    labels = list(dict.fromkeys(label for row in series.values() for label in row))
    yield "| " + " | ".join(["exponent of growth", *labels]) + " |"
    yield "| --- " * (1 + len(labels)) + "|"
    for title, row in series.items():
        cells = [_slope(row.get(label, [])) for label in labels]
        yield "| " + " | ".join([title, *cells]) + " |"


def _slope(points: Sequence[tuple[float, float]]) -> str:
    if len({x for x, _ in points}) < 2:
        return ""
    return f"{statistics.linear_regression(*zip(*points, strict=True)).slope:.2f}"


def verdicts(found: Iterable[Verdict]) -> Iterator[str]:
    """Yield the lines of a table of all targets, and whether they are met."""
    rows = [("scenario", "size", "contender", "target", "at most", "reached", "")]
    for v in found:
        met = "met" if v.is_met else "MISSED"
        figures = _figure(v.limit, v.text), _figure(v.reached, v.text)
        rows.append((v.scenario, f"{v.size:,}", v.label, v.text, *figures, met))
    yield from _aligned(rows)
