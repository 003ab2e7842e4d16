"""What progress is made of: small values, and the one place that turns them into lines.

Text from outside (a registry, an archive, a parameter) never breaks a line.
"""

from collections.abc import Mapping
from typing import Literal

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Referrer, Role
from minibox_store.errors import InvalidArgument
from minibox_store.platforms import Platform
from minibox_store.reports.rate_limits import RateLimit
from minibox_store.sentences import and_more, one_sentence
from minibox_store.values import Value

_SHOWN_PLATFORMS = 20
_PLATFORM_LENGTH = 100
_TYPE_LENGTH = 100

# What tells of events.
Operation = Literal["pull", "import", "fetch", "load", "push", "copy", "save", "unpack", "verify", "repair", "prune"]
# What each does with a blob, and has done with an image at its end.
_VERBS: Mapping[Operation, tuple[str, str]] = {
    "pull": ("pulling", "pulled"),
    "import": ("importing", "imported"),
    "fetch": ("fetching", "fetched"),
    "load": ("loading", "loaded"),
    "push": ("pushing", "pushed"),
    "copy": ("copying", "copied"),
    "save": ("saving", "saved"),
    "unpack": ("unpacking", "unpacked"),
    "verify": ("reading", "verified"),
    "repair": ("reading", "repaired"),
    "prune": ("removing", "pruned"),
}
_INTO_STORE = ("pull", "import", "fetch", "load")


@attrs.frozen(kw_only=True, repr=False)
class ResolvingName(Value):
    """A name is about to be resolved to a digest."""

    name: str


@attrs.frozen(kw_only=True, repr=False)
class UsingMirror(Value):
    """A mirror serves: the first answer, or the first bytes, that come from it."""

    host: str


@attrs.frozen(kw_only=True, repr=False)
class MirrorFailed(Value):
    """A mirror failed for the first time, and others are asked instead; whether they serve is not known yet."""

    host: str
    problem: str


@attrs.frozen(kw_only=True, repr=False)
class ChoosingPlatform(Value):
    """The name is an index; the manifest for ``platform`` is being chosen from it."""

    name: str
    platform: Platform


@attrs.frozen(kw_only=True, repr=False)
class IndexMade(Value):
    """``descriptor`` is a new index, of these of the manifests of ``original``; it is what will be copied."""

    original: Descriptor
    descriptor: Descriptor
    platforms: tuple[Platform, ...]


@attrs.frozen(kw_only=True, repr=False)
class ManifestChosen(Value):
    """The one manifest, or whole index, that is copied; ``name`` is what it was found by."""

    name: str
    descriptor: Descriptor


@attrs.frozen(kw_only=True, repr=False)
class ReferrerFound(Value):
    """What refers to the image, or to something that does, comes along; what it says of itself nobody has checked."""

    referrer: Referrer


@attrs.frozen(kw_only=True, repr=False)
class BlobsCounted(Value):
    """What is to be at the target, or is to be read, in the end: so many configs and layers, each counted once."""

    count: int
    size_bytes: int


@attrs.frozen(kw_only=True, repr=False)
class BlobStarted(Value):
    """The bytes of a blob begin to move, at ``offset_bytes`` where an earlier attempt had left off.

    It is the one at ``position``, which counts from 1, of ``total`` of its ``role``. While an archive is read nobody
    knows yet what a blob is for, nor how many there are: each is called a layer then, and the last one so far.
    """

    descriptor: Descriptor
    role: Role
    position: int
    total: int
    offset_bytes: int


@attrs.frozen(kw_only=True, repr=False)
class BlobRetried(Value):
    """After an attempt that failed the bytes of a blob go on at ``offset_bytes``, or where it is 0 begin anew."""

    digest: Digest
    offset_bytes: int


@attrs.frozen(kw_only=True, repr=False)
class BlobAdvanced(Value):
    """``done_bytes`` of a blob of ``size_bytes`` have arrived; they are not verified yet.

    It comes after at most 16 MiB each time, and often after much less.
    """

    digest: Digest
    done_bytes: int
    size_bytes: int


@attrs.frozen(kw_only=True, repr=False)
class BlobPresent(Value):
    """The target has the blob already; no byte of it moved."""

    descriptor: Descriptor
    role: Role
    position: int
    total: int


@attrs.frozen(kw_only=True, repr=False)
class BlobStored(Value):
    """The target holds the leaf whole and verified, and keeps it as long as the copy's writer is open."""

    descriptor: Descriptor
    role: Role
    position: int
    total: int


@attrs.frozen(kw_only=True, repr=False)
class UnpackingLayer(Value):
    """A layer begins to be unpacked; ``position`` counts from 1."""

    position: int
    total: int
    descriptor: Descriptor


@attrs.frozen(kw_only=True, repr=False)
class UnpackAdvanced(Value):
    """``done_bytes`` of a layer of ``size_bytes`` are unpacked; of all layers, ``all_done_bytes`` of ``all_bytes``.

    All are counted as they lie in the blobs, compressed; a layer that an image has twice counts twice.
    """

    digest: Digest
    done_bytes: int
    size_bytes: int
    all_done_bytes: int
    all_bytes: int


@attrs.frozen(kw_only=True, repr=False)
class PruneAdvanced(Value):
    """A prune has come so far.

    While it is ``marking``, it has read what ``done_count`` of ``total_count`` entries of index.json need; it begins
    anew where that file is changed meanwhile. While it is ``removing``, so many things, and their bytes, are gone of
    those that are known to go; their number changes as more is found, and as something turns out to be in use. A dry
    run removes none of them.
    """

    phase: Literal["marking", "removing"]
    done_count: int
    total_count: int
    done_bytes: int = 0
    total_bytes: int = 0


@attrs.frozen(kw_only=True, repr=False)
class NothingToUnpack(Value):
    """What is pulled has no root filesystem: an artifact, or a whole index. It is registered, and no tree is made."""

    name: str


@attrs.frozen(kw_only=True, repr=False)
class RegisteringName(Value):
    """The whole graph is at the target; the name is being written."""

    name: str


@attrs.frozen(kw_only=True, repr=False)
class ImageCopied(Value):
    """The copy is committed."""

    name: str


@attrs.frozen(kw_only=True, repr=False)
class ImagePresent(Value):
    """The store has what a pull asks for; nothing of it moved, and the name stays as it is."""

    name: str
    descriptor: Descriptor


@attrs.frozen(kw_only=True, repr=False)
class RateLimitSeen(Value):
    """The registry at ``host`` said how much it grants, and not what it said last; the time that is left aside."""

    host: str
    rate_limit: RateLimit


@attrs.frozen(kw_only=True, repr=False)
class RegistryWarning(Value):
    """The registry at ``host`` has a warning for the user, told once; the text is its own, and not trusted."""

    host: str
    text: str


Event = (
    ResolvingName
    | ChoosingPlatform
    | IndexMade
    | ManifestChosen
    | ReferrerFound
    | BlobsCounted
    | BlobStarted
    | BlobRetried
    | BlobAdvanced
    | BlobPresent
    | BlobStored
    | UnpackingLayer
    | UnpackAdvanced
    | PruneAdvanced
    | UsingMirror
    | MirrorFailed
    | NothingToUnpack
    | RegisteringName
    | ImageCopied
    | ImagePresent
    | RateLimitSeen
    | RegistryWarning
)


def render_line(event: Event, *, doing: Operation = "pull") -> str | None:
    """Return the line (no newline) for ``event``, as the daemon's pull prints it; None where it prints none.

    Args:
        event: what is told of, which does not say itself what it is a part of.
        doing: what is done: the word that stands in brackets before the line, and whose words the line has. A copy
            between registries is a ``"copy"``.

    Raises:
        InvalidArgument: when ``doing`` is no operation that tells of events.
    """
    verbs = _VERBS.get(doing) if isinstance(doing, str) else None
    if verbs is None:
        raise InvalidArgument("doing", doing, "there are " + ", ".join(_VERBS))
    text = _text(event, *verbs, is_into_store=doing in _INTO_STORE)
    return None if text is None else one_sentence(f"[{doing}] {text}")


def _text(event: Event, moving: str, moved: str, *, is_into_store: bool) -> str | None:
    match event:
        case ResolvingName(name=name):
            return f"fetching {name} manifest..."
        case UsingMirror(host=host):
            return f"using mirror {host}..."
        case MirrorFailed(host=host, problem=problem):
            return f"mirror {host} failed, others are asked: {problem}"
        case ChoosingPlatform(name=name, platform=platform):
            variant = f"/{platform.variant}" if platform.variant else ""
            return f"{name} is a manifest list, resolving {platform.architecture}/{platform.os}{variant}..."
        case IndexMade(original=original, descriptor=descriptor, platforms=platforms):
            shown = ", ".join(str(each)[:_PLATFORM_LENGTH] for each in platforms[:_SHOWN_PLATFORMS])
            shown += and_more(platforms, _SHOWN_PLATFORMS)
            return f"new index {descriptor.digest.hex[:12]} of {original.digest.hex[:12]} for {shown}"
        case ManifestChosen(descriptor=descriptor):
            return f"manifest: {descriptor.digest.hex[:12]}"
        case ReferrerFound(referrer=referrer):
            kind = (referrer.artifact_type or "unknown")[:_TYPE_LENGTH]
            return f"referrer: {referrer.descriptor.digest.hex[:12]} ({kind})"
        case BlobStarted(role=role):
            place, short = _place_and_digest(event)
            return f"{moving} {role}{place} " + (f"({short})..." if role == "layer" else f"{short}...")
        case BlobPresent(role=role):
            place, short = _place_and_digest(event)
            return f"{role}{place} ({short}) is already " + ("here" if is_into_store else "there")
        case UnpackingLayer(position=position, total=total):
            return f"extracting layer {position}/{total}..."
        case NothingToUnpack(name=name):
            return f"{name} has no root filesystem, nothing is unpacked"
        case RegisteringName(name=name):
            return f"registering {name} in index.json..." if is_into_store else f"writing {name}..."
        case ImageCopied(name=name):
            return f"successfully {moved} {name}"
        case ImagePresent(name=name):
            return f"{name} is already here"
        case RegistryWarning(host=host, text=text):
            return f"warning from {host}: {text}"
    return None


def _place_and_digest(event: BlobStarted | BlobPresent) -> tuple[str, str]:
    place = f" {event.position}/{event.total}" if event.total > 1 or event.role == "layer" else ""
    return place, event.descriptor.digest.hex[:12]
