"""images.json: parsed into blocks of records, and composed from them.

A large index is parsed block by block, because parsing does not release the interpreter lock.
Blocks that have not changed since the index was last parsed are not parsed again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from .._core.record import read
from .block_catalog import BlockCatalog
from .blocks import BLOCK_BYTES, Block, new_block_id

_SPACE: Final = b" \t\r\n"
_BLANK: Final = _SPACE + b"\0"
# No string has this, because its quotes would be escaped. An object in the flags of a record may
# begin like a record: then the text before it does not parse.
_NEXT_RECORD: Final = b'},{"id":"'
_ID_BYTES: Final = 80
# Reads are large, because after each one the thread waits for the interpreter lock.
_READ_BYTES: Final = 8 * BLOCK_BYTES
_LEAST_READ_BYTES: Final = 4096

_STRUCTURE: Final = rb'"(?:[^"\\]|\\.)*+"|[\[\]{},]'

T = TypeVar("T")

_decode_elements: Final = msgspec.json.Decoder(list[Raw]).decode
_decode_element: Final = msgspec.json.Decoder(Raw).decode


class Summary(msgspec.Struct, gc=False):
    """What a record is found by."""

    id: str
    names: list[str] | None = None


_summarize_elements: Final = msgspec.json.Decoder(list[Summary]).decode


class MalformedIndexError(ValueError):
    """The text is not one JSON array.

    :ivar offset: where the problem is, in bytes from the start
    """

    def __init__(self, problem: str, offset: int) -> None:
        super().__init__(problem)
        self.offset = offset


class Text:
    """The text of a file, from the current position on.

    It uses one buffer throughout, because new buffers of that size would fragment the heap. Keep
    it until the records are indexed: C libraries return a freed piece of memory to the system when
    it is larger than the largest one freed so far, which would otherwise be this buffer.

    :param read: fills a buffer with the next bytes and returns their number; 0 at the end
    :param size: roughly the number of bytes in all
    :ivar offset: the current position, in bytes from the start
    :ivar is_whole: whether the buffer has the rest of the text
    """

    def __init__(self, read: Callable[[memoryview], int], size: int) -> None:
        self._read = read
        self._step = min(max(size + 1, _LEAST_READ_BYTES), _READ_BYTES)
        self._buffer = bytearray(2 * self._step)
        self.rewind()

    def rewind(self) -> None:
        """Move the position to the beginning, with the buffer that it has."""
        self._start = self._end = 1  # a byte is kept before the position, see decode_array()
        self.offset = 0
        self.is_whole = False

    @property
    def size(self) -> int:
        """The number of bytes in the buffer."""
        return self._end - self._start

    def fill(self, size: int) -> None:
        """Read until the buffer has at least this number of bytes, or the rest of the text."""
        while self.size < size and not self.is_whole:
            self._make_room()
            with memoryview(self._buffer) as buffer:
                done = self._read(buffer[self._end : self._end + self._step])
            self._end += done
            self.is_whole = not done

    def _make_room(self) -> None:
        if self._end + self._step > len(self._buffer):
            with memoryview(self._buffer) as buffer:
                buffer[1 : 1 + self.size] = buffer[self._start : self._end]
            self._start, self._end = 1, 1 + self.size
            self._buffer += bytes(max(0, self._end + self._step - len(self._buffer)))

    def drop(self, size: int) -> None:
        """Move the position forward by this number of bytes."""
        self._start += size
        self.offset += size

    def skip(self, characters: bytes) -> None:
        """Move the position past all of these characters that come next."""
        self.fill(1)
        while self.size and self.peek(1) in characters:
            piece = self.peek(BLOCK_BYTES)
            self.drop(len(piece) - len(piece.lstrip(characters)))
            self.fill(1)

    def peek(self, size: int, offset: int = 0) -> bytes:
        """Return the next bytes after an offset, as far as the buffer has them."""
        start = self._start + offset
        return bytes(self._buffer[start : min(start + size, self._end)])

    def begins(self, text: memoryview) -> bool:
        """Return whether these bytes come next in the buffer."""
        return self._buffer.startswith(text, self._start, self._end)

    def find(self, text: bytes, size: int) -> int:
        """Return where the text first occurs within the next ``size`` bytes, or -1."""
        found = self._buffer.find(text, self._start, min(self._start + size, self._end))
        return found - self._start if found >= 0 else -1

    def rfind(self, text: bytes, size: int) -> int:
        """Return where the text last occurs within the next ``size`` bytes, or -1."""
        found = self._buffer.rfind(text, self._start, min(self._start + size, self._end))
        return found - self._start if found >= 0 else -1

    def array(self, size: int) -> bytes:
        """Return the next bytes, enclosed in the brackets of an array."""
        with memoryview(self._buffer) as buffer:
            return b"".join((b"[", buffer[self._start : self._start + size], b"]"))

    def decode_array(self, size: int, decode: Callable[[memoryview], T]) -> T:
        """Decode the next bytes, enclosed in the brackets of an array, without a copy of them.

        :param decode: what it returns must not refer to these bytes
        """
        # The brackets take the place of what is before and after them in the buffer.
        with memoryview(self._buffer)[self._start - 1 : self._start + size + 1] as array:
            end = array[-1]
            array[0], array[-1] = b"[]"
            try:
                return decode(array)
            finally:
                array[-1] = end


def parse(text: Text, known: BlockCatalog) -> tuple[dict[int, Block], tuple[bytes, ...]] | None:
    """Parse an index into blocks by ID and damaged elements; ``None`` when it is blank.

    :param known: a catalog whose blocks are used again where they occur in the text
    :raises MalformedIndexError: the text is not one JSON array
    """
    if not _begins_array(text):
        return None
    blocks: dict[int, Block] = {}
    damaged: list[bytes] = []
    for block_id, block, bad in _blocks(text, known):
        damaged += bad
        if block.records:
            blocks[block_id] = block
    _check_end(text)
    return blocks, tuple(damaged)


def elements(text: Text) -> Iterator[Sequence[Raw]]:
    """Iterate over the elements of an array, many at a time.

    :raises MalformedIndexError: the text is not one JSON array
    """
    return (piece.elements for _, piece in _runs(text, _piece))


def summaries(text: Text) -> Iterator[tuple[int, Sequence[Summary]]]:
    """Iterate over runs of records, each with its offset, up to the current position.

    :raises ValueError: the text is not one JSON array of objects with IDs and names
    :raises RecursionError: an element nests too deep
    """
    return _runs(text, _summaries)


def _begins_array(text: Text) -> bool:
    """Move the position into the array; ``False`` when the text is blank."""
    text.skip(_SPACE)
    if not text.size or text.peek(1) == b"\0":
        text.skip(_BLANK)
        if not text.size:
            return False
        raise MalformedIndexError("NUL bytes before the array", text.offset)
    if text.peek(1) != b"[":
        raise MalformedIndexError("not an array", text.offset)
    text.drop(1)
    return True


def _check_end(text: Text) -> None:
    text.skip(_SPACE)
    if text.size:
        raise MalformedIndexError("text after the array", text.offset)


def _blocks(text: Text, known: BlockCatalog) -> Iterator[tuple[int, Block, Sequence[bytes]]]:
    """Iterate over blocks with their IDs, and damaged elements beside them, up to the array's end.

    Moves the position past the closing bracket.
    """
    text.skip(_SPACE)
    if text.peek(1) == b"]":
        text.drop(1)
        return
    expected = list(known.blocks.items())
    while True:
        if expected and _comes_next(text, expected[0][1]):
            block_id, block = expected.pop(0)
            text.drop(len(block.text) - 2)
            yield block_id, block, ()
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


def _runs(text: Text, parse_piece: Callable[[Text, int], T]) -> Iterator[tuple[int, T]]:
    if not _begins_array(text):
        raise MalformedIndexError("the text is blank", text.offset)
    text.skip(_SPACE)
    closes = text.peek(1) == b"]"
    if closes:
        text.drop(1)
    while not closes:
        offset = text.offset
        yield offset, _next_piece(text, parse_piece)
        closes = text.peek(1) == b"]"
        text.drop(1)
    _check_end(text)


class _Piece(NamedTuple):
    """Some elements, and the array that they were parsed from. They share its memory."""

    array: bytes
    elements: list[Raw]


def _changed_piece(
    text: Text, expected: list[tuple[int, Block]]
) -> tuple[_Piece, list[tuple[int, Block]]]:
    """Parse the elements up to the next known block, or about as many as one block holds."""
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
    return _next_piece(text, _piece), expected


def _next_piece(text: Text, parse_piece: Callable[[Text, int], T]) -> T:
    """Parse about as many elements as one block holds, and move the position past them.

    :raises MalformedIndexError: the text goes on with something else than elements
    """
    size = BLOCK_BYTES
    while True:
        text.fill(size)
        end = text.rfind(_NEXT_RECORD, size) + 1
        is_rest = text.is_whole and (end <= 0 or text.size <= size)
        if is_rest:
            stripped = text.peek(text.size).rstrip(_SPACE)
            end = len(stripped) - 1
            if not stripped.endswith(b"]"):
                raise MalformedIndexError("the array is not closed", text.offset + text.size)
        if end > 0:
            try:
                piece = parse_piece(text, end)
            except ValueError as error:
                if is_rest:
                    raise _malformed(error, text.offset) from error
            else:
                text.drop(end)
                return piece
        elif is_rest:
            raise MalformedIndexError("an element is missing", text.offset)
        size *= 2


def _malformed(error: ValueError, start: int) -> MalformedIndexError:
    """Return an error of msgspec as one of the whole text.

    :param start: the offset in bytes of what was parsed, with an opening bracket before it
    """
    match = re.fullmatch(r"(.*) \(byte (\d+)\)", str(error))
    problem, offset = (match[1], int(match[2])) if match else (str(error), 0)
    return MalformedIndexError(problem, start + max(offset - 1, 0))


def _piece(text: Text, size: int) -> _Piece:
    """Parse the next bytes of the text as elements, which are not decoded.

    :raises ValueError: the bytes are not elements with commas between them
    """
    array = text.array(size)
    try:
        elements = _decode_elements(array)
    except RecursionError:
        elements = [_element(element) for element in _split(array)]
    if not elements:
        raise ValueError("an element is missing (byte 1)")
    return _Piece(array, elements)


def _summaries(text: Text, size: int) -> Sequence[Summary]:
    """Parse the next bytes of the text as records, of which only IDs and names are kept.

    :raises ValueError: the bytes are not objects with IDs, with commas between them
    :raises RecursionError: an element nests too deep
    """
    return text.decode_array(size, _summarize_elements)


def _split(array: bytes) -> Iterator[bytes]:
    """Split an array by counting brackets, where an element nests too deep to be decoded.

    :raises ValueError: the brackets do not match
    """
    depth = 0
    start = 1
    for match in re.finditer(_STRUCTURE, array, re.DOTALL):
        mark = match[0]
        depth += (mark in b"[{") - (mark in b"]}")
        if not depth or (depth == 1 and mark == b","):
            yield array[start : match.start()].strip(_SPACE)
            start = match.end()
        if not depth:
            break
    if depth or start != len(array):
        raise ValueError("brackets do not match (byte 1)")


def _element(text: bytes) -> Raw:
    # An element that nests too deep is kept unchecked, as a damaged one.
    with suppress(RecursionError):
        _decode_element(text)
    return Raw(text)


def _parse_block(piece: _Piece) -> tuple[int, Block, Sequence[bytes]]:
    block_id = new_block_id()
    records = [read(raw, block_id) for raw in piece.elements]
    kept = tuple(record for record in records if record is not None)
    damaged = [bytes(r) for r, record in zip(piece.elements, records, strict=True) if not record]
    is_compact = len(piece.array) == sum(map(len, piece.elements)) + len(records) + 1
    if damaged or not is_compact:
        return block_id, Block.of(kept), damaged
    return block_id, Block(piece.array, kept), ()


def compose(catalog: BlockCatalog) -> Iterator[memoryview]:
    """Return the text of an index in pieces. Damaged elements come last: Go stops at the first."""
    separator = b"["
    for block in catalog.blocks.values():
        yield memoryview(separator)
        yield memoryview(block.text)[1:-1]
        separator = b","
    for element in catalog.damaged:
        yield memoryview(separator)
        yield memoryview(element)
        separator = b","
    yield memoryview(b"]" if separator == b"," else b"[]")
