"""What a host is, in a setting and in a header: a name or an address in one spelling, and whether it is this machine.

No name is ever looked up: what it leads to may be another thing a moment later.
"""

import functools
import re
from ipaddress import IPv4Address, IPv6Address, ip_address

IPAddress = IPv4Address | IPv6Address

_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_.])?")
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*\]|[^\[\]:]*)(?::(?P<port>[0-9]{1,5}))?")

# What each request says again.
_REMEMBERED = 256


@functools.lru_cache(maxsize=_REMEMBERED)
def parse_host(text: str, *, empty: bool = False) -> tuple[str, int | None] | None:
    """Return the name or address in lower case, without brackets, and the port of ``text``; None when it is no host.

    The text is not trusted. An address comes back in its one canonical spelling.

    >>> parse_host("[0:0::1]:80")
    ('::1', 80)
    >>> parse_host("a/b?x=") is None
    True
    """
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        return None
    host, port = match["host"], None if match["port"] is None else int(match["port"])
    if port is not None and port > 65535:
        return None
    if host.startswith("["):
        address = parse_ip(host[1:-1])
        return None if address is None else (str(address), port)
    if not host:
        return ("", port) if empty else None
    return (host.lower(), port) if _HOST_NAME.fullmatch(host) else None


@functools.lru_cache(maxsize=_REMEMBERED)
def parse_ip(text: str) -> IPAddress | None:
    """Return the IP address that ``text`` is, None when it is none; IPv4 in IPv6 is taken out of it.

    >>> str(parse_ip("::ffff:127.0.0.1"))
    '127.0.0.1'
    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_every_interface(host: str) -> bool:
    """Whether who listens on ``host`` listens on each address of this machine; who connects there comes to this one.

    >>> is_every_interface(""), is_every_interface("0.0.0.0"), is_every_interface("::1")
    (True, True, False)
    """
    address = parse_ip(host)
    return not host if address is None else address.is_unspecified


@functools.lru_cache(maxsize=_REMEMBERED)
def is_loopback(host: str) -> bool:
    """Whether ``host`` is ``localhost`` or an address that only this machine reaches.

    >>> is_loopback("127.0.0.53"), is_loopback("localhost.example.com")
    (True, False)
    """
    address = parse_ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback
