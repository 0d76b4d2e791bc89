"""The README and the pages: their code runs, their links have targets, tables are up to date."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from aimagestore import DigestMismatchError, ImageStore, check

from .apps.registry import registry
from .support.buildah import FIXTURE
from .support.layouts import digest_of
from .support.pages import DOCS, GENERATED, MARK, ROOT, blocks, page, section
from .support.serving import LAYER, NAME, fill, until

if TYPE_CHECKING:
    from .cluster.servers import Place, Servers


async def run(code: str, names: dict[str, Any]) -> None:
    """Run code as ``python -m asyncio`` would, on any event loop."""
    compiled = compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, names)
    if inspect.iscoroutine(result):
        await result


README = page("README")
GUIDE = page("guide")
FIVE_MINUTES = blocks(section(GUIDE, "Five minutes"), "python")
RECIPES = blocks(section(GUIDE, "Recipes"), "python")
PULL, SERVE, SEND = blocks(page("http"), "python")


def shell(text: str) -> list[str]:
    """Run the commands in a text, and return what each printed."""
    (console,) = blocks(text, "console")
    printed = []
    for line in console.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "aimagestore"
        command = [sys.executable, "-m", "aimagestore", *arguments]
        printed.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return printed


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that looks like a clone's, to be in."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURE.parent, tmp_path / "tests" / "data")
    return tmp_path


async def test_the_five_minutes_of_the_guide_run(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    # Whoever reads the README first has a store from there, in the same clone.
    (code,) = blocks(section(README, "Keep a store of your own"), "python")
    await run(code, names)
    capsys.readouterr()
    printed = []
    for code in FIVE_MINUTES:
        await run(code, names)
        printed.append(capsys.readouterr().out)
    created, unknown, streamed, checked, watched, imported = printed
    assert created.endswith("('localhost/note:1',) 5\n")
    assert unknown == "no image is known by 'unknown'\n"
    assert f"of 800000 bytes of {names['image'].big_data_digests['text']}" in streamed
    assert checked == "{'by': 'me', 'score': 0.9}\n"
    assert watched == "changed deleted\n"
    assert imported.startswith("('localhost/hello:1',) ['manifest'")
    assert (clone / "hello.tar").is_file()


def test_the_commands_of_the_five_minutes_run(clone: Path) -> None:
    names: dict[str, Any] = {}
    for code in (FIVE_MINUTES[0], FIVE_MINUTES[-1]):
        anyio.run(run, code, names)
    images, _, manifest, _ = shell(section(GUIDE, "Five minutes"))
    assert "localhost/hello" in images
    assert "localhost/note" in images
    assert digest_of(manifest.encode()) == (
        "sha256:f9192b232a5ff2f0e263db4f364dc4b95370354a3294c035e9c6b739d8c3a329"
    )


async def test_the_lines_on_repair_run(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(page("recovery"), "python")
    shutil.copytree(FIXTURE, "images")
    Path("images/images.json").unlink()
    await run(code, {})
    assert "directory-orphaned" in capsys.readouterr().out
    assert (await check("images")).ok


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The address of an application that runs in a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


async def test_the_recipe_for_pulling_verifies_a_layer(store: ImageStore, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    await run(PULL, names)
    await fill(tmp_path / "images")
    await store.create("one")
    digest = digest_of(LAYER)
    with served(registry(tmp_path / "images")) as address:
        url = f"{address}/v2/{NAME.partition(':')[0]}/blobs/{digest}"
        with pytest.raises(DigestMismatchError):
            await names["pull"](store, "one", url, digest_of(b"other"))
        assert await store.big_data_names("one") == []
        await names["pull"](store, "one", url, digest)
    assert await store.big_data("one", digest) == LAYER


async def test_the_lines_on_housekeeping_prune_images(
    store: ImageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    (code,) = blocks(section(GUIDE, "Housekeeping"), "python")
    await run(code, names)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    await store.create("old", names=["localhost/old:1"], created=long_ago)
    await store.create("new", names=["localhost/new:1"])
    await store.create("latest", names=["localhost/old:latest"], created=long_ago)
    await names["keep_house"](store)
    assert [image.id for image in await store.images()] == ["new", "latest"]
    assert "would free" in capsys.readouterr().out


async def test_the_recipe_for_many_images_imports_them(store: ImageStore) -> None:
    names: dict[str, Any] = {}
    await run(RECIPES[0], names)
    await names["import_all"](store, {"a": b"1", "b": b"2"})
    assert [image.names for image in await store.images()] == [("a",), ("b",)]
    assert await store.big_data("b", "content") == b"2"


async def test_the_recipe_for_following_changes_has_each_name(store: ImageStore) -> None:
    names: dict[str, Any] = {}
    await run(RECIPES[1], names)
    await store.create("one", names=["a"])
    follower = names["names_now"](store)
    assert await anext(follower) == {"one": ("a",)}
    await store.create("two", names=["b"])
    assert await anext(follower) == {"one": ("a",), "two": ("b",)}
    await store.delete("one")
    assert await anext(follower) == {"two": ("b",)}
    await follower.aclose()


def test_the_recipe_for_more_processes_serves_in_a_new_one(path: Path) -> None:
    anyio.run(fill, path)
    command = [sys.executable, "-c", f"{RECIPES[2]}\nserve_one_more({str(path)!r})"]
    assert subprocess.check_output(command, text=True) == "1 images\n"


@pytest.fixture
def graph_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph root that holds buildah's store with a layer, and is the configured one."""
    graph = tmp_path / "graph"
    configuration = f'driver = "vfs"\ngraphroot = "{graph}"\nrunroot = "{tmp_path}/run"\n'
    (tmp_path / "storage.conf").write_text(f"[storage]\n{configuration}")
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    shutil.copytree(FIXTURE, graph / "vfs-images")
    (record,) = json.loads((graph / "vfs-images" / "images.json").read_text())
    layer = {"id": record["layer"], "diff-digest": digest_of(b"layer"), "diff-size": 5}
    (graph / "vfs-layers").mkdir()
    (graph / "vfs-layers" / "layers.json").write_text(json.dumps([layer]))
    return graph


async def test_the_readme_reads_podmans_store(
    graph_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    await run(blocks(section(README, "Read podman's store"), "python")[0], names)
    assert "localhost/hello:1" in capsys.readouterr().out
    assert digest_of(names["manifest"]) == names["image"].digest


async def test_the_page_on_podman_finds_its_store(
    graph_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, _, finding = blocks(page("podman"), "python")
    await run(reading, {})
    assert digest_of(b"layer") in capsys.readouterr().out
    await run(finding, {})
    assert f"{graph_root} vfs {graph_root}/vfs-images" in capsys.readouterr().out


async def test_the_page_on_podman_prints_each_new_image_once_when_it_has_a_name(
    graph_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    await run(blocks(page("podman"), "python")[1], names)
    async with ImageStore(graph_root / "vfs-images") as store, anyio.create_task_group() as tasks:
        (old,) = await store.images()
        tasks.start_soon(names["print_new_images"])
        manifest = await store.big_data(old.id, "manifest")
        config = await store.big_data(old.id, f"sha256:{old.id}")
        items = {"manifest": manifest, f"sha256:{'2' * 64}": config}
        printed, number = "", 0
        while not printed:  # until the watch has begun
            number += 1
            await store.create(f"{number:064x}", big_data=items, force=True)
            await store.add_names(old.id, [f"localhost/old:{number}"])
            await store.add_names(f"{number:064x}", [f"localhost/new:{number}"])
            await anyio.sleep(0.05)
            printed = capsys.readouterr().out
        await store.set_metadata(f"{number:064x}", "{}")
        await store.create("e" * 64, big_data=items, force=True)
        await store.create("f" * 64, names=["localhost/last:1"], big_data=items, force=True)
        while "last" not in printed:
            await anyio.sleep(0.01)
            printed += capsys.readouterr().out
        tasks.cancel_scope.cancel()
    *new, last = printed.splitlines()
    shown = f"{len(manifest) + len(config)} {old.digest}"
    # The watch began at some image, and printed that and those after it.
    first = number + 1 - len(new)
    assert new == [f"localhost/new:{each} {shown}" for each in range(first, number + 1)]
    assert last == f"localhost/last:1 {shown}"


def test_the_readme_keeps_a_store_of_its_own(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = section(README, "Keep a store of your own")
    (code,) = blocks(text, "python")
    anyio.run(run, code, {})
    assert capsys.readouterr().out == "created b'hello'\n"
    images, item = shell(text)
    assert "localhost/first" in images
    assert item == "hello"


@pytest.fixture
def place(servers: Servers) -> Iterator[Place]:
    """A database and a part of a bucket, new."""
    with servers.new_place() as place:
        yield place


def at(place: Place, code: str) -> str:
    """Put the addresses of servers into code."""
    code = code.replace("postgresql://db.example/images", place.records_url)
    return code.replace("s3://bucket/prefix", place.blobs_url)


async def test_the_page_on_clusters_and_the_readme_use_a_cluster(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(page("cluster"), "python")
    await run(at(place, code), {})
    async with ImageStore(place.location()) as store:
        assert await store.images() == []
    (code,) = blocks(section(README, "Serve a fleet"), "python")
    await run(at(place, code), {})
    assert capsys.readouterr().out == "False\n"


def test_the_recipe_for_ranges_serves_them(path: Path) -> None:
    names: dict[str, Any] = {}
    anyio.run(run, SERVE, names)
    anyio.run(fill, path)
    (image_id,) = (entry.name for entry in path.iterdir() if entry.is_dir())
    app = names["serve"](str(path))
    with served(app) as address, httpx.Client(base_url=address) as client:
        url = f"/{image_id}/{digest_of(LAYER)}"
        whole = client.get(url)
        assert (whole.status_code, whole.content) == (200, LAYER)
        part = client.get(url, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, LAYER[10:20])
        assert part.headers["Content-Range"] == f"bytes 10-19/{len(LAYER)}"
        rest = client.get(url, headers={"Range": f"bytes={len(LAYER) - 5}-"})
        assert (rest.status_code, rest.content) == (206, LAYER[-5:])
        assert client.get(url, headers={"Range": f"bytes={len(LAYER)}-"}).status_code == 416
        assert client.get(f"/{NAME}/{digest_of(LAYER)}").content == LAYER
        assert client.get(f"/{image_id}/unknown").status_code == 404
        assert client.get("/unknown/manifest").status_code == 404


async def test_the_recipe_for_sending_a_path_sends_the_item(store: ImageStore) -> None:
    names: dict[str, Any] = {}
    await run(SEND, names)
    await store.create("one", big_data={"key": LAYER})
    ways: list[dict[str, Any]] = [{"http.response.pathsend": {}}, {}]
    for extensions in ways:
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            if message["type"] == "http.response.pathsend":
                message = {"body": await anyio.Path(message["path"]).read_bytes()}
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        await names["send_item"](store, "one", "key", {"extensions": extensions}, receive, send)
        assert sent[0]["headers"] == [(b"content-length", str(len(LAYER)).encode())]
        assert b"".join(message.get("body", b"") for message in sent[1:]) == LAYER


# What holds for all pages

PAGES = ["README", *sorted(file.stem for file in DOCS.glob("*.md"))]
RUN = {"README": 3, "guide": 10, "http": 3, "recovery": 1, "podman": 3, "cluster": 1}


def test_every_block_of_code_is_run_here() -> None:
    for name in PAGES:
        assert len(blocks(page(name), "python")) == RUN.get(name, 0), name
    assert len(blocks(README, "sh")) == 2, "those that .ci/run runs"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_each_link_has_a_target(name: str) -> None:
    base = ROOT if name == "README" else DOCS
    for target in re.findall(r"\]\(([^)]+)\)", page(name)):
        file, _, anchor = target.partition("#")
        path = base / file if file else base / f"{name}.md"
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("name", GENERATED)
def test_generated_text_is_up_to_date(name: str) -> None:
    _, _, generated = page(name).partition(MARK)
    # Versions of Typer differ in the white space.
    assert generated.split() == GENERATED[name]().split(), "run: python -m tests.support.pages"
