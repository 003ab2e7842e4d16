"""What progress is made of: small values, and the one place that turns them into lines.

Text from outside (a registry, an archive, a parameter) never breaks a line.
"""

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Role
from minibox_store.errors import one_line
from minibox_store.platforms import Platform
from minibox_store.rate_limits import RateLimit


@attrs.frozen(kw_only=True)
class ResolvingName:
    """A name is about to be resolved to a digest."""

    name: str


@attrs.frozen(kw_only=True)
class ChoosingPlatform:
    """The name is an index; the manifest for ``platform`` is being chosen from it."""

    name: str
    platform: Platform


@attrs.frozen(kw_only=True)
class ManifestChosen:
    """The one manifest, or whole index, that is copied."""

    descriptor: Descriptor


@attrs.frozen(kw_only=True)
class BlobStarted:
    """The bytes of a blob begin to move, at ``offset_bytes`` where an earlier attempt had left off."""

    descriptor: Descriptor
    role: Role
    position: int
    total: int
    offset_bytes: int


@attrs.frozen(kw_only=True)
class BlobAdvanced:
    """``done_bytes`` of a blob of ``size_bytes`` have arrived; they are not verified yet."""

    digest: Digest
    done_bytes: int
    size_bytes: int


@attrs.frozen(kw_only=True)
class BlobPresent:
    """The target has the blob already; no byte of it moved."""

    descriptor: Descriptor
    role: Role
    position: int
    total: int


@attrs.frozen(kw_only=True)
class BlobStored:
    """The target holds the leaf whole and verified, and keeps it as long as the copy's writer is open."""

    descriptor: Descriptor
    role: Role
    position: int
    total: int


@attrs.frozen(kw_only=True)
class UnpackingLayer:
    """A layer begins to be unpacked; ``position`` counts from 1."""

    position: int
    total: int
    descriptor: Descriptor


@attrs.frozen(kw_only=True)
class NothingToUnpack:
    """What is pulled has no root filesystem: an artifact, or a whole index. It is registered, and no tree is made."""

    name: str


@attrs.frozen(kw_only=True)
class RegisteringName:
    """The whole graph is at the target; the name is being written."""

    name: str


@attrs.frozen(kw_only=True)
class ImageCopied:
    """The copy is committed."""

    name: str


@attrs.frozen(kw_only=True)
class ImagePresent:
    """The store has what a pull asks for; nothing of it moved, and the name stays as it is."""

    name: str
    descriptor: Descriptor


@attrs.frozen(kw_only=True)
class RateLimitSeen:
    """The registry at ``host`` said how much it grants, and not what it said last; the time that is left aside."""

    host: str
    rate_limit: RateLimit


@attrs.frozen(kw_only=True)
class RegistryWarning:
    """The registry at ``host`` has a warning for the user, told once; the text is its own, and not trusted."""

    host: str
    text: str


Event = (
    ResolvingName
    | ChoosingPlatform
    | ManifestChosen
    | BlobStarted
    | BlobAdvanced
    | BlobPresent
    | BlobStored
    | UnpackingLayer
    | NothingToUnpack
    | RegisteringName
    | ImageCopied
    | ImagePresent
    | RateLimitSeen
    | RegistryWarning
)


def render_line(event: Event) -> str | None:
    """Return the line (no newline) that the daemon's pull prints for ``event``, None where it prints none."""
    text = _text(event)
    return None if text is None else "[pull] " + one_line(text)


def _text(event: Event) -> str | None:
    match event:
        case ResolvingName(name=name):
            return f"fetching {name} manifest..."
        case ChoosingPlatform(name=name, platform=platform):
            variant = f"/{platform.variant}" if platform.variant else ""
            return f"{name} is a manifest list, resolving {platform.architecture}/{platform.os}{variant}..."
        case ManifestChosen(descriptor=descriptor):
            return f"manifest: {descriptor.digest.hex[:12]}"
        case BlobStarted() | BlobPresent():
            return _blob_text(event)
        case UnpackingLayer(position=position, total=total):
            return f"extracting layer {position}/{total}..."
        case NothingToUnpack(name=name):
            return f"{name} has no root filesystem, nothing is unpacked"
        case RegisteringName(name=name):
            return f"registering {name} in index.json..."
        case ImageCopied(name=name):
            return f"successfully pulled {name}"
        case ImagePresent(name=name):
            return f"{name} is already here"
        case RegistryWarning(host=host, text=text):
            return f"warning from {host}: {text}"
    return None


def _blob_text(event: BlobStarted | BlobPresent) -> str | None:
    short = event.descriptor.digest.hex[:12]
    place = f" {event.position}/{event.total}" if event.total > 1 or event.role == "layer" else ""
    if isinstance(event, BlobPresent):
        return f"{event.role}{place} ({short}) is already here"
    if event.role == "layer":
        return f"pulling layer{place} ({short})..."
    return f"pulling {event.role}{place} {short}..."
