"""What a store tells of its images and of its collections, as values."""

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.platforms import Platform


@attrs.frozen(kw_only=True)
class Image:
    """One named image of a store.

    Attributes:
        name: as it stands in index.json.
        descriptor: of the manifest or index that the name stands for.
        size_bytes: manifest, config and layers as their descriptors count them; of an index every document and
            each distinct blob once.
        platform: what the config says; None for an index, and where it says nothing.
        platforms: of an index, those of its manifests; else ``platform`` alone, if there is one.
        created: the config's own text (RFC 3339 if it keeps to the specification), not trusted; None for an index.
        layers: how many layers; of an index, how many distinct ones.
        damaged: whether a manifest or index of the image cannot be read; the other fields are what is known then.
    """

    name: str
    descriptor: Descriptor
    size_bytes: int
    platform: Platform | None = None
    platforms: tuple[Platform, ...] = ()
    created: str | None = None
    layers: int = 0
    damaged: bool = False

    @property
    def digest(self) -> Digest:
        """The digest of the manifest or index."""
        return self.descriptor.digest


@attrs.frozen(kw_only=True)
class Removal:
    """One thing that a collection removes, or would: ``path`` is relative to the store's root."""

    kind: str
    path: str
    size_bytes: int
    reason: str


@attrs.frozen(kw_only=True)
class PruneReport:
    """What a collection removed; of a dry run, what it would remove.

    Attributes:
        removed: each thing, with its bytes and the reason.
        bytes_freed: bytes of all that is no build cache.
        build_cache_removed: directories of unpacked layers removed, where that was asked for.
        kept: what stayed, though nothing needs it, and why: somebody uses it.
        absent: manifests that an index of another tool names and that were never fetched.
        errors: what could not be removed, and why.
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


@attrs.frozen(kw_only=True)
class StoreInfo:
    """What a store is and can do where it lies.

    Attributes:
        root: its folder.
        durable: whether a change is on disk before the call that made it returns.
        hard_links: whether the file system has them; without, a prune waits for the running pulls and loads.
            None until the store exists.
    """

    root: str
    durable: bool
    hard_links: bool | None
