"""Sizes, ages and names, as podman shows them."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aimagestore._cli.human import human_age, human_size, printable, repositories_and_tags

from ..peers.generation import GOPATH, ROOT
from ..peers.peer import compile_go
from ..peers.tools import require

NOW = datetime(2024, 2, 29, 12, tzinfo=UTC)

SECONDS = [-5, 0, 1, 2, 59, 60, 119, 120, 3599, 3600, 5399, 5400, 9000, 172_799, 172_800]
SECONDS += [14 * 86400 - 1801, 14 * 86400, 60 * 86400 - 1801, 60 * 86400, 730 * 86400 - 1801]
SECONDS += [730 * 86400 - 1800, 730 * 86400, 1095 * 86400, 400 * 365 * 86400]
SIZES = [0, 1, 999, 1000, 1001, 1005, 1015, 9995, 9999, 99_949, 99_950, 999_499, 999_500]
SIZES += [999_999, 1_234_567, 10**9, 10**12 - 1, 10**15, 123 * 10**16, 2**63 - 1]

GO = """
package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/docker/go-units"
)

func main() {
	now := time.Unix(%d, 0)
	for _, seconds := range []int64{%s} {
		fmt.Println(units.HumanDuration(now.Sub(time.Unix(now.Unix()-seconds, 0))) + " ago")
	}
	for _, size := range []float64{%s} {
		s := units.HumanSizeWithPrecision(size, 3)
		j := strings.LastIndexFunc(s, unicode.IsNumber)
		fmt.Println(s[:j+1] + " " + s[j+1:])
	}
}
"""


def shown() -> list[str]:
    return [human_age(NOW - timedelta(seconds=s), NOW) for s in SECONDS] + [
        human_size(size) for size in SIZES
    ]


def test_sizes_and_ages() -> None:
    assert shown()[:6] == [
        "Less than a second ago",
        "Less than a second ago",
        "1 second ago",
        "2 seconds ago",
        "59 seconds ago",
        "About a minute ago",
    ]
    assert human_age(NOW - timedelta(days=13), NOW) == "13 days ago"
    assert human_age(NOW - timedelta(days=400), NOW) == "13 months ago"
    assert human_age(NOW - timedelta(seconds=59, microseconds=999_999), NOW) == "About a minute ago"
    assert human_age(None, NOW) == "292 years ago"
    assert human_size(0) == "0 B"
    assert human_size(1_234_567) == "1.23 MB"
    assert human_size(10**30) == "1e+06 YB"


@pytest.mark.peers
def test_sizes_and_ages_are_those_of_podman(tmp_path: Path) -> None:
    require("go")
    if not Path(f"{ROOT}{GOPATH}/src/github.com/docker/go-units").is_dir():
        pytest.skip("needs golang-github-docker-go-units-dev")
    numbers = [", ".join(map(str, some)) for some in (SECONDS, SIZES)]
    program = compile_go(GO % (NOW.timestamp(), *numbers), tmp_path / "units")
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == shown()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], [("<none>", "<none>")]),
        (["localhost/a:1"], [("localhost/a", "1")]),
        (["localhost:5000/a"], [("localhost:5000/a", "<none>")]),
        (["localhost:5000/a:1", "b:2"], [("localhost:5000/a", "1"), ("b", "2")]),
        (["a@sha256:00"], [("a", "<none>")]),
        (["a:1@sha256:00"], [("a", "1")]),
        (["a@sha256:00", "a:1"], [("a", "1")]),
        (["plain", "a:1"], [("plain", "<none>"), ("a", "1")]),
    ],
)
def test_names_in_two_parts(names: list[str], expected: list[tuple[str, str]]) -> None:
    assert repositories_and_tags(names) == expected


def test_control_characters_are_escaped() -> None:
    assert printable("größe 名") == "größe 名"
    assert printable("a\x1b[2J\nb\u202ec\udcff") == r"a\x1b[2J\nb\u202ec\udcff"
