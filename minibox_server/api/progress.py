"""How an operation goes on, as its listeners are told: the events of the library, made into events of the API.

The steps of a blob's bytes are far too many to be told each: of each blob what was told last is replaced by what is
true now, at most every tenth of a second.
"""

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Literal

import attrs

from minibox_store import (
    BlobAdvanced,
    BlobPresent,
    BlobStarted,
    BlobStored,
    ChoosingPlatform,
    Digest,
    Event,
    ImageCopied,
    ImagePresent,
    IndexMade,
    ManifestChosen,
    MirrorFailed,
    RateLimitSeen,
    RegisteringName,
    RegistryWarning,
    ResolvingName,
    UnpackingLayer,
    UsingMirror,
    render_line,
)

News = tuple[Hashable, Mapping[str, object]]
Phase = Literal["started", "moving", "present", "stored", "unpacking"]

# Before anything else it is not known whether there is an image at all, and whether it may be had.
_BEFORE_RESOLVED = (
    *(ResolvingName, ChoosingPlatform, IndexMade, UsingMirror, MirrorFailed),
    *(RateLimitSeen, RegistryWarning),
)
# What is told in a form of its own.
_NO_MESSAGE = (ResolvingName, ManifestChosen, BlobStarted, BlobPresent, UnpackingLayer)


@attrs.define(kw_only=True)
class _Blob:
    """What is known of one blob."""

    role: str
    position: int
    total: int
    size_bytes: int
    phase: Phase
    done_bytes: int = 0
    resumed_bytes: int = 0
    attempt: int = 1

    def describe(self, digest: Digest) -> Mapping[str, object]:
        return {"event": "blob", "digest": str(digest), **attrs.asdict(self)}


class Progress:
    """The state of one operation: told by the threads that work on it, asked by the loop.

    Args:
        doing: what the operation is called.
        on_news: called, from any thread, when there is something to be told: with True, at once.

    Attributes:
        is_resolved: whether it is known what the operation is about, or it does more than finding that out.
    """

    def __init__(self, doing: str, on_news: Callable[[bool], None]) -> None:
        self.is_resolved = False
        self._doing: Literal["pull", "push"] = "push" if doing == "push" else "pull"
        self._on_news = on_news
        self._lock = threading.Lock()
        self._urgent: list[News] = []
        self._lines: list[str] = []
        self._messages = 0
        self._blobs: dict[Digest, _Blob] = {}
        self._changed: dict[Digest, None] = {}
        self._phase = "resolving"
        self._told_overall: Mapping[str, object] | None = None

    def on_event(self, event: Event) -> None:
        """Take note of what the library tells. From any thread."""
        line = render_line(event, doing=self._doing)
        with self._lock:
            if not isinstance(event, _BEFORE_RESOLVED):
                self.is_resolved = True
            self._note(event)
            if line is not None:
                self._lines.append(line)
                if not isinstance(event, _NO_MESSAGE):
                    self._messages += 1
                    text = line.partition("] ")[2]
                    self._urgent.append((("message", self._messages), {"event": "message", "text": text}))
            is_urgent = line is not None or bool(self._urgent)
        self._on_news(is_urgent)

    def waiting(self, ahead: int) -> None:
        """Take note that so many others come first. From any thread."""
        with self._lock:
            self._phase = "waiting"
            self._urgent.append(("waiting", {"event": "waiting", "ahead": ahead}))
            self._lines.append(f"[{self._doing}] waiting: {ahead} pulls are ahead")
        self._on_news(True)

    def take_lines(self) -> list[str]:
        """Return the lines that were not taken yet."""
        with self._lock:
            lines, self._lines = self._lines, []
            return lines

    def take_urgent(self) -> list[News]:
        """Return what is to be told at once, and was not taken yet."""
        with self._lock:
            news, self._urgent = self._urgent, []
            return news

    def take_state(self) -> list[News]:
        """Return the state of each blob of which it changed since it was taken, and that of the whole."""
        with self._lock:
            news: list[News] = [(digest, self._blobs[digest].describe(digest)) for digest in self._changed]
            self._changed.clear()
            overall = self._overall()
        if news or (self._blobs and overall != self._told_overall):
            self._told_overall = overall
            news.append(("progress", overall))
        return news

    def _overall(self) -> Mapping[str, object]:
        blobs = self._blobs.values()
        return {
            "event": "progress",
            "phase": self._phase,
            "done_bytes": sum(blob.done_bytes for blob in blobs),
            "total_bytes": sum(blob.size_bytes for blob in blobs),
        }

    def _note(self, event: Event) -> None:
        match event:
            case ManifestChosen() | ImagePresent():
                told = event.descriptor
                resolved = {"name": event.name, "digest": str(told.digest), "media_type": told.media_type}
                self._urgent.append(("resolved", {"event": "resolved", **resolved}))
            case BlobStarted():
                blob = self._blob(event, "started")
                blob.done_bytes = blob.resumed_bytes = event.offset_bytes
            case BlobPresent():
                self._blob(event, "present").done_bytes = event.descriptor.size_bytes
            case BlobStored():
                known = self._blobs.get(event.descriptor.digest)
                phase: Phase = "present" if known is not None and known.phase == "present" else "stored"
                self._blob(event, phase).done_bytes = event.descriptor.size_bytes
            case BlobAdvanced():
                self._advance(event)
            case UnpackingLayer():
                self._unpack(event)
            case RegisteringName():
                self._phase = "registering"
            case ImageCopied():
                self._phase = "done"

    def _blob(self, event: BlobStarted | BlobPresent | BlobStored, phase: Phase) -> _Blob:
        descriptor = event.descriptor
        blob = self._blobs.get(descriptor.digest)
        if blob is None:
            blob = _Blob(
                role=event.role,
                position=event.position,
                total=event.total,
                size_bytes=descriptor.size_bytes,
                phase=phase,
            )
            self._blobs[descriptor.digest] = blob
        blob.phase = phase
        self._changed[descriptor.digest] = None
        self._phase = "moving"
        return blob

    def _advance(self, event: BlobAdvanced) -> None:
        blob = self._blobs.get(event.digest)
        if blob is not None:
            blob.done_bytes = event.done_bytes
            blob.phase = "moving"
            self._changed[event.digest] = None

    def _unpack(self, event: UnpackingLayer) -> None:
        blob = self._blobs.get(event.descriptor.digest)
        if blob is not None:
            blob.phase = "unpacking"
            self._changed[event.descriptor.digest] = None
        self._phase = "unpacking"
