"""What the operator decided: the environment, read once, and the rule about who may start.

An address that others can reach needs a token that cannot be guessed, or the operator's word that none is wanted.
"""

import os
import re
from collections.abc import Mapping
from typing import Literal

import attrs

from minibox_server.hosts import is_every_interface, is_loopback, parse_host
from minibox_store import InvalidReference, Reference, StoreError, read_registries_file

DEFAULT_ADDRESS = "127.0.0.1:8080"
DEFAULT_DATA_ROOT = "/var/lib/minibox"
DEFAULT_PREFIXES = "/home:/root:/tmp:/srv:/opt:/var/lib/minibox"
DEFAULT_CONNECTIONS = 1024
# Fewer, so that there is room for connections that wait, and for saying no.
DEFAULT_REQUESTS = 768
DEFAULT_IDLE_SECONDS = 60
DEFAULT_PULLS = 4

# What a daemon needs to write an index and a few documents.
DEFAULT_READY_FREE_BYTES = 64 * 1024 * 1024

# 22 characters of base64 hold the 128 bits that make guessing hopeless.
_TOKEN_LENGTH = 22
_VISIBLE = re.compile(r"[!-~]+")

LogFormat = Literal["text", "json"]

# sockaddr_un has room for so much, and for the zero at its end.
_SOCKET_PATH_BYTES = 107


class SettingsError(ValueError):
    """A setting with which the daemon does not start; one sentence that names the variable."""


def _masked(token: str | None) -> str:
    return "None" if token is None else "'***'"


@attrs.frozen(kw_only=True)
class Settings:
    """The settings of one daemon.

    Attributes:
        host: the address or name that it listens on; empty for every interface.
        port: the port that it listens on.
        socket_path: the unix socket that it listens on instead, absolute; None for a host and a port.
        anonymous: whether others than this machine may ask without a token.
        tls_certificate: the file of the certificate, and of those between it and the authority; None for plain HTTP.
        tls_key: the file of its private key.
        data_root: DataRoot, absolute.
        token: what each request must carry; None when everybody may ask.
        allowed_hosts: further values of ``Host``: a name or an address, and its port where only that one will do.
        archive_prefixes: the folders below which the paths of archives lie.
        unpack: whether what is pulled is unpacked to ``base_layers/`` too.
        max_connections: how many connections each process has at once.
        max_requests: how many requests each process answers at once.
        idle_seconds: how long a client may keep still where it owes something, or asks nothing.
        max_pulls: how many pulls each process lets move at once; the others wait for their turn.
        log_format: what a line of the log is: ``text`` for people, ``json`` for programs.
        ready_free_bytes: with less room than this the daemon says that it is not ready.
        upstream: the registry from which ``/v2/`` brings what the store has not; None where it brings nothing.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    socket_path: str | None = None
    anonymous: bool = False
    tls_certificate: str | None = None
    tls_key: str | None = None
    data_root: str = DEFAULT_DATA_ROOT
    token: str | None = attrs.field(default=None, repr=_masked)
    allowed_hosts: tuple[tuple[str, int | None], ...] = ()
    archive_prefixes: tuple[str, ...] = tuple(DEFAULT_PREFIXES.split(":"))
    unpack: bool = True
    max_connections: int = DEFAULT_CONNECTIONS
    max_requests: int = DEFAULT_REQUESTS
    idle_seconds: float = DEFAULT_IDLE_SECONDS
    max_pulls: int = DEFAULT_PULLS
    log_format: LogFormat = "text"
    ready_free_bytes: int = DEFAULT_READY_FREE_BYTES
    upstream: str | None = None

    @property
    def address(self) -> str:
        """Where it listens, as people write it."""
        if self.socket_path is not None:
            return f"unix:{self.socket_path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_reached_by_others(self) -> bool:
        """Whether requests may come from other machines: to them it must not lend its place in this one's network."""
        return not is_loopback(self.host)


def read_settings() -> Settings:
    """Return the settings that this process's environment holds.

    Raises:
        SettingsError: as :func:`parse_settings`.
    """
    return parse_settings(os.environ)


def read_variables() -> dict[str, str]:
    """Return this daemon's variables of the environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("MINIBOX_")}


def check_registries() -> None:
    """Read the rules for registries as whatever is done with a registry does, which reads them anew.

    Raises:
        SettingsError: when the file of them is not there, or is none.
    """
    path = os.environ.get("MINIBOX_REGISTRIES")
    try:
        if path:
            read_registries_file(path)
    except StoreError as error:
        raise SettingsError(f"MINIBOX_REGISTRIES: {error}") from error


def take_variables(*names: str) -> dict[str, str]:
    """Return variables of the environment, and take them out of it: what this process starts does not have them."""
    return {name: os.environ.pop(name, "") for name in names}


def parse_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings in ``environment``; a variable that is empty counts as not set.

    Raises:
        SettingsError: when a variable is not of its form, or the daemon would listen to others without protection.

    >>> parse_settings({"MINIBOX_HTTP_ADDR": "[::1]:9000"}).address
    '[::1]:9000'
    """
    address = environment.get("MINIBOX_HTTP_ADDR") or DEFAULT_ADDRESS
    socket_path = parse_socket_path(address)
    # A name that is no other one's, for a socket that none but this machine's own users reach.
    host, port = parse_address(address) if socket_path is None else ("localhost", 0)
    token = environment.get("MINIBOX_API_TOKEN") or None
    anonymous = _parse_switch(environment, "MINIBOX_ALLOW_ANONYMOUS")
    check_protection(host, token, anonymous=anonymous)
    certificate, key = _parse_tls(environment)
    return Settings(
        host=host,
        port=port,
        socket_path=socket_path,
        anonymous=anonymous,
        tls_certificate=certificate,
        tls_key=key,
        data_root=_absolute("MINIBOX_DATA_ROOT", environment.get("MINIBOX_DATA_ROOT") or DEFAULT_DATA_ROOT),
        token=token,
        allowed_hosts=_parse_hosts(environment.get("MINIBOX_ALLOWED_HOSTS") or ""),
        archive_prefixes=_parse_prefixes(environment.get("MINIBOX_ARCHIVE_PREFIXES") or DEFAULT_PREFIXES),
        unpack=_parse_switch(environment, "MINIBOX_UNPACK", default="1"),
        max_connections=_parse_count(environment, "MINIBOX_MAX_CONNECTIONS", DEFAULT_CONNECTIONS),
        max_requests=_parse_count(environment, "MINIBOX_MAX_REQUESTS", DEFAULT_REQUESTS),
        idle_seconds=_parse_count(environment, "MINIBOX_IDLE_SECONDS", DEFAULT_IDLE_SECONDS),
        max_pulls=_parse_count(environment, "MINIBOX_MAX_PULLS", DEFAULT_PULLS),
        log_format=_parse_log_format(environment.get("MINIBOX_LOG_FORMAT") or "text"),
        ready_free_bytes=_parse_number(environment, "MINIBOX_READY_FREE_BYTES", DEFAULT_READY_FREE_BYTES),
        upstream=_parse_upstream(environment.get("MINIBOX_UPSTREAM") or None, (host, port)),
    )


def parse_address(text: str) -> tuple[str, int]:
    """Return the host, without brackets and empty for every interface, and the port of ``host:port``.

    Raises:
        SettingsError: when it is not of that form.

    >>> parse_address(":8080")
    ('', 8080)
    """
    found = parse_host(text, empty=True)
    if found is None or found[1] is None or found[1] == 0:
        raise SettingsError(f"MINIBOX_HTTP_ADDR is {text!r}, where it must be host:port, :port or [IPv6 address]:port")
    return found[0], found[1]


def parse_socket_path(text: str) -> str | None:
    """Return the path of ``unix:/path``, None where the text is no such thing but perhaps an address.

    Raises:
        SettingsError: when it is one and no absolute path: an abstract name has no mode, and anybody could connect.

    >>> parse_socket_path("unix:/run/minibox.sock")
    '/run/minibox.sock'
    """
    scheme, colon, path = text.partition(":")
    if scheme != "unix" or not colon or path.isdigit():
        return None
    if not path.startswith("/") or path.endswith("/") or not path.isprintable():
        raise SettingsError(f"MINIBOX_HTTP_ADDR is {text!r}, where unix: wants the absolute path of a socket")
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise SettingsError(
            f"MINIBOX_HTTP_ADDR has a path of more than {_SOCKET_PATH_BYTES} bytes, which no socket has"
        )
    return path


def check_protection(host: str, token: str | None, *, anonymous: bool) -> None:
    """Refuse to listen on an address that others can reach, and that no token protects.

    Raises:
        SettingsError: when the token is missing, too short, or none that a header could carry.
    """
    if token is not None and _VISIBLE.fullmatch(token) is None:
        raise SettingsError("MINIBOX_API_TOKEN must be visible ASCII characters without spaces")
    if is_loopback(host) or anonymous:
        return
    where = host or "every interface"
    if token is None:
        raise SettingsError(
            f"to listen on {where}, which others can reach, set MINIBOX_API_TOKEN (or MINIBOX_ALLOW_ANONYMOUS=1)"
        )
    if len(token) < _TOKEN_LENGTH:
        raise SettingsError(
            f"to listen on {where}, which others can reach, MINIBOX_API_TOKEN needs at least "
            f"{_TOKEN_LENGTH} characters (or set MINIBOX_ALLOW_ANONYMOUS=1)"
        )


def _parse_tls(environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    found = []
    for name, other in (("CERTIFICATE", "KEY"), ("KEY", "CERTIFICATE")):
        path = environment.get(f"MINIBOX_TLS_{name}") or None
        if path is None and environment.get(f"MINIBOX_TLS_{other}"):
            raise SettingsError(f"MINIBOX_TLS_{other} is set, and so MINIBOX_TLS_{name} must be")
        found.append(None if path is None else _absolute(f"MINIBOX_TLS_{name}", path))
    return found[0], found[1]


def _absolute(name: str, path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise SettingsError(
            f"{name} is {path!r}, and the working directory is gone to which that is relative"
        ) from None


def _parse_switch(environment: Mapping[str, str], name: str, *, default: str = "0") -> bool:
    text = environment.get(name) or default
    if text not in ("0", "1"):
        raise SettingsError(f"{name} is {text!r}, where it must be 1 or 0")
    return text == "1"


def _parse_count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text)):
        raise SettingsError(f"{name} is {text!r}, where it must be a whole number from 1 to 9999999")
    return int(text)


def _parse_number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise SettingsError(f"{name} is {text!r}, where it must be a whole number")
    return int(text)


def _parse_log_format(text: str) -> LogFormat:
    if text == "text":
        return "text"
    if text == "json":
        return "json"
    raise SettingsError(f"MINIBOX_LOG_FORMAT is {text!r}, where it must be text or json")


def _parse_hosts(text: str) -> tuple[tuple[str, int | None], ...]:
    hosts = []
    for item in text.replace(",", " ").split():
        found = parse_host(item)
        if found is None:
            raise SettingsError(f"MINIBOX_ALLOWED_HOSTS has {item!r}, which is no host name or address")
        hosts.append(found)
    return tuple(hosts)


def _parse_prefixes(text: str) -> tuple[str, ...]:
    prefixes = tuple(item for item in text.split(":") if item)
    for item in prefixes:
        if not item.startswith("/") or "\0" in item:
            raise SettingsError(f"MINIBOX_ARCHIVE_PREFIXES has {item!r}, which is no absolute path")
    return prefixes


def _parse_upstream(text: str | None, own_address: tuple[str, int]) -> str | None:
    """Return the registry that is meant, as references name it; it is not this daemon, which would ask itself."""
    if text is None:
        return None
    try:
        reference = Reference(domain=text, repository="any/repository", tag="latest")
    except InvalidReference:
        # Nothing of it is shown: a URL may have a password.
        raise SettingsError("MINIBOX_UPSTREAM must be a registry: host or host:port") from None
    found = parse_host(text)
    if found is not None and _is_own(found, own_address):
        raise SettingsError(f"MINIBOX_UPSTREAM is {text!r}, which is where this daemon listens")
    return reference.domain


def _is_own(found: tuple[str, int | None], own_address: tuple[str, int]) -> bool:
    """Whether who connects to ``found`` comes to the daemon, as far as their spelling tells."""
    is_here = is_loopback(found[0]) or is_every_interface(found[0])
    # Where no port is said, a registry of this machine is tried in plain HTTP, and then with TLS.
    ports = (found[1],) if found[1] is not None else (80, 443) if is_here else (443,)
    is_reached_here = is_loopback(own_address[0]) or is_every_interface(own_address[0])
    return own_address[1] in ports and (found[0] == own_address[0] or (is_here and is_reached_here))
