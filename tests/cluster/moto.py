"""Another object store: moto's, which keeps everything in memory."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from aimagestore.cluster._local.objects import BUCKET, ObjectServer
from aimagestore.cluster._local.server import HOST, free_ports


class Moto(ObjectServer):
    """moto's server on the loopback interface. It accepts any keys, and a restart empties it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, *free_ports(1))

    def create(self) -> None:
        self.root.mkdir()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)]
        self._launch(command)
        urlopen(Request(f"{self.endpoint}/{BUCKET}", method="PUT")).close()

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)
