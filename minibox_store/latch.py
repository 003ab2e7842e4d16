"""What is not so until somebody says it, and then is so for good; a handler of signals may say it."""

from contextlib import suppress
from threading import Lock


class Latch:
    """Open until it is set, once and for all. For any number of threads.

    A handler of signals runs in the midst of what the main thread does. So :meth:`set` takes no lock, as
    ``threading.Event`` does: one that the main thread holds would be waited for for ever. It lets one go, which is held
    from the beginning: whoever can take that knows, and lets it go for the next.

    A ``SimpleQueue`` would do as well, but for CPython 3.11: ``get`` may wait for ever where its timeout is over before
    it begins to wait, as a short one may be on a busy machine.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._held = Lock()
        self._held.acquire()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake whoever waits. From any thread, and from a handler of signals."""
        self._is_set = True
        self._let_go()

    def wait(self, seconds: float) -> bool:
        """Return after ``seconds``, or as soon as it is set, and whether it is."""
        if not self._is_set and self._held.acquire(timeout=max(seconds, 0.0)):
            self._let_go()
        return self._is_set

    def _let_go(self) -> None:
        with suppress(RuntimeError):  # it is free: it was set before, or somebody has let it go for this one
            self._held.release()
