"""Options before and after the command, help, and what its examples say."""

from __future__ import annotations

import fcntl
import os
import shlex
import struct
from typing import Any

import click
import pytest

from aimagestore._cli.app import app

from ..support.commands import all_commands
from .conftest import Cli, call, help_of, program

# The keys of this table are all commands of the program, which the test of the table checks.
from .test_streams import COMMANDS

ALL = dict(all_commands())
READING = [
    "images",
    "inspect",
    "exists",
    "get",
    "digest",
    "flag",
    "export",
    "save",
    "df",
    "check",
    "watch",
]
CHANGING = ["tag", "untag", "rm", "put", "prune", "repair", "gc"]


def arguments_of(name: str) -> list[str]:
    row = next(row for key, row in COMMANDS.items() if key.removesuffix(" -") == name)
    return row.arguments.split()


# Options of the program


def test_the_root_after_the_command(cli: Cli) -> None:
    cli("create", "--id", "one")
    for given in (["images", "-q", "--root", cli.root], ["images", f"--root={cli.root}", "-q"]):
        assert call(*given).output == "one\n"
    # The later one counts.
    assert call("--root", "/nowhere", "images", "-q", "--root", cli.root).output == "one\n"
    variables = {"AIMAGESTORE_ROOT": "/nowhere"}
    given = ["images", "-q", "--root", cli.root]
    assert call(*given, variables=variables).output == "one\n"
    assert "must not be empty" in call("images", "--root", "", code=2).errors


def test_the_other_options_after_the_command(cli: Cli) -> None:
    cli("create", "--id", "one")
    errors = program("--root", cli.root, "inspect", "x", "--verbose", code=3).stderr
    assert b"Traceback" in errors
    with (cli.root / "images.lock").open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhlli4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        cli("tag", "one", "a:1", "--lock-timeout", "0", code=5)
    assert "--lock-timeout" in cli("tag", "one", "a:1", "--lock-timeout", "-1", code=2).errors


def test_write_after_the_command(cli: Cli, tmp_path: Any) -> None:
    cli("create", "--id", "one")
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "vfs-images").symlink_to(cli.root)
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    )
    variables = {"CONTAINERS_STORAGE_CONF": f"{tmp_path}/storage.conf"}
    refused = call("tag", "one", "a:1", code=2, variables=variables).errors
    assert "--write" in refused
    call("tag", "one", "a:1", "--write", variables=variables)
    assert cli("inspect", "a:1", "--json").json[0]["id"] == "one"


def test_values_that_look_like_options(cli: Cli) -> None:
    cli("create", "--id", "one", "--metadata", "--root")
    assert cli("inspect", "one", "--json").json[0]["metadata"] == "--root"
    cli("tag", "one", "--", "--write")
    assert cli("inspect", "one", "--json").json[0]["names"] == ["--write"]


@pytest.mark.parametrize("name", ALL)
def test_every_command_accepts_them(name: str) -> None:
    known = {each.name for each in ALL[name].params}
    assert {"root", "write", "lock_timeout", "verbose"} <= known


# A root with a typo


@pytest.mark.parametrize("name", READING + CHANGING)
def test_a_root_with_a_typo(cli: Cli, name: str) -> None:
    parts = [part.replace("{}", str(cli.root.parent)) for part in arguments_of(name)]
    for wrong in (cli.root, cli.root.parent / "other"):
        if wrong != cli.root:
            wrong.mkdir()
            (wrong / "file").touch()
        before = sorted(os.listdir(cli.root.parent))
        errors = Cli(wrong)(*parts, code=1).errors
        assert errors == (
            f"aimagestore: there is no image store at {wrong}: create, import, load and copy "
            "make one\n"
        )
        assert sorted(os.listdir(cli.root.parent)) == before
        assert not wrong.exists() or os.listdir(wrong) == ["file"]


def test_a_source_with_a_typo(cli: Cli, tmp_path: Any) -> None:
    cli("copy", tmp_path / "nowhere", tmp_path / "new", code=1)
    assert os.listdir(tmp_path) == []


def test_the_table_of_typos_is_complete() -> None:
    made = {"create", "import", "load", "copy"}
    clusters = {name for name in ALL if name.startswith("cluster ")}
    assert {*READING, *CHANGING, *made, *clusters} == set(ALL)


def test_an_empty_directory_is_an_empty_store(cli: Cli) -> None:
    cli.root.mkdir()
    assert cli("images", "--json").json == []
    cli("exists", "one", code=3)


# Help


@pytest.mark.parametrize("name", ALL)
def test_help_describes_every_argument(name: str) -> None:
    for each in ALL[name].params:
        assert getattr(each, "help", None), each.name
    assert "Examples:" in help_of(name)


@pytest.mark.parametrize("name", ["", *ALL])
def test_help_fits_into_80_columns(name: str) -> None:
    result = call(*name.split(), "--help", variables={"COLUMNS": "80"})
    assert [line for line in result.output.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", ["", *ALL])
def test_examples_are_right(name: str) -> None:
    lines = [line.strip() for line in help_of(name).splitlines()]
    shown = [line for line in lines[lines.index("Examples:") :] if "aimagestore" in line]
    assert shown
    for line in shown:
        words = shlex.split(line)
        words = words[words.index("aimagestore") + 1 :]
        for stop in ("|", "<"):
            words = words[: words.index(stop)] if stop in words else words
        if words[0] == "--root":
            words = words[2:]
        command: click.Command | None = app
        while isinstance(command, click.Group):
            used, *words = words
            assert name == "" or used in name.split()
            command = command.get_command(click.Context(command), used)
        assert command is not None
        command.make_context(used, list(words))  # fails where the usage is wrong
