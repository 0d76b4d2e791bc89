"""The first look of the README, and the applications that serve images over HTTP."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore

from .apps.registry import ItemResponse, span
from .support.layouts import MANIFEST as MANIFEST_TYPE, digest_of
from .support.pages import ROOT
from .support.serving import LAYER, MANIFEST, NAME, Server, fill, serving, until


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_first_look_of_the_readme_runs(tmp_path: Path, backend: str) -> None:
    app = ROOT / "tests" / "apps" / "first_look.py"
    command = [sys.executable, str(app), "--backend", backend]
    output = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert "1 image, written by buildah" in output[0]
    assert output[-2].endswith("1409 bytes  localhost/hello:1, localhost/hello:latest")
    assert output[-1].endswith("914 bytes  localhost/copy:1")
    assert len(list(tmp_path.glob("demo-*/vfs-images/images.json"))) == 1


async def test_a_server_that_sends_files_itself_gets_a_path(path: Path) -> None:
    sent: list[dict[str, Any]] = []
    has_all = anyio.Event()

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.pathsend":
            await store.delete(image.id)
            sent.append({"content": await anyio.Path(message["path"]).read_bytes()})
            has_all.set()

    async def receive() -> dict[str, Any]:
        await has_all.wait()
        return {"type": "http.disconnect"}

    async with ImageStore(path) as store:
        image = await store.create(big_data={"layer": LAYER})
        scope = {"type": "http", "method": "GET", "extensions": {"http.response.pathsend": {}}}
        with anyio.fail_after(30):
            await ItemResponse(store, image, "layer", None)(scope, receive, send)
    assert [each.get("type") for each in sent[:2]] == [
        "http.response.start",
        "http.response.pathsend",
    ]
    assert sent[2:] == [{"content": LAYER}]


@pytest.fixture(params=["asyncio", "trio"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Each of the applications."""
    anyio.run(fill, tmp_path / "images")
    with serving(request.param, tmp_path / "images") as server:
        yield server


def test_a_manifest_is_served_by_tag_and_by_digest(server: Server) -> None:
    for reference in ("1", digest_of(MANIFEST)):
        response, body = server.ask(f"localhost/big/manifests/{reference}")
        assert (response.status, body) == (200, MANIFEST)
        assert response.headers["Content-Type"] == MANIFEST_TYPE
        assert response.headers["Docker-Content-Digest"] == digest_of(MANIFEST)
    response, body = server.ask("localhost/big/manifests/1", "HEAD")
    assert (response.status, body) == (200, b"")
    assert response.headers["Content-Length"] == str(len(MANIFEST))


def test_a_blob_is_served_whole_and_in_ranges(server: Server) -> None:
    path = f"localhost/big/blobs/{digest_of(LAYER)}"
    response, body = server.ask(path)
    assert response.status == 200
    assert body == LAYER
    assert response.headers["Accept-Ranges"] == "bytes"
    for asked, part in {
        "bytes=0-9": LAYER[:10],
        "bytes=4999990-": LAYER[-10:],
        "bytes=-10": LAYER[-10:],
        "bytes=1000000-3999999": LAYER[1_000_000:4_000_000],
        "bytes=0-": LAYER,
    }.items():
        response, body = server.ask(path, Range=asked)
        assert response.status == 206
        assert body == part
        assert response.headers["Content-Length"] == str(len(part))
    response, _ = server.ask(path, Range="bytes=5000000-")
    assert response.status == 416
    assert response.headers["Content-Range"] == "bytes */5000000"
    response, body = server.ask(path, "HEAD", Range="bytes=0-9")
    assert (response.status, body) == (206, b"")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=0-0", range(1)),
        ("bytes=2-100", range(2, 10)),
        ("bytes=-100", range(10)),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_a_range_is_parsed_or_ignored(asked: str | None, expected: range | None) -> None:
    assert span(asked, 10) == expected


def test_missing_content_is_an_error_of_the_protocol(server: Server) -> None:
    for path, code in {
        "localhost/other/manifests/1": "NAME_UNKNOWN",
        "localhost/big/manifests/2": "MANIFEST_UNKNOWN",
        f"localhost/big/manifests/{digest_of(b'')}": "MANIFEST_UNKNOWN",
        f"localhost/big/manifests/{digest_of(LAYER)}": "MANIFEST_UNKNOWN",
        f"localhost/big/blobs/{digest_of(b'')}": "BLOB_UNKNOWN",
    }.items():
        response, body = server.ask(path)
        assert response.status == 404
        assert json.loads(body)["errors"][0]["code"] == code
    assert server.ask("localhost/big/blobs/..%2F..%2Fimages.json")[0].status == 404


def test_a_change_is_served_at_once(server: Server) -> None:
    assert json.loads(server.ask("localhost/big/tags/list")[1])["tags"] == ["1"]

    async def tag() -> None:
        async with ImageStore(server.store) as store:
            await store.add_names(NAME, ["localhost/big:2", "localhost/other:1"])

    anyio.run(tag)
    assert json.loads(server.ask("localhost/big/tags/list")[1])["tags"] == ["1", "2"]
    assert server.ask("localhost/other/manifests/1")[1] == MANIFEST


def test_a_client_that_disconnects_leaves_nothing_open(server: Server) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=20)
    connection.request("GET", f"/v2/localhost/big/blobs/{digest_of(LAYER)}")
    response = connection.getresponse()
    assert response.read(1000) == LAYER[:1000]
    assert len(server.open_items()) == 1
    response.close()
    connection.close()
    until(lambda: not server.open_items())
    assert server.ask(f"localhost/big/blobs/{digest_of(LAYER)}")[1] == LAYER
