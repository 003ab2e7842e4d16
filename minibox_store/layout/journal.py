"""Small files of lines that are only ever added to: what is good to know of a store, and nothing hangs on.

A line has its fields between tabs and a full stop at its end. One that a crash has torn lacks that, and is passed over,
as is one that nobody understands; the next line begins on a line of its own all the same. What no line can say without
saying something else as well, a name with a line's end in it, is not written. A journal that is gone is empty; what is
in the place of one, and is none, is too, and makes way for the next change. It is added to by one write, so that
several processes may do so at once, and written anew under the store lock.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

import attrs

from minibox_store import _files, _moving
from minibox_store.limits import MEBIBYTE
from minibox_store.values import Value

_END = "."
_MOST_BYTES = 64 * MEBIBYTE


@attrs.frozen(repr=False)
class Journal(Value):
    """The journal at a path, whose folder is made when the first line is written.

    Args:
        path: of the file.
        durable: whether a line survives a loss of power once it has been added.
    """

    path: str
    durable: bool = False

    def lines(self) -> Iterator[tuple[str, ...]]:
        """Yield the fields of each line of the last 64 MiB, the oldest first; nothing where there is no journal."""
        try:
            content = _files.read_end(self.path, _MOST_BYTES)
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

    def make_way(self) -> None:
        """Put aside, under another name, what is in the place of the journal and can be none. Under the store lock."""
        try:
            status = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISREG(status.st_mode):
            _files.rename_file(self.path, f"{self.path}.{_files.fresh_name()}.odd")

    def append(self, lines: Iterable[tuple[str, ...]]) -> None:
        """Add lines, by one write; but for those with a tab or a line's end in a field, or with what is no text."""
        content = _encoded(lines)
        if not content:
            return
        folder = os.path.dirname(self.path)
        is_new = _files.make_directory(folder)
        is_new |= _files.append_bytes(self.path, content, durable=self.durable)
        if is_new and self.durable:
            _files.sync_directory(folder)
            _files.sync_directory(os.path.dirname(folder))

    def rewrite(self, lines: Iterable[tuple[str, ...]]) -> None:
        """Replace all lines, in one step, under the store lock; what somebody adds at this very moment may be lost."""
        with _files.replacing_file(self.path, mode=0o600, durable=self.durable) as opened:
            _moving.write_all(opened, _encoded(lines))

    def size_bytes(self) -> int:
        """Return how large it is."""
        return _files.size_of(self.path)


def _encoded(lines: Iterable[tuple[str, ...]]) -> bytes:
    content = []
    for fields in lines:
        if not any("\t" in field or "\n" in field for field in fields):
            with suppress(UnicodeEncodeError):
                content.append(f"\n{chr(9).join((*fields, _END))}".encode())
    return b"".join(content)
