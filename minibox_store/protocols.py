"""The small protocols through which bytes enter and leave: who may ask what of whom.

An end (the local layout, a registry's repository, an archive, memory) implements some of these; the core
knows nothing else of it. A speed-up is a further protocol of one method, looked for in one place.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.values import Value


class BlobStream(Protocol):
    """Bytes of one blob, in order. They are not trusted until a verifier has seen them all.

    It is no file, and has no ``read``. All of a small blob, such as the one layer of a signature::

        content = bytearray(descriptor.size_bytes)
        with closing(store.open_blob(descriptor)) as stream, memoryview(content) as rest:
            while count := stream.readinto(rest):
                rest = rest[count:]
    """

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of ``buffer`` and return how many bytes; 0 at the end, and only there."""
        ...

    def close(self) -> None:
        """Release what the stream holds; a second call does nothing."""


class ReadableFile(Protocol):
    """What an archive is read from: a file, a pipe, a decompressor, or whatever else gives bytes."""

    def read(self, size: int, /) -> bytes | None:
        """Return 1 to ``size`` bytes, no bytes only at the end; None where it would not wait, which is refused."""
        ...


class WritableFile(Protocol):
    """What an archive is written to, where that is no path. Where it has ``flush`` that is called in the end."""

    def write(self, data: bytes | memoryview, /) -> int | None:
        """Take some of ``data``, and return how many bytes; all of it, where that is None."""
        ...


class BlobSource(Protocol):
    """Something that blobs can be read from."""

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on; the caller closes the stream.

        Raises:
            BlobNotFound: when it does not hold the blob.
        """
        ...


class ImageSource(BlobSource, Protocol):
    """Something that images can be copied from, by name."""

    def resolve(self, name: str) -> Descriptor:
        """Return the descriptor of the manifest or index that ``name`` stands for now.

        Raises:
            NotFound: when it knows no such name.
        """
        ...


@runtime_checkable
class NamedImages(Protocol):
    """A source that can list the names it holds."""

    def iter_names(self) -> Iterator[str]:
        """Yield each name once."""
        ...


class ImageWriter(Protocol):
    """One transaction at a target. Its methods may be called from several threads at once."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the target holds the blob; True promises that it stays until the writer closes."""
        ...

    def write_blob(self, descriptor: Descriptor, source: BlobSource) -> None:
        """Make the target hold the blob. The writer opens the source: where its own copy ends, or never.

        Raises:
            ContentMismatch: when the source's bytes are short, long or others; nothing is kept of them.
        """

    def write_name(self, name: str, descriptor: Descriptor) -> None:
        """Let ``name`` stand for ``descriptor`` once the transaction commits.

        Raises:
            IncompleteImage: when this transaction has not made the target hold it.
        """


class ImageTarget(Protocol):
    """Something that images can be copied to."""

    def open_writer(self) -> AbstractContextManager[ImageWriter]:
        """Begin a transaction: leaving it without an error commits it, with one aborts it."""
        ...


@runtime_checkable
class Referrers(Protocol):
    """Something that knows which manifests and indexes refer to another one, as their ``subject``."""

    def referrers(self, descriptor: Descriptor, /) -> tuple[Descriptor, ...]:
        """Return what is said to refer to a manifest or index, which may be absent; nobody has looked whether it does.

        Raises:
            InvalidDocument: when there is more of it than there may be.
        """
        ...


@runtime_checkable
class ReferrerWriter(Protocol):
    """A writer whose target keeps what refers to something else."""

    def write_referrer(self, descriptor: Descriptor, /) -> None:
        """Let what the descriptor stands for stay as long as its subject, once the transaction commits.

        Raises:
            IncompleteImage: when this transaction has not made the target hold it.
        """


@runtime_checkable
class RoomChecking(Protocol):
    """A writer that can tell beforehand whether what will be written fits."""

    def check_room(self, descriptors: Iterable[Descriptor]) -> None:
        """Return if what the target lacks of these blobs fits, as far as can be told.

        Raises:
            StoreFull: with the bytes that are needed, and those that are free.
        """


class BlobStage(BlobSource, Protocol):
    """Where blobs are put as they come, before anybody knows whether something needs them."""

    def stage_blob(self, stream: BlobStream, size_bytes: int, digest: Digest | None = None) -> Digest:
        """Take ``size_bytes`` of the stream, keep them, hash *what was kept*, and return its digest.

        It is a sha256 unless ``digest`` has another algorithm. The caller closes the stream.

        Raises:
            ContentMismatch: when they are fewer, or not what ``digest`` says; nothing is kept of them.
        """
        ...


@attrs.frozen(kw_only=True, repr=False)
class FileRange(Value):
    """Some bytes of an open regular file, which stays open until its stream is closed. Never a path."""

    file_descriptor: int
    offset: int
    size_bytes: int


@runtime_checkable
class RangeStream(Protocol):
    """What a stream also is when its bytes lie in a file: a target may then let the kernel move them."""

    def next_range(self, limit_bytes: int, /) -> FileRange:
        """Return the next bytes of the stream, at most ``limit_bytes``, and pass them; size 0 only at the end."""
        ...


@attrs.frozen(kw_only=True, repr=False)
class ArchivedBlob(Value):
    """A blob that an archive holds, under the digest and size that its member claims: the ``position``-th one.

    ``note_kept`` is None where it must have that digest. Where the name of the member promises nothing, it is told the
    digest that the blob turns out to have.
    """

    descriptor: Descriptor
    stream: BlobStream
    position: int
    note_kept: Callable[[Digest], None] | None = None


@runtime_checkable
class Interruptible(Protocol):
    """A source whose reads, or a target or writer whose writes, may block for long."""

    def interrupt(self) -> None:
        """End at once, with an error, everything that blocks now and whatever comes later.

        From any thread; and from a handler of signals, which may interrupt what this very object does just then.
        """


@runtime_checkable
class Waiting(Protocol):
    """A source that can say, while a target waits for something else, that waiting has become pointless."""

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``.

        Raises:
            Cancelled: as soon as the copy has been cancelled.
        """


# A source of several places says itself when there is none left; no source is asked for the same for ever.
MOST_PLACES = 16


@runtime_checkable
class Distrusting(Protocol):
    """A source that asks several places for the same blob."""

    def distrust(self, descriptor: Descriptor, /) -> bool:
        """Take note that the bytes given for a blob were wrong; return whether another place may be asked for them."""
        ...


@runtime_checkable
class RangedSource(BlobSource, Protocol):
    """A source whose blobs may be read at several places at once."""

    def open_range(self, descriptor: Descriptor, offset: int, size_bytes: int, /) -> BlobStream | None:
        """Return exactly these bytes of a blob, None where it gives no ranges of it; the caller closes the stream.

        Raises:
            BlobNotFound: when it does not hold the blob.
        """
        ...
