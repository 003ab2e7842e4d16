"""The client: everything that is known before a registry is spoken to.

Credentials, trust and patience are the program's; a session with one repository is made of them for each operation.
"""

import os
import ssl
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Literal, Self

from minibox_store.errors import InvalidPath
from minibox_store.events import Event
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.reference import Reference
from minibox_store.registry.connections import ConnectionPool
from minibox_store.registry.credentials import Credentials, CredentialsSource, KnownCredentials
from minibox_store.registry.dialling import Network, OpenLines, SystemNetwork
from minibox_store.registry.hosts import Schemes, api_origin, token_origins
from minibox_store.registry.machine_credentials import MachineCredentials
from minibox_store.registry.repository import RegistryRepository, WritableRepository
from minibox_store.registry.retries import RetryPolicy
from minibox_store.registry.tokens import TokenCache
from minibox_store.registry.transport import FindCredentials, Session, Transport

Access = Literal["pull", "pull,push", "pull,delete"]


class RegistryClient:
    """Knows how registries are reached, and as whom. One may serve a whole program; several threads may use it.

    Args:
        credentials: by registry, as references name it (``docker.io``, ``localhost:5000``), or by ``registry/path``;
            or where they are looked for: ``MachineCredentials()`` are those that Docker and Podman keep. Anonymous
            where it is None.
        plain_http: registries that speak HTTP without TLS though they are not on this machine.
        https: registries on this machine that speak TLS, where plain HTTP is the rule.
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
        plain_http: Collection[str] = (),
        https: Collection[str] = (),
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
        self._schemes = Schemes.of(plain_http, https)
        self._realms = {domain: token_origins(domain, named, self._schemes) for domain, named in (realms or {}).items()}
        self._ca_file = ca_file
        self._connect_seconds = connect_seconds
        self._silence_seconds = silence_seconds
        self._policy = RetryPolicy(
            attempts=attempts, back_off_seconds=back_off_seconds, longest_wait_seconds=longest_wait_seconds
        )
        self._limits = limits
        self._network = network or SystemNetwork()
        self._cache = TokenCache()
        self._tls_lock = threading.Lock()
        self._made_tls_context: ssl.SSLContext | None = None

    @classmethod
    def for_machine(cls, *, limits: Limits = DEFAULT_LIMITS) -> Self:
        """Return a client that does what the machine is set up for: with the credentials of Docker and Podman."""
        return cls(credentials=MachineCredentials(), limits=limits)

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
        return self.open_origin(reference, access=access, on_event=on_event)

    def open_origin(
        self, reference: Reference, *, access: Access = "pull", on_event: Callable[[Event], None] | None = None
    ) -> WritableRepository:
        """Return the repository itself, as :meth:`open_repository`, whatever may stand for it: who writes needs it."""
        find = partial(self._credentials.find, reference.domain, reference.repository)
        return self._open(reference, f"repository:{reference.repository}:{access}", find, self._cache)

    def open_registry(self, registry: str, *, on_event: Callable[[Event], None] | None = None) -> WritableRepository:
        """Return a session by which the registry may be asked for its repositories, to be closed.

        Raises:
            InvalidReference: when ``registry`` is none.
        """
        anything = Reference(domain=registry, repository="any/repository", tag="any")
        find = partial(self._credentials.find, registry, anything.repository)
        return self._open(anything, "registry:catalog:*", find, self._cache)

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

    def _open(self, reference: Reference, scope: str, find: FindCredentials, cache: TokenCache) -> WritableRepository:
        lines = OpenLines()
        opened = partial(self._open_transport, reference.domain, scope, find, cache, lines)
        tls_transport = None
        if self._schemes.is_guess(reference.domain):
            tls_transport = partial(opened, self._schemes.with_https(reference.domain))
        return WritableRepository(reference, opened(self._schemes), lines, self._limits, tls_transport=tls_transport)

    def _open_transport(
        self,
        domain: str,
        scope: str,
        find: FindCredentials,
        cache: TokenCache,
        lines: OpenLines,
        schemes: Schemes,
    ) -> Transport:
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
            tls_context=self._tls_context,
            connect_seconds=self._connect_seconds,
            silence_seconds=self._silence_seconds,
        )
        return Transport(session, pool=pool, cache=cache, policy=self._policy, limits=self._limits)

    def _tls_context(self) -> ssl.SSLContext:
        # Reading the system's certificates takes a while: once, and only where TLS is spoken.
        with self._tls_lock:
            if self._made_tls_context is None:
                context = ssl.create_default_context()
                if self._ca_file is not None:
                    try:
                        context.load_verify_locations(self._ca_file)
                    except (OSError, ssl.SSLError) as error:
                        raise InvalidPath(os.fspath(self._ca_file), f"it holds no certificates: {error}") from error
                self._made_tls_context = context
            return self._made_tls_context
