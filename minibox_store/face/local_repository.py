"""One repository of a store, as a registry shows it: its tags, manifests and blobs, and how they come and go.

A repository shows what its own entries of index.json reach, and what was pushed to it and is pinned there; nothing else
that the store holds. What a manifest needs must be seen in its repository before the manifest is taken: so nobody gets
at a blob by naming it.

Spec: OCI distribution-spec 1.1, "Pull", "Push", "Content Discovery" and "Content Management".
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from minibox_store import media_types
from minibox_store._file_errors import file_errors
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutIndex, Referrer
from minibox_store.errors import BlobNotFound, ImageNotFound, IncompleteImage, NotFound, StoreDamaged, StoreError
from minibox_store.face.taking import Taking, read_offered
from minibox_store.layout.resting import collector_at_rest
from minibox_store.layout_index import name_of
from minibox_store.protocols import BlobStream
from minibox_store.reports.pushes import PushedManifest, StillNeeded, Upload
from minibox_store.repositories import (
    RepositoryEntries,
    check_repository_name,
    find_repository,
    without_entries,
)

if TYPE_CHECKING:
    from minibox_store.layout import Layout
    from minibox_store.layout.pushed import PushedBlobs
    from minibox_store.layout.reaching import Reaches
    from minibox_store.layout.uploads import Uploads


class LocalRepository:
    """One repository of a store; it need not have anything yet. Got by :meth:`minibox_store.Store.repository`.

    Objects are cheap, and safe for several threads. Every method raises errors of the library alone: besides those
    it names, what every method of the store may raise.
    """

    def __init__(
        self,
        name: str,
        layout: "Layout",
        *,
        uploads: "Uploads",
        pushed: "PushedBlobs",
        reaches: "Reaches",
        find: "Callable[[LayoutIndex, str], RepositoryEntries]" = find_repository,
    ) -> None:
        self.name = name
        self._layout = layout
        self._uploads = uploads
        self._pushed = pushed
        self._reaches = reaches
        self._find = find

    # ---- looking

    def is_known(self) -> bool:
        """Whether it has an image, or anything was pushed to it."""
        with file_errors(self._layout.paths.root):
            return bool(self._entries().roots) or self._pushed.has_any(self.name)

    def tags(self) -> tuple[str, ...]:
        """Return its tags, sorted."""
        with file_errors(self._layout.paths.root):
            return tuple(sorted(self._entries().tags))

    def resolve(self, tag: str) -> Descriptor:
        """Return what a tag stands for.

        Raises:
            ImageNotFound: when there is no such tag.
        """
        with file_errors(self._layout.paths.root):
            claims = self._entries().tags.get(tag)
        if claims is None:
            raise ImageNotFound(f"{self.name}:{tag}")
        return claims[0]

    def find(self, digest: Digest) -> Descriptor:
        """Return the descriptor of a blob, document or not, that is seen in the repository.

        It is as the document describes it that names the blob; of a blob that was pushed, and that none names yet,
        as one of octets. The blob's own file is not looked at where a document names it.

        Raises:
            BlobNotFound: when there is none.
            StoreDamaged: when there is none, and a document of the repository is wrong, so that nobody can tell.
        """
        with file_errors(self._layout.paths.root):
            found = self._find_reached(digest)
            if found is None:
                found = self._find_pushed(digest)
            return found

    def hold_blob(self, digest: Digest) -> Descriptor:
        """Do as :meth:`find` for somebody who goes on as if the blob were pushed, and let it stay for their manifest.

        It is seen, and kept, for an hour, and for as long as the repository is being pushed to, a day at most. Where
        that cannot be noted, or the store is busy for some seconds, it is found all the same.

        Raises:
            BlobNotFound, StoreDamaged: as :meth:`find`; the former also where its file is not there.
        """
        with file_errors(self._layout.paths.root):
            reached, is_there = self._find_reached(digest), True
            found = reached or self._find_pushed(digest)
            with suppress(OSError, StoreError):
                is_there = self._pushed.hold(self.name, digest, lambda: bool(reached or self._find_reached(digest)))
        if not is_there:
            raise BlobNotFound(str(digest))
        return found

    def find_manifest(self, digest: Digest) -> Descriptor:
        """Return the descriptor of a manifest or index that is seen in the repository as such.

        Another image may have the same bytes for a layer; that makes them nothing else.

        Raises:
            BlobNotFound, StoreDamaged: as :meth:`find`.
        """
        with file_errors(self._layout.paths.root):
            found = self._find_reached(digest, is_wanted=media_types.is_document)
        if found is None:
            raise BlobNotFound(str(digest))
        return found

    def referrers(self, digest: Digest) -> tuple[Referrer, ...]:
        """Return what in the repository refers to a manifest or index, which need not be there, sorted by digest.

        Raises:
            IncompleteImage, StoreDamaged: when one of the repository is missing, or wrong: nobody knows what it says.
        """
        found: dict[Digest, Referrer] = {}
        with file_errors(self._layout.paths.root):
            for root in self._reaches.referring(self._entries().roots, digest):
                for each in self._referrers_below(root):
                    if each.subject == digest:
                        found[each.descriptor.digest] = each
        return tuple(found[key] for key in sorted(found))

    # ---- uploads

    def begin_upload(self) -> Upload:
        """Begin an upload, and return it with nothing in it. It is gone once it has not grown for a day."""
        with file_errors(self._layout.paths.root):
            return Upload(id=self._uploads.begin(self.name), repository=self.name, size_bytes=0)

    def upload(self, identifier: str) -> Upload:
        """Return how far an upload is, by its id, which is not trusted.

        Raises:
            UploadNotFound: when the repository has no such upload.
        """
        with file_errors(self._layout.paths.root):
            size_bytes = self._uploads.size_bytes(identifier, self.name)
        return Upload(id=identifier, repository=self.name, size_bytes=size_bytes)

    def append_upload(
        self, identifier: str, stream: BlobStream, *, offset: int | None = None, size_bytes: int | None = None
    ) -> Upload:
        """Add bytes to an upload, and return how far it is.

        Args:
            identifier: of the upload, not trusted.
            stream: what is added, not trusted: a binary file, read to its end. Where it raises an error, or ends early,
                what it gave stays, and the upload goes on behind that.
            offset: where the bytes belong; None for behind what is there.
            size_bytes: how many bytes they are to be; None where that is not known.

        Raises:
            UploadNotFound: when the repository has no such upload.
            UploadOutOfOrder: when the upload does not end at ``offset``; nothing was read then.
            ContentMismatch: when there are more or fewer than ``size_bytes``; of more none stay.
            StoreFull: when they do not fit; none of them stay.
            StoreBusy: when somebody else adds to the upload for longer than the lock's timeout.

        Guarantees: one at a time adds to an upload, in whatever process. It outlives this process.
        """
        with file_errors(self._layout.paths.root):
            size = self._uploads.append(identifier, self.name, stream, offset=offset, size_bytes=size_bytes)
        return Upload(id=identifier, repository=self.name, size_bytes=size)

    def finish_upload(self, identifier: str, digest: Digest) -> Descriptor:
        """Make an upload a blob that is seen in the repository, and return its descriptor.

        It is kept until a manifest that is new to the repository needs it, once for each time that it came to be
        there, or until a day has gone by.

        Raises:
            UploadNotFound: when the repository has no such upload.
            ContentMismatch: when it has another digest; the upload is gone then.

        Guarantees: the digest is that of the bytes which are kept. With full durability they survive a loss of power.
        """
        with file_errors(self._layout.paths.root):
            finishing = self._uploads.finishing(identifier, self.name, digest)
            with self._layout.open_writer() as writer, finishing as (opened, path):
                descriptor = _octets(digest, os.fstat(opened).st_size)
                self._pushed.pin(self.name, digest)
                writer.keep_file(opened, path, descriptor)
            with suppress(OSError):  # it is a blob: what is left of it goes with time
                self._uploads.forget(identifier, self.name)
        return descriptor

    def cancel_upload(self, identifier: str) -> None:
        """Give an upload up, and what came of it.

        Raises:
            UploadNotFound: when the repository has no such upload.
        """
        with file_errors(self._layout.paths.root):
            self._uploads.cancel(identifier, self.name)

    def mount_blob(self, digest: Digest, source: "LocalRepository") -> Descriptor:
        """Let a blob that is seen in another repository be seen in this one, as if it had been pushed here.

        Raises:
            BlobNotFound: when it is not seen there, or not there any more.

        Guarantees: as :meth:`finish_upload`.
        """
        with file_errors(self._layout.paths.root):
            found = source.find(digest)
            with self._layout.open_writer() as writer:
                if not writer.has_blob(found):
                    raise BlobNotFound(str(digest))
                self._pushed.pin(self.name, digest)
                # A collection that had looked at the pins before may have taken the blob: the commit gives it back.
                writer.write_change(lambda index: index, [])
        return _octets(digest, found.size_bytes)

    # ---- manifests

    def put_manifest(
        self, content: bytes, media_type: str | None, *, tag: str | None = None, digest: Digest | None = None
    ) -> PushedManifest:
        """Take a manifest or index, under a tag or by its digest alone, and return what it is.

        Args:
            content: the bytes, not trusted.
            media_type: what they are said to be; None reads that from the document.
            tag: which is to stand for it from now on.
            digest: that it must have; of its algorithm is the one under which it is kept.

        Raises:
            InvalidReference: when ``tag`` may be none.
            InvalidDocument: when it is no manifest or index, or another one than it is said to be.
            ContentMismatch: when it has another digest.
            IncompleteImage: when something that it needs is not seen in the repository, in the size that it says;
                ``missing`` has all of it. What it refers to (``subject``) may be absent.

        Guarantees: everything that it reaches stays from then on. A name comes last, in one step, and in the same step
            go those entries without a name that it reaches. What the tag stood for before stays, by its digest, if it
            is whole.
        """
        if tag is not None:
            check_repository_name(self.name, tag)
        with file_errors(self._layout.paths.root):
            offered = read_offered(content, media_type, digest, self._layout.limits)
            find_document = partial(self._find_reached, is_wanted=media_types.is_document)
            taking = Taking(self._layout, self.name, self.find, find_document)
            is_new = taking.take(offered, tag=tag)
            kept = offered.descriptor.digest
            # The manifest is there, whatever becomes of this: pins that are left go with time.
            with suppress(OSError, StoreError):
                # Who gives a further tag to what is there may have pushed nothing, and takes nothing from who did.
                self._pushed.let_go(self.name, offered.needed if is_new else (), lambda: self._has_root(kept))
        return PushedManifest(descriptor=offered.descriptor, subject=offered.subject)

    # ---- deleting

    def delete_manifest(self, digest: Digest) -> tuple[str, ...]:
        """Delete a manifest or index from the repository: all its tags, and the entry without a name. Return the names.

        The blobs stay until a prune.

        Raises:
            ImageNotFound: when there is none.
            StillNeeded: when an index of the repository needs it; nothing has changed then.
        """
        return self._delete(lambda entries: self._entries_for(entries, digest), "deleting a manifest")

    def delete_tag(self, tag: str) -> tuple[str, ...]:
        """Delete a tag from the repository; return the names that went: those that claim it for the same image.

        Raises:
            ImageNotFound: when there is no such tag.
        """

        def find(entries: RepositoryEntries) -> list[Descriptor]:
            claims = entries.tags.get(tag)
            if claims is None:
                raise ImageNotFound(f"{self.name}:{tag}")
            return [each for each in claims if each.digest == claims[0].digest]

        return self._delete(find, "deleting a tag")

    def delete_blob(self, digest: Digest) -> None:
        """Let a blob that was pushed be seen in the repository no more.

        Raises:
            BlobNotFound: when it is not seen there.
            StillNeeded: when an image of the repository needs it.
        """
        with file_errors(self._layout.paths.root):
            self._check_not_reached(digest, self._entries().roots)
            if not self._pushed.has(self.name, digest):
                raise BlobNotFound(str(digest))
            self._pushed.unpin(self.name, digest)

    def _delete(self, find: Callable[[RepositoryEntries], list[Descriptor]], doing: str) -> tuple[str, ...]:
        gone: list[str] = []

        def change(index: LayoutIndex) -> LayoutIndex:
            taken = find(find_repository(index, self.name))
            gone[:] = sorted(name for each in taken if (name := name_of(each)) is not None)
            return without_entries(index, taken, self.name)

        with file_errors(self._layout.paths.root):
            find(self._entries())  # where there is nothing to delete no store is made; and what is read is read now
            self._layout.prepare()
            self._layout.change_index(change, doing)
        return tuple(gone)

    def _entries_for(self, entries: RepositoryEntries, digest: Digest) -> list[Descriptor]:
        taken = [root for root in entries.roots if root.digest == digest]
        self._check_not_reached(digest, [root for root in entries.roots if root.digest != digest])
        if not taken:
            raise ImageNotFound(f"{self.name}@{digest}")
        return taken

    def _check_not_reached(self, digest: Digest, roots: Iterable[Descriptor]) -> None:
        for root in self._reaches.reaching(roots, digest):
            try:
                reach = self._reaches.of(root)
            except (NotFound, StoreDamaged):
                continue  # nobody can tell what it needs, and no blob goes by this
            if digest in reach.blobs:
                raise StillNeeded(str(digest), name_of(root) or str(root.digest))

    # ---- parts

    def _has_root(self, digest: Digest) -> bool:
        return any(root.digest == digest for root in self._entries().roots)

    def _entries(self) -> RepositoryEntries:
        with collector_at_rest():  # the first time very many values are made of it
            return self._find(self._layout.read_index(), self.name)

    def _referrers_below(self, root: Descriptor) -> tuple[Referrer, ...]:
        try:
            return self._reaches.of(root).referrers
        except BlobNotFound as error:
            if root in self._entries().roots:
                raise IncompleteImage(name_of(root) or str(root.digest), (error.digest,)) from error
            return ()  # it has gone meanwhile

    def _find_reached(
        self, digest: Digest, is_wanted: Callable[[str], bool] = lambda media_type: True
    ) -> Descriptor | None:
        damage: StoreDamaged | None = None
        roots = self._entries().roots
        for root in roots:
            if root.digest == digest and is_wanted(root.media_type):
                return root
        # What is wanted next is most often what came last: an index follows its manifests.
        for root in self._reaches.reaching(reversed(roots), digest):
            try:
                found = self._reaches.of(root).blobs.get(digest)
            except NotFound:
                continue
            except StoreDamaged as error:
                # It may well be a blob of another image, and the damage none of this client's concern.
                damage = error
                continue
            if found is not None and is_wanted(found.media_type):
                return found
        if damage is not None and not self._pushed.has(self.name, digest):
            raise damage
        return None

    def _find_pushed(self, digest: Digest) -> Descriptor:
        size_bytes = self._layout.blob_size(digest) if self._pushed.has(self.name, digest) else None
        if size_bytes is None:
            raise BlobNotFound(str(digest))
        return _octets(digest, size_bytes)


def _octets(digest: Digest, size_bytes: int) -> Descriptor:
    return Descriptor(media_type=media_types.OCTET_STREAM, digest=digest, size_bytes=size_bytes)
