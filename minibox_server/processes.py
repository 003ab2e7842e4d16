"""Several processes that serve the same sockets: one that dies is replaced, and all end with the one that began them.

They share nothing but the store, which bears several of them, and the sockets, which the first process keeps open: a
connection that a dead one has not taken yet is another one's. Each has threads, so none of them is ever forked itself.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import NoReturn

import attrs

LOGGER = logging.getLogger("minibox_server")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_FIRST_PAUSE_SECONDS = 0.1
_MOST_PAUSE_SECONDS = 10.0
# Who has lived for so long did not die of its start.
_SOUND_SECONDS = 30.0
# Each ends itself within ten seconds of being told to.
_END_SECONDS = 9.5
# What a process that was killed may still take: its memory is given back, or a disk has to answer first.
_KILLED_SECONDS = 5.0
_MOST_WAIT_SECONDS = 1.0


@attrs.define
class _Place:
    """One of the processes: the one that is there now, or when the next one may begin."""

    pid: int | None = None
    begun: float = 0.0
    pause_seconds: float = _FIRST_PAUSE_SECONDS
    due: float = 0.0

    def put_off(self, now: float) -> None:
        """Let the next one begin after a pause, and the one after that after a longer one."""
        self.due = now + self.pause_seconds
        self.pause_seconds = min(2 * self.pause_seconds, _MOST_PAUSE_SECONDS)


class Processes:
    """So many processes that do the same work.

    Args:
        count: how many.
        work: what each does; it is given a descriptor at whose end the first process is gone, and so must it be.
    """

    def __init__(self, count: int, work: Callable[[int], None]) -> None:
        self._work = work
        self._places = [_Place() for _ in range(count)]
        self._lifeline, self._held = os.pipe()

    def run(self, on_start: Callable[[], None], on_hangup: Callable[[], None]) -> None:
        """Start all, replace those that die, and return once SIGTERM or SIGINT has come and all have ended.

        ``on_start`` is called when all have begun. At SIGHUP ``on_hangup`` is called, so that those which begin later
        have what it does, and SIGHUP is passed on to the others.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        # Whoever began this one may have had no interest in its children, which is handed on: of the end of theirs the
        # system tells nobody then, and forgets them.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            self._start_due(before)
            on_start()
            while (found := self._wait(self._seconds_to_next())) not in (signal.SIGTERM, signal.SIGINT):
                if found == signal.SIGHUP:
                    on_hangup()
                    self._tell_all(signal.SIGHUP)
                self._reap()
                self._start_due(before)
        finally:
            self._end_all()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start_due(self, mask: set[signal.Signals] | set[int]) -> None:
        now = time.monotonic()
        for place in self._places:
            if place.pid is None and now >= place.due:
                is_first, place.begun = not place.begun, now
                try:
                    place.pid = os.fork()
                except OSError as error:
                    if is_first:
                        raise
                    # The others serve on; there may be room for it soon.
                    LOGGER.warning("no process can begin: %s", error.strerror)
                    place.put_off(now)
                    continue
                if not place.pid:
                    self._become(mask)

    def _become(self, mask: set[signal.Signals] | set[int]) -> NoReturn:
        """Do the work in a process that has just begun, and end it."""
        status = 1
        try:
            os.close(self._held)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._work(self._lifeline)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 0
        except BaseException:
            LOGGER.exception("a process failed")
        finally:
            logging.shutdown()
            # Nothing of what the first process is in the middle of is this one's to finish.
            os._exit(status)

    def _reap(self) -> None:
        """Note who has died, and when another one takes its place: soon, unless its kind dies again and again."""
        now = time.monotonic()
        for place in self._places:
            if place.pid is None or not (status := _status_of_dead(place.pid)):
                continue
            if now - place.begun > _SOUND_SECONDS:
                place.pause_seconds = _FIRST_PAUSE_SECONDS
            LOGGER.warning("process %d %s; another begins in %.1f s", place.pid, status, place.pause_seconds)
            place.pid = None
            place.put_off(now)

    def _seconds_to_next(self) -> float | None:
        due = [place.due for place in self._places if place.pid is None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _tell_all(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.pid is not None:
                os.kill(place.pid, number)

    def _end_all(self) -> None:
        """Tell all to end, and end those that have not done so in time."""
        self._tell_all(signal.SIGTERM)
        self._wait_for_all(_END_SECONDS)
        self._tell_all(signal.SIGKILL)
        self._wait_for_all(_KILLED_SECONDS)
        for place in self._places:
            if place.pid is not None:
                LOGGER.warning("process %d does not end, whatever it is told: it is left to the system", place.pid)

    def _wait_for_all(self, seconds: float) -> None:
        """Return once all have ended, or the time is over."""
        deadline = time.monotonic() + seconds
        while self._is_any_left() and (remaining := deadline - time.monotonic()) > 0:
            # The end of a child is a signal that is kept until it is waited for.
            self._wait(min(remaining, _MOST_WAIT_SECONDS))

    def _is_any_left(self) -> bool:
        """Note who has died; whether another one lives, of whose end a signal will tell."""
        for place in self._places:
            if place.pid is not None and _status_of_dead(place.pid):
                place.pid = None
        return any(place.pid is not None for place in self._places)

    @staticmethod
    def _wait(seconds: float | None) -> int | None:
        """Return the signal that has come, None when the time is over."""
        if seconds is None:
            return signal.sigwait(_SIGNALS)
        found = signal.sigtimedwait(_SIGNALS, seconds)
        return None if found is None else found.si_signo


def _status_of_dead(pid: int) -> str | None:
    """Return how a child has ended, None while it lives."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        return None
    code = os.waitstatus_to_exitcode(status)
    return f"ended with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
