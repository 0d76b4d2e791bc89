"""The part of Go's templates that ``podman images --format`` is used with. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from .human import printable_texts

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
        parts = _FIELD.split(text.removeprefix(_TABLE))
        if any("{{" in part or "}}" in part for part in parts[::2]):
            raise ValueError(f"{text!r}: only fields such as {{{{.ID}}}} are known")
        self.names: Sequence[str] = parts[1::2]
        for name in self.names:
            if name not in fields:
                raise ValueError(f"there is no field {name!r}: the fields are {', '.join(fields)}")
        parts[::2] = [self._unescaped(part) for part in parts[::2]]
        self._cells = self._cells_of(parts)

    def _unescaped(self, text: str) -> str:
        text = text.replace(r"\t", "\t").replace(r"\n", "\n")
        return text.replace(" ", "\t") if self.is_table else text

    def _cells_of(self, parts: Sequence[str]) -> Sequence[Sequence[str]]:
        """Return the cells of a row, each as text and names of fields, alternating."""
        if not self.is_table:
            return [parts]
        cells: list[list[str]] = [[""]]
        for number, part in enumerate(parts):
            if number % 2:
                cells[-1] += [part, ""]
            else:
                first, *others = part.split("\t")
                cells[-1][-1] = first
                cells += [[other] for other in others]
        return cells

    def columns(self, rows: Sequence[T]) -> Iterator[Iterable[str]]:
        """Iterate over the columns of the rows; without ``table``, one.

        No value in that one can end a line. A table escapes whole cells.
        """
        return (self._column(cell, rows) for cell in self._cells)

    def _column(self, cell: Sequence[str], rows: Sequence[T]) -> Iterable[str]:
        parts = [
            self._values(part, rows) if number % 2 else [part] * len(rows)
            for number, part in enumerate(cell)
        ]
        is_one_field = len(cell) == 3 and not cell[0] and not cell[2]
        return parts[1] if is_one_field else map("".join, zip(*parts, strict=True))

    def _values(self, name: str, rows: Sequence[T]) -> Sequence[str]:
        values = map(self._fields[name], rows)
        texts = [v if isinstance(v, str) else shown(v) for v in values]
        return texts if self.is_table else printable_texts(texts)

    def heading(self) -> list[str]:
        """Return the headings of the columns."""
        return [
            "".join(self._heading(part) if number % 2 else part for number, part in enumerate(cell))
            for cell in self._cells
        ]

    def _heading(self, name: str) -> str:
        return self._headings.get(name) or _in_words(name)


def _in_words(name: str) -> str:
    return " ".join(_WORDS.findall(name)).upper()


def shown(value: object) -> str:
    """Format a value as Go does."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        pairs = (f"{key}:{shown(value[key])}" for key in sorted(value))
        return f"map[{' '.join(pairs)}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(shown, value))}]"
    return str(value)
