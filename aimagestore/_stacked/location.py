"""Where a store and its additional stores are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._engine.protocol import Checker, Engine, Location, OtherStores, Repairer
from ..errors import StoreUnavailableError
from .engine import StackedEngine
from .others import AdditionalStores


@dataclass(frozen=True, slots=True)
class AdditionalLocation:
    """Where an additional store is.

    :ivar is_required: whether it is an error that it is not there
    """

    location: Location
    is_required: bool = True

    def open(self) -> Engine | None:
        """Open it to be read; ``None`` where it is not there, and not required."""
        try:
            return self.location.open(read_only=True)
        except (FileNotFoundError, StoreUnavailableError) as error:
            if not self.is_required:
                return None
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(
                    error.errno,
                    f"{error.strerror} (this is an additional store: give it as "
                    "AdditionalStore(…, required=False) to do without it)",
                    error.filename,
                ) from error
            raise


class StackedLocation:
    """A store and its additional stores; see :class:`aimagestore._engine.protocol.Location`.

    A check of it is one of the writable store, whose layers and images additional ones may have,
    and of whether those can be read. What repairs it sees the writable one alone.
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
        own = self._own.open(read_only=read_only)
        additional: list[Engine] = []
        try:
            for store in self._additional:
                engine = store.open()
                if engine is not None:
                    additional.append(engine)
            return StackedEngine(own, additional) if additional else own
        except BaseException:
            for engine in (*reversed(additional), own):
                engine.close()
            raise

    def checker(self, *, verify: bool, others: OtherStores | None = None) -> Checker:
        others = AdditionalStores((each.location.name, each.open) for each in self._additional)
        return self._own.checker(verify=verify, others=others)

    def repairer(self) -> Repairer:
        return self._own.repairer()
