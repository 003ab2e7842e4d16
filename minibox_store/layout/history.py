"""The last generations of index.json, each a file of its own under ``history/``, so that no rewrite loses a name.

The new content of index.json is written here, whole and durable, before anything is published; it is given its number,
by which it counts as a generation, once index.json says it. What dies in between leaves a file that never counts. A
content that is found in index.json and that the newest generation does not say (another tool wrote it, or this one and
died before the number was given) is recorded before the next change. So the generations are what index.json has been,
in this order, and nothing else. They are roots of no collection.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs

from minibox_store import _files, _moving
from minibox_store.codec import decode_layout_index
from minibox_store.documents import LayoutIndex
from minibox_store.errors import InvalidDocument
from minibox_store.layout.paths import LayoutPaths
from minibox_store.layout.spares import replacing_file_by
from minibox_store.values import Value

KEPT = 10
_MODE = 0o600
_GENERATION = re.compile(r"[0-9]{10}\.json", re.ASCII)


@attrs.frozen(kw_only=True, repr=False)
class Generation(Value):
    """One content of index.json; the higher the number, the newer it is."""

    number: int
    path: str


@attrs.frozen(kw_only=True, repr=False)
class History(Value):
    """The generations of one store. Everything that writes is called under the store lock.

    Attributes:
        paths: of the store.
        durable: whether a generation survives a loss of power once it is written.
        limit_bytes: the most that is read of one.
    """

    paths: LayoutPaths
    durable: bool
    limit_bytes: int

    def generations(self) -> tuple[Generation, ...]:
        """Return the generations, the newest first."""
        try:
            names = os.listdir(self.paths.history)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        numbers = sorted((int(name[:10]) for name in names if _GENERATION.fullmatch(name)), reverse=True)
        return tuple(Generation(number=number, path=self._path(number)) for number in numbers)

    def content(self, generation: Generation) -> bytes | None:
        """Return the bytes of a generation, None where they cannot be read."""
        try:
            return _files.read_whole(generation.path, self.limit_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _files.DAMAGE:
                raise
            return None

    def index(self, generation: Generation) -> LayoutIndex | None:
        """Return what a generation says, None where it cannot be read as an index."""
        content = self.content(generation)
        try:
            return None if content is None else decode_layout_index(content, limit_bytes=self.limit_bytes)
        except InvalidDocument:
            return None

    @contextmanager
    def recording(self, present: bytes | None, new: bytes) -> Iterator[None]:
        """Keep ``new`` for good before the block begins; count it as the newest generation once the block is left.

        Args:
            present: what index.json says now; recorded first where the newest generation says something else. None
                where there is nothing to be recorded.
            new: what index.json will say when the block is left without an error.

        Raises:
            OSError: when either cannot be written. With an error, in the block too, ``new`` is no generation.
        """
        self.make_folder()
        number, newest = self.record(present)
        if new == newest:
            yield
            return
        is_said = False
        try:
            with self._writing(number + 1, new):
                yield
                is_said = True
        except OSError:
            if not is_said:
                raise
            # index.json has changed already: the next change finds that no generation says so, and records it.
        self._drop_old()

    def make_folder(self) -> None:
        """Make the folder of the generations where it is not there yet."""
        if _files.make_directory(self.paths.history) and self.durable:
            _files.sync_directory(self.paths.root)

    def record(self, present: bytes | None, spare: str | None = None) -> tuple[int, bytes | None]:
        """Let the newest generation be ``present``, if that is not None; return its number, and what it says.

        Where it has to be written, it takes the place of ``spare``, a file that is given up.

        Raises:
            OSError: when it cannot be written.
        """
        known = self.generations()
        newest = self.content(known[0]) if known else None
        number = known[0].number if known else 0
        if present is None or present == newest:
            return number, newest
        with self._writing(number + 1, present, spare):
            pass
        return number + 1, present

    @contextmanager
    def _writing(self, number: int, content: bytes, spare: str | None = None) -> Iterator[None]:
        path, root = self._path(number), self.paths.root
        with replacing_file_by(spare, path, folder=root, mode=_MODE, durable=self.durable) as opened:
            _moving.write_all(opened, content)
            if self.durable:
                _files.sync_file(opened)
            yield

    def _drop_old(self) -> None:
        with suppress(OSError):  # the change counts already, and the next one tries again
            for generation in self.generations()[KEPT:]:
                _files.remove_file(generation.path)

    def _path(self, number: int) -> str:
        return os.path.join(self.paths.history, f"{number:010}.json")
