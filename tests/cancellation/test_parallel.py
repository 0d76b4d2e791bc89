"""Calls for many things: what ends them early is raised as it is."""

from __future__ import annotations

import signal

import anyio
import pytest

from aimagestore._async.parallel import for_each


class Ended(BaseException):
    """What is no :class:`Exception`."""


@pytest.mark.parametrize("kind", [ValueError, Ended])
async def test_what_a_call_raises_is_raised_without_a_group(kind: type[BaseException]) -> None:
    ended: list[int] = []

    async def call(number: int) -> None:
        if number == 3:
            raise kind
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(number)

    with pytest.raises(kind):
        await for_each(range(20), call)
    assert set(ended) <= {0, 1, 2, 4, 5, 6, 7}


def test_ctrl_c_on_trio_is_raised_without_a_group() -> None:
    trio = pytest.importorskip("trio")

    @trio.lowlevel.enable_ki_protection  # so that trio delivers it to the main task
    def press() -> None:
        signal.raise_signal(signal.SIGINT)

    async def call(number: int) -> None:
        press()
        await anyio.sleep_forever()

    async def main() -> None:
        await for_each(range(3), call)

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend="trio")
