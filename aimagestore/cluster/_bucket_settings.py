"""Reads the settings of a bucket, which the client for objects cannot."""

from __future__ import annotations

import hashlib
import hmac
import os
import urllib.error
import urllib.request
from datetime import UTC, datetime
from urllib.parse import quote
from xml.etree import ElementTree

from ._addresses import endpoint
from ._blobs import code_in

_NOTHING = hashlib.sha256(b"").hexdigest()

_LARGEST = 1 << 20


class SettingsError(Exception):
    """The settings cannot be read."""


def read_settings(bucket: str, name: str, seconds: float) -> ElementTree.Element | None:
    """Return one of the settings of a bucket as XML without namespaces; ``None`` if it is not set.

    :param name: ``versioning`` or ``lifecycle``
    :param seconds: how long the server may take
    :raises SettingsError: when it does not answer or refuses, or the environment has no keys
    """
    request = _signed(bucket, name)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310 (an endpoint)
            text = answer.read(_LARGEST)
    except urllib.error.HTTPError as error:
        with error:
            code = code_in(error.read(_LARGEST).decode(errors="replace"))
        if code.startswith("NoSuch") and code != "NoSuchBucket":
            return None
        raise SettingsError(f"the server answers {code or error.code}") from None
    except OSError as error:
        raise SettingsError(f"the server does not answer: {type(error).__name__}") from None
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 (of the server that has the data)
    except ElementTree.ParseError:
        raise SettingsError("the server's answer is not XML") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _signed(bucket: str, name: str) -> urllib.request.Request:
    """Return a request for settings, signed with the keys in the environment (SigV4)."""
    key, secret = (os.environ.get(f"AWS_{n}", "") for n in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    if not (key and secret):
        raise SettingsError("the keys are not in the environment")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    given = endpoint()
    base = f"https://s3.{region}.amazonaws.com" if given is None else given.geturl().rstrip("/")
    url = f"{base}/{quote(bucket)}?{name}="
    request = urllib.request.Request(url)  # noqa: S310 (an endpoint)
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": request.host, "x-amz-content-sha256": _NOTHING, "x-amz-date": now}
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    names = ";".join(sorted(headers))
    path = request.selector.partition("?")[0]
    lines = [f"{header}:{headers[header]}" for header in sorted(headers)]
    canonical = "\n".join(["GET", path, f"{name}=", *lines, "", names, _NOTHING])
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    signing = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"):
        signing = hmac.digest(signing, part.encode(), "sha256")
    for header, value in headers.items():
        request.add_unredirected_header(header, value)
    request.add_unredirected_header(
        "authorization",
        f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names}, "
        f"Signature={signing.hex()}",
    )
    return request
