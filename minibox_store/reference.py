"""References: how people write which image they mean, and the names that images have in a store.

The grammar is that of the distribution project, with Docker Hub's defaults. In it, from the outside in::

    reference     := name [ ":" tag ] [ "@" digest ]
    name          := [ domain "/" ] path                       at most 255 characters with the domain
    domain        := host [ ":" port ]
    host          := domain-name | "[" IPv6 address "]"        an IPv4 address is a domain-name; no zone identifiers
    domain-name   := domain-part *( "." domain-part )
    domain-part   := letters, digits and hyphens of either case, with no hyphen at its ends
    port          := 1*digit
    path          := component *( "/" component )
    component     := alphanumeric *( separator alphanumeric )
    alphanumeric  := 1*( lower-case letter | digit )
    separator     := "." | "_" | "__" | 1*"-"
    tag           := ( letter | digit | "_" ) *127( letter | digit | "_" | "." | "-" )
    digest        := what minibox_store.digest takes

A domain and a first component look alike. So what stands before the first slash is a domain only when it has a
``.``, a ``:`` or an upper-case letter, or is ``localhost``; everything else lies on Docker Hub.

Spec: distribution/reference 0.6, reference.go, regexp.go and normalize.go; OCI distribution-spec 1.1, section
"Pulling manifests".
"""

import re

import attrs

from minibox_store.digest import Digest, check_digest
from minibox_store.errors import InvalidDigest, InvalidReference
from minibox_store.sentences import without_user
from minibox_store.values import Value

DOCKER_HUB = "docker.io"
# Where its API is; as a domain of references it is a registry like any other.
DOCKER_HUB_API = "registry-1.docker.io"
DEFAULT_TAG = "latest"

_DOCKER_HUB_OLD = "index.docker.io"
_OFFICIAL = "library"

_NAME_LENGTH = 255
_IMAGE_NAME_LENGTH = 512
# More than the longest name, tag and digest together: what is longer is refused before anything looks at it.
_TEXT_LENGTH = 1024
_SHOWN_LENGTH = 80

# Separators and alphanumerics share no character, so a text matches in one way or in none: no input makes these slow.
_DOMAIN = re.compile(
    r"""
    (?: [A-Za-z0-9]+ (?: -+ [A-Za-z0-9]+ )*                # domain-part
        (?: \. [A-Za-z0-9]+ (?: -+ [A-Za-z0-9]+ )* )*      # "." domain-part
      | \[ [A-Fa-f0-9:]+ \]                                # "[" IPv6 address "]"
    )
    (?: : [0-9]+ )?                                        # ":" port
    """,
    re.VERBOSE,
)
_COMPONENT = re.compile(r"[a-z0-9]+ (?: (?: \. | __? | -+ ) [a-z0-9]+ )*", re.VERBOSE)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_VISIBLE = re.compile(r"[!-~]+")
_IMAGE_NAME_START = re.compile(r"[A-Za-z0-9\[]")


@attrs.frozen(kw_only=True, repr=False)
class Reference(Value):
    """One image of one repository of one registry, by tag, by digest, or by both (then the digest decides).

    ``repository`` is the path without the domain. One that exists is well formed and canonical, so that
    ``Reference.parse(str(reference)) == reference``, and the same for :meth:`familiar`.

    Raises:
        InvalidReference: on construction, when a field breaks the grammar or is not in its canonical spelling, or
            when there is neither a tag nor a digest.
        InvalidArgument: on construction, for a digest that is none, such as the text of one.
    """

    domain: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __attrs_post_init__(self) -> None:
        if self.digest is not None:
            check_digest(self.digest)
        problem = (
            _problem_of_name(self.domain, self.repository)
            or _problem_of_canonical_name(self.domain, self.repository)
            or _problem_of_tag(self.tag, has_digest=self.digest is not None)
        )
        if problem is not None:
            raise InvalidReference(_shown(str(self)), problem)

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Return the reference that ``text`` spells, with Docker Hub's defaults; the text is not trusted.

        The tag is ``latest`` where the text has neither tag nor digest. Takes time linear in the text's length.

        Raises:
            InvalidReference: when the text breaks the grammar, or is 64 hexadecimal digits, which name no repository.

        >>> str(Reference.parse("alpine"))
        'docker.io/library/alpine:latest'
        >>> Reference.parse("localhost:5000/app").domain
        'localhost:5000'
        """
        if not isinstance(text, str):
            raise InvalidReference(repr(text), "it is no text")
        if len(text) > _TEXT_LENGTH:
            raise InvalidReference(_shown(without_user(text)), f"it is longer than {_TEXT_LENGTH} characters")
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(text, "64 hexadecimal digits are an identifier, and name no repository")
        if "://" in text:
            raise InvalidReference(without_user(text), "it is a URL; leave out the scheme")
        whole_name, at, digest_text = text.partition("@")
        name, tag = _split_tag(whole_name)
        domain, repository = _split_domain(name)
        try:
            digest = Digest.parse(digest_text) if at else None
            default_tag = DEFAULT_TAG if digest is None else None
            return cls(domain=domain, repository=repository, tag=default_tag if tag is None else tag, digest=digest)
        except InvalidDigest as error:
            raise InvalidReference(text, f"its digest is invalid: {error.problem}") from None
        except InvalidReference as error:
            raise InvalidReference(text, error.problem) from None

    def familiar(self) -> str:
        """Return the short spelling, without what :meth:`parse` adds by itself, but always with the tag.

        >>> Reference.parse("docker.io/library/alpine").familiar()
        'alpine:latest'
        """
        if self.domain != DOCKER_HUB:
            return str(self)
        first, _, rest = self.repository.partition("/")
        if first == _OFFICIAL and "/" not in rest:
            return rest + self._suffix()
        # Without its domain, docker.io/quay.io/app would become an image of another registry.
        return str(self) if _is_domain(first) else self.repository + self._suffix()

    def __str__(self) -> str:
        return f"{self.domain}/{self.repository}{self._suffix()}"

    def _suffix(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        return tag if self.digest is None else f"{tag}@{self.digest}"


def normalised(text: str) -> str | None:
    """Return the canonical spelling of the reference ``text``, or None when it is none.

    Two names mean the same image when this is the same text for both. The text is not trusted.

    >>> normalised("index.docker.io/alpine") == normalised("alpine:latest")
    True
    >>> normalised("Not A Reference") is None
    True
    """
    try:
        return str(Reference.parse(text))
    except InvalidReference:
        return None


def repository_of(name: str) -> str:
    """Return what an image's name has in common with those of its other versions: all but tag and digest.

    It is the canonical spelling where the name is a reference, and the name without its tag where it is none.

    >>> repository_of("alpine:3.20") == repository_of("docker.io/library/alpine:3.18")
    True
    """
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return _split_tag(name.partition("@")[0])[0]
    return f"{reference.domain}/{reference.repository}"


def is_tag(text: str) -> bool:
    """Whether ``text``, which is not trusted, may be a tag.

    >>> is_tag("3.20"), is_tag("a/b")
    (True, False)
    """
    return _TAG.fullmatch(text) is not None


def check_image_name(text: str) -> str:
    """Return ``text`` when an image may have it as its name in a store; the text is not trusted.

    A name has 1 to 512 visible ASCII characters, begins with a letter, a digit or ``[``, and has no empty, ``.`` or
    ``..`` segment between slashes. Every canonical and every familiar reference is such a name, and so are others.

    Raises:
        InvalidReference: when it is no such name.

    >>> check_image_name("team/app:1.0")
    'team/app:1.0'
    """
    problem = _problem_of_image_name(text)
    if problem is not None:
        raise InvalidReference(_shown(without_user(str(text))), problem)
    return text


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "..."


def _split_tag(name: str) -> tuple[str, str | None]:
    # A colon with a slash behind it belongs to a port or to an IPv6 address.
    head, colon, tag = name.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (name, None)


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not _is_domain(first):
        first, rest = DOCKER_HUB, name
    if first == _DOCKER_HUB_OLD:
        first = DOCKER_HUB
    if first == DOCKER_HUB and rest and "/" not in rest:
        rest = f"{_OFFICIAL}/{rest}"
    return first, rest


def _is_domain(first_segment: str) -> bool:
    return (
        first_segment == "localhost"
        or "." in first_segment
        or ":" in first_segment
        or first_segment.lower() != first_segment
    )


def _problem_of_name(domain: str, repository: str) -> str | None:
    if not isinstance(domain, str) or not isinstance(repository, str):
        return "its domain or its repository is no text"
    if len(domain) + 1 + len(repository) > _NAME_LENGTH:
        return f"domain and repository together are longer than {_NAME_LENGTH} characters"
    if _DOMAIN.fullmatch(domain) is None:
        return f"{_shown(domain)!r} is no domain name or address with an optional port"
    if not repository:
        return "the repository is empty"
    if repository.lower() != repository:
        return f"the repository {repository!r} must be lower case"
    for component in repository.split("/"):
        if not component:
            return "the repository has an empty part between slashes"
        if _COMPONENT.fullmatch(component) is None:
            return (
                f"{component!r} must be lower-case letters and digits, separated by one period, "
                "one or two underscores, or hyphens"
            )
    return None


def _problem_of_canonical_name(domain: str, repository: str) -> str | None:
    if not _is_domain(domain):
        return f"the domain {domain!r} would be read as a part of the repository"
    if domain == _DOCKER_HUB_OLD:
        return f"the domain {domain} is written {DOCKER_HUB}"
    if domain == DOCKER_HUB and "/" not in repository:
        return f"the repository {repository!r} of Docker Hub is written {_OFFICIAL}/{repository}"
    return None


def _problem_of_tag(tag: str | None, *, has_digest: bool) -> str | None:
    if tag is None:
        return None if has_digest else "it has neither a tag nor a digest"
    if not isinstance(tag, str):
        return "the tag is no text"
    if not tag:
        return "the tag is empty"
    if _TAG.fullmatch(tag) is None:
        return (
            f"the tag {_shown(tag)!r} must be at most 128 letters, digits, periods, underscores and hyphens, "
            "and begin with no period or hyphen"
        )
    return None


def _problem_of_image_name(text: str) -> str | None:
    if not isinstance(text, str):
        return "it is no text"
    if not text:
        return "it is empty"
    if len(text) > _IMAGE_NAME_LENGTH:
        return f"it is longer than {_IMAGE_NAME_LENGTH} characters"
    if _VISIBLE.fullmatch(text) is None:
        return "it has a character that is not visible ASCII"
    if _IMAGE_NAME_START.match(text) is None:
        return "it must begin with a letter, a digit or '['"
    for segment in text.split("/"):
        if segment in ("", ".", ".."):
            return f"it has the segment {segment!r} between slashes"
    return None
