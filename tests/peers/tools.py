"""podman, buildah, skopeo and containers-storage on a store of the test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import generation

_POLICIES = ("/etc/containers/policy.json", "~/.config/containers/policy.json")


def require(*tools: str) -> None:
    """Skip the test if a tool is missing, or cannot work here."""
    for tool in tools:
        if not generation.has_program(tool):
            pytest.skip(f"needs {tool}: apt-get install {'golang-go' if tool == 'go' else tool}")
    if "go" in tools and generation.storage_import() is None:
        pytest.skip(
            "needs the Go library containers/storage: "
            "apt-get install golang-github-containers-storage-dev"
        )
    if {"podman", "buildah", "skopeo"} & set(tools):
        if os.geteuid() != 0:
            pytest.skip("needs root for podman, buildah and skopeo on a store of their own")
        if not any(_exists(path) for path in _POLICIES):
            pytest.skip(f"needs a containers policy: {_POLICIES[0]}")


def _exists(path: str) -> bool:
    return os.path.exists(f"{generation.ROOT}/{os.path.expanduser(path)}")


def has_go() -> bool:
    """Return whether the Go program can be built."""
    return generation.has_program("go") and generation.storage_import() is not None


def run(*command: object) -> str:
    """Run a program of the generation, and return what it prints.

    :raises AssertionError: when it fails, with its errors
    """
    parts = generation.command(*command)
    result = subprocess.run(parts, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, f"{parts}: {result.stderr}"
    return result.stdout.strip()


@dataclass(frozen=True)
class Tools:
    """The tools on the store below one root directory."""

    root: Path
    driver: str = "vfs"

    @property
    def graph(self) -> Path:
        """Their graph root."""
        return self.root / "graph"

    @property
    def image_store(self) -> Path:
        """The directory of their image store."""
        return self.graph / f"{self.driver}-images"

    @property
    def where(self) -> list[str]:
        """The options by which podman and buildah find the store."""
        run_root = str(self.root / "run")
        return [
            *("--root", str(self.graph)),
            *("--runroot", run_root),
            *("--storage-driver", self.driver),
        ]

    @property
    def reference(self) -> str:
        """The prefix of an image's address for skopeo."""
        return f"containers-storage:[{self.driver}@{self.graph}+{self.root / 'run'}]"

    def podman(self, *arguments: str) -> str:
        """Run podman, and return what it prints."""
        return run("podman", *self.where, *arguments)

    def buildah(self, *arguments: str) -> str:
        """Run buildah, and return what it prints."""
        return run("buildah", *self.where, *arguments)

    def containers_storage(self, *arguments: str) -> str:
        """Run containers-storage, and return what it prints."""
        where = ["-g", self.graph, "-R", self.root / "run", "-s", self.driver]
        return run("containers-storage", *where, *arguments)

    def commit(self, name: str, content: str) -> str:
        """Commit an image with one layer of one file, and return its ID."""
        self.root.mkdir(exist_ok=True)
        file = self.root / "hello.txt"
        file.write_text(content)
        container = self.buildah("from", "scratch")
        self.buildah("copy", container, str(file), "/")
        image_id = self.buildah("commit", "--quiet", container, name)
        self.buildah("rm", container)
        return image_id

    def build(self, name: str, base: str, *contents: str) -> str:
        """Build an image with podman, with one more layer for each content, and return its ID."""
        folder = self.root / "context"
        folder.mkdir(exist_ok=True)
        lines = [f"FROM {base}"]
        for content in contents:
            (folder / content).write_text(content * 1000)
            lines.append(f"COPY {content} /")
        (folder / "Containerfile").write_text("\n".join(lines))
        return self.podman("build", "--layers", "--quiet", "--tag", name, str(folder)).split()[-1]

    def names(self) -> dict[str, list[str]]:
        """Return the names of the images that podman lists, by ID."""
        found: dict[str, list[str]] = {}
        for image in json.loads(self.podman("images", "--format", "json")):
            found[image["Id"]] = image.get("Names") or []
        return found

    def inspect(self, name: str) -> Any:
        """Return what ``podman image inspect`` prints of an image."""
        return json.loads(self.podman("image", "inspect", name))[0]


class PreparedStores:
    """Stores of the tools that are made once, and copied for each test.

    :param directory: a new directory for them, with a short path
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[Callable[[Tools], object], Path] = {}

    def copy(self, make: Callable[[Tools], object], root: Path) -> Tools:
        """Copy the store that a function makes to a root, and return the tools on the copy."""
        if make not in self._made:
            made = self._directory / str(len(self._made))
            made.mkdir()
            make(Tools(made))
            forget_root(Tools(made))
            self._made[make] = made
        shutil.copytree(
            self._made[make],
            root,
            symlinks=True,
            ignore=lambda directory, _: {"run"} if directory == str(self._made[make]) else set(),
            dirs_exist_ok=True,
        )
        return Tools(root)


def write_configuration(file: Path, tools: Tools, *additional: Path) -> None:
    """Write a storage.conf with the store of the tools, and graph roots of additional stores."""
    names = ", ".join(f'"{path}"' for path in additional)
    file.write_text(
        f'[storage]\ndriver = "{tools.driver}"\ngraphroot = "{tools.graph}"\n'
        f'runroot = "{tools.root / "run"}"\n'
        f"[storage.options]\nadditionalimagestores = [{names}]\n"
    )


def forget_root(tools: Tools) -> None:
    """Remove podman's record of where its store is, so that the store can be moved."""
    shutil.rmtree(tools.graph / "libpod", ignore_errors=True)
    (tools.graph / "db.sql").unlink(missing_ok=True)
