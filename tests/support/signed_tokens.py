"""A token server whose tokens a real registry takes: signed as its project says, by a key made anew by openssl.

Spec: distribution project, "Token Authentication Implementation"; RFC 7515, sections 4.1.6 and 7.1.
"""

import base64
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl

from tests.support.answers import Answer, Request, basic_credentials, registry_error
from tests.support.peers import require_peer
from tests.support.scripted_registry import TokenServer

ISSUER = "minibox test"
SERVICE = "test registry"


class TokenSigner:
    """Makes tokens that say what their holder may do; skips or fails without openssl."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._openssl = require_peer("openssl")
        self._key = folder / "tokens.key"
        self.certificate = folder / "tokens.crt"
        made = ("-newkey", "rsa:2048", "-nodes", "-subj", "/CN=minibox test tokens", "-days", "1", "-sha256")
        self._run("req", "-x509", *made, "-keyout", str(self._key), "-out", str(self.certificate))
        lines = self.certificate.read_text().split("-----")[2].split()
        self._chain = ["".join(lines)]

    def settings(self, realm: str) -> dict[str, str]:
        """Return what a registry must be told to take these tokens, and to send clients to ``realm``."""
        return {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(self.certificate)}

    def sign(self, subject: str, scopes: list[str], *, life_seconds: int) -> str:
        """Return a token for these scopes, each ``type:name:action,action``."""
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        claims = {"iss": ISSUER, "sub": subject, "aud": SERVICE, "jti": f"{subject}-{now}", "access": access}
        times = {"iat": now, "nbf": now - 10, "exp": now + life_seconds}
        header = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        signed = b".".join(_encoded(json.dumps(part).encode()) for part in (header, {**claims, **times}))
        signature = self._run("dgst", "-sha256", "-sign", str(self._key), given=signed)
        return b".".join((signed, _encoded(signature))).decode()

    def _run(self, *arguments: str, given: bytes = b"") -> bytes:
        done = subprocess.run([self._openssl, *arguments], input=given, check=True, capture_output=True, timeout=30)
        return done.stdout


def grant_tokens(
    server: TokenServer,
    signer: TokenSigner,
    scopes: list[str],
    *,
    users: Mapping[str, str],
    refresh_tokens: Mapping[str, str],
    life_seconds: int = 300,
) -> None:
    """Let a token server grant ``scopes`` to users who prove themselves, by GET or by POST, and to nobody else.

    Args:
        server: Where the requests are listed.
        signer: Whose tokens are given.
        scopes: What may be asked for, each alone; nothing at all may be, too.
        users: Passwords by name; a GET takes them.
        refresh_tokens: Names by refresh token; a POST takes them.
        life_seconds: How long a token lives.
    """
    authorizations = {basic_credentials(*each): each[0] for each in users.items()}

    def grant(user: str | None, asked: list[str]) -> Answer:
        if user is None:
            return registry_error(401, "UNAUTHORIZED", "who is that")
        token = signer.sign(user, asked, life_seconds=life_seconds)
        document = {"token": token, "access_token": token, "expires_in": life_seconds}
        return Answer(headers={"Content-Type": "application/json"}, body=json.dumps(document).encode())

    def by_password(request: Request) -> Answer:
        asked = [value for name, value in request.query if name == "scope"]
        return grant(authorizations.get(request.header("Authorization") or ""), asked)

    def by_refresh_token(request: Request) -> Answer:
        form = dict(parse_qsl(request.body.decode()))
        if form.get("grant_type") != "refresh_token" or form.get("service") != SERVICE:
            return registry_error(400, "UNSUPPORTED", "no such grant")
        return grant(refresh_tokens.get(form.get("refresh_token", "")), form.get("scope", "").split())

    service = SERVICE.replace(" ", "+")
    for target in (f"/token?service={service}", *(f"/token?service={service}&scope={scope}" for scope in scopes)):
        server.allow("GET", target, by_password)
    server.allow("POST", "/token", by_refresh_token)


def _encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")
