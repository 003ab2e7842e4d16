"""What a program lets into its store, as a value that is made once; its rules are those of ``offers``."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from minibox_store.errors import InvalidArgument, InvalidReference
from minibox_store.kinds import check_count, check_switches, each_of
from minibox_store.reference import Reference
from minibox_store.sentences import without_user
from minibox_store.values import Value

if TYPE_CHECKING:
    from minibox_store.offers import OfferedImage


def _kept(places: Sequence[str] | None) -> Sequence[str] | None:
    """Return what nobody can change any more."""
    return None if places is None else each_of("allow_registries", places, str)


@attrs.frozen(kw_only=True, repr=False)
class Policy(Value):
    """Which images may come in. All of what it says must hold; it may serve any number of threads.

    Attributes:
        allow_registries: the hosts (``quay.io``, ``localhost:5000``), or parts of them (``docker.io/library``), that a
            reference may name, by whole segments; None is any, and an empty sequence none. Mirrors do not count: it
            is asked of the reference, before anything is sent.
        max_image_bytes: how large all that an image reaches may be, each blob once, as it is transferred.
        max_layers: how many layers a manifest may have.
        require_digest: whether a reference must have a digest. A tag beside it says nothing.
        verify: called, in the thread that pulls, when all else holds. It lets in by returning ``None`` or ``True``,
            and refuses by anything else that it returns or raises.

    Raises:
        InvalidArgument: on construction, for what is no host or part of one, a negative bound, and whatever else is
            none of these.
    """

    allow_registries: Sequence[str] | None = attrs.field(default=None, converter=_kept)
    max_image_bytes: int | None = None
    max_layers: int | None = None
    require_digest: bool = False
    verify: "Callable[[OfferedImage], object] | None" = None

    def __attrs_post_init__(self) -> None:
        for place in self.allow_registries or ():
            split_place(place)
        for name in ("max_image_bytes", "max_layers"):
            bound = getattr(self, name)
            if bound is not None:
                check_count(name, bound, "it is less than nothing", least=0)
        check_switches(require_digest=self.require_digest)
        if self.verify is not None and not callable(self.verify):
            raise InvalidArgument("verify", self.verify, "it is nothing that can be called with an image")


def split_place(place: str) -> tuple[str, str]:
    """Return the host and the path of a place that references may be allowed to name.

    Raises:
        InvalidArgument: when none can.
    """
    host, slash, path = place.partition("/")
    try:
        # What is allowed is what some reference can name, in the spelling that it has there.
        Reference(domain=host, repository=f"{path}/any" if slash else "any/any", tag="any")
    except InvalidReference as error:
        raise InvalidArgument("allow_registries", without_user(place), error.problem) from None
    return host.lower(), path
