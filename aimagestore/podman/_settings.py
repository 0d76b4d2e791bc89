"""Reads the text of ``storage.conf``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import StoreConfigurationError


@dataclass(frozen=True, slots=True)
class Strings:
    """A list of strings, which a later file replaces, or with ``{append = true}`` extends.

    :ivar values: the strings
    :ivar appends: whether a later list extends this one, unless it says otherwise itself
    """

    values: tuple[str, ...] = ()
    appends: bool = False

    def updated(self, value: list[Any]) -> Strings:
        """Return the list, updated by another file's value.

        :raises TypeError: when the value has other elements than strings and ``append``
        """
        appends = self.appends
        added: list[str] = []
        for element in value:
            match element:
                case str():
                    added.append(element)
                case {"append": bool(append), **others} if not others:
                    appends = append
                case _:
                    raise TypeError("has elements that are not strings")
        return Strings((*(self.values if appends else ()), *added), appends)


@dataclass(frozen=True, slots=True)
class Settings:
    """What configuration files say; empty where they say nothing.

    :ivar driver: ``driver``
    :ivar driver_priority: ``driver_priority``
    :ivar graph_root: ``graphroot``
    :ivar run_root: ``runroot``
    :ivar image_root: ``imagestore``
    :ivar rootless_path: ``rootless_storage_path``
    :ivar image_stores: ``additionalimagestores``
    """

    driver: str = ""
    driver_priority: Strings = Strings()
    graph_root: str = ""
    run_root: str = ""
    image_root: str = ""
    rootless_path: str = ""
    image_stores: Strings = Strings()

    def updated(self, text: bytes, path: str) -> Settings:
        """Return the settings, updated by one more file.

        :param path: the path of the file, for messages
        :raises StoreConfigurationError: when it is not TOML, or a setting has another type
        """
        storage = _table(_parse(text, path), "storage", text, path)
        options = _table(storage, "options", text, path)
        strings = {
            field: value
            for key, field in _STRINGS.items()
            if (value := _get(storage, key, str, text, path))
        }
        lists = {}
        for table, key, field in (
            (storage, "driver_priority", "driver_priority"),
            (options, "additionalimagestores", "image_stores"),
        ):
            value = _get(table, key, list, text, path)
            if value is not None:
                try:
                    lists[field] = getattr(self, field).updated(value)
                except TypeError as error:
                    raise _error(path, _line_of(key, text), f"{key} {error}") from error
        return replace(self, **strings, **lists)


_STRINGS = {
    "driver": "driver",
    "graphroot": "graph_root",
    "runroot": "run_root",
    "imagestore": "image_root",
    "rootless_storage_path": "rootless_path",
}

_KINDS: dict[type[Any], str] = {str: "a string", list: "a list", dict: "a table"}


def _parse(text: bytes, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise _error(path, line, "not UTF-8") from error
    except (ValueError, RecursionError) as error:
        # Before Python 3.14, only the message says where.
        found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(found[1]) if found and found[1] else text.count(b"\n") + 1
        reason = str(error)[: found.start()] if found else str(error)
        raise _error(path, line, reason) from error


def _table(table: Mapping[str, Any], key: str, text: bytes, path: str) -> dict[str, Any]:
    return _get(table, key, dict, text, path) or {}


def _get(table: Mapping[str, Any], key: str, kind: type[Any], text: bytes, path: str) -> Any:
    """Return a value of a table. Its key may be in any case, as upstream."""
    spellings = [key, *(other for other in table if other.lower() == key)]
    value = next((table[spelling] for spelling in spellings if spelling in table), None)
    if value is not None and not isinstance(value, kind):
        raise _error(path, _line_of(key, text), f"{key} is not {_KINDS[kind]}")
    return value


def _line_of(key: str, text: bytes) -> int | None:
    found = re.search(
        rb"^[ \t\[\"']*(?:storage\.)?" + key.encode() + rb"\b", text, re.IGNORECASE | re.MULTILINE
    )
    return text.count(b"\n", 0, found.start()) + 1 if found else None


def _error(path: str, line: int | None, reason: str) -> StoreConfigurationError:
    where = path if line is None else f"{path}, line {line}"
    return StoreConfigurationError(f"cannot read {where}: {reason}", path=path, line=line)
