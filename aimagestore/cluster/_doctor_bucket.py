"""Examines the bucket of a store: what the credentials permit, and what the bucket does itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4
from xml.etree.ElementTree import Element

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from ..errors import StoreUnavailableError
from ._addresses import BucketAddress
from ._blobs import RETRY_SHARE, Blobs, NotPermittedError
from ._bucket_settings import SettingsError, read_settings
from ._diagnosis import Diagnosis, Severity
from ._doctor_database import compare_clocks

if TYPE_CHECKING:
    from obstore import PutMode

_DATA = b"written by aimagestore cluster doctor"

_PERMISSIONS = {
    "versioning": "s3:GetBucketVersioning",
    "lifecycle": "s3:GetLifecycleConfiguration",
}

_ARCHIVES = {"GLACIER", "DEEP_ARCHIVE"}


class BucketDoctor:
    """Examines the bucket.

    :ivar is_reachable: whether it is there, and the credentials permit reading it
    """

    def __init__(self, bucket: BucketAddress, blobs: Blobs) -> None:
        self._bucket = bucket
        self._blobs = blobs
        deadline = blobs.deadline
        self._store = bucket.open(
            attempt=(1 - RETRY_SHARE) * deadline, retries=RETRY_SHARE * deadline
        )
        self.is_reachable = False

    def diagnoses(self, database_ahead: float | None, *, writes: bool) -> Iterator[Diagnosis]:
        """Examine everything.

        :param database_ahead: how many seconds the database's clock is ahead of this machine's;
            ``None`` if not known
        :param writes: whether the role may write records: then the credentials must permit writing
        """
        try:
            self._blobs.read_marker()
        except StoreUnavailableError as error:
            yield Diagnosis(Severity.ERROR, "bucket", str(error))
            return
        self.is_reachable = True
        yield Diagnosis(Severity.OK, "bucket", f"{self._bucket.name} answers")
        yield self._listing(writes=writes)
        yield from self._writing(database_ahead, writes=writes)
        yield from self._settings("versioning", self._versioning)
        yield from self._settings("lifecycle", self._lifecycle)

    def _listing(self, *, writes: bool) -> Diagnosis:
        try:
            next(iter(self._blobs.pages()), None)
        except StoreUnavailableError as error:
            severity = Severity.ERROR if writes else Severity.NOTE
            text = f"{error}: nothing can be collected, and no new store opened"
            return Diagnosis(severity, "listing", text, "permit it to the writers")
        return Diagnosis(Severity.OK, "listing", "the credentials permit it")

    def _writing(self, database_ahead: float | None, *, writes: bool) -> Iterator[Diagnosis]:
        about, name = "writing", uuid4().hex  # garbage collection removes what has such a name
        begun = time.time()
        try:
            obstore.put(self._store, name, _DATA, mode="create")
        except (BaseError, OSError) as error:
            refusal = self._blobs.unavailable(error)
            is_reader = not writes and isinstance(refusal, NotPermittedError)
            severity = Severity.NOTE if is_reader else Severity.ERROR
            yield Diagnosis(severity, about, str(refusal))
            return
        middle = (begun + time.time()) / 2
        try:
            wrong: list[PutMode] = ["create", {"e_tag": f'"{uuid4().hex}"'}]
            if not all(self._is_refused(name, mode) for mode in wrong):
                text = "the object store ignores conditions: two stores may take one prefix"
                advice = "use one that supports If-Match and If-None-Match"
                yield Diagnosis(Severity.ERROR, about, text, advice)
            written = obstore.head(self._store, name)["last_modified"].timestamp()
        except (BaseError, OSError) as error:
            yield Diagnosis(Severity.ERROR, about, str(self._blobs.unavailable(error)))
            return
        finally:
            failure = self._remove(name)
        if failure is not None:
            yield Diagnosis(Severity.ERROR, "removing", str(failure), "permit it to the writers")
        else:
            yield Diagnosis(Severity.OK, about, "objects can be written and removed")
        ahead = written - middle
        yield compare_clocks("this machine", "the object store", ahead)
        if database_ahead is not None:
            yield compare_clocks("the database", "the object store", ahead - database_ahead)

    def _is_refused(self, name: str, mode: PutMode) -> bool:
        try:
            obstore.put(self._store, name, _DATA, mode=mode)
        except (AlreadyExistsError, PreconditionError):
            return True
        return False

    def _remove(self, name: str) -> StoreUnavailableError | None:
        try:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, name)
        except BaseError as error:
            return self._blobs.unavailable(error)
        return None

    def _settings(
        self, about: str, judge: Callable[[Element | None], Iterator[Diagnosis]]
    ) -> Iterator[Diagnosis]:
        try:
            settings = read_settings(self._bucket.bucket, about, self._blobs.deadline)
        except SettingsError as error:
            text = f"this is not known: {error}"
            advice = f"look it up yourself, or permit {_PERMISSIONS[about]}"
            yield Diagnosis(Severity.NOTE, about, text, advice)
        else:
            yield from judge(settings)

    def _versioning(self, settings: Element | None) -> Iterator[Diagnosis]:
        status = "" if settings is None else settings.findtext("Status", "")
        if status == "Enabled":
            text = "the bucket keeps versions: what is removed takes room until a rule ends it"
            yield Diagnosis(Severity.OK, "versioning", text)
        else:
            text = "the bucket keeps no versions: a removed object is lost after the grace period"
            yield Diagnosis(Severity.NOTE, "versioning", text, "keep versions, or a copy elsewhere")

    def _lifecycle(self, settings: Element | None) -> Iterator[Diagnosis]:
        about = "lifecycle"
        rules = [] if settings is None else [r for r in settings.iter("Rule") if self._concerns(r)]
        for rule in rules:
            name = rule.findtext("ID", "without a name")
            expiration = rule.find("Expiration")
            if expiration is not None and expiration.find("ExpiredObjectDeleteMarker") is None:
                text = f"the rule {name!r} removes objects by their age: the store loses its data"
                yield Diagnosis(Severity.ERROR, about, text, "end that rule for this prefix")
            if _ARCHIVES & {found.text for found in rule.iterfind("Transition/StorageClass")}:
                text = f"the rule {name!r} archives objects: the store cannot read them then"
                yield Diagnosis(Severity.ERROR, about, text, "end that rule for this prefix")
        if any(rule.find("AbortIncompleteMultipartUpload") is not None for rule in rules):
            yield Diagnosis(Severity.OK, about, "incomplete uploads are ended")
        else:
            text = "no rule ends incomplete uploads: those of dead programs take room for ever"
            advice = "add a rule that ends incomplete uploads after a day"
            yield Diagnosis(Severity.NOTE, about, text, advice)

    def _concerns(self, rule: Element) -> bool:
        """Return whether a rule is enabled, and applies to any object of the store."""
        prefixes = [found.text or "" for found in rule.iter("Prefix")]
        own = f"{self._bucket.prefix}/" if self._bucket.prefix else ""
        is_near = all(own.startswith(prefix) or prefix.startswith(own) for prefix in prefixes)
        return rule.findtext("Status") == "Enabled" and is_near
