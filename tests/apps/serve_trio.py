"""Serve a store's images to skopeo, podman and docker, on trio with Hypercorn.

``python -m tests.apps.serve_trio STORE [--port PORT]``, then
``skopeo copy --src-tls-verify=false docker://127.0.0.1:PORT/REPOSITORY:TAG …``.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from .registry import registry


async def interrupted() -> None:
    """Return at SIGINT or SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return


async def run(store: Path, port: int) -> None:
    """Serve until interrupted."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.loglevel = "warning"
    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(
            lambda task_status: serve(
                registry(store),  # type: ignore[arg-type] # its messages have types of their own
                config,
                shutdown_trigger=interrupted,
                task_status=task_status,
            )
        )
        print(f"{address}/v2/", flush=True)


def main() -> None:
    """Serve the store that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="the directory that holds images.json")
    parser.add_argument("--port", type=int, default=5000, help="0 for any that is free")
    arguments = parser.parse_args()
    trio.run(run, arguments.store, arguments.port)


if __name__ == "__main__":
    main()
