"""Bytes to documents and back, strictly: the only module that knows JSON, its field names, and cattrs.

Decoding is total: any bytes give a document or :class:`InvalidDocument`, in time and memory bounded by their
length. Types are exact (``"5"`` is no size, ``true`` is no number), no key stands twice, nothing follows the
document. Fields that this library does not know are ignored, but for index.json, whose objects are kept whole.
Each name is loaded when it is first used: nobody reads every kind of document.

Spec: OCI image-spec 1.1, manifest.md, image-index.md, descriptor.md, config.md, image-layout.md; RFC 8259.
"""

from typing import TYPE_CHECKING

from minibox_store.lazy import load_name

if TYPE_CHECKING:
    from minibox_store.codec.archive_files import ArchiveMetadata as ArchiveMetadata
    from minibox_store.codec.archive_files import DockerImage as DockerImage
    from minibox_store.codec.archive_files import check_index_spelling as check_index_spelling
    from minibox_store.codec.archive_files import decode_archive_metadata as decode_archive_metadata
    from minibox_store.codec.archive_files import decode_docker_images as decode_docker_images
    from minibox_store.codec.archive_files import decode_repositories as decode_repositories
    from minibox_store.codec.archive_files import encode_archive_metadata as encode_archive_metadata
    from minibox_store.codec.base_layers import BaseLayer as BaseLayer
    from minibox_store.codec.base_layers import decode_base_layer as decode_base_layer
    from minibox_store.codec.base_layers import encode_base_layer as encode_base_layer
    from minibox_store.codec.configs import decode_config as decode_config
    from minibox_store.codec.exchange import TokenAnswer as TokenAnswer
    from minibox_store.codec.exchange import decode_names as decode_names
    from minibox_store.codec.exchange import decode_registry_errors as decode_registry_errors
    from minibox_store.codec.exchange import decode_token_answer as decode_token_answer
    from minibox_store.codec.layout_files import annotated as annotated
    from minibox_store.codec.layout_files import decode_layout_index as decode_layout_index
    from minibox_store.codec.layout_files import decode_layout_marker as decode_layout_marker
    from minibox_store.codec.layout_files import encode_layout_index as encode_layout_index
    from minibox_store.codec.layout_files import encode_layout_marker as encode_layout_marker
    from minibox_store.codec.links import decode_links as decode_links
    from minibox_store.codec.manifests import decode_document as decode_document
    from minibox_store.codec.manifests import describe_document as describe_document
    from minibox_store.codec.manifests import encode_document as encode_document
    from minibox_store.codec.summaries import SummaryTable as SummaryTable
    from minibox_store.codec.summaries import decode_summaries as decode_summaries
    from minibox_store.codec.summaries import encode_summaries as encode_summaries
    from minibox_store.codec.whole_configs import decode_image_config as decode_image_config
    from minibox_store.codec.whole_configs import decode_labels as decode_labels

_HOMES = {
    "ArchiveMetadata": "archive_files",
    "BaseLayer": "base_layers",
    "DockerImage": "archive_files",
    "SummaryTable": "summaries",
    "TokenAnswer": "exchange",
    "annotated": "layout_files",
    "check_index_spelling": "archive_files",
    "decode_archive_metadata": "archive_files",
    "decode_base_layer": "base_layers",
    "decode_config": "configs",
    "decode_docker_images": "archive_files",
    "decode_document": "manifests",
    "decode_image_config": "whole_configs",
    "decode_labels": "whole_configs",
    "decode_layout_index": "layout_files",
    "decode_layout_marker": "layout_files",
    "decode_links": "links",
    "decode_names": "exchange",
    "decode_registry_errors": "exchange",
    "decode_repositories": "archive_files",
    "decode_summaries": "summaries",
    "decode_token_answer": "exchange",
    "describe_document": "manifests",
    "encode_archive_metadata": "archive_files",
    "encode_base_layer": "base_layers",
    "encode_document": "manifests",
    "encode_layout_index": "layout_files",
    "encode_layout_marker": "layout_files",
    "encode_summaries": "summaries",
}

__all__ = list(_HOMES)  # a list, made from the one table


def __getattr__(name: str) -> object:
    return load_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return __all__
