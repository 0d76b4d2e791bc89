"""Where a store and its additional stores are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from .._engine.protocol import Checker, Engine, Location, OtherStores, Repairer
from ..errors import StoreUnavailableError
from .engine import StackedEngine
from .others import AdditionalStores


@dataclass(frozen=True, slots=True)
class AdditionalLocation:
    """Where an additional store is.

    :ivar is_required: whether it is an error if the store is missing or cannot be reached
    """

    location: Location
    is_required: bool = True

    def open(self) -> Engine | None:
        """Open the store read-only; return ``None`` if it is missing and not required."""
        try:
            return self.location.open(read_only=True)
        except (FileNotFoundError, StoreUnavailableError) as error:
            if not self.is_required:
                return None
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(
                    error.errno,
                    f"{error.strerror} (this is an additional store: to open the others without "
                    "it, give it as AdditionalStore(…, required=False))",
                    error.filename,
                ) from error
            raise


class StackedLocation:
    """A store and its additional stores; see :class:`aimagestore._engine.protocol.Location`.

    A check and a repair are of the writable store. Of the additional stores, they use the layers
    and images, and a check reports one that cannot be read.
    """

    def __init__(self, own: Location, additional: Sequence[AdditionalLocation]) -> None:
        self._own = own
        self._additional = tuple(additional)

    @property
    def name(self) -> str:
        """The name of the writable store."""
        return self._own.name

    def __repr__(self) -> str:
        return f"StackedLocation({self._own!r}, {list(self._additional)!r})"

    def open(self, *, read_only: bool) -> Engine:
        with ExitStack() as opened:
            own = self._own.open(read_only=read_only)
            opened.callback(own.close)
            additional: list[Engine] = []
            for store in self._additional:
                engine = store.open()
                if engine is not None:
                    opened.callback(engine.close)
                    additional.append(engine)
            whole = StackedEngine(own, additional) if additional else own
            opened.pop_all()  # the caller closes them
        return whole

    def checker(self, *, verify: bool, others: OtherStores | None = None) -> Checker:
        return self._own.checker(verify=verify, others=self._others())

    def repairer(self, others: OtherStores | None = None) -> Repairer:
        return self._own.repairer(self._others())

    def _others(self) -> OtherStores:
        return AdditionalStores((each.location.name, each.open) for each in self._additional)
