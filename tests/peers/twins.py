"""A store of ours and one of containers/storage, with the same operations on both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from aimagestore import Image, ImageStore, ImageStoreError, check

from ..support.podman import without_podman
from .generation import BEHAVIOUR
from .operations import Operation, Ref
from .peer import Peer, PeerError, image_store

_UNKNOWN = {
    "get": "ErrImageUnknown",
    "lookup": "ErrLayerUnknown",
    "metadata": "ErrNotAnID",
    "set_metadata": "ErrNotAnID",
    "set_names": "ErrLayerUnknown",
    "add_names": "ErrLayerUnknown",
    "remove_names": "ErrLayerUnknown",
    "delete": "ErrNotAnImage",
    "big_data": "ErrImageUnknown",
    "big_data_names": "ErrImageUnknown",
    "big_data_size": "ErrSizeUnknown",
    "big_data_digest": "ErrDigestUnknown",
    "set_big_data": "ErrImageUnknown",
}
"""The errors of containers/storage's ``Store`` for an unknown image; it looks for layers, too."""

_ITEM_UNKNOWN = _UNKNOWN | {"big_data": "ErrNotExist"}
_INVALID_KEY = _ITEM_UNKNOWN | {"set_big_data": "ErrInvalidBigDataName"}

_ERRORS: Mapping[str, Mapping[str, str]] = {
    "ImageUnknownError": _UNKNOWN,
    "AmbiguousImageError": _UNKNOWN,
    "BigDataUnknownError": _ITEM_UNKNOWN,
    "InvalidBigDataNameError": _INVALID_KEY,
    "DuplicateIDError": {"create": "ErrDuplicateID"},
    "DuplicateNameError": {"create": "ErrDuplicateName"},
    "InvalidDigestError": {"create": "ErrDigestInvalid"},
}

_CREATED = re.compile(rb'"created":"[^"]*"')


def records_of(store: Path) -> list[bytes]:
    """Return the records of a store's images.json, byte for byte."""
    try:
        text = (store / "images.json").read_bytes()
    except FileNotFoundError:
        return []
    records = msgspec.json.decode(text, type=list[msgspec.Raw])
    assert text == b"[" + b",".join(map(bytes, records)) + b"]", "one compact array"
    return [bytes(record) for record in records]


class Twins:
    """The two stores. Their images correspond: only random IDs and times of creation differ.

    :ivar performed: the operations so far, and the types of their results here
    """

    def __init__(self, peer: Peer, directory: Path) -> None:
        self._peer = peer
        self._ours = directory / "ours"
        self._theirs = directory / "theirs"
        self._twins: dict[str, str] = {}  # the IDs there by those here
        self._timed: set[str] = set()  # the images whose time of creation was given
        self._layers: set[Path] = set()  # the stores of containers/storage that have layers
        self.performed: list[tuple[str, str]] = []

    async def open(self) -> None:
        """Open both stores."""
        self._peer.ask("open", self._theirs)
        self._store = ImageStore(image_store(self._ours))
        await self._store.__aenter__()

    async def close(self) -> None:
        """Close both stores."""
        await self._store.aclose()
        self._peer.ask("close", self._theirs)

    async def swap(self) -> None:
        """Close both stores, and open each in the directory of the other."""
        await self.close()
        self._ours, self._theirs = self._theirs, self._ours
        self._twins = {theirs: ours for ours, theirs in self._twins.items()}
        self._timed = {self._twins.get(image_id, image_id) for image_id in self._timed}
        await self.open()

    async def perform(self, operation: Operation) -> None:
        """Do the same to both stores, and compare the results."""
        if operation.op == "reopen":
            await self.close()
            await self.open()
            return
        ours_ref, theirs_ref = await self._resolve(operation.ref)
        if operation.ref == Ref(text="") and self._peer.ask("exists", self._theirs, ref=""):
            return  # an image with the name "" is found there only: see test_differences.py
        if operation.fields.get("layer") or (operation.op == "delete" and self._layers):
            # An image with a layer can be deleted there only if the directory has the layer, which
            # a directory of ours does not.
            self._make_layers()
        theirs_answer = self._theirs_does(operation, theirs_ref)
        ours_answer = await self._ours_does(operation, ours_ref)
        self.performed.append((operation.op, type(ours_answer).__name__))
        if operation.op == "create" and isinstance(ours_answer, Image):
            assert not isinstance(theirs_answer, PeerError), theirs_answer
            self._twins[ours_answer.id] = theirs_answer["id"]
            self._timed.discard(ours_answer.id)
            if "created" in operation.fields:
                self._timed.add(ours_answer.id)
        self._compare(operation, ours_answer, theirs_answer)
        if operation.op == "wipe":
            self._layers.clear()

    async def _resolve(self, ref: Ref | None) -> tuple[str, str]:
        if ref is None:
            return "", ""
        if ref.position < 0:
            return ref.text, ref.text
        images = await self._store.images()
        if not images:
            return "nothing", "nothing"
        ours = images[ref.position % len(images)].id
        end = ref.cut or None
        return ours[:end], self._twins[ours][:end]

    def _make_layers(self) -> None:
        if self._theirs not in self._layers:
            self._peer.ask("layers", self._theirs)
            self._layers.add(self._theirs)

    def _theirs_does(self, operation: Operation, ref: str) -> Any:
        fields = dict(operation.fields)
        if created := fields.get("created"):
            fields["created"] = created.isoformat()
        if fields.get("id") is None:
            fields.pop("id", None)
        try:
            return self._peer.ask(operation.op, self._theirs, ref=ref, **fields)
        except PeerError as error:
            return error

    async def _ours_does(self, operation: Operation, ref: str) -> Any:
        call = getattr(self._store, operation.op)
        arguments = () if operation.ref is None else (ref,)
        fields = dict(operation.fields)
        if layer := fields.pop("layer", ""):
            fields["top_layer"] = layer
        if operation.op == "create":
            fields["force"] = True  # containers/storage creates images for which podman fails
        try:
            return await call(*arguments, **fields)
        except ImageStoreError as error:
            return error

    def _compare(self, operation: Operation, ours: Any, theirs: Any) -> None:
        op = operation.op
        if op == "by_digest":
            self._compare_by_digest(operation.fields["digest"], ours, theirs)
        elif isinstance(ours, ImageStoreError):
            assert isinstance(theirs, PeerError), f"{op}: {ours!r}, but there {theirs}"
            expected = {_ERRORS[type(ours).__name__][op]}
            if type(ours).__name__ == "InvalidDigestError":
                # This library checks arguments before it looks anything up.
                expected |= {"ErrDuplicateID", "ErrDuplicateName"}
            elif type(ours).__name__ == "InvalidBigDataNameError" and op == "set_big_data":
                expected |= set() if BEHAVIOUR.checks_key_first else {"ErrImageUnknown"}
            assert theirs.kind in expected, f"{op}: {ours!r}, but there {theirs}"
        else:
            assert not isinstance(theirs, PeerError), f"{op}: {ours!r}, but there {theirs}"
            if isinstance(ours, Image):
                self._compare_images(ours, theirs)
            elif op == "images":
                assert len(ours) == len(theirs)
                for one, other in zip(ours, theirs, strict=True):
                    self._compare_images(one, other)
            else:
                expected = [] if op == "big_data_names" and theirs is None else theirs
                assert (self._twins[ours] if op == "lookup" else ours) == expected, op

    def _compare_by_digest(self, digest: str, ours: Any, theirs: Any) -> None:
        # Its Store returns no images instead of any error.
        if isinstance(ours, ImageStoreError):
            assert theirs == [], f"{digest}: {ours!r}"
        else:
            assert sorted(self._twins[image.id] for image in ours) == sorted(theirs)

    def _compare_images(self, ours: Image, theirs: Mapping[str, Any]) -> None:
        assert self._twins[ours.id] == theirs["id"]
        for field in (
            *("names", "names_history", "top_layer", "mapped_top_layers", "metadata", "digest"),
            *("big_data_names", "big_data_sizes", "big_data_digests", "flags"),
        ):
            mine = getattr(ours, field)
            mine = list(mine) if isinstance(mine, tuple) else mine
            # Empty values are null there.
            assert mine == theirs[field] or not (mine or theirs[field]), field
        # Theirs are in random order.
        assert sorted(ours.digests) == sorted(theirs["digests"] or [])
        manifests = [
            ours.big_data_digests[key] for key in ours.big_data_names if key.startswith("manifest")
        ]
        first = [ours.digest] if ours.digest else []
        assert list(ours.digests) == list(dict.fromkeys(first + manifests))
        if ours.id in self._timed:
            assert ours.created == datetime.fromisoformat(theirs["created"])

    # The directories

    async def check_directories(self) -> None:
        """Check that neither store is damaged."""
        for root in (self._ours, self._theirs):
            assert without_podman(await check(image_store(root))).findings == ()

    def compare_directories(self) -> None:
        """Check that both have the same records, byte for byte, and the same files of big data."""
        ours, theirs = image_store(self._ours), image_store(self._theirs)
        for record, other in zip(records_of(ours), records_of(theirs), strict=True):
            fields = msgspec.json.decode(record)
            image_id, twin = fields["id"], self._twins[fields["id"]]
            both = (record.replace(image_id.encode(), twin.encode(), 1), other)
            if image_id not in self._timed:
                both = (_CREATED.sub(b"", both[0], count=1), _CREATED.sub(b"", both[1], count=1))
            assert both[0] == both[1]
            if "big-data-names" in fields:
                assert _files(ours / image_id) == _files(theirs / twin)

    async def compare_lookups(self, digests: Sequence[str]) -> None:
        """Compare the results of all reads of each image, and of lookups by these digests."""
        await self.perform(Operation("images"))
        for image in await self._store.images():
            await self._compare_image_lookups(image)
            digests = (*digests, *image.digests)
        for digest in dict.fromkeys(digests):
            await self.perform(Operation("by_digest", fields={"digest": digest}))

    async def _compare_image_lookups(self, image: Image) -> None:
        refs = {Ref(text=name) for name in (*image.names, *image.names_history)}
        position = [each.id for each in await self._store.images()].index(image.id)
        refs |= {Ref(position=position, cut=cut) for cut in (0, 8, 12, 63)}
        for ref in refs:
            for op in ("lookup", "exists", "get"):
                await self.perform(Operation(op, ref))
        whole = Ref(position=position)
        for op in ("metadata", "big_data_names"):
            await self.perform(Operation(op, whole))
        for key in image.big_data_names:
            for op in ("big_data", "big_data_size", "big_data_digest"):
                await self.perform(Operation(op, whole, {"key": key}))


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
