"""Whether an argument is of the kind that is wanted: whatever is not is refused by its name, before anything begins.

Python takes a text for the sequence of its letters and for true, None for false, True for 1, and what is no number for
more than any bound that it is held against. Nobody who hands one of these in means that.
"""

import math
from collections.abc import Iterable
from typing import TypeVar

from minibox_store.errors import InvalidArgument
from minibox_store.values import masked

_Kind = TypeVar("_Kind")
_WORDS: dict[type, str] = {str: "text"}


def check_kind(name: str, value: object, kind: type, hint: str = "") -> None:
    """Return if an argument is a ``kind``; ``hint`` says how to come by one.

    Raises:
        InvalidArgument: when it is not.
    """
    if not isinstance(value, kind):
        raise InvalidArgument(name, value, f"it is no {_WORDS.get(kind, kind.__name__)}{hint}")


def check_method(name: str, value: object, method: str) -> None:
    """Return if an argument has a method, such as all that is read from.

    Raises:
        InvalidArgument: when it has none.
    """
    if not callable(getattr(value, method, None)):
        raise InvalidArgument(name, value, f"it has no {method}")


def check_secret(name: str, value: object, kind: type) -> None:
    """Return if an argument is a ``kind``; of another value, which may be a secret, nothing is shown.

    Raises:
        InvalidArgument: when it is not.
    """
    if not isinstance(value, kind):
        raise InvalidArgument(name, masked(value), f"it is {type(value).__name__}, and no {kind.__name__}")


def several(name: str, values: Iterable[_Kind]) -> tuple[_Kind, ...]:
    """Return what a collection has.

    Raises:
        InvalidArgument: for what is no collection, as a text is none.
    """
    if isinstance(values, str | bytes):
        raise InvalidArgument(name, values, "it is a text, and no collection of them")
    if not isinstance(values, Iterable):
        raise InvalidArgument(name, values, "it is no collection of them")
    return tuple(values)


def each_of(name: str, values: Iterable[_Kind], kind: type[_Kind]) -> tuple[_Kind, ...]:
    """Return what a collection has, if each of it is a ``kind``.

    Raises:
        InvalidArgument: for what is no collection, and for one that has anything else in it.
    """
    found = several(name, values)
    for each in found:
        check_kind(name, each, kind)
    return found


def check_switches(**switches: bool) -> None:
    """Return if each argument is True or False.

    Raises:
        InvalidArgument: for anything else: of a text, or a number, nobody knows whether "false", or 0, was meant.
    """
    for name, value in switches.items():
        if type(value) is not bool:
            raise InvalidArgument(name, value, "it is neither True nor False")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, such as a member of an ``IntEnum``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_count(name: str, value: int, problem: str, *, least: int = 1) -> None:
    """Return if an argument is a whole number of at least ``least``; ``problem`` says what one less would mean.

    Raises:
        InvalidArgument: when it is not.
    """
    if not is_whole(value):
        raise InvalidArgument(name, value, "it is no whole number")
    if value < least:
        raise InvalidArgument(name, value, problem)


def check_seconds(name: str, value: float, *, most: float = math.inf) -> None:
    """Return if an argument is a time of at most ``most`` seconds.

    Raises:
        InvalidArgument: when it is not; to wait for what is no number would have no end.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise InvalidArgument(name, value, "it is no time in seconds, less than nothing, or longer than can be waited")
