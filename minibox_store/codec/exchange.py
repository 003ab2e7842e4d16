"""What travels beside an image: the answers of registries and token servers."""

import re

import attrs

from minibox_store.codec.strict import load_object
from minibox_store.errors import InvalidDocument, StoreError
from minibox_store.limits import DEFAULT_LIMITS, MAX_SIZE_BYTES, Limits
from minibox_store.values import Value

_NAME = re.compile(r"[!-~]{1,255}")
_DEFAULT_TOKEN_SECONDS = 60  # what the specification says of an answer without it


@attrs.frozen(kw_only=True, repr=False)
class TokenAnswer(Value):
    """What a token server grants: a bearer token, which ``repr`` does not show, and for how many seconds from now."""

    token: str = attrs.field(repr=False)
    expires_in_seconds: float


def decode_token_answer(content: bytes, *, limits: Limits = DEFAULT_LIMITS) -> TokenAnswer:
    """Return what a token server granted. Servers write ``token``, ``access_token``, or both.

    Raises:
        InvalidDocument: when there is no token in it, or one that cannot stand in a header.

    Spec: Docker Registry v2 token authentication, "Token Response Fields".
    """
    value = load_object(content, "token answer", limits.token_bytes)
    token = value.get("token") or value.get("access_token")
    if type(token) is not str or not token.isascii() or not token.isprintable():
        raise InvalidDocument("token", "there is no usable token in it", "token answer")
    seconds = value.get("expires_in")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < MAX_SIZE_BYTES:
        seconds = _DEFAULT_TOKEN_SECONDS
    return TokenAnswer(token=token, expires_in_seconds=float(seconds))


def decode_names(content: bytes, key: str, *, limit_bytes: int) -> tuple[str, ...]:
    """Return the names that a registry lists under ``key``; a list that is null has none.

    Raises:
        InvalidDocument: when they are no names: one to 255 visible ASCII characters each.

    Spec: OCI distribution-spec 1.1, "Listing Tags".
    """
    document = f"list of {key}"
    names = load_object(content, document, limit_bytes).get(key)
    if names is None:
        return ()
    if type(names) is not list:
        raise InvalidDocument(key, "it is no list", document)
    for position, name in enumerate(names):
        if type(name) is not str or _NAME.fullmatch(name) is None:
            raise InvalidDocument(f"{key}[{position}]", "it is no name", document)
    return tuple(names)


def decode_registry_errors(content: bytes, *, limits: Limits = DEFAULT_LIMITS) -> tuple[tuple[str, ...], str]:
    """Return the codes and the first message of a registry's error document; nothing where it is none.

    Docker Hub's limit puts a message alone, outside of any error. Never raises: an error answer may hold anything.

    Spec: OCI distribution-spec 1.1, "Error Codes".
    """
    try:
        value = load_object(content, "error answer", limits.error_bytes)
    except StoreError:
        return (), ""
    errors = value.get("errors")
    items = [item for item in errors if type(item) is dict] if type(errors) is list else []
    codes = [item["code"] for item in items if type(item.get("code")) is str]
    messages = [item["message"] for item in [*items, value] if type(item.get("message")) is str]
    return tuple(code[:64] for code in codes[:8]), messages[0][:300] if messages else ""
