"""Proxies: through which one a host is reached, and which hosts are reached without.

The variables mean what they mean to Docker and Podman. This machine is never asked for through a proxy. What
``no_proxy`` lists is compared with the host as it is spelled, and no name is resolved for it: ``example.com`` is that
host and all below it, ``.example.com`` and ``*.example.com`` those below it, ``10.0.0.0/8`` the addresses in it, ``*``
everything; a port behind a host or an address narrows it down to that port.

What a proxy is told to log in with goes to the proxy alone: before the line to a host with TLS is there, and beside
each request to one without, which the proxy reads in any case.

Spec: RFC 9110, sections 9.3.6 and 11.7; RFC 9112, section 3.2.2; golang.org/x/net/http/httpproxy.
"""

import base64
import ipaddress
import re
import socket
import time
from urllib.parse import unquote

import attrs

from minibox_store.errors import InvalidArgument
from minibox_store.kinds import check_kind
from minibox_store.registry.addresses import literal_address
from minibox_store.registry.failures import RETRIED_STATUSES, LineCut, ProxyFailed
from minibox_store.registry.hosts import is_loopback_host
from minibox_store.registry.urls import InvalidUrl, Origin
from minibox_store.values import Value

_PROXY = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?(?:(?P<user>[^/?#]*)@)?(?P<host>[^/?#@]*)(?:[/?#][^@]*)?"
)
_EXEMPT = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
# Of a byte that is no UTF-8 the environment makes such a one.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SEPARATOR = re.compile(r"[,\s]+")
_HEAD_BYTES = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([2-5][0-9][0-9])(?: [^\r\n]*)?\r?\n")

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@attrs.frozen(repr=False)
class Proxy(Value):
    """A proxy, and the ``Proxy-Authorization`` that it wants, if any."""

    origin: Origin
    authorization: str | None = attrs.field(default=None, repr=lambda value: "None" if value is None else "***")

    @property
    def headers(self) -> dict[str, str]:
        """What the proxy is told of who asks."""
        return {} if self.authorization is None else {"Proxy-Authorization": self.authorization}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show."""
        return () if self.authorization is None else (self.authorization.partition(" ")[2],)


def _shown(text: str | None) -> str:
    try:
        return repr(None if text is None else str(_parse_proxy(text).origin))
    except InvalidUrl:
        return "***"


def _or_none(text: str | None) -> str | None:
    return None if text == "" else text


@attrs.frozen(kw_only=True, repr=False)
class Proxies(Value):
    """The proxies of a machine, as its environment names them. Neither ``repr`` nor ``str`` shows a password.

    Attributes:
        http: ``[http://][user:password@]host[:port]``, or the same with ``https://``, for hosts without TLS; the parts
            of user and password may be percent-encoded. None, and an empty text, for no proxy.
        https: the same for hosts with TLS.
        no_proxy: which hosts are reached without, separated by commas or spaces.

    Raises:
        InvalidArgument: on construction, for a proxy that is none of these, of which it shows nothing, and for a
            ``no_proxy`` that is no text.
    """

    http: str | None = attrs.field(default=None, converter=_or_none, repr=_shown)
    https: str | None = attrs.field(default=None, converter=_or_none, repr=_shown)
    no_proxy: str = ""

    def __attrs_post_init__(self) -> None:
        for scheme, text in (("http", self.http), ("https", self.https)):
            try:
                if text is not None and not isinstance(text, str):
                    raise InvalidUrl("it is no text")
                if text is not None:
                    _parse_proxy(text)
            except InvalidUrl as error:
                raise InvalidArgument(f"proxy for {scheme}", "***", str(error)) from None
        check_kind("no_proxy", self.no_proxy, str, ", with commas between the hosts")


class ProxyRules:
    """Says which proxy leads to a host. Several threads may use it."""

    def __init__(self, proxies: Proxies) -> None:
        named = {"http": proxies.http, "https": proxies.https}
        self._proxies = {scheme: _parse_proxy(text) for scheme, text in named.items() if text is not None}
        exempt = [_parse_exemption(text) for text in _SEPARATOR.split(proxies.no_proxy.lower()) if text]
        self._exempt = [each for each in exempt if each is not None]

    def proxy_for(self, origin: Origin) -> Proxy | None:
        """Return the proxy through which ``origin`` is reached, None where it is reached without."""
        proxy = self._proxies.get(origin.scheme)
        if proxy is None:
            return None
        host = origin.host.rstrip(".")
        address = _address(host)
        if is_loopback_host(host) or (address is not None and address.is_loopback):
            return None
        return None if any(each.covers(host, address, origin.port) for each in self._exempt) else proxy


@attrs.frozen(kw_only=True, repr=False)
class _Exemption(Value):
    """Some hosts that are reached without a proxy: all, those of a network, or those whose name ends so."""

    is_all: bool = False
    network: _Network | None = None
    suffix: str = ""
    name: str | None = None
    port: int | None = None

    def covers(self, host: str, address: _Address | None, port: int) -> bool:
        if self.is_all or self.port not in (None, port):
            return self.is_all
        if self.network is not None:
            return address is not None and address in self.network
        return address is None and (host == self.name or host.endswith(self.suffix))


def _parse_exemption(text: str) -> _Exemption | None:
    """Return what an item of ``no_proxy`` exempts, None for one that means nothing."""
    if text == "*":
        return _Exemption(is_all=True)
    try:
        return _Exemption(network=ipaddress.ip_network(text, strict=False))
    except ValueError:
        pass
    found = _EXEMPT.fullmatch(text)
    if found is None:
        return None
    host, port = found["host"], int(found["port"]) if found["port"] else None
    address = _address(host.strip("[]"))
    if address is not None:
        return _Exemption(network=ipaddress.ip_network(address), port=port)
    host = host.removeprefix("*").rstrip(".")
    if host.startswith("."):
        return _Exemption(suffix=host, port=port)
    return _Exemption(suffix=f".{host}", name=host, port=port)


def _address(host: str) -> _Address | None:
    """Return the address that a host is by its spelling; an IPv4 one inside IPv6 counts as itself."""
    try:
        found = ipaddress.ip_address(literal_address(host) or "")
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def _parse_proxy(text: str) -> Proxy:
    """Return the proxy that a text spells, raises InvalidUrl for none."""
    found = _PROXY.fullmatch(text.strip())
    if found is None:
        raise InvalidUrl("it is no URL")
    origin = Origin.parse(found["scheme"] or "http", found["host"])
    if found["user"] is None:
        return Proxy(origin)
    user, _, password = (unquote(part) for part in found["user"].partition(":"))
    if ":" in user:
        raise InvalidUrl("its user has a colon")
    if _SURROGATE.search(user + password):
        raise InvalidUrl("its user or password has a character that is none")
    proof = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
    return Proxy(origin, f"Basic {proof}")


def open_tunnel(opened: socket.socket, origin: Origin, proxy: Proxy) -> None:
    """Have a proxy lead a connection that is with it on to ``origin``; reads not one byte more than its answer's head.

    Raises:
        ProxyFailed: when it refuses.
        OSError: when the connection breaks, or no answer comes in the time that the socket has.
    """
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}"
    headers = {"Host": target, **proxy.headers}
    lines = [f"CONNECT {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    opened.sendall("\r\n".join(lines).encode("ascii"))
    found = _STATUS.match(_read_head(opened, proxy))
    if found is None:
        raise ProxyFailed(f"the proxy {proxy.origin} does not answer in HTTP/1.1", may_retry=False)
    status = int(found[1])
    if not 200 <= status < 300:
        raise ProxyFailed.refused(str(proxy.origin), status, may_retry=status in RETRIED_STATUSES)


def _read_head(opened: socket.socket, proxy: Proxy) -> bytes:
    deadline = time.monotonic() + (opened.gettimeout() or 0.0)
    head = bytearray()
    while not head.endswith((b"\r\n\r\n", b"\n\n")):
        if time.monotonic() > deadline:
            raise TimeoutError
        byte = opened.recv(1)
        if not byte:
            raise LineCut
        head += byte
        if len(head) > _HEAD_BYTES:
            raise ProxyFailed(f"the proxy {proxy.origin} answers without end", may_retry=False)
    return bytes(head)
