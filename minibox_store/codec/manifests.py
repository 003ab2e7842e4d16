"""Manifests, indexes and configs: what they are, and that they are only one thing at a time.

Spec: OCI image-spec 1.1, manifest.md, image-index.md, descriptor.md, config.md.
"""

import attrs

from minibox_store import media_types
from minibox_store.codec.strict import dump, kind_of, load_object, structure
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Document, ImageConfig, Index, Manifest
from minibox_store.errors import InvalidDocument
from minibox_store.limits import DEFAULT_LIMITS
from minibox_store.platforms import Platform


@attrs.frozen(kw_only=True)
class _Rootfs:
    diff_ids: tuple[Digest, ...] = ()


@attrs.frozen(kw_only=True)
class _Config:
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    created: str | None = None
    rootfs: _Rootfs = attrs.field(factory=_Rootfs)


_INDEX_FIELDS = frozenset({"manifests"})
_MANIFEST_FIELDS = frozenset({"config", "layers"})
_SCHEMA_1_FIELDS = frozenset({"fsLayers", "history", "signatures"})


def decode_document(content: bytes, media_type: str, document: str = "manifest") -> Document:
    """Return the manifest or index that ``content`` is; the bytes are not trusted.

    Args:
        content: the bytes as received, at most 4 MiB.
        media_type: what the descriptor, or the Content-Type, says of them. It must agree with the document.
        document: how errors name these bytes.

    Raises:
        InvalidDocument: when they are none, are both at once (CVE-2021-41190), or are of another type.

    Spec: OCI image-spec 1.1, manifest.md and image-index.md; descriptor.md, "mediaType".
    """
    value = load_object(content, document, DEFAULT_LIMITS.document_bytes)
    actual = _media_type_of(value, document)
    if actual is None:
        actual = media_types.OCI_INDEX if "manifests" in value else media_types.OCI_MANIFEST
    if media_type != actual:
        raise InvalidDocument("mediaType", f"it is {actual}, but was announced as {media_type}", document)
    cls: type[Document] = Index if media_types.is_index(media_type) else Manifest
    return structure({**value, "mediaType": media_type}, cls, document)


def describe_document(content: bytes, document: str = "manifest") -> Descriptor:
    """Return a descriptor of a manifest or index that came without one, its type read from the document itself.

    Raises:
        InvalidDocument: when the bytes are neither, or both.
    """
    value = load_object(content, document, DEFAULT_LIMITS.document_bytes)
    media_type = _media_type_of(value, document)
    if media_type is None:
        media_type = media_types.OCI_INDEX if "manifests" in value else media_types.OCI_MANIFEST
    return Descriptor(media_type=media_type, digest=Digest.of(content), size_bytes=len(content))


def _media_type_of(value: dict[str, object], document: str) -> str | None:
    """Return the type a document gives itself, after checking that its fields are of one kind alone."""
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
        return None
    if type(media_type) is not str:
        raise InvalidDocument("mediaType", f"expected a string, got {kind_of(media_type)}", document)
    if not media_types.is_document(media_type):
        raise InvalidDocument("mediaType", f"{media_type!r} is no manifest or index", document)
    if media_types.is_index(media_type) != is_index:
        raise InvalidDocument("mediaType", f"it is {media_type}, but has other fields", document)
    return media_type


def decode_config(content: bytes, document: str = "config") -> ImageConfig:
    """Return what an image's configuration says of platform, age and layers. The bytes are not trusted.

    Raises:
        InvalidDocument: when they are no JSON object, or a field has another type.

    Spec: OCI image-spec 1.1, config.md, "Properties".
    """
    value = structure(load_object(content, document, DEFAULT_LIMITS.document_bytes), _Config, document)
    platform = None
    if value.os and value.architecture:
        platform = Platform(os=value.os, architecture=value.architecture, variant=value.variant or None)
    return ImageConfig(platform=platform, created=value.created, diff_ids=value.rootfs.diff_ids)


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
        value["urls"] = list(descriptor.urls)
    return value


def platform_object(platform: Platform) -> dict[str, object]:
    """Return a platform as the JSON object that it is in a document."""
    value: dict[str, object] = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant is not None:
        value["variant"] = platform.variant
    if platform.os_version is not None:
        value["os.version"] = platform.os_version
    if platform.os_features:
        value["os.features"] = list(platform.os_features)
    return value


def encode_document(document: Document) -> bytes:
    """Return the bytes of a manifest or index that is made here. Equal documents give equal bytes."""
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
    return dump(value)
