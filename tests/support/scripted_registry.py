"""Registries and token servers by script: the requests of a correct pull, and whatever a test puts over them."""

from collections.abc import Callable
from urllib.parse import urlencode

from tests.support.answers import (
    NO_ANSWER,
    Answer,
    Headers,
    Listed,
    Request,
    Scripted,
    basic_credentials,
    partial_content,
    ranged,
    redirect,
    registry_error,
    unauthorized,
)
from tests.support.images import BuiltImage, encode_document
from tests.support.scripted_server import ScriptBroken, ScriptedServer

__all__ = [
    "NO_ANSWER",
    "Answer",
    "Headers",
    "Listed",
    "Request",
    "ScriptBroken",
    "Scripted",
    "ScriptedRegistry",
    "ScriptedServer",
    "TokenServer",
    "basic_credentials",
    "blob_headers",
    "blob_target",
    "document_answer",
    "manifest_target",
    "partial_content",
    "pull_scope",
    "ranged",
    "redirect",
    "registry_error",
    "serve_image",
    "unauthorized",
]


class ScriptedRegistry(ScriptedServer):
    """A scripted server with the addresses of a registry."""

    def reference(self, repository: str, tag: str | None = None, *, digest: str | None = None) -> str:
        """Return the image reference of something that this registry serves."""
        return f"{self.host}/{repository}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")


class TokenServer(ScriptedServer):
    """A scripted server that gives bearer tokens at ``/token``."""

    @property
    def realm(self) -> str:
        """The URL of the token endpoint."""
        return f"{self.url}/token"

    def challenge(self, *, service: str, scope: str) -> str:
        """Return the ``WWW-Authenticate`` value that sends a client here."""
        return f'Bearer realm="{self.realm}",service="{service}",scope="{scope}"'

    def expect_token(
        self,
        *tokens: str,
        service: str,
        scope: str,
        credentials: tuple[str, str] | None = None,
        expires_in_seconds: int | None = 300,
        field: str = "token",
    ) -> Listed:
        """List one GET for each of ``tokens``, given in this order.

        Args:
            tokens: What is given.
            service: Must be asked for.
            scope: Must be asked for, as a single parameter.
            credentials: User and password that must come as Basic; when None, no Authorization may come.
            expires_in_seconds: Left out of the answer when None, where a client must assume 60 seconds.
            field: ``token`` or ``access_token``; registries differ in which one they send.
        """
        life = {} if expires_in_seconds is None else {"expires_in": expires_in_seconds}
        answers = [_json_answer({field: token, **life}) for token in tokens]
        return self.expect(
            "GET",
            "/token?" + urlencode({"service": service, "scope": scope}),
            *answers,
            requires={"Authorization": basic_credentials(*credentials)} if credentials else {},
            forbids=() if credentials else ("Authorization",),
        )


def serve_image(
    registry: ScriptedServer,
    repository: str,
    tag: str | None,
    image: BuiltImage,
    *,
    authorization: str | None = None,
    challenge: str | None = None,
    ranges: bool = False,
    at_most: int | None = None,
) -> None:
    """List the requests that a correct pull of ``image`` makes: ``/v2/``, manifests and blobs, GET and HEAD.

    A manifest is served only to an Accept that names its type, as strict registries do.

    Args:
        registry: Where they are listed, as allowed requests; scripts for single ones may be put over them.
        repository: Its path in the registry.
        tag: What the root is also served under; None for digests alone.
        image: Blobs that it lacks are not listed.
        authorization: The whole Authorization value without which nothing is served.
        challenge: What answers a request without Authorization; needs ``authorization``.
        ranges: Serve single ranges of blobs instead of ignoring ``Range``.
        at_most: How many GETs of each manifest and blob may come.
    """
    listed: list[tuple[str, Scripted]] = [("/v2/", _json_answer({}))]
    roots = [manifest_target(repository, tag)] if tag is not None else []
    for digest, content in image.blobs.items():
        if digest in image.document_digests:
            names = [manifest_target(repository, digest), *(roots if digest == image.digest else [])]
            listed.extend((name, document_answer(image, digest)) for name in names)
        else:
            headers = blob_headers(digest)
            blob: Scripted = ranged(content, headers=headers) if ranges else Answer(headers=headers, body=content)
            listed.append((blob_target(repository, digest), blob))
    requires = {"Authorization": authorization} if authorization is not None else {}
    for target, answer in listed:
        for method in ("GET", "HEAD"):
            limit = at_most if method == "GET" and target != "/v2/" else None
            registry.allow(method, target, answer, at_most=limit, requires=requires)
            if challenge is not None:
                registry.allow(method, target, unauthorized(challenge), forbids=["Authorization"])


def manifest_target(repository: str, name: str) -> str:
    """Return the target of a manifest by tag or digest."""
    return f"/v2/{repository}/manifests/{name}"


def blob_target(repository: str, digest: str) -> str:
    """Return the target of a blob."""
    return f"/v2/{repository}/blobs/{digest}"


def blob_headers(digest: str) -> list[tuple[str, str]]:
    """Return the headers of an honest blob."""
    return [("Content-Type", "application/octet-stream"), ("Docker-Content-Digest", digest)]


def document_answer(image: BuiltImage, digest: str | None = None) -> Callable[[Request], Answer]:
    """Return a script that serves a manifest of ``image``, the root's when there is no digest."""
    name = digest or image.digest
    media_type = image.media_types[name]

    def answer(request: Request) -> Answer:
        accepted = [item.strip() for item in (request.header("Accept") or "").split(",")]
        if media_type not in accepted:
            return registry_error(404, "MANIFEST_UNKNOWN", f"{media_type} found, but Accept does not name it")
        headers = [("Content-Type", media_type), ("Docker-Content-Digest", name)]
        return Answer(headers=headers, body=image.blobs[name])

    return answer


def pull_scope(repository: str) -> str:
    """Return the scope for reading a repository, as challenges and token requests spell it."""
    return f"repository:{repository}:pull"


def _json_answer(document: dict[str, object]) -> Answer:
    return Answer(headers={"Content-Type": "application/json"}, body=encode_document(document))
