"""Manifests and blobs on their way out.

A repository shows the manifests and blobs of its own images and no others, each exactly as it is stored.

Spec: OCI distribution-spec 1.1, "Pull".
"""

import functools
import threading
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from minibox_server.declarations import Answer, Endpoint, NoQuery
from minibox_server.distribution.naming import naming_errors, open_repository, parse_digest
from minibox_server.distribution.ranges import ByteRange, RangeNotSatisfiable, parse_range
from minibox_server.distribution.upstream import Upstream
from minibox_server.responses import RequestError
from minibox_server.schemas import VERSION_SCHEMA
from minibox_server.workers import Operation, Workers
from minibox_server.zero_copy import EXTENSION
from minibox_store import (
    BlobNotFound,
    BlobStream,
    Descriptor,
    ImageNotFound,
    LocalRepository,
    RangeStream,
    Store,
    is_document,
)

_PIECE_BYTES = 512 * 1024
# What never comes by here may be more at once; between two of them it is seen that the daemon ends.
_RANGE_BYTES = 2 * 1024 * 1024
_TELLING = {"Docker-Content-Digest": "its digest", "ETag": "its digest, in quotation marks"}
_RANGES = {"Accept-Ranges": "bytes"}
# What the registry behind this one may have to say, or the store to what it sends.
_OF_UPSTREAM = (403, 429, 502, 507)
# All that is_document has.
_DOCUMENTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


class Reading:
    """The endpoints over one store."""

    def __init__(self, store: Store, workers: Workers, upstream: Upstream | None = None) -> None:
        self._store = store
        self._workers = workers
        self._upstream = upstream

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="GET",
                path="/v2",
                what="Say that this is a registry.",
                call=self.version,
                answers=(Answer(what="yes", media_type="application/json", schema=VERSION_SCHEMA),),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path="/v2/",
                what="Say that this is a registry.",
                call=self.version,
                answers=(Answer(what="yes", media_type="application/json", schema=VERSION_SCHEMA),),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path="/v2/{name:path}/manifests/{reference}",
                what="Send a manifest or an index, by tag or by digest.",
                call=self.manifest,
                answers=tuple(Answer(what="the very bytes", media_type=each, headers=_TELLING) for each in _DOCUMENTS),
                refusals=(404, *_OF_UPSTREAM),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path="/v2/{name:path}/blobs/{digest}",
                what="Send a blob, or one range of it.",
                call=self.blob,
                answers=(
                    Answer(what="the blob", media_type="application/octet-stream", headers=_TELLING | _RANGES),
                    Answer(
                        status=206,
                        what="the range",
                        media_type="application/octet-stream",
                        headers=_TELLING | _RANGES | {"Content-Range": "which bytes of how many"},
                    ),
                ),
                refusals=(404, 416, *_OF_UPSTREAM),
                tag="distribution",
            ),
        ]

    async def version(self, request: Request, query: NoQuery) -> Response:
        """Say that this is a registry."""
        return JSONResponse({})

    async def manifest(self, request: Request, query: NoQuery) -> Response:
        """Serve a manifest or an index, by tag or by digest."""

        def call() -> Response:
            repository = open_repository(self._store, request)
            with naming_errors(repository):
                descriptor = _find_manifest(repository, request.path_params["reference"])
                content = self._read(descriptor)
            content = b"" if request.method == "HEAD" else content
            headers = {**_headers(descriptor), "Content-Length": str(descriptor.size_bytes)}
            return Response(content, headers=headers, media_type=descriptor.media_type)

        return await self._answer(request, call, request.path_params["reference"], is_manifest=True)

    async def blob(self, request: Request, query: NoQuery) -> Response:
        """Serve a blob, or one range of it; who only asks for it, as clients do before they push, finds it again."""
        is_held = request.method == "HEAD" and self._upstream is None

        def call() -> Response:
            repository = open_repository(self._store, request)
            with naming_errors(repository):
                digest = parse_digest(request.path_params["digest"])
                if digest is None:
                    if not repository.is_known():
                        raise BlobNotFound(request.path_params["digest"])
                    raise RequestError(400, "a blob is asked for by its digest", code="DIGEST_INVALID")
                descriptor = repository.hold_blob(digest) if is_held else repository.find(digest)
                wanted = _range(request, descriptor)
                stream = self._store.open_blob(descriptor, wanted.first if wanted else 0)
            return BlobAnswer(self._workers, stream, descriptor, wanted)

        if is_held:  # it may wait for the store's lock, and nobody who only reads for that
            return await self._workers.run(self._workers.changing, call)
        return await self._answer(request, call, request.path_params["digest"], is_manifest=False)

    async def _answer(
        self, request: Request, call: Callable[[], Response], wanted: str, *, is_manifest: bool
    ) -> Response:
        """Return what ``call`` answers; once more, where it finds nothing and the registry behind this one does."""
        try:
            return await self._workers.run(self._workers.reading, call)
        except RequestError as error:
            if self._upstream is None or error.status != 404:
                raise
            name = request.path_params["name"]
            if not await self._upstream.bring(request, name, wanted, is_manifest=is_manifest):
                raise
        return await self._workers.run(self._workers.reading, call)

    def _read(self, descriptor: Descriptor) -> bytes:
        try:
            return self._store.read_document(descriptor)
        except BlobNotFound as error:
            raise ImageNotFound(str(descriptor.digest)) from error


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


def _find_manifest(repository: LocalRepository, reference: str) -> Descriptor:
    digest = parse_digest(reference)
    if digest is None:
        descriptor = repository.resolve(reference)
    else:
        try:
            descriptor = repository.find_manifest(digest)
        except BlobNotFound as error:
            raise ImageNotFound(str(digest)) from error
    # A type that is none would let whoever wrote it choose how others read the bytes.
    if not is_document(descriptor.media_type):
        raise ImageNotFound(reference)
    return descriptor


def _range(request: Request, descriptor: Descriptor) -> ByteRange | None:
    if request.method != "GET" or request.headers.get("if-range", f'"{descriptor.digest}"') != f'"{descriptor.digest}"':
        return None
    try:
        return parse_range(request.headers.getlist("range"), descriptor.size_bytes)
    except RangeNotSatisfiable:
        headers = {"Content-Range": f"bytes */{descriptor.size_bytes}"}
        raise RequestError(416, "the range lies beyond the end of the blob", headers, "RANGE_INVALID") from None
