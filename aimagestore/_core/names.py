"""Valid IDs, names and big-data keys, and the file names of keys."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence

from ..errors import InvalidBigDataNameError, InvalidIDError

INDEX_FILE = "images.json"
LOCK_FILE = "images.lock"

NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
"""Annotations that may hold an image's name, in order of preference."""

_NAME_MAX = 255
_RESERVED = frozenset({INDEX_FILE, LOCK_FILE, "lost+found"})
_PLAIN_KEY = re.compile(r"[a-z0-9.]*", re.ASCII)


def check_text(text: object, what: str) -> str:
    """Check a text, and return it, of a subclass of ``str`` as a plain ``str``.

    :raises TypeError: the text is not a ``str``
    :raises ValueError: the text has lone surrogates, which no JSON reader accepts
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is not valid Unicode text: {text!r}") from error
    return str.__str__(text)


def check_names(names: object, what: str = "names") -> tuple[str, ...]:
    """Check names, and return them in their order without repeats.

    :param what: the name of the parameter, for messages
    :raises TypeError: they are not an iterable of ``str``
    :raises ValueError: one of them has lone surrogates
    """
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise TypeError(f"{what} must be an iterable of str, not {type(names).__name__}")
    return tuple(dict.fromkeys(check_text(name, f"an element of {what}") for name in names))


def is_id(text: str) -> bool:
    """Return whether the text can be an ID: a visible path component, not one of the store's."""
    try:
        length = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return False
    return (
        0 < length <= _NAME_MAX
        and not text.startswith(".")
        and text not in _RESERVED
        and "/" not in text
        and "\0" not in text
    )


def are_ids(texts: Sequence[str]) -> bool:
    """Return whether all of the texts can be IDs. Faster than asking for each of them."""
    joined = "".join(texts)
    # Such as hex digits; no reserved name is.
    if joined.isascii() and joined.encode().isalnum():
        lengths = set(map(len, texts))
        return min(lengths) > 0 and max(lengths) <= _NAME_MAX
    return all(map(is_id, texts))


def check_type(value: object, kind: type, name: str) -> None:
    """Check the type of an argument.

    :raises TypeError: when it is of another type
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0].lower() in "aeio" else "a"
        raise TypeError(f"{name} must be {article} {kind.__name__}, not {type(value).__name__}")


def check_id(image_id: object) -> str:
    """Check an ID, and return it.

    :raises TypeError: the ID is not a ``str``
    :raises InvalidIDError: the ID cannot be the name of an image's directory
    """
    if not isinstance(image_id, str):
        raise TypeError(f"an image ID must be a str, not {type(image_id).__name__}")
    if not is_id(image_id):
        raise InvalidIDError(
            f"invalid image ID {image_id!r}: an ID names a directory, so it must be 1 to "
            f"{_NAME_MAX} bytes of UTF-8 without '/' and NUL, not begin with '.', and not be one "
            f"of {', '.join(sorted(_RESERVED))}",
            id=image_id,
        )
    return image_id


def check_key(key: object) -> str:
    """Check a key, and return it.

    :raises TypeError: the key is not a ``str``
    :raises InvalidBigDataNameError: the key cannot be the name of a file
    """
    if not isinstance(key, str):
        raise TypeError(f"a big-data key must be a str, not {type(key).__name__}")
    problem = ""
    try:
        name = big_data_file(key)
        length = len(name.encode())
    except UnicodeEncodeError:
        problem = "it is not valid Unicode text"
    else:
        if not key:
            problem = "it is empty"
        elif name in {".", ".."} or "/" in name or "\0" in name:
            problem = f"its file would be called {name!r}"
        elif length > _NAME_MAX:
            problem = f"its file's name would be longer than {_NAME_MAX} bytes"
    if problem:
        raise InvalidBigDataNameError(f"invalid big-data key {key!r}: {problem}", key=key)
    return key


def is_key(key: str) -> bool:
    """Return whether an item can have this key."""
    try:
        check_key(key)
    except InvalidBigDataNameError:
        return False
    return True


def big_data_file(key: str) -> str:
    """Return the name of an item's file (upstream: ``makeBigDataBaseName``).

    Upstream overlooks a character that needs encoding at the very end of the key. The same is done
    here, to find the files that podman wrote.
    """
    if _PLAIN_KEY.fullmatch(key[:-1]):
        return key
    return "=" + b64encode(key.encode()).decode()


def big_data_key(name: str) -> str | None:
    """Return the key whose item has a file of this name; ``None`` if there is none."""
    key = name
    try:
        if name.startswith("=") and len(name) > 1:
            key = b64decode(name[1:], validate=True).decode()
        return key if is_key(key) and big_data_file(key) == name else None
    except ValueError:
        return None


def is_big_data_file(name: str) -> bool:
    """Return whether a file of an item can have this name."""
    return big_data_key(name) is not None
