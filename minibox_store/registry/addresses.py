"""Addresses that no registry may send us to, unless it lives there itself: this machine, and what answers nearby.

The check is made on the address that is about to be connected, never on a name: names resolve to anything, and to
something else the next time.
"""

import ipaddress
import re
import socket
from collections.abc import Iterator

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds answer any of their machines with its credentials; 169.254.169.254 is link-local besides.
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            *("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
            # Amazon's, that for the pods of its clusters, Google's and Scaleway's.
            *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42"),
        ),
    )
)
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
# A name whose last part is a number is no name. Spec: URL Standard, "ends in a number".
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


def restricted_class(address: str) -> str | None:
    """Return which restricted class a numeric address belongs to, None for one that anybody may name.

    An IPv4 address inside an IPv6 one (mapped, compatible, 6to4, Teredo, NAT64) counts as itself.

    >>> restricted_class("::ffff:127.0.0.1"), restricted_class("203.0.113.7")
    ('loopback', None)

    Spec: RFC 6890; RFC 6052, section 2.1.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    for each in (parsed, *_embedded(parsed)):
        found = _class_of(each)
        if found is not None:
            return found
    return None


def is_private(address: str) -> bool:
    """Whether a numeric address is one that not the whole Internet reaches: private, shared, local or reserved.

    >>> is_private("10.1.2.3"), is_private("fd00::1"), is_private("::ffff:192.168.0.1"), is_private("9.9.9.9")
    (True, True, True, False)

    Spec: the IANA registries of special-purpose addresses.
    """
    if restricted_class(address) is not None:
        return True
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    judged = (mapped,) if mapped is not None else (parsed, *_embedded(parsed))
    return not all(each.is_global for each in judged)


def literal_address(host: str) -> str | None:
    """Return the address that a host is by its very spelling, in any that resolvers take; None for a name.

    >>> literal_address("2130706433"), literal_address("0x7f.1"), literal_address("registry.example")
    ('127.0.0.1', '127.0.0.1', None)
    """
    text = host.rstrip(".")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if not _NUMBER.fullmatch(text.rpartition(".")[2]):
            return None
    try:
        return socket.inet_ntoa(socket.inet_aton(text))
    except OSError:
        return text  # whatever somebody else makes of it


def _class_of(address: _Address) -> str | None:
    if address in _METADATA:
        return "metadata"
    if address.is_loopback:
        return "loopback"
    if address.is_unspecified or (address.version == 4 and address in _THIS_NETWORK):
        return "unspecified"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    return "reserved" if address.version == 4 and address.is_reserved else None


def _embedded(address: _Address) -> Iterator[_Address]:
    if not isinstance(address, ipaddress.IPv6Address) or address.is_loopback:
        return
    for each in (address.ipv4_mapped, address.sixtofour, (address.teredo or (None, None))[1]):
        if each is not None:
            yield each
    if address in _NAT64 or address in _COMPATIBLE:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
