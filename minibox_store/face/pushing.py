"""The part of the store's face that brings images out to registries."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs

from minibox_store._file_errors import file_errors
from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import DEFAULT_PARALLEL, EventListener, copy_image, heard, ignore_events
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import ContentMismatch, InvalidDigest, StoreDamaged, StoreError
from minibox_store.events import ManifestChosen, ReferrerFound
from minibox_store.face.arguments import known_client
from minibox_store.face.sending import check_sending, naming, tags_to_write
from minibox_store.graph import RememberingSource
from minibox_store.layout import Layout, OpenedImage, opening_image
from minibox_store.layout_index import without_own
from minibox_store.manifest_choice import select_manifest
from minibox_store.platforms import Platform
from minibox_store.reference import Reference

if TYPE_CHECKING:
    from minibox_store.registry import RegistryClient


class Pushing:
    """How images go out of a :class:`minibox_store.Store`, to registries."""

    _layout: Layout
    _private_addresses: bool

    def push(
        self,
        name: str,
        reference: str | None = None,
        *,
        platform: Platform | None = None,
        client: "RegistryClient | None" = None,
        parallel: int = DEFAULT_PARALLEL,
        chunk_bytes: int | None = None,
        referrers: bool = False,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> Descriptor:
        """Copy an image of the store to a registry, and return what the reference stands for there now.

        What the registry has already is not sent; what another of its repositories is known to have is taken from
        there. Layers that only others may give away (non-distributable ones with addresses) are sent to a registry that
        has refused the manifest for their absence, and to no other.

        Args:
            name: which image, as for :meth:`get`.
            reference: where it goes; the name itself where it is None. One with a digest must have the image's; with a
                digest alone no tag is written.
            platform: which manifest of an index; None sends the index, and every manifest in it.
            client: how registries are spoken to; where it is None, as for :meth:`pull`.
            parallel: how many layers move at once.
            chunk_bytes: how much of a layer goes in one request; None for all of it, unless the registry refuses that.
            referrers: whether what refers to the image goes along, of all that :meth:`referrers` tells; it is there
                before the tag is.
            on_event: called for each step of progress, from several threads.
            cancellation: ends the push when it is cancelled.

        Raises:
            ImageNotFound: when there is no such image.
            InvalidDocument: when what has the name is no manifest or index; nothing is sent then.
            IncompleteImage: when blobs of it are missing.
            PlatformNotFound: when the image has no manifest for the platform.
            InvalidReference: for a text that is no reference, or has the digest of something else.
            RegistryBlocked: when a rule of the client blocks it; nothing is sent then.
            RegistryError: when the registry refuses, fails, or cannot be reached.
            InvalidPath, CredentialHelperFailed: when credentials are asked for and cannot be read.
            StoreDamaged: when a blob of the store is not what it should be.
            ContentMismatch: when the registry says that it has kept something else.
            Cancelled: when ``cancellation`` was cancelled.

        Guarantees: the tag is written last, in one step. A push that fails leaves it as it was, unless only the answer
            to that step was lost.
        """
        from minibox_store.registry import RepositoryTarget

        check_sending(platform, parallel, chunk_bytes, referrers=referrers)
        on_event, cancellation = heard(on_event), checked_cancellation(cancellation)
        parsed = Reference.parse(name if reference is None else reference)
        client = known_client(client, limits=self._layout.limits, private_addresses=self._private_addresses)
        choose = None if platform is None else partial(self._choose, platform)
        with (
            file_errors(self._layout.paths.root),
            opening_image(self._layout, name, choose, referrers=referrers) as image,
        ):
            tags = tags_to_write(parsed, image.chosen)
            self._layout.activity.note_used(image.name)
            on_event(ManifestChosen(name=image.name, descriptor=image.chosen))
            for each in image.referrers:
                on_event(ReferrerFound(referrer=each))
            target = RepositoryTarget(
                partial(client.open_origin, parsed, access="pull,push", on_event=on_event),
                find_mounts=self._mounts_on(parsed.domain),
                chunk_bytes=chunk_bytes,
            )
            with self._naming_damaged_blobs():
                copy_image(
                    image,
                    target,
                    image.chosen,
                    tags,
                    limits=self._layout.limits,
                    parallel=parallel,
                    on_event=naming(on_event, parsed),
                    cancellation=cancellation,
                    referrers=[each.descriptor for each in image.referrers],
                )
            self._note_pushed(image, f"{parsed.domain}/{parsed.repository}")
            return attrs.evolve(image.chosen, annotations=without_own(image.chosen.annotations))

    def _choose(self, platform: Platform, source: RememberingSource, root: Descriptor, name: str) -> Descriptor:
        return select_manifest(source, root, platform, name, self._layout.limits)

    @contextmanager
    def _naming_damaged_blobs(self) -> Iterator[None]:
        """Turn a blob that is wrong in the store into StoreDamaged; what a registry keeps wrongly is another thing."""
        try:
            yield
        except ContentMismatch as error:
            with suppress(InvalidDigest):
                raise StoreDamaged(self._layout.paths.blob(Digest.parse(error.what)), str(error)) from error
            raise

    def _note_pushed(self, image: OpenedImage, origin: str) -> None:
        """Remember where the blobs are now, if that can be; in the store of another user nothing is written."""
        with suppress(StoreError, OSError):
            if os.stat(self._layout.paths.root).st_uid == os.geteuid():
                new = self._layout.origins.unknown({*image.files, *image.contents}, origin)
                if new:
                    with self._layout.store_lock("noting where blobs were pushed to"):
                        self._layout.origins.note(sorted(new), origin)

    def _mounts_on(self, domain: str) -> Callable[[Digest], Sequence[str]]:
        """Return what says in which repositories of a registry a blob was seen."""
        origins = self._layout.origins.read()

        def find(digest: Digest) -> Sequence[str]:
            known = (origin.partition("/") for origin in origins.get(str(digest), ()))
            return [repository for host, _, repository in known if host == domain]

        return find
