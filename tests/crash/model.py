"""A model of a store, and changes that are made to the model and to stores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from aimagestore import ImageStore, Transaction

from .state import Held


class RefusedError(Exception):
    """The model refuses a change: an unknown or ambiguous image, or an ID or name in use."""


@dataclass(frozen=True)
class Entry:
    """One image of the model."""

    names: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    metadata: str = ""
    layer: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    items: dict[str, bytes] = field(default_factory=dict)
    digest: str = ""


class Model:
    """What a store should hold after each change."""

    def __init__(self, images: dict[str, Entry] | None = None) -> None:
        self.images = images or {}

    def copy(self) -> Model:
        return Model(dict(self.images))

    def find(self, ref: str) -> str:
        if ref in self.images:
            return ref
        owners = [i for i, entry in self.images.items() if ref in entry.names]
        found = owners or [i for i in self.images if i.startswith(ref)]
        if len(found) != 1:
            raise RefusedError
        return found[0]

    def _edit(self, ref: str, **fields: Any) -> None:
        image_id = self.find(ref)
        self.images[image_id] = replace(self.images[image_id], **fields)

    def create(
        self, image_id: str, given: list[str], metadata: str, content: dict[str, bytes]
    ) -> None:
        taken = {name for entry in self.images.values() for name in entry.names}
        if image_id in self.images or not taken.isdisjoint(given):
            raise RefusedError
        entry = Entry(tuple(dict.fromkeys(given)), metadata=metadata, items=content)
        self.images[image_id] = replace(entry, digest=first_manifest(entry))

    def rename(self, ref: str, choose: Callable[[tuple[str, ...]], Iterable[str]]) -> None:
        image_id = self.find(ref)
        entry = self.images[image_id]
        chosen = tuple(dict.fromkeys(choose(entry.names)))
        history = list(entry.history)
        for name in chosen:
            history = [name, *(h for h in history if h != name)]
        for other, owner in self.images.items():
            kept = tuple(name for name in owner.names if name not in chosen)
            self.images[other] = replace(owner, names=kept)
        self._edit(image_id, names=chosen, history=tuple(history))

    def set_metadata(self, ref: str, metadata: str) -> None:
        self._edit(ref, metadata=metadata)

    def set_flag(self, ref: str, flag: str, value: Any) -> None:
        self._edit(ref, flags={**self.images[self.find(ref)].flags, flag: value})

    def clear_flag(self, ref: str, flag: str) -> None:
        present = self.images[self.find(ref)].flags
        self._edit(ref, flags={name: value for name, value in present.items() if name != flag})

    def set_big_data(self, ref: str, key: str, content: bytes) -> None:
        entry = self.images[self.find(ref)]
        self._edit(ref, items={**entry.items, key: content})
        entry = self.images[self.find(ref)]
        self._edit(ref, digest=entry.digest or first_manifest(entry))

    def delete(self, ref: str) -> None:
        del self.images[self.find(ref)]

    def state(self) -> dict[str, Held]:
        return {
            image_id: Held(
                entry.names,
                entry.history,
                entry.metadata,
                entry.layer,
                entry.flags,
                entry.items,
                digests_of(entry),
            )
            for image_id, entry in self.images.items()
        }


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def manifests(entry: Entry) -> list[str]:
    return [digest_of(data) for key, data in entry.items.items() if key.startswith("manifest")]


def first_manifest(entry: Entry) -> str:
    return next(iter(manifests(entry)), "")


def digests_of(entry: Entry) -> tuple[str, ...]:
    found = [entry.digest] if entry.digest else []
    return tuple(dict.fromkeys(found + manifests(entry)))


Target = ImageStore | Transaction


@dataclass(frozen=True)
class Change:
    """One change, to be made to the model and to a store or a transaction."""

    method: str
    arguments: tuple[Any, ...]

    def to_model(self, model: Model) -> None:
        match self.method, self.arguments:
            case "set_names", (ref, given):
                model.rename(ref, lambda _: given)
            case "add_names", (ref, given):
                model.rename(ref, lambda present: [*given, *present])
            case "remove_names", (ref, given):
                model.rename(ref, lambda present: [n for n in present if n not in given])
            case _:
                getattr(model, self.method)(*self.arguments)

    def call(self, target: Target) -> Any:
        """Return the call of a store's or transaction's method, to be awaited."""
        if self.method == "create":
            image_id, given, metadata, content = self.arguments
            return target.create(image_id, names=given, metadata=metadata, big_data=content)
        return getattr(target, self.method)(*self.arguments)
