"""How often, and after what pause, the same thing is tried again.

Pauses double and are jittered, so that many clients do not come back at once. What a registry asks for by
Retry-After is granted up to a bound; beyond it the caller is told at once, and decides.
"""

import random
import re
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

import attrs

from minibox_store.kinds import check_count, check_seconds
from minibox_store.registry.failures import Failure
from minibox_store.values import Value

_SECONDS = re.compile(r"[0-9]{1,9}")


@attrs.frozen(kw_only=True, repr=False)
class RetryPolicy(Value):
    """The bounds of trying again.

    Attributes:
        attempts: how often one thing is tried at most, unless it gets on in between.
        back_off_seconds: the first pause; each further one is twice as long.
        longest_back_off_seconds: where that ends.
        longest_wait_seconds: of a pause that the registry asks for.
        patience_seconds: after the first failure; only one more try is begun later than that.

    Raises:
        InvalidArgument: on construction, for what is no whole number, or no time.
    """

    attempts: int = 5
    back_off_seconds: float = 0.2
    longest_back_off_seconds: float = 5.0
    longest_wait_seconds: float = 10.0
    patience_seconds: float = 30.0

    def __attrs_post_init__(self) -> None:
        check_count("attempts", self.attempts, "each thing has to be tried once")
        check_seconds("back_off_seconds", self.back_off_seconds)
        check_seconds("longest_wait_seconds", self.longest_wait_seconds)


class Attempts:
    """The tries of one thing that is wanted. For one thread.

    Args:
        policy: the bounds.
        pause: waits so many seconds, and returns False when it was interrupted.
        on_retry: called when a further try begins.
    """

    def __init__(
        self, policy: RetryPolicy, pause: Callable[[float], bool], on_retry: Callable[[], None] | None = None
    ) -> None:
        self._on_retry = on_retry
        self._policy = policy
        self._pause = pause
        self._failures = 0
        self._first_failure = 0.0
        self._had_last = False

    def advanced(self) -> None:
        """Count anew: something has come of the last try."""
        self._failures = 0
        self._had_last = False

    def failed(self, failure: Failure) -> None:
        """Return after the pause that is due before the next try.

        Raises:
            StoreError: that of ``failure``, when there is to be no further try.
        """
        now = time.monotonic()
        self._failures += 1
        if self._failures == 1:
            self._first_failure = now
        is_late = self._failures > 1 and now - self._first_failure > self._policy.patience_seconds
        gives_up = is_late or self._failures >= self._policy.attempts or (failure.only_once and self._had_last)
        self._had_last = self._had_last or failure.only_once
        wanted = failure.retry_after_seconds or 0.0
        if not failure.may_retry or gives_up or wanted > self._policy.longest_wait_seconds:
            raise failure.error from failure.__cause__
        if not self._pause(max(wanted, self._back_off())):
            raise failure.error from failure.__cause__
        if self._on_retry is not None:
            self._on_retry()

    def _back_off(self) -> float:
        doubled: float = self._policy.back_off_seconds * 2.0 ** (self._failures - 1)
        return min(doubled, self._policy.longest_back_off_seconds) * random.uniform(0.5, 1.0)


def parse_retry_after(text: str | None, date: str | None = None) -> float | None:
    """Return how many seconds a Retry-After header asks for; None when it asks for nothing that can be read.

    Args:
        text: seconds, or an HTTP date; not trusted.
        date: the same answer's Date header. An HTTP date is measured from it, so that a clock that is wrong on
            either side does no harm.

    >>> parse_retry_after("120")
    120.0
    >>> parse_retry_after("Sun, 06 Nov 1994 08:50:07 GMT", "Sun, 06 Nov 1994 08:49:37 GMT")
    30.0

    Spec: RFC 9110, section 10.2.3.
    """
    if text is None:
        return None
    if _SECONDS.fullmatch(text.strip()):
        return float(text.strip())
    until = parse_date(text)
    if until is None:
        return None
    now = parse_date(date) if date is not None else None
    return max(0.0, until - (time.time() if now is None else now))


def parse_date(text: str) -> float | None:
    """Return an HTTP date as seconds since 1970, None where it is none; the text is not trusted."""
    try:
        parsed = parsedate_to_datetime(text)
        return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
