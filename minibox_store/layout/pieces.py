"""Pieces of one blob that are fetched at once, ahead of its contiguous prefix, and taken into it in their order.

Each lane is a thread that fetches one piece after the other into a file of the transaction's folder; what is there of
the first piece is taken while the rest of it still comes. So much may wait there and no more. A file goes as soon as
its piece is taken; and with the transaction's folder, whatever happens.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from minibox_store import _files, _moving
from minibox_store.digest import Verifier
from minibox_store.documents import Descriptor
from minibox_store.errors import StoreError
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import RangedSource

# A piece costs a request, so it is not to be small; and what waits takes room on the disk, so it is not to be large.
LEAST_BYTES = 4 * MEBIBYTE
MOST_BYTES = 16 * MEBIBYTE
# How many pieces there may be for each lane: that which it fetches, and one that waits.
WAITING = 2

_BUFFER_BYTES = 256 * 1024
_LOOK_SECONDS = 0.1
# What is taken at once, where it comes within such a look.
_ENOUGH_BYTES = MEBIBYTE


class NoRanges(Exception):
    """The source does not give a range of the blob, or less than all of it, or the system no lane for it.

    It never leaves the lanes.
    """


class Traffic:
    """What comes for all blobs of one transaction together, and over how many lanes. For several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.received_bytes = 0
        self.lanes = 0

    def add(self, received_bytes: int) -> None:
        """Count bytes that came."""
        with self._guard:
            self.received_bytes += received_bytes

    def open(self, lanes: int) -> None:
        """Count lanes that begin, or end where it is negative."""
        with self._guard:
            self.lanes += lanes


class _Piece:
    """Some bytes of the blob, and how many of them have come and were taken."""

    def __init__(self, path: str, offset: int, size_bytes: int) -> None:
        self.path = path
        self.file_descriptor = _files.open_new(path)
        self.offset = offset
        self.size_bytes = size_bytes
        self.come_bytes = 0
        self.taken_bytes = 0
        self.is_given_up = False

    def discard(self) -> None:
        os.close(self.file_descriptor)
        with suppress(OSError):  # it goes with the transaction's folder
            _files.discard_file(self.path)


class PiecesAhead:
    """The pieces from an offset on, and the lanes that fetch them.

    Args:
        source: gives ranges of the blob.
        descriptor: of the blob.
        folder: where pieces wait.
        offset: where the first one begins; it must be the prefix's end when pieces are first taken.
        traffic: is told of what comes.

    Attributes:
        begins_at: the offset.
        received_bytes: how much has come.
        working: how many lanes there are.
        failure: what the first lane that failed has met.
    """

    def __init__(
        self, source: RangedSource, descriptor: Descriptor, folder: str, offset: int, traffic: Traffic
    ) -> None:
        self._source = source
        self._descriptor = descriptor
        self._folder = folder
        self.begins_at = offset
        self._next_offset = offset
        self._traffic = traffic
        self._changed = threading.Condition()
        self._pieces: deque[_Piece] = deque()
        self._threads: list[threading.Thread] = []
        self._wanted = 0
        self.working = 0
        self._is_stopped = False
        self.received_bytes = 0
        self.failure: BaseException | None = None

    def work(self, lanes: int) -> None:
        """Let so many lanes work from now on; one that is too many ends with the piece that it has."""
        with self._changed:
            self._wanted = lanes
            self._changed.notify_all()
            is_over = self._is_stopped or self.failure is not None or not self._left_bytes()
            for _ in range(0 if is_over else lanes - self.working):
                thread = threading.Thread(target=self._run_lane, name="minibox-range", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system gives no more
                    self.failure = self.failure or NoRanges()
                    return
                self._threads.append(thread)
                self.working += 1
                self._traffic.open(1)

    def take(self, descriptor: int, verifier: Verifier, look: Callable[[], None], *, durable: bool = False) -> None:
        """Append the pieces to an open file as they come, ``durable`` or not, and return when there are no more.

        When a lane has failed no further pieces are begun, and those up to its own are taken. What ``look`` raises,
        which is called now and then, ends it.
        """
        while (piece := self._wait_for_bytes(look)) is not None:
            size_bytes = piece.come_bytes - piece.taken_bytes
            assert verifier.seen_bytes == piece.offset + piece.taken_bytes
            stream = _moving.FileStream(piece.file_descriptor, piece.taken_bytes, size_bytes, owns_descriptor=False)
            _moving.append_stream(stream, descriptor, verifier, durable=durable)
            piece.taken_bytes += size_bytes
            if piece.taken_bytes == piece.size_bytes:
                with self._changed:
                    self._pieces.popleft().discard()
                    self._changed.notify_all()

    def check(self) -> None:
        """Return unless a lane met an error of the program, which it raises; the source's or the disk's is no such."""
        if self.failure is not None and not isinstance(self.failure, StoreError | OSError | NoRanges):
            raise self.failure

    def stop(self) -> None:
        """Let the lanes end with the read that they are at, and drop what was not taken. A second call does nothing."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        while self._pieces:
            self._pieces.popleft().discard()

    def _wait_for_bytes(self, look: Callable[[], None]) -> _Piece | None:
        while True:
            look()
            with self._changed:
                is_worth_it = self._changed.wait_for(self._is_time_to_take, _LOOK_SECONDS)
                first = self._pieces[0] if self._pieces else None
                if first is not None and first.come_bytes > first.taken_bytes:
                    return first
                if is_worth_it:
                    return None

    def _is_time_to_take(self) -> bool:
        """Whether enough has come of the first piece, or nothing more will."""
        if not self._pieces or not self.working:
            return not self.working
        first = self._pieces[0]
        waiting_bytes = first.come_bytes - first.taken_bytes
        return waiting_bytes >= _ENOUGH_BYTES or first.come_bytes == first.size_bytes or first.is_given_up

    def _left_bytes(self) -> int:
        return self._descriptor.size_bytes - self._next_offset

    # ---- lanes

    def _run_lane(self) -> None:
        piece = None
        try:
            buffer = memoryview(bytearray(_BUFFER_BYTES))
            while (piece := self._begin_piece()) is not None:
                self._fetch(piece, buffer)
        except BaseException as error:  # noqa: BLE001  # the blob is gone on with in another way, or check() raises it
            with self._changed:
                self.failure = self.failure or error
                if piece is not None:
                    piece.is_given_up = True
        finally:
            self._traffic.open(-1)
            with self._changed:
                self.working -= 1
                self._changed.notify_all()

    def _begin_piece(self) -> _Piece | None:
        """Return the next piece to be fetched; None when this lane is to end."""
        with self._changed:
            while True:
                left_bytes = self._left_bytes()
                is_over = self._is_stopped or self.failure is not None or not left_bytes
                if is_over or self.working > self._wanted:
                    return None
                if len(self._pieces) < WAITING * self._wanted:
                    break
                self._changed.wait()
            share_bytes = left_bytes // (WAITING * self._wanted)
            size_bytes = min(left_bytes, max(LEAST_BYTES, min(MOST_BYTES, share_bytes)))
            path = os.path.join(self._folder, f"range-{_files.fresh_name()}")
            piece = _Piece(path, self._next_offset, size_bytes)
            self._pieces.append(piece)
            self._next_offset += size_bytes
            return piece

    def _fetch(self, piece: _Piece, buffer: memoryview) -> None:
        stream = self._source.open_range(self._descriptor, piece.offset, piece.size_bytes)
        if stream is None:
            raise NoRanges
        try:
            while piece.come_bytes < piece.size_bytes and not self._is_stopped:
                count = stream.readinto(buffer[: piece.size_bytes - piece.come_bytes])
                if not count:
                    raise NoRanges
                _moving.write_all(piece.file_descriptor, buffer[:count])
                self._traffic.add(count)
                with self._changed:
                    piece.come_bytes += count
                    self.received_bytes += count
                    self._changed.notify_all()
        finally:
            stream.close()
