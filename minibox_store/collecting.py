"""Garbage collection, the thinking half: what is alive, and so what is not. Pure.

It fails closed: a root or a document that cannot be read ends the marking with an error, and nobody plans on half
a mark. What is alive is found by the same walk that copies images.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import attrs

from minibox_store import media_types
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Identity, LayoutIndex, Referrer
from minibox_store.graph import walk_documents
from minibox_store.layout_index import is_referrer
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.protocols import BlobSource
from minibox_store.referring import keep_living, read_referrer
from minibox_store.reports.removals import Removal


@attrs.define
class Marks:
    """What has been found alive so far; roots may be added as long as it is used.

    ``absent`` are manifests named by an index that were never fetched: foreign tools keep such indexes.
    """

    limits: Limits = DEFAULT_LIMITS
    absent: dict[Digest, Descriptor] = attrs.field(factory=dict)
    _seen: set[Identity] = attrs.field(factory=set)

    def live_names(self) -> set[str]:
        """Return what the files of the blobs that are alive are called: the hexadecimal part of their digests.

        That tells them apart, as each algorithm has its length; and texts are compared faster than digests.
        """
        return {key[0] for key in self._seen}

    def add_root(self, source: BlobSource, root: Descriptor) -> set[str]:
        """Mark everything that ``root`` reaches, and ``root``; return the documents of it that were not marked before.

        They are named as in :meth:`live_names`.

        Raises:
            BlobNotFound, ContentMismatch, InvalidDocument: when a document cannot be read; the marks are worth nothing.
        """
        if root.digest in self.absent:  # a root may not be absent; and it may have come since
            self.forget([self.absent[root.digest]])
        found = set[str]()
        for node in walk_documents(source, root, limits=self.limits, seen=self._seen):
            found.add(node.descriptor.digest.hex)
            if node.content is None and media_types.is_document(node.descriptor.media_type):
                self.absent[node.descriptor.digest] = node.descriptor
        return found

    def forget(self, absent: Iterable[Descriptor]) -> None:
        """Forget that these were absent: they have come since, and what they reach is to be marked."""
        for descriptor in absent:
            del self.absent[descriptor.digest]
            self._seen -= {key for key in self._seen if key[0] == descriptor.digest.hex}


def mark_index(
    marks: Marks,
    source: BlobSource,
    index: LayoutIndex,
    read_held: Callable[[], Container[str]] = frozenset,
    on_root: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Referrer, ...]:
    """Mark from every entry of an index, named or not; entries that were marked before cost nothing.

    Those that are kept for what they refer to alone are marked where that is alive; the others are returned.

    Args:
        marks: are added to.
        source: where documents are read from.
        index: what is kept.
        read_held: returns what the files of the blobs are called that are alive though no entry says so.
        on_root: called before each entry, and in the end, with how many are marked, and of how many; it may raise.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: when a document cannot be read, also that of a referrer.
    """
    roots: list[Descriptor] = []
    referrers: list[Descriptor] = []
    for entry in index.entries:
        (referrers if is_referrer(entry.descriptor) else roots).append(entry.descriptor)
    dead: tuple[Referrer, ...] = ()
    total = len(index.entries)
    for done, root in enumerate(roots):
        on_root(done, total)
        marks.add_root(source, root)
    if referrers:
        told = _telling(referrers, lambda done: on_root(len(roots) + done, total))
        dead = _mark_referrers(marks, source, told, read_held())
    on_root(total, total)
    return dead


def _telling(descriptors: Iterable[Descriptor], tell: Callable[[int], None]) -> Iterator[Descriptor]:
    for done, descriptor in enumerate(descriptors):
        tell(done)
        yield descriptor


def _mark_referrers(
    marks: Marks, source: BlobSource, descriptors: Iterable[Descriptor], held: Container[str]
) -> tuple[Referrer, ...]:
    known: list[Referrer] = []
    for descriptor in descriptors:
        found = read_referrer(source, descriptor, marks.limits)
        if found is not None:
            known.append(found)
        else:  # it refers to nothing, and so nobody knows when it should go
            marks.add_root(source, descriptor)
    live_names = marks.live_names()

    def keep(descriptor: Descriptor) -> None:
        # Of one that is an index, what refers to a manifest of it is alive too.
        live_names.update(marks.add_root(source, descriptor))

    dead = keep_living(known, lambda digest: digest.hex in live_names or digest.hex in held, keep)
    return tuple(dead)


# A file under ``blobs/``: its folder's path below the root, its name, its size in bytes, and its age in seconds.
StoredBlob = tuple[str, str, int, float]


def plan_blobs(blobs: Iterable[StoredBlob], live_names: Container[str]) -> list[Removal]:
    """Return the removal of each blob whose name is not among those of the blobs that are alive."""
    reason = "no image in the index needs it"
    return [
        Removal(kind="blob", path=f"{folder}/{name}", size_bytes=size_bytes, reason=reason, age_seconds=age_seconds)
        for folder, name, size_bytes, age_seconds in blobs
        if name not in live_names
    ]


def file_name(path: str) -> str:
    """Return what the file of a blob is called."""
    return path.rpartition("/")[2]


class Watch(Protocol):
    """Whoever watches a collection: is told how far it is, and ends it between two things by raising an error."""

    def check(self) -> None:
        """Raise what ends the collection, if anything does; nothing is told, so any lock may be held."""
        ...

    def marking(self, done_count: int, total_count: int) -> None:
        """Take note of how many roots are marked, and do as :meth:`check`; the store lock is not held."""
        ...

    def removing(self, ledger: "Ledger") -> None:
        """Take note of what is gone, and do as :meth:`check`; the store lock is not held."""
        ...

    def ended(self, ledger: "Ledger") -> None:
        """Take note of what is gone in the end; the store lock is not held."""
        ...


class _Nobody:
    """Watches nothing."""

    def check(self) -> None:
        pass

    def marking(self, done_count: int, total_count: int) -> None:
        pass

    def removing(self, ledger: "Ledger") -> None:
        pass

    def ended(self, ledger: "Ledger") -> None:
        pass


NOBODY: Watch = _Nobody()


@attrs.define(kw_only=True)
class Ledger:
    """What a collection has done so far, to be added to; of a dry run, what it would do.

    Attributes:
        dry_run: whether nothing is to be removed.
        removed: what was removed.
        kept: what stays because somebody uses it, and how, in a sentence each.
        errors: what could not be removed, or not be judged, and why.
        watch: who watches.
        pending_count: how many more things are known to go.
        pending_bytes: what they give back.
    """

    dry_run: bool
    removed: list[Removal] = attrs.field(factory=list)
    kept: list[str] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)
    watch: Watch = NOBODY
    pending_count: int = 0
    pending_bytes: int = 0

    def expect(self, plan: Sequence[Removal]) -> None:
        """Let these, and nothing else, be what is known to go."""
        self.pending_count = self.pending_bytes = 0
        self._expect(plan, 1)

    def settle(self, plan: Sequence[Removal]) -> None:
        """Let these have been dealt with: they are gone, or stay."""
        self._expect(plan, -1)

    def pause(self) -> None:
        """Be between two things, while the store lock is not held: tell how far it is, and raise what ends it."""
        self.watch.removing(self)

    def _expect(self, plan: Sequence[Removal], sign: int) -> None:
        self.pending_count += sign * len(plan)
        self.pending_bytes += sign * sum(each.size_bytes for each in plan)


class Living(Protocol):
    """What is alive in a store, for whoever removes what was derived from its images."""

    @property
    def root(self) -> str:
        """The store's folder."""
        ...

    @property
    def durable(self) -> bool:
        """Whether a loss of power may leave nothing but what was there at some moment."""
        ...

    def has(self, encoded: str) -> bool:
        """Whether an image needs the blob with these hexadecimal digits, or its file is there still."""
        ...

    def names(self) -> frozenset[str]:
        """Return the names in index.json as it is now."""
        ...

    def standing_still(self) -> AbstractContextManager[None]:
        """Let no image come while the block runs, so that what is not alive in it stays so."""
        ...

    def holding_base_layers(self) -> AbstractContextManager[None]:
        """Let no tree take a place in ``base_layers/`` while the block runs: its name follows under the same lock."""
        ...

    def who_opens(self, path: str) -> str | None:
        """Return whether somebody was seen to have something at or below a path open; None when nobody was."""
        ...

    def who_may_open(self, path: str) -> str | None:
        """Do as :meth:`who_opens`; whom nobody may look into counts too."""
        ...


TreeSweeper = Callable[[Living, Ledger], None]


def sweep_no_trees(_: Living, __: Ledger) -> None:
    """Leave all that is derived from images alone."""
