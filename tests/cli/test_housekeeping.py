"""What images take, and deleting those that nobody needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Cli


@pytest.fixture
def images(cli: Cli, tmp_path: Path) -> Cli:
    """Three images, two of them with names."""
    (tmp_path / "data").write_bytes(b"x" * 10_000)
    data = f"data={tmp_path / 'data'}"
    cli("create", "--id", "one", "--name", "localhost/a:1", "--data", data)
    cli("create", "--id", "two", "--name", "localhost/a:2")
    cli("create", "--id", "none", "--data", data)
    return cli


def test_the_sizes_of_images_are_shown(images: Cli) -> None:
    shown = images("df", "--json").json
    assert [image["id"] for image in shown["images"]] == ["one", "two", "none"]
    assert shown["images"][0]["size"] >= 10_000
    assert shown["images"][0]["size"] == sum(
        shown["images"][0][part] for part in ("unique_size", "shared_size")
    )
    assert shown["total"] > shown["reclaimable"] >= 10_000
    heading, *rows, summary = images("df").lines
    assert heading.split() == ["NAME", "IMAGE", "ID", "SIZE", "OWN", "CONTAINERS"]
    assert {row.split()[0] for row in rows} == {"localhost/a:1", "localhost/a:2", "<none>"}
    assert rows[-1].split()[:2] == ["localhost/a:2", "two"]
    assert summary.startswith("3 images, ")
    assert summary.endswith(" reclaimable")
    images("rm", "one", "two")
    assert images("df").lines[-1].startswith("1 image, ")


def test_images_without_names_are_deleted(images: Cli) -> None:
    forecast = images("prune", "--dry-run", "--json").json
    assert forecast["images"] == ["none"]
    assert forecast["kept"] == {"one": "it has names", "two": "it has names"}
    assert (
        images("prune", "--dry-run")
        .lines[-1]
        .startswith("1 image would be deleted, which would free ")
    )
    assert len(images("images", "-q").lines) == 3
    assert images("prune", "--json").json == forecast
    assert images("prune").lines == ["0 images deleted, 0 B freed"]
    assert len(images("images", "-q").lines) == 2


def test_the_options_are_the_policy(images: Cli) -> None:
    def pruned(*options: str) -> set[str]:
        return set(images("prune", "--dry-run", "--json", *options).json["images"])

    assert pruned("--all") == {"one", "two", "none"}
    assert pruned("--all", "--keep-last", "1") == {"one", "none"}
    assert pruned("--all", "--keep", "*:1") == {"two", "none"}
    assert pruned("--all", "--filter", "reference=a:1") == {"one"}
    assert pruned("--all", "--filter", "dangling=false", "--keep", "*:2") == {"one"}
    assert pruned("--older-than", "1d12h") == set()
    assert pruned("--older-than", "0s") == {"none"}
    images("flag", "none", "aimagestore.keep", "true")
    assert pruned() == set()
    rows = images("prune", "--all", "--keep-last", "1").lines
    assert rows[1].split()[:2] == ["localhost/a:1", "one"]
    assert len(json.loads((images.root / "images.json").read_bytes())) == 2


def test_options_that_cannot_be_read_are_wrong_usage(images: Cli) -> None:
    for option, value in [
        ("--older-than", "soon"),
        ("--older-than", "-1h"),
        ("--older-than", "9" * 20 + "h"),
        ("--older-than", "9" * 20 + "d"),
        ("--keep-last", "0"),
        ("--filter", "x"),
    ]:
        images("prune", f"{option}={value}", code=2)


def test_a_failed_deletion_names_the_deleted_images(
    images: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore._async.pruning._AT_ONCE", 1)
    commits = []
    from aimagestore._directory.commit import DirectoryWriter

    commit = DirectoryWriter.commit

    def failing(self: DirectoryWriter, grant: object, mutations: object) -> object:
        if mutations:
            commits.append(mutations)
        if len(commits) == 3:
            raise OSError(28, "No space left on device")
        return commit(self, grant, mutations)  # type: ignore[arg-type]

    monkeypatch.setattr(DirectoryWriter, "commit", failing)
    errors = images("prune", "--all", code=1).errors
    assert "deleted before that" in errors
    assert "one, two" in errors
    assert "No space left" in errors
    assert images("images", "-q").lines == ["none"]
