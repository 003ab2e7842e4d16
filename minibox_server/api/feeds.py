"""What listeners are told: of each thing the newest that is known of it, encoded once for all of them.

A feed holds one event for each key. Who listens is a number, that of the last change it has seen: so one who reads
nothing costs nothing more, one who reads slowly misses what was overtaken meanwhile, and one who comes late is told the
present state first. A feed belongs to the loop's thread.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import islice, takewhile
from operator import itemgetter
from typing import Literal

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

Form = Literal["application/x-ndjson", "text/event-stream"]

NDJSON: Form = "application/x-ndjson"
SERVER_SENT: Form = "text/event-stream"

# To who listens by server-sent events nothing is said for so long at most.
SILENCE_SECONDS = 15.0
NOTHING_NEW = b": nothing new\n\n"

# More things than an image may have parts: what changed longest ago is forgotten first.
_MOST_KEPT = 4096
MOST_LINES = 10_000
_MOST_ENCODED = 64

_Told = tuple[int, Mapping[str, object]]


class Feed:
    """The events of one operation.

    Attributes:
        version: the number of the last change.
    """

    def __init__(self) -> None:
        self.version = 0
        self._passing: OrderedDict[Hashable, _Told] = OrderedDict()
        self._lasting: OrderedDict[Hashable, _Told] = OrderedDict()
        self._encoded: dict[tuple[int, Form], bytes] = {}

    def put(self, key: Hashable, event: Mapping[str, object], *, lasts: bool = False) -> None:
        """Let ``event`` take the place of what was said of ``key``; what ``lasts`` is never forgotten for others."""
        self.version += 1
        events = self._lasting if lasts else self._passing
        events[key] = (self.version, event)
        events.move_to_end(key)
        if len(self._passing) > _MOST_KEPT:
            self._passing.popitem(last=False)
        self._encoded.clear()

    def drop(self, key: Hashable) -> None:
        """Say nothing of ``key`` any more."""
        self._lasting.pop(key, None)
        self._passing.pop(key, None)
        self._encoded.clear()

    def since(self, version: int, form: Form) -> bytes:
        """Return what changed after ``version``, in the order in which it did."""
        encoded = self._encoded.get((version, form))
        if encoded is None:
            news = sorted((*_later(self._passing, version), *_later(self._lasting, version)), key=itemgetter(0))
            encoded = b"".join(encode_event(event, form) for _, event in news)
            # All who keep up ask for the same; those who do not may ask for anything.
            if len(self._encoded) < _MOST_ENCODED:
                self._encoded[version, form] = encoded
        return encoded


class Lines:
    """What an operation has to say as text; of very many lines the oldest are left out, for who did not read them."""

    def __init__(self) -> None:
        self._kept: deque[str] = deque(maxlen=MOST_LINES)
        self.count = 0

    def add(self, lines: Iterable[str]) -> None:
        """Say these, after all that was said before."""
        for line in lines:
            self._kept.append(line)
            self.count += 1

    def since(self, count: int) -> list[str]:
        """Return what was said after the first ``count`` lines, as far as it is kept."""
        return list(islice(self._kept, max(0, count - (self.count - len(self._kept))), None))


def _later(events: OrderedDict[Hashable, _Told], version: int) -> Iterator[_Told]:
    return takewhile(lambda told: told[0] > version, reversed(events.values()))


def encode_event(event: Mapping[str, object], form: Form, *, identity: str | None = None) -> bytes:
    """Return an event as a line of JSON, or as a server-sent event of the kind that its key ``event`` says."""
    data = bytes(JSONResponse(event).body)
    if form == NDJSON:
        return data + b"\n"
    before = "" if identity is None else f"id: {identity}\n"
    return f"{before}event: {event['event']}\ndata: ".encode() + data + b"\n\n"


def accepted_form(headers: Headers) -> Form | None:
    """Return in which form a client wants to be told of progress; None where it does not.

    Where it takes several, the one that it prefers counts, and of equal ones the first; the text that a browser would
    show, or JSON, are forms too.
    """
    best: tuple[float, str] | None = None
    for item in ",".join(headers.getlist("accept")).lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        if media_type in (NDJSON, SERVER_SENT, "application/json", "text/plain"):
            weight = _weight(parameters)
            if weight > 0 and (best is None or weight > best[0]):
                best = (weight, media_type)
    if best is None:
        return None
    return next((form for form in (NDJSON, SERVER_SENT) if form == best[1]), None)


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0
    return 1
