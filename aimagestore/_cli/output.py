"""What is printed: tables and text for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from anyio import to_thread
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._core.image import Image
from .._core.report import Finding, Report
from .human import printable, without_secrets

_NARROWEST_COLUMN = 12
_COLUMN_GAP = 2
# Fitting a row into a terminal takes half a millisecond.
_MOST_ROWS_FITTED = 1000


def say(message: str) -> None:
    """Say something on standard error, in one line, without secrets."""
    sys.stderr.write(f"aimagestore: {printable(without_secrets(message))}\n")
    sys.stderr.flush()


async def write(text: str) -> None:
    """Write to standard output. Cancelled, a reader that does not read is not waited for."""
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
    await write(json.dumps(value, indent=indent) + "\n")


def size_of(image: Image) -> int:
    """What an image's own items take, in bytes."""
    return sum(image.big_data_sizes.values())


def image_json(image: Image) -> dict[str, Any]:
    """An image under the names that it has in the library, and its size."""
    return {
        "id": image.id,
        "names": image.names,
        "names_history": image.names_history,
        "digest": image.digest,
        "digests": image.digests,
        "created": None if image.created is None else rfc3339(image.created),
        "size": size_of(image),
        "top_layer": image.top_layer,
        "mapped_top_layers": image.mapped_top_layers,
        "metadata": image.metadata,
        "flags": dict(image.flags),
        "big_data_names": image.big_data_names,
        "big_data_sizes": dict(image.big_data_sizes),
        "big_data_digests": dict(image.big_data_digests),
    }


def rfc3339(when: datetime) -> str:
    """A time in UTC."""
    return when.isoformat().replace("+00:00", "Z")


def report_json(report: Report) -> dict[str, Any]:
    """What was looked at, and found."""
    return {
        "ok": report.ok,
        "images": report.images,
        "items": report.items,
        "bytes": report.bytes,
        "findings": findings_json(report.findings),
    }


def findings_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """What was found, or done."""
    return [
        {"kind": f.kind.value, "id": f.id, "key": f.key, "path": f.path, "detail": f.detail}
        for f in findings
    ]


# Tables


async def write_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table: for a terminal as wide as that, else in columns as podman has them."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and len(cells) <= _MOST_ROWS_FITTED:
        await to_thread.run_sync(_show, headings, cells, abandon_on_cancel=True)
    else:
        await write(_in_columns([list(headings), *cells]))


def _show(headings: Sequence[str], rows: list[list[str]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, _COLUMN_GAP, 0, 0), header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=place > 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _in_columns(rows: list[list[str]]) -> str:
    widths = [
        max(_NARROWEST_COLUMN, max(map(len, column)) + _COLUMN_GAP)
        for column in zip(*rows, strict=True)
    ]
    widths[-1] = 0
    padded = ("".join(map(str.ljust, row, widths)) for row in rows)
    return "".join(f"{line}\n" for line in padded)


async def write_findings(findings: Sequence[Finding]) -> None:
    """Write what was found or done as a table, if there is anything."""
    if findings:
        rows = [[f.kind.value, f.path, f.key, f.detail] for f in findings]
        await write_table(["FINDING", "PATH", "KEY", "DETAIL"], rows)
