"""How many ranges are worth fetching: over lines of every kind, as they would be measured."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.layout.pace import MOST_LANES, Pace, Sight

MEBIBYTE = 1 << 20
STEP_SECONDS = 0.05

# What comes in all in a second, by when it is and over how many lanes.
Line = Callable[[float, int], float]


def each_connection(rate: float) -> Line:
    """A line on which each connection has a rate of its own."""
    return lambda _, lanes: rate * lanes


def shared(rate: float) -> Line:
    """A line that is as fast as it is, however many connections there are."""
    return lambda _, lanes: rate


def capped(rate: float, most: float) -> Line:
    """A line with both."""
    return lambda _, lanes: min(most, rate * lanes)


def lanes_over(line: Line, left_mib: float = 4096, *, seconds: float = 60.0) -> list[int]:
    """Return how many lanes there were one after the other until the blob had come, or the time was over."""
    now, received, left = 0.0, 0.0, left_mib * MEBIBYTE
    pace = Pace(Sight(seconds=0, received_bytes=0, lanes=1, left_bytes=int(left)))
    found = [1]
    while left > 0 and now < seconds:
        came = min(left, line(now, pace.lanes) * STEP_SECONDS)
        now, received, left = now + STEP_SECONDS, received + came, left - came
        lanes = pace.look(Sight(seconds=now, received_bytes=int(received), lanes=pace.lanes, left_bytes=int(left)))
        if lanes != found[-1]:
            found.append(lanes)
    return found


@pytest.mark.parametrize("mib_per_second", [0.05, 0.5, 5, 20, 80])
def test_where_each_connection_has_a_rate_there_are_as_many_as_there_may_be(mib_per_second: float) -> None:
    assert lanes_over(each_connection(mib_per_second * MEBIBYTE)) == [1, 2, 4, MOST_LANES]


@pytest.mark.parametrize("mib_per_second", [0.05, 0.5, 5, 20, 80])
def test_where_the_line_itself_is_slow_a_second_one_is_given_back(mib_per_second: float) -> None:
    assert lanes_over(shared(mib_per_second * MEBIBYTE)) == [1, 2, 1]


def test_where_the_line_is_full_with_some_the_further_ones_are_given_back() -> None:
    assert lanes_over(capped(20 * MEBIBYTE, 80 * MEBIBYTE)) == [1, 2, 4, 8, 4]
    assert lanes_over(capped(20 * MEBIBYTE, 45 * MEBIBYTE)) == [1, 2, 4, 2]


def test_what_is_done_soon_is_left_to_one() -> None:
    assert lanes_over(each_connection(200 * MEBIBYTE), 256) == [1]
    assert lanes_over(each_connection(20 * MEBIBYTE), 64) == [1, 2]
    assert lanes_over(each_connection(20 * MEBIBYTE), 160) == [1, 2, 4]


def test_what_a_registry_gives_at_once_at_the_beginning_is_not_taken_for_its_rate() -> None:
    def line(now: float, lanes: int) -> float:
        return (400.0 if now < 0.2 else 10.0) * MEBIBYTE * lanes

    assert lanes_over(line, 400)[1:] == [2, 4, MOST_LANES]


def test_a_line_that_is_silent_gets_a_second_one() -> None:
    assert lanes_over(shared(0), seconds=3)[1] == 2


def test_what_others_of_the_same_pull_lose_is_no_gain() -> None:
    """Three blobs share a line: one that takes more of it takes it from the others."""
    rate, now, received, lanes = 30.0 * MEBIBYTE, 0.0, 0.0, [1, 1, 1]
    left = [1024.0 * MEBIBYTE] * 3
    paces = [Pace(Sight(seconds=0, received_bytes=0, lanes=3, left_bytes=int(each))) for each in left]
    most = 0
    while now < 20:
        now, received = now + STEP_SECONDS, received + rate * STEP_SECONDS
        for number, pace in enumerate(paces):
            left[number] -= rate * STEP_SECONDS * lanes[number] / sum(lanes)
            sight = Sight(seconds=now, received_bytes=int(received), lanes=sum(lanes), left_bytes=int(left[number]))
            lanes[number] = pace.look(sight)
            most = max(most, sum(lanes))
    assert lanes == [1, 1, 1]
    assert most <= 6


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1e10)), max_size=60), st.integers(0, 1 << 40))
def test_whatever_comes_there_are_never_more_than_there_may_be_and_changes_end(
    steps: list[tuple[float, float]], left_bytes: int
) -> None:
    now, received = 0.0, 0.0
    pace = Pace(Sight(seconds=0, received_bytes=0, lanes=1, left_bytes=left_bytes))
    changes = 0
    for seconds, rate in steps:
        now, received = now + seconds, received + rate * seconds
        before = pace.lanes
        left = max(0, left_bytes - int(received))
        lanes = pace.look(Sight(seconds=now, received_bytes=int(received), lanes=before, left_bytes=left))
        assert 1 <= lanes <= MOST_LANES
        changes += lanes != before
    assert changes <= 4
