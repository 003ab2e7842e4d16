"""A user and what proves it, so that printing them by accident tells nobody the secret; and who looks for them."""

import base64
import re
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import quote_plus

import attrs

from minibox_store.codec.auth_files import TOKEN_USER
from minibox_store.errors import InvalidArgument
from minibox_store.kinds import check_secret
from minibox_store.registry.credential_keys import matching_keys
from minibox_store.values import Value, masked

_SURROGATE = re.compile(r"[\ud800-\udfff]")


@attrs.frozen(repr=False)
class Credentials(Value):
    """What a registry, or its token server, is told about who asks. Neither ``repr`` nor ``str`` shows the secrets.

    Attributes:
        username: may be empty beside an identity token; ``<token>`` says that the password is one.
        password: proves the user where there is no identity token.
        identity_token: a refresh token, which a token server changes for tokens of single scopes.

    Raises:
        InvalidArgument: on construction, for a user name with a colon, which Basic authentication cannot carry, for a
            text with a lone surrogate, which is how a byte that is no UTF-8 comes from the environment, and for what
            is no text; it shows nothing of it.

    Spec: RFC 7617, section 2; Docker Registry v2 authentication, "Token authentication using OAuth2".
    """

    username: str
    password: str = attrs.field(repr=masked, default="")
    identity_token: str | None = attrs.field(repr=masked, default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        texts = {"username": self.username, "password": self.password, "identity_token": self.identity_token or ""}
        for name, text in texts.items():
            check_secret(name, text, str)
        if ":" in self.username:
            raise InvalidArgument("username", masked(self.username), "a user name must have no colon")
        # Found before they are encoded: the error that this would raise has the whole text in it.
        for name, text in texts.items():
            if _SURROGATE.search(text):
                raise InvalidArgument(name, masked(text), "it has a character that is none")

    @property
    def refresh_token(self) -> str | None:
        """The identity token, however it was given; None for who proves himself by a password."""
        if self.identity_token is None and self.username == TOKEN_USER:
            return self.password or None
        return self.identity_token

    @property
    def basic(self) -> str:
        """The Authorization value that carries both, readable by whoever sees it."""
        username, secret = self.username, self.password
        if self.identity_token is not None:
            username, secret = username or TOKEN_USER, self.identity_token
        return "Basic " + base64.b64encode(f"{username}:{secret}".encode()).decode("ascii")

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show."""
        # A refresh token goes in a form, and so in other letters.
        found = (
            self.basic.partition(" ")[2],
            self.password,
            self.identity_token or "",
            quote_plus(self.refresh_token or ""),
        )
        return tuple(dict.fromkeys(secret for secret in found if secret))


class CredentialsSource(Protocol):
    """Where a client looks for credentials, when a registry first asks for some."""

    def find(self, registry: str, repository: str, check_interrupted: Callable[[], None], /) -> Credentials | None:
        """Return what is known for a repository, None where nothing is.

        Args:
            registry: that is contacted, as references name it.
            repository: its path there.
            check_interrupted: called now and then by who waits; raises when the waiting is over.
        """


@attrs.frozen(repr=False)
class KnownCredentials(Value):
    """Credentials that the program has itself, by registry or ``registry/path``."""

    known: Mapping[str, Credentials] = attrs.field(factory=dict)

    @classmethod
    def of(cls, name: str, known: Mapping[str, Credentials] | None) -> "KnownCredentials":
        """Return those of the mapping that is the argument ``name``; none where it is None.

        Raises:
            InvalidArgument: for what is no such mapping; it shows nothing of it.
        """
        found = {} if known is None else known
        check_secret(name, found, Mapping)
        if not all(isinstance(key, str) and isinstance(each, Credentials) for key, each in found.items()):
            raise InvalidArgument(name, masked(found), "it is no mapping of registries to Credentials")
        return cls(dict(found))

    def find(self, registry: str, repository: str, check_interrupted: Callable[[], None], /) -> Credentials | None:
        """Return those of the longest key that fits; nothing is waited for."""
        found = next(matching_keys(self.known, registry, repository), None)
        return None if found is None else self.known[found]
