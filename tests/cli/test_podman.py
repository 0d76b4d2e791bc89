"""Beside podman, on a store that buildah made."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ..peers.tools import Tools, require
from .conftest import Cli

pytestmark = pytest.mark.peers


@pytest.fixture
def tools(short_path: Path) -> Tools:
    """The tools, with two images of buildah's."""
    require("podman", "buildah")
    tools = Tools(short_path)
    tools.commit("localhost/hello:1", "hello")
    image_id = tools.commit("localhost:5000/other:1", "other")
    tools.podman("tag", image_id, "localhost/other:2")
    tools.podman("untag", tools.commit("localhost/nameless:1", "nameless"))
    age(tools.image_store / "images.json", timedelta(minutes=5, seconds=20), timedelta(days=5))
    return tools


def age(index: Path, *ages: timedelta) -> None:
    """Make the images as old as that, and the last of all as old as Go's zero time."""
    records = json.loads(index.read_bytes())
    now = datetime.now(UTC)
    created = [f"{now - age:%Y-%m-%dT%H:%M:%SZ}" for age in ages] + ["0001-01-01T00:00:00Z"]
    for record, when in zip(records, created, strict=True):
        record["created"] = when
    index.write_text(json.dumps(records))


def table(text: str) -> list[list[str]]:
    """A table's cells."""
    return [re.split(r" {2,}", line) for line in text.splitlines()]


def test_images_are_shown_as_podman_shows_them(tools: Tools) -> None:
    ours = table(Cli(tools.graph)("images").output)
    theirs = table(tools.podman("images"))
    assert len(theirs) == 5
    assert ours == theirs
    assert [row[3] for row in ours[1:]] == [
        *("5 minutes ago", "5 days ago", "5 days ago", "292 years ago")
    ]
    assert Cli(tools.graph)("images", "-q").lines == tools.podman("images", "-q").splitlines()


def test_the_columns_are_where_podman_has_them(tools: Tools) -> None:
    ours = Cli(tools.graph)("images").lines[0]
    theirs = tools.podman("images").splitlines()[0]
    places = [
        [line.index(heading) for heading in ("TAG", "IMAGE ID", "CREATED")]
        for line in (ours, theirs)
    ]
    assert places[0] == places[1]


def test_podman_sees_changes_of_the_program(tools: Tools) -> None:
    cli = Cli(tools.graph)
    cli("tag", "localhost/hello:1", "localhost/hello:2")
    assert tools.inspect("localhost/hello:2")["RepoTags"] == [
        "localhost/hello:2",
        "localhost/hello:1",
    ]
    cli("rm", "localhost:5000/other:1")
    assert len(tools.names()) == 2
    cli("check")
