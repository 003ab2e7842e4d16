"""What the operating system says, as errors of this library: the one edge for it.

A full disk is StoreFull wherever it shows. A path that the caller gave is the caller's mistake; one of the store's own
is not.
"""

import errno
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from minibox_store.errors import InvalidPath, StoreError, StoreFull, StoreUnavailable

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_OF_THE_CALLER = "_of_the_caller_of_minibox_store"


def passing_errors(call: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return a function of the caller's, a listener say, as one whose own errors are not taken for the system's.

    What it prints to may be closed: that says nothing of the path, or of the store, that was worked on.
    """

    @functools.wraps(call)
    def marking(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        try:
            return call(*arguments, **named)
        except (OSError, UnicodeError) as error:
            setattr(error, _OF_THE_CALLER, True)
            raise

    return marking


def _is_of_the_caller(error: Exception) -> bool:
    return hasattr(error, _OF_THE_CALLER)


@contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Turn what the operating system says of ``path``, or of what lies below it, into an error of this library."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if _is_of_the_caller(error):
            raise
        where = error.filename if isinstance(error.filename, str) else path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(where) from error
        raise StoreUnavailable(where, error.strerror or str(error)) from error


@contextmanager
def path_errors(path: str) -> Iterator[None]:
    """Turn what the operating system says of a path that the caller gave into an error that names it."""
    if "\0" in path:
        raise InvalidPath(path, "it has a NUL in it")
    try:
        yield
    except UnicodeEncodeError as error:
        if _is_of_the_caller(error):
            raise
        raise InvalidPath(path, "it is no text that a path can be") from error
    except OSError as error:
        if _is_of_the_caller(error):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(path) from error
        if error.errno == errno.EIO:
            raise StoreUnavailable(path, "input/output error") from error
        raise InvalidPath(path, (error.strerror or str(error)).lower()) from error
