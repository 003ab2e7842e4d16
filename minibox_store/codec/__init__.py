"""Bytes to documents and back, strictly: the only module that knows JSON, its field names, and cattrs.

Decoding is total: any bytes give a document or :class:`InvalidDocument`, in time and memory bounded by their
length. Types are exact (``"5"`` is no size, ``true`` is no number), no key stands twice, nothing follows the
document. Fields that this library does not know are ignored, but for index.json, whose objects are kept whole.

Spec: OCI image-spec 1.1, manifest.md, image-index.md, descriptor.md, config.md, image-layout.md; RFC 8259.
"""

from minibox_store.codec.archive_files import (
    ArchiveMetadata,
    DockerImage,
    check_index_spelling,
    decode_archive_metadata,
    decode_docker_images,
    decode_repositories,
    encode_archive_metadata,
)
from minibox_store.codec.base_layers import BaseLayer, decode_base_layer, encode_base_layer
from minibox_store.codec.exchange import (
    TokenAnswer,
    decode_names,
    decode_registry_errors,
    decode_token_answer,
)
from minibox_store.codec.layout_files import (
    annotated,
    decode_layout_index,
    decode_layout_marker,
    encode_layout_index,
    encode_layout_marker,
)
from minibox_store.codec.links import decode_links
from minibox_store.codec.manifests import (
    decode_config,
    decode_document,
    decode_image_config,
    decode_labels,
    describe_document,
    encode_document,
)
from minibox_store.codec.summaries import SummaryTable, decode_summaries, encode_summaries

__all__ = [
    "ArchiveMetadata",
    "BaseLayer",
    "DockerImage",
    "SummaryTable",
    "TokenAnswer",
    "annotated",
    "check_index_spelling",
    "decode_archive_metadata",
    "decode_base_layer",
    "decode_config",
    "decode_docker_images",
    "decode_document",
    "decode_image_config",
    "decode_labels",
    "decode_layout_index",
    "decode_layout_marker",
    "decode_links",
    "decode_names",
    "decode_registry_errors",
    "decode_repositories",
    "decode_summaries",
    "decode_token_answer",
    "describe_document",
    "encode_archive_metadata",
    "encode_base_layer",
    "encode_document",
    "encode_layout_index",
    "encode_layout_marker",
    "encode_summaries",
]
