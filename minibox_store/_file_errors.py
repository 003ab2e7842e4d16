"""What the operating system says, as errors of this library: the one edge for it.

A full disk is StoreFull wherever it shows. A path that the caller gave is the caller's mistake; one of the store's own
is not. What a listener raises is neither, and passes.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from minibox_store._files import NO_SPACE
from minibox_store.errors import InvalidArgument, InvalidPath, StoreError, StoreFull, StoreUnavailable
from minibox_store.listeners import is_of_listener

_NO_FAULT_OF_A_PATH = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Turn what the operating system says of ``path``, or of what lies below it, into an error of this library."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if is_of_listener(error):
            raise
        where, problem = path, error.strerror or str(error)
        if isinstance(error.filename, str):
            if os.path.isabs(error.filename):
                where = error.filename
            else:  # below a folder that is open, of which the system says nothing
                problem = f"{problem}: {error.filename!r}"
        if isinstance(error.filename2, str) and os.path.isabs(error.filename2):
            problem = f"{problem}, on the way to {error.filename2}"  # which of the two is to blame nobody says
        if error.errno in NO_SPACE:
            raise StoreFull(where) from error
        raise StoreUnavailable(where, problem) from error


@contextmanager
def path_errors(path: str) -> Iterator[None]:
    """Turn what the operating system says of a path that the caller gave into an error that names it."""
    if "\0" in path:
        raise InvalidPath(path, "it has a NUL in it")
    try:
        yield
    except UnicodeEncodeError as error:
        if is_of_listener(error):
            raise
        raise InvalidPath(path, "it is no text that a path can be") from error
    except OSError as error:
        if is_of_listener(error):
            raise
        if error.errno in NO_SPACE:
            raise StoreFull(path) from error
        if error.errno in _NO_FAULT_OF_A_PATH:
            raise StoreUnavailable(path, (error.strerror or str(error)).lower()) from error
        raise InvalidPath(path, (error.strerror or str(error)).lower()) from error


def path_text(name: str, path: str | os.PathLike[str]) -> str:
    """Return the path that an argument, called ``name``, has, if it has one that is a text."""
    found: object = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(found, str):
        raise InvalidArgument(name, path, "it is no path, or its path is no text")
    return found


def absolute_path(path: str | os.PathLike[str], name: str = "path") -> str:
    """Return where the path that an argument has leads to from the working directory, as that is now."""
    found = path_text(name, path)
    with path_errors(found):
        os.fsencode(found)
        return os.path.abspath(found)
