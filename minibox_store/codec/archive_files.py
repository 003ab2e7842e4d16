"""What an archive says in files of its own that it holds: minibox's ``meta.json``, and docker's two.

Spec: Docker Image Specification 1.2, "Combined Image JSON + Filesystem Changeset Format".
"""

import attrs

from minibox_store.codec.strict import (
    dump,
    folded_keys,
    kind_of,
    load_array,
    load_object,
    spelled_wrongly,
    structure,
    wrong_spelling,
)
from minibox_store.digest import Digest
from minibox_store.documents import LayoutIndex
from minibox_store.errors import InvalidDocument
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.values import Value

_MANIFEST_JSON = "manifest.json"
_REPOSITORIES = "repositories"


_INDEX_KEYS = folded_keys(("schemaVersion", "mediaType", "manifests", "annotations"))


@attrs.frozen(kw_only=True, repr=False)
class ArchiveMetadata(Value):
    """``meta.json`` of a minibox archive: the image's name, and the digest of its manifest."""

    image: str
    manifest_digest: Digest


@attrs.frozen(kw_only=True, repr=False)
class DockerImage(Value):
    """One entry of ``manifest.json``: which members of the archive are an image. Their names are texts, not trusted.

    Attributes:
        config_member: its config.
        layer_members: its layers, in the order in which they are applied.
        repo_tags: what it is called; none where it has no name.
    """

    config_member: str
    layer_members: tuple[str, ...]
    repo_tags: tuple[str, ...] = ()


def decode_archive_metadata(content: bytes, *, limits: Limits = DEFAULT_LIMITS) -> ArchiveMetadata:
    """Return ``meta.json`` of a minibox archive; its digest may lack the algorithm, which is sha256 then.

    Raises:
        InvalidDocument: when it is none.
    """
    value = load_object(content, "meta.json", limits.archive_metadata_bytes, most_values=limits.document_values)
    digest = value.get("manifest_digest")
    if type(digest) is str and ":" not in digest:
        value["manifest_digest"] = f"sha256:{digest}"
    return structure(value, ArchiveMetadata, "meta.json")


def encode_archive_metadata(metadata: ArchiveMetadata) -> bytes:
    """Return the bytes of ``meta.json``. Equal values give equal bytes."""
    return dump({"image": metadata.image, "manifest_digest": str(metadata.manifest_digest)})


def decode_docker_images(content: bytes, *, limits: Limits = DEFAULT_LIMITS) -> tuple[DockerImage, ...]:
    """Return the images that docker's ``manifest.json`` names; what else it says of them is ignored.

    Raises:
        InvalidDocument: when it is none.

    >>> decode_docker_images(b'[{"Config": "x.json", "RepoTags": null, "Layers": ["x/layer.tar"]}]')[0].layer_members
    ('x/layer.tar',)
    """
    value = load_array(content, _MANIFEST_JSON, limits.document_bytes, most_values=limits.document_values)
    return structure(value, tuple[DockerImage, ...], _MANIFEST_JSON)


def check_index_spelling(index: LayoutIndex) -> None:
    """Return if no key of an archive's index is one that counts in other letters; its entries were decoded so.

    Raises:
        InvalidDocument: when one is.
    """
    for key in index.raw or {}:
        if (right := spelled_wrongly(key, _INDEX_KEYS)) is not None:
            raise InvalidDocument("", wrong_spelling(right), "index.json")


def decode_repositories(content: bytes, *, limits: Limits = DEFAULT_LIMITS) -> dict[str, str]:
    """Return for each name, ``repository:tag``, the identifier of a layer that docker's ``repositories`` gives it.

    Raises:
        InvalidDocument: when it is none.

    >>> decode_repositories(b'{"alpine": {"3.20": "00ff"}}')
    {'alpine:3.20': '00ff'}
    """
    found: dict[str, str] = {}
    value = load_object(content, _REPOSITORIES, limits.document_bytes, most_values=limits.document_values)
    for repository, tags in value.items():
        if type(tags) is not dict:
            raise InvalidDocument(repository[:80], f"expected an object, got {kind_of(tags)}", _REPOSITORIES)
        for tag, identifier in tags.items():
            name = f"{repository}:{tag}"
            if type(identifier) is not str:
                raise InvalidDocument(name[:80], f"expected a string, got {kind_of(identifier)}", _REPOSITORIES)
            if name in found:
                raise InvalidDocument(name[:80], "it stands twice", _REPOSITORIES)
            found[name] = identifier
    return found
