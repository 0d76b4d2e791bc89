"""A signed manifest of Docker schema 1, whose digest is not that of its file."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any


def base64url(data: bytes) -> str:
    """Return data in URL-safe Base64 without padding, as JOSE encodes it."""
    return urlsafe_b64encode(data).decode().rstrip("=")


PAYLOAD = json.dumps(
    {
        "schemaVersion": 1,
        "name": "library/hello",
        "tag": "ünïcode",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": "sha256:" + "a" * 64}],
        "history": [{"v1Compatibility": '{"id":"0"}'}],
    },
    indent=3,
    ensure_ascii=False,
).encode()
"""The text that Docker signs, indented by three spaces."""


def signed(payload: bytes = PAYLOAD, **protected: Any) -> bytes:
    """Return the payload with a signature inserted as libtrust does it."""
    length = len(payload) - len(b"\n}")
    about = {"formatLength": length, "formatTail": base64url(payload[length:]), "time": "t"}
    signature = {
        "header": {"jwk": {"crv": "P-256", "kty": "EC"}, "alg": "ES256"},
        "signature": base64url(b"signed"),
        "protected": base64url(json.dumps(about | protected).encode()),
    }
    signatures = json.dumps([signature], indent=3).replace("\n", "\n   ").encode()
    return payload[:length] + b',\n   "signatures": ' + signatures + b"\n}"
