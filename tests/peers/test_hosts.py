"""The programs for people who share or inspect podman's stores, beside the real podman."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.stores import tree
from .tools import Tools, require

pytestmark = pytest.mark.peers

APPS = Path(__file__).parents[1] / "apps"


@pytest.fixture
def tools(short_path: Path) -> Tools:
    """podman, with an image of two layers, and another on top of it."""
    require("podman")
    tools = Tools(short_path)
    tools.build("localhost/base:1", "scratch", "a", "b")
    tools.build("localhost/app:1", "localhost/base:1", "c")
    return tools


def run_app(name: str, *arguments: object) -> str:
    """Run one of the programs, and return what it prints."""
    command = [sys.executable, str(APPS / name), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_scanner_prints_what_podman_has(tools: Tools) -> None:
    tools.podman("create", "--name", "user", "localhost/app:1", "/x")
    before = tree(tools.graph)
    output = run_app("scan.py", tools.image_store)
    assert tree(tools.graph) == before
    scanned = {image["id"]: image for image in map(json.loads, output.splitlines())}
    listed = json.loads(tools.podman("images", "--all", "--format", "json"))
    assert scanned.keys() == {image["Id"] for image in listed}
    for image in listed:
        found, inspected = scanned[image["Id"]], tools.inspect(image["Id"])
        assert found["names"] == inspected["RepoTags"]
        assert inspected["Digest"] in found["digests"]
        assert found["size"] == image["Size"]
        assert [layer["diff_id"] for layer in found["layers"]] == inspected["RootFS"]["Layers"]
        assert len(found["containers"]) == image["Containers"]
    (scanned_app,) = (image for image in scanned.values() if image["containers"])
    assert scanned_app["names"] == ["localhost/app:1"]
    assert scanned_app["containers"] == ["user"]
    assert [layer["shared"] for layer in scanned_app["layers"]] == [True, True, False]
