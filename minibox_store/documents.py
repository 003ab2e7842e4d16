"""The documents an image is made of, as values; and which descriptors are a document's children.

Spec: OCI image-spec 1.1, descriptor.md, manifest.md, image-index.md, config.md, image-layout.md.
"""

from collections.abc import Mapping
from typing import Literal

import attrs

from minibox_store.digest import Digest
from minibox_store.platforms import Platform

Role = Literal["manifest", "config", "layer"]

REFERENCE_TYPE_ANNOTATION = "vnd.docker.reference.type"


@attrs.frozen(kw_only=True)
class Descriptor:
    """What points at a blob: its type, its digest and its exact size in bytes.

    Two descriptors are equal when all their fields are; a blob's identity is its ``digest`` alone.
    """

    media_type: str
    digest: Digest
    size_bytes: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    artifact_type: str | None = None
    urls: tuple[str, ...] = ()

    @property
    def is_attestation(self) -> bool:
        """Whether this entry of an index describes another entry (BuildKit), and is no image to run."""
        return REFERENCE_TYPE_ANNOTATION in self.annotations


@attrs.frozen(kw_only=True)
class Manifest:
    """One image for one platform, or an artifact: a config and layers, in the order they are applied."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen(kw_only=True)
class Index:
    """Several manifests under one digest, usually one for each platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)


Document = Manifest | Index


@attrs.frozen(kw_only=True)
class ImageConfig:
    """What an image's configuration says that this library needs. ``created`` is the text as it stands."""

    platform: Platform | None
    created: str | None
    diff_ids: tuple[Digest, ...]


@attrs.frozen(kw_only=True)
class LayoutMarker:
    """The content of an ``oci-layout`` file."""

    image_layout_version: str


@attrs.frozen(kw_only=True)
class LayoutEntry:
    """One entry of index.json. ``raw`` is the JSON object it was read from, and is written back as it was."""

    descriptor: Descriptor
    raw: Mapping[str, object] | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True)
class LayoutIndex:
    """index.json of a layout: all its entries, in order, and whatever else stood in it."""

    entries: tuple[LayoutEntry, ...] = ()
    raw: Mapping[str, object] | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True)
class Node:
    """One blob of a graph, and its place below its parent: ``position`` of ``total``, from 1.

    A document that was read carries its value, and the very bytes that were verified.
    """

    descriptor: Descriptor
    role: Role
    position: int
    total: int
    document: Document | None = None
    content: bytes | None = None


def children(document: Document) -> tuple[Node, ...]:
    """Return what the graph has below ``document``, in the document's order; nothing of it has been read.

    ``subject`` points backwards and is no child.
    """
    if isinstance(document, Index):
        total = len(document.manifests)
        return tuple(
            Node(descriptor=descriptor, role="manifest", position=position, total=total)
            for position, descriptor in enumerate(document.manifests, 1)
        )
    config = Node(descriptor=document.config, role="config", position=1, total=1)
    total = len(document.layers)
    return (
        config,
        *(
            Node(descriptor=descriptor, role="layer", position=position, total=total)
            for position, descriptor in enumerate(document.layers, 1)
        ),
    )
