"""A picture of how each cost grows with the number of images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .results import Outcome
from .table import show

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 28, 36, 46
_COLUMNS = 2
_LEGEND_LINE = 18
_LABELS_IN_A_ROW = 4
_COLOURS = ("#0072b2", "#d55e00", "#000000", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 4", "1 4")
_MARKS = (
    "M-3.5 -3.5h7v7h-7z",
    "M0 -4.5L4.5 4h-9z",
    "M-4 0L0 -4.5L4 0L0 4.5z",
    "M-4 -4L4 4M-4 4L4 -4",
    "M0 -5V5M-5 0H5",
    "M-4 -3.5h8L0 4.5z",
    "M-4 -2h8v4h-8z",
)

_OPENING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'width="{width}" height="{height}" font-family="sans-serif" fill="#222">'
)

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Look:
    """How a contender's line differs from the others, also in black and white."""

    colour: str
    dashes: str
    mark: str

    @classmethod
    def of(cls, number: int) -> Look:
        """Return the look of the line with a number."""
        return cls(
            _COLOURS[number % len(_COLOURS)],
            _DASHES[number % len(_DASHES)],
            _MARKS[number % len(_MARKS)],
        )

    def line(self, points: Sequence[tuple[float, float]]) -> Iterator[str]:
        """Yield the elements of a line through these points, with a mark at each."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = f'fill="none" stroke="{self.colour}" stroke-width="2"'
        yield f'<polyline points="{path}" {style} stroke-dasharray="{self.dashes}"/>'
        for x, y in points:
            yield f'<path d="{self.mark}" transform="translate({x:.1f} {y:.1f})" {style}/>'


class Panel:
    """One scenario: log-log axes and a line for each contender."""

    def __init__(self, title: str, lines: dict[str, Line], looks: dict[str, Look]) -> None:
        self._title = title
        self._lines = lines
        self._looks = looks
        points = [point for line in lines.values() for point in line]
        self._x = _decades([x for x, _ in points])
        self._y = _decades([y for _, y in points])

    def _at(self, x: float, y: float) -> tuple[float, float]:
        (left, right), (low, high) = self._x, self._y
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        across = (math.log10(x) - left) / (right - left)
        up = (math.log10(y) - low) / (high - low)
        return _LEFT + across * width, _HEIGHT - _BOTTOM - up * height

    def draw(self) -> Iterator[str]:
        """Yield the elements of the panel."""
        yield _text(_WIDTH / 2, 20, self._title, size=13, anchor="middle", weight="bold")
        for power in range(self._y[0], self._y[1] + 1):
            left, y = self._at(10 ** self._x[0], 10.0**power)
            yield _rule(left, y, _WIDTH - _RIGHT, y)
            yield _text(left - 6, y + 4, show(10.0**power, "s"), anchor="end")
        for power in range(self._x[0], self._x[1] + 1):
            x, bottom = self._at(10.0**power, 10.0 ** self._y[0])
            yield _rule(x, _TOP, x, bottom)
            yield _text(x, bottom + 16, f"{10**power:,}", anchor="middle")
        yield _text(
            (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "images in the store", anchor="middle"
        )
        turned = f'transform="rotate(-90 14 {(_TOP + _HEIGHT - _BOTTOM) / 2})"'
        yield _text(
            14, (_TOP + _HEIGHT - _BOTTOM) / 2, "time (median)", anchor="middle", more=turned
        )
        for label, line in self._lines.items():
            yield from self._looks[label].line([self._at(x, y) for x, y in line])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low = math.floor(math.log10(min(values)) + 1e-9)
    return low, max(math.ceil(math.log10(max(values)) - 1e-9), low + 1)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ddd"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 11,
    anchor: str = "start",
    weight: str = "normal",
    more: str = "",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" {more}>{escape(text)}</text>'
    )


def _lines(outcomes: Sequence[Outcome]) -> dict[str, Line]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for outcome in outcomes:
        for label in outcome.samples:
            median = outcome.median(label)
            if median and not label.endswith((" stall", " full load", " load floor")):
                lines.setdefault(label, []).append((outcome.size, median))
    return {label: sorted(line) for label, line in lines.items()}


def _legend(looks: dict[str, Look], width: int) -> Iterator[str]:
    for number, (label, look) in enumerate(looks.items()):
        x = 20 + number % _LABELS_IN_A_ROW * width / _LABELS_IN_A_ROW
        y = 14 + number // _LABELS_IN_A_ROW * _LEGEND_LINE
        yield from look.line([(x, y), (x + 32, y)])
        yield _text(x + 40, y + 4, label)


def draw(titles: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """Return the picture, with a panel for each scenario that has a title."""
    grouped = {
        title: _lines([o for o in outcomes if o.scenario == n]) for n, title in titles.items()
    }
    grouped = {title: lines for title, lines in grouped.items() if lines}
    labels = list(dict.fromkeys(label for lines in grouped.values() for label in lines))
    floors = [label for label in labels if label.endswith(" floor")]
    # The floors on several event loops are one line in the picture.
    looks = {
        label: Look.of(n)
        for n, label in enumerate(each for each in labels if each not in floors[1:])
    }
    legend = 10 + _LEGEND_LINE * math.ceil(len(looks) / _LABELS_IN_A_ROW)
    width = _WIDTH * _COLUMNS
    height = legend + _HEIGHT * math.ceil(len(grouped) / _COLUMNS)
    parts = [
        _OPENING.format(width=width, height=height),
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(looks, width),
    ]
    for number, (title, lines) in enumerate(grouped.items()):
        x, y = number % _COLUMNS * _WIDTH, legend + number // _COLUMNS * _HEIGHT
        panel = Panel(
            title, {label: line for label, line in lines.items() if label in looks}, looks
        )
        parts += [f'<g transform="translate({x} {y})">', *panel.draw(), "</g>"]
    return "\n".join([*parts, "</svg>", ""])
