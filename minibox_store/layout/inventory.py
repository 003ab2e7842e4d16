"""What lies in a store at one moment, for whoever looks and changes nothing. It takes no lock and writes nothing.

Files are listed first, then what live transactions hold, then index.json: so a blob that a transaction has published
is held by it, or its name is in the index.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import attrs

from minibox_store import _files
from minibox_store.blob_sizes import BlobSizes
from minibox_store.digest import HEX_LENGTHS, Digest, is_hexadecimal
from minibox_store.documents import Descriptor, Referrer
from minibox_store.errors import BlobNotFound, IncompleteImage
from minibox_store.image_map import ImageMap
from minibox_store.layout.layout import Layout
from minibox_store.layout.paths import ALGORITHMS, LayoutPaths, pinned_digest, relative_path
from minibox_store.layout.pins import iter_entries, live_pins
from minibox_store.layout.quarantine import naming_set_aside
from minibox_store.layout.settling import open_settled_stream
from minibox_store.layout_index import is_referrer, name_of
from minibox_store.limits import Limits
from minibox_store.protocols import BlobSource, BlobStream
from minibox_store.referring import keep_living, read_referrer
from minibox_store.reports.store import Finding
from minibox_store.weighing import Weights

_ATTEMPTS = 5


class Rooted(Protocol):
    """What the graphs below some roots are gathered in."""

    @property
    def limits(self) -> Limits:
        """How deep and how large each may be."""

    @property
    def roots(self) -> list[Descriptor]:
        """In the order in which they were added."""

    def add_root(self, source: BlobSource, root: Descriptor) -> None:
        """Add everything that a root reaches, and the root."""

    def has(self, digest: Digest) -> bool:
        """Whether some root reaches the blob, or is it."""


_R = TypeVar("_R", bound=Rooted)


class Inventory:
    """The files of a store as they were listed, and its blobs as a source that says in which way each is wrong.

    Attributes:
        sizes_bytes: of each regular file that is called by a digest.
        strays: the path, below the root, of whatever else is no regular file; with its digest if it spells one.
        pinned: the blobs that live transactions hold.
        index: index.json.

    Raises:
        StoreDamaged: when index.json cannot be read.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.sizes_bytes = BlobSizes()
        self.strays: dict[str, Digest | None] = {}
        for algorithm in ALGORITHMS:
            self._list_blobs(algorithm)
        self.pinned = frozenset(live_pins(layout).values())
        self.index = layout.read_index()

    @property
    def roots(self) -> tuple[Descriptor, ...]:
        """The entries of the index."""
        return tuple(entry.descriptor for entry in self.index.entries)

    def _list_blobs(self, algorithm: str) -> None:
        for entry in iter_entries(self._layout.paths.blobs(algorithm)):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(status.st_mode):
                self.strays[f"blobs/{algorithm}/{entry.name}"] = pinned_digest(f"{algorithm}-{entry.name}")
            elif len(entry.name) == HEX_LENGTHS[algorithm] and is_hexadecimal(entry.name):
                self.sizes_bytes.add(entry.name, status.st_size)

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on.

        Raises:
            BlobNotFound: when there is nothing.
            StoreDamaged: when it is a link, or no file; or a document that was set aside.
            ContentMismatch: when it has another size, a document for as long as somebody may be writing it; nothing
                is read then.
        """
        path = self._layout.paths.blob(descriptor.digest)
        limit_bytes = self._layout.limits.document_bytes
        with naming_set_aside(self._layout.paths, descriptor):
            return open_settled_stream(path, descriptor, offset, self._layout.settle_seconds, limit_bytes)

    def is_there(self, digest: Digest) -> bool:
        """Whether something lies in the place of a blob still."""
        return _files.exists(self._layout.paths.blob(digest))

    def unneeded(self, images: ImageMap) -> dict[Digest, int]:
        """Return the sizes of the blobs that no image and no transaction needs: what a prune would remove."""
        return {
            digest: size_bytes
            for digest, size_bytes in self.sizes_bytes.items()
            if not images.has(digest) and digest not in self.pinned
        }

    def add_living_roots(self, images: Rooted, check: Callable[[], None]) -> None:
        """Add the entries to a map; those that are kept for what they refer to alone, where that is alive.

        ``check`` is called before each; it may raise.

        Raises:
            BlobNotFound, ContentMismatch, InvalidDocument, StoreDamaged: when a document cannot be read.
        """
        known: list[Referrer] = []
        for root in self.roots:
            check()
            found = read_referrer(self._layout, root, images.limits) if is_referrer(root) else None
            if found is None:
                images.add_root(self._layout, root)
            else:
                known.append(found)
        keep_living(
            known,
            lambda digest: images.has(digest) or digest in self.pinned,
            lambda descriptor: images.add_root(self._layout, descriptor),
        )

    def findings(self, images: ImageMap) -> Iterator[Finding]:
        """Yield what lies under ``blobs/`` and is no blob, or one that nobody needs.

        Where a document could not be read nobody knows what it needs, and nothing is called unreferenced.
        """
        for path, digest in self.strays.items():
            if digest is None or not images.has(digest):
                yield Finding(kind="not a file", path=path, digest=digest, problem=f"{path} is not a regular file")
        for digest in () if images.unreadable else self.unneeded(images):
            path = relative_path(digest)
            problem = f"no image in the index needs {digest}"
            yield Finding(kind="unreferenced", path=path, digest=digest, problem=problem)

    def confirmed(self, findings: list[Finding], images: ImageMap) -> tuple[Finding, ...]:
        """Return the findings that hold still, sorted: an image that was removed and collected is no damage."""
        held = sorted(self.told_apart(findings), key=lambda finding: (finding.path, finding.kind))
        for _ in range(_ATTEMPTS):
            index = self._layout.read_index()
            roots = {entry.descriptor.digest for entry in index.entries}
            held = [finding for finding in held if self._holds(finding, images, roots)]
            if self._layout.read_index() is index:
                break
        return tuple(held)

    def told_apart(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Yield the findings; what is said to be no file, and is not there at all, as missing: it was set aside."""
        for finding in findings:
            is_there = finding.kind != "not a file" or _files.exists(self._path_of(finding))
            yield finding if is_there else attrs.evolve(finding, kind="missing")

    def _path_of(self, finding: Finding) -> str:
        return os.path.join(self._layout.paths.root, finding.path)

    def _holds(self, finding: Finding, images: ImageMap, roots: set[Digest]) -> bool:
        is_there = _files.exists(self._path_of(finding))
        if finding.kind == "unreferenced":
            return is_there
        if finding.kind not in ("missing", "absent") or finding.digest is None:
            return True
        return not is_there and any(root.digest in roots for root in images.roots_of(finding.digest))


def stored_digests(paths: LayoutPaths) -> Iterator[Digest]:
    """Yield the digest of each file that is called by one, whatever it holds."""
    for algorithm in ALGORITHMS:
        for entry in iter_entries(paths.blobs(algorithm)):
            digest = pinned_digest(f"{algorithm}-{entry.name}")
            if digest is not None and entry.is_file(follow_symlinks=False):
                yield digest


def map_images(layout: Layout, check: Callable[[], None] = lambda: None) -> tuple[Inventory, ImageMap]:
    """Return what lies in a store, and what its entries reach: those that the next prune leaves.

    Args:
        layout: the store.
        check: called before each entry; it may raise.

    Raises:
        IncompleteImage, StoreDamaged: when a root or a document cannot be read.
        StoreBusy: when images are removed and collected all the time.
    """
    return _gather(layout, lambda _: ImageMap(limits=layout.limits), check)


def weigh_images(layout: Layout, *, most_blobs: int) -> tuple[Inventory, Weights]:
    """Return what lies in a store, and what its entries take of that; raises as :func:`map_images`."""
    return _gather(
        layout, lambda found: Weights(found.sizes_bytes, limits=layout.limits, most_blobs=most_blobs), lambda: None
    )


def _gather(layout: Layout, begin: Callable[[Inventory], _R], check: Callable[[], None]) -> tuple[Inventory, _R]:
    for _ in range(_ATTEMPTS):
        inventory = Inventory(layout)
        images = begin(inventory)
        try:
            with layout.naming_damage():
                inventory.add_living_roots(images, check)
        except BlobNotFound as error:
            if layout.read_index() is inventory.index:
                # Below an entry a document may be absent. So it is an entry itself, which may not be added yet.
                names = (name_of(root) for root in inventory.roots if str(root.digest) == error.digest)
                raise IncompleteImage(next(names, None) or error.digest, (error.digest,)) from error
            continue  # the name has gone meanwhile, and its blobs with it
        return inventory, images
    raise layout.busy_index()
