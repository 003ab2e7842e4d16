"""Tests that draw what they do: how long they draw, from which seed, and how a failure tells of it."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

DEEP = os.environ.get("MINIBOX_DEEP") == "1"

_SEED = "MINIBOX_TEST_SEED"
_SECONDS = "MINIBOX_TEST_SECONDS"


def trial_seconds(usual: float, deep: float) -> float:
    """Return how long to draw: MINIBOX_TEST_SECONDS where it is set, else ``deep`` under MINIBOX_DEEP=1."""
    chosen = os.environ.get(_SECONDS)
    if chosen is not None:
        return float(chosen)
    return deep if DEEP else usual


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
