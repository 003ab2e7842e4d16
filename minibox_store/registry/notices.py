r"""What a registry says besides its answers: how much is left of its limit, and warnings for the user.

A warning is told once in a session, and no more than a few are: who sends others with each answer is not listened to.
Nothing that was sent to the registry is repeated.

The grammar, where one header may hold several warnings::

    warning := code space agent space quoted-string [ space quoted-string ]

Spec: OCI distribution-spec 1.1, "Warnings"; RFC 7234, section 5.5.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator

import attrs

from minibox_store.events import Event, RateLimitSeen, RegistryWarning
from minibox_store.registry.answers import Answer
from minibox_store.registry.failures import without_secrets
from minibox_store.registry.rate_limits import parse_rate_limit
from minibox_store.reports.rate_limits import RateLimit

_WARNING = re.compile(
    r"""
    (?P<code> [0-9]{3} ) \x20 [^\s",]+ \x20 "(?P<text> [^"\\]*(?:\\.[^"\\]*)* )" (?: \x20 "[^"]*" )?
    [ \t]* (?: , [ \t,]* | \Z )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_MISCELLANEOUS = "299"
_MAX_BYTES = 4096
_MOST_WARNINGS = 16


class Notices:
    """Tells what the registry of one session says, each thing when it is new. From several threads.

    Args:
        host: the registry, as events call it.
        on_event: is told.
    """

    def __init__(self, host: str, on_event: Callable[[Event], None] | None) -> None:
        self._host = host
        self._on_event = on_event
        self._lock = threading.Lock()
        self._rate_limit: RateLimit | None = None
        self._warnings: set[str] = set()

    def heed(self, answer: Answer, secrets: Iterable[str]) -> None:
        """Tell what is new in the head of an answer of the registry itself."""
        if self._on_event is None:
            return
        secrets = (*answer.secrets, *secrets)
        for event in (*self._new_limits(read_rate_limit(answer, secrets)), *self._new_warnings(answer, secrets)):
            self._on_event(event)

    def _new_limits(self, found: RateLimit | None) -> Iterator[Event]:
        # The time that is left changes with each answer, and says nothing new.
        known = None if found is None else attrs.evolve(found, reset_seconds=None)
        with self._lock:
            is_new = known is not None and known != self._rate_limit
            self._rate_limit = known or self._rate_limit
        if is_new and found is not None:
            yield RateLimitSeen(host=self._host, rate_limit=found)

    def _new_warnings(self, answer: Answer, secrets: Iterable[str]) -> Iterator[Event]:
        for text in parse_warnings(answer.headers("Warning")):
            told = without_secrets(text, secrets)
            with self._lock:
                is_new = told not in self._warnings and len(self._warnings) < _MOST_WARNINGS
                self._warnings |= {told} if is_new else set()
            if is_new:
                yield RegistryWarning(host=self._host, text=told)


def read_rate_limit(answer: Answer, secrets: Iterable[str]) -> RateLimit | None:
    """Return what an answer says of the limit, without ``secrets``; None where it says nothing."""
    found = parse_rate_limit(answer.header)
    if found is None or found.source is None:
        return found
    return attrs.evolve(found, source=without_secrets(found.source, secrets))


def parse_warnings(headers: Iterable[str]) -> tuple[str, ...]:
    r"""Return the texts of an answer's warnings for the user, in order; they are not trusted.

    What fits no warning ends its header; what comes behind 4096 bytes of headers is left out. Never raises.

    >>> parse_warnings(['299 - "this tag is \\"old\\"", 299 - "so is this", 110 - "stale"'])
    ('this tag is "old"', 'so is this')
    """
    texts: list[str] = []
    left_bytes = _MAX_BYTES
    for header in headers:
        left_bytes -= len(header)
        if left_bytes < 0:
            break
        position = 0
        while (found := _WARNING.match(header, position)) is not None:
            position = found.end()
            text = _ESCAPE.sub(r"\1", found["text"]).strip()
            if found["code"] == _MISCELLANEOUS and text:
                texts.append(_decoded(text))
    return tuple(texts)


def _decoded(text: str) -> str:
    """Return a text as it was meant: registries send UTF-8, which http.client reads as Latin-1."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text
