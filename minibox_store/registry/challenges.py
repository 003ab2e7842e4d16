r"""``WWW-Authenticate``: what a registry asks for before it answers.

The grammar of RFC 9110, section 11, where one header may hold several challenges and commas separate both them and
their parameters::

    header      := [ challenge ] *( "," [ challenge ] )
    challenge   := scheme [ 1*space ( token68 / parameters ) ]
    parameters  := parameter *( "," parameter )
    parameter   := token "=" ( token / quoted-string )

Two liberties, for registries in use: an unquoted value reaches to the next comma or space, whatever its characters
(``scope=repository:a/b:pull``), and what fits nothing is passed over up to the next comma.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

from minibox_store.values import Value

# More ways to log in nobody has; each letter of many long headers could be one.
_MOST_CHALLENGES = 32
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SPACE = re.compile(r"[ \t]*")
_SEPARATORS = re.compile(r"[ \t,]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]++=*+(?=[ \t]*(?:,|\Z))")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_BARE = re.compile(r'[^\s,"]*')
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@attrs.frozen(kw_only=True, repr=False)
class Challenge(Value):
    """One challenge: its scheme in lower case, and its parameters by their names in lower case."""

    scheme: str
    parameters: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    token68: str | None = None


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all ``WWW-Authenticate`` headers of one answer, in order. They are not trusted.

    Never raises; takes time linear in their length. Of a parameter that comes twice the first counts, and what comes
    behind 32 challenges is left out.

    >>> parse_challenges(['Bearer realm="https://a/token", scope=x:y, Basic'])[0].parameters["scope"]
    'x:y'

    Spec: RFC 9110, sections 5.6.1, 11.3 and 11.6.1.
    """
    found = (challenge for header in headers for challenge in _Scanner(header).challenges())
    return tuple(itertools.islice(found, _MOST_CHALLENGES))


class _Scanner:
    """Reads one header from left to right, each character a bounded number of times."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def challenges(self) -> Iterator[Challenge]:
        while not self._is_at_end():
            scheme = self._take(_TOKEN)
            if scheme is None:
                self._pass_over()
                continue
            token68, parameters = None, {}
            if self._take(_SPACE):
                token68 = self._take(_TOKEN68)
                parameters = self._parameters() if token68 is None else {}
            yield Challenge(scheme=scheme.lower(), parameters=parameters, token68=token68)

    def _parameters(self) -> dict[str, str]:
        found: dict[str, str] = {}
        while not self._is_at_end():
            start = self._position
            name = self._take(_TOKEN)
            if name is None or self._take(_EQUALS) is None:
                self._position = start  # the next challenge begins here
                break
            value = self._value()
            if value is not None:
                found.setdefault(name.lower(), value)
            self._pass_over()
        return found

    def _value(self) -> str | None:
        if not self._text.startswith('"', self._position):
            return self._take(_BARE)
        found = _QUOTED.match(self._text, self._position)
        if found is None:
            # A quotation that never ends: looking for its end again and again would take quadratic time.
            self._position = len(self._text)
            return None
        self._position = found.end()
        return _ESCAPE.sub(r"\1", found[1])

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._position)
        if found is None:
            return None
        self._position = found.end()
        return found[0]

    def _pass_over(self) -> None:
        comma = self._text.find(",", self._position)
        self._position = len(self._text) if comma < 0 else comma

    def _is_at_end(self) -> bool:
        self._take(_SEPARATORS)
        return self._position >= len(self._text)
