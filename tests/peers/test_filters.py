"""The filters of ``aimagestore images`` select what podman's select, on the same store."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from aimagestore import ImageStore

from ..cli.conftest import Cli
from ..support.built import config, create_built
from ..support.loops import sample
from . import generation
from .tools import Tools, require

pytestmark = pytest.mark.peers

newer = pytest.mark.skipif(
    generation.GENERATION == "bookworm", reason="podman 4.3 has other filters by ID and digest"
)

START = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


class Both(NamedTuple):
    """podman and this library's program, on one store.

    :ivar ids: the IDs of the images by their labels in these tests
    """

    tools: Tools
    cli: Cli
    ids: dict[str, str]

    def podmans(self, *options: str) -> list[str]:
        """Return the lines that ``podman images`` prints."""
        return self.tools.podman("images", *options).splitlines()

    def ours(self, *options: str) -> list[str]:
        """Return the lines that ``aimagestore images`` prints."""
        return self.cli("images", *options).lines


async def _fill(path: Path) -> dict[str, str]:
    ids: dict[str, str] = {}
    async with ImageStore(path) as store:

        async def add(label: str, *names: str, day: int, **about: Any) -> None:
            created = START + timedelta(days=day)
            image = await create_built(
                store, config(number=len(ids), **about), names=names, created=created
            )
            ids[label] = image.id

        await add("app", "localhost/app:1", "quay.io/team/app:2", day=0, steps=["a"])
        await add("child", day=1, steps=["a", "b"], labels={"team": "x", "com.example/a": "1"})
        await add("grandchild", day=2, steps=["a", "b", "c"], labels={"team": "y"})
        await add("alone", day=3, steps=["z"], labels={"empty": ""})
        await add("busy", "docker.io/library/busy:latest", day=4, steps=["z", "z"])
        await add("port", "localhost:5000/ns/app:latest", day=5)
        await add("instance", day=6, labels={"team": "x"})
        digest = (await store.get(ids["port"])).digest
        await store.add_names(ids["port"], [f"quay.io/other@{digest}"])
    return ids


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """A store with images of all kinds."""
    require("podman")
    base = Path(tempfile.mkdtemp(prefix="peers-"))  # short: podman refuses long run roots
    tools = Tools(base)
    (tools.graph / "vfs-layers").mkdir(parents=True)
    ids = anyio.run(_fill, tools.image_store)
    built = tools.commit("localhost/built:1", "hello")
    container = tools.buildah("from", built)
    tools.buildah("config", "--label", "team=z", container)
    ids["built"] = built
    if generation.GENERATION != "bookworm":
        # podman 4.3 fails for an image index in a store with images without layers.
        ids["all"] = tools.buildah("manifest", "create", "all")
        tools.buildah("manifest", "add", "all", ids["instance"])
    ids["rebuilt"] = tools.buildah("commit", "--quiet", container)
    container = tools.buildah("from", ids["rebuilt"])
    ids["twice"] = tools.buildah("commit", "--quiet", container, "localhost/twice:1")
    yield Both(tools, Cli(tools.image_store), ids)
    shutil.rmtree(base)


FILTERS = [
    "dangling=true",
    "dangling=false",
    "dangling!=true",
    "intermediate=true",
    "manifest=true",
    "readonly=true",
    "label=team",
    "label=team=x",
    "label=empty",
    "label!=team",
    "label!=team=x",
    "label=com*a",
    "label=*ea*",
    "reference=app",
    "reference=app:1",
    "reference=ns/app",
    "reference=*/app",
    "reference=localhost/app:1",
    "reference=localhost/*",
    "reference=busy",
    "reference=library/busy",
    "reference=*",
    "reference=[ab]*",
    "reference=[^ab]*",
    "reference=[",
    "reference!=app",
    "reference!=localhost/*",
    "since=localhost/app:1",
    "after=busy",
    "since=ns/app",
    "before=busy",
    "before=app",
    "since!=busy",
    "until=2024-05-08",
    "until=2024-05-08T07:08",
    "until=2024-05-08T07:08:10Z",
    "until=2024-05-08T07:08:09Z",
    "until=2024-05-08T09:08:10+02:00",
    "until=1715152089",
    "until=1715152089.5",
    "until=10h",
    "until!=2024-05-08",
    pytest.param("digest=sha256:", marks=newer),
    pytest.param("id=0", marks=newer),
    pytest.param("id!=0", marks=newer),
]


@pytest.mark.parametrize(
    "filter", sample(FILTERS, every=3, kind=lambda text: text.partition("=")[0])
)
def test_a_filter_selects_the_images_that_podman_selects(both: Both, filter: str) -> None:
    """A usual run tries a third of each kind of filter."""
    _compare(both, filter)


def _compare(both: Both, *filters: str) -> None:
    options = [option for text in filters for option in ("--filter", text)]
    alike = ["--quiet", "--no-trunc", *options]
    podmans = {line.removeprefix("sha256:") for line in both.podmans("--all", *alike)}
    labels = {image_id: label for label, image_id in both.ids.items()}
    assert {labels[line] for line in both.ours(*alike)} == {labels[line] for line in podmans}


@pytest.mark.parametrize(
    "filters",
    [
        ["label=team", "dangling=true"],
        ["reference=busy", "reference=app"],
        pytest.param(["reference=app", "reference!=localhost/app"], marks=newer),
        ["reference=app", "since=app"],
        pytest.param(["label=team", "label!=team=y"], marks=newer),
        ["until=2024-05-10", "since=app:1"],
    ],
)
def test_several_filters_select_the_images_that_podman_selects(
    both: Both, filters: list[str]
) -> None:
    _compare(both, *filters)


@newer
def test_filters_by_id_and_digest_select_the_images_that_podman_selects(both: Both) -> None:
    for label in ("child", "built"):
        image_id = both.ids[label]
        (image,) = both.cli("inspect", "--json", image_id).json
        _compare(both, f"id={image_id[:5]}")
        _compare(both, f"before={image_id[:12]}")
        _compare(both, f"digest={image['digest'][:12]}")
    port = both.ids["port"]
    (image,) = both.cli("inspect", "--json", port).json
    for name in ("localhost:5000/ns/app", "quay.io/other", "other", "quay.io/other:9"):
        _compare(both, f"reference={name}@{image['digest']}")
    _compare(both, f"since=sha256:{port}")
    _compare(both, f"reference={port[:12]}")


@pytest.mark.parametrize(
    "filter",
    ["x", "x=1", "dangling=maybe", "digest=md5:0", "until=soon", "since=nobody", "before="],
)
def test_filters_that_podman_refuses_are_refused(both: Both, filter: str) -> None:
    command = generation.command("podman", *both.tools.where, "images", "--filter", filter)
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    both.cli("images", "--filter", filter, code=3 if filter.startswith(("since", "before")) else 2)


TEMPLATES = [
    "{{.Repository}} {{.Tag}}",
    "{{.ID}}\\t{{.Id}}",
    "table {{.ID}} {{.Repository}} {{.Tag}}",
    "table {{.Repository}}\\t{{ .Tag }}:{{.Digest}}",
    "{{.Created}}|{{.CreatedSince}}|{{.CreatedAt}}|{{.CreatedTime}}",
    "{{.Names}} {{.History}} {{.ReadOnly}}",
    "{{.RepoDigests}}",
    "{{.Labels}}",
    "text\\n{{.Tag}}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_prints_what_podman_prints(both: Both, template: str) -> None:
    options = ["--filter", "until=2024-05-20", "--format", template]
    assert both.ours(*options) == both.podmans("--all", *options)


@pytest.mark.parametrize("option", ["--noheading", "--sort=repository", "--sort=id"])
def test_other_options_print_what_podman_prints(both: Both, option: str) -> None:
    options = ["--filter", "until=2024-05-20", "--format", TEMPLATES[2], option]
    assert both.ours(*options) == both.podmans("--all", *options)


def test_without_intermediate_images_the_list_is_podmans_default_list(both: Both) -> None:
    # podman sorts by whole seconds: images of the same second are in random order.
    ours = both.ours("--filter", "intermediate=false", "--quiet")
    assert sorted(ours) == sorted(both.podmans("--quiet"))


def test_an_image_found_by_a_full_name_is_listed_by_that_name_as_in_the_newest_podman(
    both: Both,
) -> None:
    options = ["--filter", "reference=localhost/app:1", "--format", "{{.Repository}}"]
    assert both.ours(*options) == ["localhost/app"]
    expected = ["localhost/app"]
    if generation.GENERATION != "forky":
        expected.append("quay.io/team/app")
    assert both.podmans(*options) == expected


def test_the_json_list_has_the_fields_of_podmans(both: Both) -> None:
    podmans = json.loads("\n".join(both.podmans("--all", "--format", "json")))
    ours = both.cli("images", "--format", "json").json
    theirs = {image["Id"]: image for image in podmans}
    # podman sorts by whole seconds: images of the same second are in random order.
    assert [image["Created"] for image in ours] == [i["Created"] for i in theirs.values()]
    assert sorted(image["Id"] for image in ours) == sorted(theirs)
    for image in ours:
        same = theirs[image["Id"]]
        assert image == {key: same[key] or type(image[key])() for key in image}
