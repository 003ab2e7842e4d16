"""What tools keep of credentials: Docker's ``config.json``, the containers' ``auth.json``, and what helpers answer.

Errors name the file and the key, and never quote a value. An entry is looked into only when it is asked for, so that
one which is wrong keeps nobody from the others. What a file has besides stays in it, in its order.

Spec: docker-credential-helpers, "Development"; containers-auth.json(5).
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping

import attrs

from minibox_store.codec.strict import dump, kind_of, load_object
from minibox_store.errors import InvalidDocument
from minibox_store.limits import MEBIBYTE
from minibox_store.values import Value, masked

AUTH_FILE_BYTES = MEBIBYTE
HELPER_ANSWER_BYTES = 64 * 1024

# Under this user name a helper keeps a refresh token in the place of a password.
TOKEN_USER = "<token>"


@attrs.frozen(kw_only=True, repr=False)
class AuthEntry(Value):
    """What is kept for one registry or repository; the password, or the token, is what proves the user."""

    username: str = ""
    password: str = attrs.field(default="", repr=masked)
    identity_token: str | None = attrs.field(default=None, repr=masked)


@attrs.frozen(kw_only=True, repr=False)
class AuthFile(Value):
    """A file of credentials: of which hosts helpers know, and what stands in the file itself, not yet looked into."""

    document: str
    credential_helpers: Mapping[str, str]
    credentials_store: str | None
    auths: Mapping[str, object] = attrs.field(repr=False)

    def entry(self, key: str) -> AuthEntry | None:
        """Return what stands under ``key``, None where it is empty, as it is where a helper keeps the rest.

        Raises:
            InvalidDocument: when it is not of the form.
        """
        where = f'auths["{key}"]'
        fields = _object(self.auths.get(key), where, self.document)
        username, password = (_text(fields, name, where, self.document) for name in ("username", "password"))
        encoded = _text(fields, "auth", where, self.document).strip()
        if encoded:
            username, password = _decode_pair(encoded, f"{where}.auth", self.document)
        token = _text(fields, "identitytoken", where, self.document)
        if ":" in username:
            raise InvalidDocument(f"{where}.username", "a user name must have no colon", self.document)
        return _entry(username, password, token)


def decode_auth_file(content: bytes, document: str) -> AuthFile:
    """Return what a file of credentials says; ``document`` is its path, for errors. An empty one says nothing.

    Raises:
        InvalidDocument: when it is none, or larger than 1 MiB.
    """
    value = _loaded(content, document)
    helpers = _object(value.get("credHelpers"), "credHelpers", document)
    return AuthFile(
        document=document,
        credential_helpers={key: _text(helpers, key, "credHelpers", document) for key in helpers},
        credentials_store=_text(value, "credsStore", "", document) or None,
        auths=_object(value.get("auths"), "auths", document),
    )


def encode_auth_file(
    content: bytes, document: str, *, without: Iterable[str] = (), added: Mapping[str, AuthEntry] | None = None
) -> bytes:
    """Return a file of credentials with entries taken away, and then added; all else in it stays as it was.

    Args:
        content: of the file as it is.
        document: its path, for errors.
        without: keys of ``auths``.
        added: by key; an entry that says nothing becomes an empty object, which is what marks a helper's registry.

    Raises:
        InvalidDocument: when it is no such file.
    """
    value = _loaded(content, document)
    auths = dict(_object(value.get("auths"), "auths", document))
    for key in without:
        auths.pop(key, None)
    for key, entry in (added or {}).items():
        auths[key] = _encoded_entry(entry)
    value["auths"] = auths
    return json.dumps(value, ensure_ascii=False, indent="\t").encode() + b"\n"


def decode_helper_answer(content: bytes, document: str) -> AuthEntry | None:
    """Return the credentials that a helper answered, None where it answered with none.

    Raises:
        InvalidDocument: when it is no answer of a helper.
    """
    value = load_object(content, document, HELPER_ANSWER_BYTES)
    username, secret = (_text(value, name, "", document) for name in ("Username", "Secret"))
    if username == TOKEN_USER:
        return _entry(username, "", secret)
    if ":" in username:
        raise InvalidDocument("Username", "a user name must have no colon", document)
    return _entry(username, secret, "")


def encode_helper_entry(server: str, entry: AuthEntry) -> bytes:
    """Return what a helper is given to store."""
    username, secret = entry.username, entry.password
    if entry.identity_token is not None:
        username, secret = TOKEN_USER, entry.identity_token
    return dump({"ServerURL": server, "Username": username, "Secret": secret})


def _loaded(content: bytes, document: str) -> dict[str, object]:
    # Tools make the file before they have anything to write into it.
    return load_object(content if content.strip() else b"{}", document, AUTH_FILE_BYTES)


def _entry(username: str, password: str, token: str) -> AuthEntry | None:
    if username == TOKEN_USER and not token:
        token, password = password, ""
    if not (username or password or token):
        return None
    return AuthEntry(username=username, password=password, identity_token=token or None)


def _encoded_entry(entry: AuthEntry) -> dict[str, str]:
    fields = {}
    if entry.username or entry.password:
        fields["auth"] = base64.b64encode(f"{entry.username}:{entry.password}".encode()).decode("ascii")
    if entry.identity_token is not None:
        fields["identitytoken"] = entry.identity_token
    return fields


def _decode_pair(encoded: str, where: str, document: str) -> tuple[str, str]:
    # Tools that encode break long lines; Go's decoder, by which Docker reads, passes over these two and nothing else.
    encoded = encoded.replace("\r", "").replace("\n", "")
    try:
        username, colon, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeError, ValueError):
        # Not chained: what was decoded, or was not, is the secret.
        raise InvalidDocument(where, "it is not base64 of user:password", document) from None
    if not colon:
        raise InvalidDocument(where, "it is not base64 of user:password", document)
    return username, password.strip("\0")


def _object(value: object, where: str, document: str) -> dict[str, object]:
    if value is None:
        return {}
    if type(value) is not dict:
        raise InvalidDocument(where, f"expected an object, got {kind_of(value)}", document)
    return value


def _text(fields: Mapping[str, object], name: str, where: str, document: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if type(value) is not str:
        place = f'{where}["{name}"]' if where == "credHelpers" else f"{where}.{name}".lstrip(".")
        raise InvalidDocument(place, f"expected a string, got {kind_of(value)}", document)
    return value
