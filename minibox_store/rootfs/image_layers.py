"""Which layers an image has, and what each must decompress to: its manifest and its config together say so."""

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_config, decode_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Manifest
from minibox_store.errors import InvalidDocument
from minibox_store.graph import read_content
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.protocols import BlobSource


@attrs.frozen(kw_only=True)
class Layer:
    """A layer of an image, as its manifest and its config name it."""

    descriptor: Descriptor
    diff_id: Digest


def read_layers(source: BlobSource, manifest: Descriptor, limits: Limits = DEFAULT_LIMITS) -> tuple[Layer, ...]:
    """Return the layers of an image, in the order in which they are applied; manifest and config are verified.

    Raises:
        InvalidDocument: when one of them is none, is not that of a file system, or does not fit the other.
        BlobNotFound, ContentMismatch: when one of them is missing or wrong.

    Spec: OCI image-spec 1.1, config.md, "rootfs".
    """
    name = str(manifest.digest)
    document = decode_document(read_content(source, manifest, limits), manifest.media_type, name, limits=limits)
    if not isinstance(document, Manifest):
        raise InvalidDocument("mediaType", "it is no manifest", name)
    if not media_types.is_config(document.config.media_type):
        problem = f"{document.config.media_type!r} is not that of an image: this one has no file system"
        raise InvalidDocument("config.mediaType", problem, name)
    config_name = str(document.config.digest)
    config = decode_config(read_content(source, document.config, limits), config_name, limits=limits)
    if len(config.diff_ids) != len(document.layers):
        problem = f"there are {len(config.diff_ids)} of them for {len(document.layers)} layers"
        raise InvalidDocument("rootfs.diff_ids", problem, config_name)
    pairs = zip(document.layers, config.diff_ids, strict=True)
    return tuple(Layer(descriptor=descriptor, diff_id=diff_id) for descriptor, diff_id in pairs)
