"""Completion in shells."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from ..support.commands import invoke
from .conftest import Cli, environment, program

SCRIPTS = sysconfig.get_path("scripts")

_IN_BASH = """
source <(aimagestore --show-completion bash)
COMP_WORDS=($0)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_aimagestore_completion aimagestore
echo "${COMPREPLY[@]}"
"""


@pytest.fixture
def image(cli: Cli) -> Cli:
    """Images."""
    cli("create", "--id", "ab" * 32, "--name", "localhost/a:1", "--name", "localhost/a:2")
    cli("create", "--id", "cd" * 32, "--name", "other:1")
    return cli


def completed(root: Path, *words: str) -> list[str]:
    """What is offered for the last word."""
    line = ["aimagestore", "--root", str(root), *words]
    variables = {
        "_AIMAGESTORE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(line),
        "COMP_CWORD": str(len(line) - 1),
    }
    result = invoke(variables=variables)
    assert result.exit_code == 0
    assert result.stderr == ""
    return [line.removeprefix("plain,") for line in result.stdout.split()]


def test_refs(image: Cli) -> None:
    names = ["localhost/a:1", "localhost/a:2"]
    assert completed(image.root, "inspect", "lo") == names
    assert completed(image.root, "inspect", "other:1", "lo") == names
    assert completed(image.root, "get", "ab") == ["ab" * 6]
    assert completed(image.root, "tag", "x") == []
    assert len(completed(image.root, "rm", "")) == 5
    assert completed(image.root, "unt") == ["untag"]


def test_a_colon_ends_a_word_for_bash(image: Cli) -> None:
    assert completed(image.root, "inspect", "localhost/a", ":", "2") == ["2"]
    image("tag", "other:1", "localhost:5000/b:12")
    assert completed(image.root, "rm", "localhost", ":", "5000/b", ":", "1") == ["12"]


def test_keys_flags_and_names(image: Cli, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"{}")
    digest = "sha256:" + "ef" * 32
    for key in ("manifest", digest):
        image("put", "other:1", key, tmp_path / "data")
    image("flag", "other:1", "checked", "1")
    for ref in ("other:1", "cd" * 32, "cdc"):
        for command in ("get", "put", "digest"):
            assert completed(image.root, command, ref, "") == ["manifest", digest]
        assert completed(image.root, "get", ref, "m") == ["manifest"]
        assert completed(image.root, "flag", ref, "c") == ["checked"]
        assert completed(image.root, "untag", ref, "") == ["other:1"]
    assert completed(image.root, "get", "localhost/a:1", "") == []
    assert completed(image.root, "get", "nothing", "") == []
    assert completed(image.root, "copy", "one", "two", "oth") == ["other:1"]


def test_keys_after_words_that_bash_takes_apart(image: Cli, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"{}")
    digest = "ef" * 32
    image("tag", "other:1", "localhost:5000/b:12")
    for key in ("manifest", f"sha256:{digest}"):
        image("put", "other:1", key, tmp_path / "data")
    name = ("localhost", ":", "5000/b", ":", "12")
    assert completed(image.root, "get", *name, "ma") == ["manifest"]
    assert completed(image.root, "get", *name, "sha256", ":", "ef") == [digest]
    assert completed(image.root, "get", *name, "sha256", ":") == [digest]
    assert completed(image.root, "inspect", "localhost/a", ":") == ["1", "2"]


def test_options_after_the_command_count(image: Cli, path: Path) -> None:
    assert completed(path.parent / "wrong", "inspect", "--root", str(path), "other") == ["other:1"]


def test_it_never_fails_and_makes_no_store(path: Path, tmp_path: Path) -> None:
    assert completed(path, "inspect", "") == []
    assert not path.exists()
    path.write_text("no store")
    assert completed(path, "inspect", "") == []
    path.unlink()
    missing = str(tmp_path / "missing.conf")
    variables = {
        "_AIMAGESTORE_COMPLETE": "bash_complete",
        "COMP_WORDS": "aimagestore inspect ",
        "COMP_CWORD": "2",
        "CONTAINERS_STORAGE_CONF": missing,
    }
    assert program(variables=variables).stderr == b""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str) -> None:
    script = program("--show-completion", shell).stdout.decode()
    assert f"_AIMAGESTORE_COMPLETE={shell}_complete" in script
    assert "aimagestore" in script


@pytest.mark.parametrize(
    ("word", "offered"), [("other", "other:1"), ("localhost : 5000/b :", "12")]
)
def test_bash_itself(image: Cli, word: str, offered: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    image("tag", "other:1", "localhost:5000/b:12")
    words = f"aimagestore --root {image.root} inspect {word}"
    result = subprocess.run(
        [
            bash,
            "-c",
            _IN_BASH,
            words,
        ],
        env=environment(PATH=f"{SCRIPTS}:/usr/bin:/bin"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{offered}\n"
