"""The tables of contents of archives as they are written, and lists of digests, which travel beside archives.

Spec: OCI image-spec 1.1, image-layout.md; Docker Image Specification 1.2, "Combined Image JSON + Filesystem Changeset
Format", for manifest.json and repositories.
"""

from collections.abc import Iterable, Mapping

from minibox_store.codec.archive_files import DockerImage
from minibox_store.codec.strict import dump, load_array
from minibox_store.digest import Digest
from minibox_store.errors import InvalidArgument, InvalidDigest, InvalidDocument
from minibox_store.limits import DEFAULT_LIMITS, Limits

_DIGESTS = "list of digests"


def encode_docker_images(images: Iterable[DockerImage]) -> bytes:
    """Return the bytes of manifest.json. Equal values give equal bytes."""
    return dump(
        [
            {"Config": each.config_member, "RepoTags": list(each.repo_tags) or None, "Layers": list(each.layer_members)}
            for each in images
        ]
    )


def encode_repositories(layers: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return the bytes of repositories: of each repository, and each tag of it, the id of the last layer."""
    return dump({repository: dict(sorted(tags.items())) for repository, tags in sorted(layers.items())})


def encode_digests(digests: Iterable[Digest]) -> bytes:
    """Return a list of digests, sorted, each once."""
    return dump(sorted({str(digest) for digest in digests}))


def parse_digests(content: bytes, *, limits: Limits = DEFAULT_LIMITS) -> frozenset[Digest]:
    """Return the digests that :meth:`minibox_store.Store.have` lists; the bytes are not trusted.

    Args:
        content: a JSON array of texts.
        limits: of which ``index_bytes`` counts.

    Raises:
        InvalidDocument: when it is anything else, or larger.
        InvalidArgument: for a text in the place of its bytes.

    >>> [each.algorithm for each in parse_digests(b'["sha256:' + b"ab" * 32 + b'"]')]
    ['sha256']
    """
    if isinstance(content, str):
        raise InvalidArgument("content", content, "it is a text, and no bytes")
    values = load_array(content, _DIGESTS, limits.index_bytes)
    return frozenset([_digest(value, position) for position, value in enumerate(values)])


def _digest(value: object, position: int) -> Digest:
    if type(value) is not str:
        raise InvalidDocument(f"[{position}]", "it is no text", _DIGESTS)
    try:
        return Digest.parse(value)
    except InvalidDigest as error:
        raise InvalidDocument(f"[{position}]", f"it is no digest: {error.problem}", _DIGESTS) from None
