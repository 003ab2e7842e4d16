"""The client: everything that is known before a registry is spoken to.

Credentials, trust and patience are the program's; a session with one repository is made of them for each operation.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Literal, Self

from minibox_store.events import Event
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.reference import Reference
from minibox_store.registry.certificates import (
    CertificateFolders,
    Certificates,
    CertificatesSource,
    KnownCertificates,
)
from minibox_store.registry.connections import ConnectionPool
from minibox_store.registry.credentials import Credentials, CredentialsSource, KnownCredentials
from minibox_store.registry.dialling import Network, OpenLines, SystemNetwork
from minibox_store.registry.environment import certificate_folders, process_environment, proxy_settings
from minibox_store.registry.hosts import Schemes, api_origin, token_origins
from minibox_store.registry.machine_credentials import MachineCredentials
from minibox_store.registry.proxies import Proxies, ProxyRules
from minibox_store.registry.repository import RegistryRepository
from minibox_store.registry.retries import RetryPolicy
from minibox_store.registry.sessions import FindCredentials, Session
from minibox_store.registry.tokens import TokenCache
from minibox_store.registry.transport import Transport
from minibox_store.registry.trust import Trust

Access = Literal["pull", "pull,push", "delete", "pull,push,delete"]


class RegistryClient:
    """Knows how registries are reached, and as whom. One may serve a whole program; several threads may use it.

    Args:
        credentials: by registry, as references name it (``docker.io``, ``localhost:5000``), or by ``registry/path``;
            or where they are looked for: ``MachineCredentials()`` are those that Docker and Podman keep. Anonymous
            where it is None.
        certificates: by registry, as references name it, whom else its certificate may be vouched for by, and what we
            prove ourselves with; or where that is looked for: ``CertificateFolders("/etc/docker/certs.d")``.
        insecure: registries whose certificate is not checked, and with which plain HTTP is spoken where they speak no
            TLS, credentials included. Of token servers, and of hosts that they redirect to, it says nothing.
        plain_http: registries that speak HTTP without TLS though they are not on this machine.
        https: registries on this machine that speak TLS, where plain HTTP is the rule.
        proxies: through whom hosts are reached that are not this machine; nobody where it is None. A proxy resolves
            the names that it is given, so that of hosts behind one only those that are spelled as addresses can be
            kept from leading to this machine, or to what answers near it.
        realms: by registry, the token servers elsewhere that may see its credentials: ``host[:port]``, or a URL.
        ca_file: certificates of authorities to be trusted besides the system's.
        connect_seconds: how long connecting may take.
        silence_seconds: how long nothing may come while something should; and how long a manifest, token or error
            may take as a whole.
        attempts: how often one thing is tried, while nothing comes of it.
        back_off_seconds: the first pause between two tries; it doubles.
        longest_wait_seconds: how long a registry may make us wait by Retry-After before the caller is told.
        limits: how large documents, tokens and errors may be.
        network: how names become addresses and connections.

    Raises:
        ValueError: on construction, when a token server is neither a host nor a URL.
    """

    def __init__(
        self,
        *,
        credentials: Mapping[str, Credentials] | CredentialsSource | None = None,
        certificates: Mapping[str, Certificates] | CertificatesSource | None = None,
        insecure: Collection[str] = (),
        plain_http: Collection[str] = (),
        https: Collection[str] = (),
        proxies: Proxies | None = None,
        realms: Mapping[str, Iterable[str]] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        connect_seconds: float = 10.0,
        silence_seconds: float = 60.0,
        attempts: int = 5,
        back_off_seconds: float = 0.2,
        longest_wait_seconds: float = 10.0,
        limits: Limits = DEFAULT_LIMITS,
        network: Network | None = None,
    ) -> None:
        self._credentials: CredentialsSource
        if credentials is None or isinstance(credentials, Mapping):
            self._credentials = KnownCredentials(dict(credentials or {}))
        else:
            self._credentials = credentials
        if certificates is None or isinstance(certificates, Mapping):
            certificates = KnownCertificates(dict(certificates or {}))
        self._trust = Trust(ca_file=ca_file, certificates=certificates, insecure=insecure)
        self._proxy_rules = ProxyRules(proxies or Proxies())
        self._schemes = Schemes.of(plain_http, https, insecure)
        self._realms = {domain: token_origins(domain, named, self._schemes) for domain, named in (realms or {}).items()}
        self._connect_seconds = connect_seconds
        self._silence_seconds = silence_seconds
        self._policy = RetryPolicy(
            attempts=attempts, back_off_seconds=back_off_seconds, longest_wait_seconds=longest_wait_seconds
        )
        self._limits = limits
        self._network = network or SystemNetwork()
        self._cache = TokenCache()

    @classmethod
    def for_machine(cls, *, limits: Limits = DEFAULT_LIMITS) -> Self:
        """Return a client that does what the machine is set up for.

        It has the credentials and the certificates of Docker and Podman, and the proxies that the environment names.

        Raises:
            InvalidArgument: when the environment names a proxy that is none.
        """
        environment = process_environment()
        return cls(
            credentials=MachineCredentials(environment=environment),
            certificates=CertificateFolders(*certificate_folders(environment)),
            proxies=Proxies(**proxy_settings(environment)),
            limits=limits,
        )

    def open_repository(
        self, reference: Reference, *, access: Access = "pull", on_event: Callable[[Event], None] | None = None
    ) -> RegistryRepository:
        """Return the repository that ``reference`` lies in, to be closed; nothing is sent yet.

        Args:
            reference: of the repository; its tag and digest do not matter.
            access: what will be done there, which the tokens are asked for.
            on_event: told of what registries say besides their answers, from several threads.

        Raises:
            InvalidReference: when its domain cannot be contacted.
        """
        find = partial(self._credentials.find, reference.domain, reference.repository)
        return self._open(reference, f"repository:{reference.repository}:{access}", find, self._cache)

    def check_credentials(self, registry: str, credentials: Credentials) -> None:
        """See that a registry takes these credentials, whatever others the client has.

        Raises:
            InvalidReference: when ``registry`` is none.
            AuthenticationRefused: when the registry, or its token server, refuses them.
            RegistryError: when it cannot be reached or fails.
        """
        # No repository is asked for; and tokens that other credentials got before would prove nothing.
        anything = Reference(domain=registry, repository="any/repository", tag="any")
        with self._open(anything, "", lambda _: credentials, TokenCache()) as repository:
            repository.check_access()

    def _open(self, reference: Reference, scope: str, find: FindCredentials, cache: TokenCache) -> RegistryRepository:
        lines = OpenLines()
        opened = partial(self._open_transport, reference.domain, scope, find, cache, lines)
        tls_transport = None
        if self._schemes.is_guess(reference.domain):
            tls_transport = partial(opened, self._schemes.with_https(reference.domain))
        return RegistryRepository(reference, opened(self._schemes), lines, self._limits, tls_transport=tls_transport)

    def _open_transport(
        self,
        domain: str,
        scope: str,
        find: FindCredentials,
        cache: TokenCache,
        lines: OpenLines,
        schemes: Schemes,
    ) -> Transport:
        opened = partial(self._open_session, domain, scope, find, lines)
        plain = None
        if schemes.may_be_plain(domain):
            plain = partial(opened, schemes.with_plain_http(domain))
        session, pool = opened(schemes)
        return Transport(session, pool=pool, cache=cache, policy=self._policy, limits=self._limits, plain=plain)

    def _open_session(
        self, domain: str, scope: str, find: FindCredentials, lines: OpenLines, schemes: Schemes
    ) -> tuple[Session, ConnectionPool]:
        origin = api_origin(domain, schemes)
        session = Session(
            registry=origin,
            scope=scope,
            find_credentials=find,
            realms=self._realms.get(domain) or token_origins(domain, (), schemes),
        )
        pool = ConnectionPool(
            home=origin,
            network=self._network,
            lines=lines,
            tls_context=partial(self._trust.context_for, domain, origin),
            connect_seconds=self._connect_seconds,
            silence_seconds=self._silence_seconds,
            proxy_for=self._proxy_rules.proxy_for,
            proxy_context=self._trust.plain_context,
        )
        return session, pool
