"""Loading: everything an archive holds goes into a transaction and is verified there; then the copy takes from it.

What the images that are wanted do not reach goes with the transaction. An archive is complete in itself: a blob that it
lacks is taken from the store only where the caller has said so. All of its images come in, or none.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import attrs

from minibox_store import media_types
from minibox_store._file_errors import path_errors, path_text
from minibox_store._files import open_regular
from minibox_store._room import check_room
from minibox_store.archive import ArchivedImage, ArchiveReader, read_images
from minibox_store.cancellation import Cancellation
from minibox_store.copying import EventListener, copy_graph
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import (
    BlobNotFound,
    ContentMismatch,
    IncompleteImage,
    InvalidArchive,
    InvalidArgument,
    InvalidDocument,
    InvalidReference,
    PlatformNotFound,
)
from minibox_store.events import ImageCopied, ManifestChosen, RegisteringName
from minibox_store.face.admitting import Wish, check_policy, digest_in, tell_made
from minibox_store.graph import ContentStream, RememberingSource
from minibox_store.kinds import check_kind
from minibox_store.layout import Layout, Transaction
from minibox_store.limits import Limits
from minibox_store.listeners import is_of_listener, marking_errors
from minibox_store.platforms import ArchivedPlatforms
from minibox_store.policies import Policy
from minibox_store.protocols import BlobSource, BlobStream, ReadableFile
from minibox_store.reference import check_image_name
from minibox_store.reports.images import Image
from minibox_store.selecting import ChosenImage, select_image, select_present
from minibox_store.staging import stage_blobs
from minibox_store.values import Value
from minibox_store.wholeness import DocumentTotals, find_presence, what_is_missing


@attrs.frozen(kw_only=True, repr=False)
class ArchiveWish(Value):
    """What is wanted of an archive; each field is an argument of :meth:`minibox_store.Store.load`."""

    names: Callable[[str], str | None] | None = None
    platforms: ArchivedPlatforms = None
    complete_from_store: bool = False
    policy: Policy | None = None


def load_archive(
    file: str | os.PathLike[str] | ReadableFile,
    layout: Layout,
    wish: ArchiveWish,
    *,
    describe: Callable[[str, Descriptor, BlobSource], Image],
    on_event: EventListener,
    cancellation: Cancellation,
) -> tuple[Image, ...]:
    """Bring the images of an archive into ``layout``; return what ``describe`` says of each before it has its name.

    The other arguments, the errors and guarantees are those of :meth:`minibox_store.Store.load`.
    """
    if wish.names is not None and not callable(wish.names):
        raise InvalidArgument("names", wish.names, "it is nothing that can be asked for a name")
    if wish.policy is not None:
        check_kind("checked_by", wish.policy, Policy)
    limits = layout.limits
    with _opened(file) as archive, layout.open_writer() as writer:
        reader = ArchiveReader(archive, limits)
        # All of it is kept until it is known what is needed. What comes through a pipe is weighed member by member.
        check_room(layout.paths.ingest, reader.file_bytes, name=layout.paths.root)
        blobs = _ArchivedBlobs(writer, reader.members.sizes, complete_from_store=wish.complete_from_store)
        source = RememberingSource(blobs, limits)
        with _naming_archive():
            with cancellation.interrupting(reader):
                stage_blobs(reader.iter_blobs(), writer, on_event=on_event, cancellation=cancellation)
            archived = read_images(reader.members, source, blobs.size_of, limits)
        named = _named(archived, None if wish.names is None else marking_errors(wish.names))
        with _naming_archive():
            choice = _Choice(source, blobs, wish, limits, on_event)
            chosen = [(name, choice.admit(name, image)) for name, image in named]
            roots = dict.fromkeys(root for _, root in chosen)
            for root in roots:
                cancellation.check()
                if not blobs.holds(root):  # made here: what is put under blobs/ now would stay if this failed
                    writer.stage_blob(ContentStream(source.read(root)), root.size_bytes, root.digest)
                copy_graph(source, writer, root, limits=limits, cancellation=cancellation)
        images = {root: describe("", root, source) for root in roots}  # what fails now changes no name
        for name, root in chosen:
            on_event(ManifestChosen(name=name, descriptor=root))
            on_event(RegisteringName(name=name))
            writer.write_name(name, root)
        cancellation.check()
    for name, _ in chosen:
        on_event(ImageCopied(name=name))
    return tuple(attrs.evolve(images[root], name=name) for name, root in chosen)


class _ArchivedBlobs:
    """What an archive has, as a source: its blobs as they were staged, and those of the store where that is wanted."""

    def __init__(self, writer: Transaction, sizes: dict[Digest, int], *, complete_from_store: bool) -> None:
        self._writer = writer
        self._sizes = sizes
        self._complete_from_store = complete_from_store

    def holds(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there; what is so only in the store has the right size, is pinned, and stays."""
        return descriptor.digest in self._sizes or (self._complete_from_store and self._writer.has_blob(descriptor))

    def size_of(self, digest: Digest) -> int | None:
        """Return how large a blob is; None where it is not there."""
        found = self._sizes.get(digest)
        return self._writer.pinned_bytes(digest) if found is None and self._complete_from_store else found

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on."""
        if not self.holds(descriptor):
            raise BlobNotFound(str(descriptor.digest))
        return self._writer.open_blob(descriptor, offset)


class _Choice:
    """What is taken of each image: found out once for each root, however many names it has."""

    def __init__(
        self,
        source: RememberingSource,
        blobs: _ArchivedBlobs,
        wish: ArchiveWish,
        limits: Limits,
        on_event: EventListener,
    ) -> None:
        self._source = source
        self._blobs = blobs
        self._wish = wish
        self._limits = limits
        self._on_event = on_event
        self._chosen: dict[Descriptor, Descriptor] = {}
        self._walked: dict[Descriptor, tuple[Descriptor, ...]] = {}
        self._totals = DocumentTotals(limits)

    def admit(self, name: str, image: ArchivedImage) -> Descriptor:
        """Return the root of what will be stored of an image, which is whole, and may come in.

        Raises:
            InvalidArchive: when it is not whole, or all images together have too many documents.
            PolicyRefused: when it may not.
        """
        wish = Wish(name=name, platforms=None, policy=self._wish.policy, digest=digest_in(image.name))
        wish.check()
        chosen = self._chosen.get(image.root)
        if chosen is None:
            chosen = self._chosen[image.root] = self._choose(name, image.root)
        check_policy(self._source, image.root, chosen, wish, self._limits, walked=self._walked)
        return chosen

    def _choose(self, name: str, root: Descriptor) -> Descriptor:
        presence = find_presence(self._source, root, self._blobs.holds, self._limits)
        self._totals.add(presence.documents, presence.document_bytes)
        is_whole = not presence.missing
        if self._wish.platforms is None or self._wish.platforms == "present":
            if is_whole:
                return root
            if self._wish.platforms is None or media_types.is_manifest(root.media_type):
                raise what_is_missing(self._source, root, presence, self._blobs.holds, self._limits)
        try:
            chosen = self._select(name, root)
        except PlatformNotFound as error:
            if self._wish.platforms != "present":
                raise
            raise what_is_missing(self._source, root, presence, self._blobs.holds, self._limits) from error
        if not is_whole and not self._is_whole(chosen.root):
            found = find_presence(self._source, chosen.root, self._blobs.holds, self._limits)
            raise what_is_missing(self._source, chosen.root, found, self._blobs.holds, self._limits)
        tell_made(chosen, self._on_event)
        return chosen.root

    def _select(self, name: str, root: Descriptor) -> ChosenImage:
        if self._wish.platforms == "present":
            return select_present(self._source, root, self._is_whole, name, self._limits)
        return select_image(self._source, root, self._wish.platforms, name, self._limits)

    def _is_whole(self, root: Descriptor) -> bool:
        return not find_presence(self._source, root, self._blobs.holds, self._limits).missing


def _named(
    archived: Sequence[ArchivedImage], names: Callable[[str], str | None] | None
) -> tuple[tuple[str, ArchivedImage], ...]:
    """Return the images that are wanted, each with the name that it gets.

    Raises:
        InvalidArchive: when there is none, two images would have the same, or blobs are missing for one of docker's.
        InvalidReference: when an image may not have it.
        InvalidArgument: when ``names`` gives something else than a text or None.
    """
    found: dict[str, ArchivedImage] = {}
    for image in archived:
        name = image.name if names is None else names(image.name)
        if name is None:
            continue
        if image.refusal is not None:
            raise image.refusal
        if names is None and not name:
            raise InvalidArchive(f"the image {image.root.digest} has no name in it, and none was given")
        if not isinstance(name, str):
            raise InvalidArgument("names", name, f"that is what it gives {image.name!r}, and neither a text nor None")
        if found.setdefault(check_image_name(name), image).root != image.root:
            raise InvalidArchive(f"two different images in it would be called {name}")
    return tuple(found.items())


@contextmanager
def _opened(file: str | os.PathLike[str] | ReadableFile) -> Iterator[ReadableFile]:
    if not isinstance(file, str | os.PathLike):
        yield file
        return
    path = path_text("file", file)
    with path_errors(path):
        descriptor = open_regular(path, follow_links=True)
    with open(descriptor, "rb", buffering=0) as archive:
        try:
            yield archive
        except InvalidArchive as error:
            if is_of_listener(error):
                raise
            raise attrs.evolve(error, path=path) from error


@contextmanager
def _naming_archive() -> Iterator[None]:
    """Turn what is wrong with the content of an archive into InvalidArchive."""
    try:
        yield
    except (BlobNotFound, ContentMismatch, InvalidDocument, InvalidReference, IncompleteImage) as error:
        if is_of_listener(error):
            raise
        if not isinstance(error, BlobNotFound):
            raise InvalidArchive(str(error)) from error
        raise InvalidArchive(f"it lacks {error.digest}, which its manifest names", missing=(error.digest,)) from error
