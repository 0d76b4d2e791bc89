"""A simulated disk that loses what POSIX allows it to lose when the power is cut.

The recorder notes each call of the engine on the store's files. A power cut may come after each:

- A file keeps the content that was synced. Of later writes it has none, all, all with the last one
  torn in half, or zeros in their place.
- A directory keeps the names that were synced, and any of the later changes of names.
- A rename is atomic. It is durable once the directory of the new name is synced.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..support.loops import NIGHTLY
from .faults import PACKAGE
from .state import State

BOUND = 7 if NIGHTLY else 4
"""Up to this number of changes of names, every combination of them is lost; of more, only some."""

MORE = 50 if NIGHTLY else 8
"""How many random combinations of more changes are lost, beside the simple ones."""


class Node:
    """A file or directory, whatever its name."""

    def __init__(self, *, is_directory: bool, content: bytes = b"") -> None:
        self.is_directory = is_directory
        self.content = content  # before the recording


Place = tuple[Node, str]


class Write(NamedTuple):
    """Bytes written into a file."""

    node: Node
    offset: int
    data: bytes


class Sync(NamedTuple):
    """A file's content or a directory's names made durable."""

    node: Node


@dataclass(eq=False)
class Naming:
    """Names added and removed in one step.

    :ivar entries: the new owner of each name; ``None`` where the name is removed
    :ivar until: the directory whose sync makes the step durable
    """

    entries: tuple[tuple[Place, Node | None], ...]
    until: Node


@dataclass
class Allowed:
    """What the store may hold from here on; a change that completes adds its result to the list."""

    states: list[State] = field(default_factory=list)


Event = Write | Sync | Naming | Allowed


def kind_of(event: Event) -> str:
    """Return the kind of an event: on a file or a directory, or which names it adds and removes."""
    what = type(event).__name__
    match event:
        case Naming(entries):
            return f"{what} {[node is not None for _, node in entries]}"
        case Write(node) | Sync(node):
            return f"{what} {node.is_directory}"
    return what


class Recorder:
    """Records what the engine does below a directory."""

    def __init__(self, base: Path) -> None:
        self._base = str(base)
        self.root = Node(is_directory=True)
        self.start: dict[Place, Node] = {}
        self._load(base, self.root)
        self._entries = dict(self.start)
        self._open: dict[int, Node] = {}
        self._positions: dict[int, int] = {}
        self.events: list[Event] = []

    def _load(self, path: Path, into: Node) -> None:
        for name in os.listdir(path):
            child = path / name
            is_directory = child.is_dir()
            node = Node(
                is_directory=is_directory, content=b"" if is_directory else child.read_bytes()
            )
            self.start[into, name] = node
            if is_directory:
                self._load(child, node)

    def allow(self, states: list[State]) -> None:
        """Allow these states from here on; the caller may add to the list."""
        self.events.append(Allowed(states))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Record the engine's calls for the block."""
        names = ("open", "writev", "fsync", "rename", "link", "unlink", "mkdir", "rmdir")
        real = {name: getattr(os, name) for name in names}
        for name in names:
            setattr(os, name, self._wrap(getattr(self, f"_note_{name}"), real[name]))
        try:
            yield
        finally:
            for name in names:
                setattr(os, name, real[name])

    def _wrap(self, note: Callable[..., None], real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # A failpoint makes the call for the engine.
            caller = sys._getframe(1).f_code.co_filename
            result = real(*args, **kwargs)
            if caller.startswith(PACKAGE) or caller.endswith("/crash/faults.py"):
                note(result, *args, **kwargs)
            return result

        return call

    def _place(self, name: str, directory: int | None) -> Place:
        if directory is not None:
            return self._open[directory], name
        parts = os.path.relpath(name, self._base).split("/")
        if parts[0] == "..":
            return Node(is_directory=True), "."
        node = self.root
        for part in parts[:-1]:
            node = self._entries[node, part]
        return node, parts[-1]

    def _name(self, *entries: tuple[Place, Node | None]) -> None:
        for place, node in entries:
            if node is None:
                self._entries.pop(place, None)
            else:
                self._entries[place] = node
        self.events.append(Naming(entries, entries[-1][0][0]))

    def _node_at(self, place: Place, flags: int) -> Node:
        if place[1] == ".":
            return place[0]
        if place not in self._entries:
            assert flags & os.O_CREAT, place
            self._name((place, Node(is_directory=False)))
        return self._entries[place]

    # What each call does

    def _note_open(
        self, fd: int, name: str, flags: int, mode: int = 0, *, dir_fd: int | None = None
    ) -> None:
        unnamed = flags & os.O_TMPFILE == os.O_TMPFILE
        place = self._place(name, dir_fd)
        self._open[fd] = Node(is_directory=False) if unnamed else self._node_at(place, flags)
        self._positions[fd] = 0

    def _note_writev(self, done: int, fd: int, pieces: Sequence[memoryview]) -> None:
        offset = self._positions[fd]
        self._positions[fd] += done
        self.events.append(Write(self._open[fd], offset, b"".join(pieces)[:done]))

    def _note_fsync(self, _: None, fd: int) -> None:
        self.events.append(Sync(self._open[fd]))

    def _note_rename(
        self, _: None, old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int
    ) -> None:
        source, target = self._place(old, src_dir_fd), self._place(new, dst_dir_fd)
        # A rename between two names of one file changes neither.
        if self._entries.get(target) is not self._entries[source]:
            self._name((source, None), (target, self._entries[source]))

    def _note_link(
        self,
        _: None,
        old: str,
        new: str,
        *,
        dst_dir_fd: int,
        src_dir_fd: int | None = None,
        **__: Any,
    ) -> None:
        if src_dir_fd is None:
            node = self._open[int(old.removeprefix("/proc/self/fd/"))]
        else:
            node = self._entries[self._place(old, src_dir_fd)]
        self._name((self._place(new, dst_dir_fd), node))

    def _note_unlink(self, _: None, name: str, *, dir_fd: int) -> None:
        self._name((self._place(name, dir_fd), None))

    def _note_mkdir(self, _: None, name: str, mode: int = 0, *, dir_fd: int | None = None) -> None:
        self._name((self._place(name, dir_fd), Node(is_directory=True)))

    def _note_rmdir(self, _: None, name: str, *, dir_fd: int) -> None:
        self._name((self._place(name, dir_fd), None))


# What a power cut leaves

Tree = tuple[tuple[str, bytes | None], ...]
"""Paths, with the content of files, and ``None`` for directories."""


class Disk:
    """What is certainly on the disk after some events, and what may be."""

    def __init__(self, recorder: Recorder) -> None:
        self._root = recorder.root
        self._entries = dict(recorder.start)
        self._pending: list[Naming] = []
        self._synced: dict[Node, bytes] = {}
        self._written: dict[Node, list[Write]] = {}
        self.allowed: list[State] = []

    def do(self, event: Event) -> None:
        """Apply one event."""
        match event:
            case Allowed(states):
                self.allowed = states
            case Write(node):
                self._written.setdefault(node, []).append(event)
            case Naming():
                self._pending.append(event)
            case Sync(node) if node.is_directory:
                self._sync_names(node)
            case Sync(node):
                self._synced[node] = _written(self._base(node), self._written.pop(node, ()))

    def _base(self, node: Node) -> bytes:
        return self._synced.get(node, node.content)

    def _sync_names(self, directory: Node) -> None:
        """Make the changes of names in this directory durable, and earlier ones of those names."""
        durable: set[Naming] = set()
        touched: set[Place] = set()
        for naming in reversed(self._pending):
            places = {place for place, _ in naming.entries}
            if naming.until is directory or not touched.isdisjoint(places):
                durable.add(naming)
                touched |= places
        for naming in self._pending:
            if naming in durable:
                _apply(naming, self._entries)
        self._pending = [naming for naming in self._pending if naming not in durable]

    def sync(self) -> None:
        """Make all changes durable."""
        for naming in self._pending:
            _apply(naming, self._entries)
        self._pending = []
        for node in tuple(self._written):
            self.do(Sync(node))

    def trees(self) -> Iterator[Tree]:
        """Yield every state of the disk that a power cut may leave now, some more than once."""
        for kept in self._combinations():
            entries = dict(self._entries)
            for naming in kept:
                _apply(naming, entries)
            yield from self._with_contents(entries)

    def _combinations(self) -> Iterator[tuple[Naming, ...]]:
        pending = self._pending
        if len(pending) <= BOUND:
            for size in range(len(pending) + 1):
                yield from itertools.combinations(pending, size)
            return
        for end in range(len(pending) + 1):
            yield tuple(pending[:end])
            yield tuple(pending[end:])
            yield tuple(pending[:end] + pending[end + 1 :])
            yield tuple(pending[end : end + 1])
        generator = random.Random(len(pending))
        for _ in range(MORE):
            yield tuple(naming for naming in pending if generator.random() < 0.5)

    def _with_contents(self, entries: dict[Place, Node]) -> Iterator[Tree]:
        names: dict[Node, list[tuple[str, Node]]] = {}
        for (directory, name), node in entries.items():
            names.setdefault(directory, []).append((name, node))
        reached = list(_walk(names, self._root, ""))
        files = list(dict.fromkeys(node for _, node in reached if not node.is_directory))
        for contents in itertools.product(*map(self._contents, files)):
            of = dict(zip(files, contents, strict=True))
            yield tuple(sorted((path, of.get(node)) for path, node in reached))

    def _contents(self, node: Node) -> list[bytes]:
        """Return what a file may contain."""
        base = self._base(node)
        writes = self._written.get(node, ())
        if not writes:
            return [base]
        whole = _written(base, writes)
        if len(whole) == TOKEN_BYTES:
            return [base, whole]  # the last-write token, whose value does not matter
        last = writes[-1]
        torn = last._replace(data=last.data[: len(last.data) // 2])
        zeros = [write._replace(data=bytes(len(write.data))) for write in writes]
        variants = (base, whole, _written(base, [*writes[:-1], torn]), _written(base, zeros))
        return list(dict.fromkeys(variants))


TOKEN_BYTES = 64


def _apply(naming: Naming, entries: dict[Place, Node]) -> None:
    for place, node in naming.entries:
        if node is None:
            entries.pop(place, None)
        else:
            entries[place] = node


def _written(content: bytes, writes: Sequence[Write]) -> bytes:
    data = bytearray(content)
    for _, offset, piece in writes:
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + len(piece)] = piece
    return bytes(data)


def _walk(
    names: dict[Node, list[tuple[str, Node]]], directory: Node, prefix: str
) -> Iterator[tuple[str, Node]]:
    for name, node in names.get(directory, ()):
        yield prefix + name, node
        if node.is_directory:
            yield from _walk(names, node, f"{prefix}{name}/")


def as_written(recorder: Recorder) -> Tree:
    """Return the disk after all events, without a power cut."""
    disk = Disk(recorder)
    for event in recorder.events:
        disk.do(event)
    disk.sync()
    (tree,) = disk.trees()
    return tree


def put_on_disk(tree: Tree, path: Path) -> None:
    """Write a state of the disk to a directory."""
    path.mkdir()
    for name, content in tree:
        if content is None:
            (path / name).mkdir(mode=0o700)
        else:
            (path / name).write_bytes(content)
