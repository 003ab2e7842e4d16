"""One repository in several places: its mirrors, and at last what they stand for.

Whatever goes wrong with a place, the next one is asked. What a tag stands for is said by the first that answers, and
holds as long as this operation lasts: from then on every place is asked for that digest. A stream that is cut, and
that its place does not go on with, is gone on with by the next one, where it was. No place sees what another was told.
"""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from minibox_store import media_types
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import ContentMismatch, StoreError
from minibox_store.events import BlobRetried, Event
from minibox_store.protocols import BlobStream
from minibox_store.reference import Reference
from minibox_store.registry.turns import Failed, OpenPlace, Turns


class MirroredRepository:
    """A repository that several places have, for the time of one operation: a source of images, as one of them is.

    Its methods may be called from several threads at once. After :meth:`interrupt` or :meth:`close` all of them fail.
    What they raise, where no place serves, is what the one that the mirrors stand for said; the sentence tells of the
    others too.

    Args:
        places: in the order in which they are asked; the last one is what the others stand for.
        on_event: told which mirror serves, and which failed, from several threads.
    """

    def __init__(self, places: Sequence[OpenPlace], on_event: Callable[[Event], None]) -> None:
        self._turns = Turns(places, on_event)
        self._lock = threading.Lock()
        self._digests: dict[str, Digest] = {}

    def resolve(self, name: str) -> Descriptor:
        """Return the descriptor of the manifest or index that a tag, or a digest, stands for.

        The first answer for a tag holds from then on. Opening the very descriptor takes no further request.

        Raises:
            InvalidReference, InvalidDigest: when ``name`` is neither a tag nor a digest.
            ManifestUnknown, RegistryError, InvalidDocument, ContentMismatch: when no place serves.
        """
        digest = self._known_digest(name)
        while True:
            asked = str(digest or name)
            descriptor, place = self._turns.ask(_resolving(asked), digest, [])
            with self._lock:
                # Two threads may have asked two places at once: then one of them asks again.
                digest = self._digests.setdefault(name, descriptor.digest)
            if digest == descriptor.digest:
                self._turns.note_holder(place, digest)
                return descriptor

    def head(self, name: str) -> Descriptor | None:
        """Return what :meth:`resolve` would, by requests that fetch nothing; None where no place has an answer.

        A place without one, which may not have the image at all, is no failure: the next one is asked. Nothing of what
        is returned is verified, so it does not hold from then on as an answer to :meth:`resolve` does.

        Raises:
            InvalidReference, InvalidDigest: when ``name`` is neither a tag nor a digest.
            RegistryError: when every place fails.
        """
        digest = self._known_digest(name)
        asked, failed = str(digest or name), list[Failed]()
        in_turn = self._turns.in_turn(digest)
        for place in in_turn:
            try:
                found = place.repository.head(asked)
            except StoreError as error:
                self._turns.note_failure(place, error, failed)
            else:
                if found is not None:
                    self._turns.tell_use(place)
                    return found
        if in_turn and len(failed) == len(in_turn):
            raise self._turns.error_of_all(failed)
        return None

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on; a stream that is cut goes on by itself, here or elsewhere.

        Raises:
            BlobNotFound, ContentMismatch, InvalidDocument, RegistryError: when no place serves.
        """

        def open_at(place: OpenPlace, position: int) -> BlobStream:
            return place.repository.open_blob(descriptor, position)

        if not offset:
            self._turns.begin_anew(descriptor)
        if media_types.is_document(descriptor.media_type):
            stream, giver = self._turns.ask(lambda place: open_at(place, offset), descriptor.digest, [])
            self._turns.note_giver(giver, descriptor)
            return stream
        size = descriptor.size_bytes
        return _MirroredStream(self._turns, descriptor, open_at, (offset, size, size + 1))

    def open_range(self, descriptor: Descriptor, offset: int, size_bytes: int, /) -> BlobStream | None:
        """Return exactly these bytes of a blob, None where the place that would serve it gives no ranges of it.

        Raises:
            BlobNotFound, ContentMismatch, RegistryError: when no place serves.
        """
        end = offset + size_bytes

        def open_range_at(place: OpenPlace, position: int) -> BlobStream | None:
            return place.repository.open_range(descriptor, position, end - position)

        def open_at(place: OpenPlace, position: int) -> BlobStream:
            return open_range_at(place, position) or place.repository.open_blob(descriptor, position)

        stream, giver = self._turns.ask(lambda place: open_range_at(place, offset), descriptor.digest, [])
        if stream is None:
            return None
        return _MirroredStream(self._turns, descriptor, open_at, (offset, end, end), (stream, giver))

    def referrers(self, descriptor: Descriptor, /) -> tuple[Descriptor, ...]:
        """Return what is listed as referring to a manifest or index by the first place that lists anything.

        A mirror that has nothing says little: many do not fetch such lists.

        Raises:
            InvalidDocument, ContentMismatch, RegistryError: when every place fails.
        """
        failed = list[Failed]()
        in_turn = self._turns.in_turn(descriptor.digest)
        for place in in_turn:
            try:
                found = place.repository.referrers(descriptor)
            except StoreError as error:
                self._turns.note_failure(place, error, failed)
            else:
                if found:
                    self._turns.tell_use(place)
                    return found
        # That mirrors have nothing is no answer of who could not be asked.
        if failed and (len(failed) == len(in_turn) or any(not each.place.is_mirror for each in failed)):
            raise self._turns.error_of_all(failed)
        return ()

    def distrust(self, descriptor: Descriptor, /) -> bool:
        """Take note that the bytes given for a blob were wrong; return whether another place may be asked for them."""
        return self._turns.distrust(descriptor)

    def interrupt(self) -> None:
        """End at once, with an error, every read that blocks now and every later one. From any thread."""
        self._turns.end()
        for place in self._turns.places:
            place.repository.interrupt()

    def close(self) -> None:
        """Close all connections, also those of streams that are open. A second call does nothing."""
        self._turns.end()
        for place in self._turns.places:
            place.repository.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _known_digest(self, name: str) -> Digest | None:
        """Return the digest to ask for: that of the name, or what its tag stood for before; None for a new tag."""
        if ":" in name:
            return Digest.parse(name)
        here = self._turns.home.place.reference
        Reference(domain=here.domain, repository=here.repository, tag=name)
        self._turns.begin_tag()
        with self._lock:
            return self._digests.get(name)


def _resolving(name: str) -> Callable[[OpenPlace], Descriptor]:
    return lambda place: place.repository.resolve(name)


class _MirroredStream:
    """Bytes of a blob, from one place after the other. For one thread.

    Args:
        turns: knows whom to ask.
        descriptor: of the blob.
        open_at: opens it at a place, at any position.
        bounds: where it begins, where it must end, and how far it is read, by which too much of it is noticed.
        begun: what is open already, and where.
    """

    def __init__(
        self,
        turns: Turns,
        descriptor: Descriptor,
        open_at: Callable[[OpenPlace, int], BlobStream],
        bounds: tuple[int, int, int],
        begun: tuple[BlobStream, OpenPlace] | None = None,
    ) -> None:
        self._turns = turns
        self._descriptor = descriptor
        self._open_at = open_at
        self._position, self._end, self._most = bounds
        self._failed: list[Failed] = []
        self._is_closed = False
        self._giver: OpenPlace | None = None
        self._stream, self._place = begun or self._ask()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of ``buffer``; 0 at the end.

        Raises:
            StoreError: when no place goes on where the last one was.
        """
        room = memoryview(buffer)[: max(0, self._most - self._position)]
        while len(room) and not self._is_closed:
            try:
                return self._read(room)
            except StoreError as error:
                self._stream.close()
                self._turns.note_failure(self._place, error, self._failed)
            self._stream, self._place = self._ask()
            self._turns.tell(BlobRetried(digest=self._descriptor.digest, offset_bytes=self._position))
        return 0

    def close(self) -> None:
        """Leave it. A second call does nothing."""
        self._is_closed = True
        self._stream.close()

    def _read(self, room: memoryview) -> int:
        count = self._stream.readinto(room)
        if not count and self._position < self._end:
            raise ContentMismatch(str(self._descriptor.digest), f"{self._end} bytes", f"{self._position} bytes")
        self._position += count
        if count:
            # Whoever failed before may be asked again: it is another try that begins here.
            self._failed.clear()
        if count and self._giver is not self._place:
            self._giver = self._place
            self._turns.note_giver(self._place, self._descriptor)
        return count

    def _ask(self) -> tuple[BlobStream, OpenPlace]:
        return self._turns.ask(
            lambda place: self._open_at(place, self._position), self._descriptor.digest, self._failed
        )
