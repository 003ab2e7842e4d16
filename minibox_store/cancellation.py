"""Ending from outside what another thread is doing, also where it waits for somebody who sends nothing."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from minibox_store.errors import Cancelled
from minibox_store.kinds import check_kind
from minibox_store.protocols import Interruptible
from minibox_store.values import Value


@attrs.frozen(eq=False, repr=False)
class _Entry(Value):
    """A source that a cancel interrupts."""

    source: Interruptible


class Cancellation:
    """Lets one thread end what others are doing: hand it to an operation, and call :meth:`cancel` at any time.

    A handler of signals is no thread: it runs in the midst of what the main thread does, which may hold just what
    :meth:`cancel` needs, and both would wait for ever. It leaves that to one:

        signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=cancellation.cancel).start())

    Guarantees: an operation that has not committed yet ends with :class:`Cancelled` within about one second,
    also when it waits for a registry that sends nothing; what had committed stays. Only the wait for a lock that
    another process holds is not cut short: it ends with the store's own ``lock_timeout_seconds``.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._open: set[_Entry | None] = set()

    def cancel(self) -> None:
        """Cancel. A second call does nothing."""
        with self._lock:
            if self._event.is_set():
                return  # also where what is interrupted cancels in its turn
            self._event.set()
            blocked = [entry.source for entry in self._open if entry]
        for source in blocked:
            source.interrupt()

    @property
    def is_cancelled(self) -> bool:
        """Whether :meth:`cancel` has been called."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise :class:`Cancelled` if it has been cancelled."""
        if self._event.is_set():
            raise Cancelled

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or raise :class:`Cancelled` as soon as it is cancelled."""
        if self._event.wait(seconds):
            raise Cancelled

    @contextmanager
    def interrupting(self, source: object) -> Iterator[None]:
        """Interrupt ``source`` when a cancel comes in this block; every error after that is :class:`Cancelled`."""
        # Each block has an entry of its own: one inside another must not end the outer one's protection.
        entry = _Entry(source) if isinstance(source, Interruptible) else None
        with self._lock:
            self._open |= {entry} if entry else set()
        try:
            self.check()
            yield
        except Exception as error:
            if self.is_cancelled and not isinstance(error, Cancelled):
                raise Cancelled from error
            raise
        finally:
            with self._lock:
                self._open.discard(entry)


def checked_cancellation(cancellation: Cancellation | None) -> Cancellation:
    """Return what an operation is cancelled by; where it was given None, what nobody ever cancels.

    Raises:
        InvalidArgument: for anything else, such as an event of ``threading``.
    """
    if cancellation is None:
        return Cancellation()
    check_kind("cancellation", cancellation, Cancellation)
    return cancellation
