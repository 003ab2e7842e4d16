"""What a scripted server may answer: what real registries send, and what broken and hostile ones do.

An answer is a value; the server only carries it out. A script that depends on the request is a function from
:class:`Request` to an answer.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


Framing = Literal["length", "chunked", "until_close"]


@dataclass(kw_only=True)
class Request:
    """One request as it came, and what became of its answer."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    client_port: int
    status: int | None = None
    body_bytes_sent: int = 0
    was_answered: bool = False

    def header(self, name: str) -> str | None:
        """Return a header's value, several joined by a comma; None when there is none."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> list[tuple[str, str]]:
        """The decoded parameters of the query, sorted."""
        return sorted(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    def form(self) -> list[tuple[str, str]]:
        """Return the decoded parameters of a form in the body, sorted."""
        return sorted(parse_qsl(self.body.decode(), keep_blank_values=True))

    def __str__(self) -> str:
        answer = f"{self.status}" if self.status is not None else "no status"
        return f"{self.method} {self.target} -> {answer}, {self.body_bytes_sent} bytes of body"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer and how it is sent; by default an honest one over a connection that stays open.

    Attributes:
        framing: ``length`` sends a Content-Length, ``chunked`` chunks, ``until_close`` neither.
        content_length: Sent in place of the true one; the connection is closed after such an answer.
        cut_after_bytes: Close the connection after so many bytes of the body.
        reset: Cut with a TCP reset instead of an orderly end.
        endless: Repeat the body (zeros when it is empty) until the client leaves.
        drip_bytes: Send the body in pieces of this size, with ``drip_seconds`` between them.
        hold: Wait for this event, before the status line or after ``hold_after_bytes`` of the body.
        close_silently: Close afterwards without having said so, as a server does whose idle time is over.
        raw: Send these bytes in place of an HTTP answer and close; ``b""`` closes without answering.
    """

    status: int = 200
    headers: Headers = ()
    body: bytes = b""
    framing: Framing = "length"
    content_length: int | None = None
    cut_after_bytes: int | None = None
    reset: bool = False
    endless: bool = False
    drip_bytes: int | None = None
    drip_seconds: float = 0.01
    hold: threading.Event | None = None
    hold_after_bytes: int | None = None
    close_silently: bool = False
    raw: bytes | None = None

    def header_items(self) -> list[tuple[str, str]]:
        """Return the scripted headers in order; a list of pairs may repeat a name."""
        return list(self.headers.items() if isinstance(self.headers, Mapping) else self.headers)


Scripted = Answer | Callable[[Request], Answer]

NO_ANSWER = Answer(raw=b"")


def redirect(location: str, *, status: int = 307, headers: Headers = (), body: bytes = b"") -> Answer:
    """Return a redirect to ``location``, which may be relative."""
    return Answer(status=status, headers=[("Location", location), *Answer(headers=headers).header_items()], body=body)


def registry_error(status: int, code: str, message: str = "", *, headers: Headers = ()) -> Answer:
    """Return an error with the JSON document of the distribution specification."""
    document = {"errors": [{"code": code, "message": message or code.lower(), "detail": None}]}
    items = [("Content-Type", "application/json; charset=utf-8"), *Answer(headers=headers).header_items()]
    return Answer(status=status, headers=items, body=json.dumps(document).encode())


def unauthorized(challenge: str) -> Answer:
    """Return a 401 with this ``WWW-Authenticate``."""
    return registry_error(401, "UNAUTHORIZED", "authentication required", headers={"WWW-Authenticate": challenge})


def partial_content(body: bytes, first: int, last: int | None = None, *, headers: Headers = ()) -> Answer:
    """Return a 206 with the bytes ``first`` to ``last`` (both included) of ``body``."""
    end = len(body) - 1 if last is None else last
    content_range = ("Content-Range", f"bytes {first}-{end}/{len(body)}")
    items = [content_range, *Answer(headers=headers).header_items()]
    return Answer(status=206, headers=items, body=body[first : end + 1])


def ranged(body: bytes, *, headers: Headers = ()) -> Callable[[Request], Answer]:
    """Return a script that serves single ranges of ``body``: 206, 416 beyond its end, 200 without a range.

    Spec: RFC 9110, section 14.
    """

    def answer(request: Request) -> Answer:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.header("Range") or "")
        if match is None:
            return Answer(headers=headers, body=body)
        first, last = int(match[1]), int(match[2]) if match[2] else len(body) - 1
        if first >= len(body):
            return Answer(status=416, headers={"Content-Range": f"bytes */{len(body)}"})
        return partial_content(body, first, min(last, len(body) - 1), headers=headers)

    return answer


def basic_credentials(user: str, password: str) -> str:
    """Return the Authorization value of these credentials."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass(eq=False, kw_only=True)
class Listed:
    """A request that a script lists, its answers, and the requests that took them.

    Attributes:
        target: Path with query; the query is compared as decoded parameters, in any order.
        requires: Headers that the request must carry, with an exact value, a pattern for the whole of it, or
            None for any value.
        forbids: Headers that it must not carry.
        must_come: Each answer belongs to exactly one request; else any number may come, the last answer repeated.
        at_most: How many requests may come where none must; None for any number.
    """

    method: str
    target: str
    answers: list[Scripted]
    requires: Mapping[str, str | re.Pattern[str] | None] = field(default_factory=dict)
    forbids: tuple[str, ...] = ()
    must_come: bool
    at_most: int | None
    requests: list[Request] = field(default_factory=list)

    def has_same_target(self, request: Request) -> bool:
        """Whether the request asks for what is listed here, its headers aside."""
        path, _, query = self.target.partition("?")
        wanted = sorted(parse_qsl(query, keep_blank_values=True))
        return (request.method, request.path, request.query) == (self.method, path, wanted)

    def header_problem(self, request: Request) -> str | None:
        """Return what is wrong with the request's headers, None when nothing is."""
        for name, wanted in self.requires.items():
            value = request.header(name)
            if value is None:
                return f"{name} is missing"
            if isinstance(wanted, str) and value != wanted:
                return f"{name} is {value!r}, not {wanted!r}"
            if isinstance(wanted, re.Pattern) and wanted.fullmatch(value) is None:
                return f"{name} is {value!r}, which does not match {wanted.pattern!r}"
        present = [name for name in self.forbids if request.header(name) is not None]
        return f"{present[0]} is forbidden" if present else None

    @property
    def is_used_up(self) -> bool:
        """Whether a further request would be one too many."""
        limit = len(self.answers) if self.must_come else self.at_most
        return limit is not None and len(self.requests) >= limit

    @property
    def missing(self) -> int:
        """How many of the listed requests have not come yet."""
        return max(0, len(self.answers) - len(self.requests)) if self.must_come else 0

    def take(self, request: Request) -> Scripted:
        """Note the request and return its answer; the last one is repeated where repetition is allowed."""
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        return answer

    def __str__(self) -> str:
        return f"{self.method} {self.target}"
