"""images.json as text: split into blocks of records when read, put together when written.

A large index is never parsed in one go, which would hold the interpreter lock for long, and what
has not changed since the last look is not parsed at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from . import gojson
from .record import read
from .snapshot import BLOCK_BYTES, Block, Snapshot, new_home

_SPACE: Final = b" \t\r\n"
_BLANK: Final = _SPACE + b"\0"
# Inside a string its quotes would be escaped, so these stand only where a record begins, or
# another object with an ID in some record's flags: there the text before does not parse alone.
_NEXT_RECORD: Final = b'},{"id":"'
_ID_BYTES: Final = 80
# Large reads: after each the interpreter lock is taken again, in turn with everybody else.
_READ_BYTES: Final = 8 * BLOCK_BYTES
_LEAST_READ_BYTES: Final = 4096

_decode_elements: Final = msgspec.json.Decoder(list[Raw]).decode


class MalformedIndexError(ValueError):
    """The text is not one JSON array.

    :ivar place: where, in bytes from the start
    """

    def __init__(self, problem: str, place: int) -> None:
        super().__init__(problem)
        self.place = place


class Text:
    """A file's text from where the reading is.

    It has one buffer all along: new ones of that size would leave the heap full of holes. Keep it
    until the records are indexed as well, for then the memory of the tables that grew too small
    goes back to the system: C libraries hand back pieces larger than the largest freed so far.

    :param read: fills a buffer with the next bytes and says how many they are; none at the end
    :param size: about how many bytes it has in all
    """

    def __init__(self, read: Callable[[memoryview], int], size: int) -> None:
        self._read = read
        self._step = min(max(size + 1, _LEAST_READ_BYTES), _READ_BYTES)
        self._buffer = bytearray(2 * self._step)
        self._start = 0
        self._end = 0
        self.place = 0
        self.is_whole = False

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self._end - self._start

    def fill(self, size: int) -> None:
        """Have at least so many bytes, or all that there are."""
        while self.size < size and not self.is_whole:
            self._make_room()
            with memoryview(self._buffer) as buffer:
                done = self._read(buffer[self._end : self._end + self._step])
            self._end += done
            self.is_whole = not done

    def _make_room(self) -> None:
        if self._end + self._step > len(self._buffer):
            with memoryview(self._buffer) as buffer:
                buffer[: self.size] = buffer[self._start : self._end]
            self._start, self._end = 0, self.size
            self._buffer += bytes(max(0, self._end + self._step - len(self._buffer)))

    def drop(self, size: int) -> None:
        """Go on behind so many bytes."""
        self._start += size
        self.place += size

    def skip(self, characters: bytes) -> None:
        """Go on behind all of these characters that come next."""
        self.fill(1)
        while self.size and self.peek(1) in characters:
            piece = self.peek(BLOCK_BYTES)
            self.drop(len(piece) - len(piece.lstrip(characters)))
            self.fill(1)

    def peek(self, size: int, offset: int = 0) -> bytes:
        """The next bytes, as far as they are here."""
        start = self._start + offset
        return bytes(self._buffer[start : min(start + size, self._end)])

    def begins(self, text: memoryview) -> bool:
        """Whether this comes next."""
        return self._buffer.startswith(text, self._start, self._end)

    def find(self, text: bytes, size: int) -> int:
        """Where this stands in the next so many bytes; -1 where it does not."""
        found = self._buffer.find(text, self._start, min(self._start + size, self._end))
        return found - self._start if found >= 0 else -1

    def rfind(self, text: bytes, size: int) -> int:
        """Where this stands last in the next so many bytes; -1 where it does not."""
        found = self._buffer.rfind(text, self._start, min(self._start + size, self._end))
        return found - self._start if found >= 0 else -1

    def array(self, size: int) -> bytes:
        """The next bytes between an array's brackets."""
        with memoryview(self._buffer) as buffer:
            return b"".join((b"[", buffer[self._start : self._start + size], b"]"))


def parse(text: Text, known: Snapshot) -> tuple[dict[int, Block], tuple[bytes, ...]] | None:
    """Read an index into blocks, and the damaged elements apart; ``None`` when it is blank.

    :param known: blocks found again in the text are taken from here
    :raises MalformedIndexError: when the text is not one JSON array
    """
    text.skip(_SPACE)
    if not text.size or text.peek(1) == b"\0":
        text.skip(_BLANK)
        if not text.size:
            return None
        raise MalformedIndexError("NUL bytes before the array", text.place)
    if text.peek(1) != b"[":
        raise MalformedIndexError("not an array", text.place)
    text.drop(1)
    blocks: dict[int, Block] = {}
    damaged: list[bytes] = []
    for home, block, bad in _blocks(text, known):
        damaged += bad
        if block.records:
            blocks[home] = block
    text.skip(_SPACE)
    if text.size:
        raise MalformedIndexError("text after the array", text.place)
    return blocks, tuple(damaged)


def _blocks(text: Text, known: Snapshot) -> Iterator[tuple[int, Block, Sequence[bytes]]]:
    """Read up to the closing bracket, and behind it."""
    text.skip(_SPACE)
    if text.peek(1) == b"]":
        text.drop(1)
        return
    expected = list(known.blocks.items())
    while True:
        if expected and _comes_next(text, expected[0][1]):
            home, block = expected.pop(0)
            text.drop(len(block.text) - 2)
            yield home, block, ()
        else:
            piece, expected = _changed_piece(text, expected)
            yield _parse_block(piece)
        closes = text.peek(1) == b"]"
        text.drop(1)
        if closes:
            return


def _comes_next(text: Text, block: Block) -> bool:
    size = len(block.text) - 2
    text.fill(size + 1)
    return text.peek(1, size) in {b",", b"]"} and text.begins(memoryview(block.text)[1:-1])


class _Piece(NamedTuple):
    """Some elements, and the array that they were read from: they share its memory."""

    array: bytes
    elements: list[Raw]


def _changed_piece(
    text: Text, expected: list[tuple[int, Block]]
) -> tuple[_Piece, list[tuple[int, Block]]]:
    """Elements nobody has parsed yet: up to a block that is known, else about a block's worth."""
    window = BLOCK_BYTES
    for skipped in range(1, min(3, len(expected))):
        window += len(expected[skipped - 1][1].text)
        text.fill(window)
        head = b"," + expected[skipped][1].text[1:_ID_BYTES]
        end = text.find(head, window)
        if end > 0:
            try:
                piece = _piece(text, end)
            except ValueError:
                break
            text.drop(end)
            return piece, expected[skipped:]
    return _next_piece(text), expected


def _next_piece(text: Text) -> _Piece:
    size = BLOCK_BYTES
    while True:
        text.fill(size)
        end = text.rfind(_NEXT_RECORD, size) + 1
        is_rest = (end <= 0 and text.is_whole) or (text.is_whole and text.size <= size)
        if is_rest:
            stripped = text.peek(text.size).rstrip(_SPACE)
            end = len(stripped) - 1
            if not stripped.endswith(b"]"):
                raise MalformedIndexError("the array is not closed", text.place + text.size)
        if end > 0:
            try:
                piece = _piece(text, end)
            except ValueError as error:
                if is_rest:
                    raise MalformedIndexError(str(error), text.place + _offset(error)) from error
            else:
                text.drop(end)
                return piece
        elif is_rest:
            raise MalformedIndexError("an element is missing", text.place)
        size *= 2


def _offset(error: ValueError) -> int:
    """Where in the array that msgspec was given, less its opening bracket."""
    match = re.search(r"\(byte (\d+)\)", str(error))
    return max(int(match[1]) - 1, 0) if match else 0


def _piece(text: Text, size: int) -> _Piece:
    """Split the next bytes of the text, which lie between an array's brackets.

    :raises ValueError: when they are not elements and commas
    """
    array = text.array(size)
    try:
        elements = _decode_elements(array)
    except RecursionError:
        elements = [_element(element) for element in gojson.split(array)]
    if not elements:
        raise ValueError("an element is missing (byte 1)")
    return _Piece(array, elements)


def _element(text: bytes) -> Raw:
    gojson.check_syntax(text)
    return Raw(text)


def _parse_block(piece: _Piece) -> tuple[int, Block, Sequence[bytes]]:
    home = new_home()
    records = [read(raw, home) for raw in piece.elements]
    kept = tuple(record for record in records if record is not None)
    damaged = [bytes(r) for r, record in zip(piece.elements, records, strict=True) if not record]
    is_compact = len(piece.array) == sum(map(_length, piece.elements)) + len(records) + 1
    if damaged or not is_compact:
        return home, Block.of(kept, home), damaged
    return home, Block(piece.array, kept), ()


def _length(raw: Raw) -> int:
    return memoryview(raw).nbytes


def compose(snapshot: Snapshot) -> Iterator[memoryview]:
    """The text of an index, in pieces: damaged elements last, for Go stops reading at one."""
    separator = b"["
    for block in snapshot.blocks.values():
        yield memoryview(separator)
        yield memoryview(block.text)[1:-1]
        separator = b","
    for element in snapshot.damaged:
        yield memoryview(separator)
        yield memoryview(element)
        separator = b","
    yield memoryview(b"]" if separator == b"," else b"[]")
