"""A coverage-guided fuzzer for images.json.

It needs the extra ``fuzz``, and runs until an input fails or the number of runs is reached::

    python -m tests.crash.guided -runs=100000 -rss_limit_mb=1024 -timeout=10

It writes a failing input to a file. Run it with the name of that file to try the input again.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["aimagestore"]):
    from aimagestore import ImageStore, ImageStoreError, check
    from aimagestore._core import mutations
    from aimagestore._core.draft import Draft
    from aimagestore._core.fields import Fields
    from aimagestore._format.block_catalog import EMPTY, BlockCatalog, apply_draft
    from aimagestore._format.index import MalformedIndexError, Text, compose, parse

_STORE_EVERY = 50
"""One in this many inputs is also tried with a store, which takes a hundred times as long."""


def load(text: bytes, known: BlockCatalog = EMPTY) -> BlockCatalog | None:
    """Parse an index."""
    buffered = Text(io.BytesIO(text).readinto, len(text))
    parsed = parse(buffered, known)
    return None if parsed is None else known.with_blocks(*parsed)


def parse_and_change(text: bytes) -> None:
    """Parse an index; if it is one, read all of it, change it, compose it and parse it again."""
    try:
        catalog = load(text)
    except MalformedIndexError:
        return
    if catalog is None:
        return
    for image in catalog:
        assert catalog.get(image.id) == image
        assert image.flags is not None
    draft = Draft(catalog)
    for mutation in mutations_of(catalog):
        with suppress(ImageStoreError):
            draft.apply(mutation(draft))
    frozen = apply_draft(catalog, draft)
    again = load(b"".join(compose(frozen)), frozen)
    assert again is not None
    assert list(again) == list(frozen)
    assert again.damaged == frozen.damaged


def mutations_of(catalog: BlockCatalog) -> Iterator[mutations.Mutation]:
    """Yield some mutations, of which the catalog may refuse any."""
    yield mutations.create("new", names=["name"])
    for image in list(catalog)[:3]:
        yield mutations.add_names(image.id, ["other"])
        yield mutations.set_flag(image.id, "flag", 1)
        yield mutations.set_metadata(image.id, "text")


async def use_store(text: bytes) -> None:
    """Read and change an index through a store on disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        with open(os.path.join(directory, "images.json"), "wb") as file:
            file.write(text)
        with suppress(ImageStoreError):
            await check(directory)
            async with ImageStore(directory) as store:
                await store.images()
                await store.create("new", big_data={"key": b"data"})
                await store.delete("new")


class Target:
    """The fuzz target."""

    def __init__(self) -> None:
        self._inputs = 0

    def __call__(self, text: bytes) -> None:
        self._inputs += 1
        parse_and_change(text)
        if self._inputs % _STORE_EVERY == 0:
            asyncio.run(use_store(text))


SEEDS = (
    b'[{"id":"one","digest":"sha256:%b","names":["a","b"],"names-history":["c"],"layer":"l",'
    b'"metadata":"{}","big-data-names":["manifest"],"big-data-sizes":{"manifest":7},'
    b'"big-data-digests":{"manifest":"sha256:%b"},"created":"2024-05-01T08:15:00.5Z",'
    b'"flags":{"f":[1,{"x":null}]},"unknown":1}]' % (b"a" * 64, b"b" * 64),
    b'[{"id":"a","created":"0001-01-01T00:00:00Z"},{"id":"a"},{"ID":"b"},null,1]',
    b' [ {"id" : "x" , "names" : [ "n" ] } , {"id":"y","names":["n"]} ] \n',
)


WORDS = (
    *(rf"\"{name}\":" for name in Fields.__struct_encode_fields__),
    *(r"{\"id\":\"one\"}", r"},{", r"\"a\":1,", r"[[[[", r"]]]]", r"\\ud800", r"1e999", r"null"),
    *(r"0001-01-01T00:00:00Z", "sha256:" + "a" * 64, r"-1", r"9223372036854775808", r"\x00"),
)
"""Tokens that occur in an index, in the syntax of a libFuzzer dictionary."""


def main() -> None:
    """Fuzz from the seeds, or try the inputs in the files that the command line names."""
    with tempfile.TemporaryDirectory() as directory:
        corpus = os.path.join(directory, "corpus")
        os.mkdir(corpus)
        for number, seed in enumerate(SEEDS):
            with open(os.path.join(corpus, str(number)), "wb") as file:
                file.write(seed)
        words = os.path.join(directory, "words")
        with open(words, "w") as dictionary:
            dictionary.writelines(f'"{word}"\n' for word in WORDS)
        is_again = any(os.path.isfile(argument) for argument in sys.argv[1:])
        given = [] if is_again else [f"-dict={words}", corpus]
        atheris.Setup([*sys.argv, *given], Target())
        atheris.Fuzz()


if __name__ == "__main__":
    main()
