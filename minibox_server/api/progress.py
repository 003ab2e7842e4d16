"""How an operation goes on, as its listeners are told: the events of the library, made into events of the API.

The steps of a blob's bytes are far too many to be told each: of each blob what was told last is replaced by what is
true now, at most every tenth of a second. ``docs/progress.md`` says what each event means.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Literal

import attrs

from minibox_server.api.feeds import MOST_LINES
from minibox_store import (
    BlobAdvanced,
    BlobPresent,
    BlobRetried,
    BlobsCounted,
    BlobStarted,
    BlobStored,
    ChoosingPlatform,
    Digest,
    Event,
    EventListener,
    ImagePresent,
    IndexMade,
    ManifestChosen,
    MirrorFailed,
    PruneAdvanced,
    RateLimitSeen,
    RegisteringName,
    RegistryWarning,
    ResolvingName,
    UnpackAdvanced,
    UnpackingLayer,
    UsingMirror,
    render_line,
)

# What is said of a key; None where nothing is to be said of it any more.
News = tuple[Hashable, Mapping[str, object] | None]
Doing = Literal["pull", "fetch", "load", "push", "save", "verify", "repair", "prune"]
Phase = Literal["started", "moving", "present", "stored", "unpacking"]
OverallPhase = Literal["waiting", "moving", "unpacking", "registering", "marking", "removing"]

WAITING = "waiting"
OVERALL = "progress"

# Before anything else it is not known whether there is an image at all, and whether it may be had.
_BEFORE_RESOLVED = (
    *(ResolvingName, ChoosingPlatform, IndexMade, UsingMirror, MirrorFailed),
    *(RateLimitSeen, RegistryWarning, BlobRetried),
)
# What is told in a form of its own.
_NO_MESSAGE = (ResolvingName, ManifestChosen, BlobStarted, BlobPresent, UnpackingLayer)

# An image has no more parts; a check, or an archive, may have any number, of which those that are done are forgotten.
_MOST_BLOBS = 4096


@attrs.define(kw_only=True)
class _Blob:
    """What is known of one blob."""

    role: str
    position: int
    total: int
    size_bytes: int
    phase: Phase
    done_bytes: int = 0
    unpacked_bytes: int = 0
    resumed_bytes: int = 0
    attempt: int = 1

    def describe(self, digest: Digest) -> Mapping[str, object]:
        return {
            "event": "blob",
            "digest": str(digest),
            "role": self.role,
            "position": self.position,
            "total": self.total,
            "phase": self.phase,
            "done_bytes": self.unpacked_bytes if self.phase == "unpacking" else self.done_bytes,
            "size_bytes": self.size_bytes,
            "resumed_bytes": self.resumed_bytes,
            "attempt": self.attempt,
        }


class Progress:
    """The state of one operation: told by the threads that work on it, asked by the loop.

    Args:
        doing: what the operation is called.
        on_news: called, from any thread, when there is something to be told: with True, at once.

    Attributes:
        is_resolved: whether it is known what the operation is about, or it does more than finding that out.
    """

    def __init__(self, doing: Doing, on_news: Callable[[bool], None]) -> None:
        self.is_resolved = False
        self._doing = doing
        self._on_news = on_news
        self._observers: list[EventListener] = []
        self._lock = threading.Lock()
        self._urgent: list[News] = []
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._messages = 0
        self._blobs: dict[Digest, _Blob] = {}
        self._changed: dict[Digest, None] = {}
        self._phase: OverallPhase = "moving"
        self._counted_bytes: int | None = None
        self._forgotten_bytes = 0
        self._unpacked: tuple[int, int] | None = None
        self._pruned: PruneAdvanced | None = None
        self._told_overall: Mapping[str, object] | None = None

    def observe(self, listener: EventListener) -> None:
        """Let ``listener`` be told each event too, from now on."""
        self._observers.append(listener)

    def close(self) -> None:
        """Tell nobody any more that there is something to be told."""
        self._on_news = lambda is_urgent: None

    def on_event(self, event: Event) -> None:
        """Take note of what the library tells. From any thread."""
        for observer in self._observers:
            observer(event)
        if isinstance(event, BlobAdvanced | UnpackAdvanced):
            with self._lock:
                self._advance(event)
            self._on_news(False)
            return
        line = self._line(event)
        with self._lock:
            if not isinstance(event, _BEFORE_RESOLVED):
                self.is_resolved = True
            self._note(event)
            if line is not None:
                self._tell_line(line, is_message=not isinstance(event, _NO_MESSAGE))
        self._on_news(True)

    def wait_behind(self, ahead: int) -> None:
        """Take note that so many others come first; 0 for none any more. From any thread."""
        with self._lock:
            self._phase = "waiting" if ahead else "moving"
            self._urgent.append((WAITING, {"event": "waiting", "ahead": ahead} if ahead else None))
            if ahead:
                self._tell_line(f"[{self._doing}] waiting: {ahead} pulls are ahead", is_message=False)
        self._on_news(True)

    def take_lines(self) -> list[str]:
        """Return the lines that were not taken yet."""
        with self._lock:
            lines = list(self._lines)
            self._lines.clear()
            return lines

    def take_urgent(self) -> list[News]:
        """Return what is to be told at once, and was not taken yet."""
        with self._lock:
            news, self._urgent = self._urgent, []
            return news

    def take_state(self) -> list[News]:
        """Return the state of each blob of which it changed since it was taken, and that of the whole."""
        with self._lock:
            news: list[News] = [
                (digest, self._blobs[digest].describe(digest)) for digest in self._changed if digest in self._blobs
            ]
            self._changed.clear()
            self._forget()
            overall = self._overall()
        if overall is not None and overall != self._told_overall:
            self._told_overall = overall
            news.append((OVERALL, overall))
        return news

    def _line(self, event: Event) -> str | None:
        if self._doing != "pull" and isinstance(event, _NO_MESSAGE):
            return None  # of a pull alone all is told as text, too
        return render_line(event, doing=self._doing)

    def _tell_line(self, line: str, *, is_message: bool) -> None:
        self._lines.append(line)
        if is_message:
            self._messages += 1
            text = line.partition("] ")[2]
            self._urgent.append((("message", self._messages), {"event": "message", "text": text}))

    def _overall(self) -> Mapping[str, object] | None:
        """Return what is true of the whole; None where there is nothing to count."""
        if self._pruned is not None:
            return _describe_prune(self._pruned)
        if self._counted_bytes is None and not self._blobs and self._phase != "waiting":
            return None
        phase, done_bytes = self._phase, self._forgotten_bytes + sum(each.done_bytes for each in self._blobs.values())
        total_bytes = self._counted_bytes
        # As long as bytes come, the unpacking keeps up with them; what is left of it then is what is waited for.
        if phase == "moving" and self._unpacked is not None and done_bytes == total_bytes:
            phase = "unpacking"
            done_bytes, total_bytes = self._unpacked
        return {"event": OVERALL, "phase": phase, "done_bytes": done_bytes, "total_bytes": total_bytes}

    def _forget(self) -> None:
        """Forget blobs that are done, where there are very many, the oldest first."""
        left_over = len(self._blobs) - _MOST_BLOBS
        if left_over > 0:
            done = [digest for digest, blob in self._blobs.items() if blob.done_bytes == blob.size_bytes]
            for digest in done[:left_over]:
                self._forgotten_bytes += self._blobs.pop(digest).done_bytes

    def _note(self, event: Event) -> None:
        match event:
            case ManifestChosen() | ImagePresent():
                told = event.descriptor
                resolved = {"name": event.name, "digest": str(told.digest), "media_type": told.media_type}
                self._urgent.append((("resolved", event.name), {"event": "resolved", **resolved}))
            case BlobsCounted():
                self._counted_bytes = event.size_bytes
            case PruneAdvanced():
                self._pruned = event
            case BlobStarted():
                known = self._blobs.get(event.descriptor.digest)
                is_again = known is not None and known.phase == "stored"  # it was left out, and is wanted after all
                blob = self._blob(event, "started")
                blob.attempt += is_again
                blob.done_bytes = blob.resumed_bytes = event.offset_bytes
            case BlobRetried():
                known = self._blobs.get(event.digest)
                if known is not None:
                    known.attempt += 1
                    self._changed[event.digest] = None
            case BlobPresent():
                self._blob(event, "present").done_bytes = event.descriptor.size_bytes
            case BlobStored():
                known = self._blobs.get(event.descriptor.digest)
                phase: Phase = "present" if known is not None and known.phase == "present" else "stored"
                self._blob(event, phase).done_bytes = event.descriptor.size_bytes
            case UnpackingLayer():
                self._change(event.descriptor.digest, "unpacking")
            case RegisteringName():
                if self._doing != "save":  # which lays all of its bytes down behind that
                    self._phase = "registering"

    def _advance(self, event: BlobAdvanced | UnpackAdvanced) -> None:
        phase: Phase = "moving" if isinstance(event, BlobAdvanced) else "unpacking"
        blob = self._change(event.digest, phase)
        if isinstance(event, UnpackAdvanced):
            self._unpacked = (event.all_done_bytes, event.all_bytes)
            if blob is not None:
                blob.unpacked_bytes = event.done_bytes
        elif blob is not None:
            blob.done_bytes = event.done_bytes

    def _change(self, digest: Digest, phase: Phase) -> _Blob | None:
        blob = self._blobs.get(digest)
        if blob is not None:
            blob.phase = phase
            self._changed[digest] = None
        return blob

    def _blob(self, event: BlobStarted | BlobPresent | BlobStored, phase: Phase) -> _Blob:
        digest = event.descriptor.digest
        blob = self._blobs.get(digest)
        if blob is None:
            blob = self._blobs[digest] = _Blob(
                role=event.role,
                position=event.position,
                total=event.total,
                size_bytes=event.descriptor.size_bytes,
                phase=phase,
            )
        blob.phase = phase
        self._changed[digest] = None
        return blob


def _describe_prune(event: PruneAdvanced) -> Mapping[str, object]:
    phase: OverallPhase = event.phase
    return {
        "event": OVERALL,
        "phase": phase,
        "done_bytes": event.done_bytes,
        # Before all is marked nobody knows what will go.
        "total_bytes": None if phase == "marking" else event.total_bytes,
        "done_count": event.done_count,
        "total_count": event.total_count,
    }
