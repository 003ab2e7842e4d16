"""Ending from outside what another thread is doing, also where it waits for somebody who sends nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from minibox_store.errors import Cancelled
from minibox_store.kinds import check_kind
from minibox_store.latch import Latch
from minibox_store.protocols import Interruptible
from minibox_store.values import Value


@attrs.frozen(eq=False, repr=False)
class _Entry(Value):
    """A source that a cancel interrupts."""

    source: Interruptible


class Cancellation:
    """Lets one thread end what others are doing: hand it to an operation, and call :meth:`cancel` at any time.

    A handler of signals may call it, too, in the midst of what the main thread does:

        signal.signal(signal.SIGINT, lambda *_: cancellation.cancel())

    Guarantees: an operation that has not committed yet ends with :class:`Cancelled` within about one second,
    also when it waits for a registry that sends nothing; what had committed stays. Only two waits are not cut short:
    that for a lock that another process holds, which ends with the store's own ``lock_timeout_seconds``, and one inside
    a file object of the program's own, such as ``gzip.open`` over a pipe.
    """

    def __init__(self) -> None:
        # They have no lock, for which a handler of signals might wait: whatever is done to either is one step.
        self._cancelled = Latch()
        self._open: set[_Entry] = set()

    def cancel(self) -> None:
        """Cancel. A second call does nothing. From any thread, and from a handler of signals."""
        if self._cancelled.is_set():
            return  # also where what is interrupted cancels in its turn
        self._cancelled.set()
        for entry in self._open.copy():
            entry.source.interrupt()

    @property
    def is_cancelled(self) -> bool:
        """Whether :meth:`cancel` has been called."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise :class:`Cancelled` if it has been cancelled."""
        if self._cancelled.is_set():
            raise Cancelled

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or raise :class:`Cancelled` as soon as it is cancelled."""
        if self._cancelled.wait(seconds):
            raise Cancelled

    @contextmanager
    def interrupting(self, source: object) -> Iterator[None]:
        """Interrupt ``source`` when a cancel comes in this block; every error after that is :class:`Cancelled`."""
        # Each block has an entry of its own: one inside another must not end the outer one's protection.
        entry = _Entry(source) if isinstance(source, Interruptible) else None
        if entry is not None:
            self._open.add(entry)
        try:
            self.check()  # after that: a cancel meanwhile has found the one or is found here
            yield
        except Exception as error:
            if self.is_cancelled and not isinstance(error, Cancelled):
                raise Cancelled from error
            raise
        finally:
            if entry is not None:
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
