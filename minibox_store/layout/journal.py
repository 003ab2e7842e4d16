"""Small files of lines that are only ever added to: what is good to know of a store, and nothing hangs on.

A line has its fields between tabs and a full stop at its end. One that a crash has torn lacks that, and is passed over,
as is one that nobody understands; the next line begins on a line of its own all the same. A journal that is gone is
empty. It is added to by one write, so that several processes may do so at once, and written anew under the store lock.
"""

import os
from collections.abc import Iterable, Iterator

import attrs

from minibox_store import _files, _moving
from minibox_store.limits import MEBIBYTE

_END = "."
_MOST_BYTES = 64 * MEBIBYTE


@attrs.frozen
class Journal:
    """The journal at a path, whose folder is made when the first line is written."""

    path: str

    def lines(self) -> Iterator[tuple[str, ...]]:
        """Yield the fields of each line, the oldest first; nothing where it cannot be read, or is too large."""
        try:
            content = _files.read_whole(self.path, _MOST_BYTES)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in _files.DAMAGE:
                raise
            return
        for line in content.decode("utf-8", "replace").split("\n"):
            *fields, end = line.split("\t")
            if fields and end == _END:
                yield tuple(fields)

    def append(self, lines: Iterable[tuple[str, ...]]) -> None:
        """Add lines, by one write. No field has a tab or a line's end in it."""
        content = _encoded(lines)
        if content:
            _files.make_directory(os.path.dirname(self.path))
            _files.append_bytes(self.path, content)

    def rewrite(self, lines: Iterable[tuple[str, ...]]) -> None:
        """Replace all lines, in one step, under the store lock; what somebody adds at this very moment may be lost."""
        with _files.replacing_file(self.path, mode=0o600, durable=False) as opened:
            _moving.write_all(opened, _encoded(lines))

    def size_bytes(self) -> int:
        """Return how large it is."""
        return _files.size_of(self.path)


def _encoded(lines: Iterable[tuple[str, ...]]) -> bytes:
    return "".join(f"\n{chr(9).join((*fields, _END))}" for fields in lines).encode("utf-8", "replace")
