"""Metaclasses that keep generated methods of public records out of ``help`` and completion."""

from __future__ import annotations

from collections.abc import Iterable
from enum import EnumMeta

import msgspec


class PlainType(type):
    """The type of public dataclasses."""

    def __dir__(cls) -> Iterable[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]


class PlainStruct(PlainType, msgspec.StructMeta):
    """The type of public structs."""


class PlainEnum(EnumMeta):
    """The type of public enumerations of texts: their members, without the methods of ``str``."""

    def __dir__(cls) -> list[str]:
        return list(cls.__members__)
