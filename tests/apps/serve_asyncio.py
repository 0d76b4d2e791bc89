"""Serve a store's images to skopeo, podman and docker, on asyncio with uvicorn.

``python -m tests.apps.serve_asyncio STORE [--port PORT]``, then
``skopeo copy --src-tls-verify=false docker://127.0.0.1:PORT/REPOSITORY:TAG …``.
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import uvicorn

from .registry import registry


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="the directory that holds images.json")
    parser.add_argument("--port", type=int, default=5000, help="0 for any that is free")
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", arguments.port)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/v2/", flush=True)
        config = uvicorn.Config(registry(arguments.store), log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
