"""Pulls at once: so many move, the others wait in the order in which they came, and say so."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_server.api.turns import Turns
from minibox_store import Cancellation, Cancelled

_SECONDS = 60.0


@dataclass
class Waiter:
    """One who takes a turn in a thread of its own."""

    turns: Turns
    cancellation: Cancellation = field(default_factory=Cancellation)
    told: list[int] = field(default_factory=list)
    moves: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    is_over: threading.Event = field(default_factory=threading.Event)
    was_cancelled: bool = False

    def run(self) -> None:
        try:
            with self.turns.taking(self.cancellation) as turn:
                turn.wait(self.told.append)
                self.moves.set()
                assert self.done.wait(_SECONDS)
        except Cancelled:
            self.was_cancelled = True
        finally:
            self.is_over.set()


@contextmanager
def waiting(turns: Turns, count: int) -> Iterator[list[Waiter]]:
    """Let so many come, one after the other; each has been told, or moves, before the next one comes."""
    waiters, threads = [], []
    for _ in range(count):
        waiter = Waiter(turns)
        waiters.append(waiter)
        thread = threading.Thread(target=waiter.run)
        threads.append(thread)
        thread.start()
        until(lambda waiter=waiter: waiter.moves.is_set() or waiter.told != [])  # type: ignore[misc]  # mypy infers no default of a lambda
    try:
        yield waiters
    finally:
        for waiter in waiters:
            waiter.done.set()
        for thread in threads:
            thread.join(_SECONDS)
            assert not thread.is_alive()


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def moving(waiters: list[Waiter]) -> list[int]:
    return [number for number, each in enumerate(waiters) if each.moves.is_set() and not each.is_over.is_set()]


def test_so_many_move_at_once_and_the_next_moves_when_one_has_ended() -> None:
    with waiting(Turns(2), 4) as waiters:
        assert moving(waiters) == [0, 1]
        assert [each.told for each in waiters] == [[], [], [2], [3]]
        waiters[1].done.set()
        assert waiters[2].moves.wait(_SECONDS)
        until(lambda: waiters[3].told == [3, 2])
        assert waiters[2].told == [2, 0]
        assert not waiters[3].moves.is_set()


def test_who_is_cancelled_while_it_waits_leaves_the_queue_at_once() -> None:
    with waiting(Turns(1), 3) as waiters:
        waiters[1].cancellation.cancel()
        assert waiters[1].is_over.wait(_SECONDS)
        assert waiters[1].was_cancelled
        until(lambda: waiters[2].told == [2, 1])
        assert not waiters[2].moves.is_set()
        waiters[0].done.set()
        assert waiters[2].moves.wait(_SECONDS)


def test_who_was_cancelled_before_never_moves() -> None:
    turns, waiter = Turns(1), Waiter(Turns(1))
    waiter.cancellation.cancel()
    waiter.run()
    assert waiter.was_cancelled
    assert not waiter.moves.is_set()
    with waiting(turns, 1) as waiters:
        assert moving(waiters) == [0]


@settings(max_examples=25, deadline=None)
@given(most=st.integers(1, 3), steps=st.lists(st.tuples(st.sampled_from(["end", "cancel"]), st.integers(0, 5))))
def test_whoever_ends_or_is_cancelled_the_first_that_are_left_move(most: int, steps: list[tuple[str, int]]) -> None:
    with waiting(Turns(most), 6) as waiters:
        left = list(range(6))
        for step, number in steps:
            # Who moves ends, and who waits is cancelled: who moves would not look whether it was.
            if number in left and (step == "end") == (number in left[:most]):
                waiters[number].done.set() if step == "end" else waiters[number].cancellation.cancel()
                assert waiters[number].is_over.wait(_SECONDS)
                left.remove(number)
            until(lambda: moving(waiters) == left[:most])
