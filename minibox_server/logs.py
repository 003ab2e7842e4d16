"""The log: one line for whatever happens, as text or as JSON, and on each line of a request that request's id.

Of a request a line says the path and never the query, nor any header, so that no secret is in it. A traceback is part
of the line that it belongs to: in JSON one field, in text the lines below. What comes from outside never breaks a line.
"""

import json
import logging
import re
import secrets
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import attrs
from starlette.types import Scope

from minibox_server.settings import LogFormat
from minibox_store import one_sentence

Outcome = Literal["done", "failed", "cancelled"]

ACCESS = logging.getLogger("minibox_server.access")
OPERATIONS = logging.getLogger("minibox_server.operations")
REQUEST_ID_HEADER = "X-Request-ID"

# Long enough for any usual id, and of no character that means anything to whoever reads logs.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{7,63}")
_CURRENT: ContextVar[str | None] = ContextVar("minibox_server.request_id", default=None)
_FIELDS = "minibox_fields"


@attrs.frozen(kw_only=True)
class RequestRecord:
    """One request and its answer, as the log and the metrics tell of it.

    Attributes:
        client: the address that it came from.
        method: as it came; not trusted.
        path: without the query; not trusted.
        route: the declared path of the endpoint that it was for; None where there is none.
        status: of the answer; None where none was begun.
        bytes_in: of the body that was read.
        bytes_out: of the answer's body.
        seconds: from its head to the end of the answer.
        is_whole: whether the client was there to the end of the answer, and the answer came to its end.
    """

    client: str
    method: str
    path: str
    route: str | None
    status: int | None
    bytes_in: int
    bytes_out: int
    seconds: float
    is_whole: bool

    def log(self) -> None:
        """Write its line."""
        method, path, duration_ms = one_sentence(self.method), one_sentence(self.path), self.seconds * 1000
        fields = {
            "message": "request",
            "client": self.client,
            "method": method,
            "path": path,
            "route": self.route,
            "status": self.status,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "duration_ms": round(duration_ms, 3),
            "ended_early": not self.is_whole,
        }
        ending = "" if self.is_whole else ", ended early"
        line = '%s "%s %s" %s %.0f ms%s'
        ACCESS.info(line, self.client, method, path, self.status, duration_ms, ending, extra={_FIELDS: fields})


@attrs.frozen(kw_only=True)
class OperationRecord:
    """One operation, as the log and the metrics tell of it.

    Attributes:
        doing: what it is, in a word of this program, such as ``pull``.
        outcome: how it ended.
        error: the class of what went wrong; its sentence is for who asked, and may hold what they wrote.
        seconds: how long it took.
    """

    doing: str
    outcome: Outcome
    error: str | None
    seconds: float

    def log(self) -> None:
        """Write its line."""
        duration_ms = self.seconds * 1000
        known = {"operation": self.doing, "outcome": self.outcome, "error": self.error}
        OPERATIONS.info(
            "%s %s%s %.0f ms",
            self.doing,
            self.outcome,
            "" if self.error is None else f" ({self.error})",
            duration_ms,
            extra={_FIELDS: {"message": "operation", **known, "duration_ms": round(duration_ms, 3)}},
        )


def choose_request_id(scope: Scope) -> str:
    """Return the id of a request: the client's own where it has one that is fit to be written down, else a new one."""
    given = [value for name, value in scope["headers"] if name.lower() == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return str(given[0].decode("ascii"))
    return secrets.token_hex(8)


def set_request_id(request_id: str) -> None:
    """Let whatever this task, and each thread that works for it, logs from now on bear this id."""
    _CURRENT.set(request_id)


class TextFormatter(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with its traceback below it."""
        request_id = _CURRENT.get()
        record.request = "" if request_id is None else f" [{request_id}]"
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """Lines for programs: an object each."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "request_id": _CURRENT.get(),
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        # Nothing but ASCII: no control character, and no line separator that a reader might take for an end.
        return json.dumps(line, ensure_ascii=True, default=str)


def logging_settings(log_format: LogFormat) -> dict[str, Any]:
    """Return what :mod:`logging.config` makes the daemon's log of, on stderr."""
    formatter = {"text": TextFormatter, "json": JsonFormatter}[log_format]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "loggers": {
            "minibox_server": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            "minibox_store": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        },
    }
