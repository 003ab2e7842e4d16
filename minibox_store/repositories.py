"""Which repository and tag of a registry an image's name is, and which entries of index.json belong to one. Pure.

``app:1`` is tag ``1`` of repository ``app``, and a name without a tag is ``latest``. A name that begins with a
registry is offered as its path without it, and as it is spelled; Docker Hub's official images both with ``library/``
and without. Where several names claim one tag, the nearest claim wins: the very name, the same name without its tag,
another spelling of a Docker Hub reference, and last a name of another registry, the first by the alphabet. Whoever
loses belongs to the repository all the same, and is reached by digest.

What is pushed with a tag gets the name ``repository:tag``; what is pushed by its digest alone an entry without a name,
which says its repository in an annotation.
"""

import enum
from collections.abc import Container, Iterator, Mapping

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutEntry, LayoutIndex
from minibox_store.errors import InvalidReference
from minibox_store.layout_index import (
    REFERRER_ANNOTATION,
    REPOSITORY_ANNOTATION,
    is_referrer,
    name_of,
    names_of,
    with_name,
)
from minibox_store.reference import DOCKER_HUB, Reference, is_tag
from minibox_store.values import Value

_OFFICIAL = "library/"
# A registry whose name is as short as one can be: the limit on the name of an image counts it in.
_REGISTRY = "a.a"


class Claim(enum.IntEnum):
    """How near a name is to a repository and tag; the lowest wins."""

    SAME_TEXT = 0
    WITHOUT_TAG = 1
    SAME_REFERENCE = 2
    OTHER_REGISTRY = 3


@attrs.frozen(repr=False)
class Offer(Value):
    """A repository, and the tag there, under which a name is offered; no tag where the name has only a digest."""

    repository: str
    tag: str | None
    claim: Claim


@attrs.frozen(kw_only=True, repr=False)
class RepositoryEntries(Value):
    """What index.json has of one repository.

    Attributes:
        name: of the repository.
        tags: the entries that claim each tag, the nearest claim first.
        roots: every entry that belongs to it, with a name or without.
    """

    name: str
    tags: Mapping[str, tuple[Descriptor, ...]] = attrs.field(factory=dict)
    roots: tuple[Descriptor, ...] = ()


def offers_of(name: str) -> tuple[Offer, ...]:
    """Return where the image called ``name`` is offered: nowhere, where no repository has such a tag.

    The names of some repositories begin like that of a registry which there cannot be, or are too long behind that of
    Docker Hub: what is pushed to these is theirs alone.

    >>> [(offer.repository, offer.tag) for offer in offers_of("alpine:3")]
    [('alpine', '3'), ('library/alpine', '3')]
    >>> [(offer.repository, offer.tag) for offer in offers_of("quay.io/org/app")]
    [('org/app', 'latest'), ('quay.io/org/app', 'latest')]
    >>> [(offer.repository, offer.tag) for offer in offers_of("my_team.x/app:1")]
    [('my_team.x/app', '1')]
    """
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return _own_offer(name)
    repositories = [reference.repository]
    short = reference.repository.removeprefix(_OFFICIAL)
    if reference.domain == DOCKER_HUB and short != reference.repository and "/" not in short:
        repositories.insert(0, short)
    spelled = name.partition("@")[0].removesuffix(f":{reference.tag}")
    if spelled not in repositories and is_repository_name(spelled):
        repositories.append(spelled)
    return tuple(Offer(each, reference.tag, _claim(name, reference, each)) for each in repositories)


def _own_offer(name: str) -> tuple[Offer, ...]:
    try:
        reference = Reference.parse(f"{_REGISTRY}/{name}")
    except InvalidReference:
        return ()
    return (Offer(reference.repository, reference.tag, _claim(name, reference, reference.repository)),)


def is_repository_name(text: str) -> bool:
    """Whether ``text``, which is not trusted, may be the name of a repository.

    >>> is_repository_name("team/app"), is_repository_name("Team/../app")
    (True, False)
    """
    try:
        check_repository_name(text)
    except InvalidReference:
        return False
    return True


def check_repository_name(text: str, tag: str | None = None) -> str:
    """Return ``text`` when it may be the name of a repository, and of one that has such a tag; neither is trusted.

    Raises:
        InvalidReference: when not.
    """
    if not isinstance(text, str):
        raise InvalidReference(repr(text), "it is no text")
    try:
        Reference(domain=_REGISTRY, repository=text, tag="latest" if tag is None else tag)
    except InvalidReference as error:  # which names a registry that nobody has named
        raise InvalidReference(text if tag is None else f"{text}:{tag}", error.problem) from None
    return text


def repository_names(index: LayoutIndex) -> tuple[str, ...]:
    """Return the name of each repository that has an entry, sorted."""
    found = {offer.repository for name, _ in names_of(index) for offer in offers_of(name)}
    pushed = (entry.descriptor.annotations.get(REPOSITORY_ANNOTATION, "") for entry in index.entries)
    return tuple(sorted(found | set(filter(is_repository_name, pushed))))


def find_repository(index: LayoutIndex, name: str) -> RepositoryEntries:
    """Return what ``index`` has of a repository, with nothing in it where that is nothing."""
    claims: dict[str, list[tuple[Claim, str, Descriptor]]] = {}
    roots: dict[Descriptor, None] = {}
    # A name ends as each repository does that it is offered in: of very many names only those few are parsed.
    last = name.rpartition("/")[2]
    # And of those that are the same but for a plain tag one is: where it is offered does not depend on its tag.
    known: dict[str, list[Offer]] = {}
    for text, descriptor in names_of(index):
        if last not in text:
            continue
        head, colon, tag = text.rpartition(":")
        is_plain = bool(colon) and "@" not in text and is_tag(tag)
        offers = known.get(head) if is_plain else None
        if offers is None:
            offers = [offer for offer in offers_of(text) if offer.repository == name]
            if is_plain:
                known[head] = offers
        for offer in offers:
            roots[descriptor] = None
            shown = tag if is_plain else offer.tag
            if shown is not None:
                claims.setdefault(shown, []).append((offer.claim, text, descriptor))
    roots.update(dict.fromkeys(_pushed_to(index, name)))
    tags = {tag: tuple(each[2] for each in sorted(found, key=lambda each: each[:2])) for tag, found in claims.items()}
    return RepositoryEntries(name=name, tags=tags, roots=tuple(roots))


def with_pushed(
    index: LayoutIndex,
    *,
    repository: str,
    descriptor: Descriptor,
    tag: str | None,
    is_kept_by_subject: bool,
    reached: Container[Digest],
    earlier: Descriptor | None = None,
) -> LayoutIndex:
    """Return the index with a manifest or index that was pushed to a repository.

    Args:
        index: as it is.
        repository: the name of the repository.
        descriptor: of what was pushed.
        tag: which stands for it from now on; None where it was pushed by its digest.
        is_kept_by_subject: whether what it refers to is there, so that it may be kept as long as that.
        reached: the digests of all that it reaches: entries without a name of the same repository that were there for
            these alone are not needed any more.
        earlier: what the tag stands for now, if that is to stay, by its digest.
    """
    plain = Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size_bytes=descriptor.size_bytes)
    kept = tuple(
        entry
        for entry in index.entries
        if not (
            _is_pushed(entry.descriptor, repository)
            and not is_referrer(entry.descriptor)
            and entry.descriptor.digest in reached
            and (tag is not None or entry.descriptor.digest != plain.digest)
        )
    )
    index = attrs.evolve(index, entries=kept)
    if tag is None:
        said = {REFERRER_ANNOTATION: "true"} if is_kept_by_subject else {}
        return _with_nameless(index, repository, plain, said)
    index = with_name(index, f"{repository}:{tag}", plain)
    return index if earlier is None or earlier.digest in reached else _with_nameless(index, repository, earlier, {})


def _with_nameless(index: LayoutIndex, repository: str, descriptor: Descriptor, said: Mapping[str, str]) -> LayoutIndex:
    """Return the index in which an entry of a repository stands for this, with a name or without.

    One that is kept for what it refers to alone does so only where this is to be kept like that: else it would go with
    what may be gone already.
    """
    alike = [root for root in find_repository(index, repository).roots if root.digest == descriptor.digest]
    if any(REFERRER_ANNOTATION in said or not is_referrer(root) for root in alike):
        return index
    new = Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size_bytes=descriptor.size_bytes,
        annotations={REPOSITORY_ANNOTATION: repository, **said},
    )
    kept = (entry for entry in index.entries if entry.descriptor not in alike)
    return attrs.evolve(index, entries=(*kept, LayoutEntry(descriptor=new)))


def without_entries(index: LayoutIndex, taken: Container[Descriptor], repository: str) -> LayoutIndex:
    """Return the index without these entries of a repository: its names, and its own without a name."""
    names = {name for name, descriptor in names_of(index) if descriptor in taken}
    entries = tuple(
        entry
        for entry in index.entries
        if not (
            name_of(entry.descriptor) in names
            or (_is_pushed(entry.descriptor, repository) and entry.descriptor in taken)
        )
    )
    return attrs.evolve(index, entries=entries)


def _pushed_to(index: LayoutIndex, repository: str) -> Iterator[Descriptor]:
    return (entry.descriptor for entry in index.entries if _is_pushed(entry.descriptor, repository))


def _is_pushed(descriptor: Descriptor, repository: str) -> bool:
    """Whether an entry has no name, and says that it belongs to a repository."""
    return descriptor.annotations.get(REPOSITORY_ANNOTATION) == repository and name_of(descriptor) is None


def _claim(name: str, reference: Reference, repository: str) -> Claim:
    if name == f"{repository}:{reference.tag}":
        return Claim.SAME_TEXT
    if name == repository:
        return Claim.WITHOUT_TAG
    return Claim.SAME_REFERENCE if reference.domain == DOCKER_HUB else Claim.OTHER_REGISTRY
