"""The headers in which registries say how much they grant, as one value.

There are two families of names, ``RateLimit-*`` and ``X-RateLimit-*``, and two readings of the time in them: seconds
from now, and seconds since 1970. What is no plain number says nothing; no header is an error.

Spec: draft-ietf-httpapi-ratelimit-headers-07; Docker Hub, "Usage and limits"; "Rate limits" of GitHub and GitLab.
"""

import re
import time
from collections.abc import Callable, Iterator

import attrs

from minibox_store.registry.retries import parse_date
from minibox_store.reports.rate_limits import RateLimit
from minibox_store.values import Value

# The first that says anything counts.
_FAMILIES = ("RateLimit", "X-RateLimit")
_SOURCE = "Docker-RateLimit-Source"

_ITEM = re.compile(r"[ \t]*([0-9]{1,15})[ \t]*((?:;[^,;]*)*)")
_WINDOW = re.compile(r";[ \t]*w[ \t]*=[ \t]*([0-9]{1,15})[ \t]*(?:;|\Z)")
_NUMBER = re.compile(r"[0-9]{1,15}")
_MAX_LENGTH = 256
# A time that far ahead is meant to be one since 1970.
_EPOCH_SECONDS = 1_000_000_000


@attrs.frozen(repr=False)
class _Item(Value):
    """One number of a header, and the window that stands beside it."""

    number: int
    window_seconds: float | None


def parse_rate_limit(header: Callable[[str], str | None]) -> RateLimit | None:
    """Return what an answer says of its registry's limit, None where it says neither the limit nor what is left.

    Args:
        header: returns the value of a header; not trusted.

    >>> parse_rate_limit({"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "76;w=21600"}.get)
    RateLimit(limit=100, remaining=76, window_seconds=21600.0, reset_seconds=None, source=None)
    """
    for family in _FAMILIES:
        limits, remaining = _items(header(f"{family}-Limit")), _items(header(f"{family}-Remaining"))
        if limits or remaining:
            return RateLimit(
                limit=limits[0].number if limits else None,
                remaining=remaining[0].number if remaining else None,
                window_seconds=_window(limits, remaining),
                reset_seconds=_reset(header(f"{family}-Reset"), header("Date")),
                source=_text(header(_SOURCE)),
            )
    return None


def _items(text: str | None) -> list[_Item]:
    return list(_iter_items(text)) if text is not None and len(text) <= _MAX_LENGTH else []


def _iter_items(text: str) -> Iterator[_Item]:
    for each in text.split(","):
        found = _ITEM.fullmatch(each)
        if found is None:
            return
        window = _WINDOW.search(found[2])
        yield _Item(int(found[1]), float(window[1]) if window else None)


def _window(limits: list[_Item], remaining: list[_Item]) -> float | None:
    """Return the window of the number that is in force, which the draft repeats behind it with its window."""
    for items in (limits, remaining):
        for item in items:
            if item.window_seconds is not None and item.number == items[0].number:
                return item.window_seconds
    return None


def _reset(text: str | None, date: str | None) -> float | None:
    if text is None or not _NUMBER.fullmatch(text):
        return None
    seconds = float(text)
    if seconds < _EPOCH_SECONDS:
        return seconds
    # Measured from the answer's own date: a clock that is wrong on either side does no harm.
    now = parse_date(date) if date is not None else None
    return max(0.0, seconds - (time.time() if now is None else now))


def _text(text: str | None) -> str | None:
    return text if text and len(text) <= _MAX_LENGTH and text.isascii() and text.isprintable() else None
