"""Lists of what refers to a manifest: those that a registry makes, and where it makes none those under a tag.

Nothing of them is trusted. Of a link to the next page only path and query are used; a list has an end, whatever the
registry says.

Spec: OCI distribution-spec 1.1, "Listing Referrers", "Referrers Tag Schema" and "Pushing Manifests with Subject".
"""

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document, encode_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Document, Index, Referrer
from minibox_store.errors import InvalidDocument, ManifestUnknown, RegistryError
from minibox_store.graph import read_content
from minibox_store.limits import Limits
from minibox_store.protocols import ImageSource
from minibox_store.registry.catalog import next_target
from minibox_store.registry.transport import Request, Transport
from minibox_store.registry.urls import Url

# How registries answer that know no such list: those that came before it do not know the path.
_NO_LIST = frozenset({400, 404, 405, 406, 501})
_MOST_PAGES = 256
_MOST_LISTED = 10_000


def list_referrers(
    transport: Transport, repository: str, subject: Digest, limits: Limits
) -> tuple[Descriptor, ...] | None:
    """Return what a registry lists as referring to a manifest or index; None where it makes no such lists.

    Raises:
        InvalidDocument: when what comes is no index, or larger than 4 MiB.
        RegistryError: when the registry refuses, fails, or never ends.
    """
    target = f"/v2/{repository}/referrers/{subject}"
    found: list[Descriptor] = []
    seen = set[str]()
    while target not in seen and len(seen) < _MOST_PAGES and len(found) <= _MOST_LISTED:
        seen.add(target)
        request = Request(target=target, headers={"Accept": media_types.OCI_INDEX})
        try:
            reply = transport.read(request, limits.document_bytes)
        except RegistryError as refused:
            if len(seen) > 1 or refused.status not in _NO_LIST:
                raise
            return None
        if media_types.essence(reply.content_type or "") != media_types.OCI_INDEX and len(seen) == 1:
            return None  # a page for people, for instance
        shown = f"what refers to {subject}"
        if len(reply.content) > limits.document_bytes:
            raise InvalidDocument("", f"it is larger than {limits.document_bytes} bytes", shown)
        page = decode_document(reply.content, media_types.OCI_INDEX, shown, limits=limits)
        assert isinstance(page, Index)
        found += page.manifests
        following = next_target(Url(transport.registry, target), reply.link)
        # A page with nothing on it leads nowhere, whatever it says.
        if following is None or not page.manifests:
            return tuple(found)
        target = following
    shown, problem = Url(transport.registry, target).shown, "its list of referrers does not come to an end"
    raise RegistryError("GET", shown, None, (), problem)


def referrers_tag(subject: Digest) -> str:
    """Return the tag under which what refers to a manifest is listed, where the registry makes no such lists.

    >>> referrers_tag(Digest.of(b""))
    'sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """
    return f"{subject.algorithm}-{subject.hex[:64]}"


def read_tagged_list(source: ImageSource, subject: Digest, limits: Limits) -> Document | None:
    """Return what stands under the tag of a list; None where nothing does.

    Raises:
        ContentMismatch, InvalidDocument, RegistryError: as a repository's ``resolve``.
    """
    try:
        found = source.resolve(referrers_tag(subject))
    except ManifestUnknown:
        return None
    content = read_content(source, found, limits)
    return decode_document(content, found.media_type, str(found.digest), limits=limits)


def listed_in(document: Document | None) -> tuple[Descriptor, ...]:
    """Return what a list under a tag has; what is no list has nothing."""
    return document.manifests if isinstance(document, Index) and document.media_type == media_types.OCI_INDEX else ()


def with_listed(document: Document | None, referrer: Referrer) -> bytes | None:
    """Return the list with one more referrer; None where it has that.

    Raises:
        InvalidDocument: when what stands there is no list, which is not for us to replace.
    """
    if document is None:
        document = Index(media_type=media_types.OCI_INDEX, manifests=())
    if not isinstance(document, Index) or document.media_type != media_types.OCI_INDEX:
        problem = "it is no image index, and so no list of referrers"
        raise InvalidDocument("mediaType", problem, referrers_tag(referrer.subject))
    if any(each.digest == referrer.descriptor.digest for each in document.manifests):
        return None
    entry = attrs.evolve(referrer.descriptor, artifact_type=referrer.artifact_type, annotations=referrer.annotations)
    return encode_document(attrs.evolve(document, manifests=(*document.manifests, entry)))
