"""One blob on its way: a stream that goes on by itself where the line was cut.

It always asks the registry's own URL again, never the signed one that it was sent to, and asks for the bytes that are
missing. Nothing of what comes is trusted; but no more is ever taken than the blob's size and one byte, by which a
verifier sees that there are too many.

Spec: RFC 9110, sections 14.2, 14.4, 15.3.7 and 15.5.17; OCI distribution-spec 1.1, "Pulling blobs".
"""

import re

from minibox_store.documents import Descriptor
from minibox_store.errors import ContentMismatch, RateLimited, RegistryError
from minibox_store.events import BlobRetried
from minibox_store.registry.answers import Answer
from minibox_store.registry.failures import Failure, LineCut, foreign_errors
from minibox_store.registry.transport import Request, Transport

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)")


class _Download:
    """What a download of any kind has: where it is, its attempts, and the answer that it reads from just now."""

    def __init__(self, transport: Transport, target: str, descriptor: Descriptor, offset: int) -> None:
        self._transport = transport
        self._target = target
        self._descriptor = descriptor
        self._size = descriptor.size_bytes
        self._position = offset
        self._attempts = transport.attempts(self._tell_retry)
        self._answer: Answer | None = None

    def _tell_retry(self) -> None:
        self._transport.tell(BlobRetried(digest=self._descriptor.digest, offset_bytes=self._position))

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _check_size(self, actual_bytes: int | None) -> None:
        if actual_bytes is not None and actual_bytes != self._size:
            raise ContentMismatch(str(self._descriptor.digest), f"{self._size} bytes", f"{actual_bytes} bytes")


class BlobDownload(_Download):
    """The bytes of a blob from an offset on. For one thread.

    Args:
        transport: to the registry.
        target: the blob's path there.
        descriptor: what is wanted; the size it names is the most that is read, and one byte.
        offset: how many bytes are there already.

    Raises:
        BlobNotFound: on construction, when the registry does not have it.
        ContentMismatch: on construction, when the registry announces another size.
    """

    def __init__(self, transport: Transport, target: str, descriptor: Descriptor, offset: int) -> None:
        super().__init__(transport, target, descriptor, offset)
        self._to_skip = 0
        self._may_ask_range = True
        self._has_ended = False
        self._answer = self._open()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of ``buffer``; 0 at the blob's end, or one byte behind where it should be.

        Raises:
            StoreError: when the line broke, and the registry does not go on where it was.
        """
        room = memoryview(buffer)[: max(0, self._size + 1 - self._position)]
        while len(room) and not self._has_ended:
            try:
                if self._answer is None:
                    self._answer = self._open()
                elif self._to_skip:
                    self._skip(self._answer, room)
                else:
                    return self._read(self._answer, room)
            except Failure as failure:
                self._drop()
                self._attempts.failed(failure)
        return 0

    def close(self) -> None:
        """Leave the download: what has not been read is not fetched. A second call does nothing."""
        self._has_ended = True
        self._drop()

    def _read(self, answer: Answer, room: memoryview) -> int:
        count = answer.readinto(room)
        if count:
            self._position += count
            self._attempts.advanced()
        elif answer.ends_with_connection and self._position < self._size:
            with foreign_errors(answer.method, answer.url):
                raise LineCut
        else:
            self._has_ended = True
        return count

    def _skip(self, answer: Answer, room: memoryview) -> None:
        """Pass bytes that are there already, which a registry sends that knows no ranges."""
        count = answer.readinto(room[: self._to_skip])
        self._to_skip -= count
        if not count:
            with foreign_errors(answer.method, answer.url):
                raise LineCut

    def _open(self) -> Answer | None:
        """Ask for what is missing; None when the answer is that nothing is."""
        while True:
            is_ranged = self._may_ask_range and self._position > 0
            request = Request(
                target=self._target,
                headers={"Range": self._missing()} if is_ranged else {},
                accepts=(200, 206, 416) if is_ranged else (200,),
                blob=self._descriptor.digest,
            )
            try:
                answer = self._transport.open(request, self._attempts)
            except RegistryError as refused:
                if not is_ranged or not _may_be_for_the_range(refused):
                    raise
                self._may_ask_range = False
                continue
            try:
                if self._suits(answer):
                    self._to_skip = self._position if answer.status == 200 else 0
                    return answer
            except BaseException:
                answer.close()
                raise
            answer.close()
            if self._has_ended:
                return None
            # Its ranges are not to be relied on: have all of it from the beginning.
            self._may_ask_range = False

    def _missing(self) -> str:
        """Return the range of what is missing, with its end: some know none without. Of no bytes there is none with."""
        return f"bytes={self._position}-{self._size - 1 if self._position < self._size else ''}"

    def _suits(self, answer: Answer) -> bool:
        """Whether the answer's body is the blob, or exactly what is missing of it."""
        if answer.status == 200:
            self._check_size(answer.length_bytes)
            self._has_ended = 0 < self._position == answer.length_bytes
            return not self._has_ended
        found = _CONTENT_RANGE.fullmatch(answer.header("Content-Range") or "")
        if found is not None and found[3] != "*":
            self._check_size(int(found[3]))
        if answer.status == 416:
            self._has_ended = self._position == self._size
            return False
        if found is None or (found[1], found[2]) != (str(self._position), str(self._size - 1)):
            return False
        if answer.length_bytes is not None:
            self._check_size(self._position + answer.length_bytes)
        return True


class RangeDownload(_Download):
    """Exactly so many bytes of a blob from an offset on; it goes on by itself as a whole download does. For one thread.

    Attributes:
        is_given: whether the registry answered with that range; else there is nothing to be read.

    Raises:
        BlobNotFound, ContentMismatch: on construction, as for :class:`BlobDownload`.
    """

    def __init__(self, transport: Transport, target: str, descriptor: Descriptor, offset: int, size_bytes: int) -> None:
        super().__init__(transport, target, descriptor, offset)
        self._end = offset + size_bytes
        self._answer = self._open()
        self.is_given = self._answer is not None

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of ``buffer``; 0 at the range's end alone.

        Raises:
            StoreError: when the line broke, and the registry does not go on where it was.
        """
        room = buffer[: self._end - self._position]
        while len(room):
            try:
                if self._answer is None:
                    self._answer = self._open()
                if self._answer is None:
                    problem = "it gives no ranges any more"
                    raise RegistryError("GET", self._transport.shown(self._request()), None, (), problem)
                return self._read(self._answer, room)
            except Failure as failure:
                self._drop()
                self._attempts.failed(failure)
        return 0

    def close(self) -> None:
        """Leave the download: what has not been read is not fetched. A second call does nothing."""
        self._end = self._position
        self._drop()

    def _read(self, answer: Answer, room: memoryview) -> int:
        count = answer.readinto(room)
        if not count:
            with foreign_errors(answer.method, answer.url):
                raise LineCut
        self._position += count
        self._attempts.advanced()
        return count

    def _request(self) -> Request:
        asked = f"bytes={self._position}-{self._end - 1}"
        accepts = (200, 206, 416)
        return Request(target=self._target, headers={"Range": asked}, accepts=accepts, blob=self._descriptor.digest)

    def _open(self) -> Answer | None:
        """Ask for the range; None when the answer is anything but exactly that."""
        answer = self._transport.open(self._request(), self._attempts)
        try:
            if self._suits(answer):
                return answer
        except BaseException:
            answer.close()
            raise
        answer.close()
        return None

    def _suits(self, answer: Answer) -> bool:
        found = _CONTENT_RANGE.fullmatch(answer.header("Content-Range") or "")
        if found is not None and found[3] != "*":
            self._check_size(int(found[3]))
        is_asked = found is not None and (found[1], found[2]) == (str(self._position), str(self._end - 1))
        return answer.status == 206 and is_asked and answer.length_bytes in (None, self._end - self._position)


def _may_be_for_the_range(refused: RegistryError) -> bool:
    """Whether it may be the range alone that was refused: not every registry, or proxy before it, knows any."""
    # Who asks, what for and how often is the same without.
    is_for_more = refused.status in (401, 410) or isinstance(refused, RateLimited)
    return not is_for_more and refused.status is not None and refused.status >= 400
