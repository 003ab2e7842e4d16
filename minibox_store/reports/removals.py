"""What a collection tells of what it removed, or would remove, as values."""

import attrs

from minibox_store.digest import Digest
from minibox_store.values import Value


# Without slots a frozen value is made in half the time, and there is one for each blob that goes.
@attrs.frozen(kw_only=True, slots=False, repr=False)
class Removal(Value):
    """One thing that a collection removes, or would.

    Attributes:
        kind: ``blob``, ``sidecar``, ``transaction``, ``partial``, ``temporary``, ``build cache``; of what was pushed
            ``upload``, and ``pin`` where a blob was kept for a manifest that did not come; of what was made of
            images ``mount``, ``mount point``, ``extracted layer``, ``base layer``; ``name`` where a filter chose an
            image; ``referrer`` where an entry was kept for what it refers to alone, and that is gone.
        path: relative to the store's root; of a name, the name; of a referrer, its digest.
        size_bytes: what its removal gives back; of a name or referrer nothing, as its blobs are told apart.
        reason: why it goes, in a sentence.
        age_seconds: since its file last changed, in content or in links, and of a folder since anything in it did; of
            a name, since it was last written; None where that is not known.
    """

    kind: str
    path: str
    size_bytes: int
    reason: str
    age_seconds: float | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True, repr=False)
class PruneReport(Value):
    """What a collection removed; of a dry run, what it would remove.

    Attributes:
        removed: each thing, with its bytes and the reason.
        kept: what stayed, though nothing needs it, and why: somebody uses it.
        absent: manifests that an index of another tool names and that were never fetched.
        errors: what could not be removed, or not be judged, and why.
        dry_run: whether nothing was removed.
    """

    removed: tuple[Removal, ...] = ()
    kept: tuple[str, ...] = ()
    absent: tuple[Digest, ...] = ()
    errors: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def blobs_removed(self) -> int:
        """How many blobs were removed."""
        return sum(each.kind == "blob" for each in self.removed)

    @property
    def fuse_mounts_killed(self) -> int:
        """How many FUSE mounts were unmounted."""
        return sum(each.kind == "mount" for each in self.removed)

    @property
    def bytes_freed(self) -> int:
        """Bytes of all that was removed and is no build cache."""
        return sum(each.size_bytes for each in self.removed if each.kind != "build cache")

    @property
    def build_cache_removed(self) -> int:
        """How many directories of unpacked layers were removed."""
        return sum(each.kind == "build cache" for each in self.removed)

    @property
    def build_cache_bytes_freed(self) -> int:
        """Bytes of the unpacked layers that were removed."""
        return sum(each.size_bytes for each in self.removed if each.kind == "build cache")
