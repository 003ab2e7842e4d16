"""The documents an image is made of, as values; and which descriptors are a document's children.

Spec: OCI image-spec 1.1, descriptor.md, manifest.md, image-index.md, config.md, image-layout.md.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import attrs

from minibox_store import media_types
from minibox_store.digest import Digest
from minibox_store.platforms import Platform
from minibox_store.values import Value

Role = Literal["manifest", "config", "layer"]

# A blob by all that is said of it: said otherwise, it is looked at again, and found to be wrong.
Identity = tuple[str, int, str]

REFERENCE_TYPE_ANNOTATION = "vnd.docker.reference.type"


# Without slots a frozen value is made in half the time, and a walk makes one for each blob of each document.
@attrs.frozen(kw_only=True, slots=False, repr=False)
class Descriptor(Value):
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


def identity(descriptor: Descriptor) -> Identity:
    """Return what tells a blob from another in a walk: its digest, its size and, of a document, its type.

    Of the digest it has the hexadecimal part, which tells the algorithm by its length: a walk compares these more than
    anything else, and nothing is compared faster than a text.
    """
    is_document = media_types.is_document(descriptor.media_type)
    return descriptor.digest.hex, descriptor.size_bytes, descriptor.media_type if is_document else ""


@attrs.frozen(kw_only=True, repr=False)
class Manifest(Value):
    """One image for one platform, or an artifact: a config and layers, in the order they are applied."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen(kw_only=True, repr=False)
class Index(Value):
    """Several manifests under one digest, usually one for each platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)


Document = Manifest | Index


@attrs.frozen(kw_only=True, repr=False)
class Referrer(Value):
    """A manifest or index that says of another one that it refers to it: a signature, an SBOM, or whatever it is.

    Attributes:
        descriptor: of its own document, which was read and verified.
        subject: what it refers to.
        artifact_type: what it is, in its maker's words: its own type, or that of its config; None where there is none.
        annotations: those of its document.
    """

    descriptor: Descriptor
    subject: Digest
    artifact_type: str | None = None
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen(kw_only=True, repr=False)
class ConfigSummary(Value):
    """What an image's configuration says that images are chosen, listed and filtered by.

    Attributes:
        platform: None where the configuration does not say.
        created: the text as it stands, RFC 3339 if it keeps to the specification.
        diff_ids: the digest of each layer's uncompressed tar, in the order in which layers are applied.
        labels: empty where there are none.
    """

    platform: Platform | None
    created: str | None
    diff_ids: tuple[Digest, ...]
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen(kw_only=True, repr=False)
class HistoryEntry(Value):
    """One step in which an image was made, in its maker's own words: texts as they stand, which nobody has checked.

    Attributes:
        created: when, RFC 3339 if it keeps to the specification.
        created_by: the command.
        author: who.
        comment: whatever was to be said.
        empty_layer: whether the step made no layer.
        layer: the one that it made; None where it made none, or where nobody can tell which.
    """

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False
    layer: Descriptor | None = None


@attrs.frozen(kw_only=True, repr=False)
class ImageConfig(ConfigSummary):
    """All that an image's configuration says that is of use without running it.

    Texts are as they stand, which nobody has checked; None, or empty, is what is not there.

    Attributes:
        author: who made the image.
        user: whom a process runs as: a user, or user and group behind a colon, by name or by number.
        exposed_ports: such as ``80/tcp``, sorted.
        env: ``NAME=value``, in order.
        entrypoint: what runs, with its first arguments.
        cmd: its further arguments, or what runs where there is no entry point.
        volumes: where data lies that is no part of the image, sorted.
        working_dir: where a process starts.
        stop_signal: which signal ends it.
        history: how the image was made, the oldest step first. No step has its layer here.
    """

    author: str | None = None
    user: str | None = None
    exposed_ports: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    working_dir: str | None = None
    stop_signal: str | None = None
    history: tuple[HistoryEntry, ...] = ()


@attrs.frozen(kw_only=True, repr=False)
class LayoutMarker(Value):
    """The content of an ``oci-layout`` file."""

    image_layout_version: str


@attrs.frozen(kw_only=True, repr=False)
class LayoutEntry(Value):
    """One entry of index.json. ``raw`` is the JSON object it was read from, and is written back as it was."""

    descriptor: Descriptor
    raw: Mapping[str, object] | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True, repr=False)
class LayoutIndex(Value):
    """index.json of a layout: all its entries, in order, and whatever else stood in it."""

    entries: tuple[LayoutEntry, ...] = ()
    raw: Mapping[str, object] | None = attrs.field(default=None, eq=False)


class Node(NamedTuple):
    """One blob of a graph, and its place below its parent: ``position`` of ``total``, from 1.

    One is made for each blob of each walk, and a tuple costs a third of what another value does. A document that was
    read carries its value, and the very bytes that were verified.
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
    # By position, and from lists: a walk comes by here for every document.
    if isinstance(document, Index):
        total = len(document.manifests)
        return tuple([Node(each, "manifest", position, total) for position, each in enumerate(document.manifests, 1)])
    total = len(document.layers)
    config = Node(document.config, "config", 1, 1)
    return (config, *[Node(each, "layer", position, total) for position, each in enumerate(document.layers, 1)])


class Links(NamedTuple):
    """What a document points at, and no more: for whoever asks what there is, and not what it is like.

    ``leaves`` are the blobs that have nothing below them; ``documents``, in order, may have; ``layers`` is how many a
    manifest names.
    """

    leaves: list[Identity]
    documents: list[Descriptor]
    layers: int
