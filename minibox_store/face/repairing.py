"""Mending a store: what a check finds wrong is set aside, and fetched again from where it came.

What is fetched goes the way of every blob: through a transaction, verified, into the place of the wrong one, which is
kept in ``quarantine/``. It goes in rounds: the documents that one has mended show what lies below them, and that is
looked at in the next.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import attrs

from minibox_store import _files, _signatures
from minibox_store.cancellation import Cancellation
from minibox_store.checking import check_images
from minibox_store.copying import EventListener
from minibox_store.documents import Descriptor, Identity, identity
from minibox_store.errors import IncompleteImage, NothingToDo, StoreBusy, StoreDamaged
from minibox_store.face.refetching import OpenOrigin, Refetcher, refetching
from minibox_store.graph import is_of_the_blob
from minibox_store.image_map import ImageMap
from minibox_store.layout import Layout
from minibox_store.layout.inventory import Inventory
from minibox_store.layout.marker import mend_marker
from minibox_store.layout.mending import find_lost_names, find_nameless, mend_index
from minibox_store.layout.paths import relative_path
from minibox_store.layout.setting_aside import has_content, is_settled, set_aside
from minibox_store.media_types import is_document
from minibox_store.protocols import BlobSource
from minibox_store.reports.store import Finding, MendedBlob, RepairReport, UnmendedBlob
from minibox_store.values import Value

_SAME_BYTES = "its bytes are those that its digest names: to fetch it again would give no others"
_NO_NEED = "nothing that could be read needs it"

_T = TypeVar("_T")

# Documents, each with the names that need it.
_Documents = dict[Identity, tuple[Descriptor, tuple[str, ...]]]


@attrs.frozen(kw_only=True, repr=False)
class _Damage(Value):
    """Something wrong, and all that is said of the blob by those who need it; nothing where nobody does."""

    finding: Finding
    descriptors: tuple[Descriptor, ...] = ()


def repair(
    layout: Layout,
    *,
    open_origin: OpenOrigin,
    sources: Iterable[BlobSource],
    parallel: int,
    on_event: EventListener,
    cancellation: Cancellation,
) -> RepairReport:
    """Mend what can be mended; arguments, errors and guarantees are those of :meth:`minibox_store.Store.repair`."""
    marker = mend_marker(layout)
    index_repair = None
    try:
        layout.read_index()
    except StoreDamaged:
        with suppress(NothingToDo):  # somebody has mended it meanwhile
            index_repair = mend_index(layout)
    check = _Check(layout, parallel, on_event, cancellation)
    work = _Repair(layout, cancellation)
    damage = check.whole_store()
    if damage:
        with refetching(
            layout, open_origin=open_origin, sources=tuple(sources), on_event=on_event, cancellation=cancellation
        ) as refetcher:
            while damage:
                damage = check.below(work.mend_all(damage, refetcher))
    for dead in check.dead():
        work.clear(dead)
    return RepairReport(
        index=index_repair,
        mended=(*marker.mended, *work.mended.values()),
        unmended=(*marker.unmended, *work.unmended.values()),
        lost_names=_found(find_lost_names, layout),
        nameless=_found(find_nameless, layout),
    )


def _found(find: Callable[[Layout], tuple[_T, ...]], layout: Layout) -> tuple[_T, ...]:
    # A document or a generation may be wrong still, or closed to us, and then nobody knows what it reaches: what was
    # mended is told all the same.
    try:
        return find(layout)
    except (IncompleteImage, StoreDamaged, StoreBusy):
        return ()
    except OSError as error:
        if not is_of_the_blob(error):
            raise
        return ()


class _Check:
    """Finds what is wrong: in the whole store, below documents that were mended, and among what nobody needs."""

    def __init__(self, layout: Layout, parallel: int, on_event: EventListener, cancellation: Cancellation) -> None:
        self._layout = layout
        self._parallel = parallel
        self._on_event = on_event
        self._cancellation = cancellation

    def whole_store(self) -> list[_Damage]:
        """Return what is wrong with the blobs that the entries of index.json reach."""
        inventory, images = Inventory(self._layout), ImageMap(limits=self._layout.limits)
        found = list(self._findings(inventory, inventory.roots, images))
        return list(self._damage(inventory.confirmed(found, images), images))

    def below(self, mended: _Documents) -> list[_Damage]:
        """Return what is wrong below some documents, each with the names that need it."""
        if not mended:
            return []
        inventory, images = Inventory(self._layout), ImageMap(limits=self._layout.limits)
        roots = [descriptor for descriptor, _ in mended.values()]
        found = []
        for finding in self._findings(inventory, roots, images):
            assert finding.digest is not None
            above = {identity(need.path[0]) for need in images.needs_of(finding.digest)}
            names = sorted({name for key in above for name in mended[key][1]})
            found.append(attrs.evolve(finding, names=tuple(names)))
        return list(self._damage(inventory.told_apart(found), images))

    def dead(self) -> Iterator[_Damage]:
        """Yield what is no blob, and each blob of other bytes than it should have, that nobody needs.

        A pull may come to rely on it. Asked at the end: before, what is needed may not all be known.
        """
        inventory, images = Inventory(self._layout), ImageMap(limits=self._layout.limits)
        for root in inventory.roots:
            images.add_root(inventory, root, on_unreadable=lambda *_: None)
        yield from (_Damage(finding=each) for each in inventory.findings(images) if each.is_damage)
        for digest in sorted(inventory.unneeded(images)):
            self._cancellation.check()
            if (
                has_content(self._layout, digest) is False
                and is_settled(self._layout, digest)
                and inventory.is_there(digest)
            ):
                problem = f"its bytes are not those that {digest} names"
                yield _Damage(
                    finding=Finding(kind="wrong digest", path=relative_path(digest), digest=digest, problem=problem)
                )

    def _findings(self, inventory: Inventory, roots: Sequence[Descriptor], images: ImageMap) -> Iterator[Finding]:
        return check_images(
            inventory,
            roots,
            images,
            path_of=relative_path,
            parallel=self._parallel,
            on_event=self._on_event,
            cancellation=self._cancellation,
        )

    def _damage(self, findings: Iterable[Finding], images: ImageMap) -> Iterator[_Damage]:
        origins = self._layout.origins.read()
        for finding in findings:
            # Not every manifest that is absent was never fetched: this one was here.
            is_lost = finding.kind == "absent" and str(finding.digest) in origins
            if is_lost or finding.is_damage:
                said = () if finding.digest is None else images.descriptors_of(finding.digest)
                yield _Damage(finding=attrs.evolve(finding, kind="missing") if is_lost else finding, descriptors=said)


class _Repair:
    """What was done until now. Of each blob one thing is told, however many find it wrong."""

    def __init__(self, layout: Layout, cancellation: Cancellation) -> None:
        self._layout = layout
        self._cancellation = cancellation
        self._tried: defaultdict[str, set[Identity]] = defaultdict(set)
        self._seen_through: set[Identity] = set()
        self.mended: dict[str, MendedBlob] = {}
        self.unmended: dict[str, UnmendedBlob] = {}

    def mend_all(self, damage: Sequence[_Damage], refetcher: Refetcher) -> _Documents:
        """Mend what can be; return the documents that are right now, with the names that need them."""
        documents: _Documents = {}
        for position, each in enumerate(damage, 1):
            self._cancellation.check()
            path, said = each.finding.path, {identity(descriptor) for descriptor in each.descriptors}
            if path in self.unmended and said <= self._tried[path]:
                continue  # it is missing now because it was set aside
            done = self.mended.get(path) if said <= self._tried[path] else None
            self._tried[path] |= said
            if self._mend(each, refetcher, position, len(damage), done):
                for descriptor in each.descriptors:
                    key = identity(descriptor)
                    if is_document(descriptor.media_type) and key not in self._seen_through:
                        self._seen_through.add(key)
                        documents[key] = (descriptor, each.finding.names)
        return documents

    def clear(self, damage: _Damage) -> None:
        """Set aside what nobody needs; a folder that is not ours to move stays, and what was mended is told."""
        aside, problems = None, [_NO_NEED]
        if damage.finding.digest is not None:
            try:
                aside = set_aside(self._layout, damage.finding.digest, self._signature(damage.finding))
            except PermissionError as error:
                problems.append(f"it cannot be moved: {error.strerror}")
        self._give_up(damage.finding, aside, tuple(problems), is_needed=False)

    def _mend(self, damage: _Damage, refetcher: Refetcher, position: int, total: int, done: MendedBlob | None) -> bool:
        """Put the right bytes in place of a wrong blob, and return whether they are there; else set it aside.

        What was ``done`` before is not done again: the disk does not give what was put there.
        """
        finding, digest = damage.finding, damage.finding.digest
        assert digest is not None, "it was reached from a root"
        # What is there now, before it is looked at: what another process puts there meanwhile is left alone.
        seen = self._signature(finding)
        is_right = has_content(self._layout, digest)
        if is_right:
            # Somebody has mended it meanwhile; or the bytes are right, and what is said of them is wrong.
            if self._is_as_told(damage):
                return True
            self._give_up(finding, None, (_SAME_BYTES,))
            return False
        if done is not None:
            del self.mended[finding.path]
            self._give_up(done.finding, None, (f"{done.origin}: what came from there is wrong too: {finding.problem}",))
            return False
        origin, problems = refetcher.fetch(damage.descriptors, position, total)
        if origin is None:
            self._give_up(finding, None if is_right is None else set_aside(self._layout, digest, seen), problems)
            return False
        before = self.unmended.pop(finding.path, None)
        told = finding if before is None else before.finding
        self.mended[finding.path] = MendedBlob(finding=told, origin=origin)
        return True

    def _give_up(
        self, finding: Finding, kept_aside: str | None, problems: tuple[str, ...], *, is_needed: bool = True
    ) -> None:
        told = UnmendedBlob(finding=finding, kept_aside=kept_aside, problems=problems, is_needed=is_needed)
        self.unmended.setdefault(finding.path, told)

    def _is_as_told(self, damage: _Damage) -> bool:
        """Whether a blob of the right bytes is what the finding says it is not."""
        path = os.path.join(self._layout.paths.root, damage.finding.path)
        if damage.finding.kind == "wrong size":
            return all(each.size_bytes == _files.size_of(path) for each in damage.descriptors)
        is_any_document = any(is_document(each.media_type) for each in damage.descriptors)
        return damage.finding.kind != "unreadable" or not is_any_document

    def _signature(self, finding: Finding) -> _signatures.Signature | None:
        return _signatures.signature(os.path.join(self._layout.paths.root, finding.path))
