"""The part of the store's face that brings images in piece by piece, for whoever hands them on: a cache of a registry.

An index comes as it is, and each of its manifests when somebody wants that one: what nobody asks for is not fetched.
What has come stays as long as the index does, by the same rule as what other tools have left so: see ``absent`` of
:class:`minibox_store.collecting.Marks`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from minibox_store import media_types
from minibox_store._file_errors import file_errors
from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import EventListener, copy_graph, heard, ignore_events
from minibox_store.digest import Digest, check_digest
from minibox_store.documents import Descriptor, LayoutIndex
from minibox_store.errors import BlobNotFound
from minibox_store.events import ImageCopied, ManifestChosen, RegisteringName, ResolvingName
from minibox_store.face.arguments import known_client
from minibox_store.graph import ContentSource, RememberingSource, read_document, walk
from minibox_store.layout import Layout, Listing, Transaction, TransactionTarget
from minibox_store.layout_index import Provenance, find_name, provenance_of, with_name
from minibox_store.reference import Reference, check_image_name
from minibox_store.reports.images import Image
from minibox_store.values import Value

if TYPE_CHECKING:
    from minibox_store.registry import MirroredRepository, RegistryClient, RegistryRepository


class Fetching:
    """How a :class:`minibox_store.Store` comes to hold what it hands on to others."""

    _layout: Layout
    _listing: Listing
    _private_addresses: bool

    def fetch(
        self,
        reference: str,
        *,
        via: Sequence[str] = (),
        client: "RegistryClient | None" = None,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> Image:
        """Bring what a reference stands for, under the reference as its name; of an index that one document alone.

        A single manifest comes with all that it names. What an index names is brought by :meth:`fetch_part`; until then
        it is an image of which some manifests are absent: it is listed, kept and collected as such, and whoever needs
        all of it, a save or a push, is told what is missing.

        Args:
            reference: what to bring; the registry is Docker Hub where it names none.
            via: who hands on the request for it, as :meth:`RegistryClient.handing_on` has it.
            client: how registries are spoken to; as for :meth:`pull` where it is None.
            on_event: called for each step of progress, from several threads.
            cancellation: ends it when it is cancelled.

        Raises:
            InvalidReference: for a text that is no reference.
            RegistryBlocked: when a rule of the client blocks it; nothing is sent then.
            RegistryError: when the registry does not know it, refuses, fails, or cannot be reached.
            ContentMismatch, InvalidDocument: when it sends something else than it announced.
            StoreFull: when what is missing does not fit; nothing has been fetched then.
            Cancelled: when ``cancellation`` was cancelled.

        Guarantees: as :meth:`pull`: the name changes in one step, after everything that has come is verified.
        """
        parsed, name, on_event = Reference.parse(reference), check_image_name(reference), heard(on_event)
        with self._asking(parsed, via, client, on_event, cancellation) as asked:
            on_event(ResolvingName(name=name))
            root = asked.repository.resolve(str(parsed.digest or parsed.tag))
            on_event(ManifestChosen(name=name, descriptor=root))
            pulled_as = Provenance(reference=str(parsed), digest=root.digest, platform=None)
            with attrs.evolve(asked.target, provenance=pulled_as).open_writer() as writer:
                self._bring(asked, writer, root, on_event)
                image = self._listing.image(name, root)
                on_event(RegisteringName(name=name))
                writer.write_name(name, root)
        on_event(ImageCopied(name=name))
        return image

    def fetch_part(
        self,
        name: str,
        digest: Digest,
        *,
        via: Sequence[str] = (),
        client: "RegistryClient | None" = None,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> Descriptor:
        """Bring what an image names and the store lacks, from where the image came, and return its descriptor.

        Args:
            name: of the image.
            digest: of a manifest, which comes with all that it names; of an index, which comes alone; or of a config
                or layer.
            via: as for :meth:`fetch`.
            client: as for :meth:`fetch`.
            on_event: called for each step of progress, from several threads.
            cancellation: ends it when it is cancelled.

        Raises:
            ImageNotFound, BlobNotFound: when there is no such image, or it names no such blob as far as it is here.
            InvalidReference: when nobody knows where the image came from: its name is no reference.
            RegistryBlocked, RegistryError, ContentMismatch, InvalidDocument, StoreFull, Cancelled: as :meth:`fetch`.

        Guarantees: what has come is verified, and stays as long as the image does. Where that went meanwhile it has a
            name of its own: the repository and its digest.
        """
        check_digest(digest)
        with file_errors(self._layout.paths.root):
            name, root = find_name(self._layout.read_index(), name)
            part = self._find_part(root, digest)
        on_event, provenance = heard(on_event), provenance_of(root)
        parsed = Reference.parse(name if provenance is None else provenance.reference)
        own_name = f"{parsed.domain}/{parsed.repository}@{part.digest}"

        def keep(index: LayoutIndex) -> LayoutIndex:
            is_kept = any(entry.descriptor.digest == root.digest for entry in index.entries)
            return index if is_kept else with_name(index, own_name, part)

        with self._asking(parsed, via, client, on_event, cancellation) as asked:
            on_event(ManifestChosen(name=name, descriptor=part))
            with asked.target.open_writer() as writer:
                self._bring(asked, writer, part, on_event)
                writer.write_change(keep, [])
        return part

    def _find_part(self, root: Descriptor, digest: Digest) -> Descriptor:
        with self._layout.naming_damage():
            for node in walk(self._layout, root, limits=self._layout.limits, allow_absent_manifests=True):
                if node.descriptor.digest == digest:
                    return node.descriptor
        raise BlobNotFound(str(digest))

    def _bring(self, asked: "_Asked", writer: Transaction, root: Descriptor, on_event: EventListener) -> None:
        """Make the store hold an index alone, or anything else with all that it names."""
        if media_types.is_index(root.media_type):
            found = read_document(asked.source, root, self._layout.limits, may_be_absent=False)
            assert found is not None  # it may not be absent
            writer.write_blob(root, ContentSource(found[1]))
            return
        writer.check_room(node.descriptor for node in walk(asked.source, root, limits=self._layout.limits))
        copy_graph(
            asked.source, writer, root, limits=self._layout.limits, on_event=on_event, cancellation=asked.cancellation
        )

    @contextmanager
    def _asking(
        self,
        reference: Reference,
        via: Sequence[str],
        client: "RegistryClient | None",
        on_event: EventListener,
        cancellation: Cancellation | None,
    ) -> Iterator["_Asked"]:
        """Open the repository of a reference for the block."""
        client = known_client(client, limits=self._layout.limits, private_addresses=self._private_addresses)
        cancellation = checked_cancellation(cancellation)
        with (
            file_errors(self._layout.paths.root),
            client.handing_on(via).open_repository(reference, on_event=on_event) as repository,
            cancellation.interrupting(repository),
        ):
            target = TransactionTarget(self._layout, origin=f"{reference.domain}/{reference.repository}")
            source = RememberingSource(repository, self._layout.limits)
            yield _Asked(repository=repository, source=source, target=target, cancellation=cancellation)


@attrs.frozen(kw_only=True, repr=False)
class _Asked(Value):
    """A repository that something is fetched from, and where that goes."""

    repository: "RegistryRepository | MirroredRepository"
    source: RememberingSource
    target: TransactionTarget
    cancellation: Cancellation
