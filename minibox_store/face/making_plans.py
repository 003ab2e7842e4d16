"""How a plan is made: the pull's own choice and walk over the registry's documents, and a look at the store's files.

What a pull asks for it asks for here in the same way, so that the two cannot differ in what that costs.
"""

from collections.abc import Iterable, Iterator

from minibox_store import _signatures, media_types
from minibox_store.copying import EventListener
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Manifest, Node
from minibox_store.face.admitting import Wish, choose_incoming
from minibox_store.forwarding import ForwardingSource
from minibox_store.graph import RememberingSource, walk
from minibox_store.layout import Layout
from minibox_store.platforms import Platform, describe_choice
from minibox_store.protocols import BlobSource, BlobStream
from minibox_store.reports.plans import PlannedBlob, PlannedManifest, PullPlan
from minibox_store.selecting import ChosenImage


def plan_copy(
    layout: Layout, source: BlobSource, resolved: Descriptor, wish: Wish, *, on_event: EventListener
) -> PullPlan:
    """Return what it would take to copy an image from a registry's repository into a store.

    Args:
        layout: the store.
        source: the repository.
        resolved: what its reference stands for, which was asked for and is at hand.
        wish: what of it is wanted.
        on_event: told how it was chosen.

    Raises:
        StoreError: as :func:`choose_incoming`, and what the source raises.
    """
    asked = _AskedSource(source, resolved)
    remembering = RememberingSource(asked, layout.limits)
    chosen = choose_incoming(remembering, resolved, wish, limits=layout.limits, on_event=on_event)
    made = None if chosen.made_from is None else chosen.root.digest
    blobs: dict[Digest, PlannedBlob] = {}
    walked: list[Descriptor] = []
    for node in walk(remembering, chosen.root, limits=layout.limits):  # whose documents are not all kept
        digest = node.descriptor.digest
        if digest not in blobs:  # of a blob that is described in two ways, the one that comes first
            blobs[digest] = _plan_blob(layout, node, asked, is_made=digest == made)
        if isinstance(node.document, Manifest):
            walked.append(node.descriptor)
    missing = [blob for digest, blob in blobs.items() if digest not in asked.digests and _is_asked_for(blob)]
    return PullPlan(
        reference=wish.name,
        platforms=describe_choice(wish.platforms),
        resolved=resolved,
        root=chosen.root,
        is_new_index=made is not None,
        manifests=tuple(_plan_manifests(chosen, walked)),
        blobs=tuple(blobs.values()),
        fetch_bytes=asked.size_bytes + sum(blob.fetch_bytes for blob in missing),
        requests=asked.requests + len(missing),
        manifest_requests=asked.manifest_requests,
    )


class _AskedSource(ForwardingSource):
    """A source that keeps in mind what it was asked for: what the reference stands for, to begin with."""

    def __init__(self, source: BlobSource, resolved: Descriptor) -> None:
        super().__init__(source)
        self.digests = {resolved.digest}
        self.requests = self.manifest_requests = 1
        self.size_bytes = resolved.size_bytes
        self._resolved = resolved.digest

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        if descriptor.digest != self._resolved:
            self.digests.add(descriptor.digest)
            self.requests += 1
            self.manifest_requests += media_types.is_document(descriptor.media_type)
            self.size_bytes += descriptor.size_bytes
        return super().open_blob(descriptor, offset)


def _plan_blob(layout: Layout, node: Node, asked: _AskedSource, *, is_made: bool) -> PlannedBlob:
    descriptor = node.descriptor
    size_bytes = descriptor.size_bytes
    is_present = layout.blob_size(descriptor.digest) == size_bytes
    unfinished_bytes = _signatures.regular_size(layout.paths.partial(descriptor.digest)) or 0
    if unfinished_bytes > size_bytes:
        unfinished_bytes = 0  # on its way to something else: a pull leaves it alone
    present_bytes = size_bytes if is_present else unfinished_bytes
    is_read = media_types.is_document(descriptor.media_type) or descriptor.digest in asked.digests
    return PlannedBlob(
        descriptor=descriptor,
        role=node.role,
        is_present=is_present,
        present_bytes=present_bytes,
        fetch_bytes=0 if is_made else size_bytes if is_read else size_bytes - present_bytes,
    )


def _is_asked_for(blob: PlannedBlob) -> bool:
    """Whether a request is made for what was not read for the plan: also for a layer of no bytes that is not there."""
    return not blob.is_present and (blob.fetch_bytes > 0 or blob.descriptor.size_bytes == 0)


def _plan_manifests(chosen: ChosenImage, walked: Iterable[Descriptor]) -> Iterator[PlannedManifest]:
    if not chosen.manifests:
        for each in walked:
            yield PlannedManifest(descriptor=each, platform=each.platform, reason="all that there is is wanted")
    for manifest in chosen.manifests:
        descriptor = manifest.descriptor
        reason = _reason(descriptor.platform, manifest.wanted)
        yield PlannedManifest(descriptor=descriptor, platform=descriptor.platform, reason=reason)


def _reason(platform: Platform | None, wanted: tuple[Platform, ...]) -> str:
    if platform is None:
        return "nothing says what it is for, and nothing else is there"
    if not wanted:
        return "all platforms are wanted"
    reasons = []
    for each in wanted:
        is_same = each.normalised() == platform.normalised()
        reasons.append(f"{each} is wanted" if is_same else f"it is the best on offer for {each}")
    return "; ".join(reasons)
