"""Writing the minibox archive: ``meta.json``, then the manifest, the config and each layer in order, each once.

The bytes depend on the image and its name alone: no clock, no user, no order of arrival. So nothing is written until
the whole graph is known; then the members are laid down in one pass, moved by the kernel where both ends are files.
"""

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from minibox_store import _files, _moving, media_types
from minibox_store._room import check_room
from minibox_store.codec import ArchiveMetadata, decode_document, encode_archive_metadata
from minibox_store.digest import Digest, Verifier
from minibox_store.documents import Descriptor, children
from minibox_store.errors import ContentMismatch, IncompleteImage, InvalidPath
from minibox_store.graph import read_content
from minibox_store.limits import Limits
from minibox_store.protocols import BlobSource, RangeStream
from minibox_store.tar import END_OF_ARCHIVE, Member, encode_header, padding


class ArchiveFile:
    """A file that becomes an archive of one image: an ImageTarget.

    Args:
        path: where it goes; created, or replaced if it is a regular file. Relative to ``dir_fd`` where that is given.
        dir_fd: an open directory.
        durable: whether the file survives a loss of power once the writer has been left.
    """

    def __init__(self, path: str, *, dir_fd: int | None = None, durable: bool = True) -> None:
        self._path = path
        self._dir_fd = dir_fd
        self._durable = durable

    @contextmanager
    def open_writer(self) -> Iterator["ArchiveWriter"]:
        """Begin; leaving the block without an error puts the whole archive at the path in one step.

        Raises:
            InvalidPath: when something other than a regular file is there already.
        """
        with suppress(FileNotFoundError):
            present = os.stat(self._path, dir_fd=self._dir_fd, follow_symlinks=False)
            if not stat.S_ISREG(present.st_mode):
                raise InvalidPath(self._path, "it is not a regular file")
        with _files.replacing_file(self._path, dir_fd=self._dir_fd, durable=self._durable) as opened:
            writer = ArchiveWriter(opened, self._path)
            yield writer
            writer.finish()


class ArchiveWriter:
    """An ImageWriter that remembers where every blob can be read, and reads none before :meth:`finish`."""

    def __init__(self, file_descriptor: int, path: str) -> None:
        self._file_descriptor = file_descriptor
        self._path = path
        self._guard = threading.Lock()
        self._sources: dict[Digest, tuple[Descriptor, BlobSource]] = {}
        self._named: tuple[str, Descriptor] | None = None

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say False: an archive is written from nothing."""
        return False

    def check_room(self, descriptors: Iterable[Descriptor]) -> None:
        """Return if an archive of these blobs fits.

        Raises:
            StoreFull: with the bytes that are needed, and those that are free.
        """
        distinct = {descriptor.digest: descriptor.size_bytes for descriptor in descriptors}
        check_room(self._file_descriptor, sum(distinct.values()), name=self._path)

    def write_blob(self, descriptor: Descriptor, source: BlobSource) -> None:
        """Take note of the blob. ``source`` is opened when the archive is laid down, and not before."""
        with self._guard:
            self._sources[descriptor.digest] = (descriptor, source)

    def write_name(self, name: str, descriptor: Descriptor) -> None:
        """Give the archive its one image.

        Raises:
            IncompleteImage: when its manifest has not been written.
            ContentMismatch: when the archive has an image already.
        """
        if descriptor.digest not in self._sources:
            raise IncompleteImage(name, (str(descriptor.digest),))
        if self._named is not None:
            raise ContentMismatch("a minibox archive", "one image", "two")
        self._named = (name, descriptor)

    def finish(self) -> None:
        """Lay down every member.

        Raises:
            ContentMismatch: when a source gives fewer or more bytes than its descriptor says.
            IncompleteImage: when no image was named, or a blob of it has not been written.
        """
        if self._named is None:
            raise IncompleteImage("", ("a name",))
        name, root = self._named
        metadata = encode_archive_metadata(ArchiveMetadata(image=name, manifest_digest=root.digest))
        self._write_header("meta.json", len(metadata))
        _moving.write_all(self._file_descriptor, metadata + padding(len(metadata)))
        written: set[Digest] = set()
        followed: set[Digest] = set()  # what is a layer here may be a document there, and only that has children
        todo = [root]
        while todo:
            descriptor = todo.pop()
            if descriptor.digest not in written:
                written.add(descriptor.digest)
                self._write_member(name, descriptor)
            if media_types.is_document(descriptor.media_type) and descriptor.digest not in followed:
                followed.add(descriptor.digest)
                todo.extend(reversed(self._children(descriptor)))
        _moving.write_all(self._file_descriptor, END_OF_ARCHIVE)

    def _write_header(self, name: str, size_bytes: int) -> None:
        _moving.write_all(self._file_descriptor, encode_header(Member(name=name, size_bytes=size_bytes)))

    def _write_member(self, name: str, wanted: Descriptor) -> None:
        if wanted.digest not in self._sources:
            raise IncompleteImage(name, (str(wanted.digest),))
        descriptor, source = self._sources[wanted.digest]
        self._write_header(f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}", descriptor.size_bytes)
        stream = source.open_blob(descriptor)
        try:
            if isinstance(stream, RangeStream):
                # The file of a store, whose bytes were verified as they were stored: the kernel moves them unseen.
                written_bytes = _moving.append_stream(stream, self._file_descriptor)
                _check_size(descriptor, written_bytes)
            else:
                verifier = Verifier(descriptor.digest, descriptor.size_bytes)
                _moving.append_stream(stream, self._file_descriptor, verifier)
                verifier.finish()
        finally:
            stream.close()
        _moving.write_all(self._file_descriptor, padding(descriptor.size_bytes))

    def _children(self, descriptor: Descriptor) -> list[Descriptor]:
        # Whoever wrote it here had walked it, within limits of his own; so the bound is what it said that it has.
        limits = Limits(document_bytes=descriptor.size_bytes)
        content = read_content(self._sources[descriptor.digest][1], descriptor, limits)
        document = decode_document(content, descriptor.media_type, str(descriptor.digest), limits=limits)
        return [child.descriptor for child in children(document)]


def _check_size(descriptor: Descriptor, written_bytes: int) -> None:
    if written_bytes != descriptor.size_bytes:
        expected, actual = f"{descriptor.size_bytes} bytes", f"{written_bytes} bytes"
        raise ContentMismatch(str(descriptor.digest), expected, actual)
