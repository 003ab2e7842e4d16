"""An archive on its way out: its size is said before its first byte, and a download that was cut goes on where it was.

Everything in it is open before the status is sent, and closed behind the last byte. What lies in files leaves by the
kernel where the server can; elsewhere never more than a piece of it is in memory.
"""

import functools
import re
import threading
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minibox_server.distribution.ranges import ByteRange, RangeNotSatisfiable, parse_range
from minibox_server.responses import RequestError
from minibox_server.workers import Operation, Workers
from minibox_server.zero_copy import EXTENSION
from minibox_store import FileRange, OfferedArchive

ARCHIVE_TYPE = "application/x-tar"
_PIECE_BYTES = 512 * 1024
# What never comes by here may be more at once; between two of them it is seen that the daemon ends.
_RANGE_BYTES = 2 * 1024 * 1024
_SMALL_BYTES = 64 * 1024
# The daemon has so many descriptors for all that is no connection, and archives get half of them.
_MOST_FILES = 512
_BUSY_SECONDS = "5"
_UNSAFE = re.compile(r"[^A-Za-z0-9.+-]+")
_MOST_NAME = 100


class OnTheirWay:
    """The archives that are being sent, which keep files open as long as their clients like.

    One of any size is sent; beside others it has to wait until its files fit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files = 0

    def add(self, archive: OfferedArchive) -> None:
        """Count an archive in, until :meth:`remove`.

        Raises:
            RequestError: 503, where those that are sent already have too many files open.
        """
        with self._lock:
            if self._files and self._files + archive.blob_count > _MOST_FILES:
                raise RequestError(503, "there are too many archives being sent", {"Retry-After": _BUSY_SECONDS})
            self._files += archive.blob_count

    def remove(self, archive: OfferedArchive) -> None:
        """Count an archive out."""
        with self._lock:
            self._files -= archive.blob_count


def answer_archive(
    workers: Workers, others: OnTheirWay, archive: OfferedArchive, headers: Headers, method: str
) -> Response:
    """Return the answer that is the archive, or the part of it that these headers of a request ask for.

    The archive is closed by the answer; where there is none, by the caller.

    Raises:
        RequestError: 416, where no byte that is asked for exists; 503, where too many archives are being sent.
    """
    entity_tag = f'"{archive.identity}"'
    if _matches(headers.getlist("if-none-match"), entity_tag):
        archive.close()
        return Response(status_code=304, headers={"ETag": entity_tag, "Cache-Control": "no-cache"})
    wanted = None
    if method == "GET" and headers.get("if-range", entity_tag) == entity_tag:
        try:
            wanted = parse_range(headers.getlist("range"), archive.size_bytes)
        except RangeNotSatisfiable:
            size = {"Content-Range": f"bytes */{archive.size_bytes}"}
            raise RequestError(416, "the range lies beyond the end of the archive", size) from None
    return ArchiveAnswer(workers, others, archive, entity_tag, wanted)


class ArchiveAnswer(Response):
    """An archive, or one range of it."""

    def __init__(
        self,
        workers: Workers,
        others: OnTheirWay,
        archive: OfferedArchive,
        entity_tag: str,
        wanted: ByteRange | None,
    ) -> None:
        self._workers = workers
        self._others = others
        self._archive = archive
        self._lock = threading.Lock()
        self._is_closed = False
        self._offset = wanted.first if wanted else 0
        self._size_bytes = wanted.size_bytes if wanted else archive.size_bytes
        headers = {
            "Content-Length": str(self._size_bytes),
            "Content-Disposition": f'attachment; filename="{file_name([image.name for image in archive.images])}"',
            "ETag": entity_tag,
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-cache",
        }
        if wanted is not None:
            headers["Content-Range"] = f"bytes {wanted.first}-{wanted.last}/{archive.size_bytes}"
        super().__init__(None, 206 if wanted else 200, headers, ARCHIVE_TYPE)
        others.add(archive)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, and close the archive whatever happens."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD" or await self._send_content(scope, receive, send):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()

    async def _send_content(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Send every byte and return True, or return False once the client has gone or the daemon ends."""
        with self._workers.operation(receive) as operation:
            if EXTENSION in scope.get("extensions", {}):
                return await self._send_ranges(operation, send)
            return await self._send_pieces(operation, send)

    async def _send_pieces(self, operation: Operation, send: Send) -> bool:
        offset, end = self._offset, self._offset + self._size_bytes
        while offset < end:
            if operation.cancellation.is_cancelled:
                return False
            size_bytes = min(_PIECE_BYTES, end - offset)
            read = functools.partial(self._read, offset, size_bytes)
            piece = await self._workers.run(self._workers.streaming, read)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            offset += size_bytes
        return True

    async def _send_ranges(self, operation: Operation, send: Send) -> bool:
        small = b""
        for piece in self._archive.pieces(self._offset, self._size_bytes):
            if isinstance(piece, bytes):
                small += piece
                if len(small) < _SMALL_BYTES:
                    continue
            if small:
                await send({"type": "http.response.body", "body": small, "more_body": True})
                small = b""
            if isinstance(piece, FileRange) and not await self._send_range(piece, operation, send):
                return False
            if operation.cancellation.is_cancelled:
                return False
        await send({"type": "http.response.body", "body": small, "more_body": True})
        return True

    async def _send_range(self, place: FileRange, operation: Operation, send: Send) -> bool:
        offset, end = place.offset, place.offset + place.size_bytes
        while offset < end and not operation.cancellation.is_cancelled:
            count = min(_RANGE_BYTES, end - offset)
            part = {"file": place.file_descriptor, "offset": offset, "count": count}
            await send({"type": EXTENSION, **part, "more_body": True})
            offset += count
        return offset == end

    def _read(self, offset: int, size_bytes: int) -> bytes:
        with self._lock:
            return b"" if self._is_closed else self._archive.read(offset, size_bytes)

    def _close(self) -> None:
        # A thread may still be reading what nobody waits for any more.
        with self._lock:
            self._is_closed = True
            self._archive.close()
        self._others.remove(self._archive)


def file_name(names: Sequence[str]) -> str:
    """Return what an archive of images is called where it is kept: safe on every system, and in a header.

    >>> file_name(["quay.io/team/app:1"]), file_name(["../..", "b"])
    ('quay.io_team_app_1.tar', 'images.tar')
    """
    distinct = set(names)
    safe = _UNSAFE.sub("_", min(distinct))[:_MOST_NAME].strip("._-") if len(distinct) == 1 else ""
    return f"{safe or 'images'}.tar"


def _matches(values: Sequence[str], entity_tag: str) -> bool:
    given = [each.strip() for each in ",".join(values).split(",")]
    return "*" in given or entity_tag in given or f"W/{entity_tag}" in given
