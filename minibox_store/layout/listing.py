"""What a store holds, as images: read once, and again only where something has changed.

index.json is read whole at every call, and each manifest's file is looked at, so that what another process did, and
a manifest that has gone, is seen at once. What manifests and configs say is kept by digest, and forgotten with it.
"""

import os
from collections.abc import Iterator

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_config
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, ImageConfig, LayoutIndex, Manifest
from minibox_store.errors import BlobNotFound, ContentMismatch, InvalidDocument, StoreDamaged
from minibox_store.graph import Node, read_content, walk
from minibox_store.images import Image
from minibox_store.layout.layout import Layout
from minibox_store.layout_index import NAME_ANNOTATION, names_of
from minibox_store.platforms import Platform

_UNREADABLE = (BlobNotFound, ContentMismatch, InvalidDocument, StoreDamaged)
_Signature = tuple[int, int, int] | None


@attrs.frozen(kw_only=True)
class _Summary:
    """What the documents of one digest say. ``signature`` is that of the root's file when they were read."""

    size_bytes: int
    platform: Platform | None = None
    platforms: tuple[Platform, ...] = ()
    created: str | None = None
    layers: int = 0
    damaged: bool = False
    signature: _Signature = None


class Listing:
    """The images of one store. Safe for several threads."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._summaries: dict[Digest, _Summary] = {}
        self._last: tuple[LayoutIndex | None, tuple[tuple[str, _Signature], ...], tuple[Image, ...]] = (None, (), ())

    def images(self) -> tuple[Image, ...]:
        """Return every named image, sorted by name; the very same tuple as long as nothing has changed.

        Raises:
            StoreDamaged: when index.json cannot be read.
        """
        index = self._layout.read_index()
        last_index, signatures, images = self._last
        if index is last_index and all(_signature(path) == signature for path, signature in signatures):
            return images
        found = sorted(names_of(index))
        summaries = {descriptor.digest: self._summary(descriptor) for _, descriptor in found}
        images = tuple(_image(name, descriptor, summaries[descriptor.digest]) for name, descriptor in found)
        signatures = tuple(
            (self._layout.paths.blob(digest), summary.signature) for digest, summary in summaries.items()
        )
        self._summaries = summaries
        self._last = (index, signatures, images)
        return images

    def image(self, name: str, descriptor: Descriptor) -> Image:
        """Return one image whose entry is at hand."""
        return _image(name, descriptor, self._summary(descriptor))

    def _summary(self, descriptor: Descriptor) -> _Summary:
        signature = _signature(self._layout.paths.blob(descriptor.digest))
        known = self._summaries.get(descriptor.digest)
        if known is not None and known.signature == signature:
            return known
        try:
            nodes = list(walk(self._layout, descriptor, limits=self._layout.limits, allow_absent_manifests=True))
        except _UNREADABLE:
            return _Summary(size_bytes=descriptor.size_bytes, damaged=True, signature=signature)
        if isinstance(nodes[-1].document, Manifest):
            return self._of_manifest(descriptor, nodes[-1].document, signature)
        distinct = {node.descriptor.digest: node for node in nodes}
        return _Summary(
            size_bytes=sum(node.descriptor.size_bytes for node in distinct.values()),
            platforms=tuple(dict.fromkeys(_platforms(nodes))),
            layers=sum(node.role == "layer" for node in distinct.values()),
            signature=signature,
        )

    def _of_manifest(self, descriptor: Descriptor, manifest: Manifest, signature: _Signature) -> _Summary:
        config = self._config(manifest.config)
        platform = config.platform or descriptor.platform
        return _Summary(
            size_bytes=descriptor.size_bytes
            + manifest.config.size_bytes
            + sum(layer.size_bytes for layer in manifest.layers),
            platform=platform,
            platforms=(platform,) if platform else (),
            created=config.created,
            layers=len(manifest.layers),
            signature=signature,
        )

    def _config(self, descriptor: Descriptor) -> ImageConfig:
        if media_types.is_config(descriptor.media_type):
            try:
                return decode_config(read_content(self._layout, descriptor, self._layout.limits))
            except _UNREADABLE:
                pass  # the manifest is whole, and a listing tells what there is to tell; a check tells the rest
        return ImageConfig(platform=None, created=None, diff_ids=())


def _signature(path: str) -> _Signature:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _platforms(nodes: list[Node]) -> Iterator[Platform]:
    for node in nodes:
        platform = node.descriptor.platform
        is_image = media_types.is_manifest(node.descriptor.media_type) and not node.descriptor.is_attestation
        if platform is not None and is_image:
            yield platform


def _image(name: str, descriptor: Descriptor, summary: _Summary) -> Image:
    annotations = {key: text for key, text in descriptor.annotations.items() if key != NAME_ANNOTATION}
    return Image(
        name=name,
        descriptor=attrs.evolve(descriptor, annotations=annotations),
        size_bytes=summary.size_bytes,
        platform=summary.platform,
        platforms=summary.platforms,
        created=summary.created,
        layers=summary.layers,
        damaged=summary.damaged,
    )
