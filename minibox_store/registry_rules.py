"""Where the images of a registry are to be had: rules by the prefix of a name, and the choice of the one that counts.

A prefix is a host, a host and the first segments of a path, or ``*.domain``, which is every host below that domain,
whatever its port. It is compared by whole segments, never as the beginning of a text. Of those that fit the one with
the longest path counts, then one that names the host itself, then the one with the longest domain; no other has a say.
What is said of Docker Hub holds for images that are named by the host of its API too.

Where the rules have a list of what is allowed, every name that none of its prefixes fits is blocked.

The name of an image stays what it is. A rule says who is asked for it: its mirrors in their order, and at last the
place that the rule's ``location`` names, or the registry of the name itself.

Spec: containers-registries.conf(5), whose words these are where they mean the same.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Literal

import attrs

from minibox_store.errors import InvalidArgument, InvalidReference, RegistryBlocked
from minibox_store.kinds import check_kind, check_switches, each_of
from minibox_store.reference import DOCKER_HUB, DOCKER_HUB_API, Reference
from minibox_store.sentences import without_user
from minibox_store.values import Value

WhoseCredentials = Literal["own", "shared"]
AskedFor = Literal["all", "digest-only", "tag-only"]

_WILDCARD = "*."
_WHOSE_CREDENTIALS = ("own", "shared")
_ASKED_FOR = ("all", "digest-only", "tag-only")
_SCHEMES = ("https", "http")
_NOT_ALLOWED = "is blocked: no rule allows it"
# As URLs have them, which is where registries name their token servers.
_TOKEN_HOST = re.compile(
    r"(?: \[[0-9A-Fa-f:.]+\] | (?=[^:]{1,254}(?::|$)) [A-Za-z0-9_-]{1,63} (?: \. [A-Za-z0-9_-]{1,63} )* \.? )"
    r"(?: : [0-9]{1,5} )?",
    re.VERBOSE,
)
_VISIBLE = re.compile(r"[!-~]+")


def _mirrors(values: "Iterable[Mirror]") -> "tuple[Mirror, ...]":
    return each_of("mirrors", values, Mirror)


def _realms(values: Iterable[str]) -> tuple[str, ...]:
    return each_of("realms", values, str)


def _rules(values: "Iterable[RegistryRule]") -> "tuple[RegistryRule, ...]":
    return each_of("rules", values, RegistryRule)


def _allowed(values: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if values is None else each_of("allowed", values, str)


@attrs.frozen(kw_only=True, repr=False)
class Mirror(Value):
    """Somewhere else that the images of a prefix are to be had. Its bytes are trusted no more than those of any other.

    Attributes:
        location: ``host[:port]``, with a path where it has one; what follows the prefix in a name follows it there.
        insecure: whether its certificate is left unchecked, and plain HTTP will do.
        credentials: ``"own"``: those that are known for its own host; ``"shared"``: it is shown those for the place
            that it mirrors.
        pull: ``"digest-only"``: it is not asked what a tag stands for; ``"tag-only"``: it is not asked in a pull by
            digest.

    Raises:
        InvalidArgument: on construction, for a value that is none of these.
    """

    location: str
    insecure: bool = False
    credentials: WhoseCredentials = "own"
    pull: AskedFor = "all"

    def __attrs_post_init__(self) -> None:
        _check_place("location", self.location)
        _check_choice("credentials", self.credentials, _WHOSE_CREDENTIALS)
        _check_choice("pull", self.pull, _ASKED_FOR)
        check_switches(insecure=self.insecure)


@attrs.frozen(kw_only=True, repr=False)
class RegistryRule(Value):
    """What holds for the images whose names begin with a prefix.

    Attributes:
        prefix: ``host[:port]``, that with the first segments of a path, or ``*.domain``; ``location`` where it is
            empty.
        location: what is contacted for the prefix; the same where it is None.
        mirrors: what is asked before, in this order.
        insecure: whether the certificate at ``location`` is left unchecked, and plain HTTP will do there.
        blocked: whether nothing may be done with such an image.
        realms: token servers elsewhere that may see the credentials for ``location``: ``host[:port]``, or a URL.

    Raises:
        InvalidArgument: on construction, for a value that is none of these.
    """

    prefix: str = ""
    location: str | None = None
    mirrors: tuple[Mirror, ...] = attrs.field(default=(), converter=_mirrors)
    insecure: bool = False
    blocked: bool = False
    realms: tuple[str, ...] = attrs.field(default=(), converter=_realms)

    def __attrs_post_init__(self) -> None:
        if self.location is not None:
            _check_place("location", self.location)
        if not self.prefix and self.location is None:
            raise InvalidArgument("prefix", self.prefix, "a rule needs a prefix or a location")
        if self.prefix:
            _check_prefix("prefix", self.prefix)
        for realm in self.realms:
            _check_realm(realm)
        check_switches(insecure=self.insecure, blocked=self.blocked)

    @property
    def covers(self) -> str:
        """The prefix, whether it was given or follows from the location."""
        return self.prefix or self.location or ""

    @property
    def moves(self) -> bool:
        """Whether something else is contacted than the name says."""
        return self.location is not None and self.location != self.covers

    def fit(self, domain: str, repository: str) -> tuple[int, bool, int] | None:
        """Return how well the rule fits a name, the better the greater; None where it does not."""
        host, _, path = self.covers.lower().partition("/")
        segments = path.split("/") if path else []
        if not _fits_host(host, domain.lower()) or repository.split("/")[: len(segments)] != segments:
            return None
        return len(segments), not host.startswith(_WILDCARD), len(host)


@attrs.frozen(kw_only=True, repr=False)
class RegistryPlace(Value):
    """Somewhere that an image is to be had.

    Attributes:
        reference: of the image there.
        insecure: whether its certificate is left unchecked, and plain HTTP will do.
        realms: token servers elsewhere that may see the credentials for it.
        mirror: what the rule says of it; None where it is the place that mirrors stand for.
    """

    reference: Reference
    insecure: bool = False
    realms: tuple[str, ...] = ()
    mirror: Mirror | None = None


@attrs.frozen(repr=False)
class RegistryRules(Value):
    """All rules of a client.

    Attributes:
        rules: for each prefix what holds there.
        allowed: the prefixes of the names with which anything may be done; None for every name. Where rules lead, to a
            mirror or another location, is said by who wrote them, and needs no place in this list.
        private_addresses: whether anybody may be connected to at an address that not the whole Internet reaches:
            registries, their mirrors, token servers, and hosts that they redirect to. None where nothing is said.

    Raises:
        InvalidArgument: on construction, when two rules have the same prefix, and for a value that is none of these.
    """

    rules: tuple[RegistryRule, ...] = attrs.field(default=(), converter=_rules)
    allowed: tuple[str, ...] | None = attrs.field(default=None, converter=_allowed)
    private_addresses: bool | None = None

    def __attrs_post_init__(self) -> None:
        for prefix in self.allowed or ():
            _check_prefix("allowed", prefix)
        if self.private_addresses is not None:
            check_switches(private_addresses=self.private_addresses)
        seen: set[str] = set()
        for rule in self.rules:
            if rule.covers.lower() in seen:
                raise InvalidArgument("prefix", rule.covers, "another rule has it too")
            seen |= {rule.covers.lower()}

    def find(self, domain: str, repository: str) -> RegistryRule | None:
        """Return the rule that counts for a name, None where there is none."""
        fits = [(fit, rule) for rule in self.rules if (fit := rule.fit(domain, repository)) is not None]
        return max(fits, key=lambda each: each[0])[1] if fits else None

    def places(self, reference: Reference) -> tuple[RegistryPlace, ...]:
        """Return where an image is read from: the mirrors in their order, and last what they stand for.

        Raises:
            RegistryBlocked: when nothing may be done with it.
            InvalidReference: when a location leaves no repository for it, or none that there can be.
        """
        rule = self._allowed(reference)
        if rule is None:
            return (RegistryPlace(reference=reference),)
        there = reference if rule.location is None else _moved(reference, rule, rule.location)
        last = RegistryPlace(reference=there, insecure=rule.insecure, realms=rule.realms)
        return (*(self._mirror(reference, rule, mirror) for mirror in rule.mirrors), last)

    def named_place(self, reference: Reference) -> RegistryPlace:
        """Return the very place that a name says, which is where things are changed.

        Raises:
            RegistryBlocked: when nothing may be done with it.
        """
        return self._as_named(reference, self._allowed(reference))

    def registry_place(self, domain: str) -> RegistryPlace:
        """Return the place of a registry itself, for what is no matter of one repository.

        Raises:
            InvalidReference: when it is none.
            RegistryBlocked: when nothing may be done with any image of it.
        """
        anything = Reference(domain=domain, repository="any/repository", tag="any")
        rule = self.find(domain, anything.repository)
        hosts = [prefix.lower().partition("/")[0] for prefix in self.allowed or ()]
        if self.allowed is not None and not any(_fits_host(host, domain.lower()) for host in hosts):
            raise RegistryBlocked(domain, "", _NOT_ALLOWED)
        if rule is not None and rule.blocked:
            raise RegistryBlocked(domain, rule.covers)
        return self._as_named(anything, rule)

    def check(self, reference: Reference) -> None:
        """Return if something may be done with an image; only what is connected to is judged later, by its address.

        Raises:
            RegistryBlocked: when nothing may be.
        """
        self._allowed(reference)

    def _mirror(self, reference: Reference, rule: RegistryRule, mirror: Mirror) -> RegistryPlace:
        there = _moved(reference, rule, mirror.location)
        named = self._as_named(there, self.find(there.domain, there.repository))
        return attrs.evolve(named, insecure=mirror.insecure or named.insecure, mirror=mirror)

    def _as_named(self, reference: Reference, rule: RegistryRule | None) -> RegistryPlace:
        if rule is None or rule.moves:
            return RegistryPlace(reference=reference)
        return RegistryPlace(reference=reference, insecure=rule.insecure, realms=rule.realms)

    def _allowed(self, reference: Reference) -> RegistryRule | None:
        check_kind("reference", reference, Reference, ": Reference.parse reads one")
        if self.allowed is not None and not any(
            RegistryRule(prefix=prefix).fit(reference.domain, reference.repository) for prefix in self.allowed
        ):
            raise RegistryBlocked(str(reference), "", _NOT_ALLOWED)
        rule = self.find(reference.domain, reference.repository)
        if rule is not None and rule.blocked:
            raise RegistryBlocked(str(reference), rule.covers)
        return rule


def _moved(reference: Reference, rule: RegistryRule, location: str) -> Reference:
    """Return the reference with ``location`` in the place of the rule's prefix."""
    path = rule.covers.partition("/")[2]
    rest = reference.repository.split("/")[len(path.split("/")) if path else 0 :]
    domain, _, repository = "/".join([location, *rest]).partition("/")
    if not repository:
        raise InvalidReference(str(reference), f"its rule leads to {location}, which is no repository")
    if domain == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return attrs.evolve(reference, domain=domain, repository=repository)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidArgument(name, value, f"it is none of {', '.join(allowed)}")


def _check_place(name: str, text: str) -> None:
    check_kind(name, text, str)
    host, slash, path = text.partition("/")
    problem = _problem_of_host(host)
    if problem is None and slash:
        problem = _problem_of_path(host, path)
    if problem is not None:
        raise InvalidArgument(name, without_user(text), problem)


def _check_prefix(name: str, text: str) -> None:
    if isinstance(text, str) and text.startswith(_WILDCARD):
        _check_wildcard(name, text)
    else:
        _check_place(name, text)


def _check_wildcard(name: str, text: str) -> None:
    domain = text.removeprefix(_WILDCARD)
    problem = _problem_of_host(f"any.{domain}")
    if "/" in domain or ":" in domain:
        problem = "behind *. stands a domain, and nothing else"
    if problem is not None:
        raise InvalidArgument(name, without_user(text), problem)


def _check_realm(text: str) -> None:
    host = text
    if "://" in text:
        scheme, _, rest = text.partition("://")
        host = rest.partition("/")[0] if scheme.lower() in _SCHEMES and _VISIBLE.fullmatch(rest) else ""
    # No reference names it, so that a single word is a host, too.
    if _TOKEN_HOST.fullmatch(host) is None or _problem_of_numbers(host) is not None:
        raise InvalidArgument("realms", without_user(text), "it is neither a host with an optional port nor a URL")


def _problem_of_host(host: str) -> str | None:
    try:
        Reference(domain=host, repository="any/repository", tag="any")
    except InvalidReference as error:
        return error.problem
    return _problem_of_numbers(host)


def _problem_of_numbers(host: str) -> str | None:
    number = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else ""
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1 : host.index("]")])
    except ValueError:
        return f"{host} is no address"
    return None if not number or 0 < int(number[:6]) < 65536 else "its port is not between 1 and 65535"


def _problem_of_path(host: str, path: str) -> str | None:
    # Of Docker Hub a namespace is meant, where it is one segment alone.
    repository = f"{path}/{path}" if host == DOCKER_HUB and path and "/" not in path else path
    try:
        Reference(domain=host, repository=repository, tag="any")
    except InvalidReference as error:
        return error.problem
    return None


def _fits_host(host: str, domain: str) -> bool:
    """Whether the host of a prefix is that of a name; both in lower case."""
    if host.startswith(_WILDCARD):
        return _without_port(domain).endswith(host[1:])
    return host == domain or (host, domain) == (DOCKER_HUB, DOCKER_HUB_API)


def _without_port(domain: str) -> str:
    host, colon, port = domain.rpartition(":")
    return host if colon and port.isdigit() else domain
