"""Lists of referrers under a tag, where a registry keeps none itself: who refers to an image, kept by who pushes.

A registry that knows of subjects says so when a manifest with one is put there; else the list is read, added to and
put back. Of two who do so at the same time one may be lost: the protocol has nothing against it.

Spec: OCI distribution-spec 1.1, "Pushing Manifests with Subject" and "Referrers Tag Schema".
"""

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document, encode_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Document, Index, Manifest
from minibox_store.errors import InvalidDocument, ManifestUnknown
from minibox_store.graph import read_content
from minibox_store.registry.repository import RegistryRepository

_ALGORITHM_LENGTH = 32
_ENCODED_LENGTH = 64


def referrers_tag(subject: Digest) -> str:
    """Return the tag under which the referrers of a manifest are listed.

    >>> referrers_tag(Digest.parse("sha256:" + "ab" * 32))[:11]
    'sha256-abab'
    """
    return f"{subject.algorithm[:_ALGORITHM_LENGTH]}-{subject.hex[:_ENCODED_LENGTH]}"


def describe_referrer(descriptor: Descriptor, document: Document) -> Descriptor:
    """Return how a manifest that refers to another one stands in a list: by its type, and with its annotations."""
    kind = document.artifact_type
    if kind is None and isinstance(document, Manifest):
        kind = document.config.media_type
    return attrs.evolve(descriptor, artifact_type=kind, annotations=document.annotations, platform=None, urls=())


def read_list(repository: RegistryRepository, subject: Digest) -> Index:
    """Return the referrers of a manifest as they are listed under its tag; none where there is no such tag.

    Raises:
        InvalidDocument: when something else is there.
    """
    tag = referrers_tag(subject)
    try:
        found = repository.resolve(tag)
    except ManifestUnknown:
        return Index(media_type=media_types.OCI_INDEX, manifests=())
    content = read_content(repository, found)
    listed = decode_document(content, found.media_type, tag)
    if not isinstance(listed, Index) or found.media_type != media_types.OCI_INDEX:
        raise InvalidDocument("mediaType", f"{found.media_type} is no list of referrers", tag)
    return listed


def with_referrer(listed: Index, referrer: Descriptor) -> bytes | None:
    """Return the document of a list with one more in it; None where it is there already."""
    if any(each.digest == referrer.digest for each in listed.manifests):
        return None
    return encode_document(attrs.evolve(listed, manifests=(*listed.manifests, referrer)))
