"""How old the files of a store are, and which are so young that another tool may be about to name them.

A file is as old as the last change of its content or of its links: one that was renamed into its place has come then.
A clock that went back makes nothing younger than now.
"""

import os
import time

import attrs

from minibox_store.reports.removals import Removal
from minibox_store.values import Value


def age_seconds(status: os.stat_result, now_seconds: float | None = None) -> float:
    """Return how long ago a file changed, at a time in seconds since 1970, or now."""
    now_seconds = time.time() if now_seconds is None else now_seconds
    changed, written = status.st_ctime, status.st_mtime
    age = now_seconds - (changed if changed > written else written)
    return age if age > 0 else 0.0


@attrs.frozen(repr=False)
class Youth(Value):
    """Which blobs are younger than what is to stay.

    What a collection itself does to a blob, in taking the link of a dead transaction away, makes it no younger.

    Args:
        root: of the store.
        keep_newer_than_seconds: what is younger than that stays.
    """

    root: str
    keep_newer_than_seconds: float
    _looked_at: dict[str, tuple[int, int]] = attrs.field(factory=dict, init=False)

    def note(self, path: str, status: os.stat_result) -> None:
        """Remember what a blob was when its age was taken."""
        if self.keep_newer_than_seconds > 0:
            self._looked_at[path] = _content_of(status)

    def reason_to_keep(self, removal: Removal) -> str | None:
        """Return why a blob stays: it was young when it was looked at, or another tool has written it since."""
        if self.keep_newer_than_seconds <= 0:
            return None
        try:
            status = os.lstat(f"{self.root}/{removal.path}")
        except FileNotFoundError:
            return None
        age = removal.age_seconds
        if age is None or self._looked_at.get(removal.path) != _content_of(status):
            age = age_seconds(status)
        return f"{removal.path}: it was written {age:.0f} s ago" if age < self.keep_newer_than_seconds else None


def _content_of(status: os.stat_result) -> tuple[int, int]:
    """Return what tells that a file is the same one, and was not written since; its links are another matter."""
    return status.st_ino, status.st_mtime_ns
