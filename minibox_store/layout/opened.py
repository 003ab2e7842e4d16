"""One image of a store with all its blobs open: nobody can take them away any more, and no lock is held for it."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from itertools import chain

import attrs

from minibox_store import _files, _moving, media_types
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Identity, Referrer, identity
from minibox_store.errors import BlobNotFound, IncompleteImage
from minibox_store.graph import ContentStream, RememberingSource, check_is_document, walk_contents
from minibox_store.layout.layout import Layout
from minibox_store.layout.paths import LayoutPaths
from minibox_store.layout.reading import known_referrers
from minibox_store.layout_index import find_name
from minibox_store.limits import MEBIBYTE
from minibox_store.platforms import Platform
from minibox_store.protocols import BlobStream
from minibox_store.referring import gather_referrers

_ATTEMPTS = 5
# As many bytes of documents are kept as no real image has; of further ones the files, from which they are read again.
_MOST_KEPT_BYTES = MEBIBYTE

_Key = tuple[Identity, Platform | None, bool]
Choice = Callable[[RememberingSource, Descriptor, str], Descriptor]


class OpenedImage:
    """A BlobSource of exactly one image.

    Attributes:
        name: as it stands in index.json.
        root: the descriptor of its manifest or index.
        chosen: that of the manifest or index at or below it whose blobs are open.
        referrers: what refers to that, and to what it reaches, and in turn to these, whose blobs are open too; nothing
            where it was not asked for.
        contents: of its documents, as far as they are kept.
        files: the open files of its other blobs, which are closed with it.
        shared: those of other images, which have them open for as long as this one is.
    """

    def __init__(self, paths: LayoutPaths, name: str, root: Descriptor) -> None:
        self._paths = paths
        self.name = name
        self.root = self.chosen = root
        self.referrers: tuple[Referrer, ...] = ()
        self.contents: dict[Digest, bytes] = {}
        self.files: dict[Digest, int] = {}
        self.shared: Mapping[Digest, int] = {}

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on.

        Raises:
            BlobNotFound: when it is no blob of the image.
        """
        digest = descriptor.digest
        if digest in self.contents:
            return ContentStream(self.contents[digest], offset)
        file = self.files.get(digest, self.shared.get(digest))
        if file is None:
            raise BlobNotFound(str(digest))
        if media_types.is_document(descriptor.media_type) and self.has_open(descriptor):
            # Not a part of a file, which whoever sends it need not verify: somebody may have written to it since.
            return ContentStream(_moving.read_beginning(file, descriptor.size_bytes), offset)
        size_bytes, path = descriptor.size_bytes - offset, self._paths.blob(digest)
        return _moving.FileStream(file, offset, size_bytes, owns_descriptor=False, path=path)

    def has_open(self, descriptor: Descriptor) -> bool:
        """Whether the file of a blob is open, and has the size that this descriptor says."""
        file = self.files.get(descriptor.digest, self.shared.get(descriptor.digest))
        return file is not None and os.fstat(file).st_size == descriptor.size_bytes

    def keep_open(self, digest: Digest, file: int) -> None:
        """Keep the open file of a blob, in place of one that is there, until the image is closed."""
        replaced = self.files.pop(digest, None)
        self.files[digest] = file
        if replaced is not None:
            os.close(replaced)

    def called(self, name: str, root: Descriptor) -> "OpenedImage":
        """Return the same as the image of another name, whose entry differs in what is said about it alone."""
        image = copy(self)
        image.name, image.root = name, root
        if self.chosen.digest == self.root.digest:
            image.chosen = attrs.evolve(root, platform=self.chosen.platform)
        return image

    def close(self) -> None:
        """Close every file."""
        while self.files:
            os.close(self.files.popitem()[1])


class _Kept:
    """The documents that are kept in memory of all images that are opened together, equal ones once."""

    def __init__(self) -> None:
        self._contents: dict[Digest, bytes] = {}
        self._room_bytes = _MOST_KEPT_BYTES

    def keep(self, digest: Digest, content: bytes) -> bytes | None:
        """Return the one copy of a document that is kept; None where there is no room for it."""
        if digest not in self._contents and len(content) <= self._room_bytes:
            self._room_bytes -= len(content)
            self._contents[digest] = content
        return self._contents.get(digest)


@contextmanager
def opening_image(
    layout: Layout, name: str, choose: Choice | None = None, *, referrers: bool = False
) -> Iterator[OpenedImage]:
    """Open everything that ``name`` reaches, before its first byte is read; needs no right to write.

    Args:
        layout: the store.
        name: of the image.
        choose: given the root and the image's name, returns the manifest that matters alone; what it raises passes.
        referrers: whether what refers to the image is opened too.

    Raises:
        ImageNotFound: when no entry means ``name``.
        InvalidDocument: when what it means is no manifest or index.
        IncompleteImage: when a blob is missing, and the name still stands for the same image.
        StoreDamaged: when a document or a file is not what its descriptor says.
    """
    image = _open(layout, name, choose, referrers, {}, _Kept(), {})
    try:
        yield image
    finally:
        image.close()


@contextmanager
def opening_images(
    layout: Layout, names: Iterable[str], choose: Choice | None = None
) -> Iterator[tuple[OpenedImage, ...]]:
    """Do as :func:`opening_image` for several names; what several of them reach is open once.

    Raises:
        ImageNotFound, InvalidDocument, IncompleteImage, StoreDamaged: as :func:`opening_image`, for the first that
            cannot be opened.
    """
    shared: dict[Digest, int] = {}
    kept = _Kept()
    with ExitStack() as stack:
        images = []
        opened: dict[_Key, OpenedImage] = {}
        for name in names:
            images.append(_open(layout, name, choose, False, shared, kept, opened))
            if opened.setdefault(_key(images[-1].root), images[-1]) is not images[-1]:
                continue  # it is the same as of another name
            stack.callback(images[-1].close)
            shared.update(images[-1].files)
        yield tuple(images)


def _open(
    layout: Layout,
    name: str,
    choose: Choice | None,
    referrers: bool,
    shared: Mapping[Digest, int],
    kept: _Kept,
    opened: Mapping[_Key, OpenedImage],
) -> OpenedImage:
    missing: list[Digest] = []
    last_root = None
    for _ in range(_ATTEMPTS):
        # The name may have been removed or moved, and a collection come by, since the index was read the last time.
        image = OpenedImage(layout.paths, *find_name(layout.read_index(), name))
        known = opened.get(_key(image.root))
        if known is not None:
            return known.called(image.name, image.root)
        check_is_document(image.root)
        image.shared = shared
        if missing and last_root == image.root.digest and not _have_come(layout, missing):
            break
        try:
            missing = _open_all(layout, image, choose, referrers, kept)
        except BaseException:
            image.close()
            raise
        if not missing:
            return image
        image.close()
        last_root = image.root.digest
    raise IncompleteImage(image.name, tuple(str(digest) for digest in missing))


def _key(root: Descriptor) -> _Key:
    """Return all of an entry that what is chosen of its image goes by."""
    return identity(root), root.platform, root.is_attestation


def _have_come(layout: Layout, missing: list[Digest]) -> bool:
    return all(_files.exists(layout.paths.blob(digest)) for digest in missing)


def _open_all(layout: Layout, image: OpenedImage, choose: Choice | None, referrers: bool, kept: _Kept) -> list[Digest]:
    """Open every blob; return those that are missing."""
    missing = []
    with layout.naming_damage():
        try:
            source = RememberingSource(layout, layout.limits)
            if choose is not None:
                image.chosen = choose(source, image.root, image.name)
            if referrers:
                known = known_referrers(layout)
                image.referrers = gather_referrers(source, known, image.chosen, limits=layout.limits)
            roots = (*(each.descriptor for each in image.referrers), image.chosen)
            # What was chosen may be an index that was made for it, which the store does not have.
            walked = layout if choose is None else source
            for node in chain.from_iterable(walk_contents(walked, root, limits=layout.limits) for root in roots):
                digest = node.descriptor.digest
                if node.content is not None:
                    _open_document(layout, image, node.descriptor, node.content, kept)
                elif not image.has_open(node.descriptor):
                    try:
                        image.keep_open(digest, layout.open_file(node.descriptor))
                    except BlobNotFound:
                        missing.append(digest)
        except BlobNotFound as error:
            missing.append(Digest.parse(error.digest))
    return missing


def _open_document(layout: Layout, image: OpenedImage, descriptor: Descriptor, content: bytes, kept: _Kept) -> None:
    found = kept.keep(descriptor.digest, content)
    if found is None and not image.has_open(descriptor):
        try:
            image.keep_open(descriptor.digest, layout.open_file(descriptor))
        except BlobNotFound:
            found = content  # it was made for what was chosen; or somebody takes it away just now
    if found is not None:
        image.contents[descriptor.digest] = found
