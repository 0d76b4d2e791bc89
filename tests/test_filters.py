"""Filters and templates in podman's language, tested without podman."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from aimagestore import ImageStore, ImageUnknownError
from aimagestore._cli.listing import row_template
from aimagestore._cli.selection import select
from aimagestore._cli.templates import shown
from aimagestore._core.filter_keys import FILTERS
from aimagestore._core.filters import ImageQuery, _path_matcher, parse_filter
from aimagestore._core.moments import parse_duration, parse_moment

from .support.built import config, create_built

NOW = datetime(2024, 5, 6, 7, 8, 9, 500_000, tzinfo=timezone(timedelta(hours=2)))


def query(*filters: str) -> ImageQuery:
    return ImageQuery.parse(filters, NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", "2024-05-06T04:58:09Z"),
        ("1h30m", "2024-05-06T03:38:09Z"),
        ("-1h", "2024-05-06T06:08:09Z"),
        ("1.5h", "2024-05-06T03:38:09Z"),
        (".5s", "2024-05-06T05:08:09Z"),
        ("0", "1970-01-01T00:00:00Z"),
        ("1136073600.25", "2006-01-01T00:00:00.25Z"),
        ("2024-05-06", "2024-05-05T22:00:00Z"),
        ("2024-05-06Z", "2024-05-06T00:00:00Z"),
        ("2024-05-06T07", "2024-05-06T05:00:00Z"),
        ("2024-05-06T07:08", "2024-05-06T05:08:00Z"),
        ("2024-05-06T07:08:09.5", "2024-05-06T05:08:09.5Z"),
        ("2024-05-06T07:08:09-07:00", "2024-05-06T14:08:09Z"),
    ],
)
def test_a_time_is_read_as_podman_reads_it(text: str, expected: str) -> None:
    assert parse_moment(text, NOW) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    "text", ["", "soon", "1d", "1h30", "2024-13-01", "2024-05-06T25", "9" * 30, "9" * 30 + "h"]
)
def test_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_moment(text, NOW)


@pytest.mark.parametrize("text", ["2562048h", "9" * 20 + "h", "9" * 400 + "s"])
def test_a_duration_is_no_longer_than_gos(text: str) -> None:
    assert parse_duration("2562047h") == timedelta(hours=2562047)
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("a*", "ab", True),
        ("a*", "a/b", False),
        ("a?", "a/", False),
        ("[a-c]", "b", True),
        ("[^a-c]", "b", False),
        ("[\\]]", "]", True),
        ("[z-a]", "m", False),
        ("[^z-a]", "m", True),
        ("a\\*", "a*", True),
        ("a\\*", "ab", False),
        ("[", "[", False),
        ("[-a]", "a", False),
        ("a\\", "a", False),
        ("a.c", "abc", False),
    ],
)
def test_a_pattern_matches_as_gos_does(pattern: str, text: str, matches: bool) -> None:
    assert _path_matcher(pattern)(text) is matches


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dangling", "is no filter"),
        ("containers=true", "is no filter"),
        ("dangling=yes", "true or false"),
        ("digest=sha512:0", "sha256:"),
        ("until=soon", "is no time"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        query(text)


def test_filters_that_contradict_each_other_are_refused() -> None:
    query("dangling=true", "dangling=true")
    with pytest.raises(ValueError, match="twice"):
        query("dangling=true", "dangling=false")


def test_after_is_another_word_for_since() -> None:
    assert parse_filter("after!=x") == parse_filter("since!=x")
    assert "after" not in FILTERS


async def test_filters_read_no_more_documents_than_they_need(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_built(store, config({"a": "1"}), names=["localhost/a:1"])
    other = await create_built(store, config({"b": "1"}), names=["localhost/b:1"])
    read: list[str] = []
    big_data = ImageStore.big_data

    async def reading(self: ImageStore, ref: str, key: str) -> bytes:
        read.append(ref)
        return await big_data(self, ref, key)

    monkeypatch.setattr(ImageStore, "big_data", reading)
    for filters in (["reference=a"], ["dangling=true"], ["until=1h"]):
        await select(store, query(*filters))
        assert read == []
    assert await select(store, query("label=b", "reference=b")) == [other]
    assert set(read) == {other.id}


async def test_images_without_documents_have_no_labels(store: ImageStore) -> None:
    bare = await store.create("bare")
    odd = await store.create("odd", big_data={"manifest": b"not JSON"})
    large = await store.create("large", big_data={"manifest": b" " * (5 << 20)})
    assert await select(store, query("label=a")) == []
    assert await select(store, query("label!=a", "dangling=true")) == [bare, odd, large]


async def test_a_label_matches_whole_or_by_a_pattern(store: ImageStore) -> None:
    image = await create_built(store, config({"com.example/team": "x"}))
    for label in ("com.example/team", "com.example/team=x", "exam*te", "*/team=x"):
        assert await select(store, query(f"label={label}")) == [image]
    for label in ("com.example|team", "team", "com.example/team=y", "exam?le"):
        assert await select(store, query(f"label={label}")) == []


async def test_an_unknown_image_in_a_filter_is_named(store: ImageStore) -> None:
    with pytest.raises(ImageUnknownError, match=r"'nobody'.*filter since"):
        await select(store, query("since=nobody"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ((), "[]"),
        (("a", "b"), "[a b]"),
        ({"b": "2", "a": "1"}, "map[a:1 b:2]"),
        (12, "12"),
    ],
)
def test_a_value_is_shown_as_go_shows_it(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("text", ["{{json .}}", "{{range .}}", "{{.ID", "}}", "{{.Nothing}}"])
def test_a_template_of_anything_but_known_fields_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"fields such as|no field"):
        row_template(text, whole_ids=False)


def test_the_headings_of_a_table_are_the_fields_in_words() -> None:
    template = row_template(
        "table {{.ID}} {{.RepoDigests}}\\t{{.Tag}}:{{.Digest}}", whole_ids=False
    )
    assert template.heading() == ["IMAGE ID", "REPO DIGESTS", "TAG:DIGEST"]
