"""Which layers an image has, as its verified documents say.

Spec: OCI image-spec 1.1, manifest.md; config.md, "rootfs".
"""

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document, decode_image_config
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Manifest
from minibox_store.errors import InvalidDocument
from minibox_store.graph import RememberingSource
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.protocols import BlobSource
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class LayerSource(Value):
    """A layer to be unpacked, and where its blob is.

    Attributes:
        descriptor: of the blob.
        diff_id: the digest of its tar, from the image's verified config.
        source: holds the blob.
    """

    descriptor: Descriptor
    diff_id: Digest
    source: BlobSource


@attrs.frozen(kw_only=True, repr=False)
class LayerPlan(Value):
    """Which layers an image has, the lowest first."""

    manifest: Descriptor
    config: Descriptor
    layers: tuple[tuple[Descriptor, Digest], ...]


def read_layers(source: RememberingSource, manifest: Descriptor, limits: Limits = DEFAULT_LIMITS) -> LayerPlan:
    """Return the layers of a manifest with the digests that its config promises, both read and verified.

    Raises:
        InvalidDocument: when it is no image of layers of files, such as an attestation, or its config speaks of another
            number of layers than it has.
        BlobNotFound, ContentMismatch: when a document is missing or wrong.

    Spec: OCI image-spec 1.1, config.md, "rootfs".
    """
    name = str(manifest.digest)
    document = decode_document(source.read(manifest), manifest.media_type, name, limits=limits)
    if not isinstance(document, Manifest):
        raise InvalidDocument("mediaType", f"{manifest.media_type!r} is no manifest", name)
    if not media_types.is_config(document.config.media_type):
        problem = f"it is no image of files: its config is {document.config.media_type!r}"
        raise InvalidDocument("config.mediaType", problem, name)
    for position, layer in enumerate(document.layers):
        if not media_types.is_layer(layer.media_type):
            problem = f"it is no image of files: {layer.media_type!r} is no layer"
            raise InvalidDocument(f"layers[{position}].mediaType", problem, name)
    config = decode_image_config(source.read(document.config), str(document.config.digest), limits=limits)
    if len(config.diff_ids) != len(document.layers):
        problem = f"there are {len(config.diff_ids)} for {len(document.layers)} layers"
        raise InvalidDocument("rootfs.diff_ids", problem, str(document.config.digest))
    layers = tuple(zip(document.layers, config.diff_ids, strict=True))
    return LayerPlan(manifest=manifest, config=document.config, layers=layers)
