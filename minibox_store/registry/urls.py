"""URLs that registries name: parsed once, strictly, so that what is checked is what is contacted.

A URL is an origin, which decides who may see credentials, and a target, which is sent to it. No other module takes
a URL apart.
"""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote, urlencode, urljoin

import attrs

from minibox_store.values import Value

DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?:\#.*)?"
)
_AUTHORITY = re.compile(
    r"(?P<host> \[[0-9A-Fa-f:.]+\] | [A-Za-z0-9_-]{1,63} (?: \. [A-Za-z0-9_-]{1,63} )* \.? )"
    r"(?: : (?P<port>[0-9]{1,5}) )?",
    re.VERBOSE,
)
# More no name has, and TLS takes no longer one. Spec: RFC 1035, section 2.3.4.
_HOST_LENGTH = 253
_MAX_LENGTH = 16 * 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_VISIBLE = re.compile(r"[^!-~]+")


class InvalidUrl(ValueError):
    """A text that is no URL that may be contacted. The message says why, and shows nothing of the text."""


@attrs.frozen(repr=False)
class Origin(Value):
    """Whom a request goes to: credentials belong to exactly one origin.

    ``host`` is lower case, an IPv6 address has no brackets.

    Spec: RFC 9110, section 4.3.1.
    """

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, scheme: str, authority: str) -> "Origin":
        """Return the origin of ``host[:port]`` under http or https; neither is trusted.

        Raises:
            InvalidUrl: when the scheme is another, or the text names a user, or is no host and port.
        """
        scheme = scheme.lower()
        if scheme not in DEFAULT_PORTS:
            raise InvalidUrl("its scheme is neither http nor https")
        if "@" in authority:
            raise InvalidUrl("it carries a user")
        found = _AUTHORITY.fullmatch(authority)
        if found is None or len(found["host"].rstrip(".")) > _HOST_LENGTH:
            raise InvalidUrl("it has no valid host and port")
        host = found["host"].lower()
        if host.startswith("["):
            try:
                host = str(ipaddress.IPv6Address(host[1:-1]))
            except ValueError:
                raise InvalidUrl("it has no valid IPv6 address") from None
        port = int(found["port"]) if found["port"] else DEFAULT_PORTS[scheme]
        if not 0 < port < 65536:
            raise InvalidUrl("its port is not between 1 and 65535")
        return cls(scheme, host, port)

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL, without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@attrs.frozen
class Url:
    """An http or https URL without a user: ``target`` is its path and query, as they are sent."""

    origin: Origin
    target: str

    @classmethod
    def parse(cls, text: str) -> "Url":
        """Return the URL that ``text`` spells; the text is not trusted. Its fragment is dropped.

        Raises:
            InvalidUrl: when it is not absolute, names a user, or has control characters.

        >>> Url.parse("https://Example.com?a=b").shown
        'https://example.com/'
        """
        if len(text) > _MAX_LENGTH:
            raise InvalidUrl("it is too long")
        if _CONTROL.search(text):
            raise InvalidUrl("it has control characters")
        # Servers put bare UTF-8, which http.client reads as Latin-1, into Location; on the wire all is ASCII.
        visible = _NOT_VISIBLE.sub(lambda found: quote(found[0].encode("latin-1", "replace")), text.strip(" "))
        found = _URL.fullmatch(visible)
        if found is None:
            raise InvalidUrl("it is not absolute")
        origin = Origin.parse(found["scheme"], found["authority"])
        return cls(origin, (found["path"] or "/") + (found["query"] or ""))

    def join(self, location: str) -> "Url":
        """Return the URL that ``location`` is from here, which may be relative; it is not trusted.

        Raises:
            InvalidUrl: when it is none that may be contacted.

        Spec: RFC 9110, section 10.2.2.
        """
        if _CONTROL.search(location):
            raise InvalidUrl("it has control characters")
        try:
            return Url.parse(urljoin(str(self), location.strip(" ")))
        except InvalidUrl:
            raise
        except ValueError:  # of urljoin, for brackets that do not match
            raise InvalidUrl("it cannot be taken apart") from None

    def with_query(self, pairs: Iterable[tuple[str, str]]) -> "Url":
        """Return this URL with ``pairs`` added to its query."""
        mark = "&" if "?" in self.target else "?"
        return attrs.evolve(self, target=self.target + mark + urlencode(list(pairs), quote_via=quote))

    @property
    def query_values(self) -> tuple[str, ...]:
        """The values of the query, as they are sent and as they are meant."""
        raw = [pair.partition("=")[2] for pair in self.target.partition("?")[2].split("&")]
        return tuple(dict.fromkeys(value for each in raw for value in (each, unquote(each)) if value))

    @property
    def shown(self) -> str:
        """The URL as people may see it: a signed one keeps its secrets in the query."""
        return f"{self.origin}{self.target.partition('?')[0]}"

    def __repr__(self) -> str:
        return f"Url({self.shown!r})"

    def __str__(self) -> str:
        return f"{self.origin}{self.target}"
