"""Idioms that readers have to decode stay out of the package, its pages, tests and benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

from .support.pages import DOCS, README, ROOT

IDIOMS = re.compile(
    r"\bto be had\b|\bso many\b|\bsettle[sd]?\b|\btold\b|\bgone\b|\bpatient(ly)?\b"
    r"|\blook(s|ed)? (\w+ ){0,2}through\b|\bto be looked through\b"
    r"|\bleaves? (\w+ )?to itself\b|\bleft to itself\b"
    r"|\b(strays?|leftovers?|losers?|mend(s|ed)?|cured?)\b"
    r"|, for (it|they|he|she|we|you|that|this|these|those) (is|are|was|has|have|does|do|would)\b",
    re.IGNORECASE,
)


def texts() -> list[Path]:
    """Return the package's modules and pages, and the sources and pages of tests and benchmarks."""
    beside = [
        file
        for directory in ("tests", "benchmarks")
        for suffix in ("py", "md", "go")
        for file in sorted((ROOT / directory).rglob(f"*.{suffix}"))
        if file != Path(__file__)  # it lists the idioms
    ]
    return [README, *sorted(DOCS.glob("*.md")), *sorted(DOCS.parent.rglob("*.py")), *beside]


def idioms_in(text: str) -> list[str]:
    """Return the idioms in a text and in its names, each with the number of its line."""
    return [
        f"{number}: {found[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        for found in IDIOMS.finditer(line.replace("_", " "))
    ]


def test_there_is_no_idiom() -> None:
    found = {str(file.relative_to(ROOT)): idioms_in(file.read_text()) for file in texts()}
    assert {name: idioms for name, idioms in found.items() if idioms} == {}


def test_idioms_are_found() -> None:
    text = "It is to be had.\nNobody was told, for it is gone.\nThey look it through.\nis_gone()"
    assert idioms_in(text) == [
        "1: to be had",
        "2: told",
        "2: , for it is",
        "2: gone",
        "3: look it through",
        "4: gone",
    ]
