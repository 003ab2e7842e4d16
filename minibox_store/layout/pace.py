"""How many ranges of a blob are worth fetching at once: as many as make what comes in all come faster.

It is decided by measuring, never by what a registry is called: many give each connection so much and no more, and
where the line itself or this machine is what is slow, further connections are of no use. Pure: who asks says what the
time is, and what has come.
"""

import attrs

from minibox_store.values import Value

MOST_LANES = 8

# Many give more at first than they go on with, so the first look comes later than those at what a change has done. Each
# takes so long, and where little comes longer.
BEGINNING_SECONDS = 0.5
SETTLING_SECONDS = 0.25
WINDOW_SECONDS = 0.5
LONG_WINDOW_SECONDS = 2.0
_WINDOW_BYTES_OF_A_LANE = 2 * 1024 * 1024
# What is done so soon is not worth a change.
WORTH_SECONDS = 1.0
# How much of what further lanes would bring at best they have to bring.
_WORTH = 0.5


@attrs.frozen(kw_only=True, repr=False)
class Sight(Value):
    """What is seen at one moment.

    Attributes:
        seconds: a clock.
        received_bytes: of all blobs together, from some moment on.
        lanes: of all blobs together.
        left_bytes: of this blob.
    """

    seconds: float
    received_bytes: int
    lanes: int
    left_bytes: int


@attrs.frozen(repr=False)
class _Rate(Value):
    bytes_per_second: float
    lanes: int


class Pace:
    """The lanes of one blob: begins with one, and doubles them as long as that pays.

    Attributes:
        lanes: how many there should be now.
        is_settled: whether that stays.
        own_bytes_per_second: how fast this blob came in the last window.
    """

    def __init__(self, sight: Sight, *, lanes: int = 1, is_settled: bool = False) -> None:
        self.lanes = lanes
        self.is_settled = is_settled
        self.own_bytes_per_second = 0.0
        self._since = sight
        self._settling_seconds = BEGINNING_SECONDS
        self._before: tuple[int, _Rate] | None = None

    def look(self, sight: Sight) -> int:
        """Return how many lanes there should be, by what is seen now."""
        seconds = sight.seconds - self._since.seconds
        if self.is_settled:
            return self.lanes
        if self._settling_seconds:
            if seconds >= self._settling_seconds:
                self._since, self._settling_seconds = sight, 0.0
            return self.lanes
        received_bytes = sight.received_bytes - self._since.received_bytes
        is_much = received_bytes >= _WINDOW_BYTES_OF_A_LANE * sight.lanes
        if seconds < (WINDOW_SECONDS if is_much else LONG_WINDOW_SECONDS):
            return self.lanes
        self.own_bytes_per_second = (self._since.left_bytes - sight.left_bytes) / seconds
        # Of the beginning: what others change while this one looks shows in the next window alone.
        self._decide(_Rate(received_bytes / seconds, self._since.lanes), sight)
        self._since = sight
        return self.lanes

    def give_up(self) -> None:
        """Go back to one lane for good."""
        self.lanes, self.is_settled = 1, True

    def _decide(self, rate: _Rate, sight: Sight) -> None:
        if self._before is not None and not _is_worth(self._before[1], rate):
            self.lanes, self.is_settled = self._before[0], True
        elif self.lanes >= MOST_LANES:
            self.is_settled = True
        elif sight.left_bytes > WORTH_SECONDS * self.own_bytes_per_second:
            self._before = self.lanes, rate
            self.lanes = min(MOST_LANES, 2 * self.lanes)
            self._settling_seconds = SETTLING_SECONDS


def _is_worth(before: _Rate, now: _Rate) -> bool:
    """Whether what comes in all has grown by a clear part of what the lanes have."""
    grown = now.lanes / max(1, before.lanes) - 1
    return now.bytes_per_second >= before.bytes_per_second * (1 + _WORTH * max(0.0, grown))
