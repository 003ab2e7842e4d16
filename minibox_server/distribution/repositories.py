"""Which repository and tag of ``/v2/`` an image's name is, so that other tools find what this store holds.

``app:1`` is tag ``1`` of repository ``app``, and a name without a tag is ``latest``. A name that begins with a
registry is offered as its path without it; Docker Hub's official images both with ``library/`` and without. Where
several names claim one tag, the nearest claim wins: the very name, the same name without its tag, another spelling of
a Docker Hub reference, and last a name of another registry, the first by the alphabet. Whoever loses belongs to the
repository all the same, and is reached by digest.
"""

import enum
from collections.abc import Iterable, Mapping

import attrs

from minibox_store import Digest, Image, InvalidReference, Reference

_DOCKER_HUB = "docker.io"
_OFFICIAL = "library/"


class Claim(enum.IntEnum):
    """How near a name is to a repository and tag; the lowest wins."""

    SAME_TEXT = 0
    WITHOUT_TAG = 1
    SAME_REFERENCE = 2
    OTHER_REGISTRY = 3


@attrs.frozen
class Offer:
    """A repository, and the tag there, under which a name is offered; no tag where the name has only a digest."""

    repository: str
    tag: str | None
    claim: Claim


@attrs.frozen(kw_only=True)
class Repository:
    """One repository: its tags, and every image that belongs to it."""

    name: str
    tags: Mapping[str, Image]
    images: tuple[Image, ...]


def offers_of(name: str) -> tuple[Offer, ...]:
    """Return where the image called ``name`` is offered: nowhere, where the name is no reference.

    >>> [(offer.repository, offer.tag) for offer in offers_of("alpine:3")]
    [('alpine', '3'), ('library/alpine', '3')]
    >>> [(offer.repository, offer.tag) for offer in offers_of("quay.io/org/app")]
    [('org/app', 'latest')]
    """
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return ()
    repositories = [reference.repository]
    short = reference.repository.removeprefix(_OFFICIAL)
    if reference.domain == _DOCKER_HUB and short != reference.repository and "/" not in short:
        repositories.insert(0, short)
    return tuple(Offer(each, reference.tag, _claim(name, reference, each)) for each in repositories)


def is_repository_name(text: str) -> bool:
    """Whether ``text``, which is not trusted, may be the name of a repository.

    >>> is_repository_name("team/app"), is_repository_name("Team/../app")
    (True, False)
    """
    try:
        # Of this registry, whose name is as short as one can be, for the limit on a name counts it in.
        Reference(domain="a.a", repository=text, tag="latest")
    except InvalidReference:
        return False
    return True


def build_catalogue(images: Iterable[Image]) -> Mapping[str, Repository]:
    """Return the repositories that ``images`` make up, by name."""
    members: dict[str, dict[str, Image]] = {}
    claims: dict[tuple[str, str], tuple[Claim, str]] = {}
    winners: dict[str, dict[str, Image]] = {}
    for image in sorted(images, key=lambda each: each.name):
        for offer in offers_of(image.name):
            members.setdefault(offer.repository, {})[image.name] = image
            if offer.tag is None:
                continue
            nearest = claims.get((offer.repository, offer.tag))
            if nearest is None or (offer.claim, image.name) < nearest:
                claims[offer.repository, offer.tag] = (offer.claim, image.name)
                winners.setdefault(offer.repository, {})[offer.tag] = image
    return {
        name: Repository(name=name, tags=winners.get(name, {}), images=tuple(images_of.values()))
        for name, images_of in members.items()
    }


def parse_digest(text: str) -> Digest | None:
    """Return the digest that ``text`` is, None where it has not even the form of one: a tag has no colon.

    Raises:
        InvalidDigest: when it has a colon and is no digest all the same.
    """
    return Digest.parse(text) if ":" in text else None


def _claim(name: str, reference: Reference, repository: str) -> Claim:
    if name == f"{repository}:{reference.tag}":
        return Claim.SAME_TEXT
    if name == repository:
        return Claim.WITHOUT_TAG
    return Claim.SAME_REFERENCE if reference.domain == _DOCKER_HUB else Claim.OTHER_REGISTRY
