"""What is not so until somebody says it, and then is so for good; a handler of signals may say it."""

from contextlib import suppress
from queue import Empty, SimpleQueue


class Latch:
    """Open until it is set, once and for all. For any number of threads.

    A handler of signals runs in the midst of what the main thread does. So :meth:`set` takes no lock, as
    ``threading.Event`` does: one that the main thread holds would be waited for for ever.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._wakes: SimpleQueue[None] = SimpleQueue()  # of which a put() may interrupt whatever else is done to it

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake whoever waits. From any thread, and from a handler of signals."""
        self._is_set = True
        self._wakes.put(None)

    def wait(self, seconds: float) -> bool:
        """Return after ``seconds``, or as soon as it is set, and whether it is."""
        if not self._is_set:
            with suppress(Empty):
                self._wakes.get(timeout=max(seconds, 0.0))
                self._wakes.put(None)  # for who waits beside us
        return self._is_set
