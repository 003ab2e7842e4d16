"""What a store tells of itself, and of what was done to it, as values: checks, repairs, and bytes."""

from typing import Literal

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Role
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class LostName(Value):
    """A name that no entry of a store has any more, though the whole image that it stood for is there.

    Attributes:
        name: as it stood in index.json.
        descriptor: of the manifest or index that it stood for last.
        generation: the number of the newest content of index.json that says so.
    """

    name: str
    descriptor: Descriptor
    generation: int


@attrs.frozen(kw_only=True, repr=False)
class IndexRepair(Value):
    """How an index.json that could not be read was mended.

    Attributes:
        generation: the number of the earlier content that it was written anew from.
        kept_aside: where what was found in its place is now, relative to the store's root; None where it was missing.
        names: those that index.json has now.
        left_out: names, or digests of entries without one, that the generation has, and of which a blob is gone.
    """

    generation: int
    kept_aside: str | None
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, repr=False)
class MendedBlob(Value):
    """A blob that was wrong, and is right again.

    Attributes:
        finding: what was wrong.
        origin: the repository that it was fetched from again; of a source that the caller gave, which one;
            ``quarantine`` where what had been set aside is right after all; of ``oci-layout``, which is no blob and
            says one thing alone, that.
    """

    finding: "Finding"
    origin: str


@attrs.frozen(kw_only=True, repr=False)
class UnmendedBlob(Value):
    """A blob that is wrong, and that nobody could be had a right one from.

    Attributes:
        finding: what is wrong.
        kept_aside: where what was in its place is now, relative to the store's root; None where nothing was, or where
            it was left.
        problems: what each of those said that were asked, a sentence each; or why nobody was.
        is_needed: whether an image needs it. What none needs was in the way, and is not any more.
    """

    finding: "Finding"
    kept_aside: str | None
    problems: tuple[str, ...]
    is_needed: bool = True


@attrs.frozen(kw_only=True, repr=False)
class RepairReport(Value):
    """What a repair did, and what it could not do.

    Attributes:
        index: how index.json was mended; None where it could be read.
        mended: the blobs that are right again.
        unmended: those that are not. A pull of an image that needs one fetches it.
        lost_names: the names that the store had, has no more, and whose whole images are there: to be given back by
            ``import_image``, or by ``undo`` where the last change took them. Nothing was done about them.
        nameless: whole images that no entry reaches, were they named once or not; a prune takes them.
    """

    index: IndexRepair | None = None
    mended: tuple[MendedBlob, ...] = ()
    unmended: tuple[UnmendedBlob, ...] = ()
    lost_names: tuple[LostName, ...] = ()
    nameless: tuple[Descriptor, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left that is wrong with an image."""
        return not any(each.is_needed for each in self.unmended) and not (self.index and self.index.left_out)


@attrs.frozen(kw_only=True, repr=False)
class StoreInfo(Value):
    """What a store is and can do where it lies.

    Attributes:
        root: its folder.
        durable: whether a change is on disk before the call that made it returns.
        hard_links: whether the file system has them; without, a prune waits for the running pulls and loads.
            None until the store exists, and where it may not be written to.
    """

    root: str
    durable: bool
    hard_links: bool | None


FindingKind = Literal["missing", "wrong size", "wrong digest", "unreadable", "not a file", "absent", "unreferenced"]


@attrs.frozen(kw_only=True, repr=False)
class Finding(Value):
    """One thing that a check found.

    Attributes:
        kind: ``missing``: an image needs it, and nothing is there; ``wrong size``, ``wrong digest``: what is there is
            something else; ``unreadable``: the system does not give its bytes, or they are no document;
            ``not a file``: a link, a folder or a device is there. And what is no damage: ``absent``: a manifest that
            an index names and that was never fetched; ``unreferenced``: no image needs it, and a prune would take it.
        path: relative to the store's root.
        digest: of the blob; None for what is called by no digest.
        names: the images that need the blob, sorted.
        problem: what was found, in a sentence.
    """

    kind: FindingKind
    path: str
    digest: Digest | None
    names: tuple[str, ...] = ()
    problem: str

    @property
    def is_damage(self) -> bool:
        """Whether something is wrong with the store."""
        return self.kind not in ("absent", "unreferenced")


@attrs.frozen(kw_only=True, repr=False)
class Need(Value):
    """Why a store keeps a blob: the way to it from one entry of index.json.

    Attributes:
        name: of the entry; None where it has none.
        path: the entry's manifest or index first, then what lies between, the blob last; the blob alone, where the
            entry stands for it.
    """

    name: str | None
    path: tuple[Descriptor, ...]


@attrs.frozen(kw_only=True, repr=False)
class ImageUsage(Value):
    """The bytes of one entry of index.json in the store's files, each blob once.

    Attributes:
        name: of the entry; None where it has none.
        digest: of its manifest or index.
        own_bytes: what no other entry needs: a prune frees it once this one is removed.
        shared_bytes: what another entry needs too, were it a second name for the same image.
    """

    name: str | None
    digest: Digest
    own_bytes: int
    shared_bytes: int

    @property
    def size_bytes(self) -> int:
        """Own and shared bytes."""
        return self.own_bytes + self.shared_bytes


@attrs.frozen(kw_only=True, repr=False)
class BlobUsage(Value):
    """One blob in the store's files, and who needs it.

    Attributes:
        digest: of the blob.
        size_bytes: of its file.
        role: what it is to those that need it; None where none does.
        media_type: as they have it; None where none needs it.
        needed_by: how many entries of index.json need it, those without a name included.
        names: of those that have one, sorted; of very many the first ones.
    """

    digest: Digest
    size_bytes: int
    role: Role | None = None
    media_type: str | None = None
    needed_by: int = 0
    names: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, repr=False)
class StoreUsage(Value):
    """The bytes of all blobs of a store, and whose they are.

    Attributes:
        images: one for each entry, sorted by name; those without one at the end.
        total_bytes: of all blobs.
        reclaimable_bytes: of the blobs that a prune would remove now.
        blob_count: how many blobs there are.
        blobs: the largest of them, as many as were asked for, the largest first.
    """

    images: tuple[ImageUsage, ...]
    total_bytes: int
    reclaimable_bytes: int
    blob_count: int
    blobs: tuple[BlobUsage, ...] = ()
