"""Writing an archive: the tables of contents of its form, then each blob that its images reach, each once.

The bytes depend on the images and their names alone: no clock, no user, no order of arrival. So nothing is written
until all graphs are known; then the members are planned, and laid down in one pass, moved by the kernel where both ends
are files.
"""

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import attrs

from minibox_store import media_types
from minibox_store._moving import CutOff
from minibox_store._unnamed import holding_folder, replacing_large_file
from minibox_store.archive.formats import ArchiveForm, WrittenImage, control_members
from minibox_store.archive.layout_plan import ArchivePlan, plan_archive
from minibox_store.archive.sinks import FileSink, Sink, ZstdSink, opened_sink
from minibox_store.codec import decode_document
from minibox_store.digest import Digest, Verifier
from minibox_store.documents import Descriptor, Document, children
from minibox_store.errors import ContentMismatch, IncompleteImage, InvalidPath
from minibox_store.graph import read_content
from minibox_store.latch import Latch
from minibox_store.limits import Limits
from minibox_store.protocols import BlobSource, BlobStream, RangeStream, WritableFile
from minibox_store.tar import END_OF_ARCHIVE

_PLAIN = ArchiveForm()
_CUT_OFF = "fewer: where they came from became shorter meanwhile"


class ArchiveFile:
    """A file that becomes an archive: an ImageTarget.

    Args:
        path: where it goes; created, or replaced if it is a regular file. Relative to ``dir_fd`` where that is given,
            else to where the process stands when the writer is opened.
        dir_fd: an open directory.
        durable: whether the file survives a loss of power once the writer has been left.
        form: how it is written.
    """

    def __init__(
        self, path: str, *, dir_fd: int | None = None, durable: bool = True, form: ArchiveForm = _PLAIN
    ) -> None:
        self._path = path
        self._dir_fd = dir_fd
        self._durable = durable
        self._form = form

    @contextmanager
    def open_writer(self) -> Iterator["ArchiveWriter"]:
        """Begin; leaving the block without an error puts the whole archive at the path in one step.

        Raises:
            InvalidPath: when something other than a regular file is there already.
        """
        with holding_folder(self._path, dir_fd=self._dir_fd) as (name, folder):
            with suppress(FileNotFoundError):
                present = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISREG(present.st_mode):
                    raise InvalidPath(self._path, "it is not a regular file")
            with (
                replacing_large_file(name, dir_fd=folder, durable=self._durable) as opened,
                _writing(FileSink(opened, self._path, durable=self._durable), self._form) as writer,
            ):
                yield writer


class ArchiveStream:
    """Something that a program has open, to which an archive is written: an ImageTarget.

    Nothing is written before it is known that the archive is whole; but what was written stays, if it breaks off.

    Args:
        file: a file, a pipe or whatever takes bytes; not closed.
        form: how the archive is written.
    """

    def __init__(self, file: WritableFile, *, form: ArchiveForm = _PLAIN) -> None:
        self._file = file
        self._form = form
        self._interrupted = Latch()

    def interrupt(self) -> None:
        """End a write to a pipe or a socket that waits for its reader, and every later one."""
        self._interrupted.set()

    @contextmanager
    def open_writer(self) -> Iterator["ArchiveWriter"]:
        """Begin; leaving the block without an error writes the archive.

        Raises:
            InvalidArgument: when bytes cannot be written to the file.
            StoreUnavailable: when the file refuses, such as a pipe whose other end is closed.
        """
        with opened_sink(self._file, self._interrupted) as sink, _writing(sink, self._form) as writer:
            yield writer


@contextmanager
def _writing(sink: Sink, form: ArchiveForm) -> Iterator["ArchiveWriter"]:
    writer = ArchiveWriter(sink if form.compress is None else ZstdSink(sink), form)
    yield writer
    writer.finish()


class ArchiveMembers:
    """What an archive will have, before anything of it is written: blobs, where each can be read, and names.

    Args:
        form: of the archive.
    """

    def __init__(self, form: ArchiveForm) -> None:
        self._form = form
        self._guard = threading.Lock()
        self._sources: dict[Digest, tuple[Descriptor, BlobSource]] = {}
        self._names: dict[str, Descriptor] = {}

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob is left out, since whoever reads the archive has it: else it is written from nothing."""
        return descriptor.digest in self._form.exclude and not media_types.is_document(descriptor.media_type)

    def write_blob(self, descriptor: Descriptor, source: BlobSource) -> None:
        """Take note of the blob. ``source`` is opened when the archive is laid down, and not before."""
        with self._guard:
            self._sources[descriptor.digest] = (descriptor, source)

    def write_name(self, name: str, descriptor: Descriptor) -> None:
        """Give the archive an image.

        Raises:
            IncompleteImage: when its manifest has not been written.
            ContentMismatch: when the archive has as many images as its form holds, or another one of this name.
        """
        if descriptor.digest not in self._sources:
            raise IncompleteImage(name, (str(descriptor.digest),))
        if self._names and not self._form.holds_many:
            raise ContentMismatch("a minibox archive", "one image", "two")
        if self._names.setdefault(name, descriptor).digest != descriptor.digest:
            raise ContentMismatch(f"image {name} of an archive", str(self._names[name].digest), str(descriptor.digest))

    def open_member(self, descriptor: Descriptor) -> BlobStream:
        """Return the bytes of a blob that has been written; the caller closes them."""
        return self._sources[descriptor.digest][1].open_blob(descriptor)

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a document that has been written."""
        # Whoever wrote it here had walked it, within limits of his own; so the bound is what it said that it has.
        limits = Limits(document_bytes=descriptor.size_bytes)
        return read_content(self._sources[descriptor.digest][1], descriptor, limits)

    def plan(self) -> ArchivePlan:
        """Return where everything will lie.

        Raises:
            InvalidArgument: when the form of the archive cannot hold an image, or its name.
            IncompleteImage: when no image was named, or a blob of one has not been written.
        """
        if not self._names:
            raise IncompleteImage("", ("a name",))
        images = []
        contents = _Contents(self._form, self._sources, self.read_document)
        for name, root in sorted(self._names.items()):
            images.append(WrittenImage(name=name, root=root, document=contents.add_image(name, root)))
        controls = control_members(self._form, images)
        return plan_archive(controls, contents.members, has_directories=self._form.has_directories)


class ArchiveWriter(ArchiveMembers):
    """An ImageWriter that remembers where every blob can be read, and reads none before :meth:`finish`."""

    def __init__(self, sink: Sink, form: ArchiveForm) -> None:
        super().__init__(form)
        self._sink = sink

    def check_room(self, descriptors: Iterable[Descriptor]) -> None:
        """Return if an archive of these blobs fits.

        Raises:
            StoreFull: with the bytes that are needed, and those that are free.
        """
        distinct = {each.digest: each.size_bytes for each in descriptors if not self.has_blob(each)}
        self._sink.check_room(sum(distinct.values()))

    def finish(self) -> None:
        """Lay down every member.

        Raises:
            InvalidArgument, IncompleteImage: as :meth:`plan`.
            ContentMismatch: when a source gives fewer or more bytes than its descriptor says.
        """
        plan = self.plan()
        self._sink.check_room(plan.size_bytes)
        self._sink.prepare(plan.size_bytes)
        self._lay_down(plan)
        self._sink.finish()

    def _lay_down(self, plan: ArchivePlan) -> None:
        for member in plan.members:
            self._sink.write(member.header)
            if member.content is not None:
                self._sink.write(member.content)
            elif member.descriptor is not None:
                self._write_blob(member.descriptor)
            self._sink.write(member.padding)
        self._sink.write(END_OF_ARCHIVE)

    def _write_blob(self, descriptor: Descriptor) -> None:
        stream = self.open_member(descriptor)
        try:
            if isinstance(stream, RangeStream):
                # The file of a store, whose bytes were verified as they were stored: the kernel moves them unseen.
                try:
                    written_bytes = self._sink.append(stream, None)
                except CutOff as error:  # which says nothing of where the archive goes
                    expected = f"{descriptor.size_bytes} bytes"
                    raise ContentMismatch(str(descriptor.digest), expected, _CUT_OFF) from error
                _check_size(descriptor, written_bytes)
            else:
                verifier = Verifier(descriptor.digest, descriptor.size_bytes)
                self._sink.append(stream, verifier)
                verifier.finish()
        finally:
            stream.close()


class _Contents:
    """What an archive will have: of each image its documents, config and layers, in their order, each once.

    Attributes:
        members: what will be written, as it was written here.
    """

    def __init__(
        self,
        form: ArchiveForm,
        sources: dict[Digest, tuple[Descriptor, BlobSource]],
        read: Callable[[Descriptor], bytes],
    ) -> None:
        self._form = form
        self._sources = sources
        self._read_document = read
        self._planned: set[Digest] = set()
        self._followed: set[Digest] = set()  # what is a layer here may be a document there: that has children
        self._roots: dict[Digest, Document] = {}
        self.members: list[Descriptor] = []

    def add_image(self, name: str, root: Descriptor) -> Document:
        """Add all that lies below ``root``, and return its document, without its annotations.

        Of the others none is kept: an image may have a thousand, of 20 MiB each.

        Raises:
            IncompleteImage: when a blob has been neither written nor left out.
        """
        if root.digest not in self._roots:
            self._roots[root.digest] = attrs.evolve(self._read(root), annotations={})
        todo = [root]
        while todo:
            wanted = todo.pop()
            self._add(name, wanted)
            if media_types.is_document(wanted.media_type) and wanted.digest not in self._followed:
                self._followed.add(wanted.digest)
                # None is given a name: the last one should not be in memory while the next one is decoded.
                todo.extend(reversed(self._below(wanted)))
        return self._roots[root.digest]

    def _below(self, wanted: Descriptor) -> list[Descriptor]:
        document = self._roots.get(wanted.digest) or self._read(wanted)
        return [child.descriptor for child in children(document)]

    def _add(self, name: str, wanted: Descriptor) -> None:
        if wanted.digest in self._planned:
            return
        is_document = media_types.is_document(wanted.media_type)
        if wanted.digest in self._sources:
            if self._form.has_documents or not is_document:
                self._planned.add(wanted.digest)
                self.members.append(self._sources[wanted.digest][0])
        elif is_document or wanted.digest not in self._form.exclude:
            raise IncompleteImage(name, (str(wanted.digest),))

    def _read(self, descriptor: Descriptor) -> Document:
        limits = Limits(document_bytes=descriptor.size_bytes, document_values=descriptor.size_bytes)  # fewer than bytes
        content = self._read_document(descriptor)
        return decode_document(content, descriptor.media_type, str(descriptor.digest), limits=limits)


def _check_size(descriptor: Descriptor, written_bytes: int) -> None:
    if written_bytes != descriptor.size_bytes:
        expected, actual = f"{descriptor.size_bytes} bytes", f"{written_bytes} bytes"
        raise ContentMismatch(str(descriptor.digest), expected, actual)
