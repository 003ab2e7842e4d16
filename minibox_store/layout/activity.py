"""When each name was last written in a store, and when it was last used.

A pull, a load, a tag and an undo write a name, also where it stands for what it stood for before. They use it as well,
and so does a save, or any other reading of the whole image. What is not known is taken for young: a name without a
record, which another tool wrote, is as old as index.json, and so is one whose record says that it stood for another
image. A clock may go back: what was noted last counts, and not what has the latest time.
"""

import os
import time
from collections.abc import Collection, Container
from contextlib import suppress

import attrs

from minibox_store.documents import LayoutIndex
from minibox_store.layout.journal import Journal
from minibox_store.layout_index import names_of
from minibox_store.limits import MEBIBYTE
from minibox_store.values import Value

_WRITTEN, _USED = "written", "used"
_USE_SECONDS = 3600.0
_ROOM_BYTES = MEBIBYTE
_NAME_BYTES = 200
_LATEST_SECONDS = 1e12  # what is no number, or no time that anybody sees, was never noted


@attrs.frozen(kw_only=True, repr=False)
class NameTimes(Value):
    """When a name was last written, and last used, in seconds since 1970; it was not used before it was written."""

    written_seconds: float
    used_seconds: float


@attrs.frozen(repr=False)
class Activity(Value):
    """What is known of the names of one store.

    Args:
        journal: where it is kept.
        index_path: of index.json.
    """

    journal: Journal
    index_path: str

    def note_written(self, names: Collection[str], index: LayoutIndex) -> None:
        """Remember that these names of an index are being written now, before they are: under the store lock."""
        if not names:
            return
        now = _text_of(time.time())
        self.journal.make_way()
        self.journal.append(
            (_WRITTEN, now, str(descriptor.digest), name) for name, descriptor in names_of(index) if name in names
        )

    def note_used(self, *names: str) -> None:
        """Remember that images are used now, but for those that were noted in the last hour; or if it cannot be.

        In the store of another user nothing is written: root, who could, would leave what its owner cannot add to.
        """
        with suppress(OSError):
            if os.stat(os.path.dirname(self.index_path)).st_uid != os.geteuid():
                return
            known = self._read()
            now = time.time()
            stale = [name for name in names if not 0 <= now - known.get(name, _Record()).used_seconds < _USE_SECONDS]
            if stale:
                self.journal.append((_USED, _text_of(now), name) for name in stale)

    def times(self, index: LayoutIndex) -> dict[str, NameTimes]:
        """Return what is known of each name of an index."""
        known = self._read()
        found = {}
        index_seconds = None
        for name, descriptor in names_of(index):
            record = known.get(name, _Record())
            written_seconds = record.written_seconds
            if record.digest != str(descriptor.digest):
                if index_seconds is None:
                    index_seconds = self._index_seconds()
                written_seconds = max(index_seconds, written_seconds)
            used_seconds = max(written_seconds, record.used_seconds)
            found[name] = NameTimes(written_seconds=written_seconds, used_seconds=used_seconds)
        return found

    def is_untidy(self, name_count: int) -> bool:
        """Whether so much is remembered, for so many names, that it is worth while to forget some."""
        return self.journal.size_bytes() > _ROOM_BYTES + 2 * _NAME_BYTES * name_count

    def tidy(self, names: Container[str]) -> None:
        """Forget all but these names, and all but the last time of each. Under the store lock."""
        lines: list[tuple[str, ...]] = []
        for name, record in self._read().items():
            if name in names:
                if record.digest:
                    lines.append((_WRITTEN, _text_of(record.written_seconds), record.digest, name))
                if record.used_seconds != record.written_seconds:
                    lines.append((_USED, _text_of(record.used_seconds), name))
        self.journal.make_way()
        self.journal.rewrite(lines)

    def _read(self) -> dict[str, "_Record"]:
        known: dict[str, _Record] = {}
        for fields in self.journal.lines():
            with suppress(ValueError):
                what, text, *rest = fields
                seconds = float(text)
                if not 0 <= seconds < _LATEST_SECONDS:
                    continue
                if what == _WRITTEN:
                    digest, name = rest
                    known[name] = _Record(digest, seconds, seconds)
                elif what == _USED:
                    (name,) = rest
                    known[name] = attrs.evolve(known.get(name, _Record()), used_seconds=seconds)
        return known

    def _index_seconds(self) -> float:
        try:
            return os.stat(self.index_path).st_mtime
        except FileNotFoundError:
            return time.time()


def _text_of(seconds: float) -> str:
    """Return a time as it is noted: to the microsecond, for several names may be written within a millisecond."""
    return f"{seconds:.6f}"


@attrs.frozen(repr=False)
class _Record(Value):
    """What was noted last of a name: for which digest it was written, when, and when it was used."""

    digest: str = ""
    written_seconds: float = 0.0
    used_seconds: float = 0.0
