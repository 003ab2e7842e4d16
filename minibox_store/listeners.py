"""Whose error it is: what a listener raises ends an operation as it is, and is blamed on nobody else.

A listener prints, and its terminal may be gone; or it counts, and has enough. That is no failure of the store's disk,
and of no mirror after which another one would be asked.
"""

from collections.abc import Callable

from minibox_store.events import Event

_MARK = "_minibox_store_listener"


def marking_errors(on_event: Callable[[Event], None]) -> Callable[[Event], None]:
    """Return a listener whose errors :func:`is_of_listener` tells from all others; they are raised as they are."""

    def tell(event: Event) -> None:
        try:
            on_event(event)
        except Exception as error:
            error.__dict__[_MARK] = True
            raise

    return tell


def is_of_listener(error: BaseException) -> bool:
    """Whether an error is what a listener has raised."""
    return _MARK in error.__dict__
