"""The results as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .results import Outcome, Verdict


def show(value: float, unit: str) -> str:
    """A figure for people."""
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
    """A scenario's medians, and each one's ratio to the first of ours."""
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


def verdicts(found: Iterable[Verdict]) -> Iterator[str]:
    """Every target, and whether it was met."""
    rows = [("scenario", "size", "contender", "target", "at most", "reached", "")]
    for v in found:
        unit = "s" if v.text.split()[0] == "s" else ""
        rows.append(
            (
                v.scenario,
                f"{v.size:,}",
                v.label,
                v.text,
                show(v.limit, unit),
                show(v.reached, unit) if unit else f"{v.reached:.3g}",
                "met" if v.is_met else "MISSED",
            )
        )
    yield from _aligned(rows)
