"""A resource that is closed while a call uses it is closed when that call ends, in any order."""

from __future__ import annotations

import threading

import pytest

from aimagestore._engine.closing import LastUse


@pytest.fixture
def last_use() -> LastUse:
    """The last use of a resource that is open."""
    return LastUse()


def test_a_resource_that_nobody_uses_is_closed_at_once(last_use: LastUse) -> None:
    closed: list[str] = []
    with last_use.in_use(lambda: closed.append("by its use")):
        assert not last_use.is_unused()
    assert last_use.is_unused()
    assert closed == []
    last_use.end(lambda: closed.append("by its owner"))
    assert closed == ["by its owner"]


def test_a_resource_that_is_closed_during_a_call_is_closed_after_it(last_use: LastUse) -> None:
    closed: list[str] = []
    with last_use.in_use(lambda: closed.append("by its use")):
        last_use.end(lambda: closed.append("by its owner"))
        assert closed == []
    assert closed == ["by its use"]


def test_a_resource_that_is_closed_during_a_call_that_fails_is_closed_too(
    last_use: LastUse,
) -> None:
    closed: list[str] = []
    with pytest.raises(OSError, match="broken"), last_use.in_use(lambda: closed.append("")):
        last_use.end(lambda: None)
        raise OSError("broken")
    assert closed == [""]


@pytest.mark.parametrize("is_late", [False, True], ids=["before the release", "after the release"])
def test_a_resource_is_closed_by_one_side_when_both_end_at_once(
    last_use: LastUse, is_late: bool
) -> None:
    closed: list[str] = []

    class Gated:
        """A mutex; its owner ends the use immediately before or after the release."""

        def __init__(self) -> None:
            self.real = threading.Lock()

        def __enter__(self) -> None:
            self.real.acquire()

        def __exit__(self, *_: object) -> None:
            if is_late:
                self.real.release()
                last_use.end(lambda: closed.append("by its owner"))
            else:
                last_use.end(lambda: closed.append("by its owner"))
                self.real.release()

        def acquire(self, blocking: bool = True) -> bool:
            return self.real.acquire(blocking)

        def release(self) -> None:
            self.real.release()

    last_use._mutex = Gated()  # type: ignore[assignment]
    with last_use.in_use(lambda: closed.append("by its use")):
        pass
    # After the release both sides close it, which they may; it is never left open.
    assert closed == (["by its owner", "by its use"] if is_late else ["by its use"])


def test_only_one_call_uses_a_resource_at_a_time(last_use: LastUse) -> None:
    entered = threading.Event()

    def use() -> None:
        with last_use.in_use(lambda: None):
            entered.set()

    with last_use.in_use(lambda: None):
        thread = threading.Thread(target=use)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(10)
    thread.join()
