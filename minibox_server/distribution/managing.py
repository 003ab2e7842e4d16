"""Manifests that come, and what goes: manifests, tags and blobs.

What is deleted is seen no more; its bytes stay until a prune.

Spec: OCI distribution-spec 1.1, "Pushing Manifests" and "Content Management".
"""

from starlette.requests import Request
from starlette.responses import Response

from minibox_server.bodies import RequestBody
from minibox_server.declarations import Answer, Body, Endpoint, NoQuery
from minibox_server.distribution.incoming import answer_to_body, read_bounded
from minibox_server.distribution.naming import (
    naming_errors,
    naming_mismatch,
    open_repository,
    parse_digest,
    path_digest,
)
from minibox_server.workers import Workers
from minibox_store import Limits, Store

_MOST_BYTES = Limits().document_bytes
_MANIFEST = "/v2/{name:path}/manifests/{reference}"
_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


class Managing:
    """The endpoints over one store."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        deleted = Answer(status=202, what="it is gone", media_type=None)
        return [
            Endpoint(
                method="PUT",
                path=_MANIFEST,
                what="Take a manifest or an index, under a tag or by its digest.",
                call=self.put,
                body=Body(what="the very bytes", media_types=_TYPES, most_bytes=None),
                answers=(
                    Answer(
                        status=201,
                        what="it is there",
                        media_type=None,
                        headers={"Location": "where it is", "Docker-Content-Digest": "its digest"},
                        may_have={"OCI-Subject": "the digest of what it refers to, where it does"},
                    ),
                ),
                refusals=(409, 507),
                tag="distribution",
            ),
            Endpoint(
                method="DELETE",
                path=_MANIFEST,
                what="Delete a manifest by its digest, with all its tags; or a tag alone.",
                call=self.delete,
                answers=(deleted,),
                refusals=(404, 405),
                tag="distribution",
            ),
            Endpoint(
                method="DELETE",
                path="/v2/{name:path}/blobs/{digest}",
                what="Delete a blob that no image of the repository needs.",
                call=self.delete_blob,
                answers=(deleted,),
                refusals=(404, 405),
                tag="distribution",
            ),
        ]

    async def put(self, request: Request, query: NoQuery) -> Response:
        """Take a manifest or an index."""
        repository = open_repository(self._store, request)
        reference = request.path_params["reference"]
        digest = parse_digest(reference)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower() or None
        tag = reference if digest is None else None

        def call(body: RequestBody) -> Response:
            content = read_bounded(body, _MOST_BYTES)
            with naming_mismatch("DIGEST_INVALID"):
                pushed = repository.put_manifest(content, media_type, tag=tag, digest=digest)
            found = str(pushed.descriptor.digest)
            headers = {"Location": f"/v2/{repository.name}/manifests/{found}", "Docker-Content-Digest": found}
            if pushed.subject is not None:
                headers["OCI-Subject"] = str(pushed.subject)
            return Response(status_code=201, headers=headers)

        # Not refused by its length alone, and the connection closed: who looks at no answer before all is sent sees it.
        return answer_to_body(self._workers, request, repository, call)

    async def delete(self, request: Request, query: NoQuery) -> Response:
        """Delete a manifest by its digest, with all its tags; or a tag alone."""
        repository = open_repository(self._store, request)
        reference = request.path_params["reference"]
        digest = parse_digest(reference)

        def call() -> Response:
            with naming_errors(repository):
                if digest is None:
                    repository.delete_tag(reference)
                else:
                    repository.delete_manifest(digest)
            return Response(status_code=202)

        return await self._workers.run(self._workers.changing, call)

    async def delete_blob(self, request: Request, query: NoQuery) -> Response:
        """Delete a blob that no image of the repository needs."""
        repository = open_repository(self._store, request)
        digest = path_digest(request)

        def call() -> Response:
            with naming_errors(repository):
                repository.delete_blob(digest)
            return Response(status_code=202)

        return await self._workers.run(self._workers.changing, call)
