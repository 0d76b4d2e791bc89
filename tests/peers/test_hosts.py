"""The example programs that share or inspect podman's stores, beside podman."""

from __future__ import annotations

import io
import json
import runpy
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import anyio
import pytest

from aimagestore import ImageStore, oci

from ..support.serving import serving
from ..support.stores import tree
from . import generation
from .mounts import read_only_bind
from .tools import PreparedStores, Tools, require, run, write_configuration

pytestmark = pytest.mark.peers

APPS = Path(__file__).parents[1] / "apps"


def make_two(tools: Tools) -> None:
    tools.build("localhost/base:1", "scratch", "a", "b")
    tools.build("localhost/app:1", "localhost/base:1", "c")


@pytest.fixture
def tools(short_path: Path, prepared: PreparedStores) -> Tools:
    """podman, with an image of two layers, and an image that adds one to it."""
    require("podman")
    return prepared.copy(make_two, short_path)


def run_app(name: str, *arguments: object) -> str:
    """Run an example program in this process, and return what it prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(APPS / name), run_name="__main__")
    return printed.getvalue()


def test_a_scanner_prints_the_images_of_podman(tools: Tools) -> None:
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


# A store in front of a store that many hosts share


class Node:
    """A podman with its own store in front of a shared one.

    :ivar own: its own store
    :ivar shared: where the graph root of the shared one is mounted
    """

    def __init__(self, base: Path) -> None:
        self.own = Tools(base / "own")
        self.own.graph.mkdir(parents=True)
        self.shared = base / "shared"
        self._configuration = base / "storage.conf"
        write_configuration(self._configuration, self.own, self.shared)

    @property
    def shared_images(self) -> Path:
        """The shared image store."""
        return self.shared / "vfs-images"

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs podman on the node."""
        variable = f"CONTAINERS_STORAGE_CONF={self._configuration}"
        return generation.command("env", variable, "podman", *arguments)

    def podman(self, *arguments: str) -> str:
        """Run podman on the node, and return what it prints."""
        result = subprocess.run(self.command(*arguments), check=True, capture_output=True)
        return result.stdout.decode().strip()


@pytest.fixture
def node(short_path: Path) -> Node:
    """A node with an empty store of its own."""
    require("podman")
    return Node(short_path / "node")


def test_a_job_finds_the_image_that_a_site_shares(tools: Tools, node: Node) -> None:
    (tools.root / "context" / "Containerfile").write_text(
        'FROM localhost/app:1\nENV GREETING=hello\nCMD ["/run", "it"]\n'
    )
    tools.podman("build", "--quiet", "--tag", "localhost/job:1", str(tools.root / "context"))
    job = tools.inspect("localhost/job:1")
    with read_only_bind(tools.graph, node.shared):
        before = tree(tools.graph)
        stores = (node.own.image_store, node.shared_images)
        found = json.loads(run_app("hpc_job.py", *stores, "localhost/job:1"))
        assert found["shared"] is True
        assert found["id"] == job["Id"]
        assert found["command"] == ["/run", "it"]
        assert "GREETING=hello" in found["environment"]
        assert found["size"] == job["Size"]
        assert len(found["layers"]) == len(job["RootFS"]["Layers"])
        alias = "localhost/mine:1"
        named = json.loads(run_app("hpc_job.py", *stores, "localhost/job:1", "--alias", alias))
        assert named == found | {"shared": False, "names": [alias, "localhost/job:1"]}
        assert node.podman("image", "inspect", "--format", "{{.Id}} {{.Size}}", alias) == (
            f"{job['Id']} {job['Size']}"
        )
        assert tree(tools.graph) == before


def prepare(arguments: list[object]) -> list[str]:
    """Run the CI runner's program, and return where it found each image."""
    return [line.split(" ", 2)[2] for line in run_app("ci_runner.py", *arguments).splitlines()]


def test_a_runner_pulls_only_missing_images(tools: Tools, node: Node, tmp_path: Path) -> None:
    require("skopeo")
    layout = tmp_path / "layout"
    for name in ("base", "app"):
        source = f"{tools.reference}localhost/{name}:1"
        run("skopeo", "copy", "--quiet", source, f"oci:{layout}:localhost/{name}:1")

    async def fill() -> None:
        async with ImageStore(tmp_path / "images") as store:
            await oci.import_layout(store, layout)

    anyio.run(fill)
    with serving("asyncio", tmp_path / "images") as server:
        base, app = (f"{server.address}/localhost/{name}:1" for name in ("base", "app"))
        tools.podman("tag", "localhost/base:1", base)
        with read_only_bind(tools.graph, node.shared):
            pull = shlex.join(node.command("pull", "--quiet", "--tls-verify=false"))
            options = ["--own", node.own.image_store, "--cache", node.shared_images]
            arguments: list[object] = [*options, "--pull", pull, base, app]
            assert prepare(arguments) == ["in the cache", "pulled"]
            assert prepare(arguments) == ["in the cache", "here"]
            for name in (base, app):
                node.podman("image", "exists", name)
        # The cache is not mounted any more.
        assert prepare(arguments) == ["pulled", "here"]
