"""The program on a cluster's store, and copies between clusters and directories."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..support.commands import run
from ..support.layouts import hello

if TYPE_CHECKING:
    from .servers import Place, Servers

pytest.importorskip("psycopg")


def test_commands_work_on_a_cluster(place: Place, tmp_path: Path) -> None:
    root = f"{place.records_url} {place.blobs_url}"
    (image_id,) = run(
        "--root", root, "import", hello().write(tmp_path / "layout"), "--name", "a:1"
    ).split()
    (image,) = json.loads(run("--root", root, "images", "--json"))
    assert image["id"] == image_id
    run("--root", root, "tag", "a:1", "b:1")
    run("--root", root, "export", "b:1", tmp_path / "again")
    assert run("--root", root, "gc") == "0 removed, 0 B freed\n"
    assert run("--root", root, "check").endswith("nothing found\n")
    assert run("--root", root, "repair") == "0 repaired, 0 left\n"

    directory = tmp_path / "images"
    assert run("copy", root, directory).startswith("1 copied")
    run("--root", directory, "untag", "b:1", "b:1")
    assert run("copy", directory, root).startswith("1 copied, 0 B")
    assert json.loads(run("copy", directory, root, "--json"))["present"] == 1
    (image,) = json.loads(run("--root", root, "images", "--json"))
    assert image["names"] == ["a:1"]


def test_the_tables_are_made_by_a_command(servers: Servers) -> None:
    from aimagestore.cluster import SCHEMA_VERSION

    servers.postgres.create_database("without_tables")
    records_url = servers.postgres.url("without_tables")
    root = f"{records_url} s3://anything/at-all"
    assert "aimagestore cluster migrate" in run("--root", root, "images", code=1)
    assert run("cluster", "migrate", records_url) == f"{SCHEMA_VERSION}\n"
    output = json.loads(run("--root", root, "cluster", "migrate", "--json"))
    assert output == {"version": SCHEMA_VERSION}
    run("cluster", "migrate", code=2)
    servers.postgres.drop_database("without_tables")


def test_a_copied_bucket_is_adopted_by_a_command(servers: Servers, place: Place) -> None:
    from .drills import Bucket

    root = f"{place.records_url} {place.blobs_url}"
    assert run("--root", root, "gc") == "0 removed, 0 B freed\n"
    copy = replace(place, blobs_url=f"{place.blobs_url}-copy")
    Bucket(servers, copy).write(Bucket(servers, place).read())
    copied = f"{copy.records_url} {copy.blobs_url}"
    assert "aimagestore cluster adopt" in run("--root", copied, "gc", code=1)
    identity = run("--root", copied, "cluster", "adopt").strip()
    assert identity.encode() in Bucket(servers, copy).read()["aimagestore.json"]
    assert run("--root", copied, "gc") == "0 removed, 0 B freed\n"
    assert "another database uses" in run("--root", root, "gc", code=1)
    output = json.loads(run("--root", root, "cluster", "adopt", "--json"))
    assert output["identity"] != identity
    run("cluster", "adopt", code=2)


def test_the_grace_period_is_set_by_a_command(servers: Servers, place: Place) -> None:
    root = f"{place.records_url} {place.blobs_url}"
    statement = "SELECT grace_period FROM image_store"
    for seconds in (7200, 3600.5):
        run("--root", root, "cluster", "grace-period", seconds)
        ((period,),) = servers.postgres.execute(statement, database=place.database)
        assert period == timedelta(seconds=seconds)
    for nonsense in ("0", "--", "nan", "inf", "1e300"):
        run("cluster", "grace-period", nonsense, place.records_url, code=2)
    run("cluster", "grace-period", "--", "-1", place.records_url, code=2)
    assert servers.postgres.execute(statement, database=place.database) == [(period,)]
