"""Every public function for directories, cancelled wherever it can be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
import pytest

from aimagestore import Report, check, repair

from .contract.test_cancellation import Steps, check_whole, make
from .homes import DirectoryHome

FUNCTIONS: dict[str, Callable[[Path], Awaitable[object]]] = {
    "check": check,
    "repair": lambda path: repair(path, Report()),
}


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_cancelled_at_every_step(tmp_path: Path, function: str) -> None:
    home = DirectoryHome(tmp_path)
    for steps in range(1, 100):
        store = await make(home)
        before = home.in_use()
        with anyio.CancelScope() as scope:
            await Steps(FUNCTIONS[function](home.path), scope, steps)
        # A check's last step ends by itself.
        await home.until(partial(home.is_at_rest, before))
        await check_whole(store, home)
        await store.aclose()
        assert home.in_use() == 0
        if not scope.cancel_called:
            return
    raise AssertionError("it never completed")
