"""The client: everything that is known before a registry is spoken to.

Credentials, trust and patience are the program's; a session with one repository is made of them for each operation.
"""

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, Self, get_args

import attrs

from minibox_store.errors import InvalidArgument
from minibox_store.events import Event
from minibox_store.kinds import check_kind, check_seconds, check_secret, each_of
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.listeners import checked_listener, marking_errors
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
from minibox_store.registry.proxies import Proxies, ProxyRules
from minibox_store.registry.repository import RegistryRepository, WritableRepository
from minibox_store.registry.retries import RetryPolicy
from minibox_store.registry.sessions import FindCredentials, Session
from minibox_store.registry.tokens import TokenCache
from minibox_store.registry.transport import Transport
from minibox_store.registry.trust import Trust
from minibox_store.registry.urls import InvalidUrl, Origin
from minibox_store.registry_rules import RegistryPlace, RegistryRule, RegistryRules
from minibox_store.sentences import without_user

if TYPE_CHECKING:
    from minibox_store.registry.mirrors import MirroredRepository

OnEvent = Callable[[Event], None]
Access = Literal["pull", "pull,push", "pull,delete"]

# Where there is another place to ask, nobody waits long for one.
_MIRROR_ATTEMPTS = 2
_MIRROR_WAIT_SECONDS = 1.0
_MIRROR_CONNECT_SECONDS = 5.0
_MIRROR_SILENCE_SECONDS = 30.0
_LONGEST_SECONDS = 1e9  # of what a socket can wait for; some thirty years


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
        registries: what holds for the images of a registry: where else they are to be had, what is blocked, and, where
            these are ``RegistryRules``, what alone is allowed, and whether private addresses are.
        realms: by registry, the token servers elsewhere that may see its credentials: ``host[:port]``, or a URL.
        ca_file: certificates of authorities to be trusted besides the system's; a relative path is so to the working
            directory as it is now, whenever the file is read.
        connect_seconds: how long connecting may take.
        silence_seconds: how long nothing may come while something should; and how long a manifest, token or error
            may take as a whole.
        attempts: how often one thing is tried, while nothing comes of it.
        back_off_seconds: the first pause between two tries; it doubles.
        longest_wait_seconds: how long a registry may make us wait by Retry-After before the caller is told.
        limits: how large documents, tokens and errors may be.
        network: how names become addresses and connections.

    Attributes:
        limits: those; they hold for whatever is brought by this client.

    Raises:
        InvalidArgument: on construction, when two rules have the same prefix, a token server is neither a host nor a
            URL, for a text in the place of several, and for whatever else is none of these; of credentials it shows
            nothing.
        InvalidPath: on construction, when ``ca_file`` is no path, or is relative and the working directory is gone.
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
        registries: RegistryRules | Iterable[RegistryRule] = (),
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
        if credentials is None or isinstance(credentials, Mapping):
            credentials = KnownCredentials.of("credentials", credentials)
        if certificates is None or isinstance(certificates, Mapping):
            certificates = KnownCertificates.of(certificates)
        if not isinstance(registries, RegistryRules):
            registries = RegistryRules(each_of("registries", registries, RegistryRule))
        proxies = Proxies() if proxies is None else proxies
        _check_source("credentials", credentials)
        _check_source("certificates", certificates)
        check_secret("proxies", proxies, Proxies)
        check_kind("realms", {} if realms is None else realms, Mapping)
        check_kind("limits", limits, Limits)
        check_seconds("connect_seconds", connect_seconds, most=_LONGEST_SECONDS)
        check_seconds("silence_seconds", silence_seconds, most=_LONGEST_SECONDS)
        self._credentials = credentials
        self._rules = registries
        self._schemes = Schemes.of(plain_http, https, insecure)
        self._trust = Trust(ca_file=ca_file, certificates=certificates, insecure=self._schemes.insecure)
        self._proxy_rules = ProxyRules(proxies)
        self._realms = {domain: self._named_realms(domain, named) for domain, named in (realms or {}).items()}
        self._connect_seconds = connect_seconds
        self._silence_seconds = silence_seconds
        self._policy = RetryPolicy(
            attempts=attempts, back_off_seconds=back_off_seconds, longest_wait_seconds=longest_wait_seconds
        )
        self.limits = limits
        self._network = network or SystemNetwork()
        self._headers: dict[str, str] = {}
        self._cache = TokenCache()
        self._shared_caches: defaultdict[str, TokenCache] = defaultdict(TokenCache)

    def _named_realms(self, domain: str, named: Iterable[str]) -> frozenset[Origin]:
        named = each_of("realms", named, str)
        try:
            return token_origins(domain, named, self._schemes)
        except InvalidUrl as error:
            raise InvalidArgument("realms", tuple(map(without_user, named)), str(error)) from None

    @classmethod
    def for_machine(cls, *, limits: Limits = DEFAULT_LIMITS, private_addresses: bool = True) -> Self:
        """Return a client that does what the machine is set up for.

        It has the credentials and certificates of Docker and Podman, the proxies that the environment names, and the
        rules of the file that ``MINIBOX_REGISTRIES`` names.

        Args:
            limits: how large documents, tokens and errors may be.
            private_addresses: whether private addresses may be connected to where that file does not say.

        Raises:
            InvalidArgument: when the environment names a proxy that is none.
            InvalidPath, InvalidDocument: when the file of rules cannot be read.
        """
        from minibox_store.registry.machine_credentials import MachineCredentials
        from minibox_store.registry.registries import machine_rules

        environment = process_environment()
        rules = machine_rules(environment)
        if rules.private_addresses is None:
            rules = attrs.evolve(rules, private_addresses=private_addresses)
        return cls(
            credentials=MachineCredentials(environment=environment),
            certificates=CertificateFolders(*certificate_folders(environment)),
            proxies=Proxies(**proxy_settings(environment)),
            limits=limits,
            registries=rules,
        )

    def handing_on(self, via: Sequence[str]) -> Self:
        """Return this client as it is where a program asks for others: each request says who has handed it on.

        A program that is asked in its turn, and finds itself among them, need not ask any more: the way is a circle.

        Args:
            via: pseudonyms of programs, each a token of HTTP; the first one is the nearest to who wants it.

        Raises:
            InvalidArgument: for one text in the place of several.

        Spec: RFC 9110, section 7.6.3.
        """
        client = copy.copy(self)
        named = [f"1.1 {each}" for each in each_of("via", via, str)]
        client._headers = {"Via": ", ".join(named)} if named else {}
        return client

    def open_repository(
        self, reference: Reference, *, on_event: OnEvent | None = None
    ) -> "RegistryRepository | MirroredRepository":
        """Return the repository that ``reference`` lies in, to be closed; nothing is sent yet.

        What is read of it comes from wherever the rules of registries say.

        Args:
            reference: of the repository; its tag and digest do not matter.
            on_event: told of what registries say besides their answers, from several threads.

        Raises:
            InvalidReference: when its domain cannot be contacted.
            RegistryBlocked: when a rule blocks it.
            InvalidArgument: for an ``on_event`` that cannot be called.
        """
        _check_listener(on_event)
        *mirrors, home = self._rules.places(reference)
        if not mirrors:
            return self._open_place(home, "pull", on_event)
        from minibox_store.registry.mirrors import MirroredRepository
        from minibox_store.registry.turns import OpenPlace

        on_event = marking_errors(on_event or (lambda _: None))
        opened = [OpenPlace(each, self._open_mirror(each, home, on_event)) for each in mirrors]
        opened.append(OpenPlace(home, self._open_place(home, "pull", on_event)))
        return MirroredRepository(opened, on_event)

    def open_origin(
        self, reference: Reference, *, access: Access = "pull", on_event: OnEvent | None = None
    ) -> WritableRepository:
        """Return the repository itself, whatever mirrors it may have: who writes needs it.

        Args:
            reference: of the repository; its tag and digest do not matter.
            access: what will be done there, which the tokens are asked for.
            on_event: told of what the registry says besides its answers, from several threads.

        Raises:
            InvalidReference: when its domain cannot be contacted.
            RegistryBlocked: when a rule blocks it.
            InvalidArgument: for an ``access`` that there is not, and an ``on_event`` that cannot be called.
        """
        if access not in get_args(Access):
            raise InvalidArgument("access", access, f"it is none of {', '.join(get_args(Access))}")
        _check_listener(on_event)
        return self._open_place(self._rules.named_place(reference), access, on_event)

    def open_registry(self, registry: str, *, on_event: OnEvent | None = None) -> WritableRepository:
        """Return a session by which the registry may be asked for its repositories, to be closed.

        Raises:
            InvalidReference: when ``registry`` is none.
            RegistryBlocked: when a rule blocks all of it.
            InvalidArgument: for an ``on_event`` that cannot be called.
        """
        _check_listener(on_event)
        anything = Reference(domain=registry, repository="any/repository", tag="any")
        find = partial(self._credentials.find, registry, anything.repository)
        place = self._rules.registry_place(registry)
        return self._towards(place)._open(anything, "registry:catalog:*", find, self._cache, on_event)

    def check_credentials(self, registry: str, credentials: Credentials) -> None:
        """See that a registry takes these credentials, whatever others the client has.

        Raises:
            InvalidReference: when ``registry`` is none.
            RegistryBlocked: when a rule blocks all of it.
            InvalidArgument: for credentials that are none; it shows nothing of them.
            AuthenticationRefused: when the registry, or its token server, refuses them.
            RegistryError: when it cannot be reached or fails.
        """
        check_secret("credentials", credentials, Credentials)
        # No repository is asked for; and tokens that other credentials got before would prove nothing.
        anything = Reference(domain=registry, repository="any/repository", tag="any")
        place = self._rules.registry_place(registry)
        with self._towards(place)._open(anything, "", lambda _: credentials, TokenCache()) as repository:
            repository.check_access()

    def _open_place(self, place: RegistryPlace, access: Access, on_event: OnEvent | None) -> WritableRepository:
        return self._towards(place)._open_as(place, place, access, self._cache, on_event)

    def _open_mirror(self, place: RegistryPlace, home: RegistryPlace, on_event: OnEvent | None) -> WritableRepository:
        """Return what is at a mirror; it is shown the credentials for ``home`` where the rule says so."""
        is_sharing = place.mirror is not None and place.mirror.credentials == "shared"
        client = self._towards(place, also=self._realms_of(home) if is_sharing else frozenset(), is_mirror=True)
        # What a mirror gives for the credentials of another is not what it would give for its own.
        cache = self._shared_caches[home.reference.domain] if is_sharing else self._cache
        return client._open_as(place, home if is_sharing else place, "pull", cache, on_event)

    def _open_as(
        self, place: RegistryPlace, owner: RegistryPlace, access: Access, cache: TokenCache, on_event: OnEvent | None
    ) -> WritableRepository:
        find = partial(self._credentials.find, owner.reference.domain, owner.reference.repository)
        scope = f"repository:{place.reference.repository}:{access}"
        return self._open(place.reference, scope, find, cache, on_event)

    def _realms_of(self, place: RegistryPlace) -> frozenset[Origin]:
        domain = place.reference.domain
        return self._realms.get(domain, frozenset()) | token_origins(domain, place.realms, self._schemes)

    def _towards(
        self, place: RegistryPlace, *, also: frozenset[Origin] = frozenset(), is_mirror: bool = False
    ) -> "RegistryClient":
        """Return this client as it is towards one place: with what the rules say of that one, and of no other."""
        client, domain = copy.copy(self), place.reference.domain
        client._realms = {domain: self._realms_of(place) | also}
        if place.insecure:
            client._schemes = self._schemes.with_insecure(domain)
            client._trust = self._trust.without_checking(domain)
        if is_mirror:
            client._policy = attrs.evolve(
                self._policy,
                attempts=min(self._policy.attempts, _MIRROR_ATTEMPTS),
                longest_wait_seconds=min(self._policy.longest_wait_seconds, _MIRROR_WAIT_SECONDS),
            )
            client._connect_seconds = min(self._connect_seconds, _MIRROR_CONNECT_SECONDS)
            client._silence_seconds = min(self._silence_seconds, _MIRROR_SILENCE_SECONDS)
        return client

    def _open(
        self,
        reference: Reference,
        scope: str,
        find: FindCredentials,
        cache: TokenCache,
        on_event: OnEvent | None = None,
    ) -> WritableRepository:
        api_origin(reference.domain, self._schemes)  # before all else: a reference may have a port that is none
        lines = OpenLines()
        opened = partial(self._open_transport, reference.domain, scope, find, cache, lines, on_event)
        tls_transport = None
        if self._schemes.is_guess(reference.domain):
            tls_transport = partial(opened, self._schemes.with_https(reference.domain))
        return WritableRepository(reference, opened(self._schemes), lines, self.limits, tls_transport=tls_transport)

    def _open_transport(
        self,
        domain: str,
        scope: str,
        find: FindCredentials,
        cache: TokenCache,
        lines: OpenLines,
        on_event: OnEvent | None,
        schemes: Schemes,
    ) -> Transport:
        opened = partial(self._open_session, domain, scope, find, lines)
        plain = None
        if schemes.may_be_plain(domain):
            plain = partial(opened, schemes.with_plain_http(domain))
        session, pool = opened(schemes)
        return Transport(
            session,
            pool=pool,
            cache=cache,
            policy=self._policy,
            limits=self.limits,
            plain=plain,
            on_event=on_event,
        )

    def _open_session(
        self, domain: str, scope: str, find: FindCredentials, lines: OpenLines, schemes: Schemes
    ) -> tuple[Session, ConnectionPool]:
        origin = api_origin(domain, schemes)
        session = Session(
            registry=origin,
            scope=scope,
            find_credentials=find,
            realms=self._realms.get(domain) or token_origins(domain, (), schemes),
            headers=self._headers,
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
            private_addresses=self._rules.private_addresses is not False,
        )
        return session, pool


def _check_source(name: str, source: object) -> None:
    # A text has a find too; and what is no source may be a secret.
    if isinstance(source, str | bytes) or not callable(getattr(source, "find", None)):
        raise InvalidArgument(name, "***", f"it is {type(source).__name__}, and neither a mapping nor a source of them")


def _check_listener(on_event: OnEvent | None) -> None:
    if on_event is not None:
        checked_listener(on_event)
