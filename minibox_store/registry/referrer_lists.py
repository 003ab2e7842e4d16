"""Lists of referrers: those that a registry makes, and where it makes none those under a tag, kept by who pushes.

Nothing of them is trusted. Of a link to the next page only path and query are used; a list has an end, whatever the
registry says.

A registry that knows of subjects says so when a manifest with one is put there; else the list is read, added to and
put back. Of two who do so at the same time one may be lost: the protocol has nothing against it.

Spec: OCI distribution-spec 1.1, "Listing Referrers", "Pushing Manifests with Subject" and "Referrers Tag Schema".
"""

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document, encode_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Index, Referrer
from minibox_store.errors import InvalidDocument, ManifestUnknown, RegistryError
from minibox_store.graph import read_content
from minibox_store.limits import Limits
from minibox_store.protocols import ImageSource
from minibox_store.registry.catalog import next_target
from minibox_store.registry.transport import Request, Transport
from minibox_store.registry.urls import Url

_ALGORITHM_LENGTH = 32
_ENCODED_LENGTH = 64
# How registries answer that know no such list: those that came before it do not know the path.
_NO_LIST = frozenset({400, 404, 405, 406, 501})
_MOST_PAGES = 256
_MOST_LISTED = 10_000
# Of all pages together; what is listed is kept with its annotations.
_MOST_BYTES = 16 * 1024 * 1024


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
    left_bytes = _MOST_BYTES
    while target not in seen and len(seen) < _MOST_PAGES and len(found) <= _MOST_LISTED and left_bytes > 0:
        seen.add(target)
        # GHCR has no lists, and sees other, to pages for people that are soon asked for too often.
        request = Request(target=target, headers={"Accept": media_types.OCI_INDEX}, accepts=(200, 303))
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
        left_bytes -= len(reply.content)
        following = next_target(Url(transport.registry, target), reply.link)
        # A last page with nothing on it may lead to where it is, or to where the list was.
        if following is None or (not page.manifests and following in seen):
            return tuple(found)
        target = following
    shown, problem = Url(transport.registry, target).shown, "its list of referrers does not come to an end"
    raise RegistryError("GET", shown, None, (), problem)


def referrers_tag(subject: Digest) -> str:
    """Return the tag under which the referrers of a manifest are listed.

    >>> referrers_tag(Digest.parse("sha256:" + "ab" * 32))[:11]
    'sha256-abab'
    """
    return f"{subject.algorithm[:_ALGORITHM_LENGTH]}-{subject.hex[:_ENCODED_LENGTH]}"


def read_list(repository: ImageSource, subject: Digest, limits: Limits) -> Index | None:
    """Return the referrers of a manifest as they are listed under its tag; none where there is no such tag.

    None is what stands for the manifest itself: GitLab takes such a tag for the digest that it is spelled like.

    Raises:
        InvalidDocument: when something else is there.
    """
    tag = referrers_tag(subject)
    try:
        found = repository.resolve(tag)
    except ManifestUnknown:
        return Index(media_type=media_types.OCI_INDEX, manifests=())
    if found.digest == subject:
        return None
    content = read_content(repository, found, limits)
    listed = decode_document(content, found.media_type, tag, limits=limits)
    if not isinstance(listed, Index) or found.media_type != media_types.OCI_INDEX:
        raise InvalidDocument("mediaType", f"{found.media_type} is no list of referrers", tag)
    return listed


def with_referrer(listed: Index, referrer: Referrer) -> bytes | None:
    """Return the document of a list with one more in it, by its type and its annotations; None where it is in it."""
    described = attrs.evolve(referrer.descriptor, annotations=referrer.annotations)
    if any(each.digest == described.digest for each in listed.manifests):
        return None
    return encode_document(attrs.evolve(listed, manifests=(*listed.manifests, described)))
