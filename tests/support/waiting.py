"""How long a test waits for what comes at once, or not before the test lets it, and times that no pause changes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from minibox_store.layout import ages, dead_blobs

# Longer than a busy machine stands still, and shorter than what is held in a test is held for: who has come by then has
# waited for nothing of that.
SOON_SECONDS = 20.0

_WAIT_SECONDS = 60.0
_AGE_SECONDS = 1000.0
# Longer than any tick of the clock by which a file system notes its times.
_APART_SECONDS = 0.1


def wait_for(what: Callable[[], bool], problem: str = "it has not come") -> None:
    """Return once something holds.

    Raises:
        AssertionError: when it does not within a minute.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while not what():
        assert time.monotonic() < deadline, problem
        time.sleep(0.005)


@contextmanager
def sparing_later_files() -> Iterator[float]:
    """Give an age such that a prune in the block spares what is written in the block, and nothing that was before it.

    How long the prune takes changes no age.
    """
    time.sleep(_APART_SECONDS)
    then = time.time() + _AGE_SECONDS
    with pytest.MonkeyPatch.context() as patch:
        for module in (ages, dead_blobs):
            patch.setattr(module, "time", SimpleNamespace(time=lambda: then))
        time.sleep(_APART_SECONDS)
        yield _AGE_SECONDS
