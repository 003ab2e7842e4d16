"""When Python's collector of cycles rests: while very many values are made that all stay.

It would go through them again and again as they grow, for a tenth to a fifth of the time, and find nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Let it rest for the block."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
