"""skopeo and podman pull imported images from the example registry, on both event loops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aimagestore import ImageStore, oci

from ..support.serving import serving
from .tools import PreparedStores, Tools, require, run

pytestmark = pytest.mark.peers

NAME = "localhost/hello:1"


def make_hello(tools: Tools) -> None:
    tools.commit(NAME, "hello")


@pytest.mark.parametrize("kind", ["asyncio", "trio"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_skopeo_and_podman_pull_an_imported_image(
    short_path: Path, prepared: PreparedStores, tmp_path: Path, kind: str
) -> None:
    require("skopeo", "buildah", "podman")
    made = prepared.copy(make_hello, short_path / "made")
    layout = tmp_path / "layout"
    run("skopeo", "copy", "--quiet", f"{made.reference}{NAME}", f"oci:{layout}:{NAME}")
    async with ImageStore(tmp_path / "images") as store:
        (imported,) = await oci.import_layout(store, layout)
    assert imported.image.names == (NAME,)
    blobs = {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}
    with serving(kind, tmp_path / "images") as server:
        source = f"docker://{server.address}/{NAME}"
        copied = tmp_path / "copied"
        run("skopeo", "copy", "--quiet", "--src-tls-verify=false", source, f"dir:{copied}")
        pulled = Tools(short_path / "pulled")
        pulled_id = pulled.podman("pull", "--quiet", "--tls-verify=false", source)
        tags = json.loads(run("skopeo", "list-tags", "--tls-verify=false", source[: -len(":1")]))
    assert pulled_id == imported.image.id
    assert tags["Tags"] == ["1"]
    files = {path.name: path.read_bytes() for path in copied.iterdir()}
    manifest = files.pop("manifest.json")
    del files["version"]
    assert manifest in blobs.values()
    assert files == {name: data for name, data in blobs.items() if data != manifest}
    container = pulled.buildah("from", f"{server.address}/{NAME}")
    mounted = Path(pulled.buildah("mount", container))
    assert (mounted / "hello.txt").read_text() == "hello"
    pulled.buildah("rm", container)
