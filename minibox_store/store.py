"""The store: everything a program does with images, each thing a few lines over the copy, the walk and the ends."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors
from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import EventListener, heard, ignore_events
from minibox_store.digest import Digest, check_digest
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidArgument
from minibox_store.face.arguments import Durability, absolute_root, is_durable
from minibox_store.face.examining import ExaminedStore
from minibox_store.face.fetching import Fetching
from minibox_store.face.filesystems import Filesystems
from minibox_store.face.generations import Generations
from minibox_store.face.mounted_images import MountedImages
from minibox_store.face.naming import NamedStore
from minibox_store.face.planning import Planning
from minibox_store.face.pulling import Pulling
from minibox_store.face.pushing import Pushing
from minibox_store.face.receiving import Receiving
from minibox_store.face.saving import Saving
from minibox_store.face.upkeep import Upkeep
from minibox_store.graph import read_content
from minibox_store.kinds import check_count, check_kind, check_seconds, check_switches
from minibox_store.layout import Layout, Listing
from minibox_store.layout_index import find_name
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.platforms import ArchivePlatformChoice, checked_choice
from minibox_store.protocols import BlobStream, ReadableFile
from minibox_store.reports.images import Image

if TYPE_CHECKING:
    from minibox_store.filters import ImageFilter
    from minibox_store.policies import Policy
    from minibox_store.reports.store import StoreInfo


class Store(
    Pulling,
    Fetching,
    Planning,
    Pushing,
    Receiving,
    Saving,
    NamedStore,
    ExaminedStore,
    Generations,
    Upkeep,
    Filesystems,
    MountedImages,
):
    """A store of images in one folder, which is an OCI image layout that other tools read as it stands.

    Any number of Store objects, threads and processes may work on one folder at once. An object holds no file open
    between calls. Every method raises errors of :mod:`minibox_store.errors` alone: besides those it names,
    InvalidArgument, for an argument of the wrong kind, and StoreDamaged, StoreFull, StoreBusy and StoreUnavailable.
    They mean that nothing has changed.

    Args:
        root: the folder. The first change makes it, with mode 0700, where it is not there.
        durability: ``"full"``: what a method has done survives a loss of power once it returns; ``"none"``: it
            survives the end of the process, and the system decides on the rest.
        lock_timeout_seconds: how long a method waits for another process at most.
        limits: the bounds on what is read from anywhere.
        settle_seconds: how long what another tool may be writing now is read again before it is called damaged.
        private_addresses: whether methods that are given no client may connect to private addresses, where the file of
            registries does not say.

    Spec: OCI image-spec 1.1, image-layout.md.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        durability: Durability = "full",
        lock_timeout_seconds: float = 30.0,
        limits: Limits = DEFAULT_LIMITS,
        settle_seconds: float = 1.0,
        private_addresses: bool = True,
    ) -> None:
        check_seconds("lock_timeout_seconds", lock_timeout_seconds)
        check_seconds("settle_seconds", settle_seconds)
        check_kind("limits", limits, Limits)
        check_switches(private_addresses=private_addresses)
        self._layout = Layout(
            absolute_root(root),
            durable=is_durable(durability),
            lock_timeout_seconds=lock_timeout_seconds,
            limits=limits,
            settle_seconds=settle_seconds,
        )
        self._listing = Listing(self._layout)
        self._private_addresses = private_addresses

    @property
    def root(self) -> str:
        """The absolute path of the store's folder."""
        return self._layout.paths.root

    # ---- looking

    def images(self, chosen_by: "ImageFilter | None" = None, /) -> tuple[Image, ...]:
        """Return every named image, or those that a filter chooses, sorted by name.

        Without a filter it is the very same tuple as long as nothing has changed. What other processes do is seen at
        once; a document that was changed in its place, which nobody may do, within a second. What many documents say is
        left in the store, in ``listing.cache``, for the next process, if this one may write there; it may be removed at
        any time. Nothing else believes it, but for a repository that is asked for a blob: which images do not reach it.

        Raises:
            IncompleteImage, StoreDamaged: when what a filter asks about cannot be read.
        """
        with file_errors(self.root):
            if chosen_by is None:
                return self._listing.images()
            from minibox_store.face.choosing import choose

            chosen = choose(self._layout, chosen_by).chosen
            return tuple([self._listing.image(each.name, each.descriptor) for each in chosen])

    def get(self, name: str) -> Image:
        """Return the image that ``name`` means: the very name, or else a single one that spells the same reference.

        Raises:
            ImageNotFound: when there is none.
        """
        with file_errors(self.root):
            return self._listing.image(*find_name(self._layout.read_index(), name))

    def resolve(self, name: str) -> Descriptor:
        """Return the descriptor that ``name`` stands for: a store is an ImageSource, for another one's import too.

        Raises:
            ImageNotFound: when no entry means it.
        """
        with file_errors(self.root):
            return self._layout.resolve(name)

    def iter_names(self) -> Iterator[str]:
        """Yield each name once."""
        with file_errors(self.root):
            return self._layout.iter_names()

    def find_blob(self, name: str, digest: Digest) -> Descriptor:
        """Return the descriptor of a blob, document or not, that the image's graph names.

        Raises:
            ImageNotFound, BlobNotFound: when there is no such image, or no such blob in it.
            InvalidArgument: for anything but a Digest, such as the text of one.
        """
        check_digest(digest)
        with file_errors(self.root):
            return self._find_part(self._layout.resolve(name), digest)

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a blob's bytes from ``offset`` on, as they were verified when they were stored; the caller closes it.

        Raises:
            BlobNotFound: when the store does not hold it.
            InvalidArgument: for an offset that is negative, or behind the blob's end, and what is no descriptor.
        """
        check_kind("descriptor", descriptor, Descriptor)
        problem = f"the blob has {descriptor.size_bytes} bytes"
        check_count("offset", offset, problem, least=0)
        if offset > descriptor.size_bytes:
            raise InvalidArgument("offset", offset, problem)
        with file_errors(self.root):
            return self._layout.open_blob(descriptor, offset)

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a manifest or index, verified now.

        Raises:
            BlobNotFound: when the store does not hold it.
            InvalidArgument: for what is no descriptor.
        """
        check_kind("descriptor", descriptor, Descriptor)
        with file_errors(self.root), self._layout.naming_damage():
            return read_content(self._layout, descriptor, self._layout.limits)

    def info(self) -> "StoreInfo":
        """Return what the store is, and what it can do where it lies."""
        from minibox_store.reports.store import StoreInfo

        with file_errors(self.root):
            hard_links = None
            with suppress(OSError):  # a store that is not there, or not ours to write to
                hard_links = self._layout.has_hard_links()
            return StoreInfo(root=self.root, durable=self._layout.durable, hard_links=hard_links)

    # ---- archives

    def load(
        self,
        file: str | os.PathLike[str] | ReadableFile,
        *,
        names: Callable[[str], str | None] | None = None,
        platform: ArchivePlatformChoice = None,
        complete_from_store: bool = False,
        checked_by: "Policy | None" = None,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> tuple[Image, ...]:
        """Bring the images of an archive into the store, under the names that the archive has for them; return them.

        An archive is minibox's (``meta.json``), an OCI image layout (``index.json``), docker's (``manifest.json``), or
        several of these at once, which must tell of the same images. Of docker's images a manifest is made here, the
        same one each time.

        Args:
            file: the archive, not trusted: a path of a regular file, or an open file or pipe, which is read once,
                forward, and not closed.
            names: given an archive's name, returns the one to use, or None to leave that image out. It is given an
                empty text for an image that has no name; such a one is refused where ``names`` is None.
            platform: which manifests of an index, as for :meth:`pull`; None keeps the whole, of which nothing may be
                missing then. ``"present"`` keeps an index of those that the archive has.
            complete_from_store: whether blobs that the archive lacks may be those that the store has already.
            checked_by: what must hold of each image, as for :meth:`import_image`; ``require_digest`` is of the
                archive's name. It is asked once the archive was read, and before anything of it is in the store.
            on_event: called for each step of progress, from several threads.
            cancellation: ends it when it is cancelled, also where a pipe or a socket gives nothing; but not while
                another file does so, such as ``gzip.open`` over a pipe: the pipe itself may be compressed, too.

        Raises:
            PolicyRefused: when ``checked_by`` does not let one in.
            InvalidArchive: when it is none, a blob is not what its digest says, or something is missing in it, which
                ``missing`` has all digests of: an index lacks some of its platforms, say.
            InvalidArgument: for a platform that none may be, a file that no bytes can be read from, or ``names`` that
                gives anything but a text or None.
            PlatformNotFound: when an image is not offered for a platform.
            InvalidReference: when an image may not have the name that ``names`` gives it.
            InvalidPath: when there is no such file.
            StoreFull: when the whole archive does not fit beside what is there, though the store may have all of it
                already: nobody knows that before it was read. Nothing has been read then. What comes through a pipe is
                weighed member by member.
            Cancelled: when ``cancellation`` was cancelled.

        Guarantees: every blob was verified as it was stored, and the whole graph is there, before a name is. All images
            come in, in one step, or none; an archive that is refused leaves nothing behind. Loading twice leaves what
            loading once does.
        """
        from minibox_store.face.loading import ArchiveWish, load_archive

        check_switches(complete_from_store=complete_from_store)
        wish = ArchiveWish(
            names=names,
            platforms="present" if platform == "present" else checked_choice(platform),
            complete_from_store=complete_from_store,
            policy=checked_by,
        )
        with file_errors(self.root):
            return load_archive(
                file,
                self._layout,
                wish,
                describe=self._listing.image,
                on_event=heard(on_event),
                cancellation=checked_cancellation(cancellation),
            )
