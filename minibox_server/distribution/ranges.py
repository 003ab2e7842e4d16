"""The Range header: one range of bytes, or none.

What is malformed, repeated or of several ranges is ignored, as RFC 9110 allows, and the whole is sent: so no request
makes this server send anything twice.

Spec: RFC 9110, section 14.
"""

import re
from collections.abc import Sequence

import attrs

_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")


class RangeNotSatisfiable(Exception):
    """A range that begins beyond the end."""


@attrs.frozen
class ByteRange:
    """The bytes from ``first`` to ``last``, both included."""

    first: int
    last: int

    @property
    def size_bytes(self) -> int:
        """How many bytes these are."""
        return self.last - self.first + 1


def parse_range(headers: Sequence[str], size_bytes: int) -> ByteRange | None:
    """Return the range that the values of a request's Range headers ask for, None for the whole.

    Raises:
        RangeNotSatisfiable: when none of the bytes asked for exists.

    >>> parse_range(["bytes=2-"], 5)
    ByteRange(first=2, last=4)
    >>> parse_range(["bytes=0-1,3-4"], 5) is None
    True
    """
    match = _RANGE.fullmatch(headers[0].strip()) if len(headers) == 1 else None
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:
        wanted = int(match["last"])
        if wanted == 0 or size_bytes == 0:
            raise RangeNotSatisfiable
        return ByteRange(max(0, size_bytes - wanted), size_bytes - 1)
    first = int(match["first"])
    if match["last"] and int(match["last"]) < first:
        return None
    if first >= size_bytes:
        raise RangeNotSatisfiable
    return ByteRange(first, min(int(match["last"]), size_bytes - 1) if match["last"] else size_bytes - 1)
