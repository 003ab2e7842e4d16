"""From the domain of a reference to what is contacted: the API's origin, and its token servers.

Plain HTTP is spoken with registries on this machine, unless they turn out to want TLS, and where it was asked for;
with all others TLS. Where a registry was said to be insecure TLS is tried first, and plain HTTP where it speaks none.
"""

import ipaddress
from collections.abc import Collection, Iterable

import attrs

from minibox_store.errors import InvalidReference
from minibox_store.kinds import each_of
from minibox_store.reference import DOCKER_HUB, DOCKER_HUB_API
from minibox_store.registry.urls import InvalidUrl, Origin, Url
from minibox_store.values import Value

# Docker Hub goes by many names; asking docker.io itself for an image gives 403 or 404.
_API_HOSTS = {DOCKER_HUB: DOCKER_HUB_API}
# Of registries whose token servers are hosts of their own, the ones that are known for it.
_TOKEN_HOSTS = {
    **dict.fromkeys((DOCKER_HUB, DOCKER_HUB_API), ("auth.docker.io",)),
    "registry.gitlab.com": ("gitlab.com",),
    "registry.digitalocean.com": ("api.digitalocean.com",),
    "registry.suse.com": ("scc.suse.com",),
}


@attrs.frozen(kw_only=True, repr=False)
class Schemes(Value):
    """Which registries speak plain HTTP, by ``host[:port]`` as in references.

    Attributes:
        plain_http: those that do though they are elsewhere than on this machine.
        https: those that do not though they are on this machine, where plain HTTP is the first guess.
        insecure: those that may, if they speak no TLS.
    """

    plain_http: frozenset[str] = frozenset()
    https: frozenset[str] = frozenset()
    insecure: frozenset[str] = frozenset()

    @classmethod
    def of(cls, plain_http: Collection[str], https: Collection[str], insecure: Collection[str] = ()) -> "Schemes":
        """Return the schemes for these hosts, in whatever case they are written.

        Raises:
            InvalidArgument: for a text in the place of a collection of them, and what else is none of texts.
        """
        named = {"plain_http": plain_http, "https": https, "insecure": insecure}
        return cls(
            **{name: frozenset(host.lower() for host in each_of(name, hosts, str)) for name, hosts in named.items()}
        )

    def origin(self, authority: str) -> Origin:
        """Return the origin of ``host[:port]``.

        Raises:
            InvalidUrl: when it is no host and port.
        """
        name = authority.lower()
        origin = Origin.parse("https", name)
        wants_tls = name in self.https | self.insecure or name.endswith(":443")
        is_local = is_loopback_host(origin.host) and not wants_tls
        return Origin.parse("http", name) if is_local or name in self.plain_http else origin

    def is_guess(self, authority: str) -> bool:
        """Whether plain HTTP is spoken with ``host[:port]`` only because it is on this machine."""
        return self.origin(authority).scheme == "http" and authority.lower() not in self.plain_http

    def may_be_plain(self, authority: str) -> bool:
        """Whether TLS is only tried with ``host[:port]``."""
        return authority.lower() in self.insecure and self.origin(authority).scheme == "https"

    def with_plain_http(self, authority: str) -> "Schemes":
        """Return these schemes without TLS for ``host[:port]``."""
        return attrs.evolve(self, plain_http=self.plain_http | {authority.lower()})

    def with_insecure(self, authority: str) -> "Schemes":
        """Return these schemes with one more ``host[:port]`` that may speak plain HTTP if it speaks no TLS."""
        return attrs.evolve(self, insecure=self.insecure | {authority.lower()})

    def with_https(self, authority: str) -> "Schemes":
        """Return these schemes with TLS for ``host[:port]``."""
        return attrs.evolve(self, https=self.https | {authority.lower()})


def is_loopback_host(host: str) -> bool:
    """Whether a name or address means this machine by its very spelling.

    >>> is_loopback_host("127.0.0.2"), is_loopback_host("127.0.0.1.example.com")
    (True, False)

    Spec: RFC 6761, section 6.3.
    """
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def api_origin(domain: str, schemes: Schemes) -> Origin:
    """Return where the API of a reference's registry is.

    Raises:
        InvalidReference: when the domain's port is none.

    >>> str(api_origin("docker.io", Schemes()))
    'https://registry-1.docker.io'
    """
    try:
        return schemes.origin(_API_HOSTS.get(domain, domain))
    except InvalidUrl as error:
        raise InvalidReference(domain, str(error)) from None


def token_origins(domain: str, configured: Iterable[str], schemes: Schemes) -> frozenset[Origin]:
    """Return the token servers, other than the registry itself, that may see the credentials of a registry.

    Args:
        domain: of the registry, as in references.
        configured: what there is besides the known ones, each a ``host[:port]`` or a URL.
        schemes: which hosts speak plain HTTP.

    Raises:
        InvalidUrl: for one that is neither.
    """
    named = [*_TOKEN_HOSTS.get(domain, ()), *configured]
    return frozenset(Url.parse(name).origin if "://" in name else schemes.origin(name) for name in named)
