"""Who may see credentials, and what a registry gets to see instead: tokens, fetched where it says, but not anywhere.

A registry names its token server in a challenge, and may be hostile: the address is judged before anything is sent
to it. Credentials go to the registry's own origin, and to the token servers that are known or were configured for it.

Spec: Docker Registry v2 token authentication; RFC 6750, section 3; RFC 9110, section 11.
"""

import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlencode

import attrs

from minibox_store.codec import decode_token_answer
from minibox_store.errors import AuthenticationRefused, InvalidDocument, RegistryError, StoreError
from minibox_store.limits import Limits
from minibox_store.registry.challenges import Challenge
from minibox_store.registry.credentials import Credentials
from minibox_store.registry.failures import Failure
from minibox_store.registry.urls import InvalidUrl, Origin, Url
from minibox_store.values import Value, masked

FetchToken = Callable[[Url, str | None, bytes | None], bytes]

_POLL_SECONDS = 0.1
# A token is renewed so long before its end that no request meets the end on its way.
_MARGIN_SECONDS = 10.0
_MARGIN_SHARE = 0.2
_CLIENT_ID = "minibox-store"
# What token servers answer to a POST that do not take refresh tokens by it, or take them as passwords alone.
_NO_POST = frozenset({400, 401, 404, 405, 501})


@attrs.frozen(kw_only=True, repr=False)
class TokenQuestion(Value):
    """What a challenge says must be asked, and where: at a realm that was checked."""

    realm: Url
    service: str | None
    scopes: tuple[str, ...]

    @property
    def url(self) -> Url:
        """What a GET asks."""
        asked = [("service", self.service)] if self.service else []
        return self.realm.with_query([*asked, *(("scope", scope) for scope in self.scopes)])

    def form(self, refresh_token: str) -> bytes:
        """Return what a POST asks.

        Spec: RFC 6749, section 6; Docker Registry v2 authentication, "Token authentication using OAuth2".
        """
        fields = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": _CLIENT_ID}
        named = {"service": self.service or "", "scope": " ".join(self.scopes)}
        return urlencode({**fields, **{name: value for name, value in named.items() if value}}).encode("ascii")


@attrs.frozen(repr=False)
class Grant(Value):
    """An Authorization value that a registry takes, from ``begun`` (monotonic seconds) for ``life_seconds``."""

    authorization: str = attrs.field(repr=masked)
    begun: float
    life_seconds: float

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show: whoever uses a grant need not have seen what it was made of."""
        scheme, _, value = self.authorization.partition(" ")
        password = base64.b64decode(value).decode().partition(":")[2] if scheme == "Basic" else ""
        return tuple(secret for secret in (value, password) if secret)

    def is_fresh(self, now: float) -> bool:
        """Whether a request sent now arrives well before the grant's end."""
        margin = min(_MARGIN_SECONDS, self.life_seconds * _MARGIN_SHARE)
        return now < self.begun + self.life_seconds - margin

    def is_worn(self, now: float) -> bool:
        """Whether more than half its life is over."""
        return now > self.begun + self.life_seconds / 2


class _Slot:
    """What is known of one scope: its grant, and where grants come from. Changed under its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.grant: Grant | None = None
        self.source: TokenQuestion | None = None


class TokenCache:
    """The grants of one client, by registry and scope, shared by its sessions and their threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[tuple[Origin, str], _Slot] = {}

    def slot(self, registry: Origin, scope: str) -> _Slot:
        """Return what is kept for a scope of a registry."""
        with self._lock:
            return self._slots.setdefault((registry, scope), _Slot())


def asked_scopes(challenged: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """Return the scopes that a token is asked for: what the registry names, and what the session will need later.

    A registry names what one request needs. Whoever only reads needs no more; who writes would ask for a second token
    at the first request that writes, and with it lose what the first one was good for.

    Args:
        challenged: what the registry names, each ``type:name:action,action``; not trusted.
        own: what the session is for.

    >>> asked_scopes(["repository:app:pull"], ["repository:app:pull,push"])
    ('repository:app:pull,push',)
    >>> asked_scopes(["*"], ["repository:app:pull,push"])
    ('*', 'repository:app:pull,push')

    Spec: distribution project, "Token Scope Documentation".
    """
    if not challenged or all(scope.endswith(":pull") for scope in own):
        return tuple(challenged or own)
    wanted: dict[str, dict[str, None]] = {}
    for scope in (*challenged, *own):
        resource, mark, actions = scope.rpartition(":")
        wanted.setdefault(resource + mark, {}).update(dict.fromkeys(actions.split(",")))
    return tuple(resource + ",".join(actions) for resource, actions in wanted.items())


class Authorizer:
    """Says what Authorization the requests of one session carry. Its methods may be called from several threads.

    Args:
        registry: whose requests they are.
        scope: what they need, as the registry's challenges spell it; used where a challenge names none.
        find_credentials: returns None to ask anonymously; called once, when the registry first asks who we are.
        realms: the token servers elsewhere that may see the credentials.
        cache: where grants are kept.
        fetch: sends a GET, or a POST of the form that is given, without following redirects, with this Authorization,
            and returns the bounded body.
        check_interrupted: raises when the session is over.
        limits: how large a token may be.
    """

    def __init__(
        self,
        *,
        registry: Origin,
        scope: str,
        find_credentials: Callable[[], Credentials | None],
        realms: frozenset[Origin],
        cache: TokenCache,
        fetch: FetchToken,
        check_interrupted: Callable[[], None],
        limits: Limits,
    ) -> None:
        self._registry = registry
        self._scope = scope
        self._find_credentials = find_credentials
        self._credentials: Credentials | None = None
        self._trouble: StoreError | None = None
        self._has_looked = False
        self._realms = realms | {registry}
        self._slot = cache.slot(registry, scope)
        self._failures = 0
        self._failure: Failure | None = None
        self._fetch = fetch
        self._check_interrupted = check_interrupted
        self._limits = limits

    def authorization(self) -> str | None:
        """Return what the next request carries; a token near its end is renewed before."""
        grant = self._slot.grant
        if grant is None or grant.is_fresh(time.monotonic()):
            return grant.authorization if grant is not None else None
        with self._single_flight() as in_vain:
            grant = self._slot.grant
            if grant is None or grant.is_fresh(time.monotonic()) or self._slot.source is None:
                return grant.authorization if grant is not None else None
            return self._renewed(self._slot.source, in_vain)

    def renew(self, challenges: Sequence[Challenge], rejected: str | None) -> str | None:
        """Return what to try after the registry has refused ``rejected``; None when there is nothing better.

        However many threads were refused at once, one of them fetches and the others take what it got, or its failure:
        else a token server that keeps silent would be waited for by one after the other.

        Raises:
            AuthenticationRefused: when the token server is not to be asked, or refuses.
        """
        with self._single_flight() as in_vain:
            grant = self._slot.grant
            if grant is not None and grant.authorization != rejected and grant.is_fresh(time.monotonic()):
                return grant.authorization
            for challenge in challenges:
                if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                    self._slot.source = self._question(challenge)
                    return self._renewed(self._slot.source, in_vain)
            wants_basic = any(challenge.scheme == "basic" for challenge in challenges)
            if wants_basic and (basic := self._basic(rejected)) is not None:
                return basic
            # To a token that has ended some answer without a challenge, and Harbor with one for basic alone.
            if self._slot.source is None or (challenges and not wants_basic):
                return None
            return self._renewed(self._slot.source, in_vain)

    def is_worn(self, authorization: str | None) -> bool:
        """Whether a refused ``authorization`` may have been refused for its age."""
        grant = self._slot.grant
        if grant is None or grant.authorization != authorization:
            return authorization is not None
        return self._slot.source is not None and grant.is_worn(time.monotonic())

    def secrets(self) -> tuple[str, ...]:
        """Return what no message may show."""
        grant, known = self._slot.grant, self._credentials
        told = () if grant is None else grant.secrets
        return told if known is None else (*told, *known.secrets)

    @property
    def is_anonymous(self) -> bool:
        """Whether credentials were looked for, and there are none."""
        return self._has_looked and self._trouble is None and self._credentials is None

    def _known(self) -> Credentials | None:
        """Return the credentials; called by who has the slot's lock, so that one thread looks for all."""
        if not self._has_looked:
            try:
                self._credentials = self._find_credentials()
            except StoreError as error:
                self._trouble = error
            self._has_looked = True
        if self._trouble is not None:
            raise self._trouble
        return self._credentials

    def _basic(self, rejected: str | None) -> str | None:
        known = self._known()
        if known is None or known.basic == rejected:
            return None
        self._slot.grant = Grant(known.basic, time.monotonic(), float("inf"))
        return known.basic

    def _renewed(self, source: TokenQuestion, in_vain: Failure | None) -> str:
        begun, known = time.monotonic(), self._known()
        # Asked each time: the address may be known from a session that had no credentials to lose.
        if known is not None and source.realm.origin not in self._realms:
            problem = "its credentials go to no token server of another host that is not configured"
            raise self._untrusted(source.realm.shown, problem)
        if in_vain is not None:
            raise in_vain from in_vain.error.__cause__
        try:
            content = self._asked(source, known)
        except Failure as failure:
            self._failures += 1
            self._failure = failure
            raise
        try:
            answer = decode_token_answer(content, limits=self._limits)
        except InvalidDocument as error:
            problem = f"the token server's answer is unusable: {error.problem}"
            raise RegistryError("GET", source.realm.shown, 200, (), problem) from None
        self._slot.grant = Grant(f"Bearer {answer.token}", begun, answer.expires_in_seconds)
        return self._slot.grant.authorization

    def _asked(self, source: TokenQuestion, known: Credentials | None) -> bytes:
        """Return the token server's answer: to a refresh token by POST, and by GET where it takes none so."""
        if known is not None and known.refresh_token is not None:
            try:
                return self._fetch(source.realm, None, source.form(known.refresh_token))
            except Failure as failure:
                if not isinstance(failure.error, RegistryError) or failure.error.status not in _NO_POST:
                    raise
        return self._fetch(source.url, None if known is None else known.basic, None)

    def _question(self, challenge: Challenge) -> TokenQuestion:
        return TokenQuestion(
            realm=self._checked_realm(challenge.parameters["realm"]),
            service=challenge.parameters.get("service"),
            scopes=asked_scopes(challenge.parameters.get("scope", "").split(), self._scope.split()),
        )

    def _checked_realm(self, text: str) -> Url:
        try:
            realm = Url.parse(text)
        except InvalidUrl as error:
            raise self._untrusted(str(self._registry), f"the token server's address cannot be used: {error}") from None
        if realm.origin.scheme != "https" and self._registry.scheme == "https":
            raise self._untrusted(realm.shown, "a registry with TLS names a token server without")
        return realm

    def _untrusted(self, url: str, problem: str) -> AuthenticationRefused:
        return AuthenticationRefused("GET", url, None, (), problem)

    @contextmanager
    def _single_flight(self) -> Iterator[Failure | None]:
        """Hold the slot; yield how another thread of this session has asked in vain while this one waited."""
        known = self._failures
        while not self._slot.lock.acquire(timeout=_POLL_SECONDS):
            self._check_interrupted()
        try:
            yield None if self._failure is None or self._failures == known else _again(self._failure)
        finally:
            self._slot.lock.release()


def _again(failure: Failure) -> Failure:
    """Return the same failure for another thread: an exception that is raised belongs to one."""
    error = failure.error.after(())
    error.__cause__ = failure.__cause__
    return attrs.evolve(failure, error=error)
