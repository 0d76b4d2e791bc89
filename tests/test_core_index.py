"""Tests for parsing images.json into blocks and damaged elements, and composing it again."""

from __future__ import annotations

import io
import json
import random
from unittest.mock import patch

import pytest
from hypothesis import given, settings, strategies as st

from aimagestore._format import index
from aimagestore._format.block_catalog import EMPTY, BlockCatalog, build
from aimagestore._format.blocks import BLOCK_BYTES, Block
from aimagestore._format.index import MalformedIndexError, Text, parse
from aimagestore.errors import ImageUnknownError

from .support.indexes import array, catalog_of, element, reader_of, text_of
from .support.strategies import compact, edits, indexes

Contents = tuple[object, ...]

DEEP = b"[" * 30_000 + b"]" * 30_000
"""Deeper than msgspec decodes on any Python."""


def in_pieces(text: bytes, seed: int) -> Text:
    """Return a reader whose reads are shorter than requested."""
    file = io.BytesIO(text)
    sizes = random.Random(seed)
    return Text(lambda buffer: file.readinto(buffer[: sizes.randint(1, 50)]), seed % 100)


def contents(catalog: BlockCatalog) -> Contents:
    """Return everything that is observable about a catalog."""
    indexes = catalog.indexes
    return (
        [bytes(record.raw) for record in catalog.records()],
        text_of(catalog),
        catalog.damaged,
        {image_id: bytes(record.raw) for image_id, record in indexes.by_id.items()},
        indexes.by_name,
        {digest: sorted(indexes.ids_with_digest(digest)) for digest in indexes.by_digest},
        {head: catalog.ids_with_prefix(head, 9999) for head in ("a", "b", "c", "ab", "ca", "abc")},
        {i: [bytes(r.raw) for r in records] for i, records in catalog.shadowed.items()},
        catalog.needs_save,
    )


def made(number: int, size: int = 1000, **fields: object) -> bytes:
    """Return an element of roughly this size."""
    return compact({"id": f"{number:06}", "metadata": "x" * size} | fields)


# Lookups


def test_the_empty_ref_matches_no_image_even_if_one_has_an_empty_name() -> None:
    catalog = catalog_of(array([element("aa", names=["", "one"])]))
    assert catalog.get("one").id == "aa"
    with pytest.raises(ImageUnknownError):
        catalog.get("")


# Malformed texts


@pytest.mark.parametrize("text", [b"", b" \t\r\n", b"\0", b"\0" * 300_000, b" \n\0\0 \0"])
def test_blank_text_parses_to_none(text: bytes) -> None:
    assert parse(reader_of(text), EMPTY) is None


@pytest.mark.parametrize("text", [b"[]", b" [ ] \r\n", b"[\n\t]"])
def test_empty_array_is_an_empty_index(text: bytes) -> None:
    assert parse(reader_of(text), EMPTY) == ({}, ())


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
def test_malformed_text_is_refused_with_the_offset(text: bytes, place: int) -> None:
    with pytest.raises(MalformedIndexError) as caught:
        parse(reader_of(text), EMPTY)
    assert abs(caught.value.offset - place) <= 1
    assert "(byte" not in str(caught.value), "the offset in a piece of the text means nothing"


def test_offset_of_a_late_malformed_element_is_reported() -> None:
    elements = [made(number) for number in range(1000)]
    elements[990] = b"{]"
    text = array(elements)
    with pytest.raises(MalformedIndexError) as caught:
        parse(reader_of(text), EMPTY)
    assert abs(caught.value.offset - text.index(b"{]")) <= 2


@settings(max_examples=30)
@given(indexes(), st.data())
def test_truncated_text_is_refused(elements: list[bytes], data: st.DataObject) -> None:
    text = array(elements)
    end = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(MalformedIndexError) as caught:
        parse(reader_of(text[:end]), EMPTY)
    assert 0 <= caught.value.offset <= end


@settings(max_examples=30)
@given(indexes(), st.sampled_from([b"x", b"\0", b",", b"]", b"[]", b"{}", b"\x0b"]))
def test_trailing_text_is_refused(elements: list[bytes], more: bytes) -> None:
    known = catalog_of(array(elements))
    for present in (EMPTY, known):
        with pytest.raises(MalformedIndexError):
            parse(reader_of(array(elements) + more), present)


@pytest.mark.parametrize(
    "text",
    [
        array([ONE, DEEP[:-1]]),
        array([ONE, DEEP + b"]"]),
        array([ONE, DEEP, b"nul"]),
        array([ONE, DEEP, b""]),
        array([ONE, b"", DEEP]),
        array([ONE, DEEP, ONE + ONE]),
        array([ONE, DEEP])[:-1],
        array([ONE, DEEP]) + b"x",
    ],
)
def test_malformed_text_around_a_deep_element_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedIndexError):
        parse(reader_of(text), EMPTY)


def test_million_open_brackets_are_refused() -> None:
    with pytest.raises(MalformedIndexError):
        parse(reader_of(b"[" * 1_000_000), EMPTY)


# Damaged elements


def test_damaged_elements_are_kept_byte_for_byte() -> None:
    bad = [b"null", b'{"id": "a/b"}', b'{"id":"a","Names":["x"]}', b'[{"id":"b"}]']
    catalog = catalog_of(array([bad[0], ONE, bad[1], bad[2], b'{"id":"two"}', bad[3]]))
    assert [image.id for image in catalog] == ["one", "two"]
    assert catalog.damaged == tuple(bad)


def test_damaged_elements_are_written_last() -> None:
    catalog = catalog_of(array([b'{"id": 1}', ONE, b"7"]))
    assert text_of(catalog) == array([ONE, b'{"id": 1}', b"7"])


def test_index_of_damaged_elements_only_is_kept() -> None:
    catalog = catalog_of(b"[1, 2]")
    assert len(catalog) == 0
    assert text_of(catalog) == b"[1,2]"


@pytest.mark.parametrize("levels", [10_001, 30_000, 200_000])
@pytest.mark.parametrize(
    "form", [b"%b", b'{"id":"deep","x":%b}', b'{"id":"deep","flags":{"f":%b}}']
)
def test_element_that_nests_too_deep_is_damaged_and_kept(levels: int, form: bytes) -> None:
    element = form % (b"[" * levels + b"]" * levels)
    catalog = catalog_of(array([b'{"id": "two"}', element, ONE]))
    assert [image.id for image in catalog] == ["two", "one"]
    assert catalog.damaged == (element,)
    assert text_of(catalog) == array([b'{"id": "two"}', ONE, element])


def test_strings_beside_a_deep_element_may_contain_brackets() -> None:
    elements = [compact({"id": "a", "metadata": '],[{"\\'}), DEEP, b'"]"', ONE]
    catalog = catalog_of(array(elements))
    assert [image.id for image in catalog] == ["a", "one"]
    assert catalog.damaged == (DEEP, b'"]"')


# Blocks


def test_pretty_printed_index_is_written_compact_with_its_elements_as_they_were() -> None:
    elements = [
        json.dumps({"id": f"{number}", "names": [f"{number}"]}, indent=4) for number in "abc"
    ]
    catalog = catalog_of(b"[\n" + ",\n".join(elements).encode() + b"\n]\n")
    assert [image.names for image in catalog] == [("a",), ("b",), ("c",)]
    assert text_of(catalog) == array([element.encode() for element in elements])


def test_large_index_is_split_into_blocks() -> None:
    text = array([made(number) for number in range(1500)])
    catalog = catalog_of(text)
    assert len(catalog.blocks) == 1 + len(text) // BLOCK_BYTES
    assert max(len(block.text) for block in catalog.blocks.values()) <= BLOCK_BYTES + 2
    assert text_of(catalog) == text


def test_records_know_their_blocks() -> None:
    catalog = catalog_of(array([made(number) for number in range(600)]))
    block_ids = {record.block_id for block in catalog.blocks.values() for record in block.records}
    assert block_ids == set(catalog.blocks)
    assert all(
        record.block_id == block_id
        for block_id, block in catalog.blocks.items()
        for record in block.records
    )


def test_element_larger_than_a_block_is_one_record() -> None:
    elements = [made(1), made(2, 3 * BLOCK_BYTES), made(3), made(4, BLOCK_BYTES)]
    catalog = catalog_of(array(elements))
    assert [len(image.metadata) for image in catalog] == [
        1000,
        3 * BLOCK_BYTES,
        1000,
        BLOCK_BYTES,
    ]
    assert text_of(catalog) == array(elements)


TRICKY = {"f": [{"a": {"b": 1}}, {"id": "in an object"}], "g": '},{"id":"in a string"'}
"""Flags that contain what looks like the start of a record."""


def test_record_is_not_cut_within_its_flags() -> None:
    elements = [made(number, 600, flags=TRICKY) for number in range(1200)]
    assert array(elements).count(b'},{"id":"') > 2 * len(elements) - 2
    catalog = catalog_of(array(elements))
    assert [image.id for image in catalog] == [f"{number:06}" for number in range(1200)]
    assert text_of(catalog) == array(elements)


def test_record_with_flags_larger_than_a_block_is_not_cut() -> None:
    flags = {"f": [{"x": "y" * 700, "id": number} for number in range(1000)]}
    twins = {"f": [{"id": f"{number}", "x": {"y": "z" * 700}} for number in range(1000)]}
    elements = [made(0, flags=twins), made(1, flags=flags), made(2, flags=twins)]
    catalog = catalog_of(array(elements))
    assert [image.id for image in catalog] == ["000000", "000001", "000002"]
    assert catalog.indexes.by_id["000002"].image.flags == twins


# Known blocks

ELEMENTS = [made(number) for number in range(2000)]
BASE = catalog_of(array(ELEMENTS))
COUNT = len(BASE.blocks)


def reused(now: BlockCatalog, before: BlockCatalog = BASE) -> int:
    """Return how many blocks are the same objects as before."""
    known: set[int] = {id(block) for block in before.blocks.values()}
    return sum(id(block) in known for block in now.blocks.values())


def first_of(block_number: int) -> int:
    """Return the number of the first element of a block."""
    blocks = list(BASE.blocks.values())[:block_number]
    return sum(len(block.records) for block in blocks)


PLACES = [0, 1, first_of(3) - 1, first_of(3), first_of(3) + 1, 1000, first_of(COUNT - 1), 1999]


def test_same_text_is_not_parsed_again() -> None:
    again = catalog_of(array(ELEMENTS), BASE)
    assert COUNT > 5
    assert list(again.blocks.values()) == list(BASE.blocks.values())
    assert reused(again) == COUNT


def test_same_text_with_white_space_around_it_is_not_parsed_again() -> None:
    assert reused(catalog_of(b" " + array(ELEMENTS) + b"\n", BASE)) == COUNT


@pytest.mark.parametrize("place", PLACES)
def test_change_of_one_record_parses_only_its_block(place: int) -> None:
    elements = ELEMENTS.copy()
    elements[place] = made(place, 1100, names=["new"])
    now = catalog_of(array(elements), BASE)
    assert reused(now) == COUNT - 1
    assert now.lookup("new") == f"{place:06}"
    assert contents(now) == contents(catalog_of(array(elements)))


@pytest.mark.parametrize("place", PLACES)
def test_change_of_metadata_leaves_the_tables_of_names_and_digests(place: int) -> None:
    elements = ELEMENTS.copy()
    elements[place] = made(place, 1100)
    now = catalog_of(array(elements), BASE)
    assert now.indexes.by_name is BASE.indexes.by_name
    assert now.indexes.by_digest is BASE.indexes.by_digest
    assert contents(now) == contents(catalog_of(array(elements)))


@pytest.mark.parametrize("place", [*PLACES, 2000])
def test_insertion_of_one_record_parses_one_block_at_most(place: int) -> None:
    elements = [*ELEMENTS[:place], made(5555), *ELEMENTS[place:]]
    now = catalog_of(array(elements), BASE)
    assert reused(now) >= COUNT - 1
    assert contents(now) == contents(catalog_of(array(elements)))


@pytest.mark.parametrize("place", PLACES)
def test_deletion_of_one_record_parses_only_its_block(place: int) -> None:
    elements = [*ELEMENTS[:place], *ELEMENTS[place + 1 :]]
    now = catalog_of(array(elements), BASE)
    assert reused(now) == COUNT - 1
    assert contents(now) == contents(catalog_of(array(elements)))


def test_deletion_of_a_whole_block_parses_at_most_one_other() -> None:
    elements = [*ELEMENTS[: first_of(3)], *ELEMENTS[first_of(4) :]]
    now = catalog_of(array(elements), BASE)
    assert reused(now) >= COUNT - 2
    assert contents(now) == contents(catalog_of(array(elements)))


def test_damaged_element_between_known_records_is_found() -> None:
    elements = [*ELEMENTS[:700], b'{"id":1}', *ELEMENTS[700:]]
    now = catalog_of(array(elements), BASE)
    assert now.damaged == (b'{"id":1}',)
    assert reused(now) == COUNT - 1


def test_damaged_elements_at_the_end_leave_all_blocks_known() -> None:
    now = catalog_of(array([*ELEMENTS, b'{"id":1}', b"2"]), BASE)
    assert reused(now) == COUNT
    assert now.damaged == (b'{"id":1}', b"2")


def test_known_blocks_in_another_order_give_the_new_order() -> None:
    elements = [*ELEMENTS[first_of(4) :], *ELEMENTS[: first_of(4)]]
    assert contents(catalog_of(array(elements), BASE)) == contents(catalog_of(array(elements)))


def test_repeated_block_gives_shadowed_records() -> None:
    elements = [*ELEMENTS, *ELEMENTS[: first_of(1)]]
    now = catalog_of(array(elements), BASE)
    assert len(now) == 2000
    assert len(now.shadowed) == first_of(1)
    assert contents(now) == contents(catalog_of(array(elements)))


def test_text_of_a_known_block_in_flags_is_not_a_record() -> None:
    block = next(iter(BASE.blocks.values()))
    inner = json.loads(block.text)
    elements = [made(7000, flags={"f": inner}), *ELEMENTS]
    now = catalog_of(array(elements), BASE)
    assert contents(now) == contents(catalog_of(array(elements)))


@pytest.mark.parametrize("place", PLACES)
def test_text_that_ends_within_a_known_index_is_refused(place: int) -> None:
    text = array(ELEMENTS)
    end = text.index(ELEMENTS[place]) + 500
    with pytest.raises(MalformedIndexError) as caught:
        parse(reader_of(text[:end]), BASE)
    assert 0 <= caught.value.offset <= end


def test_parsing_does_not_change_the_known_catalog() -> None:
    before = contents(BASE)
    catalog_of(array([made(5555), *ELEMENTS[5:]]), BASE)
    assert contents(BASE) == before


# Properties


@settings(max_examples=150)
@given(st.data())
def test_known_blocks_do_not_change_the_result(data: st.DataObject) -> None:
    before = data.draw(indexes(), "before")
    after = data.draw(edits(before), "after")
    seed = data.draw(st.integers(0, 99), "seed")
    with patch.object(index, "BLOCK_BYTES", data.draw(st.sampled_from([1, 64, 300]), "block")):
        known = catalog_of(array(before), read=in_pieces(array(before), seed))
        fresh = contents(catalog_of(array(after)))
        assert contents(catalog_of(array(after), known)) == fresh
        assert contents(catalog_of(array(after), known, in_pieces(array(after), seed))) == fresh


@settings(max_examples=50)
@given(indexes(), st.integers(0, 99))
def test_composed_index_reads_back_the_same(elements: list[bytes], seed: int) -> None:
    with patch.object(index, "BLOCK_BYTES", 64):
        catalog = catalog_of(array(elements))
        text = text_of(catalog)
        again = catalog_of(text, read=in_pieces(text, seed))
        assert text_of(again) == text
        assert list(again) == list(catalog)
        assert not again.needs_save


@settings(max_examples=50)
@given(indexes())
def test_every_element_is_a_record_or_damaged(elements: list[bytes]) -> None:
    parsed = parse(reader_of(array(elements)), EMPTY)
    assert parsed is not None
    blocks, damaged = parsed
    kept = [bytes(record.raw) for block in blocks.values() for record in block.records]
    assert kept == [element for element in elements if element not in damaged]
    assert list(damaged) == [element for element in elements if element in damaged]


def test_catalog_without_records_composes_to_an_empty_array() -> None:
    assert text_of(build({}, ())) == b"[]"


def test_block_text_is_the_array_of_its_records() -> None:
    parsed = parse(reader_of(b'[ {"id":"a"} , {"id": "b"}]'), EMPTY)
    assert parsed is not None
    (block,) = parsed[0].values()
    assert isinstance(block, Block)
    assert block.text == b'[{"id":"a"},{"id": "b"}]'
