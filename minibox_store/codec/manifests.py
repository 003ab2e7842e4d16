"""Manifests and indexes: what they are, and that they are only one thing at a time.

Spec: OCI image-spec 1.1, manifest.md, image-index.md, descriptor.md.
"""

import attrs

from minibox_store import media_types
from minibox_store.codec.strict import (
    dump,
    folded_keys,
    kind_of,
    load_object,
    spelled_wrongly,
    structure,
    wrong_spelling,
)
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Document, Index, Manifest
from minibox_store.errors import InvalidDocument
from minibox_store.kinds import each_of
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.platforms import Platform

_INDEX_FIELDS = frozenset({"manifests"})
_MANIFEST_FIELDS = frozenset({"config", "layers"})
_SCHEMA_1_FIELDS = frozenset({"fsLayers", "history", "signatures"})
_TELLING = folded_keys({"schemaVersion", *_INDEX_FIELDS, *_MANIFEST_FIELDS, *_SCHEMA_1_FIELDS})


def decode_document(
    content: bytes, media_type: str, document: str = "manifest", *, limits: Limits = DEFAULT_LIMITS
) -> Document:
    """Return the manifest or index that ``content`` is; the bytes are not trusted.

    Args:
        content: the bytes as received.
        media_type: what the descriptor, or the Content-Type, says of them. It must agree with the document.
        document: how errors name these bytes.
        limits: how many bytes there may be.

    Raises:
        InvalidDocument: when they are none, are both at once (CVE-2021-41190), or are of another type.

    Spec: OCI image-spec 1.1, manifest.md and image-index.md; descriptor.md, "mediaType".
    """
    return structure_document(load_document(content, media_type, document, limits), document)


def load_document(content: bytes, media_type: str, document: str, limits: Limits) -> dict[str, object]:
    """Return the JSON object that a document is, its type always in it; raises as :func:`decode_document`.

    Of its fields nothing is known yet but that they are not those of two kinds.
    """
    value = load_object(content, document, limits.document_bytes, most_values=limits.document_values)
    actual = _media_type_of(value, document)
    if media_type != actual:
        raise InvalidDocument("mediaType", f"it is {actual}, but was announced as {media_type}", document)
    return {**value, "mediaType": media_type}


def structure_document(value: dict[str, object], document: str) -> Document:
    """Return the manifest or index that a loaded object is; raises InvalidDocument where a field is wrong."""
    cls: type[Document] = Index if value["mediaType"] in media_types.INDEXES else Manifest
    return structure(value, cls, document)


def describe_document(content: bytes, document: str = "manifest", *, limits: Limits = DEFAULT_LIMITS) -> Descriptor:
    """Return a descriptor of a manifest or index that came without one, its type read from the document itself.

    Raises:
        InvalidDocument: when the bytes are neither, or both.
    """
    value = load_object(content, document, limits.document_bytes, most_values=limits.document_values)
    media_type = _media_type_of(value, document)
    return Descriptor(media_type=media_type, digest=Digest.of(content), size_bytes=len(content))


def _media_type_of(value: dict[str, object], document: str) -> str:
    """Return the type of a document, after checking that its fields are of one kind alone.

    It is the one that the document gives itself; else OCI's for what its fields make it.
    """
    for key in value:
        if (right := spelled_wrongly(key, _TELLING)) is not None:
            raise InvalidDocument("", wrong_spelling(right), document)
    version = value.get("schemaVersion")
    if version == 1 and type(version) is int:
        raise InvalidDocument("schemaVersion", "Docker schema 1 manifests are not supported", document)
    if version != 2 or type(version) is not int:
        raise InvalidDocument("schemaVersion", "it must be the number 2", document)
    fields = value.keys()
    is_index = not _INDEX_FIELDS.isdisjoint(fields)
    is_manifest = not _MANIFEST_FIELDS.isdisjoint(fields)
    if is_index and is_manifest:
        raise InvalidDocument("", "it is both an index and a manifest", document)
    if not _SCHEMA_1_FIELDS.isdisjoint(fields):
        raise InvalidDocument("", "it carries fields of Docker schema 1", document)
    media_type = value.get("mediaType")
    if media_type is None:
        return media_types.OCI_INDEX if is_index else media_types.OCI_MANIFEST
    if type(media_type) is not str:
        raise InvalidDocument("mediaType", f"expected a string, got {kind_of(media_type)}", document)
    if not media_types.is_document(media_type):
        raise InvalidDocument("mediaType", f"{media_type!r} is no manifest or index", document)
    if media_types.is_index(media_type) != is_index:
        raise InvalidDocument("mediaType", f"it is {media_type}, but has other fields", document)
    return media_type


def descriptor_object(descriptor: Descriptor) -> dict[str, object]:
    """Return a descriptor as the JSON object that it is in a document."""
    value: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size_bytes,
    }
    if descriptor.platform is not None:
        value["platform"] = platform_object(descriptor.platform)
    if descriptor.annotations:
        value["annotations"] = dict(sorted(descriptor.annotations.items()))
    if descriptor.artifact_type is not None:
        value["artifactType"] = descriptor.artifact_type
    if descriptor.urls:
        value["urls"] = list(each_of("urls", descriptor.urls, str))
    return value


def platform_object(platform: Platform) -> dict[str, object]:
    """Return a platform as the JSON object that it is in a document."""
    value: dict[str, object] = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant is not None:
        value["variant"] = platform.variant
    if platform.os_version is not None:
        value["os.version"] = platform.os_version
    if platform.os_features:
        value["os.features"] = list(each_of("os_features", platform.os_features, str))
    return value


def encode_document(document: Document) -> bytes:
    """Return the bytes of a manifest or index that is made here. Equal documents give equal bytes.

    Raises:
        InvalidDocument: for a document that nobody could read, such as one with a text for a size.
    """
    value: dict[str, object] = {"schemaVersion": 2, "mediaType": document.media_type}
    if document.artifact_type is not None:
        value["artifactType"] = document.artifact_type
    if isinstance(document, Manifest):
        value["config"] = descriptor_object(document.config)
        value["layers"] = [descriptor_object(layer) for layer in document.layers]
    else:
        value["manifests"] = [descriptor_object(manifest) for manifest in document.manifests]
    if document.subject is not None:
        value["subject"] = descriptor_object(document.subject)
    if document.annotations:
        value["annotations"] = dict(sorted(document.annotations.items()))
    content = dump(value)
    whole = attrs.evolve(DEFAULT_LIMITS, document_bytes=len(content), document_values=len(content))
    decode_document(content, document.media_type, "document", limits=whole)
    return content
