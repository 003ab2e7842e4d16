"""Loading: everything an archive holds goes into a transaction and is verified there; then the copy takes from it.

What the named image does not reach goes with the transaction. An archive is complete in itself: a blob that it lacks
is not taken from the store.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import attrs

from minibox_store._file_errors import path_errors
from minibox_store._files import open_regular
from minibox_store._room import check_room
from minibox_store.admitting import Wish, check_policy, digest_in
from minibox_store.archive import ArchiveReader
from minibox_store.cancellation import Cancellation
from minibox_store.codec import describe_document
from minibox_store.copying import EventListener, copy_graph
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import (
    BlobNotFound,
    ContentMismatch,
    IncompleteImage,
    InvalidArchive,
    InvalidDocument,
    InvalidReference,
)
from minibox_store.events import ImageCopied, RegisteringName
from minibox_store.graph import RememberingSource, read_content, walk
from minibox_store.images import Image
from minibox_store.layout import Layout
from minibox_store.limits import Limits
from minibox_store.policies import Policy
from minibox_store.protocols import BlobSource
from minibox_store.reference import check_image_name
from minibox_store.staging import stage_blobs

_PARALLEL = 2  # hashing is the cost, and the kernel copies behind it


def load_archive(
    file: str | os.PathLike[str] | BinaryIO,
    layout: Layout,
    *,
    describe: Callable[[str, Descriptor, BlobSource], Image],
    names: Callable[[str], str | None] | None,
    checked_by: Policy | None,
    limits: Limits,
    on_event: EventListener,
    cancellation: Cancellation,
) -> tuple[Image, ...]:
    """Bring the image of an archive into ``layout``, and return what ``describe`` says of it before it has its name.

    The other arguments, the errors and guarantees are those of :meth:`minibox_store.Store.load`.
    """
    with _opened(file) as archive, layout.open_writer() as writer:
        reader = ArchiveReader(archive, limits)
        # All of it is kept until it is known what is needed. What comes through a pipe is weighed member by member.
        check_room(layout.paths.ingest, reader.file_bytes, name=layout.paths.root)
        with _naming_archive():
            stage_blobs(reader.iter_blobs(), writer, parallel=_PARALLEL, on_event=on_event, cancellation=cancellation)
            archived_name, digest = reader.image()
            check_image_name(archived_name)
        name = archived_name if names is None else names(archived_name)
        if name is None:
            return ()
        check_image_name(name)
        with _naming_archive():
            root = _staged_root(writer, digest, reader.sizes, limits)
            wish = Wish(name=name, platforms=None, policy=checked_by, digest=digest_in(archived_name))
            wish.check()
            check_policy(RememberingSource(writer, limits), root, root, wish, limits)
            copy_graph(writer, writer, root, limits=limits, cancellation=cancellation)
        found = describe(name, root, writer)  # what fails now changes no name
        on_event(RegisteringName(name=name))
        writer.write_name(name, root)
        cancellation.check()
    on_event(ImageCopied(name=name))
    return (found,)


def _staged_root(stage: BlobSource, digest: Digest, sizes: dict[Digest, int], limits: Limits) -> Descriptor:
    """Return the descriptor of an archive's manifest, once it is sure that the archive has all it reaches."""
    found = Descriptor(media_type="", digest=digest, size_bytes=sizes[digest])
    described = describe_document(read_content(stage, found, limits), str(digest), limits=limits)
    root = attrs.evolve(described, digest=digest)
    for node in walk(stage, root, limits=limits):
        if node.descriptor.digest not in sizes:
            raise BlobNotFound(str(node.descriptor.digest))
    return root


@contextmanager
def _opened(file: str | os.PathLike[str] | BinaryIO) -> Iterator[BinaryIO]:
    if not isinstance(file, str | os.PathLike):
        yield file
        return
    with path_errors(os.fspath(file)):
        descriptor = open_regular(os.fspath(file), follow_links=True)
    with open(descriptor, "rb", buffering=0) as archive:
        yield archive


@contextmanager
def _naming_archive() -> Iterator[None]:
    """Turn what is wrong with the content of an archive into InvalidArchive."""
    try:
        yield
    except BlobNotFound as error:
        raise InvalidArchive(f"it lacks {error.digest}, which its manifest names") from error
    except (ContentMismatch, InvalidDocument, InvalidReference, IncompleteImage) as error:
        raise InvalidArchive(str(error)) from error
