"""Prints tables and text for people, and JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from anyio import to_thread

from .._core.image import Image
from .human import printable, printable_texts, without_secrets

if TYPE_CHECKING:
    from .._core.report import Finding, Report

_NARROWEST_COLUMN = 12
_COLUMN_GAP = 2


def say(message: str) -> None:
    """Write a message to standard error, in one line, without secrets."""
    sys.stderr.write(f"aimagestore: {printable(without_secrets(message))}\n")
    sys.stderr.flush()


async def write(text: str) -> None:
    """Write to standard output. A cancelled call does not wait for whoever reads it."""
    await to_thread.run_sync(_write, text, abandon_on_cancel=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def write_lines(lines: Iterable[str]) -> None:
    """Write lines to standard output."""
    await write("".join(f"{printable(line)}\n" for line in lines))


# JSON


async def write_json(value: Any, *, indent: int | None = 2) -> None:
    """Write JSON to standard output, in ASCII, which every locale can print."""
    import json  # noqa: PLC0415 - most output is not JSON

    await write(json.dumps(value, indent=indent) + "\n")


def image_json(image: Image, layers_size: int | None = None) -> dict[str, Any]:
    """Return an image with the library's names for its fields.

    :param layers_size: the size of its layers in bytes; ``None`` if it is not known
    """
    return {
        "id": image.id,
        "names": image.names,
        "names_history": image.names_history,
        "digest": image.digest,
        "digests": image.digests,
        "created": None if image.created is None else rfc3339(image.created),
        "size": image.size,
        "layers_size": layers_size,
        "top_layer": image.top_layer,
        "mapped_top_layers": image.mapped_top_layers,
        "metadata": image.metadata,
        "flags": dict(image.flags),
        "big_data_names": image.big_data_names,
        "big_data_sizes": dict(image.big_data_sizes),
        "big_data_digests": dict(image.big_data_digests),
        "read_only": image.read_only,
    }


def rfc3339(when: datetime) -> str:
    """Format a time in UTC."""
    return when.isoformat().replace("+00:00", "Z")


def report_json(report: Report) -> dict[str, Any]:
    """Return what was examined and found."""
    return {
        "ok": report.ok,
        "images": report.images,
        "items": report.items,
        "bytes": report.bytes,
        "findings": findings_json(report.findings),
    }


def findings_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Return what was found or done."""
    return [
        {"kind": f.kind.value, "id": f.id, "key": f.key, "path": f.path, "detail": f.detail}
        for f in findings
    ]


# Tables


async def write_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    folded: int | None = None,
    is_headed: bool = True,
) -> None:
    """Write a table of rows; see :func:`write_columns`."""
    columns = _transposed(rows, len(headings))
    await write_columns(headings, columns, folded=folded, is_headed=is_headed)


def _transposed(rows: Iterable[Sequence[str]], number: int) -> Iterator[Iterable[str]]:
    # A generator, so that many rows are transposed in the thread that makes the table of them.
    yield from list(zip(*rows, strict=True)) or [()] * number


async def write_columns(
    headings: Sequence[str],
    columns: Iterable[Iterable[str]],
    *,
    folded: int | None = None,
    is_headed: bool = True,
) -> None:
    """Write a table with columns as podman's are. Nothing in it is cut off.

    :param folded: the column that is folded if the terminal is too narrow. The others are not, so
        that their cells can be copied as a whole.
    :param is_headed: whether the headings are written; the columns are as wide as with them
    """
    # In a thread, because it may import rich, and many rows take long.
    await write(await to_thread.run_sync(_table, headings, columns, folded, is_headed))


def _table(
    headings: Sequence[str],
    cells: Iterable[Iterable[str]],
    folded: int | None,
    is_headed: bool,
) -> str:
    # By columns, each of which is handled in a few calls.
    columns: list[Sequence[str]] = [
        printable_texts([heading, *column]) for heading, column in zip(headings, cells, strict=True)
    ]
    measures = [len if "".join(column).isascii() else _width for column in columns]
    widths = _widths(columns, measures, _NARROWEST_COLUMN)
    available = _terminal_width()
    if available is not None and sum(widths) > available:
        widths = _widths(columns, measures, 0)
        excess = sum(widths) - available
        if folded is not None and excess > 0:
            gap = 0 if folded == len(widths) - 1 else _COLUMN_GAP
            room = widths[folded] - gap - excess
            if room >= _NARROWEST_COLUMN:
                widths[folded] = room + gap
                rows = zip(*columns, strict=True)
                lines = (line for row in rows for line in _fold(row, folded, room))
                columns = list(zip(*lines, strict=True))
    form = ""
    for place, (measure, width) in enumerate(zip(measures, widths, strict=True)):
        if measure is len:
            form += f"%-{width}s"
        else:  # formatting counts characters, not columns of the terminal
            form += "%s"
            columns[place] = [text + " " * (width - _width(text)) for text in columns[place]]
    text = [line.rstrip(" ") for line in map(form.__mod__, zip(*columns, strict=True))]
    return "\n".join([*(text if is_headed else text[1:]), ""])


def _terminal_width() -> int | None:
    """Return the number of columns of the terminal; ``None`` if the output is not one."""
    if not sys.stdout.isatty():
        return None
    from shutil import get_terminal_size  # noqa: PLC0415 - it imports several compressors

    return get_terminal_size().columns


def _widths(
    columns: Sequence[Sequence[str]], measures: Sequence[Callable[[str], int]], least: int
) -> list[int]:
    """Return the widths of the columns, each with the gap after it.

    :param measures: for each column, what measures its texts
    """
    longest = [max(map(measure, column)) for column, measure in zip(columns, measures, strict=True)]
    return [*(max(width + _COLUMN_GAP, least) for width in longest[:-1]), longest[-1]]


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - names are nearly always ASCII

    return cell_len(text)


def _fold(row: Sequence[str], place: int, width: int) -> Iterator[list[str]]:
    from rich.cells import chop_cells  # noqa: PLC0415 - only narrow terminals need it

    first, *others = chop_cells(row[place], width) or [""]
    yield [*row[:place], first, *row[place + 1 :]]
    for other in others:
        yield [other if column == place else "" for column in range(len(row))]


async def write_findings(findings: Sequence[Finding]) -> None:
    """Write what was found or done as a table; nothing if it is empty."""
    if findings:
        rows = [[f.kind.value, f.path, f.key, f.detail] for f in findings]
        await write_table(["FINDING", "PATH", "KEY", "DETAIL"], rows, folded=3)
