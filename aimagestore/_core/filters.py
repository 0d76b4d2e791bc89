"""podman's filters of images (``podman images --filter``), for images of any store.

A filter is ``key=value``, or ``key!=value`` for the images that do not match. An image is selected
when it passes all filters; of several ``reference=`` filters, when it passes one of them.

Most filters need only the records. Labels, the history of images and the instances of image indexes
are in the images' items: an :class:`ImageQuery` says of which images it needs these.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ..errors import ImageUnknownError
from .documents import Documents, is_parent
from .filter_keys import FILTERS
from .image import Image
from .moments import parse_moment
from .podman import INSTANCES
from .references import DOCKER, full_name
from .refs import id_in_ref, repository_and_digest, repository_of

_BOOLEANS = frozenset({"dangling", "intermediate", "manifest", "readonly"})
_FROM_ITEMS = frozenset({"dangling", "intermediate", "label", "manifest"})
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter.

    :ivar is_negated: whether images that match are left out
    """

    key: str
    value: str
    is_negated: bool = False

    @property
    def wants(self) -> bool:
        """The value of a filter that is true or false, as a ``bool``."""
        return self.value in _TRUE


def parse_filter(text: str) -> Filter:
    """Parse ``key=value`` or ``key!=value``.

    :raises ValueError: when it is neither, the key is unknown, or the value does not fit it
    """
    key, separator, value = text.partition("!=")
    is_negated = bool(separator)
    if not separator:
        key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} is no filter: write KEY=VALUE or KEY!=VALUE")
    key = "since" if key == "after" else key
    if key not in FILTERS:
        raise ValueError(f"{key!r} is no filter: use one of {', '.join(FILTERS)}")
    if key in _BOOLEANS and value not in _TRUE | _FALSE:
        raise ValueError(f"the filter {key} takes true or false, not {value!r}")
    if key == "digest" and not value.startswith("sha256:"):
        raise ValueError(
            f"the filter digest takes the beginning of a digest, sha256:…, not {value!r}"
        )
    return Filter(key, value, is_negated)


@dataclass(frozen=True)
class ImageQuery:
    """The filters of one command.

    :param filters: all of them
    :param now: an aware datetime, from which durations are counted back; its time zone is that of
        times without one
    :raises ValueError: when a time cannot be read, or two filters contradict each other
    """

    filters: Sequence[Filter]
    now: datetime
    _times: dict[str, datetime] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        values: dict[str, str] = {}
        for each in self.filters:
            if each.key in _BOOLEANS and values.setdefault(each.key, each.value) != each.value:
                raise ValueError(f"the filter {each.key} is given twice, with different values")
            if each.key == "until":
                self._times[each.value] = parse_moment(each.value, self.now)

    @classmethod
    def parse(cls, texts: Iterable[str], now: datetime) -> ImageQuery:
        """Parse filters as they are given to podman.

        :raises ValueError: when one cannot be read
        """
        return cls([parse_filter(text) for text in texts], now)

    def by_record(self, images: Sequence[Image]) -> list[Image]:
        """Return the images that pass the filters that need only records.

        :param images: all images of the store
        :raises ImageUnknownError: when a filter names an image that does not exist
        """
        if all(each.key in _FROM_ITEMS for each in self.filters):
            return list(images)
        finder = _Finder(images)
        tests = [
            _negated(self._test(each, finder)) if each.is_negated else self._test(each, finder)
            for each in self.filters
            if each.key not in _FROM_ITEMS and (each.key != "reference" or each.is_negated)
        ]
        wanted = [self._test(each, finder) for each in self._references]
        return [
            image
            for image in images
            if all(test(image) for test in tests)
            and (not wanted or any(test(image) for test in wanted))
        ]

    @property
    def _references(self) -> list[Filter]:
        return [each for each in self.filters if each.key == "reference" and not each.is_negated]

    def _test(self, each: Filter, finder: _Finder) -> Callable[[Image], bool]:
        value = each.value
        match each.key:
            case "id":
                return lambda image: image.id.startswith(value)
            case "digest":
                return lambda image: any(digest.startswith(value) for digest in image.digests)
            case "readonly":
                return lambda image: image.read_only is each.wants
            case "reference":
                return _reference_test(value, finder.find(value))
        moment = self._moment(each, finder)
        if each.key == "since":
            return lambda image: (image.created or _NEVER) > moment
        return lambda image: (image.created or _NEVER) < moment

    def _moment(self, each: Filter, finder: _Finder) -> datetime:
        """Return the time that a filter compares with: a given one, or an image's creation."""
        if each.key == "until":
            return self._times[each.value]
        image = finder.find(each.value)
        if image is None:
            raise ImageUnknownError(
                f"no image is known by {each.value!r}, which the filter {each.key} names",
                ref=each.value,
            )
        return image.created or _NEVER

    def shown_names(self, image: Image) -> tuple[str, ...]:
        """Return the names by which podman lists an image that was selected.

        A single ``reference=`` that is a full name lists an image by that name only.
        """
        references = [each for each in self.filters if each.key == "reference"]
        if len(references) != 1 or references[0].is_negated:
            return image.names
        wanted = references[0].value
        if full_name(wanted) != wanted:
            return image.names
        if "@" in wanted:
            repository = repository_of(wanted)
            return tuple(name for name in image.names if repository_of(name) == repository)
        return tuple(name for name in image.names if name == wanted)

    def needs_documents(self, images: Sequence[Image], found: Sequence[Image]) -> list[Image]:
        """Return the images whose documents :meth:`by_documents` needs.

        :param images: all images of the store
        :param found: those that :meth:`by_record` has found
        """
        keys = {each.key for each in self.filters}
        needed = {image.id for image in found} if keys & {"label", "manifest"} else set()
        # An image with names is neither dangling nor an intermediate one.
        if keys & {"dangling", "intermediate"} and not all(image.names for image in found):
            needed |= {image.id for image in images}
        return [image for image in images if image.id in needed]

    def by_documents(
        self,
        images: Sequence[Image],
        found: Sequence[Image],
        documents: Mapping[str, Documents],
    ) -> list[Image]:
        """Return the images that also pass the filters that need documents.

        :param images: all images of the store
        :param found: those that :meth:`by_record` has found
        :param documents: the documents of those that :meth:`needs_documents` has returned, by ID
        """
        filters = [each for each in self.filters if each.key in _FROM_ITEMS]
        if not filters:
            return list(found)
        family = _Family(images, documents)
        return [
            image
            for image in found
            if all(
                _passes(each, image, documents, family) is not each.is_negated for each in filters
            )
        ]


def _passes(
    each: Filter, image: Image, documents: Mapping[str, Documents], family: _Family
) -> bool:
    match each.key:
        case "label":
            return _has_label(documents[image.id].labels, each.value)
        case "manifest":
            return documents[image.id].is_index is each.wants
        case "dangling":
            return family.is_dangling(image) is each.wants
    return family.is_intermediate(image) is each.wants


def _negated(test: Callable[[Image], bool]) -> Callable[[Image], bool]:
    return lambda image: not test(image)


class _Family:
    """Tells which images were built from which, and which are instances of an image index."""

    def __init__(self, images: Sequence[Image], documents: Mapping[str, Documents]) -> None:
        self._documents = documents
        # Images by the number of steps that a parent of theirs has.
        self._children: dict[int, list[Image]] = defaultdict(list)
        self._instances: set[str] = set()
        for image in images:
            known = documents.get(image.id)
            if known is None:
                continue
            if known.is_index:
                # podman looks for instances only in the indexes that it can change.
                if not image.top_layer and INSTANCES in image.big_data_names:
                    self._instances |= known.instances
            elif known.history:
                self._children[len(known.history) - 1].append(image)

    def has_children(self, image: Image) -> bool:
        known = self._documents[image.id]
        return not known.is_index and any(
            child.id != image.id
            and bool(child.top_layer) is bool(image.top_layer)
            and is_parent(known, self._documents[child.id], has_layers=bool(image.top_layer))
            for child in self._children[len(known.history)]
        )

    def is_intermediate(self, image: Image) -> bool:
        return not image.names and self.has_children(image)

    def is_dangling(self, image: Image) -> bool:
        is_unused = not image.names and image.digest not in self._instances
        return is_unused and not self.has_children(image)


# References


class _Finder:
    """Finds the image that podman finds by a name or an ID."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = images
        self._by_id = {image.id: image for image in images}
        self._by_name = {name: image for image in images for name in image.names}

    def find(self, ref: str) -> Image | None:
        name, at, digest = ref.partition("@")
        if at:
            # Beside a digest the tag does not count.
            ref = f"{repository_of(name)}@{digest}"
        image_id = id_in_ref(ref)
        if image_id is not None:
            return self._by_id.get(image_id)
        if ref in self._by_id:
            return self._by_id[ref]
        for registry in ("localhost", DOCKER):
            full = full_name(ref, registry)
            found = None if full is None else self._find_full(full)
            if found is not None:
                return found
        if ref in self._by_name:
            return self._by_name[ref]
        prefixed = [image for image in self._images if ref and image.id.startswith(ref)]
        if len(prefixed) == 1:
            return prefixed[0]
        return self._find_short(ref)

    def _find_full(self, name: str) -> Image | None:
        if name in self._by_name:
            return self._by_name[name]
        wanted = repository_and_digest(name)
        if wanted is None:
            return None
        repository, digest = wanted
        for image in self._images:
            if digest in image.digests and repository in map(repository_of, image.names):
                return image
        return None

    def _find_short(self, ref: str) -> Image | None:
        """Find an image by the end of its name, whatever its registry is."""
        full = full_name(ref)
        if full is None or full == full_name(ref, DOCKER):  # not a name, or it names its registry
            return None
        ending = full.removeprefix("localhost/")
        repository, digest = repository_and_digest(ending) or ("", "")
        for image in self._images:
            for name in image.names:
                shown = repository_of(name) if digest else name
                if f"/{shown}".endswith(f"/{repository if digest else ending}") and (
                    not digest or digest in image.digests
                ):
                    return image
        return None


def _reference_test(pattern: str, named: Image | None) -> Callable[[Image], bool]:
    matches = _path_matcher(pattern)

    def test(image: Image) -> bool:
        if named is not None and named.id == image.id:
            return True
        return any(matches(form) for name in image.names for form in _forms_of(name))

    return test


def _forms_of(name: str) -> tuple[str, ...]:
    """Return the forms of a name that a pattern may match: each part of it may be left out."""
    repository = repository_of(name)
    ending = name[len(repository) :]
    path = repository.partition("/")[2] or repository
    last = repository.rpartition("/")[2]
    return (name, repository, path + ending, path, last + ending, last)


def _path_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a match function like Go's ``path.Match``; a malformed pattern matches nothing."""
    expression = _expression_of(pattern)
    if expression is None:
        return lambda text: False
    return lambda text: expression.fullmatch(text) is not None


_ITEM = re.compile(
    r"\\(?P<escaped>.)|(?P<many>\*)|(?P<one>\?)|(?P<set>\[)|(?P<plain>[^\\])", re.DOTALL
)
_SET_CHAR = re.compile(r"\\(.)|([^\\\]-])", re.DOTALL)


def _expression_of(pattern: str) -> re.Pattern[str] | None:
    """Translate a pattern into a regular expression; ``None`` when it is malformed."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        found = _ITEM.match(pattern, position)
        if found is None:
            return None
        position = found.end()
        if found["many"]:
            parts.append("[^/]*")
        elif found["one"]:
            parts.append("[^/]")
        elif found["set"]:
            characters, position = _set_of(pattern, position)
            if not characters:
                return None
            parts.append(characters)
        else:
            parts.append(re.escape(found["escaped"] or found["plain"]))
    return re.compile("".join(parts), re.DOTALL)


def _set_of(pattern: str, position: int) -> tuple[str, int]:
    """Translate a set of characters into a regular expression; ``""`` when it is malformed.

    :param position: the position after its opening bracket
    :returns: the expression, and the position after the set
    """
    negation = "^" if pattern.startswith("^", position) else ""
    position += len(negation)
    ranges: list[str] = []
    while position < len(pattern) and not (pattern[position] == "]" and ranges):
        first = _SET_CHAR.match(pattern, position)
        if first is None:
            return "", position
        low = high = first[1] or first[2]
        position = first.end()
        if pattern.startswith("-", position):
            last = _SET_CHAR.match(pattern, position + 1)
            if last is None:
                return "", position
            high = last[1] or last[2]
            position = last.end()
        # Nothing is in a range that ends before it begins.
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    if position >= len(pattern):
        return "", position
    characters = "".join(ranges)
    if not characters:
        return "(?s:.)" if negation else "(?!)", position + 1
    return f"[{negation}{characters}]", position + 1


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Return whether there is a label ``KEY`` or ``KEY=VALUE``; the key may be a pattern."""
    key, _, value = wanted.partition("=")
    is_pattern = "*" in key
    # A pattern may match any part of the key, across slashes too.
    match_pattern = _path_matcher(f"*{key}*".replace("/", "|"))

    def matches(label: str) -> bool:
        return label == key or (is_pattern and match_pattern(label.replace("/", "|")))

    return any(matches(label) and value in ("", labels[label]) for label in labels)
