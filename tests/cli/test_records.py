"""Commands about records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from .conftest import Cli


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def two(cli: Cli, tmp_path: Path) -> Cli:
    """Two images."""
    (tmp_path / "m").write_bytes(b"{}")
    cli("create", "--id", "a" * 64, "--name", "localhost/a:1", "--name", "localhost/a:2")
    cli("create", "--id", "ab" * 32, "--data", f"manifest={tmp_path / 'm'}")
    return cli


def test_a_store_without_images(cli: Cli) -> None:
    cli.root.mkdir()
    assert cli("images", "--json").json == []
    assert cli("images").lines == ["REPOSITORY  TAG         IMAGE ID    CREATED     SIZE"]
    assert cli("images", "--quiet").output == ""


def test_columns_line_up_beside_characters_of_two_columns(two: Cli) -> None:
    two("tag", "abab", "localhost/\u6f22\u5b57\u6f22\u5b57\u6f22\u5b57\u6f22:\u4e00")
    heading, *rows = two("images").lines
    places = {cell_len(row[: row.index("a" * 12 if "a" * 12 in row else "abab")]) for row in rows}
    assert places == {heading.index("IMAGE ID")}


def test_create_uses_all_options(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "m=1").write_bytes(b"{}")
    created = cli(
        *("create", "--json", "--name", "a:1", "--name", "b:2", "--layer", "top"),
        *("--metadata", '{"x": 1}', "--digest", sha256(b"other")),
        *("--flag", "n=1.5", "--flag", "text=by alice", "--flag", "eq=a=b", "--flag", "nothing="),
        *("--data", f"manifest={tmp_path / 'm=1'}"),
    ).json
    assert len(created["id"]) == 64
    assert created["created"].endswith("Z")
    expected = {
        "id": created["id"],
        "names": ["a:1", "b:2"],
        "names_history": [],
        "digest": sha256(b"other"),
        "digests": [sha256(b"other"), sha256(b"{}")],
        "created": created["created"],
        "size": 2,
        "layers_size": None,
        "read_only": False,
        "top_layer": "top",
        "mapped_top_layers": [],
        "metadata": '{"x": 1}',
        "flags": {"n": 1.5, "text": "by alice", "eq": "a=b", "nothing": ""},
        "big_data_names": ["manifest"],
        "big_data_sizes": {"manifest": 2},
        "big_data_digests": {"manifest": sha256(b"{}")},
    }
    assert created == expected
    assert cli("images", "--json").json == [expected]
    assert cli("inspect", "a:1", "--json").json == [expected]


def test_create_prints_the_id(cli: Cli) -> None:
    (image_id,) = cli("create").lines
    assert cli("images", "--quiet", "--no-trunc").lines == [image_id]
    assert cli("images", "--quiet").lines == [image_id[:12]]
    assert cli("create", "--id", "mine").lines == ["mine"]


def test_images_are_listed_the_newest_first(two: Cli) -> None:
    heading, *rows = two("images").lines
    assert heading.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [row.split()[:3] for row in rows] == [
        ["<none>", "<none>", "abababababab"],
        ["localhost/a", "1", "a" * 12],
        ["localhost/a", "2", "a" * 12],
    ]
    assert [row.split("  ")[-1] for row in rows] == ["2 B", "0 B", "0 B"]
    assert "a" * 64 in two("images", "--no-trunc").output
    assert [image["id"] for image in two("images", "--json").json] == ["ab" * 32, "a" * 64]


def test_images_can_be_selected_sorted_and_shown_as_podman_does_it(two: Cli) -> None:
    assert two("images", "-q", "--filter", "dangling=true").lines == ["ab" * 6]
    assert two("images", "-q", "-f", "reference=a", "-f", "until=1h").lines == []
    assert two("images", "-q", "--no-trunc", "--sort", "id").lines == ["a" * 64, "ab" * 32]
    assert two("images", "-q", "--sort", "size").lines == ["a" * 12, "ab" * 6]
    rows = two("images", "--noheading").lines
    assert len(rows) == 3
    assert rows[0].startswith("<none>       <none>")
    template = "table {{.Repository}} {{.Tag}}"
    assert two("images", "--format", template, "--sort", "tag").lines == [
        "REPOSITORY   TAG",
        "localhost/a  1",
        "localhost/a  2",
        "<none>       <none>",
    ]
    assert two("images", "--format", "{{.Tag}}\\t{{.ID}}").lines[1] == "1\t" + "a" * 12
    (image,) = two("images", "--format", "json", "--filter", "reference=a").json
    assert image["Names"] == ["localhost/a:1", "localhost/a:2"]


def test_filters_and_formats_that_cannot_be_read_are_wrong_usage(two: Cli) -> None:
    for option, value in [
        ("--filter", "x=1"),
        ("--filter", "until=soon"),
        ("--format", "{{json .}}"),
        ("--sort", "x"),
    ]:
        two("images", option, value, code=2)
        if option == "--filter":
            two("watch", option, value, code=2)
    assert "'nobody'" in two("images", "--filter", "since=nobody", code=3).errors


def test_a_hostile_name_cannot_break_the_table(cli: Cli) -> None:
    cli("create", "--name", "a\nb\x1b[31m[red]:1")
    assert cli("images").lines[1].startswith(r"a\nb\x1b[31m[red]  1  ")
    assert cli("images", "--format", "{{.Names}}").lines == [r"[a\nb\x1b[31m[red]:1]"]


def test_inspect_shows_everything(two: Cli) -> None:
    two("flag", "localhost/a:1", "checked", "true")
    two("create", "--id", "bare")
    lines = two("inspect", "localhost/a:1", "abab", "bare").lines
    assert lines[0] == "ID:      " + "a" * 64
    assert lines[1:3] == ["Name:    localhost/a:1", "Name:    localhost/a:2"]
    assert "Flag:    checked=true" in lines
    assert lines[lines.index("") + 1] == "ID:      " + "ab" * 32
    assert any(line.startswith("Created: 2") and line.endswith(" ago)") for line in lines)
    assert ["2", "B", "manifest", sha256(b"{}")] in [line.split() for line in lines]
    two("inspect", "a" * 12, "nobody", code=3)


def test_names_come_and_go(two: Cli) -> None:
    assert two("tag", "abab", "x:1", "localhost/a:2").output == ""
    assert two("inspect", "abab", "--json").json[0]["names"] == ["x:1", "localhost/a:2"]
    assert two("inspect", "a" * 64, "--json").json[0]["names"] == ["localhost/a:1"]
    two("untag", "x:1", "x:1")
    assert two("inspect", "abab", "--json").json[0]["names"] == ["localhost/a:2"]
    two("tag", "abab", "y:1")
    two("untag", "y:1")
    assert two("inspect", "abab", "--json").json[0]["names"] == []
    assert two("tag", "x:1", "y:1", code=3).errors == ("aimagestore: no image is known by 'x:1'\n")


def test_images_are_removed_together_or_not_at_all(two: Cli) -> None:
    two("rm", "localhost/a:1", "nobody", code=3)
    assert len(two("images", "--quiet").lines) == 2
    removed = two("rm", "localhost/a:1", "localhost/a:2", "abab")
    assert removed.lines == ["a" * 64, "ab" * 32]
    assert two("images", "--quiet").lines == []


def test_all_images_are_removed_at_once(two: Cli) -> None:
    assert two("rm", "--all").lines == ["a" * 64, "ab" * 32]
    assert two("images", "--quiet").lines == []
    assert two("rm", "--all").lines == []


def test_rm_takes_either_refs_or_all(two: Cli) -> None:
    for arguments in ([], ["--ignore"], ["--all", "abab"]):
        assert "either a REF or --all" in two("rm", *arguments, code=2).errors
    assert len(two("images", "--quiet").lines) == 2


def test_rm_with_ignore_skips_unknown_images_but_not_ambiguous_prefixes(two: Cli) -> None:
    assert two("rm", "--ignore", "nobody", "a" * 64).lines == ["a" * 64]
    assert two("rm", "--ignore", "nobody").lines == []
    two("create", "--id", "abc")
    two("rm", "--ignore", "ab", code=3)
    assert len(two("images", "--quiet").lines) == 2


def test_an_ambiguous_prefix_names_what_it_fits(two: Cli) -> None:
    assert two("inspect", "a", code=3).errors == (
        f"aimagestore: 'a' is a prefix of 2 image IDs: give more of it: {'a' * 64}, {'ab' * 32}\n"
    )


def test_flags(two: Cli) -> None:
    assert two("flag", "abab").json == {}
    two("flag", "abab", "deep", '{"a": [1, null]}')
    two("flag", "abab", "text", "not: json")
    assert two("flag", "abab", "--json").json == {"deep": {"a": [1, None]}, "text": "not: json"}
    assert two("flag", "abab", "deep").json == {"a": [1, None]}
    assert "no flag 'other'" in two("flag", "abab", "other", code=3).errors
    two("flag", "abab", "deep", "--clear")
    assert two("flag", "abab").json == {"text": "not: json"}
    assert "finite" in two("flag", "abab", "bad", "1e999", code=1).errors
    assert "nested" in two("flag", "abab", "bad", "[" * 99_999 + "]" * 99_999, code=1).errors
    two("flag", "abab", "--clear", code=2)
    two("flag", "abab", "text", "1", "--clear", code=2)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "nan", "[NaN]", "0x10"])
def test_a_flag_that_is_not_json_is_text(two: Cli, value: str) -> None:
    two("flag", "abab", "flag", "--", value)
    assert two("flag", "abab", "flag").json == value


def test_times_to_wait(two: Cli) -> None:
    assert "--lock-timeout" in two("--lock-timeout", "nan", "images", code=2).errors
    two("--lock-timeout", "inf", "tag", "abab", "b:1")


def test_wrong_usage(cli: Cli) -> None:
    assert "FLAG=VALUE" in cli("create", "--flag", "novalue", code=2).errors
    assert "KEY=FILE" in cli("create", "--data", "nofile", code=2).errors
    cli("create", "--nonsense", code=2)
    cli("tag", "a", code=2)
    cli("nonsense", code=2)
    cli(code=2)
    assert not cli.root.exists()


def test_errors_of_the_library_fail_the_command(two: Cli) -> None:
    assert two("create", "--id", "../x", code=1).errors.startswith("aimagestore: ")
    two("create", "--id", "a" * 64, code=1)
    two("create", "--name", "localhost/a:1", code=1)
    two("create", "--digest", "sha256:00", code=1)
    two("create", "--data", "=/dev/null", code=1)
    missing = two("create", "--data", "a=/nonexistent/file", code=1).errors
    assert missing == "aimagestore: /nonexistent/file: No such file or directory\n"
    assert len(json.loads((two.root / "images.json").read_bytes())) == 2
