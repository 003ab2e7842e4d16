"""Which root filesystems the state of containers speaks of, in whatever form another program keeps it.

A base layer is called by its tag, in a path or alone, or meant by the name of its image, which becomes the tag. All of
every file is looked at, within bounds; where a bound is reached, or something cannot be read, nobody knows.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator

import attrs

from minibox_store import _files
from minibox_store.limits import MEBIBYTE
from minibox_store.mounts import served_points
from minibox_store.rootfs.unmounting import ask_server

_DEPTH = 2  # containers/<id>/<folder>/<file>; what lies deeper is a container's own
_MOST_FILES = 10_000
_MOST_BYTES = 256 * MEBIBYTE
_CHUNK_BYTES = 4 * MEBIBYTE
_OVERLAP_BYTES = 8192
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BEGINS = rb"(?<![A-Za-z0-9_.+@~%-])"
_ENDS = rb"(?![A-Za-z0-9_]|[.+~%-]+[A-Za-z0-9_])"  # behind an @ stands a digest
_ENDS_WITHOUT_TAG = rb"(?![A-Za-z0-9_/:]|[.+~%-]+[A-Za-z0-9_])"
_LATEST = "_latest"  # which a name of an image may leave out


class CannotTell(Exception):
    """The state of containers could not be read whole; it says why. It never leaves this package."""


@attrs.define
class ContainerNames:
    """What the files below ``containers/``, and ``state.json``, say.

    Args:
        root: the store's folder, resolved.
        mount_points: where something is mounted; a folder of a container that is one is not looked into, for it is
            the container's own. What holds the state is, and the server of such a mount has to answer.
    """

    _root: str
    _mount_points: frozenset[str]
    _files_left: int = attrs.field(default=_MOST_FILES, init=False)
    _bytes_left: int = attrs.field(default=_MOST_BYTES, init=False)

    def has(self, tags: Iterable[str]) -> bool:
        """Whether any of them speaks of a base layer that is called by one of these tags, or of its image.

        Raises:
            CannotTell: when not all could be read.
        """
        speaks_of = _pattern_of(tags).search
        self._files_left, self._bytes_left = _MOST_FILES, _MOST_BYTES
        try:
            return any(speaks_of(content) for path in self._paths() for content in self._contents(path))
        except OSError as error:
            where = os.path.relpath(error.filename or self._root, self._root)
            raise CannotTell(f"{where}: {error.strerror}") from error

    def _paths(self) -> Iterator[str]:
        yield os.path.join(self._root, "state.json")
        pending = [(os.path.join(self._root, "containers"), _DEPTH)]
        while pending:
            folder, depth = pending.pop()
            self._check_answers(folder)
            try:
                with os.scandir(folder) as entries:
                    found = sorted((entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for path, is_directory in found:
                if not is_directory:
                    self._check_answers(path)
                    yield path
                elif depth == _DEPTH or (depth and path not in self._mount_points):
                    pending.append((path, depth - 1))

    def _check_answers(self, path: str) -> None:
        if path in self._mount_points and path in served_points() and ask_server(path) != "answers":
            raise OSError(errno.ETIMEDOUT, "the server of what is mounted there does not answer", path)

    def _contents(self, path: str) -> Iterator[bytes]:
        """Yield a file in pieces that overlap; of a link where it leads, and of anything else nothing."""
        self._files_left -= 1
        if self._files_left < 0:
            raise OSError(errno.EFBIG, f"there are more than {_MOST_FILES} files", os.path.dirname(path))
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                yield os.fsencode(os.readlink(path))
            elif stat.S_ISREG(mode):
                yield from self._pieces(_files.open_regular(path), path)
        except FileNotFoundError:
            return

    def _pieces(self, opened: int, path: str) -> Iterator[bytes]:
        before = b""
        with open(opened, "rb", buffering=0) as file:
            while piece := file.read(_CHUNK_BYTES):
                self._bytes_left -= len(piece)
                if self._bytes_left < 0:
                    raise OSError(errno.EFBIG, f"there is more than {_MOST_BYTES} bytes", os.path.dirname(path))
                yield before + piece
                before = (before + piece)[-_OVERLAP_BYTES:]


def _pattern_of(tags: Iterable[str]) -> re.Pattern[bytes]:
    """Return what finds any of some tags, or a name that becomes one, where it is no part of a longer one."""
    found = set()
    for tag in tags:
        found.add(_spelt(tag) + _ENDS)
        if tag.endswith(_LATEST):
            found.add(_spelt(tag.removesuffix(_LATEST)) + _ENDS_WITHOUT_TAG)
    return re.compile(_BEGINS + b"(?:" + b"|".join(sorted(found)) + b")")


def _spelt(tag: str) -> bytes:
    return re.escape(os.fsencode(tag)).replace(b"_", b"[_/:]")
