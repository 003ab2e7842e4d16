"""Whose error it is: what a function of the caller's raises ends an operation as it is, and is blamed on nobody else.

A listener prints, and its terminal may be gone; or it counts, and has enough. That is no failure of the store's disk,
and of no mirror after which another one would be asked.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from minibox_store.errors import InvalidArgument

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Listener = TypeVar("_Listener")
_MARK = "_minibox_store_listener"


def checked_listener(on_event: _Listener) -> _Listener:
    """Return what is to be told of events.

    Raises:
        InvalidArgument: for what cannot be called.
    """
    if not callable(on_event):
        raise InvalidArgument("on_event", on_event, "it is nothing that can be called with an event")
    return on_event


def marking_errors(call: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return a function whose errors :func:`is_of_listener` tells from all others; they are raised as they are."""

    @functools.wraps(call)
    def marking(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        try:
            return call(*arguments, **named)
        except Exception as error:
            error.__dict__[_MARK] = True
            raise

    return marking


def is_of_listener(error: BaseException) -> bool:
    """Whether an error is what a listener, or another function of the caller's, has raised."""
    return _MARK in error.__dict__
