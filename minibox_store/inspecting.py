"""The same walk, for what an image's documents and configs say: first everything is read and verified, then decoded.

So what is wrong with a source is told from what is odd about an image, of which every byte is as it should be.
"""

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document, decode_image_config
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Document, Identity, ImageConfig, Index, Manifest, identity
from minibox_store.errors import InvalidDocument
from minibox_store.graph import RememberingSource, check_is_document, walk
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.platforms import Platform
from minibox_store.reports.inspection import LayerDetails, ManifestDetails
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class ReadManifest(Value):
    """A manifest, as its index names it, and the verified bytes of its config; None for one that nobody reads."""

    descriptor: Descriptor
    manifest: Manifest
    config: bytes | None


@attrs.frozen(kw_only=True, repr=False)
class ReadImage(Value):
    """The manifests at and below a root, and the documents that were never fetched.

    Attributes:
        document: the root.
        manifests: in the order of the indexes that name them.
        absent: manifests and indexes below an index that are not there.
    """

    document: Document
    manifests: tuple[ReadManifest, ...]
    absent: tuple[Descriptor, ...]


def read_image(
    source: RememberingSource, root: Descriptor, chosen: Descriptor, limits: Limits = DEFAULT_LIMITS
) -> ReadImage:
    """Return the root, and what is at and below ``chosen``, read and verified with its configs; no layer is looked at.

    A config that several manifests have is there once.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: for a document or config that is missing or wrong; what a config
            says is not asked yet. And where more is named, or there are more bytes, than may be told at once.
    """
    check_is_document(root)
    document = None
    if chosen.digest != root.digest:
        document = decode_document(source.read(root), root.media_type, str(root.digest), limits=limits)
    room = _Room(root, limits)
    manifests = {}
    named = [chosen]
    absent = []
    for node in walk(source, chosen, limits=limits, allow_absent_manifests=True):
        room.take(len(node.content or b""))
        if isinstance(node.document, Manifest):
            manifests[identity(node.descriptor)] = node.document
        elif isinstance(node.document, Index):
            named.extend(node.document.manifests)
        elif media_types.is_document(node.descriptor.media_type):
            absent.append(node.descriptor)
    document = document or node.document  # the last one is what was chosen
    assert document is not None
    told = [(each, manifests[identity(each)]) for each in named if identity(each) in manifests]
    if len(told) > limits.documents:
        raise InvalidDocument("manifests", f"it names more than {limits.documents} of them", str(root.digest))
    configs: dict[Identity, bytes | None] = {}
    for _, manifest in told:
        if identity(manifest.config) not in configs:
            configs[identity(manifest.config)] = _read_config(source, manifest.config, limits, room)
    read = tuple(
        ReadManifest(descriptor=descriptor, manifest=manifest, config=configs[identity(manifest.config)])
        for descriptor, manifest in told
    )
    return ReadImage(document=document, manifests=read, absent=tuple(absent))


class _Room:
    """How many bytes of documents and configs may still be kept of one image, whose root an error names."""

    def __init__(self, root: Descriptor, limits: Limits) -> None:
        self._root = root
        self._most_bytes = self._rest_bytes = limits.described_bytes

    def take(self, size_bytes: int) -> None:
        self._rest_bytes -= size_bytes
        if self._rest_bytes < 0:
            problem = f"its documents and configs have more than {self._most_bytes} bytes"
            raise InvalidDocument("", problem, str(self._root.digest))


def _read_config(source: RememberingSource, config: Descriptor, limits: Limits, room: _Room) -> bytes | None:
    if not media_types.is_config(config.media_type) or config.size_bytes > limits.document_bytes:
        return None
    room.take(config.size_bytes)
    return source.read(config)


def describe_manifests(image: ReadImage, limits: Limits = DEFAULT_LIMITS) -> tuple[ManifestDetails, ...]:
    """Return what each manifest and its config say; what is named again, and a config of several, is one value.

    Raises:
        InvalidDocument: as :func:`describe_manifest`.
    """
    configs: dict[Digest, ImageConfig] = {}
    known: dict[Identity, ManifestDetails] = {}
    found = []
    for read in image.manifests:
        details = known.get(identity(read.descriptor))
        if details is None:
            details = known[identity(read.descriptor)] = describe_manifest(read, limits, configs)
        platform = _platform_of(read.descriptor, details.config)
        found.append(attrs.evolve(details, descriptor=read.descriptor, platform=platform))
    return tuple(found)


def describe_manifest(
    read: ReadManifest, limits: Limits = DEFAULT_LIMITS, configs: dict[Digest, ImageConfig] | None = None
) -> ManifestDetails:
    """Return what a manifest and its config say; those in ``configs`` are decoded, and one that is not is added.

    Raises:
        InvalidDocument: when the config of an image is none, or says something that none may.
    """
    manifest = read.manifest
    name = str(manifest.config.digest)
    configs = {} if configs is None else configs
    config = configs.get(manifest.config.digest) if read.config is not None else None
    if config is None and read.config is not None:
        config = configs[manifest.config.digest] = decode_image_config(read.config, name, limits=limits)
    if config is None and media_types.is_config(manifest.config.media_type):
        raise InvalidDocument("", f"it has {manifest.config.size_bytes} bytes, which is too large for a config", name)
    diff_ids = config.diff_ids if config is not None else ()
    are_told = len(diff_ids) == len(manifest.layers)
    return ManifestDetails(
        descriptor=read.descriptor,
        platform=_platform_of(read.descriptor, config),
        config_descriptor=manifest.config,
        config=config,
        layers=tuple(
            LayerDetails(descriptor=layer, diff_id=diff_ids[position] if are_told else None)
            for position, layer in enumerate(manifest.layers)
        ),
        annotations=manifest.annotations,
        subject=manifest.subject,
        artifact_type=manifest.artifact_type,
    )


def _platform_of(descriptor: Descriptor, config: ImageConfig | None) -> Platform | None:
    return (config and config.platform) or descriptor.platform
