"""Images as values of the library, and sources that lie, break off or block.

Each class implements the protocol it stands for, whole; nothing is replaced inside the code under test.
"""

import threading
from collections.abc import Callable, Collection, Mapping

from minibox_store.copying import copy_image
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, ImageNotFound
from minibox_store.memory import MemoryImages
from minibox_store.protocols import BlobSource, BlobStream, ImageTarget
from tests.support.images import BuiltImage, Document, digest_of

_BLOCKED_SECONDS = 60.0
_TOO_MANY_BYTES = 8 << 20


# Values


def descriptor_of(document: Mapping[str, object]) -> Descriptor:
    """Return the descriptor that a JSON object with ``mediaType``, ``digest`` and ``size`` is."""
    size_bytes = document["size"]
    assert isinstance(size_bytes, int)
    digest = Digest.parse(str(document["digest"]))
    return Descriptor(media_type=str(document["mediaType"]), digest=digest, size_bytes=size_bytes)


def descriptor_for(content: bytes, media_type: str, algorithm: str = "sha256") -> Descriptor:
    """Return the true descriptor of some bytes."""
    return Descriptor(media_type=media_type, digest=Digest.of(content, algorithm), size_bytes=len(content))


def root_of(image: BuiltImage) -> Descriptor:
    """Return the descriptor of an image's manifest or index."""
    return descriptor_of(image.root)


def descriptors_of(image: BuiltImage) -> list[Descriptor]:
    """Return the descriptor of each blob of an image, children before their parents, the root last."""
    return [
        Descriptor(media_type=image.media_types[digest], digest=Digest.parse(digest), size_bytes=len(content))
        for digest, content in image.blobs.items()
    ]


def blobs_of(*images: BuiltImage) -> dict[Digest, bytes]:
    """Return the blobs of some images by digest. Where an image was corrupted, the digest is the one it claims."""
    return {Digest.parse(digest): content for image in images for digest, content in image.blobs.items()}


def memory_of(images: Mapping[str, BuiltImage]) -> MemoryImages:
    """Return the images, by name, as a source."""
    memory = MemoryImages()
    memory.blobs.update(blobs_of(*images.values()))
    memory.names.update({name: root_of(image) for name, image in images.items()})
    return memory


def copy_into(target: ImageTarget, image: BuiltImage, *names: str) -> None:
    """Copy an image to a target under some names."""
    copy_image(memory_of({"image": image}), target, root_of(image), names)


def image_of(blobs: Mapping[str, bytes], root: Document, media_types: Mapping[str, str] | None = None) -> BuiltImage:
    """Return an image of documents that were written by hand."""
    return BuiltImage(root=root, blobs=dict(blobs), media_types=dict(media_types or {}))


def root_document(content: bytes, media_type: str) -> Document:
    """Return the JSON descriptor of some bytes."""
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def read_all(source: BlobSource, descriptor: Descriptor, offset: int = 0, *, step_bytes: int = 1 << 16) -> bytes:
    """Return what a source gives for a blob, read in steps and to the end."""
    stream = source.open_blob(descriptor, offset)
    try:
        return read_stream(stream, step_bytes=step_bytes)
    finally:
        stream.close()


def read_stream(stream: BlobStream, *, step_bytes: int = 1 << 16) -> bytes:
    """Return the rest of a stream."""
    content = bytearray()
    buffer = memoryview(bytearray(step_bytes))
    while count := stream.readinto(buffer):
        content += buffer[:count]
    return bytes(content)


# Streams


class PiecewiseStream:
    """Bytes in memory, given at most ``step_bytes`` at a time. It counts how often it is closed."""

    def __init__(self, content: bytes, *, step_bytes: int = 1 << 30) -> None:
        self._rest = content
        self._step_bytes = step_bytes
        self.closed_times = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """Give the next piece."""
        piece = self._rest[: min(len(buffer), self._step_bytes)]
        self._rest = self._rest[len(piece) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Count it."""
        self.closed_times += 1


class _EndlessStream:
    """Zeros for ever. Whoever reads on and on, long after it must have noticed, fails the test."""

    def __init__(self) -> None:
        self._given_bytes = 0

    def readinto(self, buffer: memoryview, /) -> int:
        if self._given_bytes > _TOO_MANY_BYTES:
            raise AssertionError("a blob is read without a limit")
        buffer[:] = bytes(len(buffer))
        self._given_bytes += len(buffer)
        return len(buffer)

    def close(self) -> None:
        return


class _WatchedStream:
    """Another stream, with a word before each read, and one at the close."""

    def __init__(
        self, stream: BlobStream, before_read: Callable[[int], None], *, at_close: Callable[[], None] | None = None
    ) -> None:
        self._stream = stream
        self._before_read = before_read
        self._at_close = at_close
        self._given_bytes = 0

    def readinto(self, buffer: memoryview, /) -> int:
        self._before_read(self._given_bytes)
        count = self._stream.readinto(buffer)
        self._given_bytes += count
        return count

    def close(self) -> None:
        self._stream.close()
        if self._at_close is not None:
            self._at_close()


# Sources


class LyingSource:
    """Gives the bytes it was told to give for a digest, whatever they are, and else what ``source`` gives."""

    def __init__(self, source: BlobSource, lies: Mapping[Digest, bytes], *, step_bytes: int = 1 << 30) -> None:
        self._source = source
        self._lies = lies
        self._step_bytes = step_bytes

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the lie, or the truth."""
        if descriptor.digest in self._lies:
            return PiecewiseStream(self._lies[descriptor.digest][offset:], step_bytes=self._step_bytes)
        return self._source.open_blob(descriptor, offset)


class EndlessSource:
    """Gives zeros without an end for the digests it was told, and else what ``source`` gives."""

    def __init__(self, source: BlobSource, digests: Collection[Digest]) -> None:
        self._source = source
        self._digests = digests

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a stream."""
        return _EndlessStream() if descriptor.digest in self._digests else self._source.open_blob(descriptor, offset)


class LackingSource:
    """A source without some blobs."""

    def __init__(self, source: BlobSource, digests: Collection[Digest]) -> None:
        self._source = source
        self._digests = digests

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a stream, or say that there is no such blob."""
        if descriptor.digest in self._digests:
            raise BlobNotFound(str(descriptor.digest))
        return self._source.open_blob(descriptor, offset)


class BreakingSource:
    """A source whose streams of some digests break with ``error`` behind their first ``after_bytes`` bytes."""

    def __init__(
        self, source: BlobSource, digests: Collection[Digest], error: Exception, *, after_bytes: int = 0
    ) -> None:
        self._source = source
        self._digests = digests
        self._error = error
        self._after_bytes = after_bytes

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a stream that breaks, or one that does not."""
        stream = self._source.open_blob(descriptor, offset)
        if descriptor.digest not in self._digests:
            return stream
        head = PiecewiseStream(read_stream(stream)[: self._after_bytes], step_bytes=max(1, self._after_bytes))
        return _WatchedStream(head, self._break)

    def _break(self, given_bytes: int) -> None:
        if given_bytes >= self._after_bytes:
            raise self._error


class BlockingSource:
    """A source whose reads of some digests block until somebody interrupts it.

    ``blocked`` is set while a read blocks. A read that is never interrupted fails the test in the end.
    """

    def __init__(self, source: BlobSource, digests: Collection[Digest]) -> None:
        self._source = source
        self._digests = digests
        self._interrupted = threading.Event()
        self.blocked = threading.Event()

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a stream that blocks, or one that does not."""
        stream = self._source.open_blob(descriptor, offset)
        return _WatchedStream(stream, self._block) if descriptor.digest in self._digests else stream

    def interrupt(self) -> None:
        """End the reads that block, and every later one."""
        self._interrupted.set()

    def _block(self, _: int) -> None:
        self.blocked.set()
        if not self._interrupted.wait(_BLOCKED_SECONDS):
            raise AssertionError("nobody has interrupted a read that blocks")
        raise ConnectionAbortedError("the read was interrupted")


class RecordingSource:
    """A source that remembers what was opened, at which offset, and how many streams are open now."""

    def __init__(self, source: BlobSource) -> None:
        self._source = source
        self._guard = threading.Lock()
        self.opened: list[tuple[Digest, int]] = []
        self.open_streams = 0
        self.most_open_streams = 0

    @property
    def opened_digests(self) -> list[Digest]:
        """The digests that were opened, in order."""
        return [digest for digest, _ in self.opened]

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a stream, and take note of it."""
        stream = self._source.open_blob(descriptor, offset)
        with self._guard:
            self.opened.append((descriptor.digest, offset))
            self.open_streams += 1
            self.most_open_streams = max(self.most_open_streams, self.open_streams)
        return _WatchedStream(stream, lambda _: None, at_close=self._closed)

    def _closed(self) -> None:
        with self._guard:
            self.open_streams -= 1


class MovingImages:
    """An image source whose one name stands for another image each time it is asked for."""

    def __init__(self, source: BlobSource, roots: list[Descriptor]) -> None:
        self._source = source
        self._roots = roots
        self.resolved_times = 0

    def resolve(self, name: str) -> Descriptor:
        """Return the next image, and at last the last one for ever."""
        if not self._roots:
            raise ImageNotFound(name)
        self.resolved_times += 1
        return self._roots.pop(0) if len(self._roots) > 1 else self._roots[0]

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a blob of any of the images."""
        return self._source.open_blob(descriptor, offset)


class ChangingSource:
    """A source that gives a blob's true bytes once, and other bytes of the same length ever after."""

    def __init__(self, source: BlobSource) -> None:
        self._source = source
        self._given: set[Digest] = set()

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the truth once, and then a lie."""
        if descriptor.digest not in self._given:
            self._given.add(descriptor.digest)
            return self._source.open_blob(descriptor, offset)
        return PiecewiseStream(bytes(descriptor.size_bytes - offset))


class SeveralPlaces:
    """A source of several places, each asked until its bytes were called wrong; it remembers who was asked for what."""

    def __init__(self, *places: BlobSource) -> None:
        self._places = list(enumerate(places))
        self.asked: list[tuple[int, int]] = []
        self.distrusted: list[Digest] = []

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return what the first place gives that is left."""
        number, place = self._places[0]
        self.asked.append((number, offset))
        return place.open_blob(descriptor, offset)

    def distrust(self, descriptor: Descriptor, /) -> bool:
        """Ask this place no more, if there is another."""
        self.distrusted.append(descriptor.digest)
        if len(self._places) > 1:
            del self._places[0]
            return True
        return False


class RangedPlace:
    """A source that gives ranges too. It remembers what was asked, and how many ranges were open at once.

    Args:
        source: what it gives.
        before_read: called with a range's offset, and how much of it was given, before each of its reads.
        step_bytes: how much one read gives at most.
        lies: for a digest the bytes that ranges are taken from instead.
    """

    def __init__(
        self,
        source: BlobSource,
        *,
        before_read: Callable[[int, int], None] = lambda offset, given_bytes: None,
        step_bytes: int = 1 << 30,
        lies: Mapping[Digest, bytes] | None = None,
    ) -> None:
        self._source = source
        self._before_read = before_read
        self._step_bytes = step_bytes
        self._lies = lies or {}
        self._guard = threading.Lock()
        self._open_ranges = 0
        self.most_open_ranges = 0
        self.opened: list[int] = []
        self.ranges: list[tuple[int, int]] = []

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a stream, and take note of its offset."""
        with self._guard:
            self.opened.append(offset)
        return PiecewiseStream(self._content(descriptor, {})[offset:], step_bytes=self._step_bytes)

    def open_range(self, descriptor: Descriptor, offset: int, size_bytes: int, /) -> BlobStream | None:
        """Return a range, and take note of it."""
        content = self._content(descriptor, self._lies)[offset : offset + size_bytes]
        with self._guard:
            self.ranges.append((offset, size_bytes))
            self._open_ranges += 1
            self.most_open_ranges = max(self.most_open_ranges, self._open_ranges)
        stream = PiecewiseStream(content, step_bytes=self._step_bytes)
        return _WatchedStream(stream, lambda given: self._before_read(offset, given), at_close=self._closed)

    def _content(self, descriptor: Descriptor, lies: Mapping[Digest, bytes]) -> bytes:
        return lies.get(descriptor.digest) or read_all(self._source, descriptor)

    def _closed(self) -> None:
        with self._guard:
            self._open_ranges -= 1
