"""The reading half of the OCI distribution API, over the same store.

A repository shows the manifests and blobs of its own images and no others, each exactly as it is stored.

Spec: OCI distribution-spec 1.1, sections "Pulling" and "Listing Tags".
"""

import functools
import threading
from collections.abc import Mapping

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from minibox_server.declarations import TEXT, Answer, Endpoint, NoQuery, counted, parameter
from minibox_server.distribution.ranges import ByteRange, RangeNotSatisfiable, parse_range
from minibox_server.distribution.repositories import Repository, build_catalogue, is_repository_name, parse_digest
from minibox_server.distribution.upstream import Upstream
from minibox_server.responses import RequestError
from minibox_server.workers import Operation, Workers
from minibox_server.zero_copy import EXTENSION
from minibox_store import (
    BlobNotFound,
    BlobStream,
    Descriptor,
    Digest,
    Image,
    ImageNotFound,
    InvalidDigest,
    RangeStream,
    Store,
    StoreDamaged,
    is_document,
)

_MOST_TAGS = 1000
_PIECE_BYTES = 512 * 1024
# What never comes by here may be more at once; between two of them it is seen that the daemon ends.
_RANGE_BYTES = 2 * 1024 * 1024


@attrs.frozen(kw_only=True)
class TagsQuery:
    """Which page of the tags."""

    n: int = parameter(
        counted(most=_MOST_TAGS), "how many at most", default=_MOST_TAGS, code="PAGINATION_NUMBER_INVALID"
    )
    last: str | None = parameter(TEXT, "the tag after which the page begins", default=None)


class Distribution:
    """The endpoints over one store."""

    def __init__(self, store: Store, workers: Workers, upstream: Upstream | None = None) -> None:
        self._store = store
        self._workers = workers
        self._upstream = upstream
        self._last: tuple[tuple[Image, ...], Mapping[str, Repository]] | None = None

    def all(self) -> list[Endpoint]:
        """Return each endpoint; every other method than GET and HEAD is refused."""
        return [
            Endpoint(
                method="GET",
                path="/v2",
                what="Say that this is a registry.",
                call=self.version,
                answers=(Answer(what="yes", media_type="application/json"),),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path="/v2/",
                what="Say that this is a registry.",
                call=self.version,
                answers=(Answer(what="yes", media_type="application/json"),),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path="/v2/{name:path}/manifests/{reference}",
                what="Send a manifest or an index, by tag or by digest.",
                call=self.manifest,
                answers=(Answer(what="the very bytes", media_type="*/*"),),
                refusals=(404,),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path="/v2/{name:path}/blobs/{digest}",
                what="Send a blob, or one range of it.",
                call=self.blob,
                answers=(
                    Answer(what="the blob", media_type="application/octet-stream"),
                    Answer(status=206, what="the range", media_type="application/octet-stream"),
                ),
                refusals=(404, 416),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path="/v2/{name:path}/tags/list",
                what="List a page of a repository's tags.",
                call=self.tags,
                query=TagsQuery,
                answers=(Answer(what="the tags", media_type="application/json"),),
                refusals=(404,),
                tag="distribution",
            ),
            # The last one: a repository's own path may hold these words.
            Endpoint(
                method="GET",
                path="/v2/{name:path}/blobs/uploads/{rest:path}",
                what="Say how much of an upload has come.",
                call=self.upload,
                answers=(Answer(what="how much", status=204, media_type=None),),
                refusals=(404,),
                tag="distribution",
            ),
        ]

    async def version(self, request: Request, query: NoQuery) -> Response:
        """Say that this is a registry."""
        return JSONResponse({})

    async def upload(self, request: Request, query: NoQuery) -> Response:
        """Say that nothing is being uploaded."""
        raise RequestError(404, "there are no uploads here", code="BLOB_UPLOAD_UNKNOWN")

    async def tags(self, request: Request, query: TagsQuery) -> Response:
        """List a page of a repository's tags."""
        repository = await self._workers.run(self._workers.reading, lambda: self._repository(request))
        tags = sorted(tag for tag in repository.tags if query.last is None or tag > query.last)
        page = tags[: query.n]
        headers = {}
        if page and len(tags) > query.n:
            headers["Link"] = f'</v2/{repository.name}/tags/list?n={query.n}&last={page[-1]}>; rel="next"'
        return JSONResponse({"name": repository.name, "tags": page}, headers=headers)

    async def manifest(self, request: Request, query: NoQuery) -> Response:
        """Serve a manifest or an index, by tag or by digest."""

        def call() -> Response:
            descriptor = self._find_manifest(self._repository(request), request.path_params["reference"])
            try:
                content = self._store.read_document(descriptor)
            except BlobNotFound as error:
                raise _unknown(f"{descriptor.digest}", "MANIFEST_UNKNOWN") from error
            content = b"" if request.method == "HEAD" else content
            headers = {**_headers(descriptor), "Content-Length": str(descriptor.size_bytes)}
            return Response(content, headers=headers, media_type=descriptor.media_type)

        try:
            return await self._workers.run(self._workers.reading, call)
        except RequestError as error:
            reference = request.path_params["reference"]
            if not await self._bring(request, error, _digest(reference) or reference, is_manifest=True):
                raise
        return await self._workers.run(self._workers.reading, call)

    async def blob(self, request: Request, query: NoQuery) -> Response:
        """Serve a blob, or one range of it."""

        def call() -> Response:
            repository = self._repository(request)
            digest = _digest(request.path_params["digest"])
            if digest is None:
                raise RequestError(400, "a blob is asked for by its digest", code="DIGEST_INVALID")
            descriptor = self._find(repository, digest, "BLOB_UNKNOWN")
            wanted = _range(request, descriptor)
            stream = self._open(descriptor, wanted.first if wanted else 0, "BLOB_UNKNOWN")
            return BlobAnswer(self._workers, stream, descriptor, wanted)

        try:
            return await self._workers.run(self._workers.reading, call)
        except RequestError as error:
            if not await self._bring(request, error, _digest(request.path_params["digest"]), is_manifest=False):
                raise
        return await self._workers.run(self._workers.reading, call)

    async def _bring(
        self, request: Request, error: RequestError, wanted: Digest | str | None, *, is_manifest: bool
    ) -> bool:
        """Return whether what was not found is here now, because the registry behind this one has it."""
        if self._upstream is None or error.status != 404 or wanted is None:
            return False
        name = request.path_params["name"]
        if is_manifest:
            return await self._upstream.bring_manifest(request, name, wanted)
        return isinstance(wanted, Digest) and await self._upstream.bring_blob(request, name, wanted)

    def _repository(self, request: Request) -> Repository:
        name = request.path_params["name"]
        if not is_repository_name(name):
            raise RequestError(400, f"{name} is no name of a repository", code="NAME_INVALID")
        images = self._store.images()
        last = self._last
        if last is None or last[0] is not images:
            last = (images, build_catalogue(images))
            self._last = last
        repository = last[1].get(name)
        if repository is None:
            raise RequestError(404, f"there is no repository {name}", code="NAME_UNKNOWN")
        return repository

    def _find_manifest(self, repository: Repository, reference: str) -> Descriptor:
        digest = _digest(reference)
        if digest is None:
            image = repository.tags.get(reference)
            descriptor = None if image is None else image.descriptor
        else:
            descriptor = self._find(repository, digest, "MANIFEST_UNKNOWN")
        # A type that is none would let whoever wrote it choose how others read the bytes.
        if descriptor is None or not is_document(descriptor.media_type):
            raise _unknown(f"manifest {reference}", "MANIFEST_UNKNOWN")
        return descriptor

    def _find(self, repository: Repository, digest: Digest, code: str) -> Descriptor:
        damage: StoreDamaged | None = None
        for image in repository.images:
            if image.digest == digest:
                return image.descriptor
        for image in repository.images:
            try:
                return self._store.find_blob(image.name, digest)
            except (BlobNotFound, ImageNotFound):
                continue
            except StoreDamaged as error:
                # It may well be a blob of another image, and the damage none of this client's concern.
                damage = error
        if damage is not None:
            raise damage
        raise _unknown(f"{digest}", code)

    def _open(self, descriptor: Descriptor, offset: int, code: str) -> BlobStream:
        try:
            return self._store.open_blob(descriptor, offset)
        except BlobNotFound as error:
            raise _unknown(f"{descriptor.digest}", code) from error


class BlobAnswer(Response):
    """A blob on its way out: never more of it in memory than one piece, and nothing where the kernel can send it."""

    def __init__(self, workers: Workers, stream: BlobStream, descriptor: Descriptor, wanted: ByteRange | None) -> None:
        self._workers = workers
        self._stream = stream
        self._reader = _Reader(stream)
        self._size_bytes = descriptor.size_bytes if wanted is None else wanted.size_bytes
        headers = {**_headers(descriptor), "Accept-Ranges": "bytes", "Content-Length": str(self._size_bytes)}
        if wanted is not None:
            headers["Content-Range"] = f"bytes {wanted.first}-{wanted.last}/{descriptor.size_bytes}"
        super().__init__(None, 200 if wanted is None else 206, headers, "application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, and close the blob whatever happens."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD" or await self._send_content(scope, receive, send):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._reader.close()

    async def _send_content(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Send every byte and return True, or return False once the client has gone or the daemon ends."""
        ranges = self._stream if EXTENSION in scope.get("extensions", {}) else None
        with self._workers.operation(receive) as operation:
            if isinstance(ranges, RangeStream):
                return await self._send_ranges(ranges, operation, send)
            return await self._send_pieces(operation, send)

    async def _send_ranges(self, stream: RangeStream, operation: Operation, send: Send) -> bool:
        remaining = self._size_bytes
        while remaining:
            if operation.cancellation.is_cancelled:
                return False
            found = stream.next_range(min(_RANGE_BYTES, remaining))
            remaining -= found.size_bytes
            place = {"file": found.file_descriptor, "offset": found.offset, "count": found.size_bytes}
            await send({"type": EXTENSION, **place, "more_body": True})
        return True

    async def _send_pieces(self, operation: Operation, send: Send) -> bool:
        remaining = self._size_bytes
        while remaining:
            if operation.cancellation.is_cancelled:
                return False
            read = functools.partial(self._reader.read, min(_PIECE_BYTES, remaining))
            piece = await self._workers.run(self._workers.streaming, read)
            remaining -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        return True


class _Reader:
    """A stream that may be closed while another thread reads from it: whichever comes first is waited for."""

    def __init__(self, stream: BlobStream) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._closed = False

    def read(self, limit: int) -> bytes:
        with self._lock:
            return b"" if self._closed else _read(self._stream, limit)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._stream.close()


def _read(stream: BlobStream, size_bytes: int) -> bytes:
    """Return exactly so many bytes of a blob that is known to have them.

    Raises:
        EOFError: when it was cut short since.
    """
    content = bytearray(size_bytes)
    view = memoryview(content)
    done = 0
    while done < size_bytes:
        count = stream.readinto(view[done:])
        if count == 0:
            raise EOFError(f"a blob ends after {done} of {size_bytes} bytes")
        done += count
    return bytes(content)


def _headers(descriptor: Descriptor) -> dict[str, str]:
    return {"Docker-Content-Digest": str(descriptor.digest), "ETag": f'"{descriptor.digest}"'}


def _digest(text: str) -> Digest | None:
    try:
        return parse_digest(text)
    except InvalidDigest as error:
        raise RequestError(400, str(error), code="DIGEST_INVALID") from error


def _range(request: Request, descriptor: Descriptor) -> ByteRange | None:
    if request.method != "GET" or request.headers.get("if-range", f'"{descriptor.digest}"') != f'"{descriptor.digest}"':
        return None
    try:
        return parse_range(request.headers.getlist("range"), descriptor.size_bytes)
    except RangeNotSatisfiable:
        headers = {"Content-Range": f"bytes */{descriptor.size_bytes}"}
        raise RequestError(416, "the range lies beyond the end of the blob", headers, "RANGE_INVALID") from None


def _unknown(what: str, code: str) -> RequestError:
    return RequestError(404, f"{what} is not in this repository", code=code)
