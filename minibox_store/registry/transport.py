"""One request, however many messages it takes: authorization, redirects, retries and errors, in one loop.

What a caller gets is an answer that was accepted, or one error. Authorization goes to the registry's own origin and
is dropped for good by the first redirect that leaves it.

Spec: RFC 9110, section 15.4; OCI distribution-spec 1.1, "Error Codes".
"""

import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from http.client import HTTPException

import attrs

from minibox_store.digest import Digest
from minibox_store.errors import ContentMismatch, RegistryError, StoreError
from minibox_store.events import Event
from minibox_store.limits import Limits
from minibox_store.registry.answers import Answer
from minibox_store.registry.challenges import parse_challenges
from minibox_store.registry.connections import Connection, ConnectionPool
from minibox_store.registry.failures import Answerer, Failure, Refusal, foreign_errors
from minibox_store.registry.notices import Notices, read_rate_limit
from minibox_store.registry.outgoing import OutgoingBody
from minibox_store.registry.retries import Attempts, RetryPolicy, parse_retry_after
from minibox_store.registry.sessions import Session, meet
from minibox_store.registry.tokens import Authorizer, TokenCache
from minibox_store.registry.urls import InvalidUrl, Url
from minibox_store.values import Value

USER_AGENT = "minibox-store/0.1.0"

_MAX_HOPS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What is sent may be sent again only where these ask for it: after the others it would become a GET.
_REDIRECTS_THAT_KEEP = frozenset({307, 308})
_FORM = "application/x-www-form-urlencoded"


@attrs.frozen(kw_only=True, repr=False)
class Request(Value):
    """What is wanted of the registry.

    Attributes:
        target: path and query.
        place: where the registry has said that this is to be asked, instead of at ``target``.
        body: what is sent; one that is no bytes is sent once for each try, and never again unasked.
        headers: besides those that every request has.
        accepts: the statuses that are an answer, redirects that are not followed among them; others are errors.
        blob: what a 404 says is missing; None where that is a manifest.
        secrets: what no message may show.
    """

    target: str = ""
    place: Url | None = None
    method: str = "GET"
    body: bytes | OutgoingBody | None = attrs.field(default=None, repr=False)  # a form has a password in it
    headers: Mapping[str, str] = attrs.field(factory=dict)
    accepts: Collection[int] = (200,)
    blob: Digest | None = None
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)


@attrs.frozen(kw_only=True, repr=False)
class Reply(Value):
    """A whole answer, in memory. Nothing of it is trusted.

    Attributes:
        length_bytes: what was announced; of a HEAD's answer, what a GET would give.
        secrets: what no message may show, should a header repeat it.
    """

    status: int
    content: bytes
    length_bytes: int | None
    content_type: str | None
    content_digest: str | None
    link: str | None = None
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)


class Transport:
    """Carries requests to one registry. Its methods may be called from several threads.

    Args:
        session: with whom, and as whom.
        pool: of its connections.
        cache: where grants are kept.
        policy: how often something is tried.
        limits: how large tokens and errors may be.
        plain: makes the session without TLS, for a registry with which TLS is only tried.
        on_event: told of what the registry says besides its answers, from several threads.
    """

    def __init__(
        self,
        session: Session,
        *,
        pool: ConnectionPool,
        cache: TokenCache,
        policy: RetryPolicy,
        limits: Limits,
        plain: Callable[[], tuple[Session, ConnectionPool]] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._policy = policy
        self._limits = limits
        self._on_event = on_event
        self._notices = Notices(session.registry.authority, on_event)
        self._cache = cache
        self._plain = plain
        self._settling = threading.Lock()
        self._begin(session, pool)

    def _begin(self, session: Session, pool: ConnectionPool) -> None:
        self.registry = session.registry
        self._session = session
        self._pool = pool
        self._authorizer = Authorizer(
            registry=session.registry,
            scope=session.scope,
            find_credentials=lambda: session.find_credentials(self._check_interrupted),
            realms=session.realms,
            cache=self._cache,
            fetch=self._fetch_token,
            check_interrupted=self._check_interrupted,
            limits=self._limits,
        )

    def with_scope(self, scope: str) -> "Transport":
        """Return a transport over the same connections, whose tokens are good for another scope; it needs no close."""
        self._settle()
        session = attrs.evolve(self._session, scope=scope)
        return Transport(
            session,
            pool=self._pool,
            cache=self._cache,
            policy=self._policy,
            limits=self._limits,
            on_event=self._on_event,
        )

    def attempts(self, on_retry: Callable[[], None] | None = None) -> Attempts:
        """Return the tries for something new; ``on_retry`` is called as each but the first one begins."""
        return Attempts(self._policy, self._pool.lines.pause, on_retry)

    def tell(self, event: Event) -> None:
        """Tell whoever listens to this session."""
        if self._on_event is not None:
            self._on_event(event)

    def check_connection(self) -> None:
        """See, by one try, whether the registry can be connected to at all, and speaks TLS where it should.

        Raises:
            RegistryError: when not.
        """
        try:
            with foreign_errors("GET", str(self.registry)):
                connection, _ = self._pool.take(self.registry)
                with closing(connection):
                    connection.connect()
        except Failure as failure:
            raise failure.error from failure.__cause__

    def open(self, request: Request, attempts: Attempts) -> Answer:
        """Return an accepted answer, its body unread; the caller closes it.

        Raises:
            StoreError: when there is none, or the tries are used up.
        """
        while True:
            try:
                return self.ask(request)
            except Failure as failure:
                attempts.failed(failure)

    def ask(self, request: Request) -> Answer:
        """Return an accepted answer, its body unread, by one try; the caller closes it.

        Raises:
            Failure: when there is none.
        """
        self._settle()
        try:
            return self._ask(request)
        except StoreError as error:
            raise Failure(error) from error.__cause__

    def place_of(self, answer: Answer) -> Url:
        """Return where an answer says that it goes on: seen from who gave it, who may be behind redirects.

        Raises:
            RegistryError: when it does not say so, or it is no place to go on at.
        """
        return self._next_hop(answer, "goes on at")

    def read(self, request: Request, limit_bytes: int, size_bytes: int | None = None) -> Reply:
        """Return an accepted answer with its body, or the body's first ``limit_bytes`` and one more.

        Args:
            request: what to ask.
            limit_bytes: how much of the body is wanted at most.
            size_bytes: what the body's length must be, where that is known.

        Raises:
            ContentMismatch: when another length is announced; no byte of the body is read then.
            StoreError: as :meth:`open`.
        """
        attempts = self.attempts()
        while True:
            with closing(self.open(request, attempts)) as answer:
                if size_bytes is not None and answer.length_bytes not in (None, size_bytes):
                    what = str(request.blob or self.shown(request))
                    raise ContentMismatch(what, f"{size_bytes} bytes", f"{answer.length_bytes} bytes")
                try:
                    content = answer.read_up_to(limit_bytes)
                except Failure as failure:
                    broken = failure
                else:
                    return Reply(
                        status=answer.status,
                        content=content,
                        length_bytes=answer.length_bytes,
                        content_type=answer.header("Content-Type"),
                        content_digest=answer.header("Docker-Content-Digest"),
                        link=", ".join(answer.headers("Link")) or None,
                        secrets=answer.secrets,
                    )
            attempts.failed(broken)

    def close(self) -> None:
        """Close the connections that no answer is being read from; the others close with their answers."""
        self._pool.close()

    def shown(self, request: Request) -> str:
        """Return the URL of a request as an error may show it."""
        return (request.place or Url(self.registry, request.target)).shown

    def _settle(self) -> None:
        """Find out, before anything is sent, whether a registry with which TLS is only tried speaks it."""
        if self._plain is None:
            return
        with self._settling, foreign_errors("GET", str(self.registry)):
            if self._plain is not None:
                plain = meet(self._pool, self._plain)
                if plain is not None:
                    self._begin(*plain)
                self._plain = None

    def _ask(self, request: Request) -> Answer:
        url = request.place or Url(self.registry, request.target)
        is_home = url.origin == self.registry
        for _ in range(_MAX_HOPS + 1):
            # Elsewhere without authorization, and for good.
            answer = self._heeded(self._authorized(request, url)) if is_home else self._send(request, url)
            followed = REDIRECTS if request.method in ("GET", "HEAD") else _REDIRECTS_THAT_KEEP
            if answer.status not in followed or answer.status in request.accepts:
                return self._accepted(request, answer, is_home=is_home)
            # Its body is not read, not even to use the connection again.
            with closing(answer):
                url = self._next_hop(answer)
            # An address that was given may be a secret itself, also one of the registry's own.
            request = attrs.evolve(request, secrets=(*request.secrets, *url.query_values))
            is_home = is_home and url.origin == self.registry
        raise RegistryError(request.method, self.shown(request), None, (), f"more than {_MAX_HOPS} redirects")

    def _heeded(self, answer: Answer) -> Answer:
        """Return an answer of the registry itself, once what else it says has been told."""
        try:
            self._notices.heed(answer, self._authorizer.secrets())
        except BaseException:
            answer.close()
            raise
        return answer

    def _next_hop(self, answer: Answer, what: str = "redirects to") -> Url:
        location, url = answer.header("Location"), answer.place
        try:
            if location is None:
                raise InvalidUrl("there is none")
            following = url.join(location)
            if url.origin.scheme == "https" and following.origin.scheme != "https":
                raise InvalidUrl("it leads from TLS to plain HTTP")
        except InvalidUrl as error:
            problem = f"the address it {what} is refused: {error}"
            raise RegistryError(answer.method, answer.url, answer.status, (), problem) from None
        return following

    def _authorized(self, request: Request, url: Url) -> Answer:
        """Ask the registry itself; where it refuses what the request carried, once more with something better."""
        authorization = self._authorizer.authorization()
        answer = self._send(request, url, authorization)
        is_worn = answer.status == 400 and self._authorizer.is_worn(authorization)
        if answer.status != 401 and not is_worn:
            return answer
        refusal = self._refusal(answer, request.blob)
        challenges = parse_challenges(answer.headers("WWW-Authenticate"))
        answer.close()
        better = self._authorizer.renew(challenges, authorization)
        if better is None:  # credentials may have been looked for only now
            raise attrs.evolve(refusal, is_anonymous=self._authorizer.is_anonymous).failure()
        return self._send(request, url, better)

    def _accepted(self, request: Request, answer: Answer, *, is_home: bool) -> Answer:
        try:
            if answer.status not in request.accepts:
                raise self._refusal(answer, request.blob, "registry" if is_home else "elsewhere").failure()
            if answer.is_encoded:
                problem = "it is compressed on its way, though that was not asked for"
                raise RegistryError(answer.method, answer.url, answer.status, (), problem)
        except BaseException:
            answer.close()
            raise
        answer.secrets = (*answer.secrets, *self._authorizer.secrets())
        return answer

    def _refusal(self, answer: Answer, blob: Digest | None, answerer: Answerer = "registry") -> Refusal:
        try:
            body = answer.read_up_to(self._limits.error_bytes)
        except Failure:
            body = b""  # the status says enough
        secrets = (*answer.secrets, *self._authorizer.secrets())
        return Refusal(
            method=answer.method,
            url=answer.url,
            status=answer.status,
            body=body,
            content_type=answer.header("Content-Type"),
            blob=blob,
            answerer=answerer,
            retry_after_seconds=parse_retry_after(answer.header("Retry-After"), answer.header("Date")),
            rate_limit=read_rate_limit(answer, secrets) if answerer == "registry" else None,
            secrets=secrets,
            is_anonymous=self._authorizer.is_anonymous,
            limits=self._limits,
        )

    def _fetch_token(self, url: Url, authorization: str | None, form: bytes | None) -> bytes:
        method, headers = ("GET", {}) if form is None else ("POST", {"Content-Type": _FORM})
        with foreign_errors("GET", str(self.registry)):
            # A session may begin with a token that is near its end, and then with its token server.
            self._pool.meet_home()
        with closing(self._send(Request(method=method, headers=headers, body=form), url, authorization)) as answer:
            if answer.status in REDIRECTS:
                problem = "the token server redirects, which is not followed"
                raise RegistryError(method, url.shown, answer.status, (), problem)
            if answer.status != 200:
                raise self._refusal(answer, None, "token server").failure()
            content = answer.read_up_to(self._limits.token_bytes)
        if len(content) > self._limits.token_bytes:
            problem = f"the token is larger than {self._limits.token_bytes} bytes"
            raise RegistryError(method, url.shown, answer.status, (), problem)
        return content

    def _send(self, request: Request, url: Url, authorization: str | None = None) -> Answer:
        """Send one request to a URL and return its answer, whatever it is."""
        headers = {**request.headers, **self._session.headers, "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        if authorization is not None:
            headers["Authorization"] = authorization
            request = attrs.evolve(request, secrets=(*request.secrets, authorization.partition(" ")[2]))
        with foreign_errors(request.method, url.shown):
            connection, was_used = self._pool.take(url.origin)
            try:
                return self._exchange(connection, request, url, headers)
            except TimeoutError:
                raise
            except (OSError, HTTPException):
                # A server may close what has long been idle in the very moment in which it is used again. Of what is
                # read while it is sent, though, it may have kept some, and what it took away is gone.
                if not was_used or request.method == "DELETE" or not isinstance(request.body, bytes | None):
                    raise
            connection, _ = self._pool.take(url.origin, fresh=True)
            return self._exchange(connection, request, url, headers)

    def _exchange(self, connection: Connection, request: Request, url: Url, headers: Mapping[str, str]) -> Answer:
        method, secrets = request.method, request.secrets
        try:
            connection.send(method, url.target, headers, request.body)
            return Answer(method=method, place=url, secrets=secrets, connection=connection, pool=self._pool)
        except BaseException:
            connection.close()
            raise

    def _check_interrupted(self) -> None:
        with foreign_errors("GET", str(self.registry)):
            self._pool.lines.check()
