"""One image of a store with all its blobs open: nobody can take them away any more, and no lock is held for it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

from minibox_store import _files, _moving
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Referrer
from minibox_store.errors import BlobNotFound, IncompleteImage
from minibox_store.graph import ContentStream, RememberingSource, walk
from minibox_store.layout.layout import Layout
from minibox_store.layout.reading import known_referrers
from minibox_store.layout_index import find_name
from minibox_store.protocols import BlobStream
from minibox_store.referring import gather_referrers

_ATTEMPTS = 5

Choice = Callable[[RememberingSource, Descriptor, str], Descriptor]


class OpenedImage:
    """A BlobSource of exactly one image.

    Attributes:
        name: as it stands in index.json.
        root: the descriptor of its manifest or index.
        chosen: that of the manifest or index at or below it whose blobs are open.
        referrers: what refers to that, and to what it reaches, and in turn to these, whose blobs are open too; nothing
            where it was not asked for.
    """

    def __init__(self, name: str, root: Descriptor) -> None:
        self.name = name
        self.root = self.chosen = root
        self.referrers: tuple[Referrer, ...] = ()
        self.contents: dict[Digest, bytes] = {}
        self.files: dict[Digest, int] = {}

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on.

        Raises:
            BlobNotFound: when it is no blob of the image.
        """
        digest = descriptor.digest
        if digest in self.contents:
            return ContentStream(self.contents[digest], offset)
        if digest not in self.files:
            raise BlobNotFound(str(digest))
        rest_bytes = descriptor.size_bytes - offset
        return _moving.FileStream(self.files[digest], offset, rest_bytes, owns_descriptor=False)

    def close(self) -> None:
        """Close every file."""
        while self.files:
            os.close(self.files.popitem()[1])


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
        IncompleteImage: when a blob is missing, and the name still stands for the same image.
        StoreDamaged: when a document or a file is not what its descriptor says.
    """
    image = _open(layout, name, choose, referrers)
    try:
        yield image
    finally:
        image.close()


def _open(layout: Layout, name: str, choose: Choice | None, referrers: bool) -> OpenedImage:
    missing: list[Digest] = []
    last_root = None
    for _ in range(_ATTEMPTS):
        # The name may have been removed or moved, and a collection come by, since the index was read the last time.
        image = OpenedImage(*find_name(layout.read_index(), name))
        if missing and last_root == image.root.digest and not _have_come(layout, missing):
            break
        try:
            missing = _open_all(layout, image, choose, referrers)
        except BaseException:
            image.close()
            raise
        if not missing:
            return image
        image.close()
        last_root = image.root.digest
    raise IncompleteImage(image.name, tuple(str(digest) for digest in missing))


def _have_come(layout: Layout, missing: list[Digest]) -> bool:
    return all(_files.exists(layout.paths.blob(digest)) for digest in missing)


def _open_all(layout: Layout, image: OpenedImage, choose: Choice | None, referrers: bool) -> list[Digest]:
    """Open every blob; return those that are missing."""
    missing = []
    with layout.naming_damage():
        try:
            if choose is not None:
                image.chosen = choose(RememberingSource(layout, layout.limits), image.root, image.name)
            if referrers:
                source, known = RememberingSource(layout, layout.limits), known_referrers(layout)
                image.referrers = gather_referrers(source, known, image.chosen, limits=layout.limits)
            roots = (*(each.descriptor for each in image.referrers), image.chosen)
            for node in chain.from_iterable(walk(layout, root, limits=layout.limits) for root in roots):
                digest = node.descriptor.digest
                if node.content is not None:
                    image.contents[digest] = node.content
                elif digest not in image.files:
                    try:
                        image.files[digest] = layout.open_file(node.descriptor)
                    except BlobNotFound:
                        missing.append(digest)
        except BlobNotFound as error:
            missing.append(Digest.parse(error.digest))
    return missing
