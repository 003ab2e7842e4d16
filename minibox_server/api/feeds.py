"""What listeners are told: of each thing the newest that is known of it, encoded once for all of them.

A feed holds one event for each key. Who listens is a number, that of the last change it has seen: so one who reads
nothing costs nothing more, one who reads slowly misses what was overtaken meanwhile, and one who comes late is told the
present state first. A feed belongs to the loop's thread.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Literal

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

Form = Literal["application/x-ndjson", "text/event-stream"]

NDJSON: Form = "application/x-ndjson"
SERVER_SENT: Form = "text/event-stream"

# More things than an image may have parts: what changed longest ago is forgotten first.
_MOST_KEPT = 4096


class Feed:
    """The events of one operation, or of the store."""

    def __init__(self) -> None:
        self.version = 0
        self._events: OrderedDict[Hashable, tuple[int, Mapping[str, object]]] = OrderedDict()
        self._encoded: dict[tuple[int, Form], bytes] = {}

    def put(self, key: Hashable, event: Mapping[str, object]) -> None:
        """Let ``event`` take the place of what was said of ``key``."""
        self.version += 1
        self._events[key] = (self.version, event)
        self._events.move_to_end(key)
        if len(self._events) > _MOST_KEPT:
            self._events.popitem(last=False)
        self._encoded.clear()

    def since(self, version: int, form: Form) -> bytes:
        """Return what changed after ``version``, in the order in which it did."""
        encoded = self._encoded.get((version, form))
        if encoded is None:
            news: list[Mapping[str, object]] = []
            for changed, event in reversed(self._events.values()):
                if changed <= version:
                    break
                news.append(event)
            encoded = b"".join(encode_event(event, form) for event in reversed(news))
            # All who keep up ask for the same; of those who do not, each waits for its own client.
            self._encoded[version, form] = encoded
        return encoded


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
