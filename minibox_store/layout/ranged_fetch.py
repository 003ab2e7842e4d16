"""A blob on its way into a file: by one stream, and by several ranges at once where that brings it sooner.

It begins as one stream, which costs nothing where that is fast. When it is not, and the source gives ranges, lanes
begin ahead of it, and as many stay as pay. Whatever the source or the disk does to them, one stream brings the rest,
and has the last word on what is wrong there; an error of the program ends the fetch. What is in the file is always the
blob's contiguous prefix.
"""

import time

import attrs

from minibox_store import _moving
from minibox_store._room import check_room
from minibox_store.digest import Verifier
from minibox_store.documents import Descriptor
from minibox_store.errors import StoreError, StoreFull
from minibox_store.layout.pace import MOST_LANES, Pace, Sight
from minibox_store.layout.pieces import LEAST_BYTES, MOST_BYTES, WAITING, PiecesAhead, Traffic
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import BlobSource, BlobStream, Interruptible, RangedSource, RangeStream, Waiting
from minibox_store.values import Value

# Of all blobs that one transaction fetches at once.
_MOST_LANES_IN_ALL = 16
LEAST_BLOB_BYTES = 64 * MEBIBYTE
# What the one stream still fetches itself once lanes work ahead of it: a part of a second.
_HANDING_OVER_SECONDS = 0.5


@attrs.frozen(kw_only=True, repr=False)
class FetchPlan(Value):
    """How a transaction fetches blobs.

    Attributes:
        folder: where pieces wait.
        ranges: how many are fetched at once; measured where it is None, and 1 is none.
        traffic: what comes for all of its blobs.
        durable: whether they are to survive a loss of power.
    """

    folder: str
    ranges: int | None = None
    traffic: Traffic = attrs.field(factory=Traffic)
    durable: bool = False

    def suits(self, descriptor: Descriptor) -> bool:
        """Whether a blob is large enough for several ranges, and they are wanted at all."""
        return self.ranges != 1 and descriptor.size_bytes >= LEAST_BLOB_BYTES


def fetch_rest(source: BlobSource, descriptor: Descriptor, opened: int, verifier: Verifier, *, durable: bool) -> None:
    """Append to an open file what is missing of a blob, by one stream."""
    stream = source.open_blob(descriptor, verifier.seen_bytes)
    try:
        _moving.append_stream(stream, opened, verifier, durable=durable)
    finally:
        stream.close()


class RangedFetch:
    """The fetch of one blob whose beginning ``verifier`` has seen.

    Args:
        plan: of the transaction.
        source: gives ranges, perhaps.
        descriptor: of the blob.
        opened: the file, at whose end it stands.
        verifier: sees every byte in order.

    Attributes:
        used_ranges: whether a part of it has come in pieces.
    """

    def __init__(
        self, plan: FetchPlan, source: RangedSource, descriptor: Descriptor, opened: int, verifier: Verifier
    ) -> None:
        self._plan = plan
        self._source = source
        self._descriptor = descriptor
        self._opened = opened
        self._verifier = verifier
        self._ahead: PiecesAhead | None = None
        self._pace = Pace(self._sight())
        self.used_ranges = False

    def run(self) -> None:
        """Append all that is missing.

        Raises:
            ContentMismatch: when there are more bytes than there should be.
            StoreError: whatever the source raises.
        """
        try:
            if self._plan.ranges is not None:
                self._pace = Pace(self._sight(), lanes=self._plan.ranges, is_settled=True)
                self._begin_ahead(self._verifier.seen_bytes)
            else:
                self._fetch_watched()
            # A stream may end too soon, and leave a gap before the pieces: then they are of no use.
            if self._ahead is not None and self._verifier.seen_bytes == self._ahead.begins_at:
                self._ahead.take(self._opened, self._verifier, self._look, durable=self._plan.durable)
                self._ahead.check()
                self.used_ranges = self._ahead.received_bytes > 0
        except StoreError:
            raise
        except BaseException:
            # It is the disk or the program, so that all of it ends: a lane may wait a minute for bytes nobody wants.
            if isinstance(self._source, Interruptible):
                self._source.interrupt()
            raise
        finally:
            if self._ahead is not None:
                self._ahead.stop()
        if self._left_bytes():
            fetch_rest(self._source, self._descriptor, self._opened, self._verifier, durable=self._plan.durable)

    def _fetch_watched(self) -> None:
        """Fetch by one stream: to the end, or to where the pieces begin that are fetched ahead of it."""
        stream = self._source.open_blob(self._descriptor, self._verifier.seen_bytes)
        self._plan.traffic.open(1)
        try:
            is_file = isinstance(stream, RangeStream)
            watched = stream if is_file else _WatchedStream(stream, self)
            _moving.append_stream(watched, self._opened, self._verifier, durable=self._plan.durable)
        finally:
            self._plan.traffic.open(-1)
            stream.close()

    def room_before_pieces(self) -> int | None:
        """Return how many bytes the one stream is still to give; None where that is all."""
        self._look()
        ahead = self._ahead
        if ahead is not None and ahead.failure is not None and not ahead.received_bytes:
            # Nothing came of it, so that nothing is given up by going on as before.
            ahead.stop()
            self._ahead = ahead = None
            self._pace.give_up()
        return None if ahead is None else ahead.begins_at - self._verifier.seen_bytes

    def received(self, count: int) -> None:
        """Take note that the one stream gave bytes."""
        self._plan.traffic.add(count)

    def _look(self) -> None:
        if isinstance(self._source, Waiting):
            self._source.wait(0)  # a cancel does not wait for what is being taken
        if self._ahead is not None:
            self._ahead.check()
        lanes = self._pace.look(self._sight())
        if self._ahead is None and lanes > 1:
            self._begin_after_the_stream()
        elif self._ahead is not None:
            self._let_work(lanes)

    def _begin_after_the_stream(self) -> None:
        handed_over_bytes = int(self._pace.own_bytes_per_second * _HANDING_OVER_SECONDS)
        offset = self._verifier.seen_bytes + max(MEBIBYTE, min(MOST_BYTES, handed_over_bytes))
        if self._descriptor.size_bytes - offset < WAITING * LEAST_BYTES:
            self._pace.give_up()
        else:
            self._begin_ahead(offset)

    def _begin_ahead(self, offset: int) -> None:
        most = max(MOST_LANES, self._pace.lanes)
        try:
            check_room(self._plan.folder, self._left_bytes() + WAITING * most * MOST_BYTES, name=self._plan.folder)
        except StoreFull:
            self._pace.give_up()  # one stream needs no room but the blob's own
            return
        self._ahead = PiecesAhead(self._source, self._descriptor, self._plan.folder, offset, self._plan.traffic)
        self._let_work(self._pace.lanes)

    def _let_work(self, lanes: int) -> None:
        assert self._ahead is not None
        # The one stream is a lane too, until it comes to where the pieces begin.
        is_streaming = self._verifier.seen_bytes < self._ahead.begins_at
        wanted = 0 if lanes == 1 else lanes - is_streaming
        if self._plan.ranges is None:
            free = max(0, _MOST_LANES_IN_ALL - self._plan.traffic.lanes)
            wanted = min(wanted, max(1, self._ahead.working + free))
        # Whether ranges are given is asked by one lane, and seen by whoever looks on from the blob's beginning.
        self._ahead.work(wanted if self._ahead.received_bytes else min(wanted, 1))

    def _left_bytes(self) -> int:
        return self._descriptor.size_bytes - self._verifier.seen_bytes

    def _sight(self) -> Sight:
        come_bytes, ahead = self._verifier.seen_bytes, self._ahead
        if ahead is not None:
            come_bytes = min(come_bytes, ahead.begins_at) + ahead.received_bytes
        return Sight(
            seconds=time.monotonic(),
            received_bytes=self._plan.traffic.received_bytes,
            lanes=self._plan.traffic.lanes,
            left_bytes=self._descriptor.size_bytes - come_bytes,
        )


class _WatchedStream:
    """The one stream, which ends where the pieces begin."""

    def __init__(self, stream: BlobStream, fetch: RangedFetch) -> None:
        self._stream = stream
        self._fetch = fetch

    def readinto(self, buffer: memoryview, /) -> int:
        room_bytes = self._fetch.room_before_pieces()
        room = buffer if room_bytes is None else buffer[:room_bytes]
        count = self._stream.readinto(room) if len(room) else 0
        self._fetch.received(count)
        return count

    def close(self) -> None:
        self._stream.close()
