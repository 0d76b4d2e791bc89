"""A store with additional stores, beside podman with the same ``additionalimagestores``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from aimagestore import ImageStore, StoreReadOnlyError
from aimagestore.podman import open_store, snapshot

from ..cli.conftest import environment
from ..support.stores import tree
from ..support.template import Template
from . import generation
from .mounts import read_only_bind
from .tools import Tools, forget_root, require, write_configuration

pytestmark = pytest.mark.peers

PROGRAMS = os.pathsep.join(f"{generation.ROOT}/{part}" for part in ("usr/bin", "bin"))

Row = tuple[str, ...]
"""A repository, a tag, the beginning of an ID, a size, and whether the image is read-only."""


class Stacked:
    """A podman with two additional stores.

    :ivar own: its own store
    :ivar first: the first additional store
    :ivar second: the second
    """

    def __init__(self, base: Path, template: Template) -> None:
        self._template = template
        self.own, self.first, self.second = (Tools(base / name) for name in ("a", "b", "c"))
        self._configuration = base / "storage.conf"
        self.configure(self.first.graph, self.second.graph)

    def configure(self, *additional: Path) -> None:
        """Write the configuration that names these graph roots."""
        write_configuration(self._configuration, self.own, *additional)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that name the configuration."""
        return {"CONTAINERS_STORAGE_CONF": str(self._configuration)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run podman."""
        variables = (f"{name}={value}" for name, value in self.variables.items())
        command = generation.command("env", *variables, "podman", *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def podman(self, *arguments: str) -> str:
        """Run podman, and return what it prints."""
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def podman_rows(self) -> list[Row]:
        """Return what podman lists, without copies in additional stores of its own images."""
        rows = _rows(self.podman("images"))
        own = {row[2] for row in rows if row[-1] == "false"}
        return [row for row in rows if row[-1] == "false" or row[2] not in own]

    def our_rows(self) -> list[Row]:
        """Return what ``aimagestore images`` lists."""
        variables = environment(**self.variables, PATH=PROGRAMS)
        result = self._template.run("images", stdin=None, data=b"", variables=variables)
        assert result.returncode == 0, result.stderr
        return _rows(result.stdout.decode())

    def open(self, *, read_only: bool = False) -> AbstractAsyncContextManager[ImageStore]:
        """Open the stores that the configuration names."""
        environ = {"PATH": PROGRAMS, "HOME": "/root", **self.variables}
        return open_store(read_only=read_only, environ=environ)


def _rows(text: str) -> list[Row]:
    header, *lines = text.splitlines()
    headings = re.split(r" {2,}", header.strip())
    assert headings == ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "R/O"]
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    return sorted((*row[:3], *row[4:]) for row in cells)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of three stores with images that buildah has committed."""
    require("podman", "buildah")
    base = Path(tempfile.mkdtemp(prefix="peers-"))
    own, first, second = (Tools(base / name) for name in ("a", "b", "c"))
    own.commit("localhost/own:1", "own")
    for name in ("one", "two"):
        first.commit(f"localhost/{name}:1", name)
    second.commit("localhost/three:1", "three")
    second.podman("tag", "localhost/three:1", "localhost/one:1", "localhost/own:1")
    yield base
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    """The process that runs the ``aimagestore`` command."""
    template = Template(variables=environment())
    yield template
    template.close()


@pytest.fixture
def stacked(made: Path, template: Template, short_path: Path) -> Iterator[Stacked]:
    """A podman with additional stores, which no test may change."""
    for name in ("a", "b", "c"):
        shutil.copytree(made / name, short_path / name, symlinks=True)
    found = Stacked(short_path, template)
    forget_root(found.own)
    before = [tree(each.image_store) for each in (found.first, found.second)]
    yield found
    assert [tree(each.image_store) for each in (found.first, found.second)] == before


def ids_of(tools: Tools) -> dict[str, str]:
    """Return the IDs of a store's images by their names."""
    records = json.loads((tools.image_store / "images.json").read_bytes())
    return {name: record["id"] for record in records for name in record.get("names") or ()}


async def test_both_list_and_find_the_same(stacked: Stacked) -> None:
    rows = stacked.podman_rows()
    assert len(rows) == 6
    assert [row[-1] for row in rows].count("true") == 5
    assert stacked.our_rows() == rows
    async with stacked.open() as store:
        now = await snapshot(store)
        for image in now.images:
            assert [layer.id for layer in now.layers_of(image.id)][-1] == image.top_layer
        refs = [
            ref for image in await store.images() for ref in (image.id, image.id[:10], *image.names)
        ]
        theirs = stacked.podman("image", "inspect", "--format", "{{.Id}}", *refs).split()
        assert [await store.lookup(ref) for ref in refs] == theirs
        three = ids_of(stacked.second)["localhost/one:1"]
        assert three not in {
            await store.lookup("localhost/one:1"),
            await store.lookup("localhost/own:1"),
        }
        assert await store.lookup("localhost/three:1") == three


async def test_podman_uses_images_that_were_copied_here(stacked: Stacked) -> None:
    one, two = ids_of(stacked.first)["localhost/one:1"], ids_of(stacked.first)["localhost/two:1"]
    async with stacked.open(read_only=False) as store:
        await store.add_names("localhost/one:1", ["localhost/new:1"])
        await store.set_metadata(two, "{}")
        await store.add_names("localhost/own:1", ["localhost/three:1"])
        with pytest.raises(StoreReadOnlyError, match=str(stacked.second.image_store)):
            await store.delete(ids_of(stacked.second)["localhost/one:1"])
    rows = stacked.podman_rows()
    assert {row[0] for row in rows if row[-1] == "false"} == {
        *("localhost/own", "localhost/one", "localhost/two", "localhost/new", "localhost/three")
    }
    assert [row[:3] + row[-1:] for row in stacked.our_rows()] == [
        row[:3] + row[-1:] for row in rows
    ]
    inspected = json.loads(stacked.podman("image", "inspect", "localhost/new:1"))[0]
    assert inspected["Id"] == one
    assert stacked.podman("image", "exists", two[:10]) == ""
    stacked.podman("create", "--name", "c", "localhost/new:1", "/hello")
    stacked.podman("rm", "c")
    stacked.podman("rmi", "--force", one)
    assert stacked.our_rows() == stacked.podman_rows()
    assert (one[:12], "true") in {(row[2], row[-1]) for row in stacked.our_rows()}


async def test_images_that_podman_copies_are_seen_here(stacked: Stacked) -> None:
    two = ids_of(stacked.first)["localhost/two:1"]
    async with stacked.open(read_only=True) as store, store.watch() as watch:
        stacked.podman("tag", "localhost/two:1", "localhost/new:1")
        assert await store.lookup("localhost/new:1") == two
        image = await store.get(two)
        assert not image.read_only
        event = await anext(watch)
        assert (event.kind, event.id, event.image) == ("changed", two, image)
        stacked.podman("rmi", "localhost/own:1")
        assert await store.lookup("localhost/own:1") == ids_of(stacked.second)["localhost/one:1"]
        assert [row[:3] for row in stacked.our_rows()] == [row[:3] for row in stacked.podman_rows()]


async def test_an_additional_store_on_a_read_only_mount(stacked: Stacked, short_path: Path) -> None:
    with read_only_bind(stacked.first.graph, short_path / "ro") as graph:
        stacked.configure(graph, stacked.second.graph)
        rows = stacked.podman_rows()
        assert stacked.our_rows() == rows
        async with stacked.open(read_only=False) as store:
            await store.add_names("localhost/two:1", ["localhost/new:1"])
        assert "localhost/new" in {row[0] for row in stacked.podman_rows()}


async def test_a_missing_additional_store_is_left_out(stacked: Stacked, short_path: Path) -> None:
    stacked.configure(short_path / "missing", stacked.first.graph)
    assert {row[0] for row in stacked.our_rows()} == {
        *("localhost/own", "localhost/one", "localhost/two")
    }
    assert not (short_path / "missing").exists()
