"""The files of one image, looked at and read where they lie, in its layers; nothing is unpacked.

No path of an image is ever one of the machine: it is a way through the view of the image and nothing else, links too,
which are resolved from the image's root. Only regular files are read.
"""

import io
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self

from minibox_store._file_errors import file_errors
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidPath, PathNotFound, StoreUnavailable
from minibox_store.kinds import check_count, check_kind
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, MEBIBYTE, UnpackLimits
from minibox_store.reports.file_status import FileKind, FileStatus
from minibox_store.rootfs.access import ChunkCache, IdleDecoders, LayerReader
from minibox_store.rootfs.decoding import LayerClock
from minibox_store.rootfs.layer_index import build_layer_index, open_layer_index
from minibox_store.rootfs.layers import LayerSource
from minibox_store.rootfs.merged import FileNode, MergedView, encode_view
from minibox_store.rootfs.merging import MOST_LINKS, Merger
from minibox_store.rootfs.sidecar import Sidecar, Sidecars, WrongSidecar
from minibox_store.rootfs.sparse_map import SparseMap
from minibox_store.tar.member import Segments

CACHE_BYTES = 32 * MEBIBYTE
_BUFFER_BYTES = 128 * 1024


class ImageFiles:
    """The files of an image, as all layers together make them: what an upper one hides is not among them.

    Its methods, and the files it opens, may be used from several threads; one file by one. Which layer each file comes
    from, tells :meth:`walk_nodes`, from :attr:`root` on.

    Everything is read from blobs that were open before the first byte was, so a prune takes nothing away. What is read
    was verified: it is what the image's config promises, or an error.

    Args:
        name: what errors call the image.
        manifest: of the image.
        layers: of the image; their sources hold the blobs for as long as this is open.
        sidecars: where indexes are kept.
        limits: the bounds within which a layer is read that has no index yet.
        where: the folder that an error of the system names.
        cache_bytes: how much of what was read is kept in memory.
        closing: is taken over, and closed with this.

    Raises:
        InvalidArchive, ContentMismatch: when a layer that was not looked into before is none, or is not the right one.
        MissingLibrary: when it is compressed in a way that nothing installed reads.

    Attributes:
        name: as it was given.
        manifest: of the image.
    """

    def __init__(
        self,
        name: str,
        manifest: Descriptor,
        layers: Sequence[LayerSource],
        *,
        sidecars: Sidecars,
        limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
        where: str = "",
        cache_bytes: int = CACHE_BYTES,
        closing: ExitStack | None = None,
    ) -> None:
        self.name = name
        self.manifest = manifest
        self._layers = layers
        self._sidecars = sidecars
        self._limits = limits
        self._where = where
        self._cache = ChunkCache(cache_bytes)
        self._decoders = IdleDecoders()
        self._lock = threading.Lock()
        self._readers: dict[int, LayerReader] = {}
        self._is_closed = False
        self._last_map: SparseMap | None = None
        self._view = self._open_view()
        self._opened = ExitStack() if closing is None else closing.pop_all()
        self._opened.callback(self._close_parts)

    # ---- by path

    def stat(self, path: str, *, follow_links: bool = True) -> FileStatus:
        """Return what the image says of a file.

        Args:
            path: from the image's root, with or without a leading slash; ``..`` leads no higher than the root.
            follow_links: whether a link at its end is followed; links on the way always are.

        Raises:
            PathNotFound: when there is no such file.
            InvalidPath: when something on the way is no directory, or there are more than 40 links.
        """
        return self.find(path, follow_links=follow_links).status

    def listdir(self, path: str = "/") -> tuple[str, ...]:
        """Return the names in a directory, sorted.

        Raises:
            PathNotFound, InvalidPath: as :meth:`stat`; and when it is no directory.
        """
        return tuple(self._view.names(self._find_directory(path)))

    def walk(self, path: str = "/") -> Iterator[tuple[str, FileStatus]]:
        """Yield a directory and all that is below it, each directory before what it holds; links are not followed.

        Raises:
            PathNotFound, InvalidPath: as :meth:`listdir`.
        """
        found = self._find_directory(path)
        start = "/" + path.strip("/")
        for below, node in self.walk_nodes(found):
            yield start.rstrip("/") + below if below else start, node.status

    def read_link(self, path: str) -> str:
        """Return where a symbolic link points, as the image has it.

        Raises:
            PathNotFound, InvalidPath: as :meth:`stat`; and when it is no symbolic link.
        """
        status = self.find(path).status
        if status.kind is not FileKind.SYMLINK:
            raise InvalidPath(path, f"in the image it is no symbolic link but a {status.kind.value}")
        return status.link_target

    def open(self, path: str) -> io.BufferedReader:
        """Return a regular file to read and to seek in; the caller closes it, before the image.

        Reads raise ContentMismatch when the blob has changed since it was stored.

        Raises:
            PathNotFound, InvalidPath: as :meth:`stat`; and when it is no regular file.
        """
        return io.BufferedReader(_OpenFile(self, self._find_regular(path)), _BUFFER_BYTES)

    def read_bytes(self, path: str, *, limit_bytes: int = 4 * MEBIBYTE) -> bytes:
        """Return the content of a regular file.

        Raises:
            PathNotFound, InvalidPath: as :meth:`open`; and when it is larger than ``limit_bytes``.
            ContentMismatch: when the blob has changed since it was stored.
            InvalidArgument: for a limit that is no number of bytes.
        """
        check_count("limit_bytes", limit_bytes, "it is less than nothing", least=0)
        node = self._find_regular(path)
        if node.status.size_bytes > limit_bytes:
            raise InvalidPath(path, f"in the image it has {node.status.size_bytes} bytes, more than {limit_bytes}")
        return self.read_at(node, 0, node.status.size_bytes)

    # ---- by node

    @property
    def root(self) -> FileNode:
        """The image's root."""
        return self._view.root

    @property
    def xattr_names(self) -> frozenset[str] | None:
        """The names of the extended attributes that any file has; None where there are more than 256."""
        return self._view.xattr_names

    def find(self, path: str, *, follow_links: bool = False) -> FileNode:
        """Return what is at a path; raises as :meth:`stat`."""
        check_kind("path", path, str)
        way = [self._view.root]
        rest = path.split("/")[::-1]
        links = 0
        while rest:
            name = rest.pop()
            if way[-1].directory < 0:
                raise InvalidPath(path, f"in the image, what it has before {name!r} is no directory")
            if name in ("", "."):
                continue
            if name == "..":
                del way[max(1, len(way) - 1) :]
                continue
            node = self._view.child(way[-1], name)
            if node is None:
                raise PathNotFound(self.name, path)
            if node.status.kind is not FileKind.SYMLINK or not (rest or follow_links):
                way.append(node)
                continue
            links += 1
            if links > MOST_LINKS:
                raise InvalidPath(path, f"in the image it leads through more than {MOST_LINKS} symbolic links")
            target = node.status.link_target
            if target.startswith("/"):
                del way[1:]
            rest += target.split("/")[::-1]
        return way[-1]

    def child(self, directory: FileNode, name: str) -> FileNode | None:
        """Return what a directory has under a name; None where it has nothing."""
        return self._view.child(directory, name)

    def children(self, directory: FileNode, start: int = 0) -> Iterator[tuple[str, FileNode]]:
        """Return each name of a directory with what it stands for, sorted by the names' bytes; from a position on."""
        return self._view.children(directory, start)

    def walk_nodes(self, directory: FileNode) -> Iterator[tuple[str, FileNode]]:
        """Yield the directory with an empty path, and all below it with paths that begin with a slash."""
        yield "", directory
        stack = [("", self._view.children(directory))]
        while stack:
            above, rest = stack[-1]
            for name, node in rest:
                path = f"{above}/{name}"
                yield path, node
                if node.directory >= 0:
                    stack.append((path, self._view.children(node)))
                    break
            else:
                stack.pop()

    def read_at(self, node: FileNode, offset: int, size_bytes: int) -> bytes:
        """Return up to ``size_bytes`` bytes of a regular file from ``offset`` on, fewer only at its end.

        Raises:
            ContentMismatch: when the blob has changed since it was stored.
            InvalidArchive, MissingLibrary: when the layer's index was lost, and it is read anew.
            StoreUnavailable: when the image is closed.
        """
        size_bytes = min(size_bytes, node.status.size_bytes - offset)
        if node.status.kind is not FileKind.FILE or size_bytes <= 0:
            return b""
        with file_errors(self._where):
            reader = self._reader(node.layer)
            if node.segments is None:
                return reader.read_at(node.data_offset + offset, size_bytes)
            return self._map_of(node.segments).read(reader, node.data_offset, offset, size_bytes)

    def prepare(self) -> None:
        """Open all that reading needs now: no path of the machine is followed by a read from then on.

        Whoever answers for a mount must not: when somebody makes the mount the root of his namespace, which is that of
        the server too, each path leads through the mount itself.

        Raises:
            InvalidArchive, ContentMismatch, MissingLibrary: as opening the image.
        """
        self._opened.enter_context(self._sidecars.holding_folder())
        for number in range(len(self._layers)):
            self._reader(number).prepare()

    def close(self) -> None:
        """Close everything; a second call does nothing. What was opened from here is of no use any more."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- parts

    def _find_directory(self, path: str) -> FileNode:
        node = self.find(path, follow_links=True)
        if node.directory < 0:
            raise InvalidPath(path, f"in the image it is no directory but a {node.status.kind.value}")
        return node

    def _find_regular(self, path: str) -> FileNode:
        node = self.find(path, follow_links=True)
        if node.status.kind is not FileKind.FILE:
            raise InvalidPath(path, f"in the image it is no regular file but a {node.status.kind.value}")
        return node

    def _subject(self) -> bytes:
        names = [f"{each.descriptor.digest} {each.diff_id}" for each in self._layers]
        return "\n".join([f"image {self.manifest.digest}", *names]).encode()

    def _open_view(self) -> MergedView:
        sidecar = self._sidecars.open(self.manifest.digest, self._subject())
        if sidecar is None:
            sidecar = self._build_view()
        try:
            # The next one is in memory: the disk may spoil that as well.
            return MergedView(sidecar, partial(self._build_view, in_memory=True))
        except BaseException:
            sidecar.close()
            raise

    def _check_open(self) -> None:
        # What was opened from now on would be closed by nobody.
        if self._is_closed:
            raise StoreUnavailable(f"the files of {self.name}", "they are closed")

    def _build_view(self, *, in_memory: bool = False) -> Sidecar:
        self._check_open()
        merger = Merger(self._limits)
        for layer in self._layers:
            index = open_layer_index(layer, self._sidecars, self._limits)
            try:
                entries = index.iter_entries()
            except WrongSidecar:
                index.close()
                index = build_layer_index(layer, self._sidecars, self._limits)
                entries = index.iter_entries()
            try:
                merger.apply_layer(LayerClock(layer.descriptor, self._limits).iter_in_time(entries))
            finally:
                index.close()
        sections = encode_view(merger.root)
        return self._sidecars.write(self.manifest.digest, self._subject(), sections, in_memory=in_memory)

    def _map_of(self, segments: Segments) -> SparseMap:
        found = self._last_map
        if found is None or found.segments is not segments:
            found = self._last_map = SparseMap(segments)
        return found

    def _reader(self, number: int) -> LayerReader:
        with self._lock:
            self._check_open()
            reader = self._readers.get(number)
            if reader is None:
                layer = self._layers[number]
                reader = self._readers[number] = LayerReader(
                    layer,
                    number,
                    open_layer_index(layer, self._sidecars, self._limits),
                    lambda: build_layer_index(layer, self._sidecars, self._limits),
                    self._cache,
                    self._decoders,
                    self._sidecars,
                    self._limits,
                )
            return reader

    def _close_parts(self) -> None:
        with self._lock:
            self._is_closed = True
            readers, self._readers = self._readers, {}
        for reader in readers.values():
            reader.close()
        self._decoders.close()
        self._view.close()


class _OpenFile(io.RawIOBase):
    def __init__(self, image: ImageFiles, node: FileNode) -> None:
        self._image = image
        self._node = node
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_CUR:
            offset += self._at
        elif whence == os.SEEK_END:
            offset += self._node.status.size_bytes
        if offset < 0:
            raise ValueError("a file has nothing before its beginning")
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # of the buffers there are
        view = memoryview(buffer).cast("B")
        data = self._image.read_at(self._node, self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        parts = []
        while part := self._image.read_at(self._node, self._at, MEBIBYTE):
            parts.append(part)
            self._at += len(part)
        return b"".join(parts)
