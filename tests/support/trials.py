"""Tests that draw what they do: how long they draw, from which seed, and how a failure tells of it.

And those that go through all that there is: which part of it a run does, where one run would take too long.
"""

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

DEEP = os.environ.get("MINIBOX_DEEP") == "1"

_SEED = "MINIBOX_TEST_SEED"
_SECONDS = "MINIBOX_TEST_SECONDS"
_PART = "MINIBOX_TEST_PART"

_Each = TypeVar("_Each")


def trial_seconds(usual: float, deep: float) -> float:
    """Return how long to draw: MINIBOX_TEST_SECONDS where it is set, else ``deep`` under MINIBOX_DEEP=1."""
    chosen = os.environ.get(_SECONDS)
    if chosen is not None:
        return float(chosen)
    return deep if DEEP else usual


def trial_count(usual: int, deep: int) -> int:
    """Return how often to draw: under MINIBOX_DEEP=1 the part of ``deep`` that is a run's, and no less than usual."""
    return max(usual, len(list(part_of(range(deep))))) if DEEP else usual


def part_of(everything: Iterable[_Each]) -> Iterator[_Each]:
    """Yield what a run does of all that there is: each twentieth, from the third on, where MINIBOX_TEST_PART is 3/20.

    Twenty runs, from 1/20 to 20/20, do all of it. Where it is not set, one does.
    """
    number, _, count = os.environ.get(_PART, "1/1").partition("/")
    if not 1 <= int(number) <= int(count):
        raise ValueError(f"{_PART} is {number}/{count}")
    return islice(everything, int(number) - 1, None, int(count))


@contextmanager
def drawing() -> Iterator[int]:
    """Give a seed, another one each time unless MINIBOX_TEST_SEED says which; a failure of the block names it."""
    chosen = os.environ.get(_SEED)
    seed = random.SystemRandom().randrange(1 << 32) if chosen is None else int(chosen)
    try:
        yield seed
    except BaseException as error:
        error.add_note(f"drawn from the seed {seed}: {_SEED}={seed} draws the same")
        raise
