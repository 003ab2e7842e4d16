"""Images in a dict: the reference model of every other end, and a test double that keeps all the promises.

Also the way for a program to build an image: put blobs in, name the manifest, copy it to where it should be.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minibox_store.digest import Digest, Verifier
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, ContentMismatch, ImageNotFound, IncompleteImage
from minibox_store.graph import ContentStream
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import BlobSource, BlobStream
from minibox_store.referring import KnownReferrers


class MemoryImages:
    """Blobs and names in memory: an ImageSource, an ImageTarget, NamedImages, and Referrers."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.names: dict[str, Descriptor] = {}
        self.kept_referrers: dict[Digest, Descriptor] = {}
        self._guard = threading.Lock()

    def add_blob(self, content: bytes, media_type: str) -> Descriptor:
        """Keep ``content`` and return its descriptor (sha256)."""
        descriptor = Descriptor(media_type=media_type, digest=Digest.of(content), size_bytes=len(content))
        self.blobs[descriptor.digest] = content
        return descriptor

    def resolve(self, name: str) -> Descriptor:
        """Return what ``name`` stands for.

        Raises:
            ImageNotFound: when it stands for nothing.
        """
        try:
            return self.names[name]
        except KeyError:
            raise ImageNotFound(name) from None

    def iter_names(self) -> Iterator[str]:
        """Yield each name once."""
        return iter(tuple(self.names))

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on.

        Raises:
            BlobNotFound: when there is none.
        """
        try:
            return ContentStream(self.blobs[descriptor.digest], offset)
        except KeyError:
            raise BlobNotFound(str(descriptor.digest)) from None

    def referrers(self, descriptor: Descriptor, /) -> tuple[Descriptor, ...]:
        """Return what refers to a manifest or index, of all that has a name or was written as a referrer.

        Raises:
            BlobNotFound, ContentMismatch, InvalidDocument: when a document of that is missing or wrong.
        """
        return KnownReferrers(self, (*self.names.values(), *self.kept_referrers.values())).referrers(descriptor)

    @contextmanager
    def open_writer(self) -> Iterator["MemoryWriter"]:
        """Begin a transaction; leaving it without an error commits it, with one aborts it."""
        writer = MemoryWriter(self)
        yield writer
        with self._guard:
            if writer.names or writer.referrers:
                self.blobs.update({digest: writer.staged[digest] for digest in writer.reached & writer.staged.keys()})
            self.names.update(writer.names)
            self.kept_referrers.update(writer.referrers)


class MemoryWriter:
    """A transaction on :class:`MemoryImages`: an ImageWriter, and a BlobStage."""

    def __init__(self, images: MemoryImages) -> None:
        self._images = images
        self.staged: dict[Digest, bytes] = {}
        self.reached: set[Digest] = set()
        self.names: dict[str, Descriptor] = {}
        self.referrers: dict[Digest, Descriptor] = {}

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there, in its full size."""
        content = self.staged.get(descriptor.digest, self._images.blobs.get(descriptor.digest))
        if content is None or len(content) != descriptor.size_bytes:
            return False
        self.reached.add(descriptor.digest)
        return True

    def write_blob(self, descriptor: Descriptor, source: BlobSource) -> None:
        """Read and verify the blob, unless it is there.

        Raises:
            ContentMismatch: when the source's bytes are short, long or others.
        """
        if self.has_blob(descriptor):
            return
        stream = source.open_blob(descriptor)
        try:
            self.stage_blob(stream, descriptor.size_bytes, descriptor.digest)
        finally:
            stream.close()
        self.reached.add(descriptor.digest)

    def write_name(self, name: str, descriptor: Descriptor) -> None:
        """Let ``name`` stand for ``descriptor`` when the transaction commits.

        Raises:
            IncompleteImage: when its blob has not been written.
        """
        if descriptor.digest not in self.reached:
            raise IncompleteImage(name, (str(descriptor.digest),))
        self.names[name] = descriptor

    def write_referrer(self, descriptor: Descriptor, /) -> None:
        """Keep what ``descriptor`` stands for, when the transaction commits; here it stays, as everything does.

        Raises:
            IncompleteImage: when its blob has not been written.
        """
        if descriptor.digest not in self.reached:
            raise IncompleteImage(str(descriptor.digest), (str(descriptor.digest),))
        self.referrers[descriptor.digest] = descriptor

    def stage_blob(self, stream: BlobStream, size_bytes: int, digest: Digest | None = None) -> Digest:
        """Keep the stream's bytes in the transaction and return their digest.

        Raises:
            ContentMismatch: when there are fewer or more bytes, or ``digest`` is another.
        """
        verifier = Verifier(digest, size_bytes)
        buffer = memoryview(bytearray(min(MEBIBYTE, size_bytes + 1)))
        content = bytearray()
        while count := stream.readinto(buffer):
            verifier.update(buffer[:count])
            content += buffer[:count]
        found = verifier.finish()
        self.staged[found] = bytes(content)
        return found

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the bytes of a blob that was staged.

        Raises:
            BlobNotFound: when it was not.
            ContentMismatch: when what was staged has another size.
        """
        content = self.staged.get(descriptor.digest)
        if content is None:
            raise BlobNotFound(str(descriptor.digest))
        if len(content) != descriptor.size_bytes:
            raise ContentMismatch(str(descriptor.digest), f"{descriptor.size_bytes} bytes", f"{len(content)} bytes")
        return ContentStream(content, offset)
