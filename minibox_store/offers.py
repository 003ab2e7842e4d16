"""What would come into a store, held against a policy before the first byte of a config or layer is fetched.

Nothing that a policy asks about is taken from a registry's word for it: sizes and layers stand in documents whose bytes
were verified, and those bytes are what a hook of the program is shown.
"""

from collections.abc import Callable, Coroutine

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Manifest, Node
from minibox_store.errors import BlobNotFound, Cancelled, PolicyRefused
from minibox_store.policies import Policy, split_place
from minibox_store.reference import Reference
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class OfferedImage(Value):
    """An image that would come in, as the ``verify`` of a :class:`Policy` sees it.

    Attributes:
        name: how errors call it.
        reference: what is pulled; None where it comes from elsewhere than a registry.
        resolved: what the reference stood for at the source when it was asked, which it was once. This is what is
            usually signed. Where it is an index of which a part is taken, it is not stored itself.
        root: what would be stored: ``resolved``, a manifest that it leads to, or a new index of some of those.
        documents: every manifest and index that would be stored, children before their parents, ``root`` last.
    """

    name: str
    reference: Reference | None
    resolved: Descriptor
    root: Descriptor
    documents: tuple[Descriptor, ...]
    _read: Callable[[Descriptor], bytes] = attrs.field(eq=False, repr=False)
    _troubles: list[Exception] = attrs.field(factory=list, init=False, eq=False, repr=False)

    @property
    def content(self) -> bytes:
        """The bytes of ``root``: those that would be stored, verified by its digest."""
        return self.read(self.root)

    def read(self, document: Descriptor) -> bytes:
        """Return the bytes of ``resolved``, or of one of the ``documents``: verified, and those that would be stored.

        Raises:
            BlobNotFound: for anything else; configs and layers are not there yet.
            StoreError: what the source raises, where the documents are too many to be kept in memory. A hook that lets
                it pass ends the pull with it, and not as if the image had been refused.
        """
        if document not in (self.resolved, self.root, *self.documents):
            raise BlobNotFound(str(document.digest))
        try:
            return self._read(document)
        except Exception as error:
            self._troubles.append(error)
            raise

    def has_raised(self, error: Exception) -> bool:
        """Whether this is what the source has raised, and no error of whoever looked."""
        return any(error is each for each in self._troubles)


class SeenNodes:
    """What a policy has seen of one image so far."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.documents: list[Descriptor] = []


def check_reference(policy: Policy, reference: Reference | None, digest: Digest | None, name: str) -> None:
    """Return if what is asked for may be; ``reference`` is None where it comes from no registry.

    Raises:
        PolicyRefused: when it may not; also where there is no reference to tell from which registry an image is.
    """
    if policy.allow_registries is not None:
        if reference is None:
            raise PolicyRefused(name, "allow_registries", "it comes from no registry that could be allowed")
        if not any(_is_in(reference, *split_place(place)) for place in policy.allow_registries):
            place = f"{reference.domain}/{reference.repository}"
            raise PolicyRefused(name, "allow_registries", f"{place} is in none of the places that are allowed")
    if policy.require_digest and digest is None:
        raise PolicyRefused(name, "require_digest", "it was asked for without a digest")


def check_resolved(policy: Policy, resolved: Descriptor, digest: Digest | None, name: str) -> None:
    """Return if what a source gave is what was asked for, where that has to be known by its digest.

    Raises:
        PolicyRefused: when it is not.
    """
    if policy.require_digest and resolved.digest != digest:
        raise PolicyRefused(name, "require_digest", f"it is {resolved.digest}, where {digest} was asked for")


def check_node(policy: Policy, seen: SeenNodes, node: Node, name: str) -> None:
    """Return if one more blob of the image may be, and count it.

    Raises:
        PolicyRefused: when there are too many layers, or bytes.
    """
    seen.size_bytes += node.descriptor.size_bytes
    if policy.max_image_bytes is not None and seen.size_bytes > policy.max_image_bytes:
        raise PolicyRefused(name, "max_image_bytes", f"it is larger than {policy.max_image_bytes} bytes")
    layers = len(node.document.layers) if isinstance(node.document, Manifest) else 0
    if policy.max_layers is not None and layers > policy.max_layers:
        problem = f"{node.descriptor.digest} has {layers} layers, and {policy.max_layers} are allowed"
        raise PolicyRefused(name, "max_layers", problem)
    if node.document is not None:
        seen.documents.append(node.descriptor)


def check_offer(policy: Policy, offer: OfferedImage) -> None:
    """Return if the program's own hook lets an image in.

    Raises:
        PolicyRefused: when it does not, from the error that it raised.
        Cancelled, StoreError: when it was cancelled, or the source has failed, meanwhile.
    """
    if policy.verify is None:
        return
    try:
        answer = policy.verify(offer)
    except Exception as error:
        if isinstance(error, Cancelled) or offer.has_raised(error):
            raise
        raise PolicyRefused(offer.name, "verify", str(error) or type(error).__name__) from error
    if answer is not None and answer is not True:
        if isinstance(answer, Coroutine):
            answer.close()  # it was never begun
        raise PolicyRefused(offer.name, "verify", "it was not verified")


def _is_in(reference: Reference, host: str, path: str) -> bool:
    """Whether a reference lies in a place: the very host, and the path by whole segments."""
    if reference.domain.lower() != host:
        return False
    return not path or f"{reference.repository}/".startswith(f"{path}/")
