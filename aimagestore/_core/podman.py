"""What podman cannot read of an image: one such image makes ``podman images`` fail for all.

The rules are those of podman 4.3, 5.4 and 5.8, which differ in four: before 5.8 an image without
names and manifest does no harm, nor does an index without instances and layer; with an unknown top
layer 4.3 fails, while later versions list no image at all; with an item that has neither a recorded
size nor a file 4.3 fails, while later versions leave the image out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

from .._format import godecode as go
from ..errors import InvalidBigDataNameError
from .digest import MANIFEST, digest_of, hasher, is_digest
from .image import Image
from .names import check_key
from .references import is_reference

ReadItem = Callable[[str], bytes | None]
"""Returns the content of an item, listed by the image's record or not; ``None`` without any."""

INSTANCES = "instances.json"
"""The item that makes an image index one of podman's manifest lists."""

NO_INSTANCES = b"{}"
"""The content of that item where podman has recorded nothing about the instances."""

_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)

_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_DOCKER = "application/vnd.docker."
_DOCKER_LIST = _DOCKER + "distribution.manifest.list.v2+json"
_DOCKER_MANIFEST = _DOCKER + "distribution.manifest.v2+json"
_DOCKER_CONFIG = _DOCKER + "container.image.v1+json"
_DOCKER_TYPES = frozenset(
    {
        *(_DOCKER_LIST, _DOCKER_MANIFEST, _DOCKER_CONFIG),
        *(_DOCKER + "distribution.manifest.v1+" + form for form in ("json", "prettyjws")),
        *(_DOCKER + "image.rootfs.diff.tar" + form for form in ("", ".gzip", ".zstd")),
        *(_DOCKER + "image.rootfs.foreign.diff.tar" + form for form in ("", ".gzip")),
    }
)
"""The media types that some version of podman accepts for a Docker manifest and its layers."""

_TYPES = frozenset({_OCI_INDEX, _OCI_MANIFEST, _DOCKER_LIST, _DOCKER_MANIFEST})
_INDEXES = frozenset({_OCI_INDEX, _DOCKER_LIST})


class Part(NamedTuple):
    """A part of an image that podman cannot read.

    :ivar field: ``id``, ``name``, ``metadata``, ``manifest``, ``config``, ``instances``, ``item``,
        ``layer`` or ``mapped-layers``
    :ivar key: the key of the item that the part is in; ``""`` if it is in the record
    :ivar problem: what is wrong with it
    """

    field: str
    key: str
    problem: str


def unreadable_parts(
    image: Image, read: ReadItem, knows_layer: Callable[[str], bool]
) -> Iterator[Part]:
    """Iterate over what podman cannot read of an image.

    :param knows_layer: returns whether podman has a layer with this ID
    """
    if _ID.fullmatch(image.id) is None:
        yield Part("id", "", f"the ID {image.id!r} is not 64 lower-case hex digits")
    for name in image.names:
        if not is_reference(name):
            yield Part("name", "", f"the name {name!r} is no reference")
    if not _is_metadata(image.metadata):
        yield Part("metadata", "", "the metadata is not the JSON that podman keeps there")
    parts = list(unreadable_items(read))
    yield from parts
    yield from _without_size(image, read, {part.key for part in parts})
    if image.top_layer and not knows_layer(image.top_layer):
        yield Part("layer", "", f"its top layer {image.top_layer} is unknown")
    for layer in image.mapped_top_layers:
        if not knows_layer(layer):
            yield Part("mapped-layers", "", f"its mapped layer {layer!r} is unknown")


def _without_size(image: Image, read: ReadItem, others: Container[str]) -> Iterator[Part]:
    for key in image.big_data_names:
        if key not in image.big_data_sizes and key not in others and _is_missing(key, read):
            yield Part("item", key, f"its item {key!r} has neither a size in its record nor a file")


def _is_missing(key: str, read: ReadItem) -> bool:
    try:
        return read(check_key(key)) is None
    except InvalidBigDataNameError:
        return True


_metadata = go.struct_of(
    {
        "signature-sizes": go.array(go.integer),
        "signatures-sizes": go.mapping(go.array(go.integer)),
    }
)


def _is_metadata(text: str) -> bool:
    if not text:
        return True
    try:
        go.decode(text.encode(errors="replace"), _metadata)
    except ValueError:
        return False
    return True


# The types of Go that podman decodes into, each with the fields that it has in any version.

_PLATFORM = {
    "architecture": go.text,
    "os": go.text,
    "os.version": go.text,
    "os.features": go.array(go.text),
    "variant": go.text,
}
_descriptor = go.struct(
    mediaType=go.text,
    artifactType=go.text,
    digest=go.text,
    size=go.integer,
    urls=go.array(go.text),
    annotations=go.mapping(go.text),
    data=go.data,
    platform=go.struct_of(_PLATFORM),
)
_docker_descriptor = go.struct(
    mediaType=go.text,
    digest=go.text,
    size=go.integer,
    urls=go.array(go.text),
    platform=go.struct_of(_PLATFORM | {"features": go.array(go.text)}),
)
_version = go.struct(mediaType=go.text, schemaVersion=go.integer, signatures=go.anything)
_config_type = go.struct(config=go.struct(mediaType=go.text))
_instances = go.struct(manifests=go.array(_descriptor))
_essential = go.struct(
    config=go.anything,
    fsLayers=go.anything,
    history=go.anything,
    layers=go.anything,
    manifests=go.anything,
)
_common = {"schemaVersion": go.integer, "mediaType": go.text}
_oci = _common | {
    "artifactType": go.text,
    "subject": _descriptor,
    "annotations": go.mapping(go.text),
}
_MANIFESTS = {
    _OCI_MANIFEST: go.struct_of(
        _oci | {"config": _descriptor, "layers": go.array(_descriptor)},
    ),
    _OCI_INDEX: go.struct_of(_oci | {"manifests": go.array(_descriptor)}),
    _DOCKER_MANIFEST: go.struct_of(
        _common | {"config": _docker_descriptor, "layers": go.array(_docker_descriptor)},
    ),
    _DOCKER_LIST: go.struct_of(_common | {"manifests": go.array(_docker_descriptor)}),
    "": go.struct(
        name=go.text,
        tag=go.text,
        architecture=go.text,
        schemaVersion=go.integer,
        fsLayers=go.array(go.struct(blobSum=go.text)),
        history=go.array(go.struct(v1Compatibility=go.text)),
    ),
}
_KINDS = {_OCI_CONFIG: _OCI_MANIFEST, _DOCKER_CONFIG: _DOCKER_MANIFEST}
_ESSENTIAL_FIELDS = {
    _OCI_MANIFEST: {"config", "layers"},
    _OCI_INDEX: {"manifests"},
    _DOCKER_MANIFEST: {"config", "layers"},
    _DOCKER_LIST: {"manifests"},
    "": {"fsLayers", "history"},
}
"""The essential fields that a manifest of each type may have; another one makes it ambiguous."""

_set = go.mapping(go.struct())
_words = go.either(go.array(go.text), go.text)
_docker_container = go.struct(
    Hostname=go.text,
    Domainname=go.text,
    User=go.text,
    AttachStdin=go.boolean,
    AttachStdout=go.boolean,
    AttachStderr=go.boolean,
    ExposedPorts=_set,
    Tty=go.boolean,
    OpenStdin=go.boolean,
    StdinOnce=go.boolean,
    Env=go.array(go.text),
    Cmd=_words,
    Healthcheck=go.struct(
        Test=go.array(go.text),
        StartPeriod=go.integer,
        StartInterval=go.integer,
        Interval=go.integer,
        Timeout=go.integer,
        Retries=go.integer,
    ),
    ArgsEscaped=go.boolean,
    Image=go.text,
    Volumes=_set,
    WorkingDir=go.text,
    Entrypoint=_words,
    NetworkDisabled=go.boolean,
    MacAddress=go.text,
    OnBuild=go.array(go.text),
    Labels=go.mapping(go.text),
    StopSignal=go.text,
    StopTimeout=go.integer,
    Shell=_words,
)
_docker_image = go.struct(
    id=go.text,
    parent=go.text,
    comment=go.text,
    created=go.time,
    container=go.text,
    container_config=_docker_container,
    docker_version=go.text,
    author=go.text,
    config=_docker_container,
    architecture=go.text,
    variant=go.text,
    os=go.text,
    Size=go.integer,
)
_oci_image = go.struct_of(
    _PLATFORM
    | {
        "created": go.time,
        "author": go.text,
        "config": go.struct(
            User=go.text,
            ExposedPorts=_set,
            Env=go.array(go.text),
            Entrypoint=go.array(go.text),
            Cmd=go.array(go.text),
            Volumes=_set,
            WorkingDir=go.text,
            Labels=go.mapping(go.text),
            StopSignal=go.text,
            ArgsEscaped=go.boolean,
        ),
        "rootfs": go.struct(type=go.text, diff_ids=go.array(go.text)),
        "history": go.array(
            go.struct(
                created=go.time,
                created_by=go.text,
                author=go.text,
                comment=go.text,
                empty_layer=go.boolean,
            )
        ),
    }
)


class Manifest(NamedTuple):
    """A manifest as podman decodes it.

    :ivar kind: its media type, as podman finds it; ``""`` for Docker's schema 1
    :ivar fields: its fields; one without a value is missing
    """

    kind: str
    fields: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The descriptor of its config; empty without one."""
        return self.fields.get("config") or {}

    @property
    def is_index(self) -> bool:
        """Whether it is an image index, which names other manifests."""
        return self.kind in _INDEXES


def read_manifest(text: bytes) -> Manifest:
    """Decode a manifest.

    :raises ValueError: when podman cannot decode it
    """
    value = go.parse(text)
    kind = _kind_of(value)
    fields = go.convert(value, _MANIFESTS[kind]) or {}
    if not kind and fields.get("schemaVersion") != 1:
        version = fields.get("schemaVersion")
        raise ValueError(f"it has the unsupported schema version {version}")
    others = (go.convert(value, _essential) or {}).keys() - _ESSENTIAL_FIELDS[kind]
    if others:
        raise ValueError(f"it has fields of other manifests: {', '.join(sorted(others))}")
    return Manifest(kind, fields)


def _kind_of(value: Any) -> str:
    try:
        version = go.convert(value, _version) or {}
        if version.get("mediaType") in _TYPES:
            return str(version["mediaType"])
        if version.get("schemaVersion") != 2:
            return ""
        config = (go.convert(value, _config_type) or {}).get("config") or {}
        kind = _KINDS.get(config.get("mediaType", ""))
        if kind is None and (go.convert(value, _instances) or {}).get("manifests"):
            return "" if config.get("mediaType") else _OCI_INDEX
    except ValueError:
        return ""
    return kind or _OCI_MANIFEST


def unreadable_items(read: ReadItem) -> Iterator[Part]:
    """Iterate over what podman cannot read of an image's items."""
    text = read(MANIFEST)
    if text is None:
        yield Part("manifest", MANIFEST, "it has no manifest")
        return
    try:
        manifest = read_manifest(text)
    except ValueError as error:
        yield Part("manifest", MANIFEST, f"its manifest cannot be read: {error}")
        return
    if problem := _problem_of(manifest):
        yield Part("manifest", MANIFEST, problem)
    elif manifest.is_index:
        yield from _unreadable_instances(read)
    elif manifest.kind:
        digest = manifest.config.get("digest", "")
        config = read(digest) if is_digest(digest) else None
        if problem := _problem_of_config(digest, config):
            yield Part("config", digest, problem)


def _unreadable_instances(read: ReadItem) -> Iterator[Part]:
    text = read(INSTANCES)
    if text is None:
        yield Part("instances", INSTANCES, f"its image index has no item {INSTANCES!r}")
        return
    try:
        go.decode(text, go.mapping(go.text))
    except ValueError as error:
        yield Part("instances", INSTANCES, f"its item {INSTANCES!r} cannot be read: {error}")


def diff_ids(read: ReadItem) -> list[str]:
    """Return the digests of an image's layers, uncompressed, the lowest first.

    Empty for an index, for Docker's schema 1, and where podman cannot read the image.
    """
    if any(unreadable_items(read)):
        return []
    manifest = read_manifest(read(MANIFEST) or b"")
    if not manifest.kind or manifest.is_index:
        return []
    config = go.decode(read(manifest.config["digest"]) or b"", _oci_image) or {}
    return [digest or "" for digest in (config.get("rootfs") or {}).get("diff_ids") or ()]


def is_podman_image(manifest: bytes) -> bool:
    """Return whether podman takes a manifest for that of an image, or for an image index."""
    try:
        return not _problem_of(read_manifest(manifest))
    except ValueError:
        return False


def _problem_of(manifest: Manifest) -> str:
    if manifest.kind == _OCI_MANIFEST:
        media_type = manifest.config.get("mediaType")
        if media_type != _OCI_CONFIG:
            return f"it is no image, but an artifact of the type {media_type!r}"
    if manifest.kind == _DOCKER_MANIFEST:
        layers = manifest.fields.get("layers") or ()
        types = [manifest.fields, *(layer or {} for layer in layers)]
        for each in types:
            if each.get("mediaType") not in _DOCKER_TYPES:
                return f"its Docker manifest has the unsupported type {each.get('mediaType', '')!r}"
    return "" if manifest.kind else _problem_of_schema1(manifest.fields)


_layer_of_schema1 = go.struct(
    id=go.text,
    parent=go.text,
    comment=go.text,
    created=go.time,
    container_config=go.struct(Cmd=go.array(go.text)),
    author=go.text,
    throwaway=go.boolean,
)


def _problem_of_schema1(fields: dict[str, Any]) -> str:
    texts = [each and each.get("v1Compatibility", "") for each in fields.get("history") or ()]
    if not texts or len(texts) != len(fields.get("fsLayers") or ()):
        return "its manifest has not as many layers as entries of history"
    try:
        layers = [go.decode((text or "").encode(), _layer_of_schema1) or {} for text in texts]
        go.decode((texts[0] or "").encode(), _docker_image)
    except ValueError as error:
        return f"its history cannot be read: {error}"
    # From the top to the base. A layer may come several times in a row: the last entry counts.
    ids = [layer.get("id", "") for layer in layers]
    last = [index for index, each in enumerate(ids) if ids[index + 1 : index + 2] != [each]]
    chain = [layers[index] for index in last]
    parents = [layer.get("parent", "") for layer in chain]
    if not all(_ID.fullmatch(each) for each in ids) or len(chain) != len(set(ids)):
        return "its history has a layer with an invalid ID, or the same layer twice"
    if parents != [*(layer["id"] for layer in chain[1:]), ""]:
        return "its history has a layer whose parent is not the layer below it"
    return ""


def _problem_of_config(digest: str, config: bytes | None) -> str:
    if config is None:
        return f"its config {digest} is missing"
    state = hasher(digest)
    state.update(config)
    if digest_of(state) != digest:
        return f"its config {digest} has another digest"
    try:
        value = go.parse(config)
        for into in (_docker_image, _oci_image):
            go.convert(value, into)
    except ValueError as error:
        return f"its config {digest} cannot be read: {error}"
    return ""
