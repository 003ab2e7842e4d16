"""Whose turn it is to move bytes: first come, first served, so many at once.

Who has to wait has a thread of its own already, and waits in it; how many there can be is for who gives the threads.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minibox_store import Cancellation


class Turns:
    """The turns of one kind of operation in one process.

    Args:
        most: how many have theirs at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        # All that have come and have not ended, in their order: the first of them move, the others wait.
        self._came: list[Turn] = []

    @contextmanager
    def taking(self, cancellation: Cancellation) -> "Iterator[Turn]":
        """Yield a turn that can be waited for; it ends with the block, and so does its place in the queue."""
        turn = Turn(self, cancellation)
        try:
            yield turn
        finally:
            with self._changed:
                if turn in self._came:
                    self._came.remove(turn)
                    self._changed.notify_all()

    def wait(self, turn: "Turn", cancellation: Cancellation, on_waiting: Callable[[int], None]) -> None:
        """Do as :meth:`Turn.wait`."""
        told: int | None = None
        with self._changed:
            if turn not in self._came:
                self._came.append(turn)
        with cancellation.interrupting(turn):
            while True:
                with self._changed:
                    while (ahead := self._came.index(turn)) == told and not cancellation.is_cancelled:
                        self._changed.wait()
                cancellation.check()
                if ahead < self._most:
                    if told is not None:
                        on_waiting(0)
                    return
                told = ahead
                on_waiting(ahead)

    def wake(self) -> None:
        """Let all who wait look again."""
        with self._changed:
            self._changed.notify_all()


class Turn:
    """One operation's turn."""

    def __init__(self, turns: Turns, cancellation: Cancellation) -> None:
        self._turns = turns
        self._cancellation = cancellation

    def wait(self, on_waiting: Callable[[int], None]) -> None:
        """Return when it has come.

        Args:
            on_waiting: told how many are ahead, moving ones too, as often as that changes; 0 when it has come at last.

        Raises:
            Cancelled: as soon as the operation is cancelled.
        """
        self._turns.wait(self, self._cancellation, on_waiting)

    def interrupt(self) -> None:
        """Let who waits see that it was cancelled. From any thread."""
        self._turns.wake()
