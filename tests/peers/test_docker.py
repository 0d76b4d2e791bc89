"""Docker loads archives that are exported here, and its own archives are imported here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aimagestore import ImageStore, oci

from ..support.layouts import DockerArchive
from . import generation
from .test_oci import layer

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(Path("/") != generation.ROOT, reason="Docker is tried beside Debian 12"),
]

TIMEOUT = 60
"""Seconds until the daemon must answer."""


class Docker:
    """The ``docker`` program, with a daemon of its own."""

    def __init__(self, socket: Path) -> None:
        self._command = ["docker", "--host", f"unix://{socket}"]

    def __call__(self, *arguments: object) -> str:
        command = [*self._command, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout.strip()

    def is_up(self) -> bool:
        """Return whether the daemon answers."""
        return (
            subprocess.run([*self._command, "version"], capture_output=True, check=False).returncode
            == 0
        )

    def images(self) -> dict[str, str]:
        """Return the IDs of its images by name."""
        lines = self("images", "--no-trunc", "--format", "{{json .}}").splitlines()
        found = [json.loads(line) for line in lines]
        return {f"{each['Repository']}:{each['Tag']}": each["ID"] for each in found}


@contextmanager
def serving(root: Path) -> Iterator[Docker]:
    """Run a daemon without networks for the block."""
    if not (shutil.which("dockerd") and shutil.which("docker")):
        pytest.skip("needs dockerd and docker: apt-get install docker.io")
    if os.geteuid() != 0:
        pytest.skip("needs root for dockerd")
    command = ["dockerd", "--storage-driver", "vfs", "--bridge", "none"]
    command += ["--iptables=false", "--ip6tables=false", "--data-root", str(root / "data")]
    command += ["--exec-root", str(root / "exec"), "--pidfile", str(root / "pid")]
    command += ["--host", f"unix://{root / 'socket'}"]
    docker = Docker(root / "socket")
    with (
        (root / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as daemon,
    ):
        try:
            end = time.monotonic() + TIMEOUT
            while not docker.is_up():
                if daemon.poll() is not None:
                    pytest.skip(f"dockerd cannot run here: {(root / 'log').read_text()[-300:]}")
                assert time.monotonic() < end, (root / "log").read_text()[-2000:]
                time.sleep(0.1)
            yield docker
        finally:
            daemon.terminate()


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """One daemon for all tests of this module."""
    with serving(tmp_path_factory.mktemp("docker")) as docker:
        yield docker


async def test_docker_loads_exported_archives_and_its_saved_ones_are_imported(
    docker: Docker, tmp_path: Path
) -> None:
    saved = DockerArchive()
    saved.image(layer(b"1"), layer(b"2"), tags=["docker.io/library/hello:1"], n=1)
    saved.write(tmp_path / "in.tar")
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, tmp_path / "in.tar")
        await oci.export_layout(
            store, imported.image.id, tmp_path / "out.tar", transport="docker-archive"
        )
        docker("load", "--input", tmp_path / "out.tar")
        assert docker.images() == {"hello:1": f"sha256:{imported.image.id}"}
        docker("tag", "hello:1", "quay.io/other:2")
        docker("save", "--output", tmp_path / "saved.tar", "hello:1", "quay.io/other:2")
        (again,) = await oci.import_layout(store, tmp_path / "saved.tar")
    assert again.image.id == imported.image.id
    # Docker saves short names, to which podman adds localhost; the first name was there before.
    names = {"docker.io/library/hello:1", "localhost/hello:1", "quay.io/other:2"}
    assert set(again.image.names) == names
    docker("rmi", "hello:1", "quay.io/other:2")
