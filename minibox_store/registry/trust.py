"""Whom TLS trusts, and as whom we appear: decided for each origin that is connected to.

The system's authorities are trusted (``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` stand for them where they are set), and
those that the program names. A registry's own authorities hold for all that it leads to in one session, such as a
token server of the same house, as with Docker and Podman. Its client certificate, and that its own certificate need
not be checked, hold for the registry alone: not for a token server, and not for where it redirects to.

Spec: RFC 9110, section 4.3.4; openssl-env(7).
"""

import copy
import os
import ssl
import threading
from collections.abc import Collection

import attrs

from minibox_store._file_errors import absolute_path
from minibox_store._files import open_regular
from minibox_store.errors import InvalidPath
from minibox_store.registry.certificates import CertificatesSource
from minibox_store.registry.urls import Origin
from minibox_store.values import Value


@attrs.frozen(repr=False)
class _Terms(Value):
    """What a context is made of."""

    authorities: tuple[str, ...] = ()
    client: tuple[str, str] | None = None
    is_checked: bool = attrs.field(default=True, kw_only=True)


class Trust:
    """The contexts of one client; several threads may use it. Files are read once, when they are first needed.

    Args:
        ca_file: authorities that are trusted everywhere.
        certificates: what there is for single hosts.
        insecure: registries, as references name them in lower case, whose certificate is not checked.
    """

    def __init__(
        self, *, ca_file: str | os.PathLike[str] | None, certificates: CertificatesSource, insecure: Collection[str]
    ) -> None:
        self._ca_file = None if ca_file is None else absolute_path(ca_file, "ca_file")
        self._certificates = certificates
        self._insecure = frozenset(insecure)
        self._lock = threading.Lock()
        self._made: dict[_Terms, ssl.SSLContext] = {}

    def without_checking(self, registry: str) -> "Trust":
        """Return the same trust, but that a registry's certificate is not checked; what was made before serves both."""
        other = copy.copy(self)
        other._insecure = self._insecure | {registry.lower()}
        return other

    def context_for(self, registry: str, home: Origin, origin: Origin) -> ssl.SSLContext:
        """Return how TLS is spoken with ``origin`` in a session with a registry.

        Args:
            registry: its name in references.
            home: where its API is.
            origin: the registry itself, or a host that it has named.

        Raises:
            InvalidPath: when certificates that are meant for it cannot be used.
        """
        of_home = self._certificates.find(registry)
        authorities = of_home.authorities if of_home is not None else ()
        if origin == home:
            client = of_home.client if of_home is not None else None
            return self._context(_Terms(authorities, client, is_checked=registry.lower() not in self._insecure))
        own = self._certificates.find(origin.authority)
        if own is None:
            return self._context(_Terms(authorities))
        return self._context(_Terms(tuple(dict.fromkeys((*own.authorities, *authorities))), own.client))

    def plain_context(self) -> ssl.SSLContext:
        """Return how TLS is spoken with who belongs to no registry."""
        return self._context(_Terms())

    def _context(self, terms: _Terms) -> ssl.SSLContext:
        # Reading the system's certificates takes a while: once, and only where TLS is spoken.
        with self._lock:
            if terms not in self._made:
                self._made[terms] = self._make(terms)
            return self._made[terms]

    def _make(self, terms: _Terms) -> ssl.SSLContext:
        context = ssl.create_default_context()
        # The same on every Python, and as Docker and Podman judge: whoever was named is trusted though nobody vouches
        # for him, and an authority's certificate need not have each field that newer ones have.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        for file in (*([self._ca_file] if self._ca_file is not None else []), *terms.authorities):
            _load_authorities(context, file)
        if terms.client is not None:
            _load_client(context, *terms.client)
        if not terms.is_checked:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    try:
        _check_regular(path)
        context.load_verify_locations(path)
    except OSError as error:
        raise InvalidPath(path, f"it holds no certificates: {_reason(error)}") from error


def _load_client(context: ssl.SSLContext, chain: str, key: str) -> None:
    try:
        _check_regular(chain)
        _check_regular(key)
        # Without a password of its own openssl would ask for one on the terminal.
        context.load_cert_chain(chain, key, password="")
    except OSError as error:
        raise InvalidPath(key, f"it is no key, without a password, of {chain}: {_reason(error)}") from error


def _check_regular(path: str) -> None:
    """Return if a regular file can be read: openssl would wait for who writes to a FIFO, for ever."""
    os.close(open_regular(path, follow_links=True))


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it is malformed").lower().replace("_", " ")
    return (error.strerror or str(error)).lower()
