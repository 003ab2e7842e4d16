"""Blobs that come: in one piece, in several, or mounted from another repository.

The bytes go from the client to the file in one thread; neither the whole of a blob nor of a piece is ever in memory.

Spec: OCI distribution-spec 1.1, "Pushing Blobs"; RFC 9110 where that is silent.
"""

import re
from contextlib import suppress

import attrs
from starlette.requests import Request
from starlette.responses import Response

from minibox_server.bodies import RequestBody
from minibox_server.declarations import DIGEST, TEXT, Answer, Body, Endpoint, NoQuery, parameter
from minibox_server.distribution.incoming import answer_to_body
from minibox_server.distribution.naming import come_so_far, naming_errors, naming_mismatch, open_repository
from minibox_server.responses import RequestError
from minibox_server.workers import Workers
from minibox_store import (
    BlobNotFound,
    Descriptor,
    Digest,
    InvalidReference,
    LocalRepository,
    Store,
    Upload,
    UploadNotFound,
)

_CONTENT_RANGE = re.compile(r"(?P<first>[0-9]{1,18})-(?P<last>[0-9]{1,18})", re.ASCII)
_UPLOADS = "/v2/{name:path}/blobs/uploads/"
_UPLOAD = "/v2/{name:path}/blobs/uploads/{upload}"
_BLOB_BODY = Body(what="the bytes, or those that follow", media_types=("application/octet-stream",), most_bytes=None)
_CREATED = Answer(
    status=201,
    what="the blob is there",
    media_type=None,
    headers={"Location": "where it is", "Docker-Content-Digest": "its digest"},
)
_GOES_ON = {
    "Location": "where the upload goes on",
    "Range": "what has come of it",
    "Docker-Upload-UUID": "the upload's own name",
}


@attrs.frozen(kw_only=True)
class BeginQuery:
    """How an upload begins, or ends in the same request."""

    digest: Digest | None = parameter(
        DIGEST, "the digest of the blob that is the body", default=None, code="DIGEST_INVALID"
    )
    mount: Digest | None = parameter(
        DIGEST, "the digest of a blob that another repository has", default=None, code="DIGEST_INVALID"
    )
    from_: str | None = parameter(TEXT, "that other repository", default=None, name="from")


@attrs.frozen(kw_only=True)
class FinishQuery:
    """How an upload ends."""

    digest: Digest = parameter(DIGEST, "the digest of the whole blob", code="DIGEST_INVALID")


class Uploading:
    """The endpoints over one store."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="POST",
                path=_UPLOADS,
                what="Begin an upload; or take a whole blob, or one of another repository.",
                call=self.begin,
                query=BeginQuery,
                body=_BLOB_BODY,
                answers=(_CREATED, Answer(status=202, what="it has begun", media_type=None, headers=_GOES_ON)),
                refusals=(408, 507),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path=_UPLOAD,
                what="Say how much of an upload has come.",
                call=self.status,
                answers=(Answer(status=204, what="how much", media_type=None, headers=_GOES_ON),),
                refusals=(404,),
                tag="distribution",
            ),
            Endpoint(
                method="PATCH",
                path=_UPLOAD,
                what="Add bytes to an upload.",
                call=self.append,
                body=_BLOB_BODY,
                answers=(Answer(status=202, what="they have come", media_type=None, headers=_GOES_ON),),
                refusals=(404, 408, 416, 507),
                tag="distribution",
            ),
            Endpoint(
                method="PUT",
                path=_UPLOAD,
                what="Add the last bytes to an upload, if there are any, and make it a blob.",
                call=self.finish,
                query=FinishQuery,
                body=_BLOB_BODY,
                answers=(_CREATED,),
                refusals=(404, 408, 416, 507),
                tag="distribution",
            ),
            Endpoint(
                method="DELETE",
                path=_UPLOAD,
                what="Give an upload up.",
                call=self.cancel,
                answers=(Answer(status=204, what="it is gone", media_type=None),),
                refusals=(404,),
                tag="distribution",
            ),
        ]

    async def begin(self, request: Request, query: BeginQuery) -> Response:
        """Begin an upload; or take a whole blob, or one of another repository."""
        repository = open_repository(self._store, request)
        digest = query.digest
        if digest is not None:
            return answer_to_body(
                self._workers, request, repository, lambda body: _receive(repository, request, digest, body)
            )

        def call() -> Response:
            if query.mount is not None and query.from_ is not None:
                mounted = self._mount(repository, query.mount, query.from_)
                if mounted is not None:
                    return _created(repository, mounted)
            return _goes_on(repository.begin_upload())

        return await self._workers.run(self._workers.changing, call)

    async def status(self, request: Request, query: NoQuery) -> Response:
        """Say how much of an upload has come."""
        repository = open_repository(self._store, request)

        def call() -> Response:
            with naming_errors(repository):
                return _goes_on(repository.upload(request.path_params["upload"]), 204)

        return await self._workers.run(self._workers.reading, call)

    async def append(self, request: Request, query: NoQuery) -> Response:
        """Add bytes to an upload."""
        repository = open_repository(self._store, request)
        return answer_to_body(
            self._workers, request, repository, lambda body: _goes_on(_append(repository, request, body))
        )

    async def finish(self, request: Request, query: FinishQuery) -> Response:
        """Add the last bytes to an upload, and make it a blob."""
        repository = open_repository(self._store, request)

        def call(body: RequestBody) -> Response:
            upload = _append(repository, request, body)
            with naming_mismatch("DIGEST_INVALID"):
                return _created(repository, repository.finish_upload(upload.id, query.digest))

        return answer_to_body(self._workers, request, repository, call)

    async def cancel(self, request: Request, query: NoQuery) -> Response:
        """Give an upload up."""
        repository = open_repository(self._store, request)

        def call() -> Response:
            with naming_errors(repository):
                repository.cancel_upload(request.path_params["upload"])
            return Response(status_code=204)

        return await self._workers.run(self._workers.changing, call)

    def _mount(self, repository: LocalRepository, digest: Digest, source: str) -> Descriptor | None:
        """Return a blob of another repository that is in this one now; None where it cannot be had there."""
        try:
            return repository.mount_blob(digest, self._store.repository(source))
        except (BlobNotFound, InvalidReference):
            return None


def _receive(repository: LocalRepository, request: Request, digest: Digest, body: RequestBody) -> Response:
    """Take a blob that comes in one piece; of one that does not come to be a blob nothing stays."""
    upload = repository.begin_upload()
    try:
        repository.append_upload(upload.id, body, size_bytes=_length(request))
        with naming_mismatch("DIGEST_INVALID"):
            return _created(repository, repository.finish_upload(upload.id, digest))
    except BaseException:
        with suppress(UploadNotFound):
            repository.cancel_upload(upload.id)  # nobody else knows its id
        raise


def _append(repository: LocalRepository, request: Request, body: RequestBody) -> Upload:
    offset, size_bytes = _piece(request)
    identifier = request.path_params["upload"]
    if size_bytes == 0 and offset is None:
        return repository.upload(identifier)
    with naming_mismatch("SIZE_INVALID"):
        return repository.append_upload(identifier, body, offset=offset, size_bytes=size_bytes)


def _piece(request: Request) -> tuple[int | None, int | None]:
    """Return where the body of a request is said to begin in the upload, and how long to be; None for what is not said.

    Raises:
        RequestError: 400, when that is said in another way, or twice and not alike.
    """
    size_bytes = _length(request)
    said = request.headers.getlist("content-range")
    if not said:
        return None, size_bytes
    match = _CONTENT_RANGE.fullmatch(said[0]) if len(said) == 1 else None
    if match is None or int(match["last"]) < int(match["first"]):
        raise RequestError(400, "Content-Range must be <first>-<last>", code="BLOB_UPLOAD_INVALID")
    first, announced = int(match["first"]), int(match["last"]) - int(match["first"]) + 1
    if size_bytes not in (None, announced):
        raise RequestError(400, f"Content-Range is {announced} bytes, and the body {size_bytes}", code="SIZE_INVALID")
    return first, announced


def _length(request: Request) -> int | None:
    """Return how long the body of a request is said to be; None where that is not said."""
    length = request.headers.get("content-length")
    is_chunked = "transfer-encoding" in request.headers
    return int(length) if length is not None else None if is_chunked else 0


def _created(repository: LocalRepository, descriptor: Descriptor) -> Response:
    location = f"/v2/{repository.name}/blobs/{descriptor.digest}"
    return Response(status_code=201, headers={"Location": location, "Docker-Content-Digest": str(descriptor.digest)})


def _goes_on(upload: Upload, status: int = 202) -> Response:
    headers = {
        "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.id}",
        "Range": come_so_far(upload.size_bytes),
        "Docker-Upload-UUID": upload.id,
    }
    return Response(status_code=status, headers=headers)
