"""How a store's documents are read for a listing: one walk over each image, and what they say of it.

Of a document only that is kept, so that an image of many large ones costs no more memory than its largest.
"""

from minibox_store import _signatures, media_types
from minibox_store.codec import decode_config
from minibox_store.digest import Digest
from minibox_store.documents import ConfigSummary, Descriptor, Manifest, Node
from minibox_store.errors import BlobNotFound, ContentMismatch, InvalidDocument, StoreDamaged
from minibox_store.graph import is_of_the_blob, read_content, walk
from minibox_store.layout.layout import Layout
from minibox_store.outlines import outline_of
from minibox_store.platforms import Platform
from minibox_store.protocols import BlobSource, BlobStream
from minibox_store.reports.summaries import (
    UNKNOWN_STATE,
    DocumentFile,
    FileState,
    ImageSummary,
    listed_created,
    listed_platform,
)

_WRONG = (BlobNotFound, ContentMismatch, InvalidDocument, StoreDamaged)
_UNKNOWN = (UNKNOWN_STATE, UNKNOWN_STATE)


def summarise(
    layout: Layout, root: Descriptor, source: BlobSource | None = None, *, among_others: bool = False
) -> ImageSummary:
    """Return what the documents below ``root`` say, verified as they are read.

    Args:
        layout: the store.
        root: an entry of its index.
        source: where the documents are read from, if somebody has them open; else the store.
        among_others: whether a file that the system does not let us read is told as a damaged one, so that it does not
            hide all others.

    Raises:
        OSError: for such a file, where it is the only one that is asked for; and for what says nothing of the file.
    """
    watched = _WatchedSource(layout, source or layout)
    reached = _Reached()
    last = None
    try:
        for node in walk(watched, root, limits=layout.limits, allow_absent_manifests=True):
            reached.add(node)
            last = node.document if node.descriptor is root else None
            del node  # its value, which the walk should not find in memory when it decodes the next
    except (*_WRONG, OSError) as error:
        watched.note(error, among_others=among_others)
        return ImageSummary(
            media_type=root.media_type,
            size_bytes=root.size_bytes,
            damaged=True,
            is_complete=False,
            files=watched.files(is_complete=False),
        )
    if isinstance(last, Manifest):
        return _summary_of_manifest(layout, root, last, watched, reached, among_others=among_others)
    is_complete = watched.is_complete
    return ImageSummary(
        media_type=root.media_type,
        size_bytes=sum(size_bytes for size_bytes, _ in reached.blobs.values()),
        platforms=tuple(reached.platforms),
        layers=sum(is_layer for _, is_layer in reached.blobs.values()),
        is_complete=is_complete,
        files=watched.files(is_complete=is_complete),
        outline=reached.outline(),
    )


class _Reached:
    """What is told of the blobs that a root reaches.

    Attributes:
        blobs: by digest the size of each, and whether it is a layer.
        platforms: those of the manifests, attestations aside, in order.
        subjects: what documents refer to.
        is_whole: whether every document was there.
    """

    def __init__(self) -> None:
        self.blobs: dict[Digest, tuple[int, bool]] = {}
        self.platforms: dict[Platform, None] = {}
        self.subjects: list[Digest] = []
        self.is_whole = True

    def add(self, node: Node) -> None:
        descriptor = node.descriptor
        self.blobs[descriptor.digest] = (descriptor.size_bytes, node.role == "layer")
        if node.document is not None and node.document.subject is not None:
            self.subjects.append(node.document.subject.digest)
        elif node.document is None and media_types.is_document(descriptor.media_type):
            self.is_whole = False
        if media_types.is_manifest(descriptor.media_type) and not descriptor.is_attestation:
            platform = listed_platform(descriptor.platform)
            if platform is not None:
                self.platforms[platform] = None

    def outline(self) -> str | None:
        if not self.is_whole:
            return None
        return outline_of((each.hex for each in self.blobs), (each.hex for each in self.subjects)).as_text()


def _summary_of_manifest(
    layout: Layout,
    root: Descriptor,
    manifest: Manifest,
    watched: "_WatchedSource",
    reached: _Reached,
    *,
    among_others: bool,
) -> ImageSummary:
    config = ConfigSummary(platform=None, created=None, diff_ids=())
    is_complete = True
    if media_types.is_config(manifest.config.media_type):
        try:
            config = decode_config(read_content(watched, manifest.config, layout.limits), limits=layout.limits)
            watched.forget(manifest.config)
        except (*_WRONG, OSError) as error:
            watched.note(error, among_others=among_others)
            is_complete = False  # the manifest is whole, and a listing tells what there is; a check tells the rest
    return ImageSummary(
        media_type=root.media_type,
        size_bytes=root.size_bytes + manifest.config.size_bytes + sum(layer.size_bytes for layer in manifest.layers),
        platform=listed_platform(config.platform),
        created=listed_created(config.created),
        layers=len(manifest.layers),
        is_complete=is_complete,
        files=watched.files(is_complete=is_complete),
        outline=reached.outline(),
    )


class _WatchedSource:
    """A source that notes which blobs were opened, and the states that each file had before."""

    def __init__(self, layout: Layout, source: BlobSource) -> None:
        self._layout = layout
        self._source = source
        self._states: dict[Digest, tuple[FileState, FileState] | None] = {}
        self._last: Digest | None = None

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        self._last = descriptor.digest
        if descriptor.digest not in self._states:
            self._states[descriptor.digest] = _UNKNOWN  # until it could be looked at
            self._states[descriptor.digest] = _signatures.file_states(self._layout.paths.blob(descriptor.digest))
        return self._source.open_blob(descriptor, offset)

    def note(self, error: Exception, *, among_others: bool) -> None:
        """Note that the blob that was opened last cannot be read; raise the error where that may not be passed over."""
        if isinstance(error, OSError):
            if not among_others or self._last is None or not is_of_the_blob(error):
                raise error
            self._states[self._last] = _UNKNOWN

    def forget(self, descriptor: Descriptor) -> None:
        self._states.pop(descriptor.digest, None)

    @property
    def is_complete(self) -> bool:
        """Whether there were files, and none was missing."""
        return bool(self._states) and None not in self._states.values()

    def files(self, *, is_complete: bool) -> tuple[DocumentFile, ...]:
        which = 0 if is_complete else 1
        return tuple([(digest, states and states[which]) for digest, states in self._states.items()])
