"""The part of Go's templates that ``podman images --format`` is used with. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from .human import printable

T = TypeVar("T")

_FIELD = re.compile(r"\{\{-?\s*\.(\w+)\s*-?\}\}")
_TABLE = "table "
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]*")


class Template(Generic[T]):
    """A text with fields such as ``{{.ID}}``; after ``table``, columns with a heading.

    :param fields: name to the function that returns the field's value
    :param headings: name to heading, where that is not the name in words
    :raises ValueError: when it has anything but these fields
    """

    def __init__(
        self,
        text: str,
        fields: Mapping[str, Callable[[T], object]],
        headings: Mapping[str, str],
    ) -> None:
        self.is_table = text.startswith(_TABLE)
        self._headings = headings
        self._fields = fields
        # Text and names of fields, alternating.
        self._parts = _FIELD.split(text.removeprefix(_TABLE))
        if any("{{" in part or "}}" in part for part in self._parts[::2]):
            raise ValueError(f"{text!r}: only fields such as {{{{.ID}}}} are known")
        for name in self.names:
            if name not in fields:
                raise ValueError(f"there is no field {name!r}: the fields are {', '.join(fields)}")
        self._parts[::2] = [self._unescaped(part) for part in self._parts[::2]]

    @property
    def names(self) -> Sequence[str]:
        """The names of its fields."""
        return self._parts[1::2]

    def _unescaped(self, text: str) -> str:
        text = text.replace(r"\t", "\t").replace(r"\n", "\n")
        return text.replace(" ", "\t") if self.is_table else text

    def cells(self, row: T) -> list[str]:
        """Return one row: one text, or the cells of a table. No value can end a line."""
        return self._filled(lambda name: printable(shown(self._fields[name](row))))

    def heading(self) -> list[str]:
        """Return the headings of the columns."""
        return self._filled(lambda name: self._headings.get(name) or _in_words(name))

    def _filled(self, value_of: Callable[[str], str]) -> list[str]:
        if not self.is_table:
            values = [value_of(name) for name in self.names]
            parts = list(self._parts)
            parts[1::2] = values
            return ["".join(parts)]
        cells = [""]
        for number, part in enumerate(self._parts):
            first, *others = [value_of(part)] if number % 2 else part.split("\t")
            cells[-1] += first
            cells += others
        return cells


def _in_words(name: str) -> str:
    return " ".join(_WORDS.findall(name)).upper()


def shown(value: object) -> str:
    """Format a value as Go does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        pairs = (f"{key}:{shown(value[key])}" for key in sorted(value))
        return f"map[{' '.join(pairs)}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(shown, value))}]"
    return str(value)
