"""Mending a store: what a check finds wrong is set aside, and fetched again from where it came.

What is fetched goes the way of every blob: through a transaction, verified, into the place of the wrong one, which is
kept in ``quarantine/``. A document that was mended shows what lies below it, and that is looked at next.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress

import attrs

from minibox_store import _signatures
from minibox_store.checking import check_images
from minibox_store.copying import Cancellation, EventListener, ObservedSource
from minibox_store.documents import Descriptor, Node
from minibox_store.errors import Cancelled, IncompleteImage, StoreDamaged, StoreError, StoreFull
from minibox_store.image_map import ImageMap
from minibox_store.layout import Layout
from minibox_store.layout.inventory import Inventory
from minibox_store.layout.mending import find_lost_names, find_nameless, mend_index
from minibox_store.layout.paths import relative_path
from minibox_store.layout.setting_aside import has_content, set_aside
from minibox_store.layout.transaction import Transaction
from minibox_store.media_types import is_document
from minibox_store.protocols import BlobSource
from minibox_store.reports import Finding, MendedBlob, RepairReport, UnmendedBlob

OpenOrigin = Callable[[str], AbstractContextManager[BlobSource]]


@attrs.frozen(kw_only=True)
class _Damage:
    """A blob that is wrong, and all that is said of it by whoever needs it; no descriptor where nobody does."""

    finding: Finding
    descriptor: Descriptor | None


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
    index_repair = None
    try:
        layout.read_index()
    except StoreDamaged:
        index_repair = mend_index(layout)
    mended: list[MendedBlob] = []
    unmended: list[UnmendedBlob] = []
    todo = list(_find_damage(layout, None, (), parallel, on_event, cancellation))
    if todo:
        with layout.open_writer(verify_content=True) as writer:
            mender = _Mender(layout, writer, open_origin, tuple(sources), on_event, cancellation)
            while todo:
                cancellation.check()
                damage = todo.pop(0)
                outcome = mender.mend(damage)
                if isinstance(outcome, UnmendedBlob):
                    unmended.append(outcome)
                    continue
                mended.append(outcome)
                if damage.descriptor is not None and is_document(damage.descriptor.media_type):
                    names = damage.finding.names
                    todo.extend(_find_damage(layout, damage.descriptor, names, parallel, on_event, cancellation))
    nameless: tuple[Descriptor, ...] = ()
    with suppress(IncompleteImage, StoreDamaged):  # a document is wrong still: nobody knows what it reaches
        nameless = find_nameless(layout)
    return RepairReport(
        index=index_repair,
        mended=tuple(mended),
        unmended=tuple(unmended),
        lost_names=find_lost_names(layout),
        nameless=nameless,
    )


def _find_damage(
    layout: Layout,
    root: Descriptor | None,
    names: tuple[str, ...],
    parallel: int,
    on_event: EventListener,
    cancellation: Cancellation,
) -> Iterator[_Damage]:
    """Yield what is wrong in the whole store, or below one document that was just mended and that ``names`` need."""
    inventory = Inventory(layout)
    images = ImageMap(limits=layout.limits)
    found = list(
        check_images(
            inventory,
            inventory.roots if root is None else (root,),
            images,
            path_of=relative_path,
            parallel=parallel,
            on_event=on_event,
            cancellation=cancellation,
        )
    )
    if root is None:
        found.extend(inventory.findings(images))
        found = list(inventory.confirmed(found, images))
    for finding in found:
        if finding.is_damage:
            needs = () if finding.digest is None else tuple(images.needs_of(finding.digest))
            named = finding if root is None else attrs.evolve(finding, names=names)
            yield _Damage(finding=named, descriptor=needs[0].path[-1] if needs else None)


class _Mender:
    """Mends one blob after the other, in one transaction, from wherever it is to be had."""

    def __init__(
        self,
        layout: Layout,
        writer: Transaction,
        open_origin: OpenOrigin,
        sources: tuple[BlobSource, ...],
        on_event: EventListener,
        cancellation: Cancellation,
    ) -> None:
        self._layout = layout
        self._writer = writer
        self._open_origin = open_origin
        self._sources = sources
        self._on_event = on_event
        self._cancellation = cancellation
        self._origins = layout.origins.read()

    def mend(self, damage: _Damage) -> MendedBlob | UnmendedBlob:
        """Put the right bytes in place of a wrong blob; where nobody has them, set the wrong one aside.

        Raises:
            Cancelled, StoreFull: which another source would not help against.
        """
        finding = damage.finding
        if finding.digest is not None and has_content(self._layout, finding.digest):
            problem = "its bytes are those that its digest names: to fetch it again would give no others"
            return UnmendedBlob(finding=finding, kept_aside=None, problems=(problem,))
        # What is there now, before anybody is asked: what another process puts there meanwhile is left alone.
        seen = _signatures.signature(os.path.join(self._layout.paths.root, finding.path))
        problems: list[str] = []
        if damage.descriptor is None:
            problems.append("no image needs it")
        else:
            origin = self._fetch(damage.descriptor, problems)
            if origin is not None:
                return MendedBlob(finding=finding, origin=origin)
        aside = None if finding.digest is None else set_aside(self._layout, finding.digest, seen)
        return UnmendedBlob(finding=finding, kept_aside=aside, problems=tuple(problems))

    def _fetch(self, descriptor: Descriptor, problems: list[str]) -> str | None:
        """Return where the blob was fetched from; None, and why in ``problems``, where it was to be had nowhere."""
        for position, source in enumerate(self._sources, 1):
            if self._fetch_from(source, descriptor, f"source {position}", problems):
                return f"source {position}"
        for origin in self._origins.get(str(descriptor.digest), ()):
            try:
                with self._open_origin(origin) as repository, self._cancellation.interrupting(repository):
                    if self._fetch_from(repository, descriptor, origin, problems):
                        return origin
            except (Cancelled, StoreFull):
                raise
            except StoreError as error:
                problems.append(f"{origin}: {error}")
        if not problems:
            problems.append("nobody has noted where it came from")
        return None

    def _fetch_from(self, source: BlobSource, descriptor: Descriptor, origin: str, problems: list[str]) -> bool:
        node = Node(descriptor=descriptor, role="layer", position=1, total=1)
        observed = ObservedSource(
            source, node, self._on_event, lambda: self._cancellation.is_cancelled, self._cancellation
        )
        try:
            self._writer.write_blob(descriptor, observed)
        except (Cancelled, StoreFull):
            raise
        except StoreError as error:
            self._cancellation.check()
            problems.append(f"{origin}: {error}")
            return False
        return True
