"""The part of the store's face that brings images out as archives, and says what need not be in them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, overload

from minibox_store._file_errors import file_errors, path_errors, path_text
from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import EventListener, copy_graph, count_blobs, heard, ignore_events
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Identity, identity
from minibox_store.errors import InvalidArgument
from minibox_store.events import BlobPresent, BlobStored, Event, ImageCopied, ManifestChosen, RegisteringName
from minibox_store.graph import RememberingSource, walk_contents
from minibox_store.kinds import check_count
from minibox_store.layout import Layout, Listing, OpenedImage, opening_images
from minibox_store.limits import Limits
from minibox_store.platforms import PlatformChoice, WantedPlatforms, checked_choice
from minibox_store.protocols import ImageTarget, RoomChecking, WritableFile
from minibox_store.reports.images import Image

if TYPE_CHECKING:
    from minibox_store.archive.formats import ArchiveCompression, ArchiveForm, ArchiveFormat
    from minibox_store.archive.offering import OfferedArchive

_File = str | os.PathLike[str] | WritableFile


class Saving:
    """How images go out of a :class:`minibox_store.Store`, as archives."""

    _layout: Layout
    _listing: Listing

    @overload
    def save(  # type: ignore[overload-overlap]  # a text is a sequence of texts, and the first of these is for it
        self,
        name: str,
        file: str | os.PathLike[str] | WritableFile,
        *,
        dir_fd: int | None = None,
        format: "ArchiveFormat" = "minibox",
        platform: PlatformChoice = None,
        exclude: Iterable[Digest] = (),
        compress: "ArchiveCompression | None" = None,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> Image: ...

    @overload
    def save(
        self,
        name: Sequence[str],
        file: str | os.PathLike[str] | WritableFile,
        *,
        dir_fd: int | None = None,
        format: "ArchiveFormat" = "minibox",
        platform: PlatformChoice = None,
        exclude: Iterable[Digest] = (),
        compress: "ArchiveCompression | None" = None,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> tuple[Image, ...]: ...

    def save(
        self,
        name: str | Sequence[str],
        file: str | os.PathLike[str] | WritableFile,
        *,
        dir_fd: int | None = None,
        format: "ArchiveFormat" = "minibox",  # noqa: A002  # what everybody calls it
        platform: PlatformChoice = None,
        exclude: Iterable[Digest] = (),
        compress: "ArchiveCompression | None" = None,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> Image | tuple[Image, ...]:
        """Write images as one archive, and return them as they are in it. Equal images and names give equal bytes.

        What several images share is written once, and so is an image of several names.

        Args:
            name: which image, as for :meth:`get`; or several, of which the result has one for each.
            file: a path, created, or replaced if it is a regular file; or something open that takes bytes, such as a
                pipe, which is not closed.
            dir_fd: an open directory that a path is relative to.
            format: ``"minibox"``, which holds one image; ``"oci"``, an OCI image layout; ``"docker"``, what Docker
                saves and loads, without the manifest, so that its digest is lost; ``"both"`` of these two. The last two
                hold images of one platform, under names that are references; ``"both"`` leaves other names to its
                OCI half.
            platform: which manifests of an index, as for :meth:`pull`; None takes the whole.
            exclude: configs and layers that are left out, since the other side has them (:meth:`have`). Manifests and
                indexes never are.
            compress: ``"zstd"`` compresses the whole.
            on_event: called for each step of progress.
            cancellation: ends it when it is cancelled.

        Raises:
            ImageNotFound: when there is no such image.
            InvalidDocument: when what has the name is no manifest or index.
            IncompleteImage: when blobs of it are missing.
            ContentMismatch: when a blob became shorter while it was saved.
            PlatformNotFound: when it has no manifest for a platform.
            InvalidArgument: when the format cannot hold these images or names, or for another argument that is none;
                nothing has been written then.
            InvalidPath: when the file cannot be written where it should be.
            MissingLibrary: for zstd, where nothing that is installed compresses so.
            StoreFull: when the archive does not fit there; nothing has been written to a path then.
            StoreUnavailable: when something open refuses, such as a pipe that nobody reads from any more.
            Cancelled: when ``cancellation`` was cancelled.

        Guarantees: whoever reads a path meanwhile, or after a crash, sees the old file or the new one, whole. To what
            is open nothing is written before all of each image is known to be there. With ``compress`` equal bytes
            need equal versions of the library, too.
        """
        from minibox_store.archive import ArchiveForm

        wanted = checked_choice(platform)
        names = _checked_names(name)
        on_event, cancellation = heard(on_event), checked_cancellation(cancellation)
        form = ArchiveForm(format=format, exclude=exclude, compress=compress)
        target = _target(file, dir_fd, form, durable=self._layout.durable)
        with (
            file_errors(self._layout.paths.root),
            self._opened(names, wanted, form) as (in_order, found),
            _naming_path(file),
        ):
            self._write(in_order, target, on_event, cancellation)
        return found[0] if isinstance(name, str) else found

    def open_archive(
        self,
        name: str | Sequence[str],
        *,
        format: "ArchiveFormat" = "minibox",  # noqa: A002  # what everybody calls it
        platform: PlatformChoice = None,
        exclude: Iterable[Digest] = (),
    ) -> "OfferedArchive":
        """Return the archive that :meth:`save` would write, to be read from any place; the caller closes it.

        Nothing is written anywhere; its exact size is known before its first byte is read.

        Args:
            name: as for :meth:`save`.
            format: as for :meth:`save`.
            platform: as for :meth:`save`.
            exclude: as for :meth:`save`.

        Raises:
            ImageNotFound, InvalidDocument, IncompleteImage, PlatformNotFound, InvalidArgument: as :meth:`save`.

        Guarantees: all blobs are open, so that nobody can take them away any more: no lock is held for that.
        """
        from minibox_store.archive import ArchiveForm, OfferedArchive

        wanted = checked_choice(platform)
        names = _checked_names(name)
        form = ArchiveForm(format=format, exclude=exclude)
        with file_errors(self._layout.paths.root), ExitStack() as opened:
            in_order, found = opened.enter_context(self._opened(names, wanted, form))
            blobs = {each: [*self._reached(image)] for each, image in _by_root(in_order).items()}
            graphs = [(image.name, image.chosen, blobs[identity(image.chosen)], image) for image in in_order]
            return OfferedArchive(graphs, form, found, opened)

    @contextmanager
    def _opened(
        self, names: tuple[str, ...], wanted: WantedPlatforms | None, form: "ArchiveForm"
    ) -> Iterator[tuple[list[OpenedImage], tuple[Image, ...]]]:
        """Open each image once, in the order of the names; and give what is told of each name that was asked for."""
        choose = None if wanted is None else partial(self._chosen, wanted)
        with opening_images(self._layout, names, choose) as images:
            # Several spellings may have been given of one name.
            distinct = {image.name: image for image in reversed(images)}
            _check_count(form, [*distinct], self._layout.limits)
            self._layout.activity.note_used(*distinct)
            told = self._listing.opened_images((name, image.chosen, image) for name, image in distinct.items())
            yield [image for _, image in sorted(distinct.items())], tuple(told[each.name] for each in images)

    def have(self) -> bytes:
        """Return the digests of all blobs that the store holds, as JSON: what an archive for it need not have.

        Whoever saves for this store reads them with :func:`minibox_store.parse_digests`, and gives them as ``exclude``.
        Their bytes are not verified, and a later prune may take what no image needs.
        """
        from minibox_store.codec.archive_tables import encode_digests
        from minibox_store.layout.inventory import stored_digests

        with file_errors(self._layout.paths.root):
            return encode_digests(stored_digests(self._layout.paths))

    def _chosen(self, wanted: WantedPlatforms, source: RememberingSource, root: Descriptor, name: str) -> Descriptor:
        from minibox_store.selecting import select_image

        return select_image(source, root, wanted, name, self._layout.limits).root

    def _reached(self, image: OpenedImage) -> Iterator[Descriptor]:
        # No loop, whose variable would keep what a document has while the next one is read.
        return map(attrgetter("descriptor"), walk_contents(image, image.chosen, limits=self._layout.limits))

    def _write(
        self,
        images: Sequence[OpenedImage],
        target: ImageTarget,
        on_event: EventListener,
        cancellation: Cancellation,
    ) -> None:
        noting = _NotingStored(on_event)
        walked = _by_root(images).values()
        with cancellation.interrupting(target), target.open_writer() as writer:
            if isinstance(writer, RoomChecking):
                writer.check_room(chain.from_iterable(map(self._reached, walked)))
            if on_event is not ignore_events:
                for image in images:
                    on_event(ManifestChosen(name=image.name, descriptor=image.chosen))
                roots = ((image, image.chosen) for image in walked)
                on_event(count_blobs(roots, self._layout.limits, cancellation))
            for image in walked:
                # In turn: a writer of an archive takes note of each blob, and moves them all in their order at the end.
                copy_graph(
                    image,
                    writer,
                    image.chosen,
                    limits=self._layout.limits,
                    parallel=1,
                    on_event=noting,
                    cancellation=cancellation,
                )
            for image in images:
                on_event(RegisteringName(name=image.name))
                writer.write_name(image.name, image.chosen)
            cancellation.check()
        noting.tell_stored()
        for image in images:
            on_event(ImageCopied(name=image.name))


class _NotingStored:
    """Tells that a blob is stored once the archive is laid down, and not already as its writer takes note of it."""

    def __init__(self, on_event: EventListener) -> None:
        self._on_event = on_event
        self._noted: dict[Digest, BlobStored] = {}
        self._present: set[Digest] = set()

    def __call__(self, event: Event) -> None:
        """Pass on what is true by now."""
        if isinstance(event, BlobPresent):
            self._present.add(event.descriptor.digest)
        if isinstance(event, BlobStored) and event.descriptor.digest not in self._present:
            self._noted.setdefault(event.descriptor.digest, event)
        else:
            self._on_event(event)

    def tell_stored(self) -> None:
        """Tell it of each blob, once."""
        for event in self._noted.values():
            self._on_event(event)


def _by_root(images: Iterable[OpenedImage]) -> dict[Identity, OpenedImage]:
    """Return one image for each root: what has many names is walked once."""
    return {identity(image.chosen): image for image in images}


def _checked_names(name: str | Sequence[str]) -> tuple[str, ...]:
    names = (name,) if isinstance(name, str) else tuple(name) if isinstance(name, Iterable) else ()
    if not names or not all(isinstance(each, str) for each in names):
        raise InvalidArgument("name", name, "it is neither a name nor a sequence of names")
    return names


def _check_count(form: "ArchiveForm", names: list[str], limits: Limits) -> None:
    count = len(names)
    if count > 1 and not form.holds_many:
        raise InvalidArgument(
            "format", form.format, f"it holds one image, and not {count}: 'oci' holds as many as wanted"
        )
    if count > limits.documents:
        # Who loads an archive has this bound on what it tells of.
        problem = f"they are {count}, and an archive that is to be loaded tells of {limits.documents} images at most"
        raise InvalidArgument("name", names, problem)


def _target(file: _File, dir_fd: int | None, form: "ArchiveForm", *, durable: bool) -> ImageTarget:
    from minibox_store.archive import ArchiveFile, ArchiveStream

    if isinstance(file, str | os.PathLike):
        if dir_fd is not None:
            check_count("dir_fd", dir_fd, "it is no open directory", least=0)
        return ArchiveFile(path_text("file", file), dir_fd=dir_fd, durable=durable, form=form)
    if dir_fd is not None:
        raise InvalidArgument("dir_fd", dir_fd, "only a path can be relative to it")
    return ArchiveStream(file, form=form)


def _naming_path(file: _File) -> AbstractContextManager[None]:
    return path_errors(os.fspath(file)) if isinstance(file, str | os.PathLike) else nullcontext()
