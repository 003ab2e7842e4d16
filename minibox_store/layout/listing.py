"""What a store holds, as images: read once, and again only where something has changed.

index.json is read whole at every call, and each manifest's file is looked at, so that what another process did, and
a manifest that has gone, is seen at once. What manifests and configs say is kept by digest, and forgotten with it.
"""

from collections.abc import Iterator
from operator import itemgetter

import attrs

from minibox_store import media_types
from minibox_store._signatures import Signature, is_unchanged, signature
from minibox_store.codec import decode_config
from minibox_store.digest import Digest
from minibox_store.documents import ConfigSummary, Descriptor, LayoutIndex, Manifest, Node
from minibox_store.errors import BlobNotFound, ContentMismatch, InvalidDocument, StoreDamaged, StoreError
from minibox_store.graph import read_content, walk
from minibox_store.images import Image
from minibox_store.layout.layout import Layout
from minibox_store.layout_index import NAME_ANNOTATION, names_of
from minibox_store.platforms import Platform
from minibox_store.protocols import BlobSource

_UNREADABLE = (BlobNotFound, ContentMismatch, InvalidDocument, StoreDamaged)


_ATTEMPTS = 3


@attrs.frozen(kw_only=True)
class _Summary:
    """What the documents of one root say, and in which state their files were when they were read."""

    size_bytes: int
    platform: Platform | None = None
    platforms: tuple[Platform, ...] = ()
    created: str | None = None
    layers: int = 0
    damaged: bool = False
    files: tuple[tuple[str, Signature | None], ...] = ()

    def is_current(self) -> bool:
        return all(is_unchanged(path, known) for path, known in self.files)


class Listing:
    """The images of one store. Safe for several threads."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._summaries: dict[Digest, _Summary] = {}
        self._last: tuple[LayoutIndex | None, tuple[Image, ...]] = (None, ())

    def images(self) -> tuple[Image, ...]:
        """Return every named image, sorted by name; the very same tuple as long as nothing has changed.

        Raises:
            StoreDamaged: when index.json cannot be read.
        """
        for _ in range(_ATTEMPTS):
            index = self._layout.read_index()
            last_index, images = self._last
            if index is last_index and all(summary.is_current() for summary in self._summaries.values()):
                return images
            found = sorted(names_of(index), key=itemgetter(0))
            summaries = {descriptor.digest: self._summary(descriptor) for _, descriptor in found}
            images = tuple(_image(name, descriptor, summaries[descriptor.digest]) for name, descriptor in found)
            # An image whose name goes meanwhile, and its blobs with it, is not damaged.
            if not any(image.damaged for image in images) or self._layout.read_index() is index:
                break
        self._summaries = summaries
        self._last = (index, images)
        return images

    def image(self, name: str, descriptor: Descriptor, source: BlobSource | None = None) -> Image:
        """Return one image whose entry is at hand, read from ``source`` if that has it open."""
        summary = self._summary(descriptor) if source is None else self._summarise(descriptor, source)
        return _image(name, descriptor, summary)

    def _summary(self, descriptor: Descriptor) -> _Summary:
        known = self._summaries.get(descriptor.digest)
        if known is not None and known.is_current():
            return known
        return self._summarise(descriptor, self._layout)

    def _summarise(self, descriptor: Descriptor, source: BlobSource) -> _Summary:
        files = _Files(self._layout)
        files.add(descriptor)
        nodes = []
        try:
            with self._layout.naming_damage():
                for node in walk(source, descriptor, limits=self._layout.limits, allow_absent_manifests=True):
                    files.add(node.descriptor)
                    nodes.append(node)
        except _UNREADABLE as error:
            files.add_culprit(error)
            return _Summary(size_bytes=descriptor.size_bytes, damaged=True, files=files.seen())
        if isinstance(nodes[-1].document, Manifest):
            return self._of_manifest(descriptor, nodes[-1].document, source, files)
        distinct = {node.descriptor.digest: node for node in nodes}
        return _Summary(
            size_bytes=sum(node.descriptor.size_bytes for node in distinct.values()),
            platforms=tuple(dict.fromkeys(_platforms(nodes))),
            layers=sum(node.role == "layer" for node in distinct.values()),
            files=files.seen(),
        )

    def _of_manifest(self, descriptor: Descriptor, manifest: Manifest, source: BlobSource, files: "_Files") -> _Summary:
        config = self._config(manifest.config, source)
        platform = config.platform or descriptor.platform
        return _Summary(
            size_bytes=descriptor.size_bytes
            + manifest.config.size_bytes
            + sum(layer.size_bytes for layer in manifest.layers),
            platform=platform,
            platforms=(platform,) if platform else (),
            created=config.created,
            layers=len(manifest.layers),
            files=files.seen(),
        )

    def _config(self, descriptor: Descriptor, source: BlobSource) -> ConfigSummary:
        if media_types.is_config(descriptor.media_type):
            try:
                return decode_config(read_content(source, descriptor, self._layout.limits))
            except _UNREADABLE:
                pass  # the manifest is whole, and a listing tells what there is to tell; a check tells the rest
        return ConfigSummary(platform=None, created=None, diff_ids=())


class _Files:
    """The files of the documents that a summary was read from, in the state they had before they were read."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._signatures: dict[str, Signature | None] = {}

    def add(self, descriptor: Descriptor) -> None:
        if media_types.is_document(descriptor.media_type):
            path = self._layout.paths.blob(descriptor.digest)
            self._signatures.setdefault(path, signature(path))

    def seen(self) -> tuple[tuple[str, Signature | None], ...]:
        return tuple(self._signatures.items())

    def add_culprit(self, error: StoreError) -> None:
        """Add the document that was not readable: it was not yielded, but the summary hangs on it most of all."""
        if isinstance(error, BlobNotFound):
            path = self._layout.paths.blob(Digest.parse(error.digest))
        elif isinstance(error, StoreDamaged):
            path = error.path
        else:
            return
        self._signatures.setdefault(path, signature(path))


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
