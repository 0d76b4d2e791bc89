"""The index as text: read in blocks, damage set apart, put together again."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from unittest.mock import patch

import pytest
from hypothesis import given, settings, strategies as st

from aimagestore._core import index
from aimagestore._core.index import MalformedIndexError, Text, compose, parse
from aimagestore._core.snapshot import BLOCK_BYTES, EMPTY, Block, Snapshot, build

from .strategies import compact, edits, indexes

Contents = tuple[object, ...]

DEEP = b"[" * 2000 + b"]" * 2000


def reader(text: bytes) -> Text:
    """A file of this text."""
    return Text(io.BytesIO(text).readinto, len(text))


def in_pieces(text: bytes, seed: int) -> Text:
    """A file that gives less than it is asked for."""
    file = io.BytesIO(text)
    sizes = random.Random(seed)
    return Text(lambda buffer: file.readinto(buffer[: sizes.randint(1, 50)]), seed % 100)


def array(elements: Sequence[bytes]) -> bytes:
    """An index of these elements, as it is written."""
    return b"[%b]" % b",".join(elements)


def snapshot_of(text: bytes, known: Snapshot = EMPTY, read: Text | None = None) -> Snapshot:
    """What is in the index."""
    parsed = parse(read or reader(text), known)
    assert parsed is not None
    return known.with_blocks(*parsed)


def text_of(snapshot: Snapshot) -> bytes:
    """The index of the snapshot."""
    return b"".join(compose(snapshot))


def contents(snapshot: Snapshot) -> Contents:
    """All that can be seen of a snapshot."""
    indexes = snapshot.indexes
    return (
        [bytes(record.raw) for record in snapshot.records()],
        text_of(snapshot),
        snapshot.damaged,
        {image_id: bytes(record.raw) for image_id, record in indexes.by_id.items()},
        indexes.by_name,
        {digest: sorted(indexes.ids_with_digest(digest)) for digest in indexes.by_digest},
        {head: snapshot.ids_with_prefix(head) for head in ("a", "b", "c", "ab", "ca", "abc")},
        {i: [bytes(r.raw) for r in records] for i, records in snapshot.shadowed.items()},
        snapshot.needs_save,
    )


def made(number: int, size: int = 1000, **fields: object) -> bytes:
    """An element of about this size."""
    return compact({"id": f"{number:06}", "metadata": "x" * size} | fields)


# Texts that are no index


@pytest.mark.parametrize("text", [b"", b" \t\r\n", b"\0", b"\0" * 300_000, b" \n\0\0 \0"])
def test_blank_text_is_no_index(text: bytes) -> None:
    assert parse(reader(text), EMPTY) is None


@pytest.mark.parametrize("text", [b"[]", b" [ ] \r\n", b"[\n\t]"])
def test_empty_array_is_an_empty_index(text: bytes) -> None:
    assert parse(reader(text), EMPTY) == ({}, ())


ONE = b'{"id":"one"}'


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"{}", 0),
        (b"  null", 2),
        (b"\xef\xbb\xbf[]", 0),
        (b"x", 0),
        (b"]", 0),
        (b"\0\0[]", 2),
        (b" \0 x", 3),
        (b"[", 1),
        (b"[ ", 2),
        (b"[]x", 2),
        (b"[] []", 3),
        (b"[]\0", 2),
        (b"[" + ONE, 1 + len(ONE)),
        (b"[" + ONE + b",", 2 + len(ONE)),
        (b"[" + ONE + b"]\0", 3 + len(ONE)),
        (b"[" + ONE + b",]", 2 + len(ONE)),
        (b"[,]", 1),
        (b"[" + ONE + ONE + b"]", 1 + len(ONE)),
        (b"[" + ONE + b",,1]", 2 + len(ONE)),
        (b'["a" x]', 5),
        (b"[nul]", 2),
        (b"[tru]", 2),
        (b'["\x00"]', 2),
        (b"[NaN]", 1),
        (b"[01]", 2),
    ],
)
def test_malformed_text_is_refused_with_its_place(text: bytes, place: int) -> None:
    with pytest.raises(MalformedIndexError) as caught:
        parse(reader(text), EMPTY)
    assert abs(caught.value.place - place) <= 1


def test_place_of_what_is_malformed_far_behind_is_told() -> None:
    elements = [made(number) for number in range(1000)]
    elements[990] = b"{]"
    text = array(elements)
    with pytest.raises(MalformedIndexError) as caught:
        parse(reader(text), EMPTY)
    assert abs(caught.value.place - text.index(b"{]")) <= 2


@settings(max_examples=30)
@given(indexes(), st.data())
def test_truncated_text_is_refused(elements: list[bytes], data: st.DataObject) -> None:
    text = array(elements)
    end = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(MalformedIndexError) as caught:
        parse(reader(text[:end]), EMPTY)
    assert 0 <= caught.value.place <= end


@settings(max_examples=30)
@given(indexes(), st.sampled_from([b"x", b"\0", b",", b"]", b"[]", b"{}", b"\x0b"]))
def test_trailing_text_is_refused(elements: list[bytes], more: bytes) -> None:
    known = snapshot_of(array(elements))
    for present in (EMPTY, known):
        with pytest.raises(MalformedIndexError):
            parse(reader(array(elements) + more), present)


@pytest.mark.parametrize(
    "element",
    [
        DEEP[:-1],
        DEEP + b"]",
        DEEP + b"x",
        DEEP + b" 1",
        DEEP[:-1] + b"}",
        b'{"id":"one","flags":{"f":%b,}}' % DEEP,
        b'{"id":"one","flags":{"f":%b]}' % DEEP,
        b'{"id":"one","x":%b "y"}' % DEEP,
    ],
)
def test_malformed_text_with_deep_values_is_refused(element: bytes) -> None:
    with pytest.raises(MalformedIndexError):
        parse(reader(array([ONE, element])), EMPTY)


def test_truncated_text_of_a_million_brackets_is_refused() -> None:
    with pytest.raises(MalformedIndexError):
        parse(reader(b"[" * 1_000_000), EMPTY)


# Damaged elements


def test_damaged_elements_are_set_apart_byte_for_byte() -> None:
    bad = [b"null", b'{"id": "a/b"}', b'{"id":"a","Names":["x"]}', b'[{"id":"b"}]']
    snapshot = snapshot_of(array([bad[0], ONE, bad[1], bad[2], b'{"id":"two"}', bad[3]]))
    assert [image.id for image in snapshot] == ["one", "two"]
    assert snapshot.damaged == tuple(bad)


def test_damaged_elements_are_written_last() -> None:
    snapshot = snapshot_of(array([b'{"id": 1}', ONE, b"7"]))
    assert text_of(snapshot) == array([ONE, b'{"id": 1}', b"7"])


def test_index_of_damage_alone_is_kept() -> None:
    snapshot = snapshot_of(b"[1, 2]")
    assert len(snapshot) == 0
    assert text_of(snapshot) == b"[1,2]"


@pytest.mark.parametrize("levels", [2000, 10_001, 1_000_000])
def test_very_deep_elements_are_damage_beside_good_records(levels: int) -> None:
    element = b"[" * levels + b"]" * levels
    snapshot = snapshot_of(array([element, ONE]))
    assert [image.id for image in snapshot] == ["one"]
    assert snapshot.damaged == (element,)


def test_record_with_deep_flags_is_no_damage() -> None:
    deep = b'{"id":"deep","flags":{"f":%b}}' % DEEP
    snapshot = snapshot_of(array([ONE, deep]))
    assert snapshot.damaged == ()
    assert text_of(snapshot) == array([ONE, deep])


# Blocks


def test_pretty_printed_index_is_written_compact_with_its_elements_as_they_were() -> None:
    elements = [
        json.dumps({"id": f"{number}", "names": [f"{number}"]}, indent=4) for number in "abc"
    ]
    snapshot = snapshot_of(b"[\n" + ",\n".join(elements).encode() + b"\n]\n")
    assert [image.names for image in snapshot] == [("a",), ("b",), ("c",)]
    assert text_of(snapshot) == array([element.encode() for element in elements])


def test_large_index_is_split_into_blocks() -> None:
    text = array([made(number) for number in range(1500)])
    snapshot = snapshot_of(text)
    assert len(snapshot.blocks) == 1 + len(text) // BLOCK_BYTES
    assert max(len(block.text) for block in snapshot.blocks.values()) <= BLOCK_BYTES + 2
    assert text_of(snapshot) == text


def test_records_know_their_blocks() -> None:
    snapshot = snapshot_of(array([made(number) for number in range(600)]))
    homes = {record.home for block in snapshot.blocks.values() for record in block.records}
    assert homes == set(snapshot.blocks)
    assert all(
        record.home == home for home, block in snapshot.blocks.items() for record in block.records
    )


def test_element_larger_than_a_block_is_one_record() -> None:
    elements = [made(1), made(2, 3 * BLOCK_BYTES), made(3), made(4, BLOCK_BYTES)]
    snapshot = snapshot_of(array(elements))
    assert [len(image.metadata) for image in snapshot] == [
        1000,
        3 * BLOCK_BYTES,
        1000,
        BLOCK_BYTES,
    ]
    assert text_of(snapshot) == array(elements)


TRICKY = {"f": [{"a": {"b": 1}}, {"id": "in an object"}], "g": '},{"id":"in a string"'}
"""Flags in which a record seems to begin."""


def test_no_record_is_cut_within_its_flags() -> None:
    elements = [made(number, 600, flags=TRICKY) for number in range(1200)]
    assert array(elements).count(b'},{"id":"') > 2 * len(elements) - 2
    snapshot = snapshot_of(array(elements))
    assert [image.id for image in snapshot] == [f"{number:06}" for number in range(1200)]
    assert text_of(snapshot) == array(elements)


def test_no_record_is_cut_within_its_flags_when_they_are_larger_than_a_block() -> None:
    flags = {"f": [{"x": "y" * 700, "id": number} for number in range(1000)]}
    twins = {"f": [{"id": f"{number}", "x": {"y": "z" * 700}} for number in range(1000)]}
    elements = [made(0, flags=twins), made(1, flags=flags), made(2, flags=twins)]
    snapshot = snapshot_of(array(elements))
    assert [image.id for image in snapshot] == ["000000", "000001", "000002"]
    assert snapshot.indexes.by_id["000002"].image.flags == twins


# Known blocks

ELEMENTS = [made(number) for number in range(2000)]
BASE = snapshot_of(array(ELEMENTS))
COUNT = len(BASE.blocks)


def reused(now: Snapshot, before: Snapshot = BASE) -> int:
    """How many of the blocks are the very ones of before."""
    known: set[int] = {id(block) for block in before.blocks.values()}
    return sum(id(block) in known for block in now.blocks.values())


def first_of(block_number: int) -> int:
    """Which element a block begins with."""
    blocks = list(BASE.blocks.values())[:block_number]
    return sum(len(block.records) for block in blocks)


PLACES = [0, 1, first_of(3) - 1, first_of(3), first_of(3) + 1, 1000, first_of(COUNT - 1), 1999]


def test_same_text_is_not_parsed_again() -> None:
    again = snapshot_of(array(ELEMENTS), BASE)
    assert COUNT > 5
    assert list(again.blocks.values()) == list(BASE.blocks.values())
    assert reused(again) == COUNT


def test_same_text_but_for_white_space_around_is_not_parsed_again() -> None:
    assert reused(snapshot_of(b" " + array(ELEMENTS) + b"\n", BASE)) == COUNT


@pytest.mark.parametrize("place", PLACES)
def test_change_of_one_record_parses_its_block_alone(place: int) -> None:
    elements = ELEMENTS.copy()
    elements[place] = made(place, 1100, names=["new"])
    now = snapshot_of(array(elements), BASE)
    assert reused(now) == COUNT - 1
    assert now.lookup("new") == f"{place:06}"
    assert contents(now) == contents(snapshot_of(array(elements)))


@pytest.mark.parametrize("place", [*PLACES, 2000])
def test_insertion_of_one_record_parses_one_block_at_most(place: int) -> None:
    elements = [*ELEMENTS[:place], made(5555), *ELEMENTS[place:]]
    now = snapshot_of(array(elements), BASE)
    assert reused(now) >= COUNT - 1
    assert contents(now) == contents(snapshot_of(array(elements)))


@pytest.mark.parametrize("place", PLACES)
def test_deletion_of_one_record_parses_its_block_alone(place: int) -> None:
    elements = [*ELEMENTS[:place], *ELEMENTS[place + 1 :]]
    now = snapshot_of(array(elements), BASE)
    assert reused(now) == COUNT - 1
    assert contents(now) == contents(snapshot_of(array(elements)))


def test_deletion_of_a_whole_block_parses_nothing_of_the_others() -> None:
    elements = [*ELEMENTS[: first_of(3)], *ELEMENTS[first_of(4) :]]
    now = snapshot_of(array(elements), BASE)
    assert reused(now) >= COUNT - 2
    assert contents(now) == contents(snapshot_of(array(elements)))


def test_damage_between_known_records_is_found() -> None:
    elements = [*ELEMENTS[:700], b'{"id":1}', *ELEMENTS[700:]]
    now = snapshot_of(array(elements), BASE)
    assert now.damaged == (b'{"id":1}',)
    assert reused(now) == COUNT - 1


def test_damage_at_the_end_leaves_all_blocks_known() -> None:
    now = snapshot_of(array([*ELEMENTS, b'{"id":1}', b"2"]), BASE)
    assert reused(now) == COUNT
    assert now.damaged == (b'{"id":1}', b"2")


def test_known_blocks_in_another_order_give_the_new_order() -> None:
    elements = [*ELEMENTS[first_of(4) :], *ELEMENTS[: first_of(4)]]
    assert contents(snapshot_of(array(elements), BASE)) == contents(snapshot_of(array(elements)))


def test_known_block_repeated_is_a_duplicate() -> None:
    elements = [*ELEMENTS, *ELEMENTS[: first_of(1)]]
    now = snapshot_of(array(elements), BASE)
    assert len(now) == 2000
    assert len(now.shadowed) == first_of(1)
    assert contents(now) == contents(snapshot_of(array(elements)))


def test_text_of_a_known_block_within_flags_is_no_record() -> None:
    block = next(iter(BASE.blocks.values()))
    inner = json.loads(block.text)
    elements = [made(7000, flags={"f": inner}), *ELEMENTS]
    now = snapshot_of(array(elements), BASE)
    assert contents(now) == contents(snapshot_of(array(elements)))


@pytest.mark.parametrize("place", PLACES)
def test_text_that_ends_within_a_known_index_is_refused(place: int) -> None:
    text = array(ELEMENTS)
    end = text.index(ELEMENTS[place]) + 500
    with pytest.raises(MalformedIndexError) as caught:
        parse(reader(text[:end]), BASE)
    assert 0 <= caught.value.place <= end


def test_parsing_leaves_the_known_snapshot_as_it_was() -> None:
    before = contents(BASE)
    snapshot_of(array([made(5555), *ELEMENTS[5:]]), BASE)
    assert contents(BASE) == before


# Properties


@settings(max_examples=150)
@given(st.data())
def test_what_is_known_changes_nothing_about_what_is_read(data: st.DataObject) -> None:
    before = data.draw(indexes(), "before")
    after = data.draw(edits(before), "after")
    seed = data.draw(st.integers(0, 99), "seed")
    with patch.object(index, "BLOCK_BYTES", data.draw(st.sampled_from([1, 64, 300]), "block")):
        known = snapshot_of(array(before), read=in_pieces(array(before), seed))
        fresh = contents(snapshot_of(array(after)))
        assert contents(snapshot_of(array(after), known)) == fresh
        assert contents(snapshot_of(array(after), known, in_pieces(array(after), seed))) == fresh


@settings(max_examples=50)
@given(indexes(), st.integers(0, 99))
def test_composed_index_reads_back_the_same(elements: list[bytes], seed: int) -> None:
    with patch.object(index, "BLOCK_BYTES", 64):
        snapshot = snapshot_of(array(elements))
        text = text_of(snapshot)
        again = snapshot_of(text, read=in_pieces(text, seed))
        assert text_of(again) == text
        assert list(again) == list(snapshot)
        assert not again.needs_save


@settings(max_examples=50)
@given(indexes())
def test_every_element_is_a_record_or_damage(elements: list[bytes]) -> None:
    parsed = parse(reader(array(elements)), EMPTY)
    assert parsed is not None
    blocks, damaged = parsed
    kept = [bytes(record.raw) for block in blocks.values() for record in block.records]
    assert kept == [element for element in elements if element not in damaged]
    assert list(damaged) == [element for element in elements if element in damaged]


def test_composing_nothing_gives_an_empty_array() -> None:
    assert text_of(build({}, ())) == b"[]"


def test_block_text_is_the_array_of_its_records() -> None:
    parsed = parse(reader(b'[ {"id":"a"} , {"id": "b"}]'), EMPTY)
    assert parsed is not None
    (block,) = parsed[0].values()
    assert isinstance(block, Block)
    assert block.text == b'[{"id":"a"},{"id": "b"}]'
