"""What comes in, before it comes: which part of an image, and whether the program's policy lets it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs

from minibox_store import media_types
from minibox_store.copying import EventListener
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Referrer
from minibox_store.errors import InvalidReference
from minibox_store.events import ChoosingPlatform, IndexMade, ManifestChosen
from minibox_store.graph import RememberingSource, walk
from minibox_store.kinds import check_kind
from minibox_store.limits import Limits
from minibox_store.platforms import Platform, WantedPlatforms
from minibox_store.policies import Policy
from minibox_store.reference import Reference
from minibox_store.values import Value

if TYPE_CHECKING:
    from minibox_store.selecting import ChosenImage


@attrs.frozen(kw_only=True, repr=False)
class Wish(Value):
    """What is asked for.

    Attributes:
        name: how errors and events call it.
        platforms: those that are wanted.
        policy: what must hold of what comes in; None asks nothing.
        reference: what is pulled; None where it comes from no registry.
        digest: what it has to have, if that was said.
    """

    name: str
    platforms: WantedPlatforms
    policy: Policy | None = None
    reference: Reference | None = None
    digest: Digest | None = None

    def check(self) -> None:
        """Return if this may be asked for: before anything is.

        Raises:
            PolicyRefused: when it may not.
            InvalidArgument: when the policy is none.
        """
        if self.policy is not None:
            check_kind("checked_by", self.policy, Policy)
            from minibox_store.offers import check_reference

            check_reference(self.policy, self.reference, self.digest, self.name)


def digest_in(name: str) -> Digest | None:
    """Return the digest that a name has, if it is a reference with one."""
    try:
        return Reference.parse(name).digest
    except InvalidReference:
        return None


def choose_incoming(
    source: RememberingSource, root: Descriptor, wish: Wish, *, limits: Limits, on_event: EventListener
) -> "ChosenImage":
    """Return what of an image will come in, tell how it was chosen, and see that it may.

    The policy is asked before a config is read, but for those by which the platforms of an index's entries become known
    where it does not name them.

    Raises:
        PolicyRefused: when the policy does not let it in.
        StoreError: as :func:`select_image`.
    """
    from minibox_store.selecting import select_image

    if media_types.is_index(root.media_type):
        for platform in _named(wish.platforms):
            on_event(ChoosingPlatform(name=wish.name, platform=platform))
    is_single = media_types.is_manifest(root.media_type)
    if is_single:  # whatever its config will say, it is this one or none
        check_policy(source, root, root, wish, limits)
    chosen = select_image(source, root, wish.platforms, wish.name, limits)
    if not is_single:
        check_policy(source, root, chosen.root, wish, limits)
    tell_made(chosen, on_event)
    on_event(ManifestChosen(name=wish.name, descriptor=chosen.root))
    return chosen


def tell_made(chosen: "ChosenImage", on_event: EventListener) -> None:
    """Tell of the index that was made of what was chosen, if one was."""
    if chosen.made_from is not None:
        platforms = tuple(each.descriptor.platform for each in chosen.manifests if each.descriptor.platform is not None)
        on_event(IndexMade(original=chosen.made_from, descriptor=chosen.root, platforms=platforms))


def check_policy(
    source: RememberingSource,
    resolved: Descriptor,
    root: Descriptor,
    wish: Wish,
    limits: Limits,
    *,
    walked: dict[Descriptor, tuple[Descriptor, ...]] | None = None,
) -> None:
    """Return if the policy, where there is one, lets in what lies at ``root``; its documents are read for that.

    Args:
        source: where they are.
        resolved: what was asked for.
        root: what of it would be stored.
        wish: what is asked for, and the policy.
        limits: how deep and how large the graph may be.
        walked: the documents of each root whose blobs this policy has let in, under whatever name; what is walked now
            is added.

    Raises:
        PolicyRefused: when it does not.
        StoreError: as :func:`walk`.
    """
    policy = wish.policy
    if policy is None:
        return
    from minibox_store.offers import OfferedImage, SeenNodes, check_node, check_offer, check_resolved

    walked = {} if walked is None else walked
    check_resolved(policy, resolved, wish.digest, wish.name)
    if root not in walked:
        seen = SeenNodes()
        for node in walk(source, root, limits=limits):
            check_node(policy, seen, node, wish.name)
        walked[root] = tuple(seen.documents)
    offer = OfferedImage(
        name=wish.name,
        reference=wish.reference,
        resolved=resolved,
        root=root,
        documents=walked[root],
        read=source.read,
    )
    check_offer(policy, offer)


def check_referrers(source: RememberingSource, referrers: Iterable[Referrer], wish: Wish, limits: Limits) -> None:
    """Return if what comes along with an image may: its bounds hold for all of that together, as for one more image.

    Raises:
        PolicyRefused: when it may not.
        StoreError: as :func:`walk`.
    """
    policy = wish.policy
    if policy is None:
        return
    from minibox_store.offers import SeenNodes, check_node

    seen = SeenNodes()
    for referrer in referrers:
        for node in walk(source, referrer.descriptor, limits=limits):
            check_node(policy, seen, node, f"{referrer.descriptor.digest}, which refers to {wish.name}")


def _named(wanted: WantedPlatforms) -> tuple[Platform, ...]:
    if wanted is None or wanted == "all":
        return ()
    return (wanted,) if isinstance(wanted, Platform) else wanted
