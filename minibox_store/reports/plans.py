"""What a pull would do, as values: which manifests and why, what is there already, and what the rest would cost."""

import attrs

from minibox_store.documents import Descriptor, Role
from minibox_store.platforms import Platform
from minibox_store.sentences import one_sentence
from minibox_store.values import Value

_UNIT = 1024


@attrs.frozen(kw_only=True, repr=False)
class PlannedManifest(Value):
    """A manifest that would be stored.

    Attributes:
        descriptor: of it.
        platform: what it is for; None where nothing says so.
        reason: why it was chosen, as a sentence's end.
    """

    descriptor: Descriptor
    platform: Platform | None
    reason: str


@attrs.frozen(kw_only=True, repr=False)
class PlannedBlob(Value):
    """A blob of the image that would be stored.

    Attributes:
        descriptor: of it.
        role: manifest (or index), config, or layer.
        is_present: whether the store has it, by its size.
        present_bytes: what the store has of it, what an earlier pull has left unfinished included.
        fetch_bytes: what would be fetched of it. Documents are asked for though they are present.
    """

    descriptor: Descriptor
    role: Role
    is_present: bool
    present_bytes: int
    fetch_bytes: int


@attrs.frozen(kw_only=True, repr=False)
class PullPlan(Value):
    """What a pull would do now. A registry's tag may move, and the store may change, before it does.

    Attributes:
        reference: what would be pulled.
        platforms: what was asked for, as a text; empty for all that there is.
        resolved: what the reference stands for at the registry.
        root: what its name would stand for in the store.
        is_new_index: whether ``root`` is an index that is made of some manifests of ``resolved``.
        manifests: those that would be stored, in the order of the index.
        blobs: all that would be stored, each once, children before their parents.
        fetch_bytes: what would be fetched in all, with the documents that only lead to the image.
        requests: how many it would take, apart from those for tokens, redirects, retries, and parts of large blobs.
        manifest_requests: those among them that some registries count against a limit.
    """

    reference: str
    platforms: str
    resolved: Descriptor
    root: Descriptor
    is_new_index: bool
    manifests: tuple[PlannedManifest, ...]
    blobs: tuple[PlannedBlob, ...]
    fetch_bytes: int
    requests: int
    manifest_requests: int

    @property
    def size_bytes(self) -> int:
        """All that the image reaches, each blob once."""
        return sum(blob.descriptor.size_bytes for blob in self.blobs)

    @property
    def present_bytes(self) -> int:
        """What the store has of that."""
        return sum(blob.present_bytes for blob in self.blobs)

    def __str__(self) -> str:
        lines = [f"{self.reference} for {self.platforms or 'whatever there is'}"]
        lines.append(f"  resolved: {self.resolved.digest}")
        if self.is_new_index:
            lines.append(f"  stored: {self.root.digest}, a new index of {len(self.manifests)} of its manifests")
        elif self.root.digest != self.resolved.digest:
            lines.append(f"  stored: {self.root.digest}, which that leads to")
        lines += [f"  {each.descriptor.digest}: {each.platform}, {each.reason}" for each in self.manifests]
        lines += [f"  {blob.role} {blob.descriptor.digest}: {_state(blob)}" for blob in self.blobs]
        lines.append(f"  present: {_amount(self.present_bytes)} of {_amount(self.size_bytes)}")
        requests = f"{self.requests} requests, {self.manifest_requests} of them for manifests"
        lines.append(f"  to fetch: {_amount(self.fetch_bytes)} in {requests}")
        return "\n".join(map(one_sentence, lines))


def _state(blob: PlannedBlob) -> str:
    size = _amount(blob.descriptor.size_bytes)
    if blob.is_present:
        return f"{size}, present"
    if blob.present_bytes:
        return f"{size}, unfinished with {_amount(blob.present_bytes)}"
    return f"{size}, missing"


def _amount(size_bytes: int) -> str:
    amount, unit = float(size_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < _UNIT:
            break
        amount, unit = amount / _UNIT, larger
    return f"{size_bytes} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
