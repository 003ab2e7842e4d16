"""The connections of one process: how many there may be, and how long each of them may let the daemon wait.

A connection that asks nothing is worth little: where there is no room for another one, the one that has asked nothing
for the longest time goes. Where each of them is being served, the new one is told so, and closed. And whoever owes
something (the head of a request, more of its body, the taking of an answer) has so long a time to go on with it; how
long the daemon itself takes to answer is nobody's fault here.
"""

import asyncio
import resource
from collections.abc import Hashable
from typing import Protocol

# What is told that there is no room is listened to for a moment, so that it sees the answer; more than these are not.
_MOST_LINGERING = 64
# Descriptors that are no connection: files of the store, what waits to be accepted, connections to registries.
OTHER_DESCRIPTORS = 1024
_MOST_ACCEPTED = 256
# So many the kernel keeps until then.
LISTEN_BACKLOG = 1024


class Connection(Protocol):
    """What is asked of a connection here."""

    def owes(self) -> Hashable | None:
        """Return what its client is waited for, which is another value when it has gone on; None where it is not."""
        ...

    def time_out(self) -> None:
        """End it: its client has let the daemon wait for too long."""
        ...

    def make_room(self) -> None:
        """End it: it asks nothing, and another one wants its place."""
        ...


class Connections:
    """All connections of one process; for the loop's thread alone."""

    def __init__(self, *, most: int, idle_seconds: float) -> None:
        """Let there be ``most`` connections, each of which may keep still for ``idle_seconds``."""
        self.idle_seconds = idle_seconds
        self._most = most
        # Time is counted in looks: while the loop itself stands still, nobody is to blame for what does not come.
        self._look_seconds = min(1.0, idle_seconds / 8)
        self._open: dict[Connection, tuple[Hashable, int]] = {}
        # In the order in which they began to wait for a request.
        self._asking_nothing: dict[Connection, None] = {}
        self._lingering: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    def admit(self, connection: Connection) -> bool:
        """Take in a connection; return False where there is no room, and none can be made."""
        if len(self._open) >= self._most:
            oldest = next(iter(self._asking_nothing), None)
            if oldest is None:
                return False
            self.forget(oldest)
            oldest.make_room()
        self._open[connection] = (None, 0)
        self._asking_nothing[connection] = None
        self._sweep_later()
        return True

    def note(self, connection: Connection, *, asks: bool) -> None:
        """Take note of whether a connection is being served, or asks nothing."""
        if asks:
            self._asking_nothing.pop(connection, None)
        elif connection in self._open:
            self._asking_nothing.setdefault(connection)

    def may_linger(self, connection: Connection) -> bool:
        """Whether a connection that was refused may stay for a moment; it counts as none of the others from now on."""
        self.forget(connection)
        if len(self._lingering) >= _MOST_LINGERING:
            return False
        self._lingering.add(connection)
        return True

    def forget(self, connection: Connection) -> None:
        """Take note that a connection is lost, or as good as that."""
        self._open.pop(connection, None)
        self._asking_nothing.pop(connection, None)
        self._lingering.discard(connection)

    def _sweep_later(self) -> None:
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._look_seconds, self._end_stalled)

    def _end_stalled(self) -> None:
        self._sweep = None
        try:
            for connection, (owed, looked) in list(self._open.items()):
                owes = connection.owes()
                looks = looked + 1 if owes is not None and owes == owed else 0
                self._open[connection] = (owes, looks)
                if looks * self._look_seconds >= self.idle_seconds:
                    connection.time_out()
        finally:  # whatever is wrong with one of them, the others are looked at again
            if self._open:
                self._sweep_later()


def accepted_at_once(connections: int) -> int:
    """Return how many connections may be accepted before any of them is listened to.

    Of so few none has to go before it could say what it wants, however many there come.
    """
    return max(1, min(_MOST_ACCEPTED, connections // 4))


def room_for(connections: int) -> int:
    """Let this process have as many descriptors as it needs, and return for how many connections they are enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY or soft >= wanted else min(connections, soft // 2)
