"""How index.json is replaced: in one step, once its new content is kept in ``history/`` and all that needs room has it.

On a full disk nobody could take a name away, which is how room is made. So what says less than before gives up what
the store can do without, one thing after the other, until it fits.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TypeVar

from minibox_store import _files, _moving
from minibox_store.layout.history import History
from minibox_store.layout.spares import replacing_file_by

FILE_MODE = 0o644
_T = TypeVar("_T")


@contextmanager
def replacing_content(history: History, present: bytes | None, content: bytes) -> Iterator[None]:
    """Write index.json anew, and let it take effect when the block is left without an error. Under the store lock.

    Args:
        history: of the store.
        present: what index.json says, as for :meth:`History.recording`.
        content: what it will say.

    Raises:
        OSError: when it cannot be written; it says what it said then. None for want of space once the block begins.
    """
    with _begin(history, present, content):
        yield


def _begin(history: History, present: bytes | None, content: bytes) -> ExitStack:
    try:
        with ExitStack() as stack:
            stack.enter_context(history.recording(present, content))
            stack.enter_context(_replacing(history, present, content))
            return stack.pop_all()
    except OSError as error:
        if error.errno not in _files.NO_SPACE or present is None or len(content) >= len(present):
            raise
    # What is written now the next change finds said by no generation, and records it.
    history.make_folder()
    _by_spares(history, partial(history.record, present))
    return _by_spares(history, partial(_begin_by, history, present, content))


def _begin_by(history: History, present: bytes | None, content: bytes, spare: str | None) -> ExitStack:
    with ExitStack() as stack:
        stack.enter_context(_replacing(history, present, content, spare))
        return stack.pop_all()


def _by_spares(history: History, write: Callable[[str | None], _T]) -> _T:
    """Return what ``write`` returns, which is given, one after the other, what it may take the place of."""
    spares = _spares(history)
    spare = None
    while True:
        try:
            return write(spare)
        except OSError as error:
            if error.errno not in _files.NO_SPACE or (spare := next(spares, None)) is None:
                raise


def _spares(history: History) -> Iterator[str]:
    """Yield what a store can do without; not the newest generation, by which a change is undone."""
    for path in (history.paths.listing, *(each.path for each in history.generations()[:0:-1])):
        with suppress(FileNotFoundError):
            status = os.lstat(path)
            # What has another name may be part of somebody's backup.
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                yield path


@contextmanager
def _replacing(history: History, present: bytes | None, content: bytes, spare: str | None = None) -> Iterator[None]:
    path, root, durable = history.paths.index, history.paths.root, history.durable
    try:
        with replacing_file_by(spare, path, folder=root, mode=FILE_MODE, durable=durable) as opened:
            _moving.write_all(opened, content)
            if durable:
                _files.sync_file(opened)
            yield
    except OSError:
        _take_back(history, present, content)
        raise


def _take_back(history: History, present: bytes | None, content: bytes) -> None:
    """Let index.json say again what it said, where it was replaced and its folder could not be synced then.

    Whoever is told of an error counts on it that nothing has changed.
    """
    path = history.paths.index
    with suppress(OSError):
        if present is not None and _files.read_whole(path, history.limit_bytes) == content:
            with _files.replacing_file(path, mode=FILE_MODE, durable=False) as opened:
                _moving.write_all(opened, present)
