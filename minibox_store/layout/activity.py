"""When each name was last written in a store, and when it was last used.

Written is what a pull, a load, a tag or an undo does, also where the name stands for what it stood for before; used is
that, and what a save or any other reading of the whole image does. What is not known is taken for young: a name without
a record, which another tool wrote, is as old as index.json.
"""

import os
import time
from collections.abc import Container, Iterable
from contextlib import suppress

import attrs

from minibox_store.layout.journal import Journal
from minibox_store.limits import MEBIBYTE

_WRITTEN, _USED = "written", "used"
_USE_SECONDS = 3600.0
_ROOM_BYTES = MEBIBYTE


@attrs.frozen(kw_only=True)
class NameTimes:
    """When a name was last written, and last used, in seconds since 1970; it was not used before it was written."""

    written_seconds: float
    used_seconds: float


@attrs.frozen
class Activity:
    """What is known of the names of one store.

    Args:
        journal: where it is kept.
        index_path: of index.json.
    """

    journal: Journal
    index_path: str

    def note_written(self, names: Iterable[str]) -> None:
        """Remember that names are being written now, before they are: under the store lock."""
        now = f"{time.time():.3f}"
        self.journal.append((_WRITTEN, now, name) for name in names)

    def note_used(self, name: str) -> None:
        """Remember that an image is used now, unless that was noted in the last hour, or cannot be."""
        with suppress(OSError):
            if not name.isprintable():
                return
            found = self._read().get(name)
            now = time.time()
            if found is None or not 0 <= now - found.used_seconds < _USE_SECONDS:
                self.journal.append([(_USED, f"{now:.3f}", name)])

    def times(self, names: Iterable[str]) -> dict[str, NameTimes]:
        """Return what is known of each of these names."""
        known = self._read()
        found = {}
        index_seconds = None
        for name in names:
            times = known.get(name)
            if times is None or times.written_seconds == 0:
                if index_seconds is None:
                    index_seconds = self._index_seconds()
                used_seconds = index_seconds if times is None else max(index_seconds, times.used_seconds)
                times = NameTimes(written_seconds=index_seconds, used_seconds=used_seconds)
            found[name] = times
        return found

    def is_untidy(self) -> bool:
        """Whether so much is remembered that it is worth while to forget some."""
        return self.journal.size_bytes() > _ROOM_BYTES

    def tidy(self, names: Container[str]) -> None:
        """Forget all but these names, and all but the last time of each. Under the store lock."""
        lines = []
        for name, times in self._read().items():
            if name in names:
                lines.append((_USED, f"{times.used_seconds:.3f}", name))
                if times.written_seconds:
                    lines.append((_WRITTEN, f"{times.written_seconds:.3f}", name))
        self.journal.rewrite(lines)

    def _read(self) -> dict[str, NameTimes]:
        written: dict[str, float] = {}
        used: dict[str, float] = {}
        for fields in self.journal.lines():
            with suppress(ValueError):
                what, seconds, name = fields
                if what in (_WRITTEN, _USED):
                    used[name] = max(used.get(name, 0.0), float(seconds))
                if what == _WRITTEN:
                    written[name] = float(seconds)
        return {
            name: NameTimes(written_seconds=written.get(name, 0.0), used_seconds=seconds)
            for name, seconds in used.items()
        }

    def _index_seconds(self) -> float:
        try:
            return os.stat(self.index_path).st_mtime
        except FileNotFoundError:
            return time.time()
