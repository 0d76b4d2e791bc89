"""Watching a store from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from .conftest import PROGRAM, Cli, environment


@contextmanager
def watching(root: Path, *options: str) -> Iterator[IO[str]]:
    """Run ``watch``, and interrupt it at the end of the block, when all it printed was read."""
    command = [*PROGRAM, "--verbose", "--root", str(root), "watch", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert any("watching" in line for line in watch.stderr)
        yield watch.stdout
        watch.send_signal(signal.SIGINT)
        assert watch.wait(30) == 130
        assert watch.stdout.read() == ""
        assert watch.stderr.read() == "aimagestore: interrupted\n"


@pytest.mark.parametrize("is_json", [False, True])
def test_a_line_for_each_change(cli: Cli, path: Path, is_json: bool) -> None:
    cli("create", "--id", "before")
    with watching(path, *["--json"] * is_json) as printed:
        cli("create", "--id", "a" * 64, "--name", "a:1")
        first = printed.readline()
        cli("tag", "a:1", "b:1")
        second = printed.readline()
        cli("rm", "a:1")
        third = printed.readline()
    if is_json:
        lines = [json.loads(line) for line in (first, second, third)]
        assert [line["kind"] for line in lines] == ["created", "changed", "deleted"]
        assert {line["id"] for line in lines} == {"a" * 64}
        assert lines[1]["image"]["names"] == ["b:1", "a:1"]
        assert lines[2]["image"] is None
    else:
        short = "a" * 12
        assert [first, second, third] == [
            f"created {short} a:1\n",
            f"changed {short} b:1 a:1\n",
            f"deleted {short}\n",
        ]


def test_with_filters_only_the_changes_of_images_that_pass_or_passed_are_printed(
    cli: Cli, path: Path
) -> None:
    cli("create", "--id", "old", "--name", "localhost/kept:1")
    filters = ["--filter", "reference=localhost/kept", "--filter", "id!=no"]
    with watching(path, *filters) as printed:
        lines = []
        cli("create", "--id", "other", "--name", "localhost/other:1")
        cli("create", "--id", "no", "--name", "localhost/kept:0")
        cli("create", "--id", "new", "--name", "localhost/kept:2")
        lines.append(printed.readline())
        cli("tag", "old", "localhost/more:1")
        lines.append(printed.readline())
        cli("untag", "old", "localhost/kept:1")
        lines.append(printed.readline())
        cli("tag", "old", "localhost/more:2")
        cli("rm", "old", "other", "no")
        cli("rm", "new")
        lines.append(printed.readline())
    assert lines == [
        "created new localhost/kept:2\n",
        "changed old localhost/more:1 localhost/kept:1\n",
        "changed old localhost/more:1\n",
        "deleted new\n",
    ]
