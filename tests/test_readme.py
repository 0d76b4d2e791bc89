"""The README's code, run as it stands there."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import uvicorn

from aimagestore import DigestMismatchError, ImageStore

from .apps.registry import registry
from .support.buildah import FIXTURE
from .test_apps import LAYER, NAME, digest_of, fill, until

if TYPE_CHECKING:
    from .cluster.servers import Place, Servers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
INTRO_STORE = "/var/lib/containers/storage/overlay-images"
INTRO_IMAGE = "quay.io/podman/hello:latest"


def section(heading: str) -> str:
    """The text between a heading and the next one."""
    match = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL
    )
    assert match is not None, heading
    return match[1]


def blocks(text: str, language: str) -> list[str]:
    """The code in a text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


async def run(code: str, names: dict[str, Any]) -> None:
    """Run code as ``python -m asyncio`` would, on any event loop."""
    compiled = compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, names)
    if inspect.iscoroutine(result):
        await result


TOUR = blocks(section("Five minutes"), "python")
RECIPES = blocks(section("Recipes"), "python")
CLUSTER = blocks(section("Beyond one machine"), "python")
PODMAN = blocks(section("Beside podman"), "python")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that looks like a clone's, to be in."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURE.parent, tmp_path / "tests" / "data")
    return tmp_path


async def test_the_tour(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    printed = []
    for code in TOUR:
        await run(code, names)
        printed.append(capsys.readouterr().out)
    created, unknown, streamed, checked, watched, imported = printed
    assert created.endswith("('localhost/note:1',) 5\n")
    assert unknown == "no image is known by 'nobody'\n"
    assert f"of 800000 bytes of {names['image'].big_data_digests['text']}" in streamed
    assert checked == "{'by': 'me', 'score': 0.9}\n"
    assert watched == "changed deleted\n"
    assert imported.startswith("('localhost/hello:1',) ['manifest'")
    assert (clone / "hello.tar").is_file()


def test_the_tour_from_the_shell(clone: Path) -> None:
    names: dict[str, Any] = {}
    for code in (TOUR[0], TOUR[-1]):
        anyio.run(run, code, names)
    (console,) = blocks(section("Five minutes"), "console")
    printed = []
    for line in console.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "aimagestore"
        command = [sys.executable, "-m", "aimagestore", *arguments]
        printed.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    images, _, manifest, _ = printed
    assert "localhost/hello" in images
    assert "localhost/note" in images
    assert digest_of(manifest.encode()) == (
        "sha256:f9192b232a5ff2f0e263db4f364dc4b95370354a3294c035e9c6b739d8c3a329"
    )


async def test_the_first_lines(clone: Path, path: Path) -> None:
    (code,) = blocks(README.partition("\n## ")[0], "python")
    assert INTRO_STORE in code
    shutil.copytree(FIXTURE, path)
    names: dict[str, Any] = {}
    adapted = code.replace(INTRO_STORE, str(path)).replace(INTRO_IMAGE, "localhost/hello:1")
    await run(adapted, names)
    assert digest_of(names["manifest"]) == names["image"].digest


@pytest.mark.damage
async def test_the_lines_on_damage(
    clone: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(section("When a store is damaged"), "python")
    shutil.copytree(FIXTURE, path)
    (path / "images.json").unlink()
    await run(code, {"path": path})
    assert "directory-orphaned" in capsys.readouterr().out
    assert (await run_check(path)).ok


async def run_check(path: Path) -> Any:
    from aimagestore import check

    return await check(path)


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The registry, in a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(registry(path), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v2"
        server.should_exit = True
        thread.join()


async def test_the_recipe_for_pulling(store: ImageStore, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    await run(RECIPES[0], names)
    await fill(tmp_path / "images")
    await store.create("one")
    digest = digest_of(LAYER)
    with served(tmp_path / "images") as address:
        url = f"{address}/{NAME.partition(':')[0]}/blobs/{digest}"
        with pytest.raises(DigestMismatchError):
            await names["pull"](store, "one", url, digest_of(b"other"))
        assert await store.big_data_names("one") == []
        await names["pull"](store, "one", url, digest)
    assert await store.big_data("one", digest) == LAYER


async def test_the_recipe_for_many_images(store: ImageStore) -> None:
    names: dict[str, Any] = {"ImageStore": ImageStore}
    await run(RECIPES[1], names)
    await names["import_all"](store, {"a": b"1", "b": b"2"})
    assert [image.names for image in await store.images()] == [("a",), ("b",)]
    assert await store.big_data("b", "content") == b"2"


async def test_the_recipe_for_keeping_in_step(store: ImageStore) -> None:
    names: dict[str, Any] = {"ImageStore": ImageStore}
    await run(RECIPES[2], names)
    await store.create("one", names=["a"])
    follower = names["names_now"](store)
    assert await anext(follower) == {"one": ("a",)}
    await store.create("two", names=["b"])
    assert await anext(follower) == {"one": ("a",), "two": ("b",)}
    await store.delete("one")
    assert await anext(follower) == {"two": ("b",)}
    await follower.aclose()


def test_the_recipe_for_more_processes(path: Path) -> None:
    anyio.run(fill, path)
    program = f"import anyio\nfrom aimagestore import ImageStore\n{RECIPES[3]}"
    command = [sys.executable, "-c", f"{program}\nserve_one_more({str(path)!r})"]
    assert subprocess.check_output(command, text=True) == "1 images\n"


async def test_podmans_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tmp_path / "graph"
    configuration = f'driver = "vfs"\ngraphroot = "{graph}"\nrunroot = "{tmp_path}/run"\n'
    (tmp_path / "storage.conf").write_text(f"[storage]\n{configuration}")
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    (graph / "vfs-images").mkdir(parents=True)
    async with ImageStore(graph / "vfs-images") as store:
        await store.create("one")
    names: dict[str, Any] = {}
    (code,) = PODMAN
    await run(code, names)
    assert [image.id for image in names["images"]] == ["one"]


@pytest.fixture
def place(servers: Servers) -> Iterator[Place]:
    """A database and a part of a bucket, new."""
    with servers.new_place() as place:
        yield place


async def test_a_store_on_a_cluster(place: Place) -> None:
    (code,) = CLUSTER
    code = code.replace("postgresql://db.example/images", place.records_url)
    names: dict[str, Any] = {}
    await run(code.replace("s3://bucket/prefix", place.blobs_url), names)
    async with ImageStore(place.location()) as store:
        assert await store.images() == []
    assert names["store"].read_only is False


def test_every_block_is_run_here() -> None:
    assert (
        len(blocks(README, "python")) == len(TOUR) + len(RECIPES) + len(CLUSTER) + len(PODMAN) + 2
    )
    assert len(blocks(README, "sh")) == 2, "those that .ci/run runs"
