"""Digests, as containers/storage spells them: ``algorithm:hex``."""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode
from typing import TYPE_CHECKING

import msgspec

from ..errors import InvalidDigestError

if TYPE_CHECKING:
    from hashlib import _Hash

CANONICAL = "sha256"

MANIFEST = "manifest"
"""The key of the manifest; the keys of further manifests begin with it."""

_PATTERN = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}", re.ASCII)


def is_digest(text: str) -> bool:
    """Return whether go-digest accepts the text. podman refuses a store with any other digest."""
    return _PATTERN.fullmatch(text) is not None


def check_digest(digest: object) -> str:
    """Check a digest, and return it.

    :raises TypeError: the digest is not a ``str``
    :raises InvalidDigestError: the digest is malformed
    """
    if not isinstance(digest, str):
        raise TypeError(f"a digest must be a str, not {type(digest).__name__}")
    if not is_digest(digest):
        raise InvalidDigestError(
            f"invalid digest {digest!r}: expected sha256:, sha384: or sha512: and as many "
            "lower-case hex digits as the algorithm produces",
            actual=digest,
        )
    return digest


def is_canonical(digest: str) -> bool:
    """Return whether a digest is of SHA-256, the algorithm that stores use."""
    return digest.startswith(CANONICAL + ":")


def canonical_digest(data: bytes) -> str:
    """Return the digest that a store records for the data."""
    return f"{CANONICAL}:{hashlib.sha256(data).hexdigest()}"


def hasher(digest: str = CANONICAL) -> _Hash:
    """Return a hash object of the digest's algorithm."""
    return hashlib.new(digest.partition(":")[0])


def digest_of(state: _Hash) -> str:
    """Return the digest of the data that the hash object was fed."""
    return f"{state.name}:{state.hexdigest()}"


class _Signature(msgspec.Struct):
    protected: str


class _Signed(msgspec.Struct):
    signatures: list[_Signature]
    schema_version: int = msgspec.field(name="schemaVersion")


class _Protected(msgspec.Struct, rename="camel"):
    format_length: int
    format_tail: str


def signed_payload(manifest: bytes) -> bytes | None:
    """Return a signed Docker schema 1 manifest without its signatures; ``None`` for any other.

    The digest that registries and podman use for such a manifest is that of this text, not that
    of its file.
    """
    try:
        signed = msgspec.json.decode(manifest, type=_Signed)
        if signed.schema_version != 1 or not signed.signatures:
            return None
        protected = msgspec.json.decode(_base64url(signed.signatures[0].protected), type=_Protected)
        if not 0 <= protected.format_length <= len(manifest):
            return None
        return manifest[: protected.format_length] + _base64url(protected.format_tail)
    except (ValueError, RecursionError):
        return None


def signed_digest(manifest: bytes, digest: str) -> str | None:
    """Return the digest of a signed manifest by another digest's algorithm; else ``None``."""
    payload = signed_payload(manifest)
    if payload is None:
        return None
    state = hasher(digest)
    state.update(payload)
    return digest_of(state)


def _base64url(text: str) -> bytes:
    return urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))


def is_manifest_key(key: str | None) -> bool:
    """Return whether an item with this key is a manifest, by whose digest the image is found."""
    return key is not None and key.startswith(MANIFEST)
