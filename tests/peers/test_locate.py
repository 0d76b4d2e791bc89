"""``aimagestore.podman.locate()`` finds the storage that ``podman info`` names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore

from ..support.configurations import (
    CONFIGURATIONS,
    REFUSED,
    USER,
    VFS,
    Configuration,
    shown,
)
from ..support.loops import sample
from . import generation
from .peer import Running, running
from .tools import require

pytestmark = pytest.mark.peers

BOXED = Path(__file__).with_name("boxed").read_text()
LOCATOR = Path(__file__).with_name("locator.py")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GENERATION_NUMBER = list(generation.BEHAVIOUR_OF).index(generation.GENERATION)

FIELDS = ("GraphDriverName", "GraphRoot", "RunRoot", "ImageStore.Number")
INFO = " ".join(f"{{{{.Store.{field}}}}}" for field in FIELDS)


class Podman:
    """podman, and this library, with the configuration in a directory."""

    def __init__(
        self, configuration: Configuration, base: Path, programs: Path, locator: Running
    ) -> None:
        self._configuration = configuration
        self._base = base
        self._programs = programs
        self._locator = locator
        self.variables = configuration.variables(base)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, and in the namespace, of the configuration."""
        inside = self._configuration.inside
        variables = {"PATH": PATH, **self.variables}
        return subprocess.run(
            [
                *generation.command("bash", "-c", BOXED, "boxed"),
                *(str(self._base), str(self._configuration.user)),
                *("env", "-i", *(f"{name}={value}" for name, value in variables.items())),
                *([inside, "unshare"] if inside else []),
                *command,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def info(self) -> list[str] | None:
        """Return what ``podman info`` says; ``None`` when podman refuses the configuration."""
        result = self.run("podman", "info", "--format", INFO)
        if result.returncode:
            print(result.stderr)  # shown if the test fails
            return None
        return result.stdout.split()

    def locate(self) -> dict[str, Any]:
        """Return what ``locate()`` finds, as a dictionary."""
        variables = self.variables
        if self._configuration.inside:
            lines = self.run("env").stdout.splitlines()
            variables = dict(line.split("=", 1) for line in lines if "=" in line)
        request = {
            "base": str(self._base),
            "variables": {**variables, "PATH": str(self._programs)},
            "user": self._configuration.user,
            "namespace": bool(self._configuration.inside),
        }
        found: dict[str, Any] = json.loads(self._locator.ask(json.dumps(request)))
        assert "failed" not in found, found["failed"]
        return found


@pytest.fixture(autouse=True, scope="session")
def _requirements() -> None:
    require("podman", "buildah")
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("needs mount namespaces")


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A directory with the generation's podman, which all users may read."""
    directory = Path(tempfile.mkdtemp(prefix="peers-"))
    directory.chmod(0o755)
    shutil.copy(f"{generation.ROOT}/usr/bin/podman", directory)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def locator() -> Iterator[Running]:
    """The process that answers what ``locate()`` finds."""
    with running(sys.executable, LOCATOR) as started:
        yield started


@pytest.fixture
def base(short_path: Path) -> Path:
    """The directory of the test, which all users may enter."""
    short_path.chmod(0o755)
    return short_path


# Other tests compare the table with the library for each generation, without podman.
@pytest.mark.parametrize(
    "configuration",
    sample(CONFIGURATIONS, every=3, kind=lambda each: (each.user, each.inside)),
    ids=lambda each: each.name,
)
def test_the_storage_is_the_one_that_podman_names(
    configuration: Configuration, base: Path, programs: Path, locator: Running
) -> None:
    """A usual run tries a third of the configurations for root, users and each namespace."""
    configuration.make(base)
    podman = Podman(configuration, base, programs, locator)
    found = podman.locate()
    info = podman.info()
    expected = configuration.expected_of(GENERATION_NUMBER).replace("{base}", str(base))
    if info is None:
        assert (shown(found), expected) == (REFUSED, REFUSED)
        return
    assert [found.get(key) for key in ("driver", "graph_root", "run_root")] == info[:3]
    assert shown(found) == expected
    stores = [found["image_store"], *found["additional_image_stores"]]
    if len(stores) > 1 or info[3] != "0":
        for store in stores:
            anyio.run(_add_image, store, configuration.user)
        assert podman.info() == [*info[:3], str(len(stores))]


async def _add_image(store: str, user: int) -> None:
    async with ImageStore(store) as images:
        await images.create(force=True)  # podman info only counts images
    for parent, _, names in os.walk(store):
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            os.chown(path, user, user)


def test_the_driver_in_podmans_database_wins(base: Path, programs: Path, locator: Running) -> None:
    configuration = Configuration("", "", {"etc/storage.conf": VFS})
    configuration.make(base)
    podman = Podman(configuration, base, programs, locator)
    assert podman.info() == ["vfs", f"{base}/srv/a", f"{base}/run/root", "0"]
    (base / "etc/storage.conf").write_text(
        VFS.replace("vfs", "overlay").replace("{base}", str(base))
    )
    assert podman.info() == ["vfs", f"{base}/srv/a", f"{base}/run/root", "0"]
    found = podman.locate()
    assert shown(found) == f"vfs {base}/srv/a"
    assert len(found["sources"]) == 2
    (base / "srv/a").rename(base / "srv/b")
    (base / "etc/storage.conf").write_text(
        VFS.replace("{base}/srv/a", f"{base}/srv/b").replace("{base}", str(base))
    )
    assert "belongs to another graph root" in podman.locate()["refused"]


def test_no_store_is_chosen_silently_when_no_podman_is_installed(
    base: Path, locator: Running
) -> None:
    configuration = Configuration("", "", {"etc/storage.conf": VFS}, user=USER)
    configuration.make(base)
    podman = Podman(configuration, base, base, locator)
    # The stores that podman of the newest and of the oldest generation would use.
    newest, oldest = (
        f"{base}/srv/a/vfs-images",
        f"{base}/home/.local/share/containers/storage/vfs-images",
    )
    assert podman.locate()["image_store"] == newest
    Path(oldest).mkdir(parents=True)
    assert podman.locate()["image_store"] == newest
    Path(newest).mkdir(parents=True)
    refused = podman.locate()["refused"]
    assert newest in refused
    assert oldest in refused
