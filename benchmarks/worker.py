"""A process that does the tasks of one peer, so that no two peers share memory or collector.

It reads requests, a line of JSON each, ``{"do": task, …arguments}``, and answers each with a line
of JSON, as the Go peer does.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

import anyio

from .peer import Peer, Reply, Unsupported


async def _answer(peer: Peer, request: dict[str, Any]) -> Reply:
    task = request.pop("do")
    try:
        return await peer.do(task, **request)
    except Unsupported:
        return {"unsupported": task}
    except Exception as error:  # noqa: BLE001 (the driver reports it)
        return {"error": f"{type(error).__name__}: {error}"}


async def _serve(peer: Peer) -> None:
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(await _answer(peer, json.loads(line))), flush=True)


def main(module: str, backend: str) -> None:
    """Serve until the driver closes the pipe."""
    peer: Peer = import_module(f".{module}", __package__).make()
    if backend == "uvloop":
        anyio.run(_serve, peer, backend="asyncio", backend_options={"use_uvloop": True})
    else:
        anyio.run(_serve, peer, backend=backend)


if __name__ == "__main__":
    main(*sys.argv[1:])
