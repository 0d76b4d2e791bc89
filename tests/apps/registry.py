"""The pull side of the OCI distribution protocol, served from a store: an ASGI application.

``skopeo copy docker://HOST/REPOSITORY:TAG …`` gets the image named ``REPOSITORY:TAG``, whose
manifests, configs and layers are its big data, as :mod:`aimagestore.oci` imports them.
``serve_asyncio.py`` and ``serve_trio.py`` serve it.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from aimagestore import Image, ImageStore

OCI = "application/vnd.oci.image.{}.v1+json"
MANIFEST_MAX = 4 * 1024 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class UnknownError(HTTPException):
    """Something is not in the store: an error response in the protocol's form."""

    def __init__(self, code: str, about: str) -> None:
        super().__init__(404, json.dumps({"errors": [{"code": code, "message": about}]}))


async def answer(_: Request, error: Exception) -> Response:
    """Return the response for an :class:`UnknownError`."""
    assert isinstance(error, UnknownError)
    return Response(error.detail, error.status_code, media_type="application/json")


class ItemResponse(Response):
    """Streams an item, or a range of it, and closes it as soon as the client disconnects."""

    def __init__(self, store: ImageStore, image: Image, key: str, asked: str | None) -> None:
        self._store, self._image, self._key = store, image, key
        size = image.big_data_sizes[key]  # containers/storage always records it
        part = span(asked, size)
        self._span = range(size) if part is None else part
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(len(self._span)),
            "Docker-Content-Digest": image.big_data_digests[key],
            "ETag": f'"{image.big_data_digests[key]}"',
        }
        if part is not None:
            headers["Content-Range"] = f"bytes {self._span.start}-{self._span.stop - 1}/{size}"
        kind = "application/octet-stream"
        super().__init__(None, 200 if part is None else 206, headers, kind)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        async with (
            self._store.open_big_data(self._image.id, self._key) as reader,
            anyio.create_task_group() as tasks,
        ):

            async def end_with_client() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(end_with_client)
            start = {"type": "http.response.start", "status": self.status_code}
            await send(start | {"headers": self.raw_headers})
            is_whole = len(self._span) == reader.size
            if is_whole and reader.path and "http.response.pathsend" in scope.get("extensions", {}):
                await send({"type": "http.response.pathsend", "path": reader.path})
                # The path leads to the item while the reader is open: the block ends only when the
                # server says that the client has everything, or has disconnected.
                return
            await reader.seek(self._span.start)
            left = len(self._span)
            while left and (chunk := await reader.read(min(left, 1024 * 1024))):
                left -= len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})
            tasks.cancel_scope.cancel()


def span(asked: str | None, size: int) -> range | None:
    """Return the bytes that a Range header asks for; ``None`` for the whole item."""
    match = _RANGE.fullmatch(asked or "")
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
    return range(start, stop)


class Catalog:
    """Which images are in which repository: those with a name that begins with it and a colon."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store

    async def images(self, repository: str) -> dict[str, Image]:
        """Return the images of a repository by their tags."""
        found = {}
        for image in await self.store.images():
            for name in image.names:
                owner, _, tag = name.rpartition(":")
                if owner == repository:
                    found[tag] = image
        if not found:
            raise UnknownError("NAME_UNKNOWN", repository)
        return found

    async def item(self, repository: str, digest: str, code: str) -> tuple[Image, str]:
        """Return the image of a repository that has an item of this digest, and the item's key."""
        for image in (await self.images(repository)).values():
            for key, recorded in image.big_data_digests.items():
                if recorded == digest:
                    return image, key
        raise UnknownError(code, digest)


async def version(_: Request) -> Response:
    """Confirm that the registry speaks the protocol."""
    return Response("{}", headers={"Docker-Distribution-Api-Version": "registry/2.0"})


async def tags(request: Request) -> Response:
    """List the tags of a repository."""
    repository = request.path_params["repository"]
    images = await request.app.state.catalog.images(repository)
    return JSONResponse({"name": repository, "tags": sorted(images)})


async def manifest(request: Request) -> Response:
    """Return a manifest, by tag or by digest."""
    catalog: Catalog = request.app.state.catalog
    repository, reference = request.path_params["repository"], request.path_params["reference"]
    if ":" in reference:
        image, key = await catalog.item(repository, reference, "MANIFEST_UNKNOWN")
    else:
        found = (await catalog.images(repository)).get(reference)
        if found is None or "manifest" not in found.big_data_names:
            raise UnknownError("MANIFEST_UNKNOWN", reference)
        image, key = found, "manifest"
    if not key.startswith("manifest") or image.big_data_sizes[key] > MANIFEST_MAX:
        raise UnknownError("MANIFEST_UNKNOWN", reference)
    data = await catalog.store.big_data(image.id, key)
    content = json.loads(data)
    kind = content.get("mediaType") or OCI.format("index" if "manifests" in content else "manifest")
    headers = {"Docker-Content-Digest": image.big_data_digests[key]}
    return Response(data, headers=headers, media_type=kind)


async def blob(request: Request) -> Response:
    """Return a config or a layer, or a range of it."""
    catalog: Catalog = request.app.state.catalog
    repository, digest = request.path_params["repository"], request.path_params["digest"]
    image, key = await catalog.item(repository, digest, "BLOB_UNKNOWN")
    return ItemResponse(catalog.store, image, key, request.headers.get("range"))


def registry(path: Path) -> Starlette:
    """Return the application for the image store in a directory."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with ImageStore(path, read_only=True) as store:
            app.state.catalog = Catalog(store)
            yield

    return Starlette(
        routes=[
            Route("/v2/", version),
            Route("/v2/{repository:path}/tags/list", tags),
            Route("/v2/{repository:path}/manifests/{reference}", manifest),
            Route("/v2/{repository:path}/blobs/{digest}", blob),
        ],
        exception_handlers={UnknownError: answer},
        lifespan=lifespan,
    )
