"""Which images a policy prunes, and why it keeps each of the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

import msgspec

from .draft import Draft, Plan
from .image import Image
from .mutations import Mutation
from .names import check_names, check_type
from .plain import PlainType
from .refs import repository_of
from .view import unknown

KEEP_FLAG: Final = "aimagestore.keep"
"""The flag of images that no policy prunes, unless it names another flag."""

_RESULT = "_aimagestore_prune_result"

_NO_REPOSITORIES: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePolicy(metaclass=PlainType):
    """Which images :meth:`ImageStore.prune` deletes: those that meet every given condition.

    Never pruned are images that a container uses, that have the flag ``keep_flag``, that an image
    index in the store names, that come from an additional store, and, where their age matters,
    those without a known creation time.

    :ivar unnamed: consider only images without names; otherwise all, and an image with names is
        pruned only if none of them is kept
    :ivar older_than: prune only images that were created longer ago
    :ivar keep_last: how many of the newest images of each repository are kept
    :ivar keep_names: keep images with a name that one of these patterns matches, as
        :func:`fnmatch.fnmatchcase` has them
    :ivar keep_flag: keep images with this flag, whatever its value; ``None`` for no flag
    :ivar filter: prune only images for which this function returns true; it is called in a worker
        thread, and must not be async
    :raises ValueError: when ``older_than`` is negative, or ``keep_last`` is not positive
    """

    unnamed: bool = True
    older_than: timedelta | None = None
    keep_last: int | None = None
    keep_names: Iterable[str] = ()
    keep_flag: str | None = KEEP_FLAG
    filter: Callable[[Image], bool] | None = None

    def __post_init__(self) -> None:
        check_type(self.unnamed, bool, "unnamed")
        object.__setattr__(self, "keep_names", check_names(self.keep_names, "keep_names"))
        if self.older_than is not None:
            check_type(self.older_than, timedelta, "older_than")
            if self.older_than < timedelta():
                raise ValueError(f"older_than must not be negative: {self.older_than}")
        if self.keep_last is not None:
            check_type(self.keep_last, int, "keep_last")
            if self.keep_last < 1:
                raise ValueError(f"keep_last must be at least 1: {self.keep_last}")
        if self.keep_flag is not None:
            check_type(self.keep_flag, str, "keep_flag")
        if self.filter is not None and not callable(self.filter):
            raise TypeError(f"filter must be callable, not {type(self.filter).__name__}")

    @property
    def _needs_age(self) -> bool:
        return self.older_than is not None or self.keep_last is not None


@dataclass(frozen=True, slots=True)
class PruneResult(metaclass=PlainType):
    """What :meth:`ImageStore.prune` has deleted, or would delete with ``dry_run``.

    :ivar images: the deleted images, as they were
    :ivar freed: how many bytes that freed, as :class:`Usage` counts them. On a cluster a garbage
        collection frees them, after the grace period
    :ivar kept: why each other image was kept, by ID
    """

    images: tuple[Image, ...] = ()
    freed: int = 0
    kept: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(error: BaseException) -> PruneResult | None:
        """Return what :meth:`ImageStore.prune` had done when it raised this exception.

        ``None`` for an exception that is not from there. A cancellation has to be caught inside
        the cancel scope, and raised again::

            try:
                await store.prune(policy)
            except BaseException as error:
                done = PruneResult.of(error)
                ...
                raise
        """
        found: PruneResult | None = getattr(error, _RESULT, None)
        return found


def attach_result(error: BaseException, result: PruneResult) -> None:
    """Let :meth:`PruneResult.of` find the result."""
    setattr(error, _RESULT, result)
    number = len(result.images)
    error.add_note(f"{number} image{'' if number == 1 else 's'} had been pruned before")


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An image that is to be pruned.

    :ivar image: the image as it was judged
    :ivar newer: the IDs of the newer images that are kept instead, by repository
    """

    image: Image
    newer: Mapping[str, Sequence[str]]

    def mutation(self) -> Mutation:
        """Return a mutation that deletes the image, if it is as it was judged.

        If it was changed, or a newer image has left its repository, the mutation changes nothing.
        If it was deleted, the mutation raises :exc:`ImageUnknownError`.
        """
        others = tuple(image_id for ids in self.newer.values() for image_id in ids)
        return Mutation(self._plan, (self.image.id, *others))

    def _plan(self, draft: Draft) -> Plan:
        record = draft.record_of(self.image.id)
        if record is None:
            raise unknown(self.image.id)
        are_newer_there = all(
            _is_in(draft, image_id, repository)
            for repository, ids in self.newer.items()
            for image_id in ids
        )
        if record.image != self.image or not are_newer_there:
            return Plan()
        return Plan(deleted=(self.image.id,))


def _is_in(draft: Draft, image_id: str, repository: str) -> bool:
    record = draft.record_of(image_id)
    return record is not None and repository in map(repository_of, record.names)


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a policy says of the images of a store.

    :ivar candidates: the images to be pruned, in the order of images.json
    :ivar kept: why each other image is kept, by ID
    """

    candidates: Sequence[Candidate]
    kept: Mapping[str, str]


def plan_prune(
    images: Sequence[Image],
    policy: PrunePolicy,
    *,
    now: datetime,
    containers: Mapping[str, Sequence[str]],
    instances: Mapping[str, str],
    check: Callable[[], object] = lambda: None,
) -> PrunePlan:
    """Judge all images of a store.

    :param now: an aware datetime
    :param containers: the names or IDs of the containers that use an image, by its ID
    :param instances: the IDs of image indexes, by the digests of the images that they name
    :param check: called before each image, because a filter may be slow; what it raises ends this
    """
    newest = {} if policy.keep_last is None else _newest(images, policy.keep_last)
    candidates: list[Candidate] = []
    kept: dict[str, str] = {}
    for image in images:
        check()
        reason = (
            _reason_for_any_policy(image, policy, containers, instances)
            or _reason_by_name(image, policy, newest)
            or _reason_by_age(image, policy, now)
        )
        if not reason and policy.filter is not None and not _passes(policy.filter, image):
            reason = "the filter keeps it"
        if reason:
            kept[image.id] = reason
        else:
            repositories = {repository_of(name) for name in image.names}
            newer = {name: newest[name] for name in sorted(repositories) if name in newest}
            candidates.append(Candidate(image, newer or _NO_REPOSITORIES))
    return PrunePlan(candidates, kept)


def _passes(select: Callable[[Image], bool], image: Image) -> bool:
    verdict: object = select(image)
    if isinstance(verdict, Awaitable):
        if isinstance(verdict, Coroutine):
            verdict.close()
        # It is true, whatever its result would be: every image would be pruned.
        raise TypeError("filter must not be async: it is called in a worker thread")
    return bool(verdict)


def _newest(images: Iterable[Image], number: int) -> dict[str, list[str]]:
    """Return the IDs of this number of newest images of each repository."""
    dated: defaultdict[str, list[tuple[datetime, str]]] = defaultdict(list)
    for image in images:
        if image.created is not None:
            for repository in {repository_of(name) for name in image.names}:
                dated[repository].append((image.created, image.id))
    # Of images created at one time, the later one in images.json counts as newer.
    return {
        repository: [image_id for _, image_id in sorted(each, key=lambda e: e[0])[-number:]]
        for repository, each in dated.items()
    }


def _reason_for_any_policy(
    image: Image,
    policy: PrunePolicy,
    containers: Mapping[str, Sequence[str]],
    instances: Mapping[str, str],
) -> str:
    if image.read_only:
        return "it comes from an additional store"
    if users := containers.get(image.id):
        return used_by(users)
    if policy.keep_flag is not None and policy.keep_flag in image.flags:
        return f"it has the flag {policy.keep_flag}"
    index = next((instances[digest] for digest in image.digests if digest in instances), None)
    return "" if index is None else named_by(index)


def used_by(containers: Sequence[str]) -> str:
    """Return the reason to keep an image that containers use."""
    return f"containers use it: {', '.join(containers)}"


def named_by(index: str) -> str:
    """Return the reason to keep an image that an image index names."""
    return f"the image index {index} names it"


def _reason_by_name(image: Image, policy: PrunePolicy, newest: Mapping[str, Sequence[str]]) -> str:
    if policy.unnamed and image.names:
        return "it has names"
    for name in image.names:
        for pattern in policy.keep_names:
            if fnmatchcase(name, pattern):
                return f"its name {name} matches {pattern}"
        repository = repository_of(name)
        if image.id in newest.get(repository, ()):
            return f"it is one of the newest of {repository}"
    return ""


def _reason_by_age(image: Image, policy: PrunePolicy, now: datetime) -> str:
    if not policy._needs_age:
        return ""
    if image.created is None:
        return "its creation time is not known"
    is_young = policy.older_than is not None and now - image.created <= policy.older_than
    # Of whole days, Python shows the time of day as well.
    age = str(policy.older_than).removesuffix(", 0:00:00")
    return f"it is not older than {age}" if is_young else ""
